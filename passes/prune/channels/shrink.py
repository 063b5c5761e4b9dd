"""Removing channels: constants lose slices, values sizes, and nodes the counts and sizes that are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....ir import Graph, LazyTensor, Node, Tensor, TensorType, Value, constant, edit, op
from ....ir.builder import make_node
from ....ir.infer import IllTyped, content_of, infer_contents, infer_types
from ....ir.tensor import ArrayTensor
from ....ir.types import compatible
from ...base import PassError
from .axes import Axes, Axis, Channels

if TYPE_CHECKING:
    from .coupling import Analysis

__all__ = ["Shrink", "cut", "shrink"]

Array = np.ndarray[Any, Any]


def shrink(analysis: Analysis, removed: Array) -> None:
    """Remove channels from the graph of ``analysis``, in place.

    Args:
        analysis: settled; it describes the graph as it was, and is of no use afterwards.
        removed: numbers of the classes to remove.

    Raises:
        PassError: an operator does not take the new sizes.
    """
    work = Shrink(analysis, removed)
    work.shrink_constants()
    for fix in analysis.fixes:
        fix(work)
    work.retype()


class Shrink:
    """What is removed, and the edits that fixes are made of."""

    def __init__(self, analysis: Analysis, removed: Array):
        self.analysis = analysis
        self._stay: dict[int, Array] = {}
        self._gone = analysis.coupling.mask(removed)

    def kept(self, axis: Axis) -> Array:
        """For each index of the static ``axis``, whether it stays."""
        mask = np.ones(1, bool)
        for factor in axis:
            assert isinstance(factor.size, int)
            own = self._stays(factor) if isinstance(factor, Channels) else np.ones(factor.size, bool)
            mask = (mask[:, None] & own[None, :]).reshape(-1)
        return mask

    def _stays(self, factor: Channels) -> Array:
        found = self._stay.get(id(factor))
        if found is None:
            found = self._stay[id(factor)] = ~self._gone[self.analysis.coupling.find(factor.ids)]
        return found

    def changes(self, axis: Axis) -> bool:
        """Whether something of ``axis`` goes."""
        return any(isinstance(f, Channels) and not self._stays(f).all() for f in axis)

    def count(self, axis: Axis) -> Any:
        """The new size of ``axis``."""
        total: Any = 1
        for factor in axis:
            total = total * (int(self._stays(factor).sum()) if isinstance(factor, Channels) else factor.size)
        return total

    # edits

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Set an attribute."""
        edit.set_attr(node, name, value)

    def drop_attr(self, node: Node, name: str) -> None:
        """Remove an attribute, if it is there."""
        if name in node.attrs:
            edit.set_attr(node, name)

    def set_count(self, node: Node, name: str, axis: Axis) -> None:
        """Let the attribute ``name`` be the new size of ``axis``, if that changes."""
        if self.changes(axis):
            edit.set_attr(node, name, int(self.count(axis)))

    def set_constant(self, node: Node, index: int, array: Array) -> None:
        """Let operand ``index`` be ``array``."""
        operands = [*node.operands, *[None] * (index + 1 - len(node.operands))]
        operands[index] = constant(array)
        edit.set_operands(node, operands)

    def set_sizes(self, node: Node, index: int, axes: Axes) -> None:
        """Let operand ``index``, sizes of ``axes``, say the new ones; what stands for "the rest" (-1, 0) stays."""
        self.set_entries(node, index, {i: self.count(axis) for i, axis in enumerate(axes) if self.changes(axis)}, True)

    def set_entries(self, node: Node, index: int, entries: Mapping[int, Any], keep_marks: bool = False) -> None:
        """Change entries of operand ``index``, a vector of integers, however it is computed."""
        if not entries:
            return
        old = node.given(index)
        dtype = old.dtype.numpy
        if old.const is not None:
            array = old.const.numpy().copy()
            for i, size in entries.items():
                if not keep_marks or array[i] > 0:
                    array[i] = size
            edit.set_operand(node, index, constant(array))
            return
        length = len(content_of(old) or ()) or (old.shape or (max(entries) + 1,))[0]
        assert isinstance(length, int)
        chosen, sizes = np.zeros(length, bool), np.zeros(length, dtype)
        for i, size in entries.items():
            chosen[i], sizes[i] = True, size
        new = op.Where(constant(chosen), constant(sizes), old)
        edit.insert_floating([new], node)
        edit.set_operand(node, index, new)

    def refill(self, node: Node, index: int, axes: Axes) -> None:
        """Let operand ``index``, one number repeated, be another value of that number with the sizes of ``axes``."""
        source = node.given(index).producer
        if source is None or not any(map(self.changes, axes)):
            return
        copy = make_node(source.op, source.operands, dict(source.attrs))
        copy.name, copy.metadata = source.name, source.metadata
        edit.insert(copy, node)
        place = 0 if source.op == "ConstantOfShape" else 1
        asked = (copy.given(place).shape or (len(axes),))[0]  # sizes may be asked for the last axes only
        asked = asked if isinstance(asked, int) else len(axes)
        edit.set_type(copy.result, TensorType(copy.result.dtype, tuple([self.count(axis) for axis in axes])))
        self.set_sizes(copy, place, axes[len(axes) - asked :])
        edit.set_operand(node, index, copy.result)

    # the whole

    def shrink_constants(self) -> None:
        """Cut slices out of constants."""
        made: dict[tuple[int, bytes], Value] = {}
        for slot, axes in self.analysis.constants.items():
            if not any(map(self.changes, axes)):
                continue
            old = slot if isinstance(slot, Value) else slot[0].given(slot[1])
            assert old.const is not None
            masks = tuple([self.kept(axis) for axis in axes])
            key = id(old), b"|".join(m.tobytes() for m in masks)
            if key not in made:  # what several nodes used stays one constant if it still is
                tensor = cut(old.const, masks)
                made[key] = Value(tensor.type, old.name, const=tensor)
            if isinstance(slot, Value):
                _replace(slot, made[key])
            else:
                edit.set_operand(slot[0], slot[1], made[key])

    def retype(self) -> None:
        """State the new sizes of all values, and check that every operator agrees.

        Raises:
            PassError: one does not.
        """
        changed = {value for value, axes in self.analysis.axes.items() if any(map(self.changes, axes))}
        for node in self.analysis.graph.nodes:
            for result in node.results:
                if result in changed and isinstance(result.type, TensorType):
                    sizes = tuple([self.count(axis) for axis in self.analysis.axes[result]])
                    edit.set_type(result, TensorType(result.type.dtype, sizes))
            _renew_content(node)
            _check(node)
        _restate_outputs(self.analysis.graph)


