"""Raising quantization: what each spelling becomes, that values stay, and what is left alone and why."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import planish
from planish.backends.base import backend
from planish.explanation import explain
from planish.ir import DType, Graph, LazyTensor, Node, TensorType, Value, constant, edit, op
from planish.ir.equal import difference
from planish.ir.evaluate import evaluate
from planish.ir.quantization import FAKE_QUANTIZE, FLOATS, format_of, parse_format, quantize
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pipeline

INTEGERS = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2")
FORMATS = (*INTEGERS, *FLOATS)


def raised(graph: Graph | str, pipeline: str = "raise-quantization") -> Graph:
    graph = parse(graph) if isinstance(graph, str) else graph
    ctx = Context()
    Pipeline.parse(pipeline).run(graph, ctx)
    assert not any(r.problem for r in ctx.results)
    verify(graph)
    return graph


def returning(graph: Graph, value: Value) -> Graph:
    """``graph`` with the floating node of ``value`` in it, which it returns."""
    edit.insert_floating([value], graph.ret)
    value.name = "y"
    graph.set_outputs([value])
    return graph


def operators(graph: Graph) -> list[str]:
    return [node.op for node in graph.walk()]


def reasons(text: str, rule: str) -> set[str]:
    return {miss.reason for miss in explain(parse(text), "raise-quantization", rule=rule).misses}


def run(graph: Graph, inputs: dict[str, Any], target: str = "reference") -> list[Any]:
    return backend(target).compile(graph).run(inputs)


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def codes_of(name: str, *shape: int) -> Any:
    """Codes of a format: all of them where they fit, else random ones."""
    form, rng = parse_format(name), np.random.default_rng(len(name))
    if form.is_integer:
        return rng.integers(int(form.low), int(form.high) + 1, shape).astype(form.storage.numpy)
    scale = np.array(form.high / 4, np.float32)
    return (rng.standard_normal(shape) * scale).clip(form.low, form.high).astype(form.storage.numpy)


# before and after

PAIRS = {
    "per tensor": (
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}, uint8 o = {128}> {
             q = QuantizeLinear (x, s, o) y = DequantizeLinear (q, s, o) }""",
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}, uint8 o = {128}> {
             y = planish.FakeQuantize <format = "uint8"> (x, s, o) }""",
    ),
    "a zero point of 0, in another shape, in another constant": (
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}, float[1] t = {0.1}, int8[1] o = {0}> {
             q = QuantizeLinear <output_dtype = 3> (x, s) y = DequantizeLinear (q, t, o) }""",
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}> {
             y = planish.FakeQuantize <format = "int8"> (x, s) }""",
    ),
    "scales known when it runs": (
        """g (float[N,3] x, float[3] s, int4[3] o) => (float[N,3] y) {
             q = QuantizeLinear <axis = -1> (x, s, o) y = DequantizeLinear (q, s, o) }""",
        """g (float[N,3] x, float[3] s, int4[3] o) => (float[N,3] y) {
             y = planish.FakeQuantize <format = "int4"> (x, s, o) }""",
    ),
    "several users": (
        """g (float[N,3] x) => (float[N,3] y, float[N,3] z) <float s = {0.1}, uint8 o = {128}> {
             q = QuantizeLinear (x, s, o) a = DequantizeLinear (q, s, o) b = DequantizeLinear (q, s, o)
             y = Relu (a) z = Neg (b) }""",
        """g (float[N,3] x) => (float[N,3] y, float[N,3] z) <float s = {0.1}, uint8 o = {128}> {
             a = planish.FakeQuantize <format = "uint8"> (x, s, o) y = Relu (a) z = Neg (a) }""",
    ),
    "in blocks": (
        """g (float[2,6] x) => (float[2,6] y) <float[2,2] s = {0.1, 0.2, 0.3, 0.4}> {
             q = QuantizeLinear <block_size = 3, output_dtype = 22> (x, s)
             y = DequantizeLinear <axis = -1, block_size = 3> (q, s) }""",
        """g (float[2,6] x) => (float[2,6] y) <float[2,2] s = {0.1, 0.2, 0.3, 0.4}> {
             y = planish.FakeQuantize <format = "int4", block_size = 3> (x, s) }""",
    ),
    "fewer bits than the type has": (
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}, int8 o = {1}, int8 a = {-8}, int8 b = {7}> {
             q = QuantizeLinear (x, s, o) c = Clip (q, a, b) y = DequantizeLinear (c, s, o) }""",
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}, int4 o = {1}> {
             y = planish.FakeQuantize <format = "int4"> (x, s, o) }""",
    ),
    "at run time": (
        """g (float[N,3] x) => (float[3,N] y) {
             q, s, o = DynamicQuantizeLinear (x) t = Transpose (q) y = DequantizeLinear (t, s, o) }""",
        """g (float[N,3] x) => (float[3,N] y) {
             a = planish.FakeQuantize <format = "uint8"> (x) y = Transpose (a) }""",
    ),
    "constants": (
        """g (float[N,2] x) => (float[N,3] y) <int8[2,3] w = {1, 2, 3, -4, -128, 6}, float[3] s = {1.0, 0.5, 0.25},
             int8[3] o = {0, 2, 0}, int32[3] b = {1, 70000, -3}, float[3] t = {1.0, 0.5, 2.0}> {
             v = DequantizeLinear (w, s, o) c = DequantizeLinear <axis = 0> (b, t) y = Gemm (x, v, c) }""",
        """g (float[N,2] x) => (float[N,3] y) <float[2,3] w = {1.0, 0.0, 0.75, -4.0, -65.0, 1.5},
             float[3] s = {1.0, 0.5, 0.25}, int8[3] o = {0, 2, 0}, float[3] c = {1.0, 35000.0, -6.0}> {
             v = planish.FakeQuantize <format = "int8"> (w, s, o) y = Gemm (x, v, c) }""",
    ),
    "rows of a table": (
        """g (int64[N] i) => (float[N,2] y) <int8[3,2] w = {1, 2, 3, -4, -128, 6}, float s = {0.5}> {
             r = Gather (w, i) y = DequantizeLinear (r, s) }""",
        """g (int64[N] i) => (float[N,2] y) <float[3,2] w = {0.5, 1.0, 1.5, -2.0, -64.0, 3.0}, float s = {0.5}> {
             t = planish.FakeQuantize <format = "int8"> (w, s) y = Gather (t, i) }""",
    ),
    "columns, transposed": (
        """g (float[4,3] x) => (float[3,4] y) <float[3] s = {1.0, 0.5, 0.25}, int8[3] o = {0, 2, 0}> {
             q = QuantizeLinear <axis = 1> (x, s, o) t = Transpose (q) y = DequantizeLinear <axis = 0> (t, s, o) }""",
        """g (float[4,3] x) => (float[3,4] y) <float[3] s = {1.0, 0.5, 0.25}, int8[3] o = {0, 2, 0}> {
             t = planish.FakeQuantize <format = "int8"> (x, s, o) y = Transpose (t) }""",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_before_and_after(name: str) -> None:
    before, after = PAIRS[name]
    graph = raised(before, "raise-quantization,eliminate-common-subexpressions")
    assert difference(graph, parse(after)) is None


# formats


def pair(name: str, dtype: DType, shape: tuple[int, ...], axis: int, block_size: int) -> Graph:
    """A QuantizeLinear and a DequantizeLinear of format ``name``."""
    form, rng = parse_format(name), np.random.default_rng(7)
    graph = Graph("pair", opsets={"": 25})
    x = graph.add_input(TensorType(dtype, (4, 6)), "x")
    scale = constant((rng.uniform(0.02, 0.3, shape)).astype(dtype.numpy))
    zero = codes_of(name, *shape) if form.is_integer else np.zeros(shape, form.storage.numpy)
    attrs = {"axis": axis, "block_size": block_size or None}
    codes = op.QuantizeLinear(x, scale, constant(zero), **attrs)
    y = op.DequantizeLinear(codes, scale, constant(zero), **attrs)
    return returning(graph, y)


@pytest.mark.parametrize("layout", [((), 1, 0), ((4,), 0, 0), ((6,), -1, 0), ((2, 6), 0, 2), ((4, 2), 1, 4)])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_its_values(name: str, layout: tuple[tuple[int, ...], int, int]) -> None:
    graph, x = pair(name, DType.FLOAT, *layout), numbers(3, 4, 6) * 3
    (expected,) = run(graph, {"x": x})
    (node,) = raised(graph).nodes
    assert node.op == FAKE_QUANTIZE and format_of(node).name == name
    constants = [v.const.numpy() for v in node.operands if v is not None and v.const is not None]
    (y,) = evaluate(node, [x, *constants]) or ()
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("name", FORMATS)
def test_short_floats_may_round_one_code_differently(name: str, dtype: DType) -> None:
    graph = pair(name, dtype, (6,), 1, 0)
    scale = next(graph.nodes).given(1).const
    assert scale is not None
    x = {"x": (numbers(3, 4, 6) * 3).astype(dtype.numpy)}
    expected = run(graph, x)[0].astype(np.float32)
    assert operators(raised(graph)) == [FAKE_QUANTIZE]
    step = scale.numpy().astype(np.float32) * (1 if parse_format(name).is_integer else parse_format(name).high / 8)
    found = run(graph, x)[0].astype(np.float32)
    assert np.all(np.abs(found - expected) <= step + np.abs(expected) * 2.0**-6)


@pytest.mark.parametrize("layout", [((), 1, 0), ((16,), 1, 0), ((16, 4), 1, 4)])
@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("name", FORMATS)
def test_constants_give_their_codes_again(name: str, dtype: DType, layout: tuple[tuple[int, ...], int, int]) -> None:
    """Bit for bit; and where a type of few bits could not, the codes stay."""
    (shape, axis, block_size), form = layout, parse_format(name)
    rng = np.random.default_rng(11)
    every = np.arange(16 * 16) % (1 << min(form.bits, 8)) + (form.low if form.is_integer else 0)
    codes = codes_of(name, 16, 16) if form.bits > 8 or not form.is_integer else every.astype(np.int16)
    codes = codes.reshape(16, 16).astype(form.storage.numpy)
    scale = np.asarray(2.0 ** rng.uniform(-16 if form.is_integer else -6, 0, shape)).astype(dtype.numpy)
    scale.reshape(-1)[::5] = 0.125  # a power of 2: products are exact
    middle = 0 if form.is_signed else 1 << (form.bits - 1)
    zero = constant(np.full(shape, middle).astype(form.storage.numpy)) if form.is_integer else None
    graph = Graph("constant", opsets={"": 25})
    y = op.DequantizeLinear(constant(codes), constant(scale), zero, axis=axis, block_size=block_size or None)
    raised(returning(graph, y))
    (node,) = graph.nodes
    if form.bits > 8 and dtype is not DType.FLOAT:
        assert node.op == "DequantizeLinear"
        return
    held = node.given(0).const
    assert node.op == FAKE_QUANTIZE and held is not None and format_of(node) is form
    zeros = None if zero is None or zero.const is None else zero.const.numpy()
    again = quantize(held.numpy(), scale, zeros, form, axis, block_size)
    np.testing.assert_array_equal(again.view(np.uint8), codes.view(np.uint8))
    np.testing.assert_array_equal(run(graph, {})[0], held.numpy())


def test_a_scale_of_zero_means_zero() -> None:
    graph = raised("""g () => (float[2,2] y) <int8[2,2] w = {1, 2, 3, 4}, float[2] s = {0.0, 1.0}, int8[2] o = {5, 0}> {
        y = DequantizeLinear (w, s, o) }""")
    assert operators(graph) == [FAKE_QUANTIZE]
    np.testing.assert_array_equal(run(graph, {})[0], [[0, 2], [0, 4]])


def test_large_constants_are_computed_when_they_are_wanted() -> None:
    """And once for all that use them."""
    codes, scale = constant(np.random.default_rng(0).integers(-128, 128, (1024, 512)).astype(np.int8)), constant(0.1)
    graph = Graph("large", opsets={"": 25})
    rows = op.DequantizeLinear(op.Gather(codes, constant([0])), scale)
    columns = op.DequantizeLinear(op.Transpose(codes), scale)
    raised(returning(graph, op.MatMul(rows, columns)))
    first, second = (node.given(0).const for node in graph.nodes if node.op == FAKE_QUANTIZE)
    assert isinstance(first, LazyTensor) and first is second
    assert codes.const is not None
    np.testing.assert_array_equal(first.numpy(), codes.const.numpy() * np.float32(0.1))


# operators

_SCALES = """float s = {0.0137}, uint8 o = {121}, float t = {0.0217}, uint8 p = {17}, float u = {0.0319},
  uint8 r = {99}, float[4] v = {0.01, 0.002, 0.03, 0.004}, float k = {0.00390625}, uint8 z = {0},
  int8 n = {0}, int8 h = {-7}"""
_WEIGHTS = ", ".join(str(i * 37 % 255 - 127) for i in range(72))
OPERATORS = {
    "QLinearConv": ("uint8[2,2,6,6] x", "y = QLinearConv <pads = [1, 1, 1, 1]> (x, s, o, w, v, n, u, r, b)", "4,2,3,3"),
    "QLinearConv of int8": ("int8[2,4,6,6] x", "y = QLinearConv <group = 2> (x, s, h, w, t, h, u, h)", "4,2,3,3"),
    "QLinearMatMul": ("uint8[2,5,18] x", "y = QLinearMatMul (x, s, o, w, v, f, u, r)", "18,4"),
    "QLinearMatMul of int8": ("int8[5,18] x", "y = QLinearMatMul (x, s, h, w, t, h, u, h)", "18,4"),
    "QGemm": ("uint8[5,18] x", "y = com.microsoft.QGemm <alpha = 1.5> (x, s, o, w, v, f, b, u, r)", "18,4"),
    "QGemm to float": ("uint8[5,18] x", "y = com.microsoft.QGemm <transB = 1> (x, s, o, w, t, n)", "4,18"),
    "QLinearAdd": ("uint8[5,18] x", "y = com.microsoft.QLinearAdd (x, s, o, x, t, p, u, r)", "4,18"),
    "QLinearMul": ("uint8[5,18] x", "y = com.microsoft.QLinearMul (x, s, o, x, t, p, u, r)", "4,18"),
    "QLinearSigmoid": ("uint8[5,18] x", "y = com.microsoft.QLinearSigmoid (x, s, o, k, z)", "4,18"),
    "QLinearLeakyRelu": ("uint8[5,18] x", "y = com.microsoft.QLinearLeakyRelu (x, s, o, t, p)", "4,18"),
    "QLinearSoftmax": (
        "uint8[5,18] x",
        "y = com.microsoft.QLinearSoftmax <opset = 12, axis = 1> (x, s, o, k, z)",
        "8,9",
    ),
    "QLinearAveragePool": (
        "uint8[2,2,6,6] x",
        "y = com.microsoft.QLinearAveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x, s, o, t, p)",
        "8,9",
    ),
    "QLinearGlobalAveragePool": (
        "uint8[2,2,6,6] x",
        "y = com.microsoft.QLinearGlobalAveragePool (x, s, o, t, p)",
        "8,9",
    ),
    "QLinearConcat": (
        "uint8[5,18] x",
        "y = com.microsoft.QLinearConcat <axis = 0> (u, r, x, s, o, x, t, p)",
        "8,9",
    ),
    "QLinearWhere": ("uint8[5,18] x, bool[18] c", "y = com.microsoft.QLinearWhere (c, x, s, o, x, t, p, u, r)", "8,9"),
    "MatMulIntegerToFloat": (
        "uint8[2,5,18] x",
        "y = com.microsoft.MatMulIntegerToFloat (x, w, s, v, o, f, g)",
        "18,4",
    ),
    "DynamicQuantizeMatMul": ("float[2,5,18] x", "y = com.microsoft.DynamicQuantizeMatMul (x, w, v, f, g)", "18,4"),
    "MatMulInteger": (
        "float[2,5,18] x",
        """q, a, c = DynamicQuantizeLinear (x) i = MatMulInteger (q, w, c, h) e = Cast <to = 1> (i) m = Mul (v, a)
        l = Mul (m, e) y = Add (l, g)""",
        "18,4",
    ),
    "MatMulInteger, scaled at once": (
        "float[2,5,18] x",
        "q = QuantizeLinear (x, s, o) i = MatMulInteger (q, w, o, h) e = Cast <to = 1> (i) y = Mul (v, e)",
        "18,4",
    ),
    "MatMulInteger of two values": (
        "float[5,18] x",
        """q, a, c = DynamicQuantizeLinear (x) d = Transpose (q) i = MatMulInteger (q, d, c, c) e = Cast <to = 1> (i)
        m = Mul (a, a) l = Mul (m, e) y = Mul (l, s)""",
        "18,4",
    ),
    "ConvInteger": (
        "float[2,2,6,6] x",
        """q, a, c = DynamicQuantizeLinear (x) i = ConvInteger <pads = [1, 0, 1, 0]> (q, w, c) e = Cast <to = 1> (i)
        l = Mul (e, a) y = Mul (l, channels)""",
        "4,2,3,3",
    ),
}


def operator(name: str) -> Graph:
    inputs, body, shape = OPERATORS[name]
    constants = f"""{_SCALES}, int8[{shape}] w = {{{_WEIGHTS}}}, int8[4] f = {{0, 3, -9, 0}},
      int32[4] b = {{100, -3000, 7, 0}}, float[4] g = {{1.0, 2.0, -3.0, 0.0}},
      float[1,4,1,1] channels = {{0.01, 0.002, 0.03, 0.004}}"""
    return parse(f"main ({inputs}) => (y) <{constants}> {{ {body} }}")


def inputs_of(graph: Graph, seed: int) -> dict[str, Any]:
    rng, found = np.random.default_rng(seed), {}
    for value in graph.inputs:
        shape = tuple(d if isinstance(d, int) else 3 for d in value.shape or ())
        limits = None if value.dtype in (DType.FLOAT, DType.BOOL) else np.iinfo(value.dtype.numpy)
        found[value.name] = (
            rng.integers(limits.min, limits.max + 1, shape).astype(limits.dtype)
            if limits is not None
            else (rng.standard_normal(shape) > 0 if value.dtype is DType.BOOL else numbers(seed, *shape))
        )
    return found


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_codes_compute_with_numbers(name: str) -> None:
    graph = operator(name)
    inputs = inputs_of(graph, 5)
    (expected,) = run(graph, inputs, "onnxruntime")
    found = set(operators(raised(graph)))
    assert not {o for o in found if "QLinear" in o or "Integer" in o or o.startswith(("com.microsoft", "Dynamic"))}
    codes = any(v.dtype is not DType.FLOAT for v in graph.inputs)
    assert codes or (FAKE_QUANTIZE in found and not found & {"QuantizeLinear", "DequantizeLinear"})
    (y,) = run(graph, inputs)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    if y.dtype == np.float32:
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    else:
        apart = np.abs(y.astype(int) - expected.astype(int))
        assert apart.max() <= 1 and np.mean(apart) < 0.01  # the last code, where a number lies between two


@pytest.mark.parametrize(("bits", "zeros"), [*product((2, 4, 8), ("none", "packed")), (2, "plain"), (4, "plain")])
@pytest.mark.parametrize(("rows", "block_size"), [(48, 16), (40, 32), (20, 64)])
def test_packed_weights(bits: int, zeros: str, rows: int, block_size: int) -> None:
    rng, blocks = np.random.default_rng(bits), -(-rows // block_size)
    weights = rng.integers(0, 256, (5, blocks, block_size * bits // 8)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.1, (5, blocks)).astype(np.float32)
    points: Any = None
    if zeros == "packed":
        points = rng.integers(0, 256, (5, -(-blocks * bits // 8))).astype(np.uint8)
    if zeros == "plain":
        points = rng.integers(0, 1 << bits, (5, blocks)).astype(np.float32)
    bias = numbers(2, 5) if rows == 40 else None
    graph = Graph("packed", opsets={"": 21, "com.microsoft": 1})
    x = graph.add_input(TensorType(DType.FLOAT, (3, rows)), "x")
    node = Node(
        "com.microsoft.MatMulNBits",
        [x, *(None if a is None else constant(a) for a in (weights, scales, points, None, bias))],
        {"K": rows, "N": 5, "bits": bits, "block_size": block_size},
        [TensorType(DType.FLOAT, (3, 5))],
    )
    returning(graph, node.result)
    inputs = {"x": numbers(9, 3, rows)}
    (expected,) = run(graph, inputs, "onnxruntime")
    assert operators(raised(graph)) == [FAKE_QUANTIZE, "MatMul"] + ["Add"] * (bias is not None)
    np.testing.assert_allclose(run(graph, inputs)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("stored", ["4 bits in bytes", "8 bits in bytes", "int4", "uint4"])
@pytest.mark.parametrize(("width", "block_size"), [(48, 16), (40, 32), (20, 64)])
def test_packed_tables(stored: str, zeros: bool, width: int, block_size: int) -> None:
    rng, blocks = np.random.default_rng(width), -(-width // block_size)
    bits = 8 if stored.startswith("8") else 4

    def codes(columns: int) -> Value:
        if stored in ("int4", "uint4"):
            form = parse_format(stored)
            return constant(rng.integers(form.low, form.high + 1, (7, columns)).astype(form.storage.numpy))
        return constant(rng.integers(0, 256, (7, -(-columns * bits // 8))).astype(np.uint8))

    graph = Graph("packed", opsets={"": 21, "com.microsoft": 1})
    indices = graph.add_input(TensorType(DType.INT64, (2, 3)), "i")
    scale = constant(rng.uniform(0.01, 0.1, (7, blocks)).astype(np.float32))
    node = Node(
        "com.microsoft.GatherBlockQuantized",
        [codes(width), indices, scale, *([codes(blocks)] if zeros else [])],
        {"gather_axis": 0, "quantize_axis": 1, "block_size": block_size, "bits": bits},
        [TensorType(DType.FLOAT, (2, 3, width))],
    )
    returning(graph, node.result)
    inputs = {"i": np.array([[0, 6, -1], [3, 3, -7]])}
    (expected,) = run(graph, inputs, "onnxruntime")
    assert operators(raised(graph)) == [FAKE_QUANTIZE, "Gather"]
    np.testing.assert_array_equal(run(graph, inputs)[0], expected)


# data movement

MOVES = {
    "Reshape": "m = Reshape (q, shape)",
    "Flatten": "m = Flatten <axis = 2> (q)",
    "Unsqueeze and Squeeze": "a = Unsqueeze (q, one) m = Squeeze (a, one)",
    "Transpose": "m = Transpose <perm = [0, 2, 3, 1]> (q)",
    "Slice": "m = Slice (q, one, two, two)",
    "Gather": "m = Gather <axis = 1> (q, one)",
    "Split and Concat": "a, b = Split <axis = 1, num_outputs = 2> (q) m = Concat <axis = 2> (b, a, b)",
    "Expand and Tile": "a = Gather <axis = 0> (q, one) b = Expand (a, wide) m = Tile (b, often)",
    "MaxPool": "m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (q)",
    "DepthToSpace": "a = DepthToSpace <blocksize = 2> (q) m = SpaceToDepth <blocksize = 2> (a)",
    "Pad": 'a = Pad (q, pads, o) m = Pad <mode = "edge"> (a, pads)',
    "Resize": "m = Resize (q, , scales)",
    "GatherElements": "m = GatherElements <axis = 1> (q, indices)",
    "Identity": "m = Identity (q)",
}


_INDICES = ", ".join(str(i * 7 % 4) for i in range(72))


def moved(move: str) -> str:
    return f"""main (float[2,4,6,6] x) => (y) <float s = {{0.05}}, uint8 o = {{100}}, int64[2] shape = {{8, -1}},
      int64[1] one = {{1}}, int64[1] two = {{2}}, int64[4] wide = {{3, 4, 6, 6}}, int64[4] often = {{1, 2, 1, 1}},
      int64[8] pads = {{0, 0, 1, 0, 0, 0, 0, 2}}, float[4] scales = {{1.0, 1.0, 2.0, 1.5}}, uint8 most = {{255}},
      int64[2,1,6,6] indices = {{{_INDICES}}}, float[4] t = {{0.05, 0.1, 0.2, 0.3}}, float negative = {{-0.05}}> {{
      q = QuantizeLinear (x, s, o) {move} y = DequantizeLinear (m, s, o) }}"""


@pytest.mark.parametrize("name", MOVES)
def test_numbers_are_moved_instead_of_codes(name: str) -> None:
    graph = parse(moved(MOVES[name]))
    inputs = inputs_of(graph, 4)
    (expected,) = run(graph, inputs)
    assert operators(raised(graph))[0] == FAKE_QUANTIZE
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(graph))
    np.testing.assert_array_equal(run(graph, inputs)[0], expected)


# what stays

STAYS = {
    "quantized and dequantized with different parameters": (
        "quantize-dequantize",
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}, uint8 o = {128}, uint8 p = {127}> {
             q = QuantizeLinear (x, s, o) y = DequantizeLinear (q, s, p) }""",
    ),
    "float comes back as float16": (
        "quantize-dequantize",
        """g (float[N,3] x) => (float16[N,3] y) <float s = {0.1}> {
             q = QuantizeLinear (x, s) y = DequantizeLinear <output_dtype = 10> (q, s) }""",
    ),
    "float is divided as float16": (
        "quantize-dequantize",
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}> {
             q = QuantizeLinear <precision = 10> (x, s) y = DequantizeLinear (q, s) }""",
    ),
    "what is out of range does not saturate": (
        "quantize-dequantize",
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}> {
             q = QuantizeLinear <output_dtype = 17, saturate = 0> (x, s) y = DequantizeLinear (q, s) }""",
    ),
    "the zero point has another shape than the scale": (
        "quantize-dequantize",
        """g (float[N,3] x) => (float[N,3] y) <float[3] s = {0.1, 0.2, 0.3}, uint8 o = {128}> {
             q = QuantizeLinear (x, s, o) y = DequantizeLinear (q, s, o) }""",
    ),
    "the scale is left out, or its shape unknown": (
        "quantize-dequantize",
        """g (float[N,3] x, float[M] s) => (float[N,3] y) {
             q = QuantizeLinear (x, s) y = DequantizeLinear (q, s) }""",
    ),
    "the codes are clipped to the range of no format": (
        "quantize-dequantize",
        """g (float[N,3] x) => (float[N,3] y) <float s = {0.1}, int8 o = {0}, int8 a = {-100}, int8 b = {100}> {
             q = QuantizeLinear (x, s, o) c = Clip (q, a, b) y = DequantizeLinear (c, s, o) }""",
    ),
    "bfloat16 does not tell the codes of uint8 apart": (
        "dequantize-constant",
        "g () => (bfloat16[2] y) <uint8[2] w = {1, 255}, bfloat16 s = {16256}> { y = DequantizeLinear (w, s) }",
    ),
    "too large numbers for float16": (
        "dequantize-constant",
        "g () => (float16[2] y) <int8[2] w = {1, 127}, float16 s = {31743}> { y = DequantizeLinear (w, s) }",
    ),
    "a scale of float for float16": (
        "dequantize-constant",
        """g () => (float16[2] y) <int8[2] w = {1, 127}, float s = {0.1}> {
             y = DequantizeLinear <output_dtype = 10> (w, s) }""",
    ),
    "some codes are no finite numbers": (
        "dequantize-constant",
        "g () => (float[2] y) <float8e5m2[2] w = {1, 124}, float s = {0.1}> { y = DequantizeLinear (w, s) }",
    ),
    "the scale or the zero point is known only when it runs": (
        "dequantize-constant",
        "g (float s) => (float[2] y) <int8[2] w = {1, 127}> { y = DequantizeLinear (w, s) }",
    ),
    "the operand of Reshape is not quantized here": (
        "dequantize-before-moving",
        """g (uint8[4] x) => (float[2,2] y) <float s = {0.1}, int64[2] t = {2, 2}> {
             r = Reshape (x, t) y = DequantizeLinear (r, s) }""",
    ),
    "Slice of codes with several scales": (
        "dequantize-before-moving",
        moved("m = Slice (q, one, two, two)").replace("y = DequantizeLinear (m, s, o)", "y = DequantizeLinear (m, t)"),
    ),
    "Pad does not fill with the zero point": ("dequantize-before-moving", moved("m = Pad (q, pads, most)")),
    "Resize computes new values": (
        "dequantize-before-moving",
        moved('m = Resize <mode = "linear"> (q, , scales)'),
    ),
    "the scale may be negative": (
        "dequantize-before-moving",
        moved("m = MaxPool <kernel_shape = [2, 2]> (q)").replace("(m, s, o)", "(m, negative, o)"),
    ),
    "the product is not scaled back": (
        "scaled-integer-product",
        """g (float[N,3] x) => (float[N,2] y) <int8[3,2] w = {1, 2, 3, 4, 5, 6}, float t = {0.1}> {
             q, s, o = DynamicQuantizeLinear (x) i = MatMulInteger (q, w, o) c = Cast <to = 1> (i) y = Mul (c, t) }""",
    ),
    "neither operand is quantized here": (
        "scaled-integer-product",
        """g (uint8[N,3] q) => (float[N,2] y) <int8[3,2] w = {1, 2, 3, 4, 5, 6}, float t = {0.1}> {
             i = MatMulInteger (q, w) c = Cast <to = 1> (i) y = Mul (c, t) }""",
    ),
    "operand 0 or its scale is left out": (
        "quantized-binary",
        """g (uint8[N,3] x) => (uint8[N,3] y) <float s = {0.1}, uint8 o = {3}> {
             y = com.microsoft.QLinearAdd (x, , o, x, s, o, s, o) }""",
    ),
    "the channels are last": (
        "quantized-unary",
        """g (uint8[N,2,2,3] x) => (uint8[N,1,1,3] y) <float s = {0.1}, uint8 o = {3}> {
             y = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (x, s, o, s, o) }""",
    ),
    "a softmax over several dimensions": (
        "quantized-unary",
        """g (uint8[N,2,3] x) => (uint8[N,2,3] y) <float s = {0.1}, uint8 o = {3}> {
             y = com.microsoft.QLinearSoftmax <opset = 12, axis = 1> (x, s, o, s, o) }""",
    ),
    "the weights are no constants": (
        "matmul-in-blocks",
        """g (float[N,16] x, uint8[2,1,8] w, float[2] s) => (float[N,2] y) {
             y = com.microsoft.MatMulNBits <K = 16, N = 2, bits = 4, block_size = 16> (x, w, s) }""",
    ),
    "the weights do not have the size that is stated": (
        "matmul-in-blocks",
        """g (float[N,16] x) => (float[N,2] y) <uint8[3] w = {1, 2, 3}, float[2] s = {1.0, 2.0}> {
             y = com.microsoft.MatMulNBits <K = 16, N = 2, bits = 4, block_size = 16> (x, w, s) }""",
    ),
    "codes of 3 bits": (
        "matmul-in-blocks",
        """g (float[N,16] x) => (float[N,2] y) <uint8[4] w = {1, 2, 3, 1}, float[2] s = {1.0, 2.0}> {
             y = com.microsoft.MatMulNBits <K = 16, N = 2, bits = 3, block_size = 16> (x, w, s) }""",
    ),
    "codes of 2 bits": (
        "lookup-in-blocks",
        """g (int64[N] i) => (float[N,16] y) <uint8[1,4] t = {1, 2, 3, 1}, float[1,1] s = {1.0}> {
             y = com.microsoft.GatherBlockQuantized <bits = 2, block_size = 16> (t, i, s) }""",
    ),
    "the table is no constant": (
        "lookup-in-blocks",
        """g (int64[N] i, uint8[2,8] t) => (float[N,16] y) <float[2,1] s = {1.0, 2.0}> {
             y = com.microsoft.GatherBlockQuantized <block_size = 16> (t, i, s) }""",
    ),
    "as many scales as there are blocks": (
        "lookup-in-blocks",
        """g (int64[N] i) => (float[N,8] y) <uint8[1,4] t = {1, 2, 3, 1}, float[1,2] s = {1.0, 2.0}> {
             y = com.microsoft.GatherBlockQuantized <block_size = 16> (t, i, s) }""",
    ),
}


