"""All other operators: onnx's own inference for one node, with the schema of the canonical operator set.

Symbols travel as ``dim_param``; small constants and known contents travel as data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..dims import Dim, Sym, fresh
from ..graph import Graph, Node, Value
from ..schema import canonical_opset, schema_of
from ..tensor import Tensor
from ..types import UNKNOWN, DType, OptionalType, OtherType, SequenceType, TensorType, Type
from .common import dtype_of
from .engine import MAX_CONTENT, IllTyped, content_of

if TYPE_CHECKING:
    import onnx

__all__ = ["from_type_proto", "infer_with_onnx", "to_type_proto"]


def infer_with_onnx(node: Node) -> tuple[Type, ...]:
    """The types that ``onnx.shape_inference.infer_node_outputs`` gives to the results of ``node``.

    Raises:
        IllTyped: onnx refuses operands whose types are known completely. Its complaints about others mix contradictions
            with missing knowledge, and the results are `UNKNOWN`.
    """
    schema = None if node.graphs or not node.results else schema_of(node.op)
    if schema is None:
        return ()
    import onnx

    symbols: dict[str, Sym] = {}
    names = [f"i{i}" if v is not None else "" for i, v in enumerate(node.operands)]
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    complete = True
    for name, value in zip(names, node.operands, strict=True):
        if value is not None:
            types[name] = to_type_proto(value.type, symbols)
            complete = complete and isinstance(value.type, TensorType) and value.type.is_static and value.dtype > 0
            known = _data(value)
            if known is not None:
                data[name] = known
    try:
        found = _ask_onnx(schema, node, names, types, data)
    except onnx.shape_inference.InferenceError as error:
        if complete:
            raise IllTyped(f"{node.op}: {_reason(error)}") from error
        return ()
    except Exception:  # noqa: BLE001 - onnx raises many kinds for what it does not know
        return ()
    results = [found.get(f"o{i}") for i in range(len(node.results))]
    return tuple([UNKNOWN if proto is None else from_type_proto(proto, symbols) for proto in results])


def _ask_onnx(
    schema: Any,
    node: Node,
    names: list[str],
    types: dict[str, onnx.TypeProto],
    data: dict[str, onnx.TensorProto],
) -> dict[str, onnx.TypeProto]:
    import onnx

    proto = onnx.NodeProto(op_type=schema.name, domain=schema.domain, input=names)
    proto.output.extend(f"o{i}" for i in range(len(node.results)))
    proto.attribute.extend(_attribute(name, value) for name, value in node.attrs.items())
    imports = [onnx.helper.make_opsetid("", canonical_opset())]
    if schema.domain:
        imports.append(onnx.helper.make_opsetid(schema.domain, schema.since_version))
    return onnx.shape_inference.infer_node_outputs(schema, proto, types, data, {}, opset_imports=imports)


def _reason(error: Exception) -> str:
    return str(error).partition("]")[2].strip() or str(error)


def _data(value: Value) -> onnx.TensorProto | None:
    """The elements of a small operand, where they are known integers or a constant."""
    import onnx.helper

    t = value.const
    if t is not None:
        return _tensor_proto(t) if t.size <= MAX_CONTENT else None
    elements = content_of(value)
    if elements is None or not isinstance(value.type, TensorType) or value.type.shape is None:
        return None
    numbers = [e for e in elements if isinstance(e, int)]
    shape = [d for d in value.type.shape if isinstance(d, int)]
    if len(numbers) != len(elements) or len(shape) != len(value.type.shape):
        return None
    return onnx.helper.make_tensor("", int(value.type.dtype), shape, numbers)


def _tensor_proto(t: Tensor) -> onnx.TensorProto | None:
    import onnx

    try:
        if t.dtype is DType.STRING:
            texts: list[Any] = [str(s) for s in t.numpy().ravel()]
            return onnx.helper.make_tensor("", int(t.dtype), t.shape, texts)
        return onnx.TensorProto(dims=t.shape, data_type=int(t.dtype), raw_data=b"".join(t.chunks()))
    except (ValueError, OSError):
        return None


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    import onnx.helper

    if isinstance(value, Tensor):
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.TENSOR, t=_tensor_proto(value))
    if isinstance(value, Graph):
        raise TypeError("nested graphs do not travel")
    kind = getattr(value, "kind", None)  # an empty list that remembers its type
    return onnx.helper.make_attribute(name, value, attr_type=kind)


# conversion of types


def to_type_proto(type_: Type, symbols: dict[str, Sym]) -> onnx.TypeProto:
    """``type_`` for onnx; ``symbols`` takes up the texts under which its symbolic sizes travel."""
    import onnx

    proto = onnx.TypeProto()
    match type_:
        case TensorType():
            proto.tensor_type.elem_type = int(type_.dtype)
            if type_.shape is not None:
                proto.tensor_type.shape.SetInParent()
                for d in type_.shape:
                    _add_dim(proto.tensor_type.shape, d, symbols)
        case OptionalType():
            proto.optional_type.elem_type.CopyFrom(to_type_proto(type_.element, symbols))
        case SequenceType():
            proto.sequence_type.elem_type.CopyFrom(to_type_proto(type_.element, symbols))
        case OtherType():
            proto.ParseFromString(type_.proto)
    return proto


def _add_dim(shape: onnx.TensorShapeProto, d: Dim, symbols: dict[str, Sym]) -> None:
    dim = shape.dim.add()
    if isinstance(d, Sym):
        text = str(d)
        symbols[text] = d
        dim.dim_param = text
    else:
        dim.dim_value = d


def from_type_proto(proto: onnx.TypeProto, symbols: dict[str, Sym]) -> Type:
    """The type that onnx states; texts that are not among ``symbols`` are its own and mean nothing outside."""
    match proto.WhichOneof("value"):
        case "tensor_type":
            tensor = proto.tensor_type
            dtype = dtype_of(tensor.elem_type)
            if not tensor.HasField("shape"):
                return TensorType(dtype, None)
            return TensorType(dtype, tuple([_dim(d, symbols) for d in tensor.shape.dim]))
        case "sequence_type":
            return SequenceType(from_type_proto(proto.sequence_type.elem_type, symbols))
        case "optional_type":
            return OptionalType(from_type_proto(proto.optional_type.elem_type, symbols))
        case None:
            return UNKNOWN
    return OtherType(proto.SerializeToString())


def _dim(proto: onnx.TensorShapeProto.Dimension, symbols: dict[str, Sym]) -> Dim:
    if proto.HasField("dim_value"):
        return int(proto.dim_value) if proto.dim_value >= 0 else fresh()
    return symbols.get(proto.dim_param) or fresh()
