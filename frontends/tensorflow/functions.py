"""Functions that graphs call: their graphs, by name, and the variables that they change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

__all__ = ["changed_variables", "find_function", "function_graph"]

_IMPORTED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # graphs of functions that TensorFlow has not made
_CHANGES = ("Assign", "ResourceScatter", "ResourceStridedSliceAssign", "ResourceApply", "ResourceSparseApply")
_CALLS = ("f", "then_branch", "else_branch", "cond", "body")  # attributes that name a function
_CHOICES = frozenset(["If", "StatelessIf", "Case", "StatelessCase"])  # their first input is no argument of a branch


def find_function(graph: Any, name: str) -> Any:
    """The graph of a function that ``graph``, or one around it, knows; None if there is none of this name."""
    while graph is not None:
        found = graph._get_function(name)
        if found is not None:
            return found.graph if hasattr(found, "graph") else _imported(graph, found)
        graph = getattr(graph, "outer_graph", None)
    return None


def function_graph(graph: Any, name: str) -> Any:
    """The graph of a function.

    Raises:
        LookupError: there is none of this name.
    """
    found = find_function(graph, name)
    if found is None:
        raise LookupError(name)
    return found


def _imported(graph: Any, function: Any) -> Any:
    """The graph of a function that came with a GraphDef."""
    if function not in _IMPORTED:
        with graph.as_default():  # which knows what it calls
            _IMPORTED[function] = function_def_to_graph(function.definition)
    return _IMPORTED[function]


def changed_variables(graph: Any, handles: Mapping[str, Any]) -> set[int]:
    """The identities of the handles that operations of ``graph``, or of what it calls, change.

    Args:
        graph: a TensorFlow graph.
        handles: of variables, by the names of tensors.
    """
    found: set[int] = set()
    _search(graph, dict(handles), found, ())
    return found


def _search(graph: Any, handles: dict[str, Any], found: set[int], around: tuple[Any, ...]) -> None:
    if not handles or graph in around:
        return
    for operation in graph.get_operations():
        inputs = [handles.get(t.name) for t in operation.inputs]
        if not any(h is not None for h in inputs):
            continue
        if operation.type == "Identity":
            handles[operation.outputs[0].name] = inputs[0]
        elif operation.type.startswith(_CHANGES):
            found.add(id(inputs[0]))
        elif operation.type != "ReadVariableOp":
            arguments = inputs[1:] if operation.type in _CHOICES else inputs
            for body in _called(graph, operation):
                inner = {t.name: h for t, h in zip(body.inputs, arguments, strict=False) if h is not None}
                _search(body, inner, found, (*around, graph))


def _called(graph: Any, operation: Any) -> list[Any]:
    """The graphs of the functions that an operation calls."""
    attributes = operation.node_def.attr
    names = [attributes[name].func.name for name in _CALLS if name in attributes]
    names += [f.name for f in attributes["branches"].list.func] if "branches" in attributes else []
    found = [find_function(graph, name) for name in names or [operation.type]]
    return [body for body in found if body is not None]
