"""Operators that pick elements by index, put them in places, or find where they are.

Indices are within bounds, as ONNX asks: that is promised to XLA, which clamps those of gathers that are not, and skips
those of scatters. Known ones are checked. Definitions: the ONNX operator specification, opset 28.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.types import DType
from ..lowering import Call, DataDependentError, lowers
from ..values import concrete, counted, dims, to_dtype, traced

Array = Any
Known = np.ndarray[Any, Any]

_INSIDE = "promise_in_bounds"


def _from_front(indices: Array, size: Any) -> Array:
    """``indices`` with negative ones, which count from the end of ``size`` elements, made non-negative."""
    if jnp.issubdtype(indices.dtype, jnp.unsignedinteger):
        return indices
    return jnp.where(indices < 0, indices + jnp.asarray(size, indices.dtype), indices)


# reading


@lowers("Gather")
def _gather(call: Call, x: Array, indices: Array) -> Array:
    axis = counted(call["axis"], x.ndim)
    size = x.shape[axis]
    known = call.known(1)
    if known is not None and isinstance(size, int):
        if np.any((known < -size) | (known >= size)):
            raise call.error(f"an index is out of the bounds of {size} elements")
        at = np.where(known < 0, known + size, known)
        if at.ndim == 0:
            return lax.index_in_dim(x, int(at), axis, keepdims=False)
        if at.ndim == 1 and (step := _common_step(at)):
            return lax.slice_in_dim(x, int(at[0]), int(at[-1]) + 1, step, axis)
        indices = jnp.asarray(at)
    elif known is not None and known.ndim == 0:
        return lax.dynamic_index_in_dim(x, indices, axis, keepdims=False)
    return x.at[(*_whole(axis), indices)].get(mode=_INSIDE)


def _whole(count: int) -> tuple[slice, ...]:
    return (slice(None),) * count


def _common_step(at: Known) -> int:
    """The positive distance of all neighbours in ``at``, or 0."""
    steps = np.unique(np.diff(at))
    return 1 if at.size == 1 else int(steps[0]) if steps.size == 1 and steps[0] > 0 else 0


@lowers("GatherElements")
def _gather_elements(call: Call, x: Array, indices: Array) -> Array:
    axis = counted(call["axis"], x.ndim)
    if any(i != axis and n != x.shape[i] and not isinstance(n, int) for i, n in enumerate(indices.shape)):
        at = [lax.broadcasted_iota(indices.dtype, indices.shape, i) for i in range(x.ndim)]
        at[axis] = indices
        return x.at[tuple(at)].get(mode=_INSIDE)
    region = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return jnp.take_along_axis(x[region], _from_front(indices, x.shape[axis]), axis=axis, mode=_INSIDE)


@lowers("GatherND")
def _gather_nd(call: Call, x: Array, indices: Array) -> Array:
    def pick(x: Array, indices: Array) -> Array:
        return x.at[_tuples(indices)].get(mode=_INSIDE)

    for _ in range(call["batch_dims"]):
        pick = jax.vmap(pick)
    return pick(x, indices)


def _tuples(indices: Array) -> tuple[Array, ...]:
    """What indexes a tensor with the tuples that the last dimension of ``indices`` holds."""
    return tuple(indices[..., i] for i in range(indices.shape[-1]))


# writing

_REDUCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "add": jnp.add,
    "mul": jnp.multiply,
    "max": jnp.maximum,
    "min": jnp.minimum,
}


def store(call: Call, x: Array, at: tuple[Array, ...], updates: Array, mode: Any = _INSIDE) -> Array:
    """``x`` with ``updates`` at these places, as the attribute ``reduction`` says; ``mode`` is for those outside."""
    place = x.at[at]
    updates = updates.astype(x.dtype)
    match call["reduction"]:
        case None | "none":
            return place.set(updates, mode=mode)
        case "add":
            return place.add(updates, mode=mode)
        case "mul":
            return place.multiply(updates, mode=mode)
        case "max":
            return place.max(updates, mode=mode)
        case "min":
            return place.min(updates, mode=mode)
        case other:
            raise call.error(f"there is no reduction {other!r}")


def _box(x: Array, at: Known) -> tuple[list[int], list[int]] | None:
    """The first corner and the sizes of the box that the tuples in the last dimension of ``at`` fill, in order."""
    count = at.shape[-1]
    sizes = x.shape[:count]
    if at.size == 0 or not all(isinstance(size, int) for size in sizes):
        return None
    at = np.where(at < 0, at + np.array(sizes), at).reshape(-1, count)
    first, last = at.min(0), at.max(0)
    extents = last - first + 1
    if first.min() < 0 or np.any(last >= sizes) or np.prod(extents) != len(at):
        return None
    return (
        (first.tolist(), extents.tolist()) if np.all(at == np.indices(extents).reshape(count, -1).T + first) else None
    )


def _store_box(call: Call, x: Array, box: tuple[list[int], list[int]], updates: Array) -> Array:
    """As `store`, for a box: XLA updates a slice faster than it scatters, and compiles it much faster."""
    start, sizes = box
    whole = x.shape[len(start) :]
    updates = updates.astype(x.dtype).reshape(*sizes, *whole)
    start = start + [0] * len(whole)
    reduction = call["reduction"] or "none"
    if reduction != "none":
        ends = [a + n for a, n in zip(start, updates.shape, strict=True)]
        updates = _REDUCTIONS[reduction](lax.slice(x, start, ends), updates)
    return lax.dynamic_update_slice(x, updates, start)


@lowers("Scatter", "ScatterElements")
def _scatter_elements(call: Call, x: Array, indices: Array, updates: Array) -> Array:
    axis = counted(call["axis"], x.ndim)
    known = call.known(1)
    if known is not None and known.ndim:
        places = np.indices(known.shape)
        places[axis] = known
        if (box := _box(x, np.moveaxis(places, 0, -1))) is not None:
            return _store_box(call, x, box, updates)
    at = [lax.broadcasted_iota(indices.dtype, indices.shape, i) for i in range(x.ndim)]
    at[axis] = indices
    return store(call, x, tuple(at), updates)


@lowers("ScatterND")
def _scatter_nd(call: Call, x: Array, indices: Array, updates: Array) -> Array:
    known = call.known(1)
    if known is not None and (box := _box(x, known)) is not None:
        return _store_box(call, x, box, updates)
    return store(call, x, _tuples(indices), updates)


@lowers("TensorScatter")
def _tensor_scatter(call: Call, cache: Array, update: Array, starts: Array = None) -> Array:
    axis = counted(call["axis"], cache.ndim)
    if isinstance(cache.shape[axis], int) and isinstance(update.shape[axis], int):
        if starts is None:
            return lax.dynamic_update_slice_in_dim(cache, update, 0, axis)
        if call["mode"] != "circular":
            return jax.vmap(lambda c, u, s: lax.dynamic_update_slice_in_dim(c, u, s, axis - 1))(cache, update, starts)
    starts = jnp.zeros(cache.shape[0], int) if starts is None else starts
    places = (starts[:, None] + jnp.arange(update.shape[axis])) % cache.shape[axis]

    def write(cache: Array, update: Array, at: Array) -> Array:
        return cache.at[(*_whole(axis - 1), at)].set(update, mode=_INSIDE)

    return jax.vmap(write)(cache, update, places)


# order


@lowers("TopK", static={1})
def _top_k(call: Call, x: Array, k: Known) -> tuple[Array, Array]:
    axis, count = counted(call["axis"], x.ndim), dims(k)[0]
    if isinstance(count, int) and isinstance(x.shape[axis], int) and not 0 <= count <= x.shape[axis]:
        raise call.error(f"the first {count} of {x.shape[axis]} elements")
    order: Callable[[Array], Array] = (lambda v: v) if call["largest"] else _reversed
    values, indices = lax.top_k(jnp.moveaxis(order(_ranked(x)), axis, -1), count)
    return jnp.moveaxis(order(values), -1, axis), jnp.moveaxis(indices, -1, axis).astype(call.dtype(1))


def _ranked(x: Array) -> Array:
    """``x`` without signs of zeros and of NaN, by which XLA would tell equal elements apart."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jnp.where(jnp.isnan(x), jnp.asarray(np.nan, x.dtype), jnp.where(x == 0, 0, x))


