"""Reductions, cumulative operators, normalizing functions and normalizations on XLA, beyond ONNX's own tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax import export

from planish.ir import DType, TensorType
from planish.ir.errors import PlanishError

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import lowered, type_of

Array = np.ndarray[Any, Any]
INF, NAN = np.inf, np.nan
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(4, 6, 5)).astype("f")
C6 = RANDOM.normal(size=6).astype("f")
C5 = RANDOM.normal(size=5).astype("f")


def run(op: str, x: Any, *constants: Any, **attrs: Any) -> Array:
    """The first result for ``x``, compiled."""
    x = np.asarray(x)
    function = lowered(op, type_of(x), *constants, **attrs)
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(function.params, x)[0])


def gradient(op: str, x: Any, *constants: Any, **attrs: Any) -> Array:
    """The gradient of the first result, weighted with 1, 2, 3 …."""
    x = np.asarray(x)
    function = lowered(op, type_of(x), *constants, **attrs)

    def total(x: Any) -> Any:
        y = function(function.params, x)[0]
        return (y * weights(y.shape)).sum()

    return np.asarray(jax.grad(total)(x))


def weights(shape: Any) -> Array:
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype("f")


def torch_gradient(function: Callable[[Any], Any], x: Array) -> Array:
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = function(value)
    (y * torch.tensor(weights(tuple(y.shape)))).sum().backward()
    assert value.grad is not None
    return value.grad.numpy()


def axes(*values: int) -> Array:
    return np.array(values, np.int64)


# reductions

SUMS = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceProd": np.prod,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceL1": lambda x, a, **k: np.abs(x).sum(a, **k),
    "ReduceL2": lambda x, a, **k: np.sqrt(np.square(x).sum(a, **k)),
    "ReduceSumSquare": lambda x, a, **k: np.square(x).sum(a, **k),
    "ReduceLogSum": lambda x, a, **k: np.log(x.sum(a, **k)),
    "ReduceLogSumExp": lambda x, a, **k: np.log(np.exp(x).sum(a, **k)),
}


@pytest.mark.parametrize("op", SUMS)
def test_reductions_take_negative_axes_no_axes_and_drop_dimensions(op: str) -> None:
    x = np.abs(X) + 0.1
    cases: list[tuple[Any, Any, Any]] = [
        (axes(-1, 0), (2, 0), 1),
        (axes(1), (1,), 0),
        (None, None, 1),
        (axes(), None, 0),
    ]
    for given, used, keep in cases:
        expected = SUMS[op](x.astype(float), used, keepdims=bool(keep))  # type: ignore[operator]
        found = run(op, x, given, keepdims=keep)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_reduction_of_nothing_still_does_the_rest() -> None:
    x = np.array([-2.0, 0.5], "f")
    assert run("ReduceSumSquare", x, noop_with_empty_axes=1).tolist() == [4, 0.25]
    assert run("ReduceL2", x, axes(), noop_with_empty_axes=1).tolist() == [2, 0.5]
    np.testing.assert_allclose(run("ReduceLogSumExp", x, noop_with_empty_axes=1), x)
    assert run("ReduceSum", x, noop_with_empty_axes=1).tolist() == [-2, 0.5]
    assert run("ReduceL1", np.float32(-3)) == 3


def test_reductions_over_empty_sets_give_the_neutral_element() -> None:
    x = np.zeros((2, 0), "f")
    expected = dict(zip(SUMS, [0, NAN, 1, -INF, INF, 0, 0, 0, -INF, -INF], strict=True))
    for op, value in expected.items():
        np.testing.assert_array_equal(run(op, x, axes(1), keepdims=0), [value, value])
    assert run("ReduceMax", x.astype(np.int32), axes(1), keepdims=0).tolist() == [-(2**31)] * 2
    assert run("ReduceMin", x.astype(bool), axes(1), keepdims=0).tolist() == [True, True]


def test_an_axis_out_of_range_is_named() -> None:
    function = lowered("ReduceSum", TensorType(DType.FLOAT, None), axes(0))
    with pytest.raises(PlanishError, match="axis 0 of a value with 0 dimensions"):
        function(function.params, np.float32(1))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_long_sums_of_narrow_numbers_are_computed_in_float32(dtype: Any) -> None:
    x = np.full(20000, 2.0, dtype)
    assert run("ReduceSum", x).tolist() == [dtype(40000)]
    assert run("ReduceMean", x).tolist() == [2]
    assert run("ReduceL2", np.full(100, 300, dtype)).tolist() == [3000 if dtype == np.float16 else dtype(3000)]
    assert run("CumSum", x, np.int64(0))[-1] == dtype(40000)


def test_integers_stay_integers_and_means_are_truncated() -> None:
    x = np.array([[-3, -4], [2, 3]], np.int32)
    for op, expected in {"ReduceSum": [-7, 5], "ReduceMean": [-3, 2], "ReduceL2": [5, 3], "ReduceMax": [-3, 3]}.items():
        found = run(op, x, axes(1), keepdims=0)
        assert found.dtype == np.int32
        assert found.tolist() == expected
    assert run("ReduceMax", np.array([[True, False], [False, False]]), axes(1), keepdims=0).tolist() == [True, False]


def test_extremes_keep_nan() -> None:
    np.testing.assert_array_equal(run("ReduceMax", np.array([1, NAN], "f")), [NAN])
    np.testing.assert_array_equal(run("ReduceMin", np.array([1, NAN], "f")), [NAN])


GRADIENTS: dict[str, Callable[[Any], Any]] = {
    "ReduceSum": lambda x: x.sum(1),
    "ReduceMean": lambda x: x.mean(1),
    "ReduceProd": lambda x: x.prod(1),
    "ReduceMax": lambda x: x.amax(1),
    "ReduceL1": lambda x: x.abs().sum(1),
    "ReduceL2": lambda x: torch.linalg.vector_norm(x, dim=1),
    "ReduceLogSumExp": lambda x: x.logsumexp(1),
}


@pytest.mark.parametrize("op", GRADIENTS)
def test_gradients_of_reductions_are_those_of_torch(op: str) -> None:
    x = np.array([[1.5, -2, 0.5], [0, 3, 3], [0, 0, 0]], "f")
    found = gradient(op, x, axes(1), keepdims=0)
    np.testing.assert_allclose(found, torch_gradient(GRADIENTS[op], x), rtol=1e-5, atol=1e-6)


# positions


def test_positions_of_extremes_are_first_or_last_ones() -> None:
    x = np.array([[2, 7, 7], [5, 1, 1]], np.int8)
    assert run("ArgMax", x, axis=1).tolist() == [[1], [0]]
    assert run("ArgMax", x, axis=-1, select_last_index=1, keepdims=0).tolist() == [2, 0]
    assert run("ArgMin", x, axis=-1, select_last_index=1, keepdims=0).tolist() == [0, 2]
    assert run("ArgMin", x, keepdims=0).tolist() == [0, 1, 1]
    assert run("ArgMax", x).dtype == np.int64
    assert run("ArgMax", np.array([1, NAN, 3], "f"), keepdims=0) == 1
    assert run("Hardmax", x.astype("f"), axis=1).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert run("Hardmax", x.astype("f"), axis=0).tolist() == [[0, 1, 1], [1, 0, 0]]


# cumulative


@pytest.mark.parametrize(
    ("attrs", "sums", "products"),
    [
        ({}, [1, 3, 6], [1, 2, 6]),
        ({"exclusive": 1}, [0, 1, 3], [1, 1, 2]),
        ({"reverse": 1}, [6, 5, 3], [6, 6, 3]),
        ({"exclusive": 1, "reverse": 1}, [5, 3, 0], [6, 3, 1]),
    ],
)
def test_cumulative_operators_go_both_ways_with_and_without_the_element(
    attrs: dict[str, int], sums: list[int], products: list[int]
) -> None:
    x = np.array([[1, 2, 3]], np.int32)
    assert run("CumSum", x, np.int32(-1), **attrs).tolist() == [sums]
    assert run("CumProd", x, np.int64(1), **attrs).tolist() == [products]
    assert run("CumSum", x, np.int32(0), exclusive=1).tolist() == [[0, 0, 0]]
    assert run("CumSum", np.zeros((2, 0), "f"), np.int64(1), **attrs).shape == (2, 0)


def test_cumulative_operators_have_gradients() -> None:
    x = np.array([1.5, -2, 0.5], "f")
    assert gradient("CumSum", x, np.int64(0), exclusive=1).tolist() == [5, 3, 0]
    expected = torch_gradient(lambda x: x.cumprod(0), x)
    np.testing.assert_allclose(gradient("CumProd", x, np.int64(0)), expected, rtol=1e-6)


# normalizing functions


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_and_its_logarithm_along_any_axis(axis: int) -> None:
    x = X * 30
    expected = torch.tensor(x).double().log_softmax(axis)
    np.testing.assert_allclose(run("LogSoftmax", x, axis=axis), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run("Softmax", x, axis=axis), expected.exp(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        gradient("Softmax", X, axis=axis), torch_gradient(lambda x: x.softmax(axis), X), rtol=1e-4, atol=1e-4
    )


def test_softmax_leaves_out_what_is_minus_infinity() -> None:
    assert run("Softmax", np.array([[0, -INF, 0]], "f")).tolist() == [[0.5, 0, 0.5]]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_softmax_of_narrow_numbers_is_exact_to_their_last_bits(dtype: Any) -> None:
    x = RANDOM.normal(size=(3, 50)).astype(dtype)
    exact = torch.tensor(x.astype(float)).softmax(-1)
    found = run("Softmax", x)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.astype(float), exact, rtol=1.6 * float(ml_dtypes.finfo(dtype).eps))
    even = run("Softmax", np.zeros((1, 70000), np.float16))
    np.testing.assert_allclose(even.astype(float), 1 / 70000, rtol=1e-2)


def test_zero_vectors_stay_zero_and_have_a_gradient() -> None:
    x = np.array([[3, 4], [0, 0]], "f")
    np.testing.assert_allclose(run("LpNormalization", x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(run("LpNormalization", x, p=1, axis=0), [[1, 1], [0, 0]], rtol=1e-6)
    assert np.isfinite(gradient("LpNormalization", x)).all()
    expected = torch_gradient(lambda x: torch.nn.functional.normalize(x, dim=1), x[:1])
    np.testing.assert_allclose(gradient("LpNormalization", x[:1]), expected, rtol=1e-5)


# normalizations


def normalizers() -> dict[str, tuple[str, tuple[Array, ...], dict[str, Any], Callable[[Any], Any]]]:
    """By name: operator, constants, attributes, and the same in torch."""
    F = torch.nn.functional
    c5, c6 = torch.tensor(C5).double(), torch.tensor(C6).double()
    mean, variance = C6[::-1].copy(), np.abs(C6) + 0.1

    def batch(training: bool) -> Callable[[Any], Any]:
        return lambda x: F.batch_norm(x, torch.tensor(mean).double(), torch.tensor(variance).double(), c6, c6, training)

    return {
        "batch": ("BatchNormalization", (C6, C6, mean, variance), {}, batch(False)),
        "batch in training": (
            "BatchNormalization",
            (C6, C6, mean, variance),
            {"training_mode": 1, "results": 3},
            batch(True),
        ),
        "instance": ("InstanceNormalization", (C6, C6), {}, lambda x: F.instance_norm(x, weight=c6, bias=c6)),
        "group": ("GroupNormalization", (C6, C6), {"num_groups": 2}, lambda x: F.group_norm(x, 2, c6, c6)),
        "layer": ("LayerNormalization", (C5, C5), {}, lambda x: F.layer_norm(x, [5], c5, c5)),
        "layer over two": (
            "LayerNormalization",
            (X[0],),
            {"axis": 1},
            lambda x: F.layer_norm(x, [6, 5], torch.tensor(X[0]).double()),
        ),
        "rms": ("RMSNormalization", (C5,), {}, lambda x: F.rms_norm(x, [5], c5, eps=1e-5)),
        "lrn": ("LRN", (), {"size": 3, "alpha": 0.3}, lambda x: F.local_response_norm(x, 3, alpha=0.3)),
        "mean and variance": (
            "MeanVarianceNormalization",
            (),
            {"axes": [0, 2]},
            lambda x: (x - x.mean((0, 2), keepdim=True)) / x.std((0, 2), correction=0, keepdim=True),
        ),
    }


NORMALIZERS = normalizers()


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizations_and_their_gradients_are_those_of_torch(name: str) -> None:
    op, constants, attrs, function = NORMALIZERS[name]
    expected = function(torch.tensor(X).double())
    np.testing.assert_allclose(run(op, X, *constants, **attrs), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient(op, X, *constants, **attrs), torch_gradient(function, X), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_normalizations_of_narrow_numbers_are_computed_in_float32(name: str, dtype: Any) -> None:
    op, constants, attrs, function = NORMALIZERS[name]
    x = (X * 100 + 1000).astype(dtype)  # its squares exceed float16, its variance drowns in them
    narrow = [c.astype(dtype) for c in constants]
    found = run(op, x, *narrow, **attrs)
    assert found.dtype == x.dtype
    if name != "lrn":
        exact = function(torch.tensor(x.astype(float)))
        scale = float(exact.abs().max())
        eps = float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(found.astype(float), exact, rtol=3 * eps, atol=3 * eps * scale)


def test_statistics_of_training_are_averaged_with_the_running_ones() -> None:
    mean, variance = C6, np.abs(C6)
    function = lowered(
        "BatchNormalization", type_of(X), C6, C6, mean, variance, training_mode=1, momentum=0.7, results=3
    )
    _, new_mean, new_variance = function(function.params, X)
    np.testing.assert_allclose(new_mean, 0.7 * mean + 0.3 * X.mean((0, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_variance, 0.7 * variance + 0.3 * X.var((0, 2)), rtol=1e-5)


def test_a_batch_without_channels_has_one() -> None:
    one = np.ones(1, "f")
    np.testing.assert_allclose(
        run("BatchNormalization", np.array([1, 5], "f"), one, one, one, 4 * one), [1, 3], rtol=1e-4
    )


def test_layer_normalization_gives_mean_and_deviation_in_the_stash_type() -> None:
    x = X.astype(np.float16)
    function = lowered("LayerNormalization", type_of(x), C5.astype(np.float16), results=3)
    y, mean, inverse = function(function.params, x)
    assert (y.dtype, mean.dtype, inverse.dtype) == (np.float16, np.float32, np.float32)
    np.testing.assert_allclose(mean, x.astype("f").mean(-1, keepdims=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(x.astype("f").var(-1, keepdims=True) + 1e-5), rtol=1e-4)


def test_double_precision_is_not_lost_to_the_stash_type() -> None:
    x = X.astype(float)
    found = run("LayerNormalization", x, np.ones(5))
    exact = torch.nn.functional.layer_norm(torch.tensor(x), [5])
    np.testing.assert_allclose(found, exact, rtol=1e-11, atol=1e-12)


def test_a_constant_input_has_finite_gradients() -> None:
    x = np.full((2, 6, 5), 3, "f")
    for name in ("group", "layer", "rms", "mean and variance"):
        op, constants, attrs, _ = NORMALIZERS[name]
        assert np.isfinite(gradient(op, x, *constants, **attrs)).all()
    assert run("MeanVarianceNormalization", x.astype(np.float16), axes=[0, 2]).tolist() == np.zeros_like(x).tolist()


SYMBOLIC: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("ReduceMean", (axes(0),), {}),
    ("ReduceMax", (axes(0, 1),), {}),
    ("ArgMax", (), {"axis": 0, "select_last_index": 1}),
    ("CumSum", (np.int64(0),), {"exclusive": 1, "reverse": 1}),
    ("Softmax", (), {"axis": 0}),
    ("Hardmax", (), {"axis": 0}),
    ("LpNormalization", (), {"axis": 0}),
    *((op, constants, attrs) for op, constants, attrs, _ in NORMALIZERS.values()),
]


@pytest.mark.parametrize(("op", "constants", "attrs"), SYMBOLIC)
def test_a_symbolic_batch_is_exported(op: str, constants: Any, attrs: Any) -> None:
    function = lowered(op, type_of(X), *constants, **attrs)
    batch = jax.ShapeDtypeStruct(export.symbolic_shape("b, 6, 5"), jnp.float32)
    exported = export.export(jax.jit(function))(function.params, batch)
    for x in (X, X[:1]):
        for found, expected in zip(exported.call(function.params, x), function(function.params, x), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_hardmax_of_nothing_is_nothing() -> None:
    assert run("Hardmax", np.zeros((2, 0), np.float32)).shape == (2, 0)
