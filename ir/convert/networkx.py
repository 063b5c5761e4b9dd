"""``networkx.MultiDiGraph`` and `Graph`, both ways.

Nodes of the networkx graph are named by strings and have these attributes:

- ``kind``: ``input``, ``constant``, ``node``, ``output``, or, in a nested graph, ``outer`` for a value captured from
  around it (``source`` is then the name of the node there, ``result`` the number of its result).
- All: ``name``. Inputs, constants and outputs: ``type``. Inputs and outputs: ``index``. Constants: ``tensor``, shared.
- Nodes: ``op``, ``attrs`` (a nested graph is a ``MultiDiGraph``, too), ``operands`` (how many), ``types`` and ``names``
  of the results, ``overload``, ``origin``.

Edges run from producer to user, with ``result`` (the producer's), ``operand`` (the user's) and ``type``. What a nested
graph captures is an edge to the node that holds it, whose ``operand`` is None.

`from_networkx` reads the same attributes back, in any order of nodes; what is left out of doc strings, metadata and
``types`` is empty, or inferred. Importing this module needs the package ``networkx``.
"""

from __future__ import annotations

from typing import Any

from ..edit import insert
from ..errors import ModelError
from ..graph import Graph, GraphOutput, Node, Value
from ..infer import infer
from ..tensor import Tensor
from ..text import Names
from ..types import UNKNOWN
from .placeholders import missing

try:
    import networkx as nx
except ImportError as error:
    raise missing("networkx") from error

__all__ = ["from_networkx", "to_networkx"]

Place = tuple[str, int]  # a value: the networkx node that gives it, and the number of its result


def to_networkx(graph: Graph) -> nx.MultiDiGraph:
    """The networkx graph of ``graph``."""
    return _Writer(graph, Names(), {}).run()


def from_networkx(graph: nx.MultiDiGraph) -> Graph:
    """The graph of a networkx graph with the attributes that `to_networkx` gives, typed by inference.

    Raises:
        ModelError: an attribute or an operand is missing, or there is a cycle.
    """
    try:
        built = _read(graph, {})
    except KeyError as error:
        raise ModelError(f"a node or an edge has no {error}") from None
    except nx.NetworkXUnfeasible:
        raise ModelError("the nodes form a cycle") from None
    built.opsets = dict(graph.graph.get("opsets", {}))
    built.info = dict(graph.graph.get("info", {}))
    for node in built.nodes:
        infer(node, strict=False)
    return built


