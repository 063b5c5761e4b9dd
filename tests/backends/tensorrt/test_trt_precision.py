"""The option precision: types of the graph from TensorRT 10 on, flags before; and the flag for 2:4 weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import planish
from planish.backends import backend
from planish.backends.tensorrt.precision import (
    Precision,
    apply_precision,
    builder_flags,
    parse_precision,
    sparse_layers,
)
from planish.backends.tensorrt.quantized import encode
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType, Graph, GraphOutput, Node, TensorType, Value, constant, edit, op, sym
from planish.ir.clone import clone_graph
from planish.ir.errors import PlanishError
from planish.ir.quantization import FAKE_QUANTIZE
from planish.ir.verify import verify

from .trt_network import built

RTX, TEN, EIGHT = version_of("rtx"), version_of("10"), version_of("8.6")
FakeQuantize = op.domain("planish").FakeQuantize
N = sym("n")


def model(body: Callable[[Value], Value], *shape: object, dtype: DType = DType.FLOAT) -> Graph:
    """A graph of one input and one output."""
    graph = Graph("g")
    result = body(graph.add_input(TensorType(dtype, shape), "x"))
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result], [GraphOutput("y")])
    return graph


def numbers(*shape: int, dtype: type = np.float32, seed: int = 0) -> Value:
    return constant((np.random.default_rng(seed).standard_normal(shape) / 4).astype(dtype))


def sparse(*shape: int, axis: int, keep: int = 2, dtype: type = np.float32) -> Value:
    """A weight with ``keep`` of four neighbours along ``axis``."""
    array = np.moveaxis(np.ones(shape, dtype), axis, -1)
    array[..., np.arange(array.shape[-1]) % 4 >= keep] = 0
    return constant(np.ascontiguousarray(np.moveaxis(array, -1, axis)))


def body(x: Value) -> Value:
    """A convolution, a normalization, attention's softmax and a product."""
    h = op.Relu(op.Conv(x, numbers(16, 4, 3, 3), numbers(16), pads=[1, 1, 1, 1]))
    h = op.Transpose(op.Reshape(h, constant([0, 16, -1], DType.INT64)), perm=[0, 2, 1])
    h = op.LayerNormalization(h, numbers(16), numbers(16))
    h = op.MatMul(op.Softmax(op.MatMul(h, op.Transpose(h, perm=[0, 2, 1]))), h)
    return op.Add(op.MatMul(h, numbers(16, 32)), numbers(32))


def quantized(made: Callable[[Value], Value] = body, shape: tuple[object, ...] = (N, 4, 6, 6)) -> Graph:
    graph = model(made, *shape)
    data = [{"x": np.random.default_rng(i).standard_normal((2, *shape[1:])).astype(np.float32)} for i in range(2)]
    ctx = planish.Context(lambda: backend("onnxruntime"), target="tensorrt:rtx", samples=lambda: iter(data))
    planish.Pipeline.parse("default,quantize{calibration=minmax}").run(graph, ctx)
    return graph


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Precision()), ("fp32", Precision()), ("fp16", Precision("fp16")), ("bf16", Precision("bf16")),
        ("int8", Precision("fp32", "int8")), ("int8+fp16", Precision("fp16", "int8")),
        ("bf16+fp8", Precision("bf16", "fp8")),
    ],
)  # fmt: skip
def test_names_of_precisions(text: str, expected: Precision) -> None:
    assert parse_precision(text) == expected
    assert parse_precision(str(expected)) == expected


@pytest.mark.parametrize("text", ["fp64", "fp16+bf16", "int8+fp8", "fp16+", "half"])
def test_other_names_are_refused(text: str) -> None:
    if text == "fp16+":  # nothing behind the plus
        assert parse_precision(text) == Precision("fp16")
        return
    with pytest.raises(PlanishError, match="there are fp32, fp16, bf16, int8, fp8"):
        parse_precision(text)


@pytest.mark.parametrize(("precision", "data"), [("fp32", "FLOAT"), ("fp16", "HALF"), ("bf16", "BF16")])
def test_layers_compute_in_the_precision_and_inputs_and_outputs_keep_their_types(precision: str, data: str) -> None:
    graph = model(body, N, 4, 6, 6)
    before = backend("reference").run(graph, feed := {"x": np.ones((2, 4, 6, 6), np.float32)})["y"]
    apply_precision(graph, precision, RTX)
    verify(graph)
    assert graph.inputs[0].dtype is graph.outputs[0].dtype is DType.FLOAT
    lowered, stamp, _ = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert stamp is not None
    assert {f.data for f in built(lowered, opset=stamp.opset)} == {data}
    after = backend("reference").run(lowered, feed)["y"]
    tolerance = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}[precision]
    np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance * np.abs(before).max())


