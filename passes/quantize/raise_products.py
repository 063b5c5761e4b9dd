"""Matrix products and convolutions whose results are numbers: integers scaled afterwards, and packed weights.

``MatMulInteger`` and ``ConvInteger`` give sums in 32 bits; the scales of their operands are factors of what these are
multiplied by. The weights of ``MatMulNBits`` and ``GatherBlockQuantized`` may be bytes that pack several codes each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...ir import LazyTensor, Node, Value, constant, op
from ...ir.builder import make_node
from ...ir.tensor import unpack
from ...ir.types import DType
from ..rules import require, rule
from .raise_operators import ROUNDING, dequantized, is_single, product_of_scales

__all__ = ["RULES"]

_DEPTH = 4  # multiplications in a row
_FORWARD = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")  # between codes and their product

_DYNAMIC_EXAMPLE = """
agraph (float[N,3] x, float[N,2,5,5] c) => (float[N,4] y, float[N,2,4,4] z) <
  int8[3,4] w = {1, -100, 2, 55, -7, 80, 127, -128, 0, 3, 9, -60}, float[4] t = {0.0317, 0.51, 0.0123, 0.2},
  int8 o = {0}, uint8[2,2,2,2] k = {1, 100, 2, 55, 7, 80, 127, 128, 0, 3, 9, 60, 200, 13, 77, 2}, float u = {0.03},
  uint8 p = {120}
> {
  a, s, b = DynamicQuantizeLinear (x)
  d = MatMulInteger (a, w, b, o)
  e = Cast <to = 1> (d)
  f = Mul (s, t)
  y = Mul (e, f)
  g, h, i = DynamicQuantizeLinear (c)
  j = ConvInteger (g, k, i, p)
  l = Cast <to = 1> (j)
  m = Mul (l, h)
  z = Mul (m, u)
}
"""


@rule("Mul", numerics=ROUNDING, examples=[_DYNAMIC_EXAMPLE])
def scaled_integer_product(node: Node) -> Value | None:
    """A product of codes times the scales of both operands: the product of the numbers that the codes stand for."""
    factors = _factors(node)
    casts = [f for f in factors if _integer_product(f) is not None]
    if len(casts) != 1:
        return None
    product = _integer_product(casts[0])
    assert product is not None
    factors.remove(casts[0])
    rank = product.result.rank
    require(rank is not None and all(f.rank is not None and f.rank <= rank for f in factors), "the ranks are unknown")
    known = [_scale_among(product.given(i), factors) for i in (0, 1)]
    rest = None
    if None in known:
        require(known != [None, None], "neither operand is quantized here")
        require(factors and all(f.const is not None for f in factors), "the scale of the other operand is no constant")
        rest, factors = _scale_for(product, known.index(None), factors), []
    x_scale, w_scale = (rest if scale is None else scale for scale in known)
    assert x_scale is not None and w_scale is not None
    convolves = product.op == "ConvInteger"
    x = dequantized(product.given(0), x_scale, product.operand(2), axis=0)
    w = dequantized(product.given(1), w_scale, product.operand(3), axis=0 if convolves else -1)
    result = make_node("Conv" if convolves else "MatMul", (x, w), dict(product.attrs)).result
    for factor in factors:
        result = op.Mul(result, factor)
    return result


def _factors(node: Node, depth: int = 0) -> list[Value]:
    """What a tree of multiplications multiplies."""
    found: list[Value] = []
    for operand in (node.given(0), node.given(1)):
        inner = operand.producer
        nested = inner is not None and inner.op == "Mul" and depth < _DEPTH
        found += _factors(inner, depth + 1) if inner is not None and nested else [operand]
    return found


def _integer_product(value: Value) -> Node | None:
    """The product of integers that ``value`` is, as floating-point numbers."""
    cast = value.producer
    if cast is None or cast.op != "Cast" or value.dtype is not DType.FLOAT:
        return None
    product = cast.given(0).producer
    return product if product is not None and product.op in ("MatMulInteger", "ConvInteger") else None


def _scale_among(codes: Value, factors: list[Value]) -> Value | None:
    """The scale with which ``codes`` were quantized, taken out of ``factors``; None if they were not.

    A constant scale that is no factor of its own has been multiplied into another constant; it is divided out.
    """
    source = codes.producer
    while source is not None and source.op in _FORWARD:
        source = source.given(0).producer
    if source is None or source.op not in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return None
    scale = source.given(1) if source.op == "QuantizeLinear" else source.results[1]
    require(is_single(scale), "an operand has several scales")
    if scale in factors:
        factors.remove(scale)
    else:
        require(scale.const is not None and scale.const.numpy().all(), "the product is not scaled back")
        assert scale.const is not None
        factors.append(constant(1 / scale.const.numpy(), scale.dtype))
    return scale


def _scale_for(product: Node, side: int, factors: list[Value]) -> Value:
    """The product of constant ``factors`` as a scale: one number, or one per output channel of the second operand."""
    scale = factors[0]
    for factor in factors[1:]:
        scale = product_of_scales(scale, factor)
    assert scale.const is not None
    size, shape = scale.const.size, scale.const.shape
    if size == 1:
        return constant(scale.const.numpy().reshape(()), scale.dtype)
    rank = product.given(1).rank
    require(side == 1 and rank is not None and rank > 1, "the first operand has several scales")
    assert rank is not None
    behind = rank - 2 if product.op == "ConvInteger" else 0  # dimensions of the result behind its channels
    require(len(shape) > behind and shape[-1 - behind] == size, "the scales are not those of channels")
    return constant(scale.const.numpy().reshape(-1), scale.dtype)


_TO_FLOAT_EXAMPLE = """
agraph (uint8[N,3] x, float[N,3] a) => (float[N,4] y, float[N,4] z) <
  float s = {0.137}, uint8 o = {3}, int8[3,4] w = {1, -100, 2, 55, -7, 80, 127, -128, 0, 3, 9, -60},
  float[4] t = {0.0317, 0.51, 0.0123, 0.2}, int8[4] p = {0, 2, -3, 0}, float[4] b = {1.0, 2.0, 3.0, -4.0}
