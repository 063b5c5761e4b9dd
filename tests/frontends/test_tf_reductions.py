"""TensorFlow's reductions, accumulations, softmaxes, losses and sorting: the numbers are TensorFlow's."""

from __future__ import annotations

from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from planish.frontends.tensorflow.reasons import UnsupportedOperations

from .tf_check import check, translate

raw = tf.raw_ops
NUMBERS = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
COUNTS = np.random.default_rng(1).integers(-100, 100, (2, 3, 4))
REDUCTIONS = ("Sum", "Mean", "Prod", "Max", "Min", "EuclideanNorm")
AXES: tuple[Any, ...] = (-1, [1], [0, 2], [0, 1, 2], [-1, 0], [])


def _all_ways(name: str, x: Any) -> list[Any]:
    function = getattr(raw, name)
    return [function(input=x, axis=axis, keep_dims=keeps) for axis in AXES for keeps in (False, True)]


@pytest.mark.parametrize("open", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_are_tensorflows_along_all_axes(name: str, open: bool) -> None:
    check(lambda x: _all_ways(name, x), NUMBERS, open=open)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=lambda d: np.dtype(d).name)
def test_reductions_keep_the_floating_point_type(dtype: Any) -> None:
    engine = "reference" if dtype is ml_dtypes.bfloat16 else "onnxruntime"
    x = NUMBERS.astype(dtype)
    check(lambda x: [getattr(raw, n)(input=x, axis=[1]) for n in REDUCTIONS[:-1]], x, open=True, engine=engine)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64], ids=lambda d: np.dtype(d).name
)
def test_sums_and_means_of_integers_are_integers(dtype: Any) -> None:
    x = (COUNTS + (100 if np.iinfo(dtype).min == 0 else 0)).astype(dtype)
    for is_open in (False, True):
        check(lambda x: [getattr(raw, n)(input=x, axis=[0, 2]) for n in ("Sum", "Mean", "Max", "Min")], x, open=is_open)
    check(lambda x: tf.reduce_prod(x, [0, 2]), x % 3)


def test_reductions_of_nothing_are_tensorflows() -> None:
    empty = np.zeros((2, 0), np.float32)
    truth, whole = empty.astype(bool), empty.astype(np.int32)
    check(lambda x: [tf.reduce_sum(x, 1), tf.reduce_prod(x, 1), tf.reduce_max(x, 1)], empty, open=True)
    check(lambda x: [tf.reduce_all(x, 1), tf.reduce_any(x, 1)], truth, open=True)
    check(lambda x: [tf.reduce_sum(x, 1), tf.reduce_mean(x, 1)], whole, open=True)


@pytest.mark.parametrize("open", [False, True])
def test_all_and_any_are_tensorflows(open: bool) -> None:
    check(lambda x: [*_all_ways("All", x), *_all_ways("Any", x)], NUMBERS > 0, open=open)


def test_axes_may_be_computed() -> None:
    axes = np.array([0, -1], np.int32)
    check(lambda x, a: [tf.reduce_sum(x, a, keepdims=True), tf.reduce_max(x, a, keepdims=True)], NUMBERS, axes)
    check(lambda x: [tf.reduce_sum(x), tf.reduce_mean(x, tf.range(tf.rank(x) - 1))], NUMBERS, open=True)


def test_logarithms_of_sums_and_moments_are_tensorflows() -> None:
    def function(x: Any) -> Any:
        return [tf.reduce_logsumexp(x, 1), tf.math.reduce_variance(x, 0), tf.math.reduce_std(x), *tf.nn.moments(x, [1])]

    check(function, NUMBERS * 50, open=True)
    check(lambda x: [tf.math.l2_normalize(x, 1), tf.norm(x, axis=-1), tf.nn.l2_loss(x)], NUMBERS, open=True)


