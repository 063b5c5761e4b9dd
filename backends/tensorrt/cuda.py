"""The CUDA driver: memory, streams and graphs for engines, by the library that comes with it; no package is needed.

It shares the device's primary context with TensorRT, PyTorch and CuPy.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...ir.errors import PlanishError

__all__ = ["Buffer", "Driver", "Gpu", "find_driver", "no_driver"]

_LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1",)
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


@dataclass(frozen=True)
class Gpu:
    """A device: its name, its compute capability (``8.9``), and the version of CUDA that its driver runs."""

    name: str
    capability: str
    cuda: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability}, CUDA {self.cuda})"


class Driver:
    """The functions of the driver that running an engine takes. Streams, events and addresses are integers.

    Args:
        library: the loaded library.

    Raises:
        PlanishError: it has no device.
    """

    def __init__(self, library: Any):
        self._library = library
        self._call("cuInit", 0)
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise PlanishError("no GPU")
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._context: ctypes.c_void_p | None = None

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            what = text.value.decode() if text.value else f"error {status}"
            raise PlanishError(f"CUDA: {what} ({name})")

    @property
    def gpu(self) -> Gpu:
        """The first device."""
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), self._device)
        number = ctypes.c_int()
        found = []
        for attribute in (_MAJOR, _MINOR):
            self._call("cuDeviceGetAttribute", ctypes.byref(number), attribute, self._device)
            found.append(number.value)
        self._call("cuDriverGetVersion", ctypes.byref(number))
        return Gpu(name.value.decode(), f"{found[0]}.{found[1]}", f"{number.value // 1000}.{number.value % 1000 // 10}")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Use the context that this thread uses already, or else the first device's primary one."""
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if context.value:
            yield
            return
        if self._context is None:
            self._context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(context))

    # memory

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes on the device."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy from the host, in the order of ``stream``."""
        arguments = ctypes.c_uint64(target), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_void_p(stream)
        self._call("cuMemcpyHtoDAsync_v2", *arguments)

    def to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy to the host, in the order of ``stream``."""
        arguments = ctypes.c_void_p(target), ctypes.c_uint64(source), ctypes.c_size_t(size), ctypes.c_void_p(stream)
        self._call("cuMemcpyDtoHAsync_v2", *arguments)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy on the device, in the order of ``stream``."""
        arguments = ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(size), ctypes.c_void_p(stream)
        self._call("cuMemcpyDtoDAsync_v2", *arguments)

    # streams

    def make_stream(self) -> int:
        """A new stream that does not wait for the default one."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def drop_stream(self, stream: int) -> None:
        """Give back what `make_stream` gave."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        """Wait until all is done that ``stream`` was told."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def follow(self, stream: int, other: int) -> None:
        """Let ``stream`` wait for all that ``other`` has been told so far."""
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), _NO_TIMING)
        try:
            self._call("cuEventRecord", event, ctypes.c_void_p(other))
            self._call("cuStreamWaitEvent", ctypes.c_void_p(stream), event, 0)
        finally:
            self._call("cuEventDestroy_v2", event)

    # graphs

    @contextmanager
    def captured(self, stream: int) -> Iterator[list[int]]:
        """Record what ``stream`` is told instead of doing it; afterwards the list holds the graph, to `launch`."""
        found: list[int] = []
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _RELAXED)
        try:
            yield found
        finally:
            self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        found.append(executable.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Do what was recorded."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def drop_graph(self, graph: int) -> None:
        """Give back what `captured` gave."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))


class Buffer:
    """Memory on the device that grows as needed."""

    def __init__(self, driver: Driver):
        self._driver = driver
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> int:
        """The address of at least ``size`` bytes; what was there before is lost where it has to grow."""
        if size > self.size or not self.address:
            self.release()
            self.address = self._driver.allocate(size)
            self.size = max(size, 1)
        return self.address

    def release(self) -> None:
        """Give it back now."""
        if self.address:
            self._driver.free(self.address)
            self.address = self.size = 0


@cache
def _found() -> Driver | str:
    """The driver, or why there is none."""
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        try:
            return Driver(library)
        except PlanishError as error:
            return str(error)
    return "no NVIDIA driver"


def find_driver() -> Driver | None:
    """The driver of this machine, if it has one and a GPU."""
    found = _found()
    return found if isinstance(found, Driver) else None


def no_driver() -> str:
    """Why `find_driver` finds none, in a few words, or ""."""
    found = _found()
    return found if isinstance(found, str) else ""
