"""Sizes that stay open: the symbols of ``jax.export`` for the named sizes of a graph, and what must hold for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
from jax import export

from ...ir.dims import Dim, Sym, is_non_negative, limits, substitute, sym, unclipped
from ...ir.errors import PlanishError
from ...ir.graph import Graph, Node
from ...ir.infer import content_of, scalar_content
from ...ir.types import TensorType
from .function import JaxFunction

__all__ = ["Assumptions", "Symbols", "abstract_inputs", "assumptions_of", "check_sizes"]

_BROADCASTING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Where", "And", "Or", "Xor"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    }
)


@dataclass(frozen=True)
class Assumptions:
    """What must hold for sizes, or else the model itself would fail.

    Attributes:
        limits: the largest number that a size can have: a table of positions ends there.
        least: the smallest number that a size can have: that many elements are taken of it.
        equal: sizes that are others by another name: what is added to one another has one shape.
    """

    limits: dict[str, int] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)
    equal: dict[str, Dim] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.limits or self.least or self.equal)

    def __str__(self) -> str:
        known = [f"{name} = {dim}" for name, dim in self.equal.items()]
        return ", ".join([*self.bounds(str), *known])

    def bounds(self, spelled: Callable[[str], str]) -> list[str]:
        """What limits sizes from above and below, with their names as ``spelled``."""
        upper = [f"{spelled(name)} <= {limit}" for name, limit in self.limits.items() if name not in self.equal]
        return upper + [f"{spelled(name)} >= {n}" for name, n in self.least.items() if name not in self.equal]


def assumptions_of(graph: Graph, sizes: Mapping[str, int]) -> Assumptions:
    """What ``graph`` may assume of the sizes that have no numbers in ``sizes``."""
    found = Assumptions()
    open_sizes = {name for v in graph.inputs for dim in v.shape or () for name in _names(dim)} - set(sizes)
    for node in graph.walk():
        for name, limit in _clipped(node):
            if name in open_sizes:
                found.limits[name] = min(limit, found.limits.get(name, limit))
        for name, least in _taken(node):
            if name in open_sizes:
                found.least[name] = max(least, found.least.get(name, least))
        for name, dim in _agreed(node):
            if name in open_sizes and name not in found.equal and not _mentions(dim, {name, *found.equal}):
                found.equal[name] = dim
    return found


def _names(dim: Dim) -> set[str]:
    """The names of sizes in ``dim``, and its operations."""
    return {atom for monomial in dim.terms for atom in monomial} if isinstance(dim, Sym) else set()


def _clipped(node: Node) -> Iterator[tuple[str, int]]:
    """Sizes that bound what ``node`` takes of a table, and the largest number for which that is in it."""
    if node.op != "Slice":
        return
    shape = node.given(0).shape or ()
    axes = content_of(node.operand(3)) or range(len(shape))
    for bounds in (content_of(node.given(1)), content_of(node.given(2))):
        for axis, bound in zip(axes, bounds or (), strict=False):
            size = shape[axis] if isinstance(axis, int) else 1
            if isinstance(size, int) and size > 1:
                yield from _largest(unclipped(bound), size)


def _largest(position: Dim, size: int) -> Iterator[tuple[str, int]]:
    """A size and its largest number for which ``position`` is one of 0 … ``size``, and not clipped either."""
    yield from limits(position)
    for name in _names(position):
        for limit in (size - (position - sym(name)), position + sym(name)):
            if isinstance(limit, int) and limit > 0:
                yield name, limit


def _taken(node: Node) -> Iterator[tuple[str, int]]:
    """A size of which ``node`` takes a number of elements, and that number."""
    if node.op == "TopK" and (shape := node.given(0).shape):
        dim, count = shape[node.attrs.get("axis", -1)], scalar_content(node.given(1))
        if isinstance(dim, Sym) and dim.name and isinstance(count, int):
            yield dim.name, count


def _agreed(node: Node) -> Iterator[tuple[str, Dim]]:
    """Sizes that must be others for the operands of ``node`` to have one shape, or its pieces to be all of it."""
    if node.op == "Split" and (shape := node.given(0).shape) and (pieces := content_of(node.operand(1))):
        whole = shape[node.attrs.get("axis", 0)]
        if isinstance(whole, Sym) and whole.name and all(isinstance(size, int) for size in pieces):
            yield whole.name, sum(pieces)
    shapes = [o.shape[::-1] for o in node.operands if o is not None and o.shape] if node.op in _BROADCASTING else []
    if node.op == "Attention":
        shapes = _attended(node)
    for i in range(max(map(len, shapes), default=0)):
        dims = [unclipped(s[i]) for s in shapes if len(s) > i and s[i] != 1]
        for a, b in pairwise(dict.fromkeys(dims)):
            solution = _solved(a - b)
            if solution is not None:
                yield solution


def _attended(node: Node) -> list[tuple[Dim, ...]]:
    """The number of keys of an Attention, as its mask and as its keys have it."""
    keys, mask, past = (o.shape if (o := node.operand(i)) is not None else None for i in (1, 3, 4))
    if not keys or not mask or (past is None and node.operand(4) is not None):
        return []
    return [(mask[-1],), (keys[-2] + (past[-2] if past else 0),)]


def _solved(difference: Dim) -> tuple[str, Dim] | None:
    """A name, and the sum of other sizes that it must be for ``difference`` to be 0."""
    if not isinstance(difference, Sym) or difference.mentions_anonymous or "(" in str(difference):
        return None
    for monomial, coefficient in difference.terms.items():
        if len(monomial) == 1 and abs(coefficient) == 1:
            rest = (difference - sym(monomial[0]) * coefficient) * -coefficient
            if isinstance(rest, Sym) and is_non_negative(rest):
                return monomial[0], rest
    return None


def _mentions(dim: Dim, names: set[str]) -> bool:
    return not names.isdisjoint(_names(dim))


class Symbols:
    """Symbols of one scope of ``jax.export``, by the names of sizes.

    Args:
        sizes: those that have numbers.
        assumptions: what holds for the others.
    """

    def __init__(self, sizes: Mapping[str, int], assumptions: Assumptions):
        self.sizes = sizes
        self.equal = assumptions.equal
        self.scope = export.SymbolicScope(assumptions.bounds(_plain))
        self.known: dict[str, Any] = {}

    def dim(self, dim: Dim, where: str) -> Any:
        """``dim``, a dimension of input ``where``, as JAX has it.

        Raises:
            PlanishError: JAX has no such dimension.
        """
        try:
            return substitute(dim, self.symbol)
        except (TypeError, ValueError, jax.errors.JAXTypeError, jax.errors.InconclusiveDimensionOperation) as error:
            raise PlanishError(f"input {where!r}: a size {dim} cannot stay open; give numbers for its names") from error

    def symbol(self, name: str) -> Any:
        """The number or symbol of a named or anonymous size."""
        if name in self.sizes:
            return self.sizes[name]
        if name not in self.known:
            if name in self.equal:
                self.known[name] = substitute(self.equal[name], self.symbol)
            else:
                taken = {str(s) for s in self.known.values()}
                plain = _plain(name)
                unique = plain if plain not in taken else f"{plain}_{len(taken)}"
                (self.known[name],) = export.symbolic_shape(unique, scope=self.scope)
        return self.known[name]


def _plain(name: str) -> str:
    """``name`` as ``jax.export`` can read it."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in name.strip("?~")) or "size"
    return plain if plain[0].isalpha() else f"d{plain}"


