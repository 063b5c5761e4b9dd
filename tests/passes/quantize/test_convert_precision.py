"""Half precision: where casts stand, what stays in float32, and what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from planish.backends import backend
from planish.frontends.onnx import load
from planish.ir import DType, Graph, GraphOutput, LazyTensor, Node, Type, Value, constant, op, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.edit import Transaction, insert_floating
from planish.ir.equal import difference
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError
from planish.passes.quantize import convert_precision
from planish.passes.quantize.convert_precision import ConvertPrecision
from planish.passes.quantize.overflow import Representable
from planish.passes.quantize.precision import half_form
from planish.testing import assert_rewrites, random_graph
from planish.testing.evaluate import EvaluationError, evaluate_graph
from planish.testing.sketch import TypeContradiction, check_type

Arrays = Mapping[str, Any]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def converted(before: str | Graph, pipeline: str = "convert-precision", samples: Any = None) -> tuple[Graph, Counter]:
    """What comes out of ``before``, which verifies and is not changed by a second run; and what the pass noted."""
    graph = parse(before) if isinstance(before, str) else clone_graph(before)
    make: Callable[[], Any] | None = None if samples is None else lambda: samples
    ctx = Context(runner_factory=lambda: backend("onnxruntime"), samples=make)
    for _ in range(2):
        Pipeline.parse(pipeline).run(graph, ctx)
        verify(graph)
    first, second = ctx.results
    assert not first.problem
    assert not second.edits
    return graph, first.fired


def compare(before: str, inputs: Arrays, tolerance: float = 1e-2, *, on: str = "onnxruntime", **options: Any) -> Graph:
    """What comes out of ``before``, which computes the same within ``tolerance`` of the range of each output."""
    graph, notes = converted(before, **options)
    assert notes["converted"]
    expected = backend(on).run(parse(before), inputs)
    feed = {v.name: np.asarray(inputs[v.name]).astype(v.dtype.numpy) for v in graph.inputs}
    for name, array in backend(on).run(graph, feed).items():
        assert np.all(np.isfinite(array.astype(np.float32))), name
        error = np.abs(array.astype(np.float32) - expected[name]).max()
        assert error <= tolerance * np.abs(expected[name]).max(), name
    return graph


def weight(*shape: int) -> Value:
    return constant(random(*shape), name="weight")


def graph_of(body: Callable[..., list[Value]], **inputs: Type) -> Graph:
    """The graph of what ``body`` makes of inputs of these types."""
    graph = Graph("g")
    outputs = body(*[graph.add_input(type_, name) for name, type_ in inputs.items()])
    insert_floating(outputs, graph.ret)
    graph.set_outputs(outputs, [GraphOutput(f"y{i}", v.type) for i, v in enumerate(outputs)])
    return graph


def operators(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.walk())


def named(graph: Graph, name: str) -> Value:
    return next(r for n in graph.walk() for r in n.results if r.name == name)


# borders


def test_casts_stand_at_the_borders() -> None:
    assert_rewrites(
        """g (float[B,2] x, float[2,2] w) => (float[B,2] y) <float[2] b = {1, 2}> {
             m = MatMul (x, w) a = Add (m, b) s = Softmax (a) n = MatMul (s, w) y = Relu (n) }""",
        "convert-precision",
        """g (float[B,2] x, float[2,2] w) => (float[B,2] y) <float16[2] b = {15360, 16384}> {
             hx = Cast <to = 10> (x) hw = Cast <to = 10> (w)
             m = MatMul (hx, hw) a = Add (m, b)
             fa = Cast <to = 1> (a) s = Softmax (fa) hs = Cast <to = 10> (s)
             n = MatMul (hs, hw) r = Relu (n) y = Cast <to = 1> (r) }""",
    )


def test_a_value_is_cast_once_in_each_direction() -> None:
    graph, _ = converted(
        """g (float[4,4] x) => (float[4,4] y, float[4,4] z, float[4,4] m) {
             m = MatMul (x, x) s = Softmax (m) t = Exp (m)
             a = MatMul (s, t) b = MatMul (t, s) y = Add (a, b) z = Sqrt (y) }"""
    )
    assert operators(graph)["Cast"] == 5  # x, s and t down, m and y up


def test_the_interface_may_be_half_precision() -> None:
    assert_rewrites(
        """g (float[B,2] x, float[2,2] w, int64[B] i) => (float[B,2] y, float[B,2] z, int64[B] i) {
             y = MatMul (x, w) z = Exp (x) }""",
        "convert-precision{keep-io=false}",
        """g (float16[B,2] x, float16[2,2] w, int64[B] i) => (float16[B,2] y, float16[B,2] z, int64[B] i) {
             y = MatMul (x, w) f = Cast <to = 1> (x) e = Exp (f) z = Cast <to = 10> (e) }""",
    )


def test_taking_back_restores_the_interface() -> None:
    before = parse("g (float[2,2] x) => (float[2,2] y) { y = MatMul (x, x) }")
    graph = clone_graph(before)
    with Transaction(graph) as journal:
        ConvertPrecision(keep_io=False).run(graph, Context())
        assert graph.outputs[0].dtype is DType.FLOAT16
        journal.rollback()
    verify(graph)
    assert difference(graph, before) is None
    assert "(float[2,2] x) => (float[2,2] y)" in str(graph)


def test_inputs_that_do_not_fit_keep_their_type() -> None:
    text = "g (float[2,2] x, float[2,2] z) => (float[2,2] y) { a = MatMul (z, z) m = MatMul (x, x) y = Add (a, m) }"
    graph, _ = converted(
        text, "convert-precision{keep-io=false}", [{"x": np.full((2, 2), 1e5, "f4"), "z": random(2, 2)}]
    )
    assert [v.dtype for v in (*graph.inputs, *graph.outputs)] == [DType.FLOAT, DType.FLOAT16, DType.FLOAT]


def test_nodes_keep_what_they_are_called() -> None:
    graph = parse("g (float[2,2] x) => (float[2,2] y) { y = MatMul (x, x) }")
    (node,) = graph.nodes
    node.name, node.doc, node.metadata, node.rules = "layer", "a layer", {"key": "value"}, ("rule",)
    after, _ = converted(graph)
    found = next(n for n in after.nodes if n.op == "MatMul")
    assert (found.name, found.doc, found.metadata, found.rules) == ("layer", "a layer", {"key": "value"}, ("rule",))
    cast = after.outputs[0].producer
    assert cast is not None
    assert cast.origin.rules == ("convert-precision",)


# what is converted


def test_islands_without_a_matrix_product_stay() -> None:
    graph, notes = converted(
        """g (float[4,4] x) => (float[4,4] y) {
             e = Exp (x) a = Add (e, x) b = Relu (a) s = Softmax (b) y = MatMul (s, s) }"""
    )
    assert named(graph, "b").dtype is DType.FLOAT
    assert notes == {
        "converted": 1,
        "kept in float32": 4,
        "kept: sensitive to rounding": 2,
        "kept: no matrix product among its neighbours": 2,
    }


def test_a_lookup_in_a_large_table_pays() -> None:
    table = weight(1024, 512)
    graph = graph_of(lambda i: [op.Gather(table, i)], i=tensor_type(DType.INT64, 3))
    after, _ = converted(graph)
    assert [c.dtype for c in after.constants()] == [DType.FLOAT16]


NORM = """g (float[B,8] x, float[8,8] w) => (float[B,8] y) <
    int64[1] last = {-1}, float two = {2}, float eps = {1e-12}> {
    h = MatMul (x, w) mean = ReduceMean (h, last) d = Sub (h, mean) sq = Pow (d, two) var = ReduceMean (sq, last)
    safe = Add (var, eps) std = Sqrt (safe) n = Div (d, std) y = MatMul (n, w) }"""


def test_a_normalization_in_steps_stays() -> None:
    graph = compare(NORM, {"x": 50 * random(4, 8), "w": random(8, 8)})
    for name in ("mean", "sq", "var", "safe", "std"):
        assert named(graph, name).dtype is DType.FLOAT, name


def test_normalizations_that_compute_in_float_inside_follow() -> None:
    assert_rewrites(
        """g (float[B,2] x, float[2,2] w) => (float[B,2] y, float[B,1] mean) <float[2] s = {1, 2}> {
             m = MatMul (x, w) y, mean, d = LayerNormalization (m, s) }""",
        "convert-precision",
        """g (float[B,2] x, float[2,2] w) => (float[B,2] y, float[B,1] mean) <float16[2] s = {15360, 16384}> {
             hx = Cast <to = 10> (x) hw = Cast <to = 10> (w) m = MatMul (hx, hw)
             n, mean, d = LayerNormalization (m, s) y = Cast <to = 1> (n) }""",
    )
    graph, _ = converted(
        """g (float[B,2] x, float[2,2] w, float[2] s) => (float[B,2] y) {
             m = MatMul (x, w) y = RMSNormalization <stash_type = 10> (m, s) }"""
    )
    assert next(n for n in graph.nodes if n.op == "RMSNormalization").attrs["stash_type"] == 1


ATTENTION = """g (float[1,4,8] x, bool[4,4] keep) => (float[1,4,8] y) <
    float zero = {0}, float never = {-3.4028235e38}> {
    mask = Where (keep, zero, never) y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x, mask) }"""


def test_attention_has_its_softmax_in_float_and_its_mask_clipped() -> None:
    keep = np.tril(np.ones((4, 4), bool))
    for on in ("onnxruntime", "reference"):
        graph = compare(ATTENTION, {"x": random(1, 4, 8), "keep": keep}, on=on)
        assert operators(graph) == {"Where": 1, "Clip": 1, "Cast": 3, "Attention": 1}
        attention = next(n for n in graph.nodes if n.op == "Attention")
        assert attention.attrs["softmax_precision"] == 1
        assert {o.dtype for o in attention.operands if o is not None} == {DType.FLOAT16}
        assert named(graph, "mask").dtype is DType.FLOAT


def test_a_row_that_is_masked_whole_stays_finite() -> None:
    compare(ATTENTION, {"x": random(1, 4, 8), "keep": np.zeros((4, 4), bool)}, on="reference")


def test_angles_are_computed_from_positions_in_float() -> None:
    text = """g (int64[1,1,S] p, float[1,2,S,4] x, float[4,4] w) => (float[1,2,S,4] y) <float[1,2,1] f = {1, 0.01}> {
        i = Cast <to = 1> (p) a = MatMul (f, i) t = Transpose <perm = [0, 2, 1]> (a) c = Concat <axis = -1> (t, t)
        cos = Cos (c) q = MatMul (x, w) y = Mul (q, cos) }"""
    graph = compare(text, {"p": np.arange(4000, 4005).reshape(1, 1, 5), "x": random(1, 2, 5, 4), "w": random(4, 4)})
    assert named(graph, "a").dtype is named(graph, "c").dtype is DType.FLOAT


def test_images_of_integers_are_data() -> None:
    graph, notes = converted(
        """g (uint8[1,3,8,8] x, float[2,3,3,3] w) => (float[1,2,6,6] y) <float s = {0.01}> {
             f = Cast <to = 1> (x) n = Mul (f, s) y = Conv (n, w) }"""
    )
    assert notes["converted"] == 2
    assert named(graph, "n").producer.operands[0].producer.operands[0] is graph.inputs[0]  # the cast is the only one


# range


def test_what_would_overflow_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[4,4] x, float[4,4] w) => (float[4,4] y) <float up = {1e6}, float down = {1e-6}> {
        big = Mul (x, up) m = MatMul (big, w) small = Mul (m, down) t = Tanh (small) n = MatMul (t, w) y = Neg (n) }"""
    inputs = {"x": random(4, 4), "w": random(4, 4, seed=1)}
    graph = compare(text, inputs)
    assert named(graph, "m").dtype is named(graph, "small").dtype is DType.FLOAT
    assert named(graph, "n").dtype is DType.FLOAT16
    monkeypatch.setattr(Representable, "overflows", lambda self, value: False)
    naive = backend("reference").run(converted(text)[0], inputs)["y"]
    assert not np.all(np.isfinite(naive))


