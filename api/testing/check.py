"""The generated differential test of a rule: build its left side, rewrite, evaluate both, compare."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from planish.ir import Graph, TensorType
from planish.passes.base import Context, PassResult
from planish.passes.numerics import Exact
from planish.passes.rewrite import NotTerminating, rewrite
from planish.passes.rules import Rule

from .compare import difference
from .draw import Array, Draw, Reject
from .evaluate import Ambiguous, Environment, EvaluationError, evaluate_graph, look_up
from .instances import draw_instance, hints_for
from .neighbours import Hints
from .samplers import NoSampler
from .sketch import TypeContradiction, check_type

__all__ = ["RuleError", "RuleReport", "VacuousRule", "check_rule", "rules_of"]

_ATTEMPTS = 40  # left sides drawn for each one that is to fire
_SHRINKING = 150  # further ones drawn after a failure, in search of a small one that fails
_ENDLESS = "it keeps firing"
_LEAST = 3  # a rule must fire so often to count as tested


class RuleError(AssertionError):
    """A rule is wrong: the message says what differs and shows a minimal left side."""


class VacuousRule(RuleError):
    """A rule never fired, so that its test says nothing about it."""


@dataclass
class RuleReport:
    """What the generated test of a rule did.

    Attributes:
        rule: its name.
        fired: in how many random graphs the rule fired.
        drawn: how many random graphs were built.
        examples: how many of the rule's own examples it was run on.
        rejected: why graphs were given up while they were built.
        refused: why it did not fire in others, most frequent first.
        contradictions: where shape inference and evaluation of a left side disagreed.
    """

    rule: str
    fired: int = 0
    drawn: int = 0
    examples: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    contradictions: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        given = f", {self.examples} examples" if self.examples else ""
        return f"{self.rule}: fired in {self.fired} of {self.drawn} graphs{given}"


def rules_of(*modules: ModuleType) -> list[Rule]:
    """The rules that ``modules`` define, each once, in order."""
    found = [v for module in modules for v in vars(module).values() if isinstance(v, Rule)]
    return list(dict.fromkeys(found))


def check_rule(rule: Rule, *, examples: int = 50, seed: int = 0) -> RuleReport:
    """Test ``rule`` on random instances of its left side, until it has fired in ``examples`` of them.

    The same ``seed`` gives the same instances.

    Raises:
        RuleError: a right side differs from its left side in values (beyond the declared numerics), dtype or shape, or
            cannot be evaluated.
        VacuousRule: it fired (next to) never.
    """
    __tracebackhide__ = True  # pytest then shows the message only
    report = RuleReport(rule.name)
    _check_own_examples(rule, report, seed)
    missing = ""
    hints = hints_for(rule)
    for attempt in range(examples * _ATTEMPTS):
        if report.fired >= examples or (attempt > examples * _ATTEMPTS // 4 and report.examples > report.fired):
            break  # enough; or the rule hardly ever fires, and has examples for that reason
        failure = None
        try:
            failure = _attempt(rule, f"{seed}/{rule.name}/{attempt}", report, hints)
        except NoSampler as error:
            missing = str(error)
            if not report.rejected and not report.drawn:
                break
        if failure is not None:
            raise RuleError(_smallest(rule, failure, seed, hints).text)
    if report.fired < _LEAST and not report.examples:
        raise VacuousRule(_vacuous(rule, report, missing))
    return report


def _vacuous(rule: Rule, report: RuleReport, missing: str) -> str:
    text = f"rule {rule.name} fired in {report.fired} of {report.drawn} random graphs"
    if missing:
        text += f"; {missing}"
    reasons = "".join(f"\n  {count} times: {reason}" for reason, count in report.refused.most_common(5))
    return text + (f". What kept it from firing:{reasons}" if reasons else "")


@dataclass
class _Failure:
    """A left side on which a rule is wrong."""

    text: str
    size: tuple[int, int]
    cheap: bool = True


def _attempt(rule: Rule, seed: str, report: RuleReport, hints: Hints, *, small: bool = False) -> _Failure | None:
    draw = Draw(seed, small=small)
    if not isinstance(rule.numerics, Exact):
        draw.special = False  # reordered sums may treat infinities differently
    try:
        instance = draw_instance(rule, draw, hints)
        before = evaluate_graph(instance.graph, instance.inputs)
    except (Reject, EvaluationError) as error:
        report.rejected[str(error)] += 1
        return None
    except TypeContradiction as error:  # no fault of the rule: `tests/ir` has to find these
        report.contradictions[str(error)] += 1
        return None
    report.drawn += 1
    ops = [node.op for node in instance.graph.walk()]
    so_far = report.fired
    failure = _compare(rule, instance.graph, instance.inputs, before, instance.size, report, f"seed {seed}")
    if report.fired > so_far:
        hints.reward(ops)
    return failure


def _compare(
    rule: Rule,
    graph: Graph,
    inputs: Mapping[str, Array],
    before: Environment,
    size: tuple[int, int],
    report: RuleReport,
    origin: str,
) -> _Failure | None:
    """Rewrite ``graph`` and compare; None if all is well or the rule does not fire."""
    expected = [look_up(before, v) for v in graph.outputs]
    left = str(graph)
    scale = scale_of(before)
    if not isinstance(rule.numerics, Exact) and not np.isfinite(scale):
        return None
    fired, problem = _rewrite_and_compare(rule, graph, inputs, expected, scale, report)
    report.fired += fired > 0
    if problem is None:
        return None
    return _Failure(_message(rule, problem, left, str(graph), inputs, origin), size, problem != _ENDLESS)


def _rewrite_and_compare(
    rule: Rule, graph: Graph, inputs: Mapping[str, Array], expected: list[Any], scale: float, report: RuleReport
) -> tuple[int, str | None]:
    """How often the rule fired, and what is wrong afterwards."""
    ctx = Context(results=[PassResult("check")])
    try:
        rewrite(graph, [rule], ctx)
    except NotTerminating:
        return 1, _ENDLESS
    except Exception as error:  # noqa: BLE001 - a rule may raise anything but NoMatch and IllTyped only when it is wrong
        where = traceback.extract_tb(error.__traceback__)[-1]
        return 1, f"it raises {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    fired = ctx.results[0].fired[rule.name]
    if not fired:
        _note_refusal(rule, graph, report)
        return 0, None
    return fired, _problem(rule, graph, inputs, expected, scale)


def _problem(rule: Rule, graph: Graph, inputs: Mapping[str, Array], expected: list[Any], scale: float) -> str | None:
    from planish.ir.verify import VerifyError, verify

    try:
        verify(graph)
        after = evaluate_graph(graph, inputs)
        for value, array in after.items():
            check_type(value, array)
    except VerifyError as error:
        return f"the right side is no valid graph: {error}"
    except Ambiguous:
        return None
    except EvaluationError as error:
        return f"the right side cannot be evaluated: {error}"
    except TypeContradiction as error:
        return f"the right side is typed wrongly: {error}"
    for i, (value, wanted) in enumerate(zip(graph.outputs, expected, strict=True)):
        found = difference(look_up(after, value), wanted, rule.numerics, scale)
        if found is not None:
            return f"output {graph.output_info[i].name}: {found}"
    return None


def _note_refusal(rule: Rule, graph: Graph, report: RuleReport) -> None:
    """Remember why the rule did not fire, for the case that it never does."""
    from planish.passes.rewrite import explain_rules

    if report.fired or report.drawn > 400:
        return
    for _, _, (_, reason, _) in explain_rules(graph, [rule]):
        report.refused[reason] += 1


def scale_of(environment: Environment) -> float:
    """The largest magnitude among floating-point values; infinite if one is not finite."""
    largest = 0.0
    for array in environment.values():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size:
            top = float(np.abs(array.astype(np.float64)).max())
            if not np.isfinite(top):
                return float("inf")
            largest = max(largest, top)
    return largest


def _smallest(rule: Rule, failure: _Failure, seed: int, hints: Hints) -> _Failure:
    """The smallest of some more failures."""
    ignored = RuleReport(rule.name)
    for attempt in range(_SHRINKING if failure.cheap else 5):
        try:
            other = _attempt(rule, f"{seed}/{rule.name}/small/{attempt}", ignored, hints, small=True)
        except NoSampler:
            continue
        if other is not None and other.size < failure.size:
            failure = other
    return failure


def _message(rule: Rule, problem: str, left: str, right: str, inputs: Mapping[str, Array], origin: str) -> str:
    lines = [
        f"rule {rule.name} is wrong: {problem}",
        "left side:",
        left.strip(),
        "right side:",
        right.strip(),
        f"inputs ({origin}):",
    ]
    with np.printoptions(threshold=24, precision=4):
        lines += [f"  {name} = {array.dtype}{list(array.shape)} {array.ravel()}" for name, array in inputs.items()]
    return "\n".join(lines)


# the rule's own examples


def _check_own_examples(rule: Rule, report: RuleReport, seed: int, rounds: int = 4) -> None:
    __tracebackhide__ = True
    from planish.ir.text import parse

    for i, text in enumerate(rule.examples):
        fired = 0
        for attempt in range(rounds):
            graph = parse(text)
            draw = Draw(f"{seed}/{rule.name}/example {i}/{attempt}")
            draw.empty = draw.special = False
            inputs = random_inputs(graph, draw)
            try:
                before = evaluate_graph(graph, inputs)
            except EvaluationError as error:
                raise RuleError(f"example {i + 1} of rule {rule.name} cannot be evaluated: {error}\n{text}") from error
            so_far = report.fired
            failure = _compare(rule, graph, inputs, before, (0, 0), report, f"example {i + 1}")
            if failure is not None:
                raise RuleError(failure.text)
            fired += report.fired - so_far
        if not fired:
            reasons = "".join(f"\n  {reason}" for reason, _ in report.refused.most_common(3))
            raise VacuousRule(f"rule {rule.name} does not fire on its example {i + 1}{reasons}\n{text}")
        report.fired -= fired
        report.examples += 1


def random_inputs(graph: Graph, draw: Draw) -> dict[str, Array]:
    """Arrays for the inputs of ``graph``; equal symbols get equal sizes, integers are small and not negative.

    Raises:
        RuleError: an input has no known rank or dtype.
    """
    sizes: dict[str, int] = {}
    inputs: dict[str, Array] = {}
    for value in graph.inputs:
        if not isinstance(value.type, TensorType) or value.shape is None or not value.dtype:
            raise RuleError(f"input {value.name} needs a dtype and a rank to be drawn")
        shape = [d if isinstance(d, int) else sizes.setdefault(str(d), draw.dim()) for d in value.shape]
        array = draw.array(value.dtype, shape)
        inputs[value.name] = np.abs(array) if value.dtype.is_integer and value.dtype.is_signed else array
    return inputs


def checked(rules: Iterable[Rule], **options: Any) -> list[tuple[Rule, RuleReport | RuleError]]:
    """`check_rule` for several rules, failures included."""
    results: list[tuple[Rule, RuleReport | RuleError]] = []
    for rule in rules:
        try:
            results.append((rule, check_rule(rule, **options)))
        except RuleError as error:
            results.append((rule, error))
    return results
