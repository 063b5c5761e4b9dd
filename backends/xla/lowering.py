"""The table of lowerings: for every operator, the function that computes it with ``jax``.

A lowering is called with a `Call` and the operands, and returns the result, or a tuple of several. Its operands are JAX
arrays (an omitted one is None, a sequence a list) except those that it declares ``static``: they decide shapes, and
arrive as numpy arrays of numbers, or of numbers and symbolic dimensions. The modules in `planish.backends.xla.ops` fill
the table, one per family of operators.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.graph import Graph, Node
from ...ir.schema import default_attribute
from ...ir.types import SequenceType, TensorType, Type
from ..base import LoweringError, Problem
from .values import concrete, to_dtype

if TYPE_CHECKING:
    from .interpreter import Interpreter

__all__ = [
    "Call",
    "DataDependentError",
    "Lowering",
    "find",
    "find_integers",
    "find_padded",
    "lowered_in",
    "lowers",
    "lowers_integers",
    "lowers_padded",
]

_TABLE: dict[str, Lowering] = {}
_INTEGERS: dict[str, Callable[..., Any]] = {}
_PADDED: dict[str, Callable[..., Any]] = {}


class DataDependentError(LoweringError):
    """A node whose results have shapes that depend on data: it can be run, but not traced."""

    def __init__(self, node: Node, reason: str):
        super().__init__("xla", [Problem(node, reason)])


@dataclass(frozen=True)
class Lowering:
    """How an operator is computed.

    Attributes:
        function: computes it: ``function(call, *operands)``.
        static: the operands whose elements must be known when the function is traced, because they decide shapes; or
            a function that tells them for a node.
        data_dependent: whether the shape of a result depends on elements that are not ``static``: outside of a trace
            it is exact, within one it can only be padded (`lowers_padded`).
        is_random: whether every evaluation may give something else.
        refuses: a node that this lowering cannot compute is told by a reason, all others by None.
    """

    function: Callable[..., Any]
    static: Collection[int] | Callable[[Node], Collection[int]]
    data_dependent: bool | Callable[[Node], bool]
    is_random: bool
    refuses: Callable[[Node], str | None] | None

    def static_operands(self, node: Node) -> Collection[int]:
        """The operands of ``node`` whose elements must be known."""
        return self.static(node) if callable(self.static) else self.static

    def depends_on_data(self, node: Node) -> bool:
        """Whether the shape of a result of ``node`` depends on the elements of its operands."""
        return self.data_dependent(node) if callable(self.data_dependent) else self.data_dependent


def lowers(
    *ops: str,
    static: Collection[int] | Callable[[Node], Collection[int]] = (),
    data_dependent: bool | Callable[[Node], bool] = False,
    is_random: bool = False,
    refuses: Callable[[Node], str | None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table, for one or several operators; see `Lowering`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            assert op not in _TABLE, f"two lowerings of {op}"
            _TABLE[op] = Lowering(function, static, data_dependent, is_random, refuses)
        return function

    return register


def lowers_integers(*ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function that computes operators of which some operands are `planish.backends.xla.quantized.Quantized`.

    It returns NotImplemented where it needs numbers instead; then their usual lowering computes them.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _INTEGERS.update(dict.fromkeys(ops, function))
        return function

    return register


def find_integers(op: str) -> Callable[..., Any] | None:
    """What computes ``op`` for quantized operands, if there is something."""
    _fill()
    return _INTEGERS.get(op)


def lowers_padded(*ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function for operators whose operands or results are `planish.backends.xla.padded.Padded`.

    It returns NotImplemented where it cannot carry them on.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            assert op not in _PADDED, f"two ways to carry {op} on"
            _PADDED[op] = function
        return function

    return register


def find_padded(op: str) -> Callable[..., Any] | None:
    """What computes ``op`` for padded operands, or a padded result of it, if there is something."""
    _fill()
    return _PADDED.get(op)


def find(op: str) -> Lowering | None:
    """The lowering of ``op``, if there is one."""
    _fill()
    return _TABLE.get(op)


def lowered_in(module: str) -> list[str]:
    """The operators that the module of this name, which has been imported, enters into the table."""
    return [op for op, lowering in _TABLE.items() if lowering.function.__module__ == module]


@cache
def _fill() -> None:
    from . import ops

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")


class Call:
    """One node that is being computed, as its lowering sees it.

    Attributes:
        node: the node.
        interpreter: what computes it.
        operands: as they are known, before they became JAX arrays.
    """

    __slots__ = ("_env", "interpreter", "node", "operands")

    def __init__(self, node: Node, operands: Sequence[Any], interpreter: Interpreter, env: dict[Any, Any]):
        self.node = node
        self.operands = operands
        self.interpreter = interpreter
        self._env = env

    def __getitem__(self, name: str) -> Any:
        """Attribute ``name`` of the node, or its default; None if it has neither."""
        value = self.node.attrs.get(name)
        return default_attribute(self.node.op, name) if value is None else value

    def known(self, index: int) -> np.ndarray[Any, Any] | None:
        """The elements of operand ``index``, if they are known now; None if it is traced or left out."""
        return concrete(self.operands[index]) if index < len(self.operands) else None

    def is_wanted(self, index: int) -> bool:
        """Whether anything uses result ``index``."""
        return index < len(self.node.results) and self.node.results[index].is_used

    def dtype(self, index: int = 0) -> np.dtype[Any]:
        """The element type of result ``index`` as JAX has it: narrow where 64-bit types are off."""
        return to_dtype(self.node.results[index].dtype)

    def type(self, index: int = 0) -> Type:
        """The type of result ``index``."""
        return self.node.results[index].type

    def run(self, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a nested ``graph`` for ``inputs``. What it captures has the value it has now."""
        return self.interpreter.run(graph, inputs, dict(self._env))

    def once(self, what: str, sources: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives for ``sources``: the same object wherever it is asked for in this run of the graph."""
        key = (what, *map(id, sources))
        if key not in self._env:
            self._env[key] = (compute(), sources)  # which are kept, so that nothing else can have their places
        return self._env[key][0]

    def compute(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """What the lowering of this node computes for other operands than its own."""
        lowering = find(self.node.op)
        assert lowering is not None
        other = Call(self.node, operands, self.interpreter, self._env)
        return self.interpreter.lowered(other, lowering)

    def error(self, reason: str) -> LoweringError:
        """The error that says that this node cannot be computed."""
        return LoweringError("xla", [Problem(self.node, reason)])


def has_strings(type_: Type) -> bool:
    """Whether a value of this type holds strings."""
    while isinstance(type_, SequenceType):
        type_ = type_.element
    return isinstance(type_, TensorType) and type_.dtype.name == "STRING"
