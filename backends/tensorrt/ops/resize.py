"""Images resized and padded, and elements moved between channels and space.

What TensorRT cannot resize is resized axis by axis: elements are gathered, or multiplied with a matrix of the weights
that the definition of Resize gives. Where a size or a scale is known only when it runs, so are indices and weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, Row, refusal
from ..sizes import Size, decided, element, element_of, floor_divide, iota, minus, reshape, size_of, times, vector
from ..versions import Version
from .shapes import MOVED, check_moved, unfit

__all__ = ["FORMS", "ROWS"]

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn")
_REACH = {"linear": 3, "cubic": 2}  # how many of the last dimensions may change
_DENSE = 1 << 22  # elements up to which interpolation is a product with a matrix
_LARGE_TERM = 1 << 10  # fractions of larger integers are not multiplied with sizes


# --- numbers and arrays, known or computed ---------------------------------------------------------------------------

Real = Any  # a float or an array of float64 where it is known, a float32 tensor where it is computed


def _is_computed(*numbers: Real) -> bool:
    return any(isinstance(n, Value) for n in numbers)


def _real(number: Real) -> Value:
    return number if isinstance(number, Value) else constant(np.asarray(number, np.float32))


def _on(known: Callable[..., Any], computed: Callable[..., Value]) -> Callable[..., Real]:
    """A function of numbers of both kinds."""

    def apply(*numbers: Real) -> Real:
        return computed(*map(_real, numbers)) if _is_computed(*numbers) else known(*numbers)

    return apply


def _clip(x: Value, low: Value, high: Value) -> Value:
    return op.Max(op.Min(x, high), low)


_add, _sub = _on(np.add, op.Add), _on(np.subtract, op.Sub)
_mul, _div = _on(np.multiply, op.Mul), _on(np.divide, op.Div)
_floor, _ceil, _abs = _on(np.floor, op.Floor), _on(np.ceil, op.Ceil), _on(np.abs, op.Abs)
_min, _max, _clipped = _on(np.minimum, op.Min), _on(np.maximum, op.Max), _on(np.clip, _clip)


def _where(is_below: tuple[Real, Real], yes: Real, no: Real) -> Real:
    """``yes`` where the first number of a pair is less than the second."""
    if _is_computed(*is_below, yes, no):
        return op.Where(op.Less(*map(_real, is_below)), _real(yes), _real(no))
    return np.where(is_below[0] < is_below[1], yes, no)


def _from_size(size: Size) -> Real:
    return float(size) if isinstance(size, int) else op.Cast(size, to=DType.FLOAT)


# --- which dimensions become how large -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """How one dimension is resized.

    Attributes:
        axis: the dimension.
        size: of the operand.
        out: of the result.
        scale: the factor.
        least: a lower bound of the factor; None: none is known.
        start: where the region of interest starts, from 0 to 1.
        end: where it ends.
        coordinates: a coordinate_transformation_mode.
    """

    axis: int
    size: Size
    out: Size
    scale: Real
    least: float | None
    start: Real
    end: Real
    coordinates: str

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes along the dimension."""
        if self.coordinates == "tf_crop_and_resize":
            return not _is_computed(self.scale, self.start, self.end) and (self.scale, self.start, self.end) == (
                1,
                0,
                1,
            )
        if not _is_computed(self.scale):
            return bool(self.scale == 1)
        return isinstance(self.size, int) and self.size == 1 == self.out

    def positions(self) -> Real:
        """The coordinate in the operand of every element of the result."""
        size, out, scale = _from_size(self.size), _from_size(self.out), self.scale
        if isinstance(self.out, int) and not _is_computed(size, scale, self.start, self.end):
            x: Real = np.arange(self.out, dtype=np.float64)
        else:
            x = op.Cast(iota(self.out), to=DType.FLOAT)
        mode = self.coordinates
        if mode == "asymmetric":
            return _div(x, scale)
        if mode == "align_corners":  # by the exact length, as the standard's tests do
            length = _sub(_mul(scale, size), 1)
            return _where((length, 1e-6), _mul(x, 0), _div(_mul(x, _sub(size, 1)), _max(length, 1e-6)))
        if mode == "tf_crop_and_resize":
            last = _sub(size, 1)
            first, span = _mul(self.start, last), _mul(_sub(self.end, self.start), last)
            many = _add(first, _div(_mul(x, span), _max(_sub(out, 1), 1)))  # in this order it ends at the end
            return _where((1, out), many, _add(_mul(x, 0), _add(first, _div(span, 2))))
        offset: Real = 0
        if mode == "half_pixel_symmetric":
            offset = _div(_mul(size, _sub(1, _div(out, _mul(scale, size)))), 2)
        x = _sub(_add(offset, _div(_add(x, 0.5), scale)), 0.5)  # what is nearest depends on this order
        return _where((1, out), x, _mul(x, 0)) if mode == "pytorch_half_pixel" else x


