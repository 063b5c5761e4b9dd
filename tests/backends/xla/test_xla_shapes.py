"""Lowerings of the operators that describe, create, rearrange, cut and join tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import TensorProto, helper

from planish.backends import LoweringError, backend
from planish.backends.xla.function import to_jax
from planish.ir.convert.proto import from_proto
from planish.ir.text import parse

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import check_text as check
from single_node import numbers
from single_node import run_text as run

Array = np.ndarray[Any, Any]


def check_symbolic(
    text: str, shapes: str, *inputs: Array, wanted: Callable[..., Any] | None = None, constraints: tuple[str, ...] = ()
) -> None:
    """Exported once with symbolic sizes (one shape per input), it computes what the reference computes."""
    function = to_jax(parse(text))
    scope = jax.export.SymbolicScope(constraints)
    specs = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), x.dtype)
        for shape, x in zip(shapes.split(";"), inputs, strict=True)
    ]
    with jax.enable_x64(True):
        exported = jax.export.export(jax.jit(lambda *xs: function(function.params, *xs)))(*specs)
        found = exported.call(*inputs)
    results = backend("reference").compile(parse(text))(*inputs) if wanted is None else [wanted(*inputs)]
    for a, b in zip(found, results, strict=True):
        np.testing.assert_array_equal(a, b)


def gradient(text: str, *inputs: Array) -> Any:
    """The gradient of a weighted sum of the result in the first input, checked by differences where it is linear."""
    function = to_jax(parse(text))

    def loss(x: Any) -> Any:
        (y,) = function(function.params, x, *inputs[1:])
        return (y * jnp.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape)).sum()

    return jax.grad(loss)(jnp.asarray(inputs[0]))


# shapes and reshapes


def test_shapes_are_computed_while_tracing() -> None:
    text = """g (float[b, s, 6] x) => (float[b, 3, s, 2] y) {
        n = Shape <start = 0, end = 2> (x)
        heads = Constant <value_ints = [3, 2]> ()
        shape = Concat <axis = 0> (n, heads)
        split = Reshape (x, shape)
        y = Transpose <perm = [0, 2, 1, 3]> (split)
    }"""
    check(text, numbers(2, 4, 6))
    check_symbolic(text, "b, s, 6", numbers(2, 4, 6))


def test_the_size_of_a_symbolic_tensor_is_known() -> None:
    text = """g (float[b, 4] x) => (float[n] y) {
        n = Size (x)
        axes = Constant <value_ints = [0]> ()
        shape = Unsqueeze (n, axes)
        y = Reshape (x, shape)
    }"""
    check_symbolic(text, "b, 4", numbers(3, 4))


@pytest.mark.parametrize(("target", "allowzero"), [((0, -1), 0), ((-1, 2, 0), 0), ((24,), 0), ((1, 0, 2, -1), 0)])
def test_reshape(target: tuple[int, ...], allowzero: int) -> None:
    items = ", ".join(map(str, target))
    text = f"""g (float[2, 3, 4] x) => (float[] y) {{
        shape = Constant <value_ints = [{items}]> ()
        y = Reshape <allowzero = {allowzero}> (x, shape)
    }}"""
    check(text, numbers(2, 3, 4))


def test_reshape_to_nothing() -> None:
    text = """g (float[2, 0] x) => (float[0, 7] y) {
        shape = Constant <value_ints = [0, 7]> ()
        y = Reshape <allowzero = 1> (x, shape)
    }"""
    assert run(text, np.zeros((2, 0), np.float32))[0].shape == (0, 7)


def test_reshape_infers_a_size_from_symbolic_ones() -> None:
    text = """g (float[b, s, 4] x) => (float[n, 2] y) {
        shape = Constant <value_ints = [-1, 2]> ()
        y = Reshape (x, shape)
    }"""
    check_symbolic(text, "b, s, 4", numbers(2, 3, 4))


def test_a_wrong_reshape_names_the_node() -> None:
    text = """g (float[2, 3] x, int64[2] shape) => (float[] y) { y = Reshape (x, shape) }"""
    with pytest.raises(LoweringError, match=r"xla cannot run 1 node:\n  Reshape.*: TypeError"):
        run(text, numbers(2, 3), np.array([4, 2]))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_flatten(axis: int) -> None:
    text = f"g (float[b, s, 4] x) => (float[n, m] y) {{ y = Flatten <axis = {axis}> (x) }}"
    check(text, numbers(2, 3, 4))
    check_symbolic(text, "b, s, 4", numbers(2, 3, 4))


def test_squeeze_without_axes_leaves_symbolic_sizes() -> None:
    text = "g (float[1, b, 1, 3] x) => (float[b, 3] y) { y = Squeeze (x) }"
    check_symbolic(text, "1, b, 1, 3", numbers(1, 2, 1, 3))


# repetition


@pytest.mark.parametrize("repeats", [(2, 1, 3), (1, 1, 1), (1, 0, 2)])
def test_tile(repeats: tuple[int, ...]) -> None:
    text = "g (float[b, 1, 3] x, int64[3] n) => (float[] y) { y = Tile (x, n) }"
    check(text, numbers(2, 1, 3), np.array(repeats))


def test_tile_and_expand_to_symbolic_sizes() -> None:
    text = """g (float[b, s] x, float[1, s] m) => (float[] tiled, float[] wide) {
        n = Shape <start = 0, end = 1> (x)
        one = Constant <value_ints = [1]> ()
        counts = Concat <axis = 0> (n, one)
        shape = Shape (x)
        tiled = Tile (m, counts)
        wide = Expand (m, shape)
    }"""
    check_symbolic(text, "b, s;1, s", numbers(2, 3), numbers(1, 3))


def test_the_gradient_of_an_expansion_sums() -> None:
    text = """g (float[1, 2] x) => (float[3, 2] y) {
        shape = Constant <value_ints = [3, 1]> ()
        y = Expand (x, shape)
    }"""
    np.testing.assert_array_equal(gradient(text, numbers(1, 2)), [[1 + 3 + 5, 2 + 4 + 6]])


# pieces


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [
        (1, 4, 1),
        (0, 1000, 2),
        (-3, -1, 1),
        (4, 0, -1),
        (-1, -1000, -2),
        (1000, 1, -3),
        (3, 1, 1),
        (1, 3, -1),
        (-9, 2, 1),
    ],
)
def test_slice(start: int, end: int, step: int) -> None:
    text = """g (float[a, 6] x, int64[1] s, int64[1] e, int64[1] k, int64[1] step) => (float[] y) {
        y = Slice (x, s, e, k, step)
    }"""
    for axis in (0, -1):
        check(text, numbers(6, 6), *(np.array([v]) for v in (start, end, axis, step)))


@pytest.mark.parametrize(
    "limits",
    [(1, 2**62, 1), (-2, 2**62, 1), (0, -1, 1), (-1, -(2**62), -1), (2**62, -(2**62), -2), (0, 3, 1), (-4, -1, 2)],
)
def test_slices_of_symbolic_sizes(limits: tuple[int, int, int]) -> None:
    start, end, step = limits
    text = f"""g (float[n, 2] x) => (float[] y) {{
        s = Constant <value_ints = [{start}]> ()
        e = Constant <value_ints = [{end}]> ()
        axis = Constant <value_ints = [0]> ()
        step = Constant <value_ints = [{step}]> ()
        y = Slice (x, s, e, axis, step)
    }}"""
    for size in (5, 8):
        check_symbolic(text, "n, 2", numbers(size, 2))


@pytest.mark.parametrize("count", [1, 3])
def test_slices_without_the_first_and_the_last_of_what_may_be_empty_have_one_size(count: int) -> None:
    text = f"""g (float[n, 2] x) => (float[] y) {{
        zero = Constant <value_ints = [0]> ()
        four = Constant <value_ints = [4]> ()
        shape = Constant <value_ints = [-1, 4, 2]> ()
        count = Constant <value_ints = [{count}]> ()
        negative = Constant <value_ints = [-{count}]> ()
        all = Constant <value_ints = [9223372036854775807]> ()
        length = Shape <start = 0, end = 1> (x)
        blocks = Div (length, four)
        taken = Mul (blocks, four)
        whole = Slice (x, zero, taken, zero)
        b = Reshape (whole, shape)
        start = Min (count, blocks)
        first = Slice (b, zero, negative, zero)
        last = Slice (b, {"start" if count == 1 else "count"}, all, zero)
        y = Sub (last, first)
    }}"""
    for size in (2, 9, 18):
        check_symbolic(text, "n, 2", numbers(size, 2))


def test_arithmetic_on_a_single_symbolic_size() -> None:
    text = """g (float[n, 2] x) => (float[] y) {
        zero = Constant <value_int = 0> ()
        axis = Constant <value_ints = [0]> ()
        two = Constant <value_int = 2> ()
        shape = Shape (x)
        n = Gather (shape, zero)
        negative = Neg (n)
        half = Div (negative, two)
        start = Neg (half)
        at = Unsqueeze (n, axis)
        from = Unsqueeze (start, axis)
        y = Slice (x, from, at, axis)
    }"""
    check_symbolic(text.replace("Div (negative, two)", "Sub (negative, negative)"), "n, 2", numbers(6, 2))


def test_a_slice_up_to_a_symbolic_size() -> None:
    text = """g (float[n, 3] x, float[m, 3] table) => (float[] y) {
        zero = Constant <value_ints = [0]> ()
        end = Shape <start = 0, end = 1> (x)
        part = Slice (table, zero, end, zero)
        y = Add (x, part)
    }"""
    check_symbolic(text, "n, 3;8, 3", numbers(5, 3), numbers(8, 3), constraints=("n <= 8",))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_uneven_splits(count: int) -> None:
    names = ", ".join(f"float[] y{i}" for i in range(count))
    results = ", ".join(f"y{i}" for i in range(count))
    text = f"g (float[2, 7] x) => ({names}) {{ {results} = Split <axis = -1, num_outputs = {count}> (x) }}"
    check(text, numbers(2, 7))


def test_split_of_a_symbolic_size() -> None:
    text = "g (float[n, 3] x) => (float[] a, float[] b) { a, b = Split <axis = 0, num_outputs = 2> (x) }"
    check_symbolic(text, "2*n, 3", numbers(6, 3))


def test_splits_must_sum_up() -> None:
    text = """g (float[5] x, int64[2] n) => (float[] a, float[] b) { a, b = Split (x, n) }"""
    with pytest.raises(LoweringError, match="pieces of 4 in total for 5 elements"):
        run(text, numbers(5), np.array([2, 2]))


# borders


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", [(1, 0, 2, 0), (0, 2, 0, 2), (-1, 1, 1, 0)])
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    x = numbers(4, 3)
    before, after = pads[:2], pads[2:]
    cropped = x[tuple(slice(max(-a, 0), n - max(-b, 0)) for a, b, n in zip(before, after, x.shape, strict=True))]
    wanted = np.pad(cropped, [(max(a, 0), max(b, 0)) for a, b in zip(before, after, strict=True)], mode=mode)  # type: ignore[call-overload]
    items = ", ".join(map(str, pads))
    text = f"""g (float[a, b] x) => (float[] y) {{
        pads = Constant <value_ints = [{items}]> ()
        y = Pad <mode = "{mode}"> (x, pads)
    }}"""
    np.testing.assert_array_equal(run(text, x)[0], wanted)
    check_symbolic(text, "a, b", x, wanted=lambda x: wanted)


def test_reflection_beyond_the_other_end() -> None:
    text = 'g (float[a] x, int64[2] pads) => (float[] y) { y = Pad <mode = "reflect"> (x, pads) }'
    np.testing.assert_array_equal(
        run(text, np.float32([1, 2, 3]), np.array([4, 5]))[0], [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]
    )


def test_pad_of_flags_with_axes() -> None:
    text = "g (bool[2, 2] x, int64[2] pads, bool v, int64[1] axes) => (bool[] y) { y = Pad (x, pads, v, axes) }"
    check(text, np.eye(2, dtype=bool), np.array([0, 1]), np.array(True), np.array([-1]))


def test_pad_to_a_symbolic_size() -> None:
    text = """g (float[n] x, float[m] like) => (float[m] y) {
        n = Shape (x)
        m = Shape (like)
        rest = Sub (m, n)
        zero = Constant <value_ints = [0]> ()
        pads = Concat <axis = 0> (zero, rest)
        y = Pad (x, pads)
    }"""
    check_symbolic(text, "n;m", numbers(3), numbers(5))


def test_gradients_of_borders() -> None:
    text = """g (float[3] x) => (float[7] y) {
        pads = Constant <value_ints = [2, 2]> ()
        y = Pad <mode = "reflect"> (x, pads)
    }"""
    # 2 1 | 0 1 2 | 1 0
    np.testing.assert_array_equal(gradient(text, numbers(3)), [3 + 7, 2 + 4 + 6, 1 + 5])


# creation


def test_ranges_of_symbolic_sizes() -> None:
    text = """g (float[n] x) => (int64[] up, int64[] down) {
        n = Size (x)
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        back = Constant <value_int = -2> ()
        up = Range (zero, n, one)
        down = Range (n, zero, back)
    }"""
    check_symbolic(text, "n", numbers(5))


def test_ranges_of_numbers() -> None:
    text = "g (double a, double b, double d) => (double[] y) { y = Range (a, b, d) }"
    check(text, np.array(0.5), np.array(2.0), np.array(0.25))
    check(text, np.array(2.0), np.array(-1.0), np.array(-0.5))
    assert run(text, np.array(2.0), np.array(1.0), np.array(0.5))[0].shape == (0,)


def test_constants_of_shapes() -> None:
    text = """g (float[a, b] x) => (int64[] y) {
        shape = Shape (x)
        y = ConstantOfShape <value = int64[1] {7}> (shape)
    }"""
    check(text, numbers(2, 3))
    check_symbolic(text, "a, b", numbers(2, 3))


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]])
def test_sparse_constants(indices: list[Any]) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [2], [4.0, 5.0])
    at = np.array(indices)
    places = helper.make_tensor("i", TensorProto.INT64, at.shape, at.ravel())
    sparse = helper.make_sparse_tensor(values, places, [2, 3])
    nodes = [helper.make_node("Constant", [], ["c"], sparse_value=sparse), helper.make_node("Add", ["x", "c"], ["y"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:]), opset_imports=opsets)
    (found,) = backend("xla").compile(from_proto(model))(np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found, [[1, 5, 1], [1, 1, 6]])


@pytest.mark.parametrize("k", [0, 1, -2])
def test_eye_like(k: int) -> None:
    text = f"g (float[a, b] x) => (float[a, b] y) {{ y = EyeLike <k = {k}> (x) }}"
    check_symbolic(text, "a, b", numbers(3, 4))


# parts of matrices, and sequences in batches


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-5, -1, 0, 2])
def test_trilu_with_a_traced_diagonal(upper: int, k: int) -> None:
    text = f"g (float[a, 3, 4] x, int64 k) => (float[a, 3, 4] y) {{ y = Trilu <upper = {upper}> (x, k) }}"
    check(text, numbers(2, 3, 4), np.array(k))
    assert to_jax(parse(text)).static_inputs == ()


def test_reversed_sequences_and_their_gradient() -> None:
    text = """g (float[t, b, 2] x, int64[b] n) => (float[t, b, 2] y) {
        y = ReverseSequence <time_axis = 0, batch_axis = 1> (x, n)
    }"""
    x, lengths = numbers(4, 3, 2), np.array([4, 1, 2])
    check(text, x, lengths)
    check_symbolic(text, "t, b, 2;b", x, lengths)
    weights = np.arange(1, x.size + 1, dtype=np.float32).reshape(x.shape)
    wanted = backend("reference").compile(parse(text))(weights, lengths)[0]  # its own inverse
    np.testing.assert_array_equal(gradient(text, x, lengths), wanted)


def test_without_64_bit_types() -> None:
    text = """g (float[a, b] x) => (int64[2] shape, int64[] n, float[] y) {
        shape = Shape (x)
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        size = Size (x)
        n = Range (zero, size, one)
        start = Constant <value_ints = [-2]> ()
        end = Constant <value_ints = [9223372036854775807]> ()
        y = Slice (x, start, end)
    }"""
    function = to_jax(parse(text))
    x = numbers(3, 2)
    shape, n, y = jax.jit(lambda x: function({}, x))(x)
    assert shape.dtype == n.dtype == np.int32
    np.testing.assert_array_equal(shape, [3, 2])
    np.testing.assert_array_equal(n, np.arange(6))
    np.testing.assert_array_equal(y, x[-2:])


@pytest.mark.parametrize("step", [-1, -2, -3])
@pytest.mark.parametrize(("start", "end"), [(-1, -(1 << 63)), (1 << 62, 0), (3, -(1 << 31)), (-2, 1), (0, 2), (1, -9)])
def test_a_slice_goes_backwards_through_symbolic_sizes(start: int, end: int, step: int) -> None:
    text = f"""g (float[n, 2] x) => (float[m, 2] y) <
        int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{0}}, int64[1] p = {{{step}}}
    > {{ y = Slice (x, s, e, a, p) }}"""
    check_symbolic(text, "n, 2", numbers(5, 2))


@pytest.mark.parametrize("step", [2, -1])
def test_a_slice_of_nothing_is_nothing(step: int) -> None:
    text = f"""g (float[n, 2] x) => (float[m, 2] y) <int64[1] s = {{-1}}, int64[1] e = {{-9}}, int64[1] a = {{0}},
        int64[1] p = {{{step}}}> {{ y = Slice (x, s, e, a, p) }}"""
    assert run(text, numbers(0, 2))[0].shape == (0, 2)
