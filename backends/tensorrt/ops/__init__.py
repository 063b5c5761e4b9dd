"""What TensorRT builds of each operator, and forms for what it does not build: a module per family.

Each module has a table ``ROWS`` of what is legal (`planish.backends.tensorrt.legality.Row`), by operator, and
``FORMS``. A form is a function of a node that was refused, and the version. It returns floating values for the results
of the node, in any operators that are legal or have forms in turn; None where it has no way. Then the node is computed
in a wider type, or the function body of the standard takes its place, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ....ir import Node, Value
from ..legality import Row
from ..versions import Version

__all__ = ["Form", "forms", "rows"]

Form = Callable[[Node, Version], Sequence[Value] | None]


@cache
def forms() -> Mapping[str, Form]:
    """The forms of all families, by operator."""
    return {op: form for module in _families() for op, form in module.FORMS.items()}


@cache
def rows() -> Mapping[str, Row]:
    """The tables of all families in one."""
    return {op: row for module in _families() for op, row in module.ROWS.items()}


def _families() -> list[Any]:
    return [import_module(f".{found.name}", __package__) for found in iter_modules(__path__)]
