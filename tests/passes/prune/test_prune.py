"""The passes `prune` and `slim`: what they choose, what they report, and what they refuse."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import planish
from planish.backends import backend
from planish.ir import constant, op, sym
from planish.ir.clone import clone_graph
from planish.ir.flops import size_of
from planish.ir.tensor import LazyTensor
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError
from planish.passes.prune import Prune

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from networks import build, weights


def perceptron(*widths, magnitudes=None):
    """Linear layers with Relu between them; ``magnitudes`` scale the first layer's outputs."""
    w = weights(3)

    def body(x):
        for i, (into, out) in enumerate(pairwise(widths)):
            weight = w(into, out).const.numpy()
            if i == 0 and magnitudes is not None:
                weight = weight / np.linalg.norm(weight, axis=0) * np.float32(magnitudes)
            x = op.MatMul(op.Relu(x) if i else x, constant(weight))
        return x

    return build(body, sym("n"), widths[0])


def run(graph, pipeline, **context):
    copy = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"), differentiate=planish.to_jax, **context)
    Pipeline.parse(pipeline).run(copy, ctx)
    assert not ctx.results[-1].problem, ctx.results[-1].problem
    return copy, ctx.results[-1]


def widths(graph):
    return [node.given(1).shape for node in graph.nodes if node.op == "MatMul"]


def data(graph, count=3, rows=8):
    rng = np.random.default_rng(0)
    return lambda: [{"x": rng.standard_normal((rows, graph.inputs[0].shape[1]), np.float32)} for _ in range(count)]


def test_the_least_channels_go_and_the_others_stay_in_order():
    graph = perceptron(8, 4, 2, magnitudes=[1, 0.1, 2, 0.2])
    result, _ = run(graph, "prune{ratio=0.5,multiple=1,importance=l2}")
    before, after = ([c.const.numpy() for c in g.constants()] for g in (graph, result))
    np.testing.assert_array_equal(after[0], before[0][:, [0, 2]])
    np.testing.assert_array_equal(after[1], before[1][[0, 2]])


@pytest.mark.parametrize(
    ("size", "ratio", "multiple", "left"),
    [(64, 0.5, 8, 32), (64, 0.3, 8, 48), (64, 0.3, 1, 45), (20, 0.5, 8, 12), (64, 0.99, 8, 8), (64, 0.01, 8, 64)],
)
def test_what_stays_is_a_multiple(size, ratio, multiple, left):
    result, _ = run(perceptron(8, size, 2), f"prune{{ratio={ratio},multiple={multiple}}}")
    assert widths(result) == [(8, left), (left, 2)]


def test_a_global_ratio_takes_more_where_channels_are_worth_less():
    w = weights(4)
    small = w(16, 32).const.numpy() * np.where(np.arange(32) < 24, np.float32(1e-3), np.float32(1))
    graph = build(
        lambda x: op.MatMul(op.Relu(op.MatMul(op.Relu(op.MatMul(x, constant(small))), w(32, 32))), w(32, 4)),
        sym("n"),
        16,
    )
    result, _ = run(graph, "prune{ratio=0.4,multiple=1,scope=global}")
    first, second, _ = widths(result)
    assert first[1] + second[1] == round(0.6 * 64)
    assert first[1] < second[1]


def test_every_layer_keeps_some_channels():
    result, _ = run(
        perceptron(8, 32, 32, 2, magnitudes=np.full(32, 1e-6)), "prune{ratio=0.6,scope=global,limit=0.75,multiple=1}"
    )
    assert all(out >= 8 for _, out in widths(result)[:-1])


def test_selected_layers_only():
    graph = perceptron(8, 16, 16, 2)
    for node, name in zip((n for n in graph.nodes if n.op == "MatMul"), ("first", "second", "third"), strict=True):
        node.name = name
    assert widths(run(graph, "prune{ratio=0.5,only=[second]}")[0]) == [(8, 16), (16, 8), (8, 2)]
    assert widths(run(graph, "prune{ratio=0.5,skip=[second]}")[0]) == [(8, 8), (8, 16), (16, 2)]
    with pytest.raises(RequestError, match="no layer matches 'fourth'"):
        run(graph, "prune{only=[fourth]}")


