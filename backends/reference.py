"""The reference backend: onnx's own evaluator, slow and by the book. It always works."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from ..ir.clone import clone_graph
from ..ir.convert.proto import to_proto
from ..ir.errors import PlanishError
from ..ir.graph import Graph, Node
from ..ir.schema import canonical_opset
from .base import Backend, Executable
from .legalize import legalize

__all__ = ["BACKEND", "Reference"]


class _Target:
    """What onnx.reference evaluates, at the canonical opset: of operators that it lacks, it evaluates function bodies."""

    name = "reference"
    ir_version = 1 << 30

    @property
    def opset(self) -> int:
        return canonical_opset()

    def runs(self, node: Node, since: int) -> bool:
        return _is_implemented(node.domain, node.op_type)


_MODULES = {"": "ops", "ai.onnx.ml": "ops.aionnxml", "ai.onnx.preview": "ops.aionnx_preview", "ai.onnx.preview.training": "ops.aionnx_preview_training"}


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
        missing = [name for name, _ in self.inputs if name not in inputs and name not in self.defaults]
        if missing:
            raise PlanishError(f"no value for input {missing[0]!r}")
        feeds = {name: t.numpy() for name, t in self.defaults.items()} | {n: _as_value(v) for n, v in inputs.items()}
        try:
            with np.errstate(all="ignore"):
                return list(self._evaluator.run(None, feeds))
        except PlanishError:
            raise
        except Exception as error:  # whatever an operator's Python code ran into
            raise PlanishError(f"reference: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error


def _as_value(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else np.asarray(value)


class Reference(Backend):
    """onnx.reference."""

    name = "reference"

    def lower(self, graph: Graph) -> Graph:
        lowered = clone_graph(graph)
        legalize(lowered, _Target())
        return lowered

    def compile(self, graph: Graph, **options: Any) -> Executable:
        if options:
            raise PlanishError(f"reference has no option {next(iter(options))!r}")
        lowered = self.lower(graph)
        return _ReferenceExecutable(lowered, to_proto(lowered, opset=canonical_opset()))


BACKEND = Reference
