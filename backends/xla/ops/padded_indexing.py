"""Operators that pick elements of padded values, or by padded indices, or put them in places.

See `planish.backends.xla.padded`. Definitions: the ONNX operator specification, opset 28.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..lowering import Call, lowers_padded
from ..padded import Entries, Padded, has_entries
from ..values import dims, from_dims, ints
from .indexing import store

Array = Any
Known = np.ndarray[Any, Any]

_ALL = 1 << 30  # "to the end", of whatever size


def _within(indices: Array, count: Array) -> Array:
    """Indices with negative ones, which count from the end of the entries, made non-negative."""
    if jnp.issubdtype(indices.dtype, jnp.unsignedinteger):
        return indices
    return jnp.where(indices < 0, indices + count.astype(indices.dtype), indices)


def _of(call: Call, like: Padded | None, axis: int, *operands: Any) -> Any:
    """The result for the values of ``operands``: as many entries along ``axis`` as ``like``, if that is given."""
    (result,) = call.compute([o.values if isinstance(o, Padded) else o for o in operands])
    return result if like is None else Padded(result, like.count, axis)


@lowers_padded("Gather")
def _gather(call: Call, x: Any, indices: Any) -> Any:
    axis = call["axis"] % x.ndim
    if isinstance(x, Padded) and x.axis != axis:
        place = x.axis if x.axis < axis else x.axis + indices.ndim - 1
        return NotImplemented if isinstance(indices, Padded) else _of(call, x, place, x, indices)
    if not isinstance(indices, Padded):
        if call.known(1) is not None:  # whether there is such an entry shows only in the data
            return NotImplemented
        return _of(call, None, 0, x, _within(indices, x.count))
    picked = _within(indices.values, x.count) if isinstance(x, Padded) else indices.values
    return _of(call, indices, axis + indices.axis, x, picked)


@lowers_padded("GatherElements")
def _gather_elements(call: Call, x: Any, indices: Any) -> Any:
    axis = call["axis"] % x.ndim
    if not isinstance(indices, Padded):
        return NotImplemented
    if isinstance(x, Padded):
        is_entrywise = x.axis == indices.axis != axis and x.has_entries_of(indices)
    else:
        is_entrywise = indices.axis == axis
    return _of(call, indices, indices.axis, x, indices) if is_entrywise else NotImplemented


@lowers_padded("GatherND")
def _gather_nd(call: Call, x: Any, indices: Any) -> Any:
    batch = call["batch_dims"]
    depth = indices.values.shape[-1] if isinstance(indices, Padded) else indices.shape[-1]
    if isinstance(indices, Padded) and indices.axis == indices.ndim - 1:
        return NotImplemented
    if not isinstance(x, Padded):
        return NotImplemented if indices.axis < batch else _of(call, indices, indices.axis, x, indices)
    if x.axis < batch:
        same = isinstance(indices, Padded) and indices.axis == x.axis and indices.has_entries_of(x)
        return _of(call, x, x.axis, x, indices) if same else NotImplemented
    if x.axis >= batch + depth:
        place = x.axis - batch - depth + indices.ndim - 1
        return NotImplemented if isinstance(indices, Padded) else _of(call, x, place, x, indices)
    if not isinstance(indices, Padded):
        return NotImplemented
    along = jnp.arange(depth) == x.axis - batch
    picked = jnp.where(along, _within(indices.values, x.count), indices.values)
    return NotImplemented if indices.axis < batch else _of(call, indices, indices.axis, x, picked)


@lowers_padded("ScatterElements", "ScatterND")
def _scatter(call: Call, x: Any, indices: Any, updates: Any) -> Any:
    """What is no entry is put outside of ``x``, and dropped."""
    if isinstance(x, Padded) or not isinstance(indices, Padded) or not isinstance(updates, Padded):
        return NotImplemented
    if indices.axis != updates.axis or not indices.has_entries_of(updates):
        return NotImplemented
    outside = jnp.iinfo(indices.values.dtype).max
    places = indices.filled(outside)
    if call.node.op == "ScatterND":
        if indices.axis == indices.ndim - 1:
            return NotImplemented
        at = [places[..., i] for i in range(places.shape[-1])]
    else:
        at = list(jnp.indices(places.shape, places.dtype, sparse=True))
        at[call["axis"] % x.ndim] = places
    return store(call, x, tuple(at), updates.values, "drop")


@lowers_padded("Slice")
def _slice(
    call: Call, x: Any, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None
) -> Any:
    if not isinstance(x, Padded):
        return NotImplemented
    along = [a % x.ndim for a in (range(starts.size) if axes is None else ints(axes))]
    limits = zip(dims(ends), along, strict=True)
    ends = from_dims(x.size if a == x.axis and isinstance(d, Entries) and d.are_of(x) else d for d, a in limits)
    if any(has_entries(o) for o in (starts, ends, axes, steps)):
        return NotImplemented
    strides = [1] * starts.size if steps is None else ints(steps)
    count = x.count
    for start, end, axis, step in zip(dims(starts), dims(ends), along, strides, strict=True):
        if axis != x.axis:
            continue
        size = x.size if isinstance(x.size, int) else _ALL
        end = size if end == x.size else end
        if step != 1 or not all(isinstance(i, int) and i >= 0 for i in (start, end)):
            return NotImplemented
        if start > 0 or end < size:
            count = call.once(f"from {start} to {end}", [x.count], partial(_between, x.count, start, end))
    return Padded(call.compute([x.values, starts, ends, axes, steps])[0], count, x.axis)


def _between(count: Array, start: int, end: int) -> Array:
    """How many of the first ``count`` entries are among those from ``start`` to ``end``."""
    return jnp.maximum(jnp.minimum(count, min(end, _ALL)) - min(start, _ALL), 0)
