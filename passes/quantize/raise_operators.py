"""Operators on codes, brought to operators on numbers: ``QLinearConv`` is ``Conv`` between two conversions, and so on.

Each rule dequantizes the operands, computes in floating-point numbers, and quantizes the result where the operator
does. What that leaves, pairs of ``QuantizeLinear`` and ``DequantizeLinear`` with equal parameters and
``DequantizeLinear`` of constants, is for `raise_quantization` to read. Results agree up to the rounding of the last
code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.builder import make_node
from ...ir.types import DType
from ..numerics import within
from ..rules import require, rule

__all__ = ["ROUNDING", "RULES", "dequantized", "is_single", "product_of_scales"]

ROUNDING = within(rtol=1e-5)
_IGNORED = ("channels_last", "opset")  # attributes that the operator on numbers does not have
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_UNARY = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}


def dequantized(codes: Value, scale: Value, zero_point: Value | None, axis: int | None = None) -> Value:
    """The numbers that ``codes`` stand for; ``axis`` is that of a scale with several elements."""
    if zero_point is not None and scale.shape != zero_point.shape:
        scale, zero_point = _in_one_shape(scale, zero_point)
    return op.DequantizeLinear(codes, scale, zero_point, axis=axis if scale.rank != 0 else None)


def _number(node: Node, i: int, axis: int | None = None) -> Value:
    """Operand ``i`` of ``node`` as numbers; its scale and its zero point are the operands behind it."""
    codes, scale = node.operand(i), node.operand(i + 1)
    require(codes is not None and scale is not None, f"operand {i} or its scale is left out")
    assert codes is not None and scale is not None
    return dequantized(codes, scale, node.operand(i + 2), axis)


def _coded(y: Value, node: Node, i: int) -> Value:
    """``y`` as codes with the scale and zero point that operands ``i`` and ``i + 1`` of ``node`` are."""
    scale, zero_point = node.operand(i), node.operand(i + 1)
    require(scale is not None and is_single(scale), "the result has no scale, or several")
    if zero_point is not None:
        return op.QuantizeLinear(y, scale, zero_point)
    dtype = node.given(0).dtype
    require(dtype.is_integer, "the type of the codes is unknown")
    return op.QuantizeLinear(y, scale, output_dtype=int(dtype))


def _in_one_shape(scale: Value, zero_point: Value) -> tuple[Value, Value]:
    """Scale and zero point in one shape: these operators also take one of either for several of the other."""
    a, b = scale.const, zero_point.const
    require(a is not None and b is not None and 1 in (a.size, b.size), "scale and zero point differ in shape")
    assert a is not None and b is not None
    shape = a.shape if a.size > b.size else b.shape
    arrays = (t.numpy().reshape(t.shape if t.size > 1 else ()) for t in (a, b))
    scale, zero_point = (constant(np.broadcast_to(array, shape)) for array in arrays)
    return scale, zero_point


def is_single(scale: Value) -> bool:
    """Whether there is but one scale."""
    return scale.shape is not None and all(d == 1 for d in scale.shape)


def product_of_scales(a: Value, b: Value) -> Value:
    """The scale of sums of products of codes."""
    if a.const is None or b.const is None:
        return op.Mul(a, b)
    x, y = a.const.numpy(), b.const.numpy()
    require(1 in (x.size, y.size), "both operands have several scales")
    return constant(x.reshape(()) * y if x.size == 1 else x * y.reshape(()), a.dtype)


def _attributes(node: Node) -> dict[str, Any]:
    require(not node.attrs.get("channels_last"), "the channels are last")
    return {k: v for k, v in node.attrs.items() if k not in _IGNORED}


_WIDE = """
agraph (float[N,3] x) => (float[N,3] y) <float[3] s = {0.001, 0.2, 3.0}, int16[3] o = {3, 0, -500}> {
  a = com.microsoft.QuantizeLinear <axis = 1> (x, s, o)
  y = com.microsoft.DequantizeLinear <axis = 1> (a, s, o)
}
"""


@rule("com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear", examples=[_WIDE])
def quantization_of_onnxruntime(node: Node) -> Value:
    """ONNX Runtime's forms, from before the standard had narrow and wide integers."""
    return make_node(node.op_type, node.operands, dict(node.attrs)).result


