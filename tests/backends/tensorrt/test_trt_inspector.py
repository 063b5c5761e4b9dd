"""What TensorRT's inspector says of engines, in the forms of versions 8 to 11, joined with the nodes of a model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from planish.backends.tensorrt.inspector import inspect_json
from planish.ir.errors import PlanishError


def tensor(name: str, words: str, dims: list[int] | None = None) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": dims or [1, 64, 56, 56], "Format/Datatype": words}


NODES = {
    "conv1": {"op": "Conv", "origin": "resnet.py:41 in layer1.conv"},
    "relu1": {"op": "Relu", "origin": "resnet.py:42"},
    "q1": {"op": "QuantizeLinear"},
    "add1": {"op": "Add"},
    "mul": {"op": "MatMul"},
    "soft": {"op": "Softmax"},
    "folded": {"op": "Transpose"},
}
EIGHT = [  # as TensorRT 8 has it: fused nodes by name, no metadata
    {
        "Name": "Reformatting CopyNode for Input Tensor 0 to conv1 + relu1",
        "LayerType": "Reformat",
        "Inputs": [tensor("x", "Row major linear FP32")],
        "Outputs": [tensor("Reformatted x", "Thirty-two wide channel vectorized row major Int8 format.")],
        "ParameterType": "Reformat",
        "Origin": "REFORMAT",
        "TacticValue": "0x00000000000003e8",
    },
    {
        "Name": "conv1 + relu1",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor("x", "Thirty-two wide channel vectorized row major Int8 format.")],
        "Outputs": [tensor("t", "Thirty-two wide channel vectorized row major Int8 format.")],
        "ParameterType": "Convolution",
        "Kernel": [1, 1],
        "Weights": {"Type": "Int8", "Count": 131072},
        "Bias": {"Type": "Float", "Count": 256},
        "HasSparseWeights": 1,
        "Activation": "RELU",
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_simple_t1r1s1",
        "TacticValue": "0x11bde0e1d9f2f35d",
    },
    {
        "Name": "mul",
        "LayerType": "CublasLt",
        "Inputs": [tensor("t", "N/A due to dynamic shapes")],
        "Outputs": [tensor("y", "N/A due to dynamic shapes")],
        "TacticName": "ampere_h16816gemm_128x64_ldg8_f2f_stages_64x3_nn",
    },
]
TEN = [  # as TensorRT 10 has it: nodes in the metadata
    {
        "Name": "conv1_myl0_1",
        "LayerType": "conv",
        "Inputs": [tensor("x", "Int8 NC/32HW32"), tensor("w", "Int8")],
        "Outputs": [tensor("t", "Half NHWC")],
        "TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: q1]\x1e[ONNX Layer: conv1]\x1f[ONNX Layer: relu1]",
    },
    {
        "Name": "__myl_AddMulMaxSubExpSumDiv_myl0_2",
        "LayerType": "kgen",
        "Inputs": [tensor("t", "Half"), tensor("mask", "Bool")],
        "Outputs": [tensor("p", "BFloat16")],
        "TacticName": "__myl_AddMulMaxSubExpSumDiv_0xd1c2",
        "Metadata": "[ONNX Layer: add1][ONNX Layer: soft]",
    },
    {
        "Name": "mul_myl0_3",
        "LayerType": "gemm",
        "Inputs": [tensor("p", "FP8"), tensor("w", "FP8")],
        "Outputs": [tensor("y", "Float")],
        "TacticName": "sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n",
        "Metadata": "[ONNX Layer: mul | body (then_branch) | If_0 (If)]",
    },
]


def text(rows: list[Any]) -> str:
    return json.dumps({"Layers": rows, "Bindings": ["x", "y"]})


def test_layers_of_version_8_hold_nodes_by_their_names():
    found = inspect_json(text(EIGHT), NODES)
    copy, conv, product = found.layers
    assert copy.is_copy
    assert conv.nodes == ("conv1", "relu1")
    assert (conv.precision, conv.sparse, conv.inputs) == ("int8", True, ("int8",))
    assert (product.nodes, product.precision, product.inputs) == (("mul",), "float16", ("",))
    assert found.precisions == {"int8": 1, "float16": 1}
    assert found.unplaced == ["q1", "add1", "soft", "folded"]


def test_layers_of_version_10_hold_nodes_by_their_metadata():
    found = inspect_json(text(TEN), NODES)
    conv, softmax, product = found.layers
    assert conv.nodes == ("q1", "conv1", "relu1")
    assert (conv.precision, conv.outputs) == ("int8", ("float16",))
    assert softmax.nodes == ("add1", "soft")
    assert (softmax.precision, softmax.inputs) == ("bfloat16", ("float16", "bool"))
    assert (product.nodes, product.precision) == (("mul",), "float8e4m3fn")
    assert found.layer_of("soft") is softmax
    assert found.layer_of("folded") is None
    assert found.unplaced == ["folded"]


def test_an_engine_that_only_names_its_layers_says_so():
    rows = ["conv1 + relu1", "{ForeignNode[mul...soft]}", "Reformatting CopyNode for Output Tensor 0 to add1"]
    found = inspect_json(text(rows), NODES)
    assert [layer.nodes for layer in found.layers] == [("conv1", "relu1"), ("mul", "soft"), ()]
    assert found.note == "the engine names its layers and no more: build it with detailed=True"
    assert found.note in str(found)
    assert found.precisions == {}


@pytest.mark.parametrize(
    ("inputs", "outputs", "tactic", "precision"),
    [
        (["Int8", "Int8"], ["Half"], "", "int8"),
        (["Int8"], ["Half"], "__myl_CastMul_0x1", "float16"),
        (["Int8"], ["Half"], "sm80_xmma_gemm_i8f32_i8i32_f32_by_fusion_tactic", "int8"),
        (["Float", "Float"], ["Float"], "sm80_xmma_gemm_f32f32_tf32f32_f32_nn", "tf32"),
        (["BFloat16", "BFloat16"], ["Float"], "sm80_xmma_gemm_bf16bf16_bf16f32_f32", "bfloat16"),
        ([], [], "", ""),
    ],
)
def test_what_a_layer_computes_in_follows_from_its_kernel_and_what_it_reads(inputs, outputs, tactic, precision):
    row = {
        "Inputs": [tensor("i", t) for t in inputs],
        "Outputs": [tensor("o", t) for t in outputs],
        "TacticName": tactic,
    }
    assert inspect_json(text([row])).layers[0].precision == precision


def test_names_with_brackets_are_read():
    row = {"Name": "f", "Metadata": "[ONNX Layer: a[0]/mul]\x1e[ONNX Layer: b]"}
    assert inspect_json(text([row])).layers[0].nodes == ("a[0]/mul", "b")


def test_people_get_a_table():
    shown = str(inspect_json(text(TEN), NODES)).splitlines()
    assert shown[0].split("  ")[0] == "layer"
    assert "QuantizeLinear, Conv, Relu" in shown[1]
    assert "resnet.py:41 in layer1.conv" in shown[1]
    assert shown[-1] == "6 nodes in 3 layers: 1 in bfloat16, 1 in float8e4m3fn, 1 in int8"


def test_programs_get_json():
    found = json.loads(json.dumps(inspect_json(text(EIGHT), NODES).to_dict()))
    assert found["layers"][1]["nodes"][0] == {"name": "conv1", "op": "Conv", "origin": "resnet.py:41 in layer1.conv"}
    assert found["layers"][1]["sparse"] is True
    assert "sparse" not in found["layers"][2]
    assert found["precisions"] == {"int8": 1, "float16": 1}


def test_engines_without_a_manifest_are_shown_by_names():
    found = inspect_json(text(TEN))
    assert "q1, conv1, relu1" in str(found)
    assert found.unplaced == []


@pytest.mark.parametrize("wrong", ["", "{", "[]", "{}", '{"Layers": 3}', "null", "[" * 100_000])
def test_anything_else_is_one_line(wrong):
    with pytest.raises(PlanishError, match="that is no layer information of TensorRT's") as error:
        inspect_json(wrong)
    assert "\n" not in str(error.value)
