"""Reductions, ArgMax and ArgMin, TopK, NonZero."""

from __future__ import annotations

from ..dims import fresh
from ..graph import Node
from ..types import DType, TensorType, Type
from .common import (
    FLOATS,
    MATMUL,
    NUMERIC,
    DTypes,
    Shape,
    attr_int,
    axes_operand,
    check_dtype,
    dtypes,
    fresh_dims,
    normal_axis,
    operand,
    operand_type,
    vector_length,
    with_shape,
)
from .engine import IllTyped, scalar_content, typing

_ORDERED = dtypes("FLOAT16 FLOAT DOUBLE BFLOAT16 INT8 INT32 INT64 UINT8 UINT32 UINT64 BOOL")
_REDUCTIONS: dict[str, DTypes] = {
    "ReduceL1": MATMUL,
    "ReduceL2": MATMUL,
    "ReduceLogSum": FLOATS,
    "ReduceLogSumExp": FLOATS,
    "ReduceMax": _ORDERED,
    "ReduceMean": MATMUL,
    "ReduceMin": _ORDERED,
    "ReduceProd": MATMUL,
    "ReduceSum": MATMUL,
    "ReduceSumSquare": MATMUL,
}


@typing(*_REDUCTIONS)
def _reduce(node: Node) -> Type:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, _REDUCTIONS[node.op])
    keep = bool(node.attrs.get("keepdims", 1))
    shape = x.shape
    axes: tuple[int, ...] | None = ()
    if len(node.operands) > 1 and node.operands[1] is not None:
        axes = axes_operand(node, 1)
    if axes == () and node.attrs.get("noop_with_empty_axes", 0):
        return x
    if shape is None:
        return TensorType(x.dtype, () if axes == () and not keep else None)
    if axes is None:
        return with_shape(x, _unknown_axes(node, shape, keep=keep))
    rank = len(shape)
    gone = {normal_axis(node, axis, rank) for axis in axes} if axes else range(rank)  # runtimes take one named twice
    if keep:
        return with_shape(x, tuple([1 if i in gone else d for i, d in enumerate(shape)]))
    return with_shape(x, tuple([d for i, d in enumerate(shape) if i not in gone]))


def _unknown_axes(node: Node, shape: Shape, *, keep: bool) -> Shape | None:
    if keep:
        return fresh_dims(len(shape))
    # no axes mean all or none, and several may name one twice
    return fresh_dims(len(shape) - 1) if shape and vector_length(operand(node, 1)) == 1 else None


@typing("ArgMax", "ArgMin")
def _arg(node: Node) -> Type:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, NUMERIC)
    if x.shape is None:
        return TensorType(DType.INT64, None)
    axis = normal_axis(node, attr_int(node, "axis", 0), len(x.shape))
    middle = (1,) if attr_int(node, "keepdims", 1) else ()
    return TensorType(DType.INT64, x.shape[:axis] + middle + x.shape[axis + 1 :])


@typing("TopK")
def _topk(node: Node) -> tuple[Type, ...]:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, NUMERIC)
    shape = x.shape
    if shape is not None:
        axis = normal_axis(node, attr_int(node, "axis", -1), len(shape))
        k = scalar_content(operand(node, 1))
        if type(k) is int and (k < 0 or (type(shape[axis]) is int and k > shape[axis])):  # type: ignore[operator]
            raise IllTyped(f"TopK: {k} of {shape[axis]} elements")
        shape = (*shape[:axis], fresh() if k is None else k, *shape[axis + 1 :])
    return TensorType(x.dtype, shape), TensorType(DType.INT64, shape)


@typing("NonZero")
def _non_zero(node: Node) -> Type:
    x = operand_type(node, 0)
    rank = fresh() if not x.shape else len(x.shape)  # a scalar's is not agreed on
    return TensorType(DType.INT64, (rank, fresh()))
