"""`from_proto` and `to_proto`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from onnx.reference import ReferenceEvaluator

from planish.ir import DType, Graph, LazyTensor, SequenceType, Sym, TensorType, constant, edit, op, parse_dim, tensor
from planish.ir.convert.proto import SparseTensor, from_proto, to_proto
from planish.ir.edit import set_operands
from planish.ir.errors import PlanishError

# A normal form of models, in which two are equal when they mean and say the same.


def normal_form(model: ModelProto) -> dict[str, Any]:
    """All that ``model`` says, free of the names of inner values, of where constants stand, and of Identity nodes."""
    form = {
        "producer": (model.producer_name, model.producer_version, model.domain, model.model_version, model.doc_string),
        "opsets": {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import},
        "metadata": props(model),
        "graph": graph_form(model.graph, {}, model.ir_version),
        "annotations": [a.SerializeToString() for a in model.graph.quantization_annotation],
    }
    for field in ("training_info", "configuration", "functions"):
        form[field] = [entry.SerializeToString(deterministic=True) for entry in getattr(model, field)]
    return form


def graph_form(graph: GraphProto, outer: dict[str, Any], ir_version: int, path: str = "") -> dict[str, Any]:
    names = dict(outer)
    constants = {t.name: tensor_form(t) for t in graph.initializer}
    inputs: list[Any] = []
    nodes: list[Any] = []
    defaults, results = {}, {}
    for info in graph.input:
        if info.name in constants and ir_version < 4:
            continue
        if info.name in constants:
            defaults[info.name] = constants.pop(info.name)
        names[info.name] = f"{path}in{len(inputs)}"
        inputs.append(info_form(info, named=not path))
    names.update(constants)
    for sparse in graph.sparse_initializer:
        nodes.append(("Constant", "sparse", sparse.SerializeToString(deterministic=True)))
        names[sparse.values.name] = f"{path}{len(nodes)}"
    for node in graph.node:
        standard = node.op_type if node.domain in ("", "ai.onnx") else ""
        if standard == "Constant" and node.attribute[0].name != "sparse_value":
            names[node.output[0]] = constant_form(node)
        elif standard == "Constant":
            nodes.append(("Constant", "sparse", node.attribute[0].sparse_tensor.SerializeToString(deterministic=True)))
            names[node.output[0]] = f"{path}{len(nodes)}"
        elif standard == "Identity":
            names[node.output[0]] = names[node.input[0]]
        else:
            here = f"{path}{len(nodes)}"
            for i, name in enumerate(node.output):
                names[name] = results[name] = f"{here}.{i}"
            nodes.append(node_form(node, names, ir_version, here))
    stated = {results[v.name]: props(v) for v in graph.value_info if v.name in results and v.metadata_props}
    outputs = [(names[v.name], info_form(v, named=not path)) for v in graph.output]
    said = (graph.name or "graph", graph.doc_string, props(graph))
    return {"said": said, "in": inputs, "defaults": defaults, "nodes": nodes, "out": outputs, "stated": stated}


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
            return a.type, str(helper.get_attribute_value(a))  # NaN is not itself
    bare = AttributeProto()
    bare.CopyFrom(a)
    bare.ClearField("doc_string")
    return a.type, bare.SerializeToString(deterministic=True)


def constant_form(node: NodeProto) -> tuple[Any, ...]:
    (a,) = node.attribute
    value = helper.get_attribute_value(a)
    if a.name == "value":
        return tensor_form(value)
    kind = TensorProto.FLOAT if "float" in a.name else TensorProto.INT64 if "int" in a.name else TensorProto.STRING
    dims = [len(value)] if a.name.endswith("s") else []
    return tensor_form(helper.make_tensor("", kind, dims, value if dims else [value]))


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
    has_shape = t.tensor_type.HasField("shape")
    shape = tuple((dim_form(d), d.denotation) for d in t.tensor_type.shape.dim) if has_shape else None
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


def parsed(text: str) -> ModelProto:
    """A model in ONNX's textual syntax; the header may be left out."""
    header = '<ir_version: 10, opset_import: ["": 21, "x": 1, "local": 1]>\n'
    return onnx.parser.parse_model(text if text.lstrip().startswith("<ir") else header + text)


def round_trip(model: ModelProto, **options: Any) -> ModelProto:
    """``model`` through a graph and back, after checking that nothing is lost."""
    before = model.SerializeToString(deterministic=True)
    graph = from_proto(model, **options)
    result = to_proto(graph)
    assert model.SerializeToString(deterministic=True) == before
    assert to_proto(graph).SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    assert normal_form(result) == normal_form(model)
    return result


