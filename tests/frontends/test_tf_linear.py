"""Products, biases, simulated quantization, and the Keras layers that are made of them, and what they become."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from planish.backends import backend
from planish.frontends.tensorflow.reasons import UnsupportedOperations

from .tf_check import check, translate

raw = tf.raw_ops


def f32(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# products


@pytest.mark.parametrize("open", [False, True])
@pytest.mark.parametrize("turns", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_matrices_turn_either_side(turns: tuple[bool, bool], open: bool) -> None:
    x, y = f32(*((3, 2) if turns[0] else (2, 3))), f32(*((4, 3) if turns[1] else (3, 4)), seed=1)
    check(lambda x, y: raw.MatMul(a=x, b=y, transpose_a=turns[0], transpose_b=turns[1]), x, y, open=open)
    many, few = np.stack([x] * 5)[:, None], np.stack([y] * 2)
    check(lambda x, y: raw.BatchMatMulV2(x=x, y=y, adj_x=turns[0], adj_y=turns[1]), many, few, open=open)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.int32, np.int64], ids=lambda d: np.dtype(d).name
)
def test_products_keep_the_type(dtype: Any) -> None:
    x, y = np.arange(6).reshape(2, 3).astype(dtype), np.arange(12).reshape(3, 4).astype(dtype)
    engine = "reference" if dtype is ml_dtypes.bfloat16 else "onnxruntime"
    check(lambda x, y: raw.MatMul(a=x, b=y), x, y, open=True, engine=engine)


def test_products_of_bytes_are_summed_as_wide_integers() -> None:
    x, y = np.full((2, 3), -100, np.int8), np.full((3, 4), 127, np.int8)
    graph = translate(lambda x, y: raw.BatchMatMulV3(x=x, y=y, Tout=tf.int32), x, y)  # TensorFlow has no kernel
    assert [node.op for node in graph.walk()] == ["MatMulInteger"]
    (found,) = backend("onnxruntime").compile(graph)(x, y)
    np.testing.assert_array_equal(found, x.astype(np.int32) @ y.astype(np.int32))


EQUATIONS = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "BSD,DNH->BNSH": ((2, 5, 6), (6, 3, 4)),
    "bhqd,bhkd->bhqk": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "...ij,jk": ((2, 3, 4, 5), (5, 3)),
    "...a,...a->...": ((2, 3, 4), (3, 4)),
    "ii->i": ((3, 3),),
    "ij->": ((3, 4),),
    "ij->ji": ((3, 4),),
    "i,j,k->kji": ((2,), (3,), (4,)),
    "xYz , Yz -> x": ((2, 3, 4), (3, 4)),
}


@pytest.mark.parametrize("open", [False, True])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_sums_of_products_are_tensorflows(equation: str, open: bool) -> None:
    operands = [f32(*shape, seed=i) for i, shape in enumerate(EQUATIONS[equation])]
    check(lambda *x: tf.einsum(equation, *x), *operands, open=open)


def test_sums_of_products_of_integers_are_integers() -> None:
    check(
        lambda x, y: tf.einsum("ij,jk->ik", x, y), np.arange(6, dtype=np.int32).reshape(2, 3), np.ones((3, 2), np.int32)
    )


def test_a_diagonal_made_by_a_sum_of_products_is_refused() -> None:
    with pytest.raises(UnsupportedOperations, match=r"Einsum.*repeats a letter"):
        translate(lambda x: raw.Einsum(inputs=[x], equation="i->ii"), f32(3))


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_biases_are_added_to_channels(rank: int) -> None:
    x, bias = f32(*range(2, rank + 2)), f32(rank + 1)
    check(lambda x, b: raw.BiasAdd(value=x, bias=b), x, bias, open=True)
    if rank > 2:
        bias = f32(3)
        check(lambda x, b: raw.BiasAdd(value=x, bias=b, data_format="NCHW"), x, bias, open={0: [0]})


@pytest.mark.parametrize("axes", [1, 2, [[2], [0]], [[1, 2], [1, 0]], [[0], [2]]])
def test_tensordot_is_tensorflows(axes: Any) -> None:
    x, y = f32(4, 4, 4), f32(4, 4, 4, seed=1)
    check(lambda x, y: tf.tensordot(x, y, axes), x, y)
    check(lambda x, y: tf.tensordot(x, y, axes), x, y, open={0: [0], 1: [2]})


# layers


def _model(shape: tuple[int | None, ...], *parts: Any) -> keras.Model:
    """A model whose weights are all other numbers than Keras begins with."""
    x = y = keras.Input(shape)
    for part in parts:
        y = part(y)
    model = keras.Model(x, y)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return model


def _becomes(shape: tuple[int | None, ...], *parts: Any) -> dict[str, int]:
    """The operators that a model becomes, which computes what Keras computes."""
    x = np.random.default_rng(1).uniform(-2, 2, (3, *(n or 6 for n in shape))).astype(np.float32)
    open_ = {0: [0, *(i for i, n in enumerate(shape, 1) if n is None)]}
    return dict(check(_model(shape, *parts), x, open=open_, simplify=True))


@pytest.mark.parametrize("shape", [(5, 8), (5, 6, 8), (None, 8), (None, None, 8)])
def test_a_dense_layer_on_sequences_is_one_product(shape: tuple[int | None, ...]) -> None:
    assert _becomes(shape, layers.Dense(4)) == {"MatMul": 1, "Add": 1}
    assert _becomes(shape, layers.Dense(4, use_bias=False)) == {"MatMul": 1}


def test_a_dense_layer_with_a_normalization_is_one_product() -> None:
    assert _becomes((8,), layers.Dense(4), layers.BatchNormalization()) == {"Gemm": 1}
    assert _becomes((5, 8), layers.Dense(4), layers.BatchNormalization()) == {"MatMul": 1, "Add": 1}


def test_einsum_dense_layers_are_products() -> None:
    dense = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")
    assert _becomes((None, 8), dense) == {"MatMul": 1, "Add": 1}
    heads = layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4), bias_axes="de")
    assert set(_becomes((5, 8), heads)) == {"MatMul", "Add", "Reshape"}


ACTIVATIONS = {
    "celu": None, "elu": {"Elu": 1}, "exponential": {"Exp": 1}, "gelu": {"Gelu": 1}, "glu": None,
    "hard_shrink": None, "hard_sigmoid": {"HardSigmoid": 1}, "hard_silu": {"HardSwish": 1}, "hard_tanh": {"Clip": 1},
    "leaky_relu": {"LeakyRelu": 1}, "log_sigmoid": None, "log_softmax": {"LogSoftmax": 1}, "mish": {"Mish": 1},
    "relu": {"Relu": 1}, "relu6": {"Clip": 1}, "selu": {"Selu": 1}, "sigmoid": {"Sigmoid": 1}, "silu": {"Swish": 1},
    "soft_shrink": None, "softmax": {"Softmax": 1}, "softplus": {"Softplus": 1}, "softsign": {"Softsign": 1},
    "sparse_plus": None, "sparse_sigmoid": None, "sparsemax": None, "squareplus": None, "tanh": {"Tanh": 1},
    "tanh_shrink": None,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_keras_are_one_operator_where_there_is_one(name: str) -> None:
    x = np.linspace(-4, 4, 40, dtype=np.float32).reshape(2, 2, 10)
    found = check(getattr(keras.activations, name), x, open={0: [0]}, simplify=True)
    assert ACTIVATIONS[name] in (None, found)


def test_gelu_by_tanh_is_one_operator() -> None:
    assert check(lambda x: keras.activations.gelu(x, approximate=True), f32(2, 8), simplify=True) == {"Gelu": 1}


def test_activation_layers_are_what_their_functions_are() -> None:
    assert _becomes((5, 8), layers.LeakyReLU(0.2)) == {"LeakyRelu": 1}
    assert _becomes((5, 8), layers.ReLU(max_value=6.0)) == {"Clip": 1}
    assert _becomes((5, 8), layers.Softmax(axis=1)) == {"Softmax": 1}
    assert _becomes((5, 8), layers.PReLU(shared_axes=[1])) == {"PRelu": 1}
    for layer in (layers.ReLU(4.0, 0.1, 0.5), layers.ELU(0.5)):
        _becomes((5, 8), layer)


def test_merging_layers_are_tensorflows() -> None:
    kinds = (layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply, layers.Subtract)
    merges = [kind() for kind in (*kinds, layers.Concatenate)]
    check(lambda x, y: [m([x, y]) for m in merges], f32(2, 5, 8), f32(2, 5, 8, seed=1), open={0: [0], 1: [0]})


def test_dot_layers_are_tensorflows() -> None:
    dots = [layers.Dot(axes=(2, 2), normalize=normalize) for normalize in (False, True)]
    check(lambda x, y: [dot([x, y]) for dot in dots], f32(2, 5, 8), f32(2, 6, 8, seed=1), open={0: [0], 1: [0]})


# normalizations


NORMALIZATIONS = {
    "LayerNormalization": ((None, 8), lambda: layers.LayerNormalization()),
    "LayerNormalization of images": ((4, 5, 8), lambda: layers.LayerNormalization()),
    "LayerNormalization of two dimensions": ((5, 8), lambda: layers.LayerNormalization(axis=(1, 2))),
    "LayerNormalization without a scale": ((5, 8), lambda: layers.LayerNormalization(scale=False)),
    "LayerNormalization without a bias": ((5, 8), lambda: layers.LayerNormalization(center=False)),
    "RMSNormalization": ((None, 8), lambda: layers.RMSNormalization()),
    "GroupNormalization": ((8, 6, 6), lambda: layers.GroupNormalization(4, axis=1)),
    "InstanceNormalization": ((8, 6, 6), lambda: layers.GroupNormalization(-1, axis=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalizations_are_one_operator(name: str) -> None:
    shape, make = NORMALIZATIONS[name]
    assert _becomes(shape, make()) == {name.partition(" ")[0]: 1}


@pytest.mark.parametrize("shape", [(6, 8), (6, 6, 8), (None, None, 8)])
def test_group_normalization_of_the_last_dimension_moves_it(shape: tuple[int | None, ...]) -> None:
    assert _becomes(shape, layers.GroupNormalization(4)) == {"GroupNormalization": 1, "Transpose": 2}


NORMALIZED = {
    "GroupNormalization": lambda: layers.GroupNormalization(4),
    "GroupNormalization without parameters": lambda: layers.GroupNormalization(4, center=False, scale=False),
    "InstanceNormalization": lambda: layers.GroupNormalization(-1),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_group_normalization_between_convolutions_moves_nothing(name: str) -> None:
    convolutions = [layers.Conv2D(8, 3, padding="same") for _ in range(2)]
    found = _becomes((6, 6, 3), convolutions[0], NORMALIZED[name](), layers.Activation("silu"), convolutions[1])
    assert found == {"Conv": 2, name.partition(" ")[0]: 1, "Swish": 1, "Transpose": 2}


def test_layer_normalization_between_convolutions_is_one_operator() -> None:
    convolutions = [layers.Conv2D(8, 3, padding="same") for _ in range(2)]
    found = _becomes((6, 6, 3), convolutions[0], layers.LayerNormalization(), convolutions[1])
    assert found == {"Conv": 2, "LayerNormalization": 1, "Transpose": 4}


def test_batch_normalization_goes_into_the_convolution() -> None:
    found = _becomes((6, 6, 3), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(max_value=6.0))
    assert found == {"Conv": 1, "Clip": 1, "Transpose": 2}


def test_other_normalizations_are_tensorflows() -> None:
    _becomes((5, 8), layers.UnitNormalization())
    _becomes((5, 8), layers.Normalization(mean=0.5, variance=2.0))
    assert _becomes((8,), layers.SpectralNormalization(layers.Dense(4))) == {"Gemm": 1}


# quantization


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_simulated_quantization_is_one_operator(bits: int) -> None:
    x = np.linspace(-8, 8, 999, dtype=np.float32)
    ways = [(*limits, bits, n) for limits in ((-6.0, 6.0), (0.0, 3.0), (-1.3, 0.7)) for n in (False, True)]

    def function(x: Any) -> Any:
        kept = [tf.quantization.fake_quant_with_min_max_vars(x, *way) for way in ways]
        return kept + [tf.quantization.fake_quant_with_min_max_args(x, *way) for way in ways]

    step = 1.1 / 65535 if bits == 16 else 0.0  # between two codes of 16 bits, rounding decides
    assert check(function, x, tolerance=step)["planish.FakeQuantize"] == 2 * len(ways)


@pytest.mark.parametrize("narrow", [False, True])
def test_each_channel_may_have_its_range(narrow: bool) -> None:
    x, low, high = f32(2, 5, 5, 3) * 3, np.float32([-1, -2, 0]), np.float32([1, 3, 2.5])

    def function(x: Any) -> Any:
        y = tf.quantization.fake_quant_with_min_max_vars_per_channel(x, low, high, 8, narrow)
        z = tf.nn.conv2d(y, np.eye(3, dtype=np.float32)[None, None], 1, "SAME")
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(z, low * 0.9, high * 0.9, 8, narrow)

    assert check(function, x)["planish.FakeQuantize"] == 2


def test_quantization_and_back_is_one_operator() -> None:
    x = f32(4, 3) * 3

    def function(x: Any) -> Any:
        found = []
        for signed, narrow in itertools.product((False, True), repeat=2):
            how = {"signed_input": signed, "range_given": True, "narrow_range": narrow}
            found.append(tf.quantization.quantize_and_dequantize_v2(x, -1.5 * signed, 2.0, **how))
            low, high = np.float32([-1, -2, -0.5]) * signed, np.float32([1, 1.5, 2])
            by_column = {"input_min": low, "input_max": high, "axis": 1, "num_bits": tf.constant(8)}
            found.append(raw.QuantizeAndDequantizeV3(input=x, **by_column, **how))
        return found

    assert check(function, x)["planish.FakeQuantize"] == 8


def test_ranges_that_are_not_known_are_refused() -> None:
    with pytest.raises(UnsupportedOperations, match="its range is computed"):
        translate(lambda x: tf.quantization.fake_quant_with_min_max_vars(x, tf.reduce_min(x), 1.0), f32(3))
    with pytest.raises(UnsupportedOperations, match="state the range"):
        translate(lambda x: tf.quantization.quantize_and_dequantize_v2(x, 0.0, 0.0, range_given=False), f32(3))
