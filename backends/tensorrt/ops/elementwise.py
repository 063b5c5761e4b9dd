"""Operators that work element by element, and what chooses or makes elements alike.

TensorRT has almost all of them, in three floating-point and two integer types. To it 8-bit integers
are quantized numbers: they are computed with in int32, and brought back into their range.
"""

from __future__ import annotations

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, INDICES, NUMBERS, Row
from ..versions import Version

__all__ = ["FORMS", "ROWS", "cast", "in_int32", "scalar", "wrapped"]

_BOOL = frozenset({DType.BOOL})
_HALF = frozenset({DType.FLOAT, DType.FLOAT16})
_LARGEST_DET = 16

_OF_FLOATS = (
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor"),
    *("HardSigmoid", "LeakyRelu", "Log", "Mean", "PRelu", "Reciprocal", "Round", "Selu", "Sigmoid", "Sin", "Sinh"),
    *("Softplus", "Softsign", "Sqrt", "Sum", "Tan", "Tanh", "ThresholdedRelu"),
)
_OF_NUMBERS = (
    *("Abs", "Add", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg"),
    *("Sign", "Sub"),
)


def scalar(number: float, like: Value) -> Value:
    """A constant of the type of ``like``."""
    return constant(np.asarray(number).astype(like.dtype.numpy))


def cast(x: Value, dtype: DType) -> Value:
    """``x`` in another type; a constant at once."""
    if x.dtype is dtype:
        return x
    if x.const is not None:
        return constant(x.const.numpy().astype(dtype.numpy), dtype)
    return op.Cast(x, to=dtype)


def wrapped(x: Value, dtype: DType) -> Value:
    """The integers ``x``, modulo 2^bits, as ``dtype`` holds them, still in their type."""
    size, half = 1 << dtype.bits, (1 << (dtype.bits - 1)) * dtype.is_signed
    if not half:
        return op.Mod(x, scalar(size, x))
    return op.Sub(op.Mod(op.Add(x, scalar(half, x)), scalar(size, x)), scalar(half, x))


_WRAPS = frozenset({"Abs", "Add", "CumSum", "CumProd", "Div", "Mul", "Neg", "Pow", "ReduceProd", "ReduceSum", "Sub"})
_WRAPS |= {"MatMul", "ReduceL1", "ReduceSumSquare"}


def in_int32(node: Node) -> list[Value] | None:
    """``node`` with int32 in the place of int8; None if it has no int8."""
    values = [v for v in (*node.operands, *node.results) if v is not None]
    if not any(v.dtype is DType.INT8 for v in values):
        return None
    operands = [cast(o, DType.INT32) if o is not None and o.dtype is DType.INT8 else o for o in node.operands]
    results = make_node(node.op, tuple(operands), dict(node.attrs), len(node.results)).results
    return [
        _in_int8(new, node.op) if old.dtype is DType.INT8 else new
        for old, new in zip(node.results, results, strict=True)
    ]


def _in_int8(x: Value, op_name: str) -> Value:
    return cast(wrapped(x, DType.INT8) if op_name in _WRAPS else x, DType.INT8)


# --- what some types lack --------------------------------------------------------------------------------------------


def _same(node: Node, version: Version) -> list[Value] | None:
    return in_int32(node)


def _relu(node: Node, version: Version) -> list[Value] | None:
    x = node.given(0)
    return in_int32(node) or [op.Max(x, scalar(0, x))]


def _mod(node: Node, version: Version) -> list[Value] | None:
    """Of floating-point numbers: with the sign of the divisor."""
    if (new := in_int32(node)) is not None:
        return new
    x, y = node.given(0), node.given(1)
    if not x.dtype.is_floating or node.attrs.get("fmod"):
        return None
    rest = op.Mod(x, y, fmod=1)
    zero = scalar(0, x)
    other = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
    return [op.Where(other, op.Add(rest, y), rest)]


def _check_mod(node: Node, version: Version) -> str:
    x = node.operand(0)
    return f"fmod=0 of {x.dtype.text}" if x is not None and x.dtype in FLOATS and not node.attrs.get("fmod") else ""


def _celu(node: Node, version: Version) -> list[Value] | None:
    x, alpha = node.given(0), node.attrs.get("alpha", 1.0)
    below = op.Mul(op.Elu(op.Div(x, scalar(alpha, x)), alpha=1.0), scalar(alpha, x))
    return [op.Where(op.Less(x, scalar(0, x)), below, x)]


def _shrink(node: Node, version: Version) -> list[Value] | None:
    """Its constants in the type of what shrinks; integers as floating-point numbers."""
    x, dtype = node.given(0), node.given(0).dtype
    if not dtype.is_floating:
        x = cast(x, DType.FLOAT)
    bias, bound = scalar(node.attrs.get("bias", 0.0), x), scalar(node.attrs.get("lambd", 0.5), x)
    inner = op.Where(op.Greater(x, bound), op.Sub(x, bias), scalar(0, x))
    return [cast(op.Where(op.Less(x, op.Neg(bound)), op.Add(x, bias), inner), dtype)]


def _prelu(node: Node, version: Version) -> list[Value] | None:
    x, slope = node.given(0), node.given(1)
    return [op.Where(op.Less(x, scalar(0, x)), op.Mul(x, slope), x)]


def _check_clip(node: Node, version: Version) -> str:
    bounds = [o.const.numpy() for o in node.operands[1:] if o is not None and o.const is not None]
    return "a bound that is not finite" if any(not np.isfinite(b).all() for b in bounds) else ""


def _clip(node: Node, version: Version) -> list[Value] | None:
    """By comparisons, which take infinite bounds."""
    if (new := in_int32(node)) is not None:
        return new
    result, low, high = node.given(0), node.operand(1), node.operand(2)
    result = op.Identity(result) if low is None else op.Max(result, low)
    return [result if high is None else op.Min(result, high)]


# --- determinants ----------------------------------------------------------------------------------------------------


def _det(node: Node, version: Version) -> list[Value] | None:
    """By elimination, whose pivots are the largest of their columns; step by step."""
    a = node.given(0)
    size = a.shape[-1] if a.shape else None
    if not isinstance(size, int) or not 0 < size <= _LARGEST_DET:
        return None
    dtype, a = a.dtype, cast(a, DType.FLOAT)
    det: Value | None = None
    for n in range(size, 0, -1):
        pivot, a = _eliminated(a, n)
        det = pivot if det is None else op.Mul(det, pivot)
    assert det is not None
    return [cast(det, dtype)]


def _eliminated(a: Value, n: int) -> tuple[Value, Value]:
    """The pivot of the first column of ``n``, with the sign of its row, and the rest of the matrix."""
    last, lead = constant([-1], DType.INT64), constant([-2], DType.INT64)
    column = _part(a, 0, 1, -1)
    if n == 1:
        return op.Squeeze(column, constant([-1, -2], DType.INT64)), a
    found = op.ArgMax(op.Abs(column), axis=-2, keepdims=1)
    rows = constant(np.arange(n).reshape(n, 1))
    here = cast(op.Equal(rows, found), DType.FLOAT)
    row = op.ReduceSum(op.Mul(a, here), lead, keepdims=1)
    moved = op.Add(a, op.Mul(here, op.Sub(_part(a, 0, 1, -2), row)))
    pivot = _part(row, 0, 1, -1)
    safe = op.Where(op.Equal(pivot, 0.0), constant(1.0, DType.FLOAT), pivot)
    below = _part(moved, 1, n, -2)
    factor = op.Div(_part(below, 0, 1, -1), safe)
    rest = op.Sub(_part(below, 1, n, -1), op.Mul(factor, _part(row, 1, n, -1)))
    sign = op.Where(op.Equal(found, 0), constant(1.0, DType.FLOAT), constant(-1.0, DType.FLOAT))
    return op.Squeeze(op.Squeeze(op.Mul(pivot, sign), last), last), rest


def _part(x: Value, start: int, end: int, axis: int) -> Value:
    return op.Slice(x, *(constant([i], DType.INT64) for i in (start, end, axis)))


def _is_inf(node: Node, version: Version) -> list[Value] | None:
    """By comparison, where TensorRT has no such operator."""
    x = node.given(0)
    high, low = (op.Equal(x, scalar(sign * np.inf, x)) for sign in (1, -1))
    found = [v for v, sign in ((high, "positive"), (low, "negative")) if node.attrs.get(f"detect_{sign}", 1)]
    return [op.And(high, low) if not found else found[0] if len(found) == 1 else op.Or(high, low)]


# --- dropout ---------------------------------------------------------------------------------------------------------


def _check_dropout(node: Node, version: Version) -> str:
    x, training = node.operand(0), node.operand(2)
    if x is not None and x.const is not None:
        return "what is dropped is a constant"
    if training is None or (training.const is not None and not training.const.numpy().any()):
        return ""
    return f"training_mode: {version} drops nothing"


def _dropout(node: Node, version: Version) -> list[Value] | None:
    """In training mode: what a random number decides."""
    x, ratio, training = node.given(0), node.operand(1), node.operand(2)
    if training is None or (training.const is not None and not training.const.numpy().any()):
        return [op.Identity(x), op.Expand(constant(True), op.Shape(x))][: len(node.results)]
    share = constant(0.5, DType.FLOAT) if ratio is None else cast(ratio, DType.FLOAT)
    kept = op.GreaterOrEqual(op.RandomUniformLike(cast(x, DType.FLOAT), seed=node.attrs.get("seed")), share)
    if training.const is None:
        kept = op.Or(kept, op.Not(training))
        share = op.Where(training, share, constant(0.0, DType.FLOAT))
    scaled = op.Div(cast(x, DType.FLOAT), op.Sub(constant(1.0, DType.FLOAT), share))
    result = cast(op.Where(kept, scaled, constant(0.0, DType.FLOAT)), x.dtype)
    return [result, kept][: len(node.results)]


# --- the table -------------------------------------------------------------------------------------------------------


def _check_prelu(node: Node, version: Version) -> str:
    x, slope = node.operand(0), node.operand(1)
    if x is None or slope is None or x.rank is None or slope.rank is None:
        return ""
    wide = slope.rank > x.rank or any(
        isinstance(s, int) and isinstance(d, int) and s not in (1, d)
        for s, d in zip(reversed(slope.shape or ()), reversed(x.shape or ()), strict=False)
    )
    return "the slope has another shape than what it is for" if wide else ""


ROWS: dict[str, Row] = {
    **{name: Row({"T": FLOATS}) for name in _OF_FLOATS},
    **{name: Row({"T": NUMBERS}) for name in _OF_NUMBERS},
    **{name: Row({"T": _BOOL}) for name in ("And", "Not", "Or", "Xor")},
    "Clip": Row({"T": FLOATS}, check=_check_clip),  # integers where shapes are computed: the builder may fail
    "Celu": Row({"T": frozenset({DType.FLOAT})}),
    "Dropout": Row({"T": FLOATS}, check=_check_dropout),
    "Equal": Row({"T": NUMBERS | _BOOL}),
    "Gelu": Row({"T": FLOATS}, since=(10, 0)),
    "HardSwish": Row({"T": _HALF}),
    "IsInf": Row({"T1": FLOATS}, since=(8, 6)),
    "IsNaN": Row({"T1": FLOATS}),
    "Mish": Row({"T": _HALF}, since=(10, 0)),
    "Mod": Row({"T": NUMBERS}, check=_check_mod),
    "PRelu": Row({"T": FLOATS}, check=_check_prelu),
    "Pow": Row({"T": NUMBERS, "T1": NUMBERS}),
    "Relu": Row({"T": FLOATS | {DType.INT64}}),
    "Shrink": Row({"T": _HALF | INDICES}),
    "Swish": Row({"T": FLOATS}, since=(10, 14)),
    "Where": Row({"T": NUMBERS | _BOOL}),
}

FORMS = {
    **dict.fromkeys(("Abs", "Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max"), _same),
    **dict.fromkeys(("Min", "Mul", "Neg", "Pow", "Sign", "Sub", "Where"), _same),
    "Celu": _celu,
    "Clip": _clip,
    "Det": _det,
    "Dropout": _dropout,
    "IsInf": _is_inf,
    "Mod": _mod,
    "PRelu": _prelu,
    "Relu": _relu,
    "Shrink": _shrink,
}
