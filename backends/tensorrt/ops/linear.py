"""Matrix products and sums of products."""

from __future__ import annotations

import re

import numpy as np

from ....ir import DType, Node, Value, constant, op
from ..legality import FLOATS, INDICES, Row
from ..versions import Version

__all__ = ["FORMS", "ROWS"]

_LAST, _SECOND = constant([-1], DType.INT64), constant([-2], DType.INT64)


def _check_matmul(node: Node, version: Version) -> str:
    """A vector before a stack of matrices."""
    a, b = node.operand(0), node.operand(1)
    if a is not None and b is not None and a.rank == 1 and (b.rank or 0) > 2:
        return f"a vector before {b.rank} dimensions"
    return ""


def _matmul(node: Node, version: Version) -> list[Value] | None:
    a, b = node.given(0), node.given(1)
    if a.rank is None or b.rank is None:
        return None
    if a.dtype in INDICES:
        return [_integer_product(a, b)]
    if a.rank == 1:
        return [op.Squeeze(op.MatMul(op.Unsqueeze(a, constant([0], DType.INT64)), b), _SECOND)]
    return None


def _integer_product(a: Value, b: Value) -> Value:
    """All products, summed: TensorRT multiplies matrices of floating-point numbers only."""
    if b.rank == 1:
        return op.ReduceSum(op.Mul(a, b), _LAST, keepdims=0)
    columns = op.Unsqueeze(a, _LAST)  # [..., rows, terms, 1]
    stacked = b if a.rank == 1 else op.Unsqueeze(b, constant([-3], DType.INT64))
    return op.ReduceSum(op.Mul(columns, stacked), _SECOND, keepdims=0)


def _gemm(node: Node, version: Version) -> list[Value] | None:
    """Of integers, whose factors are whole numbers."""
    a, b, c = node.given(0), node.given(1), node.operand(2)
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if a.dtype not in INDICES or alpha != int(alpha) or beta != int(beta):
        return None
    a, b = (op.Transpose(x, perm=(1, 0)) if node.attrs.get(f"trans{n}") else x for n, x in (("A", a), ("B", b)))
    result = op.Mul(_integer_product(a, b), constant(int(alpha), a.dtype))
    return [result if c is None else op.Add(result, op.Mul(c, constant(int(beta), a.dtype)))]


# --- Einsum ----------------------------------------------------------------------------------------------------------


def _terms(equation: str) -> tuple[list[str], str | None]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    return left.split(","), right if arrow else None


def _extra(term: str, rank: int) -> int:
    """The dimensions that an ellipsis stands for."""
    return rank - (len(term) - 3) if "..." in term else 0


def _check_einsum(node: Node, version: Version) -> str:
    terms, _ = _terms(node.attrs["equation"])
    if re.search("[A-Z]", node.attrs["equation"]):
        return "capital letters in the equation"
    ranks = [o.rank for o in node.operands if o is not None]
    if None in ranks:
        return ""
    extras = {_extra(t, r) for t, r in zip(terms, ranks, strict=True) if "..." in t and r is not None}
    return "ellipses of several lengths" if len(extras) > 1 else ""


def _einsum(node: Node, version: Version) -> list[Value] | None:
    """In small letters, with one length of all ellipses."""
    terms, result = _terms(node.attrs["equation"])
    operands = [o for o in node.operands if o is not None]
    if operands[0].dtype is DType.BFLOAT16:  # newer than what the parser reads
        wide = op.Einsum(*(op.Cast(o, to=DType.FLOAT) for o in operands), equation=node.attrs["equation"])
        return [op.Cast(wide, to=DType.BFLOAT16)]
    if operands[0].dtype in INDICES:
        return _integer_einsum(terms, result, operands)
    if any(o.rank is None for o in operands) or operands[0].dtype not in FLOATS:
        return None
    used = sorted({c for c in node.attrs["equation"] if c.isalpha()})
    free = iter(c for c in "abcdefghijklmnopqrstuvwxyz" if c not in used)
    names = {c: next(free, "") if c.isupper() else c for c in used}
    if "" in names.values():
        return None
    if result is None:  # letters that are there once, in the order of the alphabet
        once = sorted(c for c in used if "".join(terms).count(c) == 1)
        result = ("..." if any("..." in t for t in terms) else "") + "".join(once)
    longest = max(_extra(t, o.rank or 0) for t, o in zip(terms, operands, strict=True))
    for i, (term, x) in enumerate(zip(terms, operands, strict=True)):
        missing = longest - _extra(term, x.rank or 0) if "..." in term else 0
        if missing:
            start = term.index("...")
            operands[i] = op.Unsqueeze(x, constant(np.arange(start, start + missing)))
    equation = ",".join(terms) + "->" + result
    return [op.Einsum(*operands, equation="".join(names.get(c, c) for c in equation))]


def _integer_einsum(terms: list[str], result: str | None, operands: list[Value]) -> list[Value] | None:
    """All operands along all letters, multiplied and summed: as `_integer_product`, without repeated letters."""
    letters = sorted(set("".join(terms)))
    if "." in letters or len(letters) > 8 or any(len(set(t)) < len(t) for t in terms):
        return None
    if result is None:
        result = "".join(c for c in letters if "".join(terms).count(c) == 1)
    order = result + "".join(c for c in letters if c not in result)
    product: Value | None = None
    for term, x in zip(terms, operands, strict=True):
        own = [c for c in order if c in term]
        absent = [i for i, c in enumerate(order) if c not in term]
        x = op.Transpose(x, perm=[term.index(c) for c in own]) if own else x
        x = op.Unsqueeze(x, constant(np.array(absent, np.int64))) if absent else x
        product = x if product is None else op.Mul(product, x)
    assert product is not None
    summed = np.arange(len(result), len(order))
    return [op.ReduceSum(product, constant(summed), keepdims=0) if summed.size else op.Identity(product)]


ROWS: dict[str, Row] = {
    "Einsum": Row({"T": frozenset({DType.FLOAT, DType.FLOAT16})}, check=_check_einsum),
    "Gemm": Row({"T": FLOATS}),
    "MatMul": Row({"T": FLOATS}, check=_check_matmul),
}

FORMS = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
