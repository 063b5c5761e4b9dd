"""Fourier transforms, as products with constant matrices, and the matrix of mel weights."""

from __future__ import annotations

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.types import Shape, TensorType, compatible
from ..legality import FLOATS, Row
from ..sizes import Size, floor_divide, iota, minus, plus, size_of
from ..versions import Version
from .elementwise import cast
from .reductions import along

__all__ = ["FORMS", "ROWS"]


def _int_of(value: Value | None) -> int | None:
    return int(value.const.numpy().item()) if value is not None and value.const is not None else None


def _declared(value: Value) -> Shape | None:
    """The shape of ``value`` in full, where the graph states it of an output."""
    graph = value.producer.graph if value.producer is not None else None
    for output, info in zip(*((graph.ret.operands, graph.output_info) if graph is not None else ((), ())), strict=True):
        if output is value and compatible(value.type, info.type) and isinstance(info.type, TensorType):
            return info.type.shape
    return value.shape


def _forward(size: int, length: int, parts: int, is_onesided: bool, sign: float = -1.0) -> np.ndarray:
    """The matrix of a transform of ``size`` elements with 1 or 2 ``parts``, padded or cut to ``length``."""
    bins = length // 2 + 1 if is_onesided else length
    angle = 2 * np.pi * ((np.arange(size)[:, None] * np.arange(bins)) % length) / length
    cos, sin = np.cos(angle), sign * np.sin(angle)
    rows = [np.stack([cos, sin], -1), np.stack([-sin, cos], -1)][:parts]
    matrix = np.stack(rows, 1)  # [size, parts, bins, 2]
    matrix[length:] = 0
    return matrix.reshape(size * parts, bins * 2)


