"""Quantization as numbers: formats, and what the operator ``planish.FakeQuantize`` computes.

``FakeQuantize(x, scale, zero_point)`` rounds ``x`` to what its ``format`` can hold and gives that back as a number of
the type of ``x``: ``(clip(round(x / scale) + zero_point) - zero_point) * scale``, as ONNX's ``QuantizeLinear`` and
``DequantizeLinear``, one after the other, define it. So quantization stands in the graph as one operator, and each
backend encodes it in its own way. Without a scale, it is dynamic: for format uint8 without blocks, scale and zero point
follow from the range of ``x`` at run time, as ``DynamicQuantizeLinear`` defines them; for signed integers in blocks,
every ``block_size`` neighbours along ``axis`` have the scale that makes the largest of them the highest code.

A scale has one element (per tensor), one per index of dimension ``axis`` (per channel), or the rank of ``x`` with one
element per ``block_size`` indices of ``axis`` (in blocks). The zero point has the shape of the scale and the storage
type of the format; left out, it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .graph import Node, Value
from .types import DType

__all__ = [
    "FAKE_QUANTIZE",
    "Format",
    "dequantize",
    "dynamic_parameters",
    "dynamic_scale",
    "fake_quantize",
    "format_of",
    "is_fake_quantize",
    "parse_format",
    "quantize",
    "spread",
]

FAKE_QUANTIZE = "planish.FakeQuantize"
FLOATS = ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float4e2m1")
_STORAGE = (2, 4, 8, 16)  # bits of the integer types that ONNX has

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Format:
    """How a quantized number is represented.

    Attributes:
        name: ``int8``, ``uint4``, ``int3``, ``float8e4m3fn`` …
        bits: its width.
        is_integer: whether it is an integer, else a floating-point number.
        low: the lowest number that it holds.
        high: the highest.
        storage: the element type that holds it; wider than the format for widths that ONNX lacks.
    """

    name: str
    bits: int
    is_integer: bool
    low: float
    high: float
    storage: DType

    @property
    def is_signed(self) -> bool:
        """Whether it can hold negative numbers."""
        return self.low < 0

    def __str__(self) -> str:
        return self.name


@cache
def parse_format(name: str) -> Format:
    """The format called ``name``: ``int2`` to ``int16``, ``uint2`` to ``uint16``, or one of `FLOATS`.

    Raises:
        ValueError: there is no such format.
    """
    if name in FLOATS:
        dtype = DType[name.upper()]
        return Format(name, dtype.bits, False, dtype.lowest, -dtype.lowest, dtype)
    signed, digits = not name.startswith("uint"), name.removeprefix("u").removeprefix("int")
    if not name.removeprefix("u").startswith("int") or not digits.isdecimal() or digits.startswith("0"):
        raise ValueError(f"no number format {name!r}: there are int2 to int16, uint2 to uint16, {', '.join(FLOATS)}")
    bits = int(digits)
    if not 2 <= bits <= 16:
        raise ValueError(f"no number format {name!r}: integers have 2 to 16 bits")
    width = next(w for w in _STORAGE if w >= bits)
    storage = DType[f"{'' if signed else 'U'}INT{width}"]
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return Format(name, bits, True, low, high, storage)


def format_of(node: Node) -> Format:
    """The format of a FakeQuantize.

    Raises:
        ValueError: its attribute names none.
    """
    return parse_format(str(node.attrs["format"]))


def is_fake_quantize(value: Value | None) -> bool:
    """Whether ``value`` is the result of a FakeQuantize."""
    return value is not None and value.producer is not None and value.producer.op == FAKE_QUANTIZE


def spread(parameter: Array, shape: tuple[int, ...], axis: int = 1, block_size: int = 0) -> Array:
    """A scale or zero point in a shape that broadcasts to ``shape``.

    Raises:
        ValueError: it fits neither a tensor, nor a dimension, nor blocks of one.
    """
    if parameter.size == 1:
        return parameter.reshape((1,) * len(shape))
    axis += len(shape) if axis < 0 else 0
    if block_size and parameter.ndim == len(shape):
        repeated = np.repeat(parameter, block_size, axis=axis)
        return repeated[tuple(slice(n) if i == axis else slice(None) for i, n in enumerate(shape))]
    if parameter.ndim != 1 or not 0 <= axis < len(shape) or parameter.size != shape[axis]:
        raise ValueError(f"a scale of shape {list(parameter.shape)} for {list(shape)}, axis {axis}")
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def quantize(
    x: Array, scale: Array, zero_point: Array | None, format: Format, axis: int = 1, block_size: int = 0
) -> Array:
    """The codes of ``x``: an array of the numpy type of ``format.storage``, rounded half to even, saturated."""
    wide = _wide(x)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.asarray(wide / spread(scale, x.shape, axis, block_size).astype(wide.dtype))  # no scalar: see out=
        if not format.is_integer:
            return np.clip(codes, format.low, format.high).astype(format.storage.numpy)
        np.rint(codes, out=codes)
        if zero_point is not None:
            codes += spread(zero_point, x.shape, axis, block_size).astype(wide.dtype)
        np.clip(codes, format.low, format.high, out=codes)
    return np.nan_to_num(codes, copy=False).astype(_compact(format.storage)).astype(format.storage.numpy, copy=False)


def dequantize(
    codes: Array, scale: Array, zero_point: Array | None, dtype: DType, axis: int = 1, block_size: int = 0
) -> Array:
    """The numbers of type ``dtype`` that ``codes`` stand for."""
    wide = np.float64 if dtype is DType.DOUBLE else np.float32
    numbers: Array = codes.astype(wide)
    if zero_point is not None:
        numbers = numbers - spread(zero_point, codes.shape, axis, block_size).astype(wide)
    numbers = numbers * spread(scale, codes.shape, axis, block_size).astype(wide)
    return numbers.astype(dtype.numpy, copy=False)


def fake_quantize(
    x: Array, scale: Array, zero_point: Array | None, format: Format, axis: int = 1, block_size: int = 0
) -> Array:
    """``x`` rounded to what ``format`` holds; of the type and shape of ``x``."""
    codes = quantize(x, scale, zero_point, format, axis, block_size)
    return dequantize(codes, scale, zero_point, DType.from_numpy(x.dtype), axis, block_size)


def dynamic_parameters(x: Array, format: Format) -> tuple[Array, Array]:
    """Scale and zero point for the range of ``x``, which is made to hold 0 (ONNX, ``DynamicQuantizeLinear``)."""
    low, high = np.float32(min(0, np.min(x, initial=0))), np.float32(max(0, np.max(x, initial=0)))
    scale = np.float32((high - low) / np.float32(format.high - format.low)) or np.float32(1)
    zero = np.clip(np.rint(format.low - low / scale), format.low, format.high)
    return np.asarray(scale), np.asarray(zero).astype(format.storage.numpy)


def dynamic_scale(x: Array, format: Format, axis: int, block_size: int) -> Array:
    """The scale of each block of ``x``, of the rank of ``x``: its largest magnitude becomes the highest code."""
    axis += x.ndim if axis < 0 else 0
    wide, size = _wide(x), x.shape[axis]
    padded = np.pad(np.abs(wide), [(0, -size % block_size if i == axis else 0) for i in range(x.ndim)])
    blocks = padded.reshape(*x.shape[:axis], -1, block_size, *x.shape[axis + 1 :])
    scale = blocks.max(axis=axis + 1) / wide.dtype.type(format.high)
    return np.where(scale > 0, scale, wide.dtype.type(1))


def evaluate(node: Node, operands: list[Array | None]) -> Array:
    """What a FakeQuantize computes for concrete operands."""
    x, scale, zero_point = (*operands, None, None)[:3]
    assert x is not None
    form, axis, block_size = format_of(node), node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    if scale is None:
        scale, zero_point = (
            (dynamic_scale(x, form, axis, block_size), None) if block_size else dynamic_parameters(x, form)
        )
    return fake_quantize(x, scale, zero_point, form, axis, block_size)


def _wide(x: Array) -> Array:
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32, copy=False)


def _compact(storage: DType) -> Any:
    """A numpy type that floats can be cast to, on the way to narrow integers."""
    return storage.numpy if storage.bits >= 8 else np.int8
