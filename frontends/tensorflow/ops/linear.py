"""Products of matrices, sums of products, and biases."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from ....ir.graph import Value
from ....ir.types import DType
from ... import exact
from ...emit import Refused
from ..translate import Operation, Translator, dtype_of, rule
from .elementwise import apply

__all__: list[str] = []

_BYTES = (DType.INT8, DType.UINT8)


@rule("MatMul", "SparseMatMul")
def _matmul(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return _product(t, o, _turned(t, x, o.attr("transpose_a")), _turned(t, y, o.attr("transpose_b")))


@rule("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _batch_matmul(t: Translator, o: Operation, x: Value, y: Value) -> Any:
    return _product(t, o, _turned(t, x, o.attr("adj_x")), _turned(t, y, o.attr("adj_y")))


def _turned(t: Translator, x: Value, turns: bool) -> Value:
    """Matrices, each with its rows and columns exchanged if it ``turns``."""
    if not turns:
        return x
    if x.rank is None:
        raise Refused("it transposes matrices in a tensor whose number of dimensions is open")
    return t.transpose(x, (*range(x.rank - 2), x.rank - 1, x.rank - 2))


def _product(t: Translator, o: Operation, x: Value, y: Value) -> Value:
    dtype = dtype_of(o.tensors[0].dtype)
    if dtype is DType.INT32 and x.dtype in _BYTES and y.dtype in _BYTES:
        found: Value = t.op.MatMulInteger(x, y)
        return found
    wide = exact.wide(dtype)
    return t.cast(t.op.MatMul(t.cast(x, wide), t.cast(y, wide)), dtype)


@rule("Einsum")
def _einsum(t: Translator, o: Operation, *operands: Value) -> Any:
    """Its letters become lower-case ones, which are all that ONNX has."""
    equation = o.attr("equation").replace(" ", "")
    terms, _, result = equation.partition("->")
    labels = dict.fromkeys(c for c in equation if c.isalpha())
    if len(labels) > len(string.ascii_lowercase):
        raise Refused("its equation has more than 26 letters")
    if any(result.count(c) > 1 for c in labels):
        raise Refused("its result repeats a letter: write the diagonal with tf.linalg.diag")
    names = equation.translate(str.maketrans(dict(zip(labels, string.ascii_lowercase, strict=False))))
    dtype = operands[0].dtype
    aligned = _with_equal_ellipses(t, operands, terms.split(","))
    found = t.op.Einsum(*(t.cast(x, exact.wide(dtype)) for x in aligned), equation=names)
    return t.cast(found, dtype)


def _with_equal_ellipses(t: Translator, operands: Sequence[Value], terms: Sequence[str]) -> list[Value]:
    """Operands whose ellipses, which are broadcast, all stand for as many dimensions: runtimes ask for that."""
    counts = [
        None if x.rank is None else x.rank - sum(c.isalpha() for c in term) if "..." in term else 0
        for x, term in zip(operands, terms, strict=True)
    ]
    most = max((c for c in counts if c is not None), default=0)
    return [
        t.unsqueeze(x, range(term.index("..."), term.index("...") + most - count))
        if count is not None and "." in term
        else x
        for x, term, count in zip(operands, terms, counts, strict=True)
    ]


@rule("BiasAdd", "BiasAddV1")
def _bias(t: Translator, o: Operation, x: Value, bias: Value) -> Any:
    if o.attr("data_format") != "NCHW":
        return apply(t, "Add", x, bias)
    if x.rank is None:
        raise Refused("it adds to channels of a tensor whose number of dimensions is open")
    return t.op.Add(x, t.unsqueeze(bias, range(1, x.rank - 1)))
