"""`planish.frontends.jax`: arguments, names, weights, symbolic sizes, origins and errors."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from planish.backends import backend
from planish.frontends.jax import JaxModel, UnsupportedPrimitives, from_jax
from planish.frontends.jax.tensor import JaxTensor
from planish.ir import DType, Graph, TensorError
from planish.ir.errors import ModelError
from planish.ir.verify import verify

Struct = jax.ShapeDtypeStruct
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def run(graph: Graph, *arrays: Any, on: str = "onnxruntime") -> list[np.ndarray]:
    outputs: list[np.ndarray] = backend(on).compile(graph)(*map(np.asarray, arrays))
    return outputs


def names(graph: Graph) -> tuple[list[str], list[str]]:
    return [v.name for v in graph.inputs], [o.name for o in graph.output_info]


def weights(graph: Graph) -> dict[str, Any]:
    return {v.const.name: v.const for v in graph.constants() if v.const is not None and v.const.name}


def line_of(text: str) -> int:
    """The first line of this file that holds ``text``."""
    return next(i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


# what goes in and comes out


def test_inputs_and_outputs_are_called_like_the_functions() -> None:
    def function(x: Any, batch: Any, *more: Any, scale: Any) -> Any:
        return {"sum": x + batch["a"], "rest": (more[0], more[1] * scale)}

    graph = from_jax(function, X, {"a": X, "unused": X}, X, X, kwargs={"scale": X})
    expected = ["x", "batch.a", "batch.unused", "more_0", "more_1", "scale"]
    assert names(graph) == (expected, ["rest.0", "rest.1", "sum"])
    outputs = run(graph, X, X + 1, X, X + 2, X + 3, X + 4)
    for actual, wanted in zip(outputs, (X + 2, (X + 3) * (X + 4), X + X + 1), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_outputs_without_names_are_numbered() -> None:
    assert names(from_jax(lambda x: x, X))[1] == ["output"]
    assert names(from_jax(lambda x: (x, [x, x]), X))[1] == ["output_0", "output_1.0", "output_1.1"]
    point = namedtuple("point", "a b")
    assert names(from_jax(lambda x: point(x, x), X))[1] == ["a", "b"]


def test_names_can_be_given() -> None:
    graph = from_jax(lambda x, y: (x, y), X, X, input_names=["p", "q"], output_names=["r", "s"])
    assert names(graph) == (["p", "q"], ["r", "s"])
    with pytest.raises(ModelError, match="input_names: p; wanted are 2 different names"):
        from_jax(lambda x, y: x, X, X, input_names=["p"])
    with pytest.raises(ModelError, match="output_names: wanted are 1 different names"):
        from_jax(lambda x: x, X, output_names=["x"])


def test_an_output_may_be_an_input_or_a_constant_or_another_output() -> None:
    graph = from_jax(lambda x: (x, x, jnp.ones(2), {"x": x + 1}), X)
    verify(graph)
    assert names(graph)[1] == ["output_0", "output_1", "output_2", "output_3.x"]
    for actual, wanted in zip(run(graph, X), (X, X, np.ones(2, np.float32), X + 1), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_an_output_called_like_an_input_gets_another_name() -> None:
    assert names(from_jax(lambda x: {"x": x + 1}, X)) == (["x"], ["x_1"])


def test_what_is_no_array_is_part_of_the_graph() -> None:
    def function(x: Any, training: bool, times: int, name: str, nothing: Any, factor: float) -> Any:
        assert isinstance(training, bool)
        return x * times * factor if not training and name == "a" else x

    graph = from_jax(function, X, False, 3, "a", None, 0.5)
    assert names(graph)[0] == ["x"]
    np.testing.assert_allclose(run(graph, X)[0], X * 1.5)


def test_inputs_have_the_types_that_jax_gives_them() -> None:
    graph = from_jax(lambda x, i, b: (x, i, b), np.zeros(2), np.zeros(2, np.int64), np.zeros(2, bool))
    assert [v.dtype for v in graph.inputs] == [DType.FLOAT, DType.INT32, DType.BOOL]
    with jax.enable_x64(True):
        graph = from_jax(lambda x, i: (x * 2, i // 2), np.zeros(2), np.array([-3, 3]))
        assert [v.dtype for v in graph.inputs] == [DType.DOUBLE, DType.INT64]
        np.testing.assert_array_equal(run(graph, np.ones(2), np.array([-3, 3]))[1], [-2, 1])


def test_shapes_are_enough_for_examples() -> None:
    graph = from_jax(lambda x: x @ x, Struct((3, 3), jnp.float32))
    np.testing.assert_allclose(run(graph, np.eye(3, dtype=np.float32))[0], np.eye(3))


def test_methods_partials_and_jitted_functions_are_functions() -> None:
    class Model:
        def apply(self, params: Any, x: Any) -> Any:
            return x * params["scale"]

    params = {"scale": jnp.float32(2)}
    for function in (functools.partial(Model().apply, params), jax.jit(lambda x: Model().apply(params, x))):
        graph = from_jax(function, X)
        assert names(graph)[0] == ["x"]
        np.testing.assert_array_equal(run(graph, X)[0], X * 2)


def test_a_model_is_a_function_with_its_arguments() -> None:
    model = JaxModel(lambda p, x: x * p, (X,), params=jnp.ones(3), dynamic_shapes={"x": {0: "batch"}})
    graph = model.graph()
    assert str(graph.inputs[0].type) == "float[batch,3]"


# weights


def test_weights_are_named_by_their_place_and_shared() -> None:
    kernel, bias = jnp.ones((3, 4)), np.zeros(4, np.float32)

    def function(params: Any, x: Any) -> Any:
        return x @ params["dense"]["kernel"] + params["layers"][0]

    graph = from_jax(function, X, params={"dense": {"kernel": kernel}, "layers": [bias]})
    assert names(graph)[0] == ["x"]
    found = weights(graph)
    assert set(found) == {"dense.kernel", "layers.0"}
    assert isinstance(found["dense.kernel"], JaxTensor)
    assert found["dense.kernel"].numpy().ctypes.data == kernel.unsafe_buffer_pointer()
    assert np.shares_memory(found["layers.0"].numpy(), bias)
    np.testing.assert_allclose(run(graph, X)[0], X @ np.ones((3, 4)))


def test_tied_weights_are_one_constant() -> None:
    table = jnp.ones((3, 3))
    graph = from_jax(lambda p, x: (x @ p["a"]) @ p["b"], X, params={"a": table, "b": table})
    assert list(weights(graph)) == ["a"]
    bias = np.ones(3, np.float32)
    graph = from_jax(lambda p, x: x + p["a"] + p["b"] + bias, X, params={"a": bias, "b": bias[:]})
    assert list(weights(graph)) == ["a"]


def test_arrays_of_closures_are_constants() -> None:
    table = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32))
    graph = from_jax(lambda x: x @ table, X)
    (tensor,) = weights(graph).values()
    assert tensor.numpy().ctypes.data == table.unsafe_buffer_pointer()
    np.testing.assert_allclose(run(graph, X)[0], X @ np.asarray(table), rtol=1e-6)


def test_weights_are_what_jax_takes_them_for() -> None:
    graph = from_jax(lambda p, x: x * p, X, params=np.full(3, 0.1))  # 64 bits
    assert run(graph, X)[0].dtype == np.float32


def test_weights_need_numbers() -> None:
    with pytest.raises(ModelError, match=r"params has a shape but no numbers for a\.kernel"):
        from_jax(lambda p, x: x @ p["a"]["kernel"], X, params={"a": {"kernel": Struct((3, 3), jnp.float32)}})


def test_weights_that_jax_has_deleted_are_an_error() -> None:
    kernel = jnp.ones((3, 70))
    graph = from_jax(lambda p, x: x @ p, X, params=kernel)
    kernel.delete()
    with pytest.raises(TensorError, match="jax has deleted the array"):
        next(iter(weights(graph).values())).numpy()


# symbolic sizes


def test_sizes_are_named_by_axis_by_position_or_by_text() -> None:
    for sizes in ({0: "b"}, ["b", None], "b, 3", "b, ..."):
        graph = from_jax(lambda x: x * 2, X, dynamic_shapes={"x": sizes})
        assert str(graph.inputs[0].type) == "float[b,3]"
        assert str(graph.output_info[0].type) == "float[b,3]"
        assert run(graph, np.ones((5, 3), np.float32))[0].shape == (5, 3)
    assert str(from_jax(lambda x: x, np.ones(4), dynamic_shapes={"x": {-1: "n"}}).inputs[0].type) == "float[n]"


def test_sizes_of_jax_itself_are_taken() -> None:
    b, s = jax.export.symbolic_shape("b, s")
    graph = from_jax(
        lambda x, y: jnp.concatenate([x, y], 1), Struct((b, s), jnp.float32), Struct((b, 2 * s), jnp.float32)
    )
    assert [str(v.type) for v in graph.inputs] == ["float[b,s]", "float[b,2*s]"]
    assert str(graph.output_info[0].type) == "float[b,3*s]"


SIZES = {
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "reshape to products": lambda x: x.reshape(x.shape[0] * x.shape[1], 4),
    "reshape of both": lambda x: x.reshape(x.shape[0], x.shape[1], 2, 2).transpose(2, 0, 1, 3),
    "reshape in order": lambda x: jnp.swapaxes(x, 0, 1).reshape(x.shape[1], 2 * x.shape[0], 2),
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 3, x.shape[1], 4)),
    "zeros": lambda x: jnp.zeros((x.shape[1], x.shape[0])),
    "mean": lambda x: x.mean((0, 1)),
    "a size as a value": lambda x: x + x.shape[0] * x.shape[1] - x.shape[1] // 2 + x.shape[0] % 2,
    "arange": lambda x: jnp.arange(x.shape[1]) * 2,
    "iota": lambda x: lax.broadcasted_iota(jnp.int32, (x.shape[0], x.shape[1]), 1),
    "slice off the end": lambda x: x[:, :-1],
    "the last": lambda x: x[:, -1],
    "half of it": lambda x: x[:, : x.shape[1] // 2],
    "every other": lambda x: x[:, ::2],
    "concatenate": lambda x: jnp.concatenate([x, x[:, :1]], 1),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0))),
    "causal mask": lambda x: jnp.where(jnp.tril(jnp.ones((x.shape[1],) * 2, bool)), x @ x.swapaxes(1, 2), -1e9),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "cummax": lambda x: lax.cummax(x, 1),
    "argmax": lambda x: jnp.argmax(x, 1),
    "sort": lambda x: jnp.sort(x, 1),
    "take": lambda x: jnp.take(x, jnp.arange(x.shape[0]), axis=0),
    "take_along_axis": lambda x: jnp.take_along_axis(x, jnp.argmax(x, 1, keepdims=True), 1),
    "gather by batch": lambda x: x[jnp.arange(x.shape[0]), -1],
    "set": lambda x: x.at[:, 1].set(0.0),
    "set outside": lambda x: x.at[:, 7].add(1.0),
    "set by batch": lambda x: x.at[jnp.arange(x.shape[0]), 1].set(0.0),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:, :1] * 2, (0, x.shape[1] - 1, 0)),
    "scan": lambda x: lax.scan(lambda c, y: (c + y, c), jnp.zeros((x.shape[0], 4)), x.swapaxes(0, 1)),
    "loop": lambda x: lax.fori_loop(0, x.shape[1], lambda i, c: c + x[:, i], jnp.zeros((x.shape[0], 4))),
    "einsum": lambda x: jnp.einsum("bsd,bte->bde", x, x),
    "softmax": lambda x: jax.nn.softmax(x, 1),
    "vmap": lambda x: jax.vmap(lambda m: m[0] @ m.T)(x),
    "pooling": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 1), (1, 1, 1), "VALID"),
    "conv": lambda x: lax.conv_general_dilated(
        x, jnp.ones((3, 4, 2)), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "squares": lambda x: jnp.zeros((x.shape[1] ** 2, 1)) + x.shape[1] ** 2,
    "min and max": lambda x: jnp.zeros((jax.core.max_dim(x.shape[0], x.shape[1]), 1)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_stay_symbolic(name: str) -> None:
    function = SIZES[name]
    graph = from_jax(function, np.ones((2, 4, 4), np.float32), dynamic_shapes={"x": {0: "b", 1: "s"}})
    verify(graph)
    for shape in ((2, 4, 4), (3, 6, 4), (1, 2, 4)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        for actual, expected in zip(run(graph, x), jax.tree_util.tree_leaves(function(jnp.asarray(x))), strict=True):
            assert actual.dtype == expected.dtype
            np.testing.assert_allclose(actual, np.asarray(expected), rtol=1e-5, atol=1e-6)


def test_sizes_are_found_in_expressions_of_them() -> None:
    graph = from_jax(lambda x: jnp.zeros(x.shape[0] // 2), np.ones(6, np.float32), dynamic_shapes={"x": "2*half"})
    assert run(graph, np.ones(10, np.float32))[0].shape == (5,)


def test_a_size_that_no_input_has_is_an_error() -> None:
    with pytest.raises(ModelError, match="no input has the size 'a' as a dimension"):
        from_jax(lambda x: jnp.zeros(x.shape[0] + 1), np.ones(6, np.float32), dynamic_shapes={"x": "a*b"})


def test_sizes_are_checked() -> None:
    with pytest.raises(ModelError, match="dynamic_shapes names y; the inputs are x"):
        from_jax(lambda x: x, X, dynamic_shapes={"y": {0: "b"}})
    with pytest.raises(ModelError, match="axes 5 of an array of rank 2"):
        from_jax(lambda x: x, X, dynamic_shapes={"x": {5: "b"}})
    with pytest.raises(ModelError, match=r"cannot trace .*constraints.* at .*test_jax\.py:\d+"):
        from_jax(lambda x: lax.slice(jnp.zeros(4), (0,), (x.shape[0],)), X, dynamic_shapes={"x": {0: "b"}})


# where nodes come from


def test_nodes_know_their_line_and_their_module() -> None:
    def block(x: Any) -> Any:
        return jnp.tanh(x)  # the line of the tanh

    def function(x: Any) -> Any:
        with jax.named_scope("encoder"), jax.named_scope("layer_0"):
            x = jax.jit(block)(x)
        return lax.scan(lambda c, y: (c + jnp.sin(y), None), 0.0, x[:, 0])[0]

    graph = from_jax(function, X)
    nodes = {node.op: node for node in graph.walk()}
    assert nodes["Tanh"].origin.source == f"{__file__}:{line_of('# the line of the tanh')}"
    assert nodes["Tanh"].origin.module == "encoder.layer_0"
    assert nodes["Tanh"].name == "encoder.layer_0.tanh"
    assert nodes["Sin"].origin.source.startswith(f"{__file__}:")
    assert nodes["Scan"].origin.module == ""


def test_functions_of_jax_are_where_they_are_called() -> None:
    def function(x: Any) -> Any:
        y = jax.nn.silu(x)  # called here
        return y + jax.nn.silu(y * 2)  # and here

    graph = from_jax(lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.tan(c), x), X)  # in a loop
    assert [n.origin.source for n in graph.walk() if n.op == "Tan"] == [f"{__file__}:{line_of('# in a loop')}"]
    sources = [node.origin.source for node in from_jax(function, X) if node.op == "Sigmoid"]
    assert sources == [f"{__file__}:{line_of(f'# {place} here')}" for place in ("called", "and")]


# what cannot be translated


def test_everything_that_has_no_translation_is_listed() -> None:
    def function(x: Any, key: Any) -> Any:
        y = jnp.fft.fft(x)  # first
        z = lax.cond(x[0, 0] > 0, lambda: lax.lgamma(x), lambda: x)  # second
        return y, z + jax.random.uniform(key, x.shape), lax.digamma(x)  # third

    with pytest.raises(UnsupportedPrimitives) as caught:
        from_jax(function, X, jax.random.key(0))
    found = {r.primitive: r for r in caught.value.refusals}
    assert {"fft", "lgamma", "random_bits", "digamma"} <= set(found)
    for primitive, text in (("fft", "# first"), ("lgamma", "# second"), ("random_bits", "# third")):
        assert found[primitive].source == f"{__file__}:{line_of(text)}"
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot translate function: ")
    assert "randomness: give random numbers as inputs" in message
    assert not {"add", "jit", "cond", "mul"} & set(found)  # these only follow


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: jax.pure_callback(lambda x: x, x, x), "pure_callback .*calls back into Python"),
        (lambda x: jnp.linalg.cholesky(x[:, :2]), "cholesky .*no ONNX operator"),
        (lambda x: lax.population_count(x.astype(jnp.int32)), "population_count .*bit counts"),
        (lambda x: lax.reduce(x, jnp.float32(0), lambda a, b: a * b + 1, (0,)), "a function of its own"),
        (lambda x: lax.reduce_or(x.astype(jnp.int32), (0,)), "bitwise reduction"),
        (
            lambda x: lax.conv(x.astype(jnp.int32)[None, None], jnp.ones((1, 1, 2, 2), jnp.int32), (1, 1), "SAME"),
            "integers",
        ),
    ],
)
def test_refusals_give_a_reason(function: Any, reason: str) -> None:
    with pytest.raises(UnsupportedPrimitives, match=reason):
        from_jax(function, X)


def test_random_keys_may_be_given_where_they_are_not_used() -> None:
    def function(x: Any, key: Any, dropout: bool) -> Any:
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0) if dropout else x * 2

    graph = from_jax(function, X, jax.random.key(0), False)
    assert names(graph)[0] == ["x"]
    np.testing.assert_array_equal(run(graph, X)[0], X * 2)


def test_what_nothing_needs_is_not_translated() -> None:
    def function(x: Any) -> Any:
        jnp.fft.fft(x)
        return x + 1

    assert [node.op for node in from_jax(function, X)] == ["Add"]


def test_arguments_must_be_tensors() -> None:
    with pytest.raises(ModelError, match=r"argument 'x': complex numbers"):
        from_jax(lambda x: x.real, X.astype(np.complex64))
    with pytest.raises(TypeError, match="takes a function, not float"):
        from_jax(3.0, X)  # type: ignore[arg-type]


def test_printing_is_left_out_with_a_warning() -> None:
    def function(x: Any) -> Any:
        jax.debug.print("x is {}", x)
        jax.debug.callback(lambda x: None, x)
        return x + 1

    with pytest.warns(UserWarning, match="debug_callback, debug_print"):
        graph = from_jax(function, X)
    assert [node.op for node in graph] == ["Add"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x if x.sum() > 0 else -x, "control flow depends on the values of an array: use jax.lax.cond"),
        (lambda x: np.sin(x), "numpy is called on an array that is traced"),
        (lambda x: jnp.zeros(x[0, 0].astype(int)), "make it a plain number|Shapes must be"),
        (lambda x: x[x > 0], "the shape of the result depends on values"),
        (lambda x: x @ x, "dot_general"),
    ],
)
def test_errors_of_tracing_are_one_line_with_a_place(function: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        from_jax(function, X)
    assert "\n" not in str(caught.value)
    assert f" at {__file__}:" in str(caught.value)


def test_the_package_is_light_and_says_what_it_needs() -> None:
    code = """
