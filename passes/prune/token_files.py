"""Lists of token ids in files: text with one number per line, or an ``.npy`` array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..base import RequestError
from ..files import replacing

__all__ = ["read_tokens", "write_tokens"]

Array = np.ndarray[Any, Any]


def read_tokens(path: str, rows: int) -> Array:
    """The ids in the file at ``path``, sorted, as int64.

    Args:
        path: the file.
        rows: the number of rows of the table that they are for.

    Raises:
        RequestError: it cannot be read, holds something else or nothing, an id twice, or one that has no row.
    """
    try:
        ids = _read_array(path) if path.endswith(".npy") else _read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if ids.size == 0:
        raise RequestError(f"{path} holds no token ids")
    outside = ids[(ids < 0) | (ids >= rows)]
    if outside.size:
        raise RequestError(f"{path}: token {outside[0]} has no row in the table, which has {rows:,}")
    found, counts = np.unique(ids, return_counts=True)
    if len(found) < len(ids):
        raise RequestError(f"{path}: token {found[counts > 1][0]} is there twice")
    return found


def _read_array(path: str) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RequestError(f"{path} is no array of token ids: {' '.join(str(error).split())}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        what = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise RequestError(f"{path} holds {what}, not a list of integers")
    return array.astype(np.int64)


def _read_text(path: str) -> Array:
    found: list[int] = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line := line.strip():
                if not line.isdecimal() or len(line) > 18:
                    raise RequestError(f"{path}, line {number}: {line[:40]!r} is no token id")
                found.append(int(line))
    return np.array(found, np.int64)


def write_tokens(path: str, ids: Array) -> None:
    """Write ``ids``, whole or not at all.

    Raises:
        RequestError: it cannot be written.
    """
    with replacing(path) as file:
        _writer(path)(file, ids)


def _writer(path: str) -> Callable[[IO[bytes], Array], None]:
    if path.endswith(".npy"):
        return lambda file, ids: np.save(file, ids.astype(np.int64))

    def write(file: IO[bytes], ids: Array) -> None:
        file.write("".join(f"{i}\n" for i in ids.tolist()).encode())

    return write
