"""What channels are worth, against the formulas written out."""

import sys
from pathlib import Path

import numpy as np
import pytest

import planish
from planish.backends import backend
from planish.ir import constant, op, sym
from planish.passes import Context
from planish.passes.base import RequestError
from planish.passes.prune.channels.groups import find_groups
from planish.passes.prune.channels.importance import importance_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import build

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.standard_normal((6, 5)).astype(np.float32), RNG.standard_normal((5, 3)).astype(np.float32)
SAMPLES = [{"x": RNG.standard_normal((4, 6)).astype(np.float32)} for _ in range(3)]


def network():
    return build(lambda x: op.MatMul(op.Tanh(op.MatMul(x, constant(FIRST))), constant(SECOND)), sym("n"), 6)


def worth(method, graph=None):
    analysis, groups, _ = find_groups(graph or network())
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: iter(SAMPLES), differentiate=planish.to_jax)
    (found,) = importance_of(method, groups, analysis, ctx, 0)
    assert found.mean() == pytest.approx(1)
    return found


def normalized(score):
    return score / score.mean()


def test_magnitudes_are_averaged_over_the_weights_of_a_group():
    np.testing.assert_allclose(worth("l1"), normalized(np.abs(FIRST).sum(0) + np.abs(SECOND).sum(1)), rtol=1e-6)
    np.testing.assert_allclose(worth("l2"), normalized((FIRST**2).sum(0) + (SECOND**2).sum(1)), rtol=1e-6)


def test_lamp_is_relative_to_what_is_worth_more():
    score = (FIRST**2).sum(0) + (SECOND**2).sum(1)
    expected = [s / score[score >= s].sum() for s in score]
    np.testing.assert_allclose(worth("lamp"), normalized(np.array(expected)), rtol=1e-6)


def test_fpgm_is_the_distance_to_all_others():
    expected = np.linalg.norm(FIRST.T[:, None] - FIRST.T[None], axis=-1).sum(1)
    np.testing.assert_allclose(worth("fpgm"), normalized(expected), rtol=1e-5)


def test_activations_are_root_mean_squares():
    x = np.concatenate([s["x"] for s in SAMPLES])
    np.testing.assert_allclose(worth("activation"), normalized(np.sqrt(np.square(x @ FIRST).mean(0))), rtol=1e-5)


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_gradients_tell_what_the_outputs_lose(method):
    import jax

    expected = np.zeros((2, 5))
    for seed, sample in enumerate(SAMPLES, 1):
        x = sample["x"]
        (key,) = jax.random.split(jax.random.key(seed), 1)
        signs = np.asarray(jax.random.rademacher(key, (4, 3), np.float32))
        h = np.tanh(x @ FIRST)
        inner = (signs @ SECOND.T) * (1 - h**2)
        products = np.array([(FIRST * (x.T @ inner)).sum(0), (SECOND * (h.T @ signs)).sum(1)])
        expected += np.abs(products) if method == "taylor" else products**2
    np.testing.assert_allclose(worth(method), normalized(expected.sum(0)), rtol=1e-4)


def test_norm_scales():
    scale = np.array([0.5, -2, 1, 0.1, 3], np.float32)

    def body(x):
        h = op.BatchNormalization(
            op.MatMul(x, constant(FIRST)), constant(scale), *(constant(np.ones(5, np.float32)),) * 3
        )
        return op.MatMul(h, constant(SECOND))

    np.testing.assert_allclose(worth("norm", build(body, sym("n"), 6)), normalized(np.abs(scale)), rtol=1e-6)
    with pytest.raises(RequestError, match="batch norms are folded by simplify"):
        worth("norm")


def test_random_is_drawn_from_the_seed():
    np.testing.assert_array_equal(worth("random"), worth("random"))


def test_a_dead_group_is_worth_the_same_everywhere():
    graph = build(
        lambda x: op.MatMul(op.MatMul(x, np.zeros((6, 4), np.float32)), np.zeros((4, 2), np.float32)), sym("n"), 6
    )
    np.testing.assert_array_equal(worth("l2", graph), np.ones(4))
