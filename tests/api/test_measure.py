"""Paired measurement: what is slower, and what is only noise. The clock is a counter: nothing here takes time."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from planish.measure import measure, measure_pair


@pytest.fixture(autouse=True)
def busy(monkeypatch):
    """Makes functions that take so long by the clock that planish sees, give or take ``noise``."""
    now = [0.0]
    monkeypatch.setattr("planish.measure.time", SimpleNamespace(perf_counter=lambda: now[0]))
    generator = random.Random(0)

    def make(seconds, noise=0.0):
        def run():
            now[0] += seconds * (1 + noise * generator.random())

        return run

    return make


def test_the_median_is_what_it_takes(busy):
    found = measure(busy(2e-3), 0.2)
    assert found.low == pytest.approx(2e-3)
    assert found.median == pytest.approx(2e-3)
    assert found.high == pytest.approx(2e-3)
    assert str(found) == "2 ms (2 to 2)"


def test_slower_is_told_from_faster(busy):
    slower = measure_pair(busy(2e-3), busy(6e-3), 0.3)
    assert slower.is_slower
    assert slower.speedup == pytest.approx(1 / 3)
    assert not measure_pair(busy(6e-3), busy(2e-3), 0.3).is_slower


def test_equal_is_not_slower_whatever_the_noise(busy):
    for noise in (0.0, 0.1, 0.5, 2.0):
        assert not measure_pair(busy(1e-3, noise), busy(1e-3, noise), 0.3).is_slower


def test_a_little_slower_is_found_in_moderate_noise(busy):
    assert measure_pair(busy(10e-3, 0.02), busy(11e-3, 0.02), 4).is_slower


def test_a_difference_of_calls_is_no_slowdown(busy):
    assert not measure_pair(busy(10e-6), busy(25e-6), 0.3).is_slower


def test_fast_candidates_are_repeated_within_a_sample(busy):
    found = measure_pair(busy(1e-6), busy(20e-3), 0.2)
    assert found.before.median == pytest.approx(1e-6)
    assert found.speedup == pytest.approx(1e-6 / 20e-3)


@pytest.mark.parametrize("seconds", [0.001, 0.1])
def test_slow_runs_are_measured_a_few_times_only(busy, seconds):
    assert measure(busy(0.05), seconds).runs in range(3, 12)