@pytest.mark.parametrize("reason", STAYS)
def test_what_stays_is_explained(reason: str) -> None:
    rule, text = STAYS[reason]
    assert reason in reasons(text, rule)
    assert operators(raised(text)) == operators(parse(text))


def test_codes_that_others_read_stay_codes() -> None:
    text = """
      g (float[N,4] x, uint8[N,4] other) => (float[N,4] y, uint8[N,4] q, uint8[N,4] z, float[N,4] w) <
        float s = {0.1}, uint8 o = {128}> {
        q = QuantizeLinear (x, s, o) y = DequantizeLinear (q, s, o) z = BitwiseXor (q, other)
        v = BitwiseAnd (q, other) w = DequantizeLinear (v, s, o) }"""
    graph = parse(text)
    inputs = {"x": numbers(1, 3, 4), "other": np.arange(12, dtype=np.uint8).reshape(3, 4)}
    expected = run(graph, inputs)
    assert Counter(operators(raised(graph))) == Counter(
        [FAKE_QUANTIZE, "QuantizeLinear", "BitwiseXor", "BitwiseAnd", "DequantizeLinear"]
    )
    for a, b in zip(run(graph, inputs), expected, strict=True):
        np.testing.assert_array_equal(a, b)


# whole models


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(numbers(len(name) + sum(shape), *shape) * np.float32(0.3), name)


