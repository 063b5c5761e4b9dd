"""A TensorFlow Lite model as a graph: tensors as values, one operator after the other.

A quantized tensor has two values: its codes, and the numbers that they stand for. Operators compute with numbers; codes
are what inputs and outputs of the model are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from ....ir.dims import Dim, sym
from ....ir.errors import ModelError
from ....ir.graph import Graph, GraphOutput, Value, constant
from ....ir.infer import IllTyped
from ....ir.origin import MODULE_KEY
from ....ir.schema import canonical_opset
from ....ir.types import UNKNOWN, DType, TensorType
from ...emit import Refused
from ..inputs import Input, open_axes, size_name
from ..layout import axis_first
from ..ops import load_all
from ..origin import module_of
from ..program import named
from ..reasons import Refusal, UnsupportedOperations
from ..sources import choose, identifier
from ..tensor import Weights
from ..translate import Operation, Translator, dtype_of
from .file import LiteModel, LiteOperator, LiteTensor, Quantization, Subgraph, read_lite

__all__ = ["FLEX", "LITE_RULES", "Lite", "lite_graph", "lite_rule"]

LiteRule = Callable[["Lite", LiteOperator], Any]
LITE_RULES: dict[str, LiteRule] = {}  # by the operator's name

_CODES = ("INT2", "INT4", "INT8", "UINT4", "UINT8", "INT16")
FLEX = "Flex"  # begins the names of operations of TensorFlow that stand in a file as they are
_MOST = 5000  # operators, next to 20 for each in the file: calls within calls can be many
_SMALL = 16  # elements of constants that get no name


def lite_rule(*names: str) -> Callable[[LiteRule], LiteRule]:
    """Register the rule of one or more operators: it returns the result, or results, as numbers."""

    def register(rule: LiteRule) -> LiteRule:
        for name in names:
            LITE_RULES[name] = rule
        return rule

    return register


def lite_graph(
    path: Path,
    signature: str | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of a file; the arguments are those of `planish.frontends.tensorflow.from_tensorflow`.

    Raises:
        ModelError: it is damaged, or lacks what is asked for.
        UnsupportedOperations: it has operators without a translation; all of them are named.
    """
    from . import control, flex, layers, operators, recurrent  # noqa: F401 - they register their rules

    load_all()
    model, what = read_lite(path), str(path)
    subgraph, inputs, outputs = _chosen(model, signature, what)
    graph = Graph(identifier(path.stem), opsets={"": canonical_opset()})
    graph.info.update(producer_name="tensorflow lite", doc_string=model.description)
    lite = Lite(model, subgraph, Translator(graph, Weights({})))
    lite.declare(named(inputs, input_names, "input", what), [i for _, i in outputs], dynamic_shapes, what)
    results = named(outputs, output_names, "output", what, [v.name for v in graph.inputs])
    try:
        lite.run()
        lite.t.finish(what)
        values = _own(lite, results)
    except UnsupportedOperations:
        raise
    except ModelError as error:
        raise ModelError(f"{what}: {error}") from None
    graph.set_outputs(values, [GraphOutput(n, v.type) for n, v in zip(results, values, strict=True)])
    lite.t.erase_dead()
    return graph


def _own(lite: Lite, results: Mapping[str, int]) -> list[Value]:
    """The values of results: each is computed, and another one than the rest.

    Raises:
        ModelError: there is no such value.
    """
    values: list[Value] = []
    for name, i in results.items():
        try:
            value = lite.stored(i)
        except (Refused, IllTyped) as error:
            raise ModelError(f"output {name!r}: {error}") from None
        is_own = value.producer is not None and value not in values
        values.append(value if is_own else lite.t.op.Identity(value))
    return values


def _chosen(
    model: LiteModel, signature: str | None, what: str
) -> tuple[Subgraph, list[tuple[str, int]], list[tuple[str, int]]]:
    """The subgraph that is meant, and its inputs and outputs with their names, in its own order."""
    if not model.signatures and signature is None:
        graph = model.subgraphs[0]
        inputs, outputs = ([(_plain(graph.tensors[i].name), i) for i in ids] for ids in (graph.inputs, graph.outputs))
        return graph, inputs, outputs
    found = choose(model.signatures, signature, what)
    graph = model.subgraphs[found.subgraph]
    return graph, _in_order(found.inputs, graph.inputs), _in_order(found.outputs, graph.outputs)


def _in_order(names: Mapping[str, int], order: Sequence[int]) -> list[tuple[str, int]]:
    """Names and the numbers of their tensors, as these are ordered."""
    places = {index: place for place, index in enumerate(order)}
    return sorted(names.items(), key=lambda item: places.get(item[1], len(places)))


