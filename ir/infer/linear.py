"""Matrix products: MatMul, Gemm, Einsum, and their quantized forms; quantization itself."""

from __future__ import annotations

from ..dims import Dim
from ..graph import Node
from ..types import DType, TensorType, Type
from .common import (
    FLOATS,
    MATMUL,
    NUMERIC,
    Shape,
    attr_int,
    broadcast,
    broadcast_dim,
    broadcast_to,
    check_dtype,
    common_dtype,
    dtype_of,
    dtypes,
    fresh_dims,
    operand_type,
    optional_type,
    same_dim,
    tensor_types,
    with_shape,
)
from .engine import IllTyped, typing

_SCALAR = TensorType(DType.FLOAT, ())
_BYTES = dtypes("INT8 UINT8")


@typing("MatMul")
def _matmul(node: Node) -> Type:
    a, b = operand_type(node, 0), operand_type(node, 1)
    dtype = common_dtype(node, (a, b), MATMUL)
    return TensorType(dtype, matmul_shape(a.shape, b.shape))


def matmul_shape(a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape of the matrix product of tensors of shapes ``a`` and ``b``, as numpy defines it."""
    if a is None or b is None:
        return None
    if not a or not b:
        raise IllTyped("MatMul of a scalar")
    inner_a = a[-1]
    inner_b = b[-2] if len(b) > 1 else b[0]
    if inner_a is not inner_b and type(inner_a) is int and type(inner_b) is int and inner_a != inner_b:
        raise IllTyped(f"MatMul: inner dimensions {inner_a} and {inner_b} of {list(a)} and {list(b)}")
    if len(b) == 2 and len(a) >= 2:
        return (*a[:-1], b[1])
    batch = broadcast(a[:-2], b[:-2])
    assert batch is not None
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return batch + rows + columns


@typing("Gemm")
def _gemm(node: Node) -> Type:
    a, b, c = operand_type(node, 0), operand_type(node, 1), optional_type(node, 2)
    dtype = common_dtype(node, (a, b) if c is None else (a, b, c), MATMUL)
    m, inner_a = _matrix(a, transposed=bool(attr_int(node, "transA", 0)))
    inner_b, n = _matrix(b, transposed=bool(attr_int(node, "transB", 0)))
    same_dim(node, inner_a, inner_b)
    shape = (m, n)
    if c is not None:
        broadcast_to(node, c.shape, shape)
    return TensorType(dtype, shape)


def _matrix(type_: TensorType, *, transposed: bool) -> Shape:
    if type_.shape is None:
        return fresh_dims(2)
    if len(type_.shape) != 2:
        raise IllTyped(f"Gemm: an operand of rank {len(type_.shape)}")
    return type_.shape[::-1] if transposed else type_.shape


@typing("MatMulInteger")
def _matmul_integer(node: Node) -> Type:
    a, b = operand_type(node, 0), operand_type(node, 1)
    check_dtype(node, a.dtype, _BYTES)
    check_dtype(node, b.dtype, _BYTES)
    return TensorType(DType.INT32, matmul_shape(a.shape, b.shape))


@typing("QLinearMatMul")
def _qlinear_matmul(node: Node) -> Type:
    a, b, zero = operand_type(node, 0), operand_type(node, 3), operand_type(node, 7)
    return TensorType(zero.dtype, matmul_shape(a.shape, b.shape))


# quantization


@typing("QuantizeLinear")
def _quantize(node: Node) -> Type:
    x, scale, zero = operand_type(node, 0), operand_type(node, 1), optional_type(node, 2)
    stated = dtype_of(attr_int(node, "output_dtype", 0))
    dtype = DType.UINT8 if zero is None else zero.dtype
    if stated and zero is not None and zero.dtype and zero.dtype is not stated:
        raise IllTyped(f"QuantizeLinear: output_dtype {stated.text}, zero point {zero.dtype.text}")
    _check_scale(node, x, scale)
    return TensorType(stated or dtype, x.shape)


@typing("DequantizeLinear")
def _dequantize(node: Node) -> Type:
    x, scale, zero = operand_type(node, 0), operand_type(node, 1), optional_type(node, 2)
    if zero is not None:
        common_dtype(node, (x, zero))
    _check_scale(node, x, scale)
    return TensorType(dtype_of(attr_int(node, "output_dtype", 0)) or scale.dtype, x.shape)


def _check_scale(node: Node, x: TensorType, scale: TensorType) -> None:
    """A scale is a scalar, one element for each index of ``axis``, or for blocks along it of the rank of ``x``."""
    if not scale.shape or x.shape is None:
        return
    block = attr_int(node, "block_size", 0)
    rank = len(x.shape)
    if len(scale.shape) == 1 and not block:
        axis = attr_int(node, "axis", 1)
        if scale.shape[0] != 1 and rank > 1 and -rank <= axis < rank:
            same_dim(node, x.shape[axis], scale.shape[0])
    elif block and len(scale.shape) != rank:
        raise IllTyped(f"{node.op}: a scale of rank {len(scale.shape)} for blocks of a tensor of rank {rank}")


@typing("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node) -> tuple[Type, ...]:
    x = operand_type(node, 0)
    check_dtype(node, x.dtype, FLOATS)
    return TensorType(DType.UINT8, x.shape), _SCALAR, TensorType(DType.UINT8, ())


# Einsum


@typing("Einsum")
def _einsum(node: Node) -> Type:
    types = tensor_types(node)
    dtype = common_dtype(node, types, NUMERIC)
    equation = node.attrs["equation"]
    if isinstance(equation, bytes):
        equation = equation.decode()
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(types):
        raise IllTyped(f"Einsum: {len(types)} operands for {equation!r}")
    sizes: dict[str, Dim] = {}
    batch: Shape | None = ()
    for term, type_ in zip(terms, types, strict=True):
        batch = _bind(node, term, type_.shape, sizes, batch)
    if not arrow:
        letters = "".join(terms).replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if batch is None and "..." in right:
        return TensorType(dtype, None)
    head, dots, tail = right.partition("...")
    if any(c not in sizes for c in head + tail) or len(set(head + tail)) != len(head + tail):
        raise IllTyped(f"Einsum: results of {equation!r}")
    middle = batch if dots and batch is not None else ()
    return TensorType(dtype, (*(sizes[c] for c in head), *middle, *(sizes[c] for c in tail)))


def _bind(node: Node, term: str, shape: Shape | None, sizes: dict[str, Dim], batch: Shape | None) -> Shape | None:
    """Bind the letters of ``term`` to the dimensions of ``shape``; returns what all ``...`` so far broadcast to."""
    head, dots, tail = term.partition("...")
    letters = head + tail
    if not all(c.isascii() and c.isalpha() for c in letters):
        raise IllTyped(f"Einsum: operand {term!r}")
    if shape is None:
        for c in letters:
            sizes.setdefault(c, fresh_dims(1)[0])
        return None if dots else batch
    if len(shape) < len(letters) or (not dots and len(shape) != len(letters)):
        raise IllTyped(f"Einsum: operand {term!r} is {list(shape)}")
    middle = len(shape) - len(tail)
    for c, d in zip(letters, shape[: len(head)] + shape[middle:], strict=True):
        sizes[c] = broadcast_dim(sizes.get(c, 1), d)  # as in numpy, a dimension of 1 broadcasts
    return broadcast(batch, shape[len(head) : middle]) if dots else batch


@typing("Det")
def _det(node: Node) -> Type:
    x = operand_type(node, 0)
    if x.shape is None:
        return x
    if len(x.shape) < 2:
        raise IllTyped(f"Det of a tensor of rank {len(x.shape)}")
    same_dim(node, x.shape[-1], x.shape[-2])
    return with_shape(x, x.shape[:-2])
