"""Normalizations: LayerNormalization, RMSNormalization, InstanceNormalization and GroupNormalization from their parts.

First the normalization itself is found, whatever spells the inverse root, and stated with a scale of ones; then scale
and bias around it, and the casts to float32 that guard it, go into the operator.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.types import DType, Shape
from ..numerics import within
from ..pattern import Match, const
from ..rules import require, rule
from ..simplify.fold_constants import integers
from ..simplify.reshapes import known_shape, reshape_to
from ..simplify.transposes import invert, transpose
from .scores import scalar_of
from .views import reshaped

_ROUNDING = within(rtol=1e-4, atol=1e-5)

_RMS = """
agraph (float[B,S,8] x, float[8] w) => (float[B,S,8] y) <
  float two = {2.0}, int64[1] last = {-1}, float eps = {0.00001}
> {
  a = Pow (x, two)
  b = ReduceMean <keepdims = 1> (a, last)
  c = Add (b, eps)
  d = Sqrt (c)
  e = Reciprocal (d)
  f = Mul (x, e)
  y = Mul (w, f)
}
"""
_LAYER = """
agraph (float[B,S,8] x) => (float[B,S,8] y) <int64[1] last = {-1}, float eps = {0.00001}, float two = {2.0}> {
  m = ReduceMean <keepdims = 1> (x, last)
  d = Sub (x, m)
  a = Pow (d, two)
  b = ReduceMean <keepdims = 1> (a, last)
  c = Add (b, eps)
  e = Sqrt (c)
  y = Div (d, e)
}
"""
_BARE = """
agraph (float[B,S,8] x) => (float[B,S,8] y) <float two = {2.0}, int64[1] last = {-1}, float half = {-0.5}> {
  a = Pow (x, two)
  b = ReduceMean <keepdims = 1> (a, last)
  c = Pow (b, half)
  y = Mul (c, x)
}
"""
_INSTANCE = """
agraph (float[B,3,S,8] x) => (float[B,3,S,8] y) <int64[2] plane = {2, 3}, float eps = {0.00001}> {
  m = ReduceMean <keepdims = 1> (x, plane)
  d = Sub (x, m)
  a = Mul (d, d)
  b = ReduceMean <keepdims = 1> (a, plane)
  c = Add (b, eps)
  e = Sqrt (c)
  y = Div (d, e)
}
"""


class _Mean(NamedTuple):
    """A mean over ``axes``, in place."""

    operand: Value
    axes: tuple[int, ...]

    @property
    def axis(self) -> int | None:
        """The first of the axes, if they are all from there on."""
        rank = len(known_shape(self.operand))
        return self.axes[0] if self.axes == tuple(range(self.axes[0], rank)) else None


def _mean(value: Value | None) -> _Mean | None:
    node = value.producer if value is not None else None
    if node is None or node.op != "ReduceMean" or not node.attrs.get("keepdims", 1) or node.operands[0] is None:
        return None
    shape, axes = node.operands[0].shape, integers(node.operand(1))
    if shape is None or not axes:
        return None
    return _Mean(node.operands[0], tuple(sorted(a % len(shape) for a in axes)))


def _squared(value: Value) -> Value | None:
    """What ``value`` is the square of."""
    node = value.producer
    if node is None:
        return None
    if node.op == "Mul" and node.operands[0] is node.operands[1]:
        return node.operands[0]
    return node.operands[0] if node.op == "Pow" and scalar_of(node.operands[1]) == 2.0 else None


def _under_root(value: Value | None) -> tuple[Value, float] | None:
    """``v, epsilon`` for ``sqrt(v + epsilon)``."""
    node = value.producer if value is not None else None
    if node is None or not (node.op == "Sqrt" or (node.op == "Pow" and scalar_of(node.operands[1]) == 0.5)):
        return None
    return _shifted(node.operands[0])


def _shifted(value: Value | None) -> tuple[Value, float] | None:
    """``v, epsilon`` for ``v + epsilon``; a mean may do without."""
    node = value.producer if value is not None else None
    if node is not None and value is not None and node.op == "ReduceMean":
        return value, 0.0
    if node is None or node.op != "Add":
        return None
    for i in (0, 1):
        epsilon, rest = scalar_of(node.operands[i]), node.operands[1 - i]
        if epsilon is not None and 0 <= epsilon < 1 and rest is not None:
            return rest, epsilon
    return None


def _inverse_root(value: Value | None) -> tuple[Value, float] | None:
    """``v, epsilon`` for ``1 / sqrt(v + epsilon)``."""
    node = value.producer if value is not None else None
    if node is None:
        return None
    if node.op == "Reciprocal":
        return _under_root(node.operands[0])
    if node.op == "Div" and scalar_of(node.operands[0]) == 1.0:
        return _under_root(node.operands[1])
    return _shifted(node.operands[0]) if node.op == "Pow" and scalar_of(node.operands[1]) == -0.5 else None


@rule("Mul", "Div", numerics=_ROUNDING, examples=[_RMS, _LAYER, _INSTANCE, _BARE])
def normalization(node: Node) -> Value | None:
    """A value, perhaps less its mean, divided by the root of the mean of its squares."""
    for i in (0, 1) if node.op == "Mul" else (1,):
        found = _inverse_root(node.operands[i]) if node.op == "Mul" else _under_root(node.operands[1])
        if found is None:
            continue
        centred = node.operands[1 - i]
        mean = _mean(found[0])
        if mean is None or mean.axis is None or centred is None or _squared(mean.operand) is not centred:
            continue
        return _normalized(centred, mean.axis, found[1])
    return None


def _normalized(centred: Value, axis: int, epsilon: float) -> Value:
    sub = centred.producer
    inner = _mean(sub.operands[1]) if sub is not None and sub.op == "Sub" else None
    if inner is None or sub is None or inner.operand is not sub.operands[0] or inner.axis != axis:
        return op.RMSNormalization(
            centred, _ones(centred, axis), axis=axis - len(known_shape(centred)), epsilon=epsilon
        )
    x, shape = inner.operand, known_shape(inner.operand)
    if axis == 2 and len(shape) > 3 and isinstance(shape[1], int):
        zeros = constant(np.zeros(shape[1]), x.dtype)
        return op.InstanceNormalization(x, constant(np.ones(shape[1]), x.dtype), zeros, epsilon=epsilon)
    return op.LayerNormalization(x, _ones(x, axis), axis=axis - len(shape), epsilon=epsilon)


def _ones(value: Value, axis: int) -> Value:
    sizes = known_shape(value)[axis:]
    require(all(isinstance(d, int) for d in sizes), "the size of what is normalized is not known")
    return constant(np.ones(sizes), value.dtype)  # type: ignore[type-var]


# a factor and a shift

_SHIFTED = """
agraph (float[B,S,8] x, float[8] w, float[8] b) => (float[B,S,8] y) <int64[1] last = {-1}, float eps = {0.00001}> {
  m = ReduceMean <keepdims = 1> (x, last)
  d = Sub (x, m)
  a = Mul (d, d)
  v = ReduceMean <keepdims = 1> (a, last)
  c = Add (v, eps)
  e = Sqrt (c)
  i = Reciprocal (e)
  s = Mul (i, w)
  n = Neg (m)
  p = Mul (n, s)
  q = Add (p, b)
  z = Mul (x, s)
  y = Add (z, q)
}
"""
_SHIFTED_CHANNELS = """
agraph (float[B,4,H,8] x) => (float[B,4,H,8] y) <
  int64[1] channels = {1}, float eps = {0.00001}, float[4,1,1] b = {0.5, 0.25, 0.75, 1.5}
