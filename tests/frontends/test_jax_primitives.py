"""Every primitive that `planish.frontends.jax` translates: what the graph computes is what jax computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap

from planish.backends import backend
from planish.frontends.jax import from_jax
from planish.frontends.jax.trace import RULES
from planish.ir import Graph
from planish.ir.verify import verify

NAN, INF = float("nan"), float("inf")


def same(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Equal dtypes, shapes and numbers, NaN and infinities among them."""
    leaves = jax.tree_util.tree_leaves(expected)
    assert len(actual) == len(leaves)
    for a, e in zip(actual, leaves, strict=True):
        e = np.asarray(e)
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        if e.dtype.kind in "biu":
            np.testing.assert_array_equal(a, e)
        else:
            np.testing.assert_allclose(a.astype(np.float64), e.astype(np.float64), rtol=rtol, atol=atol)


def check(
    function: Callable[..., Any], *args: Any, on: str = "onnxruntime", dynamic: Any = None, **close: float
) -> Graph:
    """Import ``function``, run the graph on ``on``, and compare with jax."""
    graph = from_jax(function, *args, dynamic_shapes=dynamic)
    verify(graph)
    arrays = [np.asarray(a) for a in jax.tree_util.tree_leaves(args)]
    same(backend(on).compile(graph)(*arrays), function(*jax.tree_util.tree_map(jnp.asarray, args)), **close)
    return graph


def f32(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def ints(*shape: int, seed: int = 0, low: int = -9, high: int = 10, dtype: Any = np.int32) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


NUMBERS = np.array([-3.5, -2.5, -1.0, -0.5, -1e-4, -0.0, 0.0, 1e-4, 0.25, 0.5, 0.9, 1.0, 1.5, 2.5, 7.0], np.float32)
EXTREMES = np.array([NAN, INF, -INF, -0.0, 0.0, 1.0, -1.0], np.float32)
UNIT = np.linspace(-0.99, 0.99, 21, dtype=np.float32)

UNARY = {
    "abs": (lax.abs, NUMBERS),
    "acos": (lax.acos, UNIT),
    "acosh": (lax.acosh, UNIT + 2.5),
    "asin": (lax.asin, UNIT),
    "asinh": (lax.asinh, NUMBERS),
    "atan": (lax.atan, NUMBERS),
    "atanh": (lax.atanh, UNIT),
    "cbrt": (lax.cbrt, NUMBERS),
    "ceil": (lax.ceil, NUMBERS),
    "cos": (lax.cos, NUMBERS),
    "cosh": (lax.cosh, NUMBERS),
    "erf": (lax.erf, NUMBERS),
    "erf_inv": (lax.erf_inv, np.array([-1, -0.9999, -0.7, -0.1, 0, 1e-3, 0.5, 0.99999, 1], np.float32)),
    "erfc": (lax.erfc, NUMBERS),
    "exp": (lax.exp, NUMBERS),
    "exp2": (lax.exp2, NUMBERS),
    "expm1": (lax.expm1, NUMBERS),
    "expm1 of extremes": (lax.expm1, EXTREMES),
    "floor": (lax.floor, NUMBERS),
    "is_finite": (lax.is_finite, EXTREMES),
    "log": (lax.log, np.abs(NUMBERS)),
    "log1p": (lax.log1p, np.array([-1, -0.5, -1e-5, 0, 1e-9, 1e-5, 0.5, 3, 1e20, INF, NAN], np.float32)),
    "logistic": (lax.logistic, NUMBERS),
    "neg": (lax.neg, NUMBERS),
    "not": (lax.bitwise_not, np.array([True, False])),
    "not of integers": (lax.bitwise_not, ints(9)),
    "round to even": (lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), NUMBERS),
    "round away from zero": (lax.round, np.append(NUMBERS, np.float32(0.49999997))),
    "rsqrt": (lax.rsqrt, np.abs(NUMBERS[:5])),
    "sign": (lax.sign, EXTREMES),
    "sin": (lax.sin, NUMBERS),
    "sinh": (lax.sinh, NUMBERS),
    "sqrt": (lax.sqrt, np.abs(NUMBERS)),
    "square": (lax.square, NUMBERS),
    "tan": (lax.tan, UNIT),
    "tanh": (lax.tanh, NUMBERS),
    "integer_pow 3": (lambda x: x**3, NUMBERS),
    "integer_pow 7": (lambda x: x**7, NUMBERS),
    "integer_pow -2": (lambda x: x**-2, UNIT + 3),
    "integer_pow of integers": (lambda x: x**5, ints(9, low=-100, high=100)),
    "reduce_precision to bfloat16": (lambda x: lax.reduce_precision(x, 8, 7), f32(9)),
    "reduce_precision to float16": (lambda x: lax.reduce_precision(x, 5, 10), f32(9, scale=1e3)),
    "nan_to_num": (jnp.nan_to_num, EXTREMES),
    "gelu": (jax.nn.gelu, NUMBERS),
    "exact gelu": (lambda x: jax.nn.gelu(x, approximate=False), NUMBERS),
    "silu": (jax.nn.silu, NUMBERS),
    "softplus": (jax.nn.softplus, NUMBERS * 10),
    "elu": (jax.nn.elu, NUMBERS),
    "hard_swish": (jax.nn.hard_swish, NUMBERS),
    "mish": (jax.nn.mish, NUMBERS),
    "log_softmax": (jax.nn.log_softmax, f32(3, 5)),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, axis=-1), f32(3, 5)),
    "square root of integers' sum": (lambda x: jnp.sqrt(x.astype(jnp.float32)), ints(5, low=0)),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_array(name: str) -> None:
    function, x = UNARY[name]
    check(function, x)


