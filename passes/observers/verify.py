"""Verify: the graph is well formed after every pass, and computes what it computed before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...ir import DType, Graph, Node
from ...ir.verify import VerifyError, verify
from ..base import Context, Failure, Observer, Pass, Runner
from ..numerics import Numerics, error_of
from ..rules import Replacement

__all__ = ["Verify", "largest_difference", "noise_floor", "run_all"]

Arrays = Mapping[str, Any]
_STEPS = 8  # rounding steps of the least precise type that may add up between two orders of evaluation
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "DynamicQuantizeMatMul")


def run_all(runner: Runner, graph: Graph, samples: Sequence[Arrays]) -> list[dict[str, Any]]:
    """The outputs of ``graph`` for every sample."""
    return [runner.run(graph, sample) for sample in samples]


def largest_difference(actual: Sequence[Arrays], expected: Sequence[Arrays]) -> tuple[float, str]:
    """The largest difference relative to its output's range, and the name of that output."""
    worst, where = 0.0, ""
    for a, e in zip(actual, expected, strict=True):
        for name, value in e.items():
            error = error_of(a.get(name), value)
            if error > worst:
                worst, where = error, name
    return worst, where


def noise_floor(graph: Graph) -> float:
    """How far results may move, relative to their range, by how the least precise type (or quantizer) rounds.

    0 for graphs that are no less precise than single precision: declared numerics are made for these.
    """
    floor = 0.0
    for node in graph.walk():
        if node.op_type in _QUANTIZERS or node.op_type.startswith("QLinear"):
            return 2.0**-6
        for value in node.results:
            if value.dtype is DType.FLOAT16:
                floor = max(floor, _STEPS * 2.0**-10)
            elif value.dtype is DType.BFLOAT16:
                floor = max(floor, _STEPS * 2.0**-7)
    return floor


class Verify(Observer):
    """Raises `Failure` when a pass leaves the graph malformed, or changes its outputs beyond what is declared.

    What is declared are the numerics of the pass and of the rules that fired in it.

    Args:
        samples: inputs by name; without any, only the structure is verified.
        each: verify after each pass; otherwise only the declared numerics are kept, for a comparison at the end.
        tolerance: what to allow instead of the declared numerics.
        floor: what to allow in any case, because two runs of the original differ by as much.

    Attributes:
        reference: the outputs of the original graph, once they have been needed.
    """

    judges = True

    def __init__(
        self, samples: Sequence[Arrays] = (), *, each: bool = True, tolerance: float | None = None, floor: float = 0.0
    ):
        self.samples = samples
        self.each = each
        self.fixed_tolerance = tolerance
        self.floor = floor
        self.reference: list[dict[str, Any]] | None = None
        self._accepted: list[dict[str, Any]] = []  # outputs before the current pass
        self._pending: list[dict[str, Any]] | None = None  # outputs after it, until it is known to stand
        self._declared: dict[int, dict[str, Numerics]] = {}  # per pass: its own numerics and those of its rules

    def before_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> bool:
        self._declared[len(ctx.results)] = {str(pass_): pass_.numerics}
        if self.each and self.samples:
            if self.reference is None:
                self.reference = self._accepted = run_all(ctx.runner, graph, self.samples)
            elif self._pending is not None and not ctx.results[-2].problem:
                self._accepted = self._pending
        self._pending = None
        return True

    def after_rewrite(self, replacement: Replacement, nodes: list[Node], ctx: Context) -> None:
        self._declared.setdefault(len(ctx.results), {})[replacement.rule.name] = replacement.rule.numerics

    def after_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        if not self.each:
            return
        try:
            verify(graph)
        except VerifyError as error:
            raise Failure(f"the graph is malformed: {error.problems[0]}") from error
        if self.samples:
            self._pending = self._compare(pass_, graph, ctx)

    def _compare(self, pass_: Pass, graph: Graph, ctx: Context) -> list[dict[str, Any]]:
        try:
            outputs = run_all(ctx.runner, graph, self.samples)
        except Exception as error:  # whatever keeps the changed graph from running is the pass's doing
            raise Failure(f"the graph no longer runs: {_one_line(error)}") from error
        allowed = self._tolerance_of(len(ctx.results))
        if allowed is not None:
            difference, name = largest_difference(outputs, self._accepted)
            if difference > max(allowed, self.floor) and difference > noise_floor(graph):
                raise Failure(f"output {name!r} changes by {difference:.1e} of its range, more than {allowed:.0e}")
        return outputs

    def _tolerance_of(self, number: int) -> float | None:
        if self.fixed_tolerance is not None:
            return self.fixed_tolerance
        bounds = [numerics.tolerance for numerics in self._declared.get(number, {}).values()]
        return None if None in bounds else max((b for b in bounds if b is not None), default=0.0)

    def tolerance(self, ctx: Context) -> float | None:
        """What all passes that stand may change together; None if one of them is lossy."""
        if self.fixed_tolerance is not None:
            return self.fixed_tolerance
        changed = [i for i, r in enumerate(ctx.results, 1) if r.edits and not r.problem]
        bounds = [self._tolerance_of(i) for i in changed]
        return None if None in bounds else sum(b for b in bounds if b is not None)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
