"""Quantization of a real model: all-MiniLM-L6-v2 with its trained weights, on real text.

The texts are first paragraphs of docstrings of the standard library, shuffled: 200 to judge by, and 128 others to
calibrate with, in batches of 8, padded or cut to 64 tokens. Which texts those are depends on the version of Python; so
compare rows, and not runs. The embeddings are compared with those of the model as torch.onnx exports it: the mean and
the least cosine, and for how many texts the nearest other text is the same.

``compare`` (or nothing)   planish's recipes and the tools of others: quality, size, latency on two threads
``weights``                methods for weights of four bits in blocks of 32: quality, size, seconds
``outliers``               the same function with channels of activations that are 30 to 100 times as large
``budget``                 how often the model is run until a budget holds, against a search layer by layer
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minilm
import numpy as np
from evaluate import open_session
from quantize_models import (
    Candidate,
    Make,
    latencies,
    make_all,
    ort_static,
    outputs,
    planish_recipe,
    speedup,
    u8s8,
)
from tables import cell, markdown

import planish
from planish.backends import backend
from planish.ir import Graph, Value, constant, edit, op
from planish.ir.clone import clone_graph
from planish.models import save_for
from planish.passes import Context, Pipeline
from planish.passes.layers import layers_of
from planish.passes.quantize import Quantize
from planish.passes.quantize.budget import Trial, disagreement
from planish.passes.quantize.plan import Choice, learn
from planish.passes.quantize.targets import target_for
from planish.passes.registry import pass_names

MODULES = (
    *("argparse", "asyncio", "collections", "configparser", "csv", "datetime", "decimal", "difflib", "email.message"),
    *("email.policy", "fractions", "ftplib", "functools", "gzip", "heapq", "html.parser", "http.client"),
    *("http.cookiejar", "http.server", "imaplib", "inspect", "io", "ipaddress", "itertools", "json", "logging"),
    *("mailbox", "multiprocessing.managers", "optparse", "os", "pathlib", "pickle", "plistlib", "queue", "random"),
    *("sched", "selectors", "shutil", "smtplib", "socket", "socketserver", "statistics", "string", "subprocess"),
    *("tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback", "types", "typing"),
    *("unittest", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "wave", "weakref", "xml.dom.minidom"),
    *("xml.etree.ElementTree", "zipfile"),
)
HELD_OUT, CALIBRATION, BATCH, TOKENS = 200, 128, 8, 64
SHORTEST = 20  # characters: what is shorter says little
THREADS = 2
OUTLIERS, FACTORS = 6, (30, 100)  # channels of each value, and by what they are multiplied
BUDGETS = (0.01, 0.003, 0.001, 0.0003)

Inputs = dict[str, np.ndarray]


# --- data and quality ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Batches of texts: those to judge by, and those to calibrate with."""

    held_out: list[Inputs]
    calibration: list[Inputs]

    @classmethod
    def load(cls) -> Data:
        texts = [text for text in minilm.sentences(MODULES) if len(text) > SHORTEST]
        np.random.default_rng(0).shuffle(texts)
        if len(texts) < HELD_OUT + CALIBRATION:
            raise RuntimeError(f"only {len(texts)} texts")
        return cls(batches(texts[:HELD_OUT]), batches(texts[HELD_OUT : HELD_OUT + CALIBRATION]))


