"""ONNX's node tests in TensorRT for RTX: what builds as it stands, what builds through planish, and what does not.

Every test is built as it is and as planish lowers it, in a process that may crash. Sizes that the model leaves open are
those of the test's inputs. What planish emits is run in ONNX Runtime (or the reference) and compared with the expected
outputs. Told apart are tests that planish refuses, those that it calls legal and TensorRT refuses (there should be
none), and those that it refuses though TensorRT builds them as they stand.

    python benchmarks/tensorrt_nodes.py [PATTERN ...] [--refused] [--json FILE] [--markdown FILE]

PATTERN (fnmatch) selects tests by name; ``--refused`` lists those that do not build, with reasons, and ``--markdown``
writes them as a page (docs/tensorrt-nodes.md).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

TIMEOUT = 60  # seconds per build
TOLERANCE = 1e-3


# --- building in another process -------------------------------------------------------------------------------------


def build(model: bytes | Path, inputs: dict[str, np.ndarray], spread: int = 1) -> tuple[str, str]:
    """The outcome and the errors; sizes that the model leaves open are up to ``spread`` times those of ``inputs``."""
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
    if not (parser.parse_from_file(str(model)) if isinstance(model, Path) else parser.parse(model)):
        return "refused", "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        array = inputs.get(tensor.name)
        if array is None:
            continue
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, *[array.ravel().tolist()] * 3)
        if -1 in tuple(tensor.shape):
            largest = [n * spread if d == -1 else n for n, d in zip(array.shape, tensor.shape, strict=True)]
            profile.set_shape(tensor.name, array.shape, array.shape, largest)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return ("built", "") if plan is not None else ("failed", "; ".join(log.errors))


def _work(pipe: Any) -> None:
    while (job := pipe.recv()) is not None:
        try:
            pipe.send(build(*job))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
            pipe.send(("raised", repr(error)))


class Workshop:
    """Builds in a process that is started again where it has died."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, model: bytes | Path, inputs: dict[str, np.ndarray], spread: int = 1) -> tuple[str, str]:
        """The outcome, and why."""
        try:
            self._pipe.send((model, inputs, spread))
            if self._pipe.poll(TIMEOUT):
                return self._pipe.recv()
            outcome = "hung"
        except (EOFError, OSError):
            outcome = "crashed"
        self._process.kill()
        self._process.join()
        self._start()
        return outcome, ""

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


# --- tests -----------------------------------------------------------------------------------------------------------


def judge(test: Any, workshop: Workshop, raw: bool = True) -> dict[str, str]:
    """The outcomes of one test: ``raw``, ``planish`` and ``same``, whether what is emitted computes the same."""
    from planish.backends.base import LoweringError, backend
    from planish.frontends.onnx.upgrade import upgrade
    from planish.ir.convert.proto import from_proto, to_proto

    names = [i.name for i in test.model.graph.input]
    arrays, expected = ([_array(a) for a in some] for some in test.data_sets[0])
    inputs = {n: np.asarray(a) for n, a in zip(names, arrays, strict=False) if isinstance(a, np.ndarray | np.generic)}
    found = {"raw": ": ".join(filter(None, workshop(test.model.SerializeToString(), inputs)))} if raw else {}
    try:
        graph = from_proto(test.model, upgrade=upgrade)
        lowered, stamp, _ = backend("tensorrt:rtx").lower_and_stamp(graph)
        model = to_proto(lowered, opset=stamp.opset, ir_version=stamp.ir_version)
    except LoweringError as error:
        return {**found, "planish": "no form: " + str(error).partition("\n")[2].strip()}
    except Exception as error:  # noqa: BLE001 - a defect, to be shown
        return {**found, "planish": f"error: {error!r}"}
    found["planish"] = ": ".join(filter(None, workshop(model.SerializeToString(), inputs)))
    found["same"] = compare(lowered, inputs, arrays, expected, {n.op for n in graph.walk()})
    return found


RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Dropout",
}


