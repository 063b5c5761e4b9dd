"""Ladders: the ways to factorize one weight, from coarse to fine, and which rung of them a goal chooses."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir import Value
from ...ir.builder import make_node
from .algebra import Array
from .sites import Site

__all__ = ["Form", "Goal", "Ladder", "allocate", "first_rung", "last_rung"]

Build = Callable[[Value, Sequence[Value], Sequence[Value | None], dict[str, Any]], Value]


@dataclass(frozen=True)
class Form:
    """One way to write a factorized layer down.

    Attributes:
        name: what it is called in reports.
        weights: its constants, in the type of the layer's weight.
        build: makes the nodes, floating, from what the layer multiplies, its constants, the layer's operands behind the
            weight (a bias), and its attributes; returns the result.
    """

    name: str
    weights: tuple[Array, ...]
    build: Build

    @staticmethod
    def regular(op: str, weight: Array) -> Form:
        """The layer as it is."""

        def build(x: Value, weights: Sequence[Value], rest: Sequence[Value | None], attrs: dict[str, Any]) -> Value:
            return make_node(op, (x, *weights, *rest), dict(attrs)).result

        return Form("regular", (weight,), build)


class Ladder:
    """The rungs of one way to factorize one weight: rung 0 has the fewest numbers, and the last is the most precise.

    Attributes:
        site: the weight and its layers.
        worth: what its error counts for where weights compete for parameters.
    """

    site: Site
    worth: float = 1.0

    @property
    def whole(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.site.shape)

    def __len__(self) -> int:
        raise NotImplementedError

    def label(self, rung: int) -> str:
        """The rung for reports: ``rank 64``."""
        raise NotImplementedError

    def parameters(self, rung: int) -> int:
        """How many numbers it has."""
        raise NotImplementedError

    def error(self, rung: int) -> float:
        """The predicted squared error of the result, relative to its mean square."""
        raise NotImplementedError

    def energy(self, rung: int) -> float:
        """The share of the squared singular values that it keeps."""
        raise NotImplementedError

    def forms(self, rung: int) -> list[Form]:
        """The ways to write it down."""
        raise NotImplementedError


@dataclass(frozen=True)
class Goal:
    """What chooses a rung: one of these is given, or none.

    Attributes:
        energy: the share of the squared singular values that is kept at least.
        error: the largest predicted error of a layer's result, relative to the result (root mean square).
        speedup: how many times as fast a layer must be at least.
    """

    energy: float | None = None
    error: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("energy", self.energy, 0, 1),
            ("error", self.error, 0, 1),
            ("speedup", self.speedup, 1, math.inf),
        ):
            if value is not None and not low < value <= high:
                raise ValueError(f"{name} is {value:g}: it is above {low}" + (f", {high} at most" if high < 2 else ""))

    @property
    def is_given(self) -> bool:
        """Whether anything is."""
        return (self.energy, self.error, self.speedup) != (None, None, None)

    def rung(self, ladder: Ladder, faster: Callable[[int, float], bool]) -> int | None:
        """The rung, None if no rung will do; ``faster(rung, s)`` tells whether it is ``s`` times as fast."""
        if self.energy is not None:
            energy = self.energy
            return first_rung(ladder, lambda rung: ladder.energy(rung) >= energy - 1e-9)
        if self.error is not None:
            error = self.error
            return first_rung(ladder, lambda rung: ladder.error(rung) <= error**2 + 1e-12)
        if self.speedup is not None:
            speedup = self.speedup
            return last_rung(ladder, lambda rung: faster(rung, speedup))
        raise ValueError("no goal is given")


def first_rung(ladder: Ladder, holds: Callable[[int], bool]) -> int | None:
    """The lowest rung for which ``holds`` is true, by bisection: true of a rung, it is true of those above it."""
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low if low < len(ladder) else None


def last_rung(ladder: Ladder, holds: Callable[[int], bool]) -> int | None:
    """The highest rung for which ``holds`` is true, likewise: true of a rung, it is true of those below it."""
    above = first_rung(ladder, lambda rung: not holds(rung))
    rung = (len(ladder) if above is None else above) - 1
    return rung if rung >= 0 else None


def allocate(ladders: Mapping[Any, Ladder], budget: float) -> dict[Any, int | None]:
    """Rungs for all ladders with the least sum of predicted errors, by their worth, for so many parameters in all.

    Parameters go, a rung at a time, where they take most error away (water-filling), which is best where errors fall
    less and less. A weight whose rung has as many parameters as the weight itself stays as it is, without error, and
    the others share what is left.

    Args:
        ladders: of weights, whose errors are cheap to have.
        budget: the parameters of all.

    Returns:
        The rungs; None for a weight that stays as it is. Everything has at least its lowest rung.
    """
    chosen: dict[Any, int | None] = dict.fromkeys(ladders, 0)
    while True:
        spent = sum(ladders[k].whole if rung is None else ladders[k].parameters(0) for k, rung in chosen.items())
        rungs = {k: 0 for k, rung in chosen.items() if rung is not None}
        queue = [(_gain(ladders[k], 0), i, k) for i, k in enumerate(rungs) if len(ladders[k]) > 1]
        heapq.heapify(queue)
        full: list[Any] = []
        while queue:
            _, i, k = heapq.heappop(queue)
            ladder, rung = ladders[k], rungs[k]
            step = ladder.parameters(rung + 1) - ladder.parameters(rung)
            if spent + step > budget:
                continue
            spent += step
            rungs[k] = rung + 1
            if rung + 2 < len(ladder):
                heapq.heappush(queue, (_gain(ladder, rung + 1), i, k))
            elif ladder.error(rung + 1) > 0:
                full.append(k)
        chosen |= rungs
        if not full:
            return chosen
        chosen |= dict.fromkeys(full)


def _gain(ladder: Ladder, rung: int) -> float:
    """Minus the error that the next rung takes away for each parameter."""
    step = ladder.parameters(rung + 1) - ladder.parameters(rung)
    return -ladder.worth * (ladder.error(rung) - ladder.error(rung + 1)) / max(step, 1)
