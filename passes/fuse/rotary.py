"""Rotary position embeddings (Su et al., RoFormer): pairs of features turned by an angle per position.

The pairs are either the two halves of a head or neighbours (interleaved). However they are written, the two products
with cosines and sines are found, the tables are reduced to one column per pair, and one ``RotaryEmbedding`` stands for
it all. Where only a part of a head is turned, the rest passes through the same operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.dims import Dim
from ...ir.types import DType, Shape
from ..numerics import within
from ..rules import require, rule
from ..simplify.fold_constants import integers
from ..simplify.reshapes import RESHAPING, known_shape
from .views import reshaped, shape_vector

_ROUNDING = within(rtol=1e-5)
_DEPTH = 12
_TYPES = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)
_UNARY = frozenset(["Cast", "Cos", "Identity", "Neg", "Sin"])
_BINARY = frozenset(["Add", "Div", "Mul", "Sub"])


class Piece(NamedTuple):
    """Every ``step``-th of the last dimension of ``source`` from ``start`` on, ``length`` of them."""

    source: Value
    start: int
    length: int
    step: int


def piece_of(value: Value) -> Piece | None:
    """What part of the last dimension of another value ``value`` is; all of itself, if of no other."""
    size = value.shape[-1] if value.shape else None
    if not isinstance(size, int):
        return None
    node = value.producer
    pairs = _column_of_pairs(value) if node is not None and node.op in ("Gather", *RESHAPING) else None
    if pairs is not None:
        return pairs
    if node is None or node.op not in ("Slice", "Split") or node.operands[0] is None or node.operands[0].shape is None:
        return Piece(value, 0, size, 1)
    found = _sliced(node) if node.op == "Slice" else _split(node, value)
    outer = piece_of(node.operands[0]) if found is not None else None
    if found is None or outer is None:
        return Piece(value, 0, size, 1)
    return Piece(outer.source, outer.start + found[0] * outer.step, size, outer.step * found[1])


def _column_of_pairs(value: Value) -> Piece | None:
    """The first or the second of each pair, where neighbours were put into a dimension of size 2 and taken from it."""
    node, shape = value.producer, known_shape(value)
    assert node is not None
    if node.op == "Gather":
        index = integers(node.operands[1])
        last = len(shape)
        if node.given(1).rank != 0 or index is None or node.attrs.get("axis", 0) not in (-1, last):
            return None
        pairs, first, count = node.operands[0], index[0] % 2, shape[-1]
    else:
        column: Value | None = node.operands[0] if node.op in RESHAPING else value
        if column is None or column.shape is None or column.shape[-1:] != (1,) or len(column.shape) < 2:
            return None
        if column is not value and column.shape[:-1] != shape:
            return None
        piece = piece_of(column)
        if piece is None:
            return None
        pairs, first, count = piece.source, piece.start, column.shape[-2]
    if pairs is None or pairs.shape is None or pairs.shape[-1] != 2 or pairs.shape[-2] != count:
        return None
    merge = pairs.producer
    whole = merge.operands[0] if merge is not None and merge.op in RESHAPING else None
    if whole is None or not isinstance(count, int) or whole.shape != (*pairs.shape[:-2], 2 * count):
        return None
    outer = piece_of(whole)
    return None if outer is None else Piece(outer.source, outer.start + first * outer.step, count, 2 * outer.step)


def _sliced(node: Node) -> tuple[int, int] | None:
    """Start and step of a Slice along the last axis alone."""
    assert node.operands[0] is not None
    starts, axes, steps = (integers(node.operand(i)) for i in (1, 3, 4))
    shape = known_shape(node.operands[0])
    if starts is None or axes is None or len(axes) != 1 or axes[0] % len(shape) != len(shape) - 1:
        return None
    step, size = (steps or (1,))[0], shape[-1]
    if step < 1 or not isinstance(size, int):
        return None
    start = starts[0]
    return (max(start + size, 0) if start < 0 else min(start, size)), step


def _split(node: Node, value: Value) -> tuple[int, int] | None:
    """Start and step of a result of a Split along the last axis."""
    assert node.operands[0] is not None
    sizes = [r.shape[-1] if r.shape else None for r in node.results[: value.index]]
    rank = len(known_shape(node.operands[0]))
    if node.attrs.get("axis", 0) % rank != rank - 1 or not all(isinstance(s, int) for s in sizes):
        return None
    return sum(s for s in sizes if isinstance(s, int)), 1


def _whole(part: Value, wanted: Piece) -> Value | None:
    """The value that is ``wanted``, of which ``part`` is a part."""
    value: Value | None = part
    while value is not None and value.shape is not None:
        if piece_of(value) == wanted:
            return value
        node = value.producer
        value = node.operands[0] if node is not None and node.op in ("Slice", "Split") else None
    return None


# tables


def single(table: Value, interleaved: bool, depth: int = 0) -> Value | None:
    """``table`` with one column per pair, where its columns are equal for both of a pair; None if that is not sure."""
    node = table.producer
    if table.const is not None:
        return _single_constant(table, interleaved)
    if node is None or depth > _DEPTH or not table.shape:
        return None
    found = _repeated(node, table, interleaved)
    if found is not None:
        return found
    if node.op in _UNARY or node.op in _BINARY:
        parts = [_column(o, interleaved, depth) for o in node.operands]
        if any(p is None for p in parts):
            return None
        return getattr(op, node.op)(*parts, **node.attrs)
    inner = single(node.given(0), interleaved, depth + 1) if _keeps_last(node) else None
    if inner is not None and node.op == "Reshape":
        return reshaped(inner, (*table.shape[:-1], known_shape(inner)[-1]), [table])
    return None if inner is None else getattr(op, node.op)(inner, *node.operands[1:], **node.attrs)


def _column(operand: Value | None, interleaved: bool, depth: int) -> Value | None:
    """An operand of an elementwise operator for one column per pair."""
    if operand is None or operand.shape is None:
        return None
    return operand if not operand.shape or operand.shape[-1] == 1 else single(operand, interleaved, depth + 1)


def _single_constant(table: Value, interleaved: bool) -> Value | None:
    assert table.const is not None
    if not table.const.is_cheap or not table.const.shape or table.const.shape[-1] % 2:
        return None
    array = table.const.numpy()
    half = array.shape[-1] // 2
    a, b = (array[..., ::2], array[..., 1::2]) if interleaved else (array[..., :half], array[..., half:])
    return constant(np.ascontiguousarray(a), table.dtype) if bool((a == b).all()) else None


def _repeated(node: Node, table: Value, interleaved: bool) -> Value | None:
    """What ``node`` repeats: side by side, or each column for itself."""
    if not interleaved:
        twice = node.op == "Concat" and len(node.operands) == 2 and node.operands[0] is node.operands[1]
        return node.operands[0] if twice and _is_last(node.attrs["axis"], table) else None
    source = node.operands[0] if node.op in RESHAPING else None
    if source is None or source.producer is None or source.shape is None or source.shape[-1:] != (2,):
        return None
    if not _alike(source.shape[:-2], known_shape(table)[:-1]):
        return None
    inner = source.producer
    columns = inner.operands[0]
    if inner.op == "Concat" and not all(o is columns for o in inner.operands):
        return None
    if (
        inner.op not in ("Concat", "Expand", "Tile")
        or columns is None
        or columns.shape is None
        or columns.shape[-1:] != (1,)
    ):
        return None
    if columns.shape[:-1] != source.shape[:-1]:
        return None
    return reshaped(columns, (*known_shape(table)[:-1], columns.shape[-2]), [table])


def _alike(a: Shape, b: Shape) -> bool:
    """Whether two shapes differ in dimensions of size 1 only."""
    return [d for d in a if d != 1] == [d for d in b if d != 1]


def _is_last(axis: int, value: Value) -> bool:
    return axis % len(known_shape(value)) == len(known_shape(value)) - 1


def _keeps_last(node: Node) -> bool:
    """Whether ``node`` only moves whole rows."""
    source, result = node.operands[0], node.results[0]
    if source is None or not source.shape or not result.shape or source.shape[-1] != result.shape[-1]:
        return False
    rank = len(source.shape)
    match node.op:
        case "Gather":
            return node.attrs.get("axis", 0) % rank != rank - 1
        case "Slice":
            axes = integers(node.operand(3))
            return axes is not None and all(a % rank != rank - 1 for a in axes)
        case "Unsqueeze" | "Squeeze":
            axes = integers(node.operand(1))
            larger = max(rank, len(result.shape))
            return axes is not None and all(a % larger != larger - 1 for a in axes)
        case "Reshape":
            return _alike(source.shape[:-1], result.shape[:-1])
        case "Transpose":
            return node.attrs.get("perm", (0,))[-1] == rank - 1
    return False


# the embedding


def _rotated(x: Piece, cos: Value, sin: Value, like: Value, interleaved: bool) -> Value:
    """The embedding of ``like``, which is all of ``x``; the tables have one column per pair."""
    shape = known_shape(like)
    require(like.dtype in _TYPES, "no floating-point numbers")
    require(len(shape) == 4, "the operand has not the dimensions batch, heads, positions and features")
    axis = next(
        (a for a in (1, 2) if all(_size(t, a) == 1 for t in (cos, sin)) and _size(cos, 3 - a) == shape[3 - a]), 0
    )
    require(axis, "the tables differ between heads, or do not have one row per position")
    cos, sin = (_rows(t, axis, shape[0], like) for t in (cos, sin))
    if axis == 1:
        return op.RotaryEmbedding(like, cos, sin, interleaved=int(interleaved))
    heads, size = shape[2:]
    require(isinstance(heads, int), "the number of heads is not known")
    flat = reshaped(like, (shape[0], shape[1], heads * size), [like])
    turned = op.RotaryEmbedding(flat, cos, sin, interleaved=int(interleaved), num_heads=heads)
    return reshaped(turned, shape, [like])


def _size(table: Value, axis: int) -> Dim:
    """The size of ``table`` along one of four axes that it broadcasts to."""
    shape = known_shape(table)
    return shape[axis - 4] if len(shape) >= 4 - axis else 1


def _rows(table: Value, heads: int, batch: Dim, like: Value) -> Value:
    """``table`` as batch, positions and pairs."""
    shape = [_size(table, a) for a in range(4)]
    require(shape[0] in (1, batch), "the tables have another batch size")
    flat = reshaped(table, (shape[0], shape[3 - heads], shape[3]), [like])
    if shape[0] == batch:
        return flat
    inputs = like.producer.graph.root.inputs if like.producer is not None and like.producer.graph is not None else []
    return op.Expand(flat, shape_vector([batch, 1, 1], [*inputs, like]))


def _factors(value: Value | None) -> tuple[Value, Value] | None:
    node = value.producer if value is not None else None
    if node is None or node.op != "Mul" or node.operands[0] is None or node.operands[1] is None:
        return None
    return node.operands[0], node.operands[1]


def _quarter_turn(value: Value) -> tuple[Piece, bool, int] | None:
    """What ``value`` is with each pair ``(a, b)`` turned to ``(-b, a)``, whether pairs are neighbours, and 1.

    Turned the other way, to ``(b, -a)``, it is -1.
    """
    node = value.producer
    if node is None:
        return None
    interleaved = node.op in RESHAPING
    if interleaved:
        node = node.operands[0].producer if node.operands[0] is not None else None
    if node is None or node.op != "Concat" or len(node.operands) != 2:
        return None
    if not _is_last(node.attrs["axis"], node.results[0]):
        return None
    (first, sign), (second, other) = (_signed(o, interleaved) for o in node.operands)
    if sign == other:
        return None
    found = _pair(second, first, interleaved)
    return None if found is None else (*found, other)


def _signed(value: Value | None, stacked: bool) -> tuple[Piece | None, int]:
    """What part ``value`` is, and the sign that it has; ``stacked``: it has a dimension of size 1 behind."""
    sign = 1
    for _ in range(3):
        node = value.producer if value is not None else None
        inner = _unstacked(value) if stacked else None
        if node is not None and node.op == "Neg":
            sign, value = -sign, node.operands[0]
        elif inner is not None:
            value, stacked = inner, False
    if value is None or value.producer is None:
        return None, sign
    return (_column_of_pairs(value) if stacked else piece_of(value)), sign


def _unstacked(value: Value | None) -> Value | None:
    node = value.producer if value is not None else None
    if node is None or node.op not in RESHAPING or node.operands[0] is None or value is None or value.shape is None:
        return None
    return node.operands[0] if value.shape == (*known_shape(node.operands[0]), 1) else None


def _pair(a: Piece | None, b: Piece | None, interleaved: bool) -> tuple[Piece, bool] | None:
    """What consists of the first elements ``a`` and the second elements ``b`` of all pairs."""
    if a is None or b is None or a.source is not b.source or a.length != b.length:
        return None
    if interleaved:
        fits = a.step == b.step == 2 and b.start == a.start + 1
    else:
        fits = a.step == b.step == 1 and b.start == a.start + a.length
    return (Piece(a.source, a.start, 2 * a.length, 1), interleaved) if fits else None


_HALVES = """
agraph (float[B,2,S,6] x, float[S,3] angle) => (float[B,2,S,6] y) <
  int64[1] zero = {0}, int64[1] three = {3}, int64[1] six = {6}, int64[1] last = {-1}
