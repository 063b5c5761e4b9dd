"""TPUs: programs compiled ahead of time, on a host that has none.

Needs the extra ``planish[tpu]``: libtpu is the compiler. The variant names the chips: ``tpu:v5e`` is one of them,
``tpu:v5e:2x2`` four.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from ..ir.errors import PlanishError
from .base import Executable, Written, import_or_explain
from .xla import Xla

if TYPE_CHECKING:
    from ..ir.graph import Graph

__all__ = ["BACKEND", "Tpu"]


class Tpu(Xla):
    """TPUs that need not be here: graphs run with the same JAX function on the CPU, and are compiled for the TPU."""

    name = "tpu"
    extra = "tpu"
    suffixes: ClassVar[tuple[str, ...]] = (".tpu", ".onnx")
    is_remote = True

    def missing(self) -> str | None:
        """What to install, or which variants there are."""
        return super().missing() or import_or_explain("libtpu", self.extra)

    def compile(self, graph: Graph, **options: Any) -> Executable:
        """An executable that runs here, and tells what the TPU's compiler estimates."""
        from .xla.tpu import TpuExecutable

        return TpuExecutable.of(graph, self.variant, **options)

    def write(self, graph: Graph, path: str | os.PathLike[str], **options: Any) -> Written:
        """Compile and write ``.tpu``; see `planish.backends.xla.tpu.save`."""
        from .xla.tpu import save

        return save(graph, path, self.variant, **options)

    def load(self, path: str | os.PathLike[str], **options: Any) -> Executable:
        """Programs of TPUs are loaded where they run."""
        raise PlanishError(f"{os.fspath(path)}: load it on the TPU, with jax.experimental.serialize_executable")


BACKEND = Tpu
