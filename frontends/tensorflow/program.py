"""What is translated: a TensorFlow graph with its inputs, its outputs, and what it captures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ...ir.dims import sym
from ...ir.errors import ModelError
from ...ir.graph import Graph, GraphOutput, Value
from ...ir.schema import canonical_opset
from ...ir.types import TensorType
from ..emit import Refused
from .functions import changed_variables
from .inputs import size_name
from .ops import load_all
from .sources import Traced
from .tensor import StoredVariable, Weights
from .translate import Translator, dtype_of

__all__ = ["Program", "named"]


@dataclass
class Program:
    """A traced model, about to be translated.

    Attributes:
        traced: it.
        opaque: types of operations that stay as they are.
    """

    traced: Traced
    opaque: Collection[str] = ()

    def graph(self, input_names: Sequence[str] | None = None, output_names: Sequence[str] | None = None) -> Graph:
        """The translation.

        Raises:
            UnsupportedOperations: it has operations without a translation.
            ModelError: an input or an output is no tensor of ONNX, the names do not fit, or no operation is of a type
                that is to stay.
        """
        load_all()
        source = self.traced
        graph = Graph(source.name, opsets={"": canonical_opset()})
        graph.info.update(producer_name="tensorflow", producer_version=tf.__version__)
        translator = Translator(graph, Weights(source.variables))
        translator.module_of, translator.opaque = source.module_of, frozenset(self.opaque)
        given: dict[str, Any] = {}
        inputs = named(source.inputs, input_names, "input", source.what)
        for (name, tensor), names in zip(inputs.items(), source.axes, strict=True):
            value = graph.add_input(self._type(name, tensor, names), name)
            translator.sizes.add_input(value)
            given[tensor.name] = value
        for external, tensor in source.captures:
            given[tensor.name] = _captured(translator, external, tensor)
        handles = {tensor.name: external for external, tensor in source.captures if tensor.dtype == tf.resource}
        translator.weights.changed = changed_variables(source.graph, handles)
        outputs = named(source.outputs, output_names, "output", source.what, inputs)
        found = translator.inline(source.graph, given, list(outputs.values()))
        translator.finish(source.what)
        missing = sorted(set(self.opaque) - translator.kept)
        if missing:
            raise ModelError(f"{source.what}: opaque names {', '.join(missing)}, and the model has no such operation")
        self._finish(translator, found, list(outputs))
        return graph

    def _type(self, name: str, tensor: Any, names: Mapping[int, str]) -> TensorType:
        try:
            dtype = dtype_of(tensor.dtype)
        except Refused as refused:
            raise ModelError(f"{self.traced.what}: input {name!r}: {refused}") from None
        if tensor.shape.rank is None:
            raise ModelError(f"{self.traced.what}: input {name!r} has no number of dimensions: give a TensorSpec")
        sizes = tensor.shape.as_list()
        own = [size_name(name, axis, is_batch=self.traced.is_batched) for axis in range(len(sizes))]
        dims = [sym(names.get(i, own[i])) if size is None else size for i, size in enumerate(sizes)]
        return TensorType(dtype, tuple(dims))

    def _finish(self, t: Translator, values: Sequence[Any], names: Sequence[str]) -> None:
        results: list[Value] = []
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, Value):
                raise ModelError(f"{self.traced.what}: output {name!r} is no tensor")
            is_own = value.producer is not None and value not in results
            results.append(value if is_own else t.op.Identity(value))
        t.root.set_outputs(results, [GraphOutput(n, v.type) for n, v in zip(names, results, strict=True)])
        t.erase_dead()


def named(
    tensors: Sequence[tuple[str, Any]],
    names: Sequence[str] | None,
    kind: str,
    what: str,
    taken: Collection[str] = (),
) -> dict[str, Any]:
    """Inputs or outputs by unique names, none of them ``taken``.

    Raises:
        ModelError: ``names`` do not fit.
    """
    if names is not None and (len(names) != len(tensors) or len(set(names)) != len(names) or set(names) & {*taken}):
        raise ModelError(f"{what} has {len(tensors)} {kind}s: {kind}_names are as many different names")
    found: dict[str, Any] = {}
    for i, (own, tensor) in enumerate(tensors):
        name = unique = names[i] if names is not None else own
        number = 1
        while unique in found or unique in taken:
            unique, number = f"{name}_{number}", number + 1
        found[unique] = tensor
    return found


def _captured(t: Translator, external: Any, tensor: Any) -> Any:
    """What a captured tensor is: a handle as it is, an array as a constant."""
    if isinstance(external, StoredVariable) and tensor.dtype != tf.resource:  # TensorFlow 1 has no handles
        return t.weights.variable(external, tensor.dtype, tensor.op.name)
    if isinstance(external, np.ndarray):
        return t.weights.array(external, tensor.op.name)
    if tensor.dtype in (tf.resource, tf.variant) or not hasattr(external, "numpy"):
        return external
    return t.weights.array(np.asarray(external.numpy()), tensor.op.name) if tensor.dtype != tf.string else Value()
