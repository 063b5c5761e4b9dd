"""Tensors: the immutable contents of constants, read only when somebody asks.

A tensor knows its dtype, shape and size without touching its bytes. Where the bytes are is its subclass' matter: an
array in memory (`ArrayTensor`), a range of a file (`FileTensor`), or a computation over other tensors (`LazyTensor`).
`Tensor.chunks` streams the ONNX ``raw_data`` encoding, so that saving holds one tensor at a time.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

from .types import DType, TensorType

__all__ = ["ArrayTensor", "DataFile", "FileTensor", "LazyTensor", "Tensor", "TensorError", "pack", "tensor", "unpack"]

CHUNK = 16 << 20  # bytes per piece when streaming
_PIECE = 2 << 20  # bytes per piece when elements must be put in order first
_SAMPLE = 1 << 12  # bytes read at each of three places for `Tensor.sample`


class TensorError(ValueError):
    """The bytes of a tensor are missing, short, or do not fit its type."""


class Tensor:
    """Base class. Shapes are static; ``name`` is a hint for files and messages."""

    __slots__ = ("__weakref__", "dtype", "name", "shape")

    def __init__(self, dtype: DType, shape: tuple[int, ...], name: str = ""):
        self.dtype = dtype
        self.shape = shape
        self.name = name

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def nbytes(self) -> int:
        """Bytes of the ``raw_data`` encoding (sub-byte types packed); for strings, of their UTF-8 text."""
        if self.dtype is DType.STRING:
            return sum(len(s if isinstance(s, bytes) else str(s).encode()) for s in self.numpy().flat)
        return (self.size * self.dtype.bits + 7) // 8

    @property
    def type(self) -> TensorType:
        """The tensor type, with a static shape."""
        return TensorType(self.dtype, self.shape)

    def numpy(self) -> np.ndarray:
        """The elements as a read-only array of ``dtype.numpy`` (sub-byte types one element per byte).

        Raises:
            TensorError: the bytes cannot be had.
        """
        raise NotImplementedError

    def chunks(self) -> Iterator[memoryview]:
        """The ``raw_data`` encoding (little-endian, row-major), in pieces of bounded size where the storage allows."""
        array = self.numpy()
        rows = _PIECE * len(array) // max(self.nbytes, 1) // 64 * 64 if array.ndim else 0
        if array.flags.c_contiguous or rows == 0 or self.dtype.bits < 8:
            yield pack(array, self.dtype).data.cast("B")
        else:  # a transposed view, say: piece by piece, each of which fits in a cache
            for at in range(0, len(array), rows):
                yield pack(array[at : at + rows], self.dtype).data.cast("B")

    def sample(self) -> bytes:
        """A few of the bytes: equal for equal tensors, cheap for large ones, so that duplicates are found quickly."""
        raw = pack(self.numpy(), self.dtype)
        return b"".join(raw[at : at + _SAMPLE].tobytes() for at in _sample_offsets(len(raw)))

    @property
    def is_cheap(self) -> bool:
        """Whether `numpy` costs no computation and no large read."""
        return False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.type}>"


def _sample_offsets(nbytes: int) -> tuple[int, ...]:
    return (0,) if nbytes <= 3 * _SAMPLE else (0, nbytes // 2, nbytes - _SAMPLE)


class ArrayTensor(Tensor):
    """A tensor whose elements are an array in memory, shared, never copied."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray, dtype: DType | None = None, name: str = ""):
        super().__init__(DType.from_numpy(array.dtype) if dtype is None else dtype, array.shape, name)
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array

    @property
    def is_cheap(self) -> bool:
        return True


