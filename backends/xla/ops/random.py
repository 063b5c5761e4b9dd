"""Random numbers, which a model asks for by operators without a key.

The key of a node is made of its attribute ``seed`` (`SEED` where there is none) and of its position among the nodes of
the model. So the numbers are the same in every call of a function, in every iteration of a loop, and on every platform.
They follow the distribution that the ONNX operator specification states; which they are, it leaves open.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ir.types import DType
from ..lowering import Call, lowers
from ..precision import widened
from ..values import to_dtype
from .casts import cast

__all__ = ["SEED", "key_of"]

SEED = 0
"""What seeds nodes that state no seed."""

Array = Any


def key_of(call: Call) -> Array:
    """The key of the node."""
    assert call.node.graph is not None
    seed = call["seed"]
    bits = SEED if seed is None else int(np.float32(seed).view(np.int32))
    position = next(i for i, node in enumerate(call.node.graph.root.walk()) if node is call.node)
    return jax.random.fold_in(jax.random.key(bits), position)


def _computed_in(dtype: Any) -> Any:
    """The type to draw numbers of ``dtype`` in."""
    return dtype if np.dtype(dtype).itemsize >= 4 else jnp.float32


@lowers("RandomNormal", "RandomNormalLike", is_random=True)
def _normal(call: Call, like: Array = None) -> Array:
    shape = call["shape"] if like is None else like.shape
    wide = _computed_in(call.dtype())
    return (call["mean"] + call["scale"] * jax.random.normal(key_of(call), shape, wide)).astype(call.dtype())


@lowers("RandomUniform", "RandomUniformLike", is_random=True)
def _uniform(call: Call, like: Array = None) -> Array:
    shape = call["shape"] if like is None else like.shape
    wide, low, high = _computed_in(call.dtype()), call["low"], call["high"]
    return jax.random.uniform(key_of(call), shape, wide, low, high).astype(call.dtype())


@lowers("Bernoulli", is_random=True)
def _bernoulli(call: Call, p: Array) -> Array:
    return cast(_draws(call, p.shape) < widened(p), call.dtype())


def _draws(call: Call, shape: Any) -> Array:
    """Uniform random numbers from 0 to 1."""
    return jax.random.uniform(key_of(call), shape, jnp.float32)


@lowers("Multinomial", is_random=True)
def _multinomial(call: Call, logits: Array) -> Array:
    shape = (call["sample_size"], logits.shape[0])
    drawn = jax.random.categorical(key_of(call), widened(logits), axis=-1, shape=shape)
    return drawn.T.astype(to_dtype(DType(call["dtype"])))


@lowers("Dropout", is_random=True)
def _dropout(call: Call, x: Array, ratio: Array = None, training: Array = None) -> tuple[Array, Array]:
    known = call.known(2)
    if training is None or (known is not None and not known.any()):
        return x, jnp.ones(x.shape, bool)
    wide = widened(x)
    ratio = jnp.asarray(0.5, wide.dtype) if ratio is None else ratio.reshape(()).astype(wide.dtype)
    kept = _draws(call, x.shape) >= ratio
    if known is None:
        kept = kept | ~training.reshape(())
        ratio = jnp.where(training.reshape(()), ratio, 0)
    return jnp.where(kept, wide / (1 - ratio), 0).astype(x.dtype), kept
