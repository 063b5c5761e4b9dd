"""Fourier transforms, windows and mel filters on XLA, against numpy and torch."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx.parser
import pytest
import torch

import planish
from planish.backends import backend
from planish.backends.xla.function import to_jax

Array = Any
rng = np.random.default_rng(5)


def graph(inputs: str, outputs: str, nodes: str) -> Any:
    return planish.load(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {nodes} }}')
    )


def transform(rank: int, attributes: str, length: int | None = None, axis: int | None = None) -> Any:
    typed = ",".join("abcdef"[:rank])
    constants, operands = "", "x"
    for name, value in (("n", length), ("axis", axis)):
        operands += f", {name}" if value is not None else ', ""'
        constants += f"{name} = Constant<value_int={value}>() " if value is not None else ""
    nodes = f"{constants} y = DFT<{attributes}>({operands})"
    return to_jax(graph(f"float[{typed}] x", f"float[{typed.upper()}] y", nodes))


def parts(y: Array) -> Array:
    return np.stack([y.real, y.imag], -1)


@pytest.mark.parametrize("length", [None, 5, 6, 12])
@pytest.mark.parametrize("axis", [1, -3])
def test_transforms_are_those_of_numpy(axis: int, length: int | None) -> None:
    x = rng.standard_normal((2, 9, 3, 2)).astype(np.float32)
    z, place = x[..., 0] + 1j * x[..., 1], 1
    (y,) = transform(4, "onesided=0", length, axis)({}, x)
    np.testing.assert_allclose(y, parts(np.fft.fft(z, length, place)), rtol=1e-4, atol=1e-5)
    (y,) = transform(4, "inverse=1", length, axis)({}, x)
    np.testing.assert_allclose(y, parts(np.fft.ifft(z, length, place)), rtol=1e-4, atol=1e-5)
    (y,) = transform(4, "onesided=1, inverse=1", length, axis)({}, x)
    np.testing.assert_allclose(y[..., 0], np.fft.irfft(z, length, place), rtol=1e-4, atol=1e-5)
    real = x[..., :1]
    (y,) = transform(4, "onesided=0", length, axis)({}, real)
    np.testing.assert_allclose(y, parts(np.fft.fft(real[..., 0], length, place)), rtol=1e-4, atol=1e-5)
    (y,) = transform(4, "onesided=1", length, axis)({}, real)
    np.testing.assert_allclose(y, parts(np.fft.rfft(real[..., 0], length, place)), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_transform_is_the_inverse_one() -> None:
    x = rng.standard_normal((1, 8, 1)).astype(np.float32)
    f = transform(3, "onesided=0", None, 1)
    gradient = jax.grad(lambda x: jnp.sum(f({}, x)[0] ** 2))(x)
    np.testing.assert_allclose(gradient, 2 * 8 * x, rtol=1e-4)  # Parseval


def test_a_symbolic_batch_is_exported() -> None:
    f = transform(3, "onesided=1", None, 1)
    (b,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(lambda x: f({}, x)[0]))(jax.ShapeDtypeStruct((b, 10, 1), np.float32))
    x = rng.standard_normal((4, 10, 1)).astype(np.float32)
    np.testing.assert_allclose(exported.call(x), parts(np.fft.rfft(x[..., 0])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("has_window", [False, True])
def test_short_time_transforms_are_those_of_torch(onesided: int, has_window: bool) -> None:
    x, window = rng.standard_normal((2, 50)).astype(np.float32), rng.random(16).astype(np.float32)
    given = "window" if has_window else '""'
    f = to_jax(
        graph(
            "float[b,t,c] x" + ", float[w] window" * has_window,
            "float[b,f,k,p] y",
            f"s = Constant<value_int=7>() n = Constant<value_int=16>() y = STFT<onesided={onesided}>(x, s, {given}, n)",
        )
    )
    (y,) = f({}, x[..., None], *((window,) if has_window else ()))
    wanted = torch.stft(
        torch.as_tensor(x),
        16,
        7,
        window=torch.as_tensor(window if has_window else np.ones(16, np.float32)),
        center=False,
        onesided=bool(onesided),
        return_complex=True,
    )
    np.testing.assert_allclose(y, parts(wanted.numpy().swapaxes(1, 2)), rtol=1e-4, atol=1e-4)


def test_halves_of_complex_signals_are_those_of_the_reference() -> None:
    g = graph("float[b,t,2] x, float[w] w", "float[b,f,k,2] y", "s = Constant<value_int=3>() y = STFT(x, s, w)")
    feeds = {"x": rng.standard_normal((2, 30, 2)).astype(np.float32), "w": rng.random(8).astype(np.float32)}
    (y,), (wanted,) = (backend(name).compile(g).run(feeds) for name in ("xla", "reference"))
    assert y.shape == (2, 8, 5, 2)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("HannWindow", torch.hann_window),
        ("HammingWindow", lambda n, periodic: torch.hamming_window(n, periodic, 25 / 46, 21 / 46)),
        ("BlackmanWindow", torch.blackman_window),
    ],
)
def test_windows_are_those_of_torch(op: str, wanted: Any, periodic: int) -> None:
    executable = backend("xla").compile(
        graph("int64 n", "double[n] y", f"y = {op}<periodic={periodic}, output_datatype=11>(n)")
    )
    for count in (2, 9, 10):
        (y,) = executable.run({"n": np.array(count)})
        np.testing.assert_allclose(y, wanted(count, periodic=bool(periodic)), rtol=1e-6, atol=1e-6)
    (y,) = executable.run({"n": np.array(1)})
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("bins", "size", "low", "high"), [(8, 16, 0.0, 8192 / 2), (20, 128, 60.0, 7000.0), (60, 32, 1.0, 900.0)]
)
def test_mel_filters_are_those_of_the_reference(bins: int, size: int, low: float, high: float) -> None:
    inputs = "int64 bins, int64 size, int64 rate, float low, float high"
    g = graph(inputs, "float[a,b] y", "y = MelWeightMatrix(bins, size, rate, low, high)")
    feeds = {"bins": np.array(bins), "size": np.array(size), "rate": np.array(16000)}
    feeds |= {"low": np.float32(low), "high": np.float32(high)}
    (y,) = backend("xla").compile(g).run(feeds)
    (wanted,) = backend("reference").compile(g).run(feeds)
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)


def test_frames_of_a_signal_of_symbolic_length() -> None:
    nodes = 's = Constant<value_int=3>() n = Constant<value_int=4>() y = STFT(x, s, "", n)'
    function = to_jax(graph("float[b,l,1] x", "float[b,f,k,2] y", nodes))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, l, 1"), np.float32)
    call = jax.export.export(jax.jit(lambda x: function({}, x)))(shape).call
    x = rng.standard_normal((2, 12, 1)).astype(np.float32)
    (y,), (wanted,) = call(x), function({}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    assert y.shape == (2, 3, 3, 2)
