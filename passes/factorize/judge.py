"""What is faster: layers alone, as they are and factorized, measured side by side; or predicted where nothing may be.

Predictions count multiply-adds, and the bytes that each node reads and writes, at a rate that is usual for processors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...ir import Graph, Node, TensorType, Value, constant, edit, op
from ...ir.clone import clone_graph
from ...ir.flops import flops_of
from ...ir.quantization import parse_format
from ..base import Context
from ..layers import Layer
from ..quantize import Quantize
from ..quantize.targets import Target, target_for
from .ladders import Form, Ladder
from .sites import Site

__all__ = ["Judge", "Option", "alone", "predicted_cost"]

_GAIN = 1.05  # how many times as fast a layer must be alone
_ALIKE = 1.1  # options that are so near in time are told apart by their errors
_REPEATS = 3  # measurements of what is chosen, and of the whole model
_BYTE = 3  # multiply-adds in the time that a byte takes
_SCALE = np.float32(0.02)
_WEIGHTED = ("Conv", "MatMul", "Gemm")
_FakeQuantize = op.domain("planish").FakeQuantize


@dataclass(frozen=True, eq=False)
class Option:
    """One way to have a layer factorized.

    Attributes:
        ladder: of which it is a rung.
        rung: its number.
        form: how it is written down.
        before: what the layers of the site cost alone as they are: seconds, or the predicted cost.
        after: what they cost with this option.
    """

    ladder: Ladder
    rung: int
    form: Form
    before: float
    after: float

    @property
    def speedup(self) -> float:
        """How many times as fast it is."""
        return self.before / max(self.after, 1e-12)


@dataclass
class Judge:
    """Compares layers as they are with what they may become; what is alike is measured once.

    Attributes:
        ctx: runs and measures.
        shapes: of what layers multiply.
        quantize: how the model will be quantized: then everything is measured in integers; None if it is not.
    """

    ctx: Context
    shapes: Mapping[Value, tuple[int, ...]]
    quantize: Quantize | None = None
    _known: dict[object, tuple[float, float]] = field(default_factory=dict)

    @property
    def measures(self) -> bool:
        """Whether costs are seconds, and not predicted."""
        return self.ctx.stopwatch is not None and self.ctx.can_run

    def options(self, site: Site, ladder: Ladder, rung: int) -> list[Option]:
        """The forms of a rung with their costs."""
        return [Option(ladder, rung, form, *self._costs(site, form)) for form in ladder.forms(rung)]

    def is_faster(self, site: Site, ladder: Ladder, rung: int, times: float) -> bool:
        """Whether some form of a rung is that many times as fast as the layer, or more."""
        return any(option.speedup >= times for option in self.options(site, ladder, rung))

    def best(self, options: Sequence[Option]) -> Option:
        """The fastest; among those about as fast, the one with the least predicted error."""
        fastest = min(option.after / max(option.before, 1e-30) for option in options)
        near = [o for o in options if o.after / max(o.before, 1e-30) <= _ALIKE * fastest]
        return min(near, key=lambda o: (o.ladder.error(o.rung), o.after / max(o.before, 1e-30)))

    def confirmed(self, site: Site, option: Option) -> Option:
        """The same with the least gain of several measurements, or the first that is too little."""
        for turn in range(1, _REPEATS if self.measures else 1):
            if not self.accepts(option):
                break
            before, after = self._costs(site, option.form, turn)
            option = min(option, replace(option, before=before, after=after), key=lambda o: o.speedup)
        return option

    def accepts(self, option: Option) -> bool:
        """Whether it is faster than the layer by more than what two measurements differ."""
        return option.speedup > (_GAIN if self.measures else 1.0)

    def slower(self, before: Graph, after: Graph) -> tuple[float, float] | None:
        """The seconds of both, if the whole model takes longer afterwards each time that it is measured; else None."""
        if not self.measures or self.ctx.samples is None:
            return None
        sample = next(iter(self.ctx.samples()))
        first, second = (self.ctx.runner.compile(self._as_used(graph)) for graph in (before, after))
        times = (0.0, 0.0)
        for _ in range(_REPEATS):
            assert self.ctx.stopwatch is not None
            times = self.ctx.stopwatch(lambda: first(sample), lambda: second(sample))
            if times[1] <= times[0]:
                return None
        return times

    def _as_used(self, graph: Graph) -> Graph:
        """``graph``, or a copy that is quantized in little time: ranges do not matter for time."""
        if self.quantize is None:
            return graph
        quick = Quantize(self.quantize.activations, self.quantize.bits, weights="round", calibration="minmax")
        graph = clone_graph(graph)
        quick.run(graph, Context(lambda: self.ctx.runner, target=self.ctx.target, samples=self.ctx.samples))
        return graph

    def _costs(self, site: Site, form: Form, turn: int = 0) -> tuple[float, float]:
        """What the layers of a site cost as they are and in ``form``, by the measurement of that number."""
        weight = site.first.weight.const
        assert weight is not None
        plain = Form.regular(site.node.op, weight.numpy())
        pairs = [self._pair(layer, plain, form, turn) for layer in site.layers]
        return sum(before for before, _ in pairs), sum(after for _, after in pairs)

    def _pair(self, layer: Layer, plain: Form, form: Form, turn: int) -> tuple[float, float]:
        shape = self.shapes[layer.x]
        if not self.measures or 0 in shape:
            before, after = (predicted_cost(alone(layer, f, shape)) for f in (plain, form))
            return before, after
        attrs = tuple(sorted(layer.node.attrs.items(), key=lambda item: item[0]))
        sizes = tuple(w.shape for w in form.weights)
        key = (layer.node.op, attrs, shape, plain.weights[0].shape, form.name, sizes, len(layer.node.operands), turn)
        if key not in self._known:
            self.ctx.progress(f"measuring {layer.name}, {form.name}")
            assert self.ctx.stopwatch is not None
            self._known[key] = self.ctx.stopwatch(*(self._run(layer, f, shape) for f in (plain, form)))
        return self._known[key]

    def _run(self, layer: Layer, form: Form, shape: tuple[int, ...]) -> Callable[[], object]:
        graph = alone(layer, form, shape, self.quantize, target_for(self.ctx.target) if self.quantize else None)
        rng, dtype = np.random.default_rng(0), graph.inputs[0].dtype
        numbers = rng.standard_normal(shape, np.float32) if dtype.is_floating else rng.integers(0, 100, shape)
        x, run = numbers.astype(dtype.numpy), self.ctx.runner.compile(graph)
        return lambda: run({"x": x})


def alone(
    layer: Layer, form: Form, shape: tuple[int, ...], quantize: Quantize | None = None, target: Target | None = None
) -> Graph:
    """A graph of nothing but ``layer`` in ``form`` on an input of ``shape``; a computed bias is left out.

    Given how the model will be quantized for a target, everything is, with scales that do not matter for time.
    """
    home = layer.node.graph
    graph = Graph("layer", opsets=home.root.opsets if home is not None else None)
    rest = [o and Value(o.type, o.name, const=o.const) for o in layer.node.operands[2:] if o is None or o.const]
    weights = [constant(w, layer.weight.dtype) for w in form.weights]
    is_static = quantize is not None and quantize.activations == "static"
    kinds = frozenset[str]() if target is None else target.layers if is_static else target.dynamic
    quantized = target if layer.node.op in kinds else None
    between = quantized is not None and is_static and layer.node.op in quantized.needs_output
    storage = parse_format(quantized.activation).storage if quantized is not None and between else layer.x.dtype
    x = graph.add_input(TensorType(storage, shape), "x")
    start = op.DequantizeLinear(x, constant(_SCALE), constant(np.zeros((), storage.numpy), storage)) if between else x
    result = form.build(start, weights, rest, layer.node.attrs)
    edit.insert_floating([result], graph.ret)
    if quantized is not None:
        _quantize(graph, result, quantized, is_static)
    if between:
        result = op.QuantizeLinear(result, constant(_SCALE), constant(np.zeros((), storage.numpy), storage))
        edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    return graph


def _quantize(graph: Graph, output: Value, target: Target, is_static: bool) -> None:
    """Quantize the weights, and all values but ``output``."""
    activation = parse_format(target.activation)
    zero = constant(np.zeros((), activation.storage.numpy), activation.storage)
    nodes = list(graph.nodes)
    for value in (*graph.inputs, *(r for node in nodes for r in node.results)):
        is_codes = value.producer is not None and value.producer.op == "DequantizeLinear"
        if value is output or is_codes or not value.dtype.is_floating:
            continue
        uses = list(value.uses)
        scale = (constant(_SCALE), zero) if is_static else ()
        fake = _FakeQuantize(value, *scale, format=activation.name if is_static else "uint8")
        edit.insert_floating([fake], nodes[0] if value.producer is None else value.producer.next or graph.ret)
        for user, index in uses:
            edit.set_operand(user, index, fake)
    for node in nodes:
        if node.op in _WEIGHTED:
            axis = 0 if node.op == "Conv" or node.attrs.get("transB") else 1
            scales = np.full(_shape(node.given(1))[axis], _SCALE, np.float32)
            fake = _FakeQuantize(node.given(1), constant(scales), format=target.weight, axis=axis)
            edit.insert_floating([fake], node)
            edit.set_operand(node, 1, fake)


def predicted_cost(graph: Graph) -> float:
    """Multiply-adds of all nodes, and what they read and write, as so many multiply-adds."""
    return sum(flops_of(node, {}) / 2 + _BYTE * _bytes(node) for node in graph.nodes)


def _bytes(node: Node) -> int:
    values = [v for v in (*node.operands, *node.results) if v is not None]
    return sum(math.prod(_shape(v)) * (v.dtype.bits or 32) // 8 for v in values)


def _shape(value: Value) -> list[int]:
    """The sizes that are known, which all are in a graph of one layer."""
    return [d for d in value.shape or () if isinstance(d, int)]
