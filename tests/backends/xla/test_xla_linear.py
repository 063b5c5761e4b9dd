"""Products, losses and steps of optimizers on XLA, beyond ONNX's own tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from jax import export

from planish.backends.xla.function import to_jax
from planish.backends.xla.integers import multiply_integers
from planish.ir import DType, Graph, tensor_type
from planish.ir.builder import make_node
from planish.ir.edit import insert_floating
from planish.ir.errors import PlanishError
from planish.ir.schema import canonical_opset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from single_node import lowered, type_of

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
TRAINING = "ai.onnx.preview.training"


def run(op: str, *arrays: Any, **attrs: Any) -> Array:
    """The first result, compiled; None leaves an operand out."""
    function = lowered(op, *(None if a is None else type_of(np.asarray(a)) for a in arrays), **attrs)
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(function.params, *(a for a in arrays if a is not None))[0])


def normal(*shape: int, dtype: Any = "f") -> Array:
    return RANDOM.normal(size=shape).astype(dtype)


# products

SHAPES = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((5, 2, 3), (3, 4)),
    ((5, 1, 2, 3), (4, 3, 2)),
    ((3,), (5, 3, 2)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_products_of_all_ranks_broadcast_like_those_of_numpy(left: Any, right: Any) -> None:
    a, b = normal(*left), normal(*right)
    np.testing.assert_allclose(run("MatMul", a, b), a @ b, rtol=1e-5, atol=1e-5)
    whole = [np.round(x * 9).astype(np.int64) for x in (a, b)]
    np.testing.assert_array_equal(run("MatMul", *whole), whole[0] @ whole[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_products_of_narrow_numbers_are_summed_in_float32(dtype: Any) -> None:
    ones = np.ones((1, 5000), dtype)
    assert run("MatMul", ones, ones.T).tolist() == [[dtype(5000)]]
    assert run("Gemm", ones, ones, -dtype(4992) * ones[:, :1], transB=1).tolist() == [[8]]
    assert run("Einsum", ones, ones, equation="ij,kj->ik").tolist() == [[dtype(5000)]]
    found = run("MatMul", ones, ones.T)
    assert found.dtype == ones.dtype


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_gradients_of_narrow_products_have_their_type(dtype: Any) -> None:
    a, b = normal(2, 3, dtype=dtype), normal(3, 4, dtype=dtype)
    function = lowered("MatMul", type_of(a), type_of(b))
    da, db = jax.grad(lambda a, b: function(function.params, a, b)[0].astype(float).sum(), (0, 1))(a, b)
    assert (da.dtype, db.dtype) == (a.dtype, b.dtype)
    exact = np.broadcast_to(b.astype(float).sum(1), (2, 3)), np.broadcast_to(a.astype(float).sum(0)[:, None], (3, 4))
    for found, expected in zip((da, db), exact, strict=True):
        np.testing.assert_allclose(np.asarray(found, float), expected, rtol=0.02, atol=0.02)


def test_gemm_transposes_scales_and_adds() -> None:
    a, b, c = normal(3, 2), normal(4, 3), normal(4)
    expected = 0.5 * a.T @ b.T + 2 * c
    np.testing.assert_allclose(run("Gemm", a, b, c, transA=1, transB=1, alpha=0.5, beta=2.0), expected, rtol=1e-5)
    np.testing.assert_allclose(run("Gemm", a.T.copy(), b, transB=1), a.T @ b.T, rtol=1e-5)
    hidden = np.full(4, np.nan, "f")
    np.testing.assert_allclose(run("Gemm", a.T.copy(), b, hidden, transB=1, beta=0.0), a.T @ b.T, rtol=1e-5)
    whole = np.array([[3]], np.int32)
    assert run("Gemm", whole, whole, whole, alpha=0.5, beta=3.0).tolist() == [[13]]


EQUATIONS = [
    "ij,jk->ik",
    "ij,jk",
    "...ij,jk->...ik",
    " b i j , b j k -> b k i ",
    "ii->i",
    "ij->",
    "Ab,bA->A",
    "i,j",
    "ij,kj,k->i",
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_reads_equations_like_numpy(equation: str) -> None:
    sizes = dict(zip("ijkbA", (3, 3, 4, 2, 5), strict=True))
    terms = [t.strip().replace(" ", "") for t in equation.partition("->")[0].split(",")]
    operands = [normal(*([2, 2] if "..." in t else []), *(sizes[c] for c in t.replace("...", ""))) for t in terms]
    expected = np.einsum(equation.replace(" ", ""), *operands)
    np.testing.assert_allclose(run("Einsum", *operands, equation=equation), expected, rtol=1e-4, atol=1e-5)


def test_einsum_of_integers_stays_in_their_type() -> None:
    a = np.array([[100, 100]], np.int8)
    assert run("Einsum", a, a, equation="ij,kj->ik").dtype == np.int8
    long = np.full((1, 3), 2**40)
    assert run("Einsum", long, long // 2**40, equation="ij,kj->ik").tolist() == [[3 * 2**40]]


def test_determinants_of_batches_and_their_gradient() -> None:
    x = normal(2, 4, 4)
    np.testing.assert_allclose(run("Det", x), np.linalg.det(x), rtol=1e-4)
    function = lowered("Det", type_of(x))
    value = torch.tensor(x, requires_grad=True)
    torch.linalg.det(value).sum().backward()
    assert value.grad is not None
    found = jax.grad(lambda x: function(function.params, x)[0].sum())(x)
    np.testing.assert_allclose(found, value.grad, rtol=1e-3, atol=1e-4)
    assert run("Det", np.array([[2, 0], [0, 3]], np.float16)).dtype == np.float16


@pytest.mark.parametrize("left", [np.uint8, np.int8])
@pytest.mark.parametrize("right", [np.uint8, np.int8])
def test_integer_products_subtract_zero_points_of_all_forms(left: Any, right: Any) -> None:
    def codes(dtype: Any, *shape: int) -> Array:
        limits = np.iinfo(dtype)
        return RANDOM.integers(limits.min, limits.max + 1, shape).astype(dtype)

    a, b = codes(left, 2, 3, 70), codes(right, 70, 4)
    exact, by = a.astype(int), b.astype(int)
    assert run("MatMulInteger", a, b).tolist() == (exact @ by).tolist()
    za, zb = codes(left), codes(right)
    expected = (exact - int(za)) @ (by - int(zb))
    assert run("MatMulInteger", a, b, za, zb).tolist() == expected.tolist()
    assert run("MatMulInteger", a, b, None, zb).tolist() == (exact @ (by - int(zb))).tolist()
    rows, columns = codes(left, 3), codes(right, 4)
    expected = (exact[0] - rows[:, None]) @ (by - columns)
    found = run("MatMulInteger", a[0], b, rows, columns)
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist()
    full = codes(left, 2, 3, 1)
    assert run("MatMulInteger", a, b, full, zb).tolist() == ((exact - full) @ (by - int(zb))).tolist()
    assert run("MatMulInteger", a[0, 0], b, za, columns).tolist() == ((exact[0, 0] - int(za)) @ (by - columns)).tolist()


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 15, 16])
def test_integer_products_run_over_whole_words(length: int, shape: tuple[int, ...]) -> None:
    """XLA for GPUs gives twice the product of int8 where the length is no multiple of 4."""
    a = RANDOM.integers(-128, 128, (*shape, length)).astype(np.int8)
    b = RANDOM.integers(-128, 128, (*shape[:-1], length, 5)).astype(np.int8)
    (product,) = [e for e in jax.make_jaxpr(multiply_integers)(a, b).eqns if e.primitive.name == "dot_general"]
    ((contracted, _), _) = product.params["dimension_numbers"]
    assert [product.invars[0].aval.shape[d] % 4 for d in contracted] == [0]
    assert multiply_integers(a, b).tolist() == (a.astype(int) @ b.astype(int)).tolist()


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("MatMul", ("b, s, 3", "b, 3, s"), {}),
        ("Gemm", ("b, 3", "3, s"), {}),
        ("Einsum", ("b, s, 3", "b, 3"), {"equation": "bsd,bd->bs"}),
        ("Det", ("b, 4, 4",), {}),
        ("MatMulInteger", ("b, s", "s, 3"), {}),
    ],
)
def test_symbolic_sizes_are_exported(op: str, shapes: tuple[str, ...], attrs: dict[str, Any]) -> None:
    numbers = {"b": 5, "s": 2}
    sizes = [[numbers.get(d.strip()) or int(d) for d in shape.split(",")] for shape in shapes]
    dtype = np.uint8 if op == "MatMulInteger" else np.float32
    arrays = [(normal(*s) * 9).astype(dtype) for s in sizes]
    zeros = [np.uint8(3), np.uint8(5)] if op == "MatMulInteger" else []
    function = lowered(op, *map(type_of, arrays), *zeros, **attrs)
    scope = export.SymbolicScope()
    specs = [jax.ShapeDtypeStruct(export.symbolic_shape(s, scope=scope), dtype) for s in shapes]
    exported = export.export(jax.jit(function))(function.params, *specs)
    expected = function(function.params, *arrays)[0]
    np.testing.assert_allclose(exported.call(function.params, *arrays)[0], expected, rtol=1e-4)


# losses

SCORES = normal(4, 5, 3)
LABELS = RANDOM.integers(0, 5, (4, 3))
WEIGHTS = np.abs(normal(5)) + 0.1


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize("ignore", [None, 2, -7])
def test_losses_and_gradients_are_those_of_torch(reduction: str, weight: Any, ignore: int | None) -> None:
    F = torch.nn.functional
    labels = np.where(LABELS == 1, ignore, LABELS) if ignore == -7 else LABELS
    function = lowered(
        "SoftmaxCrossEntropyLoss", type_of(SCORES), labels, weight, reduction=reduction, ignore_index=ignore, results=2
    )
    scores = torch.tensor(SCORES, requires_grad=True)
    options = {"reduction": reduction} | ({} if ignore is None else {"ignore_index": ignore})
    expected = F.cross_entropy(
        scores, torch.tensor(labels), None if weight is None else torch.tensor(weight), **options
    )
    expected.sum().backward()
    loss, log_prob = function(function.params, SCORES)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prob, F.log_softmax(scores, 1).detach(), rtol=1e-5, atol=1e-6)
    found = jax.grad(lambda x: function(function.params, x)[0].sum())(SCORES)
    np.testing.assert_allclose(found, scores.grad, rtol=1e-4, atol=1e-6)
    alone = lowered(
        "NegativeLogLikelihoodLoss", type_of(SCORES), labels, weight, reduction=reduction, ignore_index=ignore
    )
    np.testing.assert_allclose(alone(alone.params, log_prob)[0], expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_label_that_is_no_class_gives_nan_and_not_another_class() -> None:
    found = run("NegativeLogLikelihoodLoss", np.zeros((3, 2), "f"), np.array([0, 2, -1]), reduction="none")
    np.testing.assert_array_equal(found, [0, np.nan, np.nan])


def test_an_unknown_reduction_is_refused_up_front() -> None:
    with pytest.raises(PlanishError, match="reduction 'max': it can be none, sum or mean"):
        lowered("NegativeLogLikelihoodLoss", type_of(SCORES), type_of(LABELS), reduction="max")


def test_losses_of_a_symbolic_batch_in_float16() -> None:
    x = SCORES.astype(np.float16)
    function = lowered("SoftmaxCrossEntropyLoss", type_of(x), type_of(LABELS), WEIGHTS.astype(np.float16))
    scope = export.SymbolicScope()
    specs = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for shape, dtype in (("b, 5, s", np.float16), ("b, s", np.int32))
    ]
    exported = export.export(jax.jit(function))(function.params, *specs)
    (found,) = exported.call(function.params, x, LABELS.astype(np.int32))
    expected = torch.nn.functional.cross_entropy(torch.tensor(x).float(), torch.tensor(LABELS), torch.tensor(WEIGHTS))
    assert found.dtype == np.float16
    np.testing.assert_allclose(float(found), expected, rtol=2e-3)


# training


def steps(op: str, tensors: list[Array], rate: float, count: int, **attrs: Any) -> list[Array]:
    scalars = [np.float32(rate), np.int64(count)]
    function = lowered(f"{TRAINING}.{op}", *scalars, *map(type_of, tensors), results=attrs.pop("results"), **attrs)
    return [np.asarray(r) for r in jax.jit(function)(function.params, *tensors)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_moves_several_tensors_like_torch(nesterov: bool) -> None:
    mode = "nesterov" if nesterov else "standard"
    attrs = {"alpha": 0.9, "beta": 1.0, "mode": mode, "norm_coefficient": 0.1}
    xs = [normal(3), normal(2, 2)]
    state = [np.zeros_like(x) for x in xs]
    parameters = [torch.tensor(x, requires_grad=True) for x in xs]
    optimizer = torch.optim.SGD(parameters, 0.05, 0.9, weight_decay=0.1, nesterov=nesterov)
    for count in range(3):
        gradients = [normal(3), normal(2, 2)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        new = steps("Momentum", [*xs, *gradients, *state], 0.05, count, results=4, **attrs)
        xs, state = new[:2], new[2:]
    for x, parameter in zip(xs, parameters, strict=True):
        np.testing.assert_allclose(x, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_the_first_step_of_momentum_takes_the_whole_gradient() -> None:
    one = np.ones(1, "f")
    attrs = {"alpha": 0.9, "beta": 0.5, "mode": "standard", "norm_coefficient": 0.0, "results": 2}
    assert steps("Momentum", [one, one, 0 * one], 0.25, 0, **attrs)[0].tolist() == [0.75]
    assert steps("Momentum", [one, one, 0 * one], 0.25, 1, **attrs)[0].tolist() == [0.875]


def test_adam_moves_like_torch() -> None:
    x, mean, square = normal(4), np.zeros(4, "f"), np.zeros(4, "f")
    parameter = torch.tensor(x, requires_grad=True)
    # torch adds epsilon to the root of the corrected square, the standard to that of the plain one: it matters little
    optimizer = torch.optim.Adam([parameter], 0.01, (0.9, 0.999), eps=1e-12)
    for count in range(1, 4):
        gradient = normal(4)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        x, mean, square = steps("Adam", [x, gradient, mean, square], 0.01, count, epsilon=1e-12, results=3)
    np.testing.assert_allclose(x, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_adagrad_moves_like_torch() -> None:
    x, square = normal(4), np.zeros(4, "f")
    parameter = torch.tensor(x, requires_grad=True)
    optimizer = torch.optim.Adagrad([parameter], 0.1, lr_decay=0.5, eps=1e-6)
    for count in range(3):
        gradient = normal(4)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        x, square = steps("Adagrad", [x, gradient, square], 0.1, count, decay_factor=0.5, epsilon=1e-6, results=2)
    np.testing.assert_allclose(x, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_an_optimizer_with_an_odd_number_of_tensors_is_named() -> None:
    one = np.ones(1, "f")
    with pytest.raises(PlanishError, match="3 tensors: there must be 4 for each optimized one"):
        steps("Adam", [one, one, one], 0.1, 1, results=3)


def differentiated(xs: list[str], zs: list[str] | None, y: str, feeds: list[str]) -> Graph:
    """``h = a * a * b``, ``y = Tanh(h) * c``, and a Gradient of ``y``."""
    graph = Graph("g", opsets={"": canonical_opset(), TRAINING: 1})
    by_name = {name: graph.add_input(tensor_type(DType.FLOAT, 2), name) for name in "abc"}
    for name, op, operands in [("aa", "Mul", "a a"), ("h", "Mul", "aa b"), ("t", "Tanh", "h"), ("y", "Mul", "t c")]:
        node = make_node(op, tuple(by_name[o] for o in operands.split()), {}, name=name)
        insert_floating(node.results, graph.ret)
        node.result.name = name
        by_name[name] = node.result
    attrs = {"xs": xs, "y": y} | ({} if zs is None else {"zs": zs})
    node = make_node(f"{TRAINING}.Gradient", tuple(by_name[f] for f in feeds), attrs, len(xs))
    insert_floating(node.results, graph.ret)
    for name, result in zip(xs, node.results, strict=True):
        result.name = f"d_{name}"
    graph.set_outputs([by_name["y"], *node.results])
    return graph


A, B, C = np.array([0.5, -0.2], "f"), np.array([0.3, 2.0], "f"), np.array([3.0, -1.0], "f")


def test_a_gradient_in_the_graph_is_the_derivative_of_its_part() -> None:
    function = to_jax(differentiated(["a", "b"], ["c"], "y", ["a", "b", "c"]))
    y, da, db = jax.jit(function)(function.params, A, B, C)
    np.testing.assert_allclose(y, np.tanh(A * A * B) * C, rtol=1e-5)
    slope = C / np.cosh(A * A * B) ** 2
    np.testing.assert_allclose(da, slope * 2 * A * B, rtol=1e-5)
    np.testing.assert_allclose(db, slope * A * A, rtol=1e-5)


def test_a_gradient_is_taken_at_the_values_it_is_given_and_for_inner_values() -> None:
    function = to_jax(differentiated(["h"], ["c"], "y", ["b", "c"]))
    _, found = function(function.params, A, B, C)
    np.testing.assert_allclose(found, C / np.cosh(B) ** 2, rtol=1e-5)


def test_a_gradient_of_what_the_graph_does_not_tell_is_refused_up_front() -> None:
    with pytest.raises(PlanishError, match="'y' depends on 'c', which is neither in xs nor in zs"):
        to_jax(differentiated(["a", "b"], None, "y", ["a", "b"]))
    with pytest.raises(PlanishError, match="the graph has no value 'gone'"):
        to_jax(differentiated(["a"], None, "gone", ["a"]))
