"""Tiny models for the tests of the face, and the command line as a function."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import planish
from planish.cli import planish as group
from planish.ir import DType, Graph, constant, edit, op, sym, tensor_type


def make_graph(build, *inputs, outputs=("y",)):
    """A graph with ``inputs`` (pairs of name and type), whose nodes ``build`` makes of their values."""
    graph = Graph("tiny", opsets={"": 20})
    built = build(*[graph.add_input(type_, name) for name, type_ in inputs])
    values = built if isinstance(built, tuple) else (built,)
    edit.insert_floating(values, graph.ret)
    graph.set_outputs(values)
    for info, name in zip(graph.output_info, outputs, strict=True):
        info.name = name
    return graph


def weights(*shape, seed=0):
    return constant(np.random.default_rng(seed).standard_normal(shape, np.float32), name=f"w{seed}")


def mlp():
    """Two layers with waste around them that `simplify` removes."""

    def build(x):
        hidden = op.Relu(op.Relu(op.MatMul(x, weights(8, 16)) * 1.0))
        return op.Identity(op.MatMul(hidden, weights(16, 4, seed=1)) + weights(4, seed=2))

    return make_graph(build, ("x", tensor_type(DType.FLOAT, sym("batch"), 8)))


@pytest.fixture
def tiny():
    """The functions above."""
    return SimpleNamespace(graph=make_graph, weights=weights, mlp=mlp)


@pytest.fixture
def model(tmp_path):
    """The path of a small model."""
    path = tmp_path / "model.onnx"
    planish.save(mlp(), path, opset=20)
    return str(path)


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli():
    """Runs the command line in this process."""

    def run(*arguments: object) -> Outcome:
        result = CliRunner().invoke(group, [str(a) for a in arguments], prog_name="planish")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run
