"""Refitting: what is left of a layer's inputs makes up for what is gone; against least squares by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planish.backends import backend
from planish.ir import DType, Graph, Value, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import PassResult, RequestError
from planish.passes.prune import Prune

RNG = np.random.default_rng(3)
Array = np.ndarray[Any, Any]


def network(kind: str, hidden: Array, last: Array) -> Graph:
    graph = Graph("g", opsets={"": 21})
    shape = (sym("n"), 6, 5, 5) if kind == "conv" else (sym("n"), 6)
    x = graph.add_input(tensor_type(DType.FLOAT, *shape), "x")
    if kind == "conv":
        y: Value = op.Conv(op.Relu(op.Conv(x, constant(hidden))), constant(last), pads=[1, 1, 1, 1])
    elif kind == "gemm":
        y = op.Gemm(op.Relu(op.Gemm(x, constant(hidden), transB=1)), constant(last), transB=1)
    else:
        y = op.MatMul(op.Relu(op.MatMul(x, constant(hidden))), constant(last))
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    return graph


def pruned(
    graph: Graph, samples: list[dict[str, Array]], gone: tuple[int, ...] = (4, 5, 6, 7), fit: bool = True
) -> Graph:
    changed = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: samples)
    ctx.results.append(PassResult("prune"))
    plan = Prune(multiple=1, refit=fit).plan(changed, ctx)
    plan.carry_out(changed, [np.array(gone)], ctx)
    assert ctx.results[0].fired["layers refitted"] == fit
    verify(changed)
    return changed


def run(graph: Graph, x: Array) -> Array:
    found: Array = backend("reference").run(graph, {"x": x})["y"]
    return found


def weights(kind: str, redundant: bool) -> tuple[Array, Array]:
    """Eight hidden channels; if ``redundant``, the last four are multiples of the first four."""
    shape = {"conv": (8, 6, 3, 3), "gemm": (8, 6), "matmul": (6, 8)}[kind]
    hidden = RNG.standard_normal(shape).astype(np.float32)
    out = 1 if kind == "matmul" else 0
    rows = np.moveaxis(hidden, out, 0)
    if redundant:
        rows[4:] = 0.5 * rows[:4]
    last_shape = {"conv": (7, 8, 3, 3), "gemm": (7, 8), "matmul": (8, 7)}[kind]
    return hidden, RNG.standard_normal(last_shape).astype(np.float32)


def data(kind: str, rows: int = 64) -> Array:
    return RNG.standard_normal((rows, 6, 5, 5) if kind == "conv" else (rows, 6)).astype(np.float32)


@pytest.mark.parametrize("kind", ["matmul", "gemm", "conv"])
def test_redundant_channels_cost_nothing(kind: str) -> None:
    graph = network(kind, *weights(kind, redundant=True))
    samples = [{"x": data(kind)} for _ in range(4)]
    x = data(kind)
    before = run(graph, x)

    def error(changed: Graph) -> float:
        return float(np.square(run(changed, x) - before).mean() / np.square(before).mean())

    assert error(pruned(graph, samples)) < 1e-3
    assert error(pruned(graph, samples, fit=False)) > 0.05


def test_the_weights_are_those_of_least_squares() -> None:
    hidden, last = weights("matmul", redundant=False)
    graph = network("matmul", hidden, last)
    x = data("matmul", 200)
    changed = pruned(graph, [{"x": x[:120]}, {"x": x[120:]}])
    inner = np.maximum(x @ hidden, 0).astype(np.float64)
    left = [n.given(1).const.numpy() for n in changed.nodes if n.op == "MatMul"]  # type: ignore[union-attr]
    stay = [0, 1, 2, 3]
    damping = 0.01 * (inner[:, stay] ** 2).sum(0).mean()
    rows = np.concatenate([inner[:, stay], np.sqrt(damping) * np.eye(4)])  # ridge, towards what it was
    targets = np.concatenate([inner @ last, np.sqrt(damping) * last[stay]])
    np.testing.assert_allclose(left[1], np.linalg.lstsq(rows, targets, rcond=None)[0], rtol=1e-4, atol=1e-5)


def test_layers_that_lose_no_inputs_are_left_alone() -> None:
    graph = network("matmul", *weights("matmul", redundant=False))
    first = next(pruned(graph, [{"x": data("matmul")}], gone=(0, 7)).nodes).given(1).const
    old = next(graph.nodes).given(1).const
    assert first is not None and old is not None
    np.testing.assert_array_equal(first.numpy(), old.numpy()[:, 1:7])


def test_refitting_in_a_pipeline() -> None:
    graph = network("matmul", *weights("matmul", redundant=True))
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: [{"x": data("matmul")}])
    Pipeline.parse("prune{multiple=1,refit=true}").run(graph, ctx)
    verify(graph)
    assert ctx.results[0].fired["layers refitted"] == 1
    with pytest.raises(RequestError, match="refit fits layers on samples"):
        Pipeline.parse("prune{multiple=1,refit=true}").run(graph, Context())


@pytest.mark.parametrize("kind", ["matmul", "gemm", "conv"])
def test_channels_are_worth_what_their_readers_make_of_them(kind: str) -> None:
    hidden, last = weights(kind, redundant=False)
    x = data(kind)
    graph = network(kind, hidden, last)
    probe = clone_graph(graph)
    relu = next(n.result for n in probe.nodes if n.op == "Relu")
    probe.set_outputs([relu])
    probe.output_info[0].name = "y"
    inner = run(probe, x).astype(np.float64)
    axis = 0 if kind == "matmul" else 1
    expected = np.square(np.moveaxis(last, axis, 0).reshape(8, -1)).sum(1)
    expected = expected * np.square(np.moveaxis(inner, 1, 0).reshape(8, -1)).mean(1)
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: [{"x": x[:20]}, {"x": x[20:]}])
    plan = Prune(multiple=1, importance="contribution").plan(graph, ctx)
    np.testing.assert_allclose(plan.worth[0], expected / expected.mean(), rtol=1e-4)
