"""Accuracy budgets: how losses are measured, how few evaluations the search takes, and which layers stay precise."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.backends.base import backend
from planish.ir import constant, op, sym
from planish.ir.quantization import FAKE_QUANTIZE
from planish.ir.verify import verify
from planish.passes import Context
from planish.passes.base import RequestError
from planish.passes.layers import layers_of
from planish.passes.quantize import Quantize
from planish.passes.quantize.budget import Trial, disagreement, within_budget
from planish.passes.quantize.plan import learn
from planish.passes.quantize.targets import target_for

LADDERS = (["weights", "float"], ["integers", "weights", "float"], ["integers", "blocks", "weights", "float"])
REMAINS = {"integers": 1.0, "blocks": 0.3, "weights": 0.05, "float": 0.0}  # of the error


# what is lost


def rows():
    """Outputs that may hold zeros and anything else that is finite."""
    numbers = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))
    return shapes.flatmap(
        lambda shape: st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)).map(
            lambda flat: np.array(flat, np.float32).reshape(shape)
        )
    )


@settings(max_examples=80, deadline=None)
@given(rows(), st.integers(0, 99), st.integers(-20, 20))
def test_disagreement_is_a_share(e, seed, exponent):
    a = (e * np.random.default_rng(seed).normal(1, 1, e.shape)).astype(np.float32)
    lost = disagreement([{"y": e}], [{"y": a}])
    assert 0 <= lost <= 1
    assert disagreement([{"y": e}], [{"y": e}]) < 1e-12
    unit = np.float32(2.0**exponent)
    assert disagreement([{"y": e * unit}], [{"y": a * unit}]) == pytest.approx(lost, abs=1e-9)
    if e.shape[1] > 1:  # cosines know no length
        assert disagreement([{"y": e}], [{"y": e * unit}]) < 1e-12
        assert disagreement([{"y": e}], [{"y": -e}]) == pytest.approx(float((e != 0).any(axis=1).mean()), abs=1e-9)


def test_disagreement_by_hand():
    e, a = np.float32([[1, 0], [3, 4], [0, 0]]), np.float32([[1, 1], [3, 4], [0, 0]])
    assert disagreement([{"y": e}], [{"y": a}]) == pytest.approx((1 - math.sqrt(0.5)) / 3, rel=1e-6)
    both = disagreement([{"y": e}, {"y": a}], [{"y": a}, {"y": a}])
    assert both == pytest.approx((1 - math.sqrt(0.5)) / 6, rel=1e-6)
    scalars = disagreement([{"y": np.float32([[1], [4]])}], [{"y": np.float32([[1.5], [4]])}])
    assert scalars == pytest.approx(0.5 / 4 / 2)
    assert disagreement([{"y": np.array(2.0)}], [{"y": np.array(1.0)}]) == pytest.approx(0.5)


def test_disagreement_counts_only_what_has_a_meaning():
    e = np.float32([[1, 2], [np.nan, 1], [3, np.inf], [0, 0]])
    assert disagreement([{"y": e}], [{"y": e}]) < 1e-12
    broken = np.float32([[np.nan, 2], [1, 1], [3, 3], [0, 0]])
    assert disagreement([{"y": e}], [{"y": broken}]) == pytest.approx(0.5)  # one of two rows that were finite
    assert disagreement([{"y": e[1:3]}], [{"y": broken[1:3]}]) == 0
    wakes = np.float32([[1, 2], [0, 0], [0, 0], [0, 1e-9]])
    assert disagreement([{"y": e}], [{"y": wakes}]) == pytest.approx(0.5)
    others = {"ids": np.arange(3), "empty": np.zeros((0, 4), np.float32), "list": [e]}
    assert disagreement([others], [{**others, "ids": np.arange(3) + 1}]) == 0
    narrow = e[:1].astype(ml_dtypes.bfloat16)
    assert disagreement([{"y": narrow}], [{"y": -narrow}]) == 1


# the search


class Model:
    """A model whose layers' errors add up, and that counts how often it is evaluated."""

    def __init__(self, errors):
        self.errors = errors
        self.evaluations = 0

    def loss(self, choices):
        return float(sum(e * REMAINS[c] for e, c in zip(self.errors, choices, strict=True)))

    def __call__(self, choices):
        self.evaluations += 1
        return self.loss(choices)


@st.composite
def problems(draw, least=1, most=80, same=False, noise=(0, 0.3, 1)):
    """True errors, predictions of them, ladders, and a budget."""
    n = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    predicted = rng.lognormal(0, draw(st.sampled_from([0.1, 1, 3])), n)
    true = predicted * rng.lognormal(0, draw(st.sampled_from(noise)), n)
    one = draw(st.sampled_from(LADDERS))
    ladders = [one] * n if same else [LADDERS[i] for i in rng.integers(0, 3, n)]
    return true, predicted, ladders, draw(st.floats(0, 1.1)) * true.sum()


