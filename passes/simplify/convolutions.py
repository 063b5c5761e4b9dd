"""Folding what surrounds a convolution into it: BatchNormalization, scales, shifts, pads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir import Node, Tensor, Value, constant, op
from ...ir.dims import Dim
from ...ir.types import DType
from ..numerics import within
from ..pattern import const, optional
from ..rules import require, rule
from .fold_constants import integers
from .reshapes import known_shape

_ROUNDING = within(rtol=1e-5)


def _weight_axis_shape(w: Value, transposed: bool, attrs: dict[str, Any]) -> tuple[int, ...]:
    """The shape in which a per-output-channel vector broadcasts over the weight."""
    rank = w.rank
    require(rank is not None, "the rank of the weight is unknown")
    assert rank is not None
    if transposed:
        require(attrs.get("group", 1) == 1, "grouped transposed convolutions keep their channels in two dimensions")
        return (1, -1) + (1,) * (rank - 2)
    return (-1,) + (1,) * (rank - 1)


def _scaled(
    w: Value, b: Value | None, scale: Value, shift: Value, transposed: bool, attrs: dict[str, Any]
) -> tuple[Value, Value]:
    """Weight and bias of the convolution followed by ``* scale + shift`` (vectors over the output channels)."""
    shape = constant(list(_weight_axis_shape(w, transposed, attrs)), DType.INT64)
    weight = op.Mul(w, op.Reshape(scale, shape))
    return weight, shift if b is None else op.Add(op.Mul(b, scale), shift)


def affine(gamma: Value, beta: Value, mean: Value, var: Value, epsilon: float | None) -> tuple[Value, Value]:
    """BatchNormalization as ``* scale + shift``, computed in float64 like a careful reference would."""
    arrays = [v.const.numpy().astype(np.float64) for v in (gamma, beta, mean, var) if v.const is not None]
    require(len(arrays) == 4, "the statistics are not constant")
    g, b, m, v = arrays
    with np.errstate(all="ignore"):  # a negative variance makes NaN on either side
        scale = g / np.sqrt(v + (1e-5 if epsilon is None else epsilon))
    dtype = gamma.dtype.numpy
    return constant(scale.astype(dtype)), constant((b - m * scale).astype(dtype))


@rule(
    lambda x, attrs, epsilon, momentum, w=const, b=const, gamma=const, beta=const, mean=const, var=const: (
        op.BatchNormalization(
            op.Conv(x, w, optional(b), **attrs), gamma, beta, mean, var, epsilon=epsilon, momentum=momentum
        )
    ),
    numerics=_ROUNDING,
)
def batch_normalization_into_conv(x, w, b, attrs, gamma, beta, mean, var, epsilon):
    """Conv followed by BatchNormalization (inference) is one Conv."""
    return op.Conv(x, *_scaled(w, b, *affine(gamma, beta, mean, var, epsilon), False, attrs), **attrs)


@rule(
    lambda x, attrs, epsilon, momentum, w=const, b=const, gamma=const, beta=const, mean=const, var=const: (
        op.BatchNormalization(
            op.ConvTranspose(x, w, optional(b), **attrs), gamma, beta, mean, var, epsilon=epsilon, momentum=momentum
        )
    ),
    numerics=_ROUNDING,
)
def batch_normalization_into_conv_transpose(x, w, b, attrs, gamma, beta, mean, var, epsilon):
    """ConvTranspose followed by BatchNormalization (inference) is one ConvTranspose."""
    return op.ConvTranspose(x, *_scaled(w, b, *affine(gamma, beta, mean, var, epsilon), True, attrs), **attrs)


def _channel_vector(c: Value, result: Value, n: Dim) -> Value:
    """Constant ``c``, which broadcasts over ``result``, as a vector over dimension 1, of size ``n``."""
    rank = result.rank
    require(
        rank is not None and c.rank is not None and c.rank <= rank, "the constant has more dimensions than the result"
    )
    assert rank is not None and c.const is not None
    shape = (1,) * (rank - len(c.const.shape)) + c.const.shape
    require(all(d == 1 for i, d in enumerate(shape) if i != 1), "the constant is not one number per channel")
    require(shape[1] in (1, n), "the constant is not one number per channel")
    vector = c.const.numpy().reshape(-1)
    return constant(np.ascontiguousarray(np.broadcast_to(vector, (n,))), c.dtype)  # type: ignore[arg-type]


def _fold_scale_shift(node: Node, conv: Node, c: Value, scale: bool) -> Value:
    """``Conv(x) * c`` or ``Conv(x) + c`` as one convolution."""
    x, w, b = conv.operands[0], conv.operands[1], conv.operand(2)
    assert w is not None
    transposed = conv.op == "ConvTranspose"
    axis = 1 if transposed else 0
    require(
        not transposed or conv.attrs.get("group", 1) == 1,
        "grouped transposed convolutions keep their channels in two dimensions",
    )
    n = known_shape(w)[axis]
    require(isinstance(n, int), "the number of channels is open")
    vector = _channel_vector(c, conv.results[0], n)
    if scale:
        weight = op.Mul(
            w, op.Reshape(vector, constant(list(_weight_axis_shape(w, transposed, conv.attrs)), DType.INT64))
        )
        bias = None if b is None else op.Mul(b, vector)
    else:
        weight, bias = w, vector if b is None else op.Add(b, vector)
    return Node(
        conv.op, [x, weight] + ([] if bias is None else [bias]), dict(conv.attrs), [node.results[0].type]
    ).result


@rule(lambda x, attrs, w=const, b=const, c=const: op.Mul(op.Conv(x, w, optional(b), **attrs), c), numerics=_ROUNDING)
def scale_into_conv(c, match):
    """A factor per output channel goes into the weight."""
    return _fold_scale_shift(match.root, _inner(match.root, "Conv"), c, True)


@rule(lambda x, w, attrs, b=const, c=const: op.Add(op.Conv(x, w, optional(b), **attrs), c), numerics=_ROUNDING)
def shift_into_conv(c, match):
    """An addend per output channel goes into the bias."""
    return _fold_scale_shift(match.root, _inner(match.root, "Conv"), c, False)


@rule(
    lambda x, attrs, w=const, b=const, c=const: op.Mul(op.ConvTranspose(x, w, optional(b), **attrs), c),
    numerics=_ROUNDING,
)
def scale_into_conv_transpose(c, match):
    """A factor per output channel goes into the weight."""
    return _fold_scale_shift(match.root, _inner(match.root, "ConvTranspose"), c, True)


@rule(
    lambda x, w, attrs, b=const, c=const: op.Add(op.ConvTranspose(x, w, optional(b), **attrs), c),
    numerics=_ROUNDING,
)
def shift_into_conv_transpose(c, match):
    """An addend per output channel goes into the bias."""
    return _fold_scale_shift(match.root, _inner(match.root, "ConvTranspose"), c, False)


def _inner(root: Node, name: str) -> Node:
    for operand in root.operands:
        if operand is not None and operand.producer is not None and operand.producer.op == name:
            return operand.producer
    raise AssertionError(name)


def _is_zero(t: Tensor) -> bool:
    return t.is_cheap and t.size <= 1 << 16 and not t.numpy().any()


@rule(lambda x, w, attrs, b=const(_is_zero): op.Conv(x, w, b, **attrs))
def drop_zero_bias(x, w, attrs):
    """A bias of zeros."""
    return op.Conv(x, w, **attrs)


def _spatial_pads(pad: Node, rank: int) -> tuple[list[int], list[int]] | None:
    """Begin and end pads of the spatial dimensions of a constant Pad that pads nothing else; None if it does."""
    pads, axes = integers(pad.operand(1)), integers(pad.operand(3))
    if pads is None or (pad.operand(3) is not None and axes is None):
        return None
    chosen = tuple(range(rank)) if axes is None else tuple(a % rank for a in axes)
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(chosen):
        begin[axis], end[axis] = pads[i], pads[i + len(chosen)]
    if any(begin[:2] + end[:2]) or any(p < 0 for p in begin + end):
        return None
    return begin[2:], end[2:]


def _pads_with(pad: Node, fill: float) -> bool:
    value = pad.operand(2)
    if pad.attrs.get("mode", "constant") != "constant":
        return False
    return fill == 0 if value is None else value.const is not None and float(value.const.numpy().reshape(())) == fill


def _pads_like(pad: Node, op_name: str) -> bool:
    """Whether ``pad`` fills in what an operator fills in that pads by itself, or what does not change its result."""
    if op_name != "MaxPool":
        return _pads_with(pad, 0.0)
    return _pads_with(pad, float("-inf")) or (_pads_with(pad, 0.0) and _is_not_negative(pad.operands[0]))


def _is_not_negative(value: Value | None) -> bool:
    node = None if value is None else value.producer
    if node is None or value is None or not value.dtype.is_floating:
        return False
    bounds = [node.operand(1), node.operand(2)] if node.op == "Clip" else []
    is_clipped = bool(bounds and bounds[0]) and all(
        b is None or (b.const is not None and bool((b.const.numpy() >= 0).all())) for b in bounds
    )
    return node.op in ("Relu", "Sigmoid", "Softmax") or is_clipped


@rule("Conv", "AveragePool", "MaxPool")
def pad_into_window(node: Node) -> Any:
    """A Pad by what a convolution or pooling pads with by itself becomes its ``pads``."""
    x = node.operands[0]
    assert x is not None
    pad = x.producer
    if pad is None or pad.op != "Pad" or pad.graph is not node.graph:
        return None
    rank = x.rank
    require(rank is not None, "the rank is unknown")
    assert rank is not None
    require(node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"), "the operator chooses its pads")
    require(_pads_like(pad, node.op), "padded with another value")
    found = _spatial_pads(pad, rank)
    require(found is not None, "not only spatial dimensions are padded")
    assert found is not None
    own = list(node.attrs.get("pads", (0,) * (2 * (rank - 2))))
    attrs = dict(node.attrs)
    attrs.pop("auto_pad", None)
    if node.op == "AveragePool":
        require(
            node.attrs.get("count_include_pad", 0) or not any(own), "its own pads are not counted, the outer ones are"
        )
        require(not node.attrs.get("ceil_mode", 0), "windows beyond the end are counted differently")
        attrs["count_include_pad"] = 1
    if node.op == "MaxPool":
        kernel = node.attrs["kernel_shape"]
        require(len(node.results) == 1 and not node.attrs.get("ceil_mode", 0), "indices or rounding would change")
        require(
            all(p < k for p, k in zip(found[0] + found[1], kernel * 2, strict=True)), "windows would see padding only"
        )
    attrs["pads"] = tuple(p + q for p, q in zip(own, found[0] + found[1], strict=True))
    return Node(node.op, (pad.operands[0], *node.operands[1:]), attrs, [r.type for r in node.results]).result


@rule("MaxPool")
def pad_of_named_axes(node: Node) -> Any:
    """A Pad before a MaxPool names its axes, or ONNX Runtime 1.31 takes its zeros for padding of the MaxPool itself.

    It names all of them: of some only, ONNX Runtime permutes the widths wrongly when it moves a transposition across.
    """
    pad = node.operands[0].producer if node.operands[0] is not None else None
    if pad is None or pad.op != "Pad" or pad.graph is not node.graph or pad.operand(3) is not None:
        return None
    rank = pad.results[0].rank
    require(rank is not None and pad.attrs.get("mode", "constant") == "constant", "it does not pad with a number")
    assert rank is not None
    padded = op.Pad(pad.operands[0], pad.operands[1], pad.operand(2), constant(list(range(rank)), DType.INT64))
    return Node(node.op, [padded], dict(node.attrs), [r.type for r in node.results]).results
