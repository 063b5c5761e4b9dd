"""The TensorFlow frontend: slices, gathers, scatters, selection, counting, diagonals and boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from planish.frontends.tensorflow import UnsupportedOperations

from .tf_check import check

RNG = np.random.default_rng(0)
L = keras.layers
raw = tf.raw_ops
OPEN = {0: [0, 1, 2]}


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i32(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int32)


X = f32(2, 4, 6, 3)
M = f32(5, 4)
CONV = L.Conv2D(4, 3, padding="same")
CONV.build((None, None, None, 3))

SLICES: dict[str, Callable[..., Any]] = {
    "a range": lambda x: x[:, 1:3],
    "steps": lambda x: x[:, ::2, 1::3],
    "from the end": lambda x: x[:, -3:-1, :-2],
    "beyond the ends": lambda x: x[:, -9:9, 5:2],
    "one element": lambda x: x[1, -2, 3, 0],
    "one of each kind": lambda x: x[:, 1:3, tf.newaxis, ::2, -1],
    "an ellipsis": lambda x: x[..., tf.newaxis, 0],
    "an ellipsis for nothing": lambda x: x[:, :, ..., :, 1:],
    "new dimensions only": lambda x: x[tf.newaxis, ..., tf.newaxis],
    "an element of a new dimension": lambda x: x[tf.newaxis, 1, ..., tf.newaxis],
    "backwards": lambda x: x[::-1, ::-2],
    "backwards from one": lambda x: x[:, -2::-1, 3:0:-1, 1::-1],
    "backwards to one": lambda x: x[:, :-3:-1, -2:-5:-2, :0:-1],
    "backwards from before the start": lambda x: x[:, -6::-1, -9:-20:-1],
    "backwards beyond the end": lambda x: x[:, 9:-20:-3],
    "a slice of sizes": lambda x: tf.slice(x, [0, 1, 2, 0], [-1, 2, -1, 3]),
    "a slice of a computed size": lambda x: tf.slice(x, [0, 1, 2, 1], [tf.shape(x)[0], 2, tf.shape(x)[2] - 3, -1]),
    "all of it": lambda x: x[:, 0:, ...] + tf.slice(x, [0, 0, 0, 0], tf.shape(x)),
    "a cropped image": L.Cropping2D(((1, 0), (2, 1))),
    "a slice by shapes": lambda x: x[: tf.shape(x)[0] - 1, tf.shape(x)[3] - 2 :, : tf.shape(x)[1]],
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_tensorflows(name: str) -> None:
    check(SLICES[name], X, simplify=True)
    check(SLICES[name], X, open=True)


@pytest.mark.parametrize("numbers", [(1, -1, 2, -1), (-1, 0, -2, 0), (3, -20, -1, 2), (0, 9, 3, -3)])
def test_slices_by_numbers_that_are_computed(numbers: tuple[int, ...]) -> None:
    for function in (
        lambda x, b: x[:, b[0] : b[1] : b[2], ..., b[3]],
        lambda x, b: x[:, :: b[2], b[0] :],
        lambda x, b: tf.strided_slice(x, [0, b[0], 0, 0], [2, b[1], 6, 3], [1, b[2], 2, 1], begin_mask=1),
    ):
        for open_ in (False, OPEN):
            check(function, X, i32(*numbers), open=open_)


def test_slices_of_sizes_that_are_computed() -> None:
    for open_ in (False, True):
        check(lambda x, b, s: tf.slice(x, b, s), X, i32(0, 1, 2, 1), i32(-1, 2, 3, -1), open=open_)
    with pytest.raises(UnsupportedOperations, match="unknown length"):
        check(lambda x, b: tf.strided_slice(x, b, b + 2), X, i32(0, 1), open=True)


KEPT: dict[str, tuple[int, Callable[..., Any]]] = {
    "a range": (2, lambda x: x[:, 1:3, ::-2, 1:]),
    "a row": (2, lambda x: x[:, 0]),
    "a channel": (1, lambda x: x[..., -1]),
    "a pixel": (1, lambda x: x[:, 0, -1, :]),
    "an example": (2, lambda x: x[0]),
    "a new dimension": (1, lambda x: x[:, tf.newaxis, ..., 0]),
    "rows that are picked": (2, lambda x: tf.gather(x, [3, 0], axis=1)),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_with_channels_first_is_cut_there(name: str) -> None:
    transposes, function = KEPT[name]
    found = check(lambda x: function(CONV(x)), X, open=OPEN, simplify=True)
    assert found["Transpose"] == transposes
    check(lambda x: function(CONV(x)), X)


# gathers

TABLE = tf.Variable(f32(5, 4))
EACH = RNG.integers(0, 4, (5, 2))
PAIRS = np.array([[0, 1, 2], [2, 2, 3]])
GATHERS: dict[str, tuple[Any, ...]] = {
    "rows": (lambda x, i: tf.gather(x, i), M, i32(3, 1, 1)),
    "along the last axis": (lambda x, i: tf.gather(x, i, axis=-1), X, np.array([[0, 1], [2, 2]])),
    "one": (lambda x, i: tf.gather(x, i, axis=2), X, np.int32(5)),
    "of a batch": (lambda x, i: tf.gather(x, i, axis=1, batch_dims=1), X, PAIRS),
    "of a batch, further on": (lambda x, i: tf.gather(x, i, axis=2, batch_dims=1), X, PAIRS),
    "of a batch, last": (lambda x, i: tf.gather(x, i, axis=-1, batch_dims=1), X, PAIRS[:, :, None] // 2),
    "one of each row": (lambda x, i: tf.gather(x, i, axis=1, batch_dims=1), M, i32(0, 3, 1, 2, 2)),
    "some of each row": (lambda x, i: tf.gather(x, i, batch_dims=1), M, EACH),
    "of two batches": (lambda x, i: tf.gather(x, i, axis=2, batch_dims=2), X, RNG.integers(0, 6, (2, 4, 2))),
    "of a batch, counted backwards": (lambda x, i: tf.gather(x, i, axis=1, batch_dims=-1), M, EACH),
    "by coordinates": (lambda x, i: tf.gather_nd(x, i), X, i32([0, 1], [1, 3])),
    "by coordinates of a batch": (lambda x, i: tf.gather_nd(x, i, batch_dims=1), X, np.array([[0, 1], [1, 3]])),
    "of a variable": (lambda i: tf.gather(TABLE, i), i32([0, 1], [4, 3])),
    "of a variable by coordinates": (lambda i: tf.gather_nd(TABLE, i), i32([0, 1], [4, 3])),
    "by bytes": (lambda x, i: tf.gather(x, tf.cast(i, tf.int16), axis=1), M, np.array([3, 1], np.uint8)),
    "along": (lambda x, i: keras.ops.take_along_axis(x, i, 1), M, RNG.integers(-4, 4, (5, 2))),
    "along a middle axis": (lambda x, i: keras.ops.take_along_axis(x, i, 1), f32(2, 3, 2), PAIRS[:, :2, None] - 2),
    "taken": (lambda x, i: keras.ops.take(x, i, axis=1), M, np.array([[0, -1], [3, -4]])),
}  # fmt: skip


@pytest.mark.parametrize("name", GATHERS)
def test_gathers_are_tensorflows(name: str) -> None:
    function, *inputs = GATHERS[name]
    check(function, *inputs, simplify=True)
    check(function, *inputs, open=True)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_an_embedding_is_one_gather(dtype: Any) -> None:
    """Keras makes negative indices positive before; Gather takes them as they are."""
    model = keras.Sequential([L.Input((None,), dtype=np.dtype(dtype).name), L.Embedding(5, 4)])
    found = check(model, np.array([[0, 4, 2], [1, 1, 3]], dtype), open={0: [0, 1]})
    assert found["Gather"] == 1
    assert found.total() <= (1 if dtype is np.int32 else 2)  # and a Cast


def test_windows_are_updated_and_moved_inside() -> None:
    update = tf.function(lambda x, new, start: keras.ops.slice_update(x, start, new), jit_compile=True)
    for start in ((1, 1), (0, 0), (9, -3)):
        check(update, M, f32(2, 3), i32(*start))
        check(update, M, f32(2, 4), i32(*start), open={0: [0]})


# selection

ON_OFF = {"on_value": 1.0, "off_value": 0.0}
SELECTIONS: dict[str, tuple[Any, ...]] = {
    "one hot": (lambda i: tf.one_hot(i, 4), i32(0, -1, 3, 4, 2)),
    "one hot along the first axis": (lambda i: tf.one_hot(i, 4, axis=0, dtype=tf.int32), i32([0, -1], [4, 2])),
    "one hot with other numbers": (lambda i: tf.one_hot(i, 4, 5.0, 2.0, axis=1), np.uint8([[0, 255], [3, 2]])),
    "one hot of a computed depth": (lambda i, n: raw.OneHot(indices=i, depth=n, **ON_OFF), i32([0, 3]), np.int32(4)),
    "where it is true": (lambda x: tf.where(x > 0), X),
    "where it is not zero": (lambda x: tf.where(tf.cast(x * 2, tf.int32)), X),
    "what a mask keeps": (lambda x: tf.boolean_mask(x, x > 0), X),
    "what a mask keeps along an axis": (lambda x: tf.boolean_mask(x, x[0, :, 0, 0] > 0, axis=1), X),
    "rows by a vector": (lambda x: raw.Select(condition=x[:, 0] > 0, x=x, y=-x), M),
    "elements": (lambda x: raw.Select(condition=x > 0, x=x, y=-2 * x), M),
    "everything by a number": (lambda x: raw.Select(condition=x[0, 0] > 0, x=x, y=-2 * x), M),
    "what is broadcast": (lambda x: tf.where(x[:, :1] > 0, x, 0.0), M),
    "booleans": (lambda x: tf.where(x > 0, x > 1, x < -1), M),
    "bytes": (lambda x: tf.where(x > 0, tf.cast(x * 9, tf.int8), tf.constant(3, tf.int8)), M),
    "different ones": (lambda x: tf.unique(x), i32(3, 1, 3, 0, 1)),
    "different ones, counted": (lambda x: tf.unique_with_counts(x, out_idx=tf.int64), np.float32([3, 1, 3, 0, 1])),
    "different rows": (lambda x: raw.UniqueV2(x=x, axis=[0]), i32([3, 1], [0, 0], [3, 1])),
    "the opposite of an order": (tf.math.invert_permutation, i32(3, 1, 2, 0)),
    "masks of lengths": (lambda x: tf.sequence_mask(x, 5), i32(0, 3, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_are_tensorflows(name: str) -> None:
    function, *inputs = SELECTIONS[name]
    check(function, *inputs, simplify=True)
    check(function, *inputs, open=True)


# scatters and counts


@pytest.mark.parametrize("name", ["update", "add", "sub", "max", "min"])
def test_updates_in_places(name: str) -> None:
    function = getattr(tf, f"tensor_scatter_nd_{name}")
    check(function, M, np.array([[1], [3]]), f32(2, 4), open=True)
    check(function, np.arange(4, dtype=np.int8), np.array([[1], [3]]), np.array([7, -3], np.int8))
    if name != "update":  # the same place twice
        check(function, M.astype(np.float16), i32([1, 2], [3, 0], [1, 2]), f32(3).astype(np.float16))


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "mean"])
def test_segments(name: str) -> None:
    function = getattr(tf.math, f"unsorted_segment_{name}")
    numbers = i32(0, 2, -1, 2, 0)
    for dtype in (np.float32, np.float16) if name == "mean" else (np.float32, np.float16, np.int32, np.int8):
        check(lambda x, i: function(x, i, 4), (M * 3).astype(dtype), numbers, open=True, tolerance=2e-3)
    check(lambda x: function(x, [0, 2, 2, 1, 0], 3), M)
    check(lambda x, i: function(x, i, 3), f32(2, 3, 4), i32([0, 2, -1], [1, 1, 2]))


@pytest.mark.parametrize("name", ["max", "min", "prod"])
def test_sorted_segments_of_which_some_are_empty(name: str) -> None:
    function = getattr(tf.math, f"segment_{name}")
    for dtype in (np.float32, np.float16, np.int32, np.int8, np.int64):
        check(function, (M * 3).astype(dtype), i32(0, 0, 1, 3, 3), open=True, tolerance=2e-3)
        check(function, (M * 3).astype(dtype), i32(1, 1, 1, 4, 6), tolerance=2e-3)
    check(lambda x: function(x, [0, 0, 1, 2, 2]), M)
    check(lambda x: function(x, [1, 1, 1, 4, 4]), M)
    check(function, f32(3, 2, 2), np.array([0, 2, 2]), open=True)
    check(function, f32(3), i32(2, 2, 3), open=True)


UPDATES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "a window": ({"begin": [1, 0], "end": [3, 2], "strides": [1, 1]}, (2, 2)),
    "steps and an end that is masked": ({"begin": [0, 1], "end": [0, 4], "strides": [2, 2], "end_mask": 1}, (3, 2)),
    "backwards": ({"begin": [3, 3], "end": [0, 0], "strides": [-1, -2]}, (3, 2)),
    "a row": ({"begin": [-2], "end": [-1], "strides": [1], "shrink_axis_mask": 1}, (4,)),
    "an ellipsis": ({"begin": [0, 1], "end": [0, 3], "strides": [1, 1], "ellipsis_mask": 1}, (5, 2)),
    "a new axis": ({"begin": [0, 1], "end": [0, 3], "strides": [1, 1], "new_axis_mask": 1}, (1, 2, 4)),
    "one number": ({"begin": [1, 0], "end": [3, 2], "strides": [1, 1]}, ()),
    "one number for each column": ({"begin": [1, 0], "end": [3, 2], "strides": [1, 1]}, (2,)),
    "nothing": ({"begin": [3, 0], "end": [1, 2], "strides": [1, 1]}, (0, 2)),
}


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("name", UPDATES)
def test_updates_of_slices(name: str, is_open: bool) -> None:
    spec, shape = UPDATES[name]
    check(lambda x, v: raw.TensorStridedSliceUpdate(input=x, value=v, **spec), M, f32(*shape), open=is_open)


def test_updates_of_slices_whose_bounds_are_computed() -> None:
    def function(x: Any, v: Any, n: Any) -> Any:
        return raw.TensorStridedSliceUpdate(input=x, value=v, begin=n, end=n + 2, strides=[1, 1])

    check(function, np.arange(20).reshape(5, 4), np.array([[-1, -2], [-3, -4]]), i32(2, 1), open={0: [0]})


def test_axes_of_gradients_that_broadcast() -> None:
    pairs = [
        ([2, 3], [3]), ([2, 3], [2, 3]), ([1, 1], [1, 1]), ([2, 1, 3], [1, 1]), ([], [2, 3]), ([1], [1, 1]),
        ([0, 3], [1, 3]), ([4, 1, 5, 1], [5, 6]),
    ]  # fmt: skip
    for a, b in pairs:
        for dtype in (tf.int32, tf.int64):
            check(lambda x: [x, *raw.BroadcastGradientArgs(s0=tf.constant(a, dtype), s1=tf.constant(b, dtype))], M)  # noqa: B023


def test_gradients_of_operands_that_broadcast() -> None:
    def function(x: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = tf.reduce_sum(x * w)
        return tape.gradient(y, [x, w])

    check(function, M, f32(1, 4))
    with pytest.raises(UnsupportedOperations, match=r"BroadcastGradientArgs.*must be a constant"):
        check(function, M, f32(1, 4), open=True)


SCATTERS: dict[str, tuple[Any, ...]] = {
    "sums in places": (lambda i, u: tf.scatter_nd(i, u, [5, 2]), np.array([[1], [3], [1]]), f32(3, 2)),
    "known places": (lambda u: tf.scatter_nd([[1], [3]], u, [5, 2]), f32(2, 2)),
    "a computed shape": (lambda i, u: tf.scatter_nd(i, u, tf.shape(u) * 2), i32([0], [3]), f32(2)),
    "sums of sorted segments": (tf.math.segment_sum, M, i32(0, 0, 1, 3, 3)),
    "means of sorted segments": (tf.math.segment_mean, M, i32(0, 0, 1, 3, 3)),
    "counts": (tf.math.bincount, i32(0, 3, 1, 3)),
    "counts with weights": (lambda x, w: tf.math.bincount(x, w, minlength=3), i32(0, 3, 1, 3), f32(4)),
    "counts of rows": (lambda x: tf.math.bincount(x, axis=-1, minlength=3, maxlength=3), i32([0, 3], [1, 1])),
    "whether there are any": (lambda x: tf.math.bincount(x, minlength=6, binary_output=True), i32(0, 3, 1)),
    "categories": (lambda x: L.CategoryEncoding(3)(x), i32([0, 2], [1, 1])),
    "buckets": (lambda x: raw.Bucketize(input=x, boundaries=[-0.5, 0, 1]), np.float32([np.nan, np.inf, -np.inf, -0.5])),
    "places in sorted rows": (tf.searchsorted, np.sort(M), f32(5, 2)),
    "places after equal ones": (lambda a, b: tf.searchsorted(a, b, side="right"), np.arange(5), np.array([0, 7, -1])),
    "parts of rows": (lambda x, i: tf.dynamic_partition(x, i, 3), M, i32(0, 2, 0, 1, 2)),
    "parts of elements": (lambda x, i: tf.dynamic_partition(x, i, 3), f32(2, 2, 3), i32([0, 1], [1, 1])),
    "rows put together": (lambda x, y: tf.dynamic_stitch([[0, 2], [1, 3]], [x, y]), f32(2, 3), f32(2, 3)),
    "rows put together by numbers": (lambda x, i: tf.dynamic_stitch([i, [1, 3]], [x, x + 1]), f32(2, 3), i32(2, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SCATTERS)
def test_scatters_and_counts_are_tensorflows(name: str) -> None:
    function, *inputs = SCATTERS[name]
    check(function, *inputs, simplify=True)
    check(function, *inputs, open={0: [0]})


# diagonals

DIAGONALS: dict[str, tuple[Any, ...]] = {
    "a band": (lambda x: tf.linalg.band_part(x, 1, 0), f32(2, 4, 5)),
    "a lower triangle": (lambda x: tf.linalg.band_part(x, -1, 0), f32(4, 4).astype(np.float16)),
    "an upper triangle of integers": (lambda x: tf.linalg.band_part(x, 0, -1), np.ones((4, 5), np.int32)),
    "a computed band": (lambda x, n: tf.linalg.band_part(x, n, -n), f32(4, 5), np.int32(1)),
    "a causal mask": (lambda x: tf.linalg.band_part(tf.ones([tf.shape(x)[1], tf.shape(x)[1]]), -1, 0), M),
    "a diagonal": (tf.linalg.diag, f32(2, 4)),
    "a diagonal above": (lambda x: tf.linalg.diag(x, k=2, padding_value=7.0), f32(2, 4)),
    "a diagonal below": (lambda x: tf.linalg.diag(x, k=-1), f32(4)),
    "the diagonal": (tf.linalg.diag_part, f32(2, 4, 5)),
    "the one above": (lambda x: tf.linalg.diag_part(x, k=2), f32(2, 4, 5)),
    "the one below": (lambda x: tf.linalg.diag_part(x, k=-1), f32(4, 3)),
    "another diagonal": (tf.linalg.set_diag, f32(2, 4, 4), f32(2, 4)),
    "another diagonal of a wide one": (tf.linalg.set_diag, f32(2, 3, 5), f32(2, 3)),
    "another diagonal of a high one": (tf.linalg.set_diag, f32(5, 4), f32(4)),
    "an identity": (lambda x: tf.eye(tf.shape(x)[0], 4) + x, M),
    "the old diagonal": (lambda x: raw.DiagPart(input=raw.Diag(diagonal=x)), f32(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", DIAGONALS)
def test_diagonals_are_tensorflows(name: str) -> None:
    function, *inputs = DIAGONALS[name]
    check(function, *inputs, simplify=True)
    check(function, *inputs, open=True)


def test_several_diagonals_are_refused() -> None:
    with pytest.raises(UnsupportedOperations, match="several diagonals at once"):
        check(lambda x: tf.linalg.diag_part(x, k=(-1, 1)), f32(4, 4))
    with pytest.raises(UnsupportedOperations, match="another diagonal than the main one"):
        check(lambda x, d: tf.linalg.set_diag(x, d, k=1), f32(4, 4), f32(3))


# boxes

CORNERS = RNG.random((9, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.random((9, 2))], axis=1).astype(np.float32)
SCORES = RNG.random(9).astype(np.float32)


@pytest.mark.parametrize("open_", [False, True])
def test_boxes_that_overlap_are_left_out(open_: bool) -> None:
    check(lambda b, s: tf.image.non_max_suppression(b, s, 4, 0.3), BOXES, SCORES, open=open_)
    check(lambda b, s: tf.image.non_max_suppression_with_scores(b, s, 9, 0.3, 0.2), BOXES, SCORES, open=open_)
    check(lambda b, s, n: tf.image.non_max_suppression(b, s, n, 0.5, 0.4), BOXES, SCORES, np.int32(3), open=open_)
    padded = {"max_output_size": 7, "iou_threshold": 0.3, "score_threshold": 0.2, "pad_to_max_output_size": True}
    check(lambda b, s: raw.NonMaxSuppressionV4(boxes=b, scores=s, **padded), BOXES, SCORES, open=open_)


@pytest.mark.parametrize("options", [{}, {"pad_per_class": True, "clip_boxes": False}, {"max_total_size": 5}])
def test_the_best_boxes_of_all_classes(options: dict[str, Any]) -> None:
    boxes = np.stack([BOXES, BOXES[::-1]])[:, :, np.newaxis]
    scores = RNG.random((2, 9, 3)).astype(np.float32)
    limits = {"max_output_size_per_class": 2, "max_total_size": 30, "iou_threshold": 0.3, "score_threshold": 0.2}
    for open_ in ({0: [0]}, {0: [0, 1], 1: [0, 1, 2]}):
        check(
            lambda b, s: tf.image.combined_non_max_suppression(b, s, **{**limits, **options}), boxes, scores, open=open_
        )


def test_boxes_with_softer_scores_are_refused() -> None:
    with pytest.raises(UnsupportedOperations, match="soft_nms_sigma"):
        check(lambda b, s: tf.image.non_max_suppression_with_scores(b, s, 4, soft_nms_sigma=0.5), BOXES, SCORES)
