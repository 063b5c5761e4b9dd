"""Engines: a lowered graph goes through TensorRT's ONNX parser and its builder.

Weights go to the parser as they lie in memory or mapped files. Errors are told by node, as far as TensorRT names them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...ir import Node
from ...ir.convert.proto import to_proto
from ...ir.errors import PlanishError
from ...ir.tensor import Tensor, pack
from ...ir.types import DType
from ...passes.files import replacing
from ..base import Lowered, LoweringError, Problem
from . import profiles
from .inspector import Layer, parsed_layers
from .messages import first, named, readable, reason_of, telling
from .module import Module, find_module
from .options import HARDWARE, BuildOptions, capability_name, refused
from .precision import builder_flags
from .versions import Version

__all__ = ["Plan", "Weights", "build"]

_INLINE = 1 << 10  # bytes: smaller tensors stay in the model, where the parser's shape inference sees them
_INTERVAL = 0.1  # seconds between two messages about progress
_MISFIT = re.compile(r"\bk(?:MIN|OPT|MAX)\b|optimization profile")

Progress = Callable[[str], None]


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """A serialized engine.

    Attributes:
        data: its bytes, as TensorRT holds them.
        module: what has built it.
        lowered: the graph that it was built from.
        options: what was asked for.
        profiles: the sizes that it is for.
        layers: the layers that the parser made.
        taken: the element type of each input and output of the engine: the parser changes some.
        digest: the SHA-256 of the model that went in, weights included.
        notes: what its user must know.
        warnings: what TensorRT had to say.
        seconds: what building took.
    """

    data: memoryview
    module: Module
    lowered: Lowered
    options: BuildOptions
    profiles: list[profiles.Profile]
    layers: list[Layer]
    taken: dict[str, DType]
    digest: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0


def build(
    lowered: Lowered, version: Version, options: BuildOptions | None = None, *, progress: Progress | None = None
) -> Plan:
    """Build an engine.

    Args:
        lowered: the graph, lowered for ``version``.
        version: the TensorRT to build with; it must be the one that is installed.
        options: what to ask of the builder.
        progress: is told what is going on.

    Raises:
        LoweringError: with every node that TensorRT refuses.
        PlanishError: this TensorRT is not here or lacks an option, or the ranges of sizes do not fit.
    """
    options = options or BuildOptions()
    module = find_module(version)
    lacking = next(refused(options, module), None)
    if lacking is not None:
        raise PlanishError(lacking)
    requests = profiles.parse(options.sizes)
    started = time.perf_counter()
    task = _Build(lowered, module, options, version)
    task.parse(progress)
    found, notes = profiles.resolve(lowered.graph, requests, task.shape_inputs())
    notes += task.fixed_inputs()
    data = task.build(found, notes, progress)
    return Plan(
        data, module, lowered, options, found,
        parsed_layers(task.network, module, task.nodes), task.taken(), task.digest, [*lowered.notes, *notes],
        task.warnings(), time.perf_counter() - started,
    )  # fmt: skip


class _Build:
    """One build. It holds what TensorRT only borrows: network and weights must outlive parser and builder."""

    def __init__(self, lowered: Lowered, module: Module, options: BuildOptions, version: Version):
        self.lowered = lowered
        self.module = module
        self.options = options
        self.version = version
        self.nodes = {node.name: node for node in lowered.graph.walk() if node.name}
        self.versions: tuple[int | None, int | None] = lowered.stamp or (None, None)
        self.weights = Weights()
        self.digest = ""
        self.log = module.listen()
        module.load_plugins()
        self.builder = module.make("Builder")
        if self.builder is None:
            raise PlanishError(f"{module} cannot build here: {first(self.log.errors) or 'it needs a GPU'}")
        self.network = module.network(self.builder)
        self.parser = module.api.OnnxParser(self.network, module.logger)

    # parsing

    def parse(self, progress: Progress | None) -> None:
        """Fill the network.

        Raises:
            LoweringError: with the nodes that the parser refuses.
        """
        if progress is not None:
            progress("parsing")
        if self.module.has("OnnxParser", "load_initializer"):
            done = self._parse_from_memory()
        else:
            done = self._parse_from_files()
        if not done:
            raise self._refusal()
        self.log.errors.clear()

    def _parse_from_memory(self) -> bool:
        opset, ir_version = self.versions
        proto = to_proto(self.lowered.graph, opset=opset, ir_version=ir_version, external=self.weights)
        names = self.weights.names(proto)
        model = proto.SerializeToString(deterministic=True)
        digest = hashlib.sha256(model)
        if not self.parser.load_model_proto(model):
            return False
        for i, tensor in enumerate(self.weights.tensors):
            raw = self.weights.raw(tensor)
            digest.update(raw.data)
            if not self.parser.load_initializer(names[i], raw.ctypes.data, raw.nbytes):
                return False
        self.digest = digest.hexdigest()
        return bool(self.parser.parse_model_proto())

    def _parse_from_files(self) -> bool:
        """The way of versions before 10.13: the model and its weights go through temporary files."""
        from ..onnx_file import save

        opset, ir_version = self.versions
        with TemporaryDirectory(prefix="planish-") as folder:
            path = Path(folder) / "model.onnx"
            save(self.lowered.graph, path, opset=opset, ir_version=ir_version, weights="link")
            digest = hashlib.sha256()
            for file in sorted(Path(folder).iterdir()):
                with file.open("rb") as opened:
                    while chunk := opened.read(1 << 24):
                        digest.update(chunk)
            self.digest = digest.hexdigest()
            return bool(self.parser.parse_from_file(str(path)))

    def _refusal(self) -> PlanishError:
        """Why the parser refuses."""
        problems: list[Problem] = []
        others: list[str] = []
        for i in range(self.parser.num_errors):
            error = self.parser.get_error(i)
            node = self._node_of(error)
            reason = reason_of(error)
            if node is None:
                others.append(reason)
            elif not any(p.node is node for p in problems):
                problems.append(Problem(node, reason))
        if problems:
            return LoweringError(str(self.module), problems)
        return PlanishError(
            f"{self.module} does not read the model: {first(others) or first(telling(self.log.errors))}"
        )

    def _node_of(self, error: Any) -> Node | None:
        name = error.node_name() if hasattr(error, "node_name") else ""
        if name:
            return self.nodes.get(name)
        index = error.node()
        nodes = list(self.lowered.graph.nodes)
        return nodes[index] if 0 <= index < len(nodes) and not hasattr(error, "node_name") else None

    # building

    def warnings(self) -> list[str]:
        """What TensorRT warns of, each once; of the types of inputs the manifest tells."""
        return [w for w in dict.fromkeys(map(readable, self.log.warnings)) if "has Int64 binding" not in w]

    def fixed_inputs(self) -> list[str]:
        """Notes on inputs that the parser makes constants."""
        names = self.taken()
        gone = [v.name for v in self.lowered.graph.inputs if v.name not in names]
        return [f"input {name} always has its default: the parser makes it a constant" for name in gone]

    def taken(self) -> dict[str, DType]:
        """The element types of inputs and outputs."""
        network = self.network
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        return {t.name: self.module.dtype(t.dtype) for t in tensors}

    def shape_inputs(self) -> dict[str, int]:
        """The inputs whose elements decide shapes, and the number of their elements."""
        inputs = [self.network.get_input(i) for i in range(self.network.num_inputs)]
        return {t.name: int(np.prod(tuple(t.shape))) for t in inputs if t.is_shape_tensor}

    def build(self, found: list[profiles.Profile], notes: list[str], progress: Progress | None) -> memoryview:
        """The serialized engine; ``notes``: on sizes that were chosen, which may be at fault.

        Raises:
            LoweringError: with the nodes that the builder refuses, if it names them.
            PlanishError: it refuses for another reason.
        """
        config = self.builder.create_builder_config()
        self._configure(config)
        for profile in found:
            self._add_profile(config, profile)
        stop = _Stop()
        monitor = _monitor(self.module, progress, stop)
        if monitor is not None:
            config.progress_monitor = monitor
        with self._timing_cache(config):
            with stop.interrupts():
                plan = self.builder.build_serialized_network(self.network, config)
            if stop.error is not None:
                raise stop.error
            if plan is None:
                raise self._failure(notes)
        return memoryview(plan).cast("B")

    def _configure(self, config: Any) -> None:
        api, options = self.module.api, self.options
        wanted = {
            "REFIT": options.refit,
            "STRIP_PLAN": options.strip_plan,
            "WEIGHT_STREAMING": options.weight_streaming,
            "VERSION_COMPATIBLE": options.version_compatible,
            "SPARSE_WEIGHTS": bool(options.sparse_weights),
        }
        needed = builder_flags(self.version, options.precision, self.lowered.graph)
        if options.sparse_weights is False:
            needed = tuple(name for name in needed if name != "SPARSE_WEIGHTS")
        for name in dict.fromkeys((*(n for n, on in wanted.items() if on), *needed)):
            if self.module.has("BuilderFlag", name):
                config.set_flag(getattr(api.BuilderFlag, name))
        if not options.tf32:
            config.clear_flag(api.BuilderFlag.TF32)
        if options.workspace is not None:
            config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.level is not None:
            config.builder_optimization_level = options.level
        if options.aux_streams is not None:
            config.max_aux_streams = options.aux_streams
        if options.hardware:
            config.hardware_compatibility_level = getattr(api.HardwareCompatibilityLevel, HARDWARE[options.hardware])
        if options.detailed:
            config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        if options.capabilities:
            config.num_compute_capabilities = len(options.capabilities)
            for i, capability in enumerate(options.capabilities):
                config.set_compute_capability(getattr(api.ComputeCapability, capability_name(capability)), i)

    def _add_profile(self, config: Any, profile: profiles.Profile) -> None:
        if not profile.shapes and not profile.elements:
            return
        made = self.builder.create_optimization_profile()
        for name, bounds in profile.shapes.items():
            made.set_shape(name, *bounds)
        for name, bounds in profile.elements.items():
            made.set_shape_input(name, *map(list, bounds))
        if config.add_optimization_profile(made) < 0:
            raise PlanishError(f"{self.module} refuses these sizes: {first(self.log.errors)}")

    @contextlib.contextmanager
    def _timing_cache(self, config: Any) -> Iterator[None]:
        """Use the file, and extend it by what is new, also where another process has extended it meanwhile."""
        path = self.options.timing_cache
        if path is None:
            yield
            return
        cache = config.create_timing_cache(_read(path))
        if cache is None or config.set_timing_cache(cache, False) is False:
            raise PlanishError(f"timing cache {os.fspath(path)}: it is of another GPU or TensorRT: give another file")
        yield
        newer = config.create_timing_cache(_read(path))
        cache.combine(newer, False)
        with replacing(path, "timing cache ") as file:
            file.write(memoryview(cache.serialize()))

    def _failure(self, notes: list[str]) -> PlanishError:
        """Why the builder refuses."""
        errors = telling(self.log.errors)
        misfit = next((m for m in errors if _MISFIT.search(m)), None)
        if misfit is not None:
            return PlanishError("; ".join([f"sizes: {readable(misfit)}", *notes]))
        found: dict[Node, str] = {}
        for message in errors:
            for node in named(message, self.nodes):
                found.setdefault(node, readable(message))
        if found:
            return LoweringError(str(self.module), [Problem(node, reason) for node, reason in found.items()])
        return PlanishError(f"{self.module} cannot build the engine: {first(errors) or 'it does not say why'}")


# --- weights ---------------------------------------------------------------------------------------------------------


class Weights:
    """The weights that are not in the model: an `ExternalWriter` that numbers them."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._raw: list[np.ndarray[Any, Any]] = []  # what the parser only borrows

    def place(self, tensor: Tensor) -> tuple[str, int, int] | None:
        """The number of a tensor as a location; None for small ones."""
        if tensor.dtype is DType.STRING or tensor.nbytes < _INLINE:
            return None
        self.tensors.append(tensor)
        return f"#{len(self.tensors) - 1}", 0, tensor.nbytes

    def names(self, model: Any) -> dict[int, str]:
        """The names of the numbered tensors in ``model``, by number."""
        found = {}
        for initializer in model.graph.initializer:
            location = next((e.value for e in initializer.external_data if e.key == "location"), "")
            if location.startswith("#"):
                found[int(location[1:])] = initializer.name
        return found

    def raw(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """The bytes of a tensor, where they are if the layout allows; they stay as long as this does."""
        raw = pack(tensor.numpy(), tensor.dtype)
        self._raw.append(raw)
        return raw


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise PlanishError(f"timing cache {os.fspath(path)}: {error.strerror or error}") from error


# --- progress --------------------------------------------------------------------------------------------------------


class _Stop:
    """What is to end a build: TensorRT calls back from C++, through which no exception may pass, so it waits here."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    @contextlib.contextmanager
    def interrupts(self) -> Iterator[None]:
        """Let a keyboard interrupt wait here, too."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: object) -> None:
            self.error = KeyboardInterrupt()

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _monitor(module: Module, progress: Progress | None, stop: _Stop) -> Any:
    """Tells ``progress`` of the builder's phases, and ends the build for ``stop``; None where this is not offered."""
    if not module.has("IProgressMonitor", "phase_start"):
        return None

    class Monitor(module.api.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.shown = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            self.show(name, 0)

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            self.show(name, step + 1)
            return stop.error is None

        def show(self, name: str, step: int) -> None:
            now = time.monotonic()
            if progress is None or now - self.shown < _INTERVAL or stop.error is not None:
                return
            self.shown = now
            try:
                progress(f"building: {name[:1].lower()}{name[1:]} ({step} of {self.steps.get(name, step)})")
            except BaseException as error:  # noqa: BLE001 - raised when the builder has returned
                stop.error = error

    return Monitor()
