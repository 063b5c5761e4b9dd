"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one after the other, the rest makes up for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .compensation import compensate, inverse_factor
from .grids import Fit, Grid, checked_hessian, checked_weight

__all__ = ["gptq"]

Array = np.ndarray[Any, Any]


def gptq(
    weight: Array, hessian: Array, grid: Grid | Fit, *, damping: float = 0.01, block: int = 128, order: bool = False
) -> tuple[Array, Grid]:
    """``weight`` on a grid, rounded so that the outputs change little.

    When a column is rounded, those behind it make up for it (`compensate`), by the inverse of the Hessian.
    The Hessian may be known up to a factor, which cancels: ``x x^T`` summed or averaged, with or without the 2.

    What is 0 stays so, as in a pruned weight: all grids have a 0.

    An input that was always 0 says nothing about its column, which is rounded to nearest (the authors set it to 0).

    Args:
        weight: ``[out, in]``.
        hessian: ``[in, in]``.
        grid: a `Grid`; or what chooses one. In blocks, the latter chooses the scales of a block when the columns
            before it are rounded and have moved it (section 4, "grouping"); with ``order``, from ``weight`` itself.
        damping: what is added to the diagonal of the Hessian, relative to its mean.
        block: how many columns are rounded before the rest is updated: a matter of speed only. With scales chosen in
            blocks, it is rounded to whole blocks.
        order: whether columns go by falling diagonal of the Hessian, so that those that matter most have the most
            columns behind them ("act-order" of the authors' code), and not from first to last.

    Returns:
        The rounded weight ``[out, in]`` in float32, and its grid.

    Raises:
        ValueError: a shape does not fit, a number is not finite, or the damped Hessian is not positive definite.
    """
    weight = checked_weight(weight)
    hessian = checked_hessian(hessian, weight.shape[1])
    fixed = grid if isinstance(grid, Grid) else grid(weight)
    fit = None if isinstance(grid, Grid) or order or not fixed.block_size else grid
    if fit:
        block = max(block // fixed.block_size, 1) * fixed.block_size
    columns = np.argsort(-hessian.diagonal(), kind="stable") if order else np.arange(weight.shape[1])
    factor = inverse_factor(hessian[np.ix_(columns, columns)], damping)
    rest = weight.T[columns].astype(np.float64)

    def settle(i: int) -> Array:
        nonlocal fixed
        if fit and i % fixed.block_size == 0:
            fixed = _with_block(fixed, i // fixed.block_size, fit(rest[i : i + fixed.block_size].T))
        column = fixed.column(int(columns[i])).apply(rest[i, :, None].astype(np.float32))[:, 0]
        return np.where(weight[:, columns[i]] == 0, np.float32(0), column)

    compensate(rest, factor, settle, block)
    rounded = np.empty_like(weight)
    rounded[:, columns] = rest.T
    return rounded, fixed


def _with_block(grid: Grid, index: int, fitted: Grid) -> Grid:
    """``grid`` with the scales of block ``index`` of those that were fitted to the block alone."""
    scale, zero = grid.scale.copy(), grid.zero_point
    scale[:, index] = fitted.scale[:, 0]
    if zero is not None and fitted.zero_point is not None:
        zero = zero.copy()
        zero[:, index] = fitted.zero_point[:, 0]
    return replace(grid, scale=scale, zero_point=zero)
