"""Operators that arrange elements: Reshape and its kin, Transpose, Concat, Split, Slice, Pad, Tile, Expand."""

from __future__ import annotations

from ..dims import Dim, Sym, dim_floordiv, dim_max, dim_min, fresh, is_non_negative, product
from ..graph import Node
from ..types import TensorType, Type
from .common import (
    Shape,
    attr_int,
    axes_operand,
    broadcast,
    ceil_div,
    common_dtype,
    fresh_dims,
    normal_axes,
    normal_axis,
    operand,
    operand_type,
    optional_type,
    same_dim,
    tensor_types,
    vector_length,
    with_shape,
)
from .engine import Content, IllTyped, content_of, typing

_HUGE = (1 << 31) - 1  # ends of slices from here on mean "to the end"
_MAXIMA = (_HUGE, (1 << 63) - 1)  # as ends of backward slices, these mean different things to different runtimes

# Reshape


@typing("Reshape")
def _reshape(node: Node) -> Type:
    data = operand_type(node, 0)
    target = operand(node, 1)
    wanted = content_of(target)
    if wanted is None:
        length = vector_length(target)
        return TensorType(data.dtype, None if length is None else _unknown_target(data.shape, length))
    return with_shape(data, reshaped(data.shape, wanted, allow_zero=bool(node.attrs.get("allowzero", 0))))


def _unknown_target(shape: Shape | None, length: int) -> Shape:
    if length == 1 and shape is not None:
        return (product(shape),)  # whatever the one element says, it holds everything
    return fresh_dims(length)


def reshaped(shape: Shape | None, wanted: Content, *, allow_zero: bool = False) -> Shape:
    """The shape that Reshape gives to a tensor of ``shape`` for the target ``wanted``.

    A symbolic element of ``wanted`` is taken for a size other than zero: the zero that means "copy" is written as such.
    """
    dims: list[Dim] = []
    open_at = -1  # where -1 stands, or the only element that may be -1
    uncertain = 0
    for i, d in enumerate(wanted):
        if type(d) is not int:
            if not is_non_negative(d) and (shape is None or d not in shape):
                uncertain += 1
                open_at = i if open_at < 0 else open_at
                d = fresh()
        elif d == -1:
            if open_at >= 0 and not uncertain:
                raise IllTyped("Reshape: two dimensions of -1")
            open_at = i
            d = fresh()
        elif d == 0 and not allow_zero:
            d = _copied(shape, i)
        elif d < 0:
            raise IllTyped(f"Reshape: dimension {d}")
        dims.append(d)
    if shape is None:
        return tuple(dims)
    if open_at < 0:
        _check_count(shape, dims)
    elif not uncertain or _only_uncertain(dims, open_at, wanted):
        dims[open_at] = _remaining(shape, dims[:open_at] + dims[open_at + 1 :])
    return tuple(dims)


def _copied(shape: Shape | None, i: int) -> Dim:
    if shape is None:
        return fresh()
    if i >= len(shape):
        raise IllTyped(f"Reshape: 0 copies dimension {i} of a tensor of rank {len(shape)}")
    return shape[i]


def _only_uncertain(dims: list[Dim], open_at: int, wanted: Content) -> bool:
    """Whether the element at ``open_at`` is the only one unknown, and so can only be what remains."""
    return all(type(d) is int and d > 0 for i, d in enumerate(dims) if i != open_at) and wanted.count(-1) <= 1


def _check_count(shape: Shape, dims: list[Dim]) -> None:
    before: Dim = 1
    for d in shape:
        if type(d) is not int:
            return
        before = before * d
    after: Dim = 1
    for d in dims:
        if type(d) is not int:
            return
        after = after * d
    if before != after:
        raise IllTyped(f"Reshape: {list(shape)} has {before} elements, {dims} has {after}")


def _remaining(shape: Shape, others: list[Dim]) -> Dim:
    """The size of the dimension left open, beside ``others``, for the elements of ``shape``."""
    left = list(shape)
    rest: list[Dim] = []
    for d in others:
        if d == 0:
            raise IllTyped(f"Reshape: {list(shape)} to {others} and -1")
        if d in left:
            left.remove(d)
        elif d != 1:
            rest.append(d)
    count, divisor = product(left), product(rest)
    if divisor == 1:
        return count
    if type(count) is int and type(divisor) is int and count % divisor:
        raise IllTyped(f"Reshape: {list(shape)} has no whole multiple of {divisor} elements")
    return dim_floordiv(count, divisor)


