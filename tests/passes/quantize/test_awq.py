"""``awq``: values stay, outputs of rounded weights are closer, and where the division goes."""

from collections import Counter

import numpy as np
import pytest

from planish.backends.base import backend
from planish.ir import constant, op, sym
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError
from planish.passes.pipeline import PipelineError

LARGE = np.where(np.arange(32) % 8 == 5, 20, 1).astype(np.float32)  # of the channels
QUANTIZE = "activations=float,bits=4,block=8,weights=round,symmetric=false"


def scaled(graph, data, options="block=8"):
    """A scaled copy, and what the pass notes."""
    copy = clone_graph(graph)
    ctx = Context(lambda: backend("reference"), samples=None if data is None else lambda: iter(data))
    Pipeline.parse(f"awq{{{options}}}").run(copy, ctx)
    assert [r.problem for r in ctx.results] == [""]
    verify(copy)
    return copy, ctx.results[0].fired


def make(lab, body):
    graph = lab.build(body, sym("n"), 32)
    return graph, lab.samples(graph, rows=100)


def normalized(lab, count=1):
    w = lab.weights(1)

    def body(x):
        h = op.LayerNormalization(x, constant(LARGE), constant(np.linspace(-1, 1, 32, dtype=np.float32)))
        return op.Concat(*[op.Gemm(h, w(32, 24), w(24)) for _ in range(count)], axis=-1)

    return make(lab, body)


def projected(lab, spell):
    """A product whose outputs are large in a few channels, and one behind it."""
    w = lab.weights(2)
    first, bias = w(32, 32).const.numpy() * LARGE, w(32).const.numpy() * LARGE
    graph, data = make(lab, lambda x: op.MatMul(spell(x, constant(first), constant(bias)), w(32, 24)))
    graph.ret.given(0).producer.name = "last"
    return graph, data


def behind_relu(lab):
    w = lab.weights(3)
    return make(lab, lambda x: op.MatMul(op.Relu(x * constant(LARGE)), w(32, 24)))


def transposed(lab):
    w = lab.weights(4)
    return make(lab, lambda x: op.Gemm(x * constant(LARGE), w(24, 32, fan=32), w(24), transB=1))


