"""Entries whose number depends on data, in arrays whose shapes do not: padded, with a count.

Where results that depend on data are padded (`Options.data_dependent`), operators such as ``NonZero`` give `Padded`: as
many entries as there can be, of which the first ``count`` are real, and the others any that are valid elsewhere, too.
So they can be traced. Operators that treat each entry by itself carry it on, sums and the like leave out what is no
entry (`planish.backends.xla.ops.padded`), and all others are refused: nothing is computed from padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...ir.types import DType
from .values import is_symbolic, to_dtype

__all__ = ["MIXES", "Entries", "Padded", "front", "has_entries", "in_parts"]

Array = Any

MIXES = "mixes entries whose number depends on data"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Padded:
    """As many entries as there can be, of which the first ones are real. A pytree of JAX.

    Attributes:
        values: the entries.
        count: how many of them are real, an integer without dimensions. Two values have equally many where this is the
            same object.
        axis: along which they lie, from the front.
    """

    values: Array
    count: Array
    axis: int = field(metadata={"static": True})

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return int(self.values.ndim)

    @property
    def size(self) -> Any:
        """How many entries there can be."""
        return self.values.shape[self.axis]

    def is_entry(self) -> Array:
        """Which entries are real: truth values (size)."""
        return jnp.arange(self.size, dtype=jnp.int32) < self.count

    def filled(self, number: Any) -> Array:
        """The values, with ``number`` for what is no entry."""
        shape = [-1 if i == self.axis else 1 for i in range(self.ndim)]
        return jnp.where(self.is_entry().reshape(shape), self.values, jnp.asarray(number, self.values.dtype))

    def has_entries_of(self, other: Padded) -> bool:
        """Whether it has as many entries as ``other``, whatever the data, and room for as many."""
        return self.count is other.count and bool(self.size == other.size)

    def cut(self) -> np.ndarray[Any, Any]:
        """The entries alone. Not within a trace."""
        return np.asarray(self.values)[(slice(None),) * self.axis + (slice(int(self.count)),)]

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        raise TypeError(MIXES)


@dataclass(frozen=True, eq=False)
class Entries:
    """The number of entries of a `Padded`, in a shape. It moves as symbolic dimensions do, and elsewhere becomes data.

    Attributes:
        count: the number.
        largest: the largest that it can be.
    """

    count: Array
    largest: Any

    def __jax_array__(self) -> Array:
        return self.count.astype(to_dtype(DType.INT64))

    def are_of(self, value: Padded) -> bool:
        """Whether they are those of ``value``."""
        return self.count is value.count and bool(self.largest == value.size)


def has_entries(value: Any) -> bool:
    """Whether ``value`` is a shape, or a part of one, that depends on data."""
    return is_symbolic(value) and any(isinstance(d, Entries) for d in value.ravel())


def front(chosen: Array) -> tuple[Array, Array]:
    """The order that moves the chosen entries, truth values (n), to the front, and how many they are."""
    at = jnp.arange(chosen.shape[0], dtype=jnp.int32)
    before = jnp.cumsum(chosen, dtype=jnp.int32)
    count = jnp.sum(chosen, dtype=jnp.int32)
    places = jnp.where(chosen, before - 1, count + at - before)
    order = jnp.zeros_like(at).at[places].set(at, unique_indices=True, mode="promise_in_bounds")
    return order, count


def in_parts(function: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """``function`` with (values, count) for each padded result: a program that needs no types of planish."""

    def call(*args: Any) -> tuple[Any, ...]:
        return tuple((r.values, r.count) if isinstance(r, Padded) else r for r in function(*args))

    return call
