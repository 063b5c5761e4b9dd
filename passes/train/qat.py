"""``qat``: quantization-aware training. Weights learn what they are after rounding, and the grids learn with them.

The graph is quantized as `planish.passes.quantize` does it, and then learns from the original as in
`planish.passes.train.distill`, with every number rounded as it will be. Gradients pass through the rounding as if it
were not there (straight-through, Bengio et al. 2013), and reach the step sizes as in LSQ (`planish.passes.train.lsq`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph
from ...ir.quantization import FAKE_QUANTIZE
from ..base import Context, RequestError
from ..quantize import Activations, Quantize
from ..quantize.targets import target_for
from .distill import Distill
from .engine import fit
from .lsq import StepSizes, share_ranges

__all__ = ["Qat"]


@dataclass(frozen=True)
class Qat(Distill):
    """Quantize the graph, and train weights and scales so that it computes what the original does.

    A graph that is quantized already is trained as it is. The other options are those of ``distill``; the learning rate
    is counted in steps of the grids: ``rate=0.02`` moves a number by a fiftieth of a step or so per update.

    Attributes:
        bits: of the weights, 2 to 8.
        activations: as of ``quantize``: ``static`` ranges in 8 bits, which are trained as well; ``dynamic``; ``float``.
        block: how many neighbouring inputs share a scale; 0: each output channel has one.
        symmetric: whether weights have no zero point.
        only: patterns of the layers to quantize and to train.
        skip: patterns of layers to leave alone.

    Raises:
        ValueError: an option is out of range.
    """

    keeps_latency = False

    rate: float = 0.02
    bits: int = 4
    activations: Activations = "static"
    block: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.quantizer()

    def quantizer(self) -> Quantize:
        """The pass that quantizes.

        Raises:
            ValueError: an option of it is out of range.
        """
        return Quantize(
            activations=self.activations,
            bits=self.bits,
            block=self.block,
            symmetric=self.symmetric,
            only=self.only,
            skip=self.skip,
        )

    def run(self, graph: Graph, ctx: Context) -> None:
        if ctx.samples is None:
            raise RequestError("qat needs samples to learn from: give data (it needs no labels)")
        self._quantize(graph, ctx)
        share_ranges(graph, target_for(ctx.target))
        problem, lesson = self.problem(graph, ctx)
        steps = StepSizes.of(graph)
        found = fit(steps.trained_along(problem), self, ctx)
        steps.settle(found)
        found.store()
        if ctx.results:
            ctx.note("trained step sizes", len(steps.values))
            ctx.results[-1].notes.append(lesson.describe())

    def _quantize(self, graph: Graph, ctx: Context) -> None:
        """Quantize what is not quantized yet."""
        if not any(node.op == FAKE_QUANTIZE for node in graph.walk()):
            self.quantizer().run(graph, ctx)
        elif ctx.results:
            how = [name for name in ("bits", "activations", "block", "symmetric") if name in self.options()]
            ctx.results[-1].notes.append(
                "the graph is quantized already and trained as it is"
                + (f": {', '.join(how)} not applied" if how else "")
            )
