"""``onnx_ir.Model`` and `Graph`, both ways.

Weights are shared: an ``onnx_ir`` tensor made here reads its planish tensor, and the other way round. Going there and
back gives the same tensor objects. Importing this module needs the package ``onnx_ir``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph import Graph
from ..tensor import ArrayTensor, Tensor, tensor
from ..types import DType
from .placeholders import Shelf, missing
from .proto import from_proto, to_proto

try:
    import onnx_ir
except ImportError as error:
    raise missing("onnx_ir") from error

__all__ = ["from_onnx_ir", "to_onnx_ir"]


def to_onnx_ir(graph: Graph) -> onnx_ir.Model:
    """The ``onnx_ir`` model of ``graph``, whose constants become initializers that share its tensors.

    Raises:
        PlanishError: the graph has inputs or outputs whose names cannot be kept.
    """
    shelf = Shelf()
    model = onnx_ir.serde.deserialize_model(to_proto(graph, external=shelf))
    for value in model.graph.initializers.values():
        reference = value.const_value
        if isinstance(reference, onnx_ir.ExternalTensor):
            found = shelf.find(reference.location, reference.offset)
            if found is not None:
                value.const_value = _Theirs(found, value.name)
    return model


def from_onnx_ir(model: onnx_ir.Model) -> Graph:
    """The graph of an ``onnx_ir`` model, which shares the model's tensors and does not read them.

    While it runs, placeholders stand in the model for its tensors: no other thread may use the model.

    Raises:
        ModelError: the model is malformed.
    """
    shelf = Shelf()
    with _lent(model, shelf):
        try:
            proto = onnx_ir.serde.serialize_model(model)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = error.__cause__ or error
            raise ModelError(f"onnx_ir cannot serialize it: {' '.join(str(reason).split())}") from error
    return from_proto(proto, resolve=shelf.resolve)


class _Theirs(onnx_ir.LazyTensor):
    """A planish tensor as one of ``onnx_ir``."""

    __slots__ = ("source",)

    def __init__(self, source: Tensor, name: str | None):
        self.source = source
        dtype = onnx_ir.DataType(int(source.dtype))
        super().__init__(self._load, dtype, onnx_ir.Shape(source.shape), name=name)

    def _load(self) -> onnx_ir.TensorProtocol:
        return onnx_ir.Tensor(self.source.numpy(), self.dtype, shape=self.shape, name=self.name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.source.numpy(), dtype, copy=copy)

    def tobytes(self) -> bytes:
        """The raw data."""
        return b"".join(self.source.chunks())

    def tofile(self, file: Any) -> None:
        """Write the raw data, a chunk at a time."""
        for chunk in self.source.chunks():
            file.write(chunk)


class _Ours(Tensor):
    """A tensor of ``onnx_ir`` as one of planish, read when asked for."""

    __slots__ = ("source",)

    def __init__(self, source: onnx_ir.TensorProtocol, dtype: DType, shape: tuple[int, ...]):
        super().__init__(dtype, shape, source.name or "")
        self.source = source

    def numpy(self) -> np.ndarray[Any, Any]:
        array = self.source.numpy().reshape(self.shape).view()
        array.flags.writeable = False
        return tensor(array, self.dtype).numpy()

    @property
    def is_cheap(self) -> bool:
        return self.nbytes <= 1 << 16


def _shared(source: onnx_ir.TensorProtocol) -> Tensor:
    """The planish tensor for one of ``onnx_ir``."""
    if isinstance(source, _Theirs):
        return source.source
    dtype, shape = DType(int(source.dtype)), tuple([int(str(d)) for d in source.shape])
    if isinstance(source.raw, np.ndarray) and source.raw.dtype == dtype.numpy and source.raw.shape == shape:
        return ArrayTensor(source.raw, dtype, source.name or "")
    return _Ours(source, dtype, shape)


@contextmanager
def _lent(model: onnx_ir.Model, shelf: Shelf) -> Iterator[None]:
    """Put the tensors of ``model`` on ``shelf``, and placeholders in their places, for a while."""
    known: dict[int, Tensor] = {}
    undo: list[tuple[Any, Any]] = []

    def placeholder(source: onnx_ir.TensorProtocol, name: str) -> onnx_ir.ExternalTensor:
        ours = known.get(id(source))
        if ours is None:
            ours = known[id(source)] = _shared(source)
        place = shelf.place(ours)
        assert place is not None
        shape = onnx_ir.Shape(ours.shape)
        return onnx_ir.ExternalTensor(place[0], place[1], place[2], source.dtype, shape=shape, name=name)

    try:
        for graph in _graphs(model):
            for value in getattr(graph, "initializers", {}).values():
                source = value.const_value
                if source is not None and source.dtype != onnx_ir.DataType.STRING:
                    undo.append((value, source))
                    value.const_value = placeholder(source, value.name or "")
            for node in graph:
                for name, attr in node.attributes.items():
                    if attr.is_ref() or attr.type != onnx_ir.AttributeType.TENSOR:
                        continue
                    source = attr.as_tensor()
                    if source.dtype != onnx_ir.DataType.STRING:
                        undo.append(((node, name), attr))
                        node.attributes[name] = onnx_ir.AttrTensor(name, placeholder(source, source.name or ""))
        yield
    finally:
        for place, original in reversed(undo):
            if isinstance(place, tuple):
                place[0].attributes[place[1]] = original
            else:
                place.const_value = original


def _graphs(model: onnx_ir.Model) -> Iterator[Any]:
    """All graphs and functions of ``model``, nested ones included."""
    stack: list[Any] = [model.graph, *model.functions.values()]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph:
            for attr in node.attributes.values():
                if attr.is_ref():
                    continue
                if attr.type == onnx_ir.AttributeType.GRAPH:
                    stack.append(attr.as_graph())
                elif attr.type == onnx_ir.AttributeType.GRAPHS:
                    stack.extend(attr.as_graphs())
