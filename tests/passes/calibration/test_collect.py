"""What calibration collects, against numpy; its memory, its files, and what it refuses."""

import json
import weakref

import numpy as np
import pytest

from planish.backends.base import backend
from planish.ir import DType, Graph, SequenceType, constant, edit, op, sym, tensor, tensor_type
from planish.passes import PassError
from planish.passes.calibration import Calibration, collect
from planish.passes.calibration.histogram import Histogram
from planish.passes.calibration.summaries import ChannelStatistics, ConvGram, GramMatrix

WEIGHT = np.random.default_rng(7).normal(size=(8, 5)).astype(np.float32)


def network(batch=None, name="net"):
    """Relu(x @ w) * 2 and what follows it; the values inside have no names, or the same one."""
    graph = Graph(name, opsets={"": 20})
    x = graph.add_input(tensor_type(DType.FLOAT, sym("batch") if batch is None else batch, 8), "x")
    product = op.MatMul(x, constant(WEIGHT, name="w"))
    active = op.Relu(product)
    doubled = op.Mul(active, constant(np.float32(2)))
    result = op.Exp(doubled)
    product.name = active.name = "same"
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    graph.output_info[0].name = "y"
    return graph


def values(graph):
    return [graph.inputs[0], *[node.result for node in graph.nodes][:3]]


def samples(n=5, seed=0, rows=None):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(rows or i + 2, 8)).astype(np.float32)} for i in range(n)]


def expected(x):
    product = x @ WEIGHT
    return [x, product, np.maximum(product, 0), np.maximum(product, 0) * 2]


def wanted(graph):
    return {v: [Histogram(), ChannelStatistics(-1), GramMatrix()] for v in values(graph)}


class Counting:
    """A runner that counts what it compiles, and how many of these are there at once."""

    def __init__(self):
        self.backend = backend("reference")
        self.parts, self.alive, self.most = [], weakref.WeakSet(), 0

    def compile(self, graph):
        self.parts.append([node.op for node in graph.nodes])
        run = self.backend.compile(graph)
        self.alive.add(run)
        self.most = max(self.most, len(self.alive))
        return run


