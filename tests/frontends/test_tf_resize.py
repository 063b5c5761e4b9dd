"""Images in other sizes: the same elements and weights as TensorFlow's, with sizes that are fixed or open."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from .tf_check import check

raw = tf.raw_ops
GRIDS = [(False, False), (True, False), (False, True)]
SIZES = [
    ((5, 7), (10, 14)),
    ((5, 7), (8, 3)),
    ((6, 9), (3, 3)),
    ((4, 4), (12, 20)),
    ((41, 7), (82, 77)),
    ((3, 5), (1, 1)),
]
ALL_OPEN = {0: [0, 1, 2]}


def image(size: tuple[int, int], dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(0).random((2, *size, 3)) * 200).astype(dtype)


@pytest.mark.parametrize(("corners", "centers"), GRIDS)
@pytest.mark.parametrize(("given", "wanted"), SIZES)
def test_every_grid(corners, centers, given, wanted):
    attrs = {"size": wanted, "align_corners": corners, "half_pixel_centers": centers}
    for sizes in (False, ALL_OPEN):
        check(lambda x: raw.ResizeBilinear(images=x, **attrs), image(given), open=sizes)
        check(lambda x: raw.ResizeNearestNeighbor(images=x, **attrs), image(given), open=sizes)
        check(lambda x: raw.ResizeBicubic(images=x, **attrs), image(given), open=sizes)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("given", "wanted"), SIZES)
def test_means_of_areas(corners, given, wanted):
    for sizes in (False, ALL_OPEN):
        check(lambda x: raw.ResizeArea(images=x, size=wanted, align_corners=corners), image(given), open=sizes)


def test_means_of_whole_areas_are_a_pooling():
    counts = check(lambda x: raw.ResizeArea(images=x, size=(3, 3)), image((6, 9)))
    assert counts["AveragePool"] == 1


@pytest.mark.parametrize("factor", [3, 5, 6, 7, 41])
def test_the_nearest_element_where_coordinates_are_rounded(factor):
    for given, wanted in (((9, 4), (9 * factor, 4)), ((9 * factor, 4), (9, 4))):
        for corners, centers in GRIDS:
            check(
                lambda x, w=wanted, a=corners, h=centers: raw.ResizeNearestNeighbor(
                    images=x, size=w, align_corners=a, half_pixel_centers=h
                ),
                image(given),
            )


def test_common_sizes_are_one_resize():
    for method in ("bilinear", "nearest", "bicubic"):
        counts = check(lambda x, m=method: tf.image.resize(x, (10, 14), m), image((5, 7)), open={0: [0]})
        assert counts == {"Transpose": 2, "Resize": 1}, method


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos3", "lanczos5", "gaussian", "mitchellcubic", "area"])
@pytest.mark.parametrize(("given", "wanted"), SIZES[:3])
def test_filters_with_and_without_antialiasing(method, given, wanted):
    for antialias in (False, True):
        for sizes in (False, ALL_OPEN):
            check(lambda x, a=antialias: tf.image.resize(x, wanted, method, antialias=a), image(given), open=sizes)


def test_smooth_resizing_of_open_sizes_is_one_resize():
    counts = check(lambda x: tf.image.resize(x, (8, 6), antialias=True), image((25, 9)), open=ALL_OPEN, simplify=True)
    assert counts["Resize"] == 1
    assert counts["MatMul"] == 0


def test_smooth_resizing_of_known_sizes_is_two_products():
    counts = check(lambda x: tf.image.resize(x, (8, 6), antialias=True), image((25, 9)), open={0: [0]}, simplify=True)
    assert counts == {"Transpose": 2, "MatMul": 2}


@pytest.mark.parametrize(
    "kernel", ["lanczos1", "lanczos3", "lanczos5", "gaussian", "box", "triangle", "keyscubic", "mitchellcubic"]
)
@pytest.mark.parametrize("antialias", [False, True])
def test_images_scaled_and_moved(kernel, antialias):
    attrs = {"size": [6, 9], "kernel_type": kernel, "antialias": antialias}

    def fixed(x):
        return raw.ScaleAndTranslate(images=x, scale=[0.7, 1.3], translation=[1.3, -2.1], **attrs)

    def computed(x, scale):
        return raw.ScaleAndTranslate(images=x, scale=scale, translation=[1.3, -2.1], **attrs)

    check(fixed, image((9, 7)))
    check(computed, image((9, 7)), np.array([0.7, 1.3], np.float32), open=ALL_OPEN)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float64])
@pytest.mark.parametrize("method", ["bilinear", "nearest", "bicubic", "area"])
def test_types(dtype, method):
    check(lambda x: tf.image.resize(x, (10, 9), method), image((5, 7), dtype))


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("open", [False, True])
def test_boxes_cropped_and_resized(method, open):
    boxes = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [-0.2, 0.3, 1.3, 0.8], [0.9, 0.8, 0.1, 0.2]], np.float32)
    for size in ((3, 4), (1, 1), (14, 9)):

        def crop(x, boxes, images, s=size):
            return tf.image.crop_and_resize(x, boxes, images, s, method, 0.5)

        check(crop, image((7, 8)), boxes, np.array([0, 1, 1, 0], np.int32), open=open and {**ALL_OPEN, 1: [0], 2: [0]})


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_keras_upsampling_is_one_resize(interpolation):
    model = keras.Sequential(
        [
            keras.Input((5, 7, 3)),
            layers.Conv2D(4, 3, padding="same"),
            layers.UpSampling2D((2, 3), interpolation=interpolation),
            layers.Conv2D(2, 1),
        ]
    )
    counts = check(model, image((5, 7)), open={0: [0]}, simplify=True)
    assert counts == {"Transpose": 2, "Conv": 2, "Resize": 1}


@pytest.mark.parametrize(("rank", "layer"), [(1, layers.UpSampling1D(2)), (3, layers.UpSampling3D((2, 1, 3)))])
def test_keras_upsampling_of_sequences_and_volumes_is_one_resize(rank, layer):
    convolution = {1: layers.Conv1D, 3: layers.Conv3D}[rank]
    model = keras.Sequential([keras.Input((4,) * rank + (3,)), convolution(4, 1), layer, convolution(2, 1)])
    x = np.random.default_rng(0).random((2, *(4,) * rank, 3)).astype(np.float32)
    counts = check(model, x, open={0: [0]}, simplify=True)
    assert counts == {"Transpose": 2, "Conv": 2, "Resize": 1}


def test_keras_resizing_of_images_of_any_size():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Resizing(12, 10), layers.Rescaling(1 / 255)])
    check(model, image((8, 9)), open=ALL_OPEN, simplify=True)
