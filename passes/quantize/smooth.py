"""``smooth``: moves the outliers of activations into the weights that they are multiplied with.

A few channels of a transformer's activations are many times larger than the rest, and one scale for all of them leaves
the rest few codes. Dividing channel ``j`` by ``s_j``, and multiplying row ``j`` of the weights by it, changes nothing
that is computed (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438). Which ``s`` is best follows from what is known
before anything is run: quantization with step ``d`` adds noise of variance ``d^2 / 12`` to each activation, and
rounding adds ``dW_j`` to the weights, so that the outputs are off by

    d(s)^2 / 12 * sum(s_j^2 W_j^2) + sum(E[x_j^2] / s_j^2 * dW_j(s)^2)

Two families are compared: ``max|x_j|^a / max|W_j|^(1 - a)`` of the paper for several ``a``, and
``max(max|x_j| / t, 1)``, which leaves all channels alone but those beyond ``t``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import Graph, Node, Value, constant, edit, op
from ...ir.quantization import parse_format
from ..base import Context, Pass, RequestError
from ..numerics import Within
from .calibration import collect
from .layers import Layer, layers_of, select
from .summaries import ChannelStatistics
from .weights.grids import grid_for

__all__ = ["Smooth"]

Array = np.ndarray[Any, Any]
_ALPHAS = tuple(np.arange(3, 11) / 10)
_QUANTILES = (0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
_FOLDED, _INSERTED = 0.95, 0.6  # the share of the error that must remain at most, for free and for a multiplication
_LEAST = 1e-5  # of a magnitude, relative to the largest
_ROWS = 512  # output channels that the choice is made by: every n-th of more
_SCALED = ("LayerNormalization", "RMSNormalization")
_WEIGHT = parse_format("int8")


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide the outlier channels of activations, and multiply the weights behind them by the same.

    The division goes into a normalization, a product or the values of an attention before it where that is all that it
    feeds; elsewhere it is a multiplication, which is inserted where the predicted error falls to 0.6 or less.

    Attributes:
        alpha: the exponent of the paper, for all sites alike; None chooses the best for each site.
        only: patterns of the layers to smooth (see `planish.passes.quantize.layers.select`).
        skip: patterns of layers to leave alone.

    Raises:
        RequestError: there are no samples, or a pattern matches nothing.
    """

    numerics = Within(rtol=1e-4)

    alpha: float | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: Context) -> None:
        if ctx.samples is None:
            raise RequestError("smooth needs samples: give data")
        sites = _sites(select([x for x in layers_of(graph) if x.in_axis is not None], self.only, self.skip), graph)
        statistics = {x: ChannelStatistics(-1) for x in sites}
        if not sites:
            return
        collect(graph, {x: [s] for x, s in statistics.items()}, ctx.samples, ctx.runner)
        for x, layers in sites.items():
            scales, remaining = self.choose(statistics[x], [layer.matrix() for layer in layers])
            fold = _folding(x, layers)
            if remaining > (_INSERTED if fold is None else _FOLDED):
                continue
            scales = scales.astype(np.float32)
            if fold is None:
                _insert_division(x, layers, scales)
                ctx.note("smoothed by a multiplication")
            else:
                _divide(fold, scales)
                ctx.note(f"smoothed in {fold[0].op}")
            for layer in layers:
                weight = constant(layer.restored(layer.matrix() * scales), layer.weight.dtype, layer.weight.name)
                edit.set_operand(layer.node, 1, weight)

    def choose(self, x: ChannelStatistics, weights: Sequence[Array]) -> tuple[Array, float]:
        """The scales ``[in]``, and the share of the predicted error that remains with them.

        Args:
            x: what is known of the activation.
            weights: the matrices ``[out, in]`` that it is multiplied with.
        """
        weight = np.concatenate(weights)
        weight = weight[:: -(-len(weight) // _ROWS)]
        plain = _error(np.ones(weight.shape[1]), x, weight)
        found = ((scales, _error(scales, x, weight)) for scales in self._candidates(x, weight))
        scales, error = min(found, key=lambda pair: pair[1])
        return scales, error / plain if plain else 1.0

    def _candidates(self, x: ChannelStatistics, weight: Array) -> Iterator[Array]:
        largest = np.maximum(x.max_abs, _LEAST * max(float(x.max_abs.max()), _LEAST))
        rows = np.abs(weight).max(axis=0)
        rows = np.maximum(rows, _LEAST * max(float(rows.max()), _LEAST))
        for alpha in _ALPHAS if self.alpha is None else (self.alpha,):
            yield largest**alpha / rows ** (1 - alpha)
        for quantile in _QUANTILES if self.alpha is None else ():
            yield np.maximum(largest / np.quantile(largest, quantile), 1)


def _error(scales: Array, x: ChannelStatistics, weight: Array) -> float:
    """The predicted squared error of all outputs, for activations and weights of eight bits."""
    scaled = (weight * scales).astype(np.float32)
    step = ((x.high / scales).max() - (x.low / scales).min()) / 255
    rounding = np.square(grid_for(scaled, _WEIGHT).apply(scaled) - scaled).sum(axis=0)
    return float(step**2 / 12 * np.square(scaled).sum() + (x.mean_square / scales**2 * rounding).sum())


def _sites(layers: Sequence[Layer], graph: Graph) -> dict[Value, list[Layer]]:
    """Layers by the value that they multiply, where all of it may change: no weight has another use."""
    sites: dict[Value, list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.node.graph is graph and layer.weight.use_count == 1 and layer.x.dtype.is_floating:
            sites[layer.x].append(layer)
    return dict(sites)


# where the division goes


def _folding(x: Value, layers: Sequence[Layer]) -> tuple[Node, tuple[int, ...]] | None:
    """The node whose constants can take the division, and their operand positions; None if there is none."""
    nodes = {layer.node for layer in layers}
    node = x.producer
    if any(user not in nodes for user in x.users) or node is None:
        return None
    if node.op == "Attention" and len(node.results) == 1 and _heads_are_alike(node):
        value = node.given(2)
        return _folding_linear(value) if value.users == (node,) and node.operands.count(value) == 1 else None
    if node.op in _SCALED and len([r for r in node.results if r.users]) == 1 and node.attrs.get("axis", -1) == -1:
        return _with_constants(node, (1, 2))
    return _folding_linear(x)


def _folding_linear(x: Value) -> tuple[Node, tuple[int, ...]] | None:
    """The same for products; the addition of a bias is found through its operands by `_divide`."""
    node = x.producer
    if node is None or len(x.users) != 1:
        return None
    if node.op == "Add":
        for i in (0, 1):
            product, bias = node.given(1 - i).producer, node.given(i)
            if product is not None and product.op == "MatMul" and bias.const is not None and bias.rank == 1:
                alone = product.result.users == (node,) and _with_constants(product, (1,))
                return (node, (i,)) if alone and _with_constants(node, (i,)) else None
        return None
    if node.op == "Gemm" and not node.attrs.get("transB"):
        return _with_constants(node, (1, 2))
    return _with_constants(node, (1,)) if node.op == "MatMul" else None


def _with_constants(node: Node, positions: tuple[int, ...]) -> tuple[Node, tuple[int, ...]] | None:
    operands = [(i, node.operand(i)) for i in positions]
    there = [(i, o) for i, o in operands if o is not None]
    private = all(o.const is not None and o.use_count == 1 and o.dtype.is_floating for _, o in there)
    return (node, tuple(i for i, _ in there)) if there and private else None


def _heads_are_alike(node: Node) -> bool:
    """Whether channel ``j`` of the result comes from channel ``j`` of the values."""
    heads = node.attrs.get("q_num_heads")
    return heads is not None and heads == node.attrs.get("kv_num_heads")


def _divide(fold: tuple[Node, tuple[int, ...]], scales: Array) -> None:
    """Divide the last dimension of the constants of a node by ``scales``."""
    node, positions = fold
    for i in positions:
        _divide_constant(node, i, scales)
    if node.op == "Add":
        product = node.given(1 - positions[0]).producer
        assert product is not None
        _divide_constant(product, 1, scales)


def _divide_constant(node: Node, position: int, scales: Array) -> None:
    old = node.given(position)
    assert old.const is not None
    array = old.const.numpy()
    new = (array.astype(np.float32) / scales).astype(array.dtype)
    edit.set_operand(node, position, constant(new, old.dtype, old.name))


def _insert_division(x: Value, layers: Sequence[Layer], scales: Array) -> None:
    first = min((layer.node for layer in layers), key=lambda node: node.order)
    smoothed = op.Mul(x, constant((1 / scales).astype(x.dtype.numpy), x.dtype))
    for node in edit.insert_floating([smoothed], first):
        node.name, node.metadata = f"{first.name}/smooth", first.metadata
    for layer in layers:
        edit.set_operand(layer.node, 0, smoothed)
