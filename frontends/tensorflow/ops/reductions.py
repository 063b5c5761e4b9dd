"""Reductions along axes, what is accumulated along them, softmax, and the losses made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ....ir.dims import is_known, product
from ....ir.graph import Value
from ....ir.types import DType
from ... import exact
from ...emit import Refused
from ...sizes import integer
from ..layout import axis_first
from ..translate import Operation, Translator, dtype_of, rule
from .elementwise import apply

__all__: list[str] = []

_REDUCTIONS = {"Sum": "ReduceSum", "Max": "ReduceMax", "Min": "ReduceMin", "Prod": "ReduceProd"}
Reduction = Callable[[Value, Value, int], Value]  # of a value, along axes, which it keeps or not


# along axes


def _along(t: Translator, x: Value, axes: Value, keeps: bool, function: Reduction) -> Value:
    """What ``function`` makes of ``x`` along ``axes``; along none, every element is on its own."""
    known, first = t.known(axes), t.layouts.kept(x)
    if known is None or x.rank is None:
        return function(x, t.op.Reshape(t.cast(axes, DType.INT64), t.integers([-1])), int(keeps))
    reduced = sorted({a % x.rank for a in known}) if x.rank else []
    if first is None:
        return function(x, t.integers(reduced), int(keeps))
    result = function(first, t.integers(sorted(axis_first(a, x.rank) for a in reduced)), int(keeps))
    if keeps:
        return t.layouts.last(result)
    left = [a for a in range(x.rank) if a not in reduced]
    return t.transpose(result, _order_of(left, x.rank))


def _order_of(left: Sequence[int], rank: int) -> list[int]:
    """Where axes of channels last are among those that are left of channels first."""
    order = sorted(left, key=lambda a: axis_first(a, rank))
    return [order.index(a) for a in left]


def _plain(t: Translator, name: str, x: Value, axes: Value, keeps: int) -> Value:
    """A reduction in a type in which runtimes have it."""
    found = getattr(t.op, name)(t.cast(x, exact.wide(x.dtype)), axes, keepdims=keeps, noop_with_empty_axes=1)
    return t.cast(found, x.dtype)


@rule(*_REDUCTIONS)
def _reduce(t: Translator, o: Operation, x: Value, axes: Value) -> Any:
    name = _REDUCTIONS[o.type]
    return _along(t, x, axes, o.attr("keep_dims"), lambda x, axes, keeps: _plain(t, name, x, axes, keeps))


@rule("Mean")
def _mean(t: Translator, o: Operation, x: Value, axes: Value) -> Any:
    def mean(x: Value, axes: Value, keeps: int) -> Value:
        if x.dtype.is_floating:
            return _plain(t, "ReduceMean", x, axes, keeps)
        wide = x.dtype if x.dtype is DType.UINT64 else DType.INT64
        total = t.op.ReduceSum(t.cast(x, wide), axes, keepdims=keeps, noop_with_empty_axes=1)
        return t.cast(exact.quotient(t, total, t.cast(_count(t, x, axes), wide)), x.dtype)

    return _along(t, x, axes, o.attr("keep_dims"), mean)


def _count(t: Translator, x: Value, axes: Value) -> Value:
    """How many elements are reduced to one, at least 1."""
    known = t.known(axes)
    if x.shape is not None and known is not None:
        sizes = [x.shape[a] for a in known]
        if all(is_known(n) for n in sizes):
            return t.scalar(max(integer(product(sizes)), 1), DType.INT64)
    count = t.op.ReduceProd(t.op.Gather(t.op.Shape(x), axes, axis=0), keepdims=0)
    found: Value = t.op.Max(count, t.scalar(1, DType.INT64))
    return found


@rule("All", "Any")
def _logical(t: Translator, o: Operation, x: Value, axes: Value) -> Any:
    name = "ReduceMin" if o.type == "All" else "ReduceMax"  # of nothing: the greatest number, and the least

    def reduce(x: Value, axes: Value, keeps: int) -> Value:
        found = getattr(t.op, name)(t.cast(x, DType.INT32), axes, keepdims=keeps, noop_with_empty_axes=1)
        result: Value = t.op.Greater(found, t.scalar(0, DType.INT32))
        return result

    return _along(t, x, axes, o.attr("keep_dims"), reduce)


@rule("EuclideanNorm")
def _euclidean_norm(t: Translator, o: Operation, x: Value, axes: Value) -> Any:
    dtype = x.dtype
    if not dtype.is_floating:
        x = apply(t, "Cast", x, to=DType.DOUBLE)
    norm = _along(
        t,
        x,
        axes,
        o.attr("keep_dims"),
        lambda x, axes, keeps: t.op.ReduceL2(x, axes, keepdims=keeps, noop_with_empty_axes=1),
    )
    return t.cast(norm, dtype)


@rule("ArgMax", "ArgMin")
def _arg(t: Translator, o: Operation, x: Value, axis: Value) -> Any:
    """The first of equal ones."""
    dtype, first = dtype_of(o.tensors[0].dtype), t.layouts.kept(x)
    along, rank = _axis(t, axis), x.rank

    def position(x: Value, axis: int) -> Value:
        wide = DType.INT32 if x.dtype is DType.BOOL else exact.wide(x.dtype)
        return t.cast(getattr(t.op, o.type)(t.cast(x, wide), axis=axis, keepdims=0), dtype)

    if first is None or rank is None:
        return position(x, along)
    left = [a for a in range(rank) if a != along % rank]
    return t.transpose(position(first, axis_first(along, rank)), _order_of(left, rank))


def _axis(t: Translator, axis: Value) -> int:
    known = t.known(axis)
    if known is None or len(known) != 1:
        raise Refused("its axis is computed: state it as a number")
    return known[0]


# accumulated along an axis


@rule("Cumsum", "Cumprod")
def _cumulative(t: Translator, o: Operation, x: Value, axis: Value) -> Any:
    operator = t.op.CumSum if o.type == "Cumsum" else t.op.CumProd
    attrs = {name: int(o.attr(name)) for name in ("exclusive", "reverse")}
    found = operator(t.cast(x, exact.wide(x.dtype)), t.op.Reshape(axis, t.integers([])), **attrs)
    return t.cast(found, x.dtype)


# softmax


@rule("Softmax", "LogSoftmax")
def _softmax(t: Translator, o: Operation, x: Value) -> Any:
    """Along the last axis; where another one was moved there, it is taken where it was, except after products."""
    first, moved = t.layouts.kept(x), x.producer
    if first is not None:
        return t.layouts.last(getattr(t.op, o.type)(first, axis=1))
    made = moved.given(0).producer if moved is not None else None
    if moved is not None and moved.op == "Transpose" and (made is None or made.op != "MatMul"):
        order = moved.attrs["perm"]
        return t.transpose(getattr(t.op, o.type)(moved.given(0), axis=order[-1]), order)
    return getattr(t.op, o.type)(x, axis=-1)


@rule("SoftmaxCrossEntropyWithLogits")
def _cross_entropy(t: Translator, o: Operation, logits: Value, labels: Value) -> Any:
    op, last = t.op, t.integers([1])
    loss = op.Neg(op.ReduceSum(op.Mul(labels, op.LogSoftmax(logits, axis=1)), last, keepdims=0))
    return loss, op.Sub(op.Softmax(logits, axis=1), labels)


@rule("SparseSoftmaxCrossEntropyWithLogits")
def _sparse_cross_entropy(t: Translator, o: Operation, logits: Value, labels: Value) -> Any:
    op = t.op
    where = t.unsqueeze(t.cast(labels, DType.INT64), [1])
    loss = op.Neg(t.squeeze(op.GatherElements(op.LogSoftmax(logits, axis=1), where, axis=1), [1]))
    size = (logits.shape or (None, None))[1]
    depth = t.scalar(size, DType.INT64) if isinstance(size, int) else op.Shape(logits, start=1, end=2)
    one_hot = op.OneHot(t.squeeze(where, [1]), depth, op.Cast(t.integers([0, 1]), to=logits.dtype), axis=1)
    return loss, op.Sub(op.Softmax(logits, axis=1), one_hot)