def model(nodes: list[Any], inputs: dict[str, list[Any]], weights: list[Any]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("y", 1, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def convolutional() -> onnx.ModelProto:
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], "c1", pads=[1, 1, 1, 1]),
        make("Relu", ["c1"], ["r1"], "r1"),
        make("MaxPool", ["r1"], ["p1"], "p1", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["p1", "w2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
        make("LeakyRelu", ["c2"], ["l2"], "l2", alpha=0.1),
        make("Conv", ["p1", "w3"], ["c3"], "c3", pads=[1, 1, 1, 1]),
        make("Sigmoid", ["c3"], ["s3"], "s3"),
        make("Mul", ["l2", "s3"], ["m"], "m"),
        make("Add", ["m", "p1"], ["a"], "a"),
        make("Concat", ["a", "m"], ["cc"], "cc", axis=1),
        make("Resize", ["cc", "", "scales"], ["rz"], "rz", mode="nearest"),
        make("Pad", ["rz", "pads"], ["pd"], "pd"),
        make("AveragePool", ["pd"], ["ap"], "ap", kernel_shape=[3, 3], strides=[2, 2]),
        make("Transpose", ["ap"], ["tp"], "tp", perm=[0, 1, 3, 2]),
        make("Split", ["tp"], ["s1", "s2"], "sp", axis=1, num_outputs=2),
        make("Add", ["s1", "s2"], ["sa"], "sa"),
        make("GlobalAveragePool", ["sa"], ["g"], "g"),
        make("Reshape", ["g", "flat"], ["f"], "f"),
        make("Gemm", ["f", "w4", "b4"], ["gm"], "gm", transB=1),
        make("Softmax", ["gm"], ["y"], "sm", axis=-1),
    ]
    fixed = {"scales": np.float32([1, 1, 2, 2]), "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "flat": np.int64([0, -1])}
    weights = [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("w3", 8, 8, 3, 3)]
    weights += [weight("w4", 5, 8), weight("b4", 5), *(numpy_helper.from_array(a, n) for n, a in fixed.items())]
    return model(nodes, {"x": ["N", 3, 8, 8]}, weights)


def perceptron() -> onnx.ModelProto:
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "w1"], ["m1"], "m1"),
        make("Add", ["m1", "b1"], ["a1"], "a1"),
        make("Relu", ["a1"], ["r1"], "r1"),
        make("Gemm", ["r1", "w2", "b2"], ["y"], "y"),
    ]
    weights = [weight("w1", 16, 70), weight("b1", 70), weight("w2", 70, 4), weight("b2", 4)]
    return model(nodes, {"x": ["N", 16]}, weights)


