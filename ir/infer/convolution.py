"""Convolutions, pooling and other operators with sliding windows."""

from __future__ import annotations

from ..dims import Dim, dim_floordiv, dim_min, fresh
from ..graph import Node
from ..types import DType, TensorType, Type
from .common import (
    FLOATS,
    Shape,
    attr_int,
    attr_ints,
    ceil_div,
    check_dtype,
    common_dtype,
    dtypes,
    fresh_dims,
    operand,
    operand_type,
    optional_type,
    same_dim,
)
from .engine import IllTyped, content_of, scalar_content, typing

_POOLABLE = dtypes("FLOAT16 FLOAT DOUBLE BFLOAT16 INT8 UINT8")


@typing("Conv")
def _conv(node: Node) -> Type:
    x, w, bias = operand_type(node, 0), operand_type(node, 1), optional_type(node, 2)
    dtype = common_dtype(node, (x, w) if bias is None else (x, w, bias), FLOATS)
    return TensorType(dtype, _conv_shape(node, x.shape, w.shape, bias))


@typing("ConvInteger")
def _conv_integer(node: Node) -> Type:
    x, w = operand_type(node, 0), operand_type(node, 1)
    return TensorType(DType.INT32, _conv_shape(node, x.shape, w.shape, None))


@typing("QLinearConv")
def _qlinear_conv(node: Node) -> Type:
    x, w, zero, bias = operand_type(node, 0), operand_type(node, 3), operand_type(node, 7), optional_type(node, 8)
    return TensorType(zero.dtype, _conv_shape(node, x.shape, w.shape, bias))


@typing("DeformConv")
def _deform_conv(node: Node) -> Type:
    x, w, offset, bias = operand_type(node, 0), operand_type(node, 1), operand_type(node, 2), optional_type(node, 3)
    dtype = common_dtype(node, (x, w, offset), FLOATS)
    return TensorType(dtype, _conv_shape(node, x.shape, w.shape, bias))


def _conv_shape(node: Node, x: Shape | None, w: Shape | None, bias: TensorType | None) -> Shape | None:
    if x is None or w is None:
        rank = _rank(node, x, w)
        if rank is None:
            return None
        batch, filters = fresh() if x is None else x[0], fresh() if w is None else w[0]
        return (batch, filters, *fresh_dims(rank - 2))
    if len(x) < 3 or len(x) != len(w):
        raise IllTyped(f"{node.op}: {list(x)} with a weight of {list(w)}")
    group = attr_int(node, "group", 1)
    if group < 1:
        raise IllTyped(f"{node.op}: group {group}")
    same_dim(node, x[1], w[1] * group)
    if type(w[0]) is int and w[0] % group:
        raise IllTyped(f"{node.op}: {w[0]} filters in {group} groups")
    _check_bias(node, bias, w[0])
    return (x[0], w[0], *_windows(node, x[2:], w[2:]))


def _rank(node: Node, x: Shape | None, w: Shape | None) -> int | None:
    known = x if x is not None else w
    if known is None:
        return None
    if len(known) < 3:
        raise IllTyped(f"{node.op}: an operand of rank {len(known)}")
    return len(known)


def _check_bias(node: Node, bias: TensorType | None, filters: Dim) -> None:
    if bias is None or bias.shape is None:
        return
    if len(bias.shape) != 1:
        raise IllTyped(f"{node.op}: a bias of rank {len(bias.shape)}")
    same_dim(node, filters, bias.shape[0])


def _kernel(node: Node, count: int, default: Shape | None) -> Shape:
    """The window's size in each of the ``count`` spatial dimensions."""
    stated = node.attrs.get("kernel_shape")
    if stated is None and default is not None:
        kernel = default
    else:
        kernel = attr_ints(node, "kernel_shape", count, 0)
        for a, b in zip(kernel, default or (), strict=False):
            same_dim(node, a, b)
    if any(type(k) is int and k <= 0 for k in kernel):
        raise IllTyped(f"{node.op}: a kernel of {list(kernel)}")
    return kernel


def _positive_ints(node: Node, name: str, count: int) -> tuple[int, ...]:
    values = attr_ints(node, name, count, 1)
    if any(v <= 0 for v in values):
        raise IllTyped(f"{node.op}: {name} {list(values)}")
    return values


def _windows(node: Node, spatial: Shape, weight: Shape | None) -> Shape:
    """The number of windows along each spatial dimension, for convolutions and (without ``weight``) pooling."""
    count = len(spatial)
    kernel = _kernel(node, count, weight)
    strides = _positive_ints(node, "strides", count)
    dilations = _positive_ints(node, "dilations", count)
    padding = node.attrs.get("auto_pad", "NOTSET")
    if padding in ("SAME_UPPER", "SAME_LOWER"):
        if weight is None and any(d > 1 for d in dilations):
            return fresh_dims(count)  # runtimes leave the dilation out of account
        return tuple([ceil_div(d, s) for d, s in zip(spatial, strides, strict=True)])
    pads = attr_ints(node, "pads", 2 * count, 0) if padding == "NOTSET" else (0,) * (2 * count)
    ceil = bool(attr_int(node, "ceil_mode", 0)) and weight is None
    dims: list[Dim] = []
    for i, d in enumerate(spatial):
        window = (kernel[i] - 1) * dilations[i] + 1
        room = d + (pads[i] + pads[i + count]) - window
        if type(room) is not int:
            dims.append(fresh() if ceil and strides[i] > 1 else dim_floordiv(room, strides[i]) + 1)
            continue
        if room < 0 and weight is not None and d != 0:
            raise IllTyped(f"{node.op}: a window of {window} in {d} elements padded to {room + window}")
        dims.append(_window_count(node, room, strides[i], ceil_at=d + pads[i] if ceil else None))
    return tuple(dims)


