"""Reductions along axes, running sums and products, and the places of extremes.

TensorRT reduces along axes that are constants. Axes that are computed, but whose number is known, are tried one by one:
every axis is reduced, and the result taken where it is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from ....ir import Dim, DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, INDICES, NUMBERS, Row
from ..sizes import size_of, times
from ..versions import Version
from .elementwise import cast, in_int32

__all__ = ["FORMS", "ROWS", "along"]

_AXES_ARE_OPERANDS = 18  # the operator set from which on they are
_EXACT = ("ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")
_OF_FLOATS = ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp")
_EMPTY = {"ReduceProd": 1.0, "ReduceLogSum": -np.inf, "ReduceLogSumExp": -np.inf, "ReduceMean": np.nan}

_Step = Callable[[Value], Value]
_STEPS: dict[str, tuple[_Step | None, str, _Step | None]] = {  # what is done before, along each axis, and in the end
    "ReduceL1": (op.Abs, "ReduceSum", None),
    "ReduceL2": (lambda x: op.Mul(x, x), "ReduceSum", op.Sqrt),
    "ReduceLogSum": (None, "ReduceSum", op.Log),
    "ReduceLogSumExp": (None, "ReduceLogSumExp", None),
    "ReduceMax": (None, "ReduceMax", None),
    "ReduceMean": (None, "ReduceMean", None),
    "ReduceMin": (None, "ReduceMin", None),
    "ReduceProd": (None, "ReduceProd", None),
    "ReduceSum": (None, "ReduceSum", None),
    "ReduceSumSquare": (lambda x: op.Mul(x, x), "ReduceSum", None),
}


def _reduce(node: Node, version: Version) -> list[Value] | None:
    x, axes = node.given(0), node.operand(1)
    if x.rank is None:
        return None
    if x.dtype not in FLOATS and (x.dtype not in INDICES or node.op in _OF_FLOATS):
        return _in_other_type(node)
    count = 0 if axes is None else axes.shape[0] if axes.shape else None
    if count == 0:
        axes = None if node.attrs.get("noop_with_empty_axes") else constant(np.arange(x.rank))
    if axes is None or x.rank == 0:
        return [_applied(x, node.op)]
    if axes.const is not None and version.opset < _AXES_ARE_OPERANDS:
        return _in_older_operators(node.op, x, [int(a) % x.rank for a in axes.const.numpy()], node.attrs)
    if axes.const is not None:
        return [make_node(node.op, (x, axes), {"keepdims": node.attrs.get("keepdims")}).result]
    keeps = bool(node.attrs.get("keepdims", 1))
    return [_computed_axes(node, x, axes, count)] if isinstance(count, int) or keeps else None


def _in_older_operators(name: str, x: Value, axes: list[int], attrs: Mapping[str, Any]) -> list[Value] | None:
    """A reduction where only that of ReduceSum takes its axes as an operand: by sums, and by the first of a TopK."""
    before, step, after = _STEPS[name]
    keeps = constant(axes, DType.INT64), {"keepdims": attrs.get("keepdims")}
    if name in ("ReduceMax", "ReduceMin"):
        for axis in axes:
            x = make_node(
                "TopK", (x, constant([1], DType.INT64)), {"axis": axis, "largest": name == "ReduceMax"}, 2
            ).result
        return [x if attrs.get("keepdims", 1) else op.Squeeze(x, keeps[0])]
    if step == "ReduceSum":
        total = make_node(step, (before(x) if before is not None else x, keeps[0]), keeps[1]).result
        return [after(total) if after is not None else total]
    if name == "ReduceMean":
        total = make_node("ReduceSum", (x, keeps[0]), keeps[1]).result
        sizes = [size_of(x, axis) for axis in axes]
        count = reduce(times, sizes)
        return [op.Div(total, constant(count, x.dtype) if isinstance(count, int) else cast(count, x.dtype))]
    return None


def _applied(x: Value, name: str) -> Value:
    """What remains of a reduction along no axis."""
    before, _, after = _STEPS[name]
    x = before(x) if before is not None else op.Identity(x)
    return after(x) if after is not None else x


def _in_other_type(node: Node) -> list[Value] | None:
    """Booleans and 8-bit integers as int32, integers of roots and logarithms as float32."""
    x, dtype = node.given(0), node.given(0).dtype
    if dtype is DType.INT8 and node.op not in _OF_FLOATS:
        return in_int32(node)
    other = DType.FLOAT if node.op in _OF_FLOATS else DType.INT32
    if dtype not in (*INDICES, DType.BOOL, DType.INT8) or dtype is other:
        return None
    result = make_node(node.op, (cast(x, other), *node.operands[1:]), dict(node.attrs)).result
    return [op.Greater(result, 0) if dtype is DType.BOOL else cast(result, dtype)]


def _computed_axes(node: Node, x: Value, axes: Value, count: Dim | None) -> Value:
    assert x.rank is not None and x.shape is not None
    rank = x.rank
    places = op.Mod(cast(axes, DType.INT64), constant(rank, DType.INT64))
    grid = op.Equal(constant(np.arange(rank)[:, None]), op.Unsqueeze(places, constant([0], DType.INT64)))
    chosen = op.Greater(op.ReduceSum(cast(grid, DType.INT64), constant([1], DType.INT64), keepdims=0), 0)
    if not isinstance(count, int) and not node.attrs.get("noop_with_empty_axes"):
        chosen = op.Or(chosen, op.Equal(op.Shape(axes), 0))
    sizes = op.Where(chosen, constant(1, DType.INT64), op.Shape(x))
    if 0 in x.shape:
        whole = op.ConstantOfShape(sizes, value=np.array([_of_none(node.op, x.dtype)]).astype(x.dtype.numpy))
    else:
        whole = _reduced_where(node.op, x, chosen)
        starts = constant([0] * rank, DType.INT64)
        whole = op.Slice(whole, starts, sizes, constant(np.arange(rank)))
    if not isinstance(count, int) or node.attrs.get("keepdims", 1):
        return whole
    return op.Reshape(whole, _kept(chosen, op.Shape(x), rank, count))


def _of_none(name: str, dtype: DType) -> float:
    """What a reduction of no elements gives."""
    if name not in ("ReduceMax", "ReduceMin"):
        return _EMPTY.get(name, 0.0)
    if dtype.is_floating:
        return -np.inf if name == "ReduceMax" else np.inf
    limits = np.iinfo(dtype.numpy)
    return limits.min if name == "ReduceMax" else limits.max


def _reduced_where(name: str, x: Value, chosen: Value) -> Value:
    """``x`` with its reduction along all ``chosen`` axes in all places of these."""
    before, step, after = _STEPS[name]
    x = before(x) if before is not None else x
    for axis in range(x.rank or 0):
        reduced = make_node(step, (x, constant([axis], DType.INT64)), {"keepdims": 1}).result
        this = op.Slice(chosen, constant([axis], DType.INT64), constant([axis + 1], DType.INT64))
        x = op.Where(this, reduced, x)
    return after(x) if after is not None else x


def _kept(chosen: Value, shape: Value, rank: int, count: int) -> Value:
    """The sizes of the axes that are not chosen: one follows another where so many before it are not chosen."""
    if rank == count:
        return constant(np.zeros(0, np.int64))
    open_ = cast(op.Not(chosen), DType.INT64)
    before = op.Mul(constant(np.tri(rank, k=-1, dtype=np.int64)), op.Unsqueeze(open_, constant([0], DType.INT64)))
    place = op.ReduceSum(before, constant([1], DType.INT64), keepdims=0)
    is_here = op.Equal(constant(np.arange(rank - count)[:, None]), op.Unsqueeze(place, constant([0], DType.INT64)))
    size = op.Unsqueeze(op.Mul(open_, shape), constant([0], DType.INT64))
    found = op.Mul(cast(is_here, DType.INT64), size)
    return op.ReduceSum(found, constant([1], DType.INT64), keepdims=0)


def _check_reduce(node: Node, version: Version) -> str:
    axes = node.operand(1)
    is_empty = axes is None or axes.shape == (0,)
    if is_empty and node.attrs.get("noop_with_empty_axes") and _STEPS[node.op] != (None, node.op, None):
        return "reduces along no axis"
    return ""


# --- running sums and products ---------------------------------------------------------------------------------------


def along(axis: Value, rank: int, compute: Callable[[int], Value]) -> Value:
    """What ``compute`` makes of an axis, for the one that ``axis`` names; all results have one shape."""
    if axis.const is not None:
        return compute(int(axis.const.numpy().item()) % rank)
    flat = op.Reshape(axis, constant(np.zeros(0, np.int64)))
    place = op.Mod(cast(flat, DType.INT64), constant(rank, DType.INT64))
    result = compute(0)
    for i in range(1, rank):
        result = op.Where(op.Equal(place, constant(i, DType.INT64)), compute(i), result)
    return result


def _cum_sum(node: Node, version: Version) -> list[Value] | None:
    if (new := in_int32(node)) is not None:
        return new
    x, rank = node.given(0), node.given(0).rank
    if not rank or x.dtype not in NUMBERS:
        return None
    attrs = dict(node.attrs)
    return [along(node.given(1), rank, lambda i: op.CumSum(x, constant(i, DType.INT64), **attrs))]


def _cum_prod(node: Node, version: Version) -> list[Value] | None:
    """By doubling: the product of one element, of two, of four, and so on."""
    if (new := in_int32(node)) is not None:
        return new
    x, shape = node.given(0), node.given(0).shape
    if not shape or x.dtype not in NUMBERS or not all(isinstance(d, int) for d in shape):
        return None
    is_exclusive, is_reverse = bool(node.attrs.get("exclusive")), bool(node.attrs.get("reverse"))
    return [along(node.given(1), len(shape), lambda i: _products(x, i, is_exclusive, is_reverse))]


def _products(x: Value, axis: int, is_exclusive: bool, is_reverse: bool) -> Value:
    assert x.shape is not None
    size = x.shape[axis]
    assert isinstance(size, int)
    if is_exclusive:
        x = _moved(x, axis, min(1, size), is_reverse)
    step = 1
    while step < size:
        x = op.Mul(x, _moved(x, axis, step, is_reverse))
        step *= 2
    return x


def _moved(x: Value, axis: int, by: int, is_reverse: bool) -> Value:
    """``x`` moved along ``axis``, with ones where nothing comes from."""
    sizes = [d for d in x.shape or () if isinstance(d, int)]
    start, end = (by, sizes[axis]) if is_reverse else (0, sizes[axis] - by)
    rest = op.Slice(x, *(constant([i], DType.INT64) for i in (start, end, axis)))
    sizes[axis] = by
    ones = constant(np.ones(sizes, x.dtype.numpy))
    return op.Concat(*((rest, ones) if is_reverse else (ones, rest)), axis=axis)


# --- places ----------------------------------------------------------------------------------------------------------


def _arg(node: Node, version: Version) -> list[Value] | None:
    """Of a vector: as of a matrix with one row. Of 8-bit integers: as of int32."""
    if (new := in_int32(node)) is not None:
        return new
    x, keep = node.given(0), node.attrs.get("keepdims", 1)
    if x.rank != 1:
        return None
    attrs = {**node.attrs, "axis": 1, "keepdims": 1}
    found = make_node(node.op, (op.Unsqueeze(x, constant([0], DType.INT64)),), attrs).result
    return [op.Reshape(found, constant([1] if keep else np.zeros(0, np.int64), DType.INT64))]


def _check_arg(node: Node, version: Version) -> str:
    x = node.operand(0)
    if version.number < (8, 6) and x is not None and x.dtype in INDICES:
        return f"{version} compares floating-point numbers only"
    return ""


ROWS: dict[str, Row] = {
    **{name: Row({"T": NUMBERS}, constants=(1,), ranks=(1, 8), check=_check_reduce) for name in _EXACT},
    **{name: Row({"T": FLOATS}, constants=(1,), ranks=(1, 8), check=_check_reduce) for name in _OF_FLOATS},
    "ArgMax": Row({"T": NUMBERS}, ranks=(2, 8), check=_check_arg),
    "ArgMin": Row({"T": NUMBERS}, ranks=(2, 8), check=_check_arg),
    "CumSum": Row({"T": NUMBERS}, constants=(1,), ranks=(1, 8)),
}

FORMS = {
    **dict.fromkeys(_STEPS, _reduce),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "CumProd": _cum_prod,
    "CumSum": _cum_sum,
}
