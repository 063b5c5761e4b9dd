"""Casts. Numbers of 8 bits and fewer come into being and go as quantized numbers, with a scale of 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ..legality import NUMBERS, Row, Types
from ..versions import Version
from .elementwise import cast, scalar, wrapped

__all__ = ["FORMS", "ROWS", "leading_power", "on_grid", "spelled_cast"]

_READ: Types = NUMBERS | {DType.BOOL, DType.INT8, DType.UINT8, DType.DOUBLE}
_SCALED = frozenset({DType.FLOAT8E4M3FN, DType.FLOAT4E2M1, DType.INT4})  # TensorRT has them as quantized numbers only


@dataclass(frozen=True)
class _Format:
    """A floating-point type: exponents from ``lowest`` to ``highest``, bits of the fraction, and its largest number.

    What is above is ``beyond``.
    """

    lowest: int
    highest: int
    fraction: int
    largest: float
    beyond: float = np.nan


_FORMATS = {
    DType.FLOAT8E4M3FN: _Format(-6, 8, 3, 448.0),
    DType.FLOAT8E4M3FNUZ: _Format(-7, 7, 3, 240.0),
    DType.FLOAT8E5M2: _Format(-14, 15, 2, 57344.0, np.inf),
    DType.FLOAT8E5M2FNUZ: _Format(-15, 15, 2, 57344.0),
    DType.FLOAT4E2M1: _Format(0, 2, 1, 6.0),
}


def leading_power(size: Value, lowest: int, highest: int) -> Value:
    """The power of two below each of the positive numbers ``size``, from 2^lowest to 2^highest."""
    powers = np.exp2(np.arange(lowest, highest + 1, dtype=np.float64)).astype(np.float32)
    within = op.Clip(size, scalar(powers[0], size), scalar(powers[-1], size))
    place = op.Sub(op.Floor(op.Div(op.Log(within), scalar(np.log(2.0), size))), scalar(lowest, size))
    index = op.Clip(op.Cast(place, to=DType.INT32), *(constant(i, DType.INT32) for i in (0, highest - lowest)))
    power = op.Gather(constant(powers), index)  # the logarithm may be off by one
    power = op.Where(op.Less(within, power), op.Mul(power, scalar(0.5, size)), power)
    double = op.Mul(power, scalar(2.0, size))
    return op.Where(op.GreaterOrEqual(within, double), double, power)


def on_grid(x: Value, dtype: DType, saturate: bool = True, round_mode: str = "up") -> Value:
    """The float32 numbers ``x``, rounded to those that ``dtype``, a type of 8 bits or less, can hold."""
    if dtype is DType.FLOAT8E8M0:
        return _powers_of_two(x, saturate, round_mode)
    form = _FORMATS[dtype]
    size = op.Abs(x)
    step = op.Mul(leading_power(size, form.lowest, form.highest), scalar(2.0**-form.fraction, x))
    rounded = op.Mul(op.Round(op.Div(x, step)), step)
    largest = scalar(form.largest, x)
    over = op.Greater(op.Abs(rounded), largest)
    beyond = op.Mul(op.Sign(x), largest if saturate or dtype is DType.FLOAT4E2M1 else scalar(form.beyond, x))
    result = op.Where(over, beyond, rounded)
    return op.Where(op.IsNaN(x), scalar(0, x), result) if dtype is DType.FLOAT4E2M1 else result


def _powers_of_two(x: Value, saturate: bool, round_mode: str) -> Value:
    """The next power of two above or below, or the nearest one."""
    size = op.Abs(x)
    power = leading_power(size, -127, 127)
    above = op.Mul(power, scalar(2.0, x))
    if round_mode == "up":
        power = op.Where(op.Greater(size, power), above, power)
    elif round_mode == "nearest":
        power = op.Where(op.GreaterOrEqual(size, op.Mul(power, scalar(1.5, x))), above, power)
    largest = scalar(2.0**127, x)
    power = op.Where(op.Greater(power, largest), largest if saturate else scalar(np.nan, x), power)
    return op.Where(op.Or(op.IsNaN(x), op.IsInf(x)), scalar(np.nan, x), power)


def _quantized(x: Value, dtype: DType) -> Value:
    """``x``, whose elements ``dtype`` can hold, in that type."""
    return op.QuantizeLinear(x, scalar(1.0, x), None, output_dtype=dtype)


def _dequantized(x: Value) -> Value:
    """The elements of ``x`` in float32."""
    return op.DequantizeLinear(x, constant(1.0, DType.FLOAT), None)


def _rounded(x: Value, to: DType, attrs: Mapping[str, Any]) -> Value:
    """``x``, cast to a type of less than 8 bits or to a small floating-point type, but still in float32."""
    if to.is_integer:
        return cast(wrapped(cast(x, DType.INT32), to), DType.FLOAT)
    return on_grid(cast(x, DType.FLOAT), to, bool(attrs.get("saturate", 1)), attrs.get("round_mode", "up"))


def _is_small(dtype: DType) -> bool:
    return dtype.bits < 8 or (dtype.bits == 8 and dtype.is_floating)


def spelled_cast(node: Node) -> list[Value] | None:
    """A Cast or CastLike whose result is rounded before it is cast; None if it needs nothing."""
    x, to = node.given(0), node.result.dtype
    if _is_small(to) and x.dtype is not to:
        return [cast(_rounded(x, to, node.attrs), to)]
    return None if node.op == "Cast" else [cast(x, to)]


def _cast(node: Node, version: Version) -> list[Value] | None:
    x, to = node.given(0), node.result.dtype
    if x.dtype in _SCALED:
        return [op.Cast(_dequantized(x), **node.attrs)]
    if to not in _SCALED:
        return None
    if to is DType.FLOAT8E4M3FN and node.attrs.get("saturate", 1):
        return [_quantized(cast(x, DType.FLOAT), to)]
    return [_quantized(_rounded(x, to, node.attrs), to)]


def _cast_like(node: Node, version: Version) -> list[Value] | None:
    x, to = node.given(0), node.given(1).dtype
    if not to:
        return None
    attrs = {name: node.attrs.get(name) for name in ("saturate", "round_mode")} if to.bits <= 8 else {}
    return [op.Cast(x, to=to, **attrs)]


ROWS: dict[str, Row] = {
    "Cast": Row({"T1": _READ, "T2": _READ}),
    "CastLike": Row({"T1": _READ, "T2": _READ}, since=(10, 0)),
}

FORMS = {"Cast": _cast, "CastLike": _cast_like}
