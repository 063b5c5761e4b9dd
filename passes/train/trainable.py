"""Which constants of a graph are weights that can be trained.

A constant is a weight by what is done with it, not by what it is called. It is one where it is, after operators that
only move, cast or quantize elements,

- a kernel, a factor or a bias of a layer: of Conv, Gemm, MatMul, Einsum, the recurrent operators and their kin;
- scale or bias of a normalization (not the running statistics), or a slope of PRelu;
- a table that Gather picks rows from by indices that are computed;
- a term that is added to or subtracted from what a layer has computed: a bias, an embedding of positions, a relative
  bias of scores;
- a factor, one number per channel, of what a layer has computed;
- part of what is concatenated with what a layer has computed: a class token.

"What a layer has computed" has gone through one of the first three. So what only prepares inputs, positions and masks
(the mean and the deviation of pixels, frequencies of angles, 1 - mask) is none. Neither are numbers alone (epsilons,
1/sqrt(d)), terms that are masks (infinite, below -1000, or made of zero and one other number), a factor of something
that both Sin and Cos read (frequencies), and tables of the sines and cosines of positions: they are multiplied with
what is computed, and their first row is all 0 or all 1.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import DType, Graph, Node, Tensor, Value
from ...ir.quantization import FAKE_QUANTIZE
from ..base import RequestError
from ..layers import select
from ..quantize.overflow import propagate
from .ties import root, shared_roots

__all__ = ["computed_by_layers", "trainable_weights"]

_FLOATS = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE)
_LOW = -1e3  # terms below mean "never"
_LAYERS: dict[str, tuple[int, ...]] = {  # operator -> the operands that are weights if they are constants
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(("LSTM",), (1, 2, 3, 7)),
    **dict.fromkeys(("GRU", "RNN"), (1, 2, 3)),
    **dict.fromkeys(
        ("InstanceNormalization", "LayerNormalization", "GroupNormalization", "BatchNormalization"), (1, 2)
    ),
    **dict.fromkeys(("RMSNormalization", "PRelu"), (1,)),
    "DeformConv": (1, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
}
_MOVES = frozenset(
    ["Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", FAKE_QUANTIZE]
)
_TERMS = frozenset(["Add", "Sub"])
_FACTORS = frozenset(["Mul", "Div"])


@dataclass(frozen=True)
class _Use:
    """A use of a constant as a weight, by ``node``; what is trained is ``tensor``."""

    name: str
    node: Node
    weight: Value
    tensor: Tensor


def trainable_weights(graph: Graph, only: Sequence[str] = (), skip: Sequence[str] = ()) -> dict[str, Value]:
    """The weights of ``graph`` that can be trained, by unique names, in order; tied ones once.

    Where several constants move the elements of one tensor, the value is a constant of that tensor.

    Args:
        graph: a root graph.
        only: patterns of weights (``fnmatch``): their names, and names, operators and modules of the nodes that read
            them. None: all.
        skip: patterns of weights to leave out.

    Raises:
        RequestError: there are none, or a pattern matches nothing.
    """
    uses = _uses(graph)
    if not uses:
        raise RequestError("nothing to train: the graph has no floating-point weights in layers, norms or tables")
    kept = {use.tensor for use in select(uses, only, skip)}
    if skip:  # a tied weight that one of its nodes keeps from being trained stays as it is for all
        kept -= {use.tensor for use in uses} - {use.tensor for use in select(uses, (), skip)}
    if not kept:
        raise RequestError("nothing to train: every weight is left out by only and skip")
    found: dict[str, Value] = {}
    for use in uses:
        if use.tensor not in kept:
            continue
        kept.remove(use.tensor)
        name = use.weight.name or use.tensor.name or f"{use.node.name or use.node.op}.weight"
        unique, number = name, 2
        while unique in found:
            unique, number = f"{name}_{number}", number + 1
        is_itself = use.weight.const is use.tensor
        found[unique] = use.weight if is_itself else Value(use.tensor.type, unique, const=use.tensor)
    return found


def computed_by_layers(graph: Graph) -> set[Value]:
    """The values of ``graph`` that depend on what a layer with constant weights has computed."""
    return propagate(graph, _comes_from_layer)


def _uses(graph: Graph) -> list[_Use]:
    """Every use of a constant as a weight, in order."""
    computed = computed_by_layers(graph)
    shared = shared_roots(graph)
    found = []
    for node in graph.walk():
        for i, operand in enumerate(node.operands):
            weight = _source(operand)
            if weight is not None and weight.const is not None and _is_weight(node, i, weight, computed):
                base = root(weight.const)
                found.append(_Use(weight.name or node.name, node, weight, base if base in shared else weight.const))
    return found


def _source(value: Value | None) -> Value | None:
    """The constant that ``value`` is, moved or quantized or as it is; None if there is none, or it is one number."""
    while value is not None and value.const is None:
        node = value.producer
        value = node.operand(0) if node is not None and node.op in _MOVES else None
    if value is None or value.const is None or value.dtype not in _FLOATS or not value.const.shape:
        return None
    return value


def _layer_weights(node: Node) -> Sequence[int]:
    """The operands of ``node`` that are its weights if they are constants."""
    return range(len(node.operands)) if node.op == "Einsum" else _LAYERS.get(node.op, ())


def _comes_from_layer(value: Value) -> bool | None:
    """For `propagate`: whether a value is what a layer computes; None to inherit."""
    if value.const is not None or value.producer is None:
        return False if value.const is not None or value.graph is None or value.graph.parent is None else None
    node = value.producer
    if node.op in ("Shape", "Size"):
        return False
    if any(_source(node.operand(i)) is not None for i in _layer_weights(node)) and not _is_angle(value):
        return True
    return None


def _is_weight(node: Node, index: int, weight: Value, computed: set[Value]) -> bool:
    """Whether ``weight``, which operand ``index`` of ``node`` comes from, is one there."""
    others = [o for i, o in enumerate(node.operands) if i != index and o is not None and _source(o) is None]
    if index in _layer_weights(node):
        if node.op == "Gather" and (all(o.is_constant for o in others) or _is_table_of_positions(node, weight)):
            return False
        return bool(others) and not _is_angle(node.result)
    if not any(o in computed for o in others) or _size(weight) == 1:
        return False
    if node.op in _FACTORS:
        return _is_channelwise(weight) and not _is_angle(node.result)
    if node.op in _TERMS or node.op == "Concat" or (node.op == "Attention" and index == 3):
        return (_is_channelwise(weight) and node.op in _TERMS and _is_finite(weight)) or not _is_mask(weight)
    return False


def _size(weight: Value) -> int:
    return weight.const.size if weight.const is not None else 0


def _is_channelwise(weight: Value) -> bool:
    return weight.const is not None and sum(size != 1 for size in weight.const.shape) == 1


def _array(weight: Value) -> np.ndarray:
    assert weight.const is not None
    return weight.const.numpy().astype(np.float32, copy=False)


def _is_finite(weight: Value) -> bool:
    array = _array(weight)
    return bool(np.isfinite(array).all() and array.min(initial=0) > _LOW)


def _is_mask(weight: Value) -> bool:
    array = _array(weight)
    return not _is_finite(weight) or (0 in array and len(np.unique(array)) <= 2)


def _is_angle(value: Value) -> bool:
    """Whether all that ``value`` is good for, moved, shifted or scaled, is that both Sin and Cos are taken of it."""
    passed = _MOVES | _TERMS | _FACTORS | {"Concat"}
    return {user.op for user in _readers(value, passed)} == {"Sin", "Cos"}


def _readers(value: Value, passed: Container[str]) -> list[Node]:
    """The nodes that read ``value``, behind those of operators ``passed``."""
    found, stack, seen = [], [value], {value}
    while stack:
        for user in stack.pop().users:
            if user.op not in passed:
                found.append(user)
            else:
                stack += [r for r in user.results if r not in seen]
                seen.update(user.results)
    return found


def _is_table_of_positions(node: Node, table: Value) -> bool:
    """Whether a Gather picks sines or cosines of positions, which other values are turned by."""
    readers = _readers(node.result, _MOVES | {"Concat"})
    if not readers or not all(user.op in ("Mul", "RotaryEmbedding") for user in readers):
        return False
    first = _array(table)[:1]
    return bool((first == 0).all() or (first == 1).all())