CASES = {
    "normalization": (normalized, "LayerNormalization"),
    "three layers": (lambda lab: normalized(lab, 3), "LayerNormalization"),
    "matmul": (lambda lab: projected(lab, lambda x, w, b: op.MatMul(x, w)), "MatMul"),
    "matmul with bias": (lambda lab: projected(lab, lambda x, w, b: op.MatMul(x, w) + b), "Add"),
    "gemm": (lambda lab: projected(lab, op.Gemm), "Gemm"),
    "relu": (behind_relu, "a multiplication"),
    "transposed": (transposed, "a multiplication"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_stay_and_rounded_weights_lose_less(lab, case):
    make_case, where = CASES[case]
    graph, data = make_case(lab)
    fresh = lab.samples(graph, rows=50, seed=9)
    only = ",only=[last]" if case in ("matmul", "matmul with bias", "gemm") else ""
    changed, fired = scaled(graph, data, "block=8" + only)
    assert fired == {f"scaled in {where}": 1}
    added = Counter(lab.ops(changed)) - Counter(lab.ops(graph))
    assert added == ({"Mul": 1} if where == "a multiplication" else {})
    assert lab.sqnr(graph, changed, fresh) > 100  # float32 has about 140

    alone, _ = lab.quantized(graph, QUANTIZE)
    together, _ = lab.quantized(changed, QUANTIZE)
    assert lab.sqnr(graph, together, fresh) > lab.sqnr(graph, alone, fresh) + 1


def test_it_is_a_pass_before_quantization(lab):
    graph, data = normalized(lab)
    fresh = lab.samples(graph, rows=50, seed=9)
    result, record = lab.quantized(graph, QUANTIZE, data, before="awq{block=8},")
    assert lab.sqnr(graph, result, fresh) > lab.sqnr(graph, lab.quantized(graph, QUANTIZE)[0], fresh) + 1
    assert [row["weight"] for row in record.table] == ["uint4"]
    assert lab.formats(lab.fakes(result).weights) == {"uint4"}


def test_scales_are_what_the_format_asks_for(lab):
    """Each is chosen for how weights will be rounded: 8 bits gain, too, and from other scales than 3."""
    graph, data = normalized(lab)
    found = [scaled(graph, data, options)[0] for options in ("bits=3,block=0,symmetric=true", "bits=8,block=8")]
    weights = [next(n for n in g.nodes if n.op == "Gemm").given(1).const.numpy() for g in (graph, *found)]
    ratios = [np.unique((w / weights[0]).round(4), axis=1) for w in weights[1:]]
    assert [r.shape[1] for r in ratios] == [1, 1]  # a scale per input
    assert not np.allclose(*ratios)
    for ratio in ratios:
        assert ratio[LARGE > 1].min() > ratio[LARGE == 1].max()


def test_inputs_that_are_alike_are_left_alone(lab):
    w = lab.weights(5)
    graph, _ = make(lab, lambda x: op.MatMul(x, w(32, 24)))
    data = [{"x": np.sign(s["x"])} for s in lab.samples(graph)]
    changed, fired = scaled(graph, data)
    assert str(changed) == str(graph)
    assert not fired


def test_other_readers_see_the_same_values(lab):
    """What else reads an activation keeps it: the division becomes a node of its own."""
    w = lab.weights(6)

    def body(x):
        h = op.LayerNormalization(x, constant(LARGE))
        return op.MatMul(h, w(32, 32)) + h

    graph, data = make(lab, body)
    changed, fired = scaled(graph, data)
    assert fired == {"scaled in a multiplication": 1}
    assert lab.sqnr(graph, changed, data) > 100


def test_weights_with_two_uses_are_left_alone(lab):
    shared = lab.weights(7)(32, 32)
    graph, data = make(lab, lambda x: op.MatMul(op.MatMul(x * constant(LARGE), shared), shared))
    changed, fired = scaled(graph, data)
    assert str(changed) == str(graph)
    assert not fired


def test_patterns_choose_layers(lab):
    graph, data = normalized(lab, 2)
    for node, name in zip([n for n in graph.nodes if n.op == "Gemm"], ["query", "key"], strict=True):
        node.name = name
    changed, fired = scaled(graph, data, "block=8,only=[query]")
    assert fired == {"scaled in a multiplication": 1}
    assert lab.sqnr(graph, changed, data) > 100
    query, key = [n for n in changed.nodes if n.op == "Gemm"]
    assert query.given(0).producer.op == "Mul"
    assert key.given(0).producer.op == "LayerNormalization"
    assert scaled(graph, data, "block=8,skip=[Gemm]")[1] == {}


def test_half_precision(lab):
    graph = lab.mlp(np.float16, "half")
    data = lab.samples(graph)
    for sample in data:
        sample["x"][:, 3] *= 30
    changed, fired = scaled(graph, data)
    assert sum(fired.values()) >= 1
    assert lab.sqnr(graph, changed, data) > 45


def test_what_is_asked_for_must_make_sense(lab):
    graph, data = normalized(lab)
    for options, given, message in (
        ("", None, "awq needs samples: give data"),
        ("", [], "there are no samples"),
        ("", [{"x": np.full((3, 32), np.nan, np.float32)}], "cannot be calibrated"),
        ("", [{"x": np.zeros((0, 32), np.float32)}], "is an empty batch"),
        ("only=[Conv]", data, "no layer matches 'Conv'"),
        ("block=-1", data, "granularity is"),
    ):
        with pytest.raises(RequestError, match=message):
            scaled(graph, given, options)
    broken = lab.build(lambda x: op.MatMul(x, constant(np.full((32, 2), np.inf, np.float32))), sym("n"), 32)
    with pytest.raises(RequestError, match="not finite"):
        scaled(broken, data)
    for options in ("bits=1", "bits=16", "block=some", "rate=2"):
        with pytest.raises(PipelineError):
            Pipeline.parse(f"awq{{{options}}}")


def test_a_graph_without_products_stays(lab):
    graph = lab.build(op.Relu, sym("n"), 32)
    changed, fired = scaled(graph, lab.samples(graph))
    assert str(changed) == str(graph)
    assert not fired
