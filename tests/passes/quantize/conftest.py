"""Small models, samples for them, and quantization of them, for the tests of quantization."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from planish.backends.base import backend
from planish.ir import DType, constant, op, sym
from planish.ir.clone import clone_graph
from planish.ir.quantization import FAKE_QUANTIZE
from planish.ir.verify import verify
from planish.passes import Context, Pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import build, weights


def mlp(dtype=np.float32, kind="float"):
    w = weights(0, dtype)

    def body(x):
        h = op.Relu(op.MatMul(x, w(16, 32)) + w(32, fan=1))
        h = op.Clip(op.Gemm(h, w(32, 32), w(32, fan=1)), dtype(0), dtype(6))
        return op.Gemm(h, w(8, 32, fan=32), w(8, fan=1), transB=1)

    return build(body, sym("n"), 16, kind=kind)


def convnet():
    """Convolutions, plain and depthwise, a residual, pools, and a classifier."""
    w = weights(1)

    def body(x):
        h = op.Relu(op.Conv(x, w(8, 3, 3, 3, fan=27), w(8, fan=1), pads=[1, 1, 1, 1]))
        i = op.Clip(op.Conv(h, w(8, 8, 3, 3, fan=72), w(8, fan=1), pads=[1, 1, 1, 1]), np.float32(0), np.float32(6))
        i = op.Conv(i, w(8, 1, 3, 3, fan=9), w(8, fan=1), pads=[1, 1, 1, 1], group=8)
        h = op.MaxPool(op.Relu(op.Add(h, i)), kernel_shape=[2, 2], strides=[2, 2])
        h = op.Relu(op.Conv(h, w(16, 8, 3, 3, fan=72), w(16, fan=1)))
        return op.Gemm(op.Flatten(op.GlobalAveragePool(h)), w(16, 5), w(5, fan=1))

    return build(body, sym("n"), 3, 10, 10)


def embedding(rows=256):
    w = weights(2)
    magnitudes = np.geomspace(0.01, 100, rows).astype(np.float32)[:, None]
    table = constant(np.random.default_rng(3).standard_normal((rows, 64), np.float32) * magnitudes)

    def body(ids):
        h = op.LayerNormalization(op.Gather(table, ids), constant(np.ones(64, np.float32)))
        return op.MatMul(op.Tanh(op.MatMul(h, w(64, 32))), w(32, 8))

    return build(body, sym("n"), kind="ids")


def samples(graph, count=4, seed=0, rows=8):
    rng = np.random.default_rng(seed)
    (x,) = graph.inputs
    shape = [rows, *x.shape[1:]]
    if x.dtype is DType.INT64:
        return [{"x": rng.integers(0, 256, shape)} for _ in range(count)]
    return [{"x": rng.standard_normal(shape, np.float32).astype(x.dtype.numpy)} for _ in range(count)]


def layer(weight, **attrs):
    """One product, and correlated inputs for it whose last channels are large and always positive."""
    rng = np.random.default_rng(5)
    mixed = rng.standard_normal((400, 32)) / np.sqrt(np.arange(1, 33)) @ rng.standard_normal((32, 32))
    mixed[:, -3:] = 4 + np.abs(mixed[:, -3:])
    data = [{"x": part.astype(np.float32)} for part in np.split(mixed, 4)]
    return build(lambda x: op.Gemm(x, constant(weight), np.zeros(24, np.float32), **attrs), sym("n"), 32), data


def convolution(group):
    w = weights(6)
    graph = build(lambda x: op.Conv(x, w(8, 8 // group, 3, 3, fan=9), group=group), 2, 8, 9, 9)
    smooth = np.cumsum(np.random.default_rng(7).standard_normal((4, 2, 8, 9, 9)), axis=-1)
    return graph, [{"x": s.astype(np.float32)} for s in smooth]


def quantized(graph, options="", data=None, target="onnxruntime", before="", **context):
    """A quantized copy, and the record of the pass."""
    copy = clone_graph(graph)
    read = None if data is None else lambda: iter(data)
    context.setdefault("runner_factory", lambda: backend("reference"))
    ctx = Context(target=target, samples=read, **context)
    Pipeline.parse(before + f"quantize{{{options}}}").run(copy, ctx)
    assert [r.problem for r in ctx.results] == [""] * len(ctx.results)
    verify(copy)
    return copy, ctx.results[-1]


def outputs(graph, data):
    run = backend("reference").compile(graph)
    return np.concatenate([run(sample)["y"].astype(np.float64).ravel() for sample in data])


def sqnr(graph, other, data):
    """Signal to noise in decibels."""
    expected = outputs(graph, data)
    return 10 * np.log10(np.square(expected).sum() / np.square(outputs(other, data) - expected).sum())


def ops(graph):
    return [node.op for node in graph.walk()]


def fakes(graph):
    """Quantizers of activations, and of weights."""
    found = [node for node in graph.walk() if node.op == FAKE_QUANTIZE]
    of_weights = [node for node in found if node.given(0).is_constant]
    return SimpleNamespace(activations=[n for n in found if n not in of_weights], weights=of_weights)


def formats(nodes):
    return {node.attrs["format"] for node in nodes}


@pytest.fixture(scope="session")
def lab():
    """The functions above."""
    functions = (build, weights, mlp, convnet, embedding, samples, layer, convolution)
    measures = (quantized, outputs, sqnr, ops, fakes, formats)
    return SimpleNamespace(**{f.__name__: f for f in (*functions, *measures)})
