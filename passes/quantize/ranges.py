"""From a histogram to a range, and from a range to scale and zero point.

The methods, and where they come from:

- ``minmax``: all that was seen.
- ``moving-average``: the exponential moving average of the extremes of each update (Jacob et al. 2018,
  arXiv:1712.05877, section 3.1).
- ``percentile``: the given share of the elements, cut at both ends alike.
- ``entropy``: the range whose quantized distribution tells least from the distribution of the elements that are clipped
  to it, by Kullback-Leibler divergence (Migacz 2017, "8-bit Inference with TensorRT", GTC S7310).
- ``mse``: the range with the least expected squared error, of clipping and rounding together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from ...ir.quantization import Format
from ..base import RequestError
from ..calibration.histogram import Bins, Histogram

__all__ = ["METHODS", "expected_error", "parameters", "range_of"]

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")
_CANDIDATES = 128  # ranges that ``entropy`` compares
_COARSE = np.geomspace(1, 1 / 512, 37)  # what ``mse`` tries as a share of the full range
_FINE = np.geomspace(1 / _COARSE[1], _COARSE[1], 17)  # and then around the best of these
_ROUNDS = 2  # of coordinate descent over the two ends

Array = np.ndarray[Any, Any]
Range = tuple[float, float]


def range_of(
    histogram: Histogram, method: str, *, percentile: float = 99.99, format: Format, symmetric: bool = False
) -> Range:
    """The range of numbers that ``format`` should hold.

    Args:
        histogram: what was seen of the value.
        method: one of `METHODS`.
        percentile: for method ``percentile``, the share of the elements inside, in percent (99.99 by default). What is
            outside is taken from both ends in equal parts; from one end if all elements have one sign.
        format: the number format that ``entropy`` and ``mse`` choose for.
        symmetric: whether the range is made as wide below 0 as above.

    Returns:
        ``(low, high)`` with ``low <= 0 <= high``. It is (0, 0) for a histogram of no elements, or of zeros only.

    Raises:
        RequestError: there is no such method, or the percentile is not above 0 and at most 100.
    """
    if method not in METHODS:
        raise RequestError(f"no calibration method {method!r}: there are {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise RequestError(f"the percentile must be above 0 and at most 100, not {percentile}")
    if not histogram.count:
        return 0.0, 0.0
    full = _with_zero(histogram.min, histogram.max, symmetric)
    if method == "minmax" or full == (0, 0):
        return full
    if method == "moving-average":
        return _with_zero(histogram.average_min, histogram.average_max, symmetric)
    if method == "percentile":
        return _with_zero(*_percentile_range(histogram, percentile / 100), symmetric)
    if method == "entropy":
        return _entropy_range(histogram, full, format, symmetric)
    return _mse_range(histogram, full, format, symmetric)


def parameters(low: Any, high: Any, format: Format, symmetric: bool) -> tuple[Array, Array]:
    """Scale and zero point that make ``format`` span the range from ``low`` to ``high``.

    The range is first widened to hold 0. An integer format spans it with all its numbers, and the zero point is
    rounded, so that 0 is exactly a number of the format and the ends move by up to half a step. Where ``symmetric``, or
    for a floating-point format, the largest number stands for the greater magnitude, and the zero point is 0; for an
    unsigned format it is the middle (128 for uint8), which is the same as int8 without its lowest number.

    Args:
        low: the lower end, a number or an array of any shape (one element per channel, say).
        high: the upper end, of the same shape.
        format: the number format.
        symmetric: whether to center the numbers on 0.

    Returns:
        The scale, float32 of the shape of ``low``, and the zero point, of the same shape and ``format.storage``. The
        scale is 1 for an empty range, and never less than the smallest normal number.
    """
    start, end = np.minimum(np.asarray(low, np.float64), 0), np.maximum(np.asarray(high, np.float64), 0)
    limits = np.finfo(np.float32)
    if symmetric or not format.is_integer:
        middle = 0.0 if format.is_signed else (format.high + 1) / 2
        span, steps, zero = np.maximum(-start, end), format.high - middle, np.full_like(start, middle)
    else:
        span, steps, zero = end - start, format.high - format.low, None
    scale = np.where(span > 0, np.clip(span / steps, float(limits.tiny), float(limits.max)), 1).astype(np.float32)
    if zero is None:
        zero = np.clip(np.rint(format.low - start / scale), format.low, format.high)
    return scale, np.asarray(zero).astype(np.int32).astype(format.storage.numpy)


def expected_error(histogram: Histogram, scale: Array, zero_point: Array, format: Format) -> float:
    """The mean squared error of fake quantization over the elements of ``histogram``; 0 if there are none.

    Elements are taken as spread evenly over their bin. The integral of the squared error over a bin has a closed form,
    which holds for steps that are wider and narrower than the bin alike.

    Args:
        histogram: the elements.
        scale: one scale.
        zero_point: one zero point.
        format: the number format.
    """
    return _squared_error(histogram.bins(), scale, zero_point, format) / max(histogram.count, 1)


def _with_zero(low: float, high: float, symmetric: bool) -> Range:
    if symmetric:
        low, high = -max(-low, high, 0.0), max(-low, high, 0.0)
    return min(low, 0.0), max(high, 0.0)


# percentile


def _percentile_range(histogram: Histogram, share: float) -> Range:
    cut = 1 - share
    if histogram.min < 0 < histogram.max:
        return _quantile(histogram, cut / 2), _quantile(histogram, 1 - cut / 2)
    if histogram.max > 0:
        return 0.0, _quantile(histogram, share)
    return _quantile(histogram, cut), 0.0


def _quantile(histogram: Histogram, share: float) -> float:
    """Where ``share`` of the elements lies below: in the right bin, and interpolated there."""
    total = np.cumsum(histogram.counts)
    position = share * histogram.count
    i = int(np.searchsorted(total, position))
    inside = 1 - (total[i] - position) / max(histogram.counts[i], 1)
    value = (i - len(total) // 2 + inside) * histogram.width
    return float(np.clip(value, histogram.min, histogram.max))


# entropy


def _entropy_range(histogram: Histogram, full: Range, format: Format, symmetric: bool) -> Range:
    """The best of ranges that are cut at one magnitude and hold at least one bin per number of ``format``."""
    start, end, counts = histogram.bins()
    centers = (start + end) / 2
    best, least = full, np.inf
    for limit in np.linspace(0, max(-full[0], full[1]), _CANDIDATES + 1)[:0:-1]:
        low, high = max(full[0], -float(limit)), min(full[1], float(limit))
        if high - low < (1 << format.bits) * histogram.width:
            break
        scale, zero = parameters(low, high, format, symmetric)
        first, last = np.searchsorted(centers, low), np.searchsorted(centers, high, side="right")
        if first == last:
            break
        groups = _nearest(centers[first:last] / scale, zero, format).astype(np.intp)
        p = counts[first:last].astype(np.float64)
        q = _group_means(p, groups - groups[0])
        p[0] += counts[:first].sum()
        p[-1] += counts[last:].sum()
        divergence = float(p @ np.log(p / q)) / p.sum() + np.log(q.sum() / p.sum())
        if divergence < least:
            best, least = (low, high), divergence
    return best


def _group_means(p: Array, groups: Array) -> Array:
    """What quantization makes of the distribution ``p``: every bin of a group has the mean of that group."""
    return (np.bincount(groups, p) / np.maximum(np.bincount(groups), 1))[groups]


# mse


def _mse_range(histogram: Histogram, full: Range, format: Format, symmetric: bool) -> Range:
    """Shrink both ends together, then (unless ``symmetric``) each while the other stays."""
    bins = histogram.bins()

    def error(a: float, b: float) -> float:
        scale, zero = parameters(a * full[0], b * full[1], format, symmetric)
        return _squared_error(bins, scale, zero, format)

    low = high = _best(lambda f: error(f, f))
    if not symmetric and full[0] < 0 < full[1]:
        for _ in range(_ROUNDS):
            low = _best(partial(error, b=high))
            high = _best(partial(error, low))
    return low * full[0], high * full[1]


def _best(error: Callable[[float], float]) -> float:
    """The share of the full range that has the least error, to 2 %; the greatest of equals."""
    coarse = min(_COARSE, key=error)
    return float(min(np.minimum(coarse * _FINE, 1), key=error))


def _squared_error(bins: Bins, scale: Array, zero_point: Array, format: Format) -> float:
    """The sum of the squared errors of all elements."""
    start, end, counts = bins
    size = float(scale)
    integral = _error_integral(end / size, zero_point, format) - _error_integral(start / size, zero_point, format)
    return float(counts @ (integral / (end - start))) * size**3


def _error_integral(x: Array, zero_point: Array, format: Format) -> Array:
    """The integral of the squared error up to ``x``, in units of the scale, up to a constant.

    Around each number ``n`` it is ``(x - n) ** 3 / 3`` plus an offset, beyond the outermost ones as well: there the
    error is that of clipping. The offset makes it continuous; between two integers it grows by 1/12.
    """
    nearest = _nearest(x, zero_point, format)
    offset = nearest / 12
    if not format.is_integer:
        numbers, _, offsets = _numbers(format)
        nearest, offset = numbers[nearest], offsets[nearest]
    error = x - nearest
    return offset + error * error * error / 3


def _nearest(x: Array, zero_point: Array, format: Format) -> Array:
    """The nearest integer that ``format`` holds less the zero point, or the index of the nearest float."""
    if format.is_integer:
        return np.clip(np.rint(x), format.low - float(zero_point), format.high - float(zero_point))
    return np.searchsorted(_numbers(format)[1], x)


@cache
def _numbers(format: Format) -> tuple[Array, Array, Array]:
    """The numbers of a floating-point format, the midpoints between them, and offsets of the integral of the error."""
    codes = np.arange(1 << format.bits, dtype=np.uint8).view(format.storage.numpy).astype(np.float64)
    numbers = np.unique(codes[np.isfinite(codes)])
    middles = (numbers[1:] + numbers[:-1]) / 2
    offsets = np.cumsum(((middles - numbers[:-1]) ** 3 - (middles - numbers[1:]) ** 3) / 3)
    return numbers, middles, np.concatenate([[0.0], offsets])
