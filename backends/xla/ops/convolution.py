"""Convolutions, and what is made of the same windows: (N, C, …) times (M, C/group, …).

Definitions: the ONNX operator specification, opset 28.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers
from ..precision import precision_of
from ..values import concrete, dims, ints
from ..windows import Window, pad_spatial, steps_of, window_of
from .grid_sample import linear_taps, sample

__all__ = ["add_bias", "convolve", "convolve_integers"]

Array = Any
_EXACT = 1 << 24  # up to here float32 holds every integer


def convolve(
    x: Array,
    w: Array,
    window: Window,
    *,
    groups: int = 1,
    precision: lax.Precision | None = None,
    preferred_element_type: Any = None,
    pad_value: Any = None,
) -> Array:
    """A convolution without bias, as ONNX's Conv computes it.

    Args:
        x: operand, (N, C, …), of which any dimension but C may be symbolic.
        w: filters, (M, C / groups, …), of the type of ``x``.
        window: where the filters are put; see `planish.backends.xla.windows.window_of`.
        groups: into how many groups the channels are divided.
        precision: of products of floating-point numbers.
        preferred_element_type: in which sums are computed and returned; None is the type of ``x``.
        pad_value: a scalar that pads ``x`` (a zero point, say), which may be traced; None is 0.

    Returns:
        (N, M, …).
    """
    pads = window.pads
    if pad_value is not None or not all(isinstance(p, int) for pair in pads for p in pair):
        x = pad_spatial(x, 0 if pad_value is None else pad_value, pads)
        pads = ((0, 0),) * len(pads)
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        pads,
        rhs_dilation=window.dilations,
        feature_group_count=groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def add_bias(y: Array, b: Array | None) -> Array:
    """``y`` in (N, M, …) plus ``b`` in (M)."""
    return y if b is None else y + b.reshape((1, -1) + (1,) * (y.ndim - 2))


@lowers("Conv")
def _conv(call: Call, x: Array, w: Array, b: Array = None) -> Array:
    window = window_of(call, x.shape[2:], w.shape[2:])
    return add_bias(convolve(x, w, window, groups=call["group"], precision=precision_of(call)), b)


# transposed


@lowers("ConvTranspose")
def _conv_transpose(call: Call, x: Array, w: Array, b: Array = None) -> Array:
    rank, groups = x.ndim - 2, call["group"]
    strides, dilations, _ = steps_of(call, w.shape[2:], rank)
    extents = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    pads = _transposed_pads(call, x.shape[2:], extents, strides)
    if groups > 1:  # (C, M / groups, …): XLA wants the groups among the filters
        w = w.reshape(groups, -1, *w.shape[1:])
        w = jnp.moveaxis(w, 0, 1).reshape(w.shape[1], -1, *w.shape[3:])
    if not all(isinstance(p, int) for pair in pads for p in pair):
        x, pads, strides = pad_spatial(x, 0, pads, strides), [(0, 0)] * rank, (1,) * rank
    axes = tuple(range(rank + 2))
    y = lax.conv_general_dilated(
        x,
        jnp.flip(w, axes[2:]),
        (1,) * rank,
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=lax.ConvDimensionNumbers(axes, (1, 0, *axes[2:]), axes),
        feature_group_count=groups,
        precision=precision_of(call),
    )
    return add_bias(y, b)


def _transposed_pads(
    call: Call, spatial: Sequence[Any], extents: Sequence[int], strides: Sequence[int]
) -> list[tuple[Any, Any]]:
    """How much is put around the stretched operand of a transposed convolution."""
    rank, auto_pad, shape = len(spatial), call["auto_pad"] or "NOTSET", call["output_shape"]
    given, added = call["pads"] or (0,) * (2 * rank), call["output_padding"] or (0,) * rank
    pads = []
    for i, (n, extent, stride) in enumerate(zip(spatial, extents, strides, strict=True)):
        before, after = (given[i], given[rank + i]) if auto_pad == "NOTSET" else (0, 0)
        if shape or auto_pad.startswith("SAME"):
            total = stride * (n - 1) + added[i] + extent - (shape[i] if shape else n * stride)
            half = total // 2
            before, after = (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)
        pads.append((extent - 1 - before, extent - 1 - after + added[i]))
    return pads


# with integers


def convolve_integers(
    x: Array, w: Array, window: Window, *, x_zero: Array = None, w_zero: Array = None, groups: int = 1
) -> Array:
    """The convolution of ``x - x_zero`` with ``w - w_zero``, exactly, in int32.

    TPUs multiply integers of eight bits. Elsewhere that is slow, or not there at all, and float32 computes as many
    products at a time as it holds the sum of.

    Args:
        x: operand, (N, C, …), int8 or uint8. It is padded with its zero point.
        w: filters, (M, C / groups, …), int8 or uint8.
        window: where the filters are put.
        x_zero: the zero point of ``x``, a scalar of its type; None is 0.
        w_zero: the zero points of ``w``, a scalar or (M), of its type; None is 0.
        groups: into how many groups the channels are divided.

    Returns:
        (N, M, …), int32.
    """
    x_zero = np.zeros((), x.dtype) if x_zero is None else x_zero.reshape(())
    w_zero = np.zeros((), w.dtype) if w_zero is None else w_zero
    is_symmetric = w.dtype == jnp.int8 and (known := concrete(w_zero)) is not None and not known.any()
    limit = _EXACT // (_farthest(x_zero, x.dtype) * _farthest(w_zero, w.dtype))
    return lax.platform_dependent(
        x,
        w,
        jnp.asarray(x_zero),
        jnp.asarray(w_zero),
        tpu=partial(_by_int8, window=window, groups=groups, is_symmetric=is_symmetric),
        default=partial(_by_float32, window=window, groups=groups, limit=limit),
    )


def _farthest(zero: Array, dtype: Any) -> int:
    """How far a number of eight bits can be from ``zero``."""
    known, info = concrete(zero), np.iinfo(dtype)
    if known is None or not known.size:
        return int(info.max) - int(info.min)
    return max(int(info.max) - int(known.min()), int(known.max()) - int(info.min))


def _by_int8(
    x: Array, w: Array, x_zero: Array, w_zero: Array, *, window: Window, groups: int, is_symmetric: bool
) -> Array:
    """By products of int8: the sum of (x - a)(w - b) is that of x * w - a * w, less b times that of x - a."""
    x, x_zero, w, w_zero = map(_signed, (x, x_zero, w, w_zero))
    multiply = partial(convolve, x, window=window, groups=groups, preferred_element_type=jnp.int32, pad_value=x_zero)
    a, taps = x_zero.astype(jnp.int32), math.prod(w.shape[1:])
    y = add_bias(multiply(w), -a * w.sum(tuple(range(1, w.ndim)), dtype=jnp.int32))
    if is_symmetric:
        return y
    sums = multiply(jnp.ones((groups, *w.shape[1:]), jnp.int8)) - a * taps
    sums = jnp.repeat(sums, w.shape[0] // groups, axis=1)
    return y - sums * jnp.broadcast_to(w_zero.astype(jnp.int32), w.shape[:1]).reshape(-1, *(1,) * (w.ndim - 2))


def _signed(x: Array) -> Array:
    """``x``, less 128 if it is uint8, as int8."""
    return x if x.dtype == jnp.int8 else lax.bitcast_convert_type(x ^ np.uint8(128), jnp.int8)


def _by_float32(x: Array, w: Array, x_zero: Array, w_zero: Array, *, window: Window, groups: int, limit: int) -> Array:
    """By products of float32, each over so few channels that its sums are exact."""
    x = x.astype(jnp.int16) - x_zero.astype(jnp.int16)
    w = w.astype(jnp.int16) - jnp.broadcast_to(w_zero, w.shape[:1]).astype(jnp.int16).reshape(-1, *(1,) * (w.ndim - 1))
    step = limit // math.prod(w.shape[2:])
    if step == 0:
        x, w = x.astype(jnp.int32), w.astype(jnp.int32)
        return convolve(x, w, window, groups=groups)
    x, w, total = x.astype(jnp.float32), w.astype(jnp.float32), w.shape[1]
    grouped = x.reshape(x.shape[0], groups, total, *x.shape[2:])
    parts = []
    for start in range(0, total, step):
        some = grouped[:, :, start : start + step].reshape(x.shape[0], -1, *x.shape[2:])
        part = convolve(some, w[:, start : start + step], window, groups=groups, precision=lax.Precision.HIGHEST)
        parts.append(jnp.rint(part).astype(jnp.int32))
    return sum(parts)


@lowers("ConvInteger")
def _conv_integer(call: Call, x: Array, w: Array, x_zero: Array = None, w_zero: Array = None) -> Array:
    window = window_of(call, x.shape[2:], w.shape[2:])
    zeros = [z if known is None else known for z, known in ((x_zero, call.known(2)), (w_zero, call.known(3)))]
    return convolve_integers(x, w, window, x_zero=zeros[0], w_zero=zeros[1], groups=call["group"])


# at positions that are computed


@lowers("DeformConv")
def _deform_conv(call: Call, x: Array, w: Array, offset: Array, b: Array = None, mask: Array = None) -> Array:
    """The paper's (arXiv:1811.11168): a filter reads ``x`` at its own positions plus ``offset``, between elements."""
    groups, parts, rank = call["group"], call["offset_group"], x.ndim - 2
    sizes, taps, out = w.shape[2:], math.prod(w.shape[2:]), offset.shape[2:]
    window, n, dtype = window_of(call, x.shape[2:], sizes), x.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    offset = offset.reshape(n * parts, *sizes, rank, *out).astype(dtype)
    axes = []
    for i, size in enumerate(x.shape[2:]):
        tap = jnp.arange(sizes[i], dtype=dtype).reshape(-1, *(1,) * (2 * rank - 1 - i)) * window.dilations[i]
        start = jnp.arange(out[i], dtype=dtype).reshape(-1, *(1,) * (rank - 1 - i)) * window.strides[i]
        position = offset[(slice(None),) * (rank + 1) + (i,)] + (tap + (start - window.pads[i][0]))
        axes.append(linear_taps(position, size))
    split = x.reshape(n * parts, -1, *x.shape[2:])
    columns = sample(split, jnp.arange(n * parts).reshape(-1, *(1,) * (2 * rank)), axes, dtype)
    if mask is not None:
        columns = columns * mask.reshape(n * parts, 1, *sizes, *out)
    columns = columns.reshape(n, groups, -1, math.prod(out)).astype(x.dtype)
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1] * taps)
    y = jnp.einsum("gmk,ngko->ngmo", weights, columns, precision=precision_of(call))
    return add_bias(y.reshape(n, w.shape[0], *out), b)


