"""Convolutions, and the convolutions that are their gradients, which compute with channels first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ....ir.dims import Dim
from ....ir.graph import Value
from ....ir.infer.engine import content_of
from ....ir.types import DType
from ...emit import Refused
from ...sizes import integer
from ..translate import Operation, Translator, rule
from ..windows import Window, is_last, over, padded, window_of

__all__ = ["convolve_kernel", "transposed_kernel"]


@rule("Conv2D", "Conv3D", "Conv")
def _conv(t: Translator, o: Operation, x: Value, kernel: Value) -> Any:
    if o.attr("batch_dims", 1) != 1:
        raise Refused("more than one batch dimension: merge them before with tf.reshape")
    return convolve_kernel(t, o, x, _kernel_first(t, kernel))


@rule("DepthwiseConv2dNative")
def _depthwise(t: Translator, o: Operation, x: Value, kernel: Value) -> Any:
    """Its kernel is [H, W, channels, times]: every channel has as many filters."""
    kernel = _depthwise_first(t, kernel)
    return convolve_kernel(t, o, x, kernel)


def convolve_kernel(t: Translator, o: Operation, x: Value, kernel: Value, bias: Value | None = None) -> Value:
    """A convolution with a kernel [out, in of a group, spatial…], and a bias [out] if ``x`` is floating-point."""
    sizes = [integer(n) for n in kernel.shape or ()]
    window = window_of(o, sizes[2:])

    def convolve(x: Value, window: Window, axes: Sequence[int]) -> Value:
        inputs = (x.shape or (0, 0))[1]
        if not isinstance(inputs, int):
            raise Refused("the number of its channels is open")
        if max(window.dilations) > 1 and window.padding((x.shape or ())[2:]) is None:
            x = padded(t, x, window, 2, t.scalar(0, x.dtype))  # runtimes leave the dilation out of account
            window = replace(window, pads=[(0, 0)] * len(window.size))
        attrs = {"group": inputs // sizes[1], "dilations": window.dilations, **window.attributes(x)}
        weight = t.squeeze(kernel, axes)
        if x.dtype.is_floating:
            return t.op.Conv(x, weight, bias, **attrs)
        wide = t.op.Conv(t.cast(x, DType.DOUBLE), t.cast(weight, DType.DOUBLE), **attrs)  # exact for int32
        return t.cast(wide, x.dtype)

    return over(t, o, x, window, convolve)


def _kernel_first(t: Translator, kernel: Value) -> Value:
    """[spatial…, in, out] as [out, in, spatial…]."""
    rank = _known(kernel)
    return t.transpose(kernel, (rank - 1, rank - 2, *range(rank - 2)))


def _depthwise_first(t: Translator, kernel: Value) -> Value:
    """[H, W, channels, times] as [channels * times, 1, H, W]."""
    _known(kernel)
    height, width, channels, times = (integer(n) for n in kernel.shape or ())
    return t.transpose(t.reshape(kernel, (height, width, 1, channels * times)), (3, 2, 0, 1))


def _known(kernel: Value) -> int:
    """The rank of a kernel; its sizes are known."""
    if kernel.shape is None or not all(isinstance(n, int) for n in kernel.shape):
        raise Refused("its kernel has an open size")
    return len(kernel.shape)


# transposed convolutions


@rule("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def _backprop(t: Translator, o: Operation, sizes: Value, kernel: Value, x: Value) -> Any:
    """Its kernel is that of the convolution: [spatial…, out of a group, in]."""
    rank = _known(kernel)
    kernel = t.transpose(kernel, (rank - 1, rank - 2, *range(rank - 2)))
    channels = _channels(o, sizes)
    group = 1 if channels is None else channels // integer((kernel.shape or ())[1])
    return transposed_kernel(t, o, x, kernel, sizes, group)


@rule("DepthwiseConv2dNativeBackpropInput")
def _depthwise_backprop(t: Translator, o: Operation, sizes: Value, kernel: Value, x: Value) -> Any:
    _known(kernel)
    return transposed_kernel(t, o, x, _depthwise_first(t, kernel), sizes, integer((kernel.shape or ())[2]))


def _channels(o: Operation, sizes: Value) -> int | None:
    """How many channels the result has, as far as it is known."""
    elements, rank = content_of(sizes) or (), len(o.out.shape or ())
    axis = rank - 1 if is_last(o) else 1
    stated = elements[axis] if len(elements) == rank else (o.out.shape or (None,) * rank)[axis]
    return stated if isinstance(stated, int) else None


def transposed_kernel(
    t: Translator, o: Operation, x: Value, kernel: Value, sizes: Value, group: int, bias: Value | None = None
) -> Value:
    """ConvTranspose to given sizes: which elements a convolution of that many would take from ``x``."""
    window = window_of(o, [integer(n) for n in (kernel.shape or ())[2:]])

    def convolve(x: Value, window: Window, axes: Sequence[int]) -> Value:
        weight = t.squeeze(kernel, axes)
        targets = _targets(t, o, sizes, axes)
        common = {"strides": window.strides, "dilations": window.dilations, "kernel_shape": window.size}
        fitted = _fitted(window, (x.shape or ())[2:], targets)
        if fitted is not None:
            return t.op.ConvTranspose(x, weight, bias, group=group, **common, **fitted)
        full = t.op.ConvTranspose(
            x, weight, bias, group=group, output_padding=[s - 1 for s in window.strides], **common
        )
        return _cropped(t, o, x, full, window, _spatial_sizes(t, o, sizes, axes))

    return over(t, o, x, window, convolve)


def _targets(t: Translator, o: Operation, sizes: Value, axes: Sequence[int]) -> list[Dim | None]:
    """The spatial sizes of the result, as far as they are known, but those of ``axes``, counted with channels first."""
    rank = len(o.out.shape or ())
    elements = content_of(sizes) or ()
    shape: list[Dim] = list(elements if len(elements) == rank else o.out.shape or ())
    spatial = shape[1:-1] if is_last(o) else shape[2:]
    if len(elements) == rank - 2:
        spatial = list(elements)
    return [None if _is_unknown(n) else n for i, n in enumerate(spatial) if i + 2 not in axes]


def _is_unknown(size: Dim) -> bool:
    return not isinstance(size, int) and size.mentions_anonymous


def _fitted(window: Window, given: Sequence[Dim], targets: Sequence[Dim | None]) -> dict[str, Any] | None:
    """The attributes for which the result has the size that is asked for; None where it is not known well enough."""
    low, high, extra = [], [], []
    for i, (n, target) in enumerate(zip(given, targets, strict=True)):
        reach, stride = window.reach(i), window.strides[i]
        rest = None if target is None else target - (n - 1) * stride - reach
        if not isinstance(rest, int):  # what is left when nothing is padded
            return None
        before, after = (0, 0) if window.pads is None else window.pads[i]
        if window.pads is None:
            total = max(-rest, 0)
            before, after = total // 2, total - total // 2
        spare = rest + before + after
        if not 0 <= spare < stride:
            raise Refused(f"its result has a size of {target}, which no such convolution maps to {n}")
        low.append(before)
        high.append(after)
        extra.append(spare)
    return {"pads": [*low, *high], "output_padding": extra if any(extra) else None}


def _spatial_sizes(t: Translator, o: Operation, sizes: Value, axes: Sequence[int]) -> Value:
    """The spatial sizes of the result as an int64 vector."""
    rank = len(o.out.shape or ())
    elements = content_of(sizes)
    start = 0 if elements is not None and len(elements) == rank - 2 else 1 if is_last(o) else 2
    kept = [start + i for i in range(rank - 2) if i + 2 not in axes]
    return t.cast(t.op.Gather(sizes, t.integers(kept)), DType.INT64)


def _cropped(t: Translator, o: Operation, x: Value, full: Value, window: Window, sizes: Value) -> Value:
    """The part of a transposed convolution without padding that has ``sizes``, which it is told when it runs."""
    count = len(window.size)
    if window.pads is not None:
        before = t.integers([low for low, _ in window.pads])
    else:
        steps = t.op.Mul(t.op.Sub(t.op.Shape(x, start=2), t.integers([1] * count)), t.integers(window.strides))
        whole = t.op.Add(steps, t.integers([window.reach(i) for i in range(count)]))
        total = t.op.Max(t.op.Sub(whole, sizes), t.integers([0] * count))
        before = t.op.Div(total, t.integers([2] * count))
    ends = t.op.Add(before, sizes)
    return t.op.Slice(full, before, ends, t.integers(range(2, 2 + count)))
