"""``onnx_graphsurgeon.Graph`` and `Graph`, both ways.

Constants share their planish tensor until a script reads their ``values``: then they have a copy of their own, which
may be written to. Those not read come back as the same tensor objects. Lost on the way are what GraphSurgeon does not
keep: doc strings, metadata, and the shapes of tensors in sequences. Importing this module needs the package
``onnx_graphsurgeon``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from ..errors import ModelError, PlanishError
from ..graph import Empty, Graph
from ..schema import schema_of
from ..tensor import ArrayTensor, Tensor
from ..types import OptionalType, OtherType
from .placeholders import Shelf, missing
from .proto import SparseTensor, from_proto, to_proto
from .proto_types import tensor_from_proto, tensor_to_proto

try:
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.importers.onnx_importer import get_itemsize, get_onnx_tensor_dtype
    from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
except ImportError as error:
    raise missing("onnx_graphsurgeon") from error

__all__ = ["from_graphsurgeon", "to_graphsurgeon"]

_EMPTY = "planish:empty:"  # a string that stands for an empty list, whose type GraphSurgeon cannot tell


def to_graphsurgeon(graph: Graph) -> gs.Graph:
    """The GraphSurgeon graph of ``graph``, which shares its tensors.

    Raises:
        PlanishError: the graph holds what GraphSurgeon would drop.
    """
    _check(graph)
    shelf = Shelf()
    converted = gs.import_onnx(to_proto(graph, external=shelf))
    for constant in _constants(converted):
        values = constant._values
        if isinstance(values, LazyValues) and not isinstance(values, SparseValues):
            proto = values.tensor
            if proto.data_location == onnx.TensorProto.EXTERNAL:
                constant._values = _SharedValues(shelf.resolve(proto))
                constant.data_location = None
    return converted


def from_graphsurgeon(graph: gs.Graph) -> Graph:
    """The graph of a GraphSurgeon graph, which shares its arrays. Its nodes may be in any order.

    While it runs, placeholders stand in ``graph`` for its constants: no other thread may use it.

    Raises:
        ModelError: the graph is malformed.
    """
    shelf = Shelf()
    with _lent(graph, shelf):
        try:
            model = gs.export_onnx(graph, do_type_check=False)
        except (gs.OnnxGraphSurgeonException, TypeError, ValueError) as error:
            raise ModelError(f"GraphSurgeon cannot export it: {' '.join(str(error).split())}") from error
    for part in (model.graph, *model.functions):
        _mend(part)
    return from_proto(model, resolve=shelf.resolve)


class _SharedValues(LazyValues):  # type: ignore[misc]
    """The values of a constant that are those of a planish tensor."""

    def __init__(self, source: Tensor):
        self.source = source
        self.shape = list(source.shape)
        self.dtype = get_onnx_tensor_dtype(onnx.TensorProto(data_type=int(source.dtype)))
        self.nbytes = source.size * get_itemsize(self.dtype)

    def load(self) -> np.ndarray[Any, Any]:
        """A copy, which the script may write to."""
        return np.array(self.source.numpy())

    @property
    def tensor(self) -> onnx.TensorProto:
        """A message with the data, for GraphSurgeon's own exporter."""
        proto = onnx.TensorProto()
        tensor_to_proto(self.source, proto, self.source.name)
        return proto


class _Reference(LazyValues):  # type: ignore[misc]
    """A placeholder during export."""

    def __init__(self, proto: onnx.TensorProto):
        self.tensor = proto


