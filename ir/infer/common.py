"""What the rule families share: reading operands and attributes, axes, broadcasting, and joining types."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..dims import Dim, dim_floordiv, fresh, is_clipped
from ..graph import Node, Value
from ..types import UNKNOWN, DType, SequenceType, TensorType, Type
from .engine import IllTyped, content_of

__all__ = [
    "ANY",
    "FLOATS",
    "INDICES",
    "INTEGERS",
    "MATMUL",
    "NUMERIC",
    "SIGNED",
    "DTypes",
    "Shape",
    "attr_int",
    "attr_ints",
    "axes_operand",
    "broadcast",
    "broadcast_dim",
    "broadcast_to",
    "ceil_div",
    "check_dtype",
    "common_dtype",
    "dtype_of",
    "dtypes",
    "fresh_dims",
    "join",
    "normal_axes",
    "normal_axis",
    "operand",
    "operand_type",
    "optional_type",
    "same_dim",
    "tensor_types",
    "vector_length",
    "with_shape",
]

Shape = tuple[Dim, ...]
DTypes = tuple[bool, ...]  # by number of the element type: whether a constraint allows it

_BY_NUMBER = {int(d): d for d in DType}


def dtypes(*names: str) -> DTypes:
    """The constraint that allows the element types ``names``, and the unknown one."""
    allowed = {DType.UNDEFINED} | {DType[name] for group in names for name in group.split()}
    return tuple(d in allowed for d in DType)


_FLOAT = "FLOAT16 FLOAT DOUBLE BFLOAT16"
_SIGNED = "INT8 INT16 INT32 INT64"
_UNSIGNED = "UINT8 UINT16 UINT32 UINT64"
ANY = (True,) * len(DType)
FLOATS = dtypes(_FLOAT)
SIGNED = dtypes(_FLOAT, _SIGNED)
INTEGERS = dtypes(_SIGNED, _UNSIGNED)
NUMERIC = dtypes(_FLOAT, _SIGNED, _UNSIGNED)
MATMUL = dtypes(_FLOAT, "INT32 INT64 UINT32 UINT64")
INDICES = dtypes("INT32 INT64")


# operands and attributes


def operand(node: Node, i: int) -> Value:
    """Operand ``i``, which must be there."""
    value = node.operands[i] if i < len(node.operands) else None
    if value is None:
        raise IllTyped(f"{node.op}: operand {i} is missing")
    return value


def operand_type(node: Node, i: int) -> TensorType:
    """The type of operand ``i``, which must be there and be a tensor."""
    operands = node.operands
    if i < len(operands) and (value := operands[i]) is not None:
        type_ = value.type
        if type(type_) is TensorType:
            return type_
        raise IllTyped(f"{node.op}: operand {i} is {type_}, not a tensor")
    raise IllTyped(f"{node.op}: operand {i} is missing")


def optional_type(node: Node, i: int) -> TensorType | None:
    """The type of operand ``i``, which must be a tensor unless it is left out."""
    if i >= len(node.operands) or node.operands[i] is None:
        return None
    return operand_type(node, i)


def tensor_types(node: Node) -> list[TensorType]:
    """The types of all operands of a variadic operator: at least one, and each a tensor."""
    if not node.operands:
        raise IllTyped(f"{node.op}: needs an operand")
    return [operand_type(node, i) for i in range(len(node.operands))]


def attr_int(node: Node, name: str, default: int) -> int:
    """The integer attribute ``name``."""
    value = node.attrs.get(name, default)
    if type(value) is not int:
        raise IllTyped(f"{node.op}: attribute {name} is {value!r}, not an integer")
    return value


def attr_ints(node: Node, name: str, count: int, default: int) -> tuple[int, ...]:
    """The attribute ``name``: ``count`` integers."""
    value = node.attrs.get(name)
    if value is None:
        return (default,) * count
    if len(value) != count or any(type(v) is not int for v in value):
        raise IllTyped(f"{node.op}: attribute {name} is {value!r}, not {count} integers")
    return tuple(value)


def dtype_of(number: int) -> DType:
    """The element type with ONNX's ``number``; UNDEFINED for one that planish does not know."""
    return _BY_NUMBER.get(number, DType.UNDEFINED)


def check_dtype(node: Node, dtype: DType, allowed: DTypes) -> DType:
    """``dtype``, which the operator must allow."""
    if not allowed[dtype]:
        raise IllTyped(f"{node.op} is not defined on {dtype.text}")
    return dtype


def common_dtype(node: Node, types: Iterable[TensorType], allowed: DTypes = ANY) -> DType:
    """The element type that all ``types`` share."""
    dtype = DType.UNDEFINED
    for type_ in types:
        if type_.dtype is dtype or not type_.dtype:
            continue
        if dtype:
            raise IllTyped(f"{node.op}: operands of {dtype.text} and {type_.dtype.text}")
        dtype = type_.dtype
    return check_dtype(node, dtype, allowed)


