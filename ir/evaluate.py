"""Evaluation of common operators with numpy: what constant folding computes without starting a runtime.

`evaluate` knows the operators that exporters put around weights and shapes, with ONNX semantics at the canonical opset;
for all others it returns None, and the caller asks a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graph import Node
from .quantization import FAKE_QUANTIZE
from .quantization import evaluate as _fake_quantize
from .types import DType

__all__ = ["can_evaluate", "evaluate"]

Array = np.ndarray
Arrays = Sequence[Any]  # arrays, None where an operand is left out
_TABLE: dict[str, Callable[[Node, Arrays], Any]] = {}


def _op(*names: str) -> Callable[[Callable[[Node, Arrays], Any]], Callable[[Node, Arrays], Any]]:
    def register(function: Callable[[Node, Arrays], Any]) -> Callable[[Node, Arrays], Any]:
        for name in names:
            _TABLE[name] = function
        return function

    return register


def can_evaluate(op: str) -> bool:
    """Whether `evaluate` knows ``op``."""
    return op in _TABLE


def evaluate(node: Node, operands: Arrays) -> list[Array] | None:
    """The results of ``node`` for concrete ``operands``; None for operators that are not in the table.

    Raises:
        ValueError, IndexError, TypeError: the operands do not fit the operator.
    """
    function = _TABLE.get(node.op)
    if function is None:
        return None
    with np.errstate(all="ignore"):
        result = function(node, operands)
    results = result if isinstance(result, list) else [result]
    return [np.asarray(r) for r in results]


def _operand(operands: Arrays, i: int) -> Any:
    return operands[i] if i < len(operands) else None


def _ints(operands: Arrays, i: int) -> list[int] | None:
    found = _operand(operands, i)
    return None if found is None else [int(v) for v in found.ravel()]


def _unary(function: Callable[[Array], Array]) -> Callable[[Node, Arrays], Array]:
    return lambda node, operands: function(operands[0]).astype(operands[0].dtype, copy=False)


for _name, _function in {
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sign": np.sign,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tanh": np.tanh,
    "Reciprocal": np.reciprocal,
    "Not": np.logical_not,
    "BitwiseNot": np.invert,
    "Identity": lambda x: x,
}.items():
    _TABLE[_name] = _unary(_function)  # type: ignore[arg-type]


def _binary(function: Callable[[Array, Array], Array]) -> Callable[[Node, Arrays], Array]:
    return lambda node, operands: function(operands[0], operands[1])


for _name, _function in {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "MatMul": np.matmul,
}.items():
    _TABLE[_name] = _binary(_function)


@_op("Div")
def _div(node: Node, operands: Arrays) -> Array:
    a, b = operands
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("integer division by zero")
    quotient = a // b  # rounds down; ONNX truncates
    return np.asarray(np.where((a % b != 0) & ((a < 0) != (b < 0)), quotient + 1, quotient)).astype(a.dtype)


@_op("Mod")
def _mod(node: Node, operands: Arrays) -> Array:
    a, b = operands
    if a.dtype.kind in "iu" and not np.all(b):
        raise ValueError("modulo zero")
    return np.asarray(np.fmod(a, b) if node.attrs.get("fmod", 0) else np.mod(a, b))


@_op("Pow")
def _pow(node: Node, operands: Arrays) -> Array:
    base, exponent = operands
    if base.dtype.kind in "iu" and np.any(exponent < 0):
        raise ValueError("negative power of an integer")
    return np.asarray(np.power(base, exponent)).astype(base.dtype)


@_op("Min", "Max", "Sum")
def _variadic(node: Node, operands: Arrays) -> Array:
    function = {"Min": np.minimum, "Max": np.maximum, "Sum": np.add}[node.op]
    result = operands[0]
    for operand in operands[1:]:
        result = function(result, operand)
    return np.asarray(result)


@_op("Where")
def _where(node: Node, operands: Arrays) -> Array:
    return np.asarray(np.where(operands[0], operands[1], operands[2]))


@_op("Clip")
def _clip(node: Node, operands: Arrays) -> Array:
    result, low, high = operands[0], _operand(operands, 1), _operand(operands, 2)
    if low is not None:
        result = np.maximum(result, low)
    return np.asarray(result if high is None else np.minimum(result, high))


@_op("Cast")
def _cast(node: Node, operands: Arrays) -> Array | None:
    return _convert(operands[0], DType(node.attrs["to"]))


@_op("CastLike")
def _cast_like(node: Node, operands: Arrays) -> Array:
    return _convert(operands[0], node.results[0].dtype)


def _convert(x: Array, to: DType) -> Array:
    target = to.numpy
    if x.dtype == target:
        return x
    if DType.STRING in (to, DType.from_numpy(x.dtype)) or to.bits < 8 or "FLOAT8" in to.name:
        raise ValueError("conversions of strings and of narrow types are left to a backend")
    if x.dtype.kind == "f" and target.kind in "iu" and not np.all(np.isfinite(x) & (np.abs(x) < 2.0 ** (to.bits - 1))):
        raise ValueError("out of range: the result is the implementation's choice")
    return x.astype(target)


@_op("Transpose")
def _transpose(node: Node, operands: Arrays) -> Array:
    return np.transpose(operands[0], node.attrs.get("perm"))


@_op("Reshape")
def _reshape(node: Node, operands: Arrays) -> Array:
    x = operands[0]
    target = [int(d) for d in operands[1]]
    if not node.attrs.get("allowzero", 0):
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return np.asarray(x.reshape(target))


@_op("Flatten")
def _flatten(node: Node, operands: Arrays) -> Array:
    x, axis = operands[0], node.attrs.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return np.asarray(x.reshape(rows, x.size // rows if rows else int(np.prod(x.shape[axis:], dtype=np.int64))))


@_op("Squeeze")
def _squeeze(node: Node, operands: Arrays) -> Array:
    axes = _ints(operands, 1)
    return np.squeeze(operands[0], None if axes is None else tuple(axes))


@_op("Unsqueeze")
def _unsqueeze(node: Node, operands: Arrays) -> Array:
    return np.expand_dims(operands[0], tuple(_ints(operands, 1) or ()))


@_op("Concat")
def _concat(node: Node, operands: Arrays) -> Array:
    return np.concatenate(list(operands), axis=node.attrs["axis"])


@_op("Shape")
def _shape(node: Node, operands: Arrays) -> Array:
    return np.array(operands[0].shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64)


@_op("Size")
def _size(node: Node, operands: Arrays) -> Array:
    return np.array(operands[0].size, np.int64)


@_op("Gather")
def _gather(node: Node, operands: Arrays) -> Array:
    return np.take(operands[0], operands[1], axis=node.attrs.get("axis", 0))


@_op("GatherElements")
def _gather_elements(node: Node, operands: Arrays) -> Array:
    x, indices = operands
    axis = node.attrs.get("axis", 0) % x.ndim
    x = x[tuple(slice(None) if d == axis else slice(n) for d, n in enumerate(indices.shape))]
    return np.take_along_axis(x, indices, axis=axis)


@_op("GatherND")
def _gather_nd(node: Node, operands: Arrays) -> Array:
    x, indices = operands
    if node.attrs.get("batch_dims", 0):
        raise ValueError("batched GatherND is left to a backend")
    return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])


@_op("Slice")
def _slice(node: Node, operands: Arrays) -> Array:
    x = operands[0]
    starts, ends = _ints(operands, 1) or [], _ints(operands, 2) or []
    axes = _ints(operands, 3) or list(range(len(starts)))
    steps = _ints(operands, 4) or [1] * len(starts)
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(*clamp_slice(start, end, step, x.shape[axis]), step)
    return np.asarray(x[tuple(index)])


def clamp_slice(start: int, end: int, step: int, dim: int) -> tuple[int, int | None]:
    """ONNX's ``start`` and ``end`` of a slice over ``dim`` elements as Python's (None: through the first element)."""
    if step == 0:
        raise ValueError("a slice's step is 0")
    start += dim if start < 0 else 0
    end += dim if end < 0 else 0
    if step > 0:
        return min(max(start, 0), dim), min(max(end, 0), dim)
    end = min(max(end, -1), dim)
    return min(max(start, 0), dim - 1), None if end < 0 else end


@_op("Split")
def _split(node: Node, operands: Arrays) -> list[Array]:
    x, sizes, axis = operands[0], _ints(operands, 1), node.attrs.get("axis", 0)
    if sizes is None:
        n = node.attrs.get("num_outputs", len(node.results))
        step = -(-x.shape[axis] // n)
        sizes = [step] * (n - 1) + [x.shape[axis] - step * (n - 1)]
    return [np.asarray(part) for part in np.split(x, np.cumsum(sizes)[:-1], axis=axis)]


@_op("Constant")
def _constant(node: Node, operands: Arrays) -> Array:
    """A sparse tensor; others are no nodes."""
    from .convert.sparse import to_dense

    return to_dense(node.attrs["sparse_value"])


@_op("ConstantOfShape")
def _constant_of_shape(node: Node, operands: Arrays) -> Array:
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.broadcast_to(fill.reshape(()), tuple(int(d) for d in operands[0]))


@_op("Expand")
def _expand(node: Node, operands: Arrays) -> Array:
    x = operands[0]
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(d) for d in operands[1])))


@_op("Tile")
def _tile(node: Node, operands: Arrays) -> Array:
    return np.tile(operands[0], [int(r) for r in operands[1]])


@_op("Range")
def _range(node: Node, operands: Arrays) -> Array:
    start, limit, delta = (np.asarray(o).reshape(()) for o in operands)
    if start.dtype.itemsize == 2 and start.dtype.kind not in "iu":
        raise ValueError("numbers of 16 bits are counted in wider ones, which is left to a backend")
    count = max(int(np.ceil((limit.astype(np.float64) - start) / delta)), 0)
    return np.asarray(start + np.arange(count).astype(start.dtype) * delta).astype(start.dtype)


@_op("Pad")
def _pad(node: Node, operands: Arrays) -> Array:
    x, pads, value, axes = operands[0], _ints(operands, 1) or [], _operand(operands, 2), _ints(operands, 3)
    mode = node.attrs.get("mode", "constant")
    if mode != "constant" or any(p < 0 for p in pads):
        raise ValueError("only constant, growing pads")
    widths = [(0, 0)] * x.ndim
    axes = list(range(x.ndim)) if axes is None else axes
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[i + len(axes)])
    return np.pad(x, widths, constant_values=0 if value is None else value.reshape(())[()])


@_op("CumSum")
def _cum_sum(node: Node, operands: Arrays) -> Array:
    if node.attrs.get("exclusive", 0) or node.attrs.get("reverse", 0):
        raise ValueError("only plain sums")
    return np.cumsum(operands[0], axis=int(operands[1].ravel()[0]), dtype=operands[0].dtype)


@_op("Trilu")
def _trilu(node: Node, operands: Arrays) -> Array:
    k = _operand(operands, 1)
    return (np.triu if node.attrs.get("upper", 1) else np.tril)(operands[0], 0 if k is None else int(k.ravel()[0]))


@_op("ReduceSum", "ReduceProd", "ReduceMin", "ReduceMax", "ReduceMean")
def _reduce(node: Node, operands: Arrays) -> Array:
    x, axes = operands[0], _ints(operands, 1)
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return np.asarray(x)
    if node.op == "ReduceMean" and x.dtype.kind != "f":
        raise ValueError("integer means are left to a backend")
    function: Any = {
        "ReduceSum": np.sum,
        "ReduceProd": np.prod,
        "ReduceMin": np.min,
        "ReduceMax": np.max,
        "ReduceMean": np.mean,
    }[node.op]
    return np.asarray(
        function(x, axis=tuple(axes) if axes else None, keepdims=bool(node.attrs.get("keepdims", 1)))
    ).astype(x.dtype)


@_op("Sigmoid")
def _sigmoid(node: Node, operands: Arrays) -> Array:
    x = operands[0]
    return np.asarray(1 / (1 + np.exp(-x))).astype(x.dtype)


@_op("IsNaN")
def _is_nan(node: Node, operands: Arrays) -> Array:
    return np.isnan(operands[0])


_TABLE[FAKE_QUANTIZE] = _fake_quantize  # type: ignore[assignment]
