"""``sparsify``: which weights of a graph become 0, what layers make up for, and what is said."""

from dataclasses import dataclass

import numpy as np
import pytest

import planish
from planish.backends import backend
from planish.ir import DType, Graph, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.text import parse
from planish.ir.verify import verify
from planish.passes import Context, Pass, Pipeline
from planish.passes.base import RequestError
from planish.passes.pipeline import PipelineError
from planish.passes.prune.sparsify import Sparsify

SIZES = {"kernel": (16, 8, 3, 3), "first": (8, 3, 3, 3), "grouped": (8, 8, 3, 3), "matrix": (32, 24), "last": (12, 24)}


def weights(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SIZES.items()}


def build(body, *shape, dtype=DType.FLOAT):
    graph = Graph("g", opsets={"": 21})
    result = body(graph.add_input(tensor_type(dtype, *shape), "x"))
    for node in edit.insert_floating([result], graph.ret):
        weight = node.operand(1)
        node.name = weight.name if weight is not None and weight.name else node.op
    graph.set_outputs([result])
    graph.output_info[0].name = "y"
    return graph


def network():
    """A first convolution, a plain one and one in groups, a product with a bias behind it, and a Gemm."""
    w = {name: constant(array, name=name) for name, array in weights().items()}
    b = np.random.default_rng(1).standard_normal(24).astype(np.float32)

    def body(x):
        h = op.Relu(op.Conv(x, w["first"], pads=[1, 1, 1, 1]))
        h = op.Relu(op.Conv(h, w["kernel"], constant(np.ones(16, np.float32)), strides=[2, 2]))
        h = op.Relu(op.Conv(h, w["grouped"], group=2))
        h = op.Relu(op.MatMul(op.Flatten(h), w["matrix"]) + constant(b))
        return op.Gemm(h, w["last"], constant(b[:12]), transB=1)

    return build(body, sym("n"), 3, 9, 9)


def images(count=24, seed=2):
    return [{"x": part} for part in np.split(_numbers(seed, count, 3, 9, 9), 4)]


def rows(n, seed=3, shift=0.5):
    """Correlated rows that are not 0 on average."""
    mixed = _numbers(seed, 64, n) @ _numbers(seed + 1, n, n) / np.float32(n**0.5) + np.float32(shift)
    return [{"x": part} for part in np.split(mixed, 4)]


def _numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sparsified(graph, options="", data=None, **context):
    """A pruned copy, and the record of the pass."""
    copy = clone_graph(graph)
    ctx = Context(lambda: backend("reference"), samples=None if data is None else lambda: iter(data), **context)
    Pipeline.parse(f"sparsify{{{options}}}").run(copy, ctx)
    assert [r.problem for r in ctx.results] == [""]
    verify(copy)
    return copy, ctx.results[0]


def arrays(graph):
    """The weights of layers by name."""
    return {node.name: node.given(1).const.numpy() for node in graph.walk() if node.op in ("Conv", "MatMul", "Gemm")}


def outputs(graph, data):
    run = backend("reference").compile(graph)
    return np.concatenate([run(sample)["y"].astype(np.float64) for sample in data])


def share(*found):
    return sum((a == 0).sum() for a in found) / sum(a.size for a in found)


# which weights


