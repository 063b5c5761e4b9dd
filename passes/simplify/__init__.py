"""Simplification: an equivalent graph with fewer, plainer nodes. One file per subject; `Simplify` applies them all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from ...ir import Graph
from ..base import Context, Pass
from ..numerics import Within
from ..rewrite import RuleIndex, rewrite
from ..rules import Rule
from . import control, convolutions, einsum, half, identities, indexing, linear, masks, reshapes, shapes, transposes
from .eliminate_common_subexpressions import eliminate
from .fold_constants import fold_rule

__all__ = ["Simplify", "simplify_rules"]

_ROUNDS = 10
_SUBJECTS = (identities, reshapes, transposes, indexing, shapes, masks, einsum, convolutions, linear, half, control)


def rules_in(module: ModuleType) -> list[Rule]:
    """The rules that ``module`` defines, in order."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, Rule) and value.function.__module__ == module.__name__
    ]


@cache
def simplify_rules() -> tuple[Rule, ...]:
    """All simplification rules but constant folding, which needs a context."""
    return tuple(r for module in _SUBJECTS for r in rules_in(module))


@dataclass(frozen=True)
class Simplify(Pass):
    """Compute what is known, merge what only moves data, fold scales into weights, drop what is dead or double."""

    numerics = Within()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules but constant folding."""
        return simplify_rules()

    def run(self, graph: Graph, ctx: Context) -> None:
        index = RuleIndex([fold_rule(ctx), *simplify_rules()])
        seeds = None
        for _ in range(_ROUNDS):
            rewrite(graph, index, ctx, seeds)
            seeds = eliminate(graph, ctx)
            if not seeds:
                return
