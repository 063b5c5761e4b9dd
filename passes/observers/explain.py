"""Explain: what fired where, and what nearly did."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...ir import Graph, Node
from ..base import Context, Observer, Pass
from ..pattern import Either, Operation
from ..pipeline import Fixpoint, Pipeline
from ..rewrite import explain_rules
from ..rules import PatternRule, Replacement, Rule

__all__ = ["Explain", "NearMiss", "Site", "near_misses", "rules_of"]

_VIEWS = frozenset(["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])


@dataclass(frozen=True)
class Site:
    """Where a rule fired: its root nodes, described, what operators it made of them, and where they come from."""

    rule: str
    nodes: str
    made: str
    origin: str

    def __str__(self) -> str:
        return self.nodes + (f" -> {self.made}" if self.made else "") + (f"  [{self.origin}]" if self.origin else "")


@dataclass(frozen=True)
class NearMiss:
    """Where a rule nearly fired.

    Attributes:
        rule: its name.
        anchor: the node at which it was tried.
        reached: the number of nodes that its furthest attempt matched.
        size: the number of nodes of its (smallest) pattern; 0 for rules without a pattern.
        reason: the requirement that did not hold.
        node: the node at which the attempt ended, or None.
    """

    rule: str
    anchor: Node
    reached: int
    size: int
    reason: str
    node: Node | None

    @property
    def anchor_text(self) -> str:
        """The anchor, in a message."""
        return describe(self.anchor)

    @property
    def end_text(self) -> str:
        """The node at which the attempt ended, in a message; "" if it is the anchor."""
        return describe(self.node) if self.node is not None and self.node is not self.anchor else ""

    def __str__(self) -> str:
        origin = str(self.anchor.origin)
        matched = (
            f"{self.reached} of {self.size} nodes match" if self.reached <= self.size else "the whole pattern matches"
        )
        facts = ([matched] if self.size > 1 else []) + ([f"ended at {self.end_text}"] if self.end_text else [])
        text = f"{self.rule} at {self.anchor_text}: {self.reason}" + (f" ({', '.join(facts)})" if facts else "")
        return text + (f" [{origin}]" if origin else "")

    @property
    def is_close(self) -> bool:
        """Whether only a condition was missing, or half of a large pattern was there: the rest is mostly noise."""
        return self.reached > self.size or (self.size > 2 and 2 * self.reached >= self.size)


class Explain(Observer):
    """Records every rewrite; `sites` and `near_misses` tell the story afterwards."""

    judges = False

    def __init__(self) -> None:
        self._sites: dict[int, dict[str, list[Site]]] = defaultdict(lambda: defaultdict(list))

    def before_rewrite(self, replacement: Replacement, ctx: Context) -> bool:
        roots = replacement.roots
        nodes = ", ".join(describe(r) for r in roots)
        site = Site(replacement.rule.name, nodes, _made(replacement), str(roots[0].origin))
        self._sites[len(ctx.results)][site.rule].append(site)
        return True

    def sites(self, ctx: Context) -> list[Site]:
        """Where rules fired, without what was taken back."""
        found = []
        for number, result in enumerate(ctx.results, 1):
            for rule, sites in self._sites[number].items():
                count = result.fired[rule]
                found += sites[-count:] if count else []  # a pass that was repeated has recorded its first try, too
        return found


def _made(replacement: Replacement) -> str:
    """The new operators that compute the replaced results, but for views of these; "" if there are none."""
    found: dict[str, None] = {}
    for value in (v for values in replacement.values for v in values if v is not None):
        node = value.producer
        while node is not None and node.graph is None and node.op in _VIEWS and node.operands[0] is not None:
            node = node.operands[0].producer
        if node is not None and node.graph is None:
            found[node.op] = None
    return ", ".join(found)


def describe(node: Node) -> str:
    """``Add 'name'``: how messages call a node."""
    return f"{node.op} {node.name!r}" if node.name else f"{node.op} %{node.result.name}" if node.results else node.op


def rules_of(p: Pass, kind: str = "rules") -> list[Rule]:
    """The rules of a pass or of all passes of a pipeline, each once.

    Args:
        p: the pass.
        kind: ``rules``, what the passes are there for, or ``tidying``, what some apply besides.
    """
    return list(dict.fromkeys(rule for single in _flatten(p) for rule in getattr(single, kind, ())))


def _flatten(p: Pass) -> Iterator[Pass]:
    if isinstance(p, Pipeline | Fixpoint):
        for inner in p.passes:
            yield from _flatten(inner)
    else:
        yield p


def near_misses(graph: Graph, rules: Iterable[Rule]) -> list[NearMiss]:
    """Where ``rules`` nearly match ``graph`` as it is now, closest first."""
    found = []
    for rule, anchor, (reached, reason, node) in explain_rules(graph, rules):
        size = min((_size(root) for root in rule.roots), default=0) if isinstance(rule, PatternRule) else 0
        found.append(NearMiss(rule.name, anchor, reached, size, reason, node))
    return sorted(found, key=lambda miss: (not miss.is_close, -miss.reached / max(miss.size, miss.reached)))


def _size(pattern: object) -> int:
    """The number of nodes of the smallest alternative."""
    if isinstance(pattern, Operation):
        return 1 + sum(_size(o) for o in pattern.operands)
    if isinstance(pattern, Either):
        return min(_size(case) for case in pattern.cases.values())
    return 0


def grouped(misses: Iterable[NearMiss]) -> list[tuple[NearMiss, int]]:
    """The misses that differ in rule, reason or distance, each with how often it occurs."""
    counts: Counter[tuple[str, str, int]] = Counter()
    first: dict[tuple[str, str, int], NearMiss] = {}
    for miss in misses:
        key = (miss.rule, miss.reason, miss.reached)
        counts[key] += 1
        first.setdefault(key, miss)
    return [(first[key], count) for key, count in counts.items()]
