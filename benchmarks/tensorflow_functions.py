"""Functions, modules and saved models in TensorFlow: part of `tensorflow_zoo`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow_cases import Arrays, Built, Scale, floats, ids, images, register, signals, texts

Tensor = Any
FEATURES = 6


def _open(*sizes: int | None, dtype: Any = tf.float32, name: str | None = None) -> Any:
    return tf.TensorSpec((None, *sizes), dtype, name=name)


def _weight(*shape: int) -> np.ndarray:
    return (floats(*shape) / np.sqrt(shape[0])).astype(np.float32)


def _function(name: str, *specs: Any, **facts: Any) -> Callable[[Callable[..., Any]], None]:
    """Register a function of sequences of numbers, or of what ``specs`` say: it needs no scale."""

    def add(function: Callable[..., Any]) -> None:
        own = specs or (_open(None, FEATURES, name="x"),)

        def sample(b: int, n: int) -> Arrays:
            return tuple(_like(spec, b, n) for spec in own)

        def make(s: Scale) -> Built:
            return tf.function(function), sample, own

        register(name, **{"length": 7, **facts})(make)

    return add


def _like(spec: Any, batch: int, length: int) -> np.ndarray:
    """Numbers for a specification: the first open size is the batch, others are lengths."""
    sizes = [(length if i else batch) if size is None else size for i, size in enumerate(spec.shape)]
    return floats(*sizes) if spec.dtype == tf.float32 else ids(*sizes, words=5, low=0)


# shapes and indices


@_function("einsum")
def _einsum(x: Tensor) -> Any:
    y = tf.einsum("btf,bsf->bts", x, x)
    z = tf.einsum("...f,fg->...g", x, _W)
    return y, z, tf.einsum("btt->bt", y), tf.einsum("btf,fg,bsg->ts", x, _W, x), tf.einsum("btf->f", x)


@_function("strided-slices")
def _slices(x: Tensor) -> Any:
    last = x[:, -1]
    odd = x[:, 1::2, ::-1]
    cut = x[..., tf.newaxis, 1:-1]
    shape = tf.shape(x)
    window = x[:, shape[1] // 2 :, : FEATURES - 2]
    return last, odd, cut, window, tf.slice(x, [0, 1, 2], [-1, 2, 3])


@_function("boolean-mask")
def _boolean(x: Tensor) -> Any:
    rows = tf.reduce_sum(x, -1) > 0
    return tf.boolean_mask(x, rows), tf.where(rows), tf.reduce_sum(tf.cast(rows, tf.int32), 1)


@_function("where")
def _where(x: Tensor) -> Any:
    return tf.where(x > 0, x, tf.exp(x)), tf.where(tf.math.is_nan(x), 0.0, x), tf.where(x[:, :, :1] > 0, x, -1.0)


@_function("gathers", _open(None, FEATURES), _open(3, dtype=tf.int32))
def _gathers(x: Tensor, i: Tensor) -> Any:
    rows = tf.range(tf.shape(i)[0])
    pairs = tf.stack([tf.tile(rows[:, None], (1, 3)), i], axis=-1)
    return tf.gather(x, i, axis=1, batch_dims=1), tf.gather_nd(x, pairs), tf.gather(x, [2, 0], axis=-1)


@_function("scatters", _open(None, FEATURES), _open(1, dtype=tf.int32))
def _scatters(x: Tensor, i: Tensor) -> Any:
    first = x[:, 0]
    table = tf.scatter_nd(i, first, (8, FEATURES))
    return table, tf.tensor_scatter_nd_add(table, i, first), tf.math.segment_sum(first, tf.sort(i[:, 0]))


@_function("structure")
def _structure(x: Tensor) -> Any:
    a, b, c = tf.split(x, 3, axis=-1)
    rows = tf.unstack(x, axis=-1)
    y = tf.concat([tf.stack([a, c], axis=1), tf.tile(b[:, None], (1, 3, 1, 1))], axis=1)
    shape = tf.shape(x)
    flat = tf.reshape(x, (shape[0], shape[1] * FEATURES))
    return y, rows[1] + rows[-1], flat, tf.broadcast_to(x[:, :1], shape), tf.repeat(x, 2, axis=1), tf.roll(x, 1, 1)


@_function("order")
def _order(x: Tensor) -> Any:
    values, where = tf.math.top_k(x, 3)
    best = tf.argmax(x, axis=-1)
    return values, where, best, tf.sort(x, axis=1), tf.argsort(x, direction="DESCENDING"), tf.one_hot(best, FEATURES)


@_function("reductions")
def _reductions(x: Tensor) -> Any:
    found = [f(x, axis=1) for f in (tf.reduce_max, tf.reduce_prod, tf.reduce_logsumexp, tf.math.reduce_std)]
    any_, all_ = tf.reduce_any(x > 1, 1), tf.reduce_all(x > -1, 2)
    return *found, any_, all_, tf.cumsum(x, axis=1), tf.cumsum(x, 1, exclusive=True, reverse=True), tf.norm(x, axis=-1)


@_function("elementwise")
def _elementwise(x: Tensor) -> Any:
    y = tf.abs(x) + 0.5
    found = [tf.math.log1p(y), tf.math.rsqrt(y), tf.math.erf(x), tf.math.atan2(x, y), tf.pow(y, 1.5), tf.sinh(x)]
    whole = tf.cast(x * 10, tf.int32)
    found += [tf.math.floormod(x, 0.3), tf.round(x * 2), tf.sign(x), tf.math.squared_difference(x, y), tf.math.expm1(x)]
    return *found, whole // 3, whole % 3, tf.clip_by_value(x, -0.5, 0.5), tf.math.divide_no_nan(x, tf.nn.relu(x))


@_function("loss")
def _loss(x: Tensor) -> Any:
    """Losses, as models that train themselves return them."""
    labels = tf.argmax(tf.reverse(x, [-1]), -1)
    found = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, x)
    return tf.reduce_mean(found), tf.nn.l2_normalize(x, -1), tf.nn.sigmoid_cross_entropy_with_logits(x * 0 + 0.3, x)


@_function("band-part")
def _band(x: Tensor) -> Any:
    scores = x @ tf.transpose(x, (0, 2, 1))
    seen = tf.linalg.band_part(tf.ones_like(scores), -1, 0)
    lengths = tf.reduce_sum(tf.cast(x[:, :, 0] > 0, tf.int32), 1)
    mask = tf.sequence_mask(lengths, tf.shape(x)[1], dtype=tf.float32)
    return tf.nn.softmax(scores + (1 - seen) * -1e9) * mask[:, None], tf.linalg.diag_part(scores), tf.eye(4)


_W = _weight(FEATURES, FEATURES)


# control flow


@_function("cond")
def _cond(x: Tensor) -> Any:
    def large() -> Any:
        return x * 2, tf.reduce_sum(x)

    def small() -> Any:
        return x @ _W, tf.constant(0.0)

    return tf.cond(tf.reduce_mean(x) > 0, large, small)


@_function("case")
def _case(x: Tensor) -> Any:
    which = tf.shape(x)[0] % 3
    return tf.switch_case(which, [lambda: x + 1, lambda: x * 2, lambda: tf.nn.relu(x)])


@_function("while")
def _while(x: Tensor) -> Any:
    def go(i: Tensor, y: Tensor) -> Tensor:
        return tf.logical_and(i < 10, tf.reduce_max(tf.abs(y)) < 50)

    return tf.while_loop(go, lambda i, y: (i + 1, tf.tanh(y) @ _W + y), [tf.constant(0), x])


@_function("tensor-array")
def _array(x: Tensor) -> Any:
    """A recurrence by hand over sequences of any length."""
    steps = tf.transpose(x, (1, 0, 2))
    count = tf.shape(steps)[0]
    found = tf.TensorArray(tf.float32, count, element_shape=(None, FEATURES))
    state = tf.zeros_like(steps[0])
    for i in tf.range(count):
        state = tf.tanh(steps[i] + state @ _W)
        found = found.write(i, state)
    return tf.transpose(found.stack(), (1, 0, 2)), state


@_function("autograph")
def _autograph(x: Tensor) -> Any:
    """Python's words, as tf.function takes them."""
    y = tf.zeros_like(x[:, 0])
    for i in tf.range(tf.shape(x)[1]):
        if tf.reduce_sum(x[:, i]) > 0:
            y += x[:, i]
        elif i > 4:
            break
        else:
            y -= 0.5 * x[:, i]
    while tf.reduce_max(tf.abs(y)) > 1:
        y = y / 2
    return y


