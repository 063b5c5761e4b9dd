"""Where quantization goes: which values become integers, and which operators read them as such.

A layer reads its activation as integers. What else runs in integers depends on the target (`planish.passes.quantize.
targets`): where a layer's result has to be quantized too, operators behind it that have an integer kernel are drawn in,
as long as all they read is quantized already and what they compute is read by another operator in integers. What stays
in floating point on the target is never wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ...ir import Graph, Node, Value, edit, op
from ..layers import Layer
from .targets import Target

__all__ = ["KEEPS_RANGE", "Placement", "place", "unfold"]

KEEPS_RANGE = frozenset({"MaxPool", "Resize"})
_CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass
class Placement:
    """What to quantize.

    Attributes:
        readers: for every value to quantize, the uses that read it quantized (node and operand position); all uses
            where the value has to be quantized for everybody.
        source: for values that have the range of another one, because they are elements of it, that other value.
        integers: the nodes that run in integers, with their layers among them.
    """

    readers: dict[Value, list[tuple[Node, int]]] = field(default_factory=dict)
    source: dict[Value, Value] = field(default_factory=dict)
    integers: dict[Node, None] = field(default_factory=dict)

    def read(self, value: Value, node: Node, position: int) -> None:
        """Let one use read ``value`` quantized."""
        uses = self.readers.setdefault(value, [])
        if (node, position) not in uses:
            uses.append((node, position))

    def read_everywhere(self, value: Value) -> None:
        """Let every use read it quantized."""
        for node, position in value.uses:
            self.read(value, node, position)

    def range_of(self, value: Value) -> Value:
        """The value whose range ``value`` takes."""
        while value in self.source:
            value = self.source[value]
        return value


def place(graph: Graph, layers: Sequence[Layer], target: Target) -> Placement:
    """The placement for ``layers``, which must be layers that ``target`` runs in integers."""
    placement = Placement()
    ends = {end_of(layer.node, target): layer.node for layer in layers if layer.node.op in target.needs_output}
    chosen = {layer.node for layer in layers}
    drawn = _drawn_in(graph, chosen, set(ends), target)
    for layer in layers:
        placement.integers[layer.node] = None
        placement.read(layer.x, layer.node, 0)
    for end in ends:
        placement.read_everywhere(end)
    for node in drawn:
        _place_other(node, target, placement)
    if target.residual_only:
        _place_residuals(graph, [n for n in chosen if n.op in _CONVOLUTIONS], target, placement)
    return placement


def unfold(graph: Graph, layers: Sequence[Layer], target: Target) -> bool:
    """Write ``x * Sigmoid(x)`` for Swish where ``target`` would run these two in integers, and has no kernel for Swish.

    Returns:
        Whether anything was changed; then ``layers`` are to be found anew.
    """
    if "Swish" in target.computes or not {"Sigmoid", "Mul"} <= target.computes:
        return False
    as_one = place(graph, layers, replace(target, computes=target.computes | {"Swish"}))
    found = [n for n in as_one.integers if n.op == "Swish" and n.attrs.get("alpha", 1.0) == 1.0]
    for node in found:
        x = node.given(0)
        product = op.Mul(x, op.Sigmoid(x))
        for new in edit.insert_floating([product], node):
            new.name, new.metadata = f"{node.name}/{new.op}" if node.name else "", node.metadata
        edit.replace(node.result, product)
        edit.erase(node)
    return bool(found)


def _place_residuals(graph: Graph, convolutions: Sequence[Node], target: Target, placement: Placement) -> None:
    """Let additions behind convolutions read the residual branch quantized, and what the convolution gives as it is.

    Where both operands come from convolutions that could add the other one in their epilogue, the residual branch is
    the one with fewer layers on its way from the input; the second operand, if there are equally many.
    """
    ends = {end_of(node, target) for node in convolutions}
    depths = _depths(graph, placement)
    for node in graph.nodes:
        operands = _activations(node) if node.op == "Add" else []
        if len(operands) != 2 or operands[0][1] is operands[1][1] or operands[0][1].shape != operands[1][1].shape:
            continue
        others = [(p, o) for p, o in operands if o not in ends or len(o.users) > 1]
        if len(others) < 2:
            position, residual = others[0] if others else min(operands, key=lambda o: (depths.get(o[1], 0), -o[0]))
            placement.read(residual, node, position)


def _depths(graph: Graph, placement: Placement) -> dict[Value, int]:
    """How many layers there are on the longest way to each value."""
    depths: dict[Value, int] = {}
    for node in graph.nodes:
        depth = max((depths.get(o, 0) for o in node.operands if o is not None), default=0)
        depths.update(dict.fromkeys(node.results, depth + (node in placement.integers)))
    return depths


def end_of(node: Node, target: Target) -> Value:
    """What becomes of the result of a node behind the activations that are computed with it."""
    value = node.result
    while True:
        users = value.users
        if len(users) != 1 or users[0].op not in target.absorbs or users[0].graph is not node.graph:
            return value
        bounds = users[0].operands[1:]
        if users[0].given(0) is not value or any(b is not None and b.const is None for b in bounds):
            return value
        value = users[0].result


def _place_other(node: Node, target: Target, placement: Placement) -> None:
    placement.integers[node] = None
    for position, operand in _activations(node):
        placement.read(operand, node, position)
    for result in node.results:
        end = end_of(node, target) if node.op in target.computes else result
        placement.read_everywhere(end)
        if node.op in target.moves or node.op in KEEPS_RANGE:
            placement.source[end] = node.given(0)


def _activations(node: Node) -> list[tuple[int, Value]]:
    """The operands of a node that are floating-point values, and no constants."""
    return [(i, o) for i, o in enumerate(node.operands) if o is not None and o.const is None and o.dtype.is_floating]


def _drawn_in(graph: Graph, layers: set[Node], quantized: set[Value], target: Target) -> list[Node]:
    """Operators without weights that run in integers, because all that they read is quantized, in order."""
    available = set(quantized)
    found: list[Node] = []
    for node in graph.nodes:
        if node in layers or node.op not in target.computes | target.moves:
            continue
        operands = node.operands[:1] if node.op == "Resize" else node.operands  # its scales are no elements
        floats = [o for o in operands if o is not None and o.dtype.is_floating]
        if not floats or not all(o in available for o in floats) or node.attrs.get("mode") == "cubic":
            continue
        found.append(node)
        available.update(node.results)
        if node.op in target.computes:
            available.add(end_of(node, target))
    return _needed(found, layers, target)


def _needed(found: Iterable[Node], layers: set[Node], target: Target) -> list[Node]:
    """Those of ``found`` whose results are read by something that runs in integers."""
    kept: set[Node] = set()
    ordered = list(found)
    for node in reversed(ordered):
        ends = [end_of(node, target)] if node.op in target.computes else list(node.results)
        if any(user in kept or user in layers for end in ends for user in end.users):
            kept.add(node)
    return [node for node in ordered if node in kept]