def _reversed(x: Array) -> Array:
    """``x`` in the opposite order, without overflow; its own inverse."""
    return ~x if jnp.issubdtype(x.dtype, jnp.integer) else -x


@lowers("OneHot", static={1})
def _one_hot(call: Call, indices: Array, depth: Known, values: Array) -> Array:
    size = dims(depth)[0]
    axis = counted(call["axis"], indices.ndim + 1)
    wide = indices if jnp.issubdtype(indices.dtype, jnp.signedinteger) else indices.astype(to_dtype(DType.INT64))
    at = jnp.expand_dims(_from_front(wide, size), axis)
    shape = (*indices.shape[:axis], size, *indices.shape[axis:])
    return jnp.where(at == lax.broadcasted_iota(at.dtype, shape, axis), values[1], values[0])


# results whose sizes depend on data


def _elements(call: Call, index: int) -> Known:
    """The elements of operand ``index``, which decide a shape.

    Raises:
        DataDependentError: they are traced.
    """
    known = concrete(call.operands[index])
    if known is None:
        raise DataDependentError(call.node, "the shape of its result depends on data: it runs, but cannot be traced")
    return known


@lowers("NonZero", data_dependent=True)
def _non_zero(call: Call, x: Array) -> Array:
    elements = _elements(call, 0)
    found = np.nonzero(elements) if elements.ndim else np.nonzero(elements.reshape(1))
    return traced(np.stack(found).astype(np.int64))


@lowers("Compress", data_dependent=True)
def _compress(call: Call, x: Array, condition: Array) -> Array:
    kept = traced(np.flatnonzero(_elements(call, 1)))
    axis = call["axis"]
    return jnp.take(x.reshape(-1), kept) if axis is None else jnp.take(x, kept, axis=axis)


@lowers("Unique", data_dependent=True)
def _unique(call: Call, x: Array) -> tuple[Array, ...]:
    elements, axis = _elements(call, 0), call["axis"]
    if axis is None:
        x, elements = x.reshape(-1), elements.reshape(-1)
    if elements.dtype.kind not in "biuf":
        elements = elements.astype(np.float32)  # numpy sorts no bfloat16
    _, first, inverse, counts = np.unique(
        elements, return_index=True, return_inverse=True, return_counts=True, axis=axis, equal_nan=False
    )
    inverse = inverse.reshape(-1)
    if not call["sorted"]:
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        first, inverse, counts = first[order], rank[inverse], counts[order]
    numbers: Sequence[Known] = [v.astype(np.int64) for v in (first, inverse, counts)]
    return (jnp.take(x, traced(first), axis=axis or 0), *(traced(v) for v in numbers))
