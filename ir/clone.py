"""Copies of nodes and graphs, and the inlining of nested graphs.

Tensors and types are immutable and shared; values, nodes and nested graphs are new. Copies are made in the order of the
original, so that a clone prints the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .edit import insert
from .graph import Graph, GraphOutput, Node, Value

__all__ = ["clone_graph", "clone_node", "inline_graph"]

Mapping = dict[Value, Value]


def clone_node(node: Node, mapping: Mapping) -> Node:
    """A floating copy of ``node``, nested graphs included.

    Args:
        node: any node but a ``return``.
        mapping: what to use instead of operands and captured values; those not in it stay. The results are added.
    """
    return _clone_node(node, mapping, None)


def clone_graph(graph: Graph, mapping: Mapping | None = None) -> Graph:
    """A copy of ``graph``, which belongs to no node.

    The copy of a root graph stands alone: its constants are new values of the same tensors. That of a nested graph uses
    the same captured values and constants, but for those in ``mapping``. Listeners are not copied.

    Args:
        graph: a root or a nested graph.
        mapping: what to use instead of values from outside. Copied values are added to it.
    """
    mapping = {} if mapping is None else mapping
    return _clone_graph(graph, mapping, {} if graph.parent is None else None)


def inline_graph(graph: Graph, inputs: Sequence[Value], before: Node) -> tuple[Value, ...]:
    """Copy the nodes of the nested ``graph`` in front of ``before``, by edits; ``graph`` stays as it is.

    Args:
        graph: a graph nested in a node of the graph of ``before`` (or of one around that).
        inputs: the values for its inputs.
        before: the node, in a graph, in front of which the copies go.

    Returns:
        the values that stand for what ``graph`` returns.

    Raises:
        ValueError: the number of inputs is wrong.
    """
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"{len(inputs)} values for the {len(graph.inputs)} inputs of {graph.name!r}")
    mapping = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        insert(_clone_node(node, mapping, None), before)
    return tuple([mapping.get(value, value) for value in graph.outputs])


def _clone_value(value: Value, copy: Value) -> Value:
    """Give ``copy`` what ``value`` states of itself."""
    copy.name = value.name
    copy.content = value.content
    copy.default = value.default
    if value.metadata:
        copy.metadata = dict(value.metadata)
    return copy


def _operands(operands: Iterable[Value | None], mapping: Mapping, constants: Mapping | None) -> list[Value | None]:
    found: list[Value | None] = []
    for value in operands:
        if value is not None:
            copy = mapping.get(value)
            if copy is None and constants is not None and value.const is not None:
                copy = constants.get(value)
                if copy is None:
                    copy = constants[value] = _clone_value(value, Value(value.type, const=value.const))
            value = value if copy is None else copy
        found.append(value)
    return found


def _clone_attr(value: Any, mapping: Mapping, constants: Mapping | None) -> Any:
    if isinstance(value, Graph):
        return _clone_graph(value, mapping, constants)
    if isinstance(value, tuple) and value and isinstance(value[0], Graph):
        return tuple([_clone_graph(g, mapping, constants) for g in value])
    return value


def _clone_node(node: Node, mapping: Mapping, constants: Mapping | None) -> Node:
    attrs = node.attrs
    if node.graphs:
        attrs = {name: _clone_attr(value, mapping, constants) for name, value in attrs.items()}
    else:
        attrs = dict(attrs)
    operands = _operands(node.operands, mapping, constants)
    copy = Node(node.op, operands, attrs, [r.type for r in node.results], name=node.name, doc=node.doc)
    copy.overload = node.overload
    copy.rules = node.rules
    if node.metadata:
        copy.metadata = dict(node.metadata)
    for old, new in zip(node.results, copy.results, strict=True):
        mapping[old] = _clone_value(old, new)
    return copy


def _clone_graph(graph: Graph, mapping: Mapping, constants: Mapping | None) -> Graph:
    copy = Graph(graph.name, opsets=graph.opsets)
    copy.doc = graph.doc
    copy.metadata = dict(graph.metadata)
    copy.info = dict(graph.info)
    for value in graph.inputs:
        mapping[value] = _clone_value(value, copy.add_input(value.type, value.name))
    for node in graph.nodes:
        insert(_clone_node(node, mapping, constants), copy.ret)
    info = [GraphOutput(o.name, o.type, o.doc, dict(o.metadata) if o.metadata else None) for o in graph.output_info]
    copy.set_outputs([v for v in _operands(graph.outputs, mapping, constants) if v is not None], info)
    return copy
