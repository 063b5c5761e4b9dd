"""Quantization for TensorRT: codes where it has them, numbers where it has not, and the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import planish
from planish.backends import LoweringError, backend
from planish.backends.tensorrt.quantized import encode
from planish.backends.tensorrt.versions import Version, version_of
from planish.ir import DType, Graph, GraphOutput, TensorType, Value, constant, edit, op, sym
from planish.ir.clone import clone_graph
from planish.ir.convert.proto import to_proto
from planish.ir.quantization import FAKE_QUANTIZE, parse_format
from planish.ir.verify import verify

from .trt_network import built

RTX, TEN, EIGHT = version_of("rtx"), version_of("10"), version_of("8.6")
FakeQuantize = op.domain("planish").FakeQuantize
Body = Callable[[Value], Value]
N = sym("n")


def model(body: Body, *shape: Any, dtype: DType = DType.FLOAT) -> Graph:
    """A graph of one input and one output."""
    graph = Graph("g")
    result = body(graph.add_input(TensorType(dtype, shape), "x"))
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result], [GraphOutput("y")])
    return graph


def numbers(*shape: int, dtype: DType = DType.FLOAT, seed: int = 0, size: float = 1) -> Value:
    return constant((size * np.random.default_rng(seed).standard_normal(shape)).astype(dtype.numpy), dtype)


def scales(*shape: int, seed: int = 1) -> Value:
    return constant(np.random.default_rng(seed).uniform(0.01, 0.05, shape).astype(np.float32))


def fake(x: Value, format: str = "int8", zero: int | None = None, shape: Sequence[int] = (), **attrs: int) -> Value:
    """``x`` quantized with scales of a shape, and one zero point for all."""
    storage = parse_format(format).storage
    zeros = None if zero is None else constant(np.full(tuple(shape), zero).astype(storage.numpy), storage)
    return FakeQuantize(x, scales(*shape), zeros, format=format, **attrs)


def encoded(graph: Graph, version: Version = RTX, exact: bool = True) -> tuple[Graph, list[str]]:
    """A copy for TensorRT that computes the same, and what is said of it."""
    copy = clone_graph(graph)
    notes, problems = encode(copy, version)
    assert not problems
    verify(copy)
    assert all(n.op != FAKE_QUANTIZE for n in copy.walk())
    (x,) = graph.inputs
    rng = np.random.default_rng(2)
    feed = {"x": rng.standard_normal([d if isinstance(d, int) else 2 for d in x.shape or ()]).astype(x.dtype.numpy)}
    expected, found = (next(iter(backend("reference").run(g, feed).values())) for g in (graph, copy))
    assert expected.dtype == found.dtype
    tolerance = {DType.FLOAT: 1e-5, DType.FLOAT16: 5e-3, DType.BFLOAT16: 3e-2}[x.dtype] if exact else 1
    wide, size = expected.astype(np.float64), np.abs(expected.astype(np.float64)).max()
    np.testing.assert_allclose(found.astype(np.float64), wide, rtol=tolerance, atol=tolerance * size)
    return copy, notes


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.walk()]


LAYERS: dict[str, tuple[Body, tuple[Any, ...]]] = {
    "Conv": (lambda x: op.Conv(fake(x), fake(numbers(8, 4, 3, 3), shape=(8,), axis=0), numbers(8)), (N, 4, 6, 6)),
    "depthwise": (lambda x: op.Conv(fake(x), fake(numbers(4, 1, 3, 3), shape=(4,), axis=0), group=4), (N, 4, 6, 6)),
    "1D": (lambda x: op.Conv(fake(x), fake(numbers(8, 4, 3), shape=(8,), axis=0)), (N, 4, 6)),
    "ConvTranspose": (lambda x: op.ConvTranspose(fake(x), fake(numbers(4, 8, 2, 2), shape=(8,))), (N, 4, 6, 6)),
    "MatMul": (lambda x: op.MatMul(fake(x), fake(numbers(16, 8), shape=(8,))), (N, 5, 16)),
    "per tensor": (lambda x: op.MatMul(fake(x), fake(numbers(16, 8))), (N, 16)),
    "Gemm": (lambda x: op.Gemm(fake(x), fake(numbers(16, 8), shape=(8,)), numbers(8)), (N, 16)),
    "transB": (lambda x: op.Gemm(fake(x), fake(numbers(8, 16), shape=(8,), axis=0), numbers(8), transB=1), (N, 16)),
    "two values": (lambda x: op.MatMul(fake(x), op.Transpose(fake(op.Relu(x)), perm=[0, 2, 1])), (N, 5, 16)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_both_factors_of_a_layer_are_int8_in_the_network(layer: str) -> None:
    body, shape = LAYERS[layer]
    graph, notes = encoded(model(body, *shape))
    assert not notes
    (found,) = built(graph)
    assert found.codes == ("INT8", "INT8")


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_half_precision_stays_so_on_both_sides(dtype: DType) -> None:
    """With scales in float32, of one type in both factors."""

    def body(x: Value) -> Value:
        hidden = op.Relu(op.Conv(fake(x), fake(numbers(8, 4, 3, 3, dtype=dtype), shape=(8,), axis=0)))
        weight = fake(numbers(4, 8, dtype=dtype), shape=(8,))
        return op.MatMul(fake(op.Reshape(hidden, constant([-1, 4], DType.INT64))), weight)

    graph, _ = encoded(model(body, 2, 4, 4, 4, dtype=dtype))
    assert {n.given(1).dtype for n in graph.walk() if n.op == "QuantizeLinear"} == {DType.FLOAT}
    assert {n.result.dtype for n in graph.walk() if n.op == "DequantizeLinear"} == {dtype}
    assert "Cast" not in ops(graph)
    expected = {DType.FLOAT16: "HALF", DType.BFLOAT16: "BF16"}[dtype]
    assert [(f.codes, f.data) for f in built(graph)] == [(("INT8", "INT8"), expected)] * 2


@pytest.mark.parametrize(
    ("format", "zero", "clips"),
    [
        ("int8", None, False), ("int8", 0, False), ("uint8", 128, False),
        ("int7", None, True), ("int4", None, True), ("uint7", 0, True), ("uint4", 8, True), ("int8", -128, None),
        ("uint8", None, None), ("uint8", 120, None), ("int16", None, None), ("float8e4m3fn", None, False),
        ("float8e5m2", None, None), ("float4e2m1", None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.FLOAT16])
def test_activations_are_codes_where_that_is_exact(
    format: str, zero: int | None, clips: bool | None, dtype: DType
) -> None:
    """And arithmetic (None) where TensorRT has no such codes, which is said."""
    graph, notes = encoded(model(lambda x: op.Relu(fake(x, format, zero)), N, 4, 6, dtype=dtype))
    found = ops(graph)
    if clips is None:
        assert "QuantizeLinear" not in found
        assert "computed as floating-point numbers" in notes[0]
        assert "Quantize the model in floating point for this target instead" in notes[0]
    else:
        assert found == ["Clip"] * clips + ["QuantizeLinear", "DequantizeLinear", "Relu"]
        assert not notes
    built(graph)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (lambda x: fake(x, shape=(6,), axis=2), (N, 4, 6)),
        (lambda x: fake(x, "uint8", 7, (4,)), (N, 4, 6)),
        (lambda x: fake(x, shape=(2, 4, 3), axis=-1, block_size=2), (2, 4, 6)),
        (lambda x: fake(x, shape=(2, 4, 2), axis=2, block_size=4), (2, 4, 6)),
        (lambda x: fake(x, "float8e4m3fn", shape=(6,), axis=2), (N, 4, 6)),
        (lambda x: FakeQuantize(x, op.ReduceMax(op.Abs(x), keepdims=0), format="int8"), (N, 6)),
        (lambda x: FakeQuantize(x, constant(-0.03), format="int8"), (N, 6)),
        (lambda x: FakeQuantize(x, format="uint8"), (N, 4, 6)),
        (lambda x: FakeQuantize(x, format="int8", axis=2, block_size=4), (N, 4, 6)),
    ],
)
@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.FLOAT16])
def test_activations_with_other_scales_are_computed_as_numbers(
    body: Body, shape: tuple[Any, ...], dtype: DType
) -> None:
    graph, notes = encoded(model(lambda x: op.Relu(body(x)), *shape, dtype=dtype))
    assert "QuantizeLinear" not in ops(graph)
    assert len(notes) == 1


# weights


def product(weight: Callable[[], Value], x: Callable[[Value], Value] = lambda x: x) -> Graph:
    return model(lambda v: op.MatMul(x(v), weight()), N, 3, 128)


def nvfp4() -> Value:
    """Scales that are float8 numbers, times one for all."""
    small = np.random.default_rng(3).uniform(1, 448, (8, 32)).astype(DType.FLOAT8E4M3FN.numpy).astype(np.float32)
    small[0, 0] = 448
    return FakeQuantize(
        numbers(128, 32), constant(small * np.float32(0.0007)), format="float4e2m1", axis=0, block_size=16
    )


WEIGHTS: dict[str, tuple[Callable[[], Value], str, str]] = {
    "int8": (lambda: fake(numbers(128, 32), shape=(32,)), "INT8", ""),
    "int5": (lambda: fake(numbers(128, 32), "int5", shape=(32,)), "INT8", ""),
    "int4": (lambda: fake(numbers(128, 32), "int4", shape=(32,)), "INT8", ""),
    "uint4": (lambda: fake(numbers(128, 32), "uint4", 7, (32,)), "INT8", ""),
    "float8": (lambda: fake(numbers(128, 32), "float8e4m3fn", shape=(32,)), "FP8", ""),
    "uint8 that fits": (lambda: fake(numbers(128, 32), "uint8", 140), "INT8", ""),
    "uint8": (lambda: fake(numbers(128, 32, size=9), "uint8", 90, (32,)), "", "a zero point"),
    "float8e5m2": (lambda: fake(numbers(128, 32), "float8e5m2", shape=(32,)), "", "of float8e5m2"),
    "blocks of 64": (lambda: fake(numbers(128, 32), "int4", shape=(2, 32), axis=0, block_size=64), "INT4", ""),
    "int3 in blocks": (lambda: fake(numbers(128, 32), "int3", shape=(1, 32), axis=0, block_size=128), "INT4", ""),
    "uint4 in blocks": (lambda: fake(numbers(128, 32), "uint4", 8, (2, 32), axis=0, block_size=64), "INT4", ""),
    "zero points in blocks": (
        lambda: fake(numbers(128, 32), "uint4", 3, (2, 32), axis=0, block_size=64), "", "symmetric=true",
    ),
    "int8 in blocks": (lambda: fake(numbers(128, 32), shape=(2, 32), axis=0, block_size=64), "", "of int8 in blocks"),
    "blocks that do not fit": (
        lambda: fake(numbers(128, 32), "int4", shape=(3, 32), axis=0, block_size=48), "", "do not divide",
    ),
    "NVFP4": (nvfp4, "FP4", ""),
    "fp4 with other scales": (
        lambda: fake(numbers(128, 32), "float4e2m1", shape=(8, 32), axis=0, block_size=16), "", "times one number",
    ),
    "fp4 without blocks": (lambda: fake(numbers(128, 32), "float4e2m1"), "", "of float4e2m1 without blocks"),
    "a scale of 0": (lambda: FakeQuantize(numbers(128, 32), constant(0.0), format="int8"), "", "a scale of 0"),
}  # fmt: skip


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_are_codes_where_tensorrt_has_them(weight: str) -> None:
    """And numbers elsewhere, which is said."""
    make, codes, why = WEIGHTS[weight]
    graph, notes = encoded(product(make))
    assert [f.codes for f in built(graph)] == [("", codes)]
    assert why in "".join(notes)
    assert bool(why) is bool(notes)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("size", [1, 1e-5])
@pytest.mark.parametrize("format", ["int4", "float4e2m1"])
def test_weights_in_blocks_have_scales_of_the_type_of_the_data(format: str, size: float, dtype: DType) -> None:
    """Where that holds them: TensorRT finds no type for other results of their DequantizeLayer."""
    block = 64 if format == "int4" else 16
    steps = size * np.random.default_rng(3).uniform(1, 448, (64 // block, 32)).astype(DType.FLOAT8E4M3FN.numpy)
    steps[0, 0] = np.float32(size) * 448
    scale = constant(steps.astype(np.float32) * np.float32(0.001))

    def body(x: Value) -> Value:
        weight = numbers(64, 32, dtype=dtype, size=size)
        return op.MatMul(x, FakeQuantize(weight, scale, format=format, axis=0, block_size=block))

    graph, notes = encoded(model(body, N, 3, 64, dtype=dtype))
    assert not notes
    assert built(graph)[0].codes[1] == ("INT4" if format == "int4" else "FP4") or size < 1
    assert ("Cast" in ops(graph)) is (size < 1 and dtype is DType.FLOAT16)


@pytest.mark.parametrize(
    ("format", "block", "version", "fits"),
    [("int4", 32, RTX, True), ("int4", 32, TEN, False), ("int4", 128, TEN, True), ("float4e2m1", 32, RTX, False)],
)
def test_sizes_of_blocks(format: str, block: int, version: Version, fits: bool) -> None:
    _, notes = encoded(
        product(lambda: fake(numbers(128, 32), format, shape=(128 // block, 32), axis=0, block_size=block)), version
    )
    assert fits is (not notes)
    assert fits or f"blocks of {block}, but" in notes[0]


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (lambda x: op.MatMul(fake(x), fake(numbers(16, 8), shape=(16,), axis=0)), (N, 16)),
        (lambda x: op.Gemm(fake(x), fake(numbers(8, 16), shape=(16,)), transB=1), (N, 16)),
        (lambda x: op.Conv(fake(x), fake(numbers(8, 4, 3, 3), shape=(4,))), (N, 4, 6, 6)),
        (lambda x: op.ConvTranspose(fake(x), fake(numbers(4, 8, 2, 2), shape=(4,), axis=0)), (N, 4, 6, 6)),
        (lambda x: op.MatMul(fake(numbers(8, 16), shape=(16,)), fake(x)), (N, 16, 4)),
    ],
)
def test_scales_along_another_dimension_than_that_of_output_channels(body: Body, shape: tuple[Any, ...]) -> None:
    """Sums of integers cannot have them: the weight is stored as numbers."""
    graph, notes = encoded(model(body, *shape))
    assert "with a scale for each index of dimension" in notes[0]
    built(graph)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (lambda x: op.Conv(x, numbers(8, 4, 1, 1), fake(numbers(8))), (N, 4, 6, 6)),
        (lambda x: op.LayerNormalization(x, fake(numbers(6))), (N, 6)),
        (lambda x: op.LSTM(x, fake(numbers(1, 16, 6)), fake(numbers(1, 16, 4)), hidden_size=4)[0], (3, 2, 6)),
        (lambda x: op.Add(x, fake(numbers(6))), (N, 6)),
        (lambda x: fake(numbers(6)), (N, 6)),
    ],
)
def test_what_is_no_factor_is_numbers(body: Body, shape: tuple[Any, ...]) -> None:
    """Biases, say: TensorRT adds them in floating point."""
    graph, notes = encoded(model(body, *shape))
    assert "DequantizeLinear" not in ops(graph)
    assert "stored as floating-point numbers" in notes[0]


@pytest.mark.parametrize("moved", [False, True])
def test_weights_beside_other_codes_are_numbers(moved: bool) -> None:
    """TensorRT multiplies codes of one type; it fails for others, and for blocks beside a quantized activation."""

    def activation(x: Value) -> Value:
        return op.Reshape(fake(x), constant([-1, 3, 128], DType.INT64)) if moved else fake(x)

    for weight in ("blocks of 64", "NVFP4", "float8"):
        graph, notes = encoded(product(WEIGHTS[weight][0], activation))
        assert [f.codes for f in built(graph)] == [("INT8", "")]
        assert "beside" in notes[0]


def test_two_values_with_codes_of_two_types() -> None:
    graph, notes = encoded(model(lambda x: op.MatMul(fake(x), fake(op.Relu(x), "float8e4m3fn")), N, 8, 8))
    assert [f.codes for f in built(graph)] == [("", "FP8")]
    assert "beside those of the other factor" in notes[0]


@pytest.mark.parametrize("block", [0, 64])
def test_a_weight_is_transposed_once_and_not_at_run_time(block: int) -> None:
    where = {"shape": (32, 2), "block_size": 64} if block else {"shape": (32,), "axis": 0}
    weight = lambda: op.Transpose(fake(numbers(32, 128), "int4", **where), perm=[1, 0])  # type: ignore[arg-type]  # noqa: E731
    graph, notes = encoded(product(weight))
    assert not notes
    assert "Transpose" not in ops(graph)
    assert [f.codes for f in built(graph)] == [("", "INT4" if block else "INT8")]


def test_a_tensor_that_two_layers_read_is_stored_once() -> None:
    weight, scale = numbers(16, 16), scales()

    def body(x: Value) -> Value:
        first, second = (FakeQuantize(weight, scale, format="int8") for _ in range(2))
        return op.MatMul(op.Relu(op.MatMul(x, first)), second)

    graph, _ = encoded(model(body, N, 16))
    assert len({n.given(0).const for n in graph.walk() if n.op == "DequantizeLinear"}) == 1


# versions and whole models


def test_tensorrt_8_quantizes_weights_itself() -> None:
    """From numbers, with QuantizeLinear of opset 13; other codes become numbers."""
    body, shape = LAYERS["Conv"]
    graph, notes = encoded(model(body, *shape), EIGHT)
    assert not notes
    assert ops(graph).count("QuantizeLinear") == ops(graph).count("DequantizeLinear") == 2
    assert all(n.operand(2) is not None for n in graph.walk() if n.op == "QuantizeLinear")
    to_proto(graph, opset=13, ir_version=8)
    for weight in ("float8", "NVFP4", "blocks of 64"):
        graph, notes = encoded(product(WEIGHTS[weight][0]), EIGHT)
        assert ops(graph) == ["MatMul"]
        assert "stored as floating-point numbers, for TensorRT 8.6" in notes[0]
    graph, _ = encoded(model(lambda x: op.Relu(fake(x, "float8e4m3fn")), N, 6), EIGHT)
    assert "QuantizeLinear" not in ops(graph)


def test_what_there_is_no_way_for_is_a_problem_of_its_node() -> None:
    graph = Graph("g")
    x, scale = (
        graph.add_input(TensorType(DType.FLOAT, (N, 8)), "x"),
        graph.add_input(TensorType(DType.FLOAT, None), "s"),
    )
    result = op.Relu(FakeQuantize(x, scale, format="int8"))
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result], [GraphOutput("y")])
    with pytest.raises(LoweringError, match="it has a scale of unknown shape"):
        backend("tensorrt:rtx").lower(graph)


@pytest.mark.parametrize("zero", [128, 113])
def test_an_imported_model_with_unsigned_activations(zero: int) -> None:
    """Codes around 128 are int8; others are computed as numbers. The results are those of ONNX Runtime."""
    text = f"""
    <ir_version: 9, opset_import: ["": 19]> g (float[N,4,6,6] x) => (float[N,2,6,6] y) <
      float s = {{0.03}}, uint8 o = {{{zero}}}, int8[2,4,1,1] w = {{3, -5, 7, 127, -128, 0, 1, 90}},
      float[2] t = {{0.02, 0.01}}, int8[2] p = {{0, 0}}, int32[2] b = {{300, -700}}, float[2] u = {{0.0006, 0.0003}},
      int32[2] none = {{0, 0}}
    > {{
      a = QuantizeLinear (x, s, o)
      c = DequantizeLinear (a, s, o)
      d = DequantizeLinear <axis = 0> (w, t, p)
      e = DequantizeLinear <axis = 0> (b, u, none)
      y = Conv (c, d, e)
    }}"""
    import onnx.parser

    graph = planish.load(onnx.parser.parse_model(text))
    lowered, stamp, notes = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert stamp is not None
    (found,) = built(lowered, opset=stamp.opset)
    assert found.codes == ("INT8" if zero == 128 else "", "INT8")
    assert bool(notes) is (zero != 128)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6), np.float32)}
    first, second = (backend("onnxruntime").compile(g, level="off")(feed)["y"] for g in (graph, lowered))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def network(size: int = 8) -> Graph:
    """Convolutions with residuals, a pool, and products."""

    def conv(x: Value, outputs: int, inputs: int, kernel: int = 3, group: int = 1, seed: int = 0) -> Value:
        weight = numbers(outputs, inputs // group, kernel, kernel, seed=seed)
        return op.Conv(x, weight, numbers(outputs), group=group, pads=[kernel // 2] * 4)

    def body(x: Value) -> Value:
        h = op.MaxPool(op.Relu(conv(x, 16, 3)), kernel_shape=[2, 2], strides=[2, 2])
        inner = op.Clip(conv(op.Relu(conv(h, 16, 16, 1, seed=1)), 16, 16, group=16), constant(0.0), constant(6.0))
        h = op.Relu(op.Add(conv(inner, 16, 16, 1, seed=2), h))
        h = op.Relu(op.Add(conv(op.Relu(conv(h, 16, 16, seed=3)), 16, 16, seed=4), conv(h, 16, 16, 1, seed=5)))
        h = op.Reshape(op.GlobalAveragePool(h), constant([0, -1], DType.INT64))
        h = op.Gelu(op.Gemm(h, numbers(32, 16), numbers(32), transB=1))
        return op.Add(op.MatMul(h, numbers(32, 8)), numbers(8))

    return model(body, N, 3, size, size)


def test_every_quantized_layer_keeps_its_codes_in_the_network() -> None:
    graph = network()
    data = [{"x": np.random.default_rng(i).standard_normal((4, 3, 8, 8), np.float32)} for i in range(2)]
    ctx = planish.Context(lambda: backend("onnxruntime"), target="tensorrt:rtx", samples=lambda: iter(data))
    planish.Pipeline.parse("default,quantize{calibration=minmax}").run(graph, ctx)
    lowered, stamp, notes = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert stamp is not None
    assert not notes
    found = built(lowered, opset=stamp.opset)
    assert [f.codes for f in found] == [("INT8", "INT8")] * 9
    residual = [n for n in lowered.walk() if n.op == "Add" and "DequantizeLinear" in {o.producer.op for o in n.operands if o is not None and o.producer}]  # fmt: skip # noqa: E501
    assert len(residual) == 2
    results = [backend("onnxruntime").compile(g, level="off")(data[0]) for g in (graph, lowered)]
    first, second = (next(iter(r.values())) for r in results)
    np.testing.assert_allclose(first, second, rtol=0.05, atol=0.05 * np.abs(first).max())


@pytest.mark.parametrize("seed", range(24))
def test_random_layers_compute_the_same_and_build(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)[int(rng.integers(3))]
    formats = ["int8", "int8", "uint8", "int4", "int7", "uint4", "float8e4m3fn", "int16"]

    def quantized(x: Value, channels: int | None, blocks: int | None) -> Value:
        form = parse_format(str(rng.choice(formats)))
        shape, attrs = list(x.shape or ()), {}
        kind = rng.choice(["tensor", "channel", "block"]) if channels is not None else "tensor"
        if kind == "channel":
            shape, attrs = [shape[channels or 0]], {"axis": channels}
        elif kind == "block" and blocks is not None:
            shape[blocks], attrs = shape[blocks] // 16, {"axis": blocks, "block_size": 16}  # type: ignore[operator]
        else:
            shape = []
        zero = int(rng.choice([0, (form.high + 1) / 2, 5])) if form.is_integer and not form.is_signed else None
        return fake(x, form.name, zero, shape, **attrs)  # type: ignore[arg-type]

    def body(x: Value) -> Value:
        left = quantized(x, None, None) if rng.random() < 0.7 else x
        if x.rank == 4:
            return op.Conv(left, quantized(numbers(16, 32, 1, 1, dtype=dtype), 0, None))
        if rng.random() < 0.3:
            return op.MatMul(left, op.Transpose(quantized(numbers(16, 32, dtype=dtype), 0, 1), perm=[1, 0]))
        return op.MatMul(left, quantized(numbers(32, 16, dtype=dtype), 1, 0))

    shape = ((N, 32), (N, 5, 32), (2, 32, 3, 3))[int(rng.integers(3))]
    graph, _ = encoded(model(body, *shape, dtype=dtype))
    built(graph)
