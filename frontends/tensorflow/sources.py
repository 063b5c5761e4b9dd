"""Whatever stands for a TensorFlow model, as one traced graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from ...ir.errors import ModelError
from ..names import parameter_names
from .failure import describe
from .inputs import Input, mapped, open_axes, opened
from .origin import module_of

__all__ = ["Traced", "concrete", "identifier", "name_of", "of_concrete", "output_names", "spec_of", "traced"]

_SERVING = ("serving_default", "serve")
_EXAMPLES = "give example inputs: (model, inputs)"


@dataclass
class Traced:
    """A traced model.

    Attributes:
        what: how messages call it.
        name: how the graph is called.
        graph: the TensorFlow graph.
        inputs: names and tensors.
        outputs: names and tensors.
        axes: the names of open sizes, by axis, for each input.
        captures: what is outside of the graph, and the tensor that stands for it there.
        variables: the names of variables, by the identity of their handles.
        is_batched: whether all inputs have one batch as their first dimension.
        module_of: the module that an operation is in, by its name.
    """

    what: str
    name: str
    graph: Any
    inputs: list[tuple[str, Any]]
    outputs: list[tuple[str, Any]]
    axes: list[dict[int, str]]
    captures: list[tuple[Any, Any]] = field(default_factory=list)
    variables: dict[int, str] = field(default_factory=dict)
    is_batched: bool = False
    module_of: Callable[[str], str] = module_of


def traced(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], signature: str | None, dynamic_shapes: Any
) -> Traced:
    """A function or a module as a graph; what is in it is said by `planish.frontends.tensorflow.from_tensorflow`.

    Raises:
        ModelError: it cannot be traced, or it is nothing of this kind.
    """
    what = name_of(model)
    if isinstance(model, tf.types.experimental.ConcreteFunction):
        return of_concrete(model, what, dynamic_shapes=dynamic_shapes)
    found = _function(model, signature, bool(args or kwargs), what)
    if isinstance(found, tf.types.experimental.ConcreteFunction):
        return of_concrete(found, what, dynamic_shapes=dynamic_shapes)
    if not args and not kwargs:
        return of_concrete(_only_trace(found, what), what, dynamic_shapes=dynamic_shapes)
    positional = dict(zip(parameter_names(found, len(args)), args, strict=True))
    inputs: list[Input] = []

    def collect(name: str, value: Any) -> Any:
        given = _example(name, value, what)
        if isinstance(given, Input):
            inputs.append(given)
        return given

    kwargs = {name: kwargs[name] for name in sorted(kwargs, key=_position(found))}
    structure = {name: mapped(value, collect, name) for name, value in [*positional.items(), *kwargs.items()]}
    axes = open_axes(inputs, dynamic_shapes, what)
    numbers = iter(opened(i, names) for i, names in zip(inputs, axes, strict=True))
    specs = {
        n: mapped(v, lambda _, x: spec_of(next(numbers)) if isinstance(x, Input) else x) for n, v in structure.items()
    }
    given = [specs[name] for name in positional], {name: specs[name] for name in kwargs}
    function = concrete(found, *given, what)
    return of_concrete(function, what, names=[i.name for i in inputs], axes=axes)


def _position(function: Any) -> Callable[[str], int]:
    """The place of a parameter by its name: the order in which TensorFlow flattens arguments."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return lambda name: names.index(name) if name in names else len(names)


def spec_of(given: Input) -> Any:
    """What TensorFlow traces an input with."""
    return tf.TensorSpec(given.shape, given.dtype)


def concrete(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], what: str) -> Any:
    """A function, traced.

    Raises:
        ModelError: it cannot be traced.
    """
    function = function if hasattr(function, "get_concrete_function") else tf.function(function)
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # or it tells at length of functions whose source it cannot read
    try:
        return function.get_concrete_function(*args, **kwargs)
    except Exception as error:
        raise ModelError(f"cannot trace {what}: {describe(error)}") from error
    finally:
        logger.setLevel(level)


