"""Operators whose results have sizes that depend on data, with results that are padded to the largest size.

See `planish.backends.xla.padded`. ``NonMaxSuppression`` is in `planish.backends.xla.ops.detection`. Definitions: the
ONNX operator specification, opset 28.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.types import DType
from ..lowering import Call, lowers_padded
from ..padded import Entries, Padded, front, has_entries
from ..values import dims, from_dims, to_dtype, traced

Array = Any
Known = np.ndarray[Any, Any]

_COLUMNS = 64  # what is sorted by more keys takes XLA long to compile


def _chosen(call: Call, source: Any, mask: Array) -> tuple[Array, Array]:
    """`front` of a mask that follows from ``source``: the same count for all operators that choose by it."""
    sources = (source.values, source.count) if isinstance(source, Padded) else (source,)
    order, count = call.once("front", sources, lambda: front(mask))
    return order, count


@lowers_padded("NonZero")
def _non_zero(call: Call, x: Any) -> Padded:
    mask = x.filled(0) != 0 if isinstance(x, Padded) else x != 0
    mask = mask if mask.ndim else mask.reshape(1)
    order, count = _chosen(call, x, mask.reshape(-1))
    rows, below = [], order
    for size in mask.shape[:0:-1]:
        size = jnp.maximum(jnp.asarray(size, order.dtype), 1)
        rows.append(below % size)
        below = below // size
    return Padded(jnp.stack([below, *rows[::-1]]).astype(call.dtype()), count, 1)


@lowers_padded("Compress")
def _compress(call: Call, x: Any, condition: Any) -> Any:
    axis = call["axis"]
    if axis is None and isinstance(x, Padded) and x.ndim > 1:
        return NotImplemented
    mask = condition.filled(0) if isinstance(condition, Padded) else condition
    if isinstance(x, Padded):
        axis = (axis or 0) % x.ndim
        if axis != x.axis or not isinstance(condition, Padded) or not condition.has_entries_of(x):
            return NotImplemented
        x = x.values
    elif isinstance(condition, Padded):
        return NotImplemented
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis %= x.ndim
    if mask.shape[0] != x.shape[axis]:  # what it does not reach is left out
        mask = lax.pad(mask.astype(jnp.int8), jnp.int8(0), [(0, x.shape[axis] - mask.shape[0], 0)]).astype(bool)
        order, count = front(mask)
    else:
        order, count = _chosen(call, condition, mask)
    return Padded(jnp.take(x, order, axis=axis, mode="clip"), count, axis)


@lowers_padded("Unique")
def _unique(call: Call, x: Any) -> Any:
    along = call["axis"]
    ndim = x.ndim
    axis = 0 if along is None else along % ndim
    if isinstance(x, Padded) and (x.axis != axis or (along is None and ndim > 1)):
        return NotImplemented
    values = x.values if isinstance(x, Padded) else x
    values = values.reshape(-1) if along is None else values
    rows = jnp.moveaxis(values, axis, 0)
    width = math.prod(rows.shape[1:])
    if not isinstance(width, int) or not 0 < width <= _COLUMNS:
        return NotImplemented
    is_entry = x.is_entry() if isinstance(x, Padded) else jnp.ones(rows.shape[:1], bool)
    first, inverse, counts, count = _groups(rows.reshape(rows.shape[0], width), is_entry, bool(call["sorted"]))
    first, inverse, counts = (v.astype(to_dtype(DType.INT64)) for v in (first, inverse, counts))
    return (
        Padded(jnp.take(values, first, axis=axis, mode="clip"), count, axis),
        Padded(first, count, 0),
        Padded(inverse, x.count, 0) if isinstance(x, Padded) else inverse,
        Padded(counts, count, 0),
    )


def _groups(rows: Array, is_entry: Array, is_sorted: bool) -> tuple[Array, Array, Array, Array]:
    """Equal rows (n, width): the first of each group, the group of each row, the sizes of the groups; their number."""
    at = jnp.arange(rows.shape[0], dtype=jnp.int32)
    order = jnp.lexsort((*rows.T[::-1], ~is_entry))
    ordered, is_real = rows[order], is_entry[order]
    begins = jnp.ones_like(is_real).at[1:].set(jnp.any(ordered[1:] != ordered[:-1], axis=1)) & is_real
    places, count = front(begins)
    first = order[places]
    group = jnp.maximum(jnp.cumsum(begins, dtype=jnp.int32) - 1, 0)
    inverse = jnp.zeros_like(at).at[order].set(group)
    sizes = jnp.zeros_like(at).at[group].add(is_real)
    if not is_sorted:
        by = jnp.argsort(jnp.where(at < count, first, at.size), stable=True)
        rank = jnp.zeros_like(at).at[by].set(at)
        first, sizes, inverse = first[by], sizes[by], rank[inverse]
    return first, inverse, sizes, count


# in shapes with the size of a padded value


def _sized(shape: Known) -> tuple[list[Any], int, Entries] | None:
    """A shape with the largest size in place of the one that depends on data, where that is, and what it is."""
    sizes = dims(shape)
    found = [i for i, d in enumerate(sizes) if isinstance(d, Entries)]
    if len(found) != 1:
        return None
    (axis,) = found
    entries: Entries = sizes[axis]
    return [entries.largest if i == axis else d for i, d in enumerate(sizes)], axis, entries


@lowers_padded("ConstantOfShape")
def _constant_of_shape(call: Call, shape: Known) -> Any:
    sized = _sized(shape)
    if sized is None:
        return NotImplemented
    sizes, axis, entries = sized
    return Padded(call.compute([from_dims(sizes)])[0], entries.count, axis)


@lowers_padded("Range")
def _range(call: Call, start: Known, limit: Known, delta: Known) -> Any:
    sized = _sized(limit)
    if sized is None or has_entries(start) or has_entries(delta) or (dims(start)[0], dims(delta)[0]) != (0, 1):
        return NotImplemented
    return Padded(traced(call.compute([start, from_dims(sized[0]).reshape(()), delta])[0]), sized[2].count, 0)


@lowers_padded("Expand")
def _expand(call: Call, x: Any, shape: Known) -> Any:
    sized = _sized(shape) if has_entries(shape) else None
    if not isinstance(x, Padded):
        if sized is None or not _is_one(x.shape, sized[1] - shape.size):
            return NotImplemented
        values = call.compute([x, from_dims(sized[0])])[0]
        return Padded(values, sized[2].count, values.ndim - shape.size + sized[1])
    from_right = x.axis - x.ndim
    if sized is not None:
        if not sized[2].are_of(x) or sized[1] - shape.size != from_right:
            return NotImplemented
        shape = from_dims(sized[0])
    elif has_entries(shape) or not _is_one(dims(shape), from_right):
        return NotImplemented
    values = call.compute([x.values, shape])[0]
    return Padded(values, x.count, values.ndim + from_right)


def _is_one(shape: Sequence[Any], from_right: int) -> bool:
    """Whether a shape has size 1, or none, at a place counted from its end."""
    return len(shape) < -from_right or (isinstance(shape[from_right], int) and shape[from_right] == 1)