def test_samples_tell_what_would_overflow() -> None:
    text = """g (float[4,4] x, float[4,4] w) => (float[4,4] y) {
        m = MatMul (x, w) sq = Mul (m, m) t = MatMul (sq, w) s = Softmax (t) y = MatMul (s, w) }"""
    inputs = {"x": 300 * random(4, 4), "w": random(4, 4, seed=1)}
    assert converted(text)[1]["kept: out of range"] == 0
    graph = compare(text, inputs, samples=[inputs, {"x": random(4, 4), "w": random(4, 4)}])
    assert named(graph, "m").dtype is DType.FLOAT16
    assert named(graph, "sq").dtype is named(graph, "t").dtype is DType.FLOAT


def test_infinity_is_no_overflow() -> None:
    text = """g (float[4,4] x, bool[4,4] keep) => (float[4,4] y) <float never = {-inf}> {
        m = MatMul (x, x) r = Relu (m) k = Where (keep, r, never) s = Softmax (k) y = MatMul (s, x) }"""
    inputs = {"x": random(4, 4), "keep": np.tril(np.ones((4, 4), bool))}
    graph = compare(text, inputs, samples=[inputs])
    assert named(graph, "k").dtype is DType.FLOAT16


@pytest.mark.parametrize(
    ("number", "fits"), [("65504", True), ("1e5", False), ("1e-6", True), ("1e-9", False), ("0", True), ("inf", True)]
)
def test_constants_must_survive(number: str, fits: bool) -> None:
    text = f"g (float[2,2] x) => (float[2,2] y) <float c = {{{number}}}> {{ m = MatMul (x, x) y = Add (m, c) }}"
    _, notes = converted(text)
    assert notes == ({"converted": 2} if fits else {"converted": 1, "kept in float32": 1, "kept: out of range": 1})


