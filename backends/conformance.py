"""Backends as ``onnx.backend.base.Backend`` classes, so that ONNX's own test suite can drive them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import ModelProto
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep

from ..ir.convert.proto import from_proto
from ..ir.graph import Graph
from .base import Executable, backend

__all__ = ["make_onnx_backend"]


class _Prepared(BackendRep):
    def __init__(self, executable: Executable):
        self.executable = executable

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs for ``inputs``: a list, or the only one."""
        return tuple(self.executable(*(inputs if isinstance(inputs, list | tuple) else [inputs])))


def make_onnx_backend(
    name: str,
    upgrade: Callable[[Graph], None] | None = None,
    simplify: Callable[[Graph], Any] | None = None,
    **options: Any,
) -> type[OnnxBackend]:
    """The backend ``name`` as a class for ONNX's test suite.

    Args:
        name: of the backend, with a variant perhaps.
        upgrade: brings an imported graph to the canonical opset: `planish.frontends.onnx.upgrade.upgrade`.
        simplify: changes the graph in place (or returns another) before it is compiled.
        options: for `Backend.compile`.
    """
    target = backend(name)

    class PlanishBackend(OnnxBackend):
        """One of planish's backends behind ONNX's interface."""

        @classmethod
        def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> _Prepared:
            """Import ``model`` and compile it."""
            graph = from_proto(model, upgrade=upgrade)
            changed = simplify(graph) if simplify is not None else None
            return _Prepared(target.compile(changed if isinstance(changed, Graph) else graph, **options))

        @classmethod
        def supports_device(cls, device: str) -> bool:
            """Only the CPU."""
            return device == "CPU"

    return PlanishBackend
