"""Views of one tensor: its leading dimensions merged and split, its last two swapped, moving no more than needed.

Attention runs over pairs of matrices. How many leading dimensions number these pairs, and how they are grouped, is the
exporter's choice: ``[B*H, S, D]``, ``[B, H, S, D]``, ``[B, windows, H, S, D]``. The *lead* of a value is its shape
without the last two dimensions; values with leads of equal product can be put side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...ir import Node, Value, constant, edit, op
from ...ir.builder import make_node
from ...ir.dims import Dim, dim_mod
from ...ir.types import DType, Shape
from ..rules import require
from ..simplify.reshapes import RESHAPING, known_shape, reshape_to
from ..simplify.transposes import compose, perm_of, transpose

_HOISTED = 24  # operators in a row that are computed earlier

__all__ = ["available", "lead_of", "mask_in_view", "pair_groups", "reshaped", "shape_vector", "swapped", "with_lead"]


def available(value: Value, place: Node) -> Value:
    """``value`` as it can be used at ``place``: what is computed only later is computed once more, earlier."""
    return _available(value, place, {}, 0)


def _available(value: Value, place: Node, copies: dict[Node, Node], depth: int) -> Value:
    if edit.dominates(value, place):
        return value
    node = value.producer
    reachable = node is not None and node.graph is place.graph and not node.graphs and depth < _HOISTED
    require(reachable, "a value is defined too late", node)
    assert node is not None
    if node not in copies:
        operands = tuple(None if o is None else _available(o, place, copies, depth + 1) for o in node.operands)
        copies[node] = make_node(node.op, operands, dict(node.attrs), len(node.results))
    return copies[node].results[value.index]


def lead_of(value: Value) -> Shape:
    """The dimensions before the last two."""
    shape = known_shape(value)
    require(len(shape) >= 2, "an operand of the matrix product is a vector", value.producer)
    return shape[:-2]


def swapped(value: Value) -> Value:
    """``value`` with its last two dimensions swapped; a Transpose that does so already is undone."""
    rank = len(known_shape(value))
    perm = (*range(rank - 2), rank - 1, rank - 2)
    node = value.producer
    if node is not None and node.op == "Transpose" and (inner := perm_of(node)) is not None:
        source = node.operands[0]
        assert source is not None
        return transpose(source, compose(inner, perm))
    if node is not None and node.op in RESHAPING and _is_transposed(node.operands[0], value):
        inside = swapped(node.operands[0])  # type: ignore[arg-type]
        return with_lead(inside, lead_of(value), [value])
    return transpose(value, perm)


def _is_transposed(source: Value | None, value: Value) -> bool:
    """Whether ``source`` is a transpose, and ``value`` the same with other leading dimensions."""
    if source is None or source.producer is None or source.producer.op != "Transpose":
        return False
    return source.shape is not None and len(source.shape) > 1 and source.shape[-2:] == known_shape(value)[-2:]


def reshaped(value: Value, target: Shape, sources: Iterable[Value] = ()) -> Value:
    """``value`` in another shape; ``sources`` are values whose shapes may be read for dimensions that are not known."""
    if value.shape == target:
        return value
    node = value.producer
    while node is not None and node.op in RESHAPING and node.operands[0] is not None:
        if node.operands[0].shape == target:
            return node.operands[0]
        node = node.operands[0].producer
    plain = reshape_to(value, target)
    return plain if plain is not None else op.Reshape(value, shape_vector(target, [value, *sources], inferred=True))


def shape_vector(target: Sequence[Dim], sources: Iterable[Value], *, inferred: bool = False) -> Value:
    """``target`` as a tensor, its symbols read from the shapes of ``sources``; ``inferred``: one may be left as -1."""
    if all(isinstance(d, int) for d in target):
        return constant(list(target), DType.INT64)
    known = list(sources)
    parts: list[Value] = []
    numbers: list[int] = []
    for dim in target:
        found = None if isinstance(dim, int) else _find(dim, known)
        if isinstance(dim, int) or found is None:
            require(isinstance(dim, int) or inferred, f"the size {dim} cannot be read from any operand")
            inferred = inferred and isinstance(dim, int)
            numbers.append(dim if isinstance(dim, int) else -1)
            continue
        if numbers:
            parts.append(constant(numbers, DType.INT64))
            numbers = []
        source, axis = found
        parts.append(op.Shape(source, start=axis, end=axis + 1))
    if numbers:
        parts.append(constant(numbers, DType.INT64))
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def _find(dim: Dim, sources: Iterable[Value]) -> tuple[Value, int] | None:
    for source in sources:
        for axis, size in enumerate(source.shape or ()):
            if size == dim:
                return source, axis
    return None


def with_lead(value: Value, lead: Shape, sources: Iterable[Value] = ()) -> Value:
    """``value`` with its leading dimensions regrouped to ``lead``."""
    return reshaped(value, (*lead, *known_shape(value)[-2:]), sources)


def pair_groups(source: Shape, target: Shape) -> list[tuple[range, range]]:
    """The finest pairs of runs of dimensions, of ``source`` and of ``target``, whose products agree."""
    groups: list[tuple[range, range]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        start, a, b = (i, j), source[i], target[j]
        i, j = i + 1, j + 1
        while a != b:
            if i < len(source) and a != 0 and dim_mod(b, a) == 0:
                a, i = a * source[i], i + 1
            else:
                require(j < len(target) and b != 0 and dim_mod(a, b) == 0, "the leading dimensions do not correspond")
                b, j = b * target[j], j + 1
        groups.append((range(start[0], i), range(start[1], j)))
    require(all(d == 1 for d in (*source[i:], *target[j:])), "the leading dimensions do not correspond")
    return groups


def mask_in_view(mask: Value, source: Shape, target: Shape, sources: Iterable[Value] = ()) -> Value:
    """A mask that broadcasts to ``[*source, S, T]`` as one that broadcasts to ``[*target, S, T]``.

    It stays as small as the grouping of the leads allows: dimensions of size 1 are kept, and only where some of the
    dimensions that ``target`` merges are 1 and others are not, the mask is expanded over these.
    """
    shape = known_shape(mask)
    if source == target or len(shape) <= 2:
        return mask
    lead = (1,) * (len(source) - len(shape) + 2) + shape[:-2]
    require(len(lead) == len(source), "the mask has more dimensions than the scores", mask.producer)
    if all(d == 1 for d in lead):
        return reshaped(mask, shape[-2:], sources)
    one: Dim = 1
    expanded, regrouped = list(lead), [one] * len(target)
    for before, after in pair_groups(source, target):
        if all(lead[i] == 1 for i in before):
            continue
        for i in before:
            expanded[i] = source[i]
        for j in after:
            regrouped[j] = target[j]
    known = [*sources]
    if tuple(expanded) != lead:
        mask = reshaped(mask, (*lead, *shape[-2:]), known)
        mask = op.Expand(mask, shape_vector([*expanded, 1, 1], known))
    return reshaped(mask, (*regrouped, *known_shape(mask)[-2:]), known)
