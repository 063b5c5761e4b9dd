"""New files of one folder, which appear together or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..ir.tensor import DataFile

__all__ = ["Files"]


class Files:
    """New files of one folder: written under temporary names, then renamed together.

    Leaving without `commit` removes them.

    Args:
        model: the file that is put in place last.
    """

    def __init__(self, model: Path):
        self.model = model
        self.folder = model.parent
        self.token = os.urandom(4).hex()
        self.temporary: dict[str, Path] = {}  # by the name to be
        self.descriptors: list[int] = []

    def __enter__(self) -> Files:
        if self.model.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for path in self.temporary.values():
            path.unlink(missing_ok=True)

    def _close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _temporary(self, name: str) -> Path:
        path = self.folder / f".{name}.{self.token}.tmp"
        self.temporary[name] = path
        return path

    def create(self, name: str) -> int:
        """A descriptor of a new file that `commit` will call ``name``."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._temporary(name), flags, 0o666)
        self.descriptors.append(descriptor)
        return descriptor

    def link(self, source: Path, name: str) -> bool:
        """Make ``name`` another link to ``source``; False where the file system cannot."""
        target = self.folder / name
        if target.exists() and target.samefile(source):
            return True
        try:
            os.link(source, self._temporary(name))
        except OSError:
            del self.temporary[name]
            return False
        return True

    def commit(self) -> None:
        """Put all files in place, the model last."""
        self._close()
        for name in self.temporary:
            replaced = DataFile.known((self.folder / name).resolve())
            if replaced is not None:
                replaced.pin()
        data = [name for name in self.temporary if name != self.model.name]
        undo: list[tuple[Path, Path]] = []  # renames to take back, oldest first
        aside: list[Path] = []
        try:
            for name in (self.model.name, *data) if any((self.folder / n).exists() for n in data) else ():
                old = self.folder / name
                if old.exists():
                    hidden = self.folder / f".{name}.{self.token}.old"
                    old.rename(hidden)
                    undo.append((hidden, old))
                    aside.append(hidden)
            for name in (*data, self.model.name):
                self.temporary[name].replace(self.folder / name)
                undo.append((self.folder / name, self.temporary[name]))
        except BaseException:
            for now, before in reversed(undo):
                now.rename(before)
            raise
        self.temporary.clear()
        for path in aside:
            path.unlink(missing_ok=True)