def _replace(old: Value, new: Value) -> None:
    """Let every user of ``old`` use ``new``, whose type differs."""
    for user in old.users:
        edit.set_operands(user, [new if operand is old else operand for operand in user.operands])


def cut(tensor: Tensor, masks: Sequence[Array]) -> Tensor:
    """The slices of ``tensor`` that the masks keep; computed when asked for, unless it is small."""
    indices = [np.flatnonzero(mask) for mask in masks]
    shape = tuple(map(len, indices))

    def compute(array: Array) -> Array:
        for axis, kept in enumerate(indices):
            if len(kept) != array.shape[axis]:
                array = array.take(kept, axis)
        return array

    if tensor.is_cheap:
        return ArrayTensor(compute(tensor.numpy()), tensor.dtype, tensor.name)
    return LazyTensor(compute, (tensor,), tensor.dtype, shape, tensor.name)


def _renew_content(node: Node) -> None:
    for result, elements in zip(node.results, infer_contents(node), strict=False):
        if elements is not None and result.content is not None and elements != result.content:
            edit.set_type(result, result.type, elements)


def _check(node: Node) -> None:
    try:
        types = infer_types(node)
    except IllTyped as error:
        raise PassError(f"the channels of {node.name or node.op} [{node.origin}] cannot be removed: {error}") from error
    for result, type_ in zip(node.results, types, strict=False):
        if not compatible(result.type, type_):
            where = f"{node.name or node.op} [{node.origin}]"
            raise PassError(f"the channels of {where} cannot be removed: it would be {type_}, not {result.type}")


def _restate_outputs(graph: Graph) -> None:
    """Outputs keep their types, since their channels are frozen; a declared one that differs would be an error."""
    for value, info in zip(graph.outputs, graph.output_info, strict=True):
        if not compatible(value.type, info.type):
            raise PassError(f"output {info.name!r} would be {value.type}, and is declared {info.type}")
