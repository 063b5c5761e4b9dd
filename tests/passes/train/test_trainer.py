"""The trainer: its numbers against PyTorch's, what it keeps, what it refuses."""

import numpy as np
import pytest
import torch

import planish
from planish.ir import DType, Graph, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline
from planish.passes.base import RequestError
from planish.passes.train.engine import Problem, fit
from planish.passes.train.optimizers import rate_at
from planish.passes.train.options import Training
from planish.passes.train.trainable import trainable_weights

PLAIN = {"schedule": "constant", "warmup": 0.0, "clip": 0.0, "holdout": 0.0}


def task(lab, count=16, seed=1):
    """Rows, and what another linear layer makes of them."""
    x = lab.rows(count, 3, seed)
    return [{"x": x, "t": lab.run(lab.linear(seed=9), x=x)["y"]}]


def by_torch(lab, data, make, steps, share=1.0):
    """The weights of the linear layer after ``steps`` full batches."""
    start = lab.constants(lab.linear())
    w, b = (torch.tensor(start[name], requires_grad=True) for name in ("w", "b"))
    optimizer = make([w, b])
    x, t = (torch.from_numpy(data[0][name]) for name in ("x", "t"))
    for _ in range(steps):
        optimizer.zero_grad()
        (((x @ w + b - t) ** 2).mean() / 2 * share).backward()
        optimizer.step()
    return {"w": w.detach().numpy(), "b": b.detach().numpy()}


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "weight_decay": 0.1}, {"params": p[1:], "weight_decay": 0}], lr=0.01
    ),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_are_those_of_pytorch(lab, optimizer):
    data = task(lab)
    options = {"optimizer": optimizer, "weight_decay": 0.1 if optimizer == "adamw" else 0.0}
    _, graph = lab.trained(lab.linear(), data, batch=16, steps=15, rate=0.01, **PLAIN, **options)
    want = by_torch(lab, data, OPTIMIZERS[optimizer], 15)
    for name, value in lab.constants(graph).items():
        np.testing.assert_allclose(value, want[name], atol=2e-6)


def test_lion_moves_by_signs(lab):
    data = task(lab)
    _, graph = lab.trained(lab.linear(), data, batch=16, steps=1, rate=0.01, optimizer="lion", **PLAIN)
    before, after = lab.constants(lab.linear()), lab.constants(graph)
    x, t = data[0]["x"], data[0]["t"]
    gradient = x.T @ (x @ before["w"] + before["b"] - t)
    np.testing.assert_allclose(after["w"] - before["w"], -0.01 * np.sign(gradient), atol=1e-6)


