"""Methods that quantize weights: that results lie on their grids, and are better than rounding to nearest."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir.quantization import fake_quantize, parse_format
from planish.passes.quantize.weights.adaround import adaround
from planish.passes.quantize.weights.awq import awq_scales
from planish.passes.quantize.weights.clipping import SHRINKS
from planish.passes.quantize.weights.gptq import gptq
from planish.passes.quantize.weights.grids import Grid, grid_for, output_error, row_errors
from planish.passes.quantize.weights.hqq import hqq

INT4, INT8, UINT4 = parse_format("int4"), parse_format("int8"), parse_format("uint4")
SCHEMES = {
    "int4 rows": {"format": INT4},
    "int3 rows": {"format": parse_format("int3")},
    "int4 tensor": {"format": INT4, "granularity": "tensor"},
    "uint4 blocks": {"format": UINT4, "granularity": 20, "symmetric": False},
    "uint3 rows": {"format": parse_format("uint3"), "symmetric": False},
    "int3 blocks": {"format": parse_format("int3"), "granularity": 20, "method": "mse"},
    "e2m1 blocks": {"format": parse_format("float4e2m1"), "granularity": 20},
}
INTEGERS = [name for name in SCHEMES if not name.startswith("e")]


def layer(outputs=32, inputs=48, samples=500, seed=0):
    """A weight, and correlated inputs: their spectrum decays, and a few channels are ten times as large."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, inputs)) / np.sqrt(np.arange(1, inputs + 1))
    x = x @ rng.standard_normal((inputs, inputs))
    x[:, rng.choice(inputs, 2, replace=False)] *= 10
    weight = rng.standard_t(6, (outputs, inputs)) * rng.lognormal(-3, 0.3, (outputs, 1))
    return weight.astype(np.float32), x


def fit_of(scheme):
    return partial(grid_for, **SCHEMES[scheme])


def block_squares(weight, rounded, block):
    """The squared error of each block of each row."""
    squares = np.square(rounded.astype(np.float64) - weight)
    return np.add.reduceat(squares, np.arange(0, weight.shape[1], block), axis=1)


def rounded_by(method, weight, x, fit):
    """What each method makes of a layer, and the numbers that it was rounded to, with their grid."""
    hessian = x.T @ x
    if method == "adaround":
        grid = fit(weight)
        result = adaround(weight, hessian, grid, iterations=300)
        return result, result, grid
    if method == "awq":
        scales, result, grid = awq_scales(weight, np.abs(x).mean(axis=0), hessian, fit)
        return result, grid.apply(weight * scales), grid
    result, grid = gptq(weight, hessian, fit, order=method == "gptq with order")
    return result, result, grid


# grids


def test_symmetric_grid_covers_the_range_of_each_row():
    weight = np.array([[1.0, -7.0, 3.4], [0.5, 0.3, -0.1]], np.float32)
    grid = grid_for(weight, INT4)
    np.testing.assert_allclose(grid.scale, [1.0, 0.5 / 7], rtol=1e-6)
    assert (grid.zero_point, grid.block_size, grid.scale.dtype) == (None, 0, np.float32)
    np.testing.assert_array_equal(grid.round(weight).astype(int), [[1, -7, 3], [7, 4, -1]])
    np.testing.assert_array_equal(grid.apply(weight)[0], [1, -7, 3])


def test_asymmetric_grid_holds_zero():
    weight = np.array([[1.0, 4.0, 3.0], [-1.0, -4.0, -3.0], [-5.0, 10.0, 2.0]], np.float32)
    grid = grid_for(weight, UINT4, symmetric=False)
    np.testing.assert_allclose(grid.scale, [4 / 15, 4 / 15, 1], rtol=1e-6)
    np.testing.assert_array_equal(grid.zero_point.astype(int), [0, 15, 5])
    assert grid.zero_point.dtype == UINT4.storage.numpy
    np.testing.assert_array_equal(grid.apply(np.zeros_like(weight)), 0)
    signed = grid_for(weight, INT4, symmetric=False)
    np.testing.assert_array_equal(signed.zero_point.astype(int), [-8, 7, -3])
    np.testing.assert_array_equal(signed.apply(weight), grid.apply(weight))


