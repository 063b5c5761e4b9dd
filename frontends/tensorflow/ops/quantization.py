"""Simulated quantization, which becomes FakeQuantize where range and width are known.

TensorFlow rounds halves up in FakeQuantWithMinMax, FakeQuantize to even; no number but an exact half shows it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.graph import Value, constant
from ....ir.quantization import FAKE_QUANTIZE, parse_format
from ...emit import Refused
from ..layout import axis_first
from ..translate import Operation, Translator, rule

__all__: list[str] = []

Array = np.ndarray[Any, Any]


@rule("FakeQuantWithMinMaxArgs")
def _from_attributes(t: Translator, o: Operation, x: Value) -> Any:
    return _nudged(t, o, x, _number(o, "min"), _number(o, "max"), per_channel=False)


@rule("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel")
def _from_variables(t: Translator, o: Operation, x: Value, low: Value, high: Value) -> Any:
    return _nudged(t, o, x, _known(low), _known(high), per_channel=o.type.endswith("PerChannel"))


def _number(o: Operation, name: str) -> Array:
    return np.asarray(o.attr(name), np.float32)


def _known(value: Value) -> Array:
    if value.const is None:
        raise Refused("its range is computed while the model runs: let it be a constant or a variable")
    return value.const.numpy()


def _nudged(t: Translator, o: Operation, x: Value, low: Array, high: Array, *, per_channel: bool) -> Value:
    """The range is moved a little so that 0 is one of the numbers that are left."""
    bits, narrow = int(o.attr("num_bits")), bool(o.attr("narrow_range"))
    first, last = np.float32(narrow), np.float32((1 << bits) - 1)
    if not np.all(high > low):
        raise Refused("its range is empty")
    scale = ((high - low) / (last - first)).astype(np.float32)
    exact_zero = first - low / scale
    zero = np.clip(np.floor(exact_zero + np.float32(0.5)), first, last)
    middle = 1 << (bits - 1)
    signed = bool(np.all(zero == middle))
    form = f"{'' if signed else 'u'}int{bits}"
    axis = -1 if per_channel else None
    limits = ((first - zero) * scale, (last - zero) * scale) if narrow else None
    return _fake_quantize(t, x, scale, zero - middle if signed else zero, form, axis, limits)


@rule("QuantizeAndDequantize", "QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4")
def _symmetric(t: Translator, o: Operation, x: Value, *operands: Value) -> Any:
    """The range is scaled so that its ends are numbers that are left, and 0 is one always."""
    if not o.attr("range_given"):
        raise Refused("its range is that of the numbers it meets: state the range (range_given=True)")
    if o.attr("round_mode", "HALF_TO_EVEN") != "HALF_TO_EVEN":
        raise Refused("it rounds halves up: say round_mode='HALF_TO_EVEN'")
    if operands:
        low, high = _known(operands[0]), _known(operands[1])
    else:
        low, high = _number(o, "input_min"), _number(o, "input_max")
    width = o.attr("num_bits") if len(operands) < 3 else _known(operands[2]).item()
    bits, narrow, signed = int(width), bool(o.attr("narrow_range")), bool(o.attr("signed_input"))
    form = parse_format(f"{'' if signed else 'u'}int{bits}")
    least = form.low + 1 if signed and narrow else form.low
    scale = np.maximum(_step(low, least), _step(high, form.high))
    if not np.all(scale > 0):
        raise Refused("its range is empty")
    axis = int(o.attr("axis", -1))
    limits = (least * scale, form.high * scale) if least > form.low else None
    return _fake_quantize(t, x, scale, None, form.name, axis if axis >= 0 else None, limits)


def _step(end: Array, code: float) -> Array:
    """How far numbers are apart where ``code`` stands for ``end``; 0 if it cannot."""
    fits = np.asarray(end).astype(np.float64) * code > 0
    return np.where(fits, end / (code or 1), 0)


def _fake_quantize(
    t: Translator,
    x: Value,
    scale: Array,
    zero: Array | None,
    form: str,
    axis: int | None,
    limits: tuple[Array, Array] | None,
) -> Value:
    """``x`` rounded to what the format holds, within ``limits``, for all of it or for each index of ``axis``."""
    rank, first = x.rank, t.layouts.kept(x)
    if axis is not None:
        if rank is None:
            raise Refused("it has a range for each channel of a tensor whose number of dimensions is open")
        axis = axis % rank if first is None else axis_first(axis, rank)
    value = x if first is None else first
    if limits is not None:
        low, high = (constant(_spread(limit, axis, rank), x.dtype) for limit in limits)
        value = t.op.Clip(value, low, high) if axis is None else t.op.Min(t.op.Max(value, low), high)
    operands = [value, constant(np.asarray(scale).astype(x.dtype.numpy), x.dtype)]
    if zero is not None and np.any(zero):
        operands.append(constant(np.asarray(zero), parse_format(form).storage))
    attrs = {"format": form, "axis": None if axis == 1 else axis}
    result: Value = t.append(FAKE_QUANTIZE, operands, attrs, 1)[0]
    return result if first is None else t.layouts.last(result)


def _spread(limit: Array, axis: int | None, rank: int | None) -> Array:
    """Numbers for each index of ``axis``, in a shape that broadcasts."""
    limit = np.asarray(limit)
    return limit if axis is None or rank is None else limit.reshape([-1 if i == axis else 1 for i in range(rank)])
