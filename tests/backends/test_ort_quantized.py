"""Quantized products and lookups in ONNX Runtime's fastest forms: which form is chosen, and that values stay.

Weights that meet eight-bit activations have codes of 7 bits here: without VNNI, x86 kernels add pairs of products of
eight bits in 16, which overflow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import planish
from planish.backends import backend
from planish.backends.onnxruntime import OnnxRuntime
from planish.ir import DType, Graph, TensorType, Value, constant, edit, op
from planish.ir.quantization import parse_format, quantize
from planish.models import save_for

Array = np.ndarray[Any, Any]
Make = Callable[[Value], Value | list[Value]]
FakeQuantize = op.domain("planish").FakeQuantize
ORT, REFERENCE = OnnxRuntime(), backend("reference")
DYNAMIC = "com.microsoft.DynamicQuantizeMatMul"
INTEGERS = "com.microsoft.MatMulIntegerToFloat"
IN_BLOCKS = "com.microsoft.MatMulNBits"
K, N = 40, 24
X = {1: (K,), 2: (6, K), 3: (2, 3, K)}  # by rank
INT8_BITS = 7


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def model(make: Make, shape: tuple[int, ...] = X[2], dtype: DType = DType.FLOAT) -> Graph:
    graph = Graph("g")
    made = make(graph.add_input(TensorType(dtype, shape), "x"))
    values = made if isinstance(made, list) else [made]
    edit.insert_floating(values, graph.ret)
    for i, value in enumerate(values):
        value.name = f"y{i}"
    graph.set_outputs(values)
    return graph


def lowered(graph: Graph) -> Counter[str]:
    found = ORT.lower(graph)
    assert all(any(r.is_used for r in n.results) for n in found.walk()), str(found)  # nothing dead is written
    return Counter(n.op for n in found.nodes)


def check(graph: Graph, rtol: float = 1e-6, x: Array | None = None, **options: Any) -> None:
    """ONNX Runtime computes what the reference does.

    Sums of integers are exact. What differs are the roundings of the scale, of the final product and of the bias on
    one side, and of the sums of floats on the other: in float32, some 1e-7 of the largest.
    """
    (value,) = graph.inputs
    x = numbers(*value.shape, seed=1).astype(value.dtype.numpy) if x is None else x  # type: ignore[misc]
    expected, found = (e.run({"x": x}) for e in (REFERENCE.compile(graph), ORT.compile(graph, **options)))
    for a, b in zip(expected, found, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(b, a, rtol=0, atol=rtol * float(np.abs(a).max()))


def optimized(graph: Graph, path: Path) -> list[str]:
    ORT.compile(graph, optimized_path=path)
    return [n.op_type for n in onnx.load(path).graph.node]


def dynamic(x: Value) -> Value:
    return FakeQuantize(x, format="uint8")


def rows(x: Value, block_size: int = 32, form: str = "int8", axis: int = -1) -> Value:
    return FakeQuantize(x, format=form, axis=axis, block_size=block_size)


def static(x: Value, form: str = "uint8", step: float = 0.02, zero: int | None = 120, shape: Any = ()) -> Value:
    f = parse_format(form)
    zeros = None if zero is None else constant(np.full(shape, zero, f.storage.numpy), f.storage)
    return FakeQuantize(x, constant(np.full(shape, step, np.float32)), zeros, format=form)


LEFT = {
    "dynamic": dynamic,
    "static": static,
    "static int8": lambda x: static(x, "int8", 0.02, -3),
    "static, symmetric": lambda x: static(x, "int8", 0.02, None),
    "static, one element": lambda x: static(x, shape=(1,)),
}


def weight(
    form: str = "int8", per: str = "column", zero: bool = False, *, turned: bool = False, n: int = N, seed: int = 0,
    dtype: Any = np.float32, scale_dtype: Any = np.float32, k: int = K, axis: int | None = None,
) -> Value:  # fmt: skip
    """A quantized constant [k, n], or turned [n, k]. ``per`` is column, row, tensor, or the size of blocks of a column;
    ``axis`` says where blocks are instead.
    """
    f, rng = parse_format(form), np.random.default_rng(seed)
    block = int(per) if per.isdecimal() else 0
    axis = (1 if per == "column" else 0) if axis is None else axis
    shape: tuple[int, ...] = () if per == "tensor" else ((k, n)[axis],)
    if block:
        shape = tuple(-(-d // block) if i == axis else d for i, d in enumerate((k, n)))
    width = min(f.bits, INT8_BITS)
    scale = np.asarray(rng.uniform(0.5, 1, shape) * 8 / 2**width)
    arrays = [rng.standard_normal((k, n)).clip(-2, 2).astype(dtype), scale.astype(scale_dtype)]
    if zero or not f.is_signed:
        middle = int(f.low + f.high + 1) // 2
        around = np.asarray(rng.integers(middle - 2, middle + 2, shape))
        arrays.append((around if zero else np.full(shape, middle)).clip(f.low, f.high).astype(f.storage.numpy))
    dtypes = [DType.from_numpy(a.dtype) for a in arrays[:2]] + [f.storage]
    arrays = [np.ascontiguousarray(a.T) if turned and a.ndim == 2 else a for a in arrays]
    values = map(constant, arrays, dtypes)
    attrs = {"axis": 1 - axis if turned else axis} | ({"block_size": block} if block else {})
    return FakeQuantize(*values, format=form, **attrs)


def bias(n: int = N) -> Value:
    return constant(numbers(n, seed=2))


# a product, in all the ways that it may be written
PRODUCTS: dict[str, tuple[int, Callable[..., Value]]] = {
    "MatMul": (2, lambda x, **w: op.MatMul(x, weight(**w))),
    "MatMul of rank 3": (3, lambda x, **w: op.MatMul(x, weight(**w))),
    "MatMul of rank 1, and Add": (1, lambda x, **w: op.Add(op.MatMul(x, weight(**w)), bias())),
    "Add, and MatMul of rank 3": (3, lambda x, **w: op.Add(bias(), op.MatMul(x, weight(**w)))),
    "Gemm": (2, lambda x, **w: op.Gemm(x, weight(**w))),
    "Gemm with a bias": (2, lambda x, **w: op.Gemm(x, weight(**w), bias())),
    "Gemm and Add": (2, lambda x, **w: op.Add(op.Gemm(x, weight(**w)), bias())),
    "Gemm, turned": (2, lambda x, **w: op.Gemm(x, weight(turned=True, **w), transB=1)),
    "Gemm with a bias, turned": (2, lambda x, **w: op.Gemm(x, weight(turned=True, **w), bias(), transB=1)),
}
WEIGHTS: dict[str, dict[str, Any]] = {
    "int8 per column": {},
    "int8 per tensor": {"per": "tensor"},
    "uint8 per column": {"form": "uint8"},
    "uint8 per tensor": {"form": "uint8", "per": "tensor"},
    "asymmetric int8": {"zero": True},
    "asymmetric int8 per tensor": {"zero": True, "per": "tensor"},
    "asymmetric uint8": {"form": "uint8", "zero": True},
    "int7 per column": {"form": "int7"},
}

# products of integers


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("product", PRODUCTS)
def test_eight_bits_are_multiplied_as_integers(product: str, left: str, weights: str) -> None:
    rank, make = PRODUCTS[product]
    graph = model(lambda x: make(LEFT[left](x), **WEIGHTS[weights]), X[rank])
    assert lowered(graph) == ({DYNAMIC: 1} if left == "dynamic" else {"QuantizeLinear": 1, INTEGERS: 1})
    check(graph)


def test_known_numbers_give_the_very_sums() -> None:
    """All scales are powers of two: nothing is rounded but the activation."""
    w = np.random.default_rng(0).integers(-63, 64, (K, N)).astype(np.float32)
    x = np.random.default_rng(1).integers(-120, 136, (6, K)).astype(np.float32) / 4
    steps = np.exp2(np.arange(N) % 5 - 3).astype(np.float32)
    fake = FakeQuantize(constant(w * steps), constant(steps), format="int8")
    graph = model(lambda x: op.MatMul(static(x, step=0.25), fake))
    assert lowered(graph) == {"QuantizeLinear": 1, INTEGERS: 1}
    np.testing.assert_array_equal(ORT.compile(graph).run({"x": x})[0], x @ (w * steps))


@pytest.mark.parametrize(("left", "head"), [("dynamic", "DynamicQuantizeLinear"), ("static", "QuantizeLinear")])
@pytest.mark.parametrize("count", [2, 3])
def test_a_value_that_several_products_read_is_quantized_once(left: str, head: str, count: int) -> None:
    def make(x: Value) -> list[Value]:
        q = LEFT[left](x)
        products = [
            op.MatMul(q, weight()),
            op.Gemm(q, weight(turned=True, n=4), bias(4), transB=1),
            op.Add(op.MatMul(q, weight(zero=True, n=8)), bias(8)),
        ]
        return products[:count]

    graph = model(make)
    assert lowered(graph) == {head: 1, INTEGERS: count}
    check(graph)


@pytest.mark.parametrize("left", ["dynamic", "static"])
def test_another_reader_still_gets_numbers(left: str) -> None:
    graph = model(lambda x: [op.MatMul(q := LEFT[left](x), weight()), op.Relu(q)])
    assert lowered(graph)[INTEGERS] == lowered(graph)["DequantizeLinear"] == 1
    check(graph)


def test_a_bias_that_is_no_constant_is_added_afterwards() -> None:
    graph = model(lambda x: op.Add(op.MatMul(static(x), weight()), op.ReduceSum(x, constant([1], DType.INT64))))
    assert lowered(graph) == {"QuantizeLinear": 1, INTEGERS: 1, "Add": 1, "ReduceSum": 1}
    check(graph)


@pytest.mark.parametrize("used", [0, 1])
def test_a_sum_that_has_another_use_is_not_merged(used: int) -> None:
    def make(x: Value) -> list[Value]:
        y = op.MatMul(static(x), weight())
        return [op.Add(y, bias()), y if used else op.Relu(y)]

    assert lowered(model(make))["Add"] == 1
    check(model(make))


# weights in blocks

FORMS = ["int8", "uint8", "int4", "uint4", "int2", "uint2", "int3", "int6"]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", ["16", "32", "128"])
def test_weights_in_blocks_stay_packed(block: str, form: str, zero: bool) -> None:
    """40 rows are no multiple of any block."""
    graph = model(lambda x: op.MatMul(x, weight(form, block, zero)))
    assert lowered(graph) == {IN_BLOCKS: 1}
    (node,) = ORT.lower(graph).nodes
    bits = parse_format(form).storage.bits
    assert node.given(1).shape == (N, -(-K // int(block)), int(block) * bits // 8)
    assert (node.operand(3) is not None) is (zero or form.startswith("u"))
    check(graph)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("form", ["int8", "int4", "uint4", "int2"])
@pytest.mark.parametrize("block", [32, 128])
def test_rows_in_blocks_become_integers_in_the_kernel(block: int, form: str, zero: bool) -> None:
    graph = model(lambda x: op.MatMul(rows(x, block), weight(form, str(block), zero)))
    assert lowered(graph) == {IN_BLOCKS: 1}
    (node,) = ORT.lower(graph).nodes
    assert node.attrs["accuracy_level"] == 4
    check(graph, 2e-6)  # a sum of products for every block


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("product", PRODUCTS)
def test_all_products_take_blocks(product: str, quantized: bool) -> None:
    rank, make = PRODUCTS[product]
    graph = model(lambda x: make(rows(x) if quantized else x, form="uint4", per="32", zero=True), X[rank])
    assert lowered(graph) == {IN_BLOCKS: 1}
    check(graph, 2e-6)


@pytest.mark.parametrize(
    "left",
    [*LEFT.values(), lambda x: rows(x, 16), lambda x: rows(x, 32, "int4"), lambda x: rows(x, 32, axis=1)],
    ids=[*LEFT, "blocks of 16", "int4", "blocks of columns"],
)
def test_activations_that_the_kernel_cannot_make_are_made_before(left: Callable[[Value], Value]) -> None:
    graph = model(lambda x: op.MatMul(left(x), weight("int4", "32")), X[3])
    assert lowered(graph)[IN_BLOCKS] == 1
    assert all("accuracy_level" not in n.attrs for n in ORT.lower(graph).nodes)
    check(graph)


def test_one_block_for_one_column() -> None:
    graph = model(lambda x: op.MatMul(x, weight(per="64", n=1)))
    assert lowered(graph) == {IN_BLOCKS: 1}
    check(graph)


# what keeps the standard's form


def static_weight(x: Value) -> Value:
    return static(x, "int8", 0.04, None)


def quantized_result(y: Value) -> Value:
    return static(y, step=0.11)


KEPT: dict[str, tuple[str, Callable[[Value], Value]]] = {
    "scales of rows": ("MatMul", lambda x: op.MatMul(dynamic(x), weight(per="row"))),
    "scales of rows, square": ("MatMul", lambda x: op.MatMul(static(x), weight(per="row", n=K))),
    "scales of rows, result quantized": (
        "MatMul",
        lambda x: quantized_result(op.MatMul(static(x), weight(per="row", n=K))),
    ),
    "scales of rows, turned": (
        "Gemm",
        lambda x: op.Gemm(static(x), weight(per="row", n=K, turned=True), transB=1),
    ),
    "scales of rows, turned, result quantized": (
        "Gemm",
        lambda x: quantized_result(op.Gemm(static(x), weight(per="row", n=K, turned=True), bias(K), transB=1)),
    ),
    "blocks of rows": ("MatMul", lambda x: op.MatMul(static(x), weight(per="16", axis=1, n=K))),
    "blocks of 24": ("MatMul", lambda x: op.MatMul(static(x), weight(per="24", n=K))),
    "blocks of rows, numbers": ("MatMul", lambda x: op.MatMul(x, weight(per="16", axis=1))),
    "scales of both": (
        "MatMul",
        lambda x: op.MatMul(
            FakeQuantize(x, constant(np.full(K, 0.02, np.float32)), format="int8", axis=-1), weight(per="row")
        ),
    ),
    "alpha": ("Gemm", lambda x: op.Gemm(static(x), weight(), bias(), alpha=0.5)),
    "beta": ("Gemm", lambda x: op.Gemm(dynamic(x), weight(), bias(), beta=0.5)),
    "a bias of rank 2": ("Gemm", lambda x: op.Gemm(static(x), weight(), constant(numbers(1, N)))),
    "a single bias": ("Gemm", lambda x: op.Gemm(static(x), weight(), constant(np.float32(2)))),
    "a weight that is no constant": (
        "MatMul",
        lambda x: op.MatMul(dynamic(x), static_weight(op.Transpose(x, perm=[1, 0]))),
    ),
    "a weight of rank 3": (
        "MatMul",
        lambda x: op.MatMul(static(x), static_weight(constant(numbers(2, K, 8)))),
    ),
    "a weight of four bits": ("MatMul", lambda x: op.MatMul(static(x), weight("int4"))),
    "an activation of 7 bits": ("MatMul", lambda x: op.MatMul(static(x, "int7", 0.02, 3), weight())),
    "an activation of 16 bits": ("MatMul", lambda x: op.MatMul(static(x, "int16", 0.001, 3), weight())),
    "a scale of float16": ("MatMul", lambda x: op.MatMul(dynamic(x), weight(scale_dtype=np.float16))),
    "a scale of double": ("MatMul", lambda x: op.MatMul(static(x), weight(scale_dtype=np.float64))),
    "blocks with scales of float16": ("MatMul", lambda x: op.MatMul(x, weight(per="16", scale_dtype=np.float16))),
    "an activation's scale of float16": (
        "MatMul",
        lambda x: op.MatMul(FakeQuantize(x, constant(np.float16(0.02)), format="int8"), weight()),
    ),
    "a scale that is known when it runs": (
        "MatMul",
        lambda x: op.MatMul(FakeQuantize(x, op.Mul(op.ReduceMax(x, keepdims=0), 0.01), format="int8"), weight()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_has_no_faster_form_keeps_the_standard_one(case: str) -> None:
    """And ONNX Runtime, which forgets to look at scales in some of these cases, is kept from breaking it."""
    name, make = KEPT[case]
    graph = model(make)
    found = lowered(graph)
    assert not {DYNAMIC, INTEGERS, IN_BLOCKS} & set(found)
    assert found[name] == 1
    check(graph)


def test_a_transposed_left_factor_keeps_the_standard_form() -> None:
    graph = model(lambda x: op.Gemm(dynamic(x), weight(), transA=1), (K, 6))
    assert lowered(graph) == {"DynamicQuantizeLinear": 1, "DequantizeLinear": 2, "Gemm": 1}
    check(graph)


def test_blocks_for_a_weight_that_has_none() -> None:
    """ONNX Runtime makes a product with blocks of its own of it, and activations of eight bits, unless told not to."""
    graph = model(lambda x: op.MatMul(rows(x), weight()))
    assert not {DYNAMIC, INTEGERS, IN_BLOCKS} & set(lowered(graph))
    check(graph, 0.02)
    check(graph, config={"session.qdq_matmulnbits_accuracy_level": "1"})


@pytest.mark.parametrize(
    ("make", "kernel"),
    [
        (lambda x: op.MatMul(static(x), weight()), "QLinearMatMul"),
        (lambda x: op.MatMul(static(x), weight(per="tensor", zero=True)), "QLinearMatMul"),
        (lambda x: op.Gemm(static(x), weight(), bias()), "QGemm"),
        (lambda x: op.Gemm(static(x), weight(turned=True), bias(), transB=1), "QGemm"),
    ],
    ids=["MatMul", "MatMul per tensor", "Gemm", "Gemm turned"],
)
def test_integers_in_and_out(make: Callable[[Value], Value], kernel: str, tmp_path: Path) -> None:
    graph = model(lambda x: quantized_result(make(x)))
    assert not {DYNAMIC, INTEGERS, IN_BLOCKS} & set(lowered(graph))
    assert optimized(graph, tmp_path / "o.onnx") == ["QuantizeLinear", kernel, "DequantizeLinear"]
    x = numbers(*X[2])
    (found,), (expected,) = (e.compile(graph).run({"x": x}) for e in (ORT, REFERENCE))
    assert np.abs(found - expected).max() <= 1.001 * 0.11  # sums in another order, next to a tie
    assert (found != expected).mean() < 0.02


@pytest.mark.parametrize("per", ["column", "row", "tensor", "16", "24"])
@pytest.mark.parametrize("left", [lambda x: x, dynamic, lambda x: static(x, "int8", 0.02, None)])
def test_half_precision_is_computed_as_such(left: Callable[[Value], Value], per: str) -> None:
    """There are no integer kernels for it; what matters is that ONNX Runtime takes it, with scales of 32 bits."""
    graph = model(lambda x: op.MatMul(left(x), weight(per=per, dtype=np.float16)), dtype=DType.FLOAT16)
    assert lowered(graph)["MatMul"] == 1
    check(graph, 2e-3)


# rows of tables

TABLE = numbers(10, 6, seed=3)
INDICES = np.array([[3, -1], [0, 9]])


def table(form: str, per: str, zero: int | None = None, axis: int = 0, dtype: Any = np.float32) -> Graph:
    f, shape = parse_format(form), () if per == "tensor" else (TABLE.shape[axis],)
    scale = np.asarray(np.random.default_rng(0).uniform(0.5, 1, shape) * 6 / (f.high - f.low), np.float32)
    zeros = None if zero is None else constant(np.full(shape, zero, f.storage.numpy), f.storage)
    rows = FakeQuantize(constant(TABLE.astype(dtype)), constant(scale), zeros, format=form, axis=axis)
    return model(lambda i: op.Gather(rows, i, axis=0), INDICES.shape, DType.INT64)


def codes_in(path: Path, graph: Graph) -> bool:
    """Whether a file holds the codes of the table byte for byte."""
    (node,) = (n for n in graph.nodes if n.op == "planish.FakeQuantize")
    x, scale, zero = (None if o is None else o.const.numpy() for o in (*node.operands, None)[:3])  # type: ignore[union-attr]
    codes = quantize(x, scale, zero, parse_format(node.attrs["format"]), node.attrs["axis"])
    return codes.tobytes() in path.read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("form", "per", "zero", "axis", "expected"),
    [
        ("int8", "tensor", None, 0, {"Gather": 1, "DequantizeLinear": 1}),
        ("int8", "tensor", 5, 0, {"Gather": 1, "DequantizeLinear": 1}),
        ("uint8", "tensor", 120, 0, {"Gather": 1, "DequantizeLinear": 1}),
        ("int8", "row", None, 0, {"Gather": 2, "Cast": 1, "Unsqueeze": 1, "Mul": 1}),
        ("int7", "row", None, -2, {"Gather": 2, "Cast": 1, "Unsqueeze": 1, "Mul": 1}),
        ("int8", "row", 5, 0, {"Gather": 1, "DequantizeLinear": 1}),
        ("int8", "column", None, 1, {"Gather": 1, "DequantizeLinear": 1}),
    ],
)
def test_rows_are_picked_as_integers(
    form: str, per: str, zero: int | None, axis: int, expected: dict[str, int], dtype: Any, tmp_path: Path
) -> None:
    graph = table(form, per, zero, axis, dtype)
    casts = {"Cast": expected.get("Cast", 0) + 1} if dtype is np.float16 else {}
    assert lowered(graph) == expected | casts
    check(graph, 0, INDICES)
    planish.save(graph, tmp_path / "standard.onnx")
    save_for(graph, tmp_path / "fast.onnx", ORT)
    for name in ("standard.onnx", "fast.onnx"):
        assert codes_in(tmp_path / name, graph)
        onnx.checker.check_model(tmp_path / name)
    (values,) = REFERENCE.compile(graph).run({"x": INDICES})
    for found in (ORT.load(tmp_path / "fast.onnx"), REFERENCE.compile(planish.load(tmp_path / "standard.onnx"))):
        np.testing.assert_array_equal(found.run({"x": INDICES})[0], values)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("form", "zero"), [("int4", None), ("uint4", None), ("uint4", 7), ("int3", None)])
@pytest.mark.parametrize("block_size", [16, 32])
def test_rows_are_picked_in_blocks(form: str, zero: int | None, block_size: int, dtype: Any, tmp_path: Path) -> None:
    f, blocks = parse_format(form), -(-40 // block_size)
    scale = np.random.default_rng(0).uniform(0.2, 0.4, (10, blocks)).astype(np.float32)
    zeros = None if zero is None else constant(np.full((10, blocks), zero, f.storage.numpy), f.storage)
    rows = FakeQuantize(
        constant(numbers(10, 40).astype(dtype)), constant(scale), zeros, format=form, axis=1, block_size=block_size
    )
    graph = model(lambda i: op.Gather(rows, i), INDICES.shape, DType.INT64)
    assert lowered(graph) == {"com.microsoft.GatherBlockQuantized": 1} | ({"Cast": 1} if dtype is np.float16 else {})
    check(graph, 0, INDICES)
    save_for(graph, tmp_path / "fast.onnx", ORT)
    (values,) = REFERENCE.compile(graph).run({"x": INDICES})
    np.testing.assert_array_equal(ORT.load(tmp_path / "fast.onnx").run({"x": INDICES})[0], values)
    again = planish.optimize(planish.load(tmp_path / "fast.onnx"), verify="off").graph
    np.testing.assert_array_equal(REFERENCE.compile(again).run({"x": INDICES})[0], values)
    assert [n.op for n in again.nodes if "Quant" in n.op] == ["planish.FakeQuantize"]


@pytest.mark.parametrize(("form", "axis", "block_size"), [("int4", 0, 16), ("int4", 1, 4), ("int8", 1, 16)])
def test_other_blocks_become_numbers_first(form: str, axis: int, block_size: int) -> None:
    shape = [10, 40]
    shape[axis] = -(-shape[axis] // block_size)
    scale = constant(np.full(shape, 0.4, np.float32))
    rows = FakeQuantize(constant(numbers(10, 40)), scale, format=form, axis=axis, block_size=block_size)
    graph = model(lambda i: op.Gather(rows, i, axis=0), INDICES.shape, DType.INT64)
    assert lowered(graph) == {"DequantizeLinear": 1, "Gather": 1}
    check(graph, 0, INDICES)


def test_a_table_in_blocks_is_dequantized() -> None:
    scale = np.full((10, 2), 0.02, np.float32)
    rows = FakeQuantize(constant(TABLE), constant(scale), format="int8", axis=1, block_size=4)
    graph = model(lambda i: op.Gather(rows, i, axis=0), INDICES.shape, DType.INT64)
    assert lowered(graph) == {"DequantizeLinear": 1, "Gather": 1}
    check(graph, 0, INDICES)


def test_a_table_that_is_a_weight_too_is_used_as_integers_twice() -> None:
    """Tied embeddings: rows are picked, and the whole is multiplied with."""
    tied = FakeQuantize(constant(numbers(300, 64)), constant(np.full(300, 0.05, np.float32)), format="int8", axis=0)
    graph = model(lambda i: op.Gemm(dynamic(op.Gather(tied, i, axis=0)), tied, transB=1), (5,), DType.INT64)
    found = lowered(graph)
    assert (found[DYNAMIC], found["Mul"], found["DequantizeLinear"]) == (1, 1, 0)
    check(graph, x=np.array([3, 0, 299, -1, 7]))


def per_column(weight: Array, format: str = "int8") -> Value:
    scale = (np.abs(weight).max(axis=0) / parse_format(format).high).astype(np.float32)
    return FakeQuantize(constant(weight), constant(scale), format=format, axis=1)


def test_a_weight_alone_is_decoded_once_and_multiplied_as_it_is(tmp_path: Path) -> None:
    graph = model(lambda x: op.MatMul(x, per_column(numbers(K, N))))
    assert lowered(graph) == {"Cast": 1, "Reshape": 1, "Mul": 1, "MatMul": 1}
    check(graph)
    save_for(graph, tmp_path / "out.onnx", ORT, external=False)
    optimized = tmp_path / "optimized.onnx"
    ORT.load(tmp_path / "out.onnx", optimized_path=optimized)
    assert [n.op_type for n in onnx.load(optimized).graph.node] == ["MatMul"]  # all else is done when it is loaded


@pytest.mark.parametrize(("name", "axis"), [("Conv", 0), ("ConvTranspose", 1)])
def test_a_filter_alone_is_decoded_once(tmp_path: Path, name: str, axis: int) -> None:
    filters = numbers(6, 6, 3, 3)
    scale = (np.abs(filters).max(axis=tuple({0, 1, 2, 3} - {axis})) / 127).astype(np.float32)
    codes = FakeQuantize(constant(filters), constant(scale), format="int8", axis=axis)
    graph = model(lambda x: getattr(op, name)(x, codes), (2, 6, 9, 9))
    assert lowered(graph) == {"Cast": 1, "Reshape": 1, "Mul": 1, name: 1}
    check(graph, x=numbers(2, 6, 9, 9))
    save_for(graph, tmp_path / "out.onnx", ORT, external=False)
    optimized = tmp_path / "optimized.onnx"
    ORT.load(tmp_path / "out.onnx", optimized_path=optimized)
    kinds = [n.op_type for n in onnx.load(optimized).graph.node if "Reorder" not in n.op_type]
    assert kinds == [name]


@pytest.mark.parametrize(("variant", "expected"), [("x64", DType.UINT8), ("arm64", DType.INT8)])
def test_codes_of_a_product_are_of_the_type_that_the_processor_is_fast_for(variant: str, expected: DType) -> None:
    graph = model(lambda x: op.MatMul(static(x, "int8", 0.02, -3), per_column(numbers(K, N))))
    (product,) = [
        n for n in backend(f"onnxruntime:{variant}").lower(graph).nodes if n.op == "com.microsoft.MatMulIntegerToFloat"
    ]
    assert product.given(0).dtype is expected
    check(graph)


@pytest.mark.parametrize("is_clipped", [False, True])
@pytest.mark.parametrize("form", ["uint8", "int8"])
@pytest.mark.parametrize("name", ["Conv", "ConvTranspose", "Gemm"])
def test_a_weight_of_floating_point_between_codes_stays_one(name: str, form: str, is_clipped: bool) -> None:
    """ONNX Runtime would quantize it by itself."""
    shape, weights = ((5, 16), (16, 24)) if name == "Gemm" else ((2, 6, 9, 9), (6, 6, 3, 3))

    def make(x: Value) -> Value:
        y = getattr(op, name)(static(x, form, 0.02, 3), constant(numbers(*weights)), constant(numbers(weights[1])))
        return static(op.Relu(y) if is_clipped else y, form, 0.05, 1)

    check(model(make, shape))


def test_a_weight_of_floating_point_whose_result_has_other_uses_stays_one() -> None:
    def make(x: Value) -> list[Value]:
        y = op.Conv(static(x, "uint8", 0.02, 3), constant(numbers(6, 6, 3, 3)))
        return [op.Relu(y), static(y, "uint8", 0.05, 1)]

    check(model(make, (2, 6, 9, 9)))
    assert lowered(model(make, (2, 6, 9, 9)))["Max"] == 1


def test_a_weight_behind_moved_integers_stays_an_integer() -> None:
    def make(x: Value) -> Value:
        codes = FakeQuantize(x, constant(np.float32(0.05)), constant(np.uint8(128)), format="uint8")
        return op.MatMul(op.Reshape(codes, constant([-1, K], DType.INT64)), per_column(numbers(K, N)))

    assert "Cast" not in lowered(model(make, X[3]))


def test_four_bits_in_memory_beside_weights_in_files(tmp_path: Path) -> None:
    big = model(lambda x: op.MatMul(op.MatMul(x, constant(numbers(K, 64))), constant(numbers(64, N))))
    planish.save(big, tmp_path / "in.onnx", external=True)
    graph = planish.load(tmp_path / "in.onnx")
    first, second = [n for n in graph.nodes if n.op == "MatMul"]
    weight = second.given(1)
    scale = constant(np.float32(0.5))
    quantized = FakeQuantize(weight, scale, format="int4")
    edit.insert_floating([quantized], second)
    edit.set_operand(second, 1, quantized)
    assert type(first.given(1).const).__name__ == "FileTensor"
    check(graph, rtol=1e-5)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("form", ["int2", "uint2", "int3", "int4", "uint4"])
def test_short_weights_of_convolutions_become_bytes_when_they_are_loaded(form: str, zero: bool, tmp_path: Path) -> None:
    """ONNX Runtime 1.31 has no integer kernel for them, and refuses those of two bits; the file keeps them short."""
    bits = parse_format(form)
    offset = constant(np.ones(8, bits.storage.numpy), bits.storage) if zero else None
    scale = constant(np.linspace(0.1, 0.3, 8, dtype=np.float32))
    kernel = FakeQuantize(constant(numbers(8, 3, 3, 3)), scale, offset, format=form, axis=0)
    graph = model(lambda x: static(op.Conv(static(x), kernel), step=0.1), (2, 3, 5, 5))
    (cast,) = [node for node in ORT.lower(graph).nodes if node.op == "Cast"]
    assert cast.given(0).const is not None
    assert cast.given(0).dtype is bits.storage
    assert cast.result.dtype in (DType.INT8, DType.UINT8)
    assert "QLinearConv" in optimized(graph, tmp_path / "optimized.onnx")
    x = numbers(2, 3, 5, 5, seed=1)
    got, wanted = (engine.run(graph, {"x": x})["y0"] for engine in (ORT, REFERENCE))
    difference = np.abs(got - wanted)
    assert difference.max() < 0.101, "ties may be rounded to the next step, and no further"
    assert (difference > 1e-5).mean() < 0.02


@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.FLOAT16])
@pytest.mark.parametrize("transpose", [False, True])
def test_float8_codes_of_products_stay_apart(dtype: DType, transpose: bool) -> None:
    """ONNX Runtime 1.31 would make it a product of integers, and then refuse the model."""
    weight = constant(numbers(N, K) if transpose else numbers(K, N), DType.FLOAT)
    weight = weight if dtype is DType.FLOAT else op.Cast(weight, to=dtype)

    def make(x: Value) -> Value:
        left, right = (FakeQuantize(v, constant(0.01), format="float8e4m3fn") for v in (x, weight))
        return op.Gemm(left, right, transB=1) if transpose else op.MatMul(left, right)

    check(model(make, dtype=dtype), rtol=1e-6 if dtype is DType.FLOAT else 5e-3)


def test_scales_of_float32_for_numbers_of_16_bits() -> None:
    """As TensorRT wants them. ONNX Runtime 1.31 takes such a model and fails when it runs."""
    scale, zero = constant(0.01), constant(0, DType.INT8)

    def make(x: Value) -> Value:
        codes = op.QuantizeLinear(x, scale, zero)
        back = op.Reshape(
            op.DequantizeLinear(codes, scale, zero, output_dtype=DType.FLOAT16), constant([-1, K], DType.INT64)
        )
        return op.MatMul(
            back, op.DequantizeLinear(constant(np.ones((K, N), np.int8)), scale, output_dtype=DType.FLOAT16)
        )

    graph = model(make, X[3], DType.FLOAT16)
    assert lowered(graph)["Cast"] == 3
    check(graph, rtol=5e-3)


MOVES: dict[str, Make] = {
    "MaxPool": lambda x: op.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2]),
    "Reshape": lambda x: op.Reshape(x, constant([1, -1], DType.INT64)),
    "Slice": lambda x: op.Slice(x, constant([1], DType.INT64), constant([3], DType.INT64), constant([2], DType.INT64)),
    "Squeeze": lambda x: op.Squeeze(x, constant([0], DType.INT64)),
    "Transpose": lambda x: op.Transpose(x, perm=[0, 2, 3, 1]),
    "Unsqueeze": lambda x: op.Unsqueeze(x, constant([1], DType.INT64)),
}
CODES = np.random.default_rng(0).integers(-128, 128, (1, 3, 4, 4))


def decoded(x: Value, *scales: float) -> Value:
    """Numbers of codes, with one scale or one for each index of axis 1."""
    scale = np.float32(scales[0]) if len(scales) == 1 else np.array(scales, np.float32)
    return op.DequantizeLinear(x, constant(scale), constant(np.full(np.shape(scale), 3, x.dtype.numpy), x.dtype))


@pytest.mark.parametrize("name", MOVES)
def test_codes_of_int8_are_moved_before_they_become_numbers(name: str) -> None:
    """ONNX Runtime 1.31 would do so itself, with an operator that it then does not know."""
    graph = model(lambda x: MOVES[name](decoded(x, 0.1)), CODES.shape, DType.INT8)
    assert [n.op for n in ORT.lower(graph).nodes] == [name, "DequantizeLinear"]
    check(graph, 0, CODES.astype(np.int8))


def test_codes_are_moved_through_all_that_follows_and_numbers_stay_for_others() -> None:
    def make(x: Value) -> list[Value]:
        numbers = decoded(x, 0.1)
        return [MOVES["Reshape"](MOVES["MaxPool"](MOVES["Transpose"](numbers))), op.Neg(numbers)]  # type: ignore[arg-type]

    graph = model(make, CODES.shape, DType.INT8)
    found = [n.op for n in ORT.lower(graph).nodes]
    assert found.count("DequantizeLinear") == 2
    assert found.index("Reshape") < max(i for i, name in enumerate(found) if name == "DequantizeLinear")
    check(graph, 0, CODES.astype(np.int8))


@pytest.mark.parametrize(("dtype", "scales"), [(DType.UINT8, (0.1,)), (DType.INT8, (0.1, 0.2, 0.3))])
def test_other_codes_become_numbers_first(dtype: DType, scales: tuple[float, ...]) -> None:
    graph = model(lambda x: MOVES["Transpose"](decoded(x, *scales)), CODES.shape, dtype)
    assert [n.op for n in ORT.lower(graph).nodes] == ["DequantizeLinear", "Transpose"]
    check(graph, 0, CODES.astype(dtype.numpy))


def test_constants_of_int8_are_not_moved_as_codes() -> None:
    def make(x: Value) -> Value:
        return op.Add(x, MOVES["Transpose"](decoded(constant(CODES.astype(np.int8)), 0.1)))  # type: ignore[arg-type]

    graph = model(make, (1, 4, 4, 3))
    assert [n.op for n in ORT.lower(graph).nodes] == ["DequantizeLinear", "Transpose", "Add"]
    check(graph, 0)
