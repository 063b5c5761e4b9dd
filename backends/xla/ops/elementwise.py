"""Arithmetic, comparisons, logic and activations: one result element per element, with numpy's broadcasting.

Definitions: the ONNX operator specification, opset 28. Where a function has a kink, its derivative there is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lowering import Call, lowers
from ..precision import widened

Array = Any


def _enter(table: dict[str, Callable[..., Array]]) -> None:
    for op, function in table.items():
        lowers(op)(lambda call, *operands, _f=function: _f(*operands))


@jax.custom_jvp
def magnitude(x: Array) -> Array:
    """The absolute value, with derivative 0 at 0."""
    return jnp.abs(x)


@magnitude.defjvp
def _magnitude_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return jnp.abs(primals[0]), jnp.sign(primals[0]) * tangents[0]


def _erf(x: Array) -> Array:
    return lax.erf(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)).astype(x.dtype)


_enter(
    {
        "Abs": magnitude,
        "Acos": jnp.arccos,
        "Acosh": jnp.arccosh,
        "Asin": jnp.arcsin,
        "Asinh": jnp.arcsinh,
        "Atan": jnp.arctan,
        "Atanh": jnp.arctanh,
        "Ceil": jnp.ceil,
        "Cos": jnp.cos,
        "Cosh": jnp.cosh,
        "Erf": _erf,
        "Exp": jnp.exp,
        "Floor": jnp.floor,
        "Identity": lambda x: x,
        "IsNaN": jnp.isnan,
        "Log": jnp.log,
        "Neg": jnp.negative,
        "Not": jnp.logical_not,
        "Reciprocal": lambda x: 1 / x,
        "Relu": jax.nn.relu,
        "Round": lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
        "Sign": jnp.sign,
        "Sin": jnp.sin,
        "Sinh": jnp.sinh,
        "Sqrt": jnp.sqrt,
        "Tan": jnp.tan,
        "Tanh": jnp.tanh,
        "BitwiseNot": jnp.bitwise_not,
        "Add": jnp.add,
        "Sub": jnp.subtract,
        "Mul": jnp.multiply,
        "And": jnp.logical_and,
        "Or": jnp.logical_or,
        "Xor": jnp.logical_xor,
        "BitwiseAnd": jnp.bitwise_and,
        "BitwiseOr": jnp.bitwise_or,
        "BitwiseXor": jnp.bitwise_xor,
        "Equal": jnp.equal,
        "Greater": jnp.greater,
        "GreaterOrEqual": jnp.greater_equal,
        "Less": jnp.less,
        "LessOrEqual": jnp.less_equal,
        "Where": jnp.where,
    }
)


# arithmetic


@lowers("Div")
def _div(call: Call, a: Array, b: Array) -> Array:
    if jnp.issubdtype(a.dtype, jnp.integer):
        a, b = jnp.broadcast_arrays(a, b)
        return lax.div(a, b)  # rounds towards zero, as ONNX does
    return a / b


@lowers("Mod")
def _mod(call: Call, a: Array, b: Array) -> Array:
    if call["fmod"]:
        return jnp.fmod(a, b)
    return _floor_mod(a, b) if jnp.issubdtype(a.dtype, jnp.floating) else jnp.mod(a, b)


@jax.custom_jvp
def _floor_mod(a: Array, b: Array) -> Array:
    """The remainder of floats with the sign of ``b``, also where it is zero."""
    remainder = jnp.mod(a, b)
    return jnp.where(remainder == 0, jnp.copysign(remainder, b), remainder)


@_floor_mod.defjvp
def _floor_mod_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    a, b = primals
    return _floor_mod(a, b), tangents[0] - jnp.floor(a / b) * tangents[1]


@lowers("Pow")
def _pow(call: Call, base: Array, exponent: Array) -> Array:
    shape = jnp.broadcast_shapes(base.shape, exponent.shape)
    if jnp.issubdtype(base.dtype, jnp.integer):
        return _integer_power(*(jnp.broadcast_to(x, shape) for x in (base, exponent)))
    known = call.known(1)
    if known is not None and known.size == 1:
        value = float(known.reshape(()))
        if value == int(value if abs(value) <= 4 else 5):
            return jnp.broadcast_to(lax.integer_pow(base, int(value)), shape)
        if value == 0.5:
            return jnp.broadcast_to(jnp.sqrt(base), shape)
    wide = widened(base)
    return jnp.power(wide, exponent.astype(wide.dtype)).astype(base.dtype)


def _integer_power(base: Array, exponent: Array) -> Array:
    """``base ** exponent`` rounded towards zero, exact for whole exponents."""
    if jnp.issubdtype(exponent.dtype, jnp.floating):
        wide = jax.dtypes.canonicalize_dtype(np.float64)
        whole = jnp.floor(exponent) == exponent
        rounded = jnp.power(base.astype(wide), exponent.astype(wide)).astype(base.dtype)
        small = jnp.where(whole, jnp.clip(exponent, -64, 64), 0).astype(jnp.int32)
        return jnp.where(whole & (jnp.abs(exponent) <= 64), _integer_power(base, small), rounded)
    result = jnp.power(base, jnp.maximum(exponent, 0))
    if jnp.issubdtype(exponent.dtype, jnp.unsignedinteger):
        return result
    inverse = jnp.where(base == 1, 1, jnp.where(base == -1, 1 - 2 * (exponent & 1), 0))
    return jnp.where(exponent < 0, inverse, result).astype(base.dtype)


@lowers("BitShift")
def _bit_shift(call: Call, x: Array, amount: Array) -> Array:
    x, amount = jnp.broadcast_arrays(x, amount)
    if call["direction"] == "LEFT":
        return lax.shift_left(x, amount)  # XLA, too, takes a negative amount for a large one
    is_signed = jnp.issubdtype(x.dtype, jnp.signedinteger)
    return (lax.shift_right_arithmetic if is_signed else lax.shift_right_logical)(x, amount)


def _variadic(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def compute(call: Call, *operands: Array) -> Array:
        result = operands[0]
        for operand in operands[1:]:
            result = function(result, operand)
        return result

    return compute


lowers("Max")(_variadic(jnp.maximum))
lowers("Min")(_variadic(jnp.minimum))
lowers("Sum")(_variadic(jnp.add))


@lowers("Mean")
def _mean(call: Call, *operands: Array) -> Array:
    total = _variadic(jnp.add)(call, *map(widened, operands))
    return (total / len(operands)).astype(operands[0].dtype)


@lowers("Clip")
def _clip(call: Call, x: Array, low: Array = None, high: Array = None) -> Array:
    if low is not None:
        low = low.reshape(())
        x = jnp.where(x < low, low, x)
    if high is not None:
        high = high.reshape(())
        x = jnp.where(x > high, high, x)
    return x


@lowers("IsInf")
def _is_inf(call: Call, x: Array) -> Array:
    if x.dtype.name.startswith("float8") and x.dtype.name.endswith(("fn", "fnuz")):
        return jnp.zeros(x.shape, bool)  # these formats have no infinities
    positive, negative = bool(call["detect_positive"]), bool(call["detect_negative"])
    if positive and negative:
        return jnp.isinf(x)
    if positive or negative:
        return x == jnp.asarray(np.inf if positive else -np.inf, x.dtype)
    return jnp.zeros(x.shape, bool)


# activations


def _activation(*ops: str) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Enter a function of one operand, computed in float32 for narrower types, which it gets with the call."""

    def register(function: Callable[..., Array]) -> Callable[..., Array]:
        lowers(*ops)(lambda call, x: function(call, widened(x)).astype(x.dtype))
        return function

    return register


