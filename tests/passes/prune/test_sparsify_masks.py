"""Masks, schedules and SparseGPT on arrays, against slow and plain versions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir.quantization import parse_format
from planish.passes.prune.sparsity.masks import (
    Pattern,
    counts_of_lowest,
    lamp_scores,
    lowest,
    lowest_in_rows,
    outside_pattern,
    shares,
)
from planish.passes.prune.sparsity.update import sparsegpt
from planish.passes.prune.sparsity.weights import next_ratio
from planish.passes.quantize.weights.gptq import gptq
from planish.passes.quantize.weights.grids import grid_for, output_error


def rng(seed=0):
    return np.random.default_rng(seed)


def correlated(columns, rows=300, seed=1):
    """Products of correlated inputs."""
    mixing = np.eye(columns) + rng(seed + 1).standard_normal((columns, columns)) / np.sqrt(columns)
    x = rng(seed).standard_normal((rows, columns)) @ mixing
    return x.T @ x


# masks


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.floats(0, 1))
def test_the_lowest_go_and_zeros_stay(seed, count, share):
    scores = rng(seed).standard_normal((5, 8))
    zeros = rng(seed + 1).random((5, 8)) < share
    mask = lowest(scores, zeros, count)
    assert mask[zeros].all()
    assert mask.sum() == max(count, zeros.sum())
    added = mask & ~zeros
    assert added.sum() == 0 or (~mask).sum() == 0 or scores[added].max() <= scores[~mask].min()


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.floats(0, 1))
def test_rows_get_the_same_share(seed, count, share):
    scores = rng(seed).standard_normal((5, 8))
    zeros = rng(seed + 1).random((5, 8)) < share
    mask = lowest_in_rows(scores, zeros, count)
    assert mask[zeros].all()
    assert mask.sum() == max(count, zeros.sum())
    for row, zero, score in zip(mask, zeros, scores, strict=True):
        added = row & ~zero
        assert added.sum() == 0 or row.all() or score[added].max() <= score[~row].min()
    if not zeros.any():
        assert np.ptp(mask.sum(axis=1)) <= 1


@given(st.integers(0, 2**32 - 1), st.sampled_from(["1:2", "2:4", "1:4", "3:8", "7:8"]), st.floats(0, 1))
def test_a_pattern_keeps_the_highest_of_each_group(seed, text, share):
    pattern = Pattern.parse(text)
    scores = rng(seed).random((6, 3 * pattern.of))
    zeros = rng(seed + 1).random(scores.shape) < share
    mask = outside_pattern(scores, zeros, pattern)
    for group, zero, score in zip(*(a.reshape(-1, pattern.of) for a in (mask, zeros, scores)), strict=True):
        wanted = np.argsort(np.where(zero, -1, score))[: pattern.of - pattern.kept]
        assert set(np.flatnonzero(group)) == set(wanted) | set(np.flatnonzero(zero))


@pytest.mark.parametrize("text", ["", "2", "2:2", "0:4", "4:2", "2:4:8", "a:b", "-1:4", "2.0:4", "1:1000"])
def test_what_is_no_pattern(text):
    with pytest.raises(ValueError, match="the pattern is N:M"):
        Pattern.parse(text)


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_are_even_as_far_as_zeros_allow(groups, ratio):
    sizes = np.array([size for size, _ in groups])
    zeros = np.array([int(size * share) for size, share in groups])
    total = round(ratio * sizes.sum())
    found = shares(zeros, sizes, total)
    assert found.sum() == max(total, zeros.sum())
    assert ((found >= zeros) & (found <= sizes)).all()
    grown = found > zeros  # all that grew have the same share, up to a whole element, and none that did not has less
    if grown.any():
        assert (found / sizes >= (found[grown] / sizes[grown]).max() - 1 / sizes - 1 / sizes[grown].min()).all()


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.booleans())
def test_counts_are_those_of_one_large_sort(seed, ratio, coarse):
    generator = rng(seed)
    arrays = [generator.standard_normal((n, 3)).astype(np.float32) * 10.0**-n for n in (1, 4, 7)]
    arrays = [np.abs(a.round(1) if coarse else a).astype(np.float32) for a in arrays]
    total = round(ratio * sum(a.size for a in arrays))
    owner = np.repeat(range(3), [a.size for a in arrays])
    first = np.argsort(np.concatenate([a.ravel() for a in arrays]), kind="stable")[:total]
    assert counts_of_lowest(lambda: arrays, total) == np.bincount(owner[first], minlength=3).tolist()


def test_lamp_compares_a_weight_with_those_that_are_larger():
    weight = np.float32([[3, -1], [0, 2]])
    np.testing.assert_allclose(lamp_scores(weight), [[1, 1 / 14], [0, 4 / 13]], rtol=1e-6)
    np.testing.assert_array_equal(lamp_scores(np.zeros((2, 2), np.float32)), 0)


def test_lamp_does_not_depend_on_the_scale():
    weight = rng().standard_normal((7, 5)).astype(np.float32)
    np.testing.assert_allclose(lamp_scores(weight), lamp_scores(64 * weight))


# schedules


def test_rounds_follow_a_cubic_curve():
    present, found = 0.0, []
    for _ in range(5):
        present = next_ratio(present, 0.8, 4)
        found.append(present)
    np.testing.assert_allclose(found, [0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8, 0.8])


def test_a_step_is_done_when_little_is_missing():
    steps = [next_ratio(x, 0.9, 3) for x in (0.0, 0.63, 0.86, 0.89, 0.9, 0.99)]
    np.testing.assert_allclose(steps, [0.9 * 19 / 27, 0.9 * 26 / 27, 0.9, 0.9, 0.9, 0.9])
    assert next_ratio(0.2, 0.5, 1) == 0.5


# SparseGPT


def optimal_brain_surgeon(weight, hessian, choose, span, damping=0.01):
    """Column by column, with the inverse of what is left of the Hessian computed anew each time."""
    w, n = weight.astype(np.float64), weight.shape[1]
    h = hessian + damping * hessian.diagonal().mean() * np.eye(n)
    mask = np.zeros(w.shape, bool)
    for j in range(n):
        if j % span == 0:
            part = slice(j, j + span)
            diagonal = [np.linalg.inv(h[i:, i:])[0, 0] for i in range(n)[part]]
            mask[:, part] = choose(w[:, part] ** 2 / diagonal)
        inverse = np.linalg.inv(h[j:, j:])
        lost = np.where(mask[:, j], w[:, j], 0)
        w[:, j:] -= np.outer(lost / inverse[0, 0], inverse[0])
        w[mask[:, j], j] = 0
    return w


@pytest.mark.parametrize("text", ["2:4", "1:4", "5:8"])
def test_sparsegpt_is_optimal_brain_surgery_in_order(text):
    weight, hessian, pattern = rng().standard_normal((6, 24)).astype(np.float32), correlated(24), Pattern.parse(text)

    def choose(scores):
        mask = np.zeros(scores.shape, bool)
        np.put_along_axis(mask, np.argsort(scores, axis=1)[:, : pattern.of - pattern.kept], True, axis=1)
        return mask

    expected = optimal_brain_surgeon(weight, hessian, choose, pattern.of)
    found = sparsegpt(weight, hessian, pattern)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (np.count_nonzero(found.reshape(-1, pattern.of), axis=1) == pattern.kept).all()


def test_sparsegpt_compares_the_weights_of_a_block():
    weight, hessian = rng(3).standard_normal((6, 24)).astype(np.float32), correlated(24)

    def choose(scores):
        return scores <= np.sort(scores, axis=None)[scores.size * 3 // 4 - 1]

    expected = optimal_brain_surgeon(weight, hessian, choose, 8)
    np.testing.assert_allclose(sparsegpt(weight, hessian, 108, compared=8), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("goal", [768, Pattern(2, 4)])
def test_sparsegpt_loses_less_than_masks(goal):
    weight, hessian = rng(4).standard_normal((64, 24)).astype(np.float32), correlated(24)

    def error(other):
        return np.einsum("oi,ij,oj->", other - weight, hessian, other - weight)

    zeros = weight == 0
    pick = (lambda s: lowest(s, zeros, goal)) if isinstance(goal, int) else lambda s: outside_pattern(s, zeros, goal)
    norms = np.sqrt(hessian.diagonal())
    masked = [np.where(pick(np.abs(weight) * factor), 0, weight) for factor in (1, norms)]
    assert error(sparsegpt(weight, hessian, goal)) < 0.8 * min(map(error, masked))


def test_without_correlation_sparsegpt_is_a_mask():
    weight, squares = rng(5).standard_normal((4, 16)).astype(np.float32), np.arange(1.0, 17)
    found = sparsegpt(weight, np.diag(squares), Pattern(2, 4), damping=0)
    mask = outside_pattern(weight**2 * squares, weight == 0, Pattern(2, 4))
    np.testing.assert_allclose(found, np.where(mask, 0, weight), rtol=1e-6)


@pytest.mark.parametrize("goal", [60, 72, 120, Pattern(2, 4)])
def test_what_is_zero_stays_zero(goal):
    weight = rng(6).standard_normal((6, 24)).astype(np.float32)
    weight[:, :8] *= rng(7).random((6, 8)) < 0.2
    zeros = weight == 0
    found = sparsegpt(weight, correlated(24), goal, compared=8)
    assert (found[zeros] == 0).all()
    if isinstance(goal, int):
        assert np.count_nonzero(found == 0) == goal
    else:
        assert (np.count_nonzero(found.reshape(-1, 4), axis=1) <= 2).all()


@pytest.mark.parametrize(("form", "symmetric"), [("int4", True), ("uint4", False)])
@pytest.mark.parametrize("order", [False, True])
def test_rounding_by_gptq_keeps_zeros_and_makes_up_for_them(form, symmetric, order):
    hessian = correlated(24)
    weight = sparsegpt(rng(10).standard_normal((30, 24)).astype(np.float32), hessian, Pattern(2, 4))
    grid = grid_for(weight, parse_format(form), symmetric=symmetric)
    found, _ = gptq(weight, hessian, grid, order=order)
    assert (found[weight == 0] == 0).all()
    assert output_error(weight, found, hessian) < output_error(weight, grid.apply(weight), hessian)


def test_an_input_that_was_always_zero_goes_first():
    hessian = correlated(8)
    hessian[3], hessian[:, 3] = 0, 0
    weight = rng(8).standard_normal((5, 8)).astype(np.float32)
    weight[:, 3] = 100
    found = sparsegpt(weight, hessian, 5)
    assert (found == 0).sum(axis=0).tolist() == [0, 0, 0, 5, 0, 0, 0, 0]
    np.testing.assert_allclose(np.delete(found, 3, 1), np.delete(weight, 3, 1), rtol=1e-6)


def test_many_columns_are_pruned_like_few():
    """Columns move those behind them at once, or in blocks: 300 columns are several."""
    weight, hessian = rng(9).standard_normal((5, 300)).astype(np.float32), correlated(300, 900)

    def choose(scores):
        mask = np.zeros(scores.shape, bool)
        np.put_along_axis(mask, np.argsort(scores, axis=1)[:, :2], True, axis=1)
        return mask

    found = sparsegpt(weight, hessian, Pattern(2, 4))
    expected = optimal_brain_surgeon(weight, hessian, choose, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "hessian", "message"),
    [
        (np.ones(4), np.eye(4), "a weight is a matrix"),
        (np.ones((2, 4)), np.eye(3), "the Hessian of 4 inputs is"),
        (np.full((2, 4), np.nan), np.eye(4), "not finite"),
        (np.ones((2, 4)), np.full((4, 4), np.inf), "not finite"),
        (np.ones((2, 4)), -np.eye(4), "not positive definite"),
    ],
)
def test_what_makes_no_sense(weight, hessian, message):
    with pytest.raises(ValueError, match=message):
        sparsegpt(weight, hessian, 4)
