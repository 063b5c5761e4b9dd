"""The leaves of the ONNX format, both ways: dimensions, types, tensors and metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from onnx import SparseTensorProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto

from ..dims import Dim, Sym, fresh, parse_dim
from ..errors import ModelError
from ..tensor import ArrayTensor, Tensor, TensorError
from ..types import UNKNOWN, DType, OptionalType, OtherType, SequenceType, TensorType, Type
from .proto_check import prose, shown, text

__all__ = [
    "PRIVATE",
    "ExternalWriter",
    "Resolver",
    "SparseTensor",
    "denotation_of",
    "dtype_of",
    "metadata_of",
    "set_denotation",
    "static_shape",
    "tensor_from_proto",
    "tensor_to_proto",
    "type_from_proto",
    "type_to_proto",
]

PRIVATE = "planish.onnx."  # metadata properties in which a graph keeps what it has no place for; never in a file
MAX_RANK = 64  # what numpy can hold
MAX_ELEMENTS = 1 << 40  # of one tensor
_MAX_DIM = (1 << 63) - 1
_TYPE_DEPTH = 32

Resolver = Callable[[TensorProto], Tensor]


class ExternalWriter(Protocol):
    """Decides which tensors of a model lie in other files, and where."""

    def place(self, tensor: Tensor) -> tuple[str, int, int] | None:
        """Location, offset and length of the data of ``tensor``; None to keep it in the model."""


class SparseTensor(bytes):
    """A sparse tensor among the attributes of a node: its serialized SparseTensorProto, which planish only carries."""

    __slots__ = ()


# dimensions and types

_DTYPES = {int(dtype): dtype for dtype in DType}


def dtype_of(number: int) -> DType:
    """The element type that ONNX numbers so.

    Raises:
        ModelError: there is none.
    """
    found = _DTYPES.get(number)
    if found is None:
        raise ModelError(f"unknown element type {number}")
    return found


def _dim_from_proto(dim: TensorShapeProto.Dimension) -> Dim:
    kind = dim.WhichOneof("value")
    if kind == "dim_value":
        value = dim.dim_value
        if value >= 0:
            return value
        if value == -1:  # how some exporters write an unknown size
            return fresh()
        raise ModelError(f"negative dimension {value}")
    if kind == "dim_param":
        parsed = parse_dim(text(dim.dim_param))
        return parsed if isinstance(parsed, Sym) or 0 <= parsed <= _MAX_DIM else fresh()
    return fresh()


def type_from_proto(proto: TypeProto, depth: int = 0) -> Type:
    """The type that ``proto`` states; `UNKNOWN` if it states none.

    Raises:
        ModelError: unknown element types, negative dimensions, bottomless nesting.
    """
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        tensor = proto.tensor_type
        shape = tuple([_dim_from_proto(d) for d in tensor.shape.dim]) if tensor.HasField("shape") else None
        dtype = dtype_of(tensor.elem_type)
        return UNKNOWN if shape is None and not dtype else TensorType(dtype, shape)
    if kind is None:
        return UNKNOWN
    if depth > _TYPE_DEPTH:
        raise ModelError(f"types nested deeper than {_TYPE_DEPTH}")
    if kind == "sequence_type":
        return SequenceType(type_from_proto(proto.sequence_type.elem_type, depth + 1))
    if kind == "optional_type":
        return OptionalType(type_from_proto(proto.optional_type.elem_type, depth + 1))
    return OtherType(proto.SerializeToString(deterministic=True))


def type_to_proto(type_: Type, proto: TypeProto) -> None:
    """Write ``type_`` into ``proto``; anonymous sizes become unknown dimensions."""
    if isinstance(type_, OtherType):
        proto.ParseFromString(type_.proto)
    elif isinstance(type_, OptionalType):
        proto.optional_type.elem_type.SetInParent()
        type_to_proto(type_.element, proto.optional_type.elem_type)
    elif isinstance(type_, SequenceType):
        proto.sequence_type.elem_type.SetInParent()
        type_to_proto(type_.element, proto.sequence_type.elem_type)
    elif type_.dtype or type_.shape is not None:
        tensor = proto.tensor_type
        tensor.elem_type = int(type_.dtype)
        if type_.shape is not None:
            tensor.shape.SetInParent()
            for dim in type_.shape:
                entry = tensor.shape.dim.add()
                if isinstance(dim, int):
                    entry.dim_value = dim
                elif not dim.mentions_anonymous:
                    entry.dim_param = str(dim)


def denotation_of(proto: TypeProto) -> str:
    """The denotations of a tensor type, of itself and of each dimension, separated by commas; "" if it has none."""
    dims = [d.denotation for d in proto.tensor_type.shape.dim] if proto.WhichOneof("value") == "tensor_type" else []
    return ",".join(map(prose, [proto.denotation, *dims])) if proto.denotation or any(dims) else ""


def set_denotation(text: str, proto: TypeProto) -> None:
    """Write what `denotation_of` gave into ``proto``, as far as it still has the dimensions."""
    own, *dims = text.split(",")
    if own:
        proto.denotation = own
    if proto.WhichOneof("value") == "tensor_type":
        for dim, denotation in zip(proto.tensor_type.shape.dim, dims, strict=False):
            if denotation:
                dim.denotation = denotation


# metadata


def metadata_of(properties: Iterable[StringStringEntryProto]) -> dict[str, str]:
    """Metadata properties as a dictionary."""
    found = {p.key: p.value for p in properties}
    try:
        keys = "\n".join([*found, *found.values()])
    except TypeError:  # not UTF-8
        found = {prose(key): prose(value) for key, value in found.items()}
        keys = "\n".join(found)
    if PRIVATE in keys:
        return {key: value for key, value in found.items() if not key.startswith(PRIVATE)}
    return found


# tensors

# where a tensor without raw data keeps its elements: the field, and the type of one entry
_FIELDS = {
    DType.FLOAT: ("float_data", "<f4"), DType.COMPLEX64: ("float_data", "<f4"), DType.DOUBLE: ("double_data", "<f8"),
    DType.COMPLEX128: ("double_data", "<f8"), DType.INT64: ("int64_data", "<i8"), DType.UINT32: ("uint64_data", "<u8"),
    DType.UINT64: ("uint64_data", "<u8"),
}  # fmt: skip


def static_shape(proto: TensorProto | SparseTensorProto, name: str) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        ModelError: it is absurd.
    """
    shape = tuple(proto.dims)
    if shape and (min(shape) < 0 or len(shape) > MAX_RANK or math.prod([d or 1 for d in shape]) > MAX_ELEMENTS):
        raise ModelError(f"tensor {shown(name)} has the absurd shape {_short(shape)}")
    return shape


