"""Counts the attention sites that each tool fuses, and whether its result still works.

``python benchmarks/attention_coverage.py --zoo ZOO [NAME…]`` lets every tool optimize every export of `attention_zoo`
in a process of its own, runs the result in ONNX Runtime at its defaults, and compares the outputs with PyTorch's. A
result is unusable if the tool or ONNX Runtime fails, or if an output is off by more than 1e-3 of its range (2e-2 in
half precision). A fused site is one operator: Attention, MultiHeadAttention, GroupQueryAttention and their variants;
planish's are counted before it lowers them, because where ONNX Runtime's kernel is slower, it writes their parts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SECONDS = 200
WRONG = {"float32": 1e-3, "float16": 2e-2}
FUSED = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "PackedAttention")
# what ONNX Runtime's Python optimizer has to be told; it knows no others
MODEL_TYPES = {
    "bart": "bart",
    "clip": "clip",
    "gpt2": "gpt2",
    "phi": "phi",
    "swin": "swin",
    "t5": "t5",
    "unet-block": "unet",
    "vit": "vit",
}

# the tools: path of the model, path of the result


def planish(source: str, target: str) -> int:
    """The default pipeline, without its own verification; returns the number of fused sites."""
    import planish

    result = planish.optimize(source, verify="off", measure=False)
    result.save(target)
    return sum(node.op in FUSED for node in result.graph.walk())


def onnxscript(source: str, target: str) -> None:
    """Its optimizer and then its fusions for ONNX Runtime."""
    import onnx_ir
    from onnxscript.optimizer import optimize
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = onnx_ir.load(source)
    optimize(model)
    result = optimize_for_ort(model)
    model = result[0] if isinstance(result, tuple) else result
    model = model if isinstance(model, onnx_ir.Model) else model.model
    onnx_ir.save(model, target, external_data=Path(target).name + ".data")


def ort_python(source: str, target: str) -> None:
    """``onnxruntime.transformers.optimizer``, told the kind of model."""
    from onnxruntime.transformers.optimizer import optimize_model

    name = Path(source).parent.name
    kind = next((kind for family, kind in MODEL_TYPES.items() if name.startswith(family)), "bert")
    model = optimize_model(source, model_type=kind, opt_level=0, num_heads=0, hidden_size=0)
    model.save_model_to_file(target, use_external_data_format=True)


def ort_extended(source: str, target: str) -> None:
    """What the C++ optimizer makes of it when it loads it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = target
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


TOOLS: dict[str, Callable[[str, str], int | None]] = {
    "planish": planish,
    "onnxscript": onnxscript,
    "ort-python": ort_python,
    "ort-extended": ort_extended,
}


