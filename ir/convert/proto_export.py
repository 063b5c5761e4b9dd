"""`Graph` -> ``onnx.ModelProto``.

All names of a model are distinct, nested graphs included, so nothing shadows anything; inputs and outputs keep theirs.
Every tensor becomes one initializer of the root graph, however many constants share it. The same graph gives the same
bytes.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from ..errors import PlanishError
from ..graph import Empty, Graph, GraphOutput, Node, Value
from ..opsets import least_ir_version
from ..origin import RULES_KEY
from ..schema import canonical_opset, schema_of
from ..tensor import Tensor
from ..types import UNKNOWN, OtherType, SequenceType, TensorType
from .proto_types import PRIVATE, ExternalWriter, SparseTensor, bytes_of, set_denotation, tensor_to_proto, type_to_proto

__all__ = ["to_proto"]

_MIN_IR_VERSION = 4  # below, every initializer would have to be an input too


def to_proto(
    graph: Graph, *, opset: int | None = None, ir_version: int | None = None, external: ExternalWriter | None = None
) -> ModelProto:
    """The model of ``graph``, which stays as it is.

    Args:
        graph: a root graph.
        opset: the version of the standard operators to state, instead of the graph's; nothing is converted.
        ir_version: the IR version to state, instead of the least that fits the operators and the one imported.
        external: says which tensors lie in other files; all are written into the model otherwise.

    Raises:
        PlanishError: the graph has inputs or outputs whose names cannot be kept.
        TensorError: the data of a tensor cannot be had.
    """
    return _Exporter(graph, external).run(opset, ir_version)


class _Names:
    """Distinct names, as close to the wished ones as possible."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.last: dict[str, int] = {}

    def take(self, hint: str) -> str:
        """``hint``, or with a number behind it where it is taken."""
        name, used = hint, self.used
        if name in used:
            n = self.last.get(hint, 0)
            while name in used:
                n += 1
                name = f"{hint}_{n}"
            self.last[hint] = n
        used.add(name)
        return name


