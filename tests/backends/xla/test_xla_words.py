"""Nodes that say what the standard does not know: they are refused, with a message that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planish.backends import LoweringError, backend
from planish.ir.text import parse

IMAGE = "float[1, 4, 4, 4] x"
X = np.ones((1, 4, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ('MaxPool <kernel_shape = [2, 2], auto_pad = "SAME"> (x)', "there is no auto_pad 'SAME'"),
        ('Resize <mode = "bilinear"> (x, "", s)', "there is no mode 'bilinear': it is one of nearest, linear, cubic"),
        ('Resize <coordinate_transformation_mode = "half"> (x, "", s)', "no coordinate_transformation_mode 'half'"),
        ('Resize <nearest_mode = "round"> (x, "", s)', "there is no nearest_mode 'round'"),
        ('DepthToSpace <blocksize = 2, mode = "RCD"> (x)', "there is no mode 'RCD'"),
        ('Gelu <approximate = "erf"> (x)', "there is no approximate 'erf'"),
        ('GridSample <padding_mode = "wrap"> (x, g)', "there is no padding_mode 'wrap'"),
        ('RoiAlign <mode = "mean"> (x, r, b)', "there is no mode 'mean'"),
        ('RNN <hidden_size = 2, direction = "backward"> (t, w, w)', "there is no direction 'backward'"),
    ],
)
def test_a_word_that_the_standard_does_not_know_is_refused_before_anything_runs(node: str, message: str) -> None:
    text = f"""g ({IMAGE}, float[1, 1, 1, 2] g, float[1, 4] r, int64[1] b, float[1, 1, 2] t, float[1, 2, 2] w) =>
        (float[] y) <float[4] s = {{1, 1, 2, 2}}> {{ y = {node} }}"""
    with pytest.raises(LoweringError, match=message):
        backend("xla").compile(parse(text))


def refused(node: str, message: str, *inputs: Any, declared: str = IMAGE) -> None:
    executable = backend("xla").compile(parse(f"g ({declared}) => (float[] y) {{ y = {node} }}"))
    with pytest.raises(LoweringError, match=message):
        executable(*inputs)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("strides = [2]", "strides has 1 numbers for 2 spatial dimensions"),
        ("pads = [1, 1]", "pads has 2 numbers for 2 spatial dimensions"),
        ("dilations = [1, 1, 1]", "dilations has 3 numbers for 2 spatial dimensions"),
        ("strides = [0, 1]", "strides and dilations must be positive"),
        ("kernel_shape = [2, 3]", r"kernel_shape is \[2, 3\], the filters are \[3, 3\]"),
    ],
)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_attributes_of_windows_must_fit(op: str, attributes: str, message: str) -> None:
    w = np.ones((4, 4, 3, 3), np.float32)
    refused(f"{op} <{attributes}> (x, w)", message, X, w, declared=f"{IMAGE}, float[4, 4, 3, 3] w")


@pytest.mark.parametrize(
    "node",
    [
        *("ArgMax <axis = 4> (x)", "Concat <axis = 4> (x, x)", "Flatten <axis = 5> (x)", "Flatten <axis = -5> (x)"),
        *("Gather <axis = 4> (x, i)", "GatherElements <axis = -5> (x, k)", "Hardmax <axis = 4> (x)", "CumSum (x, i)"),
        *("LayerNormalization <axis = 4> (x, s)", "OneHot <axis = 2> (i1, i, s2)", "ReduceSum (x, i1)"),
        *(
            "Softmax <axis = 4> (x)",
            "Slice (x, i1, i1, i1)",
            "Split <axis = 4, num_outputs = 1> (x)",
            "Pad (x, i2, s0, i1)",
        ),
        *("MeanVarianceNormalization <axes = [4]> (x)", "CenterCropPad <axes = [4]> (x, i1)"),
    ],
)
def test_an_axis_that_is_not_there_is_an_error(node: str) -> None:
    text = f"""g ({IMAGE}, int64[1, 1, 1, 1] k) => (float[] y) <
        int64 i = {{4}}, int64[1] i1 = {{4}}, int64[2] i2 = {{1, 1}},
        float[4] s = {{1, 1, 1, 1}}, float[2] s2 = {{0, 1}}, float s0 = {{0}}> {{ y = {node} }}"""
    with pytest.raises(LoweringError, match=r"axis (4|5|-5|2)"):
        backend("xla").compile(parse(text))(X, np.zeros((1, 1, 1, 1), np.int64))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("Pad (x, s)", "3 pads for 4 dimensions"),
        ("Reshape (x, copied)", "copies more dimensions than the 4 of its operand"),
        ("Range (zero, one, zero)", "a step of 0"),
        ('Einsum <equation = "abcd!->a"> (x)', "holds something other than letters"),
    ],
)
def test_what_does_not_fit_is_named(node: str, message: str) -> None:
    text = f"""g ({IMAGE}) => (float[] y) <int64[3] s = {{1, 1, 1}}, int64[5] copied = {{4, 4, 4, 1, 0}},
        int64 zero = {{0}}, int64 one = {{1}}> {{ y = {node} }}"""
    with pytest.raises(LoweringError, match=message):
        backend("xla").compile(parse(text))(X)


def test_weights_of_another_number_of_directions_are_an_error() -> None:
    refused(
        'RNN <hidden_size = 2, direction = "bidirectional"> (x, w, w)',
        "weights of 1 directions, and direction 'bidirectional'",
        np.ones((3, 1, 2), np.float32),
        np.ones((1, 2, 2), np.float32),
        declared="float[t, 1, 2] x, float[1, 2, 2] w",
    )
