"""Groups: channels that are chosen from together, because they are the outputs of the same layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....ir import Graph, Node
from .axes import Axis, Channels, Coupling
from .coupling import Analysis, Slot, Weight, analyze, name_of

__all__ = ["Group", "Kept", "Member", "find_groups", "kept_for", "single_ids"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Member:
    """An axis of a weight whose slices go with the channels of a group.

    Attributes:
        weight: the weight.
        axis: the axis.
        makes: whether the layer makes the channels; else it reads them.
        channels: for each index of the axis, the channel of the group, or -1 if it belongs to another one.
    """

    weight: Weight
    axis: int
    makes: bool
    channels: Array


@dataclass
class Group:
    """Coupled channels.

    Attributes:
        classes: the class of each channel, in the order of the first layer's outputs.
        members: the axes of weights that have them, those that make them first.
    """

    classes: Array
    members: list[Member] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of channels."""
        return len(self.classes)

    @property
    def layers(self) -> list[Node]:
        """The layers that make the channels."""
        return list(dict.fromkeys(m.weight.node for m in self.members if m.makes))

    @property
    def readers(self) -> list[Node]:
        """The layers that read them."""
        return list(dict.fromkeys(m.weight.node for m in self.members if not m.makes))

    @property
    def name(self) -> str:
        """What it is called in reports: its first layer."""
        return self.members[0].weight.name

    @property
    def width(self) -> int:
        """How many neighbouring outputs one channel is, in the layer where it is least: 64 for a head of 64."""
        counts = [int((m.channels >= 0).sum()) // self.size for m in self.members if m.makes]
        return max(min(counts, default=1), 1)


@dataclass(frozen=True)
class Kept:
    """A layer whose outputs all stay, and why.

    Attributes:
        node: the layer.
        reason: why.
    """

    node: Node
    reason: str

    @property
    def name(self) -> str:
        """What the layer is called in reports."""
        return name_of(self.node)


def find_groups(
    graph: Graph, is_selected: Callable[[Node], bool] = lambda node: True
) -> tuple[Analysis, list[Group], list[Kept]]:
    """The groups of ``graph``, and the layers that are in none.

    Args:
        graph: the graph, which stays as it is.
        is_selected: whether the outputs of a layer may go.
    """
    analysis = analyze(graph)
    for weight in analysis.weights:
        if not is_selected(weight.node):
            axes = analysis.constants[weight.slot]
            analysis.freeze([axes[i] for i in weight.out], "it is not selected")
    analysis.coupling.settle()
    _choose_axes(analysis)
    groups, kept = _grouped(analysis)
    _add_members(analysis, groups)
    return analysis, groups, kept


def _choose_axes(analysis: Analysis) -> None:
    """Where a weight makes channels along several axes, such as heads and their elements, leave one of them free."""
    coupling = analysis.coupling
    for weight in analysis.weights:
        axes = [analysis.constants[weight.slot][i] for i in weight.out]
        free = [axis for axis in axes if not coupling.frozen(ids := single_ids(axis)).all() and len(ids)]
        if len(free) > 1:
            best = max(free, key=lambda axis: (coupling.is_liked(axis), len(single_ids(axis))))
            coupling.like(best)
            analysis.freeze([axis for axis in free if axis is not best], "channels go along another axis of the weight")


def single_ids(axis: Axis) -> Array:
    """The atoms of an axis of a constant; none if it has the size 1."""
    return axis[0].ids if len(axis) == 1 and isinstance(axis[0], Channels) else np.empty(0, np.int64)


def _grouped(analysis: Analysis) -> tuple[list[Group], list[Kept]]:
    """Join layers that have a class in common; number the classes of each group."""
    coupling, links = analysis.coupling, Coupling()
    links.new(coupling.size)
    kept = [Kept(node, reason) for node, reason in analysis.unseen]
    made: list[Array] = []  # the classes of each layer that has free ones
    for weight in analysis.weights:
        axes = analysis.constants[weight.slot]
        ids = np.concatenate([np.empty(0, np.int64), *[single_ids(axes[i]) for i in weight.out]])
        classes = coupling.find(ids[~coupling.frozen(ids)]) if len(ids) else ids
        if len(classes):
            links.equate(classes, np.full_like(classes, classes[0]))
            made.append(classes)
        else:
            kept.append(Kept(weight.node, coupling.why(ids) if len(ids) else "it has one output"))
    sets: dict[int, list[Array]] = {}
    for classes in made:
        sets.setdefault(int(links.find(classes[:1])[0]), []).append(classes)
    return [Group(_in_order(np.concatenate(parts))) for parts in sets.values()], kept


def _in_order(classes: Array) -> Array:
    """Each of ``classes`` once, in the order of first appearance."""
    _, first = np.unique(classes, return_index=True)
    return classes[np.sort(first)]


def _add_members(analysis: Analysis, groups: Sequence[Group]) -> None:
    size = 1 + max((int(g.classes.max()) for g in groups), default=0)
    number_of, channel_of = np.full(size + 1, -1), np.full(size + 1, -1)  # the last one is for all others
    for number, group in enumerate(groups):
        number_of[group.classes], channel_of[group.classes] = number, np.arange(group.size)
    found: list[tuple[bool, int, Member]] = []
    for weight in analysis.weights:
        axes = analysis.constants[weight.slot]
        for axis in (*weight.out, *weight.into):
            classes = analysis.coupling.find(single_ids(axes[axis]))
            known, channels = number_of[np.minimum(classes, size)], channel_of[np.minimum(classes, size)]
            for number in np.unique(known[known >= 0]):
                mine = np.where(known == number, channels, -1)
                found.append((axis in weight.into, int(number), Member(weight, axis, axis in weight.out, mine)))
    for _, number, member in sorted(found, key=lambda f: f[0]):
        groups[number].members.append(member)


def kept_for(analysis: Analysis, removed: Iterable[int]) -> dict[Slot, dict[int, Array]]:
    """For each constant that shrinks, by axis, the indices that stay when classes are removed."""
    from .shrink import Shrink

    work = Shrink(analysis, np.array(list(removed), np.int64))
    found: dict[Slot, dict[int, Array]] = {}
    for slot, axes in analysis.constants.items():
        changed = {i: np.flatnonzero(work.kept(axis)) for i, axis in enumerate(axes) if work.changes(axis)}
        if changed:
            found[slot] = changed
    return found
