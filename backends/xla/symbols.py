"""Sizes that stay open: the symbols of ``jax.export`` for the named sizes of a graph, and what must hold for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
from jax import export

from ...ir.dims import Dim, Sym, is_non_negative, limits, substitute, sym, unclipped
from ...ir.errors import PlanishError
from ...ir.graph import Graph, Node
from ...ir.types import TensorType
from .function import JaxFunction

__all__ = ["Assumptions", "Symbols", "abstract_inputs", "assumptions_of"]

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
        equal: sizes that are others by another name: what is added to one another has one shape.
    """

    limits: dict[str, int] = field(default_factory=dict)
    equal: dict[str, Dim] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.limits or self.equal)

    def __str__(self) -> str:
        known = [f"{name} = {dim}" for name, dim in self.equal.items()]
        return ", ".join([*(f"{name} <= {limit}" for name, limit in self.limits.items()), *known])


def assumptions_of(graph: Graph, sizes: Mapping[str, int]) -> Assumptions:
    """What ``graph`` may assume of the sizes that have no numbers in ``sizes``."""
    found = Assumptions()
    for node in graph.walk():
        for dim in (d for value in node.results for d in value.shape or ()):
            for name, limit in limits(dim):
                if name not in sizes:
                    found.limits[name] = min(limit, found.limits.get(name, limit))
        for name, dim in _agreed(node):
            if name not in sizes and name not in found.equal and not _mentions(dim, {name, *found.equal}):
                found.equal[name] = dim
    return found


def _agreed(node: Node) -> Iterator[tuple[str, Dim]]:
    """Sizes that must be others for the operands of ``node`` to have one shape."""
    shapes = [o.shape[::-1] for o in node.operands if o is not None and o.shape] if node.op in _BROADCASTING else []
    for i in range(max(map(len, shapes), default=0)):
        dims = [unclipped(s[i]) for s in shapes if len(s) > i and s[i] != 1]
        for a, b in pairwise(dict.fromkeys(dims)):
            solution = _solved(a - b)
            if solution is not None:
                yield solution


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
    return isinstance(dim, Sym) and any(atom in names for monomial in dim.terms for atom in monomial)


class Symbols:
    """Symbols of one scope of ``jax.export``, by the names of sizes.

    Args:
        sizes: those that have numbers.
        assumptions: what holds for the others.
    """

    def __init__(self, sizes: Mapping[str, int], assumptions: Assumptions):
        self.sizes = sizes
        self.equal = assumptions.equal
        upper = [f"{_plain(n)} <= {limit}" for n, limit in assumptions.limits.items() if n not in self.equal]
        self.scope = export.SymbolicScope(upper)
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
