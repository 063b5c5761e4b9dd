"""Loop, Scan and If: what stays, what is made legal, and what is unrolled."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from .trt_check import check, refusals

X = np.arange(6, dtype=np.float32).reshape(2, 3)
N = "int64 n = {3}, bool yes = {1}, int64 zero = {0}, int64 one = {1}, int64[1] at = {0}, float lim = {40.0}"


def loop(body: str, start: str = "(n, yes, x)", shape: str = "[2,3]", made: str = "", results: str = "y") -> str:
    """A Loop that carries ``a``; ``{body}`` gives the condition ``go``, the next ``b`` and what ``made`` names."""
    return f"""g (float[2,3] x, int64 run, bool c) => ({results}) <{N}> {{
      {results} = Loop <body = body (int64 i, bool on, float{shape} a) => (bool go, float{shape} b{made})
        {{ {body} }}> {start} }}"""


def run(text: str, **inputs: object) -> Counter[str]:
    return check(text, **{"x": X, "run": 3, "c": True, **inputs})


def test_a_loop_that_keeps_shapes_stays() -> None:
    text = loop(
        "go = Identity (on)  b = Add (a, x)  s = Mul (b, b)", "(run, c, x)", made=", float[2,3] s", results="y, z"
    )
    assert run(text) == {"Identity": 1, "Loop": 1, "Add": 1, "Mul": 1}  # inputs keep their names


def test_a_loop_without_a_condition_gets_one() -> None:
    assert run(loop("go = Not (on)  b = Add (a, x)", '(n, "", x)'))["Loop"] == 1


def test_a_loop_without_a_limit_that_counts_gets_one() -> None:
    body = "f = Cast <to = 1> (i)  b = Add (a, f)  s = ReduceSum <keepdims = 0> (b)  go = Less (s, lim)"
    assert run(loop(body, '("", yes, x)'))["Loop"] == 1


def test_stacked_results_of_a_loop_that_may_end_early_are_refused() -> None:
    body = "b = Add (a, x)  s = ReduceSum <keepdims = 0> (b)  go = Less (s, lim)"
    assert "may end early" in refusals(loop(body, "(run, yes, x)", made=", float s", results="y, z"))


def test_a_part_that_moves_with_the_iterations_is_gathered() -> None:
    body = """go = Identity (on)  j = Add (i, one)  s = Unsqueeze (i, at)  e = Unsqueeze (j, at)
      v = Slice (x, s, e, at)  b = Add (a, v)"""
    text = loop(body, "(rows, yes, x)", shape="[2,3]").replace("int64 n =", "int64 rows = {2}, int64 n =")
    found = run(text)
    assert found["Slice"] == 0 and found["Gather"] == 1 and found["Loop"] == 1


def test_a_loop_with_a_size_that_changes_is_unrolled() -> None:
    body = """go = Identity (on)  r = Range (zero, i, one)  q = ReduceSum <keepdims = 0> (r)
      f = Cast <to = 1> (q)  b = Add (a, f)"""
    assert run(loop(body))["Loop"] == 0
    assert run(loop(body, "(n, c, x)"), c=False)["Loop"] == 0
    assert "which each iteration of a loop changes" in refusals(loop(body, "(run, yes, x)"))


def test_a_loop_that_may_end_early_is_unrolled_with_its_condition() -> None:
    body = """r = Range (zero, i, one)  q = ReduceSum <keepdims = 0> (r)  f = Cast <to = 1> (q)  w = Add (a, f)
      b = Add (w, x)  s = ReduceSum <keepdims = 0> (b)  go = Less (s, lim)"""
    assert run(loop(body))["Loop"] == 0


def test_what_grows_is_unrolled() -> None:
    text = f"""g (float[2,3] x) => (y, z) <{N}> {{
      y, z = Loop <body = body (int64 i, bool on, float[p,3] a) => (bool go, float[q,3] b, int64[2] s)
        {{ go = Identity (on)  b = Concat <axis = 0> (a, x)  s = Shape (b) }}> (n, yes, x) }}"""
    assert check(text, x=X)["Loop"] == 0


def test_a_loop_that_has_many_nodes_is_not_unrolled() -> None:
    body = """go = Identity (on)  r = Range (zero, i, one)  q = ReduceSum <keepdims = 0> (r)
      f = Cast <to = 1> (q)  b = Add (a, f)"""
    assert "iteration" in refusals(loop(body).replace("int64 n = {3}", "int64 n = {100000}"))


@pytest.mark.parametrize("back", [0, 1])
def test_a_scan_that_carries_nothing_and_counts_axes_from_the_end(back: int) -> None:
    text = f"""g (float[2,n] x) => (y) {{ y = Scan <num_scan_inputs = 1, scan_input_axes = [-1],
      scan_output_axes = [-1], scan_output_directions = [{back}],
      body = b (float[2] v) => (float[2] w) {{ w = Neg (v) }}> (x) }}"""
    assert check(text, x=X)["Scan"] == 1


@pytest.mark.parametrize("directions", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_scan_with_a_size_that_changes_is_unrolled(directions: tuple[int, int]) -> None:
    text = f"""g (float[2,3] x) => (t, y) <{N}> {{ t, y = Scan <num_scan_inputs = 1,
      scan_input_directions = [{directions[0]}], scan_output_directions = [{directions[1]}], scan_output_axes = [1],
      body = b (int64 s, float[3] v) => (int64 u, float[3] w) {{ u = Add (s, one)  r = Range (zero, u, one)
        q = ReduceSum <keepdims = 0> (r)  f = Cast <to = 1> (q)  w = Add (v, f) }}> (one, x) }}"""
    assert check(text, x=X)["Scan"] == 0


def test_a_branch_that_gives_one_value_twice_gives_a_copy() -> None:
    text = """g (bool c, float[2,3] x) => (y, z) { y, z = If <
      then_branch = t () => (float[2,3] a, float[2,3] a) { a = Neg (x) },
      else_branch = e () => (float[2,3] b, float[2,3] d) { b = Abs (x)  d = Exp (x) }> (c) }"""
    assert check(text, c=True, x=X)["If"] == 1
    assert check(text, c=False, x=X)["Identity"] == 1


def test_branches_give_equal_ranks() -> None:
    text = """g (bool c, float[1,3] x) => (y) <int64[1] at = {0}> { y = If <
      then_branch = t () => (float[3] a) { a = Squeeze (x, at) },
      else_branch = e () => (float[1,3] b) { b = Neg (x) }> (c) }"""
    assert "1 and 2 dimensions" in refusals(text)