def test_a_bound_that_would_vanish_counts() -> None:
    text = """g (float[2,2] x) => (float[2,2] y) <float least = {1e-12}, float most = {1e9}> {
        m = MatMul (x, x) b = Clip (m, least, most) y = Div (m, b) }"""
    graph = compare(text, {"x": np.zeros((2, 2), np.float32)})
    assert named(graph, "b").dtype is DType.FLOAT


def test_bfloat16_is_as_wide_as_float() -> None:
    text = "g (float[2,2] x) => (float[2,2] y) <float c = {1e9}> { m = MatMul (x, x) y = Mul (m, c) }"
    graph = compare(text, {"x": random(2, 2)}, 2e-2, pipeline="convert-precision{to=bfloat16}", on="reference")
    assert {v.dtype for v in graph.constants()} == {DType.BFLOAT16}


# constants


def test_tied_weights_stay_one_tensor() -> None:
    first = weight(600, 600)
    second = Value(first.type, "again", const=first.const)
    graph = graph_of(
        lambda x, i: [op.MatMul(x, first), op.Add(op.Gather(second, i), x)],
        x=tensor_type(DType.FLOAT, 2, 600),
        i=tensor_type(DType.INT64, 2),
    )
    after, _ = converted(graph)
    (made,) = {v.const for v in after.constants()}
    assert isinstance(made, LazyTensor)
    assert made.recipe == ("Cast", {"to": 10})
    assert made.inputs == (first.const,)
    assert np.array_equal(made.numpy(), first.const.numpy().astype(np.float16))