PAIRS = (NUMBERS, NUMBERS[::-1].copy())
WHOLE = (ints(40), ints(40, seed=1))
BINARY = {
    "add": (lax.add, PAIRS),
    "sub": (lax.sub, PAIRS),
    "mul": (lax.mul, PAIRS),
    "div": (lax.div, PAIRS),
    "pow": (lax.pow, (np.abs(NUMBERS), NUMBERS)),
    "pow by integers": (lambda x, y: x**y, (NUMBERS, ints(15, low=-3, high=4))),
    "max": (lax.max, (EXTREMES, EXTREMES[::-1].copy())),
    "min": (lax.min, (EXTREMES, EXTREMES[::-1].copy())),
    "rem": (lax.rem, (NUMBERS, np.append(NUMBERS[1:], NUMBERS[:1]))),
    "eq": (lax.eq, (EXTREMES, EXTREMES)),
    "ne": (lax.ne, (EXTREMES, EXTREMES)),
    "lt": (lax.lt, PAIRS),
    "le": (lax.le, PAIRS),
    "gt": (lax.gt, PAIRS),
    "ge": (lax.ge, PAIRS),
    "atan2": (lax.atan2, tuple(a.ravel() for a in np.meshgrid(EXTREMES, np.append(EXTREMES, np.float32(2))))),
    "nextafter-free logaddexp": (jnp.logaddexp, (EXTREMES, EXTREMES[::-1].copy())),
    "hypot": (jnp.hypot, PAIRS),
    "mod": (jnp.mod, (NUMBERS, np.full(15, -2, np.float32))),
    "floor_divide": (jnp.floor_divide, (NUMBERS, np.full(15, 1.5, np.float32))),
    "integer add": (lax.add, WHOLE),
    "integer div": (lax.div, WHOLE),
    "integer rem": (lax.rem, WHOLE),
    "integer floor_divide": (jnp.floor_divide, WHOLE),
    "integer mod": (jnp.mod, WHOLE),
    "integer max": (lax.max, WHOLE),
    "integer ne": (lax.ne, WHOLE),
    "the smallest integer divided": (lax.div, (np.array([-(2**31), 7, 0], np.int32), np.array([-1, 0, 0], np.int32))),
    "the smallest integer's rest": (lax.rem, (np.array([-(2**31), 7, 0], np.int32), np.array([-1, 0, 0], np.int32))),
    "unsigned div": (lax.div, (ints(9, low=0, dtype=np.uint32), ints(9, seed=1, low=0, high=3, dtype=np.uint32))),
    "and": (lax.bitwise_and, WHOLE),
    "or": (lax.bitwise_or, WHOLE),
    "xor": (lax.bitwise_xor, WHOLE),
    "shift_left": (lax.shift_left, (ints(40), ints(40, low=0, high=40))),
    "shift_right_logical": (lax.shift_right_logical, (ints(40), ints(40, low=0, high=40))),
    "shift_right_arithmetic": (lax.shift_right_arithmetic, (ints(40), ints(40, low=0, high=40))),
    "shift of unsigned": (
        lax.shift_right_arithmetic,
        (ints(9, low=0, dtype=np.uint32), ints(9, low=0, dtype=np.uint32)),
    ),
    "shift by a number": (lambda x, y: (x << 3) + (y >> 2), WHOLE),
    "logical and": (jnp.logical_and, (np.array([True, True, False]), np.array([True, False, False]))),
    "logical or": (jnp.logical_or, (np.array([True, True, False]), np.array([True, False, False]))),
    "logical xor": (jnp.logical_xor, (np.array([True, True, False]), np.array([True, False, False]))),
    "order of booleans": (lax.lt, (np.array([True, True, False, False]), np.array([True, False, True, False]))),
    "equal booleans": (lax.ne, (np.array([True, True, False, False]), np.array([True, False, True, False]))),
    "maximum of booleans": (lax.max, (np.array([True, True, False]), np.array([True, False, False]))),
}


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_arrays(name: str) -> None:
    function, (x, y) = BINARY[name]
    check(function, x, y)


