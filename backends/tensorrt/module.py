"""Which TensorRT is installed, and what of its API differs between versions.

TensorRT (the package ``tensorrt``, 8.5 to 11) and TensorRT for RTX (``tensorrt_rtx``) share an API but for details:
flags that came or went, whose numbers shift, and objects that must outlive others. All of it is looked up by name,
and nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata, util
from typing import Any
from weakref import WeakSet

from ...ir.errors import PlanishError
from ...ir.types import DType
from .versions import Version

__all__ = ["RTX_GPUS", "Messages", "Module", "find_module", "is_installed"]

RTX_GPUS = "compute capability 8.0, 8.6, 8.9, 12.0 and later"  # what TensorRT for RTX 1.7 runs on; 7.5 if asked for
_RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9")
_RTX = "tensorrt_rtx"
_TENSORRT = "tensorrt"
_DTYPES = {  # by their names in the API
    "FLOAT": DType.FLOAT,
    "HALF": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
    "INT8": DType.INT8,
    "INT32": DType.INT32,
    "INT64": DType.INT64,
    "BOOL": DType.BOOL,
    "UINT8": DType.UINT8,
    "FP8": DType.FLOAT8E4M3FN,
    "INT4": DType.INT4,
    "FP4": DType.FLOAT4E2M1,
    "E8M0": DType.FLOAT8E8M0,
}


class Messages:
    """What TensorRT has said since this was made: ``errors`` and ``warnings``, in order."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []


@dataclass(frozen=True, eq=False)
class Module:
    """An installed TensorRT.

    Attributes:
        api: the imported module.
        rtx: whether it is TensorRT for RTX.
    """

    api: Any = field(repr=False)
    rtx: bool
    _listeners: WeakSet[Messages] = field(default_factory=WeakSet, init=False, repr=False)

    @property
    def name(self) -> str:
        """What is imported."""
        return _RTX if self.rtx else _TENSORRT

    @property
    def version(self) -> str:
        """The version of the package."""
        return str(self.api.__version__)

    @property
    def number(self) -> tuple[int, int]:
        """The major and minor version of the package; TensorRT for RTX counts anew."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    def runs_on(self, capability: str) -> bool:
        """Whether it has engines for GPUs of this compute capability, such as ``8.9``: for RTX, `RTX_GPUS` and 7.5."""
        return not self.rtx or capability in _RTX_CAPABILITIES or float(capability) >= 12

    def __str__(self) -> str:
        return f"{'TensorRT for RTX' if self.rtx else 'TensorRT'} {'.'.join(self.version.split('.')[:3])}"

    @cached_property
    def logger(self) -> Any:
        """The logger, which prints nothing. There is one, since TensorRT keeps the first that it is given for all.

        TensorRT calls it from C++, where an exception would end the process.
        """
        severity = self.api.ILogger.Severity
        listeners = self._listeners

        class Log(self.api.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()

            def log(self, level: Any, message: str) -> None:
                for listener in list(listeners):
                    if int(level) <= int(severity.ERROR):
                        listener.errors.append(message)
                    elif int(level) == int(severity.WARNING):
                        listener.warnings.append(message)

        return Log()

    def listen(self) -> Messages:
        """What `logger` is told from now on, as long as somebody holds it."""
        messages = Messages()
        self._listeners.add(messages)
        return messages

    def make(self, name: str) -> Any:
        """A ``Builder`` or ``Runtime``; None where it does not start, as that of TensorRT without a GPU."""
        try:
            return getattr(self.api, name)(self.logger)
        except TypeError:  # what the binding makes of a null pointer
            return None

    def has(self, group: str, member: str) -> bool:
        """Whether the API has ``group`` with ``member``: an enumeration and a value, a class and a method."""
        return hasattr(getattr(self.api, group, None), member)

    def network(self, builder: Any) -> Any:
        """An empty network that is strongly typed, where this version has such, and has no implicit batch."""
        names = ["EXPLICIT_BATCH"] if self.number < (10, 0) and not self.rtx else []
        if not self.rtx and (10, 0) <= self.number < (11, 0):  # the others have no other networks, or none of these
            names.append("STRONGLY_TYPED")
        flags = 0
        for name in names:
            flags |= 1 << int(getattr(self.api.NetworkDefinitionCreationFlag, name))
        return builder.create_network(flags)

    def dtype(self, found: Any) -> DType:
        """The element type that ``found``, a ``DataType``, is."""
        return _DTYPES[found.name]

    def load_plugins(self) -> None:
        """Let the parser find NVIDIA's own plugins, by which older versions implement some operators."""
        if not self.rtx and hasattr(self.api, "init_libnvinfer_plugins"):
            self.api.init_libnvinfer_plugins(self.logger, "")

    def package(self) -> dict[str, str]:
        """The module, its version, and the major version of CUDA in the name of the package that it came with."""
        names = (f"{self.name}{suffix}" for suffix in ("_cu13", "_cu12", "_cu11"))
        cuda = next((n.rpartition("cu")[2] for n in names if _is_distribution(n)), "")
        return {"module": self.name, "version": self.version, **({"cuda": cuda} if cuda else {})}


def _is_distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def is_installed(rtx: bool | None = None) -> bool:
    """Whether a TensorRT is installed; ``rtx``: whether that for RTX is, or the other."""
    names = [name for name in (_TENSORRT, _RTX) if rtx is None or rtx == (name == _RTX)]
    return any(util.find_spec(name) is not None for name in names)


def find_module(version: Version | None = None) -> Module:
    """The installed TensorRT: ``tensorrt`` if there is one, else ``tensorrt_rtx``.

    Args:
        version: the one that is needed; None for whichever is there.

    Raises:
        PlanishError: there is none, or another version; the message says what to install.
    """
    if version is None:
        name = _TENSORRT if is_installed(rtx=False) or not is_installed() else _RTX
    else:
        name = _RTX if version.rtx else _TENSORRT
    if util.find_spec(name) is None:
        raise PlanishError(_how_to_install(version))
    module = _imported(name)
    if version is not None and not version.rtx and module.number[0] != version.number[0]:
        raise PlanishError(f"{version} is wanted and {module} is installed: --target tensorrt is for that one")
    return module


@cache
def _imported(name: str) -> Module:
    try:
        return Module(importlib.import_module(name), name == _RTX)
    except Exception as error:  # whatever a loader of shared libraries runs into
        raise PlanishError(f"{name} does not load: {' '.join(str(error).split())[:300]}") from error


def _how_to_install(version: Version | None) -> str:
    rtx = "pip install 'planish[tensorrt]' (TensorRT for RTX, which builds without a GPU)"
    if version is None or version.rtx:
        return f"{version or 'TensorRT'} is not installed: {rtx}"
    other = "tensorrt-rtx is installed: use --target tensorrt:rtx" if is_installed(rtx=True) else f"or {rtx}"
    return f"{version} is not installed: pip install tensorrt, on a machine with a GPU, or use a JetPack's own; {other}"
