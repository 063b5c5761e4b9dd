"""Smaller models: channels, heads, layers and single weights that are taken out."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph
from ..base import Context
from .channels.plan import ChannelPruning

__all__ = ["Prune"]


@dataclass(frozen=True)
class Prune(ChannelPruning):
    """Remove the channels that are worth least.

    Channels that hang together, through additions, concatenations, norms, attention heads, reshapes and whatever lies
    between, go together. Layers that gain nothing from it, measured on the target, are left alone. Accuracy suffers;
    `distill` brings most of it back.

    Attributes:
        ratio: the share of the channels that goes, between 0 and 1.

    Raises:
        RequestError: there are no channels that could go, a pattern matches no layer, or importance needs samples.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}: it is a share between 0 and 1")

    def run(self, graph: Graph, ctx: Context) -> None:
        plan = self.plan(graph, ctx)
        chosen, told = plan.without_useless(plan.choose(self.ratio), ctx)
        plan.carry_out(graph, chosen, ctx)
        plan.report(chosen, told, ctx)
        if ctx.results and not any(map(len, chosen)):
            ctx.results[-1].missed = "no channels were removed: see the table for what was measured"
