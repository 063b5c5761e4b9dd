"""The weights with which TensorFlow resizes a dimension, as matrices ``[out, in]``.

They are written once, for numbers that are known and for values that the graph computes: ``xp`` is NumPy, or
`Computed`, which has the functions of NumPy that are used here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...ir.graph import Value
from ...ir.types import DType

if TYPE_CHECKING:
    from .translate import Translator

__all__ = [
    "KERNELS",
    "Computed",
    "Real",
    "Term",
    "area_weights",
    "coordinates",
    "cubic_weights",
    "sampled_weights",
    "scale_of",
]

Real = Any  # a number or an array of NumPy, or a `Term`

_TABLE = 1024  # steps between two elements, to which positions are rounded for cubic weights
_TINY = 1000 * float(np.finfo(np.float32).tiny)  # sums of weights below are not divided by


class Term:
    """A float32 or boolean value that the graph computes, with the operators of arrays."""

    def __init__(self, t: Translator, value: Value):
        self.t, self.value = t, value

    def of(self, operator: str, *operands: Real) -> Term:
        """An operator applied to terms and numbers."""
        values = [o.value if isinstance(o, Term) else self.t.scalar(o, DType.FLOAT) for o in operands]
        return Term(self.t, getattr(self.t.op, operator)(*values))

    def __add__(self, other: Real) -> Term:
        return self.of("Add", self, other)

    def __sub__(self, other: Real) -> Term:
        return self.of("Sub", self, other)

    def __rsub__(self, other: Real) -> Term:
        return self.of("Sub", other, self)

    def __mul__(self, other: Real) -> Term:
        return self.of("Mul", self, other)

    def __truediv__(self, other: Real) -> Term:
        return self.of("Div", self, other)

    def __rtruediv__(self, other: Real) -> Term:
        return self.of("Div", other, self)

    def __neg__(self) -> Term:
        return self.of("Neg", self)

    def __lt__(self, other: Real) -> Term:
        return self.of("Less", self, other)

    def __le__(self, other: Real) -> Term:
        return self.of("LessOrEqual", self, other)

    def __gt__(self, other: Real) -> Term:
        return self.of("Greater", self, other)

    def __ge__(self, other: Real) -> Term:
        return self.of("GreaterOrEqual", self, other)

    def __and__(self, other: Term) -> Term:
        return self.of("And", self, other)

    __radd__, __rmul__ = __add__, __mul__


def _function(operator: str) -> Callable[..., Term]:
    def apply(self: Computed, *operands: Real) -> Term:
        term = next(o for o in operands if isinstance(o, Term))
        return term.of(operator, *operands)

    return apply


class Computed:
    """Functions of NumPy, for terms."""

    def __init__(self, t: Translator):
        self._t = t

    floor, ceil, rint, abs = _function("Floor"), _function("Ceil"), _function("Round"), _function("Abs")
    exp, sin, equal = _function("Exp"), _function("Sin"), _function("Equal")
    minimum, maximum, where = _function("Min"), _function("Max"), _function("Where")

    def sum(self, x: Term, axis: int, keepdims: bool) -> Term:
        """The sum along an axis."""
        return Term(self._t, self._t.op.ReduceSum(x.value, self._t.integers([axis]), keepdims=int(keepdims)))


class Kernel(NamedTuple):
    """A filter: how far it reaches, and its weight at a distance."""

    radius: float
    weight: Callable[[Any, Real], Real]


def _lanczos(radius: float) -> Kernel:
    def weight(xp: Any, x: Real) -> Real:
        angle = xp.maximum(x, 1e-3) * np.pi
        inside = xp.sin(angle) * xp.sin(angle / radius) * radius / (angle * angle)
        return xp.where(x > radius, 0.0, xp.where(x <= 1e-3, 1.0, inside))

    return Kernel(radius, weight)


def _cubic(xp: Any, x: Real, a: float) -> Real:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return xp.where(x < 1, near, xp.where(x < 2, far, 0.0))


def _mitchell(xp: Any, x: Real) -> Real:
    near = ((7 / 6 * x - 2) * x) * x + 16 / 18
    far = ((-7 / 18 * x + 2) * x - 10 / 3) * x + 16 / 9
    return xp.where(x >= 2, 0.0, xp.where(x >= 1, far, near))


KERNELS = {
    "lanczos1": _lanczos(1),
    "lanczos3": _lanczos(3),
    "lanczos5": _lanczos(5),
    "gaussian": Kernel(1.5, lambda xp, x: xp.where(x >= 1.5, 0.0, xp.exp(x * x * -2.0))),
    "box": Kernel(1, lambda xp, x: xp.where(x < 0.5, 1.0, xp.where(x > 0.5, 0.0, 0.5))),
    "triangle": Kernel(1, lambda xp, x: xp.maximum(1 - x, 0.0)),
    "keyscubic": Kernel(2, lambda xp, x: _cubic(xp, x, -0.5)),
    "mitchellcubic": Kernel(2, _mitchell),
}


def scale_of(xp: Any, given: Real, wanted: Real, is_aligned: bool) -> Real:
    """How far elements of the result are apart: in float32, which decides how it rounds."""
    if not is_aligned:
        return given / wanted
    return xp.where(wanted > 1, (given - 1) / xp.maximum(wanted - 1, np.float32(1)), given / wanted)


def coordinates(x: Real, scale: Real, grid: str) -> Real:
    """Where the elements ``x`` of the result are in the operand, in a grid as Resize calls it."""
    half = np.float32(0.5)
    return (x + half) * scale - half if grid == "half_pixel" else x * scale


def sampled_weights(
    xp: Any, source: Real, x: Real, given: Real, scale: Real, shift: Real, kernel: str, antialias: bool
) -> Real:
    """ScaleAndTranslate: a filter around ``(x + 0.5 - shift) / scale``, which grows with what is left out.

    Args:
        xp: NumPy, or `Computed`.
        source: the elements of the operand, as a row.
        x: those of the result, as a column.
        given: the size of the operand.
        scale: how much larger the result is.
        shift: how far it is moved.
        kernel: one of `KERNELS`.
        antialias: whether the filter grows.
    """
    radius, weight = KERNELS[kernel]
    inverse = np.float32(1) / scale
    stretch = xp.maximum(inverse, np.float32(1)) if antialias else np.float32(1)
    at = (x + np.float32(0.5)) * inverse - inverse * shift
    reach = radius * stretch
    low = xp.minimum(xp.maximum(xp.ceil(at - reach - 0.5), 0.0), given - 1)
    high = xp.minimum(xp.maximum(xp.floor(at + reach - 0.5), 0.0), given - 1)
    inside = (source >= low) & (source <= high) & (at >= 0) & (at <= given)
    return _normalized(xp, xp.where(inside, weight(xp, xp.abs(source + 0.5 - at) / stretch), 0.0))


def _normalized(xp: Any, weights: Real) -> Real:
    total = xp.sum(weights, 1, keepdims=True)
    return weights / xp.where(xp.abs(total) >= _TINY, total, 1.0)


def cubic_weights(xp: Any, source: Real, at: Real, given: Real, is_keys: bool) -> Real:
    """ResizeBicubic: weights from a table for four elements around each position of a column ``at``.

    Elements outside have no weight if ``is_keys``; else the outermost ones stand for them.
    """
    below = xp.floor(at)
    offset = xp.rint((at - below) * _TABLE) / _TABLE
    weights: Real = 0.0
    for k in range(-1, 3):
        index, share = below + k, _cubic(xp, xp.abs(offset - k), -0.5 if is_keys else -0.75)
        place = index if is_keys else xp.minimum(xp.maximum(index, 0.0), given - 1)
        weights = weights + xp.where(xp.equal(source, place), share, 0.0)
    return _normalized(xp, weights) if is_keys else weights


def area_weights(xp: Any, source: Real, x: Real, given: Real, scale: Real) -> Real:
    """ResizeArea: how much of ``[x * scale, (x + 1) * scale]`` an element covers; the last one what is behind, too."""
    end = xp.where(source >= given - 1, np.inf, source + 1)
    covered = xp.minimum(end, (x + 1) * scale) - xp.maximum(source, x * scale)
    return xp.maximum(covered, 0.0) / scale
