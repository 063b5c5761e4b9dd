"""``.pt2`` files -> `Graph`: what ``torch.export.save`` writes.

Such a file is a program for ``torch.export.load``, which unpickles, evaluates expressions and loads compiled code that
it finds in one. `load_pt2` refuses files with anything of the kind, but it is no sandbox: torch parses the rest.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import ModelError
from ...ir.graph import Graph
from .export import from_exported, quiet, require_torch
from .failure import describe

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["load_pt2"]

_RECORD = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|extra/.+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
)
_OPERATOR = re.compile(r"torch\.ops(\.(?!__)\w+)+|_operator\.(?!__)\w+|math\.(?!__)\w+|torch\.sym_\w+|torch\._sym_\w+")
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
    ast.Load, ast.keyword,
)  # fmt: skip
_WORD = re.compile(r"(?!_)\w+|[\d.e+-]+")
_FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # makes torch.load refuse to unpickle anything but tensors


def load_pt2(path: str | os.PathLike[str]) -> Graph:
    """The graph of a ``.pt2`` file, which is read into memory.

    Open only files whose makers you trust: torch itself says so of ``torch.export.load``, which reads the file.

    Raises:
        ImportError: an extra is missing.
        ModelError: the file is missing, damaged, or holds pickled objects or code.
    """
    require_torch()
    path = Path(path)
    try:
        return from_exported(_load(path))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def _load(path: Path) -> ExportedProgram:
    import torch.export
    from torch.export.pt2_archive import PT2ArchiveReader

    if not path.is_file():
        raise ModelError("no such file" if not path.exists() else "not a regular file")
    try:
        archive = PT2ArchiveReader(str(path))
        _check(archive)
        with quiet(), _tensors_only():
            return torch.export.load(path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"not a file of torch.export.save, or damaged ({describe(error)})") from error


def _check(archive: Any) -> None:
    """Refuse what torch would unpickle, evaluate or run.

    Raises:
        ModelError: there is such a thing.
    """
    for record in archive.get_file_names():
        if not _RECORD.fullmatch(record):
            raise ModelError(f"holds {record}, which planish does not load: only programs and plain tensors")
    for folder in ("weights", "constants"):
        config = json.loads(archive.read_string(f"data/{folder}/model_{folder}_config.json"))["config"]
        for name, entry in config.items():
            if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                raise ModelError(f"holds {name!r} as a pickled object, which planish does not load")
    for key, text in _strings(json.loads(archive.read_string("models/model.json"))):
        if key == "target" and not _OPERATOR.fullmatch(text):
            raise ModelError(f"calls {text[:80]!r}, which is no operator")
        if key == "expr_str" and not _is_arithmetic(text):
            raise ModelError(f"has {text[:80]!r} for a size")


def _strings(tree: Any) -> Iterator[tuple[str, str]]:
    """All strings that are entries of dictionaries, with their keys."""
    stack = [tree]
    while stack:
        part = stack.pop()
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(value, str):
                yield str(key), value
            elif isinstance(value, dict | list):
                stack.append(value)


def _is_arithmetic(text: str) -> bool:
    """Whether ``text`` is numbers, names, operators and classes of sympy (``2*Symbol('s0', integer=True)``)."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_is_harmless, nodes))


def _is_harmless(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=str(text)) | ast.Name(id=text):
            return _WORD.fullmatch(text) is not None
        case ast.Constant(value=value):
            return isinstance(value, int | float)
        case ast.Call(func=ast.Name(id=name)):
            return name[0].isupper() or name in ("floor", "ceiling")
    return isinstance(node, _ARITHMETIC)


@contextmanager
def _tensors_only() -> Iterator[None]:
    before = os.environ.get(_FORCE_SAFE)
    os.environ[_FORCE_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE_SAFE]
        else:
            os.environ[_FORCE_SAFE] = before
