"""Operators that make tensors: Constant, ConstantOfShape, Range, OneHot, and those that state a shape."""

from __future__ import annotations

import math

from ..dims import Dim, dim_floordiv, dim_max, fresh, is_non_negative
from ..graph import Node, Value
from ..tensor import Tensor
from ..types import UNKNOWN, DType, TensorType, Type
from .common import (
    FLOATS,
    attr_int,
    ceil_div,
    check_dtype,
    common_dtype,
    dtype_of,
    dtypes,
    fresh_dims,
    normal_axis,
    operand,
    operand_type,
    optional_type,
    vector_length,
)
from .engine import IllTyped, content_of, scalar_content, typing

_SCALAR = TensorType(DType.INT64, ())
_RANGE = dtypes("FLOAT16 FLOAT DOUBLE BFLOAT16 INT16 INT32 INT64")
_VECTORS = tuple(TensorType(DType.INT64, (n,)) for n in range(9))


@typing("Shape")
def _shape(node: Node) -> Type:
    data = operand_type(node, 0)
    if data.shape is None:
        return TensorType(DType.INT64, (fresh(),))
    if not node.attrs:
        rank = len(data.shape)
        return _VECTORS[rank] if rank < len(_VECTORS) else TensorType(DType.INT64, (rank,))
    start, end = shape_bounds(node, len(data.shape))
    return TensorType(DType.INT64, (end - start,))


def shape_bounds(node: Node, rank: int) -> tuple[int, int]:
    """The dimensions from which to which a Shape node reads, of a tensor of ``rank``."""
    start, end = attr_int(node, "start", 0), attr_int(node, "end", rank)
    start = min(max(start + rank if start < 0 else start, 0), rank)
    end = min(max(end + rank if end < 0 else end, 0), rank)
    return start, max(start, end)


@typing("Size")
def _size(node: Node) -> Type:
    operand_type(node, 0)
    return _SCALAR


@typing("Constant")
def _constant(node: Node) -> Type:
    for name, value in node.attrs.items():
        match name:
            case "value":
                return value.type if isinstance(value, Tensor) else UNKNOWN
            case "value_float":
                return TensorType(DType.FLOAT, ())
            case "value_int":
                return _SCALAR
            case "value_string":
                return TensorType(DType.STRING, ())
            case "value_floats":
                return TensorType(DType.FLOAT, (len(value),))
            case "value_ints":
                return TensorType(DType.INT64, (len(value),))
            case "value_strings":
                return TensorType(DType.STRING, (len(value),))
    return UNKNOWN


@typing("ConstantOfShape")
def _constant_of_shape(node: Node) -> Type:
    value = node.attrs.get("value")
    if value is not None and (not isinstance(value, Tensor) or value.size != 1):
        raise IllTyped(f"ConstantOfShape: value {value!r} is not one element")
    dtype = DType.FLOAT if value is None else value.dtype
    dims = content_of(operand(node, 0))
    if dims is None:
        length = vector_length(operand(node, 0))
        return TensorType(dtype, None if length is None else fresh_dims(length))
    if any(type(d) is int and d < 0 for d in dims):
        raise IllTyped(f"ConstantOfShape: {list(dims)}")
    return TensorType(dtype, dims)


@typing("Range")
def _range(node: Node) -> Type:
    types = [operand_type(node, i) for i in range(3)]
    dtype = common_dtype(node, types, _RANGE)
    for type_ in types:
        if type_.shape and any(type(d) is int and d != 1 for d in type_.shape):
            raise IllTyped("Range: a bound that is not a scalar")
    return TensorType(dtype, (_range_length(*(operand(node, i) for i in range(3))),))


def _range_length(start: Value, limit: Value, delta: Value) -> Dim:
    first, last, step = scalar_content(start), scalar_content(limit), scalar_content(delta)
    if first is not None and last is not None and isinstance(step, int):
        if step == 0:
            raise IllTyped("Range: a delta of 0")
        span = last - first if step > 0 else first - last
        count = ceil_div(dim_max(span, 0), abs(step))
        return count if is_non_negative(count) else fresh()
    numbers = [_number(v) for v in (start, limit, delta)]
    if any(n is None for n in numbers) or not numbers[2]:
        return fresh()
    length = math.ceil((numbers[1] - numbers[0]) / numbers[2])  # type: ignore[operator]
    return max(length, 0)


def _number(value: Value) -> float | None:
    """The number that a constant of one element holds."""
    if value.const is None or value.const.size != 1:
        return None
    return float(value.const.numpy().reshape(())[()])


