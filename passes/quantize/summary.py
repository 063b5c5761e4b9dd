"""What quantization has to report: one row of facts per layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...ir import Graph, Node
from ...ir.quantization import FAKE_QUANTIZE, Format, format_of, is_fake_quantize
from ..base import PassResult
from ..layers import Layer
from ..observers.explain import describe as describe_node
from .plan import Choice, Knowledge, Settings
from .targets import Target

__all__ = ["describe", "rows", "why_float"]

_KERNELS: dict[Choice, str] = {
    "integers": "int8",
    "blocks": "int8 in blocks of rows",
    "weights": "float: more precise, to keep the budget",
    "float": "float: not quantized, to keep the budget",
}


def rows(choices: Sequence[Choice], knowledge: Knowledge, settings: Settings) -> list[dict[str, Any]]:
    """The facts about every layer, in order.

    ``sqnr`` is the predicted ratio of signal to quantization noise of the layer's result in decibels, ``share`` the
    part of the predicted errors of all layers that is its (of the measured drops, if there are any), both as if it were
    in integers; ``drop`` what is lost with this layer alone in integers, and ``seconds`` what it takes alone in
    floating point and in integers, if measured; ``kernel`` what it runs as.
    """
    weights = knowledge.drops or knowledge.errors
    total = sum(weights) or 1.0
    found = []
    for i, (layer, choice, error) in enumerate(zip(knowledge.layers, choices, knowledge.errors, strict=True)):
        weight, x = layer.node.given(1), layer.node.given(0)
        low, high = _range(layer, knowledge)
        kernel = _KERNELS[choice]
        if settings.activations == "float" and choice == "weights":
            kernel = "float: only weights are quantized"
        elif choice == "integers" and not _has_kernel(layer, knowledge.rounded[i].grid.format, settings.target):
            kernel = f"float: no integer kernel for {knowledge.rounded[i].grid.format} weights"
        elif choice == "integers" and knowledge.rounded[i].grid.block_size:
            kernel = "float: no integer kernel for weights in blocks and activations per tensor"
        elif i in knowledge.slower:
            kernel = f"float: the model is slower with it in integers ({knowledge.slower[i]:.2f}x)"
        found.append(
            {
                "layer": layer.name,
                "operator": layer.node.op,
                "weight": str(format_of(weight.producer)) if is_fake_quantize(weight) and weight.producer else "float",
                "activation": str(format_of(x.producer)) if is_fake_quantize(x) and x.producer else "float",
                "low": low,
                "high": high,
                "sqnr": -10 * math.log10(error) if error > 0 else None,
                "share": weights[i] / total,
                "drop": knowledge.drops[i] if knowledge.drops else None,
                "seconds": list(knowledge.seconds[i]) if i in knowledge.seconds else None,
                "kernel": kernel,
            }
        )
    return found


def _has_kernel(layer: Layer, weight: Format, target: Target) -> bool:
    return weight.storage.bits == 8 or layer.node.op in target.widens


def _range(layer: Layer, knowledge: Knowledge) -> tuple[float | None, float | None]:
    channels = knowledge.channels_of(layer)
    return (None, None) if channels is None else (float(channels.low.min()), float(channels.high.max()))


def describe(choices: Sequence[Choice], knowledge: Knowledge, settings: Settings, result: PassResult) -> None:
    """Put the facts into ``result``."""
    result.table = rows(choices, knowledge, settings)
    for kernel, count in Counter(row["kernel"].partition(" (")[0] for row in result.table).items():
        result.fired[f"layers in {kernel}" if kernel.startswith("int") else f"layers kept in {kernel}"] += count
    if knowledge.tables:
        result.fired[f"tables in int{settings.tables}"] += len(knowledge.tables)


def why_float(graph: Graph, target: Target) -> list[tuple[str, str]]:
    """What computes with floating-point numbers in a quantized ``graph``, and why: nodes, and reasons, in order.

    Operators that only move elements are left out, and so is everything in a graph that is not quantized at all.
    """
    nodes = [n for n in graph.walk() if n.op not in target.moves and n.op != FAKE_QUANTIZE]
    if all(n.op != FAKE_QUANTIZE for n in graph.walk()):
        return []
    return [(describe_node(n), reason) for n in nodes if (reason := _reason(n, target))]


def _reason(node: Node, target: Target) -> str:
    floats = [o for o in node.operands if o is not None and o.dtype.is_floating]
    if not floats or not any(r.dtype.is_floating for r in node.results):
        return ""
    if node.op in target.layers:
        return _why_no_layer(node, target)
    if node.op not in target.computes:
        return f"{target.name} has no integer kernel for {node.op}"
    if not all(is_fake_quantize(o) for o in floats):
        return "not all that it reads is quantized"
    users = node.result.users
    return "" if users and all(u.op == FAKE_QUANTIZE for u in users) else "its result is not quantized"


def _why_no_layer(node: Node, target: Target) -> str:
    x, weight = node.given(0), node.given(1)
    if not is_fake_quantize(weight):
        return "its weight is not quantized" if weight.const is not None else "it multiplies two computed values"
    if not is_fake_quantize(x):
        return "what it multiplies is not quantized"
    behind = node.result
    if node.op in target.needs_output and not (behind.users and all(u.op == FAKE_QUANTIZE for u in behind.users)):
        return f"its result is not quantized, which {node.op} needs on {target.name}"
    return ""
