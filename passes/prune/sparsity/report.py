"""What ``sparsify`` has to report: a row of facts per layer, and what zeros are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ....ir import Graph
from ...base import Context
from ...layers import Layer, layers_of
from .weights import Method, Pruned

__all__ = ["describe", "rows", "sparse_bytes"]

_INDEX = 8  # bytes of an index in a sparse tensor of ONNX


def rows(graph: Graph, pruned: Sequence[Pruned], left: Mapping[Layer, str]) -> list[dict[str, Any]]:
    """The facts about every layer that was chosen, in order.

    ``weight`` is the shape; ``zeros`` the share of the weight that is 0, and ``before`` what it was; ``error`` the root
    mean square of what the layer's outputs lose, relative to theirs, predicted from the inputs that were seen (None
    without); ``method`` what chose the zeros, or why the layer was left alone.
    """
    known = {layer.node: each for each in pruned for layer in each.site.layers}
    reasons = {layer.node: reason for layer, reason in left.items()}
    found = []
    for layer in layers_of(graph):
        shape = layer.weight.const.shape if layer.weight.const is not None else ()
        facts: dict[str, Any] = {"layer": layer.name, "operator": layer.node.op, "weight": " x ".join(map(str, shape))}
        if (each := known.get(layer.node)) is not None:
            size = math.prod(shape)
            error = None if each.error is None else math.sqrt(each.error)
            facts |= {"zeros": each.after / size, "before": each.before / size, "error": error, "method": each.method}
        elif layer.node in reasons:
            facts |= {"zeros": None, "before": None, "error": None, "method": f"left alone: {reasons[layer.node]}"}
        else:
            continue
        found.append(facts)
    return found


def describe(
    graph: Graph, pruned: Sequence[Pruned], left: Mapping[Layer, str], method: Method, pattern: str, ctx: Context
) -> None:
    """Put rows and notes into the record of the pass.

    Args:
        graph: the graph, pruned.
        pruned: what became of the weights.
        left: why layers that were chosen were left alone.
        method: what was asked for.
        pattern: likewise, or "".
        ctx: whose last record it is.
    """
    record = ctx.results[-1]
    record.table += rows(graph, pruned, left)
    ctx.note("weights pruned", sum(each.after > each.before for each in pruned))
    for reason in left.values():
        ctx.note(f"left alone: {reason}")
    record.notes += [_sum(pruned), _worth(pattern, ctx.target)]
    if all(each.after == each.before for each in pruned):
        record.notes.append("sparsify adds nothing: the weights have as many zeros already")
    unseen = [each.site.first.name for each in pruned if each.method != method]
    if unseen:
        record.notes.append(f"pruned by magnitude, since {method} does not see their inputs: {_names(unseen)}")
    lost = [each.site.first.name for each in pruned if each.after == each.site.tensor.size]
    if lost:
        record.notes.append(f"nothing but zeros is left of {_names(lost)}: skip them, or take spread=lamp")


def sparse_bytes(sizes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """What weights take dense, as sparse tensors of ONNX, and as a bit per element and the numbers that are not 0.

    Args:
        sizes: elements, those that are not 0, and bits of each, by weight.
    """
    dense = sum(n * bits // 8 for n, _, bits in sizes)
    sparse = sum(min(kept * (bits // 8 + _INDEX), n * bits // 8) for n, kept, bits in sizes)
    return dense, sparse, sum(-(-n // 8) + kept * bits // 8 for n, kept, bits in sizes)


def _sum(pruned: Sequence[Pruned]) -> str:
    sizes = [(t.size, t.size - each.after, t.dtype.bits) for each in pruned for t in [each.site.tensor]]
    total, kept = sum(n for n, _, _ in sizes), sum(kept for _, kept, _ in sizes)
    before = sum(each.before for each in pruned)
    dense, sparse, packed = (_short(n) + "B" for n in sparse_bytes(sizes))
    return (
        f"{1 - kept / total:.1%} of {_short(total).strip()} weights in {len(pruned)} layers are 0 "
        f"({before / total:.1%} before): {dense} dense, {sparse} as ONNX's sparse tensors where those are smaller, "
        f"{packed} at best, with a bit for each"
    )


def _worth(pattern: str, target: str) -> str:
    """What the zeros do for latency."""
    if target.startswith("tensorrt") and pattern == "2:4":
        return "TensorRT may choose its kernels for 2:4 where the GPU has them and the builder has SPARSE_WEIGHTS"
    return (
        f"zeros make nothing faster on {target}: it multiplies by them as by any number; for speed, there is TensorRT "
        "with pattern=2:4, or prune, which makes tensors smaller"
    )


def _short(n: int) -> str:
    """``n`` with three digits and a unit, if it has more."""
    power = min((len(str(n)) - 1) // 3, 4)
    return f"{n / 1000**power:.3g} {'kMGT'[power - 1]}" if power else f"{n} "


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
