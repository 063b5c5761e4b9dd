"""Limit: stops all rewriting after a number of rewrites, so that a user can bisect by hand."""

from __future__ import annotations

from ...ir import Node
from ..base import Context, Observer
from ..rules import Replacement

__all__ = ["Limit"]


class Limit(Observer):
    """Vetoes every rewrite after the first ``rewrites``, counted over the whole pipeline."""

    judges = False

    def __init__(self, rewrites: int):
        self.left = rewrites

    def before_rewrite(self, replacement: Replacement, ctx: Context) -> bool:
        return self.left > 0

    def after_rewrite(self, replacement: Replacement, nodes: list[Node], ctx: Context) -> None:
        self.left -= 1
