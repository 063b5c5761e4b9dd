"""What nobody has to write, and what the generated test cannot know."""

import planish_scales
import pytest

from planish.testing import assert_rewrites, check_rule, rules_of


@pytest.mark.parametrize("rule", rules_of(planish_scales), ids=lambda rule: rule.name)
def test_rule(rule):
    check_rule(rule)


def test_positive_scale_moves():
    assert_rewrites(
        "main (float[2,4] x) => (y) <float two = {2}> { a = Relu (x)  y = Mul (a, two) }",
        planish_scales.MoveScales(),
        "main (float[2,4] x) => (y) <float two = {2}> { a = Mul (x, two)  y = Relu (a) }",
    )


def test_negative_scale_stays():
    assert_rewrites(
        "main (float[2,4] x) => (y) <float two = {-2}> { a = Relu (x)  y = Mul (a, two) }",
        planish_scales.MoveScales(),
        None,
    )
