"""What stands around a left side: producers of its operands, and what a rule's own code says it looks for."""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from planish.ir import DType, Value
from planish.ir.schema import schema_of

from .draw import Array, Draw, Reject
from .samplers import SAMPLERS, factor, ints, unary
from .site import Slot
from .sketch import Sketch

__all__ = ["Hints", "hints_of", "operand_value"]

_GENERAL = [
    "Identity",
    "Cast",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Relu",
    "Neg",
    "Add",
    "Mul",
    "Sub",
    "Div",
    "Concat",
    "Slice",
    "Gather",
    "Expand",
    "Flatten",
    "Pad",
    "Split",
    "MatMul",
    "ReduceSum",
    "ReduceMean",
    "Shape",
    "Sigmoid",
    "Where",
    "Clip",
]
_BRANCHES = ("If", "Loop")
_SIZES = frozenset({"INT64", "content", "content_of", "scalar_content", "Shape"})  # names in code about sizes
_NUMBERS = (0.0, 1.0, -1.0, 2.0, 0.5, 6.0)


class Hints:
    """What a rule's code mentions, and what has made it fire so far: operators and numbers worth having near.

    Attributes:
        numbers: numbers that constants may have to equal.
        sizes: whether it is about the arithmetic of sizes.
    """

    def __init__(self, ops: dict[str, float], numbers: Iterable[float], sizes: bool = False):
        self._weights = dict(sorted(ops.items()))
        self.numbers = tuple(sorted({*numbers, *_NUMBERS}))
        self.sizes = sizes

    def pick_op(self, draw: Draw) -> str:
        """An operator that is worth having next to the left side."""
        if self._weights and draw.chance(0.8):
            return draw.random.choices(list(self._weights), list(self._weights.values()))[0]
        return draw.pick(_GENERAL)

    def reward(self, ops: Iterable[str]) -> None:
        """Make ``ops`` more likely: the rule has fired next to them."""
        most = max(self._weights.values(), default=1.0)
        for op in set(ops):
            if op in SAMPLERS:
                self._weights[op] = min(self._weights.get(op, 0.0) + most * 0.1, most)


def hints_of(functions: Iterable[Any]) -> Hints:
    """Read the constants in the code of ``functions``, and of what they call in the same package.

    An operator that the code names weighs as much as a whole set of operators that it refers to.
    """
    reader = _Reader()
    for function in functions:
        reader.visit(function, 0)
    return Hints(reader.ops, reader.numbers, reader.sizes)


class _Reader:
    def __init__(self) -> None:
        self.ops: dict[str, float] = defaultdict(float)
        self.numbers: set[float] = set()
        self.seen: set[int] = set()
        self.sizes = False

    def visit(self, thing: Any, depth: int, weight: float = 1.0) -> None:
        """Take in a constant, a collection of them, or a function."""
        if isinstance(thing, str):
            if (thing in SAMPLERS or thing in _BRANCHES) and schema_of(thing) is not None:
                self.ops[thing] += weight
                self.sizes = self.sizes or thing == "Shape"
        elif isinstance(thing, int | float):
            if not isinstance(thing, bool) and abs(thing) < 1e6:
                self.numbers.add(float(thing))
        elif isinstance(thing, tuple | frozenset | set | list | dict):
            for item in thing:
                self.visit(item, depth, weight / len(thing))
        elif isinstance(thing, types.CodeType):
            for item in thing.co_consts:
                self.visit(item, depth, weight)
        elif isinstance(thing, types.FunctionType) and id(thing) not in self.seen and depth < 5:
            self.seen.add(id(thing))
            self._function(thing, depth, weight)

    def _function(self, function: types.FunctionType, depth: int, weight: float) -> None:
        self.visit(function.__code__, depth, weight)
        for cell in function.__closure__ or ():
            self.visit(cell.cell_contents, depth + 1, weight)
        package = function.__module__.rpartition(".")[0]
        for name in sorted(_names(function.__code__)):
            used = function.__globals__.get(name)
            elsewhere = isinstance(used, types.FunctionType) and used.__module__.rpartition(".")[0] != package
            if used is not None and not elsewhere:
                self.visit(used, depth + 1, weight * 0.7)
        self._branches(function.__code__)

    def _branches(self, code: types.CodeType) -> None:
        """Operators that the code calls as ``op.Name`` on the right side stand on the left side of others, too."""
        self.sizes = self.sizes or not _SIZES.isdisjoint(code.co_names)
        for name in code.co_names:
            if name in SAMPLERS and schema_of(name) is not None:
                self.ops[name] += 0.3


def _names(code: types.CodeType) -> set[str]:
    nested = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*(_names(c) for c in nested))


