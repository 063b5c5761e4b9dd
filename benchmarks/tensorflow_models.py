"""Models in TensorFlow and Keras through planish, beside tf2onnx and onnxsim.

``python benchmarks/tensorflow_models.py [NAME…] [--columns error peer xla rtx latency] [--small]`` takes the models of
`tensorflow_zoo` by name or pattern. For each:

- *error*: the largest difference from TensorFlow in ONNX Runtime, relative to the range of the output, as translated
  and after the default pipeline, at two sizes;
- *peer*: seconds for ``from_tensorflow`` and the default pipeline, and for tf2onnx (``from_keras``, or
  ``from_function`` where the model is a function) and onnxsim, in turns; nodes and Transposes that are left;
- *xla*, *rtx*: the error on XLA:CPU, and whether TensorRT for RTX builds the file that planish writes for it;
- *latency*: of both files in ONNX Runtime, in turns (see `latency`).

``--export OUT`` writes OUT/<name>/ with ``model.onnx`` as planish translates it, ``inputs.npz`` and ``outputs.npz``
(TensorFlow's): what `quantize_models`, `xla_models`, `tensorrt_models` and `latency` take.

Models run one after another in a process that is started again where it dies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate import all_nodes, relative_error
from latency import paired
from tables import cell, geometric_mean, markdown

if TYPE_CHECKING:
    import onnx
    from tensorflow_cases import Case
    from tensorrt_nodes import Workshop

    from planish.ir import Graph

COLUMNS = ("error", "peer", "xla", "rtx", "latency")
SECONDS = 600  # for one model
ROUNDS = 30  # of latency
OPSET = 18  # of tf2onnx: the newest that it knows

Record = dict[str, Any]


# --- both ways to ONNX -----------------------------------------------------------------------------------------------


def translate(case: Case) -> Graph:
    """The model as it is translated."""
    from planish.frontends.tensorflow import from_tensorflow

    return from_tensorflow(case.model, *case.specs, signature=case.signature)


def optimize(graph: Graph) -> Graph:
    """The default pipeline."""
    import planish
    from planish.backends import backend

    planish.Pipeline.parse("default").run(graph, planish.Context(lambda: backend("onnxruntime")))
    return graph


def by_tf2onnx(case: Case) -> onnx.ModelProto:
    """What tf2onnx makes of the model: from_keras; where that is nothing or fails, from_function."""
    import keras
    import tensorflow as tf
    import tf2onnx

    function, specs = case.model, case.specs
    if isinstance(function, keras.Model):
        try:
            return tf2onnx.convert.from_keras(function, specs or None, opset=OPSET)[0]
        except Exception:  # noqa: BLE001 - there is another way
            function, specs = keras_function(case)
    elif case.signature is not None:
        own = function.signatures[case.signature]
        kinds = own.structured_input_signature[1]
        named = {t.op.name: kinds[t.op.name] for t in own.inputs[: len(kinds)]}
        function, specs = tf.function(lambda *xs: own(**dict(zip(named, xs, strict=True)))), tuple(named.values())
    elif not hasattr(function, "get_concrete_function"):
        function, specs = function.__call__, function.__call__.input_signature
    return tf2onnx.convert.from_function(function, specs, opset=OPSET)[0]


def keras_function(case: Case) -> tuple[Any, tuple[Any, ...]]:
    """A Keras model as a function of flat arguments, and their specifications."""
    import tensorflow as tf

    model = case.model
    if case.specs:
        return tf.function(lambda *xs: model(*xs, training=False)), case.specs
    structure = getattr(model, "_inputs_struct", None)
    structure = model.inputs[0] if structure is None else structure  # a sequential model's
    specs = [tf.TensorSpec(v.shape, v.dtype, name=v.name) for v in tf.nest.flatten(structure)]
    return tf.function(lambda *xs: model(tf.nest.pack_sequence_as(structure, list(xs)), training=False)), tuple(specs)


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as onnxsim simplifies it."""
    import onnxsim

    return onnxsim.simplify(model)[0]


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """A result, and the seconds that it took."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        result = function(*args)
    return result, time.perf_counter() - started


def in_turns(case: Case, repeats: int, with_peer: bool, found: Record) -> tuple[Graph | None, onnx.ModelProto | None]:
    """Convert by planish and by its peer, one after the other; what fails is in ``found``."""
    ways: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {"planish": (translate, optimize)}
    if with_peer:
        ways["peer"] = by_tf2onnx, simplified
    results: dict[str, Any] = dict.fromkeys(ways)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(repeats):
        for name in list(ways)[:: -1 if index % 2 else 1]:
            if f"{name}_failure" in found:
                continue
            first, second = ways[name]
            try:
                raw, converting = timed(first, case)
                results[name], simplifying = timed(second, raw)
            except BaseException as error:  # noqa: BLE001 - whatever is raised is an entry of the table
                found[f"{name}_failure"] = said(error)
                continue
            seconds[name].append(converting + simplifying)
            found.setdefault(f"{name}_first", converting)
    for name, samples in seconds.items():
        if f"{name}_failure" not in found:
            found[f"{name}_seconds"] = statistics.median(samples)
    return results["planish"], results.get("peer")


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:1500]}"


# --- judging ---------------------------------------------------------------------------------------------------------


def worst(case: Case, graph: Graph, engine: str, both_sizes: bool = True, **options: Any) -> float:
    """The largest error on an engine, at one size or two."""
    from planish.backends import backend

    program = backend(engine).compile(graph, **options)
    errors = [0.0]
    for other in (False, True) if both_sizes else (False,):
        inputs = case.inputs(other)
        wanted = case.outputs(inputs)
        errors += [relative_error(w, a) for a, w in zip(program(*inputs), wanted, strict=True)]
    return max(errors)


def attempt(found: Record, key: str, function: Callable[[], Any]) -> None:
    """Put a result into ``found``, or why there is none."""
    try:
        found[key] = function()
    except Exception as error:  # noqa: BLE001 - whatever is raised is an entry of the table
        found[f"{key}_failure"] = said(error)


CONVOLUTIONS = {"Conv", "ConvTranspose"}


def shape_of(graph: Graph) -> Record:
    """Nodes, and how many Transposes stand between convolutions."""
    operators = Counter(node.op for node in graph.walk() if node.op != "Constant")
    behind: set[Any] = set()  # what a convolution leads to
    for node in graph.nodes:
        if node.op in CONVOLUTIONS or any(o is not None and o.producer in behind for o in node.operands):
            behind.add(node)
    before: set[Any] = set()  # what leads to a convolution
    for node in reversed(list(graph.nodes)):
        if node.op in CONVOLUTIONS or any(use in before for value in node.results for use in value.users):
            before.add(node)
    inside = sum(node.op == "Transpose" for node in behind & before)
    return {"nodes": operators.total(), "operators": dict(operators), "inside": inside}


def shape_of_peer(model: onnx.ModelProto) -> Record:
    """The same of a file of others."""
    operators = Counter(n.op_type for n in all_nodes(model.graph.node) if n.op_type != "Constant")
    return {"nodes": operators.total(), "transposes": operators["Transpose"], "operators": dict(operators)}


def run_peer(case: Case, model: onnx.ModelProto) -> float:
    """The error of what tf2onnx and onnxsim make."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [v.name for v in session.get_inputs()]
    errors = [0.0]
    for other in (False, True):
        inputs = case.inputs(other)
        results = session.run(None, dict(zip(names, inputs, strict=True)))
        errors += [relative_error(w, a) for a, w in zip(results, case.outputs(inputs), strict=True)]
    return max(errors)


