"""Operators that describe, create, rearrange, cut and join tensors without computing with their elements.

Sizes may be symbolic dimensions of ``jax.export``. Definitions: the ONNX operator specification, opset 28.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.convert.sparse import to_dense
from ..lowering import Call, lowers
from ..values import counted, dims, from_dims, ints, is_symbolic, larger, to_dtype, traced

Array = Any
Known = np.ndarray[Any, Any]


def _product(sizes: Any) -> Any:
    return math.prod(sizes)


# description


@lowers("Shape")
def _shape(call: Call, x: Array) -> Known:
    return from_dims(x.shape[call["start"] or 0 : call["end"]])


@lowers("Size")
def _size(call: Call, x: Array) -> Known:
    return from_dims([_product(x.shape)]).reshape(())


# the same elements in another shape


@lowers("Reshape", static={1})
def _reshape(call: Call, x: Array, shape: Known) -> Array:
    target = dims(shape)
    if not call["allowzero"]:
        if any(isinstance(d, int) and d == 0 for d in target[x.ndim :]):
            raise call.error(f"copies more dimensions than the {x.ndim} of its operand")
        target = [x.shape[i] if isinstance(d, int) and d == 0 else d for i, d in enumerate(target)]
    return x.reshape(tuple(target))


@lowers("Flatten")
def _flatten(call: Call, x: Array) -> Array:
    axis = x.ndim if call["axis"] == x.ndim else counted(call["axis"], x.ndim)
    return x.reshape(_product(x.shape[:axis]), _product(x.shape[axis:]))


@lowers("Squeeze", static={1})
def _squeeze(call: Call, x: Array, axes: Known | None = None) -> Array:
    ones = [i for i, d in enumerate(x.shape) if isinstance(d, int) and d == 1]
    return jnp.squeeze(x, tuple(ones if axes is None else ints(axes)))


@lowers("Unsqueeze", static={1})
def _unsqueeze(call: Call, x: Array, axes: Known) -> Array:
    return jnp.expand_dims(x, tuple(ints(axes)))


@lowers("Transpose")
def _transpose(call: Call, x: Array) -> Array:
    return jnp.transpose(x, call["perm"])


# repetition


@lowers("Expand", static={1})
def _expand(call: Call, x: Array, shape: Known) -> Array:
    return jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, tuple(dims(shape))))


@lowers("Tile", static={1})
def _tile(call: Call, x: Array, repeats: Known) -> Array:
    counts = dims(repeats)
    if len(counts) != x.ndim:
        raise call.error(f"{len(counts)} repeats for {x.ndim} dimensions")
    kept: list[Any] = []
    wide: list[Any] = []
    for count, size in zip(counts, x.shape, strict=True):
        if not isinstance(count, int) or count != 1:
            kept.append(1)
            wide.append(count)
        kept.append(size)
        wide.append(size)
    result = jnp.broadcast_to(x.reshape(kept), wide)
    return result.reshape(tuple(c * d for c, d in zip(counts, x.shape, strict=True)))


# pieces


@lowers("Concat")
def _concat(call: Call, *operands: Array) -> Array:
    return operands[0] if len(operands) == 1 else jnp.concatenate(operands, axis=call["axis"])


@lowers("Split", static={1})
def _split(call: Call, x: Array, sizes: Known | None = None) -> tuple[Array, ...]:
    axis = counted(call["axis"], x.ndim)
    whole = x.shape[axis]
    if sizes is None:
        count = call["num_outputs"] or len(call.node.results)
        step = -(-whole // count)
        ends = [jax.core.min_dim(step * (i + 1), whole) for i in range(count - 1)] + [whole]
    else:
        ends = [sum(dims(sizes)[: i + 1]) for i in range(sizes.size)]
        if isinstance(whole, int) and isinstance(ends[-1], int) and ends[-1] != whole:
            raise call.error(f"pieces of {ends[-1]} in total for {whole} elements")
    return tuple(lax.slice_in_dim(x, a, b, axis=axis) for a, b in zip([0, *ends[:-1]], ends, strict=True))


@lowers("Slice", static={1, 2, 3, 4})
def _slice(
    call: Call, x: Array, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None
) -> Array:
    along = list(range(starts.size)) if axes is None else ints(axes)
    strides = [1] * starts.size if steps is None else ints(steps)
    for start, end, axis, step in zip(dims(starts), dims(ends), along, strides, strict=True):
        if step == 0:
            raise call.error("a step of 0")
        x = _cut(x, counted(axis, x.ndim), start, end, step)
    return x


def _cut(x: Array, axis: int, start: Any, end: Any, step: int) -> Array:
    """The elements ``start``, ``start + step`` … before ``end`` along ``axis``, with ONNX's reading of the limits."""
    size = x.shape[axis]
    if _is(size, 0):
        return x
    start, end = _from_end(start, size), _from_end(end, size)
    if step > 0:
        end = _clamped(end, 0, size)
        if isinstance(start, int) and _is(end, size):  # what is left has the size of a slice up to -start
            start = size - larger(size - start, 0)
        start = _clamped(start, 0, size)
        end = larger(start, end)
        return x if _is(start, 0) and _is(end, size) and step == 1 else lax.slice_in_dim(x, start, end, step, axis)
    start, end = _clamped(start, 0, size - 1), _clamped(end, -1, size - 1)
    if not all(isinstance(v, int) for v in (start, end, size)):
        start, end = size - 1 - start, size - 1 - end
        return lax.slice_in_dim(lax.rev(x, (axis,)), start, larger(start, end), -step, axis)
    count = larger((start - end - step - 1) // -step, 0)
    first = start + (count - 1) * step
    if _is(count, 0):
        return lax.slice_in_dim(x, 0, 0, axis=axis)
    return lax.rev(lax.slice_in_dim(x, first, start + 1, -step, axis), (axis,))


def _is(a: Any, b: Any) -> bool:
    return bool(a == b)


def _from_end(position: Any, size: Any) -> Any:
    """``position``, from the front. A symbolic one is a position from the front unless it always is negative."""
    if not isinstance(size, int) and isinstance(position, int) and position <= -1 << 30:
        return position  # "to the front", of whatever size
    return position + size if _at_most(position, -1) else position


def _at_most(a: Any, b: Any) -> bool:
    """Whether ``a <= b`` for all sizes."""
    try:
        return bool(a <= b)
    except jax.errors.InconclusiveDimensionOperation:
        return False


def _clamped(position: Any, low: Any, high: Any) -> Any:
    if not isinstance(high, int) and isinstance(position, int) and position >= 1 << 30:
        return high  # "to the end", of whatever size
    return larger(jax.core.min_dim(position, high), low)


# borders


@lowers("Pad", static={1, 3})
def _pad(call: Call, x: Array, pads: Known, value: Array = None, axes: Known | None = None) -> Array:
    along = list(range(x.ndim)) if axes is None else [counted(a, x.ndim) for a in ints(axes)]
    sizes = dims(pads)
    if len(sizes) != 2 * len(along):
        raise call.error(f"{len(sizes)} pads for {len(along)} dimensions")
    widths: list[tuple[Any, Any]] = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        widths[axis] = sizes[i], sizes[i + len(along)]
    mode = call["mode"]
    if mode == "constant":
        fill = jnp.zeros((), x.dtype) if value is None else value.reshape(()).astype(x.dtype)
        if x.dtype == bool:  # lax.pad takes numbers
            return lax.pad(x.astype(jnp.int8), fill.astype(jnp.int8), [(a, b, 0) for a, b in widths]).astype(bool)
        return lax.pad(x, fill, [(a, b, 0) for a, b in widths])
    if mode not in ("edge", "reflect", "wrap"):
        raise call.error(f"there is no mode {mode!r}")
    for axis, (before, after) in enumerate(widths):
        x = _continued(x, axis, before, after, mode)
    return x


def _continued(x: Array, axis: int, before: Any, after: Any, mode: str) -> Array:
    """``x`` with more elements at both ends of ``axis``, which go on as ``mode`` says; negative widths remove some."""
    removed = [-w if isinstance(w, int) and w < 0 else 0 for w in (before, after)]
    before, after = before + removed[0], after + removed[1]
    size = x.shape[axis] - sum(removed)
    if _is(before, 0) and _is(after, 0):
        return lax.slice_in_dim(x, removed[0], removed[0] + size, axis=axis) if any(removed) else x
    if all(isinstance(n, int) for n in (before, after, size)):
        x = lax.slice_in_dim(x, removed[0], removed[0] + size, axis=axis)
        return jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)], mode=mode)
    at = jnp.arange(before + size + after) - before
    if mode == "edge":
        at = jnp.clip(at, 0, size - 1)
    elif mode == "wrap":
        at = at % size
    else:  # there and back again: 0 1 2 1 0 1 …
        period = jnp.maximum(2 * (jnp.asarray(size) - 1), 1)
        at = jnp.minimum(at % period, -at % period)
    return x.at[(slice(None),) * axis + (at + removed[0],)].get(mode="promise_in_bounds")


