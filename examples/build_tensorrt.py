"""Builds a TensorRT engine of the demo's digit classifier, in int8, on a machine that need not have a GPU.

Needs ``planish[tensorrt]``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

import planish

model = Path(planish.__file__).parent / "demo" / "digits.onnx"
images = np.load(model.with_name("digits_heldout.npz"))["images"]

result = planish.optimize(model, "int8", target="tensorrt", data={"images": images[:64]})
print(result.report)

with tempfile.TemporaryDirectory() as folder:
    engine = Path(folder) / "digits.engine"
    written = result.save(engine, sizes="batch=1:8:32")
    print(written.text if written is not None else "")
    manifest = json.loads(engine.with_name("digits.engine.json").read_text())
    assert len(manifest["quantized"]) >= 3, manifest["quantized"]
