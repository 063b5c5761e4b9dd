"""Second moments of inputs, decompositions that are best for them, and the errors that follow.

A layer computes ``W x`` for each of its rows ``x`` (of a convolution: its windows), ``W`` of shape [out, in]. With the
second moments ``G = E[x x^T]``, an approximation ``V`` of ``W`` is off by ``E|W x - V x|^2 = tr((W - V) G (W - V)^T)``.
For any square root ``S S^T = G`` that is the squared Frobenius norm of ``(W - V) S``, so that the truncated singular
value decomposition of ``W S``, times the inverse of ``S``, loses least (SVD-LLM, Wang et al. 2024, arXiv:2403.07378,
where ``S`` is the Cholesky factor), and what it loses are the squares of the singular values that are cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Array", "Moments", "kronecker_roots", "refit", "relative_error", "root"]

Array = np.ndarray[Any, Any]
Roots = tuple[Array, Array]
_FEW = 100  # rows per input, beyond which second moments are known to about a percent
_FLOOR = 1e-9  # of the mean of a diagonal: what is added to it at least


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the rows that a layer multiplies.

    Attributes:
        matrix: the mean of ``x x^T``, float64 of shape [in, in].
        rows: of how many rows.
    """

    matrix: Array
    rows: int

    def damped(self) -> Array:
        """The matrix with something added to its diagonal: the less, the more rows it is the mean of.

        So directions that few samples never took are not taken for impossible, and it can be inverted.
        """
        n = len(self.matrix)
        mean = float(np.trace(self.matrix)) / n
        return self.matrix + np.eye(n) * (mean * max(n / (_FEW * max(self.rows, 1)), _FLOOR) or 1.0)


def root(matrix: Array) -> tuple[Array, Array]:
    """``S`` with ``S S^T = matrix``, and its inverse; of one symmetric positive matrix, or a stack of them."""
    values, vectors = np.linalg.eigh(matrix)
    least = _FLOOR * values.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.maximum(values, np.where(least > 0, least, 1.0)))
    return vectors * scale[..., None, :], np.swapaxes(vectors, -1, -2) / scale[..., :, None]


def kronecker_roots(
    moments: Array | None, channels: int, places: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Square roots, with their inverses, of the moments of channels and of places, as if these were independent.

    Args:
        moments: of windows, [channels * places, channels * places], positive definite; None for the identity.
        channels: their number.
        places: the number of elements of the kernel.
    """
    if moments is None:
        return (np.eye(channels), np.eye(channels)), (np.eye(places), np.eye(places))
    blocks = moments.reshape(channels, places, channels, places)
    mean = np.trace(moments) / places
    return root(np.einsum("ikjk->ij", blocks) / places), root(np.einsum("ikil->kl", blocks) / mean)


def refit(weight: Array, features: Array, moments: Array) -> Array:
    """The ``L`` with the least expected ``|W x - L D x|^2``: a regression of the outputs on the features.

    Args:
        weight: ``W`` [out, in].
        features: ``D`` [features, in].
        moments: ``G`` [in, in], positive definite.
    """
    projected = features @ moments
    gram = projected @ features.T
    gram += np.eye(len(gram)) * (1e-13 * np.trace(gram) / len(gram))
    return np.linalg.solve(gram, projected @ weight.T).T


def relative_error(weight: Array, other: Array, moments: Moments | None) -> float:
    """The squared error of ``other x`` relative to the square of ``weight x``; without moments, of white inputs."""
    difference = weight - other
    if moments is None:
        lost, whole = np.square(difference).sum(), np.square(weight).sum()
    else:
        lost = (difference @ moments.matrix * difference).sum()
        whole = (weight @ moments.matrix * weight).sum()
    return max(float(lost), 0.0) / float(whole) if whole > 0 else 0.0
