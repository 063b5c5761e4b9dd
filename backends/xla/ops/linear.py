"""Products of matrices and tensors.

Definitions: the ONNX operator specification, opset 28. Products of float16 and bfloat16 are summed in float32 and
rounded once.
"""

from __future__ import annotations

import string
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..integers import multiply_integers
from ..lowering import Call, lowers
from ..precision import precision_of, widened

Array = Any
_EQUATION = frozenset(string.ascii_letters + ",")


def _sum_type(x: Array) -> Any:
    """The type that products of elements like those of ``x`` are summed in."""
    return jnp.float32 if x.dtype in (jnp.float16, jnp.bfloat16) else x.dtype


@lowers("MatMul")
def _matmul(call: Call, a: Array, b: Array) -> Array:
    product = jnp.matmul(a, b, precision=precision_of(call), preferred_element_type=_sum_type(a))
    return product.astype(a.dtype)


@lowers("Gemm")
def _gemm(call: Call, a: Array, b: Array, c: Array = None) -> Array:
    sides = (((0 if call["transA"] else 1,), (1 if call["transB"] else 0,)), ((), ()))
    result = lax.dot_general(a, b, sides, precision=precision_of(call), preferred_element_type=_sum_type(a))
    result = _scaled(result, call["alpha"])
    if c is not None and call["beta"] != 0:
        result = result + _scaled(widened(c), call["beta"])
    return result.astype(a.dtype)


def _scaled(x: Array, factor: float) -> Array:
    """``factor * x``, rounded towards zero where ``x`` is of integers."""
    return x if factor == 1 else (x * factor).astype(x.dtype)


@lowers("Einsum")
def _einsum(call: Call, *operands: Array) -> Array:
    dtype = operands[0].dtype
    equation = call["equation"].replace(" ", "")
    if not set(equation.replace("->", "", 1).replace("...", "")) <= _EQUATION:
        raise call.error(f"equation {equation!r} holds something other than letters, commas, an arrow and ellipses")
    product = jnp.einsum(
        equation, *operands, precision=precision_of(call), preferred_element_type=_sum_type(operands[0])
    )
    return product.astype(dtype)


@lowers("Det")
def _det(call: Call, x: Array) -> Array:
    return jnp.linalg.det(widened(x)).astype(x.dtype)


@lowers("MatMulInteger")
def _matmul_integer(call: Call, a: Array, b: Array, a_zero: Array = None, b_zero: Array = None) -> Array:
    return multiply_integers(a, b, a_zero, b_zero)
