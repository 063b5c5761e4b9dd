"""Pooling: the largest element, or the mean, of every window; morphology; and windows as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ir.dims import product
from ....ir.graph import Value
from ....ir.types import DType
from ...emit import Refused
from ..translate import Operation, Translator, dtype_of, rule
from ..windows import Window, first, last, over, padded, spatial, window_of

__all__: list[str] = []

_WIDER = {
    DType.INT16: DType.FLOAT,
    DType.UINT16: DType.FLOAT,
    DType.INT32: DType.DOUBLE,
    DType.UINT32: DType.DOUBLE,
}  # in which all of their numbers are exact


def _pool_window(o: Operation, size: Sequence[int], strides: Sequence[int]) -> Window:
    return window_of(o, spatial(o, "ksize", size), spatial(o, "strides", strides))


def _static_window(o: Operation) -> Window:
    return _pool_window(o, o.attr("ksize"), o.attr("strides"))


@rule("MaxPool", "MaxPool3D")
def _max_pool(t: Translator, o: Operation, x: Value) -> Any:
    return _largest(t, o, x, _static_window(o))


@rule("MaxPoolV2")
def _max_pool_v2(t: Translator, o: Operation, x: Value, size: Value, strides: Value) -> Any:
    sizes, steps = t.known(size), t.known(strides)
    if sizes is None or steps is None:
        raise Refused("the size of its windows is computed: state numbers")
    return _largest(t, o, x, _pool_window(o, sizes, steps))


def _largest(t: Translator, o: Operation, x: Value, window: Window) -> Value:
    def pool(x: Value, window: Window, axes: Sequence[int]) -> Value:
        wide, narrow = _poolable(t, x), x.dtype
        return t.cast(t.op.MaxPool(wide, **window.attributes(x)), narrow)

    return over(t, o, x, window, pool)


def _poolable(t: Translator, x: Value) -> Value:
    """``x`` in a type that MaxPool takes."""
    if x.dtype.is_floating or x.dtype in (DType.INT8, DType.UINT8):
        return x
    if x.dtype not in _WIDER:
        raise Refused(f"the largest of {x.dtype} elements: cast to float64 before")
    return t.cast(x, _WIDER[x.dtype])


@rule("MaxPoolWithArgmax")
def _max_pool_with_argmax(t: Translator, o: Operation, x: Value) -> Any:
    """Positions count through the image in TensorFlow's order, through the batch with channels first in ONNX's."""
    x = first(t, o, x)
    shape = x.shape
    if shape is None or not isinstance(shape[1], int):
        raise Refused("the number of its channels is open")
    batch, channels, *sizes = shape
    found, at = t.op.MaxPool(_poolable(t, x), **_static_window(o).attributes(x), outputs=2)
    area = t.size_scalar(product(sizes))
    channel = t.reshape(t.arange(channels), (1, channels, 1, 1))
    at = t.op.Add(t.op.Mul(t.op.Mod(at, area), t.scalar(channels, DType.INT64)), channel)
    if o.attr("include_batch_in_index"):
        image = t.op.Mul(t.arange(batch), t.op.Mul(area, t.scalar(channels, DType.INT64)))
        at = t.op.Add(at, t.reshape(image, (batch, 1, 1, 1)))
    return last(t, o, t.cast(found, x.dtype)), last(t, o, t.cast(at, dtype_of(o.tensors[1].dtype)))


@rule("AvgPool", "AvgPool3D")
def _average_pool(t: Translator, o: Operation, x: Value) -> Any:
    """Padding does not count, as in AveragePool."""

    def pool(x: Value, window: Window, axes: Sequence[int]) -> Value:
        return t.op.AveragePool(x, **window.attributes(x))

    return over(t, o, x, _static_window(o), pool)


@rule("FractionalMaxPool", "FractionalAvgPool")
def _fractional(t: Translator, o: Operation, x: Value) -> Any:
    raise Refused("its windows are chosen at random: use max_pool or avg_pool")


# windows as they are


@rule("ExtractImagePatches", "ExtractVolumePatches")
def _patches(t: Translator, o: Operation, x: Value) -> Any:
    """[batch, places…, elements of the window and channels]."""
    size, strides = ([int(n) for n in o.attr(a)] for a in ("ksizes", "strides"))
    rates = [int(n) for n in o.attr("rates", None) or [1] * len(size)]
    windows = _windows(t, o, x, size, strides, rates, t.scalar(0, x.dtype))
    batch, *rest = windows.shape or ()
    count = len(size) - 2
    return t.reshape(windows, (batch, *rest[:count], product(rest[count:])))


@rule("Dilation2D")
def _dilation(t: Translator, o: Operation, x: Value, added: Value) -> Any:
    """The largest sum of a window and numbers that are added to its elements."""
    if added.shape is None or not x.dtype.is_floating:
        raise Refused("the shape of its filter is open" if x.dtype.is_floating else "integers: cast to float before")
    height, width, _ = (int(n) for n in added.shape if isinstance(n, int))
    strides, rates = ([int(n) for n in o.attr(a)] for a in ("strides", "rates"))
    lowest = t.scalar(float("-inf"), x.dtype)
    windows = _windows(t, o, x, [1, height, width, 1], strides, rates, lowest)
    return t.op.ReduceMax(t.op.Add(windows, added), t.integers([3, 4]), keepdims=0)


def _windows(
    t: Translator,
    o: Operation,
    x: Value,
    size: Sequence[int],
    strides: Sequence[int],
    rates: Sequence[int],
    fill: Value,
) -> Value:
    """All windows: [batch, places…, elements…, channels]; attributes have a number for every dimension of ``x``."""
    window = window_of(o, size[1:-1], strides[1:-1], rates[1:-1])
    count = len(window.size)
    places = [window.places(i, n) for i, n in enumerate((x.shape or ())[1:-1])]
    x = padded(t, x, window, 1, fill)
    for i in range(count):
        starts = t.op.Mul(t.arange(places[i]), t.scalar(window.strides[i], DType.INT64))
        offsets = t.integers([k * window.dilations[i] for k in range(window.size[i])])
        x = t.op.Gather(x, t.op.Add(t.unsqueeze(starts, [1]), offsets), axis=1 + 2 * i)
    last_axis = 2 * count + 1
    return t.transpose(x, (0, *range(1, last_axis, 2), *range(2, last_axis, 2), last_axis))
