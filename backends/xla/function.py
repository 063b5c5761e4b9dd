"""A graph as an ordinary JAX function ``f(params, *inputs)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ...ir.clone import clone_graph
from ...ir.edit import replace
from ...ir.errors import PlanishError
from ...ir.graph import Graph, Value
from ...ir.tensor import ArrayTensor, Tensor
from ...ir.types import TensorType, Type
from ..legalize import CanonicalTarget, legalize
from ..quantization import encode
from .interpreter import Interpreter, Options
from .lowering import find
from .padded import Padded
from .plan import Plan
from .values import concrete, is_known, narrowed, traced

__all__ = ["JaxFunction", "lower", "make_options", "to_jax"]


def lower(graph: Graph, quantization: str = "fake") -> Graph:
    """A copy of ``graph`` in operators that have a lowering to JAX.

    Args:
        graph: the graph.
        quantization: ``integers`` spells FakeQuantize as integers in int8, and makes those of weights now.

    Raises:
        LoweringError: with every node for which there is no way.
    """
    lowered = clone_graph(graph)
    if quantization == "integers":
        encode(lowered, "int8", dynamic_blocks=False)
    legalize(lowered, CanonicalTarget("xla", lambda node: find(node.op) is not None))
    return lowered


def to_jax(graph: Graph, **options: Any) -> JaxFunction:
    """``graph`` as a JAX function.

    Args:
        graph: the graph, which stays as it is.
        options: fields of `planish.backends.xla.interpreter.Options`.

    Raises:
        LoweringError: with every node that has no lowering.
        PlanishError: there is no such option.
    """
    checked = make_options(**options)
    return JaxFunction(Plan(lower(graph, checked.quantization)), checked)


def make_options(**options: Any) -> Options:
    """The options, checked.

    Raises:
        PlanishError: there is no such option, or it has no such value.
    """
    from dataclasses import fields
    from typing import get_args, get_type_hints

    hints = get_type_hints(Options)
    for name, value in options.items():
        if name not in hints:
            raise PlanishError(f"xla has no option {name!r}: there are {', '.join(f.name for f in fields(Options))}")
        if value not in get_args(hints[name]):
            raise PlanishError(f"xla: {name} is {value!r}; it can be {', '.join(map(str, get_args(hints[name])))}")
    return Options(**options)


class JaxFunction:
    """A graph as a function of its weights and inputs, to be given to ``jax.jit``, ``jax.grad``, ``jax.vmap`` ….

    Call it as ``f(params, *inputs)``; it returns a tuple of the outputs. Inputs are arrays, a sequence is a list. With
    ``data_dependent="padded"``, an output whose size depends on data is a `planish.backends.xla.padded.Padded`.
    An input that decides a shape (`static_inputs`) must be a concrete array, not a tracer.

    Attributes:
        plan: the lowered graph and what is known of it.
        options: how operators are computed.
        inputs: name and type of every input.
        outputs: the names of the outputs.
        static_inputs: the positions of the inputs that decide shapes.
        padded: the outputs that the latest call, which may have been a trace, gave as
            `planish.backends.xla.padded.Padded`, and the axis of each.
    """

    def __init__(self, plan: Plan, options: Options):
        self.plan = plan
        self.options = options
        self.inputs: list[tuple[str, Type]] = [(v.name, v.type) for v in plan.graph.inputs]
        self.outputs = [o.name for o in plan.graph.output_info]
        self.static_inputs = plan.static_inputs
        self.padded: dict[str, int] = {}

    @property
    def params(self) -> dict[str, np.ndarray[Any, Any]]:
        """The weights by name, read-only and without a copy where they lie in memory or in a file."""
        return {name: narrowed(t.numpy()) for name, t in self.plan.tensors.items()}

    @property
    def param_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the weights, without their bytes."""
        types = {name: jax.dtypes.canonicalize_dtype(t.dtype.numpy) for name, t in self.plan.tensors.items()}
        return {name: jax.ShapeDtypeStruct(t.shape, types[name]) for name, t in self.plan.tensors.items()}

    def __call__(self, params: Mapping[str, Any], *inputs: Any) -> tuple[Any, ...]:
        """The outputs.

        Raises:
            PlanishError: the inputs do not fit, or a node cannot be computed for them.
        """
        missing = [name for name in self.plan.tensors if name not in params]
        if missing:
            raise PlanishError(f"params lack {missing[0]!r}: give all of the function's own, {len(self.plan.tensors)}")
        values = [self._input(i, value) for i, value in enumerate(self._complete(inputs))]
        results = Interpreter(self.plan, params, self.options).run(self.plan.graph, values)
        self.padded = {n: r.axis for n, r in zip(self.outputs, results, strict=True) if isinstance(r, Padded)}
        return tuple(r if isinstance(r, Padded) else traced(r) for r in results)

    def _complete(self, inputs: Sequence[Any]) -> list[Any]:
        """The inputs, with defaults for the last ones."""
        formal = self.plan.graph.inputs
        if len(inputs) > len(formal):
            raise PlanishError(f"{len(inputs)} inputs given, the model has {len(formal)}")
        rest = formal[len(inputs) :]
        missing = [v.name for v in rest if v.default is None]
        if missing:
            raise PlanishError(f"no value for input {missing[0]!r}")
        return [*inputs, *(v.default.numpy() for v in rest if v.default is not None)]

    def _input(self, index: int, value: Any) -> Any:
        """Input ``index`` as the interpreter takes it."""
        name, type_ = self.inputs[index]
        if isinstance(type_, TensorType):
            _check_shape(name, type_, np.shape(value))
        if index in self.static_inputs and value is not None:
            known = _known(value)
            if known is None:
                raise PlanishError(
                    f"input {name!r} decides a shape: give a numpy array that is known when the "
                    "function is traced, not a traced one"
                )
            return known
        return traced(value)

    def constants(self, graph: Graph) -> dict[str, list[Value]]:
        """The constants of ``graph``, the one that this function was made of, that each of `params` stands for.

        Raises:
            PlanishError: there are none for a weight.
        """
        values: dict[int, list[Value]] = {}
        for value in graph.constants():
            values.setdefault(id(value.const), []).append(value)
        for name, tensor in self.plan.tensors.items():
            if id(tensor) not in values:
                raise PlanishError(f"the graph has no weight {name!r}: this function was made of another one")
        return {name: values[id(tensor)] for name, tensor in self.plan.tensors.items()}

    def write_back(self, params: Mapping[str, Any], graph: Graph) -> None:
        """Store trained ``params`` as the constants of ``graph``, the one that this function was made of.

        Raises:
            PlanishError: a weight is missing, has another shape, or is not one of ``graph``.
        """
        values = self.constants(graph)
        new: list[tuple[Value, Tensor]] = []
        for name, old in self.plan.tensors.items():
            if name not in params:
                raise PlanishError(f"params lack {name!r}")
            array = np.asarray(params[name])
            if array.shape != old.shape:
                raise PlanishError(f"weight {name!r} has shape {list(array.shape)}, the graph's has {list(old.shape)}")
            trained: Tensor = ArrayTensor(array.astype(old.dtype.numpy), old.dtype, old.name)
            new += [(value, trained) for value in values[name]]
        for value, trained in new:
            replace(value, Value(trained.type, value.name, const=trained))


def _check_shape(name: str, type_: TensorType, shape: Sequence[Any]) -> None:
    """Raise a PlanishError if an input does not have the rank and the fixed sizes that its type states."""
    stated = type_.shape
    if stated is None:
        return
    if len(stated) != len(shape):
        raise PlanishError(f"input {name!r} has {len(stated)} dimensions, not {len(shape)}")
    for i, (size, given) in enumerate(zip(stated, shape, strict=True)):
        if isinstance(size, int) and isinstance(given, int) and size != given:
            raise PlanishError(
                f"input {name!r} has {given} elements in dimension {i}, and the model is made for {size}"
            )


def _known(value: Any) -> Any:
    """``value`` as a known array, or a list of them; None if something of it is traced."""
    if isinstance(value, list | tuple):
        elements = [_known(v) for v in value]
        return None if any(e is None for e in elements) else elements
    return value if is_known(value) else concrete(value)
