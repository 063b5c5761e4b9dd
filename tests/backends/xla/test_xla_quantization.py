"""FakeQuantize with its gradient, and quantized products that are computed with integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.backends import backend
from planish.backends.xla.executable import for_inference
from planish.backends.xla.function import to_jax
from planish.ir import DType, Graph, TensorType, constant, edit, op, sym
from planish.ir.builder import make_node
from planish.ir.quantization import FAKE_QUANTIZE, evaluate, parse_format

RNG = np.random.default_rng(11)
FORMATS = (
    "int8",
    "uint8",
    "int4",
    "uint4",
    "int3",
    "int2",
    "int16",
    "uint16",
    "float8e4m3fn",
    "float8e5m2",
    "float4e2m1",
)


def fake(x, scale, zero=None, **attrs):
    return make_node(FAKE_QUANTIZE, (x, scale, zero), {"format": "int8", **attrs}).result


def graph_of(build, *shapes, dtype=DType.FLOAT):
    graph = Graph("g", opsets={"": 23})
    result = build(*[graph.add_input(TensorType(dtype, shape), f"x{i}") for i, shape in enumerate(shapes)])
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    return graph


def compiled(graph, *arrays, **options):
    function = to_jax(graph, **options)
    return np.asarray(jax.jit(function)(function.params, *arrays)[0])


def halves(scale, low, high, count=500):
    """Numbers around and exactly half-way between the multiples of ``scale``, beyond the range as well."""
    near = RNG.normal(size=count) * (high - low) / 2 * scale
    ties = (RNG.integers(int(low) - 3, int(high) + 3, count) + 0.5).astype("f") * np.float32(scale)
    return np.concatenate([near.astype("f"), ties, np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], "f")])


@pytest.mark.parametrize("known", [True, False], ids=["constant-scale", "traced-scale"])
@pytest.mark.parametrize("name", FORMATS)
def test_fake_quantize_is_its_definition_bit_for_bit(name, known):
    form = parse_format(name)
    for _ in range(3):
        scale = np.float32(RNG.uniform(0.003, 0.3))
        zero = int(RNG.integers(form.low, form.high + 1)) if form.is_integer else 0
        x = halves(scale, form.low, form.high)
        point = constant(np.array(zero, form.storage.numpy), form.storage) if form.is_integer else None
        if known:
            graph = graph_of(lambda v, s=scale, z=point: fake(v, constant(s), z, format=name), x.shape)
            got = compiled(graph, x)
        else:
            graph = graph_of(lambda v, s, z=point: fake(v, s, z, format=name), x.shape, ())
            got = compiled(graph, x, scale)
        node = next(graph.nodes)
        wanted = evaluate(node, [x, np.asarray(scale), None if point is None else point.const.numpy()])
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE])
def test_fake_quantize_keeps_the_type(dtype):
    x = (RNG.normal(size=(4, 6)) * 3).astype(dtype.numpy)
    scale = np.array([0.1, 0.2, 0.05, 0.3], dtype.numpy)
    graph = graph_of(lambda v: fake(v, constant(scale, dtype), axis=0), x.shape, dtype=dtype)
    (got,) = backend("xla").compile(graph, quantization="fake")(x)
    assert got.dtype == dtype.numpy
    np.testing.assert_array_equal(got, evaluate(next(graph.nodes), [x, scale]))


@pytest.mark.parametrize("shape", [(3, 10), (2, 3, 7)])
def test_blocks_and_dynamic_ranges_are_their_definition(shape):
    x = RNG.normal(size=shape).astype("f")
    rows = constant(np.abs(RNG.normal(size=(*shape[:-1], -(-shape[-1] // 4)))).astype("f") + 0.1)
    for build in (
        lambda v: fake(v, rows, axis=-1, block_size=4, format="int4"),
        lambda v: fake(v, None, axis=-1, block_size=4),
        lambda v: fake(v, None, format="uint8"),
    ):
        graph = graph_of(build, shape)
        node = next(graph.nodes)
        operands = [x, *(o.const.numpy() for o in node.operands[1:] if o is not None)]
        np.testing.assert_array_equal(compiled(graph, x), evaluate(node, operands))


def test_the_gradient_is_straight_through_within_the_range_and_lsq_for_the_scale():
    scale = np.float32(0.1)
    x = np.array([0.234, -0.07, 5.0, -20.0, 12.7, 13.0], "f")
    function = to_jax(graph_of(lambda v, s: fake(v, s), x.shape, ()))
    gradient, of_scale = jax.grad(lambda x, s: function({}, x, s)[0].sum(), argnums=(0, 1))(x, scale)
    np.testing.assert_array_equal(gradient, [1, 1, 1, 0, 1, 0])
    inside = (np.rint(x / scale) - x / scale) * (np.abs(x / scale) < 127.5)
    np.testing.assert_allclose(of_scale, inside[[0, 1, 2, 4]].sum() - 128 + 127, rtol=1e-4)


def test_weights_learn_through_their_quantization():
    w = RNG.normal(size=(6, 4)).astype("f")
    scale = constant((np.abs(w).max(0) / 127).astype("f"))
    graph = graph_of(lambda v: op.MatMul(v, fake(constant(w, name="w"), scale, axis=1)), (sym("n"), 6))
    function = to_jax(graph)
    x, y = RNG.normal(size=(32, 6)).astype("f"), RNG.normal(size=(32, 4)).astype("f")

    def loss(params):
        return jnp.mean((function(params, x)[0] - y) ** 2)

    params = {name: jnp.asarray(p) for name, p in function.params.items()}
    first = loss(params)
    for _ in range(20):
        gradients = jax.grad(loss)(params)
        params = {**params, "w": params["w"] - 0.1 * gradients["w"]}
    assert loss(params) < 0.7 * first


# integers


def quantized_weight(shape, axis, fmt="int8", zero=False):
    w = RNG.normal(size=shape).astype("f")
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    form = parse_format(fmt)
    scale = (np.abs(w).max(others) / form.high).astype("f")
    points = RNG.integers(-5, 5, scale.shape).astype(form.storage.numpy) if zero else None
    point = None if points is None else constant(points, form.storage)
    return fake(constant(w, name="w"), constant(scale), point, axis=axis, format=fmt)


def activation(x, fmt="int8", zero=0, scale=0.04):
    form = parse_format(fmt)
    return fake(x, constant(np.float32(scale)), constant(np.array(zero, form.storage.numpy), form.storage), format=fmt)


def hlo(graph, *arrays):
    function = for_inference(graph)
    return str(jax.make_jaxpr(function)(function.params, *arrays))


ACTIVATIONS = [("int8", 0), ("int8", -7), ("uint8", 0), ("uint8", 131)]


@pytest.mark.parametrize("zero_weights", [False, True])
@pytest.mark.parametrize(("fmt", "zero"), ACTIVATIONS)
def test_a_product_is_computed_with_integers(fmt, zero, zero_weights):
    def build(x):
        return op.MatMul(activation(x, fmt, zero), quantized_weight((70, 9), 1, zero=zero_weights))

    graph, x = graph_of(build, (sym("n"), 5, 70)), RNG.normal(size=(2, 5, 70)).astype("f") * 2
    text = hlo(graph, x)
    assert "i8" in text
    assert "preferred_element_type=int32" in text
    wanted = backend("reference").run(graph, {"x0": x})
    (got,) = backend("xla").compile(graph)(x)
    (want,) = wanted.values()
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6 * np.abs(want).max())


def test_the_integers_are_exact_where_float32_is_not():
    """Sums beyond 2 to the 24th, of which every unit counts: scales of 1 show the integers themselves."""
    k = 40000
    x = RNG.integers(-128, 128, (3, k)).astype("f")
    w = RNG.integers(-127, 128, (k, 4)).astype("f")
    one = constant(np.float32(1))

    def build(v):
        return op.MatMul(fake(v, one), fake(constant(w), one))

    (got,) = backend("xla").compile(graph_of(build, (3, k)))(np.abs(x) - (np.abs(x) > 127))
    exact = (np.abs(x) - (np.abs(x) > 127)).astype(np.int64) @ w.astype(np.int64)
    np.testing.assert_array_equal(got, exact.astype("f"))


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_is_computed_with_integers(transposed):
    bias = constant(RNG.normal(size=7).astype("f"))

    def build(x):
        w = quantized_weight((7, 30) if transposed else (30, 7), 0 if transposed else 1)
        return op.Gemm(activation(x, "uint8", 120), w, bias, transB=int(transposed))

    graph, x = graph_of(build, (sym("n"), 30)), RNG.normal(size=(4, 30)).astype("f") * 2
    assert "preferred_element_type=int32" in hlo(graph, x)
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("fmt", "zero"), ACTIVATIONS)
@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((8, 6, 3, 3), {"pads": (1, 1, 1, 1)}),
        ((6, 1, 3, 3), {"group": 6, "strides": (2, 2), "pads": (1, 0, 1, 2)}),
        ((4, 3, 1, 1), {"group": 2}),
        ((5, 6, 5, 3), {"dilations": (2, 1), "auto_pad": "SAME_UPPER"}),
    ],
)
def test_a_convolution_is_computed_with_integers(shape, attrs, fmt, zero):
    bias = constant(RNG.normal(size=shape[0]).astype("f"))

    def build(x):
        return op.Conv(activation(x, fmt, zero), quantized_weight(shape, 0), bias, **attrs)

    graph, x = graph_of(build, (sym("n"), 6, 11, 12)), RNG.normal(size=(2, 6, 11, 12)).astype("f") * 2
    assert "i8" in hlo(graph, x)
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["int4", "int2", "uint4", "int3"])
@pytest.mark.parametrize("fmt", ["int8", "uint8"])
def test_narrow_weights_are_multiplied_as_integers_too(weights, fmt):
    x = RNG.normal(size=(2, 6, 9, 8)).astype("f") * 2
    graph = graph_of(lambda v: op.Conv(activation(v, fmt), quantized_weight((8, 6, 3, 3), 0, weights)), x.shape)
    assert "i8" in hlo(graph, x)
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-5, atol=1e-5)
    rows = RNG.normal(size=(5, 32)).astype("f") * 2
    graph = graph_of(lambda v: op.MatMul(activation(v, fmt), quantized_weight((32, 6), 1, weights)), rows.shape)
    assert "preferred_element_type=int32" in hlo(graph, rows)
    (want,) = backend("reference").run(graph, {"x0": rows}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(rows)[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fmt", ["int8", "int4", "int2", "uint4"])
def test_weights_alone_stay_narrow_and_are_scaled_after_the_product(fmt):
    graph = graph_of(lambda x: op.MatMul(x, quantized_weight((64, 48), 1, fmt)), (sym("n"), 64))
    function = for_inference(graph)
    (codes,) = [p for p in function.params.values() if p.ndim == 2]
    assert codes.dtype == parse_format(fmt).storage.numpy
    x = RNG.normal(size=(3, 64)).astype("f")
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-4, atol=1e-4)


def test_weights_in_blocks_stay_narrow():
    w = RNG.normal(size=(64, 48)).astype("f")
    scale = constant((np.abs(w.reshape(2, 32, 48)).max(1) / 7).astype("f"))
    graph = graph_of(
        lambda x: op.MatMul(x, fake(constant(w), scale, axis=0, block_size=32, format="int4")), (sym("n"), 64)
    )
    assert DType.INT4.numpy in [p.dtype for p in for_inference(graph).params.values()]
    x = RNG.normal(size=(3, 64)).astype("f")
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_a_quantized_table_are_picked_before_they_become_numbers(axis):
    graph = Graph("g", opsets={"": 23})
    ids = graph.add_input(TensorType(DType.INT64, (sym("n"), 3)), "ids")
    result = op.Gather(quantized_weight((50, 40), axis), ids, axis=0)
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    indices = RNG.integers(-50, 50, (2, 3))
    (want,) = backend("reference").run(graph, {"ids": indices}).values()
    np.testing.assert_array_equal(backend("xla").compile(graph)(indices)[0], want)
    assert np.dtype("int8") in [p.dtype for p in for_inference(graph).params.values()]


def test_codes_are_moved_and_multiplied_without_numbers_between():
    def build(q, k):
        return op.MatMul(activation(q), op.Transpose(activation(k, zero=3, scale=0.02), perm=[0, 2, 1]))

    graph = graph_of(build, (2, 5, 16), (2, 7, 16))
    q, k = RNG.normal(size=(2, 5, 16)).astype("f"), RNG.normal(size=(2, 7, 16)).astype("f")
    assert "i8[2,16,7]" in hlo(graph, q, k)
    (want,) = backend("reference").run(graph, {"x0": q, "x1": k}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(q, k)[0], want, rtol=1e-5, atol=1e-5)


def test_what_has_no_integers_gets_numbers():
    graph = graph_of(lambda x: op.Tanh(op.Add(activation(x), activation(x, scale=0.1))), (4, 5))
    x = RNG.normal(size=(4, 5)).astype("f")
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 32), (2, 3, 32)])
def test_a_dynamic_range_per_row_gives_integers_with_a_scale_per_row(shape):
    def build(x):
        return op.MatMul(fake(x, None, axis=-1, block_size=32), quantized_weight((32, 6), 1))

    graph = graph_of(build, (sym("n"), *shape[1:]))
    x = RNG.normal(size=shape).astype("f") * np.logspace(-2, 3, shape[-2]).astype("f")[:, None]
    assert "preferred_element_type=int32" in hlo(graph, x)
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    got = backend("xla").compile(graph)(x)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6 * np.abs(want).max(-1, keepdims=True).min())


@pytest.mark.parametrize("block", [8, 32])
def test_gemm_transposes_what_is_in_blocks(block):
    w = RNG.normal(size=(7, 32)).astype("f")
    scale = constant((np.abs(w.reshape(7, 32 // block, block)).max(2) / 127).astype("f"))

    def build(x):
        rows = fake(x, None, axis=-1, block_size=32)
        return op.Gemm(rows, fake(constant(w), scale, axis=1, block_size=block), transB=1)

    graph, x = graph_of(build, (4, 32)), RNG.normal(size=(4, 32)).astype("f")
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-5, atol=1e-5)


def test_a_dynamic_range_gives_integers_as_well():
    graph = graph_of(lambda x: op.MatMul(fake(x, None, format="uint8"), quantized_weight((32, 6), 1)), (sym("n"), 32))
    x = RNG.normal(size=(4, 32)).astype("f")
    assert "preferred_element_type=int32" in hlo(graph, x)
    (want,) = backend("reference").run(graph, {"x0": x}).values()
    np.testing.assert_allclose(backend("xla").compile(graph)(x)[0], want, rtol=1e-5, atol=1e-5)
