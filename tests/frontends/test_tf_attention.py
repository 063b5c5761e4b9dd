"""Keras's attention layers: one Attention each, whatever masks them, with the values of rows that see no key, too."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from .tf_check import check

L = keras.layers
RNG = np.random.default_rng(0)
IDS = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]], np.int32)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def multi_head(**options: Any) -> Any:
    return L.MultiHeadAttention(2, 4, bias_initializer="uniform", **options)


LAYERS = {
    "plain": lambda: multi_head(),
    "dropout": lambda: multi_head(dropout=0.1),
    "other sizes": lambda: multi_head(dropout=0.1, value_dim=3, output_shape=5),
    "groups": lambda: L.GroupQueryAttention(4, 4, 2, dropout=0.1),
}
MASKS: dict[str, dict[str, Any]] = {"all": {}, "causal": {"use_causal_mask": True}}


def assert_one_attention(model: Any, *inputs: np.ndarray) -> None:
    function = model if len(inputs) == 1 else lambda *tensors: model(list(tensors), training=False)
    found = check(function, *inputs, simplify=True, open={0: [0]} if len(inputs) == 1 else False)
    assert (found["Attention"], found["Softmax"]) == (1, 0)


@pytest.mark.parametrize("length", [6, None])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_queries_keys_and_values(name: str, mask: str, length: int | None) -> None:
    x = keras.Input((length, 8))
    assert_one_attention(keras.Model(x, LAYERS[name]()(x, x, **MASKS[mask])), f32(2, 6, 8))


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached")
@pytest.mark.parametrize("length", [6, None])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["plain", "dropout", "groups"])
def test_padding_masks_queries_and_keys(name: str, mask: str, length: int | None) -> None:
    """Queries that are padding see no key at all: their weights are 0, and not equal."""
    ids = keras.Input((length,), dtype="int32")
    x = L.Embedding(10, 8, mask_zero=True)(ids)
    assert_one_attention(keras.Model(ids, LAYERS[name]()(x, x, **MASKS[mask])), IDS)


def test_padding_of_two_sequences() -> None:
    ids = [keras.Input((None,), dtype="int32") for _ in range(2)]
    x, y = (L.Embedding(10, 8, mask_zero=True)(i) for i in ids)
    assert_one_attention(keras.Model(ids, multi_head(dropout=0.1)(x, y)), IDS, IDS[::-1, :5])


def test_masks_that_are_given() -> None:
    x, mask = keras.Input((6, 8)), keras.Input((6, 6), dtype="bool")
    given = RNG.random((2, 6, 6)) < 0.5
    given[0, 2] = False
    assert_one_attention(
        keras.Model([x, mask], multi_head(dropout=0.1)(x, x, attention_mask=mask)), f32(2, 6, 8), given
    )


@pytest.mark.parametrize("length", [6, None])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_of_dot_products(mask: str, length: int | None) -> None:
    x = keras.Input((length, 8))
    assert_one_attention(keras.Model(x, L.Attention()([x, x], **MASKS[mask])), f32(2, 6, 8))
    ids = keras.Input((length,), dtype="int32")
    y = L.Embedding(10, 8, mask_zero=True)(ids)
    layer = L.Attention(dropout=0.1, use_scale=True)
    assert_one_attention(keras.Model(ids, layer([y, y], **MASKS[mask])), IDS)


@pytest.mark.parametrize("mask", MASKS)
def test_additive_attention_stays_what_it_is(mask: str) -> None:
    x = keras.Input((None, 8))
    for layer in (L.AdditiveAttention(dropout=0.1), L.Attention(score_mode="concat")):
        found = check(keras.Model(x, layer([x, x], **MASKS[mask])), f32(2, 6, 8), simplify=True)
        assert (found["Attention"], found["Softmax"]) == (0, 1)


def test_weights_that_are_returned_stay() -> None:
    x = keras.Input((6, 8))
    outputs = multi_head()(x, x, return_attention_scores=True)
    assert check(keras.Model(x, outputs), f32(2, 6, 8), simplify=True)["Softmax"] == 1
