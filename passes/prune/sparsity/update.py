"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): columns are pruned one after the other, the rest makes up."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...quantize.weights.compensation import compensate, inverse_factor
from ...quantize.weights.grids import checked_hessian, checked_weight
from .masks import Pattern, lowest, outside_pattern, shares

__all__ = ["sparsegpt"]

Array = np.ndarray[Any, Any]
_COLUMNS, _WEIGHTS = 8, 512  # that are compared with each other, at least
_BLOCK = 128  # columns that are pruned before those behind them move, about


def sparsegpt(
    weight: Array, hessian: Array, goal: int | Pattern, *, damping: float = 0.01, compared: int | None = None
) -> Array:
    """``weight`` with zeros, its other elements moved so that the outputs change little.

    Weights are compared by ``w^2 / U[j, j]^2``, what the outputs lose without them if the columns behind make up for
    it (``U^T U`` is the inverse of the Hessian): those of some columns over all rows, or those of a group of a pattern;
    in each case when the columns before have moved them (section 3). A weight whose input was always 0 costs nothing.
    What is 0 already is so afterwards.

    Args:
        weight: ``[out, in]``.
        hessian: ``[in, in]``, known up to a factor (see `planish.passes.quantize.weights.gptq.gptq`).
        goal: how many weights are 0, the same share of all columns that are compared as far as those that are 0
            already allow; or the pattern, along the columns, which are whole groups.
        damping: what is added to the diagonal of the Hessian, relative to its mean.
        compared: without a pattern, how many columns are compared with each other; None: 8, or so many that there are
            512 weights. Few follow better how weights move (the authors take 128, and lose up to a sixth more).

    Returns:
        float32 ``[out, in]``.

    Raises:
        ValueError: a shape does not fit, a number is not finite, or the damped Hessian is not positive definite.
    """
    weight = checked_weight(weight)
    hessian = checked_hessian(hessian, weight.shape[1])
    factor = inverse_factor(hessian, damping)
    losses = np.where(hessian.diagonal() == 0, 0, 1 / factor.diagonal() ** 2)[:, None]
    rest = weight.T.astype(np.float64)
    zeros = rest == 0
    span = goal.of if isinstance(goal, Pattern) else compared or max(_COLUMNS, -(-_WEIGHTS // max(len(weight), 1)))
    if not isinstance(goal, Pattern):
        starts = np.arange(0, len(rest), span)
        there = np.add.reduceat(np.count_nonzero(zeros, axis=1), starts)
        counts = shares(there, np.minimum(span, len(rest) - starts) * len(weight), goal)
    mask = zeros.copy()

    def settle(i: int) -> Array:
        if i % span == 0:
            part = slice(i, i + span)
            scores = np.square(rest[part]) * losses[part]
            if isinstance(goal, Pattern):
                mask[part] = outside_pattern(scores.T, zeros[part].T, goal).T
            else:
                mask[part] = lowest(scores, zeros[part], int(counts[i // span]))
        return np.where(mask[i], 0, rest[i])

    compensate(rest, factor, settle, max(_BLOCK // span, 1) * span)
    return np.ascontiguousarray(rest.T, np.float32)
