"""Index arithmetic as exporters write it around masks: gathers by counting indices, comparisons that always hold.

Advanced indexing ``mask[batch_index, ..., position_index]`` with counting indices arrives as Range, Unsqueeze, Expand,
Concat and GatherND, and is a reshape of the mask. Expansions sink towards operators that broadcast by themselves, so
that masks stay small.
"""

from __future__ import annotations

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.builder import make_node
from ...ir.dims import product
from ...ir.infer import content_of
from ...ir.types import DType, Shape
from ..pattern import const, shared
from ..rules import require, rule
from .fold_constants import integers
from .reshapes import known_shape
from .transposes import UNARY

_DEPTH = 12  # operators that are looked through


def counting_axis(value: Value, depth: int = 0) -> int | None:
    """The axis along which the integers in ``value`` count 0, 1, 2, …, being equal along all others; None if none."""
    if value.shape is None or depth > _DEPTH:
        return None
    if value.const is not None:
        return _counts(value.const.numpy()) if value.const.is_cheap and value.dtype.is_integer else None
    node = value.producer
    source = node.operand(0) if node is not None else None
    if node is None or source is None:
        return None
    if node.op == "Range":
        counts = content_of(source) == (0,) and content_of(node.operands[2]) == (1,)
        return 0 if counts and value.dtype.is_integer else None
    if node.op not in ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Cast", "Identity") or not value.dtype.is_integer:
        return None
    axis = counting_axis(source, depth + 1)
    return None if axis is None else _moved(axis, known_shape(source), value.shape, node.op)


def _counts(array: np.ndarray) -> int | None:
    """The counting axis of an array; 0 for a single zero."""
    for axis in range(array.ndim):
        shape = [1] * array.ndim
        shape[axis] = array.shape[axis]
        if array.shape[axis] > 1 and np.array_equal(
            array, np.broadcast_to(np.arange(array.shape[axis]).reshape(shape), array.shape)
        ):
            return axis
    return None


def _moved(axis: int, source: Shape, target: Shape, op_name: str) -> int | None:
    """Where ``axis`` of ``source`` is in ``target``; None if it is split, merged or stretched."""
    size = source[axis]
    if op_name == "Expand":
        moved = axis + len(target) - len(source)
        return moved if target[moved] == size else None
    if op_name in ("Cast", "Identity"):
        return axis
    before = product(source[:axis])
    return next((i for i, d in enumerate(target) if d == size and product(target[:i]) == before), None)


_MASK_BY_INDEX = """
agraph (bool[batch,sequence] mask, int64[batch,sequence] ids) => (bool[batch,1,1,sequence] y) <
  int64 zero = {0}, int64 one = {1}, int64[3] trailing = {1, 2, 3}, int64[3] leading = {0, 1, 2}, int64[1] last = {-1}
> {
  b1 = Shape <end = 1> (ids)
  b = Squeeze (b1)
  s1 = Shape <start = 1> (ids)
  s = Squeeze (s1)
  rows = Range (zero, b, one)
  columns = Range (zero, s, one)
  r = Unsqueeze (rows, trailing)
  c = Unsqueeze (columns, leading)
  both = Max (r, c)
  shape = Shape (both)
  wide_r = Expand (r, shape)
  wide_c = Expand (c, shape)
  i = Unsqueeze (wide_r, last)
  j = Unsqueeze (wide_c, last)
  indices = Concat <axis = -1> (i, j)
  y = GatherND (mask, indices)
}
"""
_POSITIONS_FROM_ZERO = """
agraph (int64[batch,sequence] ids) => (bool[1,sequence] y) <int64 zero = {0}, int64 one = {1}, int64[1] axes = {0}> {
  s1 = Shape <start = 1> (ids)
  s = Squeeze (s1)
  positions = Range (zero, s, one)
  row = Unsqueeze (positions, axes)
  y = GreaterOrEqual (row, zero)
}
"""


@rule("GatherND", examples=[_MASK_BY_INDEX])
def gather_nd_by_counting(node: Node) -> Value | None:
    """A GatherND whose index tuples count through the leading dimensions in order inserts dimensions of size 1."""
    data, indices = node.operands[0], node.operands[1]
    assert data is not None and indices is not None
    concat = indices.producer
    if (
        node.attrs.get("batch_dims", 0)
        or concat is None
        or concat.op != "Concat"
        or indices.shape is None
        or data.shape is None
    ):
        return None
    rank = len(indices.shape) - 1
    require(concat.attrs["axis"] % (rank + 1) == rank, "the index tuples are not along the last axis")
    axes: list[int] = []
    for dim, component in zip(data.shape, concat.operands, strict=False):
        assert component is not None
        shape = component.shape
        axis = counting_axis(component)
        require(axis is not None and shape is not None and shape[-1] == 1 and axis < rank, "an index does not count")
        assert axis is not None and shape is not None
        require(shape[axis] == dim, "an index does not count through the whole dimension")
        axes.append(axis)
    require(
        len(axes) == len(concat.operands) and axes == sorted(set(axes)), "the indices count along axes in another order"
    )
    added = [i for i in range(rank) if i not in axes]
    require(all(indices.shape[i] == 1 for i in added), "the result repeats elements")
    return op.Unsqueeze(data, constant(added, DType.INT64)) if added else data


