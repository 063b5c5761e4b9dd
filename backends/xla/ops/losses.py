"""Losses of classification.

Definitions: the ONNX operator specification, NegativeLogLikelihoodLoss-22 and SoftmaxCrossEntropyLoss-13.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ....ir.graph import Node
from ..lowering import Call, lowers
from ..precision import widened

Array = Any


def _unknown_reduction(node: Node) -> str | None:
    reduction = node.attrs.get("reduction", "mean")
    return None if reduction in ("none", "sum", "mean") else f"reduction {reduction!r}: it can be none, sum or mean"


@lowers("NegativeLogLikelihoodLoss", refuses=_unknown_reduction)
def _negative_log_likelihood(call: Call, scores: Array, target: Array, weight: Array = None) -> Array:
    return _loss(call, widened(scores), target, weight).astype(scores.dtype)


@lowers("SoftmaxCrossEntropyLoss", refuses=_unknown_reduction)
def _cross_entropy(call: Call, scores: Array, target: Array, weight: Array = None) -> tuple[Array, Array]:
    log_prob = jax.nn.log_softmax(widened(scores), axis=1)
    return _loss(call, log_prob, target, weight).astype(scores.dtype), log_prob.astype(scores.dtype)


def _loss(call: Call, log_prob: Array, target: Array, weight: Array | None) -> Array:
    """The loss for ``log_prob`` of shape (N, C, …) and ``target`` of shape (N, …), reduced as the node says.

    A target that is neither a class nor ignored gives NaN.
    """
    ignored = None if call["ignore_index"] is None else target == call["ignore_index"]
    classes = target if ignored is None else jnp.where(ignored, 0, target)
    classes = jnp.where(classes < 0, log_prob.shape[1], classes)  # -1 is not the last class
    loss = -jnp.take_along_axis(log_prob, classes[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]
    share = jnp.ones((), loss.dtype) if weight is None else widened(weight).at[classes].get(mode="fill", fill_value=0)
    share = share if ignored is None else jnp.where(ignored, 0, share)
    loss = loss * share if ignored is None else jnp.where(ignored, 0, loss * share)
    if call["reduction"] == "none":
        return loss
    if call["reduction"] == "sum":
        return jnp.sum(loss)
    return jnp.sum(loss) / jnp.sum(jnp.broadcast_to(share, loss.shape))
