"""The ONNX Runtime backend: values in and out, weights, options, files and errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser

from planish.backends import LoweringError, backend, backends
from planish.backends import onnxruntime as module
from planish.backends.onnx_file import save
from planish.backends.ort_target import limits
from planish.frontends.onnx.reader import load
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import DType, Graph, LazyTensor, TensorType, constant, op, tensor_type
from planish.ir.builder import make_node
from planish.ir.convert.proto import from_proto
from planish.ir.edit import insert, insert_floating
from planish.ir.errors import PlanishError
from planish.ir.schema import canonical_opset
from planish.ir.verify import VerifyError, verify

ORT = backend("onnxruntime")


def parsed(text: str) -> Graph:
    return from_proto(parser.parse_model(text), upgrade=upgrade)


def matmul(weight: Any) -> Graph:
    """``x @ weight`` for one row."""
    graph = Graph("g", opsets={"": canonical_opset()})
    x = graph.add_input(tensor_type(DType.FLOAT, 1, weight.shape[0]), "x")
    y = op.MatMul(x, weight if hasattr(weight, "producer") else constant(weight))
    insert_floating([y], graph.ret)
    y.name = "y"
    graph.set_outputs([y])
    return graph


# values

TWO = """<ir_version: 8, opset_import: ["" : 17]> g (float[n] a, float[n] b) => (float[n] sum, float[n] product) {
  sum = Add(a, b) product = Mul(a, b) }"""


def test_arrays_give_a_list_and_names_a_dictionary() -> None:
    executable = ORT.compile(parsed(TWO))
    a, b = np.float32([1, 2]), np.float32([3, 4])
    found = executable(a, b)
    assert isinstance(found, list)
    np.testing.assert_array_equal(found, [[4, 6], [3, 8]])
    named = executable({"b": b, "a": a})
    assert list(named) == ["sum", "product"]
    np.testing.assert_array_equal(named["product"], [3, 8])
    assert [name for name, _ in executable.inputs] == ["a", "b"]


def test_an_output_may_be_listed_twice(tmp_path: Path) -> None:
    """TorchScript exports do that where a model returns one tensor in two places."""
    model = parser.parse_model(TWO)
    model.graph.output.append(model.graph.output[0])
    graph = from_proto(model, upgrade=upgrade)
    verify(graph)
    a, b = np.float32([1, 2]), np.float32([3, 4])
    for name in ("onnxruntime", "reference"):
        np.testing.assert_array_equal(backend(name).compile(graph)(a, b), [[4, 6], [3, 8], [4, 6]])
    ORT.compile(graph).save(tmp_path / "model.onnx")
    assert [o.name for o in onnx.load(tmp_path / "model.onnx").graph.output] == ["sum", "product", "sum"]
    assert len(ORT.load(tmp_path / "model.onnx")(a, b)) == 3
    graph.output_info[1].name = "sum"  # which is another value
    with pytest.raises(VerifyError, match="Two outputs are called 'sum'"):
        verify(graph)
    with pytest.raises(PlanishError, match="has the name of an input or another output"):
        save(graph, tmp_path / "wrong.onnx")


def test_scalars_of_numpy() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y) { y = Neg(x) }'
    assert ORT.compile(parsed(text))(np.float32(2)) == [-2]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e5m2", ml_dtypes.float8_e5m2),
        ("int4", ml_dtypes.int4),
        ("uint4", ml_dtypes.uint4),
    ],
)
def test_types_that_numpy_lacks(name: str, dtype: Any) -> None:
    there_and_back = f"f = Cast<to = 1>(x) y = Cast<to = {DType[name.upper()].value}>(f)"
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({name}[3] x) => ({name}[3] y) {{ {there_and_back} }}'
    x = np.array([1, 0, 2]).astype(dtype)
    (found,) = ORT.compile(parsed(text))(x)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found.astype(np.float32), x.astype(np.float32))


def test_sequences() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (seq(float[n]) s) => (seq(float[m]) t, int64 n) {
      i = Constant<value = int64 {0}>() first = SequenceAt(s, i) t = SequenceInsert(s, first) n = SequenceLength(t) }"""
    t, n = ORT.compile(parsed(text))([np.float32([1]), np.float32([2, 3])])
    assert [v.tolist() for v in t] == [[1], [2, 3], [1]]
    assert n == 3


