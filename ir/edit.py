"""Edits: the primitives through which every graph changes, and transactions over them.

`insert`, `erase`, `set_operand`/`set_operands`, `replace`, `set_attr` and `set_type` each change one thing and then
report one `Event` to the listeners of the root graph. An event knows its inverse, so a journal of events can be undone:
that is all that a `Transaction` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .graph import Graph, Node, Value
from .types import Type, compatible, merge

__all__ = [
    "EditError",
    "Event",
    "Listener",
    "Transaction",
    "dominates",
    "erase",
    "floating",
    "insert",
    "insert_floating",
    "is_before",
    "replace",
    "set_attr",
    "set_operand",
    "set_operands",
    "set_type",
    "transaction",
]

_GAP = 1 << 24  # distance between the order numbers of neighbours, so that insertions rarely renumber


class EditError(ValueError):
    """An edit that would break the graph."""


class Event:
    """One edit: ``kind`` (insert, erase, operands, attr, type), its ``node`` or ``value``, and the ``old`` state.

    ``key`` is the attribute's name for ``attr``, and the following node for ``insert`` and ``erase``.
    """

    __slots__ = ("key", "kind", "node", "old", "value")

    def __init__(self, kind: str, node: Node | None, key: Any = None, old: Any = None, value: Value | None = None):
        self.kind = kind
        self.node = node
        self.key = key
        self.old = old
        self.value = value

    def undo(self) -> None:
        """Take the edit back; everything after it must have been taken back before. That is an edit, too."""
        node = self.node
        match self.kind:
            case "insert":
                assert node is not None
                graph, following = node.graph, node.next
                _unlink(node)
                _emit(graph, Event("erase", node, following))
            case "erase":
                assert node is not None
                insert(node, self.key)
            case "operands":
                assert node is not None
                set_operands(node, self.old)
            case "attr":
                assert node is not None
                set_attr(node, self.key, self.old)
            case "type":
                assert self.value is not None
                set_type(self.value, *self.old)


Listener = Callable[[Event], None]
_ABSENT = object()


def _emit(graph: Graph | None, event: Event) -> None:
    while graph is not None:
        parent = graph.parent
        if parent is None or parent.graph is None:
            for listener in graph.listeners:
                listener(event)
            return
        graph = parent.graph


# the state changes behind the edits: each is the inverse of another


def _add_uses(node: Node) -> None:
    for operand in node.operands:
        if operand is not None:
            operand._users[node] = operand._users.get(node, 0) + 1
    for graph in node.graphs:
        for inner in graph.nodes:
            _add_uses(inner)
        _add_uses(graph.ret)


def _drop_uses(node: Node) -> None:
    for operand in node.operands:
        if operand is not None:
            operand._users.pop(node, None)
    for graph in node.graphs:
        for inner in graph.nodes:
            _drop_uses(inner)
        _drop_uses(graph.ret)


def _link(node: Node, following: Node) -> None:
    graph = following.graph
    assert graph is not None
    previous = following.prev
    node.prev, node.next, node.graph = previous, following, graph
    following.prev = node
    if previous is None:
        graph._first = node
    else:
        previous.next = node
    low = previous.order if previous is not None else 0
    if following is graph.ret:
        node.order = low + _GAP
        following.order = low + 2 * _GAP
    elif following.order - low > 1:
        node.order = (low + following.order) // 2
    else:
        for i, n in enumerate(graph.nodes, 1):
            n.order = i * _GAP
        graph.ret.order = (i + 1) * _GAP
    for operand in node.operands:
        if operand is not None:
            operand._users[node] = operand._users.get(node, 0) + 1
    if node.graphs:
        for nested in node.graphs:
            nested.parent = node
            for inner in nested.nodes:
                _drop_uses(inner)  # a nested graph may have been built before its node: count each use once
                _add_uses(inner)
            _drop_uses(nested.ret)
            _add_uses(nested.ret)


def _unlink(node: Node) -> None:
    graph, previous, following = node.graph, node.prev, node.next
    assert graph is not None and following is not None
    if previous is None:
        graph._first = following
    else:
        previous.next = following
    following.prev = previous
    node.graph = node.prev = node.next = None
    _drop_uses(node)


def _change_operands(node: Node, operands: tuple[Value | None, ...]) -> None:
    if node.graph is not None:
        for operand in node.operands:
            if operand is not None:
                operand._users.pop(node, None)
        for operand in operands:
            if operand is not None:
                operand._users[node] = operand._users.get(node, 0) + 1
    node.operands = operands


def _change_attr(node: Node, name: str, value: Any) -> None:
    for graph in _graphs_in(node.attrs.get(name)):
        _drop_uses_of_graph(graph)
    if value is _ABSENT:
        node.attrs.pop(name, None)
    else:
        node.attrs[name] = value
    added = _graphs_in(value)
    if node.graphs or added:
        node._adopt_graphs()
        if node.graph is not None:
            for graph in added:
                _drop_uses_of_graph(graph)
                for inner in graph.nodes:
                    _add_uses(inner)
                _add_uses(graph.ret)


def _graphs_in(value: Any) -> tuple[Graph, ...]:
    """The graphs that an attribute holds."""
    if isinstance(value, Graph):
        return (value,)
    return value if isinstance(value, tuple) and value and isinstance(value[0], Graph) else ()


def _drop_uses_of_graph(graph: Graph) -> None:
    for inner in graph.nodes:
        _drop_uses(inner)
    _drop_uses(graph.ret)


# the edits


def insert(node: Node, before: Node) -> None:
    """Put a floating ``node`` in front of ``before`` (the ``return`` node for the end).

    Raises:
        EditError: the node is in a graph already, or ``before`` is in none.
    """
    if node.graph is not None:
        raise EditError(f"{node.op} {node.name!r} is in a graph already")
    if before.graph is None:
        raise EditError(f"cannot insert before {before.op}: it is in no graph")
    _link(node, before)
    _emit(node.graph, Event("insert", node, before))


def erase(node: Node) -> None:
    """Take ``node`` out of its graph.

    Raises:
        EditError: a result is still used, or it is in no graph.
    """
    if node.graph is None or node.next is None:
        raise EditError(f"cannot erase {node.op} {node.name!r}: it is {'the return' if node.graph else 'in no graph'}")
    for result in node.results:
        if result._users:
            raise EditError(
                f"cannot erase {node.op} {node.name!r}: %{result.name} is used by {next(iter(result._users)).op}"
            )
    graph, following = node.graph, node.next
    _unlink(node)
    _emit(graph, Event("erase", node, following))


def is_dead(node: Node) -> bool:
    """Whether no result of ``node`` has a use (operators have no side effects)."""
    return all(not result._users for result in node.results)


def erase_dead(nodes: Iterable[Node]) -> None:
    """Erase those of ``nodes`` that are dead, and what was there for them alone."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.graph is not None and node is not node.graph.ret and is_dead(node):
            erase(node)
            stack += [o.producer for o in node.operands if o is not None and o.producer is not None]


