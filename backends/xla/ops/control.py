"""If, Loop, Scan and SequenceMap.

A branch or an iteration is computed in Python where that is possible and needed: the condition is known, iterations
decide shapes or have shapes of their own. Everything else becomes ``lax.cond``, ``lax.scan`` (which has a gradient) or,
for loops without a bound, ``lax.while_loop``. Definitions: the ONNX operator specification, opset 28.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.graph import Graph, Node, Value
from ....ir.types import DType, SequenceType, TensorType
from ..flow import is_counted
from ..lowering import Call, DataDependentError, lowers
from ..padded import Padded
from ..values import concrete, dims, is_symbolic, to_dtype, traced

Array = Any

_UNROLLED = 32  # nodes: a loop that computes no more in all its iterations is unrolled
_BOUNDED = 256  # iterations: a loop with a condition and no more than these is a scan, which has a gradient


class _ChangesShape(Exception):
    """A carried value has another shape after an iteration than before it."""


# If


def _branches_differ(node: Node) -> bool:
    """Whether the results of the branches of an If may not be of one type."""
    branches = [node.attrs[name].outputs for name in ("then_branch", "else_branch")]
    return any(r.is_used and not _agree(a, b) for r, a, b in zip(node.results, *branches, strict=True))


def _agree(a: Value, b: Value) -> bool:
    """Whether nothing says that two values have different types, and ``lax.cond`` can return them."""
    if not isinstance(a.type, TensorType) or not isinstance(b.type, TensorType):
        return False
    first, second = a.type.shape, b.type.shape
    if first is None or second is None:
        return True
    return len(first) == len(second) and not any(
        isinstance(x, int) and isinstance(y, int) and x != y for x, y in zip(first, second, strict=True)
    )


@lowers("If", data_dependent=_branches_differ)
def _if(call: Call, condition: Array) -> tuple[Any, ...]:
    known = call.known(0)
    then, other = call["then_branch"], call["else_branch"]
    if known is not None:
        return tuple(call.run(then if bool(known.reshape(())) else other, ()))
    wanted = [call.is_wanted(i) for i in range(len(call.node.results))]

    types: dict[Graph, str] = {}

    def branch(graph: Graph) -> Callable[[], list[Any]]:
        def compute() -> list[Any]:
            results = [traced(v) if w else None for v, w in zip(call.run(graph, ()), wanted, strict=True)]
            types[graph] = ", ".join(f"{v.dtype}{list(v.shape)}" for v in jax.tree.leaves(results))
            return results

        return compute

    try:
        return tuple(lax.cond(condition.reshape(()), branch(then), branch(other)))
    except TypeError as error:
        if types.get(then) == types.get(other):
            raise
        reason = f"its branches give different types, {types.get(then)} and {types.get(other)}"
        raise DataDependentError(call.node, reason) from error


# Loop


def _stacks(node: Node) -> bool:
    """Whether a Loop stacks something that is used."""
    return any(r.is_used for r in node.results[len(node.operands) - 2 :])


def _changes(node: Node) -> bool:
    """Whether a Loop is known to carry a value whose shape changes: its body sees what all iterations keep of it."""
    for before, inside in zip(node.operands[2:], node.attrs["body"].inputs[2:], strict=True):
        if before is not None and isinstance(before.type, TensorType) and isinstance(inside.type, TensorType):
            outer, inner = before.type.shape, inside.type.shape
            if outer is not None and inner is not None and outer != inner:
                return True
    return False


def _collects(node: Node) -> bool:
    """Whether a Loop stacks something that is used, or carries a sequence."""
    return _stacks(node) or any(v is not None and isinstance(v.type, SequenceType) for v in node.operands[2:])


@lowers(
    "Loop",
    static=lambda node: {0, 1} if is_counted(node) and (_collects(node) or _changes(node)) else (),
    data_dependent=lambda node: _collects(node) and not is_counted(node),
)
def _loop(call: Call, *operands: Any) -> tuple[Any, ...]:
    return _Loop(call).results()


class _Loop:
    """A Loop that is being computed."""

    def __init__(self, call: Call):
        self.call = call
        self.body: Graph = call["body"]
        self.initial = list(call.operands[2:])
        self.stacked = range(len(self.initial) + 1, len(self.body.outputs))
        self.start = call.known(1) if call.node.operand(1) is not None else np.array(True)
        self.limit = _limit(call)
        self.counted = is_counted(call.node) and self.start is not None

    def results(self) -> tuple[Any, ...]:
        """The carried values after the last iteration, then what the iterations stack."""
        if self._must_unroll() or self._is_small():
            return self._unrolled()
        try:
            if self.counted and not isinstance(self.limit, jax.Array):
                return self._scanned() if bool(self.start) else self._unrolled()
            if _stacks(self.call.node):
                return self._unrolled()
            if isinstance(self.limit, int) and self.limit <= _BOUNDED:
                return self._bounded(self.limit)
            return self._unbounded()
        except _ChangesShape:
            return self._unrolled()

    def _must_unroll(self) -> bool:
        plan = self.call.interpreter.plan
        if self.call.node in plan.unrolled or self.call.node in plan.data_dependent:
            return True
        return _has_exact_results(self.call)

    def _is_small(self) -> bool:
        return self.counted and isinstance(self.limit, int) and self.limit * len(self.body) <= _UNROLLED

    # in Python

    def _unrolled(self) -> tuple[Any, ...]:
        carried = self.initial
        rows: list[list[Array]] = [[] for _ in self.stacked]
        goes_on, i = self.start, 0
        while self._goes_on(goes_on) and (self.limit is None or i < self._known_limit()):
            outputs = self.call.run(self.body, [np.array(i, np.int64), np.array(True), *carried])
            goes_on, carried = outputs[0], outputs[1 : len(carried) + 1]
            for row, k in zip(rows, self.stacked, strict=True):
                row.append(traced(outputs[k]))
            i += 1
        if not i:
            return *carried, *self._empty()
        return *carried, *(self._joined(row) for row in rows)

    def _goes_on(self, condition: Any) -> bool:
        known = concrete(condition)
        if known is None:
            raise DataDependentError(
                self.call.node, "the number of its iterations decides shapes, and depends on data: it cannot be traced"
            )
        return bool(known.reshape(()))

    def _known_limit(self) -> int:
        if not isinstance(self.limit, int):
            raise DataDependentError(
                self.call.node, f"iterations have shapes of their own, and their number ({self.limit}) is not known"
            )
        return self.limit

    def _joined(self, rows: list[Array]) -> Array:
        if len({row.shape for row in rows}) > 1:
            raise self.call.error("iterations give values of different shapes to stack")
        return jnp.stack(rows)

    def _empty(self) -> list[Array]:
        """What no iteration stacks."""
        if not self.stacked:
            return []
        first, runs = jnp.zeros((), to_dtype(DType.INT64)), jnp.ones((), bool)
        shapes = jax.eval_shape(lambda carried: self._step(first, runs, carried)[2], traced(self.initial))
        return [jnp.zeros((0, *shape.shape), shape.dtype) for shape in shapes]

    # in XLA

    def _step(self, i: Array, condition: Array, carried: Sequence[Any]) -> tuple[Array, list[Any], list[Array]]:
        """One iteration: whether another follows, what it carries on, what it stacks."""
        outputs = _unpadded(self.call.run(self.body, [i, condition, *carried]))
        count = len(carried)
        return (
            traced(outputs[0]).reshape(()).astype(bool),
            [_like(self.call, self.body.inputs[k + 2], carried[k], outputs[k + 1]) for k in range(count)],
            [traced(v) for v in outputs[count + 1 :]],
        )

    def _scanned(self) -> tuple[Any, ...]:
        """A known number of iterations."""

        def step(carried: list[Any], i: Array) -> tuple[list[Any], list[Array]]:
            return self._step(i, jnp.ones((), bool), carried)[1:]

        carried, rows = lax.scan(step, traced(self.initial), jnp.arange(self.limit, dtype=to_dtype(DType.INT64)))
        return *carried, *rows

    def _bounded(self, limit: int) -> tuple[Any, ...]:
        """At most ``limit`` iterations, of which the last ones may do nothing."""

        def step(state: tuple[Array, list[Any]], i: Array) -> tuple[tuple[Array, list[Any]], None]:
            goes_on, carried = state
            return lax.cond(goes_on, lambda: self._step(i, goes_on, carried)[:2], lambda: (goes_on, carried)), None

        state = self._start(), traced(self.initial)
        (_, carried), _ = lax.scan(step, state, jnp.arange(limit, dtype=to_dtype(DType.INT64)))
        return *carried, *(None for _ in self.stacked)

    def _start(self) -> Array:
        """Whether it begins."""
        return traced(self.call.operands[1] if self.start is None else self.start).reshape(()).astype(bool)

    def _unbounded(self) -> tuple[Any, ...]:
        """As many iterations as it takes."""
        limit = None if self.limit is None else jnp.asarray(self.limit, to_dtype(DType.INT64))

        def goes_on(state: tuple[Array, Array, list[Any]]) -> Array:
            i, condition, _ = state
            return condition if limit is None else condition & (i < limit)

        def step(state: tuple[Array, Array, list[Any]]) -> tuple[Array, Array, list[Any]]:
            i, condition, carried = state
            condition, carried, _ = self._step(i, condition, carried)
            return i + 1, condition, carried

        first = jnp.zeros((), to_dtype(DType.INT64))
        *_, carried = lax.while_loop(goes_on, step, (first, self._start(), traced(self.initial)))
        return *carried, *(None for _ in self.stacked)


def _limit(call: Call) -> Any:
    """The largest number of iterations: an integer, a symbolic dimension, a traced number, or None."""
    if call.node.operand(0) is None:
        return None
    given = call.operands[0]
    if is_symbolic(given):
        return dims(given)[0]
    known = call.known(0)
    return traced(given).reshape(()) if known is None else max(int(known.reshape(())), 0)


def _has_exact_results(call: Call) -> bool:
    """Whether the body of a loop has results whose sizes depend on data, so that it cannot be traced."""
    interpreter = call.interpreter
    nodes = call["body"].walk() if interpreter.options.data_dependent == "exact" else ()
    return any(node in interpreter.plan.data_dependent for node in nodes)


def _unpadded(outputs: list[Any]) -> list[Any]:
    """The outputs of an iteration, for the next one.

    Raises:
        _ChangesShape: the size of one depends on data.
    """
    if any(isinstance(o, Padded) for o in outputs):
        raise _ChangesShape
    return outputs


def _like(call: Call, formal: Value, old: Any, new: Any) -> Any:
    """``new``, which takes the place of ``old`` in the next iteration, in its element type.

    Raises:
        _ChangesShape: it has another shape.
    """
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [_like(call, formal, a, b) for a, b in zip(old, new, strict=True)]
    if old is None and new is None:
        return None
    if isinstance(old, list | tuple) or isinstance(new, list | tuple) or old is None or new is None:
        raise _ChangesShape
    new = traced(new)
    if new.shape != old.shape:
        raise _ChangesShape
    return lax.convert_element_type(new, old.dtype)


# Scan


@lowers("Scan")
def _scan(call: Call, *operands: Any) -> tuple[Any, ...]:
    body: Graph = call["body"]
    scanned = call["num_scan_inputs"]
    states = len(operands) - scanned
    initial = list(call.operands[:states])
    axes = call["scan_input_axes"] or (0,) * scanned
    rows = [jnp.moveaxis(x, axis, 0) for x, axis in zip(operands[states:], axes, strict=True)]
    backwards = call["scan_input_directions"] or (0,) * scanned
    rows = [jnp.flip(x, 0) if back else x for x, back in zip(rows, backwards, strict=True)]

    def step(carried: list[Any], elements: list[Array]) -> tuple[list[Any], list[Array]]:
        outputs = _unpadded(call.run(body, [*carried, *elements]))
        kept = [_like(call, *v) for v in zip(body.inputs, carried, outputs[:states], strict=False)]
        return kept, [traced(v) for v in outputs[states:]]

    if call.node in call.interpreter.plan.unrolled or _has_exact_results(call):
        carried, stacked = _scan_in_python(call, body, initial, rows)
    else:
        try:
            carried, stacked = lax.scan(step, traced(initial), rows)
        except _ChangesShape:
            carried, stacked = _scan_in_python(call, body, initial, rows)
    count = len(stacked)
    backwards = call["scan_output_directions"] or (0,) * count
    axes = call["scan_output_axes"] or (0,) * count
    stacked = [jnp.flip(x, 0) if back else x for x, back in zip(stacked, backwards, strict=True)]
    return *carried, *(jnp.moveaxis(x, 0, axis) for x, axis in zip(stacked, axes, strict=True))


def _scan_in_python(call: Call, body: Graph, carried: list[Any], rows: list[Array]) -> tuple[list[Any], list[Array]]:
    length, states = rows[0].shape[0], len(carried)
    if not isinstance(length, int) or length == 0:
        raise call.error(f"carries values whose shapes change, over {length} elements")
    stacked: list[list[Array]] = [[] for _ in body.outputs[states:]]
    for i in range(length):
        outputs = call.run(body, [*carried, *(row[i] for row in rows)])
        carried = outputs[:states]
        for elements, value in zip(stacked, outputs[states:], strict=True):
            elements.append(traced(value))
    return carried, [jnp.stack(elements) for elements in stacked]


# SequenceMap


@lowers("SequenceMap")
def _sequence_map(call: Call, *operands: Any) -> tuple[Any, ...]:
    first = call.operands[0]
    others = [v if isinstance(v, list | tuple) else [v] * len(first) for v in call.operands[1:]]
    rows = [call.run(call["body"], elements) for elements in zip(first, *others, strict=True)]
    return tuple([row[i] for row in rows] for i in range(len(call.node.results)))
