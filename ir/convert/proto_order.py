"""Topological order of the nodes of a GraphProto, by the names that they define and use."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from onnx import AttributeProto, GraphProto, NodeProto

from ..errors import ModelError
from .proto_check import shown

__all__ = ["Missing", "sorted_nodes"]


class Missing(Exception):
    """A name is used that nothing has defined so far."""

    def __init__(self, name: str):
        super().__init__(f"a node uses {shown(name)}")


def sorted_nodes(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """``nodes`` in topological order, otherwise in the order they have.

    Raises:
        ModelError: they form a cycle.
    """
    nodes = list(nodes)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits_for = [{makers[name] for name in _uses(node) if name in makers} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for i, needed in enumerate(waits_for):
        for j in needed:
            users[j].append(i)
    missing = [len(needed) for needed in waits_for]
    ready = [i for i, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for user in users[i]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    if len(order) < len(nodes):
        raise ModelError(f"the nodes form a cycle: {_cycle(nodes, waits_for, missing)}")
    return [nodes[i] for i in order]


def _cycle(nodes: list[NodeProto], waits_for: list[set[int]], missing: list[int]) -> str:
    """The nodes along one cycle, for a message."""
    i = next(i for i, count in enumerate(missing) if count)
    seen: dict[int, None] = {}
    while i not in seen:
        seen[i] = None
        i = min(j for j in waits_for[i] if missing[j])
    path = list(seen)
    path = [*path[path.index(i) :], i][::-1]
    labels = [shown(nodes[j].name or nodes[j].op_type) for j in path]
    return " -> ".join(labels if len(labels) <= 6 else [*labels[:3], "…", *labels[-2:]])


def _uses(node: NodeProto) -> set[str]:
    """The names that a node uses, in nested graphs too, as far as those do not define them."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names |= _free(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            for graph in attribute.graphs:
                names |= _free(graph)
    return names


def _free(graph: GraphProto) -> set[str]:
    defined = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    defined.update(t.values.name for t in graph.sparse_initializer)
    used = {v.name for v in graph.output}
    for node in graph.node:
        used |= _uses(node)
        defined.update(node.output)
    return used - defined
