"""Normalizations that TensorFlow has operations for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.graph import Value
from ....ir.types import DType, TensorType
from ...emit import Refused
from ..translate import Operation, Translator, rule
from ..windows import first, last

__all__: list[str] = []


@rule("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _batch_norm(t: Translator, o: Operation, x: Value, scale: Value, offset: Value, mean: Value, var: Value) -> Any:
    """With the statistics that it is given, which are also its other results."""
    if o.attr("is_training"):
        raise Refused("it computes the statistics of the batch: call the model with training=False")
    kept = first(t, o, x)
    wide = t.cast(kept, scale.dtype)  # half numbers are normalized as float32
    result = t.op.BatchNormalization(wide, scale, offset, mean, var, epsilon=float(o.attr("epsilon")))
    results = [last(t, o, t.cast(result, x.dtype)), mean, var, mean, var]
    if len(o.tensors) > len(results):
        results.append(t.empty(TensorType(DType.FLOAT, (0,))))
    return results


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
