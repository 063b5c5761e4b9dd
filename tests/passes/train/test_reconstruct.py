"""Reconstruction: where blocks begin and end, and that each computes again what it did."""

import numpy as np
import pytest

import planish
from planish.backends.base import backend
from planish.ir import constant, edit, op, sym
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError
from planish.passes.train.reconstruct import Reconstruct, blocks_of
from planish.passes.train.trainable import trainable_weights


def chain(lab, count=3, residual=False):
    """Linear layers with biases and Relu between them; to the last may be added what the first makes."""
    w = lab.weights(1)

    def body(x):
        h, first = x, None
        for i in range(count):
            h = op.MatMul(h, w(6, 6, name=f"w{i}"))
            h.name = f"m{i}"
            h = op.Add(h, w(6, fan=1, name=f"b{i}"))
            h.name = f"a{i}"
            first = first if first is not None else h
            h = op.Relu(h) if i + 1 < count else h
        return op.Add(h, first) if residual else h

    return lab.build(body, sym("n"), 6)


def blocks(graph, layers=1, **options):
    found = blocks_of(clone_graph(graph), graph, trainable_weights(graph, **options), layers)
    return [(list(b.weights), [n.op for n in b.nodes]) for b in found]


def with_noise(graph, size, names=None):
    """A copy with other weights: each moved by a share of its size."""
    copy, rng = clone_graph(graph), np.random.default_rng(9)
    for value in copy.constants():
        if value.rank and (names is None or value.name in names):
            array = value.const.numpy()
            noise = size * array.std() * rng.standard_normal(array.shape)
            edit.replace(value, constant((array + noise).astype("f"), name=value.name))
    return copy


def run(pipeline, graph, samples, original=None):
    copy = clone_graph(graph)
    read = samples if callable(samples) or samples is None else lambda: iter(samples)
    ctx = Context(lambda: backend("onnxruntime"), samples=read, differentiate=planish.to_jax, original=original)
    Pipeline.parse(pipeline).run(copy, ctx)
    assert [r.problem for r in ctx.results] == [""] * len(ctx.results)
    verify(copy)
    return copy, ctx.results[-1]


def error(graph, other, samples):
    """The mean square of the difference of the outputs, over the variance of the first."""
    engine = backend("reference")
    pairs = [(engine.run(graph, s)["y"], engine.run(other, s)["y"]) for s in samples]
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return np.square(a - b).mean() / a.var()


# where blocks are


def test_a_block_is_a_layer_with_its_bias_and_activation(lab):
    assert blocks(chain(lab)) == [
        (["w0", "b0"], ["MatMul", "Add", "Relu"]),
        (["w1", "b1"], ["MatMul", "Add", "Relu"]),
        (["w2", "b2"], ["MatMul", "Add"]),
    ]


def test_blocks_may_have_several_layers(lab):
    assert blocks(chain(lab), 2) == [
        (["w0", "b0", "w1", "b1"], ["MatMul", "Add", "Relu"] * 2),
        (["w2", "b2"], ["MatMul", "Add"]),
    ]
    assert blocks(chain(lab), 9) == [
        (["w0", "b0", "w1", "b1", "w2", "b2"], ["MatMul", "Add", "Relu"] * 2 + ["MatMul", "Add"])
    ]


def test_what_several_blocks_read_is_trained_in_the_first(lab):
    """The first sum is read by a Relu and by the last addition: so it is where the first block ends."""
    found = blocks(chain(lab, residual=True))
    assert [weights for weights, _ in found] == [["w0", "b0"], ["w1", "b1"], ["w2", "b2"]]
    assert found[1][1] == ["Relu", "MatMul", "Add", "Relu"]
    assert found[2][1] == ["MatMul", "Add"]


def test_blocks_hold_only_weights_that_may_be_trained(lab):
    assert [weights for weights, _ in blocks(chain(lab), skip=["w1", "b*"])] == [["w0"], ["w2"]]


def test_values_of_other_types_end_no_block(lab):
    narrow = lab.mlp(6)
    graph = lab.mlp(16)
    (block,) = blocks_of(graph, narrow, trainable_weights(narrow))
    assert block.weights == ("w1", "b1", "w2", "b2")
    assert block.end is narrow.outputs[0]


# what becomes of them