def products() -> onnx.ModelProto:
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "wq"], ["q"], "q"),
        make("MatMul", ["x", "wk"], ["k"], "k"),
        make("Transpose", ["k"], ["kt"], "kt", perm=[0, 2, 1]),
        make("MatMul", ["q", "kt"], ["s"], "s"),
        make("Softmax", ["s"], ["p"], "p", axis=-1),
        make("MatMul", ["p", "x"], ["y"], "y"),
    ]
    return model(nodes, {"x": ["N", 6, 32]}, [weight("wq", 32, 32), weight("wk", 32, 32)])


def feed(proto: onnx.ModelProto, seed: int) -> dict[str, Any]:
    dims = {i.name: [d.dim_value or 3 for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    return {name: numbers(seed, *shape) for name, shape in dims.items()}


class Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, proto: onnx.ModelProto):
        self.samples = iter([feed(proto, seed) for seed in range(4)])

    def get_next(self) -> Any:
        return next(self.samples, None)


def assert_raised(proto: onnx.ModelProto, pipeline: str, tolerance: float = 1e-5) -> None:
    """Nothing but FakeQuantize is left of quantization, and values agree with ONNX Runtime's own."""
    graph = planish.load(proto)
    inputs = feed(proto, 17)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, inputs)
    found = operators(raised(graph, pipeline))
    spelled = ("Quantize", "QLinear", "QGemm", "Integer", "NBits")
    assert FAKE_QUANTIZE in found
    assert not [o for o in found if o != FAKE_QUANTIZE and any(s in o for s in spelled)]
    for target in ("reference", "onnxruntime"):
        (y,) = run(graph, inputs, target)
        assert np.abs(y - expected).max() <= tolerance * np.abs(expected).max(), target


