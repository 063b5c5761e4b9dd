"""``onnx.ModelProto`` -> `Graph`.

The nodes are read in the order of the file; only where that is not a topological one, everything is read again with
each graph sorted first. Calls of the model's own functions are replaced by the functions' bodies on the way. Whatever
is wrong with a model is a `ModelError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)

from ..edit import insert
from ..errors import ModelError
from ..graph import Empty, Graph, GraphOutput, Node, Value, constant
from ..infer import infer
from ..tensor import Tensor, TensorError, tensor
from ..types import DType, TensorType
from .proto_check import Signature, kind_name, prose, shown, signature, text
from .proto_order import Missing, sorted_nodes
from .proto_types import (
    PRIVATE,
    Resolver,
    SparseTensor,
    denotation_of,
    dtype_of,
    metadata_of,
    static_shape,
    tensor_from_proto,
    text_of,
    type_from_proto,
)

__all__ = ["from_proto"]

MAX_DEPTH = 64  # of nested graphs and function calls; protobuf's own limit leaves room for 32 nested graphs in a file
MAX_INLINED = 1_000_000  # nodes that function calls may expand to

FunctionKey = tuple[str, str, str]  # domain, name, overload
Upgrade = Callable[[Graph], None]


def from_proto(
    model: ModelProto,
    *,
    resolve: Resolver | None = None,
    infer: bool = True,
    upgrade: Upgrade | None = None,
    opaque_functions: bool = False,
) -> Graph:
    """The graph of ``model``, which is neither changed nor kept.

    What a graph has no place for is kept in ``graph.info``: ``ir_version``, ``producer_name``, ``producer_version``,
    ``domain``, ``model_version``, ``doc_string``, ``metadata_props`` (a dictionary), and, as serialized messages,
    ``training_info``, ``configuration``, ``functions`` (the opaque ones) and ``quantization_annotation``. Initializers
    that nothing uses are dropped, unless there are training or annotations that could name them: then they are in
    ``initializers``, by name.

    Args:
        model: the model.
        resolve: finds the tensors whose data are not in the model.
        infer: type all nodes, in order.
        upgrade: called with the graph before its types are inferred.
        opaque_functions: keep calls of the model's functions as nodes instead of inlining them.

    Raises:
        ModelError: the model is malformed.
    """
    try:
        try:
            graph = _Importer(model, resolve, opaque_functions, sort=False).run()
        except Missing:  # used before its definition, or never defined
            graph = _Importer(model, resolve, opaque_functions, sort=True).run()
        if upgrade is not None:
            upgrade(graph)
        if infer:
            _infer(graph, model.graph)
    except Missing as error:
        raise ModelError(f"{error}, which nothing defines") from None
    except RecursionError:
        raise ModelError("it is nested too deeply") from None
    except TensorError as error:
        raise ModelError(str(error)) from None
    return graph


def _infer(graph: Graph, proto: GraphProto) -> None:
    """Type the nodes; where inference has nothing to say, believe what the model states."""
    stated: dict[str, ValueInfoProto] | None = None
    for node in graph.nodes:
        infer(node, strict=False)
        for result in node.results:
            type_ = result.type
            if isinstance(type_, TensorType) and (type_.shape is None or not type_.dtype) and result.name:
                if stated is None:
                    stated = {v.name: v for v in (*proto.value_info, *proto.output)}
                if result.name in stated:
                    _state(result, stated[result.name])


def _state(value: Value, info: ValueInfoProto) -> None:
    from ..types import compatible, merge

    type_ = type_from_proto(info.type)
    if compatible(value.type, type_):
        value.type = merge(value.type, type_)


class _Scope:
    """The values by name that nodes can use: their own graph's, then those of the graphs around it.

    An argument that the call of a function leaves out is None.

    Attributes:
        names: the values of this graph.
        outer: the scope around it.
        attributes: within the body of a function, those of the call, each with the scope in which it stands.
        prefix: what the names of values get in front, within the body of a function.
        stated: what the model says of values of this graph, once somebody has asked.
    """

    __slots__ = ("attributes", "names", "outer", "prefix", "stated")

    def __init__(self, outer: _Scope | None = None):
        self.outer = outer
        self.names: dict[str, Value | None] = {}
        self.attributes: dict[str, tuple[AttributeProto, _Scope]] | None = None if outer is None else outer.attributes
        self.prefix: str = "" if outer is None else outer.prefix
        self.stated: dict[str, ValueInfoProto] | None = None

    def find(self, name: str) -> Value | None:
        """The value called ``name``; None for "" and for arguments left out.

        Raises:
            Missing: there is none yet.
        """
        if not name:
            return None
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        raise Missing(name)

    def define(self, name: str, value: Value | None) -> None:
        """Call ``value`` so.

        Raises:
            ModelError: the name is taken in this graph.
        """
        if name in self.names:
            raise ModelError(f"two values are called {shown(name)}")
        self.names[name] = value


class _Importer:
    """One reading of a model.

    Args:
        model: the model.
        resolve: finds tensors outside.
        opaque_functions: whether to keep function calls.
        sort: sort the nodes of every graph first.
    """

    def __init__(self, model: ModelProto, resolve: Resolver | None, opaque_functions: bool, *, sort: bool):
        self.model = model
        self.resolve = resolve
        self.sort = sort
        self.opsets = _opsets(model.opset_import)
        self.functions: dict[FunctionKey, FunctionProto] = {}
        self.sizes: dict[FunctionKey, int] = {}
        self.calling = 0  # how many functions deep we are
        self.depth = 0  # of graphs and calls
        self.inlined = 0
        if len(model.functions) and not opaque_functions:
            self._take_functions(model)

    def _take_functions(self, model: ModelProto) -> None:
        for function in model.functions:
            key = "" if function.domain == "ai.onnx" else function.domain, function.name, function.overload
            if key in self.functions:
                raise ModelError(f"function {shown(function.name)} is defined twice")
            self.functions[key] = function

    def run(self) -> Graph:
        """The graph of the model."""
        model = self.model
        version = model.ir_version
        if not model.HasField("graph"):
            raise ModelError("it holds no graph")
        if not 1 <= version <= onnx.IR_VERSION:
            raise ModelError(f"IR version {version}: the installed onnx reads 1 to {onnx.IR_VERSION}")
        graph = self.graph(model.graph, None)
        graph.opsets = self.opsets
        info = graph.info
        info["ir_version"] = version
        for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            if model.HasField(field):
                value = getattr(model, field)
                info[field] = prose(value) if isinstance(value, bytes) else value
        info["metadata_props"] = metadata_of(model.metadata_props)
        for field in ("training_info", "configuration"):
            if entries := getattr(model, field):
                info[field] = tuple(entry.SerializeToString(deterministic=True) for entry in entries)
        if not self.functions and len(model.functions):
            info["functions"] = tuple(f.SerializeToString(deterministic=True) for f in model.functions)
        if model.training_info or model.graph.quantization_annotation:
            self._keep_unused(graph)
        return graph

    def _keep_unused(self, graph: Graph) -> None:
        proto = self.model.graph
        if proto.quantization_annotation:
            graph.info["quantization_annotation"] = tuple(
                a.SerializeToString(deterministic=True) for a in proto.quantization_annotation
            )
        used = {v.name for v in graph.constants()} | {v.name for v in graph.inputs}
        unused = {t.name: tensor_from_proto(t, self.resolve) for t in proto.initializer if t.name not in used}
        if unused:
            graph.info["initializers"] = unused

    # graphs

    def graph(self, proto: GraphProto, outer: _Scope | None) -> Graph:
        """A graph, with the nested ones in it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ModelError(f"graphs nested deeper than {MAX_DEPTH}")
        scope = _Scope(outer)
        graph = Graph(text(proto.name))
        graph.doc = prose(proto.doc_string)
        if proto.metadata_props:
            graph.metadata = metadata_of(proto.metadata_props)
        defaults = self.initializers(proto)
        self.inputs(proto.input, graph, scope, defaults)
        for name, value in defaults.items():
            scope.define(name, value)
        for sparse in proto.sparse_initializer:
            self.sparse_initializer(sparse, graph, scope)
        stated = [v for v in proto.value_info if v.metadata_props or v.doc_string]
        self.nodes(self.ordered(proto.node), graph, scope, proto)
        self.outputs(proto.output, graph, scope)
        for info in stated:
            known = scope.names.get(info.name)
            if known is not None:
                known.metadata = {**(known.metadata or {}), **_metadata(info)}
        self.depth -= 1
        return graph

    def ordered(self, nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
        """The nodes, in topological order if asked for."""
        return sorted_nodes(nodes) if self.sort else nodes

    def initializers(self, proto: GraphProto) -> dict[str, Value]:
        """The initializers of a graph by name."""
        found: dict[str, Value] = {}
        for entry in proto.initializer:
            t = tensor_from_proto(entry, self.resolve)
            name = t.name = text(entry.name)
            if name in found or not name:
                raise ModelError(f"two initializers are called {shown(name)}" if name else "an initializer has no name")
            found[name] = value = Value(t.type, name, const=t)
            if entry.metadata_props or entry.doc_string:
                value.metadata = _metadata(entry)
        return found

    def inputs(self, protos: Iterable[ValueInfoProto], graph: Graph, scope: _Scope, defaults: dict[str, Value]) -> None:
        """The inputs; an initializer of the same name is taken out of ``defaults`` and becomes the default.

        Before IR version 4 every initializer had to be listed among the inputs, which made none of them one.
        """
        constants = self.model.ir_version < 4
        for info in protos:
            name = text(info.name)
            if not name:
                raise ModelError("a graph input has no name")
            if name in defaults and constants:
                continue
            value = graph.add_input(type_from_proto(info.type), name)
            if name in defaults:
                value.default = defaults.pop(name).const
            value.metadata = _metadata(info) or None
            scope.define(name, value)

    def outputs(self, protos: Iterable[ValueInfoProto], graph: Graph, scope: _Scope) -> None:
        """The outputs and their declared types; a value may be several of them."""
        values: list[Value] = []
        declared: list[GraphOutput] = []
        for info in protos:
            name = text(info.name)
            if not name:
                raise ModelError("a graph output has no name")
            try:
                value = scope.find(name)
            except Missing:
                raise ModelError(f"graph output {shown(name)} is not defined") from None
            if value is None:
                raise ModelError(f"graph output {shown(name)} is an argument that the call leaves out")
            values.append(value)
            metadata = _metadata(info)
            doc = metadata.pop(PRIVATE + "doc", "")
            declared.append(GraphOutput(name, type_from_proto(info.type), doc, metadata or None))
        graph.set_outputs(values, declared)

    def sparse_initializer(self, proto: SparseTensorProto, graph: Graph, scope: _Scope) -> None:
        """A sparse initializer becomes a Constant node, since tensors are dense."""
        name = text(proto.values.name)
        node = Node("Constant", (), {"sparse_value": self.sparse(proto)}, (_dense_type(proto),))
        insert(node, graph.ret)
        node.result.name = name
        scope.define(name, node.result)

    def sparse(self, proto: SparseTensorProto) -> SparseTensor:
        """A sparse tensor, with its data inside."""
        copy = SparseTensorProto()
        copy.CopyFrom(proto)
        for part in (copy.values, copy.indices):
            t = tensor_from_proto(part, self.resolve)
            if part.data_location == TensorProto.EXTERNAL:
                part.ClearField("data_location")
                part.ClearField("external_data")
                part.raw_data = b"".join(t.chunks())
        return SparseTensor(copy.SerializeToString(deterministic=True))

    # nodes

    def nodes(self, protos: Iterable[NodeProto], graph: Graph, scope: _Scope, home: GraphProto | None) -> None:
        """Append nodes to ``graph``; ``home`` is what states the types of their results."""
        for proto in protos:
            try:
                self.node(proto, graph, scope, home)
            except ModelError as error:
                raise ModelError(f"{_label(proto)}: {error}") from None

    def node(self, proto: NodeProto, graph: Graph, scope: _Scope, home: GraphProto | None) -> None:
        """Append a node to ``graph``, or the body of the function that it calls; a Constant becomes a value only."""
        op, domain, label, doc = proto.op_type, proto.domain, proto.name, proto.doc_string
        inputs, outputs = list(proto.input), list(proto.output)
        try:
            "".join((op, domain, label, doc, *inputs, *outputs))
        except TypeError:
            inputs, outputs = list(map(text, inputs)), list(map(text, outputs))
            op, domain, label, doc = text(op), text(domain), prose(label), prose(doc)
        if domain == "ai.onnx":
            domain = ""
        names = scope.names
        operands: list[Value | None] = []
        for name in inputs:
            value = names.get(name)
            operands.append(scope.find(name) if value is None else value)
        if self.functions and (key := _function_key(proto)) in self.functions:
            self.call(proto, key, operands, graph, scope)
            return
        form = self.signature(op, domain)
        attrs = self.attributes(proto.attribute, scope, form) if proto.attribute else {}
        while operands and operands[-1] is None:
            operands.pop()
        while len(outputs) > 1 and not outputs[-1]:
            outputs.pop()
        if form is not None:
            form.check(operands, attrs, len(outputs))
        prefix = scope.prefix
        if op == "Constant" and not domain and not isinstance(attrs.get("sparse_value"), SparseTensor):
            scope.define(outputs[0], _constant(attrs, outputs[0], prefix))
            return
        full = f"{domain}.{op}" if domain else op
        if prefix and label:
            label = prefix + label
        node = Node(full, operands, attrs, len(outputs) or 1, name=label, doc=doc)
        insert(node, graph.ret)
        for name, value in zip(outputs, node.results, strict=False):
            if name:
                value.name = prefix + name
                scope.define(name, value)
        self.extras(proto, node)
        if domain and home is not None:
            self.stated(node, scope, home)
        elif full == "Constant":
            node.result.type = _dense_type(SparseTensorProto.FromString(attrs["sparse_value"]))

    def signature(self, op: str, domain: str) -> Signature | None:
        """What operator ``op`` of ``domain`` asks for in the version that the model imports, if that is known."""
        version = self.opsets.get(domain)
        if version is None:
            raise ModelError(f"no opset import for domain {shown(domain or 'ai.onnx')}")
        if not op or "." in op:
            raise ModelError("bad operator name")
        return signature(op, domain, version)

    def extras(self, proto: NodeProto, node: Node) -> None:
        """The rarer fields of a node."""
        if proto.metadata_props:
            node.metadata = metadata_of(proto.metadata_props) or None
        if overload := proto.overload:
            node.overload = text(overload)
        if proto.device_configurations:
            kept = NodeProto(device_configurations=proto.device_configurations).SerializeToString(deterministic=True)
            node.metadata = {**(node.metadata or {}), PRIVATE + "devices": kept.hex()}

    def stated(self, node: Node, scope: _Scope, home: GraphProto) -> None:
        """Believe the types that the model states for the results of a node that inference does not know."""
        if scope.stated is None:
            scope.stated = {v.name: v for v in (*home.value_info, *home.output)}
        for result in node.results:
            if result.name in scope.stated:
                result.type = type_from_proto(scope.stated[result.name].type)

    def call(
        self, proto: NodeProto, key: FunctionKey, operands: list[Value | None], graph: Graph, scope: _Scope
    ) -> None:
        """Append the body of a function to ``graph`` in place of a call."""
        function = self.functions[key]
        if not self.calling:
            self.inlined += self.expanded(key, 0)
            if self.inlined > MAX_INLINED:
                raise ModelError(f"function calls expand to more than {MAX_INLINED:,} nodes")
        self.calling += 1
        self.depth += 1
        formals = function.input
        if len(operands) > len(formals) or len(proto.output) > len(function.output):
            raise ModelError(f"the function takes {len(formals)} inputs and has {len(function.output)} outputs")
        inner = _Scope()
        inner.prefix = f"{scope.prefix}{prose(proto.name or proto.op_type)}/"
        inner.attributes = {a.name: (a, scope) for a in function.attribute_proto}
        inner.attributes.update({a.name: found for a in proto.attribute if (found := _resolved(a, scope)) is not None})
        for i, name in enumerate(formals):
            inner.define(name, operands[i] if i < len(operands) else None)
        self.nodes(self.ordered(function.node), graph, inner, None)
        self.calling -= 1
        self.depth -= 1
        for formal, actual in zip(function.output, proto.output, strict=False):
            if actual:
                value = inner.find(formal)
                if value is None:
                    raise ModelError("the function returns an argument that the call leaves out")
                scope.define(actual, value)
                if value.producer is not None and formal not in function.input:
                    value.name = scope.prefix + actual

    def expanded(self, key: FunctionKey, depth: int) -> int:
        """The number of nodes in the body of a function after all calls in it are replaced."""
        if depth > MAX_DEPTH:
            raise ModelError(f"function calls nested deeper than {MAX_DEPTH}")
        found = self.sizes.get(key)
        if found is None:
            self.sizes[key] = -1
            found = 0
            self.take_opsets(self.functions[key])
            for node in _all_nodes(self.functions[key].node):
                called = _function_key(node)
                found += self.expanded(called, depth + 1) if called in self.functions else 1
            self.sizes[key] = found
        elif found < 0:
            raise ModelError(f"function {shown(key[1])} calls itself")
        return found

    def take_opsets(self, function: FunctionProto) -> None:
        """Add the opsets that a function imports; they must mean the same as those of the model."""
        for domain, version in _opsets(function.opset_import).items():
            stated = self.opsets.setdefault(domain, version)
            if stated != version and not _same_operators(function, domain, stated, version):
                where = f"opset {version} of {shown(domain or 'ai.onnx')}, the model {stated}"
                raise ModelError(f"function {shown(function.name)} uses {where}")

    # attributes

    def attributes(self, protos: Iterable[AttributeProto], scope: _Scope, form: Signature | None) -> dict[str, Any]:
        """Attributes by name, of the types that ``form`` asks for."""
        attrs: dict[str, Any] = {}
        for proto in protos:
            name = text(proto.name)
            if name in attrs or not name:
                raise ModelError(f"two attributes are called {shown(name)}" if name else "an attribute has no name")
            place = scope
            if proto.ref_attr_name:
                found = _resolved(proto, scope)
                if found is None:
                    continue
                proto, place = found
            kind = proto.type
            expected = kind if form is None else form.attributes.get(name, kind)
            if kind != expected:
                raise ModelError(f"attribute {shown(name)} is {kind_name(kind)} instead of {kind_name(expected)}")
            read = _READERS.get(kind)
            attrs[name] = self.attribute(proto, kind, place) if read is None else read(proto)
        return attrs

    def attribute(self, proto: AttributeProto, kind: int, scope: _Scope) -> Any:
        """The value of an attribute of a kind that is no plain number or string, or a list."""
        if kind == AttributeProto.TENSOR:
            return tensor_from_proto(proto.t, self.resolve)
        if kind == AttributeProto.GRAPH:
            return self.graph(proto.g, scope)
        if kind == AttributeProto.SPARSE_TENSOR:
            return self.sparse(proto.sparse_tensor)
        if kind == AttributeProto.TYPE_PROTO:
            return type_from_proto(proto.tp)
        entries: tuple[Any, ...]
        match kind:
            case AttributeProto.STRINGS:
                entries = tuple(text_of(s) for s in proto.strings)
            case AttributeProto.TENSORS:
                entries = tuple(tensor_from_proto(t, self.resolve) for t in proto.tensors)
            case AttributeProto.GRAPHS:
                entries = tuple(self.graph(g, scope) for g in proto.graphs)
            case AttributeProto.SPARSE_TENSORS:
                entries = tuple(self.sparse(s) for s in proto.sparse_tensors)
            case AttributeProto.TYPE_PROTOS:
                entries = tuple(type_from_proto(t) for t in proto.type_protos)
            case _:
                raise ModelError(f"attribute {shown(proto.name)} has no type")
        return entries or Empty(kind)


_READERS: dict[int, Callable[[AttributeProto], Any]] = {
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.STRING: lambda a: text_of(a.s),
    AttributeProto.INTS: lambda a: tuple(a.ints) or Empty(AttributeProto.INTS),
    AttributeProto.FLOATS: lambda a: tuple(a.floats) or Empty(AttributeProto.FLOATS),
}

# how a Constant node states its value, and the element type that makes
_CONSTANTS = {
    "value_float": DType.FLOAT, "value_floats": DType.FLOAT, "value_int": DType.INT64, "value_ints": DType.INT64,
    "value_string": DType.STRING, "value_strings": DType.STRING,
}  # fmt: skip


def _constant(attrs: dict[str, Any], name: str, prefix: str) -> Value:
    """The value of a Constant node."""
    if len(attrs) != 1 or not name:
        raise ModelError("a Constant takes exactly one value and gives one result")
    ((key, value),) = attrs.items()
    name = prefix + name
    if key == "value" and isinstance(value, Tensor):
        return constant(value, name=name)
    dtype = _CONSTANTS.get(key)
    if dtype is None or isinstance(value, tuple) != key.endswith("s"):
        raise ModelError(f"a Constant has no attribute {shown(key)} of this type")
    try:
        return constant(tensor(value, dtype, name))
    except (TypeError, ValueError):
        raise ModelError(f"attribute {shown(key)} does not hold {dtype.text}") from None


def _dense_type(proto: SparseTensorProto) -> TensorType:
    return TensorType(dtype_of(proto.values.data_type), static_shape(proto, proto.values.name))


def _metadata(proto: ValueInfoProto | TensorProto) -> dict[str, str]:
    """Metadata properties, doc string and denotations of a value."""
    found = metadata_of(proto.metadata_props)
    if doc := proto.doc_string:
        found[PRIVATE + "doc"] = prose(doc)
    if isinstance(proto, ValueInfoProto) and (denotation := denotation_of(proto.type)):
        found[PRIVATE + "denotation"] = denotation
    return found


def _label(proto: NodeProto) -> str:
    op = prose(proto.op_type)
    op = op if op.isidentifier() and len(op) <= 100 else shown(op)
    return f"node {shown(proto.name)} ({op})" if proto.name else f"a {op} node"


def _resolved(proto: AttributeProto, scope: _Scope) -> tuple[AttributeProto, _Scope] | None:
    """What an attribute stands for, and where: itself, or what the call of the function has for it, if anything."""
    if not proto.ref_attr_name:
        return proto, scope
    if scope.attributes is None:
        raise ModelError(f"attribute {shown(proto.name)} refers to an attribute of a function, but is in none")
    return scope.attributes.get(proto.ref_attr_name)


def _function_key(node: NodeProto) -> FunctionKey:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type, node.overload


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """``nodes`` and those in their nested graphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in imports:
        domain, version = text(entry.domain), entry.version
        if domain == "ai.onnx":
            domain = ""
        if not 1 <= version < 1 << 31:
            raise ModelError(f"opset {version} of domain {shown(domain or 'ai.onnx')}")
        if found.setdefault(domain, version) != version:
            raise ModelError(f"two opsets of domain {shown(domain or 'ai.onnx')}: {found[domain]} and {version}")
    return found


def _same_operators(function: FunctionProto, domain: str, a: int, b: int) -> bool:
    """Whether the operators that ``function`` uses are the same in versions ``a`` and ``b`` of ``domain``."""
    for node in _all_nodes(function.node):
        if node.domain == domain or (node.domain == "ai.onnx" and not domain):
            op = text(node.op_type)
            try:
                if len({onnx.defs.get_schema(op, v, domain).since_version for v in (a, b)}) > 1:
                    return False
            except onnx.defs.SchemaError:
                return False
    return True
