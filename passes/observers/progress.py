"""Progress: says what is going on, for whoever is waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...ir import Graph, Node
from ..base import Context, Observer, Pass
from ..rules import Replacement

__all__ = ["Progress"]

_INTERVAL = 0.1  # seconds between two messages about rewrites


class Progress(Observer):
    """Tells ``show`` which pass runs, and now and then how many rewrites it has made."""

    judges = False

    def __init__(self, show: Callable[[str], None]):
        self.show = show
        self.name = ""
        self.rewrites = 0
        self.shown = 0.0

    def before_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> bool:
        self.name, self.rewrites = str(pass_), 0
        self.show(self.name)
        return True

    def after_rewrite(self, replacement: Replacement, nodes: list[Node], ctx: Context) -> None:
        self.rewrites += 1
        now = time.monotonic()
        if now - self.shown >= _INTERVAL:
            self.shown = now
            self.show(f"{self.name}: {self.rewrites} rewrites")
