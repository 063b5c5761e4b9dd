"""A normal form of ONNX models, in which two are equal when they mean and say the same."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, numpy_helper

from planish.ir import Sym, parse_dim


def normal_form(model: ModelProto) -> dict[str, Any]:
    """All that ``model`` says, free of the names of inner values, of where constants stand, and of Identity nodes."""
    names: dict[str, Any] = {}
    form = {
        "producer": (model.producer_name, model.producer_version, model.domain, model.model_version, model.doc_string),
        "opsets": {o.domain.removeprefix("ai.onnx") if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import},
        "metadata": props(model),
        "graph": graph_form(model.graph, names, model.ir_version),
        "annotations": [a.SerializeToString() for a in model.graph.quantization_annotation],
    }
    for field in ("training_info", "configuration", "functions"):
        form[field] = [entry.SerializeToString(deterministic=True) for entry in getattr(model, field)]
    return form


def graph_form(graph: GraphProto, outer: dict[str, Any], ir_version: int, path: str = "") -> dict[str, Any]:
    names = dict(outer)
    constants = {t.name: tensor_form(t) for t in graph.initializer}
    inputs = []
    defaults = {}
    for info in graph.input:
        if info.name in constants and ir_version < 4:
            continue
        if info.name in constants:
            defaults[info.name] = constants.pop(info.name)
        names[info.name] = f"{path}in{len(inputs)}"
        inputs.append(info_form(info, named=not path))
    names.update(constants)
    nodes: list[Any] = []
    for sparse in graph.sparse_initializer:
        nodes.append(("Constant", "sparse", sparse.SerializeToString(deterministic=True)))
        names[sparse.values.name] = f"{path}{len(nodes)}"
    results = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.attribute[0].name != "sparse_value":
            names[node.output[0]] = constant_form(node)
        elif node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            nodes.append(("Constant", "sparse", node.attribute[0].sparse_tensor.SerializeToString(deterministic=True)))
            names[node.output[0]] = f"{path}{len(nodes)}"
        elif node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
            names[node.output[0]] = names[node.input[0]]
        else:
            here = f"{path}{len(nodes)}"
            for i, name in enumerate(node.output):
                names[name] = f"{here}.{i}"
                results[name] = f"{here}.{i}"
            nodes.append(node_form(node, names, ir_version, here))
    stated = {results[v.name]: info_form(v, named=False) for v in graph.value_info if v.name in results and v.metadata_props}
    return {
        "name": graph.name or "graph",
        "doc": graph.doc_string,
        "metadata": props(graph),
        "inputs": inputs,
        "defaults": defaults,
        "nodes": nodes,
        "outputs": [(names[v.name], info_form(v, named=not path)) for v in graph.output],
        "stated": {k: v[-1] for k, v in stated.items()},
    }


def node_form(node: NodeProto, names: dict[str, Any], ir_version: int, here: str) -> tuple[Any, ...]:
    inputs = [names[n] if n else None for n in node.input]
    while inputs and inputs[-1] is None:
        inputs.pop()
    outputs = [bool(n) for n in node.output]
    while outputs and not outputs[-1]:
        outputs.pop()
    attributes = {a.name: attribute_form(a, names, ir_version, f"{here}/{a.name}/") for a in node.attribute}
    devices = [d.SerializeToString() for d in node.device_configurations]
    domain = "" if node.domain == "ai.onnx" else node.domain
    return domain, node.op_type, node.overload, inputs, outputs, attributes, node.doc_string, props(node), devices


def attribute_form(a: AttributeProto, names: dict[str, Any], ir_version: int, path: str) -> tuple[Any, ...]:
    match a.type:
        case AttributeProto.GRAPH:
            return a.type, graph_form(a.g, names, ir_version, path)
        case AttributeProto.GRAPHS:
            return a.type, [graph_form(g, names, ir_version, f"{path}{i}/") for i, g in enumerate(a.graphs)]
        case AttributeProto.TENSOR:
            return a.type, tensor_form(a.t)
        case AttributeProto.TENSORS:
            return a.type, [tensor_form(t) for t in a.tensors]
        case AttributeProto.TYPE_PROTO:
            return a.type, type_form(a.tp)
        case AttributeProto.FLOAT | AttributeProto.FLOATS:
            return a.type, str(onnx.helper.get_attribute_value(a))
    bare = AttributeProto()
    bare.CopyFrom(a)
    bare.ClearField("doc_string")
    return a.type, bare.SerializeToString(deterministic=True)


def constant_form(node: NodeProto) -> tuple[Any, ...]:
    (a,) = node.attribute
    value = onnx.helper.get_attribute_value(a)
    if a.name == "value":
        return tensor_form(value)
    kind = TensorProto.FLOAT if "float" in a.name else TensorProto.INT64 if "int" in a.name else TensorProto.STRING
    dims = [len(value)] if a.name.endswith("s") else []
    return tensor_form(onnx.helper.make_tensor("", kind, dims, value if dims else [value]))


def tensor_form(t: TensorProto) -> tuple[Any, ...]:
    if t.data_type == TensorProto.STRING:
        return t.data_type, tuple(t.dims), tuple(t.string_data)
    return t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()


def type_form(t: TypeProto) -> Any:
    kind = t.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return kind, type_form(getattr(t, kind).elem_type)
    if kind != "tensor_type":
        return t.SerializeToString(deterministic=True)
    shape = None
    if t.tensor_type.HasField("shape"):
        shape = tuple((dim_form(d), d.denotation) for d in t.tensor_type.shape.dim)
    return t.tensor_type.elem_type, shape, t.denotation


def dim_form(d: Any) -> Any:
    if d.WhichOneof("value") == "dim_value":
        return d.dim_value if d.dim_value >= 0 else None
    dim = parse_dim(d.dim_param)
    return None if isinstance(dim, Sym) and dim.mentions_anonymous else dim


def info_form(info: ValueInfoProto, *, named: bool) -> tuple[Any, ...]:
    return info.name if named else "", type_form(info.type), info.doc_string, props(info)


def props(message: Any) -> dict[str, str]:
    return {p.key: p.value for p in message.metadata_props}
