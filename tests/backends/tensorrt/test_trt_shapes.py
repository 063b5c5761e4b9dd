"""Operators on shapes: what is legal, and the forms of what is not."""

from __future__ import annotations

import numpy as np
import pytest

from .trt_check import check, refusals

X = np.arange(30, dtype=np.float32).reshape(5, 6)


def test_slices_by_int32_become_slices_by_int64() -> None:
    found = check("g (float[5,6] x, int32[1] a, int32[1] s) => (y) { y = Slice (x, a, s, a, s) }", x=X, a=[1], s=[2])
    assert found["Slice"] == 1


def test_bounds_that_are_constants_are_converted() -> None:
    text = "g (float[5,6] x) => (y) <int32[1] a = {1}, int32[1] b = {3}> { y = Slice (x, a, b, a) }"
    assert check(text, x=X) == {"Slice": 1}


def test_a_slice_along_the_first_axes_names_them() -> None:
    text = "g (float[5,6] x) => (y) <int64[1] a = {1}, int64[1] b = {-1}> { y = Slice (x, a, b) }"
    assert check(text, x=X) == {"Slice": 1}


def test_a_backward_slice_with_bounds_that_are_computed() -> None:
    text = "g (float[5,n] x, int64[1] a, int64[1] b) => (y) <int64[1] back = {-2}, int64[1] one = {1}>"
    assert check(text + " { y = Slice (x, a, b, one, back) }", x=X, a=[100], b=[0])["Slice"] == 1


def test_a_split_into_too_many_parts_is_refused() -> None:
    assert "last part" in refusals("g (float[5,6] x) => (a, b, c, d) { a, b, c, d = Split <num_outputs = 4> (x) }")


def test_squeeze_by_axes_that_are_computed_is_a_reshape_where_the_result_is_stated() -> None:
    text = "g (float[1,5,6] x, int64[1] axes) => (float[5,6] y) { y = Squeeze (x, axes) }"
    assert check(text, x=X[None], axes=[0]) == {"Reshape": 1}


@pytest.mark.parametrize("axes", [(0, -1), (1, 2), (-1, -2), (3, 0)])
def test_unsqueeze_by_axes_that_are_computed(axes: tuple[int, int]) -> None:
    found = check("g (float[m,n] x, int64[2] axes) => (y) { y = Unsqueeze (x, axes) }", x=X, axes=axes)
    assert found["Unsqueeze"] == 0 and found["Reshape"] == 1


def test_a_squeeze_of_whatever_is_1_needs_known_sizes() -> None:
    assert check("g (float[1,5,6] x) => (y) { y = Squeeze (x) }", x=X[None])
    assert "axes must be given" in refusals("g (float[1,n,6] x) => (y) { y = Squeeze (x) }")


def test_the_rank_of_a_result_is_stated_where_its_type_tells_it() -> None:
    assert check("g (float[5,6] x, int64[n] s) => (float[a,b] y) { y = Reshape (x, s) }", x=X, s=[6, 5])["Reshape"] == 2
    assert check("g (float[5,6] x, int64[n] s) => (y) { y = Tile (x, s) }", x=X, s=[1, 2])["Tile"] == 1
    assert "rank of its result" in refusals("g (float[5,6] x, int64[n] s) => (y) { y = Reshape (x, s) }")


def test_a_range_of_floats_has_as_many_as_the_graph_states() -> None:
    text = "g (float a, float b, float d) => (float{} y) {{ y = Range (a, b, d) }}"
    scalars = {"a": np.float32(1), "b": np.float32(5), "d": np.float32(1.5)}
    assert check(text.format("[3]"), **scalars)["Range"] == 0
    assert "float, no integer" in refusals(text.format("[n]"))


def test_reverse_sequence_of_bfloat16_needs_a_wider_type_for_the_parsers_opset() -> None:
    text = """g (float[3,2] x, int64[2] n) => (y)
      { b = Cast <to = 16> (x) r = ReverseSequence (b, n) y = Cast <to = 1> (r) }"""
    assert check(text, engine="reference", x=X[:3, :2], n=[2, 3])["ReverseSequence"] == 1


# --- what decides shapes ---------------------------------------------------------------------------------------------


def test_shapes_follow_from_shapes_and_integers_by_arithmetic_and_floats_between() -> None:
    text = """
      g (float[m,n] x, int64[3] lengths) => (y, z)
        <float half = {0.5}, int64 zero = {0}, int64 one = {1}, int64[1] first = {0}> {
        s = Shape (x)  f = Cast <to = 1> (s)  h = Mul (f, half)  c = Ceil (h)  t = Cast <to = 7> (c)
        y = ConstantOfShape (t)
        most = ReduceMax <keepdims = 0> (lengths)  z = Range (zero, most, one) }"""
    assert check(text, x=X, lengths=[2, 4, 1])


def test_no_shape_follows_from_elements_that_are_floats() -> None:
    text = """g (float[4] x) => (y) <int64 zero = {0}, int64 one = {1}>
      { m = ReduceMax <keepdims = 0> (x)  n = Cast <to = 7> (m)  y = Range (zero, n, one) }"""
    assert "a size depends on the elements of %x, which is float" in refusals(text)


def test_a_position_that_is_found_may_be_a_size() -> None:
    text = """g (float[2,4] x) => (y) <int64 zero = {0}, int64 one = {1}>
      { m = ArgMax <keepdims = 0, axis = 1> (x)  n = Gather (m, zero)  y = Range (zero, n, one) }"""
    assert check(text, x=X[:2, :4])


def test_no_shape_follows_from_what_an_if_gives() -> None:
    text = """g (bool c, float[5,6] x) => (y) <int64[2] s = {6, 5}, int64[2] t = {5, 6}> {
      v = If <then_branch = a () => (int64[2] p) { p = Add (s, s) }, else_branch = b () => (int64[2] q)
      { q = Add (t, t) }> (c)  y = ConstantOfShape (v) }"""
    assert "the result of an If" in refusals(text)


def test_nine_dimensions_are_too_many() -> None:
    text = "g (float[5,6] x) => (y) <int64[9] s = {5, 6, 1, 1, 1, 1, 1, 1, 1}> { y = Reshape (x, s) }"
    assert "9 dimensions" in refusals(text)


def test_older_versions_want_more_to_be_constant() -> None:
    text = "g (float[5,6] x, int64[1] a) => (y) { y = Slice (x, a, a, a) }"
    assert "axes must be constants" in refusals(text, "tensorrt:8.6")
    text = "g (float[5,n] x, int64[1] k) => (v, i) { v, i = TopK (x, k) }"
    assert "a constant number of floats" in refusals(text, "tensorrt:8.5")
    assert "matrices only" in refusals("g (float[2,5,6] x) => (y) { y = Trilu (x) }", "tensorrt:8.5")
    assert "known sizes only" in refusals(
        "g (float[n,2] x, int64[2] l) => (y) { y = ReverseSequence (x, l) }", "tensorrt:8.5"
    )
