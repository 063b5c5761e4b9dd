"""Tensors whose elements are torch's: shared, not copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ...ir.tensor import Tensor, TensorError
from ...ir.types import DType

if TYPE_CHECKING:
    import torch

__all__ = ["TorchTensor", "storage_key"]


class TorchTensor(Tensor):
    """A torch tensor of any layout, on any device. What later changes it in torch changes it here.

    Raises:
        TypeError: no element type for its dtype.
    """

    __slots__ = ("data",)

    def __init__(self, data: torch.Tensor, name: str = ""):
        super().__init__(_dtype(data), tuple(data.shape), name)
        self.data = data.detach()

    def numpy(self) -> np.ndarray[Any, Any]:
        """A read-only view of torch's memory; a copy only from another device."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        if self.data.is_meta or isinstance(self.data, FakeTensor):
            raise TensorError(f"tensor {self.name!r} has a shape but no data (it is a meta or fake tensor)")
        data = self.data.cpu()
        array: np.ndarray[Any, Any]
        try:
            array = data.numpy()
        except TypeError:  # a dtype that numpy lacks
            bits = {1: torch.uint8, 2: torch.int16}[data.element_size()]
            array = data.view(bits).numpy().view(self.dtype.numpy)
        array.flags.writeable = False
        return array

    @property
    def is_cheap(self) -> bool:
        """Whether it is in this machine's memory already."""
        return bool(self.data.device.type == "cpu")


def _dtype(data: torch.Tensor) -> DType:
    name = str(data.dtype).removeprefix("torch.")  # numpy and ml_dtypes use the same names
    try:
        return DType.from_numpy(np.dtype(getattr(ml_dtypes, name, name)))
    except TypeError:
        raise TypeError(f"no element type for {data.dtype}") from None


def storage_key(data: torch.Tensor) -> object:
    """Equal for tensors that are the same elements of the same memory."""
    if data.is_meta or not data.numel():
        return id(data)
    return data.device, data.data_ptr(), data.dtype, tuple(data.shape), data.stride()
