"""Attention, linear attention, rotary embeddings, and the causal convolution that goes with them.

Definitions: the ONNX operator specification: Attention-25, RotaryEmbedding-23, LinearAttention-27,
CausalConvWithState-27 and FlexAttention-1 of ai.onnx.preview.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.graph import Node
from ....ir.types import DType
from ..lowering import Call, lowers
from ..pallas_attention import Form, long_attention, takes
from ..precision import precision_of
from ..scores import attend, folded, in_window, positions, sum_type, times, unfolded, weighted
from ..values import to_dtype, traced

Array = Any


def _split_heads(x: Array, heads: int) -> Array:
    """(B, S, heads * D) as (B, S, heads, D)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)


def _scale_of(call: Call, query: Array) -> float:
    given = call["scale"]
    return 1 / math.sqrt(query.shape[-1]) if given is None else float(given)


def as_number(dim: Any) -> Any:
    """A dimension, which may be symbolic, to compute with."""
    return np.int32(dim) if isinstance(dim, int) else jnp.asarray(dim).astype(jnp.int32)


# Attention


def _refuses(node: Node) -> str | None:
    if (node.operand(4) is None) != (node.operand(5) is None):
        return "past_key and past_value go together"
    if node.operand(6) is not None and node.operand(4) is not None:
        return "nonpad_kv_seqlen states a cache outside of the operator, past_key one within"
    if min(node.attrs.get("left_window_size", -1), node.attrs.get("right_window_size", -1)) < -1:
        return "a window is of 0 or more keys, or -1 for all"
    return None


class _Masks(NamedTuple):
    """What keeps queries from keys.

    Attributes:
        form: where a query looks, seen from its own position; ``offset`` is 0 if ``shift`` is given.
        shift: the positions of the first queries, one for each element of the batch; None: they are all the same.
        keys: which keys are there, (B or 1, K); None is all.
        pairs: which key each query attends to, (B or 1, H or 1, Q or 1, K); None is every one.
        bias: numbers to add to scores, with such dimensions.
    """

    form: Form
    shift: Array
    keys: Array
    pairs: Array
    bias: Array

    @property
    def is_window(self) -> bool:
        return self.form.left is not None or self.form.right is not None

    def allowed(self, queries: Any, keys: Any, groups: int) -> Array:
        """Which keys are allowed, with `folded` rows; None is all."""
        rows, columns = positions(queries, keys, groups)
        shift = as_number(self.form.offset) if self.shift is None else self.shift[:, None, None, None]
        allowed = in_window(rows + shift, columns, self.form.left, self.form.right) if self.is_window else None
        there = None if self.keys is None else self.keys[:, None, None, :]
        pairs = None if self.pairs is None else folded(self.pairs, groups, queries)
        for other in (there, pairs):
            allowed = other if allowed is None else allowed if other is None else allowed & other
        return allowed


def _masks(call: Call, query: Array, key: Array, mask: Array, valid: Array, past: Any) -> _Masks:
    """The masks for queries (B, H, Q, D) and keys (B, N, K, D), of which ``past`` come before the queries."""
    queries, total = query.shape[2], key.shape[2]
    left, right = (None if call[n] < 0 else call[n] for n in ("left_window_size", "right_window_size"))
    if call["is_causal"]:
        right = 0
        if left is None and valid is None and isinstance(total - past, int) and total - past <= 1:
            right = None  # no key comes after the first query
    form = Form(past, left, right, call["softcap"])
    keys = shift = pairs = bias = None
    if valid is not None:
        valid = valid.reshape(-1).astype(jnp.int32)
        keys = lax.broadcasted_iota(jnp.int32, (1, total), 1) < valid[:, None]
        shift = valid - as_number(queries)
    if mask is not None:
        mask = _padded(mask if mask.dtype == bool else mask.astype(query.dtype), total)
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        if mask.dtype != bool:
            bias = mask
        elif mask.shape[1] == 1 and mask.shape[2] == 1:
            keys = mask[:, 0, 0] if keys is None else keys & mask[:, 0, 0]
        else:
            pairs = mask
    return _Masks(form, shift, keys, pairs, bias)


def _padded(mask: Array, total: Any) -> Array:
    """A mask that says of the last keys, of which it says nothing, that they are masked."""
    length = mask.shape[-1]
    if length == total:
        return mask
    more = jax.core.max_dim(total - length, 0)
    filler = jnp.full((*mask.shape[:-1], more), False if mask.dtype == bool else -jnp.inf, mask.dtype)
    return jnp.concatenate([mask, filler], -1)


