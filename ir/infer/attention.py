"""Attention, rotary embeddings, and recurrent layers."""

from __future__ import annotations

from ..dims import Dim, dim_floordiv, fresh
from ..graph import Node
from ..types import TensorType, Type
from .common import (
    FLOATS,
    Shape,
    attr_int,
    broadcast_to,
    check_dtype,
    common_dtype,
    dtypes,
    operand_type,
    optional_type,
    same_dim,
)
from .engine import IllTyped, typing

_ROTATED = dtypes("FLOAT16 FLOAT BFLOAT16")


@typing("Attention")
def _attention(node: Node) -> Type | tuple[Type, ...]:
    q, k, v = (operand_type(node, i) for i in range(3))
    check_dtype(node, common_dtype(node, (q, k)), FLOATS)
    check_dtype(node, v.dtype, FLOATS)
    query = _heads(node, q.shape, "q_num_heads")
    key, value = _heads(node, k.shape, "kv_num_heads"), _heads(node, v.shape, "kv_num_heads")
    if query is None or key is None or value is None:
        return (TensorType(q.dtype, None), TensorType(k.dtype, None), TensorType(v.dtype, None))
    _check_attention(node, query, key, value)
    batch, heads, length, _ = query
    if len(q.shape or ()) == 3:
        result = TensorType(q.dtype, (batch, length, heads * value[3]))
    else:
        result = TensorType(q.dtype, (batch, heads, length, value[3]))
    if len(node.results) == 1 and len(node.operands) < 4:
        return result
    present_k = _extended(node, _past_shape(node, 4), key)
    present_v = _extended(node, _past_shape(node, 5), value)
    _check_mask(node, (batch, heads, length, present_k[2]))
    return (
        result,
        TensorType(k.dtype, present_k),
        TensorType(v.dtype, present_v),
        TensorType(q.dtype, (batch, heads, length, present_k[2])),
    )


def _heads(node: Node, shape: Shape | None, count: str) -> Shape | None:
    """``shape`` as batch, heads, length and size of a head."""
    if shape is None or len(shape) == 4:
        return shape
    if len(shape) != 3:
        raise IllTyped(f"Attention: an operand of rank {len(shape)}")
    heads = attr_int(node, count, 0)
    if heads <= 0:
        raise IllTyped(f"Attention: {count} is {heads}, and an operand has rank 3")
    size = shape[2]
    if type(size) is int and size % heads:
        raise IllTyped(f"Attention: {size} is no multiple of {heads} heads")
    return (shape[0], heads, shape[1], dim_floordiv(size, heads))


def _check_attention(node: Node, query: Shape, key: Shape, value: Shape) -> None:
    same_dim(node, query[0], key[0])
    same_dim(node, query[0], value[0])
    same_dim(node, query[3], key[3])
    same_dim(node, key[1], value[1])
    same_dim(node, key[2], value[2])
    q_heads, kv_heads = query[1], key[1]
    if type(q_heads) is int and type(kv_heads) is int and (kv_heads == 0 or q_heads % kv_heads):
        raise IllTyped(f"Attention: {q_heads} query heads for {kv_heads} key heads")


def _past_shape(node: Node, i: int) -> Shape | None:
    """The shape of the optional operand ``i``; None where it is left out; unknown sizes where its rank is unknown."""
    type_ = optional_type(node, i)
    if type_ is None:
        return None
    return type_.shape if type_.shape is not None else (fresh(), fresh(), fresh(), fresh())


def _extended(node: Node, past: Shape | None, present: Shape) -> Shape:
    if past is None:
        return present
    if len(past) != 4:
        raise IllTyped(f"Attention: a past of rank {len(past)}")
    same_dim(node, past[1], present[1])
    same_dim(node, past[3], present[3])
    return (present[0], present[1], past[2] + present[2], present[3])


def _check_mask(node: Node, scores: Shape) -> None:
    mask = optional_type(node, 3)
    if mask is None or mask.shape is None:
        return
    if len(mask.shape) > 4:
        raise IllTyped(f"Attention: a mask of rank {len(mask.shape)}")
    broadcast_to(node, mask.shape[:-1], scores[:-1])  # the last may be shorter, and is padded


@typing("RotaryEmbedding")
def _rotary_embedding(node: Node) -> Type:
    x, cos, sin = (operand_type(node, i) for i in range(3))
    common_dtype(node, (x, cos, sin), _ROTATED)
    if x.shape is not None and len(x.shape) not in (3, 4):
        raise IllTyped(f"RotaryEmbedding of a tensor of rank {len(x.shape)}")
    return x


# recurrent layers

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@typing("LSTM", "GRU", "RNN")
def _recurrent(node: Node) -> tuple[Type, ...]:
    x, w, r = (operand_type(node, i) for i in range(3))
    dtype = common_dtype(node, (x, w, r), FLOATS)
    for type_ in (x, w, r):
        if type_.shape is not None and len(type_.shape) != 3:
            raise IllTyped(f"{node.op}: an operand of rank {len(type_.shape)}")
    directions = 2 if node.attrs.get("direction", "forward") == "bidirectional" else 1
    hidden = _hidden_size(node, w.shape, r.shape)
    length, batch, features = (fresh(), fresh(), fresh()) if x.shape is None else x.shape
    if w.shape is not None:
        same_dim(node, features, w.shape[2])
    if attr_int(node, "layout", 0):
        length, batch = batch, length
        every: Shape = (batch, length, directions, hidden)
        last: Shape = (batch, directions, hidden)
    else:
        every, last = (length, directions, batch, hidden), (directions, batch, hidden)
    final = TensorType(dtype, last)
    return (TensorType(dtype, every), final, final)[: 3 if node.op == "LSTM" else 2]


def _hidden_size(node: Node, w: Shape | None, r: Shape | None) -> Dim:
    gates = _GATES[node.op]
    hidden: Dim = attr_int(node, "hidden_size", 0)
    if w is not None:
        if type(w[1]) is int and w[1] % gates:
            raise IllTyped(f"{node.op}: a weight of {list(w)}")
        size = dim_floordiv(w[1], gates)
        hidden = same_dim(node, hidden, size) if hidden else size
    if r is not None:
        hidden = same_dim(node, hidden, r[2]) if hidden else r[2]
    return hidden or fresh()
