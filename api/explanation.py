"""`explain`, `bisect` and `reduce`: why a rule does not fire, which rewrite is wrong, and on how small a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.ir import Graph, Node
from planish.ir.errors import PlanishError
from planish.jax_function import to_jax
from planish.models import load, save
from planish.optimizer import parse_pipeline, runner_factory
from planish.passes import Context, Observer, Pass, Pipeline

if TYPE_CHECKING:
    from planish.backends.base import Backend
    from planish.data import Data, Sample
    from planish.models import Model
    from planish.passes.bisect import Culprit
    from planish.passes.observers.explain import NearMiss, Site
    from planish.passes.quantize.blocked import Blocked
    from planish.passes.reduce import Part

__all__ = ["Bisection", "Explanation", "Reduction", "bisect", "explain", "reduce", "reduce_bisection"]

TOLERANCE = 1e-4  # relative to the range of an output: more is wrong, unless the user says otherwise


# explain


@dataclass(frozen=True)
class Explanation:
    """What a pipeline did and nearly did.

    Attributes:
        sites: where rules fired.
        misses: where rules nearly match the result, closest first.
        fired: how often each rule fired, and what passes noted besides.
        tidied: how often rules fired that passes apply besides their own.
        problems: passes that were taken back, and why.
        layers: what quantization made of each layer, as rows of facts.
        floats: in a quantized graph, what computes with floating-point numbers, and why.
        blocked: fusions that quantizers keep from happening.
    """

    sites: list[Site]
    misses: list[NearMiss]
    fired: dict[str, int]
    tidied: dict[str, int]
    problems: dict[str, str]
    layers: list[dict[str, Any]]
    floats: list[tuple[str, str]]
    blocked: list[Blocked]


def explain(
    model: Model,
    pipeline: str | Pipeline = "default",
    *,
    rule: str | None = None,
    target: str = "onnxruntime",
    data: Data | None = None,
) -> Explanation:
    """Run ``pipeline`` on a model and tell what fired, what nearly did, and why it did not.

    Args:
        model: see `planish.load`; a `Graph` is left as it is.
        pipeline: the passes.
        rule: the only rule of interest.
        target: the backend that the result is for.
        data: sample inputs, for passes that look at inputs; None synthesizes some.

    Raises:
        PlanishError: no pass of the pipeline has the rule, or the model does not run on synthesized inputs.
    """
    from planish.data import Portions, readers
    from planish.optimizer import made_up_samples
    from planish.passes.observers.explain import Explain, near_misses, rules_of
    from planish.passes.quantize.summary import why_float
    from planish.passes.quantize.targets import target_for

    passes = parse_pipeline(pipeline)
    rules = rules_of(passes)
    if rule is not None:
        rules = [r for r in rules if r.name == rule]
        if not rules:
            raise PlanishError(f"no rule {rule!r} in {passes}; planish passes NAME lists the rules of a pass")
    graph = _copy(model)
    observer = Explain()
    samples: Callable[[], Iterable[Sample]] = made_up_samples(_copy(model), target)
    labelled: Callable[[], Iterable[Sample]] | None = None
    if data is not None:
        read, labels = readers(data, graph, passes.extra_arrays)
        samples, labelled = Portions(read, graph), labels and Portions(labels, graph)
    ctx = Context(runner_factory(target), [observer], target, samples=samples, labelled=labelled, differentiate=to_jax)
    raised = _Raised()
    ctx.observers.append(raised)
    passes.run(graph, ctx)
    sites = [s for s in observer.sites(ctx) if rule in (None, s.rule)]
    fired: Counter[str] = sum((r.fired for r in ctx.results), Counter())
    kept = {name: times for name, times in fired.most_common() if rule in (None, name)}
    beside = {r.name for r in rules_of(passes, "tidying")} - {r.name for r in rules}
    tidied = {name: kept.pop(name) for name in list(kept) if name in beside}
    problems = {r.name: r.problem for r in ctx.results if r.problem}
    layers = [row for r in ctx.results for row in r.table]
    floats = why_float(graph, target_for(target)) if rule is None else []
    blocked = _blocked(raised.graph, passes, ctx)
    return Explanation(sites, near_misses(graph, rules), kept, tidied, problems, layers, floats, blocked)


class _Raised(Observer):
    """Keeps the graph as it is when imported quantization has been raised."""

    judges = False
    graph: Graph | None = None

    def after_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        if pass_.pass_name() == "raise-quantization":
            self.graph = _copy(graph)


def _blocked(graph: Graph | None, passes: Pipeline, ctx: Context) -> list[Blocked]:
    """The fusions that the quantizers of the model itself keep from happening."""
    from planish.passes.fuse import Fuse
    from planish.passes.observers.explain import rules_of
    from planish.passes.quantize.blocked import blocked_fusions

    fusing = [p for p in passes.passes if isinstance(p, Fuse)]
    if graph is None or not fusing:
        return []
    before = passes.passes[: passes.passes.index(fusing[-1]) + 1]
    return blocked_fusions(graph, before, [r.name for r in rules_of(fusing[-1])], ctx)


def _copy(model: Model) -> Graph:
    from planish.ir.clone import clone_graph

    graph = load(model)
    return clone_graph(graph) if isinstance(model, Graph) else graph


# bisect


@dataclass(frozen=True)
class Bisection:
    """The first rewrite that makes the result differ.

    Attributes:
        culprit: the pass and the rewrite.
        graph: the graph just before that pass.
        difference: of the outputs right after the rewrite, relative to their range; None if they could not be computed.
    """

    culprit: Culprit
    graph: Graph
    difference: float | None


class _Judge:
    """Decides whether a changed graph still computes what the original does."""

    def __init__(self, engine: Backend, samples: Sequence[Sample], expected: list[dict[str, Any]], tolerance: float):
        self.engine = engine
        self.samples = samples
        self.expected = expected
        self.tolerance = tolerance
        self.difference: float | None = None  # of the last graph that failed

    def fails(self, graph: Graph) -> bool:
        """Whether ``graph`` is malformed, does not run, or computes something else."""
        from planish.ir.verify import VerifyError, verify
        from planish.passes.observers.verify import largest_difference

        difference = None
        try:
            verify(graph)
            program = self.engine.compile(graph)
            difference, _ = largest_difference([program(s) for s in self.samples], self.expected)
        except (PlanishError, VerifyError):
            pass
        wrong = difference is None or difference > self.tolerance
        if wrong:
            self.difference = difference
        return wrong


def _judge(
    graph: Graph, data: Data | None, tolerance: float | None, engine: Backend, samples: Sequence[Sample] = ()
) -> _Judge:
    from planish.comparison import samples_for
    from planish.passes.observers.verify import noise_floor

    program = engine.compile(graph)
    if samples:
        expected = [program(s) for s in samples]
    else:
        samples, expected, _ = samples_for(graph, program, data, 2)
    return _Judge(engine, samples, expected, max(TOLERANCE, noise_floor(graph)) if tolerance is None else tolerance)


def bisect(
    model: Model,
    pipeline: str | Pipeline = "default",
    data: Data | None = None,
    *,
    tolerance: float | None = None,
    target: str = "onnxruntime",
) -> Bisection | None:
    """Find the first pass, and in it the single rewrite, after which the outputs differ from the original's.

    Args:
        model: see `planish.load`.
        pipeline: the passes.
        data: sample inputs; None synthesizes some.
        tolerance: the difference to accept, relative to the output's range.
        target: the backend that runs the graphs.

    Returns:
        What is at fault, or None if the outputs never differ.

    Raises:
        PlanishError: the model cannot be run.
    """
    from planish.backends.base import backend
    from planish.passes.bisect import find_first

    passes = parse_pipeline(pipeline)
    engine = backend(target)
    graph = _copy(model)
    judge = _judge(graph, data, tolerance, engine)
    culprit = find_first(passes, graph, Context(runner_factory(target)), judge.fails)
    return None if culprit is None else Bisection(culprit, graph, judge.difference)


# reduce


@dataclass(frozen=True)
class Reduction:
    """The smallest model found.

    Attributes:
        graph: the model.
        inputs: inputs on which it fails; None where a check of the user's decides.
        nodes: the number of nodes of the whole model.
    """

    graph: Graph
    inputs: Sample | None
    nodes: int

    def save(self, folder: str | Path) -> None:
        """Write ``model.onnx`` and ``inputs.npz``."""
        import numpy as np

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(self.graph, folder / "model.onnx")
            if self.inputs is not None:
                np.savez(folder / "inputs.npz", **self.inputs)
        except OSError as error:
            raise PlanishError(f"{folder}: {error.strerror or error}") from error


def reduce(
    model: Model,
    pipeline: str | Pipeline = "default",
    data: Data | None = None,
    *,
    check: Callable[[str], object] | None = None,
    tolerance: float | None = None,
    target: str = "onnxruntime",
) -> Reduction | None:
    """Find the smallest part of a model that still fails.

    Args:
        model: see `planish.load`.
        pipeline: the passes that make it fail.
        data: sample inputs; None synthesizes some.
        check: decides instead of the pipeline: called with the path of an ``.onnx`` file, true if it fails.
        tolerance: the difference to accept, relative to the output's range.
        target: the backend that runs the graphs.

    Returns:
        The part, or None if the whole model does not fail.

    Raises:
        PlanishError: the model cannot be run.
    """
    if check is not None:
        return _reduce_by_check(_copy(model), check)
    found = bisect(model, pipeline, data, tolerance=tolerance, target=target)
    return None if found is None else reduce_bisection(found, data, tolerance=tolerance, target=target)


def reduce_bisection(
    found: Bisection, data: Data | None = None, *, tolerance: float | None = None, target: str = "onnxruntime"
) -> Reduction:
    """The smallest model that shows what `bisect` found.

    Looks in ever larger neighbourhoods of the rewrite, then takes away what is not needed.
    """
    from planish.backends.base import backend
    from planish.passes.reduce import extract, minimize, neighbourhoods

    engine = backend(target)
    graph, culprit = found.graph, found.culprit
    sample = _judge(graph, data, tolerance, engine).samples[0]
    arrays = _Arrays(graph, engine, sample)
    everything = list(graph.nodes)

    def fails(nodes: Sequence[Node]) -> bool:
        part = extract(nodes)
        try:
            judge = _judge(part.graph, None, tolerance, engine, [arrays.of(part)])
        except PlanishError:
            return False
        return _fails_after(culprit.pass_, part.graph, judge, engine.name)

    roots = culprit.replacement.roots if culprit.replacement is not None else everything
    start = next((nodes for nodes in neighbourhoods(roots) if fails(nodes)), everything)
    part = extract(minimize(sorted(start, key=lambda n: n.order), fails))
    return Reduction(part.graph, arrays.of(part), len(everything))


def _fails_after(p: Pass, graph: Graph, judge: _Judge, target: str) -> bool:
    """Whether ``p`` breaks a copy of ``graph``."""
    changed = _copy(graph)
    try:
        p.run(changed, Context(runner_factory(target)))
    except Exception:  # noqa: BLE001 - whatever the pass raises is a failure of it
        return True
    return judge.fails(changed)


class _Arrays:
    """What the values of a graph are for one sample, computed when asked for, and kept."""

    def __init__(self, graph: Graph, engine: Backend, sample: Sample):
        self.engine = engine
        self.sample = sample
        self.known: dict[Any, Any] = {v: v.default.numpy() for v in graph.inputs if v.default is not None}
        self.known.update({v: sample[v.name] for v in graph.inputs if v.name in sample})

    def of(self, part: Part) -> Sample:
        """The inputs of ``part``."""
        from planish.passes.reduce import ancestors, extract

        missing = [v for v in part.inputs.values() if v not in self.known]
        if missing:
            cone = extract(ancestors(missing), missing)
            outputs = self.engine.compile(cone.graph)({n: self.known[v] for n, v in cone.inputs.items()})
            self.known.update(zip(missing, outputs.values(), strict=True))
        return {name: self.known[value] for name, value in part.inputs.items()}


def _reduce_by_check(graph: Graph, check: Callable[[str], object]) -> Reduction | None:
    from tempfile import TemporaryDirectory

    from planish.passes.reduce import extract, minimize

    with TemporaryDirectory(prefix="planish-") as folder:
        path = str(Path(folder) / "model.onnx")

        def fails(nodes: Sequence[Node]) -> bool:
            save(extract(nodes).graph, path)
            return bool(check(path))

        nodes = list(graph.nodes)
        if not nodes or not fails(nodes):
            return None
        return Reduction(extract(minimize(nodes, fails)).graph, None, len(nodes))
