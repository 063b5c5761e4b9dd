"""``nn.Module`` and ``ExportedProgram`` -> `Graph`, through torch.export and torch.onnx.

torch.onnx gives an ``onnx_ir.Model`` that refers to the module's own tensors. The model is read through its ModelProto,
in which every weight is only a reference, so that the graph gets torch's memory and no weight is ever copied.
"""

from __future__ import annotations

import itertools
import logging
import re
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...ir.convert.proto import from_proto
from ...ir.errors import ModelError
from ...ir.graph import Graph, GraphOutput, Value
from ...ir.tensor import Tensor
from ..onnx.upgrade import upgrade
from .failure import describe
from .tensor import TorchTensor, storage_key

if TYPE_CHECKING:
    import onnx_ir
    import torch
    from torch.export import ExportedProgram

__all__ = ["from_exported", "from_torch", "quiet", "require_torch"]

_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch.fx")
_SAME_NAME = r"# The axis name: (.*) will not be used, since it shares .* with another axis: \1\.$"
_SYMBOL = re.compile(r"\bs\d+\b")  # how torch calls a size that nobody named


def from_torch(
    module: torch.nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of ``module``, whose weights are the module's own memory.

    The module is exported as in evaluation mode, with a warning if it is not in it, and left as it was. Outputs that
    are entries of a dictionary, or fields of a dataclass or named tuple, are called like these.

    Args:
        module: the module.
        args: example arguments: a tuple, or the only one. What is no tensor becomes part of the graph.
        kwargs: example keyword arguments.
        dynamic_shapes: as for ``torch.export.export``; names are allowed: ``{"x": {0: "batch"}}``.
        input_names: other names for the inputs, in order.
        output_names: other names for the outputs, in order.

    Raises:
        ImportError: an extra is missing.
        ModelError: the module cannot be exported.
    """
    torch = require_torch()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"from_torch takes a torch.nn.Module, not {type(module).__name__}")
    modes = [(m, m.training) for m in module.modules()]
    if any(training for _, training in modes):
        warnings.warn("the module is in training mode; it is exported as in evaluation mode", stacklevel=2)
    args = tuple(args) if isinstance(args, tuple | list) else (args,)
    if not kwargs and args and isinstance(args[-1], dict):
        args = (*args, {})  # or torch.onnx would take the dictionary for kwargs
    try:
        module.eval()
        program = _export(module, args, kwargs=dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    finally:
        for m, training in modes:
            m.training = training
    return _graph(program, input_names, output_names)


def from_exported(
    program: ExportedProgram, *, input_names: Sequence[str] | None = None, output_names: Sequence[str] | None = None
) -> Graph:
    """The graph of an exported program, whose weights are the program's own memory.

    Args:
        program: what ``torch.export.export`` returns. It keeps no names of dynamic dimensions: they are called after
            the input that has them (``x_dim0``).
        input_names: other names for the inputs, in order.
        output_names: other names for the outputs, in order.

    Raises:
        ImportError: an extra is missing.
        ModelError: the program cannot be translated.
    """
    torch = require_torch()
    if not isinstance(program, torch.export.ExportedProgram):
        raise TypeError(f"from_exported takes a torch.export.ExportedProgram, not {type(program).__name__}")
    return _graph(_export(program), input_names, output_names)


def require_torch() -> Any:
    """The torch package.

    Raises:
        ImportError: it, or the package that its ONNX exporter needs, is missing.
    """
    try:
        import onnxscript  # noqa: F401
        import torch
        import torch.onnx
    except ModuleNotFoundError as error:
        raise ImportError(f"PyTorch models need {error.name}: pip install 'planish[torch]'", name=error.name) from None
    return torch


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporter from talking about itself; other warnings pass."""
    loggers = [(logger := logging.getLogger(name), logger.level) for name in _LOGGERS]
    try:
        for logger, _ in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", _SAME_NAME)
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)


def _export(model: Any, args: tuple[Any, ...] = (), **options: Any) -> Any:
    """The ONNXProgram of a module or an exported program."""
    import torch

    try:
        with quiet():
            program = torch.onnx.export(model, args, dynamo=True, optimize=False, verbose=False, **options)
    except Exception as error:
        raise ModelError(f"cannot export {type(model).__name__}: {describe(error)}") from error
    signature = program.exported_program.graph_signature
    updated = [str(spec.target) for spec in signature.output_specs if spec.kind.name.endswith("_MUTATION")]
    if updated:
        warnings.warn(f"the module changes {', '.join(updated)} when it runs; the graph does not", stacklevel=3)
    return program


