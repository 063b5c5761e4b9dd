"""Quantized models of the zoo in ONNX Runtime: latency, size and error, and the memory that quantization takes.

``python benchmarks/quantize_models.py vision ZOO`` quantizes mobilenet-v2 and resnet-50 with planish and with ONNX
Runtime's own tool: as exported, and simplified by onnxsim or by planish before, as one would by hand. ``transformers
ZOO`` compares planish's recipes on bert-base and vit-base. ZOO is a folder that `zoo.py` filled; models that it
lacks are exported into it. Weights are random, so errors say how exactly a tool computes, and not how well a trained
model bears it. ``memory ZOO`` is the peak memory of calibrating bert-base, in a process of its own.

Models of a table share a process and take turns (see `latencies`). What quantizes sees 16 random samples; errors, 1
minus the mean cosine to the outputs of the raw model, are from others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate import count, load_inputs, open_session
from tables import cell, markdown
from zoo import export_in_subprocess, reason

if TYPE_CHECKING:
    import onnxruntime as ort

    from planish.ir import Graph

Sample = Mapping[str, Any]
Times = Mapping[str, tuple[float, list[float]]]  # median milliseconds, and those of all rounds
Make = Callable[[Path], Path]  # writes a model to a path, and returns it, or returns where there is one already

VISION = ("mobilenet-v2", "resnet-50")
TRANSFORMERS = ("bert-base", "vit-base")
BATCH, TOKENS = 1, 128  # of what is timed and quantized
SAMPLES, HELD_OUT = 16, 16
CALIBRATION = 128  # samples of `memory`
WARM_UP = 2  # untimed rounds


# --- what the benchmarks of quantization share -----------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A model to judge: its file, or why there is none."""

    name: str
    path: Path
    seconds: float
    failure: str = ""

    @property
    def megabytes(self) -> float:
        """The size of the file and of its weights beside it."""
        return float(count(self.path)["bytes"]) / 1e6


def make_all(makes: Mapping[str, Make], folder: Path) -> list[Candidate]:
    """Make each model in a folder of its own; a tool that fails is a finding."""
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime's tools warn of every other layer, and print
    found = []
    for index, (name, make) in enumerate(makes.items()):
        path = folder / str(index) / "model.onnx"
        path.parent.mkdir()
        started, failure = time.perf_counter(), ""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                path = make(path)
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its line in the table
            failure = reason(error)
        found.append(Candidate(name, path, time.perf_counter() - started, failure))
        print(f"{name}: {failure or f'made in {found[-1].seconds:.0f} s'}", file=sys.stderr, flush=True)
    return found


def latencies(sessions: Mapping[str, ort.InferenceSession], inputs: Sample, rounds: int) -> Times:
    """The median milliseconds of each session, and of all rounds. They take turns, every other round in reverse."""
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(-WARM_UP, rounds):
        for name in list(sessions)[:: 1 if index % 2 else -1]:
            started = time.perf_counter()
            sessions[name].run(None, inputs)
            if index >= 0:
                samples[name].append((time.perf_counter() - started) * 1e3)
    return {name: (statistics.median(found), found) for name, found in samples.items()}


def speedup(before: Sequence[float], after: Sequence[float]) -> float:
    """The median ratio over the rounds."""
    return statistics.median(a / b for a, b in zip(before, after, strict=True))


def planish_recipe(source: Path, recipe: str, samples: Sequence[Sample], measure: bool = True) -> Make:
    """What planish's ``recipe`` makes of a file; what became of the layers is said on stderr."""

    def make(path: Path) -> Path:
        import planish

        result = planish.optimize(source, recipe, data=samples, measure=measure)
        if problems := [f"{r.name}: {r.problem}" for r in result.report.passes if r.problem]:
            raise RuntimeError("; ".join(problems))
        lines = [f"{r.name}: {dict(r.fired)}" for r in result.report.passes if r.table]
        for line in filter(None, (*lines, result.report.fallback)):
            print(f"planish {recipe}: {line}", file=sys.stderr, flush=True)
        result.save(path)
        return path

    return make


