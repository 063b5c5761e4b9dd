"""The directions of recurrent layers: layers over reversed steps go backwards, and two directions become one layer."""

from __future__ import annotations

from typing import NamedTuple

from ...ir import Node, Value, constant, op
from ...ir.types import DType
from ..numerics import within
from ..rules import require, rule
from ..simplify.fold_constants import integers
from ..simplify.reshapes import known_shape
from .views import available

_ROUNDING = within(rtol=1e-4, atol=1e-5)

_BACKWARDS = """
agraph (float[T,B,3] x, float[1,6,3] w, float[1,6,2] r) => (float[T,1,B,2] y, float[1,B,2] last) <
  int64[1] start = {-1}, int64[1] end = {-9223372036854775808}, int64[1] axis = {0}, int64[1] step = {-1}
> {
  z = Slice (x, start, end, axis, step)
  y, last = GRU <hidden_size = 2> (z, w, r)
}
"""
_OF_FOUR = """
agraph (float[4,B,3] x, float[1,6,3] w, float[1,6,2] r) => (float[4,1,B,2] y, float[1,B,2] last) <
  int64[1] start = {3}, int64[1] end = {-5}, int64[1] axis = {0}, int64[1] step = {-1}
> {
  z = Slice (x, start, end, axis, step)
  y, last = GRU <hidden_size = 2> (z, w, r)
}
"""
_TWICE = """
agraph (float[T,1,B,3] x) => (float[B,T,3] y) <
  int64[1] start = {-1}, int64[1] end = {-9223372036854775808}, int64[1] step = {-1}, int64[1] zero = {0},
  int64[1] one = {1}
> {
  a = Slice (x, start, end, zero, step)
  b = Squeeze (a, one)
  c = Transpose <perm = [1, 0, 2]> (b)
  y = Slice (c, start, end, one, step)
}
"""
_BOTH = """
agraph (float[T,B,3] x, float[1,8,3] w, float[1,8,2] r, float[1,8,3] v, float[1,8,2] s)
  => (float[B,T,4] z, float[B,4] last) < int64[1] one = {1}, int64[1] zero = {0} > {
  y, h, c = LSTM <hidden_size = 2> (x, w, r)
  yb, hb, cb = LSTM <hidden_size = 2, direction = "reverse"> (x, v, s)
  a = Squeeze (y, one)
  b = Squeeze (yb, one)
  p = Transpose <perm = [1, 0, 2]> (a)
  q = Transpose <perm = [1, 0, 2]> (b)
  z = Concat <axis = 2> (p, q)
  k = Squeeze (h, zero)
  l = Squeeze (hb, zero)
  last = Concat <axis = -1> (k, l)
}
"""


_OPERATORS = ("LSTM", "GRU", "RNN")


@rule(*_OPERATORS, numerics=_ROUNDING, examples=[_BACKWARDS, _OF_FOUR])
def reversed_layer(node: Node) -> tuple[Value, ...] | None:
    """A layer over steps that were put in reverse order goes the other way over them."""
    source = _reversed(node.given(0), 0)
    direction = node.attrs.get("direction", "forward")
    if source is None or direction == "bidirectional":
        return None
    require(not node.attrs.get("layout") and node.operand(4) is None, "its sequences have lengths of their own")
    attrs = {**node.attrs, "direction": "forward" if direction == "reverse" else "reverse"}
    y, *ends = getattr(op, node.op)(source, *node.operands[1:], **attrs, outputs=len(node.results))
    return (_reverse(y, 0), *ends)


def _reversed(value: Value, axis: int) -> Value | None:
    """What a value is in reverse order along ``axis``."""
    node = value.producer
    if node is None or node.op != "Slice" or not value.shape:
        return None
    parts = [integers(o) for o in node.operands[1:]]
    if len(parts) != 4 or any(part is None or len(part) != 1 for part in parts):
        return None
    start, end, along, step = (part[0] for part in parts if part is not None)
    size = value.shape[axis]
    last, before = (size - 1, -size - 1) if isinstance(size, int) else (_FURTHEST, -_FURTHEST)
    is_whole = step == -1 and (start == -1 or start >= last) and end <= before
    is_along = (along - axis) % len(value.shape) == 0 and known_shape(node.given(0)) == value.shape
    return node.given(0) if is_whole and is_along else None


_FURTHEST = (1 << 31) - 1  # no dimension has more


def _ints(*numbers: int) -> Value:
    return constant(numbers, DType.INT64)


def _reverse(value: Value, axis: int) -> Value:
    return op.Slice(value, _ints(-1), _ints(-(1 << 63)), _ints(axis), _ints(-1))


