"""Distillation: a small student recovers, from rows without labels and made-up ones, and says how."""

import jax
import numpy as np
import pytest

import planish
from planish.backends.base import backend
from planish.ir import DType, Graph, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Pipeline
from planish.passes.base import RequestError
from planish.passes.train.batches import Batch
from planish.passes.train.lesson import Lesson
from planish.passes.train.matching import attention_pair, hidden_pairs, kind_of_output
from planish.passes.train.mixing import UNCHANGED, Mixer
from planish.passes.train.teacher import Teacher

KEY = "rows as they are"


def distilled(lab, teacher, student, samples, options="", **context):
    """A distilled copy of ``student``, and the record of the pass."""
    copy = clone_graph(student)
    ctx = lab.context(samples, teacher, **context)
    Pipeline.parse(f"distill{{{options}}}").run(copy, ctx)
    assert [r.problem for r in ctx.results] == [""] * len(ctx.results)
    verify(copy)
    return copy, ctx.results[-1]


def noisy(graph, share, seed=0):
    """A copy with noise in its weights."""
    rng, copy = np.random.default_rng(seed), clone_graph(graph)
    for value in copy.constants():
        if value.dtype is DType.FLOAT and value.rank:
            array = value.const.numpy()
            noise = rng.standard_normal(array.shape).astype(np.float32) * array.std() * share
            edit.replace(value, constant(array + noise, name=value.name))
    return copy


def agreement(lab, a, b, count=400):
    x = lab.rows(count, 8, seed=77)
    return float((lab.run(a, x=x)["y"].argmax(1) == lab.run(b, x=x)["y"].argmax(1)).mean())


def test_a_student_recovers_from_rows_without_labels(lab):
    teacher = lab.mlp(64, seed=3)
    student = noisy(teacher, 2.0)
    found, result = distilled(lab, teacher, student, [{"x": lab.rows(256, 8)}], "steps=300,rate=0.01")
    assert agreement(lab, teacher, student) < 0.65
    assert agreement(lab, teacher, found) > 0.85
    assert result.notes == ["learned from the original: y (divergence of classes)"]
    assert result.table[-1]["loss"] < result.table[1]["loss"] / 10


def test_numbers_that_look_like_scores_become_right_too(lab):
    """A student that is off by a constant has the same softmax, and is wrong all the same if the output is no score."""
    teacher = lab.linear(8, 4)
    student = clone_graph(teacher)
    bias = next(c for c in student.constants() if c.rank == 1)
    edit.replace(bias, constant(bias.const.numpy() + np.float32(3), name=bias.name))
    found, _ = distilled(lab, teacher, student, [{"x": lab.rows(256, 8)}], "steps=600,rate=0.03")
    x = lab.rows(50, 8, seed=5)
    assert np.abs(lab.run(student, x=x)["y"] - lab.run(teacher, x=x)["y"]).max() > 2.9
    assert np.abs(lab.run(found, x=x)["y"] - lab.run(teacher, x=x)["y"]).max() < 0.3


def test_made_up_rows_help_where_there_are_few(lab):
    teacher = lab.mlp(64, seed=3)
    student = noisy(teacher, 2.0)
    data = [{"x": lab.rows(32, 8)}]
    mixed, plain = (
        distilled(lab, teacher, student, data, f"steps=300,rate=0.01,mix={mix}")[0] for mix in ("true", "false")
    )
    assert agreement(lab, teacher, mixed) > agreement(lab, teacher, plain)


def test_labels_are_learned_from_where_the_teacher_is_wrong(lab, tmp_path):
    """The student learns classes that the teacher does not know, from an array that is no input."""
    teacher = lab.mlp(32, seed=3)
    x = lab.rows(128, 8)
    labels = (x[:, 0] > 0).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x, digit=labels)
    for alpha, low, high in ((1.0, 0.95, 1.0), (0.0, 0.0, 0.6)):
        result = planish.optimize(
            clone_graph(teacher),
            f"distill{{steps=200,rate=0.01,labels=digit,alpha={alpha}}}",
            data=tmp_path / "data.npz",
            verify="off",
            measure=False,
        )
        assert low <= (lab.run(result.graph, x=x)["y"].argmax(1) == labels).mean() <= high
        assert result.report.passes[-1].notes[-1].endswith("y (divergence of classes), labels")


def test_labels_that_are_not_there_are_refused(lab, tmp_path):
    np.savez(tmp_path / "data.npz", x=lab.rows(64, 8))
    with pytest.raises(planish.ir.errors.PlanishError, match="has no array 'digit', which is asked for"):
        planish.optimize(lab.mlp(), "distill{labels=digit}", data=tmp_path / "data.npz", measure=False)
    np.savez(tmp_path / "data.npz", x=lab.rows(64, 8), digit=np.zeros(64))
    with pytest.raises(planish.ir.errors.PlanishError, match="has 'digit', which is no input"):
        planish.optimize(lab.mlp(), "distill", data=tmp_path / "data.npz", measure=False)


