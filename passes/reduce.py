"""Reduction: the smallest part of a graph that still shows a failure, by delta debugging over its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..ir import Graph, GraphOutput, Node, Value
from ..ir.clone import clone_node
from ..ir.edit import insert

__all__ = ["Part", "ancestors", "extract", "minimize", "neighbourhoods", "top_level"]

MAX_TESTS = 300


@dataclass(frozen=True)
class Part:
    """A part of a graph as a graph of its own.

    Attributes:
        graph: a copy of the nodes.
        inputs: the values of the whole graph that its inputs stand for, by name.
    """

    graph: Graph
    inputs: dict[str, Value]


def extract(nodes: Iterable[Node], outputs: Sequence[Value] | None = None) -> Part:
    """Copy ``nodes`` of one graph into a graph of their own.

    What they use from elsewhere becomes inputs; constants become constants of the same tensors.

    Args:
        nodes: in any order.
        outputs: what to return; by default every result that other nodes use, and those that nothing uses.
    """
    chosen = sorted(set(nodes), key=lambda node: node.order)
    inside = set(chosen)
    root = chosen[0].graph.root if chosen[0].graph is not None else Graph()
    graph = Graph(root.name, opsets=root.opsets)
    graph.info = {k: v for k, v in root.info.items() if k in ("imported_opset", "ir_version")}
    names: set[str] = set()
    mapping: dict[Value, Value] = {}
    inputs: dict[str, Value] = {}
    for value in dict.fromkeys(v for node in chosen for v in used_by(node)):
        if value.const is not None:
            mapping[value] = Value(value.type, value.name, const=value.const)  # of this graph alone
        elif value.producer not in inside:
            name = _unique(value.name or "input", names)
            mapping[value] = graph.add_input(value.type, name)
            inputs[name] = value
    for node in chosen:
        insert(clone_node(node, mapping), graph.ret)
    returned = list(outputs) if outputs is not None else list(_results(chosen, inside))
    info = [GraphOutput(_unique(v.name or "output", names), v.type) for v in returned]
    graph.set_outputs([mapping[v] for v in returned], info)
    return Part(graph, inputs)


def used_by(node: Node) -> Iterator[Value]:
    """The operands of ``node``, and what its nested graphs capture from around it."""
    yield from (v for v in node.operands if v is not None)
    for graph in node.graphs:
        own = set(graph.inputs)
        for inner in (*graph.nodes, graph.ret):
            for value in used_by(inner):
                if value not in own and (value.producer is None or value.producer.graph is not graph):
                    yield value


def _results(nodes: list[Node], inside: set[Node]) -> Iterator[Value]:
    for node in nodes:
        for value in node.results:
            users = value.users
            if (not users and not any(r.is_used for r in node.results)) or any(
                top_level(user, node.graph) not in inside for user in users
            ):
                yield value


def top_level(node: Node, graph: Graph | None = None) -> Node:
    """The node of ``graph`` (by default the root) in which ``node`` is nested, or ``node`` itself."""
    while node.graph is not None and node.graph is not graph and node.graph.parent is not None:
        node = node.graph.parent
    return node


def _unique(name: str, taken: set[str]) -> str:
    found, n = name, 1
    while found in taken:
        n += 1
        found = f"{name}_{n}"
    taken.add(found)
    return found


def ancestors(values: Iterable[Value]) -> list[Node]:
    """The nodes that ``values`` depend on."""
    found: dict[Node, None] = {}
    stack = [v.producer for v in values if v.producer is not None]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            stack += [v.producer for v in used_by(node) if v.producer is not None]
    return list(found)


def neighbourhoods(nodes: Iterable[Node]) -> Iterator[list[Node]]:
    """Ever larger surroundings of ``nodes`` among the nodes of their graph, up to all that is connected to them."""
    found = dict.fromkeys(top_level(n) for n in nodes)
    graph = next(iter(found)).graph
    while True:
        yield list(found)
        before = len(found)
        for node in list(found):
            near = [v.producer for v in used_by(node) if v.producer is not None]
            near += [top_level(user) for result in node.results for user in result.users]
            found.update((n, None) for n in near if graph is not None and n is not graph.ret)
        if len(found) == before:
            return


def minimize(nodes: Sequence[Node], fails: Callable[[Sequence[Node]], bool]) -> list[Node]:
    """A small subset of ``nodes`` for which ``fails`` still holds: no single node of it can go.

    ``fails(nodes)`` must hold. Ends early after 300 tests.
    """
    current = list(nodes)
    pieces = 2
    tests = 0
    while len(current) > 1 and tests < MAX_TESTS:
        size = -(-len(current) // pieces)
        for start in range(0, len(current), size):
            rest = current[:start] + current[start + size :]
            tests += 1
            if rest and fails(rest):
                current = rest
                pieces = max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(2 * pieces, len(current))
    return current
