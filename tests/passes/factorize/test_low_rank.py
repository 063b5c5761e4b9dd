"""``low-rank``: thin products against the decompositions of the papers in numpy, and ranks against a full search."""

from __future__ import annotations

from itertools import product as combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planish
from planish.ir import Value, constant, op, sym
from planish.passes.base import RequestError
from planish.passes.factorize.ladders import Ladder, allocate

KINDS = ("MatMul", "Gemm", "Gemm transposed")


def truncated(matrix: Any, rank: int) -> Any:
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def gram(data: Any) -> Any:
    return sum(s["x"].astype(np.float64).T @ s["x"] for s in data)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_is_the_truncated_decomposition(lab: SimpleNamespace, kind: str) -> None:
    weight = lab.normal(1, 20, 12)
    graph = lab.product(weight, kind)
    data = lab.rows(1, 30, 20)
    changed, record = lab.run(graph, "low-rank{ratio=0.5,method=plain}", data)
    rank = 20 * 12 // 2 // 32
    assert record.table[0]["rank"] == f"rank {rank}"
    assert record.table[0]["parameters"] == [240, rank * 32]
    second = (12, rank) if kind == "Gemm transposed" else (rank, 12)
    assert lab.shapes(changed) == [(20, rank), second]
    reference = lab.product(truncated(weight, rank).astype(np.float32), kind)
    assert lab.error(reference, changed, data) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_loses_what_the_singular_values_say(lab: SimpleNamespace, kind: str) -> None:
    """The loss of SVD-LLM: singular values of the weight times the Cholesky factor of the inputs' moments."""
    weight = lab.normal(2, 16, 24)
    data = lab.rows(2, 6000, 16)
    changed, record = lab.run(lab.product(weight, kind), "low-rank{ratio=0.4}", data)
    rank = int(record.table[0]["rank"].removeprefix("rank "))
    values = np.linalg.svd(np.linalg.cholesky(gram(data)).T @ weight, compute_uv=False)
    expected = np.sqrt(np.square(values[rank:]).sum() / np.square(values).sum())
    assert record.table[0]["error"] == pytest.approx(expected, rel=1e-3)
    found = lab.error(lab.product(weight), lab.run(lab.product(weight), "low-rank{ratio=0.4}", data)[0], data)
    assert found == pytest.approx(expected, rel=1e-3)
    assert changed.nodes


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 20), st.integers(3, 20), st.integers(2, 60), st.floats(0.1, 0.95), st.integers(0, 999))
def test_whitened_never_loses_more_than_plain(
    lab: SimpleNamespace, inputs: int, outputs: int, count: int, ratio: float, seed: int
) -> None:
    graph = lab.product(lab.normal(seed, inputs, outputs))
    data = lab.rows(seed, count, inputs)[:1]
    errors = {}
    for method in ("plain", "whitened"):
        changed, record = lab.run(graph, f"low-rank{{ratio={ratio},method={method}}}", data)
        errors[method] = lab.error(graph, changed, data)
        if record.fired["layers factorized"]:
            assert errors[method] == pytest.approx(record.table[0]["error"], abs=1e-5, rel=1e-3)
            assert record.table[0]["parameters"][1] <= max(ratio * inputs * outputs, inputs + outputs)
    assert errors["whitened"] <= errors["plain"] * (1 + 1e-4) + 1e-5


def test_fisher_weights_inputs_by_the_gradients_that_they_get(lab: SimpleNamespace) -> None:
    """With random projections of the output, the information of an input of one product is its second moment."""
    weight, data = lab.normal(3, 12, 10), lab.rows(3, 300, 12)
    text = "low-rank{ratio=0.5,method=fisher}"
    changed, record = lab.run(lab.product(weight), text, data * 15, differentiate=planish.to_jax)
    rank = int(record.table[0]["rank"].removeprefix("rank "))
    scale = np.sqrt(np.diag(gram(data)))[:, None]
    expected = truncated(weight * scale, rank) / scale
    first, second = (n.given(1).const.numpy() for n in changed.nodes if n.op == "MatMul")
    close = np.linalg.norm(first @ second - expected) / np.linalg.norm(expected)
    plain = np.linalg.norm(truncated(weight, rank) - expected) / np.linalg.norm(expected)
    assert close < 0.05 < 0.2 < plain


