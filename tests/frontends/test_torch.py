"""`planish.frontends.torch`: every kind of module, its weights shared, its numbers those of torch."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export.pt2_archive import PT2ArchiveWriter
from torch.utils._pytree import tree_leaves

from planish.backends import backend
from planish.frontends.torch import TorchTensor, from_exported, from_torch, load_pt2
from planish.ir import DType, Graph, TensorError
from planish.ir.errors import ModelError
from planish.ir.verify import verify


def run(graph: Graph, *args: Tensor) -> list[np.ndarray]:
    """The outputs of ``graph`` on ONNX Runtime."""
    outputs: list[np.ndarray] = backend("onnxruntime").compile(graph)(*[a.numpy() for a in args])
    return outputs


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def check(module: nn.Module, *args: Any, rtol: float = 1e-5, atol: float = 1e-6, **options: Any) -> Graph:
    """Import ``module``, verify the graph, and compare what it computes with torch; returns the graph."""
    module.eval()
    graph = from_torch(module, args, **options)
    verify(graph)
    with torch.no_grad():
        expected = [leaf for leaf in tree_leaves(module(*args)) if isinstance(leaf, Tensor)]
    actual = run(graph, *[leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)])
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == tuple(e.shape)
        np.testing.assert_allclose(a.astype(np.float64), e.detach().double().numpy(), rtol=rtol, atol=atol)
    return graph


def weights(graph: Graph) -> dict[str, TorchTensor]:
    return {v.const.name: v.const for v in graph.constants() if isinstance(v.const, TorchTensor)}


def line_of(text: str) -> int:
    """The first line of this file that holds ``text``."""
    return next(i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


class Block(nn.Module):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.register_buffer("scale", torch.linspace(0.5, 2, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x)) * self.scale


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


# weights


def test_weights_are_the_modules_memory() -> None:
    module = Two()
    graph = check(module, torch.randn(2, 8))
    found = weights(graph)
    expected = dict(module.named_parameters()) | dict(module.named_buffers())
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.data.data_ptr() == expected[name].data_ptr()
        assert tensor.numpy().__array_interface__["data"][0] == expected[name].data_ptr()
        assert not tensor.numpy().flags.writeable
        assert tensor.is_cheap
    with torch.no_grad():
        module.blocks[0].scale.fill_(7)
    assert (found["blocks.0.scale"].numpy() == 7).all()


def test_import_copies_no_weights() -> None:
    """Peak memory of importing 512 MB of weights, measured in a process of its own."""
    code = """
import resource, torch
from planish.frontends.torch import from_torch
module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).eval()
from_torch(module, torch.randn(1, 64))  # loads all code
big = torch.nn.Sequential(torch.nn.Linear(8192, 8192), torch.nn.Linear(8192, 8192)).eval()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph = from_torch(big, torch.randn(1, 8192))
assert sum(v.const.nbytes for v in graph.constants()) > 512 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 64 << 10  # kilobytes


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.alias = nn.Parameter(self.embedding.weight.data)  # another parameter, the same memory

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids)) + (self.alias * 2).sum()


def test_tied_weights_are_one_tensor() -> None:
    graph = check(Tied(), torch.randint(0, 16, (2, 3)), atol=1e-5)  # a sum of all weights, in another order
    assert len(weights(graph)) == 1
    assert len([v for v in graph.constants() if v.shape == (16, 8)]) == 1


class Layouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(6, 4).t())
        self.strided = nn.Parameter(torch.randn(8, 6)[::2])
        self.expanded = nn.Parameter(torch.randn(1, 6).expand(4, 6))
        self.last = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.transposed + self.strided + self.expanded, self.last(image)


def test_weights_of_any_layout() -> None:
    module = Layouts()
    graph = check(module, torch.randn(4, 6), torch.randn(1, 3, 8, 8))
    found = weights(graph)
    assert found["transposed"].data.data_ptr() == module.transposed.data_ptr()
    for name, parameter in module.named_parameters():
        raw = b"".join(found[name].chunks())
        assert raw == parameter.detach().contiguous().numpy().tobytes()
        assert found[name].nbytes == len(raw)


