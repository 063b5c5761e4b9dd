"""Sorting, which TensorFlow does by TopKV2."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ....ir.types import DType
from ... import exact
from ..translate import Operation, Translator, dtype_of, rule

__all__: list[str] = []


@rule("TopKV2")
def _top_k(t: Translator, o: Operation, x: Value, k: Value) -> Any:
    """The greatest along the last axis, of equal ones the first; those of what is negated are the least."""
    count = t.op.Reshape(t.cast(k, DType.INT64), t.integers([1]))
    negated = x.producer if x.dtype.is_floating and x.producer is not None and x.producer.op == "Neg" else None
    source = x if negated is None else negated.given(0)
    values, places = t.op.TopK(
        t.cast(source, exact.wide(x.dtype)), count, axis=-1, largest=int(negated is None), sorted=1
    )
    values = t.cast(values, x.dtype) if negated is None else t.op.Neg(values)
    return values, t.cast(places, dtype_of(o.tensors[1].dtype))


@rule("TopK")
def _top_known(t: Translator, o: Operation, x: Value) -> Any:
    return _top_k(t, o, x, t.scalar(o.attr("k"), DType.INT64))


@rule("InTopK", "InTopKV2")
def _in_top_k(t: Translator, o: Operation, scores: Value, targets: Value, *k: Value) -> Any:
    """Whether fewer than ``k`` scores are above the target's; nowhere where a number is not finite."""
    op, last = t.op, t.integers([1])
    wanted = t.cast(targets, DType.INT64)
    number = t.cast(k[0], DType.INT64) if k else t.scalar(o.attr("k"), DType.INT64)
    classes = op.Squeeze(op.Shape(scores, start=1, end=2), t.integers([0]))
    valid = op.And(op.GreaterOrEqual(wanted, t.scalar(0, DType.INT64)), op.Less(wanted, classes))
    inside = op.Where(valid, wanted, t.scalar(0, DType.INT64))
    own = op.GatherElements(scores, t.unsqueeze(inside, [1]), axis=1)
    above = op.ReduceSum(t.cast(op.Greater(scores, own), DType.INT64), last, keepdims=0)
    finite = op.ReduceMin(t.cast(exact.is_finite(t, scores), DType.INT32), last, keepdims=0)
    return op.And(op.And(op.Less(above, number), valid), t.cast(finite, DType.BOOL))
