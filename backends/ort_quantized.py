"""The forms of quantized products that ONNX Runtime runs fastest on a CPU.

Its own fusions find integer kernels for ``QuantizeLinear`` and ``DequantizeLinear`` around most operators. For products
with weights it has faster ones than they reach: the bias goes into the product, a value that several products read is
quantized once, and weights in blocks stay packed. Rows of quantized tables are picked before they are turned into
numbers. ONNX Runtime 1.31, two threads, 512 x 384 by 384 x 1536, in milliseconds (``benchmarks/ort_forms.py``):
float 2.85, DynamicQuantizeMatMul 0.84, QuantizeLinear and MatMulIntegerToFloat 0.82, QLinearMatMul and back 0.94,
MatMulNBits with 8 or 4 bits in blocks of 128 2.0 and 2.1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..ir import DType, Graph, LazyTensor, Node, Tensor, TensorType, Value, constant, edit, op
from ..ir.builder import make_node
from ..ir.quantization import FAKE_QUANTIZE, format_of, is_fake_quantize
from ..passes.quantize.targets import target_for
from .ort_target import defines
from .quantization import Codes, dequantized, encoded_constant, shifted, substitute

__all__ = ["adapt_quantized", "move_codes"]

_PRODUCT = "com.microsoft.MatMulIntegerToFloat"
_DYNAMIC = "com.microsoft.DynamicQuantizeMatMul"
_IN_BLOCKS = "com.microsoft.MatMulNBits"
_ROWS_IN_BLOCKS = "com.microsoft.GatherBlockQuantized"
_BLOCKS = (16, 32, 64, 128, 256)  # block sizes of MatMulNBits and GatherBlockQuantized
_PACKED_BITS = (2, 4, 8)
_EIGHT = (DType.INT8, DType.UINT8)
_NARROW = (DType.INT4, DType.UINT4, DType.INT2, DType.UINT2)
_MOVES = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")  # that ONNX Runtime moves codes across
_INT8_LEVEL = 4  # of MatMulNBits: the left factor becomes int8 in blocks of its rows


class _Product(NamedTuple):
    """A product with quantized weights: ``x @ w + bias``.

    Attributes:
        x: the left factor, without its FakeQuantize.
        left: that FakeQuantize, or None.
        weight: the codes, [in, out].
        bias: a constant row, or None.
        end: the node whose result it is.
    """

    x: Value
    left: Node | None
    weight: Codes
    bias: Value | None
    end: Node


_Quantized = dict[tuple[Node, bool], tuple[Value, ...]]  # by the FakeQuantize, and whether the codes must be unsigned


def adapt_quantized(graph: Graph, activation: str) -> None:
    """Rewrite products and lookups on quantized constants in place; what remains is left to the standard's form.

    Args:
        graph: the graph.
        activation: the format of the left factors that kernels are fast for.
    """
    known: dict[tuple[object, ...], Value] = {}
    quantized: _Quantized = {}
    for node in [n for n in graph.walk() if n.op in ("MatMul", "Gemm", "Gather")]:
        if node.op == "Gather":
            _lookup(node, known)
            continue
        product = _product(node, known)
        if product is None:
            continue
        if product.weight.block_size:
            _in_blocks(product)
        elif product.left is not None:
            _integers(product, quantized, activation)
    for node in [n for n in graph.walk() if n.op in ("MatMul", "Gemm")]:
        if node.operand(1) is not None and node.given(1).rank == 2:
            _widened(node, known)
        _keep_apart(node)
    for node in [n for n in graph.walk() if n.op in ("Conv", "ConvTranspose")]:
        _widened(node, known)
        if node.op == "Conv":
            _as_bytes(node, known)
    for node in [n for n in graph.walk() if n.op in ("Conv", "ConvTranspose", "Gemm")]:
        _keep_weight(node)
    for node in [n for n in graph.walk() if n.op in ("QuantizeLinear", "DequantizeLinear")]:
        _in_one_type(node)


def move_codes(graph: Graph) -> None:
    """Move codes of int8 instead of the numbers they stand for.

    ONNX Runtime 1.31 would do so itself, and makes a model of it that it refuses, from operator set 21 on.
    """
    for node in [n for n in graph.walk() if n.op in _MOVES and not n.domain and len(n.results) == 1]:
        numbers = node.given(0)
        source = numbers.producer
        if source is None or source.op != "DequantizeLinear" or source.given(0).dtype is not DType.INT8:
            continue
        scale = source.given(1)
        if source.given(0).const is not None or scale.shape is None or not all(d == 1 for d in scale.shape):
            continue
        moved = make_node(node.op, (source.given(0), *node.operands[1:]), dict(node.attrs)).result
        operands = (moved, scale, source.operand(2))
        substitute(node, make_node("DequantizeLinear", operands, dict(source.attrs)).result)
        edit.erase_dead([source])


def _in_one_type(node: Node) -> None:
    """Numbers of 16 bits with scales of float32: ONNX Runtime 1.31 takes such models, and fails when it runs them."""
    x, scale, dtype = node.given(0), node.given(1), node.result.dtype
    if scale.dtype is not DType.FLOAT:
        return
    if node.op == "QuantizeLinear" and x.dtype in (DType.FLOAT16, DType.BFLOAT16):
        cast = op.Cast(x, to=DType.FLOAT)
        edit.insert_floating([cast], node)
        edit.set_operand(node, 0, cast)
    elif node.op == "DequantizeLinear" and dtype is not DType.FLOAT:
        attrs = {name: value for name, value in node.attrs.items() if name != "output_dtype"}
        substitute(node, op.Cast(make_node(node.op, node.operands, attrs).result, to=dtype))


# recognizing


def _product(node: Node, known: dict[tuple[object, ...], Value]) -> _Product | None:
    weight = node.operand(1)
    if not is_fake_quantize(weight) or weight is None or weight.rank != 2 or node.given(0).dtype is not DType.FLOAT:
        return None
    attrs, bias = node.attrs, node.operand(2)
    if attrs.get("transA") or attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
        return None
    assert weight.producer is not None
    codes = encoded_constant(weight.producer, known)
    if codes is None or codes.scale.dtype is not DType.FLOAT:
        return None
    if attrs.get("transB"):
        codes = _transposed(codes)
    end = node
    if bias is None:
        end, bias = _with_bias(node, codes.codes)
    elif not _is_row(bias, codes.codes):
        return None
    x = node.given(0)
    left = x.producer if is_fake_quantize(x) else None
    return _Product(x if left is None else left.given(0), left, codes, bias, end)


def _transposed(codes: Codes) -> Codes:
    assert codes.codes.const is not None and codes.codes.shape is not None
    tensor, shape = codes.codes.const, codes.codes.const.shape[::-1]
    lazy = LazyTensor(lambda a: np.ascontiguousarray(a.T), (tensor,), tensor.dtype, shape, tensor.name)
    return replace(
        codes,
        codes=Value(lazy.type, lazy.name, const=lazy),
        scale=_flipped(codes.scale),
        zero_point=codes.zero_point and _flipped(codes.zero_point),
        axis=(1 - codes.axis) % 2,
    )


def _flipped(parameter: Value) -> Value:
    assert parameter.const is not None
    array = parameter.const.numpy()
    return constant(np.ascontiguousarray(array.T), parameter.dtype) if array.ndim == 2 else parameter


def _is_row(bias: Value, weight: Value) -> bool:
    return bias.const is not None and weight.shape is not None and bias.const.shape == (weight.shape[1],)


def _with_bias(node: Node, weight: Value) -> tuple[Node, Value | None]:
    """The addition of a constant row that alone uses ``node``, and the row; or the node itself and None."""
    users = node.result.users
    if len(users) == 1 and users[0].op == "Add" and users[0].graph is node.graph:
        others = [o for o in users[0].operands if o is not node.result]
        if len(others) == 1 and others[0] is not None and _is_row(others[0], weight):
            return users[0], others[0]
    return node, None


# rewriting


def _integers(product: _Product, quantized: _Quantized, activation: str) -> None:
    """A product of eight-bit integers whose result is a floating-point number."""
    weight, left = product.weight, product.left
    assert left is not None
    per_column = weight.scale.rank == 0 or weight.axis % 2 == 1 or weight.scale.shape == (1,)
    form = format_of(left)
    if not per_column or weight.codes.dtype not in _EIGHT or form.storage not in _EIGHT or form.bits < 8:
        return
    users = product.end.result.users
    if left.operand(1) is not None and users and all(u.op == FAKE_QUANTIZE for u in users):
        return  # its result is quantized, too: the standard's form becomes QLinearMatMul
    scale = left.operand(1)
    if left.attrs.get("block_size") if scale is None else not _is_step(scale):
        return
    bias = product.bias
    operands: tuple[Value | None, ...]
    zero_point = left.operand(2)
    can_shift = scale is not None and form.is_signed and (zero_point is None or zero_point.const is not None)
    is_mixed = scale is not None and form.is_signed and not weight.codes.dtype.is_signed  # which no kernel takes
    if is_mixed and not can_shift:
        return
    key = left, can_shift and (is_mixed or activation == "uint8")  # or it is 25 times slower on x64
    if scale is None and key not in quantized and len(left.result.users) == 1 and defines(_DYNAMIC):
        operands = (product.x, weight.codes, weight.scale, weight.zero_point, bias)
        _replace(product.end, make_node(_DYNAMIC, operands, {}, 1))
    elif defines(_PRODUCT):
        if key not in quantized:
            quantized[key] = _quantized(product.x, *key)
        codes, step, zero = quantized[key]
        operands = (codes, weight.codes, step, weight.scale, zero, weight.zero_point, bias)
        _replace(product.end, make_node(_PRODUCT, operands, {}, 1))


def _is_step(scale: Value) -> bool:
    return scale.const is not None and scale.const.shape in ((), (1,)) and scale.dtype is DType.FLOAT


def _quantized(x: Value, node: Node, unsigned: bool) -> tuple[Value, ...]:
    """Codes, scale and zero point of ``x``, computed where ``node`` stands."""
    scale, zero_point = node.operand(1), node.operand(2)
    if scale is None:
        results = make_node("DynamicQuantizeLinear", (x,), {}, 3).results
    else:
        form = format_of(node)
        zero = shifted(zero_point, scale, form) if unsigned else zero_point
        zero = zero or constant(np.zeros((), form.storage.numpy), form.storage)
        results = (op.QuantizeLinear(x, scale, zero), scale, zero)
    edit.insert_floating([results[0]], node)
    return tuple(results)


def _replace(end: Node, new: Node) -> None:
    new.results[0].type = end.result.type
    new.name, new.metadata, new.rules = end.name, end.metadata, end.rules
    edit.insert(new, end)
    edit.replace(end.result, new.result)
    edit.erase_dead([end])


def _in_blocks(product: _Product) -> None:
    """A product with weights in blocks along the rows that they are multiplied with."""
    weight = product.weight
    assert weight.codes.const is not None and weight.scale.const is not None
    bits, (rows, columns) = weight.codes.dtype.bits, weight.codes.const.shape
    if weight.axis % 2 or weight.block_size not in _BLOCKS or bits not in _PACKED_BITS or not defines(_IN_BLOCKS):
        return
    if weight.scale.const.size != columns * -(-rows // weight.block_size):
        return
    zero = weight.zero_point.const if weight.zero_point is not None else None
    attrs = {"K": rows, "N": columns, "bits": bits, "block_size": weight.block_size}
    x, left = product.x, product.left
    if left is not None and _is_in_rows(left, weight.block_size):
        attrs["accuracy_level"] = _INT8_LEVEL
    elif left is not None:
        x = left.result
    operands = (
        x,
        _packed_weight(weight, bits),
        constant(np.ascontiguousarray(weight.scale.const.numpy().T).reshape(-1), weight.scale.dtype),
        None if zero is None and weight.codes.dtype.is_signed else _zeros(zero, weight, bits),
        None,
        product.bias,
    )
    _replace(product.end, make_node(_IN_BLOCKS, operands, attrs, 1))


def _is_in_rows(left: Node, block_size: int) -> bool:
    """Whether it makes int8 of blocks of the last dimension, as MatMulNBits does."""
    attrs, rank = left.attrs, left.result.rank
    dynamic = left.operand(1) is None and format_of(left).name == "int8" and attrs.get("block_size") == block_size
    return dynamic and attrs.get("axis", 1) in (-1, None if rank is None else rank - 1)


def _widened(node: Node, known: dict[tuple[object, ...], Value]) -> None:
    """A weight whose left factor is no integer, in plain arithmetic: it is computed once, when the model is loaded.

    A DequantizeLinear would be computed in every run, which takes twice as long for a convolution. Of a product, ONNX
    Runtime 1.31 would make a MatMulNBits, which is many times slower, and less exact.
    """
    weight = node.operand(1)
    if weight is None or not is_fake_quantize(weight) or _holds_integers(node.given(0)):
        return
    assert weight.producer is not None
    codes = encoded_constant(weight.producer, known)
    if codes is None or codes.block_size or codes.codes.dtype not in (*_EIGHT, *_NARROW):
        return
    rank = len(codes.codes.shape or ())
    shape = constant([-1 if axis == codes.axis % rank else 1 for axis in range(rank)], DType.INT64)
    number, zero = op.Cast(codes.codes, to=codes.scale.dtype), codes.zero_point
    if zero is not None and zero.const is not None and zero.const.numpy().any():
        number = op.Sub(number, op.Reshape(op.Cast(zero, to=codes.scale.dtype), shape))
    number = op.Mul(number, op.Reshape(codes.scale, shape))
    number = number if number.dtype is weight.dtype else op.Cast(number, to=weight.dtype)
    for new in edit.insert_floating([number], node):
        new.name = node.name and f"{node.name}/{new.op}"
    edit.set_operand(node, 1, number)
    edit.erase_dead([weight.producer])


def _as_bytes(node: Node, known: dict[tuple[object, ...], Value]) -> None:
    """A convolution's weight of four bits or less, whose integers become bytes when the model is loaded.

    ONNX Runtime 1.31 has an integer kernel for bytes only; it computes with numbers where weights have four bits, and
    refuses the model where they have two.
    """
    weight = node.operand(1)
    if weight is None or not is_fake_quantize(weight) or not _holds_integers(node.given(0)):
        return
    assert weight.producer is not None
    codes = encoded_constant(weight.producer, known)
    if codes is None or codes.block_size or codes.codes.dtype not in _NARROW:
        return
    wide = DType.INT8 if codes.codes.dtype.is_signed else DType.UINT8
    zero = codes.zero_point
    if zero is not None and zero.const is not None:
        zero = constant(zero.const.numpy().astype(wide.numpy), wide, zero.name)
    number = dequantized(replace(codes, codes=op.Cast(codes.codes, to=wide), zero_point=zero))
    for new in edit.insert_floating([number], node):
        new.name = node.name and f"{node.name}/{new.op}"
    edit.set_operand(node, 1, number)
    edit.erase_dead([weight.producer])


def _holds_integers(value: Value) -> bool:
    """Whether a value is quantized, or moved from one that is."""
    moves = (*target_for("onnxruntime").moves, *_MOVES)
    while not is_fake_quantize(value) and value.producer is not None and value.producer.op in moves:
        value = value.producer.given(0)
    made = value.producer
    return is_fake_quantize(value) or (made is not None and made.op == "DequantizeLinear")


def _keep_weight(node: Node) -> None:
    """Keep ONNX Runtime 1.31 from quantizing a weight that is not: it does so between codes, to int8 with one scale."""
    weight = node.operand(1)
    if weight is None or weight.const is None or not weight.dtype.is_floating or not _holds_integers(node.given(0)):
        return
    if _becomes_codes(node.result):
        _set_apart(node, 0)


def _becomes_codes(value: Value) -> bool:
    """Whether a value is quantized, as it is or after an activation that quantization absorbs."""
    return any(
        user.op in ("QuantizeLinear", FAKE_QUANTIZE) or (user.op in ("Relu", "Clip") and _becomes_codes(user.result))
        for user in value.users
    )


def _keep_apart(node: Node) -> None:
    """Keep ONNX Runtime 1.31 from choosing an integer kernel for a product whose codes or scales no such kernel has."""
    if any(_holds_floats(node.given(i)) for i in range(2)):
        _set_apart(node, 0)
    factors = node.operands[:2]
    if not all(map(is_fake_quantize, factors)) or node.result.dtype is not DType.FLOAT:
        return
    columns = 0 if node.attrs.get("transB") else 1
    for i, operand in enumerate(factors):
        assert operand is not None and operand.producer is not None
        scale, attrs = operand.producer.operand(1), operand.producer.attrs
        if scale is None or (scale.shape is not None and all(d == 1 for d in scale.shape)):
            continue
        if i and scale.rank == 1 and operand.rank == 2 and attrs.get("axis", 1) % 2 == columns:
            continue
        _set_apart(node, i)


def _set_apart(node: Node, position: int) -> None:
    operand = node.given(position)
    apart = op.Max(operand, constant(operand.dtype.lowest, operand.dtype))
    edit.insert_floating([apart], node)
    edit.set_operand(node, position, apart)


def _holds_floats(value: Value) -> bool:
    """Whether the codes of a value are floating-point numbers."""
    node = value.producer
    if node is not None and node.op == "DequantizeLinear":
        return node.given(0).dtype.is_floating
    return is_fake_quantize(value) and node is not None and not format_of(node).is_integer


def _packed_weight(weight: Codes, bits: int) -> Value:
    """The codes as [out, blocks, bytes of a block], packed when they are wanted."""
    assert weight.codes.const is not None
    rows, columns = weight.codes.const.shape
    blocks, size = -(-rows // weight.block_size), weight.block_size
    signed = weight.codes.dtype.is_signed

    def compute(codes: np.ndarray) -> np.ndarray:
        return _pack_blocks(codes, blocks, size, bits, signed)

    tensor = LazyTensor(
        compute, (weight.codes.const,), DType.UINT8, (columns, blocks, size * bits // 8), weight.codes.name
    )
    return Value(tensor.type, tensor.name, const=tensor)


def _unsigned(codes: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Codes as MatMulNBits counts them: from 0, with the zero point in the middle by default."""
    return (codes.astype(np.int16) + ((1 << (bits - 1)) if signed else 0)).astype(np.uint8)


