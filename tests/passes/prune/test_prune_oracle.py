"""The judge of pruning, judged: right prunings pass, wrong ones are told from them, and masks are what they must be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.backends import backend
from planish.ir import Graph, Value, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.types import DType
from planish.ir.verify import verify

sys.path.insert(0, str(Path(__file__).resolve().parent))
from oracle import Masked, Mismatch, check, in_original, kept_slices, masked_values

Array = np.ndarray[Any, Any]
Weights = Mapping[str, Array]
Plan = Mapping[str, Mapping[int, list[int]]]  # by weight and axis, the indices that stay
Build = Callable[[Value, Mapping[str, Value], Mapping[str, int]], Value]


def net(build: Build, shape: tuple[int, ...], weights: Weights, sizes: Mapping[str, int], ids: bool = False) -> Graph:
    """The graph that ``build`` makes of an input, constants and sizes that are written in nodes."""
    graph = Graph("g")
    x = graph.add_input(tensor_type(DType.INT64 if ids else DType.FLOAT, sym("N"), *shape), "x")
    y = build(x, {name: constant(array, name=name) for name, array in weights.items()}, sizes)
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    verify(graph)
    return graph


def kept(weights: Weights, plan: Plan) -> dict[str, Array]:
    """The weights with only the slices that ``plan`` keeps."""
    result = dict(weights)
    for name, axes in plan.items():
        for axis, indices in axes.items():
            result[name] = result[name].take(indices, axis)
    return result


def random(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Case:
    """A network, its weights, and a pruning of it.

    Attributes:
        build: makes the network.
        shape: of its input, behind the batch.
        weights: shapes of its weights by name.
        plan: what stays.
        sizes: numbers in nodes, before and after.
        vocabulary: for an input of token ids.
    """

    def __init__(
        self,
        build: Build,
        shape: tuple[int, ...],
        weights: Mapping[str, tuple[int, ...]],
        plan: Plan,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        vocabulary: int = 0,
    ):
        self.build, self.shape, self.plan, self.vocabulary = build, shape, plan, vocabulary
        self.weights = random(0, **weights)
        self.before, self.after = ({n: s[i] for n, s in (sizes or {}).items()} for i in (0, 1))

    @property
    def original(self) -> Graph:
        return net(self.build, self.shape, self.weights, self.before, self.vocabulary > 0)

    def pruned(self, plan: Plan | None = None, **changed: Array) -> Graph:
        """The network that ``plan`` leaves (default: the right one), with some weights replaced after that."""
        weights = kept(self.weights, self.plan if plan is None else plan) | changed
        return net(self.build, self.shape, weights, self.after, self.vocabulary > 0)

    @property
    def inputs(self) -> dict[str, Array]:
        rng = np.random.default_rng(1)
        if self.vocabulary:
            return {"x": rng.integers(0, self.vocabulary, (2, *self.shape))}
        return {"x": rng.standard_normal((2, *self.shape)).astype(np.float32)}

    def named(self, graph: Graph) -> dict[Value, dict[int, Array]]:
        """The plan, by the constants of ``graph``."""
        found = {value.name: value for value in graph.constants()}
        return {found[name]: {a: np.array(i) for a, i in axes.items()} for name, axes in self.plan.items()}


# networks


def conv_bn(x: Value, w: Mapping[str, Value], _: Mapping[str, int]) -> Value:
    y = op.Conv(x, w["w1"], w["b1"], pads=[1, 1, 1, 1])
    y = op.BatchNormalization(y, w["scale"], w["shift"], w["mean"], op.Abs(w["mean"]), epsilon=0.1)
    return op.Conv(op.Sigmoid(y), w["w2"], w["b2"], pads=[1, 1, 1, 1])


def residual(x: Value, w: Mapping[str, Value], _: Mapping[str, int]) -> Value:
    a = op.Relu(op.Conv(x, w["w1"], w["b1"]))
    return op.Conv(op.Add(a, op.Conv(a, w["w2"], w["b2"])), w["w3"])


def concat(x: Value, w: Mapping[str, Value], _: Mapping[str, int]) -> Value:
    a, b = op.Conv(x, w["w1"], w["b1"]), op.Conv(x, w["w2"], w["b2"])
    return op.Conv(op.MaxPool(op.Concat(a, b, axis=1), kernel_shape=[2, 2]), w["w3"])


def depthwise(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    y = op.Clip(op.Conv(x, w["w1"], w["b1"]), 0.0, 6.0)
    y = op.HardSigmoid(op.Conv(y, w["w2"], w["b2"], group=n["group"]))
    return op.Conv(y, w["w3"])


def flatten(x: Value, w: Mapping[str, Value], _: Mapping[str, int]) -> Value:
    y = op.Cos(op.Conv(x, w["w1"], w["b1"]))
    return op.Gemm(op.Flatten(y, axis=1), w["w2"], w["b2"], transB=1)


def heads(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    def split(y: Value, count: int) -> Value:
        return op.Transpose(op.Reshape(y, np.array([0, 0, count, n["size"]])), perm=[0, 2, 1, 3])

    q, k, v = (split(op.Add(op.MatMul(x, w[f"w{c}"]), w[f"b{c}"]), n["heads"]) for c in "qkv")
    scores = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])) * 0.5
    y = op.Transpose(op.MatMul(op.Softmax(scores), v), perm=[0, 2, 1, 3])
    return op.MatMul(op.Reshape(y, np.array([0, 0, n["heads"] * n["size"]])), w["wo"])


def grouped_queries(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    q, k, v = (op.MatMul(x, w[f"w{c}"]) for c in "qkv")
    return op.MatMul(op.Attention(q, k, v, q_num_heads=n["q"], kv_num_heads=n["kv"], scale=0.5), w["wo"])


def hidden(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    y = op.Gather(w["table"], x)
    normed = op.LayerNormalization(y, w["scale"], w["shift"])
    y = op.Add(y, op.MatMul(op.Gelu(op.MatMul(normed, w["w1"])), w["w2"]))
    return op.MatMul(op.RMSNormalization(y, w["scale2"]), w["w3"])


def gated(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    a, b = op.Split(op.Add(op.MatMul(x, w["w1"]), w["b1"]), num_outputs=2, axis=-1)
    return op.MatMul(op.Mul(a, op.Sigmoid(b)), w["w2"])


def group_norm(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    y = op.Conv(x, w["w1"], w["b1"])
    y = op.GroupNormalization(y, w["scale"], w["shift"], num_groups=n["groups"])
    return op.ConvTranspose(op.Resize(y, None, np.array([1, 1, 2, 2], np.float32), mode="nearest"), w["w2"])


def squeeze_excite(x: Value, w: Mapping[str, Value], _: Mapping[str, int]) -> Value:
    y = op.Conv(x, w["w1"], w["b1"])
    gate = op.Sigmoid(op.Conv(op.ReduceMean(y, np.array([2, 3])), w["ws"], w["bs"]))
    return op.Conv(op.Pad(op.Mul(y, gate), np.array([0, 0, 1, 1, 0, 0, 1, 1])), w["w2"])


def shuffle(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    y = op.Conv(x, w["w1"], w["b1"])
    y = op.Transpose(op.Reshape(y, np.array([0, 2, n["half"], 4, 4])), perm=[0, 2, 1, 3, 4])
    return op.Conv(op.Exp(op.Reshape(y, np.array([0, 2 * n["half"], 4, 4]))), w["w2"])


def recurrent(x: Value, w: Mapping[str, Value], n: Mapping[str, int]) -> Value:
    y, _, _ = op.LSTM(op.Transpose(x, perm=[1, 0, 2]), w["w"], w["r"], w["b"], hidden_size=n["units"], outputs=3)
    y, _ = op.GRU(op.Squeeze(y, np.array([1])), w["w2"], w["r2"], w["b2"], hidden_size=n["units2"], outputs=2)
    return op.MatMul(op.Squeeze(y, np.array([1])), w["wo"])


def norm_by_hand(x: Value, w: Mapping[str, Value], _: Mapping[str, int]) -> Value:
    y = op.MatMul(x, w["w1"])
    centered = op.Sub(y, op.ReduceMean(y, np.array([-1])))
    deviation = op.Sqrt(op.ReduceMean(op.Mul(centered, centered), np.array([-1])))
    return op.Einsum(op.Add(op.Div(centered, deviation), w["shift"]), w["w2"], equation="nsd,od->nso")


def over_time(x: Value, w: Mapping[str, Value], _: Mapping[str, int]) -> Value:
    y = op.CumSum(op.MatMul(x, w["w1"]), np.array(1))
    largest, _ = op.TopK(y, np.array([2]), axis=1, outputs=2)
    zeros = op.ConstantOfShape(op.Shape(largest))
    return op.MatMul(op.Add(op.Mul(largest, op.Cast(op.ArgMax(y, axis=1), to=1)), zeros), w["w2"])


def gates(units: list[int], size: int, count: int) -> list[int]:
    return [g * size + u for g in range(count) for u in units]


IMAGE = (3, 4, 4)
CASES: dict[str, Case] = {
    "conv, batch norm, sigmoid": Case(
        conv_bn,
        IMAGE,
        {"w1": (6, 3, 3, 3), "b1": (6,), "scale": (6,), "shift": (6,), "mean": (6,), "w2": (2, 6, 3, 3), "b2": (2,)},
        {"w2": {1: [1, 2, 5]}} | {name: {0: [1, 2, 5]} for name in ("w1", "b1", "scale", "shift", "mean")},
    ),
    "a residual addition": Case(
        residual,
        IMAGE,
        {"w1": (6, 3, 1, 1), "b1": (6,), "w2": (6, 6, 1, 1), "b2": (6,), "w3": (2, 6, 1, 1)},
        {"w1": {0: [0, 3, 4]}, "b1": {0: [0, 3, 4]}, "w2": {0: [0, 3, 4], 1: [0, 3, 4]}, "b2": {0: [0, 3, 4]}}
        | {"w3": {1: [0, 3, 4]}},
    ),
    "a concatenation": Case(
        concat,
        IMAGE,
        {"w1": (3, 3, 1, 1), "b1": (3,), "w2": (4, 3, 1, 1), "b2": (4,), "w3": (2, 7, 1, 1)},
        {"w1": {0: [1, 2]}, "b1": {0: [1, 2]}, "w2": {0: [0, 3]}, "b2": {0: [0, 3]}, "w3": {1: [1, 2, 3, 6]}},
    ),
    "a depthwise convolution": Case(
        depthwise,
        IMAGE,
        {"w1": (4, 3, 1, 1), "b1": (4,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (2, 8, 1, 1)},
        {"w1": {0: [1, 3]}, "b1": {0: [1, 3]}, "w2": {0: [2, 3, 6, 7]}, "b2": {0: [2, 3, 6, 7]}}
        | {"w3": {1: [2, 3, 6, 7]}},
        {"group": (4, 2)},
    ),
    "a flattened image": Case(
        flatten,
        IMAGE,
        {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (5, 16), "b2": (5,)},
        {"w1": {0: [0, 2]}, "b1": {0: [0, 2]}, "w2": {1: [0, 1, 2, 3, 8, 9, 10, 11]}},
    ),
    "attention heads": Case(
        heads,
        (5, 6),
        {"wq": (6, 12), "wk": (6, 12), "wv": (6, 12), "bq": (12,), "bk": (12,), "bv": (12,), "wo": (12, 6)},
        {f"w{c}": {1: [0, 1, 2, 3, 8, 9, 10, 11]} for c in "qkv"}
        | {f"b{c}": {0: [0, 1, 2, 3, 8, 9, 10, 11]} for c in "qkv"}
        | {"wo": {0: [0, 1, 2, 3, 8, 9, 10, 11]}},
        {"heads": (3, 2), "size": (4, 4)},
    ),
    "features of heads": Case(
        heads,
        (5, 6),
        {"wq": (6, 8), "wk": (6, 8), "wv": (6, 8), "bq": (8,), "bk": (8,), "bv": (8,), "wo": (8, 6)},
        {f"w{c}": {1: [0, 3, 4, 7]} for c in "qkv"}
        | {f"b{c}": {0: [0, 3, 4, 7]} for c in "qkv"}
        | {"wo": {0: [0, 3, 4, 7]}},
        {"heads": (2, 2), "size": (4, 2)},
    ),
    "a group of queries with its keys": Case(
        grouped_queries,
        (5, 6),
        {"wq": (6, 12), "wk": (6, 6), "wv": (6, 6), "wo": (12, 6)},
        {"wq": {1: [0, 1, 2, 3, 8, 9, 10, 11]}, "wk": {1: [0, 1, 4, 5]}, "wv": {1: [0, 1, 4, 5]}}
        | {"wo": {0: [0, 1, 2, 3, 8, 9, 10, 11]}},
        {"q": (6, 4), "kv": (3, 2)},
    ),
    "some queries of each group": Case(
        grouped_queries,
        (5, 6),
        {"wq": (6, 16), "wk": (6, 4), "wv": (6, 4), "wo": (16, 6)},
        {"wq": {1: [2, 3, 6, 7, 8, 9, 12, 13]}, "wo": {0: [2, 3, 6, 7, 8, 9, 12, 13]}},
        {"q": (8, 4), "kv": (2, 2)},
    ),
    "features of values": Case(
        grouped_queries,
        (5, 6),
        {"wq": (6, 12), "wk": (6, 6), "wv": (6, 6), "wo": (12, 6)},
        {"wv": {1: [0, 2, 4]}, "wo": {0: [0, 2, 4, 6, 8, 10]}},
        {"q": (6, 6), "kv": (3, 3)},
    ),
    "the hidden size, with norms": Case(
        hidden,
        (5,),
        {"table": (9, 8), "scale": (8,), "shift": (8,), "w1": (8, 6), "w2": (6, 8), "scale2": (8,), "w3": (8, 3)},
        {"table": {1: [0, 1, 4, 6, 7]}, "scale": {0: [0, 1, 4, 6, 7]}, "shift": {0: [0, 1, 4, 6, 7]}}
        | {"w1": {0: [0, 1, 4, 6, 7], 1: [2, 3, 5]}, "w2": {1: [0, 1, 4, 6, 7], 0: [2, 3, 5]}}
        | {"scale2": {0: [0, 1, 4, 6, 7]}, "w3": {0: [0, 1, 4, 6, 7]}},
        vocabulary=9,
    ),
    "a gated unit": Case(
        gated,
        (5, 6),
        {"w1": (6, 8), "b1": (8,), "w2": (4, 3)},
        {"w1": {1: [1, 3, 5, 7]}, "b1": {0: [1, 3, 5, 7]}, "w2": {0: [1, 3]}},
    ),
    "whole groups of a norm": Case(
        group_norm,
        IMAGE,
        {"w1": (6, 3, 1, 1), "b1": (6,), "scale": (6,), "shift": (6,), "w2": (6, 2, 2, 2)},
        {name: {0: [0, 1, 4, 5]} for name in ("w1", "b1", "scale", "shift", "w2")},
        {"groups": (3, 2)},
    ),
    "channels of each group of a norm": Case(
        group_norm,
        IMAGE,
        {"w1": (6, 3, 1, 1), "b1": (6,), "scale": (6,), "shift": (6,), "w2": (6, 2, 2, 2)},
        {name: {0: [0, 1, 3, 5]} for name in ("w1", "b1", "scale", "shift", "w2")},
        {"groups": (2, 2)},
    ),
    "squeeze and excite": Case(
        squeeze_excite,
        IMAGE,
        {"w1": (6, 3, 1, 1), "b1": (6,), "ws": (6, 6, 1, 1), "bs": (6,), "w2": (2, 6, 1, 1)},
        {"w1": {0: [2, 4]}, "b1": {0: [2, 4]}, "ws": {0: [2, 4], 1: [2, 4]}, "bs": {0: [2, 4]}, "w2": {1: [2, 4]}},
    ),
    "a channel shuffle": Case(
        shuffle,
        IMAGE,
        {"w1": (6, 3, 1, 1), "b1": (6,), "w2": (3, 6, 1, 1)},
        {"w1": {0: [0, 2, 3, 5]}, "b1": {0: [0, 2, 3, 5]}, "w2": {1: [0, 1, 4, 5]}},
        {"half": (3, 2)},
    ),
    "recurrent units": Case(
        recurrent,
        (5, 3),
        {"w": (1, 24, 3), "r": (1, 24, 6), "b": (1, 48), "w2": (1, 12, 6), "r2": (1, 12, 4), "b2": (1, 24)}
        | {"wo": (4, 2)},
        {"w": {1: gates([0, 2, 5], 6, 4)}, "r": {1: gates([0, 2, 5], 6, 4), 2: [0, 2, 5]}}
        | {"b": {1: gates([0, 2, 5], 6, 8)}, "w2": {1: gates([1, 2], 4, 3), 2: [0, 2, 5]}}
        | {"r2": {1: gates([1, 2], 4, 3), 2: [1, 2]}, "b2": {1: gates([1, 2], 4, 6)}, "wo": {0: [1, 2]}},
        {"units": (6, 3), "units2": (4, 2)},
    ),
    "sorted and summed over time": Case(
        over_time,
        (5, 4),
        {"w1": (4, 6), "w2": (6, 3)},
        {"w1": {1: [0, 1, 5]}, "w2": {0: [0, 1, 5]}},
    ),
    "a norm in single steps": Case(
        norm_by_hand,
        (5, 4),
        {"w1": (4, 6), "shift": (6,), "w2": (3, 6)},
        {"w1": {1: [0, 1, 5]}, "shift": {0: [0, 1, 5]}, "w2": {1: [0, 1, 5]}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_pruned_rightly_agrees(name):
    case = CASES[name]
    original = case.original
    found = check(original, case.pruned(), case.inputs, case.named(original))
    assert found.error < 1e-6
    gone = sum(w.size - kept(case.weights, case.plan)[n].size for n, w in case.weights.items())
    assert found.removed == gone > 0


@pytest.mark.parametrize("name", CASES)
def test_the_kept_slices_are_found_in_the_weights(name):
    case = CASES[name]
    original = case.original
    found: dict[str, dict[int, list[int]]] = {}
    for slot, axes in kept_slices(original, case.pruned()).items():
        assert isinstance(slot, tuple)
        found[slot[0].given(slot[1]).name] = {axis: indices.tolist() for axis, indices in axes.items()}
    assert found == case.plan


@pytest.mark.parametrize("name", CASES)
def test_other_channels_of_one_weight_are_told(name):
    case = CASES[name]
    original = case.original
    for weight, axes in case.plan.items():
        if weight == "bk":  # it adds the same to all scores of a query
            continue
        for axis, indices in axes.items():
            shifted = [(i + 1) % case.weights[weight].shape[axis] for i in indices]
            wrong = {**case.plan, weight: {**axes, axis: shifted}}
            with pytest.raises(Mismatch):
                check(original, case.pruned(wrong), case.inputs, case.named(original), locate=False)
            with pytest.raises(Mismatch):  # now masks follow the wrong pruning, and are inconsistent or shift channels
                check(original, case.pruned(wrong), case.inputs, locate=False)


def test_the_first_node_that_differs_is_named():
    case = CASES["a residual addition"]
    original = case.original
    wrong = case.pruned(b2=case.weights["b2"][[1, 3, 4]])
    with pytest.raises(Mismatch, match=r"first node that differs.* is .*Conv.*b2"):
        check(original, wrong, case.inputs, case.named(original))


def test_a_norm_over_zeros_is_not_one_over_what_is_left():
    case = CASES["the hidden size, with norms"]
    original, masked = case.original, dict(case.weights)
    for name, axes in case.plan.items():
        for axis, indices in axes.items():
            gone = np.setdiff1d(np.arange(masked[name].shape[axis]), indices)
            masked[name] = masked[name].copy()
            masked[name].swapaxes(0, axis)[gone] = 0
    zeroed = net(case.build, case.shape, masked, case.before, ids=True)
    with pytest.raises(Mismatch, match="output 'y' is off by"):
        check(original, zeroed, case.inputs, case.named(original))


def test_changed_numbers_are_no_slices():
    case = CASES["a gated unit"]
    with pytest.raises(Mismatch, match="not made of slices"):
        kept_slices(case.original, case.pruned(w1=np.zeros((6, 4), np.float32)))
    with pytest.raises(Mismatch, match="other numbers"):
        kept_slices(case.original, case.pruned({}, w2=np.zeros((4, 3), np.float32)))


def test_a_vector_whose_numbers_repeat_follows_the_matrix_beside_it():
    case = CASES["a flattened image"]
    case = Case(case.build, case.shape, {n: w.shape for n, w in case.weights.items()}, case.plan)
    case.weights["b1"][:] = [1, 1, 2, 2]
    found = kept_slices(case.original, case.pruned())
    biases = [i[0].tolist() for (n, at), i in found.items() if n.op == "Conv" and at == 2]
    assert biases == [[0, 2]]
    for weight in case.weights.values():
        weight[:] = 1
    with pytest.raises(ValueError, match="pass `kept`"):
        kept_slices(case.original, case.pruned())


def test_slices_of_a_clone_are_those_of_the_original():
    case = CASES["a gated unit"]
    original = case.original
    copies: dict[Value, Value] = {}
    plan = in_original(case.named(clone_graph(original, copies)), copies)
    uses = {slot[0].given(slot[1]).name: slot[0].op for slot in plan if isinstance(slot, tuple)}
    assert uses == {"w1": "MatMul", "b1": "Add", "w2": "MatMul"}
    assert (
        check(original, case.pruned(), case.inputs, plan).removed == check(original, case.pruned(), case.inputs).removed
    )


def test_an_output_keeps_its_channels():
    case = Case(lambda x, w, _: op.MatMul(x, w["w"]), (4,), {"w": (4, 6)}, {"w": {1: [0, 1]}})
    with pytest.raises(Mismatch, match="output 'y' were removed"):
        check(case.original, case.pruned(), case.inputs)


def test_operators_without_a_rule_are_refused():
    build: Build = lambda x, w, _: op.MatMul(op.Hardmax(op.MatMul(x, w["w"])), w["v"])  # noqa: E731
    case = Case(build, (4,), {"w": (4, 6), "v": (6, 2)}, {"w": {1: [0, 1]}, "v": {0: [0, 1]}})
    with pytest.raises(NotImplementedError, match="no rule"):
        check(case.original, case.pruned(), case.inputs)


def test_nothing_pruned_is_the_model_itself():
    case = CASES["conv, batch norm, sigmoid"]
    original = case.original
    found = check(original, net(case.build, case.shape, case.weights, {}), case.inputs)
    assert found.error < 1e-6
    assert found.removed == 0


def test_dead_elements_are_zero_whatever_the_operator_makes_of_them():
    """sigmoid(0) would be 0.5."""
    case = CASES["conv, batch norm, sigmoid"]
    original = case.original
    values = {original.inputs[0]: Masked(case.inputs["x"])}
    seen = list(masked_values(original, values, case.named(original), backend("onnxruntime")))
    sigmoid = next(values[node.result] for node in seen if node.op == "Sigmoid")
    assert sigmoid.alive is not None
    assert sigmoid.alive.any((0, 2, 3)).tolist() == [False, True, True, False, False, True]
    assert (sigmoid.data[:, [0, 3, 4]] == 0).all()
    assert (sigmoid.data[:, [1, 2, 5]] != 0).all()


def test_a_masked_norm_is_the_norm_of_what_is_left():
    weights = random(w=(4, 6), scale=(6,))
    build: Build = lambda x, w, _: op.LayerNormalization(op.MatMul(x, w["w"]), w["scale"])  # noqa: E731
    original = net(build, (4,), weights, {})
    plan = {value: {value.rank - 1: np.array([0, 2, 3])} for value in original.constants() if value.rank}
    x = random(1, x=(3, 4))["x"]
    values = {original.inputs[0]: Masked(x)}
    last = list(masked_values(original, values, plan, backend("reference")))[-1]
    left = x @ weights["w"][:, [0, 2, 3]]
    left = (left - left.mean(1, keepdims=True)) / np.sqrt(left.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(values[last.result].data[:, [0, 2, 3]], left * weights["scale"][[0, 2, 3]], rtol=1e-4)
    assert (values[last.result].data[:, [1, 4, 5]] == 0).all()
