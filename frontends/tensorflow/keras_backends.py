"""Tracing Keras models with each of Keras's backends: TensorFlow, JAX and PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...ir.errors import ModelError
from ...ir.graph import Graph
from ...ir.origin import MODULE_KEY
from .failure import describe
from .inputs import Input
from .keras_models import KerasCall, backend_of, example_shape, layer_paths, place_of

if TYPE_CHECKING:
    from .sources import Traced

__all__ = ["from_other_backend", "trace_keras"]


def trace_keras(call: KerasCall) -> Traced:
    """A model that TensorFlow computes.

    Raises:
        ModelError: it cannot be traced.
    """
    import tensorflow as tf

    from .sources import concrete, of_concrete, spec_of

    def infer(*tensors: Any) -> Any:
        return call.run(tensors)

    function = concrete(tf.function(infer, autograph=False), [spec_of(i) for i in call.inputs], {}, call.what)
    if call.is_recorded:
        ids = {i: "int32" for i in range(len(call.inputs)) if _is_index(function.graph.inputs[i])}
        if ids:
            return trace_keras(call.with_types(ids))
    found = of_concrete(function, call.what, names=[i.name for i in call.inputs], axes=call.axes)
    if len(call.results) == len(found.outputs):
        found.outputs = [(name, tensor) for name, (_, tensor) in zip(call.results, found.outputs, strict=True)]
    found.is_batched = True
    found.module_of = layer_paths(call.model)
    found.variables.update(_variable_names(call.model))
    return found


def _is_index(tensor: Any) -> bool:
    """Whether floating-point numbers are only made integers: then integers were meant."""
    users = tensor.consumers()
    return (
        tensor.dtype.is_floating
        and bool(users)
        and all(u.type == "Cast" and u.outputs[0].dtype.is_integer for u in users)
    )


def _variable_names(model: Any) -> dict[int, str]:
    """Variables by their place in the model."""
    found = {}
    for variable in model.variables:
        own = variable if hasattr(variable, "handle") else getattr(variable, "value", None)  # Keras 2, and 3
        handle = getattr(own, "handle", None)
        if handle is not None:
            found[id(handle)] = place_of(variable, model)
    return found


def from_other_backend(
    call: KerasCall, input_names: Sequence[str] | None = None, output_names: Sequence[str] | None = None
) -> Graph:
    """The graph of a model that Keras computes with JAX or PyTorch.

    Raises:
        ModelError: it cannot be traced, or Keras computes with something else.
    """
    kind = backend_of(call.model)
    if kind not in _BACKENDS:
        raise ModelError(f"{call.what}: Keras computes with {kind}; planish reads models on tensorflow, jax or torch")
    own = [i.name for i in call.inputs]
    graph = _BACKENDS[kind](call, own if input_names is None else input_names, output_names)
    graph.name = call.what
    return graph


def _from_jax(call: KerasCall, input_names: Sequence[str], output_names: Sequence[str] | None) -> Graph:
    import jax
    import keras

    from ..jax import from_jax

    _ensure_built(call)
    variables = _by_path(call.model)

    def infer(params: dict[str, Any], *tensors: Any) -> Any:
        mapping = [(variable, params[path]) for path, variable in variables.items()]
        with keras.StatelessScope(state_mapping=mapping):
            return call.run(tensors)

    args = [jax.ShapeDtypeStruct(example_shape(i, call.what), i.dtype) for i in call.inputs]
    names = {f"tensors_{i}": call.size_names(i) for i in range(len(args))}
    graph = from_jax(
        infer, *args, params={path: v.value for path, v in variables.items()}, input_names=input_names,
        dynamic_shapes={name: sizes for name, sizes in names.items() if any(sizes)},
    )  # fmt: skip
    _strip_module(graph, call.model.name)
    return _renamed(graph, call, output_names)


def _from_torch(call: KerasCall, input_names: Sequence[str], output_names: Sequence[str] | None) -> Graph:
    import torch

    from ..torch import from_torch

    class Infer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = call.model

        def forward(self, *tensors: Any) -> Any:
            return call.run(tensors)

    _ensure_built(call)
    numbers = range(len(call.inputs))
    args = tuple(_zeros(i, call.what) for i in call.inputs)
    sizes = [{axis: name for axis, name in enumerate(call.size_names(i)) if name} for i in numbers]
    modes = [(module, module.training) for module in call.model.modules()]
    try:
        graph = from_torch(Infer().eval(), args, dynamic_shapes={"tensors": tuple(sizes)}, input_names=input_names)
    finally:
        for module, mode in modes:
            module.training = mode
    _name_weights(graph, call.model)
    return _renamed(graph, call, output_names)


_BACKENDS = {"jax": _from_jax, "torch": _from_torch}


def _zeros(given: Input, what: str) -> Any:
    import keras

    return keras.ops.zeros(example_shape(given, what), given.dtype)


def _ensure_built(call: KerasCall) -> None:
    """Let a layer that was never called make its variables.

    Raises:
        ModelError: it cannot be called so.
    """
    if call.model.built:
        return
    try:
        call.run(_zeros(i, call.what) for i in call.inputs)
    except Exception as error:
        raise ModelError(f"cannot trace {call.what}: {describe(error)}") from error


def _by_path(model: Any) -> dict[str, Any]:
    """The variables of a model by their place in it."""
    found: dict[str, Any] = {}
    for i, variable in enumerate(model.variables):
        path = place_of(variable, model)
        found[path if path not in found else f"{path}_{i}"] = variable
    return found


def _name_weights(graph: Graph, model: Any) -> None:
    """Call the weights of a graph from torch after their places in the model."""
    from ..torch.tensor import TorchTensor, storage_key

    names = {storage_key(v.value.detach()): place for place, v in _by_path(model).items()}
    for node in graph.walk():
        for value in node.operands:
            if value is not None and isinstance(value.const, TorchTensor):
                name = names.get(storage_key(value.const.data))
                if name is not None:
                    value.name = value.const.name = name


def _strip_module(graph: Graph, name: str) -> None:
    """Take the model's own name off the paths of its layers."""
    for node in graph.walk():
        path = (node.metadata or {}).get(MODULE_KEY, "")
        if node.metadata is not None and (path == name or path.startswith(f"{name}.")):
            node.metadata[MODULE_KEY] = path[len(name) + 1 :]


def _renamed(graph: Graph, call: KerasCall, output_names: Sequence[str] | None) -> Graph:
    """``graph``, whose outputs are called as Keras calls them, or as ``output_names`` say.

    Raises:
        ModelError: the names do not fit.
    """
    outputs = graph.output_info
    names = list(call.results if output_names is None else output_names)
    fits = len(names) == len(set(names)) == len(outputs) and not set(names) & {v.name for v in graph.inputs}
    if not fits and output_names is not None:
        raise ModelError(f"{call.what} has {len(outputs)} outputs: output_names are as many different names")
    if fits:
        for output, name in zip(outputs, names, strict=True):
            output.name = name
    return graph
