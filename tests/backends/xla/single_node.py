"""Graphs of one node, and graphs from text, as the tests of operators need them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from onnx import helper, numpy_helper

from planish.backends import backend
from planish.backends.xla.function import JaxFunction, to_jax
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import DType, Graph, TensorType, tensor_type
from planish.ir.builder import make_node
from planish.ir.convert.proto import from_proto
from planish.ir.edit import insert_floating
from planish.ir.schema import canonical_opset
from planish.ir.text import parse

Array = np.ndarray[Any, Any]


def lowered(op: str, *operands: Any, results: int | None = None, **attrs: Any) -> JaxFunction:
    """One node as a JAX function of those of its operands that are types; the others are constants."""
    opsets = {"": canonical_opset(), "ai.onnx.preview.training": 1}
    graph = Graph("g", opsets=opsets)
    values = [graph.add_input(o, f"x{i}") if isinstance(o, TensorType) else o for i, o in enumerate(operands)]
    node = make_node(op, tuple(values), attrs, results)
    insert_floating(node.results, graph.ret)
    for i, result in enumerate(node.results):
        result.name = f"y{i}"
    graph.set_outputs(node.results)
    return to_jax(graph)


def type_of(array: Array) -> TensorType:
    """A type of the same rank, of any sizes."""
    return tensor_type(DType.from_numpy(array.dtype), *[None] * array.ndim)


def graph_of(
    op: str,
    operands: Sequence[Any],
    attrs: Mapping[str, Any] | None = None,
    constants: Collection[int] = (),
    shapes: Mapping[int, Sequence[Any]] | None = None,
    results: int = 1,
) -> Graph:
    """One node; the operands are arrays, which are its inputs but for ``constants``."""
    names = ["" if o is None else f"x{i}" for i, o in enumerate(operands)]
    inputs, weights = [], []
    for i, (name, operand) in enumerate(zip(names, operands, strict=True)):
        if i in constants:
            weights.append(numpy_helper.from_array(operand, name))
        elif operand is not None:
            shape = (shapes or {}).get(i, operand.shape)
            inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(operand.dtype), shape))
    outputs = [f"y{i}" for i in range(results)]
    node = helper.make_node(op, names, outputs, **(attrs or {}))
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name=o) for o in outputs], weights)
    return from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), upgrade=upgrade
    )


def exported(function: JaxFunction, *shapes: Sequence[Any]) -> Any:
    """The function for float32 inputs of shapes that may be symbolic, as it comes out of a file."""
    call = jax.jit(lambda *inputs: function(function.params, *inputs))
    types = [jax.ShapeDtypeStruct(tuple(s), jnp.float32) for s in shapes]
    return export.deserialize(export.export(call)(*types).serialize()).call


def numbers(*shape: int) -> Array:
    """Numbers that depend on nothing but the shape."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def run_text(text: str, *inputs: Any) -> list[Any]:
    """The outputs of the graph that ``text`` describes."""
    return backend("xla").compile(parse(text))(*inputs)


def check_text(text: str, *inputs: Any) -> None:
    """It computes what the reference computes."""
    wanted = backend("reference").compile(parse(text))(*inputs)
    for found, value in zip(run_text(text, *inputs), wanted, strict=True):
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype
