"""TensorFlow Lite files: signatures and names, quantized models, and what is refused, or no such file at all."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import planish
from planish.backends import backend
from planish.frontends.tensorflow import UnsupportedOperations, from_tensorflow
from planish.ir import DType, Graph, sym
from planish.ir.errors import ModelError
from planish.ir.verify import verify

from .tf_lite_check import (
    Array,
    check_file,
    converted,
    edited,
    interpreted,
    names_in,
    numbers,
    operators_in,
    schema,
)

L = keras.layers
X = numbers(2, 6, 5, 4)
OPS = tf.lite.OpsSet


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# signatures and names


class Arithmetic(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="b"), tf.TensorSpec([3], name="a")])
    def minus(self, b: Any, a: Any) -> Any:
        return {"difference": b - a, "absolute": abs(b - a)}

    @tf.function(input_signature=[tf.TensorSpec([2], name="x")])
    def double(self, x: Any) -> Any:
        return {"twice": 2 * x}


@cache
def two_signatures() -> bytes:
    module = Arithmetic()
    functions = [module.minus.get_concrete_function(), module.double.get_concrete_function()]
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions(functions, module).convert())


def test_a_signature_is_chosen_by_its_name(tmp_path: Path) -> None:
    path = written(tmp_path / "m.tflite", two_signatures())
    b, a = numbers(4, 3), numbers(3)
    graph = from_tensorflow(path, signature="minus")
    assert {v.name for v in graph.inputs} == {"a", "b"}
    found = backend("onnxruntime").compile(graph)({"a": a, "b": b})
    wanted = interpreted(two_signatures(), {"a": a, "b": b}, "minus")
    assert set(found) == set(wanted) == {"difference", "absolute"}
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6)
    doubled = from_tensorflow(path, signature="double")
    np.testing.assert_array_equal(backend("onnxruntime").compile(doubled)(a[:2])[0], 2 * a[:2])


@pytest.mark.parametrize(
    ("signature", "message"),
    [(None, r"signatures (minus, double|double, minus): say which"), ("other", "no signature 'other'; it has")],
)
def test_an_unclear_signature(signature: str | None, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "m.tflite", two_signatures())
    with pytest.raises(ModelError, match=message):
        from_tensorflow(path, signature=signature)


def test_a_file_without_signatures_has_the_names_of_its_tensors(tmp_path: Path) -> None:
    content = edited(converted(lambda x, y: (x + y, x), X, X), lambda m: setattr(m, "signatureDefs", None))
    graph = check_file(tmp_path / "m.tflite", content, X, X)
    assert [v.name for v in graph.inputs] == ["x", "y"]
    with pytest.raises(ModelError, match="no signature 'a'"):
        from_tensorflow(tmp_path / "m.tflite", signature="a")


def test_names_and_open_sizes_are_given_as_for_other_models(tmp_path: Path) -> None:
    content = converted(lambda x, y: (x + 1, y + 1), X, numbers(3, 4), open={0: [0, 1], 1: [0]})
    path = written(tmp_path / "m.tflite", content)
    graph = planish.load(path)
    assert [v.shape for v in graph.inputs] == [(sym("batch"), sym("x_dim1"), 5, 4), (sym("batch"), 4)]
    first, second = (v.name for v in graph.inputs)
    named = from_tensorflow(path, input_names=["image", "table"], output_names=["p", "q"])
    assert [v.name for v in named.inputs] == ["image", "table"]
    assert list(backend("onnxruntime").compile(named).outputs) == ["p", "q"]
    sizes = from_tensorflow(path, dynamic_shapes={first: {1: "height"}, second: ["rows", None]})
    assert [v.shape for v in sizes.inputs] == [(sym("batch"), sym("height"), 5, 4), (sym("rows"), 4)]
    with pytest.raises(ModelError, match="fixes the size of axis 3 at 4"):
        from_tensorflow(path, dynamic_shapes={first: {3: "channels"}})


def test_a_first_dimension_that_results_do_not_share_is_no_batch(tmp_path: Path) -> None:
    path = written(tmp_path / "m.tflite", converted(tf.matmul, X[0, 0], X[0, 0].T, open={0: [0], 1: [1]}))
    assert [v.shape for v in from_tensorflow(path).inputs] == [(sym("a_dim0"), 4), (4, sym("b_dim1"))]


def test_inputs_constants_and_the_same_value_twice_as_outputs(tmp_path: Path) -> None:
    def edit(model: Any) -> None:
        graph = model.subgraphs[0]
        (constant,) = [i for i in operators_in(model)[0].inputs if i not in graph.inputs]
        model.signatureDefs = None
        graph.outputs = [graph.outputs[0], graph.inputs[0], constant, graph.outputs[0]]

    content = edited(converted(lambda x: x + np.arange(4, dtype=np.float32), X), edit)
    graph = from_tensorflow(written(tmp_path / "m.tflite", content))
    verify(graph)
    session = backend("onnxruntime").compile(graph)
    total, x_again, constant, total_again = session(X)
    np.testing.assert_array_equal(x_again, X)
    np.testing.assert_array_equal(constant, np.arange(4))
    np.testing.assert_array_equal(total, X + np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(total_again, total)
    assert len(set(session.outputs)) == 4


# quantized models


@cache
def network() -> Any:
    """Convolutions, pooling, and parts that only move codes."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = L.Conv2D(8, 3, padding="same", activation="relu6")(image)
    x = L.MaxPooling2D()(x)
    y = L.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = L.Concatenate()([x, L.Add()([x, y])])
    x = L.Conv2D(16, 3, strides=2, padding="same")(x)
    x = L.AveragePooling2D(3)(x)
    return keras.Model(image, L.Dense(5)(L.Reshape((16,))(x)))


