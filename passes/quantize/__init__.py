"""Quantization: integers and short floating-point numbers for weights and activations, where they pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...ir import DType, Graph
from ...ir.quantization import parse_format
from ..base import Context, Pass, RequestError
from ..numerics import Lossy
from .targets import Target, target_for
from .weights import WeightMethod

if TYPE_CHECKING:
    from ..layers import Layer
    from .plan import Choice, Settings
    from .weights.grids import Granularity

__all__ = ["Quantize"]

Activations = Literal["static", "dynamic", "float"]
Calibration = Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"]
_CALIBRATIONS = ("minmax", "mse", "percentile")


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize weights, and activations where the target computes in integers.

    Attributes:
        activations: ``static``: ranges from samples; ``dynamic``: ranges at run time; ``float``: weights only.
        bits: of the weights, 2 to 8.
        block: how many neighbouring inputs share a scale; 0: each output channel has one.
        per_channel: whether, without blocks, each output channel has a scale; else there is one for the whole weight.
        weights: how weights are rounded.
        symmetric: whether weights have no zero point.
        calibration: how ranges of activations are chosen; ``auto`` compares minmax, mse and percentile by what they
            lose, all layers quantized.
        percentile: for calibration ``percentile``, the share of the elements inside, in percent.
        embeddings: bits of tables that rows are picked from: 8, a scale per row; 4, a scale per 32 neighbours in a
            row; 0 leaves them as they are.
        correct_bias: whether biases make up for the shift of the mean outputs.
        only: patterns of the layers to quantize.
        skip: patterns of layers to leave alone.
        max_drop: how much of the metric may be lost: layers that cost too much are kept more precise. Without a metric
            in the context, 1 minus the mean cosine between the outputs and those of the graph as it is.
        sensitivity: how layers are ranked that may have to stay more precise: ``predicted`` from what is known of their
            inputs and weights; or ``measured``, by what is lost with only that layer quantized, one evaluation each.
        saved: a JSON file for what calibration finds: read if it is there, and written else.

    Raises:
        RequestError: there is nothing to quantize, or no samples where they are needed.
    """

    numerics = Lossy()

    activations: Activations = "static"
    bits: int = 8
    block: int = 0
    per_channel: bool = True
    weights: WeightMethod = "mse"
    symmetric: bool = True
    calibration: Calibration = "auto"
    percentile: float = 99.99
    embeddings: int = 8
    correct_bias: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    max_drop: float | None = None
    sensitivity: Literal["predicted", "measured"] = "predicted"
    saved: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}: weights have 2 to 8")
        if self.embeddings not in (0, 4, 8):
            raise ValueError(f"embeddings is {self.embeddings}: tables have 8 bits, or 4; 0 leaves them alone")

    def settings(self, target: Target) -> Settings:
        """The same for a target."""
        from .plan import Settings
        from .rounding import Rounding

        width = min(self.bits, parse_format(target.weight).bits) if self.activations != "float" else self.bits
        form = parse_format(f"{'int' if self.symmetric else 'uint'}{width}")
        row: Granularity = "row" if self.per_channel and target.per_channel else "tensor"
        rounding = Rounding(form, self.block or row, self.weights, self.symmetric)
        calibration = self.calibration if self.calibration != "auto" else "minmax"
        return Settings(
            target,
            self.activations,
            rounding,
            calibration,
            self.percentile,
            self.correct_bias,
            self.embeddings,
            self.saved,
        )

    def run(self, graph: Graph, ctx: Context) -> None:
        from .budget import Trial, within_budget  # here, since other passes of this package do not need all this
        from .placement import unfold
        from .plan import apply, learn
        from .speed import slower_layers
        from .summary import describe

        target = target_for(ctx.target)
        settings = self.settings(target)
        layers = self.layers(graph, target)
        if self.activations == "static" and unfold(graph, layers, target):
            layers = self.layers(graph, target)
        knowledge = learn(graph, layers, settings, ctx)
        trial = Trial(graph, knowledge, ctx) if ctx.samples is not None else None
        if trial is not None and self.activations != "float":
            knowledge.slower = slower_layers(trial, settings, ctx)
        ladders = [self.ladder(layer, target, i in knowledge.slower) for i, layer in enumerate(layers)]
        choices = [ladder[0] for ladder in ladders]
        if trial is not None and self.activations == "static" and self.calibration == "auto":
            settings = trial.best_calibration(choices, settings, _CALIBRATIONS)
        if trial is None and (self.max_drop is not None or self.sensitivity == "measured"):
            raise RequestError("samples are needed to measure what is lost: give data")
        if trial is not None and self.sensitivity == "measured":
            knowledge.drops = trial.sensitivities(ladders, settings)
        lost = None
        if trial is not None and self.max_drop is not None:
            errors = knowledge.drops or knowledge.errors
            choices, lost = within_budget(errors, ladders, lambda c: trial.drop(c, settings), self.max_drop)
        apply(graph, choices, knowledge, settings)
        if ctx.results:
            describe(choices, knowledge, settings, ctx.results[-1])
            if trial is not None and trial.evaluations:
                ctx.note("evaluations of the model", trial.evaluations)
            if lost is not None:
                ctx.results[-1].notes.append(f"quantization loses {lost:.2g} of the metric; allowed {self.max_drop:g}")
                if lost > (self.max_drop or 0):
                    ctx.results[-1].missed = f"{lost:.2g} of the metric is lost, not {self.max_drop:g} at most"

    def layers(self, graph: Graph, target: Target) -> list[Layer]:
        """The layers to quantize.

        Raises:
            RequestError: there are none, or a pattern matches nothing.
        """
        from ..layers import layers_of, select

        kinds = {"static": target.layers, "dynamic": target.dynamic, "float": target.layers}[self.activations]
        found = [layer for layer in layers_of(graph) if layer.node.op in kinds]
        if self.activations == "static":
            found = [layer for layer in found if layer.node.graph is graph]
        if not kinds:
            raise RequestError(f"{self.activations} activations are not known for {target.name}")
        if not found:
            raise RequestError(f"nothing to quantize: no {', '.join(sorted(kinds))} with a constant weight")
        return select(found, self.only, self.skip)

    def ladder(self, layer: Layer, target: Target, slower: bool) -> list[Choice]:
        """The ways to quantize ``layer``, the least precise first; ``slower``: it is so in integers."""
        if self.activations == "float" or slower:
            return ["weights", "float"]
        if layer.node.op in target.blocks and self.bits == 8 and layer.x.dtype is DType.FLOAT:
            return ["integers", "blocks", "weights", "float"]
        return ["integers", "weights", "float"]