@pytest.mark.parametrize("spread", ["even", "global", "lamp"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_the_ratio_is_that_of_all_chosen_weights(method, spread):
    graph, data = network(), images()
    result, record = sparsified(graph, f"ratio=0.7,method={method},spread={spread}", data)
    found, total = arrays(result), 0
    assert share(found["first"]) == 0
    for name in ("kernel", "grouped", "matrix", "last"):
        total += found[name].size
        if spread == "even":
            assert abs(share(found[name]) - 0.7) <= 1 / found[name].size
    assert sum((a == 0).sum() for a in found.values()) == round(0.7 * total)
    assert record.fired == {"weights pruned": 4, "left alone: few input channels (3)": 1}
    assert np.isfinite(outputs(result, data)).all()


def test_magnitude_removes_the_smallest_and_touches_nothing_else():
    result, _ = sparsified(network(), "ratio=0.6,spread=even")
    before, after = weights(), arrays(result)
    for name in ("kernel", "grouped", "matrix", "last"):
        kept = after[name] != 0
        np.testing.assert_array_equal(after[name][kept], before[name][kept])
        assert np.abs(before[name][~kept]).max() <= np.abs(before[name][kept]).min()


def test_global_magnitudes_have_one_limit():
    graph = network()
    for node in graph.walk():
        if node.name == "last":
            edit.set_operand(node, 1, constant(10 * node.given(1).const.numpy()))
    before, after = arrays(graph), arrays(sparsified(graph, "ratio=0.5,spread=global")[0])
    names = ["kernel", "grouped", "matrix", "last"]
    magnitudes = np.concatenate([np.abs(before[n]).ravel() for n in names])
    limit = np.sort(magnitudes)[magnitudes.size // 2]
    for name in names:
        np.testing.assert_array_equal(after[name] == 0, np.abs(before[name]) < limit)


def test_lamp_does_not_see_the_scale_of_a_layer():
    graph = network()
    for node in graph.walk():
        if node.name == "last":
            edit.set_operand(node, 1, constant(64 * node.given(1).const.numpy()))
    scaled, plain = (arrays(sparsified(g, "ratio=0.5")[0]) for g in (graph, network()))
    for name, array in plain.items():
        np.testing.assert_array_equal(scaled[name] == 0, array == 0)


def test_wanda_weighs_by_the_norms_of_inputs():
    weight, data = _numbers(5, 10, 12), rows(12)
    graph = build(lambda x: op.Gemm(x, constant(weight), transB=1), sym("n"), 12)
    (found,) = arrays(sparsified(graph, "method=wanda", data)[0]).values()
    scores = np.abs(weight) * np.linalg.norm(np.concatenate([s["x"] for s in data]), axis=0)
    np.testing.assert_array_equal(found == 0, scores < np.sort(scores, axis=1)[:, 6:7])


PATTERNS = {  # the axis of the weight along which groups lie, and the other axes
    "kernel": lambda w: np.moveaxis(w, 1, -1),  # [K, R, S, C]
    "grouped": lambda w: np.moveaxis(w, 1, -1),
    "matrix": lambda w: w.T,
    "last": lambda w: w,
}


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["2:4", "1:2", "1:4"])
def test_patterns_lie_along_input_channels(pattern, method):
    kept, of = map(int, pattern.split(":"))
    result, record = sparsified(network(), f"pattern={pattern},method={method}", images())
    found = arrays(result)
    for name, moved in PATTERNS.items():
        counts = np.count_nonzero(moved(found[name]).reshape(-1, of), axis=1)
        assert (counts == kept).all(), name
    by_name = {row["layer"]: row for row in record.table}
    assert by_name["first"]["method"] == "left alone: few input channels (3)"
    assert by_name["kernel"]["zeros"] == 1 - kept / of


def test_magnitudes_in_a_pattern_are_the_largest_of_each_group():
    before, after = weights()["kernel"], arrays(sparsified(network(), "pattern=2:4")[0])["kernel"]
    before, after = (np.moveaxis(w, 1, -1).reshape(-1, 4) for w in (before, after))
    order = np.argsort(np.abs(before), axis=1)
    assert (np.take_along_axis(after, order[:, :2], 1) == 0).all()
    np.testing.assert_array_equal(
        np.take_along_axis(after, order[:, 2:], 1), np.take_along_axis(before, order[:, 2:], 1)
    )


def test_layers_that_do_not_fit_the_pattern_are_left_alone():
    result, record = sparsified(network(), "pattern=4:16")  # of 3, 8 and 8 channels, 32 and 24 inputs
    assert [row["method"] for row in record.table] == [
        "left alone: few input channels (3)",
        "left alone: 8 inputs are no multiple of 16",
        "left alone: 8 inputs are no multiple of 16",
        "magnitude",
        "left alone: 24 inputs are no multiple of 16",
    ]
    assert [share(a) for a in arrays(result).values()] == [0, 0, 0, 0.75, 0]


def test_naming_a_layer_prunes_it_although_it_has_few_channels():
    result, _ = sparsified(network(), "ratio=0.5,only=[first]")
    assert {name: share(a) for name, a in arrays(result).items()} == {
        "first": 0.5, "kernel": 0, "grouped": 0, "matrix": 0, "last": 0
    }  # fmt: skip
    assert share(arrays(sparsified(network(), "skip=[last]")[0])["last"]) == 0


@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.FLOAT16, DType.BFLOAT16])
def test_types_stay(dtype):
    weight = constant(_numbers(1, 16, 16).astype(dtype.numpy), dtype)
    graph = build(lambda x: op.MatMul(x, weight), sym("n"), 16, dtype=dtype)
    data = [{"x": s["x"].astype(dtype.numpy)} for s in rows(16)]
    for method in ("magnitude", "sparsegpt"):
        (found,) = arrays(sparsified(graph, f"method={method}", data)[0]).values()
        assert found.dtype == dtype.numpy
        assert share(found) == 0.5