def test_symmetric_codes_avoid_the_lowest():
    weight, _ = layer()
    for granularity in ("tensor", "row", 7):
        codes = grid_for(weight, INT8, granularity=granularity).round(weight).astype(int)
        assert (np.abs(codes).max(), codes.min() >= -127) == (127, True)


def test_shapes_follow_the_granularity():
    weight, _ = layer(5, 12)
    for granularity, shape in {"tensor": (), "row": (5,), 5: (5, 3), 12: (5, 1), 100: (5, 1)}.items():
        grid = grid_for(weight, UINT4, granularity=granularity, symmetric=False)
        assert grid.scale.shape == grid.zero_point.shape == shape
        assert grid.block_size == (granularity if isinstance(granularity, int) else 0)
        assert grid.apply(weight).shape == weight.shape


def test_blocks_are_rows_of_their_own():
    weight, _ = layer(4, 24)
    blocks, rows = (grid_for(weight, INT4, granularity=8), grid_for(weight.reshape(12, 8), INT4))
    np.testing.assert_array_equal(blocks.scale.reshape(-1), rows.scale)
    np.testing.assert_array_equal(blocks.apply(weight).reshape(12, 8), rows.apply(weight.reshape(12, 8)))
    for index in (0, 7, 8, 23):
        column = weight[:, index : index + 1]
        np.testing.assert_array_equal(blocks.column(index).apply(column)[:, 0], blocks.apply(weight)[:, index])


@pytest.mark.parametrize("format", [INT4, UINT4, parse_format("float4e2m1")], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_mse_is_the_best_of_what_it_tries(format, weighted):
    weight, x = layer(6, 20)
    importance = np.square(x).mean(axis=0) if weighted else np.ones(20)
    symmetric = format.is_signed
    minmax = partial(grid_for, format=format, symmetric=symmetric)
    grid = minmax(weight, method="mse", importance=importance if weighted else None)

    def errors(rounded):
        return (np.square(rounded.astype(np.float64) - weight) * importance).sum(axis=1)

    tried = [errors(minmax(weight * np.float32(part)).apply(weight)) for part in SHRINKS]
    np.testing.assert_allclose(errors(grid.apply(weight)), np.min(tried, axis=0), rtol=1e-5)
    assert (errors(grid.apply(weight)) <= errors(minmax(weight).apply(weight))).all()


@pytest.mark.parametrize("granularity", ["tensor", "row", 20])
@pytest.mark.parametrize("bits", [3, 4])
def test_mse_beats_minmax(granularity, bits):
    weight, _ = layer()
    grids = [grid_for(weight, parse_format(f"int{bits}"), granularity=granularity, method=m) for m in ("minmax", "mse")]
    minmax, mse = (np.square(g.apply(weight) - weight).sum() for g in grids)
    assert mse < (0.97 if granularity == 20 else 0.9) * minmax


def test_mse_in_blocks_weighs_each_column():
    """A block cut short, and importance that differs between blocks: each is what it would be alone."""
    weight, x = layer(5, 20)
    importance = np.square(x).mean(axis=0)
    fit = partial(grid_for, format=INT4, method="mse")
    blocks = fit(weight, granularity=8, importance=importance)
    for i, start in enumerate((0, 8, 16)):
        part = slice(start, start + 8)
        np.testing.assert_array_equal(blocks.scale[:, i], fit(weight[:, part], importance=importance[part]).scale)
    np.testing.assert_array_equal(
        fit(weight, granularity="tensor", importance=importance).scale,
        fit(weight.reshape(1, -1), importance=np.tile(importance, 5)).scale[0],
    )


# weights that are better than rounded to nearest


@pytest.mark.parametrize("scheme", INTEGERS)
@pytest.mark.parametrize("method", ["gptq", "gptq with order", "awq", "adaround"])
def test_beats_rounding_to_nearest(method, scheme):
    weight, x = layer()
    fit, hessian = fit_of(scheme), x.T @ x
    result, _, _ = rounded_by(method, weight, x, fit)
    nearest = output_error(weight, fit(weight).apply(weight), hessian)
    assert output_error(weight, result, hessian) < (0.95 if method == "awq" else 0.7) * nearest


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["gptq", "gptq with order", "awq", "adaround"])
def test_results_lie_on_their_grid(method, scheme):
    if method == "adaround" and scheme not in INTEGERS:
        return
    weight, x = layer()
    _, rounded, grid = rounded_by(method, weight, x, fit_of(scheme))
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(grid.apply(rounded), rounded)
    np.testing.assert_array_equal(grid.values(grid.round(rounded)), rounded)
    axis = 1 if grid.block_size else 0
    as_operator = fake_quantize(rounded, grid.scale, grid.zero_point, grid.format, axis, grid.block_size)
    np.testing.assert_array_equal(as_operator, rounded)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hqq_has_a_smaller_p_norm_and_no_larger_squares(scheme):
    weight, _ = layer(64, 60)
    first = fit_of(scheme)(weight)
    grid = hqq(weight, first)
    before, after = first.apply(weight), grid.apply(weight)
    fitted = SCHEMES[scheme].get("method") == "mse"  # then there is little to gain
    norms = [(np.abs(w.astype(np.float64) - weight) ** 0.7).sum() for w in (before, after)]
    assert norms[1] < (1 if fitted else 0.98) * norms[0]
    block = grid.block_size or weight.shape[1]
    squares = [block_squares(weight, w, block) for w in (before, after)]
    if not grid.scale.ndim:
        squares = [s.sum() for s in squares]
    assert (squares[1] <= squares[0] * (1 + 1e-9)).all()
    assert grid.zero_point is first.zero_point
    np.testing.assert_array_equal(grid.apply(after), after)


