"""Fourier transforms, window functions and mel filters.

Definitions: the ONNX operator specification: DFT-20, STFT-17, HannWindow-17, HammingWindow-17, BlackmanWindow-17 and
MelWeightMatrix-17. The last axis of a signal holds real and imaginary part, or the real part alone.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.types import DType
from ..lowering import Call, lowers
from ..precision import widened
from ..values import counted, dims, ints, larger, narrowed

Array = Any
Known = np.ndarray[Any, Any]


def _as_complex(x: Array) -> Array:
    """The signal without its last axis: complex numbers, or real ones if it has no imaginary parts."""
    x = widened(x)
    return x[..., 0] if x.shape[-1] == 1 else lax.complex(x[..., 0], x[..., 1])


def _as_parts(x: Array) -> Array:
    return jnp.stack([x.real, x.imag], -1)


def _fitted(x: Array, length: Any, axis: int) -> Array:
    """``x`` cut off, or filled up with zeros, to ``length`` elements along ``axis``."""
    edges = [(0, length - n if i == axis else 0, 0) for i, n in enumerate(x.shape)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _transformed(x: Array, length: Any, axis: int, *, onesided: bool) -> Array:
    """The discrete Fourier transform of the first ``length`` elements of ``x``, or the first half of it."""
    x = jnp.moveaxis(_fitted(x, length, axis), axis, -1)
    if jnp.iscomplexobj(x):
        y = jnp.fft.fft(x)[..., : length // 2 + 1 if onesided else length]
    else:
        y = jnp.fft.rfft(x)
        if not onesided:  # the other half mirrors this one
            y = jnp.concatenate([y, jnp.conj(y[..., (length - 1) // 2 : 0 : -1])], -1)
    return jnp.moveaxis(y, -1, axis)


@lowers("DFT", static={1, 2})
def _dft(call: Call, x: Array, length: Known | None = None, axis: Known | None = None) -> Array:
    dtype, place = x.dtype, -2 if axis is None else ints(axis)[0]
    place = counted(place, x.ndim)
    if place == x.ndim - 1:
        raise call.error("axis is the last one, which holds real and imaginary part")
    signal, inverse, onesided = _as_complex(x), call["inverse"], bool(call["onesided"])
    n = signal.shape[place]
    count = dims(length)[0] if length is not None else 2 * (n - 1) if inverse and onesided else n
    if not inverse:
        return _as_parts(_transformed(signal, count, place, onesided=onesided)).astype(dtype)
    if onesided:
        return jnp.fft.irfft(signal, n=count, axis=place)[..., None].astype(dtype)
    return _as_parts(jnp.fft.ifft(_fitted(signal, count, place), axis=place)).astype(dtype)


@lowers("STFT", static={1, 3})
def _stft(call: Call, x: Array, step: Known, window: Array = None, length: Known | None = None) -> Array:
    dtype, hop = x.dtype, ints(step)[0]
    size = dims(length)[0] if length is not None else x.shape[1] if window is None else window.shape[0]
    signal = _as_complex(x)
    count = (signal.shape[1] - size) // hop + 1
    count = count if isinstance(count, int) else larger(count, 0)
    places = lax.broadcasted_iota(jnp.int32, (count, size), 0) * hop + lax.broadcasted_iota(jnp.int32, (count, size), 1)
    frames = signal[:, places]
    if window is not None:
        frames = frames * widened(window)
    return _as_parts(_transformed(frames, size, 2, onesided=bool(call["onesided"]))).astype(dtype)


# window functions: sums of cosines


def _enter_window(op: str, coefficients: tuple[float, ...]) -> None:
    @lowers(op, static={0})
    def window(call: Call, size: Known) -> Array:
        (count,) = ints(size)
        period = count if call["periodic"] else count - 1
        turns = 2 * np.pi * np.arange(count) / max(period, 1)
        y = sum(c * np.cos(k * turns) for k, c in enumerate(coefficients)) + np.zeros(count)
        return narrowed(y.astype(DType(call["output_datatype"]).numpy))


_enter_window("HannWindow", (0.5, -0.5))
_enter_window("HammingWindow", (25 / 46, -21 / 46))
_enter_window("BlackmanWindow", (0.42, -0.5, 0.08))


@lowers("MelWeightMatrix", static={0, 1, 2, 3, 4})
def _mel_weight_matrix(call: Call, bins: Known, length: Known, rate: Known, lowest: Known, highest: Known) -> Array:
    (count,), (size,), (hertz,) = ints(bins), ints(length), ints(rate)
    low, high = (2595 * np.log10(1 + float(edge.reshape(())) / 700) for edge in (lowest, highest))
    mels = low + np.arange(count + 2) * (high - low) / (count + 2)
    edges = np.floor((size + 1) * 700 * (10 ** (mels / 2595) - 1) / hertz).astype(int)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(size // 2 + 1)[:, None]
    rising, falling = (at - left) / np.maximum(center - left, 1), (right - at) / np.maximum(right - center, 1)
    y = np.where((at >= left) & (at < center), rising, np.where((at >= center) & (at < right), falling, 0))
    y = np.where(at == center, 1, y)
    return narrowed(y.astype(DType(call["output_datatype"]).numpy))
