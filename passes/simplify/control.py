"""Control flow that is decided: constant conditions, loops that run never or once."""

from __future__ import annotations

from typing import Any

from ...ir import Graph, Node, Value, constant
from ...ir.clone import clone_node
from ...ir.infer import scalar_content
from ...ir.types import DType
from ..rules import require, rule


def _decided(value: Value | None) -> bool | None:
    """The truth value of a constant condition; None if it is not constant."""
    element = scalar_content(value)
    return bool(element) if isinstance(element, int) else None


def _inlined(body: Graph, operands: tuple[Value | None, ...]) -> tuple[Value, ...]:
    """The outputs of ``body`` for ``operands`` in place of its inputs, computed by floating copies of its nodes."""
    mapping: dict[Value, Value] = {}
    for formal, actual in zip(body.inputs, operands, strict=True):
        assert actual is not None
        mapping[formal] = actual
    for node in body.nodes:
        copy = clone_node(node, mapping)
        mapping.update(zip(node.results, copy.results, strict=True))
    return tuple(mapping.get(v, v) for v in body.outputs)


@rule("If")
def decided_if(node: Node) -> Any:
    """An If with a constant condition is the branch that it takes."""
    condition = _decided(node.operands[0])
    require(condition is not None, "the condition is known only when it runs")
    return _inlined(node.attrs["then_branch" if condition else "else_branch"], ())


@rule("Loop")
def decided_loop(node: Node) -> Any:
    """A Loop that never runs passes its initial values on; one that runs once is its body."""
    trips, condition = scalar_content(node.operand(0)), _decided(node.operand(1))
    body = node.attrs["body"]
    carried = node.operands[2:]
    scanned = len(node.results) > len(carried)
    never = trips == 0 or (node.operand(1) is not None and condition is False)
    if never:
        require(not scanned, "its stacked outputs are empty tensors")
        return tuple(carried)
    require(trips == 1 and (node.operand(1) is None or condition), "it may run more than once")
    require(not scanned, "its outputs are stacked")
    return _inlined(body, (constant(0, DType.INT64), constant(True, DType.BOOL), *carried))[1:]
