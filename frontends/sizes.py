"""Symbolic sizes: jax's dimension expressions as `planish.ir` dims, and as values that a graph computes.

jax writes its expressions as polynomials over named sizes, with ``floordiv``, ``mod``, ``max`` and ``min``; they are
read from that text, which is the grammar of ``jax.export.symbolic_shape``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..ir.dims import Dim, Sym, dim_floordiv, dim_max, dim_min, dim_mod, is_non_negative, sym
from ..ir.errors import ModelError
from ..ir.graph import Value

if TYPE_CHECKING:
    from .emit import Emitter

__all__ = ["Sizes", "dim_of", "integer"]

_DIMS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "floordiv": dim_floordiv,
    "mod": dim_mod,
    "max": dim_max,
    "min": dim_min,
}
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


def integer(dim: Dim) -> int:
    """A dim that is known."""
    assert isinstance(dim, int)
    return dim


def dim_of(size: Any) -> Dim:
    """The dim that a size of a jaxpr stands for: an integer, or an expression over named sizes."""
    text = str(size)
    if text.lstrip("-").isdigit():
        return int(text)
    found: Dim = _walk(_parse(text), int, sym, lambda function, a, b: _DIMS[function](a, b))
    return found


def _parse(text: str) -> ast.expr:
    return ast.parse(text.replace("^", "**"), mode="eval").body


def _walk(
    node: ast.expr, number: Callable[[int], Any], name: Callable[[str], Any], apply: Callable[[str, Any, Any], Any]
) -> Any:
    """The value of an expression, from what numbers, names and functions mean."""

    def walk(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(value)):
                return number(value)
            case ast.Name(id=text):
                return name(text)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return apply("*", number(-1), walk(operand))
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(exponent))) if exponent > 0:
                base = found = walk(left)
                for _ in range(exponent - 1):
                    found = apply("*", found, base)
                return found
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _SIGNS:
                return apply(_SIGNS[type(operator)], walk(left), walk(right))
            case ast.Call(func=ast.Name(id=function), args=[a, b]) if function in _DIMS:
                return apply(function, walk(a), walk(b))
        raise ModelError(f"cannot read the size {ast.unparse(node)!r} of the jaxpr")

    return walk(node)


class Sizes:
    """The sizes of a graph's inputs as int64 values of shape ``[1]``, and what is computed from them.

    Everything is computed in the root graph, where nested graphs see it, and once.
    """

    def __init__(self, emitter: Emitter):
        self._emitter = emitter
        self._sources: dict[str, tuple[Value, int, int, int]] = {}  # by name: an input, its axis, and k, c of k*n + c
        self._values: dict[Dim, Value] = {}

    def add_input(self, value: Value) -> None:
        """Let the sizes of a graph input define the names in its shape."""
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, Sym) and (linear := _linear(dim)) is not None:
                name, factor, offset = linear
                known = self._sources.get(name)
                if known is None or (factor, offset) == (1, 0) != known[2:]:
                    self._sources[name] = (value, axis, factor, offset)

    def undefined(self, dims: list[Dim]) -> list[str]:
        """The names in ``dims`` that no input defines."""
        atoms = {atom for dim in dims if isinstance(dim, Sym) for monomial in dim.terms for atom in monomial}
        return sorted(a for a in atoms if a.isidentifier() and a not in self._sources)

    def value(self, dim: Dim) -> Value:
        """``dim`` as an int64 value of shape ``[1]``: a constant if it is known."""
        if isinstance(dim, int):
            return self._emitter.integers([dim])
        found = self._values.get(dim)
        if found is None:
            with self._emitter.in_root():
                found = self._values[dim] = self._compute(str(dim))
        return found

    def _compute(self, text: str) -> Value:
        op = self._emitter.op

        def apply(function: str, a: Dim, b: Dim) -> Dim:
            dim = _DIMS[function](a, b)
            if isinstance(dim, Sym) and dim not in self._values:
                self._values[dim] = self._apply(function, a, b)
            return dim

        dim = _walk(_parse(text), int, self._name, apply)
        return op.Identity(self.value(dim)) if isinstance(dim, int) else self._values[dim]

    def _apply(self, function: str, a: Dim, b: Dim) -> Value:
        op = self._emitter.op
        x, y = self.value(a), self.value(b)
        match function:
            case "+":
                return op.Add(x, y)
            case "-":
                return op.Sub(x, y)
            case "*":
                return op.Mul(x, y)
            case "mod":
                return op.Mod(x, y)  # with the sign of the divisor, as in Python
            case "max":
                return op.Max(x, y)
            case "min":
                return op.Min(x, y)
        if not (is_non_negative(a) and is_non_negative(b)):
            x = op.Sub(x, op.Mod(x, y))  # Div rounds towards zero
        return op.Div(x, y)

    def _name(self, name: str) -> Dim:
        dim = sym(name)
        if dim not in self._values:
            if name not in self._sources:
                raise ModelError(f"no input has the size {name!r} as a dimension, so the graph cannot know it")
            op = self._emitter.op
            source, axis, factor, offset = self._sources[name]
            value = op.Shape(source, start=axis, end=axis + 1)
            if offset:
                value = op.Sub(value, self._emitter.integers([offset]))
            if factor != 1:
                value = op.Div(value, self._emitter.integers([factor]))
            self._values[dim] = value
        return dim


def _linear(dim: Sym) -> tuple[str, int, int] | None:
    """``n, k, c`` where ``dim`` is ``k*n + c``; else None."""
    names = [(monomial, factor) for monomial, factor in dim.terms.items() if monomial]
    if len(names) != 1 or len(names[0][0]) != 1 or not names[0][0][0].isidentifier():
        return None
    return names[0][0][0], names[0][1], dim.terms.get((), 0)
