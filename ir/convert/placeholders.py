"""Placeholders: how a graph passes through protobuf messages without its weights.

Converters to other Python libraries reuse `to_proto` and `from_proto`, with a `Shelf` in the place of files: each
tensor is put on the shelf, and the message holds a reference of a few bytes. So nothing is serialized, and a tensor
that comes back is the same object.
"""

from __future__ import annotations

from onnx import TensorProto

from ..errors import ModelError
from ..tensor import Tensor
from ..types import DType

__all__ = ["Shelf", "missing"]

_LOCATION = "planish:shelf"  # the "file" that references name


class Shelf:
    """Tensors by number. Its methods are an `ExternalWriter` and a `Resolver`."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._numbers: dict[Tensor, int] = {}

    def put(self, tensor: Tensor) -> int:
        """The number under which ``tensor`` is found."""
        number = self._numbers.get(tensor)
        if number is None:
            number = self._numbers[tensor] = len(self.tensors)
            self.tensors.append(tensor)
        return number

    def place(self, tensor: Tensor) -> tuple[str, int, int] | None:
        """Where ``tensor`` is, as `ExternalWriter` states it. Strings cannot be external, and stay in the message."""
        return None if tensor.dtype is DType.STRING else (_LOCATION, self.put(tensor), tensor.nbytes)

    def reference(self, tensor: Tensor, name: str) -> TensorProto:
        """A message that refers to ``tensor``."""
        proto = TensorProto(
            name=name, data_type=int(tensor.dtype), dims=tensor.shape, data_location=TensorProto.EXTERNAL
        )
        proto.external_data.add(key="location", value=_LOCATION)
        proto.external_data.add(key="offset", value=str(self.put(tensor)))
        return proto

    def find(self, location: object, number: int | None) -> Tensor | None:
        """The tensor that a reference means, or None if it is another file's."""
        return self.tensors[number] if location == _LOCATION and number is not None else None

    def resolve(self, proto: TensorProto) -> Tensor:
        """The tensor that ``proto`` refers to.

        Raises:
            ModelError: it refers to a file.
        """
        entries = {entry.key: entry.value for entry in proto.external_data}
        if entries.get("location") != _LOCATION:
            raise ModelError(f"tensor {proto.name!r} has its data in another file: load them into the model first")
        return self.tensors[int(entries["offset"])]


def missing(package: str) -> ImportError:
    """What to raise where an optional package is not installed."""
    return ImportError(f"{package} is not installed; it comes with: pip install 'planish[interop]'", name=package)
