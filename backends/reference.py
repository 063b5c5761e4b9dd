"""The reference backend: onnx's own evaluator, slow and by the book. It always works."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from ..ir.clone import clone_graph
from ..ir.errors import PlanishError
from ..ir.graph import Graph
from ..ir.schema import canonical_opset
from .base import Backend, Executable
from .legalize import CanonicalTarget, legalize
from .quantization import encode

__all__ = ["BACKEND", "Reference"]


_MODULES = {
    "": "ops",
    "ai.onnx.ml": "ops.aionnxml",
    "ai.onnx.preview": "ops.aionnx_preview",
    "ai.onnx.preview.training": "ops.aionnx_preview_training",
}


@cache
def _is_implemented(domain: str, op: str) -> bool:
    if domain not in _MODULES:
        return False
    module = importlib.import_module(f"onnx.reference.{_MODULES[domain]}")
    try:
        module.load_op(domain, op, None)
    except AssertionError:  # it needs an evaluator for its function body
        return True
    except (RuntimeError, ValueError):  # a body that depends on the node is inlined here, where the types are known
        return False
    return True


class _ReferenceExecutable(Executable):
    def __init__(self, graph: Graph, model: Any):
        from onnx.reference import ReferenceEvaluator

        self.inputs = [(v.name, v.type) for v in graph.inputs]
        self.outputs = [o.name for o in graph.output_info]
        self.defaults = {v.name: v.default for v in graph.inputs if v.default is not None}
        self._evaluator = ReferenceEvaluator(model)

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        missing = [name for name, _ in self.inputs if name not in inputs and name not in self.defaults]
        if missing:
            raise PlanishError(f"no value for input {missing[0]!r}")
        feeds = {name: t.numpy() for name, t in self.defaults.items()} | {n: _as_value(v) for n, v in inputs.items()}
        try:
            with np.errstate(all="ignore"):
                return list(self._evaluator.run(None, feeds))
        except Exception as error:  # whatever an operator's Python code ran into
            message = " ".join(str(error).split())[:500]
            raise PlanishError(f"reference: {type(error).__name__}: {message}") from error


def _as_value(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else np.asarray(value)


class Reference(Backend):
    """onnx.reference."""

    name = "reference"

    def lower(self, graph: Graph) -> Graph:
        """A copy of ``graph`` in what onnx.reference implements."""
        lowered = clone_graph(graph)
        encode(lowered)
        legalize(lowered, CanonicalTarget("reference", lambda node: _is_implemented(node.domain, node.op_type)))
        return lowered

    def compile(self, graph: Graph, **options: Any) -> Executable:
        """An evaluator; there are no options."""
        if options:
            raise PlanishError(f"reference has no option {next(iter(options))!r}")
        from ..ir.convert.proto import to_proto

        lowered = self.lower(graph)
        return _ReferenceExecutable(lowered, to_proto(lowered, opset=canonical_opset()))


BACKEND = Reference
