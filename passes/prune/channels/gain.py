"""What layers gain when channels go, measured on each layer alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....ir import Graph, Node, TensorType, Value, edit
from ....ir.builder import make_node
from ...base import Context
from ...calibration import collect
from ...calibration.summaries import Shape
from .axes import Channels
from .coupling import Analysis
from .groups import Group
from .shrink import Shrink, cut

__all__ = ["GAIN", "Gains"]

Array = np.ndarray[Any, Any]
Run = Callable[[], object]
GAIN = 0.98  # the part of its time that a layer must still take at most
_REPEATS = 4  # further measurements of layers that seem to gain nothing
_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass
class Gains:
    """Measures layers as they are and as they become; those that are alike are measured once.

    Attributes:
        analysis: of the graph.
        ctx: runs and measures.
    """

    analysis: Analysis
    ctx: Context
    _shapes: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    _known: dict[object, tuple[float, float]] = field(default_factory=dict)

    def of(self, groups: Sequence[Group], removed: Array) -> list[tuple[float, float] | None]:
        """The seconds that the layers of each group take now, and when the classes ``removed`` are gone.

        None for a group of which no layer can be measured, and for all if the context may not measure.
        """
        if self.ctx.stopwatch is None or self.ctx.samples is None or not self.ctx.can_run:
            return [None] * len(groups)
        work = Shrink(self.analysis, removed)
        self._see_shapes(groups)
        found: list[tuple[float, float] | None] = []
        for group in groups:
            pairs = [pair for node in (*group.layers, *group.readers) if (pair := self._pair(node, work)) is not None]
            found.append((sum(a for a, _ in pairs), sum(b for _, b in pairs)) if pairs else None)
        return found

    def _see_shapes(self, groups: Sequence[Group]) -> None:
        if self._shapes:
            return
        nodes = {node for g in groups for node in (*g.layers, *g.readers) if _is_alone(node)}
        wanted = {node.given(0): [Shape()] for node in nodes}
        if wanted:
            samples = self.ctx.samples
            assert samples is not None
            collect(self.analysis.graph, wanted, lambda: itertools.islice(samples(), 1), self.ctx.runner)
        self._shapes = {value: shape.shape for value, (shape,) in wanted.items()}

    def _pair(self, node: Node, work: Shrink) -> tuple[float, float] | None:
        x = node.operand(0)
        shape = self._shapes.get(x) if x is not None else None
        if shape is None or x is None or 0 in shape or not _is_alone(node):
            return None
        constants = [i for i, v in enumerate(node.operands) if v is not None and v.const is not None]
        masks = {i: self._masks(node, i, work) for i in constants}
        after = self._shrunk(x, shape, work)
        sizes = tuple((i, tuple((len(m), int(m.sum())) for m in mask)) for i, mask in sorted(masks.items()))
        key = (node.op, tuple(sorted(node.attrs.items())), shape, after, sizes)
        if key not in self._known:
            self.ctx.progress(f"measuring {node.name or node.op}")
            self._known[key] = self._seconds(self._run(node, shape, {}), self._run(node, after, masks))
        return self._known[key]

    def _seconds(self, before: Run, after: Run) -> tuple[float, float]:
        """The seconds of both; what seems to gain nothing is measured again, since a busy machine may be the reason."""
        assert self.ctx.stopwatch is not None
        best = self.ctx.stopwatch(before, after)
        for _ in range(_REPEATS):
            if best[1] <= GAIN * best[0]:
                break
            best = min(best, self.ctx.stopwatch(before, after), key=lambda pair: pair[1] / max(pair[0], 1e-12))
        return best

    def _masks(self, node: Node, index: int, work: Shrink) -> tuple[Array, ...]:
        return tuple([work.kept(axis) for axis in self.analysis.operand(node, index)])

    def _shrunk(self, x: Value, shape: tuple[int, ...], work: Shrink) -> tuple[int, ...]:
        """``shape`` of ``x`` when channels are gone."""
        sizes = []
        for size, axis in zip(shape, self.analysis.axes[x], strict=True):
            for factor in axis:
                if isinstance(factor, Channels):
                    size = size * int(work.kept((factor,)).sum()) // factor.size
            sizes.append(size)
        return tuple(sizes)

    def _run(self, node: Node, shape: tuple[int, ...], masks: dict[int, tuple[Array, ...]]) -> Run:
        """A function that runs the layer alone on random numbers."""
        graph = Graph("layer", opsets=node.graph.root.opsets if node.graph is not None else None)
        dtype = node.given(0).dtype
        operands: list[Value | None] = [graph.add_input(TensorType(dtype, shape), "x")]
        for i, value in enumerate(node.operands[1:], 1):
            if value is None or value.const is None:
                operands.append(None)
                continue
            tensor = cut(value.const, masks[i]) if i in masks else value.const
            operands.append(Value(tensor.type, value.name, const=tensor))
        attrs = dict(node.attrs)
        weight = operands[1]
        if attrs.get("group", 1) != 1 and weight is not None:
            assert weight.const is not None
            attrs["group"] = shape[1] // weight.const.shape[1]
        result = make_node(node.op, tuple(operands), attrs).result
        edit.insert_floating([result], graph.ret)
        graph.set_outputs([result])
        numbers = np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype.numpy)
        program = self.ctx.runner.compile(graph)
        return lambda: program({"x": numbers})


def _is_alone(node: Node) -> bool:
    """Whether a layer is one value times constants."""
    x, weight = node.operand(0), node.operand(1)
    if node.op not in _LAYERS or x is None or x.const is not None or weight is None or weight.const is None:
        return False
    return node.op != "ConvTranspose" or node.attrs.get("group", 1) == 1
