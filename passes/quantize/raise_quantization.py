"""``raise-quantization``: quantization as files spell it becomes `planish.FakeQuantize`.

Whatever the spelling, it is first brought to ``QuantizeLinear`` and ``DequantizeLinear`` around operators on
floating-point numbers (`raise_operators`, `raise_products`); data movement between the two is taken out; and then a
pair of them is a FakeQuantize, and so is a ``DequantizeLinear`` of constant codes, of the numbers that these stand for.
Codes that anything else reads stay codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ...ir import ArrayTensor, LazyTensor, Node, Tensor, TensorType, Value, constant, op
from ...ir.builder import make_node
from ...ir.equal import same_tensor
from ...ir.quantization import Format, dequantize, parse_format
from ...ir.types import DType
from ..base import RewritePass
from ..numerics import Within
from ..rules import NoMatch, require, rule
from ..simplify.transposes import perm_of
from . import raise_operators, raise_products
from .raise_operators import ROUNDING

__all__ = ["RaiseQuantization"]

_EAGER_BYTES = 1 << 20  # larger constants are computed when somebody asks for them
_MOVES = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool"),
        *("Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
_KNOWN: WeakValueDictionary[tuple[object, ...], LazyTensor] = WeakValueDictionary()  # what constant codes stand for
FakeQuantize = op.domain("planish").FakeQuantize


@dataclass(frozen=True)
class _Parameters:
    """What relates numbers and codes, in one form.

    Attributes:
        scale: a scalar if there is but one and it is known.
        zero_point: of the shape of the scale; None if it is known to be 0.
        axis: of the scale, counted from the front; None for a scalar.
        block_size: of the scale, 0 for none.
    """

    scale: Value
    zero_point: Value | None
    axis: int | None
    block_size: int

    @classmethod
    def of(cls, node: Node) -> _Parameters:
        """The parameters of a QuantizeLinear or DequantizeLinear."""
        scale, zero = node.operand(1), node.operand(2)
        require(scale is not None and _size(scale) is not None, "the scale is left out, or its shape unknown")
        assert scale is not None
        require(zero is None or _size(zero) == _size(scale), "the zero point has another shape than the scale")
        if zero is not None and zero.const is not None and not zero.const.numpy().astype(np.float32).any():
            zero = None
        if _size(scale) == 1:
            return cls(_scalar(scale), None if zero is None else _scalar(zero), None, 0)
        rank, axis = node.given(0).rank, node.attrs.get("axis", 1)
        require(rank is not None and -rank <= axis < rank, "the axis of the scale is out of range, or the rank unknown")
        assert rank is not None
        return cls(scale, zero, axis % rank, node.attrs.get("block_size", 0))

    @property
    def operands(self) -> tuple[Value, ...]:
        """The scale, and the zero point if there is one."""
        return (self.scale,) if self.zero_point is None else (self.scale, self.zero_point)

    def equal(self, other: _Parameters) -> bool:
        """Whether both are known to be the same."""
        mine, others = ((p.axis, p.block_size, len(p.operands)) for p in (self, other))
        return mine == others and all(map(_same, self.operands, other.operands))

    def apply(self, x: Value, form: Format) -> Value:
        """``x`` rounded to what ``form`` holds."""
        axis = self.axis if self.axis != 1 else None  # the default
        return FakeQuantize(x, *self.operands, format=form.name, axis=axis, block_size=self.block_size or None)


def _size(value: Value) -> object:
    return value.type.size if isinstance(value.type, TensorType) and value.type.is_static else None


def _scalar(value: Value) -> Value:
    if value.const is None or not value.const.shape:
        return value
    return constant(value.const.numpy().reshape(()), value.dtype, value.name)


def _element(value: Value | None) -> float | None:
    """The number that is the only element of a constant."""
    if value is None or value.const is None or value.const.size != 1:
        return None
    return float(value.const.numpy().astype(np.float32).reshape(()))


def _same(a: Value | None, b: Value | None) -> bool:
    if a is None or b is None or a.const is None or b.const is None:
        return a is b
    return same_tensor(a.const, b.const)


def _format(codes: Value, zero_point: Value | None) -> Format:
    try:
        form = parse_format(codes.dtype.text)
    except ValueError as error:
        raise NoMatch(str(error)) from error
    require(form.is_integer or zero_point is None, "floating-point codes with a zero point")
    return form


# pairs

_PAIR = """
agraph (float[N,3,4] x) => (float[N,3,4] y, float[N,3,4] z) <
  float s = {0.037}, uint8 o = {131}, float[3] t = {0.5, 0.01, 2.0}, int8[3] p = {0, 3, -100}
