"""Optimizers from optax, and learning rates by step."""

from __future__ import annotations

import math
from typing import Any

from ..base import RequestError
from .options import Training

__all__ = ["make_optimizer", "rate_at"]


def make_optimizer(training: Training) -> Any:
    """An ``optax.GradientTransformation`` of rate 1: whoever applies its updates multiplies them by the rate.

    Raises:
        RequestError: jax or optax is not installed.
    """
    try:
        import optax
    except ImportError as error:
        raise RequestError("training needs jax and optax: pip install 'planish[train]'") from error
    decay = {"weight_decay": training.weight_decay, "mask": _is_decayed}
    match training.optimizer:
        case "adamw":
            chain = [optax.adamw(1.0, **decay)]
        case "lion":
            chain = [optax.lion(1.0, **decay)]
        case "adam":
            chain = [optax.adam(1.0)]
        case "sgd":
            decayed = optax.add_decayed_weights(training.weight_decay, _is_decayed)
            chain = [optax.trace(0.9, nesterov=True), decayed, optax.scale(-1.0)]
    return optax.chain(optax.clip_by_global_norm(training.clip), *chain) if training.clip else optax.chain(*chain)


def _is_decayed(params: Any) -> Any:
    import jax

    return jax.tree.map(lambda p: p.ndim >= 2, params)


def rate_at(step: int, steps: int, training: Training, highest: float) -> float:
    """The learning rate of update ``step``, from 0, of ``steps``: it rises, reaches ``highest``, and falls."""
    rising = round(training.warmup * steps)
    if step < rising:
        return highest * (step + 1) / rising
    done = (step - rising) / max(steps - rising, 1)
    match training.schedule:
        case "cosine":
            return highest * (1 + math.cos(math.pi * done)) / 2
        case "linear":
            return highest * (1 - done)
    return highest