def compare(graph: Any, inputs: dict[str, np.ndarray], arrays: list[Any], expected: list[Any], ops: set[str]) -> str:
    """Whether ``graph`` gives what is expected: "yes", "random", or what is different."""
    from planish.backends.base import backend

    if ops & RANDOM:
        return "random"
    problem = ""
    for engine in ("onnxruntime", "reference"):
        try:
            feed = {v.name: _cast(a, v) for v, a in zip(graph.inputs, arrays, strict=False)}
            outputs = backend(engine).run(graph, feed)
        except Exception as error:  # noqa: BLE001 - the other may run it
            problem = f"{problem} {engine}: {error}"
            continue
        for (name, got), wanted in zip(outputs.items(), expected, strict=True):
            if isinstance(wanted, np.ndarray) and not _close(np.asarray(got), wanted):
                return f"{name} differs in {engine}"
        return "yes"
    return problem


def _array(value: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _cast(array: Any, value: Any) -> Any:
    return array.astype(value.dtype.numpy) if isinstance(array, np.ndarray) and value.dtype else array


def _close(got: np.ndarray, wanted: np.ndarray) -> bool:
    if got.shape != wanted.shape:
        return False
    if wanted.dtype == object or wanted.dtype.kind in "USO":
        return bool((got == wanted).all())
    coarse = wanted.dtype.itemsize <= 2 and wanted.dtype.kind not in "iub"
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-3)
    return np.allclose(
        got, wanted, rtol=2e-2 if coarse else TOLERANCE, atol=scale * (2e-2 if coarse else TOLERANCE), equal_nan=True
    )


def page(found: dict[str, dict[str, str]]) -> str:
    """The tests that do not build, by the first reason."""
    import re

    built = sum(f["planish"] == "built" for f in found.values())
    reasons: dict[str, list[str]] = {}
    for name, f in found.items():
        if f["planish"] != "built":
            reason = re.sub(r"\s*\[.*?\]$", "", f["planish"].removeprefix("no form: ").splitlines()[0])
            reasons.setdefault(re.sub(r"the (in|out)put \w+", r"the \1put", reason), []).append(f"`{name}`")
    command = "python benchmarks/tensorrt_nodes.py --markdown docs/tensorrt-nodes.md"
    lines = [
        "# ONNX's node tests in TensorRT for RTX",
        "",
        f"{built} of {len(found)} build. The others, with the first of the reasons that planish gives (`{command}`):",
        "",
        "| Reason | Tests | |",
        "|---|--:|---|",
        *(f"| {reason} | {len(names)} | {', '.join(names)} |" for reason, names in sorted(reasons.items())),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX's node tests in TensorRT for RTX.")
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--refused", action="store_true", help="list what does not build")
    parser.add_argument("--no-raw", action="store_true", help="only through planish")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    from onnx.backend.test.loader import load_model_tests

    tests = [
        t
        for t in load_model_tests(kind="node")
        if not args.patterns or any(fnmatch.fnmatch(t.name, p) for p in args.patterns)
    ]
    workshop = Workshop()
    found = {t.name: judge(t, workshop, not args.no_raw) for t in tests}
    workshop.close()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    if args.markdown:
        args.markdown.write_text(page(found))
    head = lambda text: text.partition(":")[0]  # noqa: E731
    for what in ("raw", "planish"):
        print(what, dict(Counter(head(f[what]) for f in found.values() if what in f)))
    built = {n: f for n, f in found.items() if f["planish"] == "built"}
    print(
        "emitted and the same",
        dict(Counter(f["same"] if f["same"] in ("yes", "random") else "different" for f in built.values())),
    )
    illegal = {n: f["planish"] for n, f in found.items() if head(f["planish"]) not in ("built", "no form", "error")}
    alarms = [n for n, f in found.items() if f.get("raw") == "built" and head(f["planish"]) == "no form"]
    print(f"called legal and refused: {len(illegal)}; refused though it builds as it stands: {len(alarms)}")
    for name, f in found.items():
        if f.get("same", "yes") not in ("yes", "random"):
            print("  different", name, f["same"][:200])
        if args.refused and f["planish"] != "built":
            print("  ", name, f["planish"][:300])
    for name in alarms:
        print("  alarm", name, found[name]["planish"][:200])


if __name__ == "__main__":
    main()
