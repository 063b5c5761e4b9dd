"""What went wrong while jax traced a function, as one line that names the place in the user's code."""

from __future__ import annotations

import traceback

from .origin import is_users

__all__ = ["describe"]

_MAX_MESSAGE = 300
_ADVICE = {
    "TracerBoolConversionError": "control flow depends on the values of an array: use jax.lax.cond or jnp.where",
    "TracerIntegerConversionError": "an array is used as a Python integer: make it a plain number in args",
    "TracerArrayConversionError": "numpy is called on an array that is traced: use jax.numpy",
    "ConcretizationTypeError": "the value of an array is needed while tracing: make it a plain number in args",
    "NonConcreteBooleanIndexError": "the shape of the result depends on values: use jnp.where with three arguments",
}


def describe(error: BaseException) -> str:
    """One line: the reason, and where."""
    kind = next((_ADVICE[c.__name__] for c in type(error).__mro__ if c.__name__ in _ADVICE), None)
    text = kind or _first_line(error)
    if type(error).__name__ == "InconclusiveDimensionOperation":
        text += "; state what is known of the sizes: jax.export.symbolic_shape(…, constraints=[…])"
    source = _place(error)
    return text + (f" at {source}" if source else "")


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:_MAX_MESSAGE].rstrip(".")
    name = type(error).__name__
    return f"{name}: {line}" if line else name


def _place(error: BaseException) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return ""