def test_the_logarithm_of_a_sum_of_exponentials_is_one_operator() -> None:
    for keeps in (False, True):
        found = check(lambda x, k=keeps: tf.reduce_logsumexp(x, [1, 2], k), NUMBERS * 50, open={0: [0]}, simplify=True)
        assert found == {"ReduceLogSumExp": 1}


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
def test_the_first_of_equal_ones_is_found(name: str) -> None:
    function = getattr(raw, name)
    x = np.array([[1, 3, 3, 1], [2, 2, 2, 2], [0, -1, -1, 5]], np.float32)

    def both(x: Any) -> Any:
        return [function(input=x, dimension=a, output_type=o) for a in (0, -1) for o in (tf.int32, tf.int64)]

    for dtype in (np.float32, np.float64, np.int8, np.int32, np.int64, np.bool_):
        check(both, x.astype(dtype), open=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_accumulations_run_either_way(exclusive: bool, reverse: bool) -> None:
    def function(x: Any) -> Any:
        how = {"exclusive": exclusive, "reverse": reverse}
        return [tf.cumsum(x, 1, **how), tf.cumsum(x, -1, **how), tf.math.cumprod(x, 0, **how)]

    check(function, NUMBERS, open=True)
    check(function, (COUNTS % 7).astype(np.int32), open=True)
    check(lambda x: tf.cumsum(x, 1, exclusive=exclusive, reverse=reverse), COUNTS.astype(np.int8))


# softmax


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_softmax_is_along_the_last_axis(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    check(lambda x: [tf.nn.softmax(x), tf.nn.log_softmax(x)], x, open=True)


def test_softmax_along_another_axis_moves_nothing() -> None:
    assert check(lambda x: tf.nn.softmax(x, axis=1), NUMBERS, simplify=True) == {"Softmax": 1}


def test_softmax_along_several_axes_is_one_of_what_is_merged() -> None:
    found = check(lambda x: keras.layers.Softmax((1, 2))(x), NUMBERS, open={0: [0]}, simplify=True)
    assert found == {"Softmax": 1, "Reshape": 2}


def test_cross_entropies_and_their_gradients_are_tensorflows() -> None:
    logits = NUMBERS[0]
    labels = np.array([[0, 0.5, 0.5, 0], [1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]], np.float32)
    for is_open in (False, True):
        check(lambda x, y: raw.SoftmaxCrossEntropyWithLogits(features=x, labels=y), logits, labels, open=is_open)
    for dtype in (np.int32, np.int64):
        ids = np.array([3, 0, 2], dtype)
        check(lambda x, y: raw.SparseSoftmaxCrossEntropyWithLogits(features=x, labels=y), logits, ids, open=True)


# sorting


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64])
def test_the_greatest_come_first_and_equal_ones_in_order(dtype: Any) -> None:
    x = np.array([[1, 3, 3, 2, 0], [7, 7, 7, 1, 7]], dtype)
    check(lambda x: [*tf.math.top_k(x, 3), *raw.TopKV2(input=x, k=2, index_type=tf.int64)], x, open=True)


def test_how_many_are_the_greatest_may_be_computed() -> None:
    check(lambda x, k: tf.math.top_k(x, k), NUMBERS, np.array(2, np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
@pytest.mark.parametrize("axis", [-1, 0])
def test_sorting_is_tensorflows(axis: int, dtype: Any) -> None:
    x = np.array([[4, 1, 3, 1], [0, 2, 2, 9], [5, 5, 0, 1]], dtype)

    def function(x: Any) -> Any:
        up = [tf.sort(x, axis), tf.argsort(x, axis, stable=True)]
        return [*up, tf.sort(x, axis, "DESCENDING"), tf.argsort(x, axis, "DESCENDING", stable=True)]

    check(function, x, open=True)
    check(lambda x: [keras.ops.sort(x, axis), keras.ops.argsort(x, axis)], x)


def test_sorting_upwards_negates_nothing() -> None:
    assert check(lambda x: tf.sort(x), NUMBERS, simplify=True) == {"TopK": 1}


def test_targets_are_found_among_the_greatest() -> None:
    scores = np.array([[1, 2, 2], [np.nan, 1, 2], [3, 1, 2], [0, 1, 2]], np.float32)
    for targets in ([1, 1, 1, 0], [2, 0, 0, 5]):
        check(lambda x, y: raw.InTopKV2(predictions=x, targets=y, k=1), scores, np.array(targets, np.int32), open=True)


# channels first


def test_reductions_over_images_leave_channels_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 6, 3)).astype(np.float32)
    kernel = tf.constant(rng.standard_normal((3, 3, 3, 4)), tf.float32)

    def function(x: Any) -> Any:
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        kept = [tf.reduce_mean(y, [1, 2], keepdims=True), tf.nn.softmax(y), tf.reduce_max(y, -1, keepdims=True)]
        rest = [tf.reduce_sum(y, [1, 2]), tf.argmax(y, -1), tf.reduce_sum(y, [3]), tf.reduce_any(y > 0, [0, 2])]
        return [tf.reduce_sum(y * sum(kept), [1, 2]), *rest, tf.argmin(y, 1), tf.reduce_max(y, 1)]

    found = check(function, x, open={0: [0]}, simplify=True)
    assert found["Transpose"] <= 4  # the input; what keeps the channels and a dimension before them


def test_an_axis_that_is_computed_is_refused_where_onnx_needs_a_number() -> None:
    with pytest.raises(UnsupportedOperations, match=r"ArgMax.*axis is computed"):
        translate(lambda x, a: tf.argmax(x, a), NUMBERS, np.array(1, np.int32))
