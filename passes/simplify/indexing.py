"""Slice, Gather, Concat, Split, Pad, Tile and their like: dropping what selects everything, merging neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.dims import Dim
from ...ir.infer import content_of
from ...ir.types import DType, Shape, same_shape
from ..rules import require, rule
from .fold_constants import integers
from .reshapes import RESHAPING, known_shape, reshape_to

_END = 1 << 31  # an end at or beyond this is "to the end"
_DEPTH = 10  # operators that indices are followed through
_MOST = 1 << 18  # indices that are looked at


def slice_parts(node: Node) -> list[tuple[int, Dim, Dim, int]] | None:
    """``(axis, start, end, step)`` of a Slice for each of its axes; None where they are not known."""
    x = node.operands[0]
    starts, ends = content_of(node.operands[1]), content_of(node.operands[2])
    if x is None or x.rank is None or starts is None or ends is None:
        return None
    axes = integers(node.operand(3)) if node.operand(3) is not None else tuple(range(len(starts)))
    steps = integers(node.operand(4)) if node.operand(4) is not None else (1,) * len(starts)
    if axes is None or steps is None:
        return None
    return [(a % x.rank, s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)]


def _is_full(start: Dim, end: Dim, step: int, dim: Dim) -> bool:
    """Whether a slice of a dimension takes all of it, in order."""
    if step != 1:
        return False
    from_start = start == 0 or (isinstance(start, int) and start <= -_END)
    if isinstance(start, int) and isinstance(dim, int) and start <= -dim:
        from_start = True
    to_end = end == dim or (isinstance(end, int) and (end >= _END or (isinstance(dim, int) and end >= dim)))
    return from_start and to_end


@rule("Slice")
def drop_full_slices(node: Node) -> Value | None:
    """Axes that are taken as a whole need not be sliced."""
    parts, x = slice_parts(node), node.operands[0]
    require(parts is not None, "the starts or ends are known only when it runs")
    assert parts is not None and x is not None and x.shape is not None
    kept = [i for i, (axis, start, end, step) in enumerate(parts) if not _is_full(start, end, step, x.shape[axis])]
    if not kept:
        return x
    if len(kept) == len(parts):
        return None
    require(all(o is None or integers(o) is not None for o in node.operands[1:]), "the bounds are not constant")
    columns = [[parts[i][column] for i in kept] for column in (1, 2, 0, 3)]
    return op.Slice(x, *(constant(c, DType.INT64) for c in columns))


@rule("Slice")
def slice_of_slice(node: Node) -> Value | None:
    """Two slices of different axes are one."""
    x = node.operands[0]
    assert x is not None
    inner = x.producer
    if inner is None or inner.op != "Slice" or len(x.users) != 1 or inner.graph is not node.graph:
        return None
    outer_parts, inner_parts = slice_parts(node), slice_parts(inner)
    require(outer_parts is not None and inner_parts is not None, "the starts or ends are known only when they run")
    assert outer_parts is not None and inner_parts is not None
    parts = inner_parts + outer_parts
    require(len({p[0] for p in parts}) == len(parts), "both slice the same axis")
    require(all(isinstance(p[1], int) and isinstance(p[2], int) for p in parts), "the bounds are not constant")
    columns = [[p[column] for p in parts] for column in (1, 2, 0, 3)]
    return op.Slice(inner.operands[0], *(constant(c, DType.INT64) for c in columns))


@rule("Slice")
def slice_of_concat(node: Node) -> Value | None:
    """A slice of a Concat that takes exactly one of its operands."""
    x, parts = node.operands[0], slice_parts(node)
    assert x is not None
    if x.producer is None or x.producer.op != "Concat" or parts is None or len(parts) != 1 or x.rank is None:
        return None
    axis, start, end, step = parts[0]
    require(step == 1 and x.producer.attrs["axis"] % x.rank == axis, "not the axis of the Concat, or not contiguous")
    at: Dim = 0
    for operand in x.producer.operands:
        assert operand is not None
        size = known_shape(operand)[axis]
        last = operand is x.producer.operands[-1]
        if start == at and (end == at + size or (last and isinstance(end, int) and end >= _END)):
            return operand
        at = at + size
    return None


@rule("Pad")
def drop_empty_pad(node: Node) -> Value | None:
    """A Pad by nothing."""
    pads = integers(node.operand(1))
    require(pads is not None, "the pads are known only when it runs")
    return node.operands[0] if not any(pads or ()) else None


@rule("Pad")
def pad_of_pad(node: Node) -> Value | None:
    """Two pads with the same constant are one."""
    x = node.operands[0]
    assert x is not None
    inner = x.producer
    if inner is None or inner.op != "Pad" or inner.graph is not node.graph or len(x.users) != 1:
        return None
    require(all(n.attrs.get("mode", "constant") == "constant" for n in (inner, node)), "the mode is not constant")
    require(_fill(inner) is not None and _fill(inner) == _fill(node), "they pad with different values")
    rank = x.rank
    first, second = _all_pads(inner, rank), _all_pads(node, rank)
    require(first is not None and second is not None, "the pads are known only when it runs")
    assert first is not None and second is not None
    require(min(first + second) >= 0, "one of them crops")
    pads = constant([a + b for a, b in zip(first, second, strict=True)], DType.INT64)
    return op.Pad(inner.operands[0], pads, node.operand(2))


def _fill(pad: Node) -> float | None:
    """The number that a constant Pad fills in, if it is known."""
    value = pad.operand(2)
    if value is None:
        return 0.0
    return float(value.const.numpy().reshape(())) if value.const is not None and value.const.size == 1 else None


def _all_pads(pad: Node, rank: int | None) -> list[int] | None:
    """Begin and end pads of all dimensions."""
    pads, axes = integers(pad.operand(1)), integers(pad.operand(3))
    if pads is None or rank is None or (pad.operand(3) is not None and axes is None):
        return None
    chosen = tuple(range(rank)) if axes is None else axes
    result = [0] * (2 * rank)
    for i, axis in enumerate(chosen):
        result[axis % rank] = pads[i]
        result[rank + axis % rank] = pads[len(chosen) + i]
    return result


@rule("Tile")
def drop_single_tile(node: Node) -> Value | None:
    """A Tile once in each dimension."""
    repeats = integers(node.operand(1))
    require(repeats is not None, "the repeats are known only when it runs")
    return node.operands[0] if all(r == 1 for r in repeats or ()) else None


@rule("Concat")
def flatten_concat(node: Node) -> Value | None:
    """A Concat within a Concat along the same axis."""
    rank = node.results[0].rank
    if rank is None:
        return None
    axis = node.attrs["axis"] % rank

    def nested(v: Value | None) -> bool:
        p = v.producer if v is not None else None
        return (
            p is not None
            and p.op == "Concat"
            and p.attrs["axis"] % rank == axis
            and len(p.results[0].users) == 1
            and p.graph is node.graph
        )

    if not any(nested(o) for o in node.operands):
        return None
    operands: list[Value | None] = []
    for o in node.operands:
        operands.extend(o.producer.operands if nested(o) and o is not None and o.producer is not None else (o,))
    return op.Concat(*operands, axis=axis)


@rule("Concat")
def drop_empty_operands(node: Node) -> Value | None:
    """Operands without elements add nothing to a Concat."""
    rank = node.results[0].rank
    if rank is None or len(node.operands) < 2:
        return None
    axis = node.attrs["axis"] % rank
    kept = [o for o in node.operands if o is None or o.shape is None or o.shape[axis] != 0]
    if len(kept) == len(node.operands) or not kept:
        return None
    return kept[0] if len(kept) == 1 else op.Concat(*kept, axis=node.attrs["axis"])


@rule("Split")
def drop_single_split(node: Node) -> Value | None:
    """A Split into one part."""
    x = node.operands[0]
    assert x is not None
    return x if len(node.results) == 1 and same_shape(x.type, node.results[0].type) else None


@rule("Gather")
def gather_all(node: Node) -> Value | None:
    """A Gather of all indices in order."""
    x, indices = node.operands[0], integers(node.operand(1))
    assert x is not None
    if indices is None or x.shape is None or node.operands[1] is None or node.operands[1].rank != 1:
        return None
    dim = x.shape[node.attrs.get("axis", 0)]
    return x if isinstance(dim, int) and indices == tuple(range(dim)) else None


_AS_STRIDED = """
agraph (float[batch,6] x, int64[batch] rows) => (float[batch,2,3] y) <
  int64 zero = {0}, int64 one = {1}, int64[1] flat = {-1}, int64 all = {6}, int64[2] trailing = {1, 2},
  int64[1,2,3] within = {0, 1, 2, 3, 4, 5}