@_activation("Sigmoid")
def _sigmoid(call: Call, x: Array) -> Array:
    return jax.nn.sigmoid(x)


@_activation("Softplus")
def _softplus(call: Call, x: Array) -> Array:
    return jax.nn.softplus(x)


@_activation("Softsign")
def _softsign(call: Call, x: Array) -> Array:
    return jax.nn.soft_sign(x)


@_activation("LeakyRelu")
def _leaky_relu(call: Call, x: Array) -> Array:
    return jnp.where(x > 0, x, call["alpha"] * x)


@lowers("PRelu")
def _prelu(call: Call, x: Array, slope: Array) -> Array:
    return jnp.where(x > 0, x, slope * x)


@_activation("ThresholdedRelu")
def _thresholded_relu(call: Call, x: Array) -> Array:
    return jnp.where(x > call["alpha"], x, 0)


def _negative(x: Array) -> Array:
    """``x`` where it is negative, else 0: an operand whose exponential does not overflow."""
    return jnp.where(x > 0, 0, x)


@_activation("Elu")
def _elu(call: Call, x: Array) -> Array:
    return jnp.where(x > 0, x, call["alpha"] * jnp.expm1(_negative(x)))


@_activation("Celu")
def _celu(call: Call, x: Array) -> Array:
    return jnp.where(x > 0, x, call["alpha"] * jnp.expm1(_negative(x) / call["alpha"]))


@_activation("Selu")
def _selu(call: Call, x: Array) -> Array:
    return call["gamma"] * jnp.where(x > 0, x, call["alpha"] * jnp.expm1(_negative(x)))


def _clipped(x: Array) -> Array:
    """``x`` between 0 and 1, with derivative 0 at the ends."""
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.ones((), x.dtype))


@_activation("HardSigmoid")
def _hard_sigmoid(call: Call, x: Array) -> Array:
    return _clipped(call["alpha"] * x + call["beta"])


@_activation("HardSwish")
def _hard_swish(call: Call, x: Array) -> Array:
    return x * _clipped(x / 6 + 0.5)


@_activation("Mish")
def _mish(call: Call, x: Array) -> Array:
    return x * jnp.tanh(jax.nn.softplus(x))


@_activation("Gelu")
def _gelu(call: Call, x: Array) -> Array:
    return jax.nn.gelu(x, approximate=call["approximate"] == "tanh")


@_activation("Swish")
def _swish(call: Call, x: Array) -> Array:
    return x * jax.nn.sigmoid(call["alpha"] * x)


@lowers("SwiGLU")
def _swiglu(call: Call, gate: Array, value: Array) -> Array:
    wide = widened(gate)
    return (wide * jax.nn.sigmoid(call["alpha"] * wide) * widened(value)).astype(gate.dtype)


@lowers("Shrink")
def _shrink(call: Call, x: Array) -> Array:
    wide = widened(x) if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    bias, limit = call["bias"], call["lambd"]
    return jnp.where(wide < -limit, wide + bias, jnp.where(wide > limit, wide - bias, 0)).astype(x.dtype)
