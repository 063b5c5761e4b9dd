"""The generated differential test of every rule below `planish.passes`: nobody lists them, importing finds them."""

import importlib

import pytest

from planish.passes import Pass
from planish.passes.simplify.fold_constants import fold_rule
from planish.testing import all_rules, check_rule
from planish.testing.discover import modules_below

RULES = all_rules()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule(rule):
    check_rule(rule)


def test_rule_for_every_operator():
    """Constant folding, the one rule that a context makes, on all operators there are samplers for."""
    check_rule(fold_rule(), examples=200)


def test_discovery_finds_rules():
    assert len(RULES) > 60


def test_names_are_unique():
    names = [rule.name for rule in RULES]
    assert sorted(names) == sorted(set(names))


def test_every_rule_of_every_pass_is_tested():
    passes = {
        found
        for module in modules_below(importlib.import_module("planish.passes"))
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Pass) and hasattr(found, "rules")
    }
    assert passes
    for found in passes:
        missing = [rule.name for rule in found().rules if rule not in RULES]
        assert not missing, f"{found.pass_name()} has rules that are no module's attribute: {missing}"
