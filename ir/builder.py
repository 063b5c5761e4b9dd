"""``op``: builds nodes, and patterns, by calling operators as functions.

``op.Add(x, 1.0)`` makes a floating node, typed at once, and returns its result; an ill-typed call raises `IllTyped`.
Numbers and arrays among the operands become constants (a number takes the dtype of the first tensor operand).
Keyword arguments are attributes. ``op.domain("com.microsoft").FusedConv(...)`` reaches other domains. The same calls on
pattern variables build patterns: see `planish.passes.pattern`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import Graph, Node, Value, constant
from .infer import infer
from .tensor import Tensor
from .types import DType

__all__ = ["Operators", "make_node", "op"]

# operators whose usual number of results is not one, when the caller does not say
_RESULTS = {"Split": "num_outputs", "LSTM": 3, "GRU": 2, "RNN": 2, "TopK": 2, "DynamicQuantizeLinear": 3}


def as_value(operand: Any, dtype: DType | None = None) -> Value | None:
    """``operand`` as a value: itself, or a constant of ``dtype``."""
    if operand is None or isinstance(operand, Value):
        return operand
    if isinstance(operand, Tensor | np.ndarray | np.generic):
        return constant(operand)
    return constant(operand, dtype if isinstance(operand, int | float) else None)


def as_attribute(value: Any) -> Any:
    """``value`` in the form in which nodes hold attributes: lists become tuples, arrays tensors."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, np.ndarray):
        return constant(value).const
    if isinstance(value, DType | bool):
        return int(value)
    return value


def make_node(
    op_name: str, operands: tuple[Any, ...], attrs: dict[str, Any], results: int | None = None, *, name: str = ""
) -> Node:
    """A floating, typed node.

    Raises:
        IllTyped: the operands or attributes contradict the operator.
    """
    dtype = next((o.dtype for o in operands if isinstance(o, Value) and o.dtype), None)
    values = [as_value(o, dtype) for o in operands]
    while values and values[-1] is None:
        values.pop()
    attributes = {k: as_attribute(v) for k, v in attrs.items() if v is not None}
    if results is None:
        default = _RESULTS.get(op_name, 1)
        results = (
            attributes[default]
            if isinstance(default, str) and default in attributes
            else default
            if isinstance(default, int)
            else 1
        )
    node = Node(op_name, values, attributes, results, name=name)
    infer(node)
    return node


class Operators:
    """Operators of one domain as functions."""

    def __init__(self, domain: str = ""):
        self._domain = domain

    def domain(self, name: str) -> Operators:
        """The operators of domain ``name``."""
        return Operators(name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        full = f"{self._domain}.{name}" if self._domain else name

        def build(*operands: Any, outputs: int | None = None, **attrs: Any) -> Any:
            for operand in (*operands, *attrs.values()):
                if hasattr(operand, "__pattern__"):
                    return operand.__pattern__(full, operands, attrs, outputs)
            node = make_node(full, operands, attrs, outputs)
            return node.result if len(node.results) == 1 else node.results

        build.__name__ = name
        setattr(self, name, build)
        return build


op = Operators()


def subgraph(name: str, inputs: list[tuple[str, Any]], body: Callable[..., Any]) -> Graph:
    """A nested graph whose nodes ``body`` builds from its input values; it returns the outputs."""
    from .edit import insert_floating

    graph = Graph(name)
    values = [graph.add_input(type_, hint) for hint, type_ in inputs]
    results = body(*values)
    outputs = results if isinstance(results, tuple | list) else (results,)
    insert_floating(outputs, graph.ret)
    graph.set_outputs(outputs)
    return graph


PYTHON_OPERATORS = {"add": "Add", "sub": "Sub", "mul": "Mul", "truediv": "Div", "matmul": "MatMul", "pow": "Pow"}


def _install_operators() -> None:
    def binary(name: str, swap: bool = False) -> Callable[[Value, Any], Any]:
        def apply(self: Value, other: Any) -> Any:
            return getattr(op, name)(other, self) if swap else getattr(op, name)(self, other)

        return apply

    for python, name in PYTHON_OPERATORS.items():
        setattr(Value, f"__{python}__", binary(name))
        setattr(Value, f"__r{python}__", binary(name, swap=True))


_install_operators()
