"""What the tests of operators share: a graph is lowered, built, and what is emitted is run beside the original."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx

from planish.backends import LoweringError, backend
from planish.backends.base import Lowered
from planish.backends.tensorrt.module import find_module
from planish.backends.tensorrt.versions import version_of
from planish.ir import Graph
from planish.ir.convert.proto import to_proto
from planish.ir.text import parse

__all__ = ["check", "ops", "refusals"]


def check(
    text: str, tolerance: float = 1e-5, engine: str = "onnxruntime", expected: Any = None, **inputs: Any
) -> Counter[str]:
    """Lower and build a graph, compare the values of what is emitted with the original's; returns the operators."""
    graph = parse(text)
    lowered = backend("tensorrt:rtx").lower_and_stamp(graph)
    assert isinstance(lowered, Lowered)
    arrays = {v.name: np.asarray(inputs[v.name], v.dtype.numpy) for v in graph.inputs}
    _build(lowered, arrays)
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


def _build(lowered: Lowered, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
    stamp = lowered.stamp
    assert stamp is not None
    module = find_module(version_of("rtx"))  # whose logger is that of the whole process
    log = module.listen()
    builder = tensorrt_rtx.Builder(module.logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, module.logger)
    model = to_proto(lowered.graph, opset=stamp.opset, ir_version=stamp.ir_version)
    problems = (
        [parser.get_error(i).desc() for i in range(parser.num_errors)]
        if not parser.parse(model.SerializeToString())
        else []
    )
    assert not problems, problems
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        array = inputs[tensor.name]
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, *[array.ravel().tolist()] * 3)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *[array.shape] * 3)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.errors
