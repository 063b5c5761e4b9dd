"""TensorFlow's operations that compute element by element: the graph gives the numbers that TensorFlow gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from planish.frontends.tensorflow.reasons import UnsupportedOperations

from .tf_check import check, translate

raw = tf.raw_ops
NAN, INF = float("nan"), float("inf")
NUMBERS = np.array([-3.5, -2.5, -1.0, -0.5, -1e-4, -0.0, 0.0, 1e-4, 0.25, 0.5, 0.9, 1.5, 2.5, 7.0], np.float32)
EXTREMES = np.array([NAN, INF, -INF, -0.0, 0.0, 1.0, -1.0], np.float32)
UNIT = np.linspace(-0.99, 0.99, 21, dtype=np.float32)
POSITIVE = np.array([1e-6, 0.1, 1.0, 2.5, 1e4, INF], np.float32)
FLOATS: tuple[Any, ...] = (np.float16, ml_dtypes.bfloat16, np.float64)
INTEGERS: tuple[Any, ...] = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


def _engine(dtype: Any) -> str:
    """What runs arithmetic of a type: ONNX Runtime has no kernels for all."""
    lacking = (ml_dtypes.bfloat16, np.int16, np.uint16, np.uint64)
    return "reference" if dtype in lacking else "onnxruntime"


UNARY: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "Abs": (lambda x: raw.Abs(x=x), NUMBERS),
    "Acos": (lambda x: raw.Acos(x=x), UNIT),
    "Acosh": (lambda x: raw.Acosh(x=x), UNIT + 2.5),
    "Asin": (lambda x: raw.Asin(x=x), UNIT),
    "Asinh": (lambda x: raw.Asinh(x=x), NUMBERS),
    "Atan": (lambda x: raw.Atan(x=x), NUMBERS),
    "Atanh": (lambda x: raw.Atanh(x=x), UNIT),
    "Ceil": (lambda x: raw.Ceil(x=x), NUMBERS),
    "Cos": (lambda x: raw.Cos(x=x), NUMBERS),
    "Cosh": (lambda x: raw.Cosh(x=x), NUMBERS),
    "Elu": (lambda x: raw.Elu(features=x), NUMBERS),
    "Erf": (lambda x: raw.Erf(x=x), NUMBERS),
    "Erfc": (lambda x: raw.Erfc(x=x), NUMBERS),
    "Erfinv": (lambda x: raw.Erfinv(x=x), np.array([-1, -0.9999, -0.7, 0, 1e-3, 0.5, 0.99999, 1, 2], np.float32)),
    "Exp": (lambda x: raw.Exp(x=x), NUMBERS),
    "Expm1": (lambda x: raw.Expm1(x=x), NUMBERS * 1e-3),
    "Expm1 of extremes": (lambda x: raw.Expm1(x=x), EXTREMES),
    "Floor": (lambda x: raw.Floor(x=x), NUMBERS),
    "Inv": (lambda x: raw.Inv(x=x), UNIT + 1),
    "IsFinite": (lambda x: raw.IsFinite(x=x), EXTREMES),
    "IsInf": (lambda x: raw.IsInf(x=x), EXTREMES),
    "IsNan": (lambda x: raw.IsNan(x=x), EXTREMES),
    "LeakyRelu": (lambda x: raw.LeakyRelu(features=x, alpha=0.3), NUMBERS),
    "Log": (lambda x: raw.Log(x=x), POSITIVE),
    "Log1p": (lambda x: raw.Log1p(x=x), np.array([-0.5, -1e-5, 0, 1e-9, 1e-5, 1e-3], np.float32)),
    "Log1p of extremes": (lambda x: raw.Log1p(x=x), EXTREMES),
    "LogicalNot": (lambda x: raw.LogicalNot(x=x), np.array([True, False])),
    "Neg": (lambda x: raw.Neg(x=x), NUMBERS),
    "Reciprocal": (lambda x: raw.Reciprocal(x=x), UNIT + 1),
    "Relu": (lambda x: raw.Relu(features=x), NUMBERS),
    "Relu6": (lambda x: raw.Relu6(features=x), NUMBERS),
    "Rint": (lambda x: raw.Rint(x=x), NUMBERS),
    "Round": (lambda x: raw.Round(x=x), NUMBERS),
    "Rsqrt": (lambda x: raw.Rsqrt(x=x), POSITIVE),
    "Selu": (lambda x: raw.Selu(features=x), NUMBERS),
    "Sigmoid": (lambda x: raw.Sigmoid(x=x), NUMBERS),
    "Sign": (lambda x: raw.Sign(x=x), NUMBERS),
    "Sin": (lambda x: raw.Sin(x=x), NUMBERS),
    "Sinh": (lambda x: raw.Sinh(x=x), NUMBERS),
    "Softplus": (lambda x: raw.Softplus(features=x), NUMBERS * 20),
    "Softsign": (lambda x: raw.Softsign(features=x), NUMBERS),
    "Sqrt": (lambda x: raw.Sqrt(x=x), POSITIVE),
    "Square": (lambda x: raw.Square(x=x), NUMBERS),
    "Tan": (lambda x: raw.Tan(x=x), UNIT),
    "Tanh": (lambda x: raw.Tanh(x=x), NUMBERS),
}


GROUPS = {id(numbers): numbers for _, numbers in UNARY.values()}


@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_functions_of_one_number_are_tensorflows(number: int) -> None:
    numbers = list(GROUPS.values())[number]
    functions = [function for function, own in UNARY.values() if own is numbers]
    check(lambda x: [function(x) for function in functions], numbers)


# operations that runtimes have for every floating-point type, and of several types at once
PLAIN = ("Abs", "Ceil", "Exp", "Floor", "Log1p", "Neg", "Relu", "Relu6", "Round", "Rsqrt", "Sigmoid", "Square", "Tanh")


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: np.dtype(d).name)
def test_functions_keep_the_floating_point_type(dtype: Any) -> None:
    numbers = np.array([0.25, 0.5, 1.5, 7.0]).astype(dtype)
    check(lambda x: [UNARY[name][0](x) for name in PLAIN], numbers, open=True, engine=_engine(dtype))


BINARY = {
    "AddV2": raw.AddV2, "Sub": raw.Sub, "Mul": raw.Mul, "RealDiv": raw.RealDiv, "Div": raw.Div,
    "DivNoNan": raw.DivNoNan, "MulNoNan": raw.MulNoNan, "FloorDiv": raw.FloorDiv, "FloorMod": raw.FloorMod,
    "Mod": raw.Mod, "TruncateDiv": raw.TruncateDiv, "TruncateMod": raw.TruncateMod, "Xdivy": raw.Xdivy,
    "Xlogy": raw.Xlogy, "Xlog1py": raw.Xlog1py, "Maximum": raw.Maximum, "Minimum": raw.Minimum,
    "SquaredDifference": raw.SquaredDifference, "Equal": raw.Equal, "NotEqual": raw.NotEqual, "Less": raw.Less,
    "LessEqual": raw.LessEqual, "Greater": raw.Greater, "GreaterEqual": raw.GreaterEqual,
}  # fmt: skip
LEFT = np.array([[7, -7, 7, -7, 0, -0.0, 5.5, -5.5, 0, 3, -6]], np.float32)
RIGHT = np.array([[3, 3, -3, -3, 5, 1, -2, 2, 0, 0, 3]], np.float32)


def test_functions_of_two_numbers_are_tensorflows() -> None:
    check(lambda x, y: [function(x=x, y=y) for function in BINARY.values()], LEFT, RIGHT)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: np.dtype(d).name)
def test_arithmetic_keeps_the_floating_point_type(dtype: Any) -> None:
    names = ("AddV2", "Sub", "Mul", "RealDiv", "DivNoNan", "MulNoNan", "FloorDiv", "Maximum", "Minimum", "Less")
    x, y = np.array([[1.5], [-2.5]]).astype(dtype), np.array([0.5, -3.0, 2.0]).astype(dtype)
    check(lambda x, y: [BINARY[name](x=x, y=y) for name in names], x, y, open=True, engine=_engine(dtype))


def test_operands_are_broadcast_whatever_size_is_open() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1, 3)).astype(np.float32), rng.standard_normal((4, 1)).astype(np.float32)
    for sizes in (False, True, {0: [0]}, {1: [0]}):
        check(lambda x, y: [x * y + 1.0, tf.where(x > y, x, y), tf.math.floormod(x, y)], x, y, open=sizes)


def test_a_constant_divisor_needs_no_guard() -> None:
    found = check(lambda x: tf.math.divide_no_nan(x, 4.0), NUMBERS)
    assert found == {"Div": 1}


def test_powers_and_angles_are_tensorflows() -> None:
    x = np.array([0.5, 2.0, 3.0, 1.5, 0.0], np.float32)
    check(lambda x: [x**2.0, x**0.5, x**3, raw.Pow(x=x, y=x), 2.0**x], x)
    y = np.array([1.0, -1.0, 0.0, -0.0, INF, 2.0, 0.0, -0.0], np.float32)
    x = np.array([-1.0, -1.0, -2.0, -2.0, -INF, 0.0, 0.0, -0.0], np.float32)
    check(lambda y, x: tf.math.atan2(y, x), y, x)


def test_limits_hold_and_the_lower_one_wins() -> None:
    limits = ((0.0, 6.0), (-1.0, 1.0), (2.0, 1.0))
    check(lambda x: [raw.ClipByValue(t=x, clip_value_min=a, clip_value_max=b) for a, b in limits], NUMBERS)


def test_limits_become_one_operator() -> None:
    assert check(lambda x: tf.clip_by_value(x, -1.0, 1.0), NUMBERS, simplify=True) == {"Clip": 1}


def test_sums_of_several_operands_and_comparisons_within_a_tolerance() -> None:
    x = np.array([1.0, 1.00001, 2.0], np.float32)
    check(lambda x: [tf.add_n([x, x, 2 * x]), raw.ApproximateEqual(x=x, y=tf.ones(3), tolerance=1e-4)], x)


# integers

SIGNED = [np.int8, np.int16, np.int32, np.int64]


def _integers(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    info = np.iinfo(dtype)
    x = np.array([7, 100, 7, 0, info.max, info.min, info.min, 11], dtype)
    y = np.array([3, 7, 2, 5, info.max, 3, 1, 12], dtype)
    if info.min < 0:
        x = np.append(x, np.array([-7, -7, 7, -6, info.min, -1], dtype))
        y = np.append(y, np.array([3, -3, -3, 3, -3, 7], dtype))
    return x, y


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: np.dtype(d).name)
def test_integer_division_rounds_as_in_tensorflow(dtype: Any) -> None:
    x, y = _integers(dtype)
    names = ("FloorDiv", "FloorMod", "TruncateDiv") + (("Div", "Mod") if dtype in (np.int32, np.int64) else ())
    check(lambda x, y: [BINARY[name](x=x, y=y) for name in names], x, y, open=True, engine=_engine(dtype))
    check(lambda x: [raw.FloorDiv(x=x, y=x * 0 + 4), x // 4, x % 4], x, engine=_engine(dtype))


@pytest.mark.parametrize("dtype", [np.int32, np.int64], ids=lambda d: np.dtype(d).name)
def test_the_smallest_integer_divided_by_minus_one_overflows(dtype: Any) -> None:
    x = np.array([np.iinfo(dtype).min, 5, -7], dtype)
    y = np.array([-1, -1, -1], dtype)
    check(lambda x, y: [raw.FloorDiv(x=x, y=y), raw.FloorMod(x=x, y=y)], x, y)


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: np.dtype(d).name)
def test_integer_arithmetic_wraps(dtype: Any) -> None:
    x, y = _integers(dtype)

    def function(x: Any, y: Any) -> Any:
        found = [x + y, x - y, x * y, raw.Maximum(x=x, y=y), raw.Minimum(x=x, y=y), x < y, x >= y, tf.equal(x, y)]
        if dtype not in (np.uint8, np.uint16, np.uint32, np.uint64):
            found += [tf.sign(x), -x, tf.square(x), tf.nn.relu(x), tf.nn.relu6(x)]
        return [*found, raw.NotEqual(x=x, y=y), raw.AddN(inputs=[x, y, x])]

    check(function, x, y, engine=_engine(dtype))


@pytest.mark.parametrize("dtype", [np.int32, np.int64], ids=lambda d: np.dtype(d).name)
def test_integer_powers_are_exact(dtype: Any) -> None:
    x = np.array([2, -2, 3, 0, 1, -1, 46341], dtype)
    check(lambda x: [x**0, x**1, x**2, x**5, tf.square(x)], x)
    check(lambda x, y: tf.pow(x, y), x[:-1], np.array([31, 3, 20, 0, 1000, 7], dtype) % 32)


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: np.dtype(d).name)
def test_bits_move_as_far_as_there_are(dtype: Any) -> None:
    bits = np.dtype(dtype).itemsize * 8
    x = np.array([1, 5, np.iinfo(dtype).max, np.iinfo(dtype).min, 100, 3], dtype)
    count = np.array([0, 1, 2, bits - 1, bits, 3], dtype)

    def function(x: Any, count: Any) -> Any:
        logic = [tf.bitwise.bitwise_and(x, count), tf.bitwise.bitwise_or(x, count), tf.bitwise.bitwise_xor(x, count)]
        return [*logic, tf.bitwise.invert(x), raw.LeftShift(x=x, y=count), raw.RightShift(x=x, y=count)]

    check(function, x, count, engine=_engine(dtype))


# truth


def test_logic_and_choices_of_truth_are_tensorflows() -> None:
    x, y, c = np.array([[True, False]] * 2), np.array([[True], [False]]), np.array([[True, False], [False, True]])

    def function(x: Any, y: Any, c: Any) -> Any:
        return [x & y, x | y, tf.math.logical_xor(x, y), ~x, tf.equal(x, y), raw.NotEqual(x=x, y=y), tf.where(c, x, y)]

    check(function, x, y, c, open=True)


@pytest.mark.parametrize(
    "dtype", [*FLOATS, np.float32, np.int8, np.uint8, np.int32, np.int64], ids=lambda d: np.dtype(d).name
)
def test_choices_keep_the_type_and_broadcast(dtype: Any) -> None:
    x, y = np.arange(6).reshape(2, 3).astype(dtype), np.array([9, 8, 7]).astype(dtype)
    which = np.array([[True], [False]])
    check(lambda c, x, y: tf.where(c, x, y), which, x, y, open=True, engine=_engine(dtype))


def test_a_vector_chooses_rows() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    which = np.array([True, False])
    check(lambda c, x: [raw.Select(condition=c, x=x, y=-x), raw.Select(condition=c[0], x=x, y=-x)], which, x)


# conversions


def test_casts_cut_off_fractions_and_bits() -> None:
    numbers, truth = np.array([0, 1.9, 0.5, 100.7], np.float32), np.array([True, False])
    whole = np.array([0, 1, 255, 300, 70000, (1 << 40) + 5], np.int64)
    for group in (INTEGERS, (*FLOATS, np.float32, np.bool_)):
        check(lambda *operands, g=group: [tf.cast(x, d) for x in operands for d in g], numbers, whole, truth)


def test_signs_survive_casts() -> None:
    check(lambda x: [tf.cast(x, d) for d in SIGNED], np.array([-1.9, -100.5, 127.9, -0.5], np.float32))


def test_bits_are_read_as_another_type_of_their_width() -> None:
    check(lambda x: [tf.bitcast(x, tf.int32), tf.bitcast(x, tf.uint32)], NUMBERS, engine="reference")
    with pytest.raises(UnsupportedOperations, match="another width"):
        translate(lambda x: tf.bitcast(x, tf.uint8), NUMBERS)


# forms


def test_functions_without_an_operator_are_named_with_a_reason() -> None:
    with pytest.raises(UnsupportedOperations, match=r"Lgamma.*no operator.*Digamma"):
        translate(lambda x: [tf.math.lgamma(x), tf.math.digamma(x)], NUMBERS)


def test_what_only_passes_values_on_is_nothing() -> None:
    dropout = keras.layers.Dropout(0.5)

    def function(x: Any) -> Any:
        tf.debugging.assert_less(x, 100.0)
        tf.print(x)
        x = tf.ensure_shape(tf.identity(tf.stop_gradient(x)), NUMBERS.shape)
        x = tf.nn.silu(raw.Snapshot(input=tf.debugging.check_numerics(x, "x")))
        return dropout(x, training=False)

    assert check(function, NUMBERS, simplify=True) == {"Swish": 1}


def test_numbers_that_random_operations_give_are_refused() -> None:
    with pytest.raises(UnsupportedOperations, match="random numbers as inputs"):
        translate(lambda x: x + tf.random.normal(x.shape), NUMBERS)


def test_sizes_are_divided_without_guards() -> None:
    found = check(lambda x: x[: tf.shape(x)[0] // 2], np.zeros((5, 2), np.float32), open=True)
    assert not {"Where", "Equal", "Mod"} & set(found)


def test_what_follows_a_convolution_keeps_its_channels_first() -> None:
    rng = np.random.default_rng(0)
    x, scale = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 5, 3), 4))
    kernels = [tf.constant(rng.standard_normal(shape), tf.float32) for shape in ((3, 3, 3, 4), (1, 1, 4, 2))]

    def function(x: Any) -> Any:
        y = tf.nn.conv2d(x, kernels[0], 1, "SAME")
        y = tf.math.log1p(tf.math.expm1(tf.nn.leaky_relu(y, 0.1)) * scale)
        y = tf.where(tf.math.is_finite(y) & (y > 0.0), tf.math.xlogy(y, y + 2.0), tf.math.floormod(y, 0.5))
        return tf.nn.conv2d(y, kernels[1], 1, "SAME")

    found = check(function, x, open={0: [0]}, simplify=True)
    assert found["Transpose"] == 2