def _attempt(tool: str, model: Path, folder: str, answer: Any) -> None:
    """In a process of its own: optimize, count, run, compare."""
    import warnings

    import onnxruntime

    warnings.filterwarnings("ignore")
    onnxruntime.set_default_logger_severity(4)
    target = str(Path(folder) / "model.onnx")
    facts: dict[str, Any] = {"fused": 0, "error": None, "problem": ""}
    try:
        fused = TOOLS[tool](str(model / "model.onnx"), target)
        facts["fused"] = _fused(target) if fused is None else fused
        facts["error"], limit = _error(target, model)
        if not facts["error"] <= limit:
            facts["problem"] = f"an output is off by {facts['error']:.1e} of its range"
    except BaseException as error:  # noqa: BLE001 - whatever a tool raises is an entry of the table
        facts["problem"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    answer.send(facts)


def _fused(path: str) -> int:
    import onnx

    model = onnx.load(path, load_external_data=False)
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    return sum(n.op_type in FUSED for n in nodes)


def _error(path: str, model: Path) -> tuple[float, float]:
    """The largest difference of an output from PyTorch's, by its range, and how much is too much.

    Where the export itself computes something else, that counts.
    """
    import numpy as np

    expected = np.load(model / "outputs.npz")
    outputs = [expected[name] for name in expected.files]
    limit = max(WRONG.get(str(o.dtype), WRONG["float32"]) for o in outputs)
    results = _outputs(path, model)
    error = _difference(results, outputs)
    if error > limit:
        error = min(error, _difference(results, _outputs(str(model / "model.onnx"), model, optimized=False)))
    return error, limit


def _outputs(path: str, model: Path, optimized: bool = True) -> list[Any]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = np.load(model / "inputs.npz")
    wanted = {v.name for v in session.get_inputs()}
    return list(session.run(None, {n: given[n] for n in given.files if n in wanted}))


def _difference(results: list[Any], outputs: list[Any]) -> float:
    import numpy as np

    worst = 0.0
    for result, reference in zip(results, outputs, strict=True):
        reference = reference.astype(np.float64)
        if result.shape != reference.shape or not np.isfinite(result).all():
            return float("inf")
        if reference.size:
            worst = max(worst, float(np.abs(result - reference).max() / (np.ptp(reference) + 1e-12)))
    return worst


def measure(tool: str, model: Path) -> dict[str, Any]:
    """What one tool makes of one model."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    folder = tempfile.mkdtemp()
    child = context.Process(target=_attempt, args=(tool, model, folder, sender))
    child.start()
    sender.close()
    try:
        facts = (
            receiver.recv()
            if receiver.poll(SECONDS)
            else {"fused": 0, "error": None, "problem": f"more than {SECONDS} s"}
        )
    except EOFError:
        facts = {"fused": 0, "error": None, "problem": "the process died"}
    child.kill()
    shutil.rmtree(folder, ignore_errors=True)
    return facts


def misses(model: Path) -> list[str]:
    """Why planish leaves sites as they are."""
    from planish.explanation import explain

    found = explain(str(model / "model.onnx"), "simplify,fuse", rule="attention")
    return [str(m) for m in found.misses]


# tables


def table(results: dict[str, dict[str, Any]], tools: list[str]) -> str:
    """One row per family: fused / present, unusable results behind a ``!``, and the largest error of usable ones."""
    families: dict[str, list[str]] = defaultdict(list)
    for name in results:
        families[name.split(".")[0]].append(name)
    lines = ["| family | exports | sites | " + " | ".join(tools) + " |", "|---" * (len(tools) + 3) + "|"]
    total: Counter[str] = Counter()
    worst: dict[str, float] = defaultdict(float)
    for family, members in [*sorted(families.items()), ("**all**", list(results))]:
        sites = sum(_fusable(results[m]) for m in members)
        cells = []
        for tool in tools:
            found = [results[m][tool] for m in members]
            bad = sum(bool(f["problem"]) for f in found)
            usable = [(results[m], results[m][tool]) for m in members if not results[m][tool]["problem"]]
            fused = sum(min(f["fused"], _fusable(r)) for r, f in usable)
            error = max((f["error"] for _, f in usable), default=0.0)
            worst[tool] = max(worst[tool], error)
            cells.append(f"{fused}" + (f" !{bad}" if bad else "") + f" ({error:.0e})")
        total["sites"] += sites
        lines.append(f"| {family} | {len(members)} | {sites} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _fusable(facts: dict[str, Any]) -> int:
    return 0 if facts["unfusable"] else int(facts["sites"])


def report(results: dict[str, dict[str, Any]], tools: list[str], zoo: Path) -> None:
    """Print the tables and what planish missed."""
    for title, core in (("Core", True), ("Further", False)):
        part = {n: r for n, r in results.items() if r["core"] is core}
        if part:
            print(
                f"\n{title}: sites fused in usable results, !unusable results (largest error)\n\n{table(part, tools)}"
            )
    if "planish" not in tools:
        return
    for name, facts in results.items():
        own = facts["planish"]
        if own["problem"]:
            print(f"{name}: {own['problem']}")
        if not own["problem"] and own["fused"] != _fusable(facts):
            print(f"{name}: {own['fused']} of {facts['sites']} fused. {facts['unfusable']}")
            for line in misses(zoo / name):
                print(f"    {line}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Count fused attention sites.")
    parser.add_argument("names", nargs="*", help="families or name.form (default: all)")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to keep the results; those that are there are not repeated")
    args = parser.parse_args()
    models = [m for m in sorted(args.zoo.iterdir()) if (m / "sites.json").exists()]
    models = [m for m in models if not args.names or m.name in args.names or m.name.split(".")[0] in args.names]
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    results = {m.name: {**results.get(m.name, {}), **json.loads((m / "sites.json").read_text())} for m in models}
    todo = [(m, t) for m in models for t in args.tools if t not in results[m.name]]
    import onnxruntime  # noqa: F401 - loaded once, for all processes to come

    with ThreadPoolExecutor(args.jobs) as pool:
        for (model, tool), facts in zip(todo, pool.map(lambda p: measure(p[1], p[0]), todo), strict=True):
            results[model.name][tool] = facts
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))
    report(results, args.tools, args.zoo)


if __name__ == "__main__":
    main()