def batches(texts: list[str]) -> list[Inputs]:
    """The texts in batches of one shape."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm.model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)

    def batch(some: list[str]) -> Inputs:
        encodings = tokenizer.encode_batch(some)
        ids, masks = ([getattr(e, name) for e in encodings] for name in ("ids", "attention_mask"))
        return {"input_ids": np.array(ids, np.int64), "attention_mask": np.array(masks, np.int64)}

    return [batch(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]


@dataclass(frozen=True)
class Quality:
    """How near embeddings are to others: cosines, and the share whose nearest other text is the same."""

    mean: float
    least: float
    neighbours: float

    @classmethod
    def of(cls, found: np.ndarray, expected: np.ndarray) -> Quality:
        found, expected = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, expected))
        cosines = (found * expected).sum(axis=1)
        same = nearest(found) == nearest(expected)
        return cls(float(cosines.mean()), float(cosines.min()), float(same.mean()))

    def cells(self) -> list[str]:
        """The columns of `QUALITY`."""
        return [f"{self.mean:.5f}", f"{self.least:.4f}", f"{100 * self.neighbours:.1f}"]


QUALITY = ["Mean cosine", "Least", "Same neighbour, %"]


def nearest(unit: np.ndarray) -> np.ndarray:
    """For each row, the other row with the largest cosine."""
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def embeddings(run: Callable[[Inputs], dict[str, Any]], batches: Sequence[Inputs]) -> np.ndarray:
    """What a model makes of all texts."""
    return np.concatenate([run(batch)["sentence_embedding"] for batch in batches])


def of_graph(graph: Graph, data: Data) -> np.ndarray:
    """The embeddings that ``graph`` computes."""
    return embeddings(backend("onnxruntime").compile(graph, **minilm.SESSION), data.held_out)


def of_file(path: Path, data: Data) -> np.ndarray:
    """The embeddings that a file computes, as it is."""
    return np.concatenate([found["sentence_embedding"] for found in outputs(open_session(path), data.held_out)])


# --- compare ---------------------------------------------------------------------------------------------------------


def compare(raw: Path, data: Data, rounds: int) -> str:
    """Recipes and tools."""
    expected = of_file(raw, data)
    with tempfile.TemporaryDirectory() as scratch:
        found = make_all(tools(raw, data.calibration), Path(scratch))
        sessions = {c.name: open_session(c.path, True, THREADS) for c in found if not c.failure}
        times = latencies(sessions, data.held_out[0], rounds)

        def cells(candidate: Candidate) -> list[str]:
            if candidate.failure:
                return [candidate.name, candidate.failure, *["-"] * 5]
            run = sessions[candidate.name].run
            quality = Quality.of(np.concatenate([run(None, batch)[0] for batch in data.held_out]), expected)
            median, samples = times[candidate.name]
            ratio = speedup(times[found[0].name][1], samples)
            return [candidate.name, *quality.cells(), cell(candidate.megabytes), cell(median), cell(ratio)]

        rows = [cells(candidate) for candidate in found]
    title = f"all-MiniLM-L6-v2: {HELD_OUT} texts; timed on {BATCH} x {TOKENS} tokens, {THREADS} threads"
    return markdown(title, ["Model", *QUALITY, "MB", "ms", "Speedup"], rows)


def tools(raw: Path, samples: list[Inputs]) -> dict[str, Make]:
    """The rows of `compare`."""
    from onnxruntime.quantization import CalibrationMethod

    folded = raw.with_name("folded.onnx")
    fold(raw, folded)
    products = {"op_types_to_quantize": ["MatMul"], "nodes_to_exclude": without_weights(folded), **u8s8()}
    entropy = {"calibrate_method": CalibrationMethod.Entropy}
    return {
        "raw export": lambda path: raw,
        **{f"planish `{name}`": planish_recipe(raw, name, samples) for name in ("default", "int8-dynamic", "int8")},
        "ORT dynamic, raw export": ort_dynamic(raw),
        "ORT dynamic, folded, per channel": ort_dynamic(folded, per_channel=True),
        "ORT static, folded": ort_static(folded, samples),
        "ORT static, folded, Entropy": ort_static(folded, samples, **entropy),
        "ORT static, folded, weights' products, per channel": ort_static(folded, samples, **products),
        "the same, Entropy": ort_static(folded, samples, **products, **entropy),
        "neural-compressor": neural_compressor(folded, samples),
    }


def fold(source: Path, path: Path) -> None:
    """The file with constants folded by ONNX Runtime (level BASIC)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def without_weights(path: Path) -> list[str]:
    """The names of the products of two values that are computed."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not constants & set(node.input)]


def ort_dynamic(source: Path, **options: Any) -> Make:
    """What ONNX Runtime's ``quantize_dynamic`` makes of a file."""

    def make(path: Path) -> Path:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(str(source), str(path), **options)
        return path

    return make