def test_a_constant_may_be_there_in_both_precisions() -> None:
    graph, _ = converted(
        """g (float[2,2] x) => (float[2,2] y, float[2,2] z) <float[2,2] w = {1, 2, 3, 4}> {
             y = MatMul (x, w) z = Pow (x, w) }"""
    )
    assert {v.dtype for v in graph.constants()} == {DType.FLOAT, DType.FLOAT16}
    assert operators(graph) == {"MatMul": 1, "Pow": 1, "Cast": 2}


# options


def test_keep() -> None:
    graph = parse("g (float[2,2] x) => (float[2,2] y) { m = MatMul (x, x) r = Relu (m) y = MatMul (r, x) }")
    for i, node in enumerate(graph.nodes):
        node.name = f"layer{i}/{node.op}"
    for pattern, kept in {"Relu": 1, "MatMul": 3, "layer2/*": 1, "*": 3, "layer[01]/*": 2}.items():
        _, notes = converted(graph, f"convert-precision{{keep=['{pattern}']}}")
        assert notes["kept in float32"] == kept, pattern


def test_keep_must_name_something() -> None:
    graph = parse("g (float[2,2] x) => (float[2,2] y) { y = MatMul (x, x) }")
    with pytest.raises(RequestError, match="no operator or node is called 'Matmul'; there are MatMul"):
        Pipeline.parse("convert-precision{keep=[MatMul,Matmul]}").run(graph, Context())