class Dtypes(nn.Module):
    NAMES = ("float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.register_buffer(f"table_{name}", torch.arange(-4, 4).to(getattr(torch, name)))

    def forward(self, i: Tensor) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"table_{name}")[i] for name in self.NAMES}


def test_dtypes() -> None:
    graph = check(Dtypes(), torch.tensor([0, 7, 3]))
    found = weights(graph)
    for name, value in zip(Dtypes.NAMES, graph.outputs, strict=True):
        assert found[f"table_{name}"].dtype.numpy.name == value.dtype.numpy.name == name


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "complex64"])
def test_tensors_of_dtypes_that_numpy_lacks(dtype: str) -> None:
    data = torch.tensor([[1.5, -2.0], [0.25, 4.0]]).to(getattr(torch, dtype)).t()
    tensor = TorchTensor(data, "t")
    assert tensor.dtype.numpy.name == dtype
    np.testing.assert_array_equal(tensor.numpy().astype(np.complex64), data.to(torch.complex64).numpy())
    assert tensor.numpy().__array_interface__["data"][0] == data.data_ptr()


def test_tensors_without_data() -> None:
    with pytest.raises(TensorError, match="'w' has a shape but no data"):
        TorchTensor(torch.empty(2, device="meta"), "w").numpy()
    with pytest.raises(TypeError, match=r"no element type for torch\.bits8"):
        TorchTensor(torch.empty(2, dtype=torch.bits8))


def test_half_precision_module() -> None:
    graph = check(Two().half(), torch.randn(2, 8).half(), rtol=1e-2, atol=1e-2)
    assert {t.dtype for t in weights(graph).values()} == {DType.FLOAT16}


# interface