> {
  both = Concat <axis = -1> (angle, angle)
  cos = Cos (both)
  sin = Sin (both)
  a = Slice (x, zero, three, last)
  b = Slice (x, three, six, last)
  minus = Neg (b)
  turned = Concat <axis = -1> (minus, a)
  p = Mul (x, cos)
  q = Mul (turned, sin)
  y = Add (p, q)
}
"""
_NEIGHBOURS = """
agraph (float[B,S,2,4] x, float[B,S,1,2] angle) => (float[B,S,2,4] y) <
  int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}, int64[1] last = {-1},
  int64[5] pairs = {1, 1, 1, 1, 2}, int64[4] wide = {0, 0, 1, 4}, int64[4] joined = {0, 0, 2, 4}
> {
  stacked = Unsqueeze (angle, last)
  repeated = Expand (stacked, pairs)
  each = Reshape (repeated, wide)
  cos = Cos (each)
  sin = Sin (each)
  a = Slice (x, zero, four, last, two)
  b = Slice (x, one, four, last, two)
  minus = Neg (b)
  u = Unsqueeze (minus, last)
  v = Unsqueeze (a, last)
  w = Concat <axis = -1> (u, v)
  turned = Reshape (w, joined)
  p = Mul (x, cos)
  q = Mul (turned, sin)
  y = Add (p, q)
}
"""


_BACKWARDS = """
agraph (float[B,2,S,6] x, float[S,3] angle) => (float[B,2,S,6] y) <
  int64[1] zero = {0}, int64[1] three = {3}, int64[1] six = {6}, int64[1] last = {-1}
