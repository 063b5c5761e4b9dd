"""Sample inputs: what is read, what is refused, what is made up."""

import numpy as np
import pytest

import planish
from planish.data import Portions, bind_sizes, read_samples, readers, synthesize
from planish.ir import DType, constant, op, sym, tensor_type
from planish.ir.errors import PlanishError

GOOD = {"x": np.ones((2, 8), np.float32)}


def test_files_folders_functions_and_mappings(tiny, tmp_path):
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", x=np.full((2, 8), i, np.float32))
    (tmp_path / "data.py").write_text(
        "import numpy as np\ndef samples():\n    return ({'x': np.ones((n, 8), 'f')} for n in (1, 2))\n"
    )
    graph = tiny.mlp()
    assert [s["x"][0, 0] for s in read_samples(str(tmp_path), graph)] == [0, 1, 2]
    assert len(read_samples(tmp_path, graph, 2)) == 2
    assert len(read_samples(tmp_path / "1.npz", graph)) == 1
    assert [len(s["x"]) for s in read_samples(f"{tmp_path}/data.py:samples", graph)] == [1, 2]
    assert len(read_samples(GOOD, graph)) == 1
    assert len(read_samples([GOOD, GOOD], graph)) == 2


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({}, r"has no input 'x'; the model takes x: float\[batch,8\]"),
        ({**GOOD, "labels": np.zeros(2)}, "has 'labels', which is no input"),
        ({"x": np.ones((2, 8))}, "is float64, not float"),
        ({"x": np.ones((2, 7), np.float32)}, r"has shape \[2, 7\], which does not fit float\[batch,8\]"),
        ({"x": np.ones(8, np.float32)}, "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tiny, sample, message):
    with pytest.raises(PlanishError, match=message) as caught:
        read_samples(sample, tiny.mlp())
    assert "\n" not in str(caught.value)


def test_labels_are_read_beside_the_inputs_where_they_are_asked_for(tiny):
    graph = tiny.mlp()
    data = [{**GOOD, "labels": np.array([3, 4])}]
    inputs, everything = readers(data, graph, ["labels"])
    assert [set(sample) for sample in inputs()] == [{"x"}]
    assert [sample["labels"].tolist() for sample in everything()] == [[3, 4]]
    assert readers([GOOD], graph)[1] is None
    for extra, message in (
        (["weights"], "sample 1 has no array 'weights', which is asked for besides the inputs"),
        (["labels", "x"], "'x' is an input of the model"),
    ):
        with pytest.raises(PlanishError, match=message):
            list(readers(data, graph, extra)[0]())
    with pytest.raises(PlanishError, match="has 'labels', which is no input"):
        list(readers(data, graph)[0]())


def test_symbols_must_agree_over_inputs(tiny):
    batch = tensor_type(DType.FLOAT, sym("batch"))
    graph = tiny.graph(lambda a, b: a + b, ("a", batch), ("b", batch))
    with pytest.raises(PlanishError, match="with batch=2"):
        read_samples({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, graph)


def test_unreadable_data(tiny, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "data.py").write_text("def fails():\n    raise ValueError('no data today')\n")
    (tmp_path / "empty").mkdir()
    for data, message in (
        ("nowhere.npz", "no such file"),
        (tmp_path / "bad.npz", "no readable .npz"),
        (tmp_path / "array.npy", "no .npz"),
        (tmp_path / "empty", "no .npz file in"),
        (f"{tmp_path}/data.py:fails", "no data today"),
        (f"{tmp_path}/data.py:lacking", "no function 'lacking'"),
        ([], "no samples"),
        ([1], "not a mapping"),
    ):
        with pytest.raises(PlanishError, match=message):
            read_samples(data, tiny.mlp())


def test_pickles_are_not_executed(tiny, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], object))
    with pytest.raises(PlanishError, match="no readable"):
        read_samples(tmp_path / "evil.npz", tiny.mlp())


def test_synthesized_samples_fit_and_repeat(tiny):
    graph = tiny.mlp()
    first, again = list(synthesize(graph)), list(synthesize(graph))
    assert len({s["x"].shape for s in first}) == len(first) > 1
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert read_samples(a, graph)


