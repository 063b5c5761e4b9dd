"""Sequences and optionals."""

from __future__ import annotations

from ..dims import Dim, Sym, fresh
from ..graph import Graph, Node
from ..types import UNKNOWN, DType, OptionalType, SequenceType, TensorType, Type
from .common import attr_int, common_dtype, dtype_of, join, normal_axis, operand, operand_type, tensor_types
from .control import infer_body
from .engine import IllTyped, content_of, typing


def _sequence(node: Node, i: int = 0) -> Type:
    """The element type of operand ``i``, which must be a sequence."""
    type_ = operand(node, i).type
    if type_ is UNKNOWN or type_ == UNKNOWN:
        return UNKNOWN
    if isinstance(type_, OptionalType) or not isinstance(type_, SequenceType):
        raise IllTyped(f"{node.op}: operand {i} is {type_}, not a sequence")
    return type_.element


def one_element(element: Type) -> Type:
    """The type of one element of a sequence: sizes that no name fixes are its own."""
    if not isinstance(element, TensorType) or element.shape is None or element.is_static:
        return element
    own = tuple([fresh() if isinstance(d, Sym) and d.mentions_anonymous else d for d in element.shape])
    return TensorType(element.dtype, own)


@typing("SequenceConstruct")
def _sequence_construct(node: Node) -> Type:
    types = tensor_types(node)
    common_dtype(node, types)
    element: Type = types[0]
    for type_ in types[1:]:
        element = join(element, type_)
    return SequenceType(element)


@typing("SequenceEmpty")
def _sequence_empty(node: Node) -> Type:
    return SequenceType(TensorType(dtype_of(attr_int(node, "dtype", int(DType.FLOAT))), None))


@typing("SequenceInsert")
def _sequence_insert(node: Node) -> Type:
    element, new = _sequence(node), operand_type(node, 1)
    if isinstance(element, TensorType):
        common_dtype(node, (element, new))
    return SequenceType(join(element, new))


@typing("SequenceErase")
def _sequence_erase(node: Node) -> Type:
    _sequence(node)
    return operand(node, 0).type


@typing("SequenceAt")
def _sequence_at(node: Node) -> Type:
    return one_element(_sequence(node))


@typing("SequenceLength")
def _sequence_length(node: Node) -> Type:
    _sequence(node)
    return TensorType(DType.INT64, ())


@typing("SplitToSequence")
def _split_to_sequence(node: Node) -> Type:
    data = operand_type(node, 0)
    if data.shape is None:
        return SequenceType(data)
    axis = normal_axis(node, attr_int(node, "axis", 0), len(data.shape))
    before, after = data.shape[:axis], data.shape[axis + 1 :]
    if len(node.operands) < 2 or node.operands[1] is None:
        middle: tuple[Dim, ...] = (1,) if attr_int(node, "keepdims", 1) else ()
        return SequenceType(TensorType(data.dtype, before + middle + after))
    split = operand_type(node, 1)
    sizes = content_of(node.operands[1])
    size: Dim = fresh()
    if sizes and split.shape == ():
        whole = data.shape[axis]
        if type(sizes[0]) is int and sizes[0] <= 0:
            raise IllTyped(f"SplitToSequence: pieces of {sizes[0]}")
        if type(whole) is int and type(sizes[0]) is int and whole % sizes[0] == 0:
            size = sizes[0]
    elif sizes and all(s == sizes[0] for s in sizes):
        size = sizes[0]
    return SequenceType(TensorType(data.dtype, (*before, size, *after)))


@typing("ConcatFromSequence")
def _concat_from_sequence(node: Node) -> Type:
    element = _sequence(node)
    if not isinstance(element, TensorType):
        raise IllTyped(f"ConcatFromSequence: a sequence of {element}")
    if element.shape is None:
        return element
    own = one_element(element)
    assert isinstance(own, TensorType)
    assert own.shape is not None
    rank = len(own.shape)
    if attr_int(node, "new_axis", 0):
        axis = normal_axis(node, node.attrs["axis"], rank + 1)
        return TensorType(own.dtype, (*own.shape[:axis], fresh(), *own.shape[axis:]))
    axis = normal_axis(node, node.attrs["axis"], rank)
    return TensorType(own.dtype, (*own.shape[:axis], fresh(), *own.shape[axis + 1 :]))


@typing("SequenceMap")
def _sequence_map(node: Node) -> tuple[Type, ...]:
    body = node.attrs["body"]
    if not isinstance(body, Graph):
        raise IllTyped("SequenceMap: the body is not a graph")
    types: list[Type] = []
    for i, value in enumerate(node.operands):
        type_ = operand(node, i).type if value is not None else UNKNOWN
        is_sequence = isinstance(type_, SequenceType) and not isinstance(type_, OptionalType)
        types.append(one_element(type_.element) if is_sequence else type_)  # type: ignore[union-attr]
    outputs = infer_body(node, body, types)
    return tuple([SequenceType(one_element(type_)) for type_ in outputs])


# optionals


@typing("Optional")
def _optional(node: Node) -> Type:
    if node.operands and node.operands[0] is not None:
        return OptionalType(node.operands[0].type)
    stated = node.attrs.get("type")
    return OptionalType(stated if isinstance(stated, TensorType | SequenceType) else UNKNOWN)


@typing("OptionalGetElement")
def _optional_get_element(node: Node) -> Type:
    type_ = operand(node, 0).type
    return type_.element if isinstance(type_, OptionalType) else type_


@typing("OptionalHasElement")
def _optional_has_element(node: Node) -> Type:
    return TensorType(DType.BOOL, ())
