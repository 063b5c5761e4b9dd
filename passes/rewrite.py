"""The rewrite driver: applies a set of rules to a graph and its nested graphs until none fires.

One worklist holds the nodes that may match: at first all, in topological order, then those whose neighbourhood an edit
has changed, as the edits' own events tell. For each node it removes what is dead, refines types, and tries the rules
indexed under the node's operator.
"""

from __future__ import annotations

import gc
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..ir import Graph, Node, TensorType, Value, edit
from ..ir.dims import Dim
from ..ir.edit import Event
from ..ir.infer.engine import IllTyped, infer_contents, infer_types, merge_content
from ..ir.types import compatible, merge
from .rules import Replacement, Rule

if TYPE_CHECKING:
    from .base import Context

__all__ = ["NotTerminating", "RuleIndex", "rewrite"]

_BROADCASTING = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Mod",
        "Min",
        "Max",
        "Sum",
        "Mean",
        "And",
        "Or",
        "Xor",
        "Where",
        "Expand",
        "PRelu",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "BitShift",
    ]
)
_TOO_LATE = "an operand is defined only after a use of what is replaced"
_REWRITES_PER_NODE = 40  # more than this on average means that rules undo each other


class NotTerminating(RuntimeError):
    """The rules keep firing."""


class RuleIndex:
    """Rules by the operator of their root, in the order given."""

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)
        self._generic = [(i, r) for i, r in enumerate(self.rules) if r.ops is None]
        by_op: dict[str, list[tuple[int, Rule]]] = defaultdict(list)
        for i, r in enumerate(self.rules):
            for name in r.ops or ():
                by_op[name].append((i, r))
        self._by_op = {
            name: tuple(r for _, r in sorted(entries + self._generic, key=lambda e: e[0]))
            for name, entries in by_op.items()
        }
        self._others = tuple(r for _, r in self._generic)

    def __getitem__(self, op: str) -> tuple[Rule, ...]:
        return self._by_op.get(op, self._others)


class Worklist:
    """The nodes to visit, and the listener that keeps it up to date."""

    def __init__(self, nodes: Iterable[Node]):
        self.queue: deque[Node] = deque()
        self.waiting: set[Node] = set()
        self.stale: set[Node] = set()  # nodes whose operands' types may have become more precise
        for node in nodes:
            self.push(node)

    def push(self, node: Node) -> None:
        """Visit ``node`` (again)."""
        if node not in self.waiting and node.graph is not None and node is not node.graph.ret:
            self.waiting.add(node)
            self.queue.append(node)

    def pop(self) -> Node:
        """The next node to visit."""
        node = self.queue.popleft()
        self.waiting.discard(node)
        return node

    def __call__(self, event: Event) -> None:
        """Take note of an edit."""
        node = event.node
        if event.kind == "type":
            assert event.value is not None
            for user in event.value.users:
                self.stale.add(user)
                self.push(user)
            return
        assert node is not None
        if event.kind == "operands":
            self.stale.add(node)
            self._release(event.old)
        elif event.kind == "erase":
            self._release(node.operands)
            for inner in _nested(node):
                self._release(inner.operands)
        elif event.kind == "insert":
            for inner in _nested(node):
                self.push(inner)
        self.push(node)
        if event.kind != "erase":
            for result in node.results:
                for user in result._users:
                    self.push(user)
        parent = node.graph.parent if node.graph is not None else None
        if parent is not None:  # a rule of its own may look at what is nested in it
            self.push(parent)

    def _release(self, operands: Iterable[Value | None]) -> None:
        """``operands`` lost a use: producers may be dead, and patterns that needed a result private may match now."""
        for operand in operands:
            if operand is None:
                continue
            if operand.producer is not None:
                self.push(operand.producer)
            if len(operand._users) == 1:
                for user in operand._users:
                    self.push(user)


def _nested(node: Node) -> Iterator[Node]:
    for graph in node.graphs:
        yield from graph.walk()


