"""Operators that jax spells out: means, softmax, limits, variances. The rules ask here before they emit anything.

jax.numpy and jax.nn consist of primitives, and a graph of these computes the right numbers; but runtimes have kernels
for the operators, and passes look for them. What is recognized here is the same in real numbers, rounding aside.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.dims import Dim, product
from ...ir.graph import Node, Value
from ...ir.infer.engine import content_of
from ..emit import Emitter
from ..exact import number_of

__all__ = ["arithmetic", "elementwise", "keep_dims", "quotient", "softmax"]

_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")


def _made_by(value: Value | None, *ops: str) -> Node | None:
    node = value.producer if value is not None else None
    return node if node is not None and node.op in ops else None


def _axes(t: Emitter, node: Node) -> list[int]:
    """The axes of a reduction that keeps its dimensions or not."""
    rank = node.given(0).rank or 0
    known = t.known(node.given(1)) if len(node.operands) > 1 else tuple(range(rank))
    return sorted(a % rank for a in known or ())


# reductions


def keep_dims(t: Emitter, x: Value, added: list[int]) -> Value | None:
    """``x`` with dimensions of size 1 at ``added``, where it is a reduction of just these: one that keeps them."""
    node = _made_by(x, *_REDUCTIONS)
    if node is None or node.attrs.get("keepdims", 1) or _axes(t, node) != added:
        return None
    return getattr(t.op, node.op)(*node.operands, keepdims=1)


def softmax(t: Emitter, op: str, x: Value, axis: int) -> Value:
    """Softmax or LogSoftmax along ``axis``; an order of dimensions comes after it."""
    moved = _made_by(x, "Transpose")
    if moved is None:
        return getattr(t.op, op)(x, axis=axis)
    order = moved.attrs["perm"]
    return t.transpose(getattr(t.op, op)(moved.given(0), axis=order[axis]), order)


def elementwise(t: Emitter, op: str, *operands: Value) -> Value:
    """An elementwise operator; where one operand was put in order, and that can wait, the order comes after it.

    The other operands must not need more than a reshape for that. So the orders that ``vmap`` and ``einsum`` ask for
    meet, and cancel.
    """
    moved = [o for o in operands if _made_by(o, "Transpose") and o.const is None]
    if len(moved) == 1 and all(o.rank in (0, moved[0].rank) for o in operands):
        (node,) = (o.producer for o in moved)
        assert node is not None
        order = node.attrs["perm"]
        inverse = sorted(range(len(order)), key=lambda i: order[i])
        if all(o is moved[0] or _is_reshape(o, inverse) for o in operands):
            earlier = [node.given(0) if o is moved[0] else _reordered(t, o, inverse) for o in operands]
            return t.transpose(getattr(t.op, op)(*earlier), order)
    return getattr(t.op, op)(*operands)


def _unexpanded(x: Value) -> tuple[Value, list[Dim]]:
    """What ``x`` expands, if it does, and its sizes, as many as ``x`` has: it need not be expanded beside others."""
    expanded = _made_by(x, "Expand")
    source = x if expanded is None else expanded.given(0)
    dims = list(source.shape or ())
    return source, [1] * ((x.rank or 0) - len(dims)) + dims


def _is_reshape(x: Value, order: Sequence[int]) -> bool:
    """Whether an order moves only dimensions of size 1."""
    dims = _unexpanded(x)[1]
    kept = [a for a in order if dims and dims[a] != 1]
    return kept == sorted(kept)


def _reordered(t: Emitter, x: Value, order: Sequence[int]) -> Value:
    source, dims = _unexpanded(x)
    if not source.rank:
        return source
    lead = len(dims) - source.rank
    source = t.squeeze(source, [a - lead for a, d in enumerate(dims) if d == 1 and a >= lead])
    return t.unsqueeze(source, [i for i, a in enumerate(order) if dims[a] == 1])


def quotient(t: Emitter, x: Value, y: Value) -> Value | None:
    """``x / y``, where it is a mean or the average of a window."""
    if not x.dtype.is_floating:
        return None
    total = _made_by(x, "ReduceSum")
    if total is not None and total.given(0).shape:
        dims = total.given(0).shape or ()
        if _is_size(y, product(dims[a] for a in _axes(t, total))):
            keep = total.attrs.get("keepdims", 1)
            return t.op.ReduceMean(*total.operands, keepdims=keep)
    scaled = _made_by(x, "Mul")
    if scaled is not None and _made_by(scaled.operands[0], "AveragePool", "Transpose", "Reshape"):
        factor = scaled.given(1)
        if number_of(y) is not None and number_of(factor) == number_of(y) and _is_average(scaled.given(0)):
            return scaled.given(0)
    return None


def _is_average(value: Value) -> bool:
    node = value.producer
    while node is not None and node.op in ("Transpose", "Reshape"):
        node = node.given(0).producer
    return node is not None and node.op == "AveragePool"


def _is_size(value: Value, size: Dim) -> bool:
    """Whether ``value`` is the number ``size``, a symbolic one in whatever type."""
    number = number_of(value)
    if number is not None:
        return isinstance(size, int) and number == size and size > 0
    cast = _made_by(value, "Cast")
    return not isinstance(size, int) and cast is not None and content_of(cast.given(0)) == (size,)


# arithmetic


def arithmetic(t: Emitter, name: str, x: Value, y: Value) -> Value | None:
    """``x`` and ``y`` combined by a primitive, where that is more than one operator."""
    if not x.dtype.is_floating:
        return None
    match name:
        case "sub":
            return _shift(t, x, y)
        case "mul":
            return _normalized(t, x, y) or _normalized(t, y, x)
        case "max":
            return _limited(t, name, x, y) or _variance(t, x, y) or _variance(t, y, x)
        case "min":
            return _limited(t, name, x, y)
    return None


def _shift(t: Emitter, x: Value, y: Value) -> Value | None:
    """What a convolution gives, less a weight: plus its negative, which can be a bias."""
    made = x.producer
    while made is not None and made.op == "Transpose":
        made = made.given(0).producer
    if made is None or made.op not in ("Conv", "ConvTranspose"):
        return None
    weight: Value | None = y
    while weight is not None and weight.producer is not None and weight.producer.op in ("Unsqueeze", "Reshape"):
        weight = weight.producer.given(0)
    return t.op.Add(x, t.op.Neg(y)) if weight is not None and weight.const is not None else None


def _limited(t: Emitter, name: str, x: Value, y: Value) -> Value | None:
    """``min(max(x, low), high)``: Clip."""
    value, bound = (y, x) if number_of(x) is not None else (x, y)
    inner = _made_by(value, "Min" if name == "max" else "Max")
    if number_of(bound) is None or bound.rank or inner is None or len(inner.operands) != 2:
        return None
    for i in (0, 1):
        other = inner.given(i)
        if number_of(other) is not None and not other.rank:
            low, high = (bound, other) if name == "max" else (other, bound)
            if (number_of(low) or 0.0) <= (number_of(high) or 0.0):
                return t.op.Clip(inner.given(1 - i), low, high)
    return None


def _square_of(value: Value | None) -> Value | None:
    node = _made_by(value, "Mul")
    return node.given(0) if node is not None and node.given(0) is node.given(1) else None


def _variance(t: Emitter, zero: Value, value: Value) -> Value | None:
    """``max(0, mean(x*x) - mean(x)**2)``: the mean of the squares of the differences, which cannot be negative."""
    node = _made_by(value, "Sub")
    if node is None or number_of(zero) != 0.0:
        return None
    squares, mean = _made_by(node.given(0), "ReduceMean"), _square_of(node.given(1))
    of = _made_by(mean, "ReduceMean")
    if squares is None or of is None or _square_of(squares.given(0)) is not of.given(0):
        return None
    axes, keep = _axes(t, of), of.attrs.get("keepdims", 1)
    if _axes(t, squares) != axes or squares.attrs.get("keepdims", 1) != keep:
        return None
    where = t.integers(axes)
    centred = t.op.Sub(of.given(0), of.result if keep else t.op.ReduceMean(of.given(0), where, keepdims=1))
    return t.op.ReduceMean(t.op.Mul(centred, centred), where, keepdims=keep)


def _normalized(t: Emitter, x: Value, y: Value) -> Value | None:
    """``(x - mean) * (1/root * scale)``, the root of a variance: first the normalization, then the scale."""
    product_ = _made_by(y, "Mul")
    if product_ is None or _made_by(x, "Sub") is None:
        return None
    for i in (0, 1):
        inverse, scale = product_.given(i), product_.given(1 - i)
        root = _made_by(inverse, "Reciprocal")
        sqrt = _made_by(root.given(0), "Sqrt") if root is not None else None
        shifted = _made_by(sqrt.given(0), "Add") if sqrt is not None else None
        if shifted is not None and any(_made_by(o, "ReduceMean") for o in shifted.operands):
            return t.op.Mul(t.op.Mul(x, inverse), scale)
    return None
