"""Calls, which are inlined, and branches: If and Case. Loops are in `planish.frontends.tensorflow.ops.loops`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ....ir.edit import erase, is_dead
from ....ir.graph import Graph, GraphOutput, Value
from ....ir.infer import scalar_content
from ....ir.types import UNKNOWN, DType
from ...emit import Refused
from ..functions import function_graph
from ..translate import CALL, Operation, Translator, rule
from .lists import Stacked, TensorList

__all__ = ["appending", "building", "call", "finish", "follows_refusal", "truth"]


@rule("PartitionedCall", "StatefulPartitionedCall", CALL)
def _call(t: Translator, o: Operation, *operands: Any) -> Any:
    name = o.type if o.attr("f") is None else o.attr("f").name
    return call(t, function_graph(o.graph, name), operands)


@rule("SymbolicGradient")
def _gradient(t: Translator, o: Operation, *operands: Any) -> Any:
    raise Refused("it differentiates a function when it runs: compute the gradient with tf.GradientTape while tracing")


def call(t: Translator, graph: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of a function, whose graph this is, applied to ``operands``."""
    if graph in t.calls:
        raise Refused(f"the function {graph.name} calls itself")
    given = {tensor.name: value for tensor, value in zip(graph.inputs, operands, strict=True)}
    t.calls.append(graph)
    try:
        return t.inline(graph, given, graph.outputs)
    finally:
        t.calls.pop()


# nested graphs


@contextmanager
def building(t: Translator, name: str) -> Iterator[Graph]:
    """A nested graph, to which nodes are appended meanwhile; an error leaves nothing of it behind."""
    outer, refusals = t.graph, len(t.refusals)
    graph = t.graph = Graph(name)
    try:
        yield graph
    except BaseException:
        del t.refusals[refusals:]
        graph.set_outputs(())
        _erase_dead(graph)
        raise
    finally:
        t.graph = outer


@contextmanager
def appending(t: Translator, graph: Graph) -> Iterator[None]:
    """Append to ``graph`` meanwhile."""
    before, t.graph = t.graph, graph
    try:
        yield
    finally:
        t.graph = before


def finish(t: Translator, graph: Graph, results: Sequence[Value]) -> None:
    """Let the graph that is being built return ``results``; what is not needed for them goes."""
    outputs: list[Value] = []
    for value in results:
        is_own = value.producer is not None and value.producer.graph is graph and value not in outputs
        outputs.append(value if is_own else t.op.Identity(value))
    graph.set_outputs(outputs, [GraphOutput(f"{graph.name}_{i}") for i in range(len(outputs))])
    _erase_dead(graph)


def _erase_dead(graph: Graph) -> None:
    """Take out what nothing in ``graph`` uses; what is around it may still be needed by what comes later."""
    for node in reversed(list(graph.walk())):
        if node.graph is not None and is_dead(node):
            erase(node)


def follows_refusal(operands: Sequence[Any]) -> bool:
    """Whether one of ``operands`` is the result of what has no translation."""
    return any(isinstance(o, Value) and o.type == UNKNOWN for o in operands)


# branches


@rule("If", "StatelessIf")
def _if(t: Translator, o: Operation, condition: Value, *operands: Any) -> Any:
    branches = [function_graph(o.graph, o.attr(name).name) for name in ("then_branch", "else_branch")]
    condition = truth(t, condition)
    known = scalar_content(condition)
    if isinstance(known, int):
        return call(t, branches[0 if known else 1], operands)
    return _choose(t, o, condition, *(_calling(t, b, operands) for b in branches))


@rule("Case", "StatelessCase")
def _case(t: Translator, o: Operation, index: Value, *operands: Any) -> Any:
    """A branch by its number: the last one for a number that there is not."""
    branches = [function_graph(o.graph, b.name) for b in o.attr("branches")]
    known = scalar_content(index)
    if isinstance(known, int) or len(branches) == 1:
        is_there = isinstance(known, int) and 0 <= known < len(branches)
        return call(t, branches[known if is_there else -1], operands)  # type: ignore[index]

    def choose(first: int) -> list[Any]:
        take = _calling(t, branches[first], operands)
        if first == len(branches) - 1:
            return take()
        is_first = t.op.Equal(index, t.scalar(first, index.dtype))
        return _choose(t, o, is_first, take, lambda: choose(first + 1))

    return choose(0)


Branch = Callable[[], list[Any]]


def _calling(t: Translator, graph: Any, operands: Sequence[Any]) -> Branch:
    return lambda: call(t, graph, operands)


def truth(t: Translator, value: Value) -> Value:
    """Whether TensorFlow takes a value for true: a number that is not 0, a tensor that has elements."""
    if value.rank is None:
        raise Refused("it is not known whether its condition is a number")
    if value.rank:
        return t.op.Greater(t.op.Size(value), t.scalar(0, DType.INT64))
    return t.cast(value, DType.BOOL)


def _choose(t: Translator, o: Operation, condition: Value, then: Branch, other: Branch) -> list[Any]:
    """The results of one of two branches."""
    refusals = len(t.refusals)
    with building(t, "then") as first:
        ours = then()
        with building(t, "else") as second:
            theirs = other()
            chosen = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a is not b]
            if len(t.refusals) > refusals:
                finish(t, second, ())
            else:
                finish(t, second, [_as_value(t, theirs[i]) for i in chosen])
        if len(t.refusals) > refusals:
            finish(t, first, ())
            return [Value() for _ in ours]
        finish(t, first, [_as_value(t, ours[i]) for i in chosen])
    results = list(ours)
    if chosen:
        found = t.op.If(condition, then_branch=first, else_branch=second, outputs=len(chosen))
        for i, value in zip(chosen, found if len(chosen) > 1 else [found], strict=True):
            results[i] = _as_list(value, ours[i], theirs[i])
    return results


def _as_value(t: Translator, result: Any) -> Value:
    """What a branch returns for a result."""
    if isinstance(result, Value):
        return result
    if isinstance(result, TensorList):
        return result.stacked(t)
    raise Refused("its branches give different variables, tables or optional values: a graph can only choose tensors")


def _as_list(value: Value, ours: Any, theirs: Any) -> Any:
    if not isinstance(ours, TensorList):
        return value
    same = ours.element if ours.element == theirs.element else None
    return Stacked(ours.dtype, same, value)
