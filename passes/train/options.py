"""The options that all passes which train have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..base import Pass
from ..numerics import Lossy

__all__ = ["Training"]

_HELD_OUT = 0.1  # where a share is needed and none is given


@dataclass(frozen=True)
class Training(Pass):
    """Base class of passes that train.

    Attributes:
        steps: updates of the weights; the data are read again and again for as long.
        epochs: how often the data are gone through instead of ``steps``; 0: as ``steps`` says.
        batch: rows per step, where the model takes any number; else every sample is a batch.
        accumulate: batches whose gradients are averaged for one update.
        rate: the highest learning rate; 0: the one that does best in short trials, which take a fifth longer.
        schedule: how the rate falls after the warm-up: as a half ``cosine`` to 0, as a ``linear`` slope to 0, or not.
        warmup: the share of the steps in which the rate rises from 0.
        optimizer: ``sgd`` has a Nesterov momentum of 0.9; the others have optax's defaults.
        weight_decay: decoupled, for weights of two dimensions and more; with ``adamw``, ``lion`` and ``sgd``.
        clip: the largest norm that the gradient of all weights together may have; 0: any.
        precision: what products are computed in; the weights themselves, and the loss, are float32 in any case.
        holdout: the share of the rows that are kept from training to judge by (512 rows at most). The weights that do
            best on them are the result. None: a tenth, if that is 32 rows or more (fewer tell little, and are missed).
        patience: stop after so many evaluations on the held-out rows without a better one (there are 20 in all);
            0: never.
        only: patterns of the weights to train: names of weights, and names, operators and modules of the nodes that
            read them.
        skip: patterns of weights to leave alone.
        keep_zeros: whether elements that are exactly 0 stay so, in weights of two dimensions and more.
        seed: decides everything that is random.
        checkpoint: a file to go on from after an interruption: written every minute and when training ends in
            whatever way, read if it is there.

    Raises:
        ValueError: an option is out of range.
    """

    numerics = Lossy()

    steps: int = 1000
    epochs: int = 0
    batch: int = 32
    accumulate: int = 1
    rate: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    optimizer: Literal["adamw", "adam", "sgd", "lion"] = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    holdout: float | None = None
    patience: int = 0
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    keep_zeros: bool = True
    seed: int = 0
    checkpoint: str = ""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it takes at least 1")
        for name in ("epochs", "patience", "seed", "weight_decay", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it cannot be negative")
        if not 0 <= self.rate < float("inf"):
            raise ValueError(f"rate is {self.rate:g}: a learning rate is above 0, or 0 to have it found")
        for name in ("holdout", "warmup"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} is {getattr(self, name):g}: a share from 0 to below 1")
        if self.patience and self.holdout == 0:
            raise ValueError("patience needs held-out rows to judge by: set holdout")
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError("adam has no weight decay: take adamw")

    @property
    def holdout_share(self) -> float | None:
        """The share of the rows to hold out; None if that is to follow from their number."""
        return _HELD_OUT if self.holdout is None and self.patience else self.holdout

    @property
    def identity(self) -> str:
        """The pass as text but for the checkpoint: what its result depends on."""
        return str(replace(self, checkpoint=""))