def test_hqq_does_not_depend_on_the_unit():
    weight, _ = layer()
    scales = [hqq(weight * unit, grid_for(weight * unit, INT4)).scale / unit for unit in np.float32([1, 2**-20, 2**40])]
    np.testing.assert_array_equal(scales[0], scales[1])
    np.testing.assert_array_equal(scales[0], scales[2])


# gptq


def test_gptq_without_correlation_rounds_to_nearest():
    weight, _ = layer()
    grid = grid_for(weight, INT4)
    result, same = gptq(weight, np.diag(np.arange(1.0, 49)), grid)
    np.testing.assert_array_equal(result, grid.apply(weight))
    assert same is grid


def test_gptq_makes_up_for_what_it_rounds():
    """Two equal inputs: what the first column rounds away, the second takes over."""
    grid = Grid(np.float32(1), None, INT8)
    result, _ = gptq(np.float32([[0.4, 0.4], [1.3, 1.3]]), np.ones((2, 2)), grid, damping=1e-6)
    np.testing.assert_array_equal(result, [[0, 1], [1, 2]])


@pytest.mark.parametrize("scheme", ["int4 rows", "uint4 blocks"])
def test_gptq_does_not_depend_on_how_many_columns_wait(scheme):
    weight, x = layer()
    results = [gptq(weight, x.T @ x, fit_of(scheme), block=block) for block in (1, 7, 20, 1000)]
    for result, grid in results[1:]:
        np.testing.assert_array_equal(result, results[0][0])
        np.testing.assert_array_equal(grid.scale, results[0][1].scale)


