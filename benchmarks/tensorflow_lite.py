"""TensorFlow Lite files through planish, beside TensorFlow Lite's own interpreter.

``python benchmarks/tensorflow_lite.py [MODEL…] [--forms float fp16 dynamic int8] [--rounds N]`` converts models of
`tensorflow_zoo` (random weights) with TensorFlow's converter, reads the files with planish, and runs both on batch 1
and one thread, in turns: ONNX Runtime with what the default pipeline makes of the file, and the interpreter with its
XNNPACK kernels. Error is the largest difference from the interpreter's reference kernels, relative to the range of the
output; of integer outputs, in codes. ``theirs / ours`` is the ratio of their latency to ours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tables import cell, markdown

FORMS = ("float", "fp16", "dynamic", "int8")
MODELS = ("MobileNetV2", "ResNet50", "EfficientNetB0")
CALIBRATION = 8  # images that the converter sees
TURNS = 3  # timed runs in a round


def converted(case: Any, form: str) -> bytes:
    """The file."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(case.model)
    if form != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if form == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: calibration(case)
        converter.inference_input_type = converter.inference_output_type = tf.int8
    found: bytes = converter.convert()
    return found


def calibration(case: Any) -> Iterator[list[np.ndarray]]:
    images = np.concatenate([case.inputs(i % 2 == 1)[0] for i in range(CALIBRATION)])
    for i in range(CALIBRATION):
        yield [images[i : i + 1].astype(np.float32)]


def interpreter(path: Path, *, reference: bool) -> Callable[[np.ndarray], np.ndarray]:
    """TensorFlow Lite's, on one thread."""
    import tensorflow as tf

    kinds = tf.lite.experimental.OpResolverType
    kind = kinds.BUILTIN_REF if reference else kinds.AUTO
    runs = tf.lite.Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=kind)
    runs.allocate_tensors()
    (given,), (result,) = runs.get_input_details(), runs.get_output_details()

    def run(x: np.ndarray) -> np.ndarray:
        runs.set_tensor(given["index"], x)
        runs.invoke()
        found: np.ndarray = runs.get_tensor(result["index"])
        return found

    return run


def sample_of(path: Path, case: Any) -> np.ndarray:
    """One image in the type that the file takes."""
    import tensorflow as tf

    (given,) = tf.lite.Interpreter(model_path=str(path)).get_input_details()
    image = case.inputs(False)[0][:1]
    if given["dtype"] is np.int8:
        scale, zero = given["quantization"]
        image = np.clip(np.round(image / scale) + zero, -128, 127)
    return np.ascontiguousarray(image.astype(given["dtype"]))


def compare(name: str, form: str, rounds: int, folder: Path) -> list[str]:
    """One row."""
    from tensorflow_zoo import build

    import planish
    from planish.backends import backend

    case = build(name)
    path = folder / f"{name}.{form}.tflite"
    path.write_bytes(converted(case, form))
    x = sample_of(path, case)
    started = time.perf_counter()
    graph = planish.optimize(path, target="onnxruntime", verify="off", measure=False).graph
    seconds = time.perf_counter() - started
    ours = backend("onnxruntime").compile(graph, threads=1, spinning=False)
    theirs, wanted = interpreter(path, reference=False), interpreter(path, reference=True)(x)
    found, other = ours(x)[0], theirs(x)
    unit = 1.0 if wanted.dtype.kind == "i" else float(np.ptp(wanted))
    errors = [np.abs(a.astype(np.float64) - wanted).max() / unit for a in (found, other)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, own in zip((lambda: ours(x), lambda: theirs(x)), times, strict=True):
            for _ in range(TURNS):
                started = time.perf_counter()
                run()
                own.append(time.perf_counter() - started)
    our, their = (statistics.median(t) * 1e3 for t in times)
    ops = Counter(node.op for node in graph.walk())
    return [
        f"{name}, {form}", f"{errors[0]:.1e}", f"{errors[1]:.1e}", str(ops["Transpose"]),
        str(ops["planish.FakeQuantize"]), cell(seconds), cell(our), cell(their), cell(their / our),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="TensorFlow Lite files through planish.")
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--rounds", type=int, default=10, help=f"of {TURNS} timed runs each (default: 10)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            for form in args.forms:
                rows.append(compare(name, form, args.rounds, Path(folder)))
                print(" ".join(rows[-1]), flush=True)
    header = ["Model", "Error", "XNNPACK's", "Transposes", "FakeQuantize", "Seconds", "ms", "Theirs", "Theirs / ours"]
    print(markdown("TensorFlow Lite files, batch 1, one thread", header, rows))


if __name__ == "__main__":
    main()
