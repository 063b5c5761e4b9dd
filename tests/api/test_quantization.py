"""Quantization through `planish.optimize` and the command line: recipes, data, metrics, reports, and complaints."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import planish
from planish import optimizer
from planish.backends import backend
from planish.ir import DType, Graph, GraphOutput, constant, edit, op, sym, tensor_type
from planish.ir.quantization import FAKE_QUANTIZE
from planish.optimizer import optimize

RECIPES = {  # how many times as small the weights become at least, and how far outputs may move
    "int8": (3.2, 0.05),
    "int8-dynamic": (3.2, 0.05),
    "int8-weights": (3.5, 0.03),
    "int4-weights": (4.5, 0.25),
    "fp16": (1.9, 0.005),
}


def network(tiny, width=64):
    def layer(x, inputs, outputs, seed):
        weight = tiny.weights(inputs, outputs, seed=seed).const.numpy() / np.float32(np.sqrt(inputs))
        return op.MatMul(x, constant(weight)) + tiny.weights(outputs, seed=seed + 1)

    def build(x):
        return layer(op.Relu(layer(op.Relu(layer(x, 32, width, 0)), width, width, 2)), width, 16, 4)

    graph = tiny.graph(build, ("x", tensor_type(DType.FLOAT, sym("batch"), 32)))
    for i, node in enumerate(graph.nodes):
        node.name = f"layer{i}/{node.op}"
    return graph


def samples(count=6, rows=5, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, 32), np.float32)} for _ in range(count)]


@pytest.fixture
def path(tiny, tmp_path):
    """The path of a network in a folder of its own."""
    path = tmp_path / "net.onnx"
    planish.save(network(tiny), path, opset=21)
    return path


def run(path, data):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, sample)[0].astype(np.float32) for sample in data])


# recipes


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe, tiny, path, tmp_path):
    smaller, moved = RECIPES[recipe]
    result = optimize(str(path), recipe, data=samples(rows=200), measure=False)
    report = result.report
    assert report.ok
    assert report.verification.verdict == "passed"
    assert report.before.bytes > smaller * report.after.bytes
    assert not any("made-up" in note for note in report.notes)
    facts = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert facts["after"]["bytes"] == report.after.bytes
    result.save(tmp_path / "out.onnx")
    fresh = samples(seed=9)
    before, after = run(path, fresh), run(tmp_path / "out.onnx", fresh)
    assert np.abs(after - before).max() < moved * np.abs(before).max()
    assert (tmp_path / "out.onnx").stat().st_size * (smaller - 1) < path.stat().st_size


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "fp16"])
def test_reports_have_a_row_for_each_layer(recipe, path):
    report = optimize(str(path), recipe, data=samples(), measure=False).report
    rows = report.layers
    assert len(rows) == 3
    assert all(row["weight"] == ("uint4" if recipe == "int4-weights" else "int8") for row in rows)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[0]["low"] == pytest.approx(min(s["x"].min() for s in samples()), rel=1e-6)
    (of_pass,) = [p for p in report.to_dict()["passes"] if p["table"]]
    assert of_pass["name"].startswith("quantize")
    assert of_pass["table"] == rows
    for word in ("SQNR", "runs as", rows[0]["layer"], rows[0]["kernel"]):
        assert word in str(report)


def test_only_the_budget_of_the_recipe_is_lost(tiny):
    """A network that eight bits cannot compute stays in floating point, and the report says so."""
    graph = tiny.graph(
        lambda x: op.MatMul(x, constant(np.float32([[1, 1e-4], [1, -1e-4]]) @ np.float32([[1, 1], [1, -1]]))),
        ("x", tensor_type(DType.FLOAT, sym("batch"), 2)),
    )
    data = [{"x": np.float32([[1000, -1000 + i], [0.5, i]])} for i in range(4)]
    result = optimize(graph, "int8", data=data, measure=False)
    (row,) = result.report.layers
    assert row["kernel"] != "int8"
    assert any(note.startswith("quantization loses") and "allowed 0.002" in note for note in result.report.notes)


# samples


def test_made_up_samples_are_said_to_be_made_up(tiny):
    graph = network(tiny)
    for options in ({"verify": "end"}, {"verify": "off"}):
        report = optimize(graph, "int8", measure=False, **options).report
        (note,) = [note for note in report.notes if "made-up" in note]
        assert note.startswith("passes looked at 8 made-up samples")
        assert "note" in str(report)
        assert not any("made-up" in n for n in optimize(graph, "default", measure=False, **options).report.notes)
        with_data = optimize(graph, "int8", measure=False, data=samples(), **options).report
        assert not any("made-up" in note for note in with_data.notes)


@pytest.mark.parametrize("verify", ["end", "off"])
def test_samples_come_in_many_forms(tiny, tmp_path, monkeypatch, verify):
    graph, data = network(tiny), samples()
    (tmp_path / "folder").mkdir()
    for i, sample in enumerate(data):
        np.savez(tmp_path / "folder" / f"{i}.npz", **sample)
    np.savez(tmp_path / "one.npz", x=np.concatenate([s["x"] for s in data]))
    (tmp_path / "mod.py").write_text(
        "import numpy as np\ndef data():\n"
        "    rng = np.random.default_rng(0)\n"
        "    return ({'x': rng.standard_normal((5, 32), np.float32)} for _ in range(6))\n"
    )

    def quantized(given):
        return str(optimize(graph, "int8", data=given, measure=False, verify=verify).graph)

    expected = quantized(data)
    assert expected.count(FAKE_QUANTIZE) == 6
    for given in (iter(data), (s for s in data), tuple(data), tmp_path / "folder", f"{tmp_path}/mod.py:data"):
        assert quantized(given) == expected
    assert quantized(tmp_path / "one.npz").count(FAKE_QUANTIZE) == 6
    assert quantized({"x": data[0]["x"]}) != expected


def test_a_metric_sees_the_outputs_for_all_samples(tiny):
    calls = []

    def metric(outputs):
        calls.append([o["y"].shape for o in outputs])
        return 1.0

    report = optimize(network(tiny), "quantize{max_drop=0}", data=samples(7), metric=metric, measure=False).report
    assert calls == [[(5, 16)] * 7] * (2 * report.fired["evaluations of the model"])
    assert {row["kernel"] for row in report.layers} == {"int8"}
    assert "quantization loses 0 of the metric; allowed 0" in report.notes


def test_a_metric_may_be_named_and_may_fail(cli, path, tmp_path):
    (tmp_path / "mod.py").write_text(
        "def constant(outputs):\n    return 0.5\n"
        "def broken(outputs):\n    return outputs[0]['nothing']\n"
        "def words(outputs):\n    return 'good'\n"
    )
    np.savez(tmp_path / "data.npz", **samples(1)[0])
    metric = f"{tmp_path}/mod.py:constant"
    report = optimize(str(path), "quantize{max_drop=0}", data=samples(), metric=metric, measure=False).report
    assert {row["kernel"] for row in report.layers} == {"int8"}
    for name, message in (("broken", "KeyError"), ("words", "ValueError"), ("lacking", "lacking")):
        metric = f"{tmp_path}/mod.py:{name}"
        outcome = cli(
            *("optimize", path, "-o", tmp_path / "out.onnx", "-p", "int8"),
            *("--data", tmp_path / "data.npz", "--metric", metric),
        )
        assert outcome.code == 2
        assert message in outcome.err
        assert outcome.err.count("\n") == 1


def test_without_measuring_no_layer_is_measured(tiny, monkeypatch):
    asked = []

    def stopwatch(first, second):
        first(), second()
        asked.append(1)
        return 2.0, 1.0

    monkeypatch.setattr(optimizer, "_seconds", stopwatch)
    optimize(network(tiny), "int8", data=samples(), measure=False)
    assert asked == []


# the command line


def test_the_command_line_writes_a_quantized_model(cli, path, tmp_path):
    np.savez(tmp_path / "data.npz", **samples(1, rows=50)[0])
    out = tmp_path / "out.onnx"
    outcome = cli("optimize", path, "-o", out, "-p", "int8", "--data", tmp_path / "data.npz", "--no-measure", "--json")
    assert outcome.code == 0, outcome.err
    facts = outcome.json
    assert facts["ok"]
    assert [len(p["table"]) for p in facts["passes"] if p["table"]] == [3]
    assert planish.compare(str(path), str(out)).largest < 0.05
    text = cli("optimize", path, "-o", out, "-p", "int8", "--no-measure", "--report", tmp_path / "r.html").out
    assert "made-up samples" in text
    assert "SQNR" in text
    assert "SQNR" in (tmp_path / "r.html").read_text()


def test_bad_requests_are_exit_code_2_and_one_line(cli, path, tmp_path):
    def write(name, **arrays):
        np.savez(tmp_path / f"{name}.npz", **arrays)

    good = samples(1)[0]["x"]
    write("good", x=good)
    write("name", input=good)
    write("type", x=good.astype(np.float64))
    write("shape", x=good[:, :3])
    write("nan", x=np.full_like(good, np.nan))
    write("empty", x=good[:0])
    before = sorted(p.name for p in tmp_path.iterdir())
    for pipeline, data, message in (
        ("quantize{only=[nothing]}", "good", "no layer matches 'nothing'"),
        ("quantize{skip=['*/Conv']}", "good", "no layer matches '*/Conv'"),
        ("smooth{only=[nothing]}", "good", "no layer matches 'nothing'"),
        ("quantize{calibration=guess}", "good", "calibration takes one of auto"),
        ("quantize{bits=1}", "good", "bits is 1"),
        ("quantize{bit=4}", "good", "no option 'bit'"),
        ("quantize{percentile=200}", "good", "the percentile must be"),
        ("quantize{block=-4}", "good", "granularity is"),
        (f"quantize{{saved='{tmp_path}/none/c.json'}}", "good", "No such file or directory"),
        (f"quantize{{saved='{path}'}}", "good", "is no calibration"),
        ("int8", "name", "has no input 'x'"),
        ("int8", "type", "is float64, not float"),
        ("int8", "shape", "does not fit"),
        ("int8", "nan", "all 160 elements are NaN or infinite"),
        ("quantize", "nan", "all 160 elements are NaN or infinite"),
        ("int8", "empty", "is an empty batch"),
        ("int4-weights", "empty", "is an empty batch"),
        ("int8", "none", "no such file"),
    ):
        for more in ((), ("--verify", "off")):
            arguments = ("optimize", path, "-o", tmp_path / "out.onnx", "-p", pipeline, "--no-measure", *more)
            outcome = cli(*arguments, "--data", tmp_path / f"{data}.npz")
            assert outcome.code == 2, (pipeline, data, outcome)
            assert message in outcome.err
            assert outcome.err.startswith("planish: ")
            assert outcome.err.count("\n") == 1
            assert outcome.out == ""
            assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_nothing_to_quantize(cli, tiny, tmp_path):
    planish.save(tiny.graph(op.Relu, ("x", tensor_type(DType.FLOAT, 3))), tmp_path / "relu.onnx")
    outcome = cli("optimize", tmp_path / "relu.onnx", "-o", tmp_path / "out.onnx", "-p", "int8", "--no-measure")
    assert (outcome.code, outcome.out) == (2, "")
    assert "nothing to quantize: no Conv, Gemm, MatMul with a constant weight" in outcome.err
    assert not (tmp_path / "out.onnx").exists()


def test_explain_tells_about_layers(cli, path, tmp_path):
    np.savez(tmp_path / "data.npz", **samples(1, rows=50)[0])
    facts = cli("explain", path, "-p", "int8", "--data", tmp_path / "data.npz", "--json").json
    assert [row["kernel"] for row in facts["layers"]] == ["int8"] * 3
    assert all(f["node"].startswith(("Relu", "Mul")) and f["reason"] for f in facts["floats"])  # what smoothing inserts
    facts = cli("explain", path, "-p", "default,quantize", "--data", tmp_path / "data.npz", "--json").json
    assert [row["kernel"] for row in facts["layers"]] == ["int8"] * 3
    assert facts["floats"] == []
    assert facts["blocked"] == []
    assert facts["fired"]["layers in int8"] == 3
    facts = cli("explain", path, "-p", "quantize{only=['layer0*'],activations=dynamic}", "--json").json
    assert [row["layer"] for row in facts["layers"]] == ["layer0/MatMul"]
    reasons = {f["node"]: f["reason"] for f in facts["floats"]}
    assert reasons["MatMul 'layer3/MatMul'"] == "its weight is not quantized"
    assert reasons["Relu 'layer2/Relu'"] == "onnxruntime:x64 has no integer kernel for Relu"
    text = cli("explain", path, "-p", "quantize{only=['layer0*'],activations=dynamic}").out
    assert "In floating point:" in text
    assert "SQNR" in text
    assert cli("explain", path, "-p", "default", "--json").json["layers"] == []


# models that others quantized


def convnet(tiny, path):
    def build(x):
        h = op.Relu(op.Conv(x, tiny.weights(8, 3, 3, 3), tiny.weights(8, seed=1)))
        h = op.Relu(op.Conv(h, constant(tiny.weights(8, 8, 3, 3, seed=2).const.numpy() / 8), tiny.weights(8, seed=3)))
        return op.Flatten(op.GlobalAveragePool(h))

    planish.save(tiny.graph(build, ("x", tensor_type(DType.FLOAT, 2, 3, 12, 12))), path, opset=17)


class Reader(CalibrationDataReader):
    def __init__(self, data):
        self.data = iter(data)

    def get_next(self):
        return next(self.data, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_quantized_model_stays_quantized_and_computes_the_same(tiny, tmp_path, form):
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((2, 3, 12, 12), np.float32)} for _ in range(4)]
    convnet(tiny, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "theirs.onnx", Reader(data), quant_format=QuantFormat[form],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    result = optimize(str(tmp_path / "theirs.onnx"), data=data, measure=False)
    assert result.report.ok
    convolutions = [n for n in result.graph.nodes if n.op == "Conv"]
    assert len(convolutions) == 2
    assert all(o.producer.op == FAKE_QUANTIZE for node in convolutions for o in node.operands[:2])
    result.save(tmp_path / "ours.onnx")
    before, after = run(tmp_path / "theirs.onnx", data), run(tmp_path / "ours.onnx", data)
    step = max(float(n.given(1).const.numpy().max()) for n in result.graph.nodes if n.op == FAKE_QUANTIZE)
    assert np.abs(after - before).max() <= step * 1.01
    assert np.abs(after - run(tmp_path / "float.onnx", data)).max() < 0.05 * np.abs(before).max()

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(tmp_path / "ours.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [n.op_type for n in onnx.load(tmp_path / "loaded.onnx").graph.node]
    assert operators.count("QLinearConv") == 2
    assert "Conv" not in operators


def test_swish_between_convolutions_runs_in_integers(tmp_path):
    rng = np.random.default_rng(0)
    graph = Graph("swish")
    value = graph.add_input(tensor_type(DType.FLOAT, 1, 8, 16, 16), "x")
    for _ in range(3):
        weight = rng.standard_normal((8, 8, 3, 3), np.float32) / 8
        value = op.Conv(value, constant(weight), constant(rng.standard_normal(8, np.float32)), pads=[1, 1, 1, 1])
        value = op.Mul(value, op.Sigmoid(value))
    edit.insert_floating([value], graph.ret)
    graph.set_outputs([value], [GraphOutput("y", value.type)])
    data = [{"x": rng.standard_normal((1, 8, 16, 16), np.float32)} for _ in range(8)]
    result = optimize(graph, "default,quantize", data=data, measure=False)
    result.save(tmp_path / "int8.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    operators = Counter(n.op_type for n in onnx.load(tmp_path / "loaded.onnx").graph.node)
    assert (operators["QLinearConv"], operators["QLinearSigmoid"], operators["QLinearMul"]) == (3, 2, 2)
    for sample in data:
        (expected,) = backend("reference").run(graph, sample).values()
        (found,) = session.run(None, sample)
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_quantizing_twice_changes_nothing_more(tiny, tmp_path, path):
    data = samples()
    optimize(str(path), "int8", data=data, measure=False).save(tmp_path / "once.onnx")
    with pytest.raises(planish.PlanishError, match="nothing to quantize"):
        optimize(str(tmp_path / "once.onnx"), "default,quantize", data=data, measure=False)


def test_a_budget_that_cannot_be_kept_is_exit_code_1(cli, path, tmp_path):
    (tmp_path / "mod.py").write_text("def worse(outputs, calls=[]):\n    calls.append(1)\n    return -len(calls)\n")
    np.savez(tmp_path / "data.npz", **samples(1)[0])
    outcome = cli(
        *("optimize", path, "-o", tmp_path / "out.onnx", "-p", "quantize{max_drop=0.001}", "--no-measure"),
        *("--data", tmp_path / "data.npz", "--metric", f"{tmp_path}/mod.py:worse"),
    )
    assert outcome.code == 1
    assert "of the metric is lost, not 0.001 at most" in outcome.err
    assert not (tmp_path / "out.onnx").exists()


def test_a_metric_needs_data(path):
    with pytest.raises(planish.PlanishError, match="a metric needs the data"):
        optimize(str(path), "int8", metric=lambda outputs: 1.0)


def test_saved_calibrations_of_other_weights_are_refused(tiny, tmp_path):
    """What ``smooth`` makes of other data are other weights: ranges that were saved before do not hold for them."""
    saved = f"quantize{{saved='{tmp_path / 'ranges.json'}'}}"
    graph = network(tiny)
    optimize(graph, saved, data=samples(), measure=False)
    optimize(graph, saved, data=samples(seed=1), measure=False)
    weight = next(n for n in graph.nodes if n.op == "MatMul").given(1)
    weight.const = constant(weight.const.numpy() * np.float32(1.5)).const
    with pytest.raises(planish.PlanishError, match="of another graph"):
        optimize(graph, saved, data=samples(), measure=False)
