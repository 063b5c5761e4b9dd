"""What calibration may keep of a value besides its histogram: statistics per channel, and products for GPTQ.

All need memory for their result and for one piece of the data at a time. Elements that are no finite numbers enter
nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ...ir import Node

__all__ = ["ChannelStatistics", "ConvGram", "GramMatrix", "Shape"]

Array = np.ndarray[Any, Any]

_PIECE = 1 << 22  # elements that are multiplied at a time: 32 MiB in double precision
_CHUNK = 1 << 15  # elements that are added up at a time, so that they stay in the cache of one core


def _nothing() -> Array:
    return np.zeros(0)


@dataclass(eq=False)
class ChannelStatistics:
    """Moments of every channel of a value. Merging adds them up; only sums depend on the order, by their rounding.

    Attributes:
        axis: the dimension that counts the channels; negative from the end.
        count: the number of finite elements of each channel, of shape [channels]; [0] before the first update.
        low: the least element or 0, likewise, in double precision.
        high: the greatest element or 0.
        sum_abs: the sum of magnitudes.
        sum: the sum of elements.
        sum_squares: the sum of squares.
    """

    axis: int
    count: Array = field(default_factory=_nothing)
    low: Array = field(default_factory=_nothing)
    high: Array = field(default_factory=_nothing)
    sum_abs: Array = field(default_factory=_nothing)
    sum: Array = field(default_factory=_nothing)
    sum_squares: Array = field(default_factory=_nothing)

    @property
    def max_abs(self) -> Array:
        """The greatest magnitude of each channel."""
        return np.maximum(-self.low, self.high)

    @property
    def mean_abs(self) -> Array:
        """The mean magnitude of each channel; 0 for one without elements."""
        return self.sum_abs / np.maximum(self.count, 1)

    @property
    def mean(self) -> Array:
        """The mean of each channel."""
        return self.sum / np.maximum(self.count, 1)

    @property
    def mean_square(self) -> Array:
        """The mean square of each channel."""
        return self.sum_squares / np.maximum(self.count, 1)

    def update(self, array: Array) -> None:
        """Add an array that has dimension ``axis``, always with the same number of channels."""
        axis = self.axis % array.ndim
        step = len(array) if axis == 0 else max(1, _CHUNK * len(array) // max(array.size, 1))
        others = tuple(i for i in range(array.ndim) if i != axis)
        for at in range(0, len(array), max(step, 1)):
            piece = array[at : at + step].astype(np.float64)
            finite = np.isfinite(piece)
            piece[~finite] = 0
            ends = piece.min(axis=others, initial=0), piece.max(axis=others, initial=0)
            sums = (x.sum(axis=others) for x in (np.abs(piece), piece, np.square(piece)))
            self.merge(ChannelStatistics(self.axis, finite.sum(axis=others), *ends, *sums))

    def merge(self, other: ChannelStatistics) -> None:
        """Add what ``other`` has seen."""
        if not self.count.size:
            vars(self).update(vars(other))
        elif other.count.size:
            self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
            for name in ("count", "sum_abs", "sum", "sum_squares"):
                setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChannelStatistics:
        """The statistics that `to_dict` wrote.

        Raises:
            TypeError, ValueError, LookupError: ``data`` is something else.
        """
        arrays = {name: np.array(value) for name, value in data.items() if name != "axis"}
        return cls(data["axis"], **arrays)


@dataclass(eq=False)
class Shape:
    """The shape of the last array that was seen."""

    shape: tuple[int, ...] = ()

    def update(self, array: Array) -> None:
        """Remember the shape of ``array``."""
        self.shape = array.shape

    def to_dict(self) -> dict[str, Any]:
        """It, ready for JSON."""
        return {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Shape:
        """The shape that `to_dict` wrote.

        Raises:
            TypeError, ValueError, LookupError: ``data`` is something else.
        """
        return cls(tuple(int(d) for d in data["shape"]))


@dataclass(eq=False)
class GramMatrix:
    """The sum of ``x^T x`` over all rows ``x`` of the last dimension, which GPTQ calls the Hessian, up to a factor.

    A row that holds an element that is no finite number is left out.

    Attributes:
        matrix: the sum, float64 of shape [in, in]; 0 before the first update.
        total: the sum of the rows themselves, of shape [in].
        rows: the number of rows.
    """

    matrix: Array = field(default_factory=lambda: np.zeros(()))
    total: Array = field(default_factory=lambda: np.zeros(()))
    rows: int = 0

    def update(self, array: Array) -> None:
        """Add an array of shape [..., in]."""
        for piece in self._pieces(array):
            rows = piece.astype(np.float64)
            finite = np.isfinite(rows).all(axis=-1).reshape(-1, rows.shape[-2]).all(axis=0)
            if not finite.all():
                rows = rows[..., finite, :]
            self.matrix = self.matrix + np.swapaxes(rows, -1, -2) @ rows
            self.total = self.total + rows.sum(axis=-2)
            self.rows += rows.shape[-2]

    def merge(self, other: GramMatrix) -> None:
        """Add what ``other`` has seen."""
        self.matrix = self.matrix + other.matrix
        self.total = self.total + other.total
        self.rows += other.rows

    def _pieces(self, array: Array) -> Iterator[Array]:
        """The rows, of shape [..., rows, in]."""
        if array.size:
            rows = array.reshape(-1, array.shape[-1])
            step = max(1, _PIECE // rows.shape[1])
            for at in range(0, len(rows), step):
                yield rows[at : at + step]


@dataclass(eq=False)
class ConvGram(GramMatrix):
    """The same for a convolution, whose rows are the windows that it multiplies by its weight (im2col).

    Attributes:
        matrix: one sum per group, of shape [group, in / group * kernel, in / group * kernel], the elements of a window
            in the order of the weight's.
        total: one sum of windows per group, likewise.
        kernel_shape: the sizes of the kernel, one per spatial dimension.
        strides: steps between windows, likewise; 1 by default.
        pads: zeros put before each spatial dimension, and then those behind each; 0 by default.
        dilations: steps between the elements of a window; 1 by default.
        group: the number of groups.
        auto_pad: as of the operator; SAME_UPPER and SAME_LOWER choose the pads by the size of the data.
        limit: the most windows of one update to use, 4096 by default; of more, every n-th.
    """

    kernel_shape: Sequence[int] = ()
    strides: Sequence[int] = ()
    pads: Sequence[int] = ()
    dilations: Sequence[int] = ()
    group: int = 1
    auto_pad: str = "NOTSET"
    limit: int = 4096

    @classmethod
    def of(cls, node: Node, limit: int = 4096) -> ConvGram:
        """For the input of ``node``, a Conv whose kernel has a known shape."""
        names = ("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad")
        given = {name: node.attrs[name] for name in names if name in node.attrs}
        return cls(**({"kernel_shape": (node.given(1).shape or ())[2:]} | given), limit=limit)

    def _pieces(self, array: Array) -> Iterator[Array]:
        """Windows of an array of shape [batch, in, spatial...] as rows: [group, windows, in / group * kernel]."""
        n = len(self.kernel_shape)
        strides, dilations = self.strides or (1,) * n, self.dilations or (1,) * n
        extents = [(k - 1) * d + 1 for k, d in zip(self.kernel_shape, dilations, strict=True)]
        pads = self._pads(array.shape[2:], strides, extents)
        padded = np.pad(array, [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)])
        windows = sliding_window_view(padded, extents, tuple(range(2, n + 2)))
        steps: list[Any] = [slice(None, None, s) for s in (*strides, *dilations)]
        windows = windows[:, :, *steps]
        places = (len(array), *windows.shape[2 : n + 2])
        each = math.prod(places[1:])
        step = max(1, -(-each * len(array) // self.limit))
        while math.gcd(step, each) > 1:  # so that every place has its turn
            step += 1
        chosen = np.arange(0, each * len(array), step)
        size = max(1, _PIECE // (array.shape[1] * math.prod(self.kernel_shape)))
        for at in range(0, len(chosen), size):
            batch, *place = np.unravel_index(chosen[at : at + size], places)
            index: tuple[Any, ...] = (batch, slice(None), *place)
            rows = windows[index]
            yield np.swapaxes(rows.reshape(len(rows), self.group, -1), 0, 1)

    def _pads(self, sizes: Sequence[int], strides: Sequence[int], extents: Sequence[int]) -> Sequence[int]:
        """The zeros before and behind each spatial dimension of sizes ``sizes`` (ONNX, ``Conv``)."""
        if not self.auto_pad.startswith("SAME"):
            return self.pads or (0,) * (2 * len(extents))
        totals = [max(-(-n // s) * s - s + e - n, 0) for n, s, e in zip(sizes, strides, extents, strict=True)]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return (*less, *more) if self.auto_pad == "SAME_UPPER" else (*more, *less)
