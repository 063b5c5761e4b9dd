"""Random operators and graphs on XLA against onnx's reference: compiled, in 32 bits, and exported with open sizes.

The samplers are those of `planish.testing`, which draw attributes, types, shapes and left-out operands.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from planish.backends.xla.executable import XlaExecutable, compile_graph
from planish.backends.xla.function import to_jax
from planish.backends.xla.lowering import find
from planish.backends.xla.symbols import abstract_inputs
from planish.backends.xla.values import narrowed
from planish.ir.errors import PlanishError
from planish.passes.numerics import Within
from planish.testing import random_graph
from planish.testing.check import scale_of
from planish.testing.compare import difference
from planish.testing.draw import Draw, Reject
from planish.testing.evaluate import EvaluationError, evaluate_graph, look_up
from planish.testing.samplers import SAMPLERS, sample
from planish.testing.site import Site
from planish.testing.sketch import Sketch, TypeContradiction

NUMERICS = Within(1e-4, 1e-6)
SHARDS = 3
GRAPHS = 24
# onnx.reference adds up elements, not their magnitudes, for a norm of order 1, and an even number of channels for LRN;
# it pads dilated windows of LpPool by too little, and does not truncate indices that are no integers, as OneHot says.
REFERENCE_ERRS = {"LpNormalization", "LRN", "LpPool"}


def drawn(op: str, seed: int, mode: str) -> Sketch | None:
    """A graph of one node, and the arrays that it is evaluated with; None if the choices led nowhere."""
    sketch = Sketch(Draw(f"{op}/{seed}"))
    sketch.mode = mode
    site = Site(op, sketch.draw, more=True, free=lambda name: True)
    try:
        sample(site)
        operands = [
            None if s.array is None else sketch.leaf(s.array, s.role, fixed=s.role == "shape") for s in site.slots
        ]
        node = sketch.node(op, operands, site.attrs, site.outputs or 1)
    except Reject:
        return None
    sketch.finish(list(node.results))
    return sketch


def shard(index: int) -> list[str]:
    """Every so many operators."""
    return [op for op in sorted(SAMPLERS)[index::SHARDS] if op not in REFERENCE_ERRS and find(op) is not None]


def check(graph: Any, found: Any, environment: Any, convert: Any = lambda array: array) -> None:
    scale = scale_of(environment)
    for info, value, actual in zip(graph.output_info, graph.outputs, found, strict=True):
        problem = difference(actual, convert(look_up(environment, value)), NUMERICS, scale)
        assert problem is None, f"output {info.name}: {problem}\n{graph}"


@pytest.mark.parametrize("index", range(SHARDS))
def test_operators_compute_what_the_reference_computes(index: int) -> None:
    compared = 0
    for op in shard(index):
        for seed in range(3):
            sketch = drawn(op, seed, "static")
            if sketch is not None:
                check(sketch.graph, compile_graph(sketch.graph).run(sketch.inputs), sketch.environment)
                compared += 1
    assert compared > 90


@pytest.mark.parametrize("index", range(SHARDS))
def test_operators_compute_the_same_in_32_bits(index: int) -> None:
    compared = 0
    for op in shard(index):
        sketch = drawn(op, 10, "static")
        if sketch is None or any(_is_large(a) for a in sketch.environment.values()):
            continue
        function = to_jax(sketch.graph)
        if function.plan.data_dependent:
            continue
        found = function(function.params, *(narrowed(sketch.inputs[name]) for name, _ in function.inputs))
        check(sketch.graph, [np.asarray(f) for f in found], sketch.environment, narrowed)
        compared += 1
    assert compared > 30


def _is_large(array: np.ndarray[Any, Any]) -> bool:
    """Whether 32 bits do not hold it."""
    return array.dtype.kind in "iu" and array.size > 0 and bool(np.abs(array.astype(np.float64)).max() > 1 << 31)


@pytest.mark.parametrize("index", range(SHARDS))
def test_operators_with_open_sizes_compute_the_same(index: int) -> None:
    exported = 0
    for op in shard(index):
        sketch = drawn(op, 20, "symbolic")
        if sketch is None or any(0 in array.shape for array in sketch.environment.values()):
            continue
        function = to_jax(sketch.graph)
        if function.plan.data_dependent or function.static_inputs or not function.inputs:
            continue
        with jax.enable_x64(True):
            try:
                call = jax.export.export(jax.jit(function))(function.param_shapes, *abstract_inputs(function)).call
            except PlanishError:  # sizes that were drawn apart need not go together
                continue
            found = call(function.params, *(sketch.inputs[name] for name, _ in function.inputs))
        check(sketch.graph, [np.asarray(f) for f in found], sketch.environment)
        exported += 1
    assert exported > 20


def test_graphs_compute_what_the_reference_computes() -> None:
    compared = 0
    for seed in range(GRAPHS):
        try:
            instance = random_graph(seed)
            environment = evaluate_graph(instance.graph, instance.inputs)
        except (EvaluationError, TypeContradiction):
            continue
        ops = {node.op for node in instance.graph.walk()}
        if ops & REFERENCE_ERRS or "OneHot" in ops or not np.isfinite(scale_of(environment)):
            continue
        executable = compile_graph(instance.graph)
        assert isinstance(executable, XlaExecutable)
        check(instance.graph, executable.run(instance.inputs), environment)
        compared += 1
    assert compared > GRAPHS // 2
