"""Which weights become 0: masks from scores. Arrays in, arrays out; no graphs.

A mask is True where a weight is to be 0. What is 0 already counts, and stays: so pruning may go on from what was pruned
before, and never gives back a weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Pattern", "counts_of_lowest", "lamp_scores", "lowest", "lowest_in_rows", "outside_pattern", "shares"]

Array = np.ndarray[Any, Any]
_HALF = 16  # bits of a number that are looked at in one go


@dataclass(frozen=True)
class Pattern:
    """At most ``kept`` of every ``of`` neighbours differ from 0 (Mishra et al. 2021, arXiv 2104.08378).

    Attributes:
        kept: the most numbers of a group that are not 0.
        of: the size of a group.
    """

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern that ``text``, such as ``2:4``, describes.

        Raises:
            ValueError: it describes none.
        """
        found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f"the pattern is N:M with 0 < N < M, such as 2:4, not {text!r}")
        return cls(int(found[1]), int(found[2]))


def lowest(scores: Array, zeros: Array, count: int) -> Array:
    """A mask of at least ``count`` elements: all of ``zeros``, and then those with the lowest scores.

    Args:
        scores: finite numbers of any shape.
        zeros: a mask of the same shape: what is 0 already.
        count: how many elements the mask has, unless ``zeros`` has more.
    """
    mask = zeros.copy()
    missing = count - int(np.count_nonzero(zeros))
    if missing > 0:
        ranked = np.where(zeros, -np.inf, scores).ravel()
        mask.ravel()[np.argpartition(ranked, count - 1)[:count]] = True
    return mask


def lowest_in_rows(scores: Array, zeros: Array, count: int) -> Array:
    """The same for a matrix, each row by itself; all rows get the same number, as far as `shares` allows.

    Args:
        scores: ``[rows, columns]``.
        zeros: a mask of the same shape.
        count: of the elements of the mask, in all rows together.
    """
    counts = shares(np.count_nonzero(zeros, axis=1), np.full(len(scores), scores.shape[1]), count)
    ranked = np.argsort(np.where(zeros, -np.inf, scores), axis=1, kind="stable")
    mask = np.empty_like(zeros)
    np.put_along_axis(mask, ranked, np.arange(scores.shape[1]) < counts[:, None], axis=1)
    return mask


def outside_pattern(scores: Array, zeros: Array, pattern: Pattern) -> Array:
    """A mask that leaves of every group of neighbours in a row those with the highest scores.

    Args:
        scores: ``[rows, columns]``; the columns are whole groups.
        zeros: a mask of the same shape.
        pattern: how many are left.
    """
    ranked = np.where(zeros, -np.inf, scores).reshape(-1, pattern.of)
    order = np.argsort(ranked, axis=1, kind="stable")
    mask = np.zeros(ranked.shape, bool)
    np.put_along_axis(mask, order[:, : pattern.of - pattern.kept], True, axis=1)
    return mask.reshape(zeros.shape) | zeros


def shares(zeros: Array, sizes: Array, total: int) -> Array:
    """How many of ``total`` zeros each of several groups gets: the same share of each, but none fewer than it has.

    Args:
        zeros: how many each group has.
        sizes: how many elements.
        total: at most all of them.

    Returns:
        Whole numbers that add up to ``total``, or to what there is, if that is more.
    """
    if total <= zeros.sum():
        return zeros.copy()

    def counts(share: float) -> Array:
        return np.maximum(zeros, np.floor(share * sizes).astype(zeros.dtype))

    low, high = 0.0, 1.0 + 1e-9
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if counts(middle).sum() <= total else (low, middle)
    found = counts(low)
    may_grow = np.flatnonzero(counts(high) > found) if counts(high).sum() > total else np.flatnonzero(found < sizes)
    found[may_grow[: total - found.sum()]] += 1
    return found


def counts_of_lowest(scores: Callable[[], Iterable[Array]], total: int) -> list[int]:
    """How many of the ``total`` lowest scores of several arrays lie in each; equal ones go to the first.

    The bits of numbers that are not negative are ordered like the numbers: the limit is found by two histograms of
    half the bits, so that no two of the arrays are ever needed together.

    Args:
        scores: makes the arrays, the same each time; float32, finite and not negative.
        total: at most the number of all scores.
    """
    prefix, rest = 0, total  # of the limit: its upper half; and how many scores lie from there up to the limit
    for shift in (_HALF, 0):
        histogram = np.zeros(1 << _HALF, np.int64)
        for array in scores():
            bits = _bits(array)
            if not shift:
                bits = bits[bits >> _HALF == prefix] & ((1 << _HALF) - 1)
            histogram += np.bincount(bits >> shift, minlength=1 << _HALF)
        below = np.cumsum(histogram)
        half = int(np.searchsorted(below, rest))
        rest -= int(below[half] - histogram[half])
        prefix = half if shift else (prefix << _HALF) | half
    found = []
    for array in scores():
        bits = _bits(array)
        equal = min(int(np.count_nonzero(bits == prefix)), rest)
        rest -= equal
        found.append(int(np.count_nonzero(bits < prefix)) + equal)
    return found


def _bits(scores: Array) -> Array:
    return np.abs(scores).astype(np.float32, copy=False).ravel().view(np.uint32)  # no negative 0


def lamp_scores(weight: Array) -> Array:
    """Each ``w^2`` over the sum of all that are at least as large (Lee et al. 2021, arXiv 2010.07611, equation 3).

    The score of the largest weight is 1, whatever the scale of the layer: so layers can be compared, and none is lost.

    Returns:
        float32, of the shape of ``weight``; 0 where that is 0.
    """
    squares = np.square(weight.ravel().astype(np.float64))
    order = np.argsort(squares, kind="stable")
    ranked = squares[order]
    rest = np.cumsum(ranked[::-1])[::-1]
    scores = np.zeros(len(ranked), np.float32)
    scores[order] = np.divide(ranked, rest, out=np.zeros_like(ranked), where=ranked > 0)
    return scores.reshape(weight.shape)