class _Exporter:
    """One conversion of ``graph``."""

    def __init__(self, graph: Graph, external: ExternalWriter | None):
        self.root = graph
        self.external = external
        self.values = _Names()
        self.node_names = _Names()
        self.names: dict[Value, str] = {}
        self.tensors: dict[Tensor, tuple[str, Value | None]] = {}  # the initializers, in the order of first use
        self.domains: set[str] = set()

    def run(self, opset: int | None, ir_version: int | None) -> ModelProto:
        """The whole model."""
        root = self.root
        model = ModelProto()
        info = root.info
        self.graph(root, model.graph, self.interface(root))
        self.initializers(model.graph)
        opsets = dict(root.opsets)
        if opset is not None:
            opsets[""] = opset
        for domain in sorted(self.domains - set(opsets)):
            opsets[domain] = 1 if domain else canonical_opset()
        for domain, version in opsets.items():
            model.opset_import.add(domain=domain, version=version)
        model.ir_version = ir_version or max(info.get("ir_version", 0), _least_ir_version(model))
        for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            if field in info:
                setattr(model, field, info[field])
        _add_metadata(model, info.get("metadata_props"))
        for field in ("training_info", "configuration", "functions"):
            for entry in info.get(field, ()):
                getattr(model, field).add().ParseFromString(entry)
        for entry in info.get("quantization_annotation", ()):
            annotation = onnx.TensorAnnotation.FromString(entry)
            if annotation.tensor_name in self.values.used:
                model.graph.quantization_annotation.append(annotation)
        return model

    def interface(self, graph: Graph) -> list[str]:
        """Name the inputs of the root as they are, and return the names of its outputs."""
        used = self.values.used
        for value in graph.inputs:
            if value.name in used:
                raise PlanishError(f"two inputs are called {value.name!r}")
            self.names[value] = self.values.take(value.name or "input")
        outputs: list[str] = []
        given: dict[str, Value] = {}
        for info, value in zip(graph.output_info, graph.outputs, strict=True):
            name = info.name or self.values.take(value.name or "output")
            passed = value.graph is graph and value.name == name  # an input that is an output, too
            if info.name in used and given.get(name, value if passed else None) is not value:
                raise PlanishError(f"output {name!r} has the name of an input or another output")
            used.add(name)
            given[name] = value
            outputs.append(name)
        return outputs

    def graph(self, graph: Graph, proto: GraphProto, results: list[str] | None = None) -> None:
        """Write ``graph`` into ``proto``, but for the initializers; ``results`` are the names of the root's outputs."""
        proto.name = graph.name or "graph"
        if graph.doc:
            proto.doc_string = graph.doc
        _add_metadata(proto, graph.metadata)
        names = self.names
        external = None if results is None else self.external
        if results is None:
            for value in graph.inputs:
                names[value] = self.values.take(value.name or "input")
            results = [self.values.take(info.name or "output") for info in graph.output_info]
        self.name_results(graph, results)
        for value in graph.inputs:
            _write_info(proto.input.add(), names[value], value.type, value.metadata)
            if value.default is not None:
                tensor_to_proto(value.default, proto.initializer.add(), names[value], external)
        for node in graph.nodes:
            self.node(node, proto.node.add())
            for value in node.results:
                if (value.metadata or (node.domain and value.type is not UNKNOWN)) and names[value]:
                    self.result_info(value, proto)
        copied: set[str] = set()
        for info, value, name in zip(graph.output_info, graph.outputs, results, strict=True):
            source = self.name(value)
            if name != source and name not in copied:
                copied.add(name)
                label = self.node_names.take(f"{name}_identity")
                proto.node.add(op_type="Identity", name=label, input=[source], output=[name])
                self.domains.add("")
            self.output_info(info, value, name, proto.output.add())

    def name_results(self, graph: Graph, outputs: list[str]) -> None:
        """Name the results of all nodes of ``graph``; ``outputs`` are the names of what it returns."""
        names = self.names
        for value, name in zip(graph.outputs, outputs, strict=True):
            if value.producer is not None and value.producer.graph is graph and value not in names:
                names[value] = name  # all other outputs will be an Identity
        for node in graph.nodes:
            for value in node.results:
                if value not in names:
                    left_out = not value.name and _left_out(node, value)
                    names[value] = "" if left_out else self.values.take(value.name or f"{node.op_type}_out")

    def name(self, value: Value) -> str:
        """The name of a value in use."""
        found = self.names.get(value)
        if found is not None:
            return found
        t = value.const
        if t is None:
            raise PlanishError(f"{value!r} is used, but defined nowhere in the graph")
        known = self.tensors.get(t)
        name = known[0] if known is not None else self.values.take(value.name or t.name or "constant")
        if known is None:
            self.tensors[t] = name, value
        self.names[value] = name
        return name

    # nodes

    def node(self, node: Node, proto: NodeProto) -> None:
        """Write ``node`` into ``proto``."""
        domain, _, op = node.op.rpartition(".")
        if domain:
            proto.domain = domain
        self.domains.add(domain)
        proto.op_type = op
        proto.name = self.node_names.take(node.name or op)
        names = self.names
        inputs = []
        for value in node.operands:
            name = "" if value is None else names.get(value)
            inputs.append(self.name(value) if name is None and value is not None else name)
        proto.input.extend(inputs)
        outputs = [names[value] for value in node.results]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto.output.extend(outputs)
        for key, value in node.attrs.items():
            self.attribute(key, value, proto.attribute.add())
        if node.doc:
            proto.doc_string = node.doc
        if node.overload:
            proto.overload = node.overload
        if node.metadata or node.rules:
            self.node_metadata(node, proto)

    def node_metadata(self, node: Node, proto: NodeProto) -> None:
        """Write the metadata of ``node``, and the rules that made it."""
        metadata = dict(node.metadata or {})
        devices = metadata.pop(PRIVATE + "devices", "")
        if devices:
            proto.device_configurations.extend(NodeProto.FromString(bytes.fromhex(devices)).device_configurations)
        if node.rules:
            metadata[RULES_KEY] = ",".join([r for r in (metadata.get(RULES_KEY, ""),) if r] + list(node.rules))
        _add_metadata(proto, metadata)

    def attribute(self, name: str, value: Any, proto: AttributeProto) -> None:
        """Write one attribute."""
        proto.name = name
        kind = _kind(value)
        proto.type = kind  # type: ignore[assignment]
        match kind:
            case AttributeProto.INT:
                proto.i = int(value)
            case AttributeProto.FLOAT:
                proto.f = value
            case AttributeProto.STRING:
                proto.s = bytes_of(value)
            case AttributeProto.INTS:
                proto.ints.extend(value)
            case AttributeProto.FLOATS:
                proto.floats.extend(value)
            case AttributeProto.STRINGS:
                proto.strings.extend(bytes_of(s) for s in value)
            case _:
                self.message_attribute(kind, value, proto)

    def message_attribute(self, kind: int, value: Any, proto: AttributeProto) -> None:
        """Write an attribute that is a tensor, a graph, a type, or a list of them."""
        target = getattr(proto, _FIELDS[kind])
        for entry in value if isinstance(value, tuple) else (value,):
            message = target.add() if isinstance(value, tuple) else target
            if isinstance(entry, Tensor):
                tensor_to_proto(entry, message, entry.name)
            elif isinstance(entry, Graph):
                self.graph(entry, message)
            elif isinstance(entry, SparseTensor):
                message.ParseFromString(entry)
            else:
                message.SetInParent()
                type_to_proto(entry, message)

    # interface

    def result_info(self, value: Value, proto: GraphProto) -> None:
        """Write what inference alone could not tell about a result."""
        home = value.producer.graph if value.producer is not None else None
        if home is not None and home.ret not in value.users:  # outputs are described as such
            _write_info(proto.value_info.add(), self.names[value], value.type, value.metadata)

    def output_info(self, info: GraphOutput, value: Value, name: str, proto: ValueInfoProto) -> None:
        """Write a graph output."""
        metadata = dict(info.metadata or {})
        if info.doc:
            metadata[PRIVATE + "doc"] = info.doc
        _write_info(proto, name, value.type if info.type is UNKNOWN else info.type, metadata)

    def initializers(self, proto: GraphProto) -> None:
        """Write the tensors in use, then those that only annotations or training may name."""
        for t, (name, value) in self.tensors.items():
            entry = proto.initializer.add()
            tensor_to_proto(t, entry, name, self.external)
            metadata = dict((value.metadata if value is not None else None) or {})
            if doc := metadata.pop(PRIVATE + "doc", ""):
                entry.doc_string = doc
            _add_metadata(entry, metadata)
        for name, t in self.root.info.get("initializers", {}).items():
            if name not in self.values.used:
                self.values.used.add(name)
                tensor_to_proto(t, proto.initializer.add(), name, self.external)