def test_the_report_names_groups_and_what_stays():
    _, record = run(perceptron(8, 16, 2), "prune{ratio=0.5}")
    assert [(row["channels"], row["kept"], row["layers"]) for row in record.table] == [(16, 8, 1)]
    assert record.fired == {"channels removed": 8}
    assert "1 layer keeps all its outputs: it is the output 'y' of the model" in record.notes[0]


def test_layers_that_gain_nothing_are_left_alone():
    graph = perceptron(8, 16, 2)
    result, record = run(graph, "prune{ratio=0.5}", samples=data(graph), stopwatch=lambda first, second: (1.0, 1.0))
    assert widths(result) == widths(graph)
    assert record.missed.startswith("no channels were removed")
    assert "no gain, left alone" in record.table[0]["alone"]


def test_what_gains_is_pruned_with_its_measurement():
    graph = perceptron(8, 16, 2)
    result, record = run(graph, "prune{ratio=0.5}", samples=data(graph), stopwatch=lambda first, second: (2e-3, 1e-3))
    assert widths(result) == [(8, 8), (8, 2)]
    assert record.table[0]["alone"] == "4 -> 2 ms"  # two layers


def test_nothing_to_prune_is_an_error_that_says_why():
    with pytest.raises(RequestError, match="no channels can be removed: it is the output 'y' of the model"):
        run(perceptron(8, 2), "prune")
    with pytest.raises(RequestError, match="the graph has no layers with constant weights"):
        run(build(op.Relu, 4), "prune")


@pytest.mark.parametrize("options", ["ratio=0", "ratio=1", "ratio=1.5", "multiple=0", "limit=1", "ratio=-0.1"])
def test_shares_out_of_range_are_refused(options):
    with pytest.raises(planish.PlanishError, match=r"is a share between 0 and 1|is at least 1"):
        Pipeline.parse(f"prune{{{options}}}")


@pytest.mark.parametrize("importance", ["taylor", "fisher", "activation"])
def test_importance_that_looks_at_samples_needs_some(importance):
    with pytest.raises(RequestError, match="there are none: give data"):
        run(perceptron(8, 16, 2), f"prune{{importance={importance}}}")


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(RequestError, match="not finite"):
        run(perceptron(8, 4, 2, magnitudes=[1, np.nan, 1, 1]), "prune{importance=l1}")


def test_large_weights_are_cut_when_they_are_needed():
    lazy = build(lambda x: op.MatMul(op.Relu(op.MatMul(x, _lazy(64, 512))), _lazy(512, 8)), sym("n"), 64)
    result, _ = run(lazy, "prune{ratio=0.5,importance=random}")
    assert all(isinstance(c.const, LazyTensor) for c in result.constants())
    assert widths(result) == [(64, 256), (256, 8)]


def _lazy(*shape):
    source = constant(np.ones(shape, np.float32)).const
    return planish.ir.Value(source.type, const=LazyTensor(lambda a: a + 0, (source,), source.dtype, shape))


def test_slim_prunes_until_the_latency_is_reached():
    graph = perceptron(32, 64, 64, 8)
    result, record = run(graph, "slim{latency=0.5,multiple=1}")
    share = size_of(result).flops / size_of(graph).flops
    assert 0.45 < share <= 0.5
    assert any("multiply-adds were counted" in note for note in record.notes)
    assert not record.missed


def test_slim_measures_where_it_may():
    graph = perceptron(32, 64, 64, 8)
    seen = []

    def stopwatch(first, second):
        first(), second()
        seen.append(1)
        return 1.0, 0.4 if len(seen) > 6 else 0.9

    _, record = run(graph, "slim{latency=0.5}", samples=data(graph), stopwatch=stopwatch)
    assert record.missed.startswith("latency 0.5: with 95% of the channels gone, 0.90 are left")
    assert len(seen) == 3


def test_slim_says_so_if_it_cannot():
    with pytest.raises(planish.PlanishError, match="latency is 1"):
        Pipeline.parse("slim{latency=1}")
    _, record = run(perceptron(64, 8, 64), "slim{latency=0.05}")
    assert record.missed.startswith("latency 0.05")


def test_pruning_prints_and_parses():
    assert str(Prune(ratio=0.3, importance="taylor")) == "prune{importance=taylor,ratio=0.3}"
    assert Pipeline.parse("prune{ratio=0.3,importance=taylor}").passes == (Prune(ratio=0.3, importance="taylor"),)
