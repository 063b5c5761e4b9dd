"""The standard's operators on quantized numbers: to codes, back, and products of codes.

Definitions: the ONNX operator specification: QuantizeLinear-28, DequantizeLinear-28, DynamicQuantizeLinear-11,
QLinearConv-10 and QLinearMatMul-21. A quotient or product is rounded to the nearest integer, half to even, before the
zero point is added; sums of products of integers are exact.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.types import DType
from ..integers import multiply_integers
from ..lowering import Call, lowers
from ..precision import precision_of, quotient
from ..quantized import spread
from ..values import to_dtype
from ..windows import window_of
from .casts import cast
from .convolution import add_bias, convolve_integers

Array = Any


def _encoded(x: Array, zero: Array | None, dtype: Any, saturate: bool = True) -> Array:
    """Multiples of the scale, as float32, in the type of codes."""
    if not jnp.issubdtype(dtype, jnp.integer):
        return cast(x if zero is None else x + zero.astype(x.dtype), dtype, saturate)
    x = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    x = x if zero is None else x + zero.astype(x.dtype)
    limits = jnp.iinfo(dtype)
    return cast(jnp.clip(x, int(limits.min), int(limits.max)), dtype)


@lowers("QuantizeLinear")
def _quantize_linear(call: Call, x: Array, scale: Array, zero: Array = None) -> Array:
    axis, block_size = call["axis"], call["block_size"]
    given = call["precision"]
    narrow = to_dtype(DType(given)) if given else scale.dtype
    scale = spread(scale, x.shape, axis, block_size)
    zero = None if zero is None else spread(zero, x.shape, axis, block_size)
    if narrow in (jnp.float16, jnp.bfloat16):  # a quotient in float32 rounded to half as many bits is that of the type
        info = jnp.finfo(narrow)
        x, scale = x.astype(narrow).astype(jnp.float32), scale.astype(narrow).astype(jnp.float32)
        multiples = lax.reduce_precision(quotient(x, scale), info.nexp, info.nmant)
    else:
        multiples = quotient(x.astype(jnp.float32), scale.astype(jnp.float32))
    return _encoded(multiples, zero, call.dtype(), bool(call["saturate"]))


@lowers("DequantizeLinear")
def _dequantize_linear(call: Call, x: Array, scale: Array, zero: Array = None) -> Array:
    axis, block_size = call["axis"], call["block_size"]
    numbers = x.astype(jnp.float32)
    if zero is not None:
        numbers = numbers - spread(zero, x.shape, axis, block_size).astype(jnp.float32)
    return (numbers * spread(scale, x.shape, axis, block_size).astype(jnp.float32)).astype(call.dtype())


@lowers("DynamicQuantizeLinear")
def _dynamic_quantize_linear(call: Call, x: Array) -> tuple[Array, Array, Array]:
    low, high = jnp.min(x, initial=0), jnp.max(x, initial=0)
    scale = quotient(jnp.where(high == low, 1, high - low), 255).astype(x.dtype)
    zero = jnp.clip(lax.round(quotient(-low, scale), lax.RoundingMethod.TO_NEAREST_EVEN), 0, 255)
    return _encoded(quotient(x, scale), zero, jnp.dtype(jnp.uint8)), scale, cast(zero, np.uint8)


@lowers("QLinearMatMul")
def _qlinear_matmul(
    call: Call,
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    y_scale: Array,
    y_zero: Array,
) -> Array:
    if a.dtype.itemsize == 1 and jnp.issubdtype(a.dtype, jnp.integer) and jnp.issubdtype(b.dtype, jnp.integer):
        total = multiply_integers(a, b, a_zero, b_zero)
    else:
        left = a.astype(jnp.float32) - _by_row(a_zero, a).astype(jnp.float32)
        right = b.astype(jnp.float32) - b_zero.astype(jnp.float32)
        total = jnp.matmul(left, right, precision=precision_of(call))
    scale = _by_row(a_scale, a).astype(jnp.float32) * b_scale.astype(jnp.float32)
    scale = scale / _by_row(y_scale, a).astype(jnp.float32)
    if a.ndim == 1 or b.ndim == 1:
        scale = scale.reshape(()) if scale.size == 1 else scale.reshape(total.shape)
    return _encoded(total.astype(jnp.float32) * scale, _by_row(y_zero, a), call.dtype())


def _by_row(parameter: Array, a: Array) -> Array:
    """A scale or zero point of ``a``: one number, (…, M, 1), or (M) for matrices of M rows."""
    is_rows = parameter.ndim == 1 and parameter.size > 1 and a.ndim > 1
    return parameter[:, None] if is_rows else parameter.reshape(()) if parameter.size == 1 else parameter


@lowers("QLinearConv")
def _qlinear_conv(
    call: Call,
    x: Array,
    x_scale: Array,
    x_zero: Array,
    w: Array,
    w_scale: Array,
    w_zero: Array,
    y_scale: Array,
    y_zero: Array,
    bias: Array = None,
) -> Array:
    window = window_of(call, x.shape[2:], w.shape[2:])
    zeros = [z if known is None else known for z, known in ((x_zero, call.known(2)), (w_zero, call.known(5)))]
    if zeros[1].size == 1:
        zeros[1] = zeros[1].reshape(())
    total = add_bias(convolve_integers(x, w, window, x_zero=zeros[0], w_zero=zeros[1], groups=call["group"]), bias)
    scale = spread(x_scale.reshape(()) * w_scale / y_scale.reshape(()), total.shape, 1)
    return _encoded(total.astype(jnp.float32) * scale, y_zero.reshape(()), call.dtype())
