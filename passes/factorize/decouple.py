"""``decouple``: a convolution becomes a sum of depthwise and pointwise convolutions.

Network Decoupling (Guo, Li, Lin, Chen, Li, Ma, "Network Decoupling: From Regular to Depthwise Separable Convolutions",
BMVC 2018, arXiv:1808.05517). Either order is a singular value decomposition of slices of the weight ``W`` [O, I, K], K
the elements of the kernel:

- depthwise first: the slice [O, K] of each input channel. Term t gives the channel its t-th filter, and a pointwise
  convolution sums over the channels;
- pointwise first: the slice [I, K] of each output channel. Term t mixes the channels, and filters the mixture.

The sum of T terms is exact for T = min(O, K), or min(I, K). It takes T (1 / O + 1 / K) of the multiply-adds, or
T (1 / I + 1 / K). With second moments of the windows, the slices are decomposed for the inputs that they meet, and the
side that sums is fitted anew to all of the layer's outputs (see `algebra`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from ...ir import Value, op
from ...ir.builder import make_node
from .algebra import Array, Moments, kronecker_roots, refit, relative_error, root
from .factorizing import Factorization, Method
from .ladders import Form, Ladder
from .sites import Site

__all__ = ["Decouple"]

Order = Literal["auto", "depthwise-first", "pointwise-first"]


@dataclass(frozen=True)
class Decouple(Factorization):
    """Make convolutions sums of depthwise and pointwise ones, where that is faster.

    Candidates are convolutions with one group and a kernel of more than one element. Which order, and how the sum is
    written down, is chosen by what is measured. Where no goal is given, there are two terms.

    Attributes:
        terms: how many terms each sum has.
        order: which of the two comes first; ``auto`` tries both.
        skip_first: leave convolutions alone that no other layer stands before: they have few channels and much to lose.
    """

    method: Method = "auto"
    terms: int | None = None
    order: Order = "auto"
    skip_first: bool = True

    operators = ("Conv",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_one("terms", self.terms)
        if self.terms is not None and self.terms < 1:
            raise ValueError(f"terms is {self.terms}: it is 1 or more")

    def why_not(self, site: Site, is_first: bool) -> str:
        if site.node.attrs.get("group", 1) != 1:
            return "it has groups already"
        if np.prod(site.kernel) == 1:
            return "it is pointwise already"
        if is_first and self.skip_first:
            return "no layer stands before it"
        return ""

    def ladders(self, site: Site, moments: Moments | None, whiten: bool) -> list[Ladder]:
        weight = site.matrix().reshape(*site.shape[:2], -1)
        kinds: dict[str, type[_Decoupled]] = {"depthwise-first": _DepthwiseFirst, "pointwise-first": _PointwiseFirst}
        return [kind(weight, site, moments, whiten) for name, kind in kinds.items() if self.order in ("auto", name)]

    def fixed(self, ladder: Ladder) -> int | None:
        return min(2 if self.terms is None else self.terms, len(ladder)) - 1


class _Decoupled(Ladder):
    """Sums of 1, 2, … terms: ``points`` and ``filters`` of shapes [term, channels, channels] and [term, channel, K]."""

    def __init__(self, weight: Array, site: Site, moments: Moments | None, whiten: bool):
        self.weight = weight
        self.site = site
        self.moments = moments
        self.damped = moments.damped() if moments is not None and whiten else None
        self.terms = cache(self._terms)

    def __len__(self) -> int:
        return int(self.squares.shape[-1])

    def label(self, rung: int) -> str:
        return f"{rung + 1} term{'s' if rung else ''}"

    def energy(self, rung: int) -> float:
        total = float(self.squares.sum())
        return float(self.squares[..., : rung + 1].sum()) / total if total else 1.0

    def error(self, rung: int) -> float:
        shape = len(self.weight), -1
        return relative_error(self.weight.reshape(shape), self.effective(rung).reshape(shape), self.moments)

    squares: Array

    def effective(self, rung: int) -> Array:
        """The weight [O, I, K] that the sum amounts to."""
        raise NotImplementedError

    def _terms(self, rung: int) -> tuple[Array, Array]:
        raise NotImplementedError

    def _kernels(self, rung: int) -> tuple[Array, Array]:
        """The weights of pointwise and depthwise convolutions: [T, O, I, 1…] and [T, channels, 1, kernel…]."""
        points, filters = self.terms(rung)
        ones = (1,) * len(self.site.kernel)
        return points.reshape(*points.shape, *ones), filters.reshape(*filters.shape[:2], 1, *self.site.kernel)


class _DepthwiseFirst(_Decoupled):
    def __init__(self, weight: Array, site: Site, moments: Moments | None, whiten: bool):
        super().__init__(weight, site, moments, whiten)
        _, i, k = weight.shape
        slices = weight.transpose(1, 0, 2)  # [I, O, K]
        if self.damped is None:
            left, values, self.filters = np.linalg.svd(slices, full_matrices=False)
        else:
            blocks = np.stack([self.damped[c * k : c * k + k, c * k : c * k + k] for c in range(i)])
            square_root, inverse = root(blocks)
            left, values, right = np.linalg.svd(slices @ square_root, full_matrices=False)
            self.filters = right @ inverse
        self.points = left * values[:, None, :]  # [I, O, T]
        self.squares = np.square(values)

    def parameters(self, rung: int) -> int:
        o, i, k = self.weight.shape
        return (rung + 1) * i * (k + o)

    def _terms(self, rung: int) -> tuple[Array, Array]:
        o, i, k = self.weight.shape
        t = rung + 1
        filters = self.filters[:, :t]
        points = self.points[:, :, :t]
        if self.damped is not None:
            features = np.zeros((i, t, i, k))
            features[np.arange(i), :, np.arange(i)] = filters
            fitted = refit(self.weight.reshape(o, -1), features.reshape(i * t, i * k), self.damped)
            points = fitted.reshape(o, i, t).transpose(1, 0, 2)
        return points.transpose(2, 1, 0), filters.transpose(1, 0, 2)

    def effective(self, rung: int) -> Array:
        points, filters = self.terms(rung)
        return np.einsum("toi,tik->oik", points, filters, optimize=True)

    def forms(self, rung: int) -> list[Form]:
        points, filters = self._kernels(rung)
        t, o, i = points.shape[:3]
        pairs = Form("depthwise, pointwise", (*filters, *points), partial(_pairs, depthwise_first=True))
        if t == 1:
            return [pairs]
        merged = np.concatenate(list(points), axis=1)  # [O, T I, 1…]
        multiplied = filters.swapaxes(0, 1).reshape(i * t, *filters.shape[2:])
        interleaved = np.stack(list(points), axis=2).reshape(o, i * t, *points.shape[3:])
        return [
            pairs,
            Form("depthwise, joined, pointwise", (*filters, merged), _joined),
            Form("depthwise with a multiplier, pointwise", (multiplied, interleaved), partial(_two, groups=i)),
        ]


class _PointwiseFirst(_Decoupled):
    def __init__(self, weight: Array, site: Site, moments: Moments | None, whiten: bool):
        super().__init__(weight, site, moments, whiten)
        _, i, k = weight.shape
        (channels, undo_channels), (places, undo_places) = kronecker_roots(self.damped, i, k)
        left, values, right = np.linalg.svd(channels.T @ weight @ places, full_matrices=False)
        left, self.filters = undo_channels.T @ left, right @ undo_places
        self.points = left * values[:, None, :]  # [O, I, T]
        self.squares = np.square(values)

    def parameters(self, rung: int) -> int:
        o, i, k = self.weight.shape
        return (rung + 1) * o * (k + i)

    def _terms(self, rung: int) -> tuple[Array, Array]:
        t = rung + 1
        points, filters = self.points[:, :, :t].transpose(0, 2, 1), self.filters[:, :t]
        if self.damped is not None:
            filters = self._fitted(points, self.damped)
        return points.transpose(1, 0, 2), filters.transpose(1, 0, 2)

    def _fitted(self, points: Array, moments: Array) -> Array:
        """The filters [O, T, K] that are best for given ``points`` [O, T, I]: a regression for each output channel."""
        o, i, k = self.weight.shape
        blocks = moments.reshape(i, -1)
        wanted = (self.weight.reshape(o, -1) @ moments).reshape(o, i, k)
        found = []
        for mixture, goal in zip(points, wanted, strict=True):
            t = len(mixture)
            half = (mixture @ blocks).reshape(t, k, i, k)
            gram = np.einsum("tkjl,uj->tkul", half, mixture, optimize=True).reshape(t * k, t * k)
            gram += np.eye(t * k) * (1e-13 * np.trace(gram) / (t * k) or 1.0)
            found.append(np.linalg.solve(gram, (mixture @ goal).ravel()).reshape(t, k))
        return np.stack(found)

    def effective(self, rung: int) -> Array:
        points, filters = self.terms(rung)
        return np.einsum("toi,tok->oik", points, filters, optimize=True)

    def forms(self, rung: int) -> list[Form]:
        points, filters = self._kernels(rung)
        t, o = points.shape[:2]
        pairs = Form("pointwise, depthwise", (*points, *filters), partial(_pairs, depthwise_first=False))
        if t == 1:
            return [pairs]
        stacked = np.concatenate(list(points))  # [T O, I, 1…]
        interleaved = points.swapaxes(0, 1).reshape(o * t, *points.shape[2:])
        grouped = np.concatenate(list(filters), axis=1)  # [O, T, kernel…]
        return [
            pairs,
            Form("pointwise, split, depthwise", (stacked, *filters), _split),
            Form("pointwise, grouped", (interleaved, grouped), partial(_two, groups=o, depthwise_first=False)),
        ]


def _conv(x: Value, weight: Value, rest: Sequence[Value | None], attrs: dict[str, Any], group: int = 0) -> Value:
    """A depthwise (or grouped) convolution with the attributes of the layer, or a pointwise one."""
    more = {**attrs, "group": group} if group else {}
    return make_node("Conv", (x, weight, *rest), more).result


def _channels(weight: Value) -> int:
    return int((weight.shape or ())[0])  # type: ignore[arg-type]


def _pairs(
    x: Value,
    weights: Sequence[Value],
    rest: Sequence[Value | None],
    attrs: dict[str, Any],
    *,
    depthwise_first: bool,
) -> Value:
    """The sum of pairs of convolutions; the bias goes into the first pair."""
    half = len(weights) // 2
    terms: list[Value] = []
    for first, second in zip(weights[:half], weights[half:], strict=True):
        bias = () if terms else rest
        if depthwise_first:
            terms.append(_conv(_conv(x, first, (), attrs, _channels(first)), second, bias, {}))
        else:
            terms.append(_conv(_conv(x, first, (), {}), second, bias, attrs, _channels(second)))
    return _sum(terms)


def _sum(terms: Sequence[Value]) -> Value:
    total = terms[0]
    for term in terms[1:]:
        total = op.Add(total, term)
    return total


def _joined(x: Value, weights: Sequence[Value], rest: Sequence[Value | None], attrs: dict[str, Any]) -> Value:
    *filters, point = weights
    features = [_conv(x, f, (), attrs, _channels(f)) for f in filters]
    return _conv(op.Concat(*features, axis=1), point, rest, {})


def _split(x: Value, weights: Sequence[Value], rest: Sequence[Value | None], attrs: dict[str, Any]) -> Value:
    point, *filters = weights
    mixtures = op.Split(_conv(x, point, (), {}), axis=1, num_outputs=len(filters))
    biases = [rest, *([()] * (len(filters) - 1))]
    return _sum([_conv(m, f, b, attrs, _channels(f)) for m, f, b in zip(mixtures, filters, biases, strict=True)])


def _two(
    x: Value,
    weights: Sequence[Value],
    rest: Sequence[Value | None],
    attrs: dict[str, Any],
    *,
    groups: int,
    depthwise_first: bool = True,
) -> Value:
    """Two convolutions, of which one sums the terms."""
    first, second = weights
    if depthwise_first:
        return _conv(_conv(x, first, (), attrs, groups), second, rest, {})
    return _conv(_conv(x, first, (), {}), second, rest, attrs, groups)
