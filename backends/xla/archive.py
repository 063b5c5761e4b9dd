"""Compiled models as one file: a zip without compression of a manifest, compiled code and the weights.

``manifest.json`` names inputs, outputs and weights; every weight is an entry ``weights/<number>`` with its elements as
ONNX lays them out (little-endian; two or four narrow ones per byte). Weights are written and read one at a time.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.dims import parse_dim
from ...ir.errors import PlanishError
from ...ir.tensor import Tensor, TensorError, unpack
from ...ir.types import UNKNOWN, DType, TensorType, Type
from ..files import Files

__all__ = ["described", "parsed", "read", "write", "write_bytes"]

_MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 28
_VERSION = 1


def described(name: str, type_: Type) -> dict[str, Any]:
    """An input or output for the manifest."""
    if not isinstance(type_, TensorType) or type_.shape is None:
        return {"name": name}
    return {
        "name": name,
        "dtype": type_.dtype.text,
        "shape": [d if isinstance(d, int) else str(d) for d in type_.shape],
    }


def parsed(entry: Mapping[str, Any]) -> tuple[str, Type]:
    """Name and type of an input or output."""
    if "dtype" not in entry:
        return str(entry["name"]), UNKNOWN
    shape = tuple(d if isinstance(d, int) else parse_dim(str(d)) for d in entry["shape"])
    return str(entry["name"]), TensorType(_dtype(entry["dtype"]), shape)


def _dtype(text: Any) -> DType:
    found = next((d for d in DType if d.text == text), None)
    if found is None:
        raise ValueError(f"no element type {text!r}")
    return found


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        PlanishError: it cannot be written.
    """
    try:
        with Files(Path(path)) as files:
            with os.fdopen(os.dup(files.create(Path(path).name)), "wb") as file:
                file.write(data)
            files.commit()
    except OSError as error:
        raise PlanishError(f"{os.fspath(path)}: {error.strerror or error}") from error


def write(
    path: str | os.PathLike[str], kind: str, manifest: Mapping[str, Any], entries: Mapping[str, bytes],
    tensors: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Write an archive, whole or not at all.

    Args:
        path: the file.
        kind: what it is.
        manifest: facts about it.
        entries: the code, by name of the entry.
        tensors: the weights, by name.

    Raises:
        PlanishError: it cannot be written.
    """
    weights = [{"name": n, "dtype": t.dtype.text, "shape": list(t.shape)} for n, t in tensors.items()]
    head = {"kind": kind, "version": _VERSION, **manifest, "weights": weights}
    try:
        with Files(Path(path)) as files:
            descriptor = os.dup(files.create(Path(path).name))
            with os.fdopen(descriptor, "w+b") as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
                archive.writestr(_MANIFEST, json.dumps(head, indent=1))
                for name, data in entries.items():
                    archive.writestr(name, data)
                for i, tensor in enumerate(tensors.values()):
                    with archive.open(f"weights/{i}", "w", force_zip64=tensor.nbytes >= 1 << 31) as entry:
                        for chunk in tensor.chunks():
                            entry.write(chunk)
            files.commit()
    except TensorError as error:
        raise PlanishError(f"{os.fspath(path)}: {error}") from error
    except OSError as error:
        raise PlanishError(f"{os.fspath(path)}: {error.strerror or error}") from error


def read(
    path: str | os.PathLike[str], kind: str, names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, bytes], dict[str, np.ndarray[Any, Any]]]:
    """Manifest, entries ``names`` and weights of an archive.

    Raises:
        PlanishError: it is no archive of this kind, or damaged.
    """
    where = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
            if compressed:
                raise ValueError(f"entry {compressed[0]!r} is compressed")
            if archive.getinfo(_MANIFEST).file_size > _MAX_MANIFEST:
                raise ValueError("its manifest is too large")
            manifest = json.loads(archive.read(_MANIFEST))
            if not isinstance(manifest, dict) or manifest.get("kind") != kind:
                raise ValueError(f"it is no {kind} file")
            if manifest["version"] != _VERSION:
                raise ValueError(f"it has version {manifest['version']}; this planish reads {_VERSION}")
            entries = {name: archive.read(name) for name in names}
            weights = {str(w["name"]): _weight(archive, i, w) for i, w in enumerate(manifest["weights"])}
            return manifest, entries, weights
    except OSError as error:
        raise PlanishError(f"{where}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, RecursionError, NotImplementedError) as error:
        raise PlanishError(
            f"{where}: not a file that planish wrote, or damaged: {' '.join(str(error).split())}"
        ) from error


def _weight(archive: zipfile.ZipFile, index: int, entry: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    shape = tuple(int(d) for d in entry["shape"])
    if any(d < 0 for d in shape):
        raise ValueError(f"weight {entry['name']!r} has a negative size")
    raw = np.frombuffer(archive.read(f"weights/{index}"), np.uint8)
    return unpack(raw, _dtype(entry["dtype"]), shape)
