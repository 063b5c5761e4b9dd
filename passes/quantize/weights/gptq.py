"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one after the other, the rest makes up for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .grids import Fit, Grid, checked_hessian, checked_weight

__all__ = ["gptq"]

Array = np.ndarray[Any, Any]


def gptq(
    weight: Array, hessian: Array, grid: Grid | Fit, *, damping: float = 0.01, block: int = 128, order: bool = False
) -> tuple[Array, Grid]:
    """``weight`` on a grid, rounded so that the outputs change little.

    When column i is rounded with error ``e``, the columns behind it move by ``-e / U[i, i] * U[i, j]``, the best that
    they can do for the outputs, where ``U`` is upper triangular and ``U^T U`` the inverse of the Hessian (algorithm 1).
    The Hessian may be known up to a factor, which cancels: ``x x^T`` summed or averaged, with or without the 2.

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
    factor = _inverse_factor(hessian[np.ix_(columns, columns)], damping)
    rest = weight.T[columns].astype(np.float64)  # [in, out]: the columns are rows here, each in one piece
    rounded = np.empty_like(weight)
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        errors = np.empty((stop - start, len(weight)))
        for i in range(start, stop):
            if fit and i % fixed.block_size == 0:
                fixed = _with_block(fixed, i // fixed.block_size, fit(rest[i : i + fixed.block_size].T))
            column = fixed.column(int(columns[i])).apply(rest[i, :, None].astype(np.float32))[:, 0]
            rounded[:, columns[i]] = column
            errors[i - start] = (rest[i] - column) / factor[i, i]
            rest[i + 1 : stop] -= np.outer(factor[i, i + 1 : stop], errors[i - start])
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return rounded, fixed


def _inverse_factor(hessian: Array, damping: float) -> Array:
    """The upper triangular ``U`` with ``U^T U`` the inverse of the damped Hessian."""
    diagonal = hessian.diagonal()
    damped = hessian + np.diag(np.where(diagonal == 0, 1.0, damping * diagonal.mean() if diagonal.size else 0.0))
    try:
        # Backwards, H = L L^T makes L upper triangular, and its inverse is U: one factorization, no inverse of H.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise ValueError(f"the Hessian is not positive definite with damping {damping:g}; more may help") from None
    return np.triu(np.linalg.inv(lower[::-1, ::-1]))


def _with_block(grid: Grid, index: int, fitted: Grid) -> Grid:
    """``grid`` with the scales of block ``index`` of those that were fitted to the block alone."""
    scale, zero = grid.scale.copy(), grid.zero_point
    scale[:, index] = fitted.scale[:, 0]
    if zero is not None and fitted.zero_point is not None:
        zero = zero.copy()
        zero[:, index] = fitted.zero_point[:, 0]
    return replace(grid, scale=scale, zero_point=zero)
