"""Where an operation comes from: the line of the user's code, and the layer."""

from __future__ import annotations

import re
import sysconfig
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["is_users", "module_of", "source_of"]

_FRAMEWORKS = re.compile(
    r"[/\\](site|dist)-packages[/\\](tensorflow|keras|tf_keras)[/\\]|<frozen|__autograph_generated_file"
)
_PACKAGES = re.compile(r"[/\\](site|dist)-packages[/\\]")
_HERE, _LIBRARY = str(Path(__file__).parent), sysconfig.get_path("stdlib")


class _Whose(Enum):
    OWN = auto()  # code of the user's
    PACKAGE = auto()  # of an installed package
    FRAMEWORK = auto()  # of TensorFlow, Keras, or Python
    PLANISH = auto()


@cache
def _whose(file: str) -> _Whose:
    if _FRAMEWORKS.search(file):
        return _Whose.FRAMEWORK
    if file.startswith(_HERE):
        return _Whose.PLANISH
    if _PACKAGES.search(file):
        return _Whose.PACKAGE
    return _Whose.FRAMEWORK if file.startswith((_LIBRARY, "<")) else _Whose.OWN


def is_users(file: str) -> bool:
    """Whether ``file`` is neither TensorFlow's nor Keras's, nor Python's, nor planish's."""
    return _whose(file) in (_Whose.OWN, _Whose.PACKAGE)


def source_of(operation: Any) -> str:
    """``file:line`` of the innermost frame that is the user's, outside of installed packages if there is one; or ""."""
    trace = getattr(operation, "traceback", None)  # none where the graph was read from a file
    found = None
    for frame in reversed(trace) if trace is not None else ():
        whose = _whose(frame.filename)
        if whose is _Whose.OWN:
            found = frame
            break
        if whose is _Whose.PLANISH:  # what is further out called planish
            break
        if whose is _Whose.PACKAGE and found is None:
            found = frame
    return f"{found.filename}:{found.lineno}" if found is not None else ""


def module_of(name: str) -> str:
    """The layer that an operation is in: the scopes of its name, joined by dots."""
    return name.rpartition("/")[0].replace("/", ".")