def examples() -> Iterator[list[Array]]:
    for seed in range(6):
        yield [numbers(1, 12, 12, 3, seed=seed)]


INTEGERS = {"representative_dataset": examples, "supported_ops": [OPS.TFLITE_BUILTINS_INT8]}
SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {**INTEGERS, "inference_input_type": tf.int8, "inference_output_type": tf.int8},
    "uint8": {**INTEGERS, "inference_input_type": tf.uint8, "inference_output_type": tf.uint8},
    "int8, floating-point inputs": INTEGERS,
    "int16 and int8": {
        **INTEGERS, "supported_ops": [OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    },
    "float16": {"supported_types": [tf.float16]},
}  # fmt: skip


@cache
def quantized(kind: str) -> bytes:
    return converted(network(), optimizations=[tf.lite.Optimize.DEFAULT], **SETTINGS[kind])


def optimized(graph: Graph) -> Graph:
    planish.Pipeline.parse("default").run(graph, planish.Context(lambda: backend("onnxruntime")))
    return graph


def compared(path: Path, content: bytes, x: Array) -> Iterator[tuple[Array, Array]]:
    """What the graph of a file computes, in ONNX Runtime, and optimized, and what the interpreter does.

    The optimized one is computed by the reference: ONNX Runtime would round once more in its integer kernels.
    """
    graph = from_tensorflow(written(path, content))
    verify(graph)
    (value,) = graph.inputs
    if not value.dtype.is_floating:
        scale, zero = tf.lite.Interpreter(model_content=content).get_input_details()[0]["quantization"]
        limits = np.iinfo(value.dtype.numpy)
        x = np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(value.dtype.numpy)
    (wanted,) = interpreted(content, {value.name: x}).values()
    for engine, found in (("onnxruntime", graph), ("reference", optimized(from_tensorflow(path)))):
        (result,) = backend(engine).compile(found)(x)
        assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
        yield result.astype(np.float64), wanted.astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "most", "mean"),
    [
        ("int8", 3, 0.3),
        ("uint8", 3, 0.3),
        ("int8, floating-point inputs", 3, 0.3),
        ("int16 and int8", 3, 1),
        ("float16", None, None),
    ],
)
def test_a_quantized_model(kind: str, most: Any, mean: Any, tmp_path: Path) -> None:
    """The interpreter rounds sums of integers, the graph those of floats; the last layer multiplies the difference."""
    for found, wanted in compared(tmp_path / "m.tflite", quantized(kind), numbers(16, 12, 12, 3, seed=99)):
        if most is None:
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
            continue
        steps = np.abs(found - wanted) / np.diff(np.unique(wanted)).min()
        assert steps.max() < most + 0.01
        assert steps.mean() < mean


def test_quantization_is_raised_and_nothing_is_rounded_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "m.tflite", quantized("int8, floating-point inputs"))
    assert {"MAX_POOL_2D", "CONCATENATION", "RESHAPE", "QUANTIZE"} <= names_in(path)
    graph = optimized(from_tensorflow(path))
    found = Counter(node.op for node in graph.walk())
    rounded = [n for n in graph.walk() if n.op == "planish.FakeQuantize" and n.given(0).const is None]
    of = Counter(n.given(0).producer.op if n.given(0).producer else "input" for n in rounded)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(found)
    assert found["planish.FakeQuantize"] == len(rounded) + 4  # the weights
    assert not {"MaxPool", "Reshape", "Concat"} & set(of)
    assert found["Transpose"] == 1


