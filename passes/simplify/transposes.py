"""Transposes: composing and cancelling them, moving them through elementwise operators, seeing through reshapes."""

from __future__ import annotations

from ...ir import Node, Value, constant, op
from ...ir.dims import Dim, product
from ...ir.types import Shape, TensorType
from ..numerics import within
from ..rules import require, rule
from .reshapes import known_shape, reshape_to

# elementwise operators: every result element depends on the operand elements at its own place
UNARY = frozenset(
    [
        "Abs",
        "Cast",
        "Ceil",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
        "IsNaN",
    ]
)
BINARY = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Min",
        "Max",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "And",
        "Or",
        "Xor",
        "Where",
        "Clip",
    ]
)
_MAX_TREE = 16  # operators between two transposes that are looked through


def perm_of(node: Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose (reversal if it states none); None where the rank is unknown."""
    perm = node.attrs.get("perm")
    if perm is not None:
        return tuple(perm)
    rank = node.operands[0].rank if node.operands[0] is not None else None
    return None if rank is None else tuple(reversed(range(rank)))


def compose(inner: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation of ``Transpose(Transpose(x, inner), outer)``."""
    return tuple(inner[i] for i in outer)


def invert(perm: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse permutation."""
    result = [0] * len(perm)
    for i, p in enumerate(perm):
        result[p] = i
    return tuple(result)


def transpose(x: Value, perm: tuple[int, ...]) -> Value:
    """``Transpose(x, perm)``, or ``x`` for the identity."""
    return x if perm == tuple(range(len(perm))) else op.Transpose(x, perm=perm)


@rule("Transpose")
def transpose_identity(node: Node) -> Value | None:
    """A permutation that moves nothing."""
    perm = perm_of(node)
    return node.operand(0) if perm is not None and perm == tuple(range(len(perm))) else None


@rule("Transpose")
def transpose_of_transpose(node: Node) -> Value | None:
    """Two transposes in a row are one."""
    x = node.operands[0]
    assert x is not None
    if x.producer is None or x.producer.op != "Transpose":
        return None
    inner, outer = perm_of(x.producer), perm_of(node)
    require(inner is not None and outer is not None, "the rank is unknown")
    assert inner is not None and outer is not None and x.producer.operands[0] is not None
    return transpose(x.producer.operands[0], compose(inner, outer))


@rule("Transpose")
def transpose_is_reshape(node: Node) -> Value | None:
    """A transpose that moves only dimensions of size 1 leaves the elements where they are: it is a reshape."""
    x, perm = node.operands[0], perm_of(node)
    assert x is not None
    if perm is None or x.shape is None:
        return None
    moved = [p for p in perm if x.shape[p] != 1]
    if moved != sorted(moved):
        return None
    return reshape_to(x, known_shape(node.results[0]))


@rule("Reshape")
def transpose_between_reshapes(node: Node) -> Value | None:
    """Merging dimensions, permuting the merged ones and splitting them again is one permutation."""
    y = node.operands[0]
    if y is None or y.producer is None or y.producer.op != "Transpose":
        return None
    middle = y.producer.operands[0]
    assert middle is not None
    if middle.producer is None or middle.producer.op not in ("Reshape", "Unsqueeze", "Squeeze", "Flatten"):
        return None
    x = middle.producer.operands[0]
    perm = perm_of(y.producer)
    assert x is not None
    if perm is None or x.shape is None or middle.shape is None or node.results[0].shape is None:
        return None
    groups = _groups(x.shape, middle.shape)
    require(groups is not None, "the first reshape does more than merging dimensions")
    assert groups is not None
    order = [d for p in perm for d in groups[p]]
    require(
        tuple(x.shape[d] for d in order) == node.results[0].shape,
        "the last reshape does more than splitting what was merged",
    )
    return transpose(x, tuple(order))


def _groups(source: Shape, target: Shape) -> list[list[int]] | None:
    """For each dimension of ``target``, the adjacent ones of ``source`` that it merges; None if it is no merge."""
    groups: list[list[int]] = []
    at = 0
    for i, dim in enumerate(target):
        group: list[int] = []
        size: Dim = 1
        while at < len(source) and (size != dim or not group):
            if group == [] and dim == 1 and source[at] != 1:
                break
            group.append(at)
            size = size * source[at]
            at += 1
        if size != dim:
            return None
        if i == len(target) - 1:
            while at < len(source) and source[at] == 1:
                group.append(at)
                at += 1
        groups.append(group)
    return groups if at == len(source) and product(source) == product(target) else None


_TURNED = """
agraph (float[B,S,2,4] q, float[B,T,2,4] k) => (float[B,2,S,T] y) {
  a = Transpose <perm = [0, 2, 1, 3]> (k)
  b = Transpose <perm = [0, 2, 3, 1]> (q)
  c = MatMul (a, b)
  y = Transpose <perm = [0, 1, 3, 2]> (c)
}
"""
_MOVED = """
agraph (float[3,S,2,4] q, float[4,2,T,3] k) => (float[2,3,S,T] y) {
  a = Transpose <perm = [0, 2, 1, 3]> (q)
  b = Transpose <perm = [3, 1, 0, 2]> (k)
  c = MatMul (a, b)
  y = Transpose <perm = [1, 0, 2, 3]> (c)
}
"""


@rule("Transpose", numerics=within(rtol=1e-5), examples=[_TURNED, _MOVED])
def transpose_of_product(node: Node) -> Value | None:
    """A product of transposed operands is transposed by way of these, at no cost; in reverse if it is turned."""
    product, perm = node.given(0).producer, perm_of(node)
    if product is None or product.op != "MatMul" or perm is None or len(node.given(0).users) > 1:
        return None
    rank = len(perm)
    operands = [product.given(0), product.given(1)]
    if rank < 2 or sorted(perm[-2:]) != [rank - 2, rank - 1]:
        return None
    for operand in operands:
        made = operand.producer
        if made is None or made.op != "Transpose" or operand.rank != rank or len(operand.users) > 1:
            return None
    moved = [op.Transpose(x, perm=perm) for x in operands]
    return op.MatMul(*moved) if perm[-1] == rank - 1 else op.MatMul(*reversed(moved))


@rule("Transpose")
def transpose_through_elementwise(node: Node) -> Value | None:
    """A transpose that undoes others across elementwise operators: the whole tree is computed in the other layout."""
    root, perm = node.operands[0], perm_of(node)
    assert root is not None
    if perm is None or root.producer is None or root.producer.op not in UNARY | BINARY:
        return None
    absorbed: list[Node] = []
    require(_absorbs(root, node, perm, absorbed, []), "an operand of the elementwise operators is not transposed")
    require(absorbed, "nothing cancels")
    return _rebuild(root, perm)


def _absorbs(value: Value, user: Node, perm: tuple[int, ...], absorbed: list[Node], seen: list[Node]) -> bool:
    """Whether ``Transpose(value, perm)`` costs nothing: it cancels transposes, or permutes small constants."""
    rank = value.rank
    if value.const is not None:
        return rank is not None and rank <= len(perm) and value.const.nbytes <= 1 << 16
    if rank == 0:
        return True
    if rank != len(perm):
        return False
    node = value.producer
    if node is None or node.graph is not user.graph:
        return False
    if node.op == "Transpose":
        absorbed.append(node)
        return perm_of(node) == invert(perm)
    if node.op not in UNARY | BINARY or len(seen) >= _MAX_TREE or any(u is not user for u in value.users):
        return False
    seen.append(node)
    return all(o is None or _absorbs(o, node, perm, absorbed, seen) for o in node.operands)


def _rebuild(value: Value, perm: tuple[int, ...]) -> Value:
    if value.rank == 0:
        return value
    if value.const is not None:
        array = value.const.numpy()
        return constant(array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm), value.dtype)
    node = value.producer
    assert node is not None
    if node.op == "Transpose":
        assert node.operands[0] is not None
        return node.operands[0]
    operands = [None if o is None else _rebuild(o, perm) for o in node.operands]
    shape = known_shape(value)
    permuted = TensorType(value.dtype, tuple(shape[p] for p in perm))
    return Node(node.op, operands, dict(node.attrs), [permuted], name=node.name, metadata=node.metadata).result
