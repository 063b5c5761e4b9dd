"""What is in a TensorFlow Lite file: tensors, whose contents stay in the file, operators, and signatures.

The format is a flatbuffer whose schema TensorFlow brings as generated code. Nothing in it is trusted: every reference
is checked before it is used.
"""

from __future__ import annotations

import importlib
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ....ir.errors import ModelError

__all__ = ["LiteModel", "LiteOperator", "LiteTensor", "Quantization", "Signature", "Subgraph", "read_lite"]

Array = np.ndarray[Any, Any]

_SCHEMA = "tensorflow.lite.python.schema_py_generated"
_MAGIC = b"TFL3"
_DAMAGED = (struct.error, IndexError, KeyError, TypeError, ValueError, OverflowError, AttributeError, MemoryError)
_NARROW = {"INT4": ml_dtypes.int4, "UINT4": ml_dtypes.uint4, "INT2": ml_dtypes.int2}  # several to a byte
_SHARED = 16  # how often what is in a file may be referred to, on average


@dataclass(frozen=True)
class Quantization:
    """What codes stand for: ``(code - zero) * scale``.

    Attributes:
        scale: one number, or one per index of ``axis``; float32.
        zero: of the same shape; int64.
        axis: None for one number.
    """

    scale: Array
    zero: Array
    axis: int | None

    def equals(self, other: Quantization | None) -> bool:
        """Whether codes stand for the same numbers."""
        return (
            other is not None
            and self.axis == other.axis
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )


@dataclass(frozen=True)
class LiteTensor:
    """A tensor.

    Attributes:
        name: its name.
        type: its element type in the schema: ``FLOAT32``.
        shape: its sizes, None for an open one; None if not even their number is known.
        array: its elements, if it is a constant: a view of the file.
        quantization: what its codes stand for, if it has codes.
    """

    name: str
    type: str
    shape: tuple[int | None, ...] | None
    array: Array | None
    quantization: Quantization | None


@dataclass(frozen=True)
class LiteOperator:
    """An operator.

    Attributes:
        name: ``CONV_2D``; of a custom one, its own name.
        is_custom: whether it is none of the format's.
        options: its options, by the names of the schema.
        inputs: numbers of tensors; -1 where one is left out.
        outputs: numbers of tensors.
        custom: the options of a custom operator.
    """

    name: str
    is_custom: bool
    options: Mapping[str, Any]
    inputs: list[int]
    outputs: list[int]
    custom: bytes


@dataclass(frozen=True)
class Subgraph:
    """The model, or what a branch or loop of it computes."""

    name: str
    tensors: list[LiteTensor]
    operators: list[LiteOperator]
    inputs: list[int]
    outputs: list[int]


@dataclass(frozen=True)
class Signature:
    """What a subgraph is for: names of its inputs and outputs, with the numbers of tensors."""

    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass(frozen=True)
class LiteModel:
    """A file: subgraphs, of which the first is the model unless signatures say otherwise."""

    subgraphs: list[Subgraph]
    signatures: dict[str, Signature]
    description: str


