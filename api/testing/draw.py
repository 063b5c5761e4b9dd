"""Random choices for generated tests: sizes, shapes and arrays that lean towards what breaks rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from planish.ir import DType

__all__ = ["Draw", "Reject"]

Array = np.ndarray
T = TypeVar("T")
_DIMS = (1, 2, 3, 4, 5, 6)
_DIM_WEIGHTS = (20, 34, 26, 12, 4, 4)
_DTYPE_WEIGHTS = {
    DType.FLOAT: 120, DType.INT64: 16, DType.DOUBLE: 12, DType.FLOAT16: 12, DType.INT32: 8, DType.BOOL: 10,
    DType.UINT8: 4, DType.INT8: 4, DType.INT16: 1, DType.UINT16: 1, DType.UINT32: 1, DType.UINT64: 1,
}  # fmt: skip
_SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0)


class Reject(Exception):
    """The choices made so far lead nowhere: start again with others."""


class Draw:
    """A source of choices, the same for the same ``seed``.

    Attributes:
        small: keep everything as small as possible, to find a minimal failing example.
        special: put NaN, infinities and zeros among floating-point data, and the limits of the type among integers.
        empty: let some dimensions be 0.
        integers: prefer vectors of integers as data, as shape arithmetic has them.
    """

    def __init__(self, seed: str, *, small: bool = False):
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(self.random.getrandbits(63))
        self.small = small
        self.special = self.chance(0.12)
        self.empty = self.chance(0.08)
        self.integers = False

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.random.random() < probability

    def pick(self, choices: Iterable[T]) -> T:
        """One of ``choices``.

        Raises:
            Reject: there is none.
        """
        listed: Sequence[T] = choices if isinstance(choices, Sequence) else list(choices)
        if not listed:
            raise Reject("nothing to choose from")
        return self.random.choice(listed)

    def integer(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        if high < low:
            raise Reject("an empty range")
        return self.random.randint(low, high)

    def dtype(self, allowed: Iterable[DType]) -> DType:
        """One of ``allowed``, float most of the time."""
        known = [d for d in _DTYPE_WEIGHTS if d in set(allowed)]
        if not known:
            raise Reject("no dtype that can be drawn")
        if self.integers and DType.INT64 in known and self.chance(0.7):
            return DType.INT64
        return self.random.choices(known, [_DTYPE_WEIGHTS[d] for d in known])[0]

    def dim(self) -> int:
        """A small size; 0 now and then if this draw has empty tensors."""
        if self.empty and self.chance(0.2):
            return 0
        if self.small:
            return self.random.choice((1, 2, 2))
        return self.random.choices(_DIMS, _DIM_WEIGHTS)[0]

    def rank(self, low: int = 0, high: int = 4) -> int:
        """A rank; 2 and 3 most of the time."""
        if self.integers and low <= 1 <= high and self.chance(0.6):
            return 1
        ranks = range(low, max(low, min(high, 2 if self.small else high)) + 1)
        return self.random.choices(ranks, [(2, 3, 6, 5, 3, 1, 1)[min(r, 6)] for r in ranks])[0]

    def shape(self, low: int = 0, high: int = 4) -> tuple[int, ...]:
        """A shape with ``low`` to ``high`` dimensions."""
        return tuple(self.dim() for _ in range(self.rank(low, high)))

    def array(self, dtype: DType, shape: Sequence[int], *, positive: bool = False) -> Array:
        """Random elements: floats of moderate size, small integers, so that nothing overflows by accident."""
        shape = tuple(shape)
        if dtype is DType.BOOL:
            return self.numpy.random(shape) < self.pick((0.0, 0.5, 0.5, 0.5, 1.0))
        if dtype.is_integer:
            low = 1 if positive else 0 if not dtype.is_signed else -5
            integers = self.numpy.integers(low, 8, shape).astype(dtype.numpy)
            if self.special and not positive and integers.size:
                limits = np.iinfo(dtype.numpy)
                integers.flat[self.integer(0, integers.size - 1)] = self.pick((limits.min, limits.max))
            return integers
        if not dtype.is_floating:
            raise Reject(f"no {dtype.text} data")
        array = self.numpy.standard_normal(shape) * 2
        if self.chance(0.15):
            array = np.round(array)  # equal elements, exact zeros
        if positive:
            array = np.abs(array) + 0.1
        elif self.special and array.size:
            for _ in range(1 + array.size // 4):
                array.flat[self.integer(0, array.size - 1)] = self.pick(_SPECIAL)
        return np.asarray(array).astype(dtype.numpy)

    def broadcast_part(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts to ``shape``: often all of it, or less at the front, or 1 in places."""
        shape = tuple(shape)
        kind = self.random.random()
        if kind < 0.45:
            return shape
        if kind < 0.6:
            return ()
        if kind < 0.7:
            return (1,) * self.integer(0, len(shape))
        kept = shape[self.integer(0, len(shape)) :]
        return tuple(1 if self.chance(0.4) else d for d in kept)

    def permutation(self, n: int) -> tuple[int, ...]:
        """A permutation of ``range(n)``; the identity and swaps of neighbours are likely."""
        perm = list(range(n))
        kind = self.random.random()
        if kind < 0.2 or n < 2:
            return tuple(perm)
        if kind < 0.5:
            i = self.integer(0, n - 2)
            perm[i], perm[i + 1] = perm[i + 1], perm[i]
        else:
            self.random.shuffle(perm)
        return tuple(perm)

    def axis(self, rank: int) -> int:
        """An axis, possibly counted from the end."""
        axis = self.integer(0, rank - 1)
        return axis - rank if self.chance(0.3) else axis

    def axes(self, rank: int, low: int = 0) -> list[int]:
        """Distinct axes, possibly counted from the end."""
        chosen = self.random.sample(range(rank), self.integer(min(low, rank), rank))
        if self.chance(0.7):
            chosen.sort()
        return [a - rank if self.chance(0.25) else a for a in chosen]

    def until(self, make: Callable[[], T], accept: Callable[[T], Any], attempts: int = 20) -> T:
        """The first of some ``make()`` that is accepted.

        Raises:
            Reject: none was.
        """
        for _ in range(attempts):
            made = make()
            if accept(made):
                return made
        raise Reject("no acceptable choice")
