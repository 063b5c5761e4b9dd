"""Layers: which operators count, what their matrices are, and how patterns select them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.backends import backend
from planish.ir import DType, Graph, TensorType, constant, edit, op
from planish.ir.text import parse
from planish.passes import PassError
from planish.passes.layers import Layer, layers_of, select, tables_of


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def initializer(name: str, *shape: int, dtype: str = "float") -> str:
    values = ", ".join(map(repr, numbers(*shape).ravel().tolist()))
    return f"{dtype}[{','.join(map(str, shape))}] {name} = {{{values}}}"


def graph(inputs: str, body: str, **weights: tuple[int, ...]) -> Graph:
    constants = ", ".join(initializer(n, *s) for n, s in weights.items())
    return parse(f"g ({inputs}) => (y) <{constants}> {{ {body} }}")


# what counts as a layer

FOUND: dict[str, tuple[Graph, tuple[int, int | None], tuple[int, int]]] = {  # its axes, and the shape of the matrix
    "MatMul": (graph("float[N,4] x", "y = MatMul (x, w)", w=(4, 3)), (1, 0), (3, 4)),
    "MatMul of rank 3": (graph("float[B,N,4] x", "y = MatMul (x, w)", w=(4, 3)), (1, 0), (3, 4)),
    "MatMul of rank 1": (graph("float[4] x", "y = MatMul (x, w)", w=(4, 3)), (1, 0), (3, 4)),
    "Gemm": (graph("float[N,4] x", "y = Gemm (x, w, c)", w=(4, 3), c=(3,)), (1, 0), (3, 4)),
    "Gemm, turned": (graph("float[N,4] x", "y = Gemm <transB = 1> (x, w)", w=(3, 4)), (0, 1), (3, 4)),
    "Gemm, beta": (graph("float[N,4] x", "y = Gemm <beta = 0.5> (x, w, c)", w=(4, 3), c=(3,)), (1, 0), (3, 4)),
    "Conv": (graph("float[N,4,9,9] x", "y = Conv (x, w)", w=(5, 4, 3, 2)), (0, None), (5, 24)),
    "Conv of one dimension": (graph("float[N,4,9] x", "y = Conv (x, w)", w=(5, 4, 3)), (0, None), (5, 12)),
    "Conv in groups": (graph("float[N,4,9] x", "y = Conv <group = 2> (x, w)", w=(6, 2, 3)), (0, None), (6, 6)),
    "depthwise Conv": (graph("float[N,4,9] x", "y = Conv <group = 4> (x, w)", w=(4, 1, 3)), (0, None), (4, 3)),
    "ConvTranspose": (graph("float[N,4,9] x", "y = ConvTranspose (x, w)", w=(4, 5, 3)), (1, None), (5, 12)),
}  # fmt: skip
NOT_FOUND = {
    "a product of two values": graph("float[N,4] x, float[4,3] w", "y = MatMul (x, w)"),
    "a constant on the left": graph("float[4,N] x", "y = MatMul (w, x)", w=(3, 4)),
    "a weight of rank 3": graph("float[2,N,4] x", "y = MatMul (x, w)", w=(2, 4, 3)),
    "a vector": graph("float[N,4] x", "y = MatMul (x, w)", w=(4,)),
    "a transposed left factor": graph("float[4,N] x", "y = Gemm <transA = 1> (x, w)", w=(4, 3)),
    "a factor": graph("float[N,4] x", "y = Gemm <alpha = 0.5> (x, w)", w=(4, 3)),
    "a kernel that is computed": graph("float[N,4,9] x, float[5,4,3] w", "y = Conv (x, w)"),
    "a ConvTranspose in groups": graph("float[N,4,9] x", "y = ConvTranspose <group = 2> (x, w)", w=(4, 5, 3)),
    "constants": graph("float[N] x", "a = MatMul (v, w) y = Add (a, x)", v=(3, 4), w=(4, 1)),
    "another operator": graph("float[N,4] x", "y = Mul (x, w)", w=(4,)),
    "a quantized weight": graph(
        "float[N,4] x", 'v = planish.FakeQuantize <format = "int8"> (w, s) y = MatMul (x, v)', w=(4, 3), s=(3,)
    ),
    "a quantized activation": graph(
        "float[N,4] x", 'v = planish.FakeQuantize <format = "uint8"> (x) y = MatMul (v, w)', w=(4, 3)
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_layers_are_found(case: str) -> None:
    g, axes, shape = FOUND[case]
    (layer,) = layers_of(g)
    assert (layer.out_axis, layer.in_axis) == axes
    assert layer.matrix().shape == shape
    assert (layer.node.given(0), layer.node.given(1)) == (layer.x, layer.weight)


@pytest.mark.parametrize("case", NOT_FOUND)
def test_what_is_no_layer(case: str) -> None:
    assert layers_of(NOT_FOUND[case]) == []


@pytest.mark.parametrize("case", [c for c in FOUND if not c.startswith("Conv in") and "depthwise" not in c])
def test_a_row_of_the_matrix_makes_an_output_channel(case: str) -> None:
    """Scaling a row scales that channel of the output, and no other."""
    g, _, shape = FOUND[case]
    (layer,) = layers_of(g)
    (value,) = g.inputs
    x = {"x": numbers(*(d if isinstance(d, int) else 2 for d in value.shape or ()))}
    bias = layer.node.operand(2)
    if bias is not None:
        edit.set_operand(layer.node, 2, constant(np.zeros(shape[0], np.float32)))
    run = backend("reference").run
    before = run(g, x)["y"]
    factors = np.arange(1, shape[0] + 1, dtype=np.float32)
    edit.set_operand(layer.node, 1, constant(layer.restored(layer.matrix() * factors[:, None])))
    channels = -1 if layer.in_axis is not None else 1
    expected = np.moveaxis(np.moveaxis(before, channels, -1) * factors, -1, channels)
    np.testing.assert_allclose(run(g, x)["y"], expected, rtol=1e-5, atol=1e-5)


def test_layers_are_in_order_and_nested_ones_are_among_them() -> None:
    constants = ", ".join(initializer(n, 3, 3) for n in "uvw")
    g = parse(f"""g (bool c, float[N,3] x) => (float[N,3] y) <{constants}> {{
        [first] a = MatMul (x, u)
        [branch] b = If (c) <
          then_branch = t () => (float[N,3] p) {{ [inner] p = MatMul (a, v) }},
          else_branch = e () => (float[N,3] q) {{ q = Relu (a) }}>
        [last] y = Gemm <transB = 1> (b, w) }}""")
    layers = layers_of(g)
    assert [layer.name for layer in layers] == ["first", "inner", "last"]
    assert [layer.node.graph is g for layer in layers] == [True, False, True]


@pytest.mark.parametrize("dtype", [DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE, DType.INT32])
def test_numbers_of_up_to_32_bits_count(dtype: DType) -> None:
    g = Graph("g")
    x = g.add_input(TensorType(dtype, (2, 4)), "x")
    y = op.MatMul(x, constant(numbers(4, 3).astype(dtype.numpy), dtype))
    edit.insert_floating([y], g.ret)
    g.set_outputs([y])
    layers = layers_of(g)
    assert len(layers) == (dtype in (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16))
    for layer in layers:
        assert layer.matrix().dtype == np.float32
        assert layer.restored(layer.matrix()).dtype == dtype.numpy


def test_a_weight_that_two_layers_share_is_the_weight_of_both() -> None:
    g = graph("float[N,3] x", "a = MatMul (x, w) y = MatMul (a, w)", w=(3, 3))
    first, second = layers_of(g)
    assert first.weight is second.weight
    assert first != second


# matrices

KINDS = {  # rank, out axis, in axis, and whether the kernel follows
    "MatMul": (2, 1, 0),
    "Gemm": (2, 0, 1),
    "Conv": (4, 0, None),
    "Conv of three dimensions": (5, 0, None),
    "ConvTranspose": (4, 1, None),
}


@given(
    st.sampled_from(list(KINDS)),
    st.lists(st.integers(1, 4), min_size=5, max_size=5),
    st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
)
def test_a_matrix_comes_back_as_the_weight(kind: str, sizes: list[int], dtype: Any) -> None:
    rank, out_axis, in_axis = KINDS[kind]
    shape = tuple(sizes[:rank])
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    weight = constant(array)
    layer = Layer(op.Identity(weight).producer, weight, weight, out_axis, in_axis)
    matrix = layer.matrix()
    assert matrix.shape == (shape[out_axis], array.size // shape[out_axis])
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    for i in range(shape[out_axis]):
        np.testing.assert_array_equal(matrix[i], np.take(array, i, out_axis).ravel().astype(np.float32))
    restored = layer.restored(matrix)
    assert (restored.dtype, restored.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(restored, array)
    assert restored.flags.c_contiguous


# selecting


def net() -> list[Layer]:
    """Layers called stem, blocks.0.fc, blocks.1.fc, and one without a name, of module head."""
    weights = {"a": (5, 3, 3, 3), "b": (5, 5), "c": (5, 5), "d": (5, 2)}
    g = graph(
        "float[N,3,3,3] x",
        "p = Conv (x, a) f = Flatten (p) q = MatMul (f, b) r = Gemm <transB = 1> (q, c) y = MatMul (r, d)",
        **weights,
    )
    stem, _, first, second, last = g.nodes
    stem.name, first.name, second.name = "stem", "blocks.0.fc", "blocks.1.fc"
    last.metadata = {"pkg.torch.onnx.name_scopes": "['', 'head', 'head.proj', 'linear']"}
    return layers_of(g)


@pytest.mark.parametrize(
    ("only", "skip", "expected"),
    [
        ((), (), ["stem", "blocks.0.fc", "blocks.1.fc", "y"]),
        (("stem",), (), ["stem"]),
        (("blocks.*",), (), ["blocks.0.fc", "blocks.1.fc"]),
        (("blocks.?.fc", "stem"), (), ["stem", "blocks.0.fc", "blocks.1.fc"]),
        (("blocks.[1-9]*",), (), ["blocks.1.fc"]),
        (("MatMul",), (), ["blocks.0.fc", "y"]),
        (("head.*",), (), ["y"]),
        (("y",), (), ["y"]),
        ((), ("Conv", "*.1.*"), ["blocks.0.fc", "y"]),
        (("blocks.*",), ("Gemm",), ["blocks.0.fc"]),
        (("stem",), ("stem",), []),
        (("*",), (), ["stem", "blocks.0.fc", "blocks.1.fc", "y"]),
    ],
)
def test_patterns_match_names_operators_and_modules(
    only: tuple[str, ...], skip: tuple[str, ...], expected: list[str]
) -> None:
    assert [layer.name for layer in select(net(), only, skip)] == expected


@pytest.mark.parametrize(
    ("only", "skip", "pattern"), [(("steam",), (), "steam"), ((), ("STEM",), "STEM"), (("stem", "Relu"), (), "Relu")]
)
def test_a_pattern_that_matches_nothing_is_an_error(only: tuple[str, ...], skip: tuple[str, ...], pattern: str) -> None:
    message = f"no layer matches '{pattern}'; the first of 4 layers are stem, blocks.0.fc, blocks.1.fc"
    with pytest.raises(PassError) as error:
        select(net(), only, skip)
    assert str(error.value) == message


def test_no_layers_at_all() -> None:
    assert select([], (), ()) == []
    with pytest.raises(PassError, match="no layer matches 'x'; the first of 0 layers are none"):
        select([], ("x",), ())


# tables


@pytest.mark.parametrize(
    ("shape", "attrs", "dtype", "found"),
    [
        ((1 << 10, 16), {}, DType.FLOAT, True),
        ((1 << 10, 16), {"axis": 0}, DType.FLOAT16, True),
        ((1 << 10, 15), {}, DType.FLOAT, False),  # small
        ((1 << 10, 16), {"axis": 1}, DType.FLOAT, False),
        ((1 << 10, 4, 4), {}, DType.FLOAT, False),
        ((1 << 10, 16), {}, DType.INT64, False),
    ],
)
def test_tables_are_large_constant_matrices(
    shape: tuple[int, ...], attrs: dict[str, int], dtype: DType, found: bool
) -> None:
    g = Graph("g")
    rows = op.Gather(
        constant(np.zeros(shape, dtype.numpy), dtype), g.add_input(TensorType(DType.INT64, ("N",)), "i"), **attrs
    )
    edit.insert_floating([rows], g.ret)
    g.set_outputs([rows])
    assert tables_of(g, {"Gather"}) == ([rows.producer] if found else [])
    assert tables_of(g, set()) == []
