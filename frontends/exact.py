"""Functions that ONNX has no operator for, and operators where it leaves open what jax and TensorFlow promise."""

from __future__ import annotations

import math

import numpy as np

from ..ir.graph import Value
from ..ir.types import DType
from .emit import Emitter, Refused

__all__ = [
    "atan2",
    "divisible",
    "erf_inv",
    "erfc",
    "expm1",
    "is_finite",
    "is_number",
    "log1p",
    "number_of",
    "quotient",
    "remainder",
    "shift",
    "unsigned",
    "wide",
]

# numbers and types


def number_of(value: Value) -> float | None:
    """The one number of a constant; None for anything else."""
    const = value.const
    if const is None or const.size != 1 or const.dtype is DType.STRING:
        return None
    return float(const.numpy().item())


def is_number(value: Value | None, number: float) -> bool:
    """Whether ``value`` is a constant that is this one number."""
    return value is not None and number_of(value) == number


def wide(dtype: DType) -> DType:
    """A type in which runtimes have sums and extremes, and whose results are those of ``dtype`` when cast back."""
    if dtype.is_integer and dtype.bits < 32:
        return DType.INT32
    return DType.INT64 if dtype is DType.UINT32 else dtype


def is_finite(t: Emitter, x: Value) -> Value:
    """Where ``x`` is neither NaN nor infinite."""
    found: Value = t.op.Less(t.op.Abs(x), t.scalar(math.inf, x.dtype))
    return found


# division of integers


def divisible(t: Emitter, x: Value, y: Value) -> tuple[Value, Value | None, Value | None]:
    """A divisor that no processor traps at, and where ``y`` is 0, and where it is -1 (None: nowhere).

    The smallest integer divided by -1 does not fit, and traps like a division by 0.
    """
    if y.const is not None:
        numbers = y.const.numpy()
        zero, minus = bool((numbers == 0).any()), x.dtype.is_signed and bool((numbers == -1).any())
    else:
        zero, minus = True, x.dtype.is_signed
    op, one = t.op, t.scalar(1, y.dtype)
    at_zero = op.Equal(y, t.scalar(0, y.dtype)) if zero else None
    at_minus = op.Equal(y, t.scalar(-1, y.dtype)) if minus else None
    for at in (at_zero, at_minus):
        y = y if at is None else op.Where(at, one, y)
    return y, at_zero, at_minus


def quotient(t: Emitter, x: Value, y: Value) -> Value:
    """``x / y`` of integers, rounded towards zero; -1 (all bits) where ``y`` is 0."""
    op = t.op
    y, at_zero, at_minus = divisible(t, x, y)
    found: Value = op.Div(x, y)
    if at_minus is not None:
        found = op.Where(at_minus, op.Sub(t.scalar(0, x.dtype), x), found)
    if at_zero is not None:
        found = op.Where(at_zero, t.scalar(np.array(-1).astype(x.dtype.numpy), x.dtype), found)
    return found


def remainder(t: Emitter, x: Value, y: Value) -> Value:
    """What `quotient` leaves, which has the sign of ``x``; ``x`` where ``y`` is 0."""
    op = t.op
    y, at_zero, at_minus = divisible(t, x, y)
    # runtimes compute fmod in floating point, which does not hold 64 bits
    rest: Value = op.Mod(x, y, fmod=1) if x.dtype.bits < 64 else op.Sub(x, op.Mul(op.Div(x, y), y))
    if at_minus is not None:
        rest = op.Where(at_minus, t.scalar(0, x.dtype), rest)
    return rest if at_zero is None else op.Where(at_zero, x, rest)


# functions that keep their digits near zero


def expm1(t: Emitter, x: Value) -> Value:
    """``exp(x) - 1`` as ``tanh(x/2) * (exp(x) + 1)``, which is the same and does not cancel."""
    half = t.op.Mul(x, t.scalar(0.5, x.dtype))
    found: Value = t.op.Mul(t.op.Tanh(half), t.op.Add(t.op.Exp(x), t.scalar(1, x.dtype)))
    return found


def log1p(t: Emitter, x: Value) -> Value:
    """``log(1 + x)``: ``log(u) * x / (u - 1)`` for ``u = 1 + x`` as rounded, whose errors cancel (Kahan)."""
    op = t.op
    u = op.Add(x, t.scalar(1, x.dtype))
    d = op.Sub(u, t.scalar(1, x.dtype))
    ratio = op.Where(op.Equal(d, x), t.scalar(1, x.dtype), op.Div(x, d))
    found: Value = op.Where(op.Equal(d, t.scalar(0, x.dtype)), x, op.Mul(op.Log(u), ratio))
    return found


