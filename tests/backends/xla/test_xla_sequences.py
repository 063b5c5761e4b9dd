"""Lowerings of the operators on sequences and optionals."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from planish.backends import LoweringError, backend
from planish.backends.xla.function import to_jax
from planish.ir.text import parse

Array = np.ndarray[Any, Any]


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_sequences_are_lists_under_jit_and_have_gradients() -> None:
    text = """g (seq(float[n]) s, float[n] x) => (float[n] y, seq(float[n]) longer) {
        longer = SequenceInsert (s, x)
        last = Constant <value_int = -1> ()
        first = Constant <value_int = 0> ()
        a = SequenceAt (longer, first)
        b = SequenceAt (longer, last)
        y = Mul (a, b)
    }"""
    function = to_jax(parse(text))
    elements, x = [numbers(3), numbers(3) + 1], numbers(3) * 2
    y, longer = jax.jit(lambda s, x: function({}, s, x))(elements, x)
    np.testing.assert_allclose(y, elements[0] * x, rtol=1e-6)
    assert [list(v) for v in longer] == [list(v) for v in (*elements, x)]
    gradients = jax.grad(lambda s, x: function({}, s, x)[0].sum())(elements, x)
    np.testing.assert_array_equal(gradients[0], x)
    np.testing.assert_array_equal(gradients[1], np.zeros(3))
    found, longer = backend("xla").compile(parse(text))(elements, x)
    np.testing.assert_array_equal(found, y)
    assert isinstance(longer, list)


@pytest.mark.parametrize(
    ("at", "wanted"), [(0, [9, 1, 2]), (1, [1, 9, 2]), (2, [1, 2, 9]), (-1, [1, 9, 2]), (-2, [9, 1, 2])]
)
def test_insertion(at: int, wanted: list[int]) -> None:
    text = """g (seq(float) s, float x, int64 at) => (seq(float) y) { y = SequenceInsert (s, x, at) }"""
    (found,) = backend("xla").compile(parse(text))([np.float32(1), np.float32(2)], np.float32(9), np.array(at))
    assert found == wanted


@pytest.mark.parametrize(("at", "wanted"), [(0, [2, 3]), (-1, [1, 2]), (-2, [1, 3])])
def test_erasure(at: int, wanted: list[int]) -> None:
    text = """g (seq(float) s, int64 at) => (seq(float) y) { y = SequenceErase (s, at) }"""
    (found,) = backend("xla").compile(parse(text))([np.float32(v) for v in (1, 2, 3)], np.array(at))
    assert found == wanted


def test_positions_out_of_range_are_errors() -> None:
    for call, position in (("SequenceAt (s, at)", 2), ("SequenceInsert (s, x, at)", 3), ("SequenceErase (s, at)", -3)):
        kind = "float" if "At" in call else "seq(float)"
        text = f"g (seq(float) s, float x, int64 at) => ({kind} y) {{ y = {call} }}"
        with pytest.raises(LoweringError, match=f"position {position} of 2"):
            backend("xla").compile(parse(text))([np.float32(1)] * 2, np.float32(0), np.array(position))


def test_shapes_stay_known_in_sequences() -> None:
    text = """g (float[n, m] x) => (float[m, n] y) {
        shape = Shape (x)
        parts = SplitToSequence (shape)
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        n = SequenceAt (parts, zero)
        m = SequenceAt (parts, one)
        turned = SequenceConstruct (m, n)
        target = ConcatFromSequence <axis = 0> (turned)
        y = Reshape (x, target)
    }"""
    executable = backend("xla").compile(parse(text))
    np.testing.assert_array_equal(executable(numbers(2, 3))[0], numbers(2, 3).reshape(3, 2))
    assert executable.report()["compiled"]
    assert executable.report()["static_inputs"] == []
    function = to_jax(parse(text))
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, m"), np.float32)
    (found,) = jax.export.export(jax.jit(lambda x: function({}, x)))(spec).call(numbers(2, 3))
    np.testing.assert_array_equal(found, numbers(2, 3).reshape(3, 2))


def test_a_sequence_whose_elements_decide_shapes_is_static() -> None:
    text = """g (float[n] x, seq(int64[1]) sizes) => (float[] y) {
        shape = ConcatFromSequence <axis = 0> (sizes)
        y = Reshape (x, shape)
    }"""
    executable = backend("xla").compile(parse(text))
    for shape in ((2, 3), (3, 2), (2, 3), (6,)):
        (found,) = executable(numbers(6), [np.array([d]) for d in shape])
        np.testing.assert_array_equal(found, numbers(6).reshape(shape))
    assert executable.report()["traces"] == 3


@pytest.mark.parametrize(("new_axis", "axis"), [(0, 0), (0, -1), (1, 1), (1, -1)])
def test_concatenation(new_axis: int, axis: int) -> None:
    text = f"""g (seq(float[2, 3]) s) => (float[] y) {{
        y = ConcatFromSequence <axis = {axis}, new_axis = {new_axis}> (s)
    }}"""
    elements = [numbers(2, 3), numbers(2, 3) + 1]
    wanted = np.stack(elements, axis) if new_axis else np.concatenate(elements, axis)
    np.testing.assert_array_equal(backend("xla").compile(parse(text))(elements)[0], wanted)


@pytest.mark.parametrize(("split", "sizes"), [(np.array(2), [2, 2, 1]), (np.array([1, 4]), [1, 4])])
def test_splits(split: Array, sizes: list[int]) -> None:
    dims = "" if split.ndim == 0 else "[n]"
    text = f"g (float[2, 5] x, int64{dims} n) => (seq(float[2, k]) y) {{ y = SplitToSequence <axis = -1> (x, n) }}"
    (found,) = backend("xla").compile(parse(text))(numbers(2, 5), split)
    assert [v.shape for v in found] == [(2, size) for size in sizes]
    np.testing.assert_array_equal(np.concatenate(found, 1), numbers(2, 5))


def test_splits_without_the_axis() -> None:
    text = "g (float[2, 3] x) => (seq(float[2]) y) { y = SplitToSequence <axis = 1, keepdims = 0> (x) }"
    (found,) = backend("xla").compile(parse(text))(numbers(2, 3))
    np.testing.assert_array_equal(np.stack(found, 1), numbers(2, 3))


def test_optionals() -> None:
    text = """g (optional(float[n]) o, float[n] x) => (float[n] y) {
        full = OptionalHasElement (o)
        y = If (full) <
            then_branch = a () => (float[n] t) { t = OptionalGetElement (o) },
            else_branch = b () => (float[n] e) { e = Neg (x) }
        >
    }"""
    executable = backend("xla").compile(parse(text))
    x = numbers(3)
    np.testing.assert_array_equal(executable(x + 1, x)[0], x + 1)
    np.testing.assert_array_equal(executable(None, x)[0], -x)


def test_an_empty_optional_has_no_element() -> None:
    text = "g (optional(float[n]) o) => (float[n] y) { y = OptionalGetElement (o) }"
    with pytest.raises(LoweringError, match="OptionalGetElement: the optional is empty"):
        backend("xla").compile(parse(text))(None)


def test_the_length_of_an_empty_sequence() -> None:
    text = """g (float[2] x) => (int64 n, int64 m) {
        empty = SequenceEmpty <dtype = 1> ()
        n = SequenceLength (empty)
        one = SequenceInsert (empty, x)
        m = SequenceLength (one)
    }"""
    assert backend("xla").compile(parse(text))(numbers(2)) == [0, 1]
