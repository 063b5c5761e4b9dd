"""Shapes: reading and changing them, joining, splitting, repeating, and tensors that are made from sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ....ir.dims import Dim
from ....ir.graph import Value, constant
from ....ir.infer.engine import content_of
from ....ir.types import DType
from ...emit import Refused
from ..layout import axis_first
from ..translate import Operation, Translator, rule
from ..vectors import (
    Number,
    Range,
    cut,
    elements,
    in_layout,
    joined,
    known,
    minus,
    modulo,
    rank_of,
    reshaped,
    shape_of,
    size,
    top,
)

__all__ = ["arranged", "broadcast", "counted", "padded", "pairs_of"]

T = TypeVar("T")

_RANGES = (DType.FLOAT, DType.DOUBLE, DType.INT32, DType.INT64)  # of which ONNX has Range everywhere


# reading


@rule("Shape", "ShapeN")
def _shape(t: Translator, o: Operation, *operands: Value) -> Any:
    return [t.cast(shape_of(t, x), out.dtype) for x, out in zip(operands, o.outs, strict=True)]


@rule("Size")
def _size(t: Translator, o: Operation, x: Value) -> Any:
    return t.cast(t.op.Size(t.layouts.kept(x) or x), o.out.dtype)


@rule("Rank")
def _rank(t: Translator, o: Operation, x: Value) -> Any:
    if x.rank is not None:
        return t.scalar(x.rank, o.out.dtype)
    return t.cast(t.op.Size(t.op.Shape(x)), o.out.dtype)


# reshaping


@rule("Reshape")
def _reshape(t: Translator, o: Operation, x: Value, shape: Value) -> Any:
    first = t.layouts.kept(x)
    source = first if first is not None and _is_line(x) else x
    result = reshaped(t, source, shape)
    merged = (_ungrouped(t, x, result) or _enlarged_image(t, x, result)) if first is None else None
    if merged is not None:
        return t.layouts.last(merged)
    if first is None or source is first or x.rank is None or result.rank is None:
        return result
    enlarged = _enlarged(t, first, result)
    if enlarged is not None:
        return t.layouts.last(enlarged)
    if result.rank < 4 or (x.shape or ())[:: rank_of(x) - 1] != (result.shape or ())[:: result.rank - 1]:
        return result
    wanted = elements(t, shape)  # only spatial dimensions change
    return t.layouts.last(reshaped(t, first, joined(t, [wanted[0], wanted[-1], *wanted[1:-1]])))


def _is_line(x: Value) -> bool:
    """Whether channels first and channels last have the elements in one order: channels, or the others, are 1."""
    shape = x.shape or ()
    return shape[-1] == 1 or all(d == 1 for d in shape[1:-1])


def _enlarged(t: Translator, first: Value, result: Value) -> Value | None:
    """A Resize, where every element is repeated along one spatial dimension, which is how Keras enlarges images.

    ``first`` has channels first, and the Reshape of it to ``result`` channels last.
    """
    new = result.shape or ()
    found = _repeated(t, first, [*new[:1], *new[-1:], *new[1:-1]])
    if found is None or found[1] < 2:
        return None
    source, axis, times = found
    return _resized(t, source, [times if a == axis else 1 for a in range(len(new))])


def _enlarged_image(t: Translator, x: Value, result: Value) -> Value | None:
    """The same with channels last, of both dimensions of an image: along one, also heads of attention are repeated."""
    across = _repeated(t, x, result.shape or ()) if result.rank == 4 else None
    inner = across[0].producer if across is not None and across[1] == 2 else None
    if across is None or inner is None or inner.op != "Reshape":
        return None
    down = _repeated(t, inner.given(0), across[0].shape or ())
    if down is None or down[1] != 1:
        return None
    return _resized(t, t.layouts.first(down[0]), [1, 1, down[2], across[2]])


def _repeated(t: Translator, x: Value, shape: Sequence[Dim]) -> tuple[Value, int, int] | None:
    """What was repeated, along which axis and how often, to make ``x`` in another ``shape``.

    That is a Tile of a dimension that was added, which the other shape merges.
    """
    tile = x.producer
    repeats = t.known(tile.given(1)) if tile is not None and tile.op == "Tile" else None
    added = tile.given(0).producer if tile is not None and repeats else None
    if repeats is None or added is None or added.op != "Unsqueeze" or x.dtype not in (DType.FLOAT, DType.FLOAT16):
        return None
    source, axes = added.given(0), t.known(added.given(1))
    own = source.shape
    if axes is None or len(axes) != 1 or own is None:
        return None
    axis = axes[0] - 1
    if axis < 0 or any(r != 1 for a, r in enumerate(repeats) if a != axis + 1):
        return None
    times = repeats[axis + 1]
    return (source, axis, times) if [d * times if a == axis else d for a, d in enumerate(own)] == [*shape] else None


_REPEAT = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def _resized(t: Translator, x: Value, times: Sequence[int]) -> Value:
    """``x`` with every element repeated; along two dimensions at once."""
    made = x.producer
    scales = np.array(times, np.float32)
    before = made.operand(2) if made is not None and made.op == "Resize" and dict(made.attrs) == _REPEAT else None
    if made is not None and before is not None and before.const is not None:
        earlier = before.const.numpy()
        if (earlier == np.rint(earlier)).all():  # of other sizes a part is cut off in between
            x, scales = made.given(0), scales * earlier
    found: Value = t.op.Resize(x, None, constant(scales), **_REPEAT)
    return found


@rule("Squeeze")
def _squeeze(t: Translator, o: Operation, x: Value) -> Any:
    shape = x.shape
    if shape is None:
        raise Refused("the number of dimensions of its operand is not known: set its shape")
    axes = sorted(int(a) % len(shape) for a in o.attr("squeeze_dims"))
    if not axes:
        if not all(isinstance(d, int) for d in shape):
            raise Refused("which dimensions are 1 is not known: name them (axis=…)")
        axes = [a for a, d in enumerate(shape) if d == 1]
    plain = t.squeeze(x, axes)
    first = t.layouts.kept(x)
    if first is None or t.layouts.kept(plain) is not None or not axes:
        return _settled(plain)
    if len(shape) - len(axes) > 2 and all(0 < a < len(shape) - 1 for a in axes):
        return t.layouts.last(t.squeeze(first, [a + 1 for a in axes]))
    left = [a for a in range(len(shape)) if a not in axes]
    order = sorted(left, key=lambda a: axis_first(a, len(shape)))
    return t.transpose(
        t.squeeze(first, sorted(axis_first(a, len(shape)) for a in axes)), [order.index(a) for a in left]
    )


def _settled(x: Value) -> Value:
    """``x``, or what it was before it got and lost dimensions of size 1."""
    earlier = x
    while earlier.producer is not None and earlier.producer.op in ("Reshape", "Squeeze", "Unsqueeze"):
        earlier = earlier.producer.given(0)
        if earlier.shape is not None and earlier.shape == x.shape:
            return earlier
    return x


@rule("ExpandDims")
def _expand_dims(t: Translator, o: Operation, x: Value, axis: Value) -> Any:
    found = t.known(axis)
    if found is None:
        return t.op.Unsqueeze(x, t.reshape(t.cast(axis, DType.INT64), (1,)))
    rank = rank_of(x)
    at = found[0] % (rank + 1)
    result = t.unsqueeze(x, [at])
    first = t.layouts.kept(x)
    if first is not None and 0 < at < rank:
        t.layouts.keep(result, t.unsqueeze(first, [at + 1]))
    return result


@rule("Transpose")
def _transpose(t: Translator, o: Operation, x: Value, permutation: Value) -> Any:
    return t.transpose(_grouped(t, x), known(t, permutation, "the order of the dimensions"))


def _grouped(t: Translator, x: Value) -> Value:
    """Channels split into groups, as a Transpose of what has the groups first: the next Transpose goes into that."""
    made = x.producer
    whole = made.given(0) if made is not None and made.op == "Reshape" else None
    first = t.layouts.kept(whole) if whole is not None else None
    if whole is None or first is None or whole.shape is None or x.shape is None:
        return x
    spatial = whole.shape[1:-1]
    groups = x.shape[len(spatial) + 1 :]
    if (
        len(groups) < 2
        or x.shape[: len(spatial) + 1] != whole.shape[:-1]
        or not all(isinstance(g, int) for g in groups)
    ):
        return x
    sizes = [size(t, whole, a) for a in range(len(spatial) + 1)]
    split = reshaped(t, first, joined(t, [sizes[0], *(g for g in groups if isinstance(g, int)), *sizes[1:]]))
    n = len(groups) + 1
    return t.transpose(split, [0, *range(n, n + len(spatial)), *range(1, n)])


def _ungrouped(t: Translator, x: Value, result: Value) -> Value | None:
    """The opposite: ``result`` with channels first, which merges groups of channels that only a Transpose put last."""
    made, own, new = x.producer, x.shape, result.shape
    if made is None or made.op != "Transpose" or own is None or new is None or not 3 < len(new) < len(own):
        return None
    spatial, rank = len(new) - 2, len(own)
    order = [0, *range(spatial + 1, rank), *range(1, spatial + 1)]
    moved = [made.attrs["perm"][a] for a in order]
    if new[:-1] != own[: spatial + 1] or moved[0] != 0 or moved[-spatial:] != list(range(rank - spatial, rank)):
        return None
    sizes = [size(t, x, a) for a in range(spatial + 1)]
    return reshaped(t, t.transpose(x, order), joined(t, [sizes[0], size(t, result, -1), *sizes[1:]]))


# joining and splitting


@rule("Pack")
def _pack(t: Translator, o: Operation, *parts: Value) -> Any:
    axis = int(o.attr("axis")) % (rank_of(parts[0]) + 1)
    wide = [t.unsqueeze(p, [axis]) for p in parts]
    return wide[0] if len(wide) == 1 else t.op.Concat(*wide, axis=axis)


@rule("Unpack")
def _unpack(t: Translator, o: Operation, x: Value) -> Any:
    axis, count = int(o.attr("axis")) % rank_of(x), len(o.tensors)
    if x.rank == 1 and x.dtype in (DType.INT32, DType.INT64):
        return [t.op.Gather(x, t.scalar(i, DType.INT64), axis=0) for i in range(count)]
    parts = [x] if count == 1 else t.op.Split(x, t.integers([1] * count), axis=axis, outputs=count)
    return [t.squeeze(part, [axis]) for part in parts]


@rule("ConcatV2", "Concat")
def _concat(t: Translator, o: Operation, *operands: Value) -> Any:
    *parts, where = operands if o.type == "ConcatV2" else (*operands[1:], operands[0])
    rank = max(rank_of(p) for p in parts)
    axis = known(t, where, "the axis")[0] % rank
    if len(parts) == 1:
        return parts[0]
    if not any(t.layouts.kept(p) is not None for p in parts):
        return t.op.Concat(*parts, axis=axis)
    return t.layouts.last(t.op.Concat(*(t.layouts.first(p) for p in parts), axis=axis_first(axis, rank)))


@rule("Split")
def _split(t: Translator, o: Operation, where: Value, x: Value) -> Any:
    axis, count = known(t, where, "the axis")[0] % rank_of(x), len(o.tensors)
    whole = size(t, x, axis)
    sizes = t.integers([whole // count] * count) if isinstance(whole, int) else None
    return _parts(t, x, axis, sizes, count)


@rule("SplitV")
def _split_v(t: Translator, o: Operation, x: Value, sizes: Value, where: Value) -> Any:
    axis, count = known(t, where, "the axis")[0] % rank_of(x), len(o.tensors)
    numbers = elements(t, sizes)
    if -1 in numbers:
        rest = size(t, x, axis)
        for number in numbers:
            rest = rest if number == -1 else minus(t, rest, number)
        numbers = [rest if number == -1 else number for number in numbers]
    return _parts(t, x, axis, joined(t, numbers), count)


def _parts(t: Translator, x: Value, axis: int, sizes: Value | None, count: int) -> Sequence[Value]:
    """``x`` in parts; as many equal ones if no sizes are given."""
    if count == 1:
        return [x]
    more = {"num_outputs": count} if sizes is None else {}
    first = t.layouts.kept(x)
    if first is None:
        found: Sequence[Value] = t.op.Split(x, sizes, axis=axis, outputs=count, **more)
        return found
    axis = axis_first(axis, rank_of(x))
    return [t.layouts.last(part) for part in t.op.Split(first, sizes, axis=axis, outputs=count, **more)]


# repeating and filling


@rule("Tile")
def _tile(t: Translator, o: Operation, x: Value, multiples: Value) -> Any:
    if t.known(multiples) == (1,) * rank_of(x):
        return x
    times = elements(t, multiples)
    return in_layout(t, x, lambda value, place: t.op.Tile(value, joined(t, arranged(times, place))))


def broadcast(t: Translator, x: Value, shape: Value) -> Value:
    """``x`` in a shape that it fits."""
    wanted = content_of(shape)
    if wanted is not None and wanted == x.shape:
        return x
    found: Value = t.op.Expand(x, t.cast(shape, DType.INT64))
    return found


@rule("BroadcastTo")
def _broadcast_to(t: Translator, o: Operation, x: Value, shape: Value) -> Any:
    return broadcast(t, x, shape)


@rule("BroadcastArgs")
def _broadcast_args(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    """The shape that two shapes have together: of two sizes, the one that is not 1."""
    a, b = elements(t, x), elements(t, y)
    rank = max(len(a), len(b))
    pairs = zip([*[1] * (rank - len(a)), *a], [*[1] * (rank - len(b)), *b], strict=True)
    return t.cast(joined(t, [_common(t, p, q) for p, q in pairs]), o.out.dtype)


@rule("BroadcastGradientArgs")
def _broadcast_gradient_args(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    """The axes over which gradients of two operands are summed, which had size 1 there or none."""
    a, b = (known(t, v, "the shapes of what gradients are taken of") for v in (x, y))
    rank = max(len(a), len(b))
    first, second = ((1,) * (rank - len(shape)) + shape for shape in (a, b))
    axes = [[], []] if a == b else [[i for i, n in enumerate(shape) if n == 1] for shape in (first, second)]
    return [t.cast(t.integers(found), x.dtype) for found in axes]


def _common(t: Translator, a: Number, b: Number) -> Number:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, int):
            return other if one == 1 else one
    both: Value = t.op.Where(t.op.Equal(a, t.integers([1])), b, a)
    return both


@rule("Fill")
def _fill(t: Translator, o: Operation, shape: Value, number: Value) -> Any:
    return broadcast(t, number, shape)


@rule("ZerosLike", "OnesLike")
def _same_number(t: Translator, o: Operation, x: Any) -> Any:
    if not isinstance(x, Value):
        raise Refused("zeros like something that is no tensor")
    number = t.scalar(int(o.type == "OnesLike"), x.dtype)
    return in_layout(t, x, lambda value, _: broadcast(t, number, shape_of(t, value)))


# counting


def counted(t: Translator, count: Number, dtype: DType = DType.INT64) -> Value:
    """``0, 1, …`` up to ``count``."""
    if isinstance(count, int):
        return t.arange(count, dtype)
    return t.cast(t.op.Range(t.scalar(0, DType.INT64), t.squeeze(count, [0]), t.scalar(1, DType.INT64)), dtype)


@rule("Range")
def _range(t: Translator, o: Operation, start: Value, end: Value, step: Value) -> Any:
    dtype = start.dtype
    kind = dtype if dtype in _RANGES else DType.FLOAT if dtype.is_floating else DType.INT64
    return t.cast(t.op.Range(*(t.cast(n, kind) for n in (start, end, step))), dtype)


@rule("LinSpace")
def _lin_space(t: Translator, o: Operation, start: Value, end: Value, count: Value) -> Any:
    (number,) = elements(t, count)
    steps = t.cast(joined(t, [top(t, minus(t, number, 1), 1)]), start.dtype)
    step = t.op.Div(t.op.Sub(end, start), steps)
    return t.op.Add(start, t.op.Mul(step, counted(t, number, start.dtype)))


# around and backwards


@rule("Pad", "PadV2")
def _pad(t: Translator, o: Operation, x: Value, widths: Value, number: Value | None = None) -> Any:
    pairs = pairs_of(t, widths)
    return in_layout(t, x, lambda value, place: padded(t, value, arranged(pairs, place), number))


Pairs = Sequence[tuple[Number, Number]]


def pairs_of(t: Translator, widths: Value) -> Pairs:
    """What is before and after each dimension, of a matrix with two columns."""
    numbers = elements(t, widths)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def arranged(items: Sequence[T], place: Callable[[int], int]) -> list[T]:
    """Something for every dimension, in the order of a layout."""
    return [items[axis] for axis in sorted(range(len(items)), key=place)]


def padded(t: Translator, x: Value, pairs: Pairs, number: Value | None = None) -> Value:
    """``x`` with ``number`` (or 0) around it."""
    widths = [low for low, _ in pairs] + [high for _, high in pairs]
    if all(w == 0 for w in widths):
        return x
    found: Value = t.op.Pad(x, joined(t, widths), t.scalar(0, x.dtype) if number is None else number)
    return found


@rule("MirrorPad")
def _mirror_pad(t: Translator, o: Operation, x: Value, widths: Value) -> Any:
    pairs = pairs_of(t, widths)
    if o.attr("mode") == "SYMMETRIC":
        return in_layout(t, x, lambda value, place: _symmetric(t, value, arranged(pairs, place)))

    def reflect(value: Value, place: Callable[[int], int]) -> Value:
        own = arranged(pairs, place)
        found: Value = t.op.Pad(value, joined(t, [p[0] for p in own] + [p[1] for p in own]), mode="reflect")
        return found

    return in_layout(t, x, reflect)


def _symmetric(t: Translator, x: Value, pairs: Pairs) -> Value:
    """``x`` with its own first and last elements, backwards, around it."""
    for axis, (low, high) in enumerate(pairs):
        before = cut(t, cut(t, x, {axis: Range(0, low)}), {axis: Range(step=-1)})
        after = cut(t, cut(t, x, {axis: Range(minus(t, size(t, x, axis), high), None)}), {axis: Range(step=-1)})
        parts = [before] * (low != 0) + [x] + [after] * (high != 0)
        x = parts[0] if len(parts) == 1 else t.op.Concat(*parts, axis=axis)
    return x


@rule("ReverseV2", "Reverse")
def _reverse(t: Translator, o: Operation, x: Value, where: Value) -> Any:
    numbers = known(t, where, "the axes")
    axes = [a for a, is_turned in enumerate(numbers) if is_turned] if o.type == "Reverse" else numbers
    return in_layout(t, x, lambda value, place: cut(t, value, {place(a): Range(step=-1) for a in axes}))


@rule("ReverseSequence")
def _reverse_sequence(t: Translator, o: Operation, x: Value, lengths: Value) -> Any:
    rank = rank_of(x)
    batch, time = int(o.attr("batch_dim")) % rank, int(o.attr("seq_dim")) % rank
    order = list(range(rank))
    if {batch, time} != {0, 1}:  # only these two can be the first ones
        order = [batch, time, *(a for a in range(rank) if a not in (batch, time))]
        batch, time = 0, 1
    moved = t.transpose(x, order)
    turned = t.op.ReverseSequence(moved, t.cast(lengths, DType.INT64), batch_axis=batch, time_axis=time)
    return t.transpose(turned, sorted(range(rank), key=lambda a: order[a]))


@rule("Roll")
def _roll(t: Translator, o: Operation, x: Value, shift: Value, where: Value) -> Any:
    shifts = elements(t, shift)
    axes = known(t, where, "the axes")

    def roll(value: Value, place: Callable[[int], int]) -> Value:
        for amount, axis in zip(shifts, axes, strict=True):
            value = _rolled(t, value, amount, place(axis))
        return value

    return in_layout(t, x, roll)


def _rolled(t: Translator, x: Value, shift: Number, axis: int) -> Value:
    """``x`` with its elements moved on along an axis, and the last ones in front."""
    whole = top(t, size(t, x, axis), 1)
    start = modulo(t, minus(t, 0, shift), whole)
    if start == 0:
        return x
    found: Value = t.op.Concat(cut(t, x, {axis: Range(start)}), cut(t, x, {axis: Range(0, start)}), axis=axis)
    return found
