"""FakeQuantize: its formats, what it computes against ONNX's own operators, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from planish.ir import DType, Graph, constant, op
from planish.ir.evaluate import evaluate
from planish.ir.infer import IllTyped
from planish.ir.quantization import FLOATS, fake_quantize, format_of, parse_format, quantize, spread
from planish.ir.types import TensorType

FakeQuantize = op.domain("planish").FakeQuantize


def arrays(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def onnx_qdq(x, scale, zero_point, storage, axis):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
    ]
    infos = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", int(storage)))]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    return ReferenceEvaluator(model).run(None, {"x": x, "s": scale, "z": zero_point})[0]


@given(st.integers(0, 1 << 16), st.sampled_from(["int8", "uint8", "int16", "uint16", "int4", "uint4"]), st.booleans())
def test_it_computes_what_onnx_defines(seed, name, per_channel):
    form = parse_format(name)
    x = arrays(seed, 3, 5) * 4
    rng = np.random.default_rng(seed)
    shape = (5,) if per_channel else ()
    scale = rng.uniform(0.01, 0.2, shape).astype(np.float32)
    zero = rng.integers(int(form.low), int(form.high) + 1, shape).astype(form.storage.numpy)
    expected = onnx_qdq(x, scale, np.asarray(zero), form.storage, 1)
    np.testing.assert_array_equal(fake_quantize(x, np.asarray(scale), np.asarray(zero), form, 1), expected)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("sign", ["", "u"])
def test_integers_of_every_width_saturate(bits, sign):
    form = parse_format(f"{sign}int{bits}")
    codes = quantize(np.array([-1e9, 0, 1e9], np.float32), np.array(1, np.float32), None, form).astype(np.int64)
    assert codes.tolist() == [form.low, 0, form.high]
    assert form.bits == bits and form.storage.bits >= bits and form.is_signed is not bool(sign)


@pytest.mark.parametrize("name", FLOATS)
def test_short_floats_saturate_and_keep_what_they_hold(name):
    form = parse_format(name)
    held = np.array([-form.high, -1.5, 0.0, 0.5, form.high], np.float32)
    scale = np.array(0.25, np.float32)
    np.testing.assert_array_equal(fake_quantize(held / 4, scale, None, form), held / 4)
    beyond = np.array([-4 * form.high, 4 * form.high], np.float32)
    np.testing.assert_array_equal(fake_quantize(beyond, scale, None, form), held[[0, -1]] / 4)


def test_blocks_have_scales_of_their_own():
    x = np.array([[1, 2, 30, 40, 5]], np.float32)
    scale = np.array([[1, 10, 5]], np.float32)
    assert spread(scale, x.shape, 1, 2).tolist() == [[1, 1, 10, 10, 5]]
    np.testing.assert_array_equal(fake_quantize(x, scale, None, parse_format("int4"), 1, 2), [[1, 2, 30, 40, 5]])


def test_without_a_scale_it_is_dynamic():
    x = constant(np.array([[-1.0, 0.5, 3.0]], np.float32))
    node = FakeQuantize(x, format="uint8").producer
    (y,) = evaluate(node, [x.const.numpy()])
    scale = np.float32(4 / 255)
    np.testing.assert_allclose(y, np.rint(x.const.numpy() / scale) * scale, rtol=1e-6)
    assert format_of(node).name == "uint8" and node.result.type == x.type


def test_nothing_becomes_of_nothing():
    node = FakeQuantize(constant(np.zeros((0, 3), np.float32)), format="uint8").producer
    assert evaluate(node, [np.zeros((0, 3), np.float32)])[0].shape == (0, 3)


@pytest.mark.parametrize("name", ["int1", "int17", "int32", "uint0", "int08", "float8", "half", "", "intx"])
def test_unknown_formats_are_refused(name):
    with pytest.raises(ValueError, match="no number format"):
        parse_format(name)


@pytest.mark.parametrize(
    ("scale", "zero_point", "attrs", "reason"),
    [
        (np.ones(3, np.float32), None, {"format": "int8"}, "3 scales for 4 elements"),
        (np.ones((2, 2), np.float32), None, {"format": "int8"}, "without blocks"),
        (
            np.ones((2, 3), np.float32),
            None,
            {"format": "int8", "block_size": 2},
            "3 scales for 4 elements in blocks of 2",
        ),
        (np.ones(2, np.float32), None, {"format": "int8", "axis": 7}, "axis 7"),
        (np.ones((), np.float32), np.zeros((), np.uint8), {"format": "int8"}, "int8 is int8"),
        (np.ones((), np.float32), np.zeros(2, np.int8), {"format": "int8"}, "zero point of shape"),
        (None, np.zeros((), np.int8), {"format": "int8"}, "without a scale"),
        (np.ones((), np.int32), None, {"format": "int8"}, "not defined on int32"),
        (np.ones((), np.float32), None, {"format": "int77"}, "no number format"),
        (np.ones((), np.float32), None, {}, "format"),
    ],
)
def test_what_contradicts_itself_is_ill_typed(scale, zero_point, attrs, reason):
    graph = Graph("g")
    x = graph.add_input(TensorType(DType.FLOAT, (2, 4)), "x")
    operands = [None if o is None else constant(o) for o in (scale, zero_point)]
    with pytest.raises(IllTyped, match=reason):
        FakeQuantize(x, *operands, **attrs)