def set_operands(node: Node, operands: Iterable[Value | None]) -> None:
    """Give ``node`` other operands."""
    old = node.operands
    _change_operands(node, tuple(operands))
    _emit(node.graph, Event("operands", node, None, old))


def set_operand(node: Node, index: int, value: Value | None) -> None:
    """Set operand ``index``; positions between the last operand and it become left-out optionals."""
    operands = list(node.operands) + [None] * (index + 1 - len(node.operands))
    operands[index] = value
    set_operands(node, operands)


def set_attr(node: Node, name: str, value: Any = _ABSENT) -> None:
    """Set attribute ``name``, or remove it if no value is given."""
    old = node.attrs.get(name, _ABSENT)
    _change_attr(node, name, value)
    _emit(node.graph, Event("attr", node, name, old))


def set_type(value: Value, type: Type, content: tuple[Any, ...] | None = None) -> None:
    """State a (more precise) type, and the content if it is known."""
    old = (value.type, value.content)
    value.type, value.content = type, content
    place = value.producer.graph if value.producer is not None else value.graph
    _emit(place, Event("type", value.producer, None, old, value))


def replace(old: Value, new: Value) -> None:
    """Let every user of ``old`` use ``new``. What either type states more precisely holds for ``new``.

    Raises:
        EditError: the types contradict each other, or ``new`` is computed from ``old`` directly.
    """
    if old is new:
        return
    if new.producer in old._users:
        raise EditError(f"cannot replace %{old.name} by what {new.producer} computes from it")
    if not compatible(old.type, new.type):
        raise EditError(f"cannot replace %{old.name}: {old.type} by %{new.name}: {new.type}")
    if new.const is None:
        merged = merge(new.type, old.type)
        if merged is not new.type:
            set_type(new, merged, new.content)
    if not new.name and new.const is None:
        new.name = old.name
    for user in tuple(old._users):
        set_operands(user, [new if operand is old else operand for operand in user.operands])


# floating nodes


def floating(values: Iterable[Value]) -> list[Node]:
    """The floating nodes that ``values`` depend on, operands before users."""
    found: dict[Node, None] = {}
    stack = [(v.producer, False) for v in values if v.producer is not None]
    while stack:
        node, done = stack.pop()
        if node.graph is not None or node in found:
            continue
        if done:
            found[node] = None
            continue
        stack.append((node, True))
        nested = [graph for outer in node.graphs for graph in outer.walk_graphs()]
        captured = (inner.operands for graph in nested for inner in (*graph.nodes, graph.ret))
        for operands in (node.operands, *captured):
            stack.extend(
                (o.producer, False)
                for o in operands
                if o is not None and o.producer is not None and o.producer.graph is None
            )
    return list(found)


def insert_floating(values: Iterable[Value], before: Node) -> list[Node]:
    """Insert the floating nodes that ``values`` depend on in front of ``before``; returns them."""
    nodes = floating(values)
    for node in nodes:
        insert(node, before)
    return nodes


# order


def is_before(a: Node, b: Node) -> bool:
    """Whether ``a`` stands before ``b`` in the same graph."""
    return a.graph is b.graph and a.order < b.order


def dominates(value: Value, node: Node) -> bool:
    """Whether ``value`` is available at ``node``: a constant, or defined earlier in its graph or one around it."""
    if value.const is not None:
        return True
    home = value.graph if value.producer is None else value.producer.graph
    if home is None:
        return False
    place: Node | None = node
    while place is not None and place.graph is not home:
        place = place.graph.parent if place.graph is not None else None
    if place is None:
        return False
    return value.producer is None or value.producer.order < place.order


# transactions


class Transaction:
    """A journal of the edits below ``graph``: `rollback` takes them back, last first."""

    def __init__(self, graph: Graph):
        self.graph = graph.root
        self.events: list[Event] = []

    def __enter__(self) -> Transaction:
        self.graph.listeners.append(self.events.append)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        if kind is not None:
            self.rollback()

    def close(self) -> None:
        """Stop listening; the edits so far stay undoable."""
        if self.events.append in self.graph.listeners:
            self.graph.listeners.remove(self.events.append)

    def rollback(self) -> None:
        """Take back every edit of the journal. For other listeners, transactions around this one too, that is edits."""
        for event in self.events[::-1]:
            event.undo()
        self.events.clear()


@contextmanager
def transaction(graph: Graph) -> Iterator[Transaction]:
    """Group edits: an exception inside takes all of them back and goes on; so does calling ``rollback()``."""
    with Transaction(graph) as journal:
        yield journal
