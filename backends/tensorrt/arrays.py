"""The arrays that go into engines and come out of them: numpy's, PyTorch's, CuPy's, where they lie.

A `Kind` knows one library's arrays on one device. Where a lowered model takes other element types than the original
states, arrays are cast on their way: numbers that the narrower type lacks are refused, not changed.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...ir.errors import PlanishError
from ...ir.types import UNKNOWN, DType, TensorType, Type
from ..base import Executable

__all__ = ["NUMPY", "Kind", "Restated", "kind_of", "taken"]

_DEVICES = (2, 13)  # of DLPack: kDLCUDA, kDLCUDAManaged
_TORCH = {
    DType.FLOAT: "float32",
    DType.DOUBLE: "float64",
    DType.FLOAT16: "float16",
    DType.BFLOAT16: "bfloat16",
    DType.FLOAT8E4M3FN: "float8_e4m3fn",
    DType.FLOAT8E5M2: "float8_e5m2",
    DType.BOOL: "bool",
    **{DType[f"{sign}INT{bits}"]: f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


class Kind(ABC):
    """One library's arrays on one device.

    Attributes:
        on_device: whether they lie in the GPU's memory.
    """

    on_device: ClassVar[bool] = False

    @abstractmethod
    def dtype(self, value: Any) -> DType:
        """The element type of an array."""

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of an array."""
        return tuple(int(d) for d in value.shape)

    @abstractmethod
    def contiguous(self, value: Any) -> Any:
        """``value``, laid out row by row."""

    @abstractmethod
    def address(self, value: Any) -> int:
        """Where its elements are."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: DType) -> Any:
        """A new array."""

    @abstractmethod
    def cast(self, value: Any, dtype: DType) -> Any:
        """``value`` with other elements."""

    @abstractmethod
    def extremes(self, value: Any) -> tuple[float, float]:
        """The smallest and the largest finite element; zeros if there are none."""

    @abstractmethod
    def numpy(self, value: Any) -> np.ndarray[Any, Any]:
        """``value`` in the host's memory."""

    @abstractmethod
    def of(self, array: np.ndarray[Any, Any]) -> Any:
        """What `numpy` gives, as such an array again."""

    def stream(self) -> int:
        """The stream in whose order its arrays are used now."""
        return 0


class _Numpy(Kind):
    def dtype(self, value: Any) -> DType:
        return DType.from_numpy(value.dtype)

    def contiguous(self, value: Any) -> Any:
        return np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)

    def address(self, value: Any) -> int:
        return int(value.ctypes.data)

    def empty(self, shape: Sequence[int], dtype: DType) -> Any:
        return np.empty(shape, dtype.numpy)

    def cast(self, value: Any, dtype: DType) -> Any:
        return value.astype(dtype.numpy)

    def extremes(self, value: Any) -> tuple[float, float]:
        finite = value[np.isfinite(value)]
        return (finite.min().item(), finite.max().item()) if finite.size else (0, 0)

    def numpy(self, value: Any) -> np.ndarray[Any, Any]:
        return np.asarray(value)

    def of(self, array: np.ndarray[Any, Any]) -> Any:
        return array


class _Torch(Kind):
    def __init__(self, device: Any):
        import torch

        self.torch: Any = torch
        self.device = device

    def dtype(self, value: Any) -> DType:
        name = str(value.dtype).removeprefix("torch.")
        found = next((d for d, n in _TORCH.items() if n == name), None)
        if found is None:
            raise PlanishError(f"a tensor of {value.dtype}: TensorRT has no such type")
        return found

    def contiguous(self, value: Any) -> Any:
        return value.detach().contiguous()

    def address(self, value: Any) -> int:
        return int(value.data_ptr())

    def empty(self, shape: Sequence[int], dtype: DType) -> Any:
        return self.torch.empty(tuple(shape), dtype=self._type(dtype), device=self.device)

    def cast(self, value: Any, dtype: DType) -> Any:
        return value.to(self._type(dtype))

    def extremes(self, value: Any) -> tuple[float, float]:
        if not value.dtype.is_floating_point and not value.dtype.is_signed:
            value = value.to(self.torch.float64)  # torch compares no unsigned integers
        finite = value[self.torch.isfinite(value)]
        return (finite.min().item(), finite.max().item()) if finite.numel() else (0, 0)

    def numpy(self, value: Any) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = value.detach().cpu().numpy()
        return found

    def of(self, array: np.ndarray[Any, Any]) -> Any:
        return self.torch.from_numpy(array).to(self.device)

    def _type(self, dtype: DType) -> Any:
        found = getattr(self.torch, _TORCH.get(dtype, ""), None)
        if found is None:
            raise PlanishError(f"torch has no {dtype.text}")
        return found


class _TorchOnDevice(_Torch):
    on_device = True

    def stream(self) -> int:
        return int(self.torch.cuda.current_stream(self.device).cuda_stream)