def names_of(model: ModelProto) -> list[str]:
    """All names of values that ``model`` defines, nested graphs included."""

    def collect(graph: GraphProto) -> list[str]:
        found = [v.name for v in graph.input] + [t.name for t in graph.initializer]
        for node in graph.node:
            found += [n for n in node.output if n]
            for a in node.attribute:
                found += [n for g in ([a.g] if a.type == AttributeProto.GRAPH else a.graphs) for n in collect(g)]
        return found

    return collect(model.graph)


# everything that onnx tests itself with


def suite(kind: str) -> list[ModelProto]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import DATA_DIR, load_model_tests

        if kind == "light":
            return [onnx.load(path) for path in Path(DATA_DIR, kind).glob("*.onnx")]
        return [
            case.model or onnx.load(Path(str(case.model_dir), "model.onnx")) for case in load_model_tests(kind=kind)
        ]


@pytest.mark.parametrize(
    ("kind", "count"),
    [("node", 1800), ("simple", 20), ("pytorch-operator", 30), ("pytorch-converted", 80), ("light", 9)],
)
def test_onnx_backend_suite(kind: str, count: int) -> None:
    models = suite(kind)
    assert len(models) >= count
    for model in models:
        result = round_trip(model, infer=False, opaque_functions=True)
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError:
            continue
        onnx.checker.check_model(result)


# values and names


def test_initializers_and_constant_nodes_become_values() -> None:
    graph = from_proto(
        parsed("""g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            c = Constant<value_float = 3.0>()
            t = Add(x, w)
            y = Mul(t, c)
        }""")
    )
    assert [n.op for n in graph.nodes] == ["Add", "Mul"]
    assert [v.name for v in graph.constants()] == ["w", "c"]
    assert [v.const.numpy().tolist() for v in graph.constants() if v.const] == [[1, 2], 3]
    assert graph.outputs[0].type == TensorType(DType.FLOAT, (2,))


def test_initializers_among_the_inputs() -> None:
    text = '<ir_version: {}, opset_import: ["": 21]> g (float[2] x, float[2] w) => (float[2] y) '
    text += "<float[2] w = {{1, 2}}> {{ y = Add(x, w) }}"
    old, new = from_proto(parsed(text.format(3))), from_proto(parsed(text.format(10)))
    assert [v.name for v in old.inputs] == ["x"]
    assert [v.name for v in new.inputs] == ["x", "w"]
    assert new.inputs[1].default is not None
    assert new.inputs[1].default.numpy().tolist() == [1, 2]
    round_trip(parsed(text.format(10)))
    assert to_proto(old).ir_version >= 4  # before, the constant would have to be an input
    assert [v.name for v in to_proto(old).graph.input] == ["x"]


@pytest.mark.parametrize("text", [
    "g (float[2] x) => (float[2] x) {}",
    "g (float[2] x) => (float[2] y) { y = Identity(x) }",
    "g (float[2] x) => (float[2] y) <float[2] y = {1, 2}> {}",
    "g (float[2] x) => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }",
])  # fmt: skip
def test_outputs_that_no_node_computes(text: str) -> None:
    onnx.checker.check_model(round_trip(parsed(text)))


def test_outputs_keep_their_names_whatever_is_returned() -> None:
    graph = from_proto(parsed("g (float[2] x) => (float[2] x, float[2] y, float[2] z) { y = Relu(x) z = Neg(x) }"))
    x, y, _ = graph.outputs
    set_operands(graph.ret, (x, x, y))
    model = to_proto(graph)
    onnx.checker.check_model(model)
    assert [v.name for v in model.graph.output] == ["x", "y", "z"]
    assert len(set(names_of(model))) == len(names_of(model))
    set_operands(graph.ret, (y, y, y))
    with pytest.raises(PlanishError, match="output 'x' has the name of an input"):
        to_proto(graph)


def test_an_output_returned_twice() -> None:
    graph = from_proto(parsed("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(x) }"))
    set_operands(graph.ret, (graph.outputs[0],) * 2)
    model = to_proto(graph)
    onnx.checker.check_model(model)
    assert [(n.op_type, *n.output) for n in model.graph.node] == [("Relu", "y"), ("Neg", "z_1"), ("Identity", "z")]


