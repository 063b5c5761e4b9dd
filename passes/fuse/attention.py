"""Attention by meaning: a softmax between two matrix products, whatever stands around it.

The anchor is the product of the weights with the values. From there the rule goes up through what surrounds the
softmax, through the scores (`scores`), to the product of queries and keys; brings all leading dimensions into one view
(`views`); and states the whole as one ``Attention`` of rank 4. `heads` then removes what the operator does by itself:
splitting heads, repeating keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ir import Node, Value, constant, op
from ...ir.dims import product
from ...ir.types import DType, Shape
from ..numerics import within
from ..rules import NoMatch, require, rule
from ..simplify.fold_constants import integers
from ..simplify.reshapes import RESHAPING, known_shape
from .scores import Logits, Step, replay, scalar_of, trace
from .views import available, lead_of, mask_in_view, reshaped, shape_vector, swapped, with_lead

_ROUNDING = within(rtol=1e-4)
_SEARCH = 8  # operators between softmax and values
_ATTENTION_TYPES = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE)

_MASKED = """
agraph (float[B,2,S,4] q, float[B,2,T,4] k, float[B,2,T,3] v, bool[B,1,1,T] keep, float[2,S,T] bias) =>
  (float[B,2,S,3] y) <float scale = {2.0}, float low = {-3.4028235e38}>
{
  t = Transpose <perm = [0, 1, 3, 2]> (k)
  a = MatMul (q, t)
  b = Div (a, scale)
  c = Add (b, bias)
  d = Where (keep, c, low)
  w = Softmax <axis = -1> (d)
  y = MatMul (w, v)
}
"""
_FLAT = """
agraph (float[3,2,S,4] q, float[3,2,T,4] k, float[3,2,T,4] v, float[3,1,S,T] mask) => (float[3,2,S,4] y) <
  float half = {0.5}, float cap = {5.0}, float inverse = {0.2},
  int64[3] three = {6, -1, 4}, int64[3] turned = {6, 4, -1}
> {
  x = Mul (q, half)
  qs = Reshape (x, three)
  kt = Transpose <perm = [0, 1, 3, 2]> (k)
  ks = Reshape (kt, turned)
  vs = Reshape (v, three)
  r = MatMul (qs, ks)
  a = Mul (r, inverse)
  b = Tanh (a)
  c = Mul (b, cap)
  sizes = Shape <start = 2> (mask)
  heads = Constant <value_ints = [3, 2]> ()
  shape = Concat <axis = 0> (heads, sizes)
  e = Reshape (c, shape)
  f = Add (mask, e)
  w = Softmax (f)
  n = IsNaN (w)
  zero = Constant <value_float = 0.0> ()
  g = Where (n, zero, w)
  six = Constant <value_ints = [6]> ()
  flat = Concat <axis = 0> (six, sizes)
  p = Reshape (g, flat)
  o = MatMul (p, vs)
  back = Constant <value_ints = [3, 2, -1, 4]> ()
  y = Reshape (o, back)
}
"""
_SHARED = """
agraph (float[B,2,3,S,4] q, float[B,2,1,4,T] k, float[B,2,1,T,4] v) => (float[B,2,3,S,4] y) {
  a = MatMul (q, k)
  w = Softmax (a)
  y = MatMul (w, v)
}
"""
_SINK = """
agraph (float[B,2,S,4] q, float[B,2,4,T] k, float[B,2,T,3] v, float[B,1,S,T] mask, float[1,2,1,1] sink) =>
  (float[B,2,S,3] y) <int64[1] zero = {0}, int64[1] minus = {-1}>
{
  a = MatMul (q, k)
  b = Add (a, mask)
  batch = Shape <end = 1> (q)
  heads = Constant <value_ints = [2]> ()
  rows = Shape <start = 2, end = 3> (q)
  one = Constant <value_ints = [1]> ()
  shape = Concat <axis = 0> (batch, heads, rows, one)
  column = Expand (sink, shape)
  c = Concat <axis = -1> (b, column)
  m = ReduceMax <keepdims = 1> (c, minus)
  d = Sub (c, m)
  w = Softmax <axis = -1> (d)
  p = Slice (w, zero, minus, minus)
  y = MatMul (p, v)
}
"""
_SHIFTED = """
agraph (float[2,S,4] q, float[2,4,T] k, float[2,T,3] v) => (float[2,S,3] y) <
  float cogview = {32.0}, int64[1] minus = {-1}