def erfc(t: Emitter, x: Value) -> Value:
    """``1 - erf(x)``; of what is negated, ``1 + erf``, as Gelu has it."""
    one = t.scalar(1, x.dtype)
    positive = _without_sign(t, x)
    found: Value = t.op.Sub(one, t.op.Erf(x)) if positive is None else t.op.Add(one, t.op.Erf(positive))
    return found


def _without_sign(t: Emitter, x: Value) -> Value | None:
    """``y`` where ``x`` is ``-y``, or ``-y`` times a number."""
    node = x.producer
    if node is not None and node.op == "Neg":
        return node.given(0)
    if node is None or node.op != "Mul":
        return None
    for i in (0, 1):
        negated, number = node.given(i).producer, node.given(1 - i)
        if negated is not None and negated.op == "Neg" and number_of(number) is not None:
            found: Value = t.op.Mul(negated.given(0), number)
            return found
    return None


_ERF_INV_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_ERF_INV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip


def erf_inv(t: Emitter, x: Value) -> Value:
    """Giles, "Approximating the erfinv function" (2010), single precision: what XLA computes."""
    if x.dtype is DType.DOUBLE:
        raise Refused("the inverse of erf in double precision has no ONNX operator")
    op, dtype = t.op, x.dtype
    y = t.cast(x, DType.FLOAT)

    def number(value: float) -> Value:
        return t.scalar(value, DType.FLOAT)

    w = op.Neg(op.Log(op.Mul(op.Sub(number(1), y), op.Add(number(1), y))))
    near, far = op.Sub(w, number(2.5)), op.Sub(op.Sqrt(w), number(3))
    centre, tail = number(_ERF_INV_CENTRE[0]), number(_ERF_INV_TAIL[0])
    for a, b in zip(_ERF_INV_CENTRE[1:], _ERF_INV_TAIL[1:], strict=True):
        centre, tail = op.Add(op.Mul(centre, near), number(a)), op.Add(op.Mul(tail, far), number(b))
    found = op.Mul(op.Where(op.Less(w, number(5)), centre, tail), y)
    at_end = op.Equal(op.Abs(y), number(1))
    return t.cast(op.Where(at_end, op.Mul(y, number(math.inf)), found), dtype)


def atan2(t: Emitter, y: Value, x: Value) -> Value:
    """``atan(y/x)``, moved to the quadrant of ``(x, y)``; signs of zeros count, as in C."""
    op = t.op
    zero, pi = t.scalar(0, x.dtype), t.scalar(math.pi, x.dtype)
    inf = t.scalar(math.inf, x.dtype)

    def negative(value: Value) -> Value:  # -0 is
        found: Value = op.Or(op.Less(value, zero), op.Less(op.Div(t.scalar(1, x.dtype), value), zero))
        return found

    both = op.And(op.Equal(op.Abs(x), inf), op.Equal(op.Abs(y), inf))
    ratio = op.Where(both, op.Mul(op.Sign(y), op.Sign(x)), op.Div(y, x))
    origin = op.And(op.Equal(x, zero), op.Equal(y, zero))
    angle = op.Where(origin, zero, op.Atan(ratio))
    turn = op.Where(negative(y), op.Neg(pi), pi)
    found: Value = op.Where(negative(x), op.Add(angle, turn), angle)
    return found


# bits

_UNSIGNED = {DType.INT8: DType.UINT8, DType.INT16: DType.UINT16, DType.INT32: DType.UINT32, DType.INT64: DType.UINT64}


def unsigned(dtype: DType) -> DType:
    """The integers of as many bits without a sign."""
    return _UNSIGNED.get(dtype, dtype)


def shift(t: Emitter, x: Value, count: Value, *, left: bool, arithmetic: bool = False) -> Value:
    """The bits of ``x``, moved by less than their number; ``arithmetic``: the sign moves in from the left."""
    op, plain = t.op, unsigned(x.dtype)
    if arithmetic and x.dtype.is_signed:
        negative = op.Less(x, t.scalar(0, x.dtype))
        moved = shift(t, op.Where(negative, op.BitwiseNot(x), x), count, left=left)
        found: Value = op.Where(negative, op.BitwiseNot(moved), moved)
        return found
    moved = op.BitShift(t.cast(x, plain), t.cast(count, plain), direction="LEFT" if left else "RIGHT")
    return t.cast(moved, x.dtype)
