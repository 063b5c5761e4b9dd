"""HQQ, half-quadratic quantization (Badri & Shaji 2023, mobiusml.github.io/hqq_blog): better scales without data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .grids import Grid, checked_weight, groups_of

__all__ = ["hqq"]

Array = np.ndarray[Any, Any]


def hqq(
    weight: Array, grid: Grid, *, p: float = 0.7, beta: float = 10.0, kappa: float = 1.01, iterations: int = 20
) -> Grid:
    """``grid`` with scales that round ``weight`` with a smaller error in the p-norm, ``sum |W - Q(W)|^p``.

    With ``p < 1``, that is a norm in which few large errors are better than many small ones: outliers are given up.
    Errors are split off as ``E``, and two steps alternate: ``E = shrink(W - Q(W))``, where ``shrink(x) = sign(x) *
    max(|x| - |x|^(p - 1) / beta, 0)``, and the grid that fits ``W - E`` best in squares, for the codes at hand. After
    each round, beta grows by the factor kappa.

    It differs from the paper in two ways. The paper moves the zero point, a real number, and keeps the scale. In ONNX,
    zero points are integers, and to move one by a whole step changes nothing but what is clipped: rounded, that of the
    paper gives the grid that was there before. So here the scale moves, and the zero point stays. And errors are
    measured in steps of the first grid, so that the result does not depend on the unit of the weight.

    A scale is kept where it is no worse in squares than the first one, and best in the p-norm among these.

    Args:
        weight: ``[out, in]``.
        grid: where to start; symmetric or not.
        p: the norm, above 0.
        beta: how little is split off at first; in steps of the grid to the power ``p - 2``.
        kappa: by what beta grows.
        iterations: how often the scales move.

    Raises:
        ValueError: ``weight`` is no matrix, or holds a number that is not finite.
    """
    weight = checked_weight(weight)
    groups = groups_of(weight, grid.block_size or "row") if grid.scale.ndim else weight.reshape(1, -1)
    first = grid.scale.reshape(-1, 1).astype(np.float64)
    zero = None if grid.zero_point is None else grid.zero_point.reshape(-1)
    scale = best = grid.scale.reshape(-1)
    least, allowed = np.full(len(first), np.inf), np.full(len(first), np.inf)
    for i in range(iterations + 1):
        rounded = Grid(scale, zero, grid.format).apply(groups)
        errors = (groups - rounded) / first
        squares, norms = np.square(errors).sum(axis=1), (np.abs(errors) ** p).sum(axis=1)
        if i == 0:
            allowed = squares
        better = (norms < least) & (squares <= allowed)
        least, best = np.where(better, norms, least), np.where(better, scale, best)
        target = groups - _shrink(errors, p, beta * kappa**i) * first
        scale = _least_squares(rounded / scale[:, None], target, scale)
    return replace(grid, scale=best.reshape(grid.scale.shape))


def _shrink(errors: Array, p: float, beta: float) -> Array:
    """What is split off of ``errors``: the proximal operator of the p-norm, nearly."""
    size = np.abs(errors)
    with np.errstate(divide="ignore"):
        return np.sign(errors) * np.maximum(size - size ** (p - 1) / beta, 0)


def _least_squares(steps: Array, target: Array, scale: Array) -> Array:
    """The float32 scales with which ``steps`` fit ``target`` best; where there are no steps, ``scale`` as it is."""
    squares = np.square(steps.astype(np.float64)).sum(axis=1)
    fitted = (steps * target).sum(axis=1) / np.where(squares, squares, 1)
    return np.where(fitted >= np.finfo(np.float32).tiny, fitted, scale).astype(np.float32)
