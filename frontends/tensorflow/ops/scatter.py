"""Putting elements in places: scatters, sums over segments, partitions, counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.dims import product
from ....ir.graph import Value, constant
from ....ir.types import DType
from ...emit import Refused
from ...exact import wide
from ..translate import Operation, Translator, rule
from ..vectors import Number, Range, cut, elements, joined, plus, rank_of, shape_of, size
from .indexing import where_equal
from .shapes import broadcast

__all__: list[str] = []

_UPDATES = {
    "TensorScatterUpdate": None,
    "TensorScatterAdd": "add",
    "TensorScatterSub": "add",
    "TensorScatterMax": "max",
    "TensorScatterMin": "min",
}


@rule(*_UPDATES)
def _update(t: Translator, o: Operation, x: Value, indices: Value, updates: Value) -> Any:
    if o.type == "TensorScatterSub":
        updates = t.op.Neg(updates)
    return _scattered(t, x, indices, updates, _UPDATES[o.type])


@rule("ScatterNd")
def _scatter_nd(t: Translator, o: Operation, indices: Value, updates: Value, shape: Value) -> Any:
    if updates.dtype is DType.BOOL:
        raise Refused("sums of booleans: cast them before")
    zeros = broadcast(t, t.scalar(0, updates.dtype), shape)
    return _scattered(t, zeros, indices, updates, None if _are_unique(indices) else "add")


def _are_unique(indices: Value) -> bool:
    """Whether constant indices name no place twice."""
    if indices.const is None:
        return False
    array = indices.const.numpy()
    rows = array.reshape(-1, array.shape[-1])
    return len(np.unique(rows, axis=0)) == len(rows)


def _scattered(t: Translator, x: Value, indices: Value, updates: Value, reduction: str | None) -> Value:
    """ScatterND; a reduction in a type in which runtimes have it."""
    dtype = x.dtype
    kind = DType.FLOAT if dtype.is_floating and dtype.bits < 32 else wide(dtype)
    kind = kind if reduction else dtype
    x, updates = t.cast(x, kind), t.cast(updates, kind)
    return t.cast(t.op.ScatterND(x, t.cast(indices, DType.INT64), updates, reduction=reduction), dtype)


# segments

_SEGMENTS = {
    "UnsortedSegmentSum": "add",
    "UnsortedSegmentProd": "mul",
    "UnsortedSegmentMax": "max",
    "UnsortedSegmentMin": "min",
}


@rule(*_SEGMENTS)
def _unsorted_segments(t: Translator, o: Operation, x: Value, ids: Value, count: Value) -> Any:
    """What has a negative number goes to one segment more, which is cut off."""
    (number,) = elements(t, count)
    found = t.known(ids)
    reduction = _SEGMENTS[o.type]
    if found is not None and min(found, default=0) >= 0:
        return _segments(t, x, ids, number, reduction)
    ids = t.cast(ids, DType.INT64)
    inside = t.op.Where(t.op.Less(ids, t.scalar(0, ids.dtype)), joined(t, [number]), ids)
    return cut(t, _segments(t, x, inside, plus(t, number, 1), reduction), {0: Range(0, number)})


@rule("SegmentSum", "SegmentMean", "SegmentSumV2")
def _sorted_segments(t: Translator, o: Operation, x: Value, ids: Value, count: Value | None = None) -> Any:
    (number,) = elements(t, count) if count is not None else (_last_plus_one(t, ids),)
    sums = _segments(t, x, ids, number, "add")
    if o.type != "SegmentMean":
        return sums
    ones = broadcast(t, t.scalar(1, x.dtype), shape_of(t, ids))
    counts = t.op.Max(_segments(t, ones, ids, number, "add"), t.scalar(1, x.dtype))
    return t.op.Div(sums, t.unsqueeze(counts, range(1, rank_of(x))))


@rule("SegmentMax", "SegmentMin", "SegmentProd")
def _extremes_of_segments(t: Translator, o: Operation, x: Value, ids: Value) -> Any:
    """Of segments without rows, the extremes are 0, and the products 1."""
    number = _last_plus_one(t, ids)
    found = _segments(t, x, ids, number, _SEGMENTS[f"Unsorted{o.type}"])
    known_ids = t.known(ids)
    if o.type == "SegmentProd" or (known_ids and set(known_ids) == set(range(max(known_ids) + 1))):
        return found
    counts = _segments(t, broadcast(t, t.scalar(1, DType.INT64), shape_of(t, ids)), ids, number, "add")
    are_there = t.unsqueeze(t.op.Greater(counts, t.scalar(0, DType.INT64)), range(1, rank_of(x)))
    return t.op.Where(are_there, found, t.scalar(0, x.dtype))


def _last_plus_one(t: Translator, ids: Value) -> Number:
    """How many sorted segments there are: as many as the last number says."""
    last: Value = t.op.ReduceMax(t.cast(ids, DType.INT64), t.integers([0]), keepdims=1)
    return plus(t, last, 1)


def _segments(t: Translator, x: Value, ids: Value, count: Number, reduction: str) -> Value:
    """Rows of ``x`` put together by their numbers, which are in ``count``."""
    rank = rank_of(ids)
    rest = [size(t, x, a) for a in range(rank, rank_of(x))]
    start = broadcast(t, t.scalar(_neutral(reduction, x.dtype), x.dtype), joined(t, [count, *rest]))
    return _scattered(t, start, t.unsqueeze(ids, [rank]), x, reduction)


def _neutral(reduction: str, dtype: DType) -> Any:
    """What TensorFlow gives for a segment without rows."""
    if reduction in ("add", "mul"):
        return int(reduction == "mul")
    if dtype.is_floating:
        return dtype.lowest if reduction == "max" else -dtype.lowest
    limits = np.iinfo(dtype.numpy)
    return limits.min if reduction == "max" else limits.max


@rule("Bincount", "DenseBincount")
def _bincount(t: Translator, o: Operation, x: Value, count: Value, weights: Value) -> Any:
    """How often each number is there, or the sum of the weights: in all, or in each row of a matrix."""
    dtype = weights.dtype
    (number,) = elements(t, count)
    rank = rank_of(x) if o.type == "DenseBincount" else 1
    if o.type == "Bincount" and x.rank != 1:
        x = t.reshape(x, (product(x.shape or ()),))
    found = where_equal(t, x, number, rank)  # one more dimension, last
    over = t.integers([rank - 1])
    if o.attr("binary_output", False):
        hits = t.op.ReduceMax(t.cast(found, DType.INT32), over, keepdims=0)
        return t.cast(hits, dtype)
    if weights.shape is not None and 0 in weights.shape:
        return t.cast(t.op.ReduceSum(t.cast(found, wide(dtype)), over, keepdims=0), dtype)
    if weights.rank != rank:
        weights = t.reshape(weights, x.shape or ())
    return t.op.ReduceSum(t.op.Where(found, t.unsqueeze(weights, [rank]), t.scalar(0, dtype)), over, keepdims=0)


@rule("Bucketize")
def _bucketize(t: Translator, o: Operation, x: Value) -> Any:
    """How many boundaries are not above a number."""
    boundaries = constant(np.array(o.attr("boundaries"), np.float32))
    return _counts(t, t.op.Not(t.op.Less(t.unsqueeze(t.cast(x, DType.FLOAT), [rank_of(x)]), boundaries)), DType.INT32)


@rule("LowerBound", "UpperBound")
def _bound(t: Translator, o: Operation, rows: Value, x: Value) -> Any:
    """How many numbers of a sorted row are below each number, or not above it."""
    rows, x = t.unsqueeze(rows, [1]), t.unsqueeze(x, [2])
    return _counts(t, t.op.Less(rows, x) if o.type == "LowerBound" else t.op.LessOrEqual(rows, x), o.out.dtype)


def _counts(t: Translator, found: Value, dtype: DType) -> Value:
    """How often it is true along the last dimension."""
    count = t.op.ReduceSum(t.cast(found, DType.INT32), t.integers([rank_of(found) - 1]), keepdims=0)
    return t.cast(count, dtype)


# parts of rows


@rule("DynamicPartition")
def _partition(t: Translator, o: Operation, x: Value, numbers: Value) -> Any:
    rank = rank_of(numbers)
    if rank == 0:
        raise Refused("a partition of a whole tensor by one number")
    if rank > 1:
        numbers = t.op.Reshape(numbers, t.integers([-1]))
        x = t.op.Reshape(x, joined(t, [-1, *(size(t, x, a) for a in range(rank, rank_of(x)))]))
    return [t.op.Compress(x, t.op.Equal(numbers, t.scalar(i, numbers.dtype)), axis=0) for i in range(len(o.tensors))]


@rule("DynamicStitch", "ParallelDynamicStitch")
def _stitch(t: Translator, o: Operation, *operands: Value) -> Any:
    """Rows in the places that their indices name."""
    half = len(operands) // 2
    places, rows = [], []
    for indices, data in zip(operands[:half], operands[half:], strict=True):
        inner = [size(t, data, a) for a in range(rank_of(indices), rank_of(data))]
        places.append(t.op.Reshape(t.cast(indices, DType.INT64), t.integers([-1])))
        rows.append(t.op.Reshape(data, joined(t, [-1, *inner])))
    place = places[0] if half == 1 else t.op.Concat(*places, axis=0)
    data = rows[0] if half == 1 else t.op.Concat(*rows, axis=0)
    last: Value = t.op.ReduceMax(place, t.integers([0]), keepdims=1)
    rest = [size(t, data, a) for a in range(1, rank_of(data))]
    zeros = broadcast(t, t.scalar(0, data.dtype), joined(t, [plus(t, last, 1), *rest]))
    return t.op.ScatterND(zeros, t.unsqueeze(place, [1]), data)
