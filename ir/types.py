"""Types of values: element types, tensor types with symbolic shapes, sequences, optionals."""

from __future__ import annotations

import enum
from functools import cache

import numpy as np

from .dims import Dim, Sym, fresh, product

__all__ = [
    "UNKNOWN",
    "DType",
    "OptionalType",
    "OtherType",
    "SequenceType",
    "TensorType",
    "Type",
    "compatible",
    "merge",
    "same_shape",
    "tensor_type",
]

Shape = tuple[Dim, ...]


class DType(enum.IntEnum):
    """Element types, numbered as in ONNX's ``TensorProto.DataType``. ``UNDEFINED`` means unknown."""

    UNDEFINED = 0
    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23
    FLOAT8E8M0 = 24
    UINT2 = 25
    INT2 = 26

    __hash__ = int.__hash__  # the inherited one hashes the name, in Python

    @property
    def text(self) -> str:
        """The name in ONNX's textual syntax (``float``, ``int64`` …)."""
        return self.name.lower()

    @property
    def bits(self) -> int:
        """Bits per element in storage; 0 for strings and unknown."""
        return _BITS[self]

    @property
    def lowest(self) -> float:
        """The most negative finite number of a floating-point type."""
        from ml_dtypes import finfo

        return float(finfo(self.numpy).min)  # type: ignore[no-untyped-call]

    @property
    def is_floating(self) -> bool:
        """Whether it is a real floating-point type of any width."""
        return self in _FLOATING

    @property
    def is_integer(self) -> bool:
        """Whether it is a signed or unsigned integer type (bool is none)."""
        return self in _INTEGER

    @property
    def is_signed(self) -> bool:
        """Whether it can hold negative numbers."""
        return self in _FLOATING or self in _SIGNED

    @property
    def numpy(self) -> np.dtype:
        """The numpy type (from ml_dtypes where numpy has none); strings are ``object``.

        Raises:
            TypeError: for UNDEFINED.
        """
        return _numpy(self)

    @classmethod
    def from_numpy(cls, dtype: np.dtype | type) -> DType:
        """The element type of a numpy ``dtype``.

        Raises:
            TypeError: for a dtype that ONNX does not have.
        """
        dtype = np.dtype(dtype)
        found = _FROM_NUMPY.get(dtype.name)
        if found is None:
            if dtype.kind in "OUST":
                return cls.STRING
            raise TypeError(f"no element type for numpy dtype {dtype}")
        return found


_BITS = dict.fromkeys(DType, 0)
for _names, _width in (
    ("FLOAT INT32 UINT32", 32),
    ("DOUBLE INT64 UINT64 COMPLEX64", 64),
    ("COMPLEX128", 128),
    ("FLOAT16 BFLOAT16 INT16 UINT16", 16),
    ("UINT8 INT8 BOOL FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0", 8),
    ("UINT4 INT4 FLOAT4E2M1", 4),
    ("UINT2 INT2", 2),
):
    for _name in _names.split():
        _BITS[DType[_name]] = _width
_FLOATING = frozenset(d for d in DType if "FLOAT" in d.name or d.name == "DOUBLE")
_INTEGER = frozenset(d for d in DType if "INT" in d.name)
_SIGNED = frozenset(d for d in _INTEGER if not d.name.startswith("U"))
_ML_DTYPES = {
    DType.BFLOAT16: "bfloat16",
    DType.FLOAT8E4M3FN: "float8_e4m3fn",
    DType.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    DType.FLOAT8E5M2: "float8_e5m2",
    DType.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    DType.UINT4: "uint4",
    DType.INT4: "int4",
    DType.FLOAT4E2M1: "float4_e2m1fn",
    DType.FLOAT8E8M0: "float8_e8m0fnu",
    DType.UINT2: "uint2",
    DType.INT2: "int2",
}
_NUMPY = {DType.FLOAT: "float32", DType.DOUBLE: "float64", DType.STRING: "object"}
_FROM_NUMPY = {_ML_DTYPES.get(d) or _NUMPY.get(d) or d.text: d for d in DType if d}


@cache
def _numpy(dtype: DType) -> np.dtype:
    if dtype in _ML_DTYPES:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, _ML_DTYPES[dtype]))
    if dtype is DType.UNDEFINED:
        raise TypeError("the element type is unknown")
    return np.dtype(_NUMPY.get(dtype, dtype.text))