def _axes(node: Node, x: Value) -> list[_Axis] | None:
    """How each dimension is resized; None if it cannot be told."""
    assert x.shape is not None
    rank = len(x.shape)
    given = node.attrs.get("axes")
    axes = [a % rank for a in given] if given is not None else list(range(rank))
    roi, scales, sizes = (node.operand(i) for i in (1, 2, 3))
    old = [size_of(x, a) for a in axes]
    if sizes is not None and sizes.shape != (0,):
        found = _from_sizes(node, axes, old, sizes)
    else:
        found = _from_scales(node, axes, old, scales) if scales is not None else None
    if found is None:
        return None
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    corners: list[Real] = [0.0] * len(axes) + [1.0] * len(axes)
    if mode == "tf_crop_and_resize" and roi is not None and roi.shape != (0,):
        corners = [_real_element(roi, i) for i in range(2 * len(axes))]
    starts, ends = corners[: len(axes)], corners[len(axes) :]
    return [
        _Axis(axis, n, out, scale, least, start, end, mode)
        for axis, n, (out, scale, least), start, end in zip(axes, old, found, starts, ends, strict=True)
    ]


Found = list[tuple[Size, Real, float | None]]


def _from_sizes(node: Node, axes: Sequence[int], old: Sequence[Size], sizes: Value) -> Found | None:
    x, result = node.given(0), node.results[0]
    shapes = (x.shape, result.shape) if x.shape is not None and result.shape is not None else None
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    found: Found = []
    if policy == "stretch":
        for i, (axis, n) in enumerate(zip(axes, old, strict=True)):
            out = decided(result, axis, sizes, i)
            if not isinstance(out, int) and shapes is not None and shapes[0][axis] == shapes[1][axis]:
                found.append((n, 1.0, 1.0))
            else:
                ratio = _div(_from_size(out), _from_size(n))
                found.append((out, ratio, None if _is_computed(ratio) else float(ratio)))
        return found
    ratios = [_div(_from_size(element(sizes, i)), _from_size(n)) for i, n in enumerate(old)]
    scale = reduce(_min if policy == "not_larger" else _max, ratios)
    for axis, n in zip(axes, old, strict=True):
        dim = result.shape[axis] if result.shape is not None and sizes.producer is None else None
        out = dim if isinstance(dim, int) else _as_size(_floor(_add(_mul(scale, _from_size(n)), 0.5)))
        found.append((out, scale, None if _is_computed(scale) else float(scale)))
    return found


def _from_scales(node: Node, axes: Sequence[int], old: Sequence[Size], scales: Value) -> Found | None:
    result = node.results[0].shape
    is_shape = not unfit(scales)
    found: Found = []
    for i, (axis, n) in enumerate(zip(axes, old, strict=True)):
        scale, dim = _real_element(scales, i), result[axis] if result is not None else None
        if isinstance(dim, int) and (isinstance(n, int) or not is_shape):
            out: Size = dim
        elif not _is_computed(scale):
            p, q = float(scale).as_integer_ratio()
            exact = max(p, q) <= _LARGE_TERM
            out = floor_divide(times(n, p), q) if exact else _as_size(_floor(_mul(_from_size(n), scale)))
        elif is_shape:
            out = _as_size(_floor(_mul(_from_size(n), scale)))
        else:
            return None
        least = float(scale) if not _is_computed(scale) else None
        if least is None and isinstance(out, int) and isinstance(n, int) and n:
            least = out / n  # the result has as many elements as fit
        found.append((out, scale, least))
    return found


