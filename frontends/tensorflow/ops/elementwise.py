"""Element by element: arithmetic, functions, comparisons, selection and conversion.

TensorFlow promises more than ONNX says of some: where the quotient of integers is rounded to, what nothing divided by
zero is, what becomes of a shift that is too far. Where ONNX leaves these open, the rule adds what makes the numbers the
same. What TensorFlow leaves open, such as a number that does not fit the integer it is cast to, stays open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....ir.dims import is_non_negative
from ....ir.graph import Value
from ....ir.infer.engine import content_of
from ....ir.types import DType
from ... import exact
from ...emit import Refused
from ..translate import Operation, Translator, dtype_of, rule

__all__ = ["apply", "per_element"]

_UNARY = {
    "Abs": "Abs", "Acos": "Acos", "Acosh": "Acosh", "Asin": "Asin", "Asinh": "Asinh", "Atan": "Atan", "Atanh": "Atanh",
    "Ceil": "Ceil", "Cos": "Cos", "Cosh": "Cosh", "Elu": "Elu", "Erf": "Erf", "Exp": "Exp", "Floor": "Floor",
    "Inv": "Reciprocal", "Invert": "BitwiseNot", "IsInf": "IsInf", "IsNan": "IsNaN", "Log": "Log", "LogicalNot": "Not",
    "Reciprocal": "Reciprocal", "Selu": "Selu", "Sigmoid": "Sigmoid", "Sign": "Sign", "Sin": "Sin", "Sinh": "Sinh",
    "Softplus": "Softplus", "Softsign": "Softsign", "Sqrt": "Sqrt", "Tan": "Tan", "Tanh": "Tanh",
}  # fmt: skip
_BINARY = {
    "Add": "Add", "AddV2": "Add", "Sub": "Sub", "Mul": "Mul", "RealDiv": "Div", "Maximum": "Max", "Minimum": "Min",
    "LogicalAnd": "And", "LogicalOr": "Or", "Equal": "Equal", "Less": "Less", "LessEqual": "LessOrEqual",
    "Greater": "Greater", "GreaterEqual": "GreaterOrEqual", "BitwiseAnd": "BitwiseAnd", "BitwiseOr": "BitwiseOr",
    "BitwiseXor": "BitwiseXor",
}  # fmt: skip
_SPECIAL = (
    "BesselI0 BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e BesselY0 BesselY1 "
    "Betainc CumulativeLogsumexp Dawsn Digamma Expint FresnelCos FresnelSin Igamma Igammac Lgamma Ndtri NextAfter "
    "Polygamma Spence Zeta"
)


def per_element(t: Translator, function: Callable[..., Value], *operands: Value) -> Value:
    """What ``function`` computes element by element, with channels first where its operands are kept so."""
    across = t.layouts.across(operands)
    result = function(*(across or operands))
    return t.layouts.last(result) if across else result


def apply(t: Translator, name: str, *operands: Value, **attrs: Any) -> Value:
    """An elementwise operator, with channels first where its operands are kept so."""
    return per_element(t, lambda *given: getattr(t.op, name)(*given, **attrs), *operands)


# one operator


@rule(*_UNARY)
def _unary(t: Translator, o: Operation, x: Value) -> Any:
    return apply(t, _UNARY[o.type], x)


@rule(*_BINARY)
def _binary(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return apply(t, _BINARY[o.type], x, y)


@rule("AddN", "AccumulateNV2")
def _add_n(t: Translator, o: Operation, *operands: Value) -> Any:
    total = operands[0]
    for operand in operands[1:]:
        total = apply(t, "Add", total, operand)
    return total


@rule("Neg")
def _neg(t: Translator, o: Operation, x: Value) -> Any:
    return apply(t, "Neg", x) if x.dtype.is_signed else apply(t, "Sub", t.scalar(0, x.dtype), x)


@rule("NotEqual")
def _not_equal(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return apply(t, "Xor", x, y) if x.dtype is DType.BOOL else apply(t, "Not", apply(t, "Equal", x, y))


@rule("ApproximateEqual")
def _approximately_equal(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    distance = apply(t, "Abs", apply(t, "Sub", x, y))
    return apply(t, "Less", distance, t.scalar(o.attr("tolerance"), x.dtype))


@rule("IsFinite")
def _is_finite(t: Translator, o: Operation, x: Value) -> Any:
    return per_element(t, lambda x: exact.is_finite(t, x), x)


@rule("Round", "Rint")
def _round(t: Translator, o: Operation, x: Value) -> Any:
    """Half to even."""
    return apply(t, "Round", x) if x.dtype.is_floating else x


@rule(*_SPECIAL.split())
def _special(t: Translator, o: Operation, *operands: Value) -> Any:
    raise Refused("ONNX has no operator for this function: compute it outside of the model")


# quotients and remainders


@rule("Div")
def _div(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    """TensorFlow 1's: of integers, rounded towards zero."""
    return _truncated(t, x, y) if x.dtype.is_integer else apply(t, "Div", x, y)


