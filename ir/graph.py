"""The graph: values, nodes and (nested) graphs in SSA form.

A `Graph` holds inputs, nodes in topological order, and one ``return`` node whose operands are its outputs, so that an
output is an ordinary use. A `Value` is the result of a node, an input of a graph, or a constant; constants belong to no
place and are part of the graph for as long as something uses them. Everything here reads; `planish.ir.edit` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .dims import Dim
from .tensor import Tensor, tensor
from .types import UNKNOWN, DType, TensorType, Type

if TYPE_CHECKING:
    from .edit import Listener

__all__ = ["Empty", "Graph", "GraphOutput", "Node", "Origin", "Value", "constant"]


class Value:
    """One value: ``type``, a ``name`` (interface for graph inputs, a printing hint elsewhere) and where it comes from.

    Attributes:
        producer: the node whose result it is, or None.
        index: its position among the producer's results, or among the graph's inputs.
        const: its tensor if it is a constant, else None.
        graph: the graph whose input it is, or None.
        default: the tensor that a graph input takes when the caller gives none, or None.
        content: for small integer tensors, the elements that shape inference knows, row-major; else None.
        metadata: ONNX metadata properties, or None.
    """

    __slots__ = (
        "__weakref__",
        "_users",
        "const",
        "content",
        "default",
        "graph",
        "index",
        "metadata",
        "name",
        "producer",
        "type",
    )

    def __init__(
        self,
        type: Type = UNKNOWN,
        name: str = "",
        *,
        producer: Node | None = None,
        index: int = 0,
        const: Tensor | None = None,
    ):
        self.type = type
        self.name = name
        self.producer = producer
        self.index = index
        self.const = const
        self.graph: Graph | None = None
        self.default: Tensor | None = None
        self.content: tuple[Dim, ...] | None = None
        self.metadata: dict[str, str] | None = None
        self._users: dict[Node, int] = {}

    def __neg__(self) -> Value:
        from .builder import op

        return op.Neg(self)

    @property
    def users(self) -> tuple[Node, ...]:
        """The nodes that use it, each once, in the order in which they came to."""
        return tuple(self._users)

    @property
    def uses(self) -> Iterator[tuple[Node, int]]:
        """Every use: the node and the operand position."""
        for node in tuple(self._users):
            for i, operand in enumerate(node.operands):
                if operand is self:
                    yield node, i

    @property
    def use_count(self) -> int:
        """The number of uses."""
        return sum(self._users.values())

    @property
    def is_used(self) -> bool:
        """Whether anything uses it; being returned is a use."""
        return bool(self._users)

    @property
    def is_constant(self) -> bool:
        """Whether it is a constant."""
        return self.const is not None

    @property
    def dtype(self) -> DType:
        """The element type; UNDEFINED where unknown or not a tensor."""
        return self.type.dtype if isinstance(self.type, TensorType) else DType.UNDEFINED

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """The shape, or None where the rank is unknown or it is not a tensor."""
        return self.type.shape if isinstance(self.type, TensorType) else None

    @property
    def rank(self) -> int | None:
        """The rank, or None where unknown."""
        return None if (shape := self.shape) is None else len(shape)

    def __repr__(self) -> str:
        kind = "constant " if self.const is not None else "input " if self.graph is not None else ""
        return f"<{kind}%{self.name or '_'}: {self.type}>"


def constant(value: object, dtype: DType | None = None, name: str = "") -> Value:
    """A constant value from a tensor, an array, a number or a list (see `planish.ir.tensor.tensor`)."""
    t = tensor(value, dtype, name)
    return Value(t.type, name or t.name, const=t)


class Empty(tuple):  # type: ignore[type-arg]  # noqa: SLOT001 - a subclass of tuple cannot have slots of its own
    """An empty list attribute that remembers its ONNX attribute type (``INTS`` …), which no element tells."""

    kind: int

    def __new__(cls, kind: int) -> Empty:
        self = super().__new__(cls)
        self.kind = kind
        return self


class Origin:
    """Where a node comes from.

    Attributes:
        source: ``file.py:line`` of the user's code, or "".
        module: path of the module in the source framework (``encoder.layer.0``), or "".
        nodes: names of the imported nodes it stands for.
        rules: the rewrites that made it, oldest first.
    """

    __slots__ = ("module", "nodes", "rules", "source")

    def __init__(self, source: str = "", module: str = "", nodes: tuple[str, ...] = (), rules: tuple[str, ...] = ()):
        self.source = source
        self.module = module
        self.nodes = nodes
        self.rules = rules

    def __str__(self) -> str:
        parts = [
            self.source,
            self.module,
            ",".join(n for n in self.nodes[:3] if n) + (" …" if len(self.nodes) > 3 else ""),
        ]
        text = " ".join(p for p in parts if p)
        return text + (f" (by {', '.join(self.rules)})" if self.rules else "")


class Node:
    """One operation: ``op`` applied to ``operands`` gives ``results``.

    ``op`` is the operator's name, with its domain in front unless that is the standard one (``Conv``,
    ``com.microsoft.FusedConv``). An operand is None where an optional one is left out. Attribute values are int, float,
    str, bytes, `Tensor`, `Graph`, a `Type`, or tuples of one of these. A node outside any graph floats: it is typed and
    can be an operand, but is no use of its operands until it is inserted.
    """

    __slots__ = (
        "__weakref__",
        "attrs",
        "doc",
        "graph",
        "graphs",
        "metadata",
        "name",
        "next",
        "op",
        "operands",
        "order",
        "overload",
        "prev",
        "results",
        "rules",
    )

    def __init__(
        self,
        op: str,
        operands: Iterable[Value | None] = (),
        attrs: dict[str, Any] | None = None,
        results: int | Iterable[Type] = 1,
        *,
        name: str = "",
        doc: str = "",
        metadata: dict[str, str] | None = None,
    ):
        self.op = op
        self.operands: tuple[Value | None, ...] = tuple(operands)
        self.attrs: dict[str, Any] = {} if attrs is None else attrs
        types = (UNKNOWN,) * results if isinstance(results, int) else results
        self.results: tuple[Value, ...] = tuple([Value(t, producer=self, index=i) for i, t in enumerate(types)])
        self.name = name
        self.doc = doc
        self.metadata = metadata
        self.overload = ""
        self.rules: tuple[str, ...] = ()
        self.graph: Graph | None = None
        self.prev: Node | None = None
        self.next: Node | None = None
        self.order = 0
        self.graphs: tuple[Graph, ...] = ()
        if self.attrs:
            self._adopt_graphs()

    def _adopt_graphs(self) -> None:
        graphs: list[Graph] = []
        for value in self.attrs.values():
            if isinstance(value, Graph):
                graphs.append(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
                graphs.extend(value)
        for graph in graphs:
            graph.parent = self
        self.graphs = tuple(graphs)

    @property
    def result(self) -> Value:
        """The only (or the first) result."""
        return self.results[0]

    @property
    def domain(self) -> str:
        """The operator's domain; "" is the standard."""
        return self.op.rpartition(".")[0]

    @property
    def op_type(self) -> str:
        """The operator's name without its domain."""
        return self.op.rpartition(".")[2]

    def operand(self, i: int) -> Value | None:
        """Operand ``i``, or None if it is left out or beyond the last one."""
        return self.operands[i] if i < len(self.operands) else None

    def given(self, i: int) -> Value:
        """Operand ``i``, which this operator cannot be without."""
        value = self.operands[i]
        assert value is not None, f"{self.op}: operand {i} is left out"
        return value

    @property
    def origin(self) -> Origin:
        """Where it comes from, read from its metadata."""
        from .origin import origin_of

        return origin_of(self)

    def __str__(self) -> str:
        from .text import node_text

        return node_text(self)

    def __repr__(self) -> str:
        return f"<{self}>"


