"""Graphs as JAX functions: parameters, transformations, tracing, what decides shapes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx.parser
import pytest

import planish
from planish.backends import LoweringError, backend
from planish.backends.xla.function import to_jax
from planish.ir import constant, op
from planish.ir.builder import make_node
from planish.ir.edit import insert
from planish.ir.errors import PlanishError
from planish.ir.text import parse
from planish.ir.verify import verify

RNG = np.random.default_rng(5)


def graph(text, **weights):
    """A graph from ONNX text; its inputs named in ``weights`` become constants."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    for value in [v for v in model.graph.input if v.name in weights]:
        model.graph.input.remove(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights[value.name], value.name))
    return planish.load(model)


W1, W2 = (RNG.normal(size=s).astype("f") for s in ((6, 8), (8, 3)))
B1 = RNG.normal(size=8).astype("f")
X = RNG.normal(size=(5, 6)).astype("f")
MLP = """mlp (float[batch, 6] x, float[6, 8] w1, float[8] b1, float[8, 3] w2) => (float[batch, 3] y) {
  h = MatMul (x, w1)
  a = Add (h, b1)
  r = Relu (a)
  y = MatMul (r, w2)
}"""


def mlp(x, w1=W1, b1=B1, w2=W2):
    return np.maximum(x @ w1 + b1, 0) @ w2


@pytest.fixture
def function():
    return to_jax(graph(MLP, w1=W1, b1=B1, w2=W2))


def test_weights_are_parameters_under_their_names(function):
    assert {name: p.shape for name, p in function.params.items()} == {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}
    assert {name: s.shape for name, s in function.param_shapes.items()} == {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}
    (y,) = function(function.params, X)
    np.testing.assert_allclose(y, mlp(X), rtol=1e-5, atol=1e-5)


def test_weights_are_passed_and_not_part_of_the_program(function):
    text = jax.jit(function).lower(function.param_shapes, jax.ShapeDtypeStruct((5, 6), jnp.float32)).as_text()
    assert "tensor<6x8xf32>" in text
    assert "dense<" not in text.replace("dense<0.000000e+00>", "")
    (y,) = jax.jit(function)({**function.params, "b1": B1 + 1}, X)
    np.testing.assert_allclose(y, mlp(X, b1=B1 + 1), rtol=1e-5, atol=1e-5)


def test_the_same_function_is_jitted_mapped_and_differentiated(function):
    (y,) = jax.jit(function)(function.params, X)
    mapped = jax.vmap(lambda row: function(function.params, row[None])[0][0])(X)
    np.testing.assert_allclose(mapped, y, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda p: function(p, X)[0].sum())(function.params)
    hidden = X @ W1 + B1
    np.testing.assert_allclose(gradient["w2"], np.maximum(hidden, 0).sum(0)[:, None] * np.ones(3), rtol=1e-4)
    np.testing.assert_allclose(gradient["b1"], ((hidden > 0) * W2.sum(1)).sum(0), rtol=1e-4, atol=1e-5)


def test_trained_weights_go_back_into_the_graph():
    model = graph(MLP, w1=W1, b1=B1, w2=W2)
    function = to_jax(model)
    function.write_back({name: p * 2 for name, p in function.params.items()}, model)
    wanted = mlp(X, W1 * 2, B1 * 2, W2 * 2)
    np.testing.assert_allclose(backend("reference").run(model, {"x": X})["y"], wanted, rtol=1e-5, atol=1e-5)
    verify(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("b1"), "params lack 'b1'"),
        (lambda p: p.update(b1=np.zeros(9, "f")), r"weight 'b1' has shape \[9\]"),
    ],
)
def test_weights_that_do_not_fit_are_not_written_back(change, message):
    model = graph(MLP, w1=W1, b1=B1, w2=W2)
    function = to_jax(model)
    params = dict(function.params)
    change(params)
    with pytest.raises(PlanishError, match=message):
        function.write_back(params, model)
    np.testing.assert_allclose(backend("reference").run(model, {"x": X})["y"], mlp(X), rtol=1e-5, atol=1e-5)