> {
  y = com.microsoft.MatMulIntegerToFloat (x, w, s, t, o, p, b)
  z = com.microsoft.DynamicQuantizeMatMul (a, w, t, p, b)
}
"""


@rule(
    "com.microsoft.MatMulIntegerToFloat",
    "com.microsoft.DynamicQuantizeMatMul",
    numerics=ROUNDING,
    examples=[_TO_FLOAT_EXAMPLE],
)
def integer_matmul_to_float(node: Node) -> Value:
    """A product of codes, scaled; the first operand may be quantized by the operator itself."""
    if node.op_type == "DynamicQuantizeMatMul":
        x = op.domain("planish").FakeQuantize(node.given(0), format="uint8")
        b, scale, zero, bias = (node.operand(i) for i in range(1, 5))
    else:
        b, a_scale, scale, a_zero, zero, bias = (node.operand(i) for i in range(1, 7))
        require(a_scale is not None and is_single(a_scale), "the first operand has no scale, or several")
        assert a_scale is not None
        x = dequantized(node.given(0), a_scale, a_zero)
    require(b is not None and scale is not None, "the weights or their scale are left out")
    assert b is not None and scale is not None
    return _with_bias(op.MatMul(x, dequantized(b, scale, zero, axis=-1)), bias)


def _with_bias(product: Value, bias: Value | None) -> Value:
    return product if bias is None else op.Add(product, bias)


def _packed_numbers(count: int) -> str:
    return ", ".join(str(i * 73 % 256) for i in range(count))


_BLOCKS_EXAMPLE = """
agraph (float[N,40] x) => (float[N,3] y, float[N,3] z, float[N,3] v) <
  uint8[3,2,16] four = {{f}}, float[6] s = {0.1, 0.2, 0.03, 0.5, 0.3, 0.01}, uint8[3] o = {18, 250, 103},
  uint8[3,3,4] two = {{t}}, float[3,3] r = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}, float[3] b = {1.0, 2.0, 3.0},
  uint8[3,1,64] eight = {{e}}, float[3,1] q = {0.1, 0.2, 0.3}
