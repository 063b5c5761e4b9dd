"""Comparison of two results under declared numerics."""

from __future__ import annotations

from typing import Any

import numpy as np

from planish.passes.numerics import Exact, Lossy, Numerics, Within

__all__ = ["difference"]

_KERNEL_EPS = 16  # last bits by which the same sums may differ, relative to the largest number that occurs on the way


def difference(actual: Any, expected: Any, numerics: Numerics, scale: float = 0.0) -> str | None:
    """What is wrong with ``actual`` as a stand-in for ``expected``; None if nothing is.

    Args:
        actual: an array.
        expected: the array that it should be.
        numerics: what the rewrite promises.
        scale: the largest finite magnitude among the intermediate values, which bounds what rounding may do.
    """
    a, e = np.asarray(actual), np.asarray(expected)
    if a.dtype != e.dtype:
        return f"it is {a.dtype}, not {e.dtype}"
    if a.shape != e.shape:
        return f"its shape is {list(a.shape)}, not {list(e.shape)}"
    if isinstance(numerics, Lossy) or not e.size:
        return None
    if e.dtype.kind not in "fV":
        return None if np.array_equal(a, e) else f"{int(np.sum(a != e))} of {e.size} elements differ"
    eps = float(np.finfo(e.dtype).eps) if e.dtype.kind == "f" else 2.0**-7
    a, e = a.astype(np.float64), e.astype(np.float64)
    finite = np.isfinite(e)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[~finite], e[~finite], equal_nan=True):
        return f"NaN or infinities differ: {_first(a, e, ~np.isclose(a, e, equal_nan=True))}"
    if not finite.any():
        return None
    error = np.abs(np.where(finite, a, 0) - np.where(finite, e, 0))
    bound = _bound(numerics, eps, float(np.abs(e[finite]).max()), scale)
    if float(error.max()) <= bound:
        return None
    return f"it is off by {error.max():.3g} where {bound:.3g} is allowed: {_first(a, e, error > bound)}"


def _bound(numerics: Numerics, eps: float, largest: float, scale: float) -> float:
    rounding = _KERNEL_EPS * eps * max(largest, scale)
    if isinstance(numerics, Within):
        relative = min(0.1, numerics.rtol * max(1.0, eps / float(np.finfo(np.float32).eps)))
        return numerics.atol + relative * largest + rounding
    assert isinstance(numerics, Exact)
    return rounding


def _first(a: np.ndarray, e: np.ndarray, where: np.ndarray) -> str:
    if not where.any():
        return ""
    index = tuple(int(i[0]) for i in np.nonzero(where)) if where.ndim else ()
    return f"{a[index]:.6g} for {e[index]:.6g} at {list(index)}"
