"""The forms of fused operators that ONNX Runtime runs, and runs fastest, on a CPU.

What its kernels demand beyond the standard is supplied here, before `legalize` chooses versions. Its own operators are
used where they are faster than the standard ones. ONNX Runtime 1.31, two threads, 768 features in 12 heads, in
milliseconds at 64 / 512 positions (``benchmarks/ort_forms.py``): attention with a mask as Attention on rows 0.13 / 5.5,
as MultiHeadAttention 0.19 / 6.2, causal as GroupQueryAttention 0.20 / 6.6, in primitives 0.24 / 7.0; without a mask, at
2048 positions, Attention 78, MultiHeadAttention 69; with one head, at 1024 positions, 2.9 and 1.5; with a soft cap,
Attention 0.44 / 20, primitives 0.27 / 7.4; Add and LayerNormalization 0.05 / 0.23, SkipLayerNormalization 0.15 / 1.0.
"""

from __future__ import annotations

import numpy as np

from ..ir import Graph, Node, Value, constant, edit, op
from ..ir.builder import make_node
from ..ir.types import DType
from ..passes.base import Context
from ..passes.fuse.views import shape_vector
from ..passes.simplify.eliminate_common_subexpressions import eliminate
from .functions import decompose
from .ort_target import defines

__all__ = ["adapt"]

_ATTENTION_TYPES = (DType.FLOAT, DType.FLOAT16)
_IN_BLOCKS = "com.microsoft.MultiHeadAttention"
_SCORES = 1 << 21  # of a head, from which on blocks are faster than whole heads (measured)
_SINGLE = 1 << 16  # and where there is one head only, which is one thread's work
_DEPTH = 12
_ACROSS = 4  # nodes that ONNX Runtime might move a transposition across
_COMPUTE = frozenset(["Cast", "Mul", "Neg"])
_CARRY = _COMPUTE | {  # operators whose results may be elements of their operands
    *("Add", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "Min", "Pad"),
    *("Reshape", "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Trilu"),
    *("Unsqueeze", "Where"),
}


def adapt(graph: Graph) -> None:
    """Rewrite the fused operators of ``graph`` in place into forms that ONNX Runtime runs well."""
    masked = False
    for node in [n for n in graph.walk() if n.op in _FORMS]:
        masked |= _FORMS[node.op](node)
    if masked:
        eliminate(graph, Context())  # all layers have made the same mask


def _attention(node: Node) -> bool:
    """Its mask; true if it has one."""
    if node.operands[0].dtype not in _ATTENTION_TYPES:  # type: ignore[union-attr]
        decompose(node, {})
        return False
    if _is_capped(node):
        _substitute(node, *_in_primitives(node))
    elif (mask := node.operand(3)) is not None:
        edit.set_operand(node, 3, _mask(node))
        edit.erase_dead([mask.producer] if mask.producer is not None else [])
    elif _suits_blocks(node):
        _substitute(node, _in_blocks(node))
    return node.operand(3) is not None


def _is_capped(node: Node) -> bool:
    """Whether it has a soft cap, and all that `_in_primitives` must know."""
    query, key, attrs = node.operands[0], node.operands[1], node.attrs
    if not attrs.get("softcap") or attrs.get("is_causal") or len(node.results) > 3 or len(node.operands) > 6:
        return False
    if query is None or key is None or query.dtype is not DType.FLOAT or query.shape is None or key.shape is None:
        return False
    counts = (
        (attrs.get("q_num_heads"), attrs.get("kv_num_heads")) if query.rank == 3 else (query.shape[1], key.shape[1])
    )
    size = query.shape[-1]
    return all(isinstance(n, int) for n in (*counts, size)) and (len(node.results) == 3) is (
        node.operand(4) is not None
    )


