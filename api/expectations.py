"""Expectations: ``Attention>=12`` is about the operators of the result, ``relu-of-relu>0`` about rules that fired."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType

from planish.ir import Graph
from planish.ir.errors import PlanishError
from planish.passes import Pass
from planish.passes.rules import Rule

__all__ = ["Expectation", "Outcome", "check", "parse"]

_SHOWN = 10  # kinds of misses
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
    """An expectation, what was there, whether it holds, and if that is too little, where more nearly was."""

    expectation: str
    actual: int
    holds: bool
    misses: tuple[str, ...] = ()

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
        misses = () if holds or actual > expectation.number else _misses(expectation.name, graph, pipeline)
        outcomes.append(Outcome(str(expectation), actual, holds, misses))
    return outcomes


def _misses(name: str, graph: Graph, pipeline: Pass) -> tuple[str, ...]:
    """Where the rule called ``name``, or those whose module makes operators of that name, nearly matched."""
    from planish.passes.observers.explain import grouped, near_misses, rules_of

    rules = [r for r in rules_of(pipeline) if r.name == name or _makes(r, name)]
    misses = [m for m in near_misses(graph, rules) if m.is_close]
    return tuple(f"{miss}" + (f" ({times} times)" if times > 1 else "") for miss, times in grouped(misses)[:_SHOWN])


def _makes(rule: Rule, op: str) -> bool:
    """Whether the module of ``rule`` builds nodes of operator ``op``."""
    home = rule.function.__module__
    around = (rule.function, *rule.function.__globals__.values())
    own = [f for f in around if isinstance(f, FunctionType) and f.__module__ == home]
    return any(op.lower() in (n.lower() for n in f.__code__.co_names) for f in own)


def _count(name: str, ops: Counter[str], fired: Counter[str], pipeline: Pass) -> int:
    if name.lower() in ops:
        return ops[name.lower()]
    if name in fired:
        return fired[name]
    if not _exists(name, pipeline):
        raise PlanishError(f"expectation: {name!r} is neither an operator nor a rule of the pipeline")
    return 0


def _exists(name: str, pipeline: Pass) -> bool:
    import onnx.defs

    from planish.passes.observers.explain import rules_of

    if "." in name or any(schema.name.lower() == name.lower() for schema in onnx.defs.get_all_schemas()):
        return True
    return any(rule.name == name for rule in rules_of(pipeline))