def test_what_half_precision_does_not_hold_stays_in_float32() -> None:
    """As samples show, or constants."""
    graph = model(lambda x: op.MatMul(op.Mul(op.MatMul(x, numbers(8, 8)), constant(1e6)), numbers(8, 8)), N, 8)
    apply_precision(graph, "fp16", RTX)
    assert [n.result.dtype for n in graph.walk() if n.op in ("MatMul", "Mul")] == [
        DType.FLOAT16, DType.FLOAT, DType.FLOAT,
    ]  # fmt: skip
    built(backend("tensorrt:rtx").lower(graph))


@pytest.mark.parametrize(
    ("precision", "codes", "data"),
    [
        ("int8", ("INT8", "INT8"), "FLOAT"), ("int8+fp16", ("INT8", "INT8"), "HALF"),
        ("int8+bf16", ("INT8", "INT8"), "BF16"), ("fp8", ("FP8", "FP8"), "FLOAT"), ("fp8+fp16", ("FP8", "FP8"), "HALF"),
    ],
)  # fmt: skip
def test_quantized_layers_keep_their_codes_in_every_precision(
    precision: str, codes: tuple[str, str], data: str
) -> None:
    """Convolutions are int8 where products are float8."""
    graph = quantized()
    exact = backend("reference").run(model(body, N, 4, 6, 6), feed := {"x": np.full((2, 4, 6, 6), 0.4, np.float32)})
    notes = apply_precision(graph, precision, RTX)
    assert bool(notes) is precision.startswith("fp8")
    lowered, stamp, _ = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert stamp is not None
    convolution, *products = built(lowered, opset=stamp.opset)
    assert (convolution.codes, convolution.data) == (("INT8", "INT8"), data)
    assert {(f.codes, f.data) for f in products if all(f.codes)} == {(codes, data)}
    first, second = next(iter(exact.values())), next(iter(backend("reference").run(lowered, feed).values()))
    np.testing.assert_allclose(second, first, rtol=0.1, atol=0.1 * np.abs(first).max())


def test_float8_spans_what_integers_spanned() -> None:
    graph = quantized()
    fakes = [n for n in graph.walk() if n.op == FAKE_QUANTIZE]
    before = [127 * scale(n) for n in fakes]
    apply_precision(graph, "fp8", TEN)
    formats = [n.attrs["format"] for n in fakes]
    assert set(formats) == {"int8", "float8e4m3fn"}
    for node, form, most in zip(fakes, formats, before, strict=True):
        np.testing.assert_allclose({"int8": 127, "float8e4m3fn": 448}[form] * scale(node), most, rtol=1e-6)


def scale(node: Node) -> np.ndarray:
    """The scale of a FakeQuantize."""
    tensor = node.given(1).const
    assert tensor is not None
    return tensor.numpy()


def test_a_value_that_a_convolution_reads_too_stays_int8() -> None:
    """And so does what it is multiplied by elsewhere; a product beside is float8."""

    def shared(x: Value) -> Value:
        a, b = fake(x), fake(op.Relu(x))
        convolved = op.Conv(a, fake(numbers(4, 4, 1, 1)))
        return op.Add(op.Add(convolved, op.MatMul(a, fake(numbers(6, 6)))), op.MatMul(b, fake(numbers(6, 6, seed=1))))

    graph = model(shared, N, 4, 6, 6)
    (note,) = apply_precision(graph, "fp8", RTX)
    assert "2 quantized layers stay in int8" in note
    codes = {f.codes for f in built(backend("tensorrt:rtx").lower(graph))}
    assert codes == {("INT8", "INT8"), ("FP8", "FP8")}
    only = model(lambda x: op.Conv(fake(x), fake(numbers(4, 4, 1, 1))), N, 4, 6, 6)
    with pytest.raises(PlanishError, match="no product has two quantized factors that could be float8"):
        apply_precision(only, "fp8", RTX)


def fake(x: Value) -> Value:
    return FakeQuantize(x, constant(0.02), format="int8")


@pytest.mark.parametrize(
    ("precision", "version", "message"),
    [
        ("int8", RTX, "nothing is quantized"), ("fp8", TEN, "nothing is quantized"),
        ("bf16", EIGHT, "TensorRT 8.6 has no such numbers"), ("fp8", EIGHT, "TensorRT 8.6 has no such numbers"),
    ],
)  # fmt: skip
def test_what_a_precision_needs(precision: str, version: object, message: str) -> None:
    with pytest.raises(PlanishError, match=message):
        apply_precision(model(body, N, 4, 6, 6), precision, version)  # type: ignore[arg-type]


# flags


