"""From ranges to scales: the parameters of a range of weights, and how much of a range it is best to cover."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.quantization import Format, fake_quantize
from ..ranges import parameters

__all__ = ["SHRINKS", "best_shrink", "scales_of"]

Array = np.ndarray[Any, Any]

SHRINKS = np.linspace(1.0, 0.3, 71)  # the parts of a range that are tried; the whole first, so that it wins ties
_COARSE = 5  # every so many of them are tried at first
_CHUNK = 1 << 18  # elements that are rounded at once


def scales_of(low: Array, high: Array, format: Format, symmetric: bool) -> tuple[Array, Array | None]:
    """Scales (float32) and zero points for the ranges from ``low`` to ``high``; None for zero points if symmetric."""
    scale, zero = parameters(low, high, format, symmetric)
    return scale, None if symmetric else zero


def best_shrink(
    groups: Array, low: Array, high: Array, format: Format, symmetric: bool, importance: Array | None
) -> Array:
    """The part of each range, among `SHRINKS`, that rounds its group with the smallest squared error.

    It is sought coarse to fine, so a second minimum of nearly the same depth may be missed.

    Args:
        groups: ``[groups, size]``, float32.
        low: ``[groups]``; or ``[1]``, one range for all.
        high: of the same shape.
        format: what the codes are.
        symmetric: as in `scales_of`.
        importance: ``[n, size]``, what the squared error of each element counts in group i, at row i modulo n.

    Returns:
        The shape of ``low``, float64.
    """
    least, best = np.full(low.shape, np.inf), np.zeros(low.shape, np.intp)
    last = len(SHRINKS) - 1
    middles: Array = np.zeros(low.shape, np.intp)
    for steps in (range(0, last + 1, _COARSE), (d for d in range(1 - _COARSE, _COARSE) if d)):
        for step in steps:  # first from the whole range on, then around the best of these
            index = np.clip(middles + step, 0, last)
            shrink = SHRINKS[index]
            scale, zero = scales_of(low * shrink, high * shrink, format, symmetric)
            errors = _squared_errors(groups, scale, zero, format, importance)
            errors = errors if len(errors) == len(low) else errors.sum(keepdims=True)
            better = errors < least
            least[better], best[better] = errors[better], index[better]
        middles = best.copy()
    found: Array = SHRINKS[best]
    return found


def _squared_errors(groups: Array, scale: Array, zero: Array | None, format: Format, importance: Array | None) -> Array:
    """The (weighted) squared rounding error of each group, in float64, in which no square overflows."""
    count, size = groups.shape
    scale = np.broadcast_to(scale, count)
    zero = None if zero is None else np.broadcast_to(zero, count)
    errors = np.empty(count)
    rows = max(1, _CHUNK // max(size, 1))
    for part in (slice(start, start + rows) for start in range(0, count, rows)):
        rounded = fake_quantize(groups[part], scale[part], None if zero is None else zero[part], format, axis=0)
        squares = np.square((rounded - groups[part]).astype(np.float64))
        if importance is not None:
            squares *= importance[np.arange(count)[part] % len(importance)]
        errors[part] = squares.sum(axis=1)
    return errors
