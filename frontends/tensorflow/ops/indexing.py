"""Picking elements: slices, gathers, one-hot, and where a condition holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ....ir.dims import is_non_negative
from ....ir.graph import Value
from ....ir.infer.engine import content_of
from ....ir.types import DType
from ...emit import Refused
from ...exact import is_number
from ..layout import axis_first, to_last
from ..translate import Operation, Translator, rule
from ..vectors import (
    END,
    Number,
    Range,
    bottom,
    cut,
    elements,
    in_layout,
    joined,
    known,
    minus,
    plus,
    rank_of,
    reshaped,
    shape_of,
    size,
    top,
)
from .shapes import broadcast, counted

__all__ = ["index", "where_equal"]

_INDICES = (DType.INT32, DType.INT64)


def index(t: Translator, value: Value) -> Value:
    """Indices in a type that ONNX takes them in."""
    return value if value.dtype in _INDICES else t.cast(value, DType.INT64)


# slices


@rule("Slice")
def _slice(t: Translator, o: Operation, x: Value, begin: Value, sizes: Value) -> Any:
    starts, counts = (elements(t, v, rank_of(x)) for v in (begin, sizes))
    shape = x.shape or ()
    parts = {}
    for axis, (start, count) in enumerate(zip(starts, counts, strict=True)):
        whole = isinstance(count, Value) and content_of(count) == shape[axis : axis + 1]
        if start != 0 or not (count == -1 or whole):
            parts[axis] = Range(start, _end(t, start, count))
    return in_layout(t, x, lambda value, place: cut(t, value, {place(a): part for a, part in parts.items()}))


def _end(t: Translator, start: Number, count: Number) -> Number | None:
    """Where a slice of ``count`` elements ends, of which -1 are all."""
    if count == -1:
        return None
    end = plus(t, start, count)
    if isinstance(count, int) or all(is_non_negative(d) for d in content_of(count) or (-1,)):
        return end
    last: Value = t.op.Where(t.op.Less(count, t.integers([0])), t.integers([END]), joined(t, [end]))
    return last


@rule("StridedSlice")
def _strided_slice(t: Translator, o: Operation, x: Value, begin: Value, end: Value, strides: Value) -> Any:
    spec = _Spec(t, o, rank_of(x), begin, end, strides)
    return spec.apply(t, x)


@rule("TensorStridedSliceUpdate")
def _strided_slice_update(
    t: Translator, o: Operation, x: Value, begin: Value, end: Value, strides: Value, update: Value
) -> Any:
    """The numbers of the elements are sliced: they say where the update goes, whatever the slice."""
    shape, all_ = shape_of(t, x), t.integers([-1])
    count = t.known(shape)
    whole = math.prod(count) if count is not None else t.op.ReduceProd(shape, t.integers([0]), keepdims=1)
    numbers = t.op.Reshape(counted(t, whole), shape, allowzero=1)
    places = _Spec(t, o, rank_of(x), begin, end, strides).apply(t, numbers)
    update = broadcast(t, update, shape_of(t, places))
    rows = t.unsqueeze(t.op.Reshape(places, all_), [1])
    found = t.op.ScatterND(t.op.Reshape(x, all_), rows, t.op.Reshape(update, all_))
    return reshaped(t, found, shape)


class _Spec:
    """What a StridedSlice takes of each dimension.

    Attributes:
        parts: ranges, by axis.
        picked: the one element that is taken, by axis; that dimension goes.
        added: the axes of the result that are new, and have size 1.
    """

    def __init__(self, t: Translator, o: Operation, rank: int, begin: Value, end: Value, strides: Value):
        starts, ends, steps = (elements(t, v) for v in (begin, end, strides))
        at_start, at_end, ellipsis, new, shrink = (
            int(o.attr(f"{name}_mask")) for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
        )
        self.parts: dict[int, Range] = {}
        self.picked: dict[int, Number] = {}
        self.added: list[int] = []
        first = next((i for i in range(len(starts)) if ellipsis >> i & 1), len(starts))
        taken = sum(1 for i in range(len(starts)) if i != first and not new >> i & 1)
        axis = place = 0  # of the operand, of the result
        for i, (start, stop, step) in enumerate(zip(starts, ends, steps, strict=True)):
            if i == first:
                axis, place = axis + rank - taken, place + rank - taken
            elif new >> i & 1:
                self.added.append(place)
                place += 1
            elif shrink >> i & 1:
                self.picked[axis] = start
                axis += 1
            else:
                self.parts[axis] = Range(None if at_start >> i & 1 else start, None if at_end >> i & 1 else stop, step)
                axis, place = axis + 1, place + 1

    def apply(self, t: Translator, x: Value) -> Value:
        """The part of ``x``."""
        rank, first = rank_of(x), t.layouts.kept(x)
        if first is None:
            return t.unsqueeze(self._picked(t, cut(t, x, self.parts), lambda axis: axis), self.added)
        found = cut(t, first, {axis_first(a, rank): part for a, part in self.parts.items()})
        found = self._picked(t, found, lambda axis: axis_first(axis, rank))
        left = [a for a in range(rank) if a not in self.picked]
        order = sorted(left, key=lambda a: axis_first(a, rank))
        permutation = tuple(order.index(a) for a in left)
        is_last = len(left) > 2 and permutation == to_last(len(left))
        return t.unsqueeze(t.layouts.last(found) if is_last else t.transpose(found, permutation), self.added)

    def _picked(self, t: Translator, x: Value, place: Callable[[int], int]) -> Value:
        """Without the dimensions of which one element is taken."""
        for axis, number in sorted(((place(a), n) for a, n in self.picked.items()), reverse=True):
            at = t.scalar(number, DType.INT64) if isinstance(number, int) else t.squeeze(number, [0])
            x = t.op.Gather(x, at, axis=axis)
        return x


@rule("XlaDynamicUpdateSlice")
def _update_slice(t: Translator, o: Operation, x: Value, update: Value, starts: Value) -> Any:
    """A window of ``x`` is replaced, moved so that it is inside."""
    places: dict[int, tuple[Number, Number]] = {}
    for axis, start in enumerate(elements(t, starts, rank_of(x))):
        whole, own = size(t, x, axis), size(t, update, axis)
        if (x.shape or ())[axis : axis + 1] != (update.shape or ())[axis : axis + 1]:
            first = top(t, bottom(t, start, minus(t, whole, own)), 0)
            places[axis] = (first, plus(t, first, own))
    return _replaced(t, x, update, places)


def _replaced(t: Translator, x: Value, update: Value, places: Mapping[int, tuple[Number, Number]]) -> Value:
    """``x`` with ``update`` between the starts and ends of some axes; it fills the others."""
    if not places:
        return update
    (axis, (start, end)), *others = places.items()
    if others:
        update = _replaced(t, cut(t, x, {axis: Range(start, end)}), update, dict(others))
    found: Value = t.op.Concat(cut(t, x, {axis: Range(0, start)}), update, cut(t, x, {axis: Range(end)}), axis=axis)
    return found


# gathers


@rule("GatherV2", "Gather")
def _gather(t: Translator, o: Operation, x: Value, indices: Value, where: Value | None = None) -> Any:
    axis = known(t, where, "the axis")[0] % rank_of(x) if where is not None else 0
    batch = int(o.attr("batch_dims", 0))
    return _taken(t, x, index(t, indices), axis, batch + rank_of(indices) if batch < 0 else batch)


@rule("ResourceGather")
def _resource_gather(t: Translator, o: Operation, handle: Any, indices: Value) -> Any:
    batch = int(o.attr("batch_dims", 0))
    return _taken(t, _variable(t, o, handle), index(t, indices), batch, batch)


@rule("ResourceGatherNd")
def _resource_gather_nd(t: Translator, o: Operation, handle: Any, indices: Value) -> Any:
    return t.op.GatherND(_variable(t, o, handle), t.cast(indices, DType.INT64))


def _variable(t: Translator, o: Operation, handle: Any) -> Value:
    if isinstance(handle, Value):
        raise Refused("it is not known which variable this is")
    return t.weights.variable(handle, o.attr("dtype"), o.name)


def _taken(t: Translator, x: Value, indices: Value, axis: int, batch: int) -> Value:
    """Elements of ``x`` along an axis; the first ``batch`` dimensions of both belong together."""
    rank, count = rank_of(x), rank_of(indices)
    found: Value
    if not batch or (batch == axis == rank - 1 and count == rank):
        plain = _unwrapped(t, indices, x, axis)
        if count == 1:
            return in_layout(t, x, lambda value, place: t.op.Gather(value, plain, axis=place(axis)))
        found = (t.op.GatherElements if batch else t.op.Gather)(x, plain, axis=axis)
        return found
    middle = list(range(batch, axis))
    moved = t.transpose(x, [*range(batch), axis, *middle, *range(axis + 1, rank)])
    found = t.op.GatherND(moved, t.unsqueeze(t.cast(indices, DType.INT64), [count]), batch_dims=batch)
    picked = list(range(batch, count))
    inner = list(range(count, count + len(middle)))
    return t.transpose(found, [*range(batch), *inner, *picked, *range(count + len(middle), count + rank - batch - 1)])


def _unwrapped(t: Translator, indices: Value, x: Value, axis: int) -> Value:
    """Indices that may be negative, as Gather takes them: Keras adds the size of the dimension to these before."""
    made = indices.producer
    if made is None or made.op != "Where":
        return indices
    is_negative, moved = made.given(0).producer, made.given(1).producer
    plain = made.given(2)
    if is_negative is None or moved is None or is_negative.op != "Less" or moved.op != "Add":
        return indices
    is_compared = is_negative.given(0) is plain and is_number(is_negative.given(1), 0)
    is_moved = moved.given(0) is plain and content_of(moved.given(1)) == (x.shape or ())[axis : axis + 1]
    return plain if is_compared and is_moved else indices


@rule("GatherNd")
def _gather_nd(t: Translator, o: Operation, x: Value, indices: Value) -> Any:
    return t.op.GatherND(x, t.cast(indices, DType.INT64))


# numbers to rows, and places


def where_equal(t: Translator, indices: Value, count: Number, axis: int) -> Value:
    """A boolean for each of ``count`` numbers along a new ``axis``: whether the index is that."""
    rank = rank_of(indices)
    indices = index(t, indices)
    numbers = t.unsqueeze(counted(t, count, indices.dtype), range(1, rank - axis + 1))
    found: Value = t.op.Equal(t.unsqueeze(indices, [axis]), numbers)
    return found


@rule("OneHot")
def _one_hot(t: Translator, o: Operation, indices: Value, depth: Value, on: Value, off: Value) -> Any:
    """By comparing, as an index that is too large or negative gives a row without any."""
    axis = int(o.attr("axis")) % (rank_of(indices) + 1)
    is_on = where_equal(t, indices, elements(t, depth)[0], axis)
    if is_number(on, 1) and is_number(off, 0):
        return t.cast(is_on, on.dtype)
    return t.op.Where(is_on, on, off)


@rule("Where")
def _where(t: Translator, o: Operation, condition: Value) -> Any:
    return t.transpose(t.op.NonZero(t.cast(condition, DType.BOOL)), (1, 0))


@rule("InvertPermutation")
def _invert_permutation(t: Translator, o: Operation, x: Value) -> Any:
    numbers = counted(t, size(t, x, 0), x.dtype)
    return t.op.ScatterElements(numbers, x, numbers, axis=0)


@rule("Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2")
def _unique(t: Translator, o: Operation, x: Value, where: Value | None = None) -> Any:
    """In the order in which they come first."""
    axes = known(t, where, "the axis") if where is not None else ()
    rank = rank_of(x)
    if rank != 1 and not axes:
        raise Refused("unique elements of more than one dimension: name the axis")
    axis = axes[0] % rank if axes and rank > 1 else None
    kind = DType.FLOAT if x.dtype.is_floating and x.dtype.bits < 32 else x.dtype if x.dtype.is_floating else DType.INT64
    values, _, inverse, counts = t.op.Unique(t.cast(x, kind), sorted=0, axis=axis, outputs=4)
    return [
        t.cast(values, x.dtype),
        *(t.cast(v, out.dtype) for v, out in zip((inverse, counts), o.outs[1:], strict=False)),
    ]
