"""Keras 2 (tf_keras): its models are traced as those of Keras 3 are, and its files are refused in one line."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import planish
from planish.backends import backend
from planish.frontends.tensorflow import from_tensorflow
from planish.frontends.tensorflow.keras_models import backend_of, is_keras
from planish.ir.origin import MODULE_KEY
from tests.frontends.tf_check import assert_like

rng = np.random.default_rng(0)


def numbers(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def optimized(model, *inputs, examples=()):
    """The graph of a model after the default pipeline, whose values are those of the model."""
    graph = from_tensorflow(model, *examples)
    planish.Pipeline.parse("default").run(graph, planish.Context(lambda: backend("onnxruntime")))
    actual = backend("onnxruntime").compile(graph)(*inputs)
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    wanted = [np.asarray(y) for y in tf.nest.flatten(model(given, training=False))]
    for a, w in zip(actual, wanted, strict=True):
        assert_like(a, w)
    return graph


def counts(graph):
    return Counter(n.op for n in graph.walk())


def modules(graph):
    return {(node.metadata or {}).get(MODULE_KEY) for node in graph.walk()}


def trained(model):
    """The model, whose batch normalizations have seen something."""
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(0.5 + np.abs(numbers(*weight.shape)))
    return model


def network():
    x = tf_keras.Input((16, 16, 3), name="image")
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization(name="norm")(y))
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Dropout(0.5)(layers.MaxPool2D()(layers.BatchNormalization()(y)))
    return trained(tf_keras.Model(x, layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(y)), name="net"))


def test_functional_networks_fold_their_batch_normalizations():
    graph = optimized(network(), numbers(2, 16, 16, 3))
    assert counts(graph) == {"Transpose": 1, "Conv": 2, "Clip": 1, "MaxPool": 1, "ReduceMean": 1, "MatMul": 1}
    assert [v.name for v in graph.inputs] == ["image"]
    assert {"norm", "logits"} <= modules(graph)
    raw = from_tensorflow(network())
    names = {v.name for node in raw.walk() for v in node.operands if v is not None}
    assert {"conv.kernel", "norm.gamma", "logits.bias"} <= names


def test_applications():
    model = trained(tf_keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None))
    found = counts(optimized(model, numbers(1, 96, 96, 3)))
    assert (found["Transpose"], found["BatchNormalization"], found["Conv"]) == (1, 0, 52)


def test_recurrent_layers_are_one_node_each():
    model = tf_keras.Sequential(
        [
            tf_keras.Input((7, 5)),
            layers.LSTM(6, return_sequences=True),
            layers.Bidirectional(layers.GRU(4, return_sequences=True)),
        ]
    )
    found = counts(optimized(model, numbers(2, 7, 5)))
    assert (found["LSTM"], found["GRU"], found["Loop"], found["Scan"]) == (1, 1, 0, 0)


class Block(tf_keras.Model):
    def __init__(self):
        super().__init__(name="block")
        self.norm = layers.LayerNormalization(name="norm")
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")
        self.up = layers.Dense(16, activation="gelu", name="up")
        self.drop = layers.Dropout(0.3)

    def call(self, x, training=None):
        y = self.norm(x)
        y = x + self.attention(y, y, training=training)
        return {"out": self.drop(self.up(y), training=training), "hidden": y}


@pytest.mark.parametrize("is_called", [False, True])
def test_subclassed_models(is_called):
    """With example inputs, or as they were called before."""
    model, x = Block(), numbers(2, 5, 8)
    if is_called:
        model(x)
    graph = optimized(model, x, examples=() if is_called else (x,))
    found = counts(graph)
    assert (found["LayerNormalization"], found["Attention"], found["Gelu"], found["Softmax"]) == (1, 1, 1, 0)
    assert [v.name for v in graph.output_info] == ["hidden", "out"]
    assert {"norm", "up"} <= modules(graph)
    assert isinstance(graph.inputs[0].shape[0], int) is not is_called


@pytest.mark.parametrize("axis", [-1, (-2, -1)])
@pytest.mark.parametrize("shape", [(None, 6), (3, 6)])
def test_layer_normalization_has_its_scale_and_shift(axis, shape):
    x = tf_keras.Input(shape if axis == -1 else (3, 6))
    layer = layers.LayerNormalization(axis, epsilon=1e-3, gamma_initializer="uniform", beta_initializer="uniform")
    assert counts(optimized(tf_keras.Model(x, layer(x)), numbers(2, 3, 6)))["LayerNormalization"] == 1


def test_statistics_of_the_batch_are_refused():
    layer = layers.BatchNormalization(name="norm")
    x = tf_keras.Input((4, 4, 3))
    model = tf_keras.Model(x, layer(x, training=True))
    with pytest.raises(planish.PlanishError, match="statistics of the batch: call the model with training=False"):
        from_tensorflow(model)


def test_models_with_several_inputs_and_outputs():
    both = [tf_keras.Input((4,), name="left"), tf_keras.Input((4,), name="right")]
    model = tf_keras.Model(both, [layers.Add(name="plus")(both), layers.Subtract(name="less")(both)])
    graph = optimized(model, numbers(2, 4), numbers(2, 4))
    assert [v.name for v in graph.inputs] == ["left", "right"]
    assert [v.name for v in graph.output_info] == ["plus", "less"]


@pytest.mark.parametrize("suffix", ["h5", "keras"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_files_of_keras_2_are_refused(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    network().save(path)
    with pytest.raises(planish.PlanishError) as caught:
        planish.load(path)
    assert str(caught.value) == (
        f"{path}: Keras 2 wrote it, and Keras 3 cannot read it: load it with tf_keras, and give the model"
    )
    assert counts(optimized(tf_keras.models.load_model(path, compile=False), numbers(2, 16, 16, 3)))["Conv"] == 2


def test_saved_models_of_keras_2(tmp_path):
    model, x = network(), numbers(2, 16, 16, 3)
    model.save(tmp_path / "saved")
    graph = planish.load(tmp_path / "saved")
    (actual,) = backend("onnxruntime").compile(graph)(x)
    assert_like(actual, model(x).numpy())


def test_tensorflow_with_keras_2_in_it():
    code = (
        "import tensorflow as tf, planish\n"
        "model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(3)])\n"
        "assert type(model).__module__.startswith('tf_keras')\n"
        "print([v.name for v in planish.load(model).inputs])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['input_1']", done.stderr


def test_layers_of_keras_2_are_known_as_such():
    assert is_keras(layers.Dense(3))
    assert backend_of(layers.Dense(3)) == "tensorflow"
