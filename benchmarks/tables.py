"""Statistics and markdown that the benchmarks share; standard library only, so a measuring process stays small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def geometric_mean(ratios: Iterable[float]) -> float | None:
    """Geometric mean of positive ratios; ``None`` of nothing."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


def cell(value: float | int | None, digits: int = 2) -> str:
    """A number for a table: integers grouped by thousands, floats with ``digits`` decimals, ``-`` for none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def median_and_spread(median: float, samples: Sequence[float], digits: int = 2) -> str:
    """``1.23 ±0.04``: a median and half the range of its samples; one sample has no range."""
    if len(samples) == 1:
        return f"{median:.{digits}f}"
    return f"{median:.{digits}f} ±{(max(samples) - min(samples)) / 2:.{digits}f}"


def markdown(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A titled markdown table whose first column is text and whose others are numbers."""
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
