"""Reading images between their elements, at positions that are computed.

Definitions: the ONNX operators GridSample, opset 22, and AffineGrid, opset 20.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers
from ..values import dims

__all__ = ["Tap", "cubic_weight", "gather_points", "linear_taps", "sample", "scalar"]

Array = Any


@dataclass(frozen=True)
class Tap:
    """One of the elements along a dimension that an interpolated value is a weighted sum of.

    Attributes:
        index: of the element, in bounds.
        weight: of the element.
        inside: where there is such an element; elsewhere it counts as 0. None is everywhere.
    """

    index: Array
    weight: Array
    inside: Any = None


def scalar(size: Any, dtype: Any) -> Any:
    """A dimension as a number to compute with: traced if it is symbolic."""
    return size if isinstance(size, int | np.integer) else jnp.asarray(size).astype(dtype)


def gather_points(x: Array, batch: Array, positions: Sequence[Array]) -> Array:
    """The channels of ``x`` at some positions.

    Args:
        x: (N, C, …).
        batch: indices of images, to be broadcast to (B, …).
        positions: in bounds, for each spatial dimension, to be broadcast to (B, …).

    Returns:
        (B, C, …).
    """
    indices = jnp.stack(jnp.broadcast_arrays(batch.astype(jnp.int32), *positions), axis=-1)
    indexed = (0, *range(2, x.ndim))
    return lax.gather(
        x,
        indices,
        lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=indexed, start_index_map=indexed),
        slice_sizes=(1, x.shape[1]) + (1,) * (x.ndim - 2),
        mode=lax.GatherScatterMode.CLIP,
    )


def sample(x: Array, batch: Array, axes: Sequence[Sequence[Tap]], dtype: Any) -> Array:
    """The weighted sums of ``x`` over the taps of all dimensions.

    Args:
        x: (N, C, …).
        batch: indices of images, to be broadcast to (B, …).
        axes: for each spatial dimension its taps, whose fields can be broadcast to (B, …).
        dtype: in which sums are computed.

    Returns:
        (B, C, …), of type ``dtype``.
    """
    total: Array = 0
    for taps in itertools.product(*axes):
        values = gather_points(x, batch, [tap.index for tap in taps]).astype(dtype)
        insides = [tap.inside for tap in taps if tap.inside is not None]
        if insides:
            values = jnp.where(_channelled(math.prod(insides[1:], start=insides[0])), values, 0)
        total = total + values * _channelled(math.prod(tap.weight for tap in taps).astype(dtype))
    return total


def _channelled(x: Array) -> Array:
    """(B, …) as (B, 1, …)."""
    return jnp.expand_dims(x, 1)


def _index(position: Array, size: Any) -> tuple[Array, Array]:
    """An integral position as an index in bounds, and where it was in bounds."""
    last = scalar(size, position.dtype) - 1
    index = jnp.clip(position, 0, last).astype(jnp.int32)
    return index, (position >= 0) & (position <= last)


def linear_taps(position: Array, size: Any) -> list[Tap]:
    """The two neighbours of a position, of which those beyond a dimension of the given size count as 0."""
    low = jnp.floor(position)
    ratio = position - low
    return [Tap(i, w, ok) for p, w in ((low, 1 - ratio), (low + 1, ratio)) for i, ok in [_index(p, size)]]


def cubic_weight(distance: Any, a: float, xp: Any = jnp) -> Any:
    """The weight of an element in cubic convolution; R. Keys, IEEE ASSP 29(6), 1981, equation (4)."""
    d = abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return xp.where(d <= 1, near, xp.where(d < 2, far, 0))


# GridSample


@lowers("GridSample")
def _grid_sample(call: Call, x: Array, grid: Array) -> Array:
    align, padding = bool(call["align_corners"]), call["padding_mode"]
    interpolate = _MODES[call["mode"]]
    grid = grid.astype(jnp.promote_types(grid.dtype, jnp.float32))
    is_inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    dtype = jnp.promote_types(x.dtype, jnp.float32) if is_inexact else _real_type(x.dtype)
    rank = x.ndim - 2
    axes = []
    for i, size in enumerate(x.shape[2:]):
        n = scalar(size, grid.dtype)
        position = (grid[..., rank - 1 - i] + 1) / 2 * (n - 1) if align else ((grid[..., rank - 1 - i] + 1) * n - 1) / 2
        axes.append(interpolate(position, _Border(size, align, padding)))
    batch = jnp.arange(x.shape[0]).reshape(-1, *(1,) * rank)
    if call["mode"] != "nearest":
        return sample(x, batch, axes, dtype).astype(x.dtype)
    taps = [tap for (tap,) in axes]
    values = gather_points(x, batch, [tap.index for tap in taps])
    if padding != "zeros":
        return values
    inside = math.prod((tap.inside for tap in taps[1:]), start=taps[0].inside)
    return jnp.where(_channelled(inside), values, jnp.zeros((), x.dtype))


def _real_type(dtype: Any) -> Any:
    """In which integers are interpolated."""
    return jax.dtypes.canonicalize_dtype(jnp.float64 if dtype.itemsize > 2 else jnp.float32)


@dataclass(frozen=True)
class _Border:
    """A dimension, and what lies beyond it."""

    size: Any
    align: bool
    padding: str

    def place(self, position: Array) -> Array:
        """A position, brought back into the image unless zeros lie around it."""
        n = scalar(self.size, position.dtype)
        low, high = (0, n - 1) if self.align else (-0.5, n - 0.5)
        if self.padding == "zeros":
            return position
        outside = (position < low) | (position > high)
        if self.padding == "border":
            return jnp.where(outside, jnp.clip(position, 0, n - 1), position)
        span = jnp.maximum(jnp.asarray(high - low, position.dtype), np.finfo(position.dtype).tiny)
        beyond = jnp.abs(jnp.where(outside, position, low) - low)
        turns = jnp.floor(beyond / span)
        rest = beyond - turns * span
        return jnp.where(outside, jnp.where(turns % 2 == 0, low + rest, high - rest), position)

    def tap(self, position: Array, weight: Array) -> Tap:
        """An element at an integral position."""
        if self.padding == "reflection":
            position = self.place(position)
        index, inside = _index(position, self.size)
        return Tap(index, weight, inside if self.padding == "zeros" else None)


def _nearest(position: Array, border: _Border) -> list[Tap]:
    return [border.tap(border.place(jnp.rint(position)), jnp.ones((), position.dtype))]


def _linear(position: Array, border: _Border) -> list[Tap]:
    position = border.place(position)
    low = jnp.floor(position)
    ratio = position - low
    return [border.tap(low, 1 - ratio), border.tap(low + 1, ratio)]


def _cubic(position: Array, border: _Border) -> list[Tap]:
    position = border.place(position)
    low = jnp.floor(position)
    return [border.tap(low + k, cubic_weight(position - low - k, -0.75)) for k in (-1, 0, 1, 2)]


_MODES: dict[str, Callable[[Array, _Border], list[Tap]]] = {"nearest": _nearest, "linear": _linear, "cubic": _cubic}


# AffineGrid


@lowers("AffineGrid", static={1})
def _affine_grid(call: Call, theta: Array, size: np.ndarray[Any, Any]) -> Array:
    spatial = dims(size)[2:]
    dtype = jnp.promote_types(theta.dtype, jnp.float32)
    grid: Array = theta[:, :, -1].reshape(-1, *(1,) * len(spatial), len(spatial)).astype(dtype)
    for i, n in enumerate(spatial):
        steps = jnp.arange(n, dtype=dtype)
        total = jnp.asarray(n).astype(dtype)
        if call["align_corners"]:
            base = steps * 2 / jnp.maximum(total - 1, 1) - (total > 1).astype(dtype)
        else:
            base = (steps * 2 + 1) / total - 1
        base = base.reshape(-1, *(1,) * (len(spatial) - i))
        column = theta[:, :, len(spatial) - 1 - i].reshape(-1, *(1,) * len(spatial), len(spatial))
        grid = grid + base * column.astype(dtype)
    return grid.astype(theta.dtype)
