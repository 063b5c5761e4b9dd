"""Gathering and scattering: the values of every form, with indices from the end and indices that meet."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends import backend
from planish.ir.text import parse

from .trt_check import check, ops, refusals

rng = np.random.default_rng(0)
X = rng.standard_normal((4, 5)).astype(np.float32)
REDUCTIONS = ("add", "mul", "max", "min")
TYPES = {"float": np.float32, "int64": np.int64, "int32": np.int32}


def test_gather_and_gather_elements_count_from_the_end_themselves() -> None:
    assert check("g (float[4,5] x, int64[3] i) => (y) { y = Gather (x, i) }", x=X, i=[0, -1, 2]) == {"Gather": 1}
    index = rng.integers(-5, 5, (4, 3))
    text = "g (float[m,n] x, int64[m,3] i) => (y) { y = GatherElements <axis = 1> (x, i) }"
    assert check(text, x=X, i=index) == {"GatherElements": 1}


def test_what_is_from_0_on_anyway_is_not_changed() -> None:
    text = """g (float[4,5] x, float[4,3] u) => (y) <int64[1] k = {3}>
      { v, i = TopK <axis = 1> (x, k)  y = ScatterElements <axis = 1> (x, i, u) }"""
    assert check(text, x=X, u=X[:, :3]) == {"TopK": 1, "ScatterElements": 1}


@pytest.mark.parametrize("batch", [0, 1])
def test_slices_are_gathered_from_the_end_too(batch: int) -> None:
    x, index = rng.standard_normal((2, 3, 4)).astype(np.float32), rng.integers(-2, 2, (2, 3, 2))
    text = f"g (float[a,b,c] x, int64[a,3,2] i) => (y) {{ y = GatherND <batch_dims = {batch}> (x, i) }}"
    assert check(text, x=x, i=index)["Where"] == 1


def test_indices_whose_last_dimension_is_unknown_are_refused() -> None:
    assert "last dimension" in refusals("g (float[4,5] x, int64[2,n] i) => (y) { y = GatherND (x, i) }")


# --- scattering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", TYPES)
def test_elements_that_meet_are_reduced(reduction: str, kind: str) -> None:
    x, updates = (rng.integers(-4, 5, shape).astype(TYPES[kind]) for shape in ((4, 5), (3, 7)))
    index = rng.integers(-4, 4, (3, 4))[:, :4]
    text = f"""g ({kind}[4,5] x, int64[3,4] i, {kind}[3,4] u) => (y)
      {{ y = ScatterElements <axis = 0, reduction = "{reduction}"> (x, i, u) }}"""
    assert check(text, x=x, i=index, u=updates[:, :4])["ScatterElements"] == 0


def test_elements_are_reduced_along_an_axis_of_unknown_size() -> None:
    index, updates = rng.integers(-5, 5, (4, 9)), rng.standard_normal((4, 9)).astype(np.float32)
    text = """g (float[m,n] x, int64[m,9] i, float[m,9] u) => (y)
      { y = ScatterElements <axis = -1, reduction = "add"> (x, i, u) }"""
    assert check(text, x=X, i=index, u=updates)["ReduceSum"] == 1


def test_constant_indices_that_differ_are_gathered_and_scattered() -> None:
    text = """g (float[4,5] x, float[2,5] u) => (y) <int64[2,1] i = {-1, 0}>
      { y = ScatterND <reduction = "mul"> (x, i, u) }"""
    assert check(text, x=X, u=X[:2]) == {"GatherND": 1, "Mul": 1, "ScatterND": 1}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", ["4,5,3", "a,b,c"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_slices_that_meet_are_reduced(reduction: str, sizes: str, depth: int) -> None:
    x = rng.standard_normal((4, 5, 3)).astype(np.float32)
    index = rng.integers(-3, 3, (2, 4, depth))
    updates = rng.standard_normal((2, 4, *x.shape[depth:])).astype(np.float32)
    shape = ",".join(["2", "4", *sizes.split(",")[depth:]])
    text = f"""g (float[{sizes}] x, int64[2,4,{depth}] i, float[{shape}] u) => (y)
      {{ y = ScatterND <reduction = "{reduction}"> (x, i, u) }}"""
    assert check(text, x=x, i=index, u=updates)["ScatterND"] == 0


def test_infinities_do_not_spoil_other_elements() -> None:
    updates = np.array([np.inf, 1, 2], np.float32)
    text = """g (float[4] x, int64[3,1] i, float[3] u) => (y) { y = ScatterND <reduction = "add"> (x, i, u) }"""
    check(text, x=X[0, :4], i=[[0], [1], [1]], u=updates)


def test_many_updates_are_made_one_after_the_other() -> None:
    x, index = rng.standard_normal((300, 64)).astype(np.float32), rng.integers(-300, 300, (4000, 1))
    updates = rng.standard_normal((4000, 64)).astype(np.float32)
    text = """g (float[300,64] x, int64[4000,1] i, float[4000,64] u) => (y)
      { y = ScatterND <reduction = "add"> (x, i, u) }"""
    expected = x.copy()
    np.add.at(expected, index[:, 0], updates)
    found = check(text, 1e-3, expected={"y": expected}, x=x, i=index, u=updates)
    assert found["Loop"] == 1 and found["ScatterND"] == 1


def test_scattering_without_reduction_only_wraps_its_indices() -> None:
    text = "g (float[n,5] x, int64[2,1] i, float[2,5] u) => (y) { y = ScatterND (x, i, u) }"
    assert check(text, x=X, i=[[-1], [1]], u=X[:2])["ScatterND"] == 1


def test_tensorrt_10_reduces_elements_itself() -> None:
    text = """g (float[4,5] x, float[2,5] u) => (y) <int64[2,5] i = {0, 1, 2, 3, 0, 0, 0, 0, 0, 0}>
      { y = ScatterElements <reduction = "add"> (x, i, u) }"""
    assert ops(backend("tensorrt:10").lower_and_stamp(parse(text)).graph) == {"ScatterElements": 1}


# --- selecting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot_counts_from_the_end_and_ignores_what_is_out_of_range(axis: int) -> None:
    text = f"""g (int64[2,3] i, int64 depth) => (y) <float[2] v = {{0.5, 2.0}}>
      {{ y = OneHot <axis = {axis}> (i, depth, v) }}"""
    check(text, i=[[0, -1, 3], [4, -4, -5]], depth=np.int64(4))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_one_hot_of_small_integers(dtype: str) -> None:
    text = f"g ({dtype}[3] i) => (y) <int64 d = {{3}}, float[2] v = {{0.5, 2.0}}> {{ y = OneHot (i, d, v) }}"
    check(text, engine="reference", i=np.array([0, 2, 5], dtype))


def test_one_hot_takes_a_depth_that_the_graph_states() -> None:
    text = """g (int64[2] i, float depth, float[2] v) => (float[2,SIZE] y) { y = OneHot (i, depth, v) }"""
    check(text.replace("SIZE", "4"), i=[1, -2], depth=np.float32(4), v=np.array([0, 1], np.float32))
    assert "known only when it runs" in refusals(text.replace("SIZE", "n"))


@pytest.mark.parametrize("largest", [0, 1])
def test_many_elements_are_selected_in_rounds(largest: int) -> None:
    x = rng.permutation(9000).astype(np.float32).reshape(1, 9000)
    x[0, :3] = -np.inf if largest else np.inf
    text = f"""g (float[1,9000] x) => (v, i) <int64[1] k = {{8000}}>
      {{ v, i = TopK <largest = {largest}> (x, k) }}"""
    assert check(text, x=x)["TopK"] == 3


def test_the_number_of_elements_to_select_is_a_single_number() -> None:
    text = "g (float[4,5] x, int64[n] k) => (v, i) { v, i = TopK (x, k) }"
    assert check(text, x=X, k=[2])["Reshape"] == 1


def test_compress_by_a_constant_condition_gathers() -> None:
    text = "g (float[4,5] x) => (y) <bool[3] c = {1, 0, 1}> { y = Compress <axis = -1> (x, c) }"
    assert check(text, x=X) == {"Gather": 1}


def test_what_is_not_zero_is_selected_where_the_graph_states_how_much_that_is() -> None:
    x = np.array([[0, 1, 2], [3, 0, 0]], np.float32)
    text = "g (float[2,3] x) => (int64[2,SIZE] y) { y = NonZero (x) }"
    check(text.replace("SIZE", "3"), x=x)
    check("g (float[4,5] x, bool[4] c) => (float[2,5] y) { y = Compress <axis = 0> (x, c) }", x=X, c=[True, False] * 2)
    assert "no such operator" in refusals(text.replace("SIZE", "n"))


@pytest.mark.parametrize("attrs", ["", "<sorted = 0>", "<axis = 0>", "<axis = -1, sorted = 0>"])
def test_elements_that_differ_are_found_by_comparison(attrs: str) -> None:
    x = rng.integers(0, 2, (6, 3)).astype(np.float32)
    text = f"g (float[m,3] x) => (y, i, j, n) {{ y, i, j, n = Unique {attrs} (x) }}"
    graph = parse(text)
    lowered = backend("tensorrt:10").lower_and_stamp(graph).graph
    assert "Unique" not in ops(lowered)
    for name, value in backend("onnxruntime").run(graph, {"x": x}).items():
        np.testing.assert_array_equal(backend("onnxruntime").run(lowered, {"x": x})[name], value)
    count = len(np.unique(x.ravel() if "axis" not in attrs else x if "0" in attrs[8:9] else x.T, axis=0))
    axis = 1 if "-1" in attrs else 0
    sizes = ["6", "3"] if "axis" in attrs else [""]
    sizes[axis] = str(count)
    stated = text.replace("=> (y,", f"=> (float[{','.join(sizes)}] y,")
    assert check(stated, x=x)["Unique"] == 0
    assert "no such operator" in refusals(text)
