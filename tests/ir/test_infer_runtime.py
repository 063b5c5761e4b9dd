"""Inference of generated nodes against what onnxruntime computes, with static and with symbolic shapes.

Every example is one node with concrete arrays. It is typed with the shapes and small integers as they are, and again
with some of the sizes and elements replaced by symbols. Where the runtime has a result, inference must not call the
node ill-typed, and all that it states, with the sizes put in, must be what the result has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from planish.ir import Dim, DType, Node, Sym, TensorType, Value, constant, sym
from planish.ir.infer import IllTyped, infer

Array = np.ndarray[Any, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]
onnxruntime.set_default_logger_severity(4)


class Case(NamedTuple):
    op: str
    arrays: list[Array]
    attrs: dict[str, Any]
    results: int = 1


def run(case: Case) -> list[Array] | None:
    """What onnxruntime computes, unoptimized; None where it refuses the node."""
    names = [f"i{i}" for i in range(len(case.arrays))]
    results = [f"o{i}" for i in range(case.results)]
    node = helper.make_node(case.op, names, results, **case.attrs)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, case.arrays, strict=True)
    ]
    outputs = [helper.make_value_info(r, onnx.TypeProto()) for r in results]
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(zip(names, case.arrays, strict=True))))
    except Exception:  # noqa: BLE001 - onnxruntime's errors have no class in common
        return None


def at(dim: Dim, sizes: dict[str, int]) -> int | None:
    if isinstance(dim, int):
        return dim
    if dim.mentions_anonymous:
        return None
    functions = {"floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "min": min, "max": max}
    return int(eval(str(dim), {"__builtins__": {}}, {**functions, **sizes}))


def check(node: Node, results: list[Array], sizes: dict[str, int]) -> None:
    for value, array in zip(node.results, results, strict=True):
        type_ = value.type
        assert isinstance(type_, TensorType)
        assert type_.dtype is DType.from_numpy(array.dtype)
        if type_.shape is not None:
            dims = [at(d, sizes) for d in type_.shape]
            assert len(dims) == array.ndim, f"{type_} is {array.shape}"
            assert [d if d is not None else n for d, n in zip(dims, array.shape, strict=True)] == list(array.shape)
        if value.content is not None:
            elements = [at(e, sizes) for e in value.content]
            actual = [int(e) for e in array.ravel()]
            assert [a if e is None else e for e, a in zip(elements, actual, strict=True)] == actual


def attributes(case: Case) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in case.attrs.items()}


def check_static(case: Case, results: list[Array] | None, *, exactly: bool = True) -> None:
    """Type the node with constants, and compare."""
    node = Node(case.op, [constant(a) for a in case.arrays], attributes(case), case.results)
    try:
        infer(node)
    except IllTyped:
        assert results is None, f"{case.op} runs"
        return
    if results is not None:
        check(node, results, {})
        if exactly:
            assert all(isinstance(r.type, TensorType) and r.type.is_static for r in node.results)


def symbolic(draw: Draw, number: int, sizes: dict[str, int]) -> Dim:
    """``number``, or an expression that is it: a symbol of its own, a shared one, a sum, a multiple."""
    kind = draw(st.sampled_from(["known", "shared", "own", "sum", "product", "difference"]))
    name = f"n{len(sizes)}"
    if kind == "shared":
        sizes[f"s{number}"] = number
        return sym(f"s{number}")
    if kind == "sum" and number > 1:
        sizes[name] = number - 1
        return sym(name) + 1
    if kind == "product" and number % 2 == 0:
        sizes[name] = number // 2
        return sym(name) * 2
    if kind == "difference":
        sizes[name] = number + 2
        return sym(name) - 2
    if kind == "own":
        sizes[name] = number
        return sym(name)
    return number


def check_symbolic(draw: Draw, case: Case, results: list[Array] | None, keep: Callable[[int], bool] = bool) -> None:
    """Type the node with symbols for sizes, and for the elements of integer vectors that ``keep`` does not keep."""
    if results is None:
        return
    sizes: dict[str, int] = {}
    operands = []
    for array in case.arrays:
        if array.dtype == np.int64 and array.ndim <= 1 and array.size <= 8:
            value = constant(array)
            elements = tuple(
                symbolic(draw, int(e), sizes) if 0 <= e < 100 and not keep(int(e)) else int(e) for e in array.ravel()
            )
            if any(isinstance(e, Sym) for e in elements):
                value = Value(value.type)
                value.content = elements
        else:
            dims = tuple(symbolic(draw, d, sizes) for d in array.shape)
            value = Value(TensorType(DType.from_numpy(array.dtype), dims))
        operands.append(value)
    node = Node(case.op, operands, attributes(case), case.results)
    infer(node)
    check(node, results, sizes)


# what is generated


def array(shape: list[int], dtype: Any = np.float32, fill: float = 1) -> Array:
    return np.full(shape, fill, dtype)


def ints(numbers: list[int]) -> Array:
    return np.asarray(numbers, np.int64)


def shapes(low: int = 0, high: int = 4, sizes: list[int] | None = None) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(sizes or [0, 1, 1, 2, 2, 3, 5]), min_size=low, max_size=high)


def lists(count: int, low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=count, max_size=count)


def broadcastable(draw: Draw, shape: list[int]) -> list[int]:
    """A shape that broadcasts with ``shape``, mostly."""
    found = [draw(st.sampled_from([d, d, 1])) for d in shape]
    if found and draw(st.integers(0, 9)) == 0:
        found[draw(st.integers(0, len(found) - 1))] = draw(st.integers(0, 4))
    return found[draw(st.integers(0, len(found))) :] if draw(st.booleans()) else found


def some_axis(draw: Draw, rank: int) -> int:
    return int(draw(st.integers(-rank, rank - 1)))


@st.composite
def broadcasting(draw: Draw) -> Case:
    op = draw(st.sampled_from(["Add", "Div", "Pow", "Equal", "And", "Max", "Where", "BitwiseOr"]))
    shape = draw(shapes())
    other = broadcastable(draw, shape)
    if op == "Where":
        return Case(op, [array(broadcastable(draw, shape), bool), array(shape), array(other)], {})
    dtype = {"And": bool, "BitwiseOr": np.int32}.get(op, np.float32)
    operands = [array(shape, dtype), array(other, dtype)]
    return Case(op, operands if draw(st.booleans()) else operands[::-1], {})


@st.composite
def matrix_products(draw: Draw) -> Case:
    m, k, n = draw(lists(3, 0, 4))
    if draw(st.booleans()):
        trans_a, trans_b = draw(lists(2, 0, 1))
        operands = [array([k, m] if trans_a else [m, k]), array([n, k] if trans_b else [k, n])]
        if draw(st.booleans()):
            operands.append(array(broadcastable(draw, [m, n])))
        return Case("Gemm", operands, {"transA": trans_a, "transB": trans_b})
    batch = draw(shapes(0, 2))
    a = draw(st.sampled_from([[*batch, m, k], [m, k], [k]]))
    b = draw(st.sampled_from([[*broadcastable(draw, batch), k, n], [k, n], [k]]))
    return Case("MatMul", [array(a), array(b)], {})


@st.composite
def convolutions(draw: Draw) -> Case:
    op = draw(st.sampled_from(["Conv", "Conv", "ConvTranspose"]))
    rank, group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    channels, filters = group * draw(st.integers(1, 2)), group * draw(st.integers(1, 2))
    kernel = draw(lists(rank, 1, 3))
    weight = [filters, channels // group] if op == "Conv" else [channels, filters // group]
    attrs: dict[str, Any] = {
        "group": group,
        "strides": draw(lists(rank, 1, 3)),
        "dilations": draw(lists(rank, 1, 2)),
    }
    padding = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]))
    if padding == "NOTSET":
        attrs["pads"] = draw(lists(2 * rank, 0, 2))
    else:
        attrs["auto_pad"] = padding
    operands = [array([draw(st.integers(0, 2)), channels, *draw(lists(rank, 1, 7))]), array(weight + kernel)]
    return Case(op, operands, attrs)


@st.composite
def pools(draw: Draw) -> Case:
    op = draw(st.sampled_from(["MaxPool", "AveragePool", "LpPool"]))
    rank = draw(st.integers(1, 3))
    kernel = draw(lists(rank, 1, 3))
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": draw(lists(rank, 1, 3)),
        "dilations": draw(lists(rank, 1, 2)),
        "ceil_mode": draw(st.integers(0, 1)),
    }
    padding = draw(st.sampled_from(["SAME_UPPER", "VALID", "NOTSET", "NOTSET"]))
    if padding == "NOTSET":
        attrs["pads"] = draw(lists(2 * rank, 0, min(kernel) - 1))
    else:
        attrs["auto_pad"] = padding
    # spatial sizes that hold a window, as everywhere outside tests of errors
    return Case(op, [array([1, 2, *draw(lists(rank, 5, 9))])], attrs)


@st.composite
def reductions(draw: Draw) -> Case:
    op = draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"]))
    shape = draw(shapes(sizes=[1, 2, 3]))
    attrs = {"keepdims": draw(st.integers(0, 1)), "noop_with_empty_axes": draw(st.integers(0, 1))}
    operands = [array(shape)]
    if draw(st.booleans()):
        count = draw(st.integers(0, len(shape)))
        operands.append(ints(draw(lists(count, -len(shape), max(len(shape) - 1, 0)))))
    return Case(op, operands, attrs)


@st.composite
def reshapes(draw: Draw) -> Case:
    shape = draw(shapes(0, 3))
    left = math.prod(shape)
    target: list[int] = []
    while left > 1 and len(target) < 3:
        d = draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
        target.append(d)
        left //= d
    target = [*target, left] if left != 1 or draw(st.booleans()) else target
    if target and draw(st.booleans()):
        target[draw(st.integers(0, len(target) - 1))] = draw(st.sampled_from([-1, -1, -1, 0, 3]))
    return Case("Reshape", [array(shape), ints(target)], {"allowzero": draw(st.integers(0, 1))})


@st.composite
def arrangements(draw: Draw) -> Case:
    op = draw(st.sampled_from(["Squeeze", "Unsqueeze", "Flatten", "Transpose", "Tile", "Expand"]))
    shape = draw(shapes(sizes=[1, 1, 2, 3]))
    rank = len(shape)
    if op == "Squeeze":
        axes = [i for i, d in enumerate(shape) if d == 1]
        return Case(op, [array(shape), ints(axes)] if axes and draw(st.booleans()) else [array(shape)], {})
    if op == "Unsqueeze":
        count = draw(st.integers(0, 2))
        axes = draw(lists(count, -rank - count, max(rank + count - 1, 0)))
        return Case(op, [array(shape), ints(axes)], {})
    if op == "Flatten":
        return Case(op, [array(shape)], {"axis": draw(st.integers(-rank, rank))})
    if op == "Transpose":
        return Case(op, [array(shape)], {"perm": draw(st.permutations(range(rank)))} if rank else {})
    if op == "Tile":
        return Case(op, [array(shape), ints(draw(lists(rank, 0, 3)))], {})
    return Case(op, [array(shape), ints(broadcastable(draw, shape))], {})


@st.composite
def concatenations(draw: Draw) -> Case:
    shape = draw(shapes(1, 3))
    axis = some_axis(draw, len(shape))
    operands = []
    for _ in range(draw(st.integers(1, 3))):
        part = list(shape)
        part[axis] = draw(st.integers(0, 3))
        if draw(st.integers(0, 19)) == 0:
            part[0] += 1
        operands.append(array(part))
    return Case("Concat", operands, {"axis": axis})


@st.composite
def splits(draw: Draw) -> Case:
    shape = draw(shapes(1, 3, [1, 2, 3, 4, 6]))
    axis = some_axis(draw, len(shape))
    count = draw(st.integers(1, 3))
    if draw(st.booleans()):
        return Case("Split", [array(shape)], {"axis": axis, "num_outputs": count}, count)
    sizes = draw(lists(count - 1, 0, 2))
    sizes.append(shape[axis] - sum(sizes) + draw(st.sampled_from([0, 0, 0, 1])))
    return Case("Split", [array(shape), ints(sizes)], {"axis": axis}, count)


POSITIONS = [0, 0, 1, 2, 3, 4, 9, -1, -2, -3, -9, (1 << 31) - 1, (1 << 63) - 1, -(1 << 31), -(1 << 63)]


@st.composite
def slices(draw: Draw) -> Case:
    shape = draw(shapes(1, 3, [0, 1, 2, 3, 5, 7]))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=len(shape)))
    starts = [draw(st.sampled_from(POSITIONS)) for _ in axes]
    ends = [draw(st.sampled_from(POSITIONS)) for _ in axes]
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2])) for _ in axes]
    axes = [a - len(shape) if draw(st.booleans()) else a for a in axes]
    operands = [array(shape), ints(starts), ints(ends), ints(axes)]
    return Case("Slice", operands if draw(st.booleans()) else [*operands, ints(steps)], {})


@st.composite
def pads(draw: Draw) -> Case:
    shape = draw(shapes(1, 3))
    attrs = {"mode": draw(st.sampled_from(["constant", "edge"]))}
    return Case("Pad", [array(shape), ints(draw(lists(2 * len(shape), -1, 2)))], attrs)


@st.composite
def gathers(draw: Draw) -> Case:
    shape = draw(shapes(1, 3, [1, 2, 3]))
    rank = len(shape)
    op = draw(st.sampled_from(["Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"]))
    inner = draw(shapes(0, 2, [1, 2]))
    if op == "Gather":
        return Case(op, [array(shape), array(inner, np.int64, 0)], {"axis": some_axis(draw, rank)})
    if op in ("GatherElements", "ScatterElements"):
        at = [draw(st.integers(1, d)) for d in shape]
        operands = [array(shape), array(at, np.int64, 0), array(at)]
        return Case(op, operands[: 3 if op == "ScatterElements" else 2], {"axis": some_axis(draw, rank)})
    depth = draw(st.integers(1, rank))
    if op == "GatherND":
        batch = draw(st.integers(0, rank - depth)) if depth < rank else 0
        return Case(op, [array(shape), array([*shape[:batch], *inner, depth], np.int64, 0)], {"batch_dims": batch})
    return Case(op, [array(shape), array([*inner, depth], np.int64, 0), array(inner + shape[depth:])], {})


@st.composite
def creations(draw: Draw) -> Case:
    op = draw(st.sampled_from(["Range", "ConstantOfShape", "OneHot", "Shape", "TopK", "ArgMax"]))
    if op == "Range":
        bounds = [draw(st.integers(-4, 9)), draw(st.integers(-4, 9)), draw(st.sampled_from([1, 1, 2, 3, -1, -2]))]
        return Case(op, [np.asarray(b, np.int64) for b in bounds], {})
    if op == "ConstantOfShape":
        return Case(op, [ints(draw(shapes()))], {})
    shape = draw(shapes(1, 3, [1, 2, 3]))
    axis = some_axis(draw, len(shape))
    if op == "OneHot":
        depth = np.asarray(draw(st.integers(1, 4)), np.int64)
        return Case(op, [array(shape, np.float32, 0), depth, array([2])], {"axis": axis})
    if op == "Shape":
        return Case(op, [array(shape)], {"start": draw(st.integers(-4, 4)), "end": draw(st.integers(-4, 4))})
    if op == "TopK":
        return Case(op, [array(shape), ints([draw(st.integers(0, shape[axis]))])], {"axis": axis}, 2)
    return Case(op, [array(shape)], {"axis": axis, "keepdims": draw(st.integers(0, 1))})


examples = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FAMILIES = {
    "broadcasting": broadcasting(),
    "matrix products": matrix_products(),
    "convolutions": convolutions(),
    "reductions": reductions(),
    "arrangements": arrangements(),
    "concatenations": concatenations(),
    "splits": splits(),
    "gathers": gathers(),
    "creations": creations(),
}


@pytest.mark.parametrize("family", FAMILIES)
@examples
@given(data=st.data())
def test_results_are_as_inferred(family: str, data: st.DataObject) -> None:
    case = data.draw(FAMILIES[family])
    results = run(case)
    check_static(case, results)
    check_symbolic(data.draw, case, results, keep=lambda e: case.op in ("Squeeze", "Unsqueeze"))


@examples
@given(data=st.data())
def test_pooling(data: st.DataObject) -> None:
    case = data.draw(pools())
    results = run(case)
    dilated = max(case.attrs["dilations"]) > 1
    check_static(
        case, results, exactly=not (dilated and "auto_pad" in case.attrs)
    )  # there, runtimes leave the standard
    check_symbolic(data.draw, case, results)


@examples
@given(data=st.data())
def test_reshape(data: st.DataObject) -> None:
    case = data.draw(reshapes())
    results = run(case)
    check_static(case, results)
    # the zeros that copy stay written
    check_symbolic(data.draw, case, results, keep=lambda e: e == 0)


@examples
@given(data=st.data())
def test_slice(data: st.DataObject) -> None:
    case = data.draw(slices())
    results = run(case)
    check_static(case, results, exactly=False)
    check_symbolic(data.draw, case, results, keep=lambda e: False)


@examples
@given(data=st.data())
def test_pad(data: st.DataObject) -> None:
    case = data.draw(pads())
    results = run(case)
    if not any(d == 0 for d in case.arrays[0].shape):  # onnxruntime has its own view of padding nothing
        check_static(case, results)
        check_symbolic(data.draw, case, results, keep=lambda e: False)
