"""StableHLO files: exported for several platforms and open sizes, saved, loaded, run; damaged ones are refused."""

import json
import zipfile

import numpy as np
import onnx.parser
import pytest

import planish
from planish.backends import backend
from planish.ir.errors import PlanishError
from planish.ir.text import parse

RNG = np.random.default_rng(7)
W = RNG.normal(size=(6, 4)).astype("f")
TABLE = RNG.normal(size=(10, 6)).astype("f")


def model_of(text, **weights):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    for value in [v for v in model.graph.input if v.name in weights]:
        model.graph.input.remove(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights[value.name], value.name))
    return planish.load(model)


@pytest.fixture
def graph():
    text = "g (int64[batch, sequence] ids, float[6, 4] w, float[10, 6] table) => (float[batch, sequence, 4] y) {"
    return model_of(text + " rows = Gather (table, ids) y = MatMul (rows, w) }", w=W, table=TABLE)


@pytest.fixture
def saved(graph, tmp_path):
    path = tmp_path / "m.stablehlo"
    backend("xla").write(graph, path)
    return path


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 3)])
def test_one_file_runs_at_all_sizes(saved, shape):
    program = backend("xla").load(saved)
    ids = RNG.integers(0, 10, shape)
    np.testing.assert_allclose(program(ids)[0], TABLE[ids] @ W, rtol=1e-5, atol=1e-5)


def test_a_file_states_what_it_is(graph, tmp_path):
    written = backend("xla").write(graph, tmp_path / "m.stablehlo")
    assert written.facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert written.facts["inputs"] == {"ids": "int32[batch,sequence]"}
    program = backend("xla").load(tmp_path / "m.stablehlo")
    assert [(name, str(type_)) for name, type_ in program.inputs] == [("ids", "int64[batch,sequence]")]
    assert program.outputs == ["y"]
    assert program.exported.platforms == ("cpu", "cuda", "tpu")
    assert sorted(program.params) == ["table", "w"]


def test_the_variant_names_the_platforms(graph, tmp_path):
    backend("xla:tpu").write(graph, tmp_path / "m.stablehlo")
    assert backend("xla").load(tmp_path / "m.stablehlo").exported.platforms == ("tpu",)
    with pytest.raises(PlanishError, match="no platform 'abacus': XLA has cpu, cuda, tpu, rocm"):
        backend("xla:abacus").write(graph, tmp_path / "n.stablehlo")
    assert not (tmp_path / "n.stablehlo").exists()


def test_weights_are_beside_the_module_and_not_in_it(saved):
    with zipfile.ZipFile(saved) as archive:
        sizes = {i.filename: i.file_size for i in archive.infolist()}
    assert sizes["weights/0"] + sizes["weights/1"] == W.nbytes + TABLE.nbytes
    module = backend("xla").load(saved).exported.mlir_module()
    assert "dense<" not in module or 'dense<"0x' not in module


def test_text_on_request(graph, tmp_path):
    backend("xla").write(graph, tmp_path / "m.mlir")
    text = (tmp_path / "m.mlir").read_text()
    assert "stablehlo.dot_general" in text
    assert "module @" in text


def test_sizes_can_be_fixed(graph, tmp_path):
    written = backend("xla").write(graph, tmp_path / "m.stablehlo", sizes={"sequence": 3})
    assert written.facts["inputs"] == {"ids": "int32[batch,3]"}
    program = backend("xla").load(tmp_path / "m.stablehlo")
    ids = RNG.integers(0, 10, (4, 3))
    np.testing.assert_allclose(program(ids)[0], TABLE[ids] @ W, rtol=1e-5, atol=1e-5)
    with pytest.raises(PlanishError, match="xla: "):
        program(RNG.integers(0, 10, (4, 2)))


def test_a_table_of_positions_limits_a_size(tmp_path):
    positions = RNG.normal(size=(1, 8, 6)).astype("f")
    graph = model_of(
        """g (float[batch, length, 6] x, float[1, 8, 6] positions) => (float[batch, length, 6] y) {
          zero = Constant <value = int64[1] {0}> ()
          one = Constant <value = int64[1] {1}> ()
          length = Shape <start = 1, end = 2> (x)
          some = Slice (positions, zero, length, one)
          y = Add (x, some)
        }""",
        positions=positions,
    )
    backend("xla").write(graph, tmp_path / "m.stablehlo")
    program = backend("xla").load(tmp_path / "m.stablehlo")
    x = RNG.normal(size=(2, 5, 6)).astype("f")
    np.testing.assert_allclose(program(x)[0], x + positions[:, :5], rtol=1e-6)
    with pytest.raises(PlanishError, match="input 'x': length is 9, and the model goes up to 8"):
        program(RNG.normal(size=(2, 9, 6)).astype("f"))


