"""Branches and loops, whose parts are other subgraphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ir.graph import Value
from ....ir.types import DType, TensorType
from ...emit import Refused
from ..ops.control import building, finish, truth
from ..reasons import Refusal
from .file import LiteOperator
from .model import Lite, lite_rule

__all__: list[str] = []

_DEEPEST = 30  # calls within calls


def _call(m: Lite, number: int, operands: Sequence[Value]) -> list[Value]:
    """What a subgraph computes from what is stored for its inputs; its results likewise.

    Raises:
        Refused: there is no such subgraph, or it calls itself.
    """
    if not 0 <= number < len(m.model.subgraphs):
        raise Refused("it calls a subgraph that there is not")
    graph = m.model.subgraphs[number]
    if any(g is graph for g in (m.graph, *m.t.calls)) or len(m.t.calls) > _DEEPEST:
        raise Refused("a subgraph calls itself")
    inner = m.called(graph)
    if len(graph.inputs) != len(operands):
        raise Refused("it gives a subgraph another number of inputs than that has")
    for index, value in zip(graph.inputs, operands, strict=True):
        inner.give(index, value)
    m.t.calls.append(graph)
    try:
        refusals = len(m.t.refusals)
        inner.run()
        if len(m.t.refusals) > refusals:
            raise Refused(_reasons(m.t.refusals[refusals:]))
        return [inner.stored(i) for i in graph.outputs]
    finally:
        m.t.calls.pop()


def _reasons(refusals: Sequence[Refusal]) -> str:
    """Why a subgraph has no translation."""
    return ", ".join(dict.fromkeys(f"in it, {refusal.operation}: {refusal.reason}" for refusal in refusals))


def _keep(m: Lite, operator: LiteOperator, values: Sequence[Value]) -> Sequence[Value]:
    for index, value in zip(operator.outputs, values, strict=True):
        m.give(index, value)
    return values


@lite_rule("IF")
def _if(m: Lite, operator: LiteOperator) -> Any:
    m.operands(operator)
    condition = truth(m.t, m.t.reshape(m.numbers(operator.inputs[0]), ()))
    operands = [m.stored(i) for i in operator.inputs[1:]]
    graphs = []
    for option in ("thenSubgraphIndex", "elseSubgraphIndex"):
        with building(m.t, option[:4]) as graph:
            finish(m.t, graph, _call(m, operator.options[option], operands))
        graphs.append(graph)
    found = m.t.op.If(condition, then_branch=graphs[0], else_branch=graphs[1], outputs=len(operator.outputs))
    return _keep(m, operator, [found] if len(operator.outputs) == 1 else found)


@lite_rule("WHILE")
def _while(m: Lite, operator: LiteOperator) -> Any:
    """A Loop: the condition is computed once before it, and in its end."""
    m.operands(operator)
    states = [m.stored(i) for i in operator.inputs]
    condition, body = (operator.options[f"{name}SubgraphIndex"] for name in ("cond", "body"))
    first = _condition(m, condition, states)
    with building(m.t, "body") as graph:
        graph.add_input(TensorType(DType.INT64, ()), "iteration")
        graph.add_input(TensorType(DType.BOOL, ()), "goes_on")
        inner = [
            graph.add_input(_carried(m, i, v), f"state_{k}")
            for k, (i, v) in enumerate(zip(operator.outputs, states, strict=True))
        ]
        after = _call(m, body, inner)
        finish(m.t, graph, [_condition(m, condition, after), *after])
    found = m.t.op.Loop(None, first, *states, body=graph, outputs=len(states))
    return _keep(m, operator, [found] if len(states) == 1 else found)


def _condition(m: Lite, number: int, states: Sequence[Value]) -> Value:
    (found,) = _call(m, number, states)
    return truth(m.t, m.t.reshape(found, ()))


def _carried(m: Lite, index: int, value: Value) -> TensorType:
    """The type of what is carried: its sizes are those that all iterations have."""
    stated, shape = m.tensor(index).shape, value.shape
    if not isinstance(value.type, TensorType) or stated is None or shape is None or len(stated) != len(shape):
        return TensorType(value.dtype, None)
    return value.type
