"""How values flow into and out of nested graphs, and what they are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...ir.graph import Graph, Node, Value
from ...ir.infer import scalar_content
from .lowering import find

__all__ = ["deciding", "is_counted", "is_decided", "loop_around", "step_back"]

_STRUCTURAL = frozenset({"Shape", "Size", "SequenceLength", "OptionalHasElement"})  # known without their operands' data


def step_back(value: Value) -> Iterator[Value]:
    """The values from which the elements of ``value`` are computed, one step back."""
    node = value.producer
    if node is None:
        parent = None if value.graph is None else value.graph.parent
        found: Iterable[Value | None] = () if parent is None else _entering(parent, value.index)
    elif node.op in _STRUCTURAL:
        found = ()
    else:
        found = _leaving(node, value.index) if node.graphs else node.operands
    yield from (v for v in found if v is not None)


def loop_around(value: Value) -> Node | None:
    """The loop that has ``value`` as an input of its body or as a result, or None."""
    node = value.producer
    if node is None:
        return None if value.graph is None else value.graph.parent
    return node if node.graphs and node.op != "If" else None


def deciding(node: Node) -> list[Value]:
    """The values whose elements decide the shapes of the results of ``node``, where these depend on data."""
    found: Iterable[Value | None] = node.operands
    if node.op == "If":
        found = node.operands[:1]
    elif node.op == "Loop":
        found = (*node.operands[:2], node.attrs["body"].outputs[0])
    return [v for v in found if v is not None]


def is_decided(values: Iterable[Value]) -> bool:
    """Whether ``values`` follow from constants and from the shapes of the inputs of the model."""
    pending, seen = list(values), set[Value]()
    while pending:
        value = pending.pop()
        if value in seen or value.const is not None:
            continue
        seen.add(value)
        if value.producer is None and value.graph is not None and value.graph.parent is None:
            return False
        lowering = None if value.producer is None else find(value.producer.op)
        if lowering is not None and lowering.is_random:
            return False
        pending += step_back(value)
    return True


def is_counted(loop: Node) -> bool:
    """Whether only the first operand of a Loop ends it, once it has begun."""
    body: Graph = loop.attrs["body"]
    goes_on: Value | None = body.outputs[0]
    while goes_on is not None and goes_on.producer is not None and goes_on.producer.op == "Identity":
        goes_on = goes_on.producer.operand(0)
    return loop.operand(0) is not None and (goes_on is body.inputs[1] or scalar_content(goes_on) == 1)


def _entering(parent: Node, index: int) -> Iterable[Value | None]:
    """What decides input ``index`` of the body of ``parent``."""
    body = parent.graphs[0]
    if parent.op == "Loop":
        carried = (parent.operands[index], body.outputs[index - 1]) if index >= 2 else ()
        return (*deciding(parent), *carried)
    if parent.op == "Scan" and index < _states(parent):
        return parent.operands[index], body.outputs[index]
    return (parent.operands[index],)


def _leaving(node: Node, index: int) -> Iterable[Value | None]:
    """What decides result ``index`` of ``node``, which has nested graphs."""
    body = node.graphs[0]
    match node.op:
        case "If":
            return (node.operands[0], *(graph.outputs[index] for graph in node.graphs))
        case "Loop":
            initial = node.operands[index + 2 : index + 3]
            return (*deciding(node), *initial, body.outputs[index + 1])
        case "Scan":
            initial = node.operands[index : index + 1] if index < _states(node) else ()
            return (*initial, body.outputs[index])
        case _:
            return (*node.operands, *(v for graph in node.graphs for v in graph.outputs))


def _states(scan: Node) -> int:
    """The number of values that a Scan carries."""
    return len(scan.operands) - int(scan.attrs["num_scan_inputs"])
