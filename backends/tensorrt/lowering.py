"""From the canonical operators to what TensorRT builds: one form after the other, until every node is legal."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import DType, Graph, Node, Value, edit, op
from ...ir.builder import make_node
from ...ir.clone import clone_graph
from ...ir.infer.engine import IllTyped
from ...ir.quantization import FAKE_QUANTIZE
from ...ir.schema import canonical_opset, schema_of
from ...ir.types import compatible, merge
from ...passes.base import Context
from ...passes.pipeline import Pipeline
from ...passes.simplify.eliminate_common_subexpressions import eliminate
from ..base import Lowered, LoweringError, Problem
from ..functions import decompose
from ..legalize import Support, legalize
from ..revisions import revision_at
from .legality import is_quantized_constant, refusal
from .narrow import computed, narrow
from .ops import forms
from .ops.sequences import resolve
from .quantized import encode
from .versions import Version

__all__ = ["Lowered", "lower"]

_WIDER = {  # types in which numbers of another are exact
    DType.BOOL: (DType.INT32, DType.FLOAT),
    DType.INT8: (DType.INT32, DType.FLOAT),
    DType.INT32: (DType.INT64,),
    DType.FLOAT16: (DType.FLOAT,),
    DType.BFLOAT16: (DType.FLOAT,),
}
_DEPTH = 12  # of forms within forms


def lower(graph: Graph, version: Version) -> Lowered:
    """A copy of ``graph`` that ``version`` builds.

    Raises:
        LoweringError: with every node for which there is no way.
    """
    lowered = clone_graph(graph)
    _take_declared(lowered)
    Pipeline("raise-quantization,simplify").run(lowered, Context())
    changed, unresolved = resolve(lowered)
    if changed:
        Pipeline("simplify").run(lowered, Context())
    _drop_unused_results(lowered)
    notes, problems = encode(lowered, version)
    more, others = narrow(lowered, version)
    task = _Lowering(version, unresolved + problems + others)
    for nested in list(lowered.walk_graphs()):
        if nested.root is lowered:
            for node in list(nested.nodes):
                if node.op != FAKE_QUANTIZE:  # else it is among the problems
                    task.reach(node)
    if task.problems:
        raise LoweringError(str(version), task.problems)
    edit.erase_dead(list(lowered.walk()))
    eliminate(lowered, Context())  # every layer has made the same mask
    stamp = legalize(lowered, _Reader(version))
    _name(lowered)
    return Lowered(lowered, stamp, tuple(notes + more))


def _take_declared(graph: Graph) -> None:
    """Give outputs the shapes that the graph declares: forms may need to know sizes that operands decide."""
    for value, info in zip(graph.outputs, graph.output_info, strict=True):
        if value.producer is not None and value.type != info.type and compatible(value.type, info.type):
            edit.set_type(value, merge(value.type, info.type), value.content)


def _drop_unused_results(graph: Graph) -> None:
    """Drop optional results that nothing uses, which TensorRT would have to compute."""
    for node in list(graph.walk()):
        schema = None if node.graphs else schema_of(node.op)
        used = max((i + 1 for i, r in enumerate(node.results) if r.users), default=1)
        if schema is None or not schema.min_output <= used < len(node.results) <= len(schema.outputs):
            continue
        if any(formal.option.name != "Optional" for formal in schema.outputs[used : len(node.results)]):
            continue
        copy = Node(node.op, node.operands, dict(node.attrs), used, name=node.name)
        copy.metadata = node.metadata
        edit.insert(copy, node)
        for old, new in zip(node.results, copy.results, strict=False):
            new.name = old.name
            edit.set_type(new, old.type, old.content)
            edit.replace(old, new)
        edit.erase(node)


class _Lowering:
    """One run of `lower`; ``problems``: the nodes for which there is no way."""

    def __init__(self, version: Version, problems: list[Problem]):
        self.version = version
        self.problems = problems
        self._bodies: dict[object, Graph | None] = {}

    def reach(self, node: Node, depth: int = 0) -> None:
        """Leave ``node`` if it is legal, or put others in its place."""
        reason = refusal(node, self.version)
        if not reason:
            return
        new = self.changed(node) if depth < _DEPTH else None
        if new is None:
            self.problems.append(Problem(node, reason))
            return
        for made in new:
            for inner in (made, *(n for g in made.graphs for n in g.walk())):
                self.reach(inner, depth + 1)

    def changed(self, node: Node) -> list[Node] | None:
        """The nodes of a form of ``node``, now in its place; None if there is none."""
        form, values = forms().get(node.op), _with_computed(node, self.version)
        if values is None and form is not None:
            values = form(node, self.version)
        if values is None:
            values = retyped(node, self.version)
        if values is not None:
            return substitute(node, values)
        return decompose(node, self._bodies)


def _with_computed(node: Node, version: Version) -> Sequence[Value] | None:
    """``node`` with operators that make its quantized constants; None if that does not make it legal."""
    if node.graphs or not any(is_quantized_constant(o) for o in node.operands):
        return None
    operands = tuple(computed(o) if o is not None and is_quantized_constant(o) else o for o in node.operands)
    try:
        made = make_node(node.op, operands, dict(node.attrs), len(node.results))
    except IllTyped:  # its other operands have wider types by now
        return None
    return made.results if not refusal(made, version) else None


def retyped(node: Node, version: Version) -> list[Value] | None:
    """What ``node`` computes, exactly, in a wider type between casts; None if no type makes it legal."""
    if node.domain or node.graphs:
        return None
    types = {v.dtype for v in (*node.operands, *node.results) if v is not None}
    for own in types & _WIDER.keys():
        for wide in _WIDER[own]:
            operands = [op.Cast(o, to=wide) if o is not None and o.dtype is own else o for o in node.operands]
            try:
                made = make_node(node.op, tuple(operands), dict(node.attrs), len(node.results))
            except IllTyped:
                continue
            if not refusal(made, version):
                pairs = zip(made.results, node.results, strict=True)
                return [new if new.dtype is old.dtype else op.Cast(new, to=old.dtype) for new, old in pairs]
    return None


def substitute(node: Node, values: Sequence[Value]) -> list[Node]:
    """Put floating ``values`` in the place of the results of ``node``; returns the new nodes."""
    made = edit.insert_floating(values, node)
    for new in made:
        new.name = f"{node.name}/{new.op}" if node.name else ""
        new.metadata = dict(node.metadata) if node.metadata else None
    for old, value in zip(node.results, values, strict=True):
        edit.replace(old, value)
    edit.erase(node)
    return made


class _Reader:
    """What the parser of ``version`` reads, for the choice of the version to state."""

    ir_version = 10

    def __init__(self, version: Version):
        self.version = version
        self.name = str(version)

    @property
    def opset(self) -> int:
        """The newest version of the standard operators."""
        return min(self.version.opset, canonical_opset())

    def since(self, op: str, opset: int) -> int:
        """The version of the definition of ``op`` in version ``opset``."""
        revision = revision_at(op, opset)
        return 0 if revision is None else revision.since

    def support(self, node: Node, since: int, opset: int) -> Support:
        """All nodes are legal by now."""
        return Support.FULL

    def is_slow(self, op: str, since: int) -> bool:
        """No: TensorRT has one implementation of each."""
        return False


def _name(graph: Graph) -> None:
    """Give every node a name of its own, by which TensorRT's layers and errors are mapped back."""
    seen: set[str] = set()
    for i, node in enumerate(graph.walk()):
        name = node.name or f"{node.op}_{i}"
        while name in seen:
            name = f"{name}_{i}"
        seen.add(name)
        node.name = name