> {
  m = ReduceMean <keepdims = 1> (x, channels)
  d = Sub (x, m)
  a = Mul (d, d)
  v = ReduceMean <keepdims = 1> (a, channels)
  c = Add (v, eps)
  e = Sqrt (c)
  i = Reciprocal (e)
  p = Mul (m, i)
  q = Sub (b, p)
  z = Mul (x, i)
  y = Add (z, q)
}
"""
_SHIFTED_GROUPS = """
agraph (float[B,H,5,4] x) => (float[B,H,5,4] y) <
  int64[5] grouped = {0, 0, 5, 2, 2}, int64[4] plain = {0, 0, 5, 4}, int64[3] within = {1, 2, 4},
  float eps = {0.00001}, float[1,1,1,2,2] w = {1.0, 2.0, 3.0, 4.0}, float[1,1,1,2,2] b = {0.5, 0.25, 0.75, 1.5}
> {
  g = Reshape (x, grouped)
  m = ReduceMean <keepdims = 1> (g, within)
  d = Sub (g, m)
  a = Mul (d, d)
  v = ReduceMean <keepdims = 1> (a, within)
  c = Add (v, eps)
  e = Sqrt (c)
  i = Reciprocal (e)
  s = Mul (i, w)
  n = Neg (m)
  p = Mul (n, s)
  q = Add (p, b)
  z = Mul (g, s)
  r = Add (z, q)
  y = Reshape (r, plain)
}
"""


@rule("Add", numerics=_ROUNDING, examples=[_SHIFTED, _SHIFTED_CHANNELS, _SHIFTED_GROUPS])
def normalization_by_factor_and_shift(node: Node) -> Value | None:
    """``x * s + (bias - mean * s)``, ``s`` an inverse root times the scale: how TensorFlow normalizes."""
    for i in (0, 1):
        product, shift = node.given(i).producer, node.given(1 - i).producer
        if product is None or product.op != "Mul" or shift is None:
            continue
        for x, factor in (product.operands, reversed(product.operands)):
            assert x is not None and factor is not None
            found, part = _factor(factor), _shift(shift, factor)
            variance = _mean(found[0]) if found is not None else None
            if found is None or variance is None or part is None:
                continue
            centred, mean = _squared(variance.operand), _mean(part[0])
            sub = centred.producer if centred is not None else None
            if sub is None or sub.op != "Sub" or tuple(sub.operands) != (x, part[0]) or mean != _Mean(x, variance.axes):
                continue
            return _affine(x, variance, found[1], found[2], part[1])
    return None


def _factor(value: Value) -> tuple[Value, float, Value | None] | None:
    """``v, epsilon, scale`` for ``scale / sqrt(v + epsilon)``; the scale may be left out."""
    found = _inverse_root(value)
    if found is not None:
        return *found, None
    node = value.producer
    if node is not None and node.op == "Mul":
        for i in (0, 1):
            found = _inverse_root(node.operands[i])
            if found is not None:
                return *found, node.operands[1 - i]
    return None


def _shift(node: Node, factor: Value) -> tuple[Value, Value | None] | None:
    """``mean, bias`` for ``bias - mean * factor``; the bias may be left out."""
    first, second = node.operand(0), node.operand(1)
    if node.op == "Sub" and second is not None:
        mean = _times(second, factor)
        return None if mean is None else (mean, first)
    bias = None
    if node.op == "Add" and first is not None and second is not None:
        product, bias = (first, second) if _times(first, factor) is not None else (second, first)
    else:
        product = node.results[0]
    negated = _times(product, factor)
    made = negated.producer if negated is not None else None
    return (made.given(0), bias) if made is not None and made.op == "Neg" else None


def _times(product: Value, factor: Value) -> Value | None:
    """What is multiplied by ``factor``."""
    node = product.producer
    if node is None or node.op != "Mul" or factor not in node.operands:
        return None
    return node.operands[1] if node.operands[0] is factor else node.operands[0]


def _affine(x: Value, variance: _Mean, epsilon: float, scale: Value | None, bias: Value | None) -> Value:
    """A normalization over the axes of ``variance`` with its scale and bias, which broadcast."""
    found = _by_groups(x, variance.axes, epsilon, scale, bias)
    if found is not None:
        return found
    if variance.axis is not None:
        centred = _squared(variance.operand)
        assert centred is not None
        found = _normalized(centred, variance.axis, epsilon)
        found = found if scale is None else op.Mul(found, scale)
        return found if bias is None else op.Add(found, bias)
    shape = known_shape(x)
    require(len(variance.axes) == 1, "what is normalized over lies apart")
    (axis,) = variance.axes
    vectors = [_vector(v, (axis,), shape, x, default) for v, default in ((scale, 1.0), (bias, 0.0))]
    order = (*(a for a in range(len(shape)) if a != axis), axis)
    last = op.LayerNormalization(transpose(x, order), *vectors, axis=-1, epsilon=epsilon)
    return transpose(last, invert(order))


def _by_groups(
    grouped: Value, axes: tuple[int, ...], epsilon: float, scale: Value | None, bias: Value | None
) -> Value | None:
    """What a Reshape has split the channels of into groups, if these are what is normalized, with all that is spatial.

    The channels are last, or come after the batch. What is split may be cast to float32 only then.
    """
    made = grouped.producer
    kind = None
    if made is not None and made.op == "Cast":
        made, kind = made.given(0).producer, grouped.dtype
    if made is None or made.op != "Reshape":
        return None
    x, shape = made.given(0), known_shape(grouped)
    rank, own = len(shape), x.shape
    if own is None or len(own) != rank - 1 or rank < 4:
        return None
    if axes == (*range(1, rank - 2), rank - 1) and own[:-1] == shape[:-2]:
        groups, order = (rank - 2, rank - 1), (0, rank - 2, *range(1, rank - 2))
    elif axes == tuple(range(2, rank)) and own[:1] + own[2:] == shape[:1] + shape[3:]:
        groups, order = (1, 2), tuple(range(rank - 1))
    else:
        return None
    count, size = (shape[a] for a in groups)
    if not isinstance(count, int) or not isinstance(size, int):
        return None
    vectors = [_vector(v, groups, shape, grouped, default) for v, default in ((scale, 1.0), (bias, 0.0))]
    first = transpose(x if kind is None else op.Cast(x, to=kind), order)
    if size == 1:
        result = op.InstanceNormalization(first, *vectors, epsilon=epsilon)
    else:
        result = op.GroupNormalization(first, *vectors, num_groups=count, epsilon=epsilon)
    return reshape_to(transpose(result, invert(order)), shape)


def _vector(value: Value | None, axes: tuple[int, ...], shape: Shape, x: Value, default: float) -> Value:
    """Numbers for the indices of ``axes`` in one row."""
    sizes = [shape[a] for a in axes]
    require(all(isinstance(d, int) for d in sizes), "the size of what is normalized is not known")
    number = default if value is None else scalar_of(value)
    if number is not None:
        return constant(np.full(math.prod(sizes), number), x.dtype)  # type: ignore[arg-type]
    assert value is not None
    own = known_shape(value)
    padded = (1,) * (len(shape) - len(own)) + own
    wanted = tuple(d if a in axes else 1 for a, d in enumerate(shape))
    require(padded == wanted, "scale or bias are not one number for each of what is normalized")
    return op.Reshape(value, constant([-1], DType.INT64))


# scale and bias

_NORMS = ("LayerNormalization", "RMSNormalization")


def _parameters(value: Value, norm: Node) -> Value | None:
    """``value`` in the shape of the parameters of ``norm``, if it is one number for each of what it normalizes."""
    scale = norm.operands[1]
    assert scale is not None
    wanted, shape = known_shape(scale), value.shape
    number = scalar_of(value)
    if number is not None and value.dtype is scale.dtype and all(isinstance(d, int) for d in wanted):
        return constant(np.full(wanted, number), value.dtype)  # type: ignore[type-var]
    if shape is None or value.dtype is not scale.dtype or shape[len(shape) - len(wanted) :] != wanted:
        return None
    lead = shape[: len(shape) - len(wanted)]
    return reshaped(value, wanted) if len(shape) >= len(wanted) and all(d == 1 for d in lead) else None


_SCALED = """
agraph (float[B,S,8] x, float[8] w) => (float[B,S,8] y) <
  float[8] ones = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}
