"""One node at a time: what it is lowered to is built by TensorRT for RTX, and computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

import planish
from planish.backends.base import backend
from planish.backends.tensorrt.module import find_module
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType, Graph
from planish.ir.convert.proto import to_proto

__all__ = ["Const", "build_engine", "check", "lower", "single"]

Array = np.ndarray
_LOG = find_module(version_of("rtx")).logger  # that of the whole process


class Const:
    """An operand that is an initializer."""

    def __init__(self, value: Any, dtype: Any = None):
        self.array = np.asarray(value, dtype)


def _proto(array: Array, name: str) -> TensorProto:
    dtype = int(DType.from_numpy(array.dtype))
    if array.dtype.kind in "biuf" and array.dtype not in (ml_dtypes.int4, ml_dtypes.uint4):
        return numpy_helper.from_array(array, name)
    return helper.make_tensor(name, dtype, array.shape, array.astype(np.float32).ravel().tolist())


def single(
    op: str, operands: Sequence[Any], results: Sequence[Any], *, opset: int = 25, domain: str = "", **attrs: Any
) -> tuple[Graph, dict[str, Array]]:
    """A graph with one node, and its inputs.

    Args:
        op: the operator.
        operands: arrays, which become inputs; `Const`; None.
        results: types, or types and shapes, of the outputs.
        opset: of the model.
        domain: of the operator.
        attrs: of the node; ``dims``: by input, its dimensions if they are symbols.
    """
    inputs, weights, names, feed = [], [], [], {}
    dims = attrs.pop("dims", {})
    for i, operand in enumerate(operands):
        name = f"x{i}"
        names.append("" if operand is None else name)
        if isinstance(operand, Const):
            weights.append(_proto(operand.array, name))
        elif operand is not None:
            array = np.asarray(operand)
            feed[name] = array
            shape = dims.get(i, array.shape)
            inputs.append(helper.make_tensor_value_info(name, int(DType.from_numpy(array.dtype)), shape))
    types = [r if isinstance(r, tuple) else (r, None) for r in results]
    outputs = [helper.make_tensor_value_info(f"y{i}", int(d), s) for i, (d, s) in enumerate(types)]
    node = helper.make_node(op, names, [o.name for o in outputs], domain=domain, **attrs)
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return planish.load(helper.make_model(graph, opset_imports=opsets, ir_version=12)), feed


def lower(graph: Graph, feed: dict[str, Array], version: str = "rtx") -> Graph:
    """The lowered graph, of which an engine is built."""
    lowered, stamp, _ = backend(f"tensorrt:{version}").lower_and_stamp(graph)
    build_engine(to_proto(lowered, opset=stamp.opset, ir_version=stamp.ir_version).SerializeToString(), feed)
    return lowered


@cache
def _builder() -> Any:
    return trt.Builder(_LOG)


def build_engine(model: bytes, feed: dict[str, Array]) -> None:
    """Build an engine for the sizes of ``feed``."""
    builder = _builder()
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, _LOG)
    assert parser.parse(model), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        array = feed[tensor.name]
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, *[array.ravel().tolist()] * 3)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *[array.shape] * 3)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def check(
    op: str, operands: Sequence[Any], results: Sequence[Any], *, want: Any = None, tolerance: float = 1e-5, **more: Any
) -> Graph:
    """Lower, build and run one node; returns the lowered graph.

    Args:
        op: the operator; also `single` for ``operands``, ``results`` and ``more``.
        want: what the outputs must be; None: what the reference makes of the node.
        tolerance: how far they may be off, relative to the largest.
    """
    engine = more.pop("engine", "onnxruntime")
    graph, feed = single(op, operands, results, **more)
    wanted = list(backend("reference").run(graph, feed).values()) if want is None else want
    lowered = lower(graph, feed)
    cast = {v.name: feed[v.name].astype(v.dtype.numpy) for v in lowered.inputs}
    for got, expected in zip(backend(engine).run(lowered, cast).values(), wanted, strict=True):
        expected = np.asarray(expected)
        assert got.shape == expected.shape
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-3)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=scale * tolerance)
    return lowered
