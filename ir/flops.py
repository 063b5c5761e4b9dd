"""The size of a model: nodes, parameters, bytes, and floating-point operations counted from shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from .dims import Dim, substitute
from .graph import Graph, Node, Value
from .quantization import FAKE_QUANTIZE, format_of
from .types import TensorType

__all__ = ["Size", "bind_dim", "flops_of", "size_of"]

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        nodes: operations, nested ones included.
        parameters: elements of all constants, shared ones once.
        bytes: of these, as they are stored.
        flops: floating-point operations of one run (a multiply-add is two); unnamed sizes count as 1.
    """

    nodes: int
    parameters: int
    bytes: int
    flops: int


def with_sizes(graph: Graph, sizes: Sizes) -> Graph:
    """A copy of ``graph`` for inputs of given sizes (1 where missing), typed anew: it knows more shapes."""
    from .clone import clone_graph
    from .infer import infer_graph

    copy = clone_graph(graph)
    for value in copy.inputs:
        if isinstance(value.type, TensorType) and value.type.shape is not None:
            value.type = TensorType(value.type.dtype, tuple(bind_dim(d, sizes) for d in value.type.shape))
    for node in copy.nodes:
        for value in node.results:
            if isinstance(value.type, TensorType):
                value.type, value.content = TensorType(value.type.dtype, None), None
    infer_graph(copy)
    return copy


def size_of(graph: Graph, sizes: Sizes | None = None) -> Size:
    """Measure ``graph``.

    Args:
        graph: the graph.
        sizes: what symbolic dimensions stand for; 1 where missing. With None, shapes that the graph does not know count
            as 1, too, which is quick and inexact.
    """
    if sizes is not None:
        graph = with_sizes(graph, sizes)
    nodes = parameters = nbytes = flops = 0
    seen: set[int] = set()
    for node in graph.walk():
        nodes += node.op != FAKE_QUANTIZE  # which says how precise a value is
        flops += flops_of(node, sizes or {})
    for value in graph.constants():
        assert value.const is not None
        if id(value.const) not in seen:
            seen.add(id(value.const))
            parameters += value.const.size
            nbytes += _stored(value)
    return Size(nodes, parameters, nbytes, flops)


def _stored(value: Value) -> int:
    """The bytes that a constant takes in a file: one that is only ever read quantized is stored so."""
    assert value.const is not None
    users = value.users
    if all(user.op == FAKE_QUANTIZE and user.operand(0) is value and user.operand(1) for user in users):
        bits = max((format_of(user).storage.bits for user in users), default=value.dtype.bits)
        return (value.const.size * bits + 7) // 8
    return value.const.nbytes


def bind_dim(dim: Dim, sizes: Sizes) -> int:
    """``dim`` as a number: its symbols are looked up in ``sizes``; 1 where missing."""
    try:
        return int(substitute(dim, lambda name: sizes.get(name, 1), sizes))
    except ZeroDivisionError:
        return 1


def _shape(value: Value | None, sizes: Sizes) -> list[int]:
    return [] if value is None else [bind_dim(d, sizes) for d in value.shape or ()]


def _elements(value: Value | None, sizes: Sizes) -> int:
    return max(prod(_shape(value, sizes)), 0)


def _matmul(node: Node, sizes: Sizes) -> int:
    inner = _shape(node.operand(0), sizes)[-1:]
    return 2 * _elements(node.result, sizes) * (inner[0] if inner else 1)


def _gemm(node: Node, sizes: Sizes) -> int:
    a = _shape(node.operand(0), sizes)
    inner = a[0 if node.attrs.get("transA", 0) else -1] if len(a) == 2 else 1
    return _elements(node.result, sizes) * (2 * inner + (1 if node.operand(2) is not None else 0))


def _conv(node: Node, sizes: Sizes) -> int:
    weight = _shape(node.operand(1), sizes)
    bias = 1 if node.operand(2) is not None else 0
    return _elements(node.result, sizes) * (2 * prod(weight[1:]) + bias)


def _conv_transpose(node: Node, sizes: Sizes) -> int:
    return 2 * _elements(node.operand(0), sizes) * prod(_shape(node.operand(1), sizes)[1:])


def _attention(node: Node, sizes: Sizes) -> int:
    """Scores and their weighted sum; the projections are other nodes."""
    q, k, v = (_shape(node.operand(i), sizes) for i in range(3))
    if len(q) == 4 and len(k) == 4 and len(v) == 4:
        return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
    if len(q) == 3 and len(k) == 3 and len(v) == 3:  # heads are packed in the last dimension
        groups: int = node.attrs.get("q_num_heads", 1) // max(node.attrs.get("kv_num_heads", 1), 1)
        return 2 * q[0] * q[1] * k[1] * (q[2] + v[2] * groups)
    return 0


def _recurrent(node: Node, sizes: Sizes) -> int:
    x, w, r = (_shape(node.operand(i), sizes) for i in range(3))
    return 2 * prod(x[:2]) * (prod(w) + prod(r))


def _einsum(node: Node, sizes: Sizes) -> int:
    letters: dict[str, int] = {}
    terms = str(node.attrs.get("equation", "")).replace(" ", "").split("->")[0].split(",")
    for term, operand in zip(terms, node.operands, strict=False):
        letters.update(zip(term, _shape(operand, sizes), strict=False))
    return 2 * prod(letters.values())


_FREE = frozenset(
    [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Cast",
        "CastLike",
        "Concat",
        "Split",
        "Slice",
        "Gather",
        "GatherND",
        "GatherElements",
        "Expand",
        "Tile",
        "Shape",
        "Size",
        "Constant",
        "ConstantOfShape",
        "Pad",
        "DepthToSpace",
        "SpaceToDepth",
        "ScatterND",
        "ScatterElements",
        "If",
        "Loop",
        "Scan",
    ]
)
_REDUCING = frozenset(
    [
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "AveragePool",
        "MaxPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL2",
        "ReduceSumSquare",
    ]
)
_COUNTERS: dict[str, Callable[[Node, Sizes], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Attention": _attention,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Einsum": _einsum,
}


def flops_of(node: Node, sizes: Sizes) -> int:
    """The operations of one node: exact for contractions, one per element for everything else that computes."""
    counter = _COUNTERS.get(node.op)
    if counter is not None:
        return counter(node, sizes)
    if node.op in _FREE or not node.results or not node.result.dtype.is_floating:
        return 0
    return _elements(node.operand(0) if node.op in _REDUCING else node.result, sizes)
