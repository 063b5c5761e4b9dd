"""``tucker``: a convolution becomes one on fewer channels, between two pointwise ones.

The Tucker-2 decomposition of the weight [O, I, K] has a core [r, s, K] and factors [O, r] and [I, s] (Kim et al. 2016,
"Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", arXiv:1511.06530). It
starts from the singular vectors of either unfolding (HOSVD), which then take turns (HOOI). With second moments of the
windows, the weight is decomposed for the inputs that it meets, as if channels and places were independent, and the last
factor is fitted anew to all outputs (see `algebra`). A factor that would be square is multiplied into the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ...ir import Value
from ...ir.builder import make_node
from .algebra import Array, Moments, kronecker_roots, refit, relative_error
from .factorizing import Factorization, Method
from .ladders import Form, Ladder
from .sites import Site

__all__ = ["Tucker"]

_ROUNDS = 5  # turns of HOOI
_STEPS = 24  # ranks of each side that are considered


@dataclass(frozen=True)
class Tucker(Factorization):
    """Make convolutions smaller ones between pointwise ones (Tucker-2), where that is faster.

    Where no goal is given, the ratio is 0.5.

    Attributes:
        ratio: the share of the parameters of each layer that remains at most.
        skip_first: leave convolutions alone that no other layer stands before.
    """

    method: Method = "auto"
    ratio: float | None = None
    skip_first: bool = True

    operators = ("Conv",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ratio(self.ratio)

    def why_not(self, site: Site, is_first: bool) -> str:
        if site.node.attrs.get("group", 1) != 1:
            return "it has groups"
        if prod(site.kernel) == 1:
            return "it is pointwise (see low-rank)"
        if is_first and self.skip_first:
            return "no layer stands before it"
        return ""

    def ladders(self, site: Site, moments: Moments | None, whiten: bool) -> list[Ladder]:
        return [_Tucker(site, moments, whiten)]

    def fixed(self, ladder: Ladder) -> int | None:
        return self.by_ratio(ladder, self.ratio)


class _Tucker(Ladder):
    """Pairs of ranks, of the outputs and of the inputs: of those that lose less than all with fewer parameters."""

    def __init__(self, site: Site, moments: Moments | None, whiten: bool):
        self.site = site
        self.moments = moments
        o, i = site.shape[:2]
        self.weight = site.matrix().reshape(o, i, -1)
        self.damped = moments.damped() if moments is not None and whiten else None
        (channels, undo_channels), (places, undo_places) = kronecker_roots(self.damped, i, self.weight.shape[2])
        self.whitened = channels.T @ self.weight @ places
        self.undo = undo_channels, undo_places
        _, outputs, _ = np.linalg.svd(self.whitened.reshape(o, -1), full_matrices=False)
        _, inputs, _ = np.linalg.svd(self.whitened.swapaxes(0, 1).reshape(i, -1), full_matrices=False)
        self.squares = np.square(outputs), np.square(inputs)
        self.ranks = self._useful()
        self.factors = cache(self._factors)

    def _useful(self) -> list[tuple[int, int]]:
        """Pairs of ranks by their parameters, each with a smaller bound on what is lost than those before it."""
        sides = [sorted({int(n) for n in np.linspace(1, len(s), min(len(s), _STEPS)).round()}) for s in self.squares]
        pairs = [(r, s) for r in sides[0] for s in sides[1] if (r, s) != (len(self.weight), self.weight.shape[1])]
        pairs.sort(key=lambda p: (self._count(*p), self._bound(*p)))
        found: list[tuple[int, int]] = []
        for pair in pairs:
            if not found or self._bound(*pair) < self._bound(*found[-1]):
                found.append(pair)
        return found

    def _bound(self, r: int, s: int) -> float:
        """At least the squared error of HOSVD: what either side cuts off."""
        return float(self.squares[0][r:].sum() + self.squares[1][s:].sum())

    def _count(self, r: int, s: int) -> int:
        o, i, k = self.weight.shape
        return r * s * k + (i * s if s < i else 0) + (o * r if r < o else 0)

    def __len__(self) -> int:
        return len(self.ranks)

    def label(self, rung: int) -> str:
        return "ranks {}, {}".format(*self.ranks[rung])

    def parameters(self, rung: int) -> int:
        return self._count(*self.ranks[rung])

    def energy(self, rung: int) -> float:
        total = float(self.squares[0].sum())
        return max(1 - self._bound(*self.ranks[rung]) / total, 0.0) if total else 1.0

    def error(self, rung: int) -> float:
        first, core, last = self.factors(rung)
        o = len(self.weight)
        other = np.einsum("or,rsk,si->oik", last, core, first, optimize=True)
        return relative_error(self.weight.reshape(o, -1), other.reshape(o, -1), self.moments)

    def _factors(self, rung: int) -> tuple[Array, Array, Array]:
        """Weights [s, I], [r, s, K] and [O, r]."""
        r, s = self.ranks[rung]
        o, i, k = self.weight.shape
        u, v = _hooi(self.whitened, r, s)
        core = np.einsum("oik,or,is->rsk", self.whitened, u, v, optimize=True) @ self.undo[1]
        first, last = v.T @ self.undo[0], u
        if self.damped is not None:
            features = np.einsum("rsk,si->rik", core, first, optimize=True).reshape(r, i * k)
            last = refit(self.weight.reshape(o, -1), features, self.damped)
        return first, core, last

    def forms(self, rung: int) -> list[Form]:
        first, core, last = self.factors(rung)
        r, s = self.ranks[rung]
        o, i, _ = self.weight.shape
        if s == i:
            core = np.einsum("rsk,si->rik", core, first)
        if r == o:
            core = np.einsum("or,rsk->osk", last, core)
        ones = (1,) * len(self.site.kernel)
        weights = [core.reshape(*core.shape[:2], *self.site.kernel)]
        weights = [*([first.reshape(*first.shape, *ones)] if s < i else []), *weights]
        weights = [*weights, *([last.reshape(*last.shape, *ones)] if r < o else [])]
        at = int(s < i)

        def build(x: Value, values: Sequence[Value], rest: Sequence[Value | None], attrs: dict[str, Any]) -> Value:
            for n, weight in enumerate(values):
                bias = rest if n == len(values) - 1 else ()
                x = make_node("Conv", (x, weight, *bias), dict(attrs) if n == at else {}).result
            return x

        return [Form("pointwise, core, pointwise", tuple(weights), build)]


def _hooi(tensor: Array, r: int, s: int) -> tuple[Array, Array]:
    """Orthonormal factors [O, r] and [I, s] of ``tensor`` [O, I, K] by higher-order orthogonal iteration."""
    v = _leading(tensor.swapaxes(0, 1), s)
    u = _leading(tensor, r)
    for _ in range(_ROUNDS if s < tensor.shape[1] and r < len(tensor) else 0):
        u = _leading(np.einsum("oik,is->osk", tensor, v, optimize=True), r)
        v = _leading(np.einsum("oik,or->irk", tensor, u, optimize=True), s)
    return u, v


def _leading(tensor: Array, count: int) -> Array:
    """The ``count`` leading left singular vectors of the unfolding along the first dimension."""
    flat = tensor.reshape(len(tensor), -1)
    _, vectors = np.linalg.eigh(flat @ flat.T)
    return vectors[:, ::-1][:, :count]
