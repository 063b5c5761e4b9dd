"""From the canonical opset to what a runtime reads: choosing the version to state, and lowering the nodes beyond it.

A node may be stated in every earlier version of the operator set in which it means the same: walk back through the
revisions of its operator for as long as each only added (`planish.ir.opsets`) and the node uses none of the additions.
A node for which that does not reach far enough is replaced by the body of the function that defines its operator in the
standard, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from ..ir.edit import set_attr
from ..ir.graph import Graph, Node, Value
from ..ir.opsets import OLDEST, is_compatible
from ..ir.schema import canonical_opset, default_attribute
from ..ir.types import DType, OptionalType, SequenceType, TensorType, Type
from .base import LoweringError, Problem
from .functions import decompose

__all__ = ["Revision", "Stamp", "Support", "Target", "legalize", "oldest_opset", "revision_at"]

MAX_DEPTH = 8  # of functions within functions


class Support(IntEnum):
    """How well a runtime implements a node."""

    NONE = 0
    PERHAPS = 1  # it has an implementation, though for other types
    FULL = 2


class Target(Protocol):
    """What a runtime reads; ``name`` is for messages."""

    name: str

    @property
    def opset(self) -> int:
        """The newest version of the standard operators."""
        ...

    @property
    def ir_version(self) -> int:
        """The newest version of the file format."""
        ...

    def since(self, op: str, opset: int) -> int:
        """The version of its definition of a standard operator in models of version ``opset``; 0 if it has none."""
        ...

    def support(self, node: Node, since: int, opset: int) -> Support:
        """How it implements that definition of the operator of ``node`` (both 0: of another operator set)."""
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


def _is_integer(value: Value | None) -> bool:
    return value is not None and value.dtype.is_integer


_ADDED: dict[tuple[str, int], Callable[[Node], bool]] = {
    ("Max Min Mean Sum", 8): _broadcasts,
    ("QuantizeLinear DequantizeLinear", 13): _scale_is_no_scalar,
    ("ScatterElements ScatterND", 18): lambda node: node.attrs.get("reduction") in ("max", "min"),
    ("Pad", 19): lambda node: node.attrs.get("mode") == "wrap",
    ("Resize", 19): lambda node: node.attrs.get("coordinate_transformation_mode") == "half_pixel_symmetric",
    ("Mod", 28): lambda node: not node.attrs.get("fmod", 0) and not _is_integer(node.operand(0)),
}
_USES_ADDITION = {(op, since): test for (ops, since), test in _ADDED.items() for op in ops.split()}
_NEGATIVE_AXES = 11  # the version in which every axis may count from the back


def oldest_opset(node: Node, floor: int = OLDEST) -> int:
    """The oldest version of the standard operators, not below ``floor``, in which ``node`` means what it means now."""
    history = revisions(node.op)
    for newer, older in pairwise(history):
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
    imported = int(graph.info.get("imported_opset") or graph.opsets.get("") or target.opset)
    task = _Legalization(target, max(OLDEST, min(imported, target.opset)))
    for nested in list(graph.walk_graphs()):
        if nested.root is graph:  # not that of a node which its function body has replaced
            for node in list(nested.nodes):
                task.reach(node)
    opset = task.choose()
    if task.problems:
        raise LoweringError(target.name, task.problems)
    for node in task.oldest:
        _drop_defaults(node, target.since(node.op, opset))
    return Stamp(opset, _ir_version(graph, opset, target))


class _Legalization:
    """One run of `legalize`.

    Attributes:
        oldest: for every standard node, the oldest version that will do; exact only above ``wished``.
        problems: the nodes for which there is no way.
        bodies: of functions.
    """

    def __init__(self, target: Target, wished: int):
        self.target = target
        self.wished = wished
        self.oldest: dict[Node, int] = {}
        self.problems: list[Problem] = []
        self.bodies: dict[Any, Graph | None] = {}

    def reach(self, node: Node, depth: int = 0) -> None:
        """Note down the oldest version for ``node``, or for the nodes of the function body that takes its place."""
        version = 0
        if "." not in node.op:
            version = oldest_opset(node, self.wished)
            if self.runs_from(node, version):
                self.oldest[node] = version
                return
        elif self.target.support(node, 0, 0):
            return
        body = decompose(node, self.bodies) if depth < MAX_DEPTH else None
        if body is None:
            self.problems.append(Problem(node, self.reason(node, version)))
            return
        for new in body:
            for inner in (new, *(n for g in new.graphs for n in g.walk())):
                self.reach(inner, depth + 1)

    def reason(self, node: Node, version: int) -> str:
        """Why there is no way for ``node``."""
        if "." not in node.op and not revisions(node.op):
            return "no such operator"
        if version > self.target.opset:
            return f"needs opset {version}; the newest that {self.target.name} reads is {self.target.opset}"
        return "not implemented"

    def runs_from(self, node: Node, version: int) -> bool:
        """Whether ``node`` runs in some version of the operator set, ``version`` or another that will do."""
        if any(self.support(node, version, v) for v in range(version, self.target.opset + 1)):
            return True
        if version > self.wished:
            return False
        version = oldest_opset(node)
        return any(self.support(node, version, v) for v in range(version, self.wished))

    def support(self, node: Node, oldest: int, opset: int) -> Support:
        """How ``node``, which means the same from version ``oldest`` on, runs in a model of version ``opset``."""
        since = self.target.since(node.op, opset)
        least = revision_at(node.op, oldest)
        if opset < oldest or least is None or since < least.since:
            return Support.NONE
        return self.target.support(node, since, opset)

    def choose(self) -> int:
        """The version to state: where most nodes run, and then as near to the wished one as possible, or newer."""
        versions = range(max([self.wished, *self.oldest.values()]), self.target.opset + 1)
        best = self.best(versions)
        if best is None or best[:2] != (0, 0):  # neither the wished version nor a newer one suits all nodes
            self.oldest = {n: oldest_opset(n) for n in self.oldest}
            best = self.best(range(max([OLDEST, *self.oldest.values()]), self.target.opset + 1))
        if best is None:
            return self.target.opset
        opset = best[-1]
        lacking = [n for n, oldest in self.oldest.items() if not self.support(n, oldest, opset)]
        reason = f"not implemented in opset {opset}, which other nodes need"
        self.problems.extend(Problem(n, reason) for n in lacking)
        return opset

    def best(self, versions: Iterable[int]) -> tuple[int, int, bool, int, int] | None:
        """The best of ``versions``: kinds of nodes without and with doubtful support, and, at the end, the version."""
        kinds = {(n.op, oldest, _dtypes(n)): (n, oldest) for n, oldest in self.oldest.items()}.values()

        def rating(version: int) -> tuple[int, int, bool, int, int]:
            found = [self.support(n, oldest, version) for n, oldest in kinds]
            older = version < self.wished
            return found.count(Support.NONE), found.count(Support.PERHAPS), older, abs(version - self.wished), version

        return min(map(rating, versions), default=None)


def _dtypes(node: Node) -> tuple[DType | None, ...]:
    return tuple([None if v is None else v.dtype for v in (*node.operands, *node.results)])


def _drop_defaults(node: Node, since: int) -> None:
    """Remove the attributes that the definition of version ``since`` does not know: they state their defaults."""
    revision = revision_at(node.op, since)
    if revision is not None:
        for name in [n for n in node.attrs if n not in revision.attrs]:
            set_attr(node, name)


def _ir_version(graph: Graph, opset: int, target: Target) -> int:
    import onnx.helper

    imports = [onnx.helper.make_opsetid(d, v if d else opset) for d, v in graph.opsets.items()]
    needed = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return min(max(needed, int(graph.info.get("ir_version", 0)), 8), target.ir_version)
