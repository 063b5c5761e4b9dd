"""MatMul and Gemm: biases, scales, transposes and normalizations folded in."""

from __future__ import annotations

import math

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.types import DType
from ..numerics import within
from ..pattern import const, optional
from ..rules import require, rule
from .convolutions import affine
from .reshapes import known_shape, reshape_to
from .transposes import UNARY, perm_of

_ROUNDING = within(rtol=1e-5)
_LONGEST = 8  # operators from a product to what its columns become


@rule(lambda a, b, c: a @ b + c, numerics=_ROUNDING)
def gemm(a: Value, b: Value, c: Value) -> Value:
    """MatMul and Add of matrices. ``c`` must broadcast to the product, not the other way round."""
    require(a.rank == b.rank == 2, "Gemm takes matrices")
    require(c.rank is not None and c.rank <= 2, "the addend has more dimensions")
    require(a.dtype.is_floating, "Gemm of integers is rarely implemented")
    return op.Gemm(a, b, c)


@rule(
    lambda a, b, alpha, beta, ta, tb, c: op.Gemm(a, b, alpha=alpha, beta=beta, transA=ta, transB=tb) + c,
    numerics=_ROUNDING,
)
def bias_into_gemm(a, b, alpha, ta, tb, c, match):
    """An addend after a Gemm without one."""
    require(c.rank is not None and c.rank <= 2, "the addend has more dimensions")
    return op.Gemm(a, b, c, alpha=alpha, transA=ta, transB=tb)


@rule(
    lambda a, b, alpha, beta, ta, tb, c=const, d=const: (
        op.Gemm(a, b, c, alpha=alpha, beta=beta, transA=ta, transB=tb) + d
    ),
    numerics=_ROUNDING,
)
def addend_into_gemm(a, b, c, d, alpha, beta, ta, tb):
    """A constant after a Gemm with a constant addend."""
    require(beta in (None, 1.0), "the addend is scaled")
    require(d.rank is not None and d.rank <= 2 and c.const.size < 1 << 20, "the addend has more dimensions")
    return op.Gemm(a, b, op.Add(c, d), alpha=alpha, transA=ta, transB=tb)


@rule(
    lambda a, ta, tb, alpha, beta, w=const, b=const, c=const: (
        op.Gemm(a, w, optional(b), alpha=alpha, beta=beta, transA=ta, transB=tb) * c
    ),
    numerics=_ROUNDING,
)
def scale_into_gemm(a, w, b, c, alpha, beta, ta, tb):
    """A factor per column of a Gemm with constant operands goes into them."""
    assert c.const is not None and w.const is not None
    n = w.const.shape[0 if tb else 1]
    require(
        len(c.const.shape) <= 2 and all(d == 1 for d in c.const.shape[:-1]), "the constant is not one number per column"
    )
    vector = c.const.numpy().reshape(-1)
    require(vector.size in (1, n), "the constant is not one number per column")
    row = constant(np.ascontiguousarray(np.broadcast_to(vector, (n,))), c.dtype)
    factor = op.Unsqueeze(row, constant([1], DType.INT64)) if tb else row
    return op.Gemm(
        a, op.Mul(w, factor), None if b is None else op.Mul(b, row), alpha=alpha, beta=beta, transA=ta, transB=tb
    )


@rule("Gemm")
def transpose_into_gemm(node: Node) -> Value | None:
    """A transposed operand is read the other way round."""
    operands, attrs = list(node.operands), dict(node.attrs)
    changed = False
    for i, name in ((0, "transA"), (1, "transB")):
        operand = operands[i]
        assert operand is not None
        producer = operand.producer
        if (
            producer is not None
            and producer.op == "Transpose"
            and operand.rank == 2
            and perm_of(producer) == (1, 0)
            and producer.graph is node.graph
        ):
            operands[i] = producer.operands[0]
            attrs[name] = 1 - attrs.get(name, 0)
            changed = True
    return Node("Gemm", operands, attrs, [node.results[0].type]).result if changed else None


@rule(lambda x, p, s, z, w=const: op.Reshape(op.Transpose(x, perm=p), s, allowzero=z) @ w, numerics=_ROUNDING)
def transpose_before_flattening(x, w, match):
    """What is transposed and flattened for a constant weight: the rows of the weight change their order instead."""
    flat = match.root.operands[0]
    return op.MatMul(*_in_order_of(x, flat, w, False))