def test_tied_weights_are_one_parameter_and_stay_tied():
    w = RNG.normal(size=(4, 4)).astype("f")
    model = graph("tied (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { a = MatMul (x, w) y = MatMul (a, w) }", w=w)
    function = to_jax(model)
    assert list(function.params) == ["w"]
    function.write_back({"w": np.eye(4, dtype="f")}, model)
    assert len({id(v.const) for v in model.constants()}) == 1
    x = RNG.normal(size=(2, 4)).astype("f")
    np.testing.assert_allclose(backend("reference").run(model, {"x": x})["y"], x)


def test_a_second_call_does_not_trace_again(function):
    program = backend("xla").compile(graph(MLP, w1=W1, b1=B1, w2=W2))
    for _ in range(3):
        np.testing.assert_allclose(program(X)[0], mlp(X), rtol=1e-5, atol=1e-5)
    assert program.report()["traces"] == 1
    program(X[:2])
    program(X[:2])
    assert program.report()["traces"] == 2


def test_an_input_that_decides_a_shape_is_known_when_traced():
    model = graph("g (float[a, b] x, int64[2] shape) => (float[m, n] y) { y = Reshape (x, shape) }")
    program = backend("xla").compile(model)
    for shape in ([2, 6], [3, 4], [2, 6]):
        np.testing.assert_array_equal(
            program(np.arange(12, dtype="f").reshape(3, 4), np.array(shape))[0],
            np.arange(12, dtype="f").reshape(shape),
        )
    report = program.report()
    assert report["static_inputs"] == ["shape"]
    assert report["traces"] == 2
    function = to_jax(model)
    (y,) = jax.jit(lambda x: function({}, x, np.array([12, 1])))(np.ones((3, 4), "f"))
    assert y.shape == (12, 1)
    with pytest.raises(PlanishError, match="input 'shape' decides a shape: give a numpy array"):
        jax.jit(function)({}, np.ones((3, 4), "f"), np.array([12, 1]))


def test_shapes_that_depend_on_data_are_exact_outside_of_a_trace():
    model = graph("g (float[n] x) => (int64[r, m] y) { y = NonZero (x) }")
    program = backend("xla").compile(model)
    np.testing.assert_array_equal(program(np.array([0, 3, 0, 4], "f"))[0], [[1, 3]])
    np.testing.assert_array_equal(program(np.array([1, 1, 0, 4], "f"))[0], [[0, 1, 3]])
    assert program.report()["compiled"] is True
    assert "NonZero" in program.report()["data_dependent"][0]
    function = to_jax(model)
    with pytest.raises(LoweringError, match="NonZero"):
        jax.jit(function)({}, np.array([0, 3, 0, 4], "f"))


def test_everything_without_a_lowering_is_listed_before_anything_runs():
    model = graph("g (string[n] x) => (string[n] b) { a = StringConcat (x, x) b = StringConcat (a, x) }")
    with pytest.raises(LoweringError) as caught:
        to_jax(model)
    assert len(caught.value.problems) == 2
    assert str(caught.value).startswith("xla cannot run 2 nodes")


