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
from .. import exact
from ..emit import Refused
from . import idioms
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
            if exact.is_number(a, neutral) and b.shape == eqn.shape:
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


@rule("div")
def _div(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    if not x.dtype.is_integer:
        return idioms.quotient(t, x, y) or idioms.elementwise(t, "Div", x, y)
    return exact.quotient(t, x, y)


@rule("softmax")
def _softmax(t: Translator, eqn: Equation, x: Value) -> Any:
    """No primitive: what the translator finds a quotient or a difference to be."""
    assert eqn.softmax is not None
    return idioms.softmax(t, eqn.softmax[0], x, eqn.softmax[1])


@rule("rem")
def _rem(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    return exact.remainder(t, x, y) if x.dtype.is_integer else t.op.Mod(x, y, fmod=1)


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
    return exact.expm1(t, x)


@rule("log1p")
def _log1p(t: Translator, eqn: Equation, x: Value) -> Any:
    return exact.log1p(t, x)


@rule("erfc")
def _erfc(t: Translator, eqn: Equation, x: Value) -> Any:
    return exact.erfc(t, x)


@rule("erf_inv")
def _erf_inv(t: Translator, eqn: Equation, x: Value) -> Any:
    return exact.erf_inv(t, x)


@rule("atan2")
def _atan2(t: Translator, eqn: Equation, y: Value, x: Value) -> Any:
    return exact.atan2(t, y, x)


# tests, limits and choices


@rule("is_finite")
def _is_finite(t: Translator, eqn: Equation, x: Value) -> Any:
    return exact.is_finite(t, x)


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
    number = exact.number_of(which)
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
    number = exact.number_of(value)
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
            bounds = [None if o is None else exact.number_of(o) for o in (node.operand(1), node.operand(2))]
            least = least if bounds[0] is None else max(least, bounds[0])
            most = most if bounds[1] is None else min(most, bounds[1])
        elif node.op in ("Max", "Min") and len(node.operands) == 2:
            number = exact.number_of(node.given(1))
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


def _shift(t: Translator, x: Value, count: Value, *, left: bool) -> Value:
    """The bits of ``x``, moved; 0 where none is left (a processor would take the count modulo the width)."""
    op, bits = t.op, x.dtype.bits
    if count.const is not None and bool((count.const.numpy() < bits).all()):
        return exact.shift(t, x, count, left=left)
    count = t.cast(count, exact.unsigned(x.dtype))
    moved = exact.shift(t, x, op.Min(count, t.scalar(bits - 1, count.dtype)), left=left)
    found: Value = op.Where(op.Less(count, t.scalar(bits, count.dtype)), moved, t.scalar(0, x.dtype))
    return found


@rule("shift_left")
def _shift_left(t: Translator, eqn: Equation, x: Value, count: Value) -> Any:
    return _shift(t, x, count, left=True)


@rule("shift_right_logical")
def _shift_right_logical(t: Translator, eqn: Equation, x: Value, count: Value) -> Any:
    return _shift(t, x, count, left=False)


@rule("shift_right_arithmetic")
def _shift_right_arithmetic(t: Translator, eqn: Equation, x: Value, count: Value) -> Any:
    if not x.dtype.is_signed:
        return _shift(t, x, count, left=False)
    op, negative = t.op, t.op.Less(x, t.scalar(0, x.dtype))
    moved = _shift(t, op.Where(negative, op.BitwiseNot(x), x), count, left=False)
    return op.Where(negative, op.BitwiseNot(moved), moved)
