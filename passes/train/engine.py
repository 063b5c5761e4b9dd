"""`fit`: minimizes a loss over the weights of a graph, by gradients, on batches of the samples.

A pass states what it wants as a `Problem`: a graph, a loss of its outputs, and whatever else the loss needs. The graph
becomes a function through `Context.differentiable`, with the weights that are trained among its inputs: so only these
have gradients, and scalars can be trained as well. Nothing is changed until `Fit.store`.

    fit(Problem(graph, loss, trainable_weights(graph)), training, ctx).store()
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...ir import ArrayTensor, Graph, Tensor, Value, edit
from ..base import Context, RequestError
from ..calibration import fingerprint
from .batches import Batch, Read, Stream
from .checkpoint import read_checkpoint, write_checkpoint
from .forward import Forward
from .optimizers import make_optimizer, rate_at
from .options import Training
from .ties import follow, trained_part

__all__ = ["Fit", "Problem", "fit"]

Array = np.ndarray[Any, Any]
Traced = Any  # a jax.Array, or a tracer of one
Loss = Callable[[Mapping[str, Traced], Mapping[str, Traced], Any], Mapping[str, Traced]]

_EVALUATIONS = 20  # on held-out rows, in the course of training
_MINUTE = 60.0  # seconds between checkpoints
_SHAPES = 8  # of rows: more take long to compile for
_ROWS = 10  # of the curve, in reports
_TELL = 0.5  # seconds between reports of progress
_RATES = range(-10, -2)  # half decades: 1e-5 to 3e-2
_FIRST_RATE = -6  # 1e-3
_TRIAL = 20  # the part of the steps that the trial of a rate takes


@dataclass(frozen=True)
class Problem:
    """What is minimized.

    Attributes:
        graph: a root graph.
        loss: called as ``loss(outputs, batch, extra)`` while it is traced: outputs of the graph and ``taps`` by name;
            inputs, ``labels`` and targets by name; and ``extra``. Returns the terms whose sum is minimized, each a
            mean over the rows, by name.
        weights: the constants that are trained, by names of their own (`trainable_weights`). All constants with the
            same tensor are trained as one.
        extra: a tree of float32 arrays that are trained along and are no part of the graph.
        taps: further values of ``graph`` that the loss sees, by names that no output has.
        targets: what else the loss must know of a batch, by name: the outputs of a teacher, say. Called with every
            batch.
        prepare: called before training with all batches in the order of the data, held-out rows included.
        change: makes another batch of one, deterministically by the generator: augmentation. Only for training.
        labels: names of arrays in the samples that are no inputs of the graph.
        apply: what the graph computes with instead of ``weights``, as a function of ``(weights, extra)`` that is
            traced; None: themselves.
        limit: what ``(weights, extra)`` become after each update; None: they stay.
        rates: factors of the learning rate, by names of weights; 1 where there is none.
        read: the samples; None: those of the context.
        identity: what the outcome depends on besides the pass and the graph (a teacher); for checkpoints.
    """

    graph: Graph
    loss: Loss
    weights: Mapping[str, Value]
    extra: Any = None
    taps: Mapping[str, Value] = field(default_factory=dict)
    targets: Callable[[Batch], Mapping[str, Any]] | None = None
    prepare: Callable[[Iterable[Batch]], None] | None = None
    change: Callable[[Batch, np.random.Generator], Batch] | None = None
    labels: Sequence[str] = ()
    apply: Callable[[Mapping[str, Traced], Any], Mapping[str, Traced]] | None = None
    limit: Callable[[dict[str, Traced], Any], tuple[dict[str, Traced], Any]] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    read: Read | None = None
    identity: str = ""


@dataclass
class Fit:
    """What training has found.

    Attributes:
        problem: the problem.
        weights: the trained weights by name, float32.
        extra: what ``Problem.extra`` has become.
        curve: rows of ``step``, ``loss`` (the mean over the steps since the row before; None at step 0), its terms
            if there are several, and ``held out``, the loss on the rows that are; or, if none are, ``on data`` in the
            first and the last row, the loss on some that are trained on.
        steps: the number of updates.
        best: the step whose weights these are.
        loss: their loss on the rows that judge.
        rate: the highest learning rate, as asked for or found.
    """

    problem: Problem
    weights: dict[str, Array]
    extra: Any
    curve: list[dict[str, Any]]
    steps: int
    best: int
    loss: float
    rate: float

    def store(self) -> None:
        """Put the trained weights in the graph, by edits, in the types that the weights had."""
        new: dict[Tensor, Tensor] = {}
        for name, weight in self.problem.weights.items():
            if (old := weight.const) is not None:
                new[old] = ArrayTensor(self.weights[name].astype(old.dtype.numpy), old.dtype, old.name)
        for value in self.problem.graph.constants():
            if value.const is None or (base := trained_part(value.const, new)) is None:
                continue
            trained = follow(value.const, base, new[base])
            edit.replace(value, Value(trained.type, value.name, const=trained))


def fit(problem: Problem, training: Training, ctx: Context) -> Fit:
    """Train.

    Some rows of the curve are added to the table of the pass that runs. The graph stays as it is.

    Raises:
        RequestError: there are no samples or too few; the loss is NaN or infinite; jax or optax is missing; a
            checkpoint cannot be used.
        PlanishError: an operator has no lowering.
    """
    read = problem.read if problem.read is not None else ctx.samples
    if read is None:
        raise RequestError("training needs samples: give data")
    stream = Stream(read, problem.graph, training.batch, training.holdout_share, training.seed, problem.labels)
    trainer = _Trainer(problem, training, ctx, stream)
    found = trainer.run()
    if ctx.results:
        ctx.results[-1].table += _thinned(found.curve)
        if len(stream.shapes) > _SHAPES:
            many = f"rows have {len(stream.shapes)} different shapes, each compiled for: padding to a few is faster"
            ctx.results[-1].notes.append(many)
        ctx.note("trained weights", len(found.weights))
        ctx.note("steps", found.steps)
        if not training.rate:
            ctx.results[-1].notes.append(f"learning rate {found.rate:g}, by trial")
        if found.best == 0:
            ctx.results[-1].notes.append("training made nothing better: the weights stay as they were")
    return found


@dataclass
class _State:
    """Where training is: all that the rest of it depends on.

    Attributes:
        params: weights and extra.
        optimizer: the state of the optimizer.
        best: the best params so far.
        best_step: the step after which they were.
        best_loss: their held-out loss.
        step: updates made.
        stale: evaluations since the best.
        curve: see `Fit`.
        losses: of the steps since the latest row of the curve.
        rate: the highest learning rate.
    """

    params: Any
    optimizer: Any
    best: Any
    best_step: int = 0
    best_loss: float = math.inf
    step: int = 0
    stale: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)
    rate: float = 0.0

    FACTS: ClassVar = ("best_step", "best_loss", "step", "stale", "curve", "losses", "rate")

    def arrays(self) -> list[Any]:
        """The arrays, in a fixed order."""
        import jax

        return jax.tree.leaves((self.params, self.optimizer, self.best))

    def facts(self) -> dict[str, Any]:
        """The rest."""
        return {name: getattr(self, name) for name in self.FACTS}

    def restore(self, facts: Mapping[str, Any], arrays: Sequence[Array]) -> None:
        """Become what `facts` and `arrays` were."""
        import jax
        import jax.numpy as jnp

        tree = jax.tree.structure((self.params, self.optimizer, self.best))
        self.params, self.optimizer, self.best = jax.tree.unflatten(tree, [jnp.asarray(a) for a in arrays])
        for name in self.FACTS:
            setattr(self, name, facts[name])


class _Trainer:
    """One call of `fit`."""

    def __init__(self, problem: Problem, training: Training, ctx: Context, stream: Stream):
        self.problem = problem
        self.training = training
        self.ctx = ctx
        self.stream = stream
        per_step = training.accumulate
        self.steps = training.steps
        if training.epochs:
            self.steps = max(training.epochs * stream.batches_per_epoch // per_step, 1)
        self.every = max(self.steps // _EVALUATIONS, 1)
        self.rate = training.rate
        self.optimizer = make_optimizer(training)
        self.forward = Forward(problem.graph, problem.weights, problem.taps, training.precision, ctx)
        self._compile()
        self.judges: list[tuple[int, dict[str, Any]]] | None = None
        self.judged = "held out" if stream.held_out else "on data"  # what their loss is called
        self.first = 0  # the step that training goes on from
        self.started = self.told = self.written = time.monotonic()

    def _compile(self) -> None:
        """The functions that JAX compiles: loss, gradient, sums of gradients, and update."""
        import jax
        import jax.numpy as jnp

        problem, forward = self.problem, self.forward
        initial = forward.weights()
        zeros = self.training.keep_zeros
        masks = {n: w != 0 for n, w in initial.items() if zeros and w.ndim >= 2 and (w == 0).any() and (w != 0).any()}
        factors = {n: float(problem.rates.get(n, 1.0)) for n in initial}

        def loss(params: Any, batch: dict[str, Any], constants: Any) -> tuple[Any, dict[str, Any]]:
            weights, extra = params
            used = weights if problem.apply is None else problem.apply(weights, extra)
            terms = problem.loss(forward(used, batch, constants), batch, extra)
            terms = {name: jnp.asarray(term, jnp.float32) for name, term in terms.items()}
            return sum(terms.values()), terms

        def update(params: Any, state: Any, gradients: Any, rate: Any) -> tuple[Any, Any]:
            changes, state = self.optimizer.update(gradients, state, params)
            changes = ({n: c * factors[n] for n, c in changes[0].items()}, changes[1])
            weights, extra = jax.tree.map(lambda p, c: p + rate * c, params, changes)
            if problem.limit is not None:
                weights, extra = problem.limit(weights, extra)
            return ({n: w * masks[n] if n in masks else w for n, w in weights.items()}, extra), state

        self.loss = jax.jit(loss)
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        self.update = jax.jit(update)
        self.add = jax.jit(lambda total, gradient: jax.tree.map(jnp.add, total, gradient))
        self.divide = jax.jit(lambda total, count: jax.tree.map(lambda g: g / count, total))
        params = jax.tree.map(jnp.asarray, (initial, problem.extra))
        self.state = _State(params, self.optimizer.init(params), params, rate=self.rate)

    def run(self) -> Fit:
        """Train from the beginning, or from the checkpoint, to the end."""
        state = self.state
        self._resume()
        if self.problem.prepare is not None and state.step < self.steps:
            self.ctx.progress("training: computing targets")
            self.problem.prepare(self.stream.in_order())
        batches = self.stream.endless(state.step * self.training.accumulate)
        try:
            self._begin()
            while state.step < self.steps and not self._is_stale():
                self._step(self._next(batches, state.step))
        except RequestError:
            raise  # to go on from here would end here again
        except BaseException:
            self._write()
            raise
        self._write()
        weights, extra = state.best
        found = {name: np.asarray(w) for name, w in weights.items()}
        if not all(np.isfinite(w).all() for w in found.values()):
            raise RequestError(f"weights are NaN or infinite after step {state.step}: {self._advice()}")
        return Fit(self.problem, found, extra, state.curve, state.step, state.best_step, state.best_loss, self.rate)

    # steps

    def _next(self, batches: Iterator[Batch], step: int) -> Iterator[dict[str, Any]]:
        """What is computed with in ``step``."""
        each = self.training.accumulate
        for number in range(step * each, (step + 1) * each):
            yield self._prepared(next(batches), number)

    def _prepared(self, batch: Batch, number: int | None = None) -> dict[str, Any]:
        """What the loss is computed from; ``number`` that of a batch to train on."""
        if number is not None and self.problem.change is not None:
            batch = self.problem.change(batch, np.random.default_rng([self.training.seed, 2, number]))
        targets = {} if self.problem.targets is None else self.problem.targets(batch)
        return self.forward.defaults | batch.arrays | dict(targets)

    def _gradients(self, params: Any, batches: Iterable[dict[str, Any]]) -> tuple[dict[str, float], Any]:
        """The terms of the loss and the gradient, means over ``batches``."""
        terms: dict[str, float] = {}
        total = None
        for batch in batches:
            (_, found), gradient = self.gradient(params, batch, self.forward.constants)
            terms = {name: terms.get(name, 0.0) + float(term) for name, term in found.items()}
            total = gradient if total is None else self.add(total, gradient)
        each = self.training.accumulate
        return {name: term / each for name, term in terms.items()}, total if each == 1 else self.divide(total, each)

    def _step(self, batches: Iterable[dict[str, Any]]) -> None:
        state = self.state
        terms, gradients = self._gradients(state.params, batches)
        self._require_finite(terms)
        rate = rate_at(state.step, self.steps, self.training, self.rate)
        params, optimizer = self.update(state.params, state.optimizer, gradients, rate)
        state.params, state.optimizer, state.step = params, optimizer, state.step + 1
        state.losses.append(terms)
        if state.step % self.every == 0 or state.step == self.steps:
            self._evaluate()
        now = time.monotonic()
        if state.step == self.first + 1:
            self.started = now  # the first step compiles
        if now - self.told > _TELL:
            self.told = now
            self.ctx.progress(self._progress(terms))
        if now - self.written > _MINUTE:
            self._write()

    def _require_finite(self, terms: Mapping[str, float]) -> None:
        bad = {name: value for name, value in terms.items() if not math.isfinite(value)}
        if bad:
            name, value = next(iter(bad.items()))
            what = f"the loss ({name})" if len(terms) > 1 else "the loss"
            step = self.state.step
            advice = self._advice() if step else "look at the model and the data"
            raise RequestError(f"{what} is {value} at step {step} of {self.steps}: {advice}")

    def _advice(self) -> str:
        return f"try a lower rate than {self.rate:g}, such as rate={self.rate / 10:g}"

    def _begin(self) -> None:
        """The first row of the curve, and the rate if it is to be found."""
        self.ctx.progress("training: compiling")
        if not self.state.curve:
            self._evaluate()
        if not self.rate:
            self.rate = self.state.rate = self._found_rate()

    def _found_rate(self) -> float:
        """The rate after which the loss is lowest in a short training, of rates half a decade apart."""
        found: dict[int, float] = {}

        def loss(exponent: int) -> float:
            if exponent not in found:
                self.ctx.progress(f"training: trying the rate {_rate(exponent):g}")
                found[exponent] = self._trial(_rate(exponent))
            return found[exponent]

        best = _FIRST_RATE
        direction = 1 if loss(best + 1) < loss(best) else -1
        while best + direction in _RATES and loss(best + direction) < loss(best):
            best += direction
        if not math.isfinite(loss(best)):
            raise RequestError("the loss becomes NaN or infinite at every rate tried: look at the model and the data")
        return _rate(best)

    def _trial(self, rate: float) -> float:
        """The loss in the last quarter of a short training; infinite if there is none."""
        steps = min(max(self.steps // _TRIAL, 10), 100)
        params, optimizer = self.state.params, self.state.optimizer
        batches = self.stream.endless()
        losses = []
        for step in range(steps):
            terms, gradients = self._gradients(params, self._next(batches, step))
            losses.append(sum(terms.values()))
            if not math.isfinite(losses[-1]):
                return math.inf
            params, optimizer = self.update(params, optimizer, gradients, rate_at(step, steps, self.training, rate))
        last = losses[-(steps // 4) :]
        return sum(last) / len(last)

    def _evaluate(self) -> None:
        """Add a row to the curve, and remember the weights if they are the best."""
        state = self.state
        row: dict[str, Any] = {"step": state.step, "loss": None}
        if state.losses:
            means = {n: sum(t[n] for t in state.losses) / len(state.losses) for n in state.losses[0]}
            row["loss"] = sum(means.values())
            row |= means if len(means) > 1 else {}
        if self.stream.held_out or state.step in (0, self.steps):
            row[self.judged] = loss = self._judged_loss()
            if loss < state.best_loss or not state.curve:
                state.best, state.best_step, state.best_loss, state.stale = state.params, state.step, loss, 0
            else:
                state.stale += 1
        state.losses = []
        state.curve.append(row)

    def _judged_loss(self) -> float:
        if self.judges is None:
            self.judges = [(len(b), self._prepared(b)) for b in self.stream.judges]
        params, constants = self.state.params, self.forward.constants
        found = [(size, float(self.loss(params, batch, constants)[0])) for size, batch in self.judges]
        total = sum(size * value for size, value in found) / sum(size for size, _ in found)
        self._require_finite({self.judged: total})
        return total

    def _is_stale(self) -> bool:
        return bool(self.training.patience) and self.state.stale >= self.training.patience

    def _progress(self, terms: Mapping[str, float]) -> str:
        state = self.state
        per_step = (time.monotonic() - self.started) / max(state.step - self.first - 1, 1)
        text = f"training: step {state.step} of {self.steps}, loss {sum(terms.values()):.4g}"
        if self.stream.held_out:
            text += f", held out {state.curve[-1]['held out']:.4g}"
        if state.step == self.first + 1:
            return text
        return text + f", {_duration(per_step * (self.steps - state.step))} left"

    # checkpoints

    def _identity(self) -> dict[str, str]:
        graph = fingerprint(self.problem.graph)
        facts = {"graph": graph, "teacher": self.problem.identity, "pass": self.training.identity}
        return facts | {"data": f"{self.stream.rows} rows {self.stream.digest:08x}"}

    def _resume(self) -> None:
        state = self.state
        if self.training.checkpoint:
            like = [np.asarray(a) for a in state.arrays()]
            found = read_checkpoint(self.training.checkpoint, self._identity(), like)
            if found is not None:
                state.restore(*found)
                self.rate = state.rate
                if self.ctx.results:
                    self.ctx.results[-1].notes.append(f"training went on from step {state.step} of {self.steps}")
        self.first = state.step

    def _write(self) -> None:
        if self.training.checkpoint and self.state.step:
            arrays = [np.asarray(a) for a in self.state.arrays()]
            write_checkpoint(self.training.checkpoint, self._identity(), self.state.facts(), arrays)
            self.written = time.monotonic()


def _thinned(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row, the last one, and some between, evenly spread."""
    return [curve[round(i)] for i in np.linspace(0, len(curve) - 1, min(len(curve), _ROWS))]


def _rate(half_decades: int) -> float:
    return float(f"{10 ** (half_decades / 2):.0e}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
