"""Running engines where there is a driver: arrays of numpy, PyTorch or CuPy in, arrays of the same kind out.

Arrays on the GPU are read and written where they are, in the order of their library's current stream; others are
copied.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...ir import Graph
from ...ir.convert.proto import to_proto
from ...ir.dims import fresh
from ...ir.errors import PlanishError
from ...ir.types import TensorType
from ...passes.files import replacing
from ..base import Executable, Lowered
from . import manifest as manifests
from .arrays import NUMPY, Kind, dtype_of, kind_of, taken
from .build import Weights, build
from .cuda import Buffer, Driver, find_driver, no_driver
from .inspector import Inspection, inspect_json
from .manifest import Manifest, Port
from .messages import first, telling
from .module import RTX_GPUS, Module, find_module, is_installed
from .options import byte_count, check_options
from .versions import Version, version_of

__all__ = ["EngineExecutable", "RunOptions", "check_run_options", "compile_engine", "load", "runnable"]

_SPECIALIZATIONS = ("lazy", "eager", "none")
_ALIGNMENT = 256  # bytes, of addresses on the GPU


@dataclass(frozen=True)
class RunOptions:
    """How to run an engine.

    Attributes:
        cuda_graph: record the second run of the same shapes and replay it from then on, which saves the time of
            launching kernels; other shapes start anew.
        stream: the CUDA stream to run in, as a number; None for one of its own, in the order of the arrays'.
        weight_budget: of a weight-streaming engine, how much of its weights to keep on the GPU: bytes, text such as
            ``2GB``, or ``auto``.
        trusted: whether to load an engine that brings code of its own (one that was built version_compatible).
        runtime_cache: TensorRT for RTX: a file that keeps the kernels that it compiles at the first runs.
        specialization: TensorRT for RTX: when to compile kernels for the very shapes in use: lazy, eager, none.
    """

    cuda_graph: bool = False
    stream: int | None = None
    weight_budget: int | str | None = None
    trusted: bool = False
    runtime_cache: str | os.PathLike[str] | None = None
    specialization: str = ""


def check_run_options(given: Mapping[str, Any]) -> RunOptions:
    """``given`` as options.

    Raises:
        PlanishError: there is no such option, or it has no such value.
    """
    known = [f.name for f in fields(RunOptions)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise PlanishError(f"tensorrt has no option {unknown[0]!r} for running: there are {', '.join(known)}")
    options = RunOptions(**given)
    if options.specialization and options.specialization not in _SPECIALIZATIONS:
        raise PlanishError(f"specialization {options.specialization!r}: there are {', '.join(_SPECIALIZATIONS)}")
    if options.weight_budget not in (None, "auto"):
        byte_count("weight_budget", options.weight_budget)
    return options


def runnable() -> str:
    """Why no engine runs here, in one line, or ""."""
    driver = find_driver()
    if driver is None:
        return f"engines run on a GPU, and here is none: {no_driver()}"
    try:
        module = find_module()
    except PlanishError as error:
        return str(error)
    if not module.runs_on(driver.gpu.capability):
        return f"{module} runs on {RTX_GPUS}, and here is {driver.gpu}: pip install tensorrt"
    return ""


def compile_engine(
    lowered: Lowered,
    original: Graph,
    version: Version,
    options: Mapping[str, Any],
    progress: Callable[[str], None] | None = None,
) -> EngineExecutable:
    """Build an engine, and open it.

    Args:
        lowered: the graph, lowered for ``version``.
        original: the graph before that.
        version: the TensorRT.
        options: those of `BuildOptions` and `RunOptions` together.
        progress: is told what is going on.

    Raises:
        PlanishError: it cannot be built, or does not run here.
    """
    own = {f.name for f in fields(RunOptions)}
    running = check_run_options({n: v for n, v in options.items() if n in own})
    building = check_options({n: v for n, v in options.items() if n not in own})
    driver = _driver()
    plan = build(lowered, version, building, progress=progress)
    return EngineExecutable(plan.data, manifests.manifest_of(plan, original), plan.module, driver, running)


def load(path: str | os.PathLike[str], **given: Any) -> EngineExecutable:
    """The engine in a file, with or without a manifest beside it; for the options see `RunOptions`.

    Raises:
        PlanishError: it cannot be read, or does not run here.
    """
    options = check_run_options(given)
    found = manifests.read(path)
    if not Path(path).exists():
        raise PlanishError(f"no such file: {os.fspath(path)}")
    driver = _driver()
    module = _module_for(path, dict(found.facts.get("tensorrt", {})) if found is not None else {})
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return EngineExecutable(data, found, module, driver, options)
    except (OSError, ValueError) as error:
        raise PlanishError(f"{os.fspath(path)}: {' '.join(str(error).split())}") from error


def _module_for(path: str | os.PathLike[str], built: Mapping[str, str]) -> Module:
    """The module that runs what ``built`` has built: TensorRT and that for RTX do not read each other's engines."""
    rtx = None if not built else built["module"] == "tensorrt_rtx"
    if rtx is not None and not is_installed(rtx):
        raise PlanishError(
            f"{os.fspath(path)}: an engine of {built['module']} {built['version']}, which is not installed"
        )
    return find_module(version_of("rtx") if rtx else None)


