"""Channels: which indices of which axes of which values stand for the same thing, and so can only go together.

Every index of a static axis is an *atom*. Operators equate atoms: the output channels of a convolution are those of its
weight and its bias, both sides of an addition have the same ones, and so on. Atoms that are equated form a *class*,
which is kept or removed as a whole (the dependency graph of DepGraph, Fang et al., CVPR 2023, on the level of single
indices). A class with an atom that must stay, such as one of a graph output, is *frozen*.

An axis that was made by merging dimensions is a product: ``[heads * size]`` is ``(heads, size)``. What is kept of it
must be a product again, so either whole heads go, or the same elements of all heads. Products are settled last, when it
is known which of their factors are free: one of them stays free, the others are frozen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir.dims import Dim

__all__ = ["Axes", "Axis", "Channels", "Coupling", "Factor", "Fixed", "size_of", "static_size", "without_ones"]

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Fixed:
    """A factor of an axis that no one may shrink, of ``size``, which may be symbolic."""

    size: Dim


@dataclass(frozen=True, eq=False)
class Channels:
    """A factor of an axis whose indices are the atoms ``ids``."""

    ids: Ids

    @property
    def size(self) -> int:
        """The number of indices."""
        return len(self.ids)


Factor = Fixed | Channels
Axis = tuple[Factor, ...]  # the outermost first; () is an axis of size 1
Axes = tuple[Axis, ...]


def size_of(axis: Axis) -> Dim:
    """The number of indices of ``axis``."""
    total: Dim = 1
    for factor in axis:
        total = total * factor.size
    return total


def static_size(axis: Axis) -> int | None:
    """The number of indices of ``axis`` if all its factors are static, else None."""
    total = size_of(axis)
    return total if isinstance(total, int) and all(isinstance(f.size, int) for f in axis) else None


@dataclass(eq=False)
class _Product:
    """``merged`` counts the combinations of ``factors``, the last of them fastest."""

    merged: Channels
    factors: tuple[Factor, ...]


class Coupling:
    """Atoms and what is known of them: a union-find over arrays, with frozen classes and pending products.

    Attributes:
        reasons: texts that say why atoms are frozen; number 0 is "not frozen".
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1 << 12, np.int64)
        self._why = np.zeros(1 << 12, np.int32)  # of roots: number of the reason
        self._liked = np.zeros(1 << 12, bool)  # of roots
        self._used = 0
        self._products: list[_Product] = []
        self.reasons: list[str] = [""]
        self._numbers: dict[str, int] = {}

    @property
    def size(self) -> int:
        """The number of atoms."""
        return self._used

    def new(self, size: int, *, liked: bool = False) -> Channels:
        """``size`` new atoms; ``liked``: what a product that has the choice leaves free."""
        start, self._used = self._used, self._used + size
        while self._used > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._why = np.concatenate([self._why, np.zeros_like(self._why)])
            self._liked = np.concatenate([self._liked, np.zeros_like(self._liked)])
        ids = np.arange(start, self._used)
        self._parent[ids] = ids
        self._liked[ids] = liked
        return Channels(ids)

    def like(self, axis: Axis) -> None:
        """Prefer the factors of ``axis`` where there is a choice what stays free."""
        for factor in axis:
            if isinstance(factor, Channels):
                self._liked[self.find(factor.ids)] = True

    def is_liked(self, axis: Axis) -> bool:
        """Whether a factor of ``axis`` is preferred."""
        return any(isinstance(f, Channels) and bool(self._liked[self.find(f.ids)].any()) for f in axis)

    def find(self, ids: Ids) -> Ids:
        """The class of each atom, as the number of one of its atoms."""
        found = self._parent[ids]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                self._parent[ids] = found
                return found
            found = self._parent[further]

    def equate(self, a: Ids, b: Ids) -> None:
        """Put the atoms ``a[i]`` and ``b[i]`` in one class, for each i."""
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            np.minimum.at(self._parent, high, low)
            roots = self.find(high)  # everything that is no root any more is in `high`
            np.maximum.at(self._why, roots, self._why[high])
            np.logical_or.at(self._liked, roots, self._liked[high])
            a, b = low, high

    def freeze(self, axis: Axis, reason: str) -> None:
        """Keep all atoms of ``axis``."""
        number = self._numbers.setdefault(reason, len(self.reasons))
        if number == len(self.reasons):
            self.reasons.append(reason)
        for factor in axis:
            if isinstance(factor, Channels):
                roots = self.find(factor.ids)
                self._why[roots] = np.where(self._why[roots] > 0, self._why[roots], number)

    def frozen(self, ids: Ids) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the atoms must stay."""
        return self._why[self.find(ids)] > 0

    def why(self, ids: Ids) -> str:
        """Why the first frozen one of the atoms must stay; "" if none is frozen."""
        numbers = self._why[self.find(ids)]
        return self.reasons[int(numbers[np.flatnonzero(numbers)[0]])] if numbers.any() else ""

    def mask(self, classes: Ids) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For every number of a class, whether it is among ``classes``."""
        found = np.zeros(self._used, bool)
        found[classes] = True
        return found

    # axes

    def unify(self, x: Axis, y: Axis, reason: str) -> None:
        """Let index i of both axes be the same thing; where that cannot be, freeze both and say ``reason``."""
        if x is y:
            return
        if len(x) == len(y) and all(f.size == g.size for f, g in zip(x, y, strict=True)):
            for f, g in zip(x, y, strict=True):
                if isinstance(f, Channels) and isinstance(g, Channels):
                    self.equate(f.ids, g.ids)
                else:
                    self.freeze((f, g), reason)
            return
        size = static_size(x)
        if size is None or size != static_size(y):
            self.freeze((*x, *y), reason)
        elif len(x) == 1 and isinstance(x[0], Channels):
            self.product(x[0], y)
        elif len(y) == 1 and isinstance(y[0], Channels):
            self.product(y[0], x)
        else:
            merged = self.new(size)
            self.product(merged, x)
            self.product(merged, y)

    def product(self, merged: Channels, factors: Sequence[Factor]) -> None:
        """State that ``merged`` counts the combinations of ``factors``; it is settled by `settle`."""
        factors = tuple(f for f in factors if f.size != 1)
        if len(factors) == 1 and isinstance(factors[0], Channels):
            self.equate(merged.ids, factors[0].ids)
        else:
            self._products.append(_Product(merged, factors))

    def single(self, axis: Axis, reason: str) -> Channels | None:
        """``axis`` as a single factor; None, and frozen, if it has symbolic factors or none that can shrink."""
        if len(axis) == 1 and isinstance(axis[0], Channels):
            return axis[0]
        size = static_size(axis)
        if size is None or not any(isinstance(f, Channels) for f in axis):
            self.freeze(axis, reason)
            return None
        merged = self.new(size)
        self.product(merged, axis)
        return merged

    # products

    def settle(self) -> None:
        """Choose for each product which factor may shrink: those without a choice first, as choices freeze others."""
        pending, self._products = self._products, []
        while pending:
            left = [p for p in pending if not self._settle_if_forced(p)]
            if len(left) == len(pending):
                liked = [p for p in left if self.is_liked(tuple(self._free(p)))]
                counts = Counter(int(self.find(f.ids)[0]) for p in left for f in self._free(p))
                for product in liked or left[:1]:
                    if not self._settle_if_forced(product):
                        self._choose(product, counts)
                    left.remove(product)
            pending = left
        every = np.arange(self._used)
        self._parent[every] = self.find(every)

    def _choose(self, product: _Product, counts: Mapping[int, int]) -> None:
        """Leave a factor free that is liked, or that few other products have, or the largest."""
        free = self._free(product)
        best = max(free, key=lambda f: (self.is_liked((f,)), -counts[int(self.find(f.ids)[0])], f.size))
        self.like((best,))  # other products that have it must not freeze it
        self._leave_free(product, best)

    def _free(self, product: _Product) -> list[Channels]:
        return [f for f in product.factors if isinstance(f, Channels) and not self.frozen(f.ids).all()]

    def _settle_if_forced(self, product: _Product) -> bool:
        if self.frozen(product.merged.ids).all():
            self.freeze(product.factors, self.why(product.merged.ids))
            return True
        free = self._free(product)
        if len(free) > 1:
            return False
        self._leave_free(product, free[0] if free else None)
        return True

    def _leave_free(self, product: _Product, chosen: Channels | None) -> None:
        reason = "it counts what is repeated for other channels"
        position = next((i for i, f in enumerate(product.factors) if f is chosen), -1)
        for i, factor in enumerate(product.factors):
            if i != position:  # by position: the same channels may be there twice
                self.freeze((factor,), reason)
        if chosen is None:
            self.freeze((product.merged,), next(filter(None, map(self._why_factor, product.factors)), reason))
            return
        inner = 1
        for factor in product.factors[position + 1 :]:
            assert isinstance(factor.size, int)
            inner *= factor.size
        spread = np.tile(np.repeat(chosen.ids, inner), product.merged.size // (inner * chosen.size))
        self.equate(product.merged.ids, spread)

    def _why_factor(self, factor: Factor) -> str:
        return self.why(factor.ids) if isinstance(factor, Channels) else ""


def without_ones(factors: Iterable[Factor]) -> Axis:
    """An axis of ``factors``."""
    return tuple(f for f in factors if f.size != 1)
