"""Passes, and the context in which they run.

A pass is a frozen dataclass whose fields are its options, so that it prints and parses as ``name{option=value,…}``.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from ..ir import Graph, Node, Type, Value
from ..ir.errors import PlanishError
from .numerics import Exact, Numerics
from .rewrite import RuleIndex, rewrite
from .rules import Replacement, Rule

__all__ = [
    "Context",
    "Differentiable",
    "Failure",
    "Observer",
    "Pass",
    "PassError",
    "PassResult",
    "RequestError",
    "RewritePass",
    "Runner",
]

Arrays = Mapping[str, Any]


class PassError(PlanishError):
    """A pass cannot do what it was asked to; the message says why and what to do."""


class RequestError(PassError):
    """What was asked for makes no sense for this model or these data: the run ends, and nothing comes out."""


class Runner(Protocol):
    """Runs graphs for passes and observers, so that these need not import a backend."""

    def run(self, graph: Graph, inputs: Arrays) -> dict[str, Any]:
        """The outputs of ``graph`` by name."""
        ...

    def compile(self, graph: Graph) -> Callable[[Arrays], dict[str, Any]]:
        """``graph`` as a function from inputs to outputs by name."""
        ...

    def evaluate(self, node: Node, operands: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """The results of one node for concrete operands."""
        ...


class Differentiable(Protocol):
    """A graph as a pure function of its weights and inputs that JAX can trace, differentiate and compile."""

    inputs: list[tuple[str, Type]]
    outputs: list[str]

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The weights by name."""
        ...

    def __call__(self, params: Mapping[str, Any], *inputs: Any) -> tuple[Any, ...]:
        """The outputs, in the order of ``outputs``."""
        ...

    def constants(self, graph: Graph) -> dict[str, list[Value]]:
        """The constants of ``graph``, the one that this was made of, that each of ``params`` stands for."""
        ...

    def write_back(self, params: Mapping[str, Any], graph: Graph) -> None:
        """Store ``params`` as the constants of ``graph``."""
        ...


