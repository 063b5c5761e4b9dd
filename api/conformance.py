"""planish as a backend of ONNX's own test suite."""

from __future__ import annotations

from typing import Any

from planish import backends
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import Graph
from planish.passes import Context, Pipeline

__all__ = ["onnx_backend"]


def onnx_backend(name: str = "onnxruntime", pipeline: str | Pipeline = "", **options: Any) -> type[Any]:
    """An ``onnx.backend.base.Backend`` class: models are imported, optimized, and run on the backend ``name``.

    Args:
        name: the backend (see `planish.backends`).
        pipeline: the passes to run first; none by default.
        options: for the backend's ``compile``.

    Raises:
        PlanishError: there is no such backend, or the pipeline is wrong.
    """
    parsed = pipeline if isinstance(pipeline, Pipeline) else Pipeline.parse(pipeline) if pipeline else None

    def simplify(graph: Graph) -> None:
        if parsed is not None:
            parsed.run(graph, Context(lambda: backends.backend("reference")))

    return backends.onnx_backend(name, upgrade, simplify, **options)
