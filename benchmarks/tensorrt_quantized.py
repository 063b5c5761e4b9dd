"""Quantized models in TensorRT for RTX: whether every quantized layer has its Q/DQ in the network that TensorRT parses.

``python benchmarks/tensorrt_quantized.py ZOO [NAME …] [--precision P …]``, where ZOO is a folder that `zoo.py` filled;
models that it lacks are exported into it. Each model goes through ``default,quantize`` for the target, with made-up
samples (weights are random, and so are ranges), and is lowered, parsed and built; the detector is pruned and made
sparse before.

- *layers*: convolutions and products of which planish quantized both factors.
- *in the network*: those that TensorRT has with a DequantizeLayer in front of both, and a QuantizeLayer before that of
  the activation.
- *added*: additions that read a quantized residual branch.
- *2:4*: layers with 2:4 weights, for which the builder has its flag.
- *error*: the largest difference between the graph with Q/DQ as the standard spells it and with those for TensorRT,
  both in ONNX Runtime without its optimizations, relative to the output; integers only, since it rounds float8
  differently.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from prune_zoo import recipes
from tables import markdown
from zoo import ZOO, Recipe, arguments, export_in_subprocess, export_recipes, text

PRECISIONS = ("int8", "int8+fp16", "fp8+fp16")
SAMPLES = 2
MINILM = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
MODELS = {name: ZOO[name] for name in ("mobilenet-v2", "resnet-50", "vit-base")} | {
    "minilm": Recipe("BertModel", text, MINILM, "eager"),
    "yolov5s-320": recipes(small=False)["yolov5s-320"],
}
BEFORE = {"yolov5s-320": "prune{ratio=0.25},sparsify{pattern=2:4},"}
MULTIPLIES = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
MOVES = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE", "CAST")


# --- the network that TensorRT parses --------------------------------------------------------------------------------


def build(model: bytes, inputs: dict[str, np.ndarray], flags: Iterable[str] = ()) -> tuple[dict[str, set[str]], str]:
    """The layers that multiply, by name, with those of their factors that are quantized; and why it is not built."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        return {}, "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
    found = quantized_factors(network)
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *[inputs[tensor.name].shape] * 3)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return found, "" if plan is not None else "; ".join(log.errors)


def quantized_factors(network: Any) -> dict[str, set[str]]:
    """By name of a layer that multiplies, its factors (``0``, ``1``) that come from a QuantizeLayer or a constant."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def source(layer: Any, position: int) -> Any:
        tensor = layer.get_input(position)
        found = None if tensor is None else makers.get(tensor.name)
        while found is not None and found.type.name in MOVES:
            found = makers.get(found.get_input(0).name)
        return found

    quantized: dict[str, set[str]] = {}
    for layer in layers:
        if layer.type.name not in MULTIPLIES:
            continue
        quantized[layer.name] = set()
        for position in range(min(layer.num_inputs, 2)):
            dequantize = source(layer, position)
            if dequantize is not None and dequantize.type.name == "DEQUANTIZE":
                origin = source(dequantize, 0)
                if origin is not None and origin.type.name in ("QUANTIZE", "CONSTANT"):
                    quantized[layer.name].add(str(position))
    return quantized


# --- one model -------------------------------------------------------------------------------------------------------


def samples(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The inputs, and others like them: floating-point numbers anew, ids in another order."""
    rng = np.random.default_rng(0)
    made = [inputs]
    for _ in range(SAMPLES - 1):
        fresh = {n: rng.standard_normal(a.shape, np.float32) if a.dtype == np.float32 else a for n, a in inputs.items()}
        made.append({n: np.flip(a, 0).copy() if a.dtype.kind == "i" else a for n, a in fresh.items()})
    return made


def quantized(folder: Path, inputs: dict[str, np.ndarray]) -> Any:
    """The model, quantized for TensorRT."""
    import planish
    from planish.backends import backend

    graph = planish.load(folder / "model.onnx")
    data = samples(inputs)
    context = planish.Context(lambda: backend("onnxruntime"), target="tensorrt:rtx", samples=lambda: iter(data))
    passes = f"default,{BEFORE.get(folder.name, '')}quantize{{calibration=minmax}}"
    planish.Pipeline.parse(passes).run(graph, context)
    return graph