def test_gptq_does_not_depend_on_the_unit_of_the_hessian():
    weight, x = layer()
    results = [gptq(weight, factor * (x.T @ x), fit_of("int4 rows"))[0] for factor in (1, 2, 2.0**-30)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_gptq_chooses_scales_of_blocks_when_it_comes_to_them():
    weight, x = layer()
    fit, hessian = fit_of("uint4 blocks"), x.T @ x
    static = fit(weight)
    moved, ordered = gptq(weight, hessian, fit)[1], gptq(weight, hessian, fit, order=True)[1]
    np.testing.assert_array_equal(moved.scale[:, 0], static.scale[:, 0])
    assert (moved.scale[:, 1:] != static.scale[:, 1:]).mean() > 0.9
    np.testing.assert_array_equal(ordered.scale, static.scale)
    assert gptq(weight, hessian, static)[1] is static


def test_gptq_equals_optimal_brain_quantization_in_order():
    """The recurrence of the paper, written with inverses of the Hessian that shrink (equations 2 and 3)."""
    weight, x = layer(8, 16)
    hessian = x.T @ x
    grid = grid_for(weight, INT4)
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(16)
    rest, inverse = weight.astype(np.float64), np.linalg.inv(hessian)
    for i in range(16):
        rounded = grid.apply(rest[:, i : i + 1].astype(np.float32))[:, 0]
        rest = rest - np.outer((rest[:, i] - rounded) / inverse[i, i], inverse[i])
        rest[:, i] = rounded
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    result, _ = gptq(weight, x.T @ x, grid)
    np.testing.assert_allclose(result, rest, atol=1e-9)


# adaround, awq


def test_adaround_goes_up_or_down():
    weight, x = layer()
    grid = grid_for(weight, INT4, granularity=20)
    result = adaround(weight, x.T @ x, grid, iterations=300)
    steps = np.abs(result - weight) / np.repeat(grid.scale, 20, axis=1)[:, :48]
    assert steps.max() < 1 + 1e-5
    assert (steps > 0.5 + 1e-5).mean() > 0.05


def test_adaround_is_never_worse_than_nearest():
    weight, x = layer()
    grid, hessian = grid_for(weight, INT4), x.T @ x
    nearest = row_errors(grid.apply(weight).astype(np.float64) - weight, hessian)
    for iterations in (1, 5, 50):
        result = adaround(weight, hessian, grid, iterations=iterations)
        assert (row_errors(result.astype(np.float64) - weight, hessian) <= nearest).all()


def test_adaround_is_deterministic():
    weight, x = layer()
    grid, hessian = grid_for(weight, INT4), x.T @ x
    result = adaround(weight, hessian, grid, iterations=100)
    np.testing.assert_array_equal(adaround(weight, hessian, grid, iterations=100), result)


def test_awq_protects_large_inputs():
    weight, x = layer()
    mean = np.abs(x).mean(axis=0)
    scales, result, grid = awq_scales(weight, mean, x.T @ x, fit_of("int4 rows"))
    np.testing.assert_array_equal(result, grid.apply(weight * scales) / scales)
    assert (np.argsort(scales) == np.argsort(mean)).all()
    np.testing.assert_allclose(scales.min() * scales.max(), 1, rtol=1e-5)
    exponents = np.log(scales / scales[0])[1:] / np.log(mean / mean[0])[1:]
    np.testing.assert_allclose(exponents, exponents[0], rtol=1e-3)
    assert exponents[0] * 20 == pytest.approx(round(exponents[0] * 20), abs=1e-3)


def test_awq_leaves_equal_inputs_alone():
    weight, _ = layer()
    scales, result, _ = awq_scales(weight, np.ones(48), np.eye(48), fit_of("int4 rows"))
    np.testing.assert_array_equal(scales, 1)
    np.testing.assert_array_equal(result, fit_of("int4 rows")(weight).apply(weight))


# inputs that say nothing, or the wrong thing


@pytest.mark.parametrize("method", ["gptq", "gptq with order", "awq", "adaround"])
@pytest.mark.parametrize("dead", [[3, 40], list(range(48))], ids=["some", "all"])
def test_dead_inputs(method, dead):
    weight, x = layer()
    x[:, dead] = 0
    fit = fit_of("int4 rows")
    result, _, grid = rounded_by(method, weight, x, fit)
    assert np.isfinite(result).all()
    if method != "awq" or len(dead) == 48:
        np.testing.assert_array_equal(result[:, dead], grid.apply(weight)[:, dead])
    if len(dead) < 48:
        assert output_error(weight, result, x.T @ x) < output_error(weight, fit(weight).apply(weight), x.T @ x)
    else:
        assert output_error(weight, result, x.T @ x) == 0


def test_damping_rescues_a_singular_hessian():
    weight, x = layer()
    hessian = x[:10].T @ x[:10]
    grid = grid_for(weight, INT4)
    assert np.linalg.matrix_rank(hessian) == 10
    result, _ = gptq(weight, hessian, grid)
    assert output_error(weight, result, hessian) < 0.7 * output_error(weight, grid.apply(weight), hessian)
    with pytest.raises(ValueError, match="not positive definite with damping 0; more may help"):
        gptq(weight, hessian - 1e-3 * np.eye(48), grid, damping=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad):
    weight, x = layer()
    hessian = x.T @ x
    grid = grid_for(weight, INT4)
    wrong_weight, wrong_hessian, mean = weight.copy(), hessian.copy(), np.abs(x).mean(axis=0)
    wrong_weight[1, 2], wrong_hessian[4, 5] = bad, bad
    fit = fit_of("int4 rows")
    for call in (
        lambda: fit(wrong_weight),
        lambda: hqq(wrong_weight, grid),
        lambda: gptq(wrong_weight, hessian, grid),
        lambda: adaround(wrong_weight, hessian, grid),
        lambda: awq_scales(wrong_weight, mean, hessian, fit),
        lambda: output_error(weight, wrong_weight, hessian),
    ):
        with pytest.raises(ValueError, match="the weight holds numbers that are not finite"):
            call()
    for call in (
        lambda: gptq(weight, wrong_hessian, grid),
        lambda: adaround(weight, wrong_hessian, grid),
        lambda: awq_scales(weight, mean, wrong_hessian, fit),
        lambda: output_error(weight, weight, wrong_hessian),
    ):
        with pytest.raises(ValueError, match="the Hessian holds numbers that are not finite"):
            call()
    with pytest.raises(ValueError, match="mean_abs_x is"):
        awq_scales(weight, mean * bad, hessian, fit)
    with pytest.raises(ValueError, match="importance is"):
        grid_for(weight, INT4, method="mse", importance=mean * bad)


def test_wrong_arguments():
    weight, x = layer()
    for arguments, message in (
        ({"format": UINT4}, "uint4 cannot be symmetric"),
        ({"format": parse_format("float8e4m3fn"), "symmetric": False}, "float8e4m3fn cannot be asymmetric"),
        ({"format": INT4, "granularity": 0}, "granularity is"),
        ({"format": INT4, "granularity": "column"}, "granularity is"),
        ({"format": INT4, "method": "entropy"}, "the method is"),
        ({"format": INT4, "method": "mse", "importance": np.ones(3)}, r"importance is \[48\]"),
        ({"format": INT4, "method": "mse", "importance": -np.ones(48)}, "importance is"),
    ):
        with pytest.raises(ValueError, match=message):
            grid_for(weight, **arguments)
    with pytest.raises(ValueError, match=r"a weight is a matrix \[out, in\], not \[48\]"):
        grid_for(weight[0], INT4)
    with pytest.raises(ValueError, match=r"the Hessian of 48 inputs is \[48, 48\], not \[48, 47\]"):
        gptq(weight, (x.T @ x)[:, :-1], grid_for(weight, INT4))
    with pytest.raises(ValueError, match="AdaRound rounds to integers, not to float4e2m1"):
        adaround(weight, x.T @ x, grid_for(weight, parse_format("float4e2m1")))


def test_output_error_is_the_error_of_outputs():
    weight, x = layer()
    other = grid_for(weight, INT4).apply(weight)
    outputs, others = x @ weight.T.astype(np.float64), x @ other.T.astype(np.float64)
    expected = np.square(others - outputs).sum() / np.square(outputs).sum()
    assert output_error(weight, other, 2 * x.T @ x) == pytest.approx(expected, rel=1e-6)
    assert output_error(weight, weight, x.T @ x) == 0
    assert output_error(np.zeros_like(weight), other, x.T @ x) == np.inf


# any shape, any magnitude


@st.composite
def weights(draw):
    """A weight, some of whose rows are zero or constant, in any unit."""
    outputs, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.standard_normal((outputs, inputs))
    for row in range(outputs):
        kind = draw(st.sampled_from(["random", "random", "zero", "constant", "positive"]))
        weight[row] = {
            "random": weight[row],
            "zero": np.zeros(inputs),
            "constant": np.full(inputs, weight[row, 0]),
            "positive": np.abs(weight[row]),
        }[kind]
    return (weight * 10.0 ** draw(st.integers(-44, 37))).astype(np.float32)


schemes = st.fixed_dictionaries(
    {
        "format": st.sampled_from(["int2", "int4", "int8", "int16"]).map(parse_format),
        "granularity": st.one_of(st.sampled_from(["tensor", "row"]), st.integers(1, 25)),
        "symmetric": st.booleans(),
        "method": st.sampled_from(["minmax", "minmax", "mse"]),
    }
)


@settings(max_examples=80, deadline=None)
@given(weights(), schemes)
def test_grids_of_any_weight(weight, scheme):
    grid = grid_for(weight, **scheme)
    assert (grid.scale > 0).all()
    assert np.isfinite(grid.scale).all()
    rounded = grid.apply(weight)
    np.testing.assert_array_equal(rounded[weight == 0], 0)
    np.testing.assert_array_equal(grid.apply(rounded), rounded)
    if scheme["method"] == "minmax":
        step = np.broadcast_to(grid.scale, weight.shape[:1]) if grid.scale.ndim < 2 else grid.scale.max(axis=1)
        room = 0.5 if scheme["symmetric"] else 1  # the zero point is rounded, too
        assert (np.abs(rounded.astype(np.float64) - weight) <= step[:, None] * (room + 0.01)).all()
    refined = hqq(weight, grid)
    assert np.isfinite(refined.apply(weight)).all()
    assert (refined.scale > 0).all()


@settings(max_examples=60, deadline=None)
@given(weights(), schemes, st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([1e-8, 1.0, 1e8]))
def test_methods_take_any_weight(weight, scheme, samples, seed, unit):
    """More inputs than samples or fewer, of any unit: results are finite, on the grid, and no worse where promised."""
    x = np.random.default_rng(seed).standard_normal((samples, weight.shape[1])) * unit
    hessian, fit = x.T @ x, partial(grid_for, **scheme)
    grid = fit(weight)
    nearest = row_errors(grid.apply(weight).astype(np.float64) - weight, hessian)
    for method in ("gptq", "gptq with order"):
        result, on = gptq(weight, hessian, fit, block=8, order=method != "gptq")
        assert np.isfinite(result).all()
        np.testing.assert_array_equal(on.apply(result), result)
        assert on.scale.shape == grid.scale.shape
    result = adaround(weight, hessian, grid, iterations=20)
    np.testing.assert_array_equal(grid.apply(result), result)
    assert (row_errors(result.astype(np.float64) - weight, hessian) <= nearest).all()
    scales, result, _ = awq_scales(weight, np.abs(x).mean(axis=0), hessian, fit, points=3)
    assert result.dtype == scales.dtype == np.float32
    assert (np.isfinite(scales) & (scales > 0)).all()
    assert row_errors(result.astype(np.float64) - weight, hessian).sum() <= nearest.sum()
