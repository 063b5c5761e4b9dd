"""Random If and Loop nodes, and whole left sides inside a branch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planish.ir import DType, Graph, Node, Value

from .draw import Array, Draw
from .sketch import Sketch

__all__ = ["build_if", "build_loop", "in_branch"]

Build = Callable[[Value], Value]  # a value of the same dtype, computed from another one


def in_branch(sketch: Sketch, build: Callable[[], list[Value]]) -> list[Value]:
    """Let ``build`` build in a branch of an If that is taken; the results of the If."""
    branch, other = Graph("taken"), Graph("other")
    with sketch.inside(branch):
        outputs = build()
    branch.set_outputs(outputs)
    other.set_outputs([sketch.constant(sketch.array(v)) for v in outputs])
    condition = sketch.input(np.array(True))
    node = sketch.node("If", [condition], {"then_branch": branch, "else_branch": other}, len(outputs))
    return list(node.results)


def build_if(sketch: Sketch, build: Build) -> Node:
    """An If whose branches compute something from values around it, with a condition that is often known."""
    draw = sketch.draw
    sources = [sketch.leaf(_data(draw)) for _ in range(draw.pick((1, 1, 2)))]
    graphs = []
    for name in ("then_branch", "else_branch"):
        graph = Graph(name)
        with sketch.inside(graph):
            graph.set_outputs([_passed_on(sketch, s) if draw.chance(0.3) else build(s) for s in sources])
        graphs.append(graph)
    condition = _flag(sketch, draw.chance(0.5), fixed=draw.chance(0.6))
    return sketch.node("If", [condition], {"then_branch": graphs[0], "else_branch": graphs[1]}, len(sources))


def build_loop(sketch: Sketch, build: Build) -> Node:
    """A Loop over one or two carried values that keep their shape, a few times; sometimes it stacks a result."""
    draw = sketch.draw
    carried = [sketch.leaf(_data(draw)) for _ in range(draw.pick((1, 1, 2)))]
    body = Graph("body")
    sketch.formal(body, np.array(0, np.int64), "i")
    going = sketch.formal(body, np.array(True), "going")
    inner = [sketch.formal(body, sketch.array(v), f"v{i}") for i, v in enumerate(carried)]
    with sketch.inside(body):
        condition = sketch.node("Identity", [going]).result
        results = [_same_shape(sketch, v, carried[0]) for v in inner]
        scanned = [build(results[0])] if draw.chance(0.3) else []
    body.set_outputs([condition, *results, *scanned])
    trips = draw.pick((0, 1, 1, 2, 3)) if not scanned else draw.pick((1, 2))
    limit = sketch.leaf(np.array(trips, np.int64), fixed=draw.chance(0.7))
    keep = None if draw.chance(0.4) else _flag(sketch, bool(scanned) or draw.chance(0.8), fixed=draw.chance(0.7))
    return sketch.node("Loop", [limit, keep, *carried], {"body": body}, len(results) + len(scanned))


def _same_shape(sketch: Sketch, value: Value, outer: Value) -> Value:
    """Something of the dtype and shape of ``value``; it may use ``outer``, a value around the loop."""
    a, b = sketch.array(value), sketch.array(outer)
    if a.dtype == b.dtype and a.shape == b.shape and sketch.draw.chance(0.5):
        return sketch.node("Add", [value, outer]).result
    return sketch.node(sketch.draw.pick(("Neg", "Identity", "Abs")), [value]).result


def _passed_on(sketch: Sketch, value: Value) -> Value:
    return value if sketch.draw.chance(0.5) else sketch.node("Identity", [value]).result


def _flag(sketch: Sketch, value: bool, *, fixed: bool) -> Value:
    return sketch.leaf(np.array(value), fixed=fixed)


def _data(draw: Draw) -> Array:
    return draw.array(draw.pick((DType.FLOAT, DType.FLOAT, DType.INT64)), draw.shape(0, 3))
