"""Engines are built by TensorRT for RTX, without a GPU; other versions' API is faked."""

from __future__ import annotations

import enum
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper, numpy_helper

import planish
from planish.backends import LoweringError, backend
from planish.backends.base import Lowered
from planish.backends.legalize import Stamp
from planish.backends.tensorrt import build as building
from planish.backends.tensorrt import manifest, module, options
from planish.backends.tensorrt.build import Weights, build
from planish.backends.tensorrt.inspector import parsed_layers
from planish.backends.tensorrt.messages import named, readable
from planish.backends.tensorrt.module import Module, find_module, is_installed
from planish.backends.tensorrt.options import BuildOptions, byte_count, check_options, refused
from planish.backends.tensorrt.versions import version_of
from planish.ir import DType
from planish.ir.errors import PlanishError
from planish.ir.tensor import ArrayTensor

RTX = version_of("rtx")
rng = np.random.default_rng(0)


def lowered(
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: dict[str, int],
    weights: dict[str, Any] | None = None,
    **more: Any,
) -> Lowered:
    """A model, which must be legal as it stands."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, *t) for n, t in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [w if isinstance(w, TensorProto) else numpy_helper.from_array(w, n) for n, w in (weights or {}).items()],
    )
    opset = more.get("opset", 21)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    loaded = planish.load(model)
    for i, node in enumerate(loaded.walk()):
        node.name = node.name or f"{node.op}_{i}"
    return Lowered(loaded, Stamp(23, 10), ("a note",))


def product(x: Any = (1, ["batch", 8]), weight: Any = None) -> Lowered:
    """A product and an activation."""
    weight = rng.standard_normal((8, 64)).astype(np.float32) if weight is None else weight
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], name="mul"),
        helper.make_node("Relu", ["t"], ["y"], name="act"),
    ]
    return lowered(nodes, {"x": x}, {"y": x[0]}, {"w": weight})


def built(model: Lowered, **given: Any) -> Any:
    return build(model, RTX, check_options(given))


# --- building --------------------------------------------------------------------------------------------------------


def test_an_engine_is_built_for_open_sizes():
    plan = built(product(), sizes="batch=1:4:16")
    assert plan.data.nbytes > 1000
    assert plan.profiles[0].shapes == {"x": ((1, 8), (4, 8), (16, 8))}
    assert plan.taken == {"x": DType.FLOAT, "y": DType.FLOAT}
    assert plan.notes == ["a note"]


def test_an_engine_has_several_profiles():
    assert len(built(product(), sizes="batch=1;batch=2:4:16").profiles) == 2


def test_elements_that_decide_shapes_are_part_of_the_profile():
    nodes = [helper.make_node("Reshape", ["x", "size"], ["y"])]
    model = lowered(nodes, {"x": (1, ["n", 4]), "size": (7, [2])}, {"y": 1})
    plan = built(model, sizes="n=1:4:8,size=4x1:4x4:4x8")
    assert plan.profiles[0].elements == {"size": ((4, 1), (4, 4), (4, 8))}


def test_ranges_that_do_not_fit_are_one_line_with_what_was_chosen():
    nodes = [helper.make_node("Reshape", ["x", "size"], ["y"])]
    model = lowered(nodes, {"x": (1, ["n", 4]), "size": (7, [2])}, {"y": 1})
    with pytest.raises(
        PlanishError, match=r"^sizes: .*reshape would change volume.*the elements of size are not given"
    ):
        built(model)


def test_progress_is_told():
    messages: list[str] = []
    build(product(), RTX, BuildOptions(), progress=messages.append)
    assert messages[0] == "parsing"
    assert any(m.startswith("building: ") and " of " in m for m in messages)


def test_an_error_while_progress_is_told_ends_the_build():
    def stop(message: str) -> None:
        if message != "parsing":
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="building: "):
        build(product(), RTX, BuildOptions(), progress=stop)


def test_a_keyboard_interrupt_ends_the_build():
    told: list[str] = []

    def interrupt(message: str) -> None:
        told.append(message)
        if message != "parsing" and len(told) == 2:  # once: the handler is the builder's only while it builds
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(product(), RTX, BuildOptions(), progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_input_with_a_default_is_noted_to_be_fixed():
    nodes = [helper.make_node("Add", ["x", "d"], ["y"])]
    plan = built(lowered(nodes, {"x": (1, [2]), "d": (1, [2])}, {"y": 1}, {"d": np.ones(2, np.float32)}))
    assert "input d always has its default: the parser makes it a constant" in plan.notes
    assert [p.name for p in manifest.manifest_of(plan).inputs] == ["x"]


# --- weights ---------------------------------------------------------------------------------------------------------


def weighted() -> dict[str, Lowered]:
    """Models with weights of several types, some in nested graphs."""
    codes = helper.make_tensor(
        "w", TensorProto.INT4, [64, 32], rng.integers(0, 255, 1024, np.uint8).tobytes(), raw=True
    )
    packed = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=64),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, None)],
            [numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), name)],
        )
        for name in ("first", "second")
    ]
    nested = [helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    reshape = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    return {
        "float": product(),
        "bfloat16": product((TensorProto.BFLOAT16, [2, 8]), rng.standard_normal((8, 64)).astype(ml_dtypes.bfloat16)),
        "int4": lowered(packed, {"x": (1, [4, 64])}, {"y": 1}, {"w": codes, "s": np.ones((1, 32), np.float32)}),
        "int64": lowered(reshape, {"x": (1, [4, 8])}, {"y": 1}, {"s": np.array([2, 16])}),
        "nested": lowered(nested, {"x": (1, [4, 8]), "c": (9, [])}, {"y": 1}),
    }


@pytest.mark.parametrize("kind", ["float", "bfloat16", "int4", "int64", "nested"])
def test_weights_go_to_the_parser_where_they_lie(kind, monkeypatch):
    model = weighted()[kind]
    monkeypatch.setattr(building, "_INLINE", 1 << 20)
    inline = built(model)
    monkeypatch.setattr(building, "_INLINE", 1)
    outside = built(model)
    assert outside.data == inline.data
    assert outside.digest != inline.digest  # the model that went in is another


def test_weights_are_not_copied():
    weights = Weights()
    tensor = ArrayTensor(np.zeros((64, 64), np.float32), name="w")
    assert weights.place(tensor) == ("#0", 0, 1 << 14)
    assert np.shares_memory(weights.raw(tensor), tensor.array)
    assert weights.place(ArrayTensor(np.zeros(3, np.float32))) is None


@pytest.mark.parametrize("kind", ["float", "int4", "nested"])
def test_versions_that_take_no_weights_from_memory_read_files(kind, monkeypatch):
    model = weighted()[kind]
    expected = built(model)
    has = Module.has
    monkeypatch.setattr(Module, "has", lambda self, g, m: m != "load_initializer" and has(self, g, m))
    plan = built(model)
    assert plan.data == expected.data
    assert plan.digest


def test_the_digest_is_of_the_model():
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    digests = [built(product(weight=w)).digest for w in (weight, weight, weight + 1)]
    assert digests[0] == digests[1] != digests[2]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_the_parser_refuses_is_told_by_node():
    nodes = [
        helper.make_node("Relu", ["x"], ["t"], name="act"),
        helper.make_node("NonZero", ["t"], ["y"], name="where"),
    ]
    with pytest.raises(LoweringError) as error:
        built(lowered(nodes, {"x": (1, [4, 4])}, {"y": 7}))
    (problem,) = error.value.problems
    assert problem.node.name == "where"
    assert "NonZero plugin creator version 1 was not found" in problem.reason
    assert str(error.value).startswith(f"{find_module(RTX)} cannot run 1 node:")


def test_what_the_builder_refuses_is_told_by_node():
    with pytest.raises(LoweringError) as error:
        built(product(), capabilities="7.5")
    (problem,) = error.value.problems
    assert problem.node.name == "mul"
    assert problem.reason == "Cannot compile operation 'mul' for Turing (SM75): FP32 GEMM is not supported"


def test_what_names_no_node_is_told_as_it_is():
    with pytest.raises(PlanishError, match=r"cannot build the engine: Tactic Selection: no tactics .* workspace limit"):
        built(product(), workspace=1)


def test_messages_are_one_line_without_places():
    message = (
        "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network must have at least one output.\n"
        " In validate at /_src/optimizer/api/network.cpp:3810)"
    )
    assert readable(message) == "Network must have at least one output"
    assert readable("Make sure input b has Int64 binding.") == "Make sure input b has Int64 binding"
    assert readable(
        "[graph.h:12: attach] CheckException: jit.cpp:278: CHECK(status == 0) failed. In f() at /a/b.cpp:2)"
    ) == ("CheckException: CHECK(status == 0) failed")


def test_messages_name_nodes():
    nodes: Any = {name: name for name in ("mul", "act", "Conv_3", "a")}
    assert named("operation 'mul' fails, a sad act", nodes) == ["mul"]
    assert named("kOPT: act: out of bounds in Conv_3.", nodes) == ["act", "Conv_3"]
    assert named("[ONNX Layer: mul | body (then_branch) | If_0 (If)]", nodes) == ["mul"]
    assert named("{ForeignNode[mul...act]}", nodes) == []


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_reach_the_builder():
    given = {"level": 5, "aux_streams": 0, "sparse_weights": True, "weight_streaming": True, "workspace": "1GB"}
    plan = built(product(), **given, tf32=False, capabilities="8.9,12.0")
    assert plan.options.to_dict() == {**given, "tf32": False, "capabilities": ["8.9", "12.0"]}
    assert manifest.runs_on(plan, "") == "compute capability 8.9 or 12.0"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"refit": True}, "TensorRT for RTX 1.7.1 needs a GPU to build an engine with refit"),
        ({"strip_plan": True}, "needs a GPU to build an engine with strip_plan"),
        ({"version_compatible": True}, "has no version_compatible: it has no lean runtime"),
        (
            {"hardware": "ampere+"},
            "has no hardware: its engines run on compute capability 8.0, 8.6, 8.9, 12.0",
        ),
        ({"timing_cache": "t.cache"}, "has no timing_cache: it times nothing when it builds"),
        ({"capabilities": "9.9"}, "builds for no compute capability 9.9: it knows 7.5, 8.0, 8.6"),
        ({"level": 6}, "level 6: give 0 to 5"),
        ({"aux_streams": -1}, "aux_streams -1: give a number of streams, or 0"),
        ({"aux_streams": "few"}, "aux_streams 'few': give a number of streams"),
        ({"refit": "yes"}, "refit 'yes': give true or false"),
        ({"hardware": "all"}, "hardware 'all': there are ampere+, same-capability"),
        ({"workspace": "a lot"}, "workspace 'a lot': give a number of bytes, such as 2GB"),
        ({"workspace": 0}, "workspace 0: give a number of bytes"),
        ({"fp16": True}, "tensorrt has no option 'fp16' for engines: there are aux_streams, capabilities"),
        ({"sizes": "batch"}, "sizes 'batch': write name=number"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(given, complaint, monkeypatch):
    monkeypatch.setattr(options, "find_driver", lambda: None)
    with pytest.raises(PlanishError) as error:
        built(product(), **given)
    assert complaint in str(error.value).replace(tensorrt_rtx.__version__.rpartition(".")[0], "1.7.1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("512 MiB", 512 << 20), ("1.5kb", 1500), ("77", 77), (77, 77)]
)
def test_bytes_are_written_as_people_do(text, size):
    assert byte_count("workspace", text) == size


# --- other versions of the API ---------------------------------------------------------------------------------------


def other(version: str, flags: str = "REFIT TF32", config: str = "", network: str = "EXPLICIT_BATCH") -> Module:
    """A TensorRT whose builder keeps what it is asked for."""
    api = SimpleNamespace(
        __version__=version,
        BuilderFlag=enum.Enum("BuilderFlag", flags),
        NetworkDefinitionCreationFlag=enum.IntEnum("NetworkDefinitionCreationFlag", network, start=0),
        IBuilderConfig=type("IBuilderConfig", (), dict.fromkeys(config.split())),
        HardwareCompatibilityLevel=enum.Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS"),
    )
    return Module(api, False)


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (other("8.6.1"), 1),
        (other("10.3.0", network="EXPLICIT_BATCH STRONGLY_TYPED"), 2),
        (other("11.0.0", network="STRONGLY_TYPED"), 0),
    ],
)
def test_networks_are_strongly_typed_where_there_are_such(module, flags):
    found: list[int] = []
    module.network(SimpleNamespace(create_network=found.append))
    assert found == [flags]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"strip_plan": True}, "TensorRT 8.5.2 has no strip_plan"),
        ({"weight_streaming": True}, "TensorRT 8.5.2 has no weight_streaming"),
        ({"version_compatible": True}, "TensorRT 8.5.2 has no version_compatible"),
        ({"level": 3}, "TensorRT 8.5.2 has no level"),
        ({"aux_streams": 1}, "TensorRT 8.5.2 has no aux_streams"),
        ({"capabilities": "8.9"}, "TensorRT 8.5.2 builds for the GPU that is there: it has no capabilities"),
        ({"hardware": "same-capability"}, "TensorRT 8.5.2 has no hardware=same-capability"),
    ],
)
def test_what_an_older_version_lacks_is_one_clear_line(given, complaint):
    assert list(refused(check_options(given), other("8.5.2"))) == [complaint]


def test_what_an_older_version_has_is_not_refused():
    module = other("8.6.1", "REFIT SPARSE_WEIGHTS VERSION_COMPATIBLE", "max_aux_streams builder_optimization_level")
    given = {"refit": True, "sparse_weights": True, "level": 3, "aux_streams": 1, "hardware": "ampere+"}
    assert not list(refused(check_options({**given, "timing_cache": "t"}), module))


def test_a_builder_that_does_not_start_is_one_line(monkeypatch):
    class Builder:
        def __init__(self, logger):
            logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING", start=0)
    logger = type("ILogger", (), {"Severity": severity})
    api = SimpleNamespace(__version__="11.0.0", Builder=Builder, ILogger=logger, BuilderFlag=enum.Enum("F", "TF32"))
    monkeypatch.setattr(building, "find_module", lambda version: Module(api, False))
    with pytest.raises(PlanishError, match=r"TensorRT 11\.0\.0 cannot build here: CUDA initialization failure"):
        build(product(), version_of("11"))


def test_layers_of_versions_without_metadata_are_told_by_name():
    tensor = SimpleNamespace(name="t", dtype=SimpleNamespace(name="HALF"))
    kind = SimpleNamespace(name="ACTIVATION")
    layer = SimpleNamespace(name="act", type=kind, num_outputs=1, num_inputs=0, get_output=lambda i: tensor)
    network = SimpleNamespace(num_layers=1, get_layer=lambda i: layer)
    (found,) = parsed_layers(network, other("8.5.2"), {"act"})
    assert (found.nodes, found.types) == (("act",), ("float16",))


def test_a_timing_cache_is_made_and_extended(tmp_path):
    path = tmp_path / "times.cache"

    class Cache:
        def __init__(self, data: bytes):
            self.data = data

        def combine(self, other: Any, ignore: bool) -> None:
            self.data += other.data

        def serialize(self) -> bytes:
            return self.data

    task = object.__new__(building._Build)
    task.options = check_options({"timing_cache": path})
    set_ones: list[Any] = []
    config = SimpleNamespace(create_timing_cache=Cache, set_timing_cache=lambda cache, ignore: set_ones.append(cache))
    with task._timing_cache(config):
        set_ones[0].data += b"a"
    assert path.read_bytes() == b"a"
    with task._timing_cache(config):
        path.write_bytes(b"another process")
        set_ones[1].data += b"b"
    assert path.read_bytes() == b"abanother process"
    with pytest.raises(RuntimeError), task._timing_cache(config):
        raise RuntimeError
    assert path.read_bytes() == b"abanother process"
    config.set_timing_cache = lambda cache, ignore: False
    with pytest.raises(PlanishError, match="it is of another GPU or TensorRT"), task._timing_cache(config):
        pass
    task.options = check_options({"timing_cache": tmp_path})
    with pytest.raises(PlanishError, match=r"timing cache .*directory"), task._timing_cache(config):
        pass


# --- which module ----------------------------------------------------------------------------------------------------


def installed(monkeypatch: Any, *names: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: object() if name in names else None)


def test_what_is_installed_is_found():
    found = find_module(RTX)
    assert found.rtx
    assert found.package() == {"module": "tensorrt_rtx", "version": tensorrt_rtx.__version__, **cuda_of_package()}
    assert is_installed(rtx=True)


def cuda_of_package() -> dict[str, str]:
    from importlib import metadata

    names = {(d.name or "").replace("-", "_").lower() for d in metadata.distributions()}
    return next(({"cuda": n} for n in ("13", "12", "11") if f"tensorrt_rtx_cu{n}" in names), {})


@pytest.mark.parametrize(
    ("variant", "there", "complaint"),
    [
        ("rtx", [], r"TensorRT for RTX is not installed: pip install 'planish\[tensorrt\]'"),
        ("11", [], r"TensorRT 11 is not installed: pip install tensorrt, on a machine .*or pip install 'planish"),
        ("11", ["tensorrt_rtx"], "tensorrt-rtx is installed: use --target tensorrt:rtx"),
    ],
)
def test_what_is_missing_is_told(variant, there, complaint, monkeypatch):
    installed(monkeypatch, *there)
    with pytest.raises(PlanishError, match=complaint):
        find_module(version_of(variant))


def test_another_version_than_is_wanted_is_told(monkeypatch):
    installed(monkeypatch, "tensorrt")
    monkeypatch.setattr(module, "_imported", lambda name: Module(SimpleNamespace(__version__="10.3.0"), False))
    assert find_module(version_of("10")).number == (10, 3)
    assert not find_module().rtx
    with pytest.raises(PlanishError, match=r"TensorRT 8\.6 is wanted and TensorRT 10\.3\.0 is installed"):
        find_module(version_of("8.6"))


def test_a_package_that_does_not_load_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PlanishError, match="tensorrt does not load: libnvinfer"):
        find_module(version_of("10"))


def test_messages_reach_whoever_listens():
    found = find_module(RTX)
    severity = found.api.ILogger.Severity
    first = found.listen()
    found.logger.log(severity.WARNING, "old")
    second = found.listen()
    for name in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        found.logger.log(getattr(severity, name), name)
    assert first.warnings == ["old", "WARNING"]
    assert second.warnings == ["WARNING"]
    assert first.errors == second.errors == ["ERROR", "INTERNAL_ERROR"]


def test_builds_one_after_the_other_are_told_apart():
    plans = [built(product()) for _ in range(3)]
    assert not any(plan.warnings for plan in plans)
    with pytest.raises(PlanishError, match="Turing"):
        built(product(), capabilities="7.5")


# --- files -----------------------------------------------------------------------------------------------------------


def quantized() -> Lowered:
    """A convolution between quantization and dequantization, and a product that is not."""
    scales = {"sx": np.float32(0.1), "zero": np.int8(0), "sw": np.full(8, 0.1, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw"], ["t"], name="conv"),
        helper.make_node("MatMul", ["t", "m"], ["y"], name="mul"),
    ]
    weights = {
        "w": rng.integers(-99, 99, (8, 4, 3, 3)).astype(np.int8),
        "m": rng.standard_normal((6, 6)).astype(np.float32),
    }
    return lowered(nodes, {"x": (1, ["batch", 4, 8, 8])}, {"y": 1}, {**scales, **weights})


def test_a_plan_is_written_with_a_manifest(tmp_path):
    path = tmp_path / "m.engine"
    plan = built(quantized(), sizes="batch=1:4:16")
    written = manifest.save(plan, path)
    assert path.read_bytes() == bytes(plan.data)
    facts = json.loads((tmp_path / "m.engine.json").read_text())
    assert facts["tensorrt"]["module"] == "tensorrt_rtx"
    assert facts["bytes"] == plan.data.nbytes
    assert facts["profiles"][0]["sizes"] == {"batch": [1, 4, 16]}
    assert (facts["products"], facts["quantized"]) == (2, ["conv"])
    assert facts["nodes"]["conv"]["op"] == "Conv"
    assert facts["inputs"] == [{"name": "x", "engine_dtype": "float", "dtype": "float", "shape": ["batch", 4, 8, 8]}]
    assert facts["source_sha256"] == plan.digest
    assert facts["notes"] == ["a note"]
    assert "for batch 1 to 16, best at 4" in written.text
    assert "1 of 2 convolutions and products are quantized" in written.text
    assert "nodes" not in written.facts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.engine", "m.engine.json"]
    again = manifest.read(path)
    assert again is not None
    assert again.inputs[0].type == plan.lowered.graph.inputs[0].type


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    plan = built(product())
    with pytest.raises(PlanishError, match="No such file or directory"):
        manifest.save(plan, tmp_path / "none" / "m.engine")
    (tmp_path / "m.engine").mkdir()
    with pytest.raises(PlanishError, match="directory"):
        manifest.save(plan, tmp_path / "m.engine")
    assert [p.name for p in tmp_path.iterdir()] == ["m.engine"]


def test_the_backend_writes_engines(tmp_path):
    graph = product().graph
    target = backend("tensorrt:rtx")
    written = target.write(graph, tmp_path / "m.engine", sizes="batch=1:4:16", progress=lambda message: None)
    assert written.facts["profiles"][0]["sizes"] == {"batch": [1, 4, 16]}
    with pytest.raises(PlanishError, match=r"m\.plan: tensorrt writes \.engine, \.onnx"):
        target.write(graph, tmp_path / "m.plan")


def test_without_a_gpu_the_lowered_graph_runs_in_onnx_runtime(monkeypatch):
    monkeypatch.setattr("planish.backends.tensorrt.engine.find_driver", lambda: None)
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"])]
    graph = lowered(nodes, {"x": (TensorProto.UINT16, [2])}, {"y": TensorProto.UINT16}).graph
    for engine in (False, "auto"):
        run = backend("tensorrt:rtx").compile(graph, engine=engine)
        (y,) = run(np.array([3, 300], np.uint16))
        assert y.dtype == np.uint16
        assert y.tolist() == [9, 90_000 % 65_536]
    with pytest.raises(PlanishError, match="engines run on a GPU, and here is none"):
        backend("tensorrt:rtx").compile(graph, engine=True)


def test_onnx_files_are_loaded_by_onnx_runtime(tmp_path):
    path: Path = tmp_path / "m.onnx"
    planish.save(product().graph, path)
    run = backend("tensorrt:rtx").load(path)
    assert run(np.zeros((2, 8), np.float32))[0].shape == (2, 64)
