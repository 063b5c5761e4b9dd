"""Constant folding: nodes whose results are known become constants.

Known are the results of nodes with constant operands, and small integer tensors whose contents inference has found.
Results of more than a megabyte stay lazy (they are computed when saved); a result that would make the model larger,
because its operands are also needed elsewhere or are smaller, is not folded beyond a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import ArrayTensor, Graph, LazyTensor, Node, Tensor, TensorType, Value
from ...ir.evaluate import can_evaluate, evaluate
from ...ir.infer import content_of
from ...ir.types import DType
from ..base import Context, Pass
from ..numerics import Exact
from ..rewrite import RuleIndex, rewrite
from ..rules import NodeRule, NoMatch, require

__all__ = ["FoldConstants", "fold_rule"]

_EAGER_BYTES = 1 << 20  # larger results are computed when somebody asks for them
_GROWTH_BYTES = 1 << 16  # a folded result may exceed what it replaces by this much
_SPARSE = 64  # times the size of a sparse tensor is what it may be as a dense one
_NEVER = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
        "DequantizeLinear",
    }
)
Evaluate = Callable[[Node, Sequence[Any]], list[np.ndarray]]


def fold_rule(ctx: Context | None = None) -> NodeRule:
    """The rule that folds; operators without an evaluation in numpy are run by the runner of ``ctx``, if it has one."""

    def fold_constants(node: Node) -> Any:
        known = _known_contents(node)
        if known is not None:
            return known
        operands = node.operands
        for operand in operands:
            if operand is not None and operand.const is None:
                return None
        return _fold(node, ctx)

    return NodeRule((), fold_constants, Exact(), ())


def _known_contents(node: Node) -> Value | None:
    """The constant for an integer result whose elements inference knows as plain numbers."""
    result = node.results[0]
    content = result.content
    if (
        content is None
        or len(node.results) != 1
        or not isinstance(result.type, TensorType)
        or not result.type.is_static
    ):
        return None
    for element in content:
        if type(element) is not int:
            return None
    shape = [d for d in result.type.shape or () if isinstance(d, int)]
    array = np.array(content, result.dtype.numpy).reshape(shape)
    return _constant(ArrayTensor(array, result.dtype), result)


def _constant(tensor: Tensor, result: Value) -> Value:
    value = Value(tensor.type, result.name, const=tensor)
    tensor.name = tensor.name or result.name
    return value


def _fold(node: Node, ctx: Context | None) -> Any:
    require(not node.graphs and not node.domain, f"{node.op} is not folded")
    require(node.op not in _NEVER and (node.operands or node.op == "Constant"), f"{node.op} is not folded")
    if not can_evaluate(node.op):
        require(ctx is not None and ctx.can_run, f"nothing here evaluates {node.op}")
    tensors = [None if o is None else o.const for o in node.operands]
    nbytes = 0
    for result in node.results:
        if isinstance(result.type, TensorType) and result.type.is_static and result.dtype.bits:
            size = result.type.size
            assert isinstance(size, int)
            nbytes += size * result.dtype.bits // 8
        else:
            nbytes = -1
            break
    require(nbytes >= 0, f"the size of the result of {node.op} is unknown")
    released = sum(_released(o) for o in dict.fromkeys(node.operands) if o is not None)
    released += _SPARSE * len(node.attrs.get("sparse_value", b"") if node.op == "Constant" else b"")
    require(nbytes <= released + _GROWTH_BYTES, f"folding {node.op} would add {nbytes - released} bytes to the model")
    if nbytes > _EAGER_BYTES and can_evaluate(node.op):
        return tuple(_lazy(node, i, tensors) for i in range(len(node.results)))
    arrays = _evaluate(node, [None if t is None else t.numpy() for t in tensors], ctx)
    folded = []
    for result, array in zip(node.results, arrays, strict=False):
        require(
            array.dtype == result.dtype.numpy and array.shape == result.shape,
            f"{node.op} gave {array.dtype}{list(array.shape)}, not {result.type}",
        )
        folded.append(_constant(ArrayTensor(np.ascontiguousarray(array).reshape(array.shape), result.dtype), result))
    return tuple(folded)


def _released(operand: Value) -> int:
    """The bytes that the model no longer needs once a node that uses a constant is folded.

    If all that use it can be folded, such as the nodes that slice a weight up, each of them releases its part.
    """
    if operand.const is None or not operand.dtype.bits:
        return 0
    users = operand.users
    if operand.use_count > 1 and not all(_is_constant(user) for user in users):
        return 0
    return operand.const.nbytes // max(len(users), 1)


def _is_constant(node: Node) -> bool:
    """Whether a node computes from constants alone, in a way that can be folded."""
    return can_evaluate(node.op) and all(o is None or o.const is not None for o in node.operands) and not node.graphs


def _lazy(node: Node, index: int, tensors: list[Tensor | None]) -> Value:
    """A constant that evaluates ``node`` when its elements are wanted."""
    result = node.results[index]
    present = tuple(t for t in tensors if t is not None)
    places = [i for i, t in enumerate(tensors) if t is not None]
    frozen = Node(node.op, [None] * len(tensors), dict(node.attrs), [r.type for r in node.results])

    def compute(*arrays: np.ndarray) -> np.ndarray:
        operands: list[np.ndarray | None] = [None] * len(tensors)
        for place, array in zip(places, arrays, strict=True):
            operands[place] = array
        results = evaluate(frozen, operands)
        assert results is not None
        return results[index]

    recipe = (node.op, dict(node.attrs)) if len(node.results) == 1 and len(present) == len(tensors) else None
    assert isinstance(result.type, TensorType) and result.type.is_static
    lazy = LazyTensor(compute, present, result.dtype, result.type.shape, result.name, recipe=recipe)  # type: ignore[arg-type]
    return _constant(lazy, result)


def _evaluate(node: Node, operands: list[np.ndarray | None], ctx: Context | None) -> list[np.ndarray]:
    try:
        results = evaluate(node, operands)
        if results is not None:
            return results
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError) as error:
        if ctx is None or not ctx.can_run:
            raise NoMatch(f"{node.op} cannot be evaluated: {error}") from error
    assert ctx is not None
    try:
        return ctx.runner.evaluate(node, operands)
    except Exception as error:  # whatever the runtime says, the node stays as it is
        raise NoMatch(f"{node.op} cannot be evaluated: {error}") from error


def integers(value: Value | None) -> tuple[int, ...] | None:
    """The elements of an integer operand if all are known numbers, else None."""
    content = content_of(value)
    if content is not None:
        return content if all(type(e) is int for e in content) else None  # type: ignore[return-value]
    if (
        value is not None
        and value.const is not None
        and value.const.size <= 1 << 16
        and value.dtype in (DType.INT64, DType.INT32)
    ):
        return tuple(int(e) for e in value.const.numpy().ravel())
    return None


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose results are known by constants."""

    def run(self, graph: Graph, ctx: Context) -> None:
        rewrite(graph, RuleIndex([fold_rule(ctx)]), ctx)
