"""Normalizations, Softmax and its kin: what TensorRT takes, and what is put instead computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planish.backends import backend
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.versions import version_of
from planish.ir.text import parse

from .trt_check import check, ops

RTX = version_of("rtx")


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def same(text: str, tolerance: float = 1e-4, **inputs: Any) -> dict[str, int]:
    """What is emitted builds, and computes what the reference does; the operators in it."""
    graph = parse(text)
    arrays = {v.name: np.asarray(inputs[v.name], v.dtype.numpy) for v in graph.inputs}
    return check(text, tolerance, expected=backend("reference").run(graph, arrays), **inputs)


def why_not(text: str) -> str:
    """Why the only node is not built as it stands."""
    return refusal(next(iter(parse(text).walk())), RTX)


# --- Softmax, LogSoftmax, Hardmax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_a_vector_becomes_a_row(op: str) -> None:
    found = same(f"g (float[5] x) => (float[5] y) {{ y = {op} <axis = 0> (x) }}", x=numbers(5))
    assert found == {"Unsqueeze": 1, op: 1, "Squeeze": 1}


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_every_axis_of_a_matrix_stays(op: str) -> None:
    for axis in (-3, -1, 0, 1):
        text = f"g (float[2,3,4] x) => (float[2,3,4] y) {{ y = {op} <axis = {axis}> (x) }}"
        assert same(text, x=numbers(2, 3, 4)) == {op: 1}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_hardmax_along_an_open_axis_compares_indices(axis: int) -> None:
    text = f"g (float[A,B,C] x) => (float[A,B,C] y) {{ y = Hardmax <axis = {axis}> (x) }}"
    x = np.round(numbers(3, 4, 5))  # with several maxima
    assert "Hardmax" not in same(text, x=x)


# --- LayerNormalization, RMSNormalization -----------------------------------------------------------------------------

LAYER = """
    g ({t}[B,3,4] x, {t}[{scale}] s, {t}[{scale}] b) => ({t}[B,3,4] y{more}) {{
      y{names} = LayerNormalization <axis = {axis}> (x, s, b) }}"""


@pytest.mark.parametrize(("axis", "scale"), [(-1, (4,)), (1, (3, 4)), (1, (4,)), (2, (1,))])
def test_layer_normalization_stays(axis: int, scale: tuple[int, ...]) -> None:
    text = LAYER.format(t="float", scale=",".join(map(str, scale)), axis=axis, more="", names="")
    assert same(text, x=numbers(2, 3, 4), s=numbers(*scale), b=numbers(*scale, seed=1)) == {"LayerNormalization": 1}


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_mean_and_deviation_are_computed_beside_it(axis: int, dtype: str) -> None:
    shape = (2, 3, 4)[axis:]
    more, scale = ", float[?,?,?] m, float[?,?,?] d", ",".join(map(str, shape))
    text = LAYER.format(t=dtype, scale=scale, axis=axis, more=more, names=", m, d").replace("B", "2")
    x = {"x": numbers(2, 3, 4), "s": numbers(*shape), "b": numbers(*shape, seed=1)}
    found = same(text, 1e-2 if dtype == "float16" else 1e-4, **x)
    assert found["LayerNormalization"] == 1


def test_results_that_nothing_uses_are_left_out() -> None:
    text = "g (float[B,4] x, float[4] s) => (float[B,4] y) { y, m, d = LayerNormalization (x, s) }"
    assert same(text, x=numbers(2, 4), s=numbers(4)) == {"LayerNormalization": 1}


def test_rms_normalization_of_two_types_is_computed_in_the_wider() -> None:
    for x, scale in (("float16", "float"), ("float", "float16")):
        text = f"""
            g ({x}[B,6] x, {scale}[6] s) => ({scale}[B,6] y) {{ y = RMSNormalization (x, s) }}"""
        assert "one type" in why_not(text)
        assert same(text, 1e-2, x=numbers(2, 6), s=numbers(6))["RMSNormalization"] == 1


# --- BatchNormalization -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 2, 4)])
def test_training_takes_mean_and_variance_of_the_batch(shape: tuple[int, ...]) -> None:
    dims = ",".join(["B", "3", *map(str, shape[2:])])
    text = f"""
        g (float[{dims}] x, float[3] s, float[3] b, float[3] m, float[3] v)
          => (float[{dims}] y, float[3] rm, float[3] rv) {{
          y, rm, rv = BatchNormalization <training_mode = 1, momentum = 0.7, epsilon = 0.01> (x, s, b, m, v) }}"""
    given = {name: numbers(3, seed=i) for i, name in enumerate("sbm")}
    found = same(text, x=numbers(*shape), **given, v=np.abs(numbers(3, seed=9)))
    assert found["BatchNormalization"] == 1


# --- GroupNormalization, InstanceNormalization ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    ("shape", "dims"), [((2, 4), "B,4"), ((2, 4, 1), "B,4,1"), ((1, 4, 1, 1), "B,4,1,1"), ((2, 4, 3), "B,C,3")]
)
def test_groups_of_any_size_are_normalized(shape: tuple[int, ...], dims: str, dtype: str) -> None:
    text = f"""
        g ({dtype}[{dims}] x, {dtype}[4] s, {dtype}[4] b) => ({dtype}[{dims}] y) {{
          y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, s, b) }}"""
    found = same(text, 2e-2 if dtype == "float16" else 1e-4, x=numbers(*shape), s=numbers(4), b=numbers(4, seed=1))
    assert ("GroupNormalization" in found) is (shape[-1] == 3)


def test_versions_without_groups_normalize_instances() -> None:
    text = """
        g (float[B,4,S] x, float[4] s, float[4] b) => (float[B,4,S] y) {
          y = GroupNormalization <num_groups = 2> (x, s, b) }"""
    graph = parse(text)
    lowered = backend("tensorrt:8.6").lower_and_stamp(graph).graph
    assert ops(lowered)["InstanceNormalization"] == 1
    x = {"x": numbers(2, 4, 5), "s": numbers(4), "b": numbers(4, seed=1)}
    expected = backend("reference").run(graph, x)["y"]
    np.testing.assert_allclose(backend("onnxruntime").run(lowered, x)["y"], expected, atol=1e-5)


def test_an_image_of_one_pixel_is_its_bias() -> None:
    text = """
        g (float[B,3,1,1] x, float[3] s, float[3] b) => (float[B,3,1,1] y) {
          y = InstanceNormalization (x, s, b) }"""
    assert "two pixels" in why_not(text)
    same(text, x=numbers(2, 3, 1, 1), s=numbers(3), b=numbers(3, seed=1))
    larger = text.replace("1,1", "1,2")
    assert same(larger, x=numbers(2, 3, 1, 2), s=numbers(3), b=numbers(3, seed=1)) == {"InstanceNormalization": 1}


# --- LRN, LpNormalization, MeanVarianceNormalization ------------------------------------------------------------------


def lrn(dims: str, attrs: str) -> str:
    return f"g (float[{dims}] x) => (float[{dims}] y) {{ y = LRN <alpha = 0.5, {attrs}> (x) }}"


def test_lrn_stays_within_limits() -> None:
    assert check(lrn("B,6,3,4", "size = 3"), x=numbers(2, 6, 3, 4)) == {"LRN": 1}


@pytest.mark.parametrize(
    ("size", "beta", "bias"), [(4, 0.75, 1.0), (17, 0.75, 1.0), (2, 0.5, 2.0), (3, 0.001, 1.0), (5, 0.75, 0.0)]
)
def test_lrn_beyond_them_is_a_mean_over_channels(size: int, beta: float, bias: float) -> None:
    x, before = numbers(2, 6, 3, 4), (size - 1) // 2
    sums = np.stack([(x[:, max(0, c - before) : c - before + size] ** 2).sum(1) for c in range(6)], 1)
    wanted = x / (bias + 0.5 / size * sums) ** beta
    text = lrn("B,6,3,4", f"size = {size}, beta = {beta}, bias = {bias}")
    assert check(text, 1e-4, expected={"y": wanted}, x=x)["AveragePool"] == 1


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 3), (2, 6, 2, 1, 3)])
def test_lrn_of_other_ranks_is_that_of_an_image(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    image = x.reshape(2, 6, -1, 1)
    wanted = backend("onnxruntime").run(parse(lrn(",".join(map(str, image.shape)), "size = 3")), {"x": image})["y"]
    check(lrn(",".join(map(str, shape)), "size = 3"), 1e-4, expected={"y": wanted.reshape(shape)}, x=x)


def test_lp_normalization_stays_along_every_axis() -> None:
    for axis, p in ((0, 1), (-1, 2), (1, 1)):
        text = f"g (float[A,B,C] x) => (float[A,B,C] y) {{ y = LpNormalization <axis = {axis}, p = {p}> (x) }}"
        assert check(text, x=numbers(2, 3, 4)) == {"LpNormalization": 1}


def test_mean_variance_normalization_of_halves_is_computed_in_float() -> None:
    text = "g (TYPE[B,3,S] x) => (TYPE[B,3,S] y) { y = MeanVarianceNormalization <axes = [0, 2]> (x) }"
    x = numbers(2, 3, 5)
    wanted = backend("onnxruntime").run(parse(text.replace("TYPE", "float")), {"x": x})["y"]
    assert check(text.replace("TYPE", "float"), x=x) == {"MeanVarianceNormalization": 1}
    found = check(text.replace("TYPE", "float16"), 1e-2, expected={"y": wanted}, x=x)
    assert found == {"Cast": 2, "MeanVarianceNormalization": 1}