def check(graph, found, data):
    for value, arrays in zip(values(graph), zip(*(expected(s["x"]) for s in data), strict=True), strict=True):
        histogram, channels, gram = found[value]
        rows = np.concatenate(arrays).astype(np.float64)
        assert histogram.count == rows.size
        assert histogram.zeros == (rows == 0).sum()
        assert histogram.updates == len(data)
        np.testing.assert_allclose([histogram.min, histogram.max], [rows.min(), rows.max()], rtol=1e-5)
        np.testing.assert_allclose(channels.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(channels.mean_abs, np.abs(rows).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(channels.mean_square, (rows**2).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(channels.max_abs, np.abs(rows).max(axis=0), rtol=1e-5)
        np.testing.assert_allclose(gram.matrix, rows.T @ rows, rtol=1e-4, atol=1e-4)
        assert gram.rows == len(rows)


@pytest.mark.parametrize("budget", [64 << 20, 300, 1])
@pytest.mark.parametrize("target", ["reference", "onnxruntime"])
def test_it_is_what_numpy_computes(target, budget):
    graph, data = network(), samples()
    before = str(graph)
    calibration = collect(graph, wanted(graph), data, backend(target), budget_bytes=budget)
    assert str(graph) == before
    assert calibration.samples == len(data)
    assert list(calibration.statistics) == ["x", "same", "same_1", "mul"]
    check(graph, calibration.of(graph), data)


def test_a_graph_is_compiled_once_and_no_more_of_it_than_needed():
    graph, runner, runs = network(batch=4), Counting(), []
    collect(graph, wanted(graph), samples(rows=4), runner, progress=lambda *p: runs.append(p))
    assert runner.parts == [["MatMul", "Relu", "Mul"]]
    assert runs == [(i, 5) for i in range(1, 6)]


def test_groups_run_one_after_the_other():
    graph, runner, runs, data = network(batch=4), Counting(), [], samples(rows=4)
    size = 4 * 5 * 4  # of each value but the input, which is nobody's output
    found = collect(
        graph, wanted(graph), lambda: iter(data), runner, budget_bytes=2 * size, progress=lambda *p: runs.append(p)
    )
    assert runner.parts == [["MatMul", "Relu"], ["MatMul", "Relu", "Mul"]]
    assert runner.most == 1
    assert runs == [(i, None) for i in range(1, 11)]
    check(graph, found.of(graph), data)


def test_symbolic_sizes_are_those_of_the_largest_sample():
    graph, data = network(), samples()
    for budget, groups in ((3 * 6 * 5 * 4, 1), (3 * 6 * 5 * 4 - 1, 2), (6 * 5 * 4, 3)):
        runner = Counting()
        collect(graph, wanted(graph), data, runner, budget_bytes=budget)
        assert len(runner.parts) == 1 + groups
        assert runner.parts[0].count("Shape") == 3
        assert runner.most == 1


def test_inputs_alone_are_not_run():
    graph, runner, data = network(), Counting(), samples()
    x = graph.inputs[0]
    found = collect(graph, {x: [Histogram()]}, data, runner)
    assert not runner.parts
    assert found.of(graph)[x][0].count == sum(s["x"].size for s in data)
    x.default = tensor(np.ones((3, 8), np.float32))
    assert collect(graph, {x: [Histogram()]}, [{}], runner).statistics["x"][0].sum == 24


def test_some_nan_are_counted():
    graph, data = network(), samples()
    data[2]["x"][1, 3] = np.nan
    found = collect(graph, wanted(graph), data, backend("reference")).of(graph)
    histogram, channels, gram = found[graph.inputs[0]]
    assert histogram.nans == 1
    assert channels.count.tolist() == [20, 20, 20, 19, 20, 20, 20, 20]
    assert gram.rows == 19
    assert np.isfinite(gram.matrix).all()


# what is refused


def refused(message, graph, statistics, data, runner=None):
    with pytest.raises(PassError, match=message) as caught:
        collect(graph, statistics, data, runner or Counting())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [None, 4])
def test_samples_that_are_no_good(batch):
    graph = network(batch)
    refused("no samples", graph, wanted(graph), [])
    refused("sample 2 has no input 'x'", graph, wanted(graph), [*samples(1, rows=4), {"y": 0}])
    empty = {"x": np.zeros((0, 8), np.float32)}
    refused(r"sample 2 is an empty batch: input 'x' has shape \[0, 8\]", graph, wanted(graph), [*samples(1), empty])
    refused("give a list or a function", graph, wanted(graph), iter(samples()))


def test_values_without_a_number():
    graph = network()
    nan = [{"x": np.full((2, 8), np.nan, np.float32)}]
    refused("%x cannot be calibrated: all 16 elements are NaN or inf", graph, wanted(graph), nan)
    log = Graph("log", opsets={"": 20})
    x = log.add_input(tensor_type(DType.FLOAT, 3), "x")
    result = op.Log(x)
    edit.insert_floating([result], log.ret)
    log.set_outputs([result])
    refused("%log cannot be calibrated: all 3 elem", log, {result: [Histogram()]}, [{"x": -np.ones(3, np.float32)}])
    cut = Graph("cut", opsets={"": 20})
    x = cut.add_input(tensor_type(DType.FLOAT, 3, None), "x")
    cut.set_outputs([x])
    refused("%x .* has no elements", cut, {x: [Histogram()]}, [{"x": np.zeros((3, 0), np.float32)}])


def test_values_that_are_not_there():
    graph, data = network(), samples()
    weight = next(graph.nodes).operands[1]
    refused("%w cannot be calibrated: it is a constant", graph, {weight: [Histogram()]}, data)
    other = values(network())[1]
    refused("%same cannot be calibrated: it is nested in a node, or of another", graph, {other: [Histogram()]}, data)
    texts = Graph("texts", opsets={"": 20})
    for type_ in (tensor_type(DType.STRING, 3), SequenceType(tensor_type(DType.FLOAT, 3))):
        x = texts.add_input(type_, "x")
        refused("%x.* cannot be calibrated: .* holds no real numbers", texts, {x: [Histogram()]}, data)


def test_values_in_nested_graphs():
    then = Graph("then")
    inner = op.Relu(constant(np.ones(3, np.float32)))
    edit.insert_floating([inner], then.ret)
    then.set_outputs([inner])
    graph = Graph("outer", opsets={"": 20})
    condition = graph.add_input(tensor_type(DType.BOOL), "condition")
    result = op.If(condition, then_branch=then, else_branch=then)
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    refused("it is nested in a node", graph, {inner: [Histogram()]}, [{"condition": np.array(True)}])


# files


def test_save_and_load(tmp_path):
    graph, data = network(), samples()
    found = collect(graph, {v: [Histogram(), ChannelStatistics(1)] for v in values(graph)}, data, backend("reference"))
    found.save(tmp_path / "c.json")
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    again = Calibration.load(tmp_path / "c.json")
    assert (again.fingerprint, again.samples) == (found.fingerprint, 5)
    same = network()
    same.inputs[0].metadata = {"a": "b"}
    restored = again.of(same)
    for mine, theirs in zip(values(graph), values(same), strict=True):
        for a, b in zip(found.of(graph)[mine], restored[theirs], strict=True):
            assert a.to_dict() == b.to_dict()
    restored[same.inputs[0]][1].update(np.ones((3, 8)))
    assert restored[same.inputs[0]][1].count.tolist() == [23] * 8


def test_another_graph_is_refused():
    found = collect(network(), {}, samples(), backend("reference"))
    for graph in (network(batch=3), network(name="other")):
        with pytest.raises(PassError, match="the calibration is of another graph than"):
            found.of(graph)
    changed = network()
    relu = next(node for node in changed.nodes if node.op == "Relu")
    edit.replace(relu.result, relu.operands[0])
    with pytest.raises(PassError, match="another graph than 'net', or of another state"):
        found.of(changed)


def test_what_cannot_be_saved(tmp_path):
    graph = network()
    found = collect(graph, wanted(graph), samples(), backend("reference"))
    with pytest.raises(PassError, match="the GramMatrix of %x cannot be saved: only Histogram and Channel"):
        found.save(tmp_path / "c.json")
    with pytest.raises(PassError, match=r"no/c\.json: No such file"):
        collect(graph, {}, samples(), backend("reference")).save(tmp_path / "no" / "c.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PassError, match="folder: "):
        collect(graph, {}, samples(), backend("reference")).save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": "planish calibration 0"}', '{"format": "planish calibration 1"}', "[" * 100_000],
)
def test_files_of_something_else(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(PassError, match=r"c\.json is no calibration: ") as caught:
        Calibration.load(tmp_path / "c.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [[{"kind": "Histogram"}], [{"kind": "Path"}], [3], 3, [{"kind": "ChannelStatistics"}]])
def test_files_with_broken_statistics(tmp_path, kept):
    data = {"format": "planish calibration 1", "fingerprint": "", "samples": 1, "values": {"x": kept}}
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(PassError, match="is no calibration"):
        Calibration.load(tmp_path / "c.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(PassError, match=r"c\.json: No such file"):
        Calibration.load(tmp_path / "c.json")


# statistics by themselves


@pytest.mark.parametrize("axis", [0, 1, -1, 2])
def test_channels_of_any_axis_in_pieces(axis, monkeypatch):
    monkeypatch.setattr("planish.passes.calibration.summaries._CHUNK", 50)
    x = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float16)
    x[1, 2, 3] = np.inf
    whole, parts = ChannelStatistics(axis), [ChannelStatistics(axis), ChannelStatistics(axis)]
    whole.update(x)
    cut = (axis + 1) % 3
    for part, piece in zip(parts, np.split(x, [2], axis=cut), strict=True):
        part.update(piece)
    joined = ChannelStatistics(axis)
    for part in (*parts, ChannelStatistics(axis)):
        joined.merge(part)
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
    rows[~np.isfinite(rows)] = np.nan
    for found in (whole, joined):
        assert found.count.tolist() == np.isfinite(rows).sum(axis=1).tolist()
        np.testing.assert_array_equal(found.max_abs, np.nanmax(np.abs(rows), axis=1))
        np.testing.assert_allclose(found.mean, np.nanmean(rows, axis=1), atol=1e-12)
        np.testing.assert_allclose(found.mean_square, np.nanmean(rows**2, axis=1))


def test_merged_statistics_stay_apart():
    a, b = ChannelStatistics(0), ChannelStatistics(0)
    b.update(np.ones(3))
    a.merge(b)
    a.update(np.ones(3))
    assert b.count.tolist() == [1, 1, 1]


def test_gram_matrices_in_pieces(monkeypatch):
    monkeypatch.setattr("planish.passes.calibration.summaries._PIECE", 50)
    x = np.random.default_rng(0).normal(size=(3, 7, 6))
    a, b = GramMatrix(), GramMatrix()
    a.update(x[:1])
    b.update(x[1:])
    b.update(x[:0])
    a.merge(b)
    rows = x.reshape(-1, 6)
    np.testing.assert_allclose(a.matrix, rows.T @ rows)
    assert a.rows == 21


@pytest.mark.parametrize(
    ("shape", "kernel", "attrs"),
    [
        ((2, 4, 9, 8), (3, 2), {}),
        ((2, 4, 9, 8), (3, 3), {"strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (1, 2)}),
        ((2, 4, 9, 8), (3, 3), {"group": 2, "pads": (1, 1, 1, 1)}),
        ((2, 4, 9, 8), (1, 1), {"group": 4}),
        ((2, 4, 9, 8), (3, 2), {"auto_pad": "SAME_UPPER", "strides": (2, 3)}),
        ((2, 4, 9, 8), (3, 2), {"auto_pad": "SAME_LOWER"}),
        ((2, 4, 9, 8), (3, 2), {"auto_pad": "VALID", "kernel_shape": (3, 2)}),
        ((3, 4, 9), (4,), {"strides": (2,)}),
    ],
)
def test_the_windows_of_a_convolution(shape, kernel, attrs, monkeypatch):
    """The energy of the convolution's results is what the product says, for any weight: so the product is right."""
    monkeypatch.setattr("planish.passes.calibration.summaries._PIECE", 500)
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=shape), attrs.get("group", 1)
    weight = rng.normal(size=(8, shape[1] // group, *kernel))
    node = op.Conv(constant(x), constant(weight), **attrs).producer
    (y,) = backend("reference").evaluate(node, [x, weight])
    gram = ConvGram.of(node)
    gram.update(x)
    rows = weight.reshape(group, 8 // group, -1)
    energy = rows @ gram.matrix @ rows.swapaxes(1, 2)
    y = np.moveaxis(y, 1, 0).reshape(group, 8 // group, -1)
    np.testing.assert_allclose(energy, y @ y.swapaxes(1, 2), rtol=1e-6, atol=1e-6)
    assert gram.rows == y.shape[-1]


def test_windows_are_subsampled_evenly():
    gram = ConvGram(kernel_shape=(1, 1), limit=100)
    x = np.broadcast_to(np.eye(12)[None], (30, 12, 12, 12)).swapaxes(1, 3)  # the channel is the column
    gram.update(x)
    assert 90 <= gram.rows <= 100
    counts = np.diag(gram.matrix[0])
    assert counts.max() - counts.min() <= 2
