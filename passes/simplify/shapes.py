"""Shape arithmetic under symbolic dimensions: known shapes, and the cheapest computation of others."""

from __future__ import annotations

import itertools

from ...ir import Node, Value, constant, op
from ...ir.dims import Dim
from ...ir.infer import content_of
from ...ir.types import DType
from ..rules import require, rule
from .fold_constants import integers

# operators that compute contents from contents: worth replacing by one look at a shape
_ARITHMETIC = (
    "Concat",
    "Gather",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Reshape",
    "Cast",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Where",
    "Expand",
    "Flatten",
    "Transpose",
    "Min",
    "Max",
    "ReduceProd",
)


@rule("Shape")
def shape_of_same_shaped(node: Node) -> Value | None:
    """The shape of a result is taken from a graph input of the same shape, so that the result need not be kept."""
    content, x = content_of(node.results[0]), node.operands[0]
    assert x is not None
    if not content or x.producer is None or x.shape is None:
        return None
    return _read_from_inputs(node, content)


@rule(*_ARITHMETIC)
def dims_from_input(node: Node) -> Value | None:
    """A computed tensor of sizes that are adjacent dimensions of a graph input is a piece of the input's shape."""
    result = node.results[0]
    content = result.content
    if content is None or result.dtype is not DType.INT64 or not content or all(isinstance(d, int) for d in content):
        return None
    if result.rank == 0:
        return _scalar_from_inputs(node, content[0])
    return _read_from_inputs(node, content) if result.rank == 1 else None


def _read_from_inputs(node: Node, content: tuple[Dim, ...]) -> Value | None:
    found = _find_dims(node, content)
    require(found is not None, "no graph input has these dimensions")
    assert found is not None
    source, start = found
    if node.op == "Shape" and node.operands[0] is source:
        return None
    assert source.shape is not None
    end = start + len(content)
    return op.Shape(source, start=start or None, end=end if end < len(source.shape) else None)


def _scalar_from_inputs(node: Node, dim: Dim) -> Value | None:
    """A scalar size: Squeeze of a Shape (which other scalars and lists of sizes share)."""
    if (
        node.op == "Squeeze"
        and node.operands[0] is not None
        and node.operands[0].producer is not None
        and node.operands[0].producer.op == "Shape"
    ):
        return None
    found = _find_dims(node, (dim,))
    require(found is not None, "no graph input has this dimension")
    assert found is not None
    source, start = found
    assert source.shape is not None
    shape = op.Shape(source, start=start or None, end=start + 1 if start + 1 < len(source.shape) else None)
    return op.Squeeze(shape)


def _find_dims(node: Node, content: tuple[Dim, ...]) -> tuple[Value, int] | None:
    """A graph input that is in scope at ``node`` and has ``content`` as adjacent dimensions, and where they begin."""
    graph = node.graph
    while graph is not None:
        for value in graph.inputs:
            shape = value.shape or ()
            for start in range(len(shape) - len(content) + 1):
                if shape[start : start + len(content)] == content:
                    return value, start
        graph = graph.parent.graph if graph.parent is not None else None
    return None


@rule("Shape")
def shape_attributes(node: Node) -> Value | None:
    """``start=0`` and an ``end`` at or beyond the rank are the defaults; without them equal shapes look equal."""
    rank = node.operands[0].rank if node.operands[0] is not None else None
    start, end = node.attrs.get("start"), node.attrs.get("end")
    if rank is None or (start is None and end is None):
        return None
    low = 0 if start is None else min(max(start + rank if start < 0 else start, 0), rank)
    high = rank if end is None else min(max(end + rank if end < 0 else end, 0), rank)
    normal = (low or None, high if high < rank else None)
    if normal == (start, end) or high <= low:
        return None
    return op.Shape(node.operands[0], start=normal[0], end=normal[1])


@rule("Gather")
def gather_of_shape(node: Node) -> Value | None:
    """One element of a shape is a shape of one dimension; as a scalar, squeezed, if that saves nothing it stays."""
    x, index = node.operands[0], integers(node.operand(1))
    assert x is not None
    if x.producer is None or x.producer.op != "Shape" or index is None or len(index) != 1 or node.results[0].rank != 1:
        return None
    require(not x.producer.attrs, "a part of the shape already")
    rank = x.producer.operands[0].rank if x.producer.operands[0] is not None else None
    require(rank is not None, "the rank is unknown")
    assert rank is not None
    at = index[0] % rank
    return op.Shape(x.producer.operands[0], start=at, end=at + 1)


@rule("Concat")
def concat_known_parts(node: Node) -> Value | None:
    """Adjacent operands of a Concat of sizes that are known, or adjacent pieces of one shape, become one operand."""
    if node.results[0].dtype is not DType.INT64 or node.results[0].rank != 1 or node.results[0].content is None:
        return None
    merged: list[Value] = []
    for known, group in itertools.groupby(node.operands, lambda v: v is not None and v.const is not None):
        values = [v for v in group if v is not None]
        if known and len(values) > 1:
            elements = [e for v in values for e in content_of(v) or ()]
            merged.append(constant(elements, DType.INT64))
        else:
            merged.extend(values)
    if len(merged) == len(node.operands):
        return None
    return op.Concat(*merged, axis=0)
