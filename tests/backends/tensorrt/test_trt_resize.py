"""Images resized, padded and regrouped: what stays one layer, and what is gathered or multiplied with weights."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.base import LoweringError
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType

from .trt_check import check as check_text
from .trt_single import Const, check, lower, single

F = DType.FLOAT
rng = np.random.default_rng(0)
OPEN = {0: ["N", 3, "H", "W"]}


def numbers(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def sizes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def ops(lowered) -> list[str]:
    return [n.op for n in lowered.nodes if any(r.is_used for r in n.results)]


def refused(op: str, operands: list, version: str = "rtx", **more: object) -> str:
    graph, _ = single(op, operands, [F], **more)
    return refusal(next(iter(graph.nodes)), version_of(version))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("dims", [{}, OPEN])
def test_what_tensorrt_resizes_stays_as_it_is(mode: str, dims: dict):
    x, scales = numbers(1, 3, 4, 5), Const(floats(1, 1, 2, 3))
    for coordinates in ("half_pixel", "align_corners"):
        attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "dims": dims}
        assert ops(check("Resize", [x, None, scales], [F], tolerance=1e-4, **attrs)) == ["Resize"]


def test_axes_are_all_axes():
    x = numbers(2, 3, 4, 5)
    lowered = check("Resize", [x, None, Const(floats(2, 3))], [F], axes=[2, 3], dims=OPEN)
    (node,) = lowered.nodes
    assert (node.op, node.given(2).const.numpy().tolist()) == ("Resize", [1, 1, 2, 3])
    lowered = check("Resize", [x, None, None, Const(sizes(8, 7))], [F], axes=[2, 3], mode="linear", dims=OPEN)
    assert ops(lowered) == ["Shape", "Concat", "Resize"]


def test_a_size_of_another_tensor_decides():
    """As where the halves of a U-Net meet."""
    text = """
        g (float[N,2,H,W] x, float[N,2,P,Q] y) => (float[N,2,P,Q] z) {
          a = Shape <end = 2> (x)
          b = Shape <start = 2> (y)
          s = Concat <axis = 0> (a, b)
          z = Resize <mode = "linear"> (x, "", "", s) }"""
    found = check_text(text, x=numbers(2, 2, 3, 4), y=numbers(2, 2, 7, 9), tolerance=1e-4)
    assert found == {"Shape": 1, "Resize": 1}
    other = text.replace('"linear"', '"linear", coordinate_transformation_mode = "half_pixel_symmetric"')
    assert check_text(other, x=numbers(2, 2, 3, 4), y=numbers(2, 2, 7, 9), tolerance=1e-4)["Resize"] == 0


@pytest.mark.parametrize("outside", [0, 1])
def test_smoothed_images_are_weighted_sums(outside: int):
    x, attrs = numbers(2, 3, 8, 9), {"antialias": 1, "tolerance": 1e-4}
    cubic = {"mode": "cubic", "exclude_outside": outside, **attrs}
    for given in ([None, Const(floats(1, 1, 0.5, 0.7))], [None, None, Const(sizes(2, 3, 3, 4))]):
        assert ops(check("Resize", [x, *given], [F], **cubic)) == ["MatMul", "MatMul"]
        assert ops(check("Resize", [x, *given], [F], mode="linear", **attrs)) == ["MatMul", "MatMul"]
    check("Resize", [x, None, Const(floats(1, 1, 0.5, 1))], [F], mode="linear", dims=OPEN, **attrs)


def test_known_dimensions_are_products_with_matrices():
    x = numbers(2, 3, 8, 9)
    attrs = {"mode": "cubic", "antialias": 1, "axes": [2, 3], "dims": {0: ["N", 3, 8, 9]}}
    assert ops(check("Resize", [x, None, None, Const(sizes(4, 6))], [F], tolerance=1e-4, **attrs)) == ["MatMul"] * 2


def test_smoothing_needs_a_scale_in_advance():
    text = """
        g (float[N,2,H,W] x, float[N,2,P,Q] y) => (float[N,2,P,Q] z) {
          s = Shape (y)
          z = Resize <mode = "linear", antialias = 1> (x, "", "", s) }"""
    with pytest.raises(LoweringError, match="antialias=1"):
        check_text(text, x=numbers(1, 2, 4, 4), y=numbers(1, 2, 2, 2))


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_elements_are_gathered(rounding: str):
    x = rng.integers(-9, 9, (1, 3, 5, 6)).astype(np.int32)  # a type that TensorRT does not resize
    operands = [x, None, Const(floats(1, 1, 1.5, 3))]
    attrs = {"mode": "nearest", "nearest_mode": rounding, "coordinate_transformation_mode": "half_pixel_symmetric"}
    check("Resize", operands, [DType.INT32], dims=OPEN, **attrs)
    for coordinates in ("half_pixel", "asymmetric", "align_corners"):
        lowered = check("Resize", operands, [DType.INT32], **{**attrs, "coordinate_transformation_mode": coordinates})
        assert set(ops(lowered)) == {"Gather"}


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_the_aspect_ratio_may_be_kept(policy: str, mode: str):
    x = numbers(2, 3, 4, 6)
    attrs = {"mode": mode, "keep_aspect_ratio_policy": policy, "axes": [2, 3]}
    for dims in ({}, OPEN):
        check("Resize", [x, None, None, Const(sizes(7, 8))], [F], tolerance=1e-4, dims=dims, **attrs)


@pytest.mark.parametrize("known", [True, False])
def test_a_region_may_be_cut_out(known: bool):
    x, wrap = numbers(1, 2, 6, 7), Const if known else lambda v: v
    roi = wrap(floats(0, 0, -0.2, 0.1, 1, 1, 0.8, 1.3))
    attrs = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear", "extrapolation_value": 5.0}
    check("Resize", [x, roi, None, wrap(sizes(1, 2, 4, 5))], [(F, (1, 2, 4, 5))], tolerance=1e-4, **attrs)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_scales_may_be_given_at_run_time_where_sizes_are_known(mode: str):
    x, scales = numbers(1, 1, 5, 6), floats(1, 1, 1.5, 0.5)
    lowered = check("Resize", [x, None, scales], [(F, (1, 1, 7, 3))], mode=mode, tolerance=1e-4)
    assert "Resize" not in ops(lowered)
    if mode == "linear":
        check("Resize", [x, None, scales], [(F, (1, 1, 7, 3))], mode=mode, antialias=1, tolerance=1e-4)
    with pytest.raises(LoweringError, match="a size depends on"):
        lower(*single("Resize", [x, None, scales], [F], mode=mode))


def test_many_dimensions_are_interpolated_one_by_one():
    x = numbers(2, 3, 4, 5)
    assert "last 3 dimensions" in refused("Resize", [x, None, Const(floats(2, 2, 1.5, 2))], mode="linear")
    assert "last 2 dimensions" in refused("Resize", [x, None, Const(floats(1, 2, 1.5, 2))], mode="cubic")
    assert not refused("Resize", [x, None, Const(floats(2, 2, 1.5, 2))], mode="nearest")
    check("Resize", [x, None, Const(floats(2, 2, 1.5, 2))], [F], mode="linear", tolerance=1e-4)
    check("Resize", [x, None, None, Const(sizes(2, 5, 6, 7))], [F], mode="cubic", tolerance=1e-4)


def test_half_precision_is_interpolated_in_float32():
    x = numbers(1, 2, 8, 9, dtype=np.float16)
    attrs = {"mode": "linear", "antialias": 1}
    lowered = check("Resize", [x, None, Const(floats(1, 1, 0.5, 0.5))], [DType.FLOAT16], tolerance=1e-3, **attrs)
    assert ops(lowered) == ["Cast", "MatMul", "MatMul", "Cast"]


# --- padded, and moved -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("known", [True, False])
def test_padding_stays_as_it_is(mode: str, known: bool):
    x, pads = numbers(1, 2, 4, 5), sizes(0, 0, 1, 2, 0, 0, 2, 1)
    want = np.pad(x, [(0, 0), (0, 0), (1, 2), (2, 1)], mode)
    for dims in ({}, {0: ["N", 2, "H", "W"]}):
        assert ops(check("Pad", [x, Const(pads) if known else pads], [F], want=[want], mode=mode, dims=dims)) == ["Pad"]


def test_older_versions_pad_all_axes():
    operands = [numbers(2, 3, 4), Const(sizes(1, 0, 0, 2)), None, Const(sizes(-1, 0))]
    assert not refused("Pad", operands)
    assert "all axes" in refused("Pad", operands, "8.6")
    assert "constant, edge and reflect" in refused("Pad", operands[:2], "8.6", mode="wrap")
    graph, feed = single("Pad", operands, [F])
    (node,) = lower(graph, feed, "8.6").nodes
    assert node.given(1).const.numpy().tolist() == [0, 0, 1, 2, 0, 0]


@pytest.mark.parametrize("known", [True, False])
def test_the_middle_is_cut_out_or_padded(known: bool):
    x = numbers(5, 6, 4)
    for shape in ([2, 3, 4], [8, 9, 5], [2, 9, 4]):
        operand = Const(sizes(*shape)) if known else sizes(*shape)
        assert ops(check("CenterCropPad", [x, operand], [(F, tuple(shape))]))[-1] == "Pad"
    operand = Const(sizes(3, 7)) if known else sizes(3, 7)
    check("CenterCropPad", [x, operand], [F], axes=[-1, 0], dims={0: ["A", "B", "C"]})


@pytest.mark.parametrize("op", ["DepthToSpace", "SpaceToDepth"])
def test_blocks_are_moved(op: str):
    x = numbers(2, 8, 4, 6)
    lowered = check(op, [x], [F], blocksize=2, dims={0: ["N", 8, "H", "W"]})
    assert ops(lowered) == [op]
    opset = 28 if op == "SpaceToDepth" else 13
    check(op, [x], [F], blocksize=2, mode="CRD", opset=opset, dims={0: ["N", 8, "H", "W"]})
    assert "computes in" in refused(op, [x > 0], blocksize=2)
