"""Quantization as TensorRT wants it: symmetric, and only where it has integers, or short floating-point numbers.

TensorRT has int8 and float8e4m3fn with one scale for an activation, and one per output channel for a weight; 4-bit
weights in blocks of neighbours that are multiplied and added up; nothing has a zero point. Other codes become these
where that is exact: ``uint8`` around 128 is ``int8``, narrower integers are ``int8`` of a clipped number, and constant
codes are ``int8`` if they fit without their zero point. Everything else is computed as numbers, rounded by ``Round``
and ``Clip``, or stored as numbers: no layer computes in integers then, but the result is the same. It is noted.

Scales are float32 whatever the type of the data: TensorRT wants both factors of a product to have scales of one type,
and float16 would make small ones 0. Those of 4-bit weights must have the type of the result: they are of the type of
the data where it holds them as exactly as it holds the results, else the result is cast.

TensorRT 8 has int8 only, and quantizes weights itself: they stay float32 in front of a QuantizeLinear.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from ...ir import DType, Graph, LazyTensor, Node, Tensor, Value, constant, edit, op
from ...ir.builder import make_node
from ...ir.quantization import FAKE_QUANTIZE, Format, dequantize, format_of, spread
from ...ir.tensor import ArrayTensor
from ...passes.quantize.targets import target_for
from ..base import Problem
from ..quantization import Codes, encoded_constant, rounded_in_blocks, substitute
from .ops.casts import on_grid
from .versions import Version

__all__ = ["encode"]

Array = np.ndarray[Any, Any]
_EAGER = 1 << 20  # elements: larger constants are computed when they are wanted
_FP8 = "float8e4m3fn"
_FP4 = "float4e2m1"
_FP4_BLOCK = 16
_INT4_BLOCKS = (64, 128)  # TensorRT's documentation; TensorRT for RTX builds any
_LIMITS = {DType.INT8: (-128, 127), DType.INT4: (-8, 7)}
_FLOATS = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_MOVES = target_for("tensorrt").moves
_FakeQuantize = op.domain("planish").FakeQuantize
_NAMED = 3  # values that a note names


def encode(graph: Graph, version: Version) -> tuple[list[str], list[Problem]]:
    """Spell every FakeQuantize of ``graph`` in place, as far as there is a way.

    Returns:
        what its user must know, one line each; and the nodes for which there is no way, which stay.
    """
    for node in [n for n in graph.walk() if n.op == FAKE_QUANTIZE]:
        _turn(node)
    nodes = [n for n in graph.walk() if n.op == FAKE_QUANTIZE]
    task = _Encoding(version, {node: _codes_beside(node.result) for node in nodes})
    for node in nodes:
        try:
            substitute(node, task.encoded(node))
        except _NoWayError as error:
            task.problems.append(Problem(node, str(error)))
    return list(task.notes()), task.problems


def _channel_axis(node: Node, position: int) -> int | None:
    """The dimension of a weight of ``node`` that may have a scale per index; None: it is no weight with channels.

    Args:
        node: the reader.
        position: the operand that is the weight.
    """
    rank = node.given(position).rank
    if node.op == "Conv" and position == 1:
        return 0
    if node.op == "ConvTranspose" and position == 1:
        return 1 if node.attrs.get("group", 1) == 1 else None
    if node.op == "Gemm" and position == 1:
        return 0 if node.attrs.get("transB") else 1
    if node.op == "MatMul" and position == 1 and rank is not None and rank > 1:
        return rank - 1
    return None


class _NoWayError(Exception):
    """TensorRT cannot compute a FakeQuantize; the message says why."""


class _NumbersError(Exception):
    """Quantized numbers cannot be codes; the message says what is in the way."""


class _Encoding:
    """One run of `encode`.

    Args:
        version: for which TensorRT.
        beside: by FakeQuantize, the codes of what its result is multiplied by.
    """

    def __init__(self, version: Version, beside: Mapping[Node, set[DType]]):
        self.version = version
        self.problems: list[Problem] = []
        self._beside = beside
        self._known: dict[tuple[object, ...], Value] = {}
        self._tensors: dict[tuple[object, ...], Value] = {}
        self._computed: dict[str, list[str]] = defaultdict(list)  # by what is in the way
        self._stored: dict[str, list[str]] = defaultdict(list)

    def notes(self) -> list[str]:
        """What became numbers, and why."""
        lines = [
            f"{_some(names)} computed as floating-point numbers, for {self.version} has no integers {reason}: no "
            "faster than without quantization. Quantize the model in floating point for this target instead"
            for reason, names in self._computed.items()
        ]
        return lines + [
            f"{_some(names)} stored as floating-point numbers, for {self.version} has no codes {reason}"
            for reason, names in self._stored.items()
        ]

    def encoded(self, node: Node) -> Value:
        """What a FakeQuantize computes, in operators of the standard."""
        codes = encoded_constant(node, self._known)
        if codes is None:
            return self._activation(node)
        try:
            return self._weight(node, codes)
        except _NumbersError as reason:
            self._stored[str(reason)].append(_name(node))
            return self._numbers(node, codes)

    # constants

    def _weight(self, node: Node, codes: Codes) -> Value:
        """A DequantizeLinear of constant codes."""
        assert codes.scale.const is not None
        form, scale = format_of(node), codes.scale.const.numpy().astype(np.float32)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise _NumbersError("with a scale of 0 or less")
        for user, position in node.result.uses:
            if not _takes_codes(user, position):
                raise _NumbersError(f"for operand {position} of {user.op}" if user.results else "for an output")
        codes = replace(codes, scale=constant(scale), block_size=codes.block_size if scale.size > 1 else 0)
        if scale.size == 1:
            codes = replace(codes, scale=constant(scale.reshape(())))
        if codes.block_size:
            return self._in_blocks(node, codes, form, scale)
        self._require_channels(node, codes)
        storage = DType.INT8 if form.is_integer else form.storage
        if self._beside[node] - {storage}:
            raise _NumbersError(f"of {form.name} beside those of the other factor")
        if form.is_integer:
            return self._in_bytes(node, codes)
        if form.name != _FP8 or not self.version.strongly_typed:
            raise _NumbersError(f"of {form.name}" + ("" if form.name != _FP4 else " without blocks"))
        return self._dequantized(codes.codes, codes)

    def _require_channels(self, node: Node, codes: Codes) -> None:
        """End the attempt where readers want another dimension to have the scales."""
        rank = codes.codes.rank
        assert rank is not None
        for user, position in node.result.uses:
            if codes.scale.rank and user.op in _WEIGHTED and _channel_axis(user, position) != codes.axis % rank:
                raise _NumbersError(f"with a scale for each index of dimension {codes.axis % rank} in {user.op}")

    def _in_bytes(self, node: Node, codes: Codes) -> Value:
        """Integers as int8."""
        integers = self._shifted(codes, DType.INT8)
        if self.version.strongly_typed:
            return self._dequantized(integers, codes)
        numbers = self._numbers(node, codes)  # TensorRT 8 quantizes them again, to the same codes
        axis = {"axis": codes.axis} if codes.scale.rank else {}
        assert codes.scale.const is not None
        zero = constant(np.zeros(codes.scale.const.shape, np.int8))
        x = numbers if numbers.dtype is DType.FLOAT else op.Cast(numbers, to=DType.FLOAT)
        quantized = make_node("QuantizeLinear", (x, codes.scale, zero), axis).result
        back = make_node("DequantizeLinear", (quantized, codes.scale, zero), axis).result
        return back if x is numbers else op.Cast(back, to=numbers.dtype)

    def _shifted(self, codes: Codes, storage: DType) -> Value:
        """Constant codes without a zero point, as int8 or int4.

        Raises:
            _NumbersError: some do not fit.
        """
        tensor, zero = codes.codes.const, codes.zero_point
        assert tensor is not None and (zero is None or zero.const is not None)
        offset = None if zero is None or zero.const is None or not zero.const.numpy().any() else zero.const
        if tensor.dtype is storage and offset is None:
            return codes.codes
        key = (id(tensor), id(offset), codes.axis, codes.block_size, storage)
        if key not in self._tensors:
            wide = tensor.numpy().astype(np.int32)
            if offset is not None:
                wide = wide - spread(offset.numpy().astype(np.int32), wide.shape, codes.axis, codes.block_size)
            low, high = _LIMITS[storage]
            if wide.size and (wide.min() < low or wide.max() > high):
                raise _NumbersError("with a zero point (give symmetric=true)")
            narrow = ArrayTensor(wide.astype(storage.numpy), storage, tensor.name)
            self._tensors[key] = Value(narrow.type, narrow.name, const=narrow)
        return self._tensors[key]

    def _in_blocks(self, node: Node, codes: Codes, form: Format, scale: Array) -> Value:
        """4-bit weights whose scales belong to blocks of neighbours."""
        tensor, block = codes.codes.const, codes.block_size
        assert tensor is not None
        axis, is_int4 = codes.axis % len(tensor.shape), form.is_integer and form.bits <= 4
        if not self.version.strongly_typed or not (is_int4 or form.name == _FP4):
            raise _NumbersError(f"of {form.name} in blocks")
        blocks = (_FP4_BLOCK,) if form.name == _FP4 else _INT4_BLOCKS
        if block not in blocks and not (self.version.rtx and is_int4):
            raise _NumbersError(f"of {form.name} in blocks of {block}, but {' and '.join(map(str, blocks))}")
        if axis < len(tensor.shape) - 2 or tensor.shape[axis] % block or tensor.size % 2:
            raise _NumbersError(f"of {form.name} whose blocks do not divide one of the last two dimensions")
        if self._beside[node]:
            raise _NumbersError("in blocks beside a quantized activation")
        if form.name == _FP4:
            return self._two_levels(codes, scale)
        return self._dequantized(self._shifted(codes, DType.INT4), codes)

    def _two_levels(self, codes: Codes, scale: Array) -> Value:
        """NVFP4: the scales of blocks are float8 themselves, with one scale for all of them."""
        whole = np.float32(scale.max() / 448)
        small = (scale / whole).astype(DType.FLOAT8E4M3FN.numpy)
        if not np.allclose(small.astype(np.float32) * whole, scale, rtol=1e-6, atol=0):
            raise _NumbersError(f"of {_FP4} whose scales are not {_FP8} times one number")
        parameters = (constant(small, DType.FLOAT8E4M3FN), constant(whole))
        attrs = {"output_dtype": int(codes.dtype)} if _holds(codes.dtype, scale) else {}
        return self._dequantized(codes.codes, codes, make_node("DequantizeLinear", parameters, attrs).result)

    def _dequantized(self, stored: Value, codes: Codes, scale: Value | None = None) -> Value:
        """The numbers that codes stand for, of the type that the layer has."""
        dtype = codes.dtype if codes.dtype in _FLOATS else DType.FLOAT
        scale = codes.scale if scale is None else scale
        attrs: dict[str, int] = {"axis": codes.axis} if scale.rank else {}
        if codes.block_size:
            attrs["block_size"] = codes.block_size
            if scale.const is not None and _holds(dtype, scale.const.numpy()):
                scale = constant(scale.const.numpy().astype(dtype.numpy), dtype)
        elif dtype is not DType.FLOAT:
            attrs["output_dtype"] = int(dtype)
        value = make_node("DequantizeLinear", (stored, scale), attrs).result
        return value if value.dtype is codes.dtype else op.Cast(value, to=codes.dtype)

    def _numbers(self, node: Node, codes: Codes) -> Value:
        """The numbers themselves, as a constant."""
        tensors = tuple(v.const for v in (codes.codes, codes.scale, codes.zero_point) if v is not None and v.const)
        dtype = node.result.dtype

        def compute(x: Array, scale: Array, zero: Array | None = None) -> Array:
            return dequantize(x, scale, zero, dtype, codes.axis, codes.block_size)

        key = (*map(id, tensors), dtype, codes.axis, codes.block_size)
        if key not in self._tensors:
            lazy: Tensor = LazyTensor(compute, tensors, dtype, tensors[0].shape, tensors[0].name)
            if lazy.size <= _EAGER:
                lazy = ArrayTensor(lazy.numpy(), dtype, lazy.name)
            self._tensors[key] = Value(lazy.type, lazy.name, const=lazy)
        return self._tensors[key]

    # activations

    def _activation(self, node: Node) -> Value:
        """A QuantizeLinear and a DequantizeLinear, or arithmetic."""
        x, form = node.given(0), format_of(node)
        if node.operand(1) is None:
            self._computed["whose range is found when it runs"].append(_name(node))
            return self._dynamic(node, x, form)
        try:
            return self._pair(node, x, form)
        except _NumbersError as reason:
            result = self._arithmetic(node, x, form)
            self._computed[str(reason)].append(_name(node))
            return result

    def _pair(self, node: Node, x: Value, form: Format) -> Value:
        step = _element(node.given(1))
        if step is None:
            is_one = node.given(1).const is None and all(d == 1 for d in node.given(1).shape or ())
            raise _NumbersError("with a scale that is computed" if is_one else "with several scales for an activation")
        if not 0 < step < np.inf:
            raise _NumbersError("with a scale of 0 or less")
        if not form.is_integer:
            if form.name != _FP8 or not self.version.strongly_typed:
                raise _NumbersError(f"of {form.name}")
            return self._rounded(x, step, DType.FLOAT8E4M3FN)
        if self._beside[node] - {DType.INT8}:
            raise _NumbersError(f"of {form.name} beside those of the other factor")
        zero = 0.0 if node.operand(2) is None else _element(node.given(2))
        if zero is None:
            raise _NumbersError("with a zero point")
        low, high = form.low - zero, form.high - zero
        least, most = _LIMITS[DType.INT8]
        if low < least or high > most:
            raise _NumbersError("with a zero point" if form.bits == 8 else f"of {form.bits} bits")
        if (low, high) != (least, most):
            x = op.Clip(x, constant(low * step, x.dtype), constant(high * step, x.dtype))
        return self._rounded(x, step, DType.INT8)

    def _rounded(self, x: Value, step: float, storage: DType) -> Value:
        """``x`` rounded to multiples of ``step``, by a QuantizeLinear and a DequantizeLinear."""
        takes_half = self.version.strongly_typed and x.dtype in _FLOATS
        number, scale = x if takes_half else _in_float(x), constant(step, DType.FLOAT)
        zeros = constant(0, DType.INT8) if storage is DType.INT8 else None
        attrs = {} if zeros is not None else {"output_dtype": int(storage)}
        codes = make_node("QuantizeLinear", (number, scale, zeros), attrs).result
        back = {} if number.dtype is DType.FLOAT else {"output_dtype": int(number.dtype)}
        value = make_node("DequantizeLinear", (codes, scale, zeros), back).result
        return value if value.dtype is x.dtype else op.Cast(value, to=x.dtype)

    def _arithmetic(self, node: Node, x: Value, form: Format) -> Value:
        """The definition of a FakeQuantize with known scales, in float32."""
        scale = self._spread(_in_float(node.given(1)), node)
        codes = op.Div(_in_float(x), scale)
        if not form.is_integer:
            codes = on_grid(codes, form.storage)
        else:
            given = node.operand(2)
            zero = None if given is None else self._spread(_in_float(given), node)
            codes = op.Round(codes)
            codes = codes if zero is None else op.Add(codes, zero)
            codes = op.Clip(codes, constant(form.low, DType.FLOAT), constant(form.high, DType.FLOAT))
            codes = codes if zero is None else op.Sub(codes, zero)
        number = op.Mul(codes, scale)
        return number if number.dtype is x.dtype else op.Cast(number, to=x.dtype)

    def _spread(self, parameter: Value, node: Node) -> Value:
        """A scale or zero point in a shape that broadcasts to that of what is quantized."""
        x, block = node.given(0), node.attrs.get("block_size", 0)
        if parameter.shape is None:
            raise _NoWayError("it has a scale of unknown shape")
        if all(d == 1 for d in parameter.shape):
            return parameter if parameter.rank == 0 else op.Squeeze(parameter)
        if x.rank is None:
            raise _NoWayError("it has several scales for a value of unknown rank")
        axis = node.attrs.get("axis", 1) % x.rank
        if not block or parameter.rank != x.rank:
            return op.Reshape(parameter, constant([-1] + [1] * (x.rank - axis - 1), DType.INT64))
        size = (x.shape or ())[axis]
        if isinstance(size, int):
            return op.Gather(parameter, constant(np.arange(size) // block), axis=axis)
        end = op.Squeeze(op.Shape(x, start=axis, end=axis + 1))
        indices = op.Range(constant(0, DType.INT64), end, constant(1, DType.INT64))
        return op.Gather(parameter, op.Div(indices, constant(block, DType.INT64)), axis=axis)

    def _dynamic(self, node: Node, x: Value, form: Format) -> Value:
        """A range that is found when it runs, in plain arithmetic."""
        if node.attrs.get("block_size"):
            return rounded_in_blocks(node, x)
        number, none = _in_float(x), constant(0.0)
        least = op.Min(op.ReduceMin(number, keepdims=0), none)
        most = op.Max(op.ReduceMax(number, keepdims=0), none)
        low, high = constant(form.low, DType.FLOAT), constant(form.high, DType.FLOAT)
        scale = op.Div(op.Sub(most, least), constant(form.high - form.low, DType.FLOAT))
        scale = op.Where(op.Equal(scale, none), constant(1.0), scale)
        zero = op.Clip(op.Round(op.Sub(low, op.Div(least, scale))), low, high)
        codes = op.Clip(op.Add(op.Round(op.Div(number, scale)), zero), low, high)
        result = op.Mul(op.Sub(codes, zero), scale)
        return result if result.dtype is x.dtype else op.Cast(result, to=x.dtype)


def _turn(node: Node) -> None:
    """Transpose a quantized constant, and not what it becomes, so that the layer behind reads it directly."""
    tensors = [v.const for v in node.operands if v is not None]
    for user in list(node.result.users):
        perm = user.attrs.get("perm")
        if user.op != "Transpose" or any(t is None for t in tensors):
            continue
        order = perm or tuple(range(node.result.rank or 0))[::-1]
        axis, block = node.attrs.get("axis", 1) % max(len(order), 1), node.attrs.get("block_size")
        operands = [_transposed(t, order) if t is not None and len(t.shape) == len(order) > 1 else t for t in tensors]
        values = [None if t is None else Value(t.type, t.name, const=t) for t in operands]
        form = node.attrs["format"]
        turned = _FakeQuantize(*values, format=form, axis=order.index(axis), block_size=block)
        substitute(user, turned)
    edit.erase_dead([node])


def _transposed(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    lazy = LazyTensor(
        lambda x: np.ascontiguousarray(x.transpose(order)),
        (tensor,),
        tensor.dtype,
        tuple(tensor.shape[i] for i in order),
        tensor.name,
    )
    return lazy if lazy.size > _EAGER else ArrayTensor(lazy.numpy(), tensor.dtype, tensor.name)


def _takes_codes(user: Node, position: int) -> bool:
    """Whether TensorRT reads quantized constants as operand ``position``: a factor, or what is moved or picked from."""
    return (user.op in _WEIGHTED and position < 2) or (user.op in _MOVES and position == 0) or user.op == "Einsum"


def _codes_beside(value: Value) -> set[DType]:
    """The codes of what is multiplied by ``value``, directly or behind moves."""
    found: set[DType] = set()
    for user, position in value.uses:
        if user.op in _WEIGHTED and position < 2:
            found |= _codes_of(user.given(1 - position))
        elif user.op in _MOVES:
            found.update(*map(_codes_beside, user.results))
    return found


def _codes_of(value: Value) -> set[DType]:
    """The codes of ``value``, if it is no constant and is quantized, or moved from what is."""
    node = value.producer
    while node is not None and node.op in _MOVES:
        node = node.given(0).producer
    if node is not None and node.op == "DequantizeLinear":
        return {node.given(0).dtype}
    if node is None or node.op != FAKE_QUANTIZE or node.given(0).const is not None:
        return set()  # weights have what suits activations
    return {DType.INT8 if format_of(node).is_integer else format_of(node).storage}


def _holds(dtype: DType, scale: Array) -> bool:
    """Whether scales are normal numbers of a type of 16 bits, which rounds them as it rounds what they are times."""
    if dtype not in (DType.FLOAT16, DType.BFLOAT16):
        return False
    limits: Any = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return bool((scale >= float(limits.smallest_normal)).all() and (scale <= float(limits.max)).all())


def _element(value: Value) -> float | None:
    """The number that is the only element of a constant."""
    if value.const is None or value.const.size != 1:
        return None
    return float(value.const.numpy().astype(np.float32).reshape(()))


def _in_float(x: Value) -> Value:
    if x.dtype is DType.FLOAT:
        return x
    return op.Cast(x, to=DType.FLOAT) if x.const is None else constant(x.const.numpy().astype(np.float32))


def _name(node: Node) -> str:
    return f"%{node.result.name or node.given(0).name or node.name}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'is' if len(names) == 1 else 'are'}"
