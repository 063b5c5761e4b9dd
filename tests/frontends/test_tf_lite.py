"""TensorFlow Lite's operators compute what TensorFlow's interpreter does, and so do whole models in floating point."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import planish
from planish.backends import backend
from planish.frontends.tensorflow import UnsupportedOperations, from_tensorflow
from planish.frontends.tensorflow.lite import control, flex, layers, operators, recurrent  # noqa: F401 - their rules
from planish.frontends.tensorflow.lite.model import FLEX, LITE_RULES

from .tf_check import assert_like
from .tf_lite_check import (
    Array,
    check_file,
    code_of,
    converted,
    edited,
    names_in,
    numbers,
    operators_in,
    options_of,
    packed,
    schema,
)

Case = tuple[Any, ...]  # the operator, a function that the converter makes it of, and inputs; see `opened`
L = keras.layers
raw = tf.raw_ops


def integers(*shape: int, low: int = -9, high: int = 9, dtype: Any = np.int32, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(dtype)


def truths(*shape: int, seed: int = 0) -> Array:
    return integers(*shape, low=0, high=2, seed=seed).astype(bool)


def vector(*elements: Any) -> Array:
    return np.array(elements, np.int32 if isinstance(elements[0], int) else np.float32)


def update_slice(x: Any, part: Any, starts: Any) -> Any:
    return importlib.import_module("tensorflow.compiler.tf2xla.ops.gen_xla_ops").xla_dynamic_update_slice(
        x, part, starts
    )


def weight(*shape: int, seed: int = 5) -> Any:
    return tf.constant(numbers(*shape, seed=seed))


X, Y = numbers(2, 3, 4), numbers(2, 3, 4, seed=1)
POSITIVE = np.abs(X) + 0.1
IMAGE, LARGE, SPACE = numbers(2, 6, 5, 4), numbers(2, 8, 7, 4), numbers(2, 3, 3, 2, 2)
BOXES, SCORES = np.abs(numbers(6, 4)).cumsum(1), numbers(6)
DIVISORS = vector(2, -3, 4, 5, -2, 7, 1, -1, 3)
ROWS = vector(0, 2, 1, 2)

UNARY = {
    "ABS": tf.abs, "CEIL": tf.math.ceil, "COS": tf.cos, "ELU": tf.nn.elu, "EXP": tf.exp, "FLOOR": tf.floor,
    "LOG": tf.math.log, "LOGISTIC": tf.sigmoid, "NEG": tf.negative, "RELU": tf.nn.relu, "RELU6": tf.nn.relu6,
    "RSQRT": tf.math.rsqrt, "SIGN": tf.sign, "SIN": tf.sin, "SQRT": tf.sqrt, "SQUARE": tf.square, "TANH": tf.tanh,
    "ZEROS_LIKE": tf.zeros_like, "LOG_SOFTMAX": tf.nn.log_softmax, "SOFTMAX": tf.nn.softmax,
    "RELU_N1_TO_1": lambda x: tf.maximum(-1.0, tf.minimum(x, 1.0)),
    "RELU_0_TO_1": lambda x: tf.maximum(0.0, tf.minimum(x, 1.0)),
    "LEAKY_RELU": lambda x: tf.nn.leaky_relu(x, 0.3), "HARD_SWISH": lambda x: x * tf.nn.relu6(x + 3) * (1 / 6),
    "GELU": lambda x: tf.nn.gelu(x, approximate=True),
    "L2_NORMALIZATION": lambda x: tf.nn.l2_normalize(x, -1),
    "BITCAST": lambda x: tf.bitcast(x, tf.int32), "CAST": lambda x: (tf.cast(x, tf.int32), tf.cast(x, tf.int64)),
    "BUCKETIZE": lambda x: raw.Bucketize(input=x, boundaries=[-1.0, 0.0, 0.5]),
}  # fmt: skip
OF_POSITIVE = ["LOG", "RSQRT", "SQRT"]
WITHOUT_REFERENCE = ["ABS", "CEIL", "ELU"]


def together(x: Array, *names: str) -> Case:
    """One file with several operators that read ``x``."""
    return (" ".join(names), lambda x: [UNARY[name](x) for name in names], x)


BINARY: list[Case] = [
    together(POSITIVE, *OF_POSITIVE),
    together(3 * X, *WITHOUT_REFERENCE),
    together(3 * X, *(name for name in UNARY if name not in (*OF_POSITIVE, *WITHOUT_REFERENCE))),
    ("ADD", tf.add, integers(2, 3), integers(3)),
    ("ADD", lambda x, y: (tf.nn.relu(x + y), tf.nn.relu6(4 * x + y), tf.maximum(-1.0, tf.minimum(x + y, 1.0))), X, Y),
    ("SUB", tf.subtract, X, Y[0]),
    ("MUL", tf.multiply, X, Y[:1, :1]),
    ("DIV", tf.divide, X, POSITIVE),
    ("DIV", lambda x, y: raw.Div(x=x, y=y), integers(9), DIVISORS),
    ("ADD_N", lambda x, y, z: tf.add_n([x, y, z]), X, Y, POSITIVE),
    ("ATAN2", tf.atan2, X, Y, {}),
    ("RIGHT_SHIFT", tf.bitwise.right_shift, integers(4), vector(1, 2, 3, 0)),
    (
        "EQUAL NOT_EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL MAXIMUM MINIMUM BITWISE_XOR",
        lambda x, y: [
            function(x, y)
            for function in (
                tf.equal, tf.not_equal, tf.greater, tf.greater_equal, tf.less, tf.less_equal, tf.maximum, tf.minimum,
                tf.bitwise.bitwise_xor,
            )
        ],
        integers(9), integers(9, seed=1),
    ),
    ("EQUAL", tf.equal, truths(9), truths(9, seed=1)),
    ("FLOOR_DIV", tf.math.floordiv, integers(9), DIVISORS),
    ("FLOOR_DIV", tf.math.floordiv, X, POSITIVE),
    ("FLOOR_MOD", tf.math.floormod, integers(9), DIVISORS),
    ("FLOOR_MOD", tf.math.floormod, X, POSITIVE),
    ("LOGICAL_AND", tf.logical_and, truths(9), truths(9, seed=1)),
    ("LOGICAL_OR", tf.logical_or, truths(9), truths(9, seed=1)),
    ("LOGICAL_NOT", tf.logical_not, truths(9)),
    ("MAXIMUM", tf.maximum, X, Y),
    ("POW", tf.pow, POSITIVE, Y),
    ("POW", tf.pow, integers(5, low=0), integers(5, low=0, high=4)),
    ("SQUARED_DIFFERENCE", tf.math.squared_difference, X, Y),
    ("SELECT", lambda k, x, y: raw.Select(condition=k, x=x, y=y), truths(2), numbers(2, 3), numbers(2, 3, seed=2)),
    ("SELECT_V2", tf.where, truths(3), X[:, :, :3], Y[0, :, :1]),
    ("ROUND", tf.round, vector(0.5, 1.5, -0.5, 2.3)),
    ("GELU", lambda x: tf.nn.gelu(x, approximate=False), X),
    ("CAST", lambda x: tf.cast(x, tf.float32), truths(3)),
    ("CAST", lambda x: tf.cast(x, tf.bool), vector(0, 3, -1)),
]  # fmt: skip
MOVING: list[Case] = [
    ("BATCH_TO_SPACE_ND", lambda x: tf.batch_to_space(x, [2, 2], [[0, 1], [1, 0]]), numbers(4, 3, 3, 2)),
    ("SPACE_TO_BATCH_ND", lambda x: tf.space_to_batch(x, [2, 2], [[0, 1], [1, 0]]), numbers(2, 3, 3, 2)),
    ("BROADCAST_TO", tf.broadcast_to, numbers(2, 1), vector(4, 2, 3)),
    ("DYNAMIC_UPDATE_SLICE", update_slice, numbers(4, 5), numbers(2, 2), vector(1, 9)),
    ("EXPAND_DIMS", lambda x: tf.expand_dims(x, 1), numbers(2, 3, 4), {0: [0, 1]}),
    ("PAD", lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1]]), X),
    ("PAD", tf.pad, X, np.array([[0, 0], [1, 2], [0, 1]], np.int32)),
    ("PADV2", lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1]], constant_values=3.0), X),
    ("MIRROR_PAD", lambda x: [tf.pad(x, [[0, 0], [1, 2], [0, 1]], mode) for mode in ("REFLECT", "SYMMETRIC")], X),
    ("REVERSE_V2", lambda x: tf.reverse(x, [1]), X),
    ("SLICE", lambda x: tf.slice(x, [0, 1, 0], [-1, 2, 3]), X),
    ("SLICE", tf.slice, X, vector(0, 1, 0), vector(-1, 2, 3)),
    ("TILE", lambda x: tf.tile(x, [1, 2, 3]), X),
    ("TILE", tf.tile, X, vector(1, 2, 3)),
    ("TRANSPOSE", lambda x: tf.transpose(x, [2, 0, 1]), X),
    ("DEPTH_TO_SPACE", lambda x: tf.nn.depth_to_space(x, 2), IMAGE),
    ("SPACE_TO_DEPTH", lambda x: tf.nn.space_to_depth(x, 2), numbers(2, 6, 4, 3)),
    ("PACK", lambda x, y: tf.stack([x, y], 1), X, Y),
    ("UNPACK", lambda x: tuple(tf.unstack(x, axis=1)), X),
    ("RESHAPE", lambda x: tf.reshape(x, [-1, 4]), X),
    ("RESHAPE", tf.reshape, X, vector(4, -1)),
    ("SQUEEZE", lambda x: tf.squeeze(x, [1]), numbers(2, 1, 3, 4), {0: [0, 2]}),
    ("CONCATENATION", lambda x, y: tf.concat([x, y], -1), X, Y),
    ("SPLIT", lambda x: tuple(tf.split(x, 2, -1)), X),
    ("SPLIT_V", lambda x: tuple(tf.split(x, [1, -1, 2], 2)), numbers(2, 3, 5)),
    ("STRIDED_SLICE", lambda x: (x[:, 1:, ::-1], x[..., 1], x[1, tf.newaxis, ..., ::2], x[:, -2:-1]), X),
    ("STRIDED_SLICE", lambda x, start: x[start:], X, np.int32(1)),
    ("REVERSE_SEQUENCE", lambda x, n: tf.reverse_sequence(x, n, seq_axis=1, batch_axis=0), X, vector(1, 3)),
    ("GATHER", lambda x, at: tf.gather(x, at, axis=1), X, vector(0, 2, 2)),
    ("GATHER", lambda x, at: tf.gather(x, at, axis=2, batch_dims=1), X, integers(2, 3, low=0, high=4)),
    ("GATHER_ND", tf.gather_nd, X, np.array([[0, 1], [1, 2]], np.int32)),
    ("TOPK_V2", lambda x: tuple(tf.math.top_k(x, 2)), X),
]
REDUCING: list[Case] = [
    ("MEAN", lambda x: tf.reduce_mean(x, [1], keepdims=True), X),
    ("MEAN", lambda x: tf.reduce_mean(x, [1, 2]), IMAGE),
    ("SUM", lambda x: tf.reduce_sum(x, [0, -1]), X),
    ("SUM", lambda x: tf.reduce_sum(x, [1]), integers(3, 4)),
    ("REDUCE_PROD", lambda x: tf.reduce_prod(x, 1), X),
    ("REDUCE_MAX", lambda x: tf.reduce_max(x, 1), X),
    ("REDUCE_MIN", lambda x: tf.reduce_min(x, 1), integers(3, 4)),
    ("REDUCE_ANY", lambda x: tf.reduce_any(x, 1), truths(3, 4)),
    ("REDUCE_ALL", lambda x: tf.reduce_all(x, [0, 1], keepdims=True), truths(3, 4)),
    ("SOFTMAX", lambda x: tf.nn.softmax(x, axis=1), X),
    ("CUMSUM", lambda x: tf.cumsum(x, 1, exclusive=True, reverse=True), X),
    ("CUMSUM", lambda x: tf.cumsum(x, 0), integers(3, 4)),
    ("ARG_MAX", lambda x: tf.argmax(x, -1), X),
    ("ARG_MIN", lambda x: tf.argmin(x, 1, tf.int32), X),
    ("BATCH_MATMUL", tf.matmul, numbers(2, 3, 4), numbers(2, 4, 5)),
    ("BATCH_MATMUL", lambda x, y: tf.matmul(x, y, transpose_b=True), numbers(2, 3, 4), numbers(1, 5, 4)),
    ("BATCH_MATMUL", lambda x, y: tf.matmul(x, y, transpose_a=True), numbers(2, 4, 3), numbers(4, 5)),
    ("FULLY_CONNECTED", lambda x: tf.matmul(x, weight(4, 5)), numbers(3, 4)),
    ("FULLY_CONNECTED", lambda x: tf.nn.relu(tf.matmul(x, weight(4, 5)) + weight(5)), numbers(3, 4)),
    ("FULLY_CONNECTED", lambda x, y: tf.matmul(x, y, transpose_b=True), numbers(3, 4), numbers(5, 4)),
    ("FULLY_CONNECTED", lambda x: tf.tensordot(x, weight(4, 5), 1), X),
    ("FULLY_CONNECTED", lambda x: tf.einsum("abc,cd->abd", x, weight(4, 5)), X),
]
OTHERS: list[Case] = [
    ("BROADCAST_ARGS", lambda x, y: raw.BroadcastArgs(s0=x, s1=y), vector(2, 1, 3), vector(4, 1), {}),
    ("MATRIX_DIAG", lambda x: raw.MatrixDiag(diagonal=x), numbers(2, 3)),
    ("MATRIX_SET_DIAG", lambda x, d: raw.MatrixSetDiag(input=x, diagonal=d), numbers(2, 3, 4), numbers(2, 3)),
    ("RANGE", tf.range, np.int32(2), np.int32(11), np.int32(3)),
    ("RANGE", tf.range, np.float32(2), np.float32(4), np.float32(0.25)),
    ("FILL", tf.fill, vector(2, 3), np.float32(3), {}),
    ("SHAPE", lambda x: (tf.shape(x), tf.shape(x, tf.int64)), X),
    ("SCATTER_ND", lambda at, x: tf.scatter_nd(at, x, [6, 2]), np.array([[1], [4], [1]], np.int32), numbers(3, 2)),
    ("SEGMENT_SUM", tf.math.segment_sum, numbers(4, 3), vector(0, 0, 1, 2)),
    ("UNSORTED_SEGMENT_MAX", lambda x, at: tf.math.unsorted_segment_max(x, at, 3), numbers(4, 3), ROWS),
    ("UNSORTED_SEGMENT_MIN", lambda x, at: tf.math.unsorted_segment_min(x, at, 3), numbers(4, 3), ROWS),
    ("UNSORTED_SEGMENT_PROD", lambda x, at: tf.math.unsorted_segment_prod(x, at, 3), numbers(4, 3), ROWS),
    ("UNSORTED_SEGMENT_SUM", lambda x, at: tf.math.unsorted_segment_sum(x, at, 3), numbers(4, 3), ROWS),
    ("UNIQUE", lambda x: tuple(tf.unique(x)), integers(9)),
    ("UNIQUE", lambda x: tuple(tf.unique(x, tf.int64)), integers(9)),
    ("WHERE", tf.where, truths(3, 4)),
    ("ONE_HOT", lambda x: tf.one_hot(x, 5, 2.0, -1.0), integers(2, 3, low=-1, high=6)),
    ("ONE_HOT", lambda x: tf.one_hot(x, 5, axis=0, dtype=tf.int32), integers(2, 3, low=0, high=5)),
    (
        "NON_MAX_SUPPRESSION_V4",
        lambda x, s: tuple(raw.NonMaxSuppressionV4(
            boxes=x, scores=s, max_output_size=4, iou_threshold=0.5, score_threshold=-9.0, pad_to_max_output_size=True
        )),
        BOXES, SCORES,
    ),
    (
        "NON_MAX_SUPPRESSION_V5",
        lambda x, s: tuple(raw.NonMaxSuppressionV5(
            boxes=x, scores=s, max_output_size=4, iou_threshold=0.5, score_threshold=0.0, soft_nms_sigma=0.0,
            pad_to_max_output_size=True,
        )),
        BOXES, SCORES,
    ),
    *[
        (
            "SPARSE_TO_DENSE",
            lambda at, x, shape=shape: raw.SparseToDense(
                sparse_indices=at, output_shape=shape, sparse_values=x, default_value=-1.0, validate_indices=False
            ),
            at, x,
        )
        for at, x, shape in (
            (np.array([[0, 1], [2, 3]], np.int32), numbers(2), [3, 4]),
            (vector(4, 1), numbers(2), [6]),
        )
    ],
]  # fmt: skip


def both(make: Callable[..., Any], *variants: Sequence[Any]) -> Callable[..., Any]:
    """A function of ``x`` with a result for both paddings and each of the variants."""
    return lambda x: [make(x, padding, *v) for padding in ("SAME", "VALID") for v in variants]


def transposed(x: Any, padding: str, stride: int) -> Any:
    sizes = [n * stride + (max(k - stride, 0) if padding == "VALID" else 0) for n, k in ((4, 3), (3, 2))]
    return tf.nn.conv2d_transpose(x, weight(3, 2, 5, 4), [tf.shape(x)[0], *sizes, 5], stride, padding)


def transposed_3d(x: Any, padding: str, stride: int) -> Any:
    sizes = [n * stride + (2 - stride if padding == "VALID" else 0) for n in (3, 3, 2)]
    shape = [tf.shape(x)[0], *sizes, 5]
    return tf.nn.conv3d_transpose(x, weight(2, 2, 2, 5, 2), shape, [1, stride, stride, stride, 1], padding)


SPATIAL: list[Case] = [
    (
        "CONV_2D",
        both(
            lambda x, p, s, d: tf.nn.conv2d(x, weight(3, 2, 4, 6), s, p, dilations=d),
            (1, 1), (2, 1), ((2, 1), 1), (1, 2),
        ),
        LARGE,
    ),
    ("CONV_2D", lambda x: tf.nn.relu6(tf.nn.conv2d(x, weight(3, 3, 2, 6), 1, "SAME") + weight(6)), IMAGE),
    ("CONV_2D", lambda x: tf.nn.conv2d(x, weight(3, 3, 4, 6), 2, [[0, 0], [1, 1], [1, 1], [0, 0]]), IMAGE),
    ("CONV_2D", lambda x: tf.nn.conv1d(x, weight(3, 4, 6), 1, "SAME"), X),
    ("CONV_2D", lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), IMAGE, numbers(3, 3, 4, 6), {}),
    (
        "DEPTHWISE_CONV_2D",
        both(
            lambda x, p, s, d: tf.nn.depthwise_conv2d(x, weight(3, 2, 4, 2), [1, s, s, 1], p, dilations=[d, d]),
            (1, 1), (2, 1), (1, 2),
        ),
        LARGE,
    ),
    ("TRANSPOSE_CONV", both(transposed, (1,), (2,), (3,)), numbers(2, 4, 3, 4)),
    ("MAX_POOL_2D", both(lambda x, p, s: tf.nn.max_pool2d(x, [3, 2], s, p), (1,), (2,), (3,)), LARGE),
    ("MAX_POOL_2D", lambda x: tf.nn.relu(tf.nn.max_pool2d(x, 2, 2, "VALID")), IMAGE),
    ("AVERAGE_POOL_2D", both(lambda x, p, s: tf.nn.avg_pool2d(x, [3, 2], s, p), (1,), (2,), (3,)), LARGE),
    (
        "CONV_3D",
        both(lambda x, p, s: tf.nn.conv3d(x, weight(3, 2, 2, 2, 6), [1, s, s, s, 1], p), (1,), (2,)),
        numbers(2, 5, 6, 4, 2),
    ),
    ("CONV_3D_TRANSPOSE", both(transposed_3d, (1,), (2,)), SPACE),
    *[
        (
            name,
            lambda x, operation=operation, mode=mode: [
                operation(images=x, size=size, **mode) for size in ([12, 10], [9, 7], [3, 4])
            ],
            IMAGE,
        )
        for name, operation in (
            ("RESIZE_BILINEAR", raw.ResizeBilinear), ("RESIZE_NEAREST_NEIGHBOR", raw.ResizeNearestNeighbor)
        )
        for mode in ({}, {"half_pixel_centers": True}, {"align_corners": True})
    ],
]  # fmt: skip
CASES = [*BINARY, *MOVING, *REDUCING, *OTHERS, *SPATIAL]


def opened(case: Case) -> tuple[str, Any, list[Array], Any]:
    """Which sizes are open: those that a case ends with, else the first of its first input."""
    name, function, *rest = case
    axes = rest.pop() if isinstance(rest[-1], dict) else {0: (0,)} if np.ndim(rest[0]) else {}
    return name, function, rest, axes


@pytest.mark.parametrize("case", CASES, ids=[case[0].split()[0] for case in CASES])
def test_an_operator(case: Case, tmp_path: Path) -> None:
    name, function, inputs, axes = opened(case)
    content = converted(function, *inputs, open=axes)
    check_file(tmp_path / "m.tflite", content, *inputs)
    assert set(name.split()) <= names_in(tmp_path / "m.tflite")


def test_normalization_of_neighbours(tmp_path: Path) -> None:
    """The interpreter's reference leaves the last neighbour out; its usual kernel does not, as TensorFlow."""
    content = converted(lambda x: tf.nn.lrn(x, 1, 0.5, 0.2, 0.6), IMAGE, open=True)
    check_file(tmp_path / "m.tflite", content, IMAGE, reference=False)
    assert names_in(tmp_path / "m.tflite") == {"LOCAL_RESPONSE_NORMALIZATION"}


