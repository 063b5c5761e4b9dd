"""Elementwise primitives: arithmetic, functions, comparisons, selection and conversion.

jax promises more than ONNX says of some: what divides by zero, where rounding goes, what a number becomes that does not
fit. Where ONNX leaves these open, the rule adds what makes the numbers the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ir.types import DType
from . import idioms
from .emit import Refused
from .translate import Equation, Translator, rule

__all__: list[str] = []

_UNARY = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh", "atan": "Atan", "atanh": "Atanh",
    "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log",
    "logistic": "Sigmoid", "sign": "Sign", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
_COMPARISONS = {"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}
_LOGICAL = {"and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"), "xor": ("Xor", "BitwiseXor")}
_ON_BOOLS = {"add": "Or", "add_any": "Or", "max": "Or", "mul": "And", "min": "And"}
_ARITHMETIC = {"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "max": "Max", "min": "Min"}
_SMALL = 16  # bits of the integers that every floating-point type of 32 bits or more holds exactly


# one operator


@rule(*_UNARY)
def _unary(t: Translator, eqn: Equation, x: Value) -> Any:
    return getattr(t.op, _UNARY[eqn.name])(x)


@rule("eq")
def _eq(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    return t.op.Equal(x, y)


@rule(*_ARITHMETIC)
def _arithmetic(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    if x.dtype is DType.BOOL:
        return getattr(t.op, _ON_BOOLS[eqn.name])(x, y)
    neutral = {"max": -math.inf, "min": math.inf}.get(eqn.name)
    if neutral is not None and x.dtype.is_floating:  # jax guards its softmax so, against the maximum of nothing
        for a, b in ((x, y), (y, x)):
            if idioms.is_number(a, neutral) and b.shape == eqn.shape:
                return b
    return idioms.arithmetic(t, eqn.name, x, y) or idioms.elementwise(t, _ARITHMETIC[eqn.name], x, y)


@rule("ne")
def _ne(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    return t.op.Xor(x, y) if x.dtype is DType.BOOL else t.op.Not(t.op.Equal(x, y))


@rule(*_COMPARISONS)
def _compare(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    if x.dtype is DType.BOOL:
        x, y = t.cast(x, DType.INT32), t.cast(y, DType.INT32)
    return getattr(t.op, _COMPARISONS[eqn.name])(x, y)


@rule("eq_to", "le_to", "lt_to")
def _compare_in_order(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    """Comparisons in which NaN comes after infinity; jax asks them of what has one zero and one NaN only."""
    op = t.op
    plain = getattr(op, {"eq_to": "Equal", "le_to": "LessOrEqual", "lt_to": "Less"}[eqn.name])(x, y)
    if not x.dtype.is_floating:
        return plain
    last = op.IsNaN(y)
    also = last if eqn.name == "le_to" else op.And(last, op.IsNaN(x) if eqn.name == "eq_to" else op.Not(op.IsNaN(x)))
    return op.Or(plain, also)


@rule(*_LOGICAL)
def _logical(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    if x.dtype is DType.BOOL:
        for a, b in ((x, y), (y, x)):
            if _everywhere(a) is {"and": True, "or": False, "xor": False}[eqn.name]:
                return t.expand(b, eqn.shape)
    return getattr(t.op, _LOGICAL[eqn.name][x.dtype is not DType.BOOL])(x, y)


@rule("not")
def _not(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Not(x) if x.dtype is DType.BOOL else t.op.BitwiseNot(x)


@rule("neg")
def _neg(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Neg(x) if x.dtype.is_signed else t.op.Sub(t.scalar(0, x.dtype), x)


# rounding and remainders


@rule("round")
def _round(t: Translator, eqn: Equation, x: Value) -> Any:
    if int(eqn.params["rounding_method"]) == 1:  # to the nearest even
        return t.op.Round(x)
    op, size = t.op, t.op.Abs(x)
    whole = op.Floor(size)
    up = op.GreaterOrEqual(op.Sub(size, whole), t.scalar(0.5, x.dtype))
    return op.Mul(op.Sign(x), op.Add(whole, t.cast(up, x.dtype)))


def _divisible(t: Translator, x: Value, y: Value) -> tuple[Value, Value | None, Value | None]:
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


@rule("div")
def _div(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    op = t.op
    if not x.dtype.is_integer:
        return idioms.quotient(t, x, y) or idioms.elementwise(t, "Div", x, y)
    y, at_zero, at_minus = _divisible(t, x, y)
    quotient = op.Div(x, y)  # rounds towards zero, as in jax
    if at_minus is not None:
        quotient = op.Where(at_minus, op.Sub(t.scalar(0, x.dtype), x), quotient)
    if at_zero is not None:
        quotient = op.Where(at_zero, t.scalar(np.array(-1).astype(x.dtype.numpy), x.dtype), quotient)
    return quotient


@rule("softmax")
def _softmax(t: Translator, eqn: Equation, x: Value) -> Any:
    """No primitive: what the translator finds a quotient or a difference to be."""
    assert eqn.softmax is not None
    return idioms.softmax(t, eqn.softmax[0], x, eqn.softmax[1])


@rule("rem")
def _rem(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    op = t.op
    if not x.dtype.is_integer:
        return op.Mod(x, y, fmod=1)
    y, at_zero, at_minus = _divisible(t, x, y)
    # runtimes compute fmod in floating point, which does not hold 64 bits
    rest = op.Mod(x, y, fmod=1) if x.dtype.bits < 64 else op.Sub(x, op.Mul(op.Div(x, y), y))
    if at_minus is not None:
        rest = op.Where(at_minus, t.scalar(0, x.dtype), rest)
    return rest if at_zero is None else op.Where(at_zero, x, rest)


# powers and roots


@rule("pow")
def _pow(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    return t.op.Pow(x, y)


@rule("square")
def _square(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Mul(x, x)


@rule("integer_pow")
def _integer_pow(t: Translator, eqn: Equation, x: Value) -> Any:
    exponent = abs(int(eqn.params["y"]))
    if exponent == 0:
        return t.full(1, x.dtype, x.shape or ())
    if exponent > 4 and x.dtype.is_floating:
        power = t.op.Pow(x, t.scalar(exponent, x.dtype))
    else:
        power = None
        square = x
        while exponent:
            if exponent & 1:
                power = square if power is None else t.op.Mul(power, square)
            exponent >>= 1
            square = t.op.Mul(square, square) if exponent else square
    return t.op.Reciprocal(power) if eqn.params["y"] < 0 else power


@rule("rsqrt")
def _rsqrt(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Reciprocal(t.op.Sqrt(x))


@rule("cbrt")
def _cbrt(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Mul(t.op.Sign(x), t.op.Pow(t.op.Abs(x), t.scalar(1 / 3, x.dtype)))


@rule("exp2")
def _exp2(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Pow(t.scalar(2, x.dtype), x)


# functions that keep their digits near zero


@rule("expm1")
def _expm1(t: Translator, eqn: Equation, x: Value) -> Any:
    """``tanh(x/2) * (exp(x) + 1)``, which is the same and does not cancel."""
    half = t.op.Mul(x, t.scalar(0.5, x.dtype))
    return t.op.Mul(t.op.Tanh(half), t.op.Add(t.op.Exp(x), t.scalar(1, x.dtype)))


@rule("log1p")
def _log1p(t: Translator, eqn: Equation, x: Value) -> Any:
    """``log(u) * x / (u - 1)`` for ``u = 1 + x`` as rounded: its error and that of the quotient cancel (Kahan)."""
    op = t.op
    u = op.Add(x, t.scalar(1, x.dtype))
    d = op.Sub(u, t.scalar(1, x.dtype))
    ratio = op.Where(op.Equal(d, x), t.scalar(1, x.dtype), op.Div(x, d))
    return op.Where(op.Equal(d, t.scalar(0, x.dtype)), x, op.Mul(op.Log(u), ratio))


@rule("erfc")
def _erfc(t: Translator, eqn: Equation, x: Value) -> Any:
    one = t.scalar(1, x.dtype)
    positive = idioms.without_sign(t, x)
    return t.op.Sub(one, t.op.Erf(x)) if positive is None else t.op.Add(one, t.op.Erf(positive))


_ERF_INV_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_ERF_INV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip


@rule("erf_inv")
def _erf_inv(t: Translator, eqn: Equation, x: Value) -> Any:
    """Giles, "Approximating the erfinv function" (2010), single precision: what XLA computes."""
    if x.dtype is DType.DOUBLE:
        raise Refused("erf_inv in double precision has no ONNX operator")
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


@rule("atan2")
def _atan2(t: Translator, eqn: Equation, y: Value, x: Value) -> Any:
    """``atan(y/x)``, moved to the quadrant of ``(x, y)``; signs of zeros count, as in C."""
    op = t.op
    zero, pi = t.scalar(0, x.dtype), t.scalar(math.pi, x.dtype)
    inf = t.scalar(math.inf, x.dtype)

    def negative(value: Value) -> Value:  # -0 is
        return op.Or(op.Less(value, zero), op.Less(op.Div(t.scalar(1, x.dtype), value), zero))

    both = op.And(op.Equal(op.Abs(x), inf), op.Equal(op.Abs(y), inf))
    ratio = op.Where(both, op.Mul(op.Sign(y), op.Sign(x)), op.Div(y, x))
    origin = op.And(op.Equal(x, zero), op.Equal(y, zero))
    angle = op.Where(origin, zero, op.Atan(ratio))
    turn = op.Where(negative(y), op.Neg(pi), pi)
    return op.Where(negative(x), op.Add(angle, turn), angle)


# tests, limits and choices


@rule("is_finite")
def _is_finite(t: Translator, eqn: Equation, x: Value) -> Any:
    return t.op.Less(t.op.Abs(x), t.scalar(math.inf, x.dtype))


@rule("clamp")
def _clamp(t: Translator, eqn: Equation, low: Value, x: Value, high: Value) -> Any:
    if x.dtype is DType.BOOL:
        return t.op.And(t.op.Or(x, low), high)
    if low.shape == () == high.shape and x.dtype.bits not in (1, 2, 4):
        return t.op.Clip(x, low, high)
    return t.op.Min(t.op.Max(x, low), high)


@rule("select_n")
def _select_n(t: Translator, eqn: Equation, which: Value, *cases: Value) -> Any:
    found = cases[0]
    number = idioms.number_of(which)
    if number is not None and all(c.shape == eqn.shape for c in cases):
        return cases[int(number)]
    if which.dtype is DType.BOOL and eqn.out.dtype is DType.BOOL and len(cases) == 2:
        return _choose_truth(t, eqn, which, cases[1], cases[0])
    if which.dtype is DType.BOOL:
        return idioms.elementwise(t, "Where", which, cases[1], cases[0]) if len(cases) > 1 else found
    for i, case in enumerate(cases[1:], 1):
        found = t.op.Where(t.op.Equal(which, t.scalar(i, which.dtype)), case, found)
    return found


def _choose_truth(t: Translator, eqn: Equation, which: Value, yes: Value, no: Value) -> Value:
    """One of two booleans, by logic: runtimes choose among numbers."""
    op = t.op
    first, second = _everywhere(yes), _everywhere(no)
    if first is True:
        found = which if second is False else op.Or(which, no)
    elif second is False:
        found = op.And(which, yes)
    else:
        found = op.Or(op.And(which, yes), op.And(op.Not(which), no))
    return t.expand(found, eqn.shape)


def _everywhere(value: Value) -> bool | None:
    """The one truth value of a boolean tensor, expanded from a constant."""
    while value.producer is not None and value.producer.op == "Expand":
        value = value.producer.given(0)
    number = idioms.number_of(value)
    return None if number is None else bool(number)


# conversions


@rule("convert_element_type")
def _convert(t: Translator, eqn: Equation, x: Value) -> Any:
    return convert(t, x, eqn.out.dtype)


def convert(t: Translator, x: Value, dtype: DType) -> Value:
    """``x`` as ``dtype`` by jax's rules: numbers that do not fit an integer become its nearest, and NaN 0.

    ONNX leaves that open, and runtimes differ from XLA.
    """
    if not (x.dtype.is_floating and dtype.is_integer) or x.const is not None or _fits(x, dtype):
        return t.cast(x, dtype)
    op = t.op
    low, high = _limits(dtype)
    kind = x.dtype
    if kind.bits < 32:  # which may not hold the limits
        x, kind = t.cast(x, DType.FLOAT), DType.FLOAT
    if dtype.bits <= _SMALL:
        return t.cast(op.Clip(x, t.scalar(low, kind), t.scalar(high, kind)), dtype)
    x = op.Where(op.IsNaN(x), t.scalar(0, kind), x)
    top = np.array(float(high) + 1, kind.numpy)  # a power of two; the largest number below it fits
    inside = op.Clip(x, t.scalar(low, kind), t.scalar(np.nextafter(top, kind.numpy.type(0)), kind))
    return op.Where(op.GreaterOrEqual(x, t.scalar(top, kind)), t.scalar(high, dtype), t.cast(inside, dtype))


def _limits(dtype: DType) -> tuple[int, int]:
    if dtype.is_signed:
        return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1
    return 0, (1 << dtype.bits) - 1


_BOUNDED = ("Sign", "Tanh", "Sin", "Cos", "Erf", "Sigmoid")


def _fits(value: Value, dtype: DType) -> bool:
    """Whether the numbers of a floating-point value are known to fit into the integer type ``dtype``."""
    low, high = _limits(dtype)
    least, most = -math.inf, math.inf
    while (node := value.producer) is not None:
        if node.op == "Cast":
            source = node.given(0).dtype
            known = (0, 1) if source is DType.BOOL else _limits(source) if source.is_integer else (-math.inf, math.inf)
            return max(least, known[0]) >= low and min(most, known[1]) <= high and value.dtype.bits >= 32
        if node.op in _BOUNDED:
            least, most = max(least, -1.0), min(most, 1.0)
        elif node.op == "Clip":
            bounds = [None if o is None else idioms.number_of(o) for o in (node.operand(1), node.operand(2))]
            least = least if bounds[0] is None else max(least, bounds[0])
            most = most if bounds[1] is None else min(most, bounds[1])
        elif node.op in ("Max", "Min") and len(node.operands) == 2:
            number = idioms.number_of(node.given(1))
            if number is None:
                break
            least, most = (max(least, number), most) if node.op == "Max" else (least, min(most, number))
        elif node.op not in ("Round", "Floor", "Ceil"):
            break
        value = node.given(0)
    return low <= least and most <= high and dtype.bits <= _SMALL  # NaN would need care beyond that


@rule("bitcast_convert_type")
def _bitcast(t: Translator, eqn: Equation, x: Value) -> Any:
    if x.dtype.bits != eqn.out.dtype.bits or x.dtype.bits < 8:
        raise Refused("bits are taken for a type of another width")
    return t.op.BitCast(x, to=eqn.out.dtype)


@rule("reduce_precision")
def _reduce_precision(t: Translator, eqn: Equation, x: Value) -> Any:
    bits = eqn.params["exponent_bits"], eqn.params["mantissa_bits"]
    own = {DType.FLOAT16: (5, 10), DType.BFLOAT16: (8, 7), DType.FLOAT: (8, 23), DType.DOUBLE: (11, 52)}
    kept = own[x.dtype]
    if bits[0] >= kept[0] and bits[1] >= kept[1]:
        return x
    narrow = next((d for d, b in own.items() if b == bits), None)
    if narrow is None:
        raise Refused(f"no type has {bits[0]} bits of exponent and {bits[1]} of mantissa")
    return t.cast(t.cast(x, narrow), x.dtype)


# bits

_UNSIGNED = {DType.INT8: DType.UINT8, DType.INT16: DType.UINT16, DType.INT32: DType.UINT32, DType.INT64: DType.UINT64}


def _shift(t: Translator, x: Value, count: Value, direction: str) -> Value:
    """The bits of ``x``, moved; 0 where none is left (a processor would take the count modulo the width)."""
    op, plain = t.op, _UNSIGNED.get(x.dtype, x.dtype)
    bits, count = t.cast(x, plain), t.cast(count, plain)
    width = t.scalar(x.dtype.bits, plain)
    safe = count.const is not None and bool((count.const.numpy() < x.dtype.bits).all())
    if safe:
        return t.cast(op.BitShift(bits, count, direction=direction), x.dtype)
    moved = op.BitShift(bits, op.Min(count, t.scalar(x.dtype.bits - 1, plain)), direction=direction)
    return t.cast(op.Where(op.Less(count, width), moved, t.scalar(0, plain)), x.dtype)


@rule("shift_left")
def _shift_left(t: Translator, eqn: Equation, x: Value, count: Value) -> Any:
    return _shift(t, x, count, "LEFT")


@rule("shift_right_logical")
def _shift_right_logical(t: Translator, eqn: Equation, x: Value, count: Value) -> Any:
    return _shift(t, x, count, "RIGHT")


@rule("shift_right_arithmetic")
def _shift_right_arithmetic(t: Translator, eqn: Equation, x: Value, count: Value) -> Any:
    if not x.dtype.is_signed:
        return _shift(t, x, count, "RIGHT")
    op, negative = t.op, t.op.Less(x, t.scalar(0, x.dtype))
    moved = _shift(t, op.Where(negative, op.BitwiseNot(x), x), count, "RIGHT")
    return op.Where(negative, op.BitwiseNot(moved), moved)
