"""What an operator says about the channels of its operands and results, and the walk that collects it for a graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ....ir import Graph, Node, Tensor, Value
from ....ir.dims import Dim, dim_mod
from ....ir.infer import content_of
from ....ir.quantization import FAKE_QUANTIZE
from .axes import Axes, Axis, Channels, Coupling, Factor, Fixed, size_of

if TYPE_CHECKING:
    from .shrink import Shrink

__all__ = ["Analysis", "Opaque", "Slot", "Weight", "analyze", "couples", "ints_of", "name_of"]

Slot = Value | tuple[Node, int]  # a constant; or one use of a constant that other nodes use for other things
Rule = Callable[["Analysis", Node], Sequence[Axes]]
_FAMILIES = ("layers", "moves", "sequences")
_RULES: dict[str, Rule] = {}


class Opaque(Exception):
    """The channels that go in cannot be found again in what comes out; the message says why."""


def couples(*ops: str) -> Callable[[Rule], Rule]:
    """Register the rule of operators: from a node to the axes of its results, relating them to those of its operands.

    Rules run before anything is removed. What has to change in the node when channels go is told to `Analysis.fix`.
    """

    def register(rule: Rule) -> Rule:
        for op in ops:
            _RULES[op] = rule
        return rule

    return register


@cache
def _load_rules() -> None:
    for family in _FAMILIES:
        importlib.import_module(f".{family}", __package__)


def name_of(node: Node) -> str:
    """What a layer is called in reports."""
    return node.name or node.result.name or node.op


@dataclass(frozen=True)
class Weight:
    """A constant that a layer multiplies by, or picks rows of.

    Attributes:
        node: the layer.
        slot: the constant.
        tensor: its value.
        out: its axes that make the layer's channels.
        into: its axes that meet the channels of what the layer reads.
    """

    node: Node
    slot: Slot
    tensor: Value
    out: tuple[int, ...]
    into: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the layer is called in reports."""
        return name_of(self.node)