@dataclass(frozen=True)
class Pass:
    """Base class of passes. Subclasses are frozen dataclasses and implement `run`.

    Attributes:
        numerics: what the pass promises about the values that the graph computes.
        keeps_latency: whether it changes nothing but numbers, so that its result is as fast as what it was given.
    """

    numerics: ClassVar[Numerics] = Exact()
    keeps_latency: ClassVar[bool] = False

    @property
    def needs_original(self) -> bool:
        """Whether it looks at the graph as it was before the first pass (`Context.original`)."""
        return False

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        """Names of arrays that the pass reads from the data besides the inputs of the model: labels, say."""
        return ()

    @classmethod
    def pass_name(cls) -> str:
        """The name in pipelines: the class name in kebab case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()

    def run(self, graph: Graph, ctx: Context) -> None:
        """Change ``graph`` in place, through `planish.ir.edit` only.

        Raises:
            PassError: it cannot be done; the pipeline takes the edits back and goes on.
        """
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        found = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            if value != default or type(value) is not type(default):
                found[f.name] = value
        return found

    def __str__(self) -> str:
        from .pipeline import format_options

        return self.pass_name() + format_options(self.options())


class RewritePass(Pass):
    """A pass that applies a set of rules until none fires: set ``rules``, in the order of preference."""

    rules: ClassVar[Sequence[Rule]] = ()

    def run(self, graph: Graph, ctx: Context) -> None:
        rewrite(graph, RuleIndex(self.rules), ctx)


class Observer:
    """Sees every pass and every rewrite, and may veto either. The base class does nothing."""

    def before_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> bool:
        """False skips the pass."""
        return True

    def after_pass(self, pass_: Pass, graph: Graph, ctx: Context) -> None:
        """The pass has run. Raising `Failure` makes the pipeline find and disable the rewrite at fault."""

    def before_rewrite(self, replacement: Replacement, ctx: Context) -> bool:
        """False keeps the rewrite from happening; nothing has changed yet."""
        return True

    def after_rewrite(self, replacement: Replacement, nodes: list[Node], ctx: Context) -> None:
        """The rewrite has put ``nodes`` in place."""


class Failure(Exception):
    """What an observer found wrong with the graph after a pass: its message is one line."""


@dataclass
class PassResult:
    """What one pass did.

    Attributes:
        name: the pass as text.
        fired: how often each rule fired.
        edits: the number of edits.
        seconds: wall time of the pass itself, without observers.
        problem: why it was rolled back, or "".
        disabled: rules that were disabled because a rewrite of theirs broke a promise, with what it broke.
        table: what else there is to report, one dictionary of facts per row.
        notes: what the reader must know besides, one line each.
        missed: what was asked of the pass and could not be reached, or "".
    """

    name: str
    fired: Counter[str] = field(default_factory=Counter)
    edits: int = 0
    seconds: float = 0.0
    problem: str = ""
    disabled: dict[str, str] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missed: str = ""


@dataclass
class Context:
    """What passes share during one run of a pipeline.

    Attributes:
        runner_factory: makes a `Runner` when first needed; None if graphs cannot be run.
        observers: in the order in which they are asked.
        target: the target that the result is for (``onnxruntime:x64``).
        disabled: names of rules that must not fire.
        results: one record per pass that has run, in order.
        samples: makes the sample inputs that passes may look at, as often as they are needed; None if there are none.
        labelled: the same samples, with the arrays that passes ask for by `Pass.extra_arrays`; None if there are none.
        metric: the quality of outputs for these samples, in their order, the higher the better; None to compare the
            outputs with those of the original.
        stopwatch: the seconds that each of two functions takes, measured side by side; None if nothing may be measured.
        progress: is told what is going on.
        limit: how many more rewrites the current pass may make; None for no limit (see `planish.passes.bisect`).
        differentiate: makes a function of a graph that has gradients; None if there are none to be had.
        original: the graph before the first pass, for passes that compare with it or learn from it; nobody changes it.
        following: the passes behind the current one in the pipeline.
    """

    runner_factory: Callable[[], Runner] | None = None
    observers: list[Observer] = field(default_factory=list)
    target: str = "onnxruntime"
    disabled: set[str] = field(default_factory=set)
    results: list[PassResult] = field(default_factory=list)
    samples: Callable[[], Iterable[Arrays]] | None = None
    labelled: Callable[[], Iterable[Arrays]] | None = None
    metric: Callable[[list[dict[str, Any]]], float] | None = None
    stopwatch: Callable[[Callable[[], object], Callable[[], object]], tuple[float, float]] | None = None
    progress: Callable[[str], None] = lambda message: None
    limit: int | None = None
    differentiate: Callable[[Graph], Differentiable] | None = None
    original: Graph | None = None
    following: tuple[Pass, ...] = ()
    last: Replacement | None = None
    _runner: Runner | None = None

    @property
    def runner(self) -> Runner:
        """The runner.

        Raises:
            PassError: the context was made without one.
        """
        if self._runner is None:
            if self.runner_factory is None:
                raise PassError("this pass must run the model, and the context has no runner: pass runner_factory=")
            self._runner = self.runner_factory()
        return self._runner

    @property
    def can_run(self) -> bool:
        """Whether there is a runner."""
        return self._runner is not None or self.runner_factory is not None

    def differentiable(self, graph: Graph) -> Differentiable:
        """``graph`` as a function that has gradients.

        Raises:
            RequestError: the context was made without them, or what they need is not installed.
            PlanishError: an operator has no lowering.
        """
        if self.differentiate is None:
            raise RequestError("this pass needs gradients, and the context has none: pass differentiate=planish.to_jax")
        return self.differentiate(graph)

    def allows(self, replacement: Replacement) -> bool:
        """Whether a rewrite may happen: its rule is enabled, the limit is not reached, and no observer objects."""
        if self.disabled and replacement.rule.name in self.disabled:
            return False
        if self.limit is not None and self.limit <= 0:
            return False
        return all(observer.before_rewrite(replacement, self) for observer in self.observers)

    def rewritten(self, replacement: Replacement, nodes: list[Node]) -> None:
        """Record that a rewrite has happened."""
        if self.limit is not None:
            self.limit -= 1
            self.last = replacement
        if self.results:
            self.results[-1].fired[replacement.rule.name] += 1
        for observer in self.observers:
            observer.after_rewrite(replacement, nodes, self)

    def note(self, what: str, count: int = 1) -> None:
        """Record something that a pass did which is no rewrite by a rule."""
        if self.results and count:
            self.results[-1].fired[what] += count