def test_weights_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    """Those whose dimensions have another order are views of them, too."""
    path = written(tmp_path / "m.tflite", quantized("int8"))
    graph = from_tensorflow(path)
    weights = [n.given(0).const for n in graph.walk() if n.op == "DequantizeLinear" and n.given(0).const is not None]
    assert len(weights) == 4
    for weight in weights:
        assert weight.type.dtype is DType.INT8
        array: Any = weight.numpy()
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert not array.flags.owndata


def test_constants_of_a_quantization_are_shared(tmp_path: Path) -> None:
    graph = from_tensorflow(written(tmp_path / "m.tflite", quantized("int8")))
    pairs = {}
    for node in graph.walk():
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = node.given(1), node.given(2)
            key = scale.const.numpy().tobytes(), zero.const.numpy().tobytes(), zero.dtype  # type: ignore[union-attr]
            assert pairs.setdefault(key, (scale, zero)) == (scale, zero)


def test_weights_of_eight_bits_and_numbers_of_floating_point(tmp_path: Path) -> None:
    """The interpreter rounds the numbers, too, to eight bits; the graph does not."""
    model = keras.Sequential([keras.Input((64,)), L.Dense(64, "relu"), L.Dense(3)])
    content = converted(model, optimizations=[tf.lite.Optimize.DEFAULT])
    for found, wanted in compared(tmp_path / "m.tflite", content, numbers(16, 64)):
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    graph = optimized(from_tensorflow(tmp_path / "m.tflite"))
    assert Counter(node.op for node in graph.walk())["planish.FakeQuantize"] >= 1


def test_weights_become_numbers_outside_of_loops(tmp_path: Path) -> None:
    """Where they do it once; ONNX Runtime 1.31 also refuses it inside."""
    model = keras.Sequential([keras.Input((6, 8), batch_size=1), L.LSTM(32), L.Dense(3)])
    content = converted(model, optimizations=[tf.lite.Optimize.DEFAULT])
    for found, wanted in compared(tmp_path / "m.tflite", content, numbers(1, 6, 8)):
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    graph = from_tensorflow(tmp_path / "m.tflite")
    assert [n.op for n in graph.nodes].count("DequantizeLinear") == 2
    assert [n.op for n in graph.walk()].count("DequantizeLinear") == 2


def test_weights_of_four_bits(tmp_path: Path) -> None:
    def edit(model: Any) -> None:
        (operator,) = [o for o in operators_in(model) if is_dense(model, o)]
        tensor = model.subgraphs[0].tensors[operator.inputs[1]]
        buffer = model.buffers[tensor.buffer]
        codes = np.clip(np.asarray(buffer.data, np.uint8).view(np.int8) // 16, -7, 7)
        tensor.type = schema().TensorType.INT4
        buffer.data = ((codes[0::2] & 15) | (codes[1::2] << 4)).astype(np.uint8)

    model = keras.Sequential([keras.Input((12, 12, 3)), L.Flatten(), L.Dense(6)])
    content = converted(model, optimizations=[tf.lite.Optimize.DEFAULT], **INTEGERS)
    for found, wanted in compared(tmp_path / "m.tflite", edited(content, edit), numbers(16, 12, 12, 3)):
        step = np.diff(np.unique(wanted)).min()
        assert np.abs(found - wanted).max() < 1.01 * step
    graph = optimized(from_tensorflow(tmp_path / "m.tflite"))
    assert "int4" in {n.attrs["format"] for n in graph.walk() if n.op == "planish.FakeQuantize"}


def is_dense(model: Any, operator: Any) -> bool:
    code = model.operatorCodes[operator.opcodeIndex]
    return bool(code.builtinCode == schema().BuiltinOperator.FULLY_CONNECTED)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.concat([x, tf.nn.relu(x)], 1),
        lambda x: tf.reduce_max(tf.pad(x, [[0, 0], [1, 1], [0, 0]]), 1),
        lambda x: tf.nn.gelu(tf.matmul(x, x, transpose_b=True)) + 0.5,
        lambda x: tf.nn.softmax(x) * tf.sigmoid(x) - tf.tanh(x),
        lambda x: tf.transpose(tf.strided_slice(x, [0, 1, 0], [1, 5, 4]), [0, 2, 1]),
        lambda x: tf.split(tf.maximum(x, 0.5 * x), 2, -1)[1],
        lambda x: tf.nn.leaky_relu(x) / (1.5 + tf.abs(x)),
        lambda x: tf.stack(tf.unstack(x, axis=1), 0),
        lambda x: tf.reduce_mean(tf.math.squared_difference(x, tf.reduce_mean(x, -1, keepdims=True)), -1),
        lambda x: tf.image.resize(x[..., None], [12, 8], "nearest"),
    ],
)
def test_operators_between_codes(function: Callable[..., Any], tmp_path: Path) -> None:
    def data() -> Iterator[list[Array]]:
        for seed in range(20):
            yield [numbers(1, 6, 4, seed=seed)]

    settings = {**INTEGERS, "representative_dataset": data, "optimizations": [tf.lite.Optimize.DEFAULT]}
    content = converted(function, numbers(1, 6, 4), **settings)
    for found, wanted in compared(tmp_path / "m.tflite", content, numbers(1, 6, 4, seed=99)):
        differences = np.diff(np.unique(wanted))
        assert np.abs(found - wanted).max() < 3.01 * differences.min()
        assert (np.abs(found - wanted) > 0.01 * differences.min()).mean() < 0.25


