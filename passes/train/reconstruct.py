"""``reconstruct``: makes one block after the other compute again what it did in the original.

A change of weights (rounding, zeros, fewer ranks) makes errors that add up from layer to layer. Here each block is
trained alone, in the order of the graph, on what the blocks before it now give it, to compute what the original
computes there: as BRECQ does for rounding (Li et al. 2021, arXiv 2102.05426), by gradients, for whatever the engine can
train. A block is small, and its inputs and targets are computed once: so this takes little memory and data.

Blocks end at values that both graphs have, with the same name and type, behind layers with weights.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import Graph, Node, Value
from ...ir.quantization import FAKE_QUANTIZE
from ..base import Context, RequestError
from ..quantize.targets import target_for
from ..reduce import extract, used_by
from ..rows import takes_rows
from .batches import Batch
from .distill import original_of
from .engine import Fit, Problem, fit
from .losses import relative_error
from .lsq import StepSizes, share_ranges
from .matching import output_pairs
from .options import Training
from .teacher import Teacher
from .ties import trained_part
from .trainable import computed_by_layers, trainable_weights

__all__ = ["Block", "Reconstruct", "blocks_of"]

Array = np.ndarray[Any, Any]
_ROOM = 256 << 20  # bytes of inputs and targets of one block
_TARGET = "value in the original"
_EPILOGUES = frozenset({"Relu", "Clip", FAKE_QUANTIZE})
_TERMS = frozenset({"Add", "Sub"})


@dataclass(frozen=True)
class Block:
    """A part of a graph that is trained alone.

    Attributes:
        name: what it is called in reports.
        nodes: the nodes, which read what earlier blocks compute.
        end: what they compute.
        target: the value of the original that it is to be like.
        weights: the names of the weights that are trained.
    """

    name: str
    nodes: tuple[Node, ...]
    end: Value
    target: Value
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Reconstruct(Training):
    """Train block by block, each to compute what the original computes there.

    Learning rates are counted in steps of the grids where weights are quantized, as for ``qat``.

    Attributes:
        layers: how many layers with weights a block has at least.
        rows: how many rows of the data are looked at (samples, where the model takes no other number of rows).
        steps: updates of each block.

    Raises:
        ValueError: an option is out of range.
    """

    keeps_latency = True

    steps: int = 300
    rate: float = 0.02
    layers: int = 1
    rows: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it takes at least 1")

    @property
    def needs_original(self) -> bool:
        return True

    def run(self, graph: Graph, ctx: Context) -> None:
        if ctx.samples is None:
            raise RequestError("reconstruct needs samples to learn from: give data (it needs no labels)")
        teacher = original_of(self, ctx)
        share_ranges(graph, target_for(ctx.target))
        weights = trainable_weights(graph, self.only, self.skip)
        blocks = blocks_of(teacher, graph, weights, self.layers)
        if not blocks:
            raise RequestError("nothing to reconstruct: no value behind a layer has the original's name and type")
        for i, block in enumerate(blocks, 1):
            ctx.progress(f"reconstructing {block.name}: {i} of {len(blocks)}")
            started = time.monotonic()
            found = self._train(block, i, weights, teacher, graph, ctx)
            replace(found, problem=replace(found.problem, graph=graph)).store()
            if ctx.results:
                ctx.results[-1].table.append(_row(block, found, time.monotonic() - started))
        self._report(blocks, weights, ctx)

    def _report(self, blocks: Sequence[Block], weights: Mapping[str, Value], ctx: Context) -> None:
        if not ctx.results:
            return
        record = ctx.results[-1]
        ctx.note("reconstructed blocks", len(blocks))
        same = sum(row.get("steps") == 0 for row in record.table)
        if same:
            record.notes.append(f"{same} of {len(blocks)} blocks stay as they were: training made nothing better")
        left = len(weights) - sum(len(block.weights) for block in blocks)
        if left:
            record.notes.append(f"{left} of {len(weights)} weights are in no block and stay as they were")

    def _train(
        self, block: Block, number: int, weights: Mapping[str, Value], teacher: Graph, graph: Graph, ctx: Context
    ) -> Fit:
        """Train one block of ``graph``, which stays as it is."""
        part = extract(block.nodes, [block.end])
        samples = self._samples(part.inputs, block, teacher, graph, ctx)
        output = part.graph.output_info[0].name

        def loss(outputs: Mapping[str, Any], batch: Mapping[str, Any], extra: Any) -> dict[str, Any]:
            return {"error": relative_error(batch[_TARGET], outputs[output])}

        problem = Problem(
            part.graph,
            loss,
            {name: weights[name] for name in block.weights},
            labels=[_TARGET],
            read=lambda: samples,
            identity=block.name,
        )
        steps = StepSizes.of(part.graph)
        training = replace(self, checkpoint=self.checkpoint and f"{self.checkpoint}-{number}")
        found = fit(steps.trained_along(problem), training, replace(ctx, results=[]))
        steps.settle(found)
        return found

    def _samples(
        self, inputs: Mapping[str, Value], block: Block, teacher: Graph, graph: Graph, ctx: Context
    ) -> list[dict[str, Array]]:
        """What ``block`` reads, and what it is to compute, for as much of the data as the bounds allow."""
        computed = {name: v for name, v in inputs.items() if v.producer is not None}
        before = Teacher(graph, computed, ctx.runner) if computed else None
        wanted = Teacher(teacher, {_TARGET: block.target}, ctx.runner)
        by_row = takes_rows(graph)
        found: list[dict[str, Array]] = []
        rows, room = self.rows, _ROOM
        assert ctx.samples is not None
        for sample in ctx.samples():
            batch = Batch({name: np.asarray(a) for name, a in sample.items()}, None)
            given = {name: v.name for name, v in inputs.items() if name not in computed and v.name in batch.arrays}
            arrays = {name: batch.arrays[own] for name, own in given.items()}
            found.append(arrays | (before(batch) if before is not None else {}) | wanted(batch))
            rows -= len(batch) if by_row else 1
            room -= sum(a.nbytes for a in found[-1].values())
            if rows <= 0 or room <= 0:
                break
        return found


def _row(block: Block, found: Fit, seconds: float) -> dict[str, Any]:
    """The facts about a block: squared errors relative to the variance of the target, on held-out rows if there are."""
    first = found.curve[0]
    return {
        "block": block.name,
        "weights": len(block.weights),
        "error before": first.get("held out", first.get("loss")),
        "error after": found.loss,
        "steps": found.best,
        "seconds": seconds,
    }


# where blocks begin and end


def blocks_of(teacher: Graph, graph: Graph, weights: Mapping[str, Value], layers: int = 1) -> list[Block]:
    """The blocks of ``graph``, in order.

    Args:
        teacher: what they are compared with.
        graph: a root graph.
        weights: what may be trained, by name; each is in one block at most.
        layers: how many of a block's weights have two dimensions and more at least; the last block may have fewer.
    """
    ends = _ends(teacher, graph)
    by_row = takes_rows(graph)
    rest = {value.const: name for name, value in weights.items() if value.const is not None}
    known: set[Value] = set()
    found = []
    for end, (name, target) in ends.items():
        nodes = _before(end, known)
        own = dict.fromkeys(rest[t] for t in _tensors(nodes, rest))
        matrices = sum((weights[weight].rank or 0) >= 2 for weight in own)
        is_last = end in graph.outputs
        if not own or (matrices < layers and not is_last) or (by_row and not _is_in_rows(end, graph)):
            continue
        found.append(Block(name, tuple(nodes), end, target, tuple(own)))
        rest = {tensor: weight for tensor, weight in rest.items() if weight not in own}
        known.add(end)
    return found


def _ends(teacher: Graph, student: Graph) -> dict[Value, tuple[str, Value]]:
    """Values of the student behind layers, with a name and the value of the teacher that they stand for, in order."""
    theirs, own = _by_name(teacher), _by_name(student)
    computed = computed_by_layers(student)
    found: dict[Value, tuple[str, Value]] = {}
    for name, value in own.items():
        if name in theirs and value in computed and value.dtype.is_floating:
            s, t = _behind(value), _behind(theirs[name])
            if s.type == t.type:
                found[s] = name, t
    for pair in output_pairs(teacher, student):
        if pair.axis is None and pair.student.producer is not None:
            found[pair.student] = pair.name, pair.teacher
    return dict(sorted(found.items(), key=lambda item: item[0].producer.order if item[0].producer is not None else 0))


def _by_name(graph: Graph) -> dict[str, Value]:
    """The results of nodes of ``graph`` itself by their names, or by those of their nodes, where these occur once."""
    named = [(v.name or node.name, v) for node in graph.nodes for v in node.results]
    counts = Counter(name for name, _ in named)
    return {name: v for name, v in named if name and counts[name] == 1}


def _behind(value: Value) -> Value:
    """What a bias, an activation that cuts off, and quantization make of ``value``, if nothing else reads it."""
    while len(value.users) == 1:
        user = value.users[0]
        others = [o for o in user.operands if o is not None and o is not value]
        if user.op not in _EPILOGUES | _TERMS or any(o.const is None for o in others):
            return value
        value = user.result
    return value


def _before(end: Value, known: set[Value]) -> list[Node]:
    """The nodes that ``end`` is computed by from ``known`` values, in order."""
    found: dict[Node, None] = {}
    stack = [end]
    while stack:
        value = stack.pop()
        node = value.producer
        if node is not None and node not in found and (value is end or value not in known):
            found[node] = None
            stack += used_by(node)
    return sorted(found, key=lambda node: node.order)


def _tensors(nodes: Sequence[Node], trained: Mapping[Any, str]) -> Iterator[Any]:
    """Those of ``trained`` that ``nodes`` read, in order."""
    for node in nodes:
        for value in used_by(node):
            if value.const is not None and (tensor := trained_part(value.const, trained)) is not None:
                yield tensor


def _is_in_rows(value: Value, graph: Graph) -> bool:
    """Whether the first dimension of ``value`` is that of the inputs of ``graph``."""
    own, theirs = value.shape, next(v.shape for v in graph.inputs if v.shape)
    return bool(own and theirs and own[0] == theirs[0])
