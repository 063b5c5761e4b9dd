"""``quantize``: weights and tables, by every method, and biases that make up for them."""

from functools import partial

import numpy as np
import pytest

from planish.backends.base import backend
from planish.ir import op, sym
from planish.ir.clone import clone_graph
from planish.ir.quantization import FAKE_QUANTIZE
from planish.passes import Pipeline, PipelineError

METHODS = ("round", "mse", "hqq", "gptq", "adaround")


@pytest.mark.parametrize(
    ("options", "form", "shapes", "least"),
    [
        ("", "int8", [(32,), (32,), (8,)], 38),
        ("bits=4", "int4", [(32,), (32,), (8,)], 15),
        ("bits=3", "int3", [(32,), (32,), (8,)], 9),
        ("bits=4,block=8", "int4", [(2, 32), (4, 32), (8, 4)], 18),
        ("bits=4,block=5,symmetric=false", "uint4", [(4, 32), (7, 32), (8, 7)], 20),
        ("bits=8,symmetric=false", "uint8", [(32,), (32,), (8,)], 38),
        ("per_channel=false", "int8", [(), (), ()], 36),
    ],
)
def test_weights_only(lab, options, form, shapes, least):
    graph = lab.mlp()
    result, record = lab.quantized(graph, f"activations=float{options and ','}{options}")
    found = lab.fakes(result)
    assert found.activations == []
    assert lab.formats(found.weights) == {form}
    assert [n.given(1).const.shape for n in found.weights] == shapes
    assert all((n.operand(2) is not None) == form.startswith("u") for n in found.weights)
    assert lab.sqnr(graph, result, lab.samples(graph)) > least
    assert record.fired == {"layers kept in float: only weights are quantized": 3}
    assert {"Relu", "Clip"} < set(lab.ops(result))


def test_a_scale_for_each_channel_is_better_where_they_differ(lab):
    magnitudes = np.geomspace(1, 1e-3, 24, dtype=np.float32)
    weight = np.random.default_rng(0).standard_normal((32, 24), np.float32) * magnitudes
    graph, _ = lab.layer(weight)

    def worst(options):
        result, _ = lab.quantized(graph, "activations=float," + options)
        ratio = np.abs(fake_weight(result) - weight).max(axis=0) / np.abs(weight).max(axis=0)
        return ratio.max()

    assert worst("per_channel=true") < 0.005
    assert worst("per_channel=false") > 0.9


