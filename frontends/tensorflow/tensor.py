"""Weights: TensorFlow's arrays as tensors, shared and not copied, and one tensor for what is one variable."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ir.tensor import ArrayTensor, Tensor
from ..emit import Refused
from ..names import Names

__all__ = ["StoredVariable", "Weights"]


@dataclass(frozen=True)
class StoredVariable:
    """A variable of a saved model: what stands for its handle.

    Attributes:
        tensor: its values.
    """

    tensor: Tensor


class Weights:
    """Arrays and variables as constants: the same variable gives the same constant.

    Args:
        names: of variables, by the identity of their handles.

    Attributes:
        changed: the identities of the handles of variables that the model changes.
    """

    def __init__(self, names: Mapping[int, str]):
        self.changed: Collection[int] = ()
        self._names = names
        self._values: dict[int, tuple[Value, Any]] = {}
        self._unique = Names()

    def variable(self, handle: Any, dtype: Any, name: str) -> Value:
        """The constant for what a variable holds now.

        Args:
            handle: the variable's resource, an eager tensor, or what stands for it.
            dtype: its ``tf.DType``.
            name: how it is called, if it is new.

        Raises:
            Refused: the model changes it.
        """
        if id(handle) in self.changed:
            raise Refused(
                f"the model changes the variable {self._names.get(id(handle), name)!r}, and a graph has no state: "
                "make it an input and an output"
            )
        known = self._values.get(id(handle))
        if known is None:
            value = self._read(handle, dtype, name)
            known = self._values[id(handle)] = (value, handle)  # the handle: it keeps its id
        return known[0]

    def _read(self, handle: Any, dtype: Any, name: str) -> Value:
        if isinstance(handle, StoredVariable):
            tensor = handle.tensor
            tensor.name = self._unique.unused(tensor.name)
            return Value(tensor.type, tensor.name, const=tensor)
        import tensorflow as tf

        array = np.asarray(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))
        return self.array(array, self._names.get(id(handle), name))

    def array(self, array: np.ndarray[Any, Any], name: str = "") -> Value:
        """A constant for an array, which is shared."""
        name = self._unique.unused(name or "constant")
        array = array.view()
        array.flags.writeable = False
        tensor = ArrayTensor(array, name=name)
        return Value(tensor.type, name, const=tensor)