def test_as_text() -> None:
    text = "convert-precision{to=bfloat16,keep=[Gelu,'layer*'],keep_io=false}"
    assert str(Pipeline.parse(text)) == text


# what is left alone


@pytest.mark.parametrize(
    "text",
    [
        "g (int64[B] x) => (int64[B] y) { a = Add (x, x) y = Mul (a, x) }",
        "g (float16[2,2] x) => (float[2,2] y) { a = MatMul (x, x) b = Relu (a) y = Cast <to = 1> (b) }",
        "g (double[2,2] x) => (double[2,2] y) { a = MatMul (x, x) y = Relu (a) }",
        "g (float[2,2] x) => (float[2,2] y) { a = Add (x, x) y = Relu (a) }",
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] a> { a = my.Own (x) y = my.Other (a) }",
        "g (float[2,2] x) => (float[2,2] x) { }",
    ],
)
def test_unchanged(text: str) -> None:
    assert_rewrites(text, "convert-precision", None)


@pytest.mark.parametrize(
    "node",
    [
        Node("MatMul", [Value(tensor_type(DType.FLOAT, 2, 3)), Value(tensor_type(DType.FLOAT, 2, 3))]),  # ill-typed
        Node("MatMul", [Value(tensor_type(DType.FLOAT, 2, 3)), Value()]),
        Node("MatMul", [Value(tensor_type(DType.DOUBLE, 2, 2))] * 2, None, [tensor_type(DType.DOUBLE, 2, 2)]),
        Node(  # with a mean in bfloat16, which would change
            "LayerNormalization",
            [Value(tensor_type(DType.FLOAT, 2, 3)), Value(tensor_type(DType.FLOAT, 3))],
            {"stash_type": 16},
            [tensor_type(DType.FLOAT, 2, 3), tensor_type(DType.BFLOAT16, 2, 1)],
        ),
    ],
)
def test_nodes_without_a_half_precision_form(node: Node) -> None:
    assert half_form(node, DType.FLOAT16) is None


def test_opaque_nodes_keep_their_types() -> None:
    graph, _ = converted(
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] a> { m = MatMul (x, x) a = my.Own (m) y = MatMul (a, m) }"
    )
    own = next(n for n in graph.nodes if n.op == "my.Own")
    assert own.given(0).dtype is own.result.dtype is DType.FLOAT


# how operands are typed

