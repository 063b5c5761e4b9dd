"""Paired latency in ONNX Runtime: the raw model against each optimized result.

Two sessions share a process and take turns, each going first every other round, so that drift of the machine falls on
both; their thread pools do not spin, or the idle one would steal the other's cores. ONNX Runtime optimizes both while
it loads them, as it does for any user, so a ratio above 1 is what the tool adds to that. ``--plain`` switches that off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate import load_inputs, open_session
from tables import cell, geometric_mean, markdown, median_and_spread

if TYPE_CHECKING:
    from evaluate import Arrays

WARM_UP = 3  # untimed rounds

Record = dict[str, Any]


def paired(raw: Path, result: Path, inputs: Arrays, rounds: int, options: dict[str, Any]) -> Record:
    """Milliseconds of each run of both models, taken in turns, and the ``ratio``: the median of raw / result."""
    sessions = {"raw": open_session(raw, **options), "result": open_session(result, **options)}
    samples: dict[str, list[float]] = {"raw": [], "result": []}
    for index in range(-WARM_UP, rounds):
        for name in sorted(sessions, reverse=index % 2 == 0):
            started = time.perf_counter()
            sessions[name].run(None, inputs)
            if index >= 0:
                samples[name].append((time.perf_counter() - started) * 1e3)
    ratios = [a / b for a, b in zip(samples["raw"], samples["result"], strict=True)]
    return {"raw_ms": samples["raw"], "result_ms": samples["result"], "ratio": statistics.median(ratios)}


def measure(zoo: Path, results: Path, model: str, tool: str, rounds: int, options: dict[str, Any]) -> Record:
    """``paired`` on one result of compare_peers.py --out, or the ``failure`` to run it."""
    result = results / model / tool / "model.onnx"
    try:
        return paired(zoo / model / "model.onnx", result, load_inputs(zoo / model / "inputs.npz"), rounds, options)
    except Exception as error:  # noqa: BLE001 - a result that does not run is a finding, whatever it raises
        return {"failure": " ".join(str(error).split())[:300]}


def report(results: dict[str, dict[str, Record]]) -> str:
    """The latencies and the geometric mean of each tool's ratios as markdown."""
    rows = []
    for model, row in results.items():
        for tool, record in row.items():
            if "failure" in record:
                rows.append([model, tool, "failed", record["failure"], "-"])
                continue
            times = [median_and_spread(statistics.median(record[k]), iqr(record[k])) for k in ("raw_ms", "result_ms")]
            rows.append([model, tool, *times, cell(record["ratio"], 3)])
    tools = dict.fromkeys(tool for row in results.values() for tool in row)
    means = []
    for tool in tools:
        ratios = [row[tool]["ratio"] for row in results.values() if "ratio" in row.get(tool, {})]
        means.append([tool, cell(geometric_mean(ratios), 3), str(len(ratios))])
    header = ["model", "tool", "raw ms", "result ms", "raw / result"]
    return "\n".join(
        [
            markdown("Latency (median ± half the interquartile range; above 1 the result is faster)", header, rows),
            markdown("Geometric means", ["tool", "raw / result", "models"], means),
        ]
    )


def iqr(samples: list[float]) -> tuple[float, float]:
    """The lower and the upper quartile."""
    lower, _, upper = statistics.quantiles(samples, n=4)
    return lower, upper


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Latency of raw and optimized models in ONNX Runtime, in turns.")
    parser.add_argument("--zoo", type=Path, required=True, help="folder that zoo.py filled")
    parser.add_argument("--results", type=Path, required=True, help="folder of compare_peers.py --out")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="models to run (default: all with results)")
    parser.add_argument("--tools", nargs="+", metavar="TOOL", help="tools to run (default: all with results)")
    parser.add_argument("--rounds", type=int, default=30, help="timed runs of each model (default: 30)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of a session (default: all cores)")
    parser.add_argument("--plain", action="store_true", help="without ONNX Runtime's own optimizations")
    parser.add_argument("--json", type=Path, help="write all samples here")
    return parser.parse_args()


def main() -> None:
    args = parse()
    options = {"optimize": not args.plain, "threads": args.threads}
    results: dict[str, dict[str, Record]] = {}
    for path in sorted(args.results.glob("*/*/model.onnx")):
        model, tool = path.parts[-3:-1]
        if (args.models and model not in args.models) or (args.tools and tool not in args.tools):
            continue
        record = measure(args.zoo, args.results, model, tool, args.rounds, options)
        results.setdefault(model, {})[tool] = record
        print(f"{model} {tool}: {record.get('failure') or cell(record['ratio'], 3)}", file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    print(report(results))


if __name__ == "__main__":
    main()
