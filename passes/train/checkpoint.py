"""Checkpoints: the state of a training in one ``.npz`` file, which appears whole or not at all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..base import RequestError
from ..files import replacing

__all__ = ["read_checkpoint", "write_checkpoint"]

_FORMAT = "planish training 1"
_META = "meta"
_HASHES = ("graph", "teacher")  # what nobody can read


def write_checkpoint(
    path: str | Path, identity: Mapping[str, str], facts: Mapping[str, Any], arrays: Sequence[np.ndarray[Any, Any]]
) -> None:
    """Write a state.

    Args:
        path: the file, replaced if it is there.
        identity: what training is of, a name for each part of it; `read_checkpoint` demands the same.
        facts: what JSON can hold.
        arrays: the rest, of types that numpy knows.

    Raises:
        RequestError: it cannot be written.
    """
    meta = json.dumps({"format": _FORMAT, "identity": dict(identity), "facts": dict(facts), "arrays": len(arrays)})
    named: dict[str, Any] = {_META: np.array(meta)} | {str(i): array for i, array in enumerate(arrays)}
    with replacing(path, "checkpoint ") as file:
        np.savez(file, **named)


def read_checkpoint(
    path: str | Path, identity: Mapping[str, str], like: Sequence[np.ndarray[Any, Any]]
) -> tuple[dict[str, Any], list[np.ndarray[Any, Any]]] | None:
    """What `write_checkpoint` wrote; None if there is no such file.

    Args:
        path: the file.
        identity: what training is of.
        like: arrays of the shapes and types to expect.

    Raises:
        RequestError: it is of something else, or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive[_META]))
            if meta["format"] != _FORMAT:
                raise ValueError(f"it does not say that it is a {_FORMAT!r}")
            _require_same(path, meta["identity"], identity)
            arrays = [archive[str(i)] for i in range(int(meta["arrays"]))]
            facts = dict(meta["facts"])
    except OSError as error:
        raise RequestError(f"checkpoint {path}: {error.strerror or error}") from error
    except (LookupError, TypeError, ValueError, EOFError, BadZipFile, zlib.error, AttributeError) as error:
        raise RequestError(f"{path} is no checkpoint: {' '.join(str(error).split())}") from error
    if [(a.shape, a.dtype) for a in arrays] != [(a.shape, a.dtype) for a in like]:
        raise RequestError(f"checkpoint {path} holds other weights: remove it, or give another name")
    return facts, arrays


def _require_same(path: Path, found: Mapping[str, str], identity: Mapping[str, str]) -> None:
    for what, value in identity.items():
        if found.get(what) != value:
            shown = "" if what in _HASHES else f": {found.get(what)}, not {value}"
            raise RequestError(f"checkpoint {path} is of another {what}{shown}: remove it, or give another name")
