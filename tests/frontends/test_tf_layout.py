"""Channels first: networks of convolutions have one Transpose where images come in, and none inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from .tf_check import check

IMAGE = (16, 12, 3)
BATCH, ALL = {0: [0]}, {0: [0, 1, 2]}


def counts_of(build: Callable[[Any], Any], shape: tuple[int | None, ...] = IMAGE) -> Counter[str]:
    """The operators of a model, which is checked to compute what Keras computes."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    shake(model)
    size = [d or 4 * (i + 2) for i, d in enumerate(shape)]
    x = np.random.default_rng(0).standard_normal((2, *size)).astype(np.float32)
    open_ = {0: [0, *(i + 1 for i, d in enumerate(shape) if d is None)]}
    return check(model, x, open=open_, simplify=True)


def shake(model: keras.Model) -> None:
    """Give normalizations statistics with which mistakes show."""
    numbers = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([numbers.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])


def block(x: Any, filters: int, stride: int = 1) -> Any:
    x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def u_net(x: Any) -> Any:
    first = block(x, 4)
    second = block(layers.MaxPooling2D()(first), 8)
    third = block(layers.MaxPooling2D()(second), 8)
    up = layers.Concatenate()([layers.Conv2DTranspose(8, 2, strides=2, padding="same")(third), second])
    up = layers.Concatenate()([layers.UpSampling2D()(block(up, 8)), first])
    return layers.Conv2D(2, 1, activation="sigmoid")(block(up, 4))


@pytest.mark.parametrize("shape", [IMAGE, (None, None, 3)])
def test_a_u_net(shape):
    assert counts_of(u_net, shape) == {
        "Transpose": 2, "Conv": 6, "Relu": 5, "MaxPool": 2, "ConvTranspose": 1, "Resize": 1, "Concat": 2, "Sigmoid": 1,
    }  # fmt: skip


def test_a_residual_network_with_padding_and_pooling():
    def network(x):
        x = layers.ReLU()(layers.Conv2D(4, 7, strides=2)(layers.ZeroPadding2D(3)(x)))
        x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
        x = layers.Add()([x, block(block(x, 4), 4)])
        return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))

    assert counts_of(network) == {
        "Transpose": 1, "Conv": 3, "Relu": 3, "MaxPool": 1, "Add": 1, "ReduceMean": 1, "MatMul": 1,
    }  # fmt: skip


def test_a_network_that_flattens():
    def network(x):
        x = layers.Flatten()(layers.MaxPooling2D()(block(x, 4)))
        return layers.Dense(3, bias_initializer="ones")(x)

    counts = counts_of(network)
    assert counts == {"Transpose": 1, "Conv": 1, "Relu": 1, "MaxPool": 1, "Reshape": 1, "Gemm": 1}


@pytest.mark.parametrize("shape", [IMAGE, (None, None, 3)])
def test_squeeze_and_excite(shape):
    def network(x):
        x = block(x, 8, 2)
        squeezed = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(x))
        squeezed = layers.Conv2D(2, 1, activation="relu")(squeezed)
        squeezed = layers.Conv2D(8, 1, activation="sigmoid")(squeezed)
        return layers.GlobalMaxPooling2D()(layers.Multiply()([x, squeezed]))

    assert counts_of(network, shape) == {
        "Transpose": 1, "Conv": 3, "Relu": 2, "ReduceMean": 1, "Sigmoid": 1, "Mul": 1, "ReduceMax": 1,
    }  # fmt: skip


def test_squeeze_and_excite_by_dense_layers():
    def network(x):
        x = block(x, 8, 2)
        squeezed = layers.Dense(2, activation="relu")(layers.GlobalAveragePooling2D()(x))
        squeezed = layers.Dense(8, activation="sigmoid")(squeezed)
        return layers.GlobalMaxPooling2D()(layers.Multiply()([x, layers.Reshape((1, 1, 8))(squeezed)]))

    counts = counts_of(network)
    assert counts["Transpose"] == 1
    assert counts["Reshape"] == 1


def test_attention_between_convolutions():
    def network(x):
        x = block(x, 8, 2)
        tokens = layers.LayerNormalization()(layers.Reshape((-1, 8))(x))
        tokens = layers.MultiHeadAttention(2, 4)(tokens, tokens)
        return layers.Conv2D(2, 1)(layers.Add()([layers.Reshape((8, 6, 8))(tokens), x]))

    counts = counts_of(network)
    assert counts["Transpose"] == 4  # images in, to tokens and back, images out
    assert counts["Attention"] == 1


