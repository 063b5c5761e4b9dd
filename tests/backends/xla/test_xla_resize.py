"""Resizing and sampling images on XLA: random configurations, gradients, symbolic sizes and types."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from jax import export
from onnx import helper
from torch.nn import functional

from planish.backends import LoweringError, backend
from planish.backends.xla.function import JaxFunction, to_jax
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import Graph
from planish.ir.convert.proto import from_proto
from planish.ir.errors import PlanishError

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import exported, graph_of


def run(name: str, op: str, operands: Sequence[Any], attrs: Mapping[str, Any], constants: Collection[int] = ()) -> Any:
    values = [o for i, o in enumerate(operands) if o is not None and i not in constants]
    return backend(name).compile(graph_of(op, operands, attrs, constants))(*values)[0]


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


# random configurations

TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")


def _attributes(seed: int, rng: np.random.Generator) -> dict[str, Any]:
    mode, transformation = ("nearest", "linear", "cubic")[seed % 3], TRANSFORMATIONS[seed % 5]
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": transformation}
    if mode == "nearest":
        roundings = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        return {**attrs, "nearest_mode": roundings[seed // 3 % 4], "extrapolation_value": 10.0}
    if mode == "cubic":
        attrs |= {"cubic_coeff_a": float(rng.choice([-0.5, -0.75])), "exclude_outside": int(rng.integers(0, 2))}
    if transformation == "tf_crop_and_resize":
        return {**attrs, "extrapolation_value": 10.0}
    return {**attrs, "antialias": seed // 2 % 2}


@pytest.mark.parametrize("seed", range(30))
def test_resize_agrees_with_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank, attrs = int(rng.integers(1, 4)), _attributes(seed, rng)
    x = (rng.random(rng.integers(2, 8, rank)) * 100).astype((np.float32, np.uint8, np.float64)[seed // 5 % 3])
    axes = sorted(rng.choice(rank, int(rng.integers(1, rank + 1)), replace=False).tolist())
    crops = attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    roi = np.concatenate([rng.uniform(-0.2, 0.5, len(axes)), rng.uniform(0.5, 1.2, len(axes))]).astype(np.float32)
    scales, sizes = None, rng.integers(2, 12, len(axes))
    if seed % 2 and not crops:
        scales, sizes = rng.choice(np.float32([0.5, 0.8, 1, 1.5, 2, 3]), len(axes)), None
    elif seed % 4 == 0 and not crops:
        attrs["keep_aspect_ratio_policy"] = ("not_larger", "not_smaller")[seed // 4 % 2]
    operands = [x, roi if crops else None, scales, sizes]
    constants = {i for i in (1, 2, 3) if operands[i] is not None}
    want = run("reference", "Resize", operands, {**attrs, "axes": axes}, constants)
    negative = {**attrs, "axes": [a - rank for a in axes]}
    got = run("xla", "Resize", operands, negative, constants - {1})
    assert got.dtype == want.dtype
    exactness = 1 if x.dtype == np.uint8 else 1e-3  # halves are rounded either way
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-4, atol=exactness)


@pytest.mark.parametrize("scale", [0.3, 0.6, 2.4])
@pytest.mark.parametrize("transformation", ["half_pixel_symmetric", "pytorch_half_pixel", "tf_crop_and_resize"])
def test_resize_by_scales_that_do_not_divide_agrees_with_onnx_runtime(transformation: str, scale: float) -> None:
    x = np.random.default_rng(0).random((1, 2, 5, 7)).astype(np.float32)
    operands = [x, np.float32([0, 0, 0.1, 0.2, 1, 1, 0.7, 0.9]), np.float32([1, 1, scale, scale])]
    for mode in ("linear", "cubic"):
        attrs = {"mode": mode, "coordinate_transformation_mode": transformation}
        want = run("onnxruntime", "Resize", operands, attrs, {1, 2})
        np.testing.assert_allclose(run("xla", "Resize", operands, attrs, {1, 2}), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(18))
def test_sampled_images_agree_with_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = 1 + seed // 3 % 3
    attrs = {
        "mode": ("linear", "nearest", "cubic")[seed % 3],
        "padding_mode": ("zeros", "border", "reflection")[seed // 2 % 3],
        "align_corners": seed // 4 % 2,
    }
    x, out = normal(rng, 2, 2, *rng.integers(2, 6, rank)), rng.integers(1, 4, rank)
    grid = rng.uniform(-1.8, 1.8, (2, *out, rank)).astype(np.float32)
    want = run("reference", "GridSample", [x, grid], attrs)
    np.testing.assert_allclose(run("xla", "GridSample", [x, grid], attrs), want, rtol=1e-3, atol=1e-4)


def test_samples_far_outside_and_of_infinite_images() -> None:
    x = np.full((1, 1, 2, 2), np.inf, np.float32)
    grid = np.float32([[[[1e30, -1e30], [3, 3], [0, 0]]]])
    np.testing.assert_array_equal(run("xla", "GridSample", [x, grid], {}), [[[[0, 0, np.inf]]]])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_the_nearest_samples_of_integers_are_exact(dtype: Any) -> None:
    x = np.array([[[[2**62 + 1, 0], [3, 200]]]]).astype(dtype)
    grid = np.float32([[[[-0.5, -0.5], [0.5, 0.5], [9, 9]]]])
    got = run("xla", "GridSample", [x, grid], {"mode": "nearest"})
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.ravel(), np.array([x[0, 0, 0, 0], x[0, 0, 1, 1], 0], dtype))


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("size", [(2, 1, 3, 4), (1, 2, 2, 3, 4)])
def test_affine_grids_are_those_of_torch(size: tuple[int, ...], align: int) -> None:
    rank = len(size) - 2
    theta = normal(np.random.default_rng(0), size[0], rank, rank + 1)
    want = functional.affine_grid(torch.from_numpy(theta), list(size), bool(align)).numpy()
    got = run("xla", "AffineGrid", [theta, np.array(size)], {"align_corners": align}, {1})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "begin", "end"), [(3, 1, 4), (2, 1, 3), (5, 0, 5)])
def test_the_center_is_cut_out_a_little_to_the_left(size: int, begin: int, end: int) -> None:
    x = np.arange(5, dtype=np.int32)
    np.testing.assert_array_equal(run("xla", "CenterCropPad", [x, np.array([size])], {}, {1}), x[begin:end])


def test_the_center_is_padded_a_little_more_to_the_right() -> None:
    x = np.array([[1, 2]], np.int8)
    got = run("xla", "CenterCropPad", [x, np.array([5])], {"axes": [-1]}, {1})
    np.testing.assert_array_equal(got, [[0, 1, 2, 0, 0]])


# nearest without a gather


def _jaxpr(function: JaxFunction, x: Any) -> str:
    return str(jax.make_jaxpr(lambda v: function(function.params, v))(x))


def test_whole_factors_repeat_or_skip_elements() -> None:
    x = normal(np.random.default_rng(0), 1, 2, 4, 6)
    for scales, want in (([1, 1, 2, 3], x.repeat(2, 2).repeat(3, 3)), ([1, 1, 0.5, 1], x[:, :, ::2])):
        attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        function = to_jax(graph_of("Resize", [x, None, np.float32(scales)], attrs, {2}))
        np.testing.assert_array_equal(function({}, x)[0], want)
        assert "gather" not in _jaxpr(function, x)


# gradients


@pytest.mark.parametrize(
    ("mode", "align"), [("nearest", None), ("bilinear", False), ("bilinear", True), ("bicubic", False)]
)
@pytest.mark.parametrize("size", [(9, 10), (3, 4)])
def test_gradients_of_resize_are_those_of_torch(mode: str, align: bool | None, size: tuple[int, int]) -> None:
    x = normal(np.random.default_rng(0), 2, 3, 5, 6)
    attrs: dict[str, Any] = {"mode": {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)}
    attrs["coordinate_transformation_mode"] = "align_corners" if align else "pytorch_half_pixel"
    if mode == "nearest":
        attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    function = to_jax(graph_of("Resize", [x, None, None, np.array([2, 3, *size])], attrs, {3}))
    found = jax.jit(jax.grad(lambda v: (function({}, v)[0] ** 2).sum()))(x)
    other = torch.from_numpy(x).requires_grad_()
    (functional.interpolate(other, size, mode=mode, align_corners=align) ** 2).sum().backward()
    np.testing.assert_allclose(found, other.grad.numpy(), rtol=1e-3, atol=1e-4)


SAMPLES = [("bilinear", "zeros"), ("bilinear", "border"), ("bilinear", "reflection"), ("volume", "reflection")]


@pytest.mark.parametrize(("mode", "padding"), [*SAMPLES, ("bicubic", "zeros"), ("bicubic", "border")])
def test_gradients_of_samples_are_those_of_torch(mode: str, padding: str) -> None:
    rng = np.random.default_rng(1)
    rank = 3 if mode == "volume" else 2
    x = normal(rng, 2, 2, *(4, 5, 6)[:rank])
    # torch differs from the standard where cubic interpolation meets a border
    reach = 0.5 if mode == "bicubic" and padding == "border" else 1.4
    grid = rng.uniform(-reach, reach, (2, *(3, 4, 2)[:rank], rank)).astype(np.float32)
    attrs = {"mode": "cubic" if mode == "bicubic" else "linear", "padding_mode": padding}
    function = to_jax(graph_of("GridSample", [x, grid], attrs))
    found = jax.jit(jax.grad(lambda *o: (function({}, *o)[0] ** 2).sum(), argnums=(0, 1)))(x, grid)
    operands = [torch.from_numpy(o).requires_grad_() for o in (x, grid)]
    theirs = functional.grid_sample(
        *operands, mode="bilinear" if mode == "volume" else mode, padding_mode=padding, align_corners=False
    )
    (theirs**2).sum().backward()
    for a, b in zip(found, operands, strict=True):
        np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-3, atol=2e-3)


# sizes that are not known


@pytest.mark.parametrize("transformation", [t for t in TRANSFORMATIONS if t != "tf_crop_and_resize"])
@pytest.mark.parametrize(
    ("mode", "scale"), [("nearest", 2), ("nearest", 1.5), ("linear", 2), ("linear", 0.5), ("cubic", 3)]
)
def test_scaled_images_may_be_of_any_size(mode: str, scale: float, transformation: str) -> None:
    rng = np.random.default_rng(0)
    x = normal(rng, 2, 3, 6, 8)
    attrs = {"mode": mode, "coordinate_transformation_mode": transformation}
    operands = [x, None, np.float32([1, 1, scale, scale])]
    function = to_jax(graph_of("Resize", operands, attrs, {2}, {0: ("n", "c", "h", "w")}))
    call = exported(function, export.symbolic_shape("n, c, h, w", constraints=["h >= 2", "w >= 2"]))
    for image in (x, normal(rng, 1, 3, 4, 10)):
        want = run("onnxruntime", "Resize", [image, *operands[1:]], attrs, {2})
        np.testing.assert_allclose(call(image)[0], want, rtol=1e-3, atol=1e-4)


def test_doubled_images_of_any_size_repeat_elements() -> None:
    x = normal(np.random.default_rng(0), 1, 2, 4, 6)
    attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph = graph_of("Resize", [x, None, np.float32([1, 1, 2, 2])], attrs, {2}, {0: ("n", 2, "h", "w")})
    function = to_jax(graph)
    symbolic = export.symbolic_shape("n, 2, h, w")
    assert "gather" not in _jaxpr(function, jax.ShapeDtypeStruct(symbolic, jnp.float32))
    np.testing.assert_array_equal(exported(function, symbolic)(x)[0], x.repeat(2, 2).repeat(2, 3))


def _resized_like(attrs: Mapping[str, Any]) -> Graph:
    """An image, resized to the size of another one."""
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Shape", ["y"], ["s"]), helper.make_node("Resize", ["x", "", "", "s"], ["z"], **attrs)]
    inputs = [info("x", 1, ("n", 2, "h", "w")), info("y", 1, ("n", 2, "a", "b"))]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="z")])
    return from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), upgrade=upgrade
    )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_an_image_gets_the_size_of_another(mode: str) -> None:
    rng = np.random.default_rng(0)
    x, y = normal(rng, 2, 2, 4, 6), normal(rng, 2, 2, 7, 5)
    n, h, w, a, b = export.symbolic_shape("n, h, w, a, b")
    call = exported(to_jax(_resized_like({"mode": mode})), (n, 2, h, w), (n, 2, a, b))
    want = run("onnxruntime", "Resize", [x, None, None, np.array(y.shape)], {"mode": mode}, {3})
    np.testing.assert_allclose(call(x, y)[0], want, rtol=1e-3, atol=1e-4)


def test_what_needs_known_sizes_says_so() -> None:
    n, h, w, a, b = export.symbolic_shape("n, h, w, a, b")
    for attrs, reason in (
        ({"mode": "linear", "antialias": 1}, "antialias needs a scale that is known"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy not_larger needs sizes that are known"),
    ):
        with pytest.raises(PlanishError, match=reason):
            exported(to_jax(_resized_like(attrs)), (n, 2, h, w), (n, 2, a, b))


def test_antialias_does_not_go_with_nearest() -> None:
    with pytest.raises(LoweringError, match="antialias does not go with nearest"):
        to_jax(graph_of("Resize", [np.zeros(4, np.float32), None, np.float32([2])], {"antialias": 1}, {2}))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_samples_of_images_of_any_size(mode: str) -> None:
    rng = np.random.default_rng(0)
    x, grid = normal(rng, 2, 3, 4, 5), rng.uniform(-1.5, 1.5, (2, 3, 2, 2)).astype(np.float32)
    n, h, w, a, b = export.symbolic_shape("n, h, w, a, b")
    for padding in ("zeros", "border", "reflection"):
        attrs = {"mode": mode, "padding_mode": padding}
        graph = graph_of("GridSample", [x, grid], attrs, (), {0: ("n", 3, "h", "w"), 1: ("n", "a", "b", 2)})
        got = exported(to_jax(graph), (n, 3, h, w), (n, a, b, 2))(x, grid)[0]
        np.testing.assert_allclose(got, run("reference", "GridSample", [x, grid], attrs), rtol=1e-3, atol=1e-4)


def test_elements_move_between_channels_and_space_in_images_of_any_size() -> None:
    x = normal(np.random.default_rng(0), 2, 8, 2, 3)
    n, h, w = export.symbolic_shape("n, h, w")
    for mode in ("DCR", "CRD"):
        attrs = {"blocksize": 2, "mode": mode}
        call = exported(to_jax(graph_of("DepthToSpace", [x], attrs, (), {0: ("n", 8, "h", "w")})), (n, 8, h, w))
        want = run("reference", "DepthToSpace", [x], attrs)
        np.testing.assert_array_equal(call(x)[0], want)
    call = exported(to_jax(graph_of("SpaceToDepth", [want], {"blocksize": 2})), (n, 2, 2 * h, 2 * w))
    np.testing.assert_array_equal(call(want)[0], run("reference", "SpaceToDepth", [want], {"blocksize": 2}))


# types


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_narrow_types_are_rounded_once(mode: str, dtype: Any) -> None:
    x = normal(np.random.default_rng(0), 1, 1, 5, 5).astype(dtype)
    operands = [x, None, np.float32([1, 1, 2, 2])]
    got = run("xla", "Resize", operands, {"mode": mode}, {2})
    want = run("xla", "Resize", [x.astype(np.float32), *operands[1:]], {"mode": mode}, {2})
    np.testing.assert_array_equal(got, want.astype(dtype))


def test_integers_saturate_where_cubic_interpolation_overshoots() -> None:
    x = np.array([[[0, 255, 255, 0, 0]]], np.uint8)
    got = run("xla", "Resize", [x, None, np.float32([1, 1, 2])], {"mode": "cubic"}, {2})
    np.testing.assert_array_equal(
        got, run("reference", "Resize", [x, None, np.float32([1, 1, 2])], {"mode": "cubic"}, {2})
    )
    assert got.min() == 0
    assert got.max() == 255


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_no_images_give_no_results(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    for mode in ("nearest", "linear"):
        got = run("xla", "Resize", [x, None, np.float32([1, 1, 2, 2])], {"mode": mode}, {2})
        assert got.shape == (*shape[:2], 8, 8)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_products_with_a_matrix_and_sums_of_elements_agree(mode: str) -> None:
    """The one is for TPUs, the other for everything else."""
    from planish.backends.xla.ops import resize as module

    x = normal(np.random.default_rng(0), 1, 2, 5, 6)
    function = to_jax(graph_of("Resize", [x, None, np.float32([1, 1, 1.7, 0.6])], {"mode": mode, "antialias": 1}, {2}))
    want = function({}, x)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.lax, "platform_dependent", lambda *operands, tpu, default: tpu(*operands))
        np.testing.assert_allclose(function({}, x)[0], want, rtol=1e-5, atol=1e-5)