@typing("OneHot")
def _one_hot(node: Node) -> Type:
    indices, values = operand_type(node, 0), operand_type(node, 2)
    if values.shape is not None and len(values.shape) != 1:
        raise IllTyped(f"OneHot: values of rank {len(values.shape)}")
    depth = _depth(operand(node, 1))
    if indices.shape is None:
        return TensorType(values.dtype, None)
    axis = normal_axis(node, attr_int(node, "axis", -1), len(indices.shape) + 1)
    return TensorType(values.dtype, (*indices.shape[:axis], depth, *indices.shape[axis:]))


def _depth(value: Value) -> Dim:
    depth = scalar_content(value)
    if depth is None:
        number = _number(value)
        return fresh() if number is None else max(int(number), 0)
    if isinstance(depth, int) and depth < 0:
        raise IllTyped(f"OneHot: depth {depth}")
    return depth


@typing("Multinomial")
def _multinomial(node: Node) -> Type:
    x = operand_type(node, 0)
    dtype = dtype_of(attr_int(node, "dtype", int(DType.INT32)))
    if x.shape is not None and len(x.shape) != 2:
        raise IllTyped(f"Multinomial: input of rank {len(x.shape)}")
    batch = fresh() if x.shape is None else x.shape[0]
    return TensorType(dtype, (batch, attr_int(node, "sample_size", 1)))


# resampling


@typing("Resize")
def _resize(node: Node) -> Type:
    x = operand_type(node, 0)
    scales, sizes = optional_type(node, 2), optional_type(node, 3)
    if x.shape is None:
        return x
    rank = len(x.shape)
    axes = node.attrs.get("axes")
    axes = list(range(rank)) if axes is None else [normal_axis(node, a, rank) for a in axes]
    dims = list(x.shape)
    if sizes is not None and sizes.shape != (0,):
        wanted = content_of(node.operands[3])
        for axis, d in zip(axes, _resized(node, wanted, axes, x.shape), strict=True):
            dims[axis] = d
    elif scales is not None:
        factors = _factors(operand(node, 2))
        for i, axis in enumerate(axes):
            dims[axis] = fresh() if factors is None else _scaled(dims[axis], factors[i])
        if factors is not None and len(factors) != len(axes):
            raise IllTyped(f"Resize: {len(factors)} scales for {len(axes)} axes")
    else:
        raise IllTyped("Resize: neither scales nor sizes")
    return TensorType(x.dtype, tuple(dims))


def _resized(node: Node, wanted: tuple[Dim, ...] | None, axes: list[int], shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if wanted is None:
        return fresh_dims(len(axes))
    if len(wanted) != len(axes) or any(type(d) is int and d < 0 for d in wanted):
        raise IllTyped(f"Resize: sizes {list(wanted)} for {len(axes)} axes")
    if policy == "stretch":
        return wanted
    sizes = [shape[a] for a in axes]
    ratios = [
        new / old for new, old in zip(wanted, sizes, strict=True) if isinstance(new, int) and isinstance(old, int)
    ]
    if len(ratios) != len(axes):
        return fresh_dims(len(axes))
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return tuple([math.floor(ratio * old + 0.5) for old in sizes if isinstance(old, int)])


def _factors(value: Value) -> list[float] | None:
    t = value.const
    if t is None or t.size > 16:
        return None
    return [float(f) for f in t.numpy().ravel()]


def _scaled(d: Dim, factor: float) -> Dim:
    if type(d) is int:
        return math.floor(d * factor)
    if factor > 0 and factor == int(factor):
        return d * int(factor)
    if 0 < factor < 1 and (1 / factor).is_integer():
        return dim_floordiv(d, int(1 / factor))
    return fresh()


@typing("HannWindow", "HammingWindow", "BlackmanWindow")
def _window(node: Node) -> Type:
    dtype = dtype_of(attr_int(node, "output_datatype", int(DType.FLOAT)))
    size = scalar_content(operand(node, 0))
    return TensorType(dtype, (fresh() if size is None else size,))


@typing("AffineGrid")
def _affine_grid(node: Node) -> Type:
    theta = operand_type(node, 0)
    check_dtype(node, theta.dtype, FLOATS)
    size = content_of(operand(node, 1))
    if size is None:
        length = vector_length(operand(node, 1))
        return TensorType(theta.dtype, None if length is None else (*fresh_dims(length - 1), length - 2))
    return TensorType(theta.dtype, (size[0], *size[2:], len(size) - 2))
