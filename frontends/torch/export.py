"""``nn.Module`` and ``ExportedProgram`` -> `Graph`, through torch.export and torch.onnx.

torch.onnx gives an ``onnx_ir.Model`` that refers to the module's own tensors. The model is read through its ModelProto,
in which every weight is only a reference, so that the graph gets torch's memory and no weight is ever copied.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...ir.convert.proto import from_proto
from ...ir.errors import ModelError
from ...ir.graph import Graph, GraphOutput
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
    updated = [
        str(spec.target) for spec in program.exported_program.graph_signature.output_specs if spec.kind.name.endswith("_MUTATION")
    ]
    if updated:
        warnings.warn(f"the module changes {', '.join(updated)} when it runs; the graph does not", stacklevel=3)
    return program


def _graph(program: Any, input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> Graph:
    """The graph of an ONNXProgram, which is used up."""
    import onnx_ir

    model: onnx_ir.Model = program.model
    outputs = list(model.graph.outputs)
    names = [str(value.name) for value in outputs]
    _name_sizes(model)
    weights = _detach_weights(model)
    _make_names_unique(model)
    model.graph.outputs[:] = list(dict.fromkeys(outputs))
    positions = {value: i for i, value in enumerate(model.graph.outputs)}
    graph = from_proto(onnx_ir.to_proto(model), resolve=lambda proto: weights[proto.external_data[0].value], upgrade=upgrade)
    returned = list(zip(graph.outputs, graph.output_info, strict=True))
    pairs = [returned[positions[value]] for value in outputs]
    interface = [GraphOutput(name, info.type, info.doc, info.metadata) for name, (_, info) in zip(names, pairs, strict=True)]
    graph.set_outputs([value for value, _ in pairs], interface)
    _rename(graph, input_names, output_names or _output_names(program.exported_program, {v.name for v in graph.inputs}))
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

    for graph in (model.graph, *model.functions.values()):
        for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
            yield from node.outputs


def _make_names_unique(model: onnx_ir.Model) -> None:
    """Rename results that are called like a weight: torch.onnx does that where a buffer is called ``mean``."""
    taken = set(model.graph.initializers) | {v.name for v in model.graph.inputs}
    for value in _values(model):
        if value.name in taken:
            value.name = next(n for i in range(1, len(taken) + 2) if (n := f"{value.name}_{i}") not in taken)
        taken.add(value.name or "")


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
    for value in (*model.graph.inputs, *_values(model)):
        if value.shape is not None:
            dims = [d if isinstance(d, int) else _SYMBOL.sub(lambda m: names.get(m[0], m[0]), str(d.value)) for d in value.shape]
            value.shape = onnx_ir.Shape(dims)


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


def _rename(graph: Graph, input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> None:
    for kind, values, names in (("input", graph.inputs, input_names), ("output", graph.output_info, output_names)):
        if names is None:
            continue
        if len(names) != len(values) or len(set(names)) != len(names):
            raise ModelError(f"{len(names)} {kind} names ({', '.join(names)}) for {len(values)} {kind}s, which need one each")
        for value, name in zip(values, names, strict=True):
            value.name = name