import sys
import planish.frontends.jax
assert not {"jax", "jaxlib"} & set(sys.modules)
sys.modules["jax"] = None
try:
    planish.frontends.jax.from_jax(abs, 1)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "JAX models need jax: pip install 'planish[xla]'"


# element types


def test_bfloat16_and_float16_models() -> None:
    for dtype in (jnp.bfloat16, jnp.float16):
        x, w = jnp.asarray(X, dtype), jnp.full((3, 3), 0.3, dtype)

        def function(w: Any, x: Any) -> Any:
            return jax.nn.softmax(jnp.tanh(x @ w).astype(jnp.float32)).astype(x.dtype)

        graph = from_jax(function, x, params=w)
        (actual,) = run(graph, x, on="reference")
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual.astype(np.float32), np.asarray(function(w, x), np.float32), rtol=2e-2)


# anything together

UNARY = [jnp.tanh, jnp.abs, lambda x: x.T, lambda x: x[::-1], lambda x: x - x.max(0), lambda x: jnp.cumsum(x, 1)]
UNARY += [lambda x: jnp.sort(x, 0), lambda x: x.at[0].set(1.0), jax.nn.softmax, lambda x: jnp.roll(x, 1, 1)]
UNARY += [jax.nn.gelu, lambda x: x[jnp.array([2, 0, -1])], lambda x: jnp.tril(x), lambda x: x / x.shape[0]]
UNARY += [lambda x: x.reshape(9)[::2][:3, None] * x, jax.vmap(jax.nn.relu), lambda x: x - x.mean(1, keepdims=True)]
BINARY = [jnp.add, jnp.matmul, jnp.maximum, lambda a, b: jnp.where(a > b, a, b * 2), lambda a, b: a * b.sum()]
BINARY += [lambda a, b: jnp.einsum("ij,kj->ki", a, b), lambda a, b: lax.scan(lambda c, r: (c + r, c * r), b[0], a)[1]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=6))
def test_compositions(steps: list[tuple[int, int, int]]) -> None:
    def function(x: Any) -> Any:
        values = [x]
        for kind, i, j in steps:
            a, b = values[i % len(values)], values[j % len(values)]
            functions = UNARY if kind % 2 else BINARY
            chosen: Any = functions[kind // 2 % len(functions)]
            values.append(chosen(a) if kind % 2 else chosen(a, b) / 2)
        return values[1:]

    x = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    graph = from_jax(function, x)
    verify(graph)
    for actual, expected in zip(run(graph, x), function(jnp.asarray(x)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
