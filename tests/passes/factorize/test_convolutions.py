"""``tucker`` and ``spatial-svd``: smaller convolutions against their convolution, and numpy's decompositions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.passes import Pipeline
from planish.passes.pipeline import PipelineError

ATTRS = {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}


def of_rank(lab: SimpleNamespace, seed: int, outputs: int, inputs: int, r: int, s: int, *kernel: int) -> Any:
    """A weight with these Tucker ranks."""
    core, u, v = lab.normal(seed, r, s, *kernel), lab.normal(seed + 1, outputs, r), lab.normal(seed + 2, inputs, s)
    return np.einsum("rs...,or,is->oi...", core, u, v).astype(np.float32)


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize("method", ["plain", "whitened"])
def test_tucker_finds_the_ranks_that_a_weight_has(lab: SimpleNamespace, kernel: tuple[int, ...], method: str) -> None:
    weight = of_rank(lab, 1, 12, 10, 4, 3, *kernel)
    shape = (2, 10, *(k + 5 for k in kernel))
    graph = lab.conv(weight, *shape)
    data = lab.images(2, *shape)
    changed, record = lab.run(graph, f"tucker{{energy=0.999999,method={method},skip_first=false}}", data)
    assert record.table[0]["rank"] == "ranks 4, 3"
    assert lab.shapes(changed) == [(3, 10, *(1 for _ in kernel)), (4, 3, *kernel), (12, 4, *(1 for _ in kernel))]
    assert record.table[0]["parameters"] == [weight.size, 30 + 12 * int(np.prod(kernel)) + 48]
    assert lab.error(graph, changed, data) <= 1e-5


def test_a_square_factor_goes_into_the_core(lab: SimpleNamespace) -> None:
    for ranks, count in (((4, 10), 2), ((12, 3), 2), ((4, 3), 3)):
        graph = lab.conv(of_rank(lab, 3, 12, 10, *ranks, 3, 3), 1, 10, 8, 8)
        changed, record = lab.run(graph, "tucker{energy=0.999999,skip_first=false}")
        assert record.table[0]["rank"] == f"ranks {ranks[0]}, {ranks[1]}"
        assert lab.ops(changed) == ["Conv"] * count
        assert lab.error(graph, changed, lab.images(3, 1, 10, 8, 8)) <= 1e-5


def test_iteration_loses_no_more_than_where_it_starts(lab: SimpleNamespace) -> None:
    weight = lab.normal(4, 10, 8, 3, 3)
    flat = weight.reshape(10, 8, 9).astype(np.float64)
    u = np.linalg.svd(flat.reshape(10, -1))[0]
    v = np.linalg.svd(flat.swapaxes(0, 1).reshape(8, -1))[0]
    _, record = lab.run(lab.conv(weight, 1, 8, 7, 7), "tucker{ratio=0.3,skip_first=false}")
    r, s = (int(n) for n in record.table[0]["rank"].removeprefix("ranks ").split(", "))
    p, q = u[:, :r] @ u[:, :r].T, v[:, :s] @ v[:, :s].T
    hosvd = np.linalg.norm(np.einsum("oik,po,qi->pqk", flat, p, q) - flat) / np.linalg.norm(flat)
    assert 0.9 * hosvd < record.table[0]["error"] <= hosvd
    assert record.table[0]["parameters"][1] <= 0.3 * weight.size


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 5), st.integers(1, 5), st.integers(2, 4), st.integers(2, 4), st.booleans(),
    st.sampled_from(["vertical-first", "horizontal-first"]), st.sampled_from(["plain", "whitened"]),
    st.integers(0, 99),
)  # fmt: skip
def test_all_ranks_together_are_exact(
    lab: SimpleNamespace, o: int, i: int, a: int, b: int, same: bool, order: str, method: str, seed: int
) -> None:
    attrs: dict[str, Any] = {"strides": [2, 1], "auto_pad": "SAME_UPPER"} if same else ATTRS
    graph = lab.conv(lab.normal(seed, o, i, a, b), 2, i, 9, 9, **attrs)
    data = lab.images(seed, 2, i, 9, 9)
    text = f"spatial-svd{{energy=1,order={order},method={method},skip_first=false}}"
    changed, record = lab.run(graph, text, data)
    assert record.fired["layers factorized"] == 1
    assert lab.ops(changed) == ["Conv", "Conv"]
    assert lab.error(graph, changed, data) <= 1e-5


def test_spatial_ranks_are_those_of_the_matrix_of_the_paper(lab: SimpleNamespace) -> None:
    weight = lab.normal(5, 7, 5, 3, 2)
    graph = lab.conv(weight, 1, 5, 8, 8, **ATTRS)
    text = "spatial-svd{ratio=0.5,order=vertical-first,skip_first=false}"
    changed, record = lab.run(graph, text)
    rank = int(0.5 * 7 * 5 * 6 / (5 * 3 + 7 * 2))
    assert lab.shapes(changed) == [(rank, 5, 3, 1), (7, rank, 1, 2)]
    matrix = weight.transpose(1, 2, 0, 3).reshape(15, 14)
    u, s, v = np.linalg.svd(matrix)
    expected = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(5, 3, 7, 2).transpose(2, 0, 1, 3)
    data = lab.images(5, 1, 5, 8, 8)
    assert lab.error(lab.conv(expected, 1, 5, 8, 8, **ATTRS), changed, data) <= 1e-5
    assert record.table[0]["error"] == pytest.approx(np.sqrt(np.square(s[rank:]).sum() / np.square(s).sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["tucker", "spatial-svd"])
def test_predicted_errors_are_those_of_the_outputs_and_inputs_help(lab: SimpleNamespace, name: str) -> None:
    graph = lab.conv(lab.normal(6, 8, 6, 3, 3), 2, 6, 12, 12, bias=False)
    data = lab.images(7, 2, 6, 12, 12, count=6)
    found = []
    for method in ("plain", "whitened"):
        changed, record = lab.run(graph, f"{name}{{ratio=0.4,method={method},skip_first=false}}", data)
        found.append(lab.error(graph, changed, data))
        assert found[-1] == pytest.approx(record.table[0]["error"], rel=1e-3)
    assert found[1] < 0.8 * found[0]


@pytest.mark.parametrize("name", ["tucker", "spatial-svd"])
def test_an_error_budget_is_kept(lab: SimpleNamespace, name: str) -> None:
    graph = lab.conv(lab.normal(8, 8, 6, 3, 3), 2, 6, 12, 12)
    data = lab.images(9, 2, 6, 12, 12)
    parameters = []
    for budget in (0.4, 0.2, 0.1):
        _, record = lab.run(graph, f"{name}{{error={budget},skip_first=false}}", data)
        assert record.table[0]["error"] <= budget
        parameters.append(record.table[0]["parameters"][1])
    assert parameters == sorted(parameters)
    assert parameters[0] < parameters[-1]


def test_kernels_along_one_dimension_are_no_candidates(lab: SimpleNamespace) -> None:
    for kernel, shape in (((3, 1), (8, 8)), ((3,), (8,)), ((2, 2, 2), (4, 4, 4))):
        graph = lab.conv(lab.normal(0, 4, 4, *kernel), 1, 4, *shape)
        changed, record = lab.run(graph, "spatial-svd{skip_first=false}")
        assert str(changed) == str(graph)
        text = " x ".join(map(str, kernel))
        assert record.table[0]["outcome"] == f"left alone: its kernel is {text}: both sizes must be above 1"


@pytest.mark.parametrize("name", ["tucker", "spatial-svd", "low-rank"])
@pytest.mark.parametrize("ratio", ["0.0", "1", "-1"])
def test_ratios_are_shares(name: str, ratio: str) -> None:
    with pytest.raises(PipelineError, match=r"ratio is .*: it is above 0 and below 1"):
        Pipeline.parse(f"{name}{{ratio={ratio}}}")
