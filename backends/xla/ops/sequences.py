"""Sequences, which are Python lists while a graph is traced, and optionals, which are None or what they hold.

Their elements stay what they are: known ones stay known, so that shapes may be put into a sequence and taken out again.
Definitions: the ONNX operator specification, opset 28.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..lowering import Call, lowers
from ..values import counted, dims, ints, is_known, traced

Array = Any
Known = np.ndarray[Any, Any]


def _elements(call: Call, index: int = 0) -> list[Any]:
    value = call.operands[index]
    if not isinstance(value, list | tuple):
        raise call.error(f"operand {index} is not a sequence")
    return list(value)


def _position(call: Call, position: Known, length: int) -> int:
    """The index that ``position`` names among ``length`` ones."""
    at = ints(position)[0]
    if not -length <= at < length:
        raise call.error(f"position {at} of {length}")
    return at % length


@lowers("SequenceConstruct")
def _construct(call: Call, *operands: Any) -> list[Any]:
    return list(call.operands)


@lowers("SequenceEmpty")
def _empty(call: Call) -> list[Any]:
    return []


@lowers("SequenceLength")
def _length(call: Call, sequence: list[Any]) -> Known:
    return np.array(len(sequence), np.int64)


@lowers("SequenceAt", static={1})
def _at(call: Call, sequence: list[Any], position: Known) -> Any:
    return _elements(call)[_position(call, position, len(sequence))]


@lowers("SequenceInsert", static={2})
def _insert(call: Call, sequence: list[Any], value: Any, position: Known | None = None) -> list[Any]:
    elements = _elements(call)
    count = len(elements)
    at = count if position is None else ints(position)[0]
    if not -count <= at <= count:
        raise call.error(f"position {at} of {count}")
    at += count if at < 0 else 0
    return [*elements[:at], call.operands[1], *elements[at:]]


@lowers("SequenceErase", static={1})
def _erase(call: Call, sequence: list[Any], position: Known | None = None) -> list[Any]:
    elements = _elements(call)
    at = len(elements) - 1 if position is None else _position(call, position, len(elements))
    return elements[:at] + elements[at + 1 :]


@lowers("ConcatFromSequence")
def _concat(call: Call, sequence: list[Any]) -> Array:
    elements, axis = _elements(call), call["axis"]
    if not elements:
        raise call.error("an empty sequence")
    known = all(map(is_known, elements))
    numpy: Any = np if known else jnp
    elements = elements if known else [traced(e) for e in elements]
    return numpy.stack(elements, axis) if call["new_axis"] else numpy.concatenate(elements, axis)


@lowers("SplitToSequence", static={1})
def _split(call: Call, x: Array, split: Known | None = None) -> list[Any]:
    value = call.operands[0] if is_known(call.operands[0]) else x
    axis = counted(call["axis"], value.ndim)
    size = value.shape[axis]
    if split is None or split.ndim == 0:
        if not isinstance(size, int):
            raise call.error(f"the number of pieces depends on the size {size}, which is not known when it is traced")
        step = 1 if split is None else ints(split)[0]
        ends = [min(i + step, size) for i in range(0, size, step)]
    else:
        sizes = dims(split)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    pieces = [value[(slice(None),) * axis + (slice(a, b),)] for a, b in zip([0, *ends[:-1]], ends, strict=True) if ends]
    if split is None and not call["keepdims"]:
        return [piece.reshape((*piece.shape[:axis], *piece.shape[axis + 1 :])) for piece in pieces]
    return pieces


# optionals


@lowers("Optional")
def _optional(call: Call, value: Any = None) -> Any:
    return call.operands[0] if call.operands else None


@lowers("OptionalHasElement")
def _has_element(call: Call, value: Any = None) -> Known:
    return np.array(value is not None)


@lowers("OptionalGetElement")
def _get_element(call: Call, value: Any) -> Any:
    if value is None:
        raise call.error("the optional is empty")
    return call.operands[0]
