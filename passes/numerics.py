"""Declared numerics: what a rewrite or a pass promises about the values that it computes anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Exact", "Lossy", "Numerics", "Within", "error_of", "within"]


@dataclass(frozen=True)
class Numerics:
    """Base class. ``tolerance``: the largest error relative to the range of the reference, None for no bound."""

    @property
    def tolerance(self) -> float | None:
        raise NotImplementedError


@dataclass(frozen=True)
class Exact(Numerics):
    """The same real-number function, computed by the same operations: equal up to a kernel's last bits."""

    @property
    def tolerance(self) -> float:
        return 1e-5


@dataclass(frozen=True)
class Within(Numerics):
    """The same real-number function, computed in another order: elementwise ``|y' - y| <= atol + rtol * max|y|``."""

    rtol: float = 1e-5
    atol: float = 0.0

    @property
    def tolerance(self) -> float:
        return max(10 * self.rtol, 1e-5)


@dataclass(frozen=True)
class Lossy(Numerics):
    """Another function, on purpose (quantization, pruning): judged by an accuracy budget, not by a bound."""

    @property
    def tolerance(self) -> None:
        return None


def within(rtol: float = 1e-5, atol: float = 0.0) -> Within:
    """Short for `Within`."""
    return Within(rtol, atol)


def error_of(actual: object, expected: object) -> float:
    """The largest difference relative to the range (largest magnitude) of ``expected``.

    It is 0 for equal values, infinite where shape, dtype, non-finite places or structure differ. Sequences (lists) are
    compared item by item.
    """
    if isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            return float("inf")
        return max((error_of(a, e) for a, e in zip(actual, expected, strict=True)), default=0.0)
    if expected is None or actual is None:
        return 0.0 if actual is expected else float("inf")
    a, e = np.asarray(actual), np.asarray(expected)
    if a.shape != e.shape or a.dtype != e.dtype:
        return float("inf")
    if e.size == 0:
        return 0.0
    if e.dtype.kind not in "fcV":
        return 0.0 if np.array_equal(a, e) else float(np.mean(a != e)) if e.dtype.kind in "OUSb" else _difference(a, e)
    if e.dtype.kind == "V" or e.dtype.itemsize < 4:
        a, e = a.astype(np.float32), e.astype(np.float32)
    return _difference(a, e)


def _difference(a: np.ndarray, e: np.ndarray) -> float:
    if a.dtype.kind == "c":
        return max(_difference(a.real, e.real), _difference(a.imag, e.imag))
    a, e = a.astype(np.float64), e.astype(np.float64)
    finite = np.isfinite(e)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[~finite], e[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(e[finite]).max())
    difference = float(np.abs(a[finite] - e[finite]).max())
    return difference / largest if largest > 0 else difference
