"""Pooling: windows of (N, C, …) reduced to their mean, maximum or norm, and back.

Definitions: the ONNX operator specification, opset 28.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers
from ..values import dims
from ..windows import Window, window_of
from .grid_sample import scalar

Array = Any


def _window(call: Call, x: Array) -> Window:
    return window_of(call, x.shape[2:], call["kernel_shape"], ceil=bool(call["ceil_mode"]))


def _reduce(x: Any, start: Any, function: Callable[..., Any], window: Window) -> Any:
    """``x``, or several operands, reduced over the window, of which padding holds ``start``."""
    return lax.reduce_window(
        x,
        start,
        function,
        (1, 1, *window.sizes),
        (1, 1, *window.strides),
        [(0, 0), (0, 0), *window.pads],
        window_dilation=(1, 1, *window.dilations),
    )


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


# the mean


@lowers("AveragePool")
def _average_pool(call: Call, x: Array) -> Array:
    window = _window(call, x)
    count = _counts(window, x.shape[2:], with_padding=bool(call["count_include_pad"]))
    return (_sums(x, window) / count).astype(x.dtype)


def _sums(x: Array, window: Window) -> Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _reduce(x, np.zeros((), x.dtype), lax.add, window)


def _counts(window: Window, spatial: tuple[Any, ...], *, with_padding: bool) -> Any:
    """Over how many elements the mean is taken: a number, or an array of the form of the windows' positions."""
    if not all(isinstance(n, int) for n in spatial):
        return _sums_of_ones(window, spatial, with_padding=with_padding)
    total: Any = 1.0
    for i, n in enumerate(spatial):
        before, after = window.pads[i]
        low, high = (-before, n + after - window.excess[i]) if with_padding else (0, n)
        along = _count(window, i, low, high)
        is_constant = isinstance(along, np.ndarray) and (along == along[:1]).all()
        total = total * (float(along[0]) if is_constant and along.size else along.reshape(-1, *_ones(spatial, i)))
    return total


def _sums_of_ones(window: Window, spatial: tuple[Any, ...], *, with_padding: bool) -> Array:
    """As `_counts`, of symbolic sizes: by a window of the same form, so that JAX knows the positions to be as many."""
    kept = [(b, a - e) if with_padding else (0, 0) for (b, a), e in zip(window.pads, window.excess, strict=True)]
    rest = [(b - i, a - j) for (b, a), (i, j) in zip(window.pads, kept, strict=True)]
    ones = jnp.ones((1, 1, *(n + b + a for n, (b, a) in zip(spatial, kept, strict=True))), jnp.float32)
    return _sums(ones, replace(window, pads=tuple(rest)))


def _ones(spatial: tuple[Any, ...], axis: int) -> tuple[int, ...]:
    return (1,) * (len(spatial) - 1 - axis)


def _count(window: Window, axis: int, low: Any, high: Any) -> Any:
    """How many elements from ``low`` to ``high`` the window covers along ``axis``, at each position."""
    count, size, before = window.counts[axis], window.sizes[axis], window.pads[axis][0]
    is_known = all(isinstance(n, int) for n in (count, low, high, before))
    xp: Any = np if is_known else jnp
    starts = xp.arange(count) * window.strides[axis] - scalar(before, int)
    covered = starts[:, None] + np.arange(size) * window.dilations[axis]
    inside = (covered >= scalar(low, covered.dtype)) & (covered < scalar(high, covered.dtype))
    return inside.sum(axis=1).astype(np.float32)


@lowers("GlobalAveragePool")
def _global_average_pool(call: Call, x: Array) -> Array:
    return jnp.mean(x, axis=_spatial(x), keepdims=True)


# the maximum


@lowers("MaxPool")
def _max_pool(call: Call, x: Array) -> Any:
    window = _window(call, x)
    # JAX has no gradient of a dilated maximum, but one of reading the elements that are the largest
    is_read = any(d > 1 for d in window.dilations) and jnp.issubdtype(x.dtype, jnp.floating)
    if not is_read and not call.is_wanted(1):
        return _maxima(x, window)
    index = _argmax(lax.stop_gradient(x), window)
    y = _read(x, index) if is_read else _maxima(x, window)
    return y, _as_indices(
        index, x.shape, bool(call["storage_order"]), call.dtype(1) if call.is_wanted(1) else index.dtype
    )


