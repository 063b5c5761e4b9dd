"""Arithmetic on shapes that hold symbolic dimensions, as numpy arrays of objects."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ...ir.evaluate import evaluate
from ...ir.graph import Node
from .values import from_dims, is_symbolic, larger

__all__ = ["fold_symbolic"]

Array = np.ndarray[Any, Any]

# Operators that add and multiply elements, or move them as further operands say: numpy does that with objects, too.
_ARITHMETIC = frozenset({"Add", "Sub", "Mul"})
_AS_NUMPY = _ARITHMETIC | {"Concat", "Flatten", "Identity", "Transpose"}
_MOVING = frozenset(
    {
        *("Gather", "GatherElements", "GatherND", "Slice", "Split"),
        *("Squeeze", "Unsqueeze", "Reshape", "Expand", "Tile"),
    }
)
_MAX_ELEMENTS = 1 << 12


def fold_symbolic(
    node: Node, operands: Sequence[Array | None], dividends: list[Any], moves_only: bool = False
) -> list[Any] | None:
    """The results of ``node`` for known operands, some of which hold symbolic dimensions; None: not in Python.

    Args:
        node: the node.
        operands: its operands.
        dividends: the sizes of which remainders were taken before; those of ``node`` are added.
        moves_only: whether some hold what can be moved, but not computed with.

    Raises:
        jax.errors.InconclusiveDimensionOperation: the result is another one for some sizes.
    """
    if sum(o.size for o in operands if o is not None) > _MAX_ELEMENTS:
        return None
    if node.op in _MOVING and any(map(is_symbolic, operands[1:])):
        return None
    if moves_only and (node.op in _ARITHMETIC or (node.op in _TABLE and node.op != "Cast")):
        return None
    if node.op in _AS_NUMPY or node.op in _MOVING:
        results = evaluate(node, operands)
        return None if results is None else [_plain(r) for r in results]
    function = _TABLE.get(node.op)
    state = (dividends,) if node.op == "Mod" else ()
    result = None if function is None else function(node, *state, *operands)
    return None if result is None else [_plain(result)]


def _plain(array: Array) -> Array:
    """``array`` as numbers where nothing in it is symbolic."""
    if array.dtype != object:
        return array
    return from_dims(array.ravel()).reshape(array.shape)


def _elementwise(function: Callable[..., Any], dtype: Any = object) -> Callable[..., Array]:
    def compute(node: Node, *operands: Array) -> Array:
        return np.asarray(np.frompyfunc(function, len(operands), 1)(*operands)).astype(dtype)

    return compute


def _quotient(a: Any, b: Any) -> Any:
    """``a / b`` rounded towards zero: as rounded down, for sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if abs(a) < 1 << 50 else a // b
    return _whole(a // b)


def _remainder(dividends: list[Any], a: Any, b: Any) -> Any:
    """``a`` modulo ``b``, such that JAX sees that a size that is padded to whole blocks divides into them.

    The padding is ``(b - x % b) % b`` or ``-x % b``: both have one spelling here, of which ``x`` is no term.
    """
    if isinstance(a, int) or not isinstance(b, int):
        return a % b
    for like in (sign * x for x in dividends for sign in (1, -1)):
        difference = (a - like) % b
        if isinstance(difference, int) and difference == 0:
            a = like
            break
    dividends.append(a)
    return a + b * _whole((b - 1 - a) // b) if _at_most(a, -1) else a - b * _whole(a // b)


def _whole(quotient: Any) -> Any:
    """``quotient``, as a number where that is 0 or 1 for all sizes: less than a block, or just one."""
    return next((n for n in (0, 1) if _at_most(quotient, n) and _at_most(n, quotient)), quotient)


def _at_most(a: Any, b: Any) -> bool:
    """Whether ``a <= b`` for all sizes."""
    try:
        return bool(a <= b)
    except jax.errors.InconclusiveDimensionOperation:
        return False


def _cast(node: Node, x: Array, like: Array | None = None) -> Array | None:
    to = node.result.dtype
    if x.dtype != object:
        return x.astype(to.numpy)
    return x if to.is_integer and to.bits >= 32 else None


def _reduce(function: Callable[..., Any]) -> Callable[..., Array | None]:
    def compute(node: Node, x: Array, axes: Array | None = None) -> Array | None:
        if axes is None and node.attrs.get("noop_with_empty_axes", 0):
            return x
        axis = None if axes is None else tuple(int(a) for a in axes)
        result = function(x, axis=axis, keepdims=bool(node.attrs.get("keepdims", 1)))
        return np.asarray(result, object)

    return compute


def _smaller(a: Any, b: Any) -> Any:
    """The smaller one of two sizes. ``min(1, n)`` is ``n`` without what follows, as `larger` spells that."""
    return a + b - larger(a, b) if 1 in (a, b) else jax.core.min_dim(a, b)


def _extreme(function: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    def compute(node: Node, *operands: Array) -> Array:
        result = operands[0]
        for operand in operands[1:]:
            result = np.asarray(np.frompyfunc(function, 2, 1)(result, operand))
        return result

    return compute


_TABLE: dict[str, Callable[..., Any]] = {
    "Neg": _elementwise(operator.neg),
    "Div": _elementwise(_quotient),
    "Mod": lambda node, dividends, a, b: _elementwise(partial(_remainder, dividends))(node, a, b),
    "Equal": _elementwise(lambda a, b: bool(a == b), bool),
    "Less": _elementwise(lambda a, b: bool(a < b), bool),
    "LessOrEqual": _elementwise(lambda a, b: bool(a <= b), bool),
    "Greater": _elementwise(lambda a, b: bool(a > b), bool),
    "GreaterOrEqual": _elementwise(lambda a, b: bool(a >= b), bool),
    "Where": lambda node, c, a, b: np.where(c.astype(bool), a, b),
    "Max": _extreme(larger),
    "Min": _extreme(_smaller),
    "Cast": _cast,
    "CastLike": _cast,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
}
