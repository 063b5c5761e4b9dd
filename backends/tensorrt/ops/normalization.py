"""Normalizations, and Softmax and its kin."""

from __future__ import annotations

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, Row
from ..versions import Version
from . import Form

__all__ = ["FORMS", "ROWS"]


# --- Softmax, LogSoftmax, Hardmax -------------------------------------------------------------------------------------


def _hardmax_refusal(node: Node, version: Version) -> str:
    size = _axis_size(node)
    return "" if isinstance(size, int) and size > 0 else f"{version} must know the size of the axis"


def _axis_size(node: Node) -> object:
    shape = node.given(0).shape
    return None if not shape else shape[node.attrs.get("axis", -1)]


def _softmax(node: Node, version: Version) -> list[Value] | None:
    """A vector as a row of a matrix."""
    x = node.given(0)
    if x.rank is None or x.rank > 1:
        return None
    axes = [0] if x.rank == 1 else [0, 1]
    row = make_node(node.op, (op.Unsqueeze(x, axes),), {"axis": 1}).result
    return [op.Squeeze(row, axes)]


def _hardmax(node: Node, version: Version) -> list[Value] | None:
    """Along an axis of open size: where the index is that of the maximum."""
    x, axis = node.given(0), node.attrs.get("axis", -1)
    if x.rank is None or x.rank < 2:
        return _softmax(node, version)
    axis %= x.rank
    size = op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0])
    indices = op.Range(constant(0, DType.INT64), size, constant(1, DType.INT64))
    column = op.Unsqueeze(indices, list(range(1, x.rank - axis))) if axis < x.rank - 1 else indices
    return [op.Cast(op.Equal(op.ArgMax(x, axis=axis, keepdims=1), column), to=x.dtype)]


# --- over features ----------------------------------------------------------------------------------------------------


def _layer_refusal(node: Node, version: Version) -> str:
    return f"{version} gives only its first result" if len(node.results) > 1 else ""


def _layer_normalization(node: Node, version: Version) -> list[Value] | None:
    """With mean and deviation computed once more, where they are asked for."""
    x, axis = node.given(0), node.attrs.get("axis", -1)
    if x.rank is None or len(node.results) == 1:
        return None
    attrs = {"axis": axis, "epsilon": node.attrs.get("epsilon")}
    normal = make_node(node.op, node.operands, attrs, 1).result
    stash = DType(node.attrs.get("stash_type", DType.FLOAT))
    wide = x if x.dtype is stash else op.Cast(x, to=stash)
    axes = list(range(axis % x.rank, x.rank))
    mean = op.ReduceMean(wide, axes)
    centred = op.Sub(wide, mean)
    variance = op.ReduceMean(op.Mul(centred, centred), axes)
    deviation = op.Sqrt(op.Add(variance, constant(node.attrs.get("epsilon", 1e-5), stash)))
    return _used(node, normal, mean, op.Reciprocal(deviation))


def _used(node: Node, *values: Value) -> list[Value]:
    """Of ``values`` those that are used; in the place of the others something that is not computed."""
    return [v if r.is_used else Value(r.type) for v, r in zip(values, node.results, strict=False)]


def _rms_refusal(node: Node, version: Version) -> str:
    x, scale = node.given(0), node.given(1)
    return "" if x.dtype is scale.dtype else f"{version} takes operands of one type"


def _rms_normalization(node: Node, version: Version) -> list[Value] | None:
    """In the wider of two types."""
    x, scale, result = node.given(0), node.given(1), node.result
    if x.dtype is scale.dtype or DType.FLOAT not in (x.dtype, scale.dtype):
        return None
    normal = make_node(node.op, (_wide(x), _wide(scale)), dict(node.attrs)).result
    return [normal if result.dtype is DType.FLOAT else op.Cast(normal, to=result.dtype)]


def _wide(value: Value) -> Value:
    return value if value.dtype is DType.FLOAT else op.Cast(value, to=DType.FLOAT)


# --- over a batch, an image, a group ----------------------------------------------------------------------------------


def _batch_normalization(node: Node, version: Version) -> list[Value] | None:
    """In training: with mean and variance of the batch."""
    x, mean, variance = node.given(0), node.given(3), node.given(4)
    if not node.attrs.get("training_mode") or x.rank is None or x.rank < 2:
        return None
    momentum, axes = node.attrs.get("momentum", 0.9), [i for i in range(x.rank) if i != 1]
    wide = x if x.dtype is mean.dtype else op.Cast(x, to=mean.dtype)
    whole = op.ReduceMean(wide, axes)
    centred = op.Sub(wide, whole)
    own = op.Squeeze(whole, axes), op.ReduceMean(op.Mul(centred, centred), axes, keepdims=0)
    attrs = {"epsilon": node.attrs.get("epsilon")}
    normal = make_node(node.op, (x, node.given(1), node.given(2), *own), attrs).result
    keep, take = (constant(factor, mean.dtype) for factor in (momentum, 1 - momentum))
    running = [op.Add(op.Mul(old, keep), op.Mul(new, take)) for old, new in zip((mean, variance), own, strict=True)]
    return _used(node, normal, *running)


def _image_refusal(node: Node, version: Version) -> str:
    shape = node.given(0).shape
    return f"{version} normalizes images of two pixels and more" if shape and all(d == 1 for d in shape[2:]) else ""


