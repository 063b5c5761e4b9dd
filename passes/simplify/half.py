"""Layers in half precision whose results are scaled and shifted in float32, between casts: mixed precision."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.dims import Dim
from ...ir.types import DType
from ..numerics import within
from ..rules import require, rule
from .convolutions import affine
from .reshapes import known_shape

_HALF = (DType.FLOAT16, DType.BFLOAT16)
Array = np.ndarray[Any, Any]

_CONV = """
agraph (float16[B,3,H,W] x) => (float16[B,4,H,W] y) <
  float16[4,3,1,1] w = {14336, 15360, 14848, 15360, 14336, 15104, 15360, 14336, 14848, 14336, 15360, 15104},
  float16[4] b = {14336, 15360, 14848, 15104},
  float[4,1,1] scale = {0.5, 1.5, 0.75, 1.25}, float[4,1,1] shift = {0.25, 0.5, 0.125, 0.75}
> {
  c = Conv (x, w, b)
  f = Cast <to = 1> (c)
  m = Mul (f, scale)
  a = Add (m, shift)
  y = Cast <to = 10> (a)
}
"""
_LINEAR = """
agraph (float16[B,S,2] x) => (float16[B,S,3] y) <
  float16[2,3] w = {14336, 15360, 14848, 15360, 14336, 15104}, float16[3] b = {14336, 15360, 14848},
  float[3] g = {0.5, 1.5, 0.75}, float[3] shift = {0.25, 0.5, 0.125}
> {
  p = MatMul (x, w)
  c = Add (p, b)
  f = Cast <to = 1> (c)
  m = Mul (f, g)
  a = Add (m, shift)
  y = Cast <to = 10> (a)
}
"""
_GEMM = """
agraph (float16[B,2] x) => (float16[B,3] y) <
  float16[3,2] w = {14336, 15360, 14848, 15360, 14336, 15104},
  float[3] g = {0.5, 1.5, 0.75}, float[3] b = {0.25, 0.5, 0.125}, float[3] v = {1.0, 2.0, 0.5}