def test_optionals() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (optional(float[2]) o) => (bool b) {
      b = OptionalHasElement(o) }"""
    executable = ORT.compile(parsed(text))
    assert executable(np.float32([1, 2]))[0]
    assert not executable(None)[0]


# weights


def test_weights_do_not_pass_through_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    session = module._session
    monkeypatch.setattr(module, "_session", lambda model, *rest: sizes.append(len(model)) or session(model, *rest))
    weight = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    x = np.ones((1, 512), np.float32)
    np.testing.assert_allclose(ORT.compile(matmul(weight))(x)[0], x @ weight, rtol=1e-4, atol=1e-4)
    assert sizes[0] < 4096


def test_weights_in_files_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
    save(matmul(weight), tmp_path / "m.onnx", external=True, opset=limits().opset, ir_version=limits().ir_version)
    x = np.ones((1, 256), np.float32)
    monkeypatch.setattr(module, "to_ort", None)  # ONNX Runtime maps the file itself
    np.testing.assert_allclose(ORT.compile(load(tmp_path / "m.onnx"))(x)[0], x @ weight, rtol=1e-4, atol=1e-4)


def test_computed_weights() -> None:
    weight = LazyTensor(lambda: np.full((64, 8), 2, np.float32), (), DType.FLOAT, (64, 8), "w")
    (found,) = ORT.compile(matmul(constant(weight)))(np.ones((1, 64), np.float32))
    np.testing.assert_array_equal(found, np.full((1, 8), 128))


def test_weights_of_four_bits() -> None:
    graph = Graph("g", opsets={"": canonical_opset()})
    x = graph.add_input(tensor_type(DType.FLOAT, 1, 64), "x")
    codes = np.arange(64 * 64).reshape(64, 64) % 15 - 7
    y = op.MatMul(x, op.DequantizeLinear(constant(codes.astype(ml_dtypes.int4)), constant(np.float32(0.5))))
    insert_floating([y], graph.ret)
    y.name = "y"
    graph.set_outputs([y])
    (found,) = ORT.compile(graph)(np.ones((1, 64), np.float32))
    np.testing.assert_allclose(found[0], codes.sum(0) * 0.5)


# options and files


def test_options_reach_the_session(tmp_path: Path) -> None:
    executable = ORT.compile(
        parsed(TWO),
        threads=1,
        level="basic",
        spinning=False,
        providers=["CPUExecutionProvider"],
        optimized_path=tmp_path / "optimized.onnx",
        config={"session.disable_prepacking": "1"},
    )
    options = executable.session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert (tmp_path / "optimized.onnx").exists()
    assert executable.report()["providers"] == ["CPUExecutionProvider"]


@pytest.mark.parametrize("options", [{"level": "much"}, {"speed": 3}])
def test_unknown_options(options: dict[str, Any]) -> None:
    with pytest.raises(PlanishError, match="onnxruntime has no"):
        ORT.compile(parsed(TWO), **options)


def test_save_and_load(tmp_path: Path) -> None:
    executable = ORT.compile(parsed(TWO))
    executable.save(tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx")
    loaded = ORT.load(tmp_path / "m.onnx")
    assert loaded.inputs == executable.inputs
    assert loaded.outputs == ["sum", "product"]
    np.testing.assert_array_equal(loaded(np.float32([1]), np.float32([2]))[1], [2])


def test_the_limits_are_sharp() -> None:
    text = '<ir_version: {}, opset_import: ["" : {}]> g (float x) => (float y) {{ y = Neg(x) }}'
    for opset, ir in ((limits().opset, 8), (7, limits().ir_version)):
        module._session(parser.parse_model(text.format(ir, opset)).SerializeToString(), None, None)
    with pytest.raises(Exception, match="opset"):
        module._session(parser.parse_model(text.format(8, limits().opset + 1)).SerializeToString(), None, None)


# errors


def one_line(error: pytest.ExceptionInfo[PlanishError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "/onnxruntime_src" not in message
    return message


def test_wrong_inputs() -> None:
    executable = ORT.compile(parsed(TWO))
    with pytest.raises(PlanishError) as error:
        executable(np.float32([1]))
    assert "'b'" in one_line(error)
    with pytest.raises(PlanishError, match="3 inputs given, the model has 2"):
        executable(*[np.float32([1])] * 3)
    with pytest.raises(PlanishError) as error:
        executable(np.float32([1]), np.float64([1]))
    assert "double" in one_line(error)


def test_a_run_that_fails_names_the_node() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n] x, int64[k] s) => (float[k] y) {
      [the_reshape] y = Reshape(x, s) }"""
    executable = ORT.compile(parsed(text))
    with pytest.raises(PlanishError) as error:
        executable(np.ones(3, np.float32), np.array([2, 2]))
    message = one_line(error)
    assert "the_reshape" in message
    assert len(message) < 400


