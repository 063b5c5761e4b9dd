"""`compare`: the numeric differences between two models on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.ir import Graph
from planish.ir.errors import PlanishError
from planish.models import is_own_kind, load

if TYPE_CHECKING:
    from planish.backends.base import Backend, Executable
    from planish.data import Data, Sample
    from planish.models import Model

__all__ = ["Differences", "OutputDifference", "compare", "compile_any", "compile_model", "samples_for"]

_MAX_SAMPLES = 16


@dataclass(frozen=True)
class OutputDifference:
    """How one output of the second model differs from the first's, over all samples.

    Attributes:
        name: of the output.
        type: its element type and shape in the last sample.
        relative: the largest difference, relative to the largest magnitude; infinite where shapes or types differ.
        absolute: the largest difference.
        mean: the mean difference.
        cosine: the smallest cosine similarity.
        non_finite: the number of elements of the first that are NaN or infinite.
    """

    name: str
    type: str
    relative: float
    absolute: float
    mean: float
    cosine: float
    non_finite: int


@dataclass(frozen=True)
class Differences:
    """The differences per output, and the inputs that they were seen on."""

    outputs: list[OutputDifference]
    samples: int
    source: str

    @property
    def largest(self) -> float:
        """The largest relative difference of all outputs."""
        return max((o.relative for o in self.outputs), default=0.0)


def compile_model(model: Model, graph: Graph, engine: Backend, **options: Any) -> Executable:
    """The model as the user has it: the very file if the backend reads it, or else the imported graph."""
    if engine.name == "onnxruntime":
        options = {"spinning": False, **options}
        if str(model).endswith(".onnx"):
            try:
                return engine.load(str(model), **options)
            except PlanishError:  # ONNX Runtime reads less than planish does, such as operators that can be lowered
                pass
    return engine.compile(graph, **options)


def compile_any(model: Model, engine: Backend) -> tuple[Executable, list[str]]:
    """A model, or a file of the engine's own kind, and the names of the inputs that it needs."""
    if is_own_kind(model, engine):
        program = engine.load(str(model))
        return program, [name for name, _ in program.inputs]
    graph = load(model)
    return compile_model(model, graph, engine), [v.name for v in graph.inputs if v.default is None]


def samples_for(
    graph: Graph, program: Executable, data: Data | None, limit: int
) -> tuple[list[Sample], list[dict[str, Any]], str]:
    """Samples, what ``program`` computes for them, and where they come from (``given`` or ``synthesized``).

    Two synthesized samples tell a dimension from a number that happens to be the same.

    Raises:
        PlanishError: the data do not fit, or the program runs on none of the samples.
    """
    from planish.data import read_samples, synthesize

    if data is not None:
        samples = read_samples(data, graph, limit)
        return samples, [program(s) for s in samples], "given"
    samples, outputs, problem = [], [], "some input has a type that has no obvious values"
    for sample in synthesize(graph):
        try:
            outputs.append(program(sample))
        except PlanishError as error:
            problem = str(error).splitlines()[0]
            continue
        samples.append(sample)
        if len(samples) == 2:
            break
    if not samples:
        raise PlanishError(f"it does not run on synthesized inputs, give --data: {problem}")
    return samples, outputs, "synthesized"


def compare(first: Model, second: Model, data: Data | None = None, *, target: str = "onnxruntime") -> Differences:
    """Run two models on the same inputs.

    Args:
        first: the reference; see `planish.load`.
        second: what is compared with it: such a model, or a file of the backend's own kind.
        data: sample inputs; None synthesizes some.
        target: the backend that runs both.

    Raises:
        PlanishError: a model cannot be run, or they have different inputs or outputs.
    """
    from planish.backends.base import backend

    engine = backend(target)
    graph = load(first)
    names = [v.name for v in graph.inputs if v.default is None]
    program, others = compile_any(second, engine)
    if sorted(names) != sorted(others):
        raise PlanishError(f"the inputs differ: {', '.join(names)} and {', '.join(others)}")
    samples, expected, source = samples_for(graph, compile_model(first, graph, engine), data, _MAX_SAMPLES)
    return Differences(differences(expected, [program(s) for s in samples]), len(samples), source)


def differences(expected: Sequence[Mapping[str, Any]], actual: Sequence[Mapping[str, Any]]) -> list[OutputDifference]:
    """The differences per output.

    Raises:
        PlanishError: the outputs have different names.
    """
    names = list(expected[0])
    if sorted(names) != sorted(actual[0]):
        raise PlanishError(f"the outputs differ: {', '.join(names)} and {', '.join(actual[0])}")
    return [_difference(name, [e[name] for e in expected], [a[name] for a in actual]) for name in names]


def _difference(name: str, expected: list[Any], actual: list[Any]) -> OutputDifference:
    from planish.passes.numerics import error_of

    relative = max(error_of(a, e) for a, e in zip(actual, expected, strict=True))
    absolute, means, cosines, non_finite = 0.0, [0.0], [1.0], 0
    for a, e in zip(actual, expected, strict=True):
        if not _is_numeric(a, e):
            continue
        a, e = a.astype(np.float64), e.astype(np.float64)
        non_finite += int(e.size - np.isfinite(e).sum())
        both = np.isfinite(a) & np.isfinite(e)
        if both.any():
            gap = np.abs(a[both] - e[both])
            absolute = max(absolute, float(gap.max()))
            means.append(float(gap.mean()))
            scale = float(np.linalg.norm(a[both]) * np.linalg.norm(e[both]))
            cosines.append(float(a[both] @ e[both]) / scale if scale else 1.0)
    last = expected[-1]
    type_ = f"{last.dtype}{list(last.shape)}" if isinstance(last, np.ndarray) else type(last).__name__
    return OutputDifference(name, type_, relative, absolute, max(means), min(cosines), non_finite)


def _is_numeric(a: Any, e: Any) -> bool:
    arrays = isinstance(a, np.ndarray) and isinstance(e, np.ndarray)
    return arrays and a.shape == e.shape and e.dtype.kind in "fiubV" and e.size > 0