# elementwise operators, pooling, concatenation

_UNARY_EXAMPLE = """
agraph (uint8[N,3,4,4] x) => (uint8[N,3,4,4] a, uint8[N,3,4,4] b, uint8[N,3,4,4] c, uint8[N,3,4,3] d, uint8[N,3,1,1] e)
<float s = {0.37}, uint8 o = {3}, float t = {0.0317}, uint8 p = {11}, float u = {0.00390625}, uint8 z = {0}>
{
  a = com.microsoft.QLinearSigmoid (x, s, o, u, z)
  b = com.microsoft.QLinearLeakyRelu <alpha = 0.3> (x, s, , t, p)
  c = com.microsoft.QLinearSoftmax <axis = -1, opset = 13> (x, s, o, u, z)
  d = com.microsoft.QLinearAveragePool <kernel_shape = [2, 2], pads = [1, 0, 0, 0]> (x, s, o, t, p)
  e = com.microsoft.QLinearGlobalAveragePool (x, s, o, t, p)
}
"""


@rule(*(f"com.microsoft.{name}" for name in _UNARY), numerics=ROUNDING, examples=[_UNARY_EXAMPLE])
def quantized_unary(node: Node) -> Value:
    """Activations and pooling from codes to codes."""
    x = _number(node, 0)
    if node.op_type == "QLinearSoftmax" and node.attrs.get("opset", 13) < 13:
        axis = node.attrs.get("axis", -1)
        require(x.rank is not None and axis in (-1, x.rank - 1), "a softmax over several dimensions")
    return _coded(make_node(_UNARY[node.op_type], (x,), _attributes(node)).result, node, 3)


_BINARY_EXAMPLE = """
agraph (uint8[N,3] x, uint8[3] y) => (uint8[N,3] a, uint8[N,3] b)
<float s = {0.37}, uint8 o = {3}, float t = {0.0317}, uint8 p = {11}, float u = {0.0519}>
{
  a = com.microsoft.QLinearAdd (x, s, o, y, t, p, u, p)
  b = com.microsoft.QLinearMul (x, s, p, y, t, p, u, o)
}
"""


@rule(*(f"com.microsoft.{name}" for name in _BINARY), numerics=ROUNDING, examples=[_BINARY_EXAMPLE])
def quantized_binary(node: Node) -> Value:
    """Sums and products, element by element, from codes to codes."""
    return _coded(make_node(_BINARY[node.op_type], (_number(node, 0), _number(node, 3)), {}).result, node, 6)


_JOINED_EXAMPLE = """
agraph (uint8[N,3] x, uint8[N,2] y, bool[N,1] k) => (uint8[N,5] a, uint8[N,3] b)
<float s = {0.37}, uint8 o = {3}, float t = {0.317}, uint8 p = {11}, float u = {0.519}>
{
  a = com.microsoft.QLinearConcat <axis = 1> (u, p, x, s, o, y, t, p)
  b = com.microsoft.QLinearWhere (k, x, s, o, x, t, p, u, o)
}
"""


@rule("com.microsoft.QLinearConcat", "com.microsoft.QLinearWhere", numerics=ROUNDING, examples=[_JOINED_EXAMPLE])
def quantized_choice(node: Node) -> Value:
    """Operands with scales of their own, joined or chosen from."""
    if node.op_type == "QLinearWhere":
        return _coded(op.Where(node.given(0), _number(node, 1), _number(node, 4)), node, 7)
    numbers = tuple(_number(node, i) for i in range(2, len(node.operands), 3))
    return _coded(make_node("Concat", numbers, _attributes(node)).result, node, 0)


# products

_CONV = """
agraph (uint8[N,2,5,5] x) => (uint8[N,3,5,5] y, int8[N,3,4,4] z) <
  float s = {0.137}, uint8 o = {3}, int8[3,2,3,3] w = {{w}}, float[3] t = {0.0317, 0.51, 0.0123}, int8 m = {0},
  int8[3,2,2,2] v = {{v}}, float e = {0.0231}, int8 p = {-5}, float u = {0.519}, float r = {0.137}, int8 n = {-20},
  int32[3] b = {100, -300, 7}
> {
  y = QLinearConv <pads = [1, 1, 1, 1]> (x, s, o, w, t, m, u, o, b)
  z = QLinearConv (x, s, o, v, e, p, r, n)
}
"""