def _write_info(proto: ValueInfoProto, name: str, type_: Any, metadata: dict[str, str] | None) -> None:
    proto.name = name
    if type_ is not UNKNOWN:
        type_to_proto(type_, proto.type)
    if metadata:
        metadata = dict(metadata)
        if doc := metadata.pop(PRIVATE + "doc", ""):
            proto.doc_string = doc
        if denotation := metadata.pop(PRIVATE + "denotation", ""):
            set_denotation(denotation, proto.type)
        _add_metadata(proto, metadata)


def _add_metadata(proto: Any, metadata: dict[str, str] | None) -> None:
    if metadata:
        add = proto.metadata_props.add
        for key, value in metadata.items():
            add(key=key, value=value)


def _left_out(node: Node, value: Value) -> bool:
    """Whether an unnamed result is one that the node need not give."""
    if value.is_used or (len(node.results) == 1 and not node.domain):
        return False
    schema = schema_of(node.op)
    if schema is None:
        return True
    formal = schema.outputs[min(value.index, len(schema.outputs) - 1)]
    return bool(formal.option == onnx.defs.OpSchema.FormalParameterOption.Optional)


_KINDS: tuple[tuple[type | tuple[type, ...], int], ...] = (  # tried in this order: SparseTensor is bytes
    (int, AttributeProto.INT),
    (float, AttributeProto.FLOAT),
    (SparseTensor, AttributeProto.SPARSE_TENSOR),
    ((str, bytes), AttributeProto.STRING),
    (Tensor, AttributeProto.TENSOR),
    (Graph, AttributeProto.GRAPH),
    ((TensorType, SequenceType, OtherType), AttributeProto.TYPE_PROTO),
)
_LISTS: dict[int, int] = {
    AttributeProto.INT: AttributeProto.INTS,
    AttributeProto.FLOAT: AttributeProto.FLOATS,
    AttributeProto.STRING: AttributeProto.STRINGS,
    AttributeProto.TENSOR: AttributeProto.TENSORS,
    AttributeProto.GRAPH: AttributeProto.GRAPHS,
    AttributeProto.TYPE_PROTO: AttributeProto.TYPE_PROTOS,
    AttributeProto.SPARSE_TENSOR: AttributeProto.SPARSE_TENSORS,
}
_FIELDS: dict[int, str] = {  # of AttributeProto, for the kinds that are messages
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.TYPE_PROTOS: "type_protos",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
}


def _kind(value: Any) -> int:
    """The ONNX type of an attribute value."""
    if isinstance(value, tuple):
        if not value:
            return value.kind if isinstance(value, Empty) else AttributeProto.INTS
        first = AttributeProto.FLOAT if any(isinstance(v, float) for v in value) else _kind(value[0])
        return _LISTS[first]
    for types, kind in _KINDS:
        if isinstance(value, types):
            return kind
    raise PlanishError(f"an attribute cannot hold {type(value).__name__}")


def _least_ir_version(model: ModelProto) -> int:
    """The IR version that goes with the operators in use."""
    return max(_MIN_IR_VERSION, least_ir_version({o.domain: o.version for o in model.opset_import}))
