"""Fusions that quantizers keep from happening, and why something computes with floating-point numbers."""

import pytest

from planish.backends.base import backend
from planish.explanation import explain
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.fuse import Fuse
from planish.passes.observers.explain import rules_of
from planish.passes.quantize.blocked import blocked_fusions
from planish.passes.quantize.summary import why_float
from planish.passes.quantize.targets import target_for

PASSES = Pipeline.parse("simplify,fuse").passes
RULES = [rule.name for rule in rules_of(Fuse())]
X64, TENSORRT = target_for("onnxruntime:x64"), target_for("tensorrt")

# Q stands for a quantizer, or for nothing
ATTENTION = """g (float[2,4,8,16] q, float[2,4,16,8] k, float[2,4,8,16] v) => (float[2,4,8,16] y) <float c = {0.25}> {
    scores = MatMul (q, k) scaled = Mul (scores, c) weights = Softmax <axis = -1> (scaled)
    seen = Q (weights) y = MatMul (seen, v) }"""
GELU = """g (float[N,16] x) => (float[N,16] y) <float root = {1.4142135}, float one = {1}, float half = {0.5}> {
    d = Div (x, root) e = Erf (d) seen = Q (e) s = Add (seen, one) m = Mul (x, s) y = Mul (m, half) }"""
NORMALIZATION = """g (float[N,16] x) => (float[N,16] y) <
    int64[1] last = {-1}, float two = {2}, float eps = {0.00001}, float[16] scale = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}> {
    m = ReduceMean (x, last) d = Sub (x, m) seen = Q (d) p = Pow (seen, two) v = ReduceMean (p, last) a = Add (v, eps)
    r = Sqrt (a) n = Div (seen, r) y = Mul (n, scale) }"""
CASES = {  # the fusion, its last node, and what the quantizer stands behind
    "attention": (ATTENTION, "attention", "MatMul", "Softmax"),
    "gelu": (GELU, "self-gated-activation", "Mul", "Erf"),
    "normalization": (NORMALIZATION, "normalization", "Div", "Sub"),
}


def fake(text):
    """``text`` with Q as a FakeQuantize of one scale."""
    lines = text.replace("> {", ", float step = {0.01}> {", 1)
    for value in ("weights", "e", "d"):
        lines = lines.replace(f"Q ({value})", f'planish.FakeQuantize <format = "int8"> ({value}, step)')
    return lines


def pairs(text):
    """``text`` with Q as QuantizeLinear and DequantizeLinear."""
    lines = text.replace("> {", ", float step = {0.01}, int8 zero = {0}> {", 1)
    for value in ("weights", "e", "d"):
        pair = f"QuantizeLinear ({value}, step, zero) seen = DequantizeLinear (codes, step, zero)"
        lines = lines.replace(f"seen = Q ({value})", f"codes = {pair}")
    return lines


def bare(text):
    return text.replace("Q (", "Identity (")


def model(text, names=False):
    graph = parse(text)
    for node in graph.nodes:
        node.name = f"block/{node.result.name}" if names else ""
    verify(graph)
    return graph


def found_in(graph):
    before = str(graph)
    found = blocked_fusions(graph, PASSES, RULES, Context(lambda: backend("reference")))
    assert str(graph) == before
    return found


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_quantizer_inside_a_fusion_is_named(case, names):
    text, rule, root, behind = CASES[case]
    (blocked,) = [b for b in found_in(model(fake(text), names)) if b.rule == rule]
    label = {"Softmax": "weights", "Erf": "e", "Sub": "d"}[behind]
    assert blocked.quantizers == (f"{behind} 'block/{label}'" if names else f"{behind} '%{label}'",)
    assert blocked.site.startswith(root)
    assert str(blocked) == f"{blocked.rule} at {blocked.site}: quantized in between, behind {blocked.quantizers[0]}"


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_blocked_without_a_quantizer(case):
    text, rule, _, _ = CASES[case]
    graph = model(bare(text), True)
    assert found_in(graph) == []
    ctx = Context(lambda: backend("reference"))
    Pipeline(PASSES).run(graph, ctx)
    assert ctx.results[-1].fired[rule] == 1


def test_quantizers_at_the_border_of_a_fusion_block_nothing():
    at_border = """g (float[2,4,8,16] q, float[2,4,16,8] k, float[2,4,8,16] v) => (float[2,4,8,16] y) <
        float c = {0.25}, float step = {0.01}> {
        query = planish.FakeQuantize <format = "int8"> (q, step)
        scores = MatMul (query, k) scaled = Mul (scores, c) weights = Softmax <axis = -1> (scaled)
        out = MatMul (weights, v) y = planish.FakeQuantize <format = "int8"> (out, step) }"""
    assert found_in(model(at_border, True)) == []
    assert found_in(model(at_border)) == []


