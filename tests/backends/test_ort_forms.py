"""The forms of fused operators that ONNX Runtime gets: what is chosen, and that it computes the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from planish.backends import backend
from planish.backends.onnxruntime import OnnxRuntime
from planish.ir import Graph
from planish.ir.text import parse
from planish.models import save_for

ORT = OnnxRuntime()
LOWEST = float(np.finfo(np.float32).min)


def lowered(text: str) -> tuple[Graph, Counter[str]]:
    graph = ORT.lower(parse(text))
    assert all(any(r.is_used for r in n.results) for n in graph.walk()), str(graph)  # nothing dead is written
    return graph, Counter(n.op for n in graph.nodes)


def check(text: str, **inputs: np.ndarray) -> None:
    """ONNX Runtime computes what the reference does."""
    graph = parse(text)
    expected = backend("reference").compile(graph)(inputs)
    found = ORT.compile(graph)(inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def rows(mask: str = "", operand: str = "", attrs: str = "", length: str = "S") -> str:
    given = f", {mask} m" if mask else ""
    return f"""
        g (float[B,{length},16] q, float[B,{length},8] k, float[B,{length},8] v{given}) => (float[B,{length},16] y) {{
          y = Attention <q_num_heads = 4, kv_num_heads = 2{attrs}> (q, k, v{operand}) }}"""


def test_attention_stays_on_rows() -> None:
    _, found = lowered(rows())
    assert found == {"Attention": 1}
    check(rows(), q=random(2, 5, 16), k=random(2, 5, 8), v=random(2, 5, 8))


def test_rows_that_are_masked_as_a_whole() -> None:
    """The kernel gives 0 for a row of lowest numbers, the standard the mean: so the number is another one."""
    text = """
        g (float[B,S,16] q, float[B,S,8] k, float[B,S,8] v, bool[B,1,S,S] keep) => (float[B,S,16] y) <
          float none = {0.0}, float low = {-3.4028235e38} > {
          m = Where (keep, none, low)
          y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, m) }"""
    _, found = lowered(text)
    assert (found["Where"], found["Equal"]) == (1, 0)  # it is another one in the constant
    keep = np.tril(np.ones((2, 1, 5, 5), bool))
    keep[1, :, 2] = False
    check(text, q=random(2, 5, 16), k=random(2, 5, 8), v=random(2, 5, 8), keep=keep)


def test_a_mask_that_is_an_input() -> None:
    text = rows("float[B,1,S,S]", ", m")
    mask = np.where(np.tril(np.ones((2, 1, 5, 5), bool)), 0, LOWEST).astype(np.float32)
    mask[0, :, 3] = LOWEST
    check(text, q=random(2, 5, 16), k=random(2, 5, 8), v=random(2, 5, 8), m=mask)


def test_a_mask_that_is_clipped_to_the_lowest_number() -> None:
    text = """
        g (float[B,S,16] q, float[B,S,8] k, float[B,S,8] v, float[B,1,S,S] m) => (float[B,S,16] y) <
          float low = {-3.4028235e38}, float high = {3.4028235e38} > {
          clipped = Clip (m, low, high)
          y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, clipped) }"""
    mask = np.where(np.tril(np.ones((2, 1, 5, 5), bool)), 0, -np.inf).astype(np.float32)
    mask[1, :, 2] = -np.inf
    check(text, q=random(2, 5, 16), k=random(2, 5, 8), v=random(2, 5, 8), m=mask)


@pytest.mark.parametrize("mask", ["", "float[S,S]", "bool[B,1,S,S]"])
def test_a_soft_cap_is_written_out(mask: str) -> None:
    text = rows(mask, ", m" if mask else "", ", softcap = 2.0, scale = 0.7")
    _, found = lowered(text)
    assert found["Attention"] == 0
    assert found["Tanh"] == 1
    inputs = {"q": 3 * random(2, 5, 16), "k": random(2, 5, 8), "v": random(2, 5, 8)}
    if mask == "float[S,S]":
        inputs["m"] = random(5, 5)
    elif mask:
        inputs["m"] = np.tril(np.ones((2, 1, 5, 5), bool))
    check(text, **inputs)


def test_a_soft_cap_with_a_cache() -> None:
    text = """
        g (float[B,S,16] q, float[B,S,8] k, float[B,S,8] v, float[B,2,P,4] pk, float[B,2,P,4] pv) =>
          (float[B,S,16] y, float[B,2,T,4] nk, float[B,2,T,4] nv) {
          y, nk, nv = Attention <q_num_heads = 4, kv_num_heads = 2, softcap = 1.5> (q, k, v, , pk, pv) }"""
    _, found = lowered(text)
    assert found["Attention"] == 0
    check(text, q=random(2, 3, 16), k=random(2, 3, 8), v=random(2, 3, 8), pk=random(2, 2, 6, 4), pv=random(2, 2, 6, 4))


LONG = """
    g (float[B,{queries},{width}] q, float[B,{keys},{width}] k, float[B,{keys},{width}] v) =>
      (float[B,{queries},{width}] y) {{ y = Attention <q_num_heads = {heads}, kv_num_heads = {heads}> (q, k, v) }}"""


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "expected"),
    [
        (2048, 1024, 2, "com.microsoft.MultiHeadAttention"),
        (1024, 256, 1, "com.microsoft.MultiHeadAttention"),
        (512, 512, 2, "Attention"),
        (64, 64, 1, "Attention"),
    ],
)
def test_long_rows_in_blocks(queries: int, keys: int, heads: int, expected: str) -> None:
    text = LONG.format(queries=queries, keys=keys, heads=heads, width=8 * heads)
    assert lowered(text)[1] == {expected: 1}
    check(text, q=random(1, queries, 8 * heads), k=random(1, keys, 8 * heads), v=random(1, keys, 8 * heads))


def test_blocks_are_of_rows() -> None:
    """Operands of rank 4 may state their numbers of heads, too: their second dimension is no number of positions."""
    text = """
        g (float[B,2048,2048,4] q, float[B,2048,8,4] k, float[B,2048,8,4] v) => (float[B,2048,2048,4] y) {
          y = Attention <q_num_heads = 2048, kv_num_heads = 2048> (q, k, v) }"""
    assert lowered(text)[1] == {"Attention": 1}


@pytest.mark.parametrize("softcap", ["", ", softcap = 2.0"])
@pytest.mark.parametrize("largest", ["3.4028235e38", "inf"])
def test_what_masks_may_be_subtracted(largest: str, softcap: str) -> None:
    text = f"""
        g (float[B,S,16] q, float[B,S,8] k, float[B,S,8] v, bool[B,1,S,S] hide) => (float[B,S,16] y) <
          float none = {{0.0}}, float large = {{{largest}}} > {{
          l = Where (hide, large, none) m = Neg (l)
          y = Attention <q_num_heads = 4, kv_num_heads = 2{softcap}> (q, k, v, m) }}"""
    inputs = {"q": random(2, 5, 16), "k": random(2, 5, 8), "v": random(2, 5, 8)}
    hide = ~np.tril(np.ones((2, 1, 5, 5), bool))
    hide[1, :, 2] = True
    if largest != "inf":
        check(text, **inputs, hide=hide)
        return
    found = ORT.compile(parse(text))({**inputs, "hide": hide})["y"]
    assert np.isfinite(found).all()
    assert (found[1, 2] == 0).all()


def test_no_skip_normalization(tmp_path: Path) -> None:
    """ONNX Runtime would make SkipLayerNormalization of it, which is slower than its parts."""
    import onnxruntime

    text = """
        g (float[B,S,4] x, float[B,S,4] z) => (float[B,S,4] y) <
          float[4] w = {1.0, 2.0, 3.0, 4.0}, float[4] b = {0.1, 0.2, 0.3, 0.4} > {
          a = Add (x, z) y = LayerNormalization (a, w, b) }"""
    save_for(parse(text), tmp_path / "model.onnx", ORT)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    ops = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "SkipLayerNormalization" not in ops
    assert "LayerNormalization" in ops
    assert session.run(None, {"x": random(0, 3, 4), "z": random(0, 3, 4)})[0].shape == (0, 3, 4)
    check(text, x=random(2, 3, 4), z=random(2, 3, 4)[::-1])


def test_group_normalization() -> None:
    text = """
        g (float[B,4,S] x, float[4] w, float[4] b) => (float[B,4,S] y) {
          y = GroupNormalization <num_groups = 2, epsilon = 0.01> (x, w, b) }"""
    assert lowered(text)[1]["InstanceNormalization"] == 1
    check(text, x=random(2, 4, 5), w=random(4), b=random(4))


@pytest.mark.parametrize("attrs", ["", " <alpha = 1.702>"])
def test_swish(attrs: str) -> None:
    text = f"g (float[B,8] x) => (float[B,8] y) {{ y = Swish{attrs} (x) }}"
    assert lowered(text)[1]["Sigmoid"] == 1
    check(text, x=random(3, 8))


@pytest.mark.parametrize(
    ("x", "perm", "between", "product", "y"),
    [
        ("3,2,4", "1,0,2", "", "MatMul (t, w)", "2,3,5"),
        ("3,2,4", "1,0,2", "i = Cast <to = 1> (t) t1 = Cast <to = 10> (i)", "MatMul (t1, w)", "2,3,5"),
        ("3,2,5", "1,2,0", "", "MatMul (w, t)", "2,4,3"),
        ("2,3,2,4", "1,2,0,3", "", "MatMul (t, w)", "3,2,2,5"),
    ],
)
def test_transposed_rows_in_float16(x: str, perm: str, between: str, product: str, y: str) -> None:
    """ONNX Runtime would crash on them: a product gets operands of one rank, which it does not fuse so."""
    text = f"""
        g (float16[{x}] x, float16[3,4] c) => (float16[{y}] y, float16[3,4] z) <
          float16[4,5] w = {{{", ".join("1" for _ in range(20))}}}, float16[4] b = {{1, 1, 1, 1}}> {{
          t = Transpose <perm = [{perm}]> (x)
          {between}
          y = {product}
          z = Add (c, b) }}"""
    graph, found = lowered(text)
    assert found["Unsqueeze"] == 1
    node = next(n for n in graph.nodes if n.op == "MatMul")
    assert node.given(0).rank == node.given(1).rank
    values = np.random.default_rng(0).integers(-8, 8, [int(n) for n in x.split(",")])
    check(text, x=values.astype(np.float16), c=np.ones((3, 4), np.float16))


def test_rows_in_float16_that_stay() -> None:
    text = """
        g (float16[2,3,4] x, float16[4,5] w) => (float16[3,2,5] y) {
          m = MatMul (x, w)
          y = Transpose <perm = [1,0,2]> (m) }"""
    assert lowered(text)[1] == {"MatMul": 1, "Transpose": 1}


@pytest.mark.parametrize("widths", ["int64[4] p = {0, 2, 2, 1}", ""])
def test_a_pad_of_named_axes_between_transpositions(widths: str) -> None:
    """ONNX Runtime 1.31 permutes the widths of a Pad as if they were of all dimensions."""
    given, known = ("", f"{widths}, ") if widths else (", int64[4] p", "")
    text = f"""
        g (float[2,4,6,3] x{given}) => (float[A,B,C,D] y) <{known}int64[2] a = {{2, -1}}, float z = {{7}}> {{
          t = Transpose <perm = [0, 3, 1, 2]> (x)
          u = Pad (t, p, z, a)
          y = Transpose <perm = [0, 2, 3, 1]> (u) }}"""
    more = {} if widths else {"p": np.array([0, 2, 2, 1])}
    check(text, x=random(2, 4, 6, 3), **more)