def test_flags_before_tensorrt_10_and_none_later() -> None:
    """There the graph stays in float32, and TensorRT chooses types."""
    graph, integers = model(body, N, 4, 6, 6), quantized()
    before = str(graph)
    apply_precision(graph, "fp16", EIGHT)
    assert str(graph) == before
    assert builder_flags(EIGHT, "fp16", graph) == ("FP16",)
    assert builder_flags(EIGHT, "fp32", graph) == ()
    assert builder_flags(EIGHT, "int8", integers) == ("INT8",)
    encode(integers, EIGHT)
    assert builder_flags(EIGHT, "int8+fp16", integers) == ("FP16", "INT8")
    half = model(lambda x: op.Relu(x), N, dtype=DType.FLOAT16)
    assert builder_flags(EIGHT, "", half) == ("FP16",)
    for version in (TEN, RTX, version_of("11")):
        assert builder_flags(version, "int8+fp16", integers) == ()


# sparsity

SPARSE: dict[str, tuple[Callable[[Value], Value], bool]] = {
    "Conv": (lambda x: op.Conv(x, sparse(6, 8, 1, 1, axis=1)), True),
    "groups": (lambda x: op.Conv(x, sparse(6, 4, 1, 1, axis=1), group=2), True),
    "along outputs": (lambda x: op.Conv(x, sparse(8, 8, 1, 1, axis=0)), False),
    "3:4": (lambda x: op.Conv(x, sparse(6, 8, 1, 1, axis=1, keep=3)), False),
    "zeros": (lambda x: op.Conv(x, sparse(6, 8, 1, 1, axis=1, keep=0)), False),
    "kernel": (lambda x: op.Conv(x, sparse(6, 8, 2, 4, axis=3), pads=[1, 2, 1, 2]), False),
    "no groups of four": (lambda x: op.Conv(op.Slice(x, *_first(6)), sparse(6, 6, 1, 1, axis=1)), False),
    "MatMul": (lambda x: op.MatMul(x, sparse(8, 4, axis=0)), True),
    "MatMul along outputs": (lambda x: op.MatMul(x, sparse(8, 4, axis=1)), False),
    "transposed": (lambda x: op.MatMul(x, op.Transpose(sparse(4, 8, axis=1), perm=[1, 0])), True),
    "Gemm": (lambda x: op.Gemm(op.Flatten(x), sparse(512, 4, axis=0)), True),
    "transB": (lambda x: op.Gemm(op.Flatten(x), sparse(4, 512, axis=1), transB=1), True),
    "no weight": (lambda x: op.MatMul(x, x), False),
}


def _first(count: int) -> tuple[Value, ...]:
    return tuple(constant([i], DType.INT64) for i in (0, count, 1))


@pytest.mark.parametrize("layer", SPARSE)
@pytest.mark.parametrize("quantize", [False, True])
def test_layers_with_two_of_four_weights_along_the_input_channels(layer: str, quantize: bool) -> None:
    """Before and behind the encoding of quantized weights."""
    made, expected = SPARSE[layer]
    graph = model(made, 2, 8, 8, 8)
    if quantize:
        for node in [n for n in graph.walk() if n.op in ("Conv", "MatMul", "Gemm")]:
            fake = FakeQuantize(node.given(1), constant(0.01), format="int8")
            edit.insert_floating([fake], node)
            edit.set_operand(node, 1, fake)
    assert bool(sparse_layers(graph)) is expected
    flags = ("SPARSE_WEIGHTS",) if expected else ()
    assert builder_flags(RTX, "", graph) == flags
    for version in (RTX, EIGHT):
        copy = clone_graph(graph)
        encode(copy, version)
        assert bool(sparse_layers(copy)) is expected
        assert "SPARSE_WEIGHTS" not in builder_flags(version, "", copy) or expected


@pytest.mark.parametrize("pipeline", ["sparsify{pattern=2:4}", "sparsify{pattern=2:4},quantize{calibration=minmax}"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_sparse_network_builds_with_the_flag(pipeline: str, precision: str) -> None:
    """A stem whose three input channels are left alone, and layers that are not."""

    def network(x: Value) -> Value:
        h = op.Relu(op.Conv(x, numbers(16, 3, 3, 3), numbers(16)))
        h = op.Relu(op.Conv(h, numbers(32, 16, 3, 3, seed=1), numbers(32)))
        return op.Gemm(op.Flatten(op.GlobalAveragePool(h)), numbers(32, 10), numbers(10))

    graph = model(network, N, 3, 12, 12)
    data = [{"x": np.random.default_rng(0).standard_normal((2, 3, 12, 12), np.float32)}]
    ctx = planish.Context(lambda: backend("onnxruntime"), target="tensorrt:rtx", samples=lambda: iter(data))
    planish.Pipeline.parse(f"default,{pipeline}").run(graph, ctx)
    apply_precision(graph, precision, RTX)
    lowered, stamp, _ = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert stamp is not None
    assert [n.op for n in sparse_layers(lowered)] == ["Conv", "Gemm"]
    assert len(built(lowered, builder_flags(RTX, precision, lowered), opset=stamp.opset)) == 3
