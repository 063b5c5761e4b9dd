"""The emitter: appends typed nodes to the graph that is being built, and spells what rules need again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import numpy as np

from ..ir.builder import make_node
from ..ir.dims import Dim, is_known
from ..ir.edit import erase_dead, insert
from ..ir.evaluate import can_evaluate, evaluate
from ..ir.graph import Graph, GraphOutput, Node, Value, constant
from ..ir.infer.engine import content_of
from ..ir.types import DType, TensorType, Type
from .sizes import Sizes, integer

__all__ = ["Emitter", "Refused"]

_SMALL = 64  # elements of constants that are computed with at once
SMALLEST = -(1 << 63)  # as an end of Slice: all the way to the front


class Refused(Exception):
    """An equation that has no translation; the message says why."""


class _Operators:
    """Operators as functions, like `planish.ir.op`, that append the node to the current graph."""

    def __init__(self, emitter: Emitter):
        self._emitter = emitter

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def build(*operands: Any, outputs: int | None = None, **attrs: Any) -> Any:
            results = self._emitter.append(name, operands, attrs, outputs)
            return results[0] if len(results) == 1 else results

        build.__name__ = name
        setattr(self, name, build)
        return build


class Emitter:
    """Builds one graph, and the graphs nested in it.

    Attributes:
        root: the outermost graph.
        graph: the graph to which nodes are appended now.
        op: operators as functions.
        sizes: symbolic sizes as values.
        label: how new nodes are called; numbers make the names unique.
        metadata: what new nodes say of where they come from.
    """

    def __init__(self, graph: Graph):
        self.root = self.graph = graph
        self.op = _Operators(self)
        self.sizes = Sizes(self)
        self.label = ""
        self.metadata: dict[str, str] = {}
        self._names: dict[str, int] = {}

    # nodes and graphs

    def append(self, name: str, operands: Sequence[Any], attrs: dict[str, Any], results: int | None = None) -> Any:
        """Append a node; returns its results."""
        node = make_node(name, tuple(operands), attrs, results)
        folded = _folded(node)
        if folded is not None:
            return (folded,)
        node.name = self._unique(self.label or name)
        node.metadata = dict(self.metadata) or None
        insert(node, self.graph.ret)
        return node.results

    def erase_dead(self) -> None:
        """Take out what nothing uses: recognized operators leave their parts behind."""
        erase_dead(reversed(list(self.root.walk())))

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name

    @contextmanager
    def in_root(self) -> Iterator[None]:
        """Append to the outermost graph."""
        graph, self.graph = self.graph, self.root
        try:
            yield
        finally:
            self.graph = graph

    def nested(self, name: str, inputs: Sequence[tuple[str, Type]], body: Callable[..., Sequence[Value]]) -> Graph:
        """A nested graph, whose outputs ``body`` computes from its inputs and from values around it."""
        outer, self.graph = self.graph, Graph(name)
        try:
            graph = self.graph
            values = [graph.add_input(type_, hint) for hint, type_ in inputs]
            outputs: list[Value] = []
            for value in body(*values):
                own = value.producer is not None and value.producer.graph is graph and value not in outputs
                outputs.append(value if own else self.op.Identity(value))
            graph.set_outputs(outputs, [GraphOutput(f"{name}_{i}") for i in range(len(outputs))])
            return graph
        finally:
            self.graph = outer

    # constants and sizes

    def integers(self, values: Sequence[int]) -> Value:
        """A constant int64 vector."""
        return constant(np.array(values, np.int64))

    def scalar(self, number: Any, dtype: DType) -> Value:
        """A constant without dimensions."""
        return constant(np.asarray(number).astype(dtype.numpy), dtype)

    def vector(self, dims: Sequence[Dim]) -> Value:
        """Sizes as an int64 vector: a constant if all are known."""
        if all(is_known(d) for d in dims):
            return self.integers([integer(d) for d in dims])
        parts: list[Value] = []
        run: list[int] = []
        for dim in dims:
            if isinstance(dim, int):
                run.append(dim)
                continue
            if run:
                parts.append(self.integers(run))
                run = []
            parts.append(self.sizes.value(dim))
        if run:
            parts.append(self.integers(run))
        return parts[0] if len(parts) == 1 else self.op.Concat(*parts, axis=0)

    def size_scalar(self, dim: Dim, dtype: DType = DType.INT64) -> Value:
        """A size as a number without dimensions."""
        if isinstance(dim, int):
            return self.scalar(dim, dtype)
        return self.cast(self.op.Squeeze(self.sizes.value(dim), self.integers([0])), dtype)

    def known(self, value: Value) -> tuple[int, ...] | None:
        """The elements of a small integer value, where all are known."""
        elements = content_of(value)
        known = tuple(e for e in elements or () if isinstance(e, int))
        return known if elements is not None and len(known) == len(elements) else None

    # types and shapes

    def cast(self, value: Value, dtype: DType) -> Value:
        """``value`` as ``dtype``, as Cast has it."""
        if value.dtype is dtype:
            return value
        if value.const is not None and value.const.size == 1 and dtype.bits >= 8:
            return constant(value.const.numpy().astype(dtype.numpy), dtype)
        return self.op.Cast(value, to=dtype)

    def reshape(self, value: Value, dims: Sequence[Dim]) -> Value:
        """``value`` in another shape of as many elements."""
        dims, shape = tuple(dims), value.shape
        if shape == dims:
            return value
        if all(is_known(d) for d in dims) or 0 in dims or (shape is not None and 0 in shape):
            return self.op.Reshape(value, self.vector(dims), allowzero=1 if 0 in dims else None)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(dims, shape or (), strict=False))))
        open_ = [d for d in dims[same:] if not is_known(d)]
        if len(open_) <= 1:  # 0: as it is; -1: what is left
            target = [d if isinstance(d, int) else 0 for d in dims[:same]]
            target += [d if isinstance(d, int) else -1 for d in dims[same:]]
            return self.typed(self.op.Reshape(value, self.integers(target)), dims)
        return self.typed(self.op.Reshape(value, self.vector(dims)), dims)

    def typed(self, value: Value, dims: Sequence[Dim]) -> Value:
        """``value``, whose shape is known to be ``dims``."""
        value.type = TensorType(value.dtype, tuple(dims))
        return value

    def transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        """``value`` with its dimensions in another order: an earlier one, if it was put in this order already."""
        permutation = tuple(int(p) for p in permutation)
        made = value.producer
        if made is not None and made.op == "Transpose":
            return self.transpose(made.given(0), [made.attrs["perm"][p] for p in permutation])
        if permutation == tuple(range(len(permutation))):
            return value
        for user in value.users:
            if user.op == "Transpose" and user.attrs["perm"] == permutation and user.graph is self.graph:
                return user.result
        return self.op.Transpose(value, perm=permutation)

    def squeeze(self, value: Value, axes: Iterable[int]) -> Value:
        """``value`` without dimensions of size 1."""
        axes = [int(a) for a in axes]
        made = value.producer
        if made is not None and made.op == "Unsqueeze" and self.known(made.given(1)) == tuple(axes):
            return made.given(0)
        return self.op.Squeeze(value, self.integers(axes)) if axes else value

    def unsqueeze(self, value: Value, axes: Iterable[int]) -> Value:
        """``value`` with dimensions of size 1 at ``axes`` of the result."""
        axes = [int(a) for a in axes]
        return self.op.Unsqueeze(value, self.integers(axes)) if axes else value

    def expand(self, value: Value, dims: Sequence[Dim]) -> Value:
        """``value`` broadcast to ``dims``, to which its own (the last ones) fit."""
        dims, shape = tuple(dims), value.shape or ()
        if shape == dims:
            return value
        lead = len(dims) - len(shape)
        target = [1 if i >= lead and shape[i - lead] == d else d for i, d in enumerate(dims)]
        return self.typed(self.op.Expand(value, self.vector(target)), dims)

    def empty(self, type_: TensorType) -> Value:
        """A tensor without elements."""
        return constant(np.zeros([integer(d) for d in type_.shape or ()], type_.dtype.numpy), type_.dtype)

    def full(self, number: Any, dtype: DType, dims: Sequence[Dim]) -> Value:
        """A tensor that is one number everywhere."""
        return self.expand(self.scalar(number, dtype), dims)

    def slice(
        self, value: Value, axes: Sequence[int], starts: Sequence[Dim], ends: Sequence[Dim], steps: Sequence[int] = ()
    ) -> Value:
        """A part of ``value``: sizes from ``starts`` to ``ends`` along ``axes``, which are not negative."""
        shape = value.shape or ()
        steps = tuple(steps) or (1,) * len(axes)
        kept = [i for i, a in enumerate(axes) if steps[i] != 1 or starts[i] != 0 or (ends[i] != shape[a])]
        if not kept:
            return value
        first, last = self.vector([starts[i] for i in kept]), self.vector([ends[i] for i in kept])
        where, step = self.integers([axes[i] for i in kept]), self.integers([steps[i] for i in kept])
        return self.op.Slice(value, first, last, where, None if all(steps[i] == 1 for i in kept) else step)

    def pad(self, value: Value, low: Sequence[int], high: Sequence[int], number: Value | None = None) -> Value:
        """``value`` with ``number`` (or 0) around it; a negative width takes away."""
        shape = value.shape or ()
        axes = [a for a in range(len(shape)) if low[a] < 0 or high[a] < 0]
        ends = [shape[a] + min(high[a], 0) for a in axes]
        value = self.slice(value, axes, [max(-low[a], 0) for a in axes], ends)
        widths = [max(w, 0) for w in (*low, *high)]
        if not any(widths):
            return value
        if number is None:
            number = self.scalar(0, value.dtype)
        return self.op.Pad(value, self.integers(widths), number)

    def arange(self, size: Dim, dtype: DType = DType.INT64) -> Value:
        """``0, 1, …`` up to ``size``."""
        if isinstance(size, int):
            return constant(np.arange(size).astype(dtype.numpy), dtype)
        numbers = self.op.Range(self.scalar(0, DType.INT64), self.size_scalar(size), self.scalar(1, DType.INT64))
        return self.cast(self.typed(numbers, (size,)), dtype)


def _folded(node: Node) -> Value | None:
    """The result of a node that computes with small numbers only; weights, which have names, stay as they are."""
    if len(node.results) != 1 or not node.operands or not can_evaluate(node.op):
        return None
    arrays = []
    for operand in node.operands:
        if operand is None or operand.const is None or operand.const.name or operand.const.size > _SMALL:
            return None
        arrays.append(operand.const.numpy())
    type_ = node.result.type
    size = type_.size if isinstance(type_, TensorType) else None
    if not isinstance(type_, TensorType) or not isinstance(size, int) or size > _SMALL:
        return None
    found = evaluate(node, arrays)
    return None if found is None else constant(found[0].astype(type_.dtype.numpy), type_.dtype)