def _graph(program: Any, input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> Graph:
    """The graph of an ONNXProgram, which is used up."""
    import onnx_ir

    model: onnx_ir.Model = program.model
    outputs = list(model.graph.outputs)
    names: list[str] = []
    for value in outputs:
        names.append(_unused(str(value.name), names))
    _name_sizes(model)
    weights = _detach_weights(model)
    _make_names_unique(model)
    model.graph.outputs[:] = list(dict.fromkeys(outputs))
    positions = {value: i for i, value in enumerate(model.graph.outputs)}
    proto = onnx_ir.to_proto(model)
    graph = from_proto(proto, resolve=lambda weight: weights[weight.external_data[0].value], upgrade=upgrade)
    returned = [(graph.outputs[positions[value]], graph.output_info[positions[value]]) for value in outputs]
    interface = [GraphOutput(name, o.type, o.doc, o.metadata) for name, (_, o) in zip(names, returned, strict=True)]
    graph.set_outputs([value for value, _ in returned], interface)
    _rename("input", graph.inputs, input_names)
    derived = _output_names(program.exported_program, {v.name for v in graph.inputs})
    _rename("output", graph.output_info, derived if output_names is None else output_names)
    return graph


def _detach_weights(model: onnx_ir.Model) -> dict[str, Tensor]:
    """Replace every weight of ``model`` by a reference, and return the tensors by what the references say.

    Weights that share one memory become one.
    """
    import onnx_ir
    import torch

    tensors: dict[str, Tensor] = {}
    first: dict[object, onnx_ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        content: Any = value.const_value
        raw = getattr(content, "raw", None)
        if not isinstance(raw, torch.Tensor):
            continue
        same = first.setdefault(storage_key(raw), value)
        if same is not value and value not in model.graph.outputs:
            onnx_ir.convenience.replace_all_uses_with(value, same)
            del model.graph.initializers[name]
            continue
        key = str(len(tensors))
        tensors[key] = TorchTensor(raw, name)
        value.const_value = onnx_ir.ExternalTensor(key, None, None, content.dtype, shape=content.shape, name=name)
    return tensors


def _values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    """The results of all nodes, in nested graphs and functions too."""
    import onnx_ir

    graphs: list[onnx_ir.Graph | onnx_ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
            yield from node.outputs


def _make_names_unique(model: onnx_ir.Model) -> None:
    """Rename results that are called like a weight: torch.onnx does that where a buffer is called ``mean``."""
    taken = set(model.graph.initializers) | {str(v.name) for v in model.graph.inputs}
    for value in _values(model):
        value.name = _unused(value.name or "", taken)
        taken.add(value.name)


def _unused(name: str, taken: Container[str]) -> str:
    return name if name not in taken else next(n for i in itertools.count(1) if (n := f"{name}_{i}") not in taken)


def _name_sizes(model: onnx_ir.Model) -> None:
    """Call the sizes that nobody named after the input that has them."""
    import onnx_ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, onnx_ir.SymbolicDim) and _SYMBOL.fullmatch(str(dim.value)):
                names.setdefault(str(dim.value), f"{value.name}_dim{axis}")
    if not names:
        return

    def renamed(dim: str) -> str:
        return _SYMBOL.sub(lambda symbol: names.get(symbol[0], symbol[0]), dim)

    for value in (*model.graph.inputs, *_values(model)):
        if value.shape is not None:
            value.shape = onnx_ir.Shape([d if isinstance(d, int) else renamed(str(d.value)) for d in value.shape])


def _output_names(program: ExportedProgram, taken: set[str]) -> list[str] | None:
    """The names that the structure of the module's result gives to its outputs; None if it gives none."""
    specs = [s for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    paths = list(_paths(program.call_spec.out_spec))
    if len(specs) != len(paths) or any(path[:1].isdigit() or not path for path in paths):
        return None
    found = [path for path, spec in zip(paths, specs, strict=True) if type(spec.arg).__name__ != "ConstantArgument"]
    return found if len({*found, *taken}) == len(found) + len(taken) else None


def _paths(spec: Any) -> Iterator[str]:
    """The path to every leaf of a pytree: ``a.0.b``."""
    if spec.is_leaf():
        yield ""
        return
    children = spec.children() if hasattr(spec, "children") else spec.children_specs
    keys = spec.context
    if isinstance(keys, list | tuple) and keys and isinstance(keys[0], list | tuple):  # a dataclass
        keys = keys[0]
    keys = getattr(keys, "_fields", keys)  # a named tuple
    if not isinstance(keys, list | tuple) or len(keys) != len(children):
        keys = range(len(children))
    for key, child in zip(keys, children, strict=True):
        for rest in _paths(child):
            yield f"{key}.{rest}" if rest else str(key)


def _rename(kind: str, values: Sequence[Value | GraphOutput], names: Sequence[str] | None) -> None:
    if names is None:
        return
    if len(names) != len(values) or len(set(names)) != len(names):
        raise ModelError(f"{kind}_names: {', '.join(names)}; wanted are {len(values)} different names")
    for value, name in zip(values, names, strict=True):
        value.name = name