> {
  a = MatMul (q, k)
  b = Div (a, cogview)
  m = ReduceMax <keepdims = 0> (b, minus)
  n = Unsqueeze (m, minus)
  c = Sub (b, n)
  d = Mul (c, cogview)
  w = Softmax <axis = -1> (d)
  y = MatMul (w, v)
}
"""
_TWO_VALUES = """
agraph (float[B,2,S,4] q, float[B,2,4,T] k, float[B,2,T,3] v, float[B,2,T,5] u) =>
  (float[B,2,S,3] y, float[B,2,S,5] z)
{
  a = MatMul (q, k)
  w = Softmax <axis = -1> (a)
  y = MatMul (w, v)
  z = MatMul (w, u)
}
"""
_CLEARED = """
agraph (float[B,2,S,4] q, float[B,2,4,T] k, float[B,2,T,3] v, bool[B,1,S,T] keep) => (float[B,2,S,3] y) <
  float low = {-1e9}, float zero = {0.0}
> {
  a = MatMul (q, k)
  b = Where (keep, a, low)
  w = Softmax <axis = -1> (b)
  c = Where (keep, w, zero)
  y = MatMul (c, v)
}
"""
_LOWERED = """
agraph (float[B,S,4] q, float[B,4,T] k, float[B,T,3] v, bool[B,1,T] pad) => (float[B,S,3] y) <float much = {1e9}> {
  a = MatMul (q, k)
  b = Sub (a, much)
  c = Where (pad, b, a)
  w = Softmax <axis = -1> (c)
  y = MatMul (w, v)
}
"""


@dataclass
class _Weights:
    """The way from the softmax to the second product.

    Attributes:
        softmax: its node.
        nodes: the nodes on the way, softmax included.
        zeroed: the conditions under which a weight is set to 0 after the softmax, with the operand that is kept.
        cut: the node that leaves out the last key, if there is one.
        foreign: the first node on the way that attention does not have, from above, if there is one.
    """

    softmax: Node
    nodes: list[Node] = field(default_factory=list)
    zeroed: list[Node] = field(default_factory=list)
    cut: Node | None = None
    foreign: Node | None = None

    @property
    def cleared(self) -> list[tuple[Value | None, int]]:
        """The conditions in ``zeroed``, and which operand is kept."""
        return [(n.operands[0], 1 if scalar_of(n.operands[2]) == 0 else 2) for n in self.zeroed]


def _weights(value: Value, root: Node) -> _Weights | None:
    """Go from the operand of a product up to the softmax; None if there is none."""
    found = _Weights(root)
    for _ in range(_SEARCH):
        node = value.producer
        if node is None or node.graph is not root.graph:
            return None
        found.nodes.append(node)
        following = node.operand(0)
        match node.op:
            case "Softmax":
                found.softmax = node
                return found
            case "Cast" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze":
                pass
            case "Where" if (kept := _guarded(node)) is not None:
                following = kept
                if node.operands[0] is not None and (test := node.operands[0].producer) and test.op == "IsNaN":
                    found.nodes.append(test)
                else:
                    found.zeroed.append(node)
            case "Slice" if found.cut is None and _drops_last(node):
                found.cut = node
            case "MatMul" | "Gemm" | "Conv":
                return None
            case _:
                found.foreign = node
        if following is None:
            return None
        value = following
    return None


def _drops_last(node: Node) -> bool:
    """Whether a Slice leaves out the last element along the last axis, and nothing else."""
    source, result = known_shape(node.given(0)), known_shape(node.results[0])
    whole = source[:-1] == result[:-1] and source[-1:] and source[-1] == result[-1] + 1
    return bool(whole) and integers(node.operand(1)) == (0,) and integers(node.operand(4)) in (None, (1,))


def _guarded(node: Node) -> Value | None:
    """The weights in a choice between them and 0."""
    for i in (1, 2):
        if scalar_of(node.operands[i]) == 0:
            return node.operands[3 - i]
    return None


@rule(
    "MatMul", numerics=_ROUNDING, examples=[_MASKED, _FLAT, _SHARED, _SINK, _SHIFTED, _TWO_VALUES, _CLEARED, _LOWERED]
)
def attention(node: Node) -> dict[Node, Value] | None:
    """A product, scaled, biased and masked, its softmax, and another product: attention."""
    weights = _weights(node.given(0), node)
    if weights is None or not _is_over_last(weights.softmax):
        return None
    products = [u for u in node.given(0).users if u.op == "MatMul" and u.graph is node.graph]
    products.sort(key=lambda p: p.order)
    if products[0] is not node:
        return None
    try:
        steps, first = trace(weights.softmax.given(0), node)
    except NoMatch as miss:
        if weights.foreign is not None and (miss.at is None or miss.at.op != "Concat"):  # some other softmax
            return None
        raise
    matched = len(steps) + len(weights.nodes) + 2
    nodes = [first, *(n for s in steps for n in (s.node, *s.shift(), *s.masked())), *weights.nodes]
    try:
        foreign = weights.foreign
        require(foreign is None, f"the attention weights pass through {foreign and foreign.op}", foreign, matched)
        _require_private(nodes, products, matched)
        query, key = first.given(0), first.given(1)
        require(query.dtype in _ATTENTION_TYPES, "the queries are no floating-point numbers", first)
        require(key.const is None or query.const is None, "both operands are constants", first)
        _require_same_mask(weights, steps)
        logits = replay(steps, first, query.dtype, weights.cleared)
        require((logits.sink is None) is (weights.cut is None), "the weight of a key is left out", weights.cut)
        return _build(query, key, products, logits, weights)
    except NoMatch as miss:
        raise NoMatch(str(miss), miss.at or weights.softmax, max(matched, miss.matched)) from None


_SIZES = """
agraph (float[B,S,4] q, float[B,4,T] k, bool[B,T] keep, float[B,T,3] v) => (float[B,S,3] y) <
  int64[1] rows = {1}, float low = {-1e30}