class DataFile:
    """A file in which tensors lie, told apart from any other that its path may come to mean.

    It is open only while it is read; if it has been changed or replaced in between, that is an error and not other
    numbers. Whoever is about to replace a file calls `pin` on the one `known` for the path: then its tensors live on.

    Attributes:
        path: where it was found.
        size: in bytes.
    """

    __slots__ = ("__weakref__", "_descriptor", "_stamp", "path", "size")
    _known: ClassVar[WeakValueDictionary[Path, DataFile]] = WeakValueDictionary()

    def __init__(self, path: Path):
        status = os.stat(path)
        self.path = path
        self.size = status.st_size
        self._stamp = _stamp(status)
        self._descriptor: int | None = None

    @classmethod
    def at(cls, path: Path) -> DataFile:
        """The file at ``path`` as it is now; the same object while it stays the same."""
        path = path.resolve()
        known = cls._known.get(path)
        if known is None or not known.is_current:
            known = cls._known[path] = cls(path)
        return known

    @classmethod
    def known(cls, path: Path) -> DataFile | None:
        """The file at ``path``, if tensors lie in it."""
        path = path.resolve()
        known = cls._known.get(path)
        return known if known is not None and known.is_current else None

    @property
    def is_current(self) -> bool:
        """Whether its path still means this file, unchanged."""
        try:
            return _stamp(os.stat(self.path)) == self._stamp
        except OSError:
            return False

    @contextmanager
    def open(self) -> Iterator[int]:
        """A descriptor for reading.

        Raises:
            TensorError: the file is gone or has changed.
        """
        if self._descriptor is not None:
            yield self._descriptor
            return
        descriptor = self._open()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise TensorError(f"{self.path}: {error.strerror}") from error
        if _stamp(os.fstat(descriptor)) != self._stamp:
            os.close(descriptor)
            raise TensorError(f"{self.path} has changed since it was read")
        return descriptor

    def pin(self) -> None:
        """Keep it open, so that it can be read after its path means another file."""
        if self._descriptor is None:
            self._descriptor = self._open()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class FileTensor(Tensor):
    """A tensor in a file: ``length`` bytes of raw data at ``offset``. Checked against the file when built.

    Regular files only; the frontend that builds one is responsible for the path.

    Raises:
        TensorError: the range lies outside the file.
    """

    __slots__ = ("file", "length", "offset")

    def __init__(self, file: DataFile | Path, offset: int, dtype: DType, shape: tuple[int, ...], name: str = ""):
        super().__init__(dtype, shape, name)
        self.file = file = file if isinstance(file, DataFile) else DataFile.at(file)
        self.offset = offset
        self.length = self.nbytes
        if offset < 0 or offset + self.length > file.size:
            needed = f"bytes {offset} to {offset + self.length} of {file.path.name}"
            raise TensorError(f"tensor {name!r}: needs {needed}, which has {file.size}")

    def numpy(self) -> np.ndarray:
        """Mapped, not read: pages come in when touched."""
        return unpack(self._map(), self.dtype, self.shape)

    def _map(self) -> np.ndarray:
        if self.length == 0:
            return np.empty(0, np.uint8)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        try:
            with self.file.open() as descriptor:
                mapped = mmap.mmap(descriptor, self.offset - start + self.length, access=mmap.ACCESS_READ, offset=start)
        except (OSError, ValueError, OverflowError) as error:
            raise TensorError(f"tensor {self.name!r}: {error}") from error
        return np.frombuffer(mapped, np.uint8, self.length, self.offset - start)

    def chunks(self) -> Iterator[memoryview]:
        with self.file.open() as descriptor:
            for at in range(0, self.length, CHUNK):
                yield memoryview(self._read(descriptor, at, min(CHUNK, self.length - at)))

    def sample(self) -> bytes:
        with self.file.open() as descriptor:
            return b"".join(
                self._read(descriptor, at, min(_SAMPLE, self.length - at)) for at in _sample_offsets(self.length)
            )

    def _read(self, descriptor: int, at: int, count: int) -> bytes:
        data = os.pread(descriptor, count, self.offset + at)
        if len(data) != count:
            raise TensorError(f"tensor {self.name!r}: {self.file.path.name} became shorter")
        return data

    @property
    def is_cheap(self) -> bool:
        return self.length <= 1 << 16


