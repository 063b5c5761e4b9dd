"""``drop-layers``: leaves layers of a deep network out.

Neighbouring layers of a residual network change little of what passes through them, so that the network still works
with some of them gone, and learns the rest back quickly (`planish.passes.train`). How much a layer changes is its block
influence, ``1 - E[cos(x, y)]`` of what enters it and what leaves it at each position (ShortGPT, Men et al. 2024,
arXiv:2403.03853). Without samples, layers are left out at even distances, as for DistilBERT (Sanh et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...ir import DType, Graph, LazyTensor, Tensor, Value, constant, edit, op
from ...ir.clone import clone_graph
from ..base import Context, Pass, RequestError
from ..numerics import Lossy
from .blocks import Block, at_root, blocks_of, leaks

__all__ = ["DropLayers"]

Array = np.ndarray[Any, Any]
_SHARE = 0.5  # of the layers that goes, if nothing is said


@dataclass(frozen=True)
class DropLayers(Pass):
    """Leave out layers: repeated residual blocks, such as those of a transformer, or of a stage of a residual network.

    One of `keep`, `drop`, `ratio` and `layers` says how many; without them, half. Layers are numbered from 0 in the
    order in which they are computed, over all stacks of the graph. A layer that computes an output of the graph
    besides, such as the keys and values for a cache, stays: the interface of the graph never changes.

    Attributes:
        keep: how many layers stay.
        drop: how many go.
        ratio: the share of the layers that goes, rounded to a whole number of them.
        layers: the numbers of those that go.
        by: which go: those that change least on samples (``importance``); ``every`` so many; the ``last`` ones;
            ``auto`` is ``importance`` if there are samples, else ``every``.
        merge: whether the weights of a layer that goes are averaged into the layer before it in its stack (the one
            behind, if there is none), where both have the same structure.

    Raises:
        RequestError: there are no such layers, fewer than are to go, or no samples where they are needed.
    """

    numerics = Lossy()

    keep: int | None = None
    drop: int | None = None
    ratio: float | None = None
    layers: tuple[int, ...] = ()
    by: Literal["auto", "importance", "every", "last"] = "auto"
    merge: bool = False

    def __post_init__(self) -> None:
        given = [self.keep is not None, self.drop is not None, self.ratio is not None, bool(self.layers)]
        if sum(given) > 1:
            raise ValueError("say once how many layers go: one of keep, drop, ratio and layers")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep is {self.keep}: one layer stays at least")
        if self.drop is not None and self.drop < 1:
            raise ValueError(f"drop is {self.drop}: one layer goes at least")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}: it lies between 0 and 1")
        if len(set(self.layers)) < len(self.layers) or min(self.layers, default=0) < 0:
            raise ValueError("layers are different numbers from 0 on")
        if self.layers and self.by != "auto":
            raise ValueError(f"layers says which go, so by={self.by} has no meaning")

    def run(self, graph: Graph, ctx: Context) -> None:
        blocks = blocks_of(graph)
        if not blocks:
            raise RequestError(
                "drop-layers: the graph has no residual blocks x + f(x) whose input and output are alike"
            )
        held = {i: problem for i, block in enumerate(blocks) if (problem := _problem(block, graph))}
        count = self._count(len(blocks))
        influences = self._influences(graph, blocks, ctx)
        gone = self._chosen(len(blocks), count, held, influences)
        if ctx.results:
            ctx.results[-1].table = _rows(blocks, gone, held, influences)
            nbytes = sum(blocks[i].nbytes for i in gone)
            ctx.results[-1].notes.append(f"{len(gone)} of {len(blocks)} layers left out, {nbytes:,} bytes of weights")
        if self.merge:
            _merge(blocks, gone, ctx)
        stand_ins: dict[Value, Value] = {}
        for i in gone:
            entry = stand_ins.get(blocks[i].entry, blocks[i].entry)
            edit.replace(blocks[i].exit, entry)
            stand_ins[blocks[i].exit] = entry
            ctx.note("layers left out")
        edit.erase_dead(node for i in gone for node in reversed(blocks[i].nodes))

    def _count(self, total: int) -> int:
        """How many layers go.

        Raises:
            RequestError: none, all, or more than there are.
        """
        if self.layers:
            if max(self.layers) >= total:
                raise RequestError(
                    f"drop-layers: there is no layer {max(self.layers)}: they are numbered 0 to {total - 1}"
                )
            count = len(self.layers)
        elif self.drop is not None or self.keep is not None:
            count = self.drop if self.drop is not None else total - (self.keep or 0)
        else:
            count = round((_SHARE if self.ratio is None else self.ratio) * total)
        if not 0 < count < total:
            what = "nothing would go" if count <= 0 else "none would stay"
            raise RequestError(f"drop-layers: of {total} layers, {what}: change {self}")
        return count

    def _influences(self, graph: Graph, blocks: Sequence[Block], ctx: Context) -> list[float] | None:
        if self.by == "importance" and ctx.samples is None:
            raise RequestError("drop-layers: by=importance needs samples: give data, or say by=every")
        if ctx.samples is None or not ctx.can_run or self.layers or self.by not in ("auto", "importance"):
            return None
        return influences(graph, blocks, ctx)

    def _chosen(self, total: int, count: int, held: dict[int, str], influences: Sequence[float] | None) -> list[int]:
        """The layers that go, in order.

        Raises:
            RequestError: too many of them have to stay.
        """
        for i in self.layers:
            if i in held:
                raise RequestError(f"drop-layers: layer {i} cannot go: {held[i]}")
        if self.layers:
            return sorted(self.layers)
        free = [i for i in range(total) if i not in held]
        if len(free) < count:
            first = next(iter(held))
            raise RequestError(
                f"drop-layers: {count} of {total} layers are to go, and {len(held)} have to stay: "
                f"layer {first}, for one, as {held[first]}"
            )
        if influences is not None:
            return sorted(sorted(free, key=lambda i: influences[i])[:count])
        if self.by == "last":
            return free[-count:]
        stay = len(free) - count
        return [free[i] for i in range(len(free)) if i not in {j * len(free) // stay for j in range(stay)}]


def influences(graph: Graph, blocks: Sequence[Block], ctx: Context) -> list[float]:
    """The block influence of each block on the samples: ``1 - E[cos(x, y)]`` over all positions.

    Features lie along axis 1 where a convolution reads the block's input, and along the last axis elsewhere. Positions
    at which either is zero are left out. The cosines are computed in the graph, so nothing large is kept.

    Raises:
        RequestError: there are no samples.
    """
    from ..calibration import collect

    mapping: dict[Value, Value] = {}
    probe = clone_graph(graph, mapping)
    cosines = [_cosine(mapping[b.entry], mapping[b.exit], _feature_axis(b)) for b in blocks]
    edit.insert_floating(cosines, probe.ret)
    means = [_Mean() for _ in blocks]
    ctx.progress("measuring how much each layer changes")
    assert ctx.samples is not None
    collect(probe, {c: [mean] for c, mean in zip(cosines, means, strict=True)}, ctx.samples, ctx.runner)
    return [1 - mean.value for mean in means]


def _feature_axis(block: Block) -> int:
    spatial = block.entry.rank is not None and block.entry.rank > 2
    reads = any(node.op == "Conv" and node.given(0) is block.entry for node in block.nodes)
    return 1 if spatial and (reads or not any(n.op in ("MatMul", "Gemm", "Attention") for n in block.nodes)) else -1


def _cosine(x: Value, y: Value, axis: int) -> Value:
    x, y = (v if v.dtype is DType.FLOAT else op.Cast(v, to=DType.FLOAT) for v in (x, y))
    axes = constant([axis], DType.INT64)

    def dot(a: Value, b: Value) -> Value:
        product: Value = op.ReduceSum(op.Mul(a, b), axes, keepdims=0)
        return product

    result: Value = op.Div(dot(x, y), op.Sqrt(op.Mul(dot(x, x), dot(y, y))))
    return result


class _Mean:
    """The mean of all finite elements."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def update(self, array: Array) -> None:
        finite = array[np.isfinite(array)]
        self.total += float(finite.sum(dtype=np.float64))
        self.count += finite.size

    @property
    def value(self) -> float:
        return self.total / max(self.count, 1)


