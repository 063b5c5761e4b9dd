"""Quantization as planish's graphs hold it, with a gradient.

Rounding passes gradients on unchanged (the straight-through estimator of Bengio et al., 2013). What follows for the
rest is LSQ (Esser et al., 2020): an element within the range has gradient 1, one outside of it 0, and the scale has the
gradient ``round(x / s) - x / s`` within the range and the nearest limit outside of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.quantization import FAKE_QUANTIZE, Format, format_of
from ..lowering import Call, lowers
from ..precision import quotient
from ..quantized import dynamic_scale, spread

Array = Any


@jax.custom_jvp
def _round(x: Array) -> Array:
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


@_round.defjvp
def _round_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _round(primals[0]), tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _as_floats(x: Array, dtype: Any) -> Array:
    return x.astype(dtype).astype(x.dtype)


@_as_floats.defjvp
def _as_floats_jvp(dtype: Any, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _as_floats(primals[0], dtype), tangents[0]


@lowers(FAKE_QUANTIZE)
def _fake_quantize(call: Call, x: Array, scale: Array = None, zero_point: Array = None) -> Array:
    form, axis, block_size = format_of(call.node), call.node.attrs.get("axis", 1), call.node.attrs.get("block_size", 0)
    wide = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    if scale is None and block_size:
        return _in_blocks(wide, form, axis % x.ndim, block_size).astype(x.dtype)
    if scale is None:
        scale, zero_point = _dynamic_parameters(wide, form)
    scale = spread(scale, x.shape, axis, block_size).astype(wide.dtype)
    zero = 0 if zero_point is None else spread(zero_point, x.shape, axis, block_size).astype(wide.dtype)
    return _rounded(wide, scale, zero, form).astype(x.dtype)


def _rounded(x: Array, scale: Array, zero: Array, form: Format) -> Array:
    """``x`` rounded to multiples of ``scale`` that ``form`` holds."""
    if not form.is_integer:
        return _as_floats(_clipped(quotient(x, scale), form), form.storage.numpy) * scale
    codes = _round(_clipped(quotient(x, scale), form, zero)) + zero
    return (jnp.where(jnp.isnan(codes), 0, codes) - zero) * scale


def _clipped(x: Array, form: Format, zero: Array | float = 0.0) -> Array:
    """``x`` within the range of ``form``, counted from ``zero``, with gradient 1 at its limits, too."""
    low, high = form.low - zero, form.high - zero
    return jnp.where(x < low, low, jnp.where(x > high, high, x)).astype(x.dtype)


def _dynamic_parameters(x: Array, form: Format) -> tuple[Array, Array]:
    """Scale and zero point for the range of ``x`` (ONNX, ``DynamicQuantizeLinear``)."""
    low, high = jnp.min(x, initial=0), jnp.max(x, initial=0)
    scale = quotient(high - low, np.float32(form.high - form.low))
    scale = lax.stop_gradient(jnp.where(scale == 0, 1, scale))
    return scale, jnp.clip(lax.stop_gradient(_round(form.low - low / scale)), form.low, form.high)


def _in_blocks(x: Array, form: Format, axis: int, block_size: int) -> Array:
    """Every ``block_size`` neighbours along ``axis`` have the scale that makes the largest the highest code."""
    size = x.shape[axis]
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (0, -size % block_size, 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), padding)
    count = padded.shape[axis] // block_size
    blocks = padded.reshape(*x.shape[:axis], count, block_size, *x.shape[axis + 1 :])
    scale = lax.stop_gradient(dynamic_scale(jnp.max(jnp.abs(blocks), axis=axis + 1, keepdims=True), form))
    return lax.slice_in_dim(_rounded(blocks, scale, 0, form).reshape(padded.shape), 0, size, axis=axis)
