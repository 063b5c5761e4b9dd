"""Sizes of dimensions: numbers where they are known, vectors of one int64 that are computed where they are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...ir import DType, Value, constant, op

__all__ = [
    "Size",
    "at_least",
    "floor_divide",
    "iota",
    "minus",
    "plus",
    "reshape",
    "size_of",
    "size_vector",
    "times",
    "vector",
]

Size = int | Value


def size_of(x: Value, axis: int) -> Size:
    """The size of a dimension of ``x``, whose rank is known."""
    assert x.shape is not None
    dim = x.shape[axis]
    axis %= len(x.shape)
    return dim if isinstance(dim, int) else op.Shape(x, start=axis, end=axis + 1)


def vector(sizes: Sequence[Size]) -> Value:
    """All ``sizes`` as one tensor."""
    if all(isinstance(s, int) for s in sizes):
        return constant(np.array(sizes, np.int64))
    parts = [_tensor(s) for s in sizes]
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def size_vector(x: Value, axis: int) -> Value:
    """The size of a dimension of ``x`` as a vector of one."""
    return _tensor(size_of(x, axis))


def _tensor(size: Size) -> Value:
    return constant([size], DType.INT64) if isinstance(size, int) else size


def _combined(a: Size, b: Size, known: Callable[[int, int], int], operator: Callable[[Value, Value], Value]) -> Size:
    return known(a, b) if isinstance(a, int) and isinstance(b, int) else operator(_tensor(a), _tensor(b))


def plus(a: Size, b: Size) -> Size:
    """``a + b``."""
    if isinstance(b, int) and b == 0:
        return a
    return _combined(a, b, lambda x, y: x + y, op.Add)


def minus(a: Size, b: Size) -> Size:
    """``a - b``."""
    return plus(a, -b) if isinstance(b, int) else _combined(a, b, lambda x, y: x - y, op.Sub)


def times(a: Size, b: Size) -> Size:
    """``a * b``."""
    return a if isinstance(b, int) and b == 1 else _combined(a, b, lambda x, y: x * y, op.Mul)


def floor_divide(a: Size, b: int) -> Size:
    """``a // b``, where ``a`` is not negative if it is not known."""
    return a if b == 1 else _combined(a, b, lambda x, y: x // y, op.Div)


def at_least(a: Size, least: int) -> Size:
    """The larger one."""
    return _combined(a, least, max, op.Max)


def iota(size: Size) -> Value:
    """The int64 vector 0, 1, … of ``size`` elements."""
    if isinstance(size, int):
        return constant(np.arange(size, dtype=np.int64))
    stop = op.Squeeze(size, constant([0], DType.INT64))
    return op.Range(constant(0, DType.INT64), stop, constant(1, DType.INT64))


def reshape(x: Value, sizes: Sequence[Size]) -> Value:
    """``x`` in another shape, of which one size may be -1."""
    return op.Reshape(x, vector(sizes))


def element(vector: Value, i: int) -> Size:
    """Element ``i`` of a vector of sizes."""
    piece = element_of(vector, i)
    if piece.const is not None:
        return int(piece.const.numpy().reshape(-1)[0])
    return piece if piece.dtype is DType.INT64 else op.Cast(piece, to=DType.INT64)


def element_of(vector: Value, i: int) -> Value:
    """Element ``i`` of a vector as a vector of one: a constant where it is known."""
    if vector.const is not None:
        return constant(vector.const.numpy()[i : i + 1])
    if vector.content is not None and isinstance(vector.content[i], int):
        return constant(np.array([vector.content[i]], vector.dtype.numpy))
    node = vector.producer
    if node is not None and node.op == "Concat":
        start = 0
        for part in node.operands:
            count = part.shape[0] if part is not None and part.shape is not None else None
            if part is None or not isinstance(count, int):
                break
            if i < start + count:
                return element_of(part, i - start)
            start += count
    return op.Slice(vector, *(constant([n], DType.INT64) for n in (i, i + 1, 0)))


def decided(result: Value, axis: int, operand: Value, i: int) -> Size:
    """The size of an axis of ``result`` that element ``i`` of ``operand`` is.

    If that is an input of the graph, the size that the graph states for its output holds.
    """
    known = result.shape[axis] if result.shape is not None else None
    return known if isinstance(known, int) and operand.producer is None else element(operand, i)
