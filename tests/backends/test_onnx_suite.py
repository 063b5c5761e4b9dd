"""ONNX's own backend tests: whatever ONNX Runtime passes directly, it passes through planish.

Through planish means imported, then left alone, simplified, or written in the oldest opset that will do.

The direct run, the run through planish and the comparison happen in one go, so nothing is skipped and no list of known
failures can go stale. The counts were measured with onnx 1.23.2 and onnxruntime 1.31.1; they may only grow.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from planish.backends import backend, onnx_backend
from planish.frontends.onnx.upgrade import upgrade
from planish.ir import Graph
from planish.ir.opsets import OLDEST
from planish.passes import Context, Pipeline

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
SHARDS = 8
DIRECT = (156, 168, 191, 166, 186, 201, 175, 202)  # tests per shard that ONNX Runtime passes directly
THROUGH = (209, 233, 248, 217, 244, 247, 227, 264)  # and through planish, thanks to legalization


@cache
def cases() -> list[TestCase]:
    with np.errstate(all="ignore"):
        return [case for kind in KINDS for case in load_model_tests(kind=kind)]


def shard_of(case: TestCase) -> int:
    return zlib.crc32(case.name.encode()) % SHARDS


def model_of(case: TestCase) -> onnx.ModelProto:
    return case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")


def data_of(case: TestCase, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    """The inputs and wanted outputs of every run."""
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield [*map(as_array, inputs)], [*map(as_array, outputs)]
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")):
        yield values_in(folder, "input", model.graph.input), values_in(folder, "output", model.graph.output)


def as_array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def values_in(folder: Path, what: str, infos: Any) -> list[Any]:
    files = sorted(folder.glob(f"{what}_*.pb"), key=lambda p: int(re.findall(r"\d+", p.name)[0]))
    return [read(file.read_bytes(), info.type) for file, info in zip(files, infos, strict=False)]


def read(data: bytes, type_: onnx.TypeProto) -> Any:
    if type_.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if type_.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def directly(model: onnx.ModelProto) -> Callable[[list[Any]], list[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=False))))


def simplify(graph: Graph) -> None:
    context = Context(runner_factory=lambda: backend("reference"))
    Pipeline.parse("simplify").run(graph, context)
    assert [r.problem for r in context.results if r.problem] == []


def pretend_to_be_old(graph: Graph) -> None:
    """Let the model be written in the oldest opset in which all of its nodes mean the same."""
    graph.info["imported_opset"] = OLDEST


VARIANTS = {"as-is": None, "simplified": simplify, "oldest-opset": pretend_to_be_old}


def passes(case: TestCase, prepare: Callable[[onnx.ModelProto], Callable[[list[Any]], Any]]) -> str:
    """ "" if the test passes, else what went wrong."""
    try:
        model = model_of(case)
        run = prepare(model)
        for inputs, wanted in data_of(case, model):
            Runner.assert_similar_outputs(wanted, run(inputs), case.rtol, case.atol, case.model_dir)
    except Exception as error:  # noqa: BLE001 - as the suite itself does
        return f"{case.name}: {type(error).__name__}: {error}"
    return ""


@cache
def passed_directly(shard: int) -> frozenset[str]:
    return frozenset(case.name for case in cases() if shard_of(case) == shard and not passes(case, directly))


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_onnxruntime_passes_it_passes_through_planish(variant: str, shard: int) -> None:
    planish = onnx_backend("onnxruntime", upgrade, VARIANTS[variant], threads=1)
    mine = [case for case in cases() if shard_of(case) == shard]
    problems = {case.name: passes(case, lambda model: planish.prepare(model).run) for case in mine}
    direct = passed_directly(shard)
    assert [problem for name, problem in problems.items() if problem and name in direct] == []
    assert len(direct) >= DIRECT[shard]
    assert sum(not problem for problem in problems.values()) >= THROUGH[shard]


def test_the_suite_is_complete() -> None:
    assert len(cases()) >= 2024
    assert sum(DIRECT) == 1445
    assert len({(case.kind, case.name) for case in cases()}) == len(cases())
