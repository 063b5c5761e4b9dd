"""A CUDA driver and a TensorRT that compute on the host, to test what runs engines where there is no GPU.

The driver is faked below ctypes: its functions take what the real ones take. "Device" memory is the host's, and work is
done when it is told, but while a stream is captured.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from planish.ir import DType

NAMES = {
    DType.FLOAT: "FLOAT",
    DType.FLOAT16: "HALF",
    DType.BFLOAT16: "BF16",
    DType.INT32: "INT32",
    DType.INT64: "INT64",
    DType.BOOL: "BOOL",
    DType.INT4: "INT4",
}
DataType = enum.Enum("DataType", list(NAMES.values()))
Mode = enum.Enum("Mode", ["INPUT", "OUTPUT"])
Location = enum.Enum("Location", ["HOST", "DEVICE"])
Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)


class Library:
    """The driver's library."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.events: list[tuple[str, Any]] = []  # what was asked for, in order
        self.recorded: list[Callable[[], None]] | None = None
        self.graphs: list[list[Callable[[], None]]] = []
        self.launched = 0
        self.fail = ""  # the function that is to fail

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("cu") and name != "cuGetErrorString":
            return (lambda *_: 2) if self.fail == name else lambda *arguments: found(*arguments) or 0
        return found

    def cuInit(self, flags):
        pass

    def cuDeviceGetCount(self, out):
        out._obj.value = 1

    def cuDeviceGet(self, out, index):
        out._obj.value = index

    def cuDeviceGetName(self, out, size, device):
        out.value = b"Fake 4090"

    def cuDeviceGetAttribute(self, out, attribute, device):
        out._obj.value = {75: 8, 76: 9}[attribute]

    def cuDriverGetVersion(self, out):
        out._obj.value = 13020

    def cuGetErrorString(self, status, out):
        out._obj.value = b"out of memory"

    def cuCtxGetCurrent(self, out):
        out._obj.value = None

    def cuDevicePrimaryCtxRetain(self, out, device):
        out._obj.value = 99

    def cuCtxPushCurrent_v2(self, context):
        self.events.append(("push", context.value))

    def cuCtxPopCurrent_v2(self, out):
        self.events.append(("pop", None))

    def cuMemAlloc_v2(self, out, size):
        raw = ctypes.create_string_buffer(size.value + 256)
        out._obj.value = address = -(-ctypes.addressof(raw) // 256) * 256
        self.memory[address] = raw

    def cuMemFree_v2(self, address):
        del self.memory[address.value]

    def move(self, kind, target, source, size):
        self.events.append((kind, size.value))
        ctypes.memmove(target.value, source.value, size.value)

    def cuMemcpyHtoDAsync_v2(self, target, source, size, stream):
        self.move("to device", target, source, size)

    def cuMemcpyDtoHAsync_v2(self, target, source, size, stream):
        self.move("to host", target, source, size)

    def cuMemcpyDtoDAsync_v2(self, target, source, size, stream):
        self.move("copy", target, source, size)

    def cuStreamCreate(self, out, flags):
        out._obj.value = 7

    def cuStreamDestroy_v2(self, stream):
        self.events.append(("drop stream", stream.value))

    def cuStreamSynchronize(self, stream):
        self.events.append(("wait", stream.value))

    def cuEventCreate(self, out, flags):
        out._obj.value = 5

    def cuEventDestroy_v2(self, event):
        pass

    def cuEventRecord(self, event, stream):
        self.events.append(("record", stream.value))

    def cuStreamWaitEvent(self, stream, event, flags):
        self.events.append(("follow", stream.value))

    def cuStreamBeginCapture_v2(self, stream, mode):
        self.recorded = []

    def cuStreamEndCapture(self, stream, out):
        self.graphs.append(self.recorded or [])
        self.recorded = None
        out._obj.value = len(self.graphs)

    def cuGraphInstantiateWithFlags(self, out, graph, flags):
        out._obj.value = graph.value

    def cuGraphDestroy(self, graph):
        pass

    def cuGraphExecDestroy(self, graph):
        self.events.append(("drop graph", graph.value))

    def cuGraphLaunch(self, graph, stream):
        self.launched += 1
        for step in self.graphs[graph.value - 1]:
            step()


@dataclass
class Engine:
    """An engine: its interface, and a function of numpy arrays that stands for it.

    Attributes:
        inputs: element type and shape (-1: open) by name.
        outputs: likewise; those with sizes that depend on data have -1 behind the shapes are set, too.
        compute: the outputs for the inputs.
        profiles: by input, the smallest, usual and largest shape.
        host: the tensors in the host's memory.
    """

    inputs: dict[str, tuple[DType, tuple[int, ...]]]
    outputs: dict[str, tuple[DType, tuple[int, ...]]]
    compute: Callable[..., Any]
    profiles: list[dict[str, tuple[Any, Any, Any]]] = field(default_factory=list)
    host: tuple[str, ...] = ()
    data_dependent: tuple[str, ...] = ()
    layers: str = '{"Layers": []}'
    refittable: bool = False
    streamable_weights_size: int = 0
    weight_streaming_budget_v2: int = 0
    failing: str = ""
    library: Any = None
    log: Any = None
    runs: int = 0
    config: Any = None

    @property
    def num_io_tensors(self):
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self):
        return max(len(self.profiles), 1)

    def get_tensor_name(self, index):
        return [*self.outputs, *self.inputs][index]

    def _type(self, name):
        return {**self.inputs, **self.outputs}[name]

    def get_tensor_dtype(self, name):
        return DataType[NAMES[self._type(name)[0]]]

    def get_tensor_shape(self, name):
        return self._type(name)[1]

    def get_tensor_location(self, name):
        return Location.HOST if name in self.host else Location.DEVICE

    def get_tensor_mode(self, name):
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_profile_shape(self, name, profile):
        shape = self.inputs[name][1]
        return self.profiles[profile].get(name, (shape,) * 3) if self.profiles else (shape,) * 3

    def get_weight_streaming_automatic_budget(self):
        return 123

    def create_execution_context(self, config=None):
        self.config = config
        return Context(self)

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda _: self.layers)

    def serialize(self):
        return next(data for data, engine in ENGINES.items() if engine is self)