def test_names_are_distinct_in_all_graphs() -> None:
    body = "{ t = Relu(x) t2 = Neg(t) }"
    model = parsed(f"""
        g (bool b, float[2] x) => (float[2] y) {{
            t = Abs(x)
            y = If (b) <then_branch = a () => (float[2] t2) {body}, else_branch = a () => (float[2] t2) {body}>
        }}""")
    names = names_of(round_trip(model))
    assert len(set(names)) == len(names)


def test_nodes_get_distinct_names() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) [n] c = Relu(b) [n] y = Relu(c) }")
    names = [n.name for n in to_proto(from_proto(model)).graph.node]
    assert all(names)
    assert len(set(names)) == 4
    assert "n" in names


def test_left_out_operands_and_results() -> None:
    model = parsed("g (float[8] x, float l) => (float[8] y, float[8] z) { y = Clip(x, , l) z, m = Dropout(x) }")
    graph = from_proto(model)
    assert [o is None for o in next(graph.nodes).operands] == [False, True, False]
    round_trip(model)
    lstm = parsed("""g (float[3,2,4] x, float[1,8,4] w, float[1,8,2] r) => (float[1,2,2] h) {
        , h = LSTM<hidden_size = 2>(x, w, r)
    }""")
    assert list(round_trip(lstm).graph.node[0].output) == ["", "h"]


def test_tied_tensors_stay_one() -> None:
    graph = Graph("g", opsets={"": 21})
    x = graph.add_input(TensorType(DType.FLOAT, (2,)), "x")
    w = tensor(np.ones(2, np.float32))
    y = op.Add(op.Mul(x, constant(w)), constant(w))
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    model = to_proto(graph)
    onnx.checker.check_model(model)
    assert len(model.graph.initializer) == 1


def test_a_graph_without_names_and_versions() -> None:
    graph = Graph()
    x = graph.add_input(TensorType(DType.FLOAT, (2,)), "")
    y = op.Relu(x)
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y, x])
    model = to_proto(graph)
    onnx.checker.check_model(model)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["input", "output", "output_1"]
    assert model.opset_import[0].version == onnx.defs.onnx_opset_version()


def test_lazy_tensors_are_computed_on_export() -> None:
    graph = from_proto(parsed("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }"))
    (w,) = graph.constants()
    assert w.const is not None
    w.const = LazyTensor(lambda a: a * 2, (w.const,), DType.FLOAT, (2,), "w2")
    (t,) = to_proto(graph).graph.initializer
    assert numpy_helper.to_array(t).tolist() == [2, 4]


# nodes


def test_custom_domains_are_kept() -> None:
    model = parsed("""g (float[N,2] x) => (float[N,M] z) <float[N,7] y> {
        y, , u = x.Custom<a = 1, b = 2.5, c = "s", d = [1, 2], e = [0.5], f = ["p", "q"]>(x)
        z = x.Other(y, , u)
    }""")
    graph = from_proto(model)
    first, second = graph.nodes
    assert (first.op, first.domain, first.op_type) == ("x.Custom", "x", "Custom")
    assert first.attrs == {"a": 1, "b": 2.5, "c": "s", "d": (1, 2), "e": (0.5,), "f": ("p", "q")}
    assert str(first.results[0].type) == "float[N,7]"  # the model says so, and nobody knows better
    assert str(second.results[0].type) == "float[N,M]"
    result = round_trip(model)
    assert [v.name for v in result.graph.value_info] == ["y"]
    assert list(result.graph.node[0].output) == ["y", "", "u"]


def test_the_standard_domain_has_two_names() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = ai.onnx.Relu(x) }")
    model.opset_import[0].domain = "ai.onnx"
    graph = from_proto(model)
    assert next(graph.nodes).op == "Relu"
    assert graph.opsets[""] == 21
    round_trip(model)


