"""Tied weights: constants that move the elements of one tensor, such as a table and the last layer of a language model.

Constant folding makes another, lazy tensor of ``Transpose(table)``. Trained apart, the two would no longer be one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container

from ...ir import Graph, LazyTensor, Tensor, Value, constant, op

__all__ = ["computed", "follow", "root", "shared_roots", "trained_part"]

_MOVES = frozenset(["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])


def root(tensor: Tensor) -> Tensor:
    """The tensor whose elements ``tensor`` moves; itself if it does not."""
    while isinstance(tensor, LazyTensor) and tensor.recipe is not None and tensor.recipe[0] in _MOVES:
        tensor = tensor.inputs[0]
    return tensor


def shared_roots(graph: Graph) -> set[Tensor]:
    """The tensors whose elements several tensors of ``graph`` have."""
    found: dict[Tensor, set[Tensor]] = defaultdict(set)
    for value in graph.constants():
        if value.const is not None:
            found[root(value.const)].add(value.const)
    return {shared for shared, tensors in found.items() if len(tensors) > 1}


def trained_part(tensor: Tensor, trained: Container[Tensor]) -> Tensor | None:
    """The one of ``trained`` that ``tensor`` is, or whose elements it has; None if there is none."""
    if tensor in trained:
        return tensor
    return base if (base := root(tensor)) in trained else None


def follow(tensor: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """What ``tensor`` becomes when its root ``old`` becomes ``new``."""
    if tensor is old:
        return new
    assert isinstance(tensor, LazyTensor)
    inputs = (follow(tensor.inputs[0], old, new), *tensor.inputs[1:])
    return LazyTensor(tensor.compute, inputs, tensor.dtype, tensor.shape, tensor.name, recipe=tensor.recipe)


def computed(tensor: Tensor, old: Tensor, value: Value) -> Value:
    """The same with ``value`` in place of the root ``old``, by nodes that float."""
    if tensor is old:
        return value
    assert isinstance(tensor, LazyTensor)
    assert tensor.recipe is not None
    operator, attrs = tensor.recipe
    others = [constant(t) for t in tensor.inputs[1:]]
    return getattr(op, operator)(computed(tensor.inputs[0], old, value), *others, **attrs)