@cache
def workshop() -> Workshop:
    """The process that builds for TensorRT."""
    from tensorrt_nodes import Workshop

    return Workshop()


def build_for_rtx(case: Case, graph: Graph) -> str:
    """The outcome of a build of what planish writes for TensorRT for RTX."""
    from planish.backends import backend
    from planish.models import save_for

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_for(graph, path, backend("tensorrt:rtx"))
        inputs = dict(zip((v.name for v in graph.inputs), case.inputs(), strict=True))
        outcome, why = workshop()(path, inputs, 2)
    if outcome != "built":
        raise RuntimeError(f"{outcome}: {why}")
    return outcome


def renamed(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """``model`` whose inputs have other names, in order."""
    new = {v.name: name for v, name in zip(model.graph.input, names, strict=True)}
    for value in model.graph.input:
        value.name = new[value.name]
    for node in all_nodes(model.graph.node):
        for i, name in enumerate(node.input):
            node.input[i] = new.get(name, name)
    return model


def compare_latency(case: Case, graph: Graph, peer: onnx.ModelProto, threads: int) -> Record:
    """Milliseconds of both files in ONNX Runtime, and how much faster planish's is."""
    import onnx

    from planish.backends import backend
    from planish.models import save_for

    inputs = dict(zip((v.name for v in graph.inputs), case.inputs(), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = Path(folder) / "mine.onnx", Path(folder) / "theirs.onnx"
        save_for(graph, mine, backend("onnxruntime"))
        onnx.save(renamed(peer, inputs), theirs)
        found = paired(theirs, mine, inputs, ROUNDS, {"optimize": True, "threads": threads})
    return {
        "ratio": found["ratio"],
        "ms": statistics.median(found["result_ms"]),
        "peer_ms": statistics.median(found["raw_ms"]),
    }


def measure(name: str, small: bool, columns: tuple[str, ...], repeats: int, threads: int) -> Record:
    """Everything that is asked about one model; in a process of its own."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    warnings.simplefilter("ignore")
    from tensorflow_zoo import REAL, SMALL, build

    warm_up("peer" in columns)
    case = build(name, SMALL if small else REAL)
    facts = {"is_image": case.is_image, "allowed": case.inside, "wants": dict(case.wants), "tolerance": case.tolerance}
    found: Record = {"model": name, **facts}
    graph, peer = in_turns(case, repeats, bool({"peer", "latency"} & set(columns)), found)
    if peer is not None:
        found["peer"] = shape_of_peer(peer)
        attempt(found, "peer_error", lambda: run_peer(case, peer))
    if graph is None:
        return found
    found |= shape_of(graph)
    engine = engine_for(case)
    found["engine"] = engine
    if "error" in columns:
        attempt(found, "raw_error", lambda: worst(case, translate(case), engine))
        attempt(found, "error", lambda: worst(case, graph, engine))
    if "xla" in columns:
        attempt(found, "xla", lambda: worst(case, graph, "xla:cpu", both_sizes=False, precision="highest"))
    if "rtx" in columns:
        attempt(found, "rtx", lambda: build_for_rtx(case, graph))
    if "latency" in columns and peer is not None:
        attempt(found, "latency", lambda: compare_latency(case, graph, peer, threads))
    return found


def engine_for(case: Case) -> str:
    """ONNX Runtime, but the reference where it has no kernels: for bfloat16."""
    variables = getattr(case.model, "layers", [])
    return "reference" if any("bfloat16" in str(layer.dtype_policy.name) for layer in variables) else "onnxruntime"


@cache
def warm_up(with_peer: bool) -> None:
    """Import everything that is timed, by a first model."""
    from tensorflow_zoo import SMALL, build

    in_turns(build("perceptron", SMALL), 1, with_peer, {})


# --- the report ------------------------------------------------------------------------------------------------------


def number(record: Mapping[str, Any], key: str) -> str:
    """An error in the power-of-ten notation, ``failed``, or a dash."""
    if f"{key}_failure" in record:
        return "failed"
    return f"{record[key]:.1e}" if key in record else "-"


def wanted(record: Record) -> str:
    """The operators that must be there: found of wanted."""
    operators = record.get("operators", {})
    return ", ".join(f"{op} {operators.get(op, 0)}/{n}" for op, n in record["wants"].items()) or "-"


def conversion(records: Iterable[Record]) -> str:
    """Seconds, nodes and Transposes."""
    rows = []
    for r in records:
        mine, theirs = r.get("planish_seconds"), r.get("peer_seconds")
        peer, operators = r.get("peer", {}), r.get("operators", {})
        rows.append(
            [
                r["model"],
                cell(mine) if mine else "failed",
                cell(theirs) if theirs else "failed" if "peer_failure" in r else "-",
                cell(theirs / mine) if mine and theirs else "-",
                cell(r.get("nodes")),
                cell(peer.get("nodes")),
                f"{operators.get('Transpose', 0)} ({r['inside']})" if operators else "-",
                cell(peer.get("transposes")),
                wanted(r),
            ]
        )
    header = ["model", "s", "tf2onnx + onnxsim s", "ratio", "nodes", "theirs", "Transposes (inside)", "theirs", "forms"]
    return markdown("Conversion", header, rows)


def results(records: Iterable[Record]) -> str:
    """Errors, builds and latency."""
    rows = []
    for r in records:
        latency = r.get("latency", {})
        rows.append(
            [
                r["model"],
                "failed" if "planish_failure" in r else number(r, "raw_error"),
                number(r, "error"),
                "failed" if "peer_failure" in r else number(r, "peer_error"),
                number(r, "xla"),
                "failed" if "rtx_failure" in r else r.get("rtx", "-"),
                cell(latency.get("ms")),
                cell(latency.get("peer_ms")),
                cell(latency.get("ratio")),
            ]
        )
    header = ["model", "error, raw", "default", "theirs", "XLA", "RTX", "ms", "theirs", "ratio"]
    return markdown("Results", header, rows)


def summary(records: list[Record]) -> str:
    """Counts and geometric means."""
    loaded = [r for r in records if "planish_failure" not in r]
    within = [r for r in loaded if max(r.get("error", 9), r.get("raw_error", 9)) <= r["tolerance"]]
    both = [r for r in loaded if "peer_seconds" in r]
    sound = [r for r in both if r.get("peer_error", 9) <= 1e-3]
    ratios = [r["peer_seconds"] / r["planish_seconds"] for r in both]
    latencies = [r["latency"]["ratio"] for r in records if "latency" in r]
    images = [r for r in loaded if r["is_image"]]
    forms = [r["operators"].get(o, 0) == n for r in loaded for o, n in r["wants"].items()]
    lines = [
        f"{len(loaded)} of {len(records)} load, {len(within)} within their tolerance",
        f"tf2onnx + onnxsim: {sum('peer_seconds' in r for r in records)} convert, {len(sound)} run and are right",
        f"seconds, theirs / ours: mean {cell(geometric_mean(ratios))}, least {cell(min(ratios, default=None))}",
        f"nodes: no more than theirs in {sum(r['nodes'] <= r['peer']['nodes'] for r in sound)} of {len(sound)}",
        f"images without Transposes inside: {sum(r['inside'] <= r['allowed'] for r in images)} of {len(images)}",
        f"operators as wanted: {sum(forms)} of {len(forms)}",
        f"XLA within 1e-4: {sum(r.get('xla', 9) <= max(1e-4, r['tolerance']) for r in loaded)} of {len(loaded)}",
        f"TensorRT for RTX builds {sum('rtx' in r for r in loaded)} of {len(loaded)}",
        f"latency, theirs / ours: mean {cell(geometric_mean(latencies))} of {len(latencies)}",
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def failures(records: Iterable[Record]) -> str:
    """What failed, and why."""
    lines = []
    for r in records:
        lines += [f"- {r['model']}, {k.removesuffix('_failure')}: {v}" for k, v in r.items() if k.endswith("_failure")]
        for key in ("raw_error", "error", "xla"):
            if r.get(key, 0) > max(r["tolerance"], 1e-4 if key == "xla" else 0):
                lines.append(f"- {r['model']}, {key}: off by {r[key]:.1e} of the range")
        if r["is_image"] and r.get("inside", 0) > r["allowed"]:
            lines.append(f"- {r['model']}: {r['inside']} Transposes inside, {r['allowed']} allowed")
        have = r.get("operators", {})
        missing = [f"{o} {have.get(o, 0)}/{n}" for o, n in r["wants"].items() if have and have.get(o, 0) != n]
        lines += [f"- {r['model']}: {', '.join(missing)}: {have}"] if missing else []
        if have and r.get("peer_error", 9) <= 1e-3 and r["nodes"] > r["peer"]["nodes"]:
            lines.append(f"- {r['model']}: {r['nodes']} nodes, theirs {r['peer']['nodes']}: {differing(r)}")
    return "### Failures\n\n" + ("\n".join(lines) or "None.") + "\n"


def differing(record: Record) -> str:
    """Which operators there are more or less of than in the peer's."""
    mine, theirs = Counter(record["operators"]), Counter(record["peer"]["operators"])
    return ", ".join(f"{op} {mine[op] - theirs[op]:+d}" for op in sorted({*mine, *theirs}) if mine[op] != theirs[op])


def report(records: list[Record]) -> str:
    """All tables."""
    return "\n".join([summary(records), conversion(records), results(records), failures(records)])


# --- the command line ------------------------------------------------------------------------------------------------


class Worker:
    """A process that measures models one after another, and is started again where it died or hung."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __call__(self, name: str, *args: Any) -> Record:
        """The record of one model."""
        try:
            return self._pool.submit(measure, name, *args).result(SECONDS)
        except (BrokenProcessPool, OutOfTime) as error:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=False)
            self._start()
            failure = "hung" if isinstance(error, OutOfTime) else "crashed"
        except Exception as error:  # noqa: BLE001 - a model that cannot be built is an entry, too
            failure = said(error)
        return {"model": name, "is_image": False, "allowed": 0, "wants": {}, "tolerance": 0, "planish_failure": failure}

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def export(name: str, out: Path) -> None:
    """Write a model as a folder that other benchmarks take."""
    import numpy as np
    from tensorflow_zoo import build

    from planish.backends import backend
    from planish.models import save_for

    case, folder = build(name), out / name
    folder.mkdir(parents=True, exist_ok=True)
    graph, inputs = translate(case), case.inputs()
    save_for(graph, folder / "model.onnx", backend("onnxruntime"))
    np.savez(folder / "inputs.npz", **dict(zip((v.name for v in graph.inputs), inputs, strict=True)))
    np.savez(folder / "outputs.npz", **{f"{i:03}": array for i, array in enumerate(case.outputs(inputs))})


def line(record: Record) -> str:
    """One record while the work goes on."""
    keys = ("planish_seconds", "peer_seconds", "nodes", "raw_error", "error", "xla", "rtx")
    shown = [
        f"{k} {record[k]:.3g}" if isinstance(record[k], float) else f"{k} {record[k]}" for k in keys if k in record
    ]
    shown += [f"{k}: {v[:300]}" for k, v in record.items() if k.endswith("_failure")]
    return f"{record['model']}: {', '.join(shown)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models, or patterns (default: all)")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=COLUMNS)
    parser.add_argument("--small", action="store_true", help="the sizes of tests")
    parser.add_argument("--repeats", type=int, default=3, help="conversions of each kind (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime where latency is measured (default: 1)")
    parser.add_argument("--export", type=Path, metavar="OUT", help="write the models instead")
    parser.add_argument("--json", type=Path, help="write all numbers here; what stands there joins the tables")
    args = parser.parse_args()
    from tensorflow_zoo import chosen

    if args.export:
        for name in chosen(args.names):
            export(name, args.export)
        return
    records = {r["model"]: r for r in json.loads(args.json.read_text())} if args.json and args.json.exists() else {}
    worker = Worker()
    for name in chosen(args.names):
        records[name] = worker(name, args.small, tuple(args.columns), args.repeats, args.threads)
        print(line(records[name]), file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(list(records.values()), indent=1))
    worker.close()
    print(report(list(records.values())))


if __name__ == "__main__":
    main()
