"""Text: what graphs print as, that onnx reads it, and that `parse` takes it back."""

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import (
    DType,
    Graph,
    GraphOutput,
    LazyTensor,
    Node,
    TensorError,
    constant,
    edit,
    sym,
    tensor,
    tensor_type,
)
from planish.ir.convert.proto import from_proto
from planish.ir.equal import difference
from planish.ir.graph import Empty
from planish.ir.text import Names, TextError, graph_text, node_text, parse
from planish.ir.types import UNKNOWN, OptionalType, OtherType, SequenceType

SIMPLE = """\
main (float[batch,4] x) => (float[batch,2] y) <float[4,2] w = {1, 0, 0, 1, 1, 0, 0, 1}, float b = {0.5}> {
  matmul = MatMul (x, w)
  y = Add (matmul, b)
}"""

NESTED = """\
main (bool c, float[N] x) => (float[N] y) <float two = {2}> {
  a = Relu (x)
  y = If (c) <
    then_branch = then () => (float[N] t) {
      s = Neg (a)
      t = Mul (s, two)
    },
    else_branch = other () => (float[N] t) {
      s = Abs (x)
      t = Identity (s)
    }
  >
}"""

LOOP = """\
main (int64 n, float[4] x) => (float[4] last, float[K,4] all) <bool yes = {1}> {
  last, all = Loop (n, yes, x) <
    body = step (int64 i, bool go, float[4] state) => (bool go, float[4] next, float[4] seen) {
      next = Add (state, x)
      seen = Exp (state)
    }
  >
}"""


@pytest.mark.parametrize("text", [SIMPLE, NESTED, LOOP])
def test_prints_what_it_parses(text):
    graph = parse(text)
    assert str(graph) == text
    onnx.parser.parse_graph(text)  # the graph alone is valid input for onnx as well


def test_parse_of_a_print_is_equal():
    for text in (SIMPLE, NESTED, LOOP):
        graph = parse(text)
        assert difference(parse(str(graph)), graph) is None


def test_onnx_checks_what_it_reads():
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]>\n' + SIMPLE)
    onnx.checker.check_model(model, full_check=True)


def test_names_become_unique_identifiers():
    graph = Graph("g")
    x = graph.add_input(tensor_type(DType.FLOAT, 2), "input.1")
    last = x
    for name in ("/a/b:0", "a.b.0", "", "float", "7"):
        node = Node("Neg", [last], results=[x.type])
        node.result.name = name
        edit.insert(node, graph.ret)
        last = node.result
    graph.set_outputs([last], [GraphOutput("out/0")])
    assert str(graph) == (
        'g (float[2] "input.1") => (float[2] "out/0") {\n'
        '  a_b_0 = Neg ("input.1")\n'
        "  a_b_0_1 = Neg (a_b_0)\n"
        "  neg = Neg (a_b_0_1)\n"
        '  "float" = Neg (neg)\n'
        '  "out/0" = Neg ("float")\n'
        "}"
    )
    back = parse(str(graph))
    assert [v.name for v in back.inputs] == ["input.1"]
    assert [o.name for o in back.output_info] == ["out/0"]


def test_outputs_without_a_result_of_their_own():
    graph = Graph("g")
    x = graph.add_input(tensor_type(DType.FLOAT, 2), "x")
    w = constant([1.0, 2.0], name="w")
    node = Node("Neg", [x], results=[x.type])
    edit.insert(node, graph.ret)
    info = [GraphOutput(n) for n in ("x", "renamed", "y", "again", "c", "c2")]
    graph.set_outputs([x, x, node.result, node.result, w, w], info)
    text = str(graph)
    assert "[return] renamed = Identity (x)" in text
    assert "[return] again = Identity (y)" in text
    assert "[return] c2 = Identity (c)" in text
    assert text.count("Identity") == 3
    back = parse(text)
    assert [v.producer.op if v.producer else None for v in back.outputs] == [None, None, "Neg", "Neg", None, None]
    assert len(back) == 1
    assert difference(graph, back) is None


