"""Function bodies: the standard defines many operators by others, and what lacks an operator may run its body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..ir.clone import clone_node, inline_graph
from ..ir.edit import erase, insert, replace
from ..ir.errors import ModelError
from ..ir.graph import Graph, Node
from ..ir.opsets import is_compatible
from ..ir.schema import canonical_opset, default_attribute, schema_of
from ..ir.types import Type

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto

__all__ = ["decompose", "is_valid_at", "isolate"]

_DOMAIN = "planish.body"


def isolate(node: Node, types: Iterable[Type | None]) -> Graph:
    """A graph that holds a copy of ``node`` alone, with an input of each type; None leaves the operand out."""
    root = node.graph.root if node.graph is not None else None
    graph = Graph("single", opsets={"": canonical_opset()})
    if node.domain:
        graph.opsets[node.domain] = root.opsets.get(node.domain, 1) if root is not None else 1
    copy = clone_node(node, {})
    copy.operands = tuple([None if t is None else graph.add_input(t, f"operand_{i}") for i, t in enumerate(types)])
    insert(copy, graph.ret)
    for i, result in enumerate(copy.results):
        result.name = f"result_{i}"
    graph.set_outputs(copy.results)
    return graph


def decompose(node: Node, known: dict[Any, Graph | None]) -> list[Node] | None:
    """Put the body of the function that defines its operator in the place of ``node``.

    Args:
        node: the node, in a graph.
        known: remembers bodies, for nodes with the same types and attributes.

    Returns:
        the nodes of the body; None if the operator has no body, or none for these operands and attributes.
    """
    schema = schema_of(node.op)
    if schema is None or not (schema.has_function or schema.has_context_dependent_function):
        return None
    types = tuple(None if o is None else o.type for o in node.operands)
    key = (node.op, len(node.results), tuple(node.attrs.items()), types)
    if key not in known:
        known[key] = _body(node, schema)
    body = known[key]
    if body is None:
        return None
    previous, graph = node.prev, node.graph
    assert graph is not None
    results = inline_graph(body, [o for o in node.operands if o is not None], node)
    new: list[Node] = []
    at = graph._first if previous is None else previous.next
    while at is not None and at is not node:
        at.metadata = dict(node.metadata) if node.metadata else None
        at.name = f"{node.name}/{at.name}" if node.name else at.name
        new.append(at)
        at = at.next
    for old, result in zip(node.results, results, strict=True):
        if result.producer in new:
            result.name = old.name
        replace(old, result)
    erase(node)
    return new


def _body(node: Node, schema: Any) -> Graph | None:
    """The body as a graph, whose inputs are the operands that are there."""
    from ..ir.convert.proto import from_proto, to_proto

    single = isolate(node, [None if o is None else o.type for o in node.operands])
    call = next(single.nodes)
    for name in schema.attributes:
        default = default_attribute(node.op, name)
        if name not in call.attrs and default is not None:
            call.attrs[name] = default
    model = to_proto(single)
    function = _function(schema, model)
    if function is None or not is_valid_at(function, canonical_opset()):
        return None
    _call(model, function)
    try:
        return from_proto(model)
    except ModelError:
        return None


def _function(schema: Any, model: ModelProto) -> FunctionProto | None:
    """The function of ``schema`` for the only node of ``model``."""
    from onnx import FunctionProto, TypeProto

    if schema.has_function:
        data = schema.get_function_with_opset_version(max(schema.function_opset_versions))
    else:
        node: NodeProto = model.graph.node[0]
        types = {v.name: v.type for v in model.graph.input}
        operands = [types.get(name, TypeProto()).SerializeToString() for name in node.input]
        version = max(schema.context_dependent_function_opset_versions)
        try:
            data = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), operands)
        except Exception:  # noqa: BLE001 - the builders fail in their own ways on what they do not foresee
            return None
    return FunctionProto.FromString(data) if data else None


def is_valid_at(function: FunctionProto, opset: int) -> bool:
    """Whether the standard operators that ``function`` uses still mean the same in version ``opset``."""
    import onnx.defs

    written = next((i.version for i in function.opset_import if i.domain in ("", "ai.onnx")), opset)
    for op in {n.op_type for n in function.node if n.domain in ("", "ai.onnx")}:
        version = opset
        while version > written:
            try:
                since = onnx.defs.get_schema(op, version, "").since_version
            except onnx.defs.SchemaError:
                return False
            if since > written and not is_compatible(op, since):
                return False
            version = since - 1
    return True


def _call(model: ModelProto, function: FunctionProto) -> None:
    """Make the only node of ``model`` a call of ``function``."""
    function.domain = _DOMAIN
    for entry in function.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = canonical_opset()
    node = model.graph.node[0]
    node.domain, node.op_type, node.overload = _DOMAIN, function.name, ""
    model.opset_import.add(domain=_DOMAIN, version=1)
    model.functions.append(function)