# operators that the converter no longer makes: they are put where others were


def replaced(name: str, options: str = "", **values: Any) -> Callable[[Any], None]:
    """The first operator is another."""

    def edit(model: Any) -> None:
        operator = operators_in(model)[0]
        operator.opcodeIndex = code_of(model, name)
        if options:
            operator.builtinOptionsType, operator.builtinOptions = options_of(options, **values)

    return edit


def looked_up(model: Any) -> None:
    replaced("EMBEDDING_LOOKUP")(model)
    operator = operators_in(model)[0]
    operator.inputs = list(reversed(operator.inputs))
    operator.builtinOptionsType, operator.builtinOptions = 0, None


def ranked(model: Any) -> None:
    replaced("RANK", "RankOptions")(model)
    result = model.subgraphs[0].tensors[operators_in(model)[0].outputs[0]]
    result.shape, result.shapeSignature = [], None


def reshaped(model: Any) -> None:
    """As its options say, without a second input."""
    replaced("RESHAPE", "ReshapeOptions", newShape=[8, -1])(model)
    operators_in(model)[0].inputs = [0]


EDITED: list[Case] = [
    ("L2_POOL_2D", replaced("L2_POOL_2D"), lambda x: tf.nn.avg_pool2d(x, [3, 2], 2, "SAME"), IMAGE),
    ("FAKE_QUANT", replaced("FAKE_QUANT", "FakeQuantOptions", min=-1, max=2, numBits=8), tf.nn.relu, X),
    ("RANK", ranked, tf.shape, X),
    ("EMBEDDING_LOOKUP", looked_up, lambda x, at: tf.gather(x, at, axis=0), numbers(5, 3), vector(4, 0, 4)),
    ("RESHAPE", reshaped, lambda x: tf.reshape(x, [8, 3]), X, {}),
]


