"""Pooling and regions of interest on XLA: random configurations, gradients, symbolic sizes and types."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax import export
from torch.nn import functional

from planish.backends import LoweringError, backend
from planish.backends.xla.function import JaxFunction, to_jax
from planish.backends.xla.ops.detection import non_max_suppression_padded

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import graph_of


def run(
    name: str,
    op: str,
    operands: Sequence[Any],
    attrs: Mapping[str, Any],
    constants: Collection[int] = (),
    results: int = 1,
) -> list[Any]:
    values = [o for i, o in enumerate(operands) if o is not None and i not in constants]
    return backend(name).compile(graph_of(op, operands, attrs, constants, results=results))(*values)


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def exported(function: JaxFunction, *shapes: Sequence[Any]) -> Any:
    """The function for float32 inputs of shapes that may be symbolic, as it comes out of a file."""
    call = jax.jit(lambda *inputs: function(function.params, *inputs))
    types = [jax.ShapeDtypeStruct(tuple(s), jnp.float32) for s in shapes]
    return export.deserialize(export.export(call)(*types).serialize()).call


# random configurations


def _attributes(op: str, seed: int, rng: np.random.Generator, rank: int) -> dict[str, Any]:
    sizes = rng.integers(1, 4, rank).tolist()
    attrs: dict[str, Any] = {
        "kernel_shape": sizes,
        "strides": rng.integers(1, 4, rank).tolist(),
        "dilations": rng.integers(1, 3, rank).tolist(),
        "auto_pad": str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])),
    }
    if attrs["auto_pad"] == "NOTSET":
        attrs["pads"] = [int(rng.integers(0, k)) for k in (*sizes, *sizes)]
        attrs["ceil_mode"] = seed % 2
    elif attrs["auto_pad"] != "VALID":
        attrs["dilations"] = [1] * rank  # with both, ONNX Runtime returns another size
    own = {
        "AveragePool": {"count_include_pad": seed // 2 % 2},
        "LpPool": {"p": 1 + seed % 3},
        "MaxPool": {"storage_order": seed // 2 % 2},
    }
    return {**attrs, **own[op]}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("op", ["AveragePool", "LpPool", "MaxPool"])
def test_pooling_agrees_with_onnx_runtime(op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    attrs, x = _attributes(op, seed, rng, rank), normal(rng, 2, 2, *rng.integers(5, 9, rank))
    results = 2 if op == "MaxPool" else 1
    want = run("onnxruntime", op, [x], attrs, results=results)
    got = run("xla", op, [x], attrs, results=results)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_maxima_of_integers(dtype: Any) -> None:
    x = np.random.default_rng(0).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (1, 2, 6, 7)).astype(dtype)
    attrs = {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "dilations": [1, 2]}
    for a, b in zip(*(run(name, "MaxPool", [x], attrs, results=2) for name in ("xla", "onnxruntime")), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_first_of_equal_maxima_is_indexed_and_nan_is_the_largest() -> None:
    x = np.float32([[[3, 3, 1, np.nan, 7, np.nan, -np.inf, -np.inf]]])
    values, indices = run("xla", "MaxPool", [x], {"kernel_shape": [2], "strides": [2]}, results=2)
    np.testing.assert_array_equal(values, [[[3, np.nan, np.nan, -np.inf]]])
    np.testing.assert_array_equal(indices, [[[0, 3, 5, 6]]])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_means_of_many_narrow_numbers_are_exact(dtype: Any) -> None:
    """256 * 100 does not fit float16, and bfloat16 cannot count so far."""
    x = np.full((1, 1, 16, 16), 256, dtype)
    for op, attrs in (("AveragePool", {"kernel_shape": [16, 16]}), ("GlobalAveragePool", {}), ("GlobalMaxPool", {})):
        (y,) = run("xla", op, [x], attrs)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.astype(np.float32), [[[[256]]]])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms_over_everything(p: int) -> None:
    x = normal(np.random.default_rng(0), 2, 3, 4, 5)
    want = (np.abs(x) ** p).sum((2, 3), keepdims=True) ** (1 / p)
    np.testing.assert_allclose(run("xla", "GlobalLpPool", [x], {"p": p})[0], want, rtol=1e-5)


@pytest.mark.parametrize("stride", [2, 3])
def test_unpooling_is_that_of_torch(stride: int) -> None:
    x = torch.from_numpy(normal(np.random.default_rng(0), 2, 3, 8, 8))
    y, index = functional.max_pool2d(x, 2, stride, return_indices=True)
    size = [(y.shape[2] - 1) * stride + 2] * 2
    index = index // 8 * size[1] + index % 8  # as if x had just the size that the window covers
    want = functional.max_unpool2d(y, index, 2, stride).numpy()
    flat = (index + (torch.arange(6) * size[0] * size[1]).reshape(2, 3, 1, 1)).numpy()
    attrs = {"kernel_shape": [2, 2], "strides": [stride] * 2}
    np.testing.assert_array_equal(run("xla", "MaxUnpool", [y.numpy(), flat], attrs)[0], want)
    larger = run("xla", "MaxUnpool", [y.numpy(), flat, np.array([2, 3, 10, 9])], attrs, {2})[0]
    np.testing.assert_array_equal(larger, np.pad(want, ((0, 0), (0, 0), (0, 10 - size[0]), (0, 9 - size[1]))))


# regions


def _regions(rng: np.random.Generator) -> Any:
    starts = rng.uniform(-2, 7, (4, 2))
    return np.concatenate([starts, starts + rng.uniform(0.3, 8, (4, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("shift", "constants"), [("half_pixel", ()), ("output_half_pixel", (1,))], ids=["traced", "known"]
)
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_aligned_regions_agree_with_the_reference(
    mode: str, shift: str, ratio: int, constants: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(ratio)
    x, regions, images = normal(rng, 2, 3, 6, 8), _regions(rng), np.array([0, 1, 1, 0])
    attrs = {"mode": mode, "coordinate_transformation_mode": shift, "sampling_ratio": ratio}
    attrs |= {"output_height": 2, "output_width": 3, "spatial_scale": 0.75}
    want = run("reference", "RoiAlign", [x, regions, images], attrs)[0]
    got = run("xla", "RoiAlign", [x, regions, images], attrs, constants)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_region_without_samples_is_zero() -> None:
    x = np.ones((1, 2, 4, 4), np.float32)
    regions, images = np.float32([[2, 2, 1, 1], [0, 0, 3, 3]]), np.array([0, 0])
    for mode in ("avg", "max"):
        attrs = {"output_height": 1, "output_width": 1, "mode": mode}
        y = run("xla", "RoiAlign", [x, regions, images], attrs)[0]
        np.testing.assert_array_equal(y[0], 0)
        assert (y[1] > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_maxima_of_regions_agree_with_onnx_runtime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 8, (5, 2))
    regions = np.concatenate([rng.integers(0, 2, (5, 1)), starts, starts + rng.integers(0, 6, (5, 2))], axis=1)
    attrs = {"pooled_shape": [1 + seed % 3, 2], "spatial_scale": [1.0, 0.5][seed % 2]}
    operands = [normal(rng, 2, 3, 6, 8), regions.astype(np.float32)]
    want = run("onnxruntime", "MaxRoiPool", operands, attrs)[0]
    np.testing.assert_array_equal(run("xla", "MaxRoiPool", operands, attrs)[0], want)


@pytest.mark.parametrize(("ratio", "mode"), [(2, "avg"), (0, "avg"), (2, "max")])
def test_gradients_of_aligned_regions_go_to_the_image(ratio: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    x, regions, images = normal(rng, 2, 2, 6, 8), _regions(rng), np.array([0, 1, 1, 0])
    attrs = {"sampling_ratio": ratio, "output_height": 2, "output_width": 2, "mode": mode}
    function = to_jax(graph_of("RoiAlign", [x, regions, images], attrs))
    loss = jax.jit(lambda x, r: (function({}, x, r, images)[0] ** 2).sum())
    direction = normal(rng, *x.shape)
    slope = float((jax.grad(loss)(x, regions) * direction).sum())
    difference = float(loss(x + 1e-3 * direction, regions) - loss(x - 1e-3 * direction, regions)) / 2e-3
    assert slope == pytest.approx(difference, rel=2e-2)


# boxes


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_selected_as_by_the_reference(seed: int) -> None:
    """Scores are few, so there are ties."""
    rng = np.random.default_rng(seed)
    boxes, scores = rng.random((2, 7, 4)).astype(np.float32), rng.integers(0, 4, (2, 3, 7)).astype(np.float32)
    operands = [boxes, scores, np.array([seed % 5]), np.float32([[0.0, 0.1, 0.3, 0.6][seed % 4]])]
    operands += [np.float32([1])] if seed % 2 else []
    attrs = {"center_point_box": seed // 2 % 2}
    want = run("reference", "NonMaxSuppression", operands, attrs)[0]
    np.testing.assert_array_equal(run("xla", "NonMaxSuppression", operands, attrs)[0], want.reshape(-1, 3))


def test_selected_boxes_are_padded_when_they_are_traced() -> None:
    rng = np.random.default_rng(0)
    boxes, scores = rng.random((2, 9, 4)).astype(np.float32), rng.random((2, 3, 9)).astype(np.float32)
    want = run("reference", "NonMaxSuppression", [boxes, scores, np.array([4]), np.float32([0.2])], {})[0]
    for limit in (4, jnp.asarray(4)):
        rows, count = jax.jit(lambda b, s, limit=limit: non_max_suppression_padded(b, s, limit, 0.2))(boxes, scores)
        assert rows.shape == (6 * (4 if isinstance(limit, int) else 9), 3)
        np.testing.assert_array_equal(rows[: int(count)], want)
        assert (np.asarray(rows[int(count) :]) == -1).all()


def test_boxes_are_not_selected_in_a_trace() -> None:
    boxes, scores = np.zeros((1, 2, 4), np.float32), np.zeros((1, 1, 2), np.float32)
    function = to_jax(graph_of("NonMaxSuppression", [boxes, scores, np.array([1])], {}, {2}))
    with pytest.raises(LoweringError, match=r"NonMaxSuppression.*depends on data"):
        jax.jit(lambda b: function({}, b, scores))(boxes)


# gradients


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("results", [1, 2])
def test_gradients_of_maxima_are_those_of_torch(results: int, dilation: int) -> None:
    """Half of the elements are equal, as they are after a Relu."""
    x = np.maximum(normal(np.random.default_rng(0), 2, 3, 9, 8), 0)
    attrs = {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [dilation] * 2, "pads": [1, 1, 1, 1]}
    function = to_jax(graph_of("MaxPool", [x], attrs, results=results))
    found = jax.jit(jax.grad(lambda v: (function({}, v)[0] ** 2).sum()))(x)
    other = torch.from_numpy(x).requires_grad_()
    (functional.max_pool2d(other, (3, 2), (2, 1), 1, dilation) ** 2).sum().backward()
    np.testing.assert_allclose(found, other.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_padding", [0, 1])
def test_gradients_of_means_are_those_of_torch(with_padding: int) -> None:
    x = normal(np.random.default_rng(0), 2, 3, 9, 8)
    attrs = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    function = to_jax(graph_of("AveragePool", [x], {**attrs, "count_include_pad": with_padding}))
    found = jax.grad(lambda v: (function({}, v)[0] ** 2).sum())(x)
    other = torch.from_numpy(x).requires_grad_()
    y = functional.avg_pool2d(other, (3, 2), 2, 1, ceil_mode=True, count_include_pad=bool(with_padding))
    (y**2).sum().backward()
    np.testing.assert_allclose(found, other.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("op", ["LpPool", "GlobalLpPool"])
def test_gradients_of_norms_are_finite_where_everything_is_zero(op: str, p: int) -> None:
    x = normal(np.random.default_rng(0), 1, 2, 4, 4)
    x[:, 0, :2], x[:, 1] = 0, 0
    attrs: dict[str, Any] = {"p": p} if op == "GlobalLpPool" else {"p": p, "kernel_shape": [2, 2], "strides": [2, 2]}
    function = to_jax(graph_of(op, [x], attrs))
    found = jax.grad(lambda v: function({}, v)[0].sum())(x)
    windows = x.reshape(1, 2, 2, 2, 2, 2) if op == "LpPool" else x.reshape(1, 2, 1, 4, 1, 4)
    norm = (np.abs(windows) ** p).sum((3, 5), keepdims=True) ** (1 / p)
    want = np.sign(windows) * (np.abs(windows) / np.where(norm == 0, 1, norm)) ** (p - 1)
    np.testing.assert_allclose(found, want.reshape(x.shape), rtol=1e-4, atol=1e-6)


def test_gradients_of_unpooling_go_to_what_was_kept() -> None:
    x, index = np.float32([[[1, 2]]]), np.array([[[1, 2]]])
    function = to_jax(graph_of("MaxUnpool", [x, index], {"kernel_shape": [2], "strides": [2]}))
    found = jax.grad(lambda v: (function({}, v, index)[0] * np.float32([5, 6, 7, 8])).sum())(x)
    np.testing.assert_array_equal(found, [[[6, 7]]])


# sizes that are not known


CASES = [
    ("AveragePool", {"count_include_pad": 0, "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ("AveragePool", {"count_include_pad": 1, "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ("AveragePool", {"auto_pad": "SAME_LOWER"}),
    ("MaxPool", {"auto_pad": "SAME_UPPER"}),
    ("MaxPool", {"pads": [1, 0, 1, 1], "ceil_mode": 1, "dilations": [2, 1], "storage_order": 1}),
    ("LpPool", {"auto_pad": "VALID"}),
]


@pytest.mark.parametrize(("op", "attrs"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_all_sizes_of_images_may_be_symbolic(op: str, attrs: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x = normal(rng, 3, 2, 7, 10)
    attrs = {"kernel_shape": [3, 3], "strides": [2, 3], **attrs}
    results = 2 if op == "MaxPool" else 1
    graph = graph_of(op, [x], attrs, (), {0: ("n", "c", "h", "w")}, results)
    symbolic = export.symbolic_shape("n, c, h, w", constraints=["h >= 5", "w >= 5"])
    call = exported(to_jax(graph), symbolic)
    for image in (x, x[:1, :, :6, :9], normal(rng, 2, 3, 5, 8)):
        for a, b in zip(call(image), run("onnxruntime", op, [image], attrs, results=results), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("ratio", "mode"), [(2, "avg"), (0, "avg"), (2, "max"), (0, "max")])
def test_regions_and_images_may_be_of_any_number(ratio: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    x, regions, images = normal(rng, 2, 3, 6, 8), _regions(rng), np.array([0, 1, 1, 0])
    attrs = {"sampling_ratio": ratio, "output_height": 2, "output_width": 2, "mode": mode}
    shapes = {0: ("n", 3, "h", "w"), 1: ("r", 4), 2: ("r",)}
    function = to_jax(graph_of("RoiAlign", [x, regions, images], attrs, (), shapes))
    n, h, w, r = export.symbolic_shape("n, h, w, r")
    types = [((n, 3, h, w), np.float32), ((r, 4), np.float32), ((r,), np.int32)]
    call = jax.jit(lambda *inputs: function({}, *inputs))
    found = export.export(call)(*(jax.ShapeDtypeStruct(s, t) for s, t in types)).call(
        x, regions, images.astype(np.int32)
    )
    want = run("reference", "RoiAlign", [x, regions, images], attrs)[0]
    np.testing.assert_allclose(found[0], want, rtol=1e-4, atol=1e-5)


def test_unpooling_with_symbolic_sizes() -> None:
    x, index = np.float32([[[1, 2]]]), np.array([[[1, 2]]], np.int32)
    shapes = {0: ("n", 1, "l"), 1: ("n", 1, "l")}
    graph = graph_of("MaxUnpool", [x, index.astype(np.int64)], {"kernel_shape": [2], "strides": [2]}, (), shapes)
    function = to_jax(graph)
    n, length = export.symbolic_shape("n, l")
    types = [jax.ShapeDtypeStruct((n, 1, length), t) for t in (np.float32, np.int32)]
    found = export.export(jax.jit(lambda *inputs: function({}, *inputs)))(*types).call(x, index)
    np.testing.assert_array_equal(found[0], [[[0, 1, 2, 0]]])


def test_windows_up_to_the_ceiling_of_an_open_size_are_as_many_as_a_slice_leaves() -> None:
    rng = np.random.default_rng(0)
    attrs = {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}
    function = to_jax(graph_of("MaxPool", [normal(rng, 1, 2, 7)], attrs, (), {0: ("n", "c", "w")}))

    def both(x: Any) -> Any:
        return function(function.params, x)[0] + jax.lax.slice_in_dim(x, 0, x.shape[2], 2, 2)

    (width,) = export.symbolic_shape("w")
    exported = export.export(jax.jit(both))(jax.ShapeDtypeStruct((1, 2, width), jnp.float32))
    for size in (5, 6):
        x = normal(rng, 1, 2, size)
        largest = np.maximum(x[..., ::2], np.append(x, x[..., -1:], -1)[..., 1 : size + size % 2 : 2])
        np.testing.assert_array_equal(exported.call(x), largest + x[..., ::2])


@pytest.mark.parametrize("attrs", [{}, {"pads": [1, 0], "count_include_pad": 1}, {"pads": [1, 1]}, {"ceil_mode": 1}])
@pytest.mark.parametrize("strides", [[1], [3]])
def test_the_mean_of_windows_of_symbolic_sizes(attrs: dict[str, Any], strides: list[int]) -> None:
    attrs = {"kernel_shape": [3], "dilations": [2], "strides": strides, **attrs}
    rng = np.random.default_rng(0)
    call = exported(to_jax(graph_of("AveragePool", [normal(rng, 1, 2, 7)], attrs, shapes={0: (1, 2, "n")})),
                    export.symbolic_shape("1, 2, n"))  # fmt: skip
    for length in (7, 12):
        x = normal(rng, 1, 2, length)
        np.testing.assert_allclose(call(x)[0], run("xla", "AveragePool", [x], attrs)[0], rtol=1e-6, atol=1e-6)
