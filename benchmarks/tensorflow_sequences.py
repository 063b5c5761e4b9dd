"""Recurrent networks, attention and transformers in Keras, written by hand: part of `tensorflow_zoo`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from tensorflow_cases import Arrays, Built, Scale, floats, ids, padded, register, signals, texts

Tensor = Any
FEATURES = 5  # of sequences of numbers

# recurrent networks


def _recurrent(make: Callable[[Scale], Any]) -> Callable[[Scale], Built]:
    """One recurrent layer over sequences of any length."""

    def build(s: Scale) -> Built:
        inputs = keras.Input((None, FEATURES), name="x")
        return keras.Model(inputs, make(s)(inputs)), signals(FEATURES)

    return build


_LAYERS: dict[str, tuple[Callable[[Scale], Any], dict[str, int]]] = {
    "lstm": (lambda s: layers.LSTM(s.width), {"LSTM": 1}),
    "lstm-states": (lambda s: layers.LSTM(s.width, return_sequences=True, return_state=True), {"LSTM": 1}),
    "lstm-backwards": (lambda s: layers.LSTM(s.width, go_backwards=True, return_sequences=True), {"LSTM": 1}),
    "lstm-hard": (lambda s: layers.LSTM(s.width, activation="relu", recurrent_activation="hard_sigmoid"), {}),
    "gru": (lambda s: layers.GRU(s.width, return_sequences=True), {"GRU": 1}),
    "gru-before": (lambda s: layers.GRU(s.width, reset_after=False), {"GRU": 1}),
    "simple-rnn": (lambda s: layers.SimpleRNN(s.width, return_sequences=True), {"RNN": 1}),
    "bidirectional-lstm": (lambda s: layers.Bidirectional(layers.LSTM(s.width, return_sequences=True)), {"LSTM": 1}),
    "bidirectional-gru": (lambda s: layers.Bidirectional(layers.GRU(s.width), merge_mode="sum"), {"GRU": 2}),
    "stacked-cells": (lambda s: layers.RNN([layers.LSTMCell(s.width), layers.GRUCell(s.width)]), {}),
}
for _name, (_make, _wants) in _LAYERS.items():
    register(_name, wants=_wants)(_recurrent(_make))


@register("lstm-unrolled")
def _unrolled(s: Scale) -> Built:
    inputs = keras.Input((5, FEATURES))
    return keras.Model(inputs, layers.LSTM(s.width, unroll=True)(inputs)), lambda b, _: (floats(b, 5, FEATURES),)


@register("masked-rnn")
def _masked(s: Scale) -> Built:
    """Stacked recurrent layers that skip padding."""
    x = inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(s.words, s.width, mask_zero=True)(x)
    x = layers.Bidirectional(layers.LSTM(s.width, return_sequences=True))(x)
    x = layers.GRU(s.width)(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    return model, lambda b, n: (ids(b, n, words=s.words) * padded(b, n),)


@register("masking-layer")
def _masking(s: Scale) -> Built:
    n = s.length  # TimeDistributed computes as many steps as the batch has rows where the length is open
    x = inputs = keras.Input((n, FEATURES))
    x = layers.SimpleRNN(s.width, return_sequences=True)(layers.Masking(0.0)(x))
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(3))(x))
    return model, lambda b, _: (floats(b, n, FEATURES) * padded(b, n)[..., None],)


@register("stateful-gru")
def _initial(s: Scale) -> Built:
    """States as inputs and outputs, as one decodes step by step."""
    x, state = keras.Input((None, FEATURES), name="x"), keras.Input((s.width,), name="state")
    model = keras.Model([x, state], layers.GRU(s.width, return_state=True)(x, initial_state=state))
    return model, lambda b, n: (floats(b, n, FEATURES), floats(b, s.width))


def _pair(s: Scale) -> Callable[[int, int], Arrays]:
    """A source and a shorter target."""
    return lambda b, n: (ids(b, n, words=s.words), ids(b, max(2, n // 2), words=s.words))


@register("seq2seq", wants={"LSTM": 2})
def _seq2seq(s: Scale) -> Built:
    """An encoder and a decoder of LSTMs with attention."""
    source, target = (keras.Input((None,), dtype="int32", name=n) for n in ("source", "target"))
    memory, *state = layers.LSTM(s.width, return_sequences=True, return_state=True)(
        layers.Embedding(s.words, s.width)(source)
    )
    x = layers.LSTM(s.width, return_sequences=True)(layers.Embedding(s.words, s.width)(target), initial_state=state)
    mixed = layers.Attention()([x, memory])
    model = keras.Model([source, target], layers.Dense(s.words)(layers.Concatenate()([x, mixed])))
    return model, _pair(s)


@register("crf-tagger")
def _tagger(s: Scale) -> Built:
    """Words from characters by convolution, tags by a bidirectional LSTM."""
    n = 5
    words, characters = keras.Input((n,), dtype="int32"), keras.Input((n, 8), dtype="int32")
    x = layers.TimeDistributed(layers.Conv1D(s.width, 3, padding="same"))(layers.Embedding(30, 4)(characters))
    x = layers.TimeDistributed(layers.GlobalMaxPooling1D())(x)
    x = layers.Concatenate()([layers.Embedding(s.words, s.width)(words), x])
    x = layers.Bidirectional(layers.LSTM(s.width, return_sequences=True))(x)
    model = keras.Model([words, characters], layers.Dense(5, activation="softmax")(x))
    return model, lambda b, _: (ids(b, n, words=s.words), ids(b, n, 8, words=30))


# attention layers


@register("attention-layers")
def _attention_layers(s: Scale) -> Built:
    """Luong's and Bahdanau's."""
    query, value = (keras.Input((None, s.width), name=n) for n in ("query", "value"))
    found = [layers.Attention(use_scale=True)([query, value]), layers.AdditiveAttention()([query, value])]
    model = keras.Model([query, value], [*found, layers.Attention(score_mode="concat")([query, value])])
    return model, lambda b, n: (floats(b, n, s.width), floats(b, n + 1, s.width))


def _multi_head(s: Scale, **options: Any) -> Any:
    return layers.MultiHeadAttention(s.heads, s.width // s.heads, **options)


@register("mha-self", wants={"Attention": 1})
def _self(s: Scale) -> Built:
    x = keras.Input((None, s.width))
    return keras.Model(x, _multi_head(s)(x, x)), signals(s.width)


@register("mha-fixed", wants={"Attention": 1})
def _fixed(s: Scale) -> Built:
    x = keras.Input((s.length, s.width))
    return keras.Model(x, _multi_head(s, value_dim=4)(x, x)), lambda b, _: (floats(b, s.length, s.width),)


@register("mha-cross", wants={"Attention": 1})
def _cross(s: Scale) -> Built:
    x, y = keras.Input((None, s.width)), keras.Input((None, 2 * s.width))
    model = keras.Model([x, y], _multi_head(s, value_dim=8, output_shape=6)(x, y))
    return model, lambda b, n: (floats(b, n, s.width), floats(b, n + 3, 2 * s.width))


@register("mha-causal", wants={"Attention": 1})
def _causal(s: Scale) -> Built:
    x = keras.Input((None, s.width))
    return keras.Model(x, _multi_head(s)(x, x, use_causal_mask=True)), signals(s.width)


@register("mha-padding", wants={"Attention": 1})
def _padding(s: Scale) -> Built:
    x, mask = keras.Input((None, s.width)), keras.Input((None,), dtype="bool")
    model = keras.Model([x, mask], _multi_head(s)(x, x, attention_mask=mask[:, None]))
    return model, lambda b, n: (floats(b, n, s.width), padded(b, n))


@register("mha-scores")
def _scores(s: Scale) -> Built:
    """Weights of attention are an output."""
    x = keras.Input((None, s.width))
    return keras.Model(x, list(_multi_head(s)(x, x, return_attention_scores=True))), signals(s.width)


@register("mha-images")
def _images(s: Scale) -> Built:
    """Attention over two axes: Keras writes its softmax out, with a logarithm of sums."""
    x = keras.Input((4, 3, s.width))
    layer = _multi_head(s, attention_axes=(1, 2))
    return keras.Model(x, layer(x, x)), lambda b, _: (floats(b, 4, 3, s.width),)


@register("gqa", wants={"Attention": 1})
def _grouped(s: Scale) -> Built:
    x = keras.Input((None, s.width))
    layer = layers.GroupQueryAttention(8, 4, 2)
    return keras.Model(x, layer(x, x, use_causal_mask=True)), signals(s.width)


@register("einsum-attention", wants={"Attention": 1})
def _einsum(s: Scale) -> Built:
    """Attention by tf.einsum, as TensorFlow's own models write it."""

    class Attention(layers.Layer):
        def build(self, shape: Any) -> None:
            size = s.width // s.heads
            self.kernels = [self.add_weight(shape=(s.width, s.heads, size), name=n) for n in "qkv"]
            self.output_kernel = self.add_weight(shape=(s.heads, size, s.width), name="o")

        def call(self, x: Tensor, seen: Tensor) -> Tensor:
            q, k, v = (tf.einsum("btd,dhk->bhtk", x, w) for w in self.kernels)
            scores = tf.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(s.width // s.heads).astype(np.float32)
            scores += (1.0 - tf.cast(seen, tf.float32))[:, None, None] * -1e9
            mixed = tf.einsum("bhqk,bhkd->bqhd", tf.nn.softmax(scores), v)
            return tf.einsum("bqhd,hdf->bqf", mixed, self.output_kernel)

    x, mask = keras.Input((None, s.width)), keras.Input((None,), dtype="bool")
    return keras.Model([x, mask], Attention()(x, mask)), lambda b, n: (floats(b, n, s.width), padded(b, n))


@register("matmul-attention", wants={"Attention": 1})
def _matmul(s: Scale) -> Built:
    """Attention as TensorFlow's tutorial on transformers has it: dense layers, heads split off, a mask of ones."""

    class Attention(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.keys, self.values, self.last = (layers.Dense(s.width) for _ in range(4))

        def heads(self, x: Tensor) -> Tensor:
            x = tf.reshape(x, (tf.shape(x)[0], -1, s.heads, s.width // s.heads))
            return tf.transpose(x, perm=[0, 2, 1, 3])

        def call(self, x: Tensor, seen: Tensor) -> Tensor:
            q, k, v = self.heads(self.queries(x)), self.heads(self.keys(x)), self.heads(self.values(x))
            scores = tf.matmul(q, k, transpose_b=True) / tf.math.sqrt(tf.cast(tf.shape(k)[-1], tf.float32))
            weights = tf.nn.softmax(scores + tf.cast(seen[:, None, None], tf.float32) * -1e9, axis=-1)
            mixed = tf.transpose(tf.matmul(weights, v), perm=[0, 2, 1, 3])
            return self.last(tf.reshape(mixed, (tf.shape(x)[0], -1, s.width)))

        def compute_output_shape(self, x_shape: Any, seen_shape: Any) -> Any:
            return x_shape

    x, mask = keras.Input((None, s.width)), keras.Input((None,), dtype="bool")
    return keras.Model([x, mask], Attention()(x, mask)), lambda b, n: (floats(b, n, s.width), ~padded(b, n))


# transformers


class Positions(layers.Layer):  # type: ignore[misc] # no types
    """Adds an embedding of the position."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(self.most, shape[-1]), initializer="normal", name="table")

    def call(self, x: Tensor) -> Tensor:
        return x + self.table[: ops.shape(x)[1]]


def position_embedding(x: Tensor, most: int) -> Tensor:
    """``x`` plus embeddings of positions."""
    return Positions(most)(x)


def encoder_block(x: Tensor, s: Scale, mask: Tensor = None, pre: bool = False, causal: bool = False) -> Tensor:
    """Attention and two dense layers; normalization before or behind each."""

    def around(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        norm = layers.LayerNormalization(epsilon=1e-6)
        return x + function(norm(x)) if pre else norm(x + function(x))

    attention = _multi_head(s)
    x = around(x, lambda y: attention(y, y, attention_mask=mask, use_causal_mask=causal))
    return around(x, lambda y: layers.Dense(s.width)(layers.Dense(4 * s.width, activation="gelu")(y)))


@register("bert", wants=lambda s: {"Attention": s.layers, "LayerNormalization": 2 * s.layers + 1, "Gelu": s.layers})
def _bert(s: Scale) -> Built:
    words, kinds = (keras.Input((None,), dtype="int32", name=n) for n in ("ids", "types"))
    mask = keras.Input((None,), dtype="bool", name="mask")
    x = layers.Embedding(s.words, s.width)(words) + layers.Embedding(2, s.width)(kinds)
    x = layers.LayerNormalization(epsilon=1e-12)(position_embedding(x, 4 * s.length))
    for _ in range(s.layers):
        x = encoder_block(x, s, mask=mask[:, None])
    pooled = layers.Dense(s.width, activation="tanh")(x[:, 0])
    model = keras.Model({"ids": words, "types": kinds, "mask": mask}, {"hidden": x, "pooled": pooled})

    def sample(b: int, n: int) -> Arrays:  # in the order of names
        return ids(b, n, words=s.words), padded(b, n), ids(b, n, words=2, low=0)

    return model, sample


@register("bert-mask-zero", wants=lambda s: {"Attention": s.layers})
def _bert_zero(s: Scale) -> Built:
    """The mask travels with the embedding, as Keras does it."""
    x = inputs = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(s.words, s.width, mask_zero=True)(x)
    for _ in range(s.layers):
        x = layers.LayerNormalization()(layers.Add()([x, _multi_head(s)(x, x)]))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    return model, lambda b, n: (ids(b, n, words=s.words) * padded(b, n),)


@register("gpt", wants=lambda s: {"Attention": s.layers, "LayerNormalization": 2 * s.layers + 1, "Gelu": s.layers})
def _gpt(s: Scale) -> Built:
    inputs = keras.Input((None,), dtype="int32", name="ids")
    embedding = layers.ReversibleEmbedding(s.words, s.width)
    x = position_embedding(embedding(inputs), 4 * s.length)
    for _ in range(s.layers):
        x = encoder_block(x, s, pre=True, causal=True)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return keras.Model(inputs, embedding(x, reverse=True)), texts(s)


def _rotated(x: Tensor) -> Tensor:
    """Rotary position embedding of ``[batch, positions, heads, size]``."""
    half = x.shape[-1] // 2
    positions = ops.cast(ops.arange(ops.shape(x)[1]), "float32")
    angles = positions[:, None] / ops.power(10000.0, ops.arange(half, dtype="float32") / half)
    cos, sin = ops.cos(angles)[None, :, None], ops.sin(angles)[None, :, None]
    a, b = ops.split(x, 2, axis=-1)
    return ops.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class RotaryAttention(layers.Layer):  # type: ignore[misc] # no types
    """Causal attention with rotary embeddings whose keys serve several heads."""

    def __init__(self, s: Scale) -> None:
        super().__init__()
        self.scale, self.size = s, s.width // s.heads
        self.queries = layers.Dense(s.width, use_bias=False)
        self.keys, self.values = (layers.Dense(s.width // 2, use_bias=False) for _ in range(2))
        self.last = layers.Dense(s.width, use_bias=False)

    def call(self, x: Tensor) -> Tensor:
        heads, length = self.scale.heads, ops.shape(x)[1]
        q = _rotated(ops.reshape(self.queries(x), (-1, length, heads, self.size)))
        k = _rotated(ops.reshape(self.keys(x), (-1, length, heads // 2, self.size)))
        v = ops.reshape(self.values(x), (-1, length, heads // 2, self.size))
        k, v = ops.repeat(k, 2, axis=2), ops.repeat(v, 2, axis=2)
        mixed = ops.dot_product_attention(q, k, v, is_causal=True)
        return self.last(ops.reshape(mixed, (-1, length, self.scale.width)))

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@register("llama", wants=lambda s: {"Attention": s.layers, "RMSNormalization": 2 * s.layers + 1, "Swish": s.layers})
def _llama(s: Scale) -> Built:
    x = inputs = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(s.words, s.width)(x)
    for _ in range(s.layers):
        x = x + RotaryAttention(s)(layers.RMSNormalization()(x))
        y = layers.RMSNormalization()(x)
        gate, up = layers.Dense(2 * s.width, "silu", use_bias=False)(y), layers.Dense(2 * s.width, use_bias=False)(y)
        x = x + layers.Dense(s.width, use_bias=False)(gate * up)
    return keras.Model(inputs, layers.Dense(s.words, use_bias=False)(layers.RMSNormalization()(x))), texts(s)


class RelativeAttention(layers.Layer):  # type: ignore[misc] # no types
    """Attention with a bias for the distance of positions, as T5 has it."""

    def __init__(self, s: Scale) -> None:
        super().__init__()
        self.scale = s
        self.projections = [layers.EinsumDense("btd,dhk->bthk", (None, s.heads, s.width // s.heads)) for _ in range(3)]
        self.last = layers.EinsumDense("bthk,hkd->btd", (None, s.width))
        self.bias = layers.Embedding(9, s.heads)

    def call(self, x: Tensor) -> Tensor:
        q, k, v = (project(x) for project in self.projections)
        positions = ops.arange(ops.shape(x)[1])
        distance = ops.clip(positions[None] - positions[:, None], -4, 4) + 4
        scores = ops.einsum("bqhd,bkhd->bhqk", q, k) + ops.transpose(self.bias(distance), (2, 0, 1))[None]
        return self.last(ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), v))

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@register("relative-bias", wants=lambda s: {"Attention": s.layers})
def _relative(s: Scale) -> Built:
    x = inputs = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(s.words, s.width)(x)
    for _ in range(s.layers):
        x = x + RelativeAttention(s)(layers.LayerNormalization()(x))
        x = x + layers.Dense(s.width)(layers.Dense(2 * s.width, "relu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, x), texts(s)


@register("translator", wants=lambda s: {"Attention": 3 * s.layers})
def _translator(s: Scale) -> Built:
    """A transformer with encoder and decoder."""
    source, target = (keras.Input((None,), dtype="int32", name=n) for n in ("source", "target"))
    memory = position_embedding(layers.Embedding(s.words, s.width)(source), 4 * s.length)
    x = position_embedding(layers.Embedding(s.words, s.width)(target), 4 * s.length)
    for _ in range(s.layers):
        memory = encoder_block(memory, s)
    for _ in range(s.layers):
        x = layers.LayerNormalization()(x + _multi_head(s)(x, x, use_causal_mask=True))
        x = layers.LayerNormalization()(x + _multi_head(s)(x, memory))
        x = layers.LayerNormalization()(x + layers.Dense(s.width)(layers.Dense(2 * s.width, "relu")(x)))
    return keras.Model([source, target], layers.Dense(s.words)(x)), _pair(s)


@register("swin", wants={"Attention": 2})
def _swin(s: Scale) -> Built:
    """Windows of positions, rolled in the second block."""
    size, window = 8, 4

    def attend(x: Tensor) -> Tensor:
        tiles = ops.reshape(x, (-1, size // window, window, size // window, window, s.width))
        y = ops.reshape(ops.transpose(tiles, (0, 1, 3, 2, 4, 5)), (-1, window * window, s.width))
        y = _multi_head(s)(y, y)
        y = ops.reshape(y, (-1, size // window, size // window, window, window, s.width))
        return ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, size, size, s.width))

    x = inputs = keras.Input((4 * size, 4 * size, 3))
    x = layers.Conv2D(s.width, 4, strides=4)(x)
    for shift in (0, window // 2):
        y = ops.roll(layers.LayerNormalization()(x), (-shift, -shift), axis=(1, 2)) if shift else x
        y = attend(y)
        x = x + (ops.roll(y, (shift, shift), axis=(1, 2)) if shift else y)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x)), lambda b, _: (floats(b, 4 * size, 4 * size, 3),)


@register("conformer", wants=lambda s: {"Attention": s.layers})
def _conformer(s: Scale) -> Built:
    """Speech: frames halved by convolution, attention, and a depthwise convolution along time."""
    x = inputs = keras.Input((None, 16))
    x = layers.Conv1D(s.width, 3, strides=2, padding="same", activation="relu")(x)
    for _ in range(s.layers):
        y = layers.LayerNormalization()(x)
        x = x + _multi_head(s)(y, y)
        y, gate = ops.split(layers.Conv1D(2 * s.width, 1)(layers.LayerNormalization()(x)), 2, axis=-1)
        y = layers.BatchNormalization()(layers.DepthwiseConv1D(5, padding="same")(y * ops.sigmoid(gate)))
        x = x + layers.Conv1D(s.width, 1)(layers.Activation("swish")(y))
    return keras.Model(inputs, layers.Dense(12, "log_softmax")(x)), signals(16)


@register("half-bert", wants=lambda s: {"Attention": s.layers}, tolerance=1e-2)
def _half(s: Scale) -> Built:
    """An encoder in float16."""
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        x = inputs = keras.Input((None,), dtype="int32")
        x = position_embedding(layers.Embedding(s.words, s.width)(x), 4 * s.length)
        for _ in range(s.layers):
            x = encoder_block(x, s)
        return keras.Model(inputs, layers.Dense(4, dtype="float32")(x)), texts(s)
    finally:
        keras.mixed_precision.set_dtype_policy(before)


# tables


@register("wide-and-deep")
def _wide(s: Scale) -> Built:
    sizes = {"city": s.words, "shop": 30, "day": 7}
    categories = {n: keras.Input((1,), dtype="int32", name=n) for n in sizes}
    numbers = keras.Input((4,), name="numbers")
    parts = [layers.Flatten()(layers.Embedding(size, 8)(categories[n])) for n, size in sizes.items()]
    deep = layers.Concatenate()([*parts, layers.BatchNormalization()(numbers)])
    for width in (2 * s.width, s.width):
        deep = layers.Dropout(0.2)(layers.Dense(width, activation="relu")(deep))
    wide = layers.CategoryEncoding(num_tokens=7, output_mode="one_hot")(categories["day"])
    model = keras.Model(
        {**categories, "numbers": numbers}, layers.Dense(1, "sigmoid")(layers.Concatenate()([wide, deep]))
    )

    def sample(b: int, _: int) -> Arrays:  # in the order of names
        city, shop, day = (ids(b, 1, words=size, low=0) for size in sizes.values())
        return city, day, floats(b, 4), shop

    return model, sample


@register("two-towers")
def _towers(s: Scale) -> Built:
    """A recommender: the mean of embeddings against one, and factorization machines."""
    history, item = keras.Input((None,), dtype="int32", name="history"), keras.Input((1,), dtype="int32", name="item")
    embedding = layers.Embedding(s.words, s.width)
    user = layers.Dense(s.width)(layers.GlobalAveragePooling1D()(embedding(history)))
    thing = layers.Flatten()(embedding(item))
    model = keras.Model([history, item], [layers.Dot(axes=-1)([user, thing]), ops.norm(user - thing, axis=-1)])
    return model, lambda b, n: (ids(b, n, words=s.words), ids(b, 1, words=s.words))


@register("perceptron", wants={"Gemm": 2, "Relu": 1})
def _perceptron(s: Scale) -> Built:
    rows = [keras.Input((FEATURES,)), layers.Dense(s.width, "relu"), layers.Dense(3)]
    return keras.Sequential(rows), lambda b, _: (floats(b, FEATURES),)