def _suits_blocks(node: Node) -> bool:
    """Whether MultiHeadAttention is faster: it works on blocks of queries, Attention on whole heads."""
    query, key = node.operands[0], node.operands[1]
    assert query is not None and key is not None
    heads, attrs = node.attrs.get("q_num_heads"), node.attrs
    plain = (
        len(node.operands) == 3 and len(node.results) == 1 and not attrs.get("softcap") and not attrs.get("is_causal")
    )
    if not plain or heads is None or heads != attrs.get("kv_num_heads") or query.dtype is not DType.FLOAT:
        return False
    if query.shape is None or key.shape is None or not len(query.shape) == len(key.shape) == 3:
        return False
    scores = query.shape[1] * key.shape[1]
    single = heads == 1 and not (isinstance(query.shape[0], int) and query.shape[0] > 1)
    return isinstance(scores, int) and scores >= (_SINGLE if single else _SCORES) and defines(_IN_BLOCKS)


def _in_blocks(node: Node) -> Value:
    attrs = {"num_heads": node.attrs["q_num_heads"], "scale": node.attrs.get("scale")}
    return make_node(_IN_BLOCKS, node.operands, attrs, 1).result


def _in_primitives(node: Node) -> list[Value]:
    """Attention with a soft cap, of which the kernel computes the tangents one by one."""
    attrs, (q, k, v) = node.attrs, (node.given(i) for i in range(3))
    assert q.shape is not None and k.shape is not None
    on_rows, width = len(q.shape) == 3, q.shape[-1]
    heads, groups = (attrs["q_num_heads"], attrs["kv_num_heads"]) if on_rows else (q.shape[1], k.shape[1])
    assert isinstance(heads, int) and isinstance(groups, int)
    if on_rows:
        q, k, v = (_heads_first(x, n) for x, n in ((q, heads), (k, groups), (v, groups)))
    presents = []
    if node.operand(4) is not None:
        presents = [op.Concat(past, x, axis=2) for past, x in zip(node.operands[4:6], (k, v), strict=True)]
        k, v = presents
    assert isinstance(width, int)
    size = width // heads if on_rows else width
    scale, cap = attrs.get("scale") or float(size) ** -0.5, attrs["softcap"]
    q = op.Reshape(op.Mul(q, constant(scale / cap, q.dtype)), constant([0, groups, -1, size], DType.INT64))
    each, together = (constant([0, n, -1, 0], DType.INT64) for n in (heads, groups))
    scores = op.Mul(op.Tanh(op.MatMul(q, op.Transpose(k, perm=(0, 1, 3, 2)))), constant(cap, q.dtype))
    weights = op.Softmax(_masked(op.Reshape(scores, each), node), axis=-1)
    if _hides_all(node.operand(3)):
        weights = op.Where(op.IsNaN(weights), constant(0.0, q.dtype), weights)
    result = op.Reshape(op.MatMul(op.Reshape(weights, together), v), each)
    if on_rows:
        result = op.Reshape(op.Transpose(result, perm=(0, 2, 1, 3)), constant([0, 0, -1], DType.INT64))
    return [result, *presents]


def _heads_first(rows: Value, heads: int) -> Value:
    return op.Transpose(op.Reshape(rows, constant([0, 0, heads, -1], DType.INT64)), perm=(0, 2, 1, 3))


def _masked(scores: Value, node: Node) -> Value:
    mask = node.operand(3)
    if mask is not None and mask.dtype is DType.BOOL:
        mask = op.Where(mask, constant(0.0, scores.dtype), constant(-np.inf, scores.dtype))
    return scores if mask is None else op.Add(scores, mask)


def _hides_all(mask: Value | None) -> bool:
    """Whether a mask may hide all keys from a query by infinity, for which Attention gives 0."""
    if mask is None or mask.dtype is DType.BOOL:
        return mask is not None
    return _magnitude(mask) > -mask.dtype.lowest


def _magnitude(value: Value, depth: int = 0) -> float:
    """A bound of the elements of a mask: inputs may hold anything, what is computed otherwise holds nothing large."""
    if value.const is not None:
        return float(np.abs(value.const.numpy()).max(initial=0)) if value.dtype.is_floating else 0.0
    node = value.producer
    if node is None or node.graphs or node.domain or depth > _DEPTH:
        return np.inf
    if node.op not in _CARRY:
        return 0.0
    bounds = [_magnitude(o, depth + 1) for o in node.operands if o is not None and o.dtype.is_floating]
    return sum(bounds) if node.op in ("Add", "Sub") else max(bounds, default=0.0)


