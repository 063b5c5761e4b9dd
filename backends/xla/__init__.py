"""XLA through JAX: a graph becomes a JAX function that runs, differentiates, exports and compiles for CPU, GPU and TPU.

Needs the extra ``planish[xla]``; jax is imported when a graph is lowered.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...ir.errors import PlanishError
from ..base import Backend, Executable, Written, import_or_explain

if TYPE_CHECKING:
    from ...ir.graph import Graph

__all__ = ["BACKEND", "Xla"]


class Xla(Backend):
    """XLA on the devices that JAX finds here. The variant names the platforms that files are exported for."""

    name = "xla"
    extra = "xla"
    suffixes: ClassVar[tuple[str, ...]] = (".stablehlo", ".mlir", ".onnx")

    def __init__(self, variant: str = ""):
        super().__init__(variant)
        quiet_libtpu()

    def missing(self) -> str | None:
        """What to install, if it is not there."""
        return import_or_explain("jax", self.extra)

    def lower(self, graph: Graph) -> Graph:
        """A copy of ``graph`` in operators that have a lowering to JAX."""
        from .function import lower

        return lower(graph)

    def compile(self, graph: Graph, **options: Any) -> Executable:
        """An executable for ``graph``; ``options`` are those of `planish.backends.xla.function.to_jax`."""
        from .executable import compile_graph

        return compile_graph(graph, **options)

    def write(self, graph: Graph, path: str | os.PathLike[str], **options: Any) -> Written:
        """Write ``.stablehlo``, which `load` reads, or ``.mlir`` text; see `planish.backends.xla.export.save`."""
        from .export import PLATFORMS, save

        platforms = tuple(self.variant.split(",")) if self.variant else PLATFORMS
        return save(graph, path, platforms=platforms, **options)

    def load(self, path: str | os.PathLike[str], **options: Any) -> Executable:
        """An executable of a ``.stablehlo`` file; there are no options."""
        from .export import load

        if options:
            raise PlanishError(f"xla has no option {next(iter(options))!r} for files")
        return load(path)


def quiet_libtpu() -> None:
    """Let libtpu, on a host without TPUs, only compile: not look for chips, complain of their absence, or lock."""
    if any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        return
    for name, value in {
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)


BACKEND = Xla