def lower_bound(value: Value, depth: int = 0) -> int | None:
    """A number that no element of an integer tensor is below; None if nothing is known."""
    if value.const is not None:
        known = integers(value)
        return min(known) if known else None
    node = value.producer
    if node is None or depth > _DEPTH:
        return None
    bounds = [lower_bound(o, depth + 1) if o is not None else None for o in node.operands]
    match node.op:
        case "Shape" | "Size" | "NonZero":
            return 0
        case "Range":
            step = bounds[2]
            return bounds[0] if step is not None and step >= 0 else None
        case (
            "Unsqueeze"
            | "Squeeze"
            | "Reshape"
            | "Expand"
            | "Transpose"
            | "Slice"
            | "Flatten"
            | "Identity"
            | "Gather"
            | "Tile"
        ):
            return bounds[0]
        case "Concat" | "Min" if None not in bounds:
            return min(b for b in bounds if b is not None)
        case "Max":
            return max((b for b in bounds if b is not None), default=None)
    return None


@rule(lambda x, c=const: op.GreaterOrEqual(x, c), examples=[_POSITIONS_FROM_ZERO])
def always_greater_or_equal(x: Value, c: Value) -> Value:
    """A comparison with a number that no element is below."""
    require(
        x.dtype is DType.INT64 and c.const is not None and c.const.size == 1 and (c.rank or 0) <= (x.rank or 0),
        "no bound to compare with",
    )
    low, limit = lower_bound(x), integers(c)
    require(low is not None and limit is not None and low >= limit[0], "some elements may be below")
    return op.Expand(constant(True, DType.BOOL), op.Shape(x))


@rule(
    lambda s, y, t=const(lambda t: t.dtype is DType.BOOL and t.size == 1 and bool(t.numpy().all())): op.And(
        shared(op.Expand(t, s)), y
    )
)
def and_expanded_true(s: Value, y: Value, t: Value) -> Value:
    """``And`` with trues is an expansion (Expand broadcasts both ways)."""
    return op.Expand(y, s)


@rule(*sorted(UNARY - {"IsNaN"}))
def expand_below_unary(node: Node) -> Value | None:
    """An elementwise operator runs before the expansion of its operand, on fewer elements."""
    x = node.operands[0]
    if (
        x is None
        or x.producer is None
        or x.producer.op != "Expand"
        or len(x.users) != 1
        or x.producer.graph is not node.graph
    ):
        return None
    source, target = x.producer.operands
    return op.Expand(_retyped(node, [source]), target)


@rule("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
def expand_below_binary(node: Node) -> Value | None:
    """Arithmetic with a number runs before the expansion of the other operand, on fewer elements."""
    if len(node.operands) != 2:
        return None
    for i in (0, 1):
        x, other = node.operands[i], node.operands[1 - i]
        expand = x.producer if x is not None else None
        if expand is None or x is None or other is None or expand.op != "Expand" or expand.graph is not node.graph:
            continue
        source, target = expand.operands
        if len(x.users) != 1 or source is None or not _number(other) or (other.rank or 0) > (source.rank or 0):
            continue
        return op.Expand(_retyped(node, [source, other] if i == 0 else [other, source]), target)
    return None


@rule(lambda c, s, x, y: op.Where(op.Expand(c, s), x, y))
def expand_below_where(c: Value, s: Value, x: Value, y: Value) -> Value:
    """A choice between two numbers is made before its condition is expanded."""
    require(_number(x) and _number(y), "the choices are no single numbers")
    require(c.rank is not None and c.rank >= max(x.rank or 0, y.rank or 0), "a choice has more dimensions")
    return op.Expand(op.Where(c, x, y), s)


def _number(value: Value) -> bool:
    return value.shape is not None and all(d == 1 for d in value.shape)


def _retyped(node: Node, operands: list[Value | None]) -> Value:
    return make_node(node.op, tuple(operands), dict(node.attrs)).result
