"""Convolutional networks and other models of images in Keras, written by hand: part of `tensorflow_zoo`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow_cases import HALF, Built, Scale, floats, images, register, signals

Tensor = Any


def functional(s: Scale, network: Callable[[Tensor], Any], channels: int = 3) -> Built:
    """A functional model of images."""
    x = keras.Input((s.image, s.image, channels), name="image")
    return keras.Model(x, network(x)), images(s, channels)


def block(x: Tensor, width: int, **options: Any) -> Tensor:
    """Convolution, normalization, ReLU."""
    options = {"kernel_size": 3, "padding": "same", "use_bias": False} | options
    return layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, **options)(x)))


def separable_block(x: Tensor, width: int, **options: Any) -> Tensor:
    """Depthwise and pointwise convolution."""
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, **options)(x)
    return block(layers.ReLU(6.0)(layers.BatchNormalization()(x)), width, kernel_size=1)


@register("sequential-cnn", is_image=True)
def _sequential(s: Scale) -> Built:
    rows = [
        keras.Input((s.image, s.image, 3)),
        layers.Rescaling(1 / 127.5, offset=-1),
        layers.Conv2D(s.width, 5, strides=2, padding="same", activation="relu"),
        layers.MaxPooling2D(3, strides=2, padding="same"),
        layers.Conv2D(s.width, 3, dilation_rate=2, activation="elu"),
        layers.Dropout(0.5),
        layers.Flatten(),
        layers.Dense(10, activation="softmax"),
    ]
    return keras.Sequential(rows), images(s)


@register("residual", is_image=True)
def _residual(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        x = block(x, s.width, strides=2)
        for _ in range(s.layers):
            y = block(block(x, s.width), s.width)
            x = layers.ReLU()(layers.Add()([x, y]))
        return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))

    return functional(s, network)


@register("grouped-conv", is_image=True)
def _grouped(s: Scale) -> Built:
    return functional(s, lambda x: block(block(x, s.width), 2 * s.width, groups=2, strides=2, padding="valid"))


@register("separable", is_image=True)
def _separable(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        x = layers.SeparableConv2D(s.width, 3, depth_multiplier=2, padding="same", activation="relu")(x)
        x = layers.SeparableConv2D(s.width, 5, strides=2, padding="valid", use_bias=False)(x)
        return layers.SeparableConv2D(s.width, 3, dilation_rate=2, padding="same")(layers.LeakyReLU()(x))

    return functional(s, network)


@register("depthwise", is_image=True)
def _depthwise(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        x = layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=4, activation="relu6")(x)
        x = separable_block(x, s.width, strides=2)
        return separable_block(layers.ZeroPadding2D(((0, 1), (1, 2)))(x), s.width)

    return functional(s, network)


@register("conv-transpose", is_image=True)
def _conv_transpose(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        x = layers.Conv2DTranspose(s.width, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.Conv2DTranspose(s.width, 4, strides=3, padding="valid", use_bias=False)(x)
        x = layers.Conv2DTranspose(s.width, 2, strides=2, padding="valid", output_padding=1)(x)
        return layers.Conv2DTranspose(3, 5, padding="same", activation="sigmoid")(x)

    return functional(replace(s, image=max(8, s.image // 4), width=max(4, s.width // 8)), network)


@register("conv3d", is_image=True)
def _conv3d(s: Scale) -> Built:
    depth, size = 8, s.image // 2
    x = inputs = keras.Input((depth, size, size, 2))
    x = layers.Conv3D(s.width, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling3D(2)(layers.BatchNormalization()(x))
    x = layers.Conv3D(s.width, (1, 3, 3), strides=(1, 2, 2))(x)
    y = layers.Conv3DTranspose(s.width, 2, strides=2)(layers.AveragePooling3D(2, padding="same")(x))
    z = layers.GlobalMaxPooling3D()(layers.Cropping3D(((0, 1), (0, 0), (0, 0)))(layers.UpSampling3D(2)(x)))
    model = keras.Model(inputs, [layers.GlobalAveragePooling3D()(y), z])
    return model, lambda batch, _: (floats(batch, depth, size, size, 2),)


@register("conv1d", is_image=True)
def _conv1d(s: Scale) -> Built:
    channels = 5
    x = inputs = keras.Input((None, channels))
    x = layers.Conv1D(s.width, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling1D(2)(layers.BatchNormalization()(layers.ZeroPadding1D(1)(x)))
    x = layers.SeparableConv1D(s.width, 3, padding="same")(x)
    x = layers.DepthwiseConv1D(2, padding="same", activation="tanh")(x)
    y = layers.Conv1DTranspose(s.width, 4, strides=2, padding="same")(layers.UpSampling1D(2)(x))
    x = layers.GlobalMaxPooling1D()(layers.AveragePooling1D(2, strides=1)(layers.Cropping1D(1)(y)))
    return keras.Model(inputs, [y, layers.Dense(3)(x)]), signals(channels)


@register("upsampling-nearest", is_image=True)
def _nearest(s: Scale) -> Built:
    return functional(s, lambda x: block(layers.UpSampling2D((2, 3))(block(x, s.width, strides=2)), s.width))


@register("upsampling-bilinear", is_image=True)
def _bilinear(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        return block(layers.UpSampling2D(2, interpolation="bilinear")(block(x, s.width, strides=2)), s.width)

    return functional(s, network)


@register("resizing", is_image=True)
def _resizing(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        x = block(x, s.width)
        kinds = ("nearest", "bilinear", "bicubic")
        return [layers.Resizing(s.image + 3, s.image * 2 - 1, interpolation=kind)(x) for kind in kinds]

    return functional(s, network)


@register("unet", is_image=True)
def _unet(s: Scale) -> Built:
    width = max(4, s.width // 8)

    def network(x: Tensor) -> Tensor:
        skips = []
        for i in range(2):
            x = block(block(x, width << i), width << i)
            skips.append(x)
            x = layers.MaxPooling2D()(x)
        x = block(x, width << 2)
        for i, skip in reversed(list(enumerate(skips))):
            x = layers.Conv2DTranspose(width << i, 2, strides=2)(x)
            x = block(layers.Concatenate()([skip, x]), width << i)
        return layers.Conv2D(2, 1, activation="softmax")(x)

    return functional(s, network)


@register("unet-open", is_image=True)
def _unet_open(s: Scale) -> Built:
    """A U-Net for images of any size."""
    x = inputs = keras.Input((None, None, 3))
    skip = block(x, s.width // 2)
    x = block(layers.MaxPooling2D()(skip), s.width)
    x = layers.Lambda(lambda pair: tf.image.resize(pair[0], tf.shape(pair[1])[1:3]))([x, skip])
    x = layers.Concatenate()([layers.UpSampling2D()(layers.MaxPooling2D()(skip)), x, skip])
    x = layers.Add()([layers.Conv2DTranspose(4, 4, strides=2, padding="same")(layers.MaxPooling2D()(x)), x[..., :4]])
    model = keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))
    return model, lambda batch, _: (floats(batch, 4 * (batch + 1), 4 * (batch + 2), 3),)


def _aspp(x: Tensor, s: Scale) -> Tensor:
    size = x.shape[1]
    pooled = block(layers.GlobalAveragePooling2D(keepdims=True)(x), s.width, kernel_size=1)
    branches = [layers.UpSampling2D(size, interpolation="bilinear")(pooled), block(x, s.width, kernel_size=1)]
    branches += [block(x, s.width, dilation_rate=rate) for rate in (2, 3)]
    return block(layers.Concatenate()(branches), s.width, kernel_size=1)


@register("deeplab", is_image=True)
def _deeplab(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        low = block(x, s.width, strides=2)
        x = _aspp(separable_block(low, s.width, strides=2), s)
        x = layers.Concatenate()([layers.UpSampling2D(2, interpolation="bilinear")(x), block(low, 4, kernel_size=1)])
        return layers.UpSampling2D(2, interpolation="bilinear")(layers.Conv2D(5, 1)(x))

    return functional(s, network)


@register("yolo")
def _yolo(s: Scale) -> Built:
    """Darknet blocks, a neck, and a head whose boxes are decoded."""
    anchors, classes = np.array([[10, 13], [16, 30]], np.float32), 4

    def conv(x: Tensor, width: int, kernel: int = 3, stride: int = 1) -> Tensor:
        x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False)(x)
        return layers.Activation("silu")(layers.BatchNormalization(epsilon=1e-3)(x))

    def csp(x: Tensor, width: int) -> Tensor:
        y = conv(x, width // 2, 1)
        y = layers.Add()([y, conv(conv(y, width // 2, 1), width // 2)])
        return conv(layers.Concatenate()([y, conv(x, width // 2, 1)]), width, 1)

    def decode(x: Tensor) -> Tensor:
        size = x.shape[1]
        grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)[None, :, :, None].astype(np.float32)
        y = layers.Reshape((size, size, len(anchors), 5 + classes))(layers.Conv2D(len(anchors) * (5 + classes), 1)(x))
        y = keras.ops.sigmoid(y)
        xy = (y[..., 0:2] * 2 - 0.5 + grid) * (s.image // size)
        boxes = keras.ops.concatenate([xy, keras.ops.square(y[..., 2:4] * 2) * anchors, y[..., 4:]], -1)
        return layers.Reshape((size * size * len(anchors), 5 + classes))(boxes)

    def network(x: Tensor) -> Tensor:
        width = max(8, s.width // 4)
        low = csp(conv(conv(x, width // 2, 3, 2), width, 3, 2), width)
        high = csp(conv(low, 2 * width, 3, 2), 2 * width)
        pools = [high]
        for _ in range(3):
            pools.append(layers.MaxPooling2D(5, 1, padding="same")(pools[-1]))
        high = conv(layers.Concatenate()(pools), width, 1)
        low = csp(layers.Concatenate()([layers.UpSampling2D()(high), low]), width)
        return layers.Concatenate(axis=1)([decode(low), decode(high)])

    return functional(s, network)


@register("squeeze-excite", is_image=True)
def _squeeze(s: Scale) -> Built:
    def network(x: Tensor) -> Tensor:
        x = block(x, s.width)
        y = layers.Reshape((1, 1, s.width))(layers.GlobalAveragePooling2D()(x))
        y = layers.Conv2D(s.width, 1, activation="hard_sigmoid")(layers.Conv2D(s.width // 4, 1, activation="relu")(y))
        x = layers.Multiply()([x, y])
        z = layers.Dense(s.width, "sigmoid")(layers.Dense(s.width // 4, "swish")(layers.GlobalMaxPooling2D()(x)))
        return layers.Conv2D(4, 1)(layers.Multiply()([x, layers.Reshape((1, 1, s.width))(z)]))

    return functional(s, network)


@register("normalizations")
def _normalizations(s: Scale) -> Built:
    def network(x: Tensor) -> list[Tensor]:
        x = layers.Conv2D(s.width, 3, padding="same")(x)
        kinds: Sequence[Any] = (
            layers.BatchNormalization(),
            layers.BatchNormalization(center=False, scale=False, epsilon=1e-5),
            layers.LayerNormalization(),
            layers.LayerNormalization(axis=(1, 2, 3), center=False),
            layers.GroupNormalization(groups=2),
            layers.GroupNormalization(groups=-1),
            layers.RMSNormalization(),
            layers.UnitNormalization(),
            layers.SpectralNormalization(layers.Conv2D(4, 3)),
            layers.Normalization(mean=[0.1] * s.width, variance=[0.9] * s.width),
        )
        return [layer(x) for layer in kinds]

    return functional(s, network)


@register("poolings", is_image=True)
def _poolings(s: Scale) -> Built:
    def network(x: Tensor) -> list[Tensor]:
        x = layers.Conv2D(s.width, 3, padding="same")(x)
        kinds: Sequence[Any] = (
            layers.MaxPooling2D(2),
            layers.MaxPooling2D(3, strides=2, padding="same"),
            layers.AveragePooling2D(2),
            layers.AveragePooling2D(3, strides=2, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.GlobalMaxPooling2D(),
            layers.GlobalMaxPooling2D(keepdims=True),
            layers.AdaptiveAveragePooling2D(4),
            layers.AdaptiveMaxPooling2D((3, 5)),
        )
        return [layer(x) for layer in kinds]

    return functional(s, network)


_ACTIVATIONS = """
elu exponential gelu hard_sigmoid hard_silu leaky_relu linear log_sigmoid mish relu relu6 selu sigmoid silu softplus
softsign tanh celu glu hard_shrink hard_tanh log_softmax soft_shrink sparse_plus squareplus tanh_shrink
"""


@register("activations", is_image=True)
def _activations(s: Scale) -> Built:

    def network(x: Tensor) -> list[Tensor]:
        x = layers.Conv2D(8, 3, padding="same")(x)
        found = [layers.Activation(n)(x) for n in _ACTIVATIONS.split()]
        return [*found, layers.PReLU(shared_axes=(1, 2))(x), layers.PReLU()(x), layers.ReLU(6, 0.1, 0.2)(x)]

    return functional(replace(s, image=16), network)


@register("wavenet", is_image=True)
def _wavenet(s: Scale) -> Built:
    channels = 4
    inputs = keras.Input((None, channels))
    x, skips = layers.Conv1D(s.width, 1)(inputs), []
    for i in range(s.layers):
        gate = [
            layers.Conv1D(s.width, 2, dilation_rate=2**i, padding="causal", activation=a)(x)
            for a in ("tanh", "sigmoid")
        ]
        y = layers.Conv1D(s.width, 1)(layers.Multiply()(gate))
        skips.append(y)
        x = layers.Add()([x, y])
    y = layers.ReLU()(layers.Add()(skips) if len(skips) > 1 else skips[0])
    return keras.Model(inputs, layers.Conv1D(8, 1, activation="softmax")(y)), signals(channels)


@register("tcn", is_image=True)
def _tcn(s: Scale) -> Built:
    channels = 4
    x = inputs = keras.Input((None, channels))
    for i in range(s.layers):
        y = x
        for _ in range(2):
            y = layers.Conv1D(s.width, 3, dilation_rate=2**i, padding="causal")(y)
            y = layers.SpatialDropout1D(0.1)(layers.ReLU()(layers.BatchNormalization()(y)))
        x = layers.ReLU()(layers.Add()([y, x if i else layers.Conv1D(s.width, 1)(x)]))
    return keras.Model(inputs, layers.Dense(3)(x[:, -1])), signals(channels)


@register("autoencoder", is_image=True)
def _autoencoder(s: Scale) -> Built:
    """Two models in one: layers within layers."""
    x = inputs = keras.Input((s.image, s.image, 3))
    for width in (4, 8):
        x = layers.Conv2D(width, 3, strides=2, padding="same", activation="relu")(x)
    encoder = keras.Model(inputs, layers.Dense(s.width)(layers.Flatten()(x)), name="encoder")
    small = s.image // 4
    y = code = keras.Input((s.width,))
    y = layers.Reshape((small, small, 8))(layers.Dense(small * small * 8, activation="relu")(y))
    for width in (8, 4):
        y = layers.Conv2DTranspose(width, 3, strides=2, padding="same", activation="relu")(y)
    decoder = keras.Model(code, layers.Conv2D(3, 3, padding="same", activation="sigmoid")(y), name="decoder")
    return keras.Model(inputs, decoder(encoder(inputs))), images(s)


@register("dcgan", is_image=True)
def _dcgan(s: Scale) -> Built:
    noise, size, width = 20, max(2, s.image // 8), s.width // 2
    rows = [keras.Input((noise,)), layers.Dense(size * size * width, use_bias=False)]
    rows += [layers.BatchNormalization(), layers.LeakyReLU(), layers.Reshape((size, size, width))]
    for _ in range(2):
        rows += [layers.Conv2DTranspose(width, 5, strides=2, padding="same", use_bias=False)]
        rows += [layers.BatchNormalization(), layers.LeakyReLU(0.2)]
    rows += [layers.Conv2DTranspose(3, 5, strides=2, padding="same", use_bias=False, activation="tanh")]
    return keras.Sequential(rows), lambda batch, _: (floats(batch, noise),)


@register("siamese", is_image=True, tolerance=1e-4)  # the range of a few cosines is narrow
def _siamese(s: Scale) -> Built:
    """One tower for two images."""
    x = inputs = keras.Input((s.image, s.image, 3))
    tower = keras.Model(inputs, layers.Dense(8)(layers.Flatten()(block(x, 4, strides=2))))
    left, right = (keras.Input((s.image, s.image, 3), name=n) for n in ("left", "right"))
    apart = keras.ops.abs(layers.Subtract()([tower(left), tower(right)]))
    near = layers.Dot(axes=1, normalize=True)([tower(left), tower(right)])
    model = keras.Model([left, right], [layers.Dense(1, activation="sigmoid")(apart), near])
    return model, lambda batch, _: (floats(batch, s.image, s.image, 3), floats(batch, s.image, s.image, 3))


@register("super-resolution", is_image=True)
def _super_resolution(s: Scale) -> Built:
    """Channels to pixels, and back."""

    def network(x: Tensor) -> Tensor:
        x = layers.Conv2D(3 * 4, 3, padding="same")(block(x, s.width))
        y = layers.Lambda(lambda t: tf.nn.depth_to_space(t, 2))(x)
        return [y, layers.Conv2D(4, 1)(layers.Lambda(lambda t: tf.nn.space_to_depth(t, 4))(y))]

    return functional(s, network)


@register("image-ops", is_image=True)
def _image_ops(s: Scale) -> Built:
    """What is done to images before and after: padding, flipping, cropping, resizing by functions."""

    def ops(x: Tensor) -> Tensor:
        x = tf.pad(x, [[0, 0], [1, 2], [2, 1], [0, 0]], mode="REFLECT")
        x = tf.image.resize(x, (s.image + 5, s.image), method="bilinear")
        x = tf.reverse(x, axis=[2])[:, 1:-1, ::2]
        return tf.image.resize(x, (7, 9), method="nearest") - tf.reduce_mean(x, axis=(1, 2), keepdims=True)

    return functional(s, lambda x: block(layers.Lambda(ops)(block(x, s.width)), s.width))


@register("channel-shuffle", is_image=True, inside=lambda s: s.layers - 1)
def _shuffle(s: Scale) -> Built:
    """ShuffleNet's blocks: split, shuffle, concatenate."""

    def shuffled(x: Tensor) -> Tensor:
        _, high, wide, channels = x.shape
        x = keras.ops.reshape(x, (-1, high, wide, 2, channels // 2))
        return keras.ops.reshape(keras.ops.transpose(x, (0, 1, 2, 4, 3)), (-1, high, wide, channels))

    def network(x: Tensor) -> Tensor:
        x = block(x, s.width, strides=2)
        for _ in range(s.layers):
            kept, y = keras.ops.split(x, 2, axis=-1)
            y = separable_block(block(y, s.width // 2, kernel_size=1), s.width // 2)
            x = shuffled(layers.Concatenate()([kept, y]))
        return layers.GlobalAveragePooling2D()(x)

    return functional(s, network)


@register("channels-first", is_image=True)
def _channels_first(s: Scale) -> Built:
    """Images that come with channels first and are turned by the model."""
    inputs = keras.Input((3, s.image, s.image))
    x = block(layers.Permute((2, 3, 1))(inputs), s.width)
    model = keras.Model(inputs, layers.Permute((3, 1, 2))(block(x, s.width, strides=2)))
    return model, lambda batch, _: (floats(batch, 3, s.image, s.image),)


@register("mlp-mixer")
def _mixer(s: Scale) -> Built:
    def mlp(x: Tensor, width: int) -> Tensor:
        size = x.shape[-1]
        return layers.Dense(size)(layers.Dense(width, activation="gelu")(x))

    def network(x: Tensor) -> Tensor:
        x = layers.Reshape((-1, s.width))(layers.Conv2D(s.width, 4, strides=4)(x))
        for _ in range(s.layers):
            y = layers.Permute((2, 1))(layers.LayerNormalization(epsilon=1e-6)(x))
            x = layers.Add()([x, layers.Permute((2, 1))(mlp(y, 2 * s.width))])
            x = layers.Add()([x, mlp(layers.LayerNormalization(epsilon=1e-6)(x), 2 * s.width)])
        return layers.Dense(10)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)))

    return functional(s, network)


def _vit(patches: Callable[[Tensor, Scale], Tensor]) -> Callable[[Scale], Built]:
    from tensorflow_sequences import encoder_block, position_embedding

    def make(s: Scale) -> Built:
        def network(x: Tensor) -> Tensor:
            x = patches(x, s)
            x = position_embedding(x, x.shape[1])
            for _ in range(s.layers):
                x = encoder_block(x, s, pre=True)
            return layers.Dense(10)(layers.LayerNormalization(epsilon=1e-6)(x)[:, 0])

        return functional(s, network)

    return make


def _by_convolution(x: Tensor, s: Scale) -> Tensor:
    return layers.Reshape((-1, s.width))(layers.Conv2D(s.width, 4, strides=4)(x))


def _by_extraction(x: Tensor, s: Scale) -> Tensor:
    def extract(x: Tensor) -> Tensor:
        found = tf.image.extract_patches(x, (1, 4, 4, 1), (1, 4, 4, 1), (1, 1, 1, 1), "VALID")
        return tf.reshape(found, [tf.shape(x)[0], -1, found.shape[-1]])

    count = (s.image // 4) ** 2
    return layers.Dense(s.width)(layers.Lambda(extract, output_shape=(count, 48))(x))


register("vit", wants=lambda s: {"Attention": s.layers, "LayerNormalization": 2 * s.layers + 1})(_vit(_by_convolution))
register("vit-patches", wants=lambda s: {"Attention": s.layers})(_vit(_by_extraction))


@register("conv-lstm")
def _conv_lstm(s: Scale) -> Built:
    shape = (4, s.image // 2, s.image // 2, 2)
    x = inputs = keras.Input(shape)
    x = layers.ConvLSTM2D(4, 3, padding="same", return_sequences=True)(x)
    x = layers.TimeDistributed(layers.Conv2D(3, 3))(x)
    return keras.Model(inputs, x), lambda batch, _: (floats(batch, *shape),)


def _mixed(policy: str) -> Callable[[Scale], Built]:
    def make(s: Scale) -> Built:
        before = keras.mixed_precision.dtype_policy()
        keras.mixed_precision.set_dtype_policy(policy)
        try:
            x = inputs = keras.Input((s.image, s.image, 3))
            x = layers.MaxPooling2D()(block(block(x, s.width), s.width))
            x = layers.LayerNormalization()(layers.GlobalAveragePooling2D()(x))
            return keras.Model(inputs, layers.Dense(10, dtype="float32")(layers.Dense(8, "gelu")(x))), images(s)
        finally:
            keras.mixed_precision.set_dtype_policy(before)

    return make


for _kind, _tolerance in HALF.items():
    register(f"mixed-{_kind}", is_image=True, tolerance=_tolerance)(_mixed(f"mixed_{_kind}"))
