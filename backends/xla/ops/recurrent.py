"""RNN, LSTM and GRU: the products with the inputs in one matrix product, then a scan over time.

Formulas and order of the gates: the ONNX operator specification, opset 28. A sequence that is shorter than the longest
keeps its state from its last step on, and gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ....ir.graph import Node
from ..lowering import Call, lowers
from ..precision import precision_of

Array = Any
Function = Callable[[Array], Array]

# name: (function of x, alpha, beta; default alpha; default beta), the defaults those of the operators of that name
_ACTIVATIONS: dict[str, tuple[Callable[[Array, float, float], Array], float | None, float | None]] = {
    "relu": (lambda x, a, b: jnp.maximum(x, 0), None, None),
    "tanh": (lambda x, a, b: jnp.tanh(x), None, None),
    "sigmoid": (lambda x, a, b: jax.nn.sigmoid(x), None, None),
    "softsign": (lambda x, a, b: x / (1 + jnp.abs(x)), None, None),
    "softplus": (lambda x, a, b: jax.nn.softplus(x), None, None),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: jnp.where(x < 0, a * x, x), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: jnp.where(x > a, x, 0), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * jnp.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: jnp.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: jnp.where(x < 0, a * jnp.expm1(jnp.minimum(x, 0)), x), 1.0, None),
}


def _refuse(node: Node) -> str | None:
    """Whether a node names activations that do not exist."""
    names = node.attrs.get("activations") or ()
    unknown = [n for name in names if (n := _text(name)).lower() not in _ACTIVATIONS]
    return f"there is no activation {unknown[0]!r}" if unknown else None


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _activations(call: Call, defaults: Sequence[str], directions: int) -> list[list[Function]]:
    """The activations of each direction, with the parameters that they take in order."""
    count = len(defaults) * directions
    names = [_text(name).lower() for name in call.node.attrs.get("activations") or (*defaults,) * directions]
    if len(names) < count:
        raise call.error(f"{len(names)} activations, not {count}")
    alphas, betas = iter(call["activation_alpha"] or ()), iter(call["activation_beta"] or ())
    found = [_activation(call, name, alphas, betas) for name in names[:count]]
    return [found[i : i + len(defaults)] for i in range(0, len(found), len(defaults))]


def _activation(call: Call, name: str, alphas: Iterator[float], betas: Iterator[float]) -> Function:
    function, alpha, beta = _ACTIVATIONS[name]
    a = 0.0 if alpha is None else next(alphas, alpha)
    b = 0.0 if beta is None else next(betas, beta)
    clip = call["clip"]

    def compute(x: Array) -> Array:
        return function(x if clip is None else jnp.clip(x, -clip, clip), a, b)

    return compute


# one direction


class _Cell:
    """One direction of a layer: weights, and the step from a state to the next.

    Attributes:
        states: the number of tensors ``[batch, hidden]`` that it carries; the first is the output.
    """

    states = 1

    def __init__(self, call: Call, r: Array, bias: Array | None, peephole: Array | None, functions: list[Function]):
        self.call = call
        self.r = r
        self.hidden = r.shape[-1]
        self.functions = functions
        self.peephole = peephole
        self.recurrent_bias = None if bias is None else bias[bias.shape[0] // 2 :]

    def product(self, a: Array, weights: Array) -> Array:
        """``a @ weights.T`` with the last dimensions of both."""
        contracted = (((a.ndim - 1,), (1,)), ((), ()))
        return lax.dot_general(a, weights, contracted, precision=precision_of(self.call))

    def input_bias(self, bias: Array) -> Array:
        """What is added to the products with the inputs: both biases, but for what the step adds itself."""
        half = bias.shape[0] // 2
        return bias[:half] + bias[half:]

    def step(self, state: list[Array], x: Array) -> list[Array]:
        """The next state from the products ``x`` of this time's input."""
        raise NotImplementedError

    def gates(self, x: Array, count: int) -> list[Array]:
        """``x`` cut into ``count`` gates."""
        return [x[..., i * self.hidden : (i + 1) * self.hidden] for i in range(count)]


class _Rnn(_Cell):
    defaults = ("Tanh",)

    def step(self, state: list[Array], x: Array) -> list[Array]:
        return [self.functions[0](x + self.product(state[0], self.r))]


class _Lstm(_Cell):
    states = 2
    defaults = ("Sigmoid", "Tanh", "Tanh")

    def step(self, state: list[Array], x: Array) -> list[Array]:
        f, g, h = self.functions
        before, cell = state
        i, o, forget, c = self.gates(x + self.product(before, self.r), 4)
        p = None if self.peephole is None else self.gates(self.peephole, 3)
        if p is not None:
            i, forget = i + p[0] * cell, forget + p[2] * cell
        i = f(i)
        forget = 1 - i if self.call["input_forget"] else f(forget)
        cell = forget * cell + i * g(c)
        o = f(o if p is None else o + p[1] * cell)
        return [o * h(cell), cell]


