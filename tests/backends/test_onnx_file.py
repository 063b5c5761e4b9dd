"""Writing ONNX files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from planish.backends import onnx_file
from planish.backends.onnx_file import save
from planish.frontends.onnx import load
from planish.ir import DType, FileTensor, Graph, LazyTensor, TensorType, constant, edit, op, tensor
from planish.ir.convert.proto import from_proto
from planish.ir.equal import difference
from planish.ir.errors import PlanishError
from planish.ir.tensor import Tensor

KB, MB = 1 << 10, 1 << 20


def joined(*weights: Tensor | np.ndarray) -> Graph:
    """A graph that puts weights (vectors of float32) behind its input."""
    graph = Graph("g", opsets={"": 21})
    x = graph.add_input(TensorType(DType.FLOAT, (1,)), "x")
    y = op.Concat(x, *(constant(tensor(w), name=f"w{i}") for i, w in enumerate(weights)), axis=0)
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    graph.info["ir_version"] = 10
    return graph


def random(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(count, np.float32)


def weights(graph: Graph) -> list[Tensor]:
    return [v.const for v in graph.constants() if v.const is not None]


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def saved(graph: Graph, path: Path, **options: object) -> Graph:
    """What is read after ``graph`` is saved; the same as ``graph``, and fit for onnx."""
    before = [t.numpy().copy() for t in weights(graph)]
    save(graph, path, **options)  # type: ignore[arg-type]
    again = load(path, upgrade=False)
    assert difference(graph, again) is None
    for a, b in zip(before, weights(graph), strict=True):  # which may lie in a file that was replaced
        np.testing.assert_array_equal(a, b.numpy())
    if options.get("weights") != "link":  # onnx reads no file with several links
        onnx.checker.check_model(path)
    assert not [name for name in listing(path.parent) if name.endswith((".tmp", ".old"))]
    return again


# where weights go


def test_small_models_are_one_file(tmp_path: Path) -> None:
    saved(joined(random(1000)), tmp_path / "m.onnx")
    assert listing(tmp_path) == ["m.onnx"]


def test_large_models_keep_weights_in_a_second_file(tmp_path: Path) -> None:
    graph = saved(joined(random(MB), random(10), random(3 * KB)), tmp_path / "m.onnx")
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]
    large, small, medium = weights(graph)
    assert not isinstance(small, FileTensor)  # where shape inference of others looks for it
    assert isinstance(large, FileTensor)
    assert isinstance(medium, FileTensor)
    assert large.offset % 4096 == medium.offset % 4096 == 0
    assert (tmp_path / "m.onnx.data").stat().st_size == 4 * MB + 12 * KB


@pytest.mark.parametrize(("external", "files"), [(False, ["m.onnx"]), (True, ["m.onnx", "m.onnx.data"])])
def test_the_caller_decides(tmp_path: Path, external: bool, files: list[str]) -> None:
    saved(joined(random(MB // 2)), tmp_path / "m.onnx", external=external)
    assert listing(tmp_path) == files


def test_weights_inside_are_streamed_too(tmp_path: Path) -> None:
    (source,) = weights(saved(joined(random(MB)), tmp_path / "source.onnx"))
    lazy = LazyTensor(lambda a: a[::-1] * 2, (source,), DType.FLOAT, (MB,))
    graph = joined(source, lazy, random(10), random(MB, 3), lazy)
    graph.inputs[0].default = source
    graph.inputs[0].type = source.type
    (tmp_path / "out").mkdir()
    again = saved(graph, tmp_path / "out" / "m.onnx", external=False)
    assert listing(tmp_path / "out") == ["m.onnx"]
    np.testing.assert_array_equal(again.inputs[0].default.numpy(), source.numpy())  # type: ignore[union-attr]
    whole = onnx.load(tmp_path / "out" / "m.onnx")
    assert not any(t.external_data for t in whole.graph.initializer)
    assert from_proto(whole, infer=False).info == again.info


def test_versions_are_stamped(tmp_path: Path) -> None:
    save(joined(random(4)), tmp_path / "m.onnx", opset=13, ir_version=7)
    model = onnx.load(tmp_path / "m.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (13, 7)


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = joined(random(MB), random(5000), random(2000))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(graph, tmp_path / name / "m.onnx")
    for name in ("m.onnx", "m.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    w = random(MB)
    (source,) = weights(saved(joined(w), tmp_path / "source.onnx"))
    lazy = LazyTensor(lambda a: a[::-1] * 2, (source,), DType.FLOAT, (MB,))
    graph = joined(source, lazy, w + 1, lazy)
    again = saved(graph, tmp_path / "m.onnx")
    assert len(weights(again)) == 3  # the same tensor twice is stored once
    assert (tmp_path / "m.onnx.data").stat().st_size == 3 * 4 * MB


def test_packed_elements_and_strings(tmp_path: Path) -> None:
    graph = Graph("g", opsets={"": 21, "x": 1})
    codes = tensor(np.arange(3 * MB, dtype=np.uint8) % 16, DType.UINT4)
    text = tensor(np.array(["a", "ü"] * 10, object))
    from planish.ir import Node

    node = Node("x.Custom", [constant(codes, name="codes"), constant(text, name="text")])
    edit.insert(node, graph.ret)
    graph.set_outputs([node.result])
    graph.output_info[0].name = "y"
    graph.output_info[0].type = TensorType(DType.FLOAT, (1,))
    again = saved(graph, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == 3 * MB // 2
    assert weights(again)[1].numpy().tolist() == ["a", "ü"] * 10


def test_neighbours_are_copied_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = saved(joined(*(random(MB, i) for i in range(4))), tmp_path / "a.onnx")
    lengths: list[int] = []
    copy = onnx_file._copy

    def recorded(t: FileTensor, target: int, offset: int, length: int) -> None:
        lengths.append(length)
        copy(t, target, offset, length)

    monkeypatch.setattr(onnx_file, "_copy", recorded)
    saved(graph, tmp_path / "b.onnx")
    assert lengths == [16 * MB]


def test_copying_without_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = saved(joined(random(MB), random(3 * MB)), tmp_path / "a.onnx")

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not between these")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    saved(graph, tmp_path / "b.onnx")
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: refuse(), raising=False)
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(
        os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "not here")), raising=False
    )
    saved(graph, tmp_path / "c.onnx")


# keeping files


def test_reference(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    graph = saved(joined(random(MB), random(2 * MB)), tmp_path / "sub" / "a.onnx")
    (first, second) = weights(graph)
    again = saved(joined(second, random(MB, 7)), tmp_path / "b.onnx", weights="reference")
    kept, new = weights(again)
    assert isinstance(kept, FileTensor)
    assert isinstance(new, FileTensor)
    assert kept.file.path == tmp_path / "sub" / "a.onnx.data"
    assert new.file.path == tmp_path / "b.onnx.data"
    assert (tmp_path / "b.onnx.data").stat().st_size == 4 * MB
    saved(joined(first, second), tmp_path / "c.onnx", weights="reference")
    assert "c.onnx.data" not in listing(tmp_path)
    with pytest.raises(PlanishError, match="not below its folder"):
        save(graph, tmp_path / "elsewhere.onnx" / "x.onnx", weights="reference")


def test_reference_beside_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    graph = saved(joined(random(MB), random(2 * MB)), path)
    again = saved(joined(weights(graph)[0], random(MB, 7)), path, weights="reference")
    assert listing(tmp_path) == ["a.onnx", "a.onnx.1.data", "a.onnx.data"]
    assert (tmp_path / "a.onnx.data").stat().st_size == 12 * MB
    saved(again, path, weights="reference")


def test_link(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    graph = saved(joined(random(4 * MB), random(MB)), tmp_path / "a.onnx")
    large, small = weights(graph)
    saved(joined(large, random(MB, 7)), tmp_path / "out" / "b.onnx", weights="link")
    assert listing(tmp_path / "out") == ["b.onnx", "b.onnx.1.data", "b.onnx.data"]
    assert (tmp_path / "out" / "b.onnx.data").samefile(tmp_path / "a.onnx.data")
    saved(joined(small), tmp_path / "c.onnx", weights="link")  # too little of it in use
    assert (tmp_path / "c.onnx.data").stat().st_size == 4 * MB
    saved(graph, tmp_path / "a.onnx", weights="link")  # onto itself
    saved(load(tmp_path / "out" / "b.onnx"), tmp_path / "out" / "b.onnx", weights="copy")
    assert not (tmp_path / "out" / "b.onnx.data").samefile(tmp_path / "a.onnx.data")
    saved(graph, tmp_path / "a.onnx")


def test_link_where_the_file_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = saved(joined(random(4 * MB)), tmp_path / "a.onnx")

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "not here")

    monkeypatch.setattr(os, "link", refuse)
    saved(graph, tmp_path / "b.onnx", weights="link")
    assert not (tmp_path / "b.onnx.data").samefile(tmp_path / "a.onnx.data")


def test_a_huge_sparse_file_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    rows = 70 << 20  # 140 GB of float16 in a file without content
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(rows * 2048)
    graph = Graph("g", opsets={"": 21})
    w = FileTensor(tmp_path / "w.bin", 0, DType.FLOAT16, (rows, 1024), "w")
    y = op.Gather(constant(w), graph.add_input(TensorType(DType.INT64, (1,)), "i"))
    edit.insert_floating([y], graph.ret)
    graph.set_outputs([y])
    graph.output_info[0].name = "y"
    save(graph, tmp_path / "a.onnx", weights="reference")
    save(graph, tmp_path / "out" / "b.onnx", weights="link")
    for path in (tmp_path / "a.onnx", tmp_path / "out" / "b.onnx"):
        (again,) = weights(load(path))
        assert again.shape == (rows, 1024)
    with pytest.raises(PlanishError, match="o space left"):
        save(graph, tmp_path / "out" / "c.onnx")
    assert listing(tmp_path / "out") == ["b.onnx", "b.onnx.data"]


# replacing files


def test_saving_over_the_file_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    original = saved(joined(random(MB), random(2 * MB)), path)
    first, second = weights(original)
    doubled = LazyTensor(lambda a: a * 2, (first,), DType.FLOAT, (MB,))
    graph = joined(second, doubled)
    for _ in range(3):
        graph = saved(graph, path)
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]
    np.testing.assert_array_equal(first.numpy(), random(MB))  # the original is as it was
    np.testing.assert_array_equal(weights(graph)[1].numpy(), random(MB) * 2)
    saved(original, tmp_path / "again.onnx", weights="reference")  # its path means another file now: copied
    assert (tmp_path / "again.onnx.data").stat().st_size == 12 * MB


def test_saving_over_weights_inside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    graph = saved(joined(random(2 * MB), random(MB)), path, external=False)
    assert isinstance(weights(graph)[0], FileTensor)
    graph = saved(joined(*reversed(weights(graph))), path, external=False)
    graph = saved(graph, path)
    saved(graph, path, external=False)


class Bang(Exception):
    pass


def explode(*_: object) -> np.ndarray:
    raise Bang


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failure", ["compute", "promise", "model", "rename"])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, failure: str, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    graph = joined(random(MB), random(MB, 1))
    if existing:
        save(graph, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    changed = joined(random(MB, 2), random(MB, 3))
    expected: type[Exception] = PlanishError
    if failure == "compute":
        changed, expected = joined(random(MB, 2), LazyTensor(explode, (), DType.FLOAT, (MB,))), Bang
    elif failure == "promise":
        changed = joined(random(MB, 2), LazyTensor(lambda: np.zeros(3, np.float32), (), DType.FLOAT, (MB,)))
    elif failure == "model":
        changed.outputs[0].producer.attrs["bad"] = object()  # type: ignore[union-attr]
    else:
        replace = Path.replace

        def broken(self: Path, target: Path) -> Path:
            if target == path:
                raise OSError(errno.EACCES, "Permission denied")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(expected) as caught:
        save(changed, path)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_errors_name_the_file(tmp_path: Path) -> None:
    graph = joined(random(4))
    for path, message in ((tmp_path, "a directory"), (tmp_path / "none" / "m.onnx", "No such file")):
        with pytest.raises(PlanishError, match=message) as caught:
            save(graph, path)
        assert str(path) in str(caught.value)


def test_too_large_for_one_file(tmp_path: Path) -> None:
    big = LazyTensor(explode, (), DType.FLOAT, (1 << 30,))
    graph = joined(big, random(4))
    with pytest.raises(PlanishError, match="2 GB"):
        save(graph, tmp_path / "m.onnx", external=False)
    assert not listing(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Half a gigabyte of computed tensors is saved within 200 MB over what the imports take."""
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
import numpy as np
from test_onnx_file import joined, save, LazyTensor, DType, MB
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def lazy(i): return LazyTensor(lambda: np.full(4 * MB, i, np.float32), (), DType.FLOAT, (4 * MB,))
before = peak()
save(joined(*map(lazy, range(32))), {str(tmp_path / "m.onnx")!r})
assert peak() - before < 200, (before, peak())
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    assert (tmp_path / "m.onnx.data").stat().st_size == 512 * MB