def fake_weight(graph):
    """What the weight of the only layer is after it was quantized."""
    copy = clone_graph(graph)
    node = next(n for n in copy.nodes if n.op == FAKE_QUANTIZE and n.given(0).is_constant)
    copy.set_outputs([node.result])
    copy.output_info[0].name = "y"
    inputs = {v.name: np.zeros([2 if not isinstance(d, int) else d for d in v.shape], np.float32) for v in copy.inputs}
    return backend("reference").compile(copy)(inputs)["y"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mlp", "convnet", "embedding"])
def test_every_method_works_for_every_layer(lab, name, method):
    graph = getattr(lab, name)()
    data = lab.samples(graph)
    for options, least in (("calibration=mse", 30), ("activations=float,bits=4,block=16,symmetric=false", 7)):
        result, _ = lab.quantized(graph, f"weights={method},{options}", data)
        assert lab.sqnr(graph, result, lab.samples(graph, seed=9)) > least


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("kind", ["Gemm", "transposed", "Conv", "grouped"])
def test_methods_that_look_at_inputs_lose_less(lab, kind, bits):
    weight = np.random.default_rng(4).standard_normal((32, 24), np.float32)
    graph, data = {
        "Gemm": partial(lab.layer, weight),
        "transposed": partial(lab.layer, np.ascontiguousarray(weight.T), transB=1),
        "Conv": partial(lab.convolution, 1),
        "grouped": partial(lab.convolution, 4),
    }[kind]()
    found = {}
    for method in METHODS:
        result, _ = lab.quantized(graph, f"activations=float,bits={bits},weights={method}", data)
        found[method] = lab.sqnr(graph, result, data)
    assert found["gptq"] > found["round"] + 3
    assert found["adaround"] > found["round"] + 3
    assert found["mse"] > found["round"] - 0.5


def test_codes_of_gptq_survive_in_the_graph(lab):
    """What comes out of the quantizer is on its grid already, so that encoding gives the codes that were chosen."""
    weight = np.random.default_rng(4).standard_normal((32, 24), np.float32)
    graph, data = lab.layer(weight)
    result, _ = lab.quantized(graph, "activations=float,bits=4,block=8,weights=gptq,symmetric=false", data)
    (node,) = lab.fakes(result).weights
    stored = node.given(0).const.numpy()
    np.testing.assert_array_equal(fake_weight(result), stored)
    step = np.repeat(node.given(1).const.numpy(), 8, axis=0)
    assert (np.abs(stored - weight) / step).max() > 0.6  # not the nearest


def test_tables_are_quantized_row_by_row(lab):
    graph = lab.embedding()
    result, record = lab.quantized(graph, "activations=dynamic")
    (gather,) = [n for n in result.nodes if n.op == "Gather"]
    table = gather.given(0).producer
    assert (table.op, table.attrs["format"], table.attrs["axis"]) == (FAKE_QUANTIZE, "int8", 0)
    rows = np.abs(table.given(0).const.numpy()).max(axis=1)
    np.testing.assert_allclose(table.given(1).const.numpy(), rows / 127, rtol=1e-6)
    assert record.fired["tables in int8"] == 1
    left, record = lab.quantized(graph, "activations=dynamic,embeddings=0")
    assert "tables in int8" not in record.fired
    assert next(n for n in left.nodes if n.op == "Gather").given(0).is_constant
    assert not [name for name in record.fired if name.startswith("tables")]
    small, _ = lab.quantized(lab.embedding(rows=255), "activations=dynamic")  # not worth it
    assert next(n for n in small.nodes if n.op == "Gather").given(0).is_constant


def test_tables_of_four_bits_have_a_scale_per_block_of_a_row(lab):
    graph = lab.embedding()
    result, record = lab.quantized(graph, "activations=dynamic,embeddings=4")
    (gather,) = [n for n in result.nodes if n.op == "Gather"]
    table = gather.given(0).producer
    assert (table.attrs["format"], table.attrs["axis"], table.attrs["block_size"]) == ("int4", 1, 32)
    numbers, scale = table.given(0).const.numpy(), table.given(1).const.numpy()
    assert scale.shape == (len(numbers), 2)
    codes = numbers.reshape(len(numbers), 2, 32) / scale[..., None]
    assert 6 < np.abs(codes).max() < 10  # the least squared error, so that the largest may be cut off
    error = np.clip(np.rint(codes), -8, 7) - codes
    assert np.linalg.norm(error) < 0.12 * np.linalg.norm(codes)
    assert record.fired["tables in int4"] == 1
    with pytest.raises(PipelineError, match="embeddings is 5: tables have 8 bits, or 4; 0 leaves them alone"):
        Pipeline.parse("quantize{embeddings=5}")


@pytest.mark.parametrize("kind", ["Add", "Gemm", "half of a bias", "Conv"])
def test_biases_make_up_for_shifts_of_the_mean(lab, kind):
    w = lab.weights(8)
    bodies = {
        "Add": lambda x: op.MatMul(x, w(16, 6)) + w(6),
        "Gemm": lambda x: op.Gemm(x, w(6, 16), w(6), transB=1),
        "half of a bias": lambda x: op.Gemm(x, w(16, 6), w(6), beta=0.5),
        "Conv": lambda x: op.Conv(op.Reshape(x, [-1, 16, 1, 1]), w(6, 16, 1, 1), w(6)),
    }
    graph = lab.build(bodies[kind], sym("n"), 16)
    data = [{"x": s["x"] + 2} for s in lab.samples(graph, rows=100)]

    def shift(options):
        result, _ = lab.quantized(graph, "activations=float,bits=3," + options, data)
        return np.abs((lab.outputs(result, data) - lab.outputs(graph, data)).reshape(-1, 6).mean(axis=0)).max()

    assert shift("correct_bias=false") > 0.1
    assert shift("correct_bias=true") < 1e-5