@_function("map-and-scan")
def _map(x: Tensor) -> Any:
    mapped = tf.map_fn(lambda row: tf.reduce_max(row, 0) * 2, x)
    scanned = tf.scan(lambda a, b: 0.5 * a + b, tf.transpose(x, (1, 0, 2)))
    return mapped, scanned, tf.foldl(lambda a, b: a * 0.9 + b, tf.transpose(x, (1, 0, 2)))


@_function("vectorized-map")
def _vectorized(x: Tensor) -> Any:
    return tf.vectorized_map(lambda row: tf.nn.softmax(row @ _W) * tf.reduce_sum(row), x)


@register("greedy-decoding", length=5)
def _greedy(s: Scale) -> Built:
    """One word after another, with a cache of keys that is written at a position."""
    table, key = _weight(s.words, s.width), _weight(s.width, s.width)
    steps = 6

    @tf.function
    def decode(first: Tensor) -> Tensor:
        batch = tf.shape(first)[0]
        words = tf.TensorArray(tf.int32, steps, element_shape=(None,))
        cache, word = tf.zeros((batch, steps, s.width)), first
        for i in tf.range(steps):
            x = tf.gather(table, word)
            at = tf.stack([tf.range(batch), tf.fill((batch,), i)], axis=1)
            cache = tf.tensor_scatter_nd_update(cache, at, x @ key)
            scores = tf.einsum("bd,btd->bt", x, cache)
            scores = tf.where(tf.range(steps) <= i, scores, -np.inf)
            mixed = tf.einsum("bt,btd->bd", tf.nn.softmax(scores), cache)
            word = tf.argmax(mixed @ table.T, -1, output_type=tf.int32)
            words = words.write(i, word)
        return tf.transpose(words.stack())

    return decode, lambda b, _: (ids(b, words=s.words),), (_open(dtype=tf.int32, name="first"),)