def of_concrete(
    function: Any,
    what: str,
    *,
    names: Sequence[str] = (),
    axes: list[dict[int, str]] | None = None,
    dynamic_shapes: Any = None,
) -> Traced:
    """A concrete function.

    Args:
        function: it.
        what: how messages call it.
        names: of its inputs; none: those that it knows.
        axes: names of open sizes, for each input; None: those of ``dynamic_shapes``.
        dynamic_shapes: names of open sizes.

    Raises:
        ModelError: ``dynamic_shapes`` does not fit.
    """
    _check_dense(function, what)
    graph, captured = function.graph, list(function.captured_inputs)
    count = len(graph.inputs) - len(captured)
    tensors, inside = graph.inputs[:count], graph.inputs[count:]
    names = names or _input_names(function, tensors)
    if axes is None:
        inputs = [Input(n, _shape(t), t.dtype) for n, t in zip(names, tensors, strict=True)]
        axes = open_axes(inputs, dynamic_shapes, what, is_fixed=True)
    variables = {id(v.handle): v.name.partition(":")[0] for v in graph.variables}
    inputs_ = list(zip(names, tensors, strict=True))
    return Traced(
        what, identifier(what), graph, inputs_, output_names(function), axes,
        list(zip(captured, inside, strict=True)), variables,
    )  # fmt: skip


def name_of(model: Any) -> str:
    """How messages call a model."""
    for found in (getattr(model, "name", None), getattr(model, "__name__", None)):
        if isinstance(found, str) and found and found != "<lambda>":
            return found
    inner = getattr(model, "python_function", None)
    return (
        name_of(inner) if inner is not None else "the function" if inspect.isfunction(model) else type(model).__name__
    )


def identifier(text: str) -> str:
    """``text`` as the name of a graph."""
    return "".join(c if c.isalnum() or c in "_." else "_" for c in text) or "model"


def output_names(function: Any) -> list[tuple[str, Any]]:
    """The outputs of a concrete function, with the names of the structure that it returns."""
    named: list[str] = []
    mapped(function.structured_outputs, lambda name, _: named.append(name))
    tensors = list(function.outputs)
    if len(named) != len(tensors):
        named = [""] * len(tensors)
    named = [f"output_{name}" if name[:1].isdigit() else name for name in named]
    only = len(tensors) == 1
    return [
        (n or ("output" if only else f"output_{i}"), t) for i, (n, t) in enumerate(zip(named, tensors, strict=True))
    ]


def _input_names(function: Any, tensors: Sequence[Any]) -> list[str]:
    """What a concrete function calls its inputs: its parameters, and what is inside of these after its place."""
    positional, keywords = function.structured_input_signature or ((), {})
    names = [name for name in function.function_type.parameters if name not in keywords]
    found: list[str] = []
    nested = False
    for name, spec in [*zip(names, positional, strict=False), *keywords.items()]:
        if isinstance(spec, tf.TypeSpec):
            found.append(getattr(spec, "name", None) or name)
            continue
        nested = nested or isinstance(spec, Mapping | list | tuple)
        mapped(spec, lambda path, leaf: found.append(path) if isinstance(leaf, tf.TypeSpec) else None, name)
    return found if nested and len(found) == len(tensors) else [t.op.name for t in tensors]


def _shape(tensor: Any) -> tuple[int | None, ...] | None:
    return None if tensor.shape.rank is None else tuple(tensor.shape.as_list())


def _example(name: str, value: Any, what: str) -> Any:
    """An example argument as an input; a flag or a number stays as it is, and becomes part of the graph.

    Raises:
        ModelError: it is no dense tensor.
    """
    if advice := _not_dense(value):
        raise ModelError(f"{what}: input {name!r} is {advice}")
    if isinstance(value, tf.TensorSpec):
        return Input(value.name or name, _shape(value), value.dtype)
    if isinstance(value, tf.TypeSpec):
        raise ModelError(f"{what}: input {name!r} is a {type(value).__name__}, and no tensor")
    if isinstance(value, int | float | bool | str | bytes | tf.DType):
        return value
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError):
        raise ModelError(f"{what}: input {name!r} is a {type(value).__name__}, and no tensor") from None
    return Input(name, _shape(tensor), tensor.dtype)