TYPED = {  # what follows on a product ``m`` or comes before it; types of the operands and results of one node
    "r = Resize (m, roi, scales)": ["float16", "float", "float", "float16"],
    "c = Add (scales, scales) r = Resize (m, roi, c)": ["float16", "float", "float", "float16"],
    "r = Clip (m, low, high)": ["float16", "float16", "float16", "float16"],
    "r = Pad (m, pads, low)": ["float16", "int64", "float16", "float16"],
    "r = Where (keep, m, low)": ["bool", "float16", "float16", "float16"],
    "r = Cast <to = 7> (m)": ["float16", "int64"],
    "r = Cast <to = 11> (m)": ["float16", "double"],
    "r = Shape (m)": ["float16", "int64"],
    "r = Range (low, high, low)": ["float", "float", "float", "float"],
    "r = GridSample (m, grid)": ["float16", "float", "float16"],
    "r = Greater (m, low)": ["float16", "float16", "bool"],
    "r, at = TopK (m, one)": ["float16", "int64", "float16", "int64"],
    "r = Softmax (m)": ["float", "float"],
    "r, s = Split <num_outputs = 2> (m)": ["float16", "float16", "float16"],
    'r = planish.FakeQuantize <format = "int8"> (m, low)': ["float16", "float", "float16"],
    "r = CastLike (low, m)": ["float", "float16", "float16"],
    "r = InstanceNormalization (m, ones, ones)": ["float", "float", "float", "float"],
    "r = GroupNormalization <num_groups = 1> (m, ones, ones)": ["float16"] * 4,
    "r = Max (m, low, m)": ["float16"] * 4,
    "r = If (yes) <then_branch = a () => (float[1,2,4,4] p) { p = Relu (m) }, "
    "else_branch = b () => (float[1,2,4,4] q) { q = Exp (m) }>": ["bool", "float"],
}


@pytest.mark.parametrize("nodes", TYPED)
def test_operands_are_typed_right(nodes: str) -> None:
    graph, _ = converted(
        f"""g (float[1,2,4,4] x, bool[4,4] keep, float[1,2,2,2] grid) => (float[1,2,4,4] y) <
          float[4] scales = {{1, 1, 2, 2}}, float[0] roi = {{}}, float low = {{1}}, float high = {{6}},
          bool yes = {{1}}, int64[1] one = {{1}}, float[2] ones = {{1, 1}},
          int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}> {{
          m = MatMul (x, x) {nodes} y = my.Own (r, m) }}"""
    )
    node = next(n for n in graph.walk() if any(r.name == "r" for r in n.results))
    found = [v.dtype.text for v in (*node.operands, *node.results) if v is not None]
    assert found == TYPED[nodes]


def test_a_cast_reads_its_source() -> None:
    assert_rewrites(
        """g (float16[2,2] h, int32[2,2] i, float[2,2] x) => (float[2,2] y, float16[2,2] z, float[2,2] f) {
             f = Cast <to = 1> (h) n = Cast <to = 1> (i) a = MatMul (f, x) b = MatMul (n, x) y = Add (a, b)
             z = Cast <to = 10> (b) }""",
        "convert-precision",
        """g (float16[2,2] h, int32[2,2] i, float[2,2] x) => (float[2,2] y, float16[2,2] z, float[2,2] f) {
             f = Cast <to = 1> (h) n = Cast <to = 10> (i) hx = Cast <to = 10> (x) a = MatMul (h, hx) z = MatMul (n, hx)
             s = Add (a, z) y = Cast <to = 1> (s) }""",
    )


# nested graphs