def test_only_the_mask_of_a_large_weight_is_kept():
    weight = _numbers(1, 1024, 512)
    graph = build(lambda x: op.MatMul(x, constant(weight)), sym("n"), 1024)
    result, _ = sparsified(graph, "ratio=0.75")
    (node,) = result.nodes
    source, mask = node.given(1).const.inputs
    assert source is graph.constants()[0].const
    assert mask.nbytes == weight.size // 8
    expected = np.where(np.abs(weight) > np.quantile(np.abs(weight), 0.75), weight, 0)
    np.testing.assert_array_equal(node.given(1).const.numpy(), expected)


# weights in several places


def test_a_shared_weight_stays_shared_and_sees_all_its_inputs():
    weight = constant(_numbers(1, 16, 16), name="w")
    graph = build(lambda x: op.MatMul(op.Relu(op.MatMul(x, weight)), weight), sym("n"), 16)
    result, record = sparsified(graph, "method=sparsegpt", rows(16))
    first, second = (node for node in result.nodes if node.op == "MatMul")
    assert first.given(1) is second.given(1)
    assert share(first.given(1).const.numpy()) == 0.5
    assert len(record.table) == 2


def test_a_weight_that_is_a_table_too_is_left_alone():
    text = ", ".join(map(str, range(64)))
    graph = parse(f"""g (int64[N] i) => (float[N,8] y) <float[8,8] w = {{{text}}}, float[8,8] v = {{{text}}}> {{
        h = Gather (w, i)
        [tied] k = Gemm <transB = 1> (h, w)
        [free] y = MatMul (k, v) }}""")
    result, record = sparsified(graph)
    assert {row["layer"]: row["method"] for row in record.table} == {
        "tied": "left alone: Gather, or a layer that was not chosen, has the same weight", "free": "magnitude"
    }  # fmt: skip
    assert share(arrays(result)["tied"]) == 1 / 64


def test_a_weight_read_in_two_ways_is_left_alone():
    weight = constant(_numbers(1, 8, 8), name="w")
    graph = build(lambda x: op.Gemm(op.MatMul(x, weight), weight, transB=1), sym("n"), 8)
    with pytest.raises(RequestError, match="nothing to prune in 2 layers: w: its weight is used in two layouts"):
        sparsified(graph)


def test_inputs_in_nested_graphs_are_not_seen():
    text = ", ".join(map(str, range(1, 65)))
    constants = f"float[8,8] w = {{{text}}}, float[8,8] v = {{{text}}}"
    graph = parse(f"""g (bool c, float[N,8] x) => (float[N,8] y) <{constants}> {{
        [outer] a = MatMul (x, w)
        y = If (c) <then_branch = t () => (float[N,8] p) {{ [inner] p = MatMul (a, v) }},
                    else_branch = e () => (float[N,8] q) {{ q = Relu (a) }}> }}""")
    data = [{"c": np.array(False), **sample} for sample in rows(8)]
    result, record = sparsified(graph, "method=wanda,spread=even", data)
    assert [(row["layer"], row["method"], row["error"] is None) for row in record.table] == [
        ("outer", "wanda", False), ("inner", "magnitude", True)
    ]  # fmt: skip
    np.testing.assert_array_equal(arrays(result)["inner"].ravel() == 0, np.arange(64) < 32)
    assert "pruned by magnitude, since wanda does not see their inputs: inner" in record.notes


