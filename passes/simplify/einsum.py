"""Einsum of two operands is a matrix product between transposes."""

from __future__ import annotations

import string

from ...ir import Node, Value, op
from ...ir.dims import Dim, product
from ..numerics import within
from ..rules import require, rule
from .reshapes import known_shape, reshape_to
from .transposes import transpose

_ELLIPSIS = """
agraph (float[B,C,5,2,4] q, float[C,7,2,4] k) => (float[B,C,2,5,7] y) {
  y = Einsum <equation = "...qhd, ...khd -> ...hqk"> (q, k)
}
"""
_IMPLICIT = """
agraph (float[B,5,4] a, float[4,3] b) => (float[B,5,3] y) {
  y = Einsum <equation = "...ij,jk"> (a, b)
}
"""


@rule("Einsum", numerics=within(rtol=1e-5), examples=[_ELLIPSIS, _IMPLICIT])
def einsum_as_matmul(node: Node) -> Value | None:
    """Letters in both operands number matrices, or are summed over; the others are rows and columns."""
    terms, result = _spelled_out(node)
    require(all(len(set(t)) == len(t) for t in (*terms, result)), "a letter is repeated")
    if len(terms) == 1:
        require(sorted(terms[0]) == sorted(result), "it sums")
        return transpose(node.given(0), tuple(terms[0].index(c) for c in result))
    require(len(terms) == 2, "it has more than two operands")
    (left, a), (right, b) = zip(node.operands, terms, strict=True)
    if result and result[-1] in a and result[-1] not in b:
        left, a, right, b = right, b, left, a  # the result ends with columns: it need not be transposed
    assert left is not None and right is not None
    batch = [c for c in result if c in a and c in b]
    rows, columns = [c for c in result if c not in b], [c for c in result if c not in a]
    summed = [c for c in a if c in b and c not in result]
    require(
        sorted(a) == sorted(batch + rows + summed) and sorted(b) == sorted(batch + summed + columns), "it sums alone"
    )
    require(node.given(0).dtype.is_floating, "integers")
    sizes = _sizes(node, terms)
    if sizes is None:
        return None
    lead: list[str] = []
    if (len(columns) == 1 and len(summed) == 1) or not all(isinstance(sizes[c], int) for c in rows):
        lead, rows = rows[:-1], rows[-1:]  # further rows number matrices that the other operand has only one of
    x = _matrices(left, a, [lead + batch, rows, summed], sizes)
    y = _matrices(right, b, [batch, summed, columns], sizes)
    order = lead + batch + rows + columns
    result_ = op.MatMul(x, y)
    if len(rows) != 1 or len(columns) != 1:
        result_ = reshape_to(result_, tuple(sizes[c] for c in order))
    require(result_ is not None, "the sizes of merged dimensions are not known")
    return transpose(result_, tuple(order.index(c) for c in result))


def _spelled_out(node: Node) -> tuple[list[str], str]:
    """The terms of the equation and its result, with letters for ellipses, and the result written out."""
    left, arrow, result = node.attrs["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    require(len(terms) == len(node.operands), "there are not as many terms as operands")
    unused = [c for c in string.ascii_letters if c not in left]
    lengths = [
        len(known_shape(node.given(i))) - len(t.replace("...", "")) if "..." in t else 0 for i, t in enumerate(terms)
    ]
    longest = max(lengths)
    require(min(lengths) >= 0 and longest <= len(unused), "an operand has too few dimensions")
    ellipsis = "".join(unused[:longest])
    terms = [t.replace("...", ellipsis[longest - n :]) for t, n in zip(terms, lengths, strict=True)]
    if arrow:
        return terms, result.replace("...", ellipsis)
    once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)  # as numpy.einsum: in alphabetical order
    return terms, ellipsis + "".join(once)


def _sizes(node: Node, terms: list[str]) -> dict[str, Dim] | None:
    """The size of each letter; None where one operand may broadcast along it."""
    sizes: dict[str, Dim] = {}
    for i, term in enumerate(terms):
        for letter, dim in zip(term, known_shape(node.given(i)), strict=True):
            if sizes.setdefault(letter, dim) != dim and (dim == 1 or sizes[letter] == 1):
                return None
    return sizes


def _matrices(value: Value, term: str, groups: list[list[str]], sizes: dict[str, Dim]) -> Value:
    """``value`` with the letters of the first group leading, and those of each other one merged."""
    order = [c for group in groups for c in group]
    moved = transpose(value, tuple(term.index(c) for c in order))
    if all(len(group) == 1 for group in groups[1:]):
        return moved
    merged = reshape_to(moved, (*(sizes[c] for c in groups[0]), *(product(sizes[c] for c in g) for g in groups[1:])))
    require(merged is not None, "the sizes of merged dimensions are not known")
    assert merged is not None
    return merged
