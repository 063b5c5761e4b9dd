"""`optimize`: runs a pipeline on a model, compares the result with the original, and measures it against it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from planish import expectations
from planish.ir import Graph
from planish.ir.errors import PlanishError
from planish.ir.flops import Size, size_of
from planish.jax_function import to_jax
from planish.models import load, save_for
from planish.passes import Context, Observer, Pipeline
from planish.passes.base import RequestError
from planish.report import Report, Verification

if TYPE_CHECKING:
    from planish.backends.base import Backend, Executable, Written
    from planish.data import Data, Sample
    from planish.measure import Comparison
    from planish.models import Model
    from planish.passes.observers.verify import Verify

__all__ = ["Mode", "Result", "made_up_samples", "optimize", "parse_pipeline", "runner_factory"]

Mode = Literal["each", "end", "off"]
Metric = Callable[[list[dict[str, Any]]], float]
_MAX_SAMPLES = 4  # of the user's data, for comparison: these runs are repeated
_MADE_UP = 8  # samples for passes that look at inputs, where the user gave none
_NEAREST = 5  # near misses to show when nothing fired


@dataclass
class Result:
    """The optimized ``graph``, and the ``report`` on how it came about."""

    graph: Graph
    report: Report
    engine: Backend | None = None

    def save(self, path: str | Path, **options: Any) -> Written | None:
        """Write the graph for the target, completely or not at all.

        ``options`` are those of `planish.backends.onnx_file.save` for ``.onnx``, else of the target's ``write``.

        Raises:
            PlanishError: it cannot be written.
        """
        return save_for(self.graph, path, self.engine, **options)


def optimize(
    model: Model,
    pipeline: str | Pipeline = "default",
    *,
    target: str = "onnxruntime",
    data: Data | None = None,
    verify: Mode = "end",
    measure: bool = True,
    expect: Sequence[str] = (),
    metric: Metric | str | None = None,
    observers: Iterable[Observer] = (),
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Optimize a model.

    Args:
        model: whatever `planish.load` takes; a `Graph` is left as it is.
        pipeline: the passes.
        target: the backend that the result is for.
        data: sample inputs (see `planish.data.read_samples`), for comparing and for passes that look at inputs, such
            as quantization; None synthesizes some.
        verify: compare with the original after each pass, at the end, or not at all.
        measure: measure the latency against the original's, and fall back where it became slower.
        expect: conditions such as ``Attention>=12``; see the report for their outcome.
        metric: the quality of a model: called with its outputs for all samples of ``data``, in order, the higher the
            better; or ``module.py:function`` that names it. Passes with an accuracy budget use it; without one, they
            compare outputs with the original's.
        observers: further observers of the passes.
        progress: is told what is going on.

    Raises:
        PlanishError: the model, the pipeline, the data or an expectation is unusable.
    """
    if metric is not None and data is None:
        raise PlanishError("a metric needs the data that it judges: give data")
    parsed = parse_pipeline(pipeline)
    expected = [expectations.parse(e) for e in expect]
    graph = load(model)
    job = _Job(graph, parsed, target, list(observers), progress or (lambda message: None), _metric(metric))
    job.times = measure
    if verify == "off" and not measure:
        result = job.plain(isinstance(model, Graph), data)
    else:
        result = job.checked(model, verify, measure, data)
    result.report.expectations = expectations.check(expected, result.graph, result.report.fired, parsed)
    return result


def parse_pipeline(pipeline: str | Pipeline) -> Pipeline:
    """The pipeline that ``pipeline`` is or describes.

    Raises:
        PlanishError: it describes none.
    """
    return pipeline if isinstance(pipeline, Pipeline) else Pipeline.parse(pipeline)


def runner_factory(target: str = "onnxruntime") -> Callable[[], Backend]:
    """Makes the runner for passes: the target's backend if it is there, or else the reference."""

    def make() -> Backend:
        from planish.backends.base import backend

        try:
            return backend(target).runner()
        except PlanishError:
            return backend("reference")

    return make


def made_up_samples(graph: Graph, target: str) -> Callable[[], Sequence[Sample]]:
    """A function that makes up samples for passes that look at inputs, when it is first called.

    It raises `PlanishError` if ``graph`` runs on no synthesized input. ``graph`` must not be changed.
    """
    made: list[Sample] = []

    def samples() -> Sequence[Sample]:
        from planish.comparison import samples_for
        from planish.data import synthesize_more

        if not made:
            first, _, _ = samples_for(graph, runner_factory(target)().compile(graph), None, 1)
            made.extend(synthesize_more(graph, first[0], _MADE_UP))
        return made

    return samples


