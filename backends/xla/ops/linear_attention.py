"""Linear attention, a state that keys and values are written to, and the causal convolution that goes with it.

The state is carried from chunk to chunk; within a chunk all positions are computed at once. With the delta rule a
position writes what its key does not yet retrieve, which depends on what the ones before it write: a triangular system
for each chunk (Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024; "Gated
Delta Networks", 2025). Definitions: the ONNX operator specification, LinearAttention-27 and CausalConvWithState-27.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ....ir.graph import Node
from ..lowering import Call, lowers
from ..precision import precision_of, widened

Array = Any

_CHUNK_PER_KEY = 16  # where every number of a key decays on its own, pairs of positions take that many numbers each
_SHIFTED = 8  # elements of a filter: up to here, sums of shifted copies are fused; convolutions by channel are slow


def _refuses(node: Node) -> str | None:
    rule = node.attrs.get("update_rule", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        return f"there is no update rule {rule!r}"
    for index, name, is_needed in ((4, "decay", "gated" in rule), (5, "beta", "delta" in rule)):
        if (node.operand(index) is not None) != is_needed:
            return f"update rule {rule!r} {'needs' if is_needed else 'has no'} {name}"
    heads, shared = node.attrs["q_num_heads"], node.attrs["kv_num_heads"]
    if heads <= 0 or shared <= 0 or heads % shared:
        return f"{heads} heads of queries cannot share {shared} heads of keys evenly"
    return None


@lowers("LinearAttention", refuses=_refuses)
def _linear_attention(
    call: Call,
    query: Array,
    key: Array,
    value: Array,
    past: Array = None,
    decay: Array = None,
    beta: Array = None,
) -> tuple[Array, Array]:
    heads, shared = call["q_num_heads"], call["kv_num_heads"]
    dtype, (batch, length) = query.dtype, query.shape[:2]
    q, k, v = (_by_head(x, n) for x, n in ((query, heads), (key, shared), (value, shared)))
    q = q * (call["scale"] or 1 / math.sqrt(q.shape[-1]))
    g = None if decay is None else _by_head(decay, shared)
    b = None if beta is None else _by_head(beta, beta.shape[-1])
    if past is None:
        state = jnp.zeros((batch, shared, k.shape[-1], v.shape[-1]), jnp.float32)
    else:
        state = past.astype(jnp.float32)
    chunk = call["chunk_size"] if g is None or g.shape[-1] == 1 else min(call["chunk_size"], _CHUNK_PER_KEY)
    rule = _Rule(heads // shared, precision_of(call))
    if isinstance(length, int) and length <= chunk:
        state, result = rule.chunk(state, (q, k, v, g, b))
    else:
        xs = tuple(None if x is None else _in_chunks(x, chunk) for x in (q, k, v, g, b))
        state, results = lax.scan(rule.chunk, state, xs)  # (chunks, B, H, chunk, E)
        result = jnp.moveaxis(results, 0, 2).reshape(batch, heads, results.shape[0] * chunk, v.shape[-1])
        result = lax.slice_in_dim(result, 0, length, axis=2)
    result = jnp.swapaxes(result, 1, 2).reshape(batch, length, heads * v.shape[-1])
    return result.astype(dtype), state.astype(dtype if past is None else past.dtype)


def _by_head(x: Array, heads: int) -> Array:
    """(B, T, heads * D) as (B, heads, T, D), in float32."""
    x = x.reshape(*x.shape[:2], heads, x.shape[2] // heads)
    return jnp.swapaxes(x, 1, 2).astype(jnp.float32)


def _in_chunks(x: Array, size: int) -> Array:
    """(B, H, T, D) as (chunks, B, H, size, D); positions of zeros follow the last one, and change no state."""
    batch, heads, length, depth = x.shape
    count = -(-length // size)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), (0, count * size - length, 0), (0, 0, 0)])
    return jnp.moveaxis(x.reshape(batch, heads, count, size, depth), 2, 0)


class _Rule:
    """How one chunk reads and writes the state.

    Args:
        groups: how many heads of queries share one of keys.
        precision: of products.
    """

    def __init__(self, groups: int, precision: lax.Precision):
        self.groups = groups
        self.precision = precision

    def chunk(self, state: Array, xs: tuple[Array, ...]) -> tuple[Array, Array]:
        """The state (B, N, D, E) after a chunk, and the results (B, H, C, E) in it."""
        q, k, v, decay, beta = xs
        size, gates = k.shape[2], None if decay is None else jnp.cumsum(decay, 2)
        q = q.reshape(q.shape[0], -1, self.groups, *q.shape[2:])
        reading, retrieving, writing, kept = q, k, k, state
        if gates is not None:
            grown, last = jnp.exp(gates), gates[:, :, -1:]
            reading, retrieving = q * grown[:, :, None], k * grown
            writing, kept = k * jnp.exp(last - gates), state * jnp.swapaxes(jnp.exp(last), 2, 3)
        pairs = self._pairs(gates, size)
        if beta is not None:
            v = beta * (v - self._product("bntd,bnde->bnte", retrieving, state))
            if size > 1:
                before = jnp.tril(self._scores(k[:, :, None], k, pairs)[:, :, 0], -1)
                v = jax.scipy.linalg.solve_triangular(beta * before, v, lower=True, unit_diagonal=True)
        result = self._product("bngtd,bnde->bngte", reading, state)
        result += self._product("bngtj,bnje->bngte", jnp.tril(self._scores(q, k, pairs)), v)
        state = kept + self._product("bnjd,bnje->bnde", writing, v)
        return state, result.reshape(result.shape[0], -1, *result.shape[3:])

    def _product(self, equation: str, *operands: Array) -> Array:
        return jnp.einsum(equation, *operands, precision=self.precision)

    def _pairs(self, gates: Array | None, size: int) -> Array | None:
        """How much of what position j writes is left at position t, (B, N, t, j, 1 or D); 0 before it is written."""
        if gates is None:
            return None
        is_written = jnp.tril(jnp.ones((size, size), bool))[:, :, None]
        return jnp.exp(jnp.where(is_written, gates[:, :, :, None] - gates[:, :, None], -jnp.inf))

    def _scores(self, q: Array, k: Array, pairs: Array | None) -> Array:
        """The products of queries (B, N, G, t, D) and keys (B, N, j, D), decayed."""
        if pairs is not None and pairs.shape[-1] > 1:
            return self._product("bngtd,bntjd,bnjd->bngtj", q, pairs, k)
        scores = self._product("bngtd,bnjd->bngtj", q, k)
        return scores if pairs is None else scores * pairs[:, :, None, :, :, 0]


@lowers("CausalConvWithState")
def _causal_conv_with_state(call: Call, x: Array, w: Array, b: Array = None, past: Array = None) -> tuple[Array, Array]:
    dtype, size = x.dtype, w.shape[2]
    before = jnp.zeros((*x.shape[:2], size - 1), dtype) if past is None else past.astype(dtype)
    x = jnp.concatenate([before, x], 2)
    length = x.shape[2] - (size - 1)
    wide, filters = widened(x), widened(w)
    if size <= _SHIFTED:
        y = sum(filters[:, 0, i, None] * lax.slice_in_dim(wide, i, i + length, axis=2) for i in range(size))
    else:
        y = lax.conv_general_dilated(
            wide, filters, (1,), "VALID", feature_group_count=w.shape[0], precision=precision_of(call)
        )
    y = y if b is None else y + widened(b)[:, None]
    if call["activation"] in ("silu", "swish"):
        y = jax.nn.silu(y.astype(dtype).astype(y.dtype))
    return y.astype(dtype), lax.slice_in_dim(x, length, length + size - 1, axis=2)
