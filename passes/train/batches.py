"""Batches: rows of the samples, in an order that a seed decides, with bounded memory.

Samples are read as a stream, anew for each epoch. Where the first dimension of all inputs is the same named size, the
model takes any number of rows, and samples are taken apart into rows: these go through a buffer of bounded size, from
which they are drawn at random, and rows of equal shapes become batches. Else every sample is a batch. An epoch depends
only on the data, the seed and its number, so training can go on in the middle of one.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Graph
from ..base import RequestError
from ..rows import takes_rows

__all__ = ["Batch", "Stream"]

Array = np.ndarray[Any, Any]
Read = Callable[[], Iterable[Mapping[str, Any]]]
_BUFFER = 64 << 20  # bytes of rows to draw from
_HELD_OUT = 512  # rows at most
_HELD_OUT_BYTES = 64 << 20
_SHARE = 0.1  # held out, where nobody says how many
_FEW = 32  # rows that tell too little
_JUDGES = 64  # rows that are trained on and judge all the same


@dataclass(frozen=True)
class Batch:
    """Rows that are trained on together.

    Attributes:
        arrays: the inputs, and what else there is (labels, targets), by name, rows first.
        rows: the number of each row in the data, or of the sample if that is the batch; None for made-up rows.
    """

    arrays: dict[str, Array]
    rows: tuple[int, ...] | None

    def __len__(self) -> int:
        """The number of rows, as a weight for means over batches."""
        return (
            len(self.rows)
            if self.rows is not None
            else max((len(a) for a in self.arrays.values() if a.ndim), default=1)
        )


Row = tuple[int, dict[str, Array]]
Key = tuple[Any, ...]


class Stream:
    """Batches from samples, and the rows that are held out.

    Args:
        read: gives the samples from the start, each time that it is called.
        graph: the graph that they are for.
        batch: rows per batch.
        holdout: the share of the rows to hold out; None: a tenth, unless that is fewer than 32.
        seed: decides which, and the order of the others.
        extra: names of further arrays in the samples, one entry per row.

    Attributes:
        rows: the number of rows (or samples, where each is a batch) to train on.
        held_out: those that are held out, in batches.
        judges: what the outcome is judged by: those held out, or, if none are, some of the others.
        shapes: how many rows have inputs of which shapes.
        digest: a checksum of the data.

    Raises:
        RequestError: there are too few rows; a sample lacks an array, or its arrays have different numbers of rows.
    """

    def __init__(
        self, read: Read, graph: Graph, batch: int, holdout: float | None, seed: int, extra: Sequence[str] = ()
    ) -> None:
        self._read = read
        self._names = [*(v.name for v in graph.inputs), *extra]
        self._needed = [*(v.name for v in graph.inputs if v.default is None), *extra]
        self._by_row = takes_rows(graph)
        self._seed = seed
        self.batch = batch
        self.shapes: Counter[Key] = Counter()
        self.digest = 0
        pool = self._survey()
        kept = sorted(pool[: _held_out(holdout, self.shapes.total())], key=lambda row: row[0])
        self._held = {number for number, _ in kept}
        for _, row in kept:
            self.shapes[_key(row)] -= 1
        self.rows = self.shapes.total()
        self._require_enough(len(kept))
        self.held_out = list(self._batches(iter(kept)))
        self.judges = self.held_out or list(self._batches(iter(pool[:_JUDGES])))

    def _survey(self) -> list[Row]:
        """Count the rows, and return a random sample of them in random order, as large as the bounds allow."""
        rng = np.random.default_rng([self._seed, 0])
        room = 0
        pool: list[Row] = []
        for number, row in self._rows():
            if not room:
                size = sum(a.nbytes for a in row.values())
                room = min(_HELD_OUT, max(_HELD_OUT_BYTES // max(size, 1), 1))
            self.shapes[_key(row)] += 1
            for array in row.values():
                self.digest = zlib.crc32(np.ascontiguousarray(array).data, self.digest)
            place = len(pool) if len(pool) < room else int(rng.integers(number + 1))
            if place < len(pool):
                pool[place] = (number, row)
            elif place < room:
                pool.append((number, row))
        return [pool[i] for i in rng.permutation(len(pool))]

    def _require_enough(self, held: int) -> None:
        needed = self.batch if self._by_row else 1
        if self.rows < needed:
            unit = "rows" if self._by_row else "samples"
            total = self.rows + held
            least = max(-(-needed * total // self.rows) if self.rows else 0, needed + bool(held))
            held_out = f", {held} of them held out" if held else ""
            smaller = f", or set batch={self.rows} or less" if self._by_row and self.rows else ""
            raise RequestError(
                f"too little data to train on: {self.rows + held} {unit}{held_out}, and a batch takes {needed}: "
                f"give at least {least} {unit}{smaller}"
            )

    @property
    def batches_per_epoch(self) -> int:
        """How many batches `epoch` gives."""
        if not self._by_row:
            return self.rows
        return sum(-(-count // self.batch) for count in self.shapes.values() if count > 0)

    def in_order(self) -> Iterator[Batch]:
        """All rows, held-out ones included, in the order of the data."""
        return self._batches(self._rows())

    def epoch(self, number: int) -> Iterator[Batch]:
        """All rows but those held out, once, shuffled; the last batch of each shape is filled with rows of it again."""
        rng = np.random.default_rng([self._seed, 1, number])
        rows = ((n, row) for n, row in self._rows() if n not in self._held)
        return self._batches(_shuffled(rows, rng), fills=True)

    def endless(self, skip: int = 0) -> Iterator[Batch]:
        """Epochs one after the other, without the first ``skip`` batches."""
        first, within = divmod(skip, self.batches_per_epoch)
        number = first
        while True:
            for i, batch in enumerate(self.epoch(number)):
                if number > first or i >= within:
                    yield batch
            number += 1

    def _batches(self, rows: Iterator[Row], fills: bool = False) -> Iterator[Batch]:
        """``rows`` in batches of equal shapes; whether the last ones are filled with rows of those before."""
        if not self._by_row:
            yield from (Batch(row, (number,)) for number, row in rows)
            return
        pending: dict[Key, list[Row]] = {}
        earlier: dict[Key, list[Row]] = {}  # the rows of the last full batch
        for row in rows:
            waiting = pending.setdefault(_key(row[1]), [])
            waiting.append(row)
            if len(waiting) == self.batch:
                yield _stacked(waiting)
                earlier[_key(row[1])] = pending.pop(_key(row[1]))
        for key, waiting in pending.items():
            missing = self.batch - len(waiting) if fills else 0
            yield _stacked(waiting + earlier.get(key, [])[:missing])

    def _rows(self) -> Iterator[Row]:
        """The rows in order with their numbers; or the samples, where each is a batch."""
        count = 0
        for i, sample in enumerate(self._read(), 1):
            missing = [name for name in self._needed if name not in sample]
            if missing:
                raise RequestError(f"sample {i} has no array {missing[0]!r}")
            arrays = {name: np.asarray(sample[name]) for name in self._names if name in sample}
            if not self._by_row:
                yield count, arrays
                count += 1
                continue
            sizes = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
            rows = sizes[self._names[0]] if self._names[0] in sizes else next(iter(sizes.values()))
            odd = next((name for name, size in sizes.items() if size != rows), None)
            if odd is not None:
                raise RequestError(f"sample {i}: {odd!r} has {sizes[odd]} rows, and {self._names[0]!r} has {rows}")
            for row in range(rows):  # copied, or one row would keep the whole sample in memory
                yield count, {name: a[row : row + 1].copy() for name, a in arrays.items()}
                count += 1


def _held_out(share: float | None, rows: int) -> int:
    """How many of ``rows`` to hold out."""
    if share is None:
        wanted = round(_SHARE * rows)
        return wanted if wanted >= _FEW else 0
    return max(round(share * rows), 1) if share else 0


def _key(row: Mapping[str, Array]) -> Key:
    return tuple((name, a.shape, a.dtype) for name, a in row.items())


def _stacked(rows: Sequence[Row]) -> Batch:
    arrays = {name: np.concatenate([row[name] for _, row in rows]) for name in rows[0][1]}
    return Batch(arrays, tuple(number for number, _ in rows))


def _shuffled(rows: Iterator[Row], rng: np.random.Generator) -> Iterator[Row]:
    """``rows`` in random order, as far as the buffer reaches."""
    buffer: list[Row] = []
    room = _BUFFER
    for row in rows:
        buffer.append(row)
        room -= sum(a.nbytes for a in row[1].values())
        if room <= 0:
            drawn = _draw(buffer, rng)
            room += sum(a.nbytes for a in drawn[1].values())
            yield drawn
    while buffer:
        yield _draw(buffer, rng)


def _draw(buffer: list[Row], rng: np.random.Generator) -> Row:
    at = int(rng.integers(len(buffer)))
    buffer[at], buffer[-1] = buffer[-1], buffer[at]
    return buffer.pop()
