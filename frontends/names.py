"""What frontends call things: the parameters of functions, and names that are unique."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["Names", "parameter_names"]


class Names:
    """Names that are given once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unused(self, name: str) -> str:
        """``name``, with a number behind it if it was given before."""
        found, count = name, 0
        while found in self._taken:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found)
        return found


def parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    """What a function calls its first ``count`` positional arguments."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of a builtin
        parameters = []
    names: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return [*names, *(f"arg_{i}" for i in range(len(names), count))][:count]
