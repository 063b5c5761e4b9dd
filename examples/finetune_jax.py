"""Fine-tune an imported, quantized model with JAX, and put the weights back into its graph.

The bundled digit classifier is quantized to 2-bit weights and 8-bit activations, which costs it accuracy. Quantized
values have a straight-through gradient in `planish.to_jax`, so a few epochs win most of it back. The trained weights
return to the graph, which ONNX Runtime then runs. Needs the `xla` extra and scikit-learn.
"""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import planish
from planish.backends import backend

MODEL = Path(planish.__file__).parent / "demo" / "digits.onnx"
PIPELINE = "default,quantize{bits=2,weights=mse}"
EPOCHS, BATCH, RATE = 15, 64, 1e-3


def accuracy(graph: planish.Graph, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of digits that ONNX Runtime gets right with ``graph``."""
    return float((backend("onnxruntime").run(graph, {"images": images})["logits"].argmax(1) == labels).mean())


def finetune(function: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
    """The parameters after some epochs of Adam."""

    def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        (logits,) = function(params, x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    @jax.jit
    def step(state: Any, x: jax.Array, y: jax.Array, count: jax.Array) -> Any:
        params, mean, square = state
        gradient = jax.grad(loss)(params, x, y)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g * g, square, gradient)
        bias = (1 - 0.9**count, 1 - 0.99**count)
        params = jax.tree.map(
            lambda p, m, s: p - RATE * (m / bias[0]) / (jnp.sqrt(s / bias[1]) + 1e-8), params, mean, square
        )
        return params, mean, square

    params = jax.tree.map(jnp.asarray, function.params)
    state = (params, *[jax.tree.map(jnp.zeros_like, params)] * 2)
    rng, count = np.random.default_rng(0), 0
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(len(images)), len(images) // BATCH):
            count += 1
            state = step(state, images[rows[:BATCH]], labels[rows[:BATCH]], jnp.float32(count))
    return state[0]


def main() -> None:
    digits = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        digits.images[:, None].astype(np.float32), digits.target, test_size=540, stratify=digits.target, random_state=0
    )
    original = planish.load(MODEL)
    result = planish.optimize(
        MODEL, PIPELINE, target="xla", data=[{"images": x} for x in np.split(train_x[:512], 8)], measure=False
    )
    if result.report.rolled_back:
        raise SystemExit(f"not quantized: {result.report.rolled_back}")
    graph, function = result.graph, planish.to_jax(result.graph)
    before = accuracy(graph, test_x, test_y)
    function.write_back(finetune(function, train_x, train_y.astype(np.int32)), graph)
    print(f"{'floating point':32} {accuracy(original, test_x, test_y):.2%}")
    print(f"{'2-bit weights, as quantized':32} {before:.2%}")
    print(f"{'2-bit weights, fine-tuned in JAX':32} {accuracy(graph, test_x, test_y):.2%}")


if __name__ == "__main__":
    main()
