"""Reshape, Squeeze, Unsqueeze, Flatten and Expand: static targets, merging, and dropping what changes nothing.

All of these only rename dimensions, so a chain of them is one Reshape, and a Reshape with a known target is better than
the arithmetic that computed it.
"""

from __future__ import annotations

from ...ir import Node, Value, constant, op
from ...ir.dims import Dim
from ...ir.infer import content_of
from ...ir.types import DType, Shape, TensorType
from ..rules import require, rule
from .fold_constants import integers

RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
# operators that broadcast their operands by themselves
BROADCASTS = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Where",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "Min",
        "Max",
        "PRelu",
        "Mod",
    ]
)


def known_shape(value: Value) -> Shape:
    """The shape of ``value``; ends the attempt where the rank is unknown."""
    shape = value.shape
    require(shape is not None, "the rank is unknown")
    assert shape is not None
    return shape


def static_target(source: Shape, target: Shape) -> tuple[int, ...] | None:
    """The constant operand of a ``Reshape`` from ``source`` to ``target``, or None if there is none.

    It holds numbers, 0 for a dimension that stays in place, and -1 for at most one other.
    """
    encoded: list[int] = []
    for i, dim in enumerate(target):
        if isinstance(dim, int) and dim > 0:
            encoded.append(dim)
        elif i < len(source) and source[i] == dim:
            encoded.append(0)
        elif isinstance(dim, int) or -1 in encoded:
            return None
        else:
            encoded.append(-1)
    return tuple(encoded)


def reshape_to(x: Value, target: Shape) -> Value | None:
    """A Reshape of ``x`` to ``target`` with a constant operand, or None where there is none."""
    encoded = static_target(known_shape(x), target)
    return None if encoded is None else op.Reshape(x, constant(list(encoded), DType.INT64))


@rule(*RESHAPING, "Expand")
def drop_reshape(node: Node) -> Value | None:
    """A reshape (or expansion) to the shape that the operand has."""
    x = node.operand(0)
    assert x is not None
    shape = x.shape
    return x if shape is not None and shape == node.results[0].shape else None


@rule("Reshape")
def static_reshape(node: Node) -> Value | None:
    """A Reshape whose computed target is known well enough for a constant one."""
    x, target = node.operands[0], node.operands[1]
    assert x is not None and target is not None
    result = node.results[0]
    if target.const is not None:
        return _canonical_target(node, x, target)
    require(result.shape is not None, "the rank of the target is unknown")
    reshaped = reshape_to(x, known_shape(result))
    require(reshaped is not None, "more than one dimension of the target is not known")
    return reshaped


def _canonical_target(node: Node, x: Value, target: Value) -> Value | None:
    """``allowzero`` matters for zeros only; without one it goes, so that equal reshapes look equal."""
    elements = integers(target)
    if not node.attrs.get("allowzero", 0) or elements is None or 0 in elements:
        return None
    return op.Reshape(x, target)


@rule("Squeeze", "Unsqueeze", "Flatten")
def reshape_of_reshape_forms(node: Node) -> Value | None:
    """Squeeze, Unsqueeze and Flatten above another reshaping join it in one Reshape."""
    return _merge(node)


@rule("Reshape")
def reshape_of_reshape(node: Node) -> Value | None:
    """Of two reshapings in a row only the last shape counts."""
    return _merge(node)


_CAST_BETWEEN = """
agraph (float[B,4,6] x) => (float16[B,24] y) <int64[4] split = {0, 2, 2, 6}, int64[2] rows = {0, 24}> {
  a = Reshape (x, split)
  b = Cast <to = 10> (a)
  y = Reshape (b, rows)
}
"""


@rule("Reshape", examples=[_CAST_BETWEEN])
def cast_between_reshapes(node: Node) -> Value | None:
    """Of two reshapings with a cast between them, too, only the last shape counts."""
    cast = node.given(0).producer
    inner = cast.given(0).producer if cast is not None and cast.op == "Cast" else None
    if cast is None or inner is None or inner.op not in RESHAPING or cast.graph is not node.graph:
        return None
    if len(cast.result.users) > 1 or len(cast.given(0).users) > 1 or inner.given(0).shape is None:
        return None
    shape = known_shape(node.result)
    wide = op.Cast(inner.given(0), **cast.attrs)
    reshaped = wide if shape == inner.given(0).shape else reshape_to(wide, shape)
    require(reshaped is not None, "the merged target is not known")
    return reshaped


def _merge(node: Node) -> Value | None:
    x = node.operand(0)
    assert x is not None
    inner = x.producer
    if inner is None or inner.op not in RESHAPING:
        return None
    source = inner.operands[0]
    assert source is not None
    if node.op == "Reshape" and _independent_target(node):
        return op.Reshape(source, node.operands[1], allowzero=node.attrs.get("allowzero"))
    shape = node.results[0].shape
    require(shape is not None and source.shape is not None, "the rank is unknown")
    assert shape is not None
    if shape == source.shape:
        return source
    if all(n.op == "Unsqueeze" for n in (node, inner)) or all(n.op == "Squeeze" for n in (node, inner)):
        return _merge_axes(node, inner, source)
    merged = reshape_to(source, shape)
    require(merged is not None, "the merged target is not known")
    return merged


