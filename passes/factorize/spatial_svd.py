"""``spatial-svd``: a convolution with a k x k kernel becomes one with k x 1 and one with 1 x k.

Scheme 2 of Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014
(arXiv:1405.3866): the weight [O, I, A, B] as a matrix of I A rows and O B columns (or I B and O A, the other way
around) has a singular value decomposition, and its r largest values make convolutions from I to r and from r to O
channels. With second moments of the windows, the first is decomposed for the inputs that it meets, and the second is
fitted anew to all outputs (see `algebra`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from ...ir import Value
from ...ir.builder import make_node
from .algebra import Array, Moments, refit, relative_error, root
from .factorizing import Factorization, Method
from .ladders import Form, Ladder
from .sites import Site

__all__ = ["SpatialSvd"]

Order = Literal["auto", "vertical-first", "horizontal-first"]


@dataclass(frozen=True)
class SpatialSvd(Factorization):
    """Make convolutions with k x k kernels pairs of k x 1 and 1 x k, where that is faster.

    Where no goal is given, the ratio is 0.5.

    Attributes:
        ratio: the share of the parameters of each layer that remains at most.
        order: which of the two comes first; ``auto`` tries both.
        skip_first: leave convolutions alone that no other layer stands before.
    """

    method: Method = "auto"
    ratio: float | None = None
    order: Order = "auto"
    skip_first: bool = True

    operators = ("Conv",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ratio(self.ratio)

    def why_not(self, site: Site, is_first: bool) -> str:
        if site.node.attrs.get("group", 1) != 1:
            return "it has groups"
        if len(site.kernel) != 2 or min(site.kernel) == 1:
            return f"its kernel is {' x '.join(map(str, site.kernel))}: both sizes must be above 1"
        if is_first and self.skip_first:
            return "no layer stands before it"
        return ""

    def ladders(self, site: Site, moments: Moments | None, whiten: bool) -> list[Ladder]:
        orders = {"vertical-first": False, "horizontal-first": True}
        return [_Spatial(site, moments, whiten, turn) for name, turn in orders.items() if self.order in ("auto", name)]

    def fixed(self, ladder: Ladder) -> int | None:
        return self.by_ratio(ladder, self.ratio)


class _Spatial(Ladder):
    """Ranks 1, 2, …; ``turn``: the second dimension of the kernel comes first."""

    def __init__(self, site: Site, moments: Moments | None, whiten: bool, turn: bool):
        self.site = site
        self.turn = turn
        weight = site.matrix().reshape(site.shape)
        self.weight = weight.swapaxes(2, 3) if turn else weight  # [O, I, A, B]
        o, i, a, b = self.weight.shape
        self.moments = None if moments is None else Moments(_turned(moments.matrix, i, site.kernel, turn), moments.rows)
        self.damped = self.moments.damped() if self.moments is not None and whiten else None
        matrix = self.weight.transpose(1, 2, 0, 3).reshape(i * a, o * b)
        inverse = None
        if self.damped is not None:
            square_root, inverse = root(
                np.einsum("iabjcb->iajc", self.damped.reshape(i, a, b, i, a, b)).reshape(i * a, -1) / b
            )
            matrix = square_root.T @ matrix
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        half = np.sqrt(values)
        self.first = (left if inverse is None else inverse.T @ left) * half  # [I A, rank]
        self.second = right * half[:, None]  # [rank, O B]
        self.squares = np.square(values)
        self.factors = cache(self._factors)

    def __len__(self) -> int:
        return len(self.squares)

    def label(self, rung: int) -> str:
        return f"rank {rung + 1}"

    def parameters(self, rung: int) -> int:
        o, i, a, b = self.weight.shape
        return (rung + 1) * (i * a + o * b)

    def energy(self, rung: int) -> float:
        total = float(self.squares.sum())
        return float(self.squares[: rung + 1].sum()) / total if total else 1.0

    def error(self, rung: int) -> float:
        first, second = self.factors(rung)
        other = np.einsum("ria,orb->oiab", first, second, optimize=True)
        o = len(self.weight)
        return relative_error(self.weight.reshape(o, -1), other.reshape(o, -1), self.moments)

    def _factors(self, rung: int) -> tuple[Array, Array]:
        """Weights [r, I, A] and [O, r, B]."""
        o, i, a, b = self.weight.shape
        r = rung + 1
        first = self.first[:, :r].T.reshape(r, i, a)
        if self.damped is None:
            return first, self.second[:r].reshape(r, o, b).swapaxes(0, 1)
        features = np.zeros((r, b, i, a, b))
        features[:, np.arange(b), :, :, np.arange(b)] = first
        fitted = refit(self.weight.reshape(o, -1), features.reshape(r * b, -1), self.damped)
        return first, fitted.reshape(o, r, b)

    def forms(self, rung: int) -> list[Form]:
        first, second = self.factors(rung)
        axis = int(self.turn)  # the spatial dimension of the first
        weights = np.expand_dims(first, 3 - axis), np.expand_dims(second, 2 + axis)

        def build(x: Value, values: Sequence[Value], rest: Sequence[Value | None], attrs: dict[str, Any]) -> Value:
            inner = make_node("Conv", (x, values[0]), _along(attrs, axis)).result
            return make_node("Conv", (inner, values[1], *rest), _along(attrs, 1 - axis)).result

        name = "horizontal, vertical" if self.turn else "vertical, horizontal"
        return [Form(name, weights, build)]


def _turned(matrix: Array, channels: int, kernel: Sequence[int], turn: bool) -> Array:
    """Second moments of windows whose spatial dimensions are exchanged."""
    if not turn:
        return matrix
    a, b = kernel
    return matrix.reshape(channels, a, b, channels, a, b).transpose(0, 2, 1, 3, 5, 4).reshape(matrix.shape)


def _along(attrs: dict[str, Any], axis: int) -> dict[str, Any]:
    """The attributes of a convolution, for a kernel that has but one element in the other spatial dimension."""
    found: dict[str, Any] = {}
    for name, other in (("strides", 1), ("dilations", 1), ("pads", 0), ("kernel_shape", 1)):
        if name in attrs:
            found[name] = tuple(v if n % 2 == axis else other for n, v in enumerate(attrs[name]))
    if "auto_pad" in attrs:
        found["auto_pad"] = attrs["auto_pad"]
    return found
