"""``awq``: scales up the weights that large activations meet, before weights are quantized (AWQ, arXiv:2306.00978)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ...ir import Graph
from ...ir.quantization import parse_format
from ..base import Context, Pass, RequestError
from ..calibration import collect, in_groups
from ..calibration.summaries import ChannelStatistics, GramMatrix
from ..layers import layers_of, select
from ..numerics import Within
from .scaling import fold_for, rescale, sites_of
from .weights.awq import awq_scales
from .weights.grids import grid_for

__all__ = ["Awq"]

_GRAMS = 256 << 20  # bytes of matrices that are collected in one go


@dataclass(frozen=True)
class Awq(Pass):
    """Scale the weights of products so that rounding them changes the outputs less; what is computed stays the same.

    For each value that products with constant weights read, the exponent of its mean magnitudes is sought that loses
    least when the weights are rounded as they will be. Run it before ``quantize{activations=float}``.

    Attributes:
        bits: of the weights, as they will be quantized.
        block: how many neighbouring inputs will share a scale; 0: each output channel has one.
        symmetric: whether weights will have no zero point.
        only: patterns of the layers to scale (see `planish.passes.layers.select`).
        skip: patterns of layers to leave alone.

    Raises:
        RequestError: there are no samples, a pattern matches nothing, or a weight is not finite.
    """

    numerics = Within(rtol=1e-4)

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}: weights have 2 to 8")

    def run(self, graph: Graph, ctx: Context) -> None:
        if ctx.samples is None:
            raise RequestError("awq needs samples: give data")
        layers = [layer for layer in layers_of(graph) if layer.in_axis is not None]
        form = parse_format(f"{'int' if self.symmetric else 'uint'}{self.bits}")
        fit = partial(grid_for, format=form, granularity=self.block or "row", symmetric=self.symmetric)
        sites = sites_of(select(layers, self.only, self.skip), graph)
        for group in in_groups({x: 8 * readers[0].inputs ** 2 for x, readers in sites.items()}, _GRAMS):
            statistics = {x: (ChannelStatistics(-1), GramMatrix()) for x in group}
            collect(graph, statistics, ctx.samples, ctx.runner)
            for x, (channels, gram) in statistics.items():
                weight = np.concatenate([layer.matrix() for layer in sites[x]])
                try:
                    scales, _, _ = awq_scales(weight, channels.mean_abs, gram.matrix, fit)
                except ValueError as error:
                    raise RequestError(f"{sites[x][0].name}: {error}") from error
                if not np.allclose(scales, scales[0]):
                    ctx.note(f"scaled in {rescale(x, sites[x], scales, fold_for(x, sites[x]))}")