def narrower(teacher, keep):
    """``teacher`` with the first ``keep`` hidden units."""
    copy = clone_graph(teacher)
    cuts = {"w1": np.s_[:, :keep], "b1": np.s_[:keep], "w2": np.s_[:keep]}
    named = {v.name: v.const.numpy() for v in copy.constants()}
    graph = Graph("g", opsets={"": 21})
    x = graph.add_input(tensor_type(DType.FLOAT, sym("n"), 8), "x")
    w = {n: constant(a[cuts[n]] if n in cuts else a, name=n) for n, a in named.items()}
    h = op.Relu(op.Gemm(x, w["w1"], w["b1"]))
    h.name = "h"
    y = op.Gemm(h, w["w2"], w["b2"])
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    return graph


def test_hidden_states_of_another_width_are_compared_through_a_layer_that_is_thrown_away(lab):
    teacher = lab.mlp(32, seed=3)
    student = narrower(teacher, 16)
    (pair,) = hidden_pairs(teacher, student)
    assert (pair.name, pair.axis) == ("h", 1)
    found, result = distilled(lab, teacher, student, [{"x": lab.rows(64, 8)}], "hidden=[auto],steps=200,rate=0.01")
    assert "hidden h" in result.notes[0]
    first, last = (next(r for r in rows if "hidden h" in r) for rows in (result.table, result.table[::-1]))
    assert last["hidden h"] < first["hidden h"] / 2
    assert {v.name for v in found.constants()} == {"w1", "b1", "w2", "b2"}
    for named in (["h"], ["h:h"]):
        assert Lesson(teacher, student, hidden=named).projections(0)[f"hidden {named[0]}"].shape == (16, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("hidden=['nowhere']", "the teacher has no value 'nowhere'; there are"),
        ("hidden=['h:y']", r"hidden 'h:y': float\[n,32\] and float\[n,4\]"),
        ("attention=true", "the teacher has no Attention to learn from"),
        ("labels=t,loss=mse", "labels need an output with scores of classes"),
    ],
)
def test_lessons_that_cannot_be_are_refused_before_any_work(lab, options, message):
    teacher = lab.mlp(32)
    if "h:y" in options:
        message = "the student has no value 'y'|cannot be compared"
    calls = []
    ctx = lab.context(lambda: calls.append(1) or iter([{"x": lab.rows(64, 8)}]), teacher)
    with pytest.raises(RequestError, match=message) as caught:
        Pipeline.parse(f"distill{{{options}}}").run(clone_graph(teacher), ctx)
    assert "\n" not in str(caught.value)
    assert not calls


def test_teachers_with_other_outputs_are_refused(lab):
    teacher, w = lab.mlp(), lab.weights()
    other = clone_graph(teacher)
    other.output_info[0].name = "z"
    ranks = lab.build(lambda x: op.ReduceMean(op.MatMul(x, w(8, 4)), [1], keepdims=0), sym("n"), 8)
    classes = lab.build(lambda x: op.Gemm(x, w(8, 5), w(5, fan=1)), sym("n"), 8)
    for student, message in (
        (other, "teacher and student have different outputs: y and z"),
        (ranks, r"output 'y' is float\[n,4\] for the teacher and float\[n\] for the student"),
        (classes, r"output 'y' is float\[n,4\] for the teacher and float\[n,5\] for the student: only embeddings"),
    ):
        with pytest.raises(RequestError, match=message):
            Pipeline.parse("distill").run(student, lab.context([{"x": lab.rows(64, 8)}], teacher))
    with pytest.raises(RequestError, match="distill needs the original"):
        planish.passes.train.distill.Distill().run(teacher, lab.context([]))


# outputs


def test_outputs_are_told_apart_by_what_makes_them(lab):
    w = lab.weights()

    def kind(body, name="y", shape=(sym("n"), 8)):
        graph = lab.build(body, *shape)
        return kind_of_output(graph.outputs[0], name)

    assert kind(lambda x: op.Gemm(x, w(8, 5), w(5))) == "classes"
    assert kind(lambda x: op.Add(op.MatMul(x, w(8, 5)), w(5))) == "classes"
    assert kind(lambda x: op.MatMul(x, w(8, 5))) == "embedding"
    assert kind(lambda x: op.MatMul(x, w(8, 5)), "logits") == "classes"
    assert kind(lambda x: op.MatMul(x, w(8, 100)), shape=(sym("n"), 3, 8)) == "classes"  # a vocabulary
    assert kind(lambda x: op.Gemm(x, w(8, 5), w(5)), "sentence_embedding") == "embedding"
    assert kind(lambda x: op.Softmax(op.Gemm(x, w(8, 5), w(5)))) == "probabilities"
    assert kind(lambda x: op.LogSoftmax(op.Gemm(x, w(8, 5), w(5)))) == "log-probabilities"
    assert kind(lambda x: op.Gemm(x, w(8, 1), w(1))) == "values"
    assert kind(lambda x: op.Tanh(x), shape=(sym("n"), 3, 8)) == "values"