def _driver() -> Driver:
    driver = find_driver()
    if driver is None:
        raise PlanishError(runnable())
    return driver


# --- one engine ------------------------------------------------------------------------------------------------------


class _Tensor:
    """An input or output of an engine.

    Attributes:
        port: its name, what the model states of it, and the type that the engine has.
        on_host: whether it lies in the host's memory, since it decides shapes.
        buffer: memory of its own on the device.
    """

    def __init__(self, port: Port, on_host: bool, driver: Driver):
        self.port = port
        self.name = port.name
        self.dtype = port.taken
        self.on_host = on_host
        self.buffer = Buffer(driver)

    def nbytes(self, shape: Sequence[int]) -> int:
        """The bytes of its elements."""
        return int(np.prod(shape, dtype=np.int64)) * self.dtype.bits // 8


@dataclass
class _Given:
    """The value for an input, in the engine's type and laid out row by row."""

    tensor: _Tensor
    kind: Kind
    value: Any
    shape: tuple[int, ...]


class EngineExecutable(Executable):
    """A deserialized engine.

    Args:
        data: the serialized engine.
        manifest: what is known of it, if anything.
        module: the TensorRT to run it with.
        driver: the driver.
        options: how to run it.

    Raises:
        PlanishError: it does not run here; the message says why.
    """

    def __init__(
        self, data: Any, manifest: Manifest | None, module: Module, driver: Driver, options: RunOptions | None = None
    ):
        self.module = module
        self.driver = driver
        self.options = options or RunOptions()
        self._facts = dict(manifest.facts) if manifest is not None else {}
        self._lock = threading.Lock()
        self._log = module.listen()
        module.load_plugins()
        with driver.current():
            self._engine = self._deserialized(data)
            self._set_weight_budget()
            self._context, self._cache = self._make_context()
            self._own_stream = driver.make_stream()
        self._stream = self._own_stream if self.options.stream is None else self.options.stream
        self._inputs, self._outputs = self._tensors(manifest)
        nodes = manifest.nodes if manifest is not None else {}
        self.manifest = Manifest([t.port for t in self._inputs], [t.port for t in self._outputs], self._facts, nodes)
        stated = manifest.inputs if manifest is not None else self.manifest.inputs
        self.inputs = [(p.name, p.type) for p in stated]  # the engine has none that nothing depends on
        self.outputs = [t.name for t in self._outputs]
        self._profiles = [self._ranges(i) for i in range(self._engine.num_optimization_profiles)]
        self._profile = 0
        self._held: list[Any] = []  # what the engine reads until the next run
        self._allocators: dict[str, Any] = {}
        self._graphs: list[int] = []  # the recorded run, if there is one
        self._key: Any = None  # the shapes of the last run, and what decides others
        self._empty = bool(dict(self._facts.get("options", {})).get("strip_plan"))
        buffers = [t.buffer for t in (*self._inputs, *self._outputs)]
        self._finalizer = weakref.finalize(self, _release, driver, buffers, self._graphs, self._own_stream)

    # opening

    def _deserialized(self, data: Any) -> Any:
        if dict(self._facts.get("options", {})).get("version_compatible") and not self.options.trusted:
            raise PlanishError("the engine brings code of its own, for later versions: load it with trusted=True")
        self._runtime = self.module.make("Runtime")
        if self._runtime is None:
            raise PlanishError(f"{self.module} does not start: {self._complaint()}")
        if self.options.trusted and hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise PlanishError(f"{self.module} does not take the engine: {self._complaint()}{self._mismatch()}")
        return engine

    def _complaint(self) -> str:
        return first(telling(self._log.errors)) or "it does not say why"

    def _mismatch(self) -> str:
        """What differs between where the engine was built and here."""
        built = dict(self._facts.get("tensorrt", {}))
        gpu = self._facts.get("gpu") or {}
        here = self.driver.gpu
        found = []
        if built and built["version"] != self.module.version:
            found.append(f"it was built with {built['module']} {built['version']}")
        if gpu and not self.module.rtx and gpu["capability"] != here.capability:
            found.append(f"it was built on {gpu['name']} ({gpu['capability']}), and here is {here}")
        return "; " + "; ".join(found) if found else ""

    def _set_weight_budget(self) -> None:
        budget = self.options.weight_budget
        if budget is None:
            return
        if not hasattr(self._engine, "weight_streaming_budget_v2"):
            raise PlanishError(f"{self.module} has no weight_budget")
        if not self._engine.streamable_weights_size:
            raise PlanishError("weight_budget is for engines that were built with weight_streaming")
        automatic = budget == "auto"
        size = (
            self._engine.get_weight_streaming_automatic_budget() if automatic else byte_count("weight_budget", budget)
        )
        self._engine.weight_streaming_budget_v2 = size

    def _make_context(self) -> tuple[Any, Any]:
        """The context, and TensorRT for RTX's cache of compiled kernels if one is wanted."""
        options, api, cache = self.options, self.module.api, None
        if self.module.rtx and hasattr(self._engine, "create_runtime_config"):
            config = self._engine.create_runtime_config()
            if options.cuda_graph:
                config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if options.specialization:
                strategies = api.DynamicShapesKernelSpecializationStrategy
                config.dynamic_shapes_kernel_specialization_strategy = getattr(
                    strategies, options.specialization.upper()
                )
            if options.runtime_cache is not None:
                cache = config.create_runtime_cache()
                if Path(options.runtime_cache).exists():
                    cache.deserialize(
                        Path(options.runtime_cache).read_bytes()
                    )  # refused if it does not fit: it is redone
                config.set_runtime_cache(cache)
            context = self._engine.create_execution_context(config)
        else:
            if options.specialization or options.runtime_cache is not None:
                raise PlanishError(f"specialization and runtime_cache are for TensorRT for RTX, not for {self.module}")
            context = self._engine.create_execution_context()
        if context is None:
            raise PlanishError(f"{self.module} cannot run the engine: {self._complaint()}")
        if hasattr(context, "nvtx_verbosity"):
            context.nvtx_verbosity = api.ProfilingVerbosity.NONE  # names for profilers cost time in every run
        return context, cache

    def _tensors(self, manifest: Manifest | None) -> tuple[list[_Tensor], list[_Tensor]]:
        api, engine = self.module.api, self._engine
        ports = {p.name: p for p in (*manifest.inputs, *manifest.outputs)} if manifest is not None else {}
        inputs: list[_Tensor] = []
        outputs: list[_Tensor] = []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            dtype = self.module.dtype(engine.get_tensor_dtype(name))
            if dtype.bits < 8:
                raise PlanishError(f"{name!r} is {dtype.text}: planish passes no packed types to engines")
            shape = tuple(fresh() if d < 0 else int(d) for d in engine.get_tensor_shape(name))
            port = ports.get(name, Port(name, TensorType(dtype, shape), dtype))
            on_host = engine.get_tensor_location(name) == api.TensorLocation.HOST
            is_input = engine.get_tensor_mode(name) == api.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(_Tensor(replace(port, taken=dtype), on_host, self.driver))
        order = {name: i for i, name in enumerate(ports)}  # of the model; the engine may have another
        for found in (inputs, outputs):
            found.sort(key=lambda t: order.get(t.name, len(order)))
        return inputs, outputs

    def _ranges(self, profile: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The smallest and the largest shape of each input."""
        found = {}
        for tensor in self._inputs:
            shape = tuple(self._engine.get_tensor_shape(tensor.name))
            least, most = shape, shape
            if any(d < 0 for d in shape):
                least, _, most = map(tuple, self._engine.get_tensor_profile_shape(tensor.name, profile))
            found[tensor.name] = least, most
        return found

    # running

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order: on the GPU if an input is, and then in the order of its library's stream."""
        if not self._finalizer.alive:
            raise PlanishError("the engine was closed")
        if self._empty:
            raise PlanishError("the engine was built with strip_plan, without weights: refit it first")
        unknown = sorted(set(inputs) - {name for name, _ in self.inputs})
        if unknown:
            raise PlanishError(f"the model has no input {unknown[0]!r}")
        with self._lock, self.driver.current():
            return self._run([self._given(tensor, inputs) for tensor in self._inputs])

    def _given(self, tensor: _Tensor, inputs: Mapping[str, Any]) -> _Given:
        if tensor.name not in inputs or inputs[tensor.name] is None:
            raise PlanishError(f"no value for input {tensor.name!r}")
        kind, value = kind_of(inputs[tensor.name])
        value = taken(tensor.name, kind, value, dtype_of(tensor.port.type), tensor.dtype)
        if tensor.on_host and kind.on_device:
            kind, value = NUMPY, kind.numpy(value)
        return _Given(tensor, kind, kind.contiguous(value), kind.shape(value))

    def _run(self, given: list[_Given]) -> list[Any]:
        kinds = [g.kind for g in given]
        home = next((k for k in kinds if k.on_device), kinds[0] if kinds else NUMPY)
        theirs = {k.stream() for k in kinds if k.on_device} if self.options.stream is None else set()
        for stream in theirs:
            self.driver.follow(self._stream, stream)
        self._log.errors.clear()
        self._choose_profile(given)
        self._held = [self._bind(g) for g in given]
        self._check_shapes()
        results = [self._result(tensor, home) for tensor in self._outputs]
        self._execute(given)
        outputs = [self._fetched(tensor, home, value) for tensor, value in zip(self._outputs, results, strict=True)]
        if not all(k.on_device for k in (*kinds, home)) or any(t.on_host for t in self._outputs):
            self.driver.wait(self._stream)
        for stream in theirs:
            self.driver.follow(stream, self._stream)
        return [self._stated(tensor, home, value) for tensor, value in zip(self._outputs, outputs, strict=True)]

    @property
    def _replays(self) -> bool:
        """Whether runs are recorded here, and not by TensorRT for RTX itself."""
        return self.options.cuda_graph and not self.module.rtx

    def _choose_profile(self, given: list[_Given]) -> None:
        order = [self._profile, *(i for i in range(len(self._profiles)) if i != self._profile)]
        found = next((i for i in order if i < len(self._profiles) and _fits(given, self._profiles[i])), None)
        if found is None and self._profiles:
            raise PlanishError(self._misfit(given))
        if found is not None and found != self._profile:
            if not self._context.set_optimization_profile_async(found, self._stream):
                raise PlanishError(f"{self.module}: {self._complaint()}")
            self._profile = found

    def _misfit(self, given: list[_Given]) -> str:
        for g in given:
            ranges = [r[g.tensor.name] for r in self._profiles]
            if not any(_within(g.shape, *r) for r in ranges):
                takes = " or ".join(f"{list(least)} to {list(most)}" for least, most in ranges)
                return f"input {g.tensor.name!r} has the shape {list(g.shape)}; the engine is for {takes} (see sizes)"
        return "the engine has no profile for these shapes together (see sizes)"

    def _bind(self, g: _Given) -> Any:
        """Tell the engine the shape and the address of an input; returns what must stay until it has run."""
        tensor, context = g.tensor, self._context
        if not context.set_input_shape(tensor.name, g.shape):
            raise PlanishError(f"input {tensor.name!r} has the shape {list(g.shape)}: {self._complaint()}")
        size = tensor.nbytes(g.shape)
        if tensor.on_host:
            address = g.kind.address(g.value) if size else tensor.buffer.reserve(1)
        elif g.kind.on_device and not self._replays and size and g.kind.address(g.value) % _ALIGNMENT == 0:
            address = g.kind.address(g.value)
        else:
            address = self._reserve(tensor, size)
            move = self.driver.copy if g.kind.on_device else self.driver.to_device
            if size:
                move(address, g.kind.address(g.value), size, self._stream)
        context.set_tensor_address(tensor.name, address)
        return g.value

    def _reserve(self, tensor: _Tensor, size: int) -> int:
        """The tensor's own memory; where it moves, recorded runs are void."""
        before = tensor.buffer.address
        address = tensor.buffer.reserve(size)
        if address != before:
            self._forget_graphs()
        return address

    def _check_shapes(self) -> None:
        if not hasattr(self._context, "infer_shapes"):
            return
        try:
            open_ones = self._context.infer_shapes()
        except RuntimeError as error:
            raise PlanishError(f"{self.module}: the shapes do not fit together: {self._complaint()}") from error
        if open_ones:
            raise PlanishError(f"{self.module}: shapes of {', '.join(open_ones)} are open")

    def _result(self, tensor: _Tensor, home: Kind) -> Any:
        """Give an output a place: an array, or None where the result is copied from memory of its own."""
        context = self._context
        shape = tuple(int(d) for d in context.get_tensor_shape(tensor.name))
        if any(d < 0 for d in shape):
            self._allocator(tensor)
            return None
        if tensor.on_host:
            value = NUMPY.empty(shape, tensor.dtype)
            context.set_tensor_address(tensor.name, NUMPY.address(value) or tensor.buffer.reserve(1))
            return value
        size = tensor.nbytes(shape)
        if home.on_device and size and not self._replays:
            value = home.empty(shape, tensor.dtype)
            context.set_tensor_address(tensor.name, home.address(value))
            return value
        context.set_tensor_address(tensor.name, self._reserve(tensor, size))
        return None

    def _allocator(self, tensor: _Tensor) -> None:
        """Let the engine ask for memory when it knows the size of ``tensor``."""
        if tensor.name not in self._allocators:
            self._allocators[tensor.name] = _make_allocator(self.module, tensor.buffer)
            self._context.set_output_allocator(tensor.name, self._allocators[tensor.name])
        self._allocators[tensor.name].shape = None

    def _execute(self, given: list[_Given]) -> None:
        if not self._replays or self._allocators:
            self._enqueue()
            return
        key = (self._profile, *(g.shape for g in given), *(g.value.tobytes() for g in given if g.tensor.on_host))
        if key == self._key and self._graphs:
            self.driver.launch(self._graphs[0], self._stream)
            return
        self._forget_graphs()  # what was recorded may read sizes that the engine keeps and changes now
        self._enqueue()
        if key == self._key:  # the first run of some shapes does what cannot be recorded
            try:
                with self.driver.captured(self._stream) as recorded:
                    self._enqueue()
            except PlanishError:
                return  # it runs, but cannot be recorded
            self._graphs += recorded
        self._key = key

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            failed = next((str(a.error) for a in self._allocators.values() if a.error is not None), "")
            raise PlanishError(f"{self.module}: {failed or self._complaint()}")

    def _fetched(self, tensor: _Tensor, home: Kind, value: Any) -> Any:
        """The result of an output, copied where it did not go to its place."""
        if value is not None:
            return value
        allocator = self._allocators.get(tensor.name)
        shape = self._context.get_tensor_shape(tensor.name) if allocator is None else allocator.shape
        if shape is None:
            raise PlanishError(f"{self.module} gives no size for output {tensor.name!r}")
        value = home.empty([int(d) for d in shape], tensor.dtype)
        size = tensor.nbytes(shape)
        if size:
            move = self.driver.copy if home.on_device else self.driver.to_host
            move(home.address(value), tensor.buffer.address, size, self._stream)
        return value

    def _stated(self, tensor: _Tensor, home: Kind, value: Any) -> Any:
        """A result in the type that the model states, and where the others are."""
        value = home.of(value) if tensor.on_host else value
        stated = dtype_of(tensor.port.type)
        return value if not stated or stated is tensor.dtype else home.cast(value, stated)

    def _forget_graphs(self) -> None:
        while self._graphs:
            self.driver.drop_graph(self._graphs.pop())

    # the rest

    def refit(self, lowered: Lowered) -> None:
        """Give the engine the weights of ``lowered``, which must be as the graph that it was built from.

        Raises:
            PlanishError: it was not built to be refitted, or the weights do not fit.
        """
        api = self.module.api
        if not self._engine.refittable:
            raise PlanishError("the engine cannot be refitted: build it with refit=True or strip_plan=True")
        opset, ir_version = lowered.stamp or (None, None)
        with self._lock, self.driver.current():
            refitter = api.Refitter(self._engine, self.module.logger)
            parser = api.OnnxParserRefitter(refitter, self.module.logger)
            if hasattr(parser, "load_initializer"):
                weights = Weights()
                proto = to_proto(lowered.graph, opset=opset, ir_version=ir_version, external=weights)
                names = weights.names(proto)
                done = parser.load_model_proto(proto.SerializeToString())
                for i, tensor in enumerate(weights.tensors):
                    raw = weights.raw(tensor)
                    done = done and parser.load_initializer(names[i], raw.ctypes.data, raw.nbytes)
                done = done and parser.refit_model_proto()
            else:
                proto = to_proto(lowered.graph, opset=opset, ir_version=ir_version)
                done = parser.refit_from_bytes(proto.SerializeToString())
            if not done or not refitter.refit_cuda_engine():
                raise PlanishError(f"{self.module} does not take the weights: {self._complaint()}")
        self._empty = False
        self._facts["options"] = {k: v for k, v in dict(self._facts.get("options", {})).items() if k != "strip_plan"}

    def inspect(self) -> Inspection:
        """The engine's layers, and the nodes that they hold."""
        with self._lock, self.driver.current():
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = self._context
            text = inspector.get_engine_information(self.module.api.LayerInformationFormat.JSON)
        return inspect_json(text, self.manifest.nodes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the engine and its manifest."""
        data = memoryview(self._engine.serialize()).cast("B")
        facts = {**self._facts, "bytes": data.nbytes}
        manifests.write(path, data, replace(self.manifest, facts=facts))

    def wait(self) -> None:
        """Wait until what was run is done: results on the GPU may be given before."""
        with self.driver.current():
            self.driver.wait(self._stream)

    def save_runtime_cache(self) -> None:
        """Write what TensorRT for RTX has compiled so far to the file that the options name."""
        path = self.options.runtime_cache
        if self._cache is not None and path is not None:
            with replacing(path, "runtime cache ") as file:
                file.write(memoryview(self._cache.serialize()))

    def close(self) -> None:
        """Write the runtime cache, and give back memory."""
        self.save_runtime_cache()
        self._finalizer()

    def report(self) -> dict[str, Any]:
        """What runs it, and what it is for."""
        keys = ("profiles", "types", "quantized", "products", "notes")
        return {
            "backend": "tensorrt",
            "module": str(self.module),
            "gpu": str(self.driver.gpu),
            "profile": self._profile,
            **{key: self._facts[key] for key in keys if key in self._facts},
        }


def _fits(given: list[_Given], ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    return all(_within(g.shape, *ranges[g.tensor.name]) for g in given)


def _within(shape: Sequence[int], least: Sequence[int], most: Sequence[int]) -> bool:
    return len(shape) == len(least) and all(a <= n <= b for n, a, b in zip(shape, least, most, strict=True))


def _make_allocator(module: Module, buffer: Buffer) -> Any:
    """Gives an output of unknown size memory when the engine asks for it, and notes its shape.

    TensorRT calls it from C++, where an exception would end the process: so one waits in ``error``.
    """

    class Allocator(module.api.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.shape: tuple[int, ...] | None = None
            self.error: PlanishError | None = None

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            try:
                return buffer.reserve(size)
            except PlanishError as error:
                self.error = error
                return 0

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(int(d) for d in shape)

    return Allocator()


def _release(driver: Driver, buffers: Sequence[Buffer], graphs: list[int], stream: int) -> None:
    """Give back what an engine held."""
    with driver.current():
        driver.wait(stream)
        while graphs:
            driver.drop_graph(graphs.pop())
        for buffer in buffers:
            buffer.release()
        driver.drop_stream(stream)
