"""Diagonals of matrices: reading and writing one, making a matrix of one, and bands around the main one."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ....ir.types import DType
from ...emit import Refused
from ..translate import Operation, Translator, rule
from ..vectors import Number, bottom, elements, joined, known, minus, plus, rank_of, reshaped, size, times
from .shapes import counted, padded

__all__: list[str] = []

_FAR = 1 << 31  # more diagonals than a matrix has


@rule("MatrixBandPart", "BatchMatrixBandPart")
def _band(t: Translator, o: Operation, x: Value, lower: Value, upper: Value) -> Any:
    """Of the diagonals below and above the main one as many as are stated; all, where that is negative."""
    dtype = x.dtype
    kind = dtype if dtype in (DType.FLOAT, DType.DOUBLE, DType.INT64, DType.BOOL) else None
    x = x if kind is not None else t.cast(x, DType.FLOAT if dtype.is_floating else DType.INT64)
    for count, is_upper in ((upper, 0), (lower, 1)):
        (number,) = elements(t, count)
        if isinstance(number, int) and number < 0:
            continue
        if isinstance(number, Value):
            number = t.op.Where(t.op.Less(number, t.integers([0])), t.integers([_FAR]), number)
        offset = minus(t, 0, number) if is_upper else number
        scalar = t.scalar(offset, DType.INT64) if isinstance(offset, int) else t.squeeze(offset, [0])
        x = t.op.Trilu(x, scalar, upper=is_upper)
    return t.cast(x, dtype)


def _main_diagonal(t: Translator, rows: Number, columns: Number) -> Value:
    """Booleans of shape ``[rows, columns]``: true on the main diagonal."""
    down, across = (counted(t, n) for n in (rows, columns))
    found: Value = t.op.Equal(t.unsqueeze(down, [1]), across)
    return found


def _offset(t: Translator, k: Value) -> int:
    """Which diagonal is meant: counted upwards from the main one."""
    found = set(known(t, k, "the number of the diagonal"))
    if len(found) != 1:
        raise Refused("several diagonals at once: one after the other")
    return found.pop()


@rule("MatrixDiag", "MatrixDiagV2", "MatrixDiagV3")
def _matrix_diag(t: Translator, o: Operation, x: Value, *rest: Value) -> Any:
    """A matrix with ``x`` on one of its diagonals."""
    k = _offset(t, rest[0]) if rest else 0
    fill = rest[3] if rest else t.scalar(0, x.dtype)
    rank, count = rank_of(x), size(t, x, -1)
    whole = plus(t, count, abs(k))
    if any(t.known(v) not in ((-1,), (whole,)) for v in rest[1:3]):
        raise Refused("a matrix that may be larger than its diagonal: pad it")
    matrix = t.op.Where(_main_diagonal(t, count, count), t.unsqueeze(x, [rank]), fill)
    around = [(max(-k, 0), max(k, 0)), (max(k, 0), max(-k, 0))]
    return padded(t, matrix, [(0, 0)] * (rank - 1) + around, fill)


@rule("MatrixDiagPart", "MatrixDiagPartV2", "MatrixDiagPartV3")
def _matrix_diag_part(t: Translator, o: Operation, x: Value, *rest: Value) -> Any:
    """One diagonal, gathered from the rows in one line."""
    k = _offset(t, rest[0]) if rest else 0
    rank = rank_of(x)
    *batch, rows, columns = (size(t, x, a) for a in range(rank))
    length = bottom(t, plus(t, rows, min(k, 0)), minus(t, columns, max(k, 0)))
    flat = reshaped(t, x, joined(t, [*batch, times(t, rows, columns)]))
    start: Number = k if k >= 0 else times(t, columns, -k)
    step = joined(t, [plus(t, columns, 1)])
    places = t.op.Add(t.op.Mul(counted(t, length), step), joined(t, [start]))
    return t.op.Gather(flat, places, axis=rank - 2)


@rule("MatrixSetDiag", "MatrixSetDiagV2", "MatrixSetDiagV3")
def _matrix_set_diag(t: Translator, o: Operation, x: Value, diagonal: Value, *rest: Value) -> Any:
    """The diagonal is broadcast along the rows or the columns, of which there are more."""
    if rest and _offset(t, rest[0]) != 0:
        raise Refused("it sets another diagonal than the main one")
    rank, shape = rank_of(x), x.shape or ()
    rows, columns = shape[-2:]
    if diagonal.shape is not None and diagonal.shape[-1] == rows:
        wide = t.unsqueeze(diagonal, [rank - 1])
    elif isinstance(rows, int) and isinstance(columns, int):
        wide = t.unsqueeze(diagonal, [rank - 1 if rows <= columns else rank - 2])
    else:  # it is made as long as there are columns
        longer = minus(t, size(t, x, -1), size(t, diagonal, -1))
        wide = t.unsqueeze(padded(t, diagonal, [(0, 0)] * (rank - 2) + [(0, longer)]), [rank - 2])
    return t.op.Where(_main_diagonal(t, size(t, x, -2), size(t, x, -1)), wide, x)


@rule("Diag")
def _diag(t: Translator, o: Operation, x: Value) -> Any:
    if x.rank != 1:
        raise Refused("the diagonal of a tensor of more than two dimensions")
    return _matrix_diag(t, o, x)


@rule("DiagPart")
def _diag_part(t: Translator, o: Operation, x: Value) -> Any:
    if x.rank != 2:
        raise Refused("the diagonal of a tensor of more than two dimensions")
    return _matrix_diag_part(t, o, x)
