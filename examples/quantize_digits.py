"""Quantize the bundled digit classifier to int8 within a budget of accuracy, and see what became of each layer.

planish looks at half of the held-out digits: ranges come from them, and the metric is the accuracy on them. The other
half judges the result. Writes `digits-int8.onnx` into the current folder, or to the path given as argument.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import planish

DEMO = Path(planish.__file__).parent / "demo"
MODEL = DEMO / "digits.onnx"


def right(path: str | Path, images: np.ndarray, labels: np.ndarray) -> str:
    """How many digits a model file gets right, in ONNX Runtime."""
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"images": images})
    return f"{int((logits.argmax(1) == labels).sum())} of {len(labels)}"


def main(path: str) -> None:
    with np.load(DEMO / "digits_heldout.npz") as heldout:
        test_images, images = np.split(heldout["images"], 2)
        test_labels, labels = np.split(heldout["labels"], 2)

    def accuracy(outputs: list[dict[str, Any]]) -> float:
        """The metric, of the outputs for all samples in their order: the higher, the better."""
        logits = np.concatenate([output["logits"] for output in outputs])
        return float((logits.argmax(1) == labels).mean())

    samples = [{"images": batch} for batch in np.split(images, 5)]
    result = planish.optimize(MODEL, "int8", data=samples, metric=accuracy)
    result.save(path)

    report = result.report
    before, after = (right(p, test_images, test_labels) for p in (MODEL, path))
    print(f"{'':12} {'before':>10} {'after':>10}")
    print(f"{'right':12} {before:>10} {after:>10}")
    print(f"{'weight bytes':12} {report.before.bytes:10} {report.after.bytes:10}")
    if report.latency is not None:
        print(f"{'ms, median':12} {1e3 * report.latency.before.median:10.2f} {1e3 * report.latency.after.median:10.2f}")

    print(f"\n{'layer':46} {'weight':8} {'activation':10} {'SQNR, dB':>8} {'of loss':>7}  runs as")
    for row in report.layers:
        facts = f"{row['weight']:8} {row['activation']:10} {row['sqnr']:8.1f} {row['share']:7.0%}"
        print(f"{row['layer']:46} {facts}  {row['kernel']}")

    notes = [*report.notes, *(f"{what} was taken back: {why}" for what, why in report.rolled_back)]
    print("", *notes, *([f"fell back {report.fallback}"] if report.fallback else []), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "digits-int8.onnx")
