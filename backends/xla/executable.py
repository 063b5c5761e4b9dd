"""Graphs that run on the devices that JAX finds: compiled once per set of shapes, or operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ...ir.errors import PlanishError
from ...ir.graph import Graph
from ...ir.types import DType, OptionalType, SequenceType, TensorType, Type
from ..base import Executable, LoweringError
from .function import JaxFunction, to_jax
from .lowering import DataDependentError
from .padded import Padded

__all__ = ["XlaExecutable", "compile_graph", "for_inference"]


def for_inference(graph: Graph, **options: Any) -> JaxFunction:
    """``graph`` as a JAX function for programs.

    Unless ``options`` say otherwise, it computes quantized products with integers, and pads results whose sizes depend
    on data.
    """
    return to_jax(graph, **{"quantization": "integers", "data_dependent": "padded", **options})


def compile_graph(graph: Graph, **options: Any) -> XlaExecutable:
    """An executable for ``graph``; ``options`` are those of `planish.backends.xla.function.to_jax`.

    Raises:
        LoweringError: with every node that has no lowering.
    """
    return XlaExecutable(for_inference(graph, **options))


class XlaExecutable(Executable):
    """A JAX function behind the interface of executables: numpy arrays in and out, of the types that the model states.

    It is compiled when it first sees the shapes of its inputs, and the elements of those inputs that decide shapes.
    Results whose sizes depend on data (of `NonZero` …) are padded in the program, and cut here. Where that shows to be
    impossible, or the function's options want none of it, the graph runs operator by operator.
    """

    def __init__(self, function: JaxFunction):
        self.function = function
        self.inputs = function.inputs
        self.outputs = function.outputs
        self._types = [o.type for o in function.plan.graph.outputs]
        self._defaults = {v.name: v.default for v in function.plan.graph.inputs if v.default is not None}
        self._compiled: dict[Any, Any] = {}
        self._params: dict[str, Any] | None = None
        self._data_dependent = list(function.plan.data_dependent)
        self._eager = JaxFunction(function.plan, replace(function.options, data_dependent="exact"))
        self._refusal = ""  # why it runs operator by operator
        if self._data_dependent and function.options.data_dependent == "exact":
            self._refusal = "results that depend on data are to be exact"
        self.traces = 0

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        unknown = sorted(set(inputs) - {name for name, _ in self.inputs})
        if unknown:
            raise PlanishError(f"the model has no input {unknown[0]!r}")
        values = [self._value(name, type_, inputs) for name, type_ in self.inputs]
        with jax.enable_x64(True):
            try:
                results = self._run(values)
            except jax.errors.JaxRuntimeError as error:
                raise PlanishError(f"xla: {' '.join(str(error).split())[:500]}") from error
            return [_result(r, t) for r, t in zip(results, self._types, strict=True)]

    def _value(self, name: str, type_: Type, inputs: Mapping[str, Any]) -> Any:
        if name in inputs:
            return _given(name, inputs[name], type_)
        if name not in self._defaults:
            raise PlanishError(f"no value for input {name!r}")
        return self._defaults[name].numpy()

    def _run(self, values: list[Any]) -> Sequence[Any]:
        function = self.function
        if self._params is None:
            self._params = {name: jax.numpy.asarray(array) for name, array in function.params.items()}
        if self._refusal:
            return self._eager(self._params, *values)
        static = set(function.static_inputs)
        key = tuple(_key(values[i]) for i in function.static_inputs)
        compiled = self._compiled.get(key)
        if compiled is None:
            fixed = {i: values[i] for i in static}

            def call(params: Mapping[str, Any], *rest: Any) -> tuple[Any, ...]:
                self.traces += 1
                given = iter(rest)
                return function(params, *(fixed[i] if i in fixed else next(given) for i in range(len(values))))

            compiled = self._compiled[key] = jax.jit(call)
        try:
            results: Sequence[Any] = compiled(self._params, *(v for i, v in enumerate(values) if i not in static))
        except LoweringError as error:
            if not (self._data_dependent or isinstance(error, DataDependentError)):
                raise
            results = self._eager(self._params, *values)  # where this fails, too, the inputs are at fault
            self._refusal = "; ".join(map(str, error.problems))
            nodes = [p.node for p in error.problems if isinstance(error, DataDependentError)]
            self._data_dependent += [node for node in nodes if node not in self._data_dependent]
        return results

    def report(self) -> dict[str, Any]:
        """How it runs. Whether it can be compiled with results that depend on data shows in the first run."""
        plan = self.function.plan
        return {
            "backend": "xla",
            "platform": jax.default_backend(),
            "compiled": not self._refusal,
            **({"not_compiled_because": self._refusal} if self._refusal else {}),
            "data_dependent": [str(node) for node in self._data_dependent],
            "static_inputs": [self.inputs[i][0] for i in plan.static_inputs],
            "traces": self.traces,
        }


def _given(name: str, value: Any, type_: Type) -> Any:
    """What is given for an input, as arrays.

    Raises:
        PlanishError: it is not what the model states.
    """
    if isinstance(type_, OptionalType):
        return None if value is None else _given(name, value, type_.element)
    if isinstance(type_, SequenceType):
        if not isinstance(value, list | tuple):
            raise PlanishError(f"input {name!r} is a sequence: give a list")
        return [_given(name, v, type_.element) for v in value]
    if value is None:
        raise PlanishError(f"no value for input {name!r}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise PlanishError(f"input {name!r} is no array: {' '.join(str(error).split())[:200]}") from error
    if isinstance(type_, TensorType) and type_.dtype and type_.dtype.numpy != array.dtype:
        raise PlanishError(f"input {name!r} is {array.dtype}, the model states {type_.dtype.text}")
    return array


def _key(value: Any) -> Any:
    """What tells an input that decides shapes from others."""
    if value is None or isinstance(value, list | tuple):
        return value and tuple(map(_key, value))
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def _result(value: Any, type_: Type) -> Any:
    """A result as numpy has it, in the type that the model states; it is the caller's own."""
    if value is None:
        return None
    if isinstance(value, Padded):
        value = value.cut()
    if isinstance(value, list):
        return [_result(v, getattr(type_, "element", type_)) for v in value]
    array = np.array(value)
    if isinstance(type_, TensorType) and type_.dtype and type_.dtype is not DType.from_numpy(array.dtype):
        raise PlanishError(f"xla: a result of {array.dtype} where the model states {type_.dtype.text}")
    return array