def _check(graph: Graph) -> None:
    """Refuse what GraphSurgeon would drop with no more than a warning."""
    for value in graph.inputs:
        if value.default is not None:
            raise PlanishError(f"GraphSurgeon has no inputs with defaults: {value.name!r}")
    for nested in graph.walk_graphs():
        for value in (*nested.inputs, *[r for node in nested.nodes for r in node.results]):
            if isinstance(value.type, OptionalType | OtherType):
                raise PlanishError(f"GraphSurgeon cannot hold %{value.name}: {value.type}")
    for node in graph.walk():
        if node.overload:
            raise PlanishError(f"GraphSurgeon has no overloads: {node!r}")
        for name, value in node.attrs.items():
            first = value[0] if isinstance(value, tuple) and value else value
            listed = isinstance(value, tuple) and value != () and not isinstance(first, int | float | str)
            kept = isinstance(first, int | float | str | Tensor | Graph | tuple) and not isinstance(first, SparseTensor)
            if listed or not kept:
                raise PlanishError(f"GraphSurgeon cannot hold attribute {name!r} of {node!r}")


def _constants(graph: gs.Graph) -> Iterator[Any]:
    """The constants that nodes of ``graph`` use, as operands and attributes, nested graphs and functions included."""
    stack: list[Any] = [graph, *graph.functions]
    seen: set[int] = set()
    while stack:
        for node in stack.pop().nodes:
            for value in (*node.inputs, *node.attrs.values()):
                if isinstance(value, gs.Constant) and id(value) not in seen:
                    seen.add(id(value))
                    yield value
                elif isinstance(value, gs.Graph):
                    stack.append(value)


@contextmanager
def _lent(graph: gs.Graph, shelf: Shelf) -> Iterator[None]:
    """Put the constants of ``graph`` on ``shelf``, and placeholders in their places, for a while."""
    known: dict[int, Tensor] = {}
    values: list[tuple[Any, Any]] = []
    attributes: list[tuple[Any, str, Any]] = []
    constants = list(_constants(graph))
    constants += [tensor for tensor in (*graph.inputs, *graph.outputs) if isinstance(tensor, gs.Constant)]
    try:
        for constant in constants:
            source = constant._values
            ours = known.get(id(source))
            if ours is None:
                ours = _shared(constant)
            if ours is not None:
                known[id(source)] = ours
                values.append((constant, source))
                constant._values = _Reference(shelf.reference(ours, constant.name))
        for node in _nodes(graph):
            for name, value in list(node.attrs.items()):
                if isinstance(value, list | tuple) and not value:
                    attributes.append((node, name, value))
                    node.attrs[name] = f"{_EMPTY}{_list_kind(node, name, value)}"
        yield
    finally:
        for constant, source in values:
            constant._values = source
        for node, name, value in attributes:
            node.attrs[name] = value


def _shared(constant: Any) -> Tensor | None:
    """The planish tensor of a constant; None where GraphSurgeon's exporter must convert it."""
    values = constant._values
    if isinstance(values, _SharedValues):
        return values.source
    if isinstance(values, SparseValues) or constant._export_dtype is not None:
        return None
    if isinstance(values, LazyValues):
        return tensor_from_proto(values.tensor, None)
    return ArrayTensor(values, name=constant.name)


def _nodes(graph: gs.Graph) -> Iterator[Any]:
    stack: list[Any] = [graph, *graph.functions]
    while stack:
        for node in stack.pop().nodes:
            yield node
            stack.extend(value for value in node.attrs.values() if isinstance(value, gs.Graph))


def _list_kind(node: Any, name: str, value: Any) -> int:
    """The ONNX type of an empty list."""
    if isinstance(value, Empty):
        return value.kind
    schema = schema_of(f"{node.domain}.{node.op}" if node.domain else node.op)
    if schema is not None and name in schema.attributes:
        kind: Any = schema.attributes[name].type
        return int(kind)
    return int(onnx.AttributeProto.INTS)


def _mend(graph: Any) -> None:
    """Turn the strings that stand for empty lists into empty lists, and drop shapes that GraphSurgeon made up."""
    for info in (*graph.value_info, *graph.input, *graph.output) if isinstance(graph, onnx.GraphProto) else ():
        if info.type.HasField("sequence_type"):
            info.type.sequence_type.elem_type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.s.startswith(_EMPTY.encode()):
                attribute.type = int(attribute.s[len(_EMPTY) :])
                attribute.ClearField("s")
            elif attribute.HasField("g"):
                _mend(attribute.g)
