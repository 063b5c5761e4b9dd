"""What a model of `tensorflow_zoo` is: how it is registered, built and run, and what inputs are made for it."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

SEED = 0
NOISE = 0.1  # standard deviation of the noise on weights
HALF = {"float16": 1e-2, "bfloat16": 6e-2}  # what may be lost where a model computes in them

Arrays = tuple[np.ndarray, ...]
Sample = Callable[[int, int], Arrays]  # batch, length -> inputs


@dataclass(frozen=True)
class Scale:
    """How large models are: pixels, channels, layers, positions, words and heads."""

    image: int
    width: int
    layers: int
    length: int
    words: int
    heads: int


SMALL = Scale(image=32, width=8, layers=2, length=6, words=40, heads=2)
REAL = Scale(image=96, width=256, layers=4, length=64, words=4000, heads=4)


@dataclass
class Case:
    """A model with all that is needed to run and judge it.

    Attributes:
        model: what `planish.frontends.tensorflow.from_tensorflow` takes.
        sample: makes inputs for a batch and a length; models of images do not look at the length.
        specs: for functions, the ``tf.TensorSpec`` of each input.
        signature: which one, where the model was saved.
        wants: operators that must be left after the default pipeline, and how many.
        is_image: whether Transposes between convolutions count.
        inside: how many of them the model itself asks for, which change more than the order of channels.
        length: of sequences.
        tolerance: the largest error relative to the range of an output.
    """

    model: Any
    sample: Sample
    specs: tuple[Any, ...] = ()
    signature: str | None = None
    wants: Mapping[str, int] = field(default_factory=dict)
    is_image: bool = False
    inside: int = 0
    length: int = 0
    tolerance: float = 1e-5

    def inputs(self, other: bool = False) -> Arrays:
        """Inputs of two sizes."""
        return self.sample(3, self.length + 2) if other else self.sample(2, self.length)

    def outputs(self, inputs: Arrays) -> list[np.ndarray]:
        """What TensorFlow computes."""
        found = self._call(inputs)
        return [np.asarray(tf.convert_to_tensor(t)) for t in tf.nest.flatten(found)]

    def _call(self, inputs: Arrays, training: bool = False) -> Any:
        if self.signature is not None:
            function = self.model.signatures[self.signature]
            names = [t.op.name for t in function.inputs][: len(inputs)]
            return function(**dict(zip(names, map(tf.constant, inputs), strict=True)))
        if not isinstance(self.model, keras.Model):
            return self.model(*map(tf.constant, inputs))
        structure = getattr(self.model, "_inputs_struct", None)
        if structure is None:
            return self.model(*inputs, training=training)
        return self.model(tf.nest.pack_sequence_as(structure, list(inputs)), training=training)

    def learn_statistics(self) -> None:
        """Let batch normalization take the statistics of one batch."""
        norms = [k for k in self.model._flatten_layers() if isinstance(k, keras.layers.BatchNormalization)]
        for layer in norms:
            layer.momentum = 0.0
        if norms:
            batch = min(32, max(4, 300_000 // self.inputs()[0][0].size))  # the last ones may see one pixel of each
            self._call(self.sample(batch, self.length), training=True)


_RNG = np.random.default_rng(SEED)
Built = tuple[Any, ...]  # the model, its sample, and for functions the specifications
CASES: dict[str, Callable[[Scale], Case]] = {}


def register(name: str, **facts: Any) -> Callable[[Callable[[Scale], Built]], Callable[[Scale], Built]]:
    """Add a model to the zoo; ``facts`` are attributes of its `Case`, or functions that make them from a scale."""

    def add(function: Callable[[Scale], Built]) -> Callable[[Scale], Built]:
        def make(scale: Scale) -> Case:
            known = {k: v(scale) if callable(v) else v for k, v in facts.items()}
            model, sample, *rest = function(scale)
            return Case(model, sample, *rest, **{"length": scale.length, **known})

        CASES[name] = make
        return function

    return add


def build(name: str, scale: Scale = REAL) -> Case:
    """A model of the zoo, always the same."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(SEED)
    _RNG.bit_generator.state = np.random.default_rng(SEED).bit_generator.state
    case = CASES[name](scale)
    if isinstance(case.model, keras.Model):
        disturb(case)
    return case


def chosen(patterns: Sequence[str]) -> list[str]:
    """The names that match one of the patterns; all of them without any."""
    return [n for n in CASES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def disturb(case: Case) -> None:
    """Add noise to the weights of a Keras model; batch normalization first learns its statistics from one batch."""
    rng = np.random.default_rng(SEED)
    case.outputs(case.inputs())  # subclassed models have no weights before
    case.learn_statistics()
    for weight in case.model.weights:
        if "float" not in weight.dtype:
            continue
        value = np.asarray(weight, np.float32)
        if weight.path.endswith("moving_variance"):
            value = value * rng.uniform(0.8, 1.25, value.shape)
        elif value.ndim < 2:  # biases, scales, means
            value = value + NOISE * rng.standard_normal(value.shape)
        weight.assign(value)


# inputs


def floats(*shape: int) -> np.ndarray:
    """Standard normal numbers."""
    return _RNG.standard_normal(shape).astype(np.float32)


def ids(*shape: int, words: int, low: int = 1) -> np.ndarray:
    """Numbers of words."""
    return _RNG.integers(low, words, shape).astype(np.int32)


def padded(batch: int, length: int) -> np.ndarray:
    """A mask whose rows end at different positions."""
    return np.arange(length)[None] < (length - np.arange(batch) % length)[:, None]


def images(s: Scale, channels: int = 3) -> Sample:
    """Images of a scale: large patches and some noise. Of noise alone, deep features would be all but constant."""

    def sample(batch: int, length: int) -> Arrays:
        patches = floats(batch, 4, 4, channels).repeat(-(-s.image // 4), 1).repeat(-(-s.image // 4), 2)
        return (patches[:, : s.image, : s.image] + 0.5 * floats(batch, s.image, s.image, channels),)

    return sample


def signals(channels: int) -> Sample:
    """Sequences of numbers."""
    return lambda batch, length: (floats(batch, length, channels),)


def texts(s: Scale, mask: bool = False) -> Sample:
    """Sequences of words, perhaps with a mask."""

    def sample(batch: int, length: int) -> Arrays:
        words = ids(batch, length, words=s.words)
        return (words, padded(batch, length)) if mask else (words,)

    return sample
