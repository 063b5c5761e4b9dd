"""Made-up rows: batches that nobody has, of which a teacher knows the answers all the same.

With little data, a student learns the teacher's answers by heart and not what is between them. So each batch is changed
before both see it, which leaves targets exact: half of the rows

- are mixed, in floating-point inputs, with another row of the batch in random parts (mixup, Zhang et al. 2017, arXiv
  1710.09412, and Beyer et al. 2021, arXiv 2106.05237, for distillation), a random part of it cut in along dimension 1
  and up in half of the cases;
- have tokens, in integer inputs that pick rows from tables, exchanged for tokens of other rows of the batch;

and all rows of images are shifted by up to an eighth of their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Graph, Value
from ..rows import takes_rows
from .batches import Batch

__all__ = ["Mixer"]

Array = np.ndarray[Any, Any]
UNCHANGED = "rows as they are"  # the name of the array that says which rows have not been mixed: 1, else 0
_TOKENS = 64  # rows of a table from which on what picks them are tokens, not types or flags
_EXCHANGED = 0.15  # share of the tokens
_MOVES = frozenset(["Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"])


@dataclass(frozen=True)
class Mixer:
    """Changes batches for one graph.

    Attributes:
        numbers: the floating-point inputs.
        images: those of them that are images: [rows, channels, height, width], behind which a convolution is.
        tokens: the integer inputs that are tokens.
        by_row: whether the first dimension counts rows.
    """

    numbers: Sequence[str]
    images: Sequence[str]
    tokens: Sequence[str]
    by_row: bool

    @classmethod
    def of(cls, graph: Graph) -> Mixer:
        """The mixer for ``graph``, by the types of its inputs and by what reads them."""
        numbers = [v.name for v in graph.inputs if v.dtype.is_floating and v.rank]
        images = [v.name for v in graph.inputs if v.name in numbers and v.rank == 4 and _is_convolved(v)]
        tokens = [v.name for v in graph.inputs if v.dtype.is_integer and _is_token(v)]
        return cls(numbers, images, tokens, takes_rows(graph))

    @property
    def works(self) -> bool:
        """Whether there is anything to change."""
        return bool(self.by_row and (self.numbers or self.tokens))

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Another batch of the same shapes; half of its rows are mixed, and no row keeps its number."""
        rows = len(batch)
        arrays = dict(batch.arrays)
        partner = rng.permutation(rows)
        mixed = rng.random(rows) < 0.5
        share = np.where(mixed, rng.random(rows), 1.0).astype(np.float32)
        cut = rng.random() < 0.5
        for name in self.images:
            arrays[name] = _shifted(arrays[name], rng)
        for name in self.numbers:
            array = arrays[name]
            arrays[name] = (
                _cut(array, partner, mixed, rng) if cut and name in self.images else _mix(array, partner, share)
            )
        for name in self.tokens:
            arrays[name] = _exchanged(arrays[name], partner, mixed, rng)
        return Batch(arrays | {UNCHANGED: (~mixed).astype(np.float32)}, None)


def _mix(array: Array, partner: Array, share: Array) -> Array:
    share = share.reshape(-1, *(1,) * (array.ndim - 1)).astype(array.dtype)
    return share * array + (1 - share) * array[partner]


def _cut(array: Array, partner: Array, mixed: Array, rng: np.random.Generator) -> Array:
    """Boxes of the partners' images in those that are mixed (CutMix, Yun et al. 2019, arXiv 1905.04899)."""
    result = array.copy()
    height, width = array.shape[2:]
    for row in np.flatnonzero(mixed):
        tall, wide = rng.integers(1, height + 1), rng.integers(1, width + 1)
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        box = (slice(None), slice(top, top + tall), slice(left, left + wide))
        result[row][box] = array[partner[row]][box]
    return result


def _shifted(array: Array, rng: np.random.Generator) -> Array:
    """Each image moved by up to an eighth of its size; what comes in at the edge is the edge."""
    rows, _, height, width = array.shape
    high, wide = max(height // 8, 1), max(width // 8, 1)
    padded = np.pad(array, ((0, 0), (0, 0), (high, high), (wide, wide)), mode="edge")
    down, right = rng.integers(0, 2 * high + 1, rows), rng.integers(0, 2 * wide + 1, rows)
    moved = [padded[i, :, d : d + height, r : r + width] for i, (d, r) in enumerate(zip(down, right, strict=True))]
    return np.stack(moved)


def _exchanged(ids: Array, partner: Array, mixed: Array, rng: np.random.Generator) -> Array:
    """Tokens of rows that are mixed, exchanged for some of their partners'; those that most rows have stay."""
    values, counts = np.unique(ids, return_counts=True)
    common = values[counts >= max(len(ids), 2)]  # once per row: marks of beginnings and ends, padding
    ordinary = ids[~np.isin(ids, common)]
    if not ordinary.size:
        return ids
    chosen = (rng.random(ids.shape) < _EXCHANGED) & mixed.reshape(-1, *(1,) * (ids.ndim - 1)) & ~np.isin(ids, common)
    result = ids.copy()
    result[chosen] = rng.choice(ordinary, int(chosen.sum()))
    return result


def _is_convolved(value: Value) -> bool:
    """Whether a convolution reads ``value``, behind elementwise operators."""
    seen, stack = {value}, [value]
    while stack and len(seen) < 100:
        for user in stack.pop().users:
            if user.op == "Conv":
                return True
            stack += [r for r in user.results if r not in seen and r.shape == value.shape]
            seen.update(user.results)
    return False


def _is_token(value: Value) -> bool:
    """Whether ``value``, moved or as it is, picks rows from a large table."""
    seen, stack = {value}, [value]
    while stack:
        for user, position in stack.pop().uses:
            table = user.operand(0)
            if user.op == "Gather" and position == 1 and table is not None and table.dtype.is_floating:
                size = table.shape[user.attrs.get("axis", 0)] if table.shape else None
                if isinstance(size, int) and size >= _TOKENS:
                    return True
            elif user.op in _MOVES and position == 0 and user.result not in seen:
                seen.add(user.result)
                stack.append(user.result)
    return False