def test_accumulated_batches_are_one_large_one(lab):
    data = task(lab, 32)
    whole, parts = (
        lab.constants(lab.trained(lab.linear(), data, batch=batch, accumulate=32 // batch, steps=10, **PLAIN)[1])
        for batch in (32, 8)
    )
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, atol=1e-6)


def test_the_gradient_is_clipped_to_a_norm(lab):
    data = task(lab)
    options = {**PLAIN, "clip": 1e-3}
    _, graph = lab.trained(lab.linear(), data, batch=16, steps=1, rate=1.0, optimizer="sgd", **options)
    before, after = lab.constants(lab.linear()), lab.constants(graph)
    moved = np.sqrt(sum(np.square(after[n] - before[n]).sum() for n in before))
    np.testing.assert_allclose(moved, 1.9e-3, rtol=1e-4)  # Nesterov: the first step is 1 + 0.9 times the gradient


def test_rates_rise_and_fall():
    training = Training(warmup=0.2)
    rates = [rate_at(i, 10, training, 1.0) for i in range(10)]
    np.testing.assert_allclose(rates[:3], [0.5, 1.0, 1.0])
    np.testing.assert_allclose(rates[2:], (1 + np.cos(np.pi * np.arange(8) / 8)) / 2)
    slope = [rate_at(i, 10, Training(warmup=0.0, schedule="linear"), 2.0) for i in range(10)]
    np.testing.assert_allclose(slope, np.linspace(2.0, 0.2, 10))


def test_a_rate_is_found_that_learns_better_than_rates_far_from_it(lab):
    data = task(lab, 64)
    found, _ = lab.trained(lab.linear(), data, batch=16, steps=200, rate=0.0, holdout=0.0)
    assert found.rate in (0.01, 0.03)
    for rate in (1e-5, 1e-3):
        other, _ = lab.trained(lab.linear(), data, batch=16, steps=200, rate=rate, holdout=0.0)
        assert found.curve[-1]["loss"] < other.curve[-1]["loss"] / 5


def test_the_same_seed_gives_the_same_bits_and_another_does_not(lab):
    data = task(lab, 64)
    first, again, other = (lab.constants(lab.trained(lab.linear(), data, seed=seed)[1]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["w"], again["w"])
    assert not np.array_equal(first["w"], other["w"])


def test_zeros_stay_zero_and_only_in_matrices(lab):
    graph = lab.mlp()
    masks = {}
    for value in graph.constants():
        array = value.const.numpy() * (np.random.default_rng(3).random(value.const.shape) < 0.5)
        masks[value.name] = array != 0
        edit.replace(value, constant(array, name=value.name))
    data = [{"x": lab.rows(32, 8), "t": lab.rows(32, 4, 1)}]
    kept, freed = (lab.constants(lab.trained(graph, data, keep_zeros=keep)[1]) for keep in (True, False))
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(kept[name] != 0, masks[name])
        assert (freed[name] != 0).mean() > 0.9
    assert (kept["b1"] != 0).mean() > 0.9


def test_only_and_skip_choose_weights_by_name_node_and_operator(lab):
    graph = lab.mlp()
    data = [{"x": lab.rows(32, 8), "t": lab.rows(32, 4, 1)}]
    before = lab.constants(graph)
    for options, moved in (
        ({"only": ("w1",)}, {"w1"}),
        ({"skip": ("w*",)}, {"b1", "b2"}),
        ({"only": ("Gemm",), "skip": ("b2",)}, {"w1", "w2", "b1"}),
    ):
        after = lab.constants(lab.trained(graph, data, **options)[1])
        assert {n for n in before if not np.array_equal(before[n], after[n])} == moved
    with pytest.raises(RequestError, match="no layer matches 'nothing'"):
        lab.trained(graph, data, only=("nothing",))
    with pytest.raises(RequestError, match="every weight is left out"):
        lab.trained(graph, data, skip=("*",))


def test_the_best_on_held_out_rows_is_kept_and_patience_ends_training(lab):
    rng = np.random.default_rng(0)
    data = [{"x": lab.rows(40, 8), "t": rng.standard_normal((40, 4)).astype(np.float32)}]  # nothing to learn
    ctx = lab.context(data)
    found, _ = lab.trained(lab.mlp(64), data, ctx=ctx, steps=400, holdout=0.5, rate=0.03, schedule="constant")
    losses = [row["held out"] for row in found.curve]
    assert found.loss == min(losses) < losses[-1]
    assert found.best == found.curve[int(np.argmin(losses))]["step"] < 400
    stopped, _ = lab.trained(lab.mlp(64), data, steps=400, holdout=0.5, rate=0.03, schedule="constant", patience=3)
    assert stopped.steps == stopped.best + 3 * 20
    assert stopped.best == found.best
    np.testing.assert_array_equal(stopped.weights["w1"], found.weights["w1"])


def test_a_model_that_cannot_get_better_stays_as_it_was_and_says_so(lab):
    x = lab.rows(40, 3)
    data = [{"x": x, "t": lab.run(lab.linear(), x=x)["y"]}]
    ctx = lab.context(data)
    found, graph = lab.trained(lab.linear(), data, ctx=ctx, holdout=0.2)
    assert found.best == 0
    np.testing.assert_array_equal(lab.constants(graph)["w"], lab.constants(lab.linear())["w"])
    assert any("nothing better" in note for note in ctx.results[-1].notes)


def test_the_table_is_a_short_curve_that_falls(lab):
    data = task(lab, 64)
    ctx = lab.context(data)
    said = []
    ctx.progress = said.append
    lab.trained(lab.linear(), data, ctx=ctx, steps=400, holdout=0.2, rate=0.02)
    table = ctx.results[-1].table
    assert [row["step"] for row in table] == [0, 40, 80, 140, 180, 220, 260, 320, 360, 400]
    assert table[-1]["loss"] < 0.01 * table[1]["loss"]
    assert table[-1]["held out"] < 0.01 * table[0]["held out"]
    assert ctx.results[-1].fired["trained weights"] == 2
    assert "training: compiling" in said


def test_bfloat16_computes_shortly_and_keeps_float32_weights(lab):
    data = [{"x": lab.rows(64, 8), "t": lab.run(lab.mlp(seed=5), x=lab.rows(64, 8))["y"]}]
    (full, _), (short, graph) = (
        lab.trained(lab.mlp(), data, steps=100, holdout=0.0, precision=p) for p in ("float32", "bfloat16")
    )
    assert 0 < abs(short.curve[1]["loss"] - full.curve[1]["loss"]) < 0.02 * full.curve[1]["loss"]
    assert abs(short.curve[-1]["loss"] - full.curve[-1]["loss"]) < 0.1 * full.curve[-1]["loss"]
    assert {v.dtype for v in graph.constants()} == {DType.FLOAT}
    assert short.weights["w1"].dtype == np.float32


def test_half_precision_weights_come_back_in_their_type(lab):
    graph = Graph("g", opsets={"": 21})
    x = graph.add_input(tensor_type(DType.FLOAT16, sym("n"), 3), "x")
    y = op.MatMul(x, constant(np.ones((3, 2), np.float16), name="w"))
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    data = [{"x": lab.rows(16, 3).astype(np.float16), "t": np.zeros((16, 2), np.float32)}]
    _, found = lab.trained(graph, data)
    (value,) = found.constants()
    assert value.dtype is DType.FLOAT16
    assert (value.const.numpy() < 1).all()


def test_losses_that_are_no_numbers_end_training_and_leave_the_graph(lab):
    graph = clone_graph(lab.mlp())
    before = lab.constants(graph)
    data = [{"x": lab.rows(32, 8), "t": np.full((32, 4), np.nan, np.float32)}]
    with pytest.raises(RequestError, match=r"the loss is nan at step 0 of 20: look at"):
        fit(
            Problem(graph, lab.square("t"), trainable_weights(graph), labels=["t"]),
            Training(steps=20, rate=0.1),
            lab.context(data),
        )
    data[0]["t"] = lab.rows(32, 4)
    with pytest.raises(RequestError, match=r"the loss is (nan|inf) at step [1-9]\d* of 60: try a lower rate than 1e"):
        lab.trained(graph, data, steps=60, rate=1e20, clip=0.0, optimizer="sgd")
    with pytest.raises(RequestError, match=r"the loss is (nan|inf) at step 1 of 1: try a lower rate"):
        lab.trained(graph, data, steps=1, rate=3e38, clip=0.0, optimizer="sgd", warmup=0.0, holdout=0.0)
    for name, value in lab.constants(graph).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill{steps=0}", "steps is 0: it takes at least 1"),
        ("distill{holdout=1.0}", "holdout is 1: a share from 0 to below 1"),
        ("distill{rate=-1}", "rate is -1"),
        ("distill{optimizer=adam,weight_decay=0.1}", "adam has no weight decay"),
        ("distill{patience=2,holdout=0.0}", "patience needs held-out rows"),
        ("distill{precision=float16}", "precision takes one of float32, bfloat16"),
    ],
)
def test_options_out_of_range_are_refused_where_they_stand(text, message):
    with pytest.raises(planish.ir.errors.PlanishError, match=message):
        Pipeline.parse(text)