def with_shape(type_: TensorType, shape: Shape | None) -> TensorType:
    """``type_`` with another shape; itself if it is the same."""
    return type_ if shape is type_.shape or shape == type_.shape else TensorType(type_.dtype, shape)


def vector_length(value: Value) -> int | None:
    """The number of elements of a one-dimensional operand such as ``shape`` or ``axes``, if known."""
    shape = value.shape
    if shape is None:
        return None
    if len(shape) != 1:
        raise IllTyped(f"a list of rank {len(shape)}")
    return shape[0] if isinstance(shape[0], int) and shape[0] <= 1 << 10 else None


# axes and dimensions


def normal_axis(node: Node, axis: Dim, rank: int) -> int:
    """``axis`` counted from the front."""
    if not isinstance(axis, int):
        raise IllTyped(f"{node.op}: axis {axis!r}")
    if not -rank <= axis < rank:
        raise IllTyped(f"{node.op}: axis {axis} of a tensor of rank {rank}")
    return axis + rank if axis < 0 else axis


def normal_axes(node: Node, axes: Sequence[Dim], rank: int) -> list[int]:
    """``axes`` counted from the front, each at most once."""
    found = [normal_axis(node, axis, rank) for axis in axes]
    if len(set(found)) != len(found):
        raise IllTyped(f"{node.op}: axes {list(axes)} name one twice")
    return found


def axes_operand(node: Node, i: int) -> tuple[int, ...] | None:
    """The elements of an ``axes`` operand that is there, if all are known."""
    axes = content_of(operand(node, i))
    return None if axes is None or any(type(a) is not int for a in axes) else axes  # type: ignore[return-value]


def fresh_dims(rank: int) -> Shape:
    """``rank`` unknown dimensions."""
    return tuple([fresh() for _ in range(rank)])


def ceil_div(a: Dim, b: int) -> Dim:
    """``a / b``, rounding up."""
    return dim_floordiv(a + (b - 1), b)


def same_dim(node: Node, a: Dim, b: Dim) -> Dim:
    """The size of a dimension that ``a`` and ``b`` both state."""
    if a is b or a == b:
        return a
    if type(a) is int:
        if type(b) is int:
            raise IllTyped(f"{node.op}: sizes {a} and {b} of one dimension")
        return a
    if type(b) is int:
        return b
    return b if a.mentions_anonymous and not b.mentions_anonymous else a  # type: ignore[union-attr]


# broadcasting


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The size to which two sizes broadcast: unknown for two different symbols, either of which may be 1.

    A size and its clipped self (a slice of a table of positions) give the size: where it is 1, so is the other.
    """
    if a is b or b == 1:
        return a
    if a == 1:
        return b
    if type(a) is int:
        if type(b) is int and a != b:
            raise IllTyped(f"sizes {a} and {b} do not broadcast")
        return a
    if type(b) is int or a == b or is_clipped(a, b):
        return b
    return a if is_clipped(b, a) else fresh()


def broadcast(a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape to which both broadcast (multidirectional, as in numpy); ``a`` or ``b`` itself where it is that."""
    if a is b or a is None or b is None or not b:
        return a if b is not None else None
    if len(a) < len(b):
        a, b = b, a
        if not b:
            return a
    lead = len(a) - len(b)
    dims = list(a)
    same = True
    for i, y in enumerate(b, lead):
        x = dims[i]
        if x is not y and y != 1:
            z = broadcast_dim(x, y)
            if z is not x:
                dims[i] = z
                same = False
    if same:
        return a
    shape = tuple(dims)
    return b if shape == b else shape


def broadcast_to(node: Node, shape: Shape | None, target: Shape | None) -> None:
    """Check that ``shape`` broadcasts to ``target`` in one direction, leaving ``target`` as it is."""
    if shape is None or target is None:
        return
    lead = len(target) - len(shape)
    for x, y in zip(shape, target[max(lead, 0) :], strict=False) if lead >= 0 else ():
        if type(x) is int and type(y) is int and x != y and x != 1:
            raise IllTyped(f"{node.op}: {list(shape)} does not broadcast to {list(target)}")
    if lead < 0:
        raise IllTyped(f"{node.op}: {list(shape)} does not broadcast to {list(target)}")


# alternatives


def join(a: Type, b: Type) -> Type:
    """The type of a value that is one of type ``a`` or one of type ``b``: what both agree on."""
    if a is b or a == b:
        return a
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        dtype = a.dtype if a.dtype is b.dtype else DType.UNDEFINED
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return TensorType(dtype, None)
        return TensorType(dtype, tuple([x if x == y else fresh() for x, y in zip(a.shape, b.shape, strict=True)]))
    if isinstance(a, SequenceType) and type(a) is type(b):
        return type(a)(join(a.element, b.element))
    return UNKNOWN
