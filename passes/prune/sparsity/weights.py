"""Pruning one weight after the other: how many zeros each gets, where they are, and what the outputs lose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ....ir import ArrayTensor, Graph, LazyTensor, Tensor, Value, edit
from ....ir.text import graph_text
from ...base import RequestError
from ...layers import bias_of, correct_bias, layers_of
from ...quantize.weights.grids import row_errors
from .masks import Pattern, counts_of_lowest, lamp_scores, lowest, lowest_in_rows, outside_pattern, shares
from .sites import Inputs, Site
from .update import sparsegpt

__all__ = ["Method", "Pruned", "Spread", "apply", "goals", "next_ratio", "prune", "rewind"]

Array = np.ndarray[Any, Any]
Method = Literal["magnitude", "wanda", "sparsegpt"]
Spread = Literal["even", "global", "lamp"]
_LAZY = 1 << 20  # bytes: of larger weights only the mask is kept, an eighth of a byte for each element
_SLACK = 0.25  # of a step of a schedule: what may be missing where it counts as done


@dataclass(frozen=True, eq=False)
class Pruned:
    """What became of a weight.

    Attributes:
        site: the weight as it was.
        value: the new one.
        before: how many of its elements were 0.
        after: how many are.
        method: what chose them: magnitude where inputs are not known.
        error: the squared error of the outputs relative to their squares, for the inputs that were seen; None without.
        shift: [out], by how much the mean outputs moved, which the bias makes up for; None where there is none.
    """

    site: Site
    value: Value
    before: int
    after: int
    method: Method
    error: float | None
    shift: Array | None


# how many


def goals(sites: Sequence[Site], ratio: float, rounds: int, spread: Spread) -> dict[Site, int]:
    """How many elements of each weight are to be 0.

    Args:
        sites: the weights.
        ratio: the share of all their elements, in the end.
        rounds: in how many steps, of which the next is taken (see `next_ratio`).
        spread: how shares differ between weights.
    """
    sizes = np.array([site.tensor.size for site in sites])
    zeros = np.array([site.tensor.size - np.count_nonzero(site.tensor.numpy()) for site in sites])
    total = round(next_ratio(float(zeros.sum() / sizes.sum()), ratio, rounds) * int(sizes.sum()))
    if spread == "even" or total <= zeros.sum():
        return dict(zip(sites, map(int, shares(zeros, sizes, total)), strict=True))

    def scores() -> Iterator[Array]:
        for site in sites:
            weight = _finite(site)
            yield lamp_scores(weight) if spread == "lamp" else np.abs(weight)

    return dict(zip(sites, counts_of_lowest(scores, total), strict=True))


def next_ratio(present: float, ratio: float, rounds: int) -> float:
    """The next step of a cubic schedule from 0 to ``ratio`` (Zhu & Gupta 2017, arXiv 1710.01878, equation 1).

    Step t of n is ``ratio * (1 - (1 - t / n)^3)``; that which ``present`` comes near to is done.
    """
    steps = [ratio * (1 - (1 - t / rounds) ** 3) for t in range(rounds + 1)]
    for last, step in pairwise(steps):
        if present < step - _SLACK * (step - last):
            return step
    return ratio


# which


def prune(site: Site, goal: int | Pattern, method: Method, seen: Inputs | None, correct: bool) -> Pruned:
    """The weight of ``site`` with zeros.

    A bias makes up for the mean of what is lost. Then only how inputs differ from their mean counts: SparseGPT, as if
    the bias were one more weight that is never pruned, works with their covariance.

    Args:
        site: the weight.
        goal: how many zeros, or the pattern.
        method: what chooses them; without ``seen``, always magnitude.
        seen: what is known of the inputs.
        correct: whether the bias makes up, where there is one.

    Raises:
        RequestError: a number is not finite, or products cannot be inverted.
    """
    weights = _finite(site)
    used: Method = "magnitude" if seen is None else method
    correct = correct and seen is not None and len(site.layers) == 1 and bias_of(site.first) is not None
    products = None if seen is None else seen.centered if correct else seen.gram
    if used == "sparsegpt" and products is not None:
        result = _updated(weights, goal, products, site)
    else:
        mask = _mask(weights, goal, seen.gram if seen is not None and used == "wanda" else None)
        result = np.where(mask, np.float32(0), weights)
    new = site.restored(result)
    tensor: Tensor = ArrayTensor(new, site.weight.dtype, site.tensor.name)
    if used != "sparsegpt" and tensor.nbytes > _LAZY:
        tensor = _masked(site.tensor, new != 0)
    return Pruned(
        site,
        Value(tensor.type, site.weight.name, const=tensor),
        weights.size - int(np.count_nonzero(weights)),
        weights.size - int(np.count_nonzero(new)),
        used,
        None if seen is None or products is None else _error(weights, result, products, seen.gram),
        _shift(result - weights, seen) if correct and seen is not None else None,
    )


def _finite(site: Site) -> Array:
    weights = site.matrices()
    if not np.isfinite(weights).all():
        raise RequestError(f"{site.first.name}: the weight holds numbers that are not finite: skip it")
    return weights


def _mask(weights: Array, goal: int | Pattern, gram: Array | None) -> Array:
    """What becomes 0: the lowest magnitudes; with ``gram``, those times the norms of inputs, each row by itself."""
    rows, scores, zeros = weights.shape[-1], np.abs(weights), weights == 0
    if gram is not None:
        scores = scores * np.sqrt(np.diagonal(gram, axis1=1, axis2=2))[:, None]
    if isinstance(goal, int) and gram is None:
        return lowest(scores, zeros, goal)
    scores, zeros = scores.reshape(-1, rows), zeros.reshape(-1, rows)
    mask = lowest_in_rows(scores, zeros, goal) if isinstance(goal, int) else outside_pattern(scores, zeros, goal)
    return mask.reshape(weights.shape)


def _updated(weights: Array, goal: int | Pattern, gram: Array, site: Site) -> Array:
    """The weights by SparseGPT, each group of a convolution by itself."""
    parts: Sequence[int | Pattern] = [goal] * len(weights) if isinstance(goal, Pattern) else []
    if isinstance(goal, int):
        zeros = np.count_nonzero(weights == 0, axis=(1, 2))
        parts = [*map(int, shares(zeros, np.full(len(weights), weights[0].size), goal))]
    try:
        return np.stack([sparsegpt(*each) for each in zip(weights, gram, parts, strict=True)])
    except ValueError as error:
        raise RequestError(f"{site.first.name}: {error}") from error


def _error(weights: Array, result: Array, products: Array, gram: Array) -> float:
    """The squared error of the outputs, relative to their squares."""
    error = sum(
        float(row_errors(d, p).sum()) for d, p in zip(result.astype(np.float64) - weights, products, strict=True)
    )
    power = sum(float(row_errors(w, g).sum()) for w, g in zip(weights.astype(np.float64), gram, strict=True))
    return 0.0 if error <= 0 else error / power if power > 0 else float("inf")


def _shift(difference: Array, seen: Inputs) -> Array:
    """By how much the mean outputs move, [out]."""
    moved: Array = (difference @ seen.mean[:, :, None]).ravel()
    return moved


def _masked(tensor: Tensor, kept: Array) -> LazyTensor:
    """``tensor`` with zeros where ``kept`` is false, computed when it is wanted."""
    bits = ArrayTensor(np.packbits(kept))

    def compute(array: Array, packed: Array) -> Array:
        mask = np.unpackbits(packed, count=array.size).reshape(array.shape)
        return np.where(mask, array, array.dtype.type(0))

    return LazyTensor(compute, (tensor, bits), tensor.dtype, tensor.shape, tensor.name)


# putting it in place


def apply(pruned: Iterable[Pruned]) -> None:
    """Put new weights in place; layers that share one go on doing so."""
    for each in pruned:
        if each.after > each.before:
            edit.replace(each.site.weight, each.value)
            if each.shift is not None:
                correct_bias(each.site.first, each.shift)


def rewind(graph: Graph, original: Graph | None) -> None:
    """Make all constants what they are in ``original``, but for the zeros in the weights of layers.

    Raises:
        RequestError: there is no original, or the graphs differ in more than the contents of constants.
    """
    if original is None:
        raise RequestError("rewind needs the model as it was: run sparsify in a pipeline")
    if graph_text(graph, limit=0) != graph_text(original, limit=0):
        raise RequestError(
            "rewind needs the model to be, but for numbers, what it was before the first pass: "
            "save what the passes before sparsify make of it, and begin with that file"
        )
    weights = {layer.weight for layer in layers_of(graph)}
    for now, then in zip(graph.constants(), original.constants(), strict=True):
        assert now.const is not None and then.const is not None
        if now.const is then.const or not now.dtype.is_floating:
            continue
        tensor = _masked(then.const, now.const.numpy() != 0) if now in weights else then.const
        edit.replace(now, Value(now.type, now.name, const=tensor))
