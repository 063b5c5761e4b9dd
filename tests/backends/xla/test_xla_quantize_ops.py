"""The standard's quantized operators on XLA: codes are those that exact arithmetic gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx.parser
import pytest

import planish
from planish.backends import backend
from planish.backends.xla.function import to_jax

Array = Any
rng = np.random.default_rng(3)
LIMITS = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255)}
LIMITS |= {"int16": (-32768, 32767), "uint16": (0, 65535)}


def graph(inputs: str, outputs: str, node: str) -> Any:
    names = ", ".join(o.split()[-1] for o in outputs.split(", "))
    return planish.load(
        onnx.parser.parse_model(
            f'<ir_version: 13, opset_import: ["" : 25]> g ({inputs}) => ({outputs}) {{ {names} = {node} }}'
        )
    )


def run(inputs: str, outputs: str, node: str, **feeds: Any) -> list[Array]:
    return backend("xla").compile(graph(inputs, outputs, node)).run(feeds)


def numpy_dtype(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


@pytest.mark.parametrize("name", LIMITS)
def test_quotients_are_rounded_half_to_even_before_the_zero_point_is_added(name: str) -> None:
    low, high = LIMITS[name]
    zero = np.array(1, numpy_dtype(name))
    x = np.concatenate([np.arange(-9, 10) / 2, [1e9, -1e9, np.inf, -np.inf]]).astype(np.float32)
    kind = f"{name}[]"
    (y,) = run(
        f"float[n] x, float s, {kind} z", f"{name}[n] y", "QuantizeLinear(x, s, z)", x=x, s=np.float32(1), z=zero
    )
    assert y.dtype == zero.dtype
    np.testing.assert_array_equal(y.astype(np.float64), np.clip(np.rint(x.astype(np.float64)) + 1, low, high))


def test_a_shared_divisor_is_not_replaced_by_its_reciprocal() -> None:
    scale = np.float32(0.1)
    x = ((np.arange(-120, 120) + 0.5).astype(np.float32) * scale).astype(np.float32)
    (y,) = run("float[n] x, float s", "int8[n] y", "QuantizeLinear<output_dtype=3>(x, s)", x=x, s=scale)
    np.testing.assert_array_equal(y, np.clip(np.rint(x / scale), -128, 127).astype(np.int8))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_type_of_the_scale_is_that_of_the_division(name: str) -> None:
    dtype = numpy_dtype(name)
    x, scale = (rng.standard_normal(500) * 40).astype(np.float32), np.array(0.3, dtype)
    (y,) = run(f"float[n] x, {name} s", "int8[n] y", "QuantizeLinear<output_dtype=3>(x, s)", x=x, s=scale)
    quotients = (x.astype(dtype).astype(np.float32) / scale.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(y, np.clip(np.rint(quotients.astype(np.float32)), -128, 127).astype(np.int8))


@pytest.mark.parametrize("axis", [1, -2])
def test_blocks_have_a_scale_each_the_last_one_may_be_smaller(axis: int) -> None:
    x = rng.standard_normal((2, 7, 3)).astype(np.float32)
    scale, zero = (rng.random((2, 3, 3)) + 0.1).astype(np.float32), rng.integers(-9, 9, (2, 3, 3)).astype(np.int8)
    node = f"QuantizeLinear<axis={axis}, block_size=3>(x, s, z)"
    (y,) = run("float[a,b,c] x, float[a,d,c] s, int8[a,d,c] z", "int8[a,b,c] y", node, x=x, s=scale, z=zero)
    wide, shift = (np.repeat(p, 3, 1)[:, :7] for p in (scale, zero))
    np.testing.assert_array_equal(y, np.clip(np.rint(x / wide) + shift, -128, 127).astype(np.int8))
    back = node.replace("Quantize", "Dequantize").replace("(x", "(y")
    (numbers,) = run("int8[a,b,c] y, float[a,d,c] s, int8[a,d,c] z", "float[a,b,c] x", back, y=y, s=scale, z=zero)
    np.testing.assert_array_equal(numbers, (y.astype(np.float32) - shift) * wide)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_narrow_floats_round_and_saturate(name: str) -> None:
    dtype = numpy_dtype(name)
    onnx_name = {"float4_e2m1fn": "float4e2m1", "float8_e4m3fn": "float8e4m3fn", "float8_e5m2": "float8e5m2"}[name]
    x = np.array([0, 0.3, -1.26, 2.5, 5, 1e6, -1e6], np.float32)
    kinds = {"float8e4m3fn": 17, "float8e5m2": 19, "float4e2m1": 23}
    node = f"QuantizeLinear<output_dtype={kinds[onnx_name]}>(x, s)"
    (y,) = run("float[n] x, float s", f"{onnx_name}[n] y", node, x=x, s=np.float32(0.5))
    limit = float(ml_dtypes.finfo(dtype).max)
    wanted = np.clip(x / np.float32(0.5), -limit, limit).astype(dtype)
    np.testing.assert_array_equal(y.astype(np.float32), wanted.astype(np.float32))


def test_integers_of_32_bits_have_no_zero_point_and_half_results_are_rounded_once() -> None:
    x = np.array([-70000, 3, 2049], np.int32)
    (y,) = run(
        "int32[n] x, float s",
        "float16[n] y",
        "DequantizeLinear<output_dtype=10>(x, s)",
        x=x,
        s=np.float32(0.25),
    )
    np.testing.assert_array_equal(y, (x * 0.25).astype(np.float16))


def test_a_dynamic_scale_covers_the_range_and_zero() -> None:
    for x in (rng.standard_normal((5, 6)).astype(np.float32), np.float32([2, 5]), np.float32([-3, -1]), np.zeros(3)):
        x = x.astype(np.float32)
        shape = ",".join("ab"[: x.ndim])
        y, scale, zero = run(
            f"float[{shape}] x", f"uint8[{shape}] y, float s, uint8 z", "DynamicQuantizeLinear(x)", x=x
        )
        low, high = min(0, x.min()), max(0, x.max())
        assert scale == np.float32((high - low) if high > low else 1) / np.float32(255)
        assert zero == np.rint(-low / scale)
        assert np.abs((y.astype(np.float32) - zero) * scale - x).max() <= scale * 0.5001


@pytest.mark.parametrize("kinds", [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")])
def test_products_of_codes_are_exact(kinds: tuple[str, str]) -> None:
    (left, right), size = kinds, 3000
    a = rng.integers(*(x + (x > 0) for x in LIMITS[left]), (2, 3, size)).astype(left)
    b = rng.integers(*(x + (x > 0) for x in LIMITS[right]), (size, 4)).astype(right)
    az, bz = np.array(7, left), rng.integers(0, 9, 4).astype(right)
    scales = {"s": np.float32(0.02), "t": (rng.random(4) + 0.5).astype(np.float32) / 50, "u": np.float32(0.7)}
    (y,) = run(
        f"{left}[a,b,c] a, float s, {left} az, {right}[c,d] b, float[d] t, {right}[d] bz, float u, {left} z",
        f"{left}[a,b,d] y",
        "QLinearMatMul(a, s, az, b, t, bz, u, z)",
        a=a,
        az=az,
        b=b,
        bz=bz,
        z=np.array(3, left),
        **scales,
    )
    total = (a.astype(np.int64) - int(az)) @ (b.astype(np.int64) - bz)
    factor = scales["s"] * scales["t"] / scales["u"]
    wanted = np.clip(np.rint(total.astype(np.float32) * factor) + 3, *LIMITS[left]).astype(left)
    np.testing.assert_array_equal(y, wanted)


def test_rows_and_vectors_have_their_own_scales() -> None:
    a, b = rng.integers(-9, 9, (3, 5)).astype(np.int8), rng.integers(-9, 9, 5).astype(np.int8)
    zero = np.array(0, np.int8)
    scale = np.float32([0.5, 1, 2])
    (y,) = run(
        "int8[m,k] a, float[m] s, int8[m] az, int8[k] b, float t, int8 bz, float u, int8 z",
        "int8[m] y",
        "QLinearMatMul(a, s, az, b, t, bz, u, z)",
        a=a,
        s=scale,
        az=np.int8([1, 0, -1]),
        b=b,
        bz=zero,
        z=zero,
        t=np.float32(0.25),
        u=np.float32(1),
    )
    total = (a.astype(int) - np.array([[1], [0], [-1]])) @ b.astype(int)
    np.testing.assert_array_equal(y, np.clip(np.rint(total * scale * 0.25), -128, 127).astype(np.int8))


@pytest.mark.parametrize("per_channel", [False, True])
def test_convolutions_of_codes_are_exact(per_channel: bool) -> None:
    x, w = rng.integers(0, 256, (2, 4, 6, 6)).astype(np.uint8), rng.integers(-128, 128, (6, 2, 3, 3)).astype(np.int8)
    bias, xz, y_zero = rng.integers(-999, 999, 6).astype(np.int32), np.array(130, np.uint8), np.array(99, np.uint8)
    count = "[m]" if per_channel else ""
    scale = (rng.random(6).astype(np.float32) + 0.5) / 100 if per_channel else np.float32(0.01)
    wz = rng.integers(-3, 3, 6).astype(np.int8) if per_channel else np.array(2, np.int8)
    inputs = f"uint8[n,c,h,w] x, float s, uint8 xz, int8[m,k,i,j] f, float{count} t, int8{count} fz, float u, uint8 z"
    (y,) = run(
        f"{inputs}, int32[m] b",
        "uint8[n,m,p,q] y",
        "QLinearConv<group=2, pads=[1,1,1,1], strides=[2,2]>(x, s, xz, f, t, fz, u, z, b)",
        x=x,
        s=np.float32(0.1),
        xz=xz,
        f=w,
        t=scale,
        fz=wz,
        u=np.float32(0.3),
        z=y_zero,
        b=bias,
    )
    shifted = np.pad(x.astype(np.float64) - 130, ((0, 0), (0, 0), (1, 1), (1, 1)))
    filters = w.astype(np.float64) - np.reshape(wz, (-1, 1, 1, 1))
    patches = np.lib.stride_tricks.sliding_window_view(shifted, (3, 3), (2, 3))[:, :, ::2, ::2].reshape(
        2, 2, 2, 3, 3, 3, 3
    )
    total = np.einsum("ngchwij,gmcij->ngmhw", patches, filters.reshape(2, 3, 2, 3, 3)).reshape(2, 6, 3, 3)
    total = (total + bias.reshape(-1, 1, 1)).astype(np.float32)
    factor = np.float32(0.1) * scale / np.float32(0.3)
    wanted = np.clip(np.rint(total * np.reshape(factor, (-1, 1, 1))) + 99, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(y, wanted)


def test_symbolic_rows_are_exported_and_64_bits_are_not_needed() -> None:
    assert not jax.config.jax_enable_x64
    f = to_jax(
        graph(
            "int8[m,k] a, float s, int8 az, int8[k,n] b, float[n] t, int8[n] bz, float u, int8 z",
            "int8[m,n] y",
            "QLinearMatMul(a, s, az, b, t, bz, u, z)",
        )
    )
    (m,) = jax.export.symbolic_shape("m")
    a, b = rng.integers(-9, 9, (5, 8)).astype(np.int8), rng.integers(-9, 9, (8, 3)).astype(np.int8)
    one, zeros, zero = np.float32(1), np.zeros(3, np.int8), np.int8(0)
    given = [a, one, zero, b, np.ones(3, np.float32), zeros, np.float32(4), zero]
    specs = [jax.ShapeDtypeStruct((m, 8), np.int8), *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given[1:])]
    exported = jax.export.export(jax.jit(lambda *x: f({}, *x)[0]))(*specs)
    wanted = np.clip(np.rint((a.astype(int) @ b.astype(int)) / 4), -128, 127)
    np.testing.assert_array_equal(exported.call(*map(jnp.asarray, given)), wanted)
