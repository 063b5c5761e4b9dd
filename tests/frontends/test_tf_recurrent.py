"""Keras's recurrent layers: the operators that they become, and the numbers of TensorFlow."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from planish.frontends.tensorflow import UnsupportedOperations

from .tf_check import check

OPEN = {0: [0, 1]}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 3)).astype(np.float32)


def model(*stack: Any, shape: Any = (None, 3), dtype: str = "float32") -> keras.Model:
    """The layers one after the other, with random weights: those of Keras leave out the biases."""
    value = given = keras.Input(shape, dtype=dtype)
    for layer in stack:
        value = layer(value)
    made = keras.Model(given, value)
    for weight in made.weights:
        weight.assign(RNG.normal(size=weight.shape) * 0.5)
    return made


def recurrent(found: Counter[str]) -> dict[str, int]:
    """Layers and loops among operators."""
    return {name: found[name] for name in ("LSTM", "GRU", "RNN", "Scan", "Loop") if found[name]}


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("size", [OPEN, {}])
@pytest.mark.parametrize(
    ("kind", "options", "operator"),
    [
        (layers.LSTM, {}, "LSTM"),
        (layers.GRU, {}, "GRU"),
        (layers.GRU, {"reset_after": False}, "GRU"),
        (layers.SimpleRNN, {}, "RNN"),
    ],
)
def test_a_layer_is_one_operator(kind, options, operator, size, sequences):
    found = check(model(kind(4, return_sequences=sequences, **options)), X, open=size, simplify=True)
    assert recurrent(found) == {operator: 1}
    assert sum(found.values()) <= 4  # steps first, and back


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_a_layer_is_a_scan_before(kind):
    assert recurrent(check(model(kind(4, return_sequences=True)), X, open=OPEN)) == {"Scan": 1}


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (layers.LSTM(4, use_bias=False), "LSTM"),
        (layers.GRU(4, use_bias=False), "GRU"),
        (layers.SimpleRNN(4, activation="relu", use_bias=False), "RNN"),
        (layers.SimpleRNN(4, activation=None), "RNN"),
        (layers.LSTM(4, activation="relu", recurrent_activation="hard_sigmoid"), "LSTM"),
        (layers.LSTM(4, activation="softsign", recurrent_activation="tanh"), "LSTM"),
        (layers.GRU(4, activation="elu", recurrent_activation="hard_sigmoid"), "GRU"),
        (layers.RNN(layers.LSTMCell(4), return_sequences=True), "LSTM"),
        (layers.LSTM(4, go_backwards=True, return_sequences=True), "LSTM"),
        (layers.GRU(4, go_backwards=True), "GRU"),
        (layers.LSTM(4, return_state=True), "LSTM"),
        (layers.LSTM(4, return_state=True, return_sequences=True), "LSTM"),
    ],
)
def test_options_of_a_layer(layer, operator):
    found = check(model(layer), X, open=OPEN, simplify=True)
    assert recurrent(found) == {operator: 1}


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("sequences", [False, True])
def test_both_directions(mode, sequences):
    layer = layers.Bidirectional(layers.GRU(4, return_sequences=sequences), merge_mode=mode)
    found = check(model(layer), X, open=OPEN, simplify=True)
    assert recurrent(found) == {"GRU": 1 if mode == "concat" else 2}
    assert not found["Slice"] + found["Concat"]


def test_both_directions_with_their_states_and_other_activations():
    options = {"return_sequences": True, "return_state": True, "recurrent_activation": "hard_sigmoid"}
    layer = layers.Bidirectional(layers.LSTM(4, activation="relu", **options))
    assert recurrent(check(model(layer), X, open=OPEN, simplify=True)) == {"LSTM": 1}


def test_layers_on_layers_move_no_dimensions_between_them():
    stack = [layers.LSTM(4, return_sequences=True), layers.GRU(3, return_sequences=True), layers.SimpleRNN(5)]
    found = check(model(*stack), X, open=OPEN, simplify=True)
    assert recurrent(found) == {"LSTM": 1, "GRU": 1, "RNN": 1}
    assert found["Transpose"] == 1
    stack = [layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.Bidirectional(layers.LSTM(3))]
    assert recurrent(check(model(*stack), X, open=OPEN, simplify=True)) == {"LSTM": 2}


def test_states_that_are_given():
    x, h, c = keras.Input((None, 3)), keras.Input((4,)), keras.Input((4,))
    made = keras.Model([x, h, c], layers.LSTM(4, return_state=True)(x, initial_state=[h, c]))

    def call(*values: Any) -> Any:
        return made(list(values), training=False)

    states = RNG.normal(size=(2, 2, 4)).astype(np.float32)
    assert recurrent(check(call, X, *states, simplify=True)) == {"LSTM": 1}
    check(call, X, *states, open={0: [0, 1], 1: [0], 2: [0]}, simplify=True)


def test_a_decoder_goes_on_from_an_encoder():
    x = keras.Input((None, 3))
    _, h, c = layers.LSTM(4, return_state=True)(x)
    y = layers.LSTM(4, return_sequences=True)(x, initial_state=[h, c])
    assert recurrent(check(keras.Model(x, y), X, open=OPEN, simplify=True)) == {"LSTM": 2}


@pytest.mark.parametrize(
    "layer", [layers.LSTM(4, return_sequences=True), layers.GRU(4), layers.Bidirectional(layers.SimpleRNN(4))]
)
def test_masked_steps_keep_the_state(layer):
    x = X.copy()
    x[0, 3:], x[1, 2] = 0, 0
    assert set(recurrent(check(model(layers.Masking(), layer), x, open=OPEN, simplify=True))) == {"Scan"}


def test_masks_of_embeddings():
    ids = np.array([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]], np.int32)
    stack = [layers.Embedding(6, 3, mask_zero=True), layers.LSTM(4, return_sequences=True), layers.LSTM(3)]
    check(model(*stack, shape=(None,), dtype="int32"), ids, open=OPEN, simplify=True)


def test_cells_that_are_no_operators_stay_loops():
    cells = layers.StackedRNNCells([layers.LSTMCell(4), layers.GRUCell(3)])
    assert recurrent(check(model(layers.RNN(cells, return_sequences=True)), X, open=OPEN, simplify=True)) == {"Scan": 1}
    assert recurrent(check(model(layers.LSTM(4, activation="gelu")), X, open=OPEN, simplify=True)) == {"Scan": 1}


def test_steps_that_are_unrolled_stay_so():
    assert not recurrent(check(model(layers.LSTM(4, unroll=True), shape=(5, 3)), X, open={0: [0]}, simplify=True))


def test_cells_in_loops_of_the_user_are_layers():
    cell = layers.LSTMCell(4)

    @tf.function
    def loop(x):
        h = c = tf.zeros([tf.shape(x)[0], 4])
        outputs = tf.TensorArray(tf.float32, size=tf.shape(x)[1])
        for i in tf.range(tf.shape(x)[1]):
            y, (h, c) = cell(x[:, i], [h, c])
            outputs = outputs.write(i, y)
        return tf.transpose(outputs.stack(), [1, 0, 2])

    loop(tf.constant(X))
    assert recurrent(check(loop, X, open=OPEN, simplify=True)) == {"LSTM": 1}
    assert recurrent(check(loop, X, open=OPEN)) == {"Loop": 1}


def test_convolutions_with_a_state():
    video = RNG.normal(size=(2, 3, 5, 5, 2)).astype(np.float32)
    layer = layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True)
    assert recurrent(check(model(layer, shape=(None, 5, 5, 2)), video, open=OPEN, simplify=True)) == {"Scan": 1}


def test_layers_that_remember_the_last_call_are_refused():
    given = keras.Input(batch_shape=(2, 5, 3))
    with pytest.raises(UnsupportedOperations, match="a graph has no state"):
        check(keras.Model(given, layers.LSTM(4, stateful=True)(given)), X)


def test_layers_over_every_step():
    stack = [layers.LSTM(4, return_sequences=True), layers.TimeDistributed(layers.Dense(2))]
    assert recurrent(check(model(*stack, shape=(5, 3)), X, open={0: [0]}, simplify=True)) == {"LSTM": 1}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float16", 1e-2)])
def test_other_precisions(dtype, tolerance):
    layer = layers.LSTM(4, return_sequences=True, dtype=dtype)
    check(model(layer, dtype=dtype), X.astype(dtype), open=OPEN, tolerance=tolerance, simplify=True)


def test_what_xla_computes():
    stack = [layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.GRU(3, reset_after=False)]
    assert recurrent(check(model(*stack), X, simplify=True, engine="xla:cpu")) == {"LSTM": 1, "GRU": 1}
    x = X.copy()
    x[0, 3:] = 0
    check(model(layers.Masking(), layers.GRU(4)), x, simplify=True, engine="xla:cpu")


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("all_steps", [False, True])
def test_both_directions_over_a_known_number_of_steps_are_one_layer(layer, all_steps):
    x = keras.Input((6, 5))
    both = keras.layers.Bidirectional(getattr(keras.layers, layer)(4, return_sequences=all_steps))
    found = check(keras.Model(x, both(x)), np.random.default_rng(0).random((2, 6, 5), np.float32), simplify=True)
    name = layer.removeprefix("Simple")
    assert (found[name], found["Slice"], found["Loop"]) == (1, 0, 0)
