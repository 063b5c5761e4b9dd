"""Gathering and scattering.

In GatherND and in scattering, indices count from 0, where ONNX counts negative ones from the end: TensorRT promises
those for Gather and GatherElements alone. It does not reduce what meets: that is done by masks along the axis, or, if
these would be large, by one update after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ....ir.types import TensorType, Type
from ..legality import FLOATS, INDICES, NUMBERS, Row
from ..sizes import size_vector
from ..versions import Version
from .control import nested
from .shapes import MOVED, check_moved, sized

__all__ = ["FORMS", "ROWS"]

_MOST = 3840  # elements that TopK selects
_MASKS = 1 << 26  # elements of a mask, from which on updates are made one after the other
_ROUNDS = 16  # of TopK
_COLUMNS = 64  # that are compared one after the other
_INT64 = DType.INT64


def _ints(*numbers: int) -> Value:
    return constant(list(numbers), _INT64)


# --- indices that count from the end ---------------------------------------------------------------------------------

_KEEP = frozenset(  # operators whose results are elements of their first operand
    {
        *("Cast", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "ReduceMax", "ReduceMin"),
        *("Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "CumSum", "ReduceSum"),
    }
)
_COUNT = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size", "Abs"})
_COMBINE = frozenset({"Add", "Concat", "Div", "Max", "Min", "Mul", "ScatterElements", "ScatterND", "Sum"})


def non_negative(value: Value, depth: int = 24) -> bool:
    """Whether no element of the integers ``value`` is provably below 0."""
    if value.const is not None:
        return value.const.size == 0 or bool(value.const.numpy().min() >= 0)
    node = value.producer
    if node is None or depth == 0:
        return value.dtype is DType.BOOL or (node is None and _is_count(value))
    if value.dtype is DType.BOOL or node.op in _COUNT or (node.op == "TopK" and value.index == 1):
        return True
    if node.op == "Where":
        return _wraps(node, depth) or all(non_negative(v, depth - 1) for v in (node.given(1), node.given(2)))
    if node.op == "Range":
        return all(non_negative(node.given(i), depth - 1) for i in (0, 2))
    if node.op == "Mod":
        return not node.attrs.get("fmod") and non_negative(node.given(1), depth - 1)
    if node.op in ("Clip", "Max") and (least := node.operand(1)) is not None and non_negative(least, depth - 1):
        return True
    if node.op in _KEEP:
        return non_negative(node.given(0), depth - 1)
    if node.op in _COMBINE:
        skipped = 1 if node.op.startswith("Scatter") else None
        return all(non_negative(o, depth - 1) for i, o in enumerate(node.operands) if o is not None and i != skipped)
    return False


def _is_count(value: Value) -> bool:
    """Whether ``value`` numbers the iterations of a Loop."""
    loop = value.graph.parent if value.graph is not None else None
    return loop is not None and loop.op == "Loop" and value.index == 0


def _wraps(node: Node, depth: int) -> bool:
    """Whether a Where replaces what is below 0."""
    less, new, i = node.given(0).producer, node.given(1), node.given(2)
    if less is None or less.op != "Less" or less.given(0) is not i:
        return False
    zero, added = less.given(1).const, new.producer
    is_added = added is not None and added.op == "Add" and i in added.operands
    return zero is not None and zero.size == 1 and not zero.numpy().any() and (is_added or non_negative(new, depth - 1))


def _wrapped(indices: Value, sizes: Value) -> Value:
    """``indices`` with ``sizes`` added to what is below 0."""
    if indices.const is not None and sizes.const is not None:
        array = indices.const.numpy()
        return constant(np.where(array < 0, array + sizes.const.numpy().astype(array.dtype), array))
    if indices.dtype is not _INT64:
        sizes = op.Cast(sizes, to=indices.dtype)
    return op.Where(op.Less(indices, constant(0, indices.dtype)), op.Add(indices, sizes), indices)


def _along_axis(node: Node) -> Value | None:
    """The size of the axis of a node, in the shape of a number."""
    x = node.given(0)
    if x.shape is None:
        return None
    dim = x.shape[node.attrs.get("axis", 0)]
    return (
        constant(dim, _INT64)
        if isinstance(dim, int)
        else op.Squeeze(size_vector(x, node.attrs.get("axis", 0)), _ints(0))
    )


def _along_first(node: Node) -> Value | None:
    """The sizes of the axes which the last dimension of the indices of a node is about."""
    x, count, first = node.given(0), _depth(node), node.attrs.get("batch_dims", 0)
    if x.shape is None or count is None:
        return None
    dims = x.shape[first : first + count]
    known = [d for d in dims if isinstance(d, int)]
    return _ints(*known) if len(known) == len(dims) else op.Shape(x, start=first, end=first + count)


def _depth(node: Node) -> int | None:
    """The last dimension of the indices."""
    shape = node.given(1).shape
    return shape[-1] if shape and isinstance(shape[-1], int) else None


# --- rows ------------------------------------------------------------------------------------------------------------

_SIGNED = "an index may be negative, counted from the end: TensorRT counts from 0"


def _check_indices(node: Node, version: Version) -> str:
    return check_moved(node, version) if non_negative(node.given(1)) else _SIGNED


def _check_gather_nd(node: Node, version: Version) -> str:
    return "the last dimension of its indices is not known" if _depth(node) is None else _check_indices(node, version)


def _check_scatter(node: Node, version: Version) -> str:
    reduction = node.attrs.get("reduction", "none")
    if reduction != "none" and (version.rtx or version.number < (10, 0) or node.op == "ScatterND"):
        return f"{version} scatters without reduction={reduction!r}"
    if reduction == "none" and "reduction" in node.attrs and version.number < (11, 0):
        return f"{version} does not read reduction='none', the default"
    if reduction != "none" and node.given(0).dtype not in NUMBERS:
        return f"{version} has no reduction={reduction!r} of {node.given(0).dtype.text}"
    if version.number < (10, 0) and node.op == "ScatterElements" and not _is_within(node):
        return f"{version} takes no more indices than there are elements"
    if node.op == "ScatterND" and _depth(node) is None:
        return "the last dimension of its indices is not known"
    return _check_indices(node, version)


def _is_within(node: Node) -> bool:
    x, indices = node.given(0).shape, node.given(1).shape
    pairs = zip(indices or (), x or (), strict=False)
    return all(i <= d for i, d in pairs if isinstance(i, int) and isinstance(d, int))


def _check_one_hot(node: Node, version: Version) -> str:
    indices, depth = node.given(0), node.given(1)
    if depth.const is None and depth.dtype not in INDICES:
        return f"its depth is {depth.dtype.text} and known only when it runs"
    if indices.rank is not None and indices.rank > 7:
        return f"{indices.rank + 1} dimensions: {version} takes 8 at most"
    return check_moved(node, version) if non_negative(indices) else _SIGNED


def _check_top_k(node: Node, version: Version) -> str:
    count = node.given(1)
    if version.number < (8, 6) and (count.const is None or node.given(0).dtype not in FLOATS):
        return f"{version} selects a constant number of floats"
    if count.const is not None and int(count.const.numpy().ravel()[0]) > _MOST:
        return f"{version} selects {_MOST} elements at most"
    if count.rank == 1 and count.shape != (1,):
        return "the number of elements to select is no single number"
    return check_moved(node, version)


def _check_trilu(node: Node, version: Version) -> str:
    if version.number < (8, 6) and node.given(0).rank != 2:
        return f"{version} takes matrices only"
    return check_moved(node, version)


_SELECTED = FLOATS | INDICES | {DType.INT8}

ROWS: dict[str, Row] = {
    "Gather": Row({"T": MOVED}, check=check_moved),
    "GatherElements": Row({"T": MOVED}, ranks=(1, 8), check=check_moved),
    "GatherND": Row({"T": MOVED}, check=_check_gather_nd),
    "NonZero": Row({"T": NUMBERS | {DType.BOOL}}, check=check_moved, rtx=False),
    "OneHot": Row({"T1": NUMBERS, "T2": NUMBERS, "T3": MOVED - {DType.BFLOAT16}}, check=_check_one_hot),
    "ScatterElements": Row({"T": MOVED}, check=_check_scatter),
    "ScatterND": Row({"T": MOVED}, check=_check_scatter),
    "TopK": Row({"T": _SELECTED}, check=_check_top_k),
    "Trilu": Row({"T": MOVED}, ranks=(2, 8), check=_check_trilu),
}


# --- forms of gathering ----------------------------------------------------------------------------------------------


def _with_indices(node: Node, indices: Value, operands: int = 3) -> list[Value]:
    """``node`` with other indices."""
    given = (node.given(0), indices, *node.operands[2:operands])
    attrs = {k: v for k, v in node.attrs.items() if (k, v) != ("reduction", "none")}
    return [make_node(node.op, given, attrs).result]


def _gather_nd(node: Node, version: Version) -> Sequence[Value] | None:
    """With indices that count from 0."""
    sizes = _along_first(node)
    return None if sizes is None or non_negative(node.given(1)) else _with_indices(node, _wrapped(node.given(1), sizes))


def _one_hot(node: Node, version: Version) -> Sequence[Value] | None:
    """With indices that count from 0; what is out of range stays so."""
    indices, depth, values = (node.given(i) for i in range(3))
    shape = node.result.shape
    stated = shape[node.attrs.get("axis", -1)] if shape else None
    if depth.const is None and isinstance(stated, int):
        depth = constant(stated, _INT64)
    if depth.const is None and depth.dtype not in INDICES:
        return None
    if depth.rank:
        depth = op.Reshape(depth, _ints(*[]))
    if indices.dtype.is_integer and indices.dtype not in INDICES:
        return [op.OneHot(op.Cast(indices, to=_INT64), depth, values, **node.attrs)]
    if non_negative(indices):
        return None if depth is node.given(1) else [op.OneHot(indices, depth, values, **node.attrs)]
    size = depth if depth.dtype is indices.dtype else op.Cast(depth, to=indices.dtype)
    wrapped = _wrapped(indices, size)
    beyond = op.Max(size, constant(0, indices.dtype)) if size.const is None else size
    wrapped = op.Where(op.Less(wrapped, constant(0, indices.dtype)), beyond, wrapped)  # is out of range, and stays so
    return [op.OneHot(wrapped, depth, values, **node.attrs)]


def _compress(node: Node, version: Version) -> Sequence[Value] | None:
    """The elements at the positions where the condition holds, which must be known unless there is NonZero."""
    x, condition, axis = node.given(0), node.given(1), node.attrs.get("axis")
    if condition.const is not None:
        positions: Value | None = _ints(*np.flatnonzero(condition.const.numpy()).tolist())
    elif (positions := _positions(node, condition, version)) is None:
        return None
    if axis is None:
        x, axis = op.Reshape(x, _ints(-1)), 0
    return [op.Gather(x, positions, axis=axis)]


def _positions(node: Node, condition: Value, version: Version) -> Value | None:
    """Where a condition holds, by NonZero; where that is missing, only if the graph states how often it does."""
    if not version.rtx:
        return op.Squeeze(op.NonZero(condition), _ints(0))
    shape, axis = node.result.shape, node.attrs.get("axis") or 0
    if not shape or not isinstance(count := shape[axis], int) or condition.rank != 1:
        return None
    return _first(condition, count)


def _first(condition: Value, count: int) -> Value:
    """The positions of the first ``count`` that hold, in order."""
    length = op.Squeeze(size_vector(condition, 0), _ints(0))
    order = op.Range(constant(0, _INT64), length, constant(1, _INT64))
    _, found = op.TopK(op.Where(condition, order, length), _ints(count), axis=0, largest=0)
    return found


def _non_zero(node: Node, version: Version) -> Sequence[Value] | None:
    """By selection, if the graph states how many there are."""
    x, shape = node.given(0), node.result.shape
    if not version.rtx or x.shape is None or shape is None or not isinstance(count := shape[1], int) or not x.shape:
        return None
    zero = constant(0, x.dtype)
    holds = x if x.dtype is DType.BOOL else op.Not(op.Equal(x, zero))
    place = _first(op.Reshape(holds, _ints(-1)), count)
    rows: list[Value] = []
    for axis in reversed(range(len(x.shape))):
        size = op.Squeeze(size_vector(x, axis), _ints(0))
        rows.insert(0, op.Unsqueeze(op.Mod(place, size) if axis else place, _ints(0)))
        place = op.Div(place, size)
    return [op.Concat(*rows, axis=0)]


def _unique(node: Node, version: Version) -> Sequence[Value] | None:
    """By comparison of all with all; how many there are must be stated unless there is NonZero."""
    x, axis = node.given(0), node.attrs.get("axis")
    if x.shape is None or x.dtype not in NUMBERS | {DType.BOOL}:
        return None
    if axis is None or x.rank == 1:
        rows = op.Reshape(x, _ints(-1, 1))
    else:
        axis %= len(x.shape)
        others = [i for i in range(len(x.shape)) if i != axis]
        rows = op.Reshape(op.Transpose(x, perm=(axis, *others)), op.Concat(size_vector(x, axis), _ints(-1), axis=0))
    number = op.Squeeze(size_vector(rows, 0), _ints(0))
    order = op.Range(constant(0, _INT64), number, constant(1, _INT64))
    left, right = op.Unsqueeze(rows, _ints(1)), op.Unsqueeze(rows, _ints(0))
    is_same = _all(op.Equal(left, right), 2)
    first = op.ReduceMin(op.Where(is_same, order, number), _ints(1), keepdims=0)
    is_first = op.Equal(first, order)
    before = _is_less(right, left) if node.attrs.get("sorted", 1) else op.Less(order, op.Unsqueeze(first, _ints(1)))
    if before is None:
        return None
    rank = op.ReduceSum(op.Cast(op.And(before, is_first), to=_INT64), _ints(1), keepdims=0)
    count = _how_many(node, is_first, version)
    if count is None:
        return None
    places = op.Equal(op.Unsqueeze(op.Range(constant(0, _INT64), count, constant(1, _INT64)), _ints(1)), rank)
    found = op.ReduceSum(op.Where(op.And(places, is_first), order, constant(0, _INT64)), _ints(1), keepdims=0)
    sizes = op.ReduceSum(op.Cast(places, to=_INT64), _ints(1), keepdims=0)
    source = op.Reshape(x, _ints(-1)) if axis is None else x
    return [op.Gather(source, found, axis=axis or 0), found, rank, sizes][: len(node.results)]


def _all(condition: Value, axis: int) -> Value:
    """Whether a condition holds all along an axis."""
    return op.Cast(op.ReduceMin(op.Cast(condition, to=DType.INT32), _ints(axis), keepdims=0), to=DType.BOOL)


def _is_less(left: Value, right: Value) -> Value | None:
    """Which rows come before which others; the last dimension of both decides from its start."""
    assert left.shape is not None
    size = left.shape[-1]
    if not isinstance(size, int) or size > _COLUMNS:
        return None
    if left.dtype is DType.BOOL:
        left, right = (op.Cast(v, to=DType.INT32) for v in (left, right))
    is_less, is_same = op.Less(left, right), op.Equal(left, right)
    result: Value | None = None
    for i in reversed(range(size)):
        here = op.Gather(is_less, constant(i, _INT64), axis=2)
        result = (
            here if result is None else op.Or(here, op.And(op.Gather(is_same, constant(i, _INT64), axis=2), result))
        )
    return result


def _how_many(node: Node, is_first: Value, version: Version) -> Value | None:
    """The number of elements that differ."""
    for result, axis in zip(node.results, (node.attrs.get("axis") or 0, 0, None, 0), strict=False):
        if axis is not None and result.shape is not None and isinstance(count := result.shape[axis], int):
            return constant(count, _INT64)
    if version.rtx:
        return None
    return op.Squeeze(size_vector(op.NonZero(is_first), 1), _ints(0))


def _top_k(node: Node, version: Version) -> Sequence[Value] | None:
    """In rounds: what a round has selected stands behind everything else in the next."""
    x, count = node.given(0), node.given(1).const
    if count is None and node.given(1).shape != (1,):
        return op.TopK(x, sized(node.given(1), 1), **node.attrs)
    axis, largest = node.attrs.get("axis", -1), node.attrs.get("largest", 1)
    left = int(count.numpy().ravel()[0]) if count is not None else 0
    if not _MOST < left <= _MOST * _ROUNDS or x.dtype not in FLOATS | INDICES:
        return None
    worst, next_to_worst = _last_in_order(x.dtype, bool(largest))
    rest = (op.Max if largest else op.Min)(x, next_to_worst)
    found: list[Value] = []
    while left > 0:
        _, indices = op.TopK(rest, _ints(min(left, _MOST)), axis=axis, largest=largest)
        found.append(indices)
        left -= _MOST
        if left > 0:
            rest = op.ScatterElements(rest, indices, op.Expand(worst, op.Shape(indices)), axis=axis)
    indices = op.Concat(*found, axis=axis)
    return [op.GatherElements(x, indices, axis=axis), indices]


def _last_in_order(dtype: DType, largest: bool) -> tuple[Value, Value]:
    """The element that is selected last, and the one before it."""
    if dtype in FLOATS:
        sign = -1.0 if largest else 1.0
        return constant(sign * np.inf, dtype), constant(sign * -dtype.lowest, dtype)
    info = np.iinfo(dtype.numpy)
    return (constant(n, dtype) for n in ((info.min, info.min + 1) if largest else (info.max, info.max - 1)))  # type: ignore[return-value]


# --- forms of scattering ---------------------------------------------------------------------------------------------

_REDUCE = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}
_TOGETHER = {"add": "ReduceSum", "mul": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin"}


def _neutral(reduction: str, dtype: DType) -> Value:
    """What changes nothing in a reduction."""
    if reduction in ("add", "mul"):
        return constant(int(reduction == "mul"), dtype)
    if dtype in FLOATS:
        return constant(-np.inf if reduction == "max" else np.inf, dtype)
    info = np.iinfo(dtype.numpy)
    return constant(info.min if reduction == "max" else info.max, dtype)


def _scatter_elements(node: Node, version: Version) -> Sequence[Value] | None:
    """With indices that count from 0; reductions by a mask along the axis."""
    x, reduction = node.given(0), node.attrs.get("reduction", "none")
    size = _along_axis(node)
    if size is None:
        return None
    indices = node.given(1) if non_negative(node.given(1)) else _wrapped(node.given(1), size)
    if reduction == "none":
        return _with_indices(node, indices)
    if x.dtype not in NUMBERS:
        return None
    axis = node.attrs.get("axis", 0) % (x.rank or 1)
    if _differ(indices, axis):
        met = op.GatherElements(x, indices, axis=axis)
        return [op.ScatterElements(x, indices, getattr(op, _REDUCE[reduction])(met, node.given(2)), axis=axis)]
    return _masked(node, indices, size, axis, reduction)


def _differ(indices: Value, axis: int) -> bool:
    """Whether constant ``indices`` along ``axis`` all differ."""
    if indices.const is None:
        return False
    ordered = np.sort(indices.const.numpy(), axis=axis)
    return bool((np.diff(ordered, axis=axis) != 0).all())


def _masked(node: Node, indices: Value, size: Value, axis: int, reduction: str) -> Sequence[Value] | None:
    x, updates = node.given(0), node.given(2)
    if x.shape is None or len(x.shape) > 7 or updates.shape is None:
        return None
    rank = len(x.shape)
    places = op.Reshape(op.Range(constant(0, _INT64), size, constant(1, _INT64)), _ints(-1, *[1] * (rank - axis)))
    if indices.dtype is not _INT64:
        indices = op.Cast(indices, to=_INT64)
    mask = op.Equal(op.Unsqueeze(indices, _ints(axis)), places)
    spread = op.Where(mask, op.Unsqueeze(updates, _ints(axis)), _neutral(reduction, x.dtype))
    met = getattr(op, _TOGETHER[reduction])(spread, _ints(axis + 1), keepdims=0)
    if any(a != b for i, (a, b) in enumerate(zip(x.shape, updates.shape, strict=True)) if i != axis):
        missing = op.Sub(op.Shape(x), op.Shape(met))
        met = op.Pad(met, op.Concat(_ints(*[0] * rank), missing, axis=0), _neutral(reduction, x.dtype))
    return [getattr(op, _REDUCE[reduction])(x, met)]


def _scatter_nd(node: Node, version: Version) -> Sequence[Value] | None:
    """With indices that count from 0; reductions by masks, or by a loop over the updates."""
    x, updates, reduction = node.given(0), node.given(2), node.attrs.get("reduction", "none")
    sizes = _along_first(node)
    if sizes is None or x.shape is None:
        return None
    indices = node.given(1) if non_negative(node.given(1)) else _wrapped(node.given(1), sizes)
    if reduction == "none":
        return _with_indices(node, indices)
    if x.dtype not in NUMBERS:
        return None
    depth = _depth(node)
    assert depth is not None
    if indices.const is not None:
        flat = indices.const.numpy().reshape(-1, depth)
        if len(np.unique(flat, axis=0)) == len(flat):
            met = op.GatherND(x, indices)
            return [op.ScatterND(x, indices, getattr(op, _REDUCE[reduction])(met, updates))]
    rows = op.Reshape(indices, _ints(-1, depth))
    blocks = op.Reshape(updates, op.Concat(_ints(-1), op.Shape(x, start=depth), axis=0))
    if _work(node, depth) > _MASKS:
        return [_one_by_one(x, rows, blocks, reduction)]
    return [_in_masks(x, rows, blocks, sizes, reduction)]


def _work(node: Node, depth: int) -> int:
    """The size of the masks, as far as it is known."""
    x, updates = node.given(0).shape or (), node.given(2).shape or ()
    rows = (node.given(1).shape or ())[:-1]
    return int(np.prod([d for d in (*x[:depth], *updates[: len(rows)], *x[depth:]) if isinstance(d, int)], dtype=float))


def _in_masks(x: Value, rows: Value, blocks: Value, sizes: Value, reduction: str) -> Value:
    """``x`` as a matrix of blocks; a mask tells which update goes to which."""
    assert x.shape is not None and rows.shape is not None
    depth = rows.shape[1]
    assert isinstance(depth, int)
    place = op.ReduceSum(op.Mul(rows, _strides(sizes, depth)), _ints(1), keepdims=0)
    count = op.ReduceProd(sizes, keepdims=0)
    table = op.Reshape(x, op.Concat(op.Unsqueeze(count, _ints(0)), _ints(-1), axis=0))
    flat = op.Reshape(blocks, op.Concat(op.Shape(place), _ints(-1), axis=0))
    mask = op.Equal(op.Unsqueeze(place, _ints(1)), op.Range(constant(0, _INT64), count, constant(1, _INT64)))
    spread = op.Where(op.Unsqueeze(mask, _ints(2)), op.Unsqueeze(flat, _ints(1)), _neutral(reduction, x.dtype))
    met = getattr(op, _TOGETHER[reduction])(spread, _ints(0), keepdims=0)
    return op.Reshape(getattr(op, _REDUCE[reduction])(table, met), op.Shape(x))


def _strides(sizes: Value, depth: int) -> Value:
    """By axis, the number of blocks from one index to the next."""
    if sizes.const is not None:
        return _ints(*np.cumprod([1, *sizes.const.numpy()[:0:-1]])[::-1].tolist())
    later = [op.Slice(sizes, _ints(i + 1), _ints(depth)) for i in range(depth - 1)]
    return op.Concat(*(op.ReduceProd(v, keepdims=1) for v in later), _ints(1), axis=0)


def _one_by_one(x: Value, rows: Value, blocks: Value, reduction: str) -> Value:
    """A loop that makes one update per iteration."""

    def body(i: Value, again: Value, data: Value) -> tuple[Value, Value]:
        at = op.Unsqueeze(op.Gather(rows, i), _ints(0))
        met = getattr(op, _REDUCE[reduction])(op.GatherND(data, at), op.Unsqueeze(op.Gather(blocks, i), _ints(0)))
        return constant(True, DType.BOOL), op.ScatterND(data, at, met)

    inputs: list[tuple[str, Type]] = [
        ("i", TensorType(_INT64, ())),
        ("again", TensorType(DType.BOOL, ())),
        ("data", x.type),
    ]
    count = op.Squeeze(size_vector(rows, 0), _ints(0))
    return make_node("Loop", (count, constant(True, DType.BOOL), x), {"body": nested("updates", inputs, body)}).result


FORMS = {
    "Compress": _compress,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "Unique": _unique,
}
