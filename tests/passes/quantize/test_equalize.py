"""``equalize``: values stay, ranges become alike, and what must not be scaled is not."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.backends import backend
from planish.ir import Graph, constant, edit
from planish.ir.clone import clone_graph
from planish.ir.quantization import fake_quantize, parse_format
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Lossy, Pipeline, Within
from planish.passes.quantize.equalize import Equalize

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
IMAGE = "float[2,3,8,8] x"


def model(inputs: str, body: str, output: str = "float[] y", seed: int = 0, **weights: tuple[int, ...]) -> Graph:
    """A graph whose weights are random, with channels of very different ranges."""
    rng = np.random.default_rng(seed)

    def initializer(name: str, shape: tuple[int, ...]) -> str:
        scales = 10.0 ** rng.uniform(-1, 1, shape[:2] if len(shape) > 1 else shape)
        array = rng.standard_normal(shape) * scales.reshape(*scales.shape, *(1,) * (len(shape) - scales.ndim))
        dims = ",".join(map(str, shape))
        return f"float[{dims}] {name} = {{{', '.join(map(repr, array.astype(np.float32).ravel().tolist()))}}}"

    constants = ", ".join(initializer(*item) for item in weights.items())
    return parse(f"g ({inputs}) => ({output}) <{constants}> {{ {body} }}")


def sample(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs}  # type: ignore[arg-type]


def run(graph: Graph, options: str = "", ctx: Context | None = None) -> tuple[Graph, Counter[str]]:
    """A changed copy of ``graph``, and what the pass notes."""
    changed, ctx = clone_graph(graph), Context() if ctx is None else ctx
    Pipeline.parse("equalize" + options).run(changed, ctx)
    assert not ctx.results[0].problem
    verify(changed)
    return changed, ctx.results[0].fired


def error(graph: Graph, changed: Graph, engine: str = "reference") -> float:
    """The largest difference of any output relative to its range."""
    inputs = sample(graph)
    before, after = backend(engine).run(graph, inputs), backend(engine).run(changed, inputs)
    return max(float(np.abs(after[n] - y).max() / np.abs(y).max()) for n, y in before.items())


def equalized(graph: Graph, pairs: int, engine: str = "reference") -> Graph:
    """A copy with that many pairs of layers equalized, which computes the same."""
    changed, notes = run(graph)
    assert notes["equalized pairs"] == pairs, notes
    assert error(graph, changed, engine=engine) < 1e-5
    return changed


def unchanged(graph: Graph, reason: str) -> None:
    changed, notes = run(graph)
    assert str(changed) == str(graph)
    assert reason in [n.removeprefix("not equalized: ") for n in notes], notes


def weights(graph: Graph) -> list[np.ndarray]:
    return [n.given(1).const.numpy() for n in graph.nodes if n.op in LAYERS]  # type: ignore[union-attr]


def ranges(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(weight).max(tuple(i for i in range(weight.ndim) if i != axis))


def assert_alike(first: np.ndarray, second: np.ndarray) -> None:
    np.testing.assert_allclose(first, second, rtol=5e-3)


# what is equalized


def test_ranges_become_alike() -> None:
    graph = model(
        IMAGE, "a = Conv (x, w, b) r = Relu (a) y = Conv (r, v, c)", w=(4, 3, 3, 3), b=(4,), v=(5, 4, 3, 3), c=(5,)
    )
    w, v = weights(equalized(graph, 1))
    old_w, old_v = weights(graph)
    assert_alike(ranges(w, 0), ranges(v, 1))
    assert_alike(ranges(w, 0), np.sqrt(ranges(old_w, 0) * ranges(old_v, 1)))


def test_a_second_run_changes_nothing() -> None:
    graph = equalized(model(IMAGE, "a = Conv (x, w) r = Relu (a) y = Conv (r, v)", w=(4, 3, 3, 3), v=(5, 4, 3, 3)), 1)
    again, notes = run(graph)
    assert str(again) == str(graph)
    assert not notes["equalized pairs"]


def test_a_depthwise_convolution_is_equalized_with_both_neighbours() -> None:
    graph = model(
        IMAGE,
        """a = Conv (x, w, b) r = Relu (a) d = Conv <group = 6, pads = [1, 1, 1, 1]> (r, v, c)
        s = Relu (d) y = Conv (s, u)""",
        w=(6, 3, 1, 1), b=(6,), v=(6, 1, 3, 3), c=(6,), u=(4, 6, 1, 1),
    )  # fmt: skip
    w, v, u = weights(equalized(graph, 2))
    assert_alike(ranges(w, 0), ranges(v, 0))
    assert_alike(ranges(v, 0), ranges(u, 1))


def test_flattened_channels_are_blocks_of_columns() -> None:
    graph = model(
        IMAGE,
        "a = Conv (x, w, b) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) f = Flatten (p) y = Gemm (f, v)",
        w=(4, 3, 3, 3), b=(4,), v=(36, 5),
    )  # fmt: skip
    w, v = weights(equalized(graph, 1))
    assert_alike(ranges(w, 0), ranges(v.reshape(4, 9, 5), 0))


def test_channels_that_are_last_are_spread_over_the_columns() -> None:
    graph = model(
        IMAGE,
        "a = Conv (x, w) t = Transpose <perm = [0, 2, 3, 1]> (a) f = Flatten (t) y = Gemm (f, v)",
        w=(4, 3, 7, 7), v=(16, 5),
    )  # fmt: skip
    w, v = weights(equalized(graph, 1))
    assert_alike(ranges(w, 0), ranges(v.reshape(4, 4, 5), 1))


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_with_factors(trans_b: int) -> None:
    shapes = {"w": (3, 6), "b": (1, 6), "v": (6, 5), "c": (5,)}
    if trans_b:
        shapes |= {"w": (6, 3), "v": (5, 6)}
    attrs = f"alpha = 0.5, beta = 2.0, transB = {trans_b}"
    body = f"a = Gemm <{attrs}, transA = 1> (x, w, b) r = Relu (a) y = Gemm <{attrs}> (r, v, c)"
    w, v = weights(equalized(model("float[3,4] x", body, **shapes), 1))
    assert_alike(ranges(w, 1 - trans_b), ranges(v, trans_b))


def test_the_channels_of_a_transposed_operand() -> None:
    body = "a = Gemm (x, w) t = Transpose (a) y = Gemm <transA = 1> (t, v)"
    equalized(model("float[4,3] x", body, w=(3, 6), v=(6, 5)), 1)
    graph = model("float[6,3] x", "a = Gemm (x, w) y = Gemm <transA = 1> (a, v)", w=(3, 6), v=(6, 5))
    unchanged(graph, "the Gemm behind it sums over something else")


def test_a_scalar_addend_becomes_a_row() -> None:
    graph = model("float[4,3] x", "a = Gemm (x, w, b) r = Relu (a) y = MatMul (r, v)", w=(3, 6), b=(1,), v=(6, 5))
    equalized(graph, 1)


def test_matmul_with_a_bias() -> None:
    body = "a = MatMul (x, w) d = Add (b, a) r = Relu (d) e = Sub (r, c) y = MatMul (e, v)"
    w, v = weights(equalized(model("float[2,4,3] x", body, w=(3, 6), b=(6,), c=(4, 1), v=(6, 5)), 1))
    assert_alike(ranges(w, 1), ranges(v, 0))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_groups_and_transposed_convolutions(op: str, groups: int) -> None:
    """In ONNX Runtime: onnx.reference slices the weight of a grouped ConvTranspose along the wrong dimension."""
    shape = (6, 4 // groups, 3, 3) if op == "ConvTranspose" else (4, 6 // groups, 3, 3)
    body = (
        f"a = Conv (x, w, b) r = Relu (a) d = {op} <group = {groups}> (r, v, c) s = Relu (d) y = ConvTranspose (s, u)"
    )
    graph = model(IMAGE, body, w=(6, 3, 3, 3), b=(6,), v=shape, c=(4,), u=(4, 2, 2, 2))
    w, v, u = weights(equalized(graph, 2, "onnxruntime"))
    view = v.reshape(groups, shape[0] // groups, shape[1], 9)
    rows, columns = (1, 2) if op == "Conv" else (2, 1)
    per_row = np.abs(view).max((columns, 3)).ravel()
    assert_alike(ranges(w, 0), np.abs(view).max((rows, 3)).ravel())
    assert_alike(per_row, ranges(u, 0))


PATHS = {
    "LeakyRelu": "m = LeakyRelu <alpha = 0.1> (a)",
    "PRelu": "s = Constant <value = float[4,1,1] {0.1, 0.0, 2.0, 0.3}> () m = PRelu (a, s)",
    "Dropout": "m = Dropout (a)",
    "pools": """p = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (a)
        m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)""",
    "ReduceMean": "i = Constant <value_ints = [2, -1]> () m = ReduceMean (a, i)",
    "GlobalMaxPool": "m = GlobalMaxPool (a)",
    "Pad": "i = Constant <value_ints = [0, 0, 1, 2, 0, 0, 1, 0]> () m = Pad (a, i)",
    "Pad of axes": """i = Constant <value_ints = [1, 1, 1, 1]> () j = Constant <value_ints = [2, -1]> ()
        m = Pad <mode = "reflect"> (a, i, , j)""",
    "Resize": """i = Constant <value_floats = [1.0, 1.0, 2.0, 1.5]> ()
        m = Resize <mode = "linear"> (a, , i)""",
    "Mul, Div and Sub": """s = Constant <value = float[4,1,1] {0.1, 3.0, 2.0, 0.3}> ()
        m1 = Mul (s, a) m2 = Div (m1, s) m3 = Mul (m2, s) m = Sub (s, m3)""",
    "Unsqueeze": """i = Constant <value_ints = [0]> () u = Unsqueeze (a, i) r = Relu (u)
        m = Squeeze (r, i)""",
}


@pytest.mark.parametrize("path", PATHS)
def test_what_channels_go_through(path: str) -> None:
    graph = model(IMAGE, f"a = Conv (x, w, b) {PATHS[path]} y = Conv (m, v)", w=(4, 3, 3, 3), b=(4,), v=(5, 4, 1, 1))
    Pipeline.parse("fold-constants").run(graph, Context())
    w, v = weights(equalized(graph, 1))
    assert_alike(ranges(w, 0), ranges(v, 1))


def test_reduced_dimensions_may_go() -> None:
    graph = model(
        IMAGE,
        "i = Constant <value_ints = [2, 3]> () a = Conv (x, w) m = ReduceMean <keepdims = 0> (a, i) y = Gemm (m, v)",
        w=(4, 3, 3, 3), v=(4, 5),
    )  # fmt: skip
    Pipeline.parse("fold-constants").run(graph, Context())
    equalized(graph, 1)


def test_all_layers_behind_count() -> None:
    graph = model(
        "float[4,3] x",
        """a = Gemm (x, w, b) r = Relu (a) q = MatMul (r, v) k = MatMul (r, u) l = Identity (a) z = Gemm (l, t)
        s = Add (q, k) y = Add (s, z)""",
        w=(3, 6), b=(6,), v=(6, 5), u=(6, 5), t=(6, 5),
    )  # fmt: skip
    w, *behind = weights(equalized(graph, 3))
    assert_alike(ranges(w, 1), np.max([ranges(v, 0) for v in behind], axis=0))


def test_channels_without_weights_stay() -> None:
    graph = model(IMAGE, "a = Conv (x, w, b) y = Conv (a, v)", w=(4, 3, 3, 3), b=(4,), v=(5, 4, 3, 3))
    for node, rows in zip(graph.nodes, (np.s_[1], np.s_[:, 2]), strict=True):
        array = node.given(1).const.numpy().copy()  # type: ignore[union-attr]
        array[rows] = 0
        edit.set_operand(node, 1, constant(array))
    w, v = weights(equalized(graph, 1))
    old_w, old_v = weights(graph)
    np.testing.assert_array_equal(w[1:3], old_w[1:3])
    np.testing.assert_array_equal(v[:, 1:3], old_v[:, 1:3])
    assert_alike(ranges(w, 0)[[0, 3]], ranges(v, 1)[[0, 3]])


def test_weights_that_are_not_finite_stay() -> None:
    graph = model(IMAGE, "a = Conv (x, w) y = Conv (a, v)", w=(4, 3, 3, 3), v=(5, 4, 3, 3))
    edit.set_operand(next(graph.nodes), 1, constant(np.full((4, 3, 3, 3), np.inf, np.float32)))
    unchanged(graph, "a weight is not finite")


def test_large_weights_are_computed_later() -> None:
    body = "a = MatMul (x, w) r = Relu (a) y = MatMul (r, v)"
    changed = equalized(model("float[1,520] x", body, w=(520, 512), v=(512, 2)), 1)
    first, second = (n.given(1).const for n in changed.nodes if n.op == "MatMul")
    assert first is not None and not first.is_cheap
    assert second is not None and second.is_cheap


def test_nested_graphs_are_looked_at() -> None:
    graph = parse("""
        g (bool c, float[2,2] x) => (float[2,2] y) <float[2,2] w = {1.0, 10.0, 2.0, -30.0},
          float[2,2] v = {1.0, 2.0, 3.0, 4.0}> {
          y = If (c) <then_branch = t () => (float[2,2] p) { a = MatMul (x, w) r = Relu (a) p = MatMul (r, v) },
            else_branch = e () => (float[2,2] q) { q = Identity (x) }> }""")
    changed, notes = run(graph)
    assert notes["equalized pairs"] == 1
    inputs = {"c": np.array(True), "x": np.eye(2, dtype=np.float32)}
    before, after = (backend("reference").run(g, inputs)["y"] for g in (graph, changed))
    np.testing.assert_allclose(after, before, rtol=1e-5)


# what is not


def two(middle: str, output: str = "float[] y") -> Graph:
    text = f"a = Conv (x, w) {middle} y = Conv (m, v)"
    graph = model(IMAGE, text, output, w=(4, 3, 3, 3), v=(5, 4, 3, 3))
    Pipeline.parse("fold-constants").run(graph, Context())
    return graph


REFUSED = {
    "Add has two operands that are computed": "s = Relu (a) m = Add (a, s)",
    "the result goes through Sigmoid": "m = Sigmoid (a)",
    "a slope is negative or computed": "s = Constant <value = float[4,1,1] {0.1, -0.1, 2.0, 0.3}> () m = PRelu (a, s)",
    "Clip saturates": "z = Constant <value = float {0.0}> () s = Constant <value = float {6.0}> () m = Clip (a, z, s)",
    "padded with another number than 0": """i = Constant <value_ints = [0, 0, 1, 2, 0, 0, 1, 0]> ()
        z = Constant <value = float {1.0}> () m = Pad (a, i, z)""",
    "channels are padded": "i = Constant <value_ints = [0, 1, 0, 0, 0, -1, 0, 0]> () m = Pad (a, i)",
    "ReduceMax runs over the channels": """i = Constant <value_ints = [1]> () s = ReduceMax (a, i)
        j = Constant <value_ints = [1, 4, 1, 1]> () m = Expand (s, j)""",
    "a reshape splits the channels": """i = Constant <value_ints = [2, 2, 2, 6, 6]> () b = Reshape (a, i)
        t = Transpose <perm = [0, 2, 1, 3, 4]> (b) j = Constant <value_ints = [2, 4, 6, 6]> () m = Reshape (t, j)""",
    "the second result of MaxPool is used": """p, i = MaxPool <kernel_shape = [2, 2]> (a)
        f = Cast <to = 1> (i) m = Add (f, p)""",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_channels_do_not_go_through(reason: str) -> None:
    unchanged(two(REFUSED[reason]), reason)


def test_other_dimensions_are_not_scaled() -> None:
    body = "a = Conv (x, w) t = Transpose <perm = [0, 2, 1, 3]> (a) y = Conv (t, v)"
    graph = model("float[2,3,4,8] x", body, w=(4, 3, 1, 3), v=(5, 4, 1, 3))
    unchanged(graph, "the Conv behind it sums over something else")


def test_an_output_is_not_scaled() -> None:
    unchanged(two("m = Relu (a)", "float[] m, float[] y"), "the result is an output")


def test_a_residual_is_not_scaled_but_what_is_inside() -> None:
    graph = model(
        "float[2,4,8,8] x",
        """a = Conv (x, w) b = Conv (a, v) r = Relu (b) c = Conv (r, u) s = Add (a, c) y = Conv (s, t)""",
        w=(4, 4, 1, 1), v=(6, 4, 1, 1), u=(4, 6, 1, 1), t=(2, 4, 1, 1),
    )  # fmt: skip
    changed = equalized(graph, 1)
    for i, same in enumerate((True, False, False, True)):
        assert np.array_equal(weights(changed)[i], weights(graph)[i]) is same


def test_shared_weights_are_not_touched() -> None:
    body = "a = MatMul (x, w) r = Relu (a) y = MatMul (r, w)"
    unchanged(model("float[2,4] x", body, w=(4, 4)), "the weight is used by several nodes")
    body = "a = MatMul (x, v) r = Relu (a) q = MatMul (r, w) y = MatMul (q, w)"
    unchanged(model("float[2,4] x", body, w=(4, 4), v=(4, 4)), "a MatMul behind it cannot be scaled")


def test_a_shared_bias_is_copied() -> None:
    body = "a = Conv (x, w, b) r = Relu (a) y = Conv (r, v, b)"
    equalized(model(IMAGE, body, w=(4, 3, 3, 3), b=(4,), v=(4, 4, 3, 3)), 1)


def test_what_a_nested_graph_uses_is_not_scaled() -> None:
    graph = parse("""
        g (bool c, float[2,2] x) => (float[2,2] y, float[2,2] z) <float[2,2] w = {1.0, 10.0, 2.0, -30.0},
          float[2,2] v = {1.0, 2.0, 3.0, 4.0}> {
          a = MatMul (x, w) z = MatMul (a, v)
          y = If (c) <then_branch = t () => (float[2,2] p) { p = Relu (a) },
            else_branch = e () => (float[2,2] q) { q = Identity (x) }> }""")
    unchanged(graph, "a nested graph uses the result")


# options


def clipped() -> Graph:
    return two("z = Constant <value = float {0.0}> () s = Constant <value = float {1e6}> () m = Clip (a, z, s)")


def test_a_clip_may_become_a_relu() -> None:
    graph = clipped()
    changed, notes = run(graph, "{replace_clip=true}")
    assert [n.op for n in changed.nodes] == ["Conv", "Relu", "Conv"]
    assert notes["equalized pairs"] == 1
    assert error(graph, changed) < 1e-5  # here nothing reaches the upper bound


def test_options_are_lossy() -> None:
    assert isinstance(Equalize().numerics, Within)
    assert isinstance(Equalize(replace_clip=True).numerics, Lossy)
    assert isinstance(Equalize(absorb=True).numerics, Lossy)
    assert Pipeline.parse("equalize{absorb=true}").passes == (Equalize(absorb=True),)


def high(body: str, inputs: str = IMAGE, **shapes: tuple[int, ...]) -> tuple[Graph, Context]:
    """A graph whose constants called ``b`` are high, and a context with samples."""
    graph = model(inputs, body, **shapes)
    for node in graph.nodes:
        for i, operand in enumerate(node.operands):
            if operand is not None and operand.name == "b":
                edit.set_operand(node, i, constant(np.full(operand.shape, 1e3, np.float32), name="b"))
    return graph, Context(lambda: backend("reference"), samples=lambda: [sample(graph, seed) for seed in range(4)])


ABSORBED = {
    "Conv": ("a = Conv (x, w, b) r = Relu (a) y = Conv (r, v)", {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4, 3, 3)}),
    "groups": (
        "a = Conv (x, w, b) p = MaxPool <kernel_shape = [2, 2]> (a) r = Relu (p) y = Conv <group = 2> (r, v, c)",
        {"w": (4, 3, 3, 3), "b": (4,), "v": (6, 2, 3, 3), "c": (6,)},
    ),
    "Gemm": (
        "a = Conv (x, w, b) r = Relu (a) f = Flatten (r) y = Gemm <alpha = 0.5, transB = 1> (f, v)",
        {"w": (4, 3, 7, 7), "b": (4,), "v": (5, 16)},
    ),
    "MatMul": (
        "f = Flatten (x) a = MatMul (f, w) d = Add (a, b) r = Relu (d) m = MatMul (r, v) y = Sigmoid (m)",
        {"w": (192, 4), "b": (4,), "v": (4, 5)},
    ),
}


@pytest.mark.parametrize("case", ABSORBED)
def test_high_biases_are_absorbed(case: str) -> None:
    body, shapes = ABSORBED[case]
    graph, ctx = high(body, **shapes)
    changed, notes = run(graph, "{absorb=true}", ctx)
    assert notes["absorbed biases"] == 1
    assert error(graph, changed) < 1e-4

    def largest(graph: Graph) -> float:
        graph = clone_graph(graph)
        relu = next(n for n in graph.nodes if n.op == "Relu")
        graph.set_outputs([relu.result])
        (array,) = backend("reference").run(graph, sample(graph)).values()
        return float(array.max())

    assert largest(changed) < largest(run(graph)[0]) / 2


def test_what_is_not_absorbed() -> None:
    def notes(body: str, **more: tuple[int, ...]) -> list[str]:
        graph, ctx = high(body, **{"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4, 3, 3)} | more)
        changed, found = run(graph, "{absorb=true}", ctx)
        assert error(graph, changed) < 1e-5
        return [n.removeprefix("not absorbed: ") for n in found if n.startswith("not absorbed")]

    padded = "a = Conv (x, w, b) r = Relu (a) y = Conv <pads = [1, 1, 1, 1]> (r, v)"
    assert notes(padded) == ["the Conv behind it sees fewer numbers at borders"]
    assert notes("a = Conv (x, w, b) r = LeakyRelu (a) y = Conv (r, v)") == ["the result goes through LeakyRelu"]
    assert notes("a = Conv (x, w, b) y = Conv (a, v)") == ["there is not one Relu between the layers"]
    gemm = "a = Conv (x, w, b) r = Relu (a) f = Flatten (r) y = Gemm <beta = 0.5> (f, v, c)"
    assert notes(gemm, w=(4, 3, 7, 7), v=(16, 5), c=(5,)) == ["the addend of Gemm is scaled"]


def test_low_biases_stay() -> None:
    body, shapes = ABSORBED["Conv"]
    graph, (_, ctx) = model(IMAGE, body, **shapes), high(body, **shapes)
    changed, notes = run(graph, "{absorb=true}", ctx)
    assert not notes["absorbed biases"]
    assert error(graph, changed) < 1e-5


def test_without_samples_nothing_is_absorbed() -> None:
    body, shapes = ABSORBED["Conv"]
    graph, _ = high(body, **shapes)
    changed, notes = run(graph, "{absorb=true}")
    assert notes["not absorbed: no samples to run"] == 1
    assert error(graph, changed) < 1e-5


# what it is good for


def rounded(graph: Graph) -> Graph:
    """A copy whose weights are rounded to int8 with one scale per tensor."""
    copy, form = clone_graph(graph), parse_format("int8")
    for node in copy.nodes:
        if node.op in LAYERS:
            w = node.given(1).const.numpy()  # type: ignore[union-attr]
            scale = np.asarray(np.abs(w).max() / form.high)
            edit.set_operand(node, 1, constant(fake_quantize(w, scale, None, form)))
    return copy


def noise(graph: Graph, changed: Graph) -> float:
    """The root mean square difference of the output relative to that of the output."""
    inputs = sample(graph)
    before, after = (backend("reference").run(g, inputs)["y"] for g in (graph, changed))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 16))
def test_injected_imbalance_is_undone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths = (3, 16, 16, 8)
    plain = [rng.standard_normal((n, m, 3, 3)) / np.sqrt(9 * m) for m, n in pairwise(widths)]
    skewed = [w.copy() for w in plain]
    biases = [rng.standard_normal(n) * 0.1 for n in widths[1:]]
    factors = [10 ** rng.uniform(-2, 2, n) for n in widths[1:-1]]
    for i, t in enumerate(factors):
        skewed[i] *= t[:, None, None, None]
        skewed[i + 1] /= t[:, None, None]

    def network(kernels: list[np.ndarray], offsets: list[np.ndarray]) -> Graph:
        graph = model(
            IMAGE,
            "a = Conv (x, w, b) p = Relu (a) d = Conv (p, v, c) q = Relu (d) y = Conv (q, u, e)",
            w=(16, 3, 3, 3), b=(16,), v=(16, 16, 3, 3), c=(16,), u=(8, 16, 3, 3), e=(8,),
        )  # fmt: skip
        layers = [n for n in graph.nodes if n.op == "Conv"]
        for node, kernel, offset in zip(layers, kernels, offsets, strict=True):
            edit.set_operand(node, 1, constant(kernel.astype(np.float32)))
            edit.set_operand(node, 2, constant(offset.astype(np.float32)))
        return graph

    base = network(plain, biases)
    injected = network(skewed, [b * t for b, t in zip(biases, [*factors, np.ones(8)], strict=True)])
    assert error(base, injected) < 1e-5
    usual = noise(base, rounded(base))
    assert noise(base, rounded(equalized(injected, 2))) < 2 * usual
    assert noise(base, rounded(injected)) > 10 * usual
