"""What a student learns from a teacher: the values that are compared, and the loss between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ...ir import Graph, Value
from ..base import RequestError
from . import losses
from .matching import Heads, Kind, Pair, attention_pair, hidden_pairs, kind_of_output, named_pairs, output_pairs
from .mixing import UNCHANGED

__all__ = ["Lesson", "OutputLoss"]

OutputLoss = Literal["auto", "kl", "mse", "cosine"]
AUTO = "auto"
Array = np.ndarray[Any, Any]


@dataclass
class Lesson:
    """The values that are compared, and how.

    Attributes:
        teacher: the teacher's graph.
        student: the student's graph.
        loss_of_outputs: for all outputs; ``auto`` as fits each.
        temperature: of divergences between classes.
        hidden: names of pairs, or ``auto`` among them.
        with_attention: whether attention is compared.
        labels: the name of the labels in batches, or "".
        alpha: the weight of the labels.
        wanted: what is needed of the teacher: values by the names that they have in batches.
        taps: what is needed of the student besides its outputs.
    """

    teacher: Graph
    student: Graph
    loss_of_outputs: OutputLoss = "auto"
    temperature: float = 2.0
    hidden: Sequence[str] = ()
    with_attention: bool = False
    labels: str = ""
    alpha: float = 0.5
    wanted: dict[str, Value] = field(init=False, default_factory=dict)
    taps: dict[str, Value] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._outputs = output_pairs(self.teacher, self.student)
        self._kinds = {pair.name: self._kind(pair) for pair in self._outputs}
        named = named_pairs(self.teacher, self.student, [name for name in self.hidden if name != AUTO])
        matched = hidden_pairs(self.teacher, self.student) if AUTO in self.hidden else []
        if AUTO in self.hidden and not matched:
            raise RequestError("hidden=auto: no layer of both reads a value of the same name: name pairs of values")
        self._hidden = [*named, *matched]
        for pair in self._outputs:
            self.wanted[_theirs(pair.name)] = pair.teacher
        for pair in self._hidden:
            self.wanted[_theirs(_tap(pair))], self.taps[_tap(pair)] = pair.teacher, pair.student
        self._attention = attention_pair(self.teacher, self.student) if self.with_attention else None
        if self._attention is not None:
            for key, value in _parts(self._attention[0]).items():
                self.wanted[_theirs(key)] = value
            self.taps |= _parts(self._attention[1])
        self._classes = next((p.name for p in self._outputs if self._kinds[p.name] in _CLASSES), None)
        if self.labels and self._classes is None:
            raise RequestError("labels need an output with scores of classes, and there is none: leave labels out")

    def _kind(self, pair: Pair) -> Kind:
        """How the outputs are compared."""
        kind = kind_of_output(pair.teacher, pair.name)
        if self.loss_of_outputs == "kl" and kind not in _CLASSES:
            kind = "classes"
        elif self.loss_of_outputs in ("mse", "cosine"):
            kind = "values" if self.loss_of_outputs == "mse" else "directions"
        if pair.axis is not None and kind != "embedding":
            types = f"{pair.teacher.type} for the teacher and {pair.student.type} for the student"
            raise RequestError(f"output {pair.name!r} is {types}: only embeddings may have another width")
        return kind

    def projections(self, seed: int) -> dict[str, Array]:
        """Linear layers from the student's widths to the teacher's, by name of the pair: [own, teacher's]."""
        rng = np.random.default_rng([seed, 3])
        found = {}
        for pair in self._hidden:
            if pair.axis is not None:
                own, theirs = _size(pair.student, pair.axis), _size(pair.teacher, pair.axis)
                found[_tap(pair)] = (rng.standard_normal((own, theirs)) / np.sqrt(own)).astype(np.float32)
        return found

    def loss(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], projections: Any) -> dict[str, Any]:
        """The terms by name."""
        terms: dict[str, Any] = {}
        rest = 1 - self.alpha if self.labels else 1.0
        for pair in self._outputs:
            t, s = _numbers(batch[_theirs(pair.name)]), outputs[pair.name]
            terms[pair.name] = rest * self._compare(self._kinds[pair.name], pair, t, s)
        for pair in self._hidden:
            t, s = _numbers(batch[_theirs(_tap(pair))]), outputs[_tap(pair)]
            if pair.axis is not None:
                s = _projected(s, projections[_tap(pair)], pair.axis)
            terms[_tap(pair)] = losses.relative_error(t, s) / len(self._hidden)
        if self._attention is not None:
            terms |= self._relations(outputs, batch)
        if self.labels:
            terms["labels"] = self.alpha * self._from_labels(outputs, batch)
        return terms

    def _compare(self, kind: Kind, pair: Pair, t: Any, s: Any) -> Any:
        import jax.numpy as jnp

        match kind:
            case "probabilities":
                floor = jnp.finfo(jnp.float32).tiny
                return losses.divergence(jnp.log(t + floor), jnp.log(s + floor), self.temperature)
            case "classes" if self.loss_of_outputs == "auto":  # a guess: numbers that are no scores must be right, too
                return losses.divergence(t, s, self.temperature) + _ANCHOR * losses.relative_error(t, s)
            case "classes" | "log-probabilities":
                return losses.divergence(t, s, self.temperature)
            case "directions":
                return losses.angle(t, s)
            case "embedding":
                alike = losses.similarity_error(t, s)
                return alike if pair.axis is not None else alike + losses.relative_error(t, s)
        return losses.relative_error(t, s)

    def _relations(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        assert self._attention is not None
        theirs, own, heads = self._attention
        t = {key: batch[_theirs(key)] for key in _parts(theirs)}
        q, k, v = (_flat(_numbers(t[key]), theirs, key) for key in _QKV)
        mine_q, mine_k, mine_v = (_flat(outputs[key], own, key) for key in _QKV)
        mask = _mask(t.get(_MASK), q.shape[1], k.shape[1], theirs.is_causal)
        return {
            "attention": losses.attention_relations((q, k), (mine_q, mine_k), mask, heads),
            "values": losses.value_relations(v, mine_v, mask if q.shape[1] == k.shape[1] else None, heads),
        }

    def _from_labels(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        import jax.numpy as jnp

        assert self._classes is not None
        scores, labels = outputs[self._classes], batch[self.labels]
        if self._kinds[self._classes] == "probabilities":
            scores = jnp.log(scores + jnp.finfo(jnp.float32).tiny)
        weight = batch.get(UNCHANGED, jnp.ones(scores.shape[0]))
        return losses.cross_entropy(scores, labels, weight)

    def describe(self) -> str:
        """What is compared, in one line."""
        words = [f"{pair.name} ({_WORDS[self._kinds[pair.name]]})" for pair in self._outputs]
        if self._hidden:
            words.append(f"hidden {', '.join(pair.name for pair in self._hidden)}")
        if self._attention is not None:
            words.append("relations in the last attention")
        return "learned from the original: " + ", ".join(words + (["labels"] if self.labels else []))


_ANCHOR = 0.1  # the weight of the square error where classes are guessed
_CLASSES: tuple[Kind, ...] = ("classes", "probabilities", "log-probabilities")
_WORDS: dict[Kind, str] = {
    **dict.fromkeys(_CLASSES, "divergence of classes"),
    "directions": "angle",
    "embedding": "square error and similarities of rows",
    "values": "square error",
}
_QKV = ("attention queries", "attention keys", "attention values")
_MASK = "attention mask"


def _parts(heads: Heads) -> dict[str, Value]:
    """What relations are computed from, by name."""
    found = dict(zip(_QKV, (heads.queries, heads.keys, heads.values), strict=True))
    if heads.mask is not None and not heads.mask.is_constant:
        found[_MASK] = heads.mask
    return found


def _tap(pair: Pair) -> str:
    return f"hidden {pair.name}"


def _theirs(name: str) -> str:
    return f"teacher {name}"


def _size(value: Value, axis: int) -> int:
    size = (value.shape or ())[axis]
    assert isinstance(size, int)
    return size


def _numbers(array: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array, jnp.float32)


def _projected(s: Any, weight: Any, axis: int) -> Any:
    import jax.numpy as jnp

    return jnp.moveaxis(jnp.moveaxis(s, axis, -1) @ weight, -1, axis)


def _flat(x: Any, heads: Heads, key: str) -> Any:
    """[rows, positions, all heads side by side]; keys and values as many times as there are queries for each."""
    import jax.numpy as jnp

    own = heads.numbers[0] if key == _QKV[0] else heads.numbers[1]
    if x.ndim == 3:
        x = x.reshape(*x.shape[:2], own, -1).transpose(0, 2, 1, 3)
    x = jnp.repeat(x, heads.numbers[0] // own, axis=1)
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def _mask(mask: Any, queries: int, keys: int, is_causal: bool) -> Any:
    """What is added to scores: 0, or what leaves nothing; None if all count."""
    import jax.numpy as jnp

    found = None
    if mask is not None:
        mask = jnp.asarray(mask)
        found = jnp.where(mask, 0.0, -jnp.inf) if mask.dtype == bool else mask.astype(jnp.float32)
        found = found.reshape((1,) * (4 - found.ndim) + found.shape)
        found = found if found.shape[1] == 1 else found.max(1, keepdims=True)  # the heads are other ones here
    if is_causal:
        later = jnp.triu(jnp.full((queries, keys), -jnp.inf), 1)
        found = later if found is None else found + later
    return found
