"""What the XLA backend makes of real models: cost of lowering, integers on TPU, programs for several chips.

    python benchmarks/xla_programs.py cost MODEL      # seconds to trace and lower, as it is and optimized, and memory
    python benchmarks/xla_programs.py int8 MODEL      # quantized, for one v5e chip: which products are int8
    python benchmarks/xla_programs.py minilm          # the same for all-MiniLM-L6-v2 with its weights, and the cosine
    python benchmarks/xla_programs.py mesh MODEL MESH # split over four v5e chips, such as model=4
    python benchmarks/xla_programs.py llama           # a Llama-shaped 8B model over four v5e chips, by shapes alone

Compiling for TPU needs ``planish[tpu]``, and half a minute or more per model.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

import planish
from planish.backends import backend
from planish.backends.xla.executable import for_inference
from planish.backends.xla.function import to_jax
from planish.backends.xla.symbols import abstract_inputs
from planish.backends.xla.tpu import compile_tpu
from planish.ir import DType, Graph

SIZES = {"batch": 8, "sequence": 128}


def optimized(graph: Graph, pipeline: str = "default") -> Graph:
    planish.Pipeline.parse(pipeline).run(graph, planish.Context(lambda: backend("reference")))
    return graph


def peak() -> float:
    """The most memory that this process has used, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def cost(path: str) -> None:
    for form in ("raw", "optimized"):
        graph = planish.load(path)
        graph = optimized(graph) if form == "optimized" else graph
        before, start = peak(), time.perf_counter()
        function = to_jax(graph)
        arguments = (function.param_shapes, *abstract_inputs(function, SIZES))
        jax.jit(function).trace(*arguments).lower()
        seconds = time.perf_counter() - start
        weights = sum(t.nbytes for t in function.plan.tensors.values()) / 1e6
        print(f"{form}: {seconds:.2f} s to lower; peak {before:.0f} -> {peak():.0f} MB, weights {weights:.0f} MB")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        backend("xla").write(graph, Path(folder) / "m.stablehlo")
    print(f"exported with its weights: {time.perf_counter() - start:.2f} s, peak {peak():.0f} MB")


def report(graph: Graph, variant: str, mesh: str = "", **options: Any) -> None:
    start = time.perf_counter()
    _, found = compile_tpu(for_inference(graph, **options), variant, sizes=SIZES, mesh=mesh)
    print(f"{found}\n{time.perf_counter() - start:.0f} s to compile, peak {peak():.0f} MB")
    if found.integer_products:
        print("in floating point:", ", ".join(found.float_products) or "nothing")


def minilm(pipeline: str = "int8") -> None:
    import minilm as model
    import numpy as np

    texts = [f"sentence number {i} about cats, and {i * 7} dogs." for i in range(32)]
    encoder = model.load_encoder()
    graph = model.from_module(encoder, model.tokenize(texts[:2]))
    data = [model.tokenize(texts[i : i + 4]) for i in range(0, 32, 4)]
    result = planish.optimize(graph, pipeline, target="xla", data=data, measure=False)
    (found,), (wanted,) = (backend("xla").compile(g)(data[0]).values() for g in (result.graph, graph))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    print(f"least cosine {((found * wanted).sum(1) / norms).min():.5f}")
    report(result.graph, "v5e")


def llama() -> None:
    import scale

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "weights"
        data.touch()
        os.truncate(data, 1 << 40)  # sparse: nothing reads it
        graph, size = scale.decoder(32, 4096, 14336, 128, 8, 128256, data, DType.BFLOAT16)
        print(f"weights: {size / 1e9:.1f} GB")
        report(optimized(graph), "v5e:2x2", "model=4")


def main() -> None:
    match sys.argv[1:]:
        case ["cost", path]:
            cost(path)
        case ["int8", path]:
            report(planish.optimize(path, "int8", target="xla", verify="off", measure=False).graph, "v5e")
        case ["minilm", *pipeline]:
            minilm(*pipeline)
        case ["mesh", path, mesh]:
            report(optimized(planish.load(path)), "v5e:2x2", mesh)
        case ["llama"]:
            llama()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