@typing("Flatten")
def _flatten(node: Node) -> Type:
    data = operand_type(node, 0)
    if data.shape is None:
        return TensorType(data.dtype, fresh_dims(2))
    axis, rank = attr_int(node, "axis", 1), len(data.shape)
    if not -rank <= axis <= rank:
        raise IllTyped(f"Flatten: axis {axis} of a tensor of rank {rank}")
    axis = axis + rank if axis < 0 else axis
    return with_shape(data, (product(data.shape[:axis]), product(data.shape[axis:])))


@typing("Squeeze")
def _squeeze(node: Node) -> Type:
    data = operand_type(node, 0)
    shape = data.shape
    if shape is None:
        return data
    if len(node.operands) < 2 or node.operands[1] is None:
        return with_shape(data, tuple([d for d in shape if d != 1]) if data.is_static else None)
    axes = axes_operand(node, 1)
    if not axes:
        return with_shape(data, _unknown_squeeze(node, shape))
    gone = normal_axes(node, axes, len(shape))
    for axis in gone:
        d = shape[axis]
        if type(d) is int and d != 1:
            raise IllTyped(f"Squeeze: dimension {axis} of {list(shape)} is not 1")
    return with_shape(data, tuple([d for i, d in enumerate(shape) if i not in gone]))


def _unknown_squeeze(node: Node, shape: Shape) -> Shape | None:
    count = vector_length(operand(node, 1))
    if not count:  # some runtimes take an empty list for all axes
        return shape if count == 0 and all(type(d) is int and d != 1 for d in shape) else None
    if count > len(shape):
        raise IllTyped(f"Squeeze: {count} axes of a tensor of rank {len(shape)}")
    return fresh_dims(len(shape) - count)


@typing("Unsqueeze")
def _unsqueeze(node: Node) -> Type:
    data = operand_type(node, 0)
    if data.shape is None:
        return data
    axes = axes_operand(node, 1)
    if axes is None:
        count = vector_length(operand(node, 1))
        return TensorType(data.dtype, None if count is None else fresh_dims(len(data.shape) + count))
    rank = len(data.shape) + len(axes)
    new = set(normal_axes(node, axes, rank))
    rest = iter(data.shape)
    return with_shape(data, tuple([1 if i in new else next(rest) for i in range(rank)]))


@typing("Transpose")
def _transpose(node: Node) -> Type:
    data = operand_type(node, 0)
    shape = data.shape
    if shape is None:
        return data
    permutation = node.attrs.get("perm")
    if permutation is None:
        return with_shape(data, shape[::-1])
    if sorted(permutation) != list(range(len(shape))):
        raise IllTyped(f"Transpose: perm {list(permutation)} of a tensor of rank {len(shape)}")
    return TensorType(data.dtype, tuple([shape[i] for i in permutation]))


@typing("DepthToSpace", "SpaceToDepth")
def _blocks(node: Node) -> Type:
    data = operand_type(node, 0)
    size = attr_int(node, "blocksize", 0)
    if size <= 0:
        raise IllTyped(f"{node.op}: blocksize {size}")
    if data.shape is None:
        return TensorType(data.dtype, fresh_dims(4))
    n, c, h, w = data.shape
    if node.op == "DepthToSpace":
        return TensorType(data.dtype, (n, _whole(node, c, size * size), h * size, w * size))
    return TensorType(data.dtype, (n, c * (size * size), _whole(node, h, size), _whole(node, w, size)))


def _whole(node: Node, d: Dim, by: int) -> Dim:
    if type(d) is int and d % by:
        raise IllTyped(f"{node.op}: {d} is no multiple of {by}")
    return dim_floordiv(d, by)


# repeat and expand


@typing("Expand")
def _expand(node: Node) -> Type:
    data = operand_type(node, 0)
    wanted = content_of(operand(node, 1))
    if wanted is None:
        length = vector_length(operand(node, 1))
        if length is None or data.shape is None:
            return TensorType(data.dtype, None)
        return TensorType(data.dtype, broadcast(data.shape, fresh_dims(length)))
    if any(type(d) is int and d < 0 for d in wanted):
        raise IllTyped(f"Expand: to {list(wanted)}")
    return with_shape(data, broadcast(data.shape, wanted))