@lowers("Attention", refuses=_refuses)
def _attention(
    call: Call,
    query: Array,
    key: Array,
    value: Array,
    mask: Array = None,
    past_key: Array = None,
    past_value: Array = None,
    valid: Array = None,
) -> tuple[Array, ...]:
    is_flat = query.ndim == 3
    if is_flat:
        heads, shared = call["q_num_heads"], call["kv_num_heads"]
        query, key, value = (
            jnp.swapaxes(_split_heads(x, n), 1, 2) for x, n in ((query, heads), (key, shared), (value, shared))
        )
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None:
        key = jnp.concatenate([past_key.astype(key.dtype), key], 2)
        value = jnp.concatenate([past_value.astype(value.dtype), value], 2)
    result, scores = _computed(call, query, key, value, _masks(call, query, key, mask, valid, past))
    if is_flat:
        result = jnp.swapaxes(result, 1, 2)
        result = result.reshape(*result.shape[:2], result.shape[2] * result.shape[3])
    return result, key, value, scores


def _computed(call: Call, query: Array, key: Array, value: Array, masks: _Masks) -> tuple[Array, Array]:
    """The result (B, H, Q, E), and the scores if they are wanted."""
    (batch, heads, queries, _), keys = query.shape, key.shape[2]
    if isinstance(keys, int) and keys == 0:
        return jnp.zeros((*query.shape[:3], value.shape[3]), query.dtype), jnp.zeros((*query.shape[:3], 0), query.dtype)
    scale = _scale_of(call, query)
    if _is_long(call, query, key, value, masks):
        there = None if masks.keys is None else jnp.broadcast_to(masks.keys, (batch, keys))
        return long_attention(times(query, scale), key, value, there, masks.form), None
    groups = heads // key.shape[1]
    softmax = call["softmax_precision"]
    stages = attend(
        folded(query, groups),
        key,
        value,
        scale=scale,
        bias=None if masks.bias is None else folded(masks.bias, groups, queries),
        allowed=masks.allowed(queries, keys, groups),
        # causal attention alone, with no query before the first key, leaves every query a key
        has_empty_rows=masks.form.left is not None or any(x is not None for x in masks[1:]),
        softcap=masks.form.softcap,
        softmax_dtype=None if softmax is None else to_dtype(DType(softmax)),
        precision=precision_of(call),
    )
    scores = None
    if call.is_wanted(3):
        scores = unfolded(stages[call["qk_matmul_output_mode"]].astype(query.dtype), groups)
    return unfolded(stages.result, groups), scores


def _is_long(call: Call, query: Array, key: Array, value: Array, masks: _Masks) -> bool:
    """Whether the attention of this node is the operation for long sequences."""
    options = call.interpreter.options
    if options.attention == "plain" or options.precision != "default":  # the kernel's products are bfloat16 passes
        return False
    if call.is_wanted(3) or call["softmax_precision"] not in (None, 1):
        return False
    if masks.pairs is not None or masks.bias is not None or (masks.is_window and masks.shift is not None):
        return False
    return takes(query, key, value, masks.form) is None


# FlexAttention


@lowers("ai.onnx.preview.FlexAttention")
def _flex_attention(call: Call, query: Array, key: Array, value: Array) -> Array:
    precision = precision_of(call)
    groups = query.shape[1] // key.shape[1]
    given = call["softmax_precision"]
    dtype = sum_type(query.dtype) if not given else to_dtype(DType(given))
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk",
        folded(times(query, _scale_of(call, query)), groups),
        key,
        precision=precision,
        preferred_element_type=sum_type(query.dtype),
    )
    scores = _modified(call, "score_mod", unfolded(scores.astype(dtype), groups))
    weights = folded(_modified(call, "prob_mod", jax.nn.softmax(scores, -1)), groups)
    return unfolded(weighted(weights, value, query.dtype, precision), groups)


def _modified(call: Call, name: str, x: Array) -> Array:
    """What the nested graph that is attribute ``name`` makes of ``x``."""
    graph = call[name]
    return x if graph is None else traced(call.run(graph, [x])[0])


# rotary embeddings


@lowers("RotaryEmbedding")
def _rotary_embedding(call: Call, x: Array, cosines: Array, sines: Array, places: Array = None) -> Array:
    shape, head_axis = x.shape, 1
    if x.ndim == 3:
        x, head_axis = _split_heads(x, call["num_heads"]), 2
    if places is not None:
        cosines, sines = cosines[places], sines[places]
    size = call["rotary_embedding_dim"] or x.shape[-1]
    if 2 * cosines.shape[-1] != size:
        raise call.error(f"rotates {size} numbers of a head, but has {cosines.shape[-1]} cosines, not half as many")
    cosines, sines = (jnp.expand_dims(c, head_axis).astype(x.dtype) for c in (cosines, sines))
    turned, rest = x[..., :size], x[..., size:]
    if call["interleaved"]:
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = jnp.split(turned, 2, -1)
    parts = [cosines * first - sines * second, sines * first + cosines * second]
    if call["interleaved"]:
        parts = [jnp.stack(parts, -1).reshape(turned.shape)]
    return jnp.concatenate([*parts, rest], -1).reshape(shape)
