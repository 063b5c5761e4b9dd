"""The memory that training takes: all-MiniLM-L6-v2 distilled from itself, in a process of its own.

The process is the command line on the model's ONNX file; reported is the most memory that it has held, planish, JAX,
the teacher, the weights and the optimizer's state included. Memory follows from the batch and not from the data: the
second row has ten times as many sentences.

    python benchmarks/train_memory.py [--batch 16] [--tokens 64] [--steps 8]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import minilm
import numpy as np
from tables import cell, markdown


def peak_of(command: list[str]) -> float:
    """Run ``command`` and return the most memory that it has held, in GB.

    Raises:
        RuntimeError: it failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)}: {said[-1000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="rows per step")
    parser.add_argument("--tokens", type=int, default=64, help="per row")
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        minilm.from_file(minilm.load_encoder(), minilm.tokenize(["one", "two or three"]), folder)
        pipeline = f"default,distill{{batch={args.batch},steps={args.steps},rate=1e-5,mix=false}}"
        planish = [sys.executable, "-m", "planish", "optimize", str(folder / "minilm.onnx"), "-p", pipeline]
        for batches in (8, 80):
            shape = (args.batch * batches, args.tokens)
            ids = np.random.default_rng(0).integers(1000, 30000, shape)
            np.savez(folder / f"{batches}.npz", input_ids=ids, attention_mask=np.ones_like(ids))
            data = ["--data", str(folder / f"{batches}.npz"), "-o", str(folder / "out.onnx"), "--verify", "off"]
            rows.append([str(len(ids)), cell(peak_of([*planish, *data]))])
    title = f"all-MiniLM-L6-v2, {args.steps} steps of {args.batch} x {args.tokens} tokens"
    print(markdown(title, ["Rows of data", "Peak, GB"], rows))


if __name__ == "__main__":
    main()