def test_attributes_of_every_kind() -> None:
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.int8), "t")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, np.int64), "i"), [4]
    )
    graph = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }").graph
    types = [
        helper.make_tensor_type_proto(1, [2, "N", None]),
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(7, None)),
    ]
    values = [
        1,
        1.5,
        "text",
        b"\xff\xfe",
        tensor,
        sparse,
        graph,
        types[0],
        [1, 2],
        [1.5, float("nan")],
        ["a", b"\xff"],
        [tensor],
        [sparse],
        [graph],
        types,
    ]
    attributes: dict[str, Any] = {f"a{i}": v for i, v in enumerate(values)}
    node = helper.make_node("Custom", ["x"], ["y"], domain="x", **attributes)
    for i, kind in enumerate((6, 7, 8, 9, 10, 12, 14)):
        node.attribute.add(name=f"empty{i}", type=kind)
    model = parsed("g (float[2] x) => (float[2] y) { y = x.Custom(x) }")
    model.graph.node[0].CopyFrom(node)
    attrs = next(from_proto(model).nodes).attrs
    assert attrs["a2"] == "text"
    assert attrs["a3"] == b"\xff\xfe"
    assert attrs["a10"] == ("a", b"\xff")
    assert isinstance(attrs["a5"], SparseTensor)
    assert isinstance(attrs["a14"][1], SequenceType)
    result = round_trip(model)
    assert [a.type for a in result.graph.node[0].attribute] == [a.type for a in node.attribute]


def test_sparse_initializers_become_constant_nodes() -> None:
    model = parsed("g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }")
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
        numpy_helper.from_array(np.zeros(1, np.int64), "i"),
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    del model.graph.initializer[:]
    graph = from_proto(model)
    assert str(next(graph.nodes).result.type) == "float[4]"
    round_trip(model)


def test_nested_graphs_capture_values() -> None:
    model = parsed("""
        g (bool b, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            t = Abs(x)
            y = If (b) <
                then_branch = a () => (float[2] p) { p = Add(t, w) },
                else_branch = e () => (float[2] q) {
                    r = If (b) <
                        then_branch = i () => (float[2] u) { u = Neg(t) },
                        else_branch = j () => (float[2] v) { v = Identity(w) }
                    >
                    q = Mul(r, x)
                }
            >
        }""")
    graph = from_proto(model)
    first, branch = graph.nodes
    assert {n.op for n in first.result.users} == {"Add", "Neg"}
    assert len(branch.graphs) == 2
    assert branch.graphs[1].parent is branch
    onnx.checker.check_model(round_trip(model))


def test_an_inner_name_may_shadow_an_outer_one() -> None:
    model = parsed("""
        g (bool b, float[2] x) => (float[2] y) {
            t = Abs(x)
            y = If (b) <
                then_branch = a () => (float[2] p) { t = Neg(x) p = Relu(t) },
                else_branch = e () => (float[2] q) { q = Relu(t) }
            >
        }""")
    round_trip(model)


def test_nodes_out_of_order_are_sorted() -> None:
    model = parsed("""
        g (bool b, float[2] x) => (float[2] y) {
            y = If (b) <
                then_branch = a () => (float[2] p) { p = Relu(u) u = Neg(t) },
                else_branch = e () => (float[2] q) { q = Identity(s) }
            >
            s = Neg(t)
            t = Abs(x)
        }""")
    graph = from_proto(model)
    assert [n.op for n in graph.nodes] == ["Abs", "Neg", "If"]
    onnx.checker.check_model(to_proto(graph))


# what models say besides


def annotated_model() -> ModelProto:
    """A model with everything that a round trip must not lose."""
    model = parsed("""
        g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}, float s = {1}, int8 z = {0}> {
            t = Mul(x, w)
            y = Add(t, w)
        }""")
    model.producer_name, model.producer_version, model.domain, model.model_version, model.doc_string = (
        "p",
        "1.0",
        "d.e",
        7,
        "doc",
    )
    graph = model.graph
    for i, message in enumerate((model, graph, *graph.node, *graph.input, *graph.output, graph.initializer[0])):
        message.metadata_props.add(key=f"k{i}", value="v1")
        message.metadata_props.add(key="other", value="ü")
        message.doc_string = f"doc {i}"
    info = graph.value_info.add(name="t", type=helper.make_tensor_type_proto(1, ["N", 2]))
    info.metadata_props.add(key="about", value="t")
    for value in (graph.input[0], graph.output[0]):
        value.type.denotation = "IMAGE"
        value.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.quantization_annotation.add(
        tensor_name="t",
        quant_parameter_tensor_names=[
            onnx.StringStringEntryProto(key="SCALE_TENSOR", value="s"),
            onnx.StringStringEntryProto(key="ZERO_POINT_TENSOR", value="z"),
        ],
    )
    training = model.training_info.add()
    training.initialization.CopyFrom(
        parsed("g () => (float[2] w2) { w2 = Constant<value_floats = [0.0, 0.0]>() }").graph
    )
    training.initialization_binding.add(key="w", value="w2")
    model.configuration.add(name="two", num_devices=2, device=["a", "b"])
    device = graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    device.sharding_spec.add(tensor_name="x", device=[0, 1])
    graph.node[1].name = "named"
    return model