def test_probabilities_are_compared_as_the_scores_behind_them(lab):
    teacher = lab.mlp(16, seed=3)
    scores = lab.rows(8, 4)
    soft = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    plain = Lesson(teacher, teacher, "kl")
    w = lab.weights()
    probable = lab.build(lambda x: op.Softmax(op.Gemm(x, w(8, 4), w(4, fan=1))), sym("n"), 8)
    lesson = Lesson(probable, probable)
    own = lab.rows(8, 4, 1)
    own_soft = np.exp(own) / np.exp(own).sum(1, keepdims=True)
    want = jax.jit(plain.loss)({"y": own}, {"teacher y": scores}, {})["y"]
    found = jax.jit(lesson.loss)({"y": own_soft}, {"teacher y": soft}, {})["y"]
    np.testing.assert_allclose(found, want, rtol=1e-4)


# attention


def attention(heads, size, seed=0, masked=True):
    """One attention of ``heads`` over three positions, and a projection to an embedding of four numbers."""
    rng = np.random.default_rng(seed)
    graph = Graph("g", opsets={"": 24})
    x = graph.add_input(tensor_type(DType.FLOAT, sym("n"), 3, 6), "x")
    q, k, v = (op.MatMul(x, constant(rng.standard_normal((6, heads * size)).astype(np.float32), name=n)) for n in "qkv")
    mask = [op.Greater(op.ReduceMax(op.Unsqueeze(x, [1]), [3], keepdims=0), np.float32(-9))] if masked else []
    mask = [op.Unsqueeze(m, [2]) for m in mask]
    y = op.Attention(q, k, v, *mask, q_num_heads=heads, kv_num_heads=heads)
    y = op.MatMul(
        op.ReduceMean(y, [1], keepdims=0), constant(rng.standard_normal((heads * size, 4)).astype(np.float32))
    )
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    return graph


def test_attention_is_compared_over_parts_that_both_widths_have(lab):
    teacher, student = attention(4, 8), attention(2, 6, seed=1)
    t, s, parts = attention_pair(teacher, student)
    assert (t.width, s.width, parts) == (32, 12, 2)
    data = [{"x": np.random.default_rng(0).standard_normal((64, 3, 6)).astype(np.float32)}]
    _, result = distilled(lab, teacher, student, data, "attention=true,steps=60,rate=0.02,mix=false")
    first, last = result.table[1], result.table[-1]
    assert last["attention"] < first["attention"] / 2
    assert last["values"] < first["values"] / 2
    assert last["y"] < first["y"]
    assert "relations in the last attention" in result.notes[0]


def test_masked_positions_count_for_nothing(lab):
    graph = attention(2, 4)
    lesson = Lesson(graph, graph, with_attention=True)
    rng = np.random.default_rng(0)
    t = {
        f"teacher {k}": rng.standard_normal((2, 3, 8)).astype(np.float32) for k in lesson.taps if k != "attention mask"
    }
    own = {k: rng.standard_normal((2, 3, 8)).astype(np.float32) for k in lesson.taps}
    outputs = {"y": np.ones((2, 4), np.float32), **own}
    mask = np.ones((2, 1, 1, 3), bool)
    mask[..., 2] = False
    batch = {"teacher y": np.ones((2, 4), np.float32), "teacher attention mask": mask, **t}
    loss = jax.jit(lesson.loss)
    before = loss(outputs, batch, {})
    t["teacher attention keys"][:, 2] += 5
    after = loss(outputs, batch | t, {})
    batch["teacher attention mask"] = np.ones_like(mask)
    assert abs(loss(outputs, batch | t, {})["attention"] - after["attention"]) > 0.1
    np.testing.assert_allclose(after["attention"], before["attention"], rtol=1e-5)


# the teacher


