"""Files that passes write: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .base import RequestError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str], what: str = "") -> Iterator[IO[bytes]]:
    """A file to write into, which takes the place of ``path`` when all is written.

    Args:
        path: the file.
        what: what it is called in errors, before its path.

    Raises:
        RequestError: it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RequestError(f"{what}{path}: {error.strerror or error}") from error