@pytest.mark.parametrize(("name", "edit", "function", "inputs"), [(*c[:3], c[3:]) for c in EDITED])
def test_an_operator_of_other_writers(name: str, edit: Any, function: Any, inputs: Any, tmp_path: Path) -> None:
    _, _, arrays, axes = opened((name, function, *inputs))
    content = edited(converted(function, *arrays, open=axes), edit)
    check_file(tmp_path / "m.tflite", content, *arrays)
    assert name in names_in(tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (tf.add, (3 * X, Y)),
        (lambda x: tf.nn.conv2d(x, weight(3, 3, 4, 6), 1, "SAME"), (IMAGE,)),
        (lambda x: tf.nn.avg_pool2d(x, 2, 1, "SAME"), (3 * IMAGE,)),
        (lambda x: tf.nn.max_pool2d(x, 2, 1, "SAME"), (3 * IMAGE,)),
        (lambda x: tf.matmul(x, weight(4, 5)), (numbers(3, 4),)),
    ],
    ids=["ADD", "CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D", "FULLY_CONNECTED"],
)
def test_a_fused_activation(function: Any, inputs: Any, tmp_path: Path) -> None:
    """None, ReLU, ReLU of -1 to 1, ReLU6."""
    content = converted(function, *inputs)
    for number in range(4):
        check_file(tmp_path / f"{number}.tflite", edited(content, activation(number)), *inputs)


