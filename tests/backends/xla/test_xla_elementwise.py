"""Elementwise operators on XLA beyond ONNX's own tests: conversions, kinks, narrow types and random numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax import export

from planish.backends.xla.function import to_jax
from planish.ir import DType, Graph, Value, tensor_type
from planish.ir.builder import make_node
from planish.ir.edit import insert_floating
from planish.ir.errors import PlanishError
from planish.ir.schema import canonical_opset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import lowered, type_of

Array = np.ndarray[Any, Any]
INF, NAN = np.inf, np.nan


def run(op: str, *arrays: Any, **attrs: Any) -> Array:
    """The first result, compiled."""
    function = lowered(op, *(type_of(np.asarray(a)) for a in arrays), **attrs)
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(function.params, *arrays)[0])


def gradient(op: str, x: Array, *constants: Any, **attrs: Any) -> Array:
    """The gradient of the sum of the first result."""
    function = lowered(op, type_of(x), *constants, **attrs)
    return np.asarray(jax.grad(lambda x: function(function.params, x)[0].astype(float).sum())(x))


# conversions

E4M3FN = ml_dtypes.float8_e4m3fn
FLOAT8 = [E4M3FN, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz]
SPREAD = (np.random.default_rng(0).normal(size=999) * 10.0 ** np.random.default_rng(1).integers(-6, 5, 999)).astype("f")


def cast(x: Any, to: Any, **attrs: Any) -> Array:
    result = run("Cast", np.asarray(x), to=int(DType.from_numpy(np.dtype(to))), **attrs)
    assert result.dtype == np.dtype(to)
    return result


@pytest.mark.parametrize("to", FLOAT8)
@pytest.mark.parametrize("source", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_float8_is_rounded_to_nearest_and_saturates(source: Any, to: Any) -> None:
    x = SPREAD.astype(source)
    limit = float(ml_dtypes.finfo(to).max)
    nearest = np.clip(x.astype(float), -limit, limit).astype(to)
    np.testing.assert_array_equal(cast(x, to).astype(float), nearest.astype(float))
    ends = cast(np.array([INF, -INF, NAN, 6e4, -6e4]).astype(source), to).astype(float)
    np.testing.assert_array_equal(ends, [limit, -limit, NAN, limit, -limit])


@pytest.mark.parametrize("to", FLOAT8)
def test_float8_overflows_where_it_is_not_to_saturate(to: Any) -> None:
    found = cast(np.array([INF, -INF, 1e6, -1e6, 1.0], "f"), to, saturate=0).astype(float)
    over = INF if to is ml_dtypes.float8_e5m2 else NAN
    np.testing.assert_array_equal(found, [over, -over, over, -over, 1.0])


def test_integers_and_other_float8_become_float8() -> None:
    np.testing.assert_array_equal(cast(np.array([3, -1000, 17]), E4M3FN).astype(float), [3, -448, 16])
    wide = np.array([57344, -2, NAN], ml_dtypes.float8_e5m2)
    np.testing.assert_array_equal(cast(wide, E4M3FN).astype(float), [448, -2, NAN])
    assert cast(np.array([True, False]), E4M3FN).astype(float).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("mode", "powers"),
    [("up", [-1, 0, 1, 1, 2, -126]), ("down", [-1, 0, 0, 0, 1, -127]), ("nearest", [-1, 0, 0, 1, 2, -127])],
)
def test_float8e8m0_rounds_powers_of_two_as_asked(mode: str, powers: list[int]) -> None:
    x = np.array([0.5, 1, 1.25, 1.5, 3.5, 1.25 * 2.0**-127], "f")
    found = cast(x, ml_dtypes.float8_e8m0fnu, round_mode=mode)
    np.testing.assert_array_equal(found.view(np.uint8), [p + 127 for p in powers])


def test_float8e8m0_saturates_at_both_ends_or_gives_nan() -> None:
    x = np.array([0, NAN, INF, 3e38, 1e-40, 4], "f")
    assert cast(x, ml_dtypes.float8_e8m0fnu).view(np.uint8).tolist() == [0, 255, 254, 254, 0, 129]
    found = cast(x, ml_dtypes.float8_e8m0fnu, saturate=0, round_mode="nearest").view(np.uint8)
    assert found.tolist() == [255, 255, 255, 255, 255, 129]


def test_an_unknown_round_mode_is_refused_up_front() -> None:
    with pytest.raises(PlanishError, match="round_mode is 'odd': it can be up, down or nearest"):
        lowered("Cast", tensor_type(DType.FLOAT, 2), to=int(DType.FLOAT8E8M0), round_mode="odd")


def test_floats_are_truncated_and_narrow_integers_keep_the_low_bits() -> None:
    x = np.array([-1.9, 1.9, 200.5, -3.0, 7.99], "f")
    assert cast(x, np.int32).tolist() == [-1, 1, 200, -3, 7]
    assert cast(x, np.int8).tolist() == [-1, 1, -56, -3, 7]
    assert cast(x, np.uint8).tolist() == [255, 1, 200, 253, 7]
    assert cast(x, ml_dtypes.int4).astype(int).tolist() == [-1, 1, -8, -3, 7]
    assert cast(x, ml_dtypes.uint2).astype(int).tolist() == [3, 1, 0, 1, 3]
    assert cast(np.array([200, -300], np.int16), np.int8).tolist() == [-56, -44]


def test_whatever_is_not_zero_is_true() -> None:
    assert cast(np.array([NAN, -0.0, 0.3, INF], "f"), bool).tolist() == [True, False, True, True]
    assert cast(np.array([0, -1, 256]), bool).tolist() == [False, True, True]


def test_cast_like_takes_the_type_and_saturates() -> None:
    found = run("CastLike", np.array([1e6, 1.1], "f"), np.zeros(0, E4M3FN))
    assert found.dtype == E4M3FN
    assert found.astype(float).tolist() == [448, 1.125]


@pytest.mark.parametrize(
    ("x", "to"),
    [
        (np.array([1.5, -0.0], "f"), np.int32),
        (np.array([-1, 2**63 - 1]), np.float64),
        (np.array([1 + 2j, -3j], np.complex64), np.uint64),
        (np.array([2**40 + 5], np.uint64), np.complex64),
        (np.array([0x7C01], np.int16), np.float16),
        (np.array([True, False]), np.uint8),
        (np.array([0, 1], np.uint8), bool),
        (np.arange(256).astype(np.uint8), E4M3FN),
        (np.arange(256).astype(np.int8), ml_dtypes.float8_e8m0fnu),
    ],
)
def test_bit_cast_keeps_the_bits(x: Array, to: Any) -> None:
    function = lowered("BitCast", type_of(x), to=int(DType.from_numpy(np.dtype(to))))
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(function)(function.params, x)[0])
    assert found.dtype == np.dtype(to)
    assert found.tobytes() == x.tobytes()


def test_bit_cast_works_on_half_bytes() -> None:
    found = run("BitCast", np.arange(16).astype(ml_dtypes.uint4), to=int(DType.INT4))
    assert found.astype(int).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]


def test_bit_cast_of_64_bits_needs_them() -> None:
    function = lowered("BitCast", tensor_type(DType.DOUBLE, 1), to=int(DType.INT64))
    with pytest.raises(PlanishError, match="double as int64 needs 64-bit types"):
        function(function.params, np.ones(1))


def test_types_are_narrow_where_64_bits_are_off() -> None:
    function = lowered("Cast", tensor_type(DType.FLOAT, 2), to=int(DType.INT64))
    (found,) = function(function.params, np.array([1.5, -7.9], "f"))
    assert found.dtype == np.int32
    assert found.tolist() == [1, -7]


# arithmetic


def test_mod_has_the_sign_and_the_special_values_that_the_standard_states() -> None:
    x = np.array([0.0, -0.0, INF, 3, -3, 3, -3, NAN, 1, 5.5])
    y = np.array([-3.0, 3, 2, INF, INF, -INF, -INF, 1, 0, -2])
    floor = run("Mod", x, y)
    np.testing.assert_array_equal(floor, [-0.0, 0.0, NAN, 3, INF, -INF, -3, NAN, NAN, -0.5])
    assert np.signbit(floor[:2]).tolist() == [True, False]
    np.testing.assert_array_equal(run("Mod", x, y, fmod=1), [0, 0, NAN, 3, -3, 3, -3, NAN, NAN, 1.5])
    a, b = np.array([-7, 7, -7, 7], np.int8), np.array([3, -3, -3, 3], np.int8)
    assert run("Mod", a, b).tolist() == [2, -2, -1, 1]
    assert run("Mod", a, b, fmod=1).tolist() == [-1, 1, -1, 1]


def test_shifts_beyond_the_width_leave_zero_or_the_sign() -> None:
    x = np.array([-8, 8, -1, 5], np.int8)
    for amount in (-1, 8, 100):
        y = np.array([amount], np.int8)
        assert run("BitShift", x, y, direction="LEFT").tolist() == [0, 0, 0, 0]
        assert run("BitShift", x, y, direction="RIGHT").tolist() == [-1, 0, -1, 0]
    assert run("BitShift", x, np.array([1], np.int8), direction="RIGHT").tolist() == [-4, 4, -1, 2]
    assert run("BitShift", np.array([200], np.uint8), np.array([1], np.uint8), direction="RIGHT").tolist() == [100]


def test_powers_of_integers_are_exact_and_round_towards_zero() -> None:
    base = np.arange(1, 60)
    for exponent in (2.0, 3.0, 7.0, 9.0):
        assert run("Pow", base, np.array([exponent])).tolist() == [b ** int(exponent) for b in base.tolist()]
    assert run("Pow", np.array([4, 10, 2, -2]), np.array([0.5, 0.5, -1, 3])).tolist() == [2, 3, 0, -8]
    assert run("Pow", np.array([1, -1, -1, 5, 3]), np.array([-3, -3, -4, -1, 0])).tolist() == [1, -1, 1, 0, 1]


def test_powers_of_floats_have_the_type_of_the_base() -> None:
    x = np.array([[4.0, 9, -2]], np.float16)
    for exponent in (np.array([2.0]), np.array([2], np.int64), np.array([2.0], np.float16)):
        found = run("Pow", x, exponent)
        assert found.dtype == np.float16
        assert found.tolist() == [[16, 81, 4]]
    np.testing.assert_allclose(run("Pow", np.array([4.0, 0.5]), np.array([0.5, -3])), [2, 8])
    for exponent in (0.5, 2.0, -1.0, 0.0, 1.7):
        function = lowered("Pow", tensor_type(DType.FLOAT, 2), np.array([exponent], "f"))
        (found,) = function(function.params, np.array([4.0, 0.25], "f"))
        np.testing.assert_allclose(found, np.array([4.0, 0.25]) ** exponent, rtol=1e-6)
    assert gradient("Pow", np.array([-3.0, 0.0], "f"), np.array([2.0], "f")).tolist() == [-6, 0]


def test_integer_division_rounds_towards_zero() -> None:
    assert run("Div", np.array([-7, 7, -8]), np.array([2])).tolist() == [-3, 3, -4]


def test_remainders_of_floats_have_gradients() -> None:
    assert gradient("Mod", np.array([0.0, 5.5, -4], "f"), np.array([2.0], "f")).tolist() == [1, 1, 1]
    function = lowered("Mod", tensor_type(DType.FLOAT, 2), tensor_type(DType.FLOAT, 2))
    x, y = np.array([5.5, -4.5], "f"), np.array([2.0, 2.0], "f")
    assert jax.grad(lambda y: function(function.params, x, y)[0].sum())(y).tolist() == [-2, 3]


def test_extremes_keep_nan_and_means_do_not_overflow() -> None:
    a, b = np.array([1, NAN, 3], "f"), np.array([NAN, 2, 1], "f")
    np.testing.assert_array_equal(run("Max", a, b), [NAN, NAN, 3])
    np.testing.assert_array_equal(run("Min", a, b), [NAN, NAN, 1])
    big = np.array([60000.0], np.float16)
    assert run("Mean", big, big, big).tolist() == [60000]


def test_clip_takes_the_maximum_where_the_limits_cross() -> None:
    x = np.array([0, 2, 9, NAN], "f")
    np.testing.assert_array_equal(run("Clip", x, np.array(5, "f"), np.array(3, "f")), [3, 3, 3, NAN])
    assert run("Clip", np.array([1, 200], np.uint8), np.array(3, np.uint8)).tolist() == [3, 200]


def test_infinities_are_found_by_sign_and_not_where_there_are_none() -> None:
    x = np.array([INF, -INF, NAN, 1], "f")
    assert run("IsInf", x).tolist() == [True, True, False, False]
    assert run("IsInf", x, detect_negative=0).tolist() == [True, False, False, False]
    assert run("IsInf", x, detect_positive=0).tolist() == [False, True, False, False]
    assert not run("IsInf", x, detect_positive=0, detect_negative=0).any()
    assert not run("IsInf", x.astype(E4M3FN)).any()
    assert run("IsInf", x.astype(ml_dtypes.float8_e5m2)).tolist() == [True, True, False, False]
    assert run("IsNaN", x.astype(E4M3FN)).tolist() == [True, True, True, False]


# activations

F = torch.nn.functional
ACTIVATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Relu": (F.relu, {}),
    "LeakyRelu": (lambda x: F.leaky_relu(x, 0.2), {"alpha": 0.2}),
    "Elu": (lambda x: F.elu(x, 0.7), {"alpha": 0.7}),
    "Celu": (lambda x: F.celu(x, 0.7), {"alpha": 0.7}),
    "Selu": (F.selu, {}),
    "Gelu": (F.gelu, {}),
    "Mish": (F.mish, {}),
    "Swish": (F.silu, {}),
    "HardSwish": (F.hardswish, {}),
    "HardSigmoid": (F.hardsigmoid, {"alpha": 1 / 6, "beta": 0.5}),
    "Sigmoid": (torch.sigmoid, {}),
    "Softplus": (F.softplus, {}),
    "Softsign": (F.softsign, {}),
    "ThresholdedRelu": (lambda x: F.threshold(x, 0.5, 0), {"alpha": 0.5}),
    "Shrink": (lambda x: F.softshrink(x, 0.5), {"lambd": 0.5, "bias": 0.5}),
    "Tanh": (torch.tanh, {}),
    "Erf": (torch.erf, {}),
    "Abs": (torch.abs, {}),
}
POINTS = np.array([-200, -30, -5, -3, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 3, 5, 30, 200], "f")


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_values_and_gradients_are_those_of_torch(op: str) -> None:
    function, attrs = ACTIVATIONS[op]
    x = torch.tensor(POINTS.astype(float), requires_grad=True)
    y = function(x)
    y.sum().backward()
    np.testing.assert_allclose(run(op, POINTS, **attrs), y.detach(), rtol=2e-6, atol=1e-6)
    smooth = POINTS[np.abs(POINTS) != 3] if op.startswith("Hard") else POINTS  # torch has half a derivative at one kink
    expected = x.grad[torch.tensor(np.isin(POINTS, smooth))] if x.grad is not None else None
    np.testing.assert_allclose(gradient(op, smooth, **attrs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_types_are_rounded_once(op: str, dtype: Any) -> None:
    function, attrs = ACTIVATIONS[op]
    x = np.linspace(-6, 6, 97).astype(dtype)
    found = run(op, x, **attrs)
    assert found.dtype == x.dtype
    exact = function(torch.tensor(x.astype(float))).numpy()
    ulp = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(found.astype(float), exact, rtol=0.51 * ulp, atol=1e-7 if dtype != np.float16 else 6e-8)


def test_clip_passes_gradients_on_at_its_limits() -> None:
    x = np.array([-1, 0, 3, 6, 7], "f")
    assert gradient("Clip", x, np.array(0, "f"), np.array(6, "f")).tolist() == [0, 1, 1, 1, 0]


def test_results_are_the_same_operator_by_operator() -> None:
    function = lowered("Mish", type_of(POINTS))
    (eager,) = function(function.params, POINTS)
    np.testing.assert_allclose(eager, run("Mish", POINTS), rtol=1e-6)


def test_slopes_of_prelu_are_learned_from_negative_elements_only() -> None:
    function = lowered("PRelu", tensor_type(DType.FLOAT, 2, 3), tensor_type(DType.FLOAT, 3))
    x, slope = np.array([[-1, 2, 0], [-3, -4, 5]], "f"), np.array([0.1, 0.2, 0.3], "f")
    found = jax.grad(lambda s: function(function.params, x, s)[0].sum())(slope)
    assert found.tolist() == [-4, -4, 0]


def test_shrink_of_integers_is_truncated() -> None:
    assert run("Shrink", np.array([-3, -1, 0, 1, 3], np.int8), lambd=1.5, bias=1.5).tolist() == [-1, 0, 0, 0, 1]


def test_swiglu_multiplies_the_gate_with_the_value() -> None:
    a, b = np.array([1.0, -2], "f"), np.array([3.0, 4], "f")
    np.testing.assert_allclose(run("SwiGLU", a, b, alpha=1.5), a / (1 + np.exp(-1.5 * a)) * b, rtol=1e-6)


def test_a_symbolic_batch_stays_symbolic() -> None:
    function = lowered("Gelu", tensor_type(DType.FLOAT, None, 3))
    batch = export.symbolic_shape("b, 3")
    exported = export.export(jax.jit(function))(function.params, jax.ShapeDtypeStruct(batch, jnp.float32))
    x = np.arange(12, dtype="f").reshape(4, 3) - 6
    np.testing.assert_allclose(exported.call(function.params, x)[0], F.gelu(torch.tensor(x)), rtol=1e-5, atol=1e-6)


# random numbers

LARGE = np.zeros((200, 200), "f")


def test_normal_and_uniform_numbers_have_the_stated_distribution() -> None:
    normal = run("RandomNormalLike", LARGE, mean=3.0, scale=2.0)
    assert normal.mean() == pytest.approx(3, abs=0.03)
    assert normal.std() == pytest.approx(2, abs=0.03)
    uniform = run("RandomUniformLike", LARGE, low=-1.0, high=3.0, dtype=int(DType.FLOAT16))
    assert uniform.dtype == np.float16
    assert uniform.mean() == pytest.approx(1, abs=0.03)
    assert -1 <= uniform.min() < -0.9
    assert 2.9 < uniform.max() <= 3
    double = run("RandomNormal", shape=[2000], dtype=int(DType.DOUBLE), seed=1.0)
    assert double.shape == (2000,)
    assert double.dtype == np.float64


def test_seeds_and_nodes_differ_and_calls_do_not() -> None:
    first, again = run("RandomUniformLike", LARGE, seed=1.0), run("RandomUniformLike", LARGE, seed=1.0)
    np.testing.assert_array_equal(first, again)
    assert (first != run("RandomUniformLike", LARGE, seed=1.5)).mean() > 0.99
    graph = Graph("g", opsets={"": canonical_opset()})
    x: Value = graph.add_input(type_of(LARGE), "x")
    nodes = [make_node("RandomNormalLike", (x,), {}) for _ in range(2)]
    insert_floating([n.results[0] for n in nodes], graph.ret)
    graph.set_outputs([n.results[0] for n in nodes])
    function = to_jax(graph)
    a, b = function(function.params, LARGE)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


def test_draws_follow_their_probabilities() -> None:
    p = np.broadcast_to(np.array([0, 0.25, 1], "f"), (4000, 3))
    np.testing.assert_allclose(run("Bernoulli", p).mean(0), [0, 0.25, 1], atol=0.03)
    assert run("Bernoulli", p, dtype=int(DType.BOOL)).dtype == bool
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1e-9, 0.1, 0.9]], "f")) + 3
    drawn = run("Multinomial", logits, sample_size=4000, dtype=int(DType.INT64))
    assert drawn.dtype == np.int64
    counts = [np.bincount(row, minlength=3) / 4000 for row in drawn]
    np.testing.assert_allclose(counts, [[0.5, 0.25, 0.25], [0, 0.1, 0.9]], atol=0.03)


def test_dropout_in_training_keeps_the_mean_and_masks_the_gradient() -> None:
    function = lowered("Dropout", type_of(LARGE), np.float32(0.2), np.bool_(True), results=2)
    y, mask = function(function.params, LARGE + 1)
    assert mask.dtype == bool
    assert mask.mean() == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(y, np.where(mask, 1.25, 0), rtol=1e-6)
    found = jax.grad(lambda x: function(function.params, x)[0].sum())(LARGE)
    np.testing.assert_allclose(found, np.where(mask, 1.25, 0), rtol=1e-6)


def test_dropout_may_be_told_at_run_time_to_train() -> None:
    function = lowered("Dropout", type_of(LARGE), None, tensor_type(DType.BOOL), results=2)
    compiled = jax.jit(function)
    y, mask = compiled(function.params, LARGE + 1, np.bool_(False))
    assert (np.asarray(y) == 1).all()
    assert np.asarray(mask).all()
    y, mask = compiled(function.params, LARGE + 1, np.bool_(True))
    np.testing.assert_array_equal(y, np.where(mask, 2, 0))
    assert np.mean(mask) == pytest.approx(0.5, abs=0.01)
