"""Inference of nodes as hostile models have them: only `IllTyped` ever comes out, and soon."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import (
    UNKNOWN,
    DType,
    FileTensor,
    Graph,
    Node,
    SequenceType,
    Sym,
    TensorType,
    Value,
    constant,
    op,
    sym,
    tensor_type,
)
from planish.ir.edit import insert
from planish.ir.infer import IllTyped, infer
from planish.ir.infer.engine import _TYPING, infer_contents, infer_types

infer(Node("Relu", [Value()]))  # load the rules
OPS = sorted(_TYPING)
HUGE = 1 << 62

TYPES = [
    UNKNOWN,
    TensorType(DType.FLOAT, None),
    tensor_type(DType.FLOAT),
    tensor_type(DType.FLOAT, 0),
    tensor_type(DType.FLOAT, 2, 3),
    tensor_type(DType.FLOAT, HUGE, HUGE, 1),
    tensor_type(DType.FLOAT, sym("N"), None, 4, 4),
    tensor_type(DType.INT64, 3),
    tensor_type(DType.INT64),
    tensor_type(DType.INT64, sym("N") - 5),
    tensor_type(DType.STRING, 2),
    tensor_type(DType.BOOL, 1),
    tensor_type(DType.FLOAT, *([1] * 40)),
    SequenceType(tensor_type(DType.FLOAT, None, 2)),
    SequenceType(UNKNOWN),
]
CONTENTS: list[list[int]] = [
    [],
    [0],
    [-1],
    [3, -1, 0],
    [HUGE, HUGE],
    [-(1 << 63), (1 << 63) - 1],
    [1] * 40,
    [7, 7, 7, 7],
]
ATTRIBUTES = st.one_of(
    st.sampled_from([-(1 << 70), -HUGE, -1, 0, 1, 2, 7, HUGE, 1 << 70]),
    st.sampled_from(["", "axis", "NOTSET", "SAME_UPPER", "VALID", "ij,jk->ik", "...i->", "->", "💥"]),
    st.sampled_from([1.5, float("nan"), float("inf")]),
    st.lists(st.sampled_from([-HUGE, -1, 0, 1, 2, HUGE]), max_size=5).map(tuple),
    st.sampled_from([None, b"\xff", ("a",), (1.5,), UNKNOWN]),
)
NAMES = """
    allowzero auto_pad axes axis batch_dims block_size blocksize ceil_mode dilations direction dtype end equation
    group hidden_size k keepdims kernel_shape keep_aspect_ratio_policy kv_num_heads layout mode new_axis num_groups
    num_outputs num_scan_inputs output_dtype output_padding output_shape pads perm q_num_heads sample_size
    scan_input_axes shape start stash_type strides to transA transB value value_int value_ints
""".split()  # noqa: SIM905


@st.composite
def operands(draw: Any) -> list[Value | None]:
    def one() -> Value | None:
        kind = draw(st.sampled_from(["missing", "type", "type", "constant", "symbols"]))
        if kind == "missing":
            return None
        if kind == "type":
            return Value(draw(st.sampled_from(TYPES)))
        if kind == "constant":
            return constant(np.asarray(draw(st.sampled_from(CONTENTS)), np.int64))
        value = Value(tensor_type(DType.INT64, 2))
        value.content = (sym("N") - 3, draw(st.sampled_from([sym("M"), -1, HUGE])))
        return value

    return [one() for _ in range(draw(st.integers(0, 5)))]


@settings(max_examples=800, deadline=None)
@given(
    name=st.sampled_from(OPS),
    values=operands(),
    attrs=st.dictionaries(st.sampled_from(NAMES), ATTRIBUTES, max_size=5),
    results=st.integers(0, 4),
)
def test_only_ill_typed_comes_out(name: str, values: list[Value | None], attrs: dict[str, Any], results: int) -> None:
    node = Node(name, values, attrs, results)
    try:
        types = infer_types(node)
    except IllTyped:
        types = ()
    for result, type_ in zip(node.results, types, strict=False):
        result.type = type_
        for dim in (type_.shape or ()) if isinstance(type_, TensorType) else ():
            assert isinstance(dim, Sym) or type(dim) is int
    infer_contents(node)
    str(node)


@pytest.mark.parametrize("name", OPS)
def test_no_operands_no_attributes(name: str) -> None:
    infer(Node(name), strict=False)
    infer(Node(name, [None] * 9, results=5), strict=False)


def test_every_problem_is_named() -> None:
    with pytest.raises(IllTyped, match="Relu: operand 0 is missing"):
        infer(Node("Relu", [None]))
    with pytest.raises(IllTyped, match="Relu: operand 0 is seq"):
        infer(Node("Relu", [Value(SequenceType(UNKNOWN))]))
    with pytest.raises(IllTyped, match="Concat: malformed operands or attributes"):
        infer(Node("Concat", [Value(tensor_type(DType.FLOAT, 1))]))


@pytest.mark.parametrize("name", ["Mul", "Add"])
def test_expressions_do_not_explode(name: str) -> None:
    """Repeated squaring would give a polynomial of 2**60 terms."""
    x = Value(tensor_type(DType.INT64, 1))
    x.content = (sym("A") + sym("B") + 1,)
    start = time.perf_counter()
    for _ in range(60):
        x = op.Mul(x, x) if name == "Mul" else op.Add(op.Mul(x, x), x)
    assert time.perf_counter() - start < 1
    assert op.ConstantOfShape(x).rank == 1


def test_texts_do_not_explode() -> None:
    x = Value(tensor_type(DType.INT64, 1))
    x.content = (sym("A"),)
    seven = constant(np.asarray([7]))
    for _ in range(60):
        x = op.Div(op.Add(op.Mul(x, x), x), seven)
    assert x.content is not None
    assert len(str(x.content)) < 2000


def test_numbers_do_not_explode() -> None:
    x = constant(np.asarray([1 << 40]))
    for _ in range(40):
        x = op.Mul(x, x)
    assert x.content is None  # beyond 64 bits, elements wrap around


def test_nested_loops_do_not_explode() -> None:
    body: Graph | None = None
    for _ in range(12):
        outer = Graph("body")
        for name, type_ in (("i", DType.INT64), ("c", DType.BOOL)):
            outer.add_input(TensorType(type_, ()), name)
        x = outer.add_input(UNKNOWN, "x")
        grown = op.Concat(x, x, axis=0) if body is None else Node("Loop", [None, None, x], {"body": body}).result
        assert grown.producer is not None
        insert(grown.producer, outer.ret)
        outer.set_outputs([outer.inputs[1], grown])
        body = outer
    start = time.perf_counter()
    loop = Node("Loop", [None, None, Value(tensor_type(DType.FLOAT, 3, 4))], {"body": body})
    infer(loop, strict=False)
    assert time.perf_counter() - start < 5
    assert loop.result.type in (TensorType(DType.FLOAT, None), UNKNOWN)


def test_unreadable_constants_are_unknown(tmp_path: Any) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(16))
    target = Value(tensor_type(DType.INT64, 2), const=FileTensor(path, 0, DType.INT64, (2,)))
    path.unlink()
    result = op.Reshape(Value(tensor_type(DType.FLOAT, 2, 3)), target)
    assert result.rank == 2
