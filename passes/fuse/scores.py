"""The way from the product of queries and keys to the softmax: scales, biases, masks, casts, a soft cap, in any order.

`trace` walks from the softmax up to the matrix product and lists the steps; `replay` goes down again and keeps the
account in the form ``softcap(scale * q @ k.T) + bias``, in which every such chain can be written. The bias is what the
chain itself computes from a product of zeros, so that rows in which everything is masked come out as they did. A column
that is joined to the scores is a sink: a key that no query looks for, and whose value is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir import Node, Value, constant, op
from ...ir.types import DType, Shape
from ..rules import NoMatch, require
from ..simplify.fold_constants import integers
from ..simplify.reshapes import RESHAPING, known_shape
from .views import lead_of, mask_in_view

__all__ = ["Logits", "Step", "replay", "scalar_of", "trace"]

_DEPTH = 24  # operators between product and softmax
_MASKING = -1000.0  # a number that softmax turns into 0 beside any score that is not masked
_SATURATING = -1e30  # a number beside which scores vanish in float32


@dataclass(frozen=True)
class Step:
    """One operator on the way: the node, and which of its operands carries the scores."""

    node: Node
    operand: int

    @property
    def scores(self) -> Value:
        """The operand that carries the scores."""
        value = self.node.operands[self.operand]
        assert value is not None
        return value

    def other(self) -> Value:
        """The other operand of a binary operator."""
        value = self.node.operands[1 - self.operand]
        assert value is not None
        return value

    def shift(self) -> list[Node]:
        """The nodes that find the largest score of each row, where it is subtracted: softmax does not see that."""
        nodes: list[Node] = []
        value: Value | None = self.node.operands[1] if self.node.op == "Sub" else None
        while value is not None and (node := value.producer) is not None and node.op in (*RESHAPING, "ReduceMax"):
            nodes.append(node)
            value = node.operands[0]
            if node.op == "ReduceMax":
                rank = len(known_shape(self.scores))
                along_keys = integers(node.operand(1)) in ((-1,), (rank - 1,))
                one_per_row = known_shape(self.other()) == (*known_shape(self.scores)[:-1], 1)
                return nodes if value is self.scores and along_keys and one_per_row else []
        return []

    def masked(self) -> list[Node]:
        """The node that adds a masking number to the scores, where a condition chooses between them and its result."""
        if self.node.op != "Where":
            return []
        branch = self.node.given(3 - self.operand).producer
        return [branch] if branch is not None and _penalty(self.node, self.operand) is not None else []


def _penalty(node: Node, kept: int) -> float | None:
    """What a choice between scores and scores adds to those that are not ``kept``: a masking number, or None."""
    scores, other = node.given(kept), node.given(3 - kept).producer
    if other is None or other.op not in ("Add", "Sub") or scores not in other.operands:
        return None
    if other.op == "Sub" and other.given(0) is not scores:
        return None
    number = scalar_of(other.given(1) if other.given(0) is scores else other.given(0))
    number = -number if number is not None and other.op == "Sub" else number
    return number if number is not None and number <= _MASKING else None


@dataclass
class Logits:
    """What the softmax is taken of: ``softcap(scale * q @ k.T) + bias``.

    Attributes:
        scale: the product of the constant factors.
        factors: further factors, which broadcast along the keys.
        softcap: the cap, or 0.
        bias: broadcasts to the scores in the current view, or None.
        lead: the leading dimensions of the current view.
        leads: those of all views, first that of the product.
        zeroed: the matrix of zeros and ones by which the scores were multiplied, until what masks the zeros is added.
        cleared: conditions under which weights are set to 0, and the operand that is kept.
        shifted: whether something was subtracted from whole rows.
        sink: the score of a key more, which is no key; one per row, or None.
    """

    lead: Shape
    scale: float = 1.0
    factors: list[tuple[Value, Shape]] = field(default_factory=list)
    softcap: float = 0.0
    bias: Value | None = None
    leads: list[Shape] = field(default_factory=list)
    zeroed: Value | None = None
    cleared: Sequence[tuple[Value | None, int]] = ()
    shifted: bool = False
    sink: Value | None = None


def scalar_of(value: Value | None) -> float | None:
    """The number that all elements of a constant are, or None."""
    if value is None or value.const is None or not value.const.is_cheap or not value.const.size:
        return None
    if not (value.dtype.is_floating or value.dtype.is_integer):
        return None
    array = value.const.numpy()
    first = array.flat[0]
    return float(first) if value.const.size == 1 or bool((array == first).all()) else None


# up: finding the product


def trace(value: Value, inside: Node) -> tuple[list[Step], Node]:
    """The steps from a matrix product to ``value``, first step first, and the product.

    Args:
        value: the operand of the softmax.
        inside: a node of the graph in which all of them must be.

    Raises:
        NoMatch: with the furthest node that was reached.
    """
    steps, node = _trace(value, inside, 1)
    return steps[::-1], node


def _trace(value: Value, inside: Node, depth: int) -> tuple[list[Step], Node]:
    node = value.producer
    require(depth < _DEPTH, "no product of queries and keys within reach", node, depth)
    if node is None or node.graph is not inside.graph:
        raise NoMatch("the scores are no product of queries and keys", inside, depth)
    if node.op == "MatMul":
        return [], node
    carriers = _carriers(node)
    require(carriers, f"the scores pass through {node.op}, which attention does not have", node, depth)
    whole = node.op != "Concat" or _same_matrix(node.given(0), value, node)
    require(whole, "the scores are joined of several parts", node, depth)
    furthest: NoMatch | None = None
    for i in carriers:
        operand = node.operands[i]
        if operand is None or operand.producer is None or not _same_matrix(operand, value, node):
            continue
        try:
            steps, product = _trace(operand, inside, depth + 1)
        except NoMatch as miss:
            if furthest is None or miss.matched > furthest.matched:
                furthest = miss
        else:
            return [Step(node, i), *steps], product
    raise furthest or NoMatch("the scores are no product of queries and keys", node, depth)


def _carriers(node: Node) -> tuple[int, ...]:
    """The operands of ``node`` that may carry the scores."""
    match node.op:
        case "Cast" | "Tanh" | "Identity" | "Max" | "Clip" | "Reshape" | "Squeeze" | "Unsqueeze" | "Div" | "Sub":
            return (0,)
        case "Add" | "Mul":
            return (0, 1)
        case "Concat":
            return (0,)
        case "Where":
            fills = {i: scalar_of(node.operands[3 - i]) for i in (1, 2)}
            kept = (i for i, fill in fills.items() if fill is not None and fill <= _MASKING)
            return (*kept, *(i for i in (1, 2) if _penalty(node, i) is not None))
    return ()


def _same_matrix(before: Value, after: Value, node: Node) -> bool:
    """Whether the scores keep their shape on the way through ``node``; a view may regroup the leading dimensions."""
    old, new = before.shape, after.shape
    if old is None or new is None:
        return False
    if node.op in RESHAPING:
        return len(old) >= 2 and len(new) >= 2 and old[-2:] == new[-2:]
    if node.op == "Concat":
        return len(node.operands) == 2 and old[:-1] == new[:-1] and old[-1] + 1 == new[-1]
    if len(old) != len(new):
        return False
    # of two symbols either may be 1, as far as shapes tell; masks are not at times larger than scores, at times not
    return all(a == b or not isinstance(a, int) for a, b in zip(old, new, strict=True))


# down: keeping the account


def replay(steps: list[Step], product: Node, dtype: DType, cleared: Sequence[tuple[Value | None, int]] = ()) -> Logits:
    """What the steps make of the product, whose operands are of type ``dtype``.

    Args:
        steps: from `trace`.
        product: the product.
        dtype: the type of its operands.
        cleared: conditions under which the weights are set to 0 after the softmax, and the operand that is kept.
    """
    lead = lead_of(product.result)
    logits = Logits(lead, leads=[lead], cleared=cleared)
    for count, step in enumerate(steps, 1):
        try:
            behind = step.node.op in ("Cast", "Identity") or step.shift()
            require(logits.sink is None or behind, "the scores are changed behind their sink")
            _STEPS[step.node.op](logits, step)
        except NoMatch as miss:
            raise NoMatch(str(miss), miss.at or step.node, count + 1) from None
    require(logits.zeroed is None, "the scores are multiplied by another matrix", product, len(steps) + 1)
    if logits.bias is not None and logits.bias.dtype is not dtype:
        logits.bias = _narrowed(logits.bias, dtype)
    if logits.sink is not None and logits.sink.dtype is not dtype:
        logits.sink = _narrowed(logits.sink, dtype)
    return logits


def _narrowed(bias: Value, dtype: DType) -> Value:
    """``bias`` in another type; large numbers must not become infinite, which would mask a row as a whole."""
    if bias.dtype.is_floating and bias.dtype.lowest < dtype.lowest:
        limit = constant(0.9 * dtype.lowest, bias.dtype)
        bias = op.Where(op.IsInf(bias), bias, op.Max(bias, limit))
    return op.Cast(bias, to=dtype)


def _pass(logits: Logits, step: Step) -> None:
    """Nothing changes."""


def _cast(logits: Logits, step: Step) -> None:
    dtype = step.node.results[0].dtype
    require(dtype.is_floating, "the scores are cast to integers")
    if logits.bias is not None:
        logits.bias = op.Cast(logits.bias, to=dtype)


def _multiply(logits: Logits, step: Step) -> None:
    factor = step.other()
    number = scalar_of(factor)
    if step.node.op == "Div":
        require(number != 0, "the scores are divided by 0")
        if number is None:
            factor = op.Reciprocal(factor)
        else:
            number = 1.0 / number
    if number is not None and np.isfinite(number):
        _scale(logits, number)
    elif step.node.op == "Mul" and logits.bias is None and logits.zeroed is None and _is_zero_or_one(factor):
        logits.zeroed = factor
    else:
        require(not logits.softcap, "the capped scores are scaled by a tensor")
        require(not factor.rank or known_shape(factor)[-1] == 1, "the scores are multiplied by another matrix")
        logits.factors.append((factor, logits.lead))
    if logits.bias is not None:
        logits.bias = getattr(op, step.node.op)(logits.bias, step.other())


def _is_zero_or_one(value: Value, depth: int = 0) -> bool:
    """Whether all elements are 0 or 1."""
    if value.const is not None:
        return value.const.is_cheap and bool(np.isin(value.const.numpy(), (0, 1)).all())
    node = value.producer
    if node is None or node.operands[0] is None or depth > _DEPTH:
        return False
    if node.op == "Cast" and node.operands[0].dtype is DType.BOOL:
        return True
    moves = ("Cast", "Expand", "Gather", "Slice", "Transpose", *RESHAPING)
    return node.op in moves and _is_zero_or_one(node.operands[0], depth + 1)


def _masks_zeros(term: Value, mask: Value) -> bool:
    """Whether ``term`` is a masking number where ``mask`` is 0, and 0 where it is 1."""
    if term.const is not None and mask.const is not None:
        bias, keep = np.broadcast_arrays(term.const.numpy(), mask.const.numpy())
        return bool((bias[keep == 0] <= _MASKING).all() and (bias[keep == 1] == 0).all())
    node = term.producer
    if node is None or node.op != "Mul":
        return False
    for i in (0, 1):
        number, rest = scalar_of(node.operands[i]), node.operands[1 - i]
        inner = rest.producer if rest is not None else None
        if number is not None and number <= _MASKING and inner is not None and inner.op == "Sub":
            return scalar_of(inner.operands[0]) == 1.0 and inner.operands[1] is mask
    return False


def _scale(logits: Logits, number: float) -> None:
    require(number > 0 or not logits.softcap, "the capped scores change their sign")
    if logits.softcap:
        logits.softcap *= number
    logits.scale *= number


def _tanh(logits: Logits, step: Step) -> None:
    require(logits.bias is None and not logits.shifted, "a bias is added before the scores are capped")
    require(not logits.softcap and logits.scale > 0, "the scores are capped twice")
    logits.softcap = 1.0


def _add(logits: Logits, step: Step) -> None:
    if step.shift():
        logits.shifted = True
        return
    term = step.other()
    if step.node.op == "Sub":
        term = op.Neg(term)
    if logits.zeroed is not None:
        require(_masks_zeros(term, logits.zeroed), "the scores are multiplied by another matrix")
        logits.zeroed = None
    logits.bias = term if logits.bias is None else op.Add(logits.bias, term)


def _where(logits: Logits, step: Step) -> None:
    condition, keep, fill = step.node.operands[0], step.operand, scalar_of(step.node.operands[3 - step.operand])
    dtype = step.node.results[0].dtype
    assert condition is not None
    open_ = logits.bias if logits.bias is not None else constant(0.0, dtype)
    penalty = _penalty(step.node, keep) if fill is None else None
    if penalty is not None:
        masked = op.Add(open_, constant(penalty, dtype))
        logits.bias = op.Where(condition, *((open_, masked) if keep == 1 else (masked, open_)))
        return
    assert fill is not None
    if logits.cleared:  # rows that are masked as a whole are 0, and not the mean
        require((condition, keep) in logits.cleared, "weights are set to 0 under some masks, and not under others")
        fill = -np.inf
    elif fill > _SATURATING:  # in rows that are masked as a whole, all weigh the same: so they do at the limit
        fill = dtype.lowest
    masked = constant(fill, dtype)
    logits.bias = op.Where(condition, open_, masked) if keep == 1 else op.Where(condition, masked, open_)


def _clamp(logits: Logits, step: Step) -> None:
    """A lower limit that only masked scores reach."""
    operands = step.node.operands
    limit = scalar_of(operands[1]) if len(operands) > 1 else None
    require(limit is not None and limit <= _SATURATING, "the scores are clamped")
    require(not logits.cleared, "the scores are clamped, and their weights set to 0")
    require(step.node.op == "Max" or len(operands) < 3 or operands[2] is None, "the scores are clamped from above")
    if logits.bias is not None:
        logits.bias = op.Max(logits.bias, operands[1])


def _join(logits: Logits, step: Step) -> None:
    sink = step.other()
    node = sink.producer
    if node is not None and node.op == "Expand" and node.operands[0] is not None and node.operands[0].rank == sink.rank:
        sink = node.operands[0]
    logits.sink = sink


def _view(logits: Logits, step: Step) -> None:
    lead = lead_of(step.node.results[0])
    if logits.bias is not None:
        logits.bias = mask_in_view(logits.bias, logits.lead, lead, [step.scores, step.node.results[0]])
    logits.lead = lead
    logits.leads.append(lead)


_STEPS = {
    "Add": _add,
    "Cast": _cast,
    "Clip": _clamp,
    "Concat": _join,
    "Div": _multiply,
    "Identity": _pass,
    "Max": _clamp,
    "Mul": _multiply,
    "Reshape": _view,
    "Squeeze": _view,
    "Sub": _add,
    "Tanh": _tanh,
    "Unsqueeze": _view,
    "Where": _where,
}
