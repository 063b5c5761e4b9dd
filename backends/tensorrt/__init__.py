"""TensorRT 8.5 to 11 and TensorRT for RTX: legal ONNX, engines, and what became of each layer.

A graph is lowered to ONNX that TensorRT builds, on any machine. Building an engine needs the package ``tensorrt`` (and
a GPU) or ``tensorrt-rtx`` (extra ``planish[tensorrt]``, no GPU needed); running one needs a driver. The variant names
the version: ``tensorrt:10``, ``tensorrt:rtx``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from ...ir.errors import PlanishError
from ...ir.graph import Graph
from ..base import Backend, Executable, Lowered, Written
from .versions import version_of

__all__ = ["BACKEND", "TensorRT"]


class TensorRT(Backend):
    """TensorRT. Without a GPU, what it compiles runs the lowered graph in ONNX Runtime."""

    name = "tensorrt"
    extra = "tensorrt"
    suffixes: ClassVar[tuple[str, ...]] = (".engine", ".onnx")
    takes_ranges = True
    is_remote = True

    def runner(self) -> Backend:
        """ONNX Runtime."""
        from ..onnxruntime import OnnxRuntime

        return OnnxRuntime()

    def lower(self, graph: Graph) -> Graph:
        """A copy of ``graph`` in what TensorRT builds."""
        return self.lower_and_stamp(graph).graph

    def lower_and_stamp(self, graph: Graph) -> Lowered:
        """The copy, and the versions to state in the model."""
        from .lowering import lower

        return lower(graph, version_of(self.variant))

    def next_step(self, path: str | os.PathLike[str]) -> str:
        """How to build an engine of an ONNX file."""
        name = os.fspath(path)
        engine = f"{name.removesuffix('.onnx')}.engine"
        return (
            f"build it where it will run: trtexec --onnx={name} --saveEngine={engine}, or planish optimize {name} "
            f"-o {engine} --target tensorrt"
        )

    def compile(
        self,
        graph: Graph,
        *,
        engine: bool | Literal["auto"] = False,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Executable:
        """An executable of the lowered graph, which takes and gives the element types of ``graph``.

        Args:
            graph: the graph.
            engine: build an engine and run that; ``"auto"``: where it can run. Otherwise ONNX Runtime runs the lowered
                graph, which takes no time to build: that is what passes want that run parts of a model.
            progress: is told what is going on.
            options: for engines, those of `planish.backends.tensorrt.options.BuildOptions` and
                `planish.backends.tensorrt.engine.RunOptions`; else those of ONNX Runtime.
        """
        from .engine import compile_engine, runnable

        lowered = self._lowered(graph, str(options.get("precision", "")))
        if engine is True or (engine == "auto" and not runnable()):
            return compile_engine(lowered, graph, version_of(self.variant), options, progress)
        from ..onnxruntime import OnnxRuntime
        from .arrays import Restated

        options.pop("precision", None)
        inner = OnnxRuntime().compile(lowered.graph, **options)
        stated = [(v.name, v.type) for v in graph.inputs]
        return Restated(inner, stated, [v.type for v in graph.outputs])

    def write(
        self,
        graph: Graph,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Written:
        """Build an engine and write it, with a manifest beside it (``m.engine.json``).

        Args:
            graph: the graph.
            path: the file, ``.engine``.
            progress: is told what is going on.
            options: those of `planish.backends.tensorrt.options.BuildOptions`.
        """
        if not os.fspath(path).lower().endswith(".engine"):
            return super().write(graph, path, **options)
        from .build import build
        from .manifest import save
        from .options import check_options

        self.check(options)  # complains now rather than after lowering
        checked = check_options(options)
        plan = build(self._lowered(graph, checked.precision), version_of(self.variant), checked, progress=progress)
        return save(plan, path, graph)

    def _lowered(self, graph: Graph, precision: str) -> Lowered:
        """``graph``, lowered to compute in ``precision``; "": as it does."""
        if not precision:
            return self.lower_and_stamp(graph)
        from ...ir.clone import clone_graph
        from .precision import apply_precision

        changed = clone_graph(graph)
        notes = apply_precision(changed, precision, version_of(self.variant))
        lowered = self.lower_and_stamp(changed)
        return lowered._replace(notes=(*notes, *lowered.notes))

    def check(self, options: Mapping[str, Any]) -> None:
        """Complain of options that the installed TensorRT does not have, or that none is installed."""
        from .module import find_module
        from .options import check_options, refused

        module = find_module(version_of(self.variant))
        checked = check_options({name: value for name, value in options.items() if name != "progress"})
        for lacking in refused(checked, module):
            raise PlanishError(lacking)

    def load(self, path: str | os.PathLike[str], **options: Any) -> Executable:
        """An engine, where there is a GPU (see `planish.backends.tensorrt.engine.RunOptions`), or an ONNX file."""
        if os.fspath(path).lower().endswith(".onnx"):
            from ..onnxruntime import OnnxRuntime

            return OnnxRuntime().load(path, **options)
        from .engine import load

        return load(path, **options)


BACKEND = TensorRT
