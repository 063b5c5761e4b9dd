"""Optimization profiles: the smallest, most usual and largest sizes that an engine is built for.

They come from what the user says of the graph's named sizes (``batch=1:8:32``), or of an input's shape as a whole
(``x=1x3x224x224:8x3x224x224:32x3x224x224``); where an input's elements decide shapes, of its elements
(``size=64x64:224x224:512x512``). Several profiles are separated by semicolons. What is not said gets a usual range, and
a note.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...ir import Graph, Value
from ...ir.dims import Dim, Sym, limits, substitute
from ...ir.errors import PlanishError
from ...ir.types import TensorType

__all__ = ["Bounds", "Profile", "Range", "Request", "parse", "resolve"]

_MOST = (1 << 31) - 1
_INTEGER = re.compile(r"-?\d+")
_CORNERS = 8  # symbols in one dimension whose extremes are all combined
_USUAL = {"batch": (1, 8, 32), "length": (1, 128, 512), "image": (64, 256, 512)}
_BATCH, _IMAGE = 0, 4  # the axis of a batch; the rank of images, whose axes from 2 on are height and width


class Range(NamedTuple):
    """The smallest, the most usual and the largest number."""

    least: int
    usual: int
    most: int

    def __str__(self) -> str:
        if self.least == self.most:
            return str(self.least)
        return f"{self.least} to {self.most}, best at {self.usual}"


Numbers = tuple[int, ...]


class Bounds(NamedTuple):
    """The smallest, the most usual and the largest shape of an input, or elements of one that decides shapes."""

    least: Numbers
    usual: Numbers
    most: Numbers


@dataclass(frozen=True)
class Request:
    """What was asked for in one profile: ranges of named sizes or of inputs of one element, and bounds of inputs."""

    ranges: Mapping[str, Range] = field(default_factory=dict)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)


@dataclass
class Profile:
    """One profile.

    Attributes:
        sizes: the range of each named size.
        shapes: the bounds of each input whose shape is open.
        elements: the bounds of the elements of each input that decides shapes.
        chosen: the sizes whose range was not given.
    """

    sizes: dict[str, Range] = field(default_factory=dict)
    shapes: dict[str, Bounds] = field(default_factory=dict)
    elements: dict[str, Bounds] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """It, ready for JSON."""
        return {
            "sizes": {name: list(found) for name, found in self.sizes.items()},
            "shapes": {name: [list(n) for n in found] for name, found in self.shapes.items()},
            "elements": {name: [list(n) for n in found] for name, found in self.elements.items()},
        }


# --- reading what the user says --------------------------------------------------------------------------------------


def parse(sizes: Any) -> list[Request]:
    """The requests that ``sizes`` makes: text, a mapping from names, or a list with one such mapping per profile.

    A value is a number, or three: the smallest, the most usual and the largest; for the shape of an input (or its
    elements), instead of numbers, tuples of them.

    Raises:
        PlanishError: it makes none.
    """
    if sizes is None:
        return [Request()]
    if isinstance(sizes, str):
        profiles: list[Any] = [_pairs(part) for part in sizes.split(";") if part.strip()]
    else:
        profiles = [sizes] if isinstance(sizes, Mapping) else list(sizes)
    return [_request(dict(p)) for p in profiles] or [Request()]


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    for part in text.split(","):
        name, _, value = part.strip().rpartition("=")
        numbers = [[n.strip() for n in bound.split("x")] for bound in value.split(":")]
        if not name or not all(_INTEGER.fullmatch(n) for bound in numbers for n in bound):
            raise PlanishError(f"sizes {part.strip()!r}: write name=number, name=min:opt:max or name=1x3x224x224:…:…")
        found = [tuple(map(int, bound)) for bound in numbers]
        yield name.strip(), [f[0] if len(f) == 1 else f for f in found]


def _request(given: Mapping[str, Any]) -> Request:
    ranges: dict[str, Range] = {}
    bounds: dict[str, Bounds] = {}
    for name, value in given.items():
        three = _three(name, value)
        if all(isinstance(v, int) for v in three):
            ranges[name] = Range(*three)
            steps: list[tuple[int, ...]] = [tuple(three)]
        else:
            shapes = [(v,) if isinstance(v, int) else v for v in three]
            if len({len(s) for s in shapes}) != 1:
                raise PlanishError(f"sizes of {name!r}: {', '.join(map(_text, shapes))} are not of equal rank")
            bounds[name] = Bounds(*shapes)
            steps = list(zip(*shapes, strict=True))
        for step in steps:
            if not -_MOST <= step[0] <= step[1] <= step[2] <= _MOST:
                raise PlanishError(f"sizes of {name!r}: {':'.join(map(str, step))} is no min:opt:max")
    return Request(ranges, bounds)


def _three(name: str, value: Any) -> list[Any]:
    """Three numbers, or three tuples of numbers."""
    parts = [value] * 3 if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    if len(parts) == 1:
        parts *= 3
    parts = [tuple(p) if isinstance(p, Sequence) and not isinstance(p, str) else p for p in parts]
    flat = [n for p in parts for n in (p if isinstance(p, tuple) else (p,))]
    if len(parts) != 3 or not all(isinstance(n, int) for n in flat):
        raise PlanishError(f"sizes of {name!r}: give a number, or three: smallest, most usual, largest")
    return parts


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


# --- what it means for a graph ---------------------------------------------------------------------------------------


def resolve(
    graph: Graph, requests: Sequence[Request], elements: Mapping[str, int] | None = None
) -> tuple[list[Profile], list[str]]:
    """The profiles of ``graph`` for ``requests``, and notes on what was not said.

    Args:
        graph: the graph.
        requests: what is wanted; none if nothing is open.
        elements: the inputs whose elements decide shapes, and the number of their elements.

    Raises:
        PlanishError: a name that is unknown, or ranges that contradict the graph or each other.
    """
    profiles: list[Profile] = []
    notes: dict[str, None] = {}
    for request in requests:
        task = _Resolving(graph, request, elements or {})
        profiles.append(task.profile)
        notes.update(dict.fromkeys(task.notes))
    return profiles, list(notes)


class _Resolving:
    """One run of `resolve` for one request."""

    def __init__(self, graph: Graph, request: Request, elements: Mapping[str, int]):
        self.graph = graph
        self.request = request
        self.elements = elements
        self.notes: list[str] = []
        self.inputs = {v.name: v for v in graph.inputs}
        self.named = {n: None for v in graph.inputs for d in v.shape or () for n in _names(d) if not n.startswith("?")}
        self.ranges: dict[str, Range] = {}  # by atom, anonymous ones too
        self.profile = Profile()
        self._check_names()
        self._bind()
        self._choose()
        for value in graph.inputs:
            self._shape(value)
        for name, count in elements.items():
            self._elements(name, count)
        self._check_values()
        self.profile.sizes = {name: self.ranges[name] for name in self.named}

    def _check_names(self) -> None:
        for name in (*self.request.ranges, *self.request.bounds):
            if name not in self.named and name not in self.inputs:
                known = [*self.named, *(n for n in self.inputs if n not in self.named)]
                raise PlanishError(f"sizes: the model has no size or input {name!r}: there are {', '.join(known)}")

    def _bind(self) -> None:
        """Take what is said of sizes, and of shapes."""
        for name, found in self.request.ranges.items():
            if name in self.named:
                if found.least < 0:
                    raise PlanishError(f"sizes of {name!r}: {found.least} is no size")
                self.ranges[name] = found
            elif name not in self.elements and self.inputs[name].rank != 1:
                raise PlanishError(
                    f"sizes of {name!r}: one number is given, and it has {self.inputs[name].rank} dimensions"
                )
        for name, bounds in self._shapes_given():
            shape = self.inputs[name].shape
            if shape is None or len(shape) != len(bounds.least):
                what = "no known number of" if shape is None else str(len(shape))
                raise PlanishError(f"sizes of {name!r}: {_text(bounds.usual)} is given, and it has {what} dimensions")
            for axis, dim in enumerate(shape):
                self._bind_dim(name, axis, dim, Range(*(b[axis] for b in bounds)))

    def _shapes_given(self) -> Iterator[tuple[str, Bounds]]:
        """The inputs whose shapes, not elements, are given."""
        for name, bounds in self.request.bounds.items():
            if name not in self.inputs:
                raise PlanishError(f"sizes of {name!r}: it is a size, give numbers")
            if name not in self.elements:
                yield name, bounds
        for name, found in self.request.ranges.items():
            if name not in self.named and name not in self.elements:
                yield name, Bounds(*((n,) for n in found))

    def _bind_dim(self, name: str, axis: int, dim: Dim, found: Range) -> None:
        if isinstance(dim, int):
            if found != Range(dim, dim, dim):
                raise PlanishError(f"sizes of {name!r}: axis {axis} is {dim} in the model, not {found}")
            return
        atom = dim.name
        if atom is None or len(_names(dim)) != 1 or _names(dim)[0] != atom:
            return  # an expression: checked when all sizes are known
        if self.ranges.setdefault(atom, found) != found:
            raise PlanishError(f"sizes of {name!r}: axis {axis} is {atom}, which is {self.ranges[atom]}, not {found}")

    def _choose(self) -> None:
        """Usual ranges for what was not given, within the tables that the graph takes parts of."""
        caps = self._table_sizes()
        for value in self.graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                for atom in _names(dim):
                    if atom in self.ranges:
                        continue
                    cap = caps.get(atom, _MOST)
                    found = self.ranges[atom] = Range(*(min(n, cap) for n in _usual(axis, value.rank or 0)))
                    what = f"axis {axis} of {value.name}" if atom.startswith("?") else atom
                    self.profile.chosen.append(atom)
                    self.notes.append(f"{what} is not given: built for {found} (see sizes)")

    def _table_sizes(self) -> dict[str, int]:
        """The sizes of which as many positions are taken of something fixed, and how many that has."""
        found: dict[str, int] = {}
        for node in self.graph.nodes:
            source = node.operands[0] if node.op == "Slice" else None
            if source is None or source.shape is None or node.result.shape is None:
                continue
            for size, part in zip(source.shape, node.result.shape, strict=False):
                for name, number in limits(part) if isinstance(size, int) else ():
                    if number == size:
                        found[name] = min(number, found.get(name, number))
        return found

    def _shape(self, value: Value) -> None:
        if not isinstance(value.type, TensorType) or value.shape is None:
            raise PlanishError(f"input {value.name!r} has no known number of dimensions, which TensorRT needs")
        if all(isinstance(d, int) for d in value.shape):
            return
        ranges = [self._range(dim) for dim in value.shape]
        bounds = Bounds(*(tuple(r[i] for r in ranges) for i in range(3)))
        given = self.request.bounds.get(value.name) if value.name not in self.elements else None
        if given is not None and given != bounds:
            shown = [":".join(_text(b) for b in found) for found in (given, bounds)]
            raise PlanishError(f"sizes of {value.name!r}: {shown[0]} is given, and its sizes make it {shown[1]}")
        for axis, found in enumerate(ranges):
            if not 0 <= found.least <= found.usual <= found.most <= _MOST:
                dim, shown_range = value.shape[axis], ":".join(map(str, found))
                raise PlanishError(f"sizes: axis {axis} of {value.name!r} is {dim}, for which that is {shown_range}")
        self.profile.shapes[value.name] = bounds

    def _range(self, dim: Dim) -> Range:
        """The extremes of ``dim`` over all sizes, and its value for the usual ones."""
        atoms = _names(dim)
        usual = self._at(dim, {a: self.ranges[a].usual for a in atoms})
        if len(atoms) > _CORNERS:
            ends = [self._at(dim, {a: self.ranges[a][i] for a in atoms}) for i in (0, 2)]
        else:
            corners = itertools.product(*((self.ranges[a].least, self.ranges[a].most) for a in atoms))
            ends = [self._at(dim, dict(zip(atoms, corner, strict=True))) for corner in corners]
        return Range(min(ends), usual, max(ends))

    def _at(self, dim: Dim, sizes: Mapping[str, int]) -> int:
        try:
            return int(substitute(dim, sizes.__getitem__))
        except ZeroDivisionError:
            at = ", ".join(f"{n} is {s}" for n, s in sizes.items())
            raise PlanishError(f"sizes: the size {dim} divides by zero where {at}") from None

    def _elements(self, name: str, count: int) -> None:
        """The elements of an input that decides shapes."""
        given = self.request.bounds.get(name)
        if given is None and name in self.request.ranges:
            given = Bounds(*((n,) * count for n in self.request.ranges[name]))
        default = self.inputs[name].default if name in self.inputs else None
        if given is not None and len(given.least) != count:
            raise PlanishError(
                f"sizes of {name!r}: it has {count} elements, which decide shapes, not {len(given.least)}"
            )
        if given is None and default is not None:
            numbers = tuple(int(n) for n in default.numpy().ravel())
            given = Bounds(numbers, numbers, numbers)
        elif given is None:
            usual = _USUAL["length"]
            given = Bounds(*((n,) * count for n in usual))
            self.notes.append(f"the elements of {name} are not given: built for {Range(*usual)} (see sizes)")
        self.profile.elements[name] = given

    def _check_values(self) -> None:
        """No size in the graph may be negative."""
        known = self.ranges.keys()
        seen: set[Dim] = set()
        for node in self.graph.nodes:
            for dim in (d for value in node.results for d in value.shape or ()):
                names = _names(dim) if dim not in seen else []
                seen.add(dim)
                if not names or not known >= set(names):
                    continue
                for i in range(3):
                    sizes = {n: self.ranges[n][i] for n in names}
                    if self._at(dim, sizes) < 0:
                        at = ", ".join(f"{n} is {s}" for n, s in sizes.items())
                        raise PlanishError(f"sizes: {node.op} {node.name!r} gives {dim} elements: none where {at}")


def _names(dim: Dim) -> list[str]:
    """The sizes that ``dim`` is computed from."""
    found: dict[str, None] = {}

    def note(name: str) -> int:
        found[name] = None
        return 1009  # a prime, so that few expressions divide by zero

    if isinstance(dim, Sym):
        with suppress(ZeroDivisionError):
            substitute(dim, note)
    return list(found)


def _usual(axis: int, rank: int) -> tuple[int, int, int]:
    if axis == _BATCH:
        return _USUAL["batch"]
    return _USUAL["image" if rank >= _IMAGE and axis >= rank - 2 else "length"]
