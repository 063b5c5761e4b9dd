"""Rows: what the first dimension counts, where a model takes any number of them."""

from __future__ import annotations

from ..ir import Graph, Sym

__all__ = ["gives_rows", "takes_rows"]


def takes_rows(graph: Graph) -> bool:
    """Whether the first dimension of all inputs that have no default is one named size, which occurs nowhere else."""
    shapes = [v.shape for v in graph.inputs if v.default is None]
    if not shapes or not all(shapes):
        return False
    first = shapes[0][0] if shapes[0] else None
    if not isinstance(first, Sym) or first.name is None:
        return False
    rest = [d for shape in shapes for d in (shape or ())[1:] if isinstance(d, Sym)]
    return all(shape and shape[0] == first for shape in shapes) and not any(
        first.name in monomial for dim in rest for monomial in dim.terms
    )


def gives_rows(graph: Graph) -> bool:
    """Whether it takes rows, and each output has as many of them in its first dimension."""
    if not takes_rows(graph):
        return False
    rows = next(v.shape[0] for v in graph.inputs if v.default is None and v.shape)
    return all(o is not None and o.shape and o.shape[0] == rows for o in graph.ret.operands)