def _problem(block: Block, graph: Graph) -> str:
    """Why ``block`` has to stay, or ""."""
    outside = leaks(block)
    if not outside:
        return ""
    reached = _outputs_from(block, graph)
    names = ", ".join(reached[:2]) + (" …" if len(reached) > 2 else "")
    return f"it computes {names or 'what others read'} besides its result"


def _outputs_from(block: Block, graph: Graph) -> list[str]:
    """The names of the outputs that depend on ``block``, but not on its exit alone."""
    inside = set(block.nodes)
    stack = [r for node in block.nodes for r in node.results if r is not block.exit]
    found = set(stack)
    while stack:
        for user in stack.pop().users:
            node = at_root(user, graph)
            if node not in inside and node is not graph.ret:
                stack += [r for r in node.results if r not in found]
                found.update(node.results)
    return [i.name for value, i in zip(graph.outputs, graph.output_info, strict=True) if value in found]


def _merge(blocks: Sequence[Block], gone: Sequence[int], ctx: Context) -> None:
    """Average the weights of the layers in ``gone`` into those that stay."""
    groups: dict[int, list[int]] = {}
    for i in gone:
        same = [j for j, block in enumerate(blocks) if block.stack == blocks[i].stack and j not in gone]
        if not same:
            ctx.note("not merged: no layer of the stack stays")
            continue
        groups.setdefault(max((j for j in same if j < i), default=same[0]), []).append(i)
    for stays, others in groups.items():
        shape = _structure(blocks[stays])
        alike = [i for i in others if _structure(blocks[i]) == shape]
        ctx.note("not merged: another structure", len(others) - len(alike))
        if alike:
            _average(blocks[stays], [blocks[i] for i in alike])
            ctx.note("layers merged", len(alike))