@dataclass
class _Attempt:
    """One run of a pipeline."""

    graph: Graph
    ctx: Context
    verify: Verify | None


class _Job:
    """One call of `optimize`."""

    def __init__(
        self,
        graph: Graph,
        pipeline: Pipeline,
        target: str,
        observers: list[Observer],
        progress: Callable[[str], None],
        metric: Metric | None = None,
    ):
        self.original = graph
        self.pipeline = pipeline
        self.target = target
        self.observers = observers
        self.progress = progress
        self.metric = metric
        self.times = False  # whether passes may measure
        self.is_remote = False  # whether the target is elsewhere
        self.inputs: Callable[[], Iterable[Sample]] | None = None  # all samples, for passes that look at inputs
        self.made_up = False  # whether they were synthesized
        self.looked = False  # whether a pass has looked at them
        self.labelled: Callable[[], Iterable[Sample]] | None = None  # the same with labels
        self.samples: list[Sample] = []
        self.sizes: dict[str, int] | None = None
        self.verification = Verification()
        self.expected: list[dict[str, Any]] = []  # what the original computes for the samples
        self.floor = (
            0.0  # how far results may move in any case: as far as two runs of the original differ, and some more
        )

    def plain(self, keep: bool, data: Data | None) -> Result:
        """Optimize without running anything."""
        from planish.backends.base import backend

        if data is not None:
            from planish.data import bind_sizes, read_samples

            self._read(data)
            assert self.inputs is not None
            first = list(itertools.islice(self.inputs(), 1))
            self.sizes = bind_sizes(self.original, read_samples(first, self.original)[0])
        else:
            self.inputs = made_up_samples(_clone(self.original), self.target)
            self.made_up = True
        before = size_of(self.original, self.sizes)
        graph = _clone(self.original) if keep else self.original
        ctx = self._context()
        self.pipeline.run(graph, ctx)
        return Result(graph, self._report(_Attempt(graph, ctx, None), before), backend(self.target))

    def checked(self, model: Model, mode: Mode, measure: bool, data: Data | None) -> Result:
        """Optimize; verify and measure as asked."""
        from planish.backends.base import backend

        if mode != "off":
            _require_sound(self.original)
        engine = backend(self.target)
        self.is_remote = engine.is_remote
        self.progress("running the original")
        first = self._run_original(model, engine, data)
        before = size_of(self.original, self.sizes)
        attempt, second = self._verified(self.pipeline, mode, engine)
        report = self._report(attempt, before)
        if measure and self.is_remote and second is not None and second.estimate(self.samples[0]) is None:
            report.notes.append(f"not measured: {self.target} is not here, and its compiler estimates nothing")
        elif measure and first is not None and second is not None and report.changed and report.ok:
            attempt, report = self._fastest(attempt, report, first, second, mode, engine)
        elif measure and report.ok:
            report.notes.append(
                "not measured: " + ("nothing changed" if first is not None else "the model was not run")
            )
        return Result(attempt.graph, report, engine)

    # running

    def _read(self, data: Data) -> None:
        """Let samples come from ``data``."""
        from planish.data import Portions, readers

        inputs, labelled = readers(data, self.original, self.pipeline.extra_arrays)
        self.inputs = portions = Portions(inputs, self.original)
        self.labelled = None if labelled is None else Portions(labelled, self.original)
        if (metric := self.metric) is not None:
            self.metric = lambda outputs: metric(portions.joined(outputs))

    def _context(self, *observers: Observer) -> Context:
        return Context(
            runner_factory(self.target),
            [*observers, *self.observers],
            self.target,
            samples=self._noticed if self.inputs is not None else None,
            labelled=self.labelled,
            metric=self.metric,
            stopwatch=_seconds if self.times and not self.is_remote else None,
            progress=self.progress,
            differentiate=to_jax,
        )

    def _noticed(self) -> Iterable[Sample]:
        """The samples, for a pass."""
        assert self.inputs is not None
        self.looked = True
        return self.inputs()

    def _attempt(self, pipeline: Pipeline, mode: Mode) -> _Attempt:
        from planish.passes.observers.verify import Verify

        graph = _clone(self.original)
        verify = Verify(self.samples, each=mode == "each", floor=self.floor)
        ctx = self._context(verify)
        pipeline.run(graph, ctx)
        return _Attempt(graph, ctx, verify)

    def _run_original(self, model: Model, engine: Backend, data: Data | None) -> Executable | None:
        """The original, compiled, after it has computed ``self.expected``; None if it runs on no synthesized sample."""
        from planish.comparison import compile_model, samples_for
        from planish.data import bind_sizes, synthesize_more
        from planish.passes.observers.verify import largest_difference

        try:
            if data is not None:
                self._read(data)
            program = compile_model(model, self.original, engine.runner())
            given = None if self.inputs is None else list(itertools.islice(self.inputs(), _MAX_SAMPLES))
            self.samples, self.expected, source = samples_for(self.original, program, given, _MAX_SAMPLES)
            if self.inputs is None:
                more = synthesize_more(self.original, self.samples[-1], _MADE_UP)
                self.inputs, self.made_up = (lambda: more), True
            self.floor = 4 * largest_difference([program(self.samples[0])], self.expected[:1])[0]
        except PlanishError as error:
            if data is not None:
                raise
            self.verification.note = f"the original does not run: {_first_line(error)}"
            return None
        self.sizes = bind_sizes(self.original, self.samples[0])
        self.verification.source = source
        return program

    # verifying

    def _verified(self, pipeline: Pipeline, mode: Mode, engine: Backend) -> tuple[_Attempt, Executable | None]:
        """Run ``pipeline``; if the result is wrong, run it again and take back what is at fault."""
        attempt = self._attempt(pipeline, mode)
        program = self._check(attempt, mode, engine)
        if self.verification.verdict == "failed" and mode == "end":
            self.progress("the result is wrong: looking for the rewrite at fault")
            attempt = self._attempt(pipeline, "each")
            program = self._check(attempt, "each", engine)
        return attempt, program

    def _check(self, attempt: _Attempt, mode: Mode, engine: Backend) -> Executable | None:
        """Compile the result and compare it with the original; the outcome is in ``self.verification``."""
        from planish.comparison import compile_model
        from planish.ir.verify import VerifyError, verify

        found = self.verification
        found.mode, found.verdict = mode, "off"
        self.progress("comparing with the original")
        try:
            if mode != "off":
                verify(attempt.graph)
                found.verdict = "structure"
            if not self.samples:
                return None
            program = compile_model(None, attempt.graph, engine)
            outputs = [program(sample) for sample in self.samples]
        except VerifyError as error:
            found.verdict, found.note = "failed", f"the graph is malformed: {error.problems[0]}"
            return None
        except PlanishError as error:
            found.verdict, found.note = "failed", f"the result does not run: {_first_line(error)}"
            return None
        if mode != "off":
            self._compare(outputs, attempt)
        return program

    def _compare(self, outputs: list[dict[str, Any]], attempt: _Attempt) -> None:
        from planish.passes.observers.verify import largest_difference, noise_floor

        assert attempt.verify is not None
        found = self.verification
        found.samples = len(self.samples)
        found.difference, found.output = largest_difference(outputs, self.expected)
        tolerance = attempt.verify.tolerance(attempt.ctx)
        found.tolerance = None if tolerance is None else max(tolerance, noise_floor(self.original), self.floor)
        wrong = found.tolerance is not None and found.difference > found.tolerance
        found.verdict = "failed" if wrong else "passed"
        found.note = _remarks(self.expected, self.floor)
        if wrong and not any(r.edits for r in attempt.ctx.results):
            found.note = "the model as imported differs from the file already, before any pass"

    # measuring

    def _fastest(
        self, attempt: _Attempt, report: Report, first: Executable, second: Executable, mode: Mode, engine: Backend
    ) -> tuple[_Attempt, Report]:
        """Measure; where the result is slower, try without one of the passes, and at worst keep the original."""
        report.latency = self._measure(first, second)
        if not report.latency.is_slower:
            return attempt, report
        slower = report.latency
        why = f"{1 / slower.speedup:.2f}x the original's latency ({slower.after} instead of {slower.before})"
        blameless = {str(p) for p in self.pipeline.passes if p.keeps_latency}
        culprits = [r.name for r in report.passes if r.edits and r.name not in blameless]
        for name in reversed(list(dict.fromkeys(culprits)) if len(set(culprits)) > 1 else []):
            pipeline = Pipeline([p for p in self.pipeline.passes if str(p) != name])
            if not self._is_faster_without(name, first, mode, engine):
                continue
            other, program = self._verified(pipeline, mode, engine)
            if program is None or self.verification.verdict == "failed":
                continue
            latency = self._measure(first, program)
            if not latency.is_slower:
                report = self._report(other, report.before)
                report.latency, report.fallback = latency, f"without {name}: with it, the model takes {why}"
                return other, report
        kept = _Attempt(_clone(self.original), attempt.ctx, attempt.verify)
        self._check(kept, mode, engine)
        for r in report.passes:
            r.problem, r.edits = r.problem or "not used: slower", 0
            r.fired.clear()
        report = self._report(kept, report.before)
        report.latency, report.fallback, report.near_misses = slower, f"to the original: the result takes {why}", []
        return kept, report

    def _is_faster_without(self, name: str, first: Executable, mode: Mode, engine: Backend) -> bool:
        """Whether it is worth while to run the pipeline without a pass: not where it is slow even before training."""
        if not any(p.keeps_latency for p in self.pipeline.passes):
            return True
        quick = Pipeline([p for p in self.pipeline.passes if str(p) != name and not p.keeps_latency])
        _, program = self._verified(quick, mode, engine)
        return program is not None and not self._measure(first, program).is_slower

    def _measure(self, first: Executable, second: Executable) -> Comparison:
        from planish.measure import estimate_pair, measure_pair

        self.progress("measuring")
        sample = self.samples[0]
        if self.is_remote:
            return estimate_pair(first.estimate(sample), second.estimate(sample))
        found = measure_pair(lambda: first(sample), lambda: second(sample))
        return measure_pair(lambda: first(sample), lambda: second(sample), 8) if found.is_slower else found

    # reporting

    def _report(self, attempt: _Attempt, before: Size) -> Report:
        from copy import copy

        report = Report(
            str(self.pipeline), self.target, before, size_of(attempt.graph, self.sizes), attempt.ctx.results
        )
        report.verification = copy(self.verification)
        report.notes += [note for r in attempt.ctx.results for note in r.notes]
        if self.made_up and self.looked:
            report.notes.append(_WARNING)
        if not report.changed:
            report.near_misses = _nearest(attempt.graph, self.pipeline)
        return report


