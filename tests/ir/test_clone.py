"""Clones: what is copied, what is shared, and inlining."""

import pytest

from planish.ir import Graph, GraphOutput, constant, edit, op
from planish.ir.clone import clone_graph, clone_node, inline_graph
from planish.ir.equal import difference, equal
from planish.ir.text import parse
from planish.ir.verify import verify

TEXT = """g (float[N,4] x, bool c, float[4] q = {0, 0, 0, 0}) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}> {
  a = Add (x, w)
  y = If (c) <
    then_branch = t () => (u) { m = Neg (a) u = Mul (m, w) },
    else_branch = f () => (u) {
      k = Identity (c)
      u = If (k) <then_branch = t2 () => (v) { v = Abs (a) }, else_branch = e2 () => (v) { v = Sub (x, q) }>
    }
  >
}"""


def values_of(graph):
    for inner in graph.walk_graphs():
        yield from inner.inputs
        for node in inner.nodes:
            yield from node.results


def test_root():
    graph = parse(TEXT)
    graph.doc, graph.metadata["k"], graph.info["producer_name"] = "doc", "v", "me"
    node = next(iter(graph))
    node.rules, node.doc, node.metadata, node.overload = ("fuse",), "text", {"a": "b"}, "v2"
    node.result.content, node.result.metadata = (1, 2), {"c": "d"}
    copy = clone_graph(graph)
    verify(copy, types=False)
    verify(graph, types=False)
    assert str(copy) == str(graph)
    assert difference(copy, graph) is None
    assert not {*graph.walk()} & {*copy.walk()}
    assert not {*values_of(graph), *graph.constants()} & {*values_of(copy), *copy.constants()}
    assert [c.const for c in copy.constants()] == [c.const for c in graph.constants()]
    assert copy.inputs[2].default is graph.inputs[2].default
    assert (copy.doc, copy.metadata, copy.info, copy.opsets) == (graph.doc, graph.metadata, graph.info, graph.opsets)
    twin = next(iter(copy))
    assert (twin.rules, twin.doc, twin.metadata, twin.overload) == (node.rules, node.doc, node.metadata, node.overload)
    assert (twin.result.content, twin.result.metadata, twin.result.type) == ((1, 2), {"c": "d"}, node.result.type)


def test_copies_are_independent():
    graph = parse(TEXT)
    text = str(graph)
    copy = clone_graph(graph)
    copy.output_info[0].name = "z"
    first = next(iter(copy))
    first.attrs["new"] = 1
    edit.set_operand(first, 1, copy.inputs[2])
    copy.opsets[""] = 5
    copy.info["x"] = 1
    assert str(graph) == text
    verify(graph)


def test_mapping_names_every_copy():
    graph = parse(TEXT)
    mapping = {}
    copy = clone_graph(graph, mapping)
    assert mapping[graph.inputs[0]] is copy.inputs[0]
    assert {*values_of(copy)} <= {*mapping.values()}


def test_node_floats():
    graph = parse(TEXT)
    node = next(iter(graph))
    uses = node.operands[0].use_count
    mapping = {graph.inputs[0]: graph.inputs[2]}
    copy = clone_node(node, mapping)
    assert copy.graph is None
    assert copy.operands == (graph.inputs[2], node.operands[1])
    assert mapping[node.result] is copy.result
    assert node.operands[0].use_count == uses
    assert copy.result.type == node.result.type


def test_node_with_nested_graphs():
    graph = parse(TEXT)
    branch = list(graph)[1]
    a = next(iter(graph)).result
    mapping = {a: graph.inputs[0]}
    copy = clone_node(branch, mapping)
    edit.insert(copy, graph.ret)
    assert next(iter(copy.graphs[0])).operands[0] is graph.inputs[0]
    assert next(iter(branch.graphs[0])).operands[0] is a
    edit.set_operands(graph.ret, [copy.result])
    verify(graph)
    edit.set_operands(graph.ret, [branch.result])
    edit.erase(copy)
    verify(graph)
    assert difference(graph, parse(TEXT)) is None


def test_nested_graph_shares_constants_and_captures():
    graph = parse(TEXT)
    branch = list(graph)[1]
    body = clone_graph(branch.graphs[0])
    assert body.parent is None
    assert [n.op for n in body] == ["Neg", "Mul"]
    assert body.constants()[0] is branch.graphs[0].constants()[0]
    edit.set_attr(branch, "then_branch", body)
    verify(graph)
    assert difference(graph, parse(TEXT)) is None


def test_inline():
    graph = parse(TEXT)
    branch = list(graph)[1]
    with edit.transaction(graph) as journal:
        (value,) = inline_graph(branch.graphs[0], [], branch)
        edit.replace(branch.result, value)
        edit.erase(branch)
        verify(graph)
        expected = parse(
            "g (float[N,4] x, bool c, float[4] q = {0, 0, 0, 0}) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}>"
            "{ a = Add (x, w) m = Neg (a) y = Mul (m, w) }"
        )
        assert difference(graph, expected) is None
        journal.rollback()
    verify(graph)
    assert difference(graph, parse(TEXT)) is None


def test_inline_with_inputs():
    graph = parse(
        "g (int64 n, bool c, float[2] x) => (float[2] y) { y = Loop (n, c, x) <"
        "body = b (int64 i, bool go, float[2] s) => (bool go, float[2] t) { t = Neg (s) }> }"
    )
    loop = next(iter(graph))
    go, value = inline_graph(loop.graphs[0], graph.inputs, loop)
    assert go is graph.inputs[1]
    assert value.producer.operands == (graph.inputs[2],)
    with pytest.raises(ValueError, match="2 values for the 3 inputs"):
        inline_graph(loop.graphs[0], graph.inputs[:2], loop)


def test_a_constant_returned():
    graph = Graph("g")
    graph.set_outputs([constant(1.0, name="w")], [GraphOutput("y")])
    copy = clone_graph(graph)
    assert copy.outputs[0] is not graph.outputs[0]
    assert equal(copy, graph)
    verify(copy)
    verify(graph)


def test_floating_operands_stay():
    x = Graph("g").add_input(parse(TEXT).inputs[0].type, "x")
    value = op.Neg(op.Abs(x))
    copy = clone_node(value.producer, {})
    assert copy.operands == value.producer.operands
