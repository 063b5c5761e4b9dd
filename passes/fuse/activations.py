"""Activations: Gelu, Swish, Mish, HardSwish, HardSigmoid, PRelu and Softplus, in the ways that exporters spell them.

All but PRelu and Softplus are products of ``x`` and a function of it. The product is taken apart into a number and
factors, and the argument of the function is read as a polynomial in ``x``, so that neither the order nor the place of
constants matters.
"""

from __future__ import annotations

import math

from ...ir import Node, Value, op
from ...ir.types import DType
from ..numerics import within
from ..pattern import const
from ..rules import require, rule
from .algebra import Polynomial, close, factors_of, is_private, polynomial
from .scores import scalar_of

_ROUNDING = within(rtol=1e-5, atol=1e-6)
_CUBIC = 0.044715  # of the approximation of Gelu by tanh (Hendrycks and Gimpel, Gaussian Error Linear Units)

_GELU = """
agraph (float[N,8] x) => (float[N,8] y) <float root = {1.4142135}, float one = {1.0}, float half = {0.5}> {
  a = Div (x, root)
  b = Erf (a)
  c = Add (b, one)
  d = Mul (x, c)
  y = Mul (d, half)
}
"""
_GELU_TANH = """
agraph (float[N,8] x) => (float[N,8] y) <
  float three = {3.0}, float cubic = {0.044715}, float scale = {0.7978846}, float one = {1.0}, float half = {0.5}
> {
  a = Pow (x, three)
  b = Mul (a, cubic)
  c = Add (x, b)
  d = Mul (c, scale)
  e = Tanh (d)
  f = Add (e, one)
  g = Mul (x, half)
  y = Mul (g, f)
}
"""
_SWISH = """
agraph (float[N,8] x, float[N,8] z) => (float[N,8] y, float[N,8] w) <float alpha = {1.702}> {
  a = Sigmoid (x)
  b = Mul (x, z)
  y = Mul (b, a)
  c = Mul (z, alpha)
  d = Sigmoid (c)
  w = Mul (z, d)
}
"""
_HARD_SWISH = """
agraph (float[N,8] x) => (float[N,8] y) <float three = {3.0}, float zero = {0.0}, float six = {6.0}> {
  a = Add (x, three)
  b = Clip (a, zero, six)
  c = Mul (x, b)
  y = Div (c, six)
}
"""
_MISH = """
agraph (float[N,8] x) => (float[N,8] y) {
  a = Softplus (x)
  b = Tanh (a)
  y = Mul (x, b)
}
"""


@rule("Mul", "Div", numerics=_ROUNDING, examples=[_GELU, _GELU_TANH, _SWISH, _HARD_SWISH, _MISH])
def self_gated_activation(node: Node) -> Value | None:
    """``x * f(x)``: Gelu, Swish, HardSwish or Mish, by what ``f`` is."""
    if not any(o is not None and o.producer is not None for o in node.operands):
        return None
    coefficient, factors = factors_of(node)
    if not 2 <= len(factors) <= 3:
        return None
    for gate in factors:
        if gate.producer is None or gate.producer.op not in _GATES or not gate.dtype.is_floating:
            continue
        others = [f for f in factors if f is not gate]
        for x in others:
            found = _GATES[gate.producer.op](gate.producer, x, coefficient)
            if found is None:
                continue
            rest = [f for f in others if f is not x]
            require(len(rest) == len(others) - 1, "the value is squared")
            require(x.shape is not None and x.shape == gate.shape, "the gate has another shape")
            activated, number = found
            require(close(number, 1.0, x.dtype), "the product is scaled")
            return op.Mul(rest[0], activated) if rest else activated
    return None


def _gelu(gate: Node, x: Value, coefficient: float) -> tuple[Value, float] | None:
    """``1 + erf(x / sqrt(2))``, or its approximation by tanh."""
    inner = next((o.producer for o in gate.operands if o is not None and scalar_of(o) is None), None)
    if inner is None or inner.op not in ("Erf", "Tanh") or not any(scalar_of(o) == 1.0 for o in gate.operands):
        return None
    argument = inner.operands[0]
    assert argument is not None
    terms = polynomial(argument, x)
    if terms is None or not is_private(inner, gate):
        return None
    if inner.op == "Erf":
        fits = _is(terms, {1: math.sqrt(0.5)}, x.dtype)
        return (op.Gelu(x), 2 * coefficient) if fits else None
    scale = math.sqrt(2 / math.pi)
    fits = _is(terms, {1: scale, 3: scale * _CUBIC}, x.dtype)
    return (op.Gelu(x, approximate="tanh"), 2 * coefficient) if fits else None


def _swish(gate: Node, x: Value, coefficient: float) -> tuple[Value, float] | None:
    """``sigmoid(alpha * x)``."""
    terms = polynomial(gate.operands[0], x)  # type: ignore[arg-type]
    if terms is None or set(terms) != {1}:
        return None
    return op.Swish(x, alpha=None if terms[1] == 1.0 else terms[1]), coefficient


