"""Regions of interest: which boxes to keep, and what lies in them.

Definitions: the ONNX operators NonMaxSuppression, opset 11, RoiAlign and MaxRoiPool, opset 22.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers, lowers_padded
from ..padded import Padded, front
from .grid_sample import Tap, gather_points, sample, scalar

__all__ = ["non_max_suppression_padded"]

Array = Any


# NonMaxSuppression


def non_max_suppression_padded(
    boxes: Array,
    scores: Array,
    limit: int | Array,
    iou_threshold: Array,
    score_threshold: Array | None = None,
    *,
    is_centered: bool = False,
    is_box: Array | None = None,
) -> tuple[Array, Array]:
    """Greedy non-maximum suppression with a result of a shape that is known when it is traced.

    Args:
        boxes: (batch, n, 4), of two corners, or of center and size if ``is_centered``.
        scores: (batch, classes, n).
        limit: how many boxes are selected per class at most; a traced one allows for n rows per class.
        iou_threshold: boxes that overlap a selected one by more are dropped.
        score_threshold: boxes with a score that is not above it are dropped; None drops none.
        is_centered: what ``boxes`` holds.
        is_box: (n), which of them can be selected; None for all.

    Returns:
        Rows (batch, class, box) of those selected, by batch, by class, by falling score, followed by rows of -1; and
        how many they are. (batch * classes * min(limit, n), 3) and (), of integers.
    """
    n = boxes.shape[1]
    most = jax.core.min_dim(limit, n) if isinstance(limit, int) else n
    if isinstance(most, int) and most <= 0:
        return jnp.zeros((0, 3), int), jnp.zeros((), jnp.int32)
    low, high = _corners(boxes, is_centered)
    alive = jnp.ones(scores.shape, bool) if score_threshold is None else scores > score_threshold
    alive = alive if is_box is None else alive & is_box
    order = jnp.argsort(-scores, axis=-1, stable=True)

    def select(low: Array, high: Array, order: Array, alive: Array) -> Array:
        return _select(low[order], high[order], order, alive[order], most, limit, iou_threshold)

    per_class = jax.vmap(select, (None, None, 0, 0))
    chosen = jax.vmap(per_class)(low, high, order, alive)
    batch, group, _ = jnp.meshgrid(*(jnp.arange(d) for d in chosen.shape), indexing="ij")
    rows = jnp.stack([batch, group, chosen.astype(batch.dtype)], axis=-1).reshape(-1, 3)
    kept = rows[:, 2] >= 0
    order, count = front(kept)
    return jnp.where(kept[:, None], rows, -1)[order], count


def _corners(boxes: Array, is_centered: bool) -> tuple[Array, Array]:
    """The smallest and the largest coordinates of each box."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if is_centered:
        return first - second / 2, first + second / 2
    return jnp.minimum(first, second), jnp.maximum(first, second)


def _select(
    low: Array, high: Array, order: Array, alive: Array, most: Any, limit: int | Array, threshold: Array
) -> Array:
    """The boxes of one class that are kept, of those that are alive; they come in falling order of their scores."""
    area = jnp.prod(high - low, axis=-1)

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        count, alive, _ = state
        return (count < jnp.minimum(limit, most)) & alive.any()

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, alive, chosen = state
        best = jnp.argmax(alive)
        shared = jnp.prod(jnp.maximum(jnp.minimum(high, high[best]) - jnp.maximum(low, low[best]), 0), axis=-1)
        union = area + area[best] - shared
        valid = (shared > 0) & (area > 0) & (area[best] > 0) & (union > 0)
        drops = valid & (shared / jnp.where(valid, union, 1) > threshold)
        alive = alive & ~drops & (jnp.arange(alive.shape[0]) != best)
        return count + 1, alive, chosen.at[count].set(order[best])

    start = (jnp.zeros((), order.dtype), alive, jnp.full(most, -1, order.dtype))
    return lax.while_loop(goes_on, step, start)[2]


_compiled = jax.jit(non_max_suppression_padded, static_argnums=2, static_argnames="is_centered")


@lowers("NonMaxSuppression", data_dependent=True)
def _non_max_suppression(
    call: Call, boxes: Array, scores: Array, limit: Array = None, iou: Array = None, score: Array = None
) -> Array:
    if any(isinstance(o, jax.core.Tracer) for o in (boxes, scores, limit, iou, score)):
        raise call.error("selects a number of boxes that depends on data: call the function outside of a trace")
    most = 0 if limit is None else min(max(int(limit.reshape(())), 0), boxes.shape[1])
    threshold = jnp.zeros((), boxes.dtype) if iou is None else iou.reshape(())
    least = None if score is None else score.reshape(())
    is_centered = bool(call["center_point_box"])
    rows, count = _compiled(boxes, scores, most, threshold, least, is_centered=is_centered)
    return rows[: int(count)].astype(call.dtype())


