"""The XLA backend on a GPU: whether models of a zoo compute what PyTorch does, and how fast their forms are.

    python benchmarks/xla_gpu.py ZOO [NAME ...] [--batch N] [--json FILE]

ZOO is what `zoo.py` wrote. Every form is compiled for the batch, with its inputs and weights on the GPU, and timed in
turns with the model as it stands, so a speedup is a ratio within one run. Error is the largest difference from PyTorch
on the inputs of the zoo, relative to the largest magnitude; for ``exact``, products are computed in float32. Int8 is
timed as integers (what targets do) and as numbers that are rounded (``fake``). Where JAX finds no GPU, this says so and
exits with status 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import planish
from planish.backends import backend
from planish.backends.xla.function import to_jax
from planish.ir import Graph

ROUNDS, SHORTEST = 15, 0.02  # turns, and the seconds of each
FORMS: dict[str, tuple[str, dict[str, Any]]] = {  # name: pipeline, options of `to_jax`
    "raw": ("", {}),
    "exact": ("default", {"precision": "highest"}),
    "default": ("default", {}),
    "bf16": ("bf16", {}),
    "fp16": ("fp16", {}),
    "int8": ("int8", {"quantization": "integers"}),
    "int8 fake": ("int8", {"quantization": "fake"}),
}


def rows_of(inputs: dict[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """The inputs, repeated to ``batch`` rows."""
    return {n: np.resize(a, (batch, *a.shape[1:])) for n, a in inputs.items()}


def form(graph: Graph, pipeline: str, inputs: dict[str, np.ndarray]) -> Graph:
    """What ``pipeline`` makes of the graph."""
    if not pipeline:
        return graph
    data = [inputs] if pipeline == "int8" else None
    return planish.optimize(graph, pipeline, target="xla", data=data, verify="off", measure=False).graph


def error_of(run: Callable[[], Any], wanted: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest magnitude of its output."""
    worst = 0.0
    for found, expected in zip(run(), wanted.values(), strict=True):
        difference = np.abs(np.asarray(found, np.float64) - expected).max()
        worst = max(worst, float(difference / max(np.abs(expected).max(), 1e-6)))
    return worst


def runner(graph: Graph, inputs: dict[str, np.ndarray], options: dict[str, Any]) -> Callable[[], Any]:
    """The compiled graph, on inputs that are where it runs."""
    import jax

    function = to_jax(graph, **options)
    params, placed = jax.device_put(function.params), jax.device_put([inputs[v.name] for v in graph.inputs])
    static = {graph.inputs.index(v) for v in graph.inputs if v.name in function.static_inputs}
    values = [inputs[v.name] if i in static else placed[i] for i, v in enumerate(graph.inputs)]
    compiled = jax.jit(lambda p, *rest: function(p, *values)) if static else jax.jit(function)
    return lambda: compiled(params, *values)


def seconds(run: Callable[[], Any], count: int) -> float:
    import jax

    started = time.perf_counter()
    for _ in range(count):
        found = run()
    jax.block_until_ready(found)
    return (time.perf_counter() - started) / count


def measured(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, in turns."""
    counts = {name: max(1, round(SHORTEST / max(seconds(run, 3), 1e-6))) for name, run in runs.items()}
    turns = [{name: seconds(run, counts[name]) for name, run in runs.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(turn[name] for turn in turns) for name in runs}


def check(folder: Path, batch: int) -> list[dict[str, Any]]:
    """All forms of one model."""
    inputs, wanted = dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))
    many = rows_of(inputs, batch)
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for name, (pipeline, options) in FORMS.items():
        rows[name] = {"model": folder.name, "form": name}
        try:
            graph = form(planish.load(folder / "model.onnx"), pipeline, inputs)
            rows[name]["error"] = error_of(runner(graph, inputs, options), wanted)
            runs[name] = runner(graph, many, options)
            runs[name]()
        except Exception as error:  # noqa: BLE001 - the table says what failed
            rows[name]["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            runs.pop(name, None)
    found = measured(runs)
    for name, each in found.items():
        rows[name] |= {"ms": each * 1e3, "speedup": found["raw"] / each if "raw" in found else None}
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="The XLA backend on a GPU.")
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    backend("xla")
    import jax

    if jax.default_backend() != "gpu":
        print(f"not checked: JAX finds no GPU, only {jax.default_backend()}")
        return
    warnings.simplefilter("ignore")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {args.batch}")
    names = args.names or sorted(p.parent.name for p in args.zoo.glob("*/model.onnx"))
    rows = []
    for name in names:
        for row in check(args.zoo / name, args.batch):
            rows.append(row)
            print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