> {
  c = Gemm <transB = 1> (x, w)
  f = Cast <to = 1> (c)
  n = BatchNormalization (f, g, b, b, v)
  y = Cast <to = 10> (n)
}
"""


class _Layer(NamedTuple):
    """A convolution or a product with constant weights.

    Attributes:
        node: the operator that has the weights.
        bias: its constant addend, if there is one.
        output: the axis of the weight that numbers the channels of the result.
        channels: that axis of the result.
    """

    node: Node
    bias: Value | None
    output: int
    channels: int


@rule("Cast", numerics=within(rtol=5e-3, atol=5e-3), examples=[_CONV, _LINEAR, _GEMM])
def affine_into_half_weights(node: Node) -> Value | None:
    """What is scaled and shifted per channel in float32, from half precision and back to it, goes into the weights.

    The weights are rounded once more, the sums once less: that is about as precise.
    """
    half = node.result.dtype
    found = _steps(node.given(0)) if half in _HALF else None
    if found is None or found[1].dtype is not half:
        return None
    steps, narrow = found
    layer = _layer(narrow)
    if layer is None:
        return None
    weight = layer.node.given(1)
    size = known_shape(weight)[layer.output]
    assert isinstance(size, int)
    scale, shift = np.ones(size), np.zeros(size)
    for step in steps:
        factor, addend = _vectors(step, layer.channels, size)
        scale, shift = scale * factor, shift * factor + addend
    if layer.bias is not None:
        where = layer.node.result if layer.node.op in ("MatMul", "Gemm") else layer.bias
        shift = shift + scale * _vector(layer.bias, where, len(known_shape(where)) - 1, size)
    assert weight.const is not None
    shape = [size if axis == layer.output else 1 for axis in range(len(weight.const.shape))]
    scaled = _rounded(weight.const.numpy().astype(np.float64) * scale.reshape(shape), half, layer.output)
    bias = constant(shift.astype(half.numpy), half)
    require(bool(np.isfinite(shift.astype(half.numpy).astype(np.float64)).all()), "the shift is too large")
    x, attrs = layer.node.operands[0], dict(layer.node.attrs)
    if layer.node.op == "MatMul":
        return op.Add(op.MatMul(x, scaled), bias)
    return Node(layer.node.op, [x, scaled, bias], attrs, [node.result.type]).result


def _steps(value: Value) -> tuple[list[Node], Value] | None:
    """What is done to a value in float32 with constants, first step first, and the value before the cast."""
    steps: list[Node] = []
    while value.dtype is DType.FLOAT and (made := value.producer) is not None and len(value.users) == 1:
        match made.op:
            case "Cast":
                return (steps[::-1], made.given(0)) if steps and len(made.given(0).users) == 1 else None
            case "Mul" | "Add" if sum(o is not None and o.const is not None for o in made.operands) == 1:
                value = made.given(0) if made.given(0).const is None else made.given(1)
            case "BatchNormalization" if len(made.results) == 1 and not made.attrs.get("training_mode", 0):
                value = made.given(0)
            case _:
                return None
        steps.append(made)
    return None


def _layer(value: Value) -> _Layer | None:
    """The layer that gives ``value``."""
    node = value.producer
    bias = None
    if node is not None and node.op == "Add":
        at = next((i for i in (0, 1) if node.given(i).const is not None), None)
        product = None if at is None else node.given(1 - at).producer
        if at is None or product is None or product.op != "MatMul" or len(node.given(1 - at).users) > 1:
            return None
        node, bias = product, node.given(at)
    elif node is not None:
        bias = node.operand(2)
    if node is None or node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    weight = node.given(1)
    if weight.const is None or (bias is not None and bias.const is None):
        return None
    match node.op:
        case "Conv":
            return _Layer(node, bias, 0, 1)
        case "ConvTranspose":
            return _Layer(node, bias, 1, 1) if node.attrs.get("group", 1) == 1 else None
        case "Gemm":
            is_plain = all(node.attrs.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
            return _Layer(node, bias, 0 if node.attrs.get("transB", 0) else 1, 1) if is_plain else None
    return _Layer(node, bias, 1, len(known_shape(value)) - 1) if len(weight.const.shape) == 2 else None


def _vectors(step: Node, axis: int, size: int) -> tuple[Array, Array]:
    """The factor and the addend of a step, for each channel."""
    result = step.results[0]
    if step.op == "BatchNormalization":
        require(axis == 1, "the channel is not the last dimension")
        pair = affine(step.given(1), step.given(2), step.given(3), step.given(4), step.attrs.get("epsilon"))
        factor, addend = (v.const.numpy().astype(np.float64) for v in pair if v.const is not None)
        return factor, addend
    number = next(o for o in step.operands if o is not None and o.const is not None)
    vector = _vector(number, result, axis, size)
    return (vector, np.zeros(size)) if step.op == "Mul" else (np.ones(size), vector)


def _vector(value: Value, result: Value, axis: int, size: Dim) -> Array:
    """A constant that broadcasts to ``result`` as one number for each index of ``axis``."""
    assert value.const is not None and isinstance(size, int)
    rank, own = len(known_shape(result)), value.const.shape
    padded = (1,) * (rank - len(own)) + tuple(own)
    is_one_each = len(padded) == rank and all(d == 1 or (a == axis and d == size) for a, d in enumerate(padded))
    require(is_one_each, "the constant is not one number per channel")
    found: Array = np.broadcast_to(value.const.numpy().astype(np.float64).reshape(-1), (size,))
    return found


def _rounded(weight: Array, half: DType, axis: int) -> Value:
    """A weight in half precision, if none of its channels is too large or too small for that."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = weight.astype(half.numpy)
        rest = tuple(a for a in range(weight.ndim) if a != axis)
        error = np.abs(rounded.astype(np.float64) - weight).max(axis=rest)
        largest = np.abs(weight).max(axis=rest)
    unit = 2.0**-11 if half is DType.FLOAT16 else 2.0**-8
    require(bool((error <= unit * largest).all()), "the weights are too large or too small for half precision")
    return constant(rounded, half)