# the other way


@lowers("Col2Im", static={1, 2})
def _col2im(call: Call, x: Array, image_shape: np.ndarray[Any, Any], block_shape: np.ndarray[Any, Any]) -> Array:
    """Adds the blocks (N, C * block, L) where they overlap: one spatial dimension after the other."""
    image, block = dims(image_shape), ints(block_shape)
    rank = len(block)
    strides, dilations = (call[name] or (1,) * rank for name in ("strides", "dilations"))
    pads = call["pads"] or (0,) * (2 * rank)
    extents = [(k - 1) * d + 1 for k, d in zip(block, dilations, strict=True)]
    counts = [(image[i] + pads[i] + pads[rank + i] - extents[i]) // strides[i] + 1 for i in range(rank)]
    y = x.reshape(x.shape[0], x.shape[1] // math.prod(block), *block, *counts)
    for i in range(rank):
        y = _overlap(y, 2 + rank, image[i], strides[i], [tap * dilations[i] - pads[i] for tap in range(block[i])])
    return y


def _overlap(y: Array, axis: int, size: Any, stride: int, starts: Sequence[int]) -> Array:
    """The sum of the slices of dimension 2, in which ``axis`` is stretched and put at ``starts`` into one of a size."""
    length = (y.shape[axis] - 1) * stride + 1
    parts = []
    for tap, start in enumerate(starts):
        edges = [(0, 0, 0)] * (y.ndim - 1)
        edges[axis - 1] = (start, size - start - length, stride - 1)
        parts.append(lax.pad(y[:, :, tap], jnp.zeros((), y.dtype), edges))
    return sum(parts[1:], parts[0])
