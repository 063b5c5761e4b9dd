"""Ahead-of-time compilation for TPUs on a host without one, and what the compiler says."""

import jax
import numpy as np
import onnx.parser
import pytest
from jax.sharding import PartitionSpec as P

import planish
from planish.backends import backend
from planish.backends.xla.function import to_jax
from planish.backends.xla.plan import Plan
from planish.backends.xla.sharding import parse_mesh, shard
from planish.backends.xla.tpu import _refusal, compile_tpu
from planish.ir.errors import PlanishError

RNG = np.random.default_rng(3)
D, H = 256, 512
WEIGHTS = {
    name: (RNG.normal(size=shape) / 16).astype("f")
    for name, shape in {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "up": (D, H), "down": (H, D)}.items()
}
BLOCK = """block (float[batch, 128, 256] x, float[256, 256] q, float[256, 256] k, float[256, 256] v, float[256, 256] o,
  float[256, 512] up, float[512, 256] down, float[256] scale) => (float[batch, 128, 256] y) {
  n = LayerNormalization (x, scale)
  qs = MatMul (n, q)
  ks = MatMul (n, k)
  vs = MatMul (n, v)
  a = Attention <q_num_heads = 4, kv_num_heads = 4> (qs, ks, vs)
  p = MatMul (a, o)
  r = Add (x, p)
  m = LayerNormalization (r, scale)
  h = MatMul (m, up)
  g = Gelu (h)
  d = MatMul (g, down)
  y = Add (r, d)
}"""


def model_of(text, **weights):
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": 23]> {text}')
    for value in [v for v in model.graph.input if v.name in weights]:
        model.graph.input.remove(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights[value.name], value.name))
    graph = planish.load(model)
    for node in graph.nodes:
        node.name = node.result.name
    return graph


@pytest.fixture(scope="module")
def block():
    return model_of(BLOCK, scale=np.ones(D, "f"), **WEIGHTS)


def test_a_program_for_one_chip_is_reported(block):
    function = to_jax(block)
    compiled, report = compile_tpu(function, "v5e", sizes={"batch": 4})
    products = 4 * 128 * (4 * D * D + 2 * D * H) * 2
    attention = 4 * 2 * 2 * 128 * 128 * D
    assert 1.0 <= report.flops / products <= 1.1 * (products + attention) / products
    weights = sum(w.nbytes for w in WEIGHTS.values())
    assert weights < report.bytes
    assert weights < report.peak < report.memory
    assert report.fits
    assert set(report.float_products) >= {"qs", "ks", "vs", "p", "h", "d"}
    assert report.integer_products == report.collectives == {}
    assert "v5e, 1 chip" in str(report)
    assert "f32[256,512]" in compiled.as_text()


def test_regions_are_split_over_chips_with_one_sum_each(block):
    function = to_jax(block)
    _, whole = compile_tpu(function, "v5e:2x2", sizes={"batch": 4}, mesh="data=4")
    _, split = compile_tpu(function, "v5e:2x2", sizes={"batch": 4}, mesh="model=4")
    assert split.mesh == {"data": 1, "model": 4}
    assert split.regions == 2
    assert split.collectives == {"all-reduce": 2}
    assert whole.collectives == {}
    assert split.peak < whole.peak


def test_weights_are_split_by_columns_and_then_by_rows(block):
    found = shard(Plan(to_jax(block).plan.graph), {"data": 1, "model": 4})
    columns, rows = P(None, "model"), P("model")
    assert {n: found.params[n] for n in WEIGHTS} == {
        **dict.fromkeys(("q", "k", "v", "up"), columns),
        **dict.fromkeys(("o", "down"), rows),
    }
    assert found.params["scale"] == P()


