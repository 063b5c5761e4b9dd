"""Builds the models of a zoo in TensorRT for RTX: as they are exported, and through planish in float32 and float16.

``python benchmarks/tensorrt_models.py ZOO [NAME…] [--precisions fp32 fp16] [--jobs N] [--no-raw] [--json FILE]``, where
ZOO is what `zoo.py` or `attention_zoo.py` wrote: folders with ``model.onnx``, ``inputs.npz`` and PyTorch's
``outputs.npz``. Sizes that a model leaves open are a range from those of the inputs to twice as much. What planish
emits is run in ONNX Runtime: *error* is the largest difference from PyTorch, relative to the largest magnitude of the
output.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tensorrt_nodes import Workshop
from xla_models import difference

PIPELINES = {"fp32": "default", "fp16": "default,convert-precision"}


def check(folder: Path, precision: str, workshop: Workshop) -> dict[str, Any]:
    """One model in one precision, or ``raw``."""
    from planish.ir.errors import PlanishError

    found: dict[str, Any] = {"model": folder.name, "form": precision}
    inputs = dict(np.load(folder / "inputs.npz"))
    try:
        model, error = (folder / "model.onnx", None) if precision == "raw" else emitted(folder, precision, inputs)
    except PlanishError as failure:
        return {**found, "outcome": "no form", "why": str(failure)[:2000]}
    outcome, why = workshop(model, inputs, 2)
    if isinstance(model, Path) and precision != "raw":
        for path in model.parent.glob("*"):
            path.unlink()
        model.parent.rmdir()
    return {**found, "outcome": outcome, "why": why[:2000], "error": error}


def emitted(folder: Path, precision: str, inputs: dict[str, np.ndarray]) -> tuple[Path, float]:
    """The file that planish writes, and its error in ONNX Runtime."""
    import tempfile

    import planish
    from planish.backends import backend
    from planish.models import save_for

    graph = planish.load(folder / "model.onnx")
    planish.Pipeline.parse(PIPELINES[precision]).run(graph, planish.Context(lambda: backend("onnxruntime")))
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    save_for(graph, path, backend("tensorrt:rtx"))
    program = backend("onnxruntime").compile(planish.load(path))
    outputs = program({name: inputs[name] for name, _ in program.inputs})
    return path, difference(outputs, dict(np.load(folder / "outputs.npz")))


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds a zoo in TensorRT for RTX.")
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--no-raw", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    folders = [f for f in sorted(args.zoo.iterdir()) if (f / "model.onnx").exists()]
    folders = [f for f in folders if not args.names or any(fnmatch.fnmatch(f.name, n) for n in args.names)]
    forms = ([] if args.no_raw else ["raw"]) + args.precisions
    workshops = [Workshop() for _ in range(args.jobs)]

    def work(start: int) -> list[dict[str, Any]]:
        found = []
        for folder in folders[start :: args.jobs]:
            for form in forms:
                row = check(folder, form, workshops[start])
                found.append(row)
                print(*(str(row.get(k, ""))[:200] for k in ("model", "form", "outcome", "error", "why")), flush=True)
        workshops[start].close()
        return found

    with ThreadPoolExecutor(args.jobs) as pool:
        rows = [row for some in pool.map(work, range(args.jobs)) for row in some]
    for form in forms:
        own = [r for r in rows if r["form"] == form]
        errors = [r["error"] for r in own if r.get("error") is not None]
        print(form, dict(Counter(r["outcome"] for r in own)), "worst error", max(errors, default=0))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
