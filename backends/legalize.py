"""From the canonical opset to what a runtime reads: choosing the version to state, and lowering the nodes beyond it.

A node may be stated in every earlier version of the operator set in which it means the same: walk back through the
revisions of its operator for as long as each only added (`planish.ir.opsets`) and the node uses none of the additions.
A node for which that does not reach far enough is replaced by the body of the function that defines its operator in the
standard, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

from ..ir.clone import clone_node, inline_graph
from ..ir.edit import erase, insert, replace, set_attr
from ..ir.graph import Graph, Node, Value
from ..ir.opsets import OLDEST, is_compatible
from ..ir.schema import canonical_opset, default_attribute
from ..ir.types import OptionalType, OtherType, SequenceType, TensorType, Type
from .base import LoweringError, Problem

__all__ = ["Revision", "Stamp", "Target", "isolate", "legalize", "oldest_opset", "revision_at"]

MAX_DEPTH = 8  # of functions within functions


class Target(Protocol):
    """What a runtime reads.

    Attributes:
        name: for messages.
        opset: the newest version of the standard operators.
        ir_version: the newest version of the file format.
    """

    name: str
    opset: int
    ir_version: int

    def runs(self, node: Node, since: int) -> bool:
        """Whether it implements the operator of ``node``, in the revision of version ``since`` (0: not a standard one)."""
        ...


class Stamp(NamedTuple):
    """The versions to state in a model."""

    opset: int
    ir_version: int


# revisions of operators


class Formal(NamedTuple):
    """A formal operand or result: the types it takes, and the type variable that it shares with others, or ""."""

    types: frozenset[str]
    variable: str


class Revision(NamedTuple):
    """One version of an operator's definition, out of onnx's schema. ``has_body``: it is defined as a function."""

    since: int
    attrs: frozenset[str]
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    min_inputs: int
    max_inputs: int
    max_outputs: int
    has_body: bool


@cache
def revisions(op: str) -> tuple[Revision, ...]:
    """The revisions of a standard operator, newest first, none newer than the canonical opset."""
    import onnx.defs

    found = []
    version = canonical_opset()
    while version > 0:
        try:
            schema = onnx.defs.get_schema(op, version, "")
        except onnx.defs.SchemaError:
            break
        found.append(_revision(schema))
        version = schema.since_version - 1
    return tuple(found)


def _revision(schema: Any) -> Revision:
    return Revision(
        schema.since_version,
        frozenset(schema.attributes),
        tuple(_formals(schema.inputs, schema)),
        tuple(_formals(schema.outputs, schema)),
        schema.min_input,
        schema.max_input,
        schema.max_output,
        schema.has_function or schema.has_context_dependent_function,
    )


def _formals(formals: Iterable[Any], schema: Any) -> Iterator[Formal]:
    variables = {c.type_param_str for c in schema.type_constraints}
    for f in formals:
        yield Formal(frozenset(f.types), f.type_str if f.type_str in variables and f.is_homogeneous else "")


def revision_at(op: str, opset: int) -> Revision | None:
    """The revision of a standard operator that version ``opset`` holds, or None if it has no such operator."""
    return next((r for r in revisions(op) if r.since <= opset), None)


def _type_text(type_: Type) -> str:
    """``type_`` as schemas write it; "" where it is not known."""
    match type_:
        case TensorType(dtype=dtype):
            return f"tensor({dtype.text})" if dtype else ""
        case OptionalType(element=element):
            return f"optional({inner})" if (inner := _type_text(element)) else ""
        case SequenceType(element=element):
            return f"seq({inner})" if (inner := _type_text(element)) else ""
    return ""


def _types_fit(values: Iterable[Value | None], formals: tuple[Formal, ...], bound: dict[str, str]) -> bool:
    for i, value in enumerate(values):
        text = "" if value is None else _type_text(value.type)
        if not text:
            continue
        formal = formals[min(i, len(formals) - 1)]
        if text not in formal.types or (formal.variable and bound.setdefault(formal.variable, text) != text):
            return False
    return True


def _fits(node: Node, revision: Revision) -> bool:
    """Whether ``node`` is well-formed in ``revision``, but for attributes that state their default."""
    if not revision.min_inputs <= len(node.operands) <= revision.max_inputs or len(node.results) > revision.max_outputs:
        return False
    for name, value in node.attrs.items():
        if name not in revision.attrs and value != default_attribute(node.op, name):
            return False
    bound: dict[str, str] = {}
    return _types_fit(node.operands, revision.inputs, bound) and _types_fit(node.results, revision.outputs, bound)


# what revisions added without a sign of it in names, counts and types


def _has_negative_axis(node: Node) -> bool:
    axes = node.attrs.get("axis", node.attrs.get("axes", 0))
    return any(a < 0 for a in (axes if isinstance(axes, tuple) else (axes,)))


def _broadcasts(node: Node) -> bool:
    shapes = {o.shape for o in node.operands if o is not None}
    return len(shapes) > 1 or None in shapes


def _scale_is_no_scalar(node: Node) -> bool:
    scale = node.operand(1)
    return scale is None or scale.shape not in ((), (1,))


_ADDED = {
    ("Max Min Mean Sum", 8): _broadcasts,
    ("QuantizeLinear DequantizeLinear", 13): _scale_is_no_scalar,
    ("ScatterElements ScatterND", 18): lambda node: node.attrs.get("reduction") in ("max", "min"),
    ("Pad", 19): lambda node: node.attrs.get("mode") == "wrap",
    ("Resize", 19): lambda node: node.attrs.get("coordinate_transformation_mode") == "half_pixel_symmetric",
    ("Mod", 28): lambda node: not node.attrs.get("fmod", 0) and not (node.operands[0] and node.operands[0].dtype.is_integer),
}
_USES_ADDITION = {(op, since): test for (ops, since), test in _ADDED.items() for op in ops.split()}
_NEGATIVE_AXES = 11  # the version in which every axis may count from the back


def oldest_opset(node: Node, floor: int = OLDEST) -> int:
    """The oldest version of the standard operators, not below ``floor``, in which ``node`` means what it means now."""
    history = revisions(node.op)
    for newer, older in zip(history, history[1:], strict=False):
        since = newer.since
        if since <= floor:
            return floor
        test = _USES_ADDITION.get((node.op, since))
        if not is_compatible(node.op, since) or (test is not None and test(node)) or not _fits(node, older):
            return since
        if since == _NEGATIVE_AXES and _has_negative_axis(node):
            return since
    return max(history[-1].since, floor) if history else floor


# legalization


def legalize(graph: Graph, target: Target) -> Stamp:
    """Rewrite ``graph`` in place into what ``target`` reads; the result still is in canonical form.

    The version to state is the one that the model was imported in, where that does; else the nearest that does.

    Returns:
        the versions to state in the model.

    Raises:
        LoweringError: with every node for which there is no way.
    """
    imported = int(graph.info.get("imported_opset") or graph.opsets.get("") or OLDEST)
    floor = max(OLDEST, min(imported, target.opset))
    oldest: dict[Node, int] = {}
    problems: list[Problem] = []
    for nested in list(graph.walk_graphs()):
        for node in list(nested.nodes):
            _reach(node, target, floor, oldest, problems, 0)
    opset = _choose(oldest, target, floor)
    problems.extend(Problem(n, "not implemented") for n in _not_run(oldest, target, opset))
    if problems:
        raise LoweringError(target.name, problems)
    for node in oldest:
        _drop_defaults(node, opset)
    return Stamp(opset, _ir_version(graph, opset, target))


def _reach(node: Node, target: Target, floor: int, oldest: dict[Node, int], problems: list[Problem], depth: int) -> None:
    """Note down the oldest version for ``node``, or for the nodes of the function body that takes its place."""
    if "." in node.op:
        if not target.runs(node, 0):
            problems.append(Problem(node, "not implemented"))
        return
    history = revisions(node.op)
    version = oldest_opset(node, floor)
    if history and version <= target.opset and _runs_somewhere(node, target, version):
        oldest[node] = version
        return
    body = _decompose(node) if depth < MAX_DEPTH and history and history[0].has_body else None
    if body is not None:
        for new in body:
            for inner in (new, *(n for g in new.graphs for n in g.walk())):
                _reach(inner, target, floor, oldest, problems, depth + 1)
    elif not history:
        problems.append(Problem(node, "no such operator"))
    elif version > target.opset:
        problems.append(Problem(node, f"needs opset {version}; the newest that {target.name} reads is {target.opset}"))
    else:
        problems.append(Problem(node, "not implemented"))


def _runs_somewhere(node: Node, target: Target, oldest: int) -> bool:
    """Whether ``target`` implements a revision of ``node`` from ``oldest`` on."""
    found = revision_at(node.op, oldest)
    least = found.since if found is not None else oldest
    return any(target.runs(node, r.since) for r in revisions(node.op) if least <= r.since <= target.opset)


def _choose(oldest: dict[Node, int], target: Target, floor: int) -> int:
    """The version to state: the first from ``floor`` up in which most nodes run."""
    lowest = max([floor, *oldest.values()])
    kinds = {(n.op, o): n for n, o in oldest.items()}  # implementations are per operator
    best = min(range(lowest, target.opset + 1), key=lambda v: (len(_not_run(dict.fromkeys(kinds.values(), 0), target, v)), v))
    return best


def _not_run(nodes: Iterable[Node], target: Target, opset: int) -> list[Node]:
    return [n for n in nodes if (r := revision_at(n.op, opset)) is None or not target.runs(n, r.since)]


def _drop_defaults(node: Node, opset: int) -> None:
    """Remove the attributes that version ``opset`` does not know: they state their defaults."""
    revision = revision_at(node.op, opset)
    if revision is not None:
        for name in [n for n in node.attrs if n not in revision.attrs]:
            set_attr(node, name)


def _ir_version(graph: Graph, opset: int, target: Target) -> int:
    import onnx.helper

    imports = [onnx.helper.make_opsetid(d, opset if not d else v) for d, v in graph.opsets.items()]
    needed = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return min(max(needed, int(graph.info.get("ir_version", 0)), 8), target.ir_version)


# function bodies


def isolate(node: Node, types: Iterable[Type | None]) -> Graph:
    """A graph that holds a copy of ``node`` alone, with an input of each type; None leaves the operand out."""
    graph = Graph("single", opsets={"": canonical_opset(), **({node.domain: _domain_version(node)} if node.domain else {})})
    copy = clone_node(node, {})
    copy.operands = tuple(None if t is None else graph.add_input(t, f"operand_{i}") for i, t in enumerate(types))
    insert(copy, graph.ret)
    for i, result in enumerate(copy.results):
        result.name = f"result_{i}"
    graph.set_outputs(copy.results)
    return graph


def _domain_version(node: Node) -> int:
    return node.graph.root.opsets.get(node.domain, 1) if node.graph is not None else 1


def _decompose(node: Node) -> list[Node] | None:
    """Put the body of the standard's definition in the place of ``node``; None if onnx has none for it as it is."""
    import onnx.inliner

    from ..ir.convert.proto import from_proto, to_proto

    types = [None if o is None else o.type for o in node.operands]
    if any(isinstance(t, OtherType) for t in types):
        return None
    model = onnx.inliner.inline_selected_functions(to_proto(isolate(node, types)), [("", node.op)], inline_schema_functions=True)
    if any(n.op_type == node.op and n.domain in ("", "ai.onnx") for n in model.graph.node):
        return None
    body = from_proto(model)
    previous = node.prev
    results = inline_graph(body, [o for o in node.operands if o is not None], node)
    first = node.graph._first if previous is None else previous.next  # type: ignore[union-attr]
    new = []
    while first is not None and first is not node:
        first.metadata = node.metadata
        first.name = f"{node.name}/{first.name}" if node.name else first.name
        new.append(first)
        first = first.next
    for old, result in zip(node.results, results, strict=True):
        result.name = old.name or result.name
        replace(old, result)
    erase(node)
    return new