class _Gru(_Cell):
    defaults = ("Sigmoid", "Tanh")

    def input_bias(self, bias: Array) -> Array:
        if not self.call["linear_before_reset"]:
            return super().input_bias(bias)
        cut = 2 * self.hidden
        half = bias.shape[0] // 2
        return jnp.concatenate([bias[:cut] + bias[half : half + cut], bias[cut:half]])

    def step(self, state: list[Array], x: Array) -> list[Array]:
        f, g = self.functions
        (before,) = state
        cut = 2 * self.hidden
        if self.call["linear_before_reset"]:
            products = self.product(before, self.r)
            z, r = self.gates(f(x[..., :cut] + products[..., :cut]), 2)
            inner = products[..., cut:]
            inner = inner if self.recurrent_bias is None else inner + self.recurrent_bias[cut:]
            new = g(x[..., cut:] + r * inner)
        else:
            z, r = self.gates(f(x[..., :cut] + self.product(before, self.r[:cut])), 2)
            new = g(x[..., cut:] + self.product(r * before, self.r[cut:]))
        return [(1 - z) * new + z * before]


# a layer


def _layer(
    call: Call,
    kind: type[Any],
    x: Array,
    w: Array,
    r: Array,
    bias: Array | None,
    lengths: Array | None,
    initial: Sequence[Array | None],
    peephole: Array | None = None,
) -> tuple[Array, ...]:
    """All directions over all times: the outputs, then the last states."""
    batch_first = bool(call["layout"])
    times = x.shape[1] if batch_first else x.shape[0]
    batch = x.shape[0] if batch_first else x.shape[1]
    directions = 2 if call["direction"] == "bidirectional" else 1
    if w.shape[0] != directions:
        raise call.error(f"weights of {w.shape[0]} directions, and direction {call['direction']!r}")
    functions = _activations(call, kind.defaults, directions)
    lasts, outputs = [], []
    for d in range(directions):
        cell = kind(
            call, r[d], None if bias is None else bias[d], None if peephole is None else peephole[d], functions[d]
        )
        start = [
            jnp.zeros((batch, cell.hidden), x.dtype) if s is None else s[:, d] if batch_first else s[d] for s in initial
        ]
        products = cell.product(x, w[d])
        products = products if bias is None else products + cell.input_bias(bias[d])
        rows = jnp.moveaxis(products, 1, 0) if batch_first else products
        backwards = call["direction"] == "reverse" or d == 1
        last, output = lax.scan(_step_of(cell, lengths), start, (rows, jnp.arange(times)), reverse=backwards)
        lasts.append(last)
        outputs.append(output)
    y = jnp.stack(outputs, axis=1)  # [time, direction, batch, hidden]
    ends = [jnp.stack(v, axis=1 if batch_first else 0) for v in zip(*lasts, strict=True)]
    return (jnp.transpose(y, (2, 0, 1, 3)) if batch_first else y, *ends)


def _step_of(cell: _Cell, lengths: Array | None) -> Callable[..., Any]:
    """What a scan does at one time: nothing, for a sequence that is shorter."""

    def step(state: list[Array], row: tuple[Array, Array]) -> tuple[list[Array], Array]:
        x, time = row
        new = [s.astype(old.dtype) for s, old in zip(cell.step(state, x), state, strict=True)]
        if lengths is None:
            return new, new[0]
        runs = (time < lengths)[:, None]
        kept = [jnp.where(runs, s, old) for s, old in zip(new, state, strict=True)]
        return kept, jnp.where(runs, new[0], jnp.zeros((), x.dtype))

    return step


@lowers("RNN", refuses=_refuse)
def _rnn(call: Call, x: Array, w: Array, r: Array, bias: Array = None, lengths: Array = None, h: Array = None) -> Any:
    return _layer(call, _Rnn, x, w, r, bias, lengths, [h])


@lowers("GRU", refuses=_refuse)
def _gru(call: Call, x: Array, w: Array, r: Array, bias: Array = None, lengths: Array = None, h: Array = None) -> Any:
    return _layer(call, _Gru, x, w, r, bias, lengths, [h])


@lowers("LSTM", refuses=_refuse)
def _lstm(
    call: Call,
    x: Array,
    w: Array,
    r: Array,
    bias: Array = None,
    lengths: Array = None,
    h: Array = None,
    c: Array = None,
    peephole: Array = None,
) -> Any:
    return _layer(call, _Lstm, x, w, r, bias, lengths, [h, c], peephole)
