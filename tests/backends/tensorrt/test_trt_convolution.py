"""Convolutions: what stays one layer, what is computed in another way, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from planish.backends.base import LoweringError, backend
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType

from .trt_single import Const, check, lower, single

F = DType.FLOAT
rng = np.random.default_rng(0)


def numbers(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def refused(op: str, operands: list, version: str = "rtx", **more: object) -> str:
    graph, _ = single(op, operands, [F], **more)
    return refusal(next(iter(graph.nodes)), version_of(version))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolution_stays_one(rank: int):
    x, filters = numbers(2, 4, *(7, 6, 5)[:rank]), numbers(6, 2, *(3,) * rank)
    for weights in (Const(filters), filters):
        attrs = {"group": 2, "strides": [2] * rank, "pads": [1] * rank + [0] * rank, "dilations": [1] * rank}
        lowered = check("Conv", [x, weights, Const(numbers(6))], [F], **attrs)
        assert [n.op for n in lowered.nodes] == ["Conv"]


def test_sizes_may_be_open():
    x, filters = numbers(2, 4, 7, 6), Const(numbers(6, 4, 3, 3))
    for padding in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        attrs = {"auto_pad": padding, "strides": [2, 2], "dims": {0: ["N", 4, "H", "W"]}}
        assert len(check("Conv", [x, filters], [F], **attrs)) == 1


def test_negative_padding_cuts_off_before():
    x, filters = numbers(1, 2, 6, 7), numbers(3, 2, 3, 3)
    (want,) = backend("reference").run(*single("Conv", [x[:, :, 1:, :-2], Const(filters)], [F])).values()
    lowered = check("Conv", [x, Const(filters)], [F], pads=[-1, 0, 0, -2], want=[want])
    assert [n.op for n in lowered.nodes] == ["Pad", "Conv"]


def test_what_filters_must_be():
    x = numbers(2, 4, 8, 8)
    open_filters = {"dims": {1: ["O", 4, 3, 3]}}
    assert "filters must be known" in refused("Conv", [x, numbers(3, 4, 3, 3)], **open_filters)
    assert "elements" in refused("Conv", [numbers(1, 1, 400, 400), Const(numbers(1, 1, 330, 330))])
    assert "dimensions" in refused("Conv", [numbers(1, 1, 3, 3, 3, 3), Const(numbers(1, 1, 2, 2, 2, 2))])
    with pytest.raises(LoweringError, match="filters must be known"):
        lower(*single("Conv", [x, numbers(3, 4, 3, 3)], [F], **open_filters))


# --- transposed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attrs",
    [
        {"strides": [2, 3], "pads": [1, 0, 1, 1]},
        {"strides": [2, 2], "output_padding": [1, 1]},
        {"dilations": [2, 1]},
        {"strides": [2, 2], "auto_pad": "VALID"},
    ],
)
def test_a_transposed_convolution_stays_one(attrs: dict):
    lowered = check("ConvTranspose", [numbers(2, 4, 5, 6), Const(numbers(4, 3, 3, 2)), Const(numbers(3))], [F], **attrs)
    assert [n.op for n in lowered.nodes] == ["ConvTranspose"]


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_of_transposed_convolutions_is_written_out(padding: str):
    operands = [numbers(2, 4, 5, 6), Const(numbers(4, 3, 4, 3))]
    lowered = check("ConvTranspose", operands, [F], strides=[2, 2], auto_pad=padding, dims={0: ["N", 4, "H", "W"]})
    (node,) = lowered.nodes
    assert node.attrs["pads"] == ((1, 0, 1, 1) if padding == "SAME_UPPER" else (1, 1, 1, 0))


def test_the_size_of_a_transposed_result_may_be_stated():
    x, filters, bias = numbers(1, 2, 4, 4), numbers(2, 3, 3, 3), numbers(3)
    shorter = {"strides": [2, 2], "output_shape": [8, 9]}
    want = list(backend("onnxruntime").run(*single("ConvTranspose", [x, Const(filters)], [F], **shorter)).values())
    lowered = check("ConvTranspose", [x, Const(filters)], [F], want=want, **shorter)
    assert next(iter(lowered.nodes)).attrs["pads"] == (1, 0, 0, 0)
    plain, feed = single("ConvTranspose", [x, Const(filters), Const(bias)], [F], strides=[2, 2])
    (want,) = backend("onnxruntime").run(plain, feed).values()
    want = np.concatenate([want, np.broadcast_to(bias[:, None, None], (1, 3, 2, 9))], axis=2)  # what is more is bias
    check("ConvTranspose", [x, Const(filters), Const(bias)], [F], strides=[2, 2], output_shape=[11, 9], want=[want])


@pytest.mark.parametrize("constant", [True, False])
def test_strides_and_dilations_together_dilate_the_filters(constant: bool):
    x, filters = numbers(2, 4, 5, 6), numbers(4, 3, 3, 2)
    weights = Const(filters) if constant else filters
    lowered = check("ConvTranspose", [x, weights], [F], strides=[2, 1], dilations=[2, 3], pads=[1, 0, 1, 0])
    (node,) = (n for n in lowered.nodes if n.op == "ConvTranspose")
    assert "dilations" not in node.attrs
    assert node.given(1).shape == (4, 3, 5, 4)


def test_bfloat16_is_transposed_in_float32():
    operands = [numbers(1, 2, 4, 4, dtype=ml_dtypes.bfloat16), Const(numbers(2, 2, 2, 2, dtype=ml_dtypes.bfloat16))]
    lowered = check("ConvTranspose", operands, [DType.BFLOAT16], engine="reference", tolerance=2e-2)
    assert "ConvTranspose" in {n.op for n in lowered.nodes}
    assert refused("ConvTranspose", operands)


def test_what_transposed_filters_must_be():
    x, filters = numbers(1, 2, 4, 4), numbers(2, 3, 3, 3)
    for dims in ({1: [2, 3, "K", 3]}, {1: [2, "O", 3, 3]}, {0: ["N", "C", 4, 4], 1: ["C", 3, 3, 3]}):
        assert "must be known" in refused("ConvTranspose", [x, filters], dims=dims)
        with pytest.raises(LoweringError, match="ConvTranspose"):
            lower(*single("ConvTranspose", [x, filters], [F], dims=dims, pads=[1, 1, 1, 1]))


# --- sampled, and sums of columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "parts", "open_sizes"), [(1, 1, False), (2, 1, True), (1, 2, True), (2, 2, False)])
def test_deformable_convolutions_sample_and_multiply(group: int, parts: int, open_sizes: bool):
    operands = [
        numbers(2, 4, 7, 6),
        Const(numbers(4, 4 // group, 3, 2)),
        numbers(2, parts * 2 * 6, 3, 6),
        Const(numbers(4)),
        numbers(2, parts * 6, 3, 6),
    ]
    dims = {0: ["N", 4, "H", "W"], 2: ["N", parts * 12, "P", "Q"], 4: ["N", parts * 6, "P", "Q"]}
    attrs = {"group": group, "offset_group": parts, "strides": [2, 1], "pads": [0, 1, 0, 0], "kernel_shape": [3, 2]}
    lowered = check("DeformConv", operands, [F], tolerance=1e-4, dims=dims if open_sizes else {}, **attrs)
    assert {"GridSample", "MatMul"} <= {n.op for n in lowered.nodes}


def test_tensorrt_has_a_plugin_for_deformable_convolutions():
    operands = [numbers(1, 2, 4, 4), Const(numbers(2, 2, 1, 1)), numbers(1, 2, 4, 4)]
    assert refused("DeformConv", operands, "11") == ""
    assert "no such operator" in refused("DeformConv", operands)
    assert "both sides" in refused("DeformConv", operands, "11", pads=[0, 0, 1, 0])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("image", "block", "attrs"),
    [
        ([5, 5], [1, 5], {}),
        ([6, 7], [2, 3], {"strides": [2, 1], "pads": [0, 1, 1, 0]}),
        ([6, 7], [2, 2], {"dilations": [2, 3]}),
        ([7, 8], [2, 2], {"dilations": [2, 1], "strides": [1, 2]}),
        ([3, 4, 5], [1, 2, 2], {}),
    ],
)
def test_columns_are_put_into_images(image: list, block: list, attrs: dict, known: bool):
    rank = len(image)
    strides, dilations = (attrs.get(n, [1] * rank) for n in ("strides", "dilations"))
    pads = attrs.get("pads", [0] * 2 * rank)
    count = 1
    for i, (n, k) in enumerate(zip(image, block, strict=True)):
        count *= (n + pads[i] + pads[i + rank] - (k - 1) * dilations[i] - 1) // strides[i] + 1
    wrap = Const if known else lambda v: v
    operands = [numbers(2, 3 * int(np.prod(block)), count), wrap(np.array(image)), wrap(np.array(block))]
    lowered = check("Col2Im", operands, [(F, (2, 3, *image))], **attrs)
    assert ("ConvTranspose" if known else "MatMul") in {n.op for n in lowered.nodes}
