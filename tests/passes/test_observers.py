"""Each observer by itself, and verification that takes back what is wrong."""

import numpy as np
import pytest

from planish.backends.base import backend
from planish.ir import DType, Graph, edit, op, tensor_type
from planish.passes import Context, Lossy, Pass, Pipeline, RewritePass, rule
from planish.passes.observers import DumpIR, Explain, Limit, Progress, Timing, Verify
from planish.passes.observers.explain import near_misses, rules_of


@rule(lambda x: op.Relu(op.Relu(x)))
def relu_twice(x):
    return op.Relu(x)


@rule(lambda x: op.Abs(x))
def wrong_abs(x):
    return op.Neg(x)


@rule(lambda x: op.Abs(x), numerics=Lossy())
def lossy_abs(x):
    return op.Neg(x)


class Good(RewritePass):
    rules = (relu_twice,)


class Mixed(RewritePass):
    rules = (relu_twice, wrong_abs)


class Rough(RewritePass):
    rules = (lossy_abs,)


class WrongEdit(Pass):
    """Wrong without any rewrite."""

    def run(self, graph, ctx):
        edit.set_operands(graph.ret, (graph.inputs[0],))


def chain(*ops, dtype=DType.FLOAT):
    graph = Graph("g", opsets={"": 20})
    value = graph.add_input(tensor_type(dtype, 4), "x")
    for name in ops:
        value = getattr(op, name)(value)
    edit.insert_floating([value], graph.ret)
    graph.set_outputs([value])
    graph.output_info[0].name = "y"
    return graph


def ops_of(graph):
    return [n.op for n in graph.nodes]


def run(graph, pipeline, *observers):
    ctx = Context(lambda: backend("reference"), list(observers))
    pipeline.run(graph, ctx)
    return ctx


SAMPLE = {"x": np.array([-2.0, -1.0, 1.0, 3.0], np.float32)}


def test_verify_disables_the_wrong_rule_and_keeps_the_right_one():
    graph = chain("Abs", "Relu", "Relu", "Abs")
    verify = Verify([SAMPLE])
    ctx = run(graph, Pipeline(Mixed()), verify)
    assert ops_of(graph) == ["Abs", "Relu", "Abs"]
    (result,) = ctx.results
    assert list(result.disabled) == ["wrong-abs"]
    assert "output 'y' changes by" in result.disabled["wrong-abs"]
    assert dict(result.fired) == {"relu-twice": 1}
    assert result.problem == ""


def test_verify_takes_back_a_pass_whose_edits_are_wrong():
    graph = chain("Abs", "Relu", "Relu")
    ctx = run(graph, Pipeline(WrongEdit(), Good()), Verify([SAMPLE]))
    assert ops_of(graph) == ["Abs", "Relu"]
    assert ctx.results[0].problem.startswith("rolled back: output 'y' changes by")
    assert ctx.results[1].problem == ""


def test_lossy_rules_have_no_bound_but_later_passes_are_compared_with_what_they_left():
    graph = chain("Abs", "Relu", "Relu")
    verify = Verify([SAMPLE])
    ctx = run(graph, Pipeline(Rough(), Good()), verify)
    assert ops_of(graph) == ["Neg", "Relu"]
    assert not any(r.problem or r.disabled for r in ctx.results)
    assert verify.tolerance(ctx) is None


def test_the_tolerance_is_that_of_the_passes_that_stand():
    verify = Verify([SAMPLE])
    ctx = run(chain("Relu", "Relu"), Pipeline(Good(), Good(), WrongEdit()), verify)
    assert verify.tolerance(ctx) == pytest.approx(1e-5)
    strict = Verify([SAMPLE], tolerance=0.5)
    assert strict.tolerance(ctx) == 0.5


def test_half_precision_is_not_held_to_single_precision():
    @rule(lambda x: op.Tanh(x))
    def tanh_by_hand(x):
        e = op.Exp(x * 2)
        return (e - 1) / (e + 1)

    class Tanhs(RewritePass):
        rules = (tanh_by_hand,)

    graph = chain("Tanh", dtype=DType.FLOAT16)
    sample = {"x": np.array([0.1, 0.5, -0.3, 1.0], np.float16)}
    ctx = run(graph, Pipeline(Tanhs()), Verify([sample]))
    assert not ctx.results[0].disabled


def test_a_graph_that_no_longer_runs_is_taken_back():
    @rule(lambda x: op.Relu(x))
    def to_unknown(x):
        return op.domain("nowhere").Nothing(x)

    class Unknowns(RewritePass):
        rules = (to_unknown,)

    graph = chain("Relu")
    ctx = run(graph, Pipeline(Unknowns()), Verify([SAMPLE]))
    assert ops_of(graph) == ["Relu"]
    assert "no longer runs" in ctx.results[0].disabled["to-unknown"]


def test_limit_stops_after_a_number_of_rewrites():
    graph = chain("Relu", "Relu", "Relu", "Relu")
    run(graph, Pipeline(Good(), Good()), Limit(2))
    assert ops_of(graph) == ["Relu", "Relu"]


def test_timing_and_progress_talk():
    lines = []
    run(chain("Relu", "Relu"), Pipeline(Good()), Timing(lines.append), Progress(lines.append))
    assert any("2 ->      1 nodes  good" in line for line in lines)
    assert "good" in lines


def test_dump_ir_numbers_its_files(tmp_path):
    run(chain("Relu", "Relu"), Pipeline(Good(), Good()), DumpIR(tmp_path / "dumps"))
    assert sorted(p.name for p in (tmp_path / "dumps").iterdir()) == ["000-input.txt", "001-good.txt"]
    assert (tmp_path / "dumps" / "000-input.txt").read_text().count("Relu") == 2
    assert (tmp_path / "dumps" / "001-good.txt").read_text().count("Relu") == 1


def test_explain_tells_sites_without_what_was_taken_back():
    explain = Explain()
    ctx = run(chain("Abs", "Relu", "Relu"), Pipeline(Mixed()), Verify([SAMPLE]), explain)
    assert [(s.rule, s.nodes.split()[0]) for s in explain.sites(ctx)] == [("relu-twice", "Relu")]


def test_near_misses_say_what_was_missing():
    @rule(lambda x, y: op.Relu(op.Add(op.Neg(x), y)))
    def deep(x, y):
        return None

    class Deep(RewritePass):
        rules = (deep,)

    graph = chain("Abs", "Neg", "Relu")
    value = graph.outputs[0]
    total = op.Relu(op.Add(value, value))
    edit.insert_floating([total], graph.ret)
    edit.set_operands(graph.ret, (total,))
    misses = near_misses(graph, rules_of(Pipeline(Deep(), Deep())))
    (miss,) = [m for m in misses if m.is_close]
    assert (miss.rule, miss.reached, miss.size) == ("deep", 2, 3)
    assert miss.reason == "Relu where Neg is expected"
    assert "2 of 3 nodes match" in str(miss)
