"""``quantize``: what it makes of small models, how much is lost, and what it refuses."""

import numpy as np
import pytest

from planish.ir import constant, edit, op, sym
from planish.ir.clone import clone_graph
from planish.ir.quantization import FAKE_QUANTIZE, format_of, is_fake_quantize, quantize
from planish.ir.text import parse
from planish.passes import Pipeline
from planish.passes.base import RequestError
from planish.passes.pipeline import PipelineError

# integers


@pytest.mark.parametrize("calibration", ["auto", "minmax", "moving-average", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("name", ["mlp", "convnet", "embedding"])
def test_static_int8_is_close_on_fresh_inputs(lab, name, calibration):
    graph = getattr(lab, name)()
    before = str(graph)
    result, record = lab.quantized(graph, f"calibration={calibration}", lab.samples(graph))
    assert str(graph) == before
    least = 20 if calibration in ("entropy", "moving-average") else 30
    assert lab.sqnr(graph, result, lab.samples(graph, seed=9)) > least
    layers = [n for n in result.nodes if n.op in ("Conv", "MatMul", "Gemm")]
    assert record.fired["layers in int8"] == len(layers) == len(record.table)
    assert all(is_fake_quantize(o) for node in layers for o in node.operands[:2])
    assert lab.formats(lab.fakes(result).activations) == {"uint8"}
    assert {row["kernel"] for row in record.table} == {"int8"}


def test_everything_between_convolutions_runs_in_integers(lab):
    graph = lab.convnet()
    result, _ = lab.quantized(graph, "calibration=minmax", lab.samples(graph))
    for node in result.nodes:
        if node.op in ("Conv", "Add", "MaxPool", "GlobalAveragePool"):
            assert is_fake_quantize(node.given(0)), node
            assert [u.op for u in node.result.users] == [FAKE_QUANTIZE], node
    pool = next(n for n in result.nodes if n.op == "MaxPool")
    before, behind = pool.given(0).producer, pool.result.users[0]
    assert before.given(1).const.numpy() == behind.given(1).const.numpy()


def test_relu_and_clip_disappear_into_saturation(lab):
    for graph in (lab.mlp(), lab.convnet()):
        data = lab.samples(graph)
        result, _ = lab.quantized(graph, "calibration=minmax", data)
        assert not {"Relu", "Clip"} & set(lab.ops(result))
        put_back = clone_graph(result)
        for node in lab.fakes(put_back).activations:
            producer = node.given(0).producer
            if producer is not None and not node.operand(2).const.numpy().any():  # all codes are of positive numbers
                clipped = op.Clip(node.given(0), np.float32(0))
                edit.insert_floating([clipped], node)
                edit.set_operand(node, 0, clipped)
        assert lab.ops(put_back).count("Clip") >= 2
        np.testing.assert_array_equal(lab.outputs(result, data), lab.outputs(put_back, data))


def test_clips_that_do_more_than_saturation_stay(lab):
    bound = """g (float[8,4] x, float top) => (float[8,4] y) <float[4,4] w = {%s}> {
        a = Clip (x, , top) y = MatMul (a, w) }"""
    graph = parse(bound % ", ".join(map(str, range(16))))
    numbers = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    data = [{"x": numbers, "top": np.float32(top)} for top in (0.1, 3)]
    result, _ = lab.quantized(graph, "", data)
    assert lab.ops(result).count("Clip") == 1
    assert lab.sqnr(graph, result, data[:1]) > 30
    two_users = lab.build(lambda x: op.MatMul(h := op.Relu(x), lab.weights()(4, 4)) + h, 8, 4)
    result, _ = lab.quantized(two_users, "", lab.samples(two_users))
    assert lab.ops(result).count("Relu") == 1
    narrow = lab.build(lambda x: op.MatMul(op.Clip(x, np.float32(-1), np.float32(0.5)), lab.weights()(4, 4)), 8, 4)
    result, _ = lab.quantized(narrow, "calibration=minmax", [{"x": numbers}])
    assert lab.sqnr(narrow, result, [{"x": 10 * numbers}]) > 30


def test_dynamic_quantizes_products_at_run_time_and_needs_no_samples(lab):
    graph = lab.mlp()
    result, record = lab.quantized(graph, "activations=dynamic")
    assert [len(n.operands) for n in lab.fakes(result).activations] == [1, 1, 1]
    assert lab.formats(lab.fakes(result).weights) == {"int8"}
    assert record.fired["layers in int8"] == 3
    assert lab.sqnr(graph, result, [{"x": 100 * s["x"]} for s in lab.samples(graph)]) > 28  # whatever the range
    _, record = lab.quantized(lab.convnet(), "activations=dynamic")
    assert [row["operator"] for row in record.table] == ["Gemm"]


def test_a_value_that_several_layers_read_is_quantized_once(lab):
    w = lab.weights()
    graph = lab.build(lambda x: op.Tanh(op.MatMul(x, w(4, 6))) * op.MatMul(x, w(4, 6)) + op.ReduceSum(x), 8, 4)
    for activations in ("static", "dynamic"):
        result, _ = lab.quantized(graph, f"activations={activations}", lab.samples(graph))
        assert len(lab.fakes(result).activations) == 1
        assert len(graph.inputs[0].users) == len(result.inputs[0].users) + 1 == 3


def test_nested_layers_are_quantized_at_run_time_only(lab):
    text = """g (float[2,4] x, bool c) => (float[2,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
        y = If (c) <then_branch = t () => (float[2,3] a) { a = MatMul (x, w) },
                    else_branch = e () => (float[2,3] b) { b = MatMul (x, w) }> }"""
    result, record = lab.quantized(parse(text), "activations=dynamic")
    assert lab.ops(result).count(FAKE_QUANTIZE) == 4
    assert len(record.table) == 2
    data = [{"x": np.ones((2, 4), np.float32), "c": np.array(True)}]
    with pytest.raises(RequestError, match="nothing to quantize"):
        lab.quantized(parse(text), "", data)


def test_half_precision(lab):
    graph = lab.mlp(np.float16, "half")
    for activations in ("static", "dynamic", "float"):
        result, _ = lab.quantized(graph, f"activations={activations}", lab.samples(graph))
        assert lab.sqnr(graph, result, lab.samples(graph, seed=9)) > 33


# targets


@pytest.mark.parametrize(
    ("target", "activation", "width"),
    [
        ("onnxruntime", "uint8", 8),
        ("onnxruntime:x64", "uint8", 8),
        ("onnxruntime:x64-avx2", "uint8", 7),
        ("onnxruntime:arm64", "int8", 8),
        ("tensorrt", "int8", 8),
        ("tensorrt:10", "int8", 8),
        ("xla", "int8", 8),
    ],
)
def test_targets_have_formats_of_their_own(lab, target, activation, width):
    for graph in (lab.mlp(), lab.convnet()):
        result, _ = lab.quantized(graph, "", lab.samples(graph), target)
        found = lab.fakes(result)
        assert lab.formats(found.activations) == {activation}
        assert lab.formats(found.weights) == {f"int{width}"}
        for node in found.weights:
            axis = node.attrs["axis"]
            scale = node.given(1).const.numpy()
            codes = quantize(node.given(0).const.numpy(), scale, None, format_of(node), axis)
            assert 63 <= np.abs(codes.astype(int)).max() <= 64 if width == 7 else np.abs(codes.astype(int)).max() >= 127
        symmetric = [n.operand(2) is None or not n.operand(2).const.numpy().any() for n in found.activations]
        assert all(symmetric) == (target.startswith(("tensorrt", "xla")))
        assert lab.sqnr(graph, result, lab.samples(graph, seed=9)) > 28


def test_symmetric_numbers_do_not_absorb_relu(lab):
    graph = lab.mlp()
    result, _ = lab.quantized(graph, "", lab.samples(graph), "tensorrt")
    assert {"Relu", "Clip"} < set(lab.ops(result))
    with pytest.raises(RequestError, match="nothing is known of quantization for 'abacus'"):
        lab.quantized(graph, "", lab.samples(graph), "abacus")


# which layers


def named(graph):
    for i, node in enumerate(graph.nodes):
        node.name = f"block.{i}/{node.op.lower()}"
    return graph


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ("only=[Gemm]", ["Gemm", "Gemm"]),
        ("skip=[Gemm]", ["MatMul"]),
        ("only=['block.0/*']", ["MatMul"]),
        ("skip=['block.0/*','*.5/gemm']", ["Gemm"]),
        ("only=['*gemm'],skip=['block.3*']", ["Gemm"]),
    ],
)
def test_patterns_choose_layers(lab, options, layers):
    graph = named(lab.mlp())
    result, record = lab.quantized(graph, options, lab.samples(graph))
    assert [row["operator"] for row in record.table] == layers
    assert [is_fake_quantize(n.operand(1)) for n in result.nodes if n.op in ("MatMul", "Gemm")].count(True) == len(
        layers
    )