@typing("Tile")
def _tile(node: Node) -> Type:
    data = operand_type(node, 0)
    repeats = content_of(operand(node, 1))
    if data.shape is None or repeats is None:
        length = len(data.shape) if data.shape is not None else vector_length(operand(node, 1))
        return TensorType(data.dtype, None if length is None else fresh_dims(length))
    if len(repeats) != len(data.shape):
        raise IllTyped(f"Tile: {len(repeats)} repeats of a tensor of rank {len(data.shape)}")
    if any(type(r) is int and r < 0 for r in repeats):
        raise IllTyped(f"Tile: repeats {list(repeats)}")
    return with_shape(data, tuple([d * r for d, r in zip(data.shape, repeats, strict=True)]))


# Concat and Split


@typing("Concat")
def _concat(node: Node) -> Type:
    types = tensor_types(node)
    axis = node.attrs["axis"]
    dtype = common_dtype(node, types)
    shapes = [t.shape for t in types if t.shape is not None]
    if not shapes:
        return TensorType(dtype, None)
    rank = len(shapes[0])
    axis = normal_axis(node, axis, rank)
    total: Dim = 0 if len(shapes) == len(types) else fresh()
    dims = list(shapes[0])
    for shape in shapes:
        if len(shape) != rank:
            raise IllTyped(f"Concat: ranks {rank} and {len(shape)}")
        total = total + shape[axis]
        if rank > 1:
            for i, d in enumerate(shape):
                if d is not dims[i] and i != axis:
                    dims[i] = same_dim(node, dims[i], d)
    dims[axis] = total if len(shapes) == len(types) else fresh()
    return TensorType(dtype, tuple(dims))


@typing("Split")
def _split(node: Node) -> tuple[Type, ...]:
    data = operand_type(node, 0)
    count = len(node.results)
    if "num_outputs" in node.attrs and attr_int(node, "num_outputs", 0) != count:
        raise IllTyped(f"Split: {count} results, num_outputs is {node.attrs['num_outputs']}")
    if data.shape is None:
        return (data,) * count
    axis = normal_axis(node, attr_int(node, "axis", 0), len(data.shape))
    sizes = split_sizes(node, data.shape[axis], count)
    return tuple([TensorType(data.dtype, (*data.shape[:axis], size, *data.shape[axis + 1 :])) for size in sizes])


def split_sizes(node: Node, total: Dim, count: int) -> tuple[Dim, ...]:
    """The sizes of the ``count`` pieces into which Split cuts a dimension of ``total``."""
    sizes = operand(node, 1) if len(node.operands) > 1 and node.operands[1] is not None else None
    if sizes is None:
        if count == 0:
            return ()
        piece = ceil_div(total, count)
        last = total - piece * (count - 1)
        if type(last) is int and last < 0:  # more pieces than elements
            last = fresh()
        return (piece,) * (count - 1) + (last,)
    known = content_of(sizes)
    if known is None:
        return fresh_dims(count) if count > 1 else (total,)
    if len(known) != count:
        raise IllTyped(f"Split: {len(known)} sizes for {count} results")
    whole: Dim = 0
    for size in known:
        if type(size) is int and size < 0:
            raise IllTyped(f"Split: sizes {list(known)}")
        whole = whole + size
    if type(whole) is int and type(total) is int and whole != total:
        raise IllTyped(f"Split: {total} elements into {list(known)}")
    return known


# Slice


@typing("Slice")
def _slice(node: Node) -> Type:
    data = operand_type(node, 0)
    shape = data.shape
    starts, ends = operand(node, 1), operand(node, 2)
    if shape is None:
        return data
    count = vector_length(starts)
    axes: tuple[int, ...] | None
    if len(node.operands) > 3 and node.operands[3] is not None:
        axes = axes_operand(node, 3)
    else:
        axes = None if count is None else tuple(range(count))
    if axes is None:
        return TensorType(data.dtype, fresh_dims(len(shape)))
    axes = tuple(normal_axes(node, axes, len(shape)))
    steps: Content | None = (1,) * len(axes)
    if len(node.operands) > 4 and node.operands[4] is not None:
        steps = content_of(node.operands[4])
    first, last = content_of(starts), content_of(ends)
    if any(len(known) != len(axes) for known in (first, last, steps) if known is not None):
        raise IllTyped("Slice: starts, ends, axes and steps of different lengths")
    dims = list(shape)
    for i, axis in enumerate(axes):
        if steps is not None and steps[i] == 0:
            raise IllTyped("Slice: a step of 0")
        if first is None or last is None or steps is None:
            dims[axis] = fresh() if dims[axis] != 0 else 0
        else:
            dims[axis] = slice_size(dims[axis], first[i], last[i], steps[i])
    return with_shape(data, tuple(dims))


