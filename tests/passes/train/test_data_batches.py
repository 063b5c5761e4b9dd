"""Batches: every row once per epoch, the same for the same seed, whatever the buffer and the samples."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import DType, Graph, sym, tensor_type
from planish.passes.base import RequestError
from planish.passes.rows import takes_rows
from planish.passes.train import batches
from planish.passes.train.batches import Stream


def graph_of(**inputs):
    graph = Graph("g", opsets={"": 21})
    for name, (dtype, *shape) in inputs.items():
        graph.add_input(tensor_type(dtype, *shape), name)
    return graph


FLOATS = graph_of(x=(DType.FLOAT, sym("n"), 2))


def numbered(*sizes):
    """Samples of so many rows, numbered through."""
    starts = np.cumsum([0, *sizes])
    return [{"x": np.arange(a, b, dtype=np.float32)[:, None].repeat(2, 1)} for a, b in pairwise(starts)]


def seen(batches_):
    return [int(x) for b in batches_ for x in b.arrays["x"][:, 0]]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 3),
    st.sampled_from([1, 40, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_row_that_is_not_held_out(sizes, batch, holdout, seed, buffer):
    total = sum(sizes)
    data = numbered(*sizes)
    batches._BUFFER, before = buffer, batches._BUFFER
    try:
        try:
            stream = Stream(lambda: data, FLOATS, batch, holdout, seed)
        except RequestError as error:
            assert "too little data" in str(error)  # noqa: PT017
            assert total * (1 - holdout) < batch + 1
            return
        held = seen(stream.held_out)
        found = list(stream.epoch(0))
        assert len(found) == stream.batches_per_epoch
        if stream.rows >= batch:
            assert all(len(b) == batch for b in found)
        assert set(seen(found)) | set(held) == set(range(total))
        assert not set(seen(found)) & set(held)
        assert len(held) == (max(round(holdout * total), 1) if holdout else 0)
        assert [b.rows for b in stream.epoch(0)] == [b.rows for b in found]
        assert all(b.rows == tuple(seen([b])) for b in found)
    finally:
        batches._BUFFER = before


def test_epochs_and_seeds_differ_in_order_and_training_goes_on_in_the_middle():
    data = numbered(40)
    stream, other = (Stream(lambda: data, FLOATS, 8, 0, seed) for seed in (0, 1))
    first, second = (seen(stream.epoch(i)) for i in range(2))
    assert first != second
    assert first != sorted(first)
    assert seen(other.epoch(0)) != first
    endless = stream.endless()
    want = [next(endless).rows for _ in range(13)]
    assert want[:5] == [b.rows for b in stream.epoch(0)]
    resumed = stream.endless(skip=7)
    assert [next(resumed).rows for _ in range(6)] == want[7:]


def test_a_last_batch_that_is_not_full_is_filled_with_rows_of_the_same_epoch():
    stream = Stream(lambda: numbered(20), FLOATS, 8, 0, 0)
    *full, last = stream.epoch(3)
    assert len(last) == 8
    assert set(last.rows[:4]).isdisjoint(row for b in full for row in b.rows)
    assert set(last.rows[4:]) <= set(full[-1].rows)


def test_rows_of_other_shapes_come_in_batches_of_their_own():
    graph = graph_of(x=(DType.FLOAT, sym("n"), sym("length")))
    data = [{"x": np.ones((4, 5), np.float32)}, {"x": np.ones((8, 3), np.float32)}]
    stream = Stream(lambda: data, graph, 4, 0, 0)
    shapes = sorted(b.arrays["x"].shape for b in stream.epoch(0))
    assert shapes == [(4, 3), (4, 3), (4, 5)]
    assert sorted(stream.shapes.values()) == [4, 8]


def test_samples_are_batches_where_the_number_of_rows_is_fixed_or_named_twice():
    fixed = graph_of(x=(DType.FLOAT, 4, 2))
    square = graph_of(x=(DType.FLOAT, sym("n"), 2), mask=(DType.FLOAT, sym("n"), sym("n")))
    mixed = graph_of(x=(DType.FLOAT, sym("n"), 2), y=(DType.FLOAT, sym("m"), 2))
    scalar = graph_of(x=(DType.FLOAT, sym("n"), 2), y=(DType.FLOAT,))
    assert takes_rows(FLOATS)
    assert not any(map(takes_rows, (fixed, square, mixed, scalar, graph_of())))
    data = [{"x": np.full((4, 2), i, np.float32)} for i in range(6)]
    stream = Stream(lambda: data, fixed, 32, 0.2, 0)
    found = [int(b.arrays["x"][0, 0]) for b in stream.epoch(0)]
    held = [int(b.arrays["x"][0, 0]) for b in stream.held_out]
    assert sorted(found + held) == list(range(6))
    assert len(held) == 1
    assert [b.rows for b in stream.held_out] == [(held[0],)]


def test_a_tenth_is_held_out_where_that_says_something():
    few, many = (Stream(lambda n=n: numbered(n), FLOATS, 8, None, 0) for n in (300, 320))
    assert few.held_out == []
    assert few.rows == 300
    assert sum(map(len, many.held_out)) == 32
    assert many.rows == 288


def test_held_out_rows_are_a_fair_sample_of_a_stream_too_long_to_keep(monkeypatch):
    monkeypatch.setattr(batches, "_HELD_OUT", 20)
    stream = Stream(lambda: numbered(*[50] * 20), FLOATS, 10, 0.5, 0)
    held = seen(stream.held_out)
    assert len(held) == 20
    assert stream.rows == 980
    assert 300 < np.mean(held) < 700
    assert max(held) - min(held) > 500


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (numbered(5), {}, "5 rows, and a batch takes 8: give at least 8 rows, or set batch=5 or less"),
        (numbered(8), {"holdout": 0.1}, "8 rows, 1 of them held out, and a batch takes 8: give at least 10 rows"),
        ([], {}, "0 rows, and a batch takes 8: give at least 8 rows"),
        ([{"z": np.ones((2, 2))}], {}, "sample 1 has no array 'x'"),
        ([{"x": np.ones((2, 2))}], {"extra": ["t"]}, "sample 1 has no array 't'"),
        ([{"x": np.ones((2, 2)), "t": np.ones(3)}], {"extra": ["t"]}, "'t' has 3 rows, and 'x' has 2"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_a_line(samples, options, message):
    options = {"holdout": 0.0, **options}
    with pytest.raises(RequestError, match=message) as caught:
        Stream(lambda: samples, FLOATS, 8, seed=0, **options)
    assert "\n" not in str(caught.value)


def test_the_checksum_is_of_the_elements():
    data = numbered(16)
    other = [{"x": data[0]["x"] + np.eye(16, 2, dtype=np.float32)}]
    digests = [Stream(lambda d=d: d, FLOATS, 8, 0, 0).digest for d in (data, numbered(9, 7), other)]
    assert digests[0] == digests[1] != digests[2]
