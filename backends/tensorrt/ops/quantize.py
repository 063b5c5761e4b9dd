"""Quantized numbers: what TensorRT takes, and the arithmetic of what it does not take.

It takes symmetric int8, float8e4m3fn, int4 and float4e2m1. Everything else is spelled out in numbers that stand for the
integers exactly; products of 8-bit integers are summed in float32, and split where 24 bits would not hold the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ..legality import FLOATS, QUANTIZED, Row
from ..versions import Version
from .casts import on_grid
from .elementwise import cast, scalar

__all__ = ["FORMS", "ROWS"]

_SCALAR = constant(np.zeros(0, np.int64))
_EXACT = 1 << 24  # integers below are exact in float32
_TINY = {DType.INT4, DType.FLOAT4E2M1}
_INTEGERS = {
    *(DType.INT8, DType.UINT8, DType.INT16, DType.UINT16, DType.INT32),
    *(DType.INT4, DType.UINT4, DType.INT2, DType.UINT2),
}


# --- what is taken ---------------------------------------------------------------------------------------------------


def _check(node: Node, version: Version) -> str:
    position = 0 if node.op == "DequantizeLinear" else 2
    small, scale, zero = node.result if position else node.given(0), node.given(1), node.operand(2)
    if small.dtype not in QUANTIZED:
        return f"{small.dtype.text}: {version} takes int8, int4, float8e4m3fn and float4e2m1"
    if version.number < (10, 0) and small.dtype is not DType.INT8:
        return f"{version} has no {small.dtype.text}"
    if zero is not None and (zero.const is None or zero.const.numpy().astype(np.float32).any()):
        return "the zero point is not the constant 0"
    if scale.const is not None and (scale.const.numpy() <= 0).any():
        return "a scale is not positive"
    shape = node.given(0).shape
    if small.dtype in _TINY and shape is not None and prod(d for d in shape if isinstance(d, int)) % 2:
        return f"an odd number of elements of {small.dtype.text}"
    if node.attrs.get("block_size") and shape is not None and node.attrs.get("axis", 1) % len(shape) < len(shape) - 2:
        return "blocks along another axis than the last two"
    if not node.attrs.get("saturate", 1) and position and small.dtype.is_floating:
        return "saturate=0"
    return ""


# --- scales and zero points ------------------------------------------------------------------------------------------


def _spread(value: Value, x: Value, node: Node) -> Value | None:
    """A scale or zero point in a shape that broadcasts to that of ``x``."""
    if value.rank == 0 or value.shape == (1,):
        return op.Reshape(value, _SCALAR) if value.rank else value
    if value.rank is None or x.rank is None or x.shape is None:
        return None
    axis, block = node.attrs.get("axis", 1) % max(x.rank, 1), node.attrs.get("block_size", 0)
    if value.rank == 1 and not block:
        return op.Reshape(value, constant([-1 if i == axis else 1 for i in range(x.rank)], DType.INT64))
    if not block:
        return value
    wide, sizes = op.Unsqueeze(value, constant([axis + 1], DType.INT64)), op.Shape(value)
    ones = constant([1] * (axis + 1) + [block] + [1] * (x.rank - axis - 1), DType.INT64)
    factor = constant([block if i == axis else 1 for i in range(x.rank)], DType.INT64)
    whole = op.Reshape(op.Tile(wide, ones), op.Mul(sizes, factor))
    end = op.Shape(x, start=axis, end=axis + 1)
    return op.Slice(whole, constant([0], DType.INT64), end, constant([axis], DType.INT64))


def _limits(dtype: DType) -> tuple[int, int]:
    half = 1 << (dtype.bits - 1)
    return (-half, half - 1) if dtype.is_signed else (0, 2 * half - 1)


def _narrowed(y: Value, dtype: DType) -> Value:
    """The float32 integers ``y``, brought into the range of ``dtype``, in that type."""
    low, high = _limits(dtype)
    return cast(op.Clip(y, scalar(low, y), scalar(high, y)), dtype)


def _quantize(node: Node, version: Version) -> list[Value] | None:
    """Rounded to even and saturated, all in float32, but for the division."""
    x, scale, zero, dtype = node.given(0), node.given(1), node.operand(2), node.result.dtype
    by = _spread(scale, x, node)
    shift = _spread(cast(zero, DType.FLOAT), x, node) if zero is not None else None
    if by is None or (zero is not None and shift is None):
        return None
    precision = DType(node.attrs.get("precision") or (scale.dtype if scale.dtype == x.dtype else DType.FLOAT))
    ratio = cast(op.Div(cast(x, precision), cast(by, precision)), DType.FLOAT)
    if dtype.is_floating:
        return [cast(on_grid(ratio, dtype, bool(node.attrs.get("saturate", 1))), dtype)]
    if dtype not in _INTEGERS:
        return None
    y = op.Round(ratio)
    return [_narrowed(y if shift is None else op.Add(y, shift), dtype)]


def _dequantize(node: Node, version: Version) -> list[Value] | None:
    x, scale, zero = node.given(0), node.given(1), node.operand(2)
    by = _spread(scale, x, node)
    shift = _spread(cast(zero, DType.FLOAT), x, node) if zero is not None else None
    if by is None or (zero is not None and shift is None):
        return None
    numbers = cast(x, DType.FLOAT)
    if shift is not None and not x.dtype.is_floating:
        numbers = op.Sub(numbers, shift)
    return [cast(op.Mul(numbers, cast(by, DType.FLOAT)), node.result.dtype)]


def _dynamic_quantize(node: Node, version: Version) -> list[Value] | None:
    x, zero, most = node.given(0), constant(0.0, DType.FLOAT), constant(255.0, DType.FLOAT)
    flat = op.Reshape(x, constant([-1], DType.INT64))
    low = op.Min(op.ReduceMin(flat, keepdims=0), zero)
    high = op.Max(op.ReduceMax(flat, keepdims=0), zero)
    scale = op.Div(op.Sub(high, low), most)
    safe = op.Where(op.Equal(scale, zero), constant(1.0, DType.FLOAT), scale)
    point = op.Clip(op.Round(op.Div(op.Sub(zero, low), safe)), zero, most)
    y = op.Clip(op.Add(op.Round(op.Div(x, safe)), point), zero, most)
    return [cast(y, DType.UINT8), scale, cast(point, DType.UINT8)]


# --- products --------------------------------------------------------------------------------------------------------


def _bound(value: Value, zero: Value | None) -> int:
    """The largest magnitude of an operand less its zero point."""
    shift = np.zeros((), np.int64) if zero is None else zero.const.numpy() if zero.const is not None else None
    if value.const is not None and value.const.size and shift is not None and shift.size == 1:
        return int(np.abs(value.const.numpy().astype(np.int64) - shift.astype(np.int64).item()).max())
    return 128 if value.dtype is DType.INT8 and zero is None else 255


def _summed(
    a: Value, b: Value, bounds: tuple[int, int], terms: int | None, product: Callable[[Value, Value], Value]
) -> Value:
    """The int32 sums of ``terms`` products of the integers in ``a`` and ``b``, exact."""
    if terms is not None and bounds[0] * bounds[1] * terms < _EXACT:
        return cast(product(a, b), DType.INT32)
    if bounds[0] <= 16:
        if bounds[1] <= 16:  # however many there are: float32 may round sums of 65,536 terms and more
            return cast(product(a, b), DType.INT32)
        return _in_parts(b, lambda part, bound: _summed(a, part, (bounds[0], bound), terms, product))
    return _in_parts(a, lambda part, bound: _summed(part, b, (bound, bounds[1]), terms, product))


def _in_parts(x: Value, product: Callable[[Value, int], Value]) -> Value:
    """By the upper and the lower four bits."""
    high = op.Floor(op.Div(x, scalar(16.0, x)))
    low = op.Sub(x, op.Mul(high, scalar(16.0, x)))
    return op.Add(op.Mul(product(high, 16), constant(16, DType.INT32)), product(low, 15))


def _shifted(value: Value, zero: Value | None, axis: int | None = None) -> Value:
    """``value - zero`` in float32; a zero point of rank 1 belongs to ``axis`` from the end, if it is given."""
    numbers = cast(value, DType.FLOAT)
    if zero is None:
        return numbers
    point = cast(zero, DType.FLOAT)
    if axis is not None and point.rank == 1 and point.shape != (1,):
        point = op.Reshape(point, constant([-1] + [1] * (-1 - axis), DType.INT64))
    return op.Sub(numbers, point)


def _is_wide(*values: Value | None) -> bool:
    """Whether operands are no integers of 8 bits (or such in int32)."""
    known = {DType.INT8, DType.UINT8, DType.INT32}
    return any(v is not None and v.dtype not in known for v in values)


def _matmul_int32(a: Value, b: Value, a_zero: Value | None, b_zero: Value | None) -> Value | None:
    if _is_wide(a, b, a_zero, b_zero) or a.rank is None or b.rank is None:
        return None
    terms = next((d for d in (a.shape[-1:] if a.shape else ()) if isinstance(d, int)), None)
    bounds = (_bound(a, a_zero), _bound(b, b_zero))
    return _summed(_shifted(a, a_zero, -2), _shifted(b, b_zero), bounds, terms, op.MatMul)


def _matmul_integer(node: Node, version: Version) -> list[Value] | None:
    result = _matmul_int32(node.given(0), node.given(1), node.operand(2), node.operand(3))
    return None if result is None else [result]


def _conv_int32(x: Value, w: Value, x_zero: Value | None, w_zero: Value | None, node: Node) -> Value | None:
    if _is_wide(x, w, x_zero, w_zero) or w.shape is None or x.rank is None:
        return None
    kernel = [d for d in w.shape[1:] if isinstance(d, int)]
    terms = prod(kernel) if len(kernel) == len(w.shape) - 1 else None
    attrs = {name: value for name, value in node.attrs.items() if name != "kernel_shape" or value}
    bounds = (_bound(x, x_zero), _bound(w, w_zero))
    weights = _shifted(w, w_zero, -len(w.shape))
    return _summed(_shifted(x, x_zero), weights, bounds, terms, lambda a, b: op.Conv(a, b, **attrs))


def _conv_integer(node: Node, version: Version) -> list[Value] | None:
    result = _conv_int32(node.given(0), node.given(1), node.operand(2), node.operand(3), node)
    return None if result is None else [result]


def _requantized(total: Value, scales: tuple[Value, Value, Value], zero: Value, dtype: DType) -> list[Value]:
    """Of int32 sums: ``total * a * b / c``, in ``dtype``."""
    a, b, c = (cast(s, DType.FLOAT) for s in scales)
    y = op.Round(op.Mul(cast(total, DType.FLOAT), op.Div(op.Mul(a, b), c)))
    return [_narrowed(op.Add(y, cast(zero, DType.FLOAT)), dtype)]


def _is_symmetric(node: Node) -> bool:
    """Whether a product of quantized numbers is one that TensorRT computes in int8: zero points of 0, known scales."""
    for number, scale, zero in ((0, 1, 2), (3, 4, 5), (None, 6, 7)):
        value = node.result if number is None else node.given(number)
        known, shift = node.given(scale).const, node.given(zero).const
        if value.dtype is not DType.INT8 or known is None or shift is None or shift.numpy().any():
            return False
        if (known.numpy() <= 0).any() or (number != 3 and known.size != 1) or node.given(scale).dtype not in FLOATS:
            return False
    return True


def _in_int8(node: Node, axis: int, product: Callable[[Value, Value], Value]) -> list[Value]:
    """The ``product`` of dequantized numbers, quantized: the way in which TensorRT finds products of int8."""
    a, a_scale, _, b, b_scale, _, y_scale, y_zero = (node.given(i) for i in range(8))
    flat = [constant(s.const.numpy().reshape(())) if s.const and s.const.size == 1 else s for s in (a_scale, b_scale)]
    left = op.DequantizeLinear(a, flat[0], None)
    right = op.DequantizeLinear(b, flat[1], None, **({"axis": axis} if flat[1].rank else {}))
    return [op.QuantizeLinear(product(left, right), op.Reshape(y_scale, _SCALAR), constant(0, y_zero.dtype))]


def _qlinear_matmul(node: Node, version: Version) -> list[Value] | None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (node.given(i) for i in range(8))
    if b.rank and _is_symmetric(node) and (b_scale.rank or 0) <= 1:
        return _in_int8(node, b.rank - 1, op.MatMul)
    total = _matmul_int32(a, b, a_zero, b_zero)
    if total is None or node.result.dtype not in _INTEGERS:
        return None
    if a_scale.rank == 1 and a_scale.shape != (1,):
        a_scale = op.Unsqueeze(a_scale, constant([-1], DType.INT64))
    return _requantized(total, (a_scale, b_scale, y_scale), y_zero, node.result.dtype)


def _qlinear_conv(node: Node, version: Version) -> list[Value] | None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (node.given(i) for i in range(8))
    if _is_symmetric(node):
        bias = node.operand(8)
        if bias is not None:
            bias = op.Mul(cast(bias, w_scale.dtype), op.Mul(op.Reshape(x_scale, _SCALAR), w_scale))
        return _in_int8(node, 0, lambda a, b: op.Conv(a, b, bias, **dict(node.attrs)))
    total, bias = _conv_int32(x, w, x_zero, w_zero, node), node.operand(8)
    if total is None or node.result.dtype not in _INTEGERS or w.rank is None:
        return None
    channels = constant([-1] + [1] * (w.rank - 2), DType.INT64)
    if bias is not None:
        total = op.Add(total, op.Reshape(bias, channels))
    if w_scale.rank == 1 and w_scale.shape != (1,):
        w_scale = op.Reshape(w_scale, channels)
    return _requantized(total, (x_scale, w_scale, y_scale), y_zero, node.result.dtype)


ROWS: dict[str, Row] = {
    "QuantizeLinear": Row({"T1": FLOATS, "T2": FLOATS, "T3": QUANTIZED}, check=_check),
    "DequantizeLinear": Row({"T1": QUANTIZED, "T2": FLOATS, "T3": FLOATS}, check=_check),
}

FORMS = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
}
