"""From the canonical opset to what a runtime reads: choosing the version to state, and lowering the nodes beyond it.

The version is the one that the model was imported in, if all nodes mean the same there and run, none of them slower
than in another; otherwise another. A node for which there is none is replaced by the body of the function that defines
its operator in the standard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from ..ir.edit import set_attr
from ..ir.graph import Graph, Node
from ..ir.opsets import OLDEST, least_ir_version
from ..ir.schema import canonical_opset
from .base import LoweringError, Problem
from .functions import decompose
from .revisions import kind_of, oldest_opset, revision_at, revisions

__all__ = ["CanonicalTarget", "Stamp", "Support", "Target", "legalize"]

MAX_DEPTH = 8  # of functions within functions


class Support(IntEnum):
    """How well a runtime implements a node."""

    NONE = 0
    PERHAPS = 1  # it has an implementation, though for other types
    FULL = 2


class Target(Protocol):
    """What a runtime reads; ``name`` is for messages."""

    name: str

    @property
    def opset(self) -> int:
        """The newest version of the standard operators."""
        ...

    @property
    def ir_version(self) -> int:
        """The newest version of the file format."""
        ...

    def since(self, op: str, opset: int) -> int:
        """The version of its definition of a standard operator in models of version ``opset``; 0 if it has none."""
        ...

    def support(self, node: Node, since: int, opset: int) -> Support:
        """How it implements that definition of the operator of ``node`` (both 0: of another operator set)."""
        ...

    def is_slow(self, op: str, since: int) -> bool:
        """Whether it runs that definition of a standard operator many times slower than an older one."""
        ...


class CanonicalTarget:
    """A target that reads the newest version of the operators.

    Args:
        name: for messages.
        implements: whether it implements a node.
    """

    ir_version = 1 << 30

    def __init__(self, name: str, implements: Callable[[Node], bool]):
        self.name = name
        self._implements = implements

    @property
    def opset(self) -> int:
        """The newest version of the standard operators."""
        return canonical_opset()

    def since(self, op: str, opset: int) -> int:
        """The version of the definition of ``op`` in version ``opset``."""
        revision = revision_at(op, opset)
        return 0 if revision is None else revision.since

    def support(self, node: Node, since: int, opset: int) -> Support:
        """Whether it has an implementation."""
        return Support.FULL if self._implements(node) else Support.NONE

    def is_slow(self, op: str, since: int) -> bool:
        """No."""
        return False


class Stamp(NamedTuple):
    """The versions to state in a model."""

    opset: int
    ir_version: int


def legalize(graph: Graph, target: Target) -> Stamp:
    """Rewrite ``graph`` in place into what ``target`` reads; the result still is in canonical form.

    Returns:
        the versions to state in the model.

    Raises:
        LoweringError: with every node for which there is no way.
    """
    imported = int(graph.info.get("imported_opset") or graph.opsets.get("") or target.opset)
    task = _Legalization(target, max(OLDEST, min(imported, target.opset)), _own_functions(graph))
    for nested in list(graph.walk_graphs()):
        if nested.root is graph:  # not that of a node which its function body has replaced
            for node in list(nested.nodes):
                task.reach(node)
    opset = task.choose()
    if task.problems:
        raise LoweringError(target.name, task.problems)
    task.drop_defaults(opset)
    return Stamp(opset, _ir_version(graph, opset, target))


_Rating = tuple[int, int, int, bool, int, int]  # kinds without support, with doubtful, slow ones; …, version


class _Kind:
    """Nodes that are alike: one of them, all of them, and the oldest version for them, exact above the wished one."""

    __slots__ = ("node", "nodes", "oldest", "runs")

    def __init__(self, node: Node):
        self.node = node
        self.nodes: list[Node] = []
        self.oldest = 0
        self.runs = False


class _Legalization:
    """One run of `legalize`.

    Attributes:
        kinds: the standard nodes, sorted.
        problems: the nodes for which there is no way.
        bodies: of functions.
    """

    def __init__(self, target: Target, wished: int, defined: frozenset[str]):
        self.target = target
        self.wished = wished
        self.defined = defined  # operators that the model itself defines
        self.kinds: dict[tuple[object, ...], _Kind] = {}
        self.problems: list[Problem] = []
        self.bodies: dict[Any, Graph | None] = {}

    def reach(self, node: Node, depth: int = 0) -> None:
        """Sort ``node`` in, or the nodes of the function body that takes its place."""
        oldest = 0
        if "." not in node.op:
            kind = self.kind(node)
            if kind.runs:
                kind.nodes.append(node)
                return
            oldest = kind.oldest
        elif node.op in self.defined or self.target.support(node, 0, 0):
            return
        body = decompose(node, self.bodies) if depth < MAX_DEPTH else None
        if body is None:
            self.problems.append(Problem(node, self.reason(node, oldest)))
            return
        for new in body:
            for inner in (new, *(n for g in new.graphs for n in g.walk())):
                self.reach(inner, depth + 1)

    def kind(self, node: Node) -> _Kind:
        """The kind of ``node``."""
        key = kind_of(node)
        kind = self.kinds.get(key)
        if kind is None:
            kind = self.kinds[key] = _Kind(node)
            kind.oldest = oldest_opset(node, self.wished)
            kind.runs = self.runs_somewhere(kind)
        return kind

    def reason(self, node: Node, oldest: int) -> str:
        """Why there is no way for ``node``."""
        if "." not in node.op and not revisions(node.op):
            return "no such operator"
        if oldest > self.target.opset:
            return f"needs opset {oldest}; the newest that {self.target.name} reads is {self.target.opset}"
        return "not implemented"

    def runs_somewhere(self, kind: _Kind) -> bool:
        """Whether nodes of ``kind`` run in some version, preferably not older than the wished one."""
        if any(self.support(kind, v) for v in range(kind.oldest, self.target.opset + 1)):
            return True
        if kind.oldest > self.wished:
            return False
        kind.oldest = oldest_opset(kind.node)
        return any(self.support(kind, v) for v in range(kind.oldest, self.wished))

    def support(self, kind: _Kind, opset: int) -> Support:
        """How nodes of ``kind`` run in a model of version ``opset``."""
        op = kind.node.op
        since = self.target.since(op, opset)
        least = revision_at(op, kind.oldest)
        if opset < kind.oldest or least is None or since < least.since:
            return Support.NONE
        return self.target.support(kind.node, since, opset)

    def choose(self) -> int:
        """The version to state: where most nodes run, and then as near to the wished one as possible, or newer."""
        kinds = [k for k in self.kinds.values() if k.nodes]
        best = self.best(kinds, max([self.wished, *(k.oldest for k in kinds)]))
        if best is None or best[:3] != (0, 0, 0):  # neither the wished version nor a newer one suits all nodes
            for kind in kinds:
                kind.oldest = oldest_opset(kind.node)
            best = self.best(kinds, max([OLDEST, *(k.oldest for k in kinds)]))
        if best is None:
            return self.target.opset
        opset = best[-1]
        reason = f"not implemented in opset {opset}, which other nodes need"
        self.problems.extend(Problem(n, reason) for k in kinds if not self.support(k, opset) for n in k.nodes)
        return opset

    def best(self, kinds: Iterable[_Kind], lowest: int) -> _Rating | None:
        """The best version from ``lowest`` on."""

        def rating(version: int) -> _Rating:
            found = [self.support(k, version) for k in kinds]
            slow = sum(self.target.is_slow(k.node.op, self.target.since(k.node.op, version)) for k in kinds)
            older = version < self.wished
            none, perhaps = (found.count(support) for support in (Support.NONE, Support.PERHAPS))
            return none, perhaps, slow, older, abs(version - self.wished), version

        return min(map(rating, range(lowest, self.target.opset + 1)), default=None)

    def drop_defaults(self, opset: int) -> None:
        """Remove the attributes that version ``opset`` does not know: they state their defaults."""
        for kind in self.kinds.values():
            revision = revision_at(kind.node.op, self.target.since(kind.node.op, opset))
            unknown = [n for n in kind.node.attrs if revision is not None and n not in revision.attrs]
            for node in kind.nodes if unknown else ():
                for name in unknown:
                    set_attr(node, name)


def _own_functions(graph: Graph) -> frozenset[str]:
    """The operators that the model defines as functions, where these were not inlined."""
    if not graph.info.get("functions"):
        return frozenset()
    from onnx import FunctionProto

    functions = map(FunctionProto.FromString, graph.info["functions"])
    return frozenset(f"{f.domain}.{f.name}" for f in functions)


def _ir_version(graph: Graph, opset: int, target: Target) -> int:
    needed = least_ir_version({**graph.opsets, "": opset})
    return min(max(needed, int(graph.info.get("ir_version", 0)), 8), target.ir_version)