def test_everything_that_cannot_run_is_listed() -> None:
    graph = Graph("g", opsets={"": canonical_opset(), "acme": 1})
    x = graph.add_input(tensor_type(DType.FLOAT, 4), "x")
    image = graph.add_input(tensor_type(DType.UINT8, None), "image")
    for i, (name, operand) in enumerate((("acme.Magic", x), ("ImageDecoder", image), ("acme.More", x))):
        node = make_node(name, (operand,), {}, name=f"node_{i}")
        node.metadata = {"pkg.torch.onnx.stack_trace": f'File "net.py", line {i + 1}, in forward'}
        insert(node, graph.ret)
        node.result.type = TensorType(DType.FLOAT, None)
    graph.set_outputs([x])
    with pytest.raises(LoweringError) as error:
        ORT.compile(graph)
    assert [p.node.name for p in error.value.problems] == ["node_0", "node_1", "node_2"]
    lines = str(error.value).splitlines()
    assert lines[0] == "onnxruntime cannot run 3 nodes:"
    assert lines[2] == "  ImageDecoder: not implemented [net.py:2 node_1]"


def test_missing_kernels_are_listed() -> None:
    text = """<ir_version: 10, opset_import: ["" : 22]> g (bfloat16[2] x, float[2] f) => (bfloat16[2] y, float[2] h) {
      [first] a = Sin(x) [second] y = Mul(a, x) [fine] h = Neg(f) }"""
    with pytest.raises(LoweringError) as error:
        ORT.compile(parsed(text))
    assert [p.node.name for p in error.value.problems] == ["first", "second"]
    assert "no kernel for tensor(bfloat16)" in str(error.value)


def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(PlanishError, match=r"m\.onnx"):
        ORT.load(tmp_path / "m.onnx")


# the registry


def test_backends_are_found_by_name() -> None:
    assert {"onnxruntime", "reference"} <= set(backends())
    assert "base" not in backends()
    assert backend("onnxruntime:arm64").variant == "arm64"
    with pytest.raises(PlanishError, match=r"no backend 'abacus': there are .*onnxruntime"):
        backend("abacus")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlanishError, match="onnxruntime is not installed: pip install onnxruntime"):
        backend("onnxruntime")


def test_nothing_heavy_is_imported() -> None:
    code = """if True:
        import sys, planish.backends.onnxruntime, planish.backends.reference
        print([m for m in ("onnx", "onnxruntime") if m in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_backend_is_a_runner_for_passes() -> None:
    node = make_node("Einsum", (np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)), {"equation": "ij,jk->ik"})
    for name in ("onnxruntime", "reference"):
        (found,) = backend(name).evaluate(node, [np.ones((2, 3), np.float32), np.full((3, 4), 2, np.float32)])
        np.testing.assert_array_equal(found, np.full((2, 4), 6))
        outputs = backend(name).run(parsed(TWO), {"a": np.float32([1]), "b": np.float32([2])})
        assert outputs["sum"] == [3]
