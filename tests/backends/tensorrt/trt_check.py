"""What the tests of operators share: a graph is lowered, built, and what is emitted is run beside the original."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from planish.backends import LoweringError, backend
from planish.backends.base import Lowered
from planish.ir import Graph
from planish.ir.convert.proto import to_proto
from planish.ir.text import parse

from .trt_single import build_engine

__all__ = ["check", "ops", "refusals"]


def check(
    text: str, tolerance: float = 1e-5, engine: str = "onnxruntime", expected: Any = None, **inputs: Any
) -> Counter[str]:
    """Lower and build a graph, compare the values of what is emitted with the original's; returns the operators."""
    graph = parse(text)
    lowered = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert isinstance(lowered, Lowered)
    arrays = {v.name: np.asarray(inputs[v.name], v.dtype.numpy) for v in graph.inputs}
    assert lowered.stamp is not None
    model = to_proto(lowered.graph, opset=lowered.stamp.opset, ir_version=lowered.stamp.ir_version)
    build_engine(model.SerializeToString(), arrays)
    if expected is None:
        expected = backend(engine).run(graph, arrays)
    found = backend(engine).run(lowered.graph, arrays)
    for name, value in expected.items():
        assert np.shape(found[name]) == np.shape(value), name
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), np.asarray(value, np.float64), rtol=tolerance, atol=tolerance
        )
    return ops(lowered.graph)


def ops(graph: Graph) -> Counter[str]:
    """How often each operator is in a graph, nested ones included."""
    return Counter(node.op for node in graph.walk())


def refusals(text: str, target: str = "tensorrt:rtx") -> str:
    """Why a graph cannot be lowered."""
    with pytest.raises(LoweringError) as caught:
        backend(target).lower_and_stamp(parse(text))
    return str(caught.value)
