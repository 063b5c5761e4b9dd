"""`planish.optimize`: what it promises about its result."""

import numpy as np
import pytest

import planish
from planish.ir import DType, constant, edit, op, sym, tensor_type
from planish.optimizer import optimize
from planish.passes import Pass, Pipeline, RewritePass, rule


@rule(lambda x: op.Relu(x))
def wrong_relu(x):
    return op.Abs(x)


@rule(lambda x: op.Relu(op.Relu(x)))
def relu_twice(x):
    return op.Relu(x)


class Wrong(RewritePass):
    rules = (relu_twice, wrong_relu)


class Slow(Pass):
    """The same value, by way of a needless product of large matrices."""

    def run(self, graph, ctx):
        old = graph.outputs[0]
        large = constant(np.ones((700, 700), np.float32))
        big = op.MatMul(op.Reshape(op.ReduceSum(graph.inputs[0]), [1, 1]) * large, large)
        new = old + op.ReduceMax(op.Mul(op.Identity(big), 0.0), keepdims=0)
        edit.insert_floating([new], graph.ret)
        edit.set_operands(graph.ret, (new,))


def ops_of(graph):
    return [n.op for n in graph.nodes]


def test_the_original_stays_and_the_result_is_smaller(tiny):
    graph = tiny.mlp()
    before = str(graph)
    result = optimize(graph)
    assert str(graph) == before
    assert len(result.graph) < len(graph)
    report = result.report
    assert report.ok
    assert report.changed
    assert report.verification.verdict == "passed"
    assert report.verification.source == "synthesized"
    assert report.verification.samples == 2
    assert report.latency is not None
    assert (report.before.nodes, report.after.nodes) == (len(graph), len(result.graph))


@pytest.mark.parametrize("mode", ["end", "each"])
def test_a_wrong_rule_is_rolled_back_and_named(tiny, mode):
    graph = tiny.mlp()
    result = optimize(graph, Pipeline(Wrong()), verify=mode, measure=False)
    assert result.report.ok
    assert ops_of(result.graph).count("Relu") == 1
    assert "Abs" not in ops_of(result.graph)
    ((what, reason),) = result.report.rolled_back
    assert what == "rule wrong-relu of wrong"
    assert "output 'y' changes by" in reason
    assert result.report.verification.difference < 1e-6
    assert "rule wrong-relu of wrong" in str(result.report)


def test_without_verification_nobody_notices(tiny):
    result = optimize(tiny.mlp(), Pipeline(Wrong()), verify="off", measure=False)
    assert "Abs" in ops_of(result.graph)
    assert result.report.verification.verdict == "off"


def test_what_became_slower_is_not_kept(tiny):
    result = optimize(tiny.mlp(), Pipeline(Slow()))
    assert result.report.ok
    assert ops_of(result.graph) == ops_of(tiny.mlp())
    assert result.report.fallback.startswith("to the original")
    assert result.report.latency.is_slower


def test_only_the_pass_that_made_it_slower_is_left_out(tiny):
    result = optimize(tiny.mlp(), Pipeline("simplify", Slow()))
    assert result.report.fallback.startswith("without slow")
    assert len(result.graph) < len(tiny.mlp())


def test_nothing_is_said_to_be_nothing(tiny):
    graph = tiny.graph(lambda x: op.Relu(x), ("x", tensor_type(DType.FLOAT, 3)))
    report = optimize(graph, "simplify").report
    assert not report.changed
    assert "Nothing changed" in str(report)
    assert report.notes == ["not measured: nothing changed"]


def test_near_misses_are_told_when_nothing_fires(tiny):
    graph = tiny.graph(
        lambda a, b: op.MatMul(a, b) + tiny.weights(5),
        ("a", tensor_type(DType.FLOAT, 2, 3, 4)),
        ("b", tensor_type(DType.FLOAT, 4, 5)),
    )
    report = optimize(graph, "simplify", measure=False).report
    assert any("Gemm takes matrices" in miss for miss in report.near_misses)
    assert "The nearest misses" in str(report)