> {
  n1 = Shape (rows)
  n = Squeeze (n1)
  count = Range (zero, n, one)
  starts = Mul (count, all)
  row = Unsqueeze (starts, trailing)
  indices = Add (row, within)
  elements = Reshape (x, flat)
  y = Gather (elements, indices)
}
"""


@rule("Gather", examples=[_AS_STRIDED])
def gather_in_order(node: Node) -> Value | None:
    """A Gather of all elements in order is a Reshape: torch exports ``as_strided`` (and average pools) as such."""
    x, indices = node.given(0), node.given(1)
    if x.rank != 1 or indices.shape is None or indices.rank == 1:
        return None
    strides = strides_of(indices)
    require(strides is not None, "the indices do not grow evenly")
    assert strides is not None and x.shape is not None
    size: Dim = 1
    for dim, stride in zip(reversed(indices.shape), reversed(strides), strict=True):
        require(dim == 1 or stride == size, "the indices are in another order")
        size = size * dim
    require(size == x.shape[0], "the indices are not those of all elements")
    reshaped = reshape_to(x, indices.shape)
    require(reshaped is not None, "more than one dimension of the indices is not known")
    return reshaped


def strides_of(value: Value, depth: int = 0) -> tuple[Dim, ...] | None:
    """By how much integers grow along each dimension, if the first is 0 and they grow evenly; 0 for dimensions of 1."""
    node, shape = value.producer, value.shape
    if shape is None or depth > _DEPTH:
        return None
    if value.const is not None:
        return _constant_strides(value.const.numpy()) if value.const.size <= _MOST else None
    if node is None:
        return None
    if node.op == "Range":
        start, step = content_of(node.operand(0)), content_of(node.operand(2))
        return step if start == (0,) and step is not None else None
    if node.op == "Mul":
        for x, factor in (node.operands, node.operands[::-1]):
            by = content_of(factor)
            strides = strides_of(_of(x), depth + 1) if by is not None and len(by) == 1 else None
            if by is not None and strides is not None and len(strides) == len(shape):
                return tuple(s * by[0] for s in strides)
        return None
    if node.op in RESHAPING:
        x = node.given(0)
        strides = strides_of(x, depth + 1)
        if strides is None or x.shape is None or [d for d in x.shape if d != 1] != [d for d in shape if d != 1]:
            return None
        kept = iter([s for s, d in zip(strides, x.shape, strict=True) if d != 1])
        return tuple(0 if d == 1 else next(kept) for d in shape)
    if node.op == "Add":
        return _sum_of_strides(node, shape, depth)
    return None


def _sum_of_strides(node: Node, shape: Shape, depth: int) -> tuple[Dim, ...] | None:
    total: list[Dim] = [0] * len(shape)
    for operand in node.operands:
        strides, own = strides_of(_of(operand), depth + 1), _of(operand).shape
        if strides is None or own is None:
            return None
        for i, (stride, dim) in enumerate(zip(strides, own, strict=True), len(shape) - len(own)):
            if dim != 1 and dim != shape[i]:  # it may turn out to be 1, and be repeated
                return None
            total[i] = total[i] + stride
    return tuple(total)


def _of(operand: Value | None) -> Value:
    assert operand is not None
    return operand


def _constant_strides(array: Any) -> tuple[int, ...] | None:
    if not array.size:
        return None
    strides = []
    grown = np.zeros(array.shape, np.int64)
    for axis, dim in enumerate(array.shape):
        along = np.moveaxis(array, axis, 0).reshape(dim, -1)[:, 0]
        strides.append(int(along[1] - along[0]) if dim > 1 else 0)
        grown += strides[-1] * np.arange(dim).reshape(-1, *(1,) * (array.ndim - axis - 1))
    return tuple(strides) if np.array_equal(array, grown) else None


@rule(
    "SequenceAt",
    examples=[
        """main (float[4,n] x) => (y) <int64[2] s = {1, 3}, int64 i = {-1}>
        { p = SplitToSequence <axis = 0> (x, s)  y = SequenceAt (p, i) }"""
    ],
)
def sequence_at_split(node: Node) -> Any:
    """One element of a SplitToSequence is one result of a Split (which its other elements share)."""
    sequence, index = node.operands[0], integers(node.operand(1))
    assert sequence is not None
    split = sequence.producer
    if split is None or split.op != "SplitToSequence" or index is None:
        return None
    x, axis = split.operands[0], split.attrs.get("axis", 0)
    assert x is not None
    require(split.attrs.get("keepdims", 1) == 1 or split.operand(1) is not None, "the split dimension is dropped")
    require(x.shape is not None and isinstance(x.shape[axis], int), "the size of the split dimension is unknown")
    assert x.shape is not None
    dim = x.shape[axis]
    assert isinstance(dim, int)
    sizes = _split_sizes(split, dim)
    at = index[0] + len(sizes) if index[0] < 0 else index[0]
    require(0 <= at < len(sizes), "the index is out of range")
    parts = op.Split(x, constant(sizes, DType.INT64), axis=axis, outputs=len(sizes))
    return parts[at] if isinstance(parts, tuple) else parts


def _split_sizes(split: Node, dim: int) -> list[int]:
    if split.operand(1) is None:
        return [1] * dim
    sizes = integers(split.operand(1))
    require(sizes is not None, "the sizes are known only when it runs")
    assert sizes is not None and split.operands[1] is not None
    if split.operands[1].rank == 0:
        step = sizes[0]
        require(step > 0, "the size is not positive")
        return [step] * (dim // step) + ([dim % step] if dim % step else [])
    return list(sizes)


@rule("GatherND")
def gather_nd_of_one_axis(node: Node) -> Value | None:
    """A GatherND whose index tuples have one element is a Gather."""
    x, indices = node.operands[0], node.operands[1]
    assert x is not None and indices is not None
    if node.attrs.get("batch_dims", 0) or indices.shape is None or indices.shape[-1:] != (1,):
        return None
    return op.Gather(x, op.Squeeze(indices, constant([-1], DType.INT64)), axis=0)
