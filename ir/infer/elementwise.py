"""Elementwise operators: unary, binary and variadic with broadcasting, comparisons, casts."""

from __future__ import annotations

from ..graph import Node
from ..types import DType, TensorType, Type
from .common import (
    FLOATS,
    INTEGERS,
    MATMUL,
    NUMERIC,
    SIGNED,
    DTypes,
    attr_int,
    broadcast,
    broadcast_to,
    check_dtype,
    common_dtype,
    dtype_of,
    dtypes,
    operand,
    operand_type,
    optional_type,
    tensor_types,
    with_shape,
)
from .engine import IllTyped, TypingRule, typing

_BOOL = dtypes("BOOL")
_STRING = dtypes("STRING")
_FLOATS_8 = dtypes(
    "FLOAT16 FLOAT DOUBLE BFLOAT16 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ",
)
_COMPARABLE = dtypes("FLOAT16 FLOAT DOUBLE BFLOAT16 INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL STRING")
_POWERS = dtypes("FLOAT16 FLOAT DOUBLE BFLOAT16 INT32 INT64")

_UNARY: dict[DTypes, str] = {
    FLOATS: (
        "Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish LRN "
        "LeakyRelu Log MeanVarianceNormalization Mish Reciprocal Round Selu Sigmoid Sin Sinh Softplus Softsign "
        "Sqrt Swish Tan Tanh ThresholdedRelu"
    ),
    SIGNED: "Neg Relu",
    NUMERIC: "Abs Shrink Sign",
    _BOOL: "Not",
    INTEGERS: "BitwiseNot",
}

_BINARY: dict[DTypes, str] = {
    NUMERIC: "Add Div Mod Mul Sub",
    INTEGERS: "BitShift BitwiseAnd BitwiseOr BitwiseXor",
    _BOOL: "And Or Xor",
    _STRING: "StringConcat",
}

_COMPARISONS: dict[DTypes, str] = {
    NUMERIC: "Greater GreaterOrEqual Less LessOrEqual",
    _COMPARABLE: "Equal",
}


def _unary(allowed: DTypes) -> TypingRule:
    def unary(node: Node) -> Type:
        type_ = operand_type(node, 0)
        if not allowed[type_.dtype]:
            raise IllTyped(f"{node.op} is not defined on {type_.dtype.text}")
        return type_

    return unary


def _binary(allowed: DTypes) -> TypingRule:
    def binary(node: Node) -> Type:
        a, b = operand_type(node, 0), operand_type(node, 1)
        if a is b and allowed[a.dtype]:
            return a
        dtype = a.dtype if a.dtype is b.dtype else common_dtype(node, (a, b))
        if not allowed[dtype]:
            raise IllTyped(f"{node.op} is not defined on {dtype.text}")
        shape = broadcast(a.shape, b.shape)
        if dtype is a.dtype and shape is a.shape:
            return a
        if dtype is b.dtype and shape is b.shape:
            return b
        return TensorType(dtype, shape)

    return binary


def _comparison(allowed: DTypes) -> TypingRule:
    def comparison(node: Node) -> Type:
        a, b = operand_type(node, 0), operand_type(node, 1)
        common_dtype(node, (a, b), allowed)
        return TensorType(DType.BOOL, broadcast(a.shape, b.shape))

    return comparison


_OTHERS = "Cast CastLike Clip Identity IsInf IsNaN Max Mean Min Pow PRelu Sum Where"
_ACROSS = {"LRN", "MeanVarianceNormalization"}  # typed like unary operators, but elements look at their neighbours
_NAMES = " ".join([*_UNARY.values(), *_BINARY.values(), *_COMPARISONS.values(), _OTHERS])
ELEMENTWISE = frozenset(_NAMES.split()) - _ACROSS


def _register() -> None:
    for table, factory in ((_UNARY, _unary), (_BINARY, _binary), (_COMPARISONS, _comparison)):
        for allowed, ops in table.items():
            typing(*ops.split())(factory(allowed))


_register()


