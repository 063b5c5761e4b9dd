"""Common subexpression elimination: nodes that compute the same become one, constants with the same elements too.

Two small integer tensors whose contents are the same expression of the input's dimensions are the same value,
however they were computed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import DType, Graph, Node, Tensor, TensorError, Value, edit
from ...ir.types import merge
from ..base import Context, Pass
from .fold_constants import _NEVER as NONDETERMINISTIC

__all__ = ["EliminateCommonSubexpressions", "eliminate"]

_SMALL = 1 << 10  # bytes: such constants are compared by content at once
Scope = dict[Any, Node]
Touched = dict[Node, None]  # an ordered set


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Compute equal things once, and keep equal weights once."""

    def run(self, graph: Graph, ctx: Context) -> None:
        eliminate(graph, ctx)


def eliminate(graph: Graph, ctx: Context) -> list[Node]:
    """Merge duplicates in ``graph`` and its nested graphs; returns the nodes around which something has changed."""
    touched: Touched = {}
    merged = _merge_constants(graph, touched)
    ctx.note("merge-duplicate-weights", merged)
    ctx.note("eliminate-common-subexpressions", _merge_nodes(graph, [], touched))
    return [node for node in touched if node.graph is not None]


def _merge_constants(graph: Graph, touched: Touched) -> int:
    groups: dict[Any, list[Value]] = defaultdict(list)
    for value in graph.constants():
        assert value.const is not None
        groups[(value.const.dtype, value.const.shape)].append(value)
    merged = 0
    for values in groups.values():
        if len(values) < 2:
            continue
        kept: dict[Any, list[Value]] = defaultdict(list)
        for value in values:
            merged += _merge_constant(value, kept, touched)
    return merged


def _merge_constant(value: Value, kept: dict[Any, list[Value]], touched: Touched) -> int:
    """Replace ``value`` by an equal one among ``kept``, or keep it."""
    assert value.const is not None
    try:
        key = content_key(value.const)
        for other in kept[key]:
            assert other.const is not None
            if value.const is other.const or value.const.nbytes <= _SMALL or _same_elements(value.const, other.const):
                touched.update(dict.fromkeys(value.users))
                edit.replace(value, other)
                return 1
    except TensorError:  # bytes that cannot be read are equal to none
        return 0
    kept[key].append(value)
    return 0


def content_key(tensor: Tensor) -> Any:
    """A key that equal tensors of one type share; for small ones, that only equal ones do."""
    if tensor.dtype is DType.STRING:
        return tuple(tensor.numpy().ravel().tolist())
    from ...ir import FileTensor, LazyTensor

    if isinstance(tensor, LazyTensor):
        return id(tensor)  # not worth computing
    if isinstance(tensor, FileTensor) and tensor.length > _SMALL:
        return tensor.sample()
    return tensor.sample() if tensor.nbytes > _SMALL else tensor.numpy().tobytes()


def _same_elements(a: Tensor, b: Tensor) -> bool:
    if a.dtype is DType.STRING:
        return True  # the key held all of them
    chunks_a, chunks_b = a.chunks(), b.chunks()
    return all(
        np.array_equal(np.frombuffer(x, np.uint8), np.frombuffer(y, np.uint8))
        for x, y in zip(chunks_a, chunks_b, strict=False)
    )


def _merge_nodes(graph: Graph, scopes: list[Scope], touched: Touched) -> int:
    scope: Scope = {}
    scopes = [*scopes, scope]
    merged = 0
    for node in graph.nodes:
        for nested in node.graphs:
            merged += _merge_nodes(nested, scopes, touched)
        for key in _keys(node):
            found = next((s[key] for s in reversed(scopes) if key in s), None)
            if found is None:
                scope[key] = node
            elif found is not node and _fits(found, node):
                _replace(node, found, touched)
                merged += 1
                break
    return merged


def _keys(node: Node) -> list[Any]:
    """What identifies the results of ``node``: how they are computed, and what they contain if that is known."""
    if node.graphs or node.op in NONDETERMINISTIC or not node.results:
        return []
    keys: list[Any] = []
    content = node.results[0].content
    if content is not None and len(node.results) == 1:
        keys.append((node.results[0].type, content))
    try:
        key = (node.op, node.operands, tuple(sorted(node.attrs.items())) if node.attrs else (), len(node.results))
        hash(key)
        keys.append(key)
    except TypeError:
        pass
    return keys


def _fits(kept: Node, node: Node) -> bool:
    return len(kept.results) == len(node.results) and all(
        a.dtype == b.dtype for a, b in zip(kept.results, node.results, strict=True)
    )


def _replace(node: Node, kept: Node, touched: Touched) -> None:
    for old, new in zip(node.results, kept.results, strict=True):
        touched.update(dict.fromkeys(old.users))
        touched.update((o.producer, None) for o in node.operands if o is not None and o.producer is not None)
        merged = merge(new.type, old.type)
        if merged is not new.type:
            edit.set_type(new, merged, new.content)
        edit.replace(old, new)
    touched[kept] = None
    edit.erase(node)