> {
  a = QuantizeLinear (x, s, o)
  y = DequantizeLinear (a, s, o)
  b = QuantizeLinear <axis = -2> (x, t, p)
  z = DequantizeLinear <axis = 1> (b, t, p)
}
"""
_BLOCKS = """
agraph (float[2,6] x) => (float[2,6] y, float[2,6] z) <float[1,6] s = {0.3, 0.01, 0.2, 0.5, 1.0, 0.07}, float e = {0.1}>
{
  a = QuantizeLinear <axis = 0, block_size = 2, output_dtype = 5> (x, s)
  y = DequantizeLinear <axis = 0, block_size = 2> (a, s)
  b = QuantizeLinear <output_dtype = 17> (x, e)
  z = DequantizeLinear (b, e)
}
"""


_NARROW = """
agraph (float[N,4] x) => (float[N,4] y, float[N,4] z) <
  float s = {0.05}, int8 o = {-2}, int8 low = {-8}, int8 high = {7}, uint8 p = {60},
  uint8 none = {0}, uint8 most = {127}
> {
  a = QuantizeLinear (x, s, o)
  b = Clip (a, low, high)
  y = DequantizeLinear (b, s, o)
  c = QuantizeLinear (x, s, p)
  d = Clip (c, none, most)
  z = DequantizeLinear (d, s, p)
}
"""


@rule("DequantizeLinear", numerics=ROUNDING, examples=[_PAIR, _BLOCKS, _NARROW])
def quantize_dequantize(node: Node) -> Value | None:
    """Numbers that are quantized and dequantized with the same parameters; in between, codes may lose some bits."""
    codes = node.given(0)
    clip = codes.producer if codes.producer is not None and codes.producer.op == "Clip" else None
    source = codes.producer if clip is None else clip.given(0).producer
    if source is None or source.op != "QuantizeLinear":
        return None
    x, attrs = source.given(0), source.attrs
    require(x.dtype is node.result.dtype, f"{x.dtype.text} comes back as {node.result.dtype.text}")
    parameters = _Parameters.of(source)
    require(parameters.equal(_Parameters.of(node)), "quantized and dequantized with different parameters")
    precision = DType(attrs.get("precision", 0)) or parameters.scale.dtype
    require(x.dtype.bits <= 16 or precision.bits > 16, f"{x.dtype.text} is divided as {precision.text}")
    form = _format(codes, parameters.zero_point)
    require(form.is_integer or attrs.get("saturate", 1), "what is out of range does not saturate")
    if clip is not None:
        form, parameters = _narrowed(clip, form, parameters)
    return parameters.apply(x, form)


def _narrowed(clip: Node, form: Format, parameters: _Parameters) -> tuple[Format, _Parameters]:
    """The format to whose range codes are clipped, and the parameters for it."""
    limits = [_element(clip.operand(i)) for i in (1, 2)]
    names = [f"{form.name.rstrip('0123456789')}{bits}" for bits in range(2, form.bits + 1)] if form.is_integer else []
    narrow = next((f for f in map(parse_format, names) if [f.low, f.high] == limits), None)
    require(narrow is not None, "the codes are clipped to the range of no format")
    assert narrow is not None
    known = parameters.axis is None and all(p.const is not None for p in parameters.operands)
    require(known, "narrow codes with several scales, or one that is known only when it runs")
    zero = _element(parameters.zero_point)
    if zero is None:
        return narrow, parameters
    require(narrow.low <= zero <= narrow.high, "the zero point is out of range")
    return narrow, replace(parameters, zero_point=constant(int(zero), narrow.storage))


_DYNAMIC = """
agraph (float[N,6] x) => (float[N,6] y) {
  a, s, o = DynamicQuantizeLinear (x)
  y = DequantizeLinear (a, s, o)
}
"""


@rule("DequantizeLinear", numerics=ROUNDING, examples=[_DYNAMIC])
def dynamic_quantize_dequantize(node: Node) -> Value | None:
    """Numbers that are quantized by their range at run time."""
    source = node.given(0).producer
    if source is None or source.op != "DynamicQuantizeLinear":
        return None
    require(node.operands == source.results, "quantized and dequantized with different parameters")
    require(node.result.dtype is DType.FLOAT, f"float comes back as {node.result.dtype.text}")
    return FakeQuantize(source.given(0), format="uint8")


# constants

_CONSTANTS = """
agraph () => (float[2,3] y, float[2] z) <
  int8[2,3] w = {-128, 127, 3, 0, 1, -7}, float[3] s = {0.1, 0.02, 3.0}, int8[3] o = {1, 0, -3},
  int32[2] b = {100000, -3}, float t = {0.001}
