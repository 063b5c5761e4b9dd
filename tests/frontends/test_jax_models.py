"""Whole models in plain JAX, and in the styles of its libraries: imported, run, compared, and optimized."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planish.backends import backend
from planish.frontends.jax import from_jax
from planish.ir import Graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline

RNG = np.random.default_rng(0)


def weight(*shape: int) -> jax.Array:
    return jnp.asarray((RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))


def run(graph: Graph, *arrays: Any) -> list[np.ndarray]:
    outputs: list[np.ndarray] = backend("onnxruntime").compile(graph)(*map(np.asarray, arrays))
    return outputs


def check(function: Any, params: Any, *args: Any, sizes: Any = None, others: Any = ()) -> Counter[str]:
    """Import, run on the example and on ``others``, optimize, run again; returns the operators that are left."""
    graph = from_jax(function, *args, params=params, dynamic_shapes=sizes)
    verify(graph)
    cases = [args, *others]
    expected = [jax.tree_util.tree_leaves(function(params, *case)) for case in cases]
    for optimized in (False, True):
        if optimized:
            Pipeline.parse("default").run(graph, Context())
            verify(graph)
        for case, numbers in zip(cases, expected, strict=True):
            for a, e in zip(run(graph, *case), numbers, strict=True):
                np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
    return Counter(node.op for node in graph.walk())


def tokens(*shape: int) -> np.ndarray:
    return RNG.integers(0, 50, shape).astype(np.int32)


def image(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# a perceptron


def perceptron(params: Any, x: Any) -> Any:
    for layer in params["layers"][:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return {"logits": x @ params["layers"][-1]["w"] + params["layers"][-1]["b"]}


def test_a_perceptron() -> None:
    params = {"layers": [{"w": weight(8, 16), "b": weight(16)}, {"w": weight(16, 4), "b": weight(4)}]}
    left = check(perceptron, params, image(2, 8), sizes={"x": {0: "batch"}}, others=[(image(7, 8),)])
    assert left == {"Gemm": 2, "Relu": 1}


# a convolutional network, in the order of dimensions that jax prefers


def convolution(x: Any, kernel: Any, stride: int = 1, groups: int = 1) -> Any:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def batch_norm(x: Any, p: Any) -> Any:  # as flax has it
    y = x - p["mean"]
    return y * (lax.rsqrt(p["var"] + 1e-5) * p["scale"]) + p["bias"]


def network(params: Any, x: Any) -> Any:
    x = jax.nn.relu(batch_norm(convolution(x, params["stem"], 2), params["norm_1"]))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    y = jax.nn.relu6(batch_norm(convolution(x, params["depthwise"], groups=8), params["norm_2"]))
    x = x + batch_norm(convolution(y, params["pointwise"]), params["norm_3"])
    x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return x.mean((1, 2)) @ params["head"]


def test_a_convolutional_network() -> None:
    def norm(channels: int) -> dict[str, Any]:
        positive = jnp.asarray(RNG.uniform(0.5, 2, channels).astype(np.float32))
        return {"mean": weight(channels), "var": positive, "scale": weight(channels), "bias": weight(channels)}

    params = {
        "stem": weight(3, 3, 3, 8), "norm_1": norm(8), "depthwise": weight(3, 3, 1, 8), "norm_2": norm(8),
        "pointwise": weight(1, 1, 8, 8), "norm_3": norm(8), "head": weight(8, 5),
    }  # fmt: skip
    left = check(network, params, image(2, 16, 16, 3), sizes={"x": {0: "n"}}, others=[(image(3, 16, 16, 3),)])
    assert left["Conv"] == 3
    assert left["Transpose"] <= 2  # in front, and before the mean
    assert left["MaxPool"] == left["AveragePool"] == left["Clip"] == 1
    assert left["Sub"] == left["Mul"] == 0  # the normalizations are in the convolutions
    assert left["Add"] == 1


# an encoder


def dense(x: Any, p: Any) -> Any:
    return jnp.einsum("bsd,df->bsf", x, p["kernel"]) + p["bias"]


def layer_norm(x: Any, p: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-6) * p["scale"] + p["bias"]


def attention(x: Any, p: Any, mask: Any) -> Any:
    def heads(name: str) -> Any:
        return jnp.einsum("bsd,dhk->bshk", x, p[name]["kernel"]) + p[name]["bias"]

    q, k, v = heads("query"), heads("key"), heads("value")
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]).astype(np.float32)
    scores = jnp.where(mask[:, None, None, :], scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return jnp.einsum("bqhd,hdf->bqf", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def encoder(params: Any, ids: Any, mask: Any) -> Any:
    x = params["embedding"][ids] + params["position"][None, : ids.shape[1]]
    for i, p in enumerate(params["layers"]):
        with jax.named_scope(f"layer_{i}"):
            x = layer_norm(x + attention(x, p["attention"], mask), p["norm_1"])
            x = layer_norm(x + dense(jax.nn.gelu(dense(x, p["up"]), approximate=False), p["down"]), p["norm_2"])
    return x, x[:, 0] @ params["embedding"].T


def encoder_params(layers: int = 2, width: int = 16, heads: int = 4) -> dict[str, Any]:
    size = width // heads

    def norm() -> dict[str, Any]:
        return {"scale": weight(width), "bias": weight(width)}

    def block() -> dict[str, Any]:
        shapes = {
            n: {"kernel": weight(width, heads, size), "bias": weight(heads, size)} for n in ("query", "key", "value")
        }
        out = {"kernel": weight(heads, size, width), "bias": weight(width)}
        return {
            "attention": {**shapes, "out": out},
            "norm_1": norm(),
            "norm_2": norm(),
            "up": {"kernel": weight(width, 32), "bias": weight(32)},
            "down": {"kernel": weight(32, width), "bias": weight(width)},
        }

    return {"embedding": weight(50, width), "position": weight(64, width), "layers": [block() for _ in range(layers)]}


def test_an_encoder() -> None:
    params = encoder_params()
    mask = np.ones((2, 6), bool)
    mask[1, 4:] = False
    left = check(encoder, params, tokens(2, 6), mask)
    assert left["Attention"] == 2
    assert left["LayerNormalization"] == 4
    assert left["Gelu"] == 2


def test_an_encoder_of_any_size() -> None:
    def by_position(params: Any, ids: Any, mask: Any) -> Any:
        table = params["position"]
        return encoder({**params, "position": jnp.take(table, jnp.arange(ids.shape[1]), axis=0)}, ids, mask)

    params = encoder_params(layers=1)
    sizes = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    other = (tokens(1, 9), np.ones((1, 9), bool))
    left = check(by_position, params, tokens(2, 6), np.ones((2, 6), bool), sizes=sizes, others=[other])
    assert left["Attention"] == 1


# recurrence


def lstm(params: Any, x: Any) -> Any:
    def step(state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x @ params["input"] + h @ params["hidden"] + params["bias"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[0], params["hidden"].shape[0]))
    (h, c), hs = lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
    return hs.swapaxes(0, 1), h, c


def test_a_recurrent_network_of_any_length() -> None:
    params = {"input": weight(3, 20), "hidden": weight(5, 20), "bias": weight(20)}
    sizes = {"x": {0: "batch", 1: "length"}}
    left = check(lstm, params, image(2, 6, 3), sizes=sizes, others=[(image(4, 9, 3),), (image(1, 1, 3),)])
    assert (left["LSTM"], left["Scan"]) == (1, 0)


# decoding


def generate(params: Any, first: Any) -> Any:
    """Greedy decoding with a cache: a loop around writes at a position."""
    width = params["embedding"].shape[1]

    def step(i: Any, state: Any) -> Any:
        ids, cache = state
        x = params["embedding"][ids[:, i]]
        cache = lax.dynamic_update_slice(cache, (x @ params["key"])[:, None], (0, i, 0))
        scores = jnp.einsum("bd,btd->bt", x, cache)
        weights = jax.nn.softmax(jnp.where(jnp.arange(8) <= i, scores, -jnp.inf))
        mixed = jnp.einsum("bt,btd->bd", weights, cache)
        return ids.at[:, i + 1].set(jnp.argmax(mixed @ params["embedding"].T, -1).astype(jnp.int32)), cache

    ids = jnp.zeros((first.shape[0], 9), jnp.int32).at[:, 0].set(first)
    return lax.fori_loop(0, 8, step, (ids, jnp.zeros((first.shape[0], 8, width))))[0]


def test_decoding() -> None:
    params = {"embedding": weight(50, 8), "key": weight(8, 8)}
    check(generate, params, tokens(3), sizes={"first": {0: "batch"}}, others=[(tokens(1),)])


# decoders and other norms


def rms_norm(x: Any, scale: Any) -> Any:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * scale


def rotate(x: Any) -> Any:
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / 100.0 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def decoder(params: Any, ids: Any) -> Any:
    x = params["embedding"][ids]
    y = rms_norm(x, params["norm_1"])
    q, k, v = (jnp.einsum("bsd,dhk->bshk", y, params[n]) for n in "qkv")
    mixed = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
    x = x + jnp.einsum("bshk,hkd->bsd", mixed, params["o"])
    y = rms_norm(x, params["norm_2"])
    return (x + (jax.nn.silu(y @ params["gate"]) * (y @ params["up"])) @ params["down"]) @ params["embedding"].T


def test_a_decoder_of_any_length() -> None:
    params = {
        "embedding": weight(50, 16), "norm_1": weight(16), "norm_2": weight(16), "q": weight(16, 4, 4),
        "k": weight(16, 2, 4), "v": weight(16, 2, 4), "o": weight(4, 4, 16), "gate": weight(16, 32),
        "up": weight(16, 32), "down": weight(32, 16),
    }  # fmt: skip
    sizes = {"ids": {0: "batch", 1: "length"}}
    left = check(decoder, params, tokens(2, 6), sizes=sizes, others=[(tokens(1, 11),), (tokens(3, 1),)])
    print(left)
    assert left["RMSNormalization"] == 2
    assert left["Swish"] == 1
    assert left["Attention"] == 1


def flax_layer_norm(x: Any, p: Any) -> Any:  # the fast variance
    mean, squares = x.mean(-1), jnp.mean(lax.square(x), -1)
    var = jnp.maximum(0.0, squares - lax.square(mean))
    y = x - jnp.expand_dims(mean, -1)
    return y * (lax.rsqrt(jnp.expand_dims(var, -1) + 1e-6) * p["scale"].reshape(1, 1, -1)) + p["bias"].reshape(1, 1, -1)


def flax_group_norm(x: Any, p: Any) -> Any:
    y = x.reshape(*x.shape[:-1], 2, -1)
    mean, var = y.mean((1, 2, 4), keepdims=True), y.var((1, 2, 4), keepdims=True)
    y = ((y - mean) * lax.rsqrt(var + 1e-6)).reshape(x.shape)
    return y * p["scale"] + p["bias"]


def test_normalizations_are_recognized() -> None:
    params = {"scale": weight(8), "bias": weight(8)}
    left = check(lambda p, x: flax_layer_norm(x, p), params, image(2, 5, 8), sizes={"x": {0: "batch", 1: "length"}})
    assert left == {"LayerNormalization": 1}
    left = check(lambda p, x: flax_group_norm(x, p), params, image(2, 4, 4, 8))
    assert left["ReduceMean"] == 2
    assert check(lambda p, x: jax.nn.standardize(x), params, image(2, 5, 8)) == {"LayerNormalization": 1}


# the styles of libraries


class Variable:
    """A parameter that is a node of the tree, as flax.nnx has it."""

    def __init__(self, value: Any):
        self.value = value


jax.tree_util.register_pytree_with_keys(
    Variable,
    lambda v: (((jax.tree_util.GetAttrKey("value"), v.value),), None),
    lambda _, children: Variable(*children),
)


@jax.tree_util.register_dataclass
@dataclass
class Linear:
    """A module that is a tree itself, with a function for a leaf, as equinox has it."""

    kernel: Any
    activation: Any

    def __call__(self, x: Any) -> Any:
        return self.activation(x @ self.kernel.value)


def test_modules_that_are_trees() -> None:
    modules = {"first": Linear(Variable(weight(4, 4)), jnp.tanh), "second": Linear(Variable(weight(4, 3)), jax.nn.relu)}

    def function(modules: Any, x: Any) -> Any:
        return modules["second"](modules["first"](x))

    x = image(2, 4)
    graph = from_jax(function, x, params=modules)
    names = [v.const.name for v in graph.constants() if v.const is not None and v.const.size > 1]
    assert names == ["first.kernel.value", "second.kernel.value"]
    np.testing.assert_allclose(run(graph, x)[0], function(modules, x), rtol=1e-5)
