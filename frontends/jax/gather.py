"""``gather``: every form of indexing, as Slice, Gather, GatherElements or GatherND.

The result of a gather has the dimensions of the indices (but the last, which holds the coordinates) and those of the
window that each of them reads. The names below are those of jax's ``GatherDimensionNumbers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.dims import Dim
from ...ir.graph import Value, constant
from ...ir.types import DType
from ..emit import Refused
from ..sizes import dim_of, integer
from .reductions import lowest
from .shapes import clamped_starts, dynamic_slice
from .translate import Equation, Translator, rule

__all__ = ["Indices", "window_offsets"]

_CLIP, _FILL, _PROMISE = "CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS"


class Indices:
    """The coordinates of windows, as int32 or int64 of shape ``[…, k]``, moved inside.

    Attributes:
        value: the coordinates.
        valid: where the window was inside to begin with, of shape ``[…]``; None where that makes no difference.
    """

    def __init__(self, t: Translator, indices: Value, room: Sequence[Dim], mode: Any):
        """``room`` is the largest coordinate of a window that is inside, for each of the ``k`` dimensions."""
        name = getattr(mode, "name", str(mode))
        if name not in (_CLIP, _FILL, _PROMISE):
            raise Refused(f"indices in mode {name}")
        whole = indices.dtype is DType.INT32 and all(isinstance(r, int) for r in room)
        kind = DType.INT32 if whole else DType.INT64
        self.value = t.cast(indices, kind)
        self.valid: Value | None = None
        known = t.known(indices)
        tops = [room[i % len(room)] for i in range(len(known or ()))]
        inside = known is not None and all(isinstance(r, int) and 0 <= k <= r for k, r in zip(known, tops, strict=True))
        if name == _PROMISE or inside or not room or "in_bounds" in t.assumed:
            return
        zero, top = t.scalar(0, kind), t.cast(t.vector(room), kind)
        limited = t.op.Min(t.op.Max(self.value, zero), top)
        if name == _FILL:
            same = t.cast(t.op.Equal(self.value, limited), DType.INT32)
            axis = t.integers([(indices.rank or 1) - 1])
            self.valid = t.cast(t.op.ReduceMin(same, axis, keepdims=0), DType.BOOL)
        self.value = limited


def window_offsets(t: Translator, sizes: Sequence[Dim], columns: Sequence[int], width: int) -> Value:
    """The coordinates inside of a window, as int64 ``[*sizes, width]``: ``columns[i]`` counts along dimension i."""
    if any(not isinstance(s, int) for s in sizes):
        raise Refused("a window of symbolic size that is no slice")
    counts = [integer(s) for s in sizes]
    grid = np.zeros((*counts, width), np.int64)
    for i, column in enumerate(columns):
        line = [1] * len(counts)
        line[i] = counts[i]
        grid[..., column] += np.arange(counts[i]).reshape(line)
    return constant(grid)


class _Gather:
    """The dimension numbers of a gather, and the sizes of its window."""

    def __init__(self, eqn: Equation, x: Value, indices: Value):
        numbers = eqn.params["dimension_numbers"]
        self.sizes = [dim_of(s) for s in eqn.params["slice_sizes"]]
        self.offset = [int(d) for d in numbers.offset_dims]
        self.collapsed = [int(d) for d in numbers.collapsed_slice_dims]
        self.indexed = [int(d) for d in numbers.start_index_map]
        self.batching = [int(d) for d in numbers.operand_batching_dims]
        self.index_batching = [int(d) for d in numbers.start_indices_batching_dims]
        self.batch = list(range((indices.rank or 1) - 1))
        self.rank = len(eqn.shape)
        self.others = [b for b in self.batch if b not in self.index_batching]
        self.shown = [d for d in range(x.rank or 0) if d not in self.collapsed and d not in self.batching]

    def position(self, label: tuple[str, int]) -> int:
        """Where a dimension of the indices (``b``) or of the window (``o``) is in the result."""
        kind, dim = label
        if kind == "o":
            return self.offset[self.shown.index(dim)]
        return [i for i in range(self.rank) if i not in self.offset][dim]

    def arrange(self, t: Translator, value: Value, labels: Sequence[tuple[str, int]]) -> Value:
        """``value``, whose dimensions are ``labels``, in the order of the result; what is missing has size 1."""
        places = [self.position(label) for label in labels]
        value = t.transpose(value, sorted(range(len(places)), key=lambda i: places[i]))
        return t.unsqueeze(value, [i for i in range(self.rank) if i not in places])


@rule("gather")
def _gather(t: Translator, eqn: Equation, x: Value, indices: Value) -> Any:
    g = _Gather(eqn, x, indices)
    shape = x.shape or ()
    if not g.batch and not g.batching:
        return _one_window(t, eqn, g, x, indices)
    cut = [d for d in range(len(shape)) if d not in g.indexed and d not in g.batching and shape[d] != g.sizes[d]]
    x = t.slice(x, cut, [0] * len(cut), [g.sizes[d] for d in cut])
    found = Indices(t, indices, [shape[d] - g.sizes[d] for d in g.indexed], eqn.params["mode"])
    if len(g.indexed) == 1 and not g.batching:
        result = _take(t, g, x, found.value)
    elif len(g.indexed) == 1 and len(g.batching) == len(shape) - 1 and len(g.others) <= 1 and not g.shown:
        result = _take_along(t, g, x, found.value)
    else:
        result = _gather_nd(t, g, x, found.value)
    if found.valid is None:
        return result
    mask = g.arrange(t, found.valid, [("b", b) for b in g.batch])
    return t.op.Where(mask, result, _fill(t, eqn))


def _fill(t: Translator, eqn: Equation) -> Value:
    number, dtype = eqn.params["fill_value"], eqn.out.dtype
    if number is None:
        number = (
            True if dtype is DType.BOOL else np.nan if dtype.is_floating else lowest(dtype) or (1 << dtype.bits) - 1
        )
    return t.scalar(number, dtype)


def _one_window(t: Translator, eqn: Equation, g: _Gather, x: Value, indices: Value) -> Value:
    """Indices without dimensions of their own: a slice."""
    shape, sizes = x.shape or (), g.sizes
    axes = [d for d in range(len(shape)) if shape[d] != sizes[d]]
    places = {d: i for i, d in enumerate(g.indexed)}
    starts = [t.slice(indices, [0], [places[d]], [places[d] + 1]) if d in places else t.integers([0]) for d in axes]
    clipped = clamped_starts(t, x, starts, axes, [sizes[d] for d in axes])
    found = t.squeeze(dynamic_slice(t, x, axes, clipped, [sizes[d] for d in axes]), g.collapsed)
    room = [shape[d] - sizes[d] for d in g.indexed]
    valid = Indices(t, indices, room, eqn.params["mode"]).valid
    return found if valid is None else t.op.Where(valid, found, _fill(t, eqn))


def _take(t: Translator, g: _Gather, x: Value, indices: Value) -> Value:
    """Coordinates along one axis: Gather."""
    (axis,) = g.indexed
    size = g.sizes[axis]
    index = t.squeeze(indices, [len(g.batch)])
    labels: list[tuple[str, int]] = [("o", d) for d in range(axis)]
    labels += [("b", b) for b in g.batch]
    if size != 1:
        index = t.op.Add(t.unsqueeze(index, [len(g.batch)]), t.arange(size, index.dtype))
        labels.append(("o", axis))
    labels += [("o", d) for d in range(axis + 1, x.rank or 0)]
    return g.arrange(t, t.op.Gather(x, index, axis=axis), labels)


def _take_along(t: Translator, g: _Gather, x: Value, indices: Value) -> Value:
    """One coordinate for each line along an axis: GatherElements."""
    (axis,) = g.indexed
    index = t.squeeze(indices, [len(g.batch)])
    if not g.others:
        index = t.unsqueeze(index, [len(g.batch)])
    other = g.others[0] if g.others else len(g.batch)
    source = dict(zip(g.batching, g.index_batching, strict=True)) | {axis: other}
    index = t.transpose(index, [source[d] for d in range(x.rank or 0)])
    found = t.op.GatherElements(x, index, axis=axis)
    if not g.others:
        found = t.squeeze(found, [axis])
    labels = [("b", source[d]) for d in range(x.rank or 0) if d != axis or g.others]
    return g.arrange(t, found, labels)


def _gather_nd(t: Translator, g: _Gather, x: Value, indices: Value) -> Value:
    """Everything else: GatherND, after the dimensions that are not indexed have moved to the end."""
    rest = [d for d in range(x.rank or 0) if d not in g.indexed and d not in g.batching]
    moved = t.transpose(x, [*g.batching, *g.indexed, *rest])
    n, k = len(g.batch), len(g.indexed)
    index = t.cast(t.transpose(indices, [*g.index_batching, *g.others, n]), DType.INT64)
    wide = [d for d in g.indexed if g.sizes[d] != 1]
    if wide:
        index = t.unsqueeze(index, range(n, n + len(wide)))
        columns = [g.indexed.index(d) for d in wide]
        index = t.op.Add(index, window_offsets(t, [g.sizes[d] for d in wide], columns, k))
    found = t.op.GatherND(moved, index, batch_dims=len(g.batching))
    labels = [("b", b) for b in (*g.index_batching, *g.others)]
    return g.arrange(t, found, labels + [("o", d) for d in (*wide, *rest)])
