"""Grids: the numbers that a quantized weight may hold, and how to choose them.

A weight is a matrix ``[out, in]``, one row per output channel; whoever has a convolution reshapes it to
``[O, I * kh * kw]``. A scale belongs to the whole matrix (``granularity="tensor"``), to a row (``"row"``), or to a
number of neighbours in a row (that number).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ....ir.quantization import Format, dequantize, quantize
from ....ir.types import DType
from .clipping import best_shrink, scales_of

__all__ = [
    "Fit",
    "Granularity",
    "Grid",
    "Method",
    "checked_hessian",
    "checked_weight",
    "grid_for",
    "groups_of",
    "output_error",
    "row_errors",
]

Array = np.ndarray[Any, Any]
Granularity: TypeAlias = Literal["tensor", "row"] | int
Method: TypeAlias = Literal["minmax", "mse"]


@dataclass(frozen=True, eq=False)
class Grid:
    """What the elements of a weight ``[out, in]`` may be: multiples of a scale, counted from a zero point.

    Attributes:
        scale: float32; of shape ``[]`` per tensor, ``[out]`` per row, ``[out, ceil(in / block_size)]`` in blocks.
        zero_point: the code of 0.0, in the storage type of the format and the shape of the scale; None for code 0.
        format: what a code is.
        block_size: how many neighbours in a row share a scale; 0 without blocks.
    """

    scale: Array
    zero_point: Array | None
    format: Format
    block_size: int = 0

    def round(self, weight: Array) -> Array:
        """The codes nearest to ``weight``, in the storage type of the format."""
        axis = 1 if self.block_size else 0
        return quantize(weight, self.scale, self.zero_point, self.format, axis, self.block_size)

    def values(self, codes: Array) -> Array:
        """The float32 numbers that ``codes`` stand for."""
        axis = 1 if self.block_size else 0
        return dequantize(codes, self.scale, self.zero_point, DType.FLOAT, axis, self.block_size)

    def apply(self, weight: Array) -> Array:
        """``weight`` rounded to the nearest numbers of the grid, in float32."""
        return self.values(self.round(weight))

    def column(self, index: int) -> Grid:
        """The grid of column ``index``: the same, or that of its block as a grid per row."""
        if not self.block_size:
            return self
        block = index // self.block_size
        zero = None if self.zero_point is None else self.zero_point[:, block]
        return Grid(self.scale[:, block], zero, self.format)


Fit: TypeAlias = Callable[[Array], Grid]
"""What chooses a grid for a weight: a ``functools.partial`` of `grid_for` with everything but the weight, say."""


def grid_for(
    weight: Array,
    format: Format,
    *,
    granularity: Granularity = "row",
    symmetric: bool = True,
    method: Method = "minmax",
    importance: Array | None = None,
) -> Grid:
    """A grid for ``weight`` ``[out, in]``.

    ``minmax`` covers the whole range. Symmetric, the largest magnitude gets the highest code, so that no code is below
    ``-format.high``; asymmetric, the range is made to hold 0, which then is a number of the grid. ``mse`` covers that
    part of the range, among `SHRINKS`, that has the smallest squared error, and clips what lies outside. A group of
    zeros gets the scale 1.

    Args:
        weight: a matrix of finite numbers.
        format: what the codes are.
        granularity: what shares a scale: ``"tensor"``, ``"row"``, or a number of neighbours in a row.
        symmetric: whether there is no zero point. Symmetric needs a signed format, asymmetric an integer one.
        method: ``"minmax"`` or ``"mse"``.
        importance: ``[in]``, what a squared error in each column counts in ``mse``: the mean square of the input that
            it is multiplied with, say. All count the same when None.

    Raises:
        ValueError: a number is not finite, a shape does not fit, or the format cannot be used that way.
    """
    weight = checked_weight(weight)
    if not (format.is_signed if symmetric else format.is_integer):
        raise ValueError(f"{format} cannot be {'symmetric: it has no sign' if symmetric else 'asymmetric: no integer'}")
    if method not in ("minmax", "mse"):
        raise ValueError(f'the method is "minmax" or "mse", not {method!r}')
    groups = groups_of(weight, granularity)
    low, high = groups.min(axis=1, initial=0).astype(np.float64), groups.max(axis=1, initial=0).astype(np.float64)
    if granularity == "tensor":
        low, high = low.min(initial=0, keepdims=True), high.max(initial=0, keepdims=True)
    if method == "mse":
        counts = None if importance is None else groups_of(_checked_importance(importance, weight), granularity)
        shrink = best_shrink(groups, low, high, format, symmetric, counts)
        low, high = low * shrink, high * shrink
    scale, zero = scales_of(low, high, format, symmetric)
    if granularity == "tensor":
        return Grid(scale.reshape(()), None if zero is None else zero.reshape(()), format)
    if granularity == "row":
        return Grid(scale, zero, format)
    shape = (len(weight), -(-weight.shape[1] // granularity))
    return Grid(scale.reshape(shape), None if zero is None else zero.reshape(shape), format, granularity)


def groups_of(weight: Array, granularity: Granularity) -> Array:
    """The blocks of ``weight`` as rows, the last of a row padded with zeros; without blocks, ``weight`` itself.

    Raises:
        ValueError: there is no such granularity.
    """
    if granularity in ("tensor", "row"):
        return weight
    if not isinstance(granularity, int) or granularity < 1:
        raise ValueError(f'granularity is "tensor", "row" or a number of neighbours, not {granularity!r}')
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % granularity))).reshape(-1, granularity)


def output_error(weight: Array, approximated: Array, hessian: Array) -> float:
    """The squared error that ``approximated`` makes in the outputs of ``weight``, relative to their squares.

    With outputs ``W x`` and ``H`` the sum of ``x x^T`` over inputs (times any factor), that is
    ``tr(D H D^T) / tr(W H W^T)`` for ``D = approximated - weight``; 0 without any error.

    Raises:
        ValueError: a shape does not fit, or a number is not finite.
    """
    weight, approximated = checked_weight(weight).astype(np.float64), checked_weight(approximated)
    hessian = checked_hessian(hessian, weight.shape[1])
    error, power = (float(row_errors(d, hessian).sum()) for d in (approximated - weight, weight))
    return 0.0 if error == 0 else error / power if power else float("inf")


def row_errors(difference: Array, hessian: Array) -> Array:
    """``d H d^T`` for each row ``d`` of ``difference`` ``[out, in]``: the squared error of each output."""
    return np.einsum("oi,oi->o", difference @ hessian, difference)


def checked_weight(weight: Array) -> Array:
    """``weight`` in float32.

    Raises:
        ValueError: it is no matrix, or holds a number that is not finite.
    """
    if weight.ndim != 2:
        raise ValueError(f"a weight is a matrix [out, in], not {list(weight.shape)}")
    with np.errstate(over="ignore"):
        weight = weight.astype(np.float32, copy=False)
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds numbers that are not finite in float32")
    return weight


def checked_hessian(hessian: Array, size: int) -> Array:
    """``hessian`` in float64.

    Raises:
        ValueError: it is no ``[size, size]`` matrix, or holds a number that is not finite.
    """
    if hessian.shape != (size, size):
        raise ValueError(f"the Hessian of {size} inputs is [{size}, {size}], not {list(hessian.shape)}")
    if not np.isfinite(hessian).all():
        raise ValueError("the Hessian holds numbers that are not finite; NaN or infinite inputs make it so")
    return hessian.astype(np.float64, copy=False)


def _checked_importance(importance: Array, weight: Array) -> Array:
    """``importance`` as one row."""
    if importance.shape != weight.shape[1:] or not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError(f"importance is [{weight.shape[1]}] finite numbers, none below 0")
    return importance.reshape(1, -1)
