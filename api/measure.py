"""Measuring latency: paired and interleaved, so that whatever else the machine does hits both candidates alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from planish.ir.errors import PlanishError

__all__ = ["Comparison", "Latency", "estimate_pair", "measure", "measure_pair"]

SECONDS = 4.0  # for the timed runs of one measurement; slow models may take some times more
_ENOUGH, _MOST = 7, 60  # samples: no fewer unless that takes too long, no more
_LEAST, _PATIENCE = 3, 5.0  # samples in any case; and how many times the seconds is too long
_SHORTEST = 2e-3  # seconds: shorter runs are repeated within one sample, above the clock's and the scheduler's noise
_SLOWER = 1.02  # a ratio that this much noise-free slowdown must exceed to count
_OVERHEAD = 2e-5  # seconds: differences below are those of calls from Python, not of models

Run = Callable[[], object]


@dataclass(frozen=True)
class Latency:
    """Seconds per run: the median, and the quartiles around it; without ``runs``, an estimate of the compiler's."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        if not self.runs:
            return f"{_milliseconds(self.median)} ms (estimated)"
        return f"{_milliseconds(self.median)} ms ({_milliseconds(self.low)} to {_milliseconds(self.high)})"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


@dataclass(frozen=True)
class Comparison:
    """Two latencies measured together.

    Attributes:
        before: of the first candidate.
        after: of the second.
        speedup: median over the pairs of first divided by second.
        uncertainty: standard error of the speedup, relative.
    """

    before: Latency
    after: Latency
    speedup: float
    uncertainty: float

    @property
    def is_slower(self) -> bool:
        """Whether the second is slower, beyond noise."""
        slower = (1 / self.speedup) * (1 - 2 * self.uncertainty) > _SLOWER
        return slower and self.after.low - self.before.low > _OVERHEAD


def _repeats(run: Run) -> int:
    """Warm up, and find how many runs make one sample long enough."""
    run()
    started = time.perf_counter()
    run()
    once = time.perf_counter() - started
    return max(1, min(1000, round(_SHORTEST / max(once, 1e-7))))


def _sample(run: Run, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def _latency(samples: list[float]) -> Latency:
    low, median, high = np.percentile(samples, [25, 50, 75])
    return Latency(float(median), float(low), float(high), len(samples))


def _rounds(seconds: float) -> Iterator[int]:
    """Counts samples until there are enough."""
    started = time.perf_counter()
    for done in range(_MOST):
        spent = (time.perf_counter() - started) / seconds
        if done >= _LEAST and spent > (1 if done >= _ENOUGH else _PATIENCE):
            return
        yield done


def measure(run: Run, seconds: float = SECONDS) -> Latency:
    """The latency of ``run``."""
    repeats = _repeats(run)
    return _latency([_sample(run, repeats) for _ in _rounds(seconds)])


def estimate_pair(first: float | None, second: float | None) -> Comparison:
    """Two estimates, in seconds, as a comparison without uncertainty.

    Raises:
        PlanishError: the target's compiler estimates nothing.
    """
    if not first or not second:
        raise PlanishError("the target is not here to measure, and its compiler estimates nothing")
    return Comparison(Latency(first, first, first, 0), Latency(second, second, second, 0), first / second, 0.0)


def measure_pair(first: Run, second: Run, seconds: float = SECONDS) -> Comparison:
    """Both latencies, in pairs whose order alternates, and what follows for their ratio."""
    candidates = [(run, _repeats(run)) for run in (first, second)]
    samples: tuple[list[float], list[float]] = ([], [])
    for done in _rounds(seconds):
        for which in (0, 1) if done % 2 == 0 else (1, 0):
            samples[which].append(_sample(*candidates[which]))
    ratios = np.array(samples[0]) / np.array(samples[1])
    speedup = float(np.median(ratios))
    deviation = 1.4826 * float(np.median(np.abs(ratios - speedup)))
    uncertainty = 1.2533 * deviation / speedup / len(ratios) ** 0.5
    return Comparison(_latency(samples[0]), _latency(samples[1]), speedup, uncertainty)
