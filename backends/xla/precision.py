"""How exactly products of floating-point numbers are computed."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from .lowering import Call

__all__ = ["precision_of", "quotient", "widened"]


def precision_of(call: Call) -> lax.Precision:
    """What matrix products and convolutions take as ``precision``."""
    return lax.Precision.HIGHEST if call.interpreter.options.precision == "highest" else lax.Precision.DEFAULT


def quotient(x: Any, divisor: Any) -> Any:
    """``x / divisor``, correctly rounded.

    XLA multiplies by the reciprocal of a divisor that many elements share; the last bit then differs, and with it the
    integer that a number half-way between two is rounded to. A divisor that seems to depend on ``x`` is spared.
    """
    return x / jnp.where(jnp.abs(x) < -1, x, divisor)


def widened(x: Any) -> Any:
    """``x`` in the type to compute it in: float32 for narrower floating-point numbers, else its own."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4 else x
