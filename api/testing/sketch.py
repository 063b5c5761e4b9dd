"""A sketch: a random graph under construction, together with the concrete value of everything in it.

Because the values are known on the way, samplers need no shape inference: they look at arrays. The types in the graph
are another matter: graph inputs are typed statically, symbolically or not at all, and what inference makes of that is
compared with the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from planish.ir import Dim, DType, Graph, Node, Sym, TensorType, Type, Value, constant, edit, fresh, parse_dim, sym
from planish.ir.infer import IllTyped, content_of, infer
from planish.ir.schema import canonical_opset

from .draw import Array, Draw, Reject
from .evaluate import Environment, EvaluationError, evaluate_control, evaluate_node

__all__ = ["Sketch", "TypeContradiction", "check_type", "dim_size"]

_CONSTANT = {"data": 0.1, "weight": 0.65, "param": 0.85, "shape": 0.8}  # how often an operand of each role is constant
_SIZES = {f"{letter}{size}": size for letter in "nm" for size in range(100)}  # what the symbols of sketches stand for


class TypeContradiction(AssertionError):
    """Shape inference says something of a value that its evaluation disproves."""


def dim_size(dim: Dim) -> int | None:
    """The size that ``dim`` stands for in sketches; None if it mentions unknown ones."""
    if isinstance(dim, int):
        return dim
    if dim.mentions_anonymous:
        return None
    total = 0
    for monomial, factor in dim.terms.items():
        for atom in monomial:
            size = _atom_size(atom)
            if size is None:
                return None
            factor *= size
        total += factor
    return total


def _atom_size(atom: str) -> int | None:
    if atom in _SIZES:
        return _SIZES[atom]
    if "(" not in atom:
        return None
    text = atom
    for name in sorted(_SIZES, key=len, reverse=True):
        if name in text:
            text = text.replace(name, str(_SIZES[name]))
    found = parse_dim(text)
    return found if isinstance(found, int) else None


def check_type(value: Value, array: Any) -> None:
    """Compare what is stated of ``value`` with what it is.

    Raises:
        TypeContradiction: dtype, rank, a dimension or a known element differs.
    """
    type_: Type = value.type
    if not isinstance(type_, TensorType) or not isinstance(array, np.ndarray):
        return
    name = f"%{value.name or (value.producer.op if value.producer else '?')}"
    if type_.dtype and DType.from_numpy(array.dtype) != type_.dtype:
        raise TypeContradiction(f"{name} is stated as {type_}, but is {array.dtype}{list(array.shape)}")
    if type_.shape is not None:
        sizes = [dim_size(d) for d in type_.shape]
        if len(sizes) != array.ndim or any(s is not None and s != d for s, d in zip(sizes, array.shape, strict=True)):
            raise TypeContradiction(f"{name} is stated as {type_}, but has the shape {list(array.shape)}")
    content = content_of(value)
    if content is not None:
        elements = [dim_size(e) for e in content]
        flat = array.ravel().tolist()
        differ = (
            e is not None and (e - f) % (1 << 64) for e, f in zip(elements, flat, strict=False)
        )  # or it overflows
        if len(flat) != len(elements) or any(differ):
            raise TypeContradiction(f"{name} is stated to hold {list(content)}, but holds {flat}")


class Sketch:
    """A graph that grows node by node.

    Attributes:
        graph: the graph.
        body: the graph that nodes are appended to: this one, or one nested in it.
        environment: the array that each value stands for.
        inputs: the arrays of the graph's inputs, by name.
    """

    def __init__(self, draw: Draw):
        self.draw = draw
        self.graph = Graph("left_side", opsets={"": canonical_opset()})
        self.environment: Environment = {}
        self.inputs: dict[str, Array] = {}
        self.mode = draw.random.choices(("static", "symbolic", "anonymous", "unranked"), (50, 35, 10, 5))[0]
        self.leaves: list[Value] = []
        self.hidden: set[Value] = set()  # values of nested graphs that are complete
        self.body = self.graph
        self.perms: dict[int, tuple[int, ...]] = {}  # permutations in use, by rank

    # leaves

    def leaf(self, array: Array, role: str = "data", *, fixed: bool | None = None) -> Value:
        """An input or a constant that holds ``array``: as ``fixed`` says, or as is usual for its role."""
        if fixed is None:
            fixed = self.draw.chance(_CONSTANT[role]) and not (role == "data" and self.draw.small)
        value = self.constant(array) if fixed else self.input(array)
        self.leaves.append(value)
        return value

    def constant(self, array: Array) -> Value:
        """A constant."""
        array = np.array(array)  # a copy: what is drawn may be a view
        value = constant(array, name="c")
        self.environment[value] = array
        return value

    def input(self, array: Array) -> Value:
        """A graph input, typed as this sketch types its inputs."""
        name = f"x{len(self.inputs)}"
        value = self.graph.add_input(TensorType(DType.from_numpy(array.dtype), self._shape(array)), name)
        self.inputs[name] = self.environment[value] = np.asarray(array)
        return value

    def _shape(self, array: Array) -> tuple[Dim, ...] | None:
        if self.mode == "unranked" and self.draw.chance(0.5):
            return None
        return tuple(self._dim(d) for d in array.shape)

    def _dim(self, size: int) -> Dim | Sym:
        if self.mode == "static" or size >= 100 or self.draw.chance(0.35):
            return size
        return sym(f"{self.draw.pick('nnm')}{size}") if self.mode == "symbolic" else fresh()

    # nodes

    @contextmanager
    def inside(self, body: Graph) -> Iterator[None]:
        """Append nodes to ``body``, a graph that will be nested in this one."""
        around, self.body = self.body, body
        try:
            yield
        finally:
            self.body = around
            inside = {r for node in body.walk() for r in node.results}  # not to be used from outside
            inside.update(body.inputs)
            self.hidden |= inside

    def formal(self, body: Graph, array: Array, name: str) -> Value:
        """An input of the nested graph ``body``, which holds ``array`` at first."""
        value = body.add_input(TensorType(DType.from_numpy(array.dtype), array.shape), name)
        self.environment[value] = array
        return value

    def node(
        self, op: str, operands: list[Value | None], attrs: dict[str, Any] | None = None, outputs: int = 1
    ) -> Node:
        """Append a node; evaluates and types it.

        Raises:
            Reject: it cannot be evaluated.
            TypeContradiction: inference and evaluation disagree.
        """
        made = Node(op, operands, dict(attrs or {}), outputs)
        try:
            if made.graphs:
                arrays = evaluate_control(made, self.environment)
            else:
                arrays = evaluate_node(made, [None if o is None else self.environment[o] for o in operands])
        except EvaluationError as error:
            raise Reject(str(error)) from error
        for result, array in zip(made.results, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                raise Reject(f"{op} gives no tensor")
            self.environment[result] = array
        try:
            infer(made)
        except IllTyped as error:
            raise TypeContradiction(f"{op} evaluates, but inference says: {error}") from error
        for result in made.results:
            try:
                check_type(result, self.environment[result])
            except TypeContradiction as error:
                types = ", ".join("-" if o is None else str(o.type) for o in operands)
                raise TypeContradiction(f"{op}({types}) {made.attrs}: {error}") from None
        edit.insert(made, self.body.ret)
        return made

    def array(self, value: Value) -> Array:
        """What ``value`` holds."""
        found: Array = self.environment[value]
        return found

    # shape arithmetic

    def from_shapes(self, array: Array) -> Value | None:
        """``array`` (small integers) computed from shapes of values that are there; None if nothing fits."""
        sources = [v for v in self.environment if v.const is None and v not in self.hidden and self.array(v).ndim]
        if array.ndim > 1 or array.dtype != np.int64 or not sources or not np.all(array):  # to Reshape, 0 is no size
            return None
        source = self.draw.pick(sources)
        if array.ndim == 0:
            return self._size(source, int(array))
        if array.size and list(array) == list(self.array(source).shape[: array.size]):
            end = array.size
            attrs = {} if end == self.array(source).ndim else {"start": 0, "end": end}
            return self.node("Shape", [source], attrs).result
        parts: list[Value] = []
        for element in array.tolist():
            scalar = self._size(self.draw.pick(sources), element)
            if scalar is None:
                parts.append(self.constant(np.array([element], np.int64)))
            else:
                parts.append(self.node("Unsqueeze", [scalar, self.constant(np.array([0], np.int64))]).result)
        if not parts or all(p.const is not None for p in parts):
            return None
        return self.node("Concat", list(parts), {"axis": 0}).result

    def _size(self, source: Value, size: int) -> Value | None:
        """A scalar that holds ``size`` because a dimension of ``source`` is as large, or None."""
        places = [i for i, d in enumerate(self.array(source).shape) if d == size]
        if not places:
            return None
        index = self.constant(np.array(self.draw.pick(places), np.int64))
        return self.node("Gather", [self.node("Shape", [source]).result, index]).result

    def finish(self, outputs: list[Value]) -> None:
        """Return ``outputs`` (each once, as the results that they are)."""
        names = []
        for i, value in enumerate(outputs):
            value.name = value.name or f"y{i}"
            names.append(value)
        self.graph.set_outputs(names)
        for i, info in enumerate(self.graph.output_info):
            info.name = f"y{i}"
