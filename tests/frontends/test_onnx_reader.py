"""Reading ONNX files that are good, malformed or hostile."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper

from planish.frontends.onnx import load, reader
from planish.ir import ArrayTensor, FileTensor, Graph, TensorError
from planish.ir.convert.proto import to_proto
from planish.ir.convert.wire import varint
from planish.ir.errors import ModelError, PlanishError

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
ADD = HEADER + "g (float[N,4] x) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }"
WEIGHT = np.array([1, 2, 3, 4], np.float32)


def external(folder: Path, data: bytes | None = WEIGHT.tobytes(), **entries: str | int) -> Path:
    """A model file with its weight in ``w.bin``, described by ``entries``."""
    if data is not None:
        (folder / "w.bin").write_bytes(data)
    path = folder / "m.onnx"
    path.write_bytes(external_model(**entries).SerializeToString())
    return path


def external_model(**entries: str | int) -> ModelProto:
    model = onnx.parser.parse_model(ADD)
    (w,) = model.graph.initializer
    w.ClearField("float_data")
    w.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        w.external_data.add(key=key, value=str(value))
    return model


def weight(graph: Graph) -> np.ndarray:
    (value,) = graph.constants()
    assert value.const is not None
    return value.const.numpy()


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


# good files


def test_weights_inside(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(ADD), path)
    graph = load(path)
    assert weight(graph).tolist() == [1, 2, 3, 4]
    assert str(graph.outputs[0].type) == "float[N,4]"
    assert load(str(path)).inputs[0].name == "x"


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "m.onnxtxt"
    path.write_text(ADD)
    assert weight(load(path)).tolist() == [1, 2, 3, 4]
    path.write_text(ADD.replace("Add(", "Add(("))
    refused(path, "ParseError|expected")
    for number in ("1e999", "9" * 30):  # onnx's parser raises something else for each
        path.write_text(ADD.replace("Add(", f"Custom<a = {number}>("))
        refused(path, "stoll|parse")
    path.write_text("(" * 100_000)
    refused(path, "nested deeper")
    path.write_bytes(b"\xff\xfe")
    refused(path, "not UTF-8")


def test_weights_beside(tmp_path: Path) -> None:
    graph = load(external(tmp_path))
    (value,) = graph.constants()
    assert isinstance(value.const, FileTensor)
    assert weight(graph).tolist() == [1, 2, 3, 4]
    data = b"\0" * 100 + WEIGHT.tobytes() + b"\0" * 3
    assert weight(load(external(tmp_path, data, offset=100, length=16))).tolist() == [1, 2, 3, 4]
    (tmp_path / "sub").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "sub" / "w.bin")
    assert weight(load(external(tmp_path, None, location="sub/w.bin", offset=100, length=16))).tolist() == [1, 2, 3, 4]


def test_one_range_is_one_tensor_and_others_may_overlap(tmp_path: Path) -> None:
    path = external(tmp_path, bytes(64), offset=0, length=16)
    model = onnx.load(path, load_external_data=False)
    for name, offset in (("same", 0), ("overlapping", 8)):
        t = model.graph.initializer.add()
        t.CopyFrom(model.graph.initializer[0])
        t.name = name
        t.external_data[1].value = str(offset)
    model.graph.node[0].op_type = "Sum"
    model.graph.node[0].input.extend(["same", "overlapping"])
    onnx.save(model, path)
    first, same, overlapping = load(path).constants()
    assert first.const is same.const
    assert first.const is not overlapping.const


def test_large_weights_inside_stay_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAPPED", 1 << 10)
    big = np.arange(1 << 15, dtype=np.float32)
    model = onnx.parser.parse_model(
        HEADER
        + """g (bool b, float[N] x) => (float[N] z) {
            a = Add(x, w)
            c = Constant<value: tensor = float[1] {0}>()
            y = Add(a, c)
            z = If(b) <
                then_branch = t () => (float[N] p) { d = Constant<value: tensor = float[1] {0}>() p = Add(y, d) },
                else_branch = e () => (float[N] q) { q = Neg(y) }
            >
        }"""
    )
    _, outer, _, branch = model.graph.node
    inner = branch.attribute[0].g.node[0]
    for i, t in enumerate((model.graph.initializer.add(), outer.attribute[0].t, inner.attribute[0].t)):
        t.CopyFrom(numpy_helper.from_array(big + i, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    parsed, _ = reader.parse(path)
    assert parsed.ByteSize() < 1000
    graph = load(path)
    for i, value in enumerate(graph.constants()):
        assert isinstance(value.const, FileTensor)
        np.testing.assert_array_equal(value.const.numpy(), big + i)
    result = to_proto(graph)
    np.testing.assert_array_equal(numpy_helper.to_array(result.graph.initializer[0]), big)


def test_absurd_models_are_refused_in_time(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x3a" + varint(20 << 20) + b"\x0a\x00" * (10 << 20))  # ten million empty nodes
    refused(path, "not an ONNX model")


def test_elements_that_are_fields_of_their_own(tmp_path: Path) -> None:
    count = 1 << 20
    model = onnx.parser.parse_model(ADD.replace("float[4] w", f"float[{count}] w"))
    model.graph.initializer[0].ClearField("float_data")
    t = model.graph.initializer.pop().SerializeToString() + b"\x25\0\0\x80\x3f" * count  # not packed
    graph = model.graph.SerializeToString() + b"\x2a" + varint(len(t)) + t
    model.ClearField("graph")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString() + b"\x3a" + varint(len(graph)) + graph)
    np.testing.assert_array_equal(weight(load(path)), np.ones(count, np.float32))


def test_a_model_may_name_its_own_file(tmp_path: Path) -> None:
    assert isinstance(
        next(iter(load(external(tmp_path, location="m.onnx", length=16)).constants())).const, FileTensor
    )  # harmless
    refused(external(tmp_path, location=""), "called ''")


def test_links_inside_the_folder(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").rename(tmp_path / "real.bin")
    (tmp_path / "w.bin").symlink_to("real.bin")
    assert weight(load(path)).tolist() == [1, 2, 3, 4]


def test_the_cache_of_hugging_face(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    external(tmp_path).rename(blobs / "abc")
    (tmp_path / "w.bin").rename(blobs / "def")
    (snapshot / "m.onnx").symlink_to("../../blobs/abc")
    (snapshot / "w.bin").symlink_to("../../blobs/def")
    assert weight(load(snapshot / "m.onnx")).tolist() == [1, 2, 3, 4]


def test_huge_sparse_data(tmp_path: Path) -> None:
    rows = 3 << 20  # 6 GB of float16 in a file without content
    text = "g (int64[N] i) => (float16[N,1024] y) <float16[1] w = {0}> { y = Gather(w, i) }"
    model = onnx.parser.parse_model(HEADER + text)
    (w,) = model.graph.initializer
    w.CopyFrom(
        TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[rows, 1024], data_location=TensorProto.EXTERNAL)
    )
    for key, value in (("location", "w.bin"), ("offset", 4096), ("length", rows * 2048)):
        w.external_data.add(key=key, value=str(value))
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4096 + rows * 2048)
    onnx.save(model, tmp_path / "m.onnx")
    array = weight(load(tmp_path / "m.onnx"))
    assert array.shape == (rows, 1024)
    assert not array[-1].any()


def test_files_that_change_are_noticed(tmp_path: Path) -> None:
    graph = load(external(tmp_path))
    data = tmp_path / "w.bin"
    data.rename(tmp_path / "old")
    with pytest.raises(TensorError, match="No such file"):
        weight(graph)
    data.write_bytes(bytes(16))
    with pytest.raises(TensorError, match="changed since"):
        weight(graph)


# hostile references


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../../w.bin", "/etc/hostname", "C:\\w.bin", "..\\w.bin", "\\\\host\\w.bin", "a\0b"]
)
def test_paths_that_lead_out(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    refused(external(folder, location=location), "leads out|in a file called")


def test_links_that_lead_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "w.bin").write_bytes(bytes(16))
    (folder / "w.bin").symlink_to(outside / "w.bin")
    refused(external(folder, None), "link that leads out")
    (folder / "sub").symlink_to(outside)
    refused(external(folder, None, location="sub/w.bin"), "link that leads out")
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to("w.bin")
    refused(external(folder, None), "external data 'w.bin'")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifos_and_folders(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    refused(external(tmp_path, None), "not a regular file")
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").mkdir()
    refused(external(tmp_path, None), "not a regular file")
    refused(tmp_path, "a folder")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a regular file")


@pytest.mark.parametrize(("entries", "message"), [
    ({"offset": 4}, "needs bytes 4 to 20 of w.bin, which has 16"),
    ({"offset": 8, "length": 16}, "needs bytes 8 to 24 of w.bin, which has 16"),
    ({"offset": 1 << 62}, "offset .4611"),
    ({"offset": -1}, "offset '-1'"),
    ({"offset": "1e3"}, "offset '1e3'"),
    ({"offset": "٣"}, "offset"),
    ({"offset": "9" * 5000}, "offset"),
    ({"length": 15}, "16 bytes, but has 15"),
    ({"length": 17}, "16 bytes, but has 17"),
    ({"location": "missing.bin"}, "No such file"),
])  # fmt: skip
def test_ranges_that_do_not_fit(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    refused(external(tmp_path, **entries), message)


def test_data_that_is_too_short(tmp_path: Path) -> None:
    refused(external(tmp_path, WEIGHT.tobytes()[:-1]), "which has 15")
    refused(external(tmp_path, WEIGHT.tobytes() + b"\0"), "has 17")


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.dims.__setitem__(0, -4), "absurd"),
    (lambda t: t.dims.__setitem__(0, 1 << 60), "absurd"),
    (lambda t: setattr(t, "data_type", TensorProto.STRING), "cannot lie in another file"),
    (lambda t: setattr(t, "data_type", 0), "cannot lie in another file"),
    (lambda t: setattr(t, "data_type", 99), "unknown element type"),
])  # fmt: skip
def test_tensors_that_cannot_be(tmp_path: Path, change: Callable[[TensorProto], None], message: str) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    change(model.graph.initializer[0])
    onnx.save(model, path)
    refused(path, message)


# files that are no models


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")


OTHER = {
    "empty": (b"", "an empty file"),
    "pickle": (pickle.dumps({"a": 1}), "a Python pickle"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "text": (b"hello, world\n" * 10, "but text"),
    "proto text": (b"ir_version: 8\nproducer_name: 'x'", "called .onnxtxt"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html></html>", "an HTML page"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(50), "TensorFlow Lite"),
    "ORT": (b"\x1c\0\0\0ORTM" + bytes(50), "ONNX Runtime's own format"),
    "safetensors": (b'\x40\0\0\0\0\0\0\0{"a":{}}', "safetensors"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "gzip"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(50), "GGUF"),
    "zeros": (bytes(1000), "zeros"),
    "noise": (np.random.default_rng(0).bytes(5000), "not an ONNX model"),
    "another message": (TensorProto(dims=[1], data_type=1, raw_data=b"1234").SerializeToString(), "not an ONNX model"),
    "no graph": (ModelProto(ir_version=8).SerializeToString(), "not an ONNX model"),
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("mapped", [False, True])
def test_other_files(tmp_path: Path, name: str, mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = OTHER[name]
    if mapped and content:
        monkeypatch.setattr(reader, "_MAPPED", 0)
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, message)


def test_zip_and_missing_and_too_large(tmp_path: Path) -> None:
    write_zip(tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "a zip archive")
    refused(tmp_path / "none.onnx", "No such file")
    with (tmp_path / "big.onnx").open("wb") as file:
        file.truncate(3 << 30)
    refused(tmp_path / "big.onnx", "3.2 GB, but protobuf allows 2 GB")


def test_truncated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].ClearField("data_location")
    content = model.SerializeToString()
    for mapped in (1 << 20, 0):
        monkeypatch.setattr(reader, "_MAPPED", mapped)
        for end in range(len(content)):
            path.write_bytes(content[:end])
            with pytest.raises(ModelError):
                load(path)
    path.write_bytes(content)
    load(path)


# anything


def corpus() -> list[bytes]:
    """A few real models that have everything between them."""
    from onnx.backend.test.loader import DATA_DIR

    paths = sorted(Path(DATA_DIR).glob("*/*/model.onnx"))
    small = [p.read_bytes() for p in paths if p.stat().st_size < 5000]
    return [
        *small[::6],
        onnx.parser.parse_model(ADD).SerializeToString(),
        onnx.parser.parse_model(EVERYTHING).SerializeToString(),
        external_model(offset=4, length=16).SerializeToString(),
    ]


EVERYTHING = """<ir_version: 10, opset_import: ["": 21, "l": 1, "com.microsoft": 1]>
g (bool b, float[N,4] x, int64[3] s) => (float[N,4] z) <float[4] w = {1, 2, 3, 4}, int64[2] shape = {-1, 4}> {
    c = Constant<value_ints = [0, 4]>()
    r = Reshape(x, shape)
    a = l.f<k = 2>(r)
    y = If(b) <
        then_branch = t () => (float[N,4] p) { p = Add(a, w) },
        else_branch = e () => (float[N,4] q) { q = com.microsoft.Gelu(a) }
    >
    d = Shape(y)
    h = Gather<axis = 0>(d, c)
    m, v = Split<axis = 1, num_outputs = 2>(y)
    k = Concat<axis = -1>(m, v)
    u = Conv<kernel_shape = [1, 1], pads = [0, 0, 0, 0]>(k, k)
    z = Clip(k, , )
}
<domain: "l", opset_import: ["": 21]> f <k: int = 1> (a) => (c) { c = Softmax<axis: int = @k>(a) }
"""


def mutated_bytes(rng: random.Random) -> bytes:
    """A model with bytes changed, cut out, doubled, or spliced from another."""
    data = bytearray(rng.choice(BASES))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randint(1, 16)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 64)]
            case 4:
                other = rng.choice(BASES)
                start = rng.randrange(len(other))
                data[at:at] = other[start : start + rng.randint(1, 64)]
            case 5:
                data[at : at + 1] = rng.choice([b"\xff" * 9 + b"\x01", b"\x80\x80\x80\x80\x80\x01", b"\x00", b"\x7f"])
    return bytes(data)


def mutate_field(rng: random.Random, message: Any) -> None:
    """Change, drop or double one field somewhere in ``message``."""
    fields = message.ListFields()
    if not fields:
        return
    descriptor, value = rng.choice(fields)
    name = descriptor.name
    if hasattr(value, "append"):
        mutate_entry(rng, value)
    elif hasattr(value, "ListFields") and rng.randrange(6):
        mutate_field(rng, value)
    elif hasattr(value, "ListFields") or rng.randrange(2):
        message.ClearField(name)
    else:
        with contextlib.suppress(ValueError):  # out of the range of the field
            setattr(message, name, other_scalar(rng, value))


def mutate_entry(rng: random.Random, entries: Any) -> None:
    at = rng.randrange(len(entries))
    match rng.randrange(6):
        case 0:
            del entries[at]
        case 1:
            entries.append(entries[at])
        case 2:
            rest = list(entries)[::-1]
            del entries[:]
            entries.extend(rest)
        case _ if hasattr(entries[at], "ListFields"):
            mutate_field(rng, entries[at])
        case _:
            with contextlib.suppress(ValueError):
                entries[at] = other_scalar(rng, entries[at])


NAMES = ["", "x", "y", "w", "a", "c", "Add", "Relu", "Constant", "If", "Loop", "com.microsoft", "z" * 300, "ü\n"]
NUMBERS = [0, 1, -1, 2, 7, 255, 1 << 31, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63)]


def other_scalar(rng: random.Random, value: object) -> str | bytes | float:
    if isinstance(value, str):
        return rng.choice(NAMES)
    if isinstance(value, bytes):
        return rng.choice([b"", b"\xff", value[1:], value * 2])
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    return rng.choice(NUMBERS)


BASES = corpus()
FUZZ = settings(max_examples=3000, deadline=None, database=None, phases=[Phase.generate])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "w.bin").write_bytes(bytes(64))
    return folder / "m.onnx"


def check_anything(path: Path, content: bytes) -> None:
    """Whatever the bytes are, the result is a graph that can be written again, or one of our errors."""
    path.write_bytes(content)
    try:
        graph = load(path)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    with contextlib.suppress(PlanishError):
        to_proto(graph).SerializeToString()


@FUZZ
@given(seed=st.integers(0, 1 << 64))
def test_mutated_files(scratch: Path, seed: int) -> None:
    check_anything(scratch, mutated_bytes(random.Random(seed)))


@FUZZ
@given(seed=st.integers(0, 1 << 64))
def test_mutated_fields(scratch: Path, seed: int) -> None:
    rng = random.Random(seed)
    model = ModelProto.FromString(rng.choice(BASES))
    for _ in range(rng.randint(1, 4)):
        mutate_field(rng, model)
    check_anything(scratch, model.SerializeToString())


def test_small_tensors_are_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(ADD), path)
    (value,) = load(path).constants()
    assert isinstance(value.const, ArrayTensor)
