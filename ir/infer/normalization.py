"""Normalizations, softmax, cumulative sums: results with the shape of their first operand."""

from __future__ import annotations

from ..dims import Dim
from ..graph import Node
from ..types import TensorType, Type
from .common import (
    FLOATS,
    MATMUL,
    DTypes,
    attr_int,
    broadcast_to,
    check_dtype,
    common_dtype,
    dtype_of,
    normal_axis,
    operand_type,
    optional_type,
    same_dim,
)
from .engine import IllTyped, TypingRule, typing


def _along_axis(allowed: DTypes, default: int) -> TypingRule:
    def along_axis(node: Node) -> Type:
        x = operand_type(node, 0)
        if not allowed[x.dtype]:
            raise IllTyped(f"{node.op} is not defined on {x.dtype.text}")
        if x.shape is not None:
            axis = node.attrs.get("axis", default)
            rank = len(x.shape)
            if not (-rank <= axis < rank or (rank == 0 and -1 <= axis <= 0)):
                raise IllTyped(f"{node.op}: axis {axis} of a tensor of rank {rank}")
        return x

    return along_axis


typing("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")(_along_axis(FLOATS, -1))


@typing("CumSum", "CumProd")
def _cumulative(node: Node) -> Type:
    x = operand_type(node, 0)
    operand_type(node, 1)
    check_dtype(node, x.dtype, MATMUL)
    return x


@typing("ReverseSequence")
def _reverse_sequence(node: Node) -> Type:
    x = operand_type(node, 0)
    if x.shape is not None and len(x.shape) < 2:
        raise IllTyped(f"ReverseSequence of a tensor of rank {len(x.shape)}")
    return x


@typing("Trilu")
def _trilu(node: Node) -> Type:
    x = operand_type(node, 0)
    if x.shape is not None and len(x.shape) < 2:
        raise IllTyped(f"Trilu of a tensor of rank {len(x.shape)}")
    return x


@typing("LayerNormalization")
def _layer_normalization(node: Node) -> Type | tuple[Type, ...]:
    x, scale = operand_type(node, 0), operand_type(node, 1)
    bias = optional_type(node, 2)
    common_dtype(node, (x, scale) if bias is None else (x, scale, bias), FLOATS)
    shape = x.shape
    if shape is not None:
        axis = normal_axis(node, attr_int(node, "axis", -1), len(shape))
        broadcast_to(node, scale.shape, shape)
        if bias is not None:
            broadcast_to(node, bias.shape, shape)
    if len(node.results) == 1:
        return x
    stash = dtype_of(attr_int(node, "stash_type", 1))
    statistics = TensorType(stash, None if shape is None else shape[:axis] + (1,) * (len(shape) - axis))
    return x, statistics, statistics


@typing("RMSNormalization")
def _rms_normalization(node: Node) -> Type:
    x, scale = operand_type(node, 0), operand_type(node, 1)
    check_dtype(node, x.dtype, FLOATS)
    if x.shape is not None:
        normal_axis(node, attr_int(node, "axis", -1), len(x.shape))
        broadcast_to(node, scale.shape, x.shape)
    return x if x.dtype is scale.dtype else TensorType(check_dtype(node, scale.dtype, FLOATS), x.shape)


@typing("BatchNormalization")
def _batch_normalization(node: Node) -> Type | tuple[Type, ...]:
    x, mean = operand_type(node, 0), operand_type(node, 3)
    check_dtype(node, x.dtype, FLOATS)
    if x.shape is not None and not x.shape:
        raise IllTyped("BatchNormalization of a scalar")
    channels = None if x.shape is None else x.shape[1] if len(x.shape) > 1 else 1
    for i in range(1, 5):
        channels = _per_channel(node, operand_type(node, i), channels)
    if len(node.results) == 1:
        return x
    running = TensorType(mean.dtype, None if channels is None else (channels,))
    return x, running, running


def _per_channel(node: Node, type_: TensorType, channels: Dim | None) -> Dim | None:
    """The number of channels, which ``type_`` has one element for each of."""
    if type_.shape is None:
        return channels
    if len(type_.shape) != 1:
        raise IllTyped(f"{node.op}: a parameter of rank {len(type_.shape)}")
    return type_.shape[0] if channels is None else same_dim(node, channels, type_.shape[0])


@typing("InstanceNormalization", "GroupNormalization")
def _instance_normalization(node: Node) -> Type:
    x, scale, bias = (operand_type(node, i) for i in range(3))
    common_dtype(node, (x, scale, bias), FLOATS)
    if x.shape is None:
        return x
    if len(x.shape) < 2:
        raise IllTyped(f"{node.op} of a tensor of rank {len(x.shape)}")
    channels = x.shape[1]
    if node.op == "GroupNormalization":
        groups = attr_int(node, "num_groups", 0)
        if groups <= 0 or (type(channels) is int and channels % groups):
            raise IllTyped(f"GroupNormalization: {channels} channels in {groups} groups")
    _per_channel(node, scale, _per_channel(node, bias, channels))
    return x
