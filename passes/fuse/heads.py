"""What Attention does by itself: splitting and joining heads, and repeating keys and values for groups of queries."""

from __future__ import annotations

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.dims import Dim
from ...ir.types import DType, Shape
from ..numerics import within
from ..rules import require, rule
from ..simplify.fold_constants import integers
from ..simplify.reshapes import RESHAPING, known_shape
from ..simplify.transposes import perm_of
from .views import reshaped

_HEADS_FIRST = (0, 2, 1, 3)


_REPEATED = """
agraph (float[B,4,S,8] q, float[B,2,T,8] k, float[B,2,T,8] v) => (float[B,4,S,8] y) <
  int64[1] two = {2}, int64[5] twice = {1, 1, 2, 1, 1}, int64[4] merged = {0, 4, -1, 8}, int64[4] index = {0, 0, 1, 1}
> {
  a = Unsqueeze (k, two)
  b = Expand (a, twice)
  c = Reshape (b, merged)
  d = Gather <axis = 1> (v, index)
  y = Attention (q, c, d)
}
"""
_SINGLE = """
agraph (float[B,4,S,8] q, float[B,T,1,8] k, float[B,1,T,8] v, bool[S,T] mask) => (float[B,4,S,8] y) <
  int64[4] rows = {1, 1, 4, 1}, int64[4] heads = {1, 4, 1, 1}
> {
  a = Tile (k, rows)
  b = Transpose <perm = [0, 2, 1, 3]> (a)
  c = Expand (v, heads)
  y = Attention (q, b, c, mask)
}
"""


@rule("Attention", examples=[_REPEATED, _SINGLE])
def shared_heads(node: Node) -> Value | None:
    """Keys and values that are repeated for several heads of queries: Attention repeats them itself."""
    if node.given(0).rank != 4 or len(node.results) > 1 or len(node.operands) > 4:
        return None
    key, value = _before_repeat(node.given(1)), _before_repeat(node.given(2))
    if key is None and value is None:
        return None
    require(key is not None and value is not None, "only one of keys and values is repeated")
    assert key is not None and value is not None
    require(known_shape(key)[1] == known_shape(value)[1], "keys and values are repeated differently")
    return op.Attention(node.operands[0], key, value, *node.operands[3:], **node.attrs)


def _before_repeat(value: Value) -> Value | None:
    """``[B, H, T, D]`` before each of its heads was repeated to ``[B, H * n, T, D]``; None if it was not."""
    node = value.producer
    if node is None:
        return None
    if node.op == "Transpose" and perm_of(node) == _HEADS_FIRST:
        source = _ungrouped(node.given(0), 2)
        return None if source is None else op.Transpose(source, perm=_HEADS_FIRST)
    return _ungrouped(value, 1)


def _ungrouped(value: Value, axis: int) -> Value | None:
    """``value`` before each slice along ``axis`` was repeated."""
    node, shape = value.producer, value.shape
    if node is None or shape is None:
        return None
    source = node.operands[0]
    if source is None or source.shape is None:
        return None
    if node.op == "Gather" and node.attrs.get("axis", 0) == axis:
        return source if _repeats(node.operands[1], source.shape[axis]) else None
    if node.op == "Pad" and _pads_only(node, 3 - axis):
        inner = _ungrouped(source, axis)
        return None if inner is None else op.Pad(inner, *node.operands[1:], **node.attrs)
    if node.op == "Concat" and node.attrs["axis"] % len(shape) == len(shape) - 1:
        parts = [_ungrouped(o, axis) for o in node.operands if o is not None]
        return None if any(p is None for p in parts) else op.Concat(*parts, axis=-1)
    if node.op in ("Expand", "Tile") and len(source.shape) == len(shape):  # a single head for all
        same = all(a == b for i, (a, b) in enumerate(zip(source.shape, shape, strict=True)) if i != axis)
        return source if source.shape[axis] == 1 and same and shape[axis] != 1 else None
    if node.op not in RESHAPING:
        return None
    while source.producer is not None and source.producer.op in RESHAPING and source.producer.operands[0] is not None:
        source = source.producer.operands[0]
    return _before_stack(source, value, axis)


def _pads_only(node: Node, axis: int) -> bool:
    """Whether a Pad of a tensor of rank 4 pads only along ``axis``."""
    pads = integers(node.operand(1))
    return (
        pads is not None
        and len(pads) == 8
        and node.operand(3) is None
        and not any(n for i, n in enumerate(pads) if i % 4 != axis)
    )


def _before_stack(stacked: Value, value: Value, axis: int) -> Value | None:
    """``value`` merges two dimensions of ``stacked``, along the second of which all is the same."""
    node, shape, result = stacked.producer, stacked.shape, known_shape(value)
    if node is None or shape is None or len(shape) != len(result) + 1:
        return None
    if (*shape[:axis], *shape[axis + 2 :]) != (*result[:axis], *result[axis + 1 :]):
        return None
    flat = (*shape[: axis + 1], *shape[axis + 2 :])
    if node.op == "Concat" and node.attrs["axis"] % len(shape) == axis + 1:
        first = node.given(0)
        alike = all(o is first for o in node.operands) and known_shape(first)[axis + 1] == 1
        return reshaped(first, flat, [first]) if alike else None
    if node.op not in ("Expand", "Tile"):
        return None
    source = node.operands[0]
    single: Shape = (*shape[: axis + 1], 1, *shape[axis + 2 :])
    return reshaped(source, flat, [source]) if source is not None and source.shape == single else None


