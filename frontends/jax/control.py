"""Calls, which are inlined, and control flow: If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.graph import Value
from ...ir.types import DType, TensorType
from ..sizes import dim_of
from .shapes import reverse
from .translate import Equation, Translator, rule, type_of

__all__: list[str] = []

_BODIES = ("jaxpr", "call_jaxpr", "call")


@rule(
    "jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call",
    "composite", calls=True,
)  # fmt: skip
def _call(t: Translator, eqn: Equation, *operands: Value) -> Any:
    body = next(eqn.params[k] for k in _BODIES if k in eqn.params)
    return t.call(body, operands)


@rule("cond", calls=True)
def _cond(t: Translator, eqn: Equation, index: Value, *operands: Value) -> Any:
    return _choose(t, index, eqn.params["branches"], operands, len(eqn.outs))


def _choose(t: Translator, index: Value, branches: Sequence[Any], operands: Sequence[Value], outputs: int) -> Any:
    """The results of ``branches[index]``: the first of two is the one for False."""
    if len(branches) == 1 or not outputs:
        return t.inline(branches[0], operands) if outputs else ()
    if len(branches) == 2:
        condition = _truth(t, index)
        first, rest = branches[1], branches[0]
        others = t.nested("else", [], lambda: t.inline(rest, operands))
    else:
        condition = t.op.LessOrEqual(index, t.scalar(0, index.dtype))
        first, left = branches[0], branches[1:]

        def choose_later() -> Any:
            return _as_list(_choose(t, t.op.Sub(index, t.scalar(1, index.dtype)), left, operands, outputs))

        others = t.nested("else", [], choose_later)
    taken = t.nested("then", [], lambda: t.inline(first, operands))
    return t.op.If(condition, then_branch=taken, else_branch=others, outputs=outputs)


def _as_list(results: Any) -> list[Value]:
    return list(results) if isinstance(results, tuple | list) else [results]


def _truth(t: Translator, index: Value) -> Value:
    """Whether an index is not 0: mostly, it was a boolean."""
    made = index.producer
    if made is not None and made.op == "Cast" and made.given(0).dtype is DType.BOOL:
        return made.given(0)
    if index.dtype is DType.BOOL:
        return index
    return t.op.Greater(index, t.scalar(0, index.dtype))


@rule("while", calls=True)
def _while(t: Translator, eqn: Equation, *operands: Value) -> Any:
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    of_condition, of_body, carried = operands[:n], operands[n : n + m], operands[n + m :]

    def conditions(values: Sequence[Value]) -> Value:
        return t.inline(p["cond_jaxpr"], [*of_condition, *values])[0]

    def goes_on(values: Sequence[Value]) -> Value:
        found = conditions(values)
        if not found.shape:
            return found
        numbers = t.op.ReduceMax(t.cast(found, DType.INT32), keepdims=0)  # a batch of loops: until all have ended
        return t.cast(numbers, DType.BOOL)

    def step(count: Value, condition: Value, *values: Value) -> Sequence[Value]:
        after = t.inline(p["body_jaxpr"], [*of_body, *values])
        if len(p["cond_jaxpr"].out_avals[0].shape):
            going = conditions(values)
            after = [_where(t, going, new, old) for new, old in zip(after, values, strict=True)]
        return [goes_on(after), *after]

    start = goes_on(carried)
    body = t.nested("body", _loop_inputs(carried), step)
    return t.op.Loop(None, start, *carried, body=body, outputs=len(carried)) if carried else ()


def _where(t: Translator, going: Value, new: Value, old: Value) -> Value:
    rank = going.rank or 0
    return t.op.Where(t.unsqueeze(going, range(rank, new.rank or rank)), new, old)


def _loop_inputs(carried: Sequence[Value]) -> list[tuple[str, Any]]:
    named = [(f"carry_{i}", v.type) for i, v in enumerate(carried)]
    return [("count", TensorType(DType.INT64, ())), ("condition", TensorType(DType.BOOL, ())), *named]


@rule("scan", calls=True)
def _scan(t: Translator, eqn: Equation, *operands: Value) -> Any:
    p = eqn.params
    consts, carried = _parts(p, operands)
    scanned = operands[len(consts) + len(carried) :]
    if not scanned:
        return _count(t, eqn, consts, carried)
    jaxpr = p["jaxpr"]
    elements = [type_of(a) for a in jaxpr.in_avals[len(consts) + len(carried) :]]
    inputs = [(f"carry_{i}", v.type) for i, v in enumerate(carried)]
    inputs += [(f"element_{i}", type_) for i, type_ in enumerate(elements)]
    body = t.nested("body", inputs, lambda *values: t.inline(jaxpr, [*consts, *values]))
    stacked = len(eqn.outs) - len(carried)
    attrs: dict[str, Any] = {}
    if p["reverse"]:
        attrs = {"scan_input_directions": [1] * len(scanned), "scan_output_directions": [1] * stacked or None}
    return t.op.Scan(*carried, *scanned, body=body, num_scan_inputs=len(scanned), outputs=len(eqn.outs), **attrs)


def _parts(params: dict[str, Any], operands: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
    n, m = params["num_consts"], params["num_carry"]
    return operands[:n], operands[n : n + m]


def _count(t: Translator, eqn: Equation, consts: Sequence[Value], carried: Sequence[Value]) -> Any:
    """A scan over nothing, such as ``fori_loop``: Loop, a number of times."""
    p = eqn.params

    def step(count: Value, condition: Value, *values: Value) -> Sequence[Value]:
        return [condition, *t.inline(p["jaxpr"], [*consts, *values])]

    body = t.nested("body", _loop_inputs(carried), step)
    times = t.size_scalar(dim_of(p["length"]))
    results = t.op.Loop(times, t.scalar(True, DType.BOOL), *carried, body=body, outputs=len(eqn.outs))
    results = _as_list(results)
    if p["reverse"]:  # the results are stacked from the end
        results[len(carried) :] = [reverse(t, r, [0]) for r in results[len(carried) :]]
    return results
