"""Small graphs, data for them, and training of them, for the tests of training."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import planish
from planish.backends.base import backend
from planish.ir import op, sym
from planish.ir.clone import clone_graph
from planish.passes import Context
from planish.passes.base import PassResult
from planish.passes.train.engine import Problem, fit
from planish.passes.train.options import Training
from planish.passes.train.trainable import trainable_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import build, weights


def linear(inputs=3, outputs=2, seed=0):
    """y = x @ w + b."""
    w = weights(seed)
    return build(lambda x: op.Gemm(x, w(inputs, outputs, name="w"), w(outputs, fan=1, name="b")), sym("n"), inputs)


def mlp(hidden=16, seed=0):
    w = weights(seed)

    def body(x):
        h = op.Relu(op.Gemm(x, w(8, hidden, name="w1"), w(hidden, fan=1, name="b1")))
        h.name = "h"
        return op.Gemm(h, w(hidden, 4, name="w2"), w(4, fan=1, name="b2"))

    return build(body, sym("n"), 8)


def rows(count, width, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


def context(samples, original=None, **options):
    """A context in the middle of a pass."""
    read = samples if callable(samples) else lambda: iter(samples)
    found = Context(lambda: backend("onnxruntime"), samples=read, differentiate=planish.to_jax, **options)
    found.original = original
    found.results.append(PassResult("training"))
    return found


def square(target):
    """The loss: half the mean square of ``y - target``, an array of the batch."""

    def loss(outputs, batch, extra):
        return {"square": ((outputs["y"] - batch[target]) ** 2).mean() / 2}

    return loss


def trained(graph, samples, loss=None, ctx=None, problem=(), **options):
    """What `fit` finds for a copy of ``graph``, and the copy with it."""
    copy = clone_graph(graph)
    options = {"batch": 8, "steps": 20, "rate": 0.01, **options}
    training = Training(**options)
    loss = loss or square("t")
    made = Problem(copy, loss, trainable_weights(copy, training.only, training.skip), labels=["t"], **dict(problem))
    found = fit(made, training, ctx or context(samples))
    found.store()
    return found, copy


def constants(graph):
    """The elements of the named constants of ``graph``."""
    return {v.name: v.const.numpy() for v in graph.constants()}


def run(graph, **inputs):
    return backend("onnxruntime").run(graph, inputs)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Equal programs are compiled once for all tests here: compiling is most of the time that they take."""
    import jax

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def lab():
    """The functions above."""
    functions = (build, weights, linear, mlp, rows, context, square, trained, constants, run)
    return SimpleNamespace(**{f.__name__: f for f in functions})
