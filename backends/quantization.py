"""FakeQuantize in the standard's own operators: integers in the file, ``QuantizeLinear`` and ``DequantizeLinear``.

A constant becomes its codes behind a ``DequantizeLinear``; they are computed when the model is written. Everything else
becomes a pair. Between eight-bit types the encoding is free: ``q`` as int8 is ``q + 128`` as uint8, and the zero point
moves along, so nothing is lost by giving a runtime the one for which it has the faster kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir import DType, Graph, LazyTensor, Node, Tensor, Value, constant, edit, op
from ..ir.builder import make_node
from ..ir.quantization import FAKE_QUANTIZE, Format, format_of, parse_format, quantize
from ..ir.tensor import ArrayTensor

__all__ = ["Codes", "dequantized", "encode", "encoded_constant", "rounded_in_blocks", "shifted", "substitute"]

_EAGER = 1 << 20  # elements: codes of larger constants are computed when they are wanted
_SHIFT = 128  # between the codes of int8 and uint8
_OTHER = {"int8": "uint8", "uint8": "int8"}
_COMPUTED = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)  # the types that QuantizeLinear takes
_CLIPPED = (DType.INT8, DType.UINT8, DType.INT16, DType.UINT16)  # ONNX Runtime merges Clip with these, and only these


@dataclass(frozen=True)
class Codes:
    """A quantized value on its way into a file: the ``codes``, and what turns them back into numbers.

    Attributes:
        codes: the integers, a constant or the result of a QuantizeLinear.
        scale: of them.
        zero_point: of them, or None for 0.
        axis: of the scale.
        block_size: of the scale, 0 for none.
        dtype: of the numbers.
    """

    codes: Value
    scale: Value
    zero_point: Value | None
    axis: int
    block_size: int
    dtype: DType

    @classmethod
    def of(cls, node: Node, codes: Value, zero_point: Value | None) -> Codes:
        """``codes`` of a FakeQuantize ``node``."""
        attrs = node.attrs
        return cls(
            codes, node.given(1), zero_point, attrs.get("axis", 1), attrs.get("block_size", 0), node.result.dtype
        )


def encode(graph: Graph, activation: str = "", *, dynamic_blocks: bool = True) -> None:
    """Spell every FakeQuantize of ``graph`` in place.

    Args:
        graph: the graph.
        activation: the eight-bit type for values that are no constants: ``int8`` or ``uint8``, "" for what they have.
        dynamic_blocks: whether to do so, too, where the range of each block is found at run time.
    """
    known: dict[tuple[object, ...], Value] = {}
    for node in [n for n in graph.walk() if n.op == FAKE_QUANTIZE]:
        if not dynamic_blocks and node.operand(1) is None and node.attrs.get("block_size"):
            continue
        substitute(node, _encoded(node, activation, known))


def substitute(node: Node, value: Value) -> None:
    """Put ``value`` in the place of the result of ``node``, with what it is computed by."""
    for new in edit.insert_floating([value], node):
        new.name = node.name and f"{node.name}/{new.op}"
    edit.replace(node.result, value)
    edit.erase(node)


def _encoded(node: Node, activation: str, known: dict[tuple[object, ...], Value]) -> Value:
    x, scale, zero_point = node.given(0), node.operand(1), node.operand(2)
    if scale is None:
        return rounded_in_blocks(node, x) if node.attrs.get("block_size") else _dynamic(x)
    codes = encoded_constant(node, known)
    if codes is not None:
        return dequantized(codes)
    form, attrs = format_of(node), {k: v for k, v in node.attrs.items() if k in ("axis", "block_size")}
    if _is_one(scale):
        scale, zero_point, attrs = _flat(scale), zero_point and _flat(zero_point), {}
    fixed = zero_point.const is not None if zero_point is not None else _sizes(scale) is not None
    if form.name in _OTHER and activation not in ("", form.name) and fixed:
        zero_point, form = shifted(zero_point, scale, form), parse_format(_OTHER[form.name])
    dtype = x.dtype if x.dtype in _COMPUTED and x.dtype is scale.dtype else DType.FLOAT
    number, scale = _cast(x, dtype), _cast(scale, dtype)
    is_narrow, known_zero = form.bits < form.storage.bits, zero_point is None or zero_point.const is not None
    is_step = scale.const is not None and scale.const.size == 1
    in_front = is_narrow and is_step and known_zero and form.storage in _CLIPPED
    if in_front:
        number = _clipped(number, scale, zero_point, form)
    if zero_point is None and (_sizes(scale) is None or form.storage not in _CLIPPED):
        attrs["output_dtype"] = int(form.storage)
    elif zero_point is None:
        zero_point = constant(np.zeros(_sizes(scale) or (), form.storage.numpy), form.storage)
    elif form.storage not in _CLIPPED and x.producer is not None and x.producer.op in ("Relu", "Clip"):
        number = op.Max(number, constant(dtype.lowest, dtype))  # ONNX Runtime 1.31 would drop it, or fail
    quantized = make_node("QuantizeLinear", (number, scale, zero_point), attrs).result
    if is_narrow and not in_front:
        low, high = (constant(int(limit), DType.INT32) for limit in (form.low, form.high))
        quantized = op.Cast(op.Clip(op.Cast(quantized, to=DType.INT32), low, high), to=form.storage)
    result = Codes(quantized, scale, zero_point, attrs.get("axis", 1), attrs.get("block_size", 0), dtype)
    return _cast(dequantized(result), x.dtype)


def _is_one(scale: Value) -> bool:
    """Whether it is one number in several dimensions, which is not standard."""
    return len(scale.shape or ()) > 1 and all(d == 1 for d in scale.shape or ())


def _flat(parameter: Value) -> Value:
    if parameter.const is None:
        return op.Squeeze(parameter)
    return constant(parameter.const.numpy().reshape(()), parameter.dtype, parameter.name)


def _cast(x: Value, dtype: DType) -> Value:
    if x.dtype is dtype:
        return x
    return op.Cast(x, to=dtype) if x.const is None else constant(x.const.numpy().astype(dtype.numpy), dtype, x.name)


def dequantized(codes: Codes, dtype: DType | None = None) -> Value:
    """The numbers that ``codes`` stand for, by a DequantizeLinear; of type ``dtype`` instead of their own if given."""
    dtype, scale, zero_point = dtype or codes.dtype, codes.scale, codes.zero_point
    if scale.dtype not in _COMPUTED:
        scale = _cast(scale, DType.FLOAT)
    attrs: dict[str, int] = {}
    if _is_one(scale):
        scale, zero_point = _flat(scale), zero_point and _flat(zero_point)
    elif codes.block_size:
        attrs["block_size"] = codes.block_size
    if zero_point is None and not attrs and scale.const is not None and codes.codes.dtype in _CLIPPED:
        storage = codes.codes.dtype  # ONNX Runtime 1.31 makes no QGemm of a Gemm without a zero point
        zero_point = constant(np.zeros(scale.const.shape, storage.numpy), storage)
    if scale.rank:
        attrs["axis"] = codes.axis
    return _cast(make_node("DequantizeLinear", (codes.codes, scale, zero_point), attrs).result, dtype)


def encoded_constant(node: Node, known: dict[tuple[object, ...], Value]) -> Codes | None:
    """The codes of a FakeQuantize of a constant, if all its parameters are known; else None.

    Args:
        node: the FakeQuantize.
        known: remembers codes, so that a tensor that is used twice is written once.
    """
    operands = [o for o in node.operands if o is not None]
    tensors = tuple(o.const for o in operands if o.const is not None)
    if len(tensors) < len(operands) or len(tensors) < 2:
        return None
    form, axis, block_size = format_of(node), node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    key = (*map(id, tensors), form, axis, block_size)
    if key not in known:
        known[key] = _codes_of(tensors, form, axis, block_size)
    return Codes.of(node, known[key], node.operand(2))


def _codes_of(tensors: tuple[Tensor, ...], form: Format, axis: int, block_size: int) -> Value:
    def compute(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None) -> np.ndarray:
        return quantize(x, scale, zero_point, form, axis, block_size)

    x = tensors[0]
    if x.size <= _EAGER:
        tensor: Tensor = ArrayTensor(compute(*(t.numpy() for t in tensors)), form.storage, x.name)
    else:
        tensor = LazyTensor(compute, tensors, form.storage, x.shape, x.name)
    return Value(tensor.type, x.name, const=tensor)


def shifted(zero_point: Value | None, scale: Value, form: Format) -> Value:
    """The zero point for the other of the two eight-bit types."""
    shift = _SHIFT if form.is_signed else -_SHIFT
    known = None if zero_point is None or zero_point.const is None else zero_point.const.numpy()
    old = np.zeros(_sizes(scale) or (), np.int16) if known is None else known.astype(np.int16)
    storage = parse_format(_OTHER[form.name]).storage
    return constant((old + shift).astype(storage.numpy), storage)


def _sizes(scale: Value) -> tuple[int, ...] | None:
    """The shape of a scale, if it is known."""
    sizes = tuple(d for d in scale.shape or () if isinstance(d, int))
    return sizes if scale.shape is not None and len(sizes) == len(scale.shape) else None


def _clipped(x: Value, scale: Value, zero_point: Value | None, form: Format) -> Value:
    """``x`` within what ``form`` holds, which is less than its storage type does."""
    assert scale.const is not None
    zero = 0.0 if zero_point is None or zero_point.const is None else float(zero_point.const.numpy().reshape(()))
    step = float(scale.const.numpy().reshape(()))
    low, high = ((limit - zero) * step for limit in (form.low, form.high))
    return op.Clip(x, constant(low, x.dtype), constant(high, x.dtype))


def _dynamic(x: Value) -> Value:
    number = x if x.dtype is DType.FLOAT else op.Cast(x, to=DType.FLOAT)
    result = op.DequantizeLinear(*make_node("DynamicQuantizeLinear", (number,), {}, 3).results)
    return result if number is x else op.Cast(result, to=x.dtype)


def rounded_in_blocks(node: Node, x: Value) -> Value:
    """Blocks along one dimension, each with the scale that its largest magnitude asks for; in plain arithmetic."""
    rank, form, block = x.rank, format_of(node), node.attrs["block_size"]
    assert rank is not None, "blocks of a tensor of unknown rank"
    number = x if x.dtype is DType.FLOAT else op.Cast(x, to=DType.FLOAT)
    axis = node.attrs.get("axis", 1) % rank
    order = [i for i in range(rank) if i != axis] + [axis]
    if order != sorted(order):
        number = op.Transpose(number, perm=order)
    end = op.Shape(number, start=-1)
    size = constant([block], DType.INT64)
    missing = op.Mod(op.Sub(size, op.Mod(end, size)), size)
    padded = op.Pad(number, op.Concat(constant([0], DType.INT64), missing, axis=0), None, constant([-1], DType.INT64))
    blocks = op.Reshape(padded, constant([*[0] * (rank - 1), -1, block], DType.INT64))
    largest = op.ReduceMax(op.Abs(blocks), constant([-1], DType.INT64), keepdims=1)
    scale = op.Div(largest, constant(form.high, DType.FLOAT))
    scale = op.Where(op.Greater(scale, constant(0.0)), scale, constant(1.0))
    rounded = op.Mul(op.Round(op.Div(blocks, scale)), scale)
    result = op.Reshape(rounded, op.Shape(padded))
    result = op.Slice(result, constant([0], DType.INT64), end, constant([-1], DType.INT64))
    if order != sorted(order):
        result = op.Transpose(result, perm=[order.index(i) for i in range(rank)])
    return result if x.dtype is DType.FLOAT else op.Cast(result, to=x.dtype)
