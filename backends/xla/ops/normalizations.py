"""Normalizations: elements minus their mean, over their standard deviation.

Definitions: the ONNX operator specification, opset 28. Means and deviations of float16 and bfloat16 are computed in
float32. Variances are means of squared differences, not differences of squared means, which cancel.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from ....ir.graph import Node
from ....ir.types import DType
from ..lowering import Call, lowers
from ..precision import widened
from ..values import counted, to_dtype

Array = Any


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """``x`` minus its mean over ``axes``, and the variance, whose dimensions are kept."""
    centered = x - jnp.mean(x, axes, keepdims=True)
    return centered, jnp.mean(jnp.square(centered), axes, keepdims=True)


def _per_channel(parameter: Array, x: Array) -> Array:
    """A parameter per channel (dimension 1, if there are several) in a shape that broadcasts to ``x``."""
    return widened(parameter).reshape((1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,))


@lowers("BatchNormalization")
def _batch_normalization(call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Any:
    wide = widened(x)
    if not call["training_mode"]:
        factor = lax.rsqrt(widened(variance) + call["epsilon"]) * widened(scale)
        centered = wide - _per_channel(mean, x)
        return (centered * _per_channel(factor, x) + _per_channel(bias, x)).astype(x.dtype)
    axes = (0, *range(2, x.ndim))
    centered, current = _moments(wide, axes)
    factor = lax.rsqrt(current + call["epsilon"]) * _per_channel(scale, x)
    y = (centered * factor + _per_channel(bias, x)).astype(x.dtype)
    momentum = call["momentum"]
    running = [
        (widened(old) * momentum + new.reshape(old.shape) * (1 - momentum)).astype(old.dtype)
        for old, new in ((mean, jnp.mean(wide, axes)), (variance, current))
    ]
    return (y, *running)


@lowers("InstanceNormalization")
def _instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    centered, variance = _moments(widened(x), tuple(range(2, x.ndim)))
    factor = lax.rsqrt(variance + call["epsilon"]) * _per_channel(scale, x)
    return (centered * factor + _per_channel(bias, x)).astype(x.dtype)


def _unknown_stash(node: Node) -> str | None:
    stash = node.attrs.get("stash_type", 1)
    return None if stash in (1, 10, 11, 16) else f"stash_type {stash} is no floating-point type"


def _stashed(call: Call, x: Array) -> Array:
    """``x`` in the type that the node states for the first stage, or its own if that is wider."""
    return x.astype(jnp.promote_types(to_dtype(DType(call["stash_type"])), x.dtype))


@lowers("GroupNormalization", refuses=_unknown_stash)
def _group_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    groups = call["num_groups"]
    grouped = _stashed(call, x).reshape((x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    centered, variance = _moments(grouped, tuple(range(2, grouped.ndim)))
    normalized = (centered * lax.rsqrt(variance + call["epsilon"])).reshape(x.shape).astype(x.dtype)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return normalized * scale.reshape(shape) + bias.reshape(shape)


def _trailing(call: Call, x: Array) -> tuple[int, ...]:
    """The dimensions from ``axis`` on."""
    return tuple(range(counted(call["axis"], x.ndim), x.ndim))


@lowers("LayerNormalization", refuses=_unknown_stash)
def _layer_normalization(call: Call, x: Array, scale: Array, bias: Array = None) -> tuple[Array, ...]:
    wide, axes = _stashed(call, x), _trailing(call, x)
    mean = jnp.mean(wide, axes, keepdims=True)
    centered = wide - mean
    inverse = lax.rsqrt(jnp.mean(jnp.square(centered), axes, keepdims=True) + call["epsilon"])
    y = (centered * inverse).astype(x.dtype) * scale
    stash = to_dtype(DType(call["stash_type"]))
    return y if bias is None else y + bias, mean.astype(stash), inverse.astype(stash)


@lowers("RMSNormalization", refuses=_unknown_stash)
def _rms_normalization(call: Call, x: Array, scale: Array) -> Array:
    wide = _stashed(call, x)
    square = jnp.mean(jnp.square(wide), _trailing(call, x), keepdims=True)
    normalized = (wide * lax.rsqrt(square + call["epsilon"])).astype(x.dtype)
    return (normalized * scale).astype(call.dtype())


@lowers("LRN")
def _lrn(call: Call, x: Array) -> Array:
    size, wide = call["size"], widened(x)
    window, strides = [1] * x.ndim, (1,) * x.ndim
    window[1] = size
    padding = [(0, 0)] * x.ndim
    padding[1] = ((size - 1) // 2, size // 2)
    squares = lax.reduce_window(jnp.square(wide), jnp.zeros((), wide.dtype), lax.add, window, strides, padding)
    return (wide * (call["bias"] + call["alpha"] / size * squares) ** -call["beta"]).astype(x.dtype)


@lowers("MeanVarianceNormalization")
def _mean_variance_normalization(call: Call, x: Array) -> Array:
    axes = tuple(counted(a, x.ndim) for a in call["axes"])
    centered, variance = _moments(widened(x), axes)
    is_constant = variance == 0  # where the square root has no derivative
    deviation = jnp.where(is_constant, 0, jnp.sqrt(jnp.where(is_constant, 1, variance)))
    return (centered / (deviation + 1e-9)).astype(x.dtype)  # the constant of the standard's function body
