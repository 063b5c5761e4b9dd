"""Reductions, reductions of windows (pooling), and cumulative ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ...ir.dims import product
from ...ir.graph import Value
from ...ir.types import DType, TensorType
from ..emit import Refused
from ..exact import is_number, wide
from .shapes import dilate
from .translate import Equation, Translator, rule

__all__ = ["lowest"]

_SUMS = {"reduce_sum": "ReduceSum", "reduce_prod": "ReduceProd"}
_EXTREMES = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
_OFFSETS = 64  # positions of a window up to which it may be taken apart


def lowest(dtype: DType) -> Any:
    """What the maximum of nothing is."""
    if dtype.is_floating:
        return -math.inf
    return -(1 << (dtype.bits - 1)) if dtype.is_signed else 0


def _highest(dtype: DType) -> Any:
    if dtype.is_floating:
        return math.inf
    return (1 << (dtype.bits - dtype.is_signed)) - 1


def _reduce(t: Translator, op: str, x: Value, axes: Sequence[int]) -> Value:
    if not axes:
        return x
    dtype = x.dtype
    found = getattr(t.op, op)(t.cast(x, wide(dtype)), t.integers([int(a) for a in axes]), keepdims=0)
    return t.cast(found, dtype)


@rule(*_SUMS)
def _reduction(t: Translator, eqn: Equation, x: Value) -> Any:
    return _reduce(t, _SUMS[eqn.name], x, eqn.params["axes"])


@rule(*_EXTREMES)
def _extreme(t: Translator, eqn: Equation, x: Value) -> Any:
    found = _reduce(t, _EXTREMES[eqn.name], x, eqn.params["axes"])
    if eqn.restores_nan or not _may_be_nan(t, x):
        return found
    nan = t.cast(_reduce(t, "ReduceMax", t.cast(t.op.IsNaN(x), DType.INT32), eqn.params["axes"]), DType.BOOL)
    return t.op.Where(nan, t.scalar(math.nan, x.dtype), found)


def _may_be_nan(t: Translator, x: Value) -> bool:
    """Whether NaN must be looked for: it is the extreme of whatever it is among, but not in every runtime."""
    return x.dtype.is_floating and "finite" not in t.assumed and not _is_made_of_integers(x)


def _is_made_of_integers(x: Value) -> bool:
    made = x.producer
    return made is not None and made.op == "Cast" and not made.given(0).dtype.is_floating


@rule("reduce_and", "reduce_or", "reduce_xor")
def _logical(t: Translator, eqn: Equation, x: Value) -> Any:
    if x.dtype is not DType.BOOL:
        raise Refused("a bitwise reduction of integers has no ONNX operator")
    numbers = t.cast(x, DType.INT32)
    if eqn.name == "reduce_xor":
        total = _reduce(t, "ReduceSum", numbers, eqn.params["axes"])
        return t.cast(t.op.Mod(total, t.scalar(2, DType.INT32)), DType.BOOL)
    op = "ReduceMin" if eqn.name == "reduce_and" else "ReduceMax"
    return t.cast(_reduce(t, op, numbers, eqn.params["axes"]), DType.BOOL)


@rule("argmax", "argmin")
def _arg(t: Translator, eqn: Equation, x: Value) -> Any:
    (axis,) = (int(a) for a in eqn.params["axes"])

    def first(op: str, value: Value) -> Value:  # of equal ones, as in jax
        return getattr(t.op, op)(value, axis=axis, keepdims=0)

    key = t.cast(x, DType.INT32) if x.dtype is DType.BOOL else t.cast(x, wide(x.dtype))
    found = first("ArgMax" if eqn.name == "argmax" else "ArgMin", key)
    if _may_be_nan(t, x):
        flags = t.cast(t.op.IsNaN(x), DType.INT32)
        some = t.cast(_reduce(t, "ReduceMax", flags, [axis]), DType.BOOL)
        found = t.op.Where(some, first("ArgMax", flags), found)
    return t.cast(found, eqn.out.dtype)


# windows


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _reduce_window(t: Translator, eqn: Equation, x: Value) -> Any:
    p = eqn.params
    low, high = ([int(pair[i]) for pair in p["padding"]] for i in (0, 1))
    size, strides, dilation, base = (
        [int(n) for n in p[k]] for k in ("window_dimensions", "window_strides", "window_dilation", "base_dilation")
    )
    kind = eqn.name.removeprefix("reduce_window_")
    number = {"sum": 0, "max": lowest(x.dtype), "min": _highest(x.dtype)}[kind]
    if any(b > 1 for b in base) or any(n < 0 for n in (*low, *high)):
        padding = t.scalar(number, x.dtype)
        x = dilate(t, x, [b - 1 for b in base], padding)
        x = t.pad(x, [min(n, 0) for n in low], [min(n, 0) for n in high])
        low, high = [max(n, 0) for n in low], [max(n, 0) for n in high]
    window = _Window(size, strides, dilation, low, high)
    if x.dtype.is_floating and 1 <= len(window.axes) <= 3 and x.dtype is not DType.BFLOAT16:
        return _pool(t, x, window, kind)
    return _apart(t, x, window, kind, t.scalar(number, x.dtype))


class _Window:
    """A window over all dimensions of a tensor; ``axes`` are those along which it is more than one element."""

    def __init__(self, size: list[int], strides: list[int], dilation: list[int], low: list[int], high: list[int]):
        self.size, self.strides, self.dilation, self.low, self.high = size, strides, dilation, low, high
        plain = zip(size, strides, low, high, strict=True)
        self.axes = [a for a, values in enumerate(plain) if values != (1, 1, 0, 0)]

    @property
    def count(self) -> int:
        """The number of elements in the window."""
        return math.prod(self.size)


def _pool(t: Translator, x: Value, w: _Window, kind: str) -> Value:
    """MaxPool or AveragePool, over the last dimensions."""
    shape = x.shape or ()
    others = [a for a in range(len(shape)) if a not in w.axes]
    order = [*others, *w.axes]
    moved = t.transpose(x, order)
    if len(others) != 2:  # an image of channels
        moved = t.reshape(moved, [1, product(shape[a] for a in others), *(shape[a] for a in w.axes)])
    low, high = [w.low[a] for a in w.axes], [w.high[a] for a in w.axes]
    reach = [w.dilation[a] * (w.size[a] - 1) + 1 for a in w.axes]
    if any(n >= k for n, k in zip((*low, *high), (*reach, *reach), strict=True)):
        number = {"sum": 0.0, "max": -math.inf, "min": math.inf}[kind]
        moved = t.pad(moved, [0, 0, *low], [0, 0, *high], t.scalar(number, x.dtype))
        low = high = [0] * len(low)
    attrs: dict[str, Any] = {
        "kernel_shape": [w.size[a] for a in w.axes],
        "strides": [w.strides[a] for a in w.axes],
        "dilations": [w.dilation[a] for a in w.axes],
        "pads": [*low, *high],
    }
    if kind == "sum":
        pooled = t.op.AveragePool(moved, count_include_pad=1, **attrs)
    elif kind == "max":
        pooled = t.op.MaxPool(moved, **attrs)
    else:
        pooled = t.op.Neg(t.op.MaxPool(t.op.Neg(moved), **attrs))
    spatial = (pooled.shape or ())[2:]
    if len(others) != 2:
        pooled = t.reshape(pooled, [*(shape[a] for a in others), *spatial])
    pooled = t.transpose(pooled, sorted(range(len(order)), key=lambda i: order[i]))
    return t.op.Mul(pooled, t.scalar(w.count, x.dtype)) if kind == "sum" else pooled


def _apart(t: Translator, x: Value, w: _Window, kind: str, number: Value) -> Value:
    """The elements of the window one by one: for types that pooling does not have."""
    if w.count > _OFFSETS:
        raise Refused(f"a window of {w.count} elements of {x.dtype.text}")
    x = t.pad(x, w.low, w.high, number)
    shape = x.shape or ()
    if any(not isinstance(shape[a], int) for a in w.axes):
        raise Refused(f"a window of {x.dtype.text} over a symbolic size")
    combine = {"sum": t.op.Add, "max": t.op.Max, "min": t.op.Min}[kind]
    found: Value | None = None
    for offset in itertools.product(*(range(w.size[a]) for a in w.axes)):
        starts = [o * w.dilation[a] for o, a in zip(offset, w.axes, strict=True)]
        reach = [w.dilation[a] * (w.size[a] - 1) for a in w.axes]
        ends = [shape[a] - r + s for a, r, s in zip(w.axes, reach, starts, strict=True)]
        part = t.slice(x, w.axes, starts, ends, [w.strides[a] for a in w.axes])
        found = part if found is None else combine(found, part)
    assert found is not None
    return found


@rule("reduce_window")
def _reduce_any_window(t: Translator, eqn: Equation, x: Value, *rest: Value) -> Any:
    kind = _monoid(eqn.params["jaxpr"]) if len(eqn.outs) == 1 else None
    neutral = {"add": 0, "max": lowest(x.dtype), "min": _highest(x.dtype)}
    if kind not in neutral or not is_number(rest[0], neutral[kind]):
        raise Refused("a reduction of windows by a function of its own")
    name = f"reduce_window_{'sum' if kind == 'add' else kind}"
    return _reduce_window(t, eqn._replace(name=name), x)


@rule("reduce")
def _reduce_any(t: Translator, eqn: Equation, x: Value, *rest: Value) -> Any:
    kind = _monoid(eqn.params["jaxpr"]) if len(eqn.outs) == 1 else None
    known = {"add": "ReduceSum", "mul": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin"}
    if kind not in known or x.dtype is DType.BOOL:
        raise Refused("a reduction by a function of its own")
    combine = {"add": t.op.Add, "mul": t.op.Mul, "max": t.op.Max, "min": t.op.Min}[kind]
    return combine(_reduce(t, known[kind], x, eqn.params["dimensions"]), rest[0])


def _monoid(jaxpr: Any) -> str | None:
    """The one primitive that a function of two arguments is."""
    eqns = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return str(eqns[0].primitive.name) if len(eqns) == 1 else None


# cumulative reductions


@rule("cumsum", "cumprod")
def _cumulative(t: Translator, eqn: Equation, x: Value) -> Any:
    op = t.op.CumSum if eqn.name == "cumsum" else t.op.CumProd
    axis = t.scalar(int(eqn.params["axis"]), DType.INT64)
    reverse = int(bool(eqn.params["reverse"]))
    return t.cast(op(t.cast(x, wide(x.dtype)), axis, reverse=reverse), x.dtype)


@rule("cummax", "cummin", "cumlogsumexp")
def _scanned(t: Translator, eqn: Equation, x: Value) -> Any:
    axis, dtype = int(eqn.params["axis"]), x.dtype
    combine: Callable[[Value, Value], Value] = {
        "cummax": lambda a, b: t.op.Max(a, b),
        "cummin": lambda a, b: t.op.Min(a, b),
        "cumlogsumexp": lambda a, b: _log_add_exp(t, a, b),
    }[eqn.name]
    number = _highest(dtype) if eqn.name == "cummin" else lowest(dtype)
    rest = [d for i, d in enumerate(x.shape or ()) if i != axis]
    type_ = TensorType(dtype, tuple(rest))

    def step(carry: Value, element: Value) -> Sequence[Value]:
        total = combine(carry, element)
        return [total, total]

    body = t.nested("body", [("carry", type_), ("element", type_)], step)
    direction = [int(bool(eqn.params["reverse"]))]
    attrs = {"scan_input_axes": [axis], "scan_output_axes": [axis]}
    directions = {"scan_input_directions": direction, "scan_output_directions": direction}
    start = t.full(number, dtype, rest)
    return t.op.Scan(start, x, body=body, num_scan_inputs=1, **attrs, **directions, outputs=2)[1]


def _log_add_exp(t: Translator, a: Value, b: Value) -> Value:
    op = t.op
    top = op.Max(a, b)
    least = op.Min(a, b)
    gap = op.Where(op.Equal(top, least), t.scalar(0, a.dtype), op.Sub(least, top))  # of infinities, too
    return op.Add(top, op.Log(op.Add(t.scalar(1, a.dtype), op.Exp(gap))))
