"""Lowerings of RNN, LSTM and GRU, against torch and against formulas written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from planish.backends import LoweringError
from planish.backends.xla.function import to_jax
from planish.ir.text import parse

Array = np.ndarray[Any, Any]
TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 2


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(np.float32)


def onnx_gates(op: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight of torch with the gates in the order of ONNX."""
    parts = weight.chunk({"RNN": 1, "LSTM": 4, "GRU": 3}[op])
    order = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}[op]
    return torch.cat([parts[i] for i in order])


def weights_of(op: str, module: Any) -> list[torch.Tensor]:
    """W, R and B of a module of torch, with gradients."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    names = "weight_ih_l0", "weight_hh_l0"
    stacked = [torch.stack([onnx_gates(op, getattr(module, name + s)) for s in suffixes]) for name in names]
    biases = [torch.cat([onnx_gates(op, getattr(module, f"bias_{k}h_l0{s}")) for k in "ih"]) for s in suffixes]
    return [*stacked, torch.stack(biases)]


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
def test_values_and_gradients_are_those_of_torch(op: str, direction: str) -> None:
    torch.manual_seed(0)
    both = direction == "bidirectional"
    module = getattr(torch.nn, op)(INPUT, HIDDEN, bidirectional=both)
    x = torch.from_numpy(numbers(TIME, BATCH, INPUT)).requires_grad_()
    h = torch.from_numpy(numbers(1 + both, BATCH, HIDDEN)).requires_grad_()
    c = torch.from_numpy(numbers(1 + both, BATCH, HIDDEN, seed=1)).requires_grad_()
    state = (h, c) if op == "LSTM" else h
    y, last = module(x, state)
    weights = weights_of(op, module)
    sources = [x, *weights, h, *([c] if op == "LSTM" else [])]
    scale = torch.arange(1, y.numel() + 1).reshape(y.shape) / y.numel()
    end = last[0] if op == "LSTM" else last
    # torch computes with its own weights: those of ONNX are functions of them, and gradients are compared there
    wanted = torch.autograd.grad((y * scale).sum() + end.square().sum(), [x, module.weight_ih_l0, module.bias_hh_l0, h])

    attrs = f'hidden_size = {HIDDEN}, direction = "{direction}"' + (", linear_before_reset = 1" if op == "GRU" else "")
    cells = ", float[d, b, h] c" if op == "LSTM" else ""
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r, float[d, k] bias, float[d, b, h] h{cells})
        => (float[t, d, b, h] y, float[d, b, h] last) {{
        y, last = {op} <{attrs}> (x, w, r, bias, , h{", c" if cells else ""})
    }}"""
    function = to_jax(parse(text))
    arrays = [jnp.asarray(s.detach().numpy()) for s in sources]
    found, ends = jax.jit(lambda *xs: function({}, *xs))(*arrays)
    flat = jnp.transpose(found, (0, 2, 1, 3)).reshape(TIME, BATCH, -1)
    np.testing.assert_allclose(flat, y.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ends, end.detach(), rtol=1e-4, atol=1e-6)

    def loss(*xs: Any) -> Any:
        y, last = function({}, *xs)
        flat = jnp.transpose(y, (0, 2, 1, 3)).reshape(TIME, BATCH, -1)
        return (flat * scale.numpy()).sum() + jnp.square(last).sum()

    of_x, of_w, of_bias, of_h = jax.jit(jax.grad(loss, (0, 1, 3, 4)))(*arrays)
    np.testing.assert_allclose(of_x, wanted[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(of_w[0], onnx_gates(op, wanted[1]), rtol=1e-3, atol=1e-5)
    half = of_bias.shape[1] // 2
    np.testing.assert_allclose(of_bias[0, half:], onnx_gates(op, wanted[2]), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(of_h, wanted[3], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
def test_shorter_sequences_give_zeros_and_keep_their_last_state(op: str) -> None:
    torch.manual_seed(0)
    module = getattr(torch.nn, op)(INPUT, HIDDEN, bidirectional=True)
    lengths, x = np.array([5, 2, 3], np.int32), numbers(TIME, BATCH, INPUT)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False
    )
    y, last = module(packed)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    end = last[0] if op == "LSTM" else last
    attrs = f'hidden_size = {HIDDEN}, direction = "bidirectional"' + (
        ", linear_before_reset = 1" if op == "GRU" else ""
    )
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r, float[d, k] bias, int32[b] n)
        => (float[t, d, b, h] y, float[d, b, h] last) {{ y, last = {op} <{attrs}> (x, w, r, bias, n) }}"""
    function = to_jax(parse(text))
    found, ends = function({}, x, *(w.detach().numpy() for w in weights_of(op, module)), lengths)
    flat = jnp.transpose(found, (0, 2, 1, 3)).reshape(TIME, BATCH, -1)
    np.testing.assert_allclose(flat, wanted.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ends, end.detach(), rtol=1e-4, atol=1e-6)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm(x: Array, w: Array, r: Array, b: Array, p: Array, coupled: bool) -> Array:
    """The outputs of a layer with peepholes whose gates are clipped to [-0.4, 0.4]."""
    h = c = np.zeros((x.shape[1], HIDDEN), np.float32)
    outputs = []
    for row in x:
        i, o, f, g = np.split(row @ w.T + h @ r.T + b[: 4 * HIDDEN] + b[4 * HIDDEN :], 4, axis=1)
        pi, po, pf = np.split(p, 3)
        clip = lambda v: np.clip(v, -0.4, 0.4)  # noqa: E731
        i = sigmoid(clip(i + pi * c))
        f = 1 - i if coupled else sigmoid(clip(f + pf * c))
        c = f * c + i * np.tanh(clip(g))
        h = sigmoid(clip(o + po * c)) * np.tanh(clip(c))
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("coupled", [0, 1])
def test_peepholes_clipping_and_coupled_gates(coupled: int) -> None:
    x, w, r = numbers(TIME, BATCH, INPUT), numbers(1, 4 * HIDDEN, INPUT), numbers(1, 4 * HIDDEN, HIDDEN)
    b, p = numbers(1, 8 * HIDDEN), numbers(1, 3 * HIDDEN)
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r, float[d, k] bias, float[d, j] p)
        => (float[t, d, b, h] y) {{
        y = LSTM <hidden_size = {HIDDEN}, clip = 0.4, input_forget = {coupled}> (x, w, r, bias, , , , p)
    }}"""
    found = to_jax(parse(text))({}, x, w, r, b, p)[0]
    np.testing.assert_allclose(found[:, 0], lstm(x, w[0], r[0], b[0], p[0], bool(coupled)), rtol=1e-4, atol=1e-6)


def test_the_reset_gate_before_the_product() -> None:
    x, w, r = numbers(TIME, BATCH, INPUT), numbers(1, 3 * HIDDEN, INPUT), numbers(1, 3 * HIDDEN, HIDDEN)
    b = numbers(1, 6 * HIDDEN)
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r, float[d, k] bias) => (float[t, d, b, h] y) {{
        y = GRU <hidden_size = {HIDDEN}, direction = "reverse"> (x, w, r, bias)
    }}"""
    found = to_jax(parse(text))({}, x, w, r, b)[0]
    h, outputs = np.zeros((BATCH, HIDDEN), np.float32), []
    wz, wr, wh = np.split(w[0], 3)
    rz, rr, rh = np.split(r[0], 3)
    bz, br, bh = np.split(b[0, : 3 * HIDDEN] + b[0, 3 * HIDDEN :], 3)
    for row in x[::-1]:
        z = sigmoid(row @ wz.T + h @ rz.T + bz)
        reset = sigmoid(row @ wr.T + h @ rr.T + br)
        h = (1 - z) * np.tanh(row @ wh.T + (reset * h) @ rh.T + bh) + z * h
        outputs.append(h)
    np.testing.assert_allclose(found[:, 0], np.stack(outputs)[::-1], rtol=1e-4, atol=1e-6)


ACTIVATIONS = {
    "Affine": lambda x: 2 * x + 3,
    "LeakyRelu": lambda x: np.where(x < 0, 2 * x, x),
    "ThresholdedRelu": lambda x: np.where(x > 2, x, 0),
    "ScaledTanh": lambda x: 2 * np.tanh(3 * x),
    "HardSigmoid": lambda x: np.clip(2 * x + 3, 0, 1),
    "Elu": lambda x: np.where(x < 0, 2 * np.expm1(x), x),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_take_the_parameters_that_they_need(name: str) -> None:
    x, w, r = numbers(1, BATCH, INPUT), numbers(2, HIDDEN, INPUT), numbers(2, HIDDEN, HIDDEN)
    takes = {"Affine": 2, "ScaledTanh": 2, "HardSigmoid": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "Elu": 1}.get(
        name, 0
    )
    alphas = "2.0, 7.0" if takes else "7.0"
    betas = "3.0, 8.0" if takes == 2 else "8.0"
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r) => (float[t, d, b, h] y) {{
        y = RNN <hidden_size = {HIDDEN}, direction = "bidirectional", activations = ["{name}", "Affine"],
                 activation_alpha = [{alphas}], activation_beta = [{betas}]> (x, w, r)
    }}"""
    found = to_jax(parse(text))({}, x, w, r)[0]
    np.testing.assert_allclose(found[0, 0], ACTIVATIONS[name](x[0] @ w[0].T), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0, 1], 7 * (x[0] @ w[1].T) + 8, rtol=1e-4)


