"""Attention over long sequences on TPU, by the kernel of JAX that never holds all scores ("splash attention", Pallas).

One operation stands for it in a program: `long_attention`. When it is compiled for one TPU, or for one shard of a
program that ``jax.shard_map`` divides, it becomes the kernel. Everywhere else it becomes plain attention: on CPU and
GPU; in a program for several platforms; and in one that XLA divides between devices by itself, which it cannot do with
a kernel. Its gradient computes the attention again: nothing of the size of the scores is stored for it.

Measured on programs compiled for TPU v5e (2 x 12 heads of 64, 2048 positions, causal, bfloat16): 139 MB of memory
traffic and 2 MB beside operands and result with the kernel, 890 MB and 403 MB without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from .scores import attend, folded, in_window, positions, unfolded

__all__ = ["Form", "kernel", "long_attention", "plain", "takes"]

Array = Any

# Bytes of float32 scores of one head (1024 x 1024). XLA keeps scores in the chip's vector memory until those of all
# heads exceed some 100 MB, 24 heads of this size; then they go through main memory several times.
_LEAST = 4 << 20
_TILE = 128  # the hardware's vectors; sequences are filled up to a multiple
_BLOCK = 512  # rows and columns of a block of scores: four tiles are faster than one, and fit beside their gradients


@dataclass(frozen=True)
class Form:
    """What kind of attention.

    Attributes:
        offset: the position of the first query among the keys.
        left: how many keys before its own position a query attends to; None is all.
        right: how many after it: 0 is causal attention; None is all.
        softcap: of the scores; 0 is none.
    """

    offset: int = 0
    left: int | None = None
    right: int | None = None
    softcap: float = 0.0


def takes(query: Array, key: Array, value: Array, form: Form) -> str | None:
    """Why the kernel does not compute attention of (B, H, Q, D) to (B, N, K, D) and (B, N, K, E); None: it does."""
    shapes = (*query.shape, *key.shape, *value.shape)
    if not all(isinstance(d, int) for d in shapes):
        return "sizes are symbolic"
    if {query.dtype, key.dtype, value.dtype} not in ({jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}):
        return "the kernel computes float32 and bfloat16"
    if query.shape[2] < _TILE or query.shape[2] * key.shape[2] * 4 < _LEAST:
        return "the scores are few"
    if any(d % 8 or d > 256 for d in (query.shape[3], value.shape[3])):
        return "the kernel computes heads of up to 256 numbers, in multiples of 8"
    if form.left is not None and form.offset + _up(query.shape[2]) > _up(key.shape[2]) + form.left:
        return "some queries have no key"
    return None


def long_attention(query: Array, key: Array, value: Array, mask: Array | None, form: Form) -> Array:
    """Attention of queries to keys.

    Args:
        query: queries (B, H, Q, D), multiplied by the scale.
        key: keys (B, N, K, D); H is a multiple of N.
        value: values (B, N, K, E).
        mask: which keys are there, bool (B, K); None is all.
        form: which keys a query attends to.

    Returns:
        (B, H, Q, E); 0 for a query without any key.
    """
    return _attention(form, query, key, value, mask)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: Form, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    return _forward.bind(query, key, value, *_given(mask), form=form)[0]


def _keep(form: Form, query: Array, key: Array, value: Array, mask: Array | None) -> tuple[Array, Any]:
    return _attention(form, query, key, value, mask), (query, key, value, mask)


def _pull(form: Form, kept: Any, cotangent: Array) -> tuple[Any, ...]:
    query, key, value, mask = kept
    gradients = _backward.bind(query, key, value, cotangent, *_given(mask), form=form)
    return (*gradients, None)


_attention.defvjp(_keep, _pull)


def _given(mask: Array | None) -> tuple[Array, ...]:
    return () if mask is None else (mask,)


# what it stands for


def plain(query: Array, key: Array, value: Array, mask: Array | None = None, *, form: Form) -> Array:
    """`long_attention` by two products and a softmax."""
    groups = query.shape[1] // key.shape[1]
    rows, columns = positions(query.shape[2], key.shape[2], groups)
    allowed = in_window(rows + form.offset, columns, form.left, form.right)
    if mask is not None:
        mask = mask[:, None, None, :]
        allowed = mask if allowed is None else allowed & mask
    return unfolded(
        attend(folded(query, groups), key, value, allowed=allowed, softcap=form.softcap).result,
        groups,
    )


def kernel(query: Array, key: Array, value: Array, mask: Array | None = None, *, form: Form) -> Array:
    """`long_attention` by the kernel."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys = query.shape[2], key.shape[2]
    used = mask
    if keys % _TILE and mask is None:
        mask = jnp.ones((key.shape[0], keys), bool)
    query, key, value = (_filled(x, 2) for x in (query, key, value))
    shape = (query.shape[2], key.shape[2])
    if form.left is None and form.right is None:
        pattern: Any = splash.FullMask(shape)
    else:
        pattern = splash.LocalMask(shape, (form.left, form.right), form.offset)
    run = splash.make_splash_mha(
        splash.MultiHeadMask([pattern] * query.shape[1]),
        block_sizes=_blocks(*shape),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=form.softcap or None,
    )
    if mask is None:
        result = jax.vmap(run)(query, key, value)
    else:
        there = _filled(mask, 1).astype(jnp.int32)
        ids = splash.SegmentIds(q=jnp.ones((query.shape[0], query.shape[2]), jnp.int32), kv=there)
        result = jax.vmap(run)(query, key, value, ids)
    result = result[:, :, :queries]
    return result if used is None else jnp.where(_has_key(used, queries, form), result, 0)