# what is refused


def test_custom_operators_are_refused_by_their_names(tmp_path: Path) -> None:
    def edit(model: Any) -> None:
        for code, name in zip(model.operatorCodes, ("TFLite_Detection_PostProcess", "MyOwn"), strict=True):
            code.builtinCode = code.deprecatedBuiltinCode = schema().BuiltinOperator.CUSTOM
            code.customCode = name
        for operator in operators_in(model):
            operator.builtinOptionsType, operator.builtinOptions = 0, None

    path = written(tmp_path / "m.tflite", edited(converted(lambda x: tf.sin(x) + 1, X), edit))
    with pytest.raises(UnsupportedOperations) as caught:
        from_tensorflow(path)
    assert re.search("TFLite_Detection_PostProcess .*: a custom operator; MyOwn .*a custom operator", str(caught.value))


@cache
def of_tensorflow() -> bytes:
    select = [OPS.TFLITE_BUILTINS, OPS.SELECT_TF_OPS]
    return converted(lambda x: tf.linalg.det(tf.math.erf(x)), numbers(4, 4), supported_ops=select)


def test_an_operation_of_tensorflow_without_a_translation_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.tflite", of_tensorflow())
    with pytest.raises(UnsupportedOperations, match=r"FlexMatrixDeterminant at [^;]*$"):
        from_tensorflow(path)


@pytest.mark.parametrize(
    ("message", "edit"),
    [
        ("malformed|damaged", lambda o: setattr(o, "customOptions", np.frombuffer(bytes(range(40)), np.uint8))),
        ("malformed|damaged", lambda o: setattr(o, "customOptions", None)),
        ("malformed", lambda o: setattr(o, "inputs", [0, 0, 0])),
    ],
)
def test_damaged_operations_of_tensorflow(message: str, edit: Callable[[Any], None], tmp_path: Path) -> None:
    content = edited(of_tensorflow(), lambda m: edit(operators_in(m)[0]))
    assert re.search(f"FlexErf .*({message})", refusal(written(tmp_path / "m.tflite", content)))


def test_operators_that_follow_from_what_is_refused_are_not_named(tmp_path: Path) -> None:
    content = converted(lambda x: tf.abs(tf.math.real(tf.signal.rfft2d(x))) + 1, numbers(4, 4))
    with pytest.raises(UnsupportedOperations, match=r"RFFT2D at \S+ complex numbers[^;]*$"):
        from_tensorflow(written(tmp_path / "m.tflite", content))


def test_states_are_refused(tmp_path: Path) -> None:
    class Counts(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = tf.Variable(np.zeros(4, np.float32))

        @tf.function(input_signature=[tf.TensorSpec([4])])
        def __call__(self, x: Any) -> Any:
            return self.total.assign_add(x)

    module = Counts()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.__call__.get_concrete_function()], module)
    converter.experimental_enable_resource_variables = True
    path = written(tmp_path / "m.tflite", converter.convert())
    with pytest.raises(UnsupportedOperations, match=r"VAR_HANDLE at .*it keeps a state"):
        from_tensorflow(path)


