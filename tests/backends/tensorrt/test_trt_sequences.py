"""Sequences and optionals: resolved where their positions are known."""

from __future__ import annotations

import numpy as np
import pytest

from .trt_check import check, refusals

X = np.arange(24, dtype=np.float32).reshape(4, 6)
K = "int64 i = {1}, int64 last = {-1}, int64 zero = {0}, bool yes = {1}, int64 two = {2}, int64[2] sizes = {1, 3}"


@pytest.mark.parametrize("split", ["(x)", "(x, two)", "(x, sizes)"])
def test_the_parts_of_a_split(split: str) -> None:
    text = f"""g (float[4,6] x) => (y, z, n) <{K}> {{ p = SplitToSequence <axis = 0> {split}
      y = SequenceAt (p, zero)  z = SequenceAt (p, last)  n = SequenceLength (p) }}"""
    assert check(text, x=X)["Split"] == 1


def test_the_parts_of_a_split_lose_their_dimension() -> None:
    text = f"""g (float[4,6] x) => (y) <{K}> {{ p = SplitToSequence <axis = 1, keepdims = 0> (x)
      y = SequenceAt (p, last) }}"""
    assert check(text, x=X)


def test_parts_of_a_dimension_of_unknown_size() -> None:
    text = f"""g (float[n,6] x) => (y, m, z) <{K}> {{ p = SplitToSequence <axis = 0> (x, two)
      y = SequenceAt (p, i)  m = SequenceLength (p)  z = ConcatFromSequence <axis = 0> (p) }}"""
    assert check(text, x=X)["Slice"] == 1
    assert "no such operator" in refusals(text.replace("(p, i)", "(p, last)"))


def test_sequences_are_built_and_taken_apart() -> None:
    text = f"""g (float[4,6] x) => (y, z, n) <{K}> {{
      a = Neg (x)  e = SequenceEmpty <dtype = 1> ()  p = SequenceInsert (e, x)  q = SequenceInsert (p, a, zero)
      r = SequenceConstruct (x, a, x)  s = SequenceErase (r, last)  t = Identity (s)
      y = ConcatFromSequence <axis = -1, new_axis = 1> (q)  z = ConcatFromSequence <axis = 0> (t)
      n = SequenceLength (r) }}"""
    assert check(text, x=X)["Concat"] == 2


def test_a_body_is_mapped_over_the_elements() -> None:
    text = f"""g (float[4,6] x) => (y) <{K}> {{ p = SequenceConstruct (x, x)
      q = SequenceMap <body = b (float[4,6] e, float[4,6] f) => (float[4,6] o) {{ o = Add (e, f) }}> (p, x)
      y = SequenceAt (q, i) }}"""
    assert check(text, x=X) == {"Add": 1}


def test_a_loop_that_collects_a_sequence_is_unrolled() -> None:
    text = f"""g (float[4,6] x) => (y) <{K}, int64 n = {{4}}> {{ p = SequenceEmpty <dtype = 1> ()
      q = Loop <body = b (int64 k, bool on, seq(float) s) => (bool go, seq(float) t)
        {{ go = Identity (on)  v = Gather (x, k)  t = SequenceInsert (s, v) }}> (n, yes, p)
      y = ConcatFromSequence <axis = 0, new_axis = 1> (q) }}"""
    assert check(text, x=X)["Concat"] == 1


def test_branches_give_the_elements_of_their_sequences() -> None:
    text = f"""g (float[4,6] x, bool c) => (y) <{K}> {{ p = If <
        then_branch = t () => (seq(float) q) {{ a = Neg (x)  q = SequenceConstruct (x, a) }},
        else_branch = e () => (seq(float) r) {{ b = Abs (x)  r = SequenceConstruct (b, x) }}> (c)
      y = SequenceAt (p, i) }}"""
    assert check(text, x=X, c=True)["If"] == 1
    assert check(text, x=X, c=False)["If"] == 1


def test_optionals_are_what_they_hold() -> None:
    text = """g (float[4,6] x) => (y, is, n) { p = Optional (x)  y = OptionalGetElement (p)
      is = OptionalHasElement (p)  n = OptionalHasElement () }"""
    assert check(text, engine="reference", x=X, expected={"y": X, "is": True, "n": False}) == {}


def test_sequences_at_the_border_are_refused_by_name() -> None:
    text = "g (float[4,6] x) => (p) { p = SequenceConstruct (x, x) }"
    assert "the output p is seq(float[4,6]), no tensor" in refusals(text)
    text = "g (seq(float[4]) s) => (y) <int64 i = {1}> { y = SequenceAt (s, i) }"
    assert "the input s is seq(float[4]), no tensor" in refusals(text)


def test_a_position_that_is_computed_is_refused() -> None:
    text = "g (float[4] x, int64 i) => (y) { p = SequenceConstruct (x, x)  y = SequenceAt (p, i) }"
    assert "SequenceAt" in refusals(text)