def test_expectations_count_operators_and_rules(tiny):
    report = optimize(
        tiny.mlp(), "simplify", measure=False, expect=["matmul>=1", "Relu==1", "relu-of-relu>0", "Conv<1"]
    ).report
    assert report.ok
    assert [e.holds for e in report.expectations] == [True] * 4
    failed = optimize(tiny.mlp(), "simplify", measure=False, expect=["Attention>=1"]).report
    assert not failed.ok
    assert "Attention>=1: NO, there are 0" in failed.failure
    for bad in ("Relu", "Relu>=many", "Nonsense>=1"):
        with pytest.raises(planish.PlanishError, match="expectation"):
            optimize(tiny.mlp(), "simplify", measure=False, expect=[bad])


def test_data_of_the_user_are_used(tiny):
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((n, 8)).astype(np.float32)} for n in (1, 3, 5)]
    verification = optimize(tiny.mlp(), data=data, measure=False).report.verification
    assert (verification.source, verification.samples) == ("given", 3)


def test_nan_on_both_sides_is_equal_and_reported(tiny):
    graph = tiny.graph(lambda x: op.Log(op.Relu(op.Relu(x)) - 1e6), ("x", tensor_type(DType.FLOAT, 3)))
    verification = optimize(graph, "simplify", measure=False).report.verification
    assert verification.verdict == "passed"
    assert "NaN or infinity in y" in verification.note


def test_a_model_with_random_numbers_is_not_held_to_more_than_its_own_runs(tiny):
    def build(x):
        return op.Add(op.Relu(op.Relu(x)), op.RandomUniformLike(x))

    graph = tiny.graph(build, ("x", tensor_type(DType.FLOAT, 100)))
    report = optimize(graph, "simplify", measure=False).report
    assert report.verification.verdict == "passed"
    assert "two runs of the original differ" in report.verification.note
    assert not report.rolled_back


def test_an_original_that_differs_from_its_file_is_told_from_a_wrong_pass(tiny, model, monkeypatch):
    from planish import comparison

    real = comparison.compile_model
    other = tiny.graph(lambda x: op.MatMul(x, tiny.weights(8, 4)), ("x", tensor_type(DType.FLOAT, sym("batch"), 8)))
    monkeypatch.setattr(comparison, "compile_model", lambda m, g, e: real(None, other if m is not None else g, e))
    report = optimize(model, "fold-constants", measure=False).report
    assert not report.ok
    assert "before any pass" in report.failure


def test_a_model_that_does_not_run_is_checked_in_structure_only_and_that_is_said(tiny):
    def build(x):
        return op.domain("nowhere").Unknown(op.Relu(op.Relu(x)))

    graph = tiny.graph(build, ("x", tensor_type(DType.FLOAT, 3)))
    report = optimize(graph, "simplify").report
    assert report.verification.verdict == "structure"
    assert "does not run" in report.verification.note
    assert ops_of(report and optimize(graph, "simplify").graph).count("Relu") == 1
    assert any(note.startswith("not measured") for note in report.notes)


def test_sizes_count_contractions_exactly(tiny):
    report = optimize(tiny.mlp(), data={"x": np.zeros((3, 8), np.float32)}, measure=False).report
    assert report.after.parameters == 8 * 16 + 16 * 4 + 4
    products = 2 * 3 * (8 * 16 + 16 * 4)
    assert products <= report.after.flops <= products + 3 * (16 + 4)


def test_the_report_is_json_and_text(tiny):
    import json

    report = optimize(tiny.mlp()).report
    facts = json.loads(json.dumps(report.to_dict()))
    assert facts["ok"] is True
    assert facts["fired"]["relu-of-relu"] == 1
    assert facts["latency"]["speedup"] > 0
    for word in ("nodes", "parameters", "weight bytes", "FLOPs", "latency", "verified", "relu-of-relu"):
        assert word in str(report)