class GraphOutput:
    """The interface of one graph output: its ``name``, declared ``type``, ``doc`` and ``metadata``."""

    __slots__ = ("doc", "metadata", "name", "type")

    def __init__(self, name: str, type: Type = UNKNOWN, doc: str = "", metadata: dict[str, str] | None = None):
        self.name = name
        self.type = type
        self.doc = doc
        self.metadata = metadata


class Graph:
    """Inputs, nodes in topological order, and the ``return`` node ``ret`` whose operands are the outputs.

    Attributes:
        inputs: the graph's input values.
        output_info: names and declared types of the outputs, one for each operand of ``ret``.
        opsets: version of every operator domain in use; the standard domain is "".
        parent: the node whose attribute this graph is, or None for the root.
        listeners: called with every edit below this graph (root only); see `planish.ir.edit`.
        info: what the model says of itself (producer, IR version, …), for the root.
    """

    __slots__ = (
        "__weakref__",
        "_first",
        "doc",
        "info",
        "inputs",
        "listeners",
        "metadata",
        "name",
        "opsets",
        "output_info",
        "parent",
        "ret",
    )

    def __init__(self, name: str = "", *, opsets: Mapping[str, int] | None = None):
        self.name = name
        self.doc = ""
        self.metadata: dict[str, str] = {}
        self.info: dict[str, Any] = {}
        self.opsets: dict[str, int] = dict(opsets or {})
        self.inputs: list[Value] = []
        self.output_info: list[GraphOutput] = []
        self.parent: Node | None = None
        self.listeners: list[Listener] = []
        self.ret = Node("return", results=0)
        self.ret.graph = self
        self._first: Node = self.ret

    # reading

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The returned values: the operands of ``ret``."""
        return self.ret.operands  # type: ignore[return-value]

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes in topological order, without ``ret`` and without nested ones; the current one may be erased."""
        node = self._first
        ret = self.ret
        while node is not ret:
            following = node.next
            yield node
            if node.graph is self:  # still here: what was inserted behind it comes next
                following = node.next
            assert following is not None
            node = following

    def walk(self) -> Iterator[Node]:
        """All nodes, nested ones after their parent, without the ``return`` nodes."""
        for node in self.nodes:
            yield node
            for graph in node.graphs:
                yield from graph.walk()

    def walk_graphs(self) -> Iterator[Graph]:
        """This graph and all nested ones."""
        yield self
        for node in self.nodes:
            for graph in node.graphs:
                yield from graph.walk_graphs()

    def __iter__(self) -> Iterator[Node]:
        return self.nodes

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes)

    def __bool__(self) -> bool:
        return True  # a graph without nodes is a graph

    @property
    def root(self) -> Graph:
        """The outermost graph around this one."""
        graph = self
        while graph.parent is not None and graph.parent.graph is not None:
            graph = graph.parent.graph
        return graph

    def constants(self) -> list[Value]:
        """The constants that are in use, here and in nested graphs, in the order of first use."""
        found: dict[Value, None] = {}
        for graph in self.walk_graphs():
            for node in graph.nodes:
                for operand in node.operands:
                    if operand is not None and operand.const is not None:
                        found[operand] = None
            for operand in graph.outputs:
                if operand.const is not None:
                    found[operand] = None
        return list(found)

    def add_input(self, type: Type, name: str) -> Value:
        """Append an input while building a graph."""
        value = Value(type, name, index=len(self.inputs))
        value.graph = self
        self.inputs.append(value)
        return value

    def set_outputs(self, values: Iterable[Value], info: Iterable[GraphOutput] | None = None) -> None:
        """Set what the graph returns while building it; later, outputs change as operands of ``ret``."""
        from .edit import set_operands

        set_operands(self.ret, tuple(values))
        self.output_info = list(info) if info is not None else [GraphOutput(v.name) for v in self.outputs]

    def __str__(self) -> str:
        from .text import graph_text

        return graph_text(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {len(self)} nodes>"
