"""Graphs that run on the devices that JAX finds: compiled once per set of shapes, or operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ...ir.errors import PlanishError
from ...ir.graph import Graph
from ...ir.types import DType, TensorType, Type
from ..base import Executable
from .function import JaxFunction, to_jax
from .lowering import DataDependentError

__all__ = ["XlaExecutable", "compile_graph", "for_inference"]


def for_inference(graph: Graph, **options: Any) -> JaxFunction:
    """``graph`` as a JAX function that computes quantized products with integers, unless ``options`` say otherwise."""
    return to_jax(graph, **{"quantization": "integers", **options})


def compile_graph(graph: Graph, **options: Any) -> XlaExecutable:
    """An executable for ``graph``; ``options`` are those of `planish.backends.xla.function.to_jax`.

    Raises:
        LoweringError: with every node that has no lowering.
    """
    return XlaExecutable(for_inference(graph, **options))


class XlaExecutable(Executable):
    """A JAX function behind the interface of executables: numpy arrays in and out, of the types that the model states.

    A graph whose results have shapes that depend on data (`NonZero` …) runs operator by operator; every other one is
    compiled when it first sees the shapes of its inputs, and the elements of those inputs that decide shapes. Where it
    shows only then that a shape depends on data, it runs operator by operator from then on.
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
        self.traces = 0

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        unknown = sorted(set(inputs) - {name for name, _ in self.inputs})
        if unknown:
            raise PlanishError(f"the model has no input {unknown[0]!r}")
        values = [self._value(name, inputs) for name, _ in self.inputs]
        with jax.enable_x64(True):  # type: ignore[no-untyped-call]
            try:
                results = self._run(values)
            except jax.errors.JaxRuntimeError as error:
                raise PlanishError(f"xla: {' '.join(str(error).split())[:500]}") from error
            return [_result(r, t) for r, t in zip(results, self._types, strict=True)]

    def _value(self, name: str, inputs: Mapping[str, Any]) -> Any:
        if name in inputs:
            value = inputs[name]
            return value if value is None or isinstance(value, list | tuple) else np.asarray(value)
        if name not in self._defaults:
            raise PlanishError(f"no value for input {name!r}")
        return self._defaults[name].numpy()

    def _run(self, values: list[Any]) -> Sequence[Any]:
        function = self.function
        if self._params is None:
            self._params = {name: jax.numpy.asarray(array) for name, array in function.params.items()}
        if self._data_dependent:
            return function(self._params, *values)
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
        except DataDependentError as error:
            self._data_dependent += [problem.node for problem in error.problems]
            return function(self._params, *values)
        return results

    def report(self) -> dict[str, Any]:
        """How it runs."""
        plan = self.function.plan
        return {
            "backend": "xla",
            "platform": jax.default_backend(),
            "compiled": not self._data_dependent,
            "data_dependent": [str(node) for node in self._data_dependent],
            "static_inputs": [self.inputs[i][0] for i in plan.static_inputs],
            "traces": self.traces,
        }


def _key(value: Any) -> Any:
    """What tells an input that decides shapes from others."""
    if value is None or isinstance(value, list | tuple):
        return value and tuple(map(_key, value))
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def _result(value: Any, type_: Type) -> Any:
    """A result as numpy has it, in the type that the model states."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_result(v, getattr(type_, "element", type_)) for v in value]
    array = np.asarray(value)
    if isinstance(type_, TensorType) and type_.dtype and type_.dtype is not DType.from_numpy(array.dtype):
        raise PlanishError(f"xla: a result of {array.dtype} where the model states {type_.dtype.text}")
    return array
