"""Scalar algebra over small expressions: products as a coefficient and factors, and polynomials in one value."""

from __future__ import annotations

import math

from ...ir import Node, Value
from ...ir.types import DType
from .scores import scalar_of

__all__ = ["close", "factors_of", "is_private", "polynomial"]

_DEPTH = 5
_HALF = (DType.FLOAT16, DType.BFLOAT16)


def close(a: float, b: float, dtype: DType) -> bool:
    """Whether ``a`` is ``b`` as far as constants of type ``dtype`` tell."""
    return math.isclose(a, b, rel_tol=1e-2 if dtype is DType.BFLOAT16 else 2e-3 if dtype in _HALF else 1e-5)


def is_private(node: Node, user: Node) -> bool:
    """Whether only ``user`` uses what ``node`` computes, in the same graph."""
    return node.graph is user.graph and all(u is user for r in node.results for u in r.users)


def factors_of(node: Node, depth: int = 0) -> tuple[float, list[Value]]:
    """The result of ``node`` as a number times values: products and quotients by numbers are taken apart.

    Only expressions that nothing else uses are.
    """
    if node.op not in ("Mul", "Div") or depth > _DEPTH:
        return 1.0, [node.result]
    coefficient, found = 1.0, []
    for i, operand in enumerate(node.operands):
        assert operand is not None
        number = scalar_of(operand)
        if number is not None and (node.op == "Mul" or (i == 1 and number)):
            coefficient = coefficient * number if node.op == "Mul" else coefficient / number
        elif node.op == "Div" and i == 1:
            return 1.0, [node.result]
        else:
            inner = operand.producer
            taken = inner is not None and inner.op in ("Mul", "Div") and is_private(inner, node)
            number, values = factors_of(inner, depth + 1) if taken and inner is not None else (1.0, [operand])
            coefficient *= number
            found += values
    return coefficient, found


Polynomial = dict[int, float]  # coefficient by power


def polynomial(value: Value, x: Value, depth: int = 0) -> Polynomial | None:
    """``value`` as a polynomial in ``x``, or None if it is none that is found."""
    if value is x:
        return {1: 1.0}
    number = scalar_of(value)
    if number is not None:
        return {0: number}
    node = value.producer
    if node is None or depth > _DEPTH or node.op not in ("Add", "Sub", "Mul", "Div", "Pow", "Neg"):
        return None
    parts = [polynomial(o, x, depth + 1) for o in node.operands if o is not None]
    if any(p is None for p in parts):
        return None
    first, second = parts[0], parts[-1]
    assert first is not None and second is not None
    match node.op:
        case "Add":
            return _sum(first, second, 1.0)
        case "Sub":
            return _sum(first, second, -1.0)
        case "Neg":
            return _sum({}, first, -1.0)
        case "Mul":
            return _product(first, second)
    if set(second) - {0} or not second.get(0):
        return None
    number = second[0]
    if node.op == "Div":
        return {power: c / number for power, c in first.items()}
    return _power(first, number)


def _sum(a: Polynomial, b: Polynomial, sign: float) -> Polynomial:
    return {p: a.get(p, 0.0) + sign * b.get(p, 0.0) for p in a.keys() | b.keys()}


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for p, c in a.items():
        for q, d in b.items():
            result[p + q] = result.get(p + q, 0.0) + c * d
    return result


def _power(base: Polynomial, exponent: float) -> Polynomial | None:
    if exponent != int(exponent) or not 0 < exponent <= 4:
        return None
    result = base
    for _ in range(int(exponent) - 1):
        result = _product(result, base)
    return result
