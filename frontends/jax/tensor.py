"""Weights: jax's arrays as tensors, shared and not copied, and one tensor for what is one array."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ...ir.graph import Value
from ...ir.tensor import ArrayTensor, Tensor, TensorError
from ...ir.types import DType
from ..names import Names

__all__ = ["JaxTensor", "Weights"]


class JaxTensor(Tensor):
    """A jax array, on any device."""

    __slots__ = ("data",)

    def __init__(self, data: jax.Array, name: str = ""):
        super().__init__(DType.from_numpy(data.dtype), tuple(data.shape), name)
        self.data = data

    def numpy(self) -> np.ndarray[Any, Any]:
        """A read-only view of jax's memory; a copy only from another device."""
        if self.data.is_deleted():
            raise TensorError(f"tensor {self.name!r}: jax has deleted the array (it was donated)")
        array: np.ndarray[Any, Any] = np.asarray(self.data)
        array.flags.writeable = False
        return array

    @property
    def is_cheap(self) -> bool:
        """Whether it is in this machine's memory already."""
        return all(device.platform == "cpu" for device in self.data.devices())


class Weights:
    """Arrays as constants: the same array gives the same constant."""

    def __init__(self) -> None:
        self._values: dict[object, tuple[Value, Any]] = {}
        self._names = Names()

    def value(self, array: Any, name: str = "", dtype: np.dtype[Any] | None = None) -> Value:
        """The constant for a jax or numpy array.

        Args:
            array: the array.
            name: how it is called, if it is new.
            dtype: what jax takes it for, which differs for 64-bit numbers unless jax is told to keep these.
        """
        if dtype is not None and array.dtype != dtype:
            array = np.asarray(array).astype(dtype)
        key = _memory(array)
        known = self._values.get(key)
        if known is None:
            name = self._names.unused(name or "constant")
            tensor = (
                JaxTensor(array, name) if isinstance(array, jax.Array) else ArrayTensor(np.asarray(array), name=name)
            )
            known = self._values[key] = (Value(tensor.type, name, const=tensor), array)  # the array: it keeps its id
        return known[0]


def _memory(array: Any) -> object:
    """Equal for arrays that are the same elements of the same memory."""
    if isinstance(array, np.ndarray) and array.size:
        interface = array.__array_interface__
        return interface["data"][0], array.shape, array.strides, array.dtype
    if isinstance(array, jax.Array) and array.size and len(array.devices()) == 1:
        device = next(iter(array.devices()))
        return device, array.unsafe_buffer_pointer(), array.shape, array.dtype
    return id(array)
