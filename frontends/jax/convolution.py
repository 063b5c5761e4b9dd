"""``conv_general_dilated``: Conv and ConvTranspose, whatever the order of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.graph import Value
from ...ir.types import DType
from ..emit import Refused
from ..sizes import dim_of, integer
from .elementwise import convert
from .linear import product_types
from .shapes import dilate, reverse
from .translate import Equation, Translator, rule

__all__: list[str] = []


@rule("conv_general_dilated")
def _conv(t: Translator, eqn: Equation, x: Value, kernel: Value) -> Any:
    p, result = eqn.params, eqn.out.dtype
    numbers = p["dimension_numbers"]
    pads = [[dim_of(pair[i]) for pair in p["padding"]] for i in (0, 1)]
    if not all(isinstance(n, int) for side in pads for n in side):
        raise Refused("padding by a symbolic size")
    low, high = ([integer(n) for n in side] for side in pads)
    strides, x_dilation, dilation = ([int(n) for n in p[k]] for k in ("window_strides", "lhs_dilation", "rhs_dilation"))
    groups, batch_groups = int(p["feature_group_count"]), int(p["batch_group_count"])
    x, kernel = t.transpose(x, numbers.lhs_spec), t.transpose(kernel, numbers.rhs_spec)
    if any(not isinstance(d, int) for d in kernel.shape or ()):
        raise Refused("a kernel of symbolic size")
    flat = not strides
    if flat:  # no spatial dimension: Conv wants one
        x, kernel = t.unsqueeze(x, [2]), t.unsqueeze(kernel, [2])
        strides, x_dilation, dilation, low, high = [1], [1], [1], [0], [0]
    if batch_groups > 1:
        x, groups = _batch_groups(t, x, batch_groups), batch_groups
    window = _Window(strides, dilation, low, high, groups)
    found = _convolve(t, x, kernel, window, x_dilation, result)
    if flat:
        found = t.squeeze(found, [2])
    inverse = sorted(range(len(numbers.out_spec)), key=lambda i: numbers.out_spec[i])
    return t.transpose(found, inverse)


class _Window:
    """Strides, dilation of the kernel, padding and groups of a convolution."""

    def __init__(self, strides: list[int], dilation: list[int], low: list[int], high: list[int], groups: int):
        self.strides, self.dilation, self.low, self.high, self.groups = strides, dilation, low, high, groups


def _batch_groups(t: Translator, x: Value, groups: int) -> Value:
    """Groups of images as groups of channels: ``[g*n, c, …]`` to ``[n, g*c, …]``."""
    batch, channels, *rest = x.shape or ()
    if not isinstance(batch, int):
        raise Refused("groups of a batch of symbolic size")
    x = t.reshape(x, [groups, batch // groups, channels, *rest])
    x = t.transpose(x, [1, 0, *range(2, 3 + len(rest))])
    return t.reshape(x, [batch // groups, groups * channels, *rest])


def _convolve(
    t: Translator, x: Value, kernel: Value, window: _Window, x_dilation: Sequence[int], result: DType
) -> Value:
    integer = {x.dtype, kernel.dtype} <= {DType.INT8, DType.UINT8} and result is DType.INT32
    transposed = any(d > 1 for d in x_dilation)
    if transposed and not integer and all(s == 1 for s in window.strides):
        dtype = _floating(product_types(x, kernel, result))
        return convert(t, _conv_transpose(t, t.cast(x, dtype), t.cast(kernel, dtype), window, x_dilation), result)
    if transposed:
        x = dilate(t, x, [0, 0, *(d - 1 for d in x_dilation)])
    if any(n < 0 for n in (*window.low, *window.high)):
        x = t.pad(x, [0, 0, *(min(n, 0) for n in window.low)], [0, 0, *(min(n, 0) for n in window.high)])
    attrs: dict[str, Any] = {
        "strides": window.strides,
        "dilations": window.dilation,
        "pads": [max(n, 0) for n in (*window.low, *window.high)],
        "group": window.groups,
        "kernel_shape": list((kernel.shape or ())[2:]),
    }
    if integer:
        return t.op.ConvInteger(x, kernel, **attrs)
    dtype = _floating(product_types(x, kernel, result))
    return convert(t, t.op.Conv(t.cast(x, dtype), t.cast(kernel, dtype), **attrs), result)


def _floating(dtype: DType) -> DType:
    if not dtype.is_floating:
        raise Refused("a convolution of integers other than int8 and uint8 with a result of int32")
    return dtype


def _conv_transpose(t: Translator, x: Value, kernel: Value, window: _Window, strides: Sequence[int]) -> Value:
    """A convolution of an input with gaps: ConvTranspose, whose kernel is reversed and whose padding takes away."""
    outputs, inputs, *spatial = (integer(d) for d in kernel.shape or ())
    groups = window.groups
    kernel = reverse(t, kernel, range(2, 2 + len(spatial)))
    if groups > 1:
        kernel = t.reshape(kernel, [groups, outputs // groups, inputs, *spatial])
        kernel = t.transpose(kernel, [0, 2, 1, *range(3, 3 + len(spatial))])
        kernel = t.reshape(kernel, [groups * inputs, outputs // groups, *spatial])
    else:
        kernel = t.transpose(kernel, [1, 0, *range(2, 2 + len(spatial))])
    reach = [d * (k - 1) for d, k in zip(window.dilation, spatial, strict=True)]
    low, high = ([r - n for r, n in zip(reach, side, strict=True)] for side in (window.low, window.high))
    found = t.op.ConvTranspose(
        x,
        kernel,
        strides=list(strides),
        dilations=window.dilation,
        pads=[max(n, 0) for n in (*low, *high)],
        group=groups,
        kernel_shape=spatial,
    )
    # padded further than the kernel reaches, nothing adds up
    return t.pad(found, [0, 0, *(max(-n, 0) for n in low)], [0, 0, *(max(-n, 0) for n in high)])