> {
  both = Concat <axis = -1> (angle, angle)
  cos = Cos (both)
  sin = Sin (both)
  a = Slice (x, zero, three, last)
  b = Slice (x, three, six, last)
  minus = Neg (a)
  turned = Concat <axis = -1> (b, minus)
  p = Mul (x, cos)
  q = Mul (turned, sin)
  y = Add (q, p)
}
"""
_PAIRS = """
agraph (float[B,2,S,4] x, float[S,2] angle) => (float[B,2,S,4] y) <
  int64 zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {-1},
  int64[5] split = {0, 0, 0, 2, 2}, int64[4] joined = {0, 0, 0, 4}, int64[2] wide = {0, 4}
> {
  stacked = Unsqueeze (angle, last)
  repeated = Concat <axis = -1> (stacked, stacked)
  each = Reshape (repeated, wide)
  cos = Cos (each)
  sin = Sin (each)
  pairs = Reshape (x, split)
  a = Gather <axis = -1> (pairs, zero)
  b = Slice (pairs, one, two, last)
  u = Neg (b)
  v = Unsqueeze (a, last)
  w = Concat <axis = -1> (u, v)
  turned = Reshape (w, joined)
  p = Mul (x, cos)
  q = Mul (turned, sin)
  y = Add (p, q)
}
"""


@rule("Add", numerics=_ROUNDING, examples=[_HALVES, _NEIGHBOURS, _BACKWARDS, _PAIRS])
def rotary_embedding(node: Node) -> Value | None:
    """``x * cos + quarter_turn(x) * sin``."""
    first, second = _factors(node.operands[0]), _factors(node.operands[1])
    if first is None or second is None:
        return None
    for plain, turned in ((first, second), (second, first)):
        for i in (0, 1):
            found = _quarter_turn(turned[i])
            if found is None:
                continue
            pairs, interleaved, direction = found
            for j in (0, 1):
                if piece_of(plain[j]) == pairs:
                    cos, sin = (single(t, interleaved) for t in (plain[1 - j], turned[1 - i]))
                    require(cos is not None and sin is not None, "the tables may differ within a pair")
                    assert cos is not None and sin is not None
                    sin = sin if direction > 0 else op.Neg(sin)
                    return _rotated(pairs, cos, sin, plain[j], interleaved)
    return None


_TWO_PARTS = """
agraph (float[B,2,S,6] x, float[B,1,S,3] cos, float[B,1,S,3] sin) => (float[B,2,S,6] y) <
  int64[1] zero = {0}, int64[1] three = {3}, int64[1] six = {6}, int64[1] last = {-1}