> {
  a = RMSNormalization (x, ones)
  y = Mul (a, w)
}
"""


_SCALED_TWICE = """
agraph (float[B,S,4] x) => (float[B,S,4] y) <
  float[4] w = {1.0, 2.0, 3.0, 4.0}, float[4] b = {4.0, 3.0, 2.0, 1.0}, float half = {0.5}
> {
  a = LayerNormalization (x, w, b)
  y = Mul (a, half)
}
"""


@rule("Mul", numerics=_ROUNDING, examples=[_SCALED, _SCALED_TWICE])
def scale_into_normalization(node: Node) -> Value | None:
    """A factor per feature after a normalization that has none, or a constant one."""
    for i in (0, 1):
        value, factor = node.operands[i], node.operands[1 - i]
        assert value is not None and factor is not None
        norm = value.producer
        if norm is None or norm.op not in _NORMS or norm.graph is not node.graph or len(value.users) > 1:
            continue
        scale, bias = norm.operands[1], norm.operand(2)
        assert scale is not None
        constants = all(v is None or v.const is not None for v in (scale, bias, factor))
        if len(norm.results) > 1 or not (constants or (bias is None and scalar_of(scale) == 1.0)):
            continue
        factors = _parameters(factor, norm)
        if factors is None or known_shape(value) != known_shape(node.result):
            continue
        scale = factors if scalar_of(scale) == 1.0 else op.Mul(scale, factors)
        return getattr(op, norm.op)(
            norm.operands[0], scale, None if bias is None else op.Mul(bias, factors), **norm.attrs
        )
    return None


_BIASED = """
agraph (float[B,S,8] x, float[8] w, float[8] b) => (float[B,S,8] y) {
  a = LayerNormalization (x, w)
  y = Add (a, b)
}
"""


@rule("Add", numerics=_ROUNDING, examples=[_BIASED])
def bias_into_layer_normalization(node: Node) -> Value | None:
    """An addend per feature after a LayerNormalization without one."""
    for i in (0, 1):
        value, addend = node.operands[i], node.operands[1 - i]
        assert value is not None and addend is not None
        norm = value.producer
        if norm is None or norm.op != "LayerNormalization" or norm.graph is not node.graph or len(value.users) > 1:
            continue
        bias = _parameters(addend, norm) if norm.operand(2) is None and len(norm.results) == 1 else None
        if bias is not None and known_shape(value) == known_shape(node.result):
            return op.LayerNormalization(norm.operands[0], norm.operands[1], bias, **norm.attrs)
    return None


_HALF = """
agraph (float16[B,S,8] x) => (float16[B,S,8] y) <
  float[8] ones = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}
