"""What a saved result is: its nodes, and how far its outputs are from the raw model's.

``python benchmarks/evaluate.py INPUTS RAW [RESULT]`` prints one JSON object (see ``evaluate``). It is a process of its
own, so that a result that crashes ONNX Runtime is a line in the table and not the end of the benchmark.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime as ort

    Arrays = dict[str, np.ndarray[Any, Any]]

STANDARD_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"}


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of every graph nested in them (If, Loop and Scan bodies)."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from all_nodes(graph.node)


def count(path: Path) -> dict[str, Any]:
    """Count a model's nodes (nested graphs and function bodies included) and bytes, without reading its weights.

    ``nodes`` is everything but ``Constant``, which only spells a value that an initializer could spell as well; those
    are ``constants``. ``other`` is the part of ``nodes`` outside the standard's domains.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    operators = Counter((node.domain, node.op_type) for body in bodies for node in all_nodes(body))
    constants = sum(number for (_, name), number in operators.items() if name == "Constant")
    return {
        "nodes": operators.total() - constants,
        "constants": constants,
        "other": sum(number for (domain, _), number in operators.items() if domain not in STANDARD_DOMAINS),
        "operators": {f"{domain}.{name}".lstrip("."): number for (domain, name), number in operators.most_common()},
        "bytes": sum(file.stat().st_size for file in path.parent.iterdir() if file.name.startswith(path.name)),
    }


def open_session(path: Path, optimize: bool = False, threads: int | None = None) -> ort.InferenceSession:
    """An ONNX Runtime CPU session; by default without its own optimizations, so that the file itself is what runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_inputs(path: Path) -> Arrays:
    """The arrays of an ``.npz`` file."""
    import numpy as np

    with np.load(path) as arrays:
        return dict(arrays)


def resized(inputs: Arrays, session: ort.InferenceSession) -> Arrays:
    """The same inputs at other sizes: every dynamic axis is cut, so a result that froze a shape is found out."""
    result = {}
    for value in session.get_inputs():
        cuts = [
            slice(None) if isinstance(dim, int) else slice(size - 5 if size > 5 else 1)
            for dim, size in zip(value.shape, inputs[value.name].shape, strict=True)
        ]
        result[value.name] = inputs[value.name][tuple(cuts)]
    return result


def relative_error(expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any]) -> float:
    """Largest absolute difference in units of the expected output's range; infinite where only one side is finite."""
    import numpy as np

    if expected.shape != actual.shape:
        raise ValueError(f"output of shape {list(actual.shape)} instead of {list(expected.shape)}")
    if not expected.size or np.array_equal(expected, actual, equal_nan=expected.dtype.kind == "f"):
        return 0.0
    difference = float(np.max(np.abs(expected.astype(np.float64) - actual.astype(np.float64))))
    span = float(np.max(expected)) - float(np.min(expected))
    return difference / (span or 1.0) if np.isfinite(difference) else float("inf")


def largest_error(raw: Path, result: Path, inputs: Arrays) -> float:
    """Largest relative error over all outputs, at the sample's sizes and at others."""
    expected_session, actual_session = open_session(raw), open_session(result)
    names = [value.name for value in expected_session.get_outputs()]
    if names != [value.name for value in actual_session.get_outputs()]:
        raise ValueError(f"outputs are called {[value.name for value in actual_session.get_outputs()]}, not {names}")
    errors = []
    for sample in (inputs, resized(inputs, expected_session)):
        expected, actual = (session.run(names, sample) for session in (expected_session, actual_session))
        errors += [relative_error(a, b) for a, b in zip(expected, actual, strict=True)]
    return max(errors)


def evaluate(inputs: Path, raw: Path, result: Path) -> dict[str, Any]:
    """``count`` of the result and its ``error``; a result that does not load or run has a ``failure`` instead."""
    facts = count(result)
    try:
        return facts | {"error": largest_error(raw, result, load_inputs(inputs))}
    except Exception as error:  # noqa: BLE001 - a wrong result is a finding, whatever it raises
        return facts | {"failure": "result does not run: " + " ".join(str(error).split())[:300]}


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    print(json.dumps(evaluate(*paths) if len(paths) == 3 else count(paths[1])))
