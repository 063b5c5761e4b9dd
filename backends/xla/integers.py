"""Exact products of matrices of eight-bit integers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from .values import concrete

__all__ = ["multiply_integers", "signed"]

Array = Any

_WORD = 4  # bytes


def signed(codes: Array, zero_point: Array | None) -> tuple[Array, Array | None]:
    """Codes as int8, the type that hardware multiplies, and their zero point as int32; None where it is 0."""
    if jnp.issubdtype(codes.dtype, jnp.unsignedinteger) and codes.dtype != jnp.uint8:
        return signed(codes.astype(jnp.uint8), None if zero_point is None else zero_point.astype(jnp.uint8))
    if codes.dtype == jnp.uint8:
        shifted = lax.bitcast_convert_type(codes ^ jnp.uint8(128), jnp.int8)
        return shifted, (jnp.int32(0) if zero_point is None else zero_point.astype(jnp.int32)) - 128
    known = None if zero_point is None else concrete(zero_point)
    if zero_point is None or (known is not None and not known.any()):
        return codes.astype(jnp.int8), None
    return codes.astype(jnp.int8), zero_point.astype(jnp.int32)


def multiply_integers(a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> Array:
    """``(a - a_zero) @ (b - b_zero)`` in int32, exactly: ``a @ b - a_zero colsum(b) - b_zero rowsum(a - a_zero)``.

    Args:
        a: (…, M, K) or (K), of at most eight bits.
        b: (…, K, N) or (K), likewise.
        a_zero: a scalar, (M) or (…, M, 1), of the type of ``a``; None is 0.
        b_zero: a scalar, (N) or (…, 1, N), of the type of ``b``; None is 0.
    """
    vectors = tuple(d for d, x in ((-2, a), (-1, b)) if x.ndim == 1)
    a, b = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    if a_zero is not None and a_zero.ndim == 1:
        a_zero = a_zero[:, None]
    a, a_zero = signed(a, a_zero)
    b, b_zero = signed(b, b_zero)
    total = _matmul(a, b)
    if a_zero is not None:
        total = total - a_zero * jnp.sum(b, -2, jnp.int32, keepdims=True)
    if b_zero is not None:
        rows = jnp.sum(a, -1, jnp.int32, keepdims=True)
        total = total - b_zero * (rows if a_zero is None else rows - a_zero * jnp.asarray(a.shape[-1], jnp.int32))
    return jnp.squeeze(total, vectors)


def _matmul(a: Array, b: Array) -> Array:
    """``a @ b`` in int32, over whole words: of other lengths XLA for GPUs doubles it (jaxlib 0.11.2, on an H200)."""
    if (missing := -a.shape[-1] % _WORD) != 0:
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, missing)])
        b = jnp.pad(b, [(0, 0)] * (b.ndim - 2) + [(0, missing), (0, 0)])
    return jnp.matmul(a, b, preferred_element_type=jnp.int32)
