"""``drop-layers``: what is left computes what a network built without these layers computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from planish.backends import backend
from planish.ir import DType, Graph, GraphOutput, Value, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline, PipelineError
from planish.passes.base import PassResult, RequestError
from planish.passes.prune.blocks import blocks_of

Inputs = dict[str, np.ndarray]
D, HEADS, VOCABULARY = 16, 2, 40
Numbers = Callable[..., np.ndarray]


def numbers(*seed: int) -> Numbers:
    """Makes arrays for one layer: the same ones whenever it is built."""
    rng = np.random.default_rng(seed)
    return lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def norm(x: Value, make: Numbers) -> Value:
    return op.LayerNormalization(x, 1 + make(D), make(D), axis=-1)


def attention(x: Value, memory: Value, mask: Value | None, make: Numbers) -> Value:
    q, k, v = (op.MatMul(source, make(D, D)) + make(D) for source in (x, memory, memory))
    found = op.Attention(q, k, v, mask, q_num_heads=HEADS, kv_num_heads=HEADS)
    return op.MatMul(found, make(D, D))


def feed_forward(x: Value, make: Numbers) -> Value:
    return op.MatMul(op.Gelu(op.MatMul(x, make(D, 3 * D)) + make(3 * D)), make(3 * D, D)) + make(D)


def pre_norm(x: Value, mask: Value | None, make: Numbers) -> Value:
    h = norm(x, make)
    x = x + attention(h, h, mask, make)
    return x + feed_forward(norm(x, make), make)


def post_norm(x: Value, mask: Value | None, make: Numbers) -> Value:
    x = norm(attention(x, x, mask, make) + x, make)
    return norm(feed_forward(x, make) + x, make)


def parallel(x: Value, mask: Value | None, make: Numbers) -> Value:
    """Attention and feed-forward side by side, as in GPT-J."""
    h = norm(x, make)
    return op.Add(op.Add(x, attention(h, h, mask, make)), feed_forward(h, make))


STYLES = {"pre-norm": pre_norm, "post-norm": post_norm, "parallel": parallel}


def finish(graph: Graph, outputs: dict[str, Value]) -> Graph:
    edit.insert_floating(outputs.values(), graph.ret)
    graph.set_outputs(outputs.values(), [GraphOutput(name) for name in outputs])
    return graph


def encoder(style: str, layers: Sequence[int], weights: dict[int, Numbers] | None = None) -> Graph:
    """Ids and a mask to one vector per row; layer i has the weights that `numbers` makes of it (or ``weights``)."""
    graph = Graph("encoder", opsets={"": 23})
    ids = graph.add_input(tensor_type(DType.INT64, sym("batch"), sym("length")), "ids")
    seen = graph.add_input(tensor_type(DType.INT64, sym("batch"), sym("length")), "seen")
    make = numbers(100)
    x = norm(op.Gather(make(VOCABULARY, D) * 4, ids, axis=0), make)
    mask = op.Unsqueeze(op.Cast(seen, to=DType.BOOL), constant([1, 2], DType.INT64))
    for i in layers:
        x = STYLES[style](x, mask, (weights or {}).get(i) or numbers(i))
    pooled = op.ReduceMean(norm(x, make), constant([1], DType.INT64), keepdims=0)
    return finish(graph, {"y": op.MatMul(pooled, make(D, 5))})


def conv_net(stages: Sequence[Sequence[int]]) -> Graph:
    """A residual network: in each stage a convolution that halves the image, and blocks with an identity around."""
    graph = Graph("convnet", opsets={"": 21})
    x = graph.add_input(tensor_type(DType.FLOAT, sym("batch"), 3, 32, 32), "x")
    channels = 3
    for number, stage in enumerate(stages):
        make = numbers(200, number)
        x = op.Relu(op.Conv(x, make(8 << number, channels, 3, 3) * 0.3, strides=[2, 2], pads=[1, 1, 1, 1]))
        channels = 8 << number
        for i in stage:
            make = numbers(300, number, i)
            h = op.Relu(op.Conv(x, make(channels, channels, 3, 3) * 0.3, make(channels), pads=[1, 1, 1, 1]))
            x = op.Relu(op.Add(op.Conv(h, make(channels, channels, 3, 3) * 0.3, pads=[1, 1, 1, 1]), x))
    return finish(graph, {"y": op.Flatten(op.GlobalAveragePool(x))})


def sample(seed: int = 0, batch: int = 3, length: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, VOCABULARY, (batch, length)),
        "seen": (np.arange(length) < rng.integers(2, length + 1, (batch, 1))).astype(np.int64),
    }


def image(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((2, 3, 32, 32)).astype(np.float32)}


def dropped(graph: Graph, options: str, samples: list[Inputs] | None = None) -> tuple[Graph, PassResult]:
    """A copy of ``graph`` without layers, and what the pass reports."""
    changed = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"), samples=None if samples is None else lambda: samples)
    Pipeline.parse(f"drop-layers{{{options}}}").run(changed, ctx)
    assert not ctx.results[0].problem
    verify(changed)
    return changed, ctx.results[0]


def assert_same(graph: Graph, expected: Graph, inputs: Inputs) -> None:
    assert len(graph) == len(expected)
    found, wanted = backend("reference").run(graph, inputs), backend("reference").run(expected, inputs)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["pre-norm", "post-norm", "parallel"])
@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("layers=[1,3]", [0, 2, 4]),
        ("layers=[0,1,2]", [3, 4]),
        ("layers=[4]", [0, 1, 2, 3]),
        ("keep=2,by=last", [0, 1]),
        ("keep=3,by=every", [0, 1, 3]),
        ("drop=1,by=every", [0, 1, 2, 3]),
        ("ratio=0.6", [0, 2]),
    ],
)
def test_a_transformer_without_some_layers(style: str, options: str, left: list[int]) -> None:
    graph, result = dropped(encoder(style, range(5)), options)
    assert_same(graph, encoder(style, left), sample())
    assert [row["layer"] for row in result.table if row["result"] == "kept"] == left
    assert result.fired["layers left out"] == 5 - len(left)


def test_every_second_layer_goes_without_samples() -> None:
    for options in ("", "ratio=0.5", "keep=3"):
        graph, _ = dropped(encoder("post-norm", range(6)), options)
        assert_same(graph, encoder("post-norm", [0, 2, 4]), sample())


def test_exported_transformers_fused_or_not() -> None:
    """Written out in small operators, a post-norm encoder has the same layers."""
    graph = encoder("post-norm", range(4))
    Pipeline.parse("simplify").run(graph, Context())
    changed, _ = dropped(graph, "layers=[1,2]")
    wanted = backend("reference").run(encoder("post-norm", [0, 3]), sample())
    np.testing.assert_allclose(backend("reference").run(changed, sample())["y"], wanted["y"], rtol=1e-5, atol=1e-6)


def test_blocks_of_a_convolutional_network() -> None:
    graph, result = dropped(conv_net([[0, 1, 2], [0, 1]]), "layers=[1,4]")
    assert_same(graph, conv_net([[0, 2], [0]]), image())
    assert [row["stack"] for row in result.table] == [0, 0, 0, 1, 1]


def test_the_layers_that_change_least_go() -> None:
    """Against cosines of hidden states, computed by numpy from what the blocks say are their ends."""
    graph, samples = encoder("pre-norm", range(4)), [sample(1), sample(2, batch=1, length=9)]
    probe = clone_graph(graph)
    blocks = blocks_of(probe)
    values = [blocks[0].entry, *(b.exit for b in blocks)]
    finish(probe, {f"h{i}": v for i, v in enumerate(values)})
    runs = [backend("reference").run(probe, s) for s in samples]

    def influence(i: int) -> float:
        cosines = []
        for run in runs:
            x, y = run[f"h{i}"].reshape(-1, D), run[f"h{i + 1}"].reshape(-1, D)
            cosines += ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).tolist()
        return 1 - float(np.mean(cosines))

    expected = [influence(i) for i in range(4)]
    changed, result = dropped(graph, "drop=2", samples)
    np.testing.assert_allclose([row["influence"] for row in result.table], expected, rtol=1e-4)
    left = sorted(np.argsort(expected)[2:])
    assert_same(changed, encoder("pre-norm", left), sample())


def test_influence_of_images_is_that_of_channels() -> None:
    _, result = dropped(conv_net([[0, 1, 2]]), "drop=1", [image(1)])
    graph = conv_net([[0, 1, 2]])
    block = blocks_of(graph)[0]
    finish(graph, {"x0": block.entry, "x1": block.exit})
    run = backend("reference").run(graph, image(1))
    x, y = run["x0"], run["x1"]
    with np.errstate(invalid="ignore"):
        cosines = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    assert result.table[0]["influence"] == pytest.approx(1 - np.nanmean(cosines), rel=1e-4)


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
def test_merged_layers_are_means(style: str) -> None:
    def mean(shape: tuple[int, ...], *makes: object) -> np.ndarray:
        return np.mean([make(*shape) for make in makes], axis=0, dtype=np.float32)  # type: ignore[operator]

    zero_one, three_four = [numbers(0), numbers(1)], [numbers(3), numbers(4)]
    weights = {0: lambda *shape: mean(shape, *zero_one), 3: lambda *shape: mean(shape, *three_four)}
    graph, result = dropped(encoder(style, range(5)), "layers=[1,4],merge=true")
    expected = encoder(style, [0, 2, 3], weights)  # type: ignore[arg-type]
    assert_same(graph, expected, sample())
    assert result.fired["layers merged"] == 2


def test_weights_that_layers_share_stay_shared() -> None:
    """ALBERT: the same weights in every layer."""
    shared = numbers(7)
    made: list[object] = []

    def replayed() -> object:
        position = iter(range(10_000))

        def make(*shape: int) -> object:
            i = next(position)
            if i == len(made):
                made.append(constant(shared(*shape)))
            return made[i]

        return make

    graph = Graph("albert", opsets={"": 23})
    x = graph.add_input(tensor_type(DType.FLOAT, sym("n"), sym("t"), D), "x")
    y = op.Relu(x)
    for _ in range(4):
        y = pre_norm_of_values(y, replayed())
    finish(graph, {"y": y})
    weights = len(graph.constants())
    changed, _ = dropped(graph, "keep=2,merge=true")
    assert len(changed.constants()) == weights


def pre_norm_of_values(x: object, make: object) -> object:
    h = op.LayerNormalization(x, make(D), make(D))  # type: ignore[operator]
    return op.Add(x, op.MatMul(op.Gelu(op.MatMul(h, make(D, D))), make(D, D)))  # type: ignore[operator]


def test_a_decoder_reads_the_same_memory() -> None:
    def seq2seq(encoders: list[int], decoders: list[int]) -> Graph:
        graph = Graph("seq2seq", opsets={"": 23})
        x, y = (
            graph.add_input(tensor_type(DType.FLOAT, sym("n"), sym(length), D), name)
            for name, length in (("x", "source"), ("y", "target"))
        )
        memory, state = op.Relu(x), op.Relu(y)
        for i in encoders:
            memory = pre_norm(memory, None, numbers(i))
        for i in decoders:
            make = numbers(50 + i)
            h = norm(state, make)
            state = state + op.MatMul(
                op.Softmax(op.MatMul(h, op.Transpose(memory, perm=[0, 2, 1]))), memory @ make(D, D)
            )
            state = state + op.MatMul(op.Gelu(norm(state, make) @ make(D, 2 * D)), make(2 * D, D))
        return finish(graph, {"z": state})

    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal((2, length, D)).astype(np.float32) for n, length in (("x", 5), ("y", 4))}
    graph, result = dropped(seq2seq([0, 1, 2], [0, 1, 2]), "layers=[1,4]")
    assert_same(graph, seq2seq([0, 2], [0, 2]), inputs)
    assert len(result.table) == 6


def with_cache(layers: int) -> Graph:
    graph = Graph("cached", opsets={"": 23})
    x = graph.add_input(tensor_type(DType.FLOAT, 1, 1, D), "x")
    y, outputs = op.Relu(x), {}
    for i in range(layers):
        make = numbers(i)
        past = graph.add_input(tensor_type(DType.FLOAT, 1, sym("past"), D), f"past.{i}")
        h = norm(y, make)
        keys = op.Concat(past, h @ make(D, D), axis=1)
        if i != 1:
            outputs[f"present.{i}"] = keys
        scores = op.Softmax(op.MatMul(h, op.Transpose(keys, perm=[0, 2, 1])))
        y = y + op.MatMul(scores, keys)
        y = y + op.MatMul(op.Gelu(norm(y, make) @ make(D, D)), make(D, D))
    return finish(graph, {"y": y, **outputs})


def test_a_layer_with_a_cache_stays() -> None:
    with pytest.raises(RequestError, match=r"layer 2 cannot go: it computes present\.2 besides its result"):
        dropped(with_cache(4), "layers=[2]")
    with pytest.raises(RequestError, match="2 of 4 layers are to go, and 3 have to stay: layer 0, for one"):
        dropped(with_cache(4), "keep=2")
    _, result = dropped(with_cache(4), "drop=1")
    assert [row["result"] for row in result.table][1:3] == [
        "left out", "kept: it computes present.2 besides its result",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keep=6", "of 5 layers, nothing would go"),
        ("keep=5", "of 5 layers, nothing would go"),
        ("drop=5", "of 5 layers, none would stay"),
        ("ratio=0.05", "of 5 layers, nothing would go"),
        ("layers=[5]", "there is no layer 5: they are numbered 0 to 4"),
        ("keep=3,by=importance", "by=importance needs samples"),
    ],
)
def test_requests_that_make_no_sense_for_the_model(options: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        dropped(encoder("pre-norm", range(5)), options)


@pytest.mark.parametrize(
    "options",
    ["{keep=0}", "{drop=0}", "{ratio=1.0}", "{keep=1,drop=1}", "{layers=[1,1]}", "{layers=[-1]}",
     "{layers=[1],by=last}", "{keep=2,by=first}"],
)  # fmt: skip
def test_options_that_make_no_sense(options: str) -> None:
    with pytest.raises(PipelineError):
        Pipeline.parse(f"drop-layers{options}")


def test_a_network_without_residuals_has_no_layers() -> None:
    graph = Graph("mlp", opsets={"": 21})
    x = y = graph.add_input(tensor_type(DType.FLOAT, sym("n"), D), "x")
    for i in range(4):
        y = op.Relu(op.MatMul(y, numbers(i)(D, D)))
    finish(graph, {"y": y, "x": op.Identity(x)})
    with pytest.raises(RequestError, match="no residual blocks"):
        dropped(graph, "keep=1")


def test_unlike_layers_are_told_by_their_modules() -> None:
    """Nothing repeats here: every layer has another width inside, and all but the first one norm more."""

    def model(layers: Sequence[int]) -> Graph:
        graph = Graph("g", opsets={"": 23})
        x = graph.add_input(tensor_type(DType.FLOAT, sym("n"), sym("t"), D), "x")
        y = op.Relu(x)
        for i in layers:
            make, before = numbers(i), set(edit.floating([y]))
            h = norm(y, make) if i else y
            y = y + op.MatMul(op.Softmax(op.MatMul(h, make(D, 8 + i))), make(8 + i, D))
            y = y + op.MatMul(op.Gelu(norm(y, make) @ make(D, 16 + i)), make(16 + i, D))
            for node in edit.floating([y]):
                if node not in before:
                    node.metadata = {"planish.module": f"layers.{i}"}
        return finish(graph, {"y": y})

    graph, result = dropped(model([0, 1, 2]), "layers=[1]")
    assert [row["name"] for row in result.table] == ["layers.0", "layers.1", "layers.2"]
    assert_same(graph, model([0, 2]), {"x": np.ones((1, 2, D), np.float32)})


def test_added_tables_make_no_difference() -> None:
    """Windows that are shifted in every second layer only, with a mask of their own, as in Swin."""

    def model(layers: Sequence[int]) -> Graph:
        graph = Graph("g", opsets={"": 23})
        x = graph.add_input(tensor_type(DType.FLOAT, sym("n"), 4, D), "x")
        y = op.Relu(x)
        for i in layers:
            make = numbers(i)
            h = norm(y, make)
            scores = op.MatMul(h @ make(D, D), op.Transpose(h, perm=[0, 2, 1]))
            scores = scores + make(4, 4) if i % 2 else scores
            y = y + op.MatMul(op.Softmax(scores), h @ make(D, D))
            y = y + op.MatMul(op.Gelu(norm(y, make) @ make(D, D)), make(D, D))
        return finish(graph, {"y": y})

    graph, result = dropped(model(range(4)), "layers=[1,2]")
    assert [row["stack"] for row in result.table] == [0, 0, 0, 0]
    assert_same(graph, model([0, 3]), {"x": np.ones((1, 4, D), np.float32)})
