"""Gather and Scatter and their kin."""

from __future__ import annotations

from ..dims import fresh
from ..graph import Node
from ..types import DType, TensorType, Type
from .common import (
    INDICES,
    attr_int,
    check_dtype,
    common_dtype,
    fresh_dims,
    normal_axis,
    operand_type,
    same_dim,
)
from .engine import IllTyped, typing


@typing("Gather")
def _gather(node: Node) -> Type:
    data, indices = operand_type(node, 0), operand_type(node, 1)
    check_dtype(node, indices.dtype, INDICES)
    shape, at = data.shape, indices.shape
    if shape is None:
        return data
    axis = normal_axis(node, node.attrs.get("axis", 0), len(shape))
    if at is None:
        return TensorType(data.dtype, None)
    return TensorType(data.dtype, shape[:axis] + at + shape[axis + 1 :])


@typing("GatherElements")
def _gather_elements(node: Node) -> Type:
    data, indices = operand_type(node, 0), operand_type(node, 1)
    check_dtype(node, indices.dtype, INDICES)
    shape = indices.shape
    if data.shape is not None:
        if shape is None:
            shape = fresh_dims(len(data.shape))
        _check_elementwise(node, data, indices)
    return TensorType(data.dtype, shape)


def _check_elementwise(node: Node, data: TensorType, indices: TensorType) -> None:
    """The indices have the rank of the data, and the axis exists."""
    assert data.shape is not None
    rank = len(data.shape)
    if indices.shape is not None and len(indices.shape) != rank:
        raise IllTyped(f"{node.op}: indices of rank {len(indices.shape)} into rank {rank}")
    normal_axis(node, attr_int(node, "axis", 0), rank)


@typing("GatherND")
def _gather_nd(node: Node) -> Type:
    data, indices = operand_type(node, 0), operand_type(node, 1)
    check_dtype(node, indices.dtype, INDICES)
    batch = attr_int(node, "batch_dims", 0)
    shape, at = data.shape, indices.shape
    if shape is None or at is None:
        return TensorType(data.dtype, None)
    if not at or not shape or not 0 <= batch < min(len(at), len(shape)):
        raise IllTyped(f"GatherND: {list(at)} into {list(shape)} with {batch} batch dimensions")
    for i in range(batch):
        same_dim(node, shape[i], at[i])
    if type(at[-1]) is not int:
        return TensorType(data.dtype, None)
    if not 0 < at[-1] <= len(shape) - batch:
        raise IllTyped(f"GatherND: indices of {at[-1]} into rank {len(shape)}")
    return TensorType(data.dtype, at[:-1] + shape[batch + at[-1] :])


@typing("ScatterElements")
def _scatter_elements(node: Node) -> Type:
    data, indices, updates = (operand_type(node, i) for i in range(3))
    check_dtype(node, indices.dtype, INDICES)
    dtype = common_dtype(node, (data, updates))
    if data.shape is not None:
        _check_elementwise(node, data, indices)
    if indices.shape is not None and updates.shape is not None:
        if len(indices.shape) != len(updates.shape):
            raise IllTyped(f"{node.op}: indices {list(indices.shape)} for updates {list(updates.shape)}")
        for a, b in zip(indices.shape, updates.shape, strict=True):
            same_dim(node, a, b)
    return data if dtype is data.dtype else TensorType(dtype, data.shape)


@typing("ScatterND")
def _scatter_nd(node: Node) -> Type:
    data, indices, updates = (operand_type(node, i) for i in range(3))
    check_dtype(node, indices.dtype, INDICES)
    dtype = common_dtype(node, (data, updates))
    shape, at = data.shape, indices.shape
    if shape is not None and at is not None and at and type(at[-1]) is int:
        if not 0 < at[-1] <= len(shape):
            raise IllTyped(f"ScatterND: indices of {at[-1]} into rank {len(shape)}")
        wanted = at[:-1] + shape[at[-1] :]
        if updates.shape is not None:
            if len(updates.shape) != len(wanted):
                raise IllTyped(f"ScatterND: updates {list(updates.shape)}, wanted {list(wanted)}")
            for a, b in zip(updates.shape, wanted, strict=True):
                same_dim(node, a, b)
    return data if dtype is data.dtype else TensorType(dtype, shape)


@typing("TensorScatter")
def _tensor_scatter(node: Node) -> Type:
    cache, update = operand_type(node, 0), operand_type(node, 1)
    dtype = common_dtype(node, (cache, update))
    return cache if dtype is cache.dtype else TensorType(dtype, cache.shape)


@typing("Unique")
def _unique(node: Node) -> tuple[Type, ...]:
    x = operand_type(node, 0)
    count = TensorType(DType.INT64, (fresh(),))
    if "axis" not in node.attrs:
        inverse = None if x.shape is None else x.size
        return (
            TensorType(x.dtype, count.shape),
            count,
            TensorType(count.dtype, (fresh() if inverse is None else inverse,)),
            count,
        )
    if x.shape is None:
        return x, count, TensorType(count.dtype, (fresh(),)), count
    axis = normal_axis(node, node.attrs["axis"], len(x.shape))
    assert count.shape is not None
    shape = (*x.shape[:axis], count.shape[0], *x.shape[axis + 1 :])
    return TensorType(x.dtype, shape), count, TensorType(count.dtype, (x.shape[axis],)), count
