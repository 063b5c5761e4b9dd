"""Images read at positions that are computed.

Definitions: the ONNX operators GridSample, opset 22, and AffineGrid, opset 20. Where there is no layer for it, all
elements around every position are gathered and weighted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, Row, refusal
from ..sizes import Size, decided, iota, reshape, size_of, times, vector
from ..versions import Version
from .elementwise import cast

__all__ = ["FORMS", "ROWS", "as_float", "float_size", "number"]


def number(value: float) -> Value:
    """A float32 constant."""
    return constant(np.float32(value))


def as_float(x: Value) -> Value:
    """``x`` in float32."""
    return x if x.dtype is DType.FLOAT else op.Cast(x, to=DType.FLOAT)


def float_size(size: Size) -> Value:
    """A size as a vector of one float."""
    return as_float(vector([size]))


def _grid_refusal(node: Node, version: Version) -> str:
    x, grid = node.given(0), node.given(1)
    if x.rank is None:
        return "its rank is not known"
    if x.dtype is not grid.dtype:
        return f"a grid of {grid.dtype.text} for {x.dtype.text}"
    if x.rank == 5 and version.number < (11, 0):
        return f"three dimensions: {version} samples in two"
    if version.opset < 20:
        return f"{version} reads other names of modes"
    return ""


def _grid_sample(node: Node, version: Version) -> list[Value] | None:
    """In float32 where types are the problem, or gathered."""
    x, grid = node.given(0), node.given(1)
    if x.rank is None or grid.rank is None or x.rank < 3:
        return None
    made = make_node("GridSample", (as_float(x), as_float(grid)), dict(node.attrs))
    y = _gathered(made) if refusal(made, version) else made.result
    return [cast(y, x.dtype)]


def _gathered(node: Node) -> Value:
    x, grid, mode = node.given(0), node.given(1), node.attrs.get("mode", "linear")
    rank = (x.rank or 2) - 2
    batch, channels, sizes = size_of(x, 0), size_of(x, 1), [size_of(x, i + 2) for i in range(rank)]
    strides: list[Size] = [1]
    for size in sizes[:0:-1]:
        strides.insert(0, times(strides[0], size))
    axes = []
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        border = _Border(
            size, bool(node.attrs.get("align_corners", 0)), node.attrs.get("padding_mode", "zeros"), stride
        )
        coordinate = op.Gather(grid, constant(rank - 1 - i, DType.INT64), axis=rank + 1)
        axes.append(border.taps(reshape(coordinate, [batch, 1, -1]), mode))
    flat = reshape(x, [batch, channels, -1])
    parts = []
    for taps in itertools.product(*axes):
        place = op.Expand(reduce(op.Add, [t.place for t in taps]), vector([batch, channels, 1]))
        weights = [t.weight for t in taps if t.weight is not None]
        values = op.GatherElements(flat, place, axis=2)
        parts.append(op.Mul(values, reduce(op.Mul, weights)) if weights else values)
    return reshape(reduce(op.Add, parts), [batch, channels, *(size_of(grid, i + 1) for i in range(rank))])


@dataclass(frozen=True)
class _Tap:
    """The elements along a dimension that are one part of a sum: what they add to places, and their weights."""

    place: Value
    weight: Value | None


@dataclass(frozen=True)
class _Border:
    """A dimension, what lies beyond it, and how far apart its elements are."""

    size: Size
    align: bool
    padding: str
    stride: Size

    def taps(self, coordinate: Value, mode: str) -> list[_Tap]:
        """The elements around coordinates from -1 to 1."""
        n, above = float_size(self.size), op.Add(coordinate, number(1))
        if self.align:
            position = op.Mul(op.Mul(above, number(0.5)), op.Sub(n, number(1)))
        else:
            position = op.Mul(op.Sub(op.Mul(above, n), number(1)), number(0.5))
        if mode == "nearest":
            return [self._tap(self._inside(op.Round(position)), None)]
        position = self._inside(position)
        low = op.Floor(position)
        share = op.Sub(position, low)
        if mode == "linear":
            return [self._tap(low, op.Sub(number(1), share)), self._tap(op.Add(low, number(1)), share)]
        return [self._tap(op.Add(low, number(k)), _cubic(op.Abs(op.Sub(share, number(k))), k)) for k in (-1, 0, 1, 2)]

    def _tap(self, position: Value, weight: Value | None) -> _Tap:
        """An element at an integral position."""
        if self.padding == "reflection":
            position = self._inside(position)
        last = op.Sub(float_size(self.size), number(1))
        if self.padding == "zeros":
            is_outside = op.Or(op.Less(position, number(0)), op.Greater(position, last))
            inside = op.Where(is_outside, number(0), number(1))
            weight = inside if weight is None else op.Mul(weight, inside)
        index = op.Cast(op.Max(op.Min(position, last), number(0)), to=DType.INT64)
        return _Tap(op.Mul(index, vector([self.stride])), weight)

    def _inside(self, position: Value) -> Value:
        """A position, brought back into the image unless zeros lie around it."""
        n = float_size(self.size)
        last = op.Sub(n, number(1))
        if self.padding == "zeros":
            return position
        low, high = (number(0), last) if self.align else (number(-0.5), op.Sub(n, number(0.5)))
        is_outside = op.Or(op.Less(position, low), op.Greater(position, high))
        if self.padding == "border":
            return op.Where(is_outside, op.Max(op.Min(position, last), number(0)), position)
        span = op.Max(op.Sub(high, low), number(float(np.finfo(np.float32).tiny)))
        beyond = op.Abs(op.Sub(position, low))
        turns = op.Floor(op.Div(beyond, span))
        rest = op.Sub(beyond, op.Mul(turns, span))
        half = op.Mul(turns, number(0.5))
        is_even = op.Equal(half, op.Floor(half))
        return op.Where(is_outside, op.Where(is_even, op.Add(low, rest), op.Sub(high, rest)), position)


def _cubic(distance: Value, tap: int, a: float = -0.75) -> Value:
    """The weight of an element in cubic convolution; R. Keys, IEEE ASSP 29(6), 1981, equation (4)."""
    scale = [a, -5 * a, 8 * a, -4 * a] if tap in (-1, 2) else [a + 2, -(a + 3), 0, 1]
    return reduce(lambda total, c: op.Add(op.Mul(total, distance), number(c)), scale[1:], number(scale[0]))


def _affine_grid(node: Node, version: Version) -> list[Value] | None:
    """The sum of what each coordinate adds."""
    theta, size, result = node.given(0), node.given(1), node.results[0].shape
    if result is None:
        return None
    count, wide = len(result) - 2, as_float(theta)
    shape = [-1, *[1] * count, count]

    def column(i: int) -> Value:
        return reshape(op.Gather(wide, constant(i, DType.INT64), axis=2), shape)

    grid = column(count)
    for i in range(count):
        n = decided(node.results[0], i + 1, size, i + 2)
        base = _coordinates(n, bool(node.attrs.get("align_corners", 0)))
        grid = op.Add(grid, op.Mul(reshape(base, [-1, *[1] * (count - i)]), column(count - 1 - i)))
    return [cast(grid, theta.dtype)]


def _coordinates(n: Size, align_corners: bool) -> Value:
    """The positions of ``n`` elements from -1 to 1."""
    steps, total = as_float(iota(n)), float_size(n)
    doubled = op.Mul(steps, number(2))
    if align_corners:
        last = op.Sub(total, number(1))
        start = op.Min(last, number(1))  # 0 where there is only one
        return op.Sub(op.Div(doubled, op.Max(last, number(1))), start)
    return op.Sub(op.Div(op.Add(doubled, number(1)), total), number(1))


FORMS = {"AffineGrid": _affine_grid, "GridSample": _grid_sample}
ROWS = {"GridSample": Row({"T1": FLOATS, "T2": FLOATS}, ranks=(4, 5), check=_grid_refusal)}