def test_dynamic_shapes_by_name() -> None:
    module = Two().eval()
    graph = from_torch(module, torch.randn(2, 3, 8), dynamic_shapes={"x": {0: "batch", 1: "sequence"}})
    assert str(graph.inputs[0].type) == "float[batch,sequence,8]"
    assert str(graph.outputs[0].type) == "float[batch,sequence,8]"
    for shape in ((1, 1, 8), (5, 7, 8)):
        x = torch.randn(shape)
        np.testing.assert_allclose(run(graph, x)[0], module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_dimensions_of_torch_keep_their_names() -> None:
    graph = from_torch(Two().eval(), torch.randn(2, 8), dynamic_shapes=({0: torch.export.Dim("rows", max=64)},))
    assert str(graph.outputs[0].type) == "float[rows,8]"


def test_dimensions_without_names_are_called_after_their_input() -> None:
    dynamic = torch.export.Dim.DYNAMIC
    graph = from_torch(Two().eval(), torch.randn(2, 3, 8), dynamic_shapes=({0: dynamic, 1: dynamic},))
    assert str(graph.inputs[0].type) == "float[x_dim0,x_dim1,8]"
    assert str(graph.outputs[0].type) == "float[x_dim0,x_dim1,8]"


class Arguments(nn.Module):
    def forward(self, x: Tensor, pair: dict[str, Tensor], *, scale: Tensor | None = None, power: int = 1) -> Tensor:
        x = x + pair["a"] * pair["b"]
        return (x if scale is None else x * scale) ** power


def test_kwargs_and_nested_arguments() -> None:
    module = Arguments().eval()
    x, pair, scale = torch.randn(3), {"a": torch.randn(3), "b": torch.randn(3)}, torch.tensor(2.0)
    graph = from_torch(module, (x, pair), {"scale": scale, "power": 2})
    assert [v.name for v in graph.inputs] == ["x", "pair_a", "pair_b", "scale"]
    expected = module(x, pair, scale=scale, power=2)
    np.testing.assert_allclose(run(graph, x, *pair.values(), scale)[0], expected.numpy(), rtol=1e-5)


def test_a_dictionary_may_be_the_last_argument() -> None:
    check(Arguments(), torch.randn(3), {"a": torch.randn(3), "b": torch.randn(3)})


@dataclass
class Scores:
    logits: Tensor
    hidden: list[Tensor]


torch.export.register_dataclass(Scores)
Named = namedtuple("Named", ["first", "second"])
RESULTS: dict[str, Any] = {
    "dictionary": (lambda y, z: {"logits": y, "hidden": (z, z + 1)}, ["logits", "hidden.0", "hidden.1"]),
    "dataclass": (lambda y, z: Scores(y, [z, z + 1]), ["logits", "hidden.0", "hidden.1"]),
    "named tuple": (lambda y, z: Named(y, {"k": z}), ["first", "second.k"]),
    "tuple": (lambda y, z: (y, (z, None)), None),
    "one": (lambda y, z: y + z, None),
    "without some": (lambda y, z: {"y": y, "none": None, "z": z}, ["y", "z"]),
    "name of an input": (lambda y, z: {"x": y, "z": z}, None),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_outputs_are_called_as_in_the_module(kind: str) -> None:
    make, names = RESULTS[kind]

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return make(torch.sin(x), torch.cos(x))

    graph = check(Module(), torch.randn(3))
    found = [output.name for output in graph.output_info]
    assert len({*found, "x"}) == len(found) + 1
    if names is not None:
        assert found == names


def test_chosen_names() -> None:
    graph = check(Two(), torch.randn(2, 8), input_names=["features"], output_names=["scores"])
    assert [v.name for v in graph.inputs] == ["features"]
    assert [o.name for o in graph.output_info] == ["scores"]
    with pytest.raises(ModelError, match="output_names: a, b; wanted are 1 different names"):
        from_torch(Two().eval(), torch.randn(2, 8), output_names=["a", "b"])


class Passed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        return y, x, y, self.weight


def test_inputs_weights_and_values_returned_twice() -> None:
    graph = check(Passed(), torch.randn(3))
    assert len(graph.outputs) == 4


class MeanBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).mean(-1, keepdim=True) + self.mean


@pytest.mark.parametrize("returned", ["value", "mean"])
def test_a_buffer_called_like_a_result(returned: str) -> None:
    """torch.onnx calls both the buffer and the result of ReduceMean ``mean``."""

    class Returned(MeanBuffer):
        def forward(self, x: Tensor) -> Tensor:
            return (x - self.mean).mean(-1)

    check(MeanBuffer() if returned == "value" else Returned(), torch.randn(2, 4))


# provenance


def test_nodes_know_their_line_and_module() -> None:
    graph = from_torch(Two().eval(), torch.randn(2, 8))
    line = line_of("torch.relu(self.linear")
    for node in graph:
        assert node.origin.source == f"{__file__}:{line}"
    assert [n.origin.module for n in graph if n.op in ("MatMul", "Gemm")] == ["blocks.0.linear", "blocks.1.linear"]
    assert [n.origin.module for n in graph if n.op == "Relu"] == ["blocks.0", "blocks.1"]


# what modules do


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: v * self.weight, lambda v: v - self.weight, (x,))


def test_control_flow() -> None:
    module = Branches().eval()
    graph = from_torch(module, torch.ones(3))
    verify(graph)
    assert [n.op for n in graph if n.graphs] == ["If"]
    assert list(weights(graph)) == ["weight"]
    for x in (torch.ones(3), -torch.ones(3)):
        np.testing.assert_allclose(run(graph, x)[0], module(x).detach().numpy(), rtol=1e-6)


def test_training_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module[2].eval()
    x = torch.randn(3, 4)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.warns(UserWarning, match="in training mode; it is exported as in evaluation mode") as caught:
        graph = from_torch(module, x)
    assert caught[0].filename == __file__
    assert [m.training for m in module.modules()] == [True, True, True, False]
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in state.items())
    np.testing.assert_allclose(run(graph, x)[0], module.eval()(x).detach().numpy(), rtol=1e-5, atol=1e-6)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


def test_state_that_changes_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="the module changes count when it runs; the graph does not"):
        from_torch(Counter().eval(), torch.ones(2))


