"""From a layer and a method to a quantized weight: the methods of `planish.passes.quantize.weights` on real layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...ir import LazyTensor, Tensor, Value, constant, op
from ...ir.quantization import Format
from ...ir.tensor import ArrayTensor
from ..base import RequestError
from ..calibration.summaries import ChannelStatistics, GramMatrix
from ..layers import Layer
from .weights import WeightMethod
from .weights.adaround import adaround
from .weights.gptq import gptq
from .weights.grids import Granularity, Grid, grid_for
from .weights.hqq import hqq

__all__ = ["NEEDS_GRAM", "Rounded", "Rounding", "fake_quantized", "round_weight"]

Array = np.ndarray[Any, Any]
NEEDS_GRAM = frozenset({"gptq", "adaround"})
_FakeQuantize = op.domain("planish").FakeQuantize


@dataclass(frozen=True)
class Rounding:
    """How weights are quantized.

    Attributes:
        format: of the codes.
        granularity: what shares a scale: ``tensor``, ``row`` (an output channel), or a number of neighbouring inputs.
        method: ``round`` to nearest on a grid over the whole range; ``mse`` on the grid with the least squared error;
            ``hqq``; or ``gptq`` or ``adaround``, which look at the inputs.
        symmetric: whether the zero point is 0.
    """

    format: Format
    granularity: Granularity = "row"
    method: WeightMethod = "mse"
    symmetric: bool = True


@dataclass(frozen=True, eq=False)
class Rounded:
    """A quantized weight.

    Attributes:
        grid: its numbers.
        codes: [out, in], or None where the weight is rounded to nearest.
        noise: [in], the squared rounding errors, added up over the outputs.
        shift: [out], by how much the mean outputs move, for the mean input that was seen; 0 without statistics.
    """

    grid: Grid
    codes: Array | None
    noise: Array
    shift: Array


def round_weight(
    layer: Layer, how: Rounding, channels: ChannelStatistics | None = None, gram: GramMatrix | None = None
) -> Rounded:
    """Quantize the weight of ``layer``.

    Args:
        layer: the layer.
        how: the format and the method.
        channels: what is known of the channels of its input, so that errors count by the inputs that they meet.
        gram: the products of its inputs, for the methods that look at them.

    Raises:
        RequestError: the weight, or what is known of the inputs, is not finite.
    """
    weight = layer.matrix()
    per_input = None if channels is None else _per_column(channels.mean_square, weight, layer)
    groups = layer.node.attrs.get("group", 1) if layer.node.op == "Conv" else 1
    granularity = how.granularity if layer.in_axis is not None or how.granularity == "tensor" else "row"
    fit = partial(grid_for, format=how.format, granularity=granularity, symmetric=how.symmetric)
    fit = partial(fit, method="minmax" if how.method in ("round", "hqq") else "mse")
    try:
        grid = fit(weight, importance=per_input if groups == 1 and how.method != "round" else None)
        if how.method == "hqq":
            grid = hqq(weight, grid)
        codes = None
        if how.method in NEEDS_GRAM and gram is not None and gram.rows:
            codes = _by_gram(weight, grid, gram.matrix.reshape(groups, *gram.matrix.shape[-2:]), how)
    except ValueError as error:
        raise RequestError(f"{layer.name}: {error}") from error
    difference = (grid.apply(weight) if codes is None else grid.values(codes)).astype(np.float64) - weight
    shift = np.zeros(len(weight))
    if channels is not None:
        mean = _per_column(channels.mean, weight, layer)
        shift = (difference * mean).sum(axis=1) if groups == 1 else shift
    return Rounded(grid, codes, np.square(difference).sum(axis=0), shift)


def _per_column(channel: Array, weight: Array, layer: Layer) -> Array:
    """A number per input channel, for each column of ``weight``: the kernel of a convolution has many per channel."""
    if layer.in_axis is not None:
        return channel
    group = layer.node.attrs.get("group", 1)
    each = channel if group == 1 else channel.reshape(group, -1).mean(axis=0)
    return np.repeat(each, weight.shape[1] // len(each))


def _by_gram(weight: Array, grid: Grid, grams: Array, how: Rounding) -> Array:
    """The codes by a method that looks at the inputs, group by group."""
    rows = len(weight) // len(grams)
    codes = []
    for i, gram in enumerate(grams):
        part = slice(i * rows, (i + 1) * rows)
        own = grid if len(grams) == 1 else _rows_of(grid, part)
        if how.method == "gptq":
            rounded, _ = gptq(weight[part], gram, own, order=True)
        else:
            rounded = adaround(weight[part], gram, own)
        codes.append(own.round(rounded))
    return np.concatenate(codes)


def _rows_of(grid: Grid, part: slice) -> Grid:
    if not grid.scale.ndim:
        return grid
    zero = None if grid.zero_point is None else grid.zero_point[part]
    return replace(grid, scale=grid.scale[part], zero_point=zero)


def fake_quantized(layer: Layer, rounded: Rounded) -> Value:
    """The weight of ``layer`` as a FakeQuantize."""
    grid, weight = rounded.grid, layer.weight
    attrs: dict[str, Any] = {"format": grid.format.name}
    if grid.block_size:
        assert layer.in_axis is not None
        attrs |= {"axis": layer.in_axis, "block_size": grid.block_size}
    elif grid.scale.ndim:
        attrs["axis"] = layer.out_axis
    turn = grid.block_size and layer.out_axis == 1
    scale = np.ascontiguousarray(grid.scale.T) if turn else grid.scale
    zero = grid.zero_point.T if turn and grid.zero_point is not None else grid.zero_point
    zeros = None if zero is None else constant(np.ascontiguousarray(zero), grid.format.storage)
    if rounded.codes is not None:
        weight = _decoded(layer, rounded.codes, grid)
    return _FakeQuantize(weight, constant(scale.astype(np.float32)), zeros, **attrs)


def _decoded(layer: Layer, codes: Array, grid: Grid) -> Value:
    """The numbers that ``codes`` stand for, computed when they are wanted."""
    tensor: Tensor = ArrayTensor(codes, grid.format.storage)
    old = layer.weight
    assert old.const is not None

    def compute(stored: Array) -> Array:
        return layer.restored(grid.values(stored))

    lazy = LazyTensor(compute, (tensor,), old.dtype, old.const.shape, old.const.name)
    return Value(lazy.type, old.name, const=lazy)
