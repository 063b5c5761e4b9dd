"""AWQ (Lin et al. 2023, arXiv 2306.00978): weights of large inputs are scaled up before they are rounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from .grids import Fit, Grid, checked_hessian, checked_weight, row_errors

__all__ = ["awq_scales"]

Array = np.ndarray[Any, Any]

_RANGE = 1e-4  # means are taken to be at least this part of the largest, or an input that was 0 would get the scale 0


def awq_scales(
    weight: Array, mean_abs_x: Array, hessian: Array, fit: Fit, *, points: int = 20
) -> tuple[Array, Array, Grid]:
    """Scales for the input channels, and ``weight`` rounded with them.

    Since ``W x = (W * s) (x / s)``, the caller may multiply the columns of the weight by ``s`` and divide the input by
    it, in whatever computes that. The scales are ``mean(|x|) ** r``, divided by the root of their least times their
    largest; r is the one of ``points`` numbers from 0 (``s = 1``) to below 1 that changes the outputs least (equations
    4 and 5; the division is the authors' code). So the error is never larger than that of rounding ``weight``.

    Args:
        weight: ``[out, in]``.
        mean_abs_x: ``[in]``, the mean magnitude of each input.
        hessian: ``[in, in]``, ``x x^T`` summed over inputs, times any factor.
        fit: what chooses a grid for the scaled weight.
        points: how many exponents are tried.

    Returns:
        The scales ``s`` ``[in]`` in float32; ``Q(weight * s) / s`` ``[out, in]`` in float32, what the layer then
        computes with; and the grid of ``weight * s``.

    Raises:
        ValueError: a shape does not fit, a number is not finite, or a mean magnitude is below 0.
    """
    weight = checked_weight(weight)
    hessian = checked_hessian(hessian, weight.shape[1])
    if mean_abs_x.shape != weight.shape[1:] or not (np.isfinite(mean_abs_x).all() and (mean_abs_x >= 0).all()):
        raise ValueError(f"mean_abs_x is [{weight.shape[1]}] finite numbers, none below 0")
    means = mean_abs_x.astype(np.float64)
    largest = means.max(initial=0)
    means = np.maximum(means / largest, _RANGE) if largest else np.ones_like(means)
    least, best = np.inf, None
    for exponent in np.arange(points) / points:
        scales = means**exponent
        scales = (scales / np.sqrt(scales.min(initial=1) * scales.max(initial=0))).astype(np.float32)
        grid = fit(weight * scales)
        rounded = grid.apply(weight * scales) / scales
        error = float(row_errors(rounded.astype(np.float64) - weight, hessian).sum())
        if error < least:
            least, best = error, (scales, rounded, grid)
    assert best is not None
    return best
