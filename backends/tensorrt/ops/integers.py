"""Operators on the bits of numbers, by arithmetic that is exact for negative numbers and the ends of the range."""

from __future__ import annotations

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ..legality import INDICES, Row
from ..versions import Version
from .casts import leading_power
from .elementwise import cast, scalar, wrapped

__all__ = ["FORMS", "ROWS", "floor_divided"]

_LAST = constant([-1], DType.INT64)


def floor_divided(x: Value, by: Value) -> Value:
    """``x / by``, rounded down; ``by`` is positive."""
    return op.Div(op.Sub(x, op.Mod(x, by)), by)


def _wide(node: Node) -> tuple[list[Value], DType] | None:
    """The operands in a type that TensorRT computes in, and the type of the result."""
    dtype = node.result.dtype
    if dtype in INDICES or dtype in (DType.INT8, DType.UINT8, DType.INT16, DType.UINT16):
        return [o if dtype in INDICES else cast(o, DType.INT32) for o in node.operands if o is not None], dtype
    return None


def _powers(dtype: DType) -> np.ndarray:
    """2^0, 2^1, …, modulo 2^bits; the last is 0."""
    return np.array([(1 << i) % (1 << dtype.bits) for i in range(dtype.bits + 1)], f"u{dtype.bits // 8}").view(
        dtype.numpy
    )


def _power(exponent: Value) -> Value:
    """2^exponent in the type of the exponent, modulo 2^bits."""
    bits = exponent.dtype.bits
    table = _powers(exponent.dtype)
    if exponent.const is not None:
        return constant(table[np.clip(exponent.const.numpy(), 0, bits)])
    return op.Gather(constant(table), op.Clip(exponent, scalar(0, exponent), scalar(bits, exponent)))


def _bit_shift(node: Node, version: Version) -> list[Value] | None:
    found = _wide(node)
    if found is None:
        return None
    (x, by), dtype = found
    if dtype.is_signed:  # what is negative shifts everything out
        far = scalar(by.dtype.bits, by)
        by = (
            constant(np.where((n := by.const.numpy()) < 0, by.dtype.bits, n))
            if by.const is not None
            else (op.Where(op.Less(by, scalar(0, by)), far, by))
        )
    if node.attrs["direction"] != "LEFT":
        return [cast(_shifted_right(x, by), dtype)]
    left = op.Mul(x, _power(by))
    return [cast(wrapped(left, dtype) if dtype not in INDICES else left, dtype)]