def slice_size(size: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    """The number of elements that a slice takes from a dimension of ``size``."""
    if type(step) is not int or (step < 0 and end in _MAXIMA):
        return fresh()
    if type(size) is int and type(start) is int and type(end) is int:
        return _static_slice(size, start, end, step)
    if step < 0:
        from_last = start == -1 or (type(start) is int and start >= _HUGE)
        to_first = type(end) is int and end <= -_HUGE
        return ceil_div(size, -step) if from_last and to_first else fresh()
    first, last = _from_front(start, size), _from_front(end, size)
    if first is None or last is None:
        return fresh()
    if last == size and type(start) is int and start < 0:
        length = dim_min(size, -start)
    elif first == 0:
        length = dim_max(dim_min(last, size), 0)
    else:
        length = dim_max(dim_min(last, size) - dim_max(first, 0), 0)
    return length if step == 1 else ceil_div(length, step)


def _from_front(position: Dim, size: Dim) -> Dim | None:
    """``position`` counted from the front where its sign is known; past the ends it may stay so."""
    if type(position) is int:
        if position >= _HUGE:
            return size
        if position <= -_HUGE:
            return 0
        return position if position >= 0 else size + position
    if is_non_negative(position) or position == size:
        return position
    if isinstance(position, Sym) and is_non_negative(-position - 1):
        return size + position
    return None


def _static_slice(size: int, start: int, end: int, step: int) -> int:
    if start < 0:
        start += size
    if end < 0:
        end += size
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
        return max(0, -((start - end) // step))
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return max(0, -((start - end) // step))


# Pad


@typing("Pad")
def _pad(node: Node) -> Type:
    data = operand_type(node, 0)
    value = optional_type(node, 2)
    if value is not None:
        common_dtype(node, (data, value))
    pads = content_of(operand(node, 1))
    shape = data.shape
    if shape is None:
        length = None if "axes" in node.attrs or len(node.operands) > 3 else vector_length(operand(node, 1))
        return TensorType(data.dtype, None if length is None else fresh_dims(length // 2))
    axes: tuple[int, ...] | None = tuple(range(len(shape)))
    if len(node.operands) > 3 and node.operands[3] is not None:
        axes = axes_operand(node, 3)
    if pads is None or axes is None:
        return TensorType(data.dtype, fresh_dims(len(shape)))
    if len(pads) != 2 * len(axes):
        raise IllTyped(f"Pad: {len(pads)} pads for {len(axes)} axes")
    dims = list(shape)
    for i, axis in enumerate(normal_axes(node, axes, len(shape))):
        d = dims[axis] + pads[i] + pads[i + len(axes)]
        if type(d) is int and d < 0:
            raise IllTyped(f"Pad: dimension {axis} of {list(shape)} becomes {d}")
        dims[axis] = d
    return with_shape(data, tuple(dims))


@typing("CenterCropPad")
def _center_crop_pad(node: Node) -> Type:
    data = operand_type(node, 0)
    if data.shape is None:
        return data
    axes = node.attrs.get("axes", range(len(data.shape)))
    axes = normal_axes(node, axes, len(data.shape))
    wanted = content_of(operand(node, 1)) or fresh_dims(len(axes))
    dims = list(data.shape)
    for axis, d in zip(axes, wanted, strict=True):
        dims[axis] = d
    return with_shape(data, tuple(dims))


@typing("Compress")
def _compress(node: Node) -> Type:
    data = operand_type(node, 0)
    if "axis" not in node.attrs:
        return TensorType(data.dtype, (fresh(),))
    if data.shape is None:
        return data
    axis = normal_axis(node, node.attrs["axis"], len(data.shape))
    return TensorType(data.dtype, (*data.shape[:axis], fresh(), *data.shape[axis + 1 :]))