def operand_value(sketch: Sketch, slot: Slot, hints: Hints, probability: float, fixed: bool | None = None) -> Value:
    """A value for an operand that a sampler has chosen: a leaf, one that is there already, or the result of a node.

    Args:
        sketch: the graph to build in.
        slot: the operand; the elements of data may become others.
        hints: what to have near.
        probability: of a node in front of it.
        fixed: whether it must (must not) be a constant.
    """
    draw, array = sketch.draw, slot.array
    assert array is not None
    if fixed is None and slot.accept is None and slot.fill is None:
        if slot.role == "data" and draw.integers and array.dtype == np.int64 and array.ndim < 2:
            fixed = draw.chance(0.4)
            made = None if fixed or draw.chance(0.3) else _Producers(sketch, hints, probability / 2).sizes(array)
        elif slot.role == "data":
            twins = [v for v in sketch.leaves if _alike(sketch.array(v), array)]
            if twins and draw.chance(0.15):
                return draw.pick(twins)
            made = _Producers(sketch, hints, probability / 2).make(array) if draw.chance(probability) else None
        else:
            made = sketch.from_shapes(array) if slot.role == "shape" and draw.chance(probability / 2) else None
        if made is not None:
            return made
    return sketch.leaf(array, slot.role, fixed=fixed)


def _alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


