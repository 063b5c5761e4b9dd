"""What all factorizing passes do: find layers, choose ranks, take what is faster, and say what became of each layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ...ir import Graph, Node, Value, constant, edit
from ...ir.clone import clone_graph
from ..base import Context, Pass, RequestError
from ..layers import Layer, layers_of, select
from ..numerics import Lossy
from ..quantize import Quantize
from .algebra import Moments
from .judge import Judge
from .ladders import Form, Goal, Ladder, last_rung
from .sites import Site, find_sites, first_layers, input_shapes, with_moments

__all__ = ["Factorization", "Method", "rewrite"]

Method = Literal["auto", "plain", "whitened"]
Plan = tuple[Site, list[Ladder]]
Rung = tuple[Ladder, int | None]
Row = dict[str, Any]
_DONE, _ALONE = "factorized", "left alone"


@dataclass(frozen=True)
class Factorization(Pass):
    """Base class. A layer is factorized only where that is faster, which is measured if it may be, and else predicted.

    At most one of the goals (``energy``, ``error``, ``speedup``, and those of the pass) may be given.

    Attributes:
        method: ``plain`` decomposes weights as they are; ``whitened`` for the inputs that they meet, which needs
            samples; ``auto`` is whitened if there are samples.
        energy: the ranks keep at least this share of the squared singular values.
        error: the ranks keep the predicted error of each layer's result (root mean square, relative to the result)
            at most this large.
        speedup: each layer is at least so many times as fast, and as precise as that allows.
        precision: how layers are measured: ``int8``, between quantized values; ``auto``: so if ``quantize`` follows.
        only: patterns of the layers to factorize (see `planish.passes.layers.select`).
        skip: patterns of layers to leave alone.

    Raises:
        RequestError: there is no layer that the pass is about, a pattern matches none, or there are no samples where
            they are needed.
    """

    numerics = Lossy()
    operators: ClassVar[tuple[str, ...]] = ()

    method: str = "auto"
    energy: float | None = None
    error: float | None = None
    speedup: float | None = None
    precision: Literal["auto", "float", "int8"] = "auto"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.goal  # noqa: B018 - checks the values
        self.check_one()

    @property
    def goal(self) -> Goal:
        """What chooses ranks."""
        return Goal(self.energy, self.error, self.speedup)

    def check_one(self, name: str = "", value: object = None) -> None:
        """Raise `ValueError` if more than one goal is given."""
        goals = {"energy": self.energy, "error": self.error, "speedup": self.speedup, name: value}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: one of them chooses the ranks")

    def check_ratio(self, ratio: float | None) -> None:
        """Raise `ValueError` if this option of a pass makes no sense."""
        self.check_one("ratio", ratio)
        if ratio is not None and not 0 < ratio < 1:
            raise ValueError(f"ratio is {ratio:g}: it is above 0 and below 1")

    @staticmethod
    def share(ratio: float | None) -> float:
        """The share of the parameters that remains: a half if nothing is said."""
        return 0.5 if ratio is None else ratio

    def by_ratio(self, ladder: Ladder, ratio: float | None) -> int | None:
        """The highest rung with at most this share of the parameters of the weight."""
        return last_rung(ladder, lambda rung: ladder.parameters(rung) <= self.share(ratio) * ladder.whole)

    # what a pass of this kind must say

    def why_not(self, site: Site, is_first: bool) -> str:
        """Why a layer is no candidate, or ""; ``is_first``: no layer stands before it."""
        raise NotImplementedError

    def ladders(self, site: Site, moments: Moments | None, whiten: bool) -> list[Ladder]:
        """The ways to factorize a weight.

        Args:
            site: the weight and its layers.
            moments: what is known of its inputs; errors are predicted by it.
            whiten: whether it is decomposed for these inputs, too.
        """
        raise NotImplementedError

    def fixed(self, ladder: Ladder) -> int | None:
        """The rung where no goal of the base class is given; None if there is none to be had."""
        raise NotImplementedError

    # what they share

    def run(self, graph: Graph, ctx: Context) -> None:
        if self.method == "whitened" and (ctx.samples is None or not ctx.can_run):
            raise RequestError(f"{self.pass_name()}{{method=whitened}} needs samples: give data, or method=plain")
        order = {node: i for i, node in enumerate(graph.walk())}
        sites, rows = self.candidates(graph)
        judge = Judge(ctx, input_shapes(graph, sites, ctx), self._quantized(ctx))
        chosen: dict[Site, Form] = {}
        for site, climbed in self.climb(self.plans(graph, sites, ctx), judge):
            ctx.progress(f"{self.pass_name()}: {site.first.name}")
            form, row = self._decide(site, climbed, judge)
            rows.update((layer.node, {**row, "layer": layer.name}) for layer in site.layers)
            if form is not None:
                chosen[site] = form
        slower = self._carry_out(graph, dict(sorted(chosen.items(), key=lambda item: order[item[0].node])), judge, ctx)
        if ctx.results:
            self._report([rows[node] for node in sorted(rows, key=order.__getitem__)], slower, ctx)

    def _quantized(self, ctx: Context) -> Quantize | None:
        """How layers will be quantized, if they will compute in integers."""
        behind = [p for p in ctx.following if isinstance(p, Quantize) and p.activations != "float"]
        if self.precision == "float" or (self.precision == "auto" and not behind):
            return None
        return behind[0] if behind else Quantize()

    def plans(self, graph: Graph, sites: Sequence[Site], ctx: Context) -> Iterator[Plan]:
        """The ladders of each site, one after the other, so that few are held at a time."""
        for site, moments in with_moments(graph, sites, ctx):
            yield site, self.ladders(site, moments, moments is not None and self.method != "plain")

    def climb(self, plans: Iterable[Plan], judge: Judge) -> Iterator[tuple[Site, list[Rung]]]:
        """The rungs that the goal chooses, for each ladder of each site."""
        for site, ladders in plans:
            yield site, [(ladder, self.rung(site, ladder, judge)) for ladder in ladders]

    def rung(self, site: Site, ladder: Ladder, judge: Judge) -> int | None:
        """The rung that the goal chooses."""
        if not self.goal.is_given:
            return self.fixed(ladder)
        return self.goal.rung(ladder, lambda rung, times: judge.is_faster(site, ladder, rung, times))

    def candidates(self, graph: Graph) -> tuple[list[Site], dict[Node, Row]]:
        """The candidates, and rows for the layers that are none."""
        layers = [layer for layer in layers_of(graph) if layer.node.op in self.operators]
        if not layers:
            raise RequestError(
                f"nothing for {self.pass_name()}: no {' or '.join(self.operators)} with a constant weight"
            )
        found, refused = find_sites(graph, select(layers, self.only, self.skip))
        first = first_layers(graph, layers_of(graph))
        sites = []
        for site in found:
            reason = self.why_not(site, any(layer.node in first for layer in site.layers))
            if reason:
                refused += [(layer, reason) for layer in site.layers]
            else:
                sites.append(site)
        return sites, {layer.node: _row(layer, f"{_ALONE}: {reason}") for layer, reason in refused}

    def _decide(self, site: Site, climbed: Sequence[Rung], judge: Judge) -> tuple[Form | None, Row]:
        """What a site becomes, None if it stays, and what there is to say of it."""
        options = [o for ladder, rung in climbed if rung is not None for o in judge.options(site, ladder, rung)]
        if not options:
            return None, _row(site.first, f"{_ALONE}: {self.unreached}")
        best = judge.confirmed(site, judge.best(options))
        times = [best.before, best.after]
        facts: Row = {
            "rank": best.ladder.label(best.rung),
            "form": best.form.name,
            "parameters": [math.prod(site.shape), best.ladder.parameters(best.rung)],
            "error": math.sqrt(best.ladder.error(best.rung)),
            "seconds": times if judge.measures else None,
            "cost": None if judge.measures else times,
        }
        if judge.accepts(best):
            dtype = site.first.weight.dtype.numpy
            weights = tuple(w.astype(dtype) for w in best.form.weights)  # copies, that keep no decomposition alive
            return replace(best.form, weights=weights), {**_row(site.first, _DONE), **facts}
        taken = _times(best.before, best.after) if judge.measures else f"predicted {best.after / best.before:.2f}x"
        return None, {**_row(site.first, f"{_ALONE}: not faster ({taken})"), **facts}

    @property
    def unreached(self) -> str:
        """Why a layer stays for which there is no rung."""
        if self.speedup is not None:
            return f"no rank makes it {self.speedup:g} times as fast"
        return "no rank that saves anything reaches the goal" if self.goal.is_given else "no rank is that small"

    def refiner(self, graph: Graph, sites: Iterable[Site], ctx: Context) -> Callable[[Site, Form], Form]:
        """What makes the last of a form just before its layer is rewritten, in the order of the graph: nothing."""
        return lambda site, form: form

    def _carry_out(
        self, graph: Graph, chosen: dict[Site, Form], judge: Judge, ctx: Context
    ) -> tuple[float, float] | None:
        """Rewrite what is chosen, in order, unless the whole model is slower then: returns both times."""
        if not chosen:
            return None
        mapping: dict[Value, Value] = {}
        changed = clone_graph(graph, mapping)
        for site, form in chosen.items():
            rewrite(site.copied(mapping), form, self.pass_name())
        slower = judge.slower(graph, changed)
        if slower is None:
            refine = self.refiner(graph, chosen, ctx)
            for site, form in chosen.items():
                rewrite(site, refine(site, form), self.pass_name())
        return slower

    def _report(self, rows: list[Row], slower: tuple[float, float] | None, ctx: Context) -> None:
        result = ctx.results[-1]
        if slower is not None:
            for row in rows:
                if row["outcome"] == _DONE:
                    row["outcome"] = f"{_ALONE}: the whole model is slower ({_times(*slower)})"
        result.table = rows
        outcomes = Counter(row["outcome"].partition(" (")[0] for row in rows)
        for outcome, count in outcomes.items():
            ctx.note(f"layers {outcome}", count)
        if _DONE not in outcomes:
            reasons = [
                f"{outcome.partition(': ')[2]} ({count} layer{'s' if count > 1 else ''})"
                for outcome, count in outcomes.most_common()
            ]
            result.notes.append(f"{self.pass_name()} changed nothing: {'; '.join(reasons)}")
            if self.speedup is not None:
                result.missed = f"no layer is {self.speedup:g} times as fast"


def _times(before: float, after: float) -> str:
    return f"{1e3 * before:.3g} ms -> {1e3 * after:.3g} ms"


def _row(layer: Layer, outcome: str) -> Row:
    return {
        "layer": layer.name,
        "operator": layer.node.op,
        "rank": "",
        "form": "",
        "parameters": None,
        "error": None,
        "seconds": None,
        "cost": None,
        "outcome": outcome,
    }


def rewrite(site: Site, form: Form, name: str) -> None:
    """Let the layers of a site be computed in ``form``; they share its constants."""
    old = site.first.weight
    weights = [constant(w, old.dtype, f"{old.name}_{i}" if old.name else "") for i, w in enumerate(form.weights)]
    for layer in site.layers:
        node = layer.node
        result = form.build(node.given(0), weights, node.operands[2:], node.attrs)
        for made in edit.insert_floating([result], node):
            made.name, made.metadata = f"{node.name}/{name}" if node.name else "", node.metadata
        edit.replace(node.result, result)
        edit.erase(node)