def _repeats(index: Value | None, size: Dim) -> bool:
    """Whether ``index`` is 0, …, 0, 1, …, 1, 2, … with every number equally often."""
    if index is None or index.const is None or not isinstance(size, int) or index.rank != 1:
        return False
    numbers = index.const.numpy()
    return (
        numbers.size > size
        and numbers.size % size == 0
        and bool((numbers == np.repeat(np.arange(size), numbers.size // size)).all())
    )


_ROWS = """
agraph (float[B,S,4,8] q, float[B,T,16] k, float[B,T,2,12] v, float[B,S,4] cos, float[B,S,4] sin) => (float[B,S,32] y) <
  int64[4] split = {0, 0, 2, 8}, int64[3] merged = {0, 0, 32}, int64[2] parts = {8, 4}
> {
  q4 = Transpose <perm = [0, 2, 1, 3]> (q)
  qr = RotaryEmbedding (q4, cos, sin)
  k3 = Reshape (k, split)
  k4 = Transpose <perm = [0, 2, 1, 3]> (k3)
  v4 = Transpose <perm = [0, 2, 1, 3]> (v)
  a, b = Split <axis = -1> (v4, parts)
  o = Attention (qr, k4, a)
  t = Transpose <perm = [0, 2, 1, 3]> (o)
  y = Reshape (t, merged)
}
"""


_CACHED_ROWS = """
agraph (float[B,S,16] q, float[B,S,16] k, float[B,S,16] v, float[B,2,P,8] pk, float[B,2,P,8] pv) =>
  (float[B,2,S,8] y, float[B,2,T,8] keys, float[B,2,T,8] values) <int64[4] split = {0, 0, 2, 8}>
{
  q3 = Reshape (q, split)
  q4 = Transpose <perm = [0, 2, 1, 3]> (q3)
  k3 = Reshape (k, split)
  k4 = Transpose <perm = [0, 2, 1, 3]> (k3)
  v3 = Reshape (v, split)
  v4 = Transpose <perm = [0, 2, 1, 3]> (v3)
  y, keys, values = Attention (q4, k4, v4, , pk, pv)
}
"""


@rule("Attention", numerics=within(rtol=1e-5), examples=[_ROWS, _CACHED_ROWS])
def attention_on_rows(node: Node) -> Value | tuple[Value, ...] | None:
    """Queries, keys and values whose heads are split and moved to the front: Attention reads the rows as they were."""
    operands = [node.given(i) for i in range(3)]
    if operands[0].rank != 4 or len(node.results) > 3:
        return None
    if any(o.producer is None or o.rank != 4 for o in operands):
        return None
    unmoved = [_before_move(o) for o in operands]
    if all(u is None for u in unmoved):
        return None
    require(all(u is not None for u in unmoved), "some of queries, keys and values do not come as rows")
    heads, kv_heads = (known_shape(o)[1] for o in operands[:2])
    require(isinstance(heads, int) and isinstance(kv_heads, int), "the number of heads is not known")
    require(all(isinstance(known_shape(o)[3], int) for o in operands), "the size of a head is not known")
    rows = [_merged(u) for u in unmoved if u is not None]
    counts = {"q_num_heads": heads, "kv_num_heads": kv_heads}
    made = op.Attention(*rows, *node.operands[3:], outputs=len(node.results), **node.attrs, **counts)
    result, *presents = made if isinstance(made, tuple) else (made,)
    batch, _, length, size = known_shape(node.results[0])
    split = reshaped(result, (batch, length, heads, size), [rows[0]])
    return (op.Transpose(split, perm=_HEADS_FIRST), *presents)


def _merged(value: Value) -> Value:
    batch, length, heads, size = known_shape(value)
    return reshaped(value, (batch, length, heads * size), [value])


def _before_move(value: Value) -> Value | None:
    """``[B, S, H, D]`` for the ``[B, H, S, D]`` made of it, perhaps by way of operators that see each row by itself."""
    node = value.producer
    if node is None or node.operands[0] is None:
        return None
    if node.op == "Transpose" and perm_of(node) == _HEADS_FIRST:
        return node.operands[0]
    if node.op == "Pad" and value.rank == 4 and len(value.users) == 1 and _pads_only(node, 2):
        inner = _before_move(node.given(0))
        pads = integers(node.operand(1)) or ()
        moved = constant([pads[i] for i in (0, 2, 1, 3, 4, 6, 5, 7)], DType.INT64)
        return None if inner is None else op.Pad(inner, moved, *node.operands[2:], **node.attrs)
    inner = _before_move(node.given(0)) if _is_row_wise(node, value) else None
    if inner is None:
        batch, heads, length, size = known_shape(value)
        return reshaped(value, (batch, length, heads, size), [value]) if 1 in (heads, length) else None
    if node.op == "RotaryEmbedding":
        shape = known_shape(inner)
        turned = op.RotaryEmbedding(_merged(inner), *node.operands[1:], **node.attrs, num_heads=shape[2])
        return reshaped(turned, shape, [inner])
    result = getattr(op, node.op)(inner, *node.operands[1:], outputs=len(node.results), **node.attrs)
    return result[value.index] if isinstance(result, tuple) else result


def _is_row_wise(node: Node, value: Value) -> bool:
    """Whether ``node`` does the same to each row of its first operand, of rank 4, and to nothing else."""
    if node.given(0).rank != 4 or (len(value.users) > 1 and node.op != "Split"):
        return False
    match node.op:
        case "RotaryEmbedding":
            return "num_heads" not in node.attrs
        case "RMSNormalization" | "LayerNormalization":
            return node.attrs.get("axis", -1) in (-1, 3) and len(node.results) == 1
        case "Split":
            return node.attrs.get("axis", 0) in (-1, 3)
        case "Slice":
            return integers(node.operand(3)) in ((-1,), (3,), [-1], [3])
        case "Mul" | "Div" | "Add" | "Sub":
            other = node.given(1).shape
            return other is not None and len(other) <= 4 and all(d == 1 for d in other[:-1])
    return False