CONSTANTS = """
      zero = Constant <value = int64[1] {0}> ()
      one = Constant <value = int64[1] {1}> ()
      two = Constant <value = int64[1] {2}> ()
      five = Constant <value = int64[1] {5}> ()
      end = Constant <value = int64[1] {9223372036854775807}> ()
      sizes = Shape (x)
      length = Slice (sizes, one, two)
"""


def test_the_end_of_a_table_limits_a_size_and_the_first_elements_of_an_input_do_not(tmp_path):
    positions = RNG.normal(size=(1, 8, 6)).astype("f")
    graph = model_of(
        "g (float[batch, length, 6] x, float[1, 8, 6] positions) => (float[batch, length, 6] y, float[b, 6] first) {"
        + CONSTANTS
        + """
          all = Constant <value = int64[1] {8}> ()
          start = Sub (all, length)
          last = Slice (positions, start, end, one)
          y = Add (x, last)
          some = Slice (x, zero, one, one)
          first = Squeeze (some, one)
        }""",
        positions=positions,
    )
    assert backend("xla").write(graph, tmp_path / "m.stablehlo").facts["assumes"] == "length <= 8"
    x = RNG.normal(size=(2, 5, 6)).astype("f")
    y, first = backend("xla").load(tmp_path / "m.stablehlo")(x)
    np.testing.assert_allclose(y, x + positions[:, 3:], rtol=1e-6)
    np.testing.assert_array_equal(first, x[:, 0])


def test_a_table_with_an_offset_limits_a_size_to_what_follows(tmp_path):
    positions = RNG.normal(size=(1, 8, 6)).astype("f")
    graph = model_of(
        "g (float[batch, length, 6] x, float[1, 8, 6] positions) => (float[batch, length, 6] y) {"
        + CONSTANTS
        + "last = Add (length, two) some = Slice (positions, two, last, one) y = Add (x, some) }",
        positions=positions,
    )
    assert backend("xla").write(graph, tmp_path / "m.stablehlo").facts["assumes"] == "length <= 6"
    x = RNG.normal(size=(2, 6, 6)).astype("f")
    np.testing.assert_allclose(backend("xla").load(tmp_path / "m.stablehlo")(x)[0], x + positions[:, 2:], rtol=1e-6)


def test_the_largest_of_a_size_need_that_many(tmp_path):
    graph = model_of(
        """g (float[batch, n] x) => (float[batch, 3] y, int64[batch, 3] i) {
          three = Constant <value = int64[1] {3}> ()
          y, i = TopK (x, three)
        }"""
    )
    assert backend("xla").write(graph, tmp_path / "m.stablehlo").facts["assumes"] == "n >= 3"
    program = backend("xla").load(tmp_path / "m.stablehlo")
    x = RNG.normal(size=(2, 5)).astype("f")
    np.testing.assert_array_equal(program(x)[0], -np.sort(-x)[:, :3])
    with pytest.raises(PlanishError, match="xla: "):
        program(x[:, :2])


@pytest.mark.parametrize(
    "padding",
    [
        "rest = Mod (length, five) missing = Sub (five, rest) pad = Mod (missing, five)",
        "negative = Neg (length) pad = Mod (negative, five)",
    ],
)
def test_a_size_that_is_padded_to_whole_blocks_divides_into_them(tmp_path, padding):
    graph = model_of(
        "g (float[batch, length, 6] x) => (float[batch, blocks, 5, 6] y) {"
        + CONSTANTS
        + padding
        + """
          pads = Concat <axis = 0> (zero, pad)
          nothing = Constant <value_float = 0.0> ()
          padded = Pad (x, pads, nothing, one)
          shape = Constant <value = int64[4] {0, -1, 5, 6}> ()
          y = Reshape (padded, shape)
        }"""
    )
    backend("xla").write(graph, tmp_path / "m.stablehlo")
    program = backend("xla").load(tmp_path / "m.stablehlo")
    for length in (1, 5, 12):
        x = RNG.normal(size=(2, length, 6)).astype("f")
        padded = np.pad(x, [(0, 0), (0, -length % 5), (0, 0)])
        np.testing.assert_array_equal(program(x)[0], padded.reshape(2, -1, 5, 6))


