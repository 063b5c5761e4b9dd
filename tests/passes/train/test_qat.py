"""Quantization-aware training: gradients of step sizes, what is trained, and what comes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import planish
from planish.backends.base import backend
from planish.ir import constant, edit, op, sym
from planish.ir.clone import clone_graph
from planish.ir.quantization import FAKE_QUANTIZE, fake_quantize, parse_format
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError
from planish.passes.quantize.targets import target_for
from planish.passes.train.engine import Problem, fit
from planish.passes.train.lsq import StepSizes, share_ranges, weight_rates
from planish.passes.train.options import Training
from planish.passes.train.qat import Qat

FakeQuantize = op.domain("planish").FakeQuantize
RNG = np.random.default_rng(3)


def quantizers(graph):
    return [node for node in graph.walk() if node.op == FAKE_QUANTIZE]


def scales(graph):
    return [node.given(1).const.numpy() for node in quantizers(graph)]


def run(pipeline, graph, samples, **options):
    """``graph`` after ``pipeline``, and what its last pass reports."""
    copy = clone_graph(graph)
    read = None if samples is None else lambda: iter(samples)
    ctx = Context(lambda: backend("onnxruntime"), samples=read, differentiate=planish.to_jax, **options)
    Pipeline.parse(pipeline).run(copy, ctx)
    assert [r.problem for r in ctx.results] == [""] * len(ctx.results)
    verify(copy)
    return copy, ctx.results[-1]


def outputs(graph, samples, engine="onnxruntime"):
    function = backend(engine).compile(graph)
    return np.concatenate([function(sample)["y"] for sample in samples])


def error(graph, other, samples):
    """The mean square of the difference of the outputs, over the variance of the first."""
    expected = outputs(graph, samples)
    return np.square(outputs(other, samples) - expected).mean() / expected.var()


# gradients


@pytest.mark.parametrize("name", ["int2", "uint2", "int3", "int8", "uint8"])
def test_the_gradient_of_a_scale_is_that_of_lsq(lab, name):
    """Esser et al. 2020, equation 3, for one scale per row, with a zero point."""
    form = parse_format(name)
    zero = RNG.integers(form.low, form.high + 1, 3)
    low, high = (form.low - zero)[:, None], (form.high - zero)[:, None]
    scale = RNG.uniform(0.1, 0.5, 3).astype("f")
    x = (RNG.uniform(low - 1.5, high + 1.5, (3, 40)) * scale[:, None]).astype("f")
    point = constant(zero.astype(form.storage.numpy), form.storage)
    graph = lab.build(lambda v: FakeQuantize(v, constant(scale, name="s"), point, format=name, axis=0), 3, 40)
    function = planish.to_jax(graph)
    loss = RNG.standard_normal((3, 40)).astype("f")
    (key,) = function.params
    of_scale, of_x = jax.grad(lambda s, v: (function({key: s}, v)[0] * loss).sum(), argnums=(0, 1))(scale, x)
    steps = x / scale[:, None]
    inside = (low <= steps) & (steps <= high)
    wanted = np.where(inside, np.rint(steps) - steps, np.clip(steps, low, high)) * loss
    np.testing.assert_allclose(of_scale, wanted.sum(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_x, np.where(inside, loss, 0), rtol=1e-6)


def test_a_learned_step_size_is_the_best_one(lab):
    """Only the scale of a fixed weight is trained: it ends where a search over scales finds the least error."""
    w = RNG.standard_normal(4000).astype("f")
    quantized = FakeQuantize(constant(w, name="w"), constant(np.float32(2.0)), format="int3")
    graph = lab.build(lambda x: op.Add(x, quantized), sym("n"), len(w))
    steps = StepSizes.of(graph)
    data = [{"x": np.zeros((1, len(w)), "f")}] * 8
    problem = steps.trained_along(Problem(graph, lambda o, b, e: {"e": jnp.square(o["y"] - w).mean()}, {}))
    ctx = lab.context(data)
    found = fit(problem, Training(steps=400, batch=1, rate=0.1, holdout=0), ctx)
    steps.settle(found)
    found.store()
    tried = np.linspace(0.2, 2, 500, dtype="f")
    form = parse_format("int3")
    best = min(tried, key=lambda s: np.square(fake_quantize(w, s, None, form) - w).mean())
    (scale,) = scales(graph)
    np.testing.assert_allclose(scale, best, rtol=0.03)


def test_scales_stay_positive_and_share_their_gradient_with_the_numbers_that_they_scale(lab):
    w = constant(RNG.standard_normal((64, 25)).astype("f"), name="w")
    graph = lab.build(
        lambda x: op.MatMul(x, FakeQuantize(w, constant(np.ones(25, "f")), format="int4", axis=1)), sym("n"), 64
    )
    steps = StepSizes.of(graph)
    ((name, unit),) = steps.units.items()
    assert unit == 1 / 8
    assert steps.counts[name] == 64
    far = steps.scales({name: jnp.full(25, -300.0)})[name]
    assert (far > 0).all()
    gradient = jax.grad(lambda logs: steps.scales({name: logs})[name].sum())(jnp.zeros(25))
    np.testing.assert_allclose(gradient, 1 / 8 / np.sqrt(64), rtol=1e-6)
    np.testing.assert_allclose(steps.scales({name: jnp.full(25, 8.0)})[name], np.e, rtol=1e-6)


# what is trained, and how fast


def pooled(step=0.1):
    """Quantized values on both sides of a MaxPool and a Relu."""

    def body(x):
        a = FakeQuantize(x, constant(np.float32(0.1)), constant(np.uint8(3)), format="uint8")
        pool = op.MaxPool(a, kernel_shape=[2, 2])
        b = FakeQuantize(pool, constant(np.float32(step)), constant(np.uint8(3)), format="uint8")
        return FakeQuantize(op.Relu(b), constant(np.float32(0.1)), constant(np.uint8(3)), format="uint8")

    return body


def test_quantizers_between_which_elements_are_picked_have_one_scale(lab):
    graph = lab.build(pooled(), sym("n"), 3, 8, 8)
    share_ranges(graph, target_for("onnxruntime"))
    a, b, c = (node.given(1) for node in quantizers(graph))
    assert a is b
    assert c is not b
    assert list(StepSizes.of(graph).values.values()) == [a, c]


def test_quantizers_of_other_grids_keep_their_own(lab):
    graph = lab.build(pooled(0.2), sym("n"), 3, 8, 8)
    share_ranges(graph, target_for("onnxruntime"))
    assert len(StepSizes.of(graph).values) == 3


def test_rates_are_steps_of_the_grid_or_relative_to_the_weights(lab):
    w, v, zeros = constant(np.full((4, 4), 3.0, "f")), constant(np.full((4, 4), 5.0, "f")), constant(np.zeros(4, "f"))
    quantized = FakeQuantize(w, constant(np.array([0.1, 0.3, 0.1, 0.3], "f")), format="int4", axis=1)
    lab.build(lambda x: op.MatMul(op.MatMul(x, quantized), v) + zeros, sym("n"), 4)
    found = weight_rates({"w": w, "v": v, "zeros": zeros})
    assert found == pytest.approx({"w": 0.2, "v": 2.5, "zeros": 2.0})


# the pass


@pytest.fixture(scope="module")
def network(lab):
    """A small network, and rows for it."""
    graph = lab.mlp(32)
    return graph, [{"x": part} for part in np.split(lab.rows(256, 8), 4)]


FAST = "steps=150,mix=false,loss=mse"


@pytest.fixture(scope="module")
def two_bits(network):
    """The network in two bits, trained, and the record of the pass."""
    return run(f"qat{{bits=2,{FAST}}}", *network)


def test_two_bits_compute_what_the_original_does(network, two_bits):
    graph, samples = network
    rounded, _ = run("quantize{bits=2}", graph, samples)
    trained, record = two_bits
    assert error(graph, trained, samples) < 0.4 * error(graph, rounded, samples)
    assert [n.op for n in trained.walk()] == [n.op for n in rounded.walk()]
    assert [n.attrs["format"] for n in quantizers(trained)] == [n.attrs["format"] for n in quantizers(rounded)]
    assert record.fired["trained step sizes"] == len(scales(trained)) == 4
    for before, after in zip(scales(rounded), scales(trained), strict=True):
        assert (after > 0).all()
        assert (after != before).mean() > 0.8  # units that are never active have no gradient


def test_runtimes_agree_on_the_trained_graph(network, two_bits):
    (_, samples), (trained, _) = network, two_bits
    expected = outputs(trained, samples, "reference")
    for engine in ("onnxruntime", "xla"):
        assert (
            np.abs(outputs(trained, samples, engine) - expected).max() < 0.05 * expected.std()
        )  # ties, some steps of 8 bits


def test_a_quantized_graph_is_trained_as_it_is(network):
    graph, samples = network
    rounded, _ = run("quantize{bits=3,per_channel=false}", graph, samples)
    trained, record = run(f"qat{{bits=2,{FAST}}}", rounded, samples, original=graph)
    assert [n.attrs["format"] for n in quantizers(trained)] == ["uint8", "int3"] * 2
    assert [s.shape for s in scales(trained)] == [()] * 4
    assert error(graph, trained, samples) < 0.85 * error(graph, rounded, samples)
    assert "the graph is quantized already and trained as it is: bits not applied" in record.notes


def test_layers_that_are_skipped_stay_as_they_were(network):
    graph, samples = network
    graph = clone_graph(graph)
    last = graph.outputs[0].producer
    last.name = "last"
    trained, _ = run(f"qat{{bits=2,skip=[last],{FAST}}}", graph, samples)
    (after,) = [n for n in trained.nodes if n.name == "last"]
    assert len(quantizers(trained)) == 2
    np.testing.assert_array_equal(after.given(1).const.numpy(), last.given(1).const.numpy())


@pytest.mark.parametrize(
    ("options", "formats"),
    [
        ("activations=float,block=4,symmetric=false", ["uint2"] * 2),
        ("activations=dynamic", ["uint8", "int2"] * 2),
    ],
)
def test_activations_need_no_ranges(network, options, formats):
    graph, samples = network
    rounded, _ = run(f"quantize{{bits=2,{options}}}", graph, samples)
    trained, _ = run(f"qat{{bits=2,{options},{FAST}}}", graph, samples)
    assert [n.attrs["format"] for n in quantizers(trained)] == formats
    assert error(graph, trained, samples) < 0.6 * error(graph, rounded, samples)


def test_zeros_stay_zeros(network):
    graph, samples = network
    pruned = clone_graph(graph)
    for node in pruned.nodes:
        if node.op == "Gemm":
            array = node.given(1).const.numpy().copy()
            array[::2] = 0
            edit.set_operand(node, 1, constant(array))
    trained, _ = run(f"qat{{bits=3,{FAST}}}", pruned, samples)
    for node in quantizers(trained)[1::2]:
        assert (node.given(0).const.numpy()[::2] == 0).all()
        assert (node.given(0).const.numpy()[1::2] != 0).mean() > 0.9


# requests that make no sense


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_are_two_to_eight(bits):
    with pytest.raises(ValueError, match="2 to 8"):
        Qat(bits=bits)


def test_without_samples_there_is_nothing_to_learn_from(network):
    with pytest.raises(RequestError, match="qat needs samples"):
        run("qat", network[0], None)


def test_a_graph_without_layers_cannot_be_quantized(lab):
    with pytest.raises(RequestError, match="nothing to quantize"):
        run("qat", lab.build(op.Relu, sym("n"), 4), [{"x": lab.rows(64, 4)}])


def test_a_loss_that_is_not_finite_ends_the_run(network):
    graph, samples = network
    with pytest.raises(RequestError, match=r"the loss is .* at step .*lower rate"):
        run("qat{rate=1e30,clip=0.0,steps=20}", graph, samples)