def test_fisher_needs_gradients_and_samples(lab: SimpleNamespace) -> None:
    graph = lab.product(lab.normal(3, 12, 10))
    with pytest.raises(RequestError, match="needs samples"):
        lab.run(graph, "low-rank{method=fisher}", differentiate=planish.to_jax)
    with pytest.raises(RequestError, match="needs gradients"):
        lab.run(graph, "low-rank{method=fisher}", lab.rows(3, 30, 12))


def test_a_rank_must_save_parameters(lab: SimpleNamespace) -> None:
    weight = lab.normal(4, 12, 10)  # 120 / 22 = 5.45…
    for error, outcome in ((1e-3, "left alone: no rank that saves anything reaches the goal"), (0.99, "factorized")):
        _, record = lab.run(lab.product(weight), f"low-rank{{error={error},method=plain}}")
        assert record.table[0]["outcome"] == outcome
    _, record = lab.run(lab.product(weight[:, :1]), "low-rank")
    assert record.table[0]["outcome"] == "left alone: no rank saves parameters of 1 x 12"


def test_a_pointwise_convolution_is_a_product(lab: SimpleNamespace) -> None:
    weight = lab.normal(5, 12, 10, 1, 1)
    graph = lab.conv(weight, 2, 10, 7, 7, strides=[2, 2], pads=[1, 0, 0, 1])
    data = lab.images(5, 2, 10, 7, 7)
    changed, _ = lab.run(graph, "low-rank{ratio=0.6,method=plain}", data)
    assert lab.shapes(changed) == [(3, 10, 1, 1), (12, 3, 1, 1)]
    expected = truncated(weight[..., 0, 0], 3).reshape(weight.shape).astype(np.float32)
    reference = lab.conv(expected, 2, 10, 7, 7, strides=[2, 2], pads=[1, 0, 0, 1])
    assert lab.error(reference, changed, data) <= 1e-5
    _, record = lab.run(lab.conv(lab.normal(5, 4, 4, 3, 3), 1, 4, 8, 8), "low-rank")
    assert record.table[0]["outcome"] == "left alone: its kernel has more than one element"


def chain(lab: SimpleNamespace) -> Any:
    """Products whose weights have spectra of very different decay."""
    rng = np.random.default_rng(6)

    def body(x: Value) -> Value:
        for decay in (0.1, 0.8, 3.0):
            u, v = (np.linalg.qr(rng.standard_normal((16, 16)))[0] for _ in range(2))
            x = op.Tanh(op.MatMul(x, constant(((u * np.arange(1, 17) ** -decay) @ v).astype(np.float32))))
        return x

    return lab.build(body, sym("n"), 16)


def test_parameters_go_where_they_are_worth_most(lab: SimpleNamespace) -> None:
    graph, data = chain(lab), lab.rows(7, 200, 16)
    lost, ranks = {}, {}
    for allocation in ("uniform", "global"):
        _, record = lab.run(graph, f"low-rank{{ratio=0.5,allocation={allocation}}}", data)
        rows = record.table
        assert sum(r["parameters"][1] if r["parameters"] else 256 for r in rows) <= 0.5 * 768
        lost[allocation] = sum((r["error"] or 0) ** 2 for r in rows)
        ranks[allocation] = [int(r["rank"].removeprefix("rank ") or 16) for r in rows]
    assert ranks["uniform"] == [4, 4, 4]
    assert ranks["global"][0] > ranks["global"][2]
    assert lost["global"] < 0.9 * lost["uniform"]


