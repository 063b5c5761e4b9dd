"""What must be known before a graph is traced: which inputs decide shapes, what is a weight, what cannot be lowered."""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.graph import Graph, Node, Value
from ...ir.tensor import Tensor
from ..base import LoweringError, Problem
from .flow import deciding, is_decided, loop_around, step_back
from .lowering import find, has_strings
from .words import unknown_word

__all__ = ["Plan", "read_by"]

_CODES = 1 << 10  # elements from which on integers of eight bits and less are weights
_LARGE = 1 << 24  # bytes from which on any constant is passed, so that it does not become part of the program


class Plan:
    """A lowered graph, and what follows from it alone.

    Attributes:
        graph: the graph.
        known: the values whose elements decide shapes.
        static_inputs: the positions of those inputs of the graph that are among them.
        unrolled: the loops whose iterations decide shapes.
        data_dependent: the nodes whose results have shapes that depend on data: they run, but are traced only where
            their results are padded.
        weights: the name of each constant that is passed as a parameter; tied ones have one name.
        tensors: the weights by name.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self._last_uses: dict[Graph, dict[Node, list[Value]]] = {}
        self.known: set[Value] = set()
        self.unrolled: set[Node] = set()
        self.data_dependent: list[Node] = []
        self._decided: list[Node] = []  # as those, but what the shapes depend on is known when the graph is traced
        self._problems = list(self._unlowerable())
        if self._problems:
            raise LoweringError("xla", self._problems)
        self._find_known()
        self.static_inputs = tuple(i for i, v in enumerate(graph.inputs) if v in self.known)
        self.weights: dict[Value, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self._name_weights()

    def last_uses(self, graph: Graph) -> dict[Node, list[Value]]:
        """For each node of ``graph``, the values of ``graph`` that nothing uses after it."""
        found = self._last_uses.get(graph)
        if found is None:
            last: dict[Value, Node] = {}
            for node in graph.nodes:
                last.update(dict.fromkeys(node.results, node))
                last.update((v, node) for v in read_by(node) if v in last or v.graph is graph)
            for value in graph.outputs:
                last.pop(value, None)
            found = self._last_uses[graph] = {}
            for value, node in last.items():
                found.setdefault(node, []).append(value)
        return found

    # what cannot be lowered

    def _unlowerable(self) -> Iterator[Problem]:
        for node in self.graph.walk():
            lowering = find(node.op)
            if lowering is None:
                yield Problem(node, "has no lowering to JAX")
            elif any(has_strings(v.type) for v in (*node.operands, *node.results) if v is not None):
                yield Problem(node, "works on strings, which XLA does not have")
            elif reason := unknown_word(node) or (lowering.refuses and lowering.refuses(node)):
                yield Problem(node, reason)
            elif lowering.depends_on_data(node):
                (self._decided if is_decided(deciding(node)) else self.data_dependent).append(node)

    # what decides shapes

    def _find_known(self) -> None:
        """Follow what decides shapes back to constants, shapes and inputs."""
        pending: list[Value] = []
        for node in self.graph.walk():
            lowering = find(node.op)
            assert lowering is not None
            pending += [o for i in lowering.static_operands(node) if (o := node.operand(i)) is not None]
        for node in self._decided:
            pending += deciding(node)
            if node.graphs:
                self.unrolled.add(node)
        while pending:
            value = pending.pop()
            if value not in self.known:
                self.known.add(value)
                if (loop := loop_around(value)) is not None:
                    self.unrolled.add(loop)
                pending += step_back(value)

    # weights

    def _name_weights(self) -> None:
        names: dict[int, str] = {}
        for value in self.graph.constants():
            tensor = value.const
            if tensor is None or value in self.known or not _is_weight(tensor):
                continue
            if id(tensor) not in names:
                name = value.name or tensor.name or "weight"
                if name in self.tensors:
                    name = next(n for i in range(2, len(self.tensors) + 3) if (n := f"{name}_{i}") not in self.tensors)
                names[id(tensor)] = name
                self.tensors[name] = tensor
            self.weights[value] = names[id(tensor)]


def _is_weight(tensor: Tensor) -> bool:
    """Floating-point numbers but for scalars, the codes of quantized ones, and whatever is very large."""
    if tensor.dtype.is_floating and tensor.dtype.bits >= 16:
        return len(tensor.shape) > 0
    is_code = tensor.dtype.bits <= 8 and tensor.dtype.name != "BOOL" and tensor.size >= _CODES
    return is_code or tensor.nbytes >= _LARGE


def read_by(node: Node) -> Iterator[Value]:
    """All values that ``node`` reads, those that its nested graphs capture included."""
    yield from (o for o in node.operands if o is not None)
    for graph in node.graphs:
        for inner in graph.nodes:
            yield from read_by(inner)
        yield from graph.outputs