def test_an_identity_of_the_user_stays():
    graph = parse("g (float[2] x) => (float[2] y) { y = Identity (x) }")
    assert [node.op for node in graph] == ["Identity"]


def test_captured_and_repeated_outputs_of_nested_graphs():
    graph = parse(NESTED)
    branch = next(n for n in graph if n.op == "If").graphs[1]
    outer = next(iter(graph)).result
    edit.set_operands(branch.ret, [outer])
    assert "[return] t = Identity (a)" in str(graph)
    back = parse(str(graph))
    assert difference(back, graph) is None


@pytest.mark.parametrize(
    "value", [0.1, 1e-5, 1 / 3, 3.4028235e38, 1e-45, -0.0, float("inf"), float("-inf"), 1.0, 16777217.0]
)
def test_floats_reparse_exactly(value):
    value = float(np.float32(value))
    graph = parse(
        "g (float[2] x) => (float[2] y) <float[2] c = {0, 0}> { y = com.example.F <a = 1.0, l = [1.0]> (x, c) }"
    )
    node = next(iter(graph))
    node.attrs.update(a=value, l=(value, 1.0))
    edit.set_operand(node, 1, constant(np.array([value, value], np.float32)))
    again = next(iter(parse(str(graph))))
    for got in (again.attrs["a"], again.attrs["l"][0], float(again.operands[1].const.numpy()[0])):
        assert np.float32(got).tobytes() == np.float32(value).tobytes()
    assert isinstance(again.attrs["a"], float)
    assert all(isinstance(e, float) for e in again.attrs["l"])


@given(
    st.lists(st.floats(width=64, allow_nan=False), max_size=8), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8)
)
def test_doubles_and_integers_reparse_exactly(floats, integers):
    graph = parse("g (double[n] x, int64[m] y) => () { }")
    a, b = constant(np.array(floats, np.float64)), constant(np.array(integers, np.int64))
    graph.set_outputs([a, b], [GraphOutput("a"), GraphOutput("b")])
    back = parse(str(graph))
    assert back.outputs[0].const.numpy().tobytes() == a.const.numpy().tobytes()
    assert back.outputs[1].const.numpy().tolist() == integers


@pytest.mark.parametrize("dtype", [d for d in DType if d not in (DType.UNDEFINED, DType.STRING)])
def test_constants_of_every_dtype(dtype):
    source = np.array([0, 1, 0, 1, 1], np.int8).astype(dtype.numpy)
    graph = Graph("g")
    graph.set_outputs([constant(source, dtype, "c")])
    back = parse(str(graph)).outputs[0]
    assert back.dtype is dtype
    assert back.const.numpy().tobytes() == source.tobytes()


def test_sub_byte_constants_print_packed():
    graph = Graph("g")
    graph.set_outputs([constant(np.array([1, 2, 3]), DType.INT4, "c")])
    assert "int4[3] c = {33, 3}" in str(graph)


def test_strings():
    words = np.array(['say "hi"', "back\\slash", "line\nbreak", "ünï"], object)
    graph = parse("g (x) => (y) { y = com.example.F (x) }")
    node = next(iter(graph))
    node.attrs.update(s=words[0], l=tuple(words))
    edit.set_operand(node, 1, constant(words))
    again = next(iter(parse(str(graph))))
    assert again.attrs == {"s": words[0], "l": tuple(words)}
    assert again.operands[1].const.numpy().tolist() == words.tolist()


