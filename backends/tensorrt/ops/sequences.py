"""Sequences and optionals, of which TensorRT has none: they are resolved before anything else is lowered.

Exporters make a sequence to take its elements out again, at positions that are known. So each sequence is followed from
where it is made to where it is used, as a list of tensors, and an optional as what it holds. A Loop that carries one is
unrolled, and an If that gives one gives its elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ....ir import DType, Graph, Node, OptionalType, SequenceType, Value, constant, edit, op
from ....ir.builder import make_node
from ....ir.clone import clone_graph
from ....ir.dims import Dim
from ...base import Problem
from ..sizes import size_vector
from .control import copied, unrolled

__all__ = ["FORMS", "ROWS", "resolve"]

FORMS: dict[str, Any] = {}
ROWS: dict[str, Any] = {}

_INT64 = DType.INT64


@dataclass(frozen=True)
class _Parts:
    """The parts of ``x`` along ``axis``, of ``size`` elements but for the last, where their number is not known."""

    x: Value
    axis: int
    size: int

    def at(self, position: int) -> Value | None:
        """One of them, counted from the start."""
        if position < 0:
            return None
        bounds = (constant([n], _INT64) for n in (position * self.size, (position + 1) * self.size, self.axis))
        return op.Slice(self.x, *bounds)

    def count(self) -> Value:
        """How many there are."""
        size = op.Squeeze(size_vector(self.x, self.axis), constant([0], _INT64))
        last = constant(self.size - 1, _INT64)
        return op.Div(op.Add(size, last), constant(self.size, _INT64))


_Held = Value | list[Value] | _Parts | None  # None: an optional without an element


def resolve(graph: Graph) -> tuple[bool, list[Problem]]:
    """Rewrite ``graph`` in place so that it has no sequence and no optional, as far as they are known.

    Returns:
        whether anything has changed, and what is wrong with the inputs and outputs.
    """
    problems = list(_at_the_border(graph))
    task = _Resolution()
    task.graph(graph)
    edit.erase_dead(reversed(task.resolved))
    return bool(task.resolved), problems


def _at_the_border(graph: Graph) -> Iterator[Problem]:
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for i, value in enumerate(values):
            if _is_compound(value):
                name = value.name if kind == "input" else graph.output_info[i].name
                node = next(iter(value.users), graph.ret) if kind == "input" else value.producer or graph.ret
                yield Problem(node, f"the {kind} {name} is {value.type}, no tensor")
            elif kind == "input" and value.is_used and value.rank is None:
                yield Problem(value.users[0], f"the input {value.name} has any number of dimensions")


def _is_compound(value: Value | None) -> bool:
    return value is not None and isinstance(value.type, SequenceType | OptionalType)


def _known(value: Value | None) -> int | None:
    """The integer that a value is known to be."""
    if value is None:
        return None
    if value.const is not None and value.const.size == 1:
        return int(value.const.numpy().ravel()[0])
    content: Dim | None = value.content[0] if value.content and len(value.content) == 1 else None
    return content if isinstance(content, int) else None


class _Resolution:
    """One run of `resolve`.

    Attributes:
        held: what sequences and optionals hold, as far as it is known.
        resolved: the nodes that made or took them, which nothing needs any more.
    """

    def __init__(self) -> None:
        self.held: dict[Value, _Held] = {}
        self.resolved: list[Node] = []

    def graph(self, graph: Graph) -> None:
        """Resolve all nodes of a graph."""
        for node in list(graph.nodes):
            self.node(node)

    def node(self, node: Node) -> None:
        """Resolve one node, if it has to do with sequences or optionals."""
        if node.op in ("Loop", "If") and any(map(_is_compound, node.results)):
            self.loop(node) if node.op == "Loop" else self.branches(node)
            return
        if rule := getattr(self, f"_{node.op}", None):
            if not node.operands or self.knows(node.operands[0]):
                rule(node)
            return
        for nested in node.graphs:
            self.graph(nested)

    def knows(self, value: Value | None) -> bool:
        """Whether a value is a tensor, or known to hold something or nothing."""
        return not _is_compound(value) or value in self.held

    def put(self, node: Node, value: Value) -> None:
        """Let a tensor take the place of the result of ``node``."""
        edit.insert_floating([value], node)
        if value.producer is not None and value.producer.graph is node.graph and not value.producer.name:
            value.producer.name = node.name
        edit.replace(node.result, value)
        self.resolved.append(node)

    def hold(self, value: Value, what: _Held) -> None:
        """What a sequence or an optional holds."""
        assert value.producer is not None
        if isinstance(what, list):
            edit.insert_floating(what, value.producer)
        self.held[value] = what
        self.resolved.append(value.producer)

    def elements(self, value: Value | None) -> list[Value] | None:
        """The elements of a sequence."""
        found = self.held.get(value) if value is not None else None
        return found if isinstance(found, list) else None

    # what makes sequences

    def _SequenceEmpty(self, node: Node) -> None:
        self.hold(node.result, [])

    def _SequenceConstruct(self, node: Node) -> None:
        self.hold(node.result, [v for v in node.operands if v is not None])

    def _SplitToSequence(self, node: Node) -> None:
        if (parts := _split(node)) is not None:
            self.hold(node.result, parts)

    def _SequenceInsert(self, node: Node) -> None:
        elements, where = self.elements(node.operands[0]), _known(node.operand(2))
        if elements is None or (node.operand(2) is not None and where is None):
            return
        at = len(elements) if where is None else where + len(elements) * (where < 0)
        self.hold(node.result, [*elements[:at], node.given(1), *elements[at:]])

    def _SequenceErase(self, node: Node) -> None:
        elements, where = self.elements(node.operands[0]), _known(node.operand(1))
        if not elements or (node.operand(1) is not None and where is None):
            return
        at = (-1 if where is None else where) % len(elements)
        self.hold(node.result, elements[:at] + elements[at + 1 :])

    def _SequenceMap(self, node: Node) -> None:
        first = self.elements(node.operands[0])
        others = [self.elements(o) if _is_compound(o) else o for o in node.operands[1:]]
        if first is None or any(o is None for o in others):
            return
        made: list[list[Value]] = [[] for _ in node.results]
        for i, element in enumerate(first):
            inputs = [element, *(o[i] if isinstance(o, list) else o for o in others)]
            for part, value in zip(made, copied(node.attrs["body"], [v for v in inputs if v is not None]), strict=True):
                part.append(value)
        for result, part in zip(node.results, made, strict=True):
            self.hold(result, part)

    def _Identity(self, node: Node) -> None:
        if _is_compound(node.result):
            self.held[node.result] = self.held[node.given(0)]
            self.resolved.append(node)

    def _Optional(self, node: Node) -> None:
        x = node.operand(0)
        self.hold(node.result, self.held[x] if x is not None and _is_compound(x) else x)

    # what takes their elements

    def _SequenceAt(self, node: Node) -> None:
        found, at = self.held.get(node.given(0)), _known(node.operand(1))
        if at is None:
            return
        if isinstance(found, list) and -len(found) <= at < len(found):
            self.put(node, found[at])
        elif isinstance(found, _Parts) and (part := found.at(at)) is not None:
            self.put(node, part)

    def _SequenceLength(self, node: Node) -> None:
        found = self.held.get(node.given(0))
        if isinstance(found, list | _Parts):
            self.put(node, found.count() if isinstance(found, _Parts) else constant(len(found), _INT64))

    def _ConcatFromSequence(self, node: Node) -> None:
        found, axis, is_new = self.held.get(node.given(0)), node.attrs["axis"], node.attrs.get("new_axis", 0)
        if isinstance(found, _Parts) and not is_new and axis == found.axis:
            self.put(node, op.Identity(found.x))
        if isinstance(found, list) and found:
            parts = [op.Unsqueeze(v, constant([axis], _INT64)) for v in found] if is_new else found
            self.put(node, op.Concat(*parts, axis=axis))

    def _OptionalHasElement(self, node: Node) -> None:
        x = node.operand(0)
        is_full = x is not None and (not isinstance(x.type, OptionalType) or self.held[x] is not None)
        self.put(node, constant(is_full, DType.BOOL))

    def _OptionalGetElement(self, node: Node) -> None:
        x = node.given(0)
        found = self.held[x] if _is_compound(x) else x
        if isinstance(found, Value):
            self.put(node, op.Identity(found))
        elif found is not None:
            self.hold(node.result, found)

    # control flow

    def loop(self, node: Node) -> None:
        """Unroll a Loop that carries sequences."""
        values = unrolled(node)
        if values is None:
            return
        new = edit.insert_floating(values, node)
        for old, value in zip(node.results, values, strict=True):
            edit.replace(old, value)
        edit.erase(node)
        for inner in new:
            self.node(inner)

    def branches(self, node: Node) -> None:
        """Let an If give the elements of sequences that are of one length in both branches."""
        names = ("then_branch", "else_branch")
        for name in names:
            self.graph(node.attrs[name])
        both: list[tuple[list[Value], list[Value]]] = []
        for outputs in zip(*(node.attrs[name].outputs for name in names), strict=True):
            found = [self.elements(v) if _is_compound(v) else [v] for v in outputs]
            first, second = found
            if first is None or second is None or len(first) != len(second):
                return
            both.append((first, second))
        graphs: dict[str, Graph] = {}
        for i, name in enumerate(names):
            mapping: dict[Value, Value] = {}
            graphs[name] = clone_graph(node.attrs[name], mapping)
            graphs[name].set_outputs([mapping.get(v, v) for pair in both for v in pair[i]])
        made = make_node("If", node.operands, graphs, sum(len(pair[0]) for pair in both))
        edit.insert(made, node)
        left = list(made.results)
        for old, (elements, _) in zip(node.results, both, strict=True):
            mine, left = left[: len(elements)], left[len(elements) :]
            if _is_compound(old):
                self.held[old] = mine
            else:
                edit.replace(old, mine[0])
        self.resolved.append(node)


def _split(node: Node) -> list[Value] | _Parts | None:
    """The parts that a SplitToSequence makes."""
    x, sizes, axis = node.given(0), node.operand(1), node.attrs.get("axis", 0)
    if x.shape is None:
        return None
    axis %= len(x.shape)
    dim, is_kept = x.shape[axis], sizes is not None or node.attrs.get("keepdims", 1)
    if sizes is not None and sizes.rank == 1:
        count = sizes.shape[0] if sizes.shape is not None else None
        return _parts(x, sizes, axis, count) if isinstance(count, int) else None
    size = 1 if sizes is None else _known(sizes)
    if size is None or size < 1:
        return None
    if not isinstance(dim, int):
        return _Parts(x, axis, size) if is_kept else None
    parts = [size] * (dim // size) + ([dim % size] if dim % size else [])
    made = _parts(x, constant(parts, _INT64), axis, len(parts))
    return made if is_kept else [op.Squeeze(v, constant([axis], _INT64)) for v in made]


def _parts(x: Value, sizes: Value, axis: int, count: int) -> list[Value]:
    parts: Sequence[Value] | Value = op.Split(x, sizes, axis=axis, outputs=count) if count > 1 else x
    return [parts] if isinstance(parts, Value) else list(parts)