def _refine(node: Node) -> None:
    """Infer the types of ``node`` again after its operands became more precise."""
    try:
        types = infer_types(node)
    except IllTyped:
        return
    for result, new in zip(node.results, types, strict=False):
        merged = merge(result.type, new) if compatible(result.type, new) else result.type
        if merged is not result.type:
            edit.set_type(result, merged, result.content)
    for result, elements in zip(node.results, infer_contents(node), strict=False):
        better = None if elements is None else merge_content(result.content, elements)
        if better is not None:
            edit.set_type(result, result.type, better)


def _fits(old: Value, new: Value, root: Node) -> str | None:
    """Why ``new`` cannot stand for ``old``, or None.

    New nodes are trusted to have the same unknown dimensions; a value that was there before must provably have them, or
    ``x * ones`` would lose its broadcast.
    """
    if not compatible(old.type, new.type):
        return f"the right side is {new.type}, not {old.type}"
    if not _floats(new) and not edit.dominates(new, root):
        return f"%{new.name} is defined only after {root.op}"
    a, b = old.type, new.type
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return None
    broadcasts = root.op in _BROADCASTING
    if _floats(new):
        fits = not broadcasts or a.shape is None or b.shape is None or all(map(_may_equal, a.shape, b.shape))
    elif a.dtype != b.dtype and a.dtype:
        return f"the right side is {b}, not {a}"
    elif a.shape is None and b.shape is None:
        fits = not broadcasts or all(o is new or o is None or o.rank == 0 for o in root.operands)
    else:
        fits = a.shape == b.shape or (a.shape is None and not broadcasts) or _refines(a, b, root)
    return None if fits else f"the right side is {b}, which is not provably {a}"


def _may_equal(old: Dim, new: Dim) -> bool:
    """Whether ``new`` may be trusted to be ``old``, a dimension of a broadcast: equal, or both of unknown size."""
    return old == new or (
        not (isinstance(old, int) or isinstance(new, int)) and old.is_anonymous and new.mentions_anonymous
    )


def _refines(old: TensorType, new: TensorType, root: Node) -> bool:
    """Whether ``new`` only says more about a result that its operator cannot have broadcast."""
    if new.shape is None:
        return False
    return root.op not in _BROADCASTING and all(
        a == b or (not isinstance(a, int) and a.is_anonymous) for a, b in zip(old.shape or (), new.shape, strict=False)
    )


def _place(replacement: Replacement) -> Node | str:
    """The node before which the new nodes go, the first root behind all their operands; or why there is none.

    It is too late where what uses another root's results stands before it.
    """
    roots = replacement.roots
    new = edit.floating([v for values in replacement.values for v in values if v is not None])
    operands = {o for node in new for o in node.operands if o is not None and not _floats(o)}
    replaced = zip(
        (r for root in roots for r in root.results), (v for vs in replacement.values for v in vs), strict=True
    )
    if any(old in operands for old, value in replaced if value is not None and value is not old):
        return "the right side is computed from what it replaces"
    if len(roots) == 1:
        return roots[0]
    if any(root.graph is not roots[0].graph for root in roots):
        return "the roots are in different graphs"
    for place in sorted(roots, key=lambda root: root.order):
        if all(edit.dominates(o, place) for o in operands):
            users = (u for root in roots for r in root.results for u in r.users if u not in roots)
            return place if not any(_is_before(u, place) for u in users) else _TOO_LATE
    return _TOO_LATE


def _floats(value: Value) -> bool:
    return value.producer is not None and value.producer.graph is None


def _is_before(user: Node, place: Node) -> bool:
    """Whether ``user``, or the node in whose nested graph it is, stands before ``place``."""
    outer: Node | None = user
    while outer is not None and outer.graph is not place.graph:
        outer = outer.graph.parent if outer.graph is not None else None
    return outer is not None and edit.is_before(outer, place)


