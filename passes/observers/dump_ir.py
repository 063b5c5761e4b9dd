"""DumpIR: the graph as text before the first pass and after each one that changed it, as numbered files."""

from __future__ import annotations

from pathlib import Path

from ...ir import Graph
from ..base import Context, Observer, Pass

__all__ = ["DumpIR"]


class DumpIR(Observer):
    """Writes ``folder/000-input.txt``, ``001-simplify.txt`` …; compare neighbours with any diff tool."""

    judges = False

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.count = 0

    def before_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> bool:
        if self.count == 0:
            self.write("input", graph)
        return True

    def after_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        self.write(pass_.pass_name(), graph)

    def write(self, name: str, graph: Graph) -> None:
        """Write the next dump."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.count:03}-{name}.txt").write_text(str(graph), encoding="utf-8")
        self.count += 1
