"""Bisection to a rewrite, and reduction to a small model."""

import pytest

from planish.ir import DType, Graph, edit, op, tensor_type
from planish.ir.verify import verify
from planish.passes import Context, Fixpoint, Pass, Pipeline, RewritePass, rule
from planish.passes.bisect import bisect, find_first
from planish.passes.reduce import ancestors, extract, minimize, neighbourhoods


@rule(lambda x: op.Neg(op.Neg(x)))
def neg_twice(x):
    return x


@rule(lambda x: op.Abs(x))
def wrong_abs(x):
    return op.Relu(x)


class Wrong(RewritePass):
    rules = (neg_twice, wrong_abs)


class Right(RewritePass):
    rules = (neg_twice,)


class Raises(Pass):
    def run(self, graph, ctx):
        raise ValueError("on\npurpose")


class Cuts(Pass):
    def run(self, graph, ctx):
        edit.set_operands(graph.ret, (graph.inputs[0],))


def chain(*ops):
    graph = Graph("g", opsets={"": 20})
    value = graph.add_input(tensor_type(DType.FLOAT, 4), "x")
    for name in ops:
        value = getattr(op, name)(value)
    edit.insert_floating([value], graph.ret)
    graph.set_outputs([value])
    graph.output_info[0].name = "y"
    return graph


def lacks_abs(count):
    return lambda graph: sum(n.op == "Abs" for n in graph.nodes) < count


def test_the_first_wrong_rewrite_is_found_and_the_graph_is_as_before():
    graph = chain("Neg", "Neg", "Abs", "Neg", "Neg", "Abs")
    before = str(graph)
    number, replacement = bisect(Wrong(), graph, Context(), lacks_abs(2))
    assert replacement.rule.name == "wrong-abs"
    assert replacement.roots[0] is next(n for n in graph.nodes if n.op == "Abs")
    assert number >= 1
    assert str(graph) == before
    number_of_second, second = bisect(Wrong(), graph, Context(), lacks_abs(1))
    assert number_of_second > number
    assert second.roots[0] is not replacement.roots[0]
    verify(graph)


def test_nothing_is_found_where_nothing_fails():
    assert bisect(Wrong(), chain("Abs"), Context(), lambda graph: False) is None


@pytest.mark.parametrize("pipeline", [Pipeline(Right(), Wrong()), Pipeline(Fixpoint((Right(), Wrong())))])
def test_the_pass_at_fault_is_found(pipeline):
    graph = chain("Neg", "Neg", "Abs")
    culprit = find_first(pipeline, graph, Context(), lacks_abs(1))
    assert culprit.pass_ == Wrong()
    assert culprit.replacement.rule.name == "wrong-abs"
    assert (culprit.number, culprit.total) == (1, 1)
    assert [n.op for n in graph.nodes] == ["Abs"]  # as the pass before left it


def test_exceptions_and_edits_that_are_no_rewrites():
    raising = find_first(Pipeline(Raises()), chain("Abs"), Context(), lambda graph: False)
    assert (raising.replacement, raising.error) == (None, "ValueError: on purpose")
    graph = chain("Abs")
    cutting = find_first(Pipeline(Cuts()), graph, Context(), lambda g: g.outputs[0] is g.inputs[0])
    assert (cutting.pass_, cutting.replacement, cutting.number) == (Cuts(), None, 0)
    assert graph.outputs[0] is not graph.inputs[0]


def test_find_first_ends_without_a_failure():
    graph = chain("Neg", "Neg", "Neg")
    assert find_first(Pipeline(Fixpoint((Right(),))), graph, Context(), lambda g: False) is None
    assert [n.op for n in graph.nodes] == ["Neg"]


def test_extract_cuts_at_inputs_and_outputs():
    graph = chain("Abs", "Neg", "Relu", "Exp")
    nodes = list(graph.nodes)
    part = extract(nodes[1:3])
    verify(part.graph)
    assert [n.op for n in part.graph.nodes] == ["Neg", "Relu"]
    assert list(part.inputs.values()) == [nodes[0].result]
    assert part.graph.inputs[0].type == nodes[0].result.type
    assert len(part.graph.outputs) == 1


def test_extract_keeps_constants_and_captures_of_nested_graphs():
    from planish.ir.builder import subgraph

    graph = Graph("g", opsets={"": 20})
    x = graph.add_input(tensor_type(DType.FLOAT, 4), "x")
    flag = graph.add_input(tensor_type(DType.BOOL), "flag")
    inner = op.Neg(x) * 2.0
    edit.insert_floating([inner], graph.ret)
    then = subgraph("then", [], lambda: op.Abs(inner))
    other = subgraph("else", [], lambda: op.Relu(inner))
    out = op.If(flag, then_branch=then, else_branch=other)
    edit.insert_floating([out], graph.ret)
    graph.set_outputs([out])
    graph.output_info[0].name = "y"
    verify(graph)
    part = extract([out.producer])
    verify(part.graph)
    assert set(part.inputs.values()) == {flag, inner}
    assert set(ancestors([out])) == set(graph.nodes)


def test_neighbourhoods_grow_to_everything_connected():
    graph = chain("Abs", "Neg", "Relu", "Exp")
    nodes = list(graph.nodes)
    sizes = [len(near) for near in neighbourhoods([nodes[1]])]
    assert sizes == [1, 3, 4]


def test_minimize_keeps_what_is_needed():
    nodes = list(chain(*["Neg"] * 20).nodes)
    needed = {nodes[3], nodes[17]}
    tests = []

    def fails(chosen):
        tests.append(len(chosen))
        return needed <= set(chosen)

    assert set(minimize(nodes, fails)) == needed
    assert len(tests) < 100
