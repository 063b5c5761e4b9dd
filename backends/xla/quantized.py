"""Integers that stand for numbers, and products that are computed with them.

Where quantization runs in integers (`Options.quantization`), a ``DequantizeLinear`` is not computed: its result is kept
as `Quantized`, codes with scale and zero point. A product of two of them is computed with 32-bit integers and scaled
after it; operators that only move elements move the codes; all others get the numbers.

With ``x = (qx - zx) sx`` and ``w = (qw - zw) sw``, the product over ``K`` elements is
``sx sw (qx @ qw - zx colsum(qw) - zw rowsum(qx) + K zx zw)`` (Jacob et al., 2018, equation 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ...ir.quantization import FAKE_QUANTIZE, Format, format_of
from .integers import multiply_integers
from .lowering import Call, lowers_integers
from .precision import precision_of, quotient
from .values import counted, is_known, traced

__all__ = ["Quantized", "dynamic_scale", "quantized_result", "spread"]

Array = Any


@dataclass(frozen=True)
class Quantized:
    """Numbers as integers: ``(codes - zero_point) * scale``.

    Attributes:
        codes: integers of at most eight bits.
        scale: one number, one per index of ``axis``, or one per ``block_size`` indices of it.
        zero_point: of the shape of ``scale``; None is 0.
        axis: of the scale.
        block_size: 0 for none.
        dtype: of the numbers.
    """

    codes: Array
    scale: Array
    zero_point: Array | None
    axis: int
    block_size: int
    dtype: np.dtype[Any]

    @property
    def is_per_tensor(self) -> bool:
        """Whether all elements have one scale."""
        return bool(self.scale.size == 1)

    def numbers(self) -> Array:
        """What the codes stand for."""
        wide = jnp.float64 if self.dtype == np.float64 else jnp.float32
        numbers = self.codes.astype(wide)
        if self.zero_point is not None:
            numbers = numbers - spread(self.zero_point, self.codes.shape, self.axis, self.block_size).astype(wide)
        scale = spread(self.scale, self.codes.shape, self.axis, self.block_size).astype(wide)
        return (numbers * scale).astype(self.dtype)


def spread(parameter: Array, shape: Sequence[Any], axis: int, block_size: int = 0) -> Array:
    """A scale or zero point in a shape that broadcasts to ``shape``."""
    if parameter.size == 1:
        return parameter.reshape((1,) * len(shape))
    axis = counted(axis, len(shape))
    if block_size:
        return lax.slice_in_dim(jnp.repeat(parameter, block_size, axis=axis), 0, shape[axis], axis=axis)
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def quantized_result(call: Call) -> Quantized | None:
    """The result of a node as codes with a scale, if that is what it makes: integers of eight bits at most."""
    if call.node.op == FAKE_QUANTIZE and call.operands[1:] in ([], [None], [None, None]):
        x, form = traced(call.operands[0]), format_of(call.node)
        axis, block_size = call.node.attrs.get("axis", 1), call.node.attrs.get("block_size", 0)
        if block_size != x.shape[axis % x.ndim] or form.bits > 8:
            return None
        wide = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
        scale = dynamic_scale(jnp.max(jnp.abs(wide), axis=axis, keepdims=True), form)
        codes = lax.round(quotient(wide, scale), lax.RoundingMethod.TO_NEAREST_EVEN)
        codes = jnp.clip(jnp.where(jnp.isnan(codes), 0, codes), form.low, form.high).astype(jnp.int8)
        return Quantized(codes, scale, None, axis, block_size, call.dtype())
    if call.node.op != "DequantizeLinear":
        return None
    codes, scale, zero_point = (*call.operands, None)[:3]
    codes, scale = traced(codes), scale if is_known(scale) else traced(scale)
    zero_point = zero_point if is_known(zero_point) else traced(zero_point)
    if not jnp.issubdtype(codes.dtype, jnp.integer) or jnp.iinfo(codes.dtype).bits > 8:
        return None
    return Quantized(codes, scale, zero_point, call["axis"], call["block_size"], call.dtype())


def dynamic_scale(largest: Array, form: Format) -> Array:
    """The scale that makes the largest magnitude the highest code of ``form``; 1 where all is 0."""
    scale = quotient(largest, np.asarray(form.high, largest.dtype))
    return jnp.where(scale > 0, scale, jnp.ones((), scale.dtype))


# products


@lowers_integers("MatMul")
def _matmul(call: Call, x: Any, w: Any) -> Any:
    if not isinstance(w, Quantized):
        return NotImplemented
    if not isinstance(x, Quantized):
        return _weight_only(call, x, w)
    if not _scales_rows(x) or not _scales_outputs(w) or w.codes.ndim < 2 or x.codes.ndim < 2:
        return NotImplemented
    zeros = [None if q.zero_point is None else _last(q) for q in (x, w)]
    total = multiply_integers(x.codes, w.codes, *zeros)
    rows = x.scale.reshape(()) if x.is_per_tensor else x.scale
    scale = rows.astype(jnp.float32) * w.scale.astype(jnp.float32)
    return (total.astype(jnp.float32) * scale).astype(x.dtype)


@lowers_integers("Gemm")
def _gemm(call: Call, x: Any, w: Any, bias: Any = None) -> Any:
    if not isinstance(w, Quantized) or (call["alpha"], call["beta"]) != (1.0, 1.0):
        return NotImplemented
    if call["transA"]:
        x = _transposed(x) if isinstance(x, Quantized) else x.T
    if call["transB"]:
        w = _transposed(w)
    result = _matmul(call, x, w)
    return result if result is NotImplemented or bias is None else result + _numbers(bias)


def _transposed(q: Quantized) -> Quantized:
    """A transposed matrix; parameters in blocks have its dimensions, and are transposed with it."""
    scale, zero = (
        (q.scale.T, None if q.zero_point is None else q.zero_point.T) if q.block_size else (q.scale, q.zero_point)
    )
    return replace(q, codes=q.codes.T, scale=scale, zero_point=zero, axis=1 - q.axis % 2)


def _scales_rows(x: Quantized) -> bool:
    """Whether each row of a left factor has one scale, and no zero point if there are several."""
    if x.is_per_tensor:
        return True
    return bool(
        x.block_size and x.zero_point is None and x.axis % x.codes.ndim == x.codes.ndim - 1 and x.scale.shape[-1] == 1
    )


def _scales_outputs(w: Quantized) -> bool:
    """Whether each column of a right factor has one scale."""
    return w.is_per_tensor or (not w.block_size and w.axis % w.codes.ndim == w.codes.ndim - 1)


def _weight_only(call: Call, x: Array, w: Quantized) -> Any:
    """A product of numbers with integers that are scaled after it, where each column has one scale."""
    if not _scales_outputs(w) or w.zero_point is not None or w.codes.ndim != 2:
        return NotImplemented
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    product = jnp.matmul(x, w.codes.astype(x.dtype), precision=precision_of(call), preferred_element_type=wide)
    return (product * w.scale.reshape(-1).astype(wide)).astype(x.dtype)


def _last(q: Quantized) -> Array:
    """The zero point of a factor: one number, or one per column."""
    assert q.zero_point is not None
    return q.zero_point.reshape(()) if q.is_per_tensor else q.zero_point


@lowers_integers("Conv")
def _conv(call: Call, x: Any, w: Any, bias: Any = None) -> Any:
    if not isinstance(x, Quantized) or not isinstance(w, Quantized) or not x.is_per_tensor:
        return NotImplemented
    if not w.is_per_tensor and (w.block_size or w.axis % w.codes.ndim):
        return NotImplemented
    from .ops.convolution import convolve_integers
    from .windows import window_of

    window = window_of(call, x.codes.shape[2:], w.codes.shape[2:])
    (left, left_zero), (right, right_zero) = _bytes(x), _bytes(w)
    total = convolve_integers(left, right, window, x_zero=left_zero, w_zero=right_zero, groups=call["group"])
    channels = (-1,) + (1,) * (x.codes.ndim - 2)
    scale = x.scale.reshape(()).astype(jnp.float32) * w.scale.astype(jnp.float32)
    scale = scale.reshape(channels) if scale.size > 1 else scale.reshape(())
    result = total.astype(jnp.float32) * scale
    if bias is not None:
        result = result + _numbers(bias).reshape(channels).astype(jnp.float32)
    return result.astype(x.dtype)


def _bytes(q: Quantized) -> tuple[Array, Array | None]:
    """Codes and zero point in eight bits."""
    dtype = jnp.uint8 if jnp.issubdtype(q.codes.dtype, jnp.unsignedinteger) else jnp.int8
    return q.codes.astype(dtype), None if q.zero_point is None else q.zero_point.astype(dtype)


def _numbers(value: Any) -> Array:
    return value.numbers() if isinstance(value, Quantized) else value


# operators that move or pick elements


@lowers_integers("Gather")
def _gather(call: Call, table: Any, indices: Array) -> Any:
    if not isinstance(table, Quantized):
        return NotImplemented
    axis, rank = call["axis"] % table.codes.ndim, table.codes.ndim
    codes = jnp.take(table.codes, indices, axis=axis)
    if table.is_per_tensor:
        return replace(table, codes=codes)
    per_index = not table.block_size and table.axis % rank == axis
    if not per_index and not table.block_size:  # the scaled dimension stays, behind more or fewer others
        moved = table.axis % rank
        return replace(table, codes=codes, axis=moved + (indices.ndim - 1 if moved > axis else 0)).numbers()
    if table.block_size and table.axis % rank == axis:
        return NotImplemented

    def picked(parameter: Array | None) -> Array | None:
        return None if parameter is None else jnp.take(parameter, indices, axis=axis if table.block_size else 0)

    if table.block_size:
        moved = table.axis % rank + (indices.ndim - 1 if table.axis % rank > axis else 0)
        scaled = replace(table, codes=codes, axis=moved)
        return replace(scaled, scale=picked(table.scale), zero_point=picked(table.zero_point)).numbers()
    trailing = (1,) * (rank - axis - 1)
    scale, zero = picked(table.scale), picked(table.zero_point)
    wide = codes.astype(jnp.float32)
    if zero is not None:
        wide = wide - zero.astype(jnp.float32).reshape(*zero.shape, *trailing)
    assert scale is not None
    return (wide * scale.astype(jnp.float32).reshape(*scale.shape, *trailing)).astype(table.dtype)


def _moved(call: Call, x: Any, *rest: Any) -> Any:
    """The codes, moved as the numbers would be; all have one scale."""
    if not isinstance(x, Quantized) or any(isinstance(r, Quantized) for r in rest):
        return NotImplemented
    if not x.is_per_tensor:
        if call.node.op != "Transpose" or x.block_size:
            return NotImplemented
        order = call["perm"] or tuple(range(x.codes.ndim))[::-1]
        return replace(x, codes=jnp.transpose(x.codes, order), axis=list(order).index(x.axis % x.codes.ndim))
    results = call.compute([x.codes, *rest])
    return tuple(replace(x, codes=codes) for codes in results)


lowers_integers(
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Split"),
    *("DepthToSpace", "SpaceToDepth", "Expand", "Tile"),
)(_moved)
