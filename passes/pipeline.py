"""Pipelines: sequences of passes, as Python objects and as text.

``Pipeline.parse("simplify,quantize{bits=8},fixpoint(simplify)")`` and the objects are the same thing:
``Pipeline.parse(str(p)) == p``. Running one isolates every pass in a transaction: a pass that raises, or that an
observer finds at fault, is taken back and reported, and the model still comes out.
"""

from __future__ import annotations

import ast
import dataclasses
import time
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..ir import Graph
from ..ir.clone import clone_graph
from ..ir.edit import Transaction
from ..ir.errors import PlanishError
from .base import Context, Failure, Pass, PassResult, RequestError
from .registry import find_pass, find_recipe

__all__ = ["Fixpoint", "Pipeline", "PipelineError", "format_options"]

_MAX_ROUNDS = 20


class PipelineError(PlanishError):
    """The text is no pipeline; the message points at the place."""


def format_options(options: dict[str, Any]) -> str:
    """``{name=value,…}``, or "" for none."""
    return "{" + ",".join(f"{k}={_format(v)}" for k, v in options.items()) + "}" if options else ""


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ",".join(_format(v) for v in value) + "]"
    if isinstance(value, str):
        plain = bool(value) and all(c.isalnum() or c in "_-./:" for c in value) and _parse_scalar(value) == value
        return value if plain else repr(value)
    return "none" if value is None else repr(value)


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes, one after the other. A pipeline is itself a pass."""

    passes: tuple[Pass, ...] = ()

    def __init__(self, *passes: Pass | str | Iterable[Pass]):
        flat: list[Pass] = []
        for p in passes:
            if isinstance(p, str):
                flat.extend(Pipeline.parse(p).passes)
            elif isinstance(p, Pass):
                flat.append(p)
            else:
                flat.extend(p)
        object.__setattr__(self, "passes", tuple(flat))

    @staticmethod
    def parse(text: str) -> Pipeline:
        """The pipeline that ``text`` describes; recipe names stand for the passes of the recipe.

        Raises:
            PipelineError: unknown pass or option, wrong type of a value, or bad syntax.
        """
        parser = _Parser(text)
        passes = parser.sequence()
        if parser.at < len(text):
            raise parser.error("expected ',' or the end")
        return Pipeline(passes)

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)

    @property
    def needs_original(self) -> bool:
        """Whether one of its passes does."""
        return any(p.needs_original for p in self.passes)

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for p in self.passes for name in p.extra_arrays))

    def run(self, graph: Graph, ctx: Context) -> None:
        if ctx.original is None and self.needs_original:
            ctx.original = clone_graph(graph)
        behind = ctx.following
        for i, p in enumerate(self.passes):
            ctx.following = (*self.passes[i + 1 :], *behind)
            if isinstance(p, Pipeline | Fixpoint):
                p.run(graph, ctx)
            else:
                run_pass(p, graph, ctx)
        ctx.following = behind


@dataclass(frozen=True)
class Fixpoint(Pass):
    """Runs its passes again and again until a round changes nothing (at most 20 rounds)."""

    passes: tuple[Pass, ...] = ()

    @property
    def needs_original(self) -> bool:
        """Whether one of its passes does."""
        return Pipeline(self.passes).needs_original

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        return Pipeline(self.passes).extra_arrays

    def __str__(self) -> str:
        return f"fixpoint({Pipeline(self.passes)})"

    def run(self, graph: Graph, ctx: Context) -> None:
        for _ in range(_MAX_ROUNDS):
            before = len(ctx.results)
            Pipeline(self.passes).run(graph, ctx)
            if not any(r.edits for r in ctx.results[before:]):
                return


def run_pass(p: Pass, graph: Graph, ctx: Context) -> PassResult:
    """Run one pass in a transaction. What goes wrong is in the result; the graph is then as it was before the pass.

    When an observer reports a `Failure`, the rewrite at fault is found by bisection, its rule is disabled for the rest
    of the run, and the pass is run again.
    """
    from .bisect import find_culprit

    result = PassResult(str(p))
    ctx.results.append(result)
    if not all(observer.before_pass(p, graph, ctx) for observer in ctx.observers):
        result.problem = "skipped by an observer"
        return result
    while True:
        failure = _attempt(p, graph, ctx, result)
        if failure is None:
            return result
        culprit = find_culprit(p, graph, ctx) if result.fired else None
        if culprit is None or culprit in ctx.disabled:
            result.problem = f"rolled back: {failure}"
            result.fired.clear()
            return result
        ctx.disabled.add(culprit)
        result.disabled[culprit] = str(failure)
        result.fired.clear()


def _attempt(p: Pass, graph: Graph, ctx: Context, result: PassResult) -> Failure | None:
    """Run ``p`` once; on any failure take its edits back and return what went wrong."""
    journal = Transaction(graph)
    with_journal = journal.__enter__()
    started = time.perf_counter()
    try:
        p.run(graph, ctx)
        result.seconds += time.perf_counter() - started
        result.edits = len(with_journal.events)
        if with_journal.events:
            for observer in ctx.observers:
                observer.after_pass(p, graph, ctx)
        return None
    except Failure as failure:
        with_journal.rollback()
        result.edits = 0
        return failure
    except (MemoryError, KeyboardInterrupt, RequestError):
        with_journal.rollback()
        raise
    except Exception as error:  # noqa: BLE001 - a failing pass must not take the model with it: it is reported and undone
        with_journal.rollback()
        result.edits = 0
        result.fired.clear()
        return Failure(f"{type(error).__name__}: {error}")
    finally:
        journal.close()


class _Parser:
    """Recursive descent over ``name{k=v,…}``, ``fixpoint(…)`` and commas."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def error(self, message: str) -> PipelineError:
        return PipelineError(f"pipeline {self.text!r}, column {self.at + 1}: {message}")

    def peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self, character: str) -> bool:
        if self.peek() == character:
            self.at += 1
            return True
        return False

    def expect(self, character: str) -> None:
        if not self.take(character):
            raise self.error(f"expected {character!r}")

    def name(self) -> str:
        self.peek()
        start = self.at
        while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] in "-_"):
            self.at += 1
        if start == self.at:
            raise self.error("expected the name of a pass")
        return self.text[start : self.at]

    def sequence(self) -> list[Pass]:
        passes = self.item()
        while self.take(","):
            passes.extend(self.item())
        return passes

    def item(self) -> list[Pass]:
        start = self.at
        name = self.name()
        if name == "fixpoint":
            self.expect("(")
            inner = self.sequence()
            self.expect(")")
            return [Fixpoint(tuple(inner))]
        recipe = find_recipe(name)
        if recipe is not None:
            return list(Pipeline.parse(recipe).passes)
        try:
            cls = find_pass(name)
        except LookupError as error:
            self.at = start
            raise self.error(str(error)) from None
        return [self.construct(cls)]

    def construct(self, cls: type[Pass]) -> Pass:
        options: dict[str, Any] = {}
        fields = {f.name: f for f in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        if self.take("{"):
            while not self.take("}"):
                start = self.at
                key = self.name().replace("-", "_")
                if key not in fields:
                    self.at = start
                    raise self.error(f"{cls.pass_name()} has no option {key!r}; it has {', '.join(fields) or 'none'}")
                self.expect("=")
                start = self.at
                options[key] = self.value()
                if not _matches(options[key], hints[key]):
                    self.at = start
                    raise self.error(f"{key} takes {_describe(hints[key])}, not {options[key]!r}")
                if hints[key] is float and isinstance(options[key], int):
                    options[key] = float(options[key])
                if not self.take(","):
                    self.expect("}")
                    break
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise self.error(f"{cls.pass_name()}: {error}") from None

    def value(self) -> Any:
        if self.take("["):
            items = []
            while not self.take("]"):
                items.append(self.value())
                if not self.take(","):
                    self.expect("]")
                    break
            return tuple(items)
        quote = self.peek()
        start = self.at
        if quote in ("'", '"'):
            end = start + 1
            while end < len(self.text) and self.text[end] != quote:
                end += 2 if self.text[end] == "\\" else 1
            if end >= len(self.text):
                raise self.error("the string does not end")
            self.at = end + 1
            return ast.literal_eval(self.text[start : self.at])
        while self.at < len(self.text) and self.text[self.at] not in ",{}[]()":
            self.at += 1
        word = self.text[start : self.at].strip()
        if not word:
            raise self.error("expected a value")
        return _parse_scalar(word)


def _parse_scalar(word: str) -> Any:
    if word in ("true", "false"):
        return word == "true"
    if word == "none":
        return None
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _matches(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is tuple:
        element = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_matches(v, element) for v in value)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    alternatives = typing.get_args(hint)
    if alternatives:
        return any(_matches(value, a) for a in alternatives)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))