def ort_static(source: Path, samples: Iterable[Sample], **options: Any) -> Make:
    """What ONNX Runtime's ``quantize_static`` makes of a file; ``options`` are its own."""

    def make(path: Path) -> Path:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc] # no types
            def __init__(self) -> None:
                self.left = iter(samples)

            def get_next(self) -> Sample | None:
                return next(self.left, None)

        quantize_static(str(source), str(path), Reader(), **options)
        return path

    return make


def u8s8() -> dict[str, Any]:
    """The options for bytes without sign for activations, and signed ones for weights, a scale per channel."""
    from onnxruntime.quantization import QuantType

    return {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}


# --- models of the zoo -----------------------------------------------------------------------------------------------


def like(inputs: Sample, number: int, seed: int) -> list[dict[str, Any]]:
    """Random samples with the names and types of ``inputs``: ``BATCH`` each, and ``TOKENS`` where they are tokens."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def random(name: str, array: Any) -> Any:
        if array.dtype.kind == "f":
            return rng.standard_normal((BATCH, *array.shape[1:])).astype(array.dtype)
        low = 1 if "mask" in name else int(array.min())
        return rng.integers(low, int(array.max()) + 1, (BATCH, TOKENS)).astype(array.dtype)

    return [{name: random(name, array) for name, array in inputs.items()} for _ in range(number)]


def model_in(zoo: Path, name: str) -> Path:
    """The folder of a model of the zoo, exported if it is not there."""
    if not (zoo / name / "model.onnx").exists() and not export_in_subprocess(name, zoo):
        raise SystemExit(f"{name} cannot be exported")
    return zoo / name


def simplified(source: Path, path: Path) -> Path:
    """The file as onnxsim simplifies it."""
    import onnx
    import onnxsim

    model, good = onnxsim.simplify(onnx.load(source))
    if not good:
        raise RuntimeError("onnxsim's own check fails")
    onnx.save(model, path)
    return path


def recipes(raw: Path, samples: Sequence[Sample], names: Iterable[str]) -> dict[str, Make]:
    """The rows for the model as exported and for planish's recipes."""
    made = {f"planish `{name}`": planish_recipe(raw, name, samples) for name in names}
    return {"raw export": lambda path: raw, **made}


def vision(raw: Path, samples: Sequence[Sample]) -> dict[str, Make]:
    """The rows of a model of images."""

    def after(first: Make) -> Make:
        return lambda path: ort_static(first(path.with_name("first.onnx")), samples, **u8s8())(path)

    default = planish_recipe(raw, "default", samples)
    return recipes(raw, samples, ("default", "int8")) | {
        "ORT static": ort_static(raw, samples, **u8s8()),
        "onnxsim, ORT static": after(lambda path: simplified(raw, path)),
        "planish `default`, ORT static": after(default),
    }


def transformers(raw: Path, samples: Sequence[Sample]) -> dict[str, Make]:
    """The rows of a transformer."""
    return recipes(raw, samples, ("default", "int8", "int8-dynamic"))


def outputs(session: ort.InferenceSession, samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """The outputs by name for each sample."""
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, sample), strict=True)) for sample in samples]


def compare(zoo: Path, names: Iterable[str], kind: Callable[..., dict[str, Make]], threads: int, rounds: int) -> str:
    """A table for each model."""
    from planish.passes.quantize.budget import disagreement

    tables = []
    for name in names:
        folder = model_in(zoo, name)
        inputs = load_inputs(folder / "inputs.npz")
        held_out = like(inputs, HELD_OUT, 2)
        with tempfile.TemporaryDirectory() as scratch:
            found = make_all(kind(folder / "model.onnx", like(inputs, SAMPLES, 1)), Path(scratch))
            expected = outputs(open_session(folder / "model.onnx"), held_out)
            sessions = {c.name: open_session(c.path, True, threads) for c in found if not c.failure}
            errors = {name: disagreement(expected, outputs(session, held_out)) for name, session in sessions.items()}
            times = latencies(sessions, held_out[0], rounds)
            rows = [row(candidate, times, errors, found[:2]) for candidate in found]
        title = f"{name}: batch {BATCH}, {threads} thread{'s' if threads > 1 else ''}"
        tables.append(markdown(title, ["Model", "ms", "vs raw", "vs `default`", "MB", "1 - cosine"], rows))
    return "\n".join(tables)