@dataclass
class Analysis:
    """The channels of a graph.

    Attributes:
        graph: the graph; nested graphs are left alone.
        coupling: what is known of the atoms.
        axes: of values that are no constants.
        constants: axes of constants.
        fills: axes of uses of values that are one number, repeated.
        weights: the constants that make channels, in order.
        unseen: layers whose weights are no constants, with the reason why nothing is known of them.
        norms: the scales of norms.
        fixes: what has to be done to nodes when channels go.
    """

    graph: Graph
    coupling: Coupling = field(default_factory=Coupling)
    axes: dict[Value, Axes] = field(default_factory=dict)
    constants: dict[Slot, Axes] = field(default_factory=dict)
    fills: dict[tuple[Node, int], Axes] = field(default_factory=dict)
    weights: list[Weight] = field(default_factory=list)
    unseen: list[tuple[Node, str]] = field(default_factory=list)
    norms: list[Slot] = field(default_factory=list)
    fixes: list[Callable[[Shrink], None]] = field(default_factory=list)

    def slot(self, node: Node, index: int) -> Slot:
        """The place of the constant that is operand ``index``: what layers share by chance counts once for each.

        Equal biases, or states of zeros, are one constant after deduplication, and must not tie layers together.
        """
        value = node.given(index)
        if value.use_count < 2 or value.const is None:
            return value
        return (node, index) if len(value.const.shape) < 2 or _is_uniform(value.const) else value

    def operand(self, node: Node, index: int) -> Axes:
        """The axes of operand ``index``.

        Raises:
            Opaque: its rank is unknown.
        """
        value = node.given(index)
        if value.const is None and _is_fill(value) and value.use_count > 1:
            return self._filled(node, index)
        if value.const is None:
            found = self.axes.get(value)
            if found is None:
                raise Opaque("the rank of an operand is unknown")
            return found
        slot = self.slot(node, index)
        if slot not in self.constants:
            self.constants[slot] = tuple([(self.coupling.new(n),) if n > 1 else _fixed(n) for n in value.const.shape])
        return self.constants[slot]

    def _filled(self, node: Node, index: int) -> Axes:
        """The axes of one use of a value that is the same number everywhere, which can be had in any size."""
        if (node, index) not in self.fills:
            shape = node.given(index).shape or ()
            axes = tuple([(self.coupling.new(d),) if isinstance(d, int) and d > 1 else _fixed(d) for d in shape])
            self.fills[node, index] = axes
            self.fix(lambda shrink: shrink.refill(node, index, axes))
        return self.fills[node, index]

    def given(self, node: Node) -> list[Axes]:
        """The axes of all operands that are there."""
        return [self.operand(node, i) for i, value in enumerate(node.operands) if value is not None]

    def fix(self, fix: Callable[[Shrink], None]) -> None:
        """Call ``fix`` when channels are removed."""
        self.fixes.append(fix)

    def weight(self, node: Node, index: int, out: Iterable[int], into: Iterable[int] = ()) -> None:
        """State that operand ``index``, if it is a constant, makes channels."""
        value = node.given(index)
        maker = value.producer
        if maker is not None and maker.op in (FAKE_QUANTIZE, "DequantizeLinear") and maker.given(0).const is not None:
            self.unseen.append((node, "its weight is quantized: prune before quantizing"))
        elif value.const is None and node.op not in ("MatMul", "Gemm", "Einsum", "Gather"):
            self.unseen.append((node, "its weight is computed at run time"))
        if value.const is not None and value.dtype.is_floating:
            self.operand(node, index)
            self.weights.append(Weight(node, self.slot(node, index), value, tuple(out), tuple(into)))

    def norm(self, node: Node) -> None:
        """State that operand 1, if it is a constant vector, scales the channels of a norm."""
        if node.given(1).const is not None:
            self.operand(node, 1)
            self.norms.append(self.slot(node, 1))

    # what rules are made of

    def unify(self, node: Node, *axes: Axis) -> Axis:
        """Axes that are the same, index by index, but for those of size 1: the one that all of them are."""
        wide = [axis for axis in axes if axis]
        for other in wide[1:]:
            self.coupling.unify(wide[0], other, f"{node.op} meets what is not made of channels")
        return wide[0] if wide else ()

    def freeze(self, axes: Iterable[Axis], reason: str) -> None:
        """Keep all atoms of ``axes``."""
        for axis in axes:
            self.coupling.freeze(axis, reason)

    def pick(self, axis: Axis, indices: np.ndarray, node: Node) -> Axis:
        """The axis that has these indices of ``axis``, each at most once."""
        single = self.coupling.single(axis, f"{node.op} picks from a product with open sizes")
        if single is None:
            return _fixed(len(indices))
        if len(indices) == 1:
            self.coupling.freeze((Channels(single.ids[indices]),), f"{node.op} picks it alone")
            return ()
        return (Channels(single.ids[indices]),)

    def regroup(self, axes: Axes, shape: Sequence[Dim], reason: str) -> Axes:
        """The axes of the same elements in another ``shape``."""
        factors = [factor for axis in axes for factor in axis]
        dims = [d for d in shape if d != 1]
        made: list[Axis] = []
        for ins, outs in _paired(factors, dims):
            made += self._reshaped(ins, outs, reason)
        rest = iter(made)
        return tuple([() if d == 1 else next(rest) for d in shape])

    def _reshaped(self, factors: Sequence[Factor], dims: Sequence[Dim], reason: str) -> list[Axis]:
        if len(dims) == 1:
            return [tuple(factors)]
        single = None
        if all(isinstance(d, int) and d > 0 for d in dims):
            single = self.coupling.single(tuple(factors), reason)
        else:
            self.coupling.freeze(tuple(factors), reason)
        if single is None:
            return [(Fixed(d),) for d in dims]
        made: list[Channels] = [self.coupling.new(d) for d in dims if isinstance(d, int)]
        self.coupling.product(single, made)
        return [(factor,) for factor in made]


def _is_uniform(tensor: Tensor) -> bool:
    if not tensor.is_cheap or tensor.size == 0:
        return False
    array = tensor.numpy()
    return bool((array == array.flat[0]).all())


def _is_fill(value: Value) -> bool:
    """Whether ``value`` is one number, repeated."""
    node = value.producer
    if node is None or value.shape is None:
        return False
    source = node.operand(0)
    is_scalar = node.op == "Expand" and source is not None and source.const is not None and source.const.size == 1
    return is_scalar or node.op == "ConstantOfShape"


