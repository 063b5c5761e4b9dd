"""Layers: operators with constant weights, seen alike: a matrix of one row per output channel, and a bias."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ..ir import DType, Graph, Node, Value, constant, edit
from ..ir.quantization import is_fake_quantize
from .base import RequestError

__all__ = ["Layer", "Named", "bias_of", "correct_bias", "layers_of", "select", "tables_of"]

Array = np.ndarray[Any, Any]
_LARGE = 1 << 14  # elements: smaller tables are not worth quantizing
_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_FLOATS = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True)
class Layer:
    """A node that multiplies a value by a constant weight.

    Attributes:
        node: the node.
        x: the value that is multiplied, operand 0 of the node when the layer was found.
        weight: the constant, operand 1.
        out_axis: the dimension of the weight that counts output channels.
        in_axis: the one that counts inputs, along which it may be quantized in blocks; None for convolutions.
    """

    node: Node
    x: Value
    weight: Value
    out_axis: int
    in_axis: int | None

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.node.name or self.node.result.name or self.node.op

    @property
    def inputs(self) -> int:
        """The number of columns of `matrix`."""
        assert self.weight.const is not None
        return self.weight.const.size // max(self.weight.const.shape[self.out_axis], 1)

    def matrix(self) -> Array:
        """The weight in float32, [out, in]."""
        assert self.weight.const is not None
        array = np.moveaxis(self.weight.const.numpy().astype(np.float32, copy=False), self.out_axis, 0)
        return np.ascontiguousarray(array.reshape(len(array), -1))

    def restored(self, matrix: Array) -> Array:
        """A matrix [out, in] in the layout and the type of the weight."""
        assert self.weight.const is not None
        shape = list(self.weight.const.shape)
        moved = [shape.pop(self.out_axis), *shape]
        array = np.moveaxis(matrix.reshape(moved), 0, self.out_axis)
        return np.ascontiguousarray(array).astype(self.weight.dtype.numpy, copy=False)


def layers_of(graph: Graph) -> list[Layer]:
    """The layers of ``graph``, nested graphs included, whose weights are floating-point constants, in order."""
    return list(_layers(graph.walk()))


def _layers(nodes: Iterable[Node]) -> Iterator[Layer]:
    for node in nodes:
        if node.op not in _LAYERS:
            continue
        x, weight = node.operand(0), node.operand(1)
        if x is None or weight is None or weight.const is None or x.const is not None or weight.dtype not in _FLOATS:
            continue
        if is_fake_quantize(x):
            continue
        if node.op == "MatMul" and weight.rank == 2:
            yield Layer(node, x, weight, 1, 0)
        elif node.op == "Gemm" and not node.attrs.get("transA") and node.attrs.get("alpha", 1.0) == 1.0:
            out = 0 if node.attrs.get("transB") else 1
            yield Layer(node, x, weight, out, 1 - out)
        elif node.op == "Conv":
            yield Layer(node, x, weight, 0, None)
        elif node.op == "ConvTranspose" and node.attrs.get("group", 1) == 1:
            yield Layer(node, x, weight, 1, None)


def bias_of(layer: Layer) -> tuple[Node, int, float] | None:
    """The constant that is added to the outputs of ``layer``: which operand of which node, and its factor, if any."""
    node, position = layer.node, 2
    if node.op == "MatMul":
        users = node.result.users
        if len(users) != 1 or users[0].op != "Add":
            return None
        node, position = users[0], 1 if users[0].given(0) is node.result else 0
    bias, factor = node.operand(position), float(node.attrs.get("beta", 1.0))  # of a Gemm
    assert layer.weight.const is not None
    fits = bias is not None and bias.const is not None and bias.shape == (layer.weight.const.shape[layer.out_axis],)
    return (node, position, factor) if fits and factor else None


def correct_bias(layer: Layer, shift: Array) -> bool:
    """Take a shift of the mean outputs off the bias (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

    Args:
        layer: the layer.
        shift: ``[out]``.

    Returns:
        Whether there is a bias.
    """
    found = bias_of(layer)
    if found is None:
        return False
    node, position, factor = found
    bias = node.given(position)
    assert bias.const is not None
    array = bias.const.numpy()
    corrected = constant((array - shift / factor).astype(array.dtype), bias.dtype, bias.name)
    edit.set_operand(node, position, corrected)
    return True


def tables_of(graph: Graph, ops: Iterable[str]) -> list[Node]:
    """The nodes of operators ``ops`` that pick rows of a constant matrix of floating-point numbers, in order.

    Matrices that something else reads, too, such as the last layer of a language model, are left out.
    """
    found = []
    for node in graph.walk():
        if node.op in ops and node.attrs.get("axis", 0) == 0:
            table = node.given(0)
            if table.const is None or table.rank != 2 or table.dtype not in _FLOATS or table.const.size < _LARGE:
                continue
            if all(user.op in ops and user.given(0) is table for user in table.users):  # or it would be there twice
                found.append(node)
    return found


class Named(Protocol):
    """A layer, or whatever else belongs to a node and has a name."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def node(self) -> Node:
        """The node."""
        ...


_Named = TypeVar("_Named", bound=Named)


def select(layers: Sequence[_Named], only: Sequence[str], skip: Sequence[str]) -> list[_Named]:
    """Those of ``layers`` that match a pattern of ``only`` (all if there is none) and none of ``skip``.

    A pattern (``fnmatch``) is matched with the name of the node, its operator, and the module that it comes from.

    Raises:
        RequestError: a pattern matches no layer.
    """
    labels = {x: [x.name, x.node.name, x.node.op, x.node.origin.module] for x in layers}
    for pattern in (*only, *skip):
        if not any(fnmatch.fnmatchcase(label, pattern) for names in labels.values() for label in names):
            known = ", ".join(layer.name for layer in layers[:3]) or "none"
            raise RequestError(f"no layer matches {pattern!r}; the first of {len(layers)} layers are {known}")

    def matches(layer: _Named, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(label, pattern) for label in labels[layer] for pattern in patterns)

    return [layer for layer in layers if (not only or matches(layer, only)) and not matches(layer, skip)]