def test_training_needs_samples_and_gradients(lab):
    graph = lab.linear()
    problem = Problem(graph, lab.square("t"), trainable_weights(graph), labels=["t"])
    with pytest.raises(RequestError, match="training needs samples: give data"):
        fit(problem, Training(), Context())
    with pytest.raises(RequestError, match="needs gradients"):
        fit(problem, Training(batch=4), Context(samples=lambda: task(lab)))


# which constants are weights


def test_weights_are_found_by_what_is_done_with_them(lab):
    w = lab.weights()
    ones = np.ones(8, np.float32)

    def body(x):
        x = (x - constant(np.full((1, 3, 1, 1), 0.5, np.float32), name="mean")) / constant(
            np.array([[[0.2]], [[0.3]], [[0.4]]], np.float32), name="deviation"
        )
        h = op.Conv(x, w(8, 3, 3, 3, fan=27, name="kernel"), w(8, fan=1, name="bias"), pads=[1, 1, 1, 1])
        h = op.BatchNormalization(h, *(constant(ones * 1.5, name=n) for n in ("scale", "shift", "running", "spread")))
        h = op.PRelu(h, w(8, 1, 1, fan=1, name="slope"))
        h = h * constant(np.float32(0.125), name="number") * constant(np.full(1, 3.0, np.float32), name="factor")
        h = h * w(1, 8, 1, 1, fan=1, name="per channel")
        h = op.Reshape(h, [0, 8, -1])
        h = op.Transpose(h, perm=[0, 2, 1]) + w(1, 16, 8, fan=1, name="positions")
        h = op.LayerNormalization(h, w(8, fan=1, name="gamma"), w(8, fan=1, name="beta"))
        scores = op.MatMul(h, op.Transpose(h, perm=[0, 2, 1]))
        scores = scores + constant(np.triu(np.full((16, 16), -1e9, np.float32), 1), name="causal")
        scores = scores + constant(np.eye(16, dtype=np.float32) * -100, name="window")
        scores = scores + w(1, 16, 16, fan=1, name="relative")
        return op.MatMul(op.Softmax(scores), op.MatMul(h, w(8, 8, name="values")))

    graph = lab.build(body, sym("n"), 3, 4, 4)
    verify(graph)
    assert set(trainable_weights(graph)) == {
        *(
            "kernel",
            "bias",
            "scale",
            "shift",
            "slope",
            "per channel",
            "positions",
            "gamma",
            "beta",
            "relative",
            "values",
        )
    }