def _as_size(number: Real) -> Size:
    return reshape(op.Cast(number, to=DType.INT64), [1]) if _is_computed(number) else int(number)


def _real_element(vector: Value, i: int) -> Real:
    """An element of a vector, known if possible."""
    piece = element_of(vector, i)
    if piece.const is not None:
        return float(piece.const.numpy().reshape(-1)[0])
    return op.Cast(piece, to=DType.FLOAT)


# --- legality --------------------------------------------------------------------------------------------------------


def _resize_refusal(node: Node, version: Version) -> str:
    x, result = node.given(0), node.results[0]
    if x.shape is None:
        return "its rank is not known"
    rank, axes, mode = len(x.shape), node.attrs.get("axes"), node.attrs.get("mode", "nearest")
    if axes is not None and tuple(axes) != tuple(range(rank)):
        return f"{version} resizes all axes in order"
    if mode == "cubic" and version.number < (10, 0):
        return f"{version} has no cubic interpolation"
    if rank < 1:
        return "a number has no size"
    scales = node.operand(2)
    for axis in range(rank - _REACH.get(mode, rank)):
        new, old = (v.shape[axis] if v.shape is not None else None for v in (result, x))
        factor = _scale(scales, axis)
        if factor not in (1, None) or (factor is None and isinstance(old, int) and isinstance(new, int) and old != new):
            return f"{version} interpolates ({mode}) over the last {_REACH[mode]} dimensions only"
    return check_moved(node, version)


def _scale(scales: Value | None, axis: int) -> float | None:
    if scales is None or scales.const is None or scales.shape == (0,):
        return None
    return float(scales.const.numpy()[axis])


def _pad_refusal(node: Node, version: Version) -> str:
    if node.attrs.get("mode") == "wrap" and version.number < (10, 0):
        return f"{version} pads by constant, edge and reflect"
    if node.operand(3) is not None and version.opset < 18:
        return f"{version} pads all axes"
    return check_moved(node, version)


# --- forms -----------------------------------------------------------------------------------------------------------


def _resize(node: Node, version: Version) -> list[Value] | None:
    x = node.given(0)
    if x.shape is None or (node.attrs.get("antialias", 0) and node.attrs.get("mode", "nearest") == "nearest"):
        return None
    axes = _axes(node, x)
    if axes is None or any(unfit(a.out) for a in axes if isinstance(a.out, Value)):
        return None
    if (plain := _plain(node, x, axes)) is not None and not refusal(plain, version):
        return [plain.result]
    axes = [a for a in axes if not a.is_identity]
    if node.attrs.get("mode", "nearest") == "nearest":
        y, mode = x, node.attrs.get("nearest_mode", "round_prefer_floor")
        for axis in axes:
            y = op.Gather(y, _nearest(axis, mode), axis=axis.axis)
    else:
        y = x if x.dtype is DType.FLOAT else op.Cast(x, to=DType.FLOAT)
        for axis in axes:
            taps = _taps(node, axis)
            if taps is None:
                return None
            y = _interpolated(y, axis, *taps)
        y = y if x.dtype is DType.FLOAT else op.Cast(y, to=x.dtype)
    for axis in axes:
        if axis.coordinates == "tf_crop_and_resize":
            y = _extrapolated(y, axis, node.attrs.get("extrapolation_value", 0.0))
    return [y if y is not x else op.Identity(x)]


def _plain(node: Node, x: Value, axes: Sequence[_Axis]) -> Node | None:
    """The node with scales or sizes for all axes, if that is all it lacks."""
    attrs, rank = {k: v for k, v in node.attrs.items() if k != "axes"}, x.rank or 0
    is_plain = not attrs.get("antialias", 0) and attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if not is_plain or attrs.get("coordinate_transformation_mode", "half_pixel") not in _COORDINATES:
        return None
    at = {a.axis: a for a in axes}
    moved = [a for a in axes if not a.is_identity]
    mode = attrs.get("mode", "nearest")
    if x.dtype not in FLOATS or any(a.axis < rank - _REACH.get(mode, rank) for a in moved):
        return None
    if node.operand(3) is not None:
        new = [at[i].out if i in at else size_of(x, i) for i in range(rank)]
        return make_node("Resize", (x, None, None, vector(new)), attrs)
    if any(_is_computed(a.scale) for a in axes):
        return None
    scales = np.array([at[i].scale if i in at else 1 for i in range(rank)], np.float32)
    return make_node("Resize", (x, None, constant(scales)), attrs)