_WARNING = (
    f"passes looked at {_MADE_UP} made-up samples: what they took from them, such as ranges, and what is lost on real "
    "inputs, are guesses; give --data to know"
)


def _metric(metric: Metric | str | None) -> Metric | None:
    """The function, which tells what is wrong with a user's function if it fails."""
    if metric is None:
        return None
    from planish.functions import load_function, one_line

    function = load_function(metric) if isinstance(metric, str) else metric

    def checked(outputs: list[dict[str, Any]]) -> float:
        try:
            return float(function(outputs))
        except Exception as error:
            raise RequestError(f"the metric fails: {one_line(error)}") from error

    return checked


def _seconds(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """The seconds per run of both, from a short measurement."""
    from planish.measure import measure_pair

    found = measure_pair(first, second, 0.05)
    return found.speedup * found.after.median, found.after.median


def _clone(graph: Graph) -> Graph:
    from planish.ir.clone import clone_graph

    return clone_graph(graph)


def _require_sound(graph: Graph) -> None:
    """Refuse a model that is malformed before anything is done to it."""
    from planish.ir.verify import VerifyError, verify

    try:
        verify(graph)
    except VerifyError as error:
        where = "" if error.node is None else f" at {error.node.op} {error.node.name!r}"
        origin = "" if error.node is None else str(error.node.origin)
        text = f"the model is malformed: {error.problems[0]}{where}" + (f" [{origin}]" if origin else "")
        raise PlanishError(text) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _remarks(outputs: list[dict[str, Any]], floor: float) -> str:
    """What a reader must know about the original's outputs to judge a comparison with them."""
    import numpy as np

    arrays = [(n, v) for o in outputs for n, v in o.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    names = sorted({n for n, v in arrays if not np.isfinite(v).all()})
    remarks = [f"the original computes NaN or infinity in {', '.join(names)}, and so does the result"] if names else []
    if floor:
        remarks.append(f"two runs of the original differ by {floor / 4:.1e} of the range")
    return "; ".join(remarks)


def _nearest(graph: Graph, pipeline: Pipeline) -> list[str]:
    from planish.passes.observers.explain import grouped, near_misses, rules_of

    misses = [m for m in near_misses(graph, rules_of(pipeline)) if m.is_close]
    return [f"{miss} ({times} time{'s' if times > 1 else ''})" for miss, times in grouped(misses)[:_NEAREST]]
