"""Convolutions on XLA: random configurations, gradients, symbolic sizes, integers and narrow types."""

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

from planish.backends import backend
from planish.backends.xla.function import to_jax
from planish.backends.xla.ops.convolution import convolve, convolve_integers
from planish.backends.xla.windows import Window

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import exported, graph_of


def run(name: str, op: str, operands: Sequence[Any], attrs: Mapping[str, Any], constants: Collection[int] = ()) -> Any:
    values = [o for i, o in enumerate(operands) if o is not None and i not in constants]
    return backend(name).compile(graph_of(op, operands, attrs, constants))(*values)[0]


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


# random configurations


def _geometry(rng: np.random.Generator, rank: int, sizes: Sequence[int]) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "strides": rng.integers(1, 4, rank).tolist(),
        "dilations": rng.integers(1, 3, rank).tolist(),
        "auto_pad": str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])),
    }
    if attrs["auto_pad"] == "NOTSET":
        attrs["pads"] = [int(rng.integers(0, k)) for k in (*sizes, *sizes)]
    return attrs


@pytest.mark.parametrize("seed", range(24))
def test_conv_agrees_with_onnx_runtime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank, groups, channels = 1 + seed % 3, int(rng.integers(1, 4)), int(rng.integers(1, 4))
    sizes = rng.integers(1, 4, rank).tolist()
    attrs = {**_geometry(rng, rank, sizes), "group": groups}
    if attrs["auto_pad"].startswith("SAME"):
        attrs["dilations"] = [1] * rank  # with both, ONNX Runtime refuses
    x = normal(rng, 2, channels * groups, *rng.integers(5, 9, rank))
    operands = [x, normal(rng, groups * 2, channels, *sizes), normal(rng, groups * 2)][: 2 + seed % 2]
    want = run("onnxruntime", "Conv", operands, attrs)
    np.testing.assert_allclose(run("xla", "Conv", operands, attrs), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(24))
def test_transposed_conv_agrees_with_onnx_runtime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank, groups, channels = 1 + seed % 3, int(rng.integers(1, 4)), int(rng.integers(1, 4))
    sizes = rng.integers(1, 4, rank).tolist()
    attrs = {**_geometry(rng, rank, sizes), "group": groups}
    if attrs["auto_pad"].startswith("SAME"):  # where a stride exceeds the window, ONNX Runtime returns less
        attrs["strides"] = [min(s, k) for s, k in zip(attrs["strides"], sizes, strict=True)]
    elif seed % 2:
        attrs["output_padding"] = [int(rng.integers(0, s)) for s in attrs["strides"]]
    x = normal(rng, 2, channels * groups, *rng.integers(4, 7, rank))
    operands = [x, normal(rng, channels * groups, 2, *sizes), normal(rng, groups * 2)]
    want = run("onnxruntime", "ConvTranspose", operands, attrs)
    np.testing.assert_allclose(run("xla", "ConvTranspose", operands, attrs), want, rtol=1e-4, atol=1e-4)