def test_damaged_layers_recover(lab):
    graph, data = chain(lab), [{"x": part} for part in np.split(lab.rows(512, 6), 4)]
    damaged = with_noise(graph, 0.3)
    before = error(graph, damaged, data)
    recovered, record = run("reconstruct{steps=250,rate=0.05}", damaged, data, graph)
    assert before > 0.1
    assert error(graph, recovered, data) < 0.1 * before
    assert record.fired["reconstructed blocks"] == 3
    for row in record.table:
        assert row["error after"] < 0.2 * row["error before"]


def test_a_block_makes_up_for_what_came_before_it(lab):
    """The first layer is damaged, and is not trained: the second sees what it gives, and computes the original's."""
    graph, data = chain(lab, 2), [{"x": lab.rows(512, 6)}]
    damaged = with_noise(graph, 0.2, ["w0"])
    recovered, record = run("reconstruct{skip=[w0,b0],steps=200}", damaged, data, graph)
    assert error(graph, recovered, data) < 0.8 * error(graph, damaged, data)
    assert [row["weights"] for row in record.table] == [2]
    before, after = lab.constants(damaged), lab.constants(recovered)
    np.testing.assert_array_equal(after["w0"], before["w0"])
    assert (after["w1"] != before["w1"]).all()


def test_zeros_stay_and_the_others_make_up_for_them(lab):
    graph, data = chain(lab), [{"x": lab.rows(512, 6)}]
    pruned = clone_graph(graph)
    for value in pruned.constants():
        if value.rank == 2:
            array = value.const.numpy().copy()
            array[np.abs(array) < np.median(np.abs(array))] = 0
            edit.replace(value, constant(array, name=value.name))
    recovered, _ = run("reconstruct{steps=200}", pruned, data, graph)
    assert error(graph, recovered, data) < 0.8 * error(graph, pruned, data)
    for name, array in lab.constants(pruned).items():
        if array.ndim == 2:
            np.testing.assert_array_equal(lab.constants(recovered)[name] == 0, array == 0)


def test_quantized_blocks_learn_their_step_sizes(lab):
    """Inputs are correlated, or rounding to nearest would be the best that there is."""
    graph, data = chain(lab, 2), [{"x": np.cumsum(lab.rows(512, 6), axis=1)}]
    rounded, _ = run("default,quantize{bits=2}", graph, data)
    recovered, record = run("reconstruct{steps=200}", rounded, data, graph)
    assert error(graph, recovered, data) < 0.85 * error(graph, rounded, data)
    assert [n.op for n in recovered.walk()] == [n.op for n in rounded.walk()]
    assert [row["block"] for row in record.table] == ["a0", "y"]


def test_no_more_data_are_read_than_asked_for(lab):
    graph, read = chain(lab, 1), []

    def samples():
        for i in range(100):
            read.append(i)
            yield {"x": lab.rows(16, 6, i)}

    run("reconstruct{steps=2,rows=64,batch=8}", with_noise(graph, 0.1), samples, graph)
    assert max(read) == 3


def test_a_block_that_training_does_not_improve_stays_as_it_was(lab):
    graph, data = chain(lab, 2), [{"x": lab.rows(512, 6)}]
    same, record = run("reconstruct{steps=5,rate=1.0}", graph, data, graph)
    assert "2 of 2 blocks stay as they were: training made nothing better" in record.notes
    for name, array in lab.constants(graph).items():
        np.testing.assert_array_equal(lab.constants(same)[name], array)


# requests that make no sense


@pytest.mark.parametrize("option", ["layers", "rows", "steps"])
def test_counts_are_positive(option):
    with pytest.raises(ValueError, match=f"{option} is 0: it takes at least 1"):
        Reconstruct(**{option: 0})


def test_samples_are_needed(lab):
    graph = chain(lab, 1)
    with pytest.raises(RequestError, match="reconstruct needs samples"):
        run("reconstruct", graph, None, graph)


def test_weights_are_needed(lab):
    graph = lab.build(op.Relu, sym("n"), 4)
    with pytest.raises(RequestError, match="nothing to train"):
        run("reconstruct", graph, [{"x": lab.rows(64, 4)}], graph)


def test_data_that_are_not_finite_end_the_run(lab):
    graph = chain(lab, 1)
    with pytest.raises(RequestError, match="the loss is nan"):
        run("reconstruct", with_noise(graph, 0.1), [{"x": np.full((512, 6), np.nan, "f")}], graph)