@typing("Pow")
def _pow(node: Node) -> Type:
    a, b = operand_type(node, 0), operand_type(node, 1)
    check_dtype(node, a.dtype, _POWERS)
    check_dtype(node, b.dtype, NUMERIC)
    return with_shape(a, broadcast(a.shape, b.shape))


def _variadic(allowed: DTypes) -> TypingRule:
    def variadic(node: Node) -> Type:
        types = tensor_types(node)
        dtype = common_dtype(node, types, allowed)
        shape = types[0].shape
        for type_ in types[1:]:
            shape = broadcast(shape, type_.shape)
        return TensorType(dtype, shape)

    return variadic


typing("Max", "Min")(_variadic(NUMERIC))
typing("Mean", "Sum")(_variadic(FLOATS))


@typing("PRelu")
def _prelu(node: Node) -> Type:
    x, slope = operand_type(node, 0), operand_type(node, 1)
    common_dtype(node, (x, slope), MATMUL)
    broadcast_to(node, slope.shape, x.shape)
    return x


@typing("Where")
def _where(node: Node) -> Type:
    condition, a, b = (operand_type(node, i) for i in range(3))
    check_dtype(node, condition.dtype, _BOOL)
    dtype = common_dtype(node, (a, b))
    return TensorType(dtype, broadcast(broadcast(a.shape, b.shape), condition.shape))


@typing("Clip")
def _clip(node: Node) -> Type:
    x = operand_type(node, 0)
    bounds = [t for t in (optional_type(node, 1), optional_type(node, 2)) if t is not None]
    common_dtype(node, (x, *bounds), NUMERIC)
    # onnx allows scalars only; some exporters write one-element vectors, and runtimes accept them
    if any(type(d) is int and d != 1 for t in bounds for d in t.shape or ()):
        raise IllTyped("Clip: a bound that is not a scalar")
    return x


@typing("Identity")
def _identity(node: Node) -> Type:
    return operand(node, 0).type


@typing("Cast")
def _cast(node: Node) -> Type:
    x = operand_type(node, 0)
    dtype = dtype_of(node.attrs["to"])
    return x if dtype is x.dtype else TensorType(dtype, x.shape)


@typing("CastLike")
def _cast_like(node: Node) -> Type:
    x, like = operand_type(node, 0), operand_type(node, 1)
    return x if like.dtype is x.dtype else TensorType(like.dtype, x.shape)


@typing("BitCast")
def _bit_cast(node: Node) -> Type:
    x = operand_type(node, 0)
    dtype = dtype_of(node.attrs["to"])
    if x.dtype and dtype and x.dtype.bits != dtype.bits:
        raise IllTyped(f"BitCast: from {x.dtype.text} to {dtype.text}, of another width")
    return TensorType(dtype, x.shape)


@typing("IsInf", "IsNaN")
def _is_special(node: Node) -> Type:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, _FLOATS_8)
    return TensorType(DType.BOOL, x.shape)


@typing("Dropout")
def _dropout(node: Node) -> Type | tuple[Type, ...]:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, _FLOATS_8)
    return x if len(node.results) == 1 else (x, TensorType(DType.BOOL, x.shape))


@typing("Bernoulli", "RandomNormalLike", "RandomUniformLike", "EyeLike")
def _random_like(node: Node) -> Type:
    x = operand_type(node, 0)
    dtype = dtype_of(attr_int(node, "dtype", int(x.dtype)))
    if node.op == "EyeLike" and x.shape is not None and len(x.shape) != 2:
        raise IllTyped(f"EyeLike of a tensor of rank {len(x.shape)}")
    return TensorType(dtype, x.shape)


@typing("RandomNormal", "RandomUniform")
def _random(node: Node) -> Type:
    dtype = dtype_of(attr_int(node, "dtype", int(DType.FLOAT)))
    shape = node.attrs["shape"]
    if any(type(d) is not int or d < 0 for d in shape):
        raise IllTyped(f"{node.op}: shape {shape!r}")
    return TensorType(dtype, tuple(shape))


@typing("RegexFullMatch")
def _regex_full_match(node: Node) -> Type:
    return TensorType(DType.BOOL, operand_type(node, 0).shape)