def limit(n):
    return 2 * math.log2(n + 1) + 3


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_budget_is_kept_with_few_evaluations(problem):
    true, predicted, ladders, budget = problem
    model = Model(true)
    choices, lost = within_budget(predicted, ladders, model, budget)
    assert all(c in ladder for c, ladder in zip(choices, ladders, strict=True))
    assert lost == model.loss(choices) <= budget  # in floating point, nothing is lost
    assert model.evaluations <= 1 + max(map(len, ladders)) + limit(len(true))


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_the_budget_is_kept_however_the_model_behaves(problem, seed):
    """Losses that are random numbers, but for the most precise choices."""
    _, predicted, ladders, _ = problem
    best = [ladder[-1] for ladder in ladders]

    def drop(choices):
        random = np.random.default_rng([seed, *(len(c) for c in choices)]).choice([-1.0, 0.2, 1.0, math.inf])
        return 0.0 if choices == best else float(random)

    choices, lost = within_budget(predicted, ladders, drop, 0.5)
    assert lost == drop(choices) <= 0.5


@settings(max_examples=100, deadline=None)
@given(problems(same=True))
def test_no_layer_more_than_needed_stays_precise(problem):
    true, _, ladders, budget = problem
    model = Model(true)
    choices, _ = within_budget(true, ladders, model, budget)
    promoted = [i for i in range(len(true)) if choices[i] != min(choices, key=ladders[0].index)]
    rung = max(ladders[0].index(c) for c in choices)
    if promoted:
        fewer = list(choices)
        least = min(promoted, key=lambda i: true[i])
        fewer[least] = ladders[0][rung - 1]
        assert model.loss(fewer) > budget
        rest = [true[i] for i in range(len(true)) if i not in promoted]
        assert min(true[i] for i in promoted) >= max(rest, default=0)


@settings(max_examples=150, deadline=None)
@given(problems(least=30, most=300, noise=(0, 0.3)))
def test_it_takes_a_fifth_of_the_evaluations_of_one_at_a_time(problem):
    """Which measures each layer alone, and then takes back one after the other until the budget is kept."""
    true, predicted, ladders, budget = problem
    ladders = [["integers", "float"]] * len(ladders)
    model = Model(true)
    choices, _ = within_budget(predicted, ladders, model, budget)
    reverted = choices.count("float")
    assert model.evaluations <= (len(true) + reverted) / 5


def test_ladders_end_where_they_end():
    model = Model([1.0, 1.0, 1.0])
    ladders = [["integers"], ["integers", "float"], ["integers", "blocks", "weights", "float"]]
    assert within_budget([3, 2, 1], ladders, model, 1.5) == (["integers", "float", "blocks"], 1.3)
    assert within_budget([3, 2, 1], ladders, model, 1.0) == (["integers", "float", "float"], 1.0)
    assert within_budget([3, 2, 1], ladders, model, 0.5) == (["integers", "float", "float"], 1.0)  # as good as it gets
    assert within_budget([3, 2, 1], ladders, model, 3.0) == (["integers"] * 3, 3.0)
    assert within_budget([], [], Model([]), 0.0) == ([], 0.0)


def test_equals_and_layers_without_errors():
    for errors in (np.zeros(40), np.ones(40)):
        model = Model(np.ones(40))
        choices, lost = within_budget(errors, [["weights", "float"]] * 40, model, 0.5)
        assert lost == pytest.approx(0.5)
        assert choices == ["float"] * 30 + ["weights"] * 10
        assert model.evaluations <= limit(40)


# on graphs


def deep(lab, layers=8):
    """Products, two of which quantize badly: they have large weights for an input that is small."""
    w = lab.weights(11)

    def body(x):
        for i in range(layers):
            weight = w(24, 24).const.numpy().copy()
            if i in (2, 5):
                weight[3] *= 12
            if i + 1 in (2, 5):
                weight[:, 3] /= 12
            x = op.Tanh(op.MatMul(x, constant(weight)))
        return x

    return lab.build(body, sym("n"), 24)


def independent(graph, result, data):
    engine = backend("onnxruntime")
    before, after = engine.compile(graph), engine.compile(result)
    return disagreement([before(s) for s in data], [after(s) for s in data])


@pytest.mark.parametrize("share", [0.8, 0.4, 0.15])
def test_layers_with_the_largest_errors_stay_precise(lab, share):
    graph = deep(lab)
    data = lab.samples(graph)
    options = "activations=float,bits=3"
    everything, _ = lab.quantized(graph, options, data)
    budget = share * independent(graph, everything, data)
    result, record = lab.quantized(graph, f"{options},max_drop={budget}", data)
    assert independent(graph, result, data) <= budget * 1.01
    kept = [row["share"] for row in record.table if row["kernel"].startswith("float: not quantized")]
    rest = [row["share"] for row in record.table if row["kernel"].startswith("float: only weights")]
    assert 0 < len(kept) < 8
    assert min(kept) >= max(rest)
    assert sum(kept) + sum(rest) == pytest.approx(1)
    assert [row["weight"] for row in record.table].count("float") == len(kept)
    assert 2 < record.fired["evaluations of the model"] <= limit(8)
    (note,) = record.notes
    assert note.startswith("quantization loses ")
    assert note.endswith(f"allowed {budget:g}")