@rule("TruncateDiv")
def _truncate_div(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    if x.dtype.is_integer:
        return _truncated(t, x, y)
    op, zero = t.op, t.scalar(0, x.dtype)

    def truncate(x: Value, y: Value) -> Value:
        quotient = op.Div(x, y)
        found: Value = op.Where(op.Less(quotient, zero), op.Ceil(quotient), op.Floor(quotient))
        return found

    return per_element(t, truncate, x, y)


def _truncated(t: Translator, x: Value, y: Value) -> Value:
    if _is_natural(x) and _is_natural(y):
        return apply(t, "Div", x, y)
    return per_element(t, lambda x, y: exact.quotient(t, x, y), x, y)


@rule("FloorDiv")
def _floor_div(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    if x.dtype.is_floating:
        return apply(t, "Floor", apply(t, "Div", x, y))
    if not x.dtype.is_signed or (_is_natural(x) and _is_natural(y)):
        return _truncated(t, x, y)
    op, zero = t.op, t.scalar(0, x.dtype)

    def floor(x: Value, y: Value) -> Value:
        quotient = exact.quotient(t, x, y)
        rest = op.Sub(x, op.Mul(quotient, y))
        below = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
        found: Value = op.Sub(quotient, t.cast(below, x.dtype))
        return found

    return per_element(t, floor, x, y)


@rule("FloorMod")
def _floor_mod(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    """With the sign of the divisor."""
    op = t.op
    if x.dtype.is_integer:
        if not (_is_natural(x) and _is_natural(y)):
            y = per_element(t, lambda y: exact.divisible(t, x, y)[0], y)  # what -1 divides, 1 does
        return apply(t, "Mod", x, y)
    zero = t.scalar(0, x.dtype)

    def floor_mod(x: Value, y: Value) -> Value:
        rest = op.Mod(x, y, fmod=1)
        other = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
        found: Value = op.Where(other, op.Add(rest, y), rest)
        return found

    return per_element(t, floor_mod, x, y)


@rule("Mod", "TruncateMod")
def _truncate_mod(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    """With the sign of the dividend."""
    if not x.dtype.is_integer:
        return apply(t, "Mod", x, y, fmod=1)
    return per_element(t, lambda x, y: exact.remainder(t, x, y), x, y)


def _is_natural(value: Value) -> bool:
    """Whether integers are known not to be negative, and not to be 0 if they are known: sizes, and what counts them."""
    elements = content_of(value)
    return elements is not None and all(e != 0 and is_non_negative(e) for e in elements)


def _where_zero(t: Translator, test: Value, function: Callable[..., Value], *operands: Value) -> Value:
    """What ``function`` computes, but 0 where ``test``, one of the operands, is 0."""
    if test.const is not None and bool(np.all(test.const.numpy() != 0)):
        return per_element(t, function, *operands)
    op, zero, at = t.op, t.scalar(0, test.dtype), operands.index(test)

    def guarded(*given: Value) -> Value:
        found: Value = op.Where(op.Equal(given[at], zero), zero, function(*given))
        return found

    return per_element(t, guarded, *operands)


@rule("DivNoNan")
def _div_no_nan(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return _where_zero(t, y, lambda x, y: t.op.Div(x, y), x, y)


@rule("MulNoNan")
def _mul_no_nan(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return _where_zero(t, y, lambda x, y: t.op.Mul(x, y), x, y)


@rule("Xdivy")
def _xdivy(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return _where_zero(t, x, lambda x, y: t.op.Div(x, y), x, y)


@rule("Xlogy")
def _xlogy(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return _where_zero(t, x, lambda x, y: t.op.Mul(x, t.op.Log(y)), x, y)


@rule("Xlog1py")
def _xlog1py(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return _where_zero(t, x, lambda x, y: t.op.Mul(x, exact.log1p(t, y)), x, y)


# powers and functions


@rule("Square")
def _square(t: Translator, o: Operation, x: Value) -> Any:
    return apply(t, "Mul", x, x)


@rule("SquaredDifference")
def _squared_difference(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    difference = apply(t, "Sub", x, y)
    return apply(t, "Mul", difference, difference)


@rule("Pow")
def _pow(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    if x.dtype.is_floating:
        return apply(t, "Pow", x, y)
    exponent = exact.number_of(y)
    if exponent is None or exponent < 1 or y.rank:
        wide = DType.INT64  # runtimes round powers; there, those of smaller integers are exact until they overflow
        return per_element(t, lambda x, y: t.cast(t.op.Pow(t.cast(x, wide), t.cast(y, wide)), o.out.dtype), x, y)
    return per_element(t, lambda x: _power(t, x, int(exponent)), x)


def _power(t: Translator, x: Value, exponent: int) -> Value:
    """A power of integers by multiplications, which overflow as those do."""
    found: Value | None = None
    square = x
    while exponent:
        if exponent & 1:
            found = square if found is None else t.op.Mul(found, square)
        exponent >>= 1
        square = t.op.Mul(square, square) if exponent else square
    assert found is not None
    return found


@rule("Rsqrt")
def _rsqrt(t: Translator, o: Operation, x: Value) -> Any:
    return apply(t, "Reciprocal", apply(t, "Sqrt", x))


@rule("Expm1")
def _expm1(t: Translator, o: Operation, x: Value) -> Any:
    return per_element(t, lambda x: exact.expm1(t, x), x)


@rule("Log1p")
def _log1p(t: Translator, o: Operation, x: Value) -> Any:
    return per_element(t, lambda x: exact.log1p(t, x), x)


@rule("Erfc")
def _erfc(t: Translator, o: Operation, x: Value) -> Any:
    return per_element(t, lambda x: exact.erfc(t, x), x)


@rule("Erfinv")
def _erfinv(t: Translator, o: Operation, x: Value) -> Any:
    return per_element(t, lambda x: exact.erf_inv(t, x), x)


@rule("Atan2")
def _atan2(t: Translator, o: Operation, y: Value, x: Value) -> Any:
    return per_element(t, lambda y, x: exact.atan2(t, y, x), y, x)


# activations and limits


@rule("Relu")
def _relu(t: Translator, o: Operation, x: Value) -> Any:
    if x.dtype.is_floating:
        return apply(t, "Relu", x)
    return apply(t, "Max", x, t.scalar(0, x.dtype)) if x.dtype.is_signed else x


@rule("Relu6")
def _relu6(t: Translator, o: Operation, x: Value) -> Any:
    return apply(t, "Clip", x, t.scalar(0, x.dtype), t.scalar(6, x.dtype))


@rule("LeakyRelu")
def _leaky_relu(t: Translator, o: Operation, x: Value) -> Any:
    return apply(t, "LeakyRelu", x, alpha=o.attr("alpha"))


@rule("ClipByValue")
def _clip(t: Translator, o: Operation, x: Value, low: Value, high: Value) -> Any:
    """The lower limit counts where they contradict."""
    return apply(t, "Max", apply(t, "Min", x, high), low)


# choices


@rule("SelectV2")
def _select(t: Translator, o: Operation, which: Value, yes: Value, no: Value) -> Any:
    if yes.dtype is not DType.BOOL:
        return apply(t, "Where", which, yes, no)
    op = t.op  # truth by logic: runtimes choose among numbers
    return per_element(t, lambda c, y, n: op.Or(op.And(c, y), op.And(op.Not(c), n)), which, yes, no)


@rule("Select")
def _select_rows(t: Translator, o: Operation, which: Value, yes: Value, no: Value) -> Any:
    """A vector chooses among what the first dimension numbers."""
    if which.rank == 1 and yes.rank is not None:
        which = t.unsqueeze(which, range(1, yes.rank))
    return _select(t, o, which, yes, no)


# conversions


@rule("Cast")
def _cast(t: Translator, o: Operation, x: Value) -> Any:
    dtype = dtype_of(o.tensors[0].dtype)
    if x.dtype is dtype:
        return x
    if o.attr("Truncate") and x.dtype.is_floating and dtype.is_floating and dtype.bits < x.dtype.bits:
        raise Refused("it cuts digits off: ONNX rounds to the nearest number")
    return t.cast(x, dtype) if x.const is not None else apply(t, "Cast", x, to=dtype)


@rule("Bitcast")
def _bitcast(t: Translator, o: Operation, x: Value) -> Any:
    dtype = dtype_of(o.tensors[0].dtype)
    if x.dtype.bits != dtype.bits:
        raise Refused("bits are taken for a type of another width")
    return x if x.dtype is dtype else apply(t, "BitCast", x, to=dtype)


# bits


@rule("LeftShift", "RightShift")
def _shift(t: Translator, o: Operation, x: Value, count: Value) -> Any:
    """By no less than 0, and no more than all bits but one."""
    left, most = o.type == "LeftShift", x.dtype.bits - 1

    def shift(x: Value, count: Value) -> Value:
        inside = t.op.Min(t.op.Max(count, t.scalar(0, count.dtype)), t.scalar(most, count.dtype))
        return exact.shift(t, x, inside, left=left, arithmetic=not left)

    return per_element(t, shift, x, count)
