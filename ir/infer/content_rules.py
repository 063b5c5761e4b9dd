"""Contents of small integer and boolean tensors: what a graph computes with its own shapes.

Elements are `Dim`s. A size is not negative; other elements may be any integer. A rule answers None where it knows
nothing, and puts a `fresh_integer` where it knows all elements but a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product as index_product

from ..dims import Dim, Sym, dim_floordiv, dim_max, dim_min, dim_mod, fresh_integer, is_non_negative
from ..graph import Node, Value
from ..tensor import Tensor
from ..types import DType, TensorType
from .common import axes_operand, normal_axes, normal_axis, operand
from .creation import shape_bounds
from .engine import MAX_CONTENT, Content, content, content_of, contents, scalar_content
from .shapes import split_sizes

# layout: contents as flat row-major tuples, with static shapes


def _static(value: Value | None) -> tuple[int, ...]:
    """The shape of a value whose content is known."""
    assert value is not None
    shape = value.shape
    assert shape is not None
    if any(type(d) is not int for d in shape):
        elements = content_of(value)
        assert elements is not None
        assert len(shape) == 1
        return (len(elements),)
    return shape  # type: ignore[return-value]


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


def _result_shape(node: Node) -> tuple[int, ...]:
    return _static(node.results[0])


def _broadcast(elements: Content, shape: Sequence[int], to: Sequence[int]) -> Content:
    """``elements`` of ``shape``, repeated to fill the shape ``to``."""
    if len(elements) == 1:
        size = 1
        for d in to:
            size *= d
        return elements * size
    if tuple(shape) == tuple(to):
        return elements
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    strides = [0 if d == 1 else s for d, s in zip(padded, _strides(padded), strict=True)]
    return tuple(
        [elements[sum(i * s for i, s in zip(at, strides, strict=True))] for at in index_product(*map(range, to))]
    )


def _operands(node: Node, count: int) -> list[Content] | None:
    """The first ``count`` operands' contents, each broadcast to the shape of the result; None if any is unknown."""
    to = _result_shape(node)
    found: list[Content] = []
    for i in range(count):
        elements = content_of(operand(node, i))
        if elements is None:
            return None
        found.append(_broadcast(elements, _static(node.operands[i]), to))
    return found


# reading shapes


@content("Shape")
def _shape(node: Node) -> Content | None:
    shape = operand(node, 0).shape
    if shape is None:
        return None
    start, end = shape_bounds(node, len(shape))
    return shape[start:end]


@content("Size")
def _size(node: Node) -> Content | None:
    type_ = operand(node, 0).type
    size = type_.size if isinstance(type_, TensorType) else None
    return None if size is None else (size,)


@content("Constant")
def _constant(node: Node) -> Content | None:
    for name, value in node.attrs.items():
        if name == "value" and isinstance(value, Tensor):
            return content_of(Value(value.type, const=value))
        if name == "value_int":
            return (value,)
        if name == "value_ints":
            return tuple(value)
    return None


@content("ConstantOfShape")
def _constant_of_shape(node: Node) -> Content | None:
    value = node.attrs.get("value")
    element = content_of(Value(value.type, const=value)) if value is not None else None
    if element is None:
        return None
    return _broadcast(element, (1,), _result_shape(node))


@content("Range")
def _range(node: Node) -> Content | None:
    start, delta = scalar_content(operand(node, 0)), scalar_content(operand(node, 2))
    if start is None or delta is None:
        return None
    return tuple([start + i * delta for i in range(_result_shape(node)[0])])


# the same elements, arranged