> {
  y = com.microsoft.MatMulNBits <K = 40, N = 3, bits = 4, block_size = 32> (x, four, s, o)
  z = com.microsoft.MatMulNBits <K = 40, N = 3, bits = 2, block_size = 16> (x, two, r, , , b)
  v = com.microsoft.MatMulNBits <K = 40, N = 3, bits = 8, block_size = 64> (x, eight, q)
}
"""
_BLOCKS_EXAMPLE = (
    _BLOCKS_EXAMPLE.replace("{f}", _packed_numbers(96))
    .replace("{t}", _packed_numbers(36))
    .replace("{e}", _packed_numbers(192))
)


@rule("com.microsoft.MatMulNBits", numerics=ROUNDING, examples=[_BLOCKS_EXAMPLE])
def matmul_in_blocks(node: Node) -> Value:
    """A product with packed weights: they become a matrix of codes, with a scale per block of a column.

    With ``accuracy_level`` 4 the left factor is quantized, too, in blocks of its rows; other levels say how exactly the
    operator may compute at least, which is up to who runs it.
    """
    weights, scales = ((o.const if o is not None else None) for o in (node.operand(1), node.operand(2)))
    require(weights is not None and scales is not None, "the weights are no constants")
    assert weights is not None and scales is not None
    require(node.operand(4) is None and not node.attrs.get("weight_prepacked"), "the weights are in another order")
    bits = node.attrs.get("bits", 4)
    require(bits in (2, 4, 8), f"codes of {bits} bits")
    rows, columns, block_size = (node.attrs.get(name, 0) for name in ("K", "N", "block_size"))
    require(min(rows, columns, block_size) > 0, "the size of the weights is not stated")
    dtype, blocks = DType[f"UINT{bits}"], -(-rows // block_size)
    sizes = columns * blocks * block_size * bits // 8, columns * blocks
    require((weights.size, scales.size) == sizes, "the weights do not have the size that is stated")

    def compute(array: Any) -> Any:
        codes = unpack(array.reshape(-1), dtype, (columns, blocks * block_size))
        return np.ascontiguousarray(codes[:, :rows].T)

    lazy = LazyTensor(compute, (weights,), dtype, (rows, columns), weights.name)
    scale = np.ascontiguousarray(scales.numpy().reshape(columns, blocks).T)
    zero = np.ascontiguousarray(_zero_points(node.operand(3), (columns, blocks), dtype).T)
    weight = op.DequantizeLinear(lazy, scale, zero, axis=0, block_size=block_size)
    x = node.given(0)
    if node.attrs.get("accuracy_level", 0) == _INT8_LEVEL:
        x = op.domain("planish").FakeQuantize(x, format="int8", axis=-1, block_size=block_size)
    return _with_bias(op.MatMul(x, weight), node.operand(5))


def _zero_points(zeros: Value | None, shape: tuple[int, int], dtype: DType) -> Any:
    """The zero points of all blocks: packed like the weights, plain, or the middle by default."""
    if zeros is None:
        return np.full(shape, 1 << (dtype.bits - 1)).astype(dtype.numpy)
    require(zeros.const is not None and zeros.const.size % shape[0] == 0, "the zero points are no constant per column")
    assert zeros.const is not None
    array = zeros.const.numpy().reshape(shape[0], -1)
    if zeros.dtype is DType.UINT8:
        per_row = array.shape[1] * 8 // dtype.bits
        return unpack(array.reshape(-1), dtype, (shape[0], per_row))[:, : shape[1]]
    array = array.astype(np.float32)
    require(np.all((array == np.rint(array)) & (array >= 0) & (array < 1 << dtype.bits)), "zero points between codes")
    return array.astype(np.uint8).astype(dtype.numpy)


_ROWS_EXAMPLE = """
agraph (int64[N] n) => (float[N,40] y, float[N,40] z, float[N,32] v) <
  int64 rows = {3},
  uint8[3,20] four = {{f}}, float[3,2] s = {0.1, 0.2, 0.03, 0.5, 0.3, 0.01}, uint8[3,1] o = {18, 250, 103},
  uint8[3,32] eight = {{e}}, float[3,2] q = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}
> {
  i = Mod (n, rows)
  y = com.microsoft.GatherBlockQuantized <block_size = 32> (four, i, s)
  z = com.microsoft.GatherBlockQuantized <block_size = 32> (four, i, s, o)
  v = com.microsoft.GatherBlockQuantized <block_size = 16, bits = 8> (eight, i, q)
}
""".replace("{f}", _packed_numbers(60)).replace("{e}", _packed_numbers(96))


@rule("com.microsoft.GatherBlockQuantized", numerics=ROUNDING, examples=[_ROWS_EXAMPLE])
def lookup_in_blocks(node: Node) -> Value:
    """Rows of a table of codes, with a scale per block of a row: rows of the numbers."""
    table, scale, zeros, attrs = node.given(0), node.given(2), node.operand(3), node.attrs
    axis, block_size = attrs.get("quantize_axis", 1), attrs.get("block_size", 128)
    if table.dtype is DType.UINT8:
        bits = attrs.get("bits", 4)
        require(bits in (4, 8), f"codes of {bits} bits")
        require(table.const is not None and scale.const is not None, "the table is no constant")
        assert table.const is not None and scale.const is not None
        dtype, shape, blocks = DType[f"UINT{bits}"], table.const.shape, scale.const.shape
        require(axis in (-1, len(shape) - 1) and len(blocks) == len(shape), "blocks along another dimension than bytes")
        whole = (*shape[:-1], shape[-1] * 8 // bits)
        require(blocks == (*shape[:-1], -(-whole[-1] // block_size)), "as many scales as there are blocks")
        zeros = constant(_zero_points(zeros, (math.prod(blocks[:-1]), blocks[-1]), dtype).reshape(blocks), dtype)
        codes = LazyTensor(lambda a: unpack(a.reshape(-1), dtype, whole), (table.const,), dtype, whole, table.name)
        table = Value(codes.type, table.name, const=codes)
    rows = op.DequantizeLinear(table, scale, zeros, axis=axis, block_size=block_size)
    return op.Gather(rows, node.given(1), axis=attrs.get("gather_axis", 0))


_INT8_LEVEL = 4
RULES = (scaled_integer_product, integer_matmul_to_float, matmul_in_blocks, lookup_in_blocks)