def test_transposed_conv_with_an_output_shape_cuts_off_or_adds() -> None:
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 2, 4), normal(rng, 2, 3, 3)
    full = functional.conv_transpose1d(torch.from_numpy(x), torch.from_numpy(w), stride=2).numpy()
    cut = run("xla", "ConvTranspose", [x, w], {"strides": [2], "output_shape": [6], "auto_pad": "SAME_UPPER"})
    np.testing.assert_allclose(cut, full[..., 1:7], rtol=1e-5, atol=1e-6)
    other = run("xla", "ConvTranspose", [x, w], {"strides": [2], "output_shape": [6], "auto_pad": "SAME_LOWER"})
    np.testing.assert_allclose(other, full[..., 2:8], rtol=1e-5, atol=1e-6)
    more = run("xla", "ConvTranspose", [x, w], {"strides": [2], "output_shape": [10]})
    np.testing.assert_allclose(more, np.pad(full, ((0, 0), (0, 0), (0, 1))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_deformed_conv_agrees_with_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, parts, sizes = 1 + seed % 2, 1 + seed // 2 % 2, rng.integers(1, 4, 2).tolist()
    attrs = {"group": groups, "offset_group": parts, "strides": [1, 2], "pads": [1, 0, 0, 1], "kernel_shape": sizes}
    out, taps = [6 - sizes[0] + 1, (6 - sizes[1]) // 2 + 1], sizes[0] * sizes[1]
    operands = [normal(rng, 2, 4, 5, 5), normal(rng, 4, 4 // groups, *sizes), normal(rng, 2, parts * 2 * taps, *out)]
    operands += [normal(rng, 4), normal(rng, 2, parts * taps, *out)] if seed % 3 else []
    want = run("reference", "DeformConv", operands, attrs)
    np.testing.assert_allclose(run("xla", "DeformConv", operands, attrs), want, rtol=1e-3, atol=1e-4)


def test_a_volume_deformed_by_whole_steps_is_the_moved_volume() -> None:
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 2, 5, 5, 5), normal(rng, 3, 2, 2, 2, 2)
    offset = np.zeros((1, 3 * 8, 4, 4, 4), np.float32)
    offset[:, 0::3], offset[:, 2::3] = 1, -1
    moved = np.zeros_like(x)
    moved[:, :, :4, :, 1:] = x[:, :, 1:, :, :4]
    want = functional.conv3d(torch.from_numpy(moved), torch.from_numpy(w)).numpy()
    got = run("xla", "DeformConv", [x, w, offset], {})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "dilation", "pad"), [(1, 1, 0), (2, 1, 1), (1, 2, 1), (3, 2, 0)])
def test_blocks_are_added_as_torch_folds_them(stride: int, dilation: int, pad: int) -> None:
    rng = np.random.default_rng(0)
    counts = [(n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k in ((6, 2), (7, 3))]
    x = normal(rng, 2, 3 * 6, counts[0] * counts[1])
    want = functional.fold(torch.from_numpy(x), (6, 7), (2, 3), dilation, pad, stride).numpy()
    attrs = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [pad] * 4}
    operands = [x, np.array([6, 7]), np.array([2, 3])]
    np.testing.assert_allclose(run("xla", "Col2Im", operands, attrs, {1, 2}), want, rtol=1e-5, atol=1e-5)


# integers


@pytest.mark.parametrize("seed", range(6))
def test_integers_are_multiplied_exactly(seed: int) -> None:
    """Large sums, which float32 does not hold."""
    rng = np.random.default_rng(seed)
    types, groups = (np.uint8, np.int8), 1 + seed % 2
    x_type, w_type = types[seed % 2], types[seed // 2 % 2]
    channels = 150 if seed < 4 else 3
    x = rng.integers(np.iinfo(x_type).max - 40, np.iinfo(x_type).max, (2, channels * groups, 5, 5)).astype(x_type)
    w = rng.integers(np.iinfo(w_type).max - 40, np.iinfo(w_type).max, (4, channels, 3, 3)).astype(w_type)
    x_zero, w_zero = x_type(rng.integers(0, 9)), rng.integers(0, 9, 4).astype(w_type)
    wide = np.pad(x.astype(np.int64) - x_zero, ((0, 0), (0, 0), (1, 0), (1, 0)))
    centered = w.astype(np.int64) - w_zero.reshape(-1, 1, 1, 1)
    halves = np.split(wide, groups, axis=1)
    filters = np.split(centered, groups)
    views = [np.lib.stride_tricks.sliding_window_view(h, (3, 3), (2, 3)) for h in halves]
    want = np.concatenate([np.einsum("nchwij,mcij->nmhw", v, f) for v, f in zip(views, filters, strict=True)], axis=1)
    operands = [x, w, np.array(x_zero), w_zero]
    got = run("xla", "ConvInteger", operands, {"pads": [1, 1, 0, 0], "group": groups})
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        run("xla", "ConvInteger", operands, {"pads": [1, 1, 0, 0], "group": groups}, {2, 3}), want
    )


@pytest.mark.parametrize("w_type", [jnp.int8, jnp.uint8])
@pytest.mark.parametrize("x_type", [jnp.int8, jnp.uint8])
def test_both_ways_to_multiply_integers_agree(x_type: Any, w_type: Any) -> None:
    from planish.backends.xla.ops import convolution as module

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(jnp.iinfo(x_type).min, jnp.iinfo(x_type).max + 1, (2, 4, 6, 6)), x_type)
    w = jnp.asarray(rng.integers(jnp.iinfo(w_type).min, jnp.iinfo(w_type).max + 1, (6, 2, 3, 3)), w_type)
    window = Window((3, 3), (2, 1), (1, 2), ((1, 0), (2, 2)), (0, 0), (3, 6))
    x_zero, w_zero = jnp.asarray(7, x_type), jnp.asarray([3, 0, 5, 1, 2, 4], w_type)
    form = {"window": window, "groups": 2}
    on_tpu = module._by_int8(x, w, x_zero, w_zero, is_symmetric=False, **form)
    elsewhere = convolve_integers(x, w, x_zero=x_zero, w_zero=w_zero, **form)
    np.testing.assert_array_equal(on_tpu, elsewhere)
    if w_type == jnp.int8:
        none = jnp.zeros((), w_type)
        on_tpu = module._by_int8(x, w, x_zero, none, is_symmetric=True, **form)
        np.testing.assert_array_equal(on_tpu, convolve_integers(x, w, x_zero=x_zero, **form))


def test_padding_with_a_value_is_padding_with_that_value() -> None:
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 2, 5), normal(rng, 3, 2, 3)
    window = Window((3,), (1,), (1,), ((2, 1),), (0,), (6,))
    padded = np.pad(x, ((0, 0), (0, 0), (2, 1)), constant_values=4)
    want = functional.conv1d(torch.from_numpy(padded), torch.from_numpy(w)).numpy()
    np.testing.assert_allclose(jax.jit(lambda v: convolve(x, w, window, pad_value=v))(4.0), want, rtol=1e-5, atol=1e-5)