def test_sizes_that_must_agree_are_one(tmp_path):
    text = "g (float[n, past] a, float[n, new] b, float[n, total] mask) => (float[n, t] y) {"
    graph = model_of(text + " both = Concat <axis = 1> (a, b) y = Add (both, mask) }")
    written = backend("xla").write(graph, tmp_path / "m.stablehlo")
    assert written.facts["assumes"] == "total = new + past"
    program = backend("xla").load(tmp_path / "m.stablehlo")
    a, b, mask = (RNG.normal(size=(2, n)).astype("f") for n in (3, 4, 7))
    np.testing.assert_allclose(program(a, b, mask)[0], np.concatenate([a, b], 1) + mask)
    with pytest.raises(PlanishError, match="xla: "):
        program(a, b, mask[:, :6])


def test_a_size_that_is_split_into_known_pieces_is_their_sum(tmp_path):
    graph = model_of(
        """g (float[batch, 3] x) => (float[1, 3] a, float[2, 3] b) {
          sizes = Constant <value = int64[2] {1, 2}> ()
          a, b = Split <axis = 0> (x, sizes)
        }"""
    )
    assert backend("xla").write(graph, tmp_path / "m.stablehlo").facts["assumes"] == "batch = 3"
    x = RNG.normal(size=(3, 3)).astype("f")
    np.testing.assert_array_equal(np.concatenate(backend("xla").load(tmp_path / "m.stablehlo")(x)), x)


def test_sizes_that_shapes_are_computed_from_stay_open(tmp_path):
    graph = model_of(
        """g (float[batch, length, 6] x) => (float[batch, n, 3] y) {
          i0 = Constant <value = int64[1] {0}> ()
          i1 = Constant <value = int64[1] {1}> ()
          two = Constant <value = int64[1] {2}> ()
          three = Constant <value = int64[1] {3}> ()
          shape = Shape (x)
          first = Gather <axis = 0> (shape, i0)
          second = Gather <axis = 0> (shape, i1)
          doubled = Mul (second, two)
          target = Concat <axis = 0> (first, doubled, three)
          y = Reshape (x, target)
        }"""
    )
    backend("xla").write(graph, tmp_path / "m.stablehlo")
    program = backend("xla").load(tmp_path / "m.stablehlo")
    for shape in ((2, 5, 6), (1, 1, 6), (3, 4, 6)):
        x = RNG.normal(size=shape).astype("f")
        np.testing.assert_array_equal(program(x)[0], x.reshape(shape[0], shape[1] * 2, 3))


def test_64_bit_numbers_stay_what_they_are(tmp_path):
    graph = model_of("g (double[n] x) => (double[n] y) { y = Exp (x) }")
    backend("xla").write(graph, tmp_path / "m.stablehlo")
    x = np.array([1e-12, 0.3])
    (y,) = backend("xla").load(tmp_path / "m.stablehlo")(x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y - 1, np.expm1(x), rtol=1e-3)


def test_indices_beyond_32_bits_are_refused(saved):
    with pytest.raises(PlanishError, match="input 'ids': the file computes with 32-bit integers"):
        backend("xla").load(saved)(np.array([[1 << 40]]))


def test_narrow_and_half_weights_survive(tmp_path):
    import ml_dtypes

    w = RNG.normal(size=(4, 3)).astype(ml_dtypes.bfloat16)
    graph = model_of("g (bfloat16[n, 4] x, bfloat16[4, 3] w) => (bfloat16[n, 3] y) { y = MatMul (x, w) }", w=w)
    backend("xla").write(graph, tmp_path / "m.stablehlo")
    x = RNG.normal(size=(2, 4)).astype(ml_dtypes.bfloat16)
    (y,) = backend("xla").load(tmp_path / "m.stablehlo")(x)
    np.testing.assert_allclose(y.astype("f"), x.astype("f") @ w.astype("f"), rtol=0.02, atol=0.02)


