"""Step sizes: the scales of quantizers as numbers that are trained (LSQ, Esser et al. 2020, arXiv 1902.08153).

FakeQuantize has gradients (`planish.backends.xla.ops.fake_quantize`): 1 for what it rounds, 0 beyond the range, and
those of LSQ for its scale. What is trained in place of a scale is its logarithm, so no scale becomes 0 or negative.

How far an update moves a number is counted in steps of its grid, so that one learning rate suits all widths: weights
move by ``rate`` steps, and the largest code of a quantizer does so when its scale moves. Gradients of scales are
divided by the square root of how many numbers share one, as in LSQ, where else they would outweigh all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import Graph, Node, Value, edit
from ...ir.quantization import FAKE_QUANTIZE, format_of, is_fake_quantize
from ..quantize.placement import KEEPS_RANGE
from ..quantize.targets import Target
from .engine import Fit, Problem

__all__ = ["StepSizes", "share_ranges", "weight_rates"]

Array = np.ndarray[Any, Any]
_FLOAT_STEP = 1 / 16  # of short floating-point numbers, relative to themselves
_STEPS, _OTHERS = "step sizes", "others"  # parts of what is trained besides weights
_UNQUANTIZED = 0.5  # the step of weights that are not quantized, relative to their root mean square


@dataclass(frozen=True)
class StepSizes:
    """The constant scales of the quantizers of one graph.

    Attributes:
        values: the scales by name; all quantizers that share a tensor share its training.
        units: by how much the logarithm of each moves when its largest code moves by a step.
        counts: how many numbers share one element of each.
    """

    values: dict[str, Value]
    units: dict[str, float]
    counts: dict[str, int]

    @classmethod
    def of(cls, graph: Graph) -> StepSizes:
        """Those of ``graph``, nested graphs included, in order. What is read by anything else, too, is left out."""
        names: dict[int, str] = {}
        found = cls({}, {}, {})
        for node in static_quantizers(graph):
            scale = node.given(1)
            tensor = scale.const
            assert tensor is not None
            if id(tensor) in names or any(u.op != FAKE_QUANTIZE or u.operand(1) is not scale for u in scale.users):
                continue
            name = names[id(tensor)] = f"step size {len(names) + 1}: {node.given(0).name or node.name}"
            form = format_of(node)
            found.values[name] = scale
            found.units[name] = 1 / max(-form.low, form.high) if form.is_integer else _FLOAT_STEP
            found.counts[name] = max(_size(node.given(0)) // max(tensor.size, 1), 1)
        return found

    def trained_along(self, problem: Problem) -> Problem:
        """``problem`` with scales that are trained as well, and rates in steps of the grids."""

        def apply(weights: Mapping[str, Any], extra: Any) -> dict[str, Any]:
            return {**weights, **self.scales(extra[_STEPS])}

        def loss(outputs: Mapping[str, Any], batch: Mapping[str, Any], extra: Any) -> Mapping[str, Any]:
            return problem.loss(outputs, batch, extra[_OTHERS])

        logs = {name: np.zeros(value.const.shape, np.float32) for name, value in self.values.items() if value.const}
        return replace(
            problem,
            loss=loss,
            weights={**problem.weights, **self.values},
            extra={_OTHERS: problem.extra, _STEPS: logs},
            apply=apply,
            rates=weight_rates(problem.weights),
        )

    def settle(self, found: Fit) -> None:
        """Put the scales that training has found among the weights that will be stored."""
        for name, scale in self.scales(found.extra[_STEPS]).items():
            found.weights[name] = np.asarray(scale)

    def scales(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """The scales, as traced numbers, for their trained logarithms: 0 for each at first."""
        import jax.numpy as jnp
        from jax import lax

        found = {}
        for name, value in self.values.items():
            assert value.const is not None
            share = 1 / math.sqrt(self.counts[name])
            log = lax.stop_gradient(logs[name] * (1 - share)) + logs[name] * share
            found[name] = value.const.numpy().astype(np.float32) * jnp.exp(self.units[name] * log)
        return found


def static_quantizers(graph: Graph) -> list[Node]:
    """The FakeQuantize nodes of ``graph`` whose scale is a constant, in order."""
    found = [n for n in graph.walk() if n.op == FAKE_QUANTIZE]
    return [n for n in found if (scale := n.operand(1)) is not None and scale.const is not None]


def share_ranges(graph: Graph, target: Target) -> None:
    """Give quantizers one scale for both that have equal ones, and between which elements are only moved or picked.

    Trained apart, they would differ, and what lies between could no longer run on the integers as they are.
    """
    for node in static_quantizers(graph):
        x = node.given(0)
        while not is_fake_quantize(x) and x.producer is not None and x.producer.op in target.moves | KEEPS_RANGE:
            x = x.producer.given(0)
        if x is not node.given(0) and x.producer is not None and _have_equal_grids(x.producer, node):
            edit.set_operand(node, 1, x.producer.given(1))


def _have_equal_grids(a: Node, b: Node) -> bool:
    if a.op != FAKE_QUANTIZE or a.operand(1) is None or format_of(a) is not format_of(b):
        return False
    arrays = []
    for node in (a, b):
        scale, zero = node.given(1).const, node.operand(2)
        if scale is None or scale.size != 1 or (zero is not None and zero.const is None):
            return False
        offset = 0.0 if zero is None or zero.const is None else float(zero.const.numpy().reshape(()))
        arrays.append((float(scale.numpy().reshape(())), offset))
    return arrays[0] == arrays[1]


def weight_rates(weights: Mapping[str, Value]) -> dict[str, float]:
    """By how much an update moves each of ``weights``, for a rate of 1: a step of its grid if it is quantized."""
    sizes = {name: _root_mean_square(value) for name, value in weights.items()}
    typical = [size for name, size in sizes.items() if size and (weights[name].rank or 0) >= 2] or [1.0]
    found = {}
    for name, value in weights.items():
        steps = [
            float(u.given(1).const.numpy().mean())  # type: ignore[union-attr]
            for u in value.users
            if u.op == FAKE_QUANTIZE and _is_integer_grid(u)
        ]
        found[name] = steps[0] if steps else _UNQUANTIZED * (sizes[name] or sum(typical) / len(typical))
    return found


def _is_integer_grid(node: Node) -> bool:
    scale = node.operand(1)
    return format_of(node).is_integer and scale is not None and scale.const is not None


def _root_mean_square(value: Value) -> float:
    assert value.const is not None
    array = value.const.numpy().astype(np.float32)
    return float(np.sqrt(np.square(array).mean(dtype=np.float64))) if array.size else 0.0


def _size(x: Value) -> int:
    """The number of elements of ``x``; of one row, and without sizes that are not known, if it is no constant."""
    if x.const is not None:
        return x.const.size
    return math.prod(size for size in (x.shape or ())[1:] if isinstance(size, int))