def test_token_ids_stay_in_their_table_and_masks_are_ones(tiny):
    ids = tensor_type(DType.INT64, sym("batch"), sym("sequence"))

    def build(token_ids, mask):
        embedded = op.Gather(tiny.weights(5, 4), op.Cast(op.Unsqueeze(token_ids, [0]), to=7))
        return op.Mul(op.Squeeze(embedded, [0]), op.Unsqueeze(op.Cast(mask, to=1), [2]))

    graph = tiny.graph(build, ("token_ids", ids), ("attention_mask", ids))
    for sample in synthesize(graph):
        assert sample["token_ids"].shape == sample["attention_mask"].shape
        assert 0 <= sample["token_ids"].min() <= sample["token_ids"].max() < 5
        assert (sample["attention_mask"] == 1).all()
    sample = next(synthesize(graph))
    assert len(set(sample["token_ids"].shape)) == 2
    assert bind_sizes(graph, sample) == {"batch": 2, "sequence": 6}


def test_unknown_shapes_are_not_made_up(tiny):
    from planish.ir import TensorType

    graph = tiny.graph(lambda x: op.Relu(x), ("x", TensorType(DType.FLOAT, None)))
    assert list(synthesize(graph)) == []


def test_defaults_need_no_sample(tiny):
    graph = tiny.graph(lambda x, y: x + y, ("x", tensor_type(DType.FLOAT, 2)), ("y", tensor_type(DType.FLOAT, 2)))
    graph.inputs[1].default = constant(np.ones(2, np.float32)).const
    assert set(next(synthesize(graph))) == {"x"}
    assert read_samples({"x": np.ones(2, np.float32)}, graph)


def test_one_size_may_be_the_sum_of_two_others(tiny):
    new, past, total = (tensor_type(DType.FLOAT, sym("batch"), sym(n)) for n in ("new", "past", "total"))
    graph = tiny.graph(
        lambda x, cache, mask: op.Concat(cache, x, axis=1) + mask, ("x", new), ("cache", past), ("mask", total)
    )
    found = [bind_sizes(graph, s) for s in synthesize(graph)]
    assert any(s["total"] == s["past"] + s["new"] and s["new"] != s["past"] for s in found)


def test_many_rows_come_in_portions(tiny):
    x = np.arange(70 * 8, dtype=np.float32).reshape(70, 8)
    read, labelled = readers(
        [{"x": x, "y": np.arange(70), "k": np.ones(3)}, GOOD | {"y": [1, 2], "k": 0}], tiny.mlp(), "yk"
    )
    portions = Portions(read, tiny.mlp())
    found = list(portions())
    assert [len(s["x"]) for s in found] == [32, 32, 6, 2]
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in found[:3]]), x)
    assert portions.counts == [3, 1]
    whole = portions.joined([{"y": s["x"].sum(1)} for s in found])
    assert [len(o["y"]) for o in whole] == [70, 2]
    np.testing.assert_array_equal(whole[0]["y"], x.sum(1))
    assert portions.joined(found[:2]) == found[:2]  # of something else
    with_labels = list(Portions(labelled, tiny.mlp())())
    assert [list(s["y"][:1]) for s in with_labels] == [[0], [32], [64], [1]]
    assert all(len(s["k"]) == 3 for s in with_labels[:3])


@pytest.mark.parametrize("reduced", ["an output without rows", "a fixed number of rows"])
def test_rows_that_belong_together_stay_together(tiny, reduced):
    if reduced == "a fixed number of rows":
        graph = tiny.graph(op.Relu, ("x", tensor_type(DType.FLOAT, 70, 8)))
    else:
        graph = tiny.graph(lambda x: op.ReduceMean(x, keepdims=0), ("x", tensor_type(DType.FLOAT, sym("n"), 8)))
    portions = Portions(lambda: iter([{"x": np.ones((70, 8), np.float32)}]), graph)
    assert [len(s["x"]) for s in portions()] == [70]


def test_a_metric_sees_samples_as_they_were_given(tiny):
    seen = []

    def metric(outputs):
        seen.append([len(next(iter(o.values()))) for o in outputs])
        return 1.0

    data = [{"x": np.random.default_rng(n).standard_normal((n, 8), np.float32)} for n in (70, 5)]
    planish.optimize(tiny.mlp(), "quantize{max_drop=0.5}", data=data, metric=metric, measure=False)
    assert seen and all(rows == [70, 5] for rows in seen)
