"""Which channels go: so many of each group, or the least of all, in numbers that the hardware likes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ....ir import Graph
from ...base import Context, Pass, RequestError
from ...layers import select
from ...numerics import Lossy
from .axes import Channels
from .coupling import Analysis
from .gain import GAIN, Gains
from .groups import Group, Kept, find_groups
from .importance import Importance, importance_of
from .shrink import shrink

__all__ = ["ChannelPruning", "Plan", "Scope"]

Array = np.ndarray[Any, Any]
Scope = Literal["local", "global"]
_REASONS = 5  # kinds of layers outside all groups that are reported


@dataclass(frozen=True)
class ChannelPruning(Pass):
    """What passes that remove channels have in common.

    Attributes:
        importance: what channels are worth; see `planish.passes.prune.channels.importance.importance_of`.
        scope: ``local``: the same share of each group of coupled channels; ``global``: those that are worth least in
            the whole model.
        multiple: the numbers of channels that stay are multiples of this, where a group has four times as many.
        limit: the largest share of a group that goes.
        only: patterns of the layers whose outputs may go.
        skip: patterns of layers whose outputs stay.
        refit: whether the layers that read removed channels make up for them with those that stay, by least squares on
            the samples (see `planish.passes.prune.channels.refit`).
        seed: of what is random.
    """

    numerics = Lossy()

    importance: Importance = "l2"
    scope: Scope = "local"
    multiple: int = 8
    limit: float = 0.9
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    refit: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}: it is at least 1")
        if not 0 < self.limit < 1:
            raise ValueError(f"limit is {self.limit}: it is a share between 0 and 1")

    def groups(self, graph: Graph) -> tuple[Analysis, list[Group], list[Kept]]:
        """The groups of the selected layers of ``graph``, always the same for the same graph.

        Raises:
            RequestError: a pattern matches no layer.
        """
        analysis, groups, kept = find_groups(graph)
        if not self.only and not self.skip:
            return analysis, groups, kept
        chosen = {weight.node for weight in select(analysis.weights, self.only, self.skip)}
        return find_groups(graph, lambda node: node in chosen)

    def plan(self, graph: Graph, ctx: Context) -> Plan:
        """The groups of ``graph`` and what their channels are worth.

        Raises:
            RequestError: there is nothing to prune, a pattern matches no layer, or importance needs what is not there.
        """
        analysis, groups, kept = self.groups(graph)
        if not groups:
            reasons = Counter(k.reason for k in kept).most_common(3)
            why = "; ".join(f"{reason} ({count})" for reason, count in reasons)
            raise RequestError(
                "no channels can be removed: " + (why or "the graph has no layers with constant weights")
            )
        if self.refit and ctx.samples is None:
            raise RequestError("refit fits layers on samples, and there are none: give data")
        ctx.progress("ranking channels")
        return Plan(self, analysis, groups, kept, importance_of(self.importance, groups, analysis, ctx, self.seed))


@dataclass
class Plan:
    """Groups of channels with their worth.

    Attributes:
        options: of the pass.
        analysis: of the graph.
        groups: the groups.
        kept: layers in none, with the reasons.
        worth: of the channels of each group.
    """

    options: ChannelPruning
    analysis: Analysis
    groups: list[Group]
    kept: list[Kept]
    worth: list[Array]

    def choose(self, ratio: float) -> list[Array]:
        """The channels of each group that go, if ``ratio`` of all do; those that are worth least."""
        counts = [ratio * g.size for g in self.groups]
        if self.options.scope == "global":
            order = np.argsort(np.concatenate(self.worth), kind="stable")
            owners = np.repeat(np.arange(len(self.groups)), [g.size for g in self.groups])
            least = owners[order[: round(ratio * len(order))]]
            counts = np.bincount(least, minlength=len(self.groups)).tolist()
        chosen = []
        for group, worth, count in zip(self.groups, self.worth, counts, strict=True):
            keep = self._rounded(group, group.size - min(count, self.options.limit * group.size))
            chosen.append(np.argsort(worth, kind="stable")[: group.size - keep])
        return self._leave_some(chosen)

    def _rounded(self, group: Group, keep: float) -> int:
        """The number of channels that stay, near ``keep``, as a multiple of what suits the group."""
        unit = max(self.options.multiple // group.width, 1)
        while unit > 1 and unit > group.size / 4:
            unit //= 2
        least = max(math.ceil((1 - self.options.limit) * group.size - 1e-9), 1)
        return min(max(math.floor(keep / unit + 0.5) * unit, math.ceil(least / unit) * unit), group.size)

    def _leave_some(self, chosen: Sequence[Array]) -> list[Array]:
        """Take back channels where all that a value has along an axis would go: the one that is worth most."""
        coupling = self.analysis.coupling
        size = 1 + max(int(g.classes.max()) for g in self.groups)
        goes, worth = np.zeros(size + 1, bool), np.zeros(size + 1)
        for group, mine, scores in zip(self.groups, chosen, self.worth, strict=True):
            goes[group.classes[mine]], worth[group.classes] = True, scores
        every = [*self.analysis.axes.values(), *self.analysis.constants.values()]
        factors = {id(f): f for axes in every for axis in axes for f in axis if isinstance(f, Channels)}
        for factor in factors.values():
            classes = np.minimum(coupling.find(factor.ids), size)
            if goes[classes].all():
                goes[classes[int(np.argmax(worth[classes]))]] = False
        return [mine[goes[group.classes[mine]]] for group, mine in zip(self.groups, chosen, strict=True)]

    def removed(self, chosen: Sequence[Array]) -> Array:
        """The classes of the chosen channels."""
        return np.concatenate([g.classes[mine] for g, mine in zip(self.groups, chosen, strict=True)])

    def apply(self, graph: Graph, chosen: Sequence[Array]) -> None:
        """Remove the chosen channels from ``graph``: that of the plan, which is then used up, or a clone of it."""
        analysis = self.analysis if graph is self.analysis.graph else self.options.groups(graph)[0]
        shrink(analysis, self.removed(chosen))

    def carry_out(self, graph: Graph, chosen: Sequence[Array], ctx: Context) -> None:
        """Remove the chosen channels from ``graph``, that of the plan, and refit what read them, if asked to."""
        if not self.options.refit:
            self.apply(graph, chosen)
            return
        from .refit import refit

        put = refit(self.analysis, self.removed(chosen), ctx)
        self.apply(graph, chosen)
        ctx.note("layers refitted", put())

    def without_useless(self, chosen: Sequence[Array], ctx: Context) -> tuple[list[Array], list[str]]:
        """Leave groups alone whose layers gain nothing on the target.

        Returns:
            What goes, and for each group what was measured, or "".
        """
        gains = Gains(self.analysis, ctx)
        current, told = list(chosen), [""] * len(self.groups)
        for _ in range(len(self.groups)):
            times = gains.of(self.groups, self.removed(current))
            slow = False
            for i, time in enumerate(times):
                if time is None or not len(current[i]):
                    continue
                told[i] = f"{1e3 * time[0]:.3g} -> {1e3 * time[1]:.3g} ms"
                if time[1] > GAIN * time[0]:
                    current[i], slow = current[i][:0], True
                    told[i] += ": no gain, left alone"
            if not slow:
                break
        return current, told

    def report(self, chosen: Sequence[Array], told: Sequence[str], ctx: Context) -> None:
        """Say what became of each group, and which layers are in none."""
        if not ctx.results:
            return
        result = ctx.results[-1]
        for group, mine, text in zip(self.groups, chosen, told, strict=True):
            row = {"layer": group.name, "channels": group.size, "kept": group.size - len(mine)}
            result.table.append({**row, "layers": len(group.layers), "alone": text})
        ctx.note("channels removed", sum(map(len, chosen)))
        reasons = Counter(k.reason for k in self.kept)
        for reason, count in reasons.most_common(_REASONS):
            first = next(k.name for k in self.kept if k.reason == reason)
            layers = "layer keeps all its" if count == 1 else "layers keep all their"
            result.notes.append(f"{count} {layers} outputs: {reason} (the first is {first})")