def test_an_unknown_activation_is_refused_up_front() -> None:
    text = """g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r) => (float[t, d, b, h] y) {
        y = RNN <hidden_size = 2, activations = ["Cube"]> (x, w, r)
    }"""
    with pytest.raises(LoweringError, match="RNN: there is no activation 'Cube'"):
        to_jax(parse(text))


def test_batch_first_layout_with_states() -> None:
    x, w, r = numbers(BATCH, TIME, INPUT), numbers(2, 4 * HIDDEN, INPUT), numbers(2, 4 * HIDDEN, HIDDEN)
    h, c = numbers(BATCH, 2, HIDDEN), numbers(BATCH, 2, HIDDEN, seed=1)
    texts = [
        f"""g (float[p, q, i] x, float[d, g, i] w, float[d, g, h] r, float[u, v, h] h, float[u, v, h] c)
            => (float[] y, float[] last, float[] cell) {{
            y, last, cell = LSTM <hidden_size = {HIDDEN}, direction = "bidirectional", layout = {layout}>
                (x, w, r, , , h, c)
        }}"""
        for layout in (0, 1)
    ]
    wanted = to_jax(parse(texts[0]))({}, x.swapaxes(0, 1), w, r, h.swapaxes(0, 1), c.swapaxes(0, 1))
    found = to_jax(parse(texts[1]))({}, x, w, r, h, c)
    np.testing.assert_allclose(found[0], np.transpose(wanted[0], (2, 0, 1, 3)), rtol=1e-6)
    for a, b in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(a, np.swapaxes(b, 0, 1), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_element_types(dtype: str) -> None:
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r, float[d, k] bias) => (float[] y, float[] h) {{
        y, h = GRU <hidden_size = {HIDDEN}> (x, w, r, bias)
    }}"""
    inputs = numbers(TIME, BATCH, INPUT), numbers(1, 6, INPUT), numbers(1, 6, HIDDEN), numbers(1, 12)
    wanted = to_jax(parse(text))({}, *inputs)
    jax_type = {"double": jnp.float64}.get(dtype) or jnp.dtype(dtype)
    with jax.enable_x64(True):
        found = to_jax(parse(text.replace("float[", f"{dtype}[")))({}, *(jnp.asarray(v, jax_type) for v in inputs))
        assert [v.dtype for v in found] == [jax_type] * 2
    tolerance = {"float16": 1e-2, "bfloat16": 5e-2, "double": 1e-5}[dtype]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=tolerance)


def test_symbolic_sizes() -> None:
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r, int32[b] n) => (float[] y, float[] h) {{
        y, h = GRU <hidden_size = {HIDDEN}, direction = "bidirectional"> (x, w, r, , n)
    }}"""
    function = to_jax(parse(text))
    inputs = numbers(TIME, BATCH, INPUT), numbers(2, 6, INPUT), numbers(2, 6, HIDDEN), np.array([2, 5, 1], np.int32)
    scope = jax.export.SymbolicScope()
    specs = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), x.dtype)
        for shape, x in zip((f"t, b, {INPUT}", f"2, 6, {INPUT}", f"2, 6, {HIDDEN}", "b"), inputs, strict=True)
    ]
    found = jax.export.export(jax.jit(lambda *xs: function({}, *xs)))(*specs).call(*inputs)
    for a, b in zip(found, function({}, *inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_all_products_with_inputs_are_one() -> None:
    text = f"""g (float[t, b, i] x, float[d, g, i] w, float[d, g, h] r) => (float[] y) {{
        y = LSTM <hidden_size = {HIDDEN}> (x, w, r)
    }}"""
    function = to_jax(parse(text))
    inputs = numbers(TIME, BATCH, INPUT), numbers(1, 8, INPUT), numbers(1, 8, HIDDEN)
    jaxpr = jax.make_jaxpr(lambda *xs: function({}, *xs))(*inputs).jaxpr
    (scan,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    inside = [e.primitive.name for e in scan.params["jaxpr"].jaxpr.eqns]
    assert inside.count("dot_general") == 1
    assert [e.primitive.name for e in jaxpr.eqns].count("dot_general") == 1