def _swish(node: Node) -> bool:
    """As ONNX Runtime knows it: it fuses what it runs as one; the standard's function body it runs in three steps."""
    x, alpha = node.operands[0], node.attrs.get("alpha", 1.0)
    assert x is not None
    _substitute(node, op.Mul(x, op.Sigmoid(x if alpha == 1.0 else op.Mul(x, constant(alpha, x.dtype)))))
    return False


def _substitute(node: Node, *values: Value) -> None:
    edit.insert_floating(values, node)
    for old, new in zip(node.results, values, strict=True):
        edit.replace(old, new)
    edit.erase(node)


def _layer_normalization(node: Node) -> bool:
    """Behind a view that changes nothing: ONNX Runtime would make a slower operator of Add and LayerNormalization."""
    x = node.operands[0]
    add = x.producer if x is not None else None
    if x is None or add is None or add.op != "Add" or len(x.users) > 1 or x.shape is None or len(x.shape) < 2:
        return False
    size = x.shape[-1]
    if isinstance(size, int):
        view = op.Reshape(x, constant([*[0] * (len(x.shape) - 1), size], DType.INT64))
        edit.insert_floating([view], node)
        edit.set_operand(node, 0, view)
    return False


def _group_normalization(node: Node) -> bool:
    """As instances: there is no kernel, and the standard's function body computes mean and variance in steps."""
    x, scale, bias = node.operands
    groups, shape = node.attrs["num_groups"], x.shape  # type: ignore[union-attr]
    if x is None or shape is None or x.dtype is not DType.FLOAT:
        return False
    ones, zeros = constant(np.ones(groups), x.dtype), constant(np.zeros(groups), x.dtype)
    grouped = op.Reshape(x, constant([0, groups, -1], DType.INT64))
    normal = op.InstanceNormalization(grouped, ones, zeros, epsilon=node.attrs.get("epsilon"))
    restored = op.Reshape(normal, op.Shape(x))
    channels = constant([-1] + [1] * (len(shape) - 2), DType.INT64)
    result = op.Add(op.Mul(restored, op.Reshape(scale, channels)), op.Reshape(bias, channels))
    _substitute(node, result)
    return False


def _pad(node: Node) -> bool:
    """With the widths of all dimensions: ONNX Runtime 1.31 permutes them as such when it moves a transposition across.

    Before a MaxPool they stay named: see `planish.passes.simplify.convolutions.pad_of_named_axes`.
    """
    x, widths, axes = node.given(0), node.given(1), node.operand(3)
    is_pooled = any(u.op == "MaxPool" for u in node.result.users)
    if axes is None and is_pooled and x.shape is not None:
        edit.set_operand(node, 3, constant(np.arange(len(x.shape))))
    if axes is None or axes.const is None or x.shape is None or is_pooled:
        return False
    rank = len(x.shape)
    places = axes.const.numpy().astype(np.int64) % rank
    places = np.concatenate([places, places + rank])
    if widths.const is not None:
        array = np.zeros(2 * rank, np.int64)
        array[places] = widths.const.numpy()
        full = constant(array)
    else:
        full = op.ScatterElements(constant(np.zeros(2 * rank, np.int64)), constant(places), widths, axis=0)
        edit.insert_floating([full], node)
    edit.set_operand(node, 1, full)
    edit.set_operand(node, 3, None)
    return False


def _product(node: Node) -> bool:
    """With operands of one rank: ONNX Runtime 1.31 crashes where it has taken a transposition of rows into a product.

    That is so in float16, where the first dimension of one operand is moved and the other has another rank.
    """
    a, b = node.given(0), node.given(1)
    if a.dtype is not DType.FLOAT16 or a.shape is None or b.shape is None or not _is_turned(a) | _is_turned(b):
        return False
    missing = len(a.shape) - len(b.shape)
    position, low = (1, b) if missing > 0 else (0, a)
    if missing and low.rank != 1:
        wide = op.Unsqueeze(low, constant(list(range(abs(missing))), DType.INT64))
        edit.insert_floating([wide], node)
        edit.set_operand(node, position, wide)
    return False


