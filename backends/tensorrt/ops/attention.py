"""Attention and its kin.

TensorRT runs an Attention as one kernel, its IAttention, or refuses it: in float16 and bfloat16, with heads of 9 to 256
numbers; where there is one query only, other kernels take other sizes. Where the numbers of queries or of images are
open, what is called legal is legal for all of them. What it refuses is put as one that it takes (heads in front, the
cache appended, everything that hides keys in one mask), or else in primitives, which it fuses as it can. A query that
sees no key gets what the kernel gives; in what is put here, 0, as the standard says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from ....ir import DType, Graph, Node, Value, constant, op
from ....ir.builder import make_node
from ....ir.clone import clone_node
from ....ir.dims import Dim
from ..legality import FLOATS, Row, refusal
from ..versions import Version
from . import Form

__all__ = ["FORMS", "ROWS"]

_HALF = frozenset({DType.FLOAT16, DType.BFLOAT16})
_LARGE = 1 << 20  # elements of a mask, from which on it is computed where it runs
_Array = np.ndarray  # what is known when the form is made
_Part = _Array | Value


# --- Attention: what is one kernel ------------------------------------------------------------------------------------


def _attention_refusal(node: Node, version: Version) -> str:
    """Why it is not an IAttention."""
    attrs, mask = node.attrs, node.operand(3)
    if len(node.results) > 1:
        return f"{version} gives only its first result"
    if _is_nested(node):
        return f"{version} has no Attention within an If or a Loop"
    if _is_same(node.given(0), node.given(1)):
        return f"{version} fails where queries are the keys"
    if node.given(2).dtype is not node.given(0).dtype:
        return f"{version} takes keys and values of one type"
    if attrs.get("softcap"):
        return f"{version} has no softcap"
    for name in ("softmax_precision", "left_window_size", "right_window_size"):
        if name in attrs:
            return f"{version} has no {name}"
    if node.operand(4) is not None or node.operand(5) is not None:
        return f"{version} appends nothing to a cache in an Attention"
    if node.operand(6) is not None:
        return f"{version} does not read nonpad_kv_seqlen"
    if mask is not None and attrs.get("is_causal"):
        return f"{version} takes a mask or is_causal, not both"
    sizes = _Sizes.of(node)
    if sizes is None:
        return f"{version} must know the heads"
    if not _are_alike(node.given(1), node.given(2)):
        return f"{version} takes keys and values of one size"
    return sizes.refusal(node, version) or _mask_refusal(node, sizes, version)


@dataclass(frozen=True)
class _Sizes:
    """The sizes of an Attention without a cache; ``head``: how long a query and a key are."""

    batch: Dim
    heads: Dim
    groups: Dim
    queries: Dim
    keys: Dim
    head: int

    @staticmethod
    def of(node: Node) -> _Sizes | None:
        """The sizes; None if they are not known well enough."""
        query, key, value = (node.given(i).shape for i in range(3))
        if query is None or key is None or value is None or not len(query) == len(key) == len(value):
            return None
        if len(query) == 4:
            batch, heads, queries, head = query
            _, groups, keys, _ = key
            return _Sizes(batch, heads, groups, queries, keys, head) if isinstance(head, int) else None
        q_heads, kv_heads = node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads")
        if len(query) != 3 or not q_heads or not kv_heads or not isinstance(query[2], int):
            return None
        return _Sizes(query[0], q_heads, kv_heads, query[1], key[1], query[2] // q_heads)

    @property
    def are_groups(self) -> bool:
        """Whether as many heads have the same keys, each."""
        heads, groups = self.heads, self.groups
        return heads == groups or (isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0)

    def refusal(self, node: Node, version: Version) -> str:
        """Why no kernel has them, or ""."""
        dtype, mask = node.given(0).dtype, node.operand(3)
        if not self.are_groups:
            return f"{self.heads} heads for {self.groups} of the keys: {version} takes a multiple"
        if dtype not in _HALF and not (dtype is DType.FLOAT and self.queries == 1 and version.rtx):
            return f"{version} has no kernel for {dtype.text}"
        if self.head % 8 and (mask is not None or not version.rtx):
            return f"{version} has no kernel for heads of {self.head}"
        if not self._has_kernel(mask is not None or bool(node.attrs.get("is_causal")), version):
            return f"{version} has no kernel for {self.queries} queries in {self.heads} heads of {self.head}"
        return ""

    def _has_kernel(self, hides: bool, version: Version) -> bool:
        heads, one = _least(self.heads), self.queries == 1
        if one or not isinstance(self.queries, int):
            smallest = 8 if one and version.rtx else 16
            if self.head % 8 or not smallest <= self.head <= 256 or _least(self.batch) * heads < 4:
                return False
        return one or (9 <= self.head <= 256 and (heads > 1 or (_least(self.batch) > 1 and not hides)))


def _least(dim: Dim) -> int:
    """The smallest size that the build may be for."""
    return dim if isinstance(dim, int) else 1


def _are_alike(key: Value, value: Value) -> bool:
    """Whether both are of one size, as far as it is known, and the size of a head is."""
    if key.shape is None or value.shape is None or not isinstance(key.shape[-1], int):
        return False
    pairs = zip(key.shape, value.shape, strict=True)
    return all(a == b if isinstance(a, int) else not isinstance(b, int) for a, b in pairs)


def _is_nested(node: Node) -> bool:
    return node.graph is not None and node.graph.parent is not None


def _is_same(a: Value, b: Value, depth: int = 4) -> bool:
    """Whether both are computed in the same way, which the builder finds out."""
    one, other = a.producer, b.producer
    if a is b:
        return True
    if a.const is not None and b.const is not None:
        return a.type == b.type and np.array_equal(a.const.numpy(), b.const.numpy())
    if one is None or other is None or not depth or one.op != other.op or a.index != b.index:
        return False
    if one.graphs or dict(one.attrs) != dict(other.attrs) or len(one.operands) != len(other.operands):
        return False
    return all(
        x is y or (x is not None and y is not None and _is_same(x, y, depth - 1))
        for x, y in zip(one.operands, other.operands, strict=True)
    )


def _mask_refusal(node: Node, sizes: _Sizes, version: Version) -> str:
    mask = node.operand(3)
    if mask is None:
        return ""
    if mask.dtype not in (DType.BOOL, node.given(0).dtype):
        return f"{version} takes a mask of bool or {node.given(0).dtype.text}"
    if mask.shape is None or len(mask.shape) > 4:
        return f"{version} takes a mask of 4 dimensions at most"
    scores = (sizes.keys, sizes.queries, sizes.heads, sizes.batch)
    for i, (dim, whole) in enumerate(zip(mask.shape[::-1], scores, strict=False)):
        if dim == 1 and i > 0:
            continue
        if isinstance(dim, int) and dim != whole and (dim == 1 or isinstance(whole, int)):
            return f"the mask must be as large as the scores, and is {'x'.join(map(str, mask.shape))}"
    return ""


# --- Attention: forms -------------------------------------------------------------------------------------------------


def _attention(node: Node, version: Version) -> list[Value] | None:
    """As an Attention that is one kernel, or else in primitives."""
    task = _Attention.of(node)
    if task is None:
        return None
    answer, scores = task.fused(version), None
    if answer is None:
        answer, scores = task.in_primitives()
    if node.given(0).rank == 3:
        answer = _rows(answer)
    values = [answer, task.key, task.value, scores]
    return [Value(r.type) if v is None else v for v, r in zip(values, node.results, strict=False)]


@dataclass(frozen=True)
class _Attention:
    """An Attention whose heads stand in front and whose cache is appended.

    Attributes:
        node: it.
        query: its queries; ``key`` and ``value`` are those of the cache and the new ones.
        sizes: the sizes of all of these.
        mask: what hides keys, all in one: bool, or added to the scores; None if every key is seen.
        hides: whether it may hide all keys from a query.
        is_plain: whether is_causal says the same as ``mask``.
    """

    node: Node
    query: Value
    key: Value
    value: Value
    sizes: _Sizes
    mask: Value | None
    hides: bool
    is_plain: bool

    @staticmethod
    def of(node: Node) -> _Attention | None:
        """It; None if too little is known."""
        sizes, past = _Sizes.of(node), node.operand(4)
        if sizes is None or not sizes.are_groups:
            return None
        query, key, value = (node.given(i) for i in range(3))
        if query.rank == 3:
            query, key, value = (
                _heads_first(x, n) for x, n in ((query, sizes.heads), (key, sizes.groups), (value, sizes.groups))
            )
        if past is not None:
            key, value = op.Concat(past, key, axis=2), op.Concat(node.given(5), value, axis=2)
        if query.shape is None or key.shape is None or value.shape is None:
            return None
        sizes = replace(sizes, keys=key.shape[2])
        seen = _seen(node, query, key)
        mask = _mask(node, key, seen)
        return _Attention(node, query, key, value, sizes, mask, *_kinds(node, mask, seen))

    def fused(self, version: Version) -> Value | None:
        """It as one kernel; None if there is none."""
        attrs, results = self.node.attrs, self.node.results
        precision = attrs.get("softmax_precision", DType.FLOAT)  # what the kernels compute in
        if precision not in (DType.FLOAT, self.query.dtype) or (len(results) > 3 and results[3].is_used):
            return None
        if _is_nested(self.node):
            return None
        kept: dict[str, object] = {name: attrs[name] for name in ("scale", "softcap") if name in attrs}
        query = self.query
        if _is_same(self.node.given(0), self.node.given(1)) and kept.get("scale") != 1.0:
            query = op.Mul(query, constant(attrs.get("scale", self.sizes.head**-0.5), query.dtype))
            kept["scale"] = 1.0  # another tensor than the keys
        if self.is_plain:
            kept["is_causal"] = 1
        mask = None if self.is_plain else self.mask
        made = make_node("Attention", (query, self.key, _cast(self.value, query.dtype), mask), kept)
        if refusal(made, version):
            return None
        return self._without_blind(made.result) if self.hides else made.result

    def in_primitives(self) -> tuple[Value, Value]:
        """It, and the scores that are asked for."""
        attrs, dtype = self.node.attrs, self.query.dtype
        mode, softcap = attrs.get("qk_matmul_output_mode", 0), attrs.get("softcap")
        raw = capped = self._scores()
        if softcap:
            capped = op.Mul(op.Tanh(op.Mul(raw, constant(1 / softcap, dtype))), constant(softcap, dtype))
        masked = capped
        if self.mask is not None and self.mask.dtype is DType.BOOL:
            masked = op.Where(self.mask, capped, constant(-np.inf, dtype))
        elif self.mask is not None:
            masked = op.Add(capped, self.mask)
        weights = self._softmax(masked)
        if mode == 3 and self.hides:
            weights = self._without_blind(weights)
        answer = self._answer(weights)
        if mode != 3 and self.hides:
            answer = self._without_blind(answer)
        return answer, (raw, capped, masked, weights)[mode]

    def modified(self, precision: DType, score_mod: Graph | None, prob_mod: Graph | None) -> Value:
        """It, with changed scores and weights."""
        scores = _inlined(score_mod, _cast(self._scores(), precision))
        return self._answer(_cast(_inlined(prob_mod, op.Softmax(scores, axis=-1)), self.query.dtype))

    def _scores(self) -> Value:
        """The products of queries and keys; queries of several heads with the same keys are one matrix."""
        query, sizes, scale = self.query, self.sizes, self.node.attrs.get("scale", self.sizes.head**-0.5)
        if scale != 1:
            query = op.Mul(query, constant(scale, query.dtype))
        if sizes.heads != sizes.groups:
            query = _reshaped(query, 0, sizes.groups, -1, sizes.head)
        scores = op.MatMul(query, op.Transpose(self.key, perm=(0, 1, 3, 2)))
        return scores if sizes.heads == sizes.groups else _reshaped(scores, 0, sizes.heads, -1, 0)

    def _answer(self, weights: Value) -> Value:
        sizes, value = self.sizes, _cast(self.value, weights.dtype)
        if sizes.heads == sizes.groups:
            return op.MatMul(weights, value)
        return _reshaped(op.MatMul(_reshaped(weights, 0, sizes.groups, -1, 0), value), 0, sizes.heads, -1, 0)

    def _softmax(self, scores: Value) -> Value:
        return _cast(op.Softmax(_cast(scores, _precision(self.node, scores.dtype)), axis=-1), scores.dtype)

    def _without_blind(self, rows: Value) -> Value:
        """``rows`` with zeros for the queries that see no key."""
        mask = self.mask
        assert mask is not None
        if mask.rank == 0:
            mask = op.Unsqueeze(mask, [0])
        zero = constant(0.0, rows.dtype)
        if mask.dtype is DType.BOOL:
            seen = op.Cast(op.ReduceMax(op.Cast(mask, to=rows.dtype), [-1]), to=DType.BOOL)
            return op.Where(seen, rows, zero)
        return op.Where(op.Equal(op.ReduceMax(mask, [-1]), constant(-np.inf, mask.dtype)), zero, rows)


def _precision(node: Node, default: DType) -> DType:
    precision = DType(node.attrs.get("softmax_precision", default))
    return DType.FLOAT if precision is DType.DOUBLE else precision


def _heads_first(rows: Value, heads: Dim) -> Value:
    return op.Transpose(_reshaped(rows, 0, 0, heads, -1), perm=(0, 2, 1, 3))


def _rows(heads: Value) -> Value:
    return _reshaped(op.Transpose(heads, perm=(0, 2, 1, 3)), 0, 0, -1)


def _reshaped(value: Value, *shape: Dim) -> Value:
    return op.Reshape(value, constant(shape, DType.INT64))


# --- what hides keys --------------------------------------------------------------------------------------------------


def _seen(node: Node, query: Value, key: Value) -> _Part | None:
    """Which keys is_causal, the window and the numbers of keys leave to a query; None for all."""
    attrs, lengths = node.attrs, node.operand(6)
    left, right = attrs.get("left_window_size", -1), attrs.get("right_window_size", -1)
    if attrs.get("is_causal"):
        right = 0
    rules: list[_Part] = []
    keys = _range(key, 2, by=query)
    if left >= 0 or right >= 0:
        places = _places(node, query, key)
        if right >= 0:
            rules.append(_holds("LessOrEqual", keys, _plus(places, right)))
        if left >= 0:
            rules.append(_holds("GreaterOrEqual", keys, _plus(places, -left)))
    if lengths is not None:
        rules.append(_holds("Less", keys, op.Unsqueeze(lengths, [1, 2, 3])))
    return reduce(_both, rules) if rules else None


def _places(node: Node, query: Value, key: Value) -> _Part:
    """At which keys the queries stand, as a column."""
    past, lengths, own = node.operand(4), node.operand(6), _range(query, 2, by=key)
    column = own[:, None] if isinstance(own, _Array) else op.Unsqueeze(own, [1])
    if past is not None:
        return _plus(column, _length(past, 2))
    if lengths is None:
        return column
    offset = op.Unsqueeze(op.Sub(lengths, _as_value(_length(query, 2))), [1, 2, 3])
    return op.Add(_as_value(column), offset)


def _range(value: Value, axis: int, by: Value) -> _Part:
    """0, 1, … along ``axis``; known, if a mask of it and of ``by`` is small."""
    size, other = value.shape[axis], by.shape[axis]  # type: ignore[index]
    if not isinstance(size, int):
        return op.Range(
            constant(0, DType.INT64), op.Squeeze(_as_value(_length(value, axis)), [0]), constant(1, DType.INT64)
        )
    numbers = np.arange(size)
    return numbers if isinstance(other, int) and size * other <= _LARGE else constant(numbers)


def _length(value: Value, axis: int) -> _Part:
    """The size of ``axis``, as a vector."""
    size = value.shape[axis]  # type: ignore[index]
    return np.array([size]) if isinstance(size, int) else op.Shape(value, start=axis, end=axis + 1)


def _as_value(part: _Part) -> Value:
    return constant(part) if isinstance(part, _Array) else part


def _plus(part: _Part, other: _Part | int) -> _Part:
    if isinstance(other, int):
        other = np.array([other])
    if isinstance(part, _Array) and isinstance(other, _Array):
        return part + other
    if isinstance(other, _Array) and not other.any():
        return part
    return op.Add(_as_value(part), _as_value(other))


def _holds(relation: str, a: _Part, b: _Part) -> _Part:
    if isinstance(a, _Array) and isinstance(b, _Array):
        return _RELATIONS[relation](a, b)
    return getattr(op, relation)(_as_value(a), _as_value(b))


_RELATIONS: dict[str, Callable[[_Array, _Array], _Array]] = {
    "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
}


def _both(a: _Part, b: _Part) -> _Part:
    return a & b if isinstance(a, _Array) and isinstance(b, _Array) else op.And(_as_value(a), _as_value(b))


def _mask(node: Node, key: Value, seen: _Part | None) -> Value | None:
    """The mask of ``node`` and what is ``seen``, in one."""
    mask, dtype = node.operand(3), node.given(0).dtype
    if mask is None:
        return None if seen is None else _as_value(seen)
    if mask.dtype not in (DType.BOOL, dtype):
        mask = op.Cast(mask, to=dtype)
    mask = _padded(mask, key, is_cache=node.operand(6) is not None)
    if seen is None:
        return mask
    if mask.dtype is DType.BOOL:
        return _as_value(_both(mask.const.numpy() if mask.const is not None else mask, seen))
    return op.Where(_as_value(seen), mask, constant(-np.inf, dtype))


def _padded(mask: Value, key: Value, is_cache: bool) -> Value:
    """``mask`` for all keys: where it is shorter, the last ones are hidden."""
    size, whole = (mask.shape or (1,))[-1], key.shape[2]  # type: ignore[index]
    if (
        not mask.shape
        or size == whole
        or not ((isinstance(size, int) and (size == 1 or isinstance(whole, int))) or is_cache)
    ):
        return mask
    hidden = constant(False, DType.BOOL) if mask.dtype is DType.BOOL else constant(-np.inf, mask.dtype)
    missing = op.Sub(_as_value(_length(key, 2)), _as_value(_length(mask, len(mask.shape) - 1)))
    if isinstance(size, int) and isinstance(whole, int):
        missing = constant([whole - size], DType.INT64)
    before = constant([0] * (2 * len(mask.shape) - 1), DType.INT64)
    return op.Pad(mask, op.Concat(before, missing, axis=0), hidden)


def _kinds(node: Node, mask: Value | None, seen: _Part | None) -> tuple[bool, bool]:
    """Whether ``mask`` may hide all keys from a query, and whether is_causal says all of it."""
    attrs = node.attrs
    plain = mask is not None and all(node.operand(i) is None for i in (3, 4, 6)) and bool(attrs.get("is_causal"))
    plain = plain and attrs.get("left_window_size", -1) < 0
    if mask is None or plain:
        return False, plain
    known = mask.const.numpy() if mask.const is not None else None
    if known is None or known.ndim == 0:
        behind = node.operand(3) is None and node.operand(6) is None and attrs.get("left_window_size", -1) < 0
        return not behind, False
    seen_by = known if known.dtype == bool else known > -np.inf
    return not seen_by.any(axis=-1).all(), False


# --- FlexAttention ----------------------------------------------------------------------------------------------------


def _flex_attention(node: Node, version: Version) -> list[Value] | None:
    """As an Attention; with graphs that change its scores, in primitives."""
    query, key, value = (node.given(i) for i in range(3))
    scale, modifiers = node.attrs.get("scale"), [node.attrs.get(name) for name in ("score_mod", "prob_mod")]
    precision = _precision(node, DType.FLOAT)
    if not any(modifiers):
        attrs = {"scale": scale, "softmax_precision": None if precision is query.dtype else precision}
        return [op.Attention(query, key, value, **attrs)]
    made = make_node("Attention", (query, key, value), {"scale": scale})
    task = _Attention.of(made)
    return None if task is None else [task.modified(precision, *modifiers)]


def _inlined(graph: Graph | None, value: Value) -> Value:
    """What ``graph`` makes of ``value``, in floating nodes."""
    if graph is None:
        return value
    mapping = dict(zip(graph.inputs, [value], strict=True))
    for node in graph.nodes:
        clone_node(node, mapping)
    return mapping.get(graph.outputs[0], graph.outputs[0])


# --- RotaryEmbedding --------------------------------------------------------------------------------------------------


def _rotary_refusal(node: Node, version: Version) -> str:
    x, cos, positions = node.given(0).shape, node.given(1).shape, node.operand(3)
    heads, rotated = node.attrs.get("num_heads", 0), node.attrs.get("rotary_embedding_dim", 0)
    placed = positions.shape if positions is not None else cos and cos[:2]
    if x is None or cos is None or placed is None:
        return f"{version} must know the shapes"
    if len(x) not in (3, 4) or len(cos) != (3 if positions is None else 2) or len(placed) != 2:
        return f"{version} takes 3 or 4 dimensions, 3 of the cosines (2 with positions) and 2 of the positions"
    head = x[-1] // heads if len(x) == 3 and heads and isinstance(x[-1], int) else x[-1]
    if not isinstance(head, int) or not isinstance(cos[-1], int) or (len(x) == 3 and not heads):
        return f"{version} must know the heads"
    if (rotated or head) != 2 * cos[-1] or rotated > head:
        return f"{cos[-1]} cosines for heads of {head}"
    if node.attrs.get("interleaved") and rotated:  # where the input comes from a Split, two of them break its compiler
        return f"{version} does not always build a part of each head, turned in pairs of neighbours"
    sizes = (x[0], x[-2 if len(x) == 4 else 1])
    if any(
        isinstance(a, int) is not isinstance(b, int) or (isinstance(a, int) and a != b)
        for a, b in zip(placed, sizes, strict=True)
    ):
        return f"{version} takes cosines for each of {sizes[0]}x{sizes[1]} positions"
    return ""


def _rotary(node: Node, version: Version) -> list[Value] | None:
    """In primitives."""
    x, cos, sin, positions = node.given(0), node.given(1), node.given(2), node.operand(3)
    heads, count = node.attrs.get("num_heads", 0), node.attrs.get("rotary_embedding_dim", 0)
    if x.rank not in (3, 4):
        return None
    on_rows = x.rank == 3
    heads_of = _reshaped(x, 0, 0, heads, -1) if on_rows else x  # the axis of the heads is 2 then, and 1 else
    if positions is not None:
        cos, sin = op.Gather(cos, positions, axis=0), op.Gather(sin, positions, axis=0)
    cos, sin = (op.Unsqueeze(c, [2 if on_rows else 1]) for c in (cos, sin))
    turned = op.Slice(heads_of, [0], [count], [3]) if count else heads_of
    if node.attrs.get("interleaved"):
        first, second = (op.Slice(turned, [i], [_END], [3], [2]) for i in (0, 1))
    else:
        half = cos.shape[-1] if cos.shape is not None else None
        if isinstance(half, int):
            first, second = op.Slice(turned, [0], [half], [3]), op.Slice(turned, [half], [_END], [3])
        else:
            first, second = op.Split(turned, axis=3, num_outputs=2)
    real = op.Sub(op.Mul(cos, first), op.Mul(sin, second))
    imaginary = op.Add(op.Mul(sin, first), op.Mul(cos, second))
    if node.attrs.get("interleaved"):
        pairs = op.Concat(op.Unsqueeze(real, [4]), op.Unsqueeze(imaginary, [4]), axis=4)
        parts = [op.Reshape(pairs, constant([0, 0, 0, -1], DType.INT64))]
    else:
        parts = [real, imaginary]
    if count:
        parts.append(op.Slice(heads_of, [count], [_END], [3]))
    result = op.Concat(*parts, axis=3) if len(parts) > 1 else parts[0]
    return [_reshaped(result, 0, 0, -1) if on_rows else result]


# --- TensorScatter ----------------------------------------------------------------------------------------------------


def _scatter_refusal(node: Node, version: Version) -> str:
    """TensorRT updates a cache in place: what comes in goes out."""
    cache, result = node.given(0), node.result
    rank, axis = cache.rank, node.attrs.get("axis", -2)
    if rank != 4 or axis not in (-2, 2) or not isinstance(cache.shape[2], int):  # type: ignore[index]
        return f"{version} takes 4 dimensions, the third of which is the sequence and of known size"
    graph = node.graph
    if graph is None or graph.parent is not None or cache.graph is not graph:
        return f"{version} updates inputs only"
    if len(cache.users) > 1 or graph.ret not in result.users:
        return f"{version} updates an input, used by nothing else, to an output"
    return ""


def _tensor_scatter(node: Node, version: Version) -> list[Value] | None:
    """As a ScatterElements."""
    cache, update, start = node.given(0), node.given(1), node.operand(2)
    if cache.rank is None or update.shape is None or cache.shape is None:
        return None
    axis = node.attrs.get("axis", -2) % cache.rank
    others = [i for i in range(cache.rank) if i != axis]
    places = op.Unsqueeze(_as_value(_range(update, axis, by=update)), others)
    if start is not None:
        places = op.Add(op.Unsqueeze(start, list(range(1, cache.rank))), places)
    if node.attrs.get("mode") == "circular":
        places = op.Mod(places, _as_value(_length(cache, axis)))
    shape = constant(update.shape, DType.INT64) if all(isinstance(d, int) for d in update.shape) else op.Shape(update)
    return [op.ScatterElements(cache, op.Expand(places, shape), update, axis=axis)]


def _cast(value: Value, to: DType) -> Value:
    return value if value.dtype is to else op.Cast(value, to=to)


_END = (1 << 63) - 1

ROWS: dict[str, Row] = {
    "Attention": Row(types={"T1": FLOATS, "T2": FLOATS}, check=_attention_refusal, since=(10, 14)),
    "RotaryEmbedding": Row(types={"T": FLOATS}, check=_rotary_refusal, since=(10, 15)),
    "TensorScatter": Row(types={"T": FLOATS}, attrs={"mode": ("linear",)}, check=_scatter_refusal, since=(10, 15)),
}
FORMS: dict[str, Form] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "TensorScatter": _tensor_scatter,
    "ai.onnx.preview.FlexAttention": _flex_attention,
}