def activation(number: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        operators_in(model)[0].builtinOptions.fusedActivationFunction = number

    return edit


@pytest.mark.parametrize("number", [4, 5, 77])
def test_an_activation_that_none_fuses_is_refused(number: int, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(edited(converted(tf.add, X, Y), activation(number)))
    with pytest.raises(UnsupportedOperations, match=f"ADD .*activation, number {number}"):
        from_tensorflow(path)


# control flow, and operators with memory


def test_a_branch(tmp_path: Path) -> None:
    content = converted(lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: (x * 2, x), lambda: (x - 1, -x)), X, open=True)
    for x in (np.abs(X), -np.abs(X), numbers(5, 3, 4)):
        check_file(tmp_path / "m.tflite", content, x)
    assert "IF" in names_in(tmp_path / "m.tflite")


def test_loops_in_loops(tmp_path: Path) -> None:
    def outer(x: Any, times: Any) -> Any:
        def inner(i: Any, a: Any) -> Any:
            _, a = tf.while_loop(lambda j, _: j < i, lambda j, b: (j + 1, b * 0.5), [0, a])
            return i + 1, a + tf.cast(i, tf.float32)

        return tf.while_loop(lambda i, _: i < times, inner, [0, x])

    content = converted(outer, X, np.int32(4), open=True)
    for times in (0, 4):
        check_file(tmp_path / "m.tflite", content, numbers(3, 3, 4), np.int32(times))
    assert "WHILE" in names_in(tmp_path / "m.tflite")


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.LSTM(3),
        lambda: L.LSTM(3, return_sequences=True, go_backwards=True),
        lambda: L.Bidirectional(L.GRU(3, return_sequences=True)),
        lambda: L.SimpleRNN(3),
    ],
    ids=["LSTM", "backwards", "bidirectional GRU", "SimpleRNN"],
)
def test_recurrent_layers_of_keras(make: Callable[[], Any], tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input(batch_shape=(2, 5, 4)), make()])
    check_file(tmp_path / "m.tflite", converted(model), numbers(2, 5, 4))
    assert "WHILE" in names_in(tmp_path / "m.tflite")