@lowers_padded("NonMaxSuppression")
def _padded_suppression(
    call: Call, boxes: Any, scores: Any, limit: Array = None, iou: Array = None, score: Array = None
) -> Any:
    is_box = None
    if isinstance(boxes, Padded) and isinstance(scores, Padded):
        if (boxes.axis, scores.axis) != (1, 2) or not scores.has_entries_of(boxes):
            return NotImplemented
        boxes, scores, is_box = boxes.values, scores.values, boxes.is_entry()
    if any(isinstance(o, Padded) for o in (boxes, scores, limit, iou, score)):
        return NotImplemented
    known = call.known(2)
    most = 0 if limit is None else limit.reshape(()) if known is None else max(int(known.reshape(())), 0)
    threshold = jnp.zeros((), boxes.dtype) if iou is None else iou.reshape(())
    least = None if score is None else score.reshape(())
    is_centered = bool(call["center_point_box"])
    rows, count = non_max_suppression_padded(
        boxes, scores, most, threshold, least, is_centered=is_centered, is_box=is_box
    )
    return Padded(jnp.maximum(rows, 0).astype(call.dtype()), count, 0)


# RoiAlign


@lowers("RoiAlign")
def _roi_align(call: Call, x: Array, rois: Array, batch: Array) -> Array:
    """As the paper (arXiv:1703.06870) has it. No gradient goes to the regions."""
    is_shifted = call["coordinate_transformation_mode"] == "half_pixel"
    outs, ratio, wide = (call["output_height"], call["output_width"]), call["sampling_ratio"], _wide(x)
    known, most = call.known(1), None
    regions = _bins(lax.stop_gradient(rois).astype(wide), call["spatial_scale"], outs, is_shifted, jnp)
    if ratio > 0:
        regions.grids, most = [jnp.full(rois.shape[:1], ratio)] * 2, [ratio, ratio]
    elif known is not None:
        grids = _bins(known.astype(wide), call["spatial_scale"], outs, is_shifted, np).grids
        most = [int(g.max(initial=0)) for g in grids]
    if call["mode"] == "max":
        y = _largest_samples(x, batch, regions, outs, most or [g.max(initial=0) for g in regions.grids])
    elif most is None:
        y = _mean_by_weights(x, batch, regions, outs)
    else:
        by_weights = partial(_mean_by_weights, regions=regions, outs=outs)  # TPUs multiply faster than they gather
        by_samples = partial(_mean_of_samples, regions=regions, outs=outs, most=most)
        y = lax.platform_dependent(x, batch, tpu=by_weights, default=by_samples)
    return y.astype(x.dtype)


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


@dataclass
class _Regions:
    """Where regions lie; each field has an array (regions) for height and one for width.

    Attributes:
        starts: the smallest coordinates.
        bins: the sizes of the bins.
        grids: how many samples each bin has.
    """

    starts: list[Any]
    bins: list[Any]
    grids: list[Any]

    def taps(self, axis: int, out: int, steps: Array, size: Any) -> tuple[list[Tap], Array]:
        """The neighbours (regions, out, steps) of the samples of each bin, and which samples there are."""
        start, width, grid = (f[axis].reshape(-1, 1, 1) for f in (self.starts, self.bins, self.grids))
        dtype = start.dtype
        share = (steps.astype(dtype) + 0.5) / jnp.maximum(grid, 1).astype(dtype)
        position = start + (jnp.arange(out, dtype=dtype)[:, None] + share) * width
        n = scalar(size, dtype)
        exists = jnp.broadcast_to(steps < grid, position.shape)
        inside = exists & (position >= -1) & (position <= n)
        position = jnp.clip(position, 0, n - 1)
        low = jnp.floor(position)
        index, ratio = low.astype(jnp.int32), position - low
        high = jnp.minimum(index + 1, scalar(size, jnp.int32) - 1)
        return [Tap(index, 1 - ratio, inside), Tap(high, ratio, inside)], exists


def _bins(rois: Any, scale: float, outs: tuple[int, int], is_shifted: bool, xp: Any) -> _Regions:
    edges = rois * rois.dtype.type(scale) - rois.dtype.type(0.5 if is_shifted else 0)
    regions = _Regions([], [], [])
    for axis, out in ((1, outs[0]), (0, outs[1])):
        size = edges[:, axis + 2] - edges[:, axis]
        size = size if is_shifted else xp.maximum(size, 1)
        regions.starts.append(edges[:, axis])
        regions.bins.append(size / out)
        regions.grids.append(xp.maximum(xp.ceil(size / out), 0).astype(int))
    return regions


def _mean_of_samples(x: Array, batch: Array, regions: _Regions, outs: tuple[int, int], most: list[int]) -> Array:
    axes = []
    for i, form in enumerate(((-1, outs[0], most[0], 1, 1), (-1, 1, 1, outs[1], most[1]))):
        taps, _ = regions.taps(i, outs[i], jnp.arange(most[i]), x.shape[2 + i])
        axes.append([Tap(t.index.reshape(form), t.weight.reshape(form), t.inside.reshape(form)) for t in taps])
    count = jnp.maximum(regions.grids[0] * regions.grids[1], 1).reshape(-1, 1, 1, 1)
    total = sample(x, batch.reshape(-1, 1, 1, 1, 1), axes, _wide(x)).sum((3, 5))
    return total / count.astype(total.dtype)


