"""Zeros in weights: what magnitude, Wanda and SparseGPT lose, on two real networks.

``digits``   the network of ``digits.py``, five trainings, 540 test images; methods that look at inputs see 128 training
             images without labels, and so does distillation, which then trains what remains
``minilm``   all-MiniLM-L6-v2 on the texts of ``quantize_minilm.py``: embeddings of 200 texts against those of the model
             as it was, by mean cosine, and by Spearman's rank correlation of the similarities of all pairs; 128 other
             texts to look at, one at a time, without padding: what stands for nothing should not count

Each row is one pipeline behind ``default``. Zeros make neither network faster; what they are worth in bytes is in the
last table of ``digits``: the file as it is, with sparse tensors (``save(…, sparse=True)``), and both zipped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import digits
import numpy as np
import torch
from quantize_minilm import Data, export, of_graph, optimized
from tables import cell, markdown

import planish
from planish.backends import backend
from planish.ir import Graph
from planish.ir.clone import clone_graph
from planish.models import save_for
from planish.passes import Context, Pipeline

METHODS = ("magnitude", "wanda", "sparsegpt")
GOALS = ("ratio=0.5", "ratio=0.7", "ratio=0.8", "ratio=0.9", "pattern=2:4")
DISTILL = "distill{steps=300}"
DIGITS = (
    *(f"sparsify{{{goal},method={method}}}" for goal in GOALS for method in METHODS),
    *(f"sparsify{{{goal},method=sparsegpt,spread={spread}}}" for goal in GOALS[1:4] for spread in ("even", "global")),
    f"sparsify{{pattern=2:4}},{DISTILL}",
    f"sparsify{{pattern=2:4,method=sparsegpt}},{DISTILL}",
    f"sparsify{{ratio=0.9,method=sparsegpt}},{DISTILL}",
    ",".join([f"sparsify{{ratio=0.9,method=sparsegpt,rounds=3}},{DISTILL.replace('300', '100')}"] * 3),
)
MINILM = (
    *(f"sparsify{{ratio=0.5,spread=even,method={method}}}" for method in METHODS),
    "sparsify{ratio=0.5,method=sparsegpt}",
    *(f"sparsify{{pattern=2:4,method={method}}}" for method in METHODS),
)
IMAGES = 128  # for passes to look at


# --- digits ----------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What became of one pipeline, training by training: accuracy in percent, and the share of zeros in the weights."""

    accuracy: list[float] = field(default_factory=list)
    zeros: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Mean and standard deviation, the worst, and zeros."""
        mean, spread = np.mean(self.accuracy), np.std(self.accuracy)
        return [f"{mean:.2f} ± {spread:.2f}", f"{min(self.accuracy):.2f}", f"{100 * np.mean(self.zeros):.1f}"]


def networks() -> list[Graph]:
    """The networks of all seeds after the default pipeline."""
    train_x, train_y, _, _ = digits.split()
    images, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)
    graphs = [digits.export(digits.train(seed, images, labels)) for seed in digits.SEEDS]
    return [apply(graph, "default", []) for graph in graphs]


def apply(graph: Graph, pipeline: str, samples: Sequence[dict[str, np.ndarray]]) -> Graph:
    """What ``pipeline`` makes of ``graph``, which stays as it is; a pass that had to be taken back is an error."""
    result = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"), samples=lambda: samples, differentiate=planish.to_jax)
    Pipeline(pipeline).run(result, ctx)
    if problems := [f"{r.name}: {r.problem}" for r in ctx.results if r.problem]:
        raise RuntimeError("; ".join(problems))
    return result


def zeros(graph: Graph) -> float:
    """The share of zeros in all constants of two dimensions or more."""
    arrays = [v.const.numpy() for v in graph.constants() if v.const is not None and len(v.const.shape) > 1]
    return sum(np.count_nonzero(a == 0) for a in arrays) / sum(a.size for a in arrays)


def of_digits() -> str:
    """Accuracy by pipeline, and sizes of files."""
    train_x, _, test_x, test_y = digits.split()
    samples = [{"images": batch} for batch in np.split(train_x[:IMAGES], 4)]
    rows = {pipeline: Row() for pipeline in ("", *DIGITS)}
    engine, graphs = backend("onnxruntime"), networks()
    for pipeline, row in rows.items():
        for graph in graphs:
            result = apply(graph, pipeline, samples) if pipeline else graph
            found = engine.run(result, {"images": test_x})["logits"].argmax(1)
            row.accuracy.append(100 * float((found == test_y).mean()))
            row.zeros.append(zeros(result))
        print(pipeline, *row.cells(), file=sys.stderr, flush=True)
    title = f"Digits: {digits.TEST} test images, {len(graphs)} trainings"
    lines = [[f"`{pipeline}`" if pipeline else "as trained", *row.cells()] for pipeline, row in rows.items()]
    header = ["Pipeline", "Accuracy, %", "Worst", "Zeros, %"]
    return markdown(title, header, lines) + "\n\n" + sizes(graphs[0], samples)


def sizes(graph: Graph, samples: Sequence[dict[str, np.ndarray]]) -> str:
    """Sizes of the files of one network with more and more zeros."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for ratio in (0.5, 0.7, 0.8, 0.9, 0.95):
            result = apply(graph, f"sparsify{{ratio={ratio}}}", samples)
            found = [size for sparse in (False, True) for size in stored(result, Path(folder), sparse)]
            lines.append([f"{100 * ratio:.0f}", *(cell(size / 1000, 1) for size in found)])
    header = ["Zeros, %", "As it is", "Zipped", "Sparse tensors", "Zipped"]
    return markdown("Digits: size of the file in kB", header, lines)