> {
  y = DequantizeLinear (w, s, o)
  z = DequantizeLinear <axis = 0> (b, t)
}
"""


@rule("DequantizeLinear", numerics=ROUNDING, examples=[_CONSTANTS])
def dequantize_constant(node: Node) -> Value | None:
    """Constant codes: the numbers that they stand for, which quantized again give the same codes.

    Where a scale is 0, all codes stand for 0, and one of them is as good as another. Sums of 32 bits (biases) are in no
    format; they become plain numbers.
    """
    codes, dtype = node.given(0), node.result.dtype
    if codes.const is None:
        return None
    parameters = _Parameters.of(node)
    tensors = tuple(v.const for v in (codes, *parameters.operands) if v.const is not None)
    require(len(tensors) > len(parameters.operands), "the scale or the zero point is known only when it runs")
    form = None if codes.dtype is DType.INT32 else _format(codes, parameters.zero_point)
    try:
        if form is not None:
            _require_same_codes(tensors, form, dtype)
        numbers = _numbers(tensors, parameters, dtype)
    except ValueError as error:  # blocks that do not fit, or elements that cannot be read
        raise NoMatch(str(error)) from error
    return numbers if form is None else parameters.apply(numbers, form)


def _numbers(tensors: tuple[Tensor, ...], parameters: _Parameters, dtype: DType) -> Value:
    """The numbers that constant codes stand for, one tensor for all uses; if large, computed when wanted."""
    axis, block_size = parameters.axis or 0, parameters.block_size
    key = (*map(id, tensors), dtype, axis, block_size)

    def compute(codes: Any, scale: Any, zero_point: Any = None) -> Any:
        return dequantize(codes, scale, zero_point, dtype, axis, block_size)

    lazy = _KNOWN.get(key) or LazyTensor(compute, tensors, dtype, tensors[0].shape, tensors[0].name)
    _KNOWN[key] = lazy
    return constant(lazy if lazy.nbytes > _EAGER_BYTES else ArrayTensor(lazy.numpy(), dtype, lazy.name))


def _require_same_codes(tensors: tuple[Tensor, ...], form: Format, dtype: DType) -> None:
    """End the attempt where numbers of type ``dtype``, rounded as they are, may not give their codes again."""
    codes, scale, *zeros = tensors
    require(dtype in (DType.FLOAT, scale.dtype), f"a scale of {scale.dtype.text} for {dtype.text}")
    steps = np.abs(scale.numpy().astype(np.float64))
    if form.is_integer:
        zero = zeros[0].numpy().astype(np.float64) if zeros else np.zeros(())
        reach: Any = np.maximum(form.high - zero, zero - form.low)
        require(np.all(reach * _limits(dtype).eps <= 1), f"{dtype.text} does not tell the codes of {form} apart")
    else:
        require(np.isfinite(codes.numpy().astype(np.float32)).all(), "some codes are no finite numbers")
        reach, least = form.high, float(_limits(form.storage).smallest_subnormal)
        require(np.all(steps * least > _limits(dtype).smallest_subnormal), f"too small numbers for {dtype.text}")
    require(np.all(steps * reach <= -dtype.lowest), f"too large numbers for {dtype.text}")


def _limits(dtype: DType) -> Any:
    from ml_dtypes import finfo

    return finfo(dtype.numpy)  # type: ignore[no-untyped-call]


# data movement

_MOVED = """
agraph (float[N,4,6] x) => (float[N,a,b] y) <
  float s = {0.05}, uint8 o = {7}, int64[3] t = {0, 6, 4}, int64[3] i = {3, 0, -1},
  int64[1] begin = {1}, int64[1] end = {5}, int64[1] axis = {1}