class _Cupy(_Numpy):
    on_device = True

    def __init__(self) -> None:
        import cupy  # type: ignore[import-not-found, unused-ignore]

        self.cupy: Any = cupy

    def contiguous(self, value: Any) -> Any:
        return self.cupy.ascontiguousarray(value).reshape(value.shape)

    def address(self, value: Any) -> int:
        return int(value.data.ptr)

    def empty(self, shape: Sequence[int], dtype: DType) -> Any:
        try:
            return self.cupy.empty(tuple(shape), dtype.numpy)
        except (TypeError, ValueError) as error:
            raise PlanishError(f"cupy has no {dtype.text}") from error

    def extremes(self, value: Any) -> tuple[float, float]:
        finite = value[self.cupy.isfinite(value)]
        return (finite.min().item(), finite.max().item()) if finite.size else (0, 0)

    def numpy(self, value: Any) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self.cupy.asnumpy(value)
        return found

    def of(self, array: np.ndarray[Any, Any]) -> Any:
        return self.cupy.asarray(array)

    def stream(self) -> int:
        return int(self.cupy.cuda.get_current_stream().ptr)


NUMPY: Kind = _Numpy()


def kind_of(value: Any) -> tuple[Kind, Any]:
    """The kind of ``value``, and it as such an array: others on the GPU become PyTorch's or CuPy's, without a copy.

    Raises:
        PlanishError: it lies on the GPU, and neither library is installed.
    """
    package = type(value).__module__.partition(".")[0]
    torch = sys.modules.get("torch")  # whoever made a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        return (_TorchOnDevice if value.is_cuda else _Torch)(value.device), value
    if package == "cupy":
        return _Cupy(), value
    if _lies_on_device(value):
        return _foreign(value)
    return NUMPY, np.asarray(value)


def _lies_on_device(value: Any) -> bool:
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in _DEVICES


def _foreign(value: Any) -> tuple[Kind, Any]:
    """An array of another library on the GPU."""
    from importlib.util import find_spec

    for name in ("cupy", "torch"):
        if find_spec(name) is not None:
            library = __import__(name)
            if hasattr(value, "__dlpack__"):
                return kind_of(library.from_dlpack(value))
            return kind_of(library.asarray(value))
    raise PlanishError(f"{type(value).__name__} lies on the GPU, where only torch or cupy can take it: install one")


# --- casts at the boundary -------------------------------------------------------------------------------------------


def taken(name: str, kind: Kind, value: Any, stated: DType, wanted: DType) -> Any:
    """``value`` for an input that the model states as ``stated`` and that is taken as ``wanted``.

    Raises:
        PlanishError: it is neither, or holds numbers that ``wanted`` does not have.
    """
    found = kind.dtype(value)
    if found is wanted:
        return value
    if found is not stated:
        raise PlanishError(f"input {name!r} is {found.text}, the model states {(stated or wanted).text}")
    if not _holds(wanted, found):
        low, high = kind.extremes(value)
        for number in (low, high):
            if not _has(wanted, number):
                raise PlanishError(f"input {name!r}: TensorRT takes it as {wanted.text}, which has no {number}")
    return kind.cast(value, wanted)


def _limits(dtype: DType) -> tuple[float, float]:
    if dtype is DType.BOOL:
        return 0, 1
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        return int(info.min), int(info.max)
    return dtype.lowest, -dtype.lowest


def _holds(wanted: DType, found: DType) -> bool:
    low, high = _limits(found)
    return _limits(wanted)[0] <= low and high <= _limits(wanted)[1]


def _has(wanted: DType, number: float) -> bool:
    if wanted.is_floating:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float64(number).astype(wanted.numpy)))
    low, high = _limits(wanted)
    return low <= number <= high


class Restated(Executable):
    """An executable of a lowered model behind the interface of the original: its element types in and out.

    Args:
        inner: it.
        inputs: names and types of the original's inputs.
        outputs: types of the original's outputs.
    """

    def __init__(self, inner: Executable, inputs: Sequence[tuple[str, Type]], outputs: Sequence[Type]):
        self.inner = inner
        self.inputs = list(inputs)
        self.outputs = list(inner.outputs)
        self._types = list(outputs)
        self._wanted = {name: dtype_of(type_) for name, type_ in inner.inputs}

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order."""
        stated = dict(self.inputs)
        given = {name: self._taken(name, value, dtype_of(stated.get(name, UNKNOWN))) for name, value in inputs.items()}
        results = self.inner.run(given)
        return [_restated(result, dtype_of(type_)) for result, type_ in zip(results, self._types, strict=True)]

    def _taken(self, name: str, value: Any, stated: DType) -> Any:
        wanted = self._wanted.get(name, stated)
        if not stated or not wanted or stated is wanted:
            return value
        return taken(name, NUMPY, np.asarray(value), stated, wanted)

    def report(self) -> dict[str, Any]:
        """What the inner one reports."""
        return self.inner.report()

    def save(self, path: Any) -> None:
        """Write the lowered model."""
        self.inner.save(path)


def dtype_of(type_: Type) -> DType:
    """The element type of a tensor type; UNDEFINED for others."""
    return type_.dtype if isinstance(type_, TensorType) else DType.UNDEFINED


def _restated(value: Any, stated: DType) -> Any:
    if not stated or not isinstance(value, np.ndarray) or stated is DType.STRING or value.dtype == stated.numpy:
        return value
    return value.astype(stated.numpy)
