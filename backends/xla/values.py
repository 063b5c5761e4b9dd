"""What a value is while a graph is lowered: known numbers, known but for symbolic dimensions, or traced.

A numpy array is known: shapes are computed from it now, in Python. A numpy array of objects holds integers and symbolic
dimensions of ``jax.export``: what exporting with a symbolic batch size makes of shapes. Everything else is a JAX array,
which may be a tracer; a list is a sequence, and None an empty optional. Two more kinds only some operators see:
`planish.backends.xla.quantized.Quantized` and `planish.backends.xla.padded.Padded`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...ir.types import DType

__all__ = ["concrete", "counted", "dims", "ints", "is_known", "is_symbolic", "larger", "narrowed", "to_dtype", "traced"]

Array = np.ndarray[Any, Any]
_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}


def is_known(value: Any) -> bool:
    """Whether ``value`` is known, perhaps but for symbolic dimensions."""
    return isinstance(value, np.ndarray)


def is_symbolic(value: Any) -> bool:
    """Whether ``value`` holds symbolic dimensions."""
    return isinstance(value, np.ndarray) and value.dtype == object


def concrete(value: Any) -> Array | None:
    """The elements of ``value`` as numbers, or None if it is traced or symbolic."""
    if isinstance(value, np.ndarray):
        return None if value.dtype == object else value
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        return np.asarray(value)
    return None


def ints(array: Array) -> list[int]:
    """The elements of a known array of integers.

    Raises:
        ValueError: it holds symbolic dimensions.
    """
    if array.dtype == object:
        raise ValueError(f"symbolic sizes {', '.join(map(str, array.ravel()))} where numbers are needed")
    return [int(v) for v in array.ravel()]


def dims(array: Array) -> list[Any]:
    """The elements of a known array of sizes: integers and symbolic dimensions."""
    return [d if array.dtype == object and not isinstance(d, int | np.integer) else int(d) for d in array.ravel()]


def from_dims(sizes: Any) -> Array:
    """An array of sizes: int64 if all are known, else of objects."""
    sizes = list(sizes)
    if all(isinstance(d, int | np.integer) for d in sizes):
        return np.array(sizes, np.int64)
    array = np.empty(len(sizes), object)
    array[:] = sizes
    return array


def counted(axis: int, rank: int) -> int:
    """``axis`` counted from the front.

    Raises:
        ValueError: a value of this rank has no such axis.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a value with {rank} dimensions")
    return axis % rank


def larger(a: Any, b: Any) -> Any:
    """The larger one of two sizes. With a number it has one spelling, so that JAX knows equal sizes to be equal."""
    if isinstance(a, int):
        a, b = b, a
    return jax.core.max_dim(a - b, 0) + b if isinstance(b, int) else jax.core.max_dim(a, b)


def to_dtype(dtype: DType) -> np.dtype[Any]:
    """The element type that JAX computes ``dtype`` in."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype.numpy))


def narrowed(array: Array) -> Array:
    """``array`` in a type that JAX has: where 64-bit types are off, integers saturate at 32 bits."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    if array.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.clip(array, limits.min, limits.max)
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def traced(value: Any) -> Any:
    """``value`` as a JAX array (the elements of a sequence, each)."""
    if value is None or isinstance(value, jax.Array):
        return value
    if isinstance(value, list | tuple):
        return [traced(v) for v in value]
    if is_symbolic(value):
        flat = [jnp.asarray(d) for d in value.ravel()]
        return jnp.stack(flat).reshape(value.shape) if flat else jnp.zeros(value.shape, int)
    return jnp.asarray(narrowed(np.asarray(value)))
