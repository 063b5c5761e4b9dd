"""``merge-projections``: products of one value with several weights (queries, keys and values; gate and up) become one.

Not part of ``fuse``: on ONNX Runtime's CPU kernels the split costs what the larger product saves. Other targets gain.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Node, Value, constant, op
from ...ir.types import DType
from ..base import RewritePass
from ..numerics import Within, within
from ..rules import require, rule

_MOST = 4  # products that are merged: what splits more of them keeps a large result alive for long

_QKV = """
agraph (float[B,S,8] x) => (float[B,S,8] q, float[B,S,4] k, float[B,S,4] v) <
  float[8,8] wq = {{q}}, float[8,4] wk = {{k}}, float[8,4] wv = {{v}},
  float[8] bq = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}, float[4] bv = {1.0, 2.0, 3.0, 4.0}
> {
  a = MatMul (x, wq)
  q = Add (a, bq)
  k = MatMul (x, wk)
  c = MatMul (x, wv)
  v = Add (bv, c)
}
"""


def _numbers(count: int, factor: int) -> str:
    return ", ".join(str(float(i * factor % 7 - 3)) for i in range(count))


_EXAMPLE = _QKV.replace("{q}", _numbers(64, 3)).replace("{k}", _numbers(32, 5)).replace("{v}", _numbers(32, 2))


def _bias(product: Node) -> tuple[Node, Value] | None:
    """The addition of a constant row that is all that uses ``product``."""
    users = product.result.users
    if len(users) != 1 or users[0].op != "Add" or users[0].graph is not product.graph:
        return None
    addend = users[0].operands[1] if users[0].operands[0] is product.result else users[0].operands[0]
    assert addend is not None and product.operands[1] is not None and product.operands[1].const is not None
    columns = product.operands[1].const.shape[1]
    fits = addend.const is not None and addend.const.shape == (columns,) and addend is not product.result
    return (users[0], addend) if fits else None


def _is_projection(node: Node, x: Value) -> bool:
    """Whether ``node`` multiplies ``x`` by a matrix of weights that nothing else uses."""
    if node.op != "MatMul" or node.operands[0] is not x:
        return False
    weight = node.operands[1]
    return weight is not None and weight.const is not None and len(weight.const.shape) == 2 and weight.use_count == 1


@rule("MatMul", numerics=within(rtol=1e-5), examples=[_EXAMPLE])
def one_projection_for_all(node: Node) -> dict[Node, Value] | None:
    """Products of one value with several weights, with or without biases: one product, and a split."""
    x = node.operands[0]
    if x is None or len(x.users) < 2 or not _is_projection(node, x):
        return None
    products = [u for u in x.users if u.graph is node.graph and _is_projection(u, x)]
    if len(products) < 2 or products[0] is not node:
        return None
    require(len(products) <= _MOST, f"more than {_MOST} products")
    require(x.dtype.is_floating, "no floating-point numbers")
    weights = [p.operands[1] for p in products]
    merged = op.MatMul(x, op.Concat(*weights, axis=1))
    sizes = [w.const.shape[1] for w in weights]  # type: ignore[union-attr]
    biases = [_bias(p) for p in products]
    roots = list(products)
    if any(biases):
        rows = [
            b[1] if b else op.Expand(constant(0.0, x.dtype), constant([n], DType.INT64))
            for b, n in zip(biases, sizes, strict=True)
        ]
        merged = op.Add(merged, op.Concat(*rows, axis=0))
        roots = [b[0] if b else p for p, b in zip(products, biases, strict=True)]
    parts = op.Split(merged, constant(sizes, DType.INT64), axis=-1, outputs=len(sizes))
    return dict(zip(roots, parts, strict=True))


@dataclass(frozen=True)
class MergeProjections(RewritePass):
    """Multiply once by the joined weights of several projections of one value, and split the result."""

    numerics = Within()
    rules = (one_projection_for_all,)
