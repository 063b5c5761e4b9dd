"""Running engines: on a driver and a TensorRT that compute on the host; and what is said where there is no GPU."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

import planish
from planish.backends import backend
from planish.backends.base import Executable, Lowered
from planish.backends.tensorrt import cuda, engine, manifest
from planish.backends.tensorrt.arrays import NUMPY, Restated, kind_of, taken
from planish.backends.tensorrt.cuda import Driver
from planish.backends.tensorrt.engine import EngineExecutable, check_run_options
from planish.backends.tensorrt.manifest import Manifest, Port
from planish.backends.tensorrt.module import Module
from planish.ir import DType, tensor_type
from planish.ir.errors import PlanishError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fake_gpu as fake

FLOAT, HALF, BF16, INT32, INT64 = DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.INT32, DType.INT64


@pytest.fixture
def gpu(monkeypatch):
    """The library of a driver that computes on the host."""
    library = fake.Library()
    driver = Driver(library)
    for module in (engine, cuda):
        monkeypatch.setattr(module, "find_driver", lambda: driver)
    monkeypatch.setattr(engine, "find_module", lambda version=None: Module(fake.api(), False))
    monkeypatch.setattr(engine, "is_installed", lambda rtx: not rtx)
    monkeypatch.setattr(fake, "ENGINES", {})
    return library


def opened(gpu: Any, made: fake.Engine, stated: Manifest | None = None, module: Any = None, **options: Any) -> Any:
    """An executable of ``made``."""
    made.library = gpu
    data = str(len(fake.ENGINES)).encode()
    fake.ENGINES[data] = made
    module = module or Module(fake.api(), False)
    return EngineExecutable(data, stated, module, engine.find_driver(), check_run_options(options))


def doubling(**more: Any) -> fake.Engine:
    """An engine that doubles rows."""
    profiles = [{"x": ((1, 2), (2, 2), (4, 2))}, {"x": ((8, 2), (8, 2), (16, 2))}]
    given = {"inputs": {"x": (FLOAT, (-1, 2))}, "outputs": {"y": (FLOAT, (-1, 2))}, "profiles": profiles, **more}
    return fake.Engine(compute=lambda x: [x * 2], **given)


def rows(n: int, dtype: Any = np.float32) -> Any:
    return np.arange(2 * n).reshape(n, 2).astype(dtype)


def moved(gpu: Any) -> list[str]:
    return [kind for kind, _ in gpu.events if kind in ("to device", "to host", "copy")]


# --- shapes and profiles ---------------------------------------------------------------------------------------------


def test_numpy_arrays_go_in_and_come_out(gpu):
    run = opened(gpu, doubling())
    (y,) = run(rows(3))
    np.testing.assert_array_equal(y, rows(3) * 2)
    assert run({"x": rows(2)})["y"].shape == (2, 2)
    assert moved(gpu) == ["to device", "to host"] * 2


def test_the_profile_follows_the_shapes(gpu):
    run = opened(gpu, doubling())
    run(rows(4))
    assert run._context.profile == 0
    np.testing.assert_array_equal(run(rows(9))[0], rows(9) * 2)
    assert run._context.profile == 1
    assert run.report()["profile"] == 1


def test_shapes_that_no_profile_holds_are_one_clear_line(gpu):
    run = opened(gpu, doubling())
    with pytest.raises(
        PlanishError, match=r"'x' has the shape \[5, 2\]; the engine is for \[1, 2\] to \[4, 2\] or \[8"
    ):
        run(rows(5))


def test_unknown_and_missing_inputs_are_told(gpu):
    run = opened(gpu, doubling())
    with pytest.raises(PlanishError, match="no input 'z'"):
        run({"x": rows(1), "z": rows(1)})
    with pytest.raises(PlanishError, match="no value for input 'x'"):
        run({})


def test_empty_arrays_run(gpu):
    run = opened(gpu, doubling(profiles=[{"x": ((0, 2), (2, 2), (4, 2))}]))
    assert run(rows(0))[0].shape == (0, 2)
    assert run(rows(2))[0].shape == (2, 2)


def test_outputs_come_in_the_order_of_the_model(gpu):
    made = fake.Engine(
        {"a": (FLOAT, (2,)), "b": (FLOAT, (2,))},
        {"p": (FLOAT, (2,)), "q": (FLOAT, (2,))},
        lambda a, b: [a + b, a - b],
    )
    ports = {name: Port(name, tensor_type(FLOAT, 2), FLOAT) for name in "abpq"}
    run = opened(gpu, made, Manifest([ports["b"], ports["a"]], [ports["q"], ports["p"]]))
    assert [name for name, _ in run.inputs] == ["b", "a"]
    q, p = run(np.float32([1, 2]), np.float32([10, 20]))
    assert (q.tolist(), p.tolist()) == ([9, 18], [11, 22])


def test_an_input_that_the_engine_has_dropped_may_be_given(gpu):
    made = fake.Engine({"a": (FLOAT, (2,))}, {"p": (FLOAT, (2,))}, lambda a: [a])
    ports = {name: Port(name, tensor_type(FLOAT, 2), FLOAT) for name in "aup"}
    run = opened(gpu, made, Manifest([ports["u"], ports["a"]], [ports["p"]]))
    assert run(np.zeros(2, np.float32), np.float32([3, 4]))[0].tolist() == [3, 4]


def test_sizes_that_depend_on_data_are_known_after_the_run(gpu):
    made = fake.Engine({"x": (FLOAT, (4,))}, {"y": (FLOAT, (-1,))}, lambda x: [x[x > 1]], data_dependent=("y",))
    run = opened(gpu, made, cuda_graph=True)
    assert run(np.float32([0, 2, 3, 0]))[0].tolist() == [2, 3]
    assert run(np.float32([0, 0, 0, 0]))[0].tolist() == []
    assert run(np.float32([5, 6, 7, 8]))[0].tolist() == [5, 6, 7, 8]
    assert not gpu.launched


def test_elements_that_decide_shapes_stay_on_the_host(gpu):
    made = fake.Engine(
        {"x": (FLOAT, (2,)), "n": (INT64, (1,))},
        {"y": (FLOAT, (-1, 2)), "size": (INT64, (1,))},
        lambda x, n: [np.tile(x, (int(n[0]), 1)), n + 1],
        host=("n", "size"),
    )
    run = opened(gpu, made)
    y, size = run(np.float32([1, 2]), np.array([3]))
    assert y.shape == (3, 2)
    assert size.tolist() == [4]
    assert moved(gpu) == ["to device", "to host"]  # x in, y out


# --- types at the boundary -------------------------------------------------------------------------------------------


def narrowed(stated: DType, found: DType) -> tuple[fake.Engine, Manifest]:
    """An engine that increments, in a narrower type than the model states."""
    made = fake.Engine({"x": (found, (2,))}, {"y": (found, (2,))}, lambda x: [x + 1])
    ports = [Port(name, tensor_type(stated, 2), found) for name in ("x", "y")]
    return made, Manifest(ports[:1], ports[1:])


@pytest.mark.parametrize(
    ("stated", "found"), [(INT64, INT32), (DType.DOUBLE, FLOAT), (DType.UINT16, INT32), (DType.UINT64, INT64)]
)
def test_arrays_have_the_types_that_the_model_states(gpu, stated, found):
    run = opened(gpu, *narrowed(stated, found))
    (y,) = run(np.array([3, 4], stated.numpy))
    assert y.dtype == stated.numpy
    assert y.tolist() == [4, 5]
    assert run(np.array([3, 4], found.numpy))[0].tolist() == [4, 5]


@pytest.mark.parametrize(
    ("stated", "found", "number"),
    [
        (INT64, INT32, 1 << 31),
        (INT64, INT32, -(1 << 31) - 1),
        (DType.DOUBLE, FLOAT, 1e39),
        (DType.UINT64, INT64, 1 << 63),
    ],
)
def test_numbers_that_the_narrower_type_lacks_are_refused(gpu, stated, found, number):
    run = opened(gpu, *narrowed(stated, found))
    with pytest.raises(PlanishError, match=f"input 'x': TensorRT takes it as {found.text}, which has no"):
        run(np.array([0, number], stated.numpy))


def test_arrays_of_another_byte_order_are_turned(gpu):
    np.testing.assert_array_equal(opened(gpu, doubling())(rows(3, ">f4"))[0], rows(3) * 2)


def test_infinity_and_nan_pass_a_cast():
    x = np.array([np.inf, np.nan, 1e30])
    np.testing.assert_array_equal(taken("x", NUMPY, x, DType.DOUBLE, FLOAT), x.astype(np.float32))


def test_another_type_is_refused(gpu):
    with pytest.raises(PlanishError, match="input 'x' is int16, the model states int64"):
        opened(gpu, *narrowed(INT64, INT32))(np.array([3, 4], np.int16))


def test_a_lowered_model_has_the_interface_of_the_original():
    class Inner(Executable):
        inputs = (("x", tensor_type(INT32, 2)), ("z", tensor_type(FLOAT, 2)))
        outputs = ("y",)

        def run(self, inputs):
            assert inputs["x"].dtype == np.int32
            return [inputs["x"] + 1]

    stated = [("x", tensor_type(DType.UINT16, 2)), ("z", tensor_type(FLOAT, 2))]
    run = Restated(Inner(), stated, [tensor_type(DType.UINT16, 2)])
    (y,) = run(np.array([1, 65535], np.uint16), np.zeros(2, np.float32))
    assert y.dtype == np.uint16
    assert y.tolist() == [2, 0]  # as numbers of 16 bits wrap around


# --- other libraries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_come_out_where_they_go_in(gpu, dtype):
    found = {torch.float32: FLOAT, torch.float16: HALF, torch.bfloat16: BF16}[dtype]
    run = opened(gpu, fake.Engine({"x": (found, (2, 3))}, {"y": (found, (2, 3))}, lambda x: [x * 2]))
    x = torch.arange(6).reshape(3, 2).T.to(dtype)
    (y,) = run(x)
    assert isinstance(y, torch.Tensor)
    assert y.dtype is dtype
    assert torch.equal(y, x * 2)


def test_torch_tensors_are_cast_with_care(gpu):
    run = opened(gpu, *narrowed(INT64, INT32))
    assert run(torch.tensor([1, 2]))[0].tolist() == [2, 3]
    with pytest.raises(PlanishError, match="which has no 2147483648"):
        run(torch.tensor([1, 1 << 31]))


@pytest.fixture
def cupy(monkeypatch):
    """CuPy on the fake device: arrays in the host's memory, aligned as the device's are."""

    class Array:
        def __init__(self, array):
            self.raw = ctypes.create_string_buffer(array.nbytes + 512)
            start = -(-ctypes.addressof(self.raw) // 256) * 256
            self.inner = np.frombuffer((ctypes.c_char * array.nbytes).from_address(start), array.dtype)
            self.inner = self.inner.reshape(array.shape)
            ctypes.memmove(start, np.ascontiguousarray(array).ctypes.data, array.nbytes)
            self.data = SimpleNamespace(ptr=start)
            self.shape, self.dtype = array.shape, array.dtype

        def reshape(self, shape):
            return self

        def astype(self, dtype):
            return Array(self.inner.astype(dtype))

        def __getitem__(self, index):
            return self.inner[index]

    Array.__module__ = "cupy"
    module = SimpleNamespace(
        empty=lambda shape, dtype: Array(np.zeros(shape, dtype)),
        ascontiguousarray=lambda a: a,
        asnumpy=lambda a: a.inner,
        asarray=lambda a: Array(np.asarray(a)),
        isfinite=lambda a: np.isfinite(a.inner),
        cuda=SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=42)),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_arrays_on_the_device_are_not_copied(gpu, cupy):
    run = opened(gpu, doubling())
    (y,) = run(cupy.asarray(rows(3)))
    assert type(y).__module__ == "cupy"
    np.testing.assert_array_equal(y.inner, rows(3) * 2)
    assert not moved(gpu)


def test_runs_follow_the_stream_of_the_arrays_and_the_other_way_round(gpu, cupy):
    run = opened(gpu, doubling())
    gpu.events.clear()
    run(cupy.asarray(rows(3)))
    ordered = [event for event in gpu.events if event[0] in ("record", "follow", "wait")]
    assert ordered == [("record", 42), ("follow", 7), ("record", 7), ("follow", 42)]


def test_a_stream_of_the_users_is_used_as_it_is(gpu, cupy):
    run = opened(gpu, doubling(), stream=11)
    gpu.events.clear()
    run(cupy.asarray(rows(3)))
    assert not [event for event in gpu.events if event[0] in ("record", "follow", "wait")]


def test_arrays_on_the_device_are_cast_there(gpu, cupy):
    run = opened(gpu, *narrowed(INT64, INT32))
    assert run(cupy.asarray(np.array([1, 2])))[0].inner.tolist() == [2, 3]
    with pytest.raises(PlanishError, match="which has no"):
        run(cupy.asarray(np.array([1, 1 << 31])))


def test_an_address_that_is_not_aligned_is_copied(gpu, cupy):
    run = opened(gpu, doubling())
    x = cupy.asarray(rows(3))
    x.data.ptr += 8
    (y,) = run(x)
    assert moved(gpu) == ["copy"]
    np.testing.assert_array_equal(y.inner[0], [4, 6])


def test_foreign_arrays_on_the_device_need_torch_or_cupy(monkeypatch):
    class Foreign:
        __cuda_array_interface__ = None

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlanishError, match="Foreign lies on the GPU, where only torch or cupy can take it"):
        kind_of(Foreign())


# --- recorded runs ---------------------------------------------------------------------------------------------------


def test_recorded_runs_are_replayed_with_new_numbers(gpu):
    run = opened(gpu, doubling(), cuda_graph=True)
    for factor in (1, 3, 5, 7):
        np.testing.assert_array_equal(run(rows(3) * factor)[0], rows(3) * factor * 2)
    assert (len(gpu.graphs), gpu.launched) == (1, 2)  # the second run was recorded


def test_other_shapes_start_anew(gpu):
    run = opened(gpu, doubling(), cuda_graph=True)
    for n in (4, 4, 4, 2, 4, 2, 9, 9, 9):
        np.testing.assert_array_equal(run(rows(n))[0], rows(n) * 2)
    assert (len(gpu.graphs), gpu.launched) == (2, 2)
    assert ("drop graph", 1) in gpu.events


def test_other_elements_that_decide_shapes_start_anew(gpu):
    made = fake.Engine(
        {"x": (FLOAT, (2,)), "n": (INT64, (1,))},
        {"y": (FLOAT, (-1, 2))},
        lambda x, n: [np.tile(x, (int(n[0]), 1))],
        host=("n",),
    )
    run = opened(gpu, made, cuda_graph=True)
    for n in (3, 3, 3, 2, 2, 2):
        assert run(np.float32([1, 2]), np.array([n]))[0].shape == (n, 2)
    assert (len(gpu.graphs), gpu.launched) == (2, 2)


def test_what_cannot_be_recorded_runs_all_the_same(gpu):
    run = opened(gpu, doubling(), cuda_graph=True)
    gpu.fail = "cuGraphInstantiateWithFlags"
    for _ in range(3):
        np.testing.assert_array_equal(run(rows(3))[0], rows(3) * 2)
    assert not gpu.launched


def test_arrays_on_the_device_are_copied_for_recorded_runs(gpu, cupy):
    run = opened(gpu, doubling(), cuda_graph=True)
    for factor in (1, 2, 3):
        (y,) = run(cupy.asarray(rows(3) * factor))
        np.testing.assert_array_equal(y.inner, rows(3) * factor * 2)
    assert moved(gpu) == ["copy"] * 6
    assert gpu.launched == 1


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_run_says_what_tensorrt_says(gpu):
    run = opened(gpu, doubling(failing="IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal access)"))
    with pytest.raises(PlanishError, match=r"TensorRT 10\.13\.3: an illegal access"):
        run(rows(1))


def test_memory_that_is_not_there_is_an_error(gpu):
    run = opened(gpu, doubling())
    gpu.fail = "cuMemAlloc_v2"
    with pytest.raises(PlanishError, match=r"CUDA: out of memory \(cuMemAlloc_v2\)"):
        run(rows(1))


def test_memory_that_is_not_there_for_an_output_of_unknown_size_is_an_error(gpu):
    made = fake.Engine({}, {"y": (FLOAT, (-1,))}, lambda: [np.float32([1, 2])], data_dependent=("y",))
    run = opened(gpu, made)
    gpu.fail = "cuMemAlloc_v2"
    with pytest.raises(PlanishError, match="out of memory"):
        run()


def test_packed_inputs_are_refused(gpu):
    with pytest.raises(PlanishError, match="'x' is int4"):
        opened(gpu, fake.Engine({"x": (DType.INT4, (2,))}, {}, lambda x: []))


def test_memory_is_given_back(gpu):
    run = opened(gpu, doubling(), cuda_graph=True)
    run(rows(2))
    assert gpu.memory
    del run
    gc.collect()
    assert not gpu.memory
    assert ("drop stream", 7) in gpu.events


def test_a_closed_engine_says_so(gpu):
    run = opened(gpu, doubling())
    run.close()
    with pytest.raises(PlanishError, match="the engine was closed"):
        run(rows(1))


# --- options ---------------------------------------------------------------------------------------------------------


def test_unknown_options_are_refused():
    with pytest.raises(PlanishError, match="no option 'graph' for running: there are cuda_graph, stream"):
        check_run_options({"graph": True})
    with pytest.raises(PlanishError, match="specialization 'now': there are lazy, eager, none"):
        check_run_options({"specialization": "now"})
    with pytest.raises(PlanishError, match="weight_budget 'much'"):
        check_run_options({"weight_budget": "much"})


@pytest.mark.parametrize(("budget", "size"), [("2GB", 2_000_000_000), (77, 77), ("auto", 123)])
def test_a_weight_budget_is_set(gpu, budget, size):
    made = doubling(streamable_weights_size=1000)
    opened(gpu, made, weight_budget=budget)
    assert made.weight_streaming_budget_v2 == size


def test_a_weight_budget_needs_an_engine_that_streams(gpu):
    with pytest.raises(PlanishError, match="built with weight_streaming"):
        opened(gpu, doubling(), weight_budget="auto")


def test_options_of_tensorrt_for_rtx_are_refused_elsewhere(gpu):
    with pytest.raises(PlanishError, match=r"are for TensorRT for RTX, not for TensorRT 10\.13\.3"):
        opened(gpu, doubling(), specialization="lazy")


def test_an_engine_that_brings_code_must_be_trusted(gpu):
    stated = Manifest([], [], {"options": {"version_compatible": True}})
    with pytest.raises(PlanishError, match="trusted=True"):
        opened(gpu, doubling(), stated)
    assert opened(gpu, doubling(), stated, trusted=True)._runtime.engine_host_code_allowed


def rtx(gpu: Any, cache: Any) -> Module:
    """TensorRT for RTX."""
    strategies = {"CudaGraphStrategy": ["DISABLED", "WHOLE_GRAPH_CAPTURE"]}
    strategies["DynamicShapesKernelSpecializationStrategy"] = ["LAZY", "EAGER", "NONE"]
    made = {name: fake.enum.Enum(name, values) for name, values in strategies.items()}
    config = SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda c: None)
    fake.Engine.create_runtime_config = lambda self: config
    return Module(fake.api("1.7.1.1", **made), True)


def test_tensorrt_for_rtx_keeps_what_it_compiles(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(fake.Engine, "create_runtime_config", None, raising=False)
    loaded: list[bytes] = []
    cache = SimpleNamespace(deserialize=loaded.append, serialize=lambda: b"kernels")
    path = tmp_path / "kernels.cache"
    made = doubling()
    options = {"runtime_cache": path, "cuda_graph": True, "specialization": "eager"}
    run = opened(gpu, made, module=rtx(gpu, cache), **options)
    assert made.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert made.config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    np.testing.assert_array_equal(run(rows(3))[0], rows(3) * 2)
    assert not gpu.graphs  # it records runs itself
    run.close()
    assert path.read_bytes() == b"kernels"
    opened(gpu, doubling(), module=rtx(gpu, cache), runtime_cache=path)
    assert loaded == [b"kernels"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_engine_is_saved_and_loaded_with_its_manifest(gpu, tmp_path):
    path = tmp_path / "m.engine"
    made, stated = narrowed(INT64, INT32)
    stated.facts = {"tensorrt": {"module": "tensorrt", "version": "10.13.3.9"}, "profiles": []}
    stated.nodes = {"inc": {"op": "Add"}}
    opened(gpu, made, stated).save(path)
    again = engine.load(path)
    assert again.inputs == [("x", tensor_type(INT64, 2))]
    assert again.manifest.nodes == {"inc": {"op": "Add"}}
    assert again(np.array([1, 2]))[0].dtype == np.int64
    assert json.loads(manifest.manifest_path(path).read_text())["tensorrt"]["version"] == "10.13.3.9"


def test_an_engine_without_a_manifest_runs(gpu, tmp_path):
    path = tmp_path / "m.engine"
    made = doubling(library=gpu)
    fake.ENGINES[b"engine"] = made
    path.write_bytes(b"engine")
    run = engine.load(path)
    assert [name for name, _ in run.inputs] == ["x"]
    np.testing.assert_array_equal(run(rows(2))[0], rows(2) * 2)


def test_a_manifest_of_another_engine_is_told(gpu, tmp_path):
    path = tmp_path / "m.engine"
    opened(gpu, *narrowed(INT64, INT32)).save(path)
    path.write_bytes(b"another engine")
    with pytest.raises(PlanishError, match=r"m\.engine\.json is of another engine"):
        engine.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "planish-tensorrt", "version": 99}', "[" * 100_000])
def test_a_damaged_manifest_is_one_line(gpu, tmp_path, text):
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    manifest.manifest_path(path).write_text(text)
    with pytest.raises(PlanishError, match=r"m\.engine\.json: no manifest, or damaged: "):
        engine.load(path)


def test_an_engine_runs_with_the_module_that_built_it(gpu, tmp_path, monkeypatch):
    path = tmp_path / "m.engine"
    stated = Manifest([], [], {"tensorrt": {"module": "tensorrt_rtx", "version": "1.7.1"}})
    opened(gpu, doubling(), stated).save(path)
    monkeypatch.setattr(engine, "is_installed", lambda rtx: not rtx)
    with pytest.raises(PlanishError, match=r"an engine of tensorrt_rtx 1\.7\.1, which is not installed"):
        engine.load(path)
    monkeypatch.setattr(engine, "is_installed", lambda rtx: True)
    wanted: list[Any] = []
    monkeypatch.setattr(engine, "find_module", lambda v: wanted.append(v) or Module(fake.api("1.7.1"), True))
    engine.load(path)
    assert wanted[0].rtx


def test_a_damaged_engine_says_what_differs(gpu, tmp_path):
    path = tmp_path / "m.engine"
    facts = {"tensorrt": {"module": "tensorrt", "version": "10.3.0"}, "gpu": {"name": "A100", "capability": "8.0"}}
    opened(gpu, doubling(), Manifest([], [], facts)).save(path)
    fake.ENGINES.clear()
    with pytest.raises(PlanishError) as error:
        engine.load(path)
    text = str(error.value)
    assert "magic tag" in text
    assert "it was built with tensorrt 10.3.0; it was built on A100 (8.0), and here is Fake 4090" in text


@pytest.mark.parametrize("content", [b"", None])
def test_an_engine_that_is_not_there_is_one_line(gpu, tmp_path, content):
    path = tmp_path / "m.engine"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanishError, match=r"m\.engine"):
        engine.load(path)


def test_an_engine_without_weights_must_be_refitted(gpu):
    given: dict[str, bytes] = {}

    class Refitter:
        def __init__(self, *_):
            self.refit_cuda_engine = lambda: bool(given)

    class Parser(Refitter):
        def load_model_proto(self, model):
            return True

        def load_initializer(self, name, address, size):
            given[name] = ctypes.string_at(address, size)
            return True

        def refit_model_proto(self):
            return True

    weights = np.arange(512, dtype=np.float32)
    with_weights = planish.load(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("Add", ["x", "w"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", 1, [512])],
                [helper.make_tensor_value_info("y", 1, [512])],
                [numpy_helper.from_array(weights, "w")],
            )
        )
    )
    module = Module(fake.api(Refitter=Refitter, OnnxParserRefitter=Parser), False)
    run = opened(gpu, doubling(refittable=True), Manifest([], [], {"options": {"strip_plan": True}}), module)
    with pytest.raises(PlanishError, match="built with strip_plan, without weights: refit it first"):
        run.run({})
    run.refit(Lowered(with_weights))
    assert given == {"w": weights.tobytes()}
    with pytest.raises(PlanishError, match="no value for input 'x'"):
        run.run({})


def test_an_engine_that_keeps_its_weights_is_not_refitted(gpu):
    with pytest.raises(PlanishError, match="build it with refit=True or strip_plan=True"):
        opened(gpu, doubling()).refit(None)


# --- inspecting ------------------------------------------------------------------------------------------------------


def test_the_layers_of_an_engine_are_joined_with_its_nodes(gpu):
    layers = {"Layers": [{"Name": "conv + relu", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: conv]"}]}
    nodes = {"conv": {"op": "Conv", "origin": "net.py:3"}}
    found = opened(gpu, doubling(layers=json.dumps(layers)), Manifest([], [], {}, nodes)).inspect()
    assert found.layer_of("conv").kind == "CaskConvolution"
    assert "net.py:3" in str(found)


# --- where there is no GPU -------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch):
    """A machine without a driver."""
    for module in (engine, cuda):
        monkeypatch.setattr(module, "find_driver", lambda: None)
    monkeypatch.setattr(engine, "no_driver", lambda: "no NVIDIA driver")


def test_without_a_gpu_one_line_says_so(nowhere, tmp_path):
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    for action in (lambda: engine.load(path), lambda: backend("tensorrt:rtx").load(path)):
        with pytest.raises(PlanishError, match="engines run on a GPU, and here is none: no NVIDIA driver"):
            action()


@pytest.mark.parametrize(
    ("major", "minor", "runs"), [(7, 5, True), (8, 6, True), (8, 7, False), (9, 0, False), (12, 1, True)]
)
def test_tensorrt_for_rtx_has_engines_for_some_gpus_only(gpu, monkeypatch, major, minor, runs):
    attributes = {75: major, 76: minor}
    monkeypatch.setattr(
        fake.Library,
        "cuDeviceGetAttribute",
        lambda self, out, attribute, device: setattr(out._obj, "value", attributes[attribute]),
    )
    assert engine.runnable() == ""  # that is TensorRT, which has none of its own to say
    monkeypatch.setattr(engine, "find_module", lambda version=None: Module(fake.api("1.7.1"), True))
    reason = engine.runnable()
    assert ("8.0, 8.6, 8.9, 12.0 and later, and here is Fake 4090" in reason) != runs


def test_a_library_without_devices_is_no_driver(monkeypatch):
    library = fake.Library()
    monkeypatch.setattr(fake.Library, "cuDeviceGetCount", lambda self, out: None)
    with pytest.raises(PlanishError, match="no GPU"):
        Driver(library)


def test_the_driver_says_what_it_drives(gpu):
    found = Driver(gpu).gpu
    assert (found.name, found.capability, found.cuda) == ("Fake 4090", "8.9", "13.2")


def test_what_numpy_takes_is_an_array_of_numpys():
    kind, value = kind_of([[1.0, 2.0]])
    assert kind is NUMPY
    assert value.shape == (1, 2)
    assert kind.dtype(np.zeros(2, ml_dtypes.bfloat16)) is BF16
