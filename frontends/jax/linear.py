"""``dot_general``: products of any dimensions, as MatMul with transposes and reshapes around it."""

from __future__ import annotations

import math
from typing import Any

from ...ir.dims import product
from ...ir.graph import Value
from ...ir.types import DType
from ..emit import Refused
from .elementwise import convert
from .translate import Equation, Translator, rule

__all__ = ["product_types"]

_INTEGER_PRODUCTS = (DType.INT8, DType.UINT8)


def product_types(x: Value, y: Value, result: DType) -> DType:
    """The type in which a product is computed, so that it is the one jax computes.

    jax converts the operands to the type of the result, or sums what it has in that type.
    """
    if result.is_floating:
        wide = max((x.dtype, y.dtype, result), key=lambda d: d.bits if d.is_floating else 0)
        return result if wide.bits <= result.bits else wide
    if result is DType.BOOL or result.bits < 32:
        return DType.INT32
    return result


@rule("dot_general")
def _dot_general(t: Translator, eqn: Equation, x: Value, y: Value) -> Any:
    (x_contract, y_contract), (x_batch, y_batch) = (
        tuple([int(a) for a in axes] for axes in pair) for pair in eqn.params["dimension_numbers"]
    )
    result = eqn.out.dtype
    x_free = [a for a in range(x.rank or 0) if a not in (*x_contract, *x_batch)]
    y_free = [a for a in range(y.rank or 0) if a not in (*y_contract, *y_batch)]
    if _is_last(y, y_contract) and not _is_last(x, x_contract):
        # einsum may have swapped them: so neither side is transposed, and the result mostly is back in a moment
        found = _matmul(t, (y, y_free, y_contract, y_batch), (x, x_free, x_contract, x_batch), result)
        return _turned(t, found, len(x_batch), len(y_free))
    return _matmul(t, (x, x_free, x_contract, x_batch), (y, y_free, y_contract, y_batch), result)


def _turned(t: Translator, value: Value, batch: int, first: int) -> Value:
    """``value`` with its dimensions after ``batch``, of which ``first`` belong to one side, the other side's first."""
    rank = value.rank or 0
    return t.transpose(value, [*range(batch), *range(batch + first, rank), *range(batch, batch + first)])


def _is_last(value: Value, axes: list[int]) -> bool:
    rank = value.rank or 0
    return axes == list(range(rank - len(axes), rank)) and bool(axes)


_Side = tuple[Value, list[int], list[int], list[int]]  # a value; its free, contracted and batch dimensions


def _matmul(t: Translator, left: _Side, right: _Side, result: DType) -> Value:
    """The product, with dimensions in jax's order: batch, free ones of the left side, free ones of the right side."""
    (x, x_free, x_contract, batch), (y, y_free, y_contract, y_batch) = left, right
    x_shape, y_shape = x.shape or (), y.shape or ()
    if not batch and not y_free and len(x_contract) == 1 and x_free:
        return _multiply(t, t.transpose(x, [*x_free, *x_contract]), y, result)  # a matrix and a vector
    one = len(x_contract) == 1
    if batch and one and len(x_free) > 1 and len(y_free) == 1:
        return _grouped(t, left, right, result)
    if batch and one and len(y_free) > 1 and len(x_free) == 1:
        return _turned(t, _grouped(t, right, left, result), len(batch), len(y_free))
    lead = [x_shape[a] for a in batch]
    rows, columns = [x_shape[a] for a in x_free], [y_shape[a] for a in y_free]
    depth = product(x_shape[a] for a in x_contract)
    a = t.transpose(x, [*batch, *x_free, *x_contract])
    b = t.transpose(y, [*y_batch, *y_contract, *y_free])
    if not one or len(x_free) != 1:
        # without batch dimensions the free ones of the left side may stay: MatMul takes them for its own
        kept = rows if not batch and len(x_free) > 1 else [product(rows)]
        a = t.reshape(a, [*lead, *kept, depth])
    if not one or len(y_free) != 1:
        b = t.reshape(b, [*lead, depth, product(columns)])
    return t.reshape(_multiply(t, a, b, result), [*lead, *rows, *columns])


def _grouped(t: Translator, left: _Side, right: _Side, result: DType) -> Value:
    """A product in which several rows' dimensions meet the same matrix: all but one of them number matrices.

    So grouped queries of attention meet one key, and what numbers matrices stays apart from what is in them.
    """
    (x, x_free, x_contract, batch), (y, y_free, y_contract, y_batch) = left, right
    shape = x.shape or ()
    row = max(x_free, key=lambda a: d if isinstance(d := shape[a], int) else math.inf)
    single = [a for a in x_free if a != row and shape[a] == 1]
    groups = [a for a in x_free if a != row and shape[a] != 1]
    n, g, s = len(batch), len(groups), len(single)
    a = t.transpose(x, [*batch, *single, *groups, row, *x_contract])
    a = t.squeeze(a, range(n, n + s))
    b = t.unsqueeze(t.transpose(y, [*y_batch, *y_contract, *y_free]), range(n, n + g))
    found = t.unsqueeze(_multiply(t, a, b, result), range(n, n + s))
    order = [*single, *groups, row]
    return t.transpose(found, [*range(n), *(n + order.index(a) for a in x_free), n + s + g + 1])


def _multiply(t: Translator, a: Value, b: Value, result: DType) -> Value:
    if result is DType.INT32 and a.dtype in _INTEGER_PRODUCTS and b.dtype in _INTEGER_PRODUCTS:
        return t.op.MatMulInteger(a, b)
    dtype = product_types(a, b, result)
    if dtype.is_floating and (a.dtype.is_integer or b.dtype.is_integer) and dtype.bits < 32:
        raise Refused(f"a product of {a.dtype.text} and {b.dtype.text} as {result.text}")
    found = t.op.MatMul(t.cast(a, dtype), t.cast(b, dtype))
    return t.cast(found, result) if result is DType.BOOL else convert(t, found, result)