> {
  a = Slice (x, zero, three, last)
  b = Slice (x, three, six, last)
  p = Mul (a, cos)
  q = Mul (b, sin)
  u = Sub (p, q)
  r = Mul (b, cos)
  s = Mul (sin, a)
  v = Add (r, s)
  y = Concat <axis = -1> (u, v)
}
"""


_TWO_PARTS_BACKWARDS = """
agraph (float[B,2,S,6] x, float[B,1,S,3] cos, float[B,1,S,3] sin) => (float[B,2,S,6] y) <
  int64[1] zero = {0}, int64[1] three = {3}, int64[1] six = {6}, int64[1] last = {-1}
> {
  a = Slice (x, zero, three, last)
  b = Slice (x, three, six, last)
  p = Mul (cos, a)
  q = Mul (b, sin)
  u = Add (q, p)
  r = Mul (b, cos)
  s = Mul (sin, a)
  v = Sub (r, s)
  y = Concat <axis = -1> (u, v)
}
"""


@rule("Concat", numerics=_ROUNDING, examples=[_TWO_PARTS, _TWO_PARTS_BACKWARDS])
def rotary_embedding_in_parts(node: Node) -> Value | None:
    """``a * cos - b * sin`` and ``b * cos + a * sin``, joined."""
    result = node.results[0]
    if len(node.operands) != 2 or result.shape is None or not _is_last(node.attrs["axis"], result):
        return None
    interleaved = result.shape[-1] == 2
    u, v = (_unstacked(o) if interleaved else o for o in node.operands)
    if u is None or v is None or u.producer is None or v.producer is None:
        return None
    operands = (*u.producer.operands, *v.producer.operands)
    terms = [t for o in operands if (t := _factors(o)) is not None]
    if len(terms) != len(operands) or len(terms) != 4:
        return None
    found = list(_turned_parts(u.producer.op, v.producer.op, terms))
    if not found:
        return None
    fitting = (f for f in found if _pair(piece_of(f[0]), piece_of(f[1]), interleaved))
    a, b, cos, sin = next(fitting, found[0])  # cosines and sines may change places with the parts
    whole = _pair(piece_of(a), piece_of(b), interleaved)
    require(whole is not None, "the parts are no pairs of one value")
    assert whole is not None
    sin = sin if u.producer.op == "Sub" else op.Neg(sin)
    source = _whole(a, whole[0])
    require(source is not None, "the pairs are only a part of a value")
    assert source is not None
    turned = _rotated(whole[0], cos, sin, source, interleaved)
    return reshaped(turned, result.shape, [source]) if interleaved else turned


def _turned_parts(
    first: str, second: str, terms: list[tuple[Value, Value]]
) -> Iterator[tuple[Value, Value, Value, Value]]:
    """``a, b, cos, sin`` for the factors of ``a * cos - b * sin`` and ``b * cos + a * sin``; or of ``+`` and ``-``."""
    if {first, second} != {"Add", "Sub"}:
        return
    one, two, *rest = terms
    wanted = [frozenset(t) for t in rest]
    for x, y in ((one, two),) if first == "Sub" else ((one, two), (two, one)):
        for a, cos in (x, x[::-1]):
            for b, sin in (y, y[::-1]):
                found = [frozenset((b, cos)), frozenset((a, sin))]
                if found == wanted or (second == "Add" and found[::-1] == wanted):
                    yield a, b, cos, sin


_PARTIAL = """
agraph (float[B,2,S,6] x, float[B,S,2] cos, float[B,S,2] sin) => (float[B,2,S,6] y) <
  int64[1] zero = {0}, int64[1] four = {4}, int64[1] six = {6}, int64[1] last = {-1}
