"""Recurrent layers before and after: which cells are recognized, what they compute, and what stays a Scan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.backends import backend
from planish.explanation import explain
from planish.frontends.jax import from_jax
from planish.ir import Graph
from planish.ir.clone import clone_graph
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline

RNG = np.random.default_rng(0)
SIZES = {"T": 5, "B": 2}


def fused(graph: Graph, engine: str = "onnxruntime") -> list[str]:
    """The operators after the default pipeline, which must not change what the graph computes."""
    before = clone_graph(graph)
    Pipeline.parse("default").run(graph, Context())
    verify(graph)
    shapes = [[SIZES[str(d)] if not isinstance(d, int) else d for d in v.shape or ()] for v in graph.inputs]
    inputs = [RNG.normal(size=shape).astype(v.dtype.numpy) for shape, v in zip(shapes, graph.inputs, strict=True)]
    wanted = backend("onnxruntime").compile(before)(*inputs)
    for actual, expected in zip(backend(engine).compile(graph)(*inputs), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    return [n.op for n in graph.walk()]


def kept(text: str) -> set[str]:
    """Why a Scan stays."""
    graph = parse(text)
    assert "Scan" in fused(graph)
    return {m.reason for m in explain(parse(text), rule="recurrent-layer").misses}


def scan(body: str, states: str = "h", outputs: str = "ho", row: str = "ho", rest: str = "") -> str:
    """A Scan over x whose states have these names, and whose body computes ``outputs`` and the stacked ``row``."""
    names = states.split()
    given = ", ".join(f"float[B,4] {n}" for n in names)
    inner = ", ".join(f"float[B,4] {n}i" for n in names)
    ends = ", ".join(f"float[B,4] {n}" for n in outputs.split())
    results = ", ".join(f"{n}t" for n in names)
    return f"""
      agraph (float[T,B,3] x, {given}, float[3,4] w, float[4,4] r, float[4] b {rest})
        => ({", ".join(f"float[B,4] {n}t" for n in names)}, float[T,B,4] y)
        < float one = {{1.0}}, float two = {{2.0}} > {{
        {results}, y = Scan <num_scan_inputs = 1, body = step ({inner}, float[B,3] xi) => ({ends}, float[B,4] out) {{
          {body}
          out = Identity ({row})
        }}> ({", ".join(names)}, x)
      }}"""


GATE = "{0}a = MatMul (xi, w) {0}b = MatMul (hi, r) {0}c = Add ({0}a, {0}b) {0}s = Add ({0}c, b) {0} = {1} ({0}s)"
LSTM = " ".join(
    [
        *(
            GATE.format(name, kind)
            for name, kind in (("i", "Sigmoid"), ("f", "Sigmoid"), ("o", "Sigmoid"), ("g", "Tanh"))
        ),
        "keep = Mul (ci, f) new = Mul (g, i) co = Add (new, keep) t = Tanh (co) ho = Mul (t, o)",
    ]
)
GRU = (
    GATE.format("z", "Sigmoid")
    + " ga = MatMul (xi, w) gb = MatMul (hi, r) gs = Add (ga, gb) g = Sigmoid (gs) "
    + "na = MatMul (xi, w) nb = MatMul (hi, r) nr = Mul (g, nb) ns = Add (nr, na) n = Tanh (ns)"
)
RNN = GATE.format("ho", "Tanh")


def test_gates_may_have_matrices_of_their_own():
    assert fused(parse(scan(LSTM, "h c", "ho co"))).count("LSTM") == 1
    assert fused(parse(scan(LSTM, "c h", "co ho"))).count("LSTM") == 1


@pytest.mark.parametrize(
    "mix",
    [
        "u = Sub (one, z) a = Mul (z, hi) c = Mul (u, n) ho = Add (a, c)",
        "u = Sub (one, z) a = Mul (hi, z) c = Mul (n, u) ho = Add (c, a)",
        "u = Sub (one, z) a = Mul (u, hi) c = Mul (z, n) ho = Add (c, a)",
        "d = Sub (hi, n) a = Mul (z, d) ho = Add (n, a)",
    ],
)
def test_states_are_mixed_in_many_spellings(mix):
    assert fused(parse(scan(GRU + mix))).count("GRU") == 1


@pytest.mark.parametrize(
    "activation", ["Relu", "Sigmoid", "Softsign", "Softplus", "Elu <alpha = 0.5>", "LeakyRelu", "Identity"]
)
def test_activations(activation):
    name, _, attrs = activation.partition(" ")
    body = GATE.format("k", "Identity") + f" ho = {name} {attrs} (ks)"
    assert fused(parse(scan(body))).count("RNN") == 1


def loop(steps: str = "n", condition: str = "going", extra: str = "") -> str:
    return f"""
      agraph (float[B,T,3] x, float[B,4] h, float[3,4] w, float[4,4] r, float[4] b) => (float[T,B,4] y) <
        bool going = {{1}}, int64 two = {{2}}, int64[1] zero = {{0}}, float limit = {{9.0}}
      > {{
        sizes = Shape <start = 1, end = 2> (x) n = Squeeze (sizes, zero)
        last, y = Loop <body = step (int64 i, bool c, float[B,4] hi) => (bool d, float[B,4] ho, float[B,4] yo) {{
          xi = Gather <axis = 1> (x, i) {RNN} yo = Identity (ho) {extra or "d = Identity (c)"}
        }}> ({steps}, {condition}, h)
      }}"""


def test_a_loop_that_gathers_its_rows():
    assert fused(parse(loop())).count("RNN") == 1
    assert "Loop" in fused(parse(loop(steps="two")))
    assert "Loop" in fused(parse(loop(extra="s = ReduceMax <keepdims = 0> (ho) d = Less (s, limit)")))


def test_xla_computes_the_same():
    sizes = SIZES.copy()
    for text in (scan(LSTM, "h c", "ho co"), scan(GRU + "d = Sub (hi, n) a = Mul (z, d) ho = Add (n, a)"), scan(RNN)):
        for name, size in sizes.items():
            text = text.replace(f"[{name},", f"[{size},").replace(f",{name},", f",{size},")
        assert not {"Scan"} & set(fused(parse(text), engine="xla:cpu"))


REFUSED = {
    "its body is no cell of LSTM, GRU or RNN": {
        "no product with the step": scan("b1 = MatMul (hi, r) ho = Tanh (b1)"),
        "an activation that the operator lacks": scan(GATE.format("k", "Identity") + " ho = Erf (ks)"),
        "a state is multiplied": scan(RNN.replace("ho = Tanh", "q = Tanh") + " ho = Mul (q, two)"),
        "another value is stacked": scan(RNN + " q = Mul (ho, two)", row="q"),
        "memory is stacked": scan(LSTM, "h c", "ho co", row="co"),
        "gates with different activations": scan(LSTM.replace("f = Sigmoid", "f = Relu"), "h c", "ho co"),
        "the complement of another gate": scan(GRU + "u = Sub (one, g) a = Mul (z, hi) c = Mul (u, n) ho = Add (a, c)"),
        "not the complement": scan(GRU + "u = Sub (two, z) a = Mul (z, hi) c = Mul (u, n) ho = Add (a, c)"),
        "states change places": scan(LSTM, "h c", "co ho"),
    },
    "what is added differs between the rows of a batch": {
        "a bias for every sequence": scan(RNN.replace("(hoc, b)", "(hoc, v)"), rest=", float[B,4] v"),
    },
}


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in REFUSED.items() for t in texts.values()])
def test_what_stays_is_explained(reason, text):
    assert reason in kept(text)


# jax


def jax_lstm(x, h, c, w, r, b, reverse=False):
    def step(state, row):
        h, c = state
        i, f, g, o = jnp.split(row @ w + h @ r + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return jax.lax.scan(step, (h, c), x, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_of_jax(reverse):
    w, r, b = (RNG.normal(size=s).astype(np.float32) for s in ((3, 16), (4, 16), (16,)))

    def layer(x):
        zeros = jnp.zeros((x.shape[1], 4))
        return jax_lstm(x, zeros, zeros, w, r, b, reverse)

    graph = from_jax(layer, np.zeros((5, 2, 3), np.float32))
    assert fused(graph).count("LSTM") == 1


def test_a_product_of_step_and_state_side_by_side_and_a_number_as_bias():
    w, b = RNG.normal(size=(7, 16)).astype(np.float32), RNG.normal(size=16).astype(np.float32)

    def layer(x):
        def step(state, row):
            h, c = state
            i, g, f, o = jnp.split(jnp.concatenate([row, h], -1) @ w + b, 4, -1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return jax.lax.scan(step, (jnp.ones((2, 4)), jnp.zeros((2, 4))), x)

    assert fused(from_jax(layer, np.zeros((5, 2, 3), np.float32))).count("LSTM") == 1


def test_both_directions_of_jax():
    weights = [[RNG.normal(size=s).astype(np.float32) for s in ((3, 16), (4, 16), (16,))] for _ in range(2)]

    def layer(x):
        zeros = jnp.zeros((x.shape[1], 4))
        _, forward = jax_lstm(x, zeros, zeros, *weights[0])
        _, backward = jax_lstm(x[::-1], zeros, zeros, *weights[1])
        return jnp.concatenate([forward, backward[::-1]], -1)

    operators = fused(from_jax(layer, np.zeros((5, 2, 3), np.float32)))
    assert operators.count("LSTM") == 1
    assert not {"Slice", "Concat", "Scan"} & set(operators)
