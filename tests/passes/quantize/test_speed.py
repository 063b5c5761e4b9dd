"""Layers that are slower in integers, on a machine whose speed is a formula."""

from itertools import pairwise

import numpy as np
import pytest

from planish.backends.base import backend
from planish.ir import op, sym
from planish.ir.quantization import FAKE_QUANTIZE
from planish.ir.verify import verify
from planish.passes import Context
from planish.passes.layers import layers_of
from planish.passes.quantize import Quantize
from planish.passes.quantize.budget import Trial
from planish.passes.quantize.plan import learn
from planish.passes.quantize.speed import slower_layers
from planish.passes.quantize.targets import target_for

LAYERS = ("Conv", "MatMul", "Gemm")


def in_integers(node):
    """Whether a layer reads integers, and, if it is a convolution, writes them."""
    source, users = node.given(0).producer, node.result.users
    reads = source is not None and source.op in (FAKE_QUANTIZE, "DequantizeLinear")
    return reads and (node.op != "Conv" or all(u.op in (FAKE_QUANTIZE, "QuantizeLinear") for u in users))


class Machine:
    """A runner on which layers take 1 in floating point, and ``costs(layer, alone)`` in integers.

    Attributes:
        alone: the operators of the single layers that have been compiled.
        measured: how often something was measured.
    """

    def __init__(self, costs, noise=None):
        self.costs = costs
        self.noise = noise or (lambda: 1.0)
        self.backend = backend("reference")
        self.alone, self.compiled, self.measured, self.took = [], 0, 0, 0.0

    def compile(self, graph):
        layers = [node for node in graph.nodes if node.op in LAYERS]
        alone = len(graph.name) > 1  # the models here are called g
        if alone:
            self.alone += [node.op for node in layers]
        cost = 1 + sum(self.costs(node, alone) if in_integers(node) else 1.0 for node in layers)
        self.compiled += 1
        run = self.backend.compile(graph)

        def timed(inputs):
            self.took = cost
            return run(inputs)

        return timed

    def stopwatch(self, first, second):
        self.measured += 1
        first()
        before = self.took
        second()
        return before * self.noise(), self.took


def depthwise_is_slow(node, alone):
    return 3.0 if node.attrs.get("group", 1) > 1 else 0.25


def quantized(lab, graph, machine, options="calibration=minmax", **more):
    data = lab.samples(graph)
    context = {"runner_factory": lambda: machine, "stopwatch": machine.stopwatch}
    return lab.quantized(graph, options, data, **{**context, **more})


def uses(graph):
    """How often everything is used, constants included."""
    operands = [o for node in graph.walk() for o in (*node.operands, *node.results) if o is not None]
    return [v.use_count for v in (*operands, *graph.inputs)]


def layers_in_integers(graph):
    return [in_integers(node) for node in graph.nodes if node.op in LAYERS]


def test_exactly_the_layer_that_is_slower_stays_in_floating_point(lab):
    graph = lab.convnet()
    before, counts = str(graph), uses(graph)
    machine = Machine(depthwise_is_slow)
    result, record = quantized(lab, graph, machine)
    assert layers_in_integers(result) == [True, True, False, True, True]
    assert all(n.given(1).producer.op == FAKE_QUANTIZE for n in result.nodes if n.op in LAYERS)  # weights, all the same
    depthwise = record.table[2]
    gain = 1 + 3 + 4 * 0.25, 1 + 1 + 4 * 0.25
    assert depthwise["kernel"] == f"float: the model is slower with it in integers ({gain[1] / gain[0]:.2f}x)"
    assert depthwise["weight"] == "int8"
    assert [row["kernel"] for row in record.table if row is not depthwise] == ["int8"] * 4
    assert record.fired["layers in int8"] == 4
    assert record.fired["layers kept in float: the model is slower with it in integers"] == 1
    assert (str(graph), uses(graph)) == (before, counts)
    verify(graph)
    assert lab.sqnr(graph, result, lab.samples(graph, seed=9)) > 30


def test_what_is_learned_of_a_graph_leaves_no_trace_in_it(lab):
    graph = lab.convnet()
    before, counts = str(graph), uses(graph)
    machine = Machine(lambda node, alone: 3.0)
    data = lab.samples(graph)
    ctx = Context(lambda: machine, samples=lambda: data, stopwatch=machine.stopwatch)
    chosen = Quantize(calibration="minmax").settings(target_for("onnxruntime"))
    trial = Trial(graph, learn(graph, layers_of(graph), chosen, ctx), ctx)
    found = slower_layers(trial, chosen, ctx)
    assert list(found) == [0, 1, 2, 3, 4]
    assert all(share < 1 for share in found.values())
    assert trial.evaluations == 0
    assert (str(graph), uses(graph)) == (before, counts)
    verify(graph)


