"""Checkpoints: where the numbers of variables lie in the files of one, so that they are mapped and not read.

A checkpoint is an index, which is a sorted table of names and of what they stand for, and one or more files of plain
numbers. The index is read here: its format is that of LevelDB's tables, without compression.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from ...ir.errors import ModelError
from ...ir.tensor import DataFile, FileTensor, Tensor, TensorError
from ...ir.types import DType

__all__ = ["Bundle"]

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_LARGEST_INDEX = 1 << 28


class Bundle:
    """The tensors of a checkpoint by name.

    Args:
        folder: the folder that nothing may lead out of.
        prefix: the path of the files in it, without their endings.

    Raises:
        ModelError: it is missing or damaged, or a link leads out of the folder.
    """

    def __init__(self, folder: Path, prefix: str):
        self._folder, self._prefix = folder.resolve(), prefix
        self._files: dict[int, DataFile] = {}
        self._entries: dict[str, bytes] = {}
        index = self._file(f"{prefix}.index")
        if index.stat().st_size > _LARGEST_INDEX:
            raise ModelError(f"{prefix}.index: {index.stat().st_size / 1e6:.0f} MB of names")
        try:
            entries = dict(_table(index.read_bytes()))
            self._header = BundleHeaderProto.FromString(entries.pop(b""))
        except (DecodeError, IndexError, KeyError, OverflowError, struct.error) as error:
            raise ModelError(f"{prefix}.index is damaged") from error
        if self._header.endianness != BundleHeaderProto.LITTLE:
            raise ModelError(f"{prefix}.index: numbers with the highest byte first")
        self._entries = {key.decode("utf-8", "replace"): entry for key, entry in entries.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def tensor(self, key: str, name: str) -> Tensor:
        """The tensor under ``key``, which is mapped when its numbers are asked for.

        Raises:
            ModelError: it is missing or damaged, or it is no tensor of numbers.
        """
        if key not in self._entries:
            raise ModelError(f"{self._prefix}.index has no values for the variable {name!r}")
        try:
            entry = BundleEntryProto.FromString(self._entries[key])
        except DecodeError as error:
            raise ModelError(f"{self._prefix}.index is damaged at {key!r}") from error
        if entry.slices:
            raise ModelError(f"variable {name!r} is stored in pieces: save the model with TensorFlow 2")
        try:
            dtype = DType.from_numpy(tf.as_dtype(entry.dtype).as_numpy_dtype)
            shape = tuple(int(d.size) for d in entry.shape.dim)
            return FileTensor(self._data(entry.shard_id), entry.offset, dtype, shape, name)
        except (TensorError, TypeError, OverflowError) as error:
            raise ModelError(f"variable {name!r}: {error}") from error

    def _data(self, number: int) -> DataFile:
        if number not in self._files:
            name = f"{self._prefix}.data-{number:05d}-of-{self._header.num_shards:05d}"
            self._files[number] = DataFile.at(self._file(name))
        return self._files[number]

    def _file(self, name: str) -> Path:
        path = self._folder / name
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise ModelError(f"{name} is missing") from None
        if not real.is_relative_to(self._folder):
            raise ModelError(f"{name} is a link that leads out of the folder")
        if not stat.S_ISREG(real.stat().st_mode):
            raise ModelError(f"{name} is no regular file")
        return real


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table.

    Raises:
        IndexError, KeyError, struct.error: it is damaged.
    """
    footer = data[-_FOOTER:]
    if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise KeyError("magic number")
    _, at = _varint(footer, 0)  # the block of meta data
    _, at = _varint(footer, at)
    for _, handle in _block(data, *_handle(footer, at)):
        yield from _block(data, *_handle(handle, 0))


def _handle(data: bytes, at: int) -> tuple[int, int]:
    offset, at = _varint(data, at)
    return offset, _varint(data, at)[0]


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = data[offset : offset + size]
    if len(block) != size or data[offset + size] != 0:  # the kind of compression: none
        raise KeyError("block")
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise KeyError("entry")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _varint(data: Any, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise KeyError("number")
