"""Reads ``.onnx`` files and the files that hold their weights.

A model file is untrusted. Everything it names must be a regular file inside its folder, every range must lie in that
file and fit the declared shape, and whatever is wrong is one `ModelError`. Weights are mapped when somebody asks for
them, never here.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from ...ir.convert.proto import from_proto
from ...ir.convert.proto_check import shown, text
from ...ir.convert.proto_types import dtype_of, static_shape
from ...ir.convert.wire import Malformed, cut
from ...ir.errors import ModelError
from ...ir.graph import Graph
from ...ir.tensor import DataFile, FileTensor, Tensor, TensorError

__all__ = ["ExternalData", "load", "parse"]

_MAX_SIZE = (1 << 31) - 1  # what protobuf allows
_MAPPED = 4 << 20  # bytes: larger files are mapped, and their large tensors stay there
_MAX_TEXT = 64 << 20
_MAX_TEXT_DEPTH = 200


def load(
    path: str | os.PathLike[str], *, upgrade: bool = True, infer: bool = True, opaque_functions: bool = False
) -> Graph:
    """The graph of an ONNX file: binary, or ``.onnxtxt`` in ONNX's textual syntax.

    Args:
        path: the file. The files that hold its weights must be in the same folder or below.
        upgrade: bring it to the canonical opset.
        infer: type all nodes.
        opaque_functions: keep calls of the model's functions as nodes instead of inlining them.

    Raises:
        ModelError: the file or what it refers to is missing, malformed, or something else than ONNX.
    """
    path = Path(path)
    try:
        model, files = parse(path)
        return from_proto(
            model,
            resolve=files.tensor,
            infer=infer,
            upgrade=_upgrade if upgrade else None,
            opaque_functions=opaque_functions,
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None


def _upgrade(graph: Graph) -> None:
    from .upgrade import upgrade

    upgrade(graph)


def parse(path: Path) -> tuple[ModelProto, ExternalData]:
    """The model in ``path`` without the weights that are large or lie in other files, and where those are found.

    Raises:
        ModelError: it is not an ONNX file.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError("a folder; an ONNX model is a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if path.suffix in (".onnxtxt", ".onnxtext"):
        return _parse_text(path, status.st_size), ExternalData(path)
    if status.st_size > _MAX_SIZE:
        size = f"{status.st_size / 1e9:.1f} GB"
        raise ModelError(f"{size}, but protobuf allows 2 GB: a model of this size keeps its weights in a second file")
    files = ExternalData(path)
    data: bytes | memoryview
    with path.open("rb") as file:
        if status.st_size > _MAPPED:
            inline = secrets.token_hex(16)  # random, so that no model can name it
            files.files[inline] = DataFile.at(path)
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        else:
            inline = ""
            data = file.read()
    model = ModelProto()
    try:
        model.ParseFromString(cut(data, inline) if isinstance(data, memoryview) else data)
        complete = model.HasField("graph") and bool(model.ir_version)
    except (DecodeError, Malformed):
        complete = False
    if not complete:
        raise ModelError(_looks_like(bytes(data[:64])))
    return model, files


def _parse_text(path: Path, size: int) -> ModelProto:
    import onnx.parser

    if size > _MAX_TEXT:
        raise ModelError(f"{size / 1e6:.0f} MB of text")
    try:
        source = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ModelError("not UTF-8 text") from None
    depth = deepest = 0
    for c in source:
        depth += (c in "([{<") - (c in ")]}>")
        deepest = max(deepest, depth)
    if deepest > _MAX_TEXT_DEPTH:  # the parser is recursive
        raise ModelError(f"brackets nested deeper than {_MAX_TEXT_DEPTH}")
    try:
        return onnx.parser.parse_model(source)
    except (onnx.parser.ParseError, RuntimeError, ValueError, IndexError) as error:  # the last three: bad numbers
        raise ModelError(" ".join(str(error).split())) from None


_MAGIC = (
    (b"PK\x03\x04", "a zip archive (a PyTorch .pt or .pt2, Keras .keras or .npz file?)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras .h5?)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x93NUMPY", "a numpy array"),
    (b"version https://git-lfs", "a Git LFS pointer: the model itself has yet to be downloaded (git lfs pull)"),
    (b"<!DOCTYPE", "an HTML page: did the download fail?"),
    (b"<!doctype", "an HTML page: did the download fail?"),
    (b"<html", "an HTML page: did the download fail?"),
    (b"<?xml", "an XML file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a picture"),
    (b"\x7fELF", "a program"),
)


def _looks_like(head: bytes) -> str:
    """What a file that begins with ``head`` is instead of an ONNX model."""
    if not head:
        return "an empty file"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return f"not an ONNX model but {what}"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "not an ONNX model but a Python pickle (PyTorch .pt?), which planish never opens"
    if head[4:8] == b"TFL3":
        return "not an ONNX model but a TensorFlow Lite model"
    if head[4:8] == b"ORTM":
        return "not an ONNX model but one in ONNX Runtime's own format (.ort)"
    if head[8:10] == b'{"' and head[2:8] == bytes(6):
        return "not an ONNX model but a safetensors file"
    if not head.strip(b"\0"):
        return "not an ONNX model: it begins with zeros"
    if all(32 <= c < 127 or c in b"\t\r\n" for c in head):
        return "not an ONNX model but text" + (" (textual ONNX is called .onnxtxt)" if b"ir_version" in head else "")
    return "not an ONNX model, or a truncated one"


class ExternalData:
    """The files beside the model at ``path`` that hold its weights."""

    def __init__(self, path: Path):
        self.path = path
        self.roots: tuple[Path, ...] = ()
        self.files: dict[str, DataFile] = {}  # by location
        self.tensors: dict[tuple[str, int, int, tuple[int, ...]], Tensor] = {}

    def tensor(self, proto: TensorProto) -> Tensor:
        """The tensor whose data ``proto`` says are in a file; the same one for the same place.

        Raises:
            ModelError: there is no such file, it must not be read, or its bytes do not fit.
        """
        entries = {e.key: text(e.value) for e in proto.external_data}
        name, shape, dtype = text(proto.name), static_shape(proto, proto.name), dtype_of(proto.data_type)
        location = entries.get("location", "")
        offset = _number(entries, "offset", name) or 0
        key = (location, offset, dtype, shape)
        found = self.tensors.get(key)
        if found is not None:
            return found
        if not dtype.bits:
            raise ModelError(f"tensor {shown(name)}: {dtype.text} data cannot lie in another file")
        file = self.files.get(location)
        if file is None:
            file = self.files[location] = self._open(location)
        try:
            t = FileTensor(file, offset, dtype, shape, name)
        except TensorError as error:
            raise ModelError(str(error)) from None
        length = _number(entries, "length", name)
        if length is None:
            length = file.size - offset
        if t.length != length:
            what = f"tensor {shown(name)} is {t.type}, {t.length} bytes"
            raise ModelError(f"{what}, but has {length} in {file.path.name}")
        self.tensors[key] = t
        return t

    def _open(self, location: str) -> DataFile:
        """The file at ``location``, if it may be read."""
        if not location or "\0" in location:
            raise ModelError(f"a tensor has its data in a file called {shown(location)}")
        for flavour in (PurePosixPath(location), PureWindowsPath(location)):
            if flavour.anchor or ".." in flavour.parts:
                raise ModelError(f"external data {shown(location)} leads out of the model's folder")
        if not self.roots:
            # the model may be a link, as in the cache of Hugging Face: then its weights may lie beside its target
            self.roots = (self.path.parent.resolve(), self.path.resolve().parent)
        try:
            path = (self.path.parent / location).resolve(strict=True)
            status = path.stat()
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "links in a circle"
            raise ModelError(f"external data {shown(location)}: {reason}") from None
        if not any(path.is_relative_to(root) for root in self.roots):
            raise ModelError(f"external data {shown(location)} is a link that leads out of the model's folder")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"external data {shown(location)} is not a regular file")
        return DataFile.at(path)


def _number(entries: dict[str, str], key: str, name: str) -> int | None:
    digits = entries.get(key)
    if digits is None:
        return None
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise ModelError(f"tensor {shown(name)}: external data with {key} {shown(digits)}")
    return int(digits)
