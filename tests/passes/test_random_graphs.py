"""Whole passes on random graphs: what rules do to each other's results."""

import pytest

from planish.ir import op
from planish.passes import RewritePass, rule
from planish.testing import check_pass, check_pass_on_random_graphs, random_graph


@pytest.mark.parametrize("part", range(4))
def test_simplify(part):
    assert check_pass_on_random_graphs("simplify", graphs=100, seed=100 * part) > 50


@pytest.mark.parametrize("pipeline", ["fold-constants", "eliminate-common-subexpressions", "eliminate-dead-code"])
def test_single_pass(pipeline):
    assert check_pass_on_random_graphs(pipeline, graphs=60, seed=1000) > 30


def test_simplifying_twice_changes_nothing_more():
    for seed in range(2000, 2060):
        instance = random_graph(seed)
        once = check_pass("simplify", instance.graph, instance.inputs)
        twice = check_pass("simplify", once, instance.inputs)
        assert len(list(twice.walk())) == len(list(once.walk())), str(once)


def test_wrong_pass_is_caught():
    @rule("Relu")
    def relu_is_abs(node):
        return op.Abs(node.operands[0])

    class Wrong(RewritePass):
        rules = (relu_is_abs,)

    with pytest.raises(AssertionError, match=r"off by|elements differ"):
        check_pass_on_random_graphs(Wrong(), graphs=100)


def test_same_seed_same_graph():
    assert str(random_graph(3).graph) == str(random_graph(3).graph)
    assert str(random_graph(3).graph) != str(random_graph(4).graph)
