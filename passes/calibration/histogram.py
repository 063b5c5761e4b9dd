"""Histograms of the numbers that flow through one value: one pass, bounded memory, and exact to merge.

The bins have a width of a power of two and stand at integer multiples of it, half of them on either side of 0. When a
number lies outside, the width doubles and neighbouring bins are added together. So the width is the smallest that holds
all numbers, every number lies in the bin ``floor(x / width)``, and neither depends on the order of the numbers or on
how they were split into updates and histograms.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["BINS", "Bins", "Histogram"]

Array = np.ndarray[Any, Any]
Bins = tuple[Array, Array, Array]

BINS = 4096
_HALF = BINS // 2
_SMALLEST = -120  # exponent of the smallest width: its inverse is a single-precision number
_CHUNK = 1 << 15  # elements per step: what is made of them fits in the cache of one core
_SENTINEL, _SENTINEL_HALF = 1e9, 6e4


@dataclass(eq=False)
class Histogram:
    """A summary of all numbers that `update` has seen.

    Masks are made of the lowest number of a type or of ``-1e9`` and beyond. Such sentinels, infinities and NaN say
    nothing of the range that matters, so they are counted separately and enter nothing else.

    A negative number so small that it vanishes when divided by the width (below ``1e-38`` beside ones near ``1e9``) may
    be counted in the bin above 0. The sums depend on the order of the numbers by the rounding of double precision.

    Attributes:
        momentum: the weight of the past in the moving averages, 0.9 by default.
        sentinel: the least magnitude that is a mask's and no number's. By default 1e9, and 6e4 for float16.
        exponent: the bins are ``2.0 ** exponent`` wide.
        counts: the number of elements in each bin, int64 of shape [`BINS`]; bin ``i`` holds what is at least
            ``(i - BINS / 2) * width`` and less than the start of the next.
        count: the number of elements in all bins.
        zeros: how many of them are exactly 0, as after a Relu: every quantizer keeps these.
        nans: the number of NaN.
        infinities: the number of infinite elements.
        sentinels: the number of finite elements whose magnitude is ``sentinel`` or more.
        min: the least element; infinity if there is none.
        max: the greatest element; -infinity if there is none.
        sum: the sum of the elements.
        sum_squares: the sum of their squares.
        updates: the number of updates that had any element.
        average_min: the exponential moving average of the least element of each update, starting at the first.
        average_max: that of the greatest.
    """

    momentum: float = 0.9
    sentinel: float | None = None
    exponent: int = _SMALLEST
    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    count: int = 0
    zeros: int = 0
    nans: int = 0
    infinities: int = 0
    sentinels: int = 0
    min: float = math.inf
    max: float = -math.inf
    sum: float = 0.0
    sum_squares: float = 0.0
    updates: int = 0
    average_min: float = 0.0
    average_max: float = 0.0

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    def update(self, array: Array) -> None:
        """Add the elements of ``array``, of any shape and real type.

        Raises:
            TypeError: the elements are no real numbers.
        """
        flat = np.asarray(array).reshape(-1)
        limit = (_SENTINEL_HALF if flat.dtype == np.float16 else _SENTINEL) if self.sentinel is None else self.sentinel
        wide = np.result_type(flat.dtype, np.float32)
        if wide.kind != "f":
            raise TypeError(f"a histogram of {flat.dtype} elements")
        low, high = math.inf, -math.inf
        with np.errstate(all="ignore"):
            for at in range(0, flat.size, _CHUNK):
                chunk = flat[at : at + _CHUNK].astype(wide, copy=False)
                start, end = float(chunk.min()), float(chunk.max())
                if not (start > -limit and end < limit):
                    chunk = self._without_specials(chunk, limit)
                    if not chunk.size:
                        continue
                    start, end = float(chunk.min()), float(chunk.max())
                self._add(chunk, max(-start, end))
                low, high = min(low, start), max(high, end)
        if low <= high:
            self._average(low, high, 1, self.momentum if self.updates else 0.0)

    def merge(self, other: Histogram) -> None:
        """Add what ``other`` has seen.

        All but the sums and averages becomes exactly what one histogram of all data would hold. Averages are weighed by
        the numbers of updates, since the order of updates is unknown across histograms.
        """
        exponent = max(self.exponent, other.exponent)
        self._coarsen(exponent)
        self.counts += _coarser(other.counts, exponent - other.exponent)
        for name in ("count", "zeros", "nans", "infinities", "sentinels", "sum", "sum_squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.updates:
            self.min, self.max = min(self.min, other.min), max(self.max, other.max)
            weight = self.updates / (self.updates + other.updates)
            self._average(other.average_min, other.average_max, other.updates, weight)

    def bins(self) -> Bins:
        """The occupied bins without the exact zeros: where each starts, where it ends, and its count.

        The outermost bins end at ``min`` and ``max``, but are never narrower than 1/1024 of the width. So the elements
        of a bin may be taken as spread evenly over it.
        """
        counts = self.counts.copy()
        counts[_HALF] -= self.zeros
        occupied = np.flatnonzero(counts)
        start = np.maximum((occupied - _HALF) * self.width, self.min)
        end = np.minimum((occupied - _HALF + 1) * self.width, self.max)
        return np.minimum(start, end - self.width / 1024), end, counts[occupied]

    def to_dict(self) -> dict[str, Any]:
        """All that differs from an empty histogram, ready for JSON; ``counts`` lists bins and their counts."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "counts"}
        found = {name: value for name, value in found.items() if value != getattr(Histogram, name)}
        occupied = np.flatnonzero(self.counts)
        return found | {"counts": [occupied.tolist(), self.counts[occupied].tolist()]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Histogram:
        """The histogram that `to_dict` wrote.

        Raises:
            TypeError, ValueError, LookupError: ``data`` is something else.
        """
        occupied, counts = data["counts"]
        found = cls(**{name: value for name, value in data.items() if name != "counts"})
        found.counts[occupied] = counts
        return found

    def _without_specials(self, chunk: Array, limit: float) -> Array:
        """The elements of ``chunk`` that are numbers below ``limit``; the others are counted."""
        size = np.abs(chunk)
        nans, infinities = int(np.isnan(chunk).sum()), int(np.isinf(chunk).sum())
        kept = chunk[size < limit]
        self.nans += nans
        self.infinities += infinities
        self.sentinels += chunk.size - kept.size - nans - infinities
        return kept

    def _add(self, chunk: Array, magnitude: float) -> None:
        """Add finite elements, of which ``magnitude`` is the greatest magnitude, to bins and sums."""
        if magnitude:
            self._coarsen(math.frexp(magnitude)[1] - _HALF.bit_length() + 1)
        numbers = chunk * chunk.dtype.type(math.ldexp(1.0, -self.exponent))
        np.floor(numbers, out=numbers)
        numbers += _HALF
        self.counts += np.bincount(numbers.astype(np.intp), minlength=BINS)
        self.count += chunk.size
        self.zeros += chunk.size - int(np.count_nonzero(chunk))
        wide = chunk.astype(np.float64)
        self.sum += float(wide.sum())
        self.sum_squares += float(np.square(wide, out=wide).sum())  # a product by BLAS would wait for its threads
        self.min, self.max = min(self.min, float(chunk.min())), max(self.max, float(chunk.max()))

    def _coarsen(self, exponent: int) -> None:
        """Make the bins at least ``2.0 ** exponent`` wide."""
        if exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def _average(self, low: float, high: float, updates: int, momentum: float) -> None:
        """Move the averages towards ``low`` and ``high``."""
        self.average_min += (1 - momentum) * (low - self.average_min)
        self.average_max += (1 - momentum) * (high - self.average_max)
        self.updates += updates


def _coarser(counts: Array, doublings: int) -> Array:
    """The counts in bins that are ``2 ** doublings`` times as wide."""
    occupied = np.flatnonzero(counts)
    found = np.zeros_like(counts)
    np.add.at(found, ((occupied - _HALF) >> min(doublings, 63)) + _HALF, counts[occupied])
    return found
