"""Vectors of integers (shapes, starts, widths) of which some elements are known and some are computed by the graph.

A `Number` is an element: an ``int``, or an int64 value of shape ``[1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...ir.dims import Dim, is_non_negative, product
from ...ir.graph import Value
from ...ir.infer.engine import content_of
from ...ir.types import DType
from ..emit import SMALLEST, Refused
from .layout import axis_first

if TYPE_CHECKING:
    from .translate import Translator

__all__ = [
    "END",
    "Number",
    "Range",
    "bottom",
    "cut",
    "elements",
    "in_layout",
    "joined",
    "known",
    "minus",
    "modulo",
    "over",
    "plus",
    "rank_of",
    "reshaped",
    "shape_of",
    "size",
    "times",
    "top",
]

Number = int | Value
END = (1 << 63) - 1  # as an end of Slice: all the way to the back
_BEHIND = 1 << 40  # as an end of a Slice backwards: it takes nothing (END would be all the way to some runtimes)


def known(t: Translator, value: Value, what: str) -> tuple[int, ...]:
    """The elements of a value that must be known.

    Raises:
        Refused: they are computed.
    """
    found = t.known(value)
    if found is None:
        raise Refused(f"{what} must be a constant")
    return found


def rank_of(value: Value) -> int:
    """The number of dimensions.

    Raises:
        Refused: it is not known.
    """
    if value.rank is None:
        raise Refused("the number of dimensions of its operand is not known: set its shape")
    return value.rank


def elements(t: Translator, vector: Value, count: int | None = None) -> list[Number]:
    """The elements of a tensor of integers, row by row; ``count`` is how many there must be.

    Raises:
        Refused: it is not known how many there are.
    """
    found = content_of(vector)
    length: Dim | None = len(found) if found is not None else count
    if length is None and vector.shape is not None:
        length = product(vector.shape)
    if not isinstance(length, int):
        raise Refused("a vector of integers of unknown length")
    numbers = found or (None,) * length
    if all(isinstance(n, int) for n in numbers):
        return [n for n in numbers if isinstance(n, int)]
    flat = t.reshape(t.cast(vector, DType.INT64), (length,))
    return [n if isinstance(n, int) else _element(t, flat, i) for i, n in enumerate(numbers)]


def _element(t: Translator, vector: Value, i: int) -> Value:
    if vector.shape == (1,):
        return vector
    found: Value = t.op.Slice(vector, t.integers([i]), t.integers([i + 1]), t.integers([0]))
    return found


def joined(t: Translator, numbers: Sequence[Number]) -> Value:
    """Numbers as an int64 vector."""
    parts: list[Value] = []
    run: list[int] = []
    for number in numbers:
        if isinstance(number, int):
            run.append(number)
            continue
        parts += [t.integers(run), number] if run else [number]
        run = []
    if run or not parts:
        parts.append(t.integers(run))
    return parts[0] if len(parts) == 1 else t.op.Concat(*parts, axis=0)


def _value(t: Translator, number: Number) -> Value:
    return t.integers([number]) if isinstance(number, int) else number


def _binary(t: Translator, name: str, compute: Callable[[int, int], int], a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int):
        return compute(a, b)
    result: Value = getattr(t.op, name)(_value(t, a), _value(t, b))
    found = t.known(result)
    return result if found is None else found[0]


def plus(t: Translator, a: Number, b: Number) -> Number:
    """``a + b``."""
    return _binary(t, "Add", lambda p, q: p + q, a, b)


def minus(t: Translator, a: Number, b: Number) -> Number:
    """``a - b``."""
    return _binary(t, "Sub", lambda p, q: p - q, a, b)


def times(t: Translator, a: Number, b: Number) -> Number:
    """``a * b``."""
    return _binary(t, "Mul", lambda p, q: p * q, a, b)


def over(t: Translator, a: Number, b: Number) -> Number:
    """``a // b`` of sizes."""
    return a if b == 1 else _binary(t, "Div", lambda p, q: p // q, a, b)


def modulo(t: Translator, a: Number, b: Number) -> Number:
    """The remainder of ``a / b``, with the sign of ``b``."""
    return _binary(t, "Mod", lambda p, q: p % q, a, b)


def bottom(t: Translator, a: Number, b: Number) -> Number:
    """The smaller one."""
    return _binary(t, "Min", min, a, b)


def top(t: Translator, a: Number, b: Number) -> Number:
    """The larger one."""
    return _binary(t, "Max", max, a, b)


# sizes and layouts


def size(t: Translator, x: Value, axis: int) -> Number:
    """The size of a dimension; of what is kept with channels first, it is read there."""
    rank = rank_of(x)
    dim = x.shape[axis] if x.shape else None
    if isinstance(dim, int):
        return dim
    first = t.layouts.kept(x)
    x, axis = (x, axis % rank) if first is None else (first, axis_first(axis, rank))
    found: Value = t.op.Shape(x, start=axis, end=axis + 1)
    return found


def shape_of(t: Translator, x: Value) -> Value:
    """All sizes, as an int64 vector."""
    shape = x.shape
    if shape is not None and (t.layouts.kept(x) is not None or all(isinstance(d, int) for d in shape)):
        return joined(t, [size(t, x, axis) for axis in range(len(shape))])
    found: Value = t.op.Shape(x)
    return found


def in_layout(t: Translator, x: Value, compute: Callable[[Value, Callable[[int], int]], Value]) -> Value:
    """What ``compute`` makes of ``x`` as it is kept, and of a function that says where an axis is there.

    The result has as many dimensions as ``x``, in the same order.
    """
    first, rank = t.layouts.kept(x), rank_of(x)
    if first is None:
        return compute(x, lambda axis: axis % rank)
    return t.layouts.last(compute(first, lambda axis: axis_first(axis, rank)))


# reshaping


def reshaped(t: Translator, x: Value, shape: Value) -> Value:
    """``x`` in the shape that a vector states, where -1 is what is left and 0 a size: by a constant if it can be."""
    wanted = content_of(shape)
    is_shape = wanted is not None and _is_shape(x, wanted)
    if is_shape:
        earlier = x
        while earlier.shape != wanted and earlier.producer is not None and earlier.producer.op in _RESHAPES:
            earlier = earlier.producer.given(0)
        if earlier.shape == wanted:
            return earlier
    target = None if wanted is None else _constant_target(x, wanted)
    result: Value
    if wanted is None or target is None:
        result = t.op.Reshape(x, t.cast(shape, DType.INT64), allowzero=1)
    else:
        result = t.op.Reshape(x, t.integers(target), allowzero=1 if 0 in wanted else None)
    return t.typed(result, wanted) if wanted is not None and is_shape else result


def _is_shape(x: Value, wanted: Sequence[Dim]) -> bool:
    """Whether all elements are sizes: none of them is -1."""
    if all(is_non_negative(d) for d in wanted):
        return True
    return -1 not in wanted and x.shape is not None and product(wanted) == product(x.shape)


_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")


def _constant_target(x: Value, wanted: Sequence[Dim]) -> list[int] | None:
    """The operand of Reshape: sizes that are not known are copied (0), or what is left (-1)."""
    if 0 in wanted:
        whole = [d for d in wanted if isinstance(d, int)]
        return whole if len(whole) == len(wanted) else None
    shape = x.shape or ()
    target = []
    for i, d in enumerate(wanted):
        if isinstance(d, int):
            target.append(d)
        else:
            target.append(0 if i < len(shape) and shape[i] == d else -1)
    return target if target.count(-1) <= 1 else None


# cutting


class Range(NamedTuple):
    """A part of a dimension, as Python slices state it; None is all the way."""

    start: Number | None = None
    end: Number | None = None
    step: Number = 1


_NOTHING = Range(0, 0, 1)


def cut(t: Translator, x: Value, parts: Mapping[int, Range]) -> Value:
    """The part of ``x`` that ranges state for some of its axes."""
    bounds = {axis: found for axis, part in parts.items() if (found := _bounds(t, part, x, axis)) is not None}
    if not bounds:
        return x
    columns = zip(*bounds.values(), strict=True)
    start, end, step = (joined(t, [n for n in column if n is not None]) for column in columns)
    axes = t.integers(list(bounds))
    result: Value = t.op.Slice(x, start, end, axes, None if t.known(step) == (1,) * len(bounds) else step)
    return result


def _bounds(t: Translator, part: Range, x: Value, axis: int) -> Range | None:
    """A range as Slice states it; None if it is everything."""
    start, end, step = part
    dim = x.shape[axis] if x.shape is not None else None
    if isinstance(step, Value):
        return _within(t, _either_way(t, part), x, axis)
    if isinstance(dim, int) and not isinstance(start, Value) and not isinstance(end, Value):
        found = range(dim)[slice(start, end, step)]
        if len(found) == dim and step == 1:
            return None
        return Range(found.start, found.stop if found.stop >= 0 else SMALLEST + 1, step) if found else _NOTHING
    if step > 0:
        start, end = (0 if start is None else start), (END if end is None else end)
        is_end = end == END or (isinstance(end, Value) and content_of(end) == (dim,))
        return None if (start, step) == (0, 1) and is_end else Range(start, end, step)
    whole = Range(-1 if start is None else start, SMALLEST + 1 if end is None else end, step)
    return _within(t, whole, x, axis)


def _either_way(t: Translator, part: Range) -> Range:
    """A range whose step may have either sign."""
    step = _value(t, part.step)
    forward = t.op.Greater(step, t.integers([0]))
    start = t.op.Where(forward, t.integers([0]), t.integers([-1])) if part.start is None else part.start
    end = t.op.Where(forward, t.integers([END]), t.integers([SMALLEST + 1])) if part.end is None else part.end
    return Range(start, end, step)


def _within(t: Translator, part: Range, x: Value, axis: int) -> Range:
    """A range that takes nothing if it goes backwards from before the first element, from which Slice would begin."""
    start, end, step = part
    assert start is not None and end is not None
    if start >= -1 if isinstance(start, int) else all(is_non_negative(d) for d in content_of(start) or (-1,)):
        return part
    first = _value(t, plus(t, start, size(t, x, axis)))
    is_before = t.op.Less(first, t.integers([0]))
    if isinstance(step, Value):
        is_before = t.op.And(is_before, t.op.Less(step, t.integers([0])))
    return Range(start, t.op.Where(is_before, t.integers([_BEHIND]), _value(t, end)), step)
