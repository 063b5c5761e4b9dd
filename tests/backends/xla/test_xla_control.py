"""Lowerings of If, Loop, Scan and SequenceMap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.backends import LoweringError, backend
from planish.backends.xla.function import to_jax
from planish.ir.text import parse

Array = np.ndarray[Any, Any]


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def check(text: str, *inputs: Any) -> dict[str, Any]:
    """It computes what ONNX Runtime computes; returns how it ran."""
    wanted = backend("onnxruntime").compile(parse(text))(*inputs)
    executable = backend("xla").compile(parse(text))
    for found, value in zip(executable(*inputs), wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5)
        assert found.dtype == value.dtype
    return executable.report()


def primitives(text: str, *inputs: Array) -> set[str]:
    function = to_jax(parse(text))
    jaxpr = jax.make_jaxpr(lambda *xs: function(function.params, *xs))(*inputs)
    return {str(e.primitive) for e in jaxpr.jaxpr.eqns}


# If

BRANCHES = """g (float[n] x, bool c) => (float[n] y) {
    y = If (c) <
        then_branch = a () => (float[n] t) { t = Exp (x) },
        else_branch = b () => (float[n] e) { e = Neg (x) }
    >
}"""


def test_a_traced_condition_takes_one_branch() -> None:
    for condition in (True, False):
        assert check(BRANCHES, numbers(3), np.array(condition))["compiled"]
    assert "cond" in primitives(BRANCHES, numbers(3), np.array(True))


def test_the_gradient_is_that_of_the_branch() -> None:
    function = to_jax(parse(BRANCHES))
    gradient = jax.jit(jax.grad(lambda x, c: function({}, x, c)[0].sum()))
    np.testing.assert_array_equal(gradient(numbers(3), np.array(False)), [-1, -1, -1])
    np.testing.assert_allclose(gradient(numbers(3), np.array(True)), np.exp(numbers(3)), rtol=1e-6)


def test_a_condition_on_shapes_is_decided_while_tracing() -> None:
    text = """g (float[n, m] x) => (float[] y) {
        m = Shape <start = 1, end = 2> (x)
        one = Constant <value_ints = [1]> ()
        c = Equal (m, one)
        y = If (c) <
            then_branch = a () => (float[] t) { t = Squeeze (x, one) },
            else_branch = b () => (float[] e) { e = Identity (x) }
        >
    }"""
    assert check(text, numbers(3, 1))["compiled"]
    assert check(text, numbers(3, 2))["compiled"]
    assert "cond" not in primitives(text, numbers(3, 2))


def test_branches_of_different_shapes_run_without_being_compiled() -> None:
    text = """g (float[2, 3] x, bool c) => (float[] y) {
        y = If (c) <
            then_branch = a () => (float[2] t) {
                axes = Constant <value_ints = [1]> ()
                t = ReduceSum <keepdims = 0> (x, axes)
            },
            else_branch = b () => (float[2, 3] e) { e = Identity (x) }
        >
    }"""
    for condition in (True, False):
        assert not check(text, numbers(2, 3), np.array(condition))["compiled"]
    function = to_jax(parse(text))
    with pytest.raises(LoweringError, match=r"If: its branches give different types"):
        jax.jit(lambda x, c: function({}, x, c))(numbers(2, 3), np.array(True))


def test_shapes_that_turn_out_to_differ_run_without_being_compiled() -> None:
    text = """g (float[n] x, float[m] z, bool c) => (float[k] y) {
        y = If (c) <
            then_branch = a () => (float[n] t) { t = Exp (x) },
            else_branch = b () => (float[m] e) { e = Neg (z) }
        >
    }"""
    executable = backend("xla").compile(parse(text))
    same, other, flag = numbers(3), numbers(2), np.array(False)
    np.testing.assert_array_equal(executable(same, same, flag)[0], -same)
    assert executable.report()["compiled"]
    np.testing.assert_array_equal(executable(same, other, flag)[0], -other)
    assert not executable.report()["compiled"]


# Loop


def counting(extra: str = "", stacked: str = "", condition: str = "Identity (c)") -> str:
    """A model that computes ``x = x * w + i`` in a loop."""
    scans = ", float[] rows" if stacked else ""
    results = ", rows" if stacked else ""
    outputs = "bool again, float[n] next" + (", float[n] row" if stacked else "")
    return f"""g (float[n] x, float[n] w, int64 count, bool go) => (float[n] y{scans}) {{
        y{results} = Loop (count, go, x) <body = b (int64 i, bool c, float[n] v) => ({outputs}) {{
            k = Cast <to = 1> (i)
            scaled = Mul (v, w)
            next = Add (scaled, k)
            {stacked}
            {extra}
            again = {condition}
        }}>
    }}"""


INPUTS = numbers(3), numbers(3) + 1


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_a_traced_number_of_iterations(count: int) -> None:
    assert check(counting(), *INPUTS, np.array(count), np.array(True))["traces"] == 1
    check(counting(), *INPUTS, np.array(count), np.array(False))
    assert "while" in primitives(counting(), *INPUTS, np.array(count), np.array(True))


def test_a_condition_ends_a_loop_without_a_bound() -> None:
    text = """g (float x, float limit) => (float y, int64 n) {
        zero = Constant <value_int = 0> ()
        y, n = Loop ("", "", x, zero) <body = b (int64 i, bool c, float v, int64 k) => (bool go, float u, int64 m) {
            u = Add (v, v)
            one = Constant <value_int = 1> ()
            m = Add (k, one)
            go = Less (u, limit)
        }>
    }"""
    report = check(text.replace('"", ""', ", "), np.float32(1.5), np.float32(40))
    assert report["compiled"]


def with_count(count: int, text: str) -> str:
    """``text`` with a constant number of iterations and no first condition."""
    text = text.replace(", int64 count, bool go)", ")").replace("Loop (count, go, x)", "Loop (count, , x)")
    return text.replace("        y", f"        count = Constant <value_int = {count}> ()\n        y", 1)


@pytest.mark.parametrize(("count", "primitive"), [(3, "mul"), (40, "scan")])
def test_a_known_number_of_iterations_has_a_gradient(count: int, primitive: str) -> None:
    text = with_count(count, counting(stacked="row = Neg (v)"))
    assert check(text, *INPUTS)["compiled"]
    assert primitive in primitives(text, *INPUTS)
    function = to_jax(parse(text))

    def wanted(x: Any, w: Any) -> Any:
        rows = []
        for i in range(count):
            rows.append(-x)
            x = x * w + i
        return x, jnp.stack(rows)

    def loss(f: Any) -> Any:
        return lambda x, w: sum((y * 0.01).sum() for y in f(x, w))

    found = jax.jit(jax.grad(loss(lambda x, w: function({}, x, w)), (0, 1)))(*INPUTS)
    for a, b in zip(found, jax.grad(loss(wanted), (0, 1))(*INPUTS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_bounded_loop_with_a_condition_has_a_gradient() -> None:
    condition = """Less (k, five)"""
    text = with_count(60, counting("five = Constant <value_float = 5.0> ()", condition=condition))
    assert check(text, *INPUTS)["compiled"]
    function = to_jax(parse(text))

    def wanted(x: Any, w: Any) -> Any:
        for i in range(6):
            x = x * w + i
        return x

    found = jax.grad(lambda x, w: function({}, x, w)[0].sum(), 1)(*INPUTS)
    np.testing.assert_allclose(found, jax.grad(lambda x, w: wanted(x, w).sum(), 1)(*INPUTS), rtol=1e-5)


def test_stacked_results_make_the_count_static() -> None:
    text = counting(stacked="row = Neg (v)")
    for count in (2, 40):
        report = check(text, *INPUTS, np.array(count), np.array(True))
        assert report["compiled"]
        assert report["static_inputs"] == ["count", "go"]
    for count, go in ((0, True), (3, False)):
        y, rows = backend("xla").compile(parse(text))(*INPUTS, np.array(count), np.array(go))
        np.testing.assert_array_equal(y, INPUTS[0])
        assert rows.shape == (0, 3)


def test_stacked_results_of_a_loop_that_data_ends_run_exactly() -> None:
    text = counting("total = ReduceMax <keepdims = 0> (next)\n ten = Constant <value_float = 10.0> ()",
                    "row = Neg (v)", "Less (total, ten)")  # fmt: skip
    report = check(text, np.float32([1, 2, 3]), np.float32([1, 2, 1]), np.array(100), np.array(True))
    assert not report["compiled"]
    function = to_jax(parse(text))
    with pytest.raises(LoweringError, match="Loop: the number of its iterations decides shapes"):
        jax.jit(lambda *xs: function({}, *xs))(*INPUTS, np.array(3), np.array(True))


GROWING = """g (float[1] x{inputs}) => (float[n] y) {{
    {count}
    y = Loop (count, , x) <body = b (int64 i, bool c, float[k] v) => (bool go, float[m] w) {{
        go = Identity (c)
        w = Concat <axis = 0> (v, x)
    }}>
}}"""


def test_a_carried_value_that_grows() -> None:
    text = GROWING.format(inputs="", count="count = Constant <value_int = 50> ()")
    assert check(text, numbers(1))["compiled"]
    text = GROWING.format(inputs=", int64 count", count="")
    assert check(text, numbers(1), np.array(3))["static_inputs"] == ["count"]


def test_a_value_that_grows_until_data_ends_the_loop() -> None:
    text = """g (float[1] x, float limit) => (float[n] y) {
        y = Loop ( , , x) <body = b (int64 i, bool c, float[k] v) => (bool go, float[m] w) {
            w = Concat <axis = 0> (v, v)
            total = ReduceSum <keepdims = 0> (w)
            go = Less (total, limit)
        }>
    }"""
    executable = backend("xla").compile(parse(text))
    np.testing.assert_array_equal(executable(np.float32([1]), np.float32(5))[0], np.ones(8))
    np.testing.assert_array_equal(executable(np.float32([1]), np.float32(3))[0], np.ones(4))
    assert executable.report()["data_dependent"]


def test_iteration_numbers_that_decide_shapes() -> None:
    text = """g (float[6] x) => (float[3] y) {
        count = Constant <value_int = 3> ()
        zero = Constant <value_floats = [0.0]> ()
        last, y = Loop (count, , zero) <body = b (int64 i, bool c, float[1] v) => (bool go, float[1] u, float s) {
            go = Identity (c)
            axis = Constant <value_ints = [0]> ()
            at = Unsqueeze (i, axis)
            two = Constant <value_ints = [2]> ()
            end = Mul (at, two)
            part = Slice (x, at, end)
            s = ReduceSum <keepdims = 0> (part)
            u = Identity (v)
        }>
    }"""
    assert check(text, numbers(6))["compiled"]


def test_a_condition_on_shapes_alone_is_unrolled() -> None:
    text = """g (float[n] x) => (float[] rows) {
        n = Size (x)
        one = Constant <value_int = 1> ()
        last, rows = Loop ( , , one) <body = b (int64 i, bool c, int64 k) => (bool go, int64 m, float[n] row) {
            m = Add (k, k)
            go = Less (m, n)
            f = Cast <to = 1> (k)
            row = Mul (x, f)
        }>
    }"""
    assert check(text, numbers(9))["compiled"]


def test_loops_in_loops_and_captures() -> None:
    text = """g (float[n] x, int64 count) => (float[n] y) {
        y = Loop (count, , x) <body = b (int64 i, bool c, float[n] v) => (bool go, float[n] w) {
            go = Identity (c)
            three = Constant <value_int = 30> ()
            w = Loop (three, , v) <body = d (int64 j, bool e, float[n] p) => (bool on, float[n] q) {
                on = Identity (e)
                f = Cast <to = 1> (i)
                s = Add (x, f)
                half = Constant <value_float = 0.5> ()
                h = Mul (p, half)
                q = Add (h, s)
            }>
        }>
    }"""
    assert check(text, numbers(3), np.array(4))["compiled"]


def test_data_dependent_operators_in_a_loop() -> None:
    text = """g (float[n] x) => (int64[m] y) {
        count = Constant <value_int = 40> ()
        none = Constant <value_ints = [0]> ()
        y = Loop (count, , none) <body = b (int64 i, bool c, int64[k] v) => (bool go, int64[k] w) {
            go = Identity (c)
            found = NonZero (x)
            sums = ReduceSum <keepdims = 0> (found)
            w = Add (v, sums)
        }>
    }"""
    report = check(text, np.float32([0, 1, 0, 2]))
    assert report["compiled"]
    assert "NonZero" in report["data_dependent"][0]


def test_loops_export_with_symbolic_sizes() -> None:
    text = """g (float[n, 2] x) => (float[2] y, float[n, 2] rows) {
        n = Shape <start = 0, end = 1> (x)
        axis = Constant <value_ints = [0]> ()
        count = Squeeze (n, axis)
        zero = Constant <value_floats = [0.0, 0.0]> ()
        y, rows = Loop (count, , zero) <body = b (int64 i, bool c, float[2] v) => (bool go, float[2] w, float[2] row) {
            go = Identity (c)
            r = Gather (x, i)
            w = Add (v, r)
            row = Identity (w)
        }>
    }"""
    x = numbers(5, 2)
    check(text, x)
    function = to_jax(parse(text))
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 2"), np.float32)
    with jax.enable_x64(True):
        y, rows = jax.export.export(jax.jit(lambda x: function(function.params, x)))(spec).call(x)
    np.testing.assert_allclose(rows, np.cumsum(x, 0), rtol=1e-6)
    np.testing.assert_allclose(y, x.sum(0), rtol=1e-5)


def test_without_64_bit_types() -> None:
    function = to_jax(parse(counting()))
    x, w = INPUTS
    (found,) = jax.jit(lambda *xs: function({}, *xs))(x, w, np.array(2, np.int32), np.array(True))
    np.testing.assert_allclose(found, x * w * w + 1, rtol=1e-6)


# Scan

SCAN = """g (float[2] s, float[2, n] x, float[n, 2] z) => (float[2] last, float[n, 2] up, float[2, n] down) {
    last, up, down = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [0, 1],
        scan_output_axes = [0, -1], scan_output_directions = [0, 1],
        body = b (float[2] v, float[2] a, float[2] c) => (float[2] w, float[2] p, float[2] q) {
            d = Mul (a, c)
            w = Add (v, d)
            p = Identity (w)
            q = Neg (a)
        }> (s, x, z)
}"""


def test_scan_along_axes_in_directions() -> None:
    s, x, z = numbers(2), numbers(2, 4), numbers(4, 2)
    backward = z[::-1]
    sums = s + np.cumsum(x.T * backward, 0)
    function = to_jax(parse(SCAN))
    for last, up, down in (backend("xla").compile(parse(SCAN))(s, x, z), function({}, s, x, z)):
        np.testing.assert_allclose(last, sums[-1], rtol=1e-5)
        np.testing.assert_allclose(up, sums, rtol=1e-5)
        np.testing.assert_array_equal(down, -x[:, ::-1])
    gradient = jax.grad(lambda x: function({}, s, x, z)[0].sum())(x)
    np.testing.assert_allclose(gradient, backward.T, rtol=1e-6)


def test_scan_over_a_symbolic_length() -> None:
    function = to_jax(parse(SCAN))
    scope = jax.export.SymbolicScope()
    shapes = [jax.export.symbolic_shape(t, scope=scope) for t in ("2", "2, n", "n, 2")]
    specs = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes]
    inputs = numbers(2), numbers(2, 4), numbers(4, 2)
    found = jax.export.export(jax.jit(lambda *xs: function({}, *xs)))(*specs).call(*inputs)
    for a, b in zip(found, function({}, *inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_scan_with_a_state_that_grows() -> None:
    text = """g (float[1] s, float[3] x) => (float[] y, float[3] sums) {
        y, sums = Scan <num_scan_inputs = 1, body = b (float[k] v, float e) => (float[m] w, float t) {
            axis = Constant <value_ints = [0]> ()
            r = Unsqueeze (e, axis)
            w = Concat <axis = 0> (v, r)
            t = ReduceSum <keepdims = 0> (w)
        }> (s, x)
    }"""
    s, x = np.float32([1]), np.float32([2, 3, 4])
    y, sums = backend("xla").compile(parse(text))(s, x)
    np.testing.assert_array_equal(y, [1, 2, 3, 4])
    np.testing.assert_array_equal(sums, [3, 6, 10])


def test_a_body_maps_sequences() -> None:
    text = """g (float[2] a, float[3] b, float t) => (float[2] first, float[3] second) {
        s = SequenceConstruct (a, b)
        r = SequenceMap (s, t) <body = f (float[k] e, float u) => (float[k] v) { v = Mul (e, u) }>
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        first = SequenceAt (r, zero)
        second = SequenceAt (r, one)
    }"""
    found = backend("xla").compile(parse(text))(numbers(2), numbers(3), np.float32(2))
    np.testing.assert_array_equal(found[0], numbers(2) * 2)
    np.testing.assert_array_equal(found[1], numbers(3) * 2)
