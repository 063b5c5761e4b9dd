"""The TensorFlow frontend: reading and changing shapes, joining, splitting, filling, padding, turning, and blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from planish.frontends.tensorflow import UnsupportedOperations

from .tf_check import check

RNG = np.random.default_rng(0)
L = keras.layers


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X = f32(2, 4, 6, 3)
OPEN = {0: [0, 1, 2]}  # channels are known wherever there are convolutions


@pytest.fixture(scope="module", autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)


def conv(channels: int = 4, size: int = 3, **options: Any) -> Any:
    """A convolution, whose result is kept with channels first."""
    layer = L.Conv2D(channels, size, padding="same", **options)
    layer.build((None, None, None, 3))
    return layer


CONV = conv()

PLAIN: dict[str, Callable[..., Any]] = {
    "shape": tf.shape,
    "shape as int64": lambda x: tf.shape(x, out_type=tf.int64),
    "shapes of two": lambda x: tf.shape_n([x, x[:1]]),
    "size and rank": lambda x: tf.size(x) + tf.rank(x),
    "reshape by a computed shape": lambda x: tf.reshape(x, [tf.shape(x)[0], -1]),
    "reshape by a product": lambda x: tf.reshape(x, [tf.shape(x)[0] * tf.shape(x)[1], tf.shape(x)[2], 3]),
    "reshape with all sizes open": lambda x: tf.reshape(x, [tf.shape(x)[2], tf.shape(x)[1], tf.shape(x)[0], -1]),
    "expand dims": lambda x: tf.expand_dims(tf.expand_dims(x, -1), 1),
    "squeeze": lambda x: tf.squeeze(x[:, :1, :, :1], [1, -1]),
    "transpose": lambda x: tf.transpose(x, [2, 0, 3, 1]),
    "transpose of all dimensions": tf.transpose,
    "stack": lambda x: tf.stack([x, x + 1], axis=-1),
    "stack of one": lambda x: tf.stack([x], axis=1),
    "unstack": lambda x: tf.unstack(x, 3, axis=-1),
    "unstack of a shape": lambda x: tf.unstack(tf.shape(x)),
    "concat": lambda x: tf.concat([x, x[:, :1]], axis=-3),
    "split": lambda x: tf.split(x, 2, axis=2),
    "split by sizes": lambda x: tf.split(x, [1, -1, 1], axis=1),
    "split by a computed size": lambda x: tf.split(x, [tf.shape(x)[1] - 1, 1], axis=1),
    "tile": lambda x: tf.tile(x, [1, 2, 1, 3]),
    "tile by a size": lambda x: tf.tile(x, [1, tf.shape(x)[0], 1, 1]),
    "tile once": lambda x: tf.tile(x, [1, 1, 1, 1]) + 1,
    "repeat": lambda x: tf.repeat(x, 3, axis=1),
    "repeat by counts": lambda x: tf.repeat(x, [1, 0, 2], axis=3),
    "broadcast": lambda x: tf.broadcast_to(x[:1, :, :1], tf.shape(x)),
    "broadcast of shapes": lambda x: tf.broadcast_dynamic_shape(tf.shape(x), tf.constant([6, 1])),
    "fill": lambda x: tf.fill(tf.shape(x)[:2], x[0, 0, 0, 0]),
    "zeros and ones": lambda x: (tf.zeros_like(x), tf.ones_like(x, tf.float64)),
    "range": lambda x: tf.range(tf.shape(x)[1]),
    "range with a step": lambda x: tf.range(tf.shape(x)[2], 0, -2),
    "range of fractions": lambda x: tf.range(0.0, tf.cast(tf.shape(x)[2], tf.float32), 0.75),
    "range of float16": lambda x: tf.range(tf.cast(x[0, 0, 0, 0] * 0, tf.float16), 3, 1),
    "linspace": lambda x: tf.linspace(0.0, 2.0, tf.shape(x)[1]),
    "LinSpace": lambda x: tf.raw_ops.LinSpace(start=x[0, 0, 0, 0], stop=2.0, num=tf.shape(x)[1]),
    "LinSpace of one": lambda x: tf.raw_ops.LinSpace(start=x[0, 0, 0, 0], stop=2.0, num=1),
    "meshgrid": lambda x: tf.meshgrid(x[0, 0, 0], x[0, 0, :, 0]),
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [3, 0], [0, 1]]),
    "pad by a size": lambda x: tf.pad(x, [[0, 0], [0, tf.shape(x)[0]], [0, 0], [0, 0]], constant_values=7),
    "reflect": lambda x: tf.pad(x, [[0, 0], [1, 2], [3, 0], [0, 1]], mode="REFLECT"),
    "mirror": lambda x: tf.pad(x, [[0, 0], [1, 2], [4, 0], [0, 1]], mode="SYMMETRIC"),
    "reverse": lambda x: tf.reverse(x, [1, -1]),
    "reverse of sequences": lambda x: tf.reverse_sequence(x, [1, 3], seq_axis=1, batch_axis=0),
    "reverse of other sequences": lambda x: tf.reverse_sequence(x, [1, 3, 0], seq_axis=1, batch_axis=3),
    "roll": lambda x: tf.roll(x, [1, -2, 10], [1, 2, -1]),
    "roll by a size": lambda x: tf.roll(x, tf.shape(x)[0], 1),
    "roll by nothing": lambda x: tf.roll(x, 6, 2) + 1,
    "space to batch": lambda x: tf.space_to_batch(x, [2, 3], [[0, 2], [2, 1]]),
    "space to batch of one dimension": lambda x: tf.space_to_batch(x, [2], [[2, 0]]),
    "batch to space": lambda x: tf.batch_to_space(tf.tile(x, [3, 1, 1, 1]), [2, 3], [[0, 1], [2, 0]]),
    "to batch and back": lambda x: tf.batch_to_space(tf.space_to_batch(x, [2, 1], [[0, 2]] * 2), [2, 1], [[0, 1]] * 2),
    "batch to space of one dimension": lambda x: tf.batch_to_space(x, [2], [[1, 2]]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_values_are_those_of_tensorflow_with_known_and_with_open_sizes(name: str) -> None:
    check(PLAIN[name], X, simplify=True)
    check(PLAIN[name], X, open=True)


KEPT: dict[str, Callable[..., Any]] = {
    "expanded and squeezed": lambda x: tf.squeeze(tf.expand_dims(x, 1), 1),
    "concatenated": lambda x: tf.concat([x, tf.nn.relu(x), x], -1),
    "split": lambda x: tf.concat(tf.split(x, [1, 1, 2], axis=-1)[::-1], axis=-1),
    "tiled": lambda x: tf.tile(x, [1, 2, 1, 3]),
    "padded": lambda x: tf.pad(x, [[0, 0], [1, 2], [3, 0], [0, 1]], constant_values=7),
    "reflected": lambda x: tf.pad(x, [[0, 0], [1, 2], [3, 0], [0, 1]], mode="REFLECT"),
    "mirrored": lambda x: tf.pad(x, [[0, 0], [1, 2], [3, 0], [0, 1]], mode="SYMMETRIC"),
    "reversed": lambda x: tf.reverse(x, [1, -1]),
    "rolled": lambda x: tf.roll(x, [1, -2, 3], [1, 2, -1]),
    "cut": lambda x: x[:, 1:-1, ::-2, 1:],
    "sliced": lambda x: tf.slice(x, [0, 1, 2, 1], [-1, 2, -1, 2]),
    "gathered": lambda x: tf.gather(x, [3, 0, 1], axis=-1),
    "in blocks": lambda x: tf.nn.depth_to_space(tf.nn.space_to_depth(x, 2), 2),
    "enlarged": lambda x: L.UpSampling2D((2, 3))(x),
    "selected": lambda x: tf.where(x > 0, x, tf.zeros_like(x)),
    "reshaped in space": lambda x: tf.reshape(x, [-1, tf.shape(x)[2], tf.shape(x)[1], 4]),
    "shuffled": lambda x: _shuffled(x, 2),
}


def _shuffled(x: Any, groups: int) -> Any:
    shape = tf.shape(x)
    split = tf.reshape(x, [shape[0], shape[1], shape[2], groups, x.shape[-1] // groups])
    return tf.reshape(tf.transpose(split, [0, 1, 2, 4, 3]), [shape[0], shape[1], shape[2], x.shape[-1]])


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_with_channels_first_stays_so_between_convolutions(name: str) -> None:
    def function(x: Any) -> Any:
        return tf.nn.relu(KEPT[name](CONV(x)))

    for open_ in ({0: [0]}, OPEN):
        found = check(function, X, open=open_, simplify=True)
        assert found["Transpose"] == (3 if name == "shuffled" else 2)  # of the input and of the output


def test_a_squeeze_and_a_reshape_of_pooled_channels_need_no_transpose() -> None:
    for last in (
        lambda x: tf.squeeze(tf.reduce_mean(x, [1, 2], keepdims=True), [1, 2]),
        lambda x: tf.reshape(tf.reduce_mean(x, [1, 2], keepdims=True), [-1, 4]),
        lambda x: tf.reduce_mean(x, [1, 2], keepdims=True)[:, 0, 0],
    ):
        assert check(lambda x, last=last: last(CONV(x)), X, open=OPEN, simplify=True)["Transpose"] == 1


@pytest.mark.parametrize("layer", [L.Flatten(), L.Reshape((-1, 9)), L.Reshape((3, 4, 6)), L.Permute((2, 3, 1))])
def test_a_layer_that_arranges_is_one_operator_when_the_batch_is_open(layer: Any) -> None:
    model = keras.Sequential([L.Input((4, 6, 3)), layer])
    found = check(model, X, open={0: [0]}, simplify=True)
    assert found.total() == 1
    assert check(model, X, open={0: [0]})["Shape"] == 0  # the shape is a constant at once


def test_flatten_with_one_more_open_size_is_one_reshape() -> None:
    for open_ in ({0: [0, 1]}, OPEN):
        assert check(L.Flatten(), X, open=open_, simplify=True) == {"Reshape": 1}


@pytest.mark.parametrize("open_", [False, OPEN])
def test_enlarging_twice_is_one_resize(open_: Any) -> None:
    found = check(lambda x: L.UpSampling2D((2, 3))(CONV(x)), X, open=open_, simplify=True)
    assert found == {"Transpose": 2, "Conv": 1, "Resize": 1}
    check(lambda x: L.UpSampling1D(3)(x), f32(2, 5, 3), open={0: [0, 1]})
    check(lambda x: L.UpSampling3D(2)(x), f32(1, 2, 3, 2, 2))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("layer", [L.Conv2D, L.DepthwiseConv2D, L.SeparableConv2D])
def test_dilated_convolutions_are_single_convolutions(layer: Any, padding: str) -> None:
    filters = {} if layer is L.DepthwiseConv2D else {"filters": 4}
    built = layer(kernel_size=3, dilation_rate=2, padding=padding, bias_initializer="normal", **filters)
    x = f32(2, 9, 8, 3)
    built.build((None, None, None, 3))
    convolutions = 1 + (layer is L.SeparableConv2D)
    for open_ in (False, {0: [0]}, OPEN):
        assert check(built, x, open=open_, simplify=True) == {"Transpose": 2, "Conv": convolutions}


@pytest.mark.parametrize("padding", ["same", "valid", "causal"])
def test_dilated_convolutions_of_sequences_are_convolutions_of_sequences(padding: str) -> None:
    layer = L.Conv1D(4, 3, dilation_rate=2, padding=padding)
    layer.build((None, None, 3))
    for open_ in (False, {0: [0, 1]}):
        found = check(layer, f32(2, 9, 3), open=open_, simplify=True)
        assert (found["Conv"], found["Reshape"], found["Transpose"]) == (1, 0, 2)


@pytest.mark.parametrize("options", [{"mode": "REFLECT"}, {"constant_values": 7}, {}, {"mode": "SYMMETRIC"}])
def test_only_zeros_around_an_image_become_the_padding_of_a_dilated_convolution(options: dict[str, Any]) -> None:
    layer = L.Conv2D(4, 3, dilation_rate=2)
    layer.build((None, None, None, 3))
    for open_ in (False, {0: [0]}, OPEN):
        found = check(
            lambda x: layer(tf.pad(x, [[0, 0], [2, 3], [1, 2], [0, 0]], **options)), X, open=open_, simplify=True
        )
        assert (found["Conv"], found["Reshape"]) == (1, 0)


def test_a_strided_convolution_between_blocks_is_left_as_it_is() -> None:
    kernel = f32(3, 3, 3, 4)

    def function(x: Any) -> Any:
        blocks = tf.space_to_batch(x, [2, 2], [[0, 0], [0, 0]])
        return tf.batch_to_space(tf.nn.conv2d(blocks, kernel, 2, "SAME"), [2, 2], [[0, 0], [0, 0]])

    for open_ in (False, OPEN):
        check(function, f32(2, 8, 8, 3), open=open_, simplify=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_])
def test_elements_of_every_type_are_moved(dtype: Any) -> None:
    def function(x: Any) -> Any:
        x = tf.concat([tf.reverse(x, [1]), tf.roll(x, 1, 2), tf.tile(x[:, :, :1], [1, 1, 6, 1])], axis=1)
        first, second = tf.split(tf.transpose(x, [0, 3, 1, 2]), 2, axis=2)
        return tf.stack([first, second, tf.zeros_like(first), tf.broadcast_to(first[:1], tf.shape(first))])

    x = X > 0 if dtype is np.bool_ else (np.abs(X) * 9).astype(dtype)
    check(function, x, open=True)


def test_zero_is_a_size_and_no_copy() -> None:
    empty = np.zeros((0, 2, 3), np.float32)
    check(lambda x: tf.reshape(x, [2, 0, 3]), empty)
    check(lambda x: tf.reshape(x, [tf.shape(x)[1], 0, 3]), empty, open=True)
    check(lambda x: tf.reshape(x, [2, 0]), empty, simplify=True)


def test_a_squeeze_of_open_sizes_must_name_its_axes() -> None:
    check(lambda x: tf.squeeze(x[:1, :, :1]), X)
    with pytest.raises(UnsupportedOperations, match="name them"):
        check(lambda x: tf.identity(tf.squeeze(x)), X, open=True)


def test_an_axis_that_is_computed_is_refused() -> None:
    with pytest.raises(UnsupportedOperations, match="the axis must be a constant"):
        check(lambda x, axis: tf.concat([x, x], axis), X, np.int32(1))
    with pytest.raises(UnsupportedOperations, match="the order of the dimensions must be a constant"):
        check(lambda x, order: tf.transpose(x, order), X, np.array([0, 2, 1, 3], np.int32))
    check(lambda x, axis: tf.expand_dims(x, axis), X, np.int32(1))


def test_a_bias_that_keras_gives_dimensions_and_takes_them_away_stays_the_variable() -> None:
    layer = conv(bias_initializer="normal")
    assert check(layer, X, open=OPEN)["Squeeze"] == 0