@rule("Slice", examples=[_TWICE])
def reversed_twice(node: Node) -> Value | None:
    """What is put in reverse order, moved, and put in reverse order again, is only moved."""
    moved, axes = node.given(0), integers(node.operand(3))
    if axes is None or len(axes) != 1 or moved.rank is None or _reversed(node.result, axes[0]) is None:
        return None
    axis, value, moves = axes[0] % moved.rank, moved, []
    while (source := _reversed(value, axis)) is None:
        move = value.producer
        if move is None or move.op not in ("Squeeze", "Transpose") or (order := _order(move)) is None:
            return None
        axis, value = order[axis], move.given(0)
        moves.append(move)
    for move in reversed(moves):
        source = getattr(op, move.op)(source, *move.operands[1:], **move.attrs)
    return source


def _order(move: Node) -> tuple[int, ...] | None:
    """The dimensions of the operand that are those of the result, of a node that only moves dimensions.

    It may also drop or add such of size 1: added ones are -1.
    """
    rank = move.given(0).rank
    if rank is None:
        return None
    if move.op == "Unsqueeze" and (axes := integers(move.operand(1))) is not None:
        old, added = iter(range(rank)), {a % (rank + len(axes)) for a in axes}
        return tuple(-1 if d in added else next(old) for d in range(rank + len(axes)))
    if move.op == "Transpose":
        return tuple(move.attrs.get("perm") or range(rank - 1, -1, -1))
    if move.op == "Squeeze" and (axes := integers(move.operand(1))) is not None:
        return tuple(d for d in range(rank) if d not in {a % rank for a in axes})
    if move.op == "Gather" and not move.given(1).rank and move.given(0).shape is not None:
        axis = move.attrs.get("axis", 0) % rank
        if move.given(0).shape[axis] == 1:  # type: ignore[index]
            return tuple(d for d in range(rank) if d != axis)
    return None


class _Output(NamedTuple):
    """A result of a layer by its number, and its dimensions in the order in which they are seen."""

    layer: Node
    number: int
    order: tuple[int, ...]


def _output(value: Value) -> _Output | None:
    """What a value shows of a layer."""
    order = tuple(range(value.rank or 0))
    while (node := value.producer) is not None:
        if node.op in _OPERATORS:
            return _Output(node, value.index, order)
        moved = _order(node)
        if moved is None:
            return None
        order, value = tuple(d if d < 0 else moved[d] for d in order), node.given(0)
    return None


@rule("Concat", numerics=_ROUNDING, examples=[_BOTH])
def both_directions(node: Node) -> dict[Node, list[Value]] | None:
    """Two layers that go over the same steps in both directions, side by side, are one."""
    ends = [None if o is None else _output(o) for o in node.operands]
    if len(ends) != 2 or (first := ends[0]) is None or (second := ends[1]) is None:
        return None
    rank, (layer, number, order) = node.result.rank or 1, first
    is_last = node.attrs["axis"] % rank == rank - 1
    require(second[1:] == (number, order) and is_last, "they are joined in another way")
    require(_differ_in_direction(layer, second.layer), "they are no two directions of one layer")
    axis = 0 if number else 1  # the dimension that counts directions
    features = 2 if number else 3
    others = [d for d in range(features + 1) if d != axis]
    require(sorted(order) == others and order[-1] == features, "they are not joined along their features")
    results = _both(layer, second.layer)
    halves = [op.Split(r, _ints(1, 1), axis=0 if i else 1, outputs=2) for i, r in enumerate(results)]
    beside = op.Transpose(results[number], perm=[*order[:-1], axis, features])
    joined = op.Reshape(beside, _ints(*[0] * (len(order) - 1), 2 * layer.attrs["hidden_size"]))
    return {node: [joined], layer: [h[0] for h in halves], second.layer: [h[1] for h in halves]}


def _differ_in_direction(first: Node, second: Node) -> bool:
    """Whether two layers are the same but for weights and directions, the first of which is forward."""
    ways = [n.attrs.get("direction", "forward") for n in (first, second)]
    names = {*first.attrs, *second.attrs} - {"direction"}
    operands = [(first.operand(i), second.operand(i)) for i in range(8)]
    return (
        (first.op, len(first.results), *ways) == (second.op, len(second.results), "forward", "reverse")
        and all(first.attrs.get(k) == second.attrs.get(k) for k in names)
        and all((a is None) == (b is None) for a, b in operands)
        and all(operands[i][0] is operands[i][1] for i in _COMMON)
        and not first.attrs.get("layout")
        and "hidden_size" in first.attrs
    )


_COMMON = (0, 4)  # operands that both directions share: the steps, and the lengths of sequences
_BY_DIRECTION = ("activations", "activation_alpha", "activation_beta")


def _both(first: Node, second: Node) -> tuple[Value, ...]:
    """The results of one layer for two."""
    joined: list[Value | None] = []
    for i, (a, b) in enumerate(zip(first.operands, second.operands, strict=False)):
        if i in _COMMON or a is None or b is None:
            joined.append(a)
        else:
            joined.append(op.Concat(available(a, first), available(b, first), axis=0))
    twice = {k: tuple(first.attrs[k]) * 2 for k in _BY_DIRECTION if k in first.attrs}
    attrs = {**first.attrs, **twice, "direction": "bidirectional"}
    return getattr(op, first.op)(*joined, **attrs, outputs=len(first.results))
