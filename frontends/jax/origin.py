"""Where an equation comes from: the line of the user's code, and the path of the module."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path
from typing import Any

__all__ = ["is_of_jax", "is_users", "module_of", "source_of"]

_JAX = re.compile(r"[/\\](site|dist)-packages[/\\](jax|jaxlib)[/\\]")
_PACKAGES = re.compile(r"[/\\](site|dist)-packages[/\\]")
_HERE, _LIBRARY = str(Path(__file__).parent), sysconfig.get_path("stdlib")


def is_users(file: str) -> bool:
    """Whether ``file`` is neither jax's, nor Python's, nor planish's."""
    if _PACKAGES.search(file):
        return not _JAX.search(file)
    return not file.startswith((_HERE, _LIBRARY, "<"))


def is_of_jax(jaxpr: Any) -> bool:
    """Whether a jaxpr is that of a function of jax.

    Such functions are traced once, so their equations know the line that called them first, and no other.
    """
    return _JAX.search(str(getattr(getattr(jaxpr, "debug_info", None), "func_src_info", ""))) is not None


def source_of(source_info: Any) -> str:
    """``file:line`` of the innermost frame that is the user's, outside of installed packages if there is one; or ""."""
    traceback = getattr(source_info, "traceback", None)
    frames = [f for f in traceback.frames if is_users(f.file_name)] if traceback is not None else []
    own = [f for f in frames if not _PACKAGES.search(f.file_name)]
    frame = next(iter(own or frames), None)  # the innermost comes first
    return f"{frame.file_name}:{frame.line_num}" if frame is not None else ""


def module_of(source_info: Any) -> tuple[str, ...]:
    """The named scopes around an equation, outermost first; transformations such as ``vmap`` are left out."""
    stack = getattr(getattr(source_info, "name_stack", None), "stack", ())
    return tuple(part for s in stack if type(s).__name__ == "Scope" for part in str(s.name).split("/") if part)
