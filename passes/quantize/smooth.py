"""``smooth``: moves the outliers of activations into the weights that they are multiplied with.

A few channels of a transformer's activations are many times larger than the rest, and one scale for all of them leaves
the rest few codes. Dividing channel ``j`` by ``s_j``, and multiplying row ``j`` of the weights by it, changes nothing
that is computed (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438). Which ``s`` is best follows from what is known
before anything is run: quantization with step ``d`` adds noise of variance ``d^2 / 12`` to each activation, and
rounding adds ``dW_j`` to the weights, so that the outputs are off by

    d(s)^2 / 12 * sum(s_j^2 W_j^2) + sum(E[x_j^2] / s_j^2 * dW_j(s)^2)

Two families are compared: ``max|x_j|^a / max|W_j|^(1 - a)`` of the paper for several ``a``, and
``max(max|x_j| / t, 1)``, which leaves all channels alone but those beyond ``t``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Graph
from ...ir.quantization import parse_format
from ..base import Context, Pass, RequestError
from ..calibration import collect
from ..calibration.summaries import ChannelStatistics
from ..layers import layers_of, select
from ..numerics import Within
from .scaling import fold_for, rescale, sites_of
from .weights.grids import grid_for

__all__ = ["Smooth"]

Array = np.ndarray[Any, Any]
_ALPHAS = tuple(np.arange(3, 11) / 10)
_QUANTILES = (0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
_FOLDED, _INSERTED = 0.95, 0.6  # the share of the error that must remain at most, for free and for a multiplication
_LEAST = 1e-5  # of a magnitude, relative to the largest
_ROWS = 512  # output channels that the choice is made by: every n-th of more
_WEIGHT = parse_format("int8")


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide the outlier channels of activations, and multiply the weights behind them by the same.

    The division goes into a normalization, a product or the values of an attention before it where that is all that it
    feeds; elsewhere it is a multiplication, which is inserted where the predicted error falls to 0.6 or less.

    Attributes:
        alpha: the exponent of the paper, for all sites alike; None chooses the best for each site.
        only: patterns of the layers to smooth (see `planish.passes.layers.select`).
        skip: patterns of layers to leave alone.

    Raises:
        RequestError: there are no samples, or a pattern matches nothing.
    """

    numerics = Within(rtol=1e-4)

    alpha: float | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: Context) -> None:
        if ctx.samples is None:
            raise RequestError("smooth needs samples: give data")
        sites = sites_of(select([x for x in layers_of(graph) if x.in_axis is not None], self.only, self.skip), graph)
        statistics = {x: ChannelStatistics(-1) for x in sites}
        if not sites:
            return
        collect(graph, {x: [s] for x, s in statistics.items()}, ctx.samples, ctx.runner)
        for x, layers in sites.items():
            scales, remaining = self.choose(statistics[x], [layer.matrix() for layer in layers])
            fold = fold_for(x, layers)
            if remaining > (_INSERTED if fold is None else _FOLDED):
                continue
            ctx.note(f"smoothed in {rescale(x, layers, scales, fold)}")

    def choose(self, x: ChannelStatistics, weights: Sequence[Array]) -> tuple[Array, float]:
        """The scales ``[in]``, and the share of the predicted error that remains with them.

        Args:
            x: what is known of the activation.
            weights: the matrices ``[out, in]`` that it is multiplied with.
        """
        weight = np.concatenate(weights)
        weight = weight[:: -(-len(weight) // _ROWS)]
        plain = _error(np.ones(weight.shape[1]), x, weight)
        found = ((scales, _error(scales, x, weight)) for scales in self._candidates(x, weight))
        scales, error = min(found, key=lambda pair: pair[1])
        return scales, error / plain if plain else 1.0

    def _candidates(self, x: ChannelStatistics, weight: Array) -> Iterator[Array]:
        seen = x.max_abs[x.max_abs > 0]
        least = _LEAST * max(float(x.max_abs.max()), _LEAST)
        if self.alpha is None and seen.size:  # only outliers are scaled: what was hardly seen may be larger next time
            least = float(np.median(seen))
        largest = np.maximum(x.max_abs, least)
        rows = np.abs(weight).max(axis=0)
        rows = np.maximum(rows, _LEAST * max(float(rows.max()), _LEAST))
        for alpha in _ALPHAS if self.alpha is None else (self.alpha,):
            yield largest**alpha / rows ** (1 - alpha)
        for quantile in _QUANTILES if self.alpha is None else ():
            yield np.maximum(largest / np.quantile(largest, quantile), 1)


def _error(scales: Array, x: ChannelStatistics, weight: Array) -> float:
    """The predicted squared error of all outputs, for activations and weights of eight bits."""
    scaled = (weight * scales).astype(np.float32)
    step = ((x.high / scales).max() - (x.low / scales).min()) / 255
    rounding = np.square(grid_for(scaled, _WEIGHT).apply(scaled) - scaled).sum(axis=0)
    return float(step**2 / 12 * np.square(scaled).sum() + (x.mean_square / scales**2 * rounding).sum())