def _plain(name: str) -> str:
    """The name of a tensor without the number of the result, and without those that were merged into it."""
    return re.sub(r":\d+$", "", name.partition(";")[0]) or "tensor"


class Lite:
    """One subgraph that is being translated.

    Attributes:
        model: the file.
        graph: the subgraph.
        t: what appends nodes.
    """

    def __init__(self, model: LiteModel, graph: Subgraph, translator: Translator, steps: Iterator[int] | None = None):
        self.model, self.graph, self.t = model, graph, translator
        most = _MOST + 20 * sum(len(g.operators) for g in model.subgraphs)
        self._steps = iter(range(most)) if steps is None else steps
        self._numbers: dict[int, Value] = {}
        self._codes: dict[int, Value] = {}
        self._copies: dict[int, int] = {}  # numbers that an operator makes of a constant, and that constant
        self._scales: dict[tuple[bytes, bytes, DType], tuple[Value, Value]] = {}
        self._is_open = any(t.shape is None or None in t.shape for t in graph.tensors)

    # tensors

    def tensor(self, index: int) -> LiteTensor:
        return self.graph.tensors[index]

    def quantization(self, index: int) -> Quantization | None:
        """What the codes of a tensor stand for; None if it has none."""
        tensor = self.tensor(index)
        return tensor.quantization if tensor.type in _CODES else None

    def dtype(self, index: int) -> DType:
        """The element type of what is stored.

        Raises:
            Refused: ONNX has none.
        """
        name = self.tensor(index).type
        return DType[name] if name in _CODES else dtype_of(tf.as_dtype(name.lower()))

    def array(self, index: int) -> np.ndarray[Any, Any] | None:
        """The elements of a constant, as they are stored."""
        return self.tensor(index).array

    def constant(self, index: int, order: Sequence[int] | None = None) -> Value:
        """The numbers of a constant, with its dimensions in another order; weights stay in the file.

        Raises:
            Refused: it is none.
        """
        tensor, array = self.tensor(index), self.array(index)
        if array is None:
            raise Refused(f"{_plain(tensor.name)!r} is computed, and must be a constant")
        array = array if order is None else array.transpose(order)
        found = tensor.quantization
        if found is None or tensor.type in ("FLOAT32", "FLOAT16", "FLOAT64"):
            return self._stored(array, index)
        axis = found.axis if found.axis is None or order is None else list(order).index(found.axis)
        if tensor.type not in _CODES:  # a bias
            scale = found.scale if axis is None else _spread(found.scale, axis, array.ndim)
            return self._stored((array * scale.astype(np.float64)).astype(np.float32), index)
        with self.t.in_root():  # once, and not in each iteration of a loop
            return self._dequantize(self._stored(array, index), found, axis, self.dtype(index))

    def ordered(self, index: int, order: Sequence[int]) -> Value:
        """The numbers of a tensor with its dimensions in another order; those of a constant, where they lie."""
        if index in self._copies:
            return self.t.cast(self.ordered(self._copies[index], order), self.dtype(index))
        if self.array(index) is None:
            return self.t.transpose(self.numbers(index), order)
        return self.constant(index, order)

    def copy(self, index: int, source: int) -> None:
        """Tensor ``index`` has the numbers of another one."""
        if self.array(source) is not None and self.quantization(index) is None:
            self._copies[index] = source

    def _stored(self, array: np.ndarray[Any, Any], index: int) -> Value:
        if array.size <= _SMALL:
            return constant(array)
        return self.t.weights.array(array, _plain(self.tensor(index).name))

    def numbers(self, index: int) -> Value:
        """The numbers of a tensor.

        Raises:
            Refused: it has none.
        """
        if index not in self._numbers:
            if index in self._codes:
                found, codes = self.quantization(index), self._codes[index]
                assert found is not None
                self._numbers[index] = self._dequantize(codes, found, found.axis, codes.dtype)
            elif self.array(index) is not None:
                self._numbers[index] = self.constant(index)
            elif self.tensor(index).shape and 0 in (self.tensor(index).shape or ()):
                sizes = [n or 0 for n in self.tensor(index).shape or ()]
                return constant(np.zeros(sizes, self.dtype(index).numpy), self.dtype(index))
            else:
                raise Refused(f"it reads {_plain(self.tensor(index).name)!r}, which nothing computes")
        return self._numbers[index]

    def is_known(self, index: int) -> bool:
        """Whether a tensor is a constant, an input, or computed."""
        return index in self._numbers or index in self._codes or self.array(index) is not None

    def codes(self, index: int) -> Value:
        """The codes of a quantized tensor."""
        if index not in self._codes:
            found = self.quantization(index)
            assert found is not None
            self._codes[index] = self._quantize(self.numbers(index), found, self.dtype(index))
        return self._codes[index]

    def set(self, index: int, value: Value, like: Collection[int] = ()) -> None:
        """``value`` is what a tensor is computed as.

        It is rounded, unless it has only numbers of the tensors ``like`` it, and these have codes for the same ones.
        """
        found = self.quantization(index)
        codes = [q for q in map(self.quantization, like) if q is not None]
        if found is None or (codes and all(found.equals(q) for q in codes)):
            self._numbers[index] = value
        else:
            self._codes[index] = self._quantize(value, found, self.dtype(index))

    def _quantize(self, value: Value, q: Quantization, dtype: DType) -> Value:
        if not value.dtype.is_floating:
            raise Refused(f"it quantizes {value.dtype} elements")
        return self._recoded(value, q, q.axis, dtype, self.t.op.QuantizeLinear)

    def _dequantize(self, codes: Value, q: Quantization, axis: int | None, dtype: DType) -> Value:
        return self._recoded(codes, q, axis, dtype, self.t.op.DequantizeLinear)

    def _recoded(self, x: Value, q: Quantization, axis: int | None, dtype: DType, build: Callable[..., Any]) -> Value:
        first = self.t.layouts.kept(x)
        if first is not None and axis is not None:
            assert x.rank is not None
            axis = axis_first(axis, x.rank)
        attrs = {} if axis is None or axis == 1 else {"axis": axis}
        result: Value = build(x if first is None else first, *self._scale(q, dtype), **attrs)
        return result if first is None else self.t.layouts.last(result)

    def _scale(self, q: Quantization, dtype: DType) -> tuple[Value, Value]:
        """Scale and zero point as constants: the same numbers are the same constants."""
        key = q.scale.tobytes(), q.zero.tobytes(), dtype
        if key not in self._scales:
            self._scales[key] = constant(q.scale), constant(q.zero.astype(dtype.numpy), dtype)
        return self._scales[key]

    # inputs

    def declare(self, inputs: Mapping[str, int], outputs: Sequence[int], dynamic_shapes: Any, what: str) -> None:
        """Make the inputs of the graph. If all have an open size first, and the outputs, too, it is one batch.

        Raises:
            ModelError: one is no tensor of ONNX.
        """
        known = []
        for name, i in inputs.items():
            tensor = self.tensor(i)
            if tensor.shape is None:
                raise ModelError(f"{what}: input {name!r} has no number of dimensions")
            known.append(Input(name, tensor.shape, tensor.type))
        axes = open_axes(known, dynamic_shapes, what, is_fixed=True)
        shapes = [*(i.shape for i in known), *(self.tensor(i).shape for i in outputs)]
        is_batched = all(shape and shape[0] is None for shape in shapes)
        for (name, index), given, names in zip(inputs.items(), known, axes, strict=True):
            try:
                dtype = self.dtype(index)
            except Refused as refused:
                raise ModelError(f"{what}: input {name!r}: {refused}") from None
            own = [size_name(name, axis, is_batch=is_batched) for axis in range(len(given.shape or ()))]
            dims: list[Dim] = [
                sym(names.get(a, own[a])) if size is None else size for a, size in enumerate(given.shape or ())
            ]
            value = self.t.root.add_input(TensorType(dtype, tuple(dims)), name)
            self.t.sizes.add_input(value)
            self.give(index, value)

    def give(self, index: int, value: Value) -> None:
        """``value`` is what is stored for a tensor.

        Raises:
            Refused: it has another type.
        """
        if value.dtype is not self.dtype(index):
            raise Refused(f"{_plain(self.tensor(index).name)!r} is of type {self.dtype(index)}, and not {value.dtype}")
        (self._numbers if self.quantization(index) is None else self._codes)[index] = value

    def stored(self, index: int) -> Value:
        """What is stored for a tensor: codes, or numbers."""
        return self.numbers(index) if self.quantization(index) is None else self.codes(index)

    # operators

    def run(self) -> None:
        """Translate all operators; what has no translation is noted.

        Raises:
            ModelError: there are too many.
        """
        for operator in self.graph.operators:
            if next(self._steps, None) is None:
                raise ModelError("its subgraphs call each other too often")
            self._operator(operator)

    def called(self, graph: Subgraph) -> Lite:
        """Another subgraph, which an operator of this one calls."""
        return Lite(self.model, graph, self.t, self._steps)

    def _operator(self, operator: LiteOperator) -> None:
        name = _plain(self.tensor(operator.outputs[0]).name) if operator.outputs else operator.name
        before = self.t.label, self.t.metadata
        module = module_of(name)
        self.t.label, self.t.metadata = name, {**self.t.metadata, **({MODULE_KEY: module} if module else {})}
        rule = self._rule(operator)
        try:
            if rule is None:
                raise Refused("a custom operator" if operator.is_custom else "planish has no translation of it")
            self._translate(operator, rule)
        except (Refused, ModelError) as refused:
            if rule is None or not any(self._is_unknown(i) for i in operator.inputs):
                self.t.refusals.append(Refusal(operator.name, name, "", str(refused)))
            self._numbers.update({i: Value() for i in operator.outputs})
        finally:
            self.t.label, self.t.metadata = before

    def _rule(self, operator: LiteOperator) -> LiteRule | None:
        if operator.is_custom:
            return LITE_RULES[FLEX] if operator.name.startswith(FLEX) else None
        return LITE_RULES.get(operator.name)

    def _translate(self, operator: LiteOperator, rule: LiteRule) -> None:
        """Call the rule of an operator: its results are those, unless it has set them itself.

        Raises:
            Refused: there is no translation.
        """
        try:
            results = _listed(rule(self, operator))
            for index, value in zip(operator.outputs, results, strict=True):
                if index not in self._numbers and index not in self._codes:
                    self.set(index, value)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            # rules index operands and options freely: files that TensorFlow writes have them
            raise Refused(f"it is malformed ({type(error).__name__}: {error})") from error

    def _is_unknown(self, index: int) -> bool:
        """Whether a tensor follows from what has no translation."""
        value = self._numbers.get(index)
        return value is not None and value.type == UNKNOWN

    def operands(self, operator: LiteOperator) -> list[Value]:
        """The numbers of all inputs.

        Raises:
            Refused: one has no translation.
        """
        found = [self.numbers(i) for i in operator.inputs if i >= 0]
        if any(v.type == UNKNOWN for v in found):
            raise Refused("what it reads has no translation")
        return found

    def optional(self, operator: LiteOperator, place: int) -> int | None:
        """The tensor at a place of the inputs that may be left out."""
        return operator.inputs[place] if place < len(operator.inputs) and operator.inputs[place] >= 0 else None

    def as_tensorflow(
        self, type_: str, operands: Sequence[Any], attrs: Mapping[str, Any] | None = None, outputs: Sequence[int] = ()
    ) -> Any:
        """What TensorFlow's operation of this type computes, by its own rule.

        Args:
            type_: of the operation.
            operands: values.
            attrs: its attributes.
            outputs: the tensors that it computes; none: one of the type of the first operand.

        Raises:
            Refused: it has no translation.
        """
        operation = self.operation(type_, attrs, outputs or [tf.TensorSpec(None, operands[0].dtype.numpy)])
        results = self.t.apply(operation, operands)
        return results[0] if len(results) == 1 else results

    def operation(self, type_: str, attrs: Mapping[str, Any] | None, outputs: Sequence[Any]) -> Operation:
        """What stands for an operation of TensorFlow; ``outputs`` are tensors, or what TensorFlow would say of them."""
        known = dict(attrs or {})

        def get_attr(name: str) -> Any:
            if name not in known:
                raise ValueError(name)
            return known[name]

        specs = [self._spec(i) if isinstance(i, int) else i for i in outputs]
        stub = SimpleNamespace(type=type_, name=self.t.label, graph=None, outputs=specs, get_attr=get_attr)
        return Operation(stub)

    def _spec(self, index: int) -> Any:
        """What TensorFlow would say of a tensor; its numbers are floating-point ones."""
        tensor = self.tensor(index)
        dtype = tf.float32 if self.quantization(index) is not None else tf.as_dtype(tensor.type.lower())
        if tensor.shape is None:
            return tf.TensorSpec(None, dtype)
        if self._is_open and None not in tensor.shape:  # some writers state the sizes of an example
            return tf.TensorSpec([None] * len(tensor.shape), dtype)
        return tf.TensorSpec(tensor.shape, dtype)


def _listed(results: Any) -> list[Value]:
    return list(results) if isinstance(results, list | tuple) else [results]


def _spread(numbers: np.ndarray[Any, Any], axis: int, rank: int) -> np.ndarray[Any, Any]:
    """Numbers for each index of ``axis``, in a shape that broadcasts."""
    return numbers.reshape([-1 if i == axis else 1 for i in range(rank)])