def test_words_are_refused(tmp_path: Path) -> None:
    def edit(model: Any) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].type = schema().TensorType.STRING

    path = written(tmp_path / "m.tflite", edited(converted(tf.abs, X), edit))
    with pytest.raises(ModelError, match=r"input 'x': strings"):
        from_tensorflow(path)


def test_opaque_operations_are_not_of_this_format(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="opaque names operations of TensorFlow"):
        from_tensorflow(written(tmp_path / "m.tflite", converted(tf.abs, X)), opaque=["Abs"])


# damage


def refusal(path: Path) -> str:
    """The one line that says why a file is not read."""
    with pytest.raises(ModelError) as caught:
        from_tensorflow(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0\0\0\0TFL3", b"PK\3\4" + bytes(100), bytes(1000)])
def test_other_content_is_no_model(content: bytes, tmp_path: Path) -> None:
    assert "TensorFlow Lite file" in refusal(written(tmp_path / "m.tflite", content))


def test_no_file_at_all(tmp_path: Path) -> None:
    refusal(tmp_path / "none.tflite")


@cache
def small() -> bytes:
    """A model with a branch and a loop."""

    def function(x: Any) -> Any:
        y = tf.nn.relu(tf.nn.conv2d(x, tf.constant(numbers(3, 3, 4, 6)), 1, "SAME") + tf.constant(numbers(6)))
        y = tf.reshape(tf.transpose(y, [0, 3, 1, 2]), [-1, 6, 30])[:, 1:, ::2]
        loop = tf.while_loop(lambda i, _: i < 3, lambda i, a: (i + 1, a * 2), [0, y])
        return tf.cond(tf.reduce_sum(y) > 0, lambda: y * 2, lambda: y - 1), loop[1], *tf.split(y, 3, 2)

    return converted(function, X, open=True)


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    content = small()
    for i, end in enumerate(range(0, len(content) - 16, 97)):
        refusal(written(tmp_path / f"{i}.tflite", content[:end]))


@pytest.mark.parametrize("seed", range(3))
def test_changed_bytes_are_refused_or_read(seed: int, tmp_path: Path) -> None:
    rng, content = np.random.default_rng(seed), [small(), quantized("int8")]
    refused = []
    for i in range(120):
        data = bytearray(content[i % 2])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(data) - 4))
            extreme = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", bytes([rng.integers(256)])]
            new = extreme[rng.integers(0, 4)]
            data[at : at + len(new)] = new
        try:
            from_tensorflow(written(tmp_path / f"{i}.tflite", bytes(data)))
        except ModelError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not any("\n" in line for line in refused)


def of_small(edit: Callable[[Any, Any, Any], None]) -> Callable[[], bytes]:
    """`small`, after an edit that is given the model, its graph, and its operators by their names."""

    def change(model: Any) -> None:
        names = {v: k for k, v in vars(schema().BuiltinOperator).items() if isinstance(v, int)}
        graph = model.subgraphs[0]
        named = {names[model.operatorCodes[o.opcodeIndex].builtinCode]: o for o in graph.operators}
        edit(model, graph, named)

    return lambda: edited(small(), change)


def nested(model: Any, graph: Any, ops: Any) -> None:
    """Each branch has two branches, down to a depth of 20: that would be a million of them."""
    then, last = ops["IF"].builtinOptions.thenSubgraphIndex, len(model.subgraphs)
    for depth in range(20):
        inner = copy.deepcopy(model.subgraphs[then])
        branch = copy.deepcopy(ops["IF"])
        condition = copy.deepcopy(graph.tensors[ops["IF"].inputs[0]])
        inner.tensors.append(condition)
        inner.inputs = [len(inner.tensors) - 1, *inner.inputs]
        branch.inputs = list(inner.inputs[:1]) + list(inner.inputs)
        branch.outputs = inner.outputs
        branch.builtinOptions.thenSubgraphIndex = branch.builtinOptions.elseSubgraphIndex = last + depth + 1
        inner.operators = [branch]
        model.subgraphs.append(inner)
    (deepest,) = model.subgraphs[-1].operators
    deepest.inputs = deepest.inputs[1:]
    deepest.builtinOptions.thenSubgraphIndex = deepest.builtinOptions.elseSubgraphIndex = then
    ops["IF"].inputs = [ops["IF"].inputs[0], *ops["IF"].inputs]
    ops["IF"].builtinOptions.thenSubgraphIndex = ops["IF"].builtinOptions.elseSubgraphIndex = last


