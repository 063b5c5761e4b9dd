"""What stands around a left side: producers in front of operands, and what a rule's own code says it looks for."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from planish.ir import DType, Value
from planish.ir.schema import schema_of

from .draw import Array, Draw
from .samplers import SAMPLERS, factor, ints
from .sketch import Sketch

__all__ = ["Hints", "hints_of", "producer"]

_GENERAL = (
    "Identity Cast Reshape Transpose Squeeze Unsqueeze Relu Neg Add Mul Sub Div Concat Slice Gather Expand Flatten Pad "
    "Split MatMul ReduceSum ReduceMean Shape Sigmoid Where Clip"
).split()


class Hints:
    """What a rule's code mentions: operators, and numbers that constants may have to equal."""

    def __init__(self, ops: Iterable[str], numbers: Iterable[float]):
        self.ops = tuple(sorted(set(ops)))
        self.numbers = tuple(sorted(set(numbers)))

    def pick_op(self, draw: Draw) -> str:
        """An operator that is worth having next to the left side."""
        return draw.pick(self.ops) if self.ops and draw.chance(0.75) else draw.pick(_GENERAL)


def hints_of(functions: Iterable[Any]) -> Hints:
    """Read the constants in the code of ``functions``, and of what they call in the same package."""
    ops: set[str] = set()
    numbers: set[float] = {0.0, 1.0, -1.0, 2.0, 0.5, 6.0}
    seen: set[int] = set()

    def visit(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > 6:
            return
        seen.add(id(thing))
        if isinstance(thing, str):
            if thing in SAMPLERS and schema_of(thing) is not None:
                ops.add(thing)
        elif isinstance(thing, int | float) and not isinstance(thing, bool):
            if abs(thing) < 1e6:
                numbers.add(float(thing))
        elif isinstance(thing, tuple | frozenset | set | list):
            for item in thing:
                visit(item, depth + 1)
        elif isinstance(thing, dict):
            for key in thing:
                visit(key, depth + 1)
        elif isinstance(thing, types.CodeType):
            for item in thing.co_consts:
                visit(item, depth)
        elif isinstance(thing, types.FunctionType):
            visit(thing.__code__, depth)
            for cell in thing.__closure__ or ():
                visit(cell.cell_contents, depth + 1)
            package = thing.__module__.rpartition(".")[0]
            for name in _names(thing.__code__):
                used = thing.__globals__.get(name)
                if isinstance(used, types.FunctionType) and used.__module__.rpartition(".")[0] != package:
                    continue
                if isinstance(used, types.FunctionType | str | tuple | frozenset | set | dict | int | float):
                    visit(used, depth + 1)

    for function in functions:
        visit(function, 0)
    return Hints(ops, numbers)


def _names(code: types.CodeType) -> set[str]:
    nested = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*(_names(c) for c in nested)) if nested else set(code.co_names)


Producer = Callable[[Sketch, Array], Value | None]


def producer(sketch: Sketch, array: Array, op: str) -> Value | None:
    """A value with the dtype and shape of ``array``, made by ``op`` from leaves; None if ``op`` cannot give that.

    Its elements may be others: this is for data, not for shapes.
    """
    if op in _UNARY and array.dtype.kind == "f":
        return sketch.node(op, [sketch.leaf(array)]).result
    make = _PRODUCERS.get(op)
    return None if make is None else make(sketch, array)


_UNARY = frozenset("Relu Neg Abs Sigmoid Tanh Identity Exp Erf Softplus LeakyRelu Floor".split())


def _identity(sketch: Sketch, array: Array) -> Value | None:
    return sketch.node("Identity", [sketch.leaf(array)]).result


def _cast(sketch: Sketch, array: Array) -> Value | None:
    draw = sketch.draw
    to = DType.from_numpy(array.dtype)
    source = draw.dtype([d for d in DType if d])
    return sketch.node("Cast", [sketch.leaf(draw.array(source, array.shape, positive=not to.is_signed))], {"to": int(to)}).result


