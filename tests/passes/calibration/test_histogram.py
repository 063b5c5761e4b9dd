"""Histograms against numpy on all the data at once, and ranges against brute force."""

import json
import math
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planish.ir import DType
from planish.ir.quantization import dequantize, fake_quantize, parse_format, quantize
from planish.passes import PassError
from planish.passes.calibration.histogram import BINS, Histogram
from planish.passes.quantize.ranges import METHODS, expected_error, parameters, range_of

INT8, UINT8, INT4, UINT4 = (parse_format(n) for n in ("int8", "uint8", "int4", "uint4"))
FORMATS = [INT8, UINT8, INT4, UINT4, *(parse_format(n) for n in ("int3", "uint16", "float8e4m3fn", "float4e2m1"))]
EXACT = ("exponent", "count", "zeros", "nans", "infinities", "sentinels", "min", "max", "updates", "counts")

numbers = st.floats(-(2.0**30), 2.0**30, width=32, allow_subnormal=False) | st.sampled_from(
    [0.0, -0.0, np.nan, np.inf, -np.inf, -1e9, float(np.finfo(np.float32).min), 1e-38, -1e-38, 1e8, 2.0**-20]
)
arrays = st.lists(numbers, max_size=40).map(lambda x: np.array(x, np.float32))


def histogram(*parts, **options):
    found = Histogram(**options)
    for part in parts:
        found.update(np.asarray(part))
    return found


def merged(parts):
    found = Histogram()
    for part in parts:
        found.merge(part)
    return found


def exact(h):
    data = h.to_dict()
    return {name: data.get(name) for name in EXACT}


def heavy_tailed(n=50_000):
    return np.random.default_rng(0).standard_t(3, n).astype(np.float32)


# what a histogram holds


@settings(deadline=None)
@given(st.lists(arrays, max_size=5), st.randoms())
def test_neither_split_nor_order_matters(parts, random):
    whole = histogram(np.concatenate([np.zeros(0, np.float32), *parts]))
    random.shuffle(parts)
    streamed, joined = histogram(*parts), merged([histogram(p) for p in parts])
    assert exact(streamed) == exact(joined)
    assert exact(streamed) | {"updates": None} == exact(whole) | {"updates": None}
    assert joined.sum == pytest.approx(whole.sum, rel=1e-9, abs=1e-6)
    assert joined.sum_squares == pytest.approx(whole.sum_squares, rel=1e-9)


