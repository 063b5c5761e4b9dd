"""Casts, quantized numbers, reductions, products and transforms, one node at a time."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from planish.backends.base import backend
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType

from .trt_single import Const, check, lower, single

RTX = version_of("rtx")
rng = np.random.default_rng(0)
F, I8, U8, I32, I64, BOOL = DType.FLOAT, DType.INT8, DType.UINT8, DType.INT32, DType.INT64, DType.BOOL


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def integers(dtype: Any, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def refused(op: str, operands: list[Any], results: list[Any], **more: Any) -> str:
    graph, _ = single(op, operands, results, **more)
    return refusal(next(iter(graph.nodes)), RTX)


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


# --- casts -----------------------------------------------------------------------------------------------------------

SMALL = (
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float4_e2m1fn,
)


@pytest.mark.parametrize("dtype", SMALL)
def test_casts_to_small_floating_point_types_round_to_even(dtype):
    codes = np.arange(256 if np.dtype(dtype).name != "float4_e2m1fn" else 16, dtype=np.uint8)
    grid = np.unique(codes.view(dtype).astype(np.float64))
    grid = grid[np.isfinite(grid)]
    between = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2, grid * 1.01, [1e9, -1e9, np.inf, -np.inf, 1e-9]])
    x = np.append(between, 0.3 if between.size % 2 == 0 else []).astype(np.float32)  # an odd number: no quantized type
    out = DType.from_numpy(np.dtype(dtype))
    check("Cast", [x], [out], to=int(out), engine="reference", tolerance=0)


def test_casts_that_do_not_saturate():
    x = np.array([448, 464, 465, 1e9, -1e9, np.inf, 1, 2], np.float32)
    out = DType.FLOAT8E4M3FN
    check("Cast", [x], [out], to=int(out), saturate=0, engine="reference", tolerance=0)


def test_casts_to_few_bits_wrap_around():
    x = np.array([-9.7, 8, 7.5, -8, 15, 3, 2], np.float32)
    for dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        wanted = np.trunc(x).astype(np.int32).astype(dtype)
        out = DType.from_numpy(np.dtype(dtype))
        check("Cast", [x], [out], to=int(out), want=[wanted.astype(np.int32)], engine="reference", tolerance=0)


def test_a_cast_to_float8_is_a_quantization_with_a_scale_of_one():
    out = DType.FLOAT8E4M3FN
    graph, feed = single("Cast", [numbers(4)], [out], to=int(out))
    lowered = lower(graph, feed)
    assert ops(lowered) == ["QuantizeLinear"]
    assert lowered.outputs[0].dtype is out


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two(mode):
    x = np.array([0.124, 0.25, 0.375, 0.3749, 1.1, 1.5, 3, 8, 1e-30, 3e38], np.float32)
    out = DType.FLOAT8E8M0
    check("Cast", [x], [out], to=int(out), round_mode=mode, engine="reference", tolerance=0)


# --- quantized numbers -----------------------------------------------------------------------------------------------


def test_symmetric_quantization_stays():
    x, scale = numbers(4, 6), Const(np.float32(0.1))
    assert refused("QuantizeLinear", [x, scale, Const(np.int8(0))], [I8]) == ""
    assert "zero point" in refused("QuantizeLinear", [x, scale, Const(np.int8(3))], [I8])
    assert "positive" in refused("QuantizeLinear", [x, Const(np.float32(0)), Const(np.int8(0))], [I8])
    assert refused("DequantizeLinear", [integers(np.int8, 4, 6), np.float32(0.1)], [F]) == ""
    assert "int32" in refused("DequantizeLinear", [integers(np.int32, 4), scale], [F])


def test_four_bits_want_whole_bytes_and_blocks_the_last_axes():
    x = numbers(3, 5)
    assert "odd" in refused(
        "QuantizeLinear", [x, Const(np.float32(1)), Const(np.array(0, ml_dtypes.int4))], [DType.INT4]
    )
    scale, zero = Const(np.ones((2, 2, 4, 4), np.float32)), Const(np.zeros((2, 2, 4, 4), np.int8))
    assert "axis" in refused("QuantizeLinear", [numbers(2, 8, 4, 4), scale, zero], [I8], axis=1, block_size=4)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_zero_points_become_arithmetic(dtype):
    x, scale, zero = numbers(2, 3, 5) * 10, Const(np.array([0.1, 0.02, 0.5], np.float32)), Const(integers(dtype, 3))
    check("QuantizeLinear", [x, scale, zero], [DType.from_numpy(dtype)], axis=1, tolerance=0)
    check("DequantizeLinear", [integers(dtype, 2, 3, 5), scale, zero], [F], axis=1)


def test_blocks_become_arithmetic():
    x, scale, zero = numbers(3, 5), Const(np.full((3, 3), 0.1, np.float32)), Const(np.full((3, 3), 5, np.int8))
    check("QuantizeLinear", [x, scale, zero], [I8], axis=1, block_size=2, tolerance=0)


def test_quantized_constants_are_made_by_operators():
    table, places = integers(np.int8, 4, 2), np.array([3, 0])
    assert "quantized constant" in refused("Gather", [Const(table), places], [I8])
    lowered = check("Gather", [Const(table), places], [I8], tolerance=0)
    assert ops(lowered) == ["Cast", "Gather"]
    weights = Const(integers(np.int8, 4, 6))
    assert refused("DequantizeLinear", [weights, Const(np.float32(0.1))], [F]) == ""


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_constant_outputs_are_built(dtype):
    check("BitwiseNot", [Const(integers(dtype, 3))], [DType.from_numpy(dtype)], tolerance=0)


def test_biases_in_int32_are_multiplied():
    check("DequantizeLinear", [integers(np.int32, 6), Const(np.float32(0.01))], [F])


def test_dynamic_quantization():
    check("DynamicQuantizeLinear", [numbers(3, 4)], [U8, F, U8])
    check("DynamicQuantizeLinear", [np.zeros((2, 2), np.float32)], [U8, F, U8], want=[np.zeros((2, 2)), 0, 0])


@pytest.mark.parametrize("terms", [3, 300, 5000])
def test_integer_products_are_exact(terms):
    a, b = np.full((2, terms), 255, np.uint8), np.full((terms, 2), -128, np.int8)
    a[1], b[:, 1] = integers(np.uint8, terms), integers(np.int8, terms)
    want = a.astype(np.int64) @ b.astype(np.int64)
    check("MatMulInteger", [a, b], [I32], want=[want], tolerance=0)
    zeros = [np.array([3, 250], np.uint8), np.array([-7, 100], np.int8)]
    shifted = (a.astype(np.int64) - zeros[0][:, None]) @ (b.astype(np.int64) - zeros[1])
    if terms == 3:
        check("MatMulInteger", [a, Const(b), *zeros], [I32], want=[shifted], tolerance=0)


def test_integer_convolutions_pad_with_the_zero_point():
    x, w = integers(np.uint8, 1, 2, 5, 5), integers(np.uint8, 3, 2, 3, 3)
    check("ConvInteger", [x, Const(w), Const(np.uint8(7)), Const(np.uint8(9))], [I32], pads=[1, 1, 1, 1], tolerance=0)


def test_quantized_convolutions_and_products():
    x, w = integers(np.uint8, 1, 2, 5, 5), integers(np.int8, 3, 2, 3, 3)
    scales = [Const(np.float32(0.02)), Const(np.uint8(120))]
    weight = [Const(w), Const(np.array([0.01, 0.02, 0.03], np.float32)), Const(np.zeros(3, np.int8))]
    result = [Const(np.float32(0.5)), Const(np.uint8(100))]
    check(
        "QLinearConv", [x, *scales, *weight, *result, Const(integers(np.int16, 3).astype(np.int32))], [U8], tolerance=0
    )
    a, b = integers(np.int8, 2, 4, 6), integers(np.int8, 6, 3)
    factor = lambda s, z: [Const(np.float32(s)), Const(np.int8(z))]  # noqa: E731
    check("QLinearMatMul", [a, *factor(0.1, 3), b, *factor(0.2, -4), *factor(5.0, 1)], [I8], tolerance=0)


def test_symmetric_products_of_int8_stay_quantized():
    x, w, b = integers(np.int8, 1, 2, 5, 5), integers(np.int8, 3, 2, 3, 3), np.array([1000, -500, 7], np.int32)
    zero = Const(np.int8(0))
    weight = [Const(w), Const(np.array([0.01, 0.02, 0.03], np.float32)), Const(np.zeros(3, np.int8))]
    operands = [x, Const(np.float32(0.02)), zero, *weight, Const(np.float32(0.5)), zero]
    lowered = check("QLinearConv", [*operands, Const(b)], [I8], tolerance=1e-2)
    assert ops(lowered)[-2:] == ["Conv", "QuantizeLinear"]
    weight = [Const(integers(np.int8, 6, 3)), *weight[1:]]
    operands = [integers(np.int8, 2, 6), Const(np.float32(0.02)), zero, *weight, Const(np.float32([0.5])), zero]
    assert ops(check("QLinearMatMul", operands, [I8], tolerance=1e-2))[-2:] == ["MatMul", "QuantizeLinear"]


# --- reductions ------------------------------------------------------------------------------------------------------

REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_axes_may_be_computed(name):
    x = np.abs(numbers(2, 3, 4)) + 0.1
    check(f"Reduce{name}", [x, np.array([-1, 0])], [F], keepdims=REDUCTIONS.index(name) % 2)


def test_axes_may_be_computed_for_open_sizes_and_open_counts():
    x = numbers(2, 3, 4)
    for keep in (0, 1):
        check("ReduceSum", [x, np.array([1])], [F], keepdims=keep, dims={0: ["n", 3, "m"]})
    check("ReduceMax", [x, np.array([1, 2])], [F], dims={1: ["k"]})


def test_reductions_of_booleans_bytes_and_scalars():
    check("ReduceMax", [np.array([[True, False], [False, False]]), Const([1])], [BOOL])
    check("ReduceMin", [np.array([[1, -5], [7, 3]], np.int8), np.array([0])], [I8], engine="reference")
    check("ReduceSumSquare", [np.float32(3)], [F])
    check("ReduceL2", [np.array([3, 4]), Const([0])], [I64])


def test_reductions_of_nothing():
    x = np.zeros((2, 0, 4), np.float32)
    for name, number in (("Sum", 0), ("Prod", 1), ("Max", -np.inf), ("Min", np.inf), ("LogSum", -np.inf)):
        want = np.full((2, 1, 4), number, np.float32)
        check(f"Reduce{name}", [x, np.array([1])], [F], want=[want], engine="reference")


def test_no_axes_reduce_nothing_if_that_is_asked_for():
    x = numbers(2, 3)
    check("ReduceL1", [x, Const([], np.int64)], [F], noop_with_empty_axes=1, want=[np.abs(x)])
    check("ReduceSum", [x, Const([], np.int64)], [F], noop_with_empty_axes=0)


@pytest.mark.parametrize("attrs", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_running_sums_and_products(attrs):
    x = numbers(3, 5)
    check("CumSum", [x, np.int64(-1)], [F], **attrs)
    check("CumProd", [x, np.int64(0)], [F], opset=26, engine="reference", **attrs)
    check(
        "CumProd",
        [integers(np.int8, 5).astype(np.int32), Const(np.int64(0))],
        [I32],
        opset=26,
        engine="reference",
        **attrs,
    )


def test_places_of_extremes_in_a_vector():
    x = np.array([3, 1, 3], np.float32)
    check("ArgMax", [x], [I64], select_last_index=1, keepdims=0)
    check("ArgMin", [x.astype(np.int8)], [I64])


# --- products and transforms -----------------------------------------------------------------------------------------


def test_products_of_vectors_and_of_integers():
    check("MatMul", [numbers(3), numbers(4, 3, 2)], [F])
    for a, b in (((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (5, 3, 4)), ((2, 3), (3,)), ((3,), (3,))):
        check("MatMul", [integers(np.int32, *a), integers(np.int32, *b)], [I32], tolerance=0, engine="reference")
    check("Gemm", [integers(np.int8, 3, 2).astype(np.int64), np.ones((3, 4), np.int64), np.array([5])], [I64], transA=1)


def test_einsum_in_any_spelling():
    check("Einsum", [numbers(2, 3), numbers(3, 4)], [F], equation="iJ,Jk->ik")
    check("Einsum", [numbers(5, 2, 3), numbers(3, 4)], [F], equation="...ij,...jk->...ik")
    a, b = integers(np.int32, 2, 3), integers(np.int32, 3, 4)
    check("Einsum", [a, b], [I32], equation="ij,jk->ki", tolerance=0, engine="reference")
    check("Einsum", [np.arange(6).reshape(2, 3)], [I64], equation="ij->j")
    x = numbers(2, 3, dtype=ml_dtypes.bfloat16)
    check("Einsum", [x], [DType.BFLOAT16], equation="ij->ji", opset=28, engine="reference")


@pytest.mark.parametrize("length", [None, 6, 10])
def test_fourier_transforms(length):
    x, c = numbers(2, 8, 3, 1), numbers(2, 8, 3, 2)
    size = [None if length is None else Const(np.int64(length)), Const(np.int64(1))]
    check("DFT", [x, *size], [F], onesided=1, tolerance=1e-4, engine="reference")
    check("DFT", [c, *size], [F], tolerance=1e-4, engine="reference")
    check("DFT", [c, *size], [F], inverse=1, tolerance=1e-4, engine="reference")
    spectrum = np.fft.rfft(numbers(2, 8, 3), axis=1)
    c = np.stack([spectrum.real, spectrum.imag], -1).astype(np.float32)
    want = np.fft.irfft(spectrum, n=length, axis=1)[..., None]
    check("DFT", [c, *size], [F], inverse=1, onesided=1, want=[want], tolerance=1e-4, engine="reference")


def test_the_axis_of_a_transform_may_be_computed():
    x = numbers(2, 4, 4, 1)
    for axis in (1, 2):
        check("DFT", [x, None, np.int64(axis)], [(F, (2, 4, 4, 2))], tolerance=1e-4, engine="reference")
    check("DFT", [x, None, np.int64(1)], [(F, (2, 3, 4, 2))], onesided=1, tolerance=1e-4, engine="reference")


def test_transforms_of_frames():
    x, window = numbers(2, 20, 1), np.hanning(8).astype(np.float32)
    check("STFT", [x, np.int64(4), window], [(F, (2, 4, 5, 2))], tolerance=1e-4, engine="reference")
    graph, feed = single("STFT", [x, Const(np.int64(4)), window], [F], dims={0: [2, "n", 1]})
    wanted = backend("reference").run(graph, feed)["y0"]
    got = backend("reference").run(lower(graph, feed), feed)["y0"]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_mel_weights():
    scalars = [np.int32(8), np.int32(32), np.int32(8000), np.float32(125), np.float32(3800)]
    check("MelWeightMatrix", scalars, [(F, (17, 8))], engine="reference")
    check("MelWeightMatrix", [Const(scalars[0]), Const(scalars[1]), *scalars[2:]], [F], engine="reference")


def test_windows_and_identities_of_other_types():
    for name in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        check(
            name, [np.int64(6)], [DType.FLOAT16], output_datatype=int(DType.FLOAT16), tolerance=1e-2, engine="reference"
        )
    check("EyeLike", [numbers(3, 4)], [I32], k=1, dtype=int(I32), dims={0: ["n", "m"]})
    eight = version_of("8.6")
    graph, _ = single("HannWindow", [np.int64(6)], [F])
    assert "no such operator" in refusal(next(iter(graph.nodes)), eight)
    lowered, _, _ = backend("tensorrt:8.6").lower_and_stamp(graph)
    wanted = backend("reference").run(graph, {"x0": np.int64(6)})["y0"]
    np.testing.assert_allclose(backend("reference").run(lowered, {"x0": np.int64(6)})["y0"], wanted, atol=1e-5)
