"""``decouple``: sums of depthwise and pointwise convolutions against their convolution, and numpy's decompositions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import DType, Graph, Value, constant, op, sym
from planish.passes import Pipeline
from planish.passes.base import RequestError
from planish.passes.factorize.decouple import Decouple
from planish.passes.pipeline import PipelineError

ORDERS = ("depthwise-first", "pointwise-first")


@st.composite
def convolutions(draw: Any) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], bool]:
    """Attributes, and shapes of weight and input, of some convolution that is no pointwise one."""
    spatial = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 4), min_size=spatial, max_size=spatial).filter(lambda k: max(k) > 1))
    sizes = st.lists(st.integers(1, 2), min_size=spatial, max_size=spatial)
    attrs: dict[str, Any] = {"strides": draw(sizes), "dilations": draw(sizes)}
    pads = draw(st.sampled_from(["none", "some", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if pads == "some":
        attrs["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * spatial, max_size=2 * spatial))
    elif pads != "none":
        attrs["auto_pad"] = pads
    if draw(st.booleans()):
        attrs["kernel_shape"] = kernel
    o, i = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    room = [(k - 1) * d + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, attrs["dilations"], strict=True)]
    return attrs, (o, i, *kernel), (2, i, *room), draw(st.booleans())


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.sampled_from(ORDERS), st.sampled_from(["plain", "whitened"]), st.integers(0, 99))
def test_all_terms_together_are_exact(lab: SimpleNamespace, case: Any, order: str, method: str, seed: int) -> None:
    attrs, weight, shape, bias = case
    graph = lab.conv(lab.normal(seed, *weight), *shape, bias=bias, **attrs)
    data = lab.images(seed, *shape)
    text = f"decouple{{terms=99,order={order},method={method},skip_first=false}}"
    changed, record = lab.run(graph, text, data)
    assert record.fired["layers factorized"] == 1
    assert changed.nodes and lab.ops(changed).count("Conv") > 1
    assert lab.error(graph, changed, data) <= 1e-5


@pytest.mark.parametrize("order", ORDERS)
def test_terms_are_those_of_the_singular_value_decompositions_of_slices(lab: SimpleNamespace, order: str) -> None:
    weight = lab.normal(1, 6, 5, 3, 3)
    graph = lab.conv(weight, 1, 5, 9, 9, pads=[1, 1, 1, 1])
    changed, record = lab.run(graph, f"decouple{{terms=2,order={order},skip_first=false}}")
    flat = weight.reshape(6, 5, 9)
    expected = np.zeros_like(flat)
    for n in range(5 if order == "depthwise-first" else 6):
        at: Any = (slice(None), n) if order == "depthwise-first" else n
        u, s, v = np.linalg.svd(flat[at], full_matrices=False)
        expected[at] = (u[:, :2] * s[:2]) @ v[:2]
    reference = lab.conv(expected.reshape(weight.shape), 1, 5, 9, 9, pads=[1, 1, 1, 1])
    data = lab.images(2, 1, 5, 9, 9)
    assert lab.error(reference, changed, data) <= 1e-5
    (row,) = record.table
    lost = np.linalg.norm(expected - flat) / np.linalg.norm(flat)  # without samples: of white inputs
    assert row["error"] == pytest.approx(lost, rel=1e-5)
    assert row["parameters"] == [270, 2 * 5 * (9 + 6) if order == "depthwise-first" else 2 * 6 * (9 + 5)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", ["plain", "whitened"])
def test_the_predicted_error_is_that_of_the_outputs(lab: SimpleNamespace, order: str, method: str) -> None:
    weight = lab.normal(3, 8, 6, 3, 3)
    graph = lab.conv(weight, 2, 6, 11, 11, bias=False)
    data = lab.images(4, 2, 6, 11, 11, count=6)
    changed, record = lab.run(graph, f"decouple{{terms=2,order={order},method={method},skip_first=false}}", data)
    assert lab.error(graph, changed, data) == pytest.approx(record.table[0]["error"], rel=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_known_of_the_inputs_makes_it_better(lab: SimpleNamespace, order: str) -> None:
    for seed in range(4):
        graph = lab.conv(lab.normal(seed, 8, 6, 3, 3), 2, 6, 12, 12)
        data = lab.images(seed + 10, 2, 6, 12, 12, count=8)
        found = [
            lab.error(graph, lab.run(graph, f"decouple{{order={order},method={m},skip_first=false}}", data)[0], data)
            for m in ("plain", "whitened")
        ]
        assert found[1] < 0.7 * found[0]


def test_an_error_budget_is_kept_with_as_few_terms_as_it_takes(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(5, 8, 8, 3, 3), 2, 8, 10, 10)
    data = lab.images(6, 2, 8, 10, 10)
    before = 1.0
    for terms in range(1, 9):
        _, record = lab.run(graph, f"decouple{{terms={terms},order=pointwise-first,skip_first=false}}", data)
        error = record.table[0]["error"]
        budget = (before + error) / 2
        _, record = lab.run(graph, f"decouple{{error={budget},order=pointwise-first,skip_first=false}}", data)
        assert record.table[0]["rank"] == f"{terms} term" + ("s" if terms > 1 else "")
        assert record.table[0]["error"] == pytest.approx(error)
        before = error


def test_energy_is_of_the_squared_singular_values(lab: SimpleNamespace) -> None:
    weight = lab.normal(7, 7, 4, 3, 3)
    squares = np.square(np.linalg.svd(weight.reshape(7, 4, 9), compute_uv=False)).sum(axis=0)
    shares = np.cumsum(squares) / squares.sum()
    graph = lab.conv(weight, 1, 4, 8, 8)
    for terms in (1, 2, 3):
        text = f"decouple{{energy={shares[terms - 1] - 1e-4},order=pointwise-first,skip_first=false}}"
        assert lab.run(graph, text)[1].table[0]["rank"].startswith(f"{terms} term")


def kinds(graph: Graph) -> tuple[int, bool]:
    """How many convolutions there are, and whether any has groups that are not depthwise."""
    convs = [n for n in graph.nodes if n.op == "Conv"]
    groups = [(n.attrs.get("group", 1), *(n.given(1).shape or ())) for n in convs]
    return len(convs), any(group > 1 and (out != group or each > 1) for group, out, each, *_ in groups)


def by_convolutions(graph: Graph) -> float:
    """Seconds: those of a regular convolution, or of so many small ones, or of one with groups."""
    count, grouped = kinds(graph)
    return 10.0 if count == 1 else 100.0 if grouped else float(count)


def test_a_speedup_is_reached_with_as_many_terms_as_it_allows(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(8, 8, 8, 3, 3), 1, 8, 10, 10)
    text = "decouple{speedup=2,order=depthwise-first,skip_first=false}"
    _, record = lab.run(graph, text, times=lab.Machine(by_convolutions))
    (row,) = record.table
    assert (row["rank"], row["form"]) == ("4 terms", "depthwise, joined, pointwise")  # 4 + 1 convolutions
    assert row["seconds"] == [10.0, 5.0]
    _, record = lab.run(graph, text.replace("=2", "=8"), times=lab.Machine(by_convolutions))
    assert record.table[0]["outcome"] == "left alone: no rank makes it 8 times as fast"
    assert record.missed == "no layer is 8 times as fast"


FORMS = {
    "depthwise, pointwise": lambda g: g.count("Add") == 2,
    "depthwise, joined, pointwise": lambda g: "Concat" in g,
    "depthwise with a multiplier, pointwise": lambda g: g == ["Conv", "Conv"],
    "pointwise, depthwise": lambda g: g.count("Add") == 2,
    "pointwise, split, depthwise": lambda g: "Split" in g,
    "pointwise, grouped": lambda g: g == ["Conv", "Conv"],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_that_is_measured_to_be_fastest_is_taken(lab: SimpleNamespace, form: str) -> None:
    order = "depthwise-first" if form.startswith("depthwise") else "pointwise-first"
    machine = lab.Machine(lambda g: 1.0 if FORMS[form](lab.ops(g)) else 5.0)
    graph = lab.conv(lab.normal(9, 6, 6, 3, 3), 1, 6, 9, 9, strides=[2, 2], pads=[1, 1, 1, 1])
    text = f"decouple{{terms=3,order={order},skip_first=false}}"
    changed, record = lab.run(graph, text, times=machine)
    assert record.table[0]["form"] == form
    assert FORMS[form](lab.ops(changed))
    data = lab.images(9, 1, 6, 9, 9)
    assert lab.error(lab.run(graph, text, times=(1.0, 0.5))[0], changed, data) <= 1e-5  # all forms are the same


def test_of_orders_that_are_as_fast_the_more_precise_is_taken(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(10, 4, 12, 3, 3), 1, 12, 9, 9)
    errors = {}
    for order in ORDERS:
        _, record = lab.run(graph, f"decouple{{order={order},skip_first=false}}")
        errors[order] = record.table[0]["error"]
    _, record = lab.run(graph, "decouple{skip_first=false}")
    assert record.table[0]["error"] == min(errors.values()) < max(errors.values())


def test_what_is_not_faster_is_left_untouched(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(11, 8, 8, 3, 3), 1, 8, 9, 9)
    changed, record = lab.run(graph, "decouple{skip_first=false}", times=(0.010, 0.012))
    assert str(changed) == str(graph)
    assert record.table[0]["outcome"] == "left alone: not faster (10 ms -> 12 ms)"
    assert record.table[0]["seconds"] == [0.010, 0.012]
    assert record.notes == ["decouple changed nothing: not faster (1 layer)"]


def test_where_nothing_may_be_measured_the_cost_is_predicted(lab: SimpleNamespace) -> None:
    large = lab.conv(lab.normal(12, 64, 64, 3, 3), 1, 64, 20, 20)
    small = lab.conv(lab.normal(12, 4, 4, 3, 3), 1, 4, 20, 20)
    text = "decouple{terms=1,skip_first=false}"
    changed, record = lab.run(large, text, times=None)
    assert lab.ops(changed) == ["Conv", "Conv"]
    assert record.table[0]["seconds"] is None
    before, after = record.table[0]["cost"]
    assert before > 4 * after
    changed, record = lab.run(small, text, times=None)
    assert str(changed) == str(small)
    assert record.table[0]["outcome"].startswith("left alone: not faster (predicted ")


def test_a_model_that_is_slower_as_a_whole_stays_as_it_was(lab: SimpleNamespace) -> None:
    machine = lab.Machine(lambda g: len(lab.ops(g)) ** (-1.0 if g.name == "layer" else 1.0))
    graph = lab.conv(lab.normal(13, 6, 6, 3, 3), 1, 6, 9, 9)
    data = lab.images(13, 1, 6, 9, 9)
    changed, record = lab.run(graph, "decouple{skip_first=false}", data, times=machine)
    assert str(changed) == str(graph)
    assert record.table[0]["outcome"].startswith("left alone: the whole model is slower (")


def test_layers_that_are_alike_are_measured_once(lab: SimpleNamespace) -> None:
    def body(x: Value) -> Value:
        for n in range(4):
            x = op.Relu(op.Conv(x, constant(lab.normal(n, 6, 6, 3, 3)), pads=[1, 1, 1, 1]))
        return x

    machine = lab.Machine(by_convolutions)
    graph = lab.build(body, 1, 6, 8, 8)
    _, record = lab.run(graph, "decouple{order=pointwise-first}", times=machine)
    assert record.fired["layers factorized"] == 3
    assert record.table[0]["outcome"] == "left alone: no layer stands before it"
    assert machine.measured == 3 + 2  # the forms, and the best of them twice more


def test_a_gain_that_does_not_show_each_time_is_none(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(19, 6, 6, 3, 3), 1, 6, 9, 9)
    for times, outcome in (((9, 9, 9), "factorized"), ((9, 9, 4), "left alone: not faster (4e+03 ms -> 5e+03 ms)")):
        seconds = iter([*times, *times])
        machine = lab.Machine(lambda g, s=seconds: next(s) if lab.ops(g) == ["Conv"] else 5.0)
        _, record = lab.run(graph, "decouple{terms=1,order=pointwise-first,skip_first=false}", times=machine)
        assert record.table[0]["outcome"] == outcome


def test_reasons_are_given_for_what_is_no_candidate(lab: SimpleNamespace) -> None:
    def body(x: Value) -> Value:
        x = op.Conv(x, constant(lab.normal(1, 6, 3, 3, 3)))
        x = op.Conv(x, constant(lab.normal(2, 6, 6, 1, 1)))
        x = op.Conv(x, constant(lab.normal(3, 6, 1, 3, 3)), group=6)
        broken = lab.normal(4, 6, 6, 3, 3)
        broken[0, 0, 0, 0] = np.nan
        return op.Conv(x, constant(broken))

    graph = lab.build(body, 1, 3, 12, 12)
    changed, record = lab.run(graph, "decouple")
    assert str(changed) == str(graph)
    assert [row["outcome"].removeprefix("left alone: ") for row in record.table] == [
        "no layer stands before it",
        "it is pointwise already",
        "it has groups already",
        "its weight is not finite",
    ]
    assert len(record.notes) == 1


def test_a_weight_that_several_layers_share_stays_shared(lab: SimpleNamespace) -> None:
    weight = constant(lab.normal(14, 6, 6, 3, 3), name="w")

    def body(x: Value) -> Value:
        for stride in (1, 2):
            x = op.Relu(op.Conv(x, weight, pads=[1, 1, 1, 1], strides=[stride, stride]))
        return x

    graph = lab.build(body, 1, 6, 8, 8)
    data = lab.images(14, 1, 6, 8, 8)
    changed, record = lab.run(graph, "decouple{terms=9,skip_first=false,order=pointwise-first}", data)
    assert record.fired["layers factorized"] == 2
    weights = {o for n in changed.nodes if n.op == "Conv" for o in n.operands[1:] if o is not None}
    assert len(weights) == 2 * 6  # and not twice as many
    assert lab.error(graph, changed, data) <= 1e-5


def test_a_weight_that_something_else_reads_stays(lab: SimpleNamespace) -> None:
    weight = constant(lab.normal(15, 6, 6, 3, 3))
    graph = lab.build(lambda x: op.Add(op.Conv(x, weight), op.ReduceMean(weight)), 1, 6, 8, 8)
    changed, record = lab.run(graph, "decouple{skip_first=false}")
    assert str(changed) == str(graph)
    assert record.table[0]["outcome"] == "left alone: something else reads its weight, too"


def test_half_precision_stays(lab: SimpleNamespace) -> None:
    weight = lab.normal(16, 6, 5, 3, 3).astype(np.float16)
    graph = lab.build(lambda x: op.Conv(x, constant(weight)), 1, 5, 8, 8, dtype=DType.FLOAT16)
    changed, _ = lab.run(graph, "decouple{terms=9,skip_first=false}")
    assert {n.result.dtype for n in changed.nodes} == {DType.FLOAT16}
    data = [{"x": s["x"].astype(np.float16)} for s in lab.images(16, 1, 5, 8, 8)]
    assert lab.error(graph, changed, data) < 1e-2


def test_sizes_that_are_open_are_those_of_the_samples(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(17, 6, 6, 3, 3), sym("n"), 6, sym("h"), sym("w"))
    seen = []

    def cost(g: Graph) -> float:
        if g.name == "layer":
            seen.append(g.inputs[0].shape)
        return by_convolutions(g)

    lab.run(graph, "decouple{skip_first=false}", lab.images(17, 2, 6, 7, 9), times=lab.Machine(cost))
    assert set(seen) == {(2, 6, 7, 9)}


def test_in_integers_layers_are_measured_between_quantized_values(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(18, 6, 6, 3, 3), 1, 6, 9, 9)

    def cost(g: Graph) -> float:
        found = lab.ops(g)
        if g.name == "layer":
            assert (found[0], found[-1]) == ("DequantizeLinear", "QuantizeLinear")
            between = sum(len(n.results) for n in g.nodes if n.op in ("Conv", "Add", "Concat", "Split")) - 1
            assert found.count("planish.FakeQuantize") == between + found.count("Conv")
        return 1.0 if found.count("Conv") == 1 else 2.0

    changed, record = lab.run(graph, "decouple{precision=int8,skip_first=false}", times=lab.Machine(cost))
    assert str(changed) == str(graph)
    assert record.table[0]["outcome"].startswith("left alone: not faster")


def test_quantization_that_follows_is_what_is_measured(lab: SimpleNamespace) -> None:
    graph = lab.conv(lab.normal(20, 6, 6, 3, 3), 1, 6, 9, 9)
    data = lab.images(20, 1, 6, 9, 9)

    def cost(g: Graph) -> float:  # in integers, sums are slow
        return by_convolutions(g) if "DequantizeLinear" not in lab.ops(g) else float(len(lab.ops(g)))

    for precision, convolutions in (("auto", 1), ("int8", 1), ("float", 3)):
        first = f"decouple{{terms=2,order=pointwise-first,precision={precision},skip_first=false}}"
        changed, _ = lab.run(graph, f"{first},quantize{{calibration=minmax}}", data, times=lab.Machine(cost))
        assert lab.ops(changed).count("Conv") == convolutions
    changed, _ = lab.run(graph, "decouple{order=pointwise-first,skip_first=false}", data, times=lab.Machine(cost))
    assert lab.ops(changed).count("Conv") == 3


# what makes no sense


def test_there_must_be_a_convolution(lab: SimpleNamespace) -> None:
    with pytest.raises(RequestError, match="nothing for decouple: no Conv with a constant weight"):
        lab.run(lab.product(lab.normal(0, 4, 4)), "decouple")
    with pytest.raises(RequestError, match="no layer matches 'head'"):
        lab.run(lab.conv(lab.normal(0, 4, 4, 3, 3), 1, 4, 8, 8), "decouple{only=[head]}")
    with pytest.raises(RequestError, match="needs samples"):
        lab.run(lab.conv(lab.normal(0, 4, 4, 3, 3), 1, 4, 8, 8), "decouple{method=whitened}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("terms=0", "terms is 0"),
        ("energy=1.5", "energy is 1.5"),
        ("error=0.0", "error is 0"),
        ("speedup=1", "speedup is 1"),
        ("terms=2,error=0.1", "error and terms are given"),
        ("order=sideways", "order takes one of"),
        ("terms=two", "terms takes"),
    ],
)
def test_options_are_checked(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(f"decouple{{{text}}}")


def test_the_pass_prints_as_it_parses() -> None:
    text = "decouple{only=[a],terms=3,order=pointwise-first}"
    (parsed,) = Pipeline.parse(text).passes
    assert parsed == Decouple(only=("a",), terms=3, order="pointwise-first")
    assert Pipeline.parse(str(parsed)).passes == (parsed,)
