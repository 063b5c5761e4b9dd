"""Writes ``.onnx`` files: weights streamed beside the model, everything in place at once or nothing at all.

Small models are one file. Otherwise the weights go to ``<name>.data``, aligned for mapping; ranges of other files are
copied by the kernel, computed tensors are computed two at a time, and a few dozen megabytes are all that is ever held.
All files are written under temporary names and renamed together; the model comes last, and an earlier one is out of
the way before its weights are exchanged, so that nobody ever reads a model with the weights of another. When the bytes
reach the disk is left to the system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal

import numpy as np
from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto

from ..ir.convert.proto import to_proto
from ..ir.convert.sparse import to_sparse
from ..ir.convert.wire import GRAPH, INITIALIZER, RAW_DATA, varint
from ..ir.edit import Transaction, insert, replace
from ..ir.errors import PlanishError
from ..ir.graph import Graph, Node, Value
from ..ir.tensor import DataFile, FileTensor, LazyTensor, Tensor, TensorError
from ..ir.types import DType
from .files import Files

__all__ = ["save"]

INLINE_LIMIT = 1 << 20  # bytes of weights that a model may hold without a second file
_SMALL = 1 << 10  # bytes: smaller tensors stay in the model, where shape inference sees them
_STREAMED = 1 << 16  # bytes: larger tensors are written one by one also where the weights are in the model
_PAGE = 4096  # alignment of tensors of at least this size, for mapping; of smaller ones, a cache line
_LINE = 64
_MAX_MODEL = (1 << 31) - 1  # bytes, of protobuf
_COPY = 32 << 20  # bytes per system call when copying
_BUDGET = 64 << 20  # bytes of tensors being computed at a time, unless one alone is larger
_INDEX = 8  # bytes of the place of a number in a sparse tensor
_UNFOLD = 1 << 20  # bytes: larger computed tensors are left to whoever loads the model, if weights are not copied

_NOT_IN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)

Place = tuple[str, int, int]  # location, offset, length


def save(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    ir_version: int | None = None,
    external: bool | Literal["auto"] = "auto",
    weights: Literal["copy", "reference", "link"] = "copy",
    sparse: bool = False,
) -> None:
    """Write ``graph`` as an ONNX file.

    Args:
        graph: a root graph.
        path: the file; replaced if it exists. It may be the one that the graph was read from.
        opset: the version of the standard operators to state; nothing is converted.
        ir_version: the IR version to state.
        external: keep the weights in a second file; ``"auto"``: if they are more than a megabyte.
        weights: what to do with weights that lie in files already: ``"copy"`` them (for nothing, on file systems that
            share blocks); ``"reference"`` them where they are, which must be below the folder of ``path``; or
            ``"link"`` their files beside the model, if most of their content is in use and the file system can: ONNX
            Runtime reads those, but onnx itself refuses files with several links, the original too while there are
            two. Tensors that are new are written in any case; large ones that the graph computes from constants are
            left to the runtime: their nodes are in the file instead.
        sparse: store constants with many zeros as sparse tensors, where that saves bytes: each number that is not 0
            has 8 bytes for its place. Those lie in the model itself, which cannot be larger than 2 GB. ONNX Runtime and
            planish make them dense when they load the model; other readers may not know sparse tensors.

    Raises:
        PlanishError: it cannot be written. Nothing is left behind then, and earlier files are as they were.
    """
    path = Path(path)
    try:
        with Files(path) as files, Transaction(graph) as unfolded:
            if weights != "copy":
                _unfold(graph)
            if sparse:
                _make_sparse(graph)
            plan = _Plan(graph, files, external, weights)
            model = to_proto(graph, opset=opset, ir_version=ir_version, external=plan)
            unfolded.rollback()
            if plan.jobs and plan.data_name:
                _write_data(files.create(plan.data_name), plan.jobs, plan.size)
            _write_model(files.create(path.name), model, [] if plan.data_name else [t for t, _ in plan.jobs])
            files.commit()
    except EncodeError:
        raise PlanishError(f"{path}: it is larger than 2 GB, or nested deeper, than protobuf allows") from None
    except TensorError as error:
        raise PlanishError(f"{path}: {error}") from error
    except OSError as error:
        raise PlanishError(f"{path}: {error.strerror or error}") from error


def _unfold(graph: Graph) -> None:
    """Insert the nodes that compute large lazy tensors, so that only what they read has to be there."""
    pending = graph.constants()
    while pending:
        value = pending.pop()
        tensor = value.const
        if not isinstance(tensor, LazyTensor) or tensor.recipe is None or tensor.nbytes < _UNFOLD:
            continue
        op, attrs = tensor.recipe
        operands = [Value(t.type, t.name, const=t) for t in tensor.inputs]
        node = Node(op, operands, dict(attrs), [value.type])
        insert(node, next(iter(graph.nodes), graph.ret))
        replace(value, node.result)
        pending.extend(operands)


def _make_sparse(graph: Graph) -> None:
    """Let nodes with sparse tensors stand for the constants that are smaller so."""
    for value in graph.constants():
        tensor = value.const
        if tensor is None or tensor.dtype.bits % 8 or tensor.nbytes < _SMALL:  # no strings, nothing packed
            continue
        array = tensor.numpy()
        if np.count_nonzero(array) * (array.itemsize + _INDEX) + _SMALL < tensor.nbytes:
            node = Node("Constant", (), {"sparse_value": to_sparse(array, value.name)}, [value.type])
            insert(node, next(iter(graph.nodes), graph.ret))
            node.result.name = value.name
            replace(value, node.result)


class _Plan:
    """Which tensor goes where: an `ExternalWriter`.

    Attributes:
        jobs: tensors to write to the data file, with their offsets; to the model itself if there is no data file.
        size: of the data file.
        data_name: of the data file, or "".
    """

    def __init__(self, graph: Graph, files: Files, external: bool | Literal["auto"], weights: str):
        self.files = files
        self.jobs: list[tuple[Tensor, int]] = []
        self.size = 0
        self.places: dict[Tensor, Place | None] = {}
        self.data_name = ""
        tensors = [t for t in _tensors(graph) if t.dtype is not DType.STRING]
        if external is False or (external == "auto" and sum(t.nbytes for t in tensors) < INLINE_LIMIT):
            self.jobs = [(t, 0) for t in tensors if t.nbytes >= _STREAMED]
            self.places = {t: ("", i, t.nbytes) for i, (t, _) in enumerate(self.jobs)}
            return
        if weights != "copy":
            self._keep(tensors, weights)
        taken = {place[0] for place in self.places.values() if place is not None} | {files.model.name}
        self.data_name = _free_name(files.model.name, taken)
        for t in sorted((t for t in tensors if t not in self.places), key=_source):
            self._append(t)

    def place(self, tensor: Tensor) -> Place | None:
        """Where the data of ``tensor`` lie; None for in the model."""
        return self.places.get(tensor)

    def _append(self, t: Tensor) -> None:
        length = t.nbytes
        if length < _SMALL:
            return
        align = _PAGE if length >= _PAGE else _LINE
        offset = -(-self.size // align) * align
        self.places[t] = self.data_name, offset, length
        self.jobs.append((t, offset))
        self.size = offset + length

    def _keep(self, tensors: Iterable[Tensor], weights: str) -> None:
        """Leave the tensors that lie in files already where they are, or link those files."""
        kept: dict[DataFile, list[FileTensor]] = {}
        for t in tensors:
            if isinstance(t, FileTensor) and t.file.is_current:
                kept.setdefault(t.file, []).append(t)
        taken = {self.files.model.name}
        for file, inside in kept.items():
            location = self._reference(file.path) if weights == "reference" else self._link(file, inside, taken)
            if location is not None:
                taken.add(location)
                self.places.update({t: (location, t.offset, t.length) for t in inside})

    def _reference(self, path: Path) -> str:
        folder = self.files.folder.resolve()
        path = path.resolve()
        if not path.is_relative_to(folder):
            raise PlanishError(f"{self.files.model}: weights of {path} are not below its folder: link or copy them")
        if path == folder / self.files.model.name:
            raise PlanishError(f"{self.files.model}: cannot refer to weights in the file being replaced: copy them")
        return path.relative_to(folder).as_posix()

    def _link(self, file: DataFile, tensors: list[FileTensor], taken: set[str]) -> str | None:
        used = sum({(t.offset, t.length): t.length for t in tensors}.values())
        if 2 * used < file.size:
            return None
        name = _free_name(self.files.model.name, taken)
        return name if self.files.link(file.path, name) else None


def _tensors(graph: Graph) -> Iterator[Tensor]:
    """The tensors that become initializers, each once, in the order of first use."""
    found = {v.const: None for v in graph.constants() if v.const is not None}
    found.update({v.default: None for v in graph.inputs if v.default is not None})
    found.update(dict.fromkeys(graph.info.get("initializers", {}).values()))
    yield from found


def _free_name(model: str, taken: set[str]) -> str:
    name, n = f"{model}.data", 0
    while name in taken:
        n += 1
        name = f"{model}.{n}.data"
    return name


def _source(t: Tensor) -> tuple[int, str, int]:
    """Sorts the tensors of a file by their place in it, so that neighbours stay neighbours; others follow."""
    return (0, str(t.file.path), t.offset) if isinstance(t, FileTensor) else (1, "", 0)


# streaming


def _write_model(descriptor: int, model: ModelProto, weights: list[Tensor]) -> None:
    """Write ``model``; its initializers that are marked as external have their data in ``weights``, by offset.

    Those are written tensor by tensor behind the rest of the graph, which is the last field of the model.

    Raises:
        PlanishError: it is too large.
    """
    if not weights:
        _put(descriptor, memoryview(model.SerializeToString(deterministic=True)), 0)
        return
    graph = model.graph
    initializers = list(graph.initializer)
    del graph.initializer[:]
    tail: list[tuple[bytes, Tensor]] = []
    for t in initializers:
        if t.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(t)
            continue
        tensor = weights[int(t.external_data[1].value)]
        t.ClearField("external_data")
        t.ClearField("data_location")
        head = t.SerializeToString(deterministic=True) + RAW_DATA + varint(tensor.nbytes)
        tail.append((INITIALIZER + varint(len(head) + tensor.nbytes) + head, tensor))
    body = graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    rest = sum(len(head) + tensor.nbytes for head, tensor in tail)
    start = model.SerializeToString(deterministic=True) + GRAPH + varint(len(body) + rest) + body
    if len(start) + rest > _MAX_MODEL:
        what = f"{(len(start) + rest) / 1e9:.1f} GB in one file"
        raise PlanishError(f"{what}, but protobuf allows 2 GB: use external data")
    at = _put(descriptor, memoryview(start), 0)
    jobs = []
    for head, tensor in tail:
        at += _put(descriptor, memoryview(head), at)
        jobs.append((tensor, at))
        at += tensor.nbytes
    _write_data(descriptor, jobs, at)


def _write_data(descriptor: int, jobs: list[tuple[Tensor, int]], size: int) -> None:
    """Write tensors to their offsets in a file that will have ``size`` bytes."""
    _allocate(descriptor, size)
    budget = _Budget(_BUDGET)
    tasks: list[Callable[[], None]] = []
    for run in _runs(jobs):
        t, offset = run[0]
        if isinstance(t, FileTensor):
            length = run[-1][1] + run[-1][0].nbytes - offset
            tasks.append(lambda t=t, offset=offset, length=length: _copy(t, descriptor, offset, length))  # type: ignore[misc]
        else:
            tasks.append(lambda t=t, offset=offset: _compute(t, descriptor, offset, budget))  # type: ignore[misc]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(task) for task in tasks]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        for future in done:
            future.result()


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the space at once: a full disk shows now, and the file is not scattered."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)


def _runs(jobs: list[tuple[Tensor, int]]) -> Iterator[list[tuple[Tensor, int]]]:
    """``jobs``, those together that are one range both in the file they come from and in the new one."""
    run: list[tuple[Tensor, int]] = []
    for t, offset in jobs:
        if run:
            last, at = run[-1]
            if (
                isinstance(t, FileTensor) and isinstance(last, FileTensor) and t.file is last.file
                and t.offset == last.offset + last.length and offset == at + last.length
            ):  # fmt: skip
                run.append((t, offset))
                continue
            yield run
        run = [(t, offset)]
    if run:
        yield run


def _copy(t: FileTensor, target: int, offset: int, length: int) -> None:
    """Copy ``length`` bytes from where ``t`` begins to ``offset`` of ``target``, within the kernel if it can."""
    with t.file.open() as source:
        at, end = t.offset, t.offset + length
        in_kernel = hasattr(os, "copy_file_range")
        while at < end:
            step = min(_COPY, end - at)
            if in_kernel:
                try:
                    count = os.copy_file_range(source, target, step, at, offset)
                except OSError as error:
                    if error.errno not in _NOT_IN_KERNEL:
                        raise
                    count = 0
                if not count:  # not between these files
                    in_kernel = False
                    continue
            else:
                data = os.pread(source, min(step, 4 << 20), at)
                if not data:
                    raise TensorError(f"{t.file.path.name} became shorter")
                count = _put(target, memoryview(data), offset)
            at += count
            offset += count


def _put(target: int, data: memoryview, offset: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done : done + _COPY], offset + done)
    return done


def _compute(t: Tensor, target: int, offset: int, budget: _Budget) -> None:
    """Compute ``t`` and write it at ``offset`` of ``target``."""
    length = t.nbytes
    with budget.of(length):
        done = 0
        for chunk in t.chunks():
            done += _put(target, chunk, offset + done)
        if done != length:
            raise TensorError(f"tensor {t.name!r}: {done} bytes for {t.type}")


class _Budget:
    """Lets threads hold ``limit`` bytes together, or one thread as many as it needs."""

    def __init__(self, limit: int):
        self.limit = limit
        self.held = 0
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Hold ``count`` bytes, once there is room for them."""
        with self.changed:
            self.changed.wait_for(lambda: not self.held or self.held + count <= self.limit)
            self.held += count
        try:
            yield
        finally:
            with self.changed:
                self.held -= count
                self.changed.notify_all()


# files that appear together