def _mean_by_weights(x: Array, batch: Array, regions: _Regions, outs: tuple[int, int]) -> Array:
    """For numbers of samples that are not known now: what each element weighs in each bin, by rows and by columns."""
    weights = []
    for i, out in enumerate(outs):
        elements = jnp.arange(x.shape[2 + i])

        def add(step: Array, total: Array, i: int = i, out: int = out, elements: Array = elements) -> Array:
            taps, _ = regions.taps(i, out, step.reshape(1), x.shape[2 + i])
            return total + sum(jnp.where((t.index == elements) & t.inside, t.weight, 0) for t in taps)

        grid = regions.grids[i]
        start = jnp.zeros((grid.shape[0], out, elements.shape[0]), _wide(x))
        total = lax.fori_loop(0, grid.max(initial=0), add, start)
        weights.append(total / jnp.maximum(grid, 1).reshape(-1, 1, 1).astype(total.dtype))

    def mean(region: tuple[Array, Array, Array]) -> Array:
        index, rows, columns = region
        image = x[index].astype(rows.dtype)
        return jnp.einsum("ph,chw,qw->cpq", rows, image, columns, precision=lax.Precision.HIGHEST)

    return lax.map(mean, (batch, *weights))


def _largest_samples(x: Array, batch: Array, regions: _Regions, outs: tuple[int, int], most: list[Any]) -> Array:
    """The largest of the weighted elements around all samples; outside of the image it is 0."""

    def step(index: Array, best: Array) -> Array:
        steps = index // most[1], index % most[1]
        pairs = [regions.taps(i, outs[i], steps[i].reshape(1), x.shape[2 + i]) for i in (0, 1)]
        rows, columns = pairs[0][0], [Tap(*(jnp.swapaxes(f, 1, 2) for f in _fields(t))) for t in pairs[1][0]]
        value: Array = None
        for row in rows:
            for column in columns:
                here = gather_points(x, batch.reshape(-1, 1, 1), [row.index, column.index]).astype(best.dtype)
                here = here * jnp.expand_dims(row.weight * column.weight, 1)
                value = here if value is None else jnp.maximum(value, here)
        value = jnp.where(jnp.expand_dims(rows[0].inside & columns[0].inside, 1), value, 0)
        exists = pairs[0][1] & jnp.swapaxes(pairs[1][1], 1, 2)
        return jnp.where(jnp.expand_dims(exists, 1), jnp.maximum(best, value), best)

    none = jnp.full((batch.shape[0], x.shape[1], *outs), -jnp.inf, _wide(x))
    best = lax.fori_loop(0, most[0] * most[1], step, none)
    has_samples = (regions.grids[0] > 0) & (regions.grids[1] > 0)
    return jnp.where(has_samples.reshape(-1, 1, 1, 1), best, 0)


def _fields(tap: Tap) -> tuple[Array, Array, Array]:
    return tap.index, tap.weight, tap.inside


# MaxRoiPool


@lowers("MaxRoiPool")
def _max_roi_pool(call: Call, x: Array, rois: Array) -> Array:
    """As Fast R-CNN (arXiv:1504.08083) has it: regions include their last coordinate, and empty bins are 0."""
    scaled = lax.stop_gradient(rois) * jnp.asarray(call["spatial_scale"], rois.dtype)
    edges = (jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + 0.5)).astype(jnp.int32)[:, 1:]
    masks = []
    for axis, (out, size) in enumerate(zip(call["pooled_shape"], x.shape[2:], strict=True)):
        start, end = edges[:, 1 - axis], edges[:, 3 - axis]
        width = jnp.maximum(end - start + 1, 1).astype(jnp.float32) / np.float32(out)
        cells = jnp.arange(out, dtype=jnp.float32)
        low = start[:, None] + jnp.floor(cells * width[:, None]).astype(jnp.int32)
        high = start[:, None] + jnp.ceil((cells + 1) * width[:, None]).astype(jnp.int32)
        element = jnp.arange(size)
        masks.append((element >= low[..., None]) & (element < high[..., None]))
    least = jnp.array(-jnp.inf, x.dtype)

    def pool(region: tuple[Array, Array, Array]) -> Array:
        index, rows, columns = region
        image = jnp.where(columns[:, None, :], x[index][:, None], least).max(-1)  # (C, out, H)
        return jnp.where(rows[:, None, :], image[:, None], least).max(-1)

    y = lax.map(pool, (rois[:, 0].astype(jnp.int32), *masks))
    filled = masks[0].any(-1)[:, :, None] & masks[1].any(-1)[:, None, :]
    return jnp.where(filled[:, None], y, 0)
