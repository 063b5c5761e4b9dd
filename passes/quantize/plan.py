"""Learning what quantization needs to know of a graph, and carrying a plan out: which layer becomes what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...ir import Graph, Node, Value, constant, edit, op
from ...ir.quantization import Format, parse_format
from ..base import Context, RequestError
from ..calibration import Calibration, collect, in_groups
from ..calibration.histogram import Histogram
from ..calibration.summaries import ChannelStatistics, ConvGram, GramMatrix, Shape
from ..layers import Layer, correct_bias, tables_of
from .placement import Placement, place
from .ranges import expected_error, parameters, range_of
from .rounding import NEEDS_GRAM, Rounded, Rounding, fake_quantized, round_weight
from .targets import Target
from .weights.grids import Grid, grid_for

__all__ = ["Choice", "Knowledge", "Settings", "apply", "choose_ranges", "learn", "predict", "translated"]

Array = np.ndarray[Any, Any]
Choice = Literal["integers", "blocks", "weights", "float"]
_GRAMS = 256 << 20  # bytes of matrices that are collected in one go
_FakeQuantize = op.domain("planish").FakeQuantize
_TABLE_BLOCK = 32  # neighbours in a row of a table that share a scale, where one for the row is too coarse
_TINY = 1e-30


@dataclass(frozen=True)
class Settings:
    """What the pass was asked for.

    Attributes:
        target: the facts about the target.
        activations: ``static``, ``dynamic`` or ``float``.
        rounding: of the weights.
        calibration: the method that chooses ranges.
        percentile: for that method.
        correct_bias: whether biases make up for shifts of the mean.
        tables: bits of tables that rows are picked from; 0: they are left alone.
        saved: the file that keeps the results of calibration, or "".
    """

    target: Target
    activations: str
    rounding: Rounding
    calibration: str = "mse"
    percentile: float = 99.99
    correct_bias: bool = False
    tables: int = 0
    saved: str = ""

    @property
    def activation(self) -> Format:
        """The format of activations."""
        return parse_format(self.target.activation)


@dataclass
class Knowledge:
    """What is known of a graph, by its values and layers.

    Attributes:
        layers: in order; results by layer are in the same order.
        rounded: the weights with the format that was asked for.
        ranges: scale and zero point of values with static ranges.
        channels: statistics of what layers multiply.
        histograms: of the values that have ranges.
        errors: the predicted squared error of each layer in integers, relative to the square of its result.
        drops: what is lost with each layer alone in integers, where that has been measured.
        blocks: weights in blocks, by the number of the layer, for those that have been needed.
        shapes: of what layers multiply, in the last sample.
        seconds: what a layer takes alone, in floating point and in integers, by its number, where that was measured.
        slower: layers that are not faster in integers, by number, with how many times as fast they are.
        tables: the grids of the tables that rows are picked from, one for each of `tables_of`.
    """

    layers: list[Layer]
    rounded: list[Rounded]
    ranges: dict[Value, tuple[Array, Array]] = field(default_factory=dict)
    channels: dict[Value, dict[int, ChannelStatistics]] = field(default_factory=dict)
    histograms: dict[Value, Histogram] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    drops: list[float] = field(default_factory=list)
    blocks: dict[int, Rounded] = field(default_factory=dict)
    shapes: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    seconds: dict[int, tuple[float, float]] = field(default_factory=dict)
    slower: dict[int, float] = field(default_factory=dict)
    tables: list[Grid] = field(default_factory=list)

    def channels_of(self, layer: Layer) -> ChannelStatistics | None:
        """The statistics of the channels that ``layer`` multiplies, if there are any."""
        return self.channels.get(layer.x, {}).get(_channel_axis(layer))


def _channel_axis(layer: Layer) -> int:
    return -1 if layer.in_axis is not None else 1


def learn(graph: Graph, layers: Sequence[Layer], settings: Settings, ctx: Context) -> Knowledge:
    """Run ``graph`` on the samples as far as needed, choose ranges, and quantize the weights.

    Raises:
        RequestError: samples are needed and there are none, a value cannot be calibrated, or a weight is not finite.
    """
    needs = settings.activations == "static" or settings.rounding.method in NEEDS_GRAM
    if needs and ctx.samples is None:
        raise RequestError(f"{settings.activations} activations and {settings.rounding.method} weights need samples")
    knowledge = Knowledge(list(layers), [])
    if ctx.samples is not None:
        _calibrate(graph, knowledge, settings, ctx)
    choose_ranges(knowledge, settings)
    knowledge.rounded = _rounded(graph, layers, settings, knowledge, ctx)
    predict(knowledge, settings)
    if settings.tables:
        knowledge.tables = [_table_grid(node, settings.tables) for node in tables_of(graph, settings.target.tables)]
    return knowledge


def _table_grid(node: Node, bits: int) -> Grid:
    table = node.given(0).const
    assert table is not None
    try:
        rows = table.numpy().astype(np.float32, copy=False)
        if bits == 8:
            return grid_for(rows, parse_format("int8"))
        return grid_for(rows, parse_format(f"int{bits}"), granularity=_TABLE_BLOCK, method="mse")
    except ValueError as error:
        raise RequestError(f"{node.name or node.op}: {error}") from error


def _tell(ctx: Context) -> Callable[[int, int | None], None]:
    """What tells how far calibration is."""
    return lambda done, total: ctx.progress(f"calibrating: {done} runs" + (f" of {total}" if total else ""))


def _calibrate(graph: Graph, knowledge: Knowledge, settings: Settings, ctx: Context) -> None:
    """Collect statistics, or read those that were saved."""
    own = [layer for layer in knowledge.layers if layer.node.graph is graph]
    axes: dict[Value, set[int]] = {}
    for layer in own:
        axes.setdefault(layer.x, set()).add(_channel_axis(layer))
    wanted: dict[Value, list[Any]] = {v: [*map(ChannelStatistics, sorted(a)), Shape()] for v, a in axes.items()}
    if settings.activations == "static":
        placement = place(graph, own, settings.target)
        for value in placement.readers:  # of those with another's range, too: with fewer integers they need theirs
            wanted.setdefault(value, []).append(Histogram())
    found: Mapping[Value, Sequence[Any]] = wanted
    if settings.saved and Path(settings.saved).exists():
        found = Calibration.load(settings.saved).of(graph)
        if any(not set(map(type, kept)) <= set(map(type, found.get(v, ()))) for v, kept in wanted.items()):
            raise RequestError(
                f"{settings.saved} is of other layers, or for another target: remove it to calibrate anew"
            )
    elif ctx.samples is not None:
        ctx.progress("calibrating")
        calibration = collect(graph, wanted, ctx.samples, ctx.runner, progress=_tell(ctx))
        if settings.saved:
            calibration.save(settings.saved)
    for value, statistics in found.items():
        for statistic in statistics:
            if isinstance(statistic, ChannelStatistics):
                knowledge.channels.setdefault(value, {})[statistic.axis] = statistic
            elif isinstance(statistic, Histogram):
                knowledge.histograms[value] = statistic
            else:
                knowledge.shapes[value] = statistic.shape


def choose_ranges(knowledge: Knowledge, settings: Settings) -> None:
    """Choose the ranges of all values that have a histogram."""
    form, symmetric = settings.activation, settings.target.symmetric
    choose = partial(range_of, method=settings.calibration, percentile=settings.percentile)
    for value, histogram in knowledge.histograms.items():
        low, high = choose(histogram, format=form, symmetric=symmetric)
        knowledge.ranges[value] = parameters(low, high, form, symmetric)


def predict(knowledge: Knowledge, settings: Settings) -> None:
    """Predict the errors of all layers, for the ranges that are chosen."""
    knowledge.errors = [_predicted(i, knowledge, settings) for i in range(len(knowledge.layers))]


def _rounded(
    graph: Graph, layers: Sequence[Layer], settings: Settings, knowledge: Knowledge, ctx: Context
) -> list[Rounded]:
    if settings.rounding.method not in NEEDS_GRAM:
        return [round_weight(layer, settings.rounding, knowledge.channels_of(layer)) for layer in layers]
    found: dict[int, Rounded] = {}
    for group in in_groups({layer.x: _gram_bytes(layer) for layer in layers}, _GRAMS):
        members = [(i, layer) for i, layer in enumerate(layers) if layer.x in group]
        grams = {layer.x: _gram_of(layer) for _, layer in members if layer.node.graph is graph}
        if grams and ctx.samples is not None:
            collect(graph, {v: [g] for v, g in grams.items()}, ctx.samples, ctx.runner)
        for i, layer in members:
            ctx.progress(f"rounding the weights of {layer.name}")
            gram = grams.get(layer.x)
            fits = isinstance(gram, ConvGram) is (layer.in_axis is None)
            found[i] = round_weight(layer, settings.rounding, knowledge.channels_of(layer), gram if fits else None)
    return [found[i] for i in range(len(layers))]


def _gram_of(layer: Layer) -> GramMatrix:
    return GramMatrix() if layer.in_axis is not None else ConvGram.of(layer.node)


def _gram_bytes(layer: Layer) -> int:
    return 8 * layer.inputs**2 * int(layer.node.attrs.get("group", 1))


def _predicted(i: int, knowledge: Knowledge, settings: Settings) -> float:
    """The squared error of layer ``i`` in integers, relative to its result, if its inputs were not correlated."""
    layer, rounded = knowledge.layers[i], knowledge.rounded[i]
    channels = knowledge.channels_of(layer)
    weight = layer.matrix()
    if channels is None:
        return float(rounded.noise.sum() / max(float(np.square(weight).sum()), _TINY))
    columns = np.square(weight).sum(axis=0)
    squares = channels.mean_square
    if len(squares) != len(columns):  # a convolution: every channel meets a whole kernel
        squares = np.repeat(squares.reshape(layer.node.attrs.get("group", 1), -1).mean(axis=0), 1)
        squares = np.repeat(squares, len(columns) // len(squares))
    step = 0.0
    if settings.activations == "dynamic":
        step = float((channels.high.max() - channels.low.min()) / 255) ** 2 / 12
    elif layer.x in knowledge.ranges and layer.x in knowledge.histograms:
        step = expected_error(knowledge.histograms[layer.x], *knowledge.ranges[layer.x], settings.activation)
    return float(
        (step * columns.sum() + (squares * rounded.noise).sum()) / max(float((squares * columns).sum()), _TINY)
    )


def translated(knowledge: Knowledge, mapping: Mapping[Value, Value]) -> Knowledge:
    """``knowledge`` of a graph about a clone of it, by the mapping from values to their copies."""

    def copy(layer: Layer) -> Layer:
        node = mapping[layer.node.result].producer
        assert node is not None
        return replace(layer, node=node, x=node.given(0), weight=node.given(1))

    def moved(table: dict[Value, Any]) -> dict[Value, Any]:
        return {mapping[v]: x for v, x in table.items()}

    return replace(
        knowledge,
        layers=[copy(layer) for layer in knowledge.layers],
        ranges=moved(knowledge.ranges),
        channels=moved(knowledge.channels),
        histograms=moved(knowledge.histograms),
    )


# carrying it out


def apply(graph: Graph, choices: Sequence[Choice], knowledge: Knowledge, settings: Settings) -> Placement:
    """Quantize ``graph`` in place, every layer as chosen for it.

    Returns:
        Where activations were quantized.
    """
    chosen = dict(zip(knowledge.layers, choices, strict=True))
    integers = [layer for layer, choice in chosen.items() if choice == "integers"]
    placement = Placement()
    if settings.activations == "static":
        placement = place(graph, integers, settings.target)
        quantizers = [_static(v, uses, placement, knowledge, settings) for v, uses in placement.readers.items()]
        for quantizer in quantizers:
            _saturate(quantizer, settings)
    elif settings.activations == "dynamic":
        _dynamic(integers, lambda layer: {"format": "uint8"})
    _quantize_tables(graph, knowledge, settings)
    in_blocks = [layer for layer, choice in chosen.items() if choice == "blocks"]
    size = settings.target.block_size
    _dynamic(in_blocks, lambda layer: {"format": "int8", "axis": -1, "block_size": size or layer.inputs})
    for i, layer in enumerate(knowledge.layers):
        if choices[i] == "float":
            continue
        rounded = _in_blocks(i, knowledge, settings) if choices[i] == "blocks" and size else knowledge.rounded[i]
        _insert([fake := fake_quantized(layer, rounded)], layer.node)
        if settings.correct_bias:
            correct_bias(layer, rounded.shift)
        edit.set_operand(layer.node, 1, fake)
    return placement


def _quantize_tables(graph: Graph, knowledge: Knowledge, settings: Settings) -> None:
    """Let lookups read rows of quantized tables; a table that several read is quantized once."""
    done: dict[Value, Value] = {}
    for node, grid in zip(tables_of(graph, settings.target.tables), knowledge.tables, strict=False):
        table = node.given(0)
        if table not in done or not edit.dominates(done[table], node):
            where = {"axis": 1, "block_size": grid.block_size} if grid.block_size else {"axis": 0}
            done[table] = _FakeQuantize(table, constant(grid.scale), format=grid.format.name, **where)
            _insert([done[table]], node)
        edit.set_operand(node, 0, done[table])


def _in_blocks(i: int, knowledge: Knowledge, settings: Settings) -> Rounded:
    """The weight of layer ``i`` in blocks, for activations in blocks."""
    if i not in knowledge.blocks:
        method = settings.rounding.method
        how = replace(
            settings.rounding, granularity=settings.target.block_size, method="mse" if method in NEEDS_GRAM else method
        )
        layer = knowledge.layers[i]
        knowledge.blocks[i] = round_weight(layer, how, knowledge.channels_of(layer))
    return knowledge.blocks[i]


def _insert(values: Sequence[Value], before: Node) -> None:
    for node in edit.insert_floating(values, before):
        node.name, node.metadata = f"{before.name}/quantize" if before.name else "", before.metadata


def _behind(value: Value, graph: Graph) -> Node:
    """The node before which something goes that is computed from ``value``."""
    if value.producer is not None:
        following = value.producer.next
        assert following is not None
        return following
    return next(iter(graph.nodes), graph.ret)


def _static(
    value: Value, uses: Sequence[tuple[Node, int]], placement: Placement, knowledge: Knowledge, settings: Settings
) -> Node:
    """Let ``uses`` read ``value`` quantized, with the range that it was seen to have."""
    scale, zero = knowledge.ranges[placement.range_of(value)]
    form = settings.activation
    zeros = constant(zero, form.storage) if not form.is_signed or zero.any() else None
    quantized = _FakeQuantize(value, constant(scale), zeros, format=form.name)
    home = value.graph if value.producer is None else value.producer.graph
    assert home is not None and isinstance(quantized, Value) and quantized.producer is not None
    _insert([quantized], _behind(value, home))
    for node, position in uses:
        edit.set_operand(node, position, quantized)
    return quantized.producer


def _saturate(quantizer: Node, settings: Settings) -> None:
    """Drop the Relu or Clip before a quantizer that saturates at the same numbers or before."""
    while True:
        x = quantizer.given(0)
        clip = x.producer
        if clip is None or clip.op not in settings.target.absorbs or x.users != (quantizer,):
            return
        if any(b is not None and b.const is None for b in clip.operands[1:]):
            return
        low, high = _bounds(quantizer)
        bounds = [
            None if b is None or b.const is None else float(b.const.numpy().reshape(())) for b in clip.operands[1:]
        ]
        least, most = (0.0, None) if clip.op == "Relu" else (*bounds, None, None)[:2]
        slack = 1e-6 * (high - low)
        if (least is not None and low < least - slack) or (most is not None and high > most + slack):
            return
        edit.set_operand(quantizer, 0, clip.given(0))
        edit.erase_dead([clip])


def _bounds(quantizer: Node) -> tuple[float, float]:
    """The least and the greatest number that comes out of a static quantizer."""
    form, scale, zero = parse_format(quantizer.attrs["format"]), quantizer.given(1), quantizer.operand(2)
    assert scale.const is not None
    step = float(scale.const.numpy().reshape(()))
    offset = 0.0 if zero is None or zero.const is None else float(zero.const.numpy().reshape(()))
    return (form.low - offset) * step, (form.high - offset) * step


def _dynamic(layers: Sequence[Layer], attrs: Callable[[Layer], Mapping[str, Any]]) -> None:
    """Let ``layers`` read what they multiply quantized at run time; a value that several read is quantized once."""
    quantized: dict[Value, Value] = {}
    for layer in sorted(layers, key=lambda layer: layer.node.order):
        x = layer.x
        if x not in quantized or not edit.dominates(quantized[x], layer.node):
            quantized[x] = _FakeQuantize(x, **attrs(layer))
            _insert([quantized[x]], layer.node)
        edit.set_operand(layer.node, 0, quantized[x])
