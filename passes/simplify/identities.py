"""Identities of elementwise operators: neutral elements, idempotent and inverse operations, casts, clips."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir import Node, TensorType, Value, constant, op
from ...ir.types import DType, same_shape
from ..pattern import const, scalar, shared
from ..rules import require, rule


@rule("Identity")
def drop_identity(node: Node) -> Value | None:
    return node.operand(0)


@rule("Dropout")
def drop_inference_dropout(node: Node) -> tuple[Any, ...]:
    """Dropout that is not training passes its input through; its mask is all true."""
    training = node.operand(2)
    require(training is None or (training.const is not None and not training.const.numpy().any()), "may be training")
    require(len(node.results) < 2 or not node.results[1].is_used, "the mask is used")
    return (node.operand(0), None)


@rule(lambda x: x * 1)
def multiply_by_one(x: Value) -> Value:
    return x


@rule(lambda x: x / 1)
def divide_by_one(x: Value) -> Value:
    return x


@rule(lambda x: x + 0)
def add_zero(x: Value) -> Value:
    """Exact but for the sign of zero: -0 + 0 is 0."""
    return x


@rule(lambda x: x - 0)
def subtract_zero(x: Value) -> Value:
    return x


@rule(lambda x: op.Pow(x, 1))
def power_of_one(x: Value) -> Value:
    return x


@rule(lambda x: op.Neg(shared(op.Neg(x))))
def double_negation(x: Value) -> Value:
    return x


@rule(lambda x: op.Not(shared(op.Not(x))))
def double_not(x: Value) -> Value:
    return x


@rule(lambda x, c=const(lambda t: t.dtype is DType.BOOL and t.is_cheap and bool(t.numpy().all())): op.And(x, c))
def and_true(x: Value, c: Value) -> Value:
    return x


@rule(lambda x, c=const(lambda t: t.dtype is DType.BOOL and t.is_cheap and not t.numpy().any()): op.Or(x, c))
def or_false(x: Value, c: Value) -> Value:
    return x


@rule(lambda x: op.And(x, x))
def and_itself(x: Value) -> Value:
    return x


@rule(lambda x: op.Or(x, x))
def or_itself(x: Value) -> Value:
    return x


@rule(lambda c, x, y: op.Where(shared(op.Not(c)), x, y))
def where_not(c: Value, x: Value, y: Value) -> Value:
    return op.Where(c, y, x)


@rule("Where")
def where_decided(node: Node) -> Value | None:
    """A constant condition, all true or all false, picks a side; equal sides need no condition."""
    condition, x, y = node.operands
    assert condition is not None
    if x is y:
        return x
    if condition.const is None or not condition.const.is_cheap or not condition.const.size:
        return None
    array = condition.const.numpy()
    require(array.all() or not array.any(), "the condition varies")
    return x if array.all() else y


@rule(lambda x: op.Relu(shared(op.Relu(x))))
def relu_of_relu(x: Value) -> Value:
    return op.Relu(x)


@rule(lambda x: op.Relu(shared(op.Sigmoid(x))))
def relu_of_sigmoid(x: Value) -> Value:
    return op.Sigmoid(x)


@rule(lambda x: op.Abs(shared(op.Abs(x))))
def abs_of_abs(x: Value) -> Value:
    return op.Abs(x)


# casts

_EXACT_IN = {  # types whose every value the key type represents, for chains of casts
    DType.DOUBLE: {
        DType.FLOAT,
        DType.FLOAT16,
        DType.BFLOAT16,
        DType.INT32,
        DType.INT16,
        DType.INT8,
        DType.UINT32,
        DType.UINT16,
        DType.UINT8,
        DType.BOOL,
    },
    DType.FLOAT: {DType.FLOAT16, DType.BFLOAT16, DType.INT16, DType.INT8, DType.UINT16, DType.UINT8, DType.BOOL},
    DType.INT64: {DType.INT32, DType.INT16, DType.INT8, DType.UINT32, DType.UINT16, DType.UINT8, DType.BOOL},
    DType.INT32: {DType.INT16, DType.INT8, DType.UINT16, DType.UINT8, DType.BOOL},
}


@rule("Cast", "CastLike")
def drop_cast(node: Node) -> Value | None:
    """A cast to the type that the operand has."""
    x = node.operand(0)
    assert x is not None
    return x if x.dtype and x.dtype == node.results[0].dtype else None


@rule("CastLike")
def cast_like(node: Node) -> Value | None:
    """CastLike to a known type is Cast, which does not need the other operand."""
    to = node.results[0].dtype
    require(to, "the type of the second operand is unknown")
    x = node.operand(0)
    assert x is not None
    if "FLOAT8" in to.name:
        return None
    return op.Cast(x, to=int(to))


@rule(lambda x, a, b: op.Cast(shared(op.Cast(x, to=a)), to=b))
def cast_of_cast(x: Value, a: int, b: int) -> Value:
    """The first of two casts loses nothing, so it is not needed."""
    require(x.dtype in _EXACT_IN.get(DType(a), ()), f"{x.dtype.text} to {DType(a).text} may lose values")
    return op.Cast(x, to=b)


# clips


def _bound(value: Value | None) -> float | None:
    if value is None or value.const is None or value.const.size != 1:
        return None
    return float(value.const.numpy().astype(np.float64).ravel()[0])


@rule(lambda x, a=scalar, b=scalar: op.Min(op.Max(x, a), b))
def clip_of_min_max(x: Value, a: Value, b: Value) -> Value:
    """ReLU6 and its like, written as Min(Max(x, a), b)."""
    return _clip(x, a, b)


@rule(lambda x, a=scalar, b=scalar: op.Max(op.Min(x, b), a))
def clip_of_max_min(x: Value, a: Value, b: Value) -> Value:
    """The same, as TensorFlow writes it."""
    return _clip(x, a, b)


@rule(lambda x, a=scalar, b=scalar: op.Clip(op.Relu(x), a, b))
def clip_of_relu(x: Value, a: Value, b: Value) -> Value:
    low, high = _bound(a), _bound(b)
    require(low is not None and low <= 0, "the lower bound is positive")
    require(high is not None and high >= 0, "the upper bound is negative")
    return op.Clip(x, constant(0, x.dtype), b)


@rule(lambda x, a=scalar, b=scalar, c=scalar, d=scalar: op.Clip(op.Clip(x, a, b), c, d))
def clip_of_clip(x: Value, a: Value, b: Value, c: Value, d: Value) -> Value:
    """Two clips to overlapping intervals are one."""
    bounds = [_bound(v) for v in (a, b, c, d)]
    low, high = max(bounds[0] or 0, bounds[2] or 0), min(bounds[1] or 0, bounds[3] or 0)
    require(None not in bounds and low <= high, "the intervals do not overlap")
    return op.Clip(x, constant(low, x.dtype), constant(high, x.dtype))


def _clip(x: Value, low: Value, high: Value) -> Value:
    a, b = _bound(low), _bound(high)
    require(a is not None and b is not None and a <= b, "the bounds cross")
    require(
        x.rank is not None and x.rank >= (low.rank or 0) and x.rank >= (high.rank or 0), "a bound has more dimensions"
    )
    assert low.const is not None and high.const is not None
    return op.Clip(x, low.const.numpy().reshape(()), high.const.numpy().reshape(()))


@rule("Clip")
def clip_without_bounds(node: Node) -> Value | None:
    """A clip to the limits of the type, or to none."""
    x = node.operand(0)
    assert x is not None
    low, high = node.operand(1), node.operand(2)
    require(low is None or (_bound(low) is not None and _bound(low) == float("-inf")), "bounded below")
    require(high is None or (_bound(high) is not None and _bound(high) == float("inf")), "bounded above")
    return x


@rule(lambda x, a=scalar: op.Max(x, a))
def max_is_relu(x: Value, a: Value) -> Value:
    """Max(x, 0) of floats; NaN stays NaN in both."""
    require(
        _bound(a) == 0 and x.dtype.is_floating and x.dtype is not DType.BFLOAT16, "not the maximum with 0 of floats"
    )
    require(same_shape(x.type, TensorType(x.dtype, x.shape)) and (a.rank or 0) <= (x.rank or 0), "the bound broadcasts")
    return op.Relu(x)


@rule("Sum", "Min", "Max", "Mean", "Concat")
def variadic_of_one(node: Node) -> Value | None:
    """A variadic operator with one operand."""
    return node.operand(0) if len(node.operands) == 1 else None


# two constants in a row


@rule(lambda x, a=const, b=const: op.Add(op.Add(x, a), b))
def add_constants(x: Value, a: Value, b: Value) -> Value:
    require(_small(a) and _small(b), "the constants are large")
    require(x.const is None and x.dtype.is_integer, "floating-point addition is not associative")
    return op.Add(x, op.Add(a, b))


@rule(lambda x, a=scalar, b=scalar: op.Mul(op.Mul(x, a), b))
def multiply_constants(x: Value, a: Value, b: Value) -> Value:
    require(x.const is None and x.dtype.is_integer, "rounds differently")
    return op.Mul(x, op.Mul(a, b))


def _small(value: Value) -> bool:
    return value.const is not None and value.const.size <= 1 << 12
