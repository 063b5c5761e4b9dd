"""Latency in ONNX Runtime of what each tool makes of the zoo's transformers, at 64 and at 512 positions.

``python benchmarks/attention_latency.py --zoo ZOO --out RESULTS [NAME…]`` lets planish and its peers optimize each raw
export of `zoo.py` in processes of their own (what stands in RESULTS is kept), and runs all results in turns in one
process, ONNX Runtime's optimizations on, thread pools not spinning. ``raw`` is the export itself: what ONNX Runtime
makes of it when it loads it. A result that fails or is off by more than 1e-3 of an output's range is no peer.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_coverage import TOOLS
from evaluate import load_inputs, open_session, relative_error
from tables import cell, geometric_mean, markdown

if TYPE_CHECKING:
    from evaluate import Arrays

PEERS = ("raw", "onnxscript", "ort-python")
SECONDS = 600  # for one tool on one model
WRONG = 1e-3
WARM_UP = 2
LENGTHS = {64: (64,), 512: (512, 448, 77)}  # and what is tried where a model has fewer positions


def _attempt(tool: str, source: str, target: str, answer: Any) -> None:
    import warnings

    warnings.filterwarnings("ignore")
    try:
        TOOLS[tool](source, target)
    except BaseException as error:  # noqa: BLE001 - whatever a tool raises is an entry of the table
        answer.send(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    else:
        answer.send("")


def prepare(tool: str, model: Path, folder: Path) -> str:
    """Let ``tool`` optimize ``model`` into ``folder``, unless it has; returns what went wrong, or ""."""
    if (folder / "problem.txt").exists():
        return (folder / "problem.txt").read_text()
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_attempt, args=(tool, str(model / "model.onnx"), str(folder / "model.onnx"), sender))
    child.start()
    sender.close()
    try:
        problem = str(receiver.recv()) if receiver.poll(SECONDS) else f"more than {SECONDS} s"
    except EOFError:
        problem = "the process died"
    child.kill()
    (folder / "problem.txt").write_text(problem)
    return problem


def resized(inputs: Arrays, session: Any, length: int) -> Arrays:
    """The inputs for a batch of one, with ``length`` where a number of positions is dynamic."""
    import numpy as np

    found = {}
    for value in session.get_inputs():
        array = inputs[value.name]
        for axis, dim in enumerate(value.shape):
            if not isinstance(dim, int):
                size = 1 if axis == 0 else length
                array = np.take(array, range(size), axis, mode="wrap")
        found[value.name] = np.ascontiguousarray(array)
    return found


def measure(paths: dict[str, Path], inputs: Arrays, lengths: tuple[int, ...], rounds: int, threads: int) -> Any:
    """Medians in milliseconds by tool, and what went wrong; the first of ``lengths`` at which the raw model runs."""
    sessions: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for tool, path in paths.items():
        try:
            sessions[tool] = open_session(path, optimize=True, threads=threads)
        except Exception as error:  # noqa: BLE001 - what does not load is a finding
            problems[tool] = " ".join(str(error).split())[:160]
    for length in lengths:
        given = resized(inputs, sessions["raw"], length)
        try:
            expected = sessions["raw"].run(None, given)
        except Exception:  # noqa: BLE001 - too long for its tables
            continue
        break
    for tool, session in list(sessions.items()):
        try:
            error = max(map(relative_error, expected, session.run(None, given)))
            problems |= {} if error <= WRONG else {tool: f"an output is off by {error:.1e} of its range"}
        except Exception as failure:  # noqa: BLE001 - what does not run is a finding
            problems[tool] = " ".join(str(failure).split())[:160]
    samples: dict[str, list[float]] = {t: [] for t in sessions if t not in problems}
    order = list(samples)
    for index in range(-WARM_UP, rounds):
        for tool in order[index % len(order) :] + order[: index % len(order)]:
            started = time.perf_counter()
            sessions[tool].run(None, given)
            if index >= 0:
                samples[tool].append((time.perf_counter() - started) * 1e3)
    return {"length": length, "ms": samples, "problems": problems}


def ratio(found: Any) -> float | None:
    """The latency of the best peer, by planish's: the median over the rounds of the peer that is best in the median."""
    samples = found["ms"]
    if "planish" not in samples:
        return None
    best = min((t for t in samples if t != "planish"), key=lambda t: statistics.median(samples[t]))
    return statistics.median(a / b for a, b in zip(samples[best], samples["planish"], strict=True))


def report(results: dict[str, dict[str, Any]]) -> str:
    """The tables as markdown."""
    text = []
    for wanted in map(str, LENGTHS):
        rows, ratios = [], []
        for model, by_length in results.items():
            found = by_length.get(wanted)
            if found is None:
                continue
            cells = [
                cell(statistics.median(found["ms"][t]), 1) if t in found["ms"] else "unusable"
                for t in (*PEERS, "planish")
            ]
            ratios.append(ratio(found))
            rows.append([model, str(found["length"]), *cells, cell(ratios[-1])])
        if not rows:
            continue
        mean = geometric_mean(r for r in ratios if r is not None)
        rows.append(["geometric mean", "", *[""] * (len(PEERS) + 1), cell(mean, 3)])
        header = ["model", "positions", *(f"{t} ms" for t in (*PEERS, "planish")), "best peer / planish"]
        text.append(markdown(f"{wanted} positions", header, rows))
    for model, by_length in results.items():
        for tool, problem in {t: p for f in by_length.values() for t, p in f["problems"].items()}.items():
            text.append(f"- {model}, {tool}: {problem}")
    return "\n".join(text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Latency of optimized transformers in ONNX Runtime, in turns.")
    parser.add_argument("names", nargs="*", help="models of the zoo (default: all that stand there)")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--json", type=Path, help="where to keep all samples")
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for model in sorted(p for p in args.zoo.iterdir() if (p / "outputs.npz").exists()):
        if args.names and model.name not in args.names:
            continue
        folder = args.out / model.name
        problems = {t: prepare(t, model, folder / t) for t in ("planish", *PEERS) if t in TOOLS}
        paths = {t: folder / t / "model.onnx" for t, problem in problems.items() if not problem}
        for length in args.lengths:
            inputs = load_inputs(model / "inputs.npz")
            found = measure({"raw": model / "model.onnx", **paths}, inputs, LENGTHS[length], args.rounds, args.threads)
            found["problems"] |= {t: p for t, p in problems.items() if p}
            results.setdefault(model.name, {})[str(length)] = found
            medians = {t: round(statistics.median(ms), 1) for t, ms in found["ms"].items()}
            print(model.name, found["length"], medians, cell(ratio(found)), flush=True)
            gc.collect()
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))
    print(report(results))


if __name__ == "__main__":
    main()