> {
  a = MatMul (q, k)
  sizes = Shape (a)
  m = Unsqueeze (keep, rows)
  n = Expand (m, sizes)
  b = Where (n, a, low)
  w = Softmax <axis = -1> (b)
  y = MatMul (w, v)
}
"""


@rule("Shape", examples=[_SIZES])
def shape_of_scores(node: Node) -> Value | None:
    """The sizes of scores are those of queries and keys: masks that are expanded to them need not know the scores."""
    scores = node.given(0)
    if scores.producer is None or scores.shape is None or len(scores.users) < 2:
        return None
    try:
        _, product = trace(scores, node)
    except NoMatch:
        return None
    query, key = product.given(0), product.given(1)
    if query.const is not None or key.const is not None:
        return None
    inputs = node.graph.root.inputs if node.graph is not None else []
    return shape_vector(scores.shape[node.attrs.get("start") : node.attrs.get("end")], [query, key, *inputs])


def _is_over_last(softmax: Node) -> bool:
    rank = softmax.results[0].rank
    axis = softmax.attrs.get("axis", -1)
    return axis == -1 or (rank is not None and axis == rank - 1)


def _require_private(nodes: list[Node], products: list[Node], matched: int) -> None:
    """Nothing else may use what is computed on the way: it would have to be computed twice."""
    inside = {*nodes, *products}
    require(all(p.operands[0] is products[0].operands[0] for p in products), "the attention weights are also values")
    for inner in nodes:
        for result in inner.results:
            for user in result.users:
                what = "weights" if inner.op in ("Softmax", "Where") else "scores"
                if user.op == "return":
                    require(False, f"the attention {what} are an output of the model", inner, matched)
                require(user in inside, f"the attention {what} are also used by {user.op}", user, matched)


def _require_same_mask(weights: _Weights, steps: list[Step]) -> None:
    """Weights may be set to 0 where the scores are masked anyway."""
    masks = [(s.node.operands[0], s.operand) for s in steps if s.node.op == "Where"]
    for node, mask in zip(weights.zeroed, weights.cleared, strict=True):
        require(mask in masks, "weights are set to 0 under a mask that the scores do not have", node)


def _build(query: Value, key: Value, products: list[Node], logits: Logits, weights: _Weights) -> dict[Node, Value]:
    """The attention, in the view in which the scores have two leading dimensions."""
    root = products[0]
    values = [available(p.given(1), root) for p in products]
    value, sizes = _side_by_side(values)
    inputs = root.graph.root.inputs if root.graph is not None else []
    sources = [query, key, value, *inputs]
    query, scale = _unscaled(query, logits.scale)
    key, scale = _unscaled(key, scale)
    key = swapped(key)
    lead = _lead(query, logits, root)
    query = _with_factors(_spread(query, logits.leads[0], lead, sources), logits, lead, sources)
    if scale < 0:
        query, scale = op.Neg(query), -scale
    heads = _kv_lead(lead_of(key), lead_of(value), logits.leads[0], lead)
    key, value = (_spread(x, logits.leads[0], heads, sources) for x in (key, value))
    mask = logits.bias
    if mask is not None:
        mask = mask_in_view(mask, logits.lead, lead, sources)
        mask = reshaped(mask, (1, *known_shape(mask))) if mask.rank == 1 else mask
    if logits.sink is not None:
        mask = _with_sink(mask, mask_in_view(logits.sink, logits.lead, lead, sources), query, key)
        key, value = (op.Pad(x, constant([0, 0, 0, 0, 0, 0, 1, 0], DType.INT64)) for x in (key, value))
    in_float = weights.softmax.results[0].dtype is DType.FLOAT and query.dtype is not DType.FLOAT
    result = op.Attention(
        query, key, value, mask, scale=scale, softcap=logits.softcap or None, softmax_precision=1 if in_float else None
    )
    if len(products) == 1:
        return {root: reshaped(result, known_shape(root.result), sources)}
    parts = op.Split(result, constant(sizes, DType.INT64), axis=-1, outputs=len(sizes))
    return {p: reshaped(r, known_shape(p.result), sources) for p, r in zip(products, parts, strict=True)}


def _side_by_side(values: list[Value]) -> tuple[Value, list[int]]:
    """What the same weights are multiplied with, as one value, and the number of features of each."""
    if len(values) == 1:
        return values[0], []
    sizes = [s for v in values if isinstance(s := known_shape(v)[-1], int)]
    fits = len(sizes) == len(values) and all(known_shape(v)[:-1] == known_shape(values[0])[:-1] for v in values)
    require(fits, "the attention weights are multiplied with values of different shapes")
    return op.Concat(*values, axis=-1), sizes


def _with_sink(mask: Value | None, sink: Value, query: Value, key: Value) -> Value:
    """``mask`` with ``sink``, of one column, behind the last key."""
    queries, keys = known_shape(query)[-2], known_shape(key)[-2]
    mask = constant(0.0, query.dtype) if mask is None else mask
    shapes = [known_shape(v)[:-1] for v in (mask, sink)]
    rank = max(2, *(len(s) + 1 for s in shapes))
    padded = [(1,) * (rank - 1 - len(s)) + s for s in shapes]
    rows = [b if a == 1 else a for a, b in zip(*padded, strict=True)]
    sources = [query, key, mask, sink]
    joined = [op.Expand(v, shape_vector([*rows, n], sources)) for v, n in ((mask, keys), (sink, 1))]
    require(rows[-1] in (1, queries), "the sink has another number of rows than the scores")
    return op.Concat(*joined, axis=-1)


def _unmerged(value: Value) -> Value:
    """What a merge of leading dimensions merges."""
    node = value.producer
    while node is not None and node.op in RESHAPING:
        source, shape = node.operands[0], known_shape(value)
        assert source is not None
        if source.shape is None or len(source.shape) < len(shape) or source.shape[-2:] != shape[-2:]:
            return value
        value, node = source, source.producer
    return value


def _unscaled(value: Value, scale: float) -> tuple[Value, float]:
    """``value`` without a constant factor, which goes into the scale."""
    node = value.producer
    if node is None or len(value.users) > 1:
        return value, scale
    if node.op in ("Mul", "Div"):
        for i in (0, 1) if node.op == "Mul" else (1,):
            number, rest = scalar_of(node.operands[i]), node.operands[1 - i]
            if number and rest is not None and rest.shape == value.shape:
                return _unscaled(rest, scale * number if node.op == "Mul" else scale / number)
    if node.op in ("Transpose", *RESHAPING):
        source = node.operands[0]
        assert source is not None
        plain, new = _unscaled(source, scale)
        if plain is not source:
            return getattr(op, node.op)(plain, *node.operands[1:], **node.attrs), new
    return value, scale


def _lead(query: Value, logits: Logits, root: Node) -> Shape:
    """Batch and heads: the grouping of the leading dimensions into two that saves reshapes."""
    first = logits.leads[0]
    if len(first) == 2:
        return first
    if len(first) > 2:
        return (product(first[:-1]), first[-1])
    candidates = [lead_of(_unmerged(query)), *logits.leads]
    candidates += [lead_of(u.results[0]) for u in root.result.users if u.op == "Reshape" and _is_split(u, root)]
    return next(
        (c for c in candidates if len(c) == 2 and product(c) == product(first)), (*first, *(1, 1)[len(first) :])
    )


def _is_split(user: Node, root: Node) -> bool:
    shape = user.results[0].shape
    return shape is not None and len(shape) == 4 and shape[-2:] == known_shape(root.result)[-2:]


def _kv_lead(key: Shape, value: Shape, scores: Shape, lead: Shape) -> Shape:
    """The leading dimensions of keys and values: ``lead``, or with fewer heads where queries share them.

    Groups of queries arrive as a dimension of size 1 in both, behind that of their heads.
    """
    shared = len(key) == len(value) == len(scores) > 1 and key[-1] == value[-1] == 1 and scores[-1] != 1
    if not shared or lead[-1] != scores[-1]:
        return lead
    return (lead[0], 1)


def _with_factors(query: Value, logits: Logits, lead: Shape, sources: list[Value]) -> Value:
    for factor, view in logits.factors:
        query = op.Mul(query, mask_in_view(factor, view, lead, sources))
    return query


def _spread(value: Value, scores: Shape, lead: Shape, sources: list[Value]) -> Value:
    """``value`` with the leading dimensions ``lead``, repeated over those of the scores that it lacks."""
    own = lead_of(value)
    if product(own) == product(lead):
        return with_lead(value, lead, sources)
    padded = (1,) * (len(scores) - len(own)) + own
    require(len(padded) == len(scores), "queries, keys and scores differ in their leading dimensions", value.producer)
    wanted = (*scores[:-1], 1) if lead[-1] == 1 else scores
    value = op.Expand(value, shape_vector([*wanted, 1, 1], sources))
    return with_lead(value, lead, sources)
