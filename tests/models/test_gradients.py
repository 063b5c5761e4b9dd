"""Gradients through imported models, by JAX, against torch's autograd on the modules themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import planish
from planish.backends import backend
from planish.backends.xla.function import JaxFunction, to_jax
from planish.ir import Graph
from planish.passes import Context, Pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import minilm
from train_digits import DEMO, Digits

SENTENCES = ["This is an example sentence", "The weather is lovely today, and was yesterday."]
TOLERANCE = 1e-4  # of the largest element of each weight's gradient
NOISE = 1e-3  # of the largest of all: a gradient below is zero but for rounding, such as that of keys' biases


def gradients(function: JaxFunction, inputs: list[np.ndarray[Any, Any]], weight: np.ndarray[Any, Any]) -> Any:
    """Of a weighted sum of the first output, by the parameters."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(jax.grad(lambda p: (function(p, *inputs)[0] * weight).sum()))(function.params)


def of_module(
    module: torch.nn.Module, inputs: list[np.ndarray[Any, Any]], weight: np.ndarray[Any, Any]
) -> dict[str, Any]:
    module.zero_grad()
    (module(*map(torch.from_numpy, inputs)) * torch.from_numpy(weight)).sum().backward()
    return {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}


def check(found: dict[str, Any], wanted: dict[str, Any]) -> int:
    """Compare the gradients of all weights that have the same name on both sides; returns how many."""
    common = [n for n in wanted if n in found and found[n].shape == wanted[n].shape]
    largest = max(float(np.abs(wanted[n]).max()) for n in common)
    for name in common:
        scale = max(float(np.abs(wanted[name]).max()), NOISE * largest)
        np.testing.assert_allclose(found[name], wanted[name], atol=TOLERANCE * scale, rtol=TOLERANCE, err_msg=name)
    return len(common)


@pytest.fixture(scope="module")
def encoder() -> minilm.SentenceEncoder:
    return minilm.load_encoder().requires_grad_(True)


@pytest.mark.parametrize("optimized", [False, True])
def test_minilm(encoder: minilm.SentenceEncoder, optimized: bool) -> None:
    tokens = minilm.tokenize(SENTENCES)
    graph = minilm.from_module(encoder, tokens)
    if optimized:
        Pipeline.parse("default").run(graph, Context(lambda: backend("reference")))
    weight = np.random.default_rng(0).normal(size=(2, 384)).astype("f")
    inputs = list(tokens.values())
    wanted = of_module(encoder, inputs, weight)
    found = gradients(to_jax(graph), [i.astype(np.int32) for i in inputs], weight)
    named = {name: np.asarray(g) for name, g in found.items()}
    if not optimized:
        assert check(named, wanted) == len(wanted) > 100
    else:  # weights may have moved into others: what has kept its name must agree, biases and tables at least
        assert check(named, wanted) > 50


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, np.ndarray[Any, Any]]:
    """The demo's network with its trained weights, and held-out images."""
    graph = planish.load(DEMO / "digits.onnx")
    tensors = {v.const.name or v.name: v.const.numpy() for v in graph.constants() if v.const is not None}
    module = Digits(float(tensors["pixel_mean"]), float(tensors["pixel_std"])).eval()
    state = {n: torch.from_numpy(np.array(tensors[n])) for n in module.state_dict() if n in tensors}
    assert {n for n, _ in module.named_parameters()} <= state.keys()
    module.load_state_dict(state, strict=False)
    images = np.load(DEMO / "digits_heldout.npz")
    return module, next(images[n] for n in images.files if images[n].ndim == 4)[:32].astype("f")


def test_digits(digits: tuple[Digits, np.ndarray[Any, Any]]) -> None:
    module, images = digits
    graph = planish.load(DEMO / "digits.onnx")
    weight = np.random.default_rng(1).normal(size=(len(images), 10)).astype("f")
    wanted = of_module(module, [images], weight)
    found = {n: np.asarray(g) for n, g in gradients(to_jax(graph), [images], weight).items()}
    assert check(found, wanted) == len(wanted) == 11
    by_image = jax.grad(lambda x: (to_jax(graph)(to_jax(graph).params, x)[0] * weight).sum())(images)
    x = torch.from_numpy(images).requires_grad_()
    (module(x) * torch.from_numpy(weight)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(by_image, x.grad.numpy(), atol=TOLERANCE * float(x.grad.abs().max()))


def test_a_model_is_trained_after_import(digits: tuple[Digits, np.ndarray[Any, Any]]) -> None:
    """From weights at random to fitting 32 images, and back into a file that another backend runs."""
    import jax.numpy as jnp

    module, images = digits
    labels = module(torch.from_numpy(images)).argmax(1).numpy()
    graph: Graph = planish.load(DEMO / "digits.onnx")
    function = to_jax(graph)
    rng = np.random.default_rng(0)
    params = {n: jnp.asarray(p) for n, p in function.params.items()}
    last = next(n for n, p in params.items() if p.shape == (10, 64))
    params[last] = jnp.asarray(rng.normal(size=(10, 64)).astype("f") * 0.1)

    @jax.jit
    def step(weight: Any) -> Any:
        def loss(weight: Any) -> Any:
            logits = function({**params, last: weight}, images)[0]
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

        return weight - 1.0 * jax.grad(loss)(weight)

    weight = params[last]
    for _ in range(60):
        weight = step(weight)
    function.write_back({**params, last: weight}, graph)
    (logits,) = backend("onnxruntime").run(graph, {graph.inputs[0].name: images}).values()
    assert (logits.argmax(1) == labels).mean() >= 0.95