def test_nothing_said_is_lost() -> None:
    model = annotated_model()
    result = round_trip(model)
    assert {t.name for t in result.graph.initializer} == {"w", "s", "z"}
    assert result.graph.initializer[0].doc_string == model.graph.initializer[0].doc_string
    assert props(result.graph.initializer[0]) == props(model.graph.initializer[0])
    assert result.graph.node[1].name == "named"
    assert result.ir_version == model.ir_version
    assert "planish" not in str(result)
    round_trip(result)


def test_a_model_cannot_forge_what_planish_keeps() -> None:
    model = annotated_model()
    for message in (model.graph.node[1], model.graph.input[0]):
        message.metadata_props.add(key="planish.onnx.devices", value="zz")
        message.metadata_props.add(key="planish.onnx.denotation", value="zz")
    assert "planish" not in str(to_proto(from_proto(model)))


def test_rules_are_recorded() -> None:
    graph = from_proto(parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    node = next(graph.nodes)
    node.rules = ("a", "b")
    again = from_proto(to_proto(graph))
    assert next(again.nodes).origin.rules == ("a", "b")
    next(again.nodes).rules = ("c",)
    assert next(from_proto(to_proto(again)).nodes).origin.rules == ("a", "b", "c")


@pytest.mark.parametrize("type_", [
    helper.make_tensor_type_proto(1, None),
    helper.make_tensor_type_proto(8, []),
    helper.make_tensor_type_proto(1, ["batch", "2*n + 1", None, 3]),
    helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, ["n"])),
    helper.make_optional_type_proto(helper.make_sequence_type_proto(helper.make_tensor_type_proto(7, None))),
    helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [2])),
    helper.make_sparse_tensor_type_proto(1, [2, 3]),
    TypeProto(opaque_type=TypeProto.Opaque(domain="d", name="n")),
])  # fmt: skip
def test_types(type_: TypeProto) -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = x.Custom(x) }")
    model.graph.input[0].type.CopyFrom(type_)
    model.graph.output[0].type.CopyFrom(type_)
    round_trip(model)


def test_dimensions() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    for text in ("batch", "2*n", "-1", "", "99999999999999999999", "a b"):
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_param=text)
    model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=-1)
    shape = from_proto(model, infer=False).inputs[0].shape
    assert shape is not None
    assert [str(d) if not isinstance(d, Sym) or not d.is_anonymous else "?" for d in shape] == [
        "batch",
        "2*n",
        "?",
        "?",
        "?",
        "a b",
        "?",
    ]


# versions


