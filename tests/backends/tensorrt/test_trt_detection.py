"""Images read at computed positions, regions of images, and boxes chosen among overlapping ones."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.base import LoweringError, backend
from planish.backends.tensorrt.legality import refusal
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType

from .trt_check import check as check_text
from .trt_single import Const, check, lower, single

F, I64 = DType.FLOAT, DType.INT64
rng = np.random.default_rng(0)


def numbers(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def ops(lowered) -> list[str]:
    return [n.op for n in lowered.nodes if any(r.is_used for r in n.results)]


def refused(op: str, operands: list, version: str = "rtx", **more: object) -> str:
    graph, _ = single(op, operands, [F], **more)
    return refusal(next(iter(graph.nodes)), version_of(version))


def in_onnxruntime(op: str, operands: list, results: list, **attrs: object) -> list[np.ndarray]:
    return list(backend("onnxruntime").run(*single(op, operands, results, **attrs)).values())


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_a_grid_stays_one_layer(mode: str):
    x, grid = numbers(2, 3, 5, 6), rng.uniform(-1.2, 1.2, (2, 3, 4, 2)).astype(np.float32)
    dims = {0: ["N", 3, "H", "W"], 1: ["N", "P", "Q", 2]}
    assert ops(check("GridSample", [x, grid], [F], mode=mode, dims=dims, tolerance=1e-4)) == ["GridSample"]


def test_a_volume_is_sampled_by_new_versions():
    x, grid = numbers(1, 2, 3, 4, 5), rng.uniform(-1, 1, (1, 2, 2, 2, 3)).astype(np.float32)
    assert ops(check("GridSample", [x, grid], [F], tolerance=1e-4)) == ["GridSample"]
    assert "samples in two" in refused("GridSample", [x, grid], "10")


def test_types_of_grids_are_brought_together():
    x, grid = numbers(1, 2, 5, 6), rng.uniform(-1, 1, (1, 3, 4, 2)).astype(np.float16)
    assert "a grid of float16" in refused("GridSample", [x, grid])
    assert ops(check("GridSample", [x, grid], [F], tolerance=1e-2)) == ["Cast", "GridSample"]
    whole = rng.integers(-9, 9, (1, 2, 5, 6)).astype(np.int32)
    wide = grid.astype(np.float32)
    want = in_onnxruntime("GridSample", [whole.astype(np.float32), wide], [F], mode="nearest")
    check("GridSample", [whole, wide], [DType.INT32], want=want, mode="nearest")


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_older_versions_gather_the_elements_around_positions(mode: str, padding: str):
    x, grid = numbers(2, 3, 4, 5), rng.uniform(-1.6, 1.6, (2, 3, 4, 2)).astype(np.float32)
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": int(padding == "border")}
    dims = {0: ["N", 3, "H", "W"], 1: ["N", "P", "Q", 2]}
    assert "names of modes" in refused("GridSample", [x, grid], "8.6")
    lowered = lower(*single("GridSample", [x, grid], [F], dims=dims, **attrs), "8.6")
    (got,) = backend("onnxruntime").run(lowered, {"x0": x, "x1": grid}).values()
    (want,) = backend("reference").run(*single("GridSample", [x, grid], [F], **attrs)).values()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 3, 4, 5, 2)])
def test_an_affine_grid_is_a_sum(corners: int, size: tuple[int, ...]):
    count = len(size) - 2
    theta, attrs = numbers(2, count, count + 1), {"align_corners": corners, "tolerance": 1e-5}
    check("AffineGrid", [theta, Const(np.array(size))], [F], dims={0: ["N", count, count + 1]}, **attrs)
    check("AffineGrid", [theta, np.array(size)], [F], **attrs)  # sizes that are known only when it runs


# --- regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
def test_regions_are_sampled_and_pooled(mode: str, coordinates: str):
    corner = rng.uniform(-1, 8, (5, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0, 8, (5, 2))], 1).astype(np.float32)
    operands = [numbers(3, 2, 9, 8), rois, rng.integers(0, 3, 5)]
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "output_height": 3, "output_width": 2}
    attrs |= {"sampling_ratio": 2, "spatial_scale": 0.5}
    want = in_onnxruntime("RoiAlign", operands, [F], **attrs)
    dims = {0: ["N", 2, "H", "W"], 1: ["R", 4], 2: ["R"]}
    check("RoiAlign", operands, [F], want=want, tolerance=1e-4, dims=dims, **attrs)


def test_tensorrt_aligns_regions_itself():
    operands = [numbers(1, 2, 9, 8), numbers(3, 4), np.zeros(3, np.int64)]
    assert refused("RoiAlign", operands, "10") == ""
    assert "no such operator" in refused("RoiAlign", operands)
    with pytest.raises(LoweringError, match="RoiAlign"):  # as many samples as the size of each region asks for
        lower(*single("RoiAlign", operands, [F], sampling_ratio=0))


@pytest.mark.parametrize("dims", [{}, {0: ["N", 2, "H", "W"], 1: ["R", 5]}])
def test_maxima_of_regions_are_those_of_masked_images(dims: dict):
    corner = rng.uniform(-1, 8, (5, 2))
    rois = np.concatenate([rng.integers(0, 3, (5, 1)), corner, corner + rng.uniform(0, 12, (5, 2))], 1)
    operands, attrs = [numbers(3, 2, 9, 8), rois.astype(np.float32)], {"pooled_shape": [3, 2], "spatial_scale": 0.7}
    want = in_onnxruntime("MaxRoiPool", operands, [F], opset=21, **attrs)
    check("MaxRoiPool", operands, [F], want=want, dims=dims, opset=21, **attrs)


# --- boxes -----------------------------------------------------------------------------------------------------------


def boxes(images: int, count: int, center: bool = False) -> np.ndarray:
    corner, size = rng.uniform(0, 20, (images, count, 2)), rng.uniform(0.5, 8, (images, count, 2))
    return np.concatenate([corner, size if center else corner + size], -1).astype(np.float32)


def scalar(value: float, dtype: object = np.float32) -> np.ndarray:
    return np.array([value], dtype)


@pytest.mark.parametrize(
    ("most", "overlap", "least"),
    [(5, 0.5, 0.3), (np.iinfo(np.int64).max, 0.2, 0.1), (0, 0.5, 0.1), (3, 0.5, 2.0), (7, 0.4, None)],
)
def test_the_best_boxes_are_chosen_one_by_one(most: int, overlap: float, least: float | None):
    operands = [boxes(2, 30), rng.uniform(0, 1, (2, 3, 30)).astype(np.float32)]
    given = [scalar(most, np.int64), scalar(overlap), *([] if least is None else [scalar(least)])]
    want = in_onnxruntime("NonMaxSuppression", [*operands, *given], [I64])
    lowered = check("NonMaxSuppression", [*operands, *map(Const, given)], [I64], want=want)
    assert "Loop" in ops(lowered)


@pytest.mark.parametrize("center", [0, 1])
def test_boxes_whose_number_is_open(center: int):
    operands = [boxes(2, 25, bool(center)), np.round(rng.uniform(0, 4, (2, 3, 25))).astype(np.float32)]  # with equals
    given = [scalar(4, np.int64), scalar(0.3), scalar(0.5)]
    want = in_onnxruntime("NonMaxSuppression", [*operands, *given], [I64], center_point_box=center)
    dims = {0: ["N", "S", 4], 1: ["N", "C", "S"]}
    check("NonMaxSuppression", [*operands, *given], [I64], want=want, dims=dims, center_point_box=center)


def test_what_follows_a_choice_has_its_size():
    text = """
        g (float[1,20,4] b, float[1,2,20] s, float[20,3] d) => (float[K,3] y) <
          int64 most = {4}, float overlap = {0.4}, float least = {0.2}, int64 i = {2} > {
          chosen = NonMaxSuppression (b, s, most, overlap, least)
          n = Gather <axis = 1> (chosen, i)
          y = Gather <axis = 0> (d, n) }"""
    found = check_text(text, b=boxes(1, 20), s=rng.uniform(0, 1, (1, 2, 20)), d=numbers(20, 3))
    assert found["NonMaxSuppression"] == 0


def test_tensorrt_chooses_boxes_itself():
    operands = [boxes(1, 5), rng.uniform(0, 1, (1, 2, 5)).astype(np.float32)]
    assert refused("NonMaxSuppression", operands, "10") == ""
    assert "no such operator" in refused("NonMaxSuppression", operands)


def test_without_a_number_no_box_is_chosen():
    operands = [boxes(1, 5), rng.uniform(0, 1, (1, 2, 5)).astype(np.float32)]
    graph, _ = single("NonMaxSuppression", operands, [I64])
    lowered, *_ = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert lowered.outputs[0].shape == (0, 3)