@pytest.mark.parametrize(
    ("module", "args"),
    [
        (nn.LSTM(4, 5, batch_first=True), (torch.randn(2, 3, 4),)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (torch.randn(2, 3, 8),)),
        (nn.MultiheadAttention(8, 2, batch_first=True), (torch.randn(2, 3, 8),) * 3),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            (torch.randn(2, 3, 8, 8),),
        ),
        (nn.Sequential(nn.GroupNorm(2, 4), nn.GELU(), nn.Upsample(scale_factor=2)), (torch.randn(2, 4, 5, 5),)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_modules_of_torch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    check(module, *args, rtol=1e-4, atol=1e-5)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    from_torch(Two().eval(), torch.randn(2, 8))
    assert capfd.readouterr() == ("", "")


# failures: one line each


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Eigenvalues()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x)


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(7, 7)


FAILURES: dict[str, tuple[nn.Module, Any, dict[str, Any], str, str]] = {
    "values": (Depends(), torch.ones(3), {}, "control flow depends on the values of a tensor", "if x.sum() > 0"),
    "operator": (
        Unsupported(),
        torch.eye(3),
        {},
        "no ONNX form of aten._linalg_eigh.default (in module 'inner')",
        "torch.linalg.eigvalsh(x)",
    ),
    "error": (Raises(), torch.ones(3, 3), {}, "must have same reduction dim", "x @ torch.ones"),
    "arguments": (Raises(), (torch.ones(3), torch.ones(3)), {}, "too many positional arguments", ""),
    "dynamic": (Two(), torch.ones(2, 8), {"dynamic_shapes": ({1: "n"},)}, "a static shape of 8 for dimension", ""),
    "axis": (Two(), torch.ones(2, 8), {"dynamic_shapes": ({5: "n"},)}, "cannot export Two", ""),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_are_one_line_that_says_where(kind: str) -> None:
    module, args, options, message, text = FAILURES[kind]
    with pytest.raises(ModelError) as caught:
        from_torch(module.eval(), args, **options)
    line = str(caught.value)
    assert message in line
    assert "\n" not in line
    assert len(line) < 500
    if text:
        assert line.endswith(f" at {__file__}:{line_of(text)}")


def test_wrong_kinds_of_model() -> None:
    with pytest.raises(TypeError, match=r"from_torch takes a torch\.nn\.Module, not function"):
        from_torch(lambda x: x, torch.ones(1))  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(TypeError, match=r"from_exported takes a torch\.export\.ExportedProgram, not Two"):
        from_exported(Two())  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_a_missing_package_names_the_extra(package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from planish.frontends.torch import from_torch
try:
    from_torch(None)
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == f"PyTorch models need {package}: pip install 'planish[torch]'\n"


def test_torch_is_imported_when_needed() -> None:
    code = "import sys, planish.frontends.torch; print('torch' in sys.modules, 'onnx_ir' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"


# .pt2


@pytest.fixture(scope="module")
def pt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "two.pt2"
    torch.export.save(_program(), path)
    return path


def _program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Two().eval(), (torch.randn(2, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def test_exported_program() -> None:
    program = _program()
    graph = from_exported(program, output_names=["y"])
    verify(graph)
    assert {t.data.data_ptr() for t in weights(graph).values()} == {t.data_ptr() for t in program.state_dict.values()}
    assert str(graph.inputs[0].type) == "float[x_dim0,8]"
    x = torch.randn(5, 8)
    np.testing.assert_allclose(run(graph, x)[0], program.module()(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_pt2_round_trip(pt2: Path) -> None:
    graph = load_pt2(pt2)
    verify(graph)
    x = torch.randn(3, 8)
    np.testing.assert_allclose(run(graph, x)[0], _program().module()(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert all(n.origin.module.startswith("blocks.") for n in graph)


def test_damaged_pt2(pt2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = pt2.read_bytes()
    rng = np.random.default_rng(0)
    cases = [
        b"",
        b"PK",
        b"no zip at all" * 99,
        data[: len(data) // 2],
        data[:-30],
        data.replace(b'"nodes"', b'"modes"'),
    ]
    for i, damaged in enumerate(cases):
        path = tmp_path / f"{i}.pt2"
        path.write_bytes(damaged)
        with pytest.raises(ModelError) as caught:
            load_pt2(path)
        assert str(caught.value).startswith(f"{path}: not a file of torch.export.save, or damaged")
        assert "\n" not in str(caught.value)
    for i in range(30):  # flipped anywhere: read, or refused in one line
        flipped = bytearray(data)
        for at in rng.integers(0, len(data), 8):
            flipped[at] ^= int(rng.integers(1, 256))
        (tmp_path / f"flip{i}.pt2").write_bytes(flipped)
        with suppress(ModelError):
            load_pt2(tmp_path / f"flip{i}.pt2")
    assert capfd.readouterr() == ("", "")


def test_pt2_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_pt2(tmp_path / "none.pt2")
    with pytest.raises(ModelError, match="not a regular file"):
        load_pt2(tmp_path)


class Bomb:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _rewrite(source: Path, target: Path, changes: Mapping[str, Any], extra: Mapping[str, bytes] = {}) -> None:
    """Copy an archive; ``changes`` maps ends of names to functions of the parsed JSON, or to new contents."""
    with zipfile.ZipFile(source) as old:
        root = old.namelist()[0].split("/")[0]
        writer = PT2ArchiveWriter(str(target))
        for name in old.namelist():
            data = old.read(name)
            for end, change in changes.items():
                if name.endswith(end):
                    data = change if isinstance(change, bytes) else _changed(data, change)
            record = name.removeprefix(root + "/")
            if not record.startswith(".data/") and record != "byteorder":
                writer.write_bytes(record, data)
        for record, data in extra.items():
            writer.write_bytes(record, data)
        writer.close()


def _changed(data: bytes, change: Any) -> bytes:
    tree = json.loads(data)
    change(tree)
    return json.dumps(tree).encode()


def _pickled_weight(tree: Any) -> None:
    next(iter(tree["config"].values()))["use_pickle"] = True


def _call(target: str) -> Any:
    return lambda tree: tree["graph_module"]["graph"]["nodes"][0].__setitem__("target", target)


def _size(text: str) -> Any:
    def change(tree: Any) -> None:
        sizes = tree["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = text

    return change


def test_rewritten_archives_load(pt2: Path, tmp_path: Path) -> None:
    _rewrite(pt2, tmp_path / "same.pt2", {})
    assert len(load_pt2(tmp_path / "same.pt2")) == len(load_pt2(pt2))


def test_pt2_with_pickles_or_code_is_refused(pt2: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    bomb = io.BytesIO()
    torch.save((Bomb(trap),), bomb)
    cases: list[tuple[dict[str, Any], dict[str, bytes], str]] = [
        ({"model_weights_config.json": _pickled_weight, "weight_0": bomb.getvalue()}, {}, "pickled object"),
        ({"sample_inputs/model.pt": bomb.getvalue()}, {}, "damaged"),
        ({"sample_inputs/model.pt": pickle.dumps((Bomb(trap),), protocol=2)}, {}, "damaged"),
        ({}, {"data/weights/model.pt": bomb.getvalue()}, "holds data/weights/model.pt"),
        ({}, {"data/aotinductor/model/x.so": b"\x7fELF"}, "holds data/aotinductor/model/x.so"),
        ({}, {"models/other.json": b"{}"}, "holds models/other.json"),
        ({"models/model.json": _call("torch.os.mkdir")}, {}, "calls 'torch.os.mkdir'"),
        ({"models/model.json": _call("torch.ops.__class__")}, {}, "calls 'torch.ops.__class__'"),
        ({"models/model.json": _size(f"__import__('os').mkdir({str(trap)!r})")}, {}, "for a size"),
        ({"models/model.json": _size(f"Symbol('{trap}')")}, {}, "for a size"),
        ({"models/model.json": _size("exec(s0)")}, {}, "for a size"),
        ({"models/model.json": _size("(s0).x()")}, {}, "for a size"),
    ]
    for i, (changes, extra, message) in enumerate(cases):
        path = tmp_path / f"{i}.pt2"
        _rewrite(pt2, path, changes, extra)
        with pytest.raises(ModelError) as caught:
            load_pt2(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not trap.exists()
