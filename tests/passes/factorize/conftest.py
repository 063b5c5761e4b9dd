"""Layers with known inputs, passes on them, and references in numpy, for the tests of factorization."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planish.backends import backend
from planish.ir import DType, Graph, Value, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline

Array = np.ndarray[Any, Any]
FASTER = (1.0, 0.5)  # seconds before and after, on a machine that likes whatever is new


def build(body: Callable[[Value], Value], *shape: object, dtype: DType = DType.FLOAT) -> Graph:
    """A graph of one input ``x`` and the output ``y`` that ``body`` computes."""
    graph = Graph("g", opsets={"": 21})
    result = body(graph.add_input(tensor_type(dtype, *shape), "x"))
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    graph.output_info[0].name = "y"
    return graph


def normal(seed: int, *shape: int) -> Array:
    """Normal numbers whose products keep the size of what they multiply."""
    fan = int(np.prod(shape[1:])) or 1
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def images(seed: int, *shape: int, count: int = 3) -> list[dict[str, Array]]:
    """Images whose neighbours, and whose channels, are alike."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((shape[1], shape[1])) / np.arange(1, shape[1] + 1)
    found = []
    for _ in range(count):
        noise = rng.standard_normal(shape)
        for axis in range(2, len(shape)):
            noise = np.cumsum(noise, axis=axis) / 2
        found.append({"x": np.moveaxis(np.moveaxis(noise, 1, -1) @ mixing, -1, 1).astype(np.float32)})
    return found


def rows(seed: int, n: int, features: int) -> list[dict[str, Array]]:
    """Correlated rows."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, features)) / np.sqrt(np.arange(1, features + 1))
    mixed = mixed @ rng.standard_normal((features, features))
    return [{"x": part.astype(np.float32)} for part in np.array_split(mixed, 3)]


class Machine:
    """A runner that takes ``cost(graph)`` seconds for a graph.

    Attributes:
        alone: the single layers that have been measured, as the operators they consist of.
        measured: how often something was measured.
    """

    def __init__(self, cost: Callable[[Graph], float]):
        self.cost = cost
        self.backend = backend("reference")
        self.took = 0.0
        self.measured = 0
        self.alone: list[list[str]] = []

    def compile(self, graph: Graph) -> Callable[[Any], Any]:
        if graph.name == "layer":
            self.alone.append(ops(graph))
        cost, compiled = self.cost(graph), self.backend.compile(graph)

        def timed(inputs: Any) -> Any:
            self.took = cost
            return compiled(inputs)

        return timed

    def stopwatch(self, first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
        self.measured += 1
        first()
        before = self.took
        second()
        return before, self.took


def run(graph: Graph, text: str, data: Any = None, times: Any = FASTER, **more: Any) -> tuple[Graph, Any]:
    """A changed copy, and the record of the pass. ``times``: a machine, or what its stopwatch says; None for none."""
    changed = clone_graph(graph)
    samples = None if data is None else lambda: iter(data)
    engine: Any = times if isinstance(times, Machine) else backend("reference")
    watch = times.stopwatch if isinstance(times, Machine) else times and (lambda first, second: times)
    ctx = Context(lambda: engine, samples=samples, stopwatch=watch, **more)
    Pipeline.parse(text).run(changed, ctx)
    assert [r.problem for r in ctx.results] == [""] * len(ctx.results)
    verify(changed)
    return changed, ctx.results[-1]


def outputs(graph: Graph, data: Any) -> Array:
    """What ``graph`` computes for all samples."""
    compiled = backend("reference").compile(graph)
    return np.concatenate([compiled(sample)["y"].astype(np.float64).ravel() for sample in data])


def error(graph: Graph, changed: Graph, data: Any) -> float:
    """The root mean square difference relative to that of the output."""
    expected = outputs(graph, data)
    difference = float(np.linalg.norm(outputs(changed, data) - expected))
    return difference / max(float(np.linalg.norm(expected)), 1e-30)  # 0 for what reads nothing but pads


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.walk()]


def shapes(graph: Graph) -> list[tuple[int, ...]]:
    """The shapes of the weights, in order."""
    layers = [n for n in graph.nodes if n.op in ("Conv", "MatMul", "Gemm")]
    return [n.given(1).const.shape for n in layers if n.given(1).const is not None]  # type: ignore[union-attr]


def conv(weight: Array, *shape: object, bias: bool = True, **attrs: Any) -> Graph:
    """One convolution."""
    more = [constant(normal(99, len(weight)))] if bias else []
    return build(lambda x: op.Conv(x, constant(weight, name="w"), *more, **attrs), *shape)


def product(weight: Array, kind: str = "MatMul") -> Graph:
    """One product of rows with ``weight`` [in, out]."""

    def body(x: Value) -> Value:
        if kind == "MatMul":
            return op.MatMul(x, constant(weight))
        bias = constant(normal(98, weight.shape[1]))
        if kind == "Gemm":
            return op.Gemm(x, constant(weight), bias, beta=0.5)
        return op.Gemm(x, constant(np.ascontiguousarray(weight.T)), bias, transB=1)

    return build(body, sym("n"), weight.shape[0])


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The functions above."""
    functions = (Machine, build, normal, images, rows, run, outputs, error, ops, shapes, conv, product)
    return SimpleNamespace(**{f.__name__: f for f in functions})
