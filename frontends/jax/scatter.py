"""``scatter`` and its kin: an update of a window, or ScatterND.

The names are those of jax's ``ScatterDimensionNumbers``: ``inserted_window_dims`` are dimensions of the operand that a
window does not show, since it is one element wide there.
"""

from __future__ import annotations

from typing import Any

from ...ir.dims import Dim
from ...ir.graph import Value
from ...ir.types import DType
from ..emit import Refused
from .gather import Indices, window_offsets
from .reductions import lowest
from .shapes import clamped_starts, dynamic_slice, dynamic_update
from .translate import Equation, Translator, rule

__all__: list[str] = []

_REDUCTIONS = {
    "scatter": None, "scatter-add": "add", "scatter-sub": "add", "scatter-mul": "mul", "scatter-max": "max",
    "scatter-min": "min",
}  # fmt: skip


class _Scatter:
    """The dimension numbers of a scatter, and the sizes of its window in every dimension of the operand."""

    def __init__(self, eqn: Equation, x: Value, indices: Value, updates: Value):
        numbers = eqn.params["dimension_numbers"]
        self.window = [int(d) for d in numbers.update_window_dims]
        self.inserted = [int(d) for d in numbers.inserted_window_dims]
        self.indexed = [int(d) for d in numbers.scatter_dims_to_operand_dims]
        self.batching = [int(d) for d in numbers.operand_batching_dims]
        self.index_batching = [int(d) for d in numbers.scatter_indices_batching_dims]
        self.shape = x.shape or ()
        self.batch = list(range((indices.rank or 1) - 1))
        self.batch_places = [i for i in range(updates.rank or 0) if i not in self.window]
        self.shown = [d for d in range(len(self.shape)) if d not in self.inserted and d not in self.batching]
        shown = [(updates.shape or ())[i] for i in self.window]
        self.sizes: list[Dim] = [1] * len(self.shape)
        for d, size in zip(self.shown, shown, strict=True):
            self.sizes[d] = size

    @property
    def room(self) -> list[Dim]:
        """The largest coordinate of a window that is inside, for each coordinate."""
        return [self.shape[d] - self.sizes[d] for d in self.indexed]


@rule(*_REDUCTIONS)
def _scatter(t: Translator, eqn: Equation, x: Value, indices: Value, updates: Value) -> Any:
    s = _Scatter(eqn, x, indices, updates)
    reduction = _REDUCTIONS[eqn.name]
    if x.dtype is DType.BOOL and reduction is not None:
        raise Refused("a reduction of booleans")
    if eqn.name == "scatter-sub":
        updates = t.op.Neg(updates)
    found = Indices(t, indices, s.room, eqn.params["mode"])
    if not s.batch and not s.batching:
        return _one_window(t, s, x, indices, updates, found.valid, reduction)
    return _scatter_nd(t, s, x, found, updates, reduction)


def _combine(t: Translator, reduction: str | None, old: Value, new: Value) -> Value:
    if reduction is None:
        return new
    operators = {"add": t.op.Add, "mul": t.op.Mul, "max": t.op.Max, "min": t.op.Min}
    return operators[reduction](old, new)


def _one_window(
    t: Translator, s: _Scatter, x: Value, indices: Value, updates: Value, valid: Value | None, reduction: str | None
) -> Value:
    """Indices without dimensions of their own: a window is read, changed and put back."""
    axes = [d for d, size in enumerate(s.sizes) if s.shape[d] != size]
    places = {d: i for i, d in enumerate(s.indexed)}
    starts = [t.slice(indices, [0], [places[d]], [places[d] + 1]) if d in places else t.integers([0]) for d in axes]
    sizes = [s.sizes[d] for d in axes]
    clipped = clamped_starts(t, x, starts, axes, sizes)
    new = t.unsqueeze(updates, s.inserted)
    if reduction is not None or valid is not None:
        old = dynamic_slice(t, x, axes, clipped, sizes)
        new = _combine(t, reduction, old, new)
        if valid is not None:
            new = t.op.Where(valid, new, old)
    return dynamic_update(t, x, new, axes, clipped)


def _scatter_nd(t: Translator, s: _Scatter, x: Value, found: Indices, updates: Value, reduction: str | None) -> Value:
    n = len(s.batch)
    partial = [d for d in s.shown if d not in s.indexed and s.shape[d] != s.sizes[d]]
    columns = [*s.batching, *s.indexed, *partial]  # the dimensions of the operand that have coordinates
    rest = [d for d in range(len(s.shape)) if d not in columns]
    wide = [d for d in (*s.indexed, *partial) if d in s.shown]
    index = _coordinates(t, s, t.cast(found.value, DType.INT64), len(partial))
    if wide:
        index = t.unsqueeze(index, range(n, n + len(wide)))
        offsets = window_offsets(t, [s.sizes[d] for d in wide], [columns.index(d) for d in wide], len(columns))
        index = t.op.Add(index, offsets)
    place = {d: s.window[i] for i, d in enumerate(s.shown)}
    updates = t.transpose(updates, [*s.batch_places, *(place[d] for d in (*wide, *rest))])
    order = [*columns, *rest]
    moved = t.transpose(x, order)
    if found.valid is None:
        moved = t.op.ScatterND(moved, index, updates, reduction=reduction)
    else:
        around = [n + i for i in range(len(wide))]
        if reduction is not None:
            mask = t.unsqueeze(found.valid, range(n, updates.rank or n))
            updates = t.op.Where(mask, updates, t.scalar(_neutral(reduction, x.dtype), x.dtype))
            moved = t.op.ScatterND(moved, index, updates, reduction=reduction)
        else:
            moved = _scatter_inside(t, moved, index, updates, t.unsqueeze(found.valid, [*around, n + len(wide)]))
    return t.transpose(moved, sorted(range(len(order)), key=lambda i: order[i]))


def _coordinates(t: Translator, s: _Scatter, indices: Value, partial: int) -> Value:
    """Coordinates in all columns: those of batching dimensions count, those of partial windows are 0."""
    n = len(s.batch)
    dims = (indices.shape or ())[:n]
    parts = []
    for b in s.index_batching:
        line: list[Dim] = [1] * (n + 1)
        line[b] = dims[b]
        parts.append(t.expand(t.reshape(t.arange(dims[b]), line), [*dims, 1]))
    parts.append(indices)
    if partial:
        parts.append(t.full(0, DType.INT64, [*dims, partial]))
    return parts[0] if len(parts) == 1 else t.op.Concat(*parts, axis=n)


def _scatter_inside(t: Translator, x: Value, index: Value, updates: Value, valid: Value) -> Value:
    """ScatterND of the valid updates; the others go to a place behind the end, which is then cut off."""
    shape, rank = x.shape or (), x.rank or 0
    padded = t.pad(x, [0] * rank, [1] + [0] * (rank - 1)) if rank else x
    beyond = t.sizes.value(shape[0])
    first = t.slice(index, [(index.rank or 1) - 1], [0], [1])
    others = t.slice(index, [(index.rank or 1) - 1], [1], [(index.shape or ())[-1]])
    moved = t.op.Where(valid, first, beyond)
    if (index.shape or ())[-1] != 1:
        moved = t.op.Concat(moved, others, axis=(index.rank or 1) - 1)
    return t.slice(t.op.ScatterND(padded, moved, updates), [0], [0], [shape[0]])


def _neutral(reduction: str, dtype: DType) -> Any:
    if reduction == "max":
        return lowest(dtype)
    if reduction == "min":
        return float("inf") if dtype.is_floating else (1 << (dtype.bits - dtype.is_signed)) - 1
    return 0 if reduction == "add" else 1
