"""What to ask of the builder, and which TensorRT lacks what."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...ir.errors import PlanishError
from . import profiles
from .cuda import find_driver
from .module import RTX_GPUS, Module
from .precision import parse_precision

__all__ = ["HARDWARE", "BuildOptions", "byte_count", "capability_name", "check_options", "refused"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
HARDWARE = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
_LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """What to ask of the builder.

    Attributes:
        sizes: the ranges of open sizes (see `planish.backends.tensorrt.profiles.parse`).
        timing_cache: a file that remembers what the builder has timed; made or extended.
        workspace: the most memory that a layer may use while it runs: bytes, or text such as ``2GB``.
        refit: whether weights can be exchanged later.
        strip_plan: leave the weights out of the file; they must be given back before it runs.
        weight_streaming: whether weights may stay in host memory while it runs.
        version_compatible: whether later versions of TensorRT can run it.
        hardware: other GPUs that must be able to run it: ``ampere+`` or ``same-capability``.
        capabilities: TensorRT for RTX: the compute capabilities to build for, such as ``("7.5",)``; by default
            `RTX_GPUS`.
        level: how long the builder may search, 0 to 5.
        precision: what to compute in (see `planish.backends.tensorrt.precision.apply_precision`).
        sparse_weights: use kernels for 2:4 sparse weights; None: where weights are such.
        aux_streams: the most further streams on which layers run at the same time.
        tf32: whether products of float may round their operands to 10 bits.
        detailed: keep what the inspector shows of each layer.
    """

    sizes: Any = None
    timing_cache: str | os.PathLike[str] | None = None
    workspace: int | str | None = None
    refit: bool = False
    strip_plan: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware: str = ""
    capabilities: tuple[str, ...] | str = ()
    level: int | None = None
    precision: str = ""
    sparse_weights: bool | None = None
    aux_streams: int | None = None
    tf32: bool = True
    detailed: bool = True

    @property
    def workspace_bytes(self) -> int | None:
        """The workspace in bytes.

        Raises:
            PlanishError: it is no number of bytes.
        """
        return None if self.workspace is None else byte_count("workspace", self.workspace)

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, ready for JSON; sizes are told elsewhere."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("sizes", "timing_cache")}
        changed = {n: v for n, v in found.items() if v != getattr(type(self), n)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in changed.items()}


def byte_count(name: str, value: object) -> int:
    """The number of bytes that ``value`` says, as a number or as text such as ``2GB``; ``name``: of the option.

    Raises:
        PlanishError: it says none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found and found[2].upper() in _UNITS else 0
    if size < 1:
        raise PlanishError(f"{name} {value!r}: give a number of bytes, such as 2GB")
    return size


def check_options(given: Mapping[str, Any]) -> BuildOptions:
    """``given`` as options.

    Raises:
        PlanishError: there is no such option, or it has no such value.
    """
    known = {f.name for f in fields(BuildOptions)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise PlanishError(f"tensorrt has no option {unknown[0]!r} for engines: there are {', '.join(sorted(known))}")
    options = BuildOptions(**given)
    if isinstance(options.capabilities, str):
        options = BuildOptions(**{**given, "capabilities": tuple(filter(None, options.capabilities.split(",")))})
    for field in fields(BuildOptions):
        value = getattr(options, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise PlanishError(f"{field.name} {value!r}: give true or false")
    profiles.parse(options.sizes)
    parse_precision(options.precision)
    options.workspace_bytes  # noqa: B018 - to complain now
    if options.hardware and options.hardware not in HARDWARE:
        raise PlanishError(f"hardware {options.hardware!r}: there are {', '.join(HARDWARE)}")
    if options.level is not None and options.level not in _LEVELS:
        raise PlanishError(f"level {options.level!r}: give 0 to {_LEVELS[-1]}")
    if options.aux_streams is not None and not str(options.aux_streams).isdecimal():
        raise PlanishError(f"aux_streams {options.aux_streams!r}: give a number of streams, or 0")
    return options


def refused(options: BuildOptions, module: Module) -> Iterator[str]:
    """What of ``options`` ``module`` cannot do, one line each."""
    flags = {
        "refit": "REFIT",
        "strip_plan": "STRIP_PLAN",
        "weight_streaming": "WEIGHT_STREAMING",
        "version_compatible": "VERSION_COMPATIBLE",
        "sparse_weights": "SPARSE_WEIGHTS",
    }
    for name, flag in flags.items():
        if getattr(options, name) and not module.has("BuilderFlag", flag):
            yield f"{module} has no {name}"
    if options.aux_streams is not None and not module.has("IBuilderConfig", "max_aux_streams"):
        yield f"{module} has no aux_streams"
    if options.level is not None and not module.has("IBuilderConfig", "builder_optimization_level"):
        yield f"{module} has no level"
    if options.capabilities and not module.has("IBuilderConfig", "set_compute_capability"):
        yield f"{module} builds for the GPU that is there: it has no capabilities"
    for capability in options.capabilities if module.has("IBuilderConfig", "set_compute_capability") else ():
        if not hasattr(module.api.ComputeCapability, capability_name(capability)):
            known = sorted(int(n[2:]) for n in dir(module.api.ComputeCapability) if n.startswith("SM"))
            shown = ", ".join(f"{n // 10}.{n % 10}" for n in known)
            yield f"{module} builds for no compute capability {capability}: it knows {shown}"
    if module.rtx:
        yield from _refused_by_rtx(options, module)
    elif options.hardware and not module.has("HardwareCompatibilityLevel", HARDWARE[options.hardware]):
        yield f"{module} has no hardware={options.hardware}"


def _refused_by_rtx(options: BuildOptions, module: Module) -> Iterator[str]:
    if options.version_compatible:
        yield f"{module} has no version_compatible: it has no lean runtime"
    if options.hardware:
        yield f"{module} has no hardware: its engines run on {RTX_GPUS}, or on capabilities=…"
    if options.timing_cache is not None:
        yield f"{module} has no timing_cache: it times nothing when it builds (see runtime_cache, for running)"
    if (options.refit or options.strip_plan) and find_driver() is None:
        what = "strip_plan" if options.strip_plan else "refit"
        yield f"{module} needs a GPU to build an engine with {what}"


def capability_name(text: str) -> str:
    """The name in the API of a compute capability such as ``8.9``."""
    return "SM" + str(text).strip().replace(".", "")
