"""Timing: one line per pass that changed something."""

from __future__ import annotations

from collections.abc import Callable

from ...ir import Graph
from ..base import Context, Observer, Pass

__all__ = ["Timing"]


class Timing(Observer):
    """Tells ``show`` the wall time of each pass and the node count before and after it."""

    judges = False

    def __init__(self, show: Callable[[str], None] = print):
        self.show = show
        self.nodes = 0

    def before_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> bool:
        self.nodes = sum(1 for _ in graph.walk())
        return True

    def after_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        nodes = sum(1 for _ in graph.walk())
        self.show(f"{ctx.results[-1].seconds:8.3f} s  {self.nodes:6} -> {nodes:6} nodes  {pass_}")
