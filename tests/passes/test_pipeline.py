"""Pipelines as text and as objects, and what becomes of passes that fail."""

from dataclasses import dataclass

import pytest

from planish.ir import DType, Graph, edit, op, tensor_type
from planish.passes import Context, Fixpoint, Observer, Pass, PassError, Pipeline, PipelineError, RewritePass, rule


@rule(lambda x: op.Relu(op.Relu(x)))
def relu_twice(x):
    return op.Relu(x)


@rule(lambda x: op.Neg(op.Neg(x)))
def neg_twice(x):
    return x


class Relus(RewritePass):
    rules = (relu_twice,)


class Negs(RewritePass):
    rules = (neg_twice,)


@dataclass(frozen=True)
class Broken(Pass):
    """Changes the graph, then raises."""

    def run(self, graph, ctx):
        edit.set_operands(graph.ret, (graph.inputs[0],))
        raise PassError("on purpose")


def chain(*ops):
    graph = Graph("g", opsets={"": 20})
    value = graph.add_input(tensor_type(DType.FLOAT, 2), "x")
    for name in ops:
        value = getattr(op, name)(value)
    edit.insert_floating([value], graph.ret)
    graph.set_outputs([value])
    return graph


def ops_of(graph):
    return [n.op for n in graph.nodes]


@pytest.mark.parametrize(
    "text", ["simplify", "simplify,fixpoint(simplify)", "fixpoint(simplify,fold-constants),simplify"]
)
def test_text_and_objects_are_the_same(text):
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_recipes_are_abbreviations():
    assert "simplify" in str(Pipeline.parse("default"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simplifi", "did you mean simplify"),
        ("simplify,", "expected the name of a pass"),
        ("simplify{", "expected the name"),
        ("simplify{speed=3}", "no option 'speed'"),
        ("fixpoint(simplify", r"expected '\)'"),
        ("simplify)", "expected ',' or the end"),
        ("", "expected the name of a pass"),
    ],
)
def test_bad_text_says_where_and_what(text, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(text)


def test_passes_run_in_order_and_leave_records():
    graph = chain("Relu", "Relu", "Neg", "Neg")
    ctx = Context()
    Pipeline(Relus(), Negs()).run(graph, ctx)
    assert ops_of(graph) == ["Relu"]
    assert [dict(r.fired) for r in ctx.results] == [{"relu-twice": 1}, {"neg-twice": 1}]


def test_fixpoint_runs_until_nothing_changes():
    graph = chain("Relu", "Neg", "Neg", "Relu")
    ctx = Context()
    Fixpoint((Relus(), Negs())).run(graph, ctx)
    assert ops_of(graph) == ["Relu"]
    assert ctx.results[-1].edits == 0


def test_a_failing_pass_is_taken_back_and_the_others_run():
    graph = chain("Relu", "Relu")
    before = str(graph)
    ctx = Context()
    Pipeline(Broken()).run(graph, ctx)
    assert str(graph) == before
    assert ctx.results[0].problem == "rolled back: PassError: on purpose"
    Pipeline(Broken(), Relus()).run(graph, ctx)
    assert ops_of(graph) == ["Relu"]


def test_an_observer_may_veto_passes_and_rewrites():
    class NoPass(Observer):
        def before_pass(self, pass_, graph, ctx):
            return False

    class NoRewrite(Observer):
        def before_rewrite(self, replacement, ctx):
            return replacement.rule.name != "relu-twice"

    for observer, left in ((NoPass(), ["Relu", "Relu", "Neg", "Neg"]), (NoRewrite(), ["Relu", "Relu"])):
        graph = chain("Relu", "Relu", "Neg", "Neg")
        Pipeline(Relus(), Negs()).run(graph, Context(observers=[observer]))
        assert ops_of(graph) == left


def test_disabled_rules_do_not_fire():
    graph = chain("Relu", "Relu")
    Pipeline(Relus()).run(graph, Context(disabled={"relu-twice"}))
    assert ops_of(graph) == ["Relu", "Relu"]
