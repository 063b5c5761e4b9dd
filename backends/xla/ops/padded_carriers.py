"""Operators that carry padded values on: they treat each entry by itself, or leave out what is no entry.

See `planish.backends.xla.padded`. Which operators are elementwise, the modules of their lowerings say. Definitions: the
ONNX operator specification, opset 28.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.quantization import FAKE_QUANTIZE
from ..lowering import Call, lowered_in, lowers_padded
from ..padded import Entries, Padded, front, has_entries
from ..precision import widened
from ..values import dims, from_dims, ints
from . import elementwise
from .reductions import axes_of

Array = Any
Known = np.ndarray[Any, Any]


def _values(operand: Any) -> Any:
    return operand.values if isinstance(operand, Padded) else operand


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _agreed(operands: Sequence[Any]) -> tuple[Padded, int] | None:
    """One of the padded operands and its axis, from the right, if all broadcast to it entry by entry; else None."""
    first = next(o for o in operands if isinstance(o, Padded))
    along = first.axis - first.ndim
    for operand in operands:
        if isinstance(operand, Padded):
            if not operand.has_entries_of(first) or operand.axis - operand.ndim != along:
                return None
        elif operand is not None and operand.ndim >= -along and not _is_one(operand.shape[along]):
            return None
    return first, along


def _carried(call: Call, operands: Sequence[Any], count: Array, axis: int) -> tuple[Any, ...]:
    """All results of the operator for the values of ``operands``, as entries along ``axis``, perhaps from the right."""
    results = call.compute([_values(o) for o in operands])
    return tuple(Padded(r, count, axis % r.ndim) for r in results)


# each element by itself


_ELEMENTWISE = (*sorted({*lowered_in(elementwise.__name__)} - {"Clip"}), "Cast", "BitCast")


@lowers_padded(*_ELEMENTWISE)
def _elementwise(call: Call, *operands: Any) -> Any:
    agreed = _agreed(operands)
    return NotImplemented if agreed is None else _carried(call, operands, agreed[0].count, agreed[1])


@lowers_padded("QuantizeLinear", "DequantizeLinear", FAKE_QUANTIZE)
def _quantize(call: Call, x: Any, scale: Any = None, zero_point: Any = None) -> Any:
    if not isinstance(x, Padded) or scale is None or isinstance(scale, Padded) or isinstance(zero_point, Padded):
        return NotImplemented
    axis = (1 if call["axis"] is None else call["axis"]) % x.ndim
    if scale.size != 1 and (call["block_size"] or axis == x.axis):
        return NotImplemented
    return _carried(call, (x, scale, zero_point), x.count, x.axis)


@lowers_padded("CastLike")
def _cast_like(call: Call, x: Any, like: Any) -> Any:
    if not isinstance(x, Padded):
        return call.compute([x, like.values])
    return _carried(call, (x, like), x.count, x.axis)


# operators of one value, whose entries move together


def _carries(*ops: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Enter a function that tells where the entries of the first operand are in the results; None: it mixes them."""

    def register(place: Callable[..., int | None]) -> Callable[..., int | None]:
        def compute(call: Call, x: Any, *rest: Any) -> Any:
            if not isinstance(x, Padded) or any(isinstance(o, Padded) or has_entries(o) for o in rest):
                return NotImplemented
            axis = place(call, x, *rest)
            return NotImplemented if axis is None else _carried(call, (x, *rest), x.count, axis)

        lowers_padded(*ops)(compute)
        return place

    return register


def _without(axis: int, removed: Sequence[int]) -> int:
    """Where dimension ``axis`` is without the ``removed`` ones."""
    return axis - sum(a < axis for a in removed)


def _along_other(call: Call, x: Padded) -> int | None:
    """For operators along ``axis``."""
    return None if call["axis"] % x.ndim == x.axis else x.axis


@_carries("Clip")
def _clip(call: Call, x: Padded, *limits: Array) -> int:
    return x.axis


@_carries("Transpose")
def _transpose(call: Call, x: Padded) -> int:
    order = call["perm"] or tuple(range(x.ndim))[::-1]
    return list(order).index(x.axis)