# gradients


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_gradients_are_those_of_torch(op: str, groups: int) -> None:
    rng = np.random.default_rng(0)
    x, bias = normal(rng, 2, 4, 7, 6), normal(rng, 6)
    w = normal(rng, 6, 4 // groups, 3, 2) if op == "Conv" else normal(rng, 4, 6 // groups, 3, 2)
    attrs = {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 1, 1, 1], "group": groups}
    function = to_jax(graph_of(op, [x, w, bias], attrs))
    found = jax.grad(lambda *o: (function({}, *o)[0] ** 2).sum(), argnums=(0, 1, 2))(x, w, bias)
    operands = [torch.from_numpy(o).requires_grad_() for o in (x, w, bias)]
    if op == "Conv":
        y = functional.conv2d(*operands, stride=(2, 1), padding=1, dilation=(1, 2), groups=groups)
    else:
        y = functional.conv_transpose2d(*operands, stride=(2, 1), padding=1, dilation=(1, 2), groups=groups)
    (y**2).sum().backward()
    for ours, theirs in zip(found, operands, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-3, atol=1e-3)


def test_gradients_go_to_the_offsets_of_a_deformed_conv() -> None:
    rng = np.random.default_rng(0)
    x, w = normal(rng, 1, 2, 5, 5), normal(rng, 3, 2, 2, 2)
    offset = rng.uniform(0.2, 0.8, (1, 8, 4, 4)).astype(
        np.float32
    )  # no position is that of an element, where slopes jump
    function = to_jax(graph_of("DeformConv", [x, w, offset]))
    loss = jax.jit(lambda o: (function({}, x, w, o)[0] ** 2).sum())
    direction = normal(rng, *offset.shape)
    slope = float((jax.grad(loss)(offset) * direction).sum())
    assert slope == pytest.approx(
        float(loss(offset + 1e-3 * direction) - loss(offset - 1e-3 * direction)) / 2e-3, rel=2e-2
    )


