"""Inference against ONNX's own node tests: recorded results, and onnx's inference of the same nodes.

Each test model is typed four ways: knowing the shapes of its inputs, knowing also their elements, with every dimension
of every input a symbol of its own, and with one symbol per size. Whatever is inferred must be what the recorded result
has, once the symbols are given their sizes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import defs
from onnx.backend.test.case.node import collect_testcases

from planish.ir import (
    UNKNOWN,
    Dim,
    DType,
    Graph,
    Node,
    SequenceType,
    TensorType,
    Type,
    Value,
    constant,
    sym,
    tensor,
    tensor_type,
)
from planish.ir.convert.proto import from_proto
from planish.ir.infer import IllTyped, infer
from planish.ir.infer.engine import _TYPING, infer_types
from planish.ir.infer.fallback import infer_with_onnx
from planish.ir.opsets import is_compatible

Sizes = dict[str, int]


@cache
def cases() -> list[Any]:
    """The node tests whose nodes mean the same in the canonical operator set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about overflows that the tests are after
        found = collect_testcases(None)
    return [case for case in found if all(is_canonical(*node) for node in operators(case.model))]


def operators(model: onnx.ModelProto) -> Iterator[tuple[str, str, int]]:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        yield node.op_type, node.domain, versions[node.domain]


@cache
def revisions() -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        found.setdefault((schema.name, schema.domain), []).append(schema.since_version)
    return found


@cache
def is_canonical(op: str, domain: str, version: int) -> bool:
    later = [v for v in revisions()[op, domain] if v > version]
    return not later or (not domain and all(is_compatible(op, v) for v in later))


def typed_inputs(graph: Graph, inputs: list[Any], mode: str) -> Sizes:
    """Give the inputs of ``graph`` types, as ``mode`` says; returns the sizes of the symbols in them."""
    sizes: Sizes = {}
    for i, (value, array) in enumerate(zip(graph.inputs, inputs, strict=False)):
        if not isinstance(array, np.ndarray | np.generic) or not isinstance(value.type, TensorType):
            continue
        array = np.asarray(array)
        small = array.dtype.kind in "iub" and array.size <= 16
        if mode == "elements" or (mode in ("own symbols", "shared symbols") and small):
            value.const = tensor(array, value.dtype)
        if mode in ("own symbols", "shared symbols") and not small:
            names = [f"d{i}_{j}" if mode == "own symbols" else f"s{d}" for j, d in enumerate(array.shape)]
            sizes.update(zip(names, array.shape, strict=True))
            value.type = TensorType(value.dtype, tuple(map(sym, names)))
        else:
            value.type = TensorType(value.dtype, array.shape)
    return sizes