X = f32(2, 3, 4)
SELECTIONS = {
    "clamp": (lambda x: lax.clamp(-0.5, x, 0.5), [EXTREMES]),
    "clamp by arrays": (lambda a, x, b: lax.clamp(a, x, b), [f32(7) - 1, EXTREMES, f32(7, seed=1) + 1]),
    "clamp of integers": (lambda x: jnp.clip(x, -3, 4), [ints(20)]),
    "select": (jnp.where, [f32(9) > 0, f32(9), f32(9, seed=1)]),
    "select by a scalar": (jnp.where, [np.array(True), f32(9), f32(9, seed=1)]),
    "select of booleans": (jnp.where, [f32(9) > 0, f32(9, seed=1) > 0, f32(9, seed=2) > 0]),
    "select of booleans or a number": (
        lambda c, x: (jnp.where(c, True, x), jnp.where(c, x, False), jnp.where(c, False, x), jnp.where(c, True, False)),
        [f32(9) > 0, f32(9, seed=1) > 0],
    ),
    "select of three": (lambda i, a: lax.select_n(i, a, a * 2, a * 3), [ints(9, low=0, high=3), f32(9)]),
}
CONVERSIONS = {
    "int32": (np.int32, np.array([NAN, INF, -INF, 3e9, -3e9, 2147483520, -2147483648, 1.7, -1.7, 0], np.float32)),
    "uint32": (np.uint32, np.array([NAN, INF, -INF, 5e9, -3e9, 4294967040, 1.7, -1.7, 0], np.float32)),
    "int8": (np.int8, np.array([INF, -INF, 300, -300, 127.9, -128.9, 1.7, -1.7], np.float32)),
    "uint8": (np.uint8, np.array([INF, -INF, 300, -300, 255.5, 1.7, -1.7], np.float32)),
    "bool": (np.bool_, np.array([0, -0.0, 0.3, NAN, 1], np.float32)),
    "float16": (np.float16, np.array([0, 1e-3, 70000, 3.14159], np.float32)),
    "float32 of int": (np.float32, ints(9)),
    "int8 of int32": (np.int8, ints(9, low=-1000, high=1000)),
    "uint8 of int32": (np.uint8, ints(9, low=-1000, high=1000)),
    "uint32 of int32": (np.uint32, ints(9)),
    "int32 of bool": (np.int32, np.array([True, False])),
    "int32 of float16": (np.int32, np.array([60000, -60000, 1.5], np.float16)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections(name: str) -> None:
    function, args = SELECTIONS[name]
    check(function, *args)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_give_what_fits(name: str) -> None:
    dtype, x = CONVERSIONS[name]
    check(lambda x: lax.convert_element_type(x, dtype), x)


def test_numbers_that_are_limited_before_a_conversion_are_not_limited_again() -> None:
    graph = check(lambda x: jnp.clip(jnp.round(x * 10), -127, 127).astype(jnp.int8), f32(20, scale=10))
    assert sum(node.op in ("Clip", "Max", "Min") for node in graph) <= 2


def test_bits_are_taken_for_another_type() -> None:
    check(lambda x: lax.bitcast_convert_type(x, jnp.int32), f32(5))
    check(lambda x: lax.bitcast_convert_type(x, jnp.float32), ints(5, low=10**9, high=2 * 10**9))


SHAPES = {
    "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x, (5, 2, 3, 4), (1, 2, 3)),
    "broadcast of ones": lambda x: jnp.broadcast_to(x[:, :1], (2, 6, 4)),
    "broadcast in the middle": lambda x: lax.broadcast_in_dim(x, (2, 7, 3, 4), (0, 2, 3)),
    "broadcast of a number": lambda x: x + jnp.ones((2, 3, 4)),
    "expand_dims": lambda x: jnp.expand_dims(x, (0, 2)),
    "squeeze": lambda x: lax.squeeze(x[:, :1], (1,)),
    "reshape": lambda x: x.reshape(4, 6),
    "ravel": lambda x: x.ravel(),
    "transpose": lambda x: x.transpose(2, 0, 1),
    "rev": lambda x: lax.rev(x, (0, 2)),
    "concatenate": lambda x: lax.concatenate([x, x * 2, x[:, :1]], 1),
    "stack": lambda x: jnp.stack([x, x + 1], axis=1),
    "unstack": lambda x: jnp.unstack(x, axis=1),
    "split": lambda x: jnp.split(x, [1, 3], axis=2),
    "tile": lambda x: jnp.tile(x, (2, 1, 3)),
    "repeat": lambda x: jnp.repeat(x, 3, axis=1),
    "roll": lambda x: jnp.roll(x, 1, axis=2),
    "flip": lambda x: x[:, ::-1],
    "slice": lambda x: lax.slice(x, (0, 1, 1), (2, 3, 4), (1, 1, 2)),
    "static index": lambda x: x[:, 1, ::2],
    "index from the end": lambda x: x[..., -1],
    "pad": lambda x: lax.pad(x, 1.5, [(1, 2, 0), (0, 0, 0), (2, 0, 0)]),
    "pad inside": lambda x: lax.pad(x, 1.5, [(0, 0, 2), (1, 0, 1), (0, 1, 3)]),
    "pad by less than nothing": lambda x: lax.pad(x, 1.5, [(0, 0, 0), (-1, 2, 0), (1, -2, 1)]),
    "pad edge": lambda x: jnp.pad(x, ((0, 0), (1, 1), (2, 0)), mode="edge"),
    "pad reflect": lambda x: jnp.pad(x, ((0, 0), (1, 1), (2, 0)), mode="reflect"),
    "iota": lambda x: x + lax.broadcasted_iota(jnp.float32, (2, 3, 4), 1),
    "arange": lambda x: x * jnp.arange(4) + jnp.arange(0, 6, 2)[:, None],
    "tril": lambda x: jnp.tril(x),
    "eye": lambda x: x @ jnp.eye(4),
    "one_hot": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), 4),
    "meshgrid": lambda x: jnp.meshgrid(x[0, 0], x[0, :, 0]),
    "copy": lambda x: jnp.copy(lax.stop_gradient(x)),
    "resize": lambda x: jax.image.resize(x, (2, 6, 8), "bilinear"),
    "nearest resize": lambda x: jax.image.resize(x, (2, 6, 8), "nearest"),
    "interp": lambda x: jnp.interp(x, jnp.linspace(-1, 1, 5), jnp.arange(5.0)),
    "searchsorted": lambda x: jnp.searchsorted(jnp.linspace(-1, 1, 5), x.ravel()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_slices(name: str) -> None:
    check(SHAPES[name], X)


REDUCTIONS = {
    "sum": lambda x: x.sum((0, 2)),
    "sum of everything": lambda x: x.sum(),
    "mean": lambda x: x.mean(1, keepdims=True),
    "var": lambda x: jnp.var(x, -1),
    "std": lambda x: jnp.std(x, 0, ddof=1),
    "max": lambda x: x.max(1),
    "min": lambda x: x.min((1, 2)),
    "prod": lambda x: x.prod(2),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(-1),
    "argmax of all": lambda x: x.argmax(),
    "any": lambda x: (x > 1).any(1),
    "all": lambda x: (x > -1).all((0, 1)),
    "xor": lambda x: lax.reduce_xor((x > 0), (1,)),
    "median": lambda x: jnp.median(x, axis=2),
    "norm": lambda x: jnp.linalg.norm(x, axis=-1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "reverse cumsum": lambda x: lax.cumsum(x, 2, reverse=True),
    "cumprod": lambda x: jnp.cumprod(x, 2),
    "cummax": lambda x: lax.cummax(x, 1),
    "cummin": lambda x: lax.cummin(x, 2, reverse=True),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x, 1),
    "reduce by a primitive": lambda x: lax.reduce(x, jnp.float32(2), lambda a, b: a + b, (1,)),
    "associative_scan": lambda x: lax.associative_scan(jnp.add, x, axis=1),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    check(REDUCTIONS[name], X)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
@pytest.mark.parametrize("name", ["sum", "max", "min", "prod", "argmax", "cumsum"])
def test_reductions_of_integers(name: str, dtype: Any) -> None:
    x = ints(4, 5, low=0, high=100 if name != "prod" else 4, dtype=dtype)
    functions: dict[str, Callable[..., Any]] = {
        "sum": lambda x: lax.reduce_sum(x, (1,)),
        "max": lambda x: lax.reduce_max(x, (1,)),
        "min": lambda x: lax.reduce_min(x, (0,)),
        "prod": lambda x: lax.reduce_prod(x, (1,)),
        "argmax": lambda x: lax.argmax(x, 1, np.int32),
        "cumsum": lambda x: lax.cumsum(x, 1),
    }
    check(functions[name], x)


def test_the_first_nan_is_the_extreme() -> None:
    x = np.array([[1, NAN, 3, NAN], [INF, NAN, 0, 1], [1, 3, 3, 0]], np.float32)
    check(lambda x: (x.argmax(1), x.argmin(1)), x)
    check(lambda x: (x.max(1), x.min(1), x - x.max(1, keepdims=True)), x)


@pytest.mark.parametrize("function", [jax.nn.softmax, jax.nn.log_softmax, lambda x: jax.nn.logsumexp(x, axis=-1)])
def test_a_softmax_of_nan_is_nan(function: Any) -> None:
    check(function, np.array([[1, NAN, 3, NAN], [-INF, -INF, 0, 1], [1, 3, 3, 0]], np.float32))


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (jax.nn.softmax, "Softmax"),
        (jax.nn.log_softmax, "LogSoftmax"),
        (lambda x: jax.nn.softmax(x, axis=0), "Softmax"),
        (jax.vmap(jax.nn.softmax, in_axes=1), "Softmax"),
    ],
)
def test_a_softmax_is_not_guarded_against_nan(function: Any, operator: str) -> None:
    graph = check(function, np.array([[1, NAN, 3, NAN], [-INF, 2, 0, 1], [1, 3, 3, 0]], np.float32))
    assert {node.op for node in graph} <= {operator, "Transpose"}


LIKE_SOFTMAX = {
    "another sum": lambda x: (e := jnp.exp(x - x.max(1, keepdims=True))) / e.sum(0),
    "another order": lambda x: (e := jnp.exp(x.T - x.max(1, keepdims=True))) / e.sum(1, keepdims=True),
    "no sum": lambda x: jnp.exp(x - x.max(1, keepdims=True)),
    "exponentials, too": lambda x: ((e := jnp.exp(x - x.max(1, keepdims=True))) / e.sum(1, keepdims=True), e),
    "the maximum, too": lambda x: (m := x.max(1, keepdims=True), (e := jnp.exp(x - m)) / e.sum(1, keepdims=True)),
}


@pytest.mark.parametrize("name", LIKE_SOFTMAX)
def test_what_is_no_softmax_is_guarded_against_nan(name: str) -> None:
    check(LIKE_SOFTMAX[name], np.array([[1, NAN, 3], [2, 0, 1], [1, 3, 3]], np.float32))


def test_what_is_promised_is_not_guarded() -> None:
    def function(x: Any) -> Any:
        return jnp.take(x, x.argmax(1), axis=0, mode="fill")

    x = f32(5, 4)
    assert {node.op for node in check(function, x)} >= {"IsNaN", "Where"}
    promised = from_jax(function, x, assume=["finite", "in_bounds"])
    assert {node.op for node in promised} <= {
        "ArgMax",
        "Cast",
        "Less",
        "Add",
        "Where",
        "Unsqueeze",
        "Squeeze",
        "Gather",
    }
    same(backend("onnxruntime").compile(promised)(x), function(jnp.asarray(x)))
    with pytest.raises(TypeError, match="finite"):
        from_jax(function, x, assume=["nothing"])


WINDOWS = {
    "max": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "max with padding": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "max over other axes": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 1, 3, 2), (1, 1, 1, 1), "VALID"),
    "max with dilation": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 2, 1)
    ),
    "max far outside": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), [(0, 0), (3, 2), (0, 0), (0, 0)]
    ),
    "min": lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "sum": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "sum with padding": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "average": lambda x: (
        lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    ),
    "base dilation": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", base_dilation=(1, 2, 1, 1)
    ),
    "by a function": lambda x: lax.reduce_window(x, 0.0, lambda a, b: a + b, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "of integers": lambda x: lax.reduce_window(
        (x * 10).astype(jnp.int32), 0, lax.add, (1, 2, 3, 1), (1, 2, 1, 1), "VALID"
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str) -> None:
    check(WINDOWS[name], f32(2, 7, 6, 3))


def dot(*numbers: Any, **options: Any) -> Callable[..., Any]:
    return lambda x, y: lax.dot_general(x, y, numbers, **options)


DOTS = {
    "matrices": (dot(((1,), (0,)), ((), ())), (3, 4), (4, 5)),
    "transposed": (dot(((0,), (1,)), ((), ())), (4, 3), (5, 4)),
    "batch": (dot(((2,), (1,)), ((0,), (0,))), (2, 3, 4), (2, 4, 5)),
    "batch in the middle": (dot(((3,), (3,)), ((0, 2), (0, 2))), (2, 3, 5, 4), (2, 6, 5, 4)),
    "several free dimensions": (dot(((3,), (0,)), ((), ())), (2, 3, 5, 4), (4, 6, 7)),
    "several contracted ones": (dot(((1, 3), (0, 2)), ((), ())), (2, 3, 5, 4), (3, 6, 4)),
    "batch and several of each": (dot(((2, 4), (0, 3)), ((1,), (2,))), (2, 3, 5, 6, 4), (5, 7, 3, 4, 2)),
    "vectors": (dot(((0,), (0,)), ((), ())), (4,), (4,)),
    "matrix and vector": (dot(((1,), (0,)), ((), ())), (3, 4), (4,)),
    "vector and matrix": (dot(((0,), (0,)), ((), ())), (4,), (4, 3)),
    "outer": (dot(((), ()), ((), ())), (2, 3), (4,)),
    "batch of vectors": (dot(((1,), (1,)), ((0,), (0,))), (3, 4), (3, 4)),
    "batch alone": (dot(((), ()), ((0,), (0,))), (3, 4), (3, 5)),
    "einsum": (lambda x, y: jnp.einsum("bsd,dhk->bhsk", x, y), (2, 3, 4), (4, 2, 5)),
    "einsum of attention": (lambda x, y: jnp.einsum("bqhd,bkhd->bhqk", x, y), (2, 3, 4, 5), (2, 6, 4, 5)),
    "tensordot": (lambda x, y: jnp.tensordot(x, y, 2), (2, 3, 4), (3, 4, 5)),
    "matmul broadcast": (jnp.matmul, (5, 2, 3, 4), (2, 4, 3)),
    "nothing to contract": (dot(((1,), (0,)), ((), ())), (3, 0), (0, 5)),
}


@pytest.mark.parametrize("name", DOTS)
def test_products(name: str) -> None:
    function, x, y = DOTS[name]
    check(function, f32(*x), f32(*y, seed=1))


@pytest.mark.parametrize("name", ["several free dimensions", "einsum", "matrices"])
def test_products_with_a_weight_in_front(name: str) -> None:
    function, x, y = DOTS[name]
    weight = f32(*x)
    check(lambda y: function(weight, y), f32(*y, seed=1))


def test_products_of_integers_are_exact() -> None:
    numbers = (((1,), (0,)), ((), ()))
    x, y = ints(3, 40, low=-128, high=128, dtype=np.int8), ints(40, 5, seed=1, low=-128, high=128, dtype=np.int8)
    graph = check(lambda x, y: lax.dot_general(x, y, numbers, preferred_element_type=jnp.int32), x, y)
    assert [node.op for node in graph] == ["MatMulInteger"]
    check(lambda x, y: lax.dot_general(x, y, numbers), x, y)
    check(lambda x, y: x.astype(jnp.int32) @ y.astype(jnp.int32), x, y)


def test_products_are_summed_in_the_type_that_is_preferred() -> None:
    numbers = (((1,), (0,)), ((), ()))
    x, y = f32(3, 64, scale=50).astype(np.float16), f32(64, 5, seed=1, scale=50).astype(np.float16)
    check(lambda x, y: lax.dot_general(x, y, numbers, preferred_element_type=jnp.float32), x, y, rtol=1e-3)


NHWC = ("NHWC", "HWIO", "NHWC")


def conv(*args: Any, **options: Any) -> Callable[..., Any]:
    return lambda x, w: lax.conv_general_dilated(x, w, *args, **options)


CONVOLUTIONS = {
    "NCHW": (conv((1, 1), "VALID"), (2, 3, 7, 8), (4, 3, 3, 2)),
    "NHWC": (conv((2, 1), "SAME", dimension_numbers=NHWC), (2, 7, 8, 3), (3, 3, 3, 4)),
    "one dimension": (conv((2,), [(2, 1)], dimension_numbers=("NWC", "WIO", "NWC")), (2, 9, 3), (4, 3, 5)),
    "three dimensions": (conv((1, 1, 1), "SAME"), (1, 2, 4, 4, 4), (3, 2, 2, 3, 2)),
    "no dimension": (conv((), []), (4, 3), (5, 3)),
    "dilated": (conv((1, 1), [(1, 2), (0, 3)], rhs_dilation=(2, 3)), (1, 2, 9, 9), (3, 2, 3, 2)),
    "groups": (conv((1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2), (2, 5, 5, 4), (3, 3, 2, 6)),
    "depthwise": (conv((1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4), (2, 5, 5, 4), (3, 3, 1, 8)),
    "groups of the batch": (conv((1, 1), "VALID", batch_group_count=2), (4, 3, 5, 5), (6, 3, 3, 3)),
    "cropped": (conv((1, 1), [(-1, 2), (1, -2)]), (1, 2, 7, 7), (3, 2, 3, 3)),
    "transposed": (conv((1, 1), [(2, 1), (1, 2)], lhs_dilation=(2, 3)), (1, 2, 4, 5), (3, 2, 3, 3)),
    "transposed with groups": (
        conv((1, 1), [(2, 2), (2, 2)], lhs_dilation=(2, 2), feature_group_count=2),
        (1, 4, 4, 5),
        (6, 2, 3, 3),
    ),
    "transposed and padded far": (conv((1, 1), [(4, 5), (0, 3)], lhs_dilation=(2, 2)), (1, 2, 4, 5), (3, 2, 3, 3)),
    "transposed with strides": (conv((2, 1), [(2, 2), (2, 2)], lhs_dilation=(3, 2)), (1, 2, 4, 5), (3, 2, 3, 3)),
    "conv_transpose": (
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=NHWC),
        (2, 5, 5, 3),
        (3, 3, 3, 4),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    function, x, w = CONVOLUTIONS[name]
    check(function, f32(*x), f32(*w, seed=1), rtol=1e-4, atol=1e-5)


def test_convolutions_of_integers() -> None:
    x, w = ints(1, 3, 6, 6, low=-128, high=128, dtype=np.int8), ints(4, 3, 3, 3, seed=1, dtype=np.int8)
    function = conv((1, 1), "SAME", preferred_element_type=jnp.int32)
    check(function, x, w, on="reference")


I1 = np.array([0, -1, 2, 1], np.int32)
FAR = np.array([0, -1, 2, 7, -9], np.int32)
A, B2 = f32(3, 4, 5), ints(2, 3, low=0, high=3)
GATHERS = {
    "index": lambda x: x[I1],
    "take clip": lambda x: jnp.take(x, FAR, axis=1, mode="clip"),
    "take fill": lambda x: jnp.take(x, FAR, axis=1, mode="fill"),
    "take fill by a number": lambda x: x.at[FAR].get(mode="fill", fill_value=7.0),
    "take of matrices": lambda x: jnp.take(x, B2, axis=2),
    "index in the middle": lambda x: x[:, I1],
    "two indices": lambda x: x[I1, :, I1],
    "neighbouring indices": lambda x: x[:, I1, I1],
    "indices that broadcast": lambda x: x[B2[:, :1], B2],
    "all indices": lambda x: x[I1, I1, I1],
    "index and slice": lambda x: x[I1, 1:3],
    "take_along_axis": lambda x: jnp.take_along_axis(x, jnp.argsort(x, axis=1), axis=1),
    "take_along_axis of fewer": lambda x: jnp.take_along_axis(x, jnp.argmax(x, 2, keepdims=True), axis=2),
    "fill beyond two": lambda x: x.at[FAR, FAR].get(mode="fill"),
    "clip beyond two": lambda x: x.at[FAR, FAR].get(mode="clip"),
    "integers filled": lambda x: (x * 10).astype(jnp.int32).at[FAR].get(mode="fill"),
    "vmap of index": lambda x: jax.vmap(lambda m, i: m[i])(x, I1[:3]),
    "vmap of slice": lambda x: jax.vmap(lambda m, i: lax.dynamic_slice(m, (i, 1), (2, 3)))(x, I1[:3]),
    "vmap of take": lambda x: jax.vmap(lambda m: jnp.take(m, I1, axis=1))(x),
    "windows": lambda x: jax.vmap(lambda i: lax.dynamic_slice(x, (i, i, 0), (2, 2, 5)))(I1),
    "mask": lambda x: jnp.where(x > 0, x, 0)[jnp.array([2, 0])],
    "dynamic_index": lambda x: lax.dynamic_index_in_dim(x, jnp.argmax(x[0, 0]), 2, keepdims=False),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (jnp.argmax(x[:, 0, 0]), 9, -5), (2, 3, 5)),
    "scalar index": lambda x: x[jnp.argmax(x[:, 0, 0]), 1],
    "scalar filled": lambda x: x.at[jnp.argmax(x[:, 0, 0]) + 5].get(mode="fill"),
}


@pytest.mark.parametrize("name", GATHERS)
def test_reading_by_index(name: str) -> None:
    check(GATHERS[name], A)


def test_reading_by_index_that_is_an_input() -> None:
    check(lambda x, i: x[i], A, FAR[:3])
    check(lambda x, i: x[i], A, np.array(-2, np.int32))
    check(lambda x, i: jnp.take(x, i, axis=1, mode="fill"), A, FAR)
    check(lambda x, i: jnp.take(x, i, axis=0, mode="clip"), A, FAR.astype(np.uint8))


V = f32(4, 4, 5, seed=3)
SCATTERS = {
    "set": lambda x: x.at[I1].set(V),
    "set a number": lambda x: x.at[:, I1].set(0.5),
    "set outside": lambda x: x.at[FAR].set(1.0),
    "set clipped": lambda x: x.at[:, FAR].set(1.0, mode="clip"),
    "set outside two": lambda x: x.at[FAR, FAR].set(2.0),
    "add": lambda x: x.at[I1].add(V),
    "add to the same": lambda x: x.at[jnp.array([1, 1, 2])].add(1.0),
    "add outside": lambda x: x.at[:, FAR].add(3.0),
    "subtract": lambda x: x.at[I1].subtract(V),
    "multiply": lambda x: x.at[I1].multiply(V),
    "min": lambda x: x.at[I1].min(V),
    "max outside": lambda x: x.at[FAR].max(0.3),
    "set along": lambda x: jnp.put_along_axis(x, jnp.argmax(x, 1, keepdims=True), 9.0, axis=1, inplace=False),
    "set part": lambda x: x.at[I1[:3], 1:3].set(V[:3, :2]),
    "set one": lambda x: x.at[1, 2].set(0.0),
    "set at the end": lambda x: x.at[-1].set(0.0),
    "set a slice": lambda x: x.at[:, 1:3].set(V[:3, :2]),
    "set a strided slice": lambda x: x.at[:, ::2].set(0.0),
    "add to one": lambda x: x.at[0, :, 3].add(2.0),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, V[:2, :2, :2], (jnp.argmax(x[:, 0, 0]), 9, -7)),
    "dynamic_update_slice of rows": lambda x: lax.dynamic_update_slice(x, V[:1, :4], (1, 0, 0)),
    "vmap of update": lambda x: jax.vmap(lambda m, i: lax.dynamic_update_slice(m, V[0, :1], (i, 0)))(x, I1[:3]),
    "vmap of set": lambda x: jax.vmap(lambda m, i: m.at[i].set(0.0))(x, FAR[1:4]),
    "segment_sum": lambda x: jax.ops.segment_sum(x[:, 0], jnp.array([1, 0, 1]), 3),
    "bincount": lambda x: jnp.bincount(jnp.argmax(x, 1).ravel(), length=6),
}


@pytest.mark.parametrize("name", SCATTERS)
def test_writing_by_index(name: str) -> None:
    check(SCATTERS[name], A)


def test_writing_by_index_that_is_an_input() -> None:
    for i in (-1, 1, 4, -5):
        check(lambda x, i: x.at[:, i].set(7.0), A, np.array(i, np.int32))
        check(lambda x, i: x.at[:, i].add(7.0), A, np.array(i, np.int32))
    check(lambda x, i: x.at[i].set(7.0), A, FAR)


UNSORTED = np.array([[3, NAN, -0.0, INF, 0.0, NAN, -INF, 3], [1, 1, 0, 2, NAN, INF, INF, -1]], np.float32)
SORTS = {
    "sort": lambda x: jnp.sort(x, axis=1),
    "sort rows": lambda x: jnp.sort(x, axis=0),
    "argsort": lambda x: jnp.argsort(x, axis=1),
    "descending": lambda x: jnp.argsort(x, axis=1, descending=True),
    "two operands": lambda x: lax.sort((x, jnp.ones_like(x).cumsum(1)), dimension=1),
    "two keys": lambda x: lax.sort((jnp.floor(x), -x, jnp.ones_like(x).cumsum(1)), dimension=1, num_keys=2),
    "integers": lambda x: lax.sort(jnp.nan_to_num(x * 3, posinf=5, neginf=-5).astype(jnp.int32), dimension=1),
    "booleans": lambda x: jnp.argsort(x > 0, axis=1),
    "top_k": lambda x: lax.top_k(jnp.where(jnp.isinf(x), 9, x), 4),
    "top_k of integers": lambda x: lax.top_k(jnp.nan_to_num(x * 3, posinf=5, neginf=-5).astype(jnp.int32), 3),
    "approx_max_k": lambda x: lax.approx_max_k(jnp.nan_to_num(x, posinf=9, neginf=-9), 3),
    "approx_min_k": lambda x: lax.approx_min_k(jnp.nan_to_num(x, posinf=9, neginf=-9), 3),
    "lexsort": lambda x: jnp.lexsort((x[0], jnp.floor(x[1]))),
    "quantile": lambda x: jnp.nanquantile(jnp.where(jnp.isinf(x), 0, x), 0.3, axis=1),
}


@pytest.mark.parametrize("name", SORTS)
def test_sorting_is_stable_and_puts_nan_last(name: str) -> None:
    check(SORTS[name], UNSORTED)


def collatz(x: Any) -> Any:
    def body(state: Any) -> Any:
        n, steps = state
        return jnp.where(n % 2 == 0, n // 2, 3 * n + 1), steps + 1

    return lax.while_loop(lambda s: s[0] != 1, body, (x, 0))[1]


def fibonacci(x: Any) -> Any:
    return lax.scan(lambda c, _: ((c[1], c[0] + c[1]), c[0]), (x, x), None, length=7)


@custom_vmap
def tripled(x: Any) -> Any:
    return x * 3


tripled.def_vmap(lambda size, batched, x: (x * 3, batched[0]))

CONTROL = {
    "cond": (lambda x: lax.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, x), [f32(3, 4)]),
    "cond the other way": (
        lambda x: lax.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, x),
        [-np.ones(3, np.float32)],
    ),
    "cond of constants": (lambda x: lax.cond(x[0] > 0, lambda: jnp.ones(2), lambda: jnp.zeros(2)), [f32(3)]),
    "cond that gives an operand": (lambda x, y: lax.cond(x[0] > 0, lambda: (x, y), lambda: (y, x)), [f32(3), f32(3)]),
    "nested cond": (
        lambda x: lax.cond(x[0] > 0, lambda: lax.cond(x[1] > 0, lambda: x, lambda: x * 2), lambda: x * 3),
        [np.array([1.0, -1.0], np.float32)],
    ),
    "while": (collatz, [np.array(27, np.int32)]),
    "while that never runs": (collatz, [np.array(1, np.int32)]),
    "while over constants": (
        lambda x, y: lax.while_loop(lambda c: c[0] < y.sum(), lambda c: (c[0] + 1.0, c[1] * x), (0.0, x)),
        [f32(3), np.full(2, 1.6, np.float32)],
    ),
    "vmap of while": (jax.vmap(collatz), [np.array([1, 6, 27], np.int32)]),
    "fori_loop": (lambda x: lax.fori_loop(0, 5, lambda i, c: c * 0.5 + i, x), [f32(3)]),
    "fori_loop of a value": (lambda x, n: lax.fori_loop(0, n, lambda i, c: c + i, x), [f32(3), np.array(4, np.int32)]),
    "scan": (lambda x: lax.scan(lambda c, y: (c + y, c * y), jnp.zeros(4), x), [f32(5, 4)]),
    "reverse scan": (lambda x: lax.scan(lambda c, y: (c + y, c), jnp.zeros(4), x, reverse=True), [f32(5, 4)]),
    "scan of nothing": (fibonacci, [np.array(1, np.int32)]),
    "reverse scan of nothing": (
        lambda x: lax.scan(lambda c, _: (c * 2, c), x, None, length=4, reverse=True),
        [np.array(1.0, np.float32)],
    ),
    "scan without results": (lambda x: lax.scan(lambda c, y: (c * y, None), jnp.ones(4), x)[0], [f32(5, 4)]),
    "scan without state": (lambda x: lax.map(lambda y: y.sum() + y, x), [f32(5, 4)]),
    "scan over two": (
        lambda x, y: lax.scan(lambda c, xy: (c + xy[0] @ xy[1], xy[1]), jnp.zeros(()), (x, y)),
        [f32(5, 4), f32(5, 4, seed=1)],
    ),
    "scan in a scan": (
        lambda x: lax.scan(lambda c, r: (lax.scan(lambda d, e: (d + e * c, d), c, r)[0], c), 1.0, x),
        [f32(3, 4)],
    ),
    "cond in a scan": (
        lambda x: lax.scan(lambda c, y: (lax.cond(y > 0, lambda: c + y, lambda: c * 0.5), c), 0.0, x),
        [f32(6)],
    ),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(x) * 2), [f32(3)]),
    "jit in jit": (jax.jit(lambda x: jax.jit(jnp.tanh)(x) + 1), [f32(3)]),
    "custom_jvp": (jax.nn.relu, [f32(5)]),
    "checkpoint_name": (lambda x: checkpoint_name(x * 2, "here"), [f32(3)]),
    "optimization_barrier": (lambda x: lax.optimization_barrier((x, x * 2))[1], [f32(3)]),
    "device_put": (lambda x: jax.device_put(x) + 1, [f32(3)]),
    "composite": (lambda x: lax.composite(lambda x: x * 2, "my.twice")(x), [f32(3)]),
    "custom_vmap": (tripled, [f32(3)]),
    "gradient": (jax.grad(lambda x: (jnp.tanh(x) ** 2).sum()), [f32(5)]),
}


