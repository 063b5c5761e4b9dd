"""Pooling, where onnx.reference mixes up asymmetric pads, and SAME_LOWER with strides, and loses dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from planish.ir import Node

__all__ = ["can_pool", "pool"]

Array = np.ndarray


def can_pool(node: Node) -> bool:
    """Whether `pool` covers ``node``; the rest is left to onnx.reference."""
    if node.op == "GlobalMaxPool":
        return True
    rounds_up = node.attrs.get("ceil_mode", 0) and set(node.attrs.get("strides") or (1,)) != {1}
    return len(node.results) == 1 and (not rounds_up or node.attrs.get("auto_pad", "NOTSET") != "NOTSET")


def pool(node: Node, x: Array) -> Array:
    """MaxPool, GlobalMaxPool or AveragePool of ``x``, without indices and without rounding up.

    Raises:
        ValueError: the window does not fit.
    """
    if node.op == "GlobalMaxPool":
        return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))
    attrs = node.attrs
    kernel: tuple[int, ...] = attrs["kernel_shape"]
    rank = len(kernel)
    if x.ndim != rank + 2:
        raise ValueError("the kernel has another rank")
    strides = attrs.get("strides") or (1,) * rank
    dilations = attrs.get("dilations") or (1,) * rank
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    widths = [(0, 0), (0, 0), *_pads(node, x.shape[2:], spans, strides)]
    steps: Any = (..., *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    inner = tuple(range(-rank, 0))

    def windows(padded: Array) -> Array:
        if any(n < s for n, s in zip(padded.shape[2:], spans, strict=True)):
            raise ValueError("the window is larger than its operand")
        view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, x.ndim)))
        return np.asarray(view[steps])

    with np.errstate(all="ignore"):
        if node.op == "MaxPool":
            lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
            return np.asarray(windows(np.pad(x, widths, constant_values=lowest)).max(axis=inner))
        total = windows(np.pad(x, widths)).sum(axis=inner)
        if attrs.get("count_include_pad", 0):
            return np.asarray(total / np.prod(kernel)).astype(x.dtype)
        return np.asarray(total / windows(np.pad(np.ones(x.shape, x.dtype), widths)).sum(axis=inner)).astype(x.dtype)


def _pads(node: Node, sizes: tuple[int, ...], spans: list[int], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    rank = len(spans)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = node.attrs.get("pads") or (0,) * (2 * rank)
        return [(pads[i], pads[i + rank]) for i in range(rank)]
    if mode == "VALID":
        return [(0, 0)] * rank
    total = [max(0, (-(-n // s) - 1) * s + k - n) for n, s, k in zip(sizes, strides, spans, strict=True)]
    return [(t // 2, t - t // 2) if mode == "SAME_UPPER" else (t - t // 2, t // 2) for t in total]
