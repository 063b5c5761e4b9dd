"""The class for ONNX's backend suite."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

import planish


def model() -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    nodes = [helper.make_node("Identity", ["x"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])


def test_models_run_with_and_without_a_pipeline() -> None:
    x = np.array([[-1, 0, 2]], np.float32)
    for pipeline in ("", "simplify"):
        for name in ("reference", "onnxruntime"):
            (y,) = planish.onnx_backend(name, pipeline).prepare(model()).run([x])
            np.testing.assert_array_equal(y, [[0, 0, 2]])
