"""Runs, exports and compiles the models of a zoo on the XLA backend, as they are and optimized.

``python benchmarks/xla_models.py ZOO [NAME…] [--jobs N] [--no-tpu] [--json FILE]``, where ZOO is what `zoo.py` or
`attention_zoo.py` wrote: folders with ``model.onnx``, ``inputs.npz`` and PyTorch's ``outputs.npz``. For each model:

- *error*: the largest difference from PyTorch on XLA:CPU, relative to the largest magnitude of the output;
- *export*: StableHLO for CPU, CUDA and TPU with symbolic sizes where the model has them, saved, loaded again and run;
- *TPU*: compiled ahead of time for one v5e chip, at the sizes of the inputs (needs ``planish[tpu]``).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FORMS = ("raw", "optimized")


def check(folder: Path, form: str, tpu: bool) -> dict[str, Any]:
    """One model in one form."""
    import numpy as np

    import planish
    from planish.backends import backend
    from planish.data import bind_sizes

    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"model": folder.name, "form": form}
    graph = planish.load(folder / "model.onnx")
    if form == "optimized":
        planish.Pipeline.parse("default").run(graph, planish.Context(lambda: backend("onnxruntime")))
    inputs, wanted = dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))
    inputs = {v.name: inputs[v.name] for v in graph.inputs}
    step = "run"
    try:
        xla = backend("xla")
        start = time.perf_counter()
        program = xla.compile(graph, precision="highest")
        found["error"] = difference(program(inputs), wanted)
        found["seconds"] = time.perf_counter() - start
        del program
        step = "export"
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.stablehlo"
            xla.write(graph, path, precision="highest")
            found["export"] = difference(xla.load(path)(inputs), wanted)
        if tpu:
            step = "tpu"
            found["tpu"] = compile_for_tpu(graph, bind_sizes(graph, inputs))
    except Exception as error:  # noqa: BLE001 - the table says what failed
        found["failed"] = f"{step}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return found


def compile_for_tpu(graph: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """What the compiler says of ``graph`` on one v5e chip."""
    from planish.backends.xla.function import to_jax
    from planish.backends.xla.tpu import compile_tpu

    _, report = compile_tpu(to_jax(graph), "v5e", sizes=sizes)
    return {"gflop": report.flops / 1e9, "mb": report.bytes / 1e6, "peak_mb": report.peak / 1e6}


def difference(outputs: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference, relative to the largest magnitude of its output; infinite where shapes differ."""
    import numpy as np

    worst = 0.0
    for actual, expected in zip(outputs.values(), wanted.values(), strict=True):
        if actual.shape != expected.shape:
            return float("inf")
        if expected.size:
            a, e = actual.astype(np.float64), expected.astype(np.float64)
            finite = np.isfinite(e)
            if not np.array_equal(finite, np.isfinite(a)):
                return float("inf")
            if finite.any():
                worst = max(worst, float(np.abs(a - e)[finite].max() / max(np.abs(e[finite]).max(), 1e-30)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-tpu", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    folders = sorted(p.parent for p in arguments.zoo.glob("*/model.onnx"))
    folders = [f for f in folders if not arguments.names or any(n in f.name for n in arguments.names)]
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(check, f, form, not arguments.no_tpu) for f in folders for form in FORMS]
        for task in tasks:
            found = task.result()
            results.append(found)
            good = "failed" not in found and max(found["error"], found["export"]) <= arguments.tolerance
            numbers = " ".join(f"{k} {v:.2g}" for k, v in found.items() if isinstance(v, float))
            verdict = "ok  " if good else "FAIL"
            print(f"{verdict} {found['model']:40} {found['form']:9} {numbers} {found.get('failed', '')}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    passed = [r for r in results if "failed" not in r]
    within = [r for r in passed if max(r["error"], r["export"]) <= arguments.tolerance]
    print(
        f"{len(results)}: {len(passed)} run, export, compile; {len(within)} within {arguments.tolerance:g} of PyTorch"
    )


if __name__ == "__main__":
    main()
