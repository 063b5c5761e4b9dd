"""Operators that combine the elements along dimensions: reductions, cumulative ones, and normalizing functions.

Definitions: the ONNX operator specification, opset 28. Sums of float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers
from ..precision import widened
from ..values import counted, ints
from .elementwise import magnitude

Array = Any
Axes = tuple[int, ...]
_HALF_MAX = float(np.finfo(np.float16).max)


def axes_of(call: Call, x: Array, axes: np.ndarray[Any, Any] | None) -> Axes:
    """The dimensions that the reduction ``call`` combines, sorted.

    Raises:
        ValueError: one is out of range.
    """
    found = [] if axes is None else ints(axes)
    if not found:
        return () if call["noop_with_empty_axes"] else tuple(range(x.ndim))
    return tuple(sorted({counted(a, x.ndim) for a in found}))


def _reduction(op: str) -> Callable[[Callable[[Array, Axes], Array]], Callable[[Array, Axes], Array]]:
    """Enter a function that reduces dimensions and drops them, computed in float32 for narrower types."""

    def register(function: Callable[[Array, Axes], Array]) -> Callable[[Array, Axes], Array]:
        def compute(call: Call, x: Array, axes: np.ndarray[Any, Any] | None = None) -> Array:
            reduced = axes_of(call, x, axes)
            result = function(widened(x), reduced).astype(x.dtype)
            return jnp.expand_dims(result, reduced) if call["keepdims"] else result

        lowers(op, static={1})(compute)
        return function

    return register


@_reduction("ReduceSum")
def _sum(x: Array, axes: Axes) -> Array:
    return jnp.sum(x, axes, x.dtype)


@_reduction("ReduceProd")
def _prod(x: Array, axes: Axes) -> Array:
    return jnp.prod(x, axes, x.dtype)


@_reduction("ReduceMean")
def _mean(x: Array, axes: Axes) -> Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.mean(x, axes)
    total = _sum(x, axes)
    return lax.div(total, jnp.broadcast_to(_count(x, axes), total.shape).astype(x.dtype))


def _count(x: Array, axes: Axes) -> Array:
    """How many elements a reduction over ``axes`` combines."""
    count: Any = 1
    for a in axes:
        count = count * x.shape[a]
    return jnp.asarray(count)


@_reduction("ReduceMax")
def _max(x: Array, axes: Axes) -> Array:
    return jnp.any(x, axes) if x.dtype == bool else lax.reduce_max(x, axes)


@_reduction("ReduceMin")
def _min(x: Array, axes: Axes) -> Array:
    return jnp.all(x, axes) if x.dtype == bool else lax.reduce_min(x, axes)


@_reduction("ReduceL1")
def _l1(x: Array, axes: Axes) -> Array:
    return _sum(magnitude(x), axes)


@_reduction("ReduceL2")
def _l2(x: Array, axes: Axes) -> Array:
    return norm(x, axes) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.sqrt(_sum_square(x, axes))


def norm(x: Array, axes: Axes) -> Array:
    """The square root of the sum of squares, with gradient 0 where that is 0."""
    square = _sum_square(x, axes)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


@_reduction("ReduceSumSquare")
def _sum_square(x: Array, axes: Axes) -> Array:
    return _sum(x * x, axes)


@_reduction("ReduceLogSum")
def _log_sum(x: Array, axes: Axes) -> Array:
    return jnp.log(_sum(x, axes))


@_reduction("ReduceLogSumExp")
def _log_sum_exp(x: Array, axes: Axes) -> Array:
    return x if not axes else jax.nn.logsumexp(x, axes)


# positions


@lowers("ArgMax", "ArgMin")
def _arg_extreme(call: Call, x: Array) -> Array:
    axis = counted(call["axis"], x.ndim)
    function = jnp.argmax if call.node.op == "ArgMax" else jnp.argmin
    from_the_end = call["select_last_index"]
    found = function(jnp.flip(x, axis) if from_the_end else x, axis)
    found = x.shape[axis] - 1 - found if from_the_end else found
    return (jnp.expand_dims(found, axis) if call["keepdims"] else found).astype(call.dtype())


@lowers("Hardmax")
def _hardmax(call: Call, x: Array) -> Array:
    axis = counted(call["axis"], x.ndim)
    if isinstance(x.shape[axis], int) and x.shape[axis] == 0:
        return x
    indices = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return (indices == jnp.expand_dims(jnp.argmax(x, axis), axis)).astype(x.dtype)


# cumulative


def _cumulative(function: Callable[..., Array], identity: int) -> Callable[..., Array]:
    def compute(call: Call, x: Array, axis: np.ndarray[Any, Any]) -> Array:
        (along,) = ints(axis)
        along = counted(along, x.ndim)
        reverse = bool(call["reverse"])
        result = function(widened(x), axis=along, reverse=reverse).astype(x.dtype)
        if not call["exclusive"]:
            return result
        shift = [(0, 0, 0)] * x.ndim
        shift[along] = (-1, 1, 0) if reverse else (1, -1, 0)
        return lax.pad(result, jnp.asarray(identity, x.dtype), shift)

    return compute


lowers("CumSum", static={1})(_cumulative(lax.cumsum, 0))
lowers("CumProd", static={1})(_cumulative(lax.cumprod, 1))


# normalizing functions


@lowers("Softmax")
def _softmax(call: Call, x: Array) -> Array:
    wide = widened(x)
    if x.dtype != jnp.float16:
        return jax.nn.softmax(wide, call["axis"]).astype(x.dtype)
    # Exponentials and their sum are rounded to float16, as the standard's function body has it, unless that overflows.
    largest = jnp.max(wide, call["axis"], keepdims=True, initial=-np.inf)
    powers = jnp.exp(wide - lax.stop_gradient(largest)).astype(x.dtype)
    total = jnp.sum(powers.astype(wide.dtype), call["axis"], keepdims=True)
    total = jnp.where(total < _HALF_MAX, total.astype(x.dtype).astype(wide.dtype), total)
    return (powers.astype(wide.dtype) / total).astype(x.dtype)


@lowers("LogSoftmax")
def _log_softmax(call: Call, x: Array) -> Array:
    return jax.nn.log_softmax(widened(x), call["axis"]).astype(x.dtype)


@lowers("LpNormalization", refuses=lambda node: None if node.attrs.get("p", 2) in (1, 2) else "p must be 1 or 2")
def _lp_normalization(call: Call, x: Array) -> Array:
    axis = counted(call["axis"], x.ndim)
    wide = widened(x)
    length = jnp.expand_dims(_l1(wide, (axis,)) if call["p"] == 1 else norm(wide, (axis,)), axis)
    return jnp.where(length == 0, 0, wide / jnp.where(length == 0, 1, length)).astype(x.dtype)