class _Writer:
    """The conversion of one graph.

    Args:
        graph: a root or nested graph.
        names: unique names of values.
        outer: where the values around it are, in the networkx graph of the node that holds it.
    """

    def __init__(self, graph: Graph, names: Names, outer: dict[Value, Place]):
        self.graph = graph
        self.names = names
        self.outer = outer
        self.places: dict[Value, Place] = {}
        self.result = nx.MultiDiGraph(name=graph.name, opsets=dict(graph.opsets), info=dict(graph.info))

    def run(self) -> nx.MultiDiGraph:
        """The networkx graph."""
        graph, names = self.graph, self.names
        outputs, named = names.enter(graph, nested=graph.parent is not None)
        for value in graph.inputs:
            extra = {} if value.default is None else {"default": value.default}
            key = self.add(f"input:{value.name}", "input", index=value.index, name=value.name, type=value.type, **extra)
            self.places[value] = key, 0
        for node in graph.nodes:
            self.node(node)
        for i, (value, info) in enumerate(zip(graph.outputs, graph.output_info, strict=True)):
            key = self.add(f"output:{info.name}", "output", index=i, name=info.name, type=info.type)
            self.edge(value, key, 0)
        if graph.parent is not None:
            names.leave(outputs, named)
        return self.result

    def add(self, key: str, kind: str, **attributes: Any) -> str:
        """A node, called ``key`` or nearly so."""
        if key in self.result:
            i = 1
            while f"{key}_{i}" in self.result:
                i += 1
            key = f"{key}_{i}"
        self.result.add_node(key, kind=kind, **attributes)
        return key

    def node(self, node: Node) -> None:
        """Add ``node`` with the edges to it."""
        captured = _captured(node)
        for value in captured:
            self.place(value)
        attrs = {}
        for name, value in node.attrs.items():
            if isinstance(value, Graph):
                attrs[name] = self.nested(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
                attrs[name] = tuple([self.nested(g) for g in value])
            else:
                attrs[name] = value
        key = self.add(
            self.names.plain(node.results[0]) if node.results else node.op,
            "node",
            op=node.op,
            name=node.name,
            attrs=attrs,
            operands=len(node.operands),
            types=tuple([r.type for r in node.results]),
            names=tuple([r.name for r in node.results]),
            overload=node.overload,
            origin=str(node.origin),
        )
        for i, operand in enumerate(node.operands):
            if operand is not None:
                self.edge(operand, key, i)
        for value in captured:
            self.edge(value, key, None)
        for result in node.results:
            self.places[result] = key, result.index

    def nested(self, graph: Graph) -> nx.MultiDiGraph:
        """The networkx graph of a graph nested in this one."""
        return _Writer(graph, self.names, self.places).run()

    def place(self, value: Value) -> Place:
        """Where ``value`` is in this networkx graph; constants and captured values come in when first used."""
        found = self.places.get(value)
        if found is None:
            if value.const is not None:
                key = self.add(
                    f"constant:{value.name}", "constant", name=value.name, type=value.type, tensor=value.const
                )
            else:
                source, result = self.outer[value]
                key = self.add(f"outer:{source}", "outer", name=value.name, source=source, result=result)
            found = self.places[value] = key, 0
        return found

    def edge(self, value: Value, user: str, operand: int | None) -> None:
        """An edge from the producer of ``value`` to ``user``."""
        key, result = self.place(value)
        self.result.add_edge(key, user, result=result, operand=operand, type=value.type)


def _captured(node: Node) -> list[Value]:
    """The values that the graphs nested in ``node`` use from around it, but for constants."""
    inside: set[Value] = set()
    used: dict[Value, None] = {}
    for graph in node.graphs:
        for nested in graph.walk_graphs():
            inside.update(nested.inputs)
            for inner in nested.nodes:
                inside.update(inner.results)
                used.update(dict.fromkeys(o for o in inner.operands if o is not None and o.const is None))
            used.update(dict.fromkeys(o for o in nested.outputs if o.const is None))
    return [value for value in used if value not in inside]


def _read(source: nx.MultiDiGraph, outer: dict[Place, Value]) -> Graph:
    """The graph of ``source``; ``outer`` are the values of the networkx graph around it."""
    graph = Graph(source.graph.get("name", ""))
    values: dict[Place, Value] = {}
    order = {key: i for i, key in enumerate(source)}
    by_kind: dict[str, list[str]] = {"input": [], "output": [], "constant": [], "outer": [], "node": []}
    for key in nx.lexicographical_topological_sort(source, key=order.__getitem__):
        kind = source.nodes[key]["kind"]
        if kind not in by_kind:
            raise ModelError(f"{key!r} is of kind {kind!r}, not one of {', '.join(by_kind)}")
        by_kind[kind].append(key)
    for key in sorted(by_kind["input"], key=lambda k: source.nodes[k]["index"]):
        data = source.nodes[key]
        value = values[key, 0] = graph.add_input(data.get("type", UNKNOWN), data["name"])
        value.default = data.get("default")
    for key in by_kind["constant"]:
        tensor: Tensor = source.nodes[key]["tensor"]
        values[key, 0] = Value(tensor.type, source.nodes[key].get("name", ""), const=tensor)
    for key in by_kind["outer"]:
        data = source.nodes[key]
        values[key, 0] = outer[data["source"], data["result"]]
    for key in by_kind["node"]:
        node = _read_node(source, key, values)
        insert(node, graph.ret)
        for result in node.results:
            values[key, result.index] = result
    outputs = sorted(by_kind["output"], key=lambda k: source.nodes[k]["index"])
    returned = [_operands(source, key, 1, values)[0] for key in outputs]
    if None in returned:
        raise ModelError(f"output {outputs[returned.index(None)]!r} has no edge")
    info = [GraphOutput(source.nodes[key]["name"], source.nodes[key].get("type", UNKNOWN)) for key in outputs]
    graph.set_outputs([value for value in returned if value is not None], info)
    return graph


def _read_node(source: nx.MultiDiGraph, key: str, values: dict[Place, Value]) -> Node:
    data = source.nodes[key]
    attrs: dict[str, Any] = {}
    for name, value in data.get("attrs", {}).items():
        if isinstance(value, nx.MultiDiGraph):
            attrs[name] = _read(value, values)
        elif isinstance(value, tuple) and value and isinstance(value[0], nx.MultiDiGraph):
            attrs[name] = tuple([_read(g, values) for g in value])
        else:
            attrs[name] = value
    node = Node(data["op"], _operands(source, key, data.get("operands", 0), values), attrs, data.get("types", 1))
    node.name = data.get("name", "")
    node.overload = data.get("overload", "")
    for result, name in zip(node.results, data.get("names", ()), strict=False):
        result.name = name
    return node


def _operands(source: nx.MultiDiGraph, key: str, count: int, values: dict[Place, Value]) -> list[Value | None]:
    """The operands of ``key`` by its edges, at least ``count``."""
    found: dict[int, Value] = {}
    for producer, _, data in source.in_edges(key, data=True):
        operand = data["operand"]
        if operand is not None:
            if operand in found:
                raise ModelError(f"two edges to operand {operand} of {key!r}")
            found[operand] = values[producer, data["result"]]
    return [found.get(i) for i in range(max([count, *[i + 1 for i in found]]))]