def test_attributes_of_all_kinds():
    attrs = {"i": -3, "f": 1.5, "s": "x", "ints": (1, 2), "floats": (1.0, 2.5), "strings": ("a", "b"), "e": Empty(6)}
    attrs |= {"t": tensor([1.0, 2.0]), "scalar": tensor(1.0), "type": tensor_type(DType.INT8, 2, sym("N"))}
    attrs |= {"seq": SequenceType(tensor_type(DType.FLOAT, sym("N")))}
    graph = parse("g (x) => (y) { y = com.example.F (x) }")
    node = next(iter(graph))
    node.attrs.update(attrs)
    again = next(iter(parse(str(graph)))).attrs
    assert list(again) == list(attrs)
    for name in ("i", "f", "s", "ints", "floats", "strings", "type", "seq"):
        assert again[name] == attrs[name]
        assert type(again[name]) is type(attrs[name])
    assert again["e"].kind == 6
    assert again["t"].numpy().tolist() == [1.0, 2.0]
    assert again["scalar"].shape == ()


def test_large_constants_are_elided():
    graph = Graph("g")
    graph.set_outputs([constant(np.zeros((10, 10), np.float32), name="w")])
    assert str(graph) == 'g () => (float[10,10] w) <float[10,10] w = ["elided": "400 bytes"]> {\n}'
    assert difference(parse(graph_text(graph, limit=None)), graph) is None
    back = parse(str(graph))
    assert str(back) == str(graph)
    with pytest.raises(TensorError, match="'w' was elided"):
        back.outputs[0].const.numpy()


def test_printing_reads_no_large_tensor():
    def explode(*_):
        raise AssertionError("read")

    big = tensor(np.zeros(1 << 17, np.float32))
    graph = Graph("g")
    graph.set_outputs(
        [
            constant(LazyTensor(explode, (), DType.FLOAT, (1000,), "a")),
            constant(LazyTensor(explode, (big,), DType.FLOAT, (), "b")),
        ]
    )
    assert '["elided": "4 bytes"]' in str(graph)


def test_limit_and_comments():
    graph = parse(SIMPLE)
    assert '["elided": "32 bytes"]' in graph_text(graph, limit=4)
    commented = graph_text(graph, types=True)
    assert "matmul = MatMul (x, w)  # float[batch,2]" in commented
    assert difference(parse(commented), graph) is None


def test_node_names():
    graph = parse('g (float x) => (float y) { [n1] a = Neg (x) ["a b"] y = Neg (a) }')
    assert [n.name for n in graph] == ["n1", "a b"]
    assert '["a b"] y = Neg (a)' in graph_text(graph, node_names=True)
    assert "n1" not in str(graph)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (tensor_type(DType.FLOAT), "float"),
        (tensor_type(DType.FLOAT, 2, None, sym("N")), "float[2,?,N]"),
        (tensor_type(DType.INT64, sym("N") * 2 + 1), 'int64["2*N + 1"]'),
        (SequenceType(tensor_type(DType.FLOAT, 2)), "seq(float[2])"),
        (OptionalType(SequenceType(tensor_type(DType.FLOAT, 2))), "optional(seq(float[2]))"),
    ],
)
def test_types(type_, text):
    graph = Graph("g")
    graph.set_outputs([graph.add_input(type_, "x")])
    assert f"({text} x) => ({text} x)" in str(graph)
    assert str(parse(str(graph)).inputs[0].type) == str(type_)


def test_types_that_planish_does_not_look_into():
    types = ("map(int64, float[N])", "sparse_tensor(float[2,3])", "opaque(a.b,c)", "optional(map(string, float))")
    graph = parse(f"g ({', '.join(f'{t} x{i}' for i, t in enumerate(types))}) => () {{}}")
    assert all(t in str(graph).replace('"', "") for t in types)
    assert all(isinstance(v.type, OtherType | OptionalType) for v in graph.inputs)
    back = parse(str(graph))
    assert difference(back, graph) is None


def test_unknown_types_are_left_out():
    graph = Graph("g")
    graph.set_outputs([graph.add_input(UNKNOWN, "x"), graph.add_input(tensor_type(DType.UNDEFINED, 2), "y")])
    assert str(graph) == "g (x, y) => (x, y) {\n}"


