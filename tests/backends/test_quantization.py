"""FakeQuantize in the standard's operators: both backends compute what it means, and files hold integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

import planish
from planish.backends import backend
from planish.backends.onnxruntime import OnnxRuntime
from planish.ir import DType, Graph, LazyTensor, TensorType, Value, constant, edit, op
from planish.ir.evaluate import evaluate
from planish.ir.quantization import FAKE_QUANTIZE, FLOATS, parse_format
from planish.ir.text import parse
from planish.passes import Context, Pipeline

Array = np.ndarray[Any, Any]
FakeQuantize = op.domain("planish").FakeQuantize
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 3, 4, 5, 6, 7, 8, 12, 16)]
FORMATS = [*INTEGERS, *FLOATS]
NARROW = [f for f in INTEGERS if parse_format(f).bits < parse_format(f).storage.bits]
NO_KERNEL = "float4e2m1"  # ONNX Runtime 1.31 has none for it on a CPU
SHAPE, BLOCK = (4, 6, 7), 3
ONNXRUNTIME = backend("onnxruntime")
REFERENCE = backend("reference")

LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {  # the shape of the scale, and attributes
    "tensor": ((), {}),
    "one element": ((1,), {"axis": 2}),
    "one element of several dimensions": ((1, 1, 1), {"axis": 0, "block_size": 64}),
    "axis 0": ((4,), {"axis": 0}),
    "axis 1": ((6,), {}),
    "last axis": ((7,), {"axis": -1}),
    "blocks of axis 0": ((2, 6, 7), {"axis": 0, "block_size": BLOCK}),
    "blocks of axis 1": ((4, 2, 7), {"block_size": BLOCK}),
    "blocks of the last axis": ((4, 6, 3), {"axis": -1, "block_size": BLOCK}),
}
SOME = ["tensor", "one element", "axis 1", "last axis", "blocks of axis 1"]
GIVEN = {"constant": "", "value": "x", "value and scale": "xsz", "scale": "sz", "zero point": "xz"}  # when it runs


def operands(
    form: str, shape: tuple[int, ...], zero: bool, dtype: Any = np.float32, scale_dtype: Any = None
) -> dict[str, Array]:
    """A value, of which some is out of range and some half-way between two codes; a scale; a zero point."""
    f, rng = parse_format(form), np.random.default_rng(len(form))
    scale = (rng.uniform(0.5, 2, shape) * (4 / f.high)).astype(scale_dtype or dtype)
    x = rng.standard_normal(SHAPE) * 3
    x.flat[::9] = (np.arange(x.size)[::9] % 7 - 2.5) * float(scale.flat[0])
    found = {"x": x.astype(dtype), "s": np.asarray(scale)}
    if zero:
        codes = rng.integers(int(f.low), int(f.high) + 1, shape)
        found["z"] = np.asarray(codes).astype(f.storage.numpy)
    return found


def quantizer(arrays: dict[str, Array], given: Iterable[str], **attrs: Any) -> tuple[Graph, dict[str, Array], Array]:
    """A graph of one FakeQuantize; what its inputs are; and what it computes."""
    graph = Graph("g")
    dtypes = {n: DType.from_numpy(a.dtype) for n, a in arrays.items()}
    values = {
        n: graph.add_input(TensorType(dtypes[n], a.shape), n) if n in given else constant(a, dtypes[n])
        for n, a in arrays.items()
    }
    y = FakeQuantize(*values.values(), **attrs)
    found = evaluate(y.producer, list(arrays.values()))
    assert found is not None
    return returning(graph, y), {n: a for n, a in arrays.items() if n in given}, found[0]


def returning(graph: Graph, *values: Value) -> Graph:
    edit.insert_floating(values, graph.ret)
    for i, value in enumerate(values):
        value.name = f"y{i}" if i else "y"
    graph.set_outputs(values)
    return graph


def run(graph: Graph, inputs: dict[str, Array], target: Any = REFERENCE, **options: Any) -> Array:
    return np.asarray(target.compile(graph, **options).run(inputs)[0])


def check(graph: Graph, inputs: dict[str, Array], expected: Array, targets: Iterable[Any]) -> None:
    """All targets compute it, bit for bit."""
    for target in targets:
        found = run(graph, inputs, target)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64), err_msg=target.name)


# values


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMATS)
def test_both_backends_compute_what_it_means(form: str, layout: str) -> None:
    shape, attrs = LAYOUTS[layout]
    targets = [REFERENCE] if form == NO_KERNEL else [REFERENCE, ONNXRUNTIME]
    for given, zero in product(GIVEN, (False, True)):
        if (given == "zero point" and not zero) or (zero and form in FLOATS):
            continue
        if "z" not in GIVEN[given] or "several" not in layout or parse_format(form).storage.bits >= 8:
            check(*quantizer(operands(form, shape, zero), GIVEN[given], format=form, **attrs), targets)


@pytest.mark.parametrize("layout", SOME)
@pytest.mark.parametrize("form", ["int8", "uint8", "int4", "int3", "int16", "float8e4m3fn"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_short_numbers_with_scales_of_32_bits(dtype: Any, form: str, layout: str) -> None:
    """Every step of the definition is taken in float32, and so are the operators. (No bfloat16 in ONNX Runtime.)"""
    shape, attrs = LAYOUTS[layout]
    targets = [REFERENCE, ONNXRUNTIME] if dtype is np.float16 else [REFERENCE]
    for given in ("", "x", "xs"):
        arrays = operands(form, shape, form not in FLOATS, dtype, np.float32)
        check(*quantizer(arrays, given, format=form, **attrs), targets)


@pytest.mark.parametrize("layout", SOME)
@pytest.mark.parametrize("form", ["int8", "uint8", "uint4", "int5", "uint7", "float8e4m3fn"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_short_numbers_with_scales_like_them(dtype: Any, form: str, layout: str) -> None:
    """ONNX Runtime divides in float32; the standard in the type of the scale, so that the code may be the next."""
    shape, attrs = LAYOUTS[layout]
    for given in ("", "x", "xs"):
        arrays = operands(form, shape, form not in FLOATS, dtype)
        graph, inputs, expected = quantizer(arrays, given, format=form, **attrs)
        if dtype is np.float16:
            check(graph, inputs, expected, [ONNXRUNTIME])
        found, step = run(graph, inputs), float(arrays["s"].max())
        assert found.dtype == dtype
        rtol = 4 * float(ml_dtypes.finfo(dtype).eps) if form not in FLOATS else 0.2
        np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=rtol, atol=step)
        if not given:  # a constant is rounded by the definition itself
            np.testing.assert_array_equal(found.astype(float), expected.astype(float))


@pytest.mark.parametrize("layout", SOME)
@pytest.mark.parametrize("form", ["int8", "uint4", "int3", "uint16"])
@pytest.mark.parametrize("scale", [np.float32, np.float64])
def test_long_numbers_are_rounded_as_32_bits(scale: Any, form: str, layout: str) -> None:
    """ONNX's operators know no 64 bits: codes are those of the number in float32, next to a tie the neighbour."""
    shape, attrs = LAYOUTS[layout]
    for given in ("", "x", "xs"):
        arrays = operands(form, shape, True, np.float64, scale)
        arrays["x"].flat[::9] = 0
        graph, inputs, expected = quantizer(arrays, given, format=form, **attrs)
        for target in (REFERENCE, ONNXRUNTIME):
            found = run(graph, inputs, target)
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("form", [f for f in FORMATS if f != NO_KERNEL])
@pytest.mark.parametrize("before", ["Relu (n)", "Clip (n, low, high)", "Neg (n)"])
def test_what_comes_before_is_not_forgotten(form: str, before: str) -> None:
    """ONNX Runtime 1.31 drops a Relu before a constant zero point of an odd type, and fails for a Clip."""
    zero = "" if form in FLOATS else f", {parse_format(form).storage.text} z = {{1}}"
    text = f"""
        g (float[4,9] x) => (float[4,9] y, float[4,9] w) <
          float s = {{{5 / parse_format(form).high}}}, float low = {{-0.3}}, float high = {{1.2}}{zero}> {{
          n = Neg (x) a = {before} b = {before}
          y = planish.FakeQuantize <format = "{form}"> (a, s)
          w = planish.FakeQuantize <format = "{form}"> (b, s{", z" if zero else ""}) }}"""
    x = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32) * 3
    for expected, found in zip(
        REFERENCE.compile(parse(text)).run({"x": x}), ONNXRUNTIME.compile(parse(text)).run({"x": x}), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_ranges_at_run_time(dtype: Any, axis: int | None) -> None:
    """Per tensor or in blocks, whose size is no divisor; of any sign, of zeros, and of the least numbers."""
    rng = np.random.default_rng(0)
    attrs = {"format": "uint8"} if axis is None else {"format": "int8", "axis": axis, "block_size": 4}
    arrays = [rng.standard_normal(SHAPE) + offset for offset in (0, 5, -5)] + [np.zeros(SHAPE), np.full(SHAPE, 1e-44)]
    for array in arrays:
        x = array.astype(dtype)
        x.flat[:2] = 0
        for given in ("x", ""):
            graph, inputs, expected = quantizer({"x": x}, given, **attrs)
            if dtype is not np.float64:
                check(graph, inputs, expected, [REFERENCE, ONNXRUNTIME])
                continue
            for target in (REFERENCE, ONNXRUNTIME):  # in float32
                np.testing.assert_allclose(run(graph, inputs, target), expected, rtol=1e-5, atol=1e-40)


@pytest.mark.parametrize("form", ["int2", "int3", "int4", "int16"])
def test_blocks_of_any_signed_integers_and_unknown_sizes(form: str) -> None:
    text = f"""g (float[N,M] x) => (float[N,M] y) {{
        y = planish.FakeQuantize <format = "{form}", axis = 0, block_size = 4> (x) }}"""
    for shape in ((5, 3), (8, 2), (1, 1)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        _, _, expected = quantizer({"x": x}, "x", format=form, axis=0, block_size=4)
        check(parse(text), {"x": x}, expected, [REFERENCE, ONNXRUNTIME])


# operators


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.walk())


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("one")])
def test_a_constant_is_codes_and_a_value_a_pair(layout: str) -> None:
    shape, attrs = LAYOUTS[layout]
    arrays = operands("int8", shape, True)
    graph, _, _ = quantizer(arrays, "", format="int8", **attrs)
    (node,) = REFERENCE.lower(graph).nodes
    assert node.op == "DequantizeLinear"
    assert node.given(0).type == TensorType(DType.INT8, SHAPE)
    graph, _, _ = quantizer(arrays, "x", format="int8", **attrs)
    assert operators(REFERENCE.lower(graph)) == {"QuantizeLinear": 1, "DequantizeLinear": 1}


