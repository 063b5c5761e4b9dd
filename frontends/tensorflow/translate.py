"""Operations of a TensorFlow graph to nodes: calls the rule of each, and keeps account of what has none.

A rule is called with the translator, the operation and the values of its inputs, and returns the result (or results).
It raises `Refused` where there is no translation; the walk goes on, so that one error lists everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import tensorflow as tf

from ...ir.errors import ModelError
from ...ir.graph import Graph, Value
from ...ir.infer import IllTyped
from ...ir.origin import MODULE_KEY, SOURCE_KEY
from ...ir.types import UNKNOWN, DType, TensorType, compatible, merge, tensor_type
from ..emit import Emitter, Refused
from .functions import find_function
from .layout import Layouts
from .opaque import kept
from .origin import module_of, source_of
from .reasons import Refusal, UnsupportedOperations, reason_for
from .tensor import Weights

__all__ = ["CALL", "RULES", "Operation", "Translator", "dtype_of", "rule", "type_of"]

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}  # by the operation's type
CALL = "a function"  # the rule of operations whose type is the name of a function


def rule(*types: str) -> Callable[[Rule], Rule]:
    """Register the rule of one or more types of operations."""

    def register(function: Rule) -> Rule:
        for name in types:
            RULES[name] = function
        return function

    return register


@cache
def dtype_of(dtype: Any) -> DType:
    """The element type.

    Raises:
        Refused: ONNX has none, or its operators do not compute with it.
    """
    if dtype == tf.string:
        raise Refused("strings: ONNX computes with numbers: do this before the model, and give it the ids")
    if dtype.is_complex:
        raise Refused("complex numbers: ONNX operators do not compute with them")
    try:
        return DType.from_numpy(dtype.as_numpy_dtype)
    except (TypeError, KeyError):  # a variant or a resource has none in numpy, either
        raise Refused(f"ONNX has no element type {dtype.name}") from None


def type_of(tensor: Any) -> TensorType:
    """The type of a symbolic tensor; sizes that TensorFlow does not know are unknown ones.

    Raises:
        Refused: it is no tensor of numbers.
    """
    if tensor.shape.rank is None:
        return TensorType(dtype_of(tensor.dtype), None)
    return tensor_type(dtype_of(tensor.dtype), *tensor.shape.as_list())


class Operation:
    """One operation, as rules see it.

    Attributes:
        type: its type.
        name: its name.
        graph: the TensorFlow graph that has it, which knows the functions it calls.
        tensors: its outputs.
    """

    def __init__(self, operation: Any):
        self.type: str = operation.type
        self.name: str = operation.name
        self.graph = operation.graph
        self.tensors: Sequence[Any] = operation.outputs
        self._operation = operation

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, bytes as text; ``default`` where there is none."""
        try:
            found = self._operation.get_attr(name)
        except ValueError:
            return default
        return found.decode() if isinstance(found, bytes) else found

    @property
    def attributes(self) -> list[str]:
        """The names of its attributes."""
        return list(self._operation.node_def.attr)

    @cached_property
    def outs(self) -> list[TensorType]:
        """The types of the results."""
        return [type_of(t) for t in self.tensors]

    @property
    def out(self) -> TensorType:
        """The type of the first result."""
        return self.outs[0]