@pytest.mark.parametrize("clip", [0.0, 10.0, 0.3])
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("is_time_first", [False, True])
def test_a_fused_lstm(is_time_first: bool, peepholes: bool, clip: float, tmp_path: Path) -> None:
    content = lstm(is_time_first, peepholes, clip)
    graph = check_file(tmp_path / "m.tflite", content, 2 * numbers(2, 5, 4))
    assert Counter(node.op for node in graph.walk())["LSTM"] == (clip != 0.3)


def lstm(is_time_first: bool, peepholes: bool, clip: float) -> bytes:
    """A file with one operator, as Keras 2 wrote it."""
    module = schema()
    outer, size, hidden = [2, 5], 4, 3
    batch = outer[int(is_time_first)]
    model, graph, operator = module.ModelT(), module.SubGraphT(), module.OperatorT()
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [], [module.BufferT()]
    graph.tensors, graph.operators, graph.name = [], [operator], "main"

    def tensor(name: str, *shape: int, array: Any = None, variable: bool = False) -> int:
        made = module.TensorT()
        made.name, made.shape, made.type, made.isVariable = name, list(shape), module.TensorType.FLOAT32, variable
        made.buffer = 0
        if array is not None:
            buffer = module.BufferT()
            buffer.data = np.frombuffer(array.tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def weights(name: str, *shape: int, count: int = 4, scale: float = 1) -> list[int]:
        return [tensor(f"{name}{k}", *shape, array=scale * numbers(*shape, seed=10 * k)) for k in range(count)]

    x = tensor("x", *outer, size)
    operator.inputs = [
        x,
        *weights("w", hidden, size),
        *weights("r", hidden, hidden),
        *(weights("p", hidden, count=3) if peepholes else [-1] * 3),
        *weights("b", hidden, scale=np.float32(0.5)),
        -1,
        -1,
        *(tensor(name, batch, hidden, variable=True) for name in ("h", "c")),
        *[-1] * 4,
    ]
    operator.outputs = [tensor("y", *outer, hidden)]
    operator.opcodeIndex = code_of(model, "UNIDIRECTIONAL_SEQUENCE_LSTM")
    values = {"fusedActivationFunction": 4, "cellClip": clip, "timeMajor": is_time_first}
    operator.builtinOptionsType, operator.builtinOptions = options_of("UnidirectionalSequenceLSTMOptions", **values)
    graph.inputs, graph.outputs = [x], list(operator.outputs)
    return packed(model)


@pytest.mark.parametrize(
    ("message", "edit"),
    [
        ("another activation", lambda o: setattr(o.builtinOptions, "fusedActivationFunction", 1)),
        ("projection", lambda o: o.inputs.__setitem__(16, o.inputs[5])),
        ("normalizations", lambda o: o.inputs.__setitem__(20, o.inputs[12])),
        ("follows from the forget gate", lambda o: o.inputs.__setitem__(1, -1)),
        ("begins with a state", lambda o: o.inputs.__setitem__(18, o.inputs[12])),
    ],
)
def test_other_lstms_are_refused(message: str, edit: Callable[[Any], None], tmp_path: Path) -> None:
    def change(model: Any) -> None:
        operators_in(model)[0].inputs = list(operators_in(model)[0].inputs)
        edit(operators_in(model)[0])

    path = tmp_path / "m.tflite"
    path.write_bytes(edited(lstm(False, False, 0.0), change))
    with pytest.raises(UnsupportedOperations, match=message):
        from_tensorflow(path)


# whole models


def test_a_convolutional_model_has_channels_first_throughout(tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            L.Conv2D(8, 3, activation="relu"),
            L.DepthwiseConv2D(3, padding="same"),
            L.PReLU(shared_axes=[1, 2]),
            L.Conv2D(8, 3, groups=2, strides=2),
            L.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=1),
            L.Activation("hard_silu"),
            L.GlobalAveragePooling2D(),
            L.Dense(3, "softmax"),
        ]
    )
    path = tmp_path / "m.tflite"
    graph = check_file(path, converted(model), numbers(3, 8, 8, 4))
    assert {"PRELU", "TRANSPOSE_CONV"} <= names_in(path)
    assert graph.inputs[0].type.shape[0] == planish.ir.sym("batch")  # type: ignore[union-attr,index]
    planish.Pipeline.parse("default").run(graph, planish.Context(lambda: backend("onnxruntime")))
    assert Counter(node.op for node in graph.walk())["Transpose"] == 1


