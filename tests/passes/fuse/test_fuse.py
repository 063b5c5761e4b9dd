"""Fusion before and after: what becomes of a site, and why another one stays as it is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from planish.backends import backend
from planish.explanation import explain
from planish.ir import Graph
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline

SIZES = "float[B,2,S,8] q, float[B,2,8,T] k, float[B,2,T,8] v"


def fused(text: str) -> Graph:
    graph = parse(text)
    ctx = Context()
    Pipeline.parse("default").run(graph, ctx)
    assert not any(r.problem for r in ctx.results)
    verify(graph)
    return graph


def operators(text: str) -> list[str]:
    return [n.op for n in fused(text).nodes]


def reasons(text: str, rule: str) -> list[str]:
    return [m.reason for m in explain(parse(text), rule=rule).misses]


# what is no attention, and why

REFUSED = {
    "the attention weights are an output of the model": f"""
        g ({SIZES}) => (float[B,2,S,8] y, float[B,2,S,T] w) {{
          a = MatMul (q, k) w = Softmax <axis = -1> (a) y = MatMul (w, v) }}""",
    "the attention scores are an output of the model": f"""
        g ({SIZES}) => (float[B,2,S,8] y, float[B,2,S,T] a) {{
          a = MatMul (q, k) w = Softmax <axis = -1> (a) y = MatMul (w, v) }}""",
    "the attention weights are also used by ReduceSum": f"""
        g ({SIZES}) => (float[B,2,S,8] y, float z) {{
          a = MatMul (q, k) w = Softmax <axis = -1> (a) y = MatMul (w, v) z = ReduceSum <keepdims = 0> (w) }}""",
    "the attention weights pass through Sqrt": f"""
        g ({SIZES}) => (float[B,2,S,8] y) {{
          a = MatMul (q, k) w = Softmax <axis = -1> (a) r = Sqrt (w) y = MatMul (r, v) }}""",
    "the scores pass through Relu, which attention does not have": f"""
        g ({SIZES}) => (float[B,2,S,8] y) {{
          a = MatMul (q, k) r = Relu (a) w = Softmax <axis = -1> (r) y = MatMul (w, v) }}""",
    "the scores are multiplied by another matrix": f"""
        g ({SIZES}, float[B,2,S,T] m) => (float[B,2,S,8] y) {{
          a = MatMul (q, k) b = Mul (a, m) w = Softmax <axis = -1> (b) y = MatMul (w, v) }}""",
    "a bias is added before the scores are capped": f"""
        g ({SIZES}, float[S,T] m) => (float[B,2,S,8] y) {{
          a = MatMul (q, k) b = Add (a, m) c = Tanh (b) w = Softmax <axis = -1> (c) y = MatMul (w, v) }}""",
    "the scores are no product of queries and keys": """
        g (float[B,S,S] x, float[B,S,8] v) => (float[B,S,8] y) {
          w = Softmax <axis = -1> (x) y = MatMul (w, v) }""",
    "the scores are joined of several parts": """
        g (float[B,S,8] q, float[B,8,5] k, float[B,8,3] l, float[B,8,8] v) => (float[B,S,8] y) {
          a = MatMul (q, k) b = MatMul (q, l) c = Concat <axis = -1> (a, b)
          w = Softmax <axis = -1> (c) y = MatMul (w, v) }""",
    "the weight of a key is left out": """
        g (float[B,S,8] q, float[B,8,5] k, float[B,4,8] v) => (float[B,S,8] y) <
          int64[1] zero = {0}, int64[1] four = {4}, int64[1] last = {-1} > {
          a = MatMul (q, k) w = Softmax <axis = -1> (a) p = Slice (w, zero, four, last) y = MatMul (p, v) }""",
    "weights are set to 0 under a mask that the scores do not have": f"""
        g ({SIZES}, bool[S,T] keep) => (float[B,2,S,8] y) <float none = {{0.0}}> {{
          a = MatMul (q, k) w = Softmax <axis = -1> (a) p = Where (keep, w, none) y = MatMul (p, v) }}""",
    "weights are set to 0 under some masks, and not under others": f"""
        g ({SIZES}, bool[S,T] keep, bool[S,T] more) => (float[B,2,S,8] y) <
          float low = {{-1e9}}, float none = {{0.0}}> {{
          a = MatMul (q, k) b = Where (more, a, low) c = Where (keep, b, low)
          w = Softmax <axis = -1> (c) p = Where (keep, w, none) y = MatMul (p, v) }}""",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_stays_is_explained(reason: str) -> None:
    text = REFUSED[reason]
    assert "Attention" not in operators(text)
    assert reason in reasons(text, "attention")


def test_linear_attention_is_no_attention() -> None:
    text = """
        g (float[B,S,8] q, float[B,T,8] k, float[B,T,8] v) => (float[B,S,8] y) {
          a = Softmax <axis = -1> (q) b = Softmax <axis = 1> (k) c = Transpose <perm = [0, 2, 1]> (b)
          d = MatMul (c, v) y = MatMul (a, d) }"""
    assert Counter(operators(text))["MatMul"] == 2
    assert reasons(text, "attention") == ["the scores are no product of queries and keys"]


def test_a_softmax_along_another_axis_is_none() -> None:
    text = f"g ({SIZES}) => (float[B,2,S,8] y) {{ a = MatMul (q, k) w = Softmax <axis = 2> (a) y = MatMul (w, v) }}"
    assert operators(text) == ["MatMul", "Softmax", "MatMul"]


def test_a_router_is_no_near_miss() -> None:
    text = """
        g (float[S,8] x, float[8,4] r, float[2,8] e) => (float[S,8] y) <int64[1] two = {2}> {
          a = MatMul (x, r) v, i = TopK <axis = -1> (a, two) w = Softmax <axis = -1> (v) y = MatMul (w, e) }"""
    assert reasons(text, "attention") == ["the scores pass through TopK, which attention does not have"]


# rows that are masked as a whole


@pytest.mark.parametrize(
    ("masked", "cleared"),
    [
        ("b = Where (keep, a, low)", ""),
        ("l = Add (a, low) b = Where (keep, a, l)", ""),
        ("b = Where (keep, a, low)", "p = Where (keep, w, none)"),
    ],
)
def test_queries_that_see_no_key(masked: str, cleared: str) -> None:
    """The mean of all values, or 0 where the weights are set to 0 behind the softmax."""
    weights = "p" if cleared else "w"
    text = f"""
        g (float[2,2,3,8] q, float[2,2,8,5] k, float[2,2,5,8] v, bool[3,5] keep) => (float[2,2,3,8] y) <
          float low = {{-1e9}}, float none = {{0.0}}> {{
          a = MatMul (q, k) {masked} w = Softmax <axis = -1> (b) {cleared} y = MatMul ({weights}, v) }}"""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((2, 2, 3, 8), (2, 2, 8, 5), (2, 2, 5, 8))]
    keep = rng.random((3, 5)) < 0.5
    keep[1] = False
    graph = fused(text)
    assert "Attention" in [n.op for n in graph.nodes]
    for engine in ("reference", "onnxruntime"):
        (wanted,) = backend(engine).compile(parse(text))(*arrays, keep)
        (found,) = backend(engine).compile(graph)(*arrays, keep)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert (not wanted[:, :, 1].any()) == bool(cleared)


# attention in full


def test_a_decoder_layer_is_two_nodes() -> None:
    """Rotated queries and keys, shared heads, a cache, a mask: all that is left beside projections."""
    graph = fused("""
        g (float[B,S,32] q, float[B,S,16] k, float[B,S,16] v, float[B,2,P,8] pk, float[B,2,P,8] pv,
           float[S,4] angle, bool[B,1,S,T] keep) =>
          (float[B,S,32] y, float[B,2,T,8] nk, float[B,2,T,8] nv) <
          int64[4] four = {0, 0, 4, 8}, int64[4] two = {0, 0, 2, 8}, int64[3] rows = {0, 0, 32},
          int64[1] begin = {0}, int64[1] half = {4}, int64[1] end = {8}, int64[1] last = {-1}, int64[1] second = {2},
          int64[5] twice = {1, 1, 2, 1, 1}, int64[4] merged = {0, 4, -1, 8}, float scale = {2.828427},
          float low = {-3.4028235e38}
        > {
          q1 = Reshape (q, four) q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
          k1 = Reshape (k, two) k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
          v1 = Reshape (v, two) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
          both = Concat <axis = -1> (angle, angle) cos = Cos (both) sin = Sin (both)
          qa = Slice (q2, begin, half, last) qb = Slice (q2, half, end, last) qn = Neg (qb)
          qt = Concat <axis = -1> (qn, qa) qc = Mul (q2, cos) qs = Mul (qt, sin) q3 = Add (qc, qs)
          ka = Slice (k2, begin, half, last) kb = Slice (k2, half, end, last) kn = Neg (kb)
          kt = Concat <axis = -1> (kn, ka) kc = Mul (k2, cos) ks = Mul (kt, sin) k3 = Add (kc, ks)
          nk = Concat <axis = 2> (pk, k3) nv = Concat <axis = 2> (pv, v2)
          k4 = Unsqueeze (nk, second) k5 = Expand (k4, twice) k6 = Reshape (k5, merged)
          v4 = Unsqueeze (nv, second) v5 = Expand (v4, twice) v6 = Reshape (v5, merged)
          k7 = Transpose <perm = [0, 1, 3, 2]> (k6) a = MatMul (q3, k7) b = Div (a, scale)
          c = Where (keep, b, low) w = Softmax <axis = -1> (c) o = MatMul (w, v6)
          o1 = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (o1, rows) }""")
    found = Counter(n.op for n in graph.nodes)
    assert found["RotaryEmbedding"] == 2
    assert found["Attention"] == 1
    assert not {"Transpose", "MatMul", "Softmax", "Slice", "Neg", "Div"} & found.keys()
    (site,) = (n for n in graph.nodes if n.op == "Attention")
    assert (site.attrs["q_num_heads"], site.attrs["kv_num_heads"]) == (4, 2)
    assert [r.name for r in site.results] == ["y", "nk", "nv"]
    assert site.operands[4:] == (graph.inputs[3], graph.inputs[4])


def test_a_cache_that_is_used_too_early_stays_outside() -> None:
    text = """
        g (float[B,2,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[B,2,P,8] pk, float[B,2,P,8] pv) =>
          (float[B,2,S,8] y, float[B,2,T,8] nk, float[B,2,T,8] nv) {
          nk = Concat <axis = 2> (pk, k) nv = Concat <axis = 2> (pv, v)
          late = Relu (nk) s = ReduceMax <keepdims = 0> (late) r = Mul (q, s)
          y = Attention (r, nk, nv) }"""
    assert Counter(operators(text))["Concat"] == 2
    assert reasons(text, "attention-with-cache") == ["an operand is defined only after a use of what is replaced"]


# normalizations, activations, rotary embeddings

NORMAL = """
    g (float[B,S,8] x) => (float[B,S,8] y) <
      float[8] w = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}}, int64[1] axis = {{{axis}}}, float two = {{2.0}},
      float eps = {{0.00001}}
    > {{
      m = ReduceMean <keepdims = 1> (x, axis) d = Sub (x, m) s = Pow (d, two)
      v = ReduceMean <keepdims = 1> (s, axis) e = Add (v, eps) r = Sqrt (e) n = Div (d, r) y = Mul (n, w) }}"""


def test_layer_normalization_takes_its_scale() -> None:
    assert operators(NORMAL.format(axis=-1)) == ["LayerNormalization"]


def test_over_another_axis_it_is_none() -> None:
    assert "LayerNormalization" not in operators(NORMAL.format(axis=1))


def test_a_number_goes_into_the_scale() -> None:
    graph = fused("""
        g (float[B,S,2] x) => (float[B,S,2] y) <float[2] w = {1.0, 2.0}, float half = {0.5}> {
          n = RMSNormalization (x, w) y = Mul (n, half) }""")
    (node,) = graph.nodes
    assert node.operands[1] is not None and node.operands[1].const is not None
    assert node.operands[1].const.numpy().tolist() == [0.5, 1.0]


def test_tables_that_differ_within_a_pair() -> None:
    text = """
        g (float[B,2,S,4] x, float[S,4] cos, float[S,4] sin) => (float[B,2,S,4] y) <
          int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] last = {-1} > {
          a = Slice (x, zero, two, last) b = Slice (x, two, four, last) n = Neg (b)
          t = Concat <axis = -1> (n, a) p = Mul (x, cos) q = Mul (t, sin) y = Add (p, q) }"""
    assert "RotaryEmbedding" not in operators(text)
    assert reasons(text, "rotary-embedding") == ["the tables may differ within a pair"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Sigmoid (x) y = Mul (s, x)", ["Swish"]),
        ("e = Exp (x) p = Add (e, one) l = Log (p) t = Tanh (l) y = Mul (x, t)", ["Mish"]),
        ("d = Div (x, root) e = Erf (d) p = Add (one, e) h = Mul (half, p) y = Mul (h, x)", ["Gelu"]),
        ("a = Add (x, three) c = Clip (a, zero, six) h = Div (c, six) y = Mul (h, x)", ["HardSwish"]),
        ("d = Div (x, three) e = Erf (d) p = Add (one, e) h = Mul (half, p) y = Mul (h, x)", None),  # another root
        ("a = Add (x, three) c = Clip (a, zero, three) h = Div (c, six) y = Mul (h, x)", None),  # another limit
    ],
)
def test_activations(body: str, expected: list[str] | None) -> None:
    found = operators(f"""
        g (float[N,8] x) => (float[N,8] y) <
          float one = {{1.0}}, float half = {{0.5}}, float root = {{1.41421356}}, float three = {{3.0}},
          float zero = {{0.0}}, float six = {{6.0}} > {{ {body} }}""")
    assert found == expected if expected else not {"Gelu", "HardSwish", "Swish", "Mish"} & set(found)