class _Producers:
    """Values with the dtype and shape of a given array, made by a node; its operands may be made by nodes in turn."""

    def __init__(self, sketch: Sketch, hints: Hints, probability: float):
        self.sketch = sketch
        self.draw = sketch.draw
        self.hints = hints
        self.probability = probability

    def make(self, array: Array) -> Value | None:
        """A value like ``array``; None if the operator that was picked gives none like it."""
        op = self.hints.pick_op(self.draw)
        try:
            if op in _ELEMENTWISE and array.dtype.kind == "f":
                return self.sketch.node(op, [self.source(array)]).result
            if op in _BINARY and array.dtype.kind in ("f" if op == "Pow" else "fi"):
                return self._binary(op, array)
            method: Callable[[Array], Value | None] | None = getattr(self, f"_{op.lower()}", None)
            return None if method is None else method(array)
        except Reject:
            return None

    def sizes(self, array: Array) -> Value | None:
        """Some vector of sizes, as shape arithmetic has them."""
        return self._shape(array) if array.ndim else None

    def source(self, array: Array) -> Value:
        """An operand."""
        return operand_value(self.sketch, Slot(array=array), self.hints, self.probability)

    def _binary(self, op: str, array: Array) -> Value:
        draw = self.draw
        dtype = DType.from_numpy(array.dtype)
        other = draw.array(dtype, draw.broadcast_part(array.shape), positive=op in ("Div", "Pow"))
        operands = [self.source(np.abs(array) if op == "Pow" else array), self.sketch.leaf(other, "weight")]
        if draw.chance(0.3):
            operands.reverse()
        return self.sketch.node(op, list(operands)).result

    def _cast(self, array: Array) -> Value:
        to = DType.from_numpy(array.dtype)
        source = self.draw.array(self.draw.dtype([d for d in DType if d]), array.shape, positive=not to.is_signed)
        return self.sketch.node("Cast", [self.source(source)], {"to": int(to)}).result

    def _transpose(self, array: Array) -> Value:
        """Within one sketch the same permutation is likely to come again."""
        perm = self.sketch.perms.get(array.ndim)
        if perm is None or self.draw.chance(0.3):
            perm = self.sketch.perms[array.ndim] = self.draw.permutation(array.ndim)
        return self.sketch.node(
            "Transpose", [self.source(np.transpose(array, np.argsort(perm)))], {"perm": perm}
        ).result

    def _reshape(self, array: Array) -> Value:
        source = self.source(array.reshape(factor(self.draw, array.shape)))
        target = ints(list(array.shape))
        computed = self.sketch.from_shapes(target) if self.draw.chance(0.2) else None
        attrs = {} if array.size else {"allowzero": 1}
        return self.sketch.node("Reshape", [source, computed or self.sketch.constant(target)], attrs).result

    def _flatten(self, array: Array) -> Value | None:
        if array.ndim != 2 or not array.size:
            return None
        shapes = [[array.shape[0], *s] for s in ([array.shape[1]], [1, array.shape[1]], [array.shape[1], 1, 1])]
        return self.sketch.node("Flatten", [self.source(array.reshape(self.draw.pick(shapes)))]).result

    def _unsqueeze(self, array: Array) -> Value | None:
        ones = [i for i, d in enumerate(array.shape) if d == 1]
        if not ones:
            return None
        axes = self.draw.random.sample(ones, self.draw.integer(1, len(ones)))
        source = self.source(np.squeeze(array, tuple(axes)))
        return self.sketch.node("Unsqueeze", [source, self.sketch.constant(ints(axes))]).result

    def _squeeze(self, array: Array) -> Value:
        axis = self.draw.integer(0, array.ndim)
        source = self.source(np.expand_dims(array, axis))
        return self.sketch.node("Squeeze", [source, self.sketch.constant(ints([axis]))]).result

    def _expand(self, array: Array) -> Value:
        part = self.draw.broadcast_part(array.shape)
        target = ints(list(array.shape))
        computed = self.sketch.from_shapes(target) if self.draw.chance(0.3) else None
        source = self.source(self.draw.array(DType.from_numpy(array.dtype), part))
        return self.sketch.node("Expand", [source, computed or self.sketch.constant(target)]).result

    def _concat(self, array: Array) -> Value | None:
        if not array.ndim:
            return None
        axis = self.draw.integer(0, array.ndim - 1)
        parts = np.array_split(array, self.draw.pick((1, 2, 2, 3)), axis=axis)
        return self.sketch.node("Concat", [self.source(p) for p in parts], {"axis": axis}).result

    def _split(self, array: Array) -> Value | None:
        if not array.ndim:
            return None
        axis, index = self.draw.integer(0, array.ndim - 1), self.draw.pick((0, 1))
        whole = self.source(np.concatenate([array, array], axis=axis))
        return self.sketch.node("Split", [whole], {"axis": axis, "num_outputs": 2}, 2).results[index]

    def _slice(self, array: Array) -> Value | None:
        if not array.size or not array.ndim:
            return None
        draw = self.draw
        axis, before, after = draw.integer(0, array.ndim - 1), draw.integer(0, 2), draw.integer(0, 2)
        source = np.pad(array, [(before, after) if i == axis else (0, 0) for i in range(array.ndim)], mode="edge")
        bounds = [ints([before]), ints([before + array.shape[axis]]), ints([axis])]
        return self.sketch.node("Slice", [self.source(source), *(self.sketch.constant(b) for b in bounds)]).result

    def _pad(self, array: Array) -> Value | None:
        """Preferably of the spatial dimensions of an image, with zeros."""
        draw = self.draw
        first = 2 if array.ndim > 2 and draw.chance(0.8) else 0
        widths = [(0, 0) if i < first else (draw.pick((0, 1)), draw.pick((0, 0, 1))) for i in range(array.ndim)]
        if any(d < a + b for d, (a, b) in zip(array.shape, widths, strict=True)):
            return None
        inner = array[tuple(slice(a, d - b) for d, (a, b) in zip(array.shape, widths, strict=True))]
        pads = self.sketch.constant(ints([a for a, _ in widths] + [b for _, b in widths]))
        return self.sketch.node("Pad", [self.source(inner), pads]).result

    def _gather(self, array: Array) -> Value | None:
        if array.ndim > 3:
            return None
        axis, index = self.draw.integer(0, array.ndim), self.draw.integer(0, 1)
        whole = self.source(np.stack([array, array], axis=axis))
        return self.sketch.node("Gather", [whole, self.sketch.constant(ints(index))], {"axis": axis}).result

    def _shape(self, array: Array) -> Value | None:
        if array.ndim != 1 or array.dtype != np.int64 or not 1 <= array.size <= 4:
            return None
        start, after = (self.draw.integer(0, 2), self.draw.integer(0, 1)) if self.draw.chance(0.5) else (0, 0)
        rank = start + array.size + after
        attrs = {"start": start, "end": start + array.size} if start or after else {}
        known = [v for v in self.sketch.leaves if v.const is None and self.sketch.array(v).ndim == rank]
        if known and self.draw.chance(0.5):
            source = self.draw.pick(known)
        else:
            source = self.sketch.input(self.draw.array(DType.FLOAT, self.draw.shape(rank, rank)))
            self.sketch.leaves.append(source)
        return self.sketch.node("Shape", [source], attrs).result

    def _matmul(self, array: Array) -> Value | None:
        if array.ndim < 2 or array.dtype.kind != "f":
            return None
        dtype, inner = DType.from_numpy(array.dtype), self.draw.dim()
        left = self.source(self.draw.array(dtype, (*array.shape[:-1], inner)))
        right = self.sketch.leaf(self.draw.array(dtype, (inner, array.shape[-1])), "weight")
        return self.sketch.node("MatMul", [left, right]).result

    def _gemm(self, array: Array) -> Value | None:
        if array.ndim != 2 or array.dtype.kind != "f":
            return None
        draw, dtype = self.draw, DType.from_numpy(array.dtype)
        m, n, k = *array.shape, draw.dim()
        flips = {"transA": draw.pick((0, 0, 1)), "transB": draw.pick((0, 1))}
        left = self.source(draw.array(dtype, (k, m) if flips["transA"] else (m, k)))
        right = self.sketch.leaf(draw.array(dtype, (n, k) if flips["transB"] else (k, n)), "weight")
        bias = [self.sketch.leaf(draw.array(dtype, (n,)), "weight")] if draw.chance(0.5) else []
        return self.sketch.node("Gemm", [left, right, *bias], {k: v for k, v in flips.items() if v}).result


_ELEMENTWISE = frozenset(
    op for op, function in SAMPLERS.items() if function is unary and op not in ("BitwiseNot", "Not", "IsNaN")
)
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow"})
