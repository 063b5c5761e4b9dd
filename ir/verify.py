"""Verification: whether a graph keeps the invariants that everything else relies on.

`verify` checks the structure (lists, use lists, dominance, interface) in one walk, then, unless told otherwise, every
node against the definition of its operator and the types that inference gives.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from .graph import Graph, Node, Value
from .infer import IllTyped
from .schema import canonical_opset, is_current
from .tensor import Tensor
from .text import Names, node_text
from .types import SequenceType, TensorType, compatible

__all__ = ["VerifyError", "verify"]

LIMIT = 20  # problems after which the search ends
_CONTEXT = 2  # nodes shown before and after the one with a problem

# ONNX attribute types by number, as nodes hold their values
_SCALARS: dict[int, type | tuple[type, ...]] = {
    1: float, 2: int, 3: (str, bytes), 4: Tensor, 5: Graph, 11: bytes, 13: (TensorType, SequenceType),
}  # fmt: skip
_ELEMENTS: dict[int, type | tuple[type, ...]] = {
    6: (float, int), 7: int, 8: (str, bytes), 9: Tensor, 10: Graph, 12: bytes, 14: (TensorType, SequenceType),
}  # fmt: skip
_KINDS = (
    "", "float", "int", "string", "tensor", "graph", "floats", "ints", "strings", "tensors", "graphs", "sparse_tensor",
    "sparse_tensors", "type", "types",
)  # fmt: skip


class VerifyError(ValueError):
    """A graph is broken. The message shows the first problem in its place, then the others in a line each.

    Attributes:
        problems: what is wrong, one line each.
        node: the node with the first problem, or None where it is none's.
    """

    def __init__(self, message: str, problems: list[str], node: Node | None):
        super().__init__(message)
        self.problems = problems
        self.node = node


def verify(graph: Graph, *, types: bool = True) -> None:
    """Check ``graph``, with everything around it and nested in it.

    Args:
        graph: the graph; of a nested one, the root is checked.
        types: also check every node against its operator's definition and against inference; else only the structure.

    Raises:
        VerifyError: it is broken.
    """
    root = graph.root
    search = _Search(root)
    try:
        search.graph(root, None)
        if not search.cut:
            search.uses()
        if types and not search.problems:
            for node in root.walk():
                search.node_types(node)
    except _Enough:
        pass
    if search.problems:
        raise _error(search.problems, root)


class _Problem(NamedTuple):
    message: str
    node: Node | None
    graph: Graph


class _Enough(Exception):
    """The limit of problems is reached."""


class _Search:
    """One verification of ``root``: the problems found, and what the walk has seen."""

    def __init__(self, root: Graph):
        self.root = root
        self.problems: list[_Problem] = []
        self.available: set[Value] = set()  # at the place where the walk is
        self.nodes: set[Node] = set()  # all seen, return nodes included
        self.users: dict[Value, int] = {}  # how many distinct nodes use a value
        self.cut = False  # a list of nodes is broken, so that not all were seen

    def report(self, message: str, node: Node | None, graph: Graph) -> None:
        """Note a problem."""
        self.problems.append(_Problem(message, node, graph))
        if len(self.problems) >= LIMIT:
            raise _Enough

    # structure

    def graph(self, graph: Graph, parent: Node | None) -> None:
        """Check ``graph`` and what is nested in it, at the place where its values become available."""
        if parent is not None and graph.parent is not parent:
            self.report(f"the parent of nested graph {graph.name!r} is not the node that holds it", parent, graph)
        self.interface(graph, root=parent is None)
        local: list[Value] = list(graph.inputs)
        self.available.update(local)
        self.users.update(dict.fromkeys(local, 0))
        previous: Node | None = None
        order = 0
        node, ret = graph._first, graph.ret
        while True:
            if node in self.nodes:
                self.cut = True
                self.report("the list of nodes comes back to it", node, graph)
                break
            self.nodes.add(node)
            if node.graph is not graph or node.prev is not previous or node.order <= order:
                self.link(node, previous, order, graph)
            order = node.order
            self.operands(node, graph)
            for nested in node.graphs:
                self.graph(nested, node)
            if node is ret:
                break
            for i, result in enumerate(node.results):
                if result.producer is not node or result.index != i or result.const or result.graph is not None:
                    self.report(f"result {i}, %{result.name}, does not know that it is one", node, graph)
            local.extend(node.results)
            self.available.update(node.results)
            for result in node.results:
                self.users[result] = 0
            previous = node
            if node.next is None:
                self.cut = True
                self.report("the list of nodes ends before the return", node, graph)
                break
            node = node.next
        if ret.next is not None:
            self.report("a node follows the return", ret, graph)
        self.available.difference_update(local)

    def link(self, node: Node, previous: Node | None, order: int, graph: Graph) -> None:
        """Say what is wrong with the place of ``node`` in the list."""
        if node.graph is not graph:
            self.report("it is in the list of a graph that it does not belong to", node, graph)
        if node.prev is not previous:
            self.report("its link to the previous node is wrong", node, graph)
        if node.order <= order and (previous is not None or node is not graph.ret):
            self.report(f"its order number {node.order} is not above {order}", node, graph)

    def interface(self, graph: Graph, *, root: bool) -> None:
        """Check inputs and outputs."""
        names: set[str] = set()
        for i, value in enumerate(graph.inputs):
            if value.graph is not graph or value.index != i or value.producer is not None or value.const is not None:
                self.report(f"input {i}, %{value.name}, does not know that it is one", None, graph)
            if value in self.available:
                self.report(f"%{value.name} is an input twice", None, graph)
            if root and (not value.name or value.name in names):
                self.report(_unnamed("input", i, value.name), None, graph)
            names.add(value.name)
            if value.default is not None and not compatible(value.default.type, value.type):
                self.report(f"input %{value.name} is {value.type}, its default {value.default.type}", None, graph)
        outputs: tuple[Value | None, ...] = graph.ret.operands
        if len(outputs) != len(graph.output_info):
            message = f"{len(outputs)} values are returned, {len(graph.output_info)} outputs described"
            self.report(message, graph.ret, graph)
        given: dict[str, Value | None] = {}
        for i, (output, info) in enumerate(zip(outputs, graph.output_info, strict=False)):
            if output is None:
                self.report(f"output {i} is left out", graph.ret, graph)
            elif not compatible(output.type, info.type):
                self.report(f"output {info.name!r} is declared {info.type} and returns {output.type}", graph.ret, graph)
            if root and (not info.name or given.setdefault(info.name, output) is not output):
                self.report(_unnamed("output", i, info.name), graph.ret, graph)

    def operands(self, node: Node, graph: Graph) -> None:
        """Check that the operands of ``node`` are available and know of the use."""
        operands = node.operands
        available, users = self.available, self.users
        for i, value in enumerate(operands):
            if value is None:
                continue
            if value not in available:
                if value.const is None:
                    self.report(f"operand {i}, %{value.name}, {self.why_unavailable(value, node)}", node, graph)
                    continue
                self.constant(value, node, graph)
            if i and value in operands[:i]:
                continue
            users[value] = users.get(value, 0) + 1
            known, count = value._users.get(node, 0), operands.count(value)
            if known != count:
                self.report(f"operand {i}, %{value.name}, counts {known} uses by it, not {count}", node, graph)

    def constant(self, value: Value, node: Node, graph: Graph) -> None:
        """Check a constant, where it is first used."""
        if value in self.users:
            return
        if value.producer is not None or value.graph is not None:
            self.report(f"constant %{value.name} is also a result or an input", node, graph)
        if value.const is not None and value.type != value.const.type:
            self.report(f"constant %{value.name} is {value.type}, its tensor {value.const.type}", node, graph)

    def why_unavailable(self, value: Value, node: Node) -> str:
        """What is wrong with the use of ``value`` at ``node``."""
        maker = value.producer
        home = value.graph if maker is None else maker.graph
        if home is None:
            return "belongs to no graph" if maker is None else f"is the result of a {maker.op} that is in no graph"
        if home.root is not self.root:
            return "belongs to another graph"
        if maker is node:
            return "is its own result"
        around: Graph | None = node.graph
        while around is not None and around is not home:
            around = around.parent.graph if around.parent is not None else None
        return "belongs to a nested graph" if around is None else "is used before it is defined"

    def uses(self) -> None:
        """Check that no value counts users that are none."""
        for value, count in self.users.items():
            if len(value._users) == count:
                continue
            stale = [n for n in value._users if n not in self.nodes or value not in n.operands]
            for node in stale:
                where = "" if node in self.nodes else " outside the graph"
                message = f"%{value.name} counts a use by {node.op}{where} that is none"
                self.report(message, value.producer, self.root if node.graph is None else node.graph)

    # types

    def node_types(self, node: Node) -> None:
        """Check ``node`` against the definition of its operator, and its types against inference."""
        from .infer.engine import infer_types

        graph = node.graph
        assert graph is not None
        version = self.root.opsets.get(node.domain) or (1 if node.domain else canonical_opset())
        definition = _definition(node.op, version)
        if definition is not None:
            for message in definition.problems(node):
                self.report(message, node, graph)
        for i, result in enumerate(node.results):
            size = result.type.size if isinstance(result.type, TensorType) else None
            if result.content is not None and isinstance(size, int) and len(result.content) != size:
                message = f"result {i} is {result.type}, but {len(result.content)} elements of it are known"
                self.report(message, node, graph)
        if not is_current(node.op, version):
            return  # inference knows the newest definition only
        try:
            types = infer_types(node)
        except IllTyped as error:
            self.report(str(error), node, graph)
            return
        for i, (result, type_) in enumerate(zip(node.results, types, strict=False)):
            if not compatible(result.type, type_):
                self.report(f"result {i} is stated as {result.type}, but follows to be {type_}", node, graph)


class _Definition(NamedTuple):
    """What the standard says of an operator."""

    op: str
    operands: tuple[int, int]
    required: tuple[int, ...]  # positions of operands that cannot be left out
    results: tuple[int, int]
    attributes: dict[str, int]
    needed: frozenset[str]

    def problems(self, node: Node) -> list[str]:
        """What ``node`` does otherwise."""
        found = []
        least, most = self.operands
        count = len(node.operands)
        if not least <= count <= most:
            found.append(f"{self.op} takes {_range(least, most)} operands, not {count}")
        left_out = [i for i in self.required if i < count and node.operands[i] is None]
        found += [f"operand {i} of {self.op} cannot be left out" for i in left_out]
        least, most = self.results
        if not least <= len(node.results) <= most:
            found.append(f"{self.op} has {_range(least, most)} results, not {len(node.results)}")
        for name, value in node.attrs.items():
            kind = self.attributes.get(name)
            if kind is None:
                found.append(f"{self.op} has no attribute {name!r}")
            elif not _fits(value, kind):
                stated = f"{type(value).__name__} {value!r:.60}"
                found.append(f"attribute {name!r} of {self.op} is {_KINDS[kind]}, not {stated}")
        found += [f"{self.op} needs attribute {name!r}" for name in sorted(self.needed - node.attrs.keys())]
        return found


def _unnamed(what: str, i: int, name: str) -> str:
    return f"two {what}s are called {name!r}" if name else f"{what} {i} has no name"


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} or more" if most > 1 << 20 else f"{least} to {most}"


def _fits(value: Any, kind: int) -> bool:
    """Whether an attribute of ONNX type ``kind`` can be ``value``."""
    if kind in _SCALARS:
        return isinstance(value, _SCALARS[kind])
    elements = _ELEMENTS.get(kind)
    return elements is None or (isinstance(value, tuple) and all(isinstance(e, elements) for e in value))


@cache
def _definition(op: str, version: int) -> _Definition | None:
    """The definition of ``op`` in ``version`` of its domain, or None if onnx has none."""
    import onnx.defs

    domain, _, name = op.rpartition(".")
    try:
        schema = onnx.defs.get_schema(name, version, domain)
    except onnx.defs.SchemaError:
        return None
    kinds: dict[str, Any] = {attribute: entry.type for attribute, entry in schema.attributes.items()}
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return _Definition(
        name,
        (schema.min_input, schema.max_input),
        tuple(i for i, formal in enumerate(schema.inputs) if formal.option == single),
        (schema.min_output, schema.max_output),
        {attribute: int(kind) for attribute, kind in kinds.items()},
        frozenset(attribute for attribute, entry in schema.attributes.items() if entry.required),
    )


# messages


def _error(problems: list[_Problem], root: Graph) -> VerifyError:
    """The error for ``problems``, of which there is at least one."""
    first = problems[0]
    lines = [first.message[:1].upper() + first.message[1:]]
    if first.node is not None:
        origin = str(first.node.origin)
        if origin:
            lines.append(f"  from {origin}")
        lines += _surroundings(first.node, root)
    more = [p.message + (f": {node_text(p.node)}" if p.node is not None else "") for p in problems[1:]]
    if more:
        lines.append(f"and {len(more)}{' or more' if len(problems) >= LIMIT else ''} other problems:")
        lines += [f"  {line}" for line in more]
    return VerifyError("\n".join(lines), [p.message for p in problems], first.node)


def _surroundings(node: Node, root: Graph) -> list[str]:
    """``node`` between its neighbours, as text; trusts no link further than that."""
    before: list[Node] = []
    after: list[Node] = []
    place = node
    while len(before) < _CONTEXT and place.prev is not None:
        place = place.prev
        before.append(place)
    place = node
    while len(after) < _CONTEXT and place.next is not None:
        place = place.next
        after.append(place)
    names = Names()
    for value in root.inputs:
        names[value]
    shown = [*reversed(before), node, *after]
    return [f"{'->' if n is node else '  '}  {node_text(n, names)}" for n in shown]