class LazyTensor(Tensor):
    """A tensor computed from others when asked for, and not kept unless small.

    Args:
        compute: called with the arrays of ``inputs``; returns an array of ``dtype`` and ``shape``.
        inputs: the tensors it reads.
        recipe: the operator and its attributes that compute the same from ``inputs``, if there is one: so a file may
            hold the computation instead of the result.
    """

    __slots__ = ("compute", "inputs", "recipe")

    def __init__(
        self,
        compute: Callable[..., np.ndarray],
        inputs: tuple[Tensor, ...],
        dtype: DType,
        shape: tuple[int, ...],
        name: str = "",
        *,
        recipe: tuple[str, dict[str, Any]] | None = None,
    ):
        super().__init__(dtype, shape, name)
        self.compute = compute
        self.inputs = inputs
        self.recipe = recipe

    def numpy(self) -> np.ndarray:
        array = np.asarray(self.compute(*(t.numpy() for t in self.inputs)))
        if array.shape != self.shape or array.dtype != self.dtype.numpy:
            raise TensorError(f"tensor {self.name!r}: computed {array.dtype}{list(array.shape)}, promised {self.type}")
        array.flags.writeable = False
        return array


def tensor(value: object, dtype: DType | None = None, name: str = "") -> Tensor:
    """A tensor from an array, a number or a (nested) list; Python floats become FLOAT, ints INT64.

    Raises:
        TypeError: no element type for it.
    """
    if isinstance(value, Tensor):
        return value
    if dtype is not None:
        return ArrayTensor(np.asarray(value, dtype=dtype.numpy), dtype, name)
    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic) and array.dtype == np.float64:
        array = array.astype(np.float32)
    return ArrayTensor(array, name=name)


def pack(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The ``raw_data`` bytes of ``array`` as a flat uint8 array; a view where the layout already fits.

    Raises:
        TensorError: strings have no raw encoding.
    """
    if dtype is DType.STRING:
        raise TensorError("strings have no raw encoding")
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    bits = dtype.bits
    if bits >= 8:
        return flat.view(np.uint8)
    per_byte = 8 // bits
    codes = flat.view(np.uint8) & ((1 << bits) - 1)
    codes = np.concatenate([codes, np.zeros(-len(codes) % per_byte, np.uint8)]).reshape(-1, per_byte)
    result = np.zeros(len(codes), np.uint8)
    for i in range(per_byte):
        result |= codes[:, i] << (bits * i)
    return result


def unpack(raw: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`: an array of ``dtype`` and ``shape`` over the bytes ``raw`` (a view for whole-byte types).

    Raises:
        TensorError: the number of bytes is wrong.
    """
    size = 1
    for d in shape:
        size *= d
    if len(raw) != (size * dtype.bits + 7) // 8:
        raise TensorError(f"{len(raw)} bytes for {dtype.text}{list(shape)}")
    bits = dtype.bits
    if bits >= 8:
        array = (
            raw.view(dtype.numpy)
            if raw.flags.aligned and raw.ctypes.data % dtype.numpy.itemsize == 0
            else np.frombuffer(raw.tobytes(), dtype.numpy)
        )
        array = array.reshape(shape)
    else:
        per_byte = 8 // bits
        codes = np.stack([(raw >> (bits * i)) & ((1 << bits) - 1) for i in range(per_byte)], axis=-1).reshape(-1)[:size]
        if dtype in (DType.INT4, DType.INT2):  # ml_dtypes keeps signed sub-byte integers sign-extended
            codes = ((codes ^ (1 << (bits - 1))) - (1 << (bits - 1))).astype(np.int8).view(np.uint8)
        array = codes.astype(np.uint8).view(dtype.numpy).reshape(shape)
    array.flags.writeable = False
    return array
