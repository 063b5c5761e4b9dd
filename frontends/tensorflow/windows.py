"""Windows that move over spatial dimensions: their attributes, their padding, and the dimensions they leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.dims import Dim, dim_floordiv, dim_max
from ...ir.graph import Value
from ...ir.infer.common import ceil_div
from ..emit import Refused
from .translate import Operation, Translator

__all__ = ["Window", "first", "is_last", "last", "over", "padded", "spatial", "window_of"]

Compute = Callable[[Value, "Window", Sequence[int]], Any]


def is_last(o: Operation) -> bool:
    """Whether the operation's data have channels last."""
    format_ = str(o.attr("data_format", "NHWC"))
    if format_ == "NCHW_VECT_C":
        raise Refused("vectors of channels: use the formats NHWC or NCHW")
    return format_ not in ("NCHW", "NCDHW", "NCW", "CHANNELS_FIRST")


def first(t: Translator, o: Operation, x: Value) -> Value:
    """The operand with channels first."""
    return t.layouts.first(x) if is_last(o) else x


def last(t: Translator, o: Operation, result: Value) -> Value:
    """The result in the operation's own order."""
    return t.layouts.last(result) if is_last(o) else result


@dataclass
class Window:
    """A window along each spatial dimension.

    Attributes:
        size: its elements.
        strides: how far it moves.
        dilations: the distance of its elements.
        pads: what is padded before and after; None: as much as gives ``ceil(size / stride)`` windows (SAME).
    """

    size: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[tuple[int, int]] | None

    def reach(self, axis: int) -> int:
        """How many elements it spans."""
        return (self.size[axis] - 1) * self.dilations[axis] + 1

    def without(self, axis: int) -> Window:
        """The window along the other dimensions."""

        def rest(items: list[Any]) -> list[Any]:
            return items[:axis] + items[axis + 1 :]

        pads = None if self.pads is None else rest(self.pads)
        return Window(rest(self.size), rest(self.strides), rest(self.dilations), pads)

    def is_idle(self, axis: int) -> bool:
        """Whether it does nothing along a dimension."""
        return self.size[axis] == self.strides[axis] == 1 and (self.pads is None or self.pads[axis] == (0, 0))

    def attributes(self, x: Value) -> dict[str, Any]:
        """The attributes of an operator that moves it over ``x``: explicit padding wherever it is known."""
        attrs: dict[str, Any] = {"kernel_shape": self.size, "strides": self.strides}
        pads = self.padding((x.shape or ())[2:])
        if pads is None:
            return {**attrs, "auto_pad": "SAME_UPPER"}
        return {**attrs, "pads": [low for low, _ in pads] + [high for _, high in pads]}

    def padding(self, sizes: Sequence[Dim]) -> list[tuple[int, int]] | None:
        """What is padded; None where it depends on ``sizes`` that are open."""
        if self.pads is not None:
            return self.pads
        found = [self._same(i, n) for i, n in enumerate(sizes)]
        pads = [p for p in found if p is not None]
        return pads if len(pads) == len(found) else None

    def places(self, axis: int, size: Dim) -> Dim:
        """How many windows there are along a dimension of ``size``."""
        stride = self.strides[axis]
        if self.pads is None:
            return ceil_div(size, stride)
        return dim_floordiv(size + sum(self.pads[axis]) - self.reach(axis), stride) + 1

    def _same(self, axis: int, size: Dim) -> tuple[int, int] | None:
        """The padding of a dimension of ``size`` for SAME; None where it depends on sizes that are open."""
        stride, reach = self.strides[axis], self.reach(axis)
        total: Dim = reach - 1
        if stride > 1 and reach > 1:
            total = dim_max((ceil_div(size, stride) - 1) * stride + reach - size, 0)
        return (total // 2, total - total // 2) if isinstance(total, int) else None


def window_of(
    o: Operation, size: Sequence[int], strides: Sequence[int] | None = None, dilations: Sequence[int] | None = None
) -> Window:
    """A window of ``size`` with the padding that the operation's attributes state, and strides and dilations, too."""
    count = len(size)
    if strides is None:
        strides = _attribute(o, "strides", count)
    if dilations is None:
        dilations = _attribute(o, "dilations", count)
    match o.attr("padding"):
        case "SAME":
            pads = None
        case "VALID":
            pads = [(0, 0)] * count
        case _:
            numbers = [int(n) for n in o.attr("explicit_paddings")]
            pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
            pads = pairs if len(pairs) == count else pairs[1:-1] if is_last(o) else pairs[2:]
    return Window(list(size), list(strides), list(dilations), pads)


def _attribute(o: Operation, name: str, count: int) -> list[int]:
    """An attribute of the window's ``count`` dimensions, or of all."""
    numbers = [int(n) for n in o.attr(name) or ()]
    if len(numbers) <= count:
        return numbers or [1] * count
    return spatial(o, name, numbers)


def spatial(o: Operation, name: str, numbers: Sequence[int]) -> list[int]:
    """Of numbers for every dimension those for the spatial ones."""
    numbers = [int(n) for n in numbers]
    kept, outer = (numbers[1:-1], (numbers[0], numbers[-1])) if is_last(o) else (numbers[2:], tuple(numbers[:2]))
    if outer != (1, 1):
        raise Refused(f"{name} along the batch or the channels: reshape before")
    return kept


def over(t: Translator, o: Operation, x: Value, window: Window, compute: Compute) -> Value:
    """What ``compute`` makes of ``x`` with channels first, in the operation's own order.

    Where ``x`` was given a dimension of size 1 that the window does nothing with, as Keras does it for sequences, it
    is computed without. ``compute`` is told which dimensions it is without, counted with channels first.
    """
    idle = [i for i in range(len(window.size)) if window.is_idle(i)]
    if len(window.size) > 1:
        for i in idle:
            narrow = _narrow(t, o, x, i)
            if narrow is not None:
                result = compute(narrow, window.without(i), [2 + i])
                return _widened(t, o, result, i)
    return last(t, o, compute(first(t, o, x), window, []))


def _narrow(t: Translator, o: Operation, x: Value, axis: int) -> Value | None:
    """``x`` with channels first and without a spatial dimension, if it was given that one before."""
    own = axis + (1 if is_last(o) else 2)
    given = _before(t, x, own)
    if given is not None:
        return first(t, o, given)
    kept = t.layouts.kept(x) if is_last(o) else None
    return None if kept is None else _before(t, kept, axis + 2)


def _before(t: Translator, x: Value, axis: int) -> Value | None:
    """The operand of the Unsqueeze that gave ``x`` the dimension ``axis``."""
    made = x.producer
    if made is None or made.op != "Unsqueeze" or x.rank is None:
        return None
    return made.given(0) if [a % x.rank for a in t.known(made.given(1)) or ()] == [axis] else None


def _widened(t: Translator, o: Operation, narrow: Value, axis: int) -> Value:
    """A result without a spatial dimension, with it, in the operation's own order."""
    wide = t.unsqueeze(narrow, [axis + 2])
    if not is_last(o):
        return wide
    result = t.unsqueeze(t.layouts.last(narrow), [axis + 1])
    t.layouts.keep(result, wide)
    return result


def padded(t: Translator, x: Value, window: Window, start: int, fill: Value) -> Value:
    """``x`` with what the window pads around its spatial dimensions, the first of which is ``start``."""
    count, rank = len(window.size), x.rank or 0
    pads = window.padding((x.shape or ())[start : start + count])
    if pads is not None:
        after = rank - start - count
        low, high = ([0] * start + [p[i] for p in pads] + [0] * after for i in (0, 1))
        return t.pad(x, low, high, fill)
    sizes, strides = t.op.Shape(x, start=start, end=start + count), t.integers(window.strides)
    last_start = t.op.Mul(t.op.Div(t.op.Sub(sizes, t.integers([1] * count)), strides), strides)
    spare = t.op.Add(t.op.Sub(last_start, sizes), t.integers([window.reach(i) for i in range(count)]))
    total = t.op.Max(spare, t.integers([0] * count))
    before = t.op.Div(total, t.integers([2] * count))
    ahead, behind = t.integers([0] * start), t.integers([0] * (rank - start - count))
    widths = t.op.Concat(ahead, before, behind, ahead, t.op.Sub(total, before), behind, axis=0)
    return t.op.Pad(x, widths, fill)