def test_types_of_foreign_results_survive():
    text = "g (float[2] x) => (float[2] y) <float[3] b> { a, b = com.example.F (x) y = com.example.G (a, b) }"
    graph = parse(text)
    back = parse(str(graph))
    assert str(next(iter(back)).results[1].type) == "float[3]"
    assert next(iter(back)).results[0].type is UNKNOWN


def test_operator_sets():
    graph = parse('<opset_import: ["": 18, "com.example": 3]> g (float x) => (float y) { y = com.example.F (x) }')
    assert graph.opsets == {"": 18, "com.example": 3}
    assert str(graph).startswith('<opset_import: ["" : 18, "com.example" : 3]>\n')
    assert parse(SIMPLE).opsets == {"": onnx.defs.onnx_opset_version()}
    assert "opset_import" not in str(parse(SIMPLE))


def test_defaults_of_inputs():
    graph = parse("g (float[2] x = {1, 2}) => (float[2] y) { y = Neg (x) }")
    assert graph.inputs[0].default.numpy().tolist() == [1, 2]
    assert str(graph).startswith("g (float[2] x = {1, 2}) =>")


def test_left_out_operands_and_unused_results():
    graph = parse('g (float[4] x, float hi) => (float[4] y) { a = Clip (x, "", hi) y, mask = Dropout (a) }')
    assert next(iter(graph)).operands[1] is None
    assert 'a = Clip (x, "", hi)' in str(graph)
    assert "y, mask = Dropout (a)" in str(graph)


def test_repr_and_node_text():
    graph = parse(NESTED)
    relu, branch = graph
    assert repr(relu) == "<a = Relu (x)>"
    assert node_text(branch) == "y = If <then_branch = {…}, else_branch = {…}> (c)"
    assert node_text(graph.ret) == "return (y)"
    names = Names()
    assert [names[relu.result], names[relu.operands[0]]] == ["a", "x"]


def test_print_of_a_nested_graph():
    branch = next(n for n in parse(NESTED) if n.op == "If").graphs[0]
    assert str(branch).startswith("then () => (float[N] t) <float two = {2}> {\n  s = Neg (a)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: Identifier expected"),
        (
            "g (float x) => (float y) {\n y = Add (x }",
            "line 2, column 13: Expected character ) not found in 'y = Add (x }'",
        ),
        ("g (float x) => (float y) { y = Add (x, z) }", "'z'"),
        ("g () => (float[2] y) <float[2] y = {1}> {}", "'y'"),
        ('g () => (float[2] y) <float[2] y = ["location": "/etc/passwd"]> {}', "cannot refer to files"),
        ("g (float x) => (y) { y = F <a = 99999999999999999999> (x) }", "out of range"),
        ("g (float x) => (y) { y = F <a : tensors = [float {1}]> (x) }", "no list of tensors"),
        ("(" * 1000, "line 1, column 201: brackets nested deeper than 200"),
        ("g (float x) => (y) { y = F <a = @b> (x) }", "'a'"),
    ],
)
def test_errors_are_one_line(text, message):
    with pytest.raises(TextError) as error:
        parse(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_error_place():
    with pytest.raises(TextError) as error:
        parse("g (float x) => (float y) {\n y = Add (x }")
    assert (error.value.line, error.value.column) == (2, 13)


def test_what_does_not_parse_does_not_parse_as_something_else():
    for value in (b"\xff", (b"\xff",), (tensor(1.0),), (tensor_type(DType.FLOAT),)):
        graph = parse("g (x) => (y) { y = com.example.F (x) }")
        next(iter(graph)).attrs["a"] = value
        with pytest.raises(TextError):
            parse(str(graph))


def test_a_model_printed_by_onnx():
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]>\n' + LOOP)
    graph = from_proto(model)
    assert difference(graph, parse(onnx.printer.to_text(model))) is None
