"""Accuracy of a small real network after quantization: scikit-learn's handwritten digits, five trainings.

A network of three convolutions with BatchNormalization, Relu and pooling, and a linear layer is trained on 1257 of
scikit-learn's 1797 bundled 8x8 digits, and judged on the other 540, which are the same for all seeds. It is exported as
it is, and once more with an imbalance: before each Relu, every channel is multiplied by its own 10^u, u uniform from -2
to 2, and the next layer's weights are divided by it, which computes the same and is what equalization is for. Each row
of the table is one pipeline, run in ONNX Runtime: the mean accuracy over the seeds, that of the worst seed, and on
average how many of the 540 answers differ from those of the network as it was trained. Quantization has 128 training
images to look at; activations have eight bits.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tables import cell, markdown
from torch import Tensor, nn

from planish.backends import backend
from planish.frontends.torch import from_torch
from planish.ir import Graph
from planish.ir.clone import clone_graph
from planish.passes import Context, Pipeline

# what the network is called, whether it has the imbalance, and the pipeline
ROWS = (
    ("trained", False, "default"),
    ("trained", False, "default,equalize"),
    ("trained", False, "default,quantize"),
    ("trained", False, "default,quantize{bits=4}"),
    ("trained", False, "default,quantize{bits=4,weights=adaround}"),
    *(("trained", False, f"default,quantize{{bits=3,weights={w}}}") for w in ("round", "mse", "gptq", "adaround")),
    ("trained", False, "default,quantize{per_channel=false}"),
    ("imbalanced", True, "default"),
    ("imbalanced", True, "default,equalize"),
    ("imbalanced", True, "default,quantize"),
    ("imbalanced", True, "default,quantize{per_channel=false}"),
    ("imbalanced", True, "default,equalize,quantize{per_channel=false}"),
)
SEEDS = range(5)
TEST = 540
CALIBRATION = 128  # training images that passes may look at
EPOCHS = 30
BATCH = 64


class Digits(nn.Module):
    """Conv, BatchNormalization and Relu three times, pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.classifier = nn.Linear(widths[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        x = images / 8.0 - 1.0
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = torch.relu(norm(conv(x)))
            if i == 1:
                x = nn.functional.max_pool2d(x, 2)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels to train on, and those to judge by."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=TEST, random_state=0, stratify=digits.target
    )
    return train_x, train_y, test_x, test_y


def train(seed: int, images: Tensor, labels: Tensor) -> Digits:
    """A network fitted with AdamW and a one-cycle learning rate; images shift by up to one pixel at random."""
    torch.manual_seed(seed)
    model = Digits().train()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    loss = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            down, right = torch.randint(0, 3, (2,)).tolist()
            shifted = nn.functional.pad(images[chosen], (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]
            optimizer.zero_grad()
            loss(model(shifted), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def imbalanced(model: Digits, seed: int) -> Digits:
    """A copy that computes the same, each channel at another scale."""
    model, rng = deepcopy(model), np.random.default_rng(seed)
    for norm, layer in zip(model.norms, [*model.convs[1:], model.classifier], strict=True):
        scale = torch.from_numpy(10 ** rng.uniform(-2, 2, len(norm.weight))).float()
        norm.weight *= scale
        norm.bias *= scale
        layer.weight /= scale.reshape(1, -1, *(1,) * (layer.weight.ndim - 2))
    return model


def export(model: Digits) -> Graph:
    """The graph of ``model``, for any number of images."""
    example = torch.zeros(2, 1, 8, 8)
    return from_torch(model, example, dynamic_shapes=({0: "batch"},), input_names=["images"], output_names=["logits"])


def answers(graph: Graph, pipeline: str, calibration: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The digits that ``graph`` sees after ``pipeline``; a pass that had to be taken back is an error."""
    engine, graph = backend("onnxruntime"), clone_graph(graph)
    ctx = Context(lambda: engine, samples=lambda: [{"images": calibration}])
    Pipeline(pipeline).run(graph, ctx)
    problems = [f"{r.name}: {r.problem}" for r in ctx.results if r.problem]
    if problems:
        raise RuntimeError("; ".join(problems))
    return engine.run(graph, {"images": images})["logits"].argmax(1)


@dataclass
class Row:
    """What became of one pipeline, seed by seed: the accuracy in percent, and the number of other answers."""

    accuracy: list[float] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)


def measure() -> list[Row]:
    """All rows of the table."""
    train_x, train_y, test_x, test_y = split()
    images, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)
    rows = [Row() for _ in ROWS]
    for seed in SEEDS:
        model = train(seed, images, labels)
        graphs = {False: export(model), True: export(imbalanced(model, seed))}
        usual = answers(graphs[False], "default", train_x[:CALIBRATION], test_x)
        for row, (_, skewed, pipeline) in zip(rows, ROWS, strict=True):
            found = answers(graphs[skewed], pipeline, train_x[:CALIBRATION], test_x)
            row.accuracy.append(100 * float((found == test_y).mean()))
            row.changed.append(int((found != usual).sum()))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as markdown."""
    header = ["Network, pipeline", "Accuracy, %", "Worst", "Other answers"]
    lines = [
        [
            f"{name}, `{pipeline}`",
            *(cell(float(x)) for x in (np.mean(row.accuracy), min(row.accuracy), np.mean(row.changed))),
        ]
        for row, (name, _, pipeline) in zip(rows, ROWS, strict=True)
    ]
    return markdown(f"Digits: {TEST} test images, mean over {len(SEEDS)} seeds", header, lines)


def main() -> None:
    torch.set_num_threads(1)  # so small a network gains nothing from more
    print(table(measure()))


if __name__ == "__main__":
    main()
