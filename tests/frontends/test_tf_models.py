"""Whole models in TensorFlow and Keras: those of `benchmarks/tensorflow_zoo.py`, small.

Each is translated, verified, run as translated and after the default pipeline, and compared with TensorFlow at sizes of
which the graph knows nothing. What the pipeline must leave of a model (`Case.wants`) is counted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from planish.backends import backend
from planish.ir import Graph
from planish.ir.verify import verify

from .tf_check import assert_like

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from tensorflow_models import engine_for, optimize, shape_of, translate
from tensorflow_zoo import APPLICATIONS, CASES, SMALL, Case, build

# of keras.applications, those that can be made small enough; the others take the same operations
QUICK = {"ConvNeXtTiny", "DenseNet121", "MobileNetV2"}
# what takes long and others have the parts of
LONG = {
    "conformer",
    "conv-lstm",
    "crf-tagger",
    "deeplab",
    "mha-fixed",
    "stacked-cells",
    "translator",
    "vit-patches",
    "yolo",
}
NAMES = [n for n in CASES if n not in LONG and (n not in APPLICATIONS or n in QUICK)]


def assert_computes(case: Case, graph: Graph, *others: bool) -> None:
    """Fail unless the graph computes what TensorFlow computes, at one of two sizes or at both."""
    program = backend(engine_for(case)).compile(graph)
    for other in others:
        inputs = case.inputs(other)
        for a, w in zip(program(*inputs), case.outputs(inputs), strict=True):
            assert_like(a, w, case.tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_computes_what_tensorflow_does_and_is_left_in_its_form(name: str) -> None:
    case = build(name, SMALL)
    graph = translate(case)
    verify(graph)
    assert_computes(case, graph, True)
    optimize(graph)
    verify(graph)
    assert_computes(case, graph, False, True)
    found = shape_of(graph)
    assert {op: found["operators"].get(op, 0) for op in case.wants} == case.wants
    if case.is_image:
        assert found["inside"] == case.inside


def test_the_zoo_builds_the_same_model_twice() -> None:
    first, second = (build("residual", SMALL) for _ in range(2))
    inputs = first.inputs()
    for a, b in zip(first.outputs(inputs), second.outputs(inputs), strict=True):
        assert_like(a, b, 0)
