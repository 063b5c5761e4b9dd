"""Models that are malformed: each is one clear `ModelError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from planish.ir.convert.proto import from_proto
from planish.ir.errors import ModelError

HEADER = '<ir_version: 10, opset_import: ["": 21, "x": 1, "local": 1]>\n'
IO = "(float[2] x) => (float[2] y)"
RELU = f"g {IO} {{ y = Relu(x) }}"
ADD = f"g {IO} <float[2] w = {{1, 2}}> {{ y = Add(x, w) }}"
IF = """g (bool b, float[2] x) => (float[2] y) {
    y = If(b) <
        then_branch = t () => (float[2] p) { p = Relu(x) },
        else_branch = e () => (float[2] q) { q = Neg(x) }
    >
}"""
CALL = f"g {IO} {{ y = local.f(x) }}"


def parsed(text: str) -> ModelProto:
    return onnx.parser.parse_model(HEADER + text)


def changed(text: str, change: Callable[[ModelProto], Any]) -> ModelProto:
    model = parsed(text)
    change(model)
    return model


def body(nodes: str) -> ModelProto:
    """A model of one input x and one output y."""
    return parsed(f"g {IO} {{ {nodes} }}")


def weight(**fields: Any) -> ModelProto:
    """A model whose only initializer has other fields; a list replaces the elements of a repeated one."""
    model = parsed(ADD)
    (w,) = model.graph.initializer
    for name, value in fields.items():
        if isinstance(value, list):
            w.ClearField(name)
            getattr(w, name).extend(value)
        else:
            setattr(w, name, value)
    return model


def attribute(**fields: Any) -> ModelProto:
    """A model with an attribute where none is known."""
    return changed(RELU, lambda m: m.graph.node[0].attribute.add(**fields))


def function(text: str, call: str = CALL, version: int = 21) -> ModelProto:
    """A model with a function f."""
    return parsed(f'{call} <domain: "local", opset_import: ["": {version}, "local": 1]> f (a) => (c) {{ {text} }}')


def nested(depth: int) -> ModelProto:
    """Graphs in graphs."""
    model = parsed(IF)
    template = parsed(IF.replace("(float[2] y)", "(float[2] p)").replace("y = If", "p = If")).graph.node[0]
    inner = model.graph
    for _ in range(depth):
        inner = inner.node[0].attribute[0].g
        inner.node[0].CopyFrom(template)
    return model


MALFORMED: dict[str, tuple[ModelProto, str]] = {
    # names
    "cycle": (body("[n1] a = Add(x, c) [n2] c = Relu(a) y = Neg(c)"), "cycle: 'n[12]' -> 'n[12]' -> 'n[12]'"),
    "own result": (body("y = Add(x, y)"), "cycle: 'Add' -> 'Add'"),
    "dangling operand": (body("y = Add(x, w)"), "'w', which nothing defines"),
    "dangling output": (body("z = Relu(x)"), "output 'y' is not defined"),
    "inner name used outside": (
        changed(IF, lambda m: m.graph.node.add(op_type="Relu", input=["p"], output=["r"])),
        "'p', which nothing defines",
    ),
    "two values of one name": (body("y = Relu(x) y = Neg(x)"), "two values are called 'y'"),
    "result called like an input": (body("x = Relu(x) y = Neg(x)"), "two values are called 'x'"),
    "two inputs of one name": (
        changed(RELU, lambda m: m.graph.input.append(m.graph.input[0])),
        "two values are called 'x'",
    ),
    "two initializers of one name": (
        changed(ADD, lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        "two initializers are called 'w'",
    ),
    "nameless initializer": (weight(name=""), "an initializer has no name"),
    "nameless input": (changed(RELU, lambda m: m.graph.input[0].ClearField("name")), "a graph input has no name"),
    "nameless output": (changed(RELU, lambda m: m.graph.output[0].ClearField("name")), "a graph output has no name"),
    "name that is no text": (
        changed(RELU, lambda m: m.ParseFromString(m.SerializeToString().replace(b"Relu", b"Re\xff\xfe"))),
        "is not UTF-8",
    ),
    # tensors and types
    "negative dimension": (weight(dims=[-2]), "absurd shape"),
    "huge dimension": (weight(dims=[1 << 62, 1 << 62]), "absurd shape"),
    "huge dimension times zero": (weight(dims=[1 << 62, 0]), "absurd shape"),
    "too many dimensions": (weight(dims=[1] * 100), "absurd shape"),
    "negative dimension of an input": (
        changed(RELU, lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -7)),
        "negative dimension -7",
    ),
    "too few elements": (weight(dims=[3]), r"float\[3\], 3 elements, but holds 2 entries of float_data"),
    "too many elements": (weight(dims=[]), "1 elements, but holds 2"),
    "too few bytes": (weight(float_data=[], raw_data=b"1234567"), "holds 7 bytes"),
    "bytes of another type": (
        weight(data_type=TensorProto.DOUBLE, float_data=[], raw_data=bytes(8)),
        "holds 8 bytes",
    ),
    "elements of another type": (weight(data_type=TensorProto.INT64), "0 entries of int64_data"),
    "too few strings": (weight(data_type=TensorProto.STRING), "holds 0 strings"),
    "unknown element type": (weight(data_type=99), "unknown element type 99"),
    "no element type": (weight(data_type=0), "no element type"),
    "unknown element type of an input": (
        changed(RELU, lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77)),
        "unknown element type 77",
    ),
    "data elsewhere": (weight(data_location=TensorProto.EXTERNAL), "data in another file"),
    # versions
    "no opset": (changed(RELU, lambda m: m.ClearField("opset_import")), "no opset import for domain 'ai.onnx'"),
    "no opset of a domain": (body("y = foo.Bar(x)"), "no opset import for domain 'foo'"),
    "two opsets": (changed(RELU, lambda m: m.opset_import.add(domain="ai.onnx", version=7)), "two opsets"),
    "opset zero": (changed(RELU, lambda m: m.opset_import.add(domain="z", version=0)), "opset 0"),
    "opset beyond": (changed(RELU, lambda m: m.opset_import.add(domain="z", version=1 << 40)), "opset 1099"),
    "no IR version": (changed(RELU, lambda m: m.ClearField("ir_version")), "IR version 0"),
    "future IR version": (changed(RELU, lambda m: setattr(m, "ir_version", 1000)), "IR version 1000"),
    "no graph": (changed(RELU, lambda m: m.ClearField("graph")), "no graph"),
    # nodes
    "no operator": (changed(RELU, lambda m: m.graph.node[0].ClearField("op_type")), "bad operator name"),
    "operator with a dot": (
        changed(RELU, lambda m: setattr(m.graph.node[0], "op_type", "a.b")),
        "bad operator name",
    ),
    "deep nesting": (nested(80), "nested deeper than 64"),
    "bottomless nesting": (nested(400), "nested deeper than 64"),
    "duplicate attribute": (
        changed(RELU, lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("a", 1)] * 2)),
        "two attributes are called 'a'",
    ),
    "attribute without type": (attribute(name="a", i=1), "attribute 'a' has no type"),
    "nameless attribute": (attribute(i=1, type=AttributeProto.INT), "attribute has no name"),
    "attribute of the wrong type": (body("y = Softmax<axis = 1.5>(x)"), "'axis' is float instead of int"),
    "missing attribute": (body("y = Cast(x)"), "attribute 'to' is missing"),
    "reference outside of a function": (
        attribute(name="a", ref_attr_name="b", type=AttributeProto.INT),
        "attribute of a function, but is in none",
    ),
    "too few operands": (body("y = Add(x)"), "1 inputs instead of 2"),
    "too many operands": (body("y = Relu(x, x)"), "2 inputs instead of 1"),
    "too many results": (body("y, z = Relu(x)"), "2 outputs instead of 1"),
    "required operand left out": (body("y = Add(, x)"), "required input is left out"),
    "two values in a Constant": (body("y = Constant<value_float = 1.0, value_int = 1>()"), "exactly one value"),
    "no value in a Constant": (body("y = Constant()"), "exactly one value"),
    # functions
    "function that calls itself": (function("c = local.f(a)"), "calls itself"),
    "function defined twice": (
        changed(
            f'{CALL} <domain: "local", opset_import: ["": 21]> f (a) => (c) {{ c = Relu(a) }}',
            lambda m: m.functions.append(m.functions[0]),
        ),
        "defined twice",
    ),
    "function with too many arguments": (
        function("c = Relu(a)", f"g {IO} {{ y = local.f(x, x) }}"),
        "takes 1 inputs",
    ),
    "function with another opset": (function("c = Softmax(a)", version=11), "uses opset 11"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    model, message = MALFORMED[name]
    with pytest.raises(ModelError, match=message) as caught:
        from_proto(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_long_names_are_cut_in_messages() -> None:
    model = parsed(RELU)
    model.graph.node[0].input[0] = "n\n" * 100_000
    with pytest.raises(ModelError) as caught:
        from_proto(model)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_prose_may_be_in_any_encoding() -> None:
    model = parsed(RELU)
    node = model.graph.node[0]
    node.doc_string = node.name = "LATIN"
    node.metadata_props.add(key="LATIN", value="LATIN")
    model.producer_name = model.graph.doc_string = model.graph.input[0].doc_string = "LATIN"
    model.ParseFromString(model.SerializeToString().replace(b"LATIN", "latïn".encode("latin-1")))
    (result,) = from_proto(model).nodes
    assert result.doc == result.name == "lat\ufffdn"
    assert result.metadata == {"lat\ufffdn": "lat\ufffdn"}


def test_types_nested_too_deeply() -> None:
    deep = helper.make_tensor_type_proto(1, [1])
    for _ in range(200):
        deep = helper.make_sequence_type_proto(deep)
    model = parsed(RELU)
    model.graph.input[0].type.CopyFrom(deep)
    with pytest.raises(ModelError, match="types nested deeper"):
        from_proto(model)


def test_functions_that_explode() -> None:
    text = f"g {IO} {{ y = local.f0(x) }}\n"
    for i in range(40):
        text += f'<domain: "local", opset_import: ["local": 1]> f{i} (a) => (c) {{ b = local.f{i + 1}(a) '
        text += f"c = local.f{i + 1}(b) }}\n"
    text += '<domain: "local", opset_import: ["": 21]> f40 (a) => (c) { c = Relu(a) }'
    with pytest.raises(ModelError, match="expand to more than"):
        from_proto(parsed(text))
