"""Passes: pipelines, rewrite rules, observers, and one folder per family of passes. Imports `planish.ir` only."""

from .base import Context, Failure, Observer, Pass, PassError, PassResult, RewritePass, Runner
from .numerics import Exact, Lossy, Within, within
from .pattern import const, either, optional, scalar, shared, typed
from .pipeline import Fixpoint, Pipeline, PipelineError
from .rules import NoMatch, Rule, require, rule

__all__ = [
    "Context",
    "Exact",
    "Failure",
    "Fixpoint",
    "Lossy",
    "NoMatch",
    "Observer",
    "Pass",
    "PassError",
    "PassResult",
    "Pipeline",
    "PipelineError",
    "RewritePass",
    "Rule",
    "Runner",
    "Within",
    "const",
    "either",
    "optional",
    "require",
    "rule",
    "scalar",
    "shared",
    "typed",
    "within",
]
