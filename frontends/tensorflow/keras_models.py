"""Keras models: what goes into them, as they themselves or examples say, and tracing them with Keras's backend."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...ir.errors import ModelError
from ..names import parameter_names
from .inputs import Input, mapped, open_axes, opened, size_name

__all__ = ["KerasCall", "backend_of", "call_of", "example_shape", "is_keras", "layer_paths", "place_of"]

_IMAGE, _SEQUENCE = 64, 16  # sizes of made-up examples


def is_keras(model: Any) -> bool:
    """Whether ``model`` is a layer or a model of Keras; imports nothing."""
    return any(
        c.__module__.partition(".")[0] in ("keras", "tf_keras") and c.__name__ == "Layer" for c in type(model).__mro__
    )


def backend_of(model: Any) -> str:
    """What computes a Keras layer, such as ``tensorflow``, ``jax`` or ``torch``."""
    if any(c.__module__.startswith("tf_keras.") for c in type(model).__mro__):
        return "tensorflow"
    import keras

    return str(keras.backend.backend())


@dataclass
class KerasCall:
    """How a layer is called: its arguments, whose tensors are `Input`.

    Attributes:
        model: the layer.
        what: how messages call it.
        args: positional arguments.
        kwargs: keyword arguments.
        inputs: the tensors in them, in order.
        axes: names of open sizes, by axis, for each input.
        is_recorded: whether Keras recorded the shapes at an earlier call: it does not know the element types then.
        results: the names of the outputs, once it has been called.
    """

    model: Any
    what: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Input]
    axes: list[dict[int, str]]
    is_recorded: bool = False
    results: list[str] = field(default_factory=list)

    def filled(self, values: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with ``values`` for the tensors."""
        rest = iter(values)

        def fill(_: str, leaf: Any) -> Any:
            return next(rest) if isinstance(leaf, Input) else leaf

        return mapped(self.args, fill), {name: mapped(part, fill) for name, part in self.kwargs.items()}

    def with_types(self, dtypes: Mapping[int, Any]) -> KerasCall:
        """The same call with other element types, by the inputs' numbers."""
        inputs = [replace(x, dtype=dtypes.get(i, x.dtype)) for i, x in enumerate(self.inputs)]
        args, kwargs = self.filled(inputs)
        return replace(self, args=args, kwargs=kwargs, inputs=inputs, is_recorded=False)

    def run(self, values: Iterable[Any]) -> list[Any]:
        """What the layer infers from ``values``: one tensor for each name in ``results``."""
        args, kwargs = self.filled(values)
        if "training" in _parameters(self.model):
            kwargs["training"] = False
        tensors: list[Any] = []
        names: list[str] = []

        def collect(name: str, tensor: Any) -> None:
            names.append(name)
            tensors.append(tensor)

        mapped(self.model(*args, **kwargs), collect)
        self.results = _result_names(self.model, names)
        return tensors

    def size_names(self, number: int) -> list[str | None]:
        """A name for every open size of an input."""
        given, names = self.inputs[number], self.axes[number]
        own = [size_name(given.name, axis, is_batch=True) for axis in range(len(given.shape or ()))]
        return [names.get(i, own[i]) if size is None else None for i, size in enumerate(given.shape or ())]


def call_of(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any, what: str) -> KerasCall:
    """How ``model`` is called, as the examples say, or else the model itself.

    Raises:
        ModelError: neither does.
    """
    own = None if kwargs else _own_structure(model)
    if own is None and not args and not kwargs:
        args, kwargs = _recorded(model)
    call = _examples(model, args, kwargs, own, what) if args or kwargs else _own_call(model, own, what)
    call.axes = open_axes(call.inputs, dynamic_shapes, what, is_fixed=own is not None and not args)
    call.inputs = [opened(i, names) for i, names in zip(call.inputs, call.axes, strict=True)]
    call.args, call.kwargs = call.filled(call.inputs)
    return call


