"""Normalizations that TensorFlow has operations for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.graph import Value, constant
from ....ir.types import DType, TensorType
from ...emit import Refused
from ..translate import Operation, Translator, rule
from ..vectors import reshaped, shape_of
from ..windows import first, is_last, last

__all__: list[str] = []


@rule("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _batch_norm(t: Translator, o: Operation, x: Value, scale: Value, offset: Value, mean: Value, var: Value) -> Any:
    """With the statistics that it is given, which are also its other results."""
    if o.attr("is_training"):
        return _rows(t, o, x, scale, offset)
    kept = first(t, o, x)
    wide = t.cast(kept, scale.dtype)  # half numbers are normalized as float32
    result = t.op.BatchNormalization(wide, scale, offset, mean, var, epsilon=float(o.attr("epsilon")))
    results = [last(t, o, t.cast(result, x.dtype)), mean, var, mean, var]
    if len(o.tensors) > len(results):
        results.append(t.empty(TensorType(DType.FLOAT, (0,))))
    return results


def _rows(t: Translator, o: Operation, x: Value, scale: Value, offset: Value) -> list[Value]:
    """How Keras 2 normalizes layers: rows are the channels of one example, without scale and offset."""
    shape = x.shape or ()
    is_plain = len(shape) == 4 and shape[::3] == (1, 1) and _is_filled(scale, 1) and _is_filled(offset, 0)
    if not is_plain or is_last(o) or any(tensor.consumers() for tensor in o.tensors[1:]):
        raise Refused("it computes the statistics of the batch: call the model with training=False")
    length, made = shape[2], x.producer
    if not isinstance(length, int):
        raise Refused("the size of what is normalized is not known")
    rows = made.given(0) if made is not None and made.op == "Reshape" else x
    if (rows.shape or ())[-1:] != (length,):
        rows = t.op.Reshape(x, t.integers([-1, length]))
    ones = constant(np.ones(length), x.dtype)
    result = t.op.LayerNormalization(rows, ones, axis=-1, epsilon=float(o.attr("epsilon")))
    return [reshaped(t, result, shape_of(t, x)), *(Value(type_) for type_ in o.outs[1:])]


def _is_filled(value: Value, number: int) -> bool:
    """Whether all elements are ``number``."""
    made = value.producer
    const = made.given(0).const if made is not None and made.op == "Expand" else value.const
    return const is not None and bool((const.numpy() == number).all())


@rule("LRN")
def _local_response(t: Translator, o: Operation, x: Value) -> Any:
    """TensorFlow's alpha is a factor of the sum of squares, ONNX's of their mean."""
    size = 2 * int(o.attr("depth_radius")) + 1
    alpha, beta, bias = (float(o.attr(name)) for name in ("alpha", "beta", "bias"))
    return t.layouts.last(t.op.LRN(t.layouts.first(x), size=size, alpha=alpha * size, beta=beta, bias=bias))


@rule("L2Loss")
def _half_of_squares(t: Translator, o: Operation, x: Value) -> Any:
    half = t.op.Mul(t.op.Mul(x, x), t.scalar(np.float32(0.5), x.dtype))
    return t.op.ReduceSum(half, keepdims=0)
