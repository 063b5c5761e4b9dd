"""Convolutions: padding that TensorRT computes in another way, sampled ones, and sums of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import FLOATS, Row, refusal
from ..sizes import Size, floor_divide, iota, reshape, size_of, times, vector
from ..versions import Version

__all__ = ["FORMS", "ROWS"]

_VOLUMES = {1: 100_000, 2: 100_000, 3: 1_000_000}  # filters are smaller than this, by spatial dimensions


# legality


def _conv_refusal(node: Node, version: Version) -> str:
    return _filters_refusal(node, version, outputs=0)


def _conv_transpose_refusal(node: Node, version: Version) -> str:
    x = node.operands[0]
    if x is not None and x.shape is not None and not isinstance(x.shape[1], int):
        return "the number of channels must be known"
    if node.attrs.get("output_shape") is not None or node.attrs.get("auto_pad", "NOTSET").startswith("SAME"):
        return "padding that follows from the size of the result"
    strides, dilations = (node.attrs.get(n) or (1,) for n in ("strides", "dilations"))
    if max(strides) > 1 and max(dilations) > 1:
        return f"{version} does not transpose strides and dilations together"
    return _filters_refusal(node, version, outputs=1)


def _filters_refusal(node: Node, version: Version, outputs: int) -> str:
    """What is wrong with filters of which dimension ``outputs`` counts those of the result."""
    x, filters = node.given(0), node.given(1)
    if filters.shape is None or x.shape is None:
        return "its rank is not known"
    sizes = filters.shape[2:]
    known = [n for n in sizes if isinstance(n, int)]
    if len(known) < len(sizes) or not isinstance(filters.shape[outputs], int):
        return "the number and the size of the filters must be known"
    if any(n < 1 for n in known) or math.prod(known) >= _VOLUMES.get(len(known), 0):
        return f"filters of {math.prod(known)} elements"
    if filters.const is None and isinstance(x.shape[1], int) and not isinstance(filters.shape[1 - outputs], int):
        return "the number of channels of the filters must be known"
    return "negative padding" if any(p < 0 for p in node.attrs.get("pads") or ()) else ""


# forms


def _conv(node: Node, version: Version) -> list[Value] | None:
    """With elements cut off before, where padding is negative."""
    x, pads = node.given(0), node.attrs.get("pads") or ()
    if x.rank is None or not 3 <= x.rank <= 5 or not any(p < 0 for p in pads):
        return None
    count = len(pads) // 2
    cut = [0, 0, *(min(p, 0) for p in pads[:count]), 0, 0, *(min(p, 0) for p in pads[count:])]
    x = op.Pad(x, constant(np.array(cut, np.int64)))
    attrs = {**node.attrs, "pads": tuple(max(p, 0) for p in pads)}
    return [make_node("Conv", (x, *node.operands[1:]), attrs).result]


def _conv_transpose(node: Node, version: Version) -> list[Value] | None:
    """With explicit padding, filters that hold their dilation, and in float32 what is bfloat16."""
    x, filters = node.given(0), node.given(1)
    padding = _transposed_padding(node, x, filters)
    if padding is None:
        return None
    before, after, extra = padding
    attrs = {k: v for k, v in node.attrs.items() if k not in ("auto_pad", "output_shape", "output_padding", "pads")}
    if any(extra):
        attrs["output_padding"] = tuple(extra)
    attrs["pads"] = (*(max(p, 0) for p in before), *(max(p, 0) for p in after))
    more = [0, 0, *(max(-p, 0) for p in before), 0, 0, *(max(-p, 0) for p in after)]
    dilations = attrs.get("dilations") or ()
    operands = (x, filters, *node.operands[2:])
    if max(attrs.get("strides") or (1,)) > 1 and any(d > 1 for d in dilations):
        dilated = _dilated(filters, dilations)
        if dilated is None:
            return None
        attrs = {k: v for k, v in attrs.items() if k not in ("dilations", "kernel_shape")}
        operands = (x, dilated, *node.operands[2:])
    if x.dtype not in (DType.FLOAT, DType.FLOAT16):
        operands = _as_float(operands)
    made = make_node("ConvTranspose", operands[:2] if any(more) else operands, attrs)
    if refusal(made, version):
        return None
    y, bias = made.result, operands[2] if len(operands) > 2 else None
    if any(more):
        y = op.Pad(y, constant(np.array(more, np.int64)))
        y = op.Add(y, reshape(bias, [-1, *[1] * len(before)])) if bias is not None else y
    return [y if y.dtype is x.dtype else op.Cast(y, to=x.dtype)]


def _dilated(filters: Value, dilations: Sequence[int]) -> Value | None:
    """The filters with zeros between their elements."""
    rank, sizes = len(filters.shape or ()), (filters.shape or ())[2:]
    for axis, (n, d) in enumerate(zip(sizes, dilations, strict=True), 2):
        if not isinstance(n, int):
            return None
        if d == 1 or n == 1:
            continue
        shape = [size_of(filters, i) for i in range(rank)]
        pads = [0] * 2 * (rank + 1)
        pads[rank + 2 + axis] = d - 1
        spread = op.Pad(op.Unsqueeze(filters, constant([axis + 1], DType.INT64)), constant(np.array(pads, np.int64)))
        shape[axis] = n * d
        bounds = (constant([i], DType.INT64) for i in (0, (n - 1) * d + 1, axis))
        filters = op.Slice(reshape(spread, shape), *bounds)
    return filters


def _as_float(values: Sequence[Value | None]) -> tuple[Value | None, ...]:
    return tuple(None if v is None else op.Cast(v, to=DType.FLOAT) for v in values)


def _transposed_padding(node: Node, x: Value, filters: Value) -> tuple[list[int], list[int], list[int]] | None:
    """What is cut off in front and behind (negative: added), and what is added behind, by dimension."""
    if x.shape is None or filters.shape is None or not 3 <= len(x.shape) <= 5:
        return None
    sizes, rank = filters.shape[2:], len(x.shape) - 2
    strides, dilations = (node.attrs.get(n) or (1,) * rank for n in ("strides", "dilations"))
    extra = list(node.attrs.get("output_padding") or (0,) * rank)
    wanted, padding = node.attrs.get("output_shape"), node.attrs.get("auto_pad", "NOTSET")
    if wanted is None and not padding.startswith("SAME"):
        pads = node.attrs.get("pads") if padding == "NOTSET" else None
        pads = pads or (0,) * 2 * rank
        return list(pads[:rank]), list(pads[rank:]), extra
    before, after = [], []
    for i in range(rank):
        n, size = x.shape[i + 2], sizes[i]
        if not isinstance(size, int):
            return None
        total = (size - 1) * dilations[i] + 1 + extra[i] - strides[i]  # the excess over n * strides[i]
        if wanted is not None:
            if not isinstance(n, int):
                return None
            total += n * strides[i] - wanted[len(wanted) - rank + i]
        if total < 0:  # the result is longer only where it is stated
            before.append(0)
            after.append(total if wanted is not None else 0)
            continue
        half, rest = total // 2, total - total // 2
        before.append(half if padding == "SAME_UPPER" else rest)
        after.append(rest if padding == "SAME_UPPER" else half)
    return before, after, extra


def _deform_conv(node: Node, version: Version) -> list[Value] | None:
    """The elements under every filter are sampled as from an image, and multiplied with the filters."""
    x, filters, offset = (node.given(i) for i in range(3))
    bias, mask = node.operand(3), node.operand(4)
    if x.rank != 4 or filters.shape is None or not all(isinstance(n, int) for n in filters.shape):
        return None
    count, depth, *kernel = (n for n in filters.shape if isinstance(n, int))
    group, parts, area = node.attrs.get("group", 1), node.attrs.get("offset_group", 1), math.prod(kernel)
    batch, height, width = size_of(offset, 0), size_of(offset, 2), size_of(offset, 3)
    dtype = x.dtype
    wide = [v if v is None or v.dtype is DType.FLOAT else op.Cast(v, to=DType.FLOAT) for v in (x, offset, mask)]
    image, moved, mask = wide[0], wide[1], wide[2]
    assert image is not None and moved is not None
    moved = reshape(moved, [times(batch, parts), area, 2, height, width])
    position = op.Add(moved, _positions(node, kernel, height, width))
    limits = op.Cast(vector([size_of(x, 2), size_of(x, 3)]), to=DType.FLOAT)
    doubled = op.Add(op.Mul(position, constant(2.0, DType.FLOAT)), constant(1.0, DType.FLOAT))
    relative = op.Sub(op.Div(doubled, reshape(limits, [1, 1, 2, 1, 1])), constant(1.0, DType.FLOAT))
    swapped = op.Gather(relative, constant(np.array([1, 0], np.int64)), axis=2)
    grid = reshape(op.Transpose(swapped, perm=(0, 1, 3, 4, 2)), [times(batch, parts), times(height, area), width, 2])
    image = reshape(image, [times(batch, parts), depth * group // parts, size_of(x, 2), size_of(x, 3)])
    found = op.GridSample(image, grid, mode="linear", padding_mode="zeros", align_corners=0)
    if mask is not None:
        found = op.Mul(found, reshape(mask, [times(batch, parts), 1, times(height, area), width]))
    columns = reshape(found, [batch, group, depth * area, times(height, width)])
    rows = reshape(filters, [1, group, count // group, depth * area])
    y = op.MatMul(rows if rows.dtype is DType.FLOAT else op.Cast(rows, to=DType.FLOAT), columns)
    y = reshape(y, [batch, count, height, width])
    if bias is not None:
        y = op.Add(y, reshape(op.Cast(bias, to=DType.FLOAT), [-1, 1, 1]))
    return [y if dtype is DType.FLOAT else op.Cast(y, to=dtype)]


def _positions(node: Node, kernel: Sequence[int], height: Size, width: Size) -> Value:
    """Where the elements of filters stand without offsets: (1, elements, 2, height, width)."""
    strides, dilations = (node.attrs.get(n) or (1, 1) for n in ("strides", "dilations"))
    pads = node.attrs.get("pads") or (0, 0, 0, 0)
    taps = np.stack(np.meshgrid(*(np.arange(k) for k in kernel), indexing="ij"), -1).reshape(1, -1, 2, 1, 1)
    first = taps * np.reshape(dilations, (1, 1, 2, 1, 1)) - np.reshape(pads[:2], (1, 1, 2, 1, 1))
    down = op.Mul(iota(height), constant(strides[0], DType.INT64))
    right = op.Mul(iota(width), constant(strides[1], DType.INT64))
    down, right = reshape(down, [1, 1, 1, -1, 1]), reshape(right, [1, 1, 1, 1, -1])
    unit = np.array([1, 0], np.int64).reshape(1, 1, 2, 1, 1)
    steps = op.Add(op.Mul(down, constant(unit)), op.Mul(right, constant(1 - unit)))
    return op.Cast(op.Add(steps, constant(first.astype(np.int64))), to=DType.FLOAT)


# sums of columns


def _col2im(node: Node, version: Version) -> list[Value] | None:
    """A transposed convolution with one filter per element of a block; a product where the block is not known."""
    x, image, block = (node.given(i) for i in range(3))
    if x.rank != 3:
        return None
    if image.const is None or block.const is None:
        return _col2im_by_product(node, x, image, block)
    shape, sizes = (tuple(int(n) for n in v.const.numpy()) for v in (image, block) if v.const is not None)
    rank = len(shape)
    strides, dilations, pads = _steps(node, rank)
    if rank > 3 or math.prod(sizes) >= _VOLUMES[rank]:
        return None
    area, counts, extra = math.prod(sizes), [], []
    for i, (n, k) in enumerate(zip(shape, sizes, strict=True)):
        room = n + pads[i] + pads[i + rank] - (k - 1) * dilations[i] - 1
        counts.append(room // strides[i] + 1)
        extra.append(room % strides[i])  # elements behind the last block
    batch, channels = size_of(x, 0), floor_divide(size_of(x, 1), area)
    columns = reshape(x, [times(batch, channels), area, *counts])
    filters = constant(np.eye(area).reshape(area, 1, *sizes), x.dtype)
    attrs = {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": extra}
    made = make_node(
        "ConvTranspose", (columns, filters), {k: v for k, v in attrs.items() if k != "output_padding" or any(v)}
    )
    y = made.result
    return [reshape(y, [batch, channels, *shape])]


def _steps(node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    strides, dilations = (tuple(node.attrs.get(n) or (1,) * rank) for n in ("strides", "dilations"))
    return strides, dilations, tuple(node.attrs.get("pads") or (0,) * 2 * rank)


def _col2im_by_product(node: Node, x: Value, image: Value, block: Value) -> list[Value] | None:
    """Every element goes where the block, which is known only then, puts it: a product with zeros and ones."""
    result = node.results[0].shape
    if x.shape is None or result is None or not all(isinstance(n, int) for n in (*x.shape[1:], *result[1:])):
        return None
    channels, *shape = (n for n in result[1:] if isinstance(n, int))
    rank, (area, blocks) = len(shape), (n for n in x.shape[1:] if isinstance(n, int))
    area //= channels
    strides, dilations, pads = (np.array(v, np.int64) for v in _steps(node, rank))
    padded = constant(np.array(shape, np.int64) + pads[:rank] + pads[rank:] - 1)
    span = op.Mul(op.Sub(block, constant(1, DType.INT64)), constant(dilations))
    counts = op.Add(op.Div(op.Sub(padded, span), constant(strides)), constant(1, DType.INT64))
    inner, outer = _digits(area, block, rank), _digits(blocks, counts, rank)
    places = []
    for i in range(rank):
        inside = reshape(op.Mul(inner[i], constant(dilations[i])), [-1, 1])
        places.append(op.Add(inside, op.Sub(op.Mul(outer[i], constant(strides[i])), constant(pads[i]))))
    hits: list[Value] = []
    for i, (place, n) in enumerate(zip(places, shape, strict=True)):
        of = constant(np.arange(n, dtype=np.int64).reshape(*[1] * i, n, *[1] * (rank - 1 - i), 1, 1))
        hits.append(op.Equal(place, of))
    picked = reshape(op.Cast(reduce(op.And, hits), to=x.dtype), [math.prod(shape), area * blocks])
    rows = reshape(x, [-1, channels, area * blocks])
    return [reshape(op.MatMul(rows, op.Transpose(picked, perm=(1, 0))), [-1, channels, *shape])]


def _digits(count: int, base: Value, rank: int) -> list[Value]:
    """The numbers up to ``count`` as indices of an array of shape ``base``, dimension by dimension."""
    rest, found = constant(np.arange(count, dtype=np.int64)), []
    for i in range(rank - 1, -1, -1):
        size = op.Slice(base, *(constant([n], DType.INT64) for n in (i, i + 1, 0)))
        quotient = op.Div(rest, size)
        found.append(op.Sub(rest, op.Mul(quotient, size)))
        rest = quotient
    return found[::-1]


FORMS = {"Col2Im": _col2im, "Conv": _conv, "ConvTranspose": _conv_transpose, "DeformConv": _deform_conv}


def _deform_refusal(node: Node, version: Version) -> str:
    pads = node.attrs.get("pads") or ()
    return "padding that is not the same on both sides" if pads[: len(pads) // 2] != pads[len(pads) // 2 :] else ""


ROWS = {
    "Conv": Row({"T": FLOATS}, ranks=(3, 5), check=_conv_refusal),
    "ConvTranspose": Row({"T": FLOATS - {DType.BFLOAT16}}, ranks=(3, 5), check=_conv_transpose_refusal),
    "DeformConv": Row(
        {"T": FLOATS - {DType.BFLOAT16}}, ranks=(3, 4), check=_deform_refusal, since=(10, 0), rtx=False
    ),  # a plugin, which TensorRT for RTX lacks
}