def _is_turned(value: Value, depth: int = 0) -> bool:
    """Whether a transposition that moves the first dimension stands before it, perhaps with others in between."""
    node = value.producer
    if node is None or depth > _ACROSS:
        return False
    if node.op == "Transpose" and list(node.attrs.get("perm", (-1,)))[:1] != [0]:
        return True
    return any(o is not None and _is_turned(o, depth + 1) for o in node.operands)


def _mask(node: Node) -> Value:
    """The mask of an Attention as its kernel wants it: additive, a full matrix, and without the lowest number.

    The kernel reads a row of lowest numbers as one in which everything is masked, and gives 0 where the standard gives
    the mean of the values; only a row of negative infinities is such a row.
    """
    query, key, mask, past = node.operands[0], node.operands[1], node.operands[3], node.operand(4)
    assert query is not None and key is not None and mask is not None
    dtype = query.dtype
    if mask.dtype is DType.BOOL:
        mask = op.Where(mask, constant(0.0, dtype), constant(-np.inf, dtype))
    else:
        mask = _raised(mask, {})
    size = (query.shape[-2], key.shape[-2]) if query.shape and key.shape and past is None else None
    if size is None or mask.shape is None or mask.shape[-2:] != size:
        mask = op.Expand(mask, _matrix(node))
    edit.insert_floating([mask], node)
    return mask


def _matrix(node: Node) -> Value:
    """The numbers of queries and of keys, read where all layers read them: from the inputs of the graph if possible."""
    query, key, past = node.operands[0], node.operands[1], node.operand(4)
    assert query is not None and key is not None and node.graph is not None
    if query.shape is not None and key.shape is not None and past is None:
        return shape_vector((query.shape[-2], key.shape[-2]), [*node.graph.root.inputs, query, key])
    counted = [(query, (query.rank or 4) - 2), (key, (key.rank or 4) - 2)] + ([] if past is None else [(past, 2)])
    lengths = [op.Shape(v, start=axis, end=axis + 1) for v, axis in counted]
    return op.Concat(lengths[0], lengths[1] if past is None else op.Add(*lengths[1:]), axis=0)


def _raised(value: Value, done: dict[Value, Value], depth: int = 0) -> Value:
    """``value`` with the next number instead of the lowest of its type.

    It is replaced where it comes from: in constants at no cost, in floating-point inputs and clipped numbers by a
    comparison. What is computed otherwise is never exactly this number.
    """
    if value not in done:
        done[value] = _raised_once(value, done, depth)
    return done[value]


def _raised_once(value: Value, done: dict[Value, Value], depth: int) -> Value:
    if not value.dtype or not value.dtype.is_floating:
        return value
    lowest = np.asarray(value.dtype.lowest, value.dtype.numpy)
    above = np.nextafter(lowest, np.asarray(0, value.dtype.numpy))
    if value.const is not None:
        array = value.const.numpy()
        found = np.abs(array) == -lowest  # the largest, too: it may be subtracted
        return constant(np.where(found, np.copysign(above, array), array), value.dtype) if found.any() else value
    node = value.producer
    if node is None or node.graphs or node.domain or depth > _DEPTH or node.op == "Clip":  # which may clip to it
        return op.Where(op.Equal(value, constant(lowest, value.dtype)), constant(above, value.dtype), value)
    if node.op not in _CARRY:
        return value
    whole = node.op not in _COMPUTE  # then what is an input comes through as it is
    operands = [
        o if o is None or not (whole or o.const is not None or o.producer) else _raised(o, done, depth + 1)
        for o in node.operands
    ]
    if all(a is b for a, b in zip(operands, node.operands, strict=True)):
        return value
    return make_node(node.op, tuple(operands), dict(node.attrs), len(node.results)).results[value.index]


_FORMS = {
    "Attention": _attention,
    "GroupNormalization": _group_normalization,
    "LayerNormalization": _layer_normalization,
    "MatMul": _product,
    "Pad": _pad,
    "Swish": _swish,
}
