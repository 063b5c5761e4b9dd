"""Rewrite rules: a left side, a guarded right side, and what they promise.

``@rule(pattern)`` makes a rule of a function from captures to replacement values; ``@rule("Transpose", …)`` of a
function from a node of one of these operators. Either calls `require` for conditions: the first that does not hold
means "no match", and its reason is what ``planish explain`` shows. A right side that is ill-typed is no match either.
Returning None, or the very values that are there, leaves the graph as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..ir import Node, Value
from ..ir.infer import IllTyped
from .numerics import Exact, Numerics
from .pattern import Either, Match, Operation, Pattern, Variadic, match, trace_pattern

__all__ = ["NoMatch", "Replacement", "Rule", "require", "rule"]


class NoMatch(Exception):
    """A condition of a rule does not hold.

    Attributes:
        at: the node at which it does not, or None for the root.
        matched: the number of nodes that had been matched by then; 0 where the rule does not count them.
    """

    def __init__(self, reason: str, at: Node | None = None, matched: int = 0):
        super().__init__(reason)
        self.at = at
        self.matched = matched


def require(condition: object, reason: str, at: Node | None = None, matched: int = 0) -> None:
    """End the attempt to apply the current rule unless ``condition`` holds.

    Args:
        condition: what must be true.
        reason: a phrase that a user understands.
        at: the node at which it is not, if that is not the root.
        matched: how many nodes have matched so far.

    Raises:
        NoMatch: with ``reason``.
    """
    if not condition:
        raise NoMatch(reason, at, matched)


@dataclass(slots=True)
class Replacement:
    """A match and its right side: ``values[i][j]`` replaces result ``j`` of ``roots[i]`` (None: it has no use)."""

    rule: Rule
    roots: list[Node]
    values: list[tuple[Value | None, ...]]


class Rule:
    """One rewrite rule.

    Attributes:
        name: the function's name, with dashes.
        ops: the operators of the (first) root; None for all.
        numerics: what it promises about values.
        doc: the function's docstring.
        examples: left sides in text form, for the generated differential test, where random ones would rarely match.
    """

    def __init__(self, function: Callable[..., Any], numerics: Numerics, examples: tuple[str, ...]):
        self.function = function
        self.name = function.__name__.strip("_").replace("_", "-")
        self.numerics = numerics
        self.doc = inspect.getdoc(function) or ""
        self.examples = examples
        self.ops: frozenset[str] | None = None

    def attempt(self, node: Node, explain: Match | None = None) -> Replacement | None:
        """The replacement for a match rooted at ``node``, or None. The new nodes float: nothing has changed yet.

        Args:
            node: the (first) root.
            explain: an empty match made with ``explain=True``; afterwards it tells how far the attempt got.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<rule {self.name}>"


class PatternRule(Rule):
    """A rule whose left side is a pattern; see `planish.passes.pattern`."""

    def __init__(
        self, pattern: Callable[..., Any], function: Callable[..., Any], numerics: Numerics, examples: tuple[str, ...]
    ):
        super().__init__(function, numerics, examples)
        self.pattern = pattern
        self.roots, self.captures = trace_pattern(pattern)
        parameters = inspect.signature(function).parameters
        unknown = [p for p in parameters if p not in self.captures and p != "match" and not _is_tag(self.roots, p)]
        if unknown:
            raise TypeError(f"rule {self.name}: {', '.join(unknown)} is no capture of its pattern")
        self.parameters = tuple(p for p in parameters if p != "match")
        self.wants_match = "match" in parameters
        self.ops = frozenset(_root_ops(self.roots[0]))
        self._quick = self.roots[0] if isinstance(self.roots[0], Operation) and self.roots[0].heads else None

    def attempt(self, node: Node, explain: Match | None = None) -> Replacement | None:
        if explain is None and self._quick is not None and not self._quick.heads_fit(node):
            return None
        m = explain if explain is not None else Match()
        if not match(self.roots, node, m):
            return None
        captures = m.captures
        arguments = {name: captures.get(name) for name in self.parameters}
        if self.wants_match:
            arguments["match"] = m
        try:
            result = self.function(**arguments)
        except (NoMatch, IllTyped) as reason:
            if explain is not None:
                explain.reached = (1 + len(m.nodes), str(reason), node)
            return None
        if result is None:
            return None
        if len(m.roots) == 1:
            return Replacement(self, m.roots, [_per_result(node, result)])
        return Replacement(self, m.roots, [_per_result(r, v) for r, v in zip(m.roots, result, strict=True)])


class NodeRule(Rule):
    """A rule whose function looks at a node by itself.

    It returns what replaces the node's results, or a dictionary with that for each of several nodes.
    """

    def __init__(self, ops: Iterable[str], function: Callable[..., Any], numerics: Numerics, examples: tuple[str, ...]):
        super().__init__(function, numerics, examples)
        self.ops = frozenset(ops) or None

    def attempt(self, node: Node, explain: Match | None = None) -> Replacement | None:
        try:
            result = self.function(node)
        except (NoMatch, IllTyped) as reason:
            if explain is not None:
                at = getattr(reason, "at", None)
                explain.reached = (max(1, getattr(reason, "matched", 0)), str(reason), at or node)
            return None
        if isinstance(result, dict):  # by root
            return Replacement(self, list(result), [_per_result(root, values) for root, values in result.items()])
        return None if result is None else Replacement(self, [node], [_per_result(node, result)])


def _per_result(node: Node, result: Any) -> tuple[Value | None, ...]:
    values = tuple(result) if isinstance(result, tuple | list) else (result,)
    while len(values) > len(node.results) and values[-1] is None:  # for results that this node does not have
        values = values[:-1]
    if len(values) > len(node.results):
        raise TypeError(f"{len(values)} values for the {len(node.results)} results of {node.op}")
    return values + (None,) * (len(node.results) - len(values))


def _root_ops(pattern: Pattern | Variadic) -> list[str]:
    if isinstance(pattern, Operation):
        return [pattern.op]
    assert isinstance(pattern, Either)
    return [name for case in pattern.cases.values() if case is not None for name in _root_ops(case)]


def _is_tag(patterns: Iterable[Any], name: str) -> bool:
    for pattern in patterns:
        if isinstance(pattern, Either) and (pattern.name == name or _is_tag(pattern.cases.values(), name)):
            return True
        if isinstance(pattern, Operation) and _is_tag(pattern.operands, name):
            return True
    return False


def rule(
    *pattern: Callable[..., Any] | str, numerics: Numerics | None = None, examples: Iterable[str] = ()
) -> Callable[[Callable[..., Any]], Rule]:
    """Make a rewrite rule of a function.

    Args:
        pattern: one function that builds the left side from its captures; or names of root operators (none: any).
        numerics: what the rewrite does to values; default `Exact`.
        examples: left sides in ONNX textual syntax for the generated test.

    Raises:
        TypeError: a parameter of the function is no capture of the pattern.
    """
    kept = Exact() if numerics is None else numerics

    def decorate(function: Callable[..., Any]) -> Rule:
        if len(pattern) == 1 and callable(pattern[0]):
            return PatternRule(pattern[0], function, kept, tuple(examples))
        return NodeRule([p for p in pattern if isinstance(p, str)], function, kept, tuple(examples))

    return decorate
