"""Refitting: layers whose inputs are removed make up for them with the inputs that stay.

A linear layer ``W x`` that loses all inputs but ``S`` computes ``W' x_S``. The ``W'`` that is nearest in the mean
square over samples follows from the sums of products of the inputs, ``G = sum(x x^T)``, alone:

    W' = (W G[:, S] + W[:, S] d) (G[S, S] + d)^-1

with a damping ``d`` that pulls it towards what it was. That is what OBS does to all weights of an input at once
(Hassibi, Stork 1993; Kurtic et al. 2023, "ZipLM", arXiv:2302.04089). Inputs that are nearly sums of others then cost
nothing. A convolution is the same with windows for rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....ir import Value, constant, edit
from ...base import Context
from ...calibration import collect, in_groups
from ...calibration.summaries import ConvGram, GramMatrix
from ...layers import Layer, layers_of
from .axes import Axes
from .coupling import Analysis
from .shrink import Shrink

__all__ = ["refit"]

Array = np.ndarray[Any, Any]
_DAMPING = 0.01  # of the mean of the diagonal
_BYTES = 256 << 20  # of matrices that are collected in one go


def refit(analysis: Analysis, removed: Array, ctx: Context) -> Callable[[], int]:
    """Find the weights that make up best for removed inputs, on the samples of ``ctx``.

    Args:
        analysis: of the graph, which has not been changed yet.
        removed: numbers of the classes of channels that are about to be removed.
        ctx: with samples.

    Returns:
        A function to be called when the channels are gone: it puts the weights in place, and returns how many.
    """
    work = Shrink(analysis, removed)
    sites: dict[Layer, tuple[Array, Array]] = {}
    for layer in layers_of(analysis.graph):
        axes = _axes(analysis, layer)
        at = layer.in_axis if layer.in_axis is not None else 1
        grouped = layer.node.op == "ConvTranspose" or layer.node.attrs.get("group", 1) != 1
        if axes is None or grouped or layer.node.graph is not analysis.graph or not work.changes(axes[at]):
            continue
        sites[layer] = work.kept(axes[layer.out_axis]), np.repeat(work.kept(axes[at]), _window(layer))
    grams = _grams(list(sites), analysis, ctx)
    weights = {layer: _fitted(layer, grams[layer.x], *kept) for layer, kept in sites.items() if layer.x in grams}

    def put() -> int:
        for layer, matrix in weights.items():
            _put(layer, matrix)
        return len(weights)

    return put


def _axes(analysis: Analysis, layer: Layer) -> Axes | None:
    found: Axes | None = analysis.constants.get(layer.weight) or analysis.constants.get((layer.node, 1))
    return found


def _window(layer: Layer) -> int:
    """How many columns of the matrix of ``layer`` belong to one input."""
    shape = layer.weight.shape
    assert shape is not None and isinstance(shape[1], int)
    return 1 if layer.in_axis is not None else layer.inputs // shape[1]


def _grams(layers: list[Layer], analysis: Analysis, ctx: Context) -> Mapping[Value, GramMatrix]:
    """The sums of products of what the layers read; for one value, they read it alike, or the first counts."""
    assert ctx.samples is not None
    sizes = {layer.x: layer.inputs**2 * 8 for layer in layers}
    found: dict[Value, GramMatrix] = {}
    for group in in_groups(sizes, _BYTES):
        grams: dict[Value, GramMatrix] = {}
        for layer in layers:
            if layer.x in group:
                grams.setdefault(layer.x, GramMatrix() if layer.in_axis is not None else ConvGram.of(layer.node))
        if grams:
            ctx.progress("learning what removed channels did")
            collect(analysis.graph, {x: [gram] for x, gram in grams.items()}, ctx.samples, ctx.runner)
        found |= grams
    return found


def _fitted(layer: Layer, gram: GramMatrix, rows: Array, columns: Array) -> Array | None:
    """The weight [outputs that stay, inputs that stay]; None if the sums are of something else."""
    matrix = gram.matrix[0] if isinstance(gram, ConvGram) else gram.matrix
    if matrix.shape != (len(columns), len(columns)):
        return None
    stay = matrix[np.ix_(columns, columns)]
    stay = stay + _DAMPING * max(float(stay.diagonal().mean()), 1e-30) * np.eye(len(stay))
    old = layer.matrix()[rows].astype(np.float64)
    damped = matrix[columns] @ old.T + (stay - matrix[np.ix_(columns, columns)]) @ old[:, columns].T
    return np.asarray(np.linalg.solve(stay, damped).T, np.float32)


def _put(layer: Layer, matrix: Array | None) -> None:
    weight = layer.node.given(1)
    if matrix is None or weight.const is None:
        return
    shape = list(weight.const.shape)
    moved = [shape.pop(layer.out_axis), *shape]
    array = np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, layer.out_axis))
    edit.set_operand(layer.node, 1, constant(array.astype(weight.dtype.numpy), weight.dtype, weight.name))
