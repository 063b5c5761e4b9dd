"""Steps of optimizers, as arithmetic: ``ai.onnx.preview.training``."""

from __future__ import annotations

from collections.abc import Callable

from ....ir import DType, Node, Value, constant, op
from ..legality import Row
from ..versions import Version
from .elementwise import cast, scalar

__all__ = ["FORMS", "ROWS"]

_Step = Callable[[Node, Value, Value, list[Value]], list[Value]]


def _all(step: _Step, kinds: int) -> Callable[[Node, Version], list[Value] | None]:
    """A form that takes one ``step`` of each of the tensors; there are ``kinds`` values of each."""

    def form(node: Node, version: Version) -> list[Value] | None:
        rate, time, rest = node.given(0), node.given(1), node.operands[2:]
        count = len(rest) // kinds
        if any(v is None or not v.dtype.is_floating for v in (rate, *rest)):
            return None
        each = [step(node, rate, time, [v for v in rest[i::count] if v is not None]) for i in range(count)]
        return [results[kind] for kind in range(kinds - 1) for results in each]

    return form


def _regularized(node: Node, x: Value, gradient: Value) -> Value:
    return op.Add(op.Mul(x, scalar(node.attrs.get("norm_coefficient", 0.0), x)), gradient)


def _adagrad(node: Node, rate: Value, time: Value, values: list[Value]) -> list[Value]:
    x, gradient, squares = values
    decay = op.Mul(cast(time, rate.dtype), scalar(node.attrs.get("decay_factor", 0.0), rate))
    gradient = _regularized(node, x, gradient)
    squares = op.Add(squares, op.Mul(gradient, gradient))
    scale = op.Add(op.Sqrt(squares), scalar(node.attrs.get("epsilon", 1e-6), x))
    step = op.Mul(cast(op.Div(rate, op.Add(decay, scalar(1, rate))), x.dtype), op.Div(gradient, scale))
    return [op.Sub(x, step), squares]


def _adam(node: Node, rate: Value, time: Value, values: list[Value]) -> list[Value]:
    x, gradient, momentum, squares = values
    alpha, beta = node.attrs.get("alpha", 0.9), node.attrs.get("beta", 0.999)
    gradient = _regularized(node, x, gradient)
    momentum = op.Add(op.Mul(momentum, scalar(alpha, x)), op.Mul(gradient, scalar(1 - alpha, x)))
    squares = op.Add(op.Mul(squares, scalar(beta, x)), op.Mul(op.Mul(gradient, gradient), scalar(1 - beta, x)))
    one, when = scalar(1, rate), cast(time, rate.dtype)
    bias = op.Div(op.Sqrt(_remainder(beta, when, one)), _remainder(alpha, when, one))
    rate = op.Where(op.Greater(time, constant(0, DType.INT64)), op.Mul(rate, bias), rate)
    scale = op.Add(op.Sqrt(squares), scalar(node.attrs.get("epsilon", 1e-6), x))
    x = op.Sub(x, op.Mul(cast(rate, x.dtype), op.Div(momentum, scale)))
    after = scalar(1 - node.attrs.get("norm_coefficient_post", 0.0), x)
    return [op.Mul(x, after), momentum, squares]


def _remainder(base: float, exponent: Value, one: Value) -> Value:
    return op.Sub(one, op.Pow(scalar(base, exponent), exponent))


def _momentum(node: Node, rate: Value, time: Value, values: list[Value]) -> list[Value]:
    x, gradient, momentum = values
    alpha, beta = scalar(node.attrs["alpha"], x), scalar(node.attrs["beta"], x)
    gradient = _regularized(node, x, gradient)
    share = op.Where(op.Greater(time, constant(0, DType.INT64)), beta, scalar(1, x))
    momentum = op.Add(op.Mul(momentum, alpha), op.Mul(gradient, share))
    step = momentum if node.attrs["mode"] == "standard" else op.Add(gradient, op.Mul(momentum, alpha))
    return [op.Sub(x, op.Mul(cast(rate, x.dtype), step)), momentum]


ROWS: dict[str, Row] = {}

FORMS = {
    "ai.onnx.preview.training.Adagrad": _all(_adagrad, 3),
    "ai.onnx.preview.training.Adam": _all(_adam, 4),
    "ai.onnx.preview.training.Momentum": _all(_momentum, 3),
}