@rule(
    lambda x, p, s, z, tb, alpha, beta, w=const, b=const: op.Gemm(
        op.Reshape(op.Transpose(x, perm=p), s, allowzero=z), w, optional(b), alpha=alpha, beta=beta, transB=tb
    ),
    numerics=_ROUNDING,
)
def transpose_before_flattening_into_gemm(x, w, b, tb, alpha, beta, match):
    """What is transposed and flattened for a Gemm: the rows of the constant weight change their order instead."""
    flat = match.root.operands[0]
    return op.Gemm(*_in_order_of(x, flat, w, bool(tb)), b, alpha=alpha, beta=beta, transB=tb)


def _in_order_of(x: Value, flat: Value, w: Value, is_turned: bool) -> tuple[Value, Value]:
    """``x`` in the shape of ``flat``, which is it transposed and flattened, and a weight whose rows are in its order.

    ``is_turned``: the weight has its rows as columns.
    """
    moved = flat.producer.operands[0].producer  # type: ignore[union-attr]
    perm, shape, rows = perm_of(moved), known_shape(x), known_shape(flat)  # type: ignore[arg-type]
    assert perm is not None and w.const is not None
    kept = len(rows) - 1
    own = tuple(shape[p] for p in perm)
    require(perm[:kept] == tuple(range(kept)) and own[:kept] == rows[:kept], "leading dimensions are moved or merged")
    inner, order = own[kept:], [p - kept for p in perm[kept:]]
    require(len(inner) > 1 and w.rank == 2, "nothing is flattened, or for more than a matrix")
    require(all(isinstance(d, int) for d in inner), "a size that is flattened is unknown")
    source = reshape_to(x, rows)
    require(source is not None, "the target of the reshape is not known")
    assert source is not None
    back = [order.index(i) for i in range(len(order))]
    split = (w.const.shape[0], *inner) if is_turned else (*inner, w.const.shape[1])
    turned = [0, *(b + 1 for b in back)] if is_turned else [*back, len(order)]
    parts = op.Transpose(op.Reshape(w, constant(list(split), DType.INT64)), perm=tuple(turned))
    return source, op.Reshape(parts, constant(list(w.const.shape), DType.INT64))


_GENERATOR = """
agraph (float[B,2] x) => (float[B,3,2,2] y) <
  float[2,12] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0,
    2.1, 2.2, 2.3, 2.4},
  float[12] b = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2}, int64[4] image = {0, 2, 2, 3}
> {
  m = MatMul (x, w)
  a = Add (b, m)
  r = Relu (a)
  i = Reshape (r, image)
  y = Transpose <perm = [0, 3, 1, 2]> (i)
}
"""
_TURNED_GENERATOR = """
agraph (float[B,2] x) => (float[B,2,3] y) <
  float[6,2] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2},
  float[1,6] b = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0},
  float six = {6.0}, float zero = {0.0}, int64[3] rows = {-1, 3, 2}
> {
  g = Gemm <transB = 1> (x, w, b)
  c = Clip (g, zero, six)
  i = Reshape (c, rows)
  y = Transpose <perm = [0, 2, 1]> (i)
}
"""
_CONSTANT_OPERANDS = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Clip", "PRelu")


@rule("Transpose", numerics=_ROUNDING, examples=[_GENERATOR, _TURNED_GENERATOR])
def transpose_after_unflattening(node: Node) -> Value | None:
    """A product with a constant weight, split into dimensions that change places: its columns do so instead."""
    split, perm = node.given(0).producer, perm_of(node)
    if split is None or split.op != "Reshape" or perm is None or len(node.given(0).users) > 1:
        return None
    flat = split.given(0)
    chain = _up_to_product(flat, node)
    if chain is None:
        return None
    own, shape = known_shape(flat), known_shape(split.result)
    lead = len(own) - 1
    require(own[:lead] == shape[:lead] and perm[:lead] == tuple(range(lead)), "leading dimensions are moved or split")
    inner = [d for d in shape[lead:] if isinstance(d, int)]
    require(len(inner) == len(shape) - lead, "a size is unknown")
    places = np.arange(math.prod(inner)).reshape(inner).transpose([p - lead for p in perm[lead:]]).reshape(-1)
    require(own[lead] == len(places), "more than the columns is split")
    result = reshape_to(_with_columns(chain, constant(places), len(places)), known_shape(node.result))
    require(result is not None, "the target of the reshape is not known")
    return result