def test_what_is_asked_for_must_make_sense(lab):
    graph = named(lab.mlp())
    data = lab.samples(graph)
    nan, empty = np.full((3, 16), np.nan, np.float32), np.zeros((0, 16), np.float32)
    broken = lab.build(lambda x: op.MatMul(x, constant(np.full((16, 2), np.inf, np.float32))), sym("n"), 16)
    table = constant(np.full((512, 64), np.nan, np.float32))
    spoilt = lab.build(lambda ids: op.MatMul(op.Gather(table, ids), lab.weights()(64, 2)), sym("n"), kind="ids")
    for model, options, given, message in (
        (graph, "only=[Conv]", data, "no layer matches 'Conv'; the first of 3 layers are block.0/matmul, block.3/gemm"),
        (graph, "skip=['*conv*']", data, r"no layer matches '\*conv\*'"),
        (lab.build(op.Relu, 3), "", data, "nothing to quantize: no Conv, Gemm, MatMul with a constant weight"),
        (graph, "", None, "static activations and mse weights need samples"),
        (graph, "activations=float,weights=gptq", None, "float activations and gptq weights need samples"),
        (graph, "activations=dynamic,max_drop=0.1", None, "samples are needed to measure what is lost"),
        (graph, "", [], "there are no samples to calibrate with"),
        (graph, "", [{"x": nan}], "%x cannot be calibrated: all 48 elements are NaN or infinite"),
        (graph, "", [data[0], {"x": empty}], "sample 2 is an empty batch: input 'x' has shape"),
        (graph, "", [{"z": nan}], "sample 1 has no input 'x'"),
        (graph, "percentile=0", data, "the percentile must be above 0"),
        (graph, "block=-1", data, "granularity is"),
        (broken, "activations=float", None, "the weight holds numbers that are not finite"),
        (spoilt, "activations=dynamic", None, "Gather: the weight holds numbers that are not finite"),
    ):
        with pytest.raises(RequestError, match=message):
            lab.quantized(model, options, given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits=1", "bits is 1: weights have 2 to 8"),
        ("bits=9", "bits is 9: weights have 2 to 8"),
        ("bits=4.5", "bits takes int"),
        (
            "calibration=guess",
            "calibration takes one of auto, minmax, moving-average, percentile, entropy, mse, not 'guess'",
        ),
        ("weights=best", "weights takes one of round, mse, hqq, gptq, adaround"),
        ("activations=some", "activations takes one of static, dynamic, float"),
        ("only=Gemm", "only takes"),
        ("depth=3", "quantize has no option 'depth'"),
    ],
)
def test_options_are_checked_when_the_pipeline_is_read(lab, options, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(f"quantize{{{options}}}")


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_constant_activations(lab, value):
    graph = lab.mlp()
    data = [{"x": np.full((4, 16), value, np.float32)}]
    result, _ = lab.quantized(graph, "", data)
    assert lab.sqnr(graph, result, data) > 30


def test_some_numbers_that_are_not_finite_do_not_spoil_the_rest(lab):
    graph = lab.mlp()
    data = lab.samples(graph)
    data[1]["x"][0, 3], data[2]["x"][5] = np.inf, np.nan
    result, _ = lab.quantized(graph, "max_drop=0.01", data)
    assert lab.sqnr(graph, result, lab.samples(graph, seed=9)) > 30


# saved calibrations


def never():
    raise AssertionError("the model was run")


def test_a_saved_calibration_stands_for_running_the_model(lab, tmp_path):
    graph, path = lab.convnet(), tmp_path / "calibration.json"
    options = f"calibration=mse,saved='{path}'"
    first, record = lab.quantized(graph, options, lab.samples(graph))
    written = path.read_bytes()
    again, other = lab.quantized(graph, options, lab.samples(graph, seed=5), runner_factory=never)
    assert str(again) == str(first)
    assert other.table == record.table
    assert path.read_bytes() == written
    with pytest.raises(RequestError, match="the calibration is of another graph"):
        lab.quantized(lab.mlp(), options, lab.samples(lab.mlp()))
    path.write_text("{}")
    with pytest.raises(RequestError, match="is no calibration"):
        lab.quantized(graph, options, lab.samples(graph))


def test_a_saved_calibration_that_lacks_something_is_refused(lab, tmp_path):
    graph, path = lab.mlp(), tmp_path / "calibration.json"
    for first in (f"only=[MatMul],saved='{path}'", f"activations=dynamic,saved='{path}'"):
        lab.quantized(graph, first, lab.samples(graph))
        with pytest.raises(RequestError, match="remove it to calibrate anew"):
            lab.quantized(graph, f"calibration=mse,saved='{path}'", lab.samples(graph))
        path.unlink()


# with other passes


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_smoothing_rescues_activations_with_outliers(lab, activations):
    large = np.where(np.arange(32) % 11 == 3, 60, 1).astype(np.float32)
    weight = lab.weights(9)(32, 24).const.numpy() / large[:, None]

    def body(x):
        return op.MatMul(op.LayerNormalization(x, constant(large), np.zeros(32, np.float32)), constant(weight))

    graph = lab.build(body, sym("n"), 32)
    options, fresh = f"activations={activations}", lab.samples(graph, seed=9)
    data = lab.samples(graph, rows=200)
    alone, _ = lab.quantized(graph, options, data)
    smoothed, record = lab.quantized(graph, options, data, before="smooth,")
    assert lab.sqnr(graph, alone, fresh) < 20
    assert lab.sqnr(graph, smoothed, fresh) > 35
    assert record.table[0]["sqnr"] > 35


def test_smoothing_does_not_make_outliers_of_channels_that_were_hardly_seen(lab):
    """Behind a Relu, some channels are (nearly) 0 in all of a few samples, and as large as the others in the next."""
    w = lab.weights(0)
    graph = lab.build(
        lambda x: op.MatMul(op.Relu(op.MatMul(op.Relu(op.MatMul(x, w(32, 64)) + w(64, fan=1)), w(64, 64))), w(64, 16)),
        sym("n"),
        32,
    )
    data, fresh = lab.samples(graph, rows=8), lab.samples(graph, rows=50, seed=9)
    alone, _ = lab.quantized(graph, "activations=dynamic", data)
    smoothed, _ = lab.quantized(graph, "activations=dynamic", data, before="smooth,")
    assert lab.sqnr(graph, smoothed, fresh) > lab.sqnr(graph, alone, fresh) - 3


def test_a_convolution_and_a_product_may_read_one_value(lab):
    """Each has channels along another dimension."""
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3, 3, 3), (8, 8))]

    def body(x):
        results = op.Conv(x, constant(weights[0]), pads=[1, 1, 1, 1]), op.MatMul(x, constant(weights[1]))
        return op.Concat(*results, axis=1)

    graph = lab.build(body, 2, 3, 8, 8)
    scale = np.array([1, 3, 9], np.float32)[:, None, None]
    data = [{"x": (rng.standard_normal((2, 3, 8, 8)) * scale).astype(np.float32)} for _ in range(4)]
    for options in ("", "activations=float"):
        other, record = lab.quantized(graph, options, data)
        assert len(record.table) == 2
        assert len(lab.fakes(other).weights) == 2
        assert lab.sqnr(graph, other, data) > 25