def _smallest(dtype: Any) -> Any:
    return np.array(-np.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).min, dtype)


def _maxima(x: Array, window: Window) -> Array:
    return _reduce(x, _smallest(x.dtype), lax.max, window)


def _argmax(x: Array, window: Window) -> Array:
    """Where the first maximum of each window is, among the spatial elements of its channel; NaN is the largest."""
    spatial = x.shape[2:]
    index = jnp.arange(math.prod(spatial), dtype=jnp.int32).reshape(1, 1, *spatial)

    def larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, i), (y, j) = a, b
        equal = (x == y) | ((x != x) & (y != y))
        first = (x > y) | ((x != x) & (y == y)) | (equal & (i < j))
        return lax.select(first, x, y), lax.select(first, i, j)

    start = (_smallest(x.dtype), np.int32(np.iinfo(np.int32).max))
    found: Array = _reduce((x, jnp.broadcast_to(index, x.shape)), start, larger, window)[1]
    return found


def _read(x: Array, index: Array) -> Array:
    """The elements of each channel at ``index``."""
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    flat = jnp.take_along_axis(flat, index.reshape(*index.shape[:2], math.prod(index.shape[2:])), axis=2, mode="clip")
    return flat.reshape(index.shape)


def _as_indices(index: Array, shape: tuple[Any, ...], is_column_major: bool, dtype: Any) -> Array:
    """Indices among the elements of a channel as indices among all of a tensor of this shape."""
    index = index.astype(dtype)
    batch, channels, *spatial = shape
    if is_column_major:
        rest, index, size = index, jnp.zeros_like(index), jnp.asarray(math.prod(spatial)).astype(dtype)
        for n in reversed(spatial):
            size = size // scalar(n, dtype)
            index, rest = index + rest % scalar(n, dtype) * size, rest // scalar(n, dtype)
    plane = jnp.arange(batch * channels, dtype=dtype).reshape(batch, channels, *(1,) * len(spatial))
    return plane * scalar(math.prod(spatial), dtype) + index


@lowers("GlobalMaxPool")
def _global_max_pool(call: Call, x: Array) -> Array:
    return jnp.max(x, axis=_spatial(x), keepdims=True)


@lowers("MaxUnpool", static={2})
def _max_unpool(call: Call, x: Array, index: Array, output_shape: np.ndarray[Any, Any] | None = None) -> Array:
    """Indices count elements of the shape that follows from the window; a larger output has zeros after them."""
    sizes, rank = call["kernel_shape"], x.ndim - 2
    strides, pads = call["strides"] or (1,) * rank, call["pads"] or (0,) * (2 * rank)
    spatial = [
        (x.shape[2 + i] - 1) * strides[i] + sizes[i] - pads[i] - pads[rank + i] for i in range(rank)
    ]  # fmt: skip
    shape = (*x.shape[:2], *spatial)
    y = jnp.zeros(math.prod(shape), x.dtype).at[index.reshape(-1)].set(x.reshape(-1), mode="drop").reshape(shape)
    if output_shape is None:
        return y
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, m - n, 0) for m, n in zip(dims(output_shape), shape, strict=True)])


# norms


@lowers("LpPool")
def _lp_pool(call: Call, x: Array) -> Array:
    window = _window(call, x)
    return _norm(x, call["p"], lambda powers: _sums(powers, window))


@lowers("GlobalLpPool")
def _global_lp_pool(call: Call, x: Array) -> Array:
    return _norm(x, call["p"], lambda powers: jnp.sum(powers, axis=_spatial(x), keepdims=True))


def _norm(x: Array, p: int, sums: Callable[[Array], Array]) -> Array:
    """The p-norm. Where it is 0, its gradient is 0."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * lax.sign(wide)  # as jnp.abs, but its slope at 0 is 0
    total = sums(lax.integer_pow(wide, p))
    if p == 1:
        return total.astype(x.dtype)
    is_zero = total == 0
    safe = jnp.where(is_zero, 1, total)
    root = jnp.sqrt(safe) if p == 2 else jnp.power(safe, 1 / p)
    return jnp.where(is_zero, 0, root).astype(x.dtype)