def _hard_swish(gate: Node, x: Value, coefficient: float) -> tuple[Value, float] | None:
    """``clip(x + 3, 0, 6)``, or six times HardSigmoid."""
    if gate.op == "HardSigmoid":
        alpha, beta = gate.attrs.get("alpha", 0.2), gate.attrs.get("beta", 0.5)
        fits = gate.operands[0] is x and close(alpha, 1 / 6, x.dtype) and close(beta, 0.5, x.dtype)
        return (op.HardSwish(x), coefficient) if fits else None
    clipped = _clipped(gate)
    if clipped is None or clipped[1:] != (0.0, 6.0):
        return None
    terms = polynomial(clipped[0], x)
    return (op.HardSwish(x), 6 * coefficient) if terms is not None and _is(terms, {0: 3.0, 1: 1.0}, x.dtype) else None


def _clipped(node: Node) -> tuple[Value, float, float] | None:
    """What ``node`` limits, and the limits."""
    low = high = None
    value: Value | None = node.result
    while value is not None and value.producer is not None and value.producer.op in ("Clip", "Min", "Max"):
        inner = value.producer
        numbers = [scalar_of(o) for o in inner.operands]
        if len(numbers) < 2 or numbers[0] is not None:
            break
        if inner.op in ("Clip", "Max") and low is None:
            low = numbers[1]
        if inner.op == "Clip" and len(numbers) > 2 and high is None:
            high = numbers[2]
        if inner.op == "Min" and high is None:
            high = numbers[1]
        value = inner.operands[0]
    return None if value is None or low is None or high is None or low > high else (value, low, high)


def _mish(gate: Node, x: Value, coefficient: float) -> tuple[Value, float] | None:
    """``tanh(softplus(x))``."""
    inner = gate.operands[0].producer if gate.operands[0] is not None else None
    fits = inner is not None and inner.op == "Softplus" and inner.operands[0] is x
    return (op.Mish(x), coefficient) if fits else None


def _is(terms: Polynomial, expected: Polynomial, dtype: DType) -> bool:
    present = {p: c for p, c in terms.items() if c}
    return present.keys() == expected.keys() and all(close(c, expected[p], dtype) for p, c in present.items())


_GATES = {
    "Add": _gelu,
    "Clip": _hard_swish,
    "HardSigmoid": _hard_swish,
    "Min": _hard_swish,
    "Sigmoid": _swish,
    "Tanh": _mish,
}

_SOFTPLUS = """
agraph (float[N,8] x) => (float[N,8] y) <float one = {1.0}> {
  a = Exp (x)
  b = Add (a, one)
  y = Log (b)
}
"""


@rule(lambda x: op.Log(op.Exp(x) + 1.0), numerics=within(rtol=1e-4, atol=1e-6), examples=[_SOFTPLUS])
def softplus(x):
    """``log(1 + exp(x))``, without its overflow."""
    return op.Softplus(x)


@rule(lambda x, slope=const: op.Relu(x) + slope * op.Relu(-x), numerics=_ROUNDING)
def prelu(x, slope):
    """``relu(x) - alpha * relu(-x)``: how Keras writes it."""
    require(x.rank is not None and slope.rank is not None and slope.rank <= x.rank, "the slope has more dimensions")
    wide = x.shape[x.rank - slope.rank :]
    require(all(n in (1, d) for n, d in zip(slope.shape, wide, strict=True)), "the slope has more elements")
    return op.PRelu(x, op.Neg(slope))


_HARD_SIGMOID = """
agraph (float[N,8] x) => (float[N,8] y) <float three = {3.0}, float zero = {0.0}, float six = {6.0}> {
  a = Add (x, three)
  b = Clip (a, zero, six)
  y = Div (b, six)
}
"""


_HARD_SIGMOID_SHIFTED = """
agraph (float[N,8] x) => (float[N,8] y) <float zero = {0.0}, float six = {6.0}, float sixth = {0.16666667}> {
  a = Clip (x, zero, six)
  y = Mul (a, sixth)
}
"""


@rule("Mul", "Div", numerics=_ROUNDING, examples=[_HARD_SIGMOID, _HARD_SIGMOID_SHIFTED])
def hard_sigmoid(node: Node) -> Value | None:
    """``clip(x + 3, 0, 6) / 6``, and the like."""
    coefficient, factors = factors_of(node)
    if len(factors) != 1 or coefficient <= 0 or factors[0].producer is None:
        return None
    clipped = _clipped(factors[0].producer)
    if clipped is None or clipped[1] != 0 or not is_private(factors[0].producer, node):
        return None
    if not close(clipped[2] * coefficient, 1.0, node.result.dtype):
        return None
    x, terms = _affine(clipped[0])
    if x.dtype is not node.result.dtype:
        return None
    require(x.shape == node.result.shape and x.shape is not None, "the constants broadcast")
    return op.HardSigmoid(x, alpha=terms[1] * coefficient, beta=terms[0] * coefficient)


def _affine(value: Value) -> tuple[Value, Polynomial]:
    """``x`` and numbers, of which ``value`` is the first plus the second times ``x``: itself, if nothing else."""
    node = value.producer
    x = next((o for o in node.operands if o is not None and scalar_of(o) is None), None) if node is not None else None
    terms = None if x is None else polynomial(value, x)
    return (value, {0: 0.0, 1: 1.0}) if x is None or terms is None or set(terms) != {0, 1} else (x, terms)
