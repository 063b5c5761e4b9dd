"""Factorization: what decoupled, Tucker, spatial and low-rank layers lose, and how much faster they are.

``digits``   (or nothing) the digits network of ``digits.py``, five seeds: accuracy after each way to factorize its
             convolutions, without training, and with distillation on the training images without their labels
``speed``    four convolutions of 64 channels on 56 x 56 in ONNX Runtime: processor time of one thread, with the layers
             as they are and factorized, in floating point and in int8
``minilm``   all-MiniLM-L6-v2 on the texts of ``quantize_minilm.py``: cosines to the original for plain, whitened and
             Fisher-weighted decompositions, ratio by ratio, with ranks chosen together or alike, and with factors
             fitted one after the other
``recovery`` the same with only the feed-forward layers at a ratio of 0.5, before and after distillation on paragraphs
             of docstrings, of the standard library and installed packages, without those that judge; minutes on a GPU
             (``pip install 'jax[cuda13]'``), eight hours on two cores

Accuracy is measured with every layer factorized, whether it is faster or not; ``speed`` takes what is faster.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import digits
import minilm
import numpy as np
import quantize_minilm as texts
import tinybert
import torch
from tables import cell, markdown

import planish
from planish.backends import backend
from planish.ir import DType, Graph, Value, constant, edit, op, tensor_type
from planish.ir.clone import clone_graph
from planish.passes import Context, Pipeline
from planish.passes.factorize.factorizing import Plan, rewrite
from planish.passes.factorize.judge import Judge
from planish.passes.factorize.low_rank import LowRank
from planish.passes.layers import layers_of
from planish.passes.registry import pass_names

Samples = Callable[[], Iterable[dict[str, Any]]]
DIGITS = (
    *(f"decouple{{terms={t},method={m},skip_first=false}}" for m in ("plain", "whitened") for t in (1, 2, 3, 4)),
    *(
        f"{name}{{ratio={r},method={m}}}"
        for name in ("tucker", "spatial-svd")
        for r in (0.5, 0.3)
        for m in ("plain", "whitened")
    ),
)
SESSION = {"threads": 1, "spinning": False}
DISTILL = "distill{steps=500}"
RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
METHODS: tuple[Any, ...] = ("plain", "fisher", "whitened")
ALLOCATIONS: tuple[Any, ...] = ("uniform", "global")
FITTED = 6_000  # texts that factors are fitted to
RECOVERY = "distill{steps=30000,batch=48,rate=1e-4,mix=false,holdout=0.01,skip=[Gather]}"
TEXTS = 163_000  # to learn from, at most
BUCKETS = (16, 24, 32, 48, 64)  # tokens that texts are padded to


def apply(
    graph: Graph, pipeline: str, samples: Samples | None, *, measured: bool = False, original: Graph | None = None
) -> tuple[Graph, Context]:
    """A changed copy; without ``measured``, everything that can be factorized is."""
    copy = clone_graph(graph)
    watch = stopwatch if measured else lambda first, second: (1.0, 0.5)
    engine = OneThread()
    ctx = Context(lambda: engine, samples=samples, stopwatch=watch, differentiate=planish.to_jax, original=original)
    Pipeline(pipeline).run(copy, ctx)
    problems = [f"{r.name}: {r.problem}" for r in ctx.results if r.problem]
    if problems:
        raise RuntimeError("; ".join(problems))
    return copy, ctx


class OneThread:
    """ONNX Runtime on one thread, for passes."""

    def __init__(self) -> None:
        self.engine = backend("onnxruntime")
        self.run, self.evaluate = self.engine.run, self.engine.evaluate

    def compile(self, graph: Graph) -> Callable[[Any], dict[str, Any]]:
        return self.engine.compile(graph, **SESSION)


def stopwatch(
    first: Callable[[], object], second: Callable[[], object], rounds: int = 5, shortest: float = 4e-3
) -> tuple[float, float]:
    """The processor time of both in turns, in seconds: all is done by the thread that calls, whatever else runs."""
    runs = [(run, max(1, round(shortest / max(_processor_time(run, 2), 1e-6)))) for run in (first, second)]
    found = [[_processor_time(run, count) for run, count in runs] for _ in range(rounds)]
    before, after = np.median(found, axis=0)
    return float(before), float(after)


def _processor_time(run: Callable[[], object], count: int) -> float:
    started = time.thread_time()
    for _ in range(count):
        run()
    return (time.thread_time() - started) / count


# --- digits ----------------------------------------------------------------------------------------------------------


def digits_table() -> str:
    """Accuracy of the digits network."""
    train_x, train_y, test_x, test_y = digits.split()
    pipelines = list(DIGITS)
    if "distill" in pass_names():
        pipelines += [f"decouple{{terms={t}}},{DISTILL}" for t in (2,)]
    found: dict[str, list[float]] = {name: [] for name in ("", *pipelines)}
    for seed in digits.SEEDS:
        model = digits.train(seed, torch.from_numpy(train_x), torch.from_numpy(train_y))
        graph, _ = apply(digits.export(model), "default", None)
        for name, accuracies in found.items():
            count = len(train_x) if "distill" in name else digits.CALIBRATION
            batches = [{"images": train_x[at : at + digits.BATCH]} for at in range(0, count, digits.BATCH)]
            changed = apply(graph, name, lambda batches=batches: batches)[0] if name else graph
            answers = backend("onnxruntime").run(changed, {"images": test_x})["logits"].argmax(1)
            accuracies.append(100 * float((answers == test_y).mean()))
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    rows = [
        [f"`{name}`" if name else "as it was", cell(float(np.mean(a))), cell(float(np.std(a))), cell(min(a))]
        for name, a in found.items()
    ]
    title = f"Digits: accuracy in percent on {digits.TEST} test images, {len(digits.SEEDS)} seeds"
    return markdown(title, ["Pipeline", "Mean", "Deviation", "Worst"], rows)


# --- speed -----------------------------------------------------------------------------------------------------------


def convolutions(count: int = 4, channels: int = 64, size: int = 56) -> Graph:
    """Convolutions of 3 x 3 with random weights, each followed by a Relu."""
    rng = np.random.default_rng(0)
    graph = Graph("convolutions")
    value = graph.add_input(tensor_type(DType.FLOAT, 1, channels, size, size), "x")
    for _ in range(count):
        weight = rng.standard_normal((channels, channels, 3, 3), np.float32) / np.float32(3 * channels**0.5)
        bias = constant(np.zeros(channels, np.float32))
        value = op.Relu(op.Conv(value, constant(weight), bias, pads=[1, 1, 1, 1]))
    edit.insert_floating([value], graph.ret)
    graph.set_outputs([value])
    return graph


def speed_table() -> str:
    """The time that four convolutions take."""
    graph = convolutions()
    data = [{"x": np.random.default_rng(1).standard_normal((1, 64, 56, 56)).astype(np.float32)}]
    engine = backend("onnxruntime")
    int8 = "quantize{calibration=minmax}"
    compiled = {
        name: engine.compile(apply(graph, name, lambda: data)[0], **SESSION) for name in ("default", f"default,{int8}")
    }
    pipelines = [
        *(f"decouple{{terms={t},skip_first=false}}" for t in (1, 2, 3, 4)),
        *(f"{name}{{ratio={r},skip_first=false}}" for name in ("tucker", "spatial-svd") for r in (0.5, 0.25)),
    ]
    rows = []
    for pipeline in pipelines:
        cells = []
        for base, behind in (("default", ""), (f"default,{int8}", f",{int8}")):
            name = f"default,{pipeline}{behind}"
            changed, ctx = apply(graph, name, lambda: data, measured=True)
            row = next(r.table for r in ctx.results if r.table)[0]
            program = engine.compile(changed, **SESSION)
            before, after = stopwatch(lambda base=base: compiled[base](data[0]), lambda p=program: p(data[0]), 15)
            taken = row["form"] if row["outcome"] == "factorized" else "declined"
            cells += [taken, cell(1e3 * before), cell(1e3 * after), cell(before / after)]
        rows.append([f"`{pipeline}`", *cells])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ["Pass", "Float: form", "ms before", "after", "x", "int8: form", "int8 before", "after", "x"]
    return markdown("Four convolutions of 64 channels, 56 x 56, one thread", header, rows)


# --- MiniLM ----------------------------------------------------------------------------------------------------------


def minilm_table(folder: Path, ratios: Sequence[float]) -> str:
    """Cosines to the original, with all products factorized."""
    data = texts.Data.load()
    graph, _ = apply(planish.load(texts.export(folder)), "default", None)
    expected = texts.of_graph(graph, data)
    engine = backend("onnxruntime")
    ctx = Context(lambda: engine, samples=lambda: data.calibration, differentiate=planish.to_jax)
    sites, _ = LowRank().candidates(graph)
    found: dict[str, list[str]] = {}
    for method in METHODS:
        plans = list(LowRank(method=method).plans(graph, sites, ctx))  # which all ratios share
        for allocation in ALLOCATIONS:
            cells = found[f"{method}, {allocation}"] = []
            for ratio in ratios:
                changed = at_ratio(graph, plans, LowRank(method=method, allocation=allocation, ratio=ratio), ctx)
                cells.append(f"{texts.Quality.of(texts.of_graph(changed, data), expected).mean:.4f}")
            print(method, allocation, *cells, file=sys.stderr, flush=True)
    for allocation in ALLOCATIONS:
        cells = found[f"whitened, {allocation}, in order"] = []
        for ratio in ratios:
            changed, _ = apply(graph, f"low-rank{{ratio={ratio},allocation={allocation}}}", lambda: data.calibration)
            cells.append(f"{texts.Quality.of(texts.of_graph(changed, data), expected).mean:.4f}")
        print("in order", allocation, *cells, file=sys.stderr, flush=True)
    header = ["Method, allocation", *map(str, ratios)]
    return markdown("all-MiniLM-L6-v2: mean cosine by ratio", header, [[name, *row] for name, row in found.items()])


def at_ratio(graph: Graph, plans: Sequence[Plan], chosen: LowRank, ctx: Context) -> Graph:
    """A copy with everything factorized that has fewer parameters so."""
    mapping: dict[Value, Value] = {}
    copy = clone_graph(graph, mapping)
    for site, ((ladder, rung),) in chosen.climb(plans, Judge(ctx, {})):
        if rung is not None:
            rewrite(site.copied(mapping), ladder.forms(rung)[0], chosen.pass_name())
    return copy


def recovery_table(folder: Path) -> str:
    """Feed-forward layers with half of their parameters, before and after distillation on other texts."""
    data = texts.Data.load()
    graph, _ = apply(planish.load(texts.export(folder)), "default", None)
    expected = texts.of_graph(graph, data)
    names = [layer.name for layer in layers_of(graph) if len(set(layer.matrix().shape)) > 1]
    factorized = f"low-rank{{ratio=0.5,allocation=uniform,only=[{','.join(names)}]}}"
    train = training_texts()
    few, all_of_them = (tinybert.batches(t, 48, BUCKETS) for t in (train[:FITTED], train))
    rows, changed = [], graph
    for pipeline, samples in ((factorized, few), (RECOVERY, all_of_them)):
        changed, _ = apply(changed, pipeline, lambda samples=samples: samples, original=graph)
        quality = texts.Quality.of(texts.of_graph(changed, data), expected)
        count = sum(len(s["input_ids"]) for s in samples)
        rows.append([f"`{pipeline.replace(','.join(names), '…')}`", str(count), *quality.cells()])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    title = f"all-MiniLM-L6-v2, {len(names)} feed-forward layers"
    return markdown(title, ["Pipeline", "Texts", *texts.QUALITY], rows)


def training_texts() -> list[str]:
    """Paragraphs of docstrings, those of the standard library first, and none that is judged by."""
    judged = {text for text in minilm.sentences(texts.MODULES) if len(text) > texts.SHORTEST}
    specs = (importlib.util.find_spec(name) for name in tinybert.TRAIN)
    packages = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]
    found: list[str] = []
    for folders in ([Path(sysconfig.get_paths()["stdlib"])], packages):
        paragraphs = (" ".join(p.split()) for f in folders for d in tinybert.docstrings(f) for p in d.split("\n\n"))
        own = sorted({p for p in paragraphs if len(p) > texts.SHORTEST} - judged - set(found))
        np.random.default_rng(0).shuffle(own)
        found += own
    return found[:TEXTS]


def main() -> None:
    parser = argparse.ArgumentParser(description="What factorization loses and gains.")
    parser.add_argument("what", nargs="?", choices=["digits", "speed", "minilm", "recovery"], default="digits")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    match args.what:
        case "digits":
            print(digits_table())
        case "speed":
            print(speed_table())
        case _:
            with tempfile.TemporaryDirectory() as folder:
                ranks = args.what == "minilm"
                print(minilm_table(Path(folder), args.ratios) if ranks else recovery_table(Path(folder)))


if __name__ == "__main__":
    main()
