"""Softmax and LogSoftmax in a jaxpr: a maximum, a difference, exponentials, their sum, a quotient.

They are found before anything is translated, since what is a softmax need not be guarded against NaN: where the line
has one, so has the sum of its exponentials, by which (or by whose logarithm) all of the line is changed. The result is
NaN with any maximum.

Transformations such as ``vmap`` move dimensions between these steps. So every dimension carries a label, which says
what dimension of the line it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Softmax", "Softmaxes", "find_softmaxes"]

_PASSING = ("broadcast_in_dim", "copy", "max", "stop_gradient", "transpose")
Labels = tuple[int | None, ...]  # for each dimension, the line's that it is; None: one of size 1, which broadcasts


class Softmax(NamedTuple):
    """The operator whose result an equation gives, its operand, and the axis."""

    op: str
    operand: Any
    axis: int


class Softmaxes:
    """What was found in a jaxpr; equations go by their identity.

    Attributes:
        maxima: the maxima that are part of a softmax, and of nothing else.
        results: the equations that give the result of one.
    """

    def __init__(self) -> None:
        self.maxima: set[int] = set()
        self.results: dict[int, Softmax] = {}


def find_softmaxes(jaxpr: Any) -> Softmaxes:
    """The softmaxes in a jaxpr, not in those nested in it."""
    found = Softmaxes()
    maxima = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "reduce_max"]
    if maxima:
        flow = _Flow(jaxpr)
        for eqn in maxima:
            results: dict[int, Softmax] = {}
            if flow.is_subtracted(eqn.outvars[0], eqn, results):
                found.maxima.add(id(eqn))
                found.results.update(results)
    return found


class _Flow:
    """Who makes and who uses the variables of a jaxpr."""

    def __init__(self, jaxpr: Any):
        self.users: dict[Any, list[Any]] = {}
        self.makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        self.returned = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
        for eqn in jaxpr.eqns:
            for atom in eqn.invars:
                if not hasattr(atom, "val"):
                    self.users.setdefault(atom, []).append(eqn)

    def uses(self, var: Any) -> list[Any] | None:
        """The equations that use ``var``; None if it is a result of the jaxpr."""
        return None if var in self.returned else self.users.get(var, [])

    def is_subtracted(self, value: Any, maximum: Any, results: dict[int, Softmax]) -> bool:
        """Whether ``value``, made of a maximum, is used for nothing but the difference in a softmax."""
        uses = self.uses(value)
        if uses is None:
            return False
        for user in uses:
            name, result = user.primitive.name, user.outvars[0]
            if name == "sub" and user.invars[1] is value:
                line = self.labels(user.invars[0], maximum.invars[0])
                top = self.labels(value, maximum.outvars[0])
                reduced = set(maximum.params["axes"])
                kept = [a for a in range(len(maximum.invars[0].aval.shape)) if a not in reduced]
                top = None if top is None else tuple(None if label is None else kept[label] for label in top)
                if line is None or not _is_aligned(top, line, reduced):
                    return False
                if not self.is_normalized(user, line, reduced, results):
                    return False
            elif name not in _PASSING or not self.is_subtracted(result, maximum, results):
                return False
        return True

    def labels(self, atom: Any, base: Any) -> Labels | None:
        """The dimensions of ``base`` that those of ``atom`` are; None if it is not made of that by moving alone."""
        if atom is base:
            return tuple(range(len(base.aval.shape)))
        eqn = None if hasattr(atom, "val") else self.makers.get(atom)
        if eqn is None or eqn.primitive.name not in (*_PASSING, "log"):
            return None
        name = eqn.primitive.name
        source = eqn.invars[0]
        if name == "max":
            if not any(_is_least(a) for a in eqn.invars):
                return None
            source = next(a for a in eqn.invars if not _is_least(a))
        inner = self.labels(source, base)
        if inner is None:
            return None
        if name == "transpose":
            return tuple(inner[p] for p in eqn.params["permutation"])
        if name == "broadcast_in_dim":
            found: list[int | None] = [None] * len(eqn.outvars[0].aval.shape)
            for i, d in enumerate(eqn.params["broadcast_dimensions"]):
                found[d] = inner[i]
            return tuple(found)
        return inner

    def is_normalized(self, difference: Any, line: Labels, reduced: set[int], results: dict[int, Softmax]) -> bool:
        """Whether all that comes of a difference is changed by the sum of its exponentials; notes what is a result."""
        shifted = difference.outvars[0]
        uses = self.uses(shifted)
        exponentials = [u.outvars[0] for u in uses or () if u.primitive.name == "exp"]
        more = self.uses(exponentials[0]) if len(exponentials) == 1 else None
        if uses is None or not more:
            return False
        sums: dict[Any, list[int | None]] = {}
        for user in more:
            if user.primitive.name == "reduce_sum":
                axes = user.params["axes"]
                if {line[a] for a in axes} != reduced:
                    return False
                sums[user.outvars[0]] = [label for i, label in enumerate(line) if i not in axes]
        for user in (*uses, *more):
            name = user.primitive.name
            if name in ("exp", "reduce_sum"):
                continue
            if not self.is_divided(user, line, sums, reduced):
                return False
            kind = {("div", exponentials[0]): "Softmax", ("sub", shifted): "LogSoftmax"}.get((name, user.invars[0]))
            if kind is not None and len(reduced) == 1:
                axis = next(i for i, label in enumerate(line) if label in reduced)
                results[id(user)] = Softmax(kind, difference.invars[0], axis)
        return bool(sums)

    def is_divided(self, eqn: Any, line: Labels, sums: dict[Any, list[int | None]], reduced: set[int]) -> bool:
        """Whether an equation divides by one of ``sums``, or subtracts its logarithm."""
        if eqn.primitive.name not in ("div", "sub"):
            return False
        for total, kept in sums.items():
            labels = self.labels(eqn.invars[1], total)
            if labels is not None and self.is_logarithm(eqn.invars[1], total) == (eqn.primitive.name == "sub"):
                return _is_aligned(tuple(None if i is None else kept[i] for i in labels), line, reduced)
        return False

    def is_logarithm(self, atom: Any, total: Any) -> bool:
        """Whether there is a logarithm between ``total`` and what is made of it."""
        while atom is not total:
            eqn = self.makers[atom]
            if eqn.primitive.name == "log":
                return True
            atom = next(a for a in eqn.invars if not hasattr(a, "val"))
        return False


def _is_aligned(labels: Labels | None, line: Labels, reduced: set[int]) -> bool:
    """Whether dimensions stand beside those of the line that they are, or in place of a reduced one."""
    if labels is None or len(labels) != len(line):
        return False
    return all(a == b or (a is None and b in reduced) for a, b in zip(labels, line, strict=True))


def _is_least(atom: Any) -> bool:
    return hasattr(atom, "val") and bool(atom.val == -float("inf"))
