"""Tests that nobody has to write: every rule is tested on random instances of its left side.

In a package with rules of its own, this is all there is to do::

    import pytest
    from planish.testing import check_rule, rules_of
    import my_rules

    @pytest.mark.parametrize("rule", rules_of(my_rules), ids=lambda r: r.name)
    def test_rule(rule):
        check_rule(rule)

``python -m planish.testing [RULE ...]`` checks planish's own.
"""

from .check import RuleError, RuleReport, VacuousRule, check_rule, rules_of
from .discover import all_rules
from .graphs import assert_rewrites, check_pass, check_pass_on_random_graphs
from .instances import random_graph
from .samplers import sampler
from .samplers_nn import __name__ as _registered  # noqa: F401

__all__ = [
    "RuleError",
    "RuleReport",
    "VacuousRule",
    "all_rules",
    "assert_rewrites",
    "check_pass",
    "check_pass_on_random_graphs",
    "check_rule",
    "random_graph",
    "rules_of",
    "sampler",
]
