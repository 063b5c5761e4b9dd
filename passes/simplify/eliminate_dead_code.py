"""Dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph
from ..base import Context, Pass
from ..rewrite import RuleIndex, rewrite

__all__ = ["EliminateDeadCode"]


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove nodes whose results nothing uses, in nested graphs too."""

    def run(self, graph: Graph, ctx: Context) -> None:
        rewrite(graph, RuleIndex(()), ctx)
