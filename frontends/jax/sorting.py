"""Sorting: TopK, once for each key."""

from __future__ import annotations

import math
from typing import Any

from ...ir.graph import Value
from ...ir.types import DType
from ..exact import wide
from .translate import Equation, Translator, rule

__all__: list[str] = []


def _order(t: Translator, key: Value, axis: int, count: Value, largest: bool) -> Value:
    """The positions of the first elements along ``axis``; equal ones stay in order."""
    if key.dtype is DType.BOOL:
        key = t.cast(key, DType.INT32)
    key = t.cast(key, wide(key.dtype))
    return t.op.TopK(key, count, axis=axis, largest=int(largest), sorted=1, outputs=2)[1]


def _without_nan(t: Translator, key: Value) -> Value:
    """``key`` with infinity for NaN, which runtimes do not order."""
    return t.op.Where(t.op.IsNaN(key), t.scalar(math.inf, key.dtype), key)


@rule("sort")
def _sort(t: Translator, eqn: Equation, *operands: Value) -> Any:
    axis, keys = int(eqn.params["dimension"]), int(eqn.params["num_keys"])
    size = (operands[0].shape or ())[axis]
    if size == 1 or 0 in (operands[0].shape or ()):
        return operands
    columns: list[Value] = []  # the most significant first
    for key in operands[:keys]:
        if key.dtype.is_floating:
            columns.append(t.op.IsNaN(key))  # NaN comes last
            columns.append(_without_nan(t, key))
        else:
            columns.append(key)
    order: Value | None = None
    for column in reversed(columns):  # stable sorts, the least significant first
        if order is not None:
            column = t.op.GatherElements(column, order, axis=axis)
        step = _order(t, column, axis, t.sizes.value(size), largest=False)
        order = step if order is None else t.op.GatherElements(order, step, axis=axis)
    return [t.op.GatherElements(x, order, axis=axis) for x in operands]


@rule("top_k")
def _top_k(t: Translator, eqn: Equation, x: Value) -> Any:
    return _top(t, eqn, x, int(eqn.params.get("axis", (x.rank or 1) - 1)), largest=True)


@rule("approx_top_k")
def _approx_top_k(t: Translator, eqn: Equation, x: Value) -> Any:
    return _top(t, eqn, x, int(eqn.params["reduction_dimension"]), largest=bool(eqn.params["is_max_k"]))


def _top(t: Translator, eqn: Equation, x: Value, axis: int, largest: bool) -> Any:
    axis %= x.rank or 1
    count = t.sizes.value((eqn.shape)[axis])
    key = _without_nan(t, x) if x.dtype.is_floating else x
    order = _order(t, key, axis, count, largest)
    return [t.op.GatherElements(x, order, axis=axis), t.cast(order, eqn.outs[1].dtype)]
