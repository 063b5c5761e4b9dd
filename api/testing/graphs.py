"""Tests of passes on graphs that are written down: before and after as text, and the values before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from planish.ir import Graph
from planish.ir.clone import clone_graph
from planish.ir.equal import difference as graph_difference
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Lossy, Pass, Pipeline, Rule, Within
from planish.passes.numerics import Exact, Numerics
from planish.passes.rewrite import rewrite

from .check import random_inputs, scale_of
from .compare import difference
from .draw import Draw
from .evaluate import EvaluationError, evaluate_graph, look_up
from .instances import random_graph
from .sketch import TypeContradiction, check_type

__all__ = ["assert_rewrites", "check_pass", "check_pass_on_random_graphs"]

Passes = Pass | str | Rule | Sequence[Rule]


def assert_rewrites(before: str | Graph, passes: Passes, after: str | None) -> Graph:
    """Assert that ``passes`` make ``after`` of ``before``, up to names of values and the order of independent nodes.

    Args:
        before: a graph, or its text.
        passes: a pass, a pipeline or its text, a rule, or rules.
        after: the text of what must come out; None: nothing must change.

    Returns:
        what came out.

    Raises:
        AssertionError: something else came out; the message shows it.
    """
    __tracebackhide__ = True
    graph = parse(before) if isinstance(before, str) else before
    expected = clone_graph(graph) if after is None else parse(after)
    run(graph, passes)
    verify(graph)
    found = graph_difference(graph, expected, ordered=False)
    if found is not None:
        raise AssertionError(f"{found}\ncame out:\n{str(graph).strip()}\nexpected:\n{str(expected).strip()}")
    return graph


def check_pass(passes: Passes, graph: Graph, inputs: Mapping[str, Any] | None = None, *, seed: int = 0) -> Graph:
    """Run ``passes`` on a copy of ``graph`` and compare what both compute, within the declared numerics.

    Args:
        passes: a pass, a pipeline or its text, a rule, or rules.
        graph: stays as it is.
        inputs: arrays by name; random ones if none are given.
        seed: for random inputs.

    Returns:
        the changed copy.

    Raises:
        AssertionError: the result is no valid graph, or computes something else.
    """
    __tracebackhide__ = True
    arrays = dict(inputs) if inputs is not None else random_inputs(graph, Draw(f"{seed}/check_pass"))
    changed = clone_graph(graph)
    run(changed, passes)
    verify(changed)
    before, after = evaluate_graph(graph, arrays), evaluate_graph(changed, arrays)
    numerics, scale = loosest(_numerics(passes)), scale_of(before)
    for info, old, new in zip(graph.output_info, graph.outputs, changed.outputs, strict=True):
        problem = difference(look_up(after, new), look_up(before, old), numerics, scale)
        if problem is not None:
            raise AssertionError(f"output {info.name}: {problem}\nbefore:\n{graph}\nafter:\n{changed}")
    return changed


def check_pass_on_random_graphs(passes: Passes, *, graphs: int = 100, seed: int = 0) -> int:
    """`check_pass` on random graphs of all kinds of operators, and of the types that come out.

    Returns:
        the number of graphs that were compared: some compute something infinite, and are left out.

    Raises:
        AssertionError: a result is wrong; the message shows the graph.
    """
    __tracebackhide__ = True
    compared = 0
    for i in range(seed, seed + graphs):
        try:
            instance = random_graph(i)
            before = evaluate_graph(instance.graph, instance.inputs)
        except (EvaluationError, TypeContradiction):  # not the fault of the passes
            continue
        if not np.isfinite(scale_of(before)):
            continue
        compared += 1
        changed = check_pass(passes, instance.graph, instance.inputs)
        for value, array in evaluate_graph(changed, instance.inputs).items():
            check_type(value, array)
    return compared


def run(graph: Graph, passes: Passes) -> Context:
    """Run ``passes`` on ``graph`` in place.

    Raises:
        AssertionError: a pass had to be taken back.
    """
    ctx = Context()
    if isinstance(passes, Rule):
        passes = [passes]
    if isinstance(passes, Pass | str):
        Pipeline(passes).run(graph, ctx)
    else:
        rewrite(graph, passes, ctx)
    for result in ctx.results:
        assert not result.problem, f"{result.name}: {result.problem}"
    return ctx


def _numerics(passes: Passes) -> list[Numerics]:
    if isinstance(passes, str):
        passes = Pipeline(passes)
    if isinstance(passes, Rule):
        return [passes.numerics]
    if not isinstance(passes, Pass):
        return [rule.numerics for rule in passes]
    inner: Iterable[Pass] = getattr(passes, "passes", ())
    rules: Iterable[Rule] = getattr(passes, "rules", ())
    return [passes.numerics, *(r.numerics for r in rules), *(n for p in inner for n in _numerics(p))]


def loosest(numerics: Iterable[Numerics]) -> Numerics:
    """What holds when all of ``numerics`` do, one after the other."""
    listed = list(numerics)
    if any(isinstance(n, Lossy) for n in listed):
        return Lossy()
    within = [n for n in listed if isinstance(n, Within)]
    return Within(max(n.rtol for n in within), max(n.atol for n in within)) if within else Exact()
