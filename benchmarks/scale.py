"""Scale: a Llama-70B-shaped model over a sparse 140 GB file, and simplification time up to 100,000 nodes.

    python benchmarks/scale.py llama FOLDER      # builds the model, then load -> simplify -> save in a fresh process
    python benchmarks/scale.py curve             # seconds and microseconds per node for growing graphs
    python benchmarks/scale.py cost MODEL...     # seconds of each pass of the default pipeline, best of five

The graphs look like raw exports: weights behind Transpose nodes, reshapes with computed targets, casts and identities.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planish.backends.onnx_file import save
from planish.frontends.onnx import load
from planish.ir import DType, FileTensor, Graph, TensorType, Value, constant, edit, op, sym
from planish.passes import Context, Pipeline


class Weights:
    """Hands out ranges of one sparse file."""

    def __init__(self, path: Path, dtype: DType):
        if not path.stat().st_size:
            os.truncate(path, 1 << 40)
        self.path = path
        self.dtype = dtype
        self.offset = 0

    def __call__(self, name: str, *shape: int) -> Value:
        size = self.dtype.bits // 8
        for d in shape:
            size *= d
        tensor = FileTensor(self.path, self.offset, self.dtype, shape, name)
        self.offset += -(-size // 4096) * 4096
        return Value(tensor.type, name, const=tensor)


def linear(x: Value, weight: Value) -> Value:
    """A bias-free linear layer as exporters write it."""
    return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))


def heads(x: Value, batch: Value, sequence: Value, size: int) -> Value:
    """``[B, S, N * size]`` to ``[B, N, S, size]`` with a computed target."""
    target = op.Concat(batch, sequence, constant([-1]), constant([size]), axis=0)
    return op.Transpose(op.Reshape(x, target, allowzero=1), perm=[0, 2, 1, 3])


def rms_norm(x: Value, weight: Value) -> Value:
    """RMSNorm in float32, as Llama writes it."""
    y = op.Cast(x, to=DType.FLOAT)
    mean = op.ReduceMean(op.Pow(y, 2.0), constant([-1]), keepdims=1)
    return op.Mul(weight, op.Cast(op.Mul(y, op.Reciprocal(op.Sqrt(op.Add(mean, 1e-5)))), to=int(x.dtype)))


def decoder(
    layers: int, hidden: int, ffn: int, head: int, kv_heads: int, vocabulary: int, path: Path, dtype: DType
) -> tuple[Graph, int]:
    """A Llama-shaped decoder over ``path``, and the number of bytes that its weights take there."""
    graph = Graph("decoder", opsets={"": 23})
    ids = graph.add_input(TensorType(DType.INT64, (sym("batch"), sym("sequence"))), "input_ids")
    weight = Weights(path, dtype)
    batch, sequence = op.Shape(ids, start=0, end=1), op.Shape(ids, start=1, end=2)
    x = op.Gather(weight("embed", vocabulary, hidden), ids, axis=0)
    for i in range(layers):
        y = rms_norm(x, weight(f"{i}.norm1", hidden))
        q = heads(linear(y, weight(f"{i}.q", hidden, hidden)), batch, sequence, head)
        k = heads(linear(y, weight(f"{i}.k", kv_heads * head, hidden)), batch, sequence, head)
        v = heads(linear(y, weight(f"{i}.v", kv_heads * head, hidden)), batch, sequence, head)
        groups = hidden // head // kv_heads
        k, v = (_repeat(t, groups, batch, sequence, head) for t in (k, v))
        scores = op.Softmax(
            op.Mul(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), constant(head**-0.5, dtype)), axis=-1
        )
        attended = op.Reshape(
            op.Transpose(op.MatMul(scores, v), perm=[0, 2, 1, 3]),
            op.Concat(batch, sequence, constant([-1]), axis=0),
            allowzero=1,
        )
        x = op.Identity(op.Add(x, linear(attended, weight(f"{i}.o", hidden, hidden))))
        y = rms_norm(x, weight(f"{i}.norm2", hidden))
        gate = linear(y, weight(f"{i}.gate", ffn, hidden))
        up = linear(y, weight(f"{i}.up", ffn, hidden))
        x = op.Add(x, linear(op.Mul(op.Mul(gate, op.Sigmoid(gate)), up), weight(f"{i}.down", hidden, ffn)))
    logits = linear(rms_norm(x, weight("norm", hidden)), weight("lm_head", vocabulary, hidden))
    edit.insert_floating([logits], graph.ret)
    logits.name = "logits"
    graph.set_outputs([logits])
    return graph, weight.offset


def _repeat(x: Value, groups: int, batch: Value, sequence: Value, head: int) -> Value:
    """Repeat key or value heads for grouped queries."""
    wide = op.Expand(
        op.Unsqueeze(x, constant([2])), op.Concat(batch, constant([1, groups]), sequence, constant([head]), axis=0)
    )
    return op.Reshape(wide, op.Concat(batch, constant([-1]), sequence, constant([head]), axis=0), allowzero=1)


def llama(folder: Path) -> None:
    """Build the model, then load, simplify and save it in a fresh process, weights by hard link."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "llama.data"
    data.touch()
    shape = (80, 8192, 28672, 128, 8, 128256, data, DType.BFLOAT16)
    _, size = decoder(*shape)
    os.truncate(data, size)
    graph, _ = decoder(*shape)
    save(graph, folder / "llama.onnx", weights="reference")
    out = subprocess.run(
        [sys.executable, __file__, "--child", str(folder)], check=True, capture_output=True, text=True
    ).stdout
    print(f"weights {size / 1e9:.0f} GB (sparse), {json.loads(out)}")