# operations of TensorFlow


def test_operations_of_tensorflow_are_translated_as_such(tmp_path: Path) -> None:
    def function(x: Any) -> Any:
        boxes = tf.constant([[0.1, 0.2, 0.8, 0.9]])
        return tf.math.erf(x), tf.image.crop_and_resize(x, boxes, [0], [3, 4], "nearest", 2.0)

    path = tmp_path / "m.tflite"
    select = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    path.write_bytes(converted(function, IMAGE, open=True, supported_ops=select))
    assert names_in(path) == {"FlexErf", "FlexCropAndResize"}
    x = numbers(5, 6, 5, 4)
    found = backend("onnxruntime").compile(from_tensorflow(path))(x)
    for a, b in zip(found, function(tf.constant(x)), strict=True):
        assert_like(a, np.asarray(b))


def test_every_rule_is_tested() -> None:
    """So a rule that no file needs is not kept; the rest are in the tests of quantized files."""
    tested = {name for case in (*CASES, *EDITED) for name in case[0].split()}
    elsewhere = {
        "LOCAL_RESPONSE_NORMALIZATION",
        "PRELU",
        "IF",
        "WHILE",
        "QUANTIZE",
        "DEQUANTIZE",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        FLEX,
    }
    assert {n for n, rule in LITE_RULES.items() if rule is not operators.refuse} == tested | elsewhere