class Spectrum(Ladder):
    """A ladder of known errors: squares of ``values`` that are cut off, ``cost`` parameters each."""

    def __init__(self, values: list[float], cost: int, whole: int):
        squares = np.square(values)
        self.errors = [*(squares[::-1].cumsum()[::-1][1:] / squares.sum()), 0.0][: (whole - 1) // cost]
        self.cost, self.full = cost, whole

    @property
    def whole(self) -> int:
        return self.full

    def __len__(self) -> int:
        return len(self.errors)

    def parameters(self, rung: int) -> int:
        return (rung + 1) * self.cost

    def error(self, rung: int) -> float:
        return float(self.errors[rung])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.floats(0.2, 0.9))
def test_allocation_loses_least(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    ladders = {}
    for n in range(3):
        values = sorted(rng.exponential(size=6) + 0.01, reverse=True)
        ladders[n] = Spectrum(values, 10, 10 * int(rng.integers(3, 6)) + 5)
    whole = sum(ladder.whole for ladder in ladders.values())
    found = allocate(ladders, share * whole)

    def spent(rungs: Any) -> int:
        return sum(ladders[n].parameters(r) for n, r in rungs)

    def lost(rungs: Any) -> float:
        return sum(ladders[n].error(r) for n, r in rungs)

    chosen = [(n, r) for n, r in found.items() if r is not None]
    assert len(chosen) < 3 or spent(chosen) <= max(share * whole, 30)
    if len(chosen) == 3:  # all of one cost, and none full: water-filling is best
        every = combinations(*(range(len(ladder)) for ladder in ladders.values()))
        fitting = [list(enumerate(rungs)) for rungs in every if spent(enumerate(rungs)) <= max(share * whole, 30)]
        assert lost(chosen) == pytest.approx(min(map(lost, fitting)))


def test_tied_products_share_thin_ones(lab: SimpleNamespace) -> None:
    weight = constant(lab.normal(8, 12, 12))
    graph = lab.build(lambda x: op.MatMul(op.Tanh(op.MatMul(x, weight)), weight), sym("n"), 12)
    changed, record = lab.run(graph, "low-rank", lab.rows(8, 40, 12))
    assert record.fired["layers factorized"] == 2
    assert len({n.given(1) for n in changed.nodes if n.op == "MatMul"}) == 2
    table = constant(lab.normal(8, 12, 12))
    graph = lab.build(lambda x: op.Add(op.MatMul(x, table), op.Gather(table, np.int64(3))), sym("n"), 12)
    changed, record = lab.run(graph, "low-rank")
    assert str(changed) == str(graph)
    assert record.table[0]["outcome"] == "left alone: something else reads its weight, too"


def test_only_what_is_faster_becomes_thin(lab: SimpleNamespace) -> None:
    def body(x: Value) -> Value:
        return op.MatMul(op.MatMul(x, constant(lab.normal(9, 12, 20))), constant(lab.normal(10, 20, 16)))

    graph = lab.build(body, sym("n"), 12)

    def cost(g: Any) -> float:
        inputs = g.inputs[0].shape[-1]
        return 1.0 if len(lab.ops(g)) == 1 or inputs == 12 else 0.4

    changed, record = lab.run(graph, "low-rank{allocation=uniform}", lab.rows(9, 30, 12), times=lab.Machine(cost))
    assert [row["outcome"] for row in record.table] == [
        "left alone: not faster (1e+03 ms -> 1e+03 ms)",
        "factorized",
    ]
    assert lab.shapes(changed)[0] == (12, 20)
    assert len(lab.shapes(changed)) == 3


def test_inputs_that_were_never_seen_keep_finite_weights(lab: SimpleNamespace) -> None:
    data = lab.rows(11, 30, 12)
    for sample in data:
        sample["x"][:, 4:] = 0
    graph = lab.product(lab.normal(11, 12, 12))
    changed, record = lab.run(graph, "low-rank{ratio=0.7}", data)
    assert all(np.isfinite(n.given(1).const.numpy()).all() for n in changed.nodes)
    assert record.table[0]["error"] < 0.05
    silent = [{"x": np.zeros_like(s["x"])} for s in data]
    changed, record = lab.run(graph, "low-rank{ratio=0.7}", silent)
    assert all(np.isfinite(n.given(1).const.numpy()).all() for n in changed.nodes)