def test_unknown_operators_are_refused_by_name():
    model = planish.Graph("g", opsets={"": 21, "com.example": 1})
    x = model.add_input(planish.ir.TensorType(planish.ir.DType.FLOAT, (3,)), "x")
    node = make_node("com.example.Mystery", (x,), {})
    insert(node, model.ret)
    model.set_outputs(node.results)
    with pytest.raises(LoweringError, match=r"com\.example\.Mystery"):
        to_jax(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "exact"}, "precision is 'exact'; it can be default, highest"),
        ({"speed": "high"}, "xla has no option 'speed'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(PlanishError, match=message):
        to_jax(graph(MLP, w1=W1, b1=B1, w2=W2), **options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "no value for input 'x'"),
        ((X, X), "2 inputs given, the model has 1"),
        ((X[0],), "input 'x' has 2 dimensions, not 1"),
        ((X[:, :5],), "5 elements in dimension 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(function, inputs, message):
    with pytest.raises(PlanishError, match=message):
        function(function.params, *inputs)
    with pytest.raises(PlanishError):
        backend("xla").compile(graph(MLP, w1=W1, b1=B1, w2=W2))(dict(zip("xy", inputs, strict=False)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (X.astype(np.float64), "input 'x' is float64, the model states float"),
        (X.astype(np.int32), "input 'x' is int32, the model states float"),
        (np.array([["a"] * 6]), "input 'x' is <U1, the model states float"),
        ([[1.0, 2.0], [3.0]], "input 'x' is no array"),
        (None, "no value for input 'x'"),
    ],
)
def test_executables_take_what_the_model_states(value, message):
    executable = backend("xla").compile(graph(MLP, w1=W1, b1=B1, w2=W2))
    with pytest.raises(PlanishError, match=message):
        executable({"x": value})
    np.testing.assert_array_equal(executable({"x": list(X)})[executable.outputs[0]], executable(X)[0])


def test_executables_take_lists_of_what_the_model_states():
    executable = backend("xla").compile(parse("g (seq(float[2]) s) => (int64 n) { n = SequenceLength (s) }"))
    assert executable([X[0, :2], X[0, 2:4]])[0] == 2
    with pytest.raises(PlanishError, match="input 's' is <U1, the model states float"):
        executable([X[0, :2], "a"])
    with pytest.raises(PlanishError, match="input 's' is a sequence: give a list"):
        executable(X)


def test_missing_weights_are_named(function):
    with pytest.raises(PlanishError, match="params lack 'w1': give all of the function's own, 3"):
        function({}, X)


def test_results_have_the_types_that_the_model_states():
    model = graph(
        """g (int64[n] i, double[n] d) => (int64[n] a, double[n] b, int64[1] c) {
          a = Add (i, i)
          b = Exp (d)
          c = Shape (d)
        }"""
    )
    i, d = np.array([1 << 40, -3]), np.array([1.0, 1e-12])
    a, b, c = backend("xla").compile(model)(i, d)
    assert [v.dtype.name for v in (a, b, c)] == ["int64", "float64", "int64"]
    np.testing.assert_array_equal(a, i * 2)
    np.testing.assert_allclose(b, np.exp(d), rtol=1e-15)
    np.testing.assert_array_equal(c, [2])


def test_masks_that_saturate_stay_masks_where_types_are_narrow():
    model = graph(
        "g (int64[n] i) => (int64[n] a) { k = Constant <value = int64 {9223372036854775807}> () a = Min (i, k) }"
    )
    function = to_jax(model)
    (a,) = jax.jit(function)(function.params, np.array([5, -7], np.int32))
    np.testing.assert_array_equal(a, [5, -7])


def test_a_graph_stays_as_it_is():
    model = graph(MLP, w1=W1, b1=B1, w2=W2)
    before = str(model)
    to_jax(model)
    backend("xla").compile(model)(X)
    assert str(model) == before


def test_the_public_name_takes_any_model(tmp_path):
    model = graph(MLP, w1=W1, b1=B1, w2=W2)
    planish.save(model, tmp_path / "m.onnx")
    function = planish.to_jax(tmp_path / "m.onnx", precision="highest")
    np.testing.assert_allclose(function(function.params, X)[0], mlp(X), rtol=1e-5, atol=1e-5)


def test_node_names_reach_the_compiler(function):
    model = graph(MLP, w1=W1, b1=B1, w2=W2)
    for i, node in enumerate(model.nodes):
        node.name = f"encoder/layer{i}"
    function = to_jax(model)
    text = jax.jit(function).lower(function.params, X).compile().as_text()
    assert "encoder/layer0/dot_general" in text


def test_default_values_of_inputs_are_used():
    model = planish.Graph("g", opsets={"": 21})
    kind = planish.ir.TensorType(planish.ir.DType.FLOAT, (2,))
    x, y = model.add_input(kind, "x"), model.add_input(kind, "y")
    y.default = constant(np.array([10, 20], "f")).const
    result = op.Add(x, y)
    insert(result.producer, model.ret)
    model.set_outputs([result])
    program = backend("xla").compile(model)
    np.testing.assert_array_equal(program(np.array([1, 2], "f"))[0], [11, 22])
    np.testing.assert_array_equal(program(np.array([1, 2], "f"), np.array([0, 1], "f"))[0], [1, 3])