def judge(graph: Any, inputs: dict[str, np.ndarray], precision: str) -> list[str]:
    """A row of the table."""
    from planish.backends import backend
    from planish.backends.tensorrt.precision import apply_precision, builder_flags, sparse_layers
    from planish.backends.tensorrt.versions import version_of
    from planish.ir.clone import clone_graph
    from planish.ir.convert.proto import to_proto
    from planish.ir.errors import PlanishError

    graph, version = clone_graph(graph), version_of("rtx")
    apply_precision(graph, precision, version)
    fakes = {v for n in graph.walk() if n.op == "planish.FakeQuantize" for v in n.results}
    multiplying = [n for n in graph.walk() if n.op in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
    layers = {n.name for n in multiplying if set(n.operands[:2]) <= fakes}
    added = sum(n.op == "Add" and not fakes.isdisjoint(n.operands) for n in graph.walk())
    try:
        lowered, stamp, notes = backend("tensorrt:rtx").lower_and_stamp(graph)
        model = to_proto(lowered, opset=stamp.opset, ir_version=stamp.ir_version).SerializeToString()
    except PlanishError as failure:
        return [precision, str(len(layers)), "-", str(added), "-", "-", str(failure)[:300].replace("\n", " ")]
    for note in notes:
        print("  ", note, file=sys.stderr)
    found, why = build(model, inputs, builder_flags(version, precision, lowered))
    both = {name for name, factors in found.items() if factors == {"0", "1"}}
    error = "-" if precision.startswith("fp8") else difference(graph, version, inputs)
    missing = f", without: {sorted(layers - both)[:3]}" if layers - both else ""
    kept = f"{len(layers & both)}{missing}"
    sparse = str(len(sparse_layers(lowered)))
    return [precision, str(len(layers)), kept, str(added), sparse, error, why[:300] or "yes"]


def difference(graph: Any, version: Any, inputs: dict[str, np.ndarray]) -> str:
    """The largest difference between the two encodings of a graph, relative to the largest magnitude."""
    from planish.backends import backend
    from planish.backends.quantization import encode
    from planish.backends.tensorrt.quantized import encode as encode_for_tensorrt
    from planish.ir.clone import clone_graph

    standard, ours = clone_graph(graph), clone_graph(graph)
    encode(standard, "int8")
    encode_for_tensorrt(ours, version)
    expected, found = (backend("onnxruntime").compile(g, level="off")(inputs) for g in (standard, ours))
    worst = 0.0
    for name, wanted in expected.items():
        off = np.abs(np.asarray(found[name], np.float64) - np.asarray(wanted, np.float64)).max()
        worst = max(worst, float(off / max(np.abs(wanted).max(), 1e-9)))
    return f"{worst:.1e}"


def main() -> int:
    parser = arguments("Quantized models in TensorRT for RTX.", MODELS)
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), metavar="P")
    args = parser.parse_args()
    if args.into is not None:
        return export_recipes(MODELS, args)
    warnings.simplefilter("ignore")
    rows, complete = [], True
    for name in args.names or MODELS:
        folder = args.out / name
        if not (folder / "model.onnx").exists() and not export_in_subprocess(name, args.out, __file__):
            complete = False
            continue
        with np.load(folder / "inputs.npz") as file:
            inputs = dict(file)
        started = time.perf_counter()
        graph = quantized(folder, inputs)
        print(f"{name}: quantized in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        for precision in args.precision:
            if name in BEFORE and precision.startswith("fp8"):
                continue  # it has convolutions only
            row = judge(graph, inputs, precision)
            complete &= row[1] == row[2] and row[-1] == "yes"
            rows.append([name, *row])
    header = ("model", "precision", "layers", "in the network", "added", "2:4", "error", "builds")
    print(markdown("Quantized layers that keep their Q/DQ", header, rows))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