@_carries("Squeeze")
def _squeeze(call: Call, x: Padded, axes: Known | None = None) -> int | None:
    removed = [] if axes is None else [a % x.ndim for a in ints(axes)]
    return None if axes is None or x.axis in removed else _without(x.axis, removed)


@_carries("Unsqueeze")
def _unsqueeze(call: Call, x: Padded, axes: Known) -> int:
    ndim = x.ndim + axes.size
    added = {a % ndim for a in ints(axes)}
    return [i for i in range(ndim) if i not in added][x.axis]


@_carries("Split", "Hardmax", "LpNormalization", "TopK")
def _one_axis(call: Call, x: Padded, *rest: Any) -> int | None:
    return _along_other(call, x)


@_carries("ArgMax", "ArgMin")
def _arg_extreme(call: Call, x: Padded) -> int | None:
    kept = _along_other(call, x)
    return kept if kept is None or call["keepdims"] else _without(kept, [call["axis"] % x.ndim])


@_carries("CumSum", "CumProd")
def _cumulative(call: Call, x: Padded, axis: Known) -> int | None:
    return None if call["reverse"] and ints(axis)[0] % x.ndim == x.axis else x.axis


@_carries("LayerNormalization", "RMSNormalization")
def _normalization(call: Call, x: Padded, *parameters: Array) -> int | None:
    along = x.axis - x.ndim
    fit = all(p is None or p.ndim < -along or _is_one(p.shape[along]) for p in parameters)
    return x.axis if x.axis < call["axis"] % x.ndim and fit else None


@_carries("Tile")
def _tile(call: Call, x: Padded, repeats: Known) -> int | None:
    return x.axis if _is_one(dims(repeats)[x.axis]) else None


@_carries("Pad")
def _pad(call: Call, x: Padded, pads: Known, value: Array = None, axes: Known | None = None) -> int | None:
    along = list(range(x.ndim)) if axes is None else [a % x.ndim for a in ints(axes)]
    widths = [w for w, a in zip(dims(pads), along * 2, strict=True) if a == x.axis]
    return x.axis if all(isinstance(w, int) and w == 0 for w in widths) else None


@_carries("Trilu")
def _trilu(call: Call, x: Padded, k: Array = None) -> int | None:
    return x.axis if x.axis < x.ndim - 2 else None


@_carries("OneHot")
def _one_hot(call: Call, indices: Padded, depth: Known, values: Array) -> int:
    return indices.axis + (call["axis"] % (indices.ndim + 1) <= indices.axis)


@_carries(
    *("Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool", "DepthToSpace", "SpaceToDepth", "LRN"),
    *("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization", "GroupNormalization"),
)
def _batch(call: Call, x: Padded, *rest: Array) -> int | None:
    return 0 if x.axis == 0 else None


@_carries("BatchNormalization")
def _batch_normalization(call: Call, x: Padded, *rest: Array) -> int | None:
    return 0 if x.axis == 0 and not call["training_mode"] else None


@_carries("Dropout")
def _dropout(call: Call, x: Padded, ratio: Array = None, training: Array = None) -> int:
    return x.axis


@_carries("Resize")
def _resize(
    call: Call, x: Padded, roi: Array = None, scales: Known | None = None, sizes: Known | None = None
) -> int | None:
    axes = [a % x.ndim for a in call["axes"] or range(x.ndim)]
    if call["coordinate_transformation_mode"] == "tf_crop_and_resize" or scales is None or not scales.size:
        return None
    return x.axis if x.axis not in axes or scales[axes.index(x.axis)] == 1 else None


# several values


@lowers_padded("RoiAlign", "MaxRoiPool")
def _regions(call: Call, x: Any, rois: Any, batch: Any = None) -> Any:
    given = [o for o in (rois, batch) if o is not None]
    if isinstance(x, Padded) or not all(isinstance(o, Padded) and o.axis == 0 for o in given):
        return NotImplemented
    return _carried(call, call.operands, rois.count, 0) if given[-1].has_entries_of(rois) else NotImplemented


