"""``low-rank``: the weight of a product becomes two thin ones.

A weight of m x n numbers becomes two of m x r and r x n, which are fewer if r < m n / (m + n). Both come from a
singular value decomposition:

- ``plain``: of the weight;
- ``whitened``: of the weight times a square root of the second moments of its inputs, so that the squares of the
  singular values that are cut off are what the outputs lose (SVD-LLM, Wang et al. 2024, arXiv:2403.07378; see
  `algebra`);
- ``fisher``: of the weight with its inputs weighted by the square roots of their Fisher information, which is the sum
  of the squared gradients of the weights that they meet (FWSVD, Hsu et al. 2022, arXiv:2207.00112). The gradients are
  those of random projections of the model's outputs, which need no labels.

Given a share of the parameters, the ranks of all layers are chosen together: singular values compete by what they are
worth for each parameter. That is the squared error that they take away from their layer's result, times the squared
gradient of the model's outputs there (see `information`); without gradients, relative to the layer's result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from ...ir import Graph, Value
from ...ir.builder import make_node
from ...ir.errors import PlanishError
from ..base import Context
from .algebra import Array, Moments, root
from .factorizing import Factorization, Plan, Rung
from .information import Information, information_of
from .judge import Judge
from .ladders import Form, Ladder, allocate
from .regression import Factors, Regression
from .sites import Site, with_moments

__all__ = ["LowRank"]

_TINY = 1e-30


@dataclass(frozen=True)
class LowRank(Factorization):
    """Make the weights of MatMul, Gemm and pointwise Conv products of two thin ones, where that is faster.

    Where no goal is given, the ratio is 0.5.

    Attributes:
        method: ``plain``, ``whitened`` or ``fisher``, which needs samples and gradients; ``auto`` is whitened if there
            are samples, or else plain.
        ratio: the share of the parameters that remains.
        allocation: ``global``: the share is that of all layers together, and goes where it is worth most; ``uniform``:
            it is that of each layer.
        sequential: whether factors are fitted once more in the order of the graph, each to what it then gets (see
            `regression`), where there are samples and ``method`` is not ``plain`` or ``fisher``.
    """

    method: Literal["auto", "plain", "whitened", "fisher"] = "auto"
    ratio: float | None = None
    allocation: Literal["global", "uniform"] = "global"
    sequential: bool = True

    operators = ("MatMul", "Gemm", "Conv")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ratio(self.ratio)

    def why_not(self, site: Site, is_first: bool) -> str:
        if site.node.attrs.get("group", 1) != 1:
            return "it has groups"
        if prod(site.kernel) != 1:
            return "its kernel has more than one element"
        rows, columns = _sizes(site)
        return "" if _most(rows, columns) else f"no rank saves parameters of {rows} x {columns}"

    def plans(self, graph: Graph, sites: Sequence[Site], ctx: Context) -> Iterator[Plan]:
        known = self._information(graph, sites, ctx)
        whiten = self.method in ("auto", "whitened")
        for site, moments in with_moments(graph, sites, ctx):
            ladder = _LowRank(site, moments, self._weighting(moments, whiten, known.get(site)))
            if moments is not None and site in known:
                ladder.worth = known[site].total / float(np.trace(moments.matrix)) * ladder.output
            yield site, [ladder]

    def _information(self, graph: Graph, sites: Sequence[Site], ctx: Context) -> Mapping[Site, Information]:
        """What gradients tell, where it is used: nothing without samples or gradients, unless they are asked for."""
        if self.method == "fisher":
            return information_of(graph, sites, ctx)
        if self.goal.is_given or self.allocation == "uniform" or ctx.samples is None or ctx.differentiate is None:
            return {}
        try:
            return information_of(graph, sites, ctx)
        except PlanishError as error:
            if ctx.results:
                ctx.results[-1].notes.append(f"ranks are chosen by relative errors, without gradients: {error}")
            return {}

    def _weighting(
        self, moments: Moments | None, whiten: bool, information: Information | None
    ) -> tuple[Array, Array] | Array | None:
        if self.method == "fisher" and information is not None:
            return np.sqrt(information.of_inputs)
        return root(moments.damped()) if moments is not None and whiten else None

    def climb(self, plans: Iterable[Plan], judge: Judge) -> Iterator[tuple[Site, list[Rung]]]:
        if self.goal.is_given or self.allocation == "uniform":
            yield from super().climb(plans, judge)
            return
        ladders = {site: ladder for site, (ladder,) in plans}
        rungs = allocate(ladders, self.share(self.ratio) * sum(ladder.whole for ladder in ladders.values()))
        yield from ((site, [(ladder, rungs[site])]) for site, ladder in ladders.items())

    def refiner(self, graph: Graph, sites: Iterable[Site], ctx: Context) -> Callable[[Site, Form], Form]:
        if not self.sequential or self.method not in ("auto", "whitened") or ctx.samples is None or not ctx.can_run:
            return super().refiner(graph, sites, ctx)
        regression = Regression(graph, sites, ctx)

        def refine(site: Site, form: Form) -> Form:
            found = regression.fit(site, _factors(site, form))
            if found is None:
                return form
            ctx.note("layers fitted in order", 1)
            return _form(site, *(factor.astype(form.weights[0].dtype) for factor in found))

        return refine

    @property
    def unreached(self) -> str:
        together = not self.goal.is_given and self.allocation == "global"
        return "all of its ranks are worth their parameters" if together else super().unreached

    def fixed(self, ladder: Ladder) -> int | None:
        return self.by_ratio(ladder, self.ratio)


def _sizes(site: Site) -> tuple[int, int]:
    """The outputs and inputs of a weight."""
    rows = site.shape[site.first.out_axis]
    return rows, prod(site.shape) // max(rows, 1)


def _most(rows: int, columns: int) -> int:
    """The largest rank that saves parameters."""
    return max((rows * columns - 1) // (rows + columns), 0)


class _LowRank(Ladder):
    """Ranks 1, 2, … as long as they save parameters; holds no more numbers than the weight has, in single precision.

    ``weighting`` is what the inputs are weighted with: a square root of their moments with its inverse, a number each,
    or nothing.
    """

    def __init__(self, site: Site, moments: Moments | None, weighting: tuple[Array, Array] | Array | None):
        self.site = site
        self.sizes = _sizes(site)
        weight = site.matrix()
        if isinstance(weighting, tuple):
            weighted, inverse = weight @ weighting[0], weighting[1]
        elif weighting is not None:
            weighted, inverse = weight * weighting, None
        else:
            weighted, inverse = weight, None
        left, values, right = np.linalg.svd(weighted, full_matrices=False)
        if inverse is not None:
            right = right @ inverse
        elif weighting is not None:
            right = right / weighting
        energies = np.cumsum(np.square(values))
        self.energies = energies / energies[-1] if energies[-1] > 0 else np.ones_like(energies)
        self.output, self.errors = _tails(right * values[:, None], moments)
        rank = _most(*self.sizes)
        left, right = left[:, :rank], right[:rank] * values[:rank, None]
        length = np.sqrt(np.maximum(np.linalg.norm(right, axis=1), _TINY))  # as long on either side, for training
        self.left = (left * length).astype(np.float32)
        self.right = (right / length[:, None]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.right)

    def label(self, rung: int) -> str:
        return f"rank {rung + 1}"

    def parameters(self, rung: int) -> int:
        return (rung + 1) * sum(self.sizes)

    def error(self, rung: int) -> float:
        return float(self.errors[rung])

    def energy(self, rung: int) -> float:
        return float(self.energies[rung])

    def forms(self, rung: int) -> list[Form]:
        return [_form(self.site, self.left[:, : rung + 1], self.right[: rung + 1])]


def _form(site: Site, left: Array, right: Array) -> Form:
    """How ``left`` [out, rank] times ``right`` [rank, in] is written down."""
    if site.node.op == "Conv":
        ones = (1,) * len(site.kernel)
        return Form("two pointwise", (right.reshape(*right.shape, *ones), left.reshape(*left.shape, *ones)), _convs)
    last = left if site.first.out_axis == 0 else left.T
    return Form("two products", (np.ascontiguousarray(right.T), np.ascontiguousarray(last)), _products(site))


def _factors(site: Site, form: Form) -> Factors:
    """``left`` and ``right`` of a form."""
    first, last = form.weights
    if site.node.op == "Conv":
        return last.reshape(last.shape[:2]), first.reshape(first.shape[:2])
    return last if site.first.out_axis == 0 else last.T, first.T


def _tails(rows: Array, moments: Moments | None) -> tuple[float, Array]:
    """The mean square of the outputs, and their squared error with 1, 2, … of ``rows`` [rank, in], relative to it.

    The other factor has orthonormal columns, so that what each row adds to the squares of all outputs adds up.
    """
    squares = (rows @ moments.matrix * rows).sum(axis=1) if moments is not None else np.square(rows).sum(axis=1)
    lost = np.cumsum(squares[::-1])[::-1]
    whole = float(lost[0])
    return whole, np.append(lost[1:], 0.0) / whole if whole > 0 else np.zeros(len(rows))


def _products(site: Site) -> Any:
    def build(x: Value, weights: Sequence[Value], rest: Sequence[Value | None], attrs: dict[str, Any]) -> Value:
        inner = make_node("MatMul", (x, weights[0]), {}).result
        return make_node(site.node.op, (inner, weights[1], *rest), dict(attrs)).result

    return build


def _convs(x: Value, weights: Sequence[Value], rest: Sequence[Value | None], attrs: dict[str, Any]) -> Value:
    """The first takes the strides and pads of the layer."""
    inner = make_node("Conv", (x, weights[0]), dict(attrs)).result
    return make_node("Conv", (inner, weights[1], *rest), {}).result
