"""Which quantizers keep operators from being fused: found by fusing a copy of the graph that has none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...ir import Graph, Node, Value, edit
from ...ir.clone import clone_graph
from ...ir.quantization import FAKE_QUANTIZE
from ..base import Context, Observer, Pass
from ..observers.explain import describe
from ..pipeline import Pipeline
from ..rules import Replacement

__all__ = ["Blocked", "blocked_fusions"]


@dataclass(frozen=True)
class Blocked:
    """A fusion that quantizers keep from happening: the rule, its root, the quantizers by what they stand behind."""

    rule: str
    site: str
    quantizers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule} at {self.site}: quantized in between, behind {', '.join(self.quantizers)}"


class _Inside(Observer):
    """Records the names of the nodes that each rewrite takes together."""

    judges = False

    def __init__(self, rules: frozenset[str]) -> None:
        self.rules = rules
        self.found: list[tuple[str, str, frozenset[str]]] = []

    def before_rewrite(self, replacement: Replacement, ctx: Context) -> bool:
        if replacement.rule.name in self.rules:
            names = frozenset(node.name for node in _taken(replacement) if node.name)
            self.found.append((replacement.rule.name, describe(replacement.roots[0]), names))
        return True


def _taken(replacement: Replacement) -> set[Node]:
    """The nodes between the operands of the new nodes and the roots."""
    new = edit.floating([v for values in replacement.values for v in values if v is not None])
    ends = {o for node in new for o in node.operands if o is not None}
    found: set[Node] = set()
    stack = list(replacement.roots)
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        stack += [o.producer for o in node.operands if o is not None and o not in ends and o.producer is not None]
    return found


def blocked_fusions(graph: Graph, passes: Iterable[Pass], rules: Iterable[str], ctx: Context) -> list[Blocked]:
    """The fusions that happen only without the quantizers of activations in ``graph``.

    Args:
        graph: the graph with its quantizers raised to FakeQuantize; stays as it is.
        passes: what fuses.
        rules: the names of the rules that count as fusions.
        ctx: for the target and the runner.
    """
    mapping: dict[Value, Value] = {}
    bare = clone_graph(graph, mapping)
    for i, node in enumerate(bare.walk()):  # nodes are told by their names
        node.name = node.name or f"%{(node.results[0].name if node.results else '') or i}"
    between: list[tuple[str, frozenset[str], str]] = []
    for node in [n for n in bare.walk() if n.op == FAKE_QUANTIZE and n.given(0).producer is not None]:
        producer, users = node.given(0).producer, node.result.users
        assert producer is not None
        between.append((producer.name, frozenset(u.name for u in users), describe(producer)))
        edit.replace(node.result, node.given(0))
        edit.erase(node)
    if not between:
        return []
    observer = _Inside(frozenset(rules))
    Pipeline(passes).run(bare, Context(ctx.runner_factory, [observer], ctx.target))
    found = []
    for rule, site, names in observer.found:
        inside = [text for producer, users, text in between if producer in names and users & names]
        if inside:
            found.append(Blocked(rule, site, tuple(dict.fromkeys(inside))))
    return found
