"""Regions of images, and boxes chosen among overlapping ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from ....ir import DType, Node, TensorType, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, READ, Row
from ..sizes import Size, iota, plus, reshape, size_of, times, vector
from ..versions import Version
from .control import nested
from .elementwise import cast
from .grids import as_float, float_size, number

__all__ = ["FORMS", "ROWS"]

_LOWEST = float(np.finfo(np.float32).min)


# --- regions ---------------------------------------------------------------------------------------------------------


def _roi_align(node: Node, version: Version) -> list[Value] | None:
    """All regions sampled at once, in the images one above the other, and pooled."""
    x, rois, batch = (node.given(i) for i in range(3))
    samples = node.attrs.get("sampling_ratio", 0)
    if x.rank != 4 or samples < 1:
        return None
    height, width = size_of(x, 2), size_of(x, 3)
    starts, spans = _regions(node, as_float(rois))
    taps = []
    for i, (size, name) in enumerate(((height, "output_height"), (width, "output_width"))):
        count = node.attrs.get(name, 1)
        at = (np.arange(count * samples) + 0.5) / (samples * count)
        position = op.Add(starts[i], op.Mul(spans[i], constant(at.astype(np.float32))))
        taps.append(_Taps(position, size))
    down, right = taps
    image = reshape(
        op.Transpose(as_float(x), perm=(1, 0, 2, 3)), [1, size_of(x, 1), times(height, size_of(x, 0)), width]
    )
    first = op.Mul(reshape(as_float(batch), [-1, 1]), float_size(height))
    rows = times(height, size_of(x, 0))
    inside = op.Mul(op.Unsqueeze(down.inside, constant([2])), op.Unsqueeze(right.inside, constant([1])))
    inside = reshape(inside, [1, 1, -1, node.attrs.get("output_width", 1) * samples])
    if node.attrs.get("mode", "avg") == "avg":
        found = _sampled(image, op.Add(down.position, first), right.position, rows, width, "linear")
        pooled = op.AveragePool(op.Mul(found, inside), kernel_shape=(samples, samples), strides=(samples, samples))
    else:
        parts = []
        for y, above in down.corners():
            for z, left in right.corners():
                corner = _sampled(image, op.Add(y, first), z, rows, width, "nearest")
                weight = op.Mul(op.Unsqueeze(above, constant([2])), op.Unsqueeze(left, constant([1])))
                parts.append(op.Mul(corner, reshape(weight, [1, 1, -1, node.attrs.get("output_width", 1) * samples])))
        best = op.Mul(reduce(op.Max, parts), inside)
        pooled = op.MaxPool(best, kernel_shape=(samples, samples), strides=(samples, samples))
    sizes = [node.attrs.get("output_height", 1), node.attrs.get("output_width", 1)]
    y = op.Transpose(reshape(pooled, [size_of(x, 1), -1, *sizes]), perm=(1, 0, 2, 3))
    return [cast(y, x.dtype)]


def _regions(node: Node, rois: Value) -> tuple[list[Value], list[Value]]:
    """Where regions start, and how long they are, down and to the right: columns."""
    half = node.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scaled = op.Mul(rois, number(node.attrs.get("spatial_scale", 1.0)))
    if half:
        scaled = op.Sub(scaled, number(0.5))
    columns = [op.Gather(scaled, constant([i], DType.INT64), axis=1) for i in range(4)]
    starts, spans = [columns[1], columns[0]], [op.Sub(columns[3], columns[1]), op.Sub(columns[2], columns[0])]
    return starts, spans if half else [op.Max(s, number(1)) for s in spans]


class _Taps:
    """The positions along one dimension at which regions are sampled: (regions, positions)."""

    def __init__(self, position: Value, size: Size):
        limit = float_size(size)
        outside = op.Or(op.Less(position, number(-1)), op.Greater(position, limit))
        self.inside = op.Where(outside, number(0), number(1))
        self.last = op.Sub(limit, number(1))
        self.position = op.Min(op.Max(position, number(0)), self.last)

    def corners(self) -> list[tuple[Value, Value]]:
        """The two neighbours of each position, and their weights."""
        low = op.Floor(self.position)
        share = op.Sub(self.position, low)
        high = op.Min(op.Add(low, number(1)), self.last)
        return [(low, op.Sub(number(1), share)), (high, share)]


def _sampled(image: Value, down: Value, right: Value, rows: Size, columns: Size, mode: str) -> Value:
    """The elements of an image at all pairs of positions of each region: (1, channels, regions * positions, …)."""
    pair = [
        op.Unsqueeze(_relative(right, columns), constant([1])),
        op.Unsqueeze(_relative(down, rows), constant([2])),
    ]
    counts = [d.shape[1] for d in (down, right) if d.shape is not None]
    shape = vector([size_of(down, 0), *(n for n in counts if isinstance(n, int))])
    grid = op.Concat(*(op.Unsqueeze(op.Expand(p, shape), constant([3])) for p in pair), axis=3)
    flat = reshape(grid, [1, -1, counts[1] if isinstance(counts[1], int) else 0, 2])
    return op.GridSample(image, flat, mode=mode, padding_mode="border", align_corners=0)


def _relative(position: Value, size: Size) -> Value:
    """A position among ``size`` elements as GridSample counts it, from -1 to 1."""
    doubled = op.Add(op.Mul(position, number(2)), number(1))
    return op.Sub(op.Div(doubled, float_size(size)), number(1))


def _max_roi_pool(node: Node, version: Version) -> list[Value] | None:
    """The maxima of what masks leave of the images, first down, then to the right."""
    x, rois, (rows, columns) = node.given(0), as_float(node.given(1)), node.attrs["pooled_shape"]
    if x.rank != 4:
        return None
    parts = [op.Gather(rois, constant([i], DType.INT64), axis=1) for i in range(5)]
    scale = number(node.attrs.get("spatial_scale", 1.0))
    left, top, right, bottom = (op.Floor(op.Add(op.Mul(p, scale), number(0.5))) for p in parts[1:])
    images = op.Gather(as_float(x), op.Squeeze(op.Cast(parts[0], to=DType.INT64), constant([1])), axis=0)
    down, across = _bins(top, bottom, rows, size_of(x, 2)), _bins(left, right, columns, size_of(x, 3))
    lines = op.Where(op.Unsqueeze(down, constant([1, 4])), op.Unsqueeze(images, constant([2])), number(_LOWEST))
    lines = op.ReduceMax(lines, constant([3]), keepdims=0)
    cells = op.Where(op.Unsqueeze(across, constant([1, 2])), op.Unsqueeze(lines, constant([3])), number(_LOWEST))
    best = op.ReduceMax(cells, constant([4]), keepdims=0)
    return [cast(op.Where(op.Greater(best, number(_LOWEST)), best, number(0)), x.dtype)]


def _bins(first: Value, last: Value, count: int, size: Size) -> Value:
    """Which elements belong to each of ``count`` parts of every region: (regions, parts, elements)."""
    length = op.Max(op.Add(op.Sub(last, first), number(1)), number(1))
    step = op.Div(length, number(count))
    start = op.Add(op.Floor(op.Mul(step, constant(np.arange(count, dtype=np.float32)))), first)
    stop = op.Add(op.Ceil(op.Mul(step, constant(np.arange(1, count + 1, dtype=np.float32)))), first)
    at = as_float(iota(size))
    start, stop = (op.Unsqueeze(v, constant([2])) for v in (start, stop))
    return op.And(op.GreaterOrEqual(at, start), op.Less(at, stop))


# --- boxes -----------------------------------------------------------------------------------------------------------


def _non_max_suppression(node: Node, version: Version) -> list[Value] | None:
    """Box by box the best that is left, in a loop; then the chosen ones in order of images, classes and scores."""
    boxes, scores, most = node.given(0), node.given(1), node.operand(2)
    if boxes.rank != 3 or scores.rank != 3:
        return None
    if most is None:
        return [constant(np.zeros((0, 3), np.int64))]
    shape = [size_of(scores, i) for i in range(3)]
    corners = _corners(node, as_float(boxes))
    live = as_float(scores)
    if (least := node.operand(4)) is not None:
        live = op.Where(op.Greater(live, reshape(as_float(least), [1])), live, number(_LOWEST))
    threshold = node.operand(3)
    limit = reshape(as_float(threshold), [1]) if threshold is not None else number(0)
    areas = op.Mul(op.Sub(corners[2], corners[0]), op.Sub(corners[3], corners[1]))
    never = op.Expand(constant([-1], DType.INT64), vector(shape))
    trips = op.Squeeze(op.Min(reshape(cast(most, DType.INT64), [1]), vector([shape[2]])), constant([0]))

    numbers = iota(shape[2])

    def body(i: Value, going: Value, left: Value, turn: Value) -> list[Value]:
        best = op.ReduceMax(left, constant([2]), keepdims=1)
        first = op.ArgMax(left, axis=2, keepdims=1)
        chosen = op.And(op.Equal(first, numbers), op.Greater(best, number(_LOWEST)))
        overlap = _overlap(corners, areas, chosen)
        gone = op.Or(chosen, op.Greater(overlap, limit))
        left = op.Where(gone, number(_LOWEST), left)
        more = op.Greater(op.ReduceMax(left, keepdims=0), number(_LOWEST))
        return [more, left, op.Where(chosen, i, turn)]

    carried = [("left", TensorType(DType.FLOAT, scores.shape)), ("turn", TensorType(DType.INT64, scores.shape))]
    inputs = [("i", TensorType(DType.INT64, ())), ("going", TensorType(DType.BOOL, ())), *carried]
    loop = make_node(
        "Loop", (trips, constant(True, DType.BOOL), live, never), {"body": nested("choose", inputs, body)}, 2
    )
    return [_listed(loop.results[1], shape, node.results[0])]


def _corners(node: Node, boxes: Value) -> list[Value]:
    """The least and the greatest coordinates of boxes: four times (images, 1, boxes)."""
    a, b, c, d = (op.Unsqueeze(op.Gather(boxes, constant(i, DType.INT64), axis=2), constant([1])) for i in range(4))
    if node.attrs.get("center_point_box", 0):
        c, d = op.Div(c, number(2)), op.Div(d, number(2))
        return [op.Sub(a, c), op.Sub(b, d), op.Add(a, c), op.Add(b, d)]
    return [op.Min(a, c), op.Min(b, d), op.Max(a, c), op.Max(b, d)]


def _overlap(corners: Sequence[Value], areas: Value, chosen: Value) -> Value:
    """The intersection of every box with the chosen one, as a share of their union."""
    top, left, bottom, right, area = (
        op.ReduceSum(op.Where(chosen, v, number(0)), constant([2]), keepdims=1) for v in (*corners, areas)
    )
    height = op.Sub(op.Min(corners[2], bottom), op.Max(corners[0], top))
    width = op.Sub(op.Min(corners[3], right), op.Max(corners[1], left))
    common = op.Mul(op.Max(height, number(0)), op.Max(width, number(0)))
    union = op.Sub(op.Add(areas, area), common)
    return op.Div(common, op.Where(op.Greater(union, number(0)), union, number(1)))


def _listed(turn: Value, shape: Sequence[Size], result: Value) -> Value:
    """Image, class and box of all that have had a turn, in order."""
    chosen = op.GreaterOrEqual(turn, constant(0, DType.INT64))
    counts = op.ReduceSum(cast(chosen, DType.INT32), constant([2]), keepdims=1)
    flat = reshape(counts, [-1])
    ends = cast(op.CumSum(flat, constant(0, DType.INT64)), DType.INT64)
    starts = reshape(op.Sub(ends, cast(flat, DType.INT64)), [shape[0], shape[1], 1])
    total = reduce(times, shape)
    place = reshape(op.Where(chosen, op.Add(starts, turn), vector([total])), [-1])
    room = op.Expand(constant([0], DType.INT64), vector([plus(total, 1)]))
    order = op.ScatterElements(room, place, iota(total), axis=0)
    rows = result.shape[0] if result.shape is not None else None
    stop = rows if isinstance(rows, int) else op.ReduceMax(ends, constant([0]), keepdims=1)  # the last of them
    order = op.Slice(order, constant([0]), vector([stop]), constant([0]))
    columns, step = [], order
    for size in (shape[2], shape[1]):
        quotient = op.Div(step, vector([size]))
        columns.append(op.Sub(step, op.Mul(quotient, vector([size]))))
        step = quotient
    return op.Concat(*(op.Unsqueeze(c, constant([1])) for c in (step, *columns[::-1])), axis=1)


FORMS = {
    "MaxRoiPool": _max_roi_pool,
    "NonMaxSuppression": _non_max_suppression,
    "RoiAlign": _roi_align,
}
ROWS = {
    # plugins and layers that TensorRT for RTX lacks
    "NonMaxSuppression": Row({"tensor(float)": READ}, rtx=False),
    "RoiAlign": Row({"T1": FLOATS - {DType.BFLOAT16}}, rtx=False),
}