def layer_paths(model: Any) -> Callable[[str], str]:
    """The path of the layer that an operation is in (``encoder.block_0.dense``), by the scopes of its name.

    Keras opens a scope for every layer, with a number if there was such a scope already.
    """
    known: dict[str, str] = {}
    inside: dict[int, dict[str, Any]] = {}

    def children(layer: Any) -> dict[str, Any]:
        found = inside.get(id(layer))
        if found is None:
            layers = layer._flatten_layers(include_self=False, recursive=False)
            found = inside[id(layer)] = {part.name: part for part in layers}
        return found

    def path(scopes: str) -> str:
        layer, found = model, []
        for scope in scopes.split("/"):
            names = children(layer)
            stem, _, number = scope.rpartition("_")
            name = stem if number.isdigit() and stem in names else scope
            if name in names:
                layer = names[name]
                found.append(name)
        return ".".join(found)

    def of_operation(name: str) -> str:
        scopes = name.rpartition("/")[0]
        if scopes not in known:
            known[scopes] = path(scopes) if scopes else ""
        return known[scopes]

    return of_operation


def place_of(variable: Any, model: Any) -> str:
    """What a variable is called: its place in the model."""
    path = str(getattr(variable, "path", "") or variable.name.partition(":")[0])
    return path.removeprefix(f"{model.name}/").replace("/", ".")


def example_shape(given: Input, what: str) -> tuple[int, ...]:
    """A shape that an input may have.

    Raises:
        ModelError: its rank is not known.
    """
    if given.shape is None:
        raise ModelError(f"{what}: input {given.name!r} has no number of dimensions: give example inputs")
    inner = _IMAGE if len(given.shape) > 3 else _SEQUENCE
    return tuple((2 if i == 0 else inner) if size is None else size for i, size in enumerate(given.shape))


# how a model is called