def row(candidate: Candidate, times: Times, errors: Mapping[str, float], bases: Sequence[Candidate]) -> list[str]:
    """The cells of one model; ``bases`` are those that its latency is compared with."""
    if candidate.failure:
        return [candidate.name, candidate.failure, *["-"] * 4]
    median, samples = times[candidate.name]
    ratios = [cell(speedup(times[base.name][1], samples)) for base in bases]
    return [candidate.name, cell(median), *ratios, cell(candidate.megabytes), f"{errors[candidate.name]:.1e}"]


# --- memory ----------------------------------------------------------------------------------------------------------


def calibrate(folder: Path) -> dict[str, float]:
    """Calibrate bert-base in this process; the megabytes that were resident at most, and those of its weights."""
    import planish
    from planish.backends import backend
    from planish.passes import Context, Pipeline
    from planish.passes.quantize import Quantize

    inputs = load_inputs(folder / "inputs.npz")
    engine = backend("onnxruntime")

    def samples() -> Iterator[dict[str, Any]]:
        for seed in range(CALIBRATION):
            yield from like(inputs, 1, seed)

    imported = resident()
    started = time.perf_counter()
    graph: Graph = planish.load(folder / "model.onnx")
    weights = sum(value.const.nbytes for value in graph.constants() if value.const is not None) / 1e6
    Pipeline.parse("default").run(graph, Context(lambda: engine))
    optimized = resident()
    context = Context(lambda: engine, samples=samples)
    Pipeline(Quantize(calibration="percentile")).run(graph, context)
    if problems := [r.problem for r in context.results if r.problem]:
        raise RuntimeError("; ".join(problems))
    seconds = time.perf_counter() - started
    return {
        "weights": weights,
        "imported": imported,
        "optimized": optimized,
        "peak": resident(),
        "seconds": seconds,
    }


def resident() -> float:
    """The most megabytes (10^6 bytes) that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def memory(zoo: Path) -> str:
    """The table of `calibrate`, run in a fresh process."""
    folder = model_in(zoo, "bert-base")
    command = [sys.executable, __file__, "memory", str(zoo), "--child"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(child.stderr)
    found = json.loads(child.stdout.splitlines()[-1])
    weights = found["weights"]
    stages = {
        "weights": weights,
        "peak after imports": found["imported"],
        "peak after `default`": found["optimized"],
        "peak after calibration and quantization": found["peak"],
        "the same without the imports": found["peak"] - found["imported"],
    }
    rows = [[name, cell(size, 0), cell(size / weights)] for name, size in stages.items()]
    title = f"{folder.name}: {CALIBRATION} samples of {BATCH} x {TOKENS} tokens, percentile; {found['seconds']:.0f} s"
    return markdown(title, ["Memory", "MB", "of the weights"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency, size, error and memory of quantized models of the zoo.")
    parser.add_argument("what", choices=["vision", "transformers", "memory"])
    parser.add_argument("zoo", type=Path, help="folder that zoo.py filled, or that takes the models")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="models of the zoo instead of the usual two")
    parser.add_argument("--rounds", type=int, default=30, help="timed runs of each model (default: 30)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # the process of `calibrate`
    args = parser.parse_args()
    if args.what == "memory":
        print(json.dumps(calibrate(args.zoo / "bert-base")) if args.child else memory(args.zoo))
    elif args.what == "vision":
        print(compare(args.zoo, args.models or VISION, vision, 1, args.rounds))
    else:
        print(compare(args.zoo, args.models or TRANSFORMERS, transformers, 2, args.rounds))


if __name__ == "__main__":
    main()
