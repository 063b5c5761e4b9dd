"""Images resized, and their elements moved between channels and space.

Definitions: the ONNX operators Resize, opset 19, CenterCropPad, opset 18, DepthToSpace and SpaceToDepth, opset 28.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.graph import Node
from ..lowering import Call, lowers
from ..values import counted, dims
from .grid_sample import cubic_weight, scalar

Array = Any
Dim = Any
_DENSE = 1 << 20  # elements up to which interpolation is a product with a matrix on TPU
_LARGE_TERM = 1 << 10  # fractions of larger integers are not multiplied with sizes
_PERIODIC = frozenset({"half_pixel", "half_pixel_symmetric", "asymmetric"})  # coordinates move on by 1 with every scale


@dataclass(frozen=True)
class _Axis:
    """How one dimension is resized.

    Attributes:
        axis: the dimension.
        size: of the operand.
        out: of the result.
        scale: the factor, a number; traced if it follows from symbolic sizes.
        ratio: the factor as a fraction of sizes; None if that has large terms.
        start: where the region of interest starts, from 0 to 1; numbers, perhaps traced.
        end: where it ends.
        coordinates: a coordinate_transformation_mode.
    """

    axis: int
    size: Dim
    out: Dim
    scale: Any
    ratio: tuple[Dim, Dim] | None
    start: Any
    end: Any
    coordinates: str

    @property
    def is_known(self) -> bool:
        """Whether all coordinates are known now."""
        return all(
            isinstance(v, int | float | np.number) for v in (self.size, self.out, self.scale, self.start, self.end)
        )

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes along the dimension."""
        is_same = isinstance(self.scale, int | float) and math.isclose(self.scale, 1) and self.out == self.size
        is_whole = self.coordinates != "tf_crop_and_resize" or (self.is_known and (self.start, self.end) == (0, 1))
        return is_same and is_whole

    def positions(self, xp: Any) -> Any:
        """The coordinate in the operand of every element of the result."""
        dtype = np.float64 if xp is np else jax.dtypes.canonicalize_dtype(np.float64)
        size, out = scalar(self.size, dtype), scalar(self.out, dtype)
        x, mode, exact = xp.arange(self.out).astype(dtype), self.coordinates, self.scale * size
        if mode == "asymmetric":
            return x / self.scale
        if mode == "align_corners":  # by the exact length, as the standard's tests do
            return xp.where(exact == 1, 0 * x, x * (size - 1) / xp.where(exact == 1, 1, exact - 1))
        if mode == "tf_crop_and_resize":
            span = (self.end - self.start) * (size - 1)
            return self.start * (size - 1) + xp.where(out > 1, x * span / xp.where(out > 1, out - 1, 1), span / 2)
        offset = size / 2 * (1 - out / exact) if mode == "half_pixel_symmetric" else 0
        x = offset + (x + 0.5) / self.scale - 0.5  # in this order: the nearest element depends on how it rounds
        return xp.where(out > 1, x, 0 * x) if mode == "pytorch_half_pixel" else x

    def fraction(self) -> tuple[Array, Array]:
        """`positions` as fractions of integers, for which no rounding decides what is nearest."""
        p, q, size, out = (jnp.asarray(d) for d in (*(self.ratio or ()), self.size, self.out))
        x, mode = jnp.arange(self.out), self.coordinates
        if mode == "asymmetric":
            return x * q, p
        if mode == "align_corners":
            last = p * size - q
            return jnp.where(last == 0, 0, x * (size - 1) * q), jnp.where(last == 0, 1, last)
        numerator = (2 * x + 1) * q - p
        if mode == "half_pixel_symmetric":
            numerator += p * size - out * q
        return jnp.where(out > 1, numerator, 0) if mode == "pytorch_half_pixel" else numerator, 2 * p


def _refuse_resize(node: Node) -> str | None:
    if node.attrs.get("antialias", 0) and node.attrs.get("mode", "nearest") == "nearest":
        return "antialias does not go with nearest interpolation"
    return None


@lowers("Resize", static={2, 3}, refuses=_refuse_resize)
def _resize(
    call: Call,
    x: Array,
    roi: Array = None,
    scales: np.ndarray[Any, Any] | None = None,
    sizes: np.ndarray[Any, Any] | None = None,
) -> Array:
    axes = [a for a in _axes(call, x, roi, scales, sizes) if not a.is_identity]
    if call["mode"] == "nearest":
        y = x
        for axis in axes:
            y = _nearest(y, axis, call["nearest_mode"])
    else:
        is_float = jnp.issubdtype(x.dtype, jnp.inexact)
        wide = jnp.float64 if not is_float and x.dtype.itemsize > 2 else jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(jax.dtypes.canonicalize_dtype(wide))
        for axis in axes:
            y = _interpolate(y, axis, *_taps(call, axis))
        y = _saturated(y, x.dtype)
    for axis in axes:
        if axis.coordinates == "tf_crop_and_resize":
            y = _extrapolate(y, axis, call["extrapolation_value"])
    return y