def test_a_block_of_convnext_is_transposed_for_its_convolution_only():
    def network(x):
        x = layers.Conv2D(8, 4, strides=4)(x)
        for _ in range(2):
            y = layers.LayerNormalization()(layers.Conv2D(8, 3, padding="same", groups=8)(x))
            x = layers.Add()([x, layers.Dense(8)(layers.Activation("gelu")(layers.Dense(16)(y)))])
        return layers.GlobalAveragePooling2D()(x)

    counts = counts_of(network)
    assert counts["Transpose"] == 5  # images in, and two for each convolution
    assert counts["LayerNormalization"] == 2
    assert counts["Reshape"] == 0


@pytest.mark.parametrize("shape", [(24, 3), (None, 3)])
def test_sequences(shape):
    def network(x):
        x = layers.Conv1D(8, 3, padding="causal", activation="relu")(x)
        x = layers.MaxPooling1D(2)(layers.SeparableConv1D(8, 3, padding="same")(x))
        x = layers.Conv1D(4, 3, dilation_rate=2, padding="same")(layers.DepthwiseConv1D(3)(x))
        x = layers.Conv1D(4, 1)(layers.UpSampling1D(2)(layers.AveragePooling1D(2)(x)))
        return layers.GlobalAveragePooling1D()(x)

    assert counts_of(network, shape) == {
        "Transpose": 1, "Conv": 6, "Relu": 1, "MaxPool": 1, "AveragePool": 1, "Resize": 1, "ReduceMean": 1,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [IMAGE, (None, None, 3)])
def test_dilated_convolutions_are_one_node_each(shape):
    def network(x):
        x = layers.SeparableConv2D(4, 3, dilation_rate=2, padding="same")(x)
        x = layers.DepthwiseConv2D(3, dilation_rate=2, depth_multiplier=2)(x)
        return layers.Conv2D(3, 3, dilation_rate=3, padding="same")(x)

    assert counts_of(network, shape) == {"Transpose": 2, "Conv": 4}


def test_data_with_channels_first():
    first = {"data_format": "channels_first"}

    def network(x):
        x = layers.ReLU()(layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, padding="same", **first)(x)))
        skip = x
        x = layers.MaxPooling2D(**first)(layers.SeparableConv2D(8, 3, padding="same", **first)(x))
        x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", **first)(x)
        x = layers.Conv2D(4, 3, **first)(layers.ZeroPadding2D(1, **first)(layers.Concatenate(axis=1)([x, skip])))
        return layers.Dense(3)(layers.GlobalAveragePooling2D(**first)(x))

    assert counts_of(network, (3, 16, 12)) == {
        "Conv": 4, "Relu": 1, "MaxPool": 1, "ConvTranspose": 1, "Concat": 1, "ReduceMean": 1, "MatMul": 1,
    }  # fmt: skip


def test_a_decoder_from_numbers_to_an_image():
    def network(x):
        x = layers.Reshape((4, 3, 8))(layers.Dense(96)(x))
        x = layers.LeakyReLU()(layers.Conv2DTranspose(4, 5, strides=2, padding="same")(x))
        return layers.Conv2DTranspose(3, 5, strides=2, padding="same", activation="tanh")(x)

    counts = counts_of(network, (10,))
    assert counts["Transpose"] == 1


def test_volumes():
    def network(x):
        x = layers.BatchNormalization()(layers.Conv3D(4, 3, padding="same", strides=2)(x))
        return layers.Dense(2)(layers.Flatten()(layers.MaxPooling3D()(x)))

    counts = counts_of(network, (8, 8, 8, 2))
    assert counts == {"Transpose": 1, "Conv": 1, "MaxPool": 1, "Reshape": 1, "MatMul": 1}


def test_what_is_not_broadcast_along_channels_stays_as_it_is():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype(np.float32)

    def compute(x, other):
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return y + other, y * tf.reduce_mean(y, [1, 2], keepdims=True), tf.reduce_max(y, -1, keepdims=True) - y

    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, *IMAGE)), rng.standard_normal((12, 1))
    check(compute, x.astype(np.float32), other.astype(np.float32), open=ALL)


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"])
def test_a_model_of_keras_applications(name):
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, name)
    model = make(input_shape=(32, 32, 3), weights=None, classes=7, classifier_activation=None)
    shake(model)
    counts = check(model, np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32), open=BATCH, simplify=True)
    assert counts["Transpose"] == 1
    assert counts["Pad"] == counts["BatchNormalization"] == 0
