"""Shapes: what changes them, reads them or is computed from them, and which values may decide them.

TensorRT must compute a shape before the layers that have it run: from constants, shapes and integer inputs (which then
are *shape inputs*, read on the host), by layers of which it can tell the values in advance. What some other layers give
(`_OPAQUE`) is copied to the host in time. What changes from one iteration of a loop to the next decides no shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ....ir.dims import Dim
from ....passes.fuse.views import shape_vector
from ....passes.rules import NoMatch
from ....passes.simplify.reshapes import reshape_to
from ..legality import INDICES, NUMBERS, QUANTIZED, Row
from ..sizes import floor_divide, plus, size_of, times, vector
from ..versions import Version

__all__ = [
    "FORMS",
    "MOVED",
    "ROWS",
    "SHAPE_OPERANDS",
    "check_moved",
    "most_trips",
    "moving_part",
    "sized",
    "unfit",
]

MOVED = NUMBERS | {DType.BOOL, DType.INT8}
_VIEWED = MOVED | QUANTIZED
_RANK = 8

SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
"""The operands on which the shapes of results depend, by operator."""

_OPAQUE = frozenset(
    {
        "ArgMax",
        "ArgMin",
        "CumSum",
        "GRU",
        "LSTM",
        "LogSoftmax",
        "Loop",
        "RNN",
        "Scan",
        "Shape",
        "Size",
        "Softmax",
        "TopK",
    }
)


# --- what decides shapes ---------------------------------------------------------------------------------------------


def unfit(value: Value) -> str:
    """Why no shape may depend on the elements of ``value``, or ""."""
    seen: set[Value] = set()
    stack = [value]
    while stack:
        value = stack.pop()
        if value in seen or value.const is not None:
            continue
        seen.add(value)
        node = value.producer
        if node is None:
            if value.graph is not None and value.graph.parent is not None:
                return f"a size depends on %{value.name}, which each iteration of a loop changes"
            if value.dtype not in INDICES:
                return f"a size depends on the elements of %{value.name}, which is {value.dtype.text}, no integer"
        elif node.op == "If":
            return "a size depends on the result of an If"
        elif node.op not in _OPAQUE:
            stack.extend(o for o in node.operands if o is not None)
    return ""


def _length(value: Value | None) -> Dim | None:
    return value.shape[0] if value is not None and value.shape is not None and len(value.shape) == 1 else None


def check_moved(node: Node, version: Version) -> str:
    """What holds for all operators that move elements: eight dimensions, computable shapes, constants but int8 ones."""
    for value in (*node.operands, *node.results):
        if value is None:
            continue
        if value.rank is not None and value.rank > _RANK:
            return f"{value.rank} dimensions: {version} takes {_RANK} at most"
        if value.const is not None and value.dtype in QUANTIZED:
            return f"a constant of {value.dtype.text}: {version} has those before DequantizeLinear only"
    for position in SHAPE_OPERANDS.get(node.op, ()):
        operand = node.operand(position)
        if operand is not None and (reason := unfit(operand)):
            return reason
    return ""


def _of_known_length(*positions: int) -> Callable[[Node, Version], str]:
    """`check_moved`, and that the lengths of operands are known, which tell the rank of the result."""

    def check(node: Node, version: Version) -> str:
        operands = (node.operand(i) for i in positions)
        if any(o is not None and o.rank == 1 and not isinstance(_length(o), int) for o in operands):
            return "the rank of its result is not known"
        return check_moved(node, version)

    return check


def sized(value: Value, length: int) -> Value:
    """A vector with its length stated."""
    return value if _length(value) == length else op.Reshape(value, constant([length], DType.INT64))


# --- rows ------------------------------------------------------------------------------------------------------------


def _check_slice(node: Node, version: Version) -> str:
    x, starts, axes = node.given(0), node.given(1), node.operand(3)
    if axes is None and x.rank is not None and _length(starts) != x.rank:
        return f"{version} wants axes where it does not slice along all"
    if starts.dtype is not DType.INT64:
        return f"its bounds are {starts.dtype.text}: {version} mixes them with int64"
    if version.number < (10, 3) and axes is not None and axes.const is None:
        return f"axes must be constants in {version}"
    return _of_known_length(1, 2, 3, 4)(node, version)


def _check_split(node: Node, version: Version) -> str:
    x, count = node.given(0), node.attrs.get("num_outputs")
    if node.operand(1) is None and count and x.shape is not None:
        dim = x.shape[node.attrs.get("axis", 0)]
        if isinstance(dim, int) and dim < -(-dim // count) * (count - 1):
            return "its last part has fewer elements than none"
    return check_moved(node, version)


def _check_squeeze(node: Node, version: Version) -> str:
    x = node.given(0)
    is_static = x.shape is not None and all(isinstance(d, int) for d in x.shape)
    if node.operand(1) is None and not is_static:
        return f"axes must be given where a size is not known: {version} must know which are 1"
    return check_moved(node, version)


def _check_sequence(node: Node, version: Version) -> str:
    if node.attrs.get("batch_axis", 1) < 0 or node.attrs.get("time_axis", 0) < 0:
        return f"{version} takes axes from 0 on"
    shape = node.given(0).shape
    if version.number < (8, 6) and (shape is None or not all(isinstance(d, int) for d in shape)):
        return f"{version} takes known sizes only"
    return check_moved(node, version)


_NEW = frozenset({DType.BFLOAT16})  # of some operators: in newer opsets than the parser reads
_RANGES = frozenset({DType.FLOAT, DType.INT32, DType.INT64})

ROWS: dict[str, Row] = {
    "Concat": Row({"T": _VIEWED}, check=check_moved),
    "ConstantOfShape": Row({"T2": NUMBERS | {DType.BOOL}}, check=_of_known_length(0)),
    "Expand": Row({"T": MOVED}, check=_of_known_length(1)),
    "Flatten": Row({"T": _VIEWED}, check=check_moved),
    "Identity": Row({"V": _VIEWED}, check=check_moved),
    "Range": Row({"T": _RANGES}, check=check_moved),
    "Reshape": Row({"T": _VIEWED}, check=_of_known_length(1)),
    "ReverseSequence": Row({"T": MOVED - _NEW}, ranks=(2, _RANK), check=_check_sequence),
    "Shape": Row({"T": _VIEWED}, check=check_moved),
    "Size": Row({"T": _VIEWED}, check=check_moved),
    "Slice": Row({"T": MOVED}, check=_check_slice),
    "Split": Row({"T": MOVED}, check=_check_split),
    "Squeeze": Row({"T": _VIEWED}, constants=(1,), check=_check_squeeze),
    "Tile": Row({"T": MOVED}, check=_of_known_length(1)),
    "Transpose": Row({"T": _VIEWED}, check=check_moved),
    "Unsqueeze": Row({"T": _VIEWED}, constants=(1,), check=check_moved),
}


# --- forms -----------------------------------------------------------------------------------------------------------


def _view(node: Node, version: Version) -> Sequence[Value] | None:
    """Squeeze and Unsqueeze with axes that are known only when it runs, though the shape of the result is known."""
    x, shape = node.given(0), node.result.shape
    if x.shape is None or shape is None:
        return None
    try:
        return [reshape_to(x, shape) or op.Reshape(x, shape_vector(shape, [x]))]
    except NoMatch:
        return _unsqueezed(node) if node.op == "Unsqueeze" else None


def _unsqueezed(node: Node) -> Sequence[Value] | None:
    """Between the sizes of the operand, ones at the positions that the axes name."""
    x, axes, shape = node.given(0), node.given(1), node.result.shape
    assert shape is not None
    rank = constant(len(shape), DType.INT64)
    ones = op.OneHot(op.Mod(axes, rank), rank, constant(np.array([0, 1], np.int64)))
    is_new = op.ReduceSum(ones, constant([0], DType.INT64), keepdims=0)
    place = op.Sub(op.Range(0, rank, 1), op.CumSum(is_new, constant(0, DType.INT64)))
    one = constant([1], DType.INT64)
    sizes = op.Concat(one, op.Shape(x), axis=0)
    target = op.Gather(sizes, op.Mul(op.Add(place, one), op.Sub(one, is_new)))
    return [op.Reshape(x, target)]


def _slice(node: Node, version: Version) -> Sequence[Value] | None:
    """Along named axes, by int64; in a loop, a part of one or more elements that moves is gathered."""
    x, starts, ends = (node.given(i) for i in range(3))
    axes, steps = node.operand(3), node.operand(4)
    known = [n for o in node.operands[1:] if isinstance(n := _length(o), int)]
    if x.rank is None or not known:
        return None
    count = known[0]
    if found := moving_part(node):
        start, length, axis = found
        along = constant(np.arange(length), DType.INT64)
        first = _long(start)
        return [op.Gather(x, first if length == 1 else op.Add(first, along), axis=axis)]
    if axes is None:
        axes = constant(np.arange(count), DType.INT64)
    bounds = [None if o is None else sized(_long(o), count) for o in (starts, ends, axes, steps)]
    return [op.Slice(x, *bounds)] if bounds != [*node.operands[1:], None][:4] else None


def _long(value: Value) -> Value:
    """Integers as int64."""
    if value.dtype is DType.INT64:
        return value
    return op.Cast(value, to=DType.INT64) if value.const is None else constant(value.const.numpy().astype(np.int64))


def moving_part(node: Node) -> tuple[Value, int, int] | None:
    """Start, length and axis of a Slice that moves with the iterations of a loop and has the same length in all."""
    x, starts, ends = (node.given(i) for i in range(3))
    axes, steps, shape = node.operand(3), node.operand(4), node.result.shape
    if starts.shape != (1,) or x.shape is None or shape is None or not (unfit(starts) or unfit(ends)):
        return None
    axis = 0 if axes is None else _number(axes)
    step = 1 if steps is None else _number(steps)
    (base, low), (other, high) = _affine(starts), _affine(ends)
    length = high - low
    if axis is None or step != 1 or base is not other or base is None or length < 1:
        return None
    if shape[axis] == length or _stays_inside(base, low, high, x.shape[axis]):
        return starts, length, axis % len(x.shape)
    return None


def _number(value: Value) -> int | None:
    return int(value.const.numpy().ravel()[0]) if value.const is not None and value.const.size == 1 else None


def _affine(value: Value) -> tuple[Value | None, int]:
    """The value that ``value`` is, in another shape, plus a number; no value if it is a number."""
    offset = 0
    while True:
        if (number := _number(value)) is not None:
            return None, offset + number
        node = value.producer
        if node is None:
            return value, offset
        if node.op in ("Unsqueeze", "Squeeze", "Reshape", "Identity", "Cast"):
            value = node.given(0)
        elif node.op in ("Add", "Sub") and (number := _number(node.given(1))) is not None:
            value, offset = node.given(0), offset + (number if node.op == "Add" else -number)
        elif node.op == "Add" and (number := _number(node.given(0))) is not None:
            value, offset = node.given(1), offset + number
        else:
            return value, offset


def _stays_inside(base: Value, low: int, high: int, dim: Dim) -> bool:
    """Whether ``base + low`` to ``base + high`` is within ``dim`` for every iteration number ``base`` of a Loop."""
    loop = base.graph.parent if base.graph is not None else None
    if loop is None or loop.op != "Loop" or base.index or low < 0:
        return False
    trips = most_trips(loop)
    if isinstance(trips, int) and isinstance(dim, int):
        return trips - 1 + high <= dim
    return trips is not None and trips == dim and high == 1


def most_trips(loop: Node) -> Dim | None:
    """The number of iterations of a Loop that goes on until the last, as far as it is known."""
    trips = loop.operand(0)
    known = None if trips is None else trips.content[0] if trips.content else _number(trips)
    for result in loop.results[len(loop.operands) - 2 :]:
        shape = result.shape
        if shape and not isinstance(known, int):
            known = shape[0] if known is None or isinstance(shape[0], int) else known
    return known


def _with_rank(node: Node, version: Version) -> Sequence[Value] | None:
    """With the rank of the result stated, which its type tells."""
    position = SHAPE_OPERANDS[node.op][0]
    rank, target = node.result.rank, node.given(position)
    if rank is None or isinstance(_length(target), int):
        return None
    return [make_node(node.op, (*node.operands[:position], sized(target, rank)), dict(node.attrs)).result]


def _range(node: Node, version: Version) -> Sequence[Value] | None:
    """From as many numbers as the graph states that there are."""
    (start, _, delta), shape = (node.given(i) for i in range(3)), node.result.shape
    if shape is None or not isinstance(shape[0], int):
        return None
    count = constant(np.arange(shape[0]), start.dtype)
    return [op.Add(start, op.Mul(count, delta))]


def _split(node: Node, version: Version) -> Sequence[Value] | None:
    """Into so many parts, where only the sizes of parts can be given."""
    x, count = node.given(0), len(node.results)
    if node.operand(1) is not None or x.rank is None:
        return None
    axis = node.attrs.get("axis", 0) % x.rank
    size = size_of(x, axis)
    each = floor_divide(plus(size, count - 1), count)
    if isinstance(size, int) and isinstance(each, int):
        sizes = [min(each, size - i * each) for i in range(count)]
        if sizes[-1] < 0:  # ill-formed
            return None
        return make_node("Split", (x, constant(sizes, DType.INT64)), {"axis": axis}, count).results
    ends = [vector([times(each, i)]) for i in range(count + 1)]
    return [op.Slice(x, a, b, constant([axis], DType.INT64)) for a, b in pairwise(ends)]


def _sequence(node: Node, version: Version) -> Sequence[Value] | None:
    """With axes from 0 on."""
    rank = node.given(0).rank
    axes = {n: node.attrs.get(n, d) for n, d in (("batch_axis", 1), ("time_axis", 0))}
    if rank is None or all(a >= 0 for a in axes.values()):
        return None
    return [op.ReverseSequence(*node.operands, **{n: a % rank for n, a in axes.items()})]


FORMS = {
    "Expand": _with_rank,
    "Range": _range,
    "Reshape": _with_rank,
    "ReverseSequence": _sequence,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _view,
    "Tile": _with_rank,
    "Unsqueeze": _view,
}
