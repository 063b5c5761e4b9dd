"""What the tests of the TensorFlow frontend share: translate a function, run it, and compare with TensorFlow itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

import planish
from planish.backends import backend
from planish.frontends.tensorflow import from_tensorflow
from planish.ir import Graph
from planish.ir.verify import verify

__all__ = ["assert_like", "check", "translate"]

Open = bool | Mapping[int, Sequence[int]]


def check(
    function: Callable[..., Any],
    *inputs: Any,
    open: Open = False,
    engine: str = "onnxruntime",
    tolerance: float = 1e-5,
    simplify: bool = False,
) -> Counter[str]:
    """Translate ``function``, run the graph, and compare each output's type, shape and values with TensorFlow's.

    Args:
        function: a function of tensors, a ``tf.function``, or a Keras model.
        inputs: an array (or what NumPy makes one of) for every argument.
        open: which sizes are open: all of them (True), none, or the axes that are listed by the argument's number.
        engine: the backend that runs the graph.
        tolerance: how far numbers may be off, in parts of the output's range; never less than a few units of its type.
        simplify: whether to run the default pipeline before.

    Returns:
        How often each operator is in the graph, and in the graphs nested in it.
    """
    arrays = [np.asarray(x) for x in inputs]
    graph = translate(function, *arrays, open=open, simplify=simplify)
    actual = backend(engine).compile(graph)(*arrays)
    tensors = [tf.constant(x) for x in arrays]
    keywords = {"training": False} if isinstance(function, keras.Model) else {}
    wanted = [np.asarray(y) for y in tf.nest.flatten(function(*tensors, **keywords))]
    assert len(actual) == len(wanted)
    for a, w in zip(actual, wanted, strict=True):
        assert_like(a, w, tolerance)
    return Counter(node.op for node in graph.walk())


def translate(function: Callable[..., Any], *arrays: Any, open: Open = False, simplify: bool = False) -> Graph:
    """The verified graph of ``function`` for arguments like ``arrays``; the parameters are those of `check`."""
    specs = [_spec(np.asarray(x), _open_axes(open, i, np.ndim(x))) for i, x in enumerate(arrays)]
    graph = from_tensorflow(function, *specs)
    verify(graph)
    if simplify:
        planish.Pipeline.parse("default").run(graph, planish.Context(lambda: backend("onnxruntime")))
    return graph


def assert_like(actual: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    """Fail unless an array has the type, the shape and, within ``tolerance`` of the range, the numbers of another."""
    assert actual.dtype == wanted.dtype
    assert actual.shape == wanted.shape
    if not tf.as_dtype(wanted.dtype).is_floating:
        np.testing.assert_array_equal(actual, wanted)
        return
    tolerance = max(tolerance, 4 * float(ml_dtypes.finfo(wanted.dtype).eps))
    a, w = actual.astype(np.float64), wanted.astype(np.float64)
    finite = w[np.isfinite(w)]
    scale = (np.ptp(finite) or np.abs(finite).max()) if finite.size else 0.0
    np.testing.assert_allclose(a, w, rtol=0, atol=tolerance * float(scale or 1))


def _open_axes(open: Open, number: int, rank: int) -> Sequence[int]:
    if isinstance(open, Mapping):
        return [axis % rank for axis in open.get(number, ())]
    return range(rank) if open else ()


def _spec(array: np.ndarray, axes: Sequence[int]) -> tf.TensorSpec:
    shape = [None if axis in axes else size for axis, size in enumerate(array.shape)]
    return tf.TensorSpec(shape, tf.as_dtype(array.dtype))