def _structure(block: Block) -> list[tuple[object, ...]]:
    """What must be equal for weights to correspond: operators, attributes and shapes, in order."""

    def shape(operand: Value | None) -> object:
        return None if operand is None or operand.const is None else (operand.dtype, operand.const.shape)

    return [(node.op, sorted(node.attrs.items(), key=str), *map(shape, node.operands)) for node in block.nodes]


def _average(block: Block, others: Sequence[Block]) -> None:
    """Give ``block`` the mean of its weights and those of ``others``, element by element, computed when asked for."""
    made: dict[tuple[Value, ...], Value] = {}
    for nodes in zip(block.nodes, *(other.nodes for other in others), strict=True):
        for at, operand in enumerate(nodes[0].operands):
            if operand is None or operand.const is None or not operand.dtype.is_floating:
                continue
            weights = tuple(node.given(at) for node in nodes)
            if len(set(weights)) > 1:
                if weights not in made:
                    made[weights] = _mean([w.const for w in weights if w.const is not None], operand.name)
                edit.set_operand(nodes[0], at, made[weights])


def _mean(tensors: Sequence[Tensor], name: str) -> Value:
    dtype = tensors[0].dtype

    def compute(*arrays: Array) -> Array:
        total = arrays[0].astype(np.float32)
        for array in arrays[1:]:
            total = total + array.astype(np.float32)
        return np.asarray(total / len(arrays)).astype(dtype.numpy)

    mean = LazyTensor(compute, tuple(tensors), dtype, tensors[0].shape, name)
    return Value(mean.type, name, const=mean)


def _rows(
    blocks: Sequence[Block], gone: Sequence[int], held: dict[int, str], influences: Sequence[float] | None
) -> list[dict[str, Any]]:
    """The facts about each layer, for the report."""
    return [
        {
            "layer": i,
            "name": block.name,
            "stack": block.stack,
            "nodes": len(block.nodes),
            "bytes": block.nbytes,
            "influence": None if influences is None else influences[i],
            "result": "left out" if i in gone else f"kept: {held[i]}" if i in held else "kept",
        }
        for i, block in enumerate(blocks)
    ]
