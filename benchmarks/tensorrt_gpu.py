"""The whole check of the TensorRT backend on a GPU: builds, runs, compares, measures and inspects engines.

    python benchmarks/tensorrt_gpu.py [MODEL ...] [--sizes SIZES] [--data NPZ] [--seconds N] [--json FILE]

MODEL is whatever planish loads; by default a small convolutional network and a transformer block are made up. Each is
built in float, float with TF32, float16 and int8, run and compared with ONNX Runtime (error: the largest difference,
relative to the largest magnitude), saved, loaded and run again, run with a CUDA graph and, where PyTorch is installed,
with tensors on the GPU. Latency is measured in pairs against the float engine, and the inspector tells in which types
the layers compute. Where there is no GPU, it says so and exits with status 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMS = {  # name: pipeline, options for the builder, the error from which on it counts as wrong
    "float": ("default", {"tf32": False}, 1e-3),
    "tf32": ("default", {}, 1e-2),
    "float16": ("default,convert-precision", {}, 5e-2),
    "int8": ("default,quantize", {"tf32": False}, 2e-1),
}


# --- models ----------------------------------------------------------------------------------------------------------


def network(nodes: list[Any], shape: list[Any], weights: dict[str, np.ndarray]) -> Any:
    """A model from ``x`` to ``y``."""
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(w.astype(np.float32), n) if w.dtype.kind == "f" else numpy_helper.from_array(w, n)
         for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def convolutions(rng: np.random.Generator) -> Any:
    """Three residual convolutions over images of 64 channels."""
    from onnx.helper import make_node

    nodes, last = [], "x"
    weights: dict[str, np.ndarray] = {}
    for i in range(3):
        weights[f"w{i}"] = rng.standard_normal((64, 64, 3, 3)) / 24
        nodes += [
            make_node("Conv", [last, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]),
            make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"),
            make_node("Add", [f"r{i}", last], [f"a{i}"], name=f"add{i}"),
        ]
        last = f"a{i}"
    weights["head"] = rng.standard_normal((64, 10)) / 8
    nodes += [
        make_node("GlobalAveragePool", [last], ["p"], name="pool"),
        make_node("Flatten", ["p"], ["f"], name="flatten"),
        make_node("MatMul", ["f", "head"], ["y"], name="head"),
    ]
    return network(nodes, ["batch", 64, 32, 32], weights)


def transformer(rng: np.random.Generator) -> Any:
    """A block of a transformer: attention of 4 heads and a feed-forward layer of 256 features."""
    from onnx.helper import make_node

    weights = {name: rng.standard_normal((256, 256)) / 16 for name in ("q", "k", "v", "o")}
    weights |= {"up": rng.standard_normal((256, 1024)) / 16, "down": rng.standard_normal((1024, 256)) / 32}
    weights |= {"scale": np.ones(256), "eighth": np.array(0.125)}
    weights |= {"split": np.array([0, 0, 4, 64]), "merge": np.array([0, 0, 256])}
    nodes = []
    for name in "qkv":
        axes = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes += [
            make_node("MatMul", ["x", name], [f"{name}1"], name=f"{name}_product"),
            make_node("Reshape", [f"{name}1", "split"], [f"{name}2"], name=f"{name}_heads"),
            make_node("Transpose", [f"{name}2"], [f"{name}3"], name=f"{name}_turn", perm=axes),
        ]
    nodes += [
        make_node("Mul", ["q3", "eighth"], ["q4"], name="scale_q"),
        make_node("MatMul", ["q4", "k3"], ["s"], name="scores"),
        make_node("Softmax", ["s"], ["p"], name="softmax", axis=-1),
        make_node("MatMul", ["p", "v3"], ["h"], name="mix"),
        make_node("Transpose", ["h"], ["h1"], name="back", perm=[0, 2, 1, 3]),
        make_node("Reshape", ["h1", "merge"], ["h2"], name="join"),
        make_node("MatMul", ["h2", "o"], ["h3"], name="o_product"),
        make_node("Add", ["h3", "x"], ["r"], name="residual"),
        make_node("LayerNormalization", ["r", "scale"], ["n"], name="norm"),
        make_node("MatMul", ["n", "up"], ["u"], name="up"),
        make_node("Relu", ["u"], ["g"], name="relu"),
        make_node("MatMul", ["g", "down"], ["d"], name="down"),
        make_node("Add", ["d", "r"], ["y"], name="out"),
    ]
    return network(nodes, ["batch", "length", 256], weights)


# --- the check -------------------------------------------------------------------------------------------------------


def error_of(outputs: list[Any], expected: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest magnitude."""
    found = 0.0
    for got, wanted in zip(outputs, expected, strict=True):
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        if got.shape != wanted.shape or not np.array_equal(np.isfinite(got), np.isfinite(wanted)):
            return float("inf")
        scale = max(np.abs(wanted[np.isfinite(wanted)]).max(initial=0), 1e-6)
        found = max(found, float(np.abs(np.nan_to_num(got) - np.nan_to_num(wanted)).max(initial=0) / scale))
    return found


