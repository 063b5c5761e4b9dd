"""Inference rules on the cases that matter most, by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planish.ir import (
    UNKNOWN,
    Dim,
    DType,
    Graph,
    Node,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    Value,
    constant,
    op,
    parse_dim,
    tensor_type,
)
from planish.ir.dims import fresh_integer
from planish.ir.edit import insert_floating
from planish.ir.infer import IllTyped, content, contents, infer, infer_graph, infer_types, typing
from planish.ir.infer.engine import _CONTENT, _CONTENTS, _TYPING


def shape_of(text: str) -> tuple[Dim, ...]:
    return tuple(parse_dim(d) for d in text.split(", ")) if text else ()


def t(text: str, dtype: DType = DType.FLOAT) -> Value:
    """A value of ``dtype`` with the shape ``text``: ``N, 3, ?``."""
    return Value(TensorType(dtype, shape_of(text)))


def vector(*elements: Any, dtype: DType = DType.INT64) -> Value:
    """A vector of known elements; texts are symbolic."""
    found = Value(tensor_type(dtype, len(elements)))
    found.content = tuple(parse_dim(e) if isinstance(e, str) else e for e in elements)
    return found


def scalar(element: Any) -> Value:
    found = Value(tensor_type(DType.INT64))
    found.content = (parse_dim(element) if isinstance(element, str) else element,)
    return found


def ints(*elements: int) -> Value:
    return constant(np.asarray(elements, np.int64))


def dims(value: Value) -> str:
    """The shape as text; ``?`` for unknown sizes, ``*`` for an unknown rank."""
    if value.shape is None:
        return "*"
    return ", ".join("?" if not isinstance(d, int) and d.mentions_anonymous else str(d) for d in value.shape)


# the engine


def test_types_of_operands_are_passed_on_as_objects() -> None:
    x = t("N, 3, 224, 224")
    same = op.Sigmoid(op.Relu(x))
    assert same.type is x.type
    assert op.Add(x, same).type is x.type
    assert op.Add(x, t("3, 1, 1")).type is x.type
    assert op.Mul(t("1"), x).type is x.type


def test_what_is_more_precise_already_stays() -> None:
    node = Node("NonZero", [t("4, 4")], results=[tensor_type(DType.INT64, 2, 7)])
    assert infer(node) is False
    assert node.result.shape == (2, 7)
    node = Node("Relu", [t("N, 4")], results=[TensorType(DType.UNDEFINED, shape_of("5, ?"))])
    assert infer(node) is True
    assert node.result.type == tensor_type(DType.FLOAT, 5, 4)
    assert infer(node) is False


def test_results_that_contradict_are_ill_typed() -> None:
    node = Node("Relu", [t("N, 4")], results=[tensor_type(DType.FLOAT, 5, 3)])
    with pytest.raises(IllTyped, match="stated as"):
        infer(node)
    assert infer(node, strict=False) is False
    assert node.result.shape == (5, 3)


def test_unknown_operators_have_unknown_results() -> None:
    node = Node("com.example.Foo", [t("2")], results=2)
    assert infer_types(node) == (UNKNOWN, UNKNOWN)


def test_known_elements_stay_when_inferred_again() -> None:
    node = Node("Concat", [vector("N"), Value(tensor_type(DType.INT64, 1))], {"axis": 0})
    assert infer(node) is True
    first = node.result.content
    assert first is not None
    assert str(first[0]) == "N"
    assert infer(node) is False
    assert node.result.content is first


def test_rules_of_others() -> None:
    """The three decorators, as an extension uses them."""
    try:

        @typing("test.Pair")
        def pair_type(node: Node) -> tuple[Type, ...]:
            return (tensor_type(DType.INT64, 1), tensor_type(DType.INT64, 1))

        @contents("test.Pair")
        def pair_contents(node: Node) -> Any:
            return ((1,), (2,))

        @typing("test.One")
        def one_type(node: Node) -> Type:
            return tensor_type(DType.INT64)

        @content("test.One")
        def one_content(node: Node) -> Any:
            return (1, 2)  # not what the type says: left out

        one, pair = Node("test.One"), Node("test.Pair", results=2)
        infer(one)
        infer(pair)
        assert one.result.content is None
        assert [r.content for r in pair.results] == [(1,), (2,)]
    finally:
        for table in (_TYPING, _CONTENT, _CONTENTS):
            for name in ("test.Pair", "test.One"):
                table.pop(name, None)  # type: ignore[attr-defined]


# broadcasting and products


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [
        ("N, 3", "N, 3", "N, 3"),
        ("N, 1", "1, M", "N, M"),
        ("N, 3", "7, 3", "7, 3"),
        ("N, 3", "1, 3", "N, 3"),
        ("N", "M", "?"),
        ("N, M", "M", "N, M"),
        ("", "N, 2", "N, 2"),
        ("0, 3", "1, 3", "0, 3"),
        ("N, 3", "0, 3", "0, 3"),
        ("N, S, 768", "1, min(512,S), 768", "N, S, 768"),
        ("2*N", "2*N", "2*N"),
    ],
)
def test_broadcasting(a: str, b: str, result: str) -> None:
    assert dims(op.Add(t(a), t(b))) == result
    assert dims(op.Add(t(b), t(a))) == result


@pytest.mark.parametrize(
    "build",
    [
        lambda: op.Add(t("2, 3"), t("2, 4")),
        lambda: op.Add(t("2, 0"), t("2, 4")),
        lambda: op.Add(t("2"), t("2", DType.INT64)),
        lambda: op.Add(t("2", DType.BOOL), t("2", DType.BOOL)),
        lambda: op.Sqrt(t("2", DType.INT32)),
        lambda: op.Where(t("2"), t("2"), t("2")),
        lambda: op.And(t("2"), t("2")),
        lambda: op.MatMul(t("2, 3"), t("4, 5")),
        lambda: op.MatMul(t("2, 3"), t("")),
        lambda: op.MatMul(t("2, 4, 3"), t("3, 3, 5")),
        lambda: op.Gemm(t("2, 3"), t("3, 1"), t("2")),
        lambda: op.Gemm(t("2, 3"), t("3, 4"), t("1, 2, 4")),
        lambda: op.Gemm(t("2, 3"), t("4, 3"), transA=0, transB=0),
        lambda: op.Conv(t("1, 3, 8, 8"), t("4, 4, 3, 3")),
        lambda: op.Conv(t("1, 4, 8, 8"), t("3, 2, 3, 3"), group=2),
        lambda: op.Conv(t("1, 3, 8, 8"), t("4, 3, 3, 3"), t("3")),
        lambda: op.Conv(t("1, 3, 2, 2"), t("4, 3, 3, 3")),
        lambda: op.Conv(t("1, 3, 8, 8"), t("4, 3, 3, 3"), strides=[0, 1]),
        lambda: op.Concat(t("2, 3"), t("2"), axis=0),
        lambda: op.Concat(t("2, 3"), t("2, 4"), axis=0),
        lambda: op.Concat(t("2, 3"), t("2, 3"), axis=2),
        lambda: op.Reshape(t("2, 3"), ints(7)),
        lambda: op.Reshape(t("2, 3"), ints(4, -1)),
        lambda: op.Reshape(t("N, 3"), ints(-1, -1)),
        lambda: op.Reshape(t("2, 3"), ints(2, 3, 0)),
        lambda: op.Reshape(t("2, 3"), ints(-2, 3)),
        lambda: op.Transpose(t("2, 3"), perm=[0, 0]),
        lambda: op.Transpose(t("2, 3"), perm=[0]),
        lambda: op.Squeeze(t("2, 3"), ints(0)),
        lambda: op.Unsqueeze(t("2, 3"), ints(0, 0)),
        lambda: op.Unsqueeze(t("2, 3"), ints(3)),
        lambda: op.Softmax(t("2, 3"), axis=2),
        lambda: op.Gather(t("2, 3"), t("2")),
        lambda: op.Gather(t("2, 3"), t("2", DType.INT64), axis=-3),
        lambda: op.Slice(t("5"), ints(0), ints(2), ints(0), ints(0)),
        lambda: op.Slice(t("5"), ints(0), ints(2, 3)),
        lambda: op.Split(t("5"), ints(2, 2), outputs=2),
        lambda: op.Pad(t("2"), ints(-3, 0)),
        lambda: op.Range(scalar(0), scalar(5), scalar(0)),
        lambda: op.Expand(t("3"), ints(2)),
        lambda: op.LayerNormalization(t("2, 8"), t("7")),
        lambda: op.BatchNormalization(t("1, 3, 4, 4"), t("3"), t("4"), t("3"), t("3")),
        lambda: op.TopK(t("3"), ints(4)),
        lambda: op.Einsum(t("2, 3"), equation="ij,jk->ik"),
        lambda: op.Attention(t("1, 4, 7, 8"), t("1, 3, 7, 8"), t("1, 3, 7, 8")),
        lambda: op.Attention(t("1, 7, 32"), t("1, 7, 32"), t("1, 7, 32")),
    ],
)
def test_contradictions(build: Any) -> None:
    with pytest.raises(IllTyped):
        build()


HALVES = "N, 64, floordiv(H + 1,2), floordiv(W + 1,2)"
PATCHES = "N, 8, floordiv(H,16), floordiv(W,16)"


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (lambda: op.MatMul(t("N, S, 768"), t("768, 3072")), "N, S, 3072"),
        (lambda: op.MatMul(t("N, 12, S, 64"), t("N, 12, 64, S")), "N, 12, S, S"),
        (lambda: op.MatMul(t("N, 1, S, 64"), t("H, 64, T")), "N, H, S, T"),
        (lambda: op.MatMul(t("64"), t("N, 64, 3")), "N, 3"),
        (lambda: op.MatMul(t("N, 64"), t("64")), "N"),
        (lambda: op.Gemm(t("K, M"), t("N, K"), t("N"), transA=1, transB=1), "M, N"),
        (lambda: op.Gemm(t("2, 3"), t("3, 4"), t("2, 1")), "2, 4"),
        (lambda: op.Einsum(t("b, h, q, d"), t("b, h, k, d"), equation="bhqd,bhkd->bhqk"), "b, h, q, k"),
        (lambda: op.Einsum(t("2, N, 3"), t("3, 4"), equation="...i,ij"), "2, N, 4"),
        (lambda: op.Conv(t("N, 3, H, W"), t("64, 3, 7, 7"), strides=[2, 2], pads=[3, 3, 3, 3]), HALVES),
        (lambda: op.Conv(t("N, 3, H, W"), t("8, 3, 16, 16"), strides=[16, 16]), PATCHES),
        (
            lambda: op.Conv(t("N, 6, H, 9"), t("8, 3, 3, 3"), group=2, auto_pad="SAME_UPPER", strides=[1, 2]),
            "N, 8, H, 5",
        ),
        (lambda: op.ConvTranspose(t("N, 6, H, 9"), t("6, 4, 2, 2"), group=2, strides=[2, 2]), "N, 8, 2*H, 18"),
        (lambda: op.AveragePool(t("N, 6, 7, 7"), kernel_shape=[99, 99], ceil_mode=1, strides=[99, 99]), "N, 6, 1, 1"),
        (lambda: op.MaxPool(t("N, 6, H, 8"), kernel_shape=[2, 3], ceil_mode=1, strides=[2, 2]), "N, 6, ?, 4"),
        (lambda: op.GlobalAveragePool(t("N, 6, H, W")), "N, 6, 1, 1"),
    ],
)
def test_products_and_windows(value: Any, result: str) -> None:
    assert dims(value()) == result


def test_attention() -> None:
    node = Node("Attention", [t("N, S, 512"), t("N, T, 128"), t("N, T, 64"), None, t("N, 2, P, 64"), t("N, 2, P, 32")],
                {"q_num_heads": 8, "kv_num_heads": 2}, 4)  # fmt: skip
    infer(node)
    assert [dims(r) for r in node.results] == ["N, S, 256", "N, 2, P + T, 64", "N, 2, P + T, 32", "N, 8, S, P + T"]


# arranging


@pytest.mark.parametrize(
    ("shape", "target", "result"),
    [
        ("N, S, 768", ("N", "S", 12, 64), "N, S, 12, 64"),
        ("N, S, 768", (0, 0, 12, 64), "N, S, 12, 64"),
        ("N, S, 768", (0, -1, 12, 64), "N, S, 12, 64"),
        ("N, S, 768", ("N", -1), "N, 768*S"),
        ("N, S, 12, 64", (0, 0, -1), "N, S, 768"),
        ("N, S, 12, 64", (-1, 64), "12*N*S, 64"),
        ("N, 768, 14, 14", ("N", 768, -1), "N, 768, 196"),
        ("N*S, 768", ("N", "S", -1), "N, S, 768"),
        ("2, 3, 4", (-1,), "24"),
        ("N, 4", (2, -1), "2, 2*N"),
        ("N, 3", (2, -1), "2, N + floordiv(N,2)"),
        ("2, 3", ("?~", 3), "2, 3"),
        ("N, 3", ("?~", "?~"), "?, ?"),
        ("N, 3", ("K - 1", 3), "N, 3"),
        ("N, 3", ("K - 1", "N"), "?, N"),
        ("K - 1, 3", ("K - 1", 1, 3), "K - 1, 1, 3"),
        ("0, 3", (0, 1, 3), "0, 1, 3"),
    ],
)
def test_reshape(shape: str, target: tuple[Any, ...], result: str) -> None:
    wanted = vector(*[0 if d == "?~" else d for d in target])
    assert wanted.content is not None
    wanted.content = tuple(fresh_integer() if d == "?~" else c for d, c in zip(target, wanted.content, strict=True))
    assert dims(op.Reshape(t(shape), wanted)) == result


def test_reshape_to_what_is_unknown() -> None:
    assert dims(op.Reshape(t("N, 3"), Value(tensor_type(DType.INT64, 4)))) == "?, ?, ?, ?"
    assert dims(op.Reshape(t("N, 3"), Value(tensor_type(DType.INT64, 1)))) == "3*N"
    assert dims(op.Reshape(t("N, 3"), Value(tensor_type(DType.INT64, None)))) == "*"
    assert dims(op.Reshape(Value(TensorType(DType.FLOAT, None)), vector(2, -1, 0))) == "2, ?, ?"


BIG = (1 << 63) - 1


@pytest.mark.parametrize(
    ("size", "start", "end", "step", "result"),
    [
        ("N", 1, BIG, 1, "max(0,N - 1)"),
        ("N", 0, -1, 1, "max(0,N - 1)"),
        ("N", 0, BIG, 1, "N"),
        ("N", -1, BIG, 1, "min(1,N)"),
        ("N", 0, "N", 1, "N"),
        ("512", 0, "S", 1, "min(512,S)"),
        ("P + S", "P", BIG, 1, "S"),
        ("P + S", "P", "P + S", 1, "S"),
        ("N", 0, BIG, 2, "floordiv(N + 1,2)"),
        ("N", -1, -BIG, -1, "N"),
        ("N", 2, 7, 1, "max(0,min(7,N) - 2)"),
        ("N + 9", 2, 7, 1, "5"),
        ("10", "A - B", 7, 1, "?"),
        ("10", -3, BIG, 2, "2"),
    ],
)
def test_slice(size: str, start: Any, end: Any, step: int, result: str) -> None:
    assert dims(op.Slice(t(size), vector(start), vector(end), ints(0), ints(step))) == result


def test_unknown_axes_keep_the_rank() -> None:
    unknown = Value(tensor_type(DType.INT64, 1))
    assert dims(op.Slice(t("N, 3"), ints(0), ints(1), unknown)) == "?, ?"
    assert dims(op.Slice(t("N, 3"), unknown, unknown, ints(1))) == "N, ?"
    assert dims(op.ReduceSum(t("N, 3"), unknown)) == "?, ?"
    assert dims(op.ReduceSum(t("N, 3"), unknown, keepdims=0)) == "?"
    assert dims(op.Unsqueeze(t("N, 3"), unknown)) == "?, ?, ?"
    assert dims(op.Squeeze(t("N, 1"), unknown)) == "?"
    assert dims(op.Squeeze(t("N, 1"))) == "*"


def test_other_arrangements() -> None:
    assert dims(op.Concat(t("N, 3"), t("M, 3"), axis=0)) == "M + N, 3"
    assert dims(op.Concat(t("N, 3"), Value(), axis=0)) == "?, 3"
    assert [dims(v) for v in op.Split(t("6*N, 2"), axis=0, num_outputs=3)] == ["2*N, 2"] * 3
    assert [dims(v) for v in op.Split(t("N"), num_outputs=2)] == ["floordiv(N + 1,2)", "N - floordiv(N + 1,2)"]
    assert [dims(v) for v in op.Split(t("N"), vector("A", 2), outputs=2)] == ["A", "2"]
    assert dims(op.Expand(t("1, 3"), vector("N", 1))) == "N, 3"
    assert dims(op.Tile(t("N, 3"), vector(2, "K"))) == "2*N, 3*K"
    assert dims(op.Pad(t("N, H"), ints(0, 1, 0, 2))) == "N, H + 3"
    assert dims(op.Flatten(t("N, 3, H, W"), axis=2)) == "3*N, H*W"
    assert dims(op.DepthToSpace(t("N, 12, H, W"), blocksize=2)) == "N, 3, 2*H, 2*W"
    assert dims(op.Resize(t("N, 3, H, 7"), None, constant(np.asarray([1, 1, 2, 0.5], np.float32)))) == "N, 3, 2*H, 3"
    assert dims(op.GatherND(t("N, S, 8"), t("N, K, 1", DType.INT64), batch_dims=1)) == "N, K, 8"
    assert dims(op.OneHot(t("N", DType.INT64), scalar(10), t("2"))) == "N, 10"
    assert dims(op.Range(scalar(0), scalar("S"), scalar(1))) == "S"
    assert dims(op.Range(scalar(2), scalar("S"), scalar(3))) == "floordiv(max(0,S - 2) + 2,3)"
    assert dims(op.NonZero(t("N, 3"))) == "2, ?"


# contents


def elements(value: Value) -> str | None:
    if value.content is None:
        return None
    return " ".join("?" if not isinstance(e, int) and e.mentions_anonymous else str(e) for e in value.content)


def test_sizes_flow_from_shape_to_reshape() -> None:
    x = t("N, S, 768")
    batch, length = op.Gather(op.Shape(x), scalar(0)), op.Shape(x, start=1, end=2)
    target = op.Concat(op.Unsqueeze(batch, ints(0)), length, ints(12), ints(-1), axis=0)
    assert elements(target) == "N S 12 -1"
    assert dims(op.Reshape(x, target)) == "N, S, 12, 64"


def test_expand_as_torch_exports_it() -> None:
    """``x.expand(n, -1)``: where the wanted size is -1, take 1."""
    wanted = vector("N", -1)
    ones = op.ConstantOfShape(op.Shape(wanted), value=constant(np.asarray([1])).const)
    chosen = op.Where(op.Equal(wanted, op.Mul(ones, ints(-1))), ones, wanted)
    assert elements(chosen) == "N 1"
    assert dims(op.Expand(t("1, 5"), chosen)) == "N, 5"


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (lambda: op.Div(ints(-7, 7, -8), ints(2, -2, 2)), "-3 -3 -4"),
        (lambda: op.Div(vector("6*N", "N", "N - 1"), ints(3, 3, 3)), "2*N floordiv(N,3) ?"),
        (lambda: op.Div(ints(1), ints(0)), None),
        (lambda: op.Mod(ints(-7, 7), ints(3, -3)), "2 -2"),
        (lambda: op.Mod(ints(-7, 7), ints(3, -3), fmod=1), "-1 1"),
        (lambda: op.Add(vector("N", 2), ints(1)), "N + 1 3"),
        (lambda: op.Sub(vector("N", "N"), vector("N", "M")), "0 -M + N"),
        (lambda: op.Max(vector("N", "N"), ints(0, 3)), "N max(3,N)"),
        (lambda: op.Min(vector("N + 1", "N"), ints(0, 3)), "0 min(3,N)"),
        (lambda: op.Neg(vector("N", 3)), "-N -3"),
        (lambda: op.Abs(vector("N", -3)), "N 3"),
        (lambda: op.Equal(vector("N", "N", "N", 3), vector("N", "M", -1, 4)), "1 ? 0 0"),
        (lambda: op.Less(vector("N", "N", "N"), vector("N + 1", 0, 5)), "1 0 ?"),
        (lambda: op.GreaterOrEqual(vector("N", "N"), ints(0, 1)), "1 ?"),
        (lambda: op.Not(op.Equal(vector("N", 2), ints(-1, 2))), "1 0"),
        (lambda: op.And(op.Equal(vector("N", "N"), ints(-1, 2)), op.Equal(ints(2, 2), ints(2, 2))), "0 ?"),
        (lambda: op.Or(op.Equal(vector("N", "N"), ints(-1, 2)), op.Equal(ints(2, 2), ints(2, 2))), "1 1"),
        (lambda: op.Where(op.Equal(vector("N", 1), vector(3, 1)), vector("N", "M"), vector("K", 0)), "? M"),
        (lambda: op.Cast(vector("N", -1), to=int(DType.INT32)), "N -1"),
        (lambda: op.Cast(vector("N", 3), to=int(DType.INT8)), None),
        (lambda: op.Cast(vector("N + 1", 0, "N"), to=int(DType.BOOL)), "1 0 ?"),
        (lambda: op.Cast(constant(np.asarray([-1.5, 2.5], np.float32)), to=int(DType.INT64)), "-1 2"),
        (lambda: op.ReduceProd(vector("N", 3, "M"), keepdims=0), "3*M*N"),
        (lambda: op.ReduceSum(vector("N", 3), ints(0)), "N + 3"),
        (lambda: op.ReduceMax(vector("N", 0)), "N"),
        (lambda: op.Size(t("N, 3")), "3*N"),
        (lambda: op.Range(scalar("N"), scalar("N + 3"), scalar(1)), "N N + 1 N + 2"),
        (lambda: op.Slice(vector("A", "B", "C"), ints(-1), ints(-BIG), ints(0), ints(-1)), "C B A"),
        (lambda: op.Gather(vector("A", "B", "C"), ints(-1, 0)), "C A"),
        (lambda: op.Pad(vector("A", "B"), ints(1, -1), scalar(7)), "7 A"),
        (lambda: op.Tile(vector("A", 1), ints(2)), "A 1 A 1"),
        (lambda: op.Expand(vector("A"), ints(3)), "A A A"),
        (lambda: op.Transpose(op.Reshape(vector("A", "B", "C", "D"), ints(2, 2))), "A C B D"),
        (lambda: op.ScatterElements(vector("A", "B"), ints(1), ints(9)), "A 9"),
        (lambda: op.ScatterND(vector("A", "B"), op.Unsqueeze(ints(0), ints(1)), ints(9)), "9 B"),
        (lambda: op.Split(vector("A", "B", "C"), ints(1, 2), outputs=2)[1], "B C"),
        (lambda: op.Identity(vector("A")), "A"),
        (lambda: op.Concat(vector("A"), Value(tensor_type(DType.INT64, 1)), axis=0), "A ?"),
        (lambda: op.Mul(ints(1 << 62), ints(4)), None),
        (lambda: Node("Constant", attrs={"value_ints": (3, 4)}).result, None),
    ],
)
def test_contents(value: Any, result: str | None) -> None:
    assert elements(value()) == result


def test_sizes_are_not_negative_but_differences_may_be() -> None:
    """``N - 1`` is -1 for an empty ``N``, which Reshape would take for "the rest"."""
    shorter = op.Sub(vector("N"), ints(1))
    assert elements(shorter) == "N - 1"
    assert dims(op.Reshape(t("N, 2"), op.Concat(shorter, vector("N"), axis=0))) == "?, N"
    assert elements(op.GreaterOrEqual(shorter, ints(0))) is None
    assert elements(op.GreaterOrEqual(op.Max(shorter, ints(0)), ints(0))) == "1"


# bodies


def body(inputs: list[Type], build: Any) -> Graph:
    graph = Graph("body")
    values = [graph.add_input(type_, f"x{i}") for i, type_ in enumerate(inputs)]
    outputs = build(*values)
    insert_floating(outputs, graph.ret)
    graph.set_outputs(outputs)
    return graph


def test_if_keeps_what_its_branches_share() -> None:
    x = t("N, 3")
    then = body([], lambda: (op.Relu(x), op.Concat(x, x, axis=0)))
    other = body([], lambda: (op.Neg(x), op.Concat(x, x, axis=1)))
    node = Node("If", [t("", DType.BOOL)], {"then_branch": then, "else_branch": other}, 2)
    infer(node)
    assert [dims(r) for r in node.results] == ["N, 3", "?, ?"]
    known = Node("If", [constant(np.asarray(True))], {"then_branch": then, "else_branch": other}, 2)
    infer(known)
    assert [dims(r) for r in known.results] == ["N, 3", "2*N, 3"]


def test_if_of_two_types_is_ill_typed() -> None:
    branches = {
        "then_branch": body([], lambda: (op.Cast(t("2"), to=7),)),
        "else_branch": body([], lambda: (op.Relu(t("2")),)),
    }
    with pytest.raises(IllTyped, match="branches give"):
        infer(Node("If", [t("", DType.BOOL)], branches))


def loop(inputs: list[Value], build: Any, results: int, trips: Value | None = None) -> Node:
    graph = body([UNKNOWN] * (len(inputs) + 2), build)
    return Node("Loop", [trips, None, *inputs], {"body": graph}, results)


def test_loop_keeps_what_every_iteration_keeps() -> None:
    node = loop(
        [t("N, 3"), t("1, 4"), t("2")],
        lambda i, c, same, grows, rank: (
            c,
            op.Relu(same),
            op.Concat(grows, grows, axis=0),
            op.Unsqueeze(rank, ints(0)),
            op.Neg(same),
        ),
        4,
        trips=scalar(5),
    )
    infer_graph(node.attrs["body"])
    infer(node)
    assert [dims(r) for r in node.results] == ["N, 3", "?, 4", "*", "5, N, 3"]
    inner = node.attrs["body"].inputs
    assert [dims(v) for v in inner] == ["", "", "N, 3", "?, 4", "*"]
    before = [str(r.type) for r in node.results]
    assert infer(node) is False
    assert [str(r.type) for r in node.results] == before


def test_loop_carrying_the_same_size_twice() -> None:
    """Two values that start equal need not stay so."""
    node = loop([t("2"), t("2")], lambda i, c, a, b: (c, op.Concat(a, b, axis=0), b), 2)
    infer(node)
    assert [dims(r) for r in node.results] == ["?", "2"]
    swapped = loop([t("2"), t("3")], lambda i, c, a, b: (c, b, a), 2)
    infer(swapped)
    assert [dims(r) for r in swapped.results] == ["?", "?"]
    assert swapped.results[0].shape != swapped.results[1].shape


def test_loop_stopped_by_its_condition_has_unknown_length() -> None:
    node = loop([t("2")], lambda i, c, a: (op.Less(i, scalar(3)), a, a), 2, trips=scalar(9))
    infer(node)
    assert [dims(r) for r in node.results] == ["2", "?, 2"]


def test_contents_in_a_loop_are_those_of_every_iteration() -> None:
    node = loop([vector(4)], lambda i, c, n: (c, op.Add(n, ints(1)), op.Expand(t("1"), n)), 2)
    infer(node)
    assert node.results[0].content is None
    assert dims(node.results[1]) == "?, ?"


def test_scan() -> None:
    graph = body([UNKNOWN, UNKNOWN], lambda state, x: (op.Add(state, x), op.Concat(x, x, axis=0)))
    attrs = {"body": graph, "num_scan_inputs": 1, "scan_input_axes": (1,), "scan_output_axes": (-1,)}
    node = Node("Scan", [t("4"), t("4, T")], attrs, 2)
    infer(node)
    assert [dims(r) for r in node.results] == ["4", "8, T"]


# sequences and optionals


def test_sequences() -> None:
    pieces = op.SplitToSequence(t("6, N"), scalar(2), axis=0)
    assert pieces.type == SequenceType(tensor_type(DType.FLOAT, 2, parse_dim("N")))
    assert dims(op.SequenceAt(pieces, scalar(0))) == "2, N"
    mixed = op.SequenceConstruct(t("2, 3"), t("4, 3"))
    first, second = op.SequenceAt(mixed, scalar(0)), op.SequenceAt(mixed, scalar(1))
    assert dims(first) == dims(second) == "?, 3"
    assert first.shape != second.shape  # two elements of unknown, not of equal size
    assert dims(op.ConcatFromSequence(mixed, axis=0)) == "?, 3"
    assert dims(op.ConcatFromSequence(mixed, axis=0, new_axis=1)) == "?, ?, 3"
    assert op.SequenceInsert(op.SequenceEmpty(dtype=1), t("2")).type == SequenceType(TensorType(DType.FLOAT, None))
    with pytest.raises(IllTyped, match="not a sequence"):
        op.SequenceAt(t("2"), scalar(0))


def test_optionals() -> None:
    some = op.Optional(t("2, N"))
    assert some.type == OptionalType(tensor_type(DType.FLOAT, 2, parse_dim("N")))
    assert dims(op.OptionalGetElement(some)) == "2, N"
    assert op.OptionalHasElement(some).type == tensor_type(DType.BOOL)


# everything else


def test_onnx_infers_the_rest() -> None:
    boxes = op.NonMaxSuppression(t("1, 10, 4"), t("1, 2, 10"))
    assert (boxes.dtype, dims(boxes)) == (DType.INT64, "?, 3")
    pooled = op.MaxRoiPool(t("N, 3, H, W"), t("K, 5"), pooled_shape=[2, 2])
    assert dims(pooled) == "K, 3, 2, 2"
    labels = op.domain("ai.onnx.ml").LabelEncoder(t("N, 3", DType.STRING), keys_strings=["a"], values_int64s=[1])
    assert labels.dtype is DType.INT64
    with pytest.raises(IllTyped):
        op.MaxRoiPool(t("1, 3, 8, 8"), t("4, 6"), pooled_shape=[2])
