"""Quantization: integers and short floating-point numbers for weights and activations, where they pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...ir import Graph
from ...ir.quantization import parse_format
from ..base import Context, Pass, PassError
from ..numerics import Lossy
from .layers import Layer, layers_of, select
from .plan import Choice, Settings, apply, learn
from .rounding import Rounding, WeightMethod
from .targets import Target, target_for

__all__ = ["Quantize"]

Activations = Literal["static", "dynamic", "none"]
Calibration = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize weights, and activations where the target computes in integers.

    Attributes:
        activations: ``static``: ranges from samples; ``dynamic``: ranges at run time; ``none``: weights only.
        bits: of the weights, 2 to 8.
        block: how many neighbouring inputs share a scale; 0: each output channel has one.
        weights: how weights are rounded.
        symmetric: whether weights have no zero point.
        calibration: how ranges of activations are chosen.
        percentile: for calibration ``percentile``, the share of the elements inside, in percent.
        embeddings: whether tables that rows are picked from are quantized, too (8 bits, a scale per row).
        correct_bias: whether biases make up for the shift of the mean outputs.
        only: patterns of the layers to quantize.
        skip: patterns of layers to leave alone.

    Raises:
        PassError: there is nothing to quantize, or no samples where they are needed.
    """

    numerics = Lossy()

    activations: Activations = "static"
    bits: int = 8
    block: int = 0
    weights: WeightMethod = "mse"
    symmetric: bool = True
    calibration: Calibration = "mse"
    percentile: float = 99.99
    embeddings: bool = True
    correct_bias: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}: weights have 2 to 8")

    def settings(self, target: Target) -> Settings:
        """The same for a target."""
        width = min(self.bits, parse_format(target.weight).bits) if self.activations != "none" else self.bits
        form = parse_format(f"{'int' if self.symmetric else 'uint'}{width}")
        rounding = Rounding(
            form, self.block or ("row" if target.per_channel else "tensor"), self.weights, self.symmetric
        )
        return Settings(target, self.activations, rounding, self.calibration, self.percentile, self.correct_bias)

    def run(self, graph: Graph, ctx: Context) -> None:
        target = target_for(ctx.target)
        layers = self.layers(graph, target)
        settings = self.settings(target)
        knowledge = learn(graph, layers, settings, ctx)
        choice: Choice = "weights" if self.activations == "none" else "integers"
        apply(graph, [choice] * len(layers), knowledge, settings)
        ctx.note("quantized layers", len(layers))

    def layers(self, graph: Graph, target: Target) -> list[Layer]:
        """The layers to quantize.

        Raises:
            PassError: there are none, or a pattern matches nothing.
        """
        kinds = {"static": target.layers, "dynamic": target.dynamic, "none": target.layers}[self.activations]
        found = [layer for layer in layers_of(graph) if layer.node.op in kinds]
        if self.activations == "static":
            found = [layer for layer in found if layer.node.graph is graph]
        if not found:
            raise PassError(f"nothing to quantize: no {', '.join(sorted(kinds))} with a constant weight")
        return select(found, self.only, self.skip)