def child(folder: Path) -> None:
    """Load, simplify, save; print seconds and megabytes."""
    started = time.perf_counter()
    graph = load(folder / "llama.onnx")
    before = sum(1 for _ in graph.walk())
    loaded = time.perf_counter()
    simplify(graph)
    simplified = time.perf_counter()
    save(graph, folder / "optimized.onnx", weights="link")
    done = time.perf_counter()
    after = sum(1 for _ in load(folder / "optimized.onnx").walk())
    print(json.dumps({
        "nodes": [before, after], "load_s": round(loaded - started, 2), "simplify_s": round(simplified - loaded, 2),
        "save_s": round(done - simplified, 2), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }))  # fmt: skip


def curve() -> None:
    """Simplification time for 1,000 to 100,000 nodes."""
    print("| nodes | seconds | µs per node | nodes left |\n|---|---|---|---|")
    for layers in (20, 60, 200, 600, 2000):
        with tempfile.NamedTemporaryFile() as file:
            graph, _ = decoder(layers, 64, 128, 16, 2, 100, Path(file.name), DType.FLOAT16)
            nodes = sum(1 for _ in graph.walk())
            seconds = simplify(graph)
        print(f"| {nodes} | {seconds:.2f} | {seconds / nodes * 1e6:.0f} | {sum(1 for _ in graph.walk())} |", flush=True)


def simplify(graph: Graph) -> float:
    """Simplify; returns the seconds that it took."""
    ctx = Context()
    started = time.perf_counter()
    Pipeline("simplify").run(graph, ctx)
    seconds = time.perf_counter() - started
    assert not ctx.results[0].problem, ctx.results[0].problem
    return seconds


def cost(path: str) -> None:
    """Seconds of each pass of the default pipeline, and what fusion and the pass behind it add to simplification."""
    runs = []
    for _ in range(5):
        graph, ctx = load(path), Context()
        Pipeline("default").run(graph, ctx)
        runs.append([result.seconds for result in ctx.results])
    simplification, *rest = (min(seconds) for seconds in zip(*runs, strict=True))
    passes = ", ".join(f"{seconds:.4f}" for seconds in (simplification, *rest))
    print(f"{path}: {passes} s; fusion adds {sum(rest) / simplification:.0%}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["llama", folder]:
            llama(Path(folder))
        case ["--child", folder]:
            child(Path(folder))
        case ["curve"]:
            curve()
        case ["cost", *models] if models:
            for model in models:
                cost(model)
        case _:
            sys.exit(__doc__)