NESTED = """g (float[2,4] x, float[4,4] w, bool c, int64 n) =>
    (float[2,4] z, float[?,2,4] all, float[2,4] last, float[?,4] rows) <bool go = {1}> {
    m = MatMul (x, w)
    y = If (c) <
      then_branch = a () => (float[2,4] p) { p1 = MatMul (m, w) p = Add (p1, x) },
      else_branch = b () => (float[2,4] m) { }>
    z, all = Loop (n, go, y) <body = l (int64 i, bool k, float[2,4] v) => (bool k2, float[2,4] v3, float[2,4] o) {
      k2 = Identity (k) v1 = MatMul (v, w) v2 = Add (v1, m) v3 = Tanh (v2) o = Softmax (v2) }>
    last, rows = Scan <num_scan_inputs = 1, body = s (float[2,4] v, float[4] row) => (float[2,4] next, float[4] out) {
      r = MatMul (v, w) next = Mul (r, row) out = MatMul (row, w) }> (y, w)
}"""


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("keep_io", ["true", "false"])
def test_nested_graphs(taken: bool, keep_io: str) -> None:
    inputs = {"x": random(2, 4), "w": random(4, 4, seed=1) / 2, "c": np.array(taken), "n": np.array(3)}
    graph = compare(NESTED, inputs, pipeline=f"convert-precision{{keep-io={keep_io}}}")
    for node in graph.nodes:
        for body in node.graphs:
            values = [*body.inputs, *body.outputs]
            assert DType.FLOAT16 not in {v.dtype for v in values}
    products = [n for n in graph.walk() if n.op == "MatMul"]
    assert {n.result.dtype for n in products} == {DType.FLOAT16}


def test_what_a_loop_carries_may_overflow() -> None:
    text = """g (float[2,2] x, int64 n) => (float[2,2] y) <bool go = {1}, float ten = {1e5}> {
        z = Loop (n, go, x) <body = b (int64 i, bool k, float[2,2] v) => (bool k2, float[2,2] w) {
          k2 = Identity (k) w1 = MatMul (v, v) w2 = Mul (w1, ten) w = Add (w2, v) }>
        t = Tanh (z) y = MatMul (t, t) }"""
    graph = compare(text, {"x": random(2, 2), "n": np.array(2)})
    assert named(graph, "w1").dtype is DType.FLOAT


# many graphs


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
@pytest.mark.parametrize("keep_io", ["true", "false"])
def test_random_graphs(to: str, keep_io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_precision, "_pays", lambda node, form: True)  # few of them hold a matrix product
    compared = 0
    for seed in range(3000, 3120):
        instance = random_graph(seed)
        graph, notes = converted(instance.graph, f"convert-precision{{to={to},keep-io={keep_io}}}")
        feed = {v.name: instance.inputs[v.name].astype(v.dtype.numpy) for v in graph.inputs}
        try:
            evaluate_graph(instance.graph, instance.inputs)
            results = evaluate_graph(graph, feed)
        except (EvaluationError, TypeContradiction):  # no kernel for this type
            continue
        compared += bool(notes["converted"])
        for value, array in results.items():
            check_type(value, array)
    assert compared > 50


def test_a_model() -> None:
    demo = files("planish") / "demo"
    graph = load(str(demo / "digits.onnx"))
    inputs = {graph.inputs[0].name: np.load(str(demo / "digits_heldout.npz"))["images"][:64]}
    after, notes = converted(graph, samples=[inputs])
    assert notes["converted"]
    (expected,), (found,) = (backend("onnxruntime").run(g, inputs).values() for g in (graph, after))
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("size", [1, 1e6])
def test_a_weight_is_quantized_in_the_type_of_its_layer(size: float) -> None:
    """Without a cast between the two: also where the weight is a single row, and where the layer stays in float32."""
    graph, notes = converted(
        f"""g (float[2,4] x, float[2,4] z) => (float[2,1] y, float[2,4] u) <
          float[4,1] w = {{1, 2, 3, 4}}, float[4,4] v = {{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}},
          float s = {{0.1}}, float big = {{{size}}}> {{
          a = MatMul (x, v)
          b = Mul (a, big)
          q = planish.FakeQuantize <format = "int8"> (w, s)
          y = MatMul (b, q)
          u = MatMul (z, v)
        }}"""
    )
    (fake,) = [n for n in graph.walk() if n.op == "planish.FakeQuantize"]
    (layer,) = fake.result.users
    assert layer.op == "MatMul"
    assert fake.result.dtype is (DType.FLOAT16 if size == 1 else DType.FLOAT)
    assert notes["kept: quantized for a layer in float32"] == (size > 1)
