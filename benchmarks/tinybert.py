"""From BERT to TinyBERT, as passes: all-MiniLM-L6-v2 with its trained weights, ten times smaller, four times as fast.

The model is an ONNX file, as torch.onnx writes it; from there on nothing else of it is used. Its vocabulary is trimmed
to the tokens that occur most, two thirds of the hidden units of its feed-forward layers go, what is left learns from
the original, and becomes int8, its tables four bits. Training texts are sentences of docstrings of installed packages,
so they depend on what is installed; the student is judged on others: docstrings of the standard library, and prose
(licenses, read-me files and descriptions of data sets). No sentence is in two of the three.

Reported are the size of the file, latency in ONNX Runtime on two threads beside the original (interleaved, idle threads
do not spin), and Spearman's correlation between the similarities of all pairs of held-out sentences in both models.

    python benchmarks/tinybert.py [--steps N] [--texts N] [--tokens N] [--ratio R] [--save FILE]
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import minilm
import numpy as np
from tables import cell, markdown

import planish
from planish.backends import backend
from planish.frontends.onnx import load
from planish.ir import Graph
from planish.ir.clone import clone_graph
from planish.measure import measure_pair
from planish.models import save_for
from planish.passes import Context, Pipeline

Inputs = dict[str, np.ndarray]

TRAIN = ("torch", "transformers", "sympy", "scipy", "jax", "sklearn", "numpy", "onnxscript", "huggingface_hub", "onnx")
BUCKETS = (16, 24, 32, 48)  # tokens: texts are padded to these, so that few shapes are compiled
HELD_OUT = 1000  # sentences of each kind
CALIBRATION = 384  # sentences that quantization and pruning look at
LIMITS = {"megabytes": 9.2, "speedup": 4.0, "spearman": 0.90}


# --- texts -----------------------------------------------------------------------------------------------------------


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text that consist of words; code, lists of parameters and the like are left out."""
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r"^\s*(>>>|\.\.\.|\$|#|-{3,}|={3,}|:\w+|\.\. )", paragraph, re.MULTILINE):
            continue
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z`'\"(])", " ".join(paragraph.split())):
            words = re.findall(r"[A-Za-z]{2,}", sentence)
            if len(words) >= 4 and len(sentence) <= 400 and sum(map(len, words)) > 0.6 * len(sentence):
                yield sentence


def docstrings(folder: Path) -> Iterator[str]:
    """The docstrings of all Python files below ``folder``, in order; nothing is imported."""
    left_out = {"test", "tests", "site-packages", "_vendor", "idlelib", "lib2to3"}
    for path in sorted(folder.rglob("*.py")):
        if left_out.intersection(path.relative_to(folder).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def prose() -> Iterator[str]:
    """Texts that come with installed packages and are no docstrings."""
    site = Path(sysconfig.get_paths()["purelib"])
    for pattern in ("sklearn/datasets/descr/*.rst", "*.dist-info/**/LICENSE*", "*.dist-info/METADATA", "*/README*"):
        for path in sorted(site.glob(pattern)):
            if path.is_file():
                yield path.read_text(encoding="utf-8", errors="ignore")


def unique(texts: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """The sentences of all texts, each once, in an order that depends on nothing else."""
    known = set(without)
    found = sorted({s for text in texts for s in sentences(text)} - known)
    np.random.default_rng(0).shuffle(found)
    return found


@dataclass(frozen=True)
class Texts:
    """Sentences to train on, and two kinds to judge by."""

    train: list[str]
    docstrings: list[str]
    prose: list[str]

    @classmethod
    def collect(cls, count: int) -> Texts:
        """``count`` sentences to train on."""
        specs = (importlib.util.find_spec(name) for name in TRAIN)
        packages = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]
        held_out = unique(docstrings(Path(sysconfig.get_paths()["stdlib"])))
        other = unique(prose(), held_out)
        train = unique((d for folder in packages for d in docstrings(folder)), [*held_out, *other])
        return cls(train[:count], held_out[:HELD_OUT], other[:HELD_OUT])


def batches(texts: Sequence[str], size: int, buckets: Sequence[int] = BUCKETS) -> list[Inputs]:
    """The texts in batches of ``size``, those of like length together, padded (or cut) to one of ``buckets``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm.model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(buckets[-1])
    tokenizer.no_padding()
    encoded = [e.ids for e in tokenizer.encode_batch(list(texts))]
    lengths = np.array([next(b for b in buckets if len(ids) <= b) for ids in encoded])
    found = []
    for length in buckets:
        rows = np.flatnonzero(lengths == length)
        for at in range(0, len(rows), size):
            some = [encoded[i] for i in rows[at : at + size]]
            ids, mask = np.zeros((2, len(some), length), np.int64)
            for row, tokens in enumerate(some):
                ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            found.append({"input_ids": ids, "attention_mask": mask})
    return found


# --- the student -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """The passes, with what they look at."""

    tokens: int
    ratio: float
    steps: int

    @property
    def stages(self) -> list[tuple[str, bool]]:
        """Pipelines, and whether they look at all texts or at a few."""
        return [
            (f"default,trim-vocabulary{{size={self.tokens}}}", True),
            (f"prune{{ratio={self.ratio},only=['*.intermediate.dense'],importance=contribution,refit=true}}", False),
            (f"distill{{steps={self.steps},batch=48,rate=3e-4,mix=false,holdout=0.01}}", True),
            ("equalize,quantize{embeddings=4}", False),
        ]

    def make(self, graph: Graph, texts: Texts) -> None:
        """Turn ``graph`` into the student.

        Raises:
            RuntimeError: a pass could not do its work.
        """
        everything, few = batches(texts.train, 48), batches(texts.train[:CALIBRATION], 32)
        original = clone_graph(graph)
        for pipeline, all_texts in self.stages:
            samples = everything if all_texts else few
            ctx = Context(
                lambda: backend("onnxruntime"),
                samples=lambda samples=samples: samples,  # type: ignore[misc]
                differentiate=planish.to_jax,
                original=original,
            )
            started = time.perf_counter()
            Pipeline.parse(pipeline).run(graph, ctx)
            print(f"{time.perf_counter() - started:7.1f} s  {pipeline}", flush=True)
            for result in ctx.results:
                for line in result.notes:
                    print(f"           {line}")
                if result.problem or result.missed:
                    raise RuntimeError(f"{result.name}: {result.problem or result.missed}")


# --- judging ---------------------------------------------------------------------------------------------------------


def similarities(graph: Graph, texts: Sequence[str]) -> np.ndarray:
    """The cosine between the embeddings of every two of the texts."""
    run = backend("onnxruntime").compile(graph, **minilm.SESSION)
    rows = np.concatenate([run(batch)["sentence_embedding"] for batch in batches(texts, 32, (*BUCKETS, 64, 128))])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines: np.ndarray = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    return cosines


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of ranks."""
    ranks = [np.argsort(np.argsort(x, kind="stable"), kind="stable") for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def megabytes(graph: Graph, path: Path) -> float:
    """The size of the file, or files, of ``graph``."""
    save_for(graph, path, backend("onnxruntime"))
    return sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*")) / 1e6


def judge(original: Graph, student: Graph, texts: Texts, path: Path) -> tuple[str, dict[str, float]]:
    """A table, and what counts in it."""
    first, second = (backend("onnxruntime").compile(g, **minilm.SESSION) for g in (original, student))
    batch = next(b for b in batches(texts.docstrings, 8, (64,)) if len(b["input_ids"]) == 8)
    timing = measure_pair(lambda: first(batch), lambda: second(batch), 30)
    correlations = [
        spearman(similarities(original, some), similarities(student, some)) for some in (texts.docstrings, texts.prose)
    ]
    sizes = [megabytes(g, path.with_name(name)) for g, name in ((original, "original.onnx"), (student, path.name))]
    rows = [
        ["original", cell(sizes[0]), cell(timing.before.median * 1e3), "1.00", "1", "1"],
        ["student", cell(sizes[1]), cell(timing.after.median * 1e3), cell(timing.speedup)]
        + [f"{c:.3f}" for c in correlations],
    ]
    header = ["Model", "MB", "ms", "Speedup", "Spearman, docstrings", "Spearman, prose"]
    found = {"megabytes": sizes[1], "speedup": timing.speedup, "spearman": correlations[0]}
    return markdown(f"all-MiniLM-L6-v2: 8 x 64 tokens, {len(texts.docstrings)} sentences held out", header, rows), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400, help="updates of the weights")
    parser.add_argument("--texts", type=int, default=60_000, help="sentences to train on")
    parser.add_argument("--tokens", type=int, default=10_400, help="tokens that stay")
    parser.add_argument("--ratio", type=float, default=0.667, help="share of the feed-forward units that goes")
    parser.add_argument("--save", type=Path, help="where to keep the student")
    args = parser.parse_args()
    texts = Texts.collect(args.texts)
    print(f"{len(texts.train):,} sentences to train on, {len(texts.docstrings)} and {len(texts.prose)} to judge by")
    with tempfile.TemporaryDirectory() as scratch:
        minilm.from_file(minilm.load_encoder(), minilm.tokenize(["one", "two or three"]), Path(scratch))
        original = load(Path(scratch) / "minilm.onnx")
        student = clone_graph(original)
        started = time.perf_counter()
        Recipe(args.tokens, args.ratio, args.steps).make(student, texts)
        print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
        table, found = judge(original, student, texts, args.save or Path(scratch) / "student.onnx")
    print(table)
    limits = {n: found[n] <= v if n == "megabytes" else found[n] >= v for n, v in LIMITS.items()}
    print(
        *(f"{n}: {found[n]:.3f}, {'as' if met else 'NOT as'} wanted ({LIMITS[n]:g})" for n, met in limits.items()),
        sep="\n",
    )


if __name__ == "__main__":
    main()