def test_a_budget_of_nothing_leaves_the_model_alone(lab):
    graph = lab.convnet()
    result, record = lab.quantized(graph, "max_drop=0,calibration=mse", lab.samples(graph))
    assert FAKE_QUANTIZE not in lab.ops(result)
    assert str(result) == str(graph)
    assert record.fired["layers kept in float: not quantized, to keep the budget"] == 5
    assert record.fired["evaluations of the model"] <= 5


def test_products_in_between_are_quantized_in_blocks_of_rows(lab):
    """Which are more precise than one scale for all rows, and less than floating point."""
    graph = lab.build(lambda x: op.MatMul(x, lab.weights()(16, 24)), sym("n"), 16)
    data = lab.samples(graph)
    for sample in data:
        sample["x"] *= np.geomspace(0.01, 100, 8, dtype=np.float32)[:, None]
    result, record = lab.quantized(graph, "max_drop=0.001", data)
    assert record.table[0]["kernel"] == "int8 in blocks of rows"
    (quantizer,) = lab.fakes(result).activations
    assert quantizer.attrs == {"format": "int8", "axis": -1, "block_size": 128}
    assert independent(graph, result, data) < 0.001


def test_a_metric_decides(lab):
    graph = deep(lab)
    data = lab.samples(graph)
    calls = []

    def indifferent(outputs):
        calls.append([o["y"].shape for o in outputs])
        return 1.0

    _, record = lab.quantized(graph, "max_drop=0", data, metric=indifferent)
    assert {row["kernel"] for row in record.table} == {"int8"}
    assert calls == [[(8, 24)] * 4] * (2 * record.fired["evaluations of the model"])
    original = [backend("reference").run(graph, s)["y"] for s in data]

    def strict(outputs):
        return float(all(np.array_equal(o["y"], e) for o, e in zip(outputs, original, strict=True)))

    result, _ = lab.quantized(graph, "max_drop=0.5", data, metric=strict)
    assert FAKE_QUANTIZE not in lab.ops(result)


def test_metrics_that_are_no_numbers(lab):
    graph = lab.mlp()
    data = lab.samples(graph)
    with pytest.raises(RequestError, match="the metric of the original is not a number"):
        lab.quantized(graph, "max_drop=0.1", data, metric=lambda outputs: math.nan)
    original = backend("reference").run(graph, data[0])["y"]

    def fragile(outputs):
        return 1.0 if np.array_equal(outputs[0]["y"], original) else math.nan

    result, _ = lab.quantized(graph, "max_drop=0.1", data, metric=fragile)
    assert FAKE_QUANTIZE not in lab.ops(result)


def test_sensitivity_can_be_measured(lab):
    graph = deep(lab)
    data = lab.samples(graph)
    _, record = lab.quantized(graph, "activations=float,bits=3,sensitivity=measured", data)
    drops = [row["drop"] for row in record.table]
    assert record.fired["evaluations of the model"] == 8
    assert sorted(np.argsort(drops)[-2:]) == [2, 5]
    for row, drop in zip(record.table, drops, strict=True):
        assert row["share"] == pytest.approx(drop / sum(drops))
    with pytest.raises(RequestError, match="samples are needed"):
        lab.quantized(graph, "activations=float,sensitivity=measured")


def test_predictions_are_of_the_ranges_that_were_chosen(lab):
    graph = lab.build(lambda x: op.MatMul(x, lab.weights()(32, 24)), sym("n"), 32)
    data = lab.samples(graph, rows=200)
    for sample in data:
        sample["x"][0, 0] = 20
    found = {}
    for calibration in ("minmax", "mse", "percentile", "auto"):
        result, record = lab.quantized(graph, f"calibration={calibration}", data)
        (quantizer,) = lab.fakes(result).activations
        found[calibration] = (float(quantizer.given(1).const.numpy()), record.table[0]["sqnr"])
        assert record.table[0]["sqnr"] == pytest.approx(lab.sqnr(graph, result, data), abs=0.5)
    chosen = found.pop("auto")
    assert chosen != found.pop("minmax")
    assert chosen in found.values()


@pytest.mark.parametrize("target", ["onnxruntime:x64", "tensorrt"])
def test_every_mixture_of_choices_is_a_sound_graph(lab, target):
    """With fewer layers in integers, others stand at the border, and need ranges that nobody needed before."""
    graph, pass_ = lab.convnet(), Quantize(calibration="minmax")
    before, data = str(graph), lab.samples(graph, count=1)
    ctx = Context(lambda: backend("reference"), target=target, samples=lambda: data)
    chosen, layers = pass_.settings(target_for(target)), layers_of(graph)
    trial = Trial(graph, learn(graph, layers, chosen, ctx), ctx)
    losses = {}
    for choices in itertools.product(["integers", "weights"], repeat=len(layers)):
        verify(trial._quantized(list(choices), chosen))
        losses[choices] = trial.drop(list(choices), chosen)
    assert trial.evaluations == 2 ** len(layers)
    assert max(losses.values()) < 0.01
    assert len(set(losses.values())) > len(losses) / 2
    assert str(graph) == before
    verify(graph)
