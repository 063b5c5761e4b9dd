"""Make a model fourteen times smaller, from its ONNX file alone: prune it, let it learn from itself, quantize it.

Half of the channels of the bundled digit classifier go, which ruins it. It then learns to answer as the original does,
on 64 images whose labels nobody knows, and becomes int8. Needs the `train` extra and scikit-learn.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import planish
from planish.backends import backend

MODEL = Path(planish.__file__).parent / "demo" / "digits.onnx"
STEPS = (
    ("as it was", "default"),
    ("half of the channels", "default,prune{ratio=0.5}"),
    ("... distilled", "default,prune{ratio=0.5},distill{steps=400,rate=0.01}"),
    ("... and quantized", "default,prune{ratio=0.5},distill{steps=400,rate=0.01},equalize,quantize"),
)


def main() -> None:
    digits = load_digits()
    train_x, test_x, _, test_y = train_test_split(
        digits.images[:, None].astype(np.float32), digits.target, test_size=540, stratify=digits.target, random_state=0
    )
    unlabeled = [{"images": train_x[:64]}]
    print(f"{'':24}{'accuracy':>10}{'bytes':>10}")
    for name, pipeline in STEPS:
        result = planish.optimize(MODEL, pipeline, data=unlabeled, measure=False)
        if result.report.rolled_back:
            raise SystemExit(f"{name}: {result.report.rolled_back}")
        logits = backend("onnxruntime").run(result.graph, {"images": test_x})["logits"]
        accuracy = float((logits.argmax(1) == test_y).mean())
        print(f"{name:24}{accuracy:10.2%}{result.report.after.bytes:10,}")


if __name__ == "__main__":
    main()
