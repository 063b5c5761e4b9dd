"""Boxes: those that overlap better ones are left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.graph import Value
from ....ir.types import DType
from ...emit import Refused
from ...exact import is_number
from ..translate import Operation, Translator, rule
from ..vectors import bottom, elements, joined, minus, rank_of, reshaped, size, times
from .shapes import broadcast, padded

__all__: list[str] = []


@rule("NonMaxSuppression", "NonMaxSuppressionV2", "NonMaxSuppressionV3", "NonMaxSuppressionV4", "NonMaxSuppressionV5")
def _non_max_suppression(
    t: Translator,
    o: Operation,
    boxes: Value,
    scores: Value,
    count: Value,
    overlap: Value | None = None,
    lowest: Value | None = None,
    softness: Value | None = None,
) -> Any:
    if softness is not None and not is_number(softness, 0):
        raise Refused("it lowers the scores of boxes that overlap (soft_nms_sigma): ONNX leaves them out or keeps them")
    if overlap is None:
        overlap = t.scalar(float(o.attr("iou_threshold")), DType.FLOAT)
    limits = [None if v is None else t.cast(v, DType.FLOAT) for v in (overlap, lowest)]
    own = t.unsqueeze(t.cast(scores, DType.FLOAT), [0, 1])
    found = t.op.NonMaxSuppression(
        t.unsqueeze(t.cast(boxes, DType.FLOAT), [0]), own, t.cast(count, DType.INT64), *limits
    )
    picked: Value = t.op.Gather(found, t.scalar(2, DType.INT64), axis=1)
    results = [t.cast(picked, DType.INT32)]
    if o.type == "NonMaxSuppressionV5":
        results.append(t.op.Gather(scores, picked, axis=0))
    if o.type not in ("NonMaxSuppressionV4", "NonMaxSuppressionV5"):
        return results
    if o.attr("pad_to_max_output_size"):
        (whole,) = elements(t, count)
        results = [padded(t, r, [(0, minus(t, whole, size(t, picked, 0)))]) for r in results]
    return [*results, t.cast(t.op.Size(picked), DType.INT32)]


@rule("CombinedNonMaxSuppression")
def _combined(
    t: Translator,
    o: Operation,
    boxes: Value,
    scores: Value,
    per_class: Value,
    total: Value,
    overlap: Value,
    lowest: Value,
) -> Any:
    """Of every class the boxes that are left, and of these the best of each image, filled up with zeros."""
    if boxes.shape is None or boxes.shape[2] != 1:
        raise Refused("boxes of their own for every class: call it for each of them")
    op, zero = t.op, t.scalar(0, DType.FLOAT)
    boxes, by_class = t.squeeze(boxes, [2]), t.transpose(scores, (0, 2, 1))
    found = op.NonMaxSuppression(boxes, by_class, t.cast(per_class, DType.INT64), overlap, lowest)
    batch, classes, places = (size(t, by_class, a) for a in range(3))
    nothing = broadcast(t, t.scalar(-np.inf, DType.FLOAT), joined(t, [batch, classes, places]))
    kept = op.ScatterND(nothing, found, op.GatherND(by_class, found))
    flat = reshaped(t, kept, joined(t, [batch, times(t, classes, places)]))
    (limit,) = elements(t, total)
    if o.attr("pad_per_class"):
        limit = bottom(t, limit, times(t, elements(t, per_class)[0], classes))
    count = bottom(t, limit, times(t, classes, places))
    best, where = op.TopK(flat, joined(t, [count]), axis=1)
    is_box = op.Greater(best, t.scalar(-np.inf, DType.FLOAT))
    one_class = joined(t, [places])
    own = op.GatherND(boxes, t.unsqueeze(op.Mod(where, one_class), [2]), batch_dims=1)
    if o.attr("clip_boxes"):
        own = op.Clip(own, zero, t.scalar(1, DType.FLOAT))
    kinds = t.cast(op.Div(where, one_class), DType.FLOAT)
    results = [
        op.Where(t.unsqueeze(is_box, [2]), own, zero),
        op.Where(is_box, best, zero),
        op.Where(is_box, kinds, zero),
    ]
    more = [(0, 0), (0, minus(t, limit, count))]
    results = [padded(t, r, [*more, (0, 0)][: rank_of(r)]) for r in results]
    return [*results, op.ReduceSum(t.cast(is_box, DType.INT32), t.integers([1]), keepdims=0)]
