"""Paired measurement: what is slower, and what is only noise."""

import time

import pytest

from planish.measure import measure, measure_pair


def busy(seconds):
    """A function that takes so long."""

    def run():
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return run


def test_the_median_is_what_it_takes():
    found = measure(busy(2e-3), 0.2)
    assert 2e-3 <= found.low <= found.median <= found.high
    assert found.runs >= 3
    assert "ms" in str(found)


def test_slower_is_told_from_faster():
    slower = measure_pair(busy(2e-3), busy(6e-3), 0.3)
    assert slower.is_slower
    assert 0.1 < slower.speedup < 0.9
    assert not measure_pair(busy(6e-3), busy(2e-3), 0.3).is_slower


def test_equal_is_not_slower():
    run = busy(1e-3)
    assert not measure_pair(run, run, 0.3).is_slower


def test_fast_and_slow_candidates_share_the_time_fairly():
    started = time.perf_counter()
    found = measure_pair(lambda: None, busy(20e-3), 0.2)
    assert time.perf_counter() - started < 5
    assert found.speedup < 0.01


@pytest.mark.parametrize("seconds", [0.001, 0.1])
def test_slow_runs_are_measured_a_few_times_only(seconds):
    assert measure(busy(0.05), seconds).runs in range(3, 12)