def _instance_normalization(node: Node, version: Version) -> list[Value] | None:
    """In primitives."""
    x, rank = node.given(0), node.given(0).rank
    if rank is None or rank < 3:
        return None
    axes = list(range(2, rank))
    normal = _normalized(x, axes, node.attrs.get("epsilon", 1e-5))
    return [_scaled(normal, node.given(1), node.given(2))]


def _normalized(x: Value, axes: list[int], epsilon: float) -> Value:
    wide = _wide(x)
    centred = op.Sub(wide, op.ReduceMean(wide, axes))
    variance = op.ReduceMean(op.Mul(centred, centred), axes)
    normal = op.Div(centred, op.Sqrt(op.Add(variance, constant(epsilon, DType.FLOAT))))
    return normal if x is wide else op.Cast(normal, to=x.dtype)


def _scaled(normal: Value, scale: Value, bias: Value) -> Value:
    """``normal`` times ``scale`` plus ``bias``, which have a number for each channel."""
    axes = list(range(1, (normal.rank or 2) - 1))
    if axes:
        scale, bias = op.Unsqueeze(scale, axes), op.Unsqueeze(bias, axes)
    return op.Add(op.Mul(normal, scale), bias)


def _group_normalization(node: Node, version: Version) -> list[Value] | None:
    """As instances; of vectors, in primitives."""
    x, scale, bias = (node.given(i) for i in range(3))
    if x.rank is None or x.rank < 2:
        return None
    groups, epsilon = node.attrs["num_groups"], node.attrs.get("epsilon", 1e-5)
    grouped = op.Reshape(x, constant([0, groups, -1], DType.INT64))
    if x.rank == 2 or _image_refusal(node, version):
        normal = _normalized(grouped, [2], epsilon)
    else:
        ones, zeros = constant([1.0] * groups, x.dtype), constant([0.0] * groups, x.dtype)
        normal = op.InstanceNormalization(grouped, ones, zeros, epsilon=epsilon)
    return [_scaled(_like(normal, x), scale, bias)]


def _like(value: Value, x: Value) -> Value:
    """``value`` in the shape of ``x``."""
    known = x.shape is not None and all(isinstance(d, int) for d in x.shape)
    return op.Reshape(value, constant(x.shape, DType.INT64) if known else op.Shape(x))


def _lrn_refusal(node: Node, version: Version) -> str:
    size, beta, bias = node.attrs["size"], node.attrs.get("beta", 0.75), node.attrs.get("bias", 1.0)
    if size % 2 == 0 or size > 15:
        return f"size={size}: {version} takes odd numbers up to 15"
    return "" if beta >= 0.01 and bias >= 1e-5 else f"{version} takes beta from 0.01 and bias from 1e-5 on"


def _lrn(node: Node, version: Version) -> list[Value] | None:
    """With a mean over a window of channels."""
    x, attrs = node.given(0), node.attrs
    if x.rank is None or x.rank < 2:
        return None
    squares = op.Mul(x, x)
    if x.rank == 2:
        images = op.Unsqueeze(squares, [1, 3])
    else:
        images = op.Reshape(op.Unsqueeze(squares, [1]), constant([0, 0, 0, -1], DType.INT64))
    before = (attrs["size"] - 1) // 2
    pads = (before, 0, attrs["size"] - 1 - before, 0)
    means = op.AveragePool(images, kernel_shape=(attrs["size"], 1), pads=pads, count_include_pad=1)
    means = op.Mul(_like(means, x), constant(attrs.get("alpha", 1e-4), x.dtype))
    base = op.Add(means, constant(attrs.get("bias", 1.0), x.dtype))
    return [op.Div(x, op.Pow(base, constant(attrs.get("beta", 0.75), x.dtype)))]


_ANY = {"T": FLOATS}

ROWS: dict[str, Row] = {
    "BatchNormalization": Row(
        types={"T": FLOATS, "T1": FLOATS, "T2": FLOATS}, ranks=(1, 8), attrs={"training_mode": (0,)}, results=1
    ),
    "GroupNormalization": Row(types=_ANY, ranks=(3, 8), check=_image_refusal, since=(10, 15)),
    "Hardmax": Row(types=_ANY, ranks=(2, 8), check=_hardmax_refusal),
    "InstanceNormalization": Row(types=_ANY, ranks=(3, 8), check=_image_refusal),
    "LRN": Row(types=_ANY, ranks=(4, 4), check=_lrn_refusal),
    "LayerNormalization": Row(types=_ANY, ranks=(1, 8), check=_layer_refusal, since=(8, 6)),
    "LogSoftmax": Row(types=_ANY, ranks=(2, 8)),
    "LpNormalization": Row(types={"T": frozenset({DType.FLOAT, DType.FLOAT16})}, ranks=(1, 8)),
    "MeanVarianceNormalization": Row(types={"T": frozenset({DType.FLOAT})}, ranks=(1, 8)),
    "RMSNormalization": Row(types={"T": FLOATS, "V": FLOATS}, ranks=(1, 8), check=_rms_refusal, since=(10, 15)),
    "Softmax": Row(types=_ANY, ranks=(2, 8)),
}
FORMS: dict[str, Form] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "Hardmax": _hardmax,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax,
    "RMSNormalization": _rms_normalization,
    "Softmax": _softmax,
}