# sizes that are not known


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_all_sizes_of_images_may_be_symbolic(op: str, auto_pad: str) -> None:
    rng = np.random.default_rng(0)
    x, w, bias = normal(rng, 3, 4, 7, 10), normal(rng, 4, 2, 3, 3), normal(rng, 4)
    attrs = {"strides": [2, 3], "auto_pad": auto_pad, "group": 2}
    graph = graph_of(op, [x, w, bias], attrs, {1, 2}, {0: ("n", 4, "h", "w")})
    symbolic = export.symbolic_shape("n, 4, h, w", constraints=["h >= 3", "w >= 3"])
    call = exported(to_jax(graph), symbolic)
    for image in (x, x[:1, :, :6, :9], normal(rng, 2, 4, 4, 8)):
        want = run("onnxruntime", op, [image, w, bias], attrs)
        np.testing.assert_allclose(call(image)[0], want, rtol=1e-4, atol=1e-4)


def test_a_given_output_shape_goes_with_symbolic_images() -> None:
    rng = np.random.default_rng(0)
    x, w = normal(rng, 2, 2, 4, 4), normal(rng, 2, 3, 3, 3)
    attrs = {"strides": [2, 2], "output_shape": [8, 9]}
    symbolic = export.symbolic_shape("n, 2, h, w", constraints=["h >= 2", "w >= 2"])
    call = exported(to_jax(graph_of("ConvTranspose", [x, w], attrs, {1}, {0: ("n", 2, "h", "w")})), symbolic)
    want = run("onnxruntime", "ConvTranspose", [x, w], attrs)
    np.testing.assert_allclose(call(x)[0], want, rtol=1e-4, atol=1e-5)


def test_deformed_and_added_blocks_with_symbolic_batches() -> None:
    rng = np.random.default_rng(0)
    x, w, offset = normal(rng, 2, 2, 5, 5), normal(rng, 3, 2, 2, 2), normal(rng, 2, 8, 4, 4)
    (n,) = export.symbolic_shape("n")
    shapes = {0: ("n", 2, 5, 5), 2: ("n", 8, 4, 4)}
    call = exported(to_jax(graph_of("DeformConv", [x, w, offset], {}, {1}, shapes)), (n, 2, 5, 5), (n, 8, 4, 4))
    np.testing.assert_allclose(
        call(x, offset)[0], run("reference", "DeformConv", [x, w, offset], {}), rtol=1e-3, atol=1e-4
    )
    columns = normal(rng, 2, 12, 4)
    graph = graph_of("Col2Im", [columns, np.array([3, 3]), np.array([2, 2])], {}, {1, 2}, {0: ("n", 12, 4)})
    want = functional.fold(torch.from_numpy(columns), (3, 3), (2, 2)).numpy()
    np.testing.assert_allclose(exported(to_jax(graph), (n, 12, 4))(columns)[0], want, rtol=1e-5, atol=1e-5)


# types and edges


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "DeformConv"])
def test_types_are_kept(op: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    operands = [normal(rng, 1, 2, 6, 6), normal(rng, 2, 2, 3, 3)]
    if op == "DeformConv":
        operands.append(normal(rng, 1, 18, 4, 4))
    narrow = [o.astype(dtype) for o in operands]
    got = run("xla", op, narrow, {})
    want = run("xla", op, [o.astype(np.float32) for o in narrow], {})
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == np.float64 else 4 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=8 * tolerance)


def test_no_images_give_no_results() -> None:
    x, w = np.zeros((0, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
    assert run("xla", "Conv", [x, w], {}).shape == (0, 3, 4, 4)
    assert run("xla", "ConvTranspose", [x, w.swapaxes(0, 1)], {}).shape == (0, 3, 8, 8)


def test_the_function_maps_over_another_dimension() -> None:
    rng = np.random.default_rng(0)
    x, w = normal(rng, 3, 2, 2, 6, 6), normal(rng, 3, 2, 3, 3)
    function = to_jax(graph_of("Conv", [x[0], w], {"auto_pad": "SAME_UPPER"}, {1}))
    mapped = jax.vmap(lambda image: function(function.params, image)[0])(x)
    for image, y in zip(x, mapped, strict=True):
        want = run("onnxruntime", "Conv", [image, w], {"auto_pad": "SAME_UPPER"})
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
