"""Which values half precision cannot hold: constants by their elements, activations by what samples show.

Without samples, what is computed from a constant that is too large counts as too large, up to an operator whose results
are small whatever it is given (`precision.BOUNDED`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ...ir import DType, Graph, GraphOutput, Node, Tensor, Value, constant, edit, op
from ...ir.clone import clone_graph
from ..base import Context
from .precision import BOUNDED

__all__ = ["Representable", "measured_magnitudes", "propagate"]

_MARGIN = 4  # other inputs than the samples may give activations that are larger by as much
_LOST = 0.1  # the share of a constant's elements that may become 0
_BLOCK = 1 << 20  # elements of a constant that are looked at together


class _Extent(NamedTuple):
    """The largest finite magnitude in a constant, and the share of what is not 0 that half precision makes 0."""

    largest: float
    lost: float


class Representable:
    """What of ``graph`` the half-precision type ``dtype`` can hold.

    Args:
        graph: a root graph.
        dtype: the type.
        magnitudes: the largest finite magnitude in values, as far as it is known.
    """

    def __init__(self, graph: Graph, dtype: DType, magnitudes: dict[Value, float]):
        import ml_dtypes

        info: Any = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
        self._limit = float(info.max)
        self._zero = float(info.smallest_subnormal) / 2
        self._extents: dict[Tensor, _Extent] = {}
        self._magnitudes = magnitudes
        self._large = propagate(graph, self._is_large)

    def overflows(self, value: Value) -> bool:
        """Whether elements of a float32 ``value`` would become infinite, or activations come near it."""
        return value in self._large if value.const is None else self._extent(value.const).largest > self._limit

    def vanishes(self, value: Value) -> bool:
        """Whether many elements of a constant would become 0."""
        return value.const is not None and self._extent(value.const).lost > _LOST

    def _is_large(self, value: Value) -> bool | None:
        if value.dtype is not DType.FLOAT:
            return False
        if value.const is not None:
            return self.overflows(value)
        if value in self._magnitudes:
            return self._magnitudes[value] > self._limit / _MARGIN
        return False if value.producer is not None and value.producer.op in BOUNDED else None

    def _extent(self, tensor: Tensor) -> _Extent:
        if tensor not in self._extents:
            self._extents[tensor] = self._measure(tensor)
        return self._extents[tensor]

    def _measure(self, tensor: Tensor) -> _Extent:
        largest, lost, filled = 0.0, 0, 0
        flags = ["external_loop", "buffered", "zerosize_ok"]
        for block in np.nditer(tensor.numpy(), flags, order="K", buffersize=_BLOCK):  # type: ignore[call-overload]
            magnitudes = np.abs(block)
            largest = max(largest, float(np.max(magnitudes, initial=0, where=np.isfinite(magnitudes))))
            lost += int(np.count_nonzero((magnitudes > 0) & (magnitudes <= self._zero)))
            filled += int(np.count_nonzero(magnitudes))
        return _Extent(largest, lost / max(filled, 1))


def measured_magnitudes(graph: Graph, ctx: Context) -> dict[Value, float]:
    """The largest finite magnitude in each float32 value of ``graph`` (not of graphs nested in it), over all samples.

    The samples of ``ctx`` run through a copy that returns nothing but these numbers, so that memory stays what the
    model needs. Empty without samples, or a runner.
    """
    if ctx.samples is None or not ctx.can_run:
        return {}
    mapping: dict[Value, Value] = {}
    probe = clone_graph(graph, mapping)
    results = (r for node in graph.nodes for r in node.results)
    watched = {f"planish.{i}": v for i, v in enumerate((*graph.inputs, *results)) if v.dtype is DType.FLOAT}
    outputs = [_magnitude(mapping[v]) for v in watched.values()]
    edit.insert_floating(outputs, probe.ret)
    probe.set_outputs(outputs, [GraphOutput(name) for name in watched])
    run = ctx.runner.compile(probe)
    largest: dict[Value, float] = {}
    for sample in ctx.samples():
        for name, magnitude in run(sample).items():
            if np.isfinite(magnitude):  # else it is empty, or holds no numbers
                value = watched[name]
                largest[value] = max(float(magnitude), largest.get(value, 0.0))
    return largest


def _magnitude(value: Value) -> Value:
    finite = op.Where(op.IsInf(value), constant(0.0, value.dtype), value)
    return op.ReduceMax(op.Abs(finite), keepdims=0)


def propagate(graph: Graph, known: Callable[[Value], bool | None]) -> set[Value]:
    """The values of ``graph`` and of graphs nested in it that have a property which results inherit from operands.

    Args:
        graph: a root graph.
        known: whether a value has the property; None if that is to follow from the operands of its node. What a body
            returns is taken to come back as any of its inputs.

    Returns:
        the results and inputs that have it; not constants.
    """
    found: set[Value] = set()

    def has(value: Value | None) -> bool:
        return value is not None and (bool(known(value)) if value.const is not None else value in found)

    def add(values: Iterable[Value], inherited: bool) -> None:
        found.update(v for v in values if (inherited if (fact := known(v)) is None else fact))

    def visit(inner: Graph, inherited: bool) -> bool:
        add(inner.inputs, inherited)
        for node in inner.nodes:
            add(node.results, reaches(node))
        returned = any(map(has, inner.outputs))
        return visit(inner, True) if returned and not inherited and inner.parent is not None else returned

    def reaches(node: Node) -> bool:
        reached = any(map(has, node.operands))
        returned = [visit(nested, reached) for nested in node.graphs]
        return reached or any(returned)

    visit(graph, False)
    return found
