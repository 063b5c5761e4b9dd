"""Fusion: groups of operators become the standard operator that they spell. One file per subject."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ...ir import Graph
from ..base import Context, Pass
from ..numerics import Within
from ..rewrite import RuleIndex, rewrite
from ..rules import Rule
from ..simplify import einsum, reshapes, rules_in, transposes
from . import activations, attention, caches, directions, heads, normalizations, recurrent, rotary, sinks, softmaxes

__all__ = ["Fuse", "fuse_rules"]

_SUBJECTS = (normalizations, activations, softmaxes, rotary, sinks, attention, caches, heads, recurrent, directions)
_TIDYING = (reshapes, transposes, einsum)  # what stands between operators, or between them and their plain form


@cache
def fuse_rules() -> tuple[Rule, ...]:
    """All fusion rules, in the order in which they are tried."""
    return tuple(r for module in _SUBJECTS for r in rules_in(module))


@dataclass(frozen=True)
class Fuse(Pass):
    """Find attention, normalizations, activations, rotary embeddings and recurrent layers however they are spelled."""

    numerics = Within()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All fusion rules."""
        return fuse_rules()

    @property
    def tidying(self) -> tuple[Rule, ...]:
        """Rules of ``simplify`` that are applied besides."""
        return tuple(r for module in _TIDYING for r in rules_in(module))

    def run(self, graph: Graph, ctx: Context) -> None:
        rewrite(graph, RuleIndex([*fuse_rules(), *self.tidying]), ctx)
