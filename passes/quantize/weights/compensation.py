"""Changing a weight column by column, each column behind making up for it: what GPTQ and SparseGPT have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["compensate", "inverse_factor"]

Array = np.ndarray[Any, Any]


def compensate(rest: Array, factor: Array, settle: Callable[[int], Array], block: int = 128) -> None:
    """Settle the columns of a weight from first to last, and let those behind make up for each.

    When column i is settled with error ``e``, the columns behind it move by ``-e / U[i, i] * U[i, j]``, the best that
    they can do for the outputs (Frantar & Alistarh 2022, arXiv 2210.17323, algorithm 1).

    Args:
        rest: ``[in, out]`` in double precision, changed in place: the columns of the weight are rows here, each in one
            piece. All are settled in the end.
        factor: ``[in, in]``, the ``U`` of `inverse_factor`.
        settle: what column i is to be, ``[out]``; called when all columns before it have moved those behind.
        block: how many columns are settled before what is behind them is updated: a matter of speed. In between, only
            the columns of the same block, counted from 0, are up to date.
    """
    for start in range(0, len(rest), block):
        stop = min(start + block, len(rest))
        errors = np.empty((stop - start, rest.shape[1]))
        for i in range(start, stop):
            settled = settle(i)
            errors[i - start] = (rest[i] - settled) / factor[i, i]
            rest[i] = settled
            rest[i + 1 : stop] -= np.outer(factor[i, i + 1 : stop], errors[i - start])
        rest[stop:] -= factor[start:stop, stop:].T @ errors


def inverse_factor(hessian: Array, damping: float) -> Array:
    """The upper triangular ``U`` with ``U^T U`` the inverse of the damped Hessian.

    Args:
        hessian: ``[in, in]`` in double precision. An input that was always 0 counts as unrelated to all others.
        damping: what is added to the diagonal, relative to its mean.

    Raises:
        ValueError: the damped Hessian is not positive definite.
    """
    diagonal = hessian.diagonal()
    damped = hessian + np.diag(np.where(diagonal == 0, 1.0, damping * diagonal.mean() if diagonal.size else 0.0))
    try:
        # Backwards, H = L L^T makes L upper triangular, and its inverse is U: one factorization, no inverse of H.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise ValueError(f"the Hessian is not positive definite with damping {damping:g}; more may help") from None
    return np.triu(np.linalg.inv(lower[::-1, ::-1]))
