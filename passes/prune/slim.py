"""Pruning to a latency: as many channels go as it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Graph
from ...ir.clone import clone_graph
from ...ir.flops import size_of
from ..base import Context
from .channels.plan import ChannelPruning, Plan, Scope

__all__ = ["Slim"]

_STEPS = 7  # halvings of the interval of ratios
_MOST = 0.95  # the largest ratio that is tried
_REPEATS = 3  # measurements of one candidate, of which the middle one counts


@dataclass(frozen=True)
class Slim(ChannelPruning):
    """Remove as many channels as it takes to bring the latency down to a share of what it was.

    The share of channels is found by bisection: each candidate is compiled for the target and measured side by side
    with the graph as it was. Where nothing may be measured, multiply-adds stand for latency, and a note says so.

    Attributes:
        latency: the latency afterwards, as a share of that before, between 0 and 1.
        scope: as for `Prune`; where channels are worth least in the whole model, by default.

    Raises:
        RequestError: as for `Prune`.
    """

    latency: float = 0.5
    scope: Scope = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.latency < 1:
            raise ValueError(f"latency is {self.latency}: it is a share between 0 and 1")

    def run(self, graph: Graph, ctx: Context) -> None:
        plan = self.plan(graph, ctx)
        share_of = self._measured(graph, plan, ctx) or self._predicted(graph, plan, ctx)
        ratio, share = self._search(share_of, ctx)
        chosen = plan.choose(ratio)
        plan.carry_out(graph, chosen, ctx)
        plan.report(chosen, [""] * len(chosen), ctx)
        if ctx.results:
            result = ctx.results[-1]
            result.notes.append(f"{ratio:.0%} of the channels went; {share:.2f} of the latency is left")
            if share > self.latency:
                result.missed = f"latency {self.latency}: with {ratio:.0%} of the channels gone, {share:.2f} are left"

    def _search(self, share_of: Callable[[float], float], ctx: Context) -> tuple[float, float]:
        """The least ratio that is found to suffice, and the share of the latency that it leaves."""
        low, high = 0.0, _MOST
        best = high, share_of(high)
        if best[1] > self.latency:
            return best
        for _ in range(_STEPS):
            middle = (low + high) / 2
            share = share_of(middle)
            ctx.progress(f"{middle:.0%} of the channels: {share:.2f} of the latency")
            if share <= self.latency:
                high, best = middle, (middle, share)
            else:
                low = middle
        return best

    def _measured(self, graph: Graph, plan: Plan, ctx: Context) -> Callable[[float], float] | None:
        if ctx.stopwatch is None or ctx.samples is None or not ctx.can_run:
            return None
        sample: Mapping[str, Any] = next(iter(ctx.samples()))
        before, stopwatch = ctx.runner.compile(graph), ctx.stopwatch

        def share_of(ratio: float) -> float:
            after = ctx.runner.compile(_pruned(graph, plan, ratio))
            times = [stopwatch(lambda: before(sample), lambda: after(sample)) for _ in range(_REPEATS)]
            return float(np.median([second / max(first, 1e-12) for first, second in times]))

        return share_of

    def _predicted(self, graph: Graph, plan: Plan, ctx: Context) -> Callable[[float], float]:
        if ctx.results:
            ctx.results[-1].notes.append("nothing could be measured: multiply-adds were counted instead of the latency")
        before = size_of(graph).flops
        return lambda ratio: size_of(_pruned(graph, plan, ratio)).flops / max(before, 1)


def _pruned(graph: Graph, plan: Plan, ratio: float) -> Graph:
    copy = clone_graph(graph)
    plan.apply(copy, plan.choose(ratio))
    return copy