@register("detections", length=12)
def _detections(s: Scale) -> Built:
    """What follows a detector: boxes that overlap are dropped."""

    @tf.function
    def select(boxes: Tensor, scores: Tensor) -> Any:
        corners = tf.concat([boxes[:, :2], boxes[:, :2] + tf.abs(boxes[:, 2:])], axis=1)
        kept = tf.image.non_max_suppression(corners, scores, 5, iou_threshold=0.4)
        return tf.gather(corners, kept), tf.gather(scores, kept)

    specs = (_open(4, name="boxes"), _open(name="scores"))
    return select, lambda b, n: (floats(b * n, 4), floats(b * n)), specs


# modules and models


@register("lambda-layers")
def _lambdas(s: Scale) -> Built:
    x = inputs = keras.Input((None, FEATURES))
    x = layers.Lambda(lambda t: tf.einsum("btf,fg->btg", t, _W))(x)
    x = layers.Lambda(lambda t: tf.where(t > 0, t, 0.1 * t)[:, ::2])(x)
    return keras.Model(inputs, layers.Lambda(lambda t: tf.reduce_mean(t, axis=1))(x)), signals(FEATURES)


@register("subclassed")
def _subclassed(s: Scale) -> Built:
    """A model whose layers are called by Python."""

    class Network(keras.Model):  # type: ignore[misc] # no types
        def __init__(self) -> None:
            super().__init__()
            self.embedding = layers.Embedding(s.words, s.width)
            self.blocks = [layers.Dense(s.width, activation="relu") for _ in range(s.layers)]
            self.last = layers.Dense(3)

        def call(self, words: Tensor, mask: Tensor = None, training: bool = False) -> Any:
            x = self.embedding(words)
            for block in self.blocks:
                x = x + block(x)
            x = tf.reduce_sum(x * tf.cast(mask, x.dtype)[..., None], 1)
            if training:
                x = tf.nn.dropout(x, 0.5)
            return {"logits": self.last(x), "pooled": x}

    specs = (_open(None, dtype=tf.int32, name="words"), _open(None, dtype=tf.bool, name="mask"))
    return Network(), texts(s, mask=True), specs


@register("subclassed-ops")
def _subclassed_ops(s: Scale) -> Built:
    """A subclassed model with indices, conditions and loops."""

    class Network(keras.Model):  # type: ignore[misc] # no types
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.last = layers.GRUCell(s.width), layers.Dense(4)

        def call(self, x: Tensor) -> Tensor:
            state = tf.zeros((tf.shape(x)[0], s.width))
            for i in range(3):
                state, _ = self.cell(x[:, i], [state])
            state = tf.cond(tf.reduce_mean(state) > 0, lambda: state, lambda: -state)
            best = tf.argmax(state, -1, output_type=tf.int32)
            rows = tf.range(tf.shape(x)[0])
            return self.last(state) + tf.gather_nd(state, tf.stack([rows, best], 1))[:, None]

    return Network(), signals(FEATURES), (_open(None, FEATURES, name="x"),)


