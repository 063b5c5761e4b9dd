"""Which layers are not faster in integers, measured on the machine that is the target.

Each kind of layer is measured alone, between values of the kind that stand beside it in the quantized graph: a
convolution reads and writes integers there, a product reads and writes numbers and quantizes what it reads. Alone, a
layer may have to change the layout of what it reads and writes; so those that seem slow are only under suspicion, and
the whole model decides, with the layer one way and the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...ir import DType, Graph, TensorType, Value, constant, edit, op
from ...ir.builder import make_node
from ..base import Context
from ..layers import Layer
from .budget import Trial
from .plan import Choice, Knowledge, Settings
from .rounding import fake_quantized

__all__ = ["slower_layers"]

Array = np.ndarray[Any, Any]
Run = Callable[[], object]
_REPEATS = 4  # measurements of the whole model, of which the least gain counts
_GAIN = 1.02  # how many times as fast the whole model must be with a layer in floating point
_MOST = 8  # layers that are tried in the whole model, the slowest first
_FakeQuantize = op.domain("planish").FakeQuantize


def slower_layers(trial: Trial, settings: Settings, ctx: Context) -> dict[int, float]:
    """The layers, by number, with which the model is slower in integers, with how many times as fast it is with them.

    Nothing is measured where the context may not.
    """
    if ctx.stopwatch is None:
        return {}
    suspects = _suspects(trial.knowledge, settings, ctx)
    found: dict[int, float] = {}
    if not suspects:
        return found
    choices: list[Choice] = ["integers"] * len(trial.knowledge.layers)
    current = trial.compiled(choices, settings)
    whole = ctx.stopwatch(current, current)[0]
    for i in sorted(suspects, key=lambda i: -suspects[i])[:_MOST]:
        if suspects[i] < (_GAIN - 1) * whole:  # not even if all that it loses alone were gained
            break
        other = list(choices)
        other[i] = "weights"
        changed = trial.compiled(other, settings)
        gain = _gain(current, changed, ctx)
        if gain > _GAIN:
            choices, current, found[i] = other, changed, 1 / gain
    return found


def _gain(current: Run, changed: Run, ctx: Context) -> float:
    """How many times as fast ``changed`` is: the least of several measurements, or the first that is too little."""
    least = float("inf")
    for _ in range(_REPEATS):
        assert ctx.stopwatch is not None
        before, after = ctx.stopwatch(current, changed)
        least = min(least, before / max(after, 1e-12))
        if least <= _GAIN:
            break
    return least


def _suspects(knowledge: Knowledge, settings: Settings, ctx: Context) -> dict[int, float]:
    """Layers that are not faster in integers when they run alone, with the seconds that each of them loses.

    Layers of the same operator, attributes and shapes are measured once.
    """
    measured: dict[object, tuple[float, float]] = {}
    found: dict[int, float] = {}
    for i, layer in enumerate(knowledge.layers):
        shape = knowledge.shapes.get(layer.x)
        if shape is None or layer.weight.const is None or 0 in shape:
            continue
        key = (layer.node.op, tuple(layer.node.attrs.items()), shape, layer.weight.const.shape)
        if key not in measured:
            ctx.progress(f"measuring {layer.name}")
            measured[key] = _seconds(i, shape, knowledge, settings, ctx)
        plain, integers = knowledge.seconds[i] = measured[key]
        if integers > plain:
            found[i] = integers - plain
    return found


def _seconds(
    i: int, shape: tuple[int, ...], knowledge: Knowledge, settings: Settings, ctx: Context
) -> tuple[float, float]:
    """The seconds that layer ``i`` takes alone, in floating point and in integers."""
    weight = knowledge.layers[i].weight
    own = Value(weight.type, weight.name, const=weight.const)  # a constant of this graph, and of no other
    layer = replace(knowledge.layers[i], weight=own)
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(shape, np.float32).astype(layer.x.dtype.numpy)
    plain = ctx.runner.compile(_graph(layer, layer.x.dtype, shape, lambda x: _layer(layer, x, layer.weight)))
    quantized = fake_quantized(layer, knowledge.rounded[i])
    if layer.node.op in settings.target.needs_output:
        storage = settings.activation.storage
        integers = ctx.runner.compile(_graph(layer, storage, shape, lambda x: _between_integers(layer, x, quantized)))
        codes = rng.integers(0, 100, shape).astype(storage.numpy)
    else:
        static = settings.activations == "static"
        integers = ctx.runner.compile(
            _graph(layer, layer.x.dtype, shape, lambda x: _product(layer, x, quantized, static))
        )
        codes = numbers
    assert ctx.stopwatch is not None
    return ctx.stopwatch(lambda: plain({"x": numbers}), lambda: integers({"x": codes}))


def _graph(layer: Layer, dtype: DType, shape: tuple[int, ...], build: Any) -> Graph:
    graph = Graph("layer", opsets=layer.node.graph.root.opsets if layer.node.graph is not None else None)
    result = build(graph.add_input(TensorType(dtype, shape), "x"))
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    return graph


def _layer(layer: Layer, x: Value, weight: Value) -> Value:
    """The same node on other operands; constants of its own are copied, since they belong to one graph."""
    rest = [
        o if o is None or o.const is None else Value(o.type, o.name, const=o.const) for o in layer.node.operands[2:]
    ]
    known = [o for o in rest if o is None or o.const is not None]
    return make_node(layer.node.op, (x, weight, *known), dict(layer.node.attrs)).result


def _between_integers(layer: Layer, x: Value, weight: Value) -> Value:
    scale, zero = constant(np.float32(0.02)), constant(np.zeros((), x.dtype.numpy), x.dtype)
    return op.QuantizeLinear(_layer(layer, op.DequantizeLinear(x, scale, zero), weight), scale, zero)


def _product(layer: Layer, x: Value, weight: Value, static: bool) -> Value:
    if not static:
        return _layer(layer, _FakeQuantize(x, format="uint8"), weight)
    zero = constant(np.array(128, np.uint8))
    return _layer(layer, _FakeQuantize(x, constant(np.float32(0.03)), zero, format="uint8"), weight)