def test_angles_and_tables_of_sines_are_no_weights_and_token_tables_are(lab):
    w = lab.weights()
    turns = np.outer(np.arange(12), 1 / 100 ** (np.arange(4) / 4)).astype(np.float32)

    def body(ids):
        h = op.Gather(w(50, 4, name="table"), ids)
        where = op.Cast(op.CumSum(op.Cast(op.Greater(ids, np.int64(-1)), to=7), np.int64(1)), to=1)
        angles = op.Unsqueeze(where, [2]) * constant(np.float32([1, 0.5, 0.2, 0.1]), name="by product")
        angles = angles + op.MatMul(
            op.Unsqueeze(where, [2]), constant(np.float32([[1, 0.5, 0.2, 0.1]]), name="by matrix")
        )
        h = h * op.Cos(angles) + h * op.Sin(angles)
        places = op.Cast(where, to=7)
        h = h * op.Gather(constant(np.cos(turns), name="cosines"), places)
        h = h + h * op.Gather(constant(np.sin(turns), name="sines"), places)
        return op.MatMul(h, w(4, 4, name="head"))

    graph = lab.build(body, sym("n"), 6, kind="ids")
    assert set(trainable_weights(graph)) == {"table", "head"}


def test_a_table_and_its_transpose_stay_one_tensor(lab):
    """After constant folding, a table that is the last layer, too, is read as it is and as a lazy transpose."""
    w = lab.weights()
    table = w(500, 600, name="table")
    again = constant(table.const, name="head")

    def body(ids):
        return op.MatMul(op.Tanh(op.Gather(table, ids)), op.Transpose(again, perm=[1, 0]))

    graph = lab.build(body, sym("n"), 2, kind="ids")
    Pipeline("simplify").run(graph, Context())
    assert len({v.const for v in graph.constants() if v.dtype is DType.FLOAT}) == 2
    assert list(trainable_weights(graph)) == ["table"]
    data = [{"x": np.arange(64).reshape(32, 2), "t": np.zeros((32, 2, 500), np.float32)}]
    _, found = lab.trained(graph, data, steps=3)
    verify(found)
    a, b = (v.const.numpy() for v in found.constants() if v.dtype is DType.FLOAT)
    np.testing.assert_array_equal(a, b.T)
    assert not np.array_equal(a if a.shape == (500, 600) else b, table.const.numpy())
    before, after = (np.abs(lab.run(g, x=data[0]["x"])["y"]).mean() for g in (graph, found))
    assert after < before


def test_constants_with_one_tensor_are_trained_as_one(lab):
    shared = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    tensor = constant(shared).const
    first, second = constant(tensor, name="first"), constant(tensor, name="second")
    graph = lab.build(lambda x: op.MatMul(op.Tanh(op.MatMul(x, first)), second), sym("n"), 4)
    data = [{"x": lab.rows(16, 4), "t": lab.rows(16, 4, 1)}]
    found, after = lab.trained(graph, data)
    assert list(found.weights) == ["first"]
    a, b = after.constants()
    assert a.const is b.const
    assert not np.array_equal(a.const.numpy(), shared)


def test_recurrent_and_nested_weights_are_trained(lab):
    w = lab.weights()

    def body(x):
        steps = op.Transpose(op.Unsqueeze(x, [2]), perm=[1, 0, 2])
        h, _ = op.GRU(steps, w(1, 12, 1, fan=1, name="in"), w(1, 12, 4, fan=4, name="again"), hidden_size=4)
        return op.MatMul(op.Squeeze(op.Slice(h, [-1], [9], [0]), [0, 1]), w(4, 2, name="out"))

    data = [{"x": lab.rows(32, 5), "t": lab.rows(32, 2, 1)}]
    found, graph = lab.trained(lab.build(body, sym("n"), 5), data, steps=40, holdout=0.0)
    assert set(found.weights) == {"in", "again", "out"}
    assert found.curve[-1]["on data"] < found.curve[0]["on data"]
    y = lab.run(graph, x=data[0]["x"])["y"]
    np.testing.assert_allclose(((y - data[0]["t"]) ** 2).mean() / 2, found.loss, rtol=1e-4)


def test_texts_of_several_lengths_are_batched_by_length(lab):
    w = lab.weights()
    graph = lab.build(
        lambda ids: op.ReduceMean(op.Gather(w(20, 3, name="table"), ids), [1], keepdims=0),
        sym("n"),
        sym("length"),
        kind="ids",
    )
    rng = np.random.default_rng(0)
    data = [{"x": rng.integers(0, 20, (8, length)), "t": np.zeros((8, 3), np.float32)} for length in range(2, 12)]
    ctx = lab.context(data)
    found, _ = lab.trained(graph, data, ctx=ctx, steps=20, holdout=0.0)
    assert np.abs(found.weights["table"]).mean() < np.abs(graph.constants()[0].const.numpy()).mean()
    assert any("10 different shapes" in note for note in ctx.results[-1].notes)
