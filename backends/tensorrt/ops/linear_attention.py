"""Attention with a state instead of a cache, and the convolution in front of it."""

from __future__ import annotations

from functools import reduce

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ..legality import Row
from ..versions import Version
from . import Form
from .elementwise import cast

__all__ = ["FORMS", "ROWS"]

_END = (1 << 63) - 1


# --- LinearAttention --------------------------------------------------------------------------------------------------


def _linear_attention(node: Node, version: Version) -> list[Value] | None:
    """One step, where there is one token; as products of matrices, where heads decay as a whole; else a Scan."""
    shapes = [s for i in range(3) if (s := node.given(i).shape) is not None and len(s) == 3]
    if len(shapes) < 3 or not all(isinstance(s[2], int) for s in shapes):
        return None
    rule, decay, tokens = node.attrs.get("update_rule", "gated_delta"), node.operand(4), shapes[0][1]
    if all(s[1] == 1 for s in shapes):
        answer, state = _step(node, rule)
    elif rule == "linear" or (rule == "gated" and _is_per_head(decay, node.attrs["kv_num_heads"])):
        answer, state = _at_once(node, decay if rule == "gated" else None, tokens)
    else:
        return None
    past, dtype = node.operand(3), node.given(0).dtype
    values = [cast(answer, dtype), cast(state, dtype if past is None else past.dtype)]
    return values[: len(node.results)]


def _is_per_head(decay: Value | None, groups: int) -> bool:
    return decay is not None and decay.shape is not None and decay.shape[-1] == groups


def _scaled_query(node: Node) -> Value:
    query, heads = node.given(0), node.attrs["q_num_heads"]
    width = query.shape[2] if query.shape is not None else None
    assert isinstance(width, int)
    scale = node.attrs.get("scale") or (width // heads) ** -0.5
    return op.Mul(_float(query), constant(scale, DType.FLOAT))


def _step(node: Node, rule: str) -> tuple[Value, Value]:
    """The answer and the state after one token."""
    past, decay, beta = (node.operand(i) for i in (3, 4, 5))
    heads, groups = node.attrs["q_num_heads"], node.attrs["kv_num_heads"]
    q = _reshaped(_scaled_query(node), 0, groups, heads // groups, -1)
    k, v = _float(_reshaped(node.given(1), 0, groups, -1, 1)), _float(_reshaped(node.given(2), 0, groups, 1, -1))
    state = None if past is None else _float(past)
    if decay is not None and state is not None and "gated" in rule:
        state = op.Mul(state, op.Exp(_float(_reshaped(decay, 0, groups, -1, 1))))
    if "delta" in rule:
        if state is not None:
            v = op.Sub(v, op.MatMul(op.Transpose(k, perm=(0, 1, 3, 2)), state))
        assert beta is not None
        v = op.Mul(_float(_reshaped(beta, 0, -1, 1, 1)), v)
    written = op.Mul(k, v)
    state = written if state is None else op.Add(state, written)
    return _reshaped(op.MatMul(q, state), 0, 1, -1), state


def _at_once(node: Node, decay: Value | None, tokens: object) -> tuple[Value, Value]:
    """The answers and the last state, for all tokens: as attention whose weights are what is left of the products."""
    heads, groups, past = node.attrs["q_num_heads"], node.attrs["kv_num_heads"], node.operand(3)
    q = op.Transpose(_reshaped(_scaled_query(node), 0, 0, groups, heads // groups, -1), perm=(0, 2, 3, 1, 4))
    keys = op.Transpose(_reshaped(_float(node.given(1)), 0, 0, groups, -1), perm=(0, 2, 3, 1))  # B, G, size, tokens
    values = op.Transpose(_reshaped(_float(node.given(2)), 0, 0, groups, -1), perm=(0, 2, 1, 3))
    scores, earlier = op.MatMul(q, op.Unsqueeze(keys, [2])), _earlier(node.given(0), tokens)
    if decay is None:
        scores = op.Where(earlier, scores, constant(0.0, DType.FLOAT))
    else:
        sums = op.CumSum(op.Transpose(_float(decay), perm=(0, 2, 1)), constant(2, DType.INT64))  # B, G, tokens
        rows, columns = op.Unsqueeze(sums, [2, 4]), op.Unsqueeze(sums, [2, 3])
        left = op.Where(earlier, op.Sub(rows, columns), constant(-np.inf, DType.FLOAT))
        scores = op.Mul(scores, op.Exp(left))
        last = op.Unsqueeze(op.Slice(sums, [-1], [_END], [2]), [2])  # B, G, 1, 1
        keys = op.Mul(keys, op.Exp(op.Sub(last, op.Unsqueeze(sums, [2]))))
    answer, state = op.MatMul(scores, op.Unsqueeze(values, [2])), op.MatMul(keys, values)
    if past is not None:
        old = _float(past)
        known = op.MatMul(q if decay is None else op.Mul(q, op.Exp(rows)), op.Unsqueeze(old, [2]))
        answer = op.Add(answer, known)
        state = op.Add(state, old if decay is None else op.Mul(old, op.Exp(last)))
    return _reshaped(op.Transpose(answer, perm=(0, 3, 1, 2, 4)), 0, 0, -1), state


def _earlier(rows: Value, tokens: object) -> Value:
    """Which tokens, in columns, are not later than those in rows."""
    if isinstance(tokens, int):
        return constant(np.tri(tokens, dtype=bool))
    length = op.Squeeze(op.Shape(rows, start=1, end=2), [0])
    places = op.Range(constant(0, DType.INT64), length, constant(1, DType.INT64))
    return op.GreaterOrEqual(op.Unsqueeze(places, [1]), places)


# --- CausalConvWithState ----------------------------------------------------------------------------------------------


def _causal_conv(node: Node, version: Version) -> list[Value] | None:
    """As a Conv by groups; as a sum of products where the number of channels is open."""
    x, weight, bias, past = node.given(0), node.given(1), node.operand(2), node.operand(3)
    if weight.shape is None or not isinstance(weight.shape[2], int):
        return None
    channels, before = weight.shape[0], weight.shape[2] - 1
    if past is not None:
        padded = op.Concat(past, x, axis=2)
    else:
        padded = op.Pad(x, constant([0, 0, before, 0, 0, 0], DType.INT64)) if before else x
    if isinstance(channels, int):
        made = op.Conv(padded, weight, bias, group=channels)
    else:
        made = _taps(padded, weight, before)
        made = made if bias is None else op.Add(made, op.Unsqueeze(bias, [1]))
    if node.attrs.get("activation", "none") != "none":
        made = op.Mul(made, op.Sigmoid(made))
    state = op.Slice(padded, [-before if before else _END], [_END], [2])
    return [made, state][: len(node.results)]


def _taps(padded: Value, weight: Value, before: int) -> Value:
    terms = [
        op.Mul(
            op.Slice(padded, [i], [i - before if i < before else _END], [2]),
            op.Squeeze(op.Slice(weight, [i], [i + 1], [2]), [1]),
        )
        for i in range(before + 1)
    ]
    return reduce(op.Add, terms)


def _float(value: Value) -> Value:
    return cast(value, DType.FLOAT)


def _reshaped(value: Value, *shape: int) -> Value:
    return op.Reshape(value, constant(shape, DType.INT64))


ROWS: dict[str, Row] = {}
FORMS: dict[str, Form] = {"CausalConvWithState": _causal_conv, "LinearAttention": _linear_attention}