def stored(graph: Graph, folder: Path, sparse: bool) -> tuple[int, int]:
    """The size of the file, and zipped."""
    path, archive = folder / "model.onnx", folder / "model.zip"
    save_for(graph, path, backend("onnxruntime"), sparse=sparse)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(path)
    return path.stat().st_size, archive.stat().st_size


# --- MiniLM ----------------------------------------------------------------------------------------------------------


def of_minilm() -> str:
    """Quality of embeddings by pipeline."""
    data = Data.load()
    samples = list(unpadded(data.calibration))
    with tempfile.TemporaryDirectory() as folder:
        graph = apply(optimized(export(Path(folder))), "default", [])
        expected = of_graph(graph, data)
        lines = []
        for pipeline in MINILM:
            started = time.perf_counter()
            result = apply(graph, pipeline, samples)
            seconds = time.perf_counter() - started
            lines.append([f"`{pipeline}`", *compare(of_graph(result, data), expected), cell(seconds, 0)])
            print(*lines[-1], file=sys.stderr, flush=True)
    tokens = sum(sample["input_ids"].size for sample in samples)
    title = f"all-MiniLM-L6-v2: {len(expected)} texts; {len(samples)} others of {tokens} tokens to look at"
    return markdown(title, ["Pipeline", "Mean cosine", "Least", "Spearman", "Seconds"], lines)


def unpadded(batches: Iterable[dict[str, np.ndarray]]) -> Iterable[dict[str, np.ndarray]]:
    """The texts one by one, without what fills them up."""
    for batch in batches:
        for i, length in enumerate(batch["attention_mask"].sum(axis=1)):
            yield {name: array[i : i + 1, :length] for name, array in batch.items()}


def compare(found: np.ndarray, expected: np.ndarray) -> list[str]:
    """Mean and least cosine, and the rank correlation of the similarities of pairs."""
    found, expected = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, expected))
    pairs = np.triu_indices(len(found), 1)
    ranks = [np.argsort(np.argsort((x @ x.T)[pairs])) for x in (found, expected)]
    cosines = (found * expected).sum(axis=1)
    return [f"{cosines.mean():.4f}", f"{cosines.min():.3f}", f"{np.corrcoef(*ranks)[0, 1]:.4f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Zeros in the weights of two real networks.")
    parser.add_argument("what", nargs="?", choices=["digits", "minilm"], default="digits")
    torch.set_num_threads(1)  # so small a network gains nothing from more
    print({"digits": of_digits, "minilm": of_minilm}[parser.parse_args().what]())


if __name__ == "__main__":
    main()
