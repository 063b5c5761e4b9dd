"""What runs graphs: the reference, ONNX Runtime, and others; see `planish.backends.base`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .base import Backend, Executable, LoweringError, backend, backends

if TYPE_CHECKING:
    from ..ir.graph import Graph

__all__ = ["Backend", "Executable", "LoweringError", "backend", "backends", "onnx_backend"]


def onnx_backend(
    name: str,
    upgrade: Callable[[Graph], None] | None = None,
    simplify: Callable[[Graph], Any] | None = None,
    **options: Any,
) -> type[Any]:
    """The backend ``name`` as a class for ONNX's own test suite: see `planish.backends.conformance`."""
    from .conformance import make_onnx_backend

    return make_onnx_backend(name, upgrade, simplify, **options)