def neural_compressor(source: Path, samples: list[Inputs]) -> Make:
    """What Intel's neural-compressor (2.x, the last for ONNX) makes of a file with its defaults."""

    def make(path: Path) -> Path:
        if importlib.util.find_spec("neural_compressor") is None:
            raise RuntimeError("neural-compressor is not installed")
        from neural_compressor import PostTrainingQuantConfig, quantization

        class Loader:
            batch_size = BATCH

            def __iter__(self) -> Iterator[tuple[Inputs, int]]:
                return ((sample, 0) for sample in samples)

        model = quantization.fit(str(source), PostTrainingQuantConfig(approach="static"), calib_dataloader=Loader())
        if model is None:
            raise RuntimeError("neural-compressor finds no model; its log says why")
        model.save(str(path))
        return path

    return make


# --- on graphs -------------------------------------------------------------------------------------------------------


def optimized(raw: Path) -> Graph:
    """The graph of a file after the default pipeline."""
    graph = planish.load(raw)
    Pipeline("default").run(graph, Context(lambda: backend("onnxruntime")))
    return graph


def run(pipeline: str, graph: Graph, data: Data) -> tuple[Graph, Context]:
    """What ``pipeline`` makes of ``graph``, which stays as it is; a pass that had to be taken back is an error."""
    result = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: data.calibration)
    Pipeline(pipeline).run(result, ctx)
    if problems := [f"{r.name}: {r.problem}" for r in ctx.results if r.problem]:
        raise RuntimeError("; ".join(problems))
    return result, ctx


def weights(raw: Path, data: Data) -> str:
    """Methods for weights of four bits. The tables of the embeddings are in floating point, except in the last row."""
    graph, expected = optimized(raw), of_file(raw, data)

    def quantize(method: str, tables: int = 0) -> str:
        return f"quantize{{activations=float,bits=4,block=32,weights={method},symmetric=false,embeddings={tables}}}"

    rows = {method: quantize(method) for method in ("round", "mse", "hqq", "gptq", "adaround")}
    if "awq" in pass_names():
        rows["awq, mse"] = f"awq{{bits=4,block=32}},{quantize('mse')}"
    rows["gptq, and tables in int8"] = quantize("gptq", 8)
    found = [["float", *Quality.of(of_graph(graph, data), expected).cells(), cell(megabytes(graph)), "-"]]
    for name, pipeline in rows.items():
        started = time.perf_counter()
        result, _ = run(pipeline, graph, data)
        seconds = time.perf_counter() - started
        quality = Quality.of(of_graph(result, data), expected)
        found.append([name, *quality.cells(), cell(megabytes(result)), cell(seconds, 1)])
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return markdown("Weights of 4 bits, blocks of 32", ["Method", *QUALITY, "MB", "Seconds"], found)


