"""Random numbers. TensorRT draws uniform and normal ones, in float32 and float16."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ..legality import Row
from ..versions import Version
from .elementwise import cast, scalar

__all__ = ["FORMS", "ROWS"]

_DRAWN = frozenset({DType.FLOAT, DType.FLOAT16})


def _check_like(node: Node, version: Version) -> str:
    x = node.operand(0)
    return "of no dimensions" if x is not None and x.rank == 0 else ""


def _drawn(node: Node, version: Version) -> list[Value] | None:
    """In float32, and not of a scalar."""
    x, dtype = node.operand(0), node.result.dtype
    attrs: dict[str, Any] = {**node.attrs, "dtype": int(DType.FLOAT)}
    if dtype not in (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16):
        return None
    if x is not None and x.rank == 0:
        row = make_node(node.op.removesuffix("Like"), (), {**attrs, "shape": (1,)}).result
        return [cast(op.Reshape(row, constant(np.zeros(0, np.int64))), dtype)]
    return [cast(make_node(node.op, node.operands, attrs).result, dtype)] if dtype not in _DRAWN else None


def _bernoulli(node: Node, version: Version) -> list[Value] | None:
    chance = cast(node.given(0), DType.FLOAT)
    number = op.RandomUniformLike(chance, dtype=DType.FLOAT, seed=node.attrs.get("seed"))
    return [cast(op.Less(number, chance), node.result.dtype)]


def _multinomial(node: Node, version: Version) -> list[Value] | None:
    """The place of the largest sum of a logarithm and of Gumbel noise."""
    x, count = node.given(0), node.attrs.get("sample_size", 1)
    if x.rank != 2:
        return None
    chances = op.Unsqueeze(cast(x, DType.FLOAT), constant([1], DType.INT64))
    each = op.Tile(chances, constant([1, count, 1], DType.INT64))
    number = op.RandomUniformLike(each, dtype=DType.FLOAT, low=1e-7, high=1.0, seed=node.attrs.get("seed"))
    noise = op.Neg(op.Log(op.Max(op.Neg(op.Log(number)), scalar(1e-20, number))))
    return [cast(op.ArgMax(op.Add(each, noise), axis=2, keepdims=0), node.result.dtype)]


ROWS: dict[str, Row] = {
    "RandomNormal": Row({"T": _DRAWN}),
    "RandomUniform": Row({"T": _DRAWN}),
    "RandomNormalLike": Row({"T2": _DRAWN}, check=_check_like),
    "RandomUniformLike": Row({"T2": _DRAWN}, check=_check_like),
}

FORMS = {
    "Bernoulli": _bernoulli,
    "Multinomial": _multinomial,
    **dict.fromkeys(ROWS, _drawn),
}
