"""Computes a graph node by node, with JAX arrays where values are data and in Python where they are shapes.

Called under ``jax.jit``, ``jax.grad`` or ``jax.export``, it traces the graph; called with concrete arrays, it runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from ...ir.errors import PlanishError
from ...ir.evaluate import can_evaluate, evaluate
from ...ir.graph import Graph, Node, Value
from .lowering import Call, DataDependentError, Lowering, find, find_integers, find_padded
from .padded import MIXES, Padded, has_entries
from .plan import Plan
from .quantized import Quantized, quantized_result
from .symbolic import fold_symbolic
from .values import concrete, is_known, is_symbolic, traced

__all__ = ["Interpreter", "Options"]

_FOLDED = 1 << 16  # elements: what is larger is left to XLA, unless a shape depends on it
_ERRORS = (
    *(TypeError, ValueError, IndexError, KeyError, AttributeError, ArithmeticError, NotImplementedError),
    jax.errors.InconclusiveDimensionOperation,
)


@dataclass(frozen=True)
class Options:
    """How operators are computed.

    Attributes:
        precision: of matrix products and convolutions in float32: ``default`` is the platform's (on TPU, bfloat16
            passes), ``highest`` is float32 everywhere.
        quantization: ``fake`` computes quantized values as numbers, with a straight-through gradient; ``integers``
            computes quantized products with integers and stores quantized weights as integers.
        attention: ``auto`` takes a Pallas kernel on TPU where the shapes allow, ``plain`` never does.
        data_dependent: results whose sizes depend on data (`NonZero` …) are ``exact``, which they cannot be within a
            trace, or ``padded`` to the largest size that they can have, with a count: see
            `planish.backends.xla.padded`. An operator that cannot carry such a value on is refused.
    """

    precision: Literal["default", "highest"] = "default"
    quantization: Literal["fake", "integers"] = "fake"
    attention: Literal["auto", "plain"] = "auto"
    data_dependent: Literal["exact", "padded"] = "exact"


class Interpreter:
    """One evaluation of a graph.

    Args:
        plan: of the graph.
        params: the weights by name.
        options: how operators are computed.
    """

    def __init__(self, plan: Plan, params: Mapping[str, Any], options: Options):
        self.plan = plan
        self.params = params
        self.options = options
        self._constants: dict[Value, Any] = {}
        self._dividends: list[Any] = []  # sizes of which remainders were taken

    def run(self, graph: Graph, inputs: Sequence[Any], env: dict[Value, Any] | None = None) -> list[Any]:
        """The outputs of ``graph``.

        Args:
            graph: the graph of the plan, or one nested in it.
            inputs: a value for each of its inputs.
            env: the values that it captures.

        Raises:
            PlanishError: a node cannot be computed.
        """
        env = {} if env is None else env
        env.update(zip(graph.inputs, inputs, strict=True))
        last_uses = self.plan.last_uses(graph)
        for node in graph.nodes:
            results = self.compute(node, [None if o is None else self.value(o, env) for o in node.operands], env)
            env.update(zip(node.results, results, strict=False))
            for value in last_uses.get(node, ()):
                env.pop(value, None)
        outputs = [self.value(v, env) for v in graph.outputs]
        return [o.numbers() if isinstance(o, Quantized) else o for o in outputs]

    def value(self, value: Value, env: Mapping[Value, Any]) -> Any:
        """What ``value`` is now."""
        if value.const is None:
            return env[value]
        name = self.plan.weights.get(value)
        if name is not None:
            return self.params[name]
        if value not in self._constants:
            self._constants[value] = np.asarray(value.const.numpy())
        return self._constants[value]

    def compute(self, node: Node, operands: list[Any], env: dict[Value, Any]) -> Sequence[Any]:
        """The results of ``node``."""
        lowering = find(node.op)
        call = Call(node, operands, self, env)
        if lowering is None:
            raise call.error("has no lowering to JAX")
        try:
            folded = self._fold(call, lowering)
            if folded is not None:
                return folded
            with jax.named_scope(node.name or node.op):
                results = self._padded(call, lowering)
                if results is None:
                    results = self._in_integers(call, lowering)
                return self.lowered(call, lowering) if results is None else results
        except PlanishError:
            raise
        except _ERRORS as error:
            raise call.error(_one_line(error)) from error

    def _padded(self, call: Call, lowering: Lowering) -> Sequence[Any] | None:
        """The results of an operator with padded operands or results; None for any other.

        Raises:
            DataDependentError: there is no way to compute it for padded operands.
        """
        node, static = call.node, lowering.static_operands(call.node)
        is_mixing = any(isinstance(o, Padded) or (i in static and has_entries(o)) for i, o in enumerate(call.operands))
        is_source = self.options.data_dependent == "padded" and lowering.depends_on_data(node)
        if is_mixing or (is_source and not all(o is None or is_known(o) for o in call.operands)):
            function = find_padded(node.op)
            if function is not None:
                results = function(call, *(_entry_operand(call, i, i in static) for i in range(len(call.operands))))
                if results is not NotImplemented:
                    return results if isinstance(results, tuple) else (results,)
            if is_mixing:
                has_padded = any(isinstance(o, Padded) for o in call.operands)
                raise DataDependentError(node, MIXES if has_padded else "has a shape of sizes that depend on data")
        call.operands = [traced(o) if has_entries(o) else o for o in call.operands]
        return None

    def _in_integers(self, call: Call, lowering: Lowering) -> Sequence[Any] | None:
        """The results of an operator with quantized operands; None where it needs numbers, which they become."""
        node = call.node
        if self.options.quantization == "integers":
            quantized = quantized_result(call)
            if quantized is not None:
                return (quantized,)
        if not any(isinstance(o, Quantized) for o in call.operands):
            return None
        function = find_integers(node.op)
        if function is not None:
            static = lowering.static_operands(node)
            operands = [
                o if isinstance(o, Quantized) or i in static else traced(o) for i, o in enumerate(call.operands)
            ]
            results = function(call, *operands)
            if results is not NotImplemented:
                return results if isinstance(results, tuple) else (results,)
        call.operands = [o.numbers() if isinstance(o, Quantized) else o for o in call.operands]
        return None

    def lowered(self, call: Call, lowering: Lowering) -> tuple[Any, ...]:
        """The results, by the lowering of the operator."""
        static = lowering.static_operands(call.node)
        operands = [
            _shape_operand(call, i) if i in static else traced(operand) for i, operand in enumerate(call.operands)
        ]
        results = lowering.function(call, *operands)
        return results if isinstance(results, tuple) else (results,)

    def _fold(self, call: Call, lowering: Lowering) -> Sequence[Any] | None:
        """The results, if they are known now and small, or a shape depends on them."""
        node, operands = call.node, call.operands
        if not all(o is None or is_known(o) for o in operands) or node.graphs or lowering.is_random or not operands:
            return None
        if any(map(is_symbolic, operands)):
            return fold_symbolic(node, operands, self._dividends, moves_only=any(map(has_entries, operands)))
        needed = any(r in self.plan.known for r in node.results)
        if not needed and sum(o.size for o in operands if o is not None) > _FOLDED:
            return None
        results: Sequence[Any] | None = None
        if can_evaluate(node.op):
            try:
                results = evaluate(node, operands)
            except (ValueError, IndexError, TypeError, ArithmeticError):
                results = None  # what numpy does not do, the lowering does
        if results is None:
            with jax.ensure_compile_time_eval():
                results = [concrete(r) for r in self.lowered(call, lowering)]
        if any(r is None or (r.size > _FOLDED and not needed) for r in results):
            return None
        return results


def _entry_operand(call: Call, index: int, is_static: bool) -> Any:
    """Operand ``index`` for a function that computes padded values."""
    operand = call.operands[index]
    if isinstance(operand, Quantized):
        return operand.numbers()
    if isinstance(operand, Padded) and not is_static:
        return operand
    return _shape_operand(call, index) if is_static else traced(operand)


def _shape_operand(call: Call, index: int) -> Any:
    """Operand ``index`` as known numbers and dimensions."""
    operand = call.operands[index]
    if operand is None or is_symbolic(operand):
        return operand
    known = concrete(operand)
    if known is None:
        value = call.node.given(index)
        raise DataDependentError(
            call.node,
            f"operand {index} ({value.name or 'unnamed'}) decides a shape, and is not known when the model is traced",
        )
    return known


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
