"""Where nodes come from: reading the provenance that exporters leave in node metadata."""

from __future__ import annotations

import ast
import re

from .graph import Node, Origin

__all__ = ["MODULE_KEY", "RULES_KEY", "SOURCE_KEY", "innermost_frame", "origin_of"]

RULES_KEY = "planish.rules"  # metadata property under which a saved model keeps the rewrites behind a node
SOURCE_KEY = "planish.source"  # ``file.py:line``, from frontends that know it
MODULE_KEY = "planish.module"  # the path of the module, likewise
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = re.compile(r"(^|[/\\](site|dist)-packages[/\\])torch[/\\]")


def origin_of(node: Node) -> Origin:
    """The origin of ``node``: planish's own records, or torch.onnx's stack traces and name scopes."""
    metadata = node.metadata or {}
    rules = tuple(r for r in metadata.get(RULES_KEY, "").split(",") if r) + node.rules
    source = metadata.get(SOURCE_KEY) or innermost_frame(metadata.get("pkg.torch.onnx.stack_trace", ""))
    module = metadata.get(MODULE_KEY) or _module_path(metadata.get("pkg.torch.onnx.name_scopes", ""))
    return Origin(source, module, (node.name,) if node.name else (), rules)


def innermost_frame(trace: str) -> str:
    """``file:line`` of the innermost frame of a stack trace, of the model's own code if any of the frames is."""
    frames: list[tuple[str, str]] = _FRAME.findall(trace)
    own = [frame for frame in frames if not _TORCH.search(frame[0])]
    return ":".join((own or frames)[-1]) if frames else ""


def _module_path(scopes: str) -> str:
    """The innermost named module of torch.onnx's list of scopes (its last entry is the node itself)."""
    if not scopes or len(scopes) > 10_000:
        return ""
    try:
        names = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    modules = [n for n in names[:-1] if isinstance(n, str) and n] if isinstance(names, list) else []
    return modules[-1] if modules else ""