def _up_to_product(value: Value, user: Node) -> list[Node] | None:
    """The nodes from a product with a constant matrix to ``value``, whose other operands are constants."""
    chain: list[Node] = []
    while (made := value.producer) is not None and made.graph is user.graph and len(value.users) == 1:
        chain.append(made)
        others = [o for o in made.operands[1:] if o is not None]
        if made.op in ("MatMul", "Gemm"):
            is_constant = bool(others) and all(o.const is not None for o in others) and made.given(1).rank == 2
            return chain[::-1] if is_constant and len(chain) <= _LONGEST else None
        if made.op in _CONSTANT_OPERANDS:
            values = [o for o in made.operands if o is not None and o.const is None]
            if len(values) != 1 or (made.op in ("Clip", "PRelu") and values[0] is not made.given(0)):
                return None
            value = values[0]
            if value.shape != made.result.shape:
                return None
        elif made.op in UNARY:
            value = made.given(0)
        else:
            return None
    return None


def _with_columns(chain: list[Node], places: Value, count: int) -> Value:
    """The result of ``chain`` with its last dimension in another order."""
    product, *rest = chain
    axis = 0 if product.op == "Gemm" and product.attrs.get("transB", 0) else 1
    weight = op.Gather(product.given(1), places, axis=axis)
    operands = [product.operands[0], weight, *(_reordered(o, places, count) for o in product.operands[2:])]
    value = Node(product.op, operands, dict(product.attrs), [product.result.type]).result
    before = product.result
    for node in rest:
        operands = [value if o is before else _reordered(o, places, count) for o in node.operands]
        value, before = Node(node.op, operands, dict(node.attrs), [node.result.type]).result, node.result
    return value


def _reordered(value: Value | None, places: Value, count: int) -> Value | None:
    """A constant with its columns in another order; a single one stays."""
    if value is None or known_shape(value)[-1:] != (count,):
        return value
    return op.Gather(value, places, axis=-1)


def _columns(c: Value, result: Value, w: Value) -> Value:
    """Constant ``c`` as a vector over the last dimension of ``result``."""
    assert c.const is not None and w.const is not None
    rank = result.rank
    require(rank is not None and len(c.const.shape) <= rank, "the constant has more dimensions")
    require(all(d == 1 for d in c.const.shape[:-1]), "the constant is not one number per column")
    n = w.const.shape[-1]
    vector = c.const.numpy().reshape(-1)
    require(vector.size in (1, n), "the constant is not one number per column")
    return constant(np.ascontiguousarray(np.broadcast_to(vector, (n,))), c.dtype)


@rule(lambda x, w=const, c=const: (x @ w) * c, numerics=_ROUNDING)
def scale_into_matmul(x, w, c, match):
    """A factor per column of a MatMul with constant weight goes into the weight."""
    require(w.rank == 2 and x.dtype.is_floating, "the weight is no matrix")
    return op.MatMul(x, op.Mul(w, _columns(c, match.root.results[0], w)))


@rule(lambda x, w=const, b=const, c=const: (x @ w + b) * c, numerics=_ROUNDING)
def scale_into_linear(x, w, b, c, match):
    """A factor per column of a linear layer goes into its weight and bias."""
    require(w.rank == 2 and x.dtype.is_floating, "the weight is no matrix")
    require(b.rank is not None and b.const.shape[-1:] in ((w.const.shape[1],), (1,), ()), "the bias has other columns")
    factor = _columns(c, match.root.results[0], w)
    return op.Add(op.MatMul(x, op.Mul(w, factor)), op.Mul(b, factor))


@rule(lambda x, w=const, b=const, c=const: (x @ w + b) + c, numerics=_ROUNDING)
def shift_into_linear(x, w, b, c, match):
    """An addend per column of a linear layer goes into its bias."""
    require(w.rank == 2 and x.dtype.is_floating, "the weight is no matrix")
    require(b.rank is not None and b.const.shape[-1:] in ((w.const.shape[1],), (1,), ()), "the bias has other columns")
    return op.Add(op.MatMul(x, w), op.Add(b, _columns(c, match.root.results[0], w)))


