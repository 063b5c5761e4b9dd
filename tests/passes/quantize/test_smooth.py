"""``smooth``: values stay, outliers go where they cost least, and eight bits lose less."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from planish.backends import backend
from planish.ir import Graph, Value, constant, edit, op
from planish.ir.clone import clone_graph
from planish.ir.quantization import dynamic_parameters, fake_quantize, parse_format
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, PassError, Pipeline
from planish.passes.calibration.summaries import ChannelStatistics
from planish.passes.layers import layers_of
from planish.passes.quantize.smooth import Smooth

Array = np.ndarray[Any, Any]
FakeQuantize = op.domain("planish").FakeQuantize
C = 32  # channels
OUTLIERS = {3: 40.0, 17: 25.0, 18: -60.0}
X = f"float[2,7,{C}] x"


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def spiked(array: Array) -> Array:
    """The last dimension with some channels that are many times larger."""
    found = array.copy()
    for channel, factor in OUTLIERS.items():
        found[..., channel] *= factor
    return found


def weight(n: int, seed: int = 0) -> Array:
    """A weight [C, n] that makes something of all channels alike, as trained ones do."""
    found = 0.2 * numbers(C, n, seed=seed)
    for channel, factor in OUTLIERS.items():
        found[channel] /= factor
    return found


def graph(body: str, inputs: str = X, outputs: str = "y", **constants: Array | tuple[int, ...]) -> Graph:
    """A graph; constants are given, or random of a shape."""
    arrays = {
        n: numbers(*c, seed=i) * (0.2 if len(c) > 1 else 1) if isinstance(c, tuple) else c
        for i, (n, c) in enumerate(constants.items())
    }
    texts = [
        f"float[{','.join(map(str, a.shape))}] {n} = {{{', '.join(map(repr, a.ravel().tolist()))}}}"
        for n, a in arrays.items()
    ]
    return parse(f"g ({inputs}) => ({outputs}) <{', '.join(texts)}> {{ {body} }}")


def sample(g: Graph, seed: int, outliers: bool) -> dict[str, Array]:
    arrays = {v.name: numbers(*v.shape, seed=seed) for v in g.inputs}  # type: ignore[misc]
    return {n: spiked(a) if outliers and a.shape[-1:] == (C,) else a for n, a in arrays.items()}


def smoothed(
    g: Graph, options: str = "", outliers: bool = True, engine: str = "reference", within: float = 1e-4
) -> tuple[Graph, Counter[str]]:
    """A smoothed copy, which computes the same, and what the pass notes. ``outliers`` are those of the inputs."""
    changed = clone_graph(g)
    samples = [sample(g, seed, outliers) for seed in range(4)]
    ctx = Context(runner_factory=lambda: backend(engine), samples=lambda: samples)
    Pipeline.parse("smooth" + options).run(changed, ctx)
    assert not ctx.results[0].problem
    verify(changed)
    inputs = sample(g, 9, outliers)
    before, after = backend(engine).run(g, inputs), backend(engine).run(changed, inputs)
    for n, y in before.items():
        np.testing.assert_allclose(after[n], y, rtol=0, atol=within * float(np.abs(y).max()))
    return changed, ctx.results[0].fired


def operators(g: Graph) -> Counter[str]:
    return Counter(n.op for n in g.walk())


def loss(g: Graph, site: list[str], outliers: bool) -> float:
    """What eight bits cost in the layers that make ``site``: the error of all outputs, relative to them.

    Activations are quantized per tensor, by their range at run time, and weights per column.
    """
    rounded = clone_graph(g)
    activations: dict[Value, Value] = {}
    for layer in layers_of(rounded):
        if layer.node.result.name not in site:
            continue
        steps = np.abs(layer.matrix()).max(axis=1) / 127
        weight = FakeQuantize(layer.weight, constant(steps), format="int8", axis=layer.out_axis)
        x = activations.setdefault(layer.x, FakeQuantize(layer.x, format="uint8"))
        edit.insert_floating([x, weight], layer.node)
        edit.set_operand(layer.node, 0, x)
        edit.set_operand(layer.node, 1, weight)
    inputs = sample(g, 9, outliers)
    plain, found = (backend("reference").run(which, inputs) for which in (g, rounded))
    error = sum(float(np.square(found[n] - y).sum()) for n, y in plain.items())
    return float(np.sqrt(error / sum(float(np.square(y).sum()) for y in plain.values())))


SCALE = spiked(1 + 0.1 * numbers(C))  # of a normalization, as large models have it
BIAS = spiked(0.1 * numbers(C, seed=1))
SPIKED = spiked(0.2 * numbers(C, C))  # a weight that makes outliers
QKV = "q = MatMul (n, wq) k = MatMul (n, wk) v = MatMul (n, wv)"
ATTENTION = graph(
    """q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv) c = Add (v, b)
    a = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, c) y = MatMul (a, w)""",
    wq=(C, C), wk=(C, C), wv=SPIKED, b=BIAS, w=weight(24),
)  # fmt: skip

SITES: dict[str, tuple[Graph, str]] = {  # and where it is smoothed
    "a normalization": (
        graph("n = LayerNormalization (x, s, b) y = MatMul (n, w)", s=SCALE, b=BIAS, w=weight(24)),
        "LayerNormalization",
    ),
    "a normalization without a bias": (
        graph("n = LayerNormalization <axis = -1> (x, s) y = MatMul (n, w)", s=SCALE, w=weight(24)),
        "LayerNormalization",
    ),
    "a root mean square": (
        graph("n = RMSNormalization (x, s) y = MatMul (n, w)", s=SCALE, w=weight(24)),
        "RMSNormalization",
    ),
    "a normalization that several layers read": (
        graph(f"n = LayerNormalization (x, s, b) {QKV} a = Add (q, k) y = Mul (a, v)", s=SCALE, b=BIAS,
              wq=weight(16, 1), wk=weight(16, 2), wv=weight(16, 3)),
        "LayerNormalization",
    ),
    "rows of a Gemm": (
        graph("n = LayerNormalization (x, s, b) y = Gemm <transB = 1> (n, w, c)", f"float[9,{C}] x",
              s=SCALE, b=BIAS, w=weight(24).T, c=(24,)),
        "LayerNormalization",
    ),
    "a product and its bias": (
        graph("m = MatMul (x, v) a = Add (m, b) y = MatMul (a, w)", v=SPIKED, b=BIAS, w=weight(24)),
        "Add",
    ),
    "a bias on the left": (
        graph("m = MatMul (x, v) a = Add (b, m) y = MatMul (a, w)", v=SPIKED, b=BIAS, w=weight(24)),
        "Add",
    ),
    "a product": (graph("a = MatMul (x, v) y = MatMul (a, w)", v=SPIKED, w=weight(24)), "MatMul"),
    "a Gemm": (
        graph("a = Gemm <alpha = 0.5, beta = 2.0> (x, v, b) y = Gemm (a, w)", f"float[9,{C}] x",
              v=SPIKED, b=BIAS, w=weight(24)),
        "Gemm",
    ),
    "a Gemm of a transposed value": (
        graph("a = Gemm <transA = 1> (x, v) y = Gemm (a, w)", f"float[{C},9] x", v=SPIKED, w=weight(24)),
        "Gemm",
    ),
    "values of an attention": (ATTENTION, "Add"),
    "an input": (graph("y = MatMul (x, w)", w=weight(24)), "a multiplication"),
    "an input that several layers read": (
        graph(f"{QKV.replace('(n', '(x')} a = Add (q, k) y = Mul (a, v)",
              wq=weight(16, 1), wk=weight(16, 2), wv=weight(16, 3)),
        "a multiplication",
    ),
    "a value with another reader": (
        graph("n = LayerNormalization (x, s, b) m = MatMul (n, w) y = Add (n, m)", s=SCALE, b=BIAS, w=weight(C)),
        "a multiplication",
    ),
    "a value that is an output": (
        graph("n = LayerNormalization (x, s, b) y = MatMul (n, w)", outputs="y, n", s=SCALE, b=BIAS, w=weight(C)),
        "a multiplication",
    ),
    "an activation": (
        graph("m = MatMul (x, v) a = Relu (m) y = MatMul (a, w)", v=SPIKED, w=weight(24)),
        "a multiplication",
    ),
}  # fmt: skip
INPUTS = {"an input", "an input that several layers read"}  # have the outliers; elsewhere, the graph makes them


@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
@pytest.mark.parametrize("case", SITES)
def test_outliers_are_moved_into_the_weights(case: str, engine: str) -> None:
    g, where = SITES[case]
    changed, found = smoothed(g, outliers=case in INPUTS, engine=engine)
    assert found == {f"smoothed in {where}": 1}
    assert operators(changed) - operators(g) == ({"Mul": 1} if where == "a multiplication" else {})
    last = layers_of(g)[-1]
    site = [layer.node.result.name for layer in layers_of(g) if layer.x is last.x]
    if engine == "reference":
        assert loss(g, site, case in INPUTS) > 8 * loss(changed, site, case in INPUTS)


def statistics(array: Array) -> ChannelStatistics:
    found = ChannelStatistics(-1)
    found.update(array)
    return found


def squared_error(x: Array, w: Array) -> float:
    """What eight bits cost in ``x @ w.T``."""
    activation, form = parse_format("uint8"), parse_format("int8")
    rounded = fake_quantize(x, *dynamic_parameters(x, activation), activation)
    weights = fake_quantize(w, np.abs(w).max(axis=1) / np.float32(127), None, form, 0)
    return float(np.square(rounded @ weights.T - x @ w.T).sum())


@pytest.mark.parametrize("alpha", [None, 0.4, 0.5, 0.7])
def test_the_error_is_predicted(alpha: float | None) -> None:
    x, w = spiked(numbers(500, C)), weight(24).T
    scales, remaining = Smooth(alpha=alpha).choose(statistics(x), [w])
    scales = scales.astype(np.float32)
    measured = squared_error(x / scales, w * scales) / squared_error(x, w)
    assert remaining < 0.01
    np.testing.assert_allclose(remaining, measured, rtol=0.15)


def test_the_search_is_no_worse_than_any_exponent() -> None:
    for seed in range(5):
        x, w = statistics(spiked(numbers(50, C, seed=seed))), numbers(24, C, seed=seed)
        best = Smooth().choose(x, [w])[1]
        assert best <= 1.00001 * min(Smooth(alpha=a / 10).choose(x, [w])[1] for a in range(3, 11)) < 1


def test_weights_of_all_readers_count() -> None:
    x, first, second = statistics(spiked(numbers(50, C))), numbers(8, C), 10 * numbers(5, C, seed=1)
    together = Smooth().choose(x, [first, second])
    np.testing.assert_array_equal(together[0], Smooth().choose(x, [np.concatenate([first, second])])[0])
    assert together[1] < 1


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0])
def test_a_given_exponent_is_that_of_the_paper(alpha: float) -> None:
    g = graph("n = LayerNormalization (x, s, b) y = MatMul (n, w)", s=SCALE, b=BIAS, w=(C, 24))
    changed, _ = smoothed(g, f"{{alpha={alpha}}}", outliers=False)
    samples = [sample(g, seed, False) for seed in range(4)]
    part = graph("y = LayerNormalization (x, s, b)", s=SCALE, b=BIAS)
    largest = np.max([np.abs(backend("reference").run(part, s)["y"]).max((0, 1)) for s in samples], axis=0)
    (old, new) = (n.given(1).const.numpy() for h in (g, changed) for n in h.nodes if n.op == "LayerNormalization")  # type: ignore[union-attr]
    rows = np.abs(layers_of(g)[0].matrix()).max(axis=0)
    np.testing.assert_allclose(old / new, largest**alpha / rows ** (1 - alpha), rtol=1e-3)


def test_a_second_run_changes_nothing() -> None:
    changed, _ = smoothed(SITES["a normalization"][0], outliers=False)
    again, notes = smoothed(changed, outliers=False)
    assert str(again) == str(changed)
    assert not notes


def test_all_sites_of_a_block() -> None:
    """The division behind an attention goes into weights that were multiplied already."""
    body = f"""n = LayerNormalization (x, s, b) {QKV} t = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)
        o = MatMul (t, wo) r = Add (x, o) m = LayerNormalization (r, s1, b1) f = MatMul (m, w1) h = Add (f, b2)
        a = Gelu (h) d = MatMul (a, w2) y = Add (r, d)"""
    w1 = 0.2 * numbers(C, C, seed=7)
    g = graph(body, s=SCALE, b=BIAS, wq=weight(C, 1), wk=weight(C, 2), wv=spiked(weight(C, 3)), wo=weight(C, 4),
              s1=SCALE, b1=BIAS, w1=spiked(w1 / SCALE[:, None]), b2=BIAS, w2=weight(C, 5))  # fmt: skip
    changed, notes = smoothed(g, outliers=False)
    assert notes == {"smoothed in LayerNormalization": 2, "smoothed in MatMul": 1, "smoothed in a multiplication": 1}
    layers = [layer.node.result.name for layer in layers_of(g)]
    assert loss(g, layers, False) > 4 * loss(changed, layers, False)


# what keeps a division from being folded

MULTIPLIED = {
    "a scale that two normalizations share": graph(
        "z = LayerNormalization (x, s) n = LayerNormalization (z, s) y = MatMul (n, w)", s=SCALE, w=weight(24)
    ),
    "a scale that is an input": graph(
        "n = LayerNormalization (x, s) y = MatMul (n, w)", f"{X}, float[{C}] s", w=weight(24)
    ),
    "two dimensions that are normalized": graph(
        "n = LayerNormalization <axis = -2> (x, s) y = MatMul (n, w)", s=np.tile(SCALE, (7, 1)), w=weight(24)
    ),
    "a bias that is an input": graph(
        "m = MatMul (x, v) a = Add (m, b) y = MatMul (a, w)", f"{X}, float[{C}] b", v=SPIKED, w=weight(24)
    ),
    "a sum with another use": graph(
        "m = MatMul (x, v) a = Add (m, b) y = MatMul (a, w) z = Neg (m)", outputs="y, z", v=SPIKED, b=BIAS, w=weight(24)
    ),
    "a product of a weight that has another use": graph(
        "a = MatMul (x, v) y = MatMul (a, w) z = MatMul (x, v)", outputs="y, z", v=SPIKED, w=weight(24)
    ),
    "a Gemm with a transposed weight": graph(
        "a = Gemm <transB = 1> (x, v) y = MatMul (a, w)", f"float[9,{C}] x", v=SPIKED.T, w=weight(24)
    ),
    "a product with a vector": graph(
        "z = Mul (x, o) a = MatMul (z, v) y = MatMul (a, w)", f"float[9,{C},{C}] x",
        o=SCALE[:, None], v=(C,), w=weight(24),
    ),
    "keys that are the values": graph(
        "k = MatMul (x, v) t = Attention <q_num_heads = 4, kv_num_heads = 4> (x, k, k) y = MatMul (t, w)",
        v=SPIKED, w=weight(24),
    ),
    "heads that share values": graph(
        """k = MatMul (x, p) v = MatMul (x, u) t = Attention <q_num_heads = 4, kv_num_heads = 2> (x, k, v)
        y = MatMul (t, w)""",
        p=(C, C // 2), u=SPIKED[:, : C // 2], w=weight(24),
    ),
    "values from a cache": graph(
        """v = MatMul (x, u) t = Attention <q_num_heads = 4, kv_num_heads = 4> (x, x, v, , pk, pv) y = MatMul (t, w)""",
        f"{X}, float[2,4,5,8] pk, float[2,4,5,8] pv", u=SPIKED, w=weight(24),
    ),
    "another graph that reads it": graph(
        """n = LayerNormalization (x, s) z = If (c) <
          then_branch = t () => (float[2,7,24] p) { p = MatMul (n, w1) },
          else_branch = e () => (float[2,7,24] q) { q = MatMul (n, w2) }> y = MatMul (n, w)""",
        f"{X}, bool c", "y, z", s=SCALE, w=weight(24), w1=weight(24, 1), w2=weight(24, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MULTIPLIED)
def test_elsewhere_there_is_a_multiplication(case: str) -> None:
    g = MULTIPLIED[case]
    changed, notes = smoothed(g, "{only=[y]}", outliers=False)
    assert notes == {"smoothed in a multiplication": 1}
    assert operators(changed) == operators(g) + Counter(Mul=1)


def test_a_multiplication_must_pay() -> None:
    """Channels that differ little: good enough where it costs nothing."""
    scale = np.where(np.arange(C) % 4 == 0, 2.2, 1).astype(np.float32)
    body = "n = LayerNormalization (x, s) y = MatMul (n, w)"
    _, notes = smoothed(graph(body, s=scale, w=(C, 24)), outliers=False)
    assert notes == {"smoothed in LayerNormalization": 1}
    kept = graph(body + " z = Neg (n)", outputs="y, z", s=scale, w=(C, 24))
    changed, notes = smoothed(kept, outliers=False)
    assert not notes
    assert str(changed) == str(kept)


# what is left alone

LEFT = {
    "channels alike": graph(
        "e = Mul (x, o) n = RMSNormalization (e, s) y = MatMul (n, w)", "float[2,7,1] x",
        o=np.ones(C, np.float32), s=np.ones(C, np.float32), w=np.sign(numbers(C, 24)),
    ),
    "a shared weight": graph(
        "n = LayerNormalization (x, s) m = MatMul (n, w) y = MatMul (m, w)", s=SCALE, w=weight(C)
    ),
    "convolutions": graph("y = Conv (x, w)", "float[2,32,8] x", w=(4, C, 1)),
    "no layers": graph("y = LayerNormalization (x, s)", s=SCALE),
    "nothing but zeros": graph("n = Mul (x, z) y = MatMul (n, w)", z=np.zeros(1, np.float32), w=weight(24)),
    "a weight of zeros": graph(
        "n = LayerNormalization (x, s) y = MatMul (n, w)", s=SCALE, w=np.zeros((C, 24), np.float32)
    ),
    "a nested graph": graph(
        """y = If (c) <then_branch = t () => (float[2,7,24] p) { p = MatMul (x, w) },
          else_branch = e () => (float[2,7,24] q) { q = MatMul (x, v) }>""",
        f"{X}, bool c", w=weight(24), v=weight(24, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_gains_nothing_or_may_not_change_is_left_alone(case: str) -> None:
    changed, notes = smoothed(LEFT[case], outliers="nested" in case)
    assert not notes
    assert str(changed) == str(LEFT[case])


def test_channels_that_are_silent() -> None:
    """Some that are 0 for all samples, some that meet weights of 0."""
    scale, w = SCALE.copy(), weight(24)
    scale[[5, 6]], w[[6, 7]] = 0, 0
    g = graph("n = LayerNormalization (x, s) y = MatMul (n, w)", s=scale, w=w)
    changed, notes = smoothed(g, outliers=False)
    assert notes == {"smoothed in LayerNormalization": 1}
    assert loss(g, ["y"], False) > 8 * loss(changed, ["y"], False)


def test_half_precision() -> None:
    g = graph("n = LayerNormalization (x, s, b) y = MatMul (n, w)", s=SCALE, b=BIAS, w=weight(24))
    Pipeline.parse("convert-precision{keep_io=true}").run(g, Context(runner_factory=lambda: backend("reference")))
    assert {v.dtype.text for v in g.constants()} == {"float16"}
    changed, notes = smoothed(g, outliers=False, within=4e-3)
    assert notes == {"smoothed in LayerNormalization": 1}
    assert {v.dtype.text for v in changed.constants()} == {"float16"}


# options and errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{skip=[y]}", ["m"]),
        ("{only=[m]}", ["m"]),
        ("{only=[MatMul]}", ["m", "y"]),
        ("{only=[m, y], skip=[m]}", ["y"]),
    ],
)
def test_patterns(options: str, expected: list[str]) -> None:
    g = graph(
        "n = LayerNormalization (x, s) m = MatMul (n, w) a = LayerNormalization (m, s1) y = MatMul (a, w1)",
        s=SCALE, w=weight(C), s1=SCALE, w1=weight(24),
    )  # fmt: skip
    changed, _ = smoothed(g, options, outliers=False)
    before, after = ({x.name: x.matrix() for x in layers_of(h)} for h in (g, changed))
    assert [n for n in before if not np.array_equal(before[n], after[n])] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [("{only=[z]}", "no layer matches 'z'; the first of 1 layers are y"), ("{skip=[Conv]}", "no layer matches 'Conv'")],
)
def test_a_pattern_that_matches_nothing_is_an_error(options: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        smoothed(SITES["an input"][0], options)


def test_without_samples() -> None:
    g = clone_graph(SITES["an input"][0])
    before = str(g)
    with pytest.raises(PassError, match="smooth needs samples: give data"):
        Pipeline.parse("smooth").run(g, Context(runner_factory=lambda: backend("reference")))
    assert str(g) == before
