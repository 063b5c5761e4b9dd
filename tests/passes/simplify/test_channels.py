"""What is left of a change of layout: weights in another order, padding that pooling does, reductions in place."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends import backend
from planish.ir import Graph
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline


def operators(text: str, *arrays: np.ndarray, passes: str = "simplify") -> list[str]:
    """The operators after simplification, which must not change what ``arrays`` give."""
    graph, plain = parse(text), parse(text)
    Pipeline.parse(passes).run(graph, Context())
    verify(graph)
    for a, b in zip(run(graph, *arrays), run(plain, *arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return [node.op for node in graph.nodes]


def run(graph: Graph, *arrays: np.ndarray) -> list[np.ndarray]:
    return list(backend("reference").compile(graph)(*arrays))


def f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


WEIGHT = ", ".join(str(float(i)) for i in range(24))


@pytest.mark.parametrize("product", ["MatMul (r, w)", "Gemm <alpha = 0.5> (r, w)"])
def test_a_transpose_before_a_flattening_goes_into_the_weight(product):
    text = f"""
        g (float[B,3,2,2] x) => (float[B,2] y) <int64[2] flat = {{0, 12}}, float[12,2] w = {{{WEIGHT}}}> {{
          t = Transpose <perm = [0, 2, 3, 1]> (x) r = Reshape (t, flat) y = {product} }}"""
    assert operators(text, f32(5, 3, 2, 2)) == ["Reshape", product.split()[0]]


def test_a_transpose_before_a_flattening_goes_into_a_turned_weight():
    text = f"""
        g (float[B,3,2,2] x) => (float[B,2] y) <int64[2] flat = {{0, 12}}, float[2,12] w = {{{WEIGHT}}}> {{
          t = Transpose <perm = [0, 2, 3, 1]> (x) r = Reshape (t, flat) y = Gemm <transB = 1> (r, w) }}"""
    assert operators(text, f32(5, 3, 2, 2)) == ["Reshape", "Gemm"]


@pytest.mark.parametrize("perm", ["[1, 0, 2, 3]", "[2, 0, 3, 1]"])
def test_a_transpose_that_moves_rows_stays(perm):
    text = f"""
        g (float[3,3,2,2] x) => (float[S,2] y) <int64[2] flat = {{-1, 12}}, float[12,2] w = {{{WEIGHT}}}> {{
          t = Transpose <perm = {perm}> (x) r = Reshape (t, flat) y = MatMul (r, w) }}"""
    assert "Transpose" in operators(text, f32(3, 3, 2, 2))


def test_a_weight_that_is_no_constant_stays_as_it_is():
    text = """
        g (float[B,3,2,2] x, float[12,2] w) => (float[B,2] y) <int64[2] flat = {0, 12}> {
          t = Transpose <perm = [0, 2, 3, 1]> (x) r = Reshape (t, flat) y = MatMul (r, w) }"""
    assert operators(text, f32(5, 3, 2, 2), f32(12, 2)) == ["Transpose", "Reshape", "MatMul"]


POOLED = """
    g (float[B,3,5,5] x) => (float[B,3,H,W] y) <int64[8] around = {0, 0, 1, 1, 0, 0, 1, 1}, float zero = {0.0}> {
      %s p = Pad (a, around, zero) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p) }"""


@pytest.mark.parametrize("before", ["a = Relu (x)", "a = Sigmoid (x)"])
def test_zeros_around_what_is_not_negative_are_padding_of_a_max_pool(before):
    assert operators(POOLED % before, f32(2, 3, 5, 5)) == [before.split()[2], "MaxPool"]


def test_zeros_around_other_numbers_stay_and_name_their_axes():
    graph = parse(POOLED % "a = Neg (x)")
    Pipeline.parse("simplify").run(graph, Context())
    nodes = list(graph.nodes)
    assert [n.op for n in nodes] == ["Neg", "Pad", "MaxPool"]
    assert nodes[1].operands[3].const.numpy().tolist() == [0, 1, 2, 3]
    assert operators(POOLED % "a = Neg (x)", f32(2, 3, 5, 5)) == ["Neg", "Pad", "MaxPool"]


REDUCED = """
    g (float[B,3,5,4] x) => (float[B,3,1,1] y%s) <int64[2] axes = {2, 3}, int64[4] target = {0, 3, 1, 1}> {
      m = ReduceMean <keepdims = 0> (x, axes) y = Reshape (m, target) }"""


def test_dimensions_that_come_back_are_kept():
    assert operators(REDUCED % "", f32(2, 3, 5, 4)) == ["ReduceMean"]


def test_a_reduction_that_is_used_without_them_stays():
    assert operators(REDUCED % ", float[B,3] m", f32(2, 3, 5, 4)) == ["ReduceMean", "Reshape"]


def test_dimensions_that_come_back_elsewhere_are_not_the_same():
    text = """
        g (float[B,3,5,4] x) => (float[B,1,1,3] y) <int64[2] axes = {2, 3}, int64[4] target = {0, 1, 1, 3}> {
          m = ReduceMean <keepdims = 0> (x, axes) y = Reshape (m, target) }"""
    assert operators(text, f32(2, 3, 5, 4)) == ["ReduceMean", "Reshape"]


# columns of weights that change places

COLUMNS = "float[2,12] w = {" + ", ".join(str(float(i)) for i in range(24)) + "}"
UNFLATTENED = "r = Reshape (a, image) y = Transpose <perm = [0, 3, 1, 2]> (r)"


@pytest.mark.parametrize("between", ["Relu (m)", "Add (c, m)", "Mul (m, c)", "Clip (m, low, high)", "PRelu (m, c)"])
@pytest.mark.parametrize("product", ["MatMul (x, w)", "Gemm (x, w, c)"])
def test_a_transpose_after_an_unflattening_goes_into_the_weight(product, between):
    vector = ", ".join(str(0.5 * i) for i in range(12))
    text = f"""
        g (float[B,2] x) => (float[B,3,2,2] y) <
          {COLUMNS}, int64[4] image = {{0, 2, 2, 3}}, float[12] c = {{{vector}}},
          float low = {{-3.0}}, float high = {{4.0}}
        > {{ m = {product} a = {between} {UNFLATTENED} }}"""
    found = operators(text, f32(5, 2), passes="default")
    assert "Transpose" not in found
    assert found[-1] == "Reshape"


@pytest.mark.parametrize(
    ("between", "outputs"),
    [("Softmax <axis = -1> (m)", ""), ("Relu (m)", ", float[B,12] m"), ("Relu (m)", ", float[B,12] a")],
)
def test_a_transpose_of_what_depends_on_the_order_stays(between, outputs):
    text = f"""
        g (float[B,2] x) => (float[B,3,2,2] y{outputs}) <{COLUMNS}, int64[4] image = {{0, 2, 2, 3}}> {{
          m = MatMul (x, w) a = {between} {UNFLATTENED} }}"""
    assert "Transpose" in operators(text, f32(5, 2))


def test_a_transpose_of_rows_that_are_split_stays():
    text = f"""
        g (float[6,2] x) => (float[3,2,12] y) <{COLUMNS}, int64[3] image = {{2, 3, 12}}> {{
          m = MatMul (x, w) r = Reshape (m, image) y = Transpose <perm = [1, 0, 2]> (r) }}"""
    assert "Transpose" in operators(text, f32(6, 2))


# products whose operands are transposed

PRODUCT = "float[B,S,2,4] q, float[B,T,2,4] k"
TURNED = """
  a = Transpose <perm = [0, 2, 1, 3]> (k) b = Transpose <perm = [0, 2, 3, 1]> (q)
  c = MatMul (a, b) y = Transpose <perm = [0, 1, 3, 2]> (c)"""


def test_a_product_that_is_turned_is_the_one_of_its_operands_in_reverse():
    found = operators(f"g ({PRODUCT}) => (float[B,2,S,T] y) {{ {TURNED} }}", f32(3, 5, 2, 4), f32(3, 6, 2, 4))
    assert sorted(found) == ["MatMul", "Transpose", "Transpose"]


@pytest.mark.parametrize("output", ["float[B,2,T,S] c", "float[B,2,T,4] a"])
def test_a_product_that_is_used_as_it_is_stays(output):
    found = operators(f"g ({PRODUCT}) => (float[B,2,S,T] y, {output}) {{ {TURNED} }}", f32(3, 5, 2, 4), f32(3, 6, 2, 4))
    assert sorted(found) == ["MatMul", "Transpose", "Transpose", "Transpose"]


def test_reshapings_with_a_cast_between_them():
    text = """
        g (float[B,4,6] x) => (float16[B,4,6] y) <int64[4] split = {0, 2, 2, 6}, int64[3] whole = {0, 4, 6}> {
          a = Reshape (x, split) b = Cast <to = 10> (a) y = Reshape (b, whole) }"""
    assert operators(text, f32(3, 4, 6)) == ["Cast"]