@rule(
    lambda x, epsilon, momentum, w=const, gamma=const, beta=const, mean=const, var=const: op.BatchNormalization(
        x @ w, gamma, beta, mean, var, epsilon=epsilon, momentum=momentum
    ),
    numerics=_ROUNDING,
)
def batch_normalization_into_matmul(x, w, gamma, beta, mean, var, epsilon):
    """MatMul of matrices followed by BatchNormalization (inference) is a Gemm."""
    require(x.rank == 2 and w.rank == 2, "the channel is not the last dimension")
    scale, shift = affine(gamma, beta, mean, var, epsilon)
    return op.Gemm(x, op.Mul(w, scale), shift)


@rule(
    lambda x, ta, tb, epsilon, momentum, w=const, b=const, gamma=const, beta=const, mean=const, var=const: (
        op.BatchNormalization(
            op.Gemm(x, w, optional(b), transA=ta, transB=tb), gamma, beta, mean, var, epsilon=epsilon, momentum=momentum
        )
    ),
    numerics=_ROUNDING,
)
def batch_normalization_into_gemm(x, w, b, ta, tb, gamma, beta, mean, var, epsilon):
    """Gemm followed by BatchNormalization (inference) is one Gemm."""
    scale, shift = affine(gamma, beta, mean, var, epsilon)
    factor = op.Unsqueeze(scale, constant([1], DType.INT64)) if tb else scale
    return op.Gemm(x, op.Mul(w, factor), shift if b is None else op.Add(op.Mul(b, scale), shift), transA=ta, transB=tb)


@rule(
    lambda x, ta, tb, s, t, y, z, alpha, beta, w=const, b=const: op.Reshape(
        op.Gemm(op.Reshape(x, s, allowzero=y), w, optional(b), alpha=alpha, beta=beta, transA=ta, transB=tb),
        t,
        allowzero=z,
    ),
    numerics=_ROUNDING,
)
def gemm_between_reshapes(x, w, b, ta, tb, alpha, beta, match):
    """Rows flattened for a Gemm and unflattened again: a MatMul of the unflattened operand, and an Add."""
    require(not ta and alpha in (None, 1.0) and beta in (None, 1.0), "the Gemm transposes or scales")
    rows, result = known_shape(x), known_shape(match.root.results[0])
    require(rows and result and rows[:-1] == result[:-1], "the last reshape does not restore the leading dimensions")
    require(
        w.const.shape[1 if tb else 0] == rows[-1] and w.const.shape[0 if tb else 1] == result[-1],
        "the last dimension is split or merged",
    )
    require(b is None or b.rank == 1 or b.const.size == 1, "the addend is no row")
    product = op.MatMul(x, op.Transpose(w, perm=(1, 0)) if tb else w)
    if b is None:
        return product
    return op.Add(product, b if b.rank == 1 else op.Reshape(b, constant([-1], DType.INT64)))


_FLATTENED = """
agraph (float[B,S,8] x, float[8,4] w) => (float[B,S,4] y) <int64[2] rows = {-1, 8}> {
  r = Reshape (x, rows)
  m = MatMul (r, w)
  s = Shape <start = 0, end = 2> (x)
  n = Constant <value = int64[1] {4}> ()
  t = Concat <axis = 0> (s, n)
  y = Reshape (m, t)
}
"""


@rule(
    lambda x, w, s, t, y, z: op.Reshape(op.MatMul(op.Reshape(x, s, allowzero=y), w), t, allowzero=z),
    numerics=_ROUNDING,
    examples=[_FLATTENED],
)
def matmul_between_reshapes(x, w, match):
    """Rows flattened for a MatMul and unflattened again: it takes them as they are."""
    rows, result = known_shape(x), known_shape(match.root.results[0])
    require(w.rank == 2 and len(rows) > 1, "the product is not that of rows and a matrix")
    require(rows[:-1] == result[:-1], "the last reshape does not restore the leading dimensions")
    flat = next(n for n in match.nodes if n.op == "MatMul").given(0)
    require(known_shape(flat)[-1:] == rows[-1:], "the last dimension is split or merged")
    return op.MatMul(x, w)