def _saturated(y: Array, dtype: Any) -> Array:
    if jnp.issubdtype(dtype, jnp.inexact):
        return y.astype(dtype)
    if jnp.issubdtype(dtype, jnp.bool_):
        return y != 0
    info = np.iinfo(dtype)
    return jnp.clip(jnp.rint(y), int(info.min), int(info.max)).astype(dtype)


# which dimensions become how large


def _axes(call: Call, x: Array, roi: Array, scales: Any, sizes: Any) -> list[_Axis]:
    rank, given = x.ndim, call["axes"]
    axes = [counted(int(a), rank) for a in given] if given is not None else list(range(rank))
    old = [x.shape[a] for a in axes]
    if sizes is not None and sizes.size:
        new, factors, ratios = _from_sizes(call, old, dims(sizes))
    else:
        factors = [float(s) for s in np.asarray(scales, np.float32)]
        fractions = [Fraction(s).as_integer_ratio() for s in factors]
        new = [n * p // q for n, (p, q) in zip(old, fractions, strict=True)]
        ratios = [f if max(f) <= _LARGE_TERM else None for f in fractions]
    mode = call["coordinate_transformation_mode"]
    corners: Any = [0] * len(axes) + [1] * len(axes)
    if mode == "tf_crop_and_resize" and roi is not None and roi.size:
        known = call.known(1)
        corners = (
            roi.astype(jnp.promote_types(roi.dtype, jnp.float32)) if known is None else known.astype(float).tolist()
        )
    starts, ends = corners[: len(axes)], corners[len(axes) :]
    return [
        _Axis(axis, n, out, factor, ratio, start, end, mode)
        for axis, n, out, factor, ratio, start, end in zip(axes, old, new, factors, ratios, starts, ends, strict=True)
    ]


def _from_sizes(call: Call, old: Sequence[Dim], new: list[Dim]) -> tuple[list[Dim], list[Any], list[Any]]:
    """The sizes of the result, the factors, and these as fractions."""
    ratios = [_reduced(out, n) for out, n in zip(new, old, strict=True)]
    policy, dtype = call["keep_aspect_ratio_policy"], jax.dtypes.canonicalize_dtype(np.float64)
    if policy == "stretch":
        return new, [scalar(p, dtype) / scalar(q, dtype) for p, q in ratios], ratios
    if not all(isinstance(n, int) for n in (*old, *new)):
        raise call.error(
            f"keep_aspect_ratio_policy {policy} needs sizes that are known: make the resized dimensions static"
        )
    scale = (min if policy == "not_larger" else max)(p / q for p, q in ratios)
    return [int(scale * n + 0.5) for n in old], [scale] * len(old), [None] * len(old)


def _reduced(out: Dim, n: Dim) -> tuple[Dim, Dim]:
    """``out / n`` as a fraction: of numbers wherever it is one number for all sizes."""
    if isinstance(out, int) and isinstance(n, int):
        return (out, n) if n else (1, 1)
    if (factor := _factor(out, n)) is not None:
        return factor, 1
    if (factor := _factor(n, out)) is not None:
        return 1, factor
    return out, n


def _factor(multiple: Dim, n: Dim) -> int | None:
    """The integer by which ``n`` is multiplied, if that is sure."""
    try:
        quotient, rest = divmod(multiple, n)
    except (jax.core.InconclusiveDimensionOperation, ArithmeticError):
        return None
    return quotient if isinstance(quotient, int) and isinstance(rest, int) and rest == 0 else None


# the nearest element


def _nearest(x: Array, axis: _Axis, mode: str) -> Array:
    if axis.is_known:
        index = np.clip(_rounded(axis.positions(np), mode, np), 0, max(axis.size - 1, 0)).astype(np.int32)
        return _take(x, axis, index)
    scale = axis.scale
    if axis.coordinates in _PERIODIC and isinstance(scale, float) and scale == int(scale) and scale >= 1:
        first = _Axis(axis.axis, 1, int(scale), scale, None, 0, 1, axis.coordinates)
        if not _rounded(first.positions(np), mode, np).any():
            return _repeat(x, axis.axis, int(scale))
    if axis.ratio is None or axis.coordinates == "tf_crop_and_resize":
        index = _rounded(axis.positions(jnp), mode, jnp)
    else:
        index = _rounded_fraction(*axis.fraction(), mode)
    index = jnp.clip(index, 0, scalar(axis.size, index.dtype) - 1).astype(jnp.int32)
    return jnp.take(x, index, axis.axis, mode="clip")


def _rounded(position: Any, mode: str, xp: Any) -> Any:
    if mode == "round_prefer_floor":
        return xp.ceil(position - 0.5)
    if mode == "round_prefer_ceil":
        return xp.floor(position + 0.5)
    return xp.ceil(position) if mode == "ceil" else xp.floor(position)


def _rounded_fraction(numerator: Array, denominator: Array, mode: str) -> Array:
    if mode == "round_prefer_floor":
        return -((denominator - 2 * numerator) // (2 * denominator))
    if mode == "round_prefer_ceil":
        return (2 * numerator + denominator) // (2 * denominator)
    return -(-numerator // denominator) if mode == "ceil" else numerator // denominator


def _take(x: Array, axis: _Axis, index: np.ndarray[Any, Any]) -> Array:
    """The elements at known indices, without a gather where they repeat or are evenly spaced."""
    n, out = axis.size, axis.out
    if n and out % n == 0 and (index == np.arange(out) // (out // n)).all():
        return _repeat(x, axis.axis, out // n)
    step = int(index[1] - index[0]) if out > 1 else 1
    if out and step > 0 and (index == index[0] + step * np.arange(out)).all():
        return lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, step, axis.axis)
    return jnp.take(x, index, axis.axis, mode="clip")


def _repeat(x: Array, axis: int, times: int) -> Array:
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    y = lax.broadcast_in_dim(x, shape, (*range(axis + 1), *range(axis + 2, x.ndim + 1)))
    return y.reshape(*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :])


# weighted sums


def _taps(call: Call, axis: _Axis) -> tuple[Any, Any]:
    """The indices of the elements that each element of the result is a sum of, and their weights: (out, taps)."""
    xp: Any = np if axis.is_known else jnp
    reach, shrink = (2 if call["mode"] == "cubic" else 1), 1.0
    if call["antialias"]:
        if not isinstance(axis.scale, int | float):
            raise call.error(
                "antialias needs a scale that is known: give scales instead of sizes, or static dimensions"
            )
        shrink = min(axis.scale, 1.0)
        reach = -math.floor(-reach / shrink)
    position = axis.positions(xp)
    index = xp.floor(position)[:, None] + np.arange(1 - reach, reach + 1)
    distance = (index - position[:, None]) * shrink
    if call["mode"] == "cubic":
        weight = cubic_weight(distance, call["cubic_coeff_a"], xp)
    else:
        weight = xp.clip(1 - abs(distance), 0, 1)
    last = scalar(axis.size, index.dtype) - 1
    if call["exclude_outside"]:
        weight = xp.where((index < 0) | (index > last), 0, weight)
    if call["exclude_outside"] or call["antialias"]:
        total = weight.sum(1, keepdims=True)
        weight = weight / xp.where(total == 0, 1, total)
    return xp.clip(index, 0, last).astype(np.int32), weight


def _interpolate(x: Array, axis: _Axis, index: Any, weight: Any) -> Array:
    gathered = partial(_weighted_sum, axis=axis.axis, index=index, weight=weight)
    if not axis.is_known or axis.size * axis.out > _DENSE:
        return gathered(x)
    matrix = np.zeros((axis.out, axis.size))
    np.add.at(matrix, (np.arange(axis.out)[:, None], index), weight)
    return lax.platform_dependent(x, tpu=partial(_product, axis=axis.axis, matrix=matrix), default=gathered)


def _product(x: Array, *, axis: int, matrix: np.ndarray[Any, Any]) -> Array:
    y = lax.dot_general(x, matrix.astype(x.dtype), (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, -1, axis)


def _weighted_sum(x: Array, *, axis: int, index: Any, weight: Any) -> Array:
    parts = []
    for tap in range(index.shape[1]):
        if tap and isinstance(weight, np.ndarray) and not weight[:, tap].any():
            continue
        factor = jnp.asarray(weight[:, tap]).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
        parts.append(jnp.take(x, index[:, tap], axis, mode="clip") * factor)
    return sum(parts[1:], parts[0])


def _extrapolate(y: Array, axis: _Axis, value: float) -> Array:
    xp: Any = np if axis.is_known else jnp
    position = axis.positions(xp)
    outside = (position < 0) | (position > scalar(axis.size, position.dtype) - 1)
    if isinstance(outside, np.ndarray) and not outside.any():
        return y
    return jnp.where(outside.reshape(-1, *(1,) * (y.ndim - 1 - axis.axis)), jnp.asarray(value).astype(y.dtype), y)


# moved elements


@lowers("CenterCropPad", static={1})
def _center_crop_pad(call: Call, x: Array, shape: np.ndarray[Any, Any]) -> Array:
    axes = [counted(a, x.ndim) for a in call["axes"]] if call["axes"] is not None else range(x.ndim)
    edges: list[tuple[Dim, Dim, int]] = [(0, 0, 0)] * x.ndim
    for axis, size in zip(axes, dims(shape), strict=True):
        n = x.shape[axis]
        before = (size - n) // 2 if size >= n else -((n - size) // 2)
        edges[axis] = (before, size - n - before, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


@lowers("DepthToSpace")
def _depth_to_space(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    b, is_dcr = call["blocksize"], call["mode"] == "DCR"
    if is_dcr:
        y = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (b * b), h * b, w * b)


@lowers("SpaceToDepth")
def _space_to_depth(call: Call, x: Array) -> Array:
    n, c, h, w = x.shape
    b, is_dcr = call["blocksize"], call["mode"] == "DCR"
    y = x.reshape(n, c, h // b, b, w // b, b).transpose((0, 3, 5, 1, 2, 4) if is_dcr else (0, 1, 3, 5, 2, 4))
    return y.reshape(n, c * b * b, h // b, w // b)
