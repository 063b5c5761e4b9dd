"""What goes into a model: names, shapes and element types, which sizes are open, and what these are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...ir.errors import ModelError

__all__ = ["Input", "mapped", "open_axes", "opened", "size_name"]


@dataclass(frozen=True)
class Input:
    """An input: its name, its shape (None for an open size, or for a shape without a known rank), its element type."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: Any


def open_axes(
    inputs: Sequence[Input], dynamic_shapes: Any, what: str, *, is_fixed: bool = False
) -> list[dict[int, str]]:
    """The names that ``dynamic_shapes`` gives to sizes, by axis, for each input.

    Args:
        inputs: the inputs.
        dynamic_shapes: by the input's name, or one for each input: axes and names, or a name (or None) for each axis.
        what: how messages call the model.
        is_fixed: whether only sizes that are open already can be named.

    Raises:
        ModelError: it does not fit the inputs.
    """
    if not dynamic_shapes:
        return [{} for _ in inputs]
    names = [i.name for i in inputs]
    if not isinstance(dynamic_shapes, Mapping):
        if isinstance(dynamic_shapes, str) or len(dynamic_shapes) != len(inputs):
            raise ModelError(f"{what}: dynamic_shapes is a mapping, or has one entry for each of {len(inputs)} inputs")
        dynamic_shapes = dict(zip(names, dynamic_shapes, strict=True))
    unknown = [str(name) for name in dynamic_shapes if name not in names]
    if unknown:
        known = ", ".join(names) or "none"
        raise ModelError(f"{what}: dynamic_shapes names {', '.join(unknown)}; the inputs are {known}")
    return [_axes(i, dynamic_shapes.get(i.name), f"{what}: dynamic_shapes of {i.name}", is_fixed) for i in inputs]


def _axes(given: Input, names: Any, where: str, is_fixed: bool) -> dict[int, str]:
    if not names:
        return {}
    if isinstance(names, str):
        raise ModelError(f"{where}: {names!r}; write axes and names, such as {{0: 'batch'}}")
    by_axis = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    by_axis = {axis: name for axis, name in by_axis.items() if name is not None}
    if not all(isinstance(name, str) and name.isidentifier() for name in by_axis.values()):
        raise ModelError(f"{where}: sizes are called by words, such as {{0: 'batch'}}")
    shape = given.shape or ()
    if any(not isinstance(axis, int) or not -len(shape) <= axis < len(shape) for axis in by_axis):
        raise ModelError(f"{where}: axes {', '.join(map(str, by_axis))} of a tensor of rank {len(shape)}")
    found = {axis % len(shape): str(name) for axis, name in by_axis.items()}
    if is_fixed:
        for axis in found:
            if shape[axis] is not None:
                raise ModelError(f"{where}: the model itself fixes the size of axis {axis} at {shape[axis]}")
    return found


def opened(given: Input, axes: Mapping[int, str]) -> Input:
    """``given``, whose named sizes are open."""
    if given.shape is None or not axes:
        return given
    return replace(given, shape=tuple(None if axis in axes else size for axis, size in enumerate(given.shape)))


def mapped(structure: Any, function: Callable[[str, Any], Any], path: str = "") -> Any:
    """Nested lists, tuples and dictionaries with ``function(name, leaf)`` for every leaf, in TensorFlow's order.

    Names are the places that lead to a leaf: ``ids`` and ``ids.0`` in a dictionary (after ``path``, if there is one),
    ``x_0`` in a list that is called ``x``.
    """

    def entries(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        return {key: mapped(part, function, f"{path}.{key}" if path else str(key)) for key, part in pairs}

    if structure is None:
        return None
    if isinstance(structure, Mapping):
        return entries([(key, structure[key]) for key in sorted(structure)])
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(**entries(list(zip(structure._fields, structure, strict=True))))
    if isinstance(structure, list | tuple):
        found = [mapped(part, function, f"{path}_{i}" if path else str(i)) for i, part in enumerate(structure)]
        return found if isinstance(structure, list) else tuple(found)
    return function(path, structure)


def size_name(name: str, axis: int, *, is_batch: bool) -> str:
    """What an open size is called that nobody named.

    Args:
        name: of the input.
        axis: of the size.
        is_batch: whether the first dimension of all inputs is one batch.
    """
    if is_batch and axis == 0:
        return "batch"
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name) + f"_dim{axis}"