def test_an_input_that_decides_a_shape_cannot_be_exported(tmp_path):
    graph = model_of("g (float[a] x, int64[2] shape) => (float[m, n] y) { y = Reshape (x, shape) }")
    with pytest.raises(PlanishError, match="input 'shape' decides a shape, so it cannot stay open"):
        backend("xla").write(graph, tmp_path / "m.stablehlo")
    assert list(tmp_path.iterdir()) == []


# damaged files


def rewritten(path, change):
    """The archive with entries changed by ``change(name, data)``; checksums are right."""
    with zipfile.ZipFile(path) as archive:
        entries = [(i.filename, archive.read(i.filename)) for i in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            new = change(name, data)
            if new is not None:
                archive.writestr(name, new)


def in_manifest(**changes):
    def change(name, data):
        if name != "manifest.json":
            return data
        manifest = json.loads(data)
        manifest.update(changes)
        return json.dumps({k: v for k, v in manifest.items() if v is not None}).encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        in_manifest(kind="other"),
        in_manifest(version=99),
        in_manifest(weights=None),
        in_manifest(inputs=None),
        in_manifest(weights=[{"name": "w", "dtype": "float", "shape": [1 << 40, 4]}]),
        in_manifest(weights=[{"name": "w", "dtype": "float", "shape": [-6, 4]}]),
        in_manifest(weights=[{"name": "w", "dtype": "quaternion", "shape": [6, 4]}]),
        lambda name, data: b"[" * 100000 if name == "manifest.json" else data,
        lambda name, data: b"{}" if name == "manifest.json" else data,
        lambda name, data: None if name == "weights/0" else data,
        lambda name, data: data[:-1] if name == "weights/0" else data,
        lambda name, data: b"" if name.startswith("module") else data,
    ],
)
def test_damaged_files_are_refused_in_one_line(saved, change):
    rewritten(saved, change)
    with pytest.raises(PlanishError) as caught:
        backend("xla").load(saved)
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_flipped_and_missing_bytes_are_noticed(saved, at):
    data = bytearray(saved.read_bytes())
    position = int(len(data) * at)
    saved.write_bytes(bytes(data[:position]))
    with pytest.raises(PlanishError):
        backend("xla").load(saved)
    data[position] ^= 0xFF
    saved.write_bytes(bytes(data))
    outcome = result_of(saved)
    assert outcome in ("refused", "unchanged")


def result_of(path):
    """Whether a file is refused, in one line; what is not refused must compute what it did."""
    try:
        program = backend("xla").load(path)
    except PlanishError as error:
        return "refused" if "\n" not in str(error) else str(error)
    ids = RNG.integers(0, 10, (2, 5))  # a byte that nothing reads, such as a time stamp
    return "unchanged" if np.allclose(program(ids)[0], TABLE[ids] @ W, rtol=1e-5, atol=1e-5) else "wrong"


def test_missing_files_and_folders_are_one_line(graph, tmp_path):
    with pytest.raises(PlanishError, match=r"none\.stablehlo: No such file"):
        backend("xla").load(tmp_path / "none.stablehlo")
    with pytest.raises(PlanishError, match="No such file or directory"):
        backend("xla").write(graph, tmp_path / "folder" / "m.stablehlo")


def test_the_mask_of_an_attention_is_assumed_to_be_as_long_as_its_keys(tmp_path):
    text = """g (float[b,2,q,4] query, float[b,2,new,4] key, float[b,2,new,4] value, float[b,1,q,all] mask,
        float[b,2,past,4] keys, float[b,2,past,4] values) => (float[b,2,q,4] y, float[b,2,k,4] ks, float[b,2,k,4] vs) {
        y, ks, vs = Attention (query, key, value, mask, keys, values)
    }"""
    graph = parse(text)
    written = backend("xla").write(graph, tmp_path / "m.stablehlo")
    assert written.facts["assumes"] == "all = new + past"
    shapes = [(2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4), (2, 1, 3, 7), (2, 2, 2, 4), (2, 2, 2, 4)]
    inputs = [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]
    wanted = backend("xla").compile(graph)(*inputs)
    for a, b in zip(backend("xla").load(tmp_path / "m.stablehlo")(*inputs), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