def _transpose(sketch: Sketch, array: Array) -> Value | None:
    remembered: dict[int, tuple[int, ...]] = sketch.__dict__.setdefault("perms", {})
    perm = remembered.get(array.ndim)
    if perm is None or sketch.draw.chance(0.3):
        perm = remembered[array.ndim] = sketch.draw.permutation(array.ndim)
    return sketch.node("Transpose", [sketch.leaf(np.transpose(array, np.argsort(perm)))], {"perm": perm}).result


def _reshape(sketch: Sketch, array: Array) -> Value | None:
    source = sketch.leaf(array.reshape(factor(sketch.draw, array.shape)))
    target = ints(list(array.shape))
    attrs = {"allowzero": 1} if not array.size else {}
    computed = sketch.from_shapes(target) if sketch.draw.chance(0.2) else None
    return sketch.node("Reshape", [source, computed or sketch.leaf(target, "shape", fixed=True)], attrs).result


def _unsqueeze(sketch: Sketch, array: Array) -> Value | None:
    ones = [i for i, d in enumerate(array.shape) if d == 1]
    if not ones:
        return None
    axes = sketch.draw.random.sample(ones, sketch.draw.integer(1, len(ones)))
    return sketch.node("Unsqueeze", [sketch.leaf(np.squeeze(array, tuple(axes))), sketch.constant(ints(axes))]).result


def _squeeze(sketch: Sketch, array: Array) -> Value | None:
    axis = sketch.draw.integer(0, array.ndim)
    return sketch.node("Squeeze", [sketch.leaf(np.expand_dims(array, axis)), sketch.constant(ints([axis]))]).result


def _expand(sketch: Sketch, array: Array) -> Value | None:
    draw = sketch.draw
    part = draw.broadcast_part(array.shape)
    source = draw.array(DType.from_numpy(array.dtype), part)
    target = ints(list(array.shape))
    computed = sketch.from_shapes(target) if draw.chance(0.3) else None
    return sketch.node("Expand", [sketch.leaf(source), computed or sketch.constant(target)]).result


def _concat(sketch: Sketch, array: Array) -> Value | None:
    if not array.ndim:
        return None
    axis = sketch.draw.integer(0, array.ndim - 1)
    parts = np.array_split(array, sketch.draw.pick((1, 2, 2)), axis=axis)
    return sketch.node("Concat", [sketch.leaf(p) for p in parts], {"axis": axis}).result


def _slice(sketch: Sketch, array: Array) -> Value | None:
    if not array.ndim or not array.size:
        return None
    draw = sketch.draw
    axis, before, after = draw.integer(0, array.ndim - 1), draw.integer(0, 2), draw.integer(0, 2)
    source = np.pad(array, [(before, after) if i == axis else (0, 0) for i in range(array.ndim)], mode="edge")
    bounds = [ints([before]), ints([before + array.shape[axis]]), ints([axis])]
    return sketch.node("Slice", [sketch.leaf(source), *(sketch.constant(b) for b in bounds)]).result


def _binary(op: str) -> Producer:
    def make(sketch: Sketch, array: Array) -> Value | None:
        if array.dtype.kind not in "fi":
            return None
        draw = sketch.draw
        other = draw.array(DType.from_numpy(array.dtype), draw.broadcast_part(array.shape), positive=op == "Div")
        return sketch.node(op, [sketch.leaf(array), sketch.leaf(other, "weight")]).result

    return make


_PRODUCERS: dict[str, Producer] = {
    "Identity": _identity, "Cast": _cast, "Transpose": _transpose, "Reshape": _reshape, "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze, "Expand": _expand, "Concat": _concat, "Slice": _slice,
    **{op: _binary(op) for op in ("Add", "Sub", "Mul", "Div")},
}  # fmt: skip
