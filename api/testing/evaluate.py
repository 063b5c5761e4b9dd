"""Evaluation of a graph node by node with onnx's own reference kernels, keeping every value on the way.

This is what the generated tests judge by, so it shares nothing with what it judges: not the shape inference, not the
constant folder. Control flow is walked here; everything else is one call of `onnx.reference` per node.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from planish.ir import DType, Graph, Node, Tensor, Value
from planish.ir.quantization import FAKE_QUANTIZE
from planish.ir.quantization import evaluate as fake_quantize
from planish.ir.schema import canonical_opset

from .pooling import can_pool, pool

__all__ = ["Ambiguous", "Environment", "EvaluationError", "evaluate_graph", "evaluate_node"]

Array = np.ndarray
Environment = dict[Value, Any]
_MAX_ITERATIONS = 1000


class EvaluationError(ValueError):
    """The operands do not fit the operator, or the reference has no kernel for it."""


class Ambiguous(EvaluationError):
    """Implementations differ: nothing is known to be right."""


def evaluate_graph(graph: Graph, inputs: Mapping[str, Any]) -> Environment:
    """The value of everything in ``graph`` (nested graphs: of their last execution) for the named ``inputs``.

    Raises:
        EvaluationError: a node cannot be evaluated, or an input is missing.
    """
    environment: Environment = {}
    for value in graph.inputs:
        if value.name in inputs:
            environment[value] = np.asarray(inputs[value.name])
        elif value.default is not None:
            environment[value] = value.default.numpy()
        else:
            raise EvaluationError(f"no input {value.name!r}")
    _run(graph, environment)
    return environment


def look_up(environment: Environment, value: Value | None) -> Any:
    """What ``value`` is in ``environment``; None for an operand that is left out."""
    if value is None:
        return None
    if value.const is not None:
        return value.const.numpy()
    if value not in environment:
        raise EvaluationError(f"%{value.name} is used before it is computed")
    return environment[value]


def _run(graph: Graph, environment: Environment) -> list[Any]:
    for node in graph.nodes:
        if node.graphs:
            results = evaluate_control(node, environment)
        else:
            results = evaluate_node(node, [look_up(environment, o) for o in node.operands])
        for result, array in zip(node.results, results, strict=False):
            environment[result] = array
    return [look_up(environment, o) for o in graph.outputs]


def evaluate_control(node: Node, environment: Environment) -> list[Any]:
    """The results of an If, a Loop or a Scan whose surroundings are in ``environment``, where its insides go too.

    Raises:
        EvaluationError: something in it cannot be evaluated.
    """
    operands = [look_up(environment, o) for o in node.operands]
    if node.op == "If":
        return _run(node.attrs["then_branch" if bool(np.all(operands[0])) else "else_branch"], environment)
    if node.op == "Loop":
        return _run_loop(node, operands, environment)
    if node.op == "Scan":
        return _run_scan(node, operands, environment)
    raise EvaluationError(f"{node.op} is not evaluated here")


def _run_loop(node: Node, operands: list[Any], environment: Environment) -> list[Any]:
    body: Graph = node.attrs["body"]
    trips = _MAX_ITERATIONS if operands[0] is None else int(operands[0])
    going = True if len(operands) < 2 or operands[1] is None else bool(operands[1])
    carried = operands[2:]
    scanned: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    iteration = 0
    while going and iteration < trips:
        environment.update(zip(body.inputs, [np.array(iteration, np.int64), np.array(going), *carried], strict=True))
        condition, *results = _run(body, environment)
        going, carried = bool(condition), results[: len(carried)]
        for column, result in zip(scanned, results[len(carried) :], strict=True):
            column.append(result)
        iteration += 1
        if iteration >= _MAX_ITERATIONS:
            raise EvaluationError("the loop does not end")
    if not iteration and scanned:
        raise EvaluationError("a scan output of a loop that never ran has no shape here")
    return [*carried, *(np.stack(column) for column in scanned)]


def _run_scan(node: Node, operands: list[Any], environment: Environment) -> list[Any]:
    body: Graph = node.attrs["body"]
    count = len(operands) - node.attrs["num_scan_inputs"]
    carried, scanned = operands[:count], operands[count:]
    ways = node.attrs.get("scan_input_directions") or (0,) * len(scanned)
    axes = node.attrs.get("scan_input_axes") or (0,) * len(scanned)
    rows = [np.moveaxis(x, axis, 0)[:: -1 if way else 1] for x, axis, way in zip(scanned, axes, ways, strict=True)]
    columns: list[list[Any]] = []
    for i in range(len(rows[0])):
        environment.update(zip(body.inputs, [*carried, *(row[i] for row in rows)], strict=True))
        results = _run(body, environment)
        carried = results[:count]
        columns.append(results[count:])
    if not columns:  # the shapes are those of a step that there is not
        steps = [*carried, *(np.zeros(row.shape[1:], row.dtype) for row in rows)]
        environment.update(zip(body.inputs, steps, strict=True))
        stacked = [np.zeros((0, *r.shape), r.dtype) for r in _run(body, environment)[count:]]
    else:
        stacked = [np.stack(column) for column in zip(*columns, strict=True)]
    ways = node.attrs.get("scan_output_directions") or (0,) * len(stacked)
    axes = node.attrs.get("scan_output_axes") or (0,) * len(stacked)
    stacked = [np.moveaxis(x[:: -1 if way else 1], 0, axis) for x, axis, way in zip(stacked, axes, ways, strict=True)]
    return [*carried, *stacked]


def evaluate_node(node: Node, operands: Sequence[Any]) -> list[Any]:
    """The results of one node without nested graphs.

    Raises:
        EvaluationError: the operands do not fit, the result is undefined, or there is no kernel.
    """
    attrs = tuple((k, type(v), _key(v)) for k, v in sorted(node.attrs.items()))  # with the type, because 1 == 1.0
    present = tuple(o is not None for o in operands)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            _refuse_undefined(node, operands)
            if node.op in ("MaxPool", "GlobalMaxPool", "AveragePool") and can_pool(node):
                return [pool(node, operands[0])]
            if node.op == "GroupNormalization":
                return [_group_normalization(node, *operands)]
            if node.op == FAKE_QUANTIZE:  # planish's own: this is its definition, which tests/ir compares with ONNX's
                return [np.asarray(fake_quantize(node, list(operands)))]
            if node.domain == "com.microsoft":
                return _onnxruntime().evaluate(node, operands)
            evaluator = _kernel(node.op, attrs, present, len(node.results))
            feeds = {f"i{i}": o for i, o in enumerate(operands) if o is not None}
            results = _run_kernel(evaluator, feeds)
        except (MemoryError, EvaluationError):
            raise
        except Exception as error:  # kernels raise whatever they like
            raise EvaluationError(f"{node.op}: {type(error).__name__}: {error}") from error
    if node.op.startswith("Reduce"):
        results = [np.asarray(r, operands[0].dtype) for r in results]  # numpy widens sums of integers
    return [np.asarray(r) if isinstance(r, np.generic | np.ndarray | int | float | bool) else r for r in results]


def _run_kernel(evaluator: Any, feeds: dict[str, Array]) -> list[Any]:
    try:
        results: list[Any] = evaluator.run(None, feeds)
    except TypeError:  # some kernels make Python numbers of tensors without dimensions
        if any(array.shape for array in feeds.values()):
            raise
        results = evaluator.run(None, {name: array.reshape(1) for name, array in feeds.items()})
        results = [r.reshape(()) for r in results]
    return results


def _refuse_undefined(node: Node, operands: Sequence[Any]) -> None:
    """Leave out what the standard leaves to the implementation, and where onnx.reference is known to differ from it."""
    check = _UNDEFINED.get(node.op)
    if check is not None and all(o is not None for o in operands[:2]) and (reason := check(node, operands)):
        raise (Ambiguous if node.op in _AMBIGUOUS else EvaluationError)(f"{node.op}: {reason}")


def _integer_division(node: Node, operands: Sequence[Any]) -> str | None:
    return "integer division by zero" if operands[1].dtype.kind in "iu" and not np.all(operands[1]) else None


def _conversion(node: Node, operands: Sequence[Any]) -> str | None:
    to = DType(node.attrs["to"]) if node.op == "Cast" else DType.from_numpy(operands[1].dtype)
    if operands[0].dtype.kind != "f" or not to.is_integer:
        return None
    x = operands[0].astype(np.float64)
    low, high = -(2.0 ** (to.bits - 1)) if to.is_signed else 0.0, 2.0 ** (to.bits - to.is_signed)
    return None if np.all(np.isfinite(x) & (x >= low) & (x < high)) else "a conversion out of range"


def _integer_power(node: Node, operands: Sequence[Any]) -> str | None:
    return "a negative power" if operands[0].dtype.kind in "iu" and np.any(operands[1] < 0) else None


def _slice_start(node: Node, operands: Sequence[Any]) -> str | None:
    """Going backwards, a start before the first element means the first one; numpy takes nothing."""
    if len(operands) < 5 or operands[4] is None:
        return None
    x, starts, axes, steps = operands[0], operands[1], operands[3], operands[4]
    axes = range(starts.size) if axes is None else axes.ravel().tolist()
    before = any(s < -x.shape[a] and step < 0 for s, a, step in zip(starts.ravel(), axes, steps.ravel(), strict=True))
    return "a start before the first element" if before else None


def _empty_reshape(node: Node, operands: Sequence[Any]) -> str | None:
    """Which size, times nothing, is nothing?"""
    x, target = operands[0], operands[1].ravel().tolist()
    if -1 not in target or x.size:
        return None
    copies = not node.attrs.get("allowzero", 0)
    known = [x.shape[i] if d == 0 and copies and i < x.ndim else d for i, d in enumerate(target)]
    return "any size would do" if 0 in known else None


def _valid_rounding_up(node: Node, operands: Sequence[Any]) -> str | None:
    attrs = node.attrs
    rounds = attrs.get("ceil_mode", 0) and attrs.get("auto_pad", "NOTSET") != "NOTSET"
    return "ceil_mode with auto_pad" if rounds and set(attrs.get("strides") or (1,)) != {1} else None


def _large_integers(node: Node, operands: Sequence[Any]) -> str | None:
    """The reference multiplies by ``alpha`` as a floating-point number."""
    large = any(o is not None and o.dtype.kind in "iu" and np.any(np.abs(o.astype(np.float64)) > 1e6) for o in operands)
    return "large integers" if large else None


_UNDEFINED: dict[str, Callable[[Node, Sequence[Any]], str | None]] = {
    "Div": _integer_division,
    "Mod": _integer_division,
    "Cast": _conversion,
    "CastLike": _conversion,
    "Pow": _integer_power,
    "Slice": _slice_start,
    "Reshape": _empty_reshape,
    "Gemm": _large_integers,
    "MaxPool": _valid_rounding_up,
    "AveragePool": _valid_rounding_up,
}
_AMBIGUOUS = frozenset({"Reshape", "MaxPool", "AveragePool", "Slice", "Gemm"})


def _key(value: Any) -> Any:
    """An attribute in hashable form; tensors as their contents."""
    if isinstance(value, Tensor):
        array = value.numpy()
        return _TensorKey(value.dtype, value.shape, array.tobytes())
    if isinstance(value, list):
        return tuple(value)
    return value


class _TensorKey(tuple):  # type: ignore[type-arg]
    """A tensor attribute: dtype, shape, bytes."""

    __slots__ = ()

    def __new__(cls, dtype: DType, shape: tuple[int, ...], data: bytes) -> _TensorKey:
        return super().__new__(cls, (dtype, shape, data))


def _group_normalization(node: Node, x: Array, scale: Array, bias: Array) -> Array:
    """The reference has no kernel for it, and the function body in the standard depends on types."""
    grouped = x.astype(np.float32).reshape(x.shape[0], node.attrs["num_groups"], -1)
    centred = grouped - grouped.mean(axis=2, keepdims=True)
    variance = (centred**2).mean(axis=2, keepdims=True)
    normalized = (centred / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))).reshape(x.shape)
    channels = (-1,) + (1,) * (x.ndim - 2)
    return (normalized * scale.reshape(channels) + bias.reshape(channels)).astype(x.dtype)


@lru_cache(maxsize=1)
def _onnxruntime() -> Any:
    """ONNX Runtime, which alone computes its own operators."""
    from planish.backends.base import backend

    return backend("onnxruntime")


@lru_cache(maxsize=4096)
def _kernel(op: str, attrs: tuple[tuple[str, type, Any], ...], present: tuple[bool, ...], outputs: int) -> Any:
    """An evaluator for one node."""
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    domain, _, name = op.rpartition(".")
    inputs = [f"i{i}" if there else "" for i, there in enumerate(present)]
    results = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(name, inputs, results, domain=domain)
    for key, _, value in attrs:
        if isinstance(value, float) and not math.isfinite(value):
            node.attribute.append(onnx.AttributeProto(name=key, type=onnx.AttributeProto.FLOAT, f=value))
        else:
            kind = onnx.AttributeProto.INTS if value == () else None
            node.attribute.append(helper.make_attribute(key, _proto(value), attr_type=kind))
    untyped = onnx.TypeProto()
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_value_info(i, untyped) for i in inputs if i],
        [helper.make_value_info(o, untyped) for o in results],
    )
    versions = [helper.make_opsetid("", canonical_opset())] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=versions))


def _proto(value: Any) -> Any:
    if not isinstance(value, _TensorKey):
        return list(value) if isinstance(value, tuple) else value
    from onnx import TensorProto

    dtype, shape, data = value
    return TensorProto(data_type=int(dtype), dims=shape, raw_data=data)