def test_a_tensor_that_is_quantized_twice_is_one_tensor() -> None:
    graph, w, s = Graph("g"), constant(np.ones((3, 4), np.float32)), constant(np.float32(0.5))
    first, second, other = (FakeQuantize(w, s, format=form) for form in ("int8", "int8", "int4"))
    codes = [n.given(0).const for n in REFERENCE.lower(returning(graph, first, second, other)).nodes]
    assert len(codes) == 3
    assert len({id(t) for t in codes}) == 2


@pytest.mark.parametrize("layout", ["tensor", "axis 1", "blocks of axis 1"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("form", ["int8", "uint8"])
def test_eight_bits_are_what_the_processor_likes(form: str, zero: bool, layout: str) -> None:
    """uint8 on x64 and int8 on arm64, with the zero point moved along: not a bit of the values differs."""
    shape, attrs = LAYOUTS[layout]
    graph, inputs, expected = quantizer(operands(form, shape, zero), "x", format=form, **attrs)
    for variant, dtype in (("x64", DType.UINT8), ("arm64", DType.INT8)):
        target = OnnxRuntime(variant)
        lowered = target.lower(graph)
        assert [n.result.dtype for n in lowered.nodes if n.op == "QuantizeLinear"] == [dtype]
        check(lowered, inputs, expected, [REFERENCE])
        check(graph, inputs, expected, [target])


def test_codes_that_are_known_when_it_runs_keep_their_type() -> None:
    graph, inputs, expected = quantizer(operands("int8", (), True), "xsz", format="int8")
    assert [n.result.dtype for n in ONNXRUNTIME.lower(graph).nodes if n.op == "QuantizeLinear"] == [DType.INT8]
    check(graph, inputs, expected, [ONNXRUNTIME])


# regions

REGION = """
    g (float[2,3,9,9] x) => (float[2,5,7,7] y) <
      float s = {{0.031}}, {dtype} z = {{{zero}}}, float t = {{0.047}}, {dtype} o = {{{low}}},
      float[5] b = {{0.3, -1.0, 0.01, 2.0, 0.0}}, float[5] c = {{0.011, 0.02, 0.005, 0.03, 0.016}},
      float[5,3,3,3] w = {{{w}}}> {{
      q = planish.FakeQuantize <format = "{dtype}"> (x, s, z)
      v = planish.FakeQuantize <format = "int8", axis = 0> (w, c)
      a = Conv (q, v, b)
      {activation}
      y = planish.FakeQuantize <format = "{dtype}"> (r, t, o) }}"""


@pytest.mark.parametrize("variant", ["x64", "arm64"])
@pytest.mark.parametrize("activation", ["r = Identity (a)", "r = Relu (a)"])
@pytest.mark.parametrize(("dtype", "zero"), [("int8", -5), ("uint8", 119)])
def test_a_convolution_runs_in_integers(dtype: str, zero: int, activation: str, variant: str, tmp_path: Path) -> None:
    """The kernel's bias is an integer, too: a result may become the next code."""
    rng = np.random.default_rng(0)
    w = ", ".join(map(repr, rng.uniform(-0.5, 0.5, 135).astype(np.float32).tolist()))
    low = int(parse_format(dtype).low) if "Relu" in activation else zero  # as it is after a Relu
    graph = parse(REGION.format(dtype=dtype, zero=zero, low=low, activation=activation, w=w))
    x = rng.standard_normal((2, 3, 9, 9)).astype(np.float32) * 2
    target = OnnxRuntime(variant)
    found = run(graph, {"x": x}, target, optimized_path=tmp_path / "optimized.onnx")
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    ops = [n.op_type for n in nodes if n.op_type != "Transpose"]  # it may prefer channels last
    assert ops == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
    codes = {n.result.dtype for n in target.lower(graph).nodes if n.op == "QuantizeLinear"}
    assert codes == {{"x64": DType.UINT8, "arm64": DType.INT8}[variant]}
    expected, step = run(graph, {"x": x}), 0.047
    assert np.abs(found - expected).max() <= 1.001 * step
    assert (found != expected).mean() < 0.05
    np.testing.assert_array_equal(run(target.lower(graph), {"x": x}), expected)


# files


def layered(bits: int = 8, block: int = 0, lazy: list[int] | None = None, rows: int = 600) -> tuple[Graph, Graph]:
    """A product and a bias with their weights in floating point, and quantized."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((rows, 500)).astype(np.float32)
    form = parse_format(f"int{bits}")
    scale = np.full((-(-rows // block), 500) if block else (500,), 4 / form.high, np.float32)

    def compute() -> Array:
        if lazy is not None:
            lazy.append(1)
        return array

    graphs = []
    for quantized in (False, True):
        weight = constant(LazyTensor(compute, (), DType.FLOAT, array.shape, "w") if lazy is not None else array)
        if quantized:
            attrs = {"axis": 0, "block_size": block} if block else {}
            weight = FakeQuantize(weight, constant(scale), format=form.name, **attrs)
        graph = Graph("g")
        x = graph.add_input(TensorType(DType.FLOAT, (3, rows)), "x")
        graphs.append(returning(graph, op.Add(op.MatMul(x, weight), constant(np.ones(500, np.float32)))))
    return graphs[0], graphs[1]


@pytest.mark.parametrize(("bits", "block", "times"), [(8, 0, 4), (4, 0, 8), (4, 32, 6), (2, 64, 12)])
def test_files_hold_integers_in_standard_operators(bits: int, block: int, times: float, tmp_path: Path) -> None:
    plain, graph = layered(bits, block)
    before = str(graph)
    planish.save(plain, tmp_path / "plain.onnx")
    planish.save(graph, tmp_path / "model.onnx")
    assert str(graph) == before
    size = sum(p.stat().st_size for p in tmp_path.glob("model.*"))
    assert sum(p.stat().st_size for p in tmp_path.glob("plain.*")) > 0.95 * times * size
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    assert {n.domain for n in onnx.load(tmp_path / "model.onnx").graph.node} == {""}
    loaded = planish.load(tmp_path / "model.onnx")
    Pipeline.parse("raise-quantization").run(loaded, Context())
    assert operators(loaded) == operators(graph)
    (node,) = (n for n in loaded.nodes if n.op == FAKE_QUANTIZE)
    assert node.attrs["format"] == f"int{bits}"
    x = np.random.default_rng(1).standard_normal((3, 600)).astype(np.float32)
    np.testing.assert_array_equal(run(loaded, {"x": x}), run(graph, {"x": x}))


@pytest.mark.parametrize("form", ["int8", "uint8", "int16", "uint4", "int4", "int2", "float8e4m3fn"])
@pytest.mark.parametrize("layout", ["tensor", "axis 1", "blocks of axis 1"])
@pytest.mark.parametrize("given", ["x", ""])
def test_files_give_the_same_fake_quantize_again(given: str, layout: str, form: str, tmp_path: Path) -> None:
    shape, attrs = LAYOUTS[layout]
    arrays = operands(form, shape, form not in FLOATS)
    graph, inputs, expected = quantizer(arrays, given, format=form, **attrs)
    planish.save(graph, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx")
    loaded = planish.load(tmp_path / "model.onnx")
    Pipeline.parse("raise-quantization").run(loaded, Context())
    (node,) = loaded.nodes
    assert (node.op, node.attrs["format"]) == (FAKE_QUANTIZE, form)
    check(loaded, inputs, expected, [REFERENCE])


@pytest.mark.parametrize("form", NARROW)
def test_files_for_widths_that_onnx_lacks(form: str, tmp_path: Path) -> None:
    """The values in their range, or clipped to it: what is read again may hold more, but computes the same."""
    for layout, given in product(("tensor", "axis 1"), ("x", "")):
        shape, attrs = LAYOUTS[layout]
        graph, inputs, expected = quantizer(operands(form, shape, True), given, format=form, **attrs)
        planish.save(graph, tmp_path / "model.onnx")
        loaded = planish.load(tmp_path / "model.onnx")
        Pipeline.parse("raise-quantization").run(loaded, Context())
        check(loaded, inputs, expected, [REFERENCE])


def test_large_weights_are_rounded_when_they_are_written(tmp_path: Path) -> None:
    calls: list[int] = []
    _, graph = layered(8, 0, calls, rows=2200)
    lowered = REFERENCE.lower(graph)
    (node,) = (n for n in lowered.nodes if n.op == "DequantizeLinear")
    assert isinstance(node.given(0).const, LazyTensor)
    assert not calls
    planish.save(graph, tmp_path / "model.onnx")
    assert calls
    assert (tmp_path / "model.onnx.data").stat().st_size < 1.01 * 2200 * 500
