"""Factors that are fitted in the order of the graph: against regressions in numpy, and against factors that are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.backends import backend
from planish.ir import Graph, Value, constant, op, sym

SEQUENTIAL = "low-rank{ratio=0.5,allocation=uniform,sequential=true}"
ALONE = "low-rank{ratio=0.5,allocation=uniform,sequential=false}"


def chain(lab: SimpleNamespace, seed: int, width: int = 24, depth: int = 4) -> Graph:
    def body(x: Value) -> Value:
        for i in range(depth):
            x = op.Tanh(op.MatMul(x, constant(lab.normal(seed + i, width, width))))
        return x

    return lab.build(body, sym("n"), width)


def residual(lab: SimpleNamespace, seed: int, kind: str = "MatMul") -> Graph:
    """Blocks that add what two layers compute to what they read."""

    def layer(x: Value, i: int, *sizes: int) -> Value:
        weight = lab.normal(seed + i, *sizes)
        bias = constant(lab.normal(seed + 50 + i, sizes[1]))
        if kind == "Gemm":
            return op.Gemm(x, constant(np.ascontiguousarray(weight.T)), bias, transB=1, beta=0.5)
        return op.Add(op.MatMul(x, constant(weight)), bias)

    def body(x: Value) -> Value:
        for i in range(0, 6, 2):
            inner = layer(op.Relu(layer(x, i, 16, 48)), i + 1, 48, 16)
            x = op.Add(x, inner) if i else op.Add(inner, x)
        return x

    return lab.build(body, sym("n"), 16)


def halves(data: Any) -> tuple[Any, Any]:
    """What to fit to, and what to judge by."""
    return data[:2], data[2:]


def errors(lab: SimpleNamespace, graph: Graph, data: Any, held_out: Any) -> tuple[float, float, Any]:
    """The errors on other data without and with fitting in order, and the record of the latter."""
    alone, _ = lab.run(graph, ALONE, data)
    changed, record = lab.run(graph, SEQUENTIAL, data)
    assert lab.shapes(changed) == lab.shapes(alone)
    return lab.error(graph, alone, held_out), lab.error(graph, changed, held_out), record


def test_layers_make_up_for_errors_before_them(lab: SimpleNamespace) -> None:
    alone, fitted, record = errors(lab, chain(lab, 1), *halves(lab.rows(1, 6000, 24)))
    assert fitted < 0.97 * alone
    assert 1 <= record.fired["layers fitted in order"] <= 4


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_residual_branches_make_up_for_errors_of_what_they_are_added_to(lab: SimpleNamespace, kind: str) -> None:
    alone, fitted, _ = errors(lab, residual(lab, 10, kind), *halves(lab.rows(2, 6000, 16)))
    assert fitted < 0.9 * alone


def test_the_last_layer_is_a_regression_of_reduced_rank(lab: SimpleNamespace) -> None:
    """Of the original outputs on what the layer gets, pulled by next to nothing for so many rows."""
    graph, data = chain(lab, 3, 12, 2), lab.rows(3, 6000, 12)
    changed, record = lab.run(graph, SEQUENTIAL, data)
    assert record.fired["layers fitted in order"]
    weights = [n.given(1).const.numpy().astype(np.float64) for n in changed.nodes if n.op == "MatMul"]
    x = np.concatenate([s["x"] for s in data]).astype(np.float64)
    h = np.tanh(x @ weights[0] @ weights[1])
    exact = [n.given(1).const.numpy().astype(np.float64) for n in graph.nodes if n.op == "MatMul"]
    t = np.tanh(x @ exact[0]) @ exact[1]
    full = np.linalg.lstsq(h, t, rcond=None)[0]
    _, _, right = np.linalg.svd(h @ full, full_matrices=False)
    rank = weights[2].shape[1]
    expected = full @ right[:rank].T @ right[:rank]
    found, best = (np.linalg.norm(h @ matrix - t) for matrix in (weights[2] @ weights[3], expected))
    assert found <= 1.001 * best
    alone = [n.given(1).const.numpy() for n in lab.run(graph, ALONE, data)[0].nodes if n.op == "MatMul"]
    assert found < 0.99 * np.linalg.norm(h @ alone[2] @ alone[3] - t)


def test_pointwise_convolutions_are_fitted_where_they_stand(lab: SimpleNamespace) -> None:
    def body(x: Value) -> Value:
        for i in range(3):
            weight, bias = constant(lab.normal(20 + i, 16, 16, 1, 1)), constant(lab.normal(30 + i, 16))
            x = op.Tanh(op.Conv(x, weight, bias, strides=[1 + i % 2, 1]))
        return x

    graph = lab.build(body, 2, 16, 9, 9)
    alone, fitted, record = errors(lab, graph, lab.images(4, 2, 16, 9, 9, count=12), lab.images(5, 2, 16, 9, 9))
    assert record.fired["layers fitted in order"]
    assert fitted < alone


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 40), st.integers(0, 999))
def test_few_rows_do_no_harm(lab: SimpleNamespace, count: int, seed: int) -> None:
    graph, held_out = residual(lab, seed), lab.rows(seed, 600, 16)[1:]
    data = [{"x": s["x"][:count]} for s in lab.rows(seed, 600, 16)[:1]]
    alone, fitted, _ = errors(lab, graph, data, held_out)
    assert fitted <= 1.1 * alone


def test_a_weight_that_is_used_twice_is_not_fitted(lab: SimpleNamespace) -> None:
    weight = constant(lab.normal(6, 16, 16))
    graph = lab.build(lambda x: op.MatMul(op.Tanh(op.MatMul(x, weight)), weight), sym("n"), 16)
    changed, record = lab.run(graph, SEQUENTIAL, lab.rows(6, 600, 16))
    assert record.fired["layers factorized"] == 2
    assert "layers fitted in order" not in record.fired
    assert len({id(n.given(1).const) for n in changed.nodes if n.op == "MatMul"}) == 2


def test_without_samples_nothing_is_fitted(lab: SimpleNamespace) -> None:
    _, record = lab.run(chain(lab, 7), SEQUENTIAL)
    assert "layers fitted in order" not in record.fired


def test_rows_that_are_no_numbers_are_left_out(lab: SimpleNamespace) -> None:
    graph, data = chain(lab, 8), lab.rows(8, 2000, 24)
    spoilt = [{"x": np.where(np.arange(len(s["x"]))[:, None] % 50 == 7, np.nan, s["x"])} for s in data]
    changed, _ = lab.run(graph, SEQUENTIAL, spoilt)
    clean, _ = lab.run(graph, SEQUENTIAL, data)
    assert np.isfinite(backend("reference").run(changed, data[0])["y"]).all()
    assert lab.error(graph, changed, data) < 1.1 * lab.error(graph, clean, data)
