"""Operators of training (domain ``ai.onnx.preview.training``): steps of optimizers, and gradients.

Definitions: the ONNX operator specification, ai.onnx.preview.training version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ....ir.graph import Graph, Node, Value
from ..lowering import Call, lowers
from ..plan import read_by
from ..values import traced

_DOMAIN = "ai.onnx.preview.training"

Array = Any


def _optimizer(op: str, state: int) -> Callable[[Callable[..., tuple[Array, ...]]], Callable[..., tuple[Array, ...]]]:
    """Enter a step for one tensor: ``step(call, rate, count, x, gradient, *state)`` gives ``x`` and its state anew."""

    def register(step: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
        def compute(call: Call, rate: Array, count: Array, *tensors: Array) -> tuple[Array, ...]:
            kinds = 2 + state
            if len(tensors) % kinds:
                raise call.error(f"{len(tensors)} tensors: there must be {kinds} for each optimized one")
            optimized = len(tensors) // kinds
            new = [
                [y.astype(tensors[i].dtype) for y in step(call, rate, count, *tensors[i::optimized])]
                for i in range(optimized)
            ]
            return tuple(value for kind in zip(*new, strict=True) for value in kind)

        lowers(f"{_DOMAIN}.{op}")(compute)
        return step

    return register


@_optimizer("Adagrad", state=1)
def _adagrad(call: Call, rate: Array, count: Array, x: Array, gradient: Array, squares: Array) -> tuple[Array, ...]:
    gradient = gradient + call["norm_coefficient"] * x
    squares = squares + jnp.square(gradient)
    rate = rate / (1 + count * call["decay_factor"])
    return x - rate * gradient / (jnp.sqrt(squares) + call["epsilon"]), squares


@_optimizer("Adam", state=2)
def _adam(
    call: Call, rate: Array, count: Array, x: Array, gradient: Array, mean: Array, squares: Array
) -> tuple[Array, ...]:
    alpha, beta = call["alpha"], call["beta"]
    gradient = gradient + call["norm_coefficient"] * x
    mean = alpha * mean + (1 - alpha) * gradient
    squares = beta * squares + (1 - beta) * jnp.square(gradient)
    steps = jnp.maximum(count, 1).astype(rate.dtype)
    rate = jnp.where(count > 0, rate * jnp.sqrt(1 - beta**steps) / (1 - alpha**steps), rate)
    x = x - rate * mean / (jnp.sqrt(squares) + call["epsilon"])
    return (1 - call["norm_coefficient_post"]) * x, mean, squares


@_optimizer("Momentum", state=1)
def _momentum(call: Call, rate: Array, count: Array, x: Array, gradient: Array, momentum: Array) -> tuple[Array, ...]:
    gradient = gradient + call["norm_coefficient"] * x
    momentum = call["alpha"] * momentum + jnp.where(count > 0, call["beta"], 1.0) * gradient
    step = gradient + call["alpha"] * momentum if call["mode"] == "nesterov" else momentum
    return x - rate * step, momentum


@dataclass(frozen=True)
class _Differentiated:
    """The part of a graph that a `Gradient` differentiates: ``target`` as a function of ``variables``."""

    variables: list[Value]
    target: Value
    nodes: list[Node]


def _part(node: Node) -> _Differentiated | str:
    """What ``node`` differentiates, which it states by names of values; or what is wrong with it."""
    graph = node.graph
    assert graph is not None
    named: dict[str, set[Value]] = {}
    for value in _values(graph):
        named.setdefault(value.name, set()).add(value)
    names = [*node.attrs.get("xs", ()), *node.attrs.get("zs", ()), node.attrs["y"]]
    for name in names:
        if len(named.get(name, ())) != 1:
            return f"differentiates {node.attrs['y']!r}, and the graph has no value {name!r} (any more)"
    *variables, target = (next(iter(named[name])) for name in names)
    if len(variables) != len(node.operands):
        return f"has {len(node.operands)} operands for the {len(variables)} names in xs and zs"
    needed: set[Node] = set()
    pending = [target]
    while pending:
        value = pending.pop()
        if value in variables or value.const is not None:
            continue
        if value.producer is None or value.producer.graph is not graph:
            return f"{target.name!r} depends on {value.name!r}, which is neither in xs nor in zs"
        if value.producer not in needed:
            needed.add(value.producer)
            pending += read_by(value.producer)
    if any(n.graphs for n in needed) and any(v.const is not None for v in variables):
        return "differentiates for a constant, which a nested graph may read"
    return _Differentiated(variables, target, [n for n in graph.nodes if n in needed])


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.results
        yield from (o for o in node.operands if o is not None and o.const is not None)


def _why_not(node: Node) -> str | None:
    part = _part(node)
    return part if isinstance(part, str) else None


@lowers(f"{_DOMAIN}.Gradient", refuses=_why_not)
def _gradient(call: Call, *operands: Array) -> tuple[Array, ...]:
    part = _part(call.node)
    assert isinstance(part, _Differentiated)
    count = len(call.node.attrs["xs"])

    def target(*xs: Array) -> Array:
        env: dict[Value, Any] = dict(zip(part.variables, (*xs, *operands[count:]), strict=True))

        def value(v: Value) -> Any:
            return env[v] if v in env else call.interpreter.value(v, env)

        for node in part.nodes:
            results = call.interpreter.compute(node, [None if o is None else value(o) for o in node.operands], env)
            env.update(zip(node.results, results, strict=False))
        return traced(value(part.target))

    y, pull_back = jax.vjp(target, *operands[:count])
    gradients: tuple[Array, ...] = pull_back(jnp.ones_like(y))
    return gradients
