"""What the tests of TensorFlow Lite files share: make a file, and compare its graph with TensorFlow's interpreter."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import tensorflow as tf

from planish.backends import backend
from planish.frontends.tensorflow import from_tensorflow
from planish.frontends.tensorflow.lite.file import read_lite
from planish.ir import Graph
from planish.ir.verify import verify

from .tf_check import assert_like

__all__ = [
    "Array",
    "check_file",
    "code_of",
    "converted",
    "edited",
    "interpreted",
    "names_in",
    "numbers",
    "operators_in",
    "options_of",
    "packed",
    "schema",
]

Array = np.ndarray[Any, Any]
Edit = Callable[[Any], None]
Open = bool | Mapping[int, Sequence[int]]


def converted(function: Any, *inputs: Any, open: Open = False, **settings: Any) -> bytes:
    """A function of tensors, or a Keras model, as the contents of a file.

    Args:
        function: what is converted.
        inputs: examples: arrays; not of a Keras model, which has its own shapes.
        open: which sizes are open: the first of the first input (True), none, or axes by the input's number.
        settings: attributes of the converter, and of its target (``supported_ops``).
    """
    if isinstance(function, keras.Model):
        return _convert(tf.lite.TFLiteConverter.from_keras_model(function), settings)
    axes = {0: (0,)} if open is True else open or {}
    shapes = [[None if a in axes.get(k, ()) else n for a, n in enumerate(x.shape)] for k, x in enumerate(inputs)]
    specs = [tf.TensorSpec(s, tf.as_dtype(x.dtype)) for s, x in zip(shapes, inputs, strict=True)]
    traced = tf.function(function).get_concrete_function(*specs)
    return _convert(tf.lite.TFLiteConverter.from_concrete_functions([traced], function), settings)


def _convert(converter: Any, settings: Mapping[str, Any]) -> bytes:
    for name, value in settings.items():
        setattr(converter.target_spec if name.startswith("supported_") else converter, name, value)
    return bytes(converter.convert())


def names_in(path: Path) -> set[str]:
    """The operators in a file."""
    return {operator.name for graph in read_lite(path).subgraphs for operator in graph.operators}


def interpreted(
    content: bytes, feed: Mapping[str, Array], signature: str | None = None, *, reference: bool = True
) -> dict[str, Array]:
    """What TensorFlow's interpreter computes; names are those of the graph.

    Args:
        content: of a file.
        feed: the inputs.
        signature: which, if there is more than one.
        reference: whether its reference kernels compute what they can.
    """
    resolver = tf.lite.experimental.OpResolverType
    usual = resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        kernels = resolver.BUILTIN_REF if reference else usual
        interpreter = tf.lite.Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    except ValueError:  # there is no reference
        interpreter = tf.lite.Interpreter(model_content=content, experimental_op_resolver_type=usual)
    if interpreter.get_signature_list():
        found: dict[str, Array] = interpreter.get_signature_runner(signature)(**feed)
        return found
    details = interpreter.get_input_details()
    for detail, array in zip(details, feed.values(), strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(details, feed.values(), strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()}


def check_file(path: Path, content: bytes, *inputs: Array, tolerance: float = 1e-5, reference: bool = True) -> Graph:
    """Read a file, run the graph, and compare type, shape and values of each output with the interpreter's.

    Args:
        path: where the file is put.
        content: its contents.
        inputs: an array for every input, in the order of the graph.
        tolerance: as in `tf_check.assert_like`.
        reference: as in `interpreted`.
    """
    path.write_bytes(content)
    graph = from_tensorflow(path)
    verify(graph)
    feed = dict(zip((v.name for v in graph.inputs), inputs, strict=True))
    wanted = interpreted(content, feed, reference=reference)
    actual = backend("onnxruntime").compile(graph)(feed)
    assert len(actual) == len(wanted)
    ordered = wanted if set(actual) == set(wanted) else dict(zip(actual, wanted.values(), strict=True))
    for name, array in actual.items():
        assert_like(array, ordered[name], tolerance)
    return graph


def schema() -> Any:
    """The generated code of the format."""
    return importlib.import_module("tensorflow.lite.python.schema_py_generated")


def edited(content: bytes, edit: Edit) -> bytes:
    """The contents of a file after ``edit`` has changed its object."""
    module = schema()
    model = module.ModelT.InitFromObj(module.Model.GetRootAs(content, 0))
    edit(model)
    return packed(model)


def packed(model: Any) -> bytes:
    """An edited model, or one that was made, as the contents of a file."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def numbers(*shape: int, seed: int = 0) -> Array:
    """Normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def code_of(model: Any, name: str) -> int:
    """The number that operators of an edited model have for a builtin one."""
    module = schema()
    number = getattr(module.BuiltinOperator, name)
    code = module.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def operators_in(model: Any) -> list[Any]:
    """The operators of the first subgraph of an edited model."""
    found: list[Any] = model.subgraphs[0].operators
    return found


def options_of(name: str, **values: Any) -> tuple[int, Any]:
    """The number of a kind of options, and such options."""
    module = schema()
    options = getattr(module, f"{name}T")()
    for key, value in values.items():
        setattr(options, key, value)
    return getattr(module.BuiltinOptions, name), options