def without_options(operator: Any) -> None:
    operator.builtinOptionsType, operator.builtinOptions = 0, None


def scales(axis: int) -> Any:
    found = schema().QuantizationParametersT()
    found.scale, found.zeroPoint, found.quantizedDimension = [1.0, 2.0], [0, 0], axis
    return found


def quantize(tensor: Any) -> None:
    tensor.type, tensor.quantization = schema().TensorType.INT8, scales(1)


def of_kernel(**fields: Any) -> Callable[[Any, Any, Any], None]:
    def edit(model: Any, graph: Any, ops: Any) -> None:
        for name, value in fields.items():
            setattr(graph.tensors[ops["CONV_2D"].inputs[1]], name, value)

    return edit


HOSTILE: dict[str, tuple[str, Callable[[Any, Any, Any], None]]] = {
    "calls itself": ("calls itself", lambda m, g, o: setattr(o["IF"].builtinOptions, "thenSubgraphIndex", 0)),
    "no branch": ("that there is not", lambda m, g, o: setattr(o["IF"].builtinOptions, "elseSubgraphIndex", 77)),
    "no body": ("that there is not", lambda m, g, o: setattr(o["WHILE"].builtinOptions, "bodySubgraphIndex", -1)),
    "too few inputs": ("malformed", lambda m, g, o: setattr(o["CONV_2D"], "inputs", o["CONV_2D"].inputs[:1])),
    "no inputs": ("malformed", lambda m, g, o: setattr(o["TRANSPOSE"], "inputs", [])),
    "too many inputs": ("malformed", lambda m, g, o: setattr(o["TRANSPOSE"], "inputs", [0, 1, 2, 3])),
    "no outputs": ("malformed", lambda m, g, o: setattr(o["TRANSPOSE"], "outputs", [])),
    "no options": ("malformed", lambda m, g, o: without_options(o["CONV_2D"])),
    "computed twice": ("is known", lambda m, g, o: setattr(o["CONV_2D"], "outputs", o["RESHAPE"].outputs)),
    "a computed input": ("is known", lambda m, g, o: setattr(o["CONV_2D"], "outputs", g.inputs)),
    "a cycle": ("nothing computes", lambda m, g, o: g.operators.reverse()),
    "no operators": ("nothing computes", lambda m, g, o: g.operators.clear()),
    "the same input twice": ("one tensor is two inputs", lambda m, g, o: setattr(g, "inputs", [0, 0])),
    "negative sizes": ("bytes", of_kernel(shape=[-6, 3, -3, 4])),
    "too large sizes": ("bytes", of_kernel(shape=[2**31 - 1] * 4)),
    "scales of no axis": ("a scale for each index", of_kernel(quantization=scales(9))),
    "too few scales": (
        "sizes 6 and 2",
        of_kernel(quantization=scales(0), type=schema().TensorType.INT8, shape=[6, 9, 4, 4]),
    ),
    "codes of a branch": ("of type", lambda m, g, o: quantize(g.tensors[g.outputs[0]])),
    "scales of an output": ("sizes", lambda m, g, o: quantize(g.tensors[g.outputs[2]])),
    "no subgraphs": ("without a model", lambda m, g, o: m.subgraphs.clear()),
    "unknown": ("no translation", lambda m, g, o: setattr(m.operatorCodes[0], "builtinCode", 900)),
    "calls within calls": ("call each other too often", nested),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_content_is_refused(what: str, tmp_path: Path) -> None:
    message, edit = HOSTILE[what]
    assert message in refusal(written(tmp_path / "m.tflite", of_small(edit)()))


@pytest.mark.parametrize(
    ("message", "edit"),
    [
        ("a tensor that there is not", lambda s: setattr(s.inputs[0], "tensorIndex", 999)),
        ("a subgraph that there is not", lambda s: setattr(s, "subgraphIndex", 9)),
    ],
)
def test_a_signature_of_nothing_is_refused(message: str, edit: Callable[[Any], None], tmp_path: Path) -> None:
    content = edited(two_signatures(), lambda m: edit(m.signatureDefs[0]))
    assert message in refusal(written(tmp_path / "m.tflite", content))


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    def edit(model: Any, graph: Any, ops: Any) -> None:
        group = schema().ExternalBufferGroupT()
        group.name = "weights.bin"
        model.externalBufferGroups = [group]

    assert "lie in other files" in refusal(written(tmp_path / "m.tflite", of_small(edit)()))