def test_versions() -> None:
    graph = from_proto(parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert graph.opsets == {"": 21, "x": 1, "local": 1}
    assert to_proto(graph).ir_version == 10
    newer = to_proto(graph, opset=23)
    assert [o.version for o in newer.opset_import if not o.domain] == [23]
    assert newer.ir_version >= 11
    assert to_proto(graph, opset=13, ir_version=8).ir_version == 8


def test_the_upgrade_comes_before_inference() -> None:
    seen: list[str] = []
    model = parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    graph = from_proto(model, upgrade=lambda g: seen.append(str(next(g.nodes).result.type)))
    assert seen == ["?"]
    assert str(graph.outputs[0].type) == "float[2]"


# functions

FUNCTIONS = """
    g (float[2] x) => (float[2] y) { t = local.twice<k = 3.0>(x) y = local.twice(t) }
    <domain: "local", opset_import: ["" : 21]>
    inner (a) => (c) { c = Abs(t) t = Neg(a) }
    <domain: "local", opset_import: ["" : 21, "local" : 1]>
    twice <k: float = 2.0> (a, b) => (c) { f = Constant<value_float: float = @k>() p = local.inner(a) c = Mul(p, f) }
"""


def test_functions_are_inlined() -> None:
    graph = from_proto(parsed(FUNCTIONS))
    assert [n.op for n in graph.nodes] == ["Neg", "Abs", "Mul"] * 2
    assert [v.const.numpy().item() for v in graph.constants() if v.const] == [3, 2]
    assert str(graph.outputs[0].type) == "float[2]"
    model = to_proto(graph)
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    x = np.array([-1, 2], np.float32)
    results = ReferenceEvaluator(model).run(None, {"x": x})
    assert isinstance(results, list)
    assert results[0].tolist() == [6, 12]


def test_a_graph_may_be_an_argument_of_a_function() -> None:
    model = parsed("""
        g (bool b, float[2] x) => (float[2] y) { y = local.twice(b, x) }
        <domain: "local", opset_import: ["" : 21]>
        twice (b, x) => (c) { p = If(b) q = If(b) c = Add(p, q) }
    """)
    parse = onnx.parser.parse_graph
    model.functions[0].attribute.extend(["then", "other"])
    model.graph.node[0].attribute.extend([
        helper.make_attribute("then", parse("t () => (float[2] r) { r = Relu(x) }")),
        helper.make_attribute("other", parse("e () => (float[2] s) { s = Neg(x) }")),
    ])  # fmt: skip
    for node in model.functions[0].node[:2]:
        for name, reference in (("then_branch", "then"), ("else_branch", "other")):
            node.attribute.add(name=name, ref_attr_name=reference, type=AttributeProto.GRAPH)
    graph = from_proto(model)
    first, second, _ = graph.nodes
    assert set(first.graphs).isdisjoint(second.graphs)
    assert first.results[0].name == "twice/p"
    onnx.checker.check_model(to_proto(graph))
    x = np.array([-1, 2], np.float32)
    results = ReferenceEvaluator(to_proto(graph)).run(None, {"x": x, "b": np.array(True)})
    assert isinstance(results, list)
    assert results[0].tolist() == [0, 4]


def test_what_the_model_states_of_a_name_is_not_believed_of_the_same_name_in_a_function() -> None:
    model = parsed("""
        g (float[2] x) => (float[2] y) <float[7] t> { t = x.A(x) y = local.f(t) }
        <domain: "local", opset_import: ["x" : 1]>
        f (a) => (c) { t = x.B(a) c = x.C(t) }
    """)
    a, b, c = from_proto(model).nodes
    assert [str(n.result.type) for n in (a, b, c)] == ["float[7]", "?", "float[2]"]


def test_functions_may_stay() -> None:
    model = parsed(FUNCTIONS)
    graph = from_proto(model, opaque_functions=True)
    assert [n.op for n in graph.nodes] == ["local.twice", "local.twice"]
    assert len(round_trip(model, opaque_functions=True).functions) == 2


# elements


@pytest.mark.parametrize("dtype", [d for d in DType if d not in (DType.UNDEFINED, DType.STRING)])
def test_every_element_type(dtype: DType) -> None:
    codes = np.random.default_rng(0).integers(0, 256, 64, dtype=np.uint8)
    array = codes.view(dtype.numpy) if dtype.bits >= 8 and dtype is not DType.BOOL else codes.astype(dtype.numpy)
    raw = numpy_helper.from_array(array[:15], "w") if dtype.bits < 8 else numpy_helper.from_array(array, "w")
    typed = TensorProto(name="w", data_type=int(dtype), dims=[len(array[: 15 if dtype.bits < 8 else None])])
    fill_typed(typed, dtype, np.frombuffer(raw.raw_data, np.uint8))
    for proto in (raw, typed):
        model = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = x.Custom(x, w) }")
        model.graph.initializer[0].CopyFrom(proto)
        (result,) = to_proto(from_proto(model, infer=False)).graph.initializer
        assert result.raw_data == raw.raw_data, dtype
        assert result.data_type == dtype


def fill_typed(proto: TensorProto, dtype: DType, raw: np.ndarray) -> None:
    """Write ``raw`` into the field that ONNX has for ``dtype``."""
    if dtype in (DType.FLOAT, DType.COMPLEX64):
        proto.float_data.extend(raw.view(np.float32).tolist())
    elif dtype in (DType.DOUBLE, DType.COMPLEX128):
        proto.double_data.extend(raw.view(np.float64).tolist())
    elif dtype is DType.INT64:
        proto.int64_data.extend(raw.view(np.int64).tolist())
    elif dtype in (DType.UINT32, DType.UINT64):
        proto.uint64_data.extend(raw.view(dtype.numpy).tolist())
    elif dtype.bits == 16 and dtype is not DType.INT16:
        proto.int32_data.extend(raw.view(np.uint16).tolist())
    elif dtype in (DType.INT16, DType.INT32, DType.INT8):
        proto.int32_data.extend(raw.view(dtype.numpy).tolist())
    else:
        proto.int32_data.extend(raw.tolist())
