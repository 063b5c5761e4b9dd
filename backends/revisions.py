"""Revisions of the standard operators, and in which of them a node means what it means now.

A node may be stated in every earlier version of the operator set that is reached by walking back through the revisions
of its operator for as long as each only added to it (`planish.ir.opsets`) and the node uses none of the additions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from ..ir.graph import Node, Value
from ..ir.opsets import OLDEST, is_compatible
from ..ir.schema import canonical_opset, default_attribute
from ..ir.types import OptionalType, SequenceType, TensorType, Type

__all__ = ["Revision", "kind_of", "oldest_opset", "revision_at", "revisions"]


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
_SAME: dict[tuple[str, int], Callable[[Node], bool]] = {  # revisions that changed what these nodes do not use
    ("Split", 18): lambda node: node.operand(1) is not None,
}
_NEGATIVE_AXES = 11  # the version in which every axis may count from the back


def oldest_opset(node: Node, floor: int = OLDEST) -> int:
    """The oldest version of the standard operators, not below ``floor``, in which ``node`` means what it means now."""
    history = revisions(node.op)
    for newer, older in pairwise(history):
        since = newer.since
        if since <= floor:
            return floor
        test = _USES_ADDITION.get((node.op, since))
        same = _SAME.get((node.op, since))
        changed = not is_compatible(node.op, since) and (same is None or not same(node))
        if changed or (test is not None and test(node)) or not _fits(node, older):
            return since
        if since == _NEGATIVE_AXES and _has_negative_axis(node):
            return since
    return max(history[-1].since, floor) if history else floor


_LOOK_AT_SHAPES = frozenset(op for op, since in _USES_ADDITION if since in (8, 13))


def kind_of(node: Node) -> tuple[object, ...]:
    """What `oldest_opset` and a runtime look at: nodes of one kind are alike to them."""
    values = (*node.operands, *node.results)
    types: tuple[object, ...]
    if node.op in _LOOK_AT_SHAPES or any(v is not None and not isinstance(v.type, TensorType) for v in values):
        types = tuple([None if v is None else v.type for v in values])
    else:
        types = tuple([None if v is None else v.type.dtype for v in values])  # type: ignore[union-attr]
    return node.op, len(node.operands), types, tuple(node.attrs.items())