> {
  q = QuantizeLinear (x, s, o)
  r = Reshape (q, t)
  c = Slice (r, begin, end, axis)
  d = Transpose <perm = [0, 2, 1]> (c)
  g = Gather <axis = 2> (d, i)
  e, f = Split <axis = 1, num_outputs = 2> (g)
  h = Concat <axis = -1> (f, e, e)
  y = DequantizeLinear (h, s, o)
}
"""
_POOLED = """
agraph (float[N,4,6,6] x) => (y) <
  float s = {0.05}, uint8 o = {7}, int64[8] pads = {0, 0, 1, 0, 0, 0, 0, 2}, float[4] times = {1.0, 1.0, 2.0, 2.0}
> {
  q = QuantizeLinear (x, s, o)
  p = Pad (q, pads, o)
  m = MaxPool <kernel_shape = [2, 2], pads = [1, 0, 0, 1]> (p)
  d = DepthToSpace <blocksize = 2> (m)
  r = Resize <mode = "nearest"> (d, , times)
  y = DequantizeLinear (r, s, o)
}
"""
_TABLE = """
agraph () => (y) <int64[2] i = {3, 0}, int8[4,2] w = {-128, 127, 3, 0, 1, -7, 9, 12}, float[2] s = {0.1, 0.02}> {
  t = Transpose <perm = [1, 0]> (w)
  u = DequantizeLinear <axis = 0> (t, s)
  y = Gather <axis = 1> (u, i)
}
"""


@rule("DequantizeLinear", numerics=ROUNDING, examples=[_MOVED, _POOLED, _TABLE])
def dequantize_before_moving(node: Node) -> Value | None:
    """Codes that are only moved after they were quantized: they are dequantized first, and the numbers moved."""
    codes = node.given(0)
    move = codes.producer
    if move is None or move.op not in _MOVES:
        return None
    require(_is_quantized(codes), f"the operand of {move.op} is not quantized here")
    parameters = _Parameters.of(node)
    attrs = {**node.attrs, **_axis_before(move, parameters)}
    rest = move.operands[1:]
    if move.op == "MaxPool":
        scale = parameters.scale.const
        require(scale is not None and np.all(scale.numpy() > 0), "the scale may be negative")
    if move.op == "Resize":
        picks = move.attrs.get("mode", "nearest") == "nearest" and "tf_crop_and_resize" not in move.attrs.values()
        require(picks, "Resize computes new values")
    if move.op == "Pad" and move.attrs.get("mode", "constant") == "constant":
        require(_fills_with_zero(move, parameters), "Pad does not fill with the zero point")
        rest = (rest[0], None, *rest[2:])

    def dequantized(operand: Value | None) -> Value:
        return make_node("DequantizeLinear", (operand, *node.operands[1:]), attrs).result

    operands = map(dequantized, move.operands) if move.op == "Concat" else (dequantized(move.given(0)), *rest)
    return make_node(move.op, tuple(operands), dict(move.attrs), len(move.results)).results[codes.index]


def _is_quantized(codes: Value) -> bool:
    """Whether ``codes`` come from constants and from numbers that are quantized in this model."""
    pending, seen = [codes], {codes}
    while pending:
        value = pending.pop()
        node = value.producer
        if value.const is not None or (node is not None and node.op in ("QuantizeLinear", "DynamicQuantizeLinear")):
            continue
        if node is None or node.op not in _MOVES:
            return False
        sources = {o for o in (node.operands if node.op == "Concat" else node.operands[:1]) if o is not None}
        pending += sources - seen
        seen |= sources
    return True


def _axis_before(move: Node, parameters: _Parameters) -> dict[str, int]:
    """The axis attribute in front of ``move``."""
    if parameters.axis is None or move.op == "Identity":
        return {}
    perm = perm_of(move) if move.op == "Transpose" and not parameters.block_size else None
    require(perm is not None, f"{move.op} of codes with several scales")
    assert perm is not None
    return {"axis": perm[parameters.axis]}


def _fills_with_zero(pad: Node, parameters: _Parameters) -> bool:
    """Whether a Pad fills with the code of 0."""
    fill, zero = (0.0 if v is None else _element(v) for v in (pad.operand(2), parameters.zero_point))
    return fill is not None and fill == zero


@dataclass(frozen=True)
class RaiseQuantization(RewritePass):
    """Read quantization as files spell it: operators on integers become operators on numbers that are rounded."""

    numerics = Within()
    rules = (
        *raise_operators.RULES,
        *raise_products.RULES,
        quantize_dequantize,
        dynamic_quantize_dequantize,
        dequantize_constant,
        dequantize_before_moving,
    )
