"""Pruned models of `prune_zoo` in ONNX Runtime: operations, latency and size against the unpruned model.

``python benchmarks/prune_models.py ZOO [NAME ...]`` prunes each model at 30, 50 and 70 % and prints a table. ZOO is a
folder that `prune_zoo.py` filled; models that it lacks are exported into it. The model before is what ``default`` makes
of the export, so that pruning alone is compared; both take turns (`planish.measure`), on one thread. ``--check``
compares the outputs with the masked original (``tests/passes/prune/oracle.py``), at the batch of the zoo's inputs.

``--yolo ZOO`` asks what pruning and int8 make of the detector as exported.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate import count, load_inputs, open_session
from quantize_models import SAMPLES, like
from tables import cell, markdown
from zoo import export_in_subprocess, reason

if TYPE_CHECKING:
    from planish.ir import Graph
    from planish.optimizer import Result

RATIOS = (0.3, 0.5, 0.7)
HERE = Path(__file__).resolve().parent
SECONDS = 3.0  # of measuring a pair
ROUNDS = 15  # runs of each on a busy machine

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Pruned:
    """A model after pruning, against the one before.

    Attributes:
        operations: of the model before, divided by those after.
        times: latencies before and after.
        megabytes: of the files, before and after.
        seconds: that pruning took.
        error: the largest of an output against the masked original, relative; None if it was not asked for.
    """

    operations: float
    times: Times
    megabytes: tuple[float, float]
    seconds: float
    error: float | None


def model_in(zoo: Path, name: str) -> Path:
    """The folder of a model, exported if it is not there."""
    script = str(HERE / "prune_zoo.py")
    if not (zoo / name / "model.onnx").exists() and not export_in_subprocess(name, zoo, script):
        raise RuntimeError("it cannot be exported")
    return zoo / name


def optimized(model: Path | Graph, pipeline: str, samples: Sequence[Sample], measure: bool = False) -> Result:
    """What ``pipeline`` makes of a model; a pass with a problem is an error."""
    import planish

    result = planish.optimize(model, pipeline, data=samples, verify="off", measure=measure)
    if problems := [f"{r.name}: {r.problem}" for r in result.report.passes if r.problem]:
        raise RuntimeError("; ".join(problems))
    return result


def operations(graph: Graph, sample: Sample) -> int:
    """Floating-point operations for the sizes of ``sample``."""
    from planish.ir.flops import size_of

    sizes = {}
    for value in graph.inputs:
        for dim, size in zip(value.shape or (), sample[value.name].shape, strict=True):
            sizes[str(dim)] = size
    return size_of(graph, sizes).flops


@dataclass(frozen=True)
class Times:
    """Milliseconds of a run before and after, and the median of their ratios."""

    before: float
    after: float
    speedup: float


def compare(before: Path, after: Path, sample: Sample, options: argparse.Namespace) -> Times:
    """The latencies of two files, measured in turns: by the clock, or on a busy machine by processor time."""
    from planish.measure import measure_pair

    first, second = (open_session(path, True, options.threads) for path in (before, after))
    runs = [lambda: first.run(None, sample), lambda: second.run(None, sample)]
    if not options.busy:
        found = measure_pair(*runs, SECONDS)
        return Times(1e3 * found.before.median, 1e3 * found.after.median, found.speedup)
    seconds: list[list[float]] = [[], []]
    for index in range(-1, ROUNDS):  # the first warms up
        for which in (0, 1) if index % 2 else (1, 0):
            started = time.thread_time()
            runs[which]()
            if index >= 0:
                seconds[which].append(time.thread_time() - started)
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    return Times(*(1e3 * statistics.median(s) for s in seconds), ratio)


def agreement(before: Graph, after: Graph, inputs: Sample) -> float:
    """The error against the masked original.

    Raises:
        AssertionError: it is too large.
    """
    sys.path.insert(0, str(HERE.parent / "tests" / "passes" / "prune"))
    from oracle import check

    return float(check(before, after, inputs).error)


def prune(folder: Path, base: Result, ratio: float, options: argparse.Namespace) -> Pruned:
    """Prune ``base``, the optimized model of ``folder``, and measure it.

    Raises:
        RuntimeError: an output is not finite.
    """
    import numpy as np

    from planish.ir.verify import verify

    inputs = load_inputs(folder / "inputs.npz")
    samples = like(inputs, SAMPLES, 1)
    started = time.perf_counter()
    pruned = optimized(base.graph, f"prune{{ratio={ratio}{options.options}}}", samples, options.measure)
    seconds = time.perf_counter() - started
    verify(pruned.graph)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / name / "model.onnx" for name in ("before", "after")]
        for path, result in zip(paths, (base, pruned), strict=True):
            path.parent.mkdir()
            result.save(path)
        session = open_session(paths[1], True, options.threads)
        for sample in (inputs, samples[0]):  # of another batch and length than the export saw
            names = [value.name for value in session.get_outputs()]
            for name, array in zip(names, session.run(names, sample), strict=True):
                if not np.isfinite(array).all():
                    raise RuntimeError(f"output {name!r} is not finite")
        times = compare(*paths, samples[0], options)
        sizes = [float(count(path)["bytes"]) / 1e6 for path in paths]
    error = agreement(base.graph, pruned.graph, inputs) if options.check else None
    rate = operations(base.graph, samples[0]) / operations(pruned.graph, samples[0])
    return Pruned(rate, times, (sizes[0], sizes[1]), seconds, error)


HEADER = ["Model", "ratio", "fewer MACs", "faster", "ms before", "ms after", "MB before", "MB after", "s to prune"]


def row(name: str, ratio: float, found: Pruned | str) -> list[str]:
    """The cells of one model and ratio; a text says why there are no numbers."""
    if isinstance(found, str):
        return [name, f"{ratio:.0%}", found, *["-"] * (len(HEADER) - 2)]
    milliseconds = [found.times.before, found.times.after]
    error = [] if found.error is None else [f"{found.error:.0e}"]
    rates = [f"{found.operations:.2f}x", f"{found.times.speedup:.2f}x"]
    numbers = [*map(cell, milliseconds), *(cell(m, 1) for m in found.megabytes), cell(found.seconds, 1)]
    return [name, f"{ratio:.0%}", *rates, *numbers, *error]


def table(zoo: Path, names: Sequence[str], options: argparse.Namespace) -> str:
    """A line for each model and ratio; failures are lines, too."""
    rows = []
    for name in names:
        try:
            folder = model_in(zoo, name)
            base = optimized(folder / "model.onnx", "default", like(load_inputs(folder / "inputs.npz"), 1, 1))
        except Exception as error:  # noqa: BLE001 - the reason is the model's line in the table
            rows.append(row(name, 0, reason(error)))
            continue
        for ratio in options.ratios:
            try:
                found: Pruned | str = prune(folder, base, ratio, options)
            except Exception as error:  # noqa: BLE001 - likewise
                found = reason(error)
            rows.append(row(name, ratio, found))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    header = [*HEADER, *(["error"] if options.check else [])]
    return markdown(f"Pruning: batch 1, {options.threads} thread{'s' if options.threads > 1 else ''}", header, rows)


def yolo(zoo: Path, names: Sequence[str], options: argparse.Namespace) -> str:
    """The detector as exported against what is made of it."""
    tables = []
    for name in names:
        folder = model_in(zoo, name)
        raw = folder / "model.onnx"
        samples = like(load_inputs(folder / "inputs.npz"), SAMPLES, 1)
        pruned = [f"default,prune{{ratio={ratio}{options.options}}}" for ratio in options.ratios]
        rows = []
        with tempfile.TemporaryDirectory() as scratch:
            for index, pipeline in enumerate(["default", "int8", *pruned, *(f"{p},int8" for p in pruned)]):
                path = Path(scratch) / str(index) / "model.onnx"
                path.parent.mkdir()
                optimized(raw, pipeline, samples, options.measure).save(path)
                times = compare(raw, path, samples[0], options)
                before, after = cell(times.before), cell(times.after)
                megabytes = cell(float(count(path)["bytes"]) / 1e6, 1)
                rows.append([f"`{pipeline}`", before, after, f"{times.speedup:.2f}x", megabytes])
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        header = ["Pipeline", "ms as exported", "ms after", "faster", "MB"]
        tables.append(markdown(f"{name}: batch 1, {options.threads} thread(s)", header, rows))
    return "\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency and size of pruned models.")
    parser.add_argument("zoo", type=Path, help="folder that prune_zoo.py filled, or that takes the models")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all that are in the folder)")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="shares of channels to remove")
    parser.add_argument("--options", default="", help="further options of prune, such as ',scope=global'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with the masked original")
    parser.add_argument("--measure", action="store_true", help="let passes measure, and leave alone what gains nothing")
    parser.add_argument("--yolo", action="store_true", help="the detector: pruning and int8 against the export")
    parser.add_argument("--busy", action="store_true", help="count the time of the processor; one thread only")
    args = parser.parse_args()
    if args.busy and args.threads > 1:
        parser.error("--busy counts the time of one thread")
    if args.yolo:
        print(yolo(args.zoo, args.names or ["yolov5s", "yolov5s-320"], args))
    else:
        found = sorted(path.parent.name for path in args.zoo.glob("*/model.onnx"))
        print(table(args.zoo, args.names or found, args))


if __name__ == "__main__":
    main()