@content("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
def _same(node: Node) -> Content | None:
    return content_of(operand(node, 0))


@content("Cast", "CastLike")
def _cast(node: Node) -> Content | None:
    source = operand(node, 0)
    dtype = node.results[0].dtype
    elements = content_of(source)
    if elements is None:
        return _truncated(source.const, dtype)
    if dtype is DType.BOOL:
        return _truths([_known_different(e, 0) for e in elements])
    if dtype.bits < 32 and not all(type(e) is int for e in elements):
        return None  # a size may not fit
    return elements


def _truncated(t: Tensor | None, dtype: DType) -> Content | None:
    """The elements of a small floating-point constant, cast to ``dtype``."""
    if t is None or not t.dtype.is_floating or t.size > MAX_CONTENT:
        return None
    numbers = [float(e) for e in t.numpy().ravel()]
    return tuple([int(bool(e)) if dtype is DType.BOOL else int(e) for e in numbers])


@content("Transpose")
def _transpose(node: Node) -> Content | None:
    elements = content_of(operand(node, 0))
    if elements is None:
        return None
    shape = _static(node.operands[0])
    permutation = node.attrs.get("perm", range(len(shape))[::-1])
    strides = _strides(shape)
    moved = [strides[p] for p in permutation]
    return tuple(
        [
            elements[sum(i * s for i, s in zip(at, moved, strict=True))]
            for at in index_product(*(range(shape[p]) for p in permutation))
        ]
    )


@content("Concat")
def _concat(node: Node) -> Content | None:
    known = [content_of(value) for value in node.operands]
    if not any(known):
        return None
    parts = [
        _free(value) if elements is None else elements for value, elements in zip(node.operands, known, strict=True)
    ]
    shape = _result_shape(node)
    if len(shape) == 1:
        return tuple([e for elements in parts for e in elements])
    outer = 1
    for d in shape[: normal_axis(node, node.attrs["axis"], len(shape))]:
        outer *= d
    found: list[Dim] = []
    for i in range(outer):
        for elements in parts:
            row = len(elements) // outer
            found += elements[i * row : (i + 1) * row]
    return tuple(found)


def _free(value: Value | None) -> Content:
    """Unknown integers for all elements of ``value``, whose shape is static."""
    count = 1
    for d in _static(value):
        count *= d
    assert count <= MAX_CONTENT
    return tuple([fresh_integer() for _ in range(count)])


@contents("Split")
def _split(node: Node) -> tuple[Content | None, ...]:
    elements = content_of(operand(node, 0))
    if elements is None or len(_static(node.operands[0])) != 1:
        return ()
    found: list[Content | None] = []
    at = 0
    for size in split_sizes(node, len(elements), len(node.results)):
        if not isinstance(size, int):  # sizes that are not known
            return ()
        found.append(elements[at : at + size])
        at += size
    return tuple(found)


@content("Gather")
def _gather(node: Node) -> Content | None:
    elements, at = content_of(operand(node, 0)), content_of(operand(node, 1))
    if elements is None or at is None or any(type(i) is not int for i in at):
        return None
    shape = _static(node.operands[0])
    axis = normal_axis(node, node.attrs.get("axis", 0), len(shape))
    size, inner = shape[axis], _strides(shape)[axis]
    if any(not -size <= i < size for i in at):  # type: ignore[operator]
        return None
    found: list[Dim] = []
    for base in range(0, len(elements), size * inner):
        for i in at:
            assert isinstance(i, int)
            first = base + (i + size if i < 0 else i) * inner
            found += elements[first : first + inner]
    return tuple(found)


@content("Slice")
def _slice(node: Node) -> Content | None:
    elements = content_of(operand(node, 0))
    bounds = [content_of(operand(node, i)) for i in (1, 2)]
    if elements is None or any(b is None for b in bounds):
        return None
    shape = _static(node.operands[0])
    starts, ends = bounds
    assert starts is not None
    assert ends is not None
    axes = axes_operand(node, 3) if node.operand(3) is not None else tuple(range(len(starts)))
    steps = content_of(node.operands[4]) if node.operand(4) is not None else (1,) * len(starts)
    if axes is None or steps is None or any(type(b) is not int for b in (*starts, *ends, *steps)):
        return None
    taken = [range(d) for d in shape]
    for axis, start, end, step in zip(normal_axes(node, axes, len(shape)), starts, ends, steps, strict=True):
        taken[axis] = range(shape[axis])[slice_of(start, end, step, shape[axis])]  # type: ignore[arg-type]
    strides = _strides(shape)
    return tuple([elements[sum(i * s for i, s in zip(at, strides, strict=True))] for at in index_product(*taken)])


def slice_of(start: int, end: int, step: int, size: int) -> slice:
    """The Python slice with the meaning of ONNX's ``start``, ``end`` and ``step`` on a dimension of ``size``."""
    if step < 0 and end < -size:
        return slice(start, None, step)
    return slice(start, end, step)


@content("Expand")
def _expand(node: Node) -> Content | None:
    found = _operands(node, 1)
    return None if found is None else found[0]


@content("Tile")
def _tile(node: Node) -> Content | None:
    elements = content_of(operand(node, 0))
    if elements is None:
        return None
    shape, to = _static(node.operands[0]), _result_shape(node)
    strides = _strides(shape)
    return tuple(
        [
            elements[sum(i % d * s for i, d, s in zip(at, shape, strides, strict=True))]
            for at in index_product(*map(range, to))
        ]
    )


@content("Pad")
def _pad(node: Node) -> Content | None:
    elements, pads = content_of(operand(node, 0)), content_of(operand(node, 1))
    shape = _static(node.operands[0])
    if elements is None or pads is None or len(shape) != 1 or len(pads) != 2:
        return None
    before, after = pads
    if node.attrs.get("mode", "constant") != "constant" or type(before) is not int or type(after) is not int:
        return None
    fill: Dim | None = 0
    if node.operand(2) is not None:
        fill = scalar_content(node.operands[2])
    if fill is None or abs(before) > MAX_CONTENT or abs(after) > MAX_CONTENT:
        return None
    kept = elements[max(-before, 0) : len(elements) - max(-after, 0)]
    return (fill,) * before + kept + (fill,) * after


@content("ScatterElements", "ScatterND")
def _scatter(node: Node) -> Content | None:
    """Into vectors only: both operators then write single elements."""
    elements, at, new = (content_of(operand(node, i)) for i in range(3))
    shape = _static(node.operands[0])
    if elements is None or at is None or new is None or len(shape) != 1 or len(at) != len(new):
        return None
    if node.attrs.get("reduction", "none") != "none":
        return None
    found = list(elements)
    for i, e in zip(at, new, strict=True):
        if type(i) is not int or not -len(found) <= i < len(found):
            return None
        found[i] = e
    return tuple(found)


# arithmetic


def _checked(dims: Iterable[Dim | None]) -> Content | None:
    """``dims``, with unknown integers for None; None where nothing is known."""
    found = tuple([fresh_integer() if d is None else d for d in dims])
    if found and all(isinstance(d, Sym) and (d.name or "").startswith("?~") for d in found):
        return None
    return found


def _div(a: Dim, b: Dim) -> Dim | None:
    """ONNX's integer division, which truncates towards zero."""
    if b == 0:
        return None
    if type(a) is int and type(b) is int:
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if is_non_negative(a) and is_non_negative(b):
        return dim_floordiv(a, b)
    exact = dim_floordiv(a, b)
    return exact if exact * b == a else None  # only where nothing is rounded


def _mod(a: Dim, b: Dim) -> Dim | None:
    return None if b == 0 else dim_mod(a, b)


def _fmod(a: Dim, b: Dim) -> Dim | None:
    """The remainder with the sign of ``a``, as in C."""
    if b == 0:
        return None
    if type(a) is int and type(b) is int:
        return abs(a) % abs(b) if a >= 0 else -(abs(a) % abs(b))
    return dim_mod(a, b) if is_non_negative(a) and is_non_negative(b) else None


_ARITHMETIC: dict[str, Callable[[Dim, Dim], Dim | None]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _div,
    "Max": dim_max,
    "Min": dim_min,
}


@content(*_ARITHMETIC, "Mod")
def _arithmetic(node: Node) -> Content | None:
    found = _operands(node, len(node.operands))
    if found is None:
        return None
    function = (_fmod if node.attrs.get("fmod") else _mod) if node.op == "Mod" else _ARITHMETIC[node.op]
    result: Sequence[Dim | None] = found[0]
    for other in found[1:]:
        result = [None if a is None else function(a, b) for a, b in zip(result, other, strict=True)]
    return _checked(result)


@content("Neg")
def _neg(node: Node) -> Content | None:
    elements = content_of(operand(node, 0))
    return None if elements is None else tuple([-e for e in elements])


@content("Abs")
def _abs(node: Node) -> Content | None:
    elements = content_of(operand(node, 0))
    return None if elements is None else _checked(map(_absolute, elements))


def _absolute(d: Dim) -> Dim | None:
    if is_non_negative(d):
        return d
    return -d if is_non_negative(-d) else None


@content("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin")
def _reduce(node: Node) -> Content | None:
    """Over all elements of a vector or a scalar."""
    elements = content_of(operand(node, 0))
    if elements is None or len(_static(node.operands[0])) > 1:
        return None
    if node.operand(1) is None or content_of(node.operands[1]) == ():
        if node.attrs.get("noop_with_empty_axes", 0):
            return elements
    elif not content_of(node.operands[1]):
        return None
    if not elements:
        return {"ReduceSum": (0,), "ReduceProd": (1,)}.get(node.op)
    function = _ARITHMETIC[{"ReduceSum": "Add", "ReduceProd": "Mul", "ReduceMax": "Max", "ReduceMin": "Min"}[node.op]]
    result: Dim | None = elements[0]
    for e in elements[1:]:
        result = None if result is None else function(result, e)
    return None if result is None else (result,)


# truth


def _known_different(a: Dim, b: Dim) -> bool | None:
    """Whether ``a != b`` for all sizes, or for none; None where that depends."""
    if a == b:
        return False
    difference = a - b
    if type(difference) is int or is_non_negative(difference - 1) or is_non_negative(-difference - 1):
        return True
    return None


def _known_less(a: Dim, b: Dim) -> bool | None:
    """Whether ``a < b`` for all sizes, or for none; None where that depends."""
    gap = b - a
    if is_non_negative(gap - 1):
        return True
    return False if is_non_negative(-gap) else None


def _not(truth: bool | None) -> bool | None:
    return None if truth is None else not truth


_COMPARISONS: dict[str, Callable[[Dim, Dim], bool | None]] = {
    "Equal": lambda a, b: _not(_known_different(a, b)),
    "Less": _known_less,
    "Greater": lambda a, b: _known_less(b, a),
    "LessOrEqual": lambda a, b: _not(_known_less(b, a)),
    "GreaterOrEqual": lambda a, b: _not(_known_less(a, b)),
}


def _truths(truths: Iterable[bool | None]) -> Content | None:
    return _checked(None if t is None else int(t) for t in truths)


@content(*_COMPARISONS)
def _compare(node: Node) -> Content | None:
    found = _operands(node, 2)
    if found is None:
        return None
    function = _COMPARISONS[node.op]
    return _truths([function(a, b) for a, b in zip(*found, strict=True)])


@content("Not")
def _negate(node: Node) -> Content | None:
    elements = content_of(operand(node, 0))
    return None if elements is None else _checked(1 - e if type(e) is int else None for e in elements)


@content("And", "Or", "Xor")
def _logic(node: Node) -> Content | None:
    found = _operands(node, 2)
    if found is None:
        return None
    return _checked([_logical(node.op, a, b) for a, b in zip(*found, strict=True)])


def _logical(op: str, a: Dim, b: Dim) -> Dim | None:
    if type(a) is int and type(b) is int:
        return int(a and b) if op == "And" else int(a or b) if op == "Or" else a ^ b
    decisive = {"And": 0, "Or": 1}.get(op)
    return decisive if decisive is not None and decisive in (a, b) else None


@content("Where")
def _where(node: Node) -> Content | None:
    found = _operands(node, 3)
    if found is None:
        return None
    return _checked([_chosen(c, a, b) for c, a, b in zip(*found, strict=True)])


def _chosen(condition: Dim, a: Dim, b: Dim) -> Dim | None:
    if type(condition) is int:
        return a if condition else b
    return a if a == b else None