def _not_dense(value: Any) -> str:
    """What to do about a tensor that is ragged or sparse; "" of others."""
    if isinstance(value, tf.RaggedTensor | tf.RaggedTensorSpec):
        return "ragged: pass dense tensors and a mask"
    if isinstance(value, tf.SparseTensor | tf.SparseTensorSpec | tf.IndexedSlices | tf.IndexedSlicesSpec):
        return "sparse: pass a dense tensor"
    return ""


def _check_dense(function: Any, what: str) -> None:
    """Refuse a concrete function that takes or returns ragged or sparse tensors.

    Raises:
        ModelError: it does.
    """
    for kind, structure in (("takes", function.structured_input_signature), ("returns", function.structured_outputs)):
        for part in tf.nest.flatten(structure):
            if advice := _not_dense(part):
                raise ModelError(f"{what} {kind} a tensor that is {advice}")


def _only_trace(function: Any, what: str) -> Any:
    """The one way in which a function has been or can be traced without examples.

    Raises:
        ModelError: there is none, or there are several.
    """
    if getattr(function, "input_signature", None) is not None:
        return concrete(function, (), {}, what)
    if hasattr(function, "concrete_functions"):  # of a saved model
        traces = list(function.concrete_functions)
    else:
        traces = list(getattr(function, "_list_all_concrete_functions", list)())
    if len(traces) == 1:
        return traces[0]
    if traces:
        listed = "; ".join(", ".join(str(_brief(t)) for t in trace.structured_input_signature[0]) for trace in traces)
        raise ModelError(f"{what} was traced {len(traces)} times ({listed}): {_EXAMPLES}")
    if _needs_arguments(function):
        raise ModelError(f"{what} does not say what its inputs are: {_EXAMPLES}, or an input_signature")
    return concrete(function, (), {}, what)


def _brief(spec: Any) -> str:
    if not isinstance(spec, tf.TensorSpec):
        return repr(spec)
    shape = "…" if spec.shape.rank is None else ",".join("?" if d is None else str(d) for d in spec.shape.as_list())
    return f"{spec.dtype.name}[{shape}]"


def _needs_arguments(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _function(model: Any, name: str | None, has_examples: bool, what: str) -> Any:
    """The function of a model that is meant: a signature, a method, or the model itself.

    Raises:
        ModelError: there is none, or it must be said which.
    """
    if hasattr(model, "get_concrete_function"):
        return model
    signatures = getattr(model, "signatures", None)
    saved = {n: f for n, f in signatures.items() if not n.startswith("__")} if isinstance(signatures, Mapping) else {}
    if name is not None:
        return choose({**_methods(model), **saved}, name, what)
    if saved and not has_examples:
        return choose(saved, None, what)
    if callable(model):
        own = type(model).__call__ if isinstance(model, tf.Module) else None
        return model.__call__ if hasattr(own, "get_concrete_function") else model
    methods = _methods(model)
    if not methods:
        raise ModelError(f"from_tensorflow takes a model or a function; {what} is a {type(model).__name__} without any")
    return choose(methods, None, what)


def _methods(model: Any) -> dict[str, Any]:
    """The ``tf.function`` methods of an object, by name."""
    names = [n for n in dir(type(model)) + list(vars(model)) if not n.startswith("__")]
    found = {n: getattr(model, n, None) for n in names if not isinstance(getattr(type(model), n, None), property)}
    return {n: f for n, f in found.items() if hasattr(f, "get_concrete_function") or hasattr(f, "concrete_functions")}


def choose(functions: Mapping[str, Any], name: str | None, what: str) -> Any:
    """The signature or method that is meant: the named one, the only one, or the one that servers take by default.

    Raises:
        ModelError: there is none, or it must be said which.
    """
    listed = ", ".join(functions) or "none"
    if name is not None:
        if name not in functions:
            raise ModelError(f"{what} has no signature {name!r}; it has {listed}")
        return functions[name]
    if not functions:
        raise ModelError(f"{what} has no signatures: save it with signatures=…")
    found = next((n for n in _SERVING if n in functions), listed)
    if found not in functions:
        raise ModelError(f"{what} has the signatures {listed}: say which (signature=…)")
    return functions[found]