def test_nothing_is_measured_where_nothing_may(lab):
    graph = lab.convnet()
    machine = Machine(depthwise_is_slow)
    result, record = quantized(lab, graph, machine, stopwatch=None)
    assert (machine.alone, machine.measured) == ([], 0)
    assert layers_in_integers(result) == [True] * 5
    assert {row["kernel"] for row in record.table} == {"int8"}
    quantized(lab, graph, machine, "activations=float")  # nothing to win
    assert machine.measured == 0


def test_nothing_more_is_measured_where_all_layers_are_faster(lab):
    machine = Machine(lambda node, alone: 0.5)
    result, _ = quantized(lab, lab.convnet(), machine)
    assert layers_in_integers(result) == [True] * 5
    assert machine.measured == 5
    assert machine.alone == [op for op in ("Conv", "Conv", "Conv", "Conv", "Gemm") for _ in range(2)]


def test_the_whole_model_decides(lab):
    """Alone, a layer may seem slow because of what stands around it."""
    machine = Machine(lambda node, alone: 3.0 if alone else 0.5)
    result, _ = quantized(lab, lab.convnet(), machine)
    assert layers_in_integers(result) == [True] * 5
    assert machine.measured > 5


def test_a_gain_that_does_not_show_each_time_is_none(lab):
    graph = lab.convnet()
    noise = iter([1.0] * 5 + [1.0, 1.0, 0.5, 1.0])
    result, _ = quantized(lab, graph, Machine(depthwise_is_slow, lambda: next(noise)))
    assert layers_in_integers(result) == [True] * 5


def test_a_gain_must_be_worth_it(lab):
    for extra, stays in ((1.03, True), (1.2, False)):  # of 2.4 in all
        machine = Machine(lambda node, alone, extra=extra: extra if node.attrs.get("group", 1) > 1 else 0.1)
        result, _ = quantized(lab, lab.convnet(), machine)
        assert layers_in_integers(result)[2] == stays


def chain(lab, sizes):
    w = lab.weights(3)

    def body(x):
        for before, after in pairwise(sizes):
            x = op.Tanh(op.MatMul(x, w(before, after)))
        return x

    return lab.build(body, sym("n"), sizes[0])


def test_alike_layers_are_measured_once(lab):
    machine = Machine(lambda node, alone: 0.5)
    quantized(lab, chain(lab, [16] * 7), machine)
    assert machine.measured == 1
    assert machine.alone == ["MatMul"] * 2


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_products_too(lab, activations):
    graph = chain(lab, [16, 24, 16, 8])
    machine = Machine(lambda node, alone: 4.0 if node.given(1).shape == (24, 16) else 0.5)
    result, record = quantized(lab, graph, machine, f"activations={activations}")
    assert layers_in_integers(result) == [True, False, True]
    assert [row["kernel"].partition(" (")[0] for row in record.table] == [
        "int8",
        "float: the model is slower with it in integers",
        "int8",
    ]


def test_the_slowest_are_tried_and_not_all(lab):
    sizes = list(range(10, 22))
    graph = chain(lab, sizes)
    machine = Machine(lambda node, alone: 2 + node.given(1).shape[0] / 10)
    result, _ = quantized(lab, graph, machine)
    assert layers_in_integers(result) == [True] * 3 + [False] * 8


def test_layers_of_all_kinds_can_be_measured(lab):
    """Also those with a computed bias, in half precision, or that never see an element."""
    half = lab.mlp(np.float16, "half")
    machine = Machine(lambda node, alone: 3.0)
    result, _ = quantized(lab, half, machine)
    assert layers_in_integers(result) == [False] * 3
    w = lab.weights()
    computed = lab.build(lambda x: op.Gemm(x, w(16, 16), op.ReduceMean(x, [0], keepdims=0)), sym("n"), 16)
    result, _ = quantized(lab, computed, machine)
    assert layers_in_integers(result) == [False]


def test_a_budget_starts_from_what_is_fast(lab):
    """A layer that is slower in integers has but two choices left."""
    graph = lab.convnet()
    result, record = quantized(lab, graph, Machine(depthwise_is_slow), "max_drop=0")
    assert FAKE_QUANTIZE not in lab.ops(result)
    result, record = quantized(lab, graph, Machine(depthwise_is_slow), "max_drop=1")
    assert layers_in_integers(result) == [True, True, False, True, True]
    assert record.notes[0].startswith("quantization loses")