@pytest.mark.parametrize("name", CONTROL)
def test_control_flow(name: str) -> None:
    function, args = CONTROL[name]
    check(function, *args)


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 5])
def test_switch(index: int) -> None:
    branches = [lambda x: x, lambda x: x * 2, lambda x: x * 3]
    check(lambda i, x: lax.switch(i, branches, x), np.array(index, np.int32), f32(3))


def test_custom_derivatives_are_inlined() -> None:
    @jax.custom_vjp
    def twice(x: Any) -> Any:
        return x * 2

    twice.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 2,))
    graph = check(lambda x: twice(x) + 1, f32(3))
    assert [node.op for node in graph] == ["Mul", "Add"]


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.int8, np.uint8, np.int16, np.int64])
def test_element_types(dtype: Any) -> None:
    with jax.enable_x64(np.dtype(dtype).itemsize == 8):
        x = (f32(4, 5) * 3).astype(dtype)
        check(lambda x: (x * x + x, (x > 0).astype(dtype), jnp.maximum(x, 1).sum(1)), x, on="reference", rtol=1e-2)


def test_the_guide_lists_every_primitive() -> None:
    guide = (Path(__file__).parents[2] / "docs/from-jax.md").read_text(encoding="utf-8")
    table = guide[guide.index("<!-- primitives -->") : guide.index("<!-- end of primitives -->")]
    listed = set(re.findall(r"`([\w-]+)`", table))
    assert listed == set(RULES) - {"softmax"}  # what no jaxpr has