# what the outputs lose


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("correct", ["true", "false"])
def test_the_error_is_predicted(method, correct):
    weight, bias = _numbers(1, 12, 16), _numbers(2, 12)
    graph = build(lambda x: op.Gemm(x, constant(weight), constant(bias), transB=1), sym("n"), 16)
    result, record = sparsified(graph, f"method={method},correct_bias={correct}", rows(16))
    plain = outputs(graph, rows(16))
    expected = np.linalg.norm(outputs(result, rows(16)) - plain) / np.linalg.norm(plain - bias)
    assert record.table[0]["error"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_error_of_a_convolution_is_predicted(group):
    w = constant(_numbers(1, 8, 32 // group, 3, 2))
    graph = build(
        lambda x: op.Conv(x, w, strides=[2, 1], pads=[1, 0, 1, 1], dilations=[1, 2], group=group), 2, 32, 9, 9
    )
    data = [{"x": np.cumsum(_numbers(i, 2, 32, 9, 9), axis=-1)} for i in range(3)]
    for options in ("method=magnitude", "method=sparsegpt", "method=sparsegpt,pattern=2:4"):
        result, record = sparsified(graph, options, data)
        plain = outputs(graph, data)
        expected = np.linalg.norm(outputs(result, data) - plain) / np.linalg.norm(plain)
        assert record.table[0]["error"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", ["ratio=0.5,spread=even", "ratio=0.75,spread=even", "pattern=2:4"])
def test_layers_lose_least_with_sparsegpt(options):
    graph, data = network(), images()
    errors = {
        method: [row["error"] for row in sparsified(graph, f"{options},method={method}", data)[1].table[1:]]
        for method in ("magnitude", "wanda", "sparsegpt")
    }
    for sparsegpt, *others in zip(errors["sparsegpt"], errors["wanda"], errors["magnitude"], strict=True):
        assert sparsegpt < min(others)


@pytest.mark.parametrize("spell", ["gemm", "beta", "matmul", "conv"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_biases_keep_the_mean(spell, method):
    weight, bias = constant(_numbers(1, 16, 12)), constant(_numbers(2, 12))
    kernel, data = constant(_numbers(3, 12, 8, 1, 1)), rows(16)
    body = {
        "gemm": lambda x: op.Gemm(x, weight, bias),
        "beta": lambda x: op.Gemm(x, weight, bias, beta=0.5),
        "matmul": lambda x: bias + op.MatMul(x, weight),
        "conv": lambda x: op.Conv(op.Reshape(x, constant(np.array([-1, 8, 2, 1]))), kernel, bias),
    }[spell]
    graph = build(body, sym("n"), 16)
    axes = (0, 2, 3) if spell == "conv" else 0

    def shift(correct):
        result, _ = sparsified(graph, f"method={method},correct_bias={correct}", data)
        return np.abs((outputs(result, data) - outputs(graph, data)).mean(axis=axes)).max()

    assert shift("true") < 1e-5
    assert shift("false") > 0.01


def test_magnitude_does_not_look_at_data_unless_asked():
    before, after = network(), sparsified(network(), "ratio=0.5", images())[0]
    alone = sparsified(network(), "ratio=0.5")[0]
    assert str(after) == str(alone)
    np.testing.assert_array_equal(outputs(after, images()), outputs(alone, images()))
    biases = [[n.given(2).const.numpy() for n in g.walk() if n.op == "Gemm"] for g in (before, after)]
    np.testing.assert_array_equal(*biases)


# one run after the other


@pytest.mark.parametrize("second", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("first", ["ratio=0.5,spread=global", "pattern=2:4", "ratio=0.9,only=[matrix]"])
def test_zeros_are_only_added(first, second):
    once, _ = sparsified(network(), first, images())
    twice, record = sparsified(once, f"ratio=0.75,spread=even,method={second}", images())
    before, after = arrays(once), arrays(twice)
    names = ["kernel", "grouped", "matrix", "last"]
    assert all((after[n][before[n] == 0] == 0).all() for n in names)
    assert sum((after[n] == 0).sum() for n in names) == round(0.75 * sum(after[n].size for n in names))
    assert [row["before"] for row in record.table[1:]] == [share(before[n]) for n in names]


def test_a_pattern_may_follow_a_looser_one():
    first, _ = sparsified(network(), "pattern=3:4")
    second, _ = sparsified(first, "pattern=2:4,method=sparsegpt", images())
    for name, moved in PATTERNS.items():
        a, b = arrays(first)[name], arrays(second)[name]
        assert (b[a == 0] == 0).all()
        assert (np.count_nonzero(moved(b).reshape(-1, 4), axis=1) == 2).all()


@pytest.mark.parametrize("options", ["ratio=0.5", "pattern=2:4"])
def test_what_is_sparse_enough_stays(options):
    once, _ = sparsified(network(), options)
    twice, record = sparsified(once, options)
    assert record.edits == 0
    assert "sparsify adds nothing: the weights have as many zeros already" in record.notes
    assert str(once) == str(twice)


def test_rounds_go_on_where_the_last_run_stopped():
    found, graph = [], network()
    for _ in range(4):
        graph, _ = sparsified(graph, "ratio=0.8,rounds=3")
        found.append(share(*[a for name, a in arrays(graph).items() if name != "first"]))
    np.testing.assert_allclose(found, [0.8 * 19 / 27, 0.8 * 26 / 27, 0.8, 0.8], atol=1e-3)


@dataclass(frozen=True)
class Disturb(Pass):
    """Stands for training: all constants change, and zeros stay."""

    def run(self, graph, ctx):
        for value in graph.constants():
            array = value.const.numpy()
            edit.replace(value, constant(array * _numbers(array.size, *array.shape), name=value.name))


def test_rewinding_brings_the_original_numbers_back():
    graph = network()
    result, ctx = clone_graph(graph), Context(lambda: backend("reference"))
    Pipeline("sparsify{ratio=0.5}", Disturb(), "sparsify{ratio=0.75,rewind=true}").run(result, ctx)
    assert [r.problem for r in ctx.results] == [""] * 3
    verify(result)
    before, after = arrays(graph), arrays(result)
    assert share(*[after[n] for n in after if n != "first"]) == pytest.approx(0.75, abs=1e-3)
    for old, new in zip(graph.constants(), result.constants(), strict=True):
        old, new = old.const.numpy(), new.const.numpy()
        np.testing.assert_array_equal(new, np.where(new == 0, 0, old))
    again, _ = sparsified(network(), "ratio=0.75")
    assert any(((a == 0) != (b == 0)).any() for a, b in zip(after.values(), arrays(again).values(), strict=True))
    np.testing.assert_array_equal(after["first"], before["first"])


def test_rewinding_needs_an_original():
    with pytest.raises(RequestError, match="rewind needs the model as it was: run sparsify in a pipeline"):
        Sparsify(rewind=True).run(network(), Context(lambda: backend("reference")))


def test_rewinding_needs_the_same_graph():
    graph, ctx = network(), Context(lambda: backend("reference"))
    pipeline = Pipeline("sparsify{ratio=0.5}", "simplify", "sparsify{ratio=0.75,rewind=true}")
    relu = next(node for node in graph.nodes if node.op == "Relu")
    twice = op.Identity(relu.result)
    edit.insert_floating([twice], relu.next)
    for node, at in [use for use in relu.result.uses if use[0] is not twice.producer]:
        edit.set_operand(node, at, twice)
    with pytest.raises(RequestError, match="save what the passes before sparsify make of it"):
        pipeline.run(graph, ctx)


# what is said, and what makes no sense


def test_sizes_are_said_and_speed_is_not_promised():
    _, record = sparsified(network(), "ratio=0.9,spread=even")
    size, worth = record.notes
    n = sum(np.prod(SIZES[name]) for name in SIZES if name != "first")
    kept = n - round(0.9 * n)
    assert size == (
        f"90.0% of {n / 1000:.3g} k weights in 4 layers are 0 (0.0% before): {4 * n / 1000:.3g} kB dense, "
        f"{12 * kept / 1000:.3g} kB as ONNX's sparse tensors where those are smaller, "
        f"{(n / 8 + 4 * kept) / 1000:.3g} kB at best, with a bit for each"
    )
    assert "zeros make nothing faster on onnxruntime" in worth


def test_tensorrt_has_kernels_for_one_pattern():
    notes = [sparsified(network(), o, target="tensorrt")[1].notes[1] for o in ("pattern=2:4", "pattern=1:4", "")]
    assert ["SPARSE_WEIGHTS" in note for note in notes] == [True, False, False]


def test_a_layer_that_is_lost_is_named():
    graph = network()
    for node in graph.walk():
        if node.name == "matrix":
            edit.set_operand(node, 1, constant(1e-3 * node.given(1).const.numpy()))
    _, record = sparsified(graph, "ratio=0.7,spread=global")
    assert "nothing but zeros is left of matrix: skip them, or take spread=lamp" in record.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=0.0", "ratio is 0.0: it is between 0 and 1"),
        ("ratio=1", "ratio is 1: it is between 0 and 1"),
        ("ratio=nan", "ratio is nan: it is between 0 and 1"),
        ("rounds=0", "rounds is 0: at least 1"),
        ("pattern=4:2", "the pattern is N:M with 0 < N < M"),
        ("pattern=2:4,ratio=0.5", "a pattern says how many weights remain"),
        ("pattern=2:4,rounds=2", "a pattern says how many weights remain"),
        ("pattern=2:4,spread=global", "a pattern says how many weights remain"),
        ("method=sparsegpt,rewind=true", "rewind takes back what sparsegpt does"),
        ("method=obd", "method takes one of magnitude, wanda, sparsegpt"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(f"sparsify{{{options}}}")


@pytest.mark.parametrize(
    "text", ["sparsify", "sparsify{ratio=0.75,rounds=3}", "sparsify{pattern=2:4,method=sparsegpt}"]
)
def test_a_pipeline_prints_as_it_is_written(text):
    assert str(Pipeline.parse(text)) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("method=wanda", "wanda looks at inputs: give data"),
        ("method=sparsegpt", "sparsegpt looks at inputs: give data"),
        ("correct_bias=true", "correct_bias needs the means of inputs: give data"),
        ("only=[nobody]", "no layer matches 'nobody'"),
        ("skip=[Conv,MatMul,Gemm]", "nothing to prune in 0 layers"),
        ("pattern=7:9", "nothing to prune in 5 layers: first: few input channels"),
    ],
)
def test_requests_that_make_no_sense(options, message):
    with pytest.raises(RequestError, match=message):
        sparsified(network(), options)


def test_a_weight_that_is_not_finite_is_refused():
    weight = _numbers(1, 8, 8)
    weight[2, 3] = np.nan
    graph = build(lambda x: op.MatMul(x, constant(weight, name="w")), sym("n"), 8)
    with pytest.raises(RequestError, match="w: the weight holds numbers that are not finite: skip it"):
        sparsified(graph)


def test_a_graph_without_layers_is_refused():
    with pytest.raises(RequestError, match="nothing to prune: no Conv, ConvTranspose, MatMul or Gemm"):
        sparsified(build(op.Relu, 3))


def test_digits_survive_half_their_weights():
    """The demo: two of four weights, and biases and the rest make up for them."""
    folder = planish.__path__[0]
    with np.load(f"{folder}/demo/digits_heldout.npz") as heldout:
        pictures, labels = heldout["images"], heldout["labels"]
    graph = planish.load(f"{folder}/demo/digits.onnx")
    (name,) = (v.name for v in graph.inputs)

    def accuracy(pipeline):
        copy, ctx = (
            clone_graph(graph),
            Context(lambda: backend("onnxruntime"), samples=lambda: [{name: pictures[:128]}]),
        )
        Pipeline(pipeline).run(copy, ctx)
        (logits,) = backend("onnxruntime").run(copy, {name: pictures[128:]}).values()
        return (logits.argmax(1) == labels[128:]).mean()

    found = [accuracy(f"default,sparsify{{pattern=2:4,method={m}}}") for m in ("sparsegpt", "magnitude")]
    assert found[0] > 0.96
    assert found[0] > found[1]
