"""Elementwise operators, bits, random numbers, losses: what TensorRT lacks is arithmetic, and exact."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from planish.backends.base import LoweringError, backend
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType

from .trt_single import Const, check, lower, single

RTX = version_of("rtx")
rng = np.random.default_rng(0)
F, I32, I64, BOOL = DType.FLOAT, DType.INT32, DType.INT64, DType.BOOL


def numbers(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def refused(op: str, operands: list, results: list, **more: object) -> str:
    graph, _ = single(op, operands, results, **more)
    return refusal(next(iter(graph.nodes)), RTX)


# --- elementwise -----------------------------------------------------------------------------------------------------


def test_what_tensorrt_computes_stays_as_it_is():
    lowered = check("Add", [numbers(2, 3), numbers(3)], [F])
    assert [n.op for n in lowered.nodes] == ["Add"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_celu_and_mish_of_halves_are_spelled_out(dtype):
    out = DType.from_numpy(dtype)
    check("Celu", [numbers(4, dtype=dtype)], [out], alpha=2.0, tolerance=1e-2, opset=28, engine="reference")
    check("Mish", [numbers(4, dtype=dtype)], [out], tolerance=1e-2, engine="reference")


def test_int8_is_computed_in_int32_and_wraps_around():
    x, y = np.array([100, -128, 7], np.int8), np.array([100, -1, -7], np.int8)
    for op in ("Add", "Mul", "Max"):
        check(op, [x, y], [DType.INT8], engine="reference")
    check("Less", [x, y], [BOOL])
    check("Relu", [np.array([-3, 3], np.int32)], [I32])


def test_mod_of_floating_point_numbers_has_the_sign_of_the_divisor():
    x, y = np.array([-4.3, 7.2, 5.0, -6.0], np.float32), np.array([2.1, -3.4, 8.0, 3.0], np.float32)
    check("Mod", [x, y], [F], want=[np.mod(x, y)], opset=28, engine="reference")
    assert "fmod=0" in refused("Mod", [x, y], [F], opset=28)
    assert refused("Mod", [x, y], [F], fmod=1) == ""


def test_clip_takes_infinite_bounds():
    x = numbers(2, 3)
    assert "finite" in refused("Clip", [x, Const(np.float32(-np.inf))], [F])
    check("Clip", [x, Const(np.float32(-np.inf)), Const(np.float32(0.5))], [F])


def test_infinity_is_found_by_comparison_where_that_is_all_there_is():
    x = np.array([np.inf, -np.inf, 1, np.nan], np.float32)
    for attrs in ({}, {"detect_negative": 0}, {"detect_positive": 0, "detect_negative": 0}):
        graph, feed = single("IsInf", [x], [BOOL], **attrs)
        lowered = backend("tensorrt:8.5").lower(graph)
        assert "IsInf" not in [n.op for n in lowered.nodes]
        wanted = backend("reference").run(graph, feed)["y0"]
        np.testing.assert_array_equal(backend("onnxruntime").run(lowered, feed)["y0"], wanted)


def test_shrink_and_prelu_of_integers():
    check("PRelu", [np.array([-3, 3]), np.array([2])], [I64])
    check(
        "Shrink",
        [numbers(5).astype(ml_dtypes.bfloat16)],
        [DType.BFLOAT16],
        bias=0.5,
        engine="reference",
        tolerance=1e-2,
    )


@pytest.mark.parametrize("shape", [(2, 2), (3, 4, 4), (1, 1)])
def test_determinants_by_elimination(shape):
    x = numbers(*shape)
    check("Det", [x], [F], tolerance=1e-4)


def test_the_determinant_of_a_singular_matrix_is_zero():
    check("Det", [np.array([[0, 1, 2], [0, 3, 4], [0, 5, 6]], np.float32)], [F], want=[np.float32(0)])
    check("Det", [np.array([[0, 2], [3, 0]], np.float32)], [F], want=[np.float32(-6)])


def test_dropout_in_training_mode():
    x = np.ones((64, 64), np.float32)
    graph, feed = single("Dropout", [x, Const(np.float32(0.25)), Const(True)], [F, BOOL])
    y, mask = backend("onnxruntime").run(lower(graph, feed), feed).values()
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)
    assert 0.7 < mask.mean() < 0.8
    check("Dropout", [x, np.float32(0.5), np.array(False)], [F, BOOL], want=[x, x != 0])


# --- bits ------------------------------------------------------------------------------------------------------------


BITWISE = [
    *(("BitwiseAnd", np.int8), ("BitwiseOr", np.uint8), ("BitwiseXor", np.int32)),
    *(("BitwiseAnd", np.int64), ("BitwiseOr", np.uint32), ("BitwiseXor", np.int64)),
]


@pytest.mark.parametrize(("op", "dtype"), BITWISE)
def test_bitwise_operators_are_exact(op, dtype):
    limits = np.iinfo(dtype)
    x = np.append(rng.integers(limits.min, limits.max, 6, dtype=dtype, endpoint=True), [limits.min, limits.max]).astype(
        dtype
    )
    y = np.append(rng.integers(limits.min, limits.max, 7, dtype=dtype, endpoint=True), [limits.max]).astype(dtype)
    name = {"BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor}[op]
    check(op, [x, y[:, None]], [DType.from_numpy(dtype)], want=[name(x, y[:, None])], tolerance=0)


def test_a_mask_of_low_bits_is_a_remainder():
    x = np.array([-5, 1000, 255, 256], np.int32)
    lowered = check("BitwiseAnd", [x, Const(255, np.int32)], [I32], want=[x & 255], tolerance=0)
    assert "ReduceSum" not in [n.op for n in lowered.nodes]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts_are_exact_and_may_shift_everything_out(dtype, direction):
    limits = np.iinfo(dtype)
    x = np.array([limits.min, limits.max, 1, 77, limits.max - 5], dtype)
    for by in (np.array([0, 1, 3, 2, 7], dtype), np.array([limits.bits, limits.bits - 1, 99, 5, 1], dtype)):
        if dtype == np.int32:
            check("BitShift", [x, Const(by)], [I32], direction=direction, tolerance=0, opset=28)
        else:
            check("BitShift", [x, by], [DType.from_numpy(dtype)], direction=direction, tolerance=0, opset=28)


def test_bits_of_floating_point_numbers():
    x = np.array([0, -0.0, 1, -2.5, 3.75, np.inf, -np.inf, 1e-38, 3.4e38, 1.9999999], np.float32)
    check("BitCast", [x], [I32], want=[x.view(np.int32)], to=int(I32), opset=26, tolerance=0, engine="reference")
    y = np.append(x.view(np.int32), np.array([0x7FC00000], np.int32))
    check("BitCast", [y], [F], want=[y.view(np.float32)], to=int(F), opset=26, tolerance=0, engine="reference")


# --- losses and random numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "weighted"), [("none", True), ("sum", False), ("mean", True), ("mean", False)])
def test_losses(reduction, weighted):
    x, labels = numbers(3, 5, 2), np.array([[0, 4], [9, 2], [1, 1]])
    weight = [Const(rng.random(5).astype(np.float32))] if weighted else []
    attrs = {"reduction": reduction, "ignore_index": 9}
    check("NegativeLogLikelihoodLoss", [x, labels, *weight], [F], **attrs)
    check("SoftmaxCrossEntropyLoss", [x, labels, *weight], [F, F], **attrs)


def test_a_mean_loss_without_weights_is_a_mean():
    x, labels = numbers(3, 5), np.array([0, 4, 2])
    check("SoftmaxCrossEntropyLoss", [x, labels], [F])


def test_random_numbers_have_the_distribution_that_is_asked_for():
    def drawn(op: str, operands: list, kind: DType, **attrs: object) -> np.ndarray:
        graph, feed = single(op, operands, [kind], **attrs)
        return next(iter(backend("onnxruntime").run(lower(graph, feed), feed).values()))

    chance = np.array([0.1, 0.9], np.float32)[:, None] * np.ones(4000, np.float32)
    np.testing.assert_allclose(drawn("Bernoulli", [chance], F).mean(1), [0.1, 0.9], atol=0.03)
    logits = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))
    counts = np.bincount(drawn("Multinomial", [logits], I32, sample_size=4000)[0], minlength=3)
    np.testing.assert_allclose(counts / 4000, [0.2, 0.5, 0.3], atol=0.04)
    assert drawn("RandomNormal", [], DType.BFLOAT16, shape=[2, 3], dtype=int(DType.BFLOAT16)).shape == (2, 3)
    assert drawn("RandomUniformLike", [np.float32(1)], F).shape == ()


# --- optimizers and classical models ---------------------------------------------------------------------------------


def test_a_step_of_adam():
    x, g, v, h = (numbers(4) for _ in range(4))
    h = np.abs(h)
    rate, time = np.float32(0.1), np.int64(3)
    attrs = {"alpha": 0.9, "beta": 0.99, "epsilon": 1e-6, "norm_coefficient": 0.01, "norm_coefficient_post": 0.1}
    grad = 0.01 * x + g
    v2, h2 = 0.9 * v + 0.1 * grad, 0.99 * h + 0.01 * grad**2
    r = 0.1 * np.sqrt(1 - 0.99**3) / (1 - 0.9**3)
    want = [(1 - 0.1) * (x - r * v2 / (np.sqrt(h2) + 1e-6)), v2, h2]
    operands = [rate, time, x, g, v, h]
    check("Adam", operands, [F, F, F], want=want, domain="ai.onnx.preview.training", **attrs)


def test_classical_models():
    x = numbers(3, 4)
    ml = "ai.onnx.ml"
    check("Binarizer", [x], [F], want=[(x > 0.5).astype(np.float32)], domain=ml, threshold=0.5)
    check("ArrayFeatureExtractor", [x, np.array([2, 0])], [F], want=[x[:, [2, 0]]], domain=ml)
    check("Scaler", [x], [F], want=[(x - 1) * 2], domain=ml, offset=[1.0] * 4, scale=[2.0] * 4)
    coefficients = numbers(2, 4)
    attrs = {"coefficients": coefficients.ravel().tolist(), "targets": 2, "intercepts": [1.0, -1.0]}
    check("LinearRegressor", [x], [F], want=[x @ coefficients.T + [1, -1]], domain=ml, **attrs)
    keys = {"keys_int64s": [3, 7], "values_floats": [0.5, 2.5], "default_float": -1.0}
    check("LabelEncoder", [np.array([7, 3, 5])], [F], want=[np.array([2.5, 0.5, -1])], domain=ml, **keys)


def test_what_has_no_form_is_named():
    graph, feed = single("BitCast", [np.array([1.0])], [I64], to=int(I64), opset=26)
    with pytest.raises(LoweringError, match="BitCast"):
        lower(graph, feed)