def _inverse_real(size: int, length: int) -> np.ndarray:
    """The matrix that makes ``length`` real numbers of the first half of their transform."""
    angle = 2 * np.pi * ((np.arange(size)[:, None] * np.arange(length)) % length) / length
    weight = np.full((size, 1), 2.0)
    weight[0] = 1
    weight[length // 2 + 1 :] = 0
    if length % 2 == 0:
        weight[length // 2 : length // 2 + 1] = 1
    matrix = np.stack([weight * np.cos(angle), -weight * np.sin(angle)], 1) / length
    if length % 2 == 0:
        matrix[length // 2 : length // 2 + 1, 1] = 0
    matrix[0, 1] = 0
    return matrix.reshape(size * 2, length)


def _dft(node: Node, version: Version) -> list[Value] | None:
    x, axis = node.given(0), node.operand(2)
    if x.rank is None or x.rank < 2 or x.dtype not in FLOATS:
        return None
    if axis is None:
        axis = constant(-2, DType.INT64)
    if axis.const is not None:
        new = _transformed(node, x, _int_of(axis) or 0)
        return None if new is None else [new]
    made = [_transformed(node, x, i) for i in range(x.rank - 1)]
    declared = _declared(node.result)
    able = [m for m in made if m is not None and (declared is None or m.shape == declared)]
    shapes = {m.shape for m in able}
    if len(shapes) != 1 or (declared is None and len(able) < len(made)):
        return None
    return [able[0] if len(able) == 1 else _chosen(axis, made, able, x.rank)]


def _chosen(axis: Value, made: list[Value | None], able: list[Value], rank: int) -> Value:
    """The transform along the axis that is computed; only some have the shape that is declared."""
    return along(axis, rank, lambda i: m if i < len(made) and (m := made[i]) in able and m is not None else able[0])


def _transformed(node: Node, x: Value, axis: int) -> Value | None:
    """The transform along ``axis``; None if a size is not known."""
    assert x.shape is not None
    rank, axis = len(x.shape), axis % len(x.shape)
    size, parts = x.shape[axis], x.shape[-1]
    is_inverse, is_onesided = bool(node.attrs.get("inverse")), bool(node.attrs.get("onesided"))
    if axis == rank - 1 or not isinstance(size, int) or size == 0 or not isinstance(parts, int) or parts > 2:
        return None
    length = _int_of(node.operand(1))
    if length is None:
        if node.operand(1) is not None:
            return None
        length = 2 * (size - 1) if is_inverse and is_onesided else size
    if length < 1 or (is_inverse and is_onesided and parts == 1):
        return None
    if is_inverse and is_onesided:
        matrix, last = _inverse_real(size, length), 1
    else:
        matrix, last = _forward(size, length, parts, is_onesided, 1.0 if is_inverse else -1.0), 2
        matrix = matrix / length if is_inverse else matrix
    perm = [*(i for i in range(rank - 1) if i != axis), axis, rank - 1]
    lead = [0] * (rank - 2)
    flat = op.Reshape(op.Transpose(cast(x, DType.FLOAT), perm=perm), constant([*lead, size * parts], DType.INT64))
    product = op.MatMul(flat, constant(matrix.astype(np.float32)))
    result = op.Reshape(product, constant([*lead, matrix.shape[1] // last, last], DType.INT64))
    return cast(op.Transpose(result, perm=np.argsort(perm).tolist()), x.dtype)


# --- transforms of frames --------------------------------------------------------------------------------------------


def _check_stft(node: Node, version: Version) -> str:
    if any(o is not None and o.const is None for o in node.operands[1:]):
        return "the step, the window and the length must be constants"
    x = node.given(0)
    if x.shape is None or not all(isinstance(d, int) for d in x.shape):
        return "a signal of a length that is not known"
    return "a signal of complex numbers" if x.rank == 3 and x.shape[2] != 1 else ""


def _stft(node: Node, version: Version) -> list[Value] | None:
    x, step, window = node.given(0), node.given(1), node.operand(2)
    length = _int_of(node.operand(3))
    if length is None and window is not None and window.shape:
        length = window.shape[0] if isinstance(window.shape[0], int) else None
    if x.shape is None or length is None or x.dtype not in FLOATS:
        return None
    x = x if len(x.shape) == 3 else op.Unsqueeze(x, constant([-1], DType.INT64))
    parts = x.shape[2] if x.shape is not None else None
    places = _frames(node, x, step, length)
    if not isinstance(parts, int) or parts > 2 or places is None:
        return None
    frames = op.Gather(x, places, axis=1)  # [batch, frames, length, parts]
    if window is not None:
        frames = op.Mul(frames, op.Unsqueeze(window, constant([-1], DType.INT64)))
    matrix = _forward(length, length, parts, bool(node.attrs.get("onesided", 1)))
    flat = op.Reshape(cast(frames, DType.FLOAT), constant([0, 0, length * parts], DType.INT64))
    product = op.MatMul(flat, constant(matrix.astype(np.float32)))
    return [cast(op.Reshape(product, constant([0, 0, matrix.shape[1] // 2, 2], DType.INT64)), x.dtype)]


def _frames(node: Node, x: Value, step: Value, length: int) -> Value | None:
    """The places in the signal of the elements of each frame."""
    hop = _int_of(step)
    if hop is not None:
        count: Size = plus(floor_divide(minus(size_of(x, 1), length), hop), 1)
    else:
        declared = _declared(node.result)
        found = declared[1] if declared is not None and len(declared) == 4 else None
        if not isinstance(found, int):
            return None
        count = found
    starts = op.Mul(op.Unsqueeze(iota(count), constant([1], DType.INT64)), cast(step, DType.INT64))
    return op.Add(starts, constant(np.arange(length)))


# --- mel weights -----------------------------------------------------------------------------------------------------


def _mel_weights(node: Node, version: Version) -> list[Value] | None:
    """Triangles between the bins of the frequencies, by comparisons."""
    count, length, rate, low, high = (node.given(i) for i in range(5))
    declared = _declared(node.result) or (None, None)
    bands, lines = _int_of(count) or declared[1], _int_of(length)
    rows = declared[0] if lines is None else lines // 2 + 1
    if not isinstance(bands, int) or not isinstance(rows, int):
        return None

    def number(value: float) -> Value:
        return constant(float(value), DType.FLOAT)

    def mel(edge: Value) -> Value:
        hertz = op.Add(op.Div(cast(edge, DType.FLOAT), number(700)), number(1))
        return op.Mul(op.Log(hertz), number(2595 / np.log(10)))

    step = op.Div(op.Sub(mel(high), mel(low)), number(bands + 2))
    points = op.Add(op.Mul(constant(np.arange(bands + 2, dtype=np.float32)), step), mel(low))
    hertz = op.Mul(op.Sub(op.Exp(op.Mul(points, number(np.log(10) / 2595))), number(1)), number(700))
    above = op.Mul(op.Add(cast(length, DType.FLOAT), number(1)), hertz)
    places = op.Floor(op.Div(above, cast(rate, DType.FLOAT)))
    left, middle, right = (
        op.Slice(places, constant([i], DType.INT64), constant([i + bands], DType.INT64)) for i in range(3)
    )
    line = constant(np.arange(rows, dtype=np.float32)[:, None])
    rising = op.Div(op.Sub(line, left), op.Max(op.Sub(middle, left), number(1)))
    falling = op.Div(op.Sub(right, line), op.Max(op.Sub(right, middle), number(1)))
    beside = op.Where(op.Less(line, middle), rising, falling)
    result = op.Where(op.Equal(line, middle), number(1), op.Max(beside, number(0)))
    return [cast(result, node.result.dtype)]


ROWS: dict[str, Row] = {
    "STFT": Row({"T1": frozenset({DType.FLOAT, DType.FLOAT16})}, constants=(1, 3), check=_check_stft, since=(10, 5)),
}

FORMS = {"DFT": _dft, "MelWeightMatrix": _mel_weights, "STFT": _stft}