@lowers_padded("Concat")
def _concat(call: Call, *operands: Any) -> Any:
    if len(operands) == 1:
        return operands[0]
    padded = [o for o in operands if isinstance(o, Padded)]
    axis, place = call["axis"] % padded[0].ndim, padded[0].axis
    if any(o.axis != place for o in padded):
        return NotImplemented
    if axis != place:
        same = len(padded) == len(operands) and all(o.has_entries_of(padded[0]) for o in padded)
        return _carried(call, operands, padded[0].count, place) if same else NotImplemented
    (values,) = call.compute([_values(o) for o in operands])
    entries = [o.is_entry() if isinstance(o, Padded) else jnp.ones(o.shape[axis], bool) for o in operands]
    what = f"joined {[(isinstance(o, Padded), e.shape[0]) for o, e in zip(operands, entries, strict=True)]}"
    order, count = call.once(what, [o.count for o in padded], lambda: front(jnp.concatenate(entries)))
    return Padded(jnp.take(values, order, axis=axis, mode="clip"), count, axis)


@lowers_padded("MatMul")
def _matmul(call: Call, a: Any, b: Any) -> Any:
    if any(isinstance(o, Padded) and o.axis == k for o, k in ((a, a.ndim - 1), (b, max(b.ndim - 2, 0)))):
        return _contracted(call, a, b)
    along = _matmul_place(a, b)
    if along is None:
        return NotImplemented
    return _carried(call, (a, b), (a if isinstance(a, Padded) else b).count, along)


def _matmul_place(a: Any, b: Any) -> int | None:
    """Where the entries are in a product, from the right; None if it mixes them."""
    sides = [o.axis - o.ndim if isinstance(o, Padded) else None for o in (a, b)]
    if sides == [-2, None]:
        return -2 if b.ndim > 1 else -1
    if sides == [None, -1] and b.ndim > 1:
        return -1
    agreed = _agreed((a, b))
    if agreed is None or agreed[1] >= -2:
        return None
    return agreed[1] + sum(o.ndim == 1 for o in (a, b))


def _contracted(call: Call, a: Any, b: Any) -> Any:
    """A product that sums over the entries."""
    if not isinstance(a, Padded) or not isinstance(b, Padded) or not a.has_entries_of(b):
        return NotImplemented
    if a.axis != a.ndim - 1 or b.axis != max(b.ndim - 2, 0):
        return NotImplemented
    return call.compute([a.filled(0), b.filled(0)])


@lowers_padded("Gemm")
def _gemm(call: Call, a: Any, b: Any, c: Any = None) -> Any:
    if not isinstance(a, Padded) or isinstance(b, Padded) or a.axis != (1 if call["transA"] else 0):
        return NotImplemented
    rows = Padded(jnp.moveaxis(a.values, a.axis, 0), a.count, 0)
    agreed = _agreed((rows, c))
    return NotImplemented if agreed is None or agreed[1] != -2 else _carried(call, (a, b, c), a.count, 0)


# reductions


_SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
_NEUTRAL: dict[str, Callable[[np.dtype[Any]], Any]] = {
    **dict.fromkeys(_SUMS, lambda dtype: 0),
    "ReduceProd": lambda dtype: 1,
    "ReduceLogSumExp": lambda dtype: -np.inf,
    "ReduceMax": lambda dtype: _limits(dtype)[0],
    "ReduceMin": lambda dtype: _limits(dtype)[1],
}


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The lowest and the highest number, or truth value, of a type."""
    if dtype.kind == "b":
        return False, True
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
    return -np.inf, np.inf


@lowers_padded(*_NEUTRAL)
def _reduce(call: Call, x: Any, axes: Known | None = None) -> Any:
    if not isinstance(x, Padded):
        return NotImplemented
    reduced = axes_of(call, x.values, axes)
    if x.axis not in reduced:
        axis = x.axis if call["keepdims"] else _without(x.axis, reduced)
        return _carried(call, (x, axes), x.count, axis)
    filled = x.filled(_NEUTRAL[call.node.op](x.values.dtype))
    if call.node.op != "ReduceMean":
        return call.compute([filled, axes])
    wide = widened(filled)
    total = jnp.sum(wide, reduced, wide.dtype, keepdims=bool(call["keepdims"]))
    number = x.count * jnp.asarray(math.prod(x.values.shape[a] for a in reduced if a != x.axis))
    number = jnp.broadcast_to(number, total.shape).astype(total.dtype)
    return lax.div(total, number).astype(filled.dtype)  # integers are rounded towards zero


@lowers_padded("Softmax", "LogSoftmax")
def _softmax(call: Call, x: Padded) -> Any:
    is_along = call["axis"] % x.ndim == x.axis
    return _carried(call, [x.filled(-np.inf) if is_along else x], x.count, x.axis)


# shapes


@lowers_padded("Shape")
def _shape(call: Call, x: Padded) -> Known:
    sizes = [Entries(x.count, d) if i == x.axis else d for i, d in enumerate(x.values.shape)]
    return from_dims(sizes[call["start"] or 0 : call["end"]])


@lowers_padded("Size")
def _size(call: Call, x: Padded) -> Any:
    others = math.prod(d for i, d in enumerate(x.values.shape) if i != x.axis)
    entries = from_dims([Entries(x.count, x.size)]).reshape(())
    return entries if _is_one(others) else (x.count * jnp.asarray(others)).astype(call.dtype())


@lowers_padded("Reshape")
def _reshape(call: Call, x: Any, shape: Known) -> Any:
    target: list[Any] = dims(shape)
    if not isinstance(x, Padded) or (call["allowzero"] and any(map(_is_zero, target))):
        return NotImplemented
    if not call["allowzero"]:
        target = [x.values.shape[i] if _is_zero(d) and i != x.axis else d for i, d in enumerate(target)]
    return _regrouped(call, x, target)


@lowers_padded("Flatten")
def _flatten(call: Call, x: Padded) -> Any:
    axis = call["axis"] + (x.ndim if call["axis"] < 0 else 0)
    parts = x.values.shape[:axis], x.values.shape[axis:]
    place = 0 if x.axis < axis else 1
    return _regrouped(call, x, [-1 if i == place else math.prod(part) for i, part in enumerate(parts)])


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0


def _regrouped(call: Call, x: Padded, target: list[Any]) -> Any:
    """``x`` in another shape, in which its entries are a dimension of their own, or part of one, or several.

    Args:
        call: the node.
        x: the value.
        target: the shape, with the number of entries as it is (an `Entries`, or 0), or -1 for what remains.
    """
    shape = x.values.shape
    wholes = math.prod(shape[: x.axis]), math.prod(shape[x.axis + 1 :])
    open_ = [i for i, d in enumerate(target) if isinstance(d, int) and d == -1]
    kept = [i for i, d in enumerate(target) if (d.are_of(x) if isinstance(d, Entries) else _is_zero(d) and i == x.axis)]
    if not kept + open_:
        return NotImplemented
    place = (kept + open_)[0]
    sides = [target[:place], target[place + 1 :]]
    if any(isinstance(d, Entries) for side in sides for d in side):
        return NotImplemented
    for side, whole in zip(sides, wholes, strict=True):
        if kept and -1 in side:
            side[side.index(-1)] = _quotient(whole, -math.prod(side))
    left, right = (None if None in side else math.prod(side) for side in sides)
    size, count = x.size, x.count
    if right is not None and right != wholes[1] and not kept:  # several entries become one, or one becomes several
        size = _quotient(size * wholes[1], right)
        count = call.once(f"{wholes[1]} for {right}", [count], lambda: _scaled(x.count, wholes[1], right))
    elif right != wholes[1]:
        return NotImplemented
    if left != wholes[0] or size is None:
        return NotImplemented
    return Padded(x.values.reshape((*sides[0], size, *sides[1])), count, place)


def _scaled(count: Array, factor: Any, divisor: Any) -> Array:
    return count * jnp.asarray(factor, count.dtype) // jnp.asarray(divisor, count.dtype)


def _quotient(whole: Any, part: Any) -> Any:
    """How many times ``whole`` is ``part``, or None if that is no integer."""
    quotient = None if _is_zero(part) else whole // part
    return quotient if quotient is not None and quotient * part == whole else None
