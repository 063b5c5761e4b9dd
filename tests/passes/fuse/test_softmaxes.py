"""Softmax and logarithms of sums of exponentials, spelled out: before and after, and what is none."""

from __future__ import annotations

import pytest

from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline


def operators(text: str) -> list[str]:
    graph = parse(text)
    ctx = Context()
    Pipeline.parse("default").run(graph, ctx)
    assert not any(r.problem for r in ctx.results)
    verify(graph)
    return [n.op for n in graph.nodes]


SUM = """
    g (float[B,S,8] x) => (float[B,S,{n}] y) <
      int64[1] last = {{-1}}, int64[1] over = {{{over}}}, float inf = {{inf}}, float zero = {{{zero}}}
    > {{
      m = ReduceMax <keepdims = 1> (x, last) a = Abs (m) f = Less (a, inf) g = Where (f, m, zero) d = Sub (x, {shift})
      e = Exp (d) s = ReduceSum <keepdims = 1> (e, over) l = Log (s) {end} }}"""
TOTAL = {"n": 1, "over": -1, "zero": 0, "shift": "g", "end": "y = Add (l, g)"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ["ReduceLogSumExp"]),
        ({"shift": "m", "end": "y = Add (m, l)"}, ["ReduceLogSumExp"]),
        ({"n": 8, "end": "t = Add (l, g) y = Sub (x, t)"}, ["LogSoftmax"]),
        ({"n": 8, "end": "t = Add (l, g) z = Sub (x, t) y = Exp (z)"}, ["Softmax"]),
    ],
)
def test_they_are_one_operator(changed: dict[str, object], expected: list[str]) -> None:
    assert operators(SUM.format(**{**TOTAL, **changed})) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"end": "y = Add (l, m)"},  # what is added is not what was subtracted
        {"zero": 1, "shift": "g"},  # no guard
        {"n": 8, "over": 1, "end": "y = Add (l, g)"},  # a sum over another dimension
    ],
)
def test_what_only_looks_like_it_is_none(changed: dict[str, object]) -> None:
    assert "ReduceLogSumExp" not in operators(SUM.format(**{**TOTAL, **changed}))


def test_a_softmax_between_reshapes_needs_none() -> None:
    text = """
        g (float[B,6,8] x) => (float[B,6,8] y) <int64[4] apart = {{0, 2, 3, 8}}, int64[3] back = {{0, 6, 8}}> {{
          r = Reshape (x, apart) s = Softmax <axis = {axis}> (r) y = Reshape (s, back) }}"""
    assert operators(text.format(axis=-1)) == ["Softmax"]
    assert operators(text.format(axis=2)) == ["Reshape", "Softmax", "Reshape"]
