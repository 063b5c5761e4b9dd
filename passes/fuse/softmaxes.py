"""Softmax and the logarithm of a sum of exponentials, spelled out, along one dimension or several."""

from __future__ import annotations

from ...ir import Node, Value, op
from ...ir.dims import Dim, product
from ..numerics import within
from ..rules import require, rule
from ..simplify.fold_constants import integers
from ..simplify.reshapes import RESHAPING, known_shape, reshape_to
from .scores import scalar_of

_ROUNDING = within(rtol=1e-5, atol=1e-6)

_LOG_SUM_EXP = """
agraph (float[B,S,8] x) => (float[B,S] y, float[B,S,1] z) <
  int64[1] last = {-1}, float inf = {inf}, float zero = {0.0}, int64[2] two = {0, 0}
> {
  m = ReduceMax <keepdims = 1> (x, last)
  a = Abs (m)
  f = Less (a, inf)
  g = Where (f, m, zero)
  d = Sub (x, g)
  e = Exp (d)
  s = ReduceSum <keepdims = 0> (e, last)
  l = Log (s)
  r = Reshape (g, two)
  y = Add (l, r)
  t = ReduceSum <keepdims = 1> (e, last)
  k = Log (t)
  z = Add (k, g)
}
"""
_SOFTMAX = """
agraph (float[B,S,8] x) => (float[B,S,8] y, float[B,S,8] z) <int64[1] last = {-1}> {
  l = ReduceLogSumExp <keepdims = 1> (x, last)
  y = Sub (x, l)
  z = Exp (y)
}
"""
_OVER_TWO = """
agraph (float[B,S,4,8] x) => (float[B,S,4,8] y) <int64[2] last = {2, 3}> {
  l = ReduceLogSumExp <keepdims = 1> (x, last)
  d = Sub (x, l)
  y = Exp (d)
}
"""


@rule("Add", numerics=_ROUNDING, examples=[_LOG_SUM_EXP])
def log_sum_exp(node: Node) -> Value | None:
    """``log(sum(exp(x - m))) + m``, ``m`` the maximum of ``x`` where that is finite."""
    for i in (0, 1):
        total = _made_by(_operand(node.operands[i], "Log"), "ReduceSum")
        difference = _operand(total.operands[0], "Exp") if total is not None else None
        made = _made_by(difference, "Sub")
        if total is None or made is None:
            continue
        x, guarded = made.given(0), made.given(1)
        maximum = _made_by(_finite(guarded), "ReduceMax")
        if maximum is None or maximum.operands[0] is not x or not maximum.attrs.get("keepdims", 1):
            continue
        rank = len(known_shape(x))
        axes = _axes(total, rank)
        if axes is None or axes != _axes(maximum, rank):
            continue
        added = node.given(1 - i)
        if added is not guarded and not _is_reshaped(added, guarded):
            continue
        require(known_shape(added) == known_shape(node.results[0]), "the maximum is added in another shape")
        return op.ReduceLogSumExp(x, total.operand(1), keepdims=total.attrs.get("keepdims", 1))
    return None


def _made_by(value: Value | None, name: str) -> Node | None:
    node = value.producer if value is not None else None
    return node if node is not None and node.op == name else None


def _operand(value: Value | None, name: str) -> Value | None:
    node = _made_by(value, name)
    return node.operands[0] if node is not None else None


def _axes(node: Node, rank: int) -> list[int] | None:
    axes = integers(node.operand(1))
    return sorted(a % rank for a in axes) if axes else None


def _finite(value: Value) -> Value:
    """``m`` of ``where(abs(m) < inf, m, 0)``."""
    node = _made_by(value, "Where")
    test = _made_by(node.operands[0], "Less") if node is not None else None
    if node is None or test is None or scalar_of(node.operands[2]) != 0:
        return value
    is_guard = scalar_of(test.operands[1]) == float("inf") and _operand(test.operands[0], "Abs") is node.operands[1]
    return node.given(1) if is_guard else value


def _is_reshaped(value: Value, source: Value) -> bool:
    node = value.producer
    return node is not None and node.op in RESHAPING and node.operands[0] is source


@rule("Sub", numerics=_ROUNDING, examples=[_SOFTMAX])
def log_softmax(node: Node) -> Value | None:
    """``x - logsumexp(x)``."""
    return _along_lines(node, "LogSoftmax")


@rule("Exp", numerics=_ROUNDING, examples=[_SOFTMAX, _OVER_TWO])
def softmax(node: Node) -> Value | None:
    """``exp(x - logsumexp(x))``, and what `log_softmax` has made of it."""
    value = node.given(0)
    while value.producer is not None and value.producer.op in RESHAPING:
        value = value.producer.given(0)
    logarithm = _made_by(value, "LogSoftmax")
    if logarithm is not None:
        found = op.Softmax(logarithm.given(0), axis=logarithm.attrs.get("axis", -1))
        return found if value is node.operands[0] else reshape_to(found, known_shape(node.results[0]))
    difference = _made_by(value, "Sub") if value is node.operands[0] else None
    return None if difference is None else _along_lines(difference, "Softmax")


def _along_lines(difference: Node, name: str) -> Value | None:
    """The operator ``name`` on what a logarithm of a sum of exponentials is subtracted from."""
    x, total = difference.operands[0], _made_by(difference.operands[1], "ReduceLogSumExp")
    if x is None or total is None or total.operands[0] is not x or not total.attrs.get("keepdims", 1):
        return None
    shape = known_shape(x)
    axes = _axes(total, len(shape))
    if axes is None:
        return None
    if len(axes) == 1:
        return getattr(op, name)(x, axis=axes[0])
    require(axes == list(range(axes[0], len(shape))), "the dimensions are not the last ones")
    lines: tuple[Dim, ...] = (*shape[: axes[0]], product(shape[a] for a in axes))
    flat = reshape_to(x, lines)
    require(flat is not None, "the sizes of merged dimensions are not known")
    return reshape_to(getattr(op, name)(flat, axis=-1), shape)


_BETWEEN = """
agraph (float[B,6,8] x) => (float[B,6,8] y) <int64[4] apart = {0, 2, 3, 8}, int64[3] back = {0, 6, 8}> {
  r = Reshape (x, apart)
  s = Softmax <axis = -1> (r)
  y = Reshape (s, back)
}
"""


@rule(
    lambda x, s, t, y, z, axis: op.Reshape(op.Softmax(op.Reshape(x, s, allowzero=y), axis=axis), t, allowzero=z),
    numerics=_ROUNDING,
    examples=[_BETWEEN],
)
def softmax_between_reshapes(x, axis, match):
    """A softmax along the last dimension, of what is reshaped before and after in others only."""
    shape = known_shape(x)
    inner = next(n for n in match.nodes if n.op == "Softmax").given(0)
    require(axis in (None, -1, len(known_shape(inner)) - 1), "the softmax is along another dimension")
    require(shape[-1:] == known_shape(inner)[-1:] != (), "the last dimension is split or merged")
    return reshape_to(op.Softmax(x, axis=-1), known_shape(match.root.results[0]))
