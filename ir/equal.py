"""Equality of graphs up to the names of values: node by node, or as a dataflow.

Compared are: inputs and outputs with their names and types (of a nested graph: by position, without the names),
operators and their versions, attributes, operands, nested graphs with what they capture, and constants by type and
elements. Unknown sizes equal one another. Types of values inside, node names, doc strings, metadata and provenance are
not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from .graph import Graph, Node, Value
from .tensor import ArrayTensor, FileTensor, LazyTensor, Tensor
from .text import node_text, operator_sets
from .types import DType, OptionalType, SequenceType, TensorType, Type, merge

__all__ = ["difference", "equal", "isomorphic", "same_tensor"]


def equal(a: Graph, b: Graph, *, weights: bool = True) -> bool:
    """Whether ``a`` and ``b`` are the same, node by node in order.

    Args:
        a: a graph.
        b: the other graph.
        weights: compare the elements of constants; else only their types.
    """
    return difference(a, b, weights=weights) is None


def isomorphic(a: Graph, b: Graph, *, weights: bool = True) -> bool:
    """Whether ``a`` and ``b`` are the same but for the order of independent nodes.

    Nodes that compute the same from the same are taken for each other, but must be equally many.
    """
    return difference(a, b, weights=weights, ordered=False) is None


def difference(a: Graph, b: Graph, *, weights: bool = True, ordered: bool = True) -> str | None:
    """The first difference between ``a`` and ``b`` in a line, or None if they are equal.

    Args:
        a: a graph.
        b: the other graph.
        weights: compare the elements of constants; else only their types.
        ordered: compare node by node in order; else as in `isomorphic`.
    """
    opsets = operator_sets(a), operator_sets(b)
    if opsets[0] != opsets[1]:
        return f"operator sets: {_stated(opsets[0])} and {_stated(opsets[1])}"
    found = _interface(a, b, root=True)
    if found is None:
        found = _Ordered(weights).graphs(a, b) if ordered else _Unordered(weights).graphs(a, b)
    return found


def _stated(opsets: dict[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items())


# types and interfaces


def _type_key(type: Type) -> object:
    """What is compared of a type: all but the identity of unknown sizes."""
    if isinstance(type, TensorType):
        if type.shape is None:
            return type.dtype, None
        return type.dtype, tuple(
            [d if isinstance(d, int) else None if d.mentions_anonymous else str(d) for d in type.shape]
        )
    if isinstance(type, SequenceType):
        return isinstance(type, OptionalType), _type_key(type.element)
    return type


def _declared(graph: Graph) -> list[tuple[str, Type]]:
    pairs = zip(graph.outputs, graph.output_info, strict=False)
    return [(info.name, merge(info.type, value.type)) for value, info in pairs]


def _interface(a: Graph, b: Graph, *, root: bool) -> str | None:
    """A difference between the inputs and outputs."""
    for kind, ours, theirs in (
        ("input", [(v.name, v.type) for v in a.inputs], [(v.name, v.type) for v in b.inputs]),
        ("output", _declared(a), _declared(b)),
    ):
        if len(ours) != len(theirs):
            return f"{len(ours)} and {len(theirs)} {kind}s"
        for i, ((name, type_), (other, other_type)) in enumerate(zip(ours, theirs, strict=True)):
            if root and name != other:
                return f"{kind} {i} is called {name!r} and {other!r}"
            if (root or kind == "input") and _type_key(type_) != _type_key(other_type):
                return f"{kind} {name!r} is {type_} and {other_type}"
    for x, y in zip(a.inputs, b.inputs, strict=True):
        if (x.default is None) != (y.default is None) or (
            x.default is not None and y.default is not None and not same_tensor(x.default, y.default)
        ):
            return f"the defaults of input {x.name!r} differ"
    return None


# tensors


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same type and bits.

    Holds a chunk of each at a time. Tensors in the same place are the same without being read.

    Raises:
        TensorError: the elements cannot be had.
    """
    if a is b:
        return True
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    match a, b:
        case ArrayTensor(array=x), ArrayTensor(array=y) if x is y or _same_view(x, y):
            return True
        case FileTensor(), FileTensor() if a.file is b.file and a.offset == b.offset:
            return True
        case LazyTensor(), LazyTensor() if a.compute is b.compute and a.inputs == b.inputs:
            return True
    if a.dtype is DType.STRING:
        return all(_encoded(x) == _encoded(y) for x, y in zip(a.numpy().flat, b.numpy().flat, strict=True))
    return a.sample() == b.sample() and _same_bytes(a.chunks(), b.chunks())


