"""Keras models in mixed precision: normalizations fold and fuse between the casts, and come out as precise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from planish.backends import backend

from .tf_check import translate

L = keras.layers
RNG = np.random.default_rng(0)
IMAGE, ROW = RNG.standard_normal((2, 10, 10, 3)).astype(np.float32), RNG.standard_normal((4, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def mixed() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def trained(*parts: Any, shape: tuple[int, ...]) -> Any:
    model = keras.Sequential([keras.Input(shape), *parts])
    for weight in model.weights:
        low, high = (-0.3, 0.3) if "kernel" in weight.path else (0.5, 1.5)
        weight.assign(RNG.uniform(low, high, weight.shape))
    return model


def precise(model: Any, x: np.ndarray) -> np.ndarray:
    """What the same layers give in double precision, from the weights as they are stored."""
    keras.config.set_dtype_policy("float64")
    layers = [type(part).from_config({**part.get_config(), "dtype": "float64"}) for part in model.layers]
    wide = keras.Sequential([keras.Input(x.shape[1:], dtype="float64"), *layers])
    wide.set_weights([np.asarray(w, np.float64) for w in model.get_weights()])
    return np.asarray(wide(x.astype(np.float64), training=False))


def folded(model: Any, x: np.ndarray) -> Counter[str]:
    """Operators after the default pipeline, whose error is hardly larger than without it."""
    errors = []
    for simplify in (False, True):
        graph = translate(model, x, open={0: [0]}, simplify=simplify)
        (found,) = backend("reference").compile(graph)(x)
        assert found.dtype == np.float16
        errors.append(np.sqrt(np.mean((found.astype(np.float64) - precise(model, x)) ** 2)))
        keras.config.set_dtype_policy("mixed_float16")
    assert 0 < errors[1] < 1.5 * errors[0]
    return Counter(node.op for node in graph.walk())


@pytest.mark.parametrize("uses_bias", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        lambda b: L.Conv2D(8, 3, use_bias=b),
        lambda b: L.DepthwiseConv2D(3, use_bias=b),
        lambda b: L.Conv2DTranspose(4, 3, use_bias=b),
    ],
)
def test_batch_normalization_goes_into_convolutions(layer: Any, uses_bias: bool) -> None:
    found = folded(trained(layer(uses_bias), L.BatchNormalization(), L.ReLU(), shape=(10, 10, 3)), IMAGE)
    assert (found["Cast"], found["Mul"], found["Add"], found["Transpose"]) == (1, 0, 0, 2)


@pytest.mark.parametrize("uses_bias", [False, True])
def test_batch_normalization_goes_into_dense_layers(uses_bias: bool) -> None:
    found = folded(trained(L.Dense(8, use_bias=uses_bias), L.BatchNormalization(), shape=(8,)), ROW)
    assert found == {"Cast": 1, "Gemm": 1}
    rows = np.stack([ROW, 2 * ROW])
    found = folded(trained(L.Dense(8, use_bias=uses_bias), L.BatchNormalization(), shape=(4, 8)), rows)
    assert found == {"Cast": 1, "MatMul": 1, "Add": 1}


def test_factors_that_half_precision_does_not_have_stay() -> None:
    model = trained(L.Conv2D(4, 1), L.BatchNormalization(), shape=(10, 10, 3))
    model.layers[1].gamma.assign([1e-6, 1, 1, 1])
    found = folded(model, IMAGE)
    assert (found["Mul"], found["Add"]) == (1, 1)


def test_group_normalization_is_one_operator() -> None:
    found = folded(trained(L.Conv2D(8, 3), L.GroupNormalization(4), shape=(10, 10, 3)), IMAGE)
    assert (found["GroupNormalization"], found["Reshape"], found["ReduceMean"]) == (1, 0, 0)


@pytest.mark.parametrize("layer", [L.LayerNormalization, L.RMSNormalization])
def test_layer_normalization_is_one_operator(layer: Any) -> None:
    found = folded(trained(L.Dense(8), layer(), shape=(4, 8)), np.stack([ROW, 2 * ROW]))
    assert found[layer.__name__] == 1
    assert found["ReduceMean"] == 0
