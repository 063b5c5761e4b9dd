"""Dividing the channels of activations, and multiplying the weights behind them: nothing that is computed changes.

The division goes into whatever computes the activation where that is all that it feeds: the scale and bias of a
normalization, the weight and bias of a product, or the values of an attention. Elsewhere it is a multiplication.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import Graph, Node, Value, constant, edit, op
from ..layers import Layer

__all__ = ["Fold", "fold_for", "rescale", "sites_of"]

Array = np.ndarray[Any, Any]
Fold = tuple[Node, tuple[int, ...]]  # a node, and the positions of the constants that can take a division
_SCALED = ("LayerNormalization", "RMSNormalization")


def sites_of(layers: Sequence[Layer], graph: Graph) -> dict[Value, list[Layer]]:
    """Layers by the value that they multiply, where all of it may change: no weight has another use."""
    sites: dict[Value, list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.node.graph is graph and layer.weight.use_count == 1 and layer.x.dtype.is_floating:
            sites[layer.x].append(layer)
    return dict(sites)


def rescale(x: Value, layers: Sequence[Layer], scales: Array, fold: Fold | None) -> str:
    """Divide ``x`` by ``scales`` for ``layers``, and multiply their weights by them.

    Args:
        x: what the layers multiply.
        layers: all of them.
        scales: [in].
        fold: what `fold_for` found: where the division goes; None inserts a multiplication.

    Returns:
        What it became, for reports.
    """
    scales = scales.astype(np.float32)
    if fold is None:
        _insert_division(x, layers, scales)
    else:
        _divide(fold, scales)
    for layer in layers:
        weight = constant(layer.restored(layer.matrix() * scales), layer.weight.dtype, layer.weight.name)
        edit.set_operand(layer.node, 1, weight)
    return "a multiplication" if fold is None else fold[0].op


# where the division goes


def fold_for(x: Value, layers: Sequence[Layer]) -> Fold | None:
    """The node whose constants can take the division, and their operand positions; None if there is none."""
    nodes = {layer.node for layer in layers}
    node = x.producer
    if any(user not in nodes for user in x.users) or node is None:
        return None
    if node.op == "Attention" and len(node.results) == 1 and node.operand(5) is None and _heads_are_alike(node):
        value = node.given(2)
        return _folding_linear(value) if value.users == (node,) and node.operands.count(value) == 1 else None
    if node.op in _SCALED and len([r for r in node.results if r.users]) == 1 and node.attrs.get("axis", -1) == -1:
        return _with_constants(node, (1, 2))
    return _folding_linear(x)


def _folding_linear(x: Value) -> Fold | None:
    """The same for products; the addition of a bias is found through its operands by `_divide`."""
    node = x.producer
    if node is None or len(x.users) != 1:
        return None
    if node.op == "Add":
        for i in (0, 1):
            product, bias = node.given(1 - i).producer, node.given(i)
            if product is not None and _is_matrix_product(product) and bias.const is not None and bias.rank == 1:
                alone = product.result.users == (node,) and _with_constants(product, (1,))
                return (node, (i,)) if alone and _with_constants(node, (i,)) else None
        return None
    if node.op == "Gemm" and not node.attrs.get("transB"):
        return _with_constants(node, (1, 2))
    return _with_constants(node, (1,)) if _is_matrix_product(node) else None


def _is_matrix_product(node: Node) -> bool:
    """Whether the last dimension of the right factor is that of the result."""
    return node.op == "MatMul" and (node.given(1).rank or 0) > 1


def _with_constants(node: Node, positions: tuple[int, ...]) -> Fold | None:
    operands = [(i, node.operand(i)) for i in positions]
    there = [(i, o) for i, o in operands if o is not None]
    private = all(o.const is not None and o.use_count == 1 and o.dtype.is_floating for _, o in there)
    return (node, tuple(i for i, _ in there)) if there and private else None


def _heads_are_alike(node: Node) -> bool:
    """Whether channel ``j`` of the result comes from channel ``j`` of the values."""
    heads = node.attrs.get("q_num_heads")
    return heads is not None and heads == node.attrs.get("kv_num_heads")


def _divide(fold: Fold, scales: Array) -> None:
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
        node.name = first.name and f"{first.name}/scale"
    for layer in layers:
        edit.set_operand(layer.node, 0, smoothed)
