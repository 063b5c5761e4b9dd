"""Channels of operators that move elements, pick some, or reduce over some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir import Node
from ....ir.dims import Dim
from ....ir.types import Shape
from .axes import Axes, Axis, Channels, Fixed, static_size
from .coupling import Analysis, Opaque, couples, ints_of
from .layers import spatial
from .shrink import Shrink

Result = Sequence[Axes]


def _shape(node: Node, index: int = 0) -> Shape:
    shape = node.results[index].shape
    if shape is None:
        raise Opaque("the rank of its result is unknown")
    return shape


def _fixed(node: Node, index: int = 0) -> Axes:
    return tuple([() if d == 1 else (Fixed(d),) for d in _shape(node, index)])


# views


@couples("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(a: Analysis, node: Node) -> Result:
    axes = a.regroup(a.operand(node, 0), _shape(node), f"{node.op} mixes them with other dimensions")
    if node.op == "Reshape":
        a.fix(lambda shrink: shrink.set_sizes(node, 1, axes))
    return [axes]


@couples("Transpose")
def _transpose(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    return [tuple([x[i] for i in node.attrs.get("perm", tuple(range(len(x)))[::-1])])]


@couples("DepthToSpace")
def _depth_to_space(a: Analysis, node: Node) -> Result:
    x, block = a.operand(node, 0), int(node.attrs["blocksize"])
    if node.attrs.get("mode", "DCR") == "DCR":
        rows, columns, channel = a.regroup((x[1],), (block, block, _shape(node)[1]), "DepthToSpace takes them apart")
    else:
        channel, rows, columns = a.regroup((x[1],), (_shape(node)[1], block, block), "DepthToSpace takes them apart")
    a.freeze([rows, columns], "DepthToSpace makes pixels of them")
    return [(x[0], channel, *_fixed(node)[2:])]


@couples("SpaceToDepth")
def _space_to_depth(a: Analysis, node: Node) -> Result:
    n, c, _, _ = a.operand(node, 0)
    block = int(node.attrs["blocksize"])
    return [(n, (Fixed(block * block), *c), *_fixed(node)[2:])]


# concatenation, and its inverse


@couples("Concat")
def _concat(a: Analysis, node: Node) -> Result:
    operands = a.given(node)
    axis = int(node.attrs["axis"]) % len(operands[0])
    return [
        tuple(
            [_joined(a, node, c) if i == axis else a.unify(node, *c) for i, c in enumerate(zip(*operands, strict=True))]
        )
    ]


def _joined(a: Analysis, node: Node, axes: Sequence[Axis]) -> Axis:
    if not any(isinstance(f, Channels) for axis in axes for f in axis):
        return _fixed(node)[int(node.attrs["axis"])]
    if any(static_size(axis) is None for axis in axes):
        a.freeze(axes, "Concat joins them with an open size")
        return _fixed(node)[int(node.attrs["axis"])]
    parts = []
    for axis in axes:
        single = a.coupling.single(axis, "Concat joins a product with open sizes")
        if single is None:
            single = a.coupling.new(static_size(axis) or 1)
            a.freeze([(single,)], "it is joined to channels, but is not made of any")
        parts.append(single.ids)
    return (Channels(np.concatenate(parts)),)


@couples("Split")
def _split(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    axis = int(node.attrs.get("axis", 0)) % len(x)
    sizes = [_shape(node, i)[axis] for i in range(len(node.results))]
    if not any(isinstance(f, Channels) for f in x[axis]):
        return [(*x[:axis], _fixed(node, i)[axis], *x[axis + 1 :]) for i in range(len(sizes))]
    single = a.coupling.single(x[axis], "Split takes a product with open sizes apart")
    if single is None or not all(isinstance(s, int) for s in sizes):
        raise Opaque("the sizes of its pieces are open")
    bounds = np.cumsum([0, *[int(s) for s in sizes if isinstance(s, int)]])
    runs = [np.arange(bounds[i], bounds[i + 1]) for i in range(len(sizes))]
    pieces = [a.pick((single,), run, node) for run in runs]

    def fix(shrink: Shrink) -> None:
        if shrink.changes((single,)):
            kept = shrink.kept((single,))
            shrink.set_constant(node, 1, np.array([int(kept[run].sum()) for run in runs], np.int64))
            shrink.drop_attr(node, "num_outputs")

    a.fix(fix)
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]


@couples("Slice")
def _slice(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    starts, ends = ints_of(node, 1), ints_of(node, 2)
    axes, steps = ints_of(node, 3), ints_of(node, 4)
    made = list(_fixed(node))
    sliced = [i % len(x) for i in (axes if axes is not None else range(len(starts or ())))]
    for axis in set(range(len(x))) - set(sliced):
        made[axis] = x[axis]
    for k, axis in enumerate(sliced):
        if any(isinstance(f, Channels) for f in x[axis]):
            made[axis] = _sliced(a, node, k, x[axis], (starts or ())[k], (ends or ())[k], steps[k] if steps else 1)
    return [tuple(made)]


def _sliced(a: Analysis, node: Node, entry: int, axis: Axis, start: int, end: int, step: int) -> Axis:
    single = a.coupling.single(axis, "Slice takes a product with open sizes apart")
    if single is None or step != 1:
        raise Opaque("it takes every so many channels")
    first, last, _ = slice(start, end).indices(single.size)

    def fix(shrink: Shrink) -> None:
        if shrink.changes((single,)):
            kept = shrink.kept((single,))
            begin = int(kept[:first].sum())
            shrink.set_entries(node, 1, {entry: begin})
            shrink.set_entries(node, 2, {entry: begin + int(kept[first:last].sum())})

    a.fix(fix)
    return a.pick((single,), np.arange(first, last), node)


@couples("Gather")
def _gather(a: Analysis, node: Node) -> Result:
    x, indices = a.operand(node, 0), node.given(1)
    axis = int(node.attrs.get("axis", 0)) % len(x)
    if indices.const is None or indices.rank not in (0, 1):
        a.freeze([x[axis]], "they are looked up by what is computed at run time")
        a.weight(node, 0, [i for i in range(len(x)) if i != axis])
        return [(*x[:axis], *a.operand(node, 1), *x[axis + 1 :])]
    size = static_size(x[axis])
    if size is None or not any(isinstance(f, Channels) for f in x[axis]):
        return [(*x[:axis], *_fixed(node)[axis : axis + (indices.rank or 0)], *x[axis + 1 :])]
    chosen = indices.const.numpy().astype(np.int64).reshape(-1) % size
    single = a.coupling.single(x[axis], "Gather picks from a product with open sizes")
    if single is None or len(np.unique(chosen)) < len(chosen):
        raise Opaque("it takes a channel several times")
    picked = a.pick((single,), chosen, node)

    def fix(shrink: Shrink) -> None:
        if shrink.changes((single,)):
            kept = shrink.kept((single,))
            where = (np.cumsum(kept) - 1)[chosen][kept[chosen]].reshape((-1,) * (indices.rank or 0))
            shrink.set_constant(node, 1, where.astype(indices.dtype.numpy))

    a.fix(fix)
    return [(*x[:axis], *([picked] if indices.rank else []), *x[axis + 1 :])]


# what fills a shape


@couples("Expand")
def _expand(a: Analysis, node: Node) -> Result:
    x, shape = a.operand(node, 0), _shape(node)
    padded = ((),) * (len(shape) - len(x)) + tuple(x)
    axes = tuple([axis or _filled(a, d) for axis, d in zip(padded, shape, strict=True)])
    asked = (node.given(1).shape or (len(shape),))[0]  # sizes may be asked for the last axes only
    a.fix(lambda shrink: shrink.set_sizes(node, 1, axes[len(axes) - int(asked) :] if isinstance(asked, int) else axes))
    return [axes]


@couples("ConstantOfShape")
def _constant_of_shape(a: Analysis, node: Node) -> Result:
    axes = tuple([_filled(a, d) for d in _shape(node)])
    a.fix(lambda shrink: shrink.set_sizes(node, 0, axes))
    return [axes]


def _filled(a: Analysis, size: Dim) -> Axis:
    """An axis along which all elements are the same, so that it can have any size."""
    if size == 1:
        return ()
    return (a.coupling.new(size),) if isinstance(size, int) and size > 0 else (Fixed(size),)


@couples("Shape")
def _shape_of(a: Analysis, node: Node) -> Result:
    return [_fixed(node)]  # it says the new sizes by itself


@couples("Pad", "Tile", "Resize")
def _along_some(a: Analysis, node: Node) -> Result:
    """Axes that keep their size keep their elements, too."""
    x, shape = a.operand(node, 0), _shape(node)
    same = [d == s for d, s in zip(node.given(0).shape or (), shape, strict=True)]
    if node.op == "Pad" and (pads := ints_of(node, 1)) is not None:
        axes = ints_of(node, 3) or tuple(range(len(pads) // 2))
        moved = {i % len(x) for k, i in enumerate(axes) if pads[k] or pads[k + len(axes)]}
        same = [s and i not in moved for i, s in enumerate(same)]
    a.freeze([axis for axis, s in zip(x, same, strict=True) if not s], f"{node.op} works along them")
    made = tuple([axis if s else f for axis, s, f in zip(x, same, _fixed(node), strict=True)])
    if node.op == "Resize" and node.operand(3) is not None:
        chosen = node.attrs.get("axes") or range(len(x))
        a.fix(lambda shrink: shrink.set_sizes(node, 3, tuple(made[i] for i in chosen)))
    return [made]


# pooling and reductions


@couples(
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    *("MaxRoiPool", "RoiAlign", "GridSample"),
)
def _pool(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    batch = _fixed(node)[0] if node.op in ("MaxRoiPool", "RoiAlign") else x[0]
    return [(batch, x[1], *spatial(a, node, x, i)) for i in range(len(node.results))]


_SUMS = ("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@couples(*_SUMS, "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")
def _reduce(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    if node.op.startswith("Arg"):
        axes: tuple[int, ...] | None = (int(node.attrs.get("axis", 0)),)
    else:
        axes = ints_of(node, 1)
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return [x]
    over = {i % len(x) for i in axes} if axes else set(range(len(x)))
    if node.op not in _SUMS:
        a.freeze([x[i] for i in over], f"{node.op} compares them")
    keep = node.attrs.get("keepdims", 1)
    return [tuple([() if i in over else axis for i, axis in enumerate(x) if keep or i not in over])]


@couples("TopK")
def _top_k(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    axis = int(node.attrs.get("axis", -1)) % len(x)
    a.freeze([x[axis]], "TopK compares them")
    return [(*x[:axis], _fixed(node, i)[axis], *x[axis + 1 :]) for i in range(len(node.results))]


@couples("Trilu")
def _trilu(a: Analysis, node: Node) -> Result:
    x = a.operand(node, 0)
    a.freeze(x[-2:], "Trilu depends on their positions")
    return [x]
