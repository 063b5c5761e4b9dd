"""Convolutions, transposed convolutions, pooling and normalizations: the graph computes what TensorFlow computes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from planish.frontends.tensorflow.reasons import UnsupportedOperations

from .tf_check import check, translate

raw = tf.raw_ops
IMAGE = (2, 7, 8, 4)
SPATIAL = {0: [1, 2]}
OPEN = [False, SPATIAL]


def f32(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def explicit(padding: str) -> list[int]:
    return [0, 0, 1, 2, 0, 1, 0, 0] if padding == "EXPLICIT" else []


# convolutions


@pytest.mark.parametrize("padding", ["SAME", "VALID", "EXPLICIT"])
@pytest.mark.parametrize("open", OPEN)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)])
def test_a_convolution(padding, open, stride, dilation):
    kernel = f32(3, 2, 4, 6)

    def convolve(x):
        return raw.Conv2D(
            input=x,
            filter=kernel,
            strides=[1, stride, stride, 1],
            dilations=[1, dilation, dilation, 1],
            padding=padding,
            explicit_paddings=explicit(padding),
        )

    check(convolve, f32(*IMAGE), open=open)


@pytest.mark.parametrize("size", [6, 7, 8, 9])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_padding_of_open_sizes(size, kernel):
    weight = f32(kernel, kernel, 2, 3)
    strided = tf.function(lambda x: tf.nn.conv2d(x, weight, 2, "SAME"))
    check(strided, f32(1, size, size + 1, 2), open=SPATIAL)


def test_padding_is_explicit_wherever_it_is_known():
    def convolve(stride):
        return lambda x: tf.nn.conv2d(x, f32(3, 3, 4, 2), stride, "SAME")

    def padding(graph):
        return [n.attrs.get("auto_pad", "NOTSET") for n in graph.walk() if n.op == "Conv"]

    assert padding(translate(convolve(1), f32(*IMAGE), open=SPATIAL)) == ["NOTSET"]
    assert padding(translate(convolve(2), f32(*IMAGE))) == ["NOTSET"]
    assert padding(translate(convolve(2), f32(*IMAGE), open=SPATIAL)) == ["SAME_UPPER"]


@pytest.mark.parametrize("open", OPEN)
def test_groups_follow_from_the_kernel(open):
    counts = check(lambda x: tf.nn.conv2d(x, f32(3, 2, 2, 6), 1, "SAME"), f32(*IMAGE), open=open)
    assert counts["Conv"] == 1


@pytest.mark.parametrize("open", OPEN)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_depthwise_convolution_with_several_filters_per_channel(open, padding):
    kernel = f32(3, 2, 4, 3)
    counts = check(lambda x: tf.nn.depthwise_conv2d(x, kernel, [1, 2, 2, 1], padding), f32(*IMAGE), open=open)
    assert counts["Conv"] == 1


@pytest.mark.parametrize("open", OPEN)
def test_a_convolution_with_channels_first(open):
    kernel = f32(3, 2, 4, 5)
    counts = check(
        lambda x: tf.nn.conv2d(x, kernel, 2, "SAME", data_format="NCHW"),
        f32(2, 4, 7, 8),
        open=open and {0: [2, 3]},
    )
    assert counts["Transpose"] <= 1  # of the kernel


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_convolution_of_volumes(padding):
    kernel = f32(3, 2, 2, 3, 4)
    check(lambda x: tf.nn.conv3d(x, kernel, [1, 1, 2, 1, 1], padding), f32(2, 5, 6, 4, 3), open={0: [0, 1, 2]})


def test_the_generic_convolution():
    check(lambda x: raw.Conv(input=x, filter=f32(3, 2, 4, 5), strides=[1, 2, 1, 1], padding="SAME"), f32(*IMAGE))


def test_integers_and_half_numbers():
    whole = np.random.default_rng(0).integers(-99, 99, (3, 2, 4, 3)).astype(np.int32)
    image = np.random.default_rng(1).integers(-99, 99, IMAGE).astype(np.int32)
    check(lambda x: tf.nn.conv2d(x, whole, 2, "SAME"), image, engine="reference")
    half = f32(3, 2, 4, 3).astype(np.float16)
    check(lambda x: tf.nn.conv2d(x, half, 2, "SAME"), f32(*IMAGE).astype(np.float16), engine="reference")


def test_a_kernel_that_is_computed():
    check(lambda x, w: tf.nn.conv2d(x, w * 2, 1, "SAME"), f32(*IMAGE), f32(3, 2, 4, 5), open={0: [0, 1, 2]})
    with pytest.raises(UnsupportedOperations, match="kernel has an open size"):
        translate(lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), f32(*IMAGE), f32(3, 2, 4, 5), open={1: [0]})


# transposed convolutions


@pytest.mark.parametrize("padding", ["SAME", "VALID", "EXPLICIT"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1), (4, 5)])
def test_the_gradient_of_a_convolution_has_the_size_that_is_asked_for(padding, stride, kernel):
    weight = f32(*kernel, 4, 6)
    attrs = {"strides": [1, stride, stride, 1], "padding": padding, "explicit_paddings": explicit(padding)}
    for size in ((8, 9), (9, 10)):
        image = f32(2, *size, 4)
        small = raw.Conv2D(input=image, filter=weight, **attrs).numpy()

        def grow(y, x):
            return raw.Conv2DBackpropInput(input_sizes=tf.shape(x), filter=weight, out_backprop=y, **attrs)

        counts = check(grow, small, image)
        assert counts["Slice"] == 0
        if size == (9, 10):  # computed when it runs
            check(grow, small, image, open={0: [1, 2], 1: [1, 2]})


KERAS_TRANSPOSED = [
    (padding, kernel, stride, extra, dilation)
    for padding in ("same", "valid")
    for kernel, stride, extra, dilation in (
        (3, 2, None, 1),
        (3, 2, 1, 1),
        (2, 3, None, 1),
        (5, 3, 2, 1),
        (3, 1, None, 2),
    )
]


@pytest.mark.parametrize(("padding", "kernel", "stride", "extra", "dilation"), KERAS_TRANSPOSED)
def test_keras_transposed_convolutions_of_open_sizes_are_one_node(padding, kernel, stride, extra, dilation):
    layer = layers.Conv2DTranspose(
        3, kernel, strides=stride, padding=padding, output_padding=extra, dilation_rate=dilation
    )
    model = keras.Sequential([keras.Input((None, None, 2)), layer])
    counts = check(model, f32(2, 5, 6, 2), open={0: [0, 1, 2]}, simplify=True)
    assert counts == {"Transpose": 2, "ConvTranspose": 1}


def test_transposed_convolutions_of_sequences_and_volumes():
    sequence = keras.Sequential([keras.Input((None, 3)), layers.Conv1DTranspose(4, 3, strides=2, padding="same")])
    counts = check(sequence, f32(2, 9, 3), open={0: [0, 1]}, simplify=True)
    assert counts == {"Transpose": 2, "ConvTranspose": 1}
    volume = keras.Sequential([keras.Input((4, 5, 3, 2)), layers.Conv3DTranspose(3, 3, strides=2, padding="same")])
    assert check(volume, f32(2, 4, 5, 3, 2), simplify=True) == {"Transpose": 2, "ConvTranspose": 1}


def test_the_gradient_of_a_depthwise_convolution():
    kernel = f32(3, 3, 4, 2)

    def grow(y):
        return raw.DepthwiseConv2dNativeBackpropInput(
            input_sizes=[2, 7, 8, 4], filter=kernel, out_backprop=y, strides=[1, 1, 1, 1], padding="SAME"
        )

    check(grow, f32(2, 7, 8, 8))


# pooling


@pytest.mark.parametrize("open", OPEN)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pooling(open, padding, stride):
    window = {"ksize": [1, 3, 2, 1], "strides": [1, stride, stride, 1], "padding": padding}
    image = f32(*IMAGE) - 3  # padding with zeros would show
    check(lambda x: raw.MaxPool(input=x, **window), image, open=open)
    check(lambda x: raw.AvgPool(value=x, **window), image, open=open)


@pytest.mark.parametrize("open", OPEN)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("has_batch", [False, True])
def test_positions_of_the_largest_elements(open, padding, has_batch):
    def pool(x):
        return tf.nn.max_pool_with_argmax(x, [3, 2], [2, 2], padding, include_batch_in_index=has_batch)

    check(pool, f32(*IMAGE), open=open and {0: [0, 1, 2]})
    check(pool, np.random.default_rng(0).integers(0, 3, IMAGE).astype(np.float32))  # the first of equal ones


def test_pooling_of_volumes():
    window = {"ksize": [1, 3, 2, 3, 1], "strides": [1, 2, 1, 2, 1], "padding": "SAME"}
    check(lambda x: raw.MaxPool3D(input=x, **window), f32(2, 5, 6, 7, 3), open={0: [1, 2, 3]})
    check(lambda x: raw.AvgPool3D(input=x, **window), f32(2, 5, 6, 7, 3), open={0: [1, 2, 3]})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32])
def test_the_largest_integers(dtype):
    limits = np.iinfo(dtype)
    numbers = np.random.default_rng(0).integers(limits.min, limits.max, IMAGE).astype(dtype)
    check(lambda x: raw.MaxPool(input=x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID"), numbers)


def test_pooling_with_sizes_as_operands():
    check(lambda x: raw.MaxPoolV2(input=x, ksize=[1, 3, 2, 1], strides=[1, 2, 2, 1], padding="SAME"), f32(*IMAGE))


def test_pooling_with_explicit_padding():
    padding = [[0, 0], [1, 2], [0, 1], [0, 0]]
    check(lambda x: tf.nn.max_pool2d(x, [3, 2], 2, padding), f32(*IMAGE) - 3, open=SPATIAL)


@pytest.mark.parametrize("simplify", [False, True])
def test_zeros_around_an_image_are_elements_for_the_largest(simplify):
    """ONNX Runtime takes such a Pad for padding that does not count, unless it names its axes."""

    def pool(x):
        return tf.nn.max_pool2d(
            tf.pad(tf.nn.conv2d(x, f32(1, 1, 4, 3), 1, "VALID") - 9, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID"
        )

    counts = check(pool, f32(*IMAGE), open=SPATIAL, simplify=simplify)
    assert counts["Pad"] == 1


def test_zeros_around_what_is_not_negative_become_padding():
    def pool(x):
        padded = tf.pad(tf.nn.relu(tf.nn.conv2d(x, f32(1, 1, 4, 3), 1, "VALID")), [[0, 0], [1, 1], [1, 1], [0, 0]])
        return tf.nn.max_pool2d(padded, 3, 2, "VALID")

    assert check(pool, f32(*IMAGE), simplify=True)["Pad"] == 0


def test_pooling_that_is_refused():
    with pytest.raises(UnsupportedOperations, match="random"):
        translate(lambda x: tf.nn.fractional_max_pool(x, [1, 1.5, 1.5, 1])[0], f32(*IMAGE))
    with pytest.raises(UnsupportedOperations, match="along the batch or the channels"):
        translate(
            lambda x: raw.MaxPool(input=x, ksize=[1, 1, 1, 2], strides=[1, 1, 1, 2], padding="VALID"), f32(*IMAGE)
        )


@pytest.mark.parametrize("open", [False, {0: [0, 1, 2]}])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("stride", "rate"), [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_windows_as_they_are(open, padding, stride, rate):
    sizes, strides, rates = [1, 3, 2, 1], [1, stride, stride, 1], [1, rate, rate, 1]
    check(lambda x: tf.image.extract_patches(x, sizes, strides, rates, padding), f32(*IMAGE), open=open)
    added = f32(3, 2, 4)
    check(lambda x: tf.nn.dilation2d(x, added, strides, padding, "NHWC", rates), f32(*IMAGE), open=open)


def test_erosion_and_patches_of_volumes():
    added = f32(3, 2, 4)
    check(lambda x: tf.nn.erosion2d(x, added, [1, 1, 1, 1], "SAME", "NHWC", [1, 1, 1, 1]), f32(*IMAGE))
    check(lambda x: tf.extract_volume_patches(x, [1, 2, 2, 3, 1], [1, 1, 2, 2, 1], "SAME"), f32(2, 4, 5, 6, 2))


# normalizations


@pytest.mark.parametrize("open", [False, {0: [0, 1, 2]}])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_normalization_with_given_statistics(open, dtype):
    scale, offset, mean, variance = f32(4), f32(4, seed=1), f32(4, seed=2), np.abs(f32(4, seed=3)) + 0.1

    def normalize(x):
        return tf.compat.v1.nn.fused_batch_norm(x, scale, offset, mean, variance, 1e-3, is_training=False)

    check(normalize, f32(*IMAGE).astype(dtype), open=open)


def test_statistics_of_the_batch_are_refused():
    with pytest.raises(UnsupportedOperations, match="training=False"):
        translate(lambda x: tf.compat.v1.nn.fused_batch_norm(x, f32(4), f32(4))[0], f32(*IMAGE))


def test_local_response_normalization():
    check(lambda x: tf.nn.lrn(x, 2, 1.5, 0.3, 0.6), f32(2, 5, 6, 9), open={0: [0, 1, 2]})


def test_half_of_the_sum_of_squares():
    check(tf.nn.l2_loss, f32(3, 4))


@pytest.mark.parametrize("is_open", [False, True])
def test_rows_that_are_normalized_as_batches_of_one(is_open: bool) -> None:
    """How Keras 2 normalizes layers."""

    def function(x: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(x)
        rows = tf.reshape(x, [1, shape[0] * shape[1], 6, 1])
        ones, zeros = tf.ones([shape[0] * shape[1]]), tf.zeros([shape[0] * shape[1]])
        found = tf.compat.v1.nn.fused_batch_norm(rows, ones, zeros, epsilon=1e-3, data_format="NCHW")[0]
        return tf.reshape(found, shape)

    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    assert check(function, x, open={0: [0, 1]} if is_open else False, simplify=True) == {"LayerNormalization": 1}