def megabytes(graph: Graph) -> float:
    """The size of the file for ONNX Runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        save_for(graph, path, backend("onnxruntime"))
        return Candidate("", path, 0).megabytes


def with_outliers(graph: Graph) -> Graph:
    """A graph that computes the same, but some channels of all that weights multiply are much larger.

    The multiplication stands before the products alone: in BERT, what a normalization computes is added to their
    results, too.
    """
    rng, result = np.random.default_rng(0), clone_graph(graph)
    scaled: dict[Value, tuple[Value, np.ndarray]] = {}
    for layer in layers_of(result):
        if layer.in_axis is None:
            continue
        matrix = layer.matrix()
        if layer.x not in scaled:
            factors = np.ones(matrix.shape[1], np.float32)
            factors[rng.choice(len(factors), OUTLIERS, replace=False)] = rng.uniform(*FACTORS, OUTLIERS)
            scaled[layer.x] = op.Mul(layer.x, constant(factors)), factors
            edit.insert_floating([scaled[layer.x][0]], layer.node)  # its first reader: layers come in order
        larger, factors = scaled[layer.x]
        edit.set_operands(layer.node, [larger, constant(layer.restored(matrix / factors)), *layer.node.operands[2:]])
    return result


def outliers(raw: Path, data: Data) -> str:
    """Quantization with outliers, without and with smoothing."""
    graph, expected = optimized(raw), of_file(raw, data)
    rows = []
    for name, start in (("as trained", graph), ("with outliers", with_outliers(graph))):
        rows.append([f"{name}, float", *Quality.of(of_graph(start, data), expected).cells()])
        for pipeline in ("quantize", "quantize{activations=dynamic}"):
            for text in (pipeline, f"smooth,{pipeline}"):
                result, _ = run(text, start, data)
                rows.append([f"{name}, `{text}`", *Quality.of(of_graph(result, data), expected).cells()])
    title = f"{OUTLIERS} channels of what each product reads times {FACTORS[0]} to {FACTORS[1]}"
    return markdown(title, ["Model, pipeline", *QUALITY], rows)


# --- budget ----------------------------------------------------------------------------------------------------------


def budget(raw: Path, data: Data) -> str:
    """Searches for layers to keep more precise: planish's, and one that tries layer by layer.

    planish has rungs between integers and floating point: integers in blocks of rows, and integer weights alone.
    """
    graph = optimized(raw)
    rows = []
    for limit in BUDGETS:
        text = f"quantize{{calibration=minmax,max_drop={limit}}}"
        result, ctx = run(text, graph, data)
        kernels = [fact["kernel"] for fact in ctx.results[-1].table]
        counts = (
            ctx.results[-1].fired["evaluations of the model"],
            sum(kernel.startswith("int8 in blocks") for kernel in kernels),
            sum(kernel.startswith("float") for kernel in kernels),
        )
        rows.append([f"{limit}, planish", *map(cell, counts), f"{drop(graph, result, data):.5f}"])
        rows.append([f"{limit}, layer by layer", *one_by_one(graph, data, limit)])
        print("; ".join(" ".join(row) for row in rows[-2:]), file=sys.stderr, flush=True)
    return markdown(
        "Budgets for 1 - cosine, static",
        ["Budget, search", "Evaluations", "Layers in blocks", "In float", "Drop"],
        rows,
    )


def drop(before: Graph, after: Graph, data: Data) -> float:
    """What is lost on the calibration set."""
    expected, actual = ([*map(backend("onnxruntime").compile(g), data.calibration)] for g in (before, after))
    return disagreement(expected, actual)


def one_by_one(graph: Graph, data: Data, limit: float) -> list[str]:
    """The search of NNCF: layers are ranked by what is lost without each, then reverted in this order, one by one."""
    quantize = Quantize(calibration="minmax")
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: data.calibration)
    target = target_for(ctx.target)
    settings, layers = quantize.settings(target), quantize.layers(graph, target)
    trial = Trial(graph, learn(graph, layers, settings, ctx), ctx)
    choices: list[Choice] = ["integers"] * len(layers)
    lost = trial.drop(choices, settings)
    order: list[int] = []
    if lost > limit:
        without = [trial.drop([*choices[:i], "float", *choices[i + 1 :]], settings) for i in range(len(layers))]
        order = sorted(range(len(layers)), key=without.__getitem__)
    for i in order:
        if lost <= limit:
            break
        choices[i] = "float"
        lost = trial.drop(choices, settings)
    return [cell(trial.evaluations), "0", cell(choices.count("float")), f"{lost:.5f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantization of all-MiniLM-L6-v2.")
    parser.add_argument("what", nargs="?", choices=["compare", "weights", "outliers", "budget"], default="compare")
    parser.add_argument("--rounds", type=int, default=30, help="timed runs of each model (default: 30)")
    args = parser.parse_args()
    data = Data.load()
    with tempfile.TemporaryDirectory() as folder:
        raw = export(Path(folder))
        if args.what == "compare":
            print(compare(raw, data, args.rounds))
        else:
            print({"weights": weights, "outliers": outliers, "budget": budget}[args.what](raw, data))


def export(folder: Path) -> Path:
    """The file that torch.onnx writes."""
    minilm.from_file(minilm.load_encoder(), minilm.tokenize(["Two sentences", "of which one is longer"]), folder)
    return folder / "minilm.onnx"


if __name__ == "__main__":
    main()
