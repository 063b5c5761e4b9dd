"""``sparsify``: zeros in the weights of layers, any or in a pattern such as 2:4.

Zeros make a model smaller where they are stored as such, and faster only where there are kernels for them: TensorRT's
for 2:4 on GPUs with sparse tensor cores. No CPU runtime has any, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir import Graph, Value
from ..base import Context, Pass, RequestError
from ..calibration import in_groups
from ..layers import Layer, layers_of, select
from ..numerics import Lossy
from .sparsity.masks import Pattern
from .sparsity.report import describe
from .sparsity.sites import Inputs, Site, collect_inputs, gram_bytes, sites_of
from .sparsity.weights import Method, Pruned, Spread, apply, goals, prune, rewind

__all__ = ["Sparsify"]

_GRAMS = 256 << 20  # bytes of products of inputs that are collected in one go
_RATIO = 0.5


@dataclass(frozen=True)
class Sparsify(Pass):
    """Set weights to 0. What is 0 already counts and stays so: runs of this pass add up to the ratio of the last.

    Convolutions with up to four input channels per kernel, the first of a network and depthwise ones, are left alone
    unless ``only`` names them; a weight that something else reads, too, such as a table of embeddings, is always.

    Attributes:
        ratio: the share of the weights of all chosen layers that is 0 afterwards; None: 0.5, or what the pattern gives.
        pattern: ``N:M``: at most N of M neighbouring input channels differ from 0. TensorRT has kernels for ``2:4``.
        method: ``magnitude``: the smallest weights go, without data; ``wanda``: those whose product with the norm of
            their input is the smallest, in each output channel (Sun et al. 2023, arXiv 2306.11695); ``sparsegpt``:
            those that the outputs need least, and the other weights make up for them (arXiv 2301.00774).
        spread: how ratios differ between layers. ``lamp``: magnitudes of all layers are compared after LAMP
            normalization (Lee et al. 2021, arXiv 2010.07611); ``global``: as they are; ``even``: each layer has the
            same ratio.
        rounds: in how many runs of the pass the ratio is reached. Each run takes the next step of a cubic schedule (Zhu
            & Gupta 2017, arXiv 1710.01878): most go at first. Which step is next is seen from the zeros there are.
        rewind: whether the weights that remain, and all other constants, become those of the model before the first
            pass again, as in the search for lottery tickets (Frankle & Carbin 2019, arXiv 1803.03635).
        correct_bias: whether biases, where there are some, make up for the mean of what is lost; None: with the methods
            that look at inputs.
        only: patterns of the layers to prune (see `planish.passes.layers.select`).
        skip: patterns of layers to leave alone.

    Raises:
        ValueError: an option is out of range, or two do not go together.
        RequestError: nothing can be pruned, a pattern of names matches nothing, or there are no samples where they are
            needed.
    """

    numerics = Lossy()

    ratio: float | None = None
    pattern: str = ""
    method: Method = "magnitude"
    spread: Spread = "lamp"
    rounds: int = 1
    rewind: bool = False
    correct_bias: bool | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}: it is between 0 and 1")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}: at least 1")
        if self.pattern:
            Pattern.parse(self.pattern)
            if self.ratio is not None or self.spread != "lamp" or self.rounds > 1:
                raise ValueError("a pattern says how many weights remain: no ratio, spread or rounds beside it")
        if self.rewind and self.method == "sparsegpt":
            raise ValueError("rewind takes back what sparsegpt does to the remaining weights: use magnitude or wanda")

    @property
    def needs_original(self) -> bool:
        return self.rewind

    def run(self, graph: Graph, ctx: Context) -> None:
        if self.method != "magnitude" and ctx.samples is None:
            raise RequestError(f"{self.method} looks at inputs: give data")
        if self.correct_bias and ctx.samples is None:
            raise RequestError("correct_bias needs the means of inputs: give data")
        sites, left = self._sites(graph)
        targets = self._goals(sites)
        pruned = [each for stage in _stages(sites) for each in self._prune(stage, targets, graph, ctx)]
        apply(pruned)  # at the end: no layer sees inputs that others have changed
        if self.rewind:
            rewind(graph, ctx.original)
            pruned = [replace(each, error=None) for each in pruned]  # it was that of other numbers
        if ctx.results:
            describe(graph, pruned, left, self.method, self.pattern, ctx)

    def _sites(self, graph: Graph) -> tuple[list[Site], dict[Layer, str]]:
        """The weights to prune, and why layers that were chosen are left alone."""
        layers = layers_of(graph)
        if not layers:
            raise RequestError("nothing to prune: no Conv, ConvTranspose, MatMul or Gemm with a constant weight")
        chosen = select(layers, self.only, self.skip)
        sites, left = sites_of(chosen, self._pattern, take_few=bool(self.only))
        if not sites:
            why = "; ".join(f"{layer.name}: {reason}" for layer, reason in [*left.items()][:3])
            raise RequestError(f"nothing to prune in {len(chosen)} layers" + (f": {why}" if why else ""))
        return sites, left

    @property
    def _pattern(self) -> Pattern | None:
        return Pattern.parse(self.pattern) if self.pattern else None

    def _goals(self, sites: Sequence[Site]) -> Mapping[Site, int | Pattern]:
        pattern = self._pattern
        if pattern is not None:
            return dict.fromkeys(sites, pattern)
        return goals(sites, _RATIO if self.ratio is None else self.ratio, self.rounds, self.spread)

    def _prune(
        self, stage: Sequence[Site], targets: Mapping[Site, int | Pattern], graph: Graph, ctx: Context
    ) -> Iterator[Pruned]:
        """Prune the weights of ``stage``, for the inputs that they see."""
        seen: dict[Site, Inputs] = {}
        correct = self.method != "magnitude" if self.correct_bias is None else self.correct_bias
        if ctx.samples is not None and ctx.can_run:
            ctx.progress(f"sparsify: the inputs of {stage[0].first.name}")
            seen = collect_inputs(graph, stage, ctx)
        for site in stage:
            ctx.progress(f"sparsify: {site.first.name}")
            yield prune(site, targets[site], self.method, seen.get(site), correct)


def _stages(sites: Iterable[Site]) -> Iterator[list[Site]]:
    """The weights to prune together: as many as memory allows, those that multiply the same value together."""
    by_input: dict[Value, list[Site]] = {}
    for site in sites:
        by_input.setdefault(site.first.x, []).append(site)
    for group in in_groups({x: sum(map(gram_bytes, reading)) for x, reading in by_input.items()}, _GRAMS):
        yield [site for x in group for site in by_input[x]]
