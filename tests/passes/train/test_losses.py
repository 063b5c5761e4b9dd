"""Losses against PyTorch's and against the papers' formulas, written out in numpy."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from planish.passes.train import losses as untraced

STATIC = {"attention_relations": (3,), "value_relations": (3,)}  # the number of heads
losses = SimpleNamespace(
    **{name: jax.jit(getattr(untraced, name), static_argnums=STATIC.get(name, ())) for name in untraced.__all__}
)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * 2


@pytest.mark.parametrize("shape", [(6, 10), (3, 4, 7)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_is_the_one_of_pytorch_and_the_gradient_keeps_its_size(shape, temperature):
    t, s = drawn(*shape), drawn(*shape, seed=1)
    log_t, log_s = (torch.log_softmax(torch.from_numpy(a) / temperature, -1).reshape(-1, shape[-1]) for a in (t, s))
    want = functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2
    np.testing.assert_allclose(losses.divergence(t, s, temperature), want.numpy(), rtol=1e-5)
    assert abs(losses.divergence(t, t + 3, temperature)) < 1e-6


def test_relative_error_is_1_for_the_mean_and_0_for_the_same():
    t = drawn(50, 4)
    assert losses.relative_error(t, t) == 0
    np.testing.assert_allclose(losses.relative_error(t, np.full_like(t, t.mean())), 1, rtol=1e-5)
    np.testing.assert_allclose(losses.relative_error(10 * t, 10 * t + 5), losses.relative_error(t, t + 0.5), rtol=1e-4)


def test_angles_are_those_of_pytorch():
    t, s = drawn(5, 8), drawn(5, 8, seed=1)
    want = 1 - functional.cosine_similarity(torch.from_numpy(t), torch.from_numpy(s)).mean()
    np.testing.assert_allclose(losses.angle(t, s), want, rtol=1e-5)
    np.testing.assert_allclose(losses.angle(t, 3 * t), 0, atol=1e-6)


def test_similarities_are_compared_whatever_the_width_and_the_rotation():
    t = drawn(6, 5)
    rotation, _ = np.linalg.qr(drawn(5, 5, seed=2))
    wide = np.concatenate([t @ rotation.astype(np.float32), np.zeros((6, 3), np.float32)], 1)
    np.testing.assert_allclose(losses.similarity_error(t, wide), 0, atol=1e-5)
    s = drawn(6, 2, seed=1)
    unit_t, unit_s = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (t, s))
    pairs = ~np.eye(6, dtype=bool)
    of_t, of_s = ((u @ u.T)[pairs] for u in (unit_t, unit_s))
    np.testing.assert_allclose(losses.similarity_error(t, s), np.square(of_t - of_s).mean() / of_t.var(), rtol=1e-4)


def test_few_rows_say_nothing_about_similarities():
    t = drawn(3, 5)
    assert losses.similarity_error(t, drawn(3, 5, seed=1)) == 0
    t = np.concatenate([t, drawn(1, 5, seed=2)])
    assert losses.similarity_error(t, drawn(4, 5, seed=1)) > 0


def reference(q, k, q2, k2, mask, heads):
    """KL of softmax(QK^T/sqrt d) of one from the other, mean over rows, heads and queries."""

    def distribution(a, b):
        size = a.shape[-1] // heads
        parts = [(a[..., i * size : (i + 1) * size], b[..., i * size : (i + 1) * size]) for i in range(heads)]
        scores = np.stack([x @ y.transpose(0, 2, 1) / np.sqrt(size) for x, y in parts], 1)
        return torch.log_softmax(torch.from_numpy(scores + (0 if mask is None else mask)), -1).double().numpy()

    p, r = distribution(q, k), distribution(q2, k2)
    return np.where(np.exp(p) > 0, np.exp(p) * (p - r), 0).sum(-1).mean()


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_relations_are_those_of_minilm_at_any_width(heads):
    q, k = drawn(2, 5, 16), drawn(2, 5, 16, seed=1)
    q2, k2 = drawn(2, 5, 8, seed=2), drawn(2, 5, 8, seed=3)
    mask = np.where(np.arange(5) < 4, 0, -1e4).astype(np.float32)[None, None, None]
    for m in (None, mask):
        found = losses.attention_relations((q, k), (q2, k2), m, heads)
        np.testing.assert_allclose(found, reference(q, k, q2, k2, m, heads), rtol=1e-4)
        np.testing.assert_allclose(
            losses.value_relations(q, q2, m, heads), reference(q, q, q2, q2, m, heads), rtol=1e-4
        )
    infinite = np.where(np.arange(5) < 4, 0, -np.inf).astype(np.float32)[None, None, None]
    found = losses.attention_relations((q, k), (q2, k2), infinite, heads)
    np.testing.assert_allclose(found, reference(q, k, q2, k2, mask, heads), rtol=1e-4)


def test_cross_entropy_is_the_one_of_pytorch_with_rows_and_labels_left_out():
    scores, labels = drawn(6, 10), np.array([1, 2, 3, -1, 5, 0])
    weight = np.array([1, 1, 0, 1, 1, 1], np.float32)
    kept = [0, 1, 4, 5]
    want = functional.cross_entropy(torch.from_numpy(scores[kept]), torch.from_numpy(labels[kept]))
    np.testing.assert_allclose(losses.cross_entropy(scores, labels, weight), want, rtol=1e-5)
    tokens, marks = drawn(2, 3, 5), np.array([[0, 4, -1], [2, 2, 2]])
    want = functional.cross_entropy(
        torch.from_numpy(tokens).reshape(-1, 5), torch.from_numpy(marks).reshape(-1), ignore_index=-1
    )
    np.testing.assert_allclose(losses.cross_entropy(tokens, marks, np.ones(2, np.float32)), want, rtol=1e-5)