def _nearest(axis: _Axis, mode: str) -> Value:
    """The indices of the nearest elements."""
    position = axis.positions()
    if mode == "round_prefer_floor":
        index = _ceil(_sub(position, 0.5))
    elif mode == "round_prefer_ceil":
        index = _floor(_add(position, 0.5))
    else:
        index = _ceil(position) if mode == "ceil" else _floor(position)
    return _index(_clipped(index, 0, _sub(_from_size(axis.size), 1)))


def _index(numbers: Real) -> Value:
    if _is_computed(numbers):
        return op.Cast(numbers, to=DType.INT64)
    return constant(np.asarray(numbers).astype(np.int64))


def _taps(node: Node, axis: _Axis) -> tuple[list[Real], list[Real]] | None:
    """The indices of the elements that each element of the result is a sum of, and their weights, tap by tap."""
    cubic, antialias = node.attrs["mode"] == "cubic", node.attrs.get("antialias", 0)
    reach, shrink = 2 if cubic else 1, 1.0
    if antialias:
        if axis.least is None:
            return None
        reach = math.ceil(reach / min(axis.least, 1.0) - 1e-9)
        shrink = _min(axis.scale, 1.0)
    position, last = axis.positions(), _sub(_from_size(axis.size), 1)
    low = _floor(position)
    indices, weights = [], []
    for tap in range(1 - reach, reach + 1):
        index = _add(low, tap)
        distance = _abs(_mul(_sub(index, position), shrink))
        weight = (
            _cubic(distance, node.attrs.get("cubic_coeff_a", -0.75)) if cubic else _clipped(_sub(1, distance), 0, 1)
        )
        if node.attrs.get("exclude_outside", 0):
            weight = _where((index, 0), 0.0, _where((last, index), 0.0, weight))
        indices.append(_clipped(index, 0, last))
        weights.append(weight)
    if antialias or node.attrs.get("exclude_outside", 0):
        total = reduce(_add, weights)
        total = _where((_abs(total), 1e-30), 1.0, total)
        weights = [_div(w, total) for w in weights]
    return indices, weights


def _cubic(distance: Real, a: float) -> Real:
    """The weight of an element in cubic convolution; R. Keys, IEEE ASSP 29(6), 1981, equation (4)."""
    square = _mul(distance, distance)
    near = _add(_mul(_sub(_mul(a + 2, distance), a + 3), square), 1)
    far = _sub(_mul(_add(_mul(_sub(_mul(a, distance), 5 * a), distance), 8 * a), distance), 4 * a)
    return _where((1, distance), _where((distance, 2), far, 0.0), near)


def _interpolated(x: Value, axis: _Axis, indices: Sequence[Real], weights: Sequence[Real]) -> Value:
    size, out, rank = axis.size, axis.out, x.rank or 0
    if isinstance(size, int) and isinstance(out, int) and size * out <= _DENSE and not _is_computed(*indices, *weights):
        matrix = np.zeros((out, size))
        for index, weight in zip(indices, weights, strict=True):
            np.add.at(matrix, (np.arange(out), np.asarray(index, np.int64)), weight)
        return _product(x, axis.axis, matrix)
    parts = []
    for index, weight in zip(indices, weights, strict=True):
        factor = reshape(_real(weight), [-1, *[1] * (rank - 1 - axis.axis)])
        parts.append(op.Mul(op.Gather(x, _index(index), axis=axis.axis), factor))
    return reduce(op.Add, parts)


