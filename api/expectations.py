"""Expectations: ``Attention>=12`` is about the operators of the result, ``relu-of-relu>0`` about rules that fired."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from planish.ir import Graph
from planish.ir.errors import PlanishError
from planish.passes import Pass

__all__ = ["Expectation", "Outcome", "check", "parse"]

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*([\w.\-]+)\s*(>=|<=|==|=|>|<)\s*(\d+)\s*")


@dataclass(frozen=True)
class Expectation:
    """A count that the result must have: of an operator, or of the times that a rule fired."""

    name: str
    comparison: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.number}"


@dataclass(frozen=True)
class Outcome:
    """An expectation, what was there, and whether it holds."""

    expectation: str
    actual: int
    holds: bool

    def __str__(self) -> str:
        return f"{self.expectation}: {'yes' if self.holds else 'NO'}, there are {self.actual}"


def parse(text: str) -> Expectation:
    """The expectation that ``text`` states.

    Raises:
        PlanishError: it is none.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise PlanishError(f"expectation {text!r}: write NAME>=NUMBER (or <=, ==, >, <), such as Attention>=12")
    name, comparison, number = found.groups()
    return Expectation(name, "==" if comparison == "=" else comparison, int(number))


def check(expectations: Iterable[Expectation], graph: Graph, fired: Counter[str], pipeline: Pass) -> list[Outcome]:
    """Compare ``expectations`` with the result: operators of ``graph`` (in any case), or else rules that have fired.

    Raises:
        PlanishError: a name is neither that of an operator nor of a rule of ``pipeline``.
    """
    ops = Counter(node.op.lower() for node in graph.walk())
    outcomes = []
    for expectation in expectations:
        actual = _count(expectation.name, ops, fired, pipeline)
        holds = _COMPARISONS[expectation.comparison](actual, expectation.number)
        outcomes.append(Outcome(str(expectation), actual, holds))
    return outcomes


def _count(name: str, ops: Counter[str], fired: Counter[str], pipeline: Pass) -> int:
    if name in fired:
        return fired[name]
    if name.lower() in ops:
        return ops[name.lower()]
    if not _exists(name, pipeline):
        raise PlanishError(f"expectation: {name!r} is neither an operator nor a rule of the pipeline")
    return 0


def _exists(name: str, pipeline: Pass) -> bool:
    import onnx.defs

    from planish.passes.observers.explain import rules_of

    if "." in name or any(schema.name.lower() == name.lower() for schema in onnx.defs.get_all_schemas()):
        return True
    return any(rule.name == name for rule in rules_of(pipeline))
