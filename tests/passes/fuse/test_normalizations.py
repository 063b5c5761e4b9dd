"""Normalizations as TensorFlow writes them, ``x * s + (bias - mean * s)``: before and after, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from planish.ir import Graph
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline


def _factor_and_shift(x: str, over: str, shift: str, mean: str = "ReduceMean <keepdims = 1> (x, over)") -> str:
    """The text of a graph: what is normalized, the axes, and what is added to ``x * s``."""
    return f"""
        g ({x}, float[8] w, float[8] b) => ({x.replace(" x", " y")}) <
          {over}, float eps = {{0.001}}
        > {{
          m = {mean} d = Sub (x, m) a = Mul (d, d) v = ReduceMean <keepdims = 1> (a, over) c = Add (v, eps)
          e = Sqrt (c) i = Reciprocal (e) s = Mul (i, w) {shift} z = Mul (x, s) y = Add (z, q) }}"""


LAST = "int64[1] over = {-1}"
NEGATED = "n = Neg (m) p = Mul (n, s) q = Add (p, b)"


def fused(text: str) -> Graph:
    graph = parse(text)
    ctx = Context()
    Pipeline.parse("default").run(graph, ctx)
    assert not any(r.problem for r in ctx.results)
    verify(graph)
    return graph


def operators(text: str) -> list[str]:
    return [n.op for n in fused(text).nodes]


@pytest.mark.parametrize(
    "shift",
    [
        NEGATED,
        "n = Neg (m) p = Mul (s, n) q = Add (b, p)",
        "p = Mul (m, s) q = Sub (b, p)",
        "n = Neg (m) q = Mul (n, s)",
    ],
)
def test_a_factor_and_a_shift_are_layer_normalization(shift: str) -> None:
    assert operators(_factor_and_shift("float[B,S,8] x", LAST, shift)) == ["LayerNormalization"]


@pytest.mark.parametrize(
    ("why", "changed"),
    [
        ("the shift is by another factor", {"shift": "n = Neg (m) p = Mul (n, i) q = Add (p, b)"}),
        ("the mean is subtracted once more", {"shift": "p = Mul (m, s) q = Sub (p, b)"}),
        ("the mean is that of something else", {"mean": "ReduceMax <keepdims = 1> (x, over)"}),
    ],
)
def test_what_only_looks_like_it_is_none(why: str, changed: dict[str, Any]) -> None:
    text = _factor_and_shift("float[B,S,8] x", LAST, **{"shift": NEGATED, **changed})
    assert "LayerNormalization" not in operators(text), why


def test_another_axis_is_moved_to_the_end() -> None:
    text = """
        g (float[B,4,H,8] x) => (float[B,4,H,8] y) <
          int64[1] over = {1}, float eps = {0.001}, float[4,1,1] w = {1.0, 2.0, 3.0, 4.0}
        > {
          m = ReduceMean <keepdims = 1> (x, over) d = Sub (x, m) a = Mul (d, d) v = ReduceMean <keepdims = 1> (a, over)
          c = Add (v, eps) e = Sqrt (c) i = Reciprocal (e) s = Mul (i, w) n = Neg (m) q = Mul (n, s) z = Mul (x, s)
          y = Add (z, q) }"""
    assert operators(text) == ["Transpose", "LayerNormalization", "Transpose"]


GROUPS = """
    g (float[B,H,5,4] x) => (float[B,H,5,4] y) <
      int64[5] grouped = {{0, 0, 5, {groups}, {size}}}, int64[4] plain = {{0, 0, 5, 4}},
      int64[3] within = {{{axes}}}, float eps = {{0.001}}
    > {{
      g = Reshape (x, grouped) m = ReduceMean <keepdims = 1> (g, within) d = Sub (g, m) a = Mul (d, d)
      v = ReduceMean <keepdims = 1> (a, within) c = Add (v, eps) e = Sqrt (c) s = Reciprocal (e) n = Neg (m)
      q = Mul (n, s) z = Mul (g, s) r = Add (z, q) y = Reshape (r, plain) }}"""


@pytest.mark.parametrize(
    ("groups", "size", "expected"), [(2, 2, "GroupNormalization"), (4, 1, "InstanceNormalization")]
)
def test_groups_of_the_last_dimension_are_moved_to_the_front(groups: int, size: int, expected: str) -> None:
    assert operators(GROUPS.format(groups=groups, size=size, axes="1, 2, 4")) == ["Transpose", expected, "Transpose"]


def test_groups_that_are_not_normalized_over_all_that_is_spatial_are_none() -> None:
    assert "GroupNormalization" not in operators(GROUPS.format(groups=2, size=2, axes="2, 3, 4"))