def _window_count(node: Node, room: int, stride: int, *, ceil_at: Dim | None) -> int:
    """The number of windows that begin in the first ``room`` elements.

    ``ceil_at`` asks for rounding up, where the last window must begin before that element.
    """
    if ceil_at is not None:
        count = -(-room // stride) + 1
        if count > 0 and (count - 1) * stride >= ceil_at:  # type: ignore[operator]
            count -= 1
    else:  # where the window does not fit, runtimes round towards zero
        count = (room // stride if room >= 0 else -(-room // stride)) + 1
    if count < 0:
        raise IllTyped(f"{node.op}: {count} windows")
    return count


@typing("ConvTranspose")
def _conv_transpose(node: Node) -> Type:
    x, w, bias = operand_type(node, 0), operand_type(node, 1), optional_type(node, 2)
    dtype = common_dtype(node, (x, w) if bias is None else (x, w, bias), FLOATS)
    if x.shape is None or w.shape is None:
        rank = _rank(node, x.shape, w.shape)
        return TensorType(dtype, None if rank is None else fresh_dims(rank))
    if len(x.shape) < 3 or len(x.shape) != len(w.shape):
        raise IllTyped(f"ConvTranspose: {list(x.shape)} with a weight of {list(w.shape)}")
    same_dim(node, x.shape[1], w.shape[0])
    group = attr_int(node, "group", 1)
    if group < 1:
        raise IllTyped(f"ConvTranspose: group {group}")
    filters = w.shape[1] * group
    _check_bias(node, bias, filters)
    return TensorType(dtype, (x.shape[0], filters, *_transposed(node, x.shape[2:], w.shape[2:])))


def _transposed(node: Node, spatial: Shape, weight: Shape) -> Shape:
    count = len(spatial)
    stated = node.attrs.get("output_shape")
    if stated is not None:
        return attr_ints(node, "output_shape", count, 0) if len(stated) == count else tuple(stated[-count:])
    kernel = _kernel(node, count, weight)
    strides = _positive_ints(node, "strides", count)
    dilations = _positive_ints(node, "dilations", count)
    extra = attr_ints(node, "output_padding", count, 0)
    padding = node.attrs.get("auto_pad", "NOTSET")
    if padding in ("SAME_UPPER", "SAME_LOWER"):
        spare = [(k - 1) * d + 1 + e - s for k, d, e, s in zip(kernel, dilations, extra, strides, strict=True)]
        return tuple([d * s + dim_min(w, 0) for d, s, w in zip(spatial, strides, spare, strict=True)])
    pads = attr_ints(node, "pads", 2 * count, 0) if padding == "NOTSET" else (0,) * (2 * count)
    dims: list[Dim] = []
    for i, d in enumerate(spatial):
        window = (kernel[i] - 1) * dilations[i] + 1
        size = (d - 1) * strides[i] + window + (extra[i] - pads[i] - pads[i + count])
        if type(size) is int and size < 0:
            raise IllTyped(f"ConvTranspose: dimension {i + 2} becomes {size}")
        dims.append(size)
    return tuple(dims)


# pooling


@typing("AveragePool", "LpPool", "MaxPool")
def _pool(node: Node) -> Type | tuple[Type, ...]:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, _POOLABLE if node.op == "MaxPool" else FLOATS)
    shape = x.shape
    if shape is not None:
        if len(shape) < 3:
            raise IllTyped(f"{node.op} of a tensor of rank {len(shape)}")
        if "kernel_shape" not in node.attrs:
            raise IllTyped(f"{node.op}: kernel_shape is missing")
        shape = shape[:2] + _windows(node, shape[2:], None)
    result = TensorType(x.dtype, shape)
    return result if len(node.results) == 1 else (result, TensorType(DType.INT64, shape))


@typing("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def _global_pool(node: Node) -> Type:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, FLOATS)
    if x.shape is None:
        return x
    if len(x.shape) < 2:
        raise IllTyped(f"{node.op} of a tensor of rank {len(x.shape)}")
    return TensorType(x.dtype, x.shape[:2] + (1,) * (len(x.shape) - 2))


@typing("MaxUnpool")
def _max_unpool(node: Node) -> Type:
    x, stated = operand_type(node, 0), optional_type(node, 2)
    if stated is not None:
        wanted = content_of(node.operands[2])
        if wanted is not None:
            return TensorType(x.dtype, wanted)
    if x.shape is None or stated is not None:
        return TensorType(x.dtype, None if x.shape is None else fresh_dims(len(x.shape)))
    count = len(x.shape) - 2
    kernel = _kernel(node, count, None)
    strides = _positive_ints(node, "strides", count)
    pads = attr_ints(node, "pads", 2 * count, 0)
    spatial = [(d - 1) * strides[i] + kernel[i] - pads[i] - pads[i + count] for i, d in enumerate(x.shape[2:])]
    return TensorType(x.dtype, (*x.shape[:2], *spatial))


@typing("STFT")
def _stft(node: Node) -> Type:
    signal, window = operand_type(node, 0), optional_type(node, 2)
    dtype = check_dtype(node, signal.dtype, FLOATS)
    step, length = scalar_content(operand(node, 1)), scalar_content(node.operand(3))
    if length is None and window is not None and window.shape is not None:
        (length,) = window.shape
    batch = fresh() if signal.shape is None else signal.shape[0]
    frames: Dim = fresh()
    bins: Dim = fresh()
    if length is not None:
        bins = dim_floordiv(length, 2) + 1 if attr_int(node, "onesided", 1) else length
        if signal.shape is not None and isinstance(step, int) and step > 0:
            frames = dim_floordiv(signal.shape[1] - length, step) + 1
    return TensorType(dtype, (batch, frames, bins, 2))
