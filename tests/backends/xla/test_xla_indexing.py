"""Lowerings of the operators that pick elements, put them in places, or find where they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from planish.backends import LoweringError, backend
from planish.backends.xla.function import to_jax
from planish.ir.text import parse

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import check_text as check
from single_node import numbers
from single_node import run_text as run

Array = np.ndarray[Any, Any]


def check_symbolic(text: str, shapes: str, *inputs: Array, constraints: tuple[str, ...] = ()) -> None:
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
    for a, b in zip(found, backend("reference").compile(parse(text))(*inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def gradients(text: str, *inputs: Array, at: tuple[int, ...] = (0,)) -> Any:
    """The gradients of a weighted sum of the first result."""
    function = to_jax(parse(text))

    def loss(*xs: Any) -> Any:
        y = function(function.params, *xs)[0]
        return (y * jnp.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape)).sum()

    return jax.grad(loss, at)(*inputs)


def primitives(text: str, *inputs: Array) -> set[str]:
    function = to_jax(parse(text))
    jaxpr = jax.make_jaxpr(lambda *xs: function(function.params, *xs))(*inputs)
    return {str(e.primitive) for e in jaxpr.jaxpr.eqns}


# reading


@pytest.mark.parametrize("indices", ["-1", "2"])
def test_gather_of_one_known_index_is_a_slice(indices: str) -> None:
    text = f"""g (float[b, 3, 2] x) => (float[b, 2] y) {{
        i = Constant <value_int = {indices}> ()
        y = Gather <axis = 1> (x, i)
    }}"""
    check(text, numbers(2, 3, 2))
    check_symbolic(text, "b, 3, 2", numbers(2, 3, 2))
    assert "gather" not in primitives(text, numbers(2, 3, 2))


@pytest.mark.parametrize("index", ["value_int = -1", "value_int = 2", "value_ints = [0, 1]", "value_ints = [-1, -2]"])
def test_known_indices_into_a_symbolic_size(index: str) -> None:
    text = f"""g (float[b, s, 2] x) => (float[] y) {{
        i = Constant <{index}> ()
        y = Gather <axis = 1> (x, i)
    }}"""
    check_symbolic(text, "b, s, 2", numbers(2, 3, 2))


@pytest.mark.parametrize(("indices", "is_slice"), [("1, 2, 3", True), ("0, 2", True), ("-2", True), ("2, 1, 1", False)])
def test_gather_of_known_indices(indices: str, is_slice: bool) -> None:
    text = f"""g (float[2, 5] x) => (float[] y) {{
        i = Constant <value_ints = [{indices}]> ()
        y = Gather <axis = -1> (x, i)
    }}"""
    check(text, numbers(2, 5))
    assert ("gather" not in primitives(text, numbers(2, 5))) == is_slice


def test_gather_of_traced_indices_counts_negative_ones_from_the_end() -> None:
    text = "g (float[v, 2] x, int64[a, b] i) => (float[a, b, 2] y) { y = Gather (x, i) }"
    check(text, numbers(5, 2), np.array([[-5, 1, -1], [4, 0, 0]]))
    check_symbolic(text, "v, 2;a, b", numbers(5, 2), np.array([[-5, 1, -1], [4, 0, 0]]))


def test_a_known_index_out_of_bounds_is_an_error() -> None:
    text = """g (float[2, 3] x) => (float[] y) {
        i = Constant <value_int = 3> ()
        y = Gather <axis = 1> (x, i)
    }"""
    with pytest.raises(LoweringError, match="an index is out of the bounds of 3 elements"):
        run(text, numbers(2, 3))


def test_the_gradient_of_gather_adds_up_repeated_rows() -> None:
    text = "g (float[3, 1] x, int64[4] i) => (float[4, 1] y) { y = Gather (x, i) }"
    (found,) = gradients(text, numbers(3, 1), np.array([0, 2, -1, 0]))
    np.testing.assert_array_equal(found, [[1 + 4], [0], [2 + 3]])


def test_gather_elements_of_a_part() -> None:
    text = "g (float[a, 4] x, int32[c, 2] i) => (float[c, 2] y) { y = GatherElements <axis = 1> (x, i) }"
    x, indices = numbers(3, 4), np.int32([[3, -4], [0, -1]])
    np.testing.assert_array_equal(run(text, x, indices)[0], [[x[0, 3], x[0, 0]], [x[1, 0], x[1, 3]]])
    check_symbolic(text, "a, 4;a, 2", x, np.int32([[3, -4], [0, -1], [1, 1]]))
    (found,) = gradients(text, x, indices)
    np.testing.assert_array_equal(found, [[2, 0, 0, 1], [3, 0, 0, 4], [0, 0, 0, 0]])


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_gather_nd(batch: int) -> None:
    text = f"g (float[b, 2, 3, 2] x, int64[b, 2, 1] i) => (float[] y) {{ y = GatherND <batch_dims = {batch}> (x, i) }}"
    x, indices = numbers(2, 2, 3, 2), np.array([[[-1], [0]], [[1], [-2]]])
    check(text, x, indices)
    check_symbolic(text, "b, 2, 3, 2;b, 2, 1", x, indices)


# writing


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", ["float", "int32", "bfloat16"])
def test_scatters(reduction: str, dtype: str) -> None:
    numpy = {"float": np.float32, "int32": np.int32, "bfloat16": ml_dtypes.bfloat16}[dtype]
    x = np.arange(12).reshape(3, 4).astype(numpy)
    updates = np.array([[5, -7], [2, 3]]).astype(numpy)
    text = f"""g ({dtype}[3, 4] x, int64[2, 2] i, {dtype}[2, 2] u) => ({dtype}[3, 4] y) {{
        y = ScatterElements <axis = 1, reduction = "{reduction}"> (x, i, u)
    }}"""
    function = {"none": lambda a, b: b, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[
        reduction
    ]
    wanted = x.copy()
    indices = np.array([[3, -4], [-1, 1]])
    for (row, k), column in np.ndenumerate(indices):
        wanted[row, column] = function(wanted[row, column], updates[row, k])  # type: ignore[operator]
    np.testing.assert_array_equal(run(text, x, indices, updates)[0], wanted)
    text = f"""g ({dtype}[3, 4] x, int64[2, 1] i, {dtype}[2, 4] u) => ({dtype}[3, 4] y) {{
        y = ScatterND <reduction = "{reduction}"> (x, i, u)
    }}"""
    rows, wanted = np.arange(8).reshape(2, 4).astype(numpy), x.copy()
    for i, row in zip([-1, 0], rows, strict=True):
        wanted[i] = function(wanted[i], row)  # type: ignore[operator]
    np.testing.assert_array_equal(run(text, x, np.array([[-1], [0]]), rows)[0], wanted)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize(
    "indices", [[[[1, 1], [1, 2]], [[-1, 1], [-1, 2]]], [[[1, 2], [1, 1]], [[2, 2], [2, 1]]], [[[0, 1], [2, 3]]]]
)
def test_known_places_in_a_scatter_are_a_slice_only_in_order_and_without_gaps(
    reduction: str, indices: list[list[list[int]]]
) -> None:
    shape = np.shape(indices)[:2]
    text = f"""g (float[3, 4, n] x, float[{shape[0]}, {shape[1]}, n] u) => (float[3, 4, n] y) {{
        i = Constant <value = int64[{shape[0]}, {shape[1]}, 2] {{{", ".join(map(str, np.ravel(indices)))}}}> ()
        y = ScatterND <reduction = "{reduction}"> (x, i, u)
    }}"""
    x, u = numbers(3, 4, 2), numbers(*shape, 2)
    check(text, x, u)
    check_symbolic(text, f"3, 4, n;{shape[0]}, {shape[1]}, n", x, u)
    function = to_jax(parse(text))
    operations = str(jax.make_jaxpr(lambda *xs: function(function.params, *xs))(x, u))
    assert ("scatter" in operations) == (indices[0] != [[1, 1], [1, 2]])


def test_elements_at_known_places_along_an_axis_are_a_slice() -> None:
    text = """g (float[2, 5] x, float[2, 2] u) => (float[2, 5] y, float[2, 5] z) {
        i = Constant <value = int64[2, 2] {2, 3, 2, 3}> ()
        j = Constant <value = int64[2, 2] {2, 3, 3, 4}> ()
        y = ScatterElements <axis = 1> (x, i, u)
        z = ScatterElements <axis = 1> (x, j, u)
    }"""
    check(text, numbers(2, 5), numbers(2, 2))
    function = to_jax(parse(text))
    operations = str(jax.make_jaxpr(lambda *xs: function(function.params, *xs))(numbers(2, 5), numbers(2, 2)))
    assert operations.count("dynamic_update_slice") == 1


def test_scatters_of_symbolic_sizes() -> None:
    text = """g (float[n, 3] x, int64[m, 1] i, float[m, 3] u) => (float[n, 3] y, float[n, 3] z) {
        zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        column = Slice (u, zero, one, one)
        y = ScatterND <reduction = "add"> (x, i, u)
        z = ScatterElements <axis = 0> (x, i, column)
    }"""
    check_symbolic(text, "n, 3;m, 1;m, 3", numbers(4, 3), np.array([[-1], [1]]), numbers(2, 3))


def test_gradients_of_scatters() -> None:
    text = 'g (float[4] x, int64[2, 1] i, float[2] u) => (float[4] y) { y = ScatterND <reduction = "add"> (x, i, u) }'
    of_x, of_u = gradients(text, numbers(4), np.array([[3], [-3]]), numbers(2), at=(0, 2))
    np.testing.assert_array_equal(of_x, [1, 2, 3, 4])
    np.testing.assert_array_equal(of_u, [4, 2])
    text = text.replace("add", "none")
    of_x, of_u = gradients(text, numbers(4), np.array([[3], [-3]]), numbers(2), at=(0, 2))
    np.testing.assert_array_equal(of_x, [1, 0, 3, 0])
    np.testing.assert_array_equal(of_u, [4, 2])


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_updates_of_a_cache(mode: str) -> None:
    text = f"""g (float[b, 2, 4, 3] c, float[b, 2, s, 3] u, int64[b] i) => (float[b, 2, 4, 3] y) {{
        y = TensorScatter <mode = "{mode}"> (c, u, i)
    }}"""
    starts = np.array([0, 2]) if mode == "linear" else np.array([3, 5])
    check(text, numbers(2, 2, 4, 3), numbers(2, 2, 2, 3), starts)
    check_symbolic(
        text, "b, 2, 4, 3;b, 2, s, 3;b", numbers(2, 2, 4, 3), numbers(2, 2, 2, 3), starts, constraints=("s <= 4",)
    )


# order


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8, np.int64, np.uint64])
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_takes_the_lower_index_of_equals(dtype: Any, largest: int) -> None:
    name = {"float32": "float"}.get(np.dtype(dtype).name, np.dtype(dtype).name)
    text = f"""g ({name}[n, 6] x, int64[1] k) => ({name}[n, 3] v, int64[n, 3] i) {{
        v, i = TopK <axis = -1, largest = {largest}> (x, k)
    }}"""
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    x = np.array([[3, 1, 3, 1, 3, 1], [info.min, info.max, 0, info.min, info.max, 5]], dtype)
    values, indices = run(text, x, np.array([3]))
    wanted = [[0, 2, 4], [1, 4, 5]] if largest else [[1, 3, 5], [0, 3, 2]]
    if not largest and np.dtype(dtype).kind == "u":
        wanted[1] = [0, 2, 3]
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(x, np.array(wanted), 1))


def test_top_k_of_symbolic_sizes_along_another_axis() -> None:
    text = """g (float[n, b] x) => (float[k, b] v, int64[k, b] i) {
        n = Shape <start = 0, end = 1> (x)
        most = Constant <value_ints = [4]> ()
        k = Min (n, most)
        v, i = TopK <axis = 0> (x, k)
    }"""
    check_symbolic(text, "n, b", numbers(7, 3))
    check_symbolic(text, "n, b", numbers(2, 3))


def test_the_gradient_of_top_k_goes_where_the_values_were() -> None:
    text = "g (float[4] x, int64[1] k) => (float[2] v, int64[2] i) { v, i = TopK <largest = 0> (x, k) }"
    (found,) = gradients(text, np.float32([5, 2, 7, 1]), np.array([2]))
    np.testing.assert_array_equal(found, [0, 2, 0, 1])


def test_top_k_of_too_many_is_an_error() -> None:
    text = "g (float[4] x, int64[1] k) => (float[n] v, int64[n] i) { v, i = TopK (x, k) }"
    with pytest.raises(LoweringError, match="the first 5 of 4 elements"):
        run(text, numbers(4), np.array([5]))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    text = f"""g (int64[a, b] i, float[2] values) => (float[] y) {{
        depth = Constant <value_int = 3> ()
        y = OneHot <axis = {axis}> (i, depth, values)
    }}"""
    indices = np.array([[0, 2, -1, 3], [-3, -4, 1, 1]])
    check(text, indices, np.float32([-1, 5]))
    check_symbolic(text, "a, b;2", indices, np.float32([-1, 5]))
    assert gradients(text, indices, np.float32([0, 1]), at=(1,))[0].sum() == 24 * 25 / 2


# results whose sizes depend on data


def test_nonzero_compress_and_unique_run_exactly() -> None:
    text = "g (float[a, b] x) => (int64[2, n] y) { y = NonZero (x) }"
    check(text, np.float32([[0, 1, np.nan], [2, 0, -0.0]]))
    check(text, np.zeros((2, 3), np.float32))
    text = "g (float[a, b] x, bool[n] c) => (float[] y) { y = Compress <axis = 1> (x, c) }"
    check(text, numbers(2, 4), np.array([True, False, True]))
    text = """g (bfloat16[n] x) => (bfloat16[m] y, int64[m] first, int64[n] inverse, int64[m] counts) {
        y, first, inverse, counts = Unique <sorted = 0> (x)
    }"""
    x = np.array([2, 1, 1, 3, 4, 3]).astype(ml_dtypes.bfloat16)
    y, first, inverse, counts = run(text, x)
    np.testing.assert_array_equal(y, [2, 1, 3, 4])
    assert y.dtype == ml_dtypes.bfloat16
    assert [list(v) for v in (first, inverse, counts)] == [[0, 1, 3, 4], [0, 1, 1, 2, 3, 2], [1, 2, 2, 1]]


def test_what_depends_on_data_is_reported_and_cannot_be_traced() -> None:
    text = "g (float[n] x) => (int64[1, m] y) { y = NonZero (x) }"
    executable = backend("xla").compile(parse(text), data_dependent="exact")
    assert not executable.report()["compiled"]
    function = to_jax(parse(text))
    with pytest.raises(LoweringError, match="NonZero: the shape of its result depends on data"):
        jax.jit(lambda x: function({}, x))(numbers(3))


def test_what_depends_on_shapes_alone_is_traced() -> None:
    text = """g (float[n, 2] x) => (float[n, 2] y) {
        n = Shape <start = 0, end = 1> (x)
        ones = ConstantOfShape <value = int64[1] {1}> (n)
        places = NonZero (ones)
        axis = Constant <value_ints = [0]> ()
        rows = Squeeze (places, axis)
        y = Gather (x, rows)
    }"""
    check(text, numbers(3, 2))
    assert backend("xla").compile(parse(text)).report()["compiled"]


def test_compress_has_a_gradient() -> None:
    text = "g (float[4] x, bool[4] c) => (float[] y) { y = Compress (x, c) }"
    (found,) = gradients(text, numbers(4), np.array([True, False, False, True]))
    np.testing.assert_array_equal(found, [1, 0, 0, 2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_top_k_knows_no_signs_of_zeros_and_nan(dtype: Any) -> None:
    largest = """g (float[6] x, int64[1] k) => (float[n] v, int64[n] i) { v, i = TopK (x, k) }"""
    largest = largest.replace("float[", {2: "float16[", 4: "float["}[np.dtype(dtype).itemsize])
    if dtype is ml_dtypes.bfloat16:
        largest = largest.replace("float16", "bfloat16")
    smallest = largest.replace("TopK", "TopK <largest = 0>")
    x = np.array([-0.0, -np.nan, 0.0, 1, np.nan, -np.inf]).astype(dtype)
    assert run(largest, x, np.array([6]))[1].tolist() == [1, 4, 3, 0, 2, 5]
    assert run(smallest, x, np.array([6]))[1].tolist() == [5, 0, 2, 3, 1, 4]


def test_gather_elements_of_symbolic_sizes_that_are_smaller_than_those_of_the_data() -> None:
    text = "g (float[a, b, 3] x, int64[c, d, 2] i) => (float[c, d, 2] y) { y = GatherElements <axis = 1> (x, i) }"
    x, indices = numbers(4, 3, 3), np.array([[[0, -1], [2, 1]]] * 2)
    function, scope = to_jax(parse(text)), jax.export.SymbolicScope()
    specs = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype)
        for shape, dtype in (("a, b, 3", np.float32), ("c, d, 2", np.int64))
    ]
    with jax.enable_x64(True):
        (found,) = jax.export.export(jax.jit(lambda *xs: function({}, *xs)))(*specs).call(x, indices)
    np.testing.assert_array_equal(found, np.take_along_axis(x[:2, :, :2], indices, 1))


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("starts", ["", ", s"])
def test_tensor_scatter_of_symbolic_sizes(mode: str, starts: str) -> None:
    text = f"""g (float[b, 2, 8, 3] c, float[b, 2, n, 3] u, int64[b] s) => (float[b, 2, 8, 3] y) {{
        y = TensorScatter <axis = 2, mode = "{mode}"> (c, u{starts})
    }}"""
    inputs = numbers(2, 2, 8, 3), numbers(2, 2, 3, 3), np.array([1, 5])
    check_symbolic(text, "b, 2, 8, 3;b, 2, n, 3;b", *inputs)