@register("many-inputs", is_image=True)
def _many(s: Scale) -> Built:
    """An image and a sequence; three outputs, one of them an input, one given twice."""
    image, sequence = keras.Input((s.image, s.image, 3), name="image"), keras.Input((None, FEATURES), name="sequence")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(s.width, 3, activation="relu", name="conv")(image))
    y = layers.Dense(s.width)(layers.GlobalMaxPooling1D()(sequence))
    score = layers.Dense(2, name="score")(layers.Concatenate()([x, y]))
    model = keras.Model([image, sequence], [score, score, layers.Flatten()(sequence[:, :2])])
    return model, lambda b, n: (floats(b, s.image, s.image, 3), floats(b, n, FEATURES))


@register("module")
def _module(s: Scale) -> Built:
    """A tf.Module with variables."""

    class Dense(tf.Module):  # type: ignore[misc] # no types
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = tf.Variable(_weight(FEATURES, s.width)), tf.Variable(_weight(s.width))

        @tf.function(input_signature=[_open(None, FEATURES, name="x")])  # type: ignore[untyped-decorator]
        def __call__(self, x: Tensor) -> Tensor:
            return tf.nn.gelu(x @ self.w + self.b, approximate=True)

    return Dense(), signals(FEATURES)


def _saved(signature: str) -> Callable[[Scale], Built]:
    """A SavedModel of two signatures, loaded again."""

    def make(s: Scale) -> Built:
        class Both(tf.Module):  # type: ignore[misc] # no types
            def __init__(self) -> None:
                super().__init__()
                self.table, self.w = tf.Variable(_weight(s.words, s.width)), tf.Variable(_weight(s.width, 3))

            @tf.function(input_signature=[_open(None, dtype=tf.int32, name="ids")])  # type: ignore[untyped-decorator]
            def embed(self, ids: Tensor) -> Any:
                return {"vectors": tf.gather(self.table, ids)}

            @tf.function(  # type: ignore[untyped-decorator]
                input_signature=[
                    _open(None, dtype=tf.int32, name="ids"),
                    _open(None, dtype=tf.bool, name="mask"),
                ]
            )
            def classify(self, ids: Tensor, mask: Tensor) -> Any:
                x = self.embed(ids)["vectors"] * tf.cast(mask, tf.float32)[..., None]
                logits = tf.reduce_mean(x, 1) @ self.w
                return {"logits": logits, "label": tf.argmax(logits, -1)}

        model = Both()
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(model, folder, signatures={"embed": model.embed, "classify": model.classify})
            loaded = tf.saved_model.load(folder)
        return loaded, texts(s, mask=signature == "classify")

    return make


for _name in ("embed", "classify"):
    register(f"saved-model-{_name}", signature=_name)(_saved(_name))


@register("saved-keras", is_image=True)
def _saved_keras(s: Scale) -> Built:
    """A file of Keras, read again."""
    x = inputs = keras.Input((s.image, s.image, 3))
    x = layers.BatchNormalization()(layers.Conv2D(s.width, 3, strides=2, padding="same")(x))
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Activation("swish")(x))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return keras.models.load_model(path), images(s)


@register("exported-keras", signature="serving_default")
def _exported_keras(s: Scale) -> Built:
    """What Keras exports for servers, loaded again."""
    x = inputs = keras.Input((None, FEATURES), name="x")
    x = layers.LSTM(s.width)(layers.Conv1D(s.width, 3, padding="same", activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(4)(x))
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        return tf.saved_model.load(folder), signals(FEATURES)


@register("quantile-features")
def _features(s: Scale) -> Built:
    """Preparation of numbers in the model: buckets, crossed with categories, one-hot."""
    age, kind = keras.Input((1,), name="age"), keras.Input((1,), dtype="int32", name="kind")
    bucket = layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0], output_mode="int")(age)
    wide = layers.CategoryEncoding(num_tokens=4, output_mode="multi_hot")(bucket)
    x = layers.Concatenate()([wide, layers.Flatten()(layers.Embedding(5, 3)(kind)), layers.Normalization(1)(age)])
    model = keras.Model([age, kind], layers.Dense(2)(x))
    return model, lambda b, _: (floats(b, 1), ids(b, 1, words=5, low=0))
