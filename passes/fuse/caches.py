"""Caches of keys and values: what is joined to earlier positions and handed on is Attention's past and present."""

from __future__ import annotations

from ...ir import Node, Value, op
from ...ir.dims import Dim
from ..rules import require, rule
from ..simplify.reshapes import known_shape

_EXAMPLE = """
agraph (float[B,4,S,8] q, float[B,2,S,8] k, float[B,2,S,6] v, float[B,2,P,8] past_k, float[B,2,P,6] past_v,
        float[S,T] mask) => (float[B,4,S,6] y, float[B,2,T,8] keys, float[B,2,T,6] values) {
  keys = Concat <axis = 2> (past_k, k)
  values = Concat <axis = -2> (past_v, v)
  y = Attention (q, keys, values, mask)
}
"""


@rule("Attention", examples=[_EXAMPLE])
def attention_with_cache(node: Node) -> dict[Node, Value | tuple[Value, ...]] | None:
    """Keys and values that are joined to those of earlier positions: Attention joins them itself."""
    if len(node.operands) > 4 or len(node.results) > 1:
        return None
    keys, values = (_joined(node.given(i)) for i in (1, 2))
    if keys is None or values is None or keys is values:
        return None
    (past_k, k), (past_v, v) = ((n.given(0), n.given(1)) for n in (keys, values))
    require(_length(past_k) == _length(past_v), "keys and values have caches of different lengths")
    require(_length(k) == _length(v), "there are not as many new keys as new values")
    q, mask = node.operands[0], node.operand(3)
    y, present_k, present_v = op.Attention(q, k, v, mask, past_k, past_v, outputs=3, **node.attrs)
    return {keys: present_k, values: present_v, node: y}


def _joined(value: Value) -> Node | None:
    """The node that joins earlier and new rows of heads to ``value``."""
    node = value.producer
    if node is None or node.op != "Concat" or len(node.operands) != 2:
        return None
    rank = len(known_shape(node.results[0]))
    return node if rank == 4 and node.attrs["axis"] % rank == 2 else None


def _length(heads: Value) -> Dim:
    return known_shape(heads)[2]