# creation


@lowers("Constant", refuses=lambda node: None if "sparse_value" in node.attrs else "is no tensor")
def _constant(call: Call) -> Known:
    """A sparse tensor; dense ones are constants of the graph."""
    return to_dense(call["sparse_value"])


@lowers("ConstantOfShape", static={0})
def _constant_of_shape(call: Call, shape: Known) -> Array:
    value = call["value"]
    fill = np.zeros((), np.float32) if value is None else value.numpy().reshape(())
    return jnp.full(tuple(dims(shape)), traced(fill))


@lowers("EyeLike")
def _eye_like(call: Call, x: Array) -> Array:
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape, i) for i in range(2))
    return (column - row == call["k"]).astype(call.dtype())


@lowers("Range", static={0, 1, 2})
def _range(call: Call, start: Known, limit: Known, delta: Known) -> Array:
    dtype = to_dtype(call.node.given(0).dtype)
    if any(map(is_symbolic, (start, limit, delta))):
        first, last, step = (dims(v)[0] for v in (start, limit, delta))
        if not isinstance(step, int) or step == 0:
            raise call.error("a step that is not a number other than 0")
        count = (last - first + step - (1 if step > 0 else -1)) // step
        at = jnp.arange(larger(count, 0), dtype=dtype)
        return at if _is(first, 0) and step == 1 else jnp.asarray(first, dtype) + at * step
    if not float(delta.reshape(())):
        raise call.error("a step of 0")
    if np.issubdtype(dtype, np.integer):
        return np.arange(*(int(v.reshape(())) for v in (start, limit, delta)), dtype=dtype)
    first, last, step = (float(v.reshape(())) for v in (start, limit, delta))
    wide = dtype if dtype.itemsize > 2 or call["stash_type"] != 1 else np.dtype(np.float32)
    at = jnp.arange(max(math.ceil((last - first) / step), 0), dtype=wide)
    return (wide.type(first) + at * wide.type(step)).astype(dtype)


# parts of matrices, and sequences in batches


@lowers("Trilu")
def _trilu(call: Call, x: Array, k: Array = None) -> Array:
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape[-2:], i) for i in range(2))
    known = call.known(1)
    offset: Any = 0 if k is None else k.reshape(()) if known is None else int(known.reshape(()))
    kept = column - row >= offset if call["upper"] else column - row <= offset
    return jnp.where(kept, x, jnp.zeros((), x.dtype))


@lowers("ReverseSequence")
def _reverse_sequence(call: Call, x: Array, lengths: Array) -> Array:
    time, batch = (counted(call[name], x.ndim) for name in ("time_axis", "batch_axis"))
    at = jnp.arange(x.shape[time], dtype=lengths.dtype)
    length = lengths[:, None]
    source = jnp.where(at < length, length - 1 - at, at)  # [batch, time]
    source = source.T if time < batch else source
    shape = [d if i in (time, batch) else 1 for i, d in enumerate(x.shape)]
    return jnp.take_along_axis(x, source.reshape(shape), axis=time, mode="promise_in_bounds")
