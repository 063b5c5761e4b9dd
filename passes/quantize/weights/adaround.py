"""AdaRound (Nagel et al. 2020, arXiv 2004.10568): whether each weight is rounded up or down is learned."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.quantization import spread
from .grids import Grid, checked_hessian, checked_weight, row_errors

__all__ = ["adaround"]

Array = np.ndarray[Any, Any]

_ZETA, _GAMMA = 1.1, -0.1  # the ends of the stretched sigmoid: beyond 0 and 1, so that it reaches both (equation 23)
_BETAS = 20.0, 2.0  # at first, only what is nearly decided is pushed to 0 or 1; in the end, everything
_MEAN, _SQUARE, _EPSILON = 0.9, 0.999, 1e-8  # of Adam (arXiv 1412.6980)


def adaround(
    weight: Array,
    hessian: Array,
    grid: Grid,
    *,
    iterations: int = 1000,
    rate: float = 0.03,
    strength: float = 0.5,
    warmup: float = 0.2,
) -> Array:
    """``weight`` on ``grid``, each element rounded up or down so that the outputs change little.

    A weight becomes ``(floor(W / s) + h(a)) * s`` (clipped), with a rectified sigmoid ``h`` and an ``a`` for each
    weight. Adam minimizes ``tr(D H D^T) + sum(l * (1 - |2 h(a) - 1| ^ beta))``, the squared error of the outputs plus
    what drives h to 0 or 1 as beta falls from 20 to 2 (equations 21 to 24). The inputs count only by their ``H``.

    In the paper, ``l`` is one number. Here it is ``strength`` times what it costs to be off by one step in that weight
    alone, ``H[i, i] * s^2``. So neither the unit of the inputs nor that of the weights matters, and the weights of
    large inputs do not stay undecided to the end, when all that is left is to round them to nearest.

    A row that ends up worse than rounded to nearest is rounded to nearest.

    Args:
        weight: ``[out, in]``.
        hessian: ``[in, in]``, ``x x^T`` summed over inputs, times any factor.
        grid: of an integer format.
        iterations: how many steps Adam takes; at least 1.
        rate: its learning rate.
        strength: what it costs to be undecided; from 0.3 to 3, results hardly differ.
        warmup: the part of the iterations in which that costs nothing.

    Returns:
        The rounded weight ``[out, in]`` in float32.

    Raises:
        ValueError: a shape does not fit, a number is not finite, or the format is not an integer.
    """
    weight = checked_weight(weight)
    hessian = checked_hessian(hessian, weight.shape[1])
    if not grid.format.is_integer:
        raise ValueError(f"AdaRound rounds to integers, not to {grid.format}")
    scale, zero = _steps(grid, weight)
    low, high = grid.format.low - zero, grid.format.high - zero
    steps = weight / scale
    floor = np.floor(steps)
    coupling = _coupling(hessian)
    relative = scale / scale.max(axis=1, keepdims=True, initial=0)
    hidden = -np.log((_ZETA - _GAMMA) / (steps - floor - _GAMMA) - 1)  # h(hidden) is the fraction that is rounded away
    mean, square = np.zeros_like(hidden), np.zeros_like(hidden)
    for i in range(1, iterations + 1):
        up, slope = _rectified_sigmoid(hidden)
        off = (np.clip(floor + up, low, high) - steps) * relative
        # Divided by 2 H[i, i] s^2: Adam does not mind, and nothing overflows in float32.
        gradient = off @ coupling / relative * ((floor + up >= low) & (floor + up <= high))
        progress = (i / iterations - warmup) / (1 - warmup)
        if progress > 0:
            beta = _BETAS[0] + (_BETAS[1] - _BETAS[0]) * progress
            gradient -= strength * beta * np.sign(2 * up - 1) * np.abs(2 * up - 1) ** (beta - 1)
        gradient *= slope
        mean = _MEAN * mean + (1 - _MEAN) * gradient
        square = _SQUARE * square + (1 - _SQUARE) * np.square(gradient)
        hidden -= rate * mean / (1 - _MEAN**i) / (np.sqrt(square / (1 - _SQUARE**i)) + _EPSILON)
    rounded = grid.values(np.clip(floor + (hidden >= 0), low, high) + zero)
    nearest = grid.apply(weight)
    learned, plain = (row_errors(w.astype(np.float64) - weight, hessian) for w in (rounded, nearest))
    return np.where((learned < plain)[:, None], rounded, nearest)


def _steps(grid: Grid, weight: Array) -> tuple[Array, Array]:
    """Scale and zero point of each element of ``weight``, in float32."""
    axis = 1 if grid.block_size else 0
    scale = np.broadcast_to(spread(grid.scale, weight.shape, axis, grid.block_size), weight.shape)
    if grid.zero_point is None:
        return scale, np.zeros((), np.float32)
    return scale, spread(grid.zero_point, weight.shape, axis, grid.block_size).astype(np.float32)


def _coupling(hessian: Array) -> Array:
    """``hessian`` with each column divided by its diagonal element, in float32."""
    diagonal = hessian.diagonal()
    diagonal = np.maximum(diagonal, diagonal.max(initial=0) * 1e-12)  # below it, the quotients could overflow
    return (hessian / np.where(diagonal > 0, diagonal, 1)).astype(np.float32)


def _rectified_sigmoid(x: Array) -> tuple[Array, Array]:
    """``clip(sigmoid(x) * (zeta - gamma) + gamma, 0, 1)``, and its derivative."""
    sigmoid = 1 / (1 + np.exp(-x))
    stretched = sigmoid * (_ZETA - _GAMMA) + _GAMMA
    inside = (stretched > 0) & (stretched < 1)
    return np.clip(stretched, 0, 1), sigmoid * (1 - sigmoid) * (_ZETA - _GAMMA) * inside