def _independent_target(node: Node) -> bool:
    """Whether the target of a Reshape means the same for any operand with as many elements: no copied dimensions."""
    elements = content_of(node.operands[1])
    if node.attrs.get("allowzero", 0):
        return True
    return elements is not None and all(type(e) is int and e != 0 for e in elements)


def _merge_axes(node: Node, inner: Node, source: Value) -> Value | None:
    """Two Squeezes or two Unsqueezes as one, where the shapes are not known well enough for a Reshape."""
    outer_axes, inner_axes = integers(node.operand(1)), integers(inner.operand(1))
    rank = node.results[0].rank if node.op == "Unsqueeze" else source.rank
    middle = inner.results[0].rank
    if outer_axes is None or inner_axes is None or rank is None or middle is None:
        return None
    if node.op == "Unsqueeze":
        added = {a % rank for a in outer_axes}
        kept = [d for d in range(rank) if d not in added]
        added |= {kept[a % middle] for a in inner_axes}
        return op.Unsqueeze(source, constant(sorted(added), DType.INT64))
    removed = {a % rank for a in inner_axes}
    kept = [d for d in range(rank) if d not in removed]
    removed |= {kept[a % middle] for a in outer_axes}
    return op.Squeeze(source, constant(sorted(removed), DType.INT64))


@rule("Expand")
def static_expand(node: Node) -> Value | None:
    """An Expand whose computed target is known: 1 stands for a dimension that the operand has already."""
    x, target = node.operands[0], node.operands[1]
    assert x is not None and target is not None
    result = known_shape(node.results[0])
    if target.const is not None:
        return None
    source = (1,) * (len(result) - len(known_shape(x))) + known_shape(x)
    encoded = [dim if isinstance(dim, int) else 1 for dim in result]
    for own, dim in zip(source, result, strict=True):
        require(isinstance(dim, int) or own == dim, "the target has sizes that are known only when it runs")
    return op.Expand(x, constant(encoded, DType.INT64))


@rule("Expand")
def expand_of_expand(node: Node) -> Value | None:
    """The outer of two expansions does it all, if it expands to a shape that the inner one does not enlarge."""
    x = node.operand(0)
    assert x is not None
    if x.producer is None or x.producer.op != "Expand":
        return None
    target = content_of(node.operands[1])
    require(target is not None and target == node.results[0].shape, "the outer target relies on the inner expansion")
    return op.Expand(x.producer.operands[0], node.operands[1])


@rule(*sorted(BROADCASTS))
def broadcast_without_expand(node: Node) -> Value | None:
    """An operand need not be expanded for an operator that broadcasts, if another one has the full shape."""
    result = node.results[0].shape
    if result is None:
        return None
    for i, operand in enumerate(node.operands):
        if (
            operand is None
            or operand.producer is None
            or operand.producer.op != "Expand"
            or operand.producer.graph is not node.graph
        ):
            continue
        if node.op == "PRelu" and i == 0:  # only the slope broadcasts
            continue
        source = operand.producer.operands[0]
        assert source is not None
        operands = list(node.operands)
        operands[i] = source
        if _broadcast_shape(operands) == result:
            return Node(node.op, operands, dict(node.attrs), [node.results[0].type]).result
    return None


def _broadcast_shape(operands: list[Value | None]) -> Shape | None:
    """The common shape, where it is certain."""
    shapes = [o.shape for o in operands if o is not None]
    if any(s is None for s in shapes):
        return None
    rank = max(len(s) for s in shapes if s is not None)
    result: list[Dim] = []
    for i in range(-rank, 0):
        dims = {s[i] for s in shapes if s is not None and len(s) >= -i} - {1}
        if len(dims) > 1:
            return None
        result.append(dims.pop() if dims else 1)
    return tuple(result)


@rule("Reshape", "Unsqueeze")
def reduction_in_place(node: Node) -> Value | None:
    """A reduction whose dimensions come back with size 1 keeps them."""
    x = node.operands[0]
    assert x is not None
    reduction = x.producer
    if reduction is None or reduction.op not in REDUCTIONS or reduction.attrs.get("keepdims", 1):
        return None
    source, axes = reduction.operands[0], integers(reduction.operand(1))
    require(axes and source is not None and source.shape is not None, "the axes or the rank are unknown")
    assert axes is not None and source is not None and source.shape is not None
    require(len(x.users) == 1, "the reduction is used as it is, too")
    where = {a % len(source.shape) for a in axes}
    kept = tuple(1 if a in where else d for a, d in enumerate(source.shape))
    require(node.results[0].shape == kept, "they come back elsewhere")
    attrs = {**reduction.attrs, "keepdims": 1}
    return Node(reduction.op, reduction.operands, attrs, [TensorType(x.dtype, kept)]).result
