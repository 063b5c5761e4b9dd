"""Bisection to a single rewrite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir import Graph
from ..ir.edit import Transaction
from .base import Context, Failure, Pass
from .pipeline import Fixpoint, Pipeline
from .rules import Replacement

__all__ = ["Culprit", "bisect", "find_culprit", "find_first"]

_MAX_ROUNDS = 20


@dataclass(frozen=True)
class Culprit:
    """What makes a graph fail.

    Attributes:
        pass_: the first pass after which it fails.
        number: the rewrite of that pass, counted from 1; 0 if it is none.
        total: the number of rewrites that the pass makes.
        replacement: the rewrite, or None if the pass fails by an edit that is no rewrite, or by an exception.
        error: the exception that the pass raised, or "".
    """

    pass_: Pass
    number: int = 0
    total: int = 0
    replacement: Replacement | None = None
    error: str = ""


def bisect(p: Pass, graph: Graph, ctx: Context, fails: Callable[[Graph], bool]) -> tuple[int, Replacement] | None:
    """The first rewrite of ``p`` after which ``fails(graph)`` holds, by binary search over the number of rewrites.

    Relies on passes being deterministic. The graph is unchanged afterwards.

    Returns:
        Its number (1 is the first) and the replacement, or None if ``fails`` does not hold after the whole pass.
    """
    culprit = _search(p, graph, ctx, fails)
    return None if culprit is None or culprit.replacement is None else (culprit.number, culprit.replacement)


def _search(p: Pass, graph: Graph, ctx: Context, fails: Callable[[Graph], bool]) -> Culprit | None:
    def try_with(limit: int) -> tuple[bool, int, Replacement | None]:
        probe = Context(ctx.runner_factory, [], ctx.target, set(ctx.disabled), samples=ctx.samples, limit=limit)
        with Transaction(graph) as journal:
            p.run(graph, probe)
            failed = fails(graph)
            journal.rollback()
        assert probe.limit is not None
        return failed, limit - probe.limit, probe.last

    failed, total, last = try_with(1 << 60)
    if not failed:
        return None
    if total == 0 or try_with(0)[0]:
        return Culprit(p, 0, total)
    passing, failing = 0, total
    while failing - passing > 1:
        middle = (passing + failing) // 2
        failed, _, replacement = try_with(middle)
        if failed:
            failing, last = middle, replacement
        else:
            passing = middle
    assert last is not None
    return Culprit(p, failing, total, last)


def find_culprit(p: Pass, graph: Graph, ctx: Context) -> str | None:
    """The rule whose rewrite makes an observer report a failure after ``p``, by name; None if it is no rewrite."""
    judges = [observer for observer in ctx.observers if getattr(observer, "judges", True)]

    def fails(changed: Graph) -> bool:
        try:
            for observer in judges:
                observer.after_pass(p, changed, ctx)
        except Failure:
            return True
        return False

    try:
        found = bisect(p, graph, ctx, fails)
    except Exception:  # noqa: BLE001 - the pass itself fails when repeated: there is no rewrite to blame
        return None
    return found[1].rule.name if found is not None else None


def find_first(p: Pass, graph: Graph, ctx: Context, fails: Callable[[Graph], bool]) -> Culprit | None:
    """Run the passes of ``p`` one by one until ``fails(graph)`` holds; the graph is then as before the pass at fault.

    An exception that a pass raises is a failure, too.

    Returns:
        The pass, and the rewrite if it is one; None if the graph never fails.
    """
    if isinstance(p, Pipeline):
        return next((found for inner in p.passes if (found := find_first(inner, graph, ctx, fails)) is not None), None)
    if isinstance(p, Fixpoint):
        for _ in range(_MAX_ROUNDS):
            with Transaction(graph) as journal:
                found = find_first(Pipeline(p.passes), graph, ctx, fails)
            if found is not None or not journal.events:
                return found
        return None
    with Transaction(graph) as journal:
        error = ""
        try:
            p.run(graph, ctx)
        except Exception as raised:  # noqa: BLE001 - any error of a pass is what we are looking for
            error = " ".join(f"{type(raised).__name__}: {raised}".split())
        if not error and not fails(graph):
            return None
        journal.rollback()
    return Culprit(p, error=error) if error else _search(p, graph, ctx, fails) or Culprit(p)
