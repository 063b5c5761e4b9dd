"""Conversions between element types: of values (`Cast`) and of bits (`BitCast`).

Definitions: the ONNX operator specification, Cast-28 and BitCast-26. What it leaves undefined (a number beyond the
range of an integer type) is what XLA does: the nearest limit, except that types of at most 16 bits keep the low bits.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from ....ir.graph import Node
from ....ir.types import DType
from ..lowering import Call, lowers
from ..values import to_dtype

__all__ = ["cast"]

Array = Any
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_SATURATED = frozenset(
    map(
        np.dtype, (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz)
    )
)


def cast(x: Array, dtype: Any, saturate: bool = True, round_mode: str = "up") -> Array:
    """``x`` converted to ``dtype``, as the operator `Cast` does it.

    Args:
        x: numbers or truth values.
        dtype: of the result.
        saturate: whether 8-bit floating-point types hold their largest number in place of greater ones.
        round_mode: how to round to float8e8m0: ``up``, ``down`` or ``nearest``.
    """
    dtype = np.dtype(dtype)
    if x.dtype == dtype:
        return x
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if dtype == _E8M0:
        return _to_e8m0(x.astype(jnp.float32), saturate, round_mode)
    if dtype in _SATURATED:
        x = x if floating and x.dtype.itemsize > 1 else x.astype(jnp.float32)
        if not saturate:
            return x.astype(dtype)
        limit = jnp.asarray(ml_dtypes.finfo(dtype).max, x.dtype)  # type: ignore[no-untyped-call]
        return lax.clamp(-limit, x, limit).astype(dtype)
    if floating and jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize <= 2:
        return x.astype(jnp.int32).astype(dtype)
    return x.astype(dtype)


def _to_e8m0(x: Array, saturate: bool, round_mode: str) -> Array:
    """``x`` rounded to a power of two: its exponent plus 127, in eight bits; 255 is NaN.

    Computed on bits, since XLA takes numbers below 2**-126 for zero; negative ones have no defined result.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    tiny = exponent == 0  # without the leading one: 2**-127 is the fraction 0x400000
    threshold = {
        "up": jnp.where(tiny, jnp.uint32(0x400001), jnp.uint32(1)),
        "nearest": jnp.where(tiny, jnp.uint32(0x600000), jnp.uint32(0x400000)),
        "down": jnp.uint32(1 << 23),
    }[round_mode]
    rounded = exponent + (fraction >= threshold)
    below, above = tiny & (fraction < 0x400000), rounded >= 0xFF
    is_nan = (exponent == 0xFF) & (fraction > 0)
    if saturate:
        codes = jnp.where(is_nan, jnp.uint32(0xFF), jnp.where(above, jnp.uint32(0xFE), rounded))
    else:
        codes = jnp.where(is_nan | below | above, jnp.uint32(0xFF), rounded)
    return lax.bitcast_convert_type(codes.astype(jnp.uint8), _E8M0)


def _unknown_rounding(node: Node) -> str | None:
    mode = node.attrs.get("round_mode", "up")
    return None if mode in ("up", "down", "nearest") else f"round_mode is {mode!r}: it can be up, down or nearest"


@lowers("Cast", "CastLike", refuses=_unknown_rounding)
def _cast(call: Call, x: Array, like: Array = None) -> Array:
    return cast(x, call.dtype(), bool(call["saturate"]), call["round_mode"])


@lowers("BitCast")
def _bit_cast(call: Call, x: Array) -> Array:
    source, target = call.node.given(0).dtype, call.node.results[0].dtype
    if source is target:
        return x
    if to_dtype(source) != source.numpy or to_dtype(target) != target.numpy:
        raise call.error(f"{source.text} as {target.text} needs 64-bit types: set jax_enable_x64")
    if source.numpy.kind == "c":
        x = jnp.stack([x.real, x.imag], -1)
    elif source is DType.BOOL:
        x = x.astype(jnp.uint8)
    if target is DType.BOOL:
        return lax.bitcast_convert_type(x, jnp.uint8) != 0
    if target.numpy.kind != "c":
        return lax.bitcast_convert_type(x, target.numpy)
    parts = lax.bitcast_convert_type(x, jnp.float32 if target.numpy.itemsize == 8 else jnp.float64)
    return lax.complex(parts[..., 0], parts[..., 1])