> {
  a = Slice (x, zero, four, last)
  b = Slice (x, four, six, last)
  turned = RotaryEmbedding (a, cos, sin)
  y = Concat <axis = -1> (turned, b)
}
"""


@rule("Concat", numerics=_ROUNDING, examples=[_PARTIAL])
def partial_rotary_embedding(node: Node) -> Value | None:
    """An embedding of the first features of each head, joined with the others as they were."""
    if len(node.operands) != 2 or not _is_last(node.attrs["axis"], node.results[0]):
        return None
    turned, rest = node.operands
    assert turned is not None and rest is not None
    inner = turned.producer
    on_rows = inner is not None and inner.op == "Reshape"
    if on_rows:
        assert inner is not None and inner.operands[0] is not None
        inner = inner.operands[0].producer
    if inner is None or inner.op != "RotaryEmbedding" or "rotary_embedding_dim" in inner.attrs:
        return None
    operand = inner.operands[0]
    assert operand is not None
    part = reshaped(operand, known_shape(turned)) if on_rows else operand
    first, last = piece_of(part), piece_of(rest)
    require(first is not None and last is not None and first.source is last.source, "the rest is of another value")
    assert first is not None and last is not None
    adjacent = first.step == last.step == 1 and last.start == first.start + first.length
    require(adjacent, "the parts are not adjacent")
    whole = _whole(rest, first._replace(length=first.length + last.length))
    require(whole is not None, "the parts are not the whole")
    assert whole is not None
    attrs = {**inner.attrs, "rotary_embedding_dim": first.length}
    if not on_rows:
        return op.RotaryEmbedding(whole, *inner.operands[1:], **attrs)
    batch, length, heads, size = known_shape(whole)
    flat = reshaped(whole, (batch, length, heads * size), [whole])
    return reshaped(op.RotaryEmbedding(flat, *inner.operands[1:], **attrs), known_shape(whole), [whole])