def _product(x: Value, axis: int, matrix: np.ndarray[Any, Any]) -> Value:
    """The sums of ``x`` along ``axis`` that the rows of a matrix weight."""
    rank = x.rank or 0
    if axis == rank - 1:
        return op.MatMul(x, constant(matrix.T, x.dtype))
    rows = constant(matrix, x.dtype)
    if axis == rank - 2:
        return op.MatMul(rows, x)
    lead, trail = ([size_of(x, i) for i in r] for r in (range(axis), range(axis + 1, rank)))
    flat = reshape(x, [*lead, matrix.shape[1], -1])
    return reshape(op.MatMul(rows, flat), [*lead, matrix.shape[0], *trail])


def _extrapolated(y: Value, axis: _Axis, value: float) -> Value:
    """With ``value`` where positions are outside of the operand."""
    position, rank = axis.positions(), y.rank or 0
    inside = _where((position, 0), 0.0, _where((_sub(_from_size(axis.size), 1), position), 0.0, 1.0))
    if not _is_computed(inside) and bool(np.all(inside)):
        return y
    mask = op.Greater(reshape(_real(inside), [-1, *[1] * (rank - 1 - axis.axis)]), constant(0.5, DType.FLOAT))
    return op.Where(mask, y, constant(value, y.dtype))


def _pad(node: Node, version: Version) -> list[Value] | None:
    """With padding for all axes."""
    x, pads, axes = node.given(0), node.given(1), node.operand(3)
    if x.rank is None or axes is None or axes.const is None:
        return None
    ends: list[Size] = [0] * (2 * x.rank)
    chosen = [int(a) % x.rank for a in axes.const.numpy()]
    for i, axis in enumerate(chosen):
        ends[axis] = element(pads, i)
        ends[x.rank + axis] = element(pads, len(chosen) + i)
    return [op.Pad(x, vector(ends), node.operand(2), mode=node.attrs.get("mode", "constant"))]


def _center_crop_pad(node: Node, version: Version) -> list[Value] | None:
    """Padding, negative where elements are cut off."""
    x, shape = node.given(0), node.given(1)
    if x.shape is None:
        return None
    rank = len(x.shape)
    before: list[Size] = [0] * rank
    after: list[Size] = [0] * rank
    for i, axis in enumerate(node.attrs.get("axes") or range(rank)):
        new = decided(node.results[0], axis % rank, shape, i)
        before[axis % rank], after[axis % rank] = _halves(new, size_of(x, axis))
    return [op.Pad(x, vector([*before, *after]), constant(0, x.dtype))]


def _halves(new: Size, old: Size) -> tuple[Size, Size]:
    """What is added in front and behind: of a crop, and of padding, the smaller half in front."""
    if isinstance(new, int) and isinstance(old, int):
        before = (new - old) // 2 if new >= old else -((old - new) // 2)
        return before, new - old - before
    more = minus(new, old)
    before_ = op.Div(more, constant([2], DType.INT64))  # towards zero
    return before_, minus(more, before_)


def _space_to_depth(node: Node, version: Version) -> list[Value] | None:
    """Channels in the other order."""
    x, b = node.given(0), node.attrs["blocksize"]
    if x.rank != 4 or node.attrs.get("mode", "DCR") != "CRD":
        return None
    n, c, h, w = (size_of(x, i) for i in range(4))
    down, right = floor_divide(h, b), floor_divide(w, b)
    blocks = op.Transpose(reshape(x, [n, c, down, b, right, b]), perm=(0, 1, 3, 5, 2, 4))
    return [reshape(blocks, [n, times(c, b * b), down, right])]


FORMS = {"CenterCropPad": _center_crop_pad, "Pad": _pad, "Resize": _resize, "SpaceToDepth": _space_to_depth}
ROWS = {
    "DepthToSpace": Row({"T": MOVED - {DType.BOOL}}, ranks=(4, 4), check=check_moved),
    "Pad": Row({"T": MOVED}, ranks=(1, 8), check=_pad_refusal),
    "Resize": Row(
        {"T1": FLOATS | {DType.INT8}},
        attrs={
            "antialias": (0,),
            "coordinate_transformation_mode": _COORDINATES,
            "keep_aspect_ratio_policy": ("stretch",),
        },
        check=_resize_refusal,
    ),
    "SpaceToDepth": Row({"T": MOVED - {DType.BOOL}}, ranks=(4, 4), attrs={"mode": ("DCR",)}, check=check_moved),
}