class TensorType:
    """A tensor: ``dtype`` (UNDEFINED if unknown) and ``shape`` (a tuple of `Dim`, or None if the rank is unknown)."""

    __slots__ = ("dtype", "shape")

    def __init__(self, dtype: DType, shape: Shape | None):
        self.dtype = dtype
        self.shape = shape

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, TensorType) and self.dtype == other.dtype and self.shape == other.shape
        )

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape))

    @property
    def rank(self) -> int | None:
        """The number of dimensions, or None if unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def size(self) -> Dim | None:
        """The number of elements, or None if the rank is unknown."""
        return None if self.shape is None else product(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a known integer."""
        return self.shape is not None and all(type(d) is int for d in self.shape)

    def __str__(self) -> str:
        """ONNX textual syntax: ``float[batch,3,?]``."""
        name = self.dtype.text if self.dtype else "?"
        if self.shape is None:
            return f"{name}[]" if self.dtype else "?"
        dims = ",".join("?" if isinstance(d, Sym) and d.mentions_anonymous else str(d) for d in self.shape)
        return f"{name}[{dims}]" if self.shape else name

    __repr__ = __str__


class SequenceType:
    """A sequence of values of type ``element``."""

    __slots__ = ("element",)

    def __init__(self, element: Type):
        self.element = element

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.element == other.element

    def __hash__(self) -> int:
        return hash((type(self), self.element))

    def __str__(self) -> str:
        return f"seq({self.element})"

    __repr__ = __str__


class OptionalType(SequenceType):
    """An optional value of type ``element``."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"optional({self.element})"

    __repr__ = __str__


class OtherType:
    """A type that planish carries but does not look into (map, sparse tensor, opaque): its serialized TypeProto."""

    __slots__ = ("proto",)

    def __init__(self, proto: bytes):
        self.proto = proto

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OtherType) and self.proto == other.proto

    def __hash__(self) -> int:
        return hash(self.proto)

    def __str__(self) -> str:
        return "other"

    __repr__ = __str__


Type = TensorType | SequenceType | OptionalType | OtherType

UNKNOWN = TensorType(DType.UNDEFINED, None)


def tensor_type(dtype: DType, *dims: Dim | None) -> TensorType:
    """A tensor type; None among ``dims`` becomes a fresh unknown size."""
    return TensorType(dtype, tuple(fresh() if d is None else d for d in dims))


def same_shape(a: Type, b: Type) -> bool:
    """Whether both are tensors of provably equal shape."""
    return isinstance(a, TensorType) and isinstance(b, TensorType) and a.shape is not None and a.shape == b.shape


def compatible(a: Type, b: Type) -> bool:
    """Whether a value of type ``a`` could be one of type ``b``: nothing that both state contradicts."""
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.dtype and b.dtype and a.dtype != b.dtype:
            return False
        if a.shape is None or b.shape is None:
            return True
        return len(a.shape) == len(b.shape) and all(
            x == y or isinstance(x, Sym) or isinstance(y, Sym) for x, y in zip(a.shape, b.shape, strict=True)
        )
    if a is UNKNOWN or b is UNKNOWN:
        return True
    if isinstance(a, SequenceType) and type(a) is type(b):
        return compatible(a.element, b.element)
    return a == b


def _merge_dim(a: Dim, b: Dim) -> Dim:
    """The more precise of two statements of one dimension; ``a`` wins where neither is."""
    if isinstance(a, int) or a == b:
        return a
    return b if isinstance(b, int) or (a.mentions_anonymous and not b.mentions_anonymous) else a


def merge(a: Type, b: Type) -> Type:
    """All that two `compatible` types state of one value.

    Where neither is more precise, ``a`` wins; the result is ``a`` itself when ``b`` adds nothing.
    """
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a == b:
            return a
        dtype = a.dtype or b.dtype
        shape = b.shape if a.shape is None else a.shape
        if a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
            shape = tuple(_merge_dim(x, y) for x, y in zip(a.shape, b.shape, strict=True))
        return a if dtype == a.dtype and shape == a.shape else TensorType(dtype, shape)
    if a is UNKNOWN:
        return b
    if isinstance(a, SequenceType) and type(a) is type(b):
        element = merge(a.element, b.element)
        return a if element is a.element else type(a)(element)
    return a