def _pack_blocks(codes: np.ndarray, blocks: int, size: int, bits: int, signed: bool) -> np.ndarray:
    rows, columns = codes.shape
    padded = np.zeros((columns, blocks * size), np.uint8)
    padded[:, :rows] = _unsigned(codes, bits, signed).T
    return _packed(padded.reshape(columns, blocks, size), bits)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """The last dimension packed into bytes, the first element in the lowest bits; filled up with 0."""
    per_byte = 8 // bits
    width = -(-codes.shape[-1] // per_byte) * per_byte
    padded = np.zeros((*codes.shape[:-1], width), np.uint8)
    padded[..., : codes.shape[-1]] = codes
    packed = np.zeros((*codes.shape[:-1], width // per_byte), np.uint8)
    for i in range(per_byte):
        packed |= padded[..., i::per_byte] << (bits * i)
    return packed


def _zeros(zero: Tensor | None, weight: Codes, bits: int) -> Value:
    """The zero points, packed along the blocks of a column."""
    assert weight.scale.const is not None
    array = np.zeros(weight.scale.const.shape, np.int16) if zero is None else zero.numpy()
    return constant(_packed(_unsigned(array, bits, weight.codes.dtype.is_signed).T, bits).reshape(-1), DType.UINT8)


def _lookup(node: Node, known: dict[tuple[object, ...], Value]) -> None:
    """Rows of a quantized table, picked as integers."""
    table = node.given(0)
    if not is_fake_quantize(table) or node.attrs.get("axis", 0) != 0 or table.rank != 2:
        return
    assert table.producer is not None
    codes = encoded_constant(table.producer, known)
    if codes is None:
        return
    if codes.block_size:
        _lookup_in_blocks(node, codes)
        return
    if codes.codes.dtype not in _EIGHT:
        return
    indices = node.given(1)
    rows = op.Gather(codes.codes, indices, axis=0)
    if codes.scale.const is not None and codes.scale.const.size == 1:
        value = dequantized(replace(codes, codes=rows))
    elif codes.axis % 2 == 0 and codes.zero_point is None and codes.scale.dtype is DType.FLOAT:
        steps = op.Gather(codes.scale, indices, axis=0)
        value = op.Mul(op.Cast(rows, to=DType.FLOAT), op.Unsqueeze(steps, constant([-1], DType.INT64)))
        value = value if codes.dtype is DType.FLOAT else op.Cast(value, to=codes.dtype)
    else:
        return
    _replace_lookup(node, value)


def _replace_lookup(node: Node, value: Value) -> None:
    for new in edit.insert_floating([value], node):
        new.name = node.name and f"{node.name}/{new.op}"
    edit.replace(node.result, value)
    edit.erase_dead([node])


def _lookup_in_blocks(node: Node, table: Codes) -> None:
    """Rows of a table of four bits, with a scale for each block of a row."""
    form = table.codes.dtype
    if table.axis % 2 == 0 or form not in (DType.INT4, DType.UINT4) or not defines(_ROWS_IN_BLOCKS):
        return
    if table.block_size not in _BLOCKS or table.scale.dtype is not DType.FLOAT:
        return
    attrs = {"block_size": table.block_size, "gather_axis": 0, "quantize_axis": 1, "bits": form.bits}
    new = make_node(_ROWS_IN_BLOCKS, (table.codes, node.given(1), table.scale, table.zero_point), attrs, 1)
    new.results[0].type = TensorType(DType.FLOAT, node.result.shape)
    value = new.result if node.result.dtype is DType.FLOAT else op.Cast(new.result, to=node.result.dtype)
    _replace_lookup(node, value)
