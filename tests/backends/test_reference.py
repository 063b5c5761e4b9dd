"""The reference backend: onnx.reference over any graph, and what it adds to it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from planish.backends import LoweringError, backend
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import DType, Graph, op, tensor_type
from planish.ir.builder import make_node
from planish.ir.convert.proto import from_proto
from planish.ir.edit import insert, insert_floating
from planish.ir.errors import PlanishError
from planish.ir.schema import canonical_opset

REFERENCE = backend("reference")


def parsed(text: str) -> Graph:
    return from_proto(parser.parse_model(text), upgrade=upgrade)


def test_it_runs_graphs() -> None:
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }'
    executable = REFERENCE.compile(parsed(text))
    np.testing.assert_array_equal(executable(np.float32([1]), np.float32([2])), [[3]])
    np.testing.assert_array_equal(executable({"a": np.float32([1]), "b": np.float32([2])})["y"], [3])


def test_defaults_of_inputs() -> None:
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[1] a, float[1] b = {5}) => (float[1] y) { y = Add(a, b) }'
    executable = REFERENCE.compile(parsed(text))
    assert executable(np.float32([1])) == [[6]]
    assert executable(np.float32([1]), np.float32([2])) == [[3]]


def test_functions_that_depend_on_types() -> None:
    graph = Graph("g", opsets={"": canonical_opset()})
    x = graph.add_input(tensor_type(DType.FLOAT, 2, 4, 3), "x")
    y = op.GroupNormalization(x, np.ones(4, np.float32), np.zeros(4, np.float32), num_groups=2)
    insert_floating([y], graph.ret)
    y.name = "y"
    graph.set_outputs([y])
    array = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    groups = array.reshape(2, 2, -1)
    wanted = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(REFERENCE.compile(graph)(array)[0].reshape(2, 2, -1), wanted, rtol=1e-4, atol=1e-5)
    assert [n.op for n in graph.nodes] == ["GroupNormalization"]


def test_errors_are_one_line() -> None:
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[n] a, float[m] b) => (float[k] y) { y = Add(a, b) }'
    executable = REFERENCE.compile(parsed(text))
    with pytest.raises(PlanishError) as error:
        executable(np.ones(2, np.float32), np.ones(3, np.float32))
    assert str(error.value).startswith("reference: ")
    assert "\n" not in str(error.value)
    with pytest.raises(PlanishError, match="no value for input 'b'"):
        executable(np.ones(2, np.float32))
    with pytest.raises(PlanishError, match="reference has no option 'threads'"):
        REFERENCE.compile(parsed(text), threads=1)


def test_what_it_lacks_is_listed() -> None:
    graph = Graph("g", opsets={"": canonical_opset()})
    x = graph.add_input(tensor_type(DType.FLOAT, 1, 1, 4, 4), "x")
    rois = graph.add_input(tensor_type(DType.FLOAT, 1, 5), "rois")
    node = make_node("MaxRoiPool", (x, rois), {"pooled_shape": (2, 2)}, name="pool")
    insert(node, graph.ret)
    graph.set_outputs([node.result])
    with pytest.raises(LoweringError, match="reference cannot run 1 node:\n  MaxRoiPool: not implemented"):
        REFERENCE.compile(graph)


def test_one_node() -> None:
    node = make_node("CumProd", (np.ones(3, np.float32), np.int64(0)), {})
    (found,) = REFERENCE.evaluate(node, [np.float32([1, 2, 3]), np.array(0)])
    np.testing.assert_array_equal(found, [1, 2, 6])
    clip = make_node("Clip", (np.ones(3, np.float32), None, np.float32(2)), {})
    np.testing.assert_array_equal(REFERENCE.evaluate(clip, [np.float32([1, 2, 3]), None, np.float32(2)])[0], [1, 2, 2])
