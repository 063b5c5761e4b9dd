"""Precision within a budget: which layers have to stay more precise, found with few evaluations of the whole model.

Layers are ranked by their predicted error (`planish.passes.quantize.plan`), which costs no evaluation. The layers at
the head of the ranking are made more precise, as few as keep the budget: errors of layers add up, so the share that is
left of the predicted error says where to look first, and an interval halves from there. If even all layers at the next
rung are not precise enough, the search goes on from there to the one after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...ir import DType, Graph, Value
from ...ir.clone import clone_graph
from ..base import Context, RequestError
from .plan import Choice, Knowledge, Settings, apply, choose_ranges, predict, translated

__all__ = ["Trial", "disagreement", "within_budget"]

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Any]


def disagreement(expected: Sequence[Outputs], actual: Sequence[Outputs]) -> float:
    """1 minus the mean cosine of the last dimension of all floating-point outputs; 0 if there are none.

    Rows that hold numbers that are not finite in ``expected`` are left out; elsewhere they count as 1.
    """
    gaps: list[Array] = []
    for e, a in zip(expected, actual, strict=True):
        for name, value in e.items():
            if isinstance(value, np.ndarray) and value.size and DType.from_numpy(value.dtype).is_floating:
                gaps.append(_gaps(value, a[name]))
    together = np.concatenate(gaps) if gaps else np.zeros(1)
    return float(together.mean()) if together.size else 0.0


def _gaps(expected: Array, actual: Array) -> Array:
    """1 minus the cosine, for every row; of scalars, the relative difference."""
    e, a = (x.astype(np.float64).reshape(-1, x.shape[-1] if x.ndim else 1) for x in (expected, actual))
    keep = np.isfinite(e).all(axis=1)
    e, a = e[keep], a[keep]
    with np.errstate(all="ignore"):
        if e.shape[1] == 1:
            gaps = np.abs(a - e)[:, 0] / max(float(np.abs(e).max(initial=0)), 1e-30)
        else:
            norms = np.linalg.norm(e, axis=1) * np.linalg.norm(a, axis=1)
            gaps = np.where(norms > 0, 1 - (e * a).sum(axis=1) / norms, (e != a).any(axis=1))
    return np.where(np.isfinite(gaps), np.clip(gaps, 0, 1), 1.0)


class Trial:
    """Evaluations of a graph with its layers quantized one way or another.

    Attributes:
        evaluations: how often the whole model was run on the samples.
    """

    def __init__(self, graph: Graph, knowledge: Knowledge, ctx: Context):
        self.graph = graph
        self.knowledge = knowledge
        self.ctx = ctx
        self.evaluations = 0
        self._expected: list[dict[str, Any]] | None = None

    def drop(self, choices: list[Choice], settings: Settings) -> float:
        """What is lost with ``choices``.

        Raises:
            RequestError: the metric of the original is not a number.
        """
        copy = self._quantized(choices, settings)
        self.evaluations += 1
        if self._expected is None:
            self._expected = self._outputs(self.graph)
        actual, metric = self._outputs(copy), self.ctx.metric
        if metric is None:
            return disagreement(self._expected, actual)
        before = metric(self._expected)
        if math.isnan(before):
            raise RequestError("the metric of the original is not a number")
        lost = before - metric(actual)
        return math.inf if math.isnan(lost) else lost

    def sensitivities(self, ladders: Sequence[Sequence[Choice]], settings: Settings) -> list[float]:
        """What is lost with each layer alone at the first rung of its ladder, and all others in floating point."""
        found = []
        for i, ladder in enumerate(ladders):
            self.ctx.progress(f"measuring what layer {i + 1} of {len(ladders)} loses")
            alone: list[Choice] = ["float"] * len(ladders)
            alone[i] = ladder[0]
            found.append(max(self.drop(alone, settings), 0.0))
        return found

    def compiled(self, choices: list[Choice], settings: Settings) -> Callable[[], object]:
        """A function that runs the graph with ``choices`` on the first sample."""
        sample = next(iter((self.ctx.samples or list)()))
        run = self.ctx.runner.compile(self._quantized(choices, settings))
        return lambda: run(sample)

    def _quantized(self, choices: list[Choice], settings: Settings) -> Graph:
        mapping: dict[Value, Value] = {}
        copy = clone_graph(self.graph, mapping)
        apply(copy, choices, translated(self.knowledge, mapping), settings)
        return copy

    def best_calibration(self, choices: list[Choice], settings: Settings, methods: Sequence[str]) -> Settings:
        """``settings`` with the method of ``methods`` that loses least; the ranges are chosen by it."""
        found = {}
        for method in methods:
            tried = replace(settings, calibration=method)
            choose_ranges(self.knowledge, tried)
            found[method] = self.drop(choices, tried)
        best = replace(settings, calibration=min(found, key=lambda method: found[method]))
        choose_ranges(self.knowledge, best)
        predict(self.knowledge, best)
        return best

    def _outputs(self, graph: Graph) -> list[dict[str, Any]]:
        run = self.ctx.runner.compile(graph)
        return [run(sample) for sample in (self.ctx.samples or list)()]


def within_budget(
    errors: Sequence[float],
    ladders: Sequence[Sequence[Choice]],
    drop: Callable[[list[Choice]], float],
    max_drop: float,
) -> tuple[list[Choice], float]:
    """Choices for all layers that keep a budget, and what they lose.

    Args:
        errors: the predicted error of every layer at the first rung of its ladder.
        ladders: the choices for every layer, the least precise first.
        drop: what is lost with given choices: one evaluation.
        max_drop: how much may be lost.

    Returns:
        The choices, with as many layers low on their ladders as possible; the most precise ones where nothing keeps
        the budget.
    """
    ranking = [int(i) for i in np.argsort(-np.asarray(errors), kind="stable")]
    choices = [ladder[0] for ladder in ladders]
    lost = drop(choices)
    for rung in range(1, max(map(len, ladders), default=0)):
        if lost <= max_drop:
            break
        movable = [i for i in ranking if len(ladders[i]) > rung]
        top = _promoted(choices, ladders, movable, rung)
        least = drop(top)
        if least > max_drop:
            choices, lost = top, least
            continue
        shares = np.cumsum([errors[i] for i in movable])
        known = {0: lost, len(movable): least}
        while True:
            low = max(n for n, d in known.items() if d > max_drop)
            high = min(n for n, d in known.items() if d <= max_drop and n > low)
            if high - low <= 1:
                break
            guess = _guess(shares, known, low, high, max_drop)
            known[guess] = drop(_promoted(choices, ladders, movable[:guess], rung))
        choices, lost = _promoted(choices, ladders, movable[:high], rung), known[high]
    return choices, lost


def _promoted(
    choices: Sequence[Choice], ladders: Sequence[Sequence[Choice]], which: Sequence[int], rung: int
) -> list[Choice]:
    chosen = list(choices)
    for i in which:
        chosen[i] = ladders[i][rung]
    return chosen


def _guess(shares: Array, known: Mapping[int, float], low: int, high: int, max_drop: float) -> int:
    """How many layers may be enough: by interpolation over the predicted errors, but never far from the middle."""
    start = float(shares[low - 1]) if low else 0.0
    span = float(shares[high - 1]) - start
    part = (known[low] - max_drop) / max(known[low] - known[high], 1e-30)
    guess = int(np.searchsorted(shares, start + part * span)) + 1
    quarter = (high - low) // 4
    return min(max(guess, low + 1 + quarter), high - 1 - quarter) if high - low > 2 else low + 1