def on_gpu(sample: dict[str, Any]) -> dict[str, Any] | None:
    """The sample as PyTorch's tensors on the GPU; None without PyTorch for CUDA."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return {name: torch.from_numpy(np.ascontiguousarray(a)).cuda() for name, a in sample.items()}


def samples_of(graph: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Samples: those that are given, or some of the usual sizes of the engine's profile."""
    from planish.backends.tensorrt.profiles import parse, resolve
    from planish.data import read_samples, synthesize_more

    if args.data:
        return read_samples(str(args.data), graph, 8)
    (profile, *_), _ = resolve(graph, parse(args.sizes))
    usual = {v.name: profile.shapes[v.name].usual if v.name in profile.shapes else v.shape for v in graph.inputs}
    like = {v.name: np.zeros(usual[v.name], v.dtype.numpy) for v in graph.inputs if v.default is None}
    return synthesize_more(graph, like, 8)


def check(model: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One model in all forms."""
    import planish
    from planish.backends import backend

    graph = planish.load(model)
    samples = samples_of(graph, args)
    expected = list(backend("onnxruntime").compile(graph)(samples[0]).values())
    base: list[Callable[[], object]] = []  # the first form's run
    for form, (pipeline, options, tolerance) in FORMS.items():
        row: dict[str, Any] = {"form": form}
        try:
            changed = planish.optimize(graph, pipeline, target="tensorrt", data=samples, verify="off", measure=False)
            program = backend("tensorrt").compile(changed.graph, engine=True, sizes=args.sizes, **options)
            row["error"] = error_of(list(program(samples[0]).values()), expected)
            row |= again(program, samples[0], expected)
            row |= measured(program, samples[0], expected, base, args.seconds)
            row |= inspected(program, args.table)
            row["right"] = max(v for k, v in row.items() if k.startswith("error")) <= tolerance
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
            where = traceback.extract_tb(error.__traceback__)[-1]
            row |= {
                "failed": " ".join(str(error).split())[:500],
                "where": f"{Path(where.filename).name}:{where.lineno}",
            }
        yield row


def measured(
    program: Any, sample: dict[str, Any], expected: list[np.ndarray], base: list[Callable[[], object]], seconds: float
) -> dict[str, Any]:
    """Latency beside the first form's, with arrays on the GPU if PyTorch can put them there."""
    from planish.measure import measure_pair

    found: dict[str, Any] = {}
    device = on_gpu(sample)
    if device is not None:
        found["error on GPU"] = error_of([v.cpu() for v in program(device).values()], expected)

    def run() -> None:
        program(device or sample)
        program.wait()

    base[:] = base or [run]
    pair = measure_pair(base[0], run, seconds)
    return {**found, "ms": pair.after.median * 1e3, "speedup": pair.speedup, "uncertainty": pair.uncertainty}


def inspected(program: Any, table: bool) -> dict[str, Any]:
    """In which types the layers compute, and how many of the quantized ones in int8."""
    inspection = program.inspect()
    quantized = program.report().get("quantized", [])
    layers = [inspection.layer_of(name) for name in quantized]
    return {
        "layers": inspection.precisions,
        "quantized": len(quantized),
        "quantized in int8": sum(layer is not None and layer.precision == "int8" for layer in layers),
        **({"note": inspection.note} if inspection.note else {}),
        **({"table": str(inspection)} if table else {}),
    }


def again(program: Any, sample: dict[str, Any], expected: list[np.ndarray]) -> dict[str, Any]:
    """The errors of the engine after it was saved and loaded, and with a CUDA graph that is replayed."""
    from planish.backends import backend

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.engine"
        program.save(path)
        loaded = backend("tensorrt").load(path, cuda_graph=True)
        for name in ("error loaded", "error replayed"):
            found[name] = error_of(list(loaded(sample).values()), expected)
        loaded.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Checks the TensorRT backend on a GPU.")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--sizes", help="such as batch=1:8:32")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring per form")
    parser.add_argument("--table", action="store_true", help="show the layers of every engine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from planish.backends.tensorrt.cuda import find_driver
    from planish.backends.tensorrt.engine import runnable
    from planish.backends.tensorrt.module import find_module

    reason = runnable()
    if reason:
        print(f"not checked: {reason}")
        return
    driver = find_driver()
    assert driver is not None
    print(f"{find_module()} on {driver.gpu}")
    rng = np.random.default_rng(0)
    models: dict[str, Any] = {m: m for m in args.models}
    models = models or {"convolutions": convolutions(rng), "transformer": transformer(rng)}
    rows = []
    for name, model in models.items():
        for row in check(model, args):
            rows.append({"model": name, **row})
            print(name, {k: v for k, v in row.items() if k != "table"}, flush=True)
            if "table" in row:
                print(row["table"])
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    wrong = [r for r in rows if not r.get("right")]
    print(f"{len(rows) - len(wrong)} of {len(rows)} are right")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
