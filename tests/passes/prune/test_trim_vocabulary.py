"""``trim-vocabulary``: tokens that stay mean what they meant, and those that go what was asked for; against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planish
from planish.backends import backend
from planish.ir import DType, Graph, GraphOutput, Value, constant, edit, op, sym, tensor_type
from planish.ir.clone import clone_graph
from planish.ir.verify import verify
from planish.passes import Context, Pipeline, PipelineError
from planish.passes.base import PassResult, RequestError

V, D = 300, 8
RNG = np.random.default_rng(5)
TABLE = RNG.standard_normal((V, D)).astype(np.float32)
POSITIONS = RNG.standard_normal((64, D)).astype(np.float32)
KINDS = RNG.standard_normal((2, D)).astype(np.float32)
HEAD = RNG.standard_normal((D, V)).astype(np.float32)
Inputs = dict[str, np.ndarray]


def finish(graph: Graph, outputs: dict[str, Value]) -> Graph:
    edit.insert_floating(outputs.values(), graph.ret)
    graph.set_outputs(outputs.values(), [GraphOutput(name) for name in outputs])
    return graph


def start(*names: str) -> tuple[Graph, list[Value]]:
    graph = Graph("g", opsets={"": 21})
    return graph, [graph.add_input(tensor_type(DType.INT64, sym("n"), sym("t")), name) for name in names]


def embedder() -> Graph:
    """Embeddings of tokens, kinds of tokens, and positions, added."""
    graph, (kinds, ids) = start("kinds", "ids")
    length = op.Shape(ids, start=1)
    at = op.Range(constant(0), op.Squeeze(length), constant(1))
    total = op.Gather(constant(TABLE, name="words"), ids, axis=0) + op.Gather(constant(KINDS), kinds, axis=0)
    return finish(graph, {"y": total + op.Gather(constant(POSITIONS), at, axis=0)})


def reference(table: np.ndarray, inputs: Inputs) -> np.ndarray:
    return table[inputs["ids"]] + KINDS[inputs["kinds"]] + POSITIONS[: inputs["ids"].shape[1]]


def sample(ids: object) -> Inputs:
    array = np.array(ids, np.int64)
    return {"ids": array, "kinds": np.arange(array.size).reshape(array.shape) % 2}


def trimmed(
    graph: Graph, options: str, samples: list[Inputs] | None = None, target: str = "onnxruntime"
) -> tuple[Graph, PassResult]:
    changed = clone_graph(graph)
    ctx = Context(lambda: backend("onnxruntime"), target=target, samples=None if samples is None else lambda: samples)
    Pipeline.parse(f"trim-vocabulary{{{options}}}").run(changed, ctx)
    assert not ctx.results[0].problem
    verify(changed)
    return changed, ctx.results[0]


def run(graph: Graph, inputs: Inputs, engine: str = "reference") -> dict[str, np.ndarray]:
    return backend(engine).run(graph, inputs)


def write(folder: Path, ids: object, name: str = "ids.txt") -> Path:
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, np.array(ids))
    else:
        path.write_text("".join(f"{i}\n" for i in ids))  # type: ignore[attr-defined]
    return path


def rows_of(graph: Graph) -> int:
    return max(v.const.shape[0] for v in graph.constants() if v.const is not None and v.const.dtype is DType.FLOAT)


def nearest(kept: list[int]) -> np.ndarray:
    """The table in which every row that goes is the nearest that stays."""
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    order = sorted(kept)
    found = TABLE[np.array(order)[(unit @ unit[order].T).argmax(1)]]
    found[kept] = TABLE[kept]
    return found


# what is computed

KEPT = [2, 7, 40, 41, 299]


@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
@pytest.mark.parametrize("name", ["ids.txt", "ids.npy"])
def test_tokens_that_stay_and_others(tmp_path: Path, name: str, engine: str) -> None:
    graph, result = trimmed(embedder(), f"tokens='{write(tmp_path, [41, 2, 7, 299, 40], name)}'")
    inputs = sample([[2, 7, 40, 41], [299, 0, 1, 298], [-1, 100, -V, 3]])
    np.testing.assert_allclose(run(graph, inputs, engine)["y"], reference(nearest(KEPT), inputs), rtol=1e-6)
    assert rows_of(graph) == 64  # the positions are the largest table now
    saved = (V - 5) * D * 4 - V * 2  # the map has 16 bits
    assert f"5 of 300 tokens kept: {saved:,} bytes saved" in result.notes


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=120, unique=True), st.integers(0, 2**32 - 1))
def test_any_tokens(kept: list[int], seed: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        graph, _ = trimmed(embedder(), f"tokens='{write(Path(folder), kept)}'")
    inputs = sample(np.random.default_rng(seed).integers(0, V, (4, 50)))
    np.testing.assert_allclose(run(graph, inputs)["y"], reference(nearest(kept), inputs), rtol=1e-6)


def test_all_that_go_become_their_mean(tmp_path: Path) -> None:
    graph, _ = trimmed(embedder(), f"tokens='{write(tmp_path, KEPT)}',unknown=mean")
    table = np.tile(np.delete(TABLE, KEPT, 0).mean(0), (V, 1))
    table[KEPT] = TABLE[KEPT]
    inputs = sample([[2, 3, 41, 200]])
    np.testing.assert_allclose(run(graph, inputs)["y"], reference(table, inputs), rtol=1e-5, atol=1e-6)


def test_all_that_go_become_an_unknown_token_which_stays(tmp_path: Path) -> None:
    graph, result = trimmed(embedder(), f"tokens='{write(tmp_path, KEPT)}',unknown=100")
    table = np.tile(TABLE[100], (V, 1))
    table[KEPT] = TABLE[KEPT]
    inputs = sample([[2, 3, 100, 41, 200]])
    np.testing.assert_allclose(run(graph, inputs)["y"], reference(table, inputs), rtol=1e-6)
    assert result.notes[0].startswith("6 of 300 tokens kept")


def test_tokens_of_the_samples_the_most_frequent_first() -> None:
    samples = [sample([[5, 5, 9, 9, 1]]), sample([[5, 8, 200, 8, 9]])]  # 5 and 9 three times, 8 twice, 1 and 200 once
    graph, result = trimmed(embedder(), "size=4", samples)
    inputs = sample([[5, 9, 8, 1, 200]])
    np.testing.assert_allclose(run(graph, inputs)["y"], reference(nearest([1, 5, 8, 9]), inputs), rtol=1e-6)
    assert result.notes[1] == "10.00% of the tokens in the samples are unknown now"
    graph, result = trimmed(embedder(), "", samples)
    np.testing.assert_allclose(run(graph, inputs)["y"], reference(TABLE, inputs), rtol=1e-6)
    assert result.notes[0].startswith("5 of 300 tokens kept")


def test_two_inputs_that_share_a_table(tmp_path: Path) -> None:
    """An encoder and a decoder whose ids are shifted in the graph."""
    graph, (source, target) = start("source", "target")
    words = constant(TABLE)
    shifted = op.Concat(constant([[7]]), op.Slice(target, constant([0]), constant([-1]), constant([1])), axis=1)
    finish(graph, {"a": op.Gather(words, source, axis=0), "b": op.Gather(words, shifted, axis=0)})
    inputs = {"source": np.array([[2, 299]]), "target": np.array([[41, 12, 2]])}
    changed, _ = trimmed(graph, f"tokens='{write(tmp_path, KEPT)}'")
    found, table = run(changed, inputs), nearest(KEPT)
    np.testing.assert_allclose(found["a"], table[[[2, 299]]])
    np.testing.assert_allclose(found["b"], table[[[7, 41, 12]]])
    assert rows_of(changed) == 5
    counted, result = trimmed(graph, "", [inputs])
    assert result.notes[0].startswith("5 of 300 tokens kept")  # 2, 299, 7, 41, 12: the last of the targets is not read
    np.testing.assert_allclose(run(counted, inputs)["b"], TABLE[[[7, 41, 12]]])


def test_the_input_can_be_named(tmp_path: Path) -> None:
    graph, (items, words) = start("items", "words")
    small = RNG.standard_normal((200, D)).astype(np.float32)
    finish(graph, {"a": op.Gather(constant(TABLE), words, axis=0), "b": op.Gather(constant(small), items, axis=0)})
    changed, _ = trimmed(graph, f"tokens='{write(tmp_path, [3, 150])}',input=items")
    found = run(changed, {"items": np.array([[3, 150]]), "words": np.array([[1, 299]])})
    np.testing.assert_array_equal(found["b"], small[[[3, 150]]])
    np.testing.assert_array_equal(found["a"], TABLE[[[1, 299]]])
    with pytest.raises(RequestError, match="the graph has no input 'ids'"):
        trimmed(graph, "input=ids")


def test_maps_have_the_type_that_the_target_reads(tmp_path: Path) -> None:
    tokens = f"tokens='{write(tmp_path, KEPT)}'"
    for target, kind in (("onnxruntime:x64", DType.UINT16), ("xla", DType.INT32), ("tensorrt", DType.INT32)):
        graph, _ = trimmed(embedder(), tokens, target=target)
        assert [v.dtype for v in graph.constants() if v.name == "row_of_token"] == [kind]


def test_what_comes_out_can_be_trained_and_quantized(tmp_path: Path) -> None:
    graph, _ = trimmed(embedder(), f"tokens='{write(tmp_path, list(range(0, V, 2)))}'")
    function = planish.to_jax(graph)
    inputs = sample([[2, 4, 7, 9]])
    found = np.asarray(function(function.params, *(inputs[name] for name, _ in function.inputs))[0])
    np.testing.assert_allclose(found, run(graph, inputs)["y"], rtol=1e-6)
    assert any(p.shape == (150, D) for p in function.params.values())


# logits


def language_model(tie: str) -> Graph:
    graph, (ids,) = start("ids")
    words = constant(TABLE, name="words")
    hidden = op.Tanh(op.Gather(words, ids, axis=0))
    if tie == "gemm":
        rows = op.Reshape(hidden, constant([-1, D]))
        logits = op.Gemm(rows, words, constant(TABLE[:, 0]), transB=1)
    elif tie == "transpose":
        logits = op.MatMul(hidden, op.Transpose(words, perm=[1, 0])) + constant(TABLE[:, 0])
    else:
        logits = op.MatMul(hidden, constant(HEAD))
    graph = finish(graph, {"logits": logits})
    Pipeline.parse("simplify").run(graph, Context())
    return graph


@pytest.mark.parametrize("unknown", ["nearest", "mean", "7"])
@pytest.mark.parametrize("tie", ["gemm", "transpose", "untied"])
def test_logits_of_tokens_that_stay(tmp_path: Path, tie: str, unknown: str) -> None:
    graph, result = trimmed(language_model(tie), f"tokens='{write(tmp_path, KEPT)}',outputs=true,unknown={unknown}")
    inputs = {"ids": np.array([[2, 41, 7], [299, 40, 2]])}
    before, after = (run(g, inputs)["logits"] for g in (language_model(tie), graph))
    assert before.shape == after.shape
    np.testing.assert_allclose(after[..., KEPT], before[..., KEPT], rtol=1e-5)
    assert (np.delete(after, KEPT, -1) < -9e3).all()
    assert result.fired["products that compute logits trimmed"] == 1


def test_a_table_that_computes_logits_stays_one_tensor(tmp_path: Path) -> None:
    """A tied weight that is large enough to stay a transpose of the table."""
    changed, _ = trimmed(large_tied_model(), f"tokens='{write(tmp_path, range(100))}',outputs=true")
    tensors = [v.const for v in changed.constants() if v.const is not None and v.const.dtype is DType.FLOAT]
    assert [t.shape for t in tensors if len(t.shape) == 2] == [(100, 16)]
    inputs = {"ids": np.arange(100).reshape(1, 100)}
    found, expected = (run(g, inputs)["logits"][..., :100] for g in (changed, large_tied_model()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def large_tied_model() -> Graph:
    table = np.random.default_rng(0).standard_normal((20_000, 16)).astype(np.float32)
    graph, (ids,) = start("ids")
    words = constant(table, name="words")
    finish(graph, {"logits": op.MatMul(op.Gather(words, ids, axis=0), op.Transpose(words, perm=[1, 0]))})
    Pipeline.parse("simplify").run(graph, Context())
    return graph


def test_logits_are_not_changed_unasked(tmp_path: Path) -> None:
    tokens = f"tokens='{write(tmp_path, KEPT)}'"
    for model in (language_model("gemm"), large_tied_model()):
        with pytest.raises(RequestError, match="the table words computes logits, too: say outputs=true"):
            trimmed(model, tokens)
    graph, _ = trimmed(language_model("untied"), tokens)
    inputs = {"ids": np.array([[2, 41]])}
    np.testing.assert_allclose(run(graph, inputs)["logits"], np.tanh(TABLE[[[2, 41]]]) @ HEAD, rtol=1e-5)
    with pytest.raises(RequestError, match="outputs=true, but no weight has a column per token"):
        trimmed(embedder(), tokens + ",outputs=true")


# renumbered ids


@pytest.mark.parametrize("name", ["kept.txt", "kept.npy"])
def test_without_remap_ids_are_renumbered(tmp_path: Path, name: str) -> None:
    kept = tmp_path / name
    graph, _ = trimmed(embedder(), f"tokens='{write(tmp_path, KEPT)}',remap=false,kept='{kept}'")
    ids = np.load(kept) if name.endswith("npy") else np.loadtxt(kept, dtype=np.int64)
    assert ids.tolist() == KEPT
    old = sample([[7, 299, 2]])
    new = dict(old, ids=np.searchsorted(ids, old["ids"]))
    np.testing.assert_allclose(run(graph, new)["y"], reference(TABLE, old), rtol=1e-6)
    assert len(graph) == len(embedder())


# refusals


def test_tables_that_something_else_reads(tmp_path: Path) -> None:
    graph, (ids,) = start("ids")
    words = constant(TABLE, name="words")
    finish(graph, {"y": op.Gather(words, ids, axis=0), "norm": op.ReduceMax(words)})
    with pytest.raises(RequestError, match="the table words is also read by ReduceMax"):
        trimmed(graph, f"tokens='{write(tmp_path, KEPT)}'")


def test_models_without_a_vocabulary() -> None:
    graph, (ids,) = start("ids")
    finish(graph, {"y": op.Gather(constant(TABLE), op.Shape(ids), axis=0)})
    with pytest.raises(RequestError, match="no table of constant embeddings is indexed"):
        trimmed(graph, "", [{"ids": np.array([[1]])}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no token ids"),
        ("1\n2\nthree\n", "line 3: 'three' is no token id"),
        ("1\n-2\n", "line 2: '-2' is no token id"),
        ("1\n300\n", "token 300 has no row in the table, which has 300"),
        ("5\n6\n5\n", "token 5 is there twice"),
        ("9" * 5000, "is no token id"),
        (b"\xff\xfe\x00", "can't decode"),
        (None, "No such file"),
    ],
)
def test_files_at_fault(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "ids.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=message) as error:
        trimmed(embedder(), f"tokens='{path}'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.0, 2.0]), "holds float64"),
        (np.array([[1, 2]]), r"holds int64\[1, 2\]"),
        (np.array([1, V]), "token 300 has no row"),
        (np.array([], np.int32), "holds no token ids"),
        (np.array([None, 1]), "is no array of token ids"),
        (b"not numpy", "is no array of token ids"),
    ],
)
def test_arrays_at_fault(tmp_path: Path, array: object, message: str) -> None:
    path = tmp_path / "ids.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message):
        trimmed(embedder(), f"tokens='{path}'")


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    tokens = f"tokens='{write(tmp_path, KEPT)}'"
    with pytest.raises(RequestError, match="which tokens"):
        trimmed(embedder(), "")
    with pytest.raises(RequestError, match="unknown is 300, and the table has 300 rows"):
        trimmed(embedder(), tokens + ",unknown=300")
    everything = write(tmp_path, range(V), "all.txt")
    with pytest.raises(RequestError, match="300 of 300 tokens stay, so nothing would be saved"):
        trimmed(embedder(), f"tokens='{everything}'")
    with pytest.raises(RequestError, match="No such file"):
        trimmed(embedder(), f"{tokens},remap=false,kept='{tmp_path / 'nowhere' / 'kept.txt'}'")


@pytest.mark.parametrize(
    "options",
    ["size=0", "size=5,tokens=x.txt", "unknown=-1", "unknown=other", "remap=false", "remap=false,kept=k,outputs=true"],
)
def test_options_that_make_no_sense(options: str) -> None:
    with pytest.raises(PipelineError):
        Pipeline.parse(f"trim-vocabulary{{{options}}}")