def _short(shape: tuple[int, ...]) -> str:
    return str(list(shape[:8]))[:-1] + (", …]" if len(shape) > 8 else "]")


def tensor_from_proto(proto: TensorProto, resolve: Resolver | None) -> Tensor:
    """The tensor in ``proto``; ``resolve`` finds the ones whose data lie in another file.

    Raises:
        ModelError: the data do not fit the type, or lie elsewhere and there is no ``resolve``.
    """
    if proto.data_location == TensorProto.EXTERNAL:
        if resolve is None:
            raise ModelError(f"tensor {shown(proto.name)} has its data in another file: load the model from its path")
        return resolve(proto)
    dtype = dtype_of(proto.data_type)
    shape = static_shape(proto, proto.name)
    if dtype is DType.STRING:
        array = _strings(proto, shape)
    elif dtype is DType.UNDEFINED:
        raise ModelError(f"tensor {shown(proto.name)} has no element type")
    else:
        array = _elements(proto, dtype, shape)
    return ArrayTensor(array, dtype, text(proto.name))


def _elements(proto: TensorProto, dtype: DType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    from ..tensor import unpack

    raw = proto.raw_data
    try:
        if raw:
            if dtype.bits >= 8:
                return np.frombuffer(raw, dtype.numpy).reshape(shape)
            return unpack(np.frombuffer(raw, np.uint8), dtype, shape)
        return unpack(_typed_data(proto, dtype), dtype, shape)
    except ValueError:  # TensorError is one
        field = _FIELDS.get(dtype, ("int32_data",))[0]
        held = f"{len(raw)} bytes" if raw else f"{len(getattr(proto, field))} entries of {field}"
        what = f"tensor {shown(proto.name)} is {dtype.text}{_short(shape)}"
        raise ModelError(f"{what}, {math.prod(shape)} elements, but holds {held}") from None


def _typed_data(proto: TensorProto, dtype: DType) -> np.ndarray[Any, Any]:
    """The bytes of a tensor from the field for its type (``float_data`` …), as `unpack` takes them."""
    field, entry = _FIELDS.get(dtype, ("int32_data", "<i4"))
    data = np.array(getattr(proto, field), entry)
    if dtype is DType.UINT32:
        data = data.astype("<u4")
    elif field == "int32_data" and dtype is not DType.INT32:
        data = data.astype("<u2" if dtype.bits == 16 else "u1")
    return data.view(np.uint8)


def _strings(proto: TensorProto, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    data = proto.string_data
    if len(data) != math.prod(shape):
        raise ModelError(f"tensor {shown(proto.name)} is string{_short(shape)}, but holds {len(data)} strings")
    array = np.empty(len(data), object)
    array[:] = [text_of(s) for s in data]
    return array.reshape(shape)


def text_of(data: bytes) -> str | bytes:
    """``data`` as a string where it is UTF-8, else as it is."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def bytes_of(text: str | bytes) -> bytes:
    """The inverse of `text_of`."""
    return text.encode() if isinstance(text, str) else text


def tensor_to_proto(tensor: Tensor, proto: TensorProto, name: str, external: ExternalWriter | None = None) -> None:
    """Write ``tensor`` into ``proto``: its data, or where ``external`` put them.

    Raises:
        TensorError: its data cannot be had.
    """
    proto.name = name
    proto.data_type = int(tensor.dtype)
    proto.dims.extend(tensor.shape)
    place = None if external is None else external.place(tensor)
    if place is not None:
        proto.data_location = TensorProto.EXTERNAL
        for key, value in zip(("location", "offset", "length"), place, strict=True):
            proto.external_data.add(key=key, value=str(value))
    elif tensor.dtype is DType.STRING:
        proto.string_data.extend(bytes_of(s) for s in tensor.numpy().flat)
    else:
        raw = b"".join(tensor.chunks())
        if len(raw) != tensor.nbytes:
            raise TensorError(f"tensor {name!r}: {len(raw)} bytes for {tensor.type}")
        proto.raw_data = raw