def _own_structure(model: Any) -> Any:
    """The symbolic tensors of a functional or built sequential model; None of others."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    structure = getattr(model, "_inputs_struct", None)
    if structure is None:
        structure = getattr(model, "_nested_inputs", None)  # tf_keras
    return structure if structure is not None else inputs[0] if len(inputs) == 1 else inputs


def _recorded(model: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """What a subclassed model of Keras 2 was called with: ``tf.TensorSpec`` with an open batch; nothing of others."""
    spec = model.save_spec() if hasattr(model, "save_spec") else None
    return spec or ((), {})


def _own_call(model: Any, own: Any, what: str) -> KerasCall:
    if own is not None:
        return _call(model, what, (mapped(own, lambda name, x: _symbolic(name, x, what)),), {})
    shapes = getattr(model, "_build_shapes_dict", None)
    words = [name for name in _parameters(model) if name not in ("training", "mask")]
    if not shapes or not getattr(model, "built", False):
        raise ModelError(
            f"{what} was never called, so its inputs are not known: "
            "call it once, or give example inputs: (model, inputs)"
        )
    dtype = str(getattr(model, "input_dtype", "float32"))
    named = {name.removesuffix("_shape"): shape for name, shape in shapes.items()}
    if len(named) == 1 and words:
        named = {words[0]: next(iter(named.values()))}
    if set(named) - set(words) or set(_needed(model)) - set(named):
        raise ModelError(
            f"{what} takes {', '.join(_needed(model))}, and does not say how: give example inputs: (model, inputs)"
        )
    parts = {name: _shapes(shape, dtype, name) for name, shape in named.items()}
    first = words[0]
    args = (parts.pop(first),) if first in parts else ()
    return replace(_call(model, what, args, parts), is_recorded=True)


def _examples(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], own: Any, what: str) -> KerasCall:
    wanted: list[Input] = []
    if own is not None:
        mapped(own, lambda name, x: wanted.append(_symbolic(name, x, what)))
        if len(args) == len(wanted) > 1:  # one by one, though the model takes them together
            rest = iter(args)
            args = [mapped(own, lambda _, __: next(rest))]
    words = parameter_names(model.call, len(args))
    found: list[Input] = []

    def collect(name: str, value: Any) -> Any:
        given = _example(name, value, what)
        if isinstance(given, Input):
            found.append(given)
        return given

    positional = tuple(
        mapped(value, collect, "" if isinstance(value, Mapping) else word)
        for word, value in zip(words, args, strict=True)
    )
    named = {word: mapped(value, collect, word) for word, value in kwargs.items()}
    call = KerasCall(model, what, positional, named, found, [])
    if len(wanted) == len(found):
        merged = [_merged(x, w) for x, w in zip(found, wanted, strict=True)]
        call.args, call.kwargs = call.filled(merged)
        call.inputs = merged
    return call


def _merged(example: Input, wanted: Input) -> Input:
    """An example of an input that the model knows: under its name, and open where the model leaves a size open."""
    shape = example.shape
    if shape is not None and wanted.shape is not None and len(shape) == len(wanted.shape):
        shape = tuple(None if w is None else s for s, w in zip(shape, wanted.shape, strict=True))
    return Input(wanted.name, shape, example.dtype)


def _call(model: Any, what: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KerasCall:
    inputs: list[Input] = []
    mapped([*args, *kwargs.values()], lambda _, x: inputs.append(x))
    return KerasCall(model, what, args, kwargs, inputs, [])


def _symbolic(name: str, tensor: Any, what: str) -> Input:
    """A symbolic tensor of Keras.

    Raises:
        ModelError: it is ragged or sparse.
    """
    own = str(getattr(tensor, "name", "") or "").partition(":")[0]
    name = own if own and (not name or name[:1].isdigit()) else name or "input"
    if getattr(tensor, "ragged", False):
        raise ModelError(f"{what}: input {name!r} is ragged: pass dense tensors and a mask")
    if getattr(tensor, "sparse", False):
        raise ModelError(f"{what}: input {name!r} is sparse: pass a dense tensor")
    shape = None if tensor.shape is None else tuple(d if isinstance(d, int) else None for d in tensor.shape)
    return Input(name, shape, _dtype(tensor.dtype))


def _example(name: str, value: Any, what: str) -> Any:
    """An example argument as an input; a flag or a number stays as it is.

    Raises:
        ModelError: it is no dense tensor.
    """
    if isinstance(value, int | float | bool | str):
        return value
    for word, advice in (
        ("Ragged", "ragged: pass dense tensors and a mask"),
        ("Sparse", "sparse: pass a dense tensor"),
    ):
        if word in type(value).__name__:
            raise ModelError(f"{what}: input {name!r} is {advice}")
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        import numpy as np

        value = np.asarray(value)
    own = getattr(value, "name", None) if "Spec" in type(value).__name__ else None
    return _symbolic(own or name, value, what) if own else Input(name, _sizes(value.shape), _dtype(value.dtype))


def _sizes(shape: Any) -> tuple[int | None, ...] | None:
    if getattr(shape, "rank", 0) is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in shape)


def _shapes(shape: Any, dtype: str, name: str) -> Any:
    """Shapes that Keras has recorded, as inputs with an open batch."""
    if isinstance(shape, Mapping):
        return {key: _shapes(part, dtype, str(key)) for key, part in sorted(shape.items())}
    if all(size is None or isinstance(size, int) for size in shape):
        return Input(name, (None, *shape[1:]) if shape else (), dtype)
    return [_shapes(part, dtype, f"{name}_{i}") for i, part in enumerate(shape)]


def _dtype(dtype: Any) -> str:
    """The element type by its name, in which all frameworks agree."""
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def _result_names(model: Any, found: Sequence[str]) -> list[str]:
    """The names of what a model returns: of a dictionary its keys, else those of the layers that give the outputs.

    Args:
        model: the model.
        found: the places of the outputs in what it returns.
    """
    own = getattr(model, "output_names", None)
    is_list = all(name[:1].isdigit() or not name for name in found)
    if is_list and isinstance(own, list | tuple) and len(own) == len(found):
        return [str(name) for name in own]
    if len(found) == 1:
        return [found[0] if not is_list else "output"]
    return [f"output_{name}" if name[:1].isdigit() else name for name in found]


def _parameters(model: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(model.call).parameters)
    except (TypeError, ValueError):
        return {}


def _needed(model: Any) -> list[str]:
    parameters = _parameters(model).values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind in kinds and p.name != "training"]