def _same_view(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    ours, theirs = a.__array_interface__, b.__array_interface__
    return bool(ours["data"] == theirs["data"]) and a.strides == b.strides and a.dtype == b.dtype


def _encoded(text: object) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


def _same_bytes(a: Iterator[memoryview], b: Iterator[memoryview]) -> bool:
    """Whether two streams are the same, however they are cut."""
    x = y = memoryview(b"")
    while True:
        x = x or next(a, x)
        y = y or next(b, y)
        n = min(len(x), len(y))
        if not n:
            return len(x) == len(y)
        if not np.array_equal(np.frombuffer(x[:n], np.uint8), np.frombuffer(y[:n], np.uint8)):
            return False
        x, y = x[n:], y[n:]


class _Tensors:
    """Numbers for tensors, the same for the same contents."""

    def __init__(self, weights: bool):
        self.weights = weights
        self.known: dict[Tensor, int] = {}
        self.buckets: dict[object, list[Tensor]] = {}

    def number(self, tensor: Tensor) -> int:
        """The number of ``tensor``."""
        found = self.known.get(tensor)
        if found is not None:
            return found
        key: tuple[object, ...] = (tensor.dtype, tensor.shape)
        if self.weights and tensor.dtype is not DType.STRING:
            key += (tensor.sample(),)
        bucket = self.buckets.setdefault(key, [])
        for other in bucket:
            if not self.weights or same_tensor(tensor, other):
                self.known[tensor] = self.known[other]
                break
        else:
            bucket.append(tensor)
            self.known[tensor] = len(self.known)
        return self.known[tensor]


# attributes


def _plain_key(value: Any) -> object:
    """A key that is the same for the same attribute value, for all but graphs and tensors."""
    if isinstance(value, bool | int | np.integer):
        return "int", int(value)
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            return "float", np.float32(value).tobytes()  # what ONNX keeps of it
    if isinstance(value, str):
        return "string", value.encode()
    if isinstance(value, bytes):
        return "string", bytes(value)
    if isinstance(value, tuple):
        if any(isinstance(e, float) for e in value):
            value = tuple(float(e) for e in value)
        return ("list", tuple(_plain_key(e) for e in value)) if value else ("list", getattr(value, "kind", 0))
    return "type", _type_key(value)


def _parts(value: Any, kind: type) -> tuple[Any, ...] | None:
    """``value`` as a tuple if it is of ``kind``, or a tuple of such; else None."""
    if isinstance(value, kind):
        return (value,)
    return value if isinstance(value, tuple) and value and isinstance(value[0], kind) else None


# node by node


class _Ordered:
    """One comparison node by node: what the values of the first graph correspond to."""

    def __init__(self, weights: bool):
        self.tensors = _Tensors(weights)
        self.pairs: dict[Value, Value] = {}

    def graphs(self, a: Graph, b: Graph) -> str | None:
        """The first difference between the contents of two graphs of equal interface."""
        self.pairs.update(zip(a.inputs, b.inputs, strict=True))
        ours, theirs = a.nodes, b.nodes
        for i, (x, y) in enumerate(zip(ours, theirs, strict=False)):
            found = self.nodes(x, y)
            if found is not None:
                return f"node {i}, {node_text(x)} and {node_text(y)}: {found}"
        count = len(a), len(b)
        if count[0] != count[1]:
            return f"{count[0]} and {count[1]} nodes"
        for i, (value, other) in enumerate(zip(a.outputs, b.outputs, strict=True)):
            found = self.values(value, other)
            if found is not None:
                return f"output {i}: {found}"
        return None

    def nodes(self, a: Node, b: Node) -> str | None:
        """A difference between two nodes."""
        if a.op != b.op or a.overload != b.overload:
            return "operator"
        if len(a.operands) != len(b.operands):
            return f"{len(a.operands)} and {len(b.operands)} operands"
        if len(a.results) != len(b.results):
            return f"{len(a.results)} and {len(b.results)} results"
        for i, (x, y) in enumerate(zip(a.operands, b.operands, strict=True)):
            found = self.values(x, y)
            if found is not None:
                return f"operand {i}: {found}"
        if a.attrs.keys() != b.attrs.keys():
            return f"attributes {', '.join(sorted(a.attrs.keys() ^ b.attrs.keys()))}"
        for name in sorted(a.attrs):
            found = self.attributes(a.attrs[name], b.attrs[name])
            if found is not None:
                return f"attribute {name!r}{found and ': '}{found}"
        self.pairs.update(zip(a.results, b.results, strict=True))
        return None

    def values(self, a: Value | None, b: Value | None) -> str | None:
        """A difference between two operands."""
        if a is None or b is None:
            return None if a is b else "left out in one"
        if a.const is not None and b.const is not None:
            if self.tensors.number(a.const) == self.tensors.number(b.const):
                return None
            return f"constants {a.type} and {b.type}" if a.type != b.type else f"constants of {a.type}"
        return None if self.pairs.get(a, a) is b else f"%{a.name} and %{b.name}"

    def attributes(self, a: Any, b: Any) -> str | None:
        """A difference between two attributes; "" where there is no more to say than that."""
        ours, theirs = _parts(a, Graph), _parts(b, Graph)
        if ours is not None and theirs is not None and len(ours) == len(theirs):
            for x, y in zip(ours, theirs, strict=True):
                found = _interface(x, y, root=False) or self.graphs(x, y)
                if found is not None:
                    return found
            return None
        if ours is not None or theirs is not None:
            return ""
        return None if self.plain(a) == self.plain(b) else ""

    def plain(self, value: Any) -> object:
        """A key for an attribute that holds no graph."""
        tensors = _parts(value, Tensor)
        return _plain_key(value) if tensors is None else ("tensors", [self.tensors.number(t) for t in tensors])


# as a dataflow


class _Unordered:
    """One comparison as a dataflow: every value gets a number, the same for the same computation, in either graph."""

    def __init__(self, weights: bool):
        self.tensors = _Tensors(weights)
        self.numbers: dict[object, int] = {}
        self.values: dict[Value, int] = {}

    def graphs(self, a: Graph, b: Graph) -> str | None:
        """A difference between two roots of equal interface."""
        ours, theirs = self.graph(a, 0), self.graph(b, 0)
        if ours == theirs:
            return None
        for info, x, y in zip(a.output_info, a.outputs, b.outputs, strict=False):
            if self.value(x) != self.value(y):
                return f"output {info.name!r}: {self.trace(x, y)}"
        return f"nodes that no output needs: {len(a)} and {len(b)} nodes in all"

    def number(self, key: object) -> int:
        """The number of ``key``."""
        return self.numbers.setdefault(key, len(self.numbers))

    def graph(self, graph: Graph, depth: int) -> object:
        """A key for ``graph``: its nodes, counted, and what it returns."""
        for value in graph.inputs:
            self.values[value] = self.number(("input", depth, value.index, _type_key(value.type)))
        count: Counter[int] = Counter()
        for node in graph.nodes:
            number = self.node(node, depth)
            count[number] += 1
            for result in node.results:
                self.values[result] = self.number((number, result.index))
        return tuple(sorted(count.items())), tuple(map(self.value, graph.outputs))

    def node(self, node: Node, depth: int) -> int:
        """The number of what ``node`` computes."""
        operands = tuple([self.value(value) for value in node.operands])
        attrs = tuple([(name, self.attribute(node.attrs[name], depth)) for name in sorted(node.attrs)])
        return self.number((node.op, node.overload, operands, attrs, len(node.results)))

    def value(self, value: Value | None) -> int:
        """The number of an operand."""
        if value is None:
            return -1
        if value.const is not None:
            return self.number(("constant", self.tensors.number(value.const)))
        found = self.values.get(value)
        return self.number(("outside", value)) if found is None else found

    def attribute(self, value: Any, depth: int) -> object:
        """A key for an attribute."""
        graphs = _parts(value, Graph)
        if graphs is not None:
            return "graph", tuple([self.graph(g, depth + 1) for g in graphs])
        tensors = _parts(value, Tensor)
        if tensors is not None:
            return "tensor", tuple([self.tensors.number(t) for t in tensors])
        return _plain_key(value)

    def trace(self, a: Value | None, b: Value | None) -> str:
        """Where two values of different numbers begin to differ, going from them to what they are made of."""
        while a is not None and b is not None:
            x, y = a.producer, b.producer
            if x is None or y is None or x.op != y.op or len(x.operands) != len(y.operands) or a.index != b.index:
                break
            parts = ((i, j) for i, j in zip(x.operands, y.operands, strict=True) if self.value(i) != self.value(j))
            pair = next(parts, None)
            if pair is None:
                break
            a, b = pair
        return f"{_described(a)} and {_described(b)}"


def _described(value: Value | None) -> str:
    if value is None:
        return "nothing"
    return repr(value) if value.producer is None else node_text(value.producer)