@pytest.mark.parametrize("pipeline", ["raise-quantization", "simplify,raise-quantization"])
@pytest.mark.parametrize("types", [(QuantType.QUInt8, QuantType.QInt8), (QuantType.QInt8, QuantType.QInt8)])
@pytest.mark.parametrize("spelling", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("build", [convolutional, perceptron])
def test_static_models(build: Any, spelling: QuantFormat, types: Any, pipeline: str, tmp_path: Path) -> None:
    quantize_static(
        build(),
        tmp_path / "q.onnx",
        Samples(build()),
        quant_format=spelling,
        activation_type=types[0],
        weight_type=types[1],
        per_channel=spelling is QuantFormat.QDQ,
    )
    steps = 2 / 255  # of a softmax, or of the range of the last layer
    assert_raised(onnx.load(tmp_path / "q.onnx"), pipeline, steps)


@pytest.mark.parametrize("types", [(QuantType.QUInt16, QuantType.QInt8), (QuantType.QInt8, QuantType.QInt4)])
def test_wide_and_narrow_integers(types: Any, tmp_path: Path) -> None:
    kinds = dict(zip(("activation_type", "weight_type"), types, strict=True))
    quantize_static(perceptron(), tmp_path / "q.onnx", Samples(perceptron()), **kinds)
    assert_raised(onnx.load(tmp_path / "q.onnx"), "raise-quantization", 2 / 255)


@pytest.mark.parametrize("pipeline", ["raise-quantization", "simplify,raise-quantization"])
@pytest.mark.parametrize("options", [{}, {"per_channel": True, "weight_type": QuantType.QInt8}])
@pytest.mark.parametrize("build", [convolutional, perceptron, products])
def test_dynamic_models(build: Any, options: dict[str, Any], pipeline: str, tmp_path: Path) -> None:
    extra = {"MatMulConstBOnly": not options}
    quantize_dynamic(build(), tmp_path / "q.onnx", extra_options=extra, **options)
    assert_raised(onnx.load(tmp_path / "q.onnx"), pipeline, 1e-2)


BLOCKS = [(2, QuantFormat.QOperator), (4, QuantFormat.QOperator), (8, QuantFormat.QOperator), (4, QuantFormat.QDQ)]


@pytest.mark.parametrize(("bits", "spelling"), BLOCKS)  # all that the quantizer writes
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_in_blocks(bits: int, spelling: QuantFormat, symmetric: bool) -> None:
    quantizer = MatMulNBitsQuantizer(
        products(), bits=bits, block_size=16, is_symmetric=symmetric, quant_format=spelling
    )
    quantizer.process()
    assert_raised(quantizer.model.model, "raise-quantization", 1e-5)
