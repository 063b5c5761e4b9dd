"""Losses: of each label the logarithm of its probability, weighted and summed."""

from __future__ import annotations

from ....ir import DType, Node, Value, constant, op
from ..legality import Row
from ..versions import Version
from .elementwise import scalar

__all__ = ["FORMS", "ROWS"]


def _loss(log_prob: Value, labels: Value, weight: Value | None, node: Node) -> Value:
    """The loss of ``log_prob``, classes along axis 1."""
    channel, ignore = constant([1], DType.INT64), node.attrs.get("ignore_index")
    is_ignored = None
    if ignore is not None:
        is_ignored = op.Equal(labels, scalar(ignore, labels))
        labels = op.Where(is_ignored, scalar(0, labels), labels)
    picked = op.GatherElements(log_prob, op.Unsqueeze(labels, channel), axis=1)
    loss = op.Neg(op.Squeeze(picked, channel))
    share = op.Gather(weight, labels, axis=0) if weight is not None else None
    if is_ignored is not None:
        share = op.Where(is_ignored, scalar(0, loss), share if share is not None else scalar(1, loss))
        loss = op.Where(is_ignored, scalar(0, loss), loss)
    if share is not None:
        loss = op.Mul(loss, share)
    reduction = node.attrs.get("reduction", "mean")
    if reduction == "none":
        return loss
    if reduction == "mean" and share is None:
        return op.ReduceMean(loss, keepdims=0)
    total = op.ReduceSum(loss, keepdims=0)
    return total if reduction == "sum" else op.Div(total, op.ReduceSum(share, keepdims=0))


def _is_known(node: Node) -> bool:
    return bool(node.given(0).rank) and node.given(0).dtype.is_floating


def _negative_log_likelihood(node: Node, version: Version) -> list[Value] | None:
    if not _is_known(node):
        return None
    return [_loss(node.given(0), node.given(1), node.operand(2), node)]


def _cross_entropy(node: Node, version: Version) -> list[Value] | None:
    if not _is_known(node):
        return None
    log_prob = op.LogSoftmax(node.given(0), axis=1)
    return [_loss(log_prob, node.given(1), node.operand(2), node), log_prob][: len(node.results)]


ROWS: dict[str, Row] = {}

FORMS = {"NegativeLogLikelihoodLoss": _negative_log_likelihood, "SoftmaxCrossEntropyLoss": _cross_entropy}
