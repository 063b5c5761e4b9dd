"""The teacher: what a graph computes for batches, by the runner, kept for rows that come again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...ir import Graph, GraphOutput, Value, edit
from ...ir.clone import clone_graph
from ..base import Runner
from .batches import Batch

__all__ = ["Teacher"]

Array = np.ndarray[Any, Any]
_KEPT = 256 << 20  # bytes of targets


class Teacher:
    """Values of a graph for batches.

    Targets of rows that come again in every epoch are computed once, in the order of the data, as far as they fit into
    256 MiB: what they are (to the last bit) must not depend on where training was interrupted.

    Args:
        graph: a root graph, which stays as it is.
        values: the values that are wanted, by name.
        runner: runs it.
        room: the most bytes to keep.
    """

    def __init__(self, graph: Graph, values: Mapping[str, Value], runner: Runner, room: int = _KEPT):
        mapping: dict[Value, Value] = {}
        part = clone_graph(graph, mapping)
        self._inputs = [v.name for v in graph.inputs]
        self._defaults = {v.name: v.default.numpy() for v in graph.inputs if v.default is not None}
        outputs = [mapping[v] for v in values.values()]
        part.set_outputs(outputs, [GraphOutput(n, v.type) for n, v in zip(values, outputs, strict=True)])
        edit.erase_dead(list(part.nodes))
        self._run = runner.compile(part)
        self._kept: dict[int, dict[str, Array]] = {}
        self._room = room

    def keep(self, batches: Iterable[Batch]) -> None:
        """Compute what the targets of ``batches`` are, as far as there is room."""
        for batch in batches:
            if batch.rows is None:
                return
            found = self._computed(batch)
            parts = _by_row(found, batch.rows)
            if parts is None:
                return
            for row, part in parts.items():
                if row not in self._kept:
                    self._room -= sum(a.nbytes for a in part.values())
                    self._kept[row] = part
            if self._room <= 0:
                return

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """The targets of ``batch``."""
        if batch.rows is not None and all(row in self._kept for row in batch.rows):
            return _together([self._kept[row] for row in batch.rows])
        return self._computed(batch)

    def _computed(self, batch: Batch) -> dict[str, Array]:
        return self._run(self._defaults | {n: batch.arrays[n] for n in self._inputs if n in batch.arrays})


def _by_row(targets: Mapping[str, Array], rows: Sequence[int]) -> dict[int, dict[str, Array]] | None:
    """The targets of each row; None if they do not come in rows."""
    if len(rows) == 1:
        return {rows[0]: dict(targets)}
    if any(not a.ndim or len(a) != len(rows) for a in targets.values()):
        return None
    return {row: {n: a[i : i + 1].copy() for n, a in targets.items()} for i, row in enumerate(rows)}


def _together(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
