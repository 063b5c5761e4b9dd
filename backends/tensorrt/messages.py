"""What TensorRT says, for people: in one line, without places in its own sources, and of which node."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...ir import Node

__all__ = ["first", "named", "readable", "reason_of", "telling"]

_MOST = 400  # characters of a message
_PLACES = (
    re.compile(r"\s*\bIn \S+ at /\S+?:\d+\)?"),
    re.compile(r"\[[\w./]+\.(?:cpp|h|cu):\d+: [\w:]+\]:?\s*"),
    re.compile(r"\[?[\w./]+\.(?:cpp|h|cu)(?:::[\w:]+)?(?::+\d+)?\]?:?\s*"),
    re.compile(r"^(?:I\w+::\w+: )?Error Code \d+: (?:[\w ]+ \()?"),
)
_FOLLOWS = re.compile(r"catchCudaError|\(cudaError 35\b")  # what is said after any error where there is no driver
_IN_NODE = re.compile(r"In node -?\d+ with name: .*? and operator: .*? \(\w+\): ")
_TOKEN = re.compile(r"""(.?)([^\s'"(),;\[\]{}]+)""", re.DOTALL)
_LAYER = re.compile(r"\[ONNX Layer: (.+?)(?: \| .*?)?\]")


def readable(message: str) -> str:
    """A message in one line, without places in TensorRT's own sources."""
    lines = [line for line in message.splitlines() if line.strip() and not _FOLLOWS.search(line)]
    telling = [line for line in lines if not line.startswith("Invalid Node - ")]
    text = "; ".join(dict.fromkeys(_clean(line) for line in telling or lines or [message]))
    return text[:_MOST].strip(" ;.")


def _clean(line: str) -> str:
    text = " ".join(line.split())
    for place in _PLACES:
        text = place.sub("", text)
    if text.count(")") > text.count("("):
        text = text.rstrip(" .;").removesuffix(")")
    return text.strip(" ;.")


def telling(messages: Sequence[str]) -> list[str]:
    """Those of ``messages`` that say what went wrong; all if none does."""
    return [m for m in messages if not _FOLLOWS.search(m)] or list(messages)


def first(messages: Sequence[str]) -> str:
    """The first of ``messages`` in one line, or ""."""
    return readable(messages[0]) if messages else ""


def reason_of(error: Any) -> str:
    """What the parser complains of."""
    stack = error.local_function_stack() if hasattr(error, "local_function_stack") else []
    inside = " in " + " in ".join(reversed(list(stack))) if stack else ""
    return readable(_IN_NODE.sub("", str(error.desc()))) + inside


def named(message: str, nodes: Mapping[str, Node]) -> list[Node]:
    """The nodes that ``message`` names: in quotes or brackets, before a colon, or by names that are no plain words."""
    found = dict.fromkeys(name for name in _LAYER.findall(message) if name in nodes)
    for before, token in _TOKEN.findall(message):
        name = token if token in nodes else token.rstrip(":.")
        if name in nodes and (before in "'\"[" or token != name or re.search(r"[^A-Za-z]", name)):
            found[name] = None
    return [nodes[name] for name in found]