def test_a_split_model_computes_the_same(block):
    """On four devices that are this CPU: what XLA makes of the sharding is run, in a process that has them."""
    import subprocess
    import sys

    code = f"""
import os
os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4")
import sys; sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding
from test_xla_tpu import BLOCK, D, WEIGHTS, model_of
from planish.backends.xla.function import to_jax
from planish.backends.xla.sharding import shard
function = to_jax(model_of(BLOCK, scale=np.ones(D, "f"), **WEIGHTS))
x = np.random.default_rng(0).normal(size=(4, 128, D)).astype("f")
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
found = shard(function.plan, dict(data=2, model=2))
place = lambda value, spec: jax.device_put(value, NamedSharding(mesh, spec))
params = {{n: place(p, found.params[n]) for n, p in function.params.items()}}
(split,) = jax.jit(function)(params, place(x, found.inputs[0]))
(whole,) = jax.jit(function)(function.params, x)
assert len(params["up"].sharding.device_set) == 4
print(float(np.abs(np.asarray(split) - np.asarray(whole)).max()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1e-4


@pytest.mark.parametrize(
    ("text", "chips", "wanted"),
    [
        ("", 1, {"data": 1, "model": 1}),
        ("", 4, {"data": 4, "model": 1}),
        ("model=4", 4, {"data": 1, "model": 4}),
        ("model=2", 8, {"data": 4, "model": 2}),
        ("data=2", 8, {"data": 2, "model": 4}),
        ("data=2, model=2", 4, {"data": 2, "model": 2}),
    ],
)
def test_a_mesh_is_read(text, chips, wanted):
    assert parse_mesh(text, chips) == wanted


@pytest.mark.parametrize("text", ["model=3", "data=2,model=4", "pipeline=4", "model=0", "model", "model=2,model=2"])
def test_a_mesh_that_does_not_fit_is_refused(text):
    with pytest.raises(PlanishError, match="mesh"):
        parse_mesh(text, 4)


@pytest.fixture(scope="module")
def quantized(block):
    from planish.backends.xla.executable import for_inference

    result = planish.optimize(block, "int8", target="xla", data=[{"x": sample()}], measure=False)
    assert result.report.ok
    return for_inference(result.graph)


def sample():
    return RNG.normal(size=(2, 128, D)).astype("f")


def test_every_quantized_product_multiplies_int8(quantized):
    compiled, report = compile_tpu(quantized, "v5e", sizes={"batch": 2})
    assert set(report.integer_products) >= {"qs", "ks", "vs", "p", "h", "d"}
    assert not set(report.float_products) & {"qs", "ks", "vs", "p", "h", "d"}
    assert "s8[256,512]" in compiled.as_text()


def test_sizes_must_be_given(block):
    with pytest.raises(PlanishError, match="a TPU program has fixed sizes: give batch=N"):
        compile_tpu(to_jax(block), "v5e")


@pytest.mark.parametrize("variant", ["", "v1", "v5e:0x0", "v5e:1x1x1x1"])
def test_unknown_chips_are_refused(block, variant):
    with pytest.raises(PlanishError, match=r"no TPU|tpu:v5e"):
        compile_tpu(to_jax(block), variant, sizes={"batch": 1})


def test_a_batch_that_the_chips_do_not_divide_is_refused(block):
    with pytest.raises(PlanishError, match="tpu:v5e:2x2: ") as caught:
        compile_tpu(to_jax(block), "v5e:2x2", sizes={"batch": 3}, mesh="data=4")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_said_in_a_line():
    graph = model_of("g (float[n, 65536] x) => (float[n, 65536] y) { y = Exp (x) }")
    with pytest.raises(PlanishError, match=r"tpu:v5e: does not fit: it needs [\d.]+G of memory, and a chip has 15.75G"):
        compile_tpu(to_jax(graph), "v5e", sizes={"n": 1 << 20})
    assert _refusal("INTERNAL:\n something else") == "INTERNAL: something else"


def test_times_come_from_the_compiler_where_the_target_is_elsewhere(block):
    program = backend("tpu:v5e").compile(block)
    inputs = {"x": sample()}
    seconds = program.estimate(inputs)
    _, report = compile_tpu(program.function, "v5e", sizes={"batch": 2})
    assert seconds == report.seconds == max(report.flops / 197e12, report.bytes / 819e9)
    np.testing.assert_allclose(program(inputs)["y"], backend("reference").run(block, inputs)["y"], atol=1e-4)


def test_other_jax_programs_still_run_here_afterwards(block):
    compile_tpu(to_jax(block), "v5e", sizes={"batch": 1})
    assert jax.devices()[0].platform == "cpu"
    assert float(jax.jit(lambda x: x + 1)(1.0)) == 2.0