def test_targets_are_those_of_the_graph_and_kept_as_far_as_there_is_room(lab):
    graph = lab.mlp()
    (h,) = [r for node in graph.nodes for r in node.results if r.name == "h"]
    x = lab.rows(6, 8)
    want = np.maximum(x @ lab.constants(graph)["w1"] + lab.constants(graph)["b1"], 0)
    teacher = Teacher(graph, {"y": graph.outputs[0], "h": h}, backend("onnxruntime"), room=4 * (16 + 4) * 3)
    batches = [Batch({"x": x[:2]}, (0, 1)), Batch({"x": x[2:4]}, (2, 3)), Batch({"x": x[4:]}, (4, 5))]
    teacher.keep(batches)
    for arrays in (x, x * np.nan):  # NaN: the row's number is enough
        got = teacher(Batch({"x": arrays[[3, 0]]}, (3, 0)))
        np.testing.assert_allclose(got["h"], want[[3, 0]], atol=1e-5)
        assert got["y"].shape == (2, 4)
    np.testing.assert_allclose(teacher(batches[2])["h"], want[4:], atol=1e-5)
    assert np.isnan(teacher(Batch({"x": x[4:] * np.nan}, (4, 0)))["y"]).all()
    assert np.isnan(teacher(Batch({"x": x[:2] * np.nan}, None))["y"]).all()


# made-up rows


def test_images_are_shifted_and_mixed_and_the_same_seed_gives_the_same(lab):
    w = lab.weights()
    graph = lab.build(lambda x: op.GlobalAveragePool(op.Conv(x / np.float32(8), w(2, 1, 3, 3))), sym("n"), 1, 8, 8)
    mixer = Mixer.of(graph)
    assert (mixer.images, mixer.tokens, mixer.works) == (["x"], [], True)
    x = np.random.default_rng(0).random((64, 1, 8, 8)).astype(np.float32)
    first, again, other = (mixer(Batch({"x": x}, tuple(range(64))), np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.arrays["x"], again.arrays["x"])
    assert not np.array_equal(first.arrays["x"], other.arrays["x"])
    assert first.rows is None
    assert first.arrays["x"].shape == x.shape
    assert first.arrays["x"].dtype == np.float32
    assert x.min() <= first.arrays["x"].min() <= first.arrays["x"].max() <= x.max()
    whole = first.arrays[UNCHANGED].astype(bool)
    assert 16 < whole.sum() < 48
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    for row in np.flatnonzero(whole):
        shifts = [padded[row, :, d : d + 8, r : r + 8] for d in range(3) for r in range(3)]
        assert any(np.array_equal(first.arrays["x"][row], shift) for shift in shifts)


def test_tokens_are_exchanged_for_tokens_of_the_batch_and_marks_stay(lab):
    w = lab.weights()
    graph = Graph("g", opsets={"": 21})
    ids = graph.add_input(tensor_type(DType.INT64, sym("n"), 10), "ids")
    mask = graph.add_input(tensor_type(DType.INT64, sym("n"), 10), "mask")
    y = op.Gather(w(1000, 4), ids) * op.Unsqueeze(op.Cast(mask, to=1), [2])
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    mixer = Mixer.of(graph)
    assert (mixer.numbers, mixer.tokens) == ([], ["ids"])
    rng = np.random.default_rng(0)
    rows = rng.integers(200, 900, (32, 10))
    rows[:, 0], rows[:, 8:] = 101, 0
    masks = (rows != 0).astype(np.int64)
    found = mixer(Batch({"ids": rows, "mask": masks}, tuple(range(32))), rng).arrays
    np.testing.assert_array_equal(found["mask"], masks)
    changed = found["ids"] != rows
    assert not changed[:, 0].any()
    assert not changed[:, 8:].any()
    assert set(found["ids"][changed]) <= set(rows[:, 1:8].ravel())
    assert 0.03 < changed[:, 1:8].mean() < 0.15
    assert not changed[found[KEY].astype(bool)].any()


@pytest.mark.parametrize("mix", ["true", "false"])
def test_an_interrupted_distillation_ends_with_the_same_bits(lab, tmp_path, mix):
    teacher, data, path = lab.mlp(32, seed=3), [{"x": lab.rows(64, 8)}], tmp_path / "state.npz"
    student, options = noisy(teacher, 1.0), f"steps=40,rate=0.01,batch=24,mix={mix}"
    whole, _ = distilled(lab, teacher, student, data, options)

    def stop(message):
        if "step 23 " in message:
            raise KeyboardInterrupt

    ctx = lab.context(data, teacher, progress=stop)
    pipeline = Pipeline.parse(f"distill{{{options},checkpoint='{path}'}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish.passes.train.engine._TELL", 0.0)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(clone_graph(student), ctx)
    resumed, result = distilled(lab, teacher, student, data, f"{options},checkpoint='{path}'")
    assert "training went on from step 23 of 40" in result.notes
    for name, value in lab.constants(whole).items():
        np.testing.assert_array_equal(lab.constants(resumed)[name], value)