class Translator(Emitter):
    """Translates one TensorFlow graph with everything in it.

    Attributes:
        weights: arrays as constants.
        layouts: which values are kept with channels first.
        module_of: the module that an operation is in, by its name.
        opaque: types of operations that stay as they are.
        kept: those of them that there were.
        refusals: what could not be translated.
        calls: the graphs of the functions that are being inlined.
    """

    def __init__(self, graph: Graph, weights: Weights):
        super().__init__(graph)
        self.weights = weights
        self.layouts = Layouts(self)
        self.module_of: Callable[[str], str] = module_of
        self.opaque: Collection[str] = ()
        self.kept: set[str] = set()
        self.refusals: list[Refusal] = []
        self.calls: list[Any] = []

    def finish(self, what: str) -> None:
        """Say what could not be translated.

        Raises:
            UnsupportedOperations: there was something.
        """
        if self.refusals:
            raise UnsupportedOperations(what, self.refusals)

    def inline(self, graph: Any, given: Mapping[str, Any], outputs: Sequence[Any]) -> list[Any]:
        """Translate what ``outputs`` need.

        Args:
            graph: a TensorFlow graph.
            given: what stands for tensors that are known, by name: values, and handles of resources.
            outputs: tensors of ``graph``.
        """
        env = dict(given)
        for operation in needed(graph, given, outputs):
            names = [t.name for t in operation.outputs]
            operands = [env[t.name] if t.name in env else Value() for t in operation.inputs]
            env.update(zip(names, self._operation(operation, operands), strict=True))
        return [env[t.name] for t in outputs]

    def _operation(self, operation: Any, operands: list[Any]) -> list[Any]:
        before = self.label, self.metadata
        source, module = source_of(operation), self.module_of(operation.name)
        self.label = operation.name
        own = {k: v for k, v in ((SOURCE_KEY, source), (MODULE_KEY, module)) if v}
        self.metadata = {**self.metadata, **own}
        seen = Operation(operation)
        try:
            return self.apply(seen, operands)
        except Refused as refused:
            self.refusals.append(Refusal(seen.type, seen.name, source, str(refused)))
            return [Value(_type_or_unknown(t)) for t in seen.tensors]
        finally:
            self.label, self.metadata = before

    def apply(self, operation: Operation, operands: Sequence[Any]) -> list[Any]:
        """The results of an operation, whose operands are translated.

        Raises:
            Refused: there is no translation.
        """
        found = kept if operation.type in self.opaque else RULES.get(operation.type)
        if found is None and find_function(operation.graph, operation.type) is not None:
            found = RULES[CALL]
        if found is None:
            raise Refused(reason_for(operation.type))
        unknown = any(isinstance(o, Value) and o.type == UNKNOWN for o in operands)
        try:
            results = found(self, operation, *operands)
        except (IllTyped, ModelError) as error:
            raise Refused(str(error)) from error
        except (AttributeError, LookupError, TypeError, ValueError):
            if not unknown:
                raise
            return [Value(_type_or_unknown(t)) for t in operation.tensors]  # it follows from a refusal
        results = list(results) if isinstance(results, tuple | list) else [results]
        for result, tensor in zip(results, operation.tensors, strict=True):
            if isinstance(result, Value) and result.producer is not None:
                _state(result, tensor)
        return results


def needed(graph: Any, given: Mapping[str, Any], outputs: Sequence[Any]) -> list[Any]:
    """The operations that ``outputs`` depend on, up to what is ``given``, each behind those that it depends on itself.

    TensorFlow keeps them in the order in which they were made, and may have changed their inputs since. Only loops of
    TensorFlow 1 have operations that depend on each other: one of these comes before what it depends on.
    """
    wanted: set[Any] = set()
    stack = [t.op for t in outputs if t.name not in given]
    while stack:
        operation = stack.pop()
        if operation not in wanted:
            wanted.add(operation)
            stack += [t.op for t in operation.inputs if t.name not in given]
    found: dict[Any, None] = {}
    for operation in graph.get_operations():
        stack = [operation] if operation in wanted else []
        while stack:
            last = stack[-1]
            wanted.discard(last)  # it has been met
            before = next((t.op for t in last.inputs if t.op in wanted), None)
            if before is None:
                found[stack.pop()] = None
            else:
                stack.append(before)
    return list(found)


def _state(result: Value, tensor: Any) -> None:
    """Give a result the sizes that TensorFlow knows.

    Raises:
        Refused: it has another type there.
    """
    type_ = type_of(tensor)
    if not compatible(result.type, type_):
        raise Refused(f"the translation gives {result.type} for {type_}")
    result.type = merge(result.type, type_)


def _type_or_unknown(tensor: Any) -> TensorType:
    try:
        return type_of(tensor)
    except Refused:
        return UNKNOWN