@settings(deadline=None)
@given(arrays)
def test_counts_are_those_of_numpy(x):
    h = histogram(x)
    kept = x[np.isfinite(x) & (np.abs(x) < 1e9)].astype(np.float64)
    assert h.count == len(kept) == h.counts.sum()
    assert h.nans == np.isnan(x).sum()
    assert h.infinities == np.isinf(x).sum()
    assert h.count + h.nans + h.infinities + h.sentinels == x.size
    assert h.zeros == (kept == 0).sum()
    assert h.counts.tolist() == np.bincount(np.floor(kept / h.width).astype(int) + BINS // 2, minlength=BINS).tolist()
    if len(kept):
        assert (h.min, h.max) == (kept.min(), kept.max())
        assert np.abs(kept).max() <= h.width * BINS / 2
        assert h.sum == pytest.approx(kept.sum(), rel=1e-9, abs=1e-6)
        assert h.sum_squares == pytest.approx((kept**2).sum(), rel=1e-9)


def test_the_width_is_the_smallest_that_fits():
    assert histogram([1.0, 3.0]).width == 4 / 2048
    assert histogram([-4.0]).width == 8 / 2048
    assert histogram([1e-3], [0.0]).width == histogram([0.0], [1e-3]).width


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "bool"])
def test_types(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(dtype)
    h = histogram(x[:, ::2])
    assert exact(h) == exact(histogram(x[:, ::2].astype(np.float64)))
    assert h.count == 100


@pytest.mark.parametrize("x", [np.array([1j]), np.array(["a"]), np.array([None])])
def test_what_is_no_number(x):
    with pytest.raises(TypeError):
        Histogram().update(x)


@pytest.mark.parametrize(
    ("dtype", "lowest"),
    [("float16", -65504), ("float16", -6e4), ("bfloat16", -3.38e38), ("float32", -1e9), ("float64", -1.7e308)],
)
def test_masks_are_left_out(dtype, lowest):
    x = np.array([1, -2, lowest, lowest], getattr(ml_dtypes, dtype, dtype))
    h = histogram(x)
    assert (h.count, h.sentinels, h.min, h.max) == (2, 2, -2, 1)
    assert histogram(x, sentinel=2).sentinels == 3
    assert histogram(x, sentinel=math.inf).count == 4


def test_moving_average_and_how_merging_weighs_it():
    h = histogram([-1.0, 2.0], [np.nan], [], [0.0, 12.0], momentum=0.5)
    assert (h.updates, h.average_min, h.average_max) == (2, -0.5, 7.0)
    h.merge(histogram([4.0]))
    assert (h.updates, h.average_min, h.average_max) == pytest.approx((3, 1, 6))
    h.merge(Histogram())
    assert h.updates == 3
    assert range_of(h, "moving-average", format=INT8) == pytest.approx((0, 6))


@settings(deadline=None)
@given(arrays)
def test_json_round_trip(x):
    h = histogram(x, x[:3], momentum=0.75)
    again = Histogram.from_dict(json.loads(json.dumps(h.to_dict(), allow_nan=False)))
    assert again.to_dict() == h.to_dict()
    again.update(x)
    h.update(x)
    assert again.to_dict() == h.to_dict()


@pytest.mark.parametrize("data", [{}, {"counts": [[1], [2]], "more": 1}, {"counts": [[BINS], [1]]}, {"counts": 3}])
def test_json_of_something_else(data):
    with pytest.raises((TypeError, ValueError, LookupError)):
        Histogram.from_dict(data)


def test_update_is_fast():
    """Some 4 ms for a million elements; the limit allows for a loaded machine."""
    x = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        Histogram().update(x)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.05


# ranges


@settings(deadline=None)
@given(arrays, st.sampled_from(METHODS), st.sampled_from(FORMATS), st.booleans())
@example(np.array([1e-38], np.float32), "mse", UINT8, False)
@example(np.full(5, 1e8, np.float32), "entropy", INT8, True)
@example(np.array([-1e-45, 1e8], np.float32), "mse", UINT8, False)
def test_every_range_is_usable(x, method, format, symmetric):
    h = histogram(x)
    low, high = range_of(h, method, format=format, symmetric=symmetric)
    assert low <= 0 <= high
    if symmetric:
        assert low == -high
    if h.count:
        bound = max(-h.min, h.max, 0)
        assert min(h.min, 0, -bound if symmetric else 0) <= low
        assert high <= max(h.max, 0, bound if symmetric else 0)
    check_parameters(low, high, format, symmetric)


@settings(deadline=None)
@given(st.floats(-3e38, 0), st.floats(0, 3e38), st.sampled_from(FORMATS), st.booleans())
def test_zero_is_exact(low, high, format, symmetric):
    check_parameters(low, high, format, symmetric)


def check_parameters(low, high, format, symmetric):
    scale, zero = parameters(low, high, format, symmetric)
    assert scale.dtype == np.float32
    assert zero.dtype == format.storage.numpy
    assert np.isfinite(scale)
    assert scale >= np.finfo(np.float32).tiny
    assert fake_quantize(np.zeros(1, np.float32), scale, zero, format) == 0
    ends = np.array([low, high], np.float64)
    error = np.abs(fake_quantize(ends, scale, zero, format) - ends).max()
    steps = 0.51 if format.is_integer else format.high / 4
    assert error <= steps * scale + 1e-6 * max(-low, high)


def test_parameters_of_channels():
    scale, zero = parameters(np.array([-1.0, 0, 0]), np.array([1.55, 0, 51]), UINT8, False)
    np.testing.assert_allclose(scale, np.array([0.01, 1, 0.2], np.float32))
    assert zero.tolist() == [100, 0, 0]
    scale, zero = parameters([-12.7, 2], [1, 6.35], UINT8, True)
    np.testing.assert_allclose(scale, np.array([0.1, 0.05], np.float32))
    assert zero.tolist() == [128, 128]


@pytest.mark.parametrize("value", [3.7, -3.7, 1e-30, -1e8, 1.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", [INT8, UINT8, INT4])
def test_a_constant_is_represented_well(value, method, format):
    x = np.full(1000, value, np.float32)
    low, high = range_of(histogram(x), method, format=format)
    scale, zero = parameters(low, high, format, False)
    np.testing.assert_allclose(fake_quantize(x, scale, zero, format), x, rtol=2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [[], [0.0] * 5, [np.nan], [-np.inf, -1e9]])
def test_nothing_gives_scale_one(method, x):
    low, high = range_of(histogram(np.array(x, np.float32)), method, format=UINT8)
    assert (low, high) == (0, 0)
    assert parameters(low, high, UINT8, False) == (1, 0)


@pytest.mark.parametrize("p", [90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("x", [heavy_tailed(), np.abs(heavy_tailed()), -np.abs(heavy_tailed()), heavy_tailed(7)])
def test_percentile(p, x):
    h = histogram(x)
    cut = (100 - p) / (2 if x.min() < 0 < x.max() else 1)
    wanted = np.percentile(x, [cut, 100 - cut], method="inverted_cdf")
    wanted = min(wanted[0], 0) if x.min() < 0 else 0, max(wanted[1], 0) if x.max() > 0 else 0
    assert range_of(h, "percentile", percentile=p, format=INT8) == pytest.approx(wanted, abs=h.width)


@pytest.mark.parametrize("format", [INT8, UINT8, INT4, parse_format("float4e2m1")])
def test_all_but_minmax_clip_a_heavy_tail(format):
    x, symmetric = heavy_tailed(), format is not UINT8
    h = histogram(x)
    bound = max(-x.min(), x.max())
    start, end = range_of(h, "minmax", format=format, symmetric=symmetric)
    assert (start, end) == ((-bound, bound) if symmetric else (x.min(), x.max()))
    for method in ("percentile", "entropy", "mse"):
        low, high = range_of(h, method, format=format, symmetric=symmetric)
        assert 4 < high - low < 0.95 * (end - start), method


def test_methods_and_percentiles_that_do_not_exist():
    with pytest.raises(PassError, match="no calibration method 'kl': there are minmax, moving-average"):
        range_of(Histogram(), "kl", format=INT8)
    with pytest.raises(PassError, match="must be above 0 and at most 100, not 0"):
        range_of(Histogram(), "percentile", percentile=0, format=INT8)


# errors, and the least of them

SAMPLES = {
    "normal": np.random.default_rng(1).normal(size=20_000),
    "heavy": heavy_tailed(20_000),
    "relu": np.maximum(heavy_tailed(20_000), 0),
    "uniform": np.random.default_rng(1).uniform(-1, 3, 20_000),
    "outlier": np.append(np.random.default_rng(1).normal(size=20_000), 40),
    "few": np.random.default_rng(1).normal(size=100),
    "scaled": np.random.default_rng(1).laplace(size=20_000) * 1e-6,
}
MANY = [name for name in SAMPLES if name != "few"]  # enough for the shape of the distribution to matter


def true_error(x, low, high, format, symmetric):
    scale, zero = parameters(low, high, format, symmetric)
    return float(np.mean((fake_quantize(x.astype(np.float64), scale, zero, format) - x) ** 2))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_expected_error_is_the_true_one(name, format):
    x = SAMPLES[name]
    for share in (1, 0.5, 0.1):
        low, high = x.min() * share, x.max() * share
        scale, zero = parameters(low, high, format, not format.is_signed)
        wanted = true_error(x, low, high, format, not format.is_signed)
        assert expected_error(histogram(x), scale, zero, format) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("format", [INT8, INT4, parse_format("float8e4m3fn")], ids=str)
@pytest.mark.parametrize("name", MANY)
def test_mse_is_the_best_symmetric_range(name, format):
    x = SAMPLES[name]
    bound = np.abs(x).max()
    best = min(true_error(x, -t, t, format, True) for t in bound * np.linspace(0.01, 1, 200))
    low, high = range_of(histogram(x), "mse", format=format, symmetric=True)
    assert true_error(x, low, high, format, True) <= 1.03 * best


@pytest.mark.parametrize("format", [UINT8, UINT4], ids=str)
@pytest.mark.parametrize("name", MANY)
def test_mse_is_the_best_asymmetric_range(name, format):
    x = SAMPLES[name][-2000:]
    shares = np.geomspace(0.02, 1, 25)
    lows = shares * min(x.min(), 0) if x.min() < 0 else [0.0]
    best = min(true_error(x, a, b, format, False) for a in lows for b in shares * x.max())
    low, high = range_of(histogram(x), "mse", format=format)
    assert true_error(x, low, high, format, False) <= 1.05 * best


def divergence(x, limit, width, format, symmetric):
    """Migacz's: the samples, clipped, against what quantization leaves of them, as distributions over the same bins."""
    low, high = max(-limit, -np.inf if symmetric else x.min()), min(limit, np.inf if symmetric else x.max())
    edges = np.arange(math.floor(low / width), math.ceil(high / width) + 1) * width
    raw = np.histogram(x[x != 0], edges)[0].astype(float)
    occupied = raw > 0
    scale, zero = parameters(low, high, format, symmetric)
    codes = quantize((edges[:-1] + edges[1:]) / 2, scale, zero, format).astype(int)
    q = np.zeros_like(raw)
    for code in np.unique(codes):
        group = (codes == code) & occupied
        q[group] = raw[group].sum() / max(group.sum(), 1)
    centers = (edges[:-1] + edges[1:])[occupied] / 2
    p = np.histogram(np.clip(x[x != 0], centers[0], centers[-1]), edges)[0]
    p, q = p[occupied] / p[occupied].sum(), q[occupied] / q.sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize(("format", "symmetric"), [(INT8, True), (UINT8, False), (INT4, True)])
@pytest.mark.parametrize("name", ["normal", "heavy", "relu"])
def test_entropy_is_the_least_divergence(name, format, symmetric):
    x = SAMPLES[name]
    h = histogram(x)
    bound = np.abs(x).max()
    limits = [t for t in np.linspace(0, bound, 65)[1:] if t * (2 if symmetric else 1) > h.width * 2**format.bits]
    best = min(divergence(x, t, h.width, format, symmetric) for t in limits)
    low, high = range_of(h, "entropy", format=format, symmetric=symmetric)
    assert divergence(x, max(-low, high), h.width, format, symmetric) <= 1.1 * best + 1e-5


def test_zeros_do_not_count_as_errors():
    """After a Relu, half the elements are exactly 0, whatever the scale."""
    x = np.maximum(SAMPLES["normal"], 0)
    scale, zero = parameters(0, x.max(), UINT8, False)
    assert expected_error(histogram(x, np.zeros(len(x))), scale, zero, UINT8) == pytest.approx(
        expected_error(histogram(x), scale, zero, UINT8) / 2
    )


@settings(deadline=None)
@given(hnp.arrays(np.uint8, 5))
def test_numbers_of_a_format_are_exact(codes):
    scale, zero = parameters(-1.3, 2.1, UINT8, False)
    x = dequantize(codes, scale, zero, DType.FLOAT)
    np.testing.assert_array_equal(quantize(x, scale, zero, UINT8), codes)
