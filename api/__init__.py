"""planish makes neural-network graphs smaller and faster, and checks every step.

Everything here is loaded when first used; ``import planish`` itself loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.comparison import Differences, compare
    from planish.conformance import onnx_backend
    from planish.explanation import bisect, explain, reduce
    from planish.ir import Graph, op
    from planish.ir.errors import PlanishError
    from planish.jax_function import to_jax
    from planish.models import load, save
    from planish.optimizer import Result, optimize
    from planish.passes import Context, Pass, Pipeline, RewritePass, require, rule, within
    from planish.summary import bench, inspect

_WHERE = {
    "planish.comparison": ("Differences", "compare"),
    "planish.conformance": ("onnx_backend",),
    "planish.explanation": ("bisect", "explain", "reduce"),
    "planish.ir": ("Graph", "op"),
    "planish.ir.errors": ("PlanishError",),
    "planish.jax_function": ("to_jax",),
    "planish.models": ("load", "save"),
    "planish.optimizer": ("Result", "optimize"),
    "planish.passes": ("Context", "Pass", "Pipeline", "RewritePass", "require", "rule", "within"),
    "planish.summary": ("bench", "inspect"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Context",
    "Differences",
    "Graph",
    "Pass",
    "Pipeline",
    "PlanishError",
    "Result",
    "RewritePass",
    "__version__",
    "bench",
    "bisect",
    "compare",
    "explain",
    "inspect",
    "load",
    "onnx_backend",
    "op",
    "optimize",
    "reduce",
    "require",
    "rule",
    "save",
    "to_jax",
    "within",
]
__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            found: Any = version("planish")
        except PackageNotFoundError:  # run from a source tree
            found = "0+unknown"
    elif name in _MODULE_OF:
        from importlib import import_module

        found = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(f"module 'planish' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
