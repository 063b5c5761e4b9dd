"""Channels first: what TensorFlow keeps in the order N, H, W, C, and ONNX in the order N, C, H, W.

A convolution's result stands in the graph with channels first, and behind it a Transpose that gives TensorFlow's order.
Rules that compute element by element, or along axes that they can count otherwise, ask for the value before the
Transpose, and put one behind their own result. So the order is changed once, where channels first begin and end; a
Transpose that nobody reads is taken out in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...ir.graph import Value

if TYPE_CHECKING:
    from .translate import Translator

__all__ = ["Layouts", "axis_first", "to_first", "to_last"]


def to_first(rank: int) -> tuple[int, ...]:
    """The permutation from channels last to channels first."""
    return (0, rank - 1, *range(1, rank - 1))


def to_last(rank: int) -> tuple[int, ...]:
    """The permutation from channels first to channels last."""
    return (0, *range(2, rank), 1)


def axis_first(axis: int, rank: int) -> int:
    """Where an axis of channels last is with channels first."""
    return to_first(rank).index(axis % rank)


class Layouts:
    """Which values are kept with channels first."""

    def __init__(self, translator: Translator):
        self._t = translator
        self._kept: dict[Value, Value] = {}

    def last(self, first: Value) -> Value:
        """The value in TensorFlow's order, of one with channels first."""
        assert first.rank is not None
        value = self._t.op.Transpose(first, perm=to_last(first.rank))
        self._kept[value] = first
        return value

    def keep(self, value: Value, first: Value) -> None:
        """Say that ``first`` is ``value`` with channels first."""
        self._kept[value] = first

    def kept(self, value: Value) -> Value | None:
        """``value`` with channels first, if it is kept so."""
        return self._kept.get(value)

    def first(self, value: Value) -> Value:
        """``value`` with channels first, moved if it must be."""
        kept = self._kept.get(value)
        if kept is None:
            assert value.rank is not None
            kept = self._padded(value) or self._t.transpose(value, to_first(value.rank))
        return kept

    def _padded(self, value: Value) -> Value | None:
        """What was padded, padded with channels first: a convolution may then do it by itself."""
        pad, rank = value.producer, value.rank
        if pad is None or pad.op != "Pad" or pad.operand(3) or rank is None or pad.graph is not self._t.graph:
            return None
        order = to_first(rank)
        widths = self._t.op.Gather(pad.given(1), self._t.integers([*order, *(rank + a for a in order)]), axis=0)
        found: Value = self._t.op.Pad(self.first(pad.given(0)), widths, pad.operand(2), **pad.attrs)
        return found

    def across(self, operands: Sequence[Value]) -> list[Value] | None:
        """Operands that are broadcast together, with channels first; None if they are better left as they are.

        That is where none is kept so, or where one would have to be moved that has more than channels.
        """
        ranks = [o.rank for o in operands]
        rank = max((r for r in ranks if r is not None), default=0)
        if None in ranks or not any(o in self._kept and o.rank == rank for o in operands):
            return None
        if not all(self._is_movable(o, rank) for o in operands):
            return None
        return [self._moved(o, rank) for o in operands]

    def _is_movable(self, value: Value, rank: int) -> bool:
        if value.const is not None or value.rank == 0 or (value in self._kept and value.rank == rank):
            return True
        shape = value.shape or ()
        return value not in self._kept and all(size == 1 for size in shape[-(rank - 1) : -1])

    def _moved(self, value: Value, rank: int) -> Value:
        if value.rank == 0:
            return value
        kept = self._kept.get(value)
        if kept is not None and kept.rank == rank:
            return kept
        assert value.rank is not None
        wide = self._t.unsqueeze(value, range(rank - value.rank)) if value.rank < rank else value
        shape = wide.shape or ()
        if all(size == 1 for size in shape[1:-1]) and shape[0] == 1:
            if shape[-1] == 1:
                return wide
            return self._t.reshape(wide, (1, shape[-1], *shape[1:-1]))
        return self._t.transpose(wide, to_first(rank))