def _fixed(size: Dim) -> Axis:
    return () if size == 1 else (Fixed(size),)


def _paired(factors: Sequence[Factor], dims: Sequence[Dim]) -> list[tuple[Sequence[Factor], Sequence[Dim]]]:
    """The finest pairs of runs of ``factors`` and of ``dims`` whose products agree; the last takes what does not."""
    pairs: list[tuple[Sequence[Factor], Sequence[Dim]]] = []
    i = j = 0
    while i < len(factors) and j < len(dims):
        start, a, b = (i, j), factors[i].size, dims[j]
        i, j = i + 1, j + 1
        while a != b and (i < len(factors) or j < len(dims)):
            if i < len(factors) and (j == len(dims) or (a != 0 and dim_mod(b, a) == 0)):
                a, i = a * factors[i].size, i + 1
            else:
                b, j = b * dims[j], j + 1
        pairs.append((factors[start[0] : i], dims[start[1] : j]))
    if j < len(dims):
        pairs.append(((), dims[j:]))
    return pairs


def ints_of(node: Node, index: int) -> tuple[int, ...] | None:
    """The elements of the integer operand ``index``; None if it is left out.

    Raises:
        Opaque: they are not known.
    """
    value = node.operand(index)
    if value is None:
        return None
    elements = content_of(value)
    if elements is None or not all(isinstance(e, int) for e in elements):
        raise Opaque("what it picks is computed at run time")
    return tuple([int(e) for e in elements if isinstance(e, int)])


def analyze(graph: Graph) -> Analysis:
    """The channels of ``graph``, products not settled yet: freeze what must stay, then call ``coupling.settle``."""
    _load_rules()
    analysis = Analysis(graph)
    for value in graph.inputs:
        if value.shape is not None:
            analysis.axes[value] = _all_fixed(value.shape)
    for node in graph.nodes:
        _visit(analysis, node)
    for i, info in enumerate(graph.output_info):
        value = graph.outputs[i]
        kept = [axes for slot, axes in analysis.constants.items() if value.const is not None and _is_of(slot, value)]
        for axes in kept if value.const is not None else [analysis.axes.get(value, ())]:
            analysis.freeze(axes, f"it is the output {info.name!r} of the model")
    return analysis


def _is_of(slot: Slot, value: Value) -> bool:
    return slot is value if isinstance(slot, Value) else slot[0].given(slot[1]) is value


def _visit(analysis: Analysis, node: Node) -> None:
    rule = _RULES.get(node.op)
    found: Sequence[Axes] = ()
    reason = f"planish does not know how {node.op} mixes channels" if rule is None else ""
    if rule is not None:
        try:
            found = rule(analysis, node)
        except Opaque as opaque:
            reason = f"{node.op}: {opaque}"
    if reason:
        _keep_all(analysis, node, reason)
    axes: Mapping[int, Axes] = dict(enumerate(found))
    for i, result in enumerate(node.results):
        if result.shape is None:
            if i in axes:
                analysis.freeze(axes[i], f"the rank of a result of {node.op} is unknown")
        elif i in axes and tuple(map(size_of, axes[i])) == result.shape:
            analysis.axes[result] = axes[i]
        else:
            if i in axes:
                _keep_all(analysis, node, f"the shape of a result of {node.op} is not what planish expects")
                analysis.freeze(axes[i], f"the shape of a result of {node.op} is not what planish expects")
            analysis.axes[result] = _all_fixed(result.shape)


def _all_fixed(shape: Sequence[Dim]) -> Axes:
    return tuple(map(_fixed, shape))


def _keep_all(analysis: Analysis, node: Node, reason: str) -> None:
    """Freeze everything that ``node`` reads, its nested graphs included."""
    readers = [node, *(inner for graph in node.graphs for inner in graph.walk())]
    readers += [graph.ret for graph in node.graphs] + [g.ret for n in readers[1:] for g in n.graphs]
    for reader in readers:
        for i, value in enumerate(reader.operands):
            if value is not None and (value in analysis.axes or (value.const is not None and value.rank)):
                analysis.freeze(analysis.operand(reader, i), reason)
