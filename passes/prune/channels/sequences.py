"""Channels of attention, rotary embeddings and recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from ....ir import Node
from ....ir.dims import Dim
from .axes import Axes, Axis, Channels, Fixed, static_size, without_ones
from .coupling import Analysis, Opaque, couples

Result = Sequence[Axes]


@couples("Attention")
def _attention(a: Analysis, node: Node) -> Result:
    """Heads are what goes: those of queries in groups, one for each head of keys and values."""
    q, k, v = (a.operand(node, i) for i in range(3))
    sizes = [_heads(node, i, name) for i, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads"))]
    (queries, width), (keys, _), (_, depth) = sizes
    kv = a.coupling.new(keys, liked=True)
    heads = kv if queries == keys else a.coupling.new(queries, liked=True)
    if heads is not kv:
        a.coupling.product(heads, (kv, a.coupling.new(queries // keys)))
    inner, made = a.coupling.new(width), a.coupling.new(depth)
    for x, head, element in ((q, heads, inner), (k, kv, inner), (v, kv, made)):
        if len(x) == 3:
            a.unify(node, without_ones((head, element)), x[2])
        else:
            a.unify(node, without_ones((head,)), x[1])
            a.unify(node, without_ones((element,)), x[3])
    for i, element in ((4, inner), (5, made)):
        if node.operand(i) is not None:
            past = a.operand(node, i)
            a.unify(node, without_ones((kv,)), past[1])
            a.unify(node, without_ones((element,)), past[3])
    if node.operand(3) is not None:
        _mask(a, node, without_ones((heads,)))
    if not node.attrs.get("scale"):
        a.fix(lambda shrink: shrink.set_attr(node, "scale", 1 / sqrt(width)) if shrink.changes((inner,)) else None)
    if len(q) == 3:
        a.fix(lambda shrink: shrink.set_count(node, "q_num_heads", (heads,)))
        a.fix(lambda shrink: shrink.set_count(node, "kv_num_heads", (kv,)))
        result: Axes = (q[0], q[1], without_ones((heads, made)))
    else:
        result = (q[0], without_ones((heads,)), q[2], without_ones((made,)))
    present = [(k[0], without_ones((kv,)), _length(node, i), without_ones((e,))) for i, e in ((1, inner), (2, made))]
    scores = (q[0], without_ones((heads,)), *((() if d == 1 else (Fixed(d),)) for d in _tail(node)))
    return [result, *present, scores][: len(node.results)]


def _heads(node: Node, index: int, count: str) -> tuple[int, int]:
    """The number of heads of an operand, and the size of each."""
    shape = node.given(index).shape or ()
    number = shape[1] if len(shape) == 4 else node.attrs.get(count, 0)
    size = shape[3] if len(shape) == 4 else shape[-1]
    if not isinstance(number, int) or not isinstance(size, int) or number < 1:
        raise Opaque("its heads are open")
    return number, size if len(shape) == 4 else size // number


def _mask(a: Analysis, node: Node, heads: Axis) -> None:
    mask = a.operand(node, 3)
    if len(mask) >= 3:
        a.unify(node, heads, mask[-3])
    a.freeze([axis for i, axis in enumerate(mask) if i != len(mask) - 3], "it is a mask of positions")


def _length(node: Node, index: int) -> Axis:
    shape = node.results[index].shape if index < len(node.results) else None
    return () if not shape or shape[2] == 1 else (Fixed(shape[2]),)


def _tail(node: Node) -> tuple[Dim, ...]:
    shape = node.results[3].shape if len(node.results) > 3 else None
    return shape[2:] if shape else ()


@couples("RotaryEmbedding")
def _rotary(a: Analysis, node: Node) -> Result:
    """Elements of a head are turned in pairs, so only whole heads can go."""
    x = a.operand(node, 0)
    for i in range(1, len(node.operands)):
        if node.operands[i] is not None:
            a.freeze(a.operand(node, i), "RotaryEmbedding turns by them")
    reason = "RotaryEmbedding turns them in pairs"
    if len(x) == 4:
        a.freeze([x[3]], reason)
        return [x]
    heads, size = int(node.attrs.get("num_heads", 0)), static_size(x[2])
    if heads < 1 or size is None:
        raise Opaque("its heads are open")
    head, element = a.coupling.new(heads, liked=True), a.coupling.new(size // heads)
    a.freeze([(element,)], reason)
    axis = without_ones((head, element))
    a.unify(node, axis, x[2])
    a.fix(lambda shrink: shrink.set_count(node, "num_heads", (head,)))
    return [(*x[:2], axis)]


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@couples(*_GATES)
def _recurrent(a: Analysis, node: Node) -> Result:
    """A unit is its rows in every gate, its column in the recurrence, and its element of the states."""
    gates = _GATES[node.op]
    x, w, r = (a.operand(node, i) for i in range(3))
    hidden = static_size(r[2])
    if hidden is None or hidden == 1 or len(w) != 3 or node.attrs.get("activation_alpha"):
        raise Opaque("the number of its units is open")
    units = a.coupling.new(hidden)
    a.unify(node, x[2], w[2])
    a.unify(node, (units,), r[2])
    rows = (Channels(np.tile(units.ids, gates)),)
    a.unify(node, rows, w[1])
    a.unify(node, rows, r[1])
    a.weight(node, 1, [1], [2])
    a.weight(node, 2, [1], [2])
    if node.operand(3) is not None:
        a.unify(node, (Channels(np.tile(units.ids, 2 * gates)),), a.operand(node, 3)[1])
    for i in (5, 6):
        if node.operand(i) is not None:
            a.unify(node, (units,), a.operand(node, i)[2])
    if node.operand(7) is not None:
        a.unify(node, (Channels(np.tile(units.ids, 3)),), a.operand(node, 7)[1])
    a.fix(lambda shrink: shrink.set_count(node, "hidden_size", (units,)))
    made = []
    for result in node.results:
        if result.shape is None:
            raise Opaque("the rank of a result is unknown")
        made.append((*[() if d == 1 else (Fixed(d),) for d in result.shape[:-1]], (units,)))
    return made