class Context:
    """An execution context."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {n: s for n, (_, s) in engine.inputs.items() if -1 not in s}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.profile = 0
        self.nvtx_verbosity = None

    def set_input_shape(self, name, shape):
        template = self.engine.inputs[name][1]
        fits = len(shape) == len(template) and all(t in (-1, n) for t, n in zip(template, shape, strict=True))
        if not fits:
            self.engine.log.log(Severity.ERROR, f"IExecutionContext::setInputShape: Error Code 3: {name} is {template}")
        self.shapes[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        assert address
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return True

    def infer_shapes(self):
        return [name for name in self.engine.inputs if name not in self.shapes]

    def _arrays(self):
        types = self.engine.inputs
        return {n: self._at(self.addresses[n], types[n][0], s) for n, s in self.shapes.items() if n in self.addresses}

    @staticmethod
    def _at(address, dtype, shape):
        size = int(np.prod(shape)) * dtype.numpy.itemsize
        raw = (ctypes.c_char * size).from_address(address) if size else b""
        return np.frombuffer(raw, dtype.numpy).reshape(shape)

    def get_tensor_shape(self, name):
        if name in self.engine.data_dependent:
            return (-1,)
        known = {n: a for n, a in self._arrays().items() if n in self.engine.host}  # elements that decide shapes
        ones = {n: np.ones(s, self.engine.inputs[n][0].numpy) for n, s in self.shapes.items()}
        results = self.engine.compute(**{**ones, **known})
        return np.shape(results[list(self.engine.outputs).index(name)])

    def execute_async_v3(self, stream):
        if self.engine.failing:
            self.engine.log.log(Severity.ERROR, self.engine.failing)
            return False
        if self.engine.library.recorded is not None:
            self.engine.library.recorded.append(self._run)
            return True
        return self._run()

    def _run(self):
        self.engine.runs += 1
        for (name, (dtype, _)), value in zip(
            self.engine.outputs.items(), self.engine.compute(**self._arrays()), strict=True
        ):
            result = np.ascontiguousarray(np.asarray(value, dtype.numpy))
            address = self.addresses.get(name)
            if name in self.allocators:
                address = self.allocators[name].reallocate_output(name, 0, result.nbytes, 256)
                if not address:
                    return False
                self.allocators[name].notify_shape(name, result.shape if np.ndim(value) else ())
            ctypes.memmove(address, result.ctypes.data, result.nbytes)
        return True


ENGINES: dict[bytes, Engine] = {}


class Base:
    """What the API's interfaces have in common: a constructor without arguments."""

    def __init__(self) -> None:
        pass


class ILogger(Base):
    """The logger's interface."""

    Severity = Severity


class Runtime:
    """The runtime: it knows the engines of ``ENGINES`` by their bytes."""

    def __init__(self, log: Any):
        self.log = log
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data):
        engine = ENGINES.get(bytes(data))
        if engine is None:
            self.log.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag)")
            return None
        engine.log = self.log
        return engine


def api(version: str = "10.13.3.9", **more: Any) -> Any:
    """The module ``tensorrt``."""
    return SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        IOutputAllocator=Base,
        Runtime=Runtime,
        TensorIOMode=Mode,
        TensorLocation=Location,
        ProfilingVerbosity=enum.Enum("ProfilingVerbosity", ["NONE", "DETAILED"]),
        LayerInformationFormat=enum.Enum("LayerInformationFormat", ["JSON"]),
        **more,
    )