def _shifted_right(x: Value, by: Value) -> Value:
    """In two steps, as the last power of two is no positive number of the type."""
    most = by.dtype.bits - 1
    if by.const is not None:
        count = np.clip(by.const.numpy(), 0, most)
        steps = [constant(s) for s in (count // 2, count - count // 2) if s.any()]
    else:
        count = op.Clip(by, scalar(0, by), scalar(most, by))
        half = op.Div(count, scalar(2, by))
        steps = [half, op.Sub(count, half)]
    for step in steps:
        x = floor_divided(x, _power(step))
    return x


def _bitwise_not(node: Node, version: Version) -> list[Value] | None:
    found = _wide(node)
    if found is None:
        return None
    (x,), dtype = found
    return [cast(op.Sub(scalar(-1, x), x), dtype)]


def _bits(x: Value) -> Value:
    """Whether each bit is set, along a new last axis."""
    places = x.dtype.bits - 1
    table, two = constant(_powers(x.dtype)[:places]), scalar(2, x)
    column = op.Unsqueeze(x, _LAST)
    low = op.Equal(op.Mod(floor_divided(column, table), two), scalar(1, x))
    return op.Concat(low, op.Less(column, scalar(0, x)), axis=-1)


def _ends_in_ones(mask: Value) -> bool:
    """Whether it is the constant 2^n - 1, and 2^n a positive number of its type."""
    if mask.const is None or mask.const.size != 1:
        return False
    number = int(mask.const.numpy().item())
    return 0 <= number < (1 << (mask.dtype.bits - 1)) - 1 and number & (number + 1) == 0


def _both(x: Value, y: Value) -> Value:
    """The bits that are set in both."""
    for value, mask in ((x, y), (y, x)):
        if _ends_in_ones(mask):
            return op.Mod(value, op.Add(mask, scalar(1, mask)))
    both, weights = op.And(_bits(x), _bits(y)), _powers(x.dtype)[:-1]
    if x.dtype is not DType.INT64:
        return _weighted(both, weights)
    low = np.arange(weights.size) < 32  # sums of either half are exact wherever they are made in float64
    return op.Add(_weighted(both, weights * low), _weighted(both, weights * ~low))


def _weighted(bits: Value, weights: np.ndarray) -> Value:
    zero = constant(np.zeros((), weights.dtype))
    return op.ReduceSum(op.Where(bits, constant(weights), zero), _LAST, keepdims=0)


def _bitwise(node: Node, version: Version) -> list[Value] | None:
    """``x | y`` is ``x + y - (x & y)``, and so on: what carries is what both have."""
    found = _wide(node)
    if found is None or any(o is not None and (o.rank is None or o.rank >= 8) for o in node.operands):
        return None
    (x, y), dtype = found
    both = _both(x, y)
    if node.op == "BitwiseAnd":
        return [cast(both, dtype)]
    either = op.Sub(op.Add(x, y), both)
    return [cast(either if node.op == "BitwiseOr" else op.Sub(either, both), dtype)]


# --- bits of other types ---------------------------------------------------------------------------------------------


def _bit_cast(node: Node, version: Version) -> list[Value] | None:
    """Between integers of one width: modulo 2^bits. Between float32 and int32: by exponent and fraction."""
    x, to = node.given(0), node.result.dtype
    pair = {x.dtype, to}
    if x.dtype.bits != to.bits or (to is DType.BOOL and x.dtype is not to):
        return None
    if x.dtype is DType.BOOL or len(pair) == 1:
        return [cast(x, to)]
    if DType.FLOAT in pair:
        return [cast(_bits_of_float(x), to) if x.dtype is DType.FLOAT else _float_of_bits(cast(x, DType.INT32))]
    if not (x.dtype.is_integer and to.is_integer):
        return None
    return [cast(wrapped(cast(x, DType.INT32), to) if to.bits < 32 else x, to)]


def _bits_of_float(x: Value) -> Value:
    size, zero = op.Abs(x), scalar(0, x)
    power = leading_power(size, -126, 127)
    exponent = op.Cast(op.Round(op.Div(op.Log(power), scalar(np.log(2.0), x))), to=DType.INT32)
    is_normal = op.GreaterOrEqual(size, scalar(2.0**-126, x))
    fraction = op.Sub(op.Div(size, power), op.Where(is_normal, scalar(1, x), zero))
    biased = op.Add(exponent, op.Where(is_normal, constant(127, DType.INT32), constant(126, DType.INT32)))
    bits = op.Add(
        op.Mul(biased, constant(1 << 23, DType.INT32)), cast(op.Mul(fraction, scalar(2.0**23, x)), DType.INT32)
    )
    bits = op.Where(op.IsInf(x), constant(0x7F800000, DType.INT32), bits)
    is_negative = op.Less(op.Where(op.Equal(x, zero), op.Reciprocal(x), x), zero)
    bits = op.Where(is_negative, op.Add(bits, constant(-(1 << 31), DType.INT32)), bits)
    return op.Where(op.IsNaN(x), constant(0x7FC00000, DType.INT32), bits)


def _float_of_bits(x: Value) -> Value:
    zero, unit = constant(0, DType.INT32), constant(1 << 23, DType.INT32)
    is_negative = op.Less(x, zero)
    rest = op.Where(is_negative, op.Sub(x, constant(-(1 << 31), DType.INT32)), x)
    exponent, fraction = op.Div(rest, unit), op.Mod(rest, unit)
    powers = np.append(np.exp2(np.maximum(np.arange(255), 1) - 127.0), np.inf).astype(np.float32)
    leading = cast(op.Min(exponent, constant(1, DType.INT32)), DType.FLOAT)
    size = op.Add(op.Mul(cast(fraction, DType.FLOAT), constant(2.0**-23, DType.FLOAT)), leading)
    number = op.Mul(size, op.Gather(constant(powers), exponent))
    is_nan = op.And(op.Equal(exponent, constant(255, DType.INT32)), op.Greater(fraction, zero))
    number = op.Where(is_nan, constant(np.nan, DType.FLOAT), number)
    return op.Where(is_negative, op.Neg(number), number)


ROWS: dict[str, Row] = {}

FORMS = {
    "BitCast": _bit_cast,
    "BitShift": _bit_shift,
    "BitwiseAnd": _bitwise,
    "BitwiseNot": _bitwise_not,
    "BitwiseOr": _bitwise,
    "BitwiseXor": _bitwise,
}