def test_only_rules_of_interest_count():
    graph = model(fake(ATTENTION), True)
    assert blocked_fusions(graph, PASSES, ["normalization"], Context(lambda: backend("reference"))) == []


@pytest.mark.parametrize("case", CASES)
def test_explain_tells_what_the_pairs_of_a_model_block(case):
    text, rule, _, behind = CASES[case]
    found = explain(model(pairs(text)), "default")
    assert [b.quantizers[0].partition(" ")[0] for b in found.blocked if b.rule == rule] == [behind]
    assert explain(model(bare(text)), "default").blocked == []
    assert explain(model(pairs(text)), "raise-quantization").blocked == []  # nothing was to be fused


# why something is in floating point

MIXED = """g (float[1,2,6,6] x, float[2,5] t) => (float[1,2,6,6] y, float[2,3] z) <
    float s = {0.1}, float[2,2,1,1] w = {1,2,3,4}, float[5,3] m = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float c = {3}
> {
    xq = planish.FakeQuantize <format = "int8"> (x, s)
    wq = planish.FakeQuantize <format = "int8"> (w, s)
    %s
}"""


def reasons(body, target=X64):
    graph = model(MIXED % body)
    return dict(why_float(graph, target))


REST = "z = MatMul (t, m)"
FAKE_M = 'planish.FakeQuantize <format = "int8"> (m, s)'


@pytest.mark.parametrize(
    ("body", "node", "reason"),
    [
        (f"{REST} y = Conv (xq, wq)", "MatMul %z", "its weight is not quantized"),
        (
            f"{REST} y = Conv (xq, wq)",
            "Conv %y",
            "its result is not quantized, which Conv needs on onnxruntime:x64",
        ),
        (f"{REST} y = Conv (xq, w)", "Conv %y", "its weight is not quantized"),
        (f"{REST} y = Conv (x, wq)", "Conv %y", "what it multiplies is not quantized"),
        (f"{REST} y = MatMul (xq, x)", "MatMul %y", "it multiplies two computed values"),
        (f"{REST} y = Relu (xq)", "Relu %y", "onnxruntime:x64 has no integer kernel for Relu"),
        (f"{REST} y = Add (xq, c)", "Add %y", "not all that it reads is quantized"),
        (f"{REST} y = Add (xq, xq)", "Add %y", "its result is not quantized"),
        (f'{REST} a = Add (xq, xq) y = planish.FakeQuantize <format = "int8"> (a, s)', "Add %a", None),
        (f'{REST} a = Conv (xq, wq) y = planish.FakeQuantize <format = "int8"> (a, s)', "Conv %a", None),
        (f"{REST} y = Transpose <perm = [0, 1, 2, 3]> (x)", "Transpose %y", None),
        (f'mq = {FAKE_M} z = MatMul (t, mq) y = Identity (x)', "MatMul %z",
         "what it multiplies is not quantized"),
        ('tq = planish.FakeQuantize <format = "int8"> (t, s) z = MatMul (tq, m) y = Identity (x)', "MatMul %z",
         "its weight is not quantized"),
        (f'tq = planish.FakeQuantize <format = "uint8"> (t) mq = {FAKE_M} z = MatMul (tq, mq) y = Identity (x)',
         "MatMul %z", None),
    ],
)  # fmt: skip
def test_reasons(body, node, reason):
    assert reasons(body).get(node) == reason


def test_reasons_depend_on_the_target():
    found = reasons(f"{REST} y = Conv (xq, wq)", TENSORRT)
    assert "Conv %y" not in found
    assert reasons(f"{REST} y = Sigmoid (xq)", TENSORRT)["Sigmoid %y"] == "tensorrt has no integer kernel for Sigmoid"
    assert reasons(f"{REST} y = Sigmoid (xq)")["Sigmoid %y"] == "its result is not quantized"


def test_a_graph_that_is_not_quantized_needs_no_reasons():
    assert why_float(model(bare(GELU)), X64) == []
    assert why_float(model(bare(ATTENTION)), X64) == []


def test_everything_that_computes_in_floats_has_a_reason(lab):
    left = {"mlp": {"Add"}, "convnet": set(), "embedding": {"LayerNormalization", "Tanh"}}  # the addition of a bias
    for name, floats in left.items():
        graph = getattr(lab, name)()
        result, _ = lab.quantized(graph, "activations=static", lab.samples(graph))
        found = why_float(result, X64)
        assert all(reason for _, reason in found)
        assert {node.partition(" ")[0] for node, _ in found} == floats
