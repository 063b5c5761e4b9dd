"""Attention sinks that are applied behind the attention, by the logarithm of the sum of its exponentials."""

from __future__ import annotations

from ...ir import Node, Value, constant, op
from ...ir.types import DType
from ..numerics import within
from ..rules import require, rule
from ..simplify.fold_constants import integers
from ..simplify.reshapes import RESHAPING, known_shape
from .views import shape_vector

_EXAMPLE = """
agraph (float[B,2,S,T] scores, float[B,2,T,4] v, float[1,2,1] sink) => (float[B,2,S,4] y) <int64[1] last = {-1}> {
  total = ReduceLogSumExp <keepdims = 0> (scores, last)
  d = Sub (total, sink)
  g = Sigmoid (d)
  gate = Unsqueeze (g, last)
  w = Softmax <axis = -1> (scores)
  o = MatMul (w, v)
  y = Mul (o, gate)
}
"""


@rule("Mul", numerics=within(rtol=1e-4), examples=[_EXAMPLE])
def sink_behind_attention(node: Node) -> Value | None:
    """``softmax(s) @ v * sigmoid(log(sum(exp(s))) - sink)``: a softmax with one column more, which is then left out."""
    for i in (0, 1):
        product, gate = node.given(i), node.given(1 - i)
        weights = _operand(product, "MatMul")
        scores = _operand(weights, "Softmax")
        if weights is None or scores is None or len(product.users) > 1:
            continue
        sink = _sink(gate, scores)
        if sink is None:
            continue
        shape = known_shape(scores)
        softmax = weights.producer
        assert softmax is not None and product.producer is not None and node.graph is not None
        require(softmax.attrs.get("axis", -1) in (-1, len(shape) - 1), "the softmax is along another axis")
        require(known_shape(product) == known_shape(node.result), "the sink broadcasts")
        values = product.producer.given(1)
        sizes = shape_vector([*shape[:-1], 1], [*node.graph.root.inputs, values, scores])
        column = op.Expand(op.Unsqueeze(sink, constant([-1], DType.INT64)), sizes)
        joined = op.Softmax(op.Concat(scores, column, axis=-1), axis=-1)
        zero, last = (constant([n], DType.INT64) for n in (0, -1))
        return op.MatMul(op.Slice(joined, zero, last, last), values)
    return None


def _operand(value: Value | None, name: str) -> Value | None:
    """The first operand of the ``name`` that computes ``value``."""
    node = value.producer if value is not None else None
    return node.operands[0] if node is not None and node.op == name else None


def _sink(gate: Value, scores: Value) -> Value | None:
    """The sink in ``sigmoid(log(sum(exp(scores))) - sink)``, one gate per row of scores."""
    shape = known_shape(scores)
    if known_shape(gate) != (*shape[:-1], 1):
        return None
    value: Value | None = gate
    while value is not None and value.producer is not None and value.producer.op in RESHAPING:
        value = value.producer.operands[0]
    difference = _operand(value, "Sigmoid")
    total = _operand(difference, "Sub")
    if difference is None or total is None or _operand(total, "ReduceLogSumExp") is not scores:
        return None
    reduction = total.producer
    assert reduction is not None and difference.producer is not None
    along_keys = integers(reduction.operand(1)) in ((-1,), (len(shape) - 1,))
    if not along_keys or reduction.attrs.get("keepdims", 1) or known_shape(difference) != shape[:-1]:
        return None
    return difference.producer.operands[1]