def read_lite(path: Path) -> LiteModel:
    """The contents of a file.

    Raises:
        ModelError: it is damaged, or none of this kind.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise ModelError(f"{path}: no TensorFlow Lite file ({error})") from None
    if data[4:8] != _MAGIC:
        raise ModelError(f"{path}: no TensorFlow Lite file: it does not say {_MAGIC.decode()}")
    try:
        return _Reader(data, _schema()).model()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__
    except _DAMAGED as error:
        raise ModelError(f"{path}: a damaged TensorFlow Lite file ({type(error).__name__}: {error})") from error


@cache
def _schema() -> Any:
    try:
        return importlib.import_module(_SCHEMA)
    except ImportError:
        raise ModelError("the installed TensorFlow brings no schema of TensorFlow Lite") from None


def _names(enumeration: Any) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}


class _Reader:
    def __init__(self, data: Any, schema: Any):
        self.data = np.frombuffer(data, np.uint8)
        self.schema = schema
        self.root = schema.Model.GetRootAs(data, 0)
        self.left = _SHARED * len(self.data)  # bytes that may be read yet: references may overlap, and multiply
        self.types = _names(schema.TensorType)
        self.builtins = _names(schema.BuiltinOperator)

    def model(self) -> LiteModel:
        root = self.root
        if self._count(root.ExternalBufferGroupsLength() if hasattr(root, "ExternalBufferGroupsLength") else 0):
            raise ModelError("its weights lie in other files, which planish does not read")
        codes = [root.OperatorCodes(i) for i in range(self._count(root.OperatorCodesLength()))]
        self.codes = [self._operator_name(code) for code in codes]
        graphs = [self._subgraph(root.Subgraphs(i)) for i in range(self._count(root.SubgraphsLength()))]
        if not graphs:
            raise ModelError("a TensorFlow Lite file without a model")
        signatures = dict(self._signatures(graphs))
        return LiteModel(graphs, signatures, _text(root.Description()))

    def _count(self, length: int) -> int:
        """A number of things, each of which takes four bytes at least."""
        self.left -= 4 * length
        if not 0 <= 4 * length <= len(self.data) or self.left < 0:
            raise ModelError("a damaged TensorFlow Lite file: its lists are longer than the file")
        return length

    def _operator_name(self, code: Any) -> tuple[str, bool]:
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        name = self.builtins.get(number, f"operator {number}")
        return (_text(code.CustomCode()) or "an unnamed operator", True) if name == "CUSTOM" else (name, False)

    # subgraphs

    def _subgraph(self, graph: Any) -> Subgraph:
        tensors = [self._tensor(graph.Tensors(i)) for i in range(self._count(graph.TensorsLength()))]
        operators = [self._operator(graph.Operators(i)) for i in range(self._count(graph.OperatorsLength()))]
        found = Subgraph(
            _text(graph.Name()), tensors, operators, self._numbers(graph, "Inputs"), self._numbers(graph, "Outputs")
        )
        _check(found)
        return found

    def _operator(self, operator: Any) -> LiteOperator:
        name, is_custom = self.codes[operator.OpcodeIndex()]
        options: dict[str, Any] = {}
        for kind in ("BuiltinOptions", "BuiltinOptions2"):
            table = getattr(operator, kind, lambda: None)()
            if table is not None:
                create = getattr(self.schema, f"{kind}Creator")
                options |= vars(create(getattr(operator, f"{kind}Type")(), table) or _Nothing())
        custom = operator.CustomOptionsAsNumpy()
        return LiteOperator(
            name,
            is_custom,
            options,
            self._numbers(operator, "Inputs"),
            self._numbers(operator, "Outputs"),
            b"" if isinstance(custom, int) else custom.tobytes(),
        )

    def _numbers(self, table: Any, field: str) -> list[int]:
        self._count(getattr(table, f"{field}Length")())
        found = getattr(table, f"{field}AsNumpy")()
        return [] if isinstance(found, int) else [int(n) for n in found]

    # tensors

    def _tensor(self, tensor: Any) -> LiteTensor:
        type_ = self.types.get(tensor.Type(), f"type {tensor.Type()}")
        shape = self._numbers(tensor, "Shape")
        open_ = self._numbers(tensor, "ShapeSignature")
        sizes = open_ if len(open_) == len(shape) else shape
        known = bool(shape) or getattr(tensor, "HasRank", lambda: True)() or tensor.Buffer() != 0
        array = self._array(tensor, type_, shape)
        if array is not None and tensor.Sparsity() is not None:
            raise ModelError(f"tensor {_text(tensor.Name())!r} is stored sparse, which planish does not read")
        return LiteTensor(
            _text(tensor.Name()),
            type_,
            tuple(None if n < 0 else n for n in sizes) if known else None,
            array,
            _quantization(tensor.Quantization(), len(shape)),
        )

    def _array(self, tensor: Any, type_: str, shape: list[int]) -> Array | None:
        """The elements of a constant; None of what is computed."""
        number = tensor.Buffer()
        if not 0 <= number < self.root.BuffersLength():
            raise ModelError(f"tensor {_text(tensor.Name())!r} has a buffer that there is not")
        buffer = self.root.Buffers(number)
        start, size = (getattr(buffer, field, int)() for field in ("Offset", "Size"))
        if start > 1:  # behind the flatbuffer, where that would be too large
            if start + size > len(self.data):
                raise ModelError(f"tensor {_text(tensor.Name())!r} lies behind the end of the file")
            content = self.data[start : start + size]
        else:
            content = buffer.DataAsNumpy() if buffer.DataLength() else self.data[:0]
        if not content.size:
            return None
        if type_ in _NARROW:
            self._count(content.size // 4)  # they are copied
        return _elements(content, type_, shape, _text(tensor.Name()))

    # signatures

    def _signatures(self, graphs: list[Subgraph]) -> Iterator[tuple[str, Signature]]:
        for i in range(self._count(self.root.SignatureDefsLength())):
            found = self.root.SignatureDefs(i)
            index = found.SubgraphIndex()
            if index >= len(graphs):
                raise ModelError("a damaged TensorFlow Lite file: a signature of a subgraph that there is not")
            maps = []
            for field in ("Inputs", "Outputs"):
                count = self._count(getattr(found, f"{field}Length")())
                entries = [getattr(found, field)(k) for k in range(count)]
                maps.append({_text(e.Name()) or "tensor": int(e.TensorIndex()) for e in entries})
                if not all(0 <= number < len(graphs[index].tensors) for number in maps[-1].values()):
                    raise ModelError("a damaged TensorFlow Lite file: a signature names a tensor that there is not")
            yield _text(found.SignatureKey()), Signature(index, *maps)


class _Nothing:
    """The options of an operator that has none."""


def _text(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else ""


def _elements(content: Array, type_: str, shape: list[int], name: str) -> Array | None:
    """The bytes of a constant as an array; None of what is no numbers."""
    if type_ in ("STRING", "RESOURCE", "VARIANT"):
        return None
    count = math.prod(shape) if min(shape, default=0) >= 0 else -1
    if type_ in _NARROW:
        array = _unpacked(content, type_)[: max(count, 0)]
    else:
        dtype = np.dtype(ml_dtypes.bfloat16 if type_ == "BFLOAT16" else type_.lower())
        array = content.view(dtype) if content.size % dtype.itemsize == 0 else content[:0]
    if array.size != count:
        raise ModelError(f"tensor {name!r} of {shape} has {content.size} bytes")
    return array.reshape(shape)


def _unpacked(content: Array, type_: str) -> Array:
    """Elements of which several are in a byte, the first in the lowest bits."""
    bits = 2 if type_ == "INT2" else 4
    parts = [(content >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    codes = np.stack(parts, -1).reshape(-1).astype(np.int8)
    signed = codes if type_ == "UINT4" else codes - ((codes >> (bits - 1)) << bits)
    return signed.astype(_NARROW[type_])


def _quantization(table: Any, rank: int) -> Quantization | None:
    """What codes stand for; None where they are numbers themselves."""
    if table is None or not table.ScaleLength():
        return None
    scale, zero = np.asarray(table.ScaleAsNumpy(), np.float32), table.ZeroPointAsNumpy()
    zero = np.zeros(len(scale), np.int64) if isinstance(zero, int) else np.asarray(zero, np.int64)
    zero = np.broadcast_to(zero, scale.shape)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return None  # as the format has it: no quantization
    if len(scale) == 1:
        return Quantization(scale.reshape(()), zero.reshape(()), None)
    axis = table.QuantizedDimension()
    if not 0 <= axis < rank:
        raise ModelError(f"a scale for each index of dimension {axis} of {rank}")
    return Quantization(scale, zero, axis)


def _check(graph: Subgraph) -> None:
    """Refuse references to tensors that there are not, and tensors that are given or computed twice."""
    count = len(graph.tensors)
    known = set(graph.inputs)
    if not all(0 <= i < count for i in (*graph.inputs, *graph.outputs)):
        raise ModelError("a damaged TensorFlow Lite file: its inputs or outputs are tensors that there are not")
    if len(known) < len(graph.inputs):
        raise ModelError("a damaged TensorFlow Lite file: one tensor is two inputs")
    for operator in graph.operators:
        if not all(-1 <= i < count for i in operator.inputs) or not all(0 <= i < count for i in operator.outputs):
            raise ModelError(f"a damaged TensorFlow Lite file: {operator.name} refers to a tensor that there is not")
        for i in operator.outputs:
            if i in known or graph.tensors[i].array is not None:
                raise ModelError(f"a damaged TensorFlow Lite file: {operator.name} computes a tensor that is known")
            known.add(i)