def _up(n: int) -> int:
    return -(-n // _TILE) * _TILE


def _filled(x: Array, axis: int) -> Array:
    """``x`` with zeros at the end of ``axis``, up to a multiple of the hardware's vectors."""
    more = _up(x.shape[axis]) - x.shape[axis]
    return x if not more else jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])


def _blocks(queries: int, keys: int) -> Any:
    """The sizes of the blocks in which the kernel and its gradient, of two more kernels, compute."""
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

    q, k = (next(b for b in range(_BLOCK, 0, -_TILE) if n % b == 0) for n in (queries, keys))
    return BlockSizes(
        block_q=q,
        block_kv=k,
        block_kv_compute=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_kv_dkv_compute=k,
        block_q_dq=q,
        block_kv_dq=k,
    )


def _has_key(mask: Array, queries: int, form: Form) -> Array:
    """Whether a query may attend to a key that is there, (B, 1, Q or 1, 1). The kernel averages where there is none."""
    keys = mask.shape[1]
    counts = jnp.pad(jnp.cumsum(mask, 1, jnp.int32), ((0, 0), (1, 0)))
    places = form.offset + np.arange(queries)
    first = np.zeros(1, int) if form.left is None else np.clip(places - form.left, 0, keys)
    last = np.full(1, keys) if form.right is None else np.clip(places + form.right + 1, 0, keys)
    return (counts[:, last] > counts[:, first])[:, None, :, None]


# the operation


def _forwards(attention: Callable[..., Array], query: Array, *rest: Array, form: Form) -> list[Array]:
    return [attention(query, *rest, form=form)]


def _backwards(
    attention: Callable[..., Array],
    query: Array,
    key: Array,
    value: Array,
    cotangent: Array,
    *mask: Array,
    form: Form,
) -> Sequence[Array]:
    _, pull = jax.vjp(lambda *qkv: attention(*qkv, *mask, form=form), query, key, value)
    gradients: Sequence[Array] = pull(cotangent)
    return gradients


def _enter(name: str, compute: Callable[..., Sequence[Array]]) -> Primitive:
    """An operation of JAX: what ``compute`` makes of the kernel where that is possible, else of plain attention."""
    operation = Primitive(name)
    operation.multiple_results = True
    by_kernel, otherwise = (mlir.lower_fun(partial(compute, f), multiple_results=True) for f in (kernel, plain))

    def results_of(*types: Any, form: Form) -> Sequence[Any]:
        return jax.make_jaxpr(partial(compute, plain, form=form))(*types).out_avals

    def on_tpu(context: mlir.LoweringRuleContext, *operands: Any, form: Form) -> Any:
        return (by_kernel if _is_whole(context) else otherwise)(context, *operands, form=form)

    def batched(operands: Sequence[Array], axes: Sequence[Any], *, form: Form) -> tuple[list[Array], list[int]]:
        size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
        to_front: Any = batching.bdim_at_front
        front = [to_front(x, a, size) for x, a in zip(operands, axes, strict=True)]
        flat = (x.reshape(-1, *x.shape[2:]) for x in front)
        results = operation.bind(*flat, form=form)
        return [r.reshape(size, -1, *r.shape[1:]) for r in results], [0] * len(results)

    operation.def_abstract_eval(results_of)
    operation.def_impl(lambda *operands, form: _compiled(operation, form)(*operands))
    mlir.register_lowering(operation, otherwise)
    mlir.register_lowering(operation, on_tpu, platform="tpu")
    batching.primitive_batchers[operation] = batched
    return operation


@cache
def _compiled(operation: Primitive, form: Form) -> Callable[..., Any]:
    return jax.jit(partial(operation.bind, form=form))


def _is_whole(context: mlir.LoweringRuleContext) -> bool:
    """Whether what is compiled is for one platform, and for one device or the shard of one that is not checked."""
    axes: Any = context.module_context.axis_context
    manual = getattr(axes, "manual_axes", None)
    is_one = manual == frozenset(axes.mesh.axis_names) if manual else getattr(axes, "num_devices", None) == 1
    # the kernel does not state along which axes its results differ, which check_vma of shard_map asks for
    is_checked = any(getattr(getattr(t, "mat", None), "varying", None) for t in context.avals_in)
    return is_one and not is_checked and len(context.module_context.platforms) == 1


_forward = _enter("long_attention", _forwards)
_backward = _enter("long_attention_gradient", _backwards)