def apply(replacement: Replacement) -> list[Node] | str:
    """Put a replacement in place; returns the new nodes, or why it is not possible (and then nothing has changed)."""
    pairs: list[tuple[Value, Value]] = []
    for root, values in zip(replacement.roots, replacement.values, strict=True):
        for old, new in zip(root.results, values, strict=True):
            if new is None:
                if old._users:
                    return f"result {old.index} of {root.op} has uses but no replacement"
            elif new is not old:
                problem = _fits(old, new, root)
                if problem is not None:
                    return problem
                pairs.append((old, new))
    if not pairs:
        return "nothing changes"
    place = _place(replacement)
    if isinstance(place, str):
        return place
    root = replacement.roots[0]
    nodes = edit.insert_floating([new for _, new in pairs], place)
    for node in nodes:
        node.rules = (*root.rules, replacement.rule.name)
        if node.metadata is None:
            node.metadata = root.metadata
        if not node.name:
            node.name = root.name
    for old, new in pairs:
        edit.replace(old, new)
    edit.erase_dead(replacement.roots)
    return nodes


def rewrite(graph: Graph, rules: RuleIndex | Sequence[Rule], ctx: Context, seeds: Iterable[Node] | None = None) -> int:
    """Apply ``rules`` to ``graph`` and its nested graphs until none fires; dead nodes go on the way.

    Args:
        graph: a root or nested graph.
        rules: the rules, in the order in which they are tried.
        ctx: decides which rewrites may happen, and records them.
        seeds: where to start, if not everywhere: the nodes around which something has changed since the last time.

    Returns:
        The number of rewrites.

    Raises:
        NotTerminating: more than 40 rewrites per node on average.
    """
    index = rules if isinstance(rules, RuleIndex) else RuleIndex(rules)
    worklist = Worklist(graph.walk() if seeds is None else seeds)
    limit = 1000 + _REWRITES_PER_NODE * len(worklist.queue)
    count = 0
    listeners = graph.root.listeners
    listeners.append(worklist)
    collecting = gc.isenabled()
    gc.disable()  # it would walk the whole graph again and again, and finds nothing before the journal is gone
    try:
        while worklist.queue:
            node = worklist.pop()
            if node.graph is None or not _is_attached(node, graph):
                continue
            if edit.is_dead(node):
                edit.erase(node)
                continue
            if node in worklist.stale:
                worklist.stale.discard(node)
                _refine(node)
            for candidate in index[node.op]:
                if _apply_rule(candidate, node, ctx):
                    count += 1
                    if node.graph is not None:
                        worklist.push(node)
                    break
            if count > limit:
                raise NotTerminating(f"{count} rewrites; the last rule was {candidate.name}")
    finally:
        listeners.remove(worklist)
        if collecting:
            gc.enable()
    return count


def _is_attached(node: Node, graph: Graph) -> bool:
    """Whether ``node`` is still below ``graph``: its parent may have been erased."""
    place: Graph | None = node.graph
    while place is not None and place is not graph:
        place = place.parent.graph if place.parent is not None else None
    return place is graph


def _apply_rule(candidate: Rule, node: Node, ctx: Context) -> bool:
    replacement = candidate.attempt(node)
    if replacement is None:
        return False
    if not ctx.allows(replacement):
        return False
    outcome = apply(replacement)
    if isinstance(outcome, str):
        return False
    ctx.rewritten(replacement, outcome)
    return True


def explain_rules(graph: Graph, rules: Iterable[Rule]) -> list[tuple[Rule, Node, Any]]:
    """Every near miss: rule, root node, and ``(nodes matched, reason, node)`` of its furthest attempt."""
    from .pattern import Match

    misses = []
    index = RuleIndex(rules)
    for node in graph.walk():
        for candidate in index[node.op]:
            if candidate.ops is None:
                continue
            m = Match(explain=True)
            replacement = candidate.attempt(node, m)
            if replacement is None:
                reached = m.reached
            else:
                outcome = _why_not(replacement)
                reached = (max(1, len(m.nodes)), outcome, node) if outcome else (0, "", None)
            if reached[0] > 0 and reached[1]:
                misses.append((candidate, node, reached))
    return misses


def _why_not(replacement: Replacement) -> str | None:
    """Why `apply` would refuse, without applying."""
    for root, values in zip(replacement.roots, replacement.values, strict=True):
        for old, new in zip(root.results, values, strict=True):
            if new is not None and new is not old:
                problem = _fits(old, new, root)
                if problem is not None:
                    return problem
    place = _place(replacement)
    return place if isinstance(place, str) else None
