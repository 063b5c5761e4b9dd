"""What pruning and few bits cost a small trained network, and how much of it is learned back without labels.

The digits network of ``digits.py``, five trainings, judged in ONNX Runtime on the same 540 images. Each row is one
pipeline with the number of training images that it may look at: without their labels, unless the pipeline names them.

    python benchmarks/compress_digits.py [--seeds N] [--only PATTERN]
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time

import digits
import numpy as np
import torch
from tables import cell, markdown

import planish
from planish.backends import backend
from planish.ir import Graph
from planish.ir.clone import clone_graph
from planish.passes import Context, Pipeline

Array = np.ndarray
ALL = 1257  # training images
ROWS = (  # images that the pipeline may look at, and the pipeline
    (0, "default"),
    (0, "default,prune{ratio=0.25}"),
    (0, "default,prune{ratio=0.5}"),
    (0, "default,prune{ratio=0.75}"),
    (64, "default,prune{ratio=0.25},distill"),
    (64, "default,prune{ratio=0.5},distill"),
    (64, "default,prune{ratio=0.5},distill{mix=false}"),
    (64, "default,prune{ratio=0.5},distill{labels=labels,alpha=1,mix=false}"),
    (64, "default,prune{ratio=0.75},distill"),
    (64, "default,prune{ratio=0.5,importance=taylor},distill"),
    (64, "default,prune{ratio=0.5,scope=global},distill"),
    (ALL, "default,prune{ratio=0.5},distill"),
    (ALL, "default,prune{ratio=0.75},distill"),
    (ALL, "default,prune{ratio=0.5},distill,quantize"),
    (ALL, "default,quantize{bits=3}"),
    (ALL, "default,quantize{bits=2}"),
    (ALL, "default,qat{bits=3}"),
    (ALL, "default,qat{bits=2}"),
    (64, "default,qat{bits=2}"),
    (ALL, "default,prune{ratio=0.5},distill,qat{bits=3}"),
)


def accuracy(
    graph: Graph, pipeline: str, data: list[dict[str, np.ndarray]], images: np.ndarray, y: np.ndarray
) -> float:
    """The share of right answers after ``pipeline``, in percent; a pass that had to be taken back is an error."""
    engine, graph = backend("onnxruntime"), clone_graph(graph)
    inputs = [{"images": row["images"]} for row in data]
    ctx = Context(lambda: engine, samples=lambda: inputs, labelled=lambda: data, differentiate=planish.to_jax)
    Pipeline(pipeline).run(graph, ctx)
    problems = [f"{r.name}: {r.problem}" for r in ctx.results if r.problem]
    if problems:
        raise RuntimeError("; ".join(problems))
    return 100 * float((engine.run(graph, {"images": images})["logits"].argmax(1) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="*", help="pattern of the pipelines to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_x, train_y, test_x, test_y = digits.split()
    rows = [row for row in ROWS if fnmatch.fnmatchcase(row[1], options.only)]
    found: list[list[float]] = [[] for _ in rows]
    seconds = [0.0] * len(rows)
    for seed in range(options.seeds):
        graph = digits.export(digits.train(seed, torch.from_numpy(train_x), torch.from_numpy(train_y)))
        for i, (count, pipeline) in enumerate(rows):
            started = time.monotonic()
            data = [
                {"images": train_x[at : at + digits.BATCH], "labels": train_y[at : at + digits.BATCH]}
                for at in range(0, count, digits.BATCH)
            ]
            found[i].append(accuracy(graph, pipeline, data, test_x, test_y))
            seconds[i] += time.monotonic() - started
            print(f"seed {seed}, {count}, {pipeline}: {found[i][-1]:.2f}", file=sys.stderr, flush=True)
    lines = [
        [f"`{pipeline}`", str(count), *(cell(float(f(a))) for f in (np.mean, np.std, np.min)), cell(s / len(a))]
        for (count, pipeline), a, s in zip(rows, found, seconds, strict=True)
    ]
    header = ["Pipeline", "Images", "Accuracy, %", "Deviation", "Worst", "Seconds"]
    print(markdown(f"Digits: {digits.TEST} test images, {options.seeds} trainings", header, lines))


if __name__ == "__main__":
    main()
