"""Channels between layers: which weights make a channel, what it goes through, and which weights it meets.

Between two layers stand operators with f(s x) = s f(x) for every s > 0 that keep channels apart. So whatever the rows
(output channels) of the first weight are divided by, the columns (input channels) of the next may be multiplied by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from ...ir import DType, Graph, LazyTensor, Node, Tensor, Value, constant, edit
from ...ir.dims import product
from ...ir.types import Shape
from ..rules import NoMatch, require
from ..simplify.fold_constants import integers
from ..simplify.reshapes import RESHAPING, known_shape
from ..simplify.transposes import perm_of

__all__ = ["Array", "Channels", "Layer", "Link", "find_layers", "find_links"]

Array = np.ndarray[Any, Any]

_EAGER_BYTES = 1 << 20  # larger weights are computed when somebody asks for them
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ELEMENTWISE = frozenset({"Relu", "LeakyRelu", "Abs", "Identity"})
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"})


@dataclass(frozen=True, eq=False)
class Channels:
    """Where the channels of a layer are in a value.

    Attributes:
        axis: the dimension.
        index: the channel of each index of that dimension.
    """

    axis: int
    index: Array

    def spread(self, vector: Array, rank: int) -> Array:
        """One number per channel in a shape that broadcasts to the value, which has ``rank`` dimensions."""
        return vector[self.index].reshape(-1, *(1,) * (rank - 1 - self.axis))


@dataclass(frozen=True)
class Form:
    """How a weight holds its rows and columns, in groups."""

    groups: int
    rows_first: bool

    def view(self, weight: Array) -> Array:
        """``weight`` as groups, rows, columns and kernel."""
        view = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return view if self.rows_first else view.swapaxes(1, 2)

    def scaled(self, weight: Array, rows: Array, columns: Array) -> Array:
        """``weight`` times a factor per row and one per column."""
        result = np.empty(weight.shape, weight.dtype)
        factors = rows.reshape(self.groups, -1, 1, 1) * columns.reshape(self.groups, 1, -1, 1)
        self.view(result)[...] = self.view(weight) * factors
        return result


class Layer:
    """A node with a weight of its own, and factors for the rows and columns of that weight.

    Args:
        node: the node.
        uses: how often each tensor is used.

    Attributes:
        form: how the weight holds rows and columns.
        rows: a factor for each row, 1 at first.
        columns: a factor for each column.

    Raises:
        NoMatch: the weight must stay as it is.
    """

    def __init__(self, node: Node, uses: Counter[Tensor]):
        self.node = node
        weight = self.weight
        require(uses[weight] == 1, "the weight is used by several nodes")
        require(weight.dtype in (DType.FLOAT, DType.DOUBLE), f"the weight is {weight.dtype.text}")
        require(len(weight.shape) >= 2 and (node.op != "MatMul" or len(weight.shape) == 2), "the weight is no matrix")
        require(weight.size, "the weight is empty")
        rows_first = node.op == "Conv" or bool(node.op == "Gemm" and node.attrs.get("transB", 0))
        self.form = Form(node.attrs.get("group", 1), rows_first)
        whole, grouped = np.ones(weight.shape[0]), np.ones(weight.shape[1] * self.form.groups)
        self.rows, self.columns = (whole, grouped) if rows_first else (grouped, whole)

    @property
    def weight(self) -> Tensor:
        """The weight that the node has now."""
        weight = self.node.given(1).const
        assert weight is not None
        return weight

    @cached_property
    def magnitude(self) -> Array:
        """The largest magnitude of each kernel of the weight as it was found: groups, rows and columns."""
        return np.abs(self.form.view(self.weight.numpy())).max(-1)

    def row_ranges(self) -> Array:
        """The largest magnitude of each row."""
        columns = self.columns.reshape(self.form.groups, 1, -1)
        return (self.magnitude * columns).max(2).reshape(-1) * self.rows

    def column_ranges(self) -> Array:
        """The largest magnitude of each column."""
        rows = self.rows.reshape(self.form.groups, -1, 1)
        return (self.magnitude * rows).max(1).reshape(-1) * self.columns

    def takes(self, value: Value, at: Channels) -> bool:
        """Whether its columns are the channels in ``value``, its first operand."""
        rank = len(known_shape(value))
        axis = {"MatMul": rank - 1, "Gemm": 1 - self.node.attrs.get("transA", 0)}.get(self.node.op, 1)
        return at.axis == axis and len(at.index) == self.columns.size

    def gives(self) -> Channels:
        """Where its rows are in its result."""
        axis = len(known_shape(self.node.result)) - 1 if self.node.op == "MatMul" else 1
        return Channels(axis, np.arange(self.rows.size))

    def apply(self) -> None:
        """Multiply the weight by the factors."""
        if (self.rows == 1).all() and (self.columns == 1).all():
            return
        old = self.weight
        scaled = partial(self.form.scaled, rows=self.rows, columns=self.columns)
        lazy = LazyTensor(scaled, (old,), old.dtype, old.shape, old.name)
        edit.set_operand(self.node, 1, constant(lazy if old.nbytes > _EAGER_BYTES else lazy.numpy(), name=old.name))


@dataclass(eq=False)
class Link:
    """A layer, the layers that use its result, and what stands between them.

    Attributes:
        producer: the layer whose rows are the channels.
        consumers: the layers whose columns they are, and the channel of each column.
        addends: constants that are added to the channels: the node, the number of the operand, and a function that
            spreads one number per channel over it.
        path: the nodes between the layers, and where the channels are in what they take.
    """

    producer: Layer
    consumers: list[tuple[Layer, Array]] = field(default_factory=list)
    addends: list[tuple[Node, int, partial[Array]]] = field(default_factory=list)
    path: list[tuple[Node, Channels]] = field(default_factory=list)


def find_layers(graph: Graph, uses: Counter[Tensor]) -> tuple[dict[Node, Layer], Counter[str]]:
    """The layers of ``graph`` (not of nested ones) whose weights may change, and why others may not."""
    found, refused = {}, Counter[str]()
    for node in graph.nodes:
        if node.op in _LAYERS and node.given(1).const is not None and node.given(0).const is None:
            try:
                found[node] = Layer(node, uses)
            except NoMatch as reason:
                refused[str(reason)] += 1
    return found, refused


def find_links(layers: Mapping[Node, Layer], replace_clip: bool = False) -> tuple[list[Link], Counter[str]]:
    """The links between ``layers``, and why there is none behind others.

    Args:
        layers: by node.
        replace_clip: a Clip from 0 to something is going to become a Relu.
    """
    found, refused = [], Counter[str]()
    for layer in layers.values():
        try:
            found.append(_link(layer, layers, replace_clip))
        except NoMatch as reason:
            refused[str(reason)] += 1
    return found, refused


def _link(producer: Layer, layers: Mapping[Node, Layer], replace_clip: bool) -> Link:
    node, at = producer.node, producer.gives()
    link = Link(producer)
    if node.operand(2) is not None:
        require(node.given(2).const is not None, "the bias is computed")
        link.addends.append((node, 2, partial(Channels(0, at.index).spread, rank=1)))
    stack = [(node.result, at)]
    while stack:
        value, at = stack.pop()
        for user, index in value.uses:
            require(user.graph is node.graph, "a nested graph uses the result")
            require(user.op != "return", "the result is an output")
            if user.op in _LAYERS and index == 0:
                require(user in layers, f"a {user.op} behind it cannot be scaled")
                require(layers[user].takes(value, at), f"the {user.op} behind it sums over something else")
                link.consumers.append((layers[user], at.index))
                continue
            stack.append((user.result, _follow(user, index, at, replace_clip)))
            link.path.append((user, at))
            if user.op in ("Add", "Sub"):
                link.addends.append((user, 1 - index, partial(at.spread, rank=len(known_shape(value)))))
    require(link.consumers, "nothing uses the result")
    linked = (producer, *(layer for layer, _ in link.consumers))
    require(all(np.isfinite(layer.magnitude).all() for layer in linked), "a weight is not finite")
    return link


def _follow(node: Node, index: int, at: Channels, replace_clip: bool) -> Channels:
    """Where the channels of operand ``index`` of ``node`` are in its result.

    Raises:
        NoMatch: nowhere, or they are not multiplied by s where the operand is.
    """
    x = node.given(index)
    require(index == 0 or node.op in ("Add", "Sub", "Mul"), f"{node.op} takes the result as a parameter")
    require(not any(r.is_used for r in node.results[1:]), f"the second result of {node.op} is used")
    if node.op in _ELEMENTWISE:
        return at
    if node.op in _POOLS:
        require(at.axis == 1, f"{node.op} runs over the channels")
        return at
    if node.op in RESHAPING:
        return _regrouped(known_shape(x), known_shape(node.result), at)
    if node.op in _REDUCTIONS:
        axes, rank = integers(node.operand(1)), len(known_shape(x))
        require(axes, "what is reduced is unknown")
        chosen = {a % rank for a in axes or ()}
        require(at.axis not in chosen, f"{node.op} runs over the channels")
        return at if node.attrs.get("keepdims", 1) else Channels(at.axis - sum(a < at.axis for a in chosen), at.index)
    if node.op == "Transpose":
        return Channels((perm_of(node) or ()).index(at.axis), at.index)
    _require_proportional(node, index, at, replace_clip)
    shape = known_shape(node.result)
    require(len(shape) == len(known_shape(x)), f"{node.op} adds dimensions")
    require(shape[at.axis] == len(at.index), f"{node.op} adds channels")
    return at


def _require_proportional(node: Node, index: int, at: Channels, replace_clip: bool) -> None:
    """Require of a node that keeps the rank that its result is multiplied by s where operand ``index`` is."""
    match node.op:
        case "Add" | "Sub" | "Mul" | "Div":
            require(node.given(1 - index).const is not None, f"{node.op} has two operands that are computed")
        case "PRelu":
            slope = node.given(1).const
            require(slope is not None and (slope.numpy() >= 0).all(), "a slope is negative or computed")
        case "Clip":
            high = node.operand(2)
            require(replace_clip, "Clip saturates")
            require(_is_zero(node.operand(1)), "Clip does not begin at 0")
            require(high is None or (high.const is not None and (high.const.numpy() > 0).all()), "Clip ends at 0")
        case "Dropout":
            require(node.operand(2) is None or _is_zero(node.operand(2)), "Dropout is training")
        case "Pad":
            rank = len(known_shape(node.given(0)))
            pads, axes = integers(node.operand(1)), integers(node.operand(3))
            require(pads is not None and (axes is None) == (node.operand(3) is None), "what is padded is unknown")
            dims = [a % rank for a in (range(rank) if axes is None else axes)] * 2
            require(not any(p for a, p in zip(dims, pads or (), strict=True) if a == at.axis), "channels are padded")
            filled = node.attrs.get("mode", "constant") == "constant" and node.operand(2) is not None
            require(not filled or _is_zero(node.operand(2)), "padded with another number than 0")
        case "Resize":
            mode = node.attrs.get("coordinate_transformation_mode")
            require(mode != "tf_crop_and_resize", "Resize extrapolates with a number")
        case _:
            raise NoMatch(f"the result goes through {node.op}")


def _is_zero(value: Value | None) -> bool:
    return value is not None and value.const is not None and not value.const.numpy().any()


def _regrouped(source: Shape, target: Shape, at: Channels) -> Channels:
    """Where the channels are after a reshape: alone, or in one dimension with what is next to them."""
    count = len(at.index)
    for start in range(at.axis, -1, -1):
        before = product(source[start : at.axis])
        for axis, size in enumerate(target):
            if not isinstance(size, int) or not isinstance(before, int) or not size * before or size % (before * count):
                continue
            if product(target[:axis]) == product(source[:start]):
                return Channels(axis, np.tile(np.repeat(at.index, size // (before * count)), before))
    raise NoMatch("a reshape splits the channels")
