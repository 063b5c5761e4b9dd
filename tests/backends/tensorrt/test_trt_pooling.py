"""Pooling: what stays one layer, and windows that TensorRT does not have."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.base import backend
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType

from .trt_single import Const, check, single

F, I64 = DType.FLOAT, DType.INT64
rng = np.random.default_rng(0)
OPEN = {0: ["N", "C", "H", "W"]}


def numbers(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def ops(lowered) -> set[str]:
    return {n.op for n in lowered.nodes}


def refused(op: str, operands: list, results: int = 1, version: str = "rtx", **more: object) -> str:
    graph, _ = single(op, operands, [F, I64][:results], **more)
    return refusal(next(iter(graph.nodes)), version_of(version))


def pooled(op: str, x: np.ndarray, **attrs: object) -> list[np.ndarray]:
    """In ONNX Runtime, which rounds up and dilates as the standard does."""
    return list(backend("onnxruntime").run(*single(op, [x], [F], **attrs)).values())


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("MaxPool", {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [0, 1, 1, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}),
        ("LpPool", {"kernel_shape": [2, 2], "p": 1}),
    ],
)
def test_what_tensorrt_pools_stays_as_it_is(op: str, attrs: dict):
    x = numbers(2, 3, 7, 8)
    want = pooled(op, x, **attrs)
    for dims in ({}, OPEN):
        assert ops(check(op, [x], [F], want=want, dims=dims, **attrs)) == {op}


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dilated_windows_are_slices(op: str, rank: int):
    x, attrs = (
        numbers(2, 3, *(9, 8, 7)[:rank]),
        {"kernel_shape": [3] * rank, "dilations": [2] * rank, "pads": [1] * 2 * rank},
    )
    lowered = check(op, [x], [F], want=pooled(op, x, **attrs), dims={0: ["N", 3, *"HWD"[:rank]]}, **attrs)
    assert "Slice" in ops(lowered)


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("dims", [{}, OPEN])
def test_what_sticks_out_behind_the_padding_is_not_counted(counted: int, dims: dict):
    x, attrs = numbers(1, 2, 8, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    check("AveragePool", [x], [F], want=pooled("AveragePool", x, count_include_pad=counted, **attrs), dims=dims,
          count_include_pad=counted, **attrs)  # fmt: skip


def test_without_padding_there_is_none_to_count():
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    x = numbers(1, 2, 7, 5)
    lowered = check("AveragePool", [x], [F], want=pooled("AveragePool", x, **attrs), dims=OPEN, **attrs)
    (node,) = lowered.nodes
    assert node.attrs["count_include_pad"] == 0


@pytest.mark.parametrize("dims", [{}, OPEN])
def test_a_window_behind_the_elements_is_left_out(dims: dict):
    """TensorRT would give one more."""
    x, attrs = numbers(1, 2, 8, 7), {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    for op in ("MaxPool", "AveragePool"):
        assert "behind the elements" in refused(op, [x], dims=dims, **attrs)
        check(op, [x], [F], want=pooled(op, x, **attrs), dims=dims, **attrs)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("dims", [{}, OPEN])
def test_maxima_have_indices(order: int, dims: dict):
    x = np.round(numbers(2, 3, 7, 6))  # with equal ones, of which the first counts
    attrs = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1], "storage_order": order}
    want = list(backend("onnxruntime").run(*single("MaxPool", [x], [F, I64], **attrs)).values())
    check("MaxPool", [x], [F, I64], want=want, dims=dims, **attrs)


def test_indices_that_nobody_reads_cost_nothing():
    assert "indices" in refused("MaxPool", [numbers(1, 1, 4, 4)], results=2, kernel_shape=[2, 2])


def test_bytes_are_pooled_in_floating_point():
    x = rng.integers(0, 255, (1, 2, 6, 6)).astype(np.uint8)
    want = [x.reshape(1, 2, 3, 2, 3, 2).max((3, 5))]
    check("MaxPool", [x], [DType.UINT8], want=want, kernel_shape=[2, 2], strides=[2, 2])


def test_any_power_is_pooled():
    x = numbers(2, 3, 6, 7)
    for p in (1, 3):
        attrs = {"kernel_shape": [2, 3], "p": p, "pads": [1, 1, 0, 1]}
        check("LpPool", [x], [F], want=pooled("LpPool", x, **attrs), tolerance=1e-4, **attrs)
    one = numbers(2, 3, 6)
    check("LpPool", [one], [F], want=pooled("LpPool", one, kernel_shape=[2]), tolerance=1e-4, kernel_shape=[2])
    for p in (1, 2, 3):
        want = [(np.abs(x) ** p).sum((2, 3), keepdims=True) ** (1 / p)]
        assert ("GlobalLpPool" in ops(check("GlobalLpPool", [x], [F], want=want, p=p, tolerance=1e-4))) is (p == 2)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_all_there_is_is_pooled(op: str):
    for shape in ((2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 2), (2, 3)):
        x, axes = numbers(*shape), tuple(range(2, len(shape)))
        want = x.max(axes, keepdims=True) if op == "GlobalMaxPool" else x.mean(axes, keepdims=True)
        assert ops(check(op, [x], [F], want=[want if axes else x])) == ({op} if axes else {"Identity"})


def test_what_windows_must_be():
    image = numbers(1, 1, 400, 400)
    assert "elements" in refused("MaxPool", [image], kernel_shape=[330, 330])
    assert "no dilation" in refused("AveragePool", [image], kernel_shape=[2, 2], dilations=[2, 2])
    assert "large as the window" in refused("AveragePool", [image], kernel_shape=[2, 2], pads=[2, 0, 0, 0])
    assert not refused("MaxPool", [image], kernel_shape=[2, 2], pads=[2, 0, 0, 0])
    assert "rounds down" in refused("LpPool", [image], version="8.5", kernel_shape=[2, 2], ceil_mode=1)
    assert "int8 in three" in refused("MaxPool", [numbers(1, 1, 4, 4, 4, dtype=np.int8)], kernel_shape=[2, 2, 2])


@pytest.mark.parametrize("dims", [{}, {0: ["N", 2, "H", "W"], 1: ["N", 2, "H", "W"]}])
def test_maxima_are_put_back(dims: dict):
    x, places = numbers(1, 2, 2, 3), rng.permutation(48)[:12].reshape(1, 2, 2, 3)
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2], "dims": dims}
    flat = np.zeros(48, np.float32)
    flat[places.ravel()] = x.ravel()
    want = flat.reshape(1, 2, 4, 6)
    check("MaxUnpool", [x, places], [F], want=[want], **attrs)
    larger = np.pad(want, [(0, 0), (0, 0), (0, 1), (0, 2)])
    check("MaxUnpool", [x, places, Const(np.array([1, 2, 5, 8]))], [F], want=[larger], **attrs)