def at(dim: Dim, sizes: Sizes) -> int | None:
    """The number that ``dim`` is for ``sizes``; None if it is unknown."""
    if isinstance(dim, int):
        return dim
    if dim.mentions_anonymous:
        return None
    functions = {"floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "min": min, "max": max}
    return int(eval(str(dim), {"__builtins__": {}}, {**functions, **sizes}))


def disagreement(value: Value, array: np.ndarray[Any, Any], sizes: Sizes) -> str | None:
    """What is wrong with what is known of ``value``, whose elements are those of ``array``."""
    type_ = value.type
    assert isinstance(type_, TensorType)
    if type_.dtype and type_.dtype is not DType.from_numpy(array.dtype):
        return f"{type_} is {array.dtype}"
    if type_.shape is not None:
        dims = [at(d, sizes) for d in type_.shape]
        if len(dims) != array.ndim or any(d not in (None, n) for d, n in zip(dims, array.shape, strict=True)):
            return f"{type_} is {array.shape} for {sizes}"
    if value.content is not None:
        elements = [at(e, sizes) for e in value.content]
        actual = [int(e) for e in array.ravel()]
        if len(elements) != len(actual) or any(e not in (None, a) for e, a in zip(elements, actual, strict=True)):
            return f"{value.content} is {actual} for {sizes}"
    return None


@pytest.mark.parametrize(
    ("mode", "least"), [("shapes", 0.81), ("elements", 0.95), ("own symbols", 0.78), ("shared symbols", 0.88)]
)
def test_recorded_results_have_the_inferred_types(mode: str, least: float) -> None:
    wrong: list[str] = []
    known: Counter[bool] = Counter()
    for case in cases():
        inputs, outputs = case.data_sets[0]
        graph = from_proto(case.model, infer=False)
        sizes = typed_inputs(graph, inputs, mode)
        for node in graph.nodes:
            try:
                infer(node)
            except IllTyped as error:
                wrong.append(f"{case.name}: {error}")
        for value, array in zip(graph.outputs, outputs, strict=True):
            if isinstance(value.type, TensorType) and isinstance(array, np.ndarray | np.generic):
                problem = disagreement(value, np.asarray(array), sizes)
                if problem:
                    wrong.append(f"{case.name}: {value.name}: {problem}")
                shape = value.shape
                known[bool(value.dtype) and shape is not None and None not in [at(d, sizes) for d in shape]] += 1
    assert wrong == []
    assert known[True] / known.total() > least
    assert known.total() > 1900


# Where onnx's inference states something else than ours on nodes of static shape, and why.
DIFFERENT = {
    "STFT": "onnx forgets that `onesided` is the default, and says twice the bins that its reference computes",
}


def static_nodes() -> Iterator[tuple[str, Node]]:
    """Every node whose operands have static shapes, from the node tests, typed, with constants and known contents."""
    for case in cases():
        graph = from_proto(case.model, infer=False)
        typed_inputs(graph, case.data_sets[0][0], "elements")
        for node in graph.nodes:
            infer(node, strict=False)
            if all(is_complete(o.type) for o in node.operands if o is not None):
                yield case.name, node
    x, shape = Value(tensor_type(DType.FLOAT, 2, 3, 4)), {"shape": (2, 3)}
    pair = Value(SequenceType(tensor_type(DType.FLOAT, 2, 3)))
    at, one_axis = constant(np.asarray(0)), {"axis": 0}
    for op, operands, attrs in (
        ("Optional", [x], {}),
        ("SequenceConstruct", [x, x], {}),
        ("SequenceErase", [pair, at], {}),
        ("SequenceAt", [pair, at], {}),
        ("ConcatFromSequence", [pair], one_axis),
        ("ConcatFromSequence", [pair], {"axis": 2, "new_axis": 1}),
        ("GlobalLpPool", [x], {"p": 2}),
        ("RandomNormalLike", [x], {}),
        ("RandomUniformLike", [x], {"dtype": 10}),
        ("RandomNormal", [], shape),
        ("RandomUniform", [], shape),
        ("Multinomial", [Value(tensor_type(DType.FLOAT, 2, 3))], {"sample_size": 7}),
        ("Constant", [], {"value_floats": (1.0, 2.0)}),
    ):
        yield op, Node(op, operands, attrs)


def is_complete(type_: Type) -> bool:
    if isinstance(type_, SequenceType):
        return type_.element != UNKNOWN
    return isinstance(type_, TensorType) and type_.is_static and bool(type_.dtype)


def says_less(ours: Type, theirs: Type) -> bool:
    """Whether ``theirs`` states something that ``ours`` does not."""
    if isinstance(theirs, SequenceType):
        return type(ours) is not type(theirs) or says_less(ours.element, theirs.element)  # type: ignore[union-attr]
    assert isinstance(theirs, TensorType)
    if theirs == UNKNOWN:
        return False
    if not isinstance(ours, TensorType) or (theirs.dtype and ours.dtype is not theirs.dtype):
        return True
    if theirs.shape is None:
        return False
    if ours.shape is None or len(ours.shape) != len(theirs.shape):
        return True
    return any(isinstance(t, int) and o != t for o, t in zip(ours.shape, theirs.shape, strict=True))


# Ops with bodies: the fallback does not hand those to onnx.
NOT_COMPARED = {"If", "Loop", "Scan", "SequenceMap", "planish.FakeQuantize"}


def test_rules_say_all_that_onnx_says_on_static_shapes() -> None:
    found: dict[str, str] = {}
    compared: Counter[str] = Counter()
    for name, node in static_nodes():
        if node.op not in _TYPING or node.graphs:
            continue
        for ours, theirs in zip(infer_types(node), infer_with_onnx(node), strict=False):
            compared[node.op] += 1
            if says_less(ours, theirs) and node.op not in DIFFERENT:
                found[f"{name} {node.op}"] = f"{ours}, onnx says {theirs}"
    assert found == {}
    assert compared.total() > 10_000
    assert set(_TYPING) - set(compared) - NOT_COMPARED == set()
