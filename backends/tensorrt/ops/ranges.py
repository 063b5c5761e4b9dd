"""Numbers that no operand holds: ranges, identities, windows, and constants."""

from __future__ import annotations

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import INDICES, NUMBERS, Row
from ..sizes import iota, size_of
from ..versions import Version
from .elementwise import cast

__all__ = ["FORMS", "ROWS"]

_FLOAT = frozenset({DType.FLOAT})
_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


def _check_eye(node: Node, version: Version) -> str:
    shape = node.given(0).shape
    return "" if shape is None or all(isinstance(d, int) for d in shape) else "a size that is not known"


def _eye_like(node: Node, version: Version) -> list[Value] | None:
    x = node.given(0)
    if x.rank != 2:
        return None
    rows, columns = (op.Unsqueeze(iota(size_of(x, i)), constant([1 - i], DType.INT64)) for i in (0, 1))
    shifted = op.Add(rows, constant(node.attrs.get("k", 0), DType.INT64))
    return [cast(op.Equal(shifted, columns), node.result.dtype)]


def _window(node: Node, version: Version) -> list[Value] | None:
    """In float32, as cosines where TensorRT has no window."""
    dtype, name = node.result.dtype, node.op
    if version.number >= (10, 4) and dtype is not DType.FLOAT:
        attrs = {**node.attrs, "output_datatype": int(DType.FLOAT)}
        return [cast(make_node(name, node.operands, attrs).result, dtype)]
    size = node.given(0)
    span = cast(size, DType.FLOAT)
    if not node.attrs.get("periodic", 1):
        span = op.Max(op.Sub(span, constant(1.0, DType.FLOAT)), constant(1.0, DType.FLOAT))
    places = op.Range(*(constant(0, DType.INT64), cast(size, DType.INT64), constant(1, DType.INT64)))
    angle = op.Div(op.Mul(cast(places, DType.FLOAT), constant(2 * np.pi, DType.FLOAT)), span)
    a, b, c = _WINDOWS[name]
    result = op.Sub(constant(a, DType.FLOAT), op.Mul(constant(b, DType.FLOAT), op.Cos(angle)))
    if c:
        twice = op.Cos(op.Add(angle, angle))
        result = op.Add(result, op.Mul(constant(c, DType.FLOAT), twice))
    return [cast(result, dtype)]


def _constant_of_shape(node: Node, version: Version) -> list[Value] | None:
    """8-bit integers as int32."""
    value = node.attrs.get("value")
    if node.result.dtype is not DType.INT8 or value is None:
        return None
    return [cast(op.ConstantOfShape(node.given(0), value=value.numpy().astype(np.int32)), DType.INT8)]


ROWS: dict[str, Row] = {
    **{name: Row({"T2": _FLOAT, "T1": INDICES}, since=(10, 4)) for name in _WINDOWS},
    "Constant": Row({"T": NUMBERS | {DType.BOOL}}),
    "EyeLike": Row({"T1": NUMBERS | {DType.BOOL, DType.INT8}, "T2": NUMBERS | {DType.BOOL}}, check=_check_eye),
}

FORMS = {
    **dict.fromkeys(_WINDOWS, _window),
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
}