def _numbers(count: int) -> str:
    return ", ".join(str(i * 37 % 255 - 127) for i in range(count))


_CONV_EXAMPLE = _CONV.replace("{w}", _numbers(54)).replace("{v}", _numbers(24))


@rule("QLinearConv", "com.microsoft.QLinearConv", numerics=ROUNDING, examples=[_CONV_EXAMPLE])
def quantized_convolution(node: Node) -> Value:
    """A convolution from codes to codes; its bias is in the scale of the products."""
    x, w, bias = _number(node, 0), _number(node, 3, axis=0), node.operand(8)
    if bias is not None:
        bias = dequantized(bias, product_of_scales(node.given(1), node.given(4)), None, axis=0)
    return _coded(make_node("Conv", (x, w, bias), _attributes(node)).result, node, 6)


_MATMUL_EXAMPLE = """
agraph (uint8[N,3] x) => (uint8[N,4] y, int8[N,4] z) <
  float s = {0.137}, uint8 o = {3}, int8[3,4] w = {1, -100, 2, 55, -7, 80, 127, -128, 0, 3, 9, -60},
  float[4] t = {0.0317, 0.51, 0.0123, 0.2}, int8[4] p = {0, 2, -3, 0}, float u = {0.519}, float v = {0.0213},
  int8 n = {-20}
> {
  y = QLinearMatMul (x, s, o, w, t, p, u, o)
  z = QLinearMatMul (x, s, o, w, v, n, u, n)
}
"""


@rule("QLinearMatMul", numerics=ROUNDING, examples=[_MATMUL_EXAMPLE])
def quantized_matmul(node: Node) -> Value:
    """A matrix product from codes to codes; a scale per row of the first operand, or per column of the second."""
    a, b, a_scale, b_scale = _number(node, 0, axis=0), _number(node, 3, axis=-1), node.given(1), node.given(4)
    require(a.dtype is DType.FLOAT, f"the scale is {a.dtype.text}")
    require(a.rank == 2 or is_single(a_scale), "a scale per row of several matrices")
    require(is_single(b_scale) or (b_scale.rank == 1 and b.rank != 1), "a scale per column of each matrix")
    return _coded(op.MatMul(a, b), node, 6)


_GEMM_EXAMPLE = """
agraph (uint8[N,3] x) => (uint8[N,4] y, float[N,4] z) <
  float s = {0.137}, uint8 o = {3}, int8[4,3] w = {1, -100, 2, 55, -7, 80, 127, -128, 0, 3, 9, -60},
  float[4] t = {0.0317, 0.51, 0.0123, 0.2}, int8[4] p = {0, 0, 0, 0}, float u = {0.519}, float e = {0.0213},
  int8 q = {0}, int32[4] b = {100, -300, 7, 0}
> {
  y = com.microsoft.QGemm <transB = 1, alpha = 1.5> (x, s, o, w, t, p, b, u, o)
  z = com.microsoft.QGemm <transB = 1> (x, s, o, w, e, q)
}
"""


@rule("com.microsoft.QGemm", numerics=ROUNDING, examples=[_GEMM_EXAMPLE])
def quantized_gemm(node: Node) -> Value:
    """A matrix product of codes, with a bias in the scale of the products; the result is in codes if it has a scale."""
    a, b, bias = _number(node, 0), _number(node, 3, axis=0 if node.attrs.get("transB") else 1), node.operand(6)
    if bias is not None:
        alpha = constant(node.attrs.get("alpha", 1.0), DType.FLOAT)
        scale = product_of_scales(product_of_scales(node.given(1), node.given(4)), alpha)
        bias = dequantized(bias, scale, None, axis=-1)
    y = make_node("Gemm", (a, b, bias), dict(node.attrs)).result
    return y if node.operand(7) is None else _coded(y, node, 7)


RULES = (
    quantization_of_onnxruntime,
    quantized_unary,
    quantized_binary,
    quantized_choice,
    quantized_convolution,
    quantized_matmul,
    quantized_gemm,
)