def check_sizes(function: JaxFunction, sizes: Mapping[str, int]) -> None:
    """Raise a PlanishError if ``sizes`` has a name that no input of ``function`` has."""
    names: set[str] = set()
    for _, type_ in function.inputs:
        for dim in (type_.shape or ()) if isinstance(type_, TensorType) else ():
            if isinstance(dim, Sym):
                names.update(atom for monomial in dim.terms for atom in monomial)
    unknown = sorted(set(sizes) - names)
    if unknown:
        known = ", ".join(sorted(n for n in names if not n.startswith("?"))) or "none"
        raise PlanishError(f"no input has a size {unknown[0]!r}: the named sizes are {known}")


def abstract_inputs(
    function: JaxFunction, sizes: Mapping[str, int] | None = None, assumptions: Assumptions | None = None
) -> list[jax.ShapeDtypeStruct]:
    """Shapes and types of the inputs, with a symbol of ``jax.export`` for every size that has no number.

    Args:
        function: the function.
        sizes: numbers for named sizes.
        assumptions: what holds for the others.

    Raises:
        PlanishError: an input has no such shape.
    """
    symbols = Symbols(sizes or {}, assumptions or Assumptions())
    found = []
    for i, (name, type_) in enumerate(function.inputs):
        if i in function.static_inputs:
            raise PlanishError(
                f"input {name!r} decides a shape, so it cannot stay open: make it a constant of the model"
            )
        if not isinstance(type_, TensorType) or type_.shape is None:
            raise PlanishError(f"input {name!r} is {type_}: only tensors of known rank can be exported")
        shape = tuple(symbols.dim(d, name) for d in type_.shape)
        found.append(jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(type_.dtype.numpy)))
    return found
