"""FakeQuantize: the type of its first operand, and what its parameters must be."""

from __future__ import annotations

from ..graph import Node
from ..quantization import FAKE_QUANTIZE, Format, format_of
from ..types import TensorType, Type
from .common import FLOATS, attr_int, check_dtype, normal_axis, operand_type, optional_type
from .engine import IllTyped, typing


@typing(FAKE_QUANTIZE)
def _fake_quantize(node: Node) -> Type:
    x, scale, zero_point = operand_type(node, 0), optional_type(node, 1), optional_type(node, 2)
    check_dtype(node, x.dtype, FLOATS)
    form = format_of(node)
    if scale is None:
        if zero_point is not None:
            raise IllTyped(f"{node.op}: a zero point without a scale")
        _check_dynamic(node, x, form)
        return x
    check_dtype(node, scale.dtype, FLOATS)
    if zero_point is not None:
        if zero_point.dtype and zero_point.dtype is not form.storage:
            raise IllTyped(f"{node.op}: a zero point of {zero_point.dtype.text}; {form} is {form.storage.text}")
        _same_sizes(node, scale, zero_point)
    _check_scale(node, x, scale)
    return x


def _check_dynamic(node: Node, x: TensorType, form: Format) -> None:
    """Without a scale, it is uint8 for the whole tensor, or signed integers in blocks."""
    if not attr_int(node, "block_size", 0):
        if form.name != "uint8":
            raise IllTyped(f"{node.op}: without a scale and blocks, the format is uint8, not {form}")
        return
    if not (form.is_integer and form.is_signed) or node.attrs["block_size"] < 0:
        raise IllTyped(f"{node.op}: blocks without a scale hold signed integers, not {form}")
    if x.shape is not None:
        normal_axis(node, attr_int(node, "axis", 1), len(x.shape))


def _same_sizes(node: Node, a: TensorType, b: TensorType) -> None:
    if a.shape is None or b.shape is None:
        return
    if len(a.shape) != len(b.shape) or any(
        type(m) is int and type(n) is int and m != n for m, n in zip(a.shape, b.shape, strict=True)
    ):
        raise IllTyped(f"{node.op}: a zero point of shape {b} for a scale of shape {a}")


def _check_scale(node: Node, x: TensorType, scale: TensorType) -> None:
    block_size = attr_int(node, "block_size", 0)
    if x.shape is None or scale.shape is None or all(d == 1 for d in scale.shape):
        return
    axis = normal_axis(node, attr_int(node, "axis", 1), len(x.shape))
    if block_size < 0:
        raise IllTyped(f"{node.op}: block_size is {block_size}")
    if not block_size and len(scale.shape) != 1:
        raise IllTyped(f"{node.op}: a scale of rank {len(scale.shape)} without blocks")
    if block_size and len(scale.shape) != len(x.shape):
        raise IllTyped(f"{node.op}: a scale of rank {len(scale.shape)} for blocks of a tensor of rank {len(x.shape)}")
    size, count = x.shape[axis], scale.shape[axis if block_size else 0]
    if type(size) is int and type(count) is int and count != -(-size // (block_size or 1)):
        blocks = f" in blocks of {block_size}" if block_size else ""
        raise IllTyped(f"{node.op}: {count} scales for {size} elements{blocks}")