> {
  wide = Cast <to = 1> (x)
  a = RMSNormalization (wide, ones)
  y = Cast <to = 10> (a)
}
"""


@rule("Cast", numerics=within(rtol=2e-3, atol=1e-5), examples=[_HALF])
def normalization_in_half(node: Node) -> Value | None:
    """Casts to float32 and back around a normalization without parameters: it computes in float32 by itself."""
    value = node.operands[0]
    norm = value.producer if value is not None else None
    if norm is None or value is None or norm.op not in _NORMS or norm.graph is not node.graph or len(value.users) > 1:
        return None
    widened = norm.operands[0].producer if norm.operands[0] is not None else None
    if widened is None or widened.op != "Cast" or value.dtype is not DType.FLOAT or len(norm.results) > 1:
        return None
    x = widened.operands[0]
    assert x is not None
    if x.dtype is not node.result.dtype or x.dtype not in (DType.FLOAT16, DType.BFLOAT16):
        return None
    if scalar_of(norm.operands[1]) != 1.0 or norm.operand(2) is not None:
        return None
    ones = constant(np.ones(known_shape(norm.given(1))), x.dtype)  # type: ignore[type-var]
    return getattr(op, norm.op)(x, ones, **{**norm.attrs, "stash_type": 1})


# channels

_GROUPS = """
agraph (float[B,4,H,8] x) => (float[B,4,H,8] y) <
  int64[3] grouped = {0, 2, -1}, float[2] ones = {1.0, 1.0}, float[2] zeros = {0.0, 0.0},
  float[4,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[4,1,1] b = {0.5, 0.25, 0.75, 1.5}
> {
  g = Reshape (x, grouped)
  n = InstanceNormalization (g, ones, zeros)
  s = Shape (x)
  r = Reshape (n, s)
  a = Mul (r, w)
  y = Add (a, b)
}
"""


@rule(
    lambda x, shape, target, y, z, epsilon, one=const, zero=const, w=const, b=const: op.Add(
        op.Reshape(
            op.InstanceNormalization(op.Reshape(x, shape, allowzero=y), one, zero, epsilon=epsilon), target, allowzero=z
        )
        * w,
        b,
    ),
    numerics=_ROUNDING,
    examples=[_GROUPS],
)
def group_normalization(x, one, zero, w, b, epsilon, match):
    """Groups of channels normalized as instances, and scaled per channel."""
    shape, groups = known_shape(x), one.const.size
    require(scalar_of(one) == 1.0 and scalar_of(zero) == 0.0, "the groups are scaled")
    require(len(shape) > 2 and match.root.result.shape == shape, "the result has another shape")
    grouped = known_shape(_grouped(match))
    require(len(grouped) == 3 and grouped[0] == shape[0], "the batch is grouped, too")
    channels = shape[1]
    require(isinstance(channels, int) and channels % groups == 0, "the channels are no multiple of the groups")
    assert isinstance(channels, int)
    scale, bias = (_per_channel(v, channels, len(shape)) for v in (w, b))
    return op.GroupNormalization(x, scale, bias, num_groups=groups, epsilon=epsilon)


def _grouped(match: Match) -> Value:
    return next(n for n in match.nodes if n.op == "InstanceNormalization").given(0)


def _per_channel(value: Value, channels: int, rank: int) -> Value:
    shape: Shape = known_shape(value)
    padded = (1,) * (rank - len(shape)) + shape
    require(len(padded) == rank, "the constant has more dimensions")
    require(all(d == 1 for i, d in enumerate(padded) if i != 1) and padded[1] == channels, "not one number per channel")
    return op.Reshape(value, constant([channels], DType.INT64))
