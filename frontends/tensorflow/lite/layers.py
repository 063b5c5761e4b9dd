"""Convolutions, products and pooling. Filters are [out, spatial…, in], and become channels first where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....ir.graph import Value
from ...emit import Refused
from ..ops.convolution import convolve_kernel, transposed_kernel
from .file import LiteOperator
from .model import Lite, lite_rule
from .operators import activated

__all__: list[str] = []

Options = Mapping[str, Any]


def _window(options: Options) -> dict[str, Any]:
    """The attributes of TensorFlow's convolutions."""
    high, wide = options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)
    return {
        "padding": "SAME" if options["padding"] == 0 else "VALID",
        "strides": [1, options["strideH"], options["strideW"], 1],
        "dilations": [1, high, wide, 1],
    }


def _bias(m: Lite, operator: LiteOperator, place: int = 2) -> Value | None:
    """The bias, if there is one."""
    index = m.optional(operator, place)
    return None if index is None else m.numbers(index)


def _biased(m: Lite, operator: LiteOperator, value: Value, place: int = 2) -> Value:
    """``value`` with its bias, and its activation."""
    bias = _bias(m, operator, place)
    if bias is not None:
        value = m.as_tensorflow("BiasAdd", [value, bias], {"data_format": "NHWC"})
    return activated(m, value, operator.options)


@lite_rule("CONV_2D", "DEPTHWISE_CONV_2D")
def _conv(m: Lite, operator: LiteOperator) -> Any:
    """Depthwise filters are [1, height, width, out]."""
    x, *_ = m.operands(operator)
    kernel = m.ordered(operator.inputs[1], (0, 3, 1, 2) if operator.name == "CONV_2D" else (3, 0, 1, 2))
    o = m.operation("Conv2D", _window(operator.options), operator.outputs)
    return activated(m, convolve_kernel(m.t, o, x, kernel, _bias(m, operator)), operator.options)


@lite_rule("TRANSPOSE_CONV")
def _transposed(m: Lite, operator: LiteOperator) -> Any:
    """Its filters are [out, height, width, in]."""
    sizes, _, x, *_ = m.operands(operator)
    kernel = m.ordered(operator.inputs[1], (3, 0, 1, 2))
    o = m.operation("Conv2DBackpropInput", _window(operator.options), operator.outputs)
    result = transposed_kernel(m.t, o, x, kernel, sizes, 1, _bias(m, operator, 3))
    return activated(m, result, operator.options)


@lite_rule("CONV_3D", "CONV_3D_TRANSPOSE")
def _conv_3d(m: Lite, operator: LiteOperator) -> Any:
    """Its filters are TensorFlow's."""
    options = operator.options
    attrs = {
        "padding": "SAME" if options["padding"] == 0 else "VALID",
        "strides": [1, options["strideD"], options["strideH"], options["strideW"], 1],
        "dilations": [1, options["dilationDFactor"], options["dilationHFactor"], options["dilationWFactor"], 1],
    }
    if operator.name == "CONV_3D":
        x, kernel, *_ = m.operands(operator)
        return _biased(m, operator, m.as_tensorflow("Conv3D", [x, kernel], attrs, operator.outputs))
    sizes, kernel, x, *_ = m.operands(operator)
    operands = [sizes, kernel, x]
    return _biased(m, operator, m.as_tensorflow("Conv3DBackpropInputV2", operands, attrs, operator.outputs), 3)


@lite_rule("FULLY_CONNECTED")
def _fully_connected(m: Lite, operator: LiteOperator) -> Any:
    """Weights are [out, in]; all dimensions of the data but the last are one unless they are kept."""
    options = operator.options
    if options.get("weightsFormat"):
        raise Refused("its weights are shuffled")
    x, weights, *_ = m.operands(operator)
    inputs = (weights.shape or (None, None))[1]
    if not options.get("keepNumDims") and (x.rank != 2 or (x.shape or ())[1] != inputs):
        if not isinstance(inputs, int):
            raise Refused("the number of its features is open")
        x = m.as_tensorflow("Reshape", [x, m.t.integers([-1, inputs])])
    turned = m.ordered(operator.inputs[1], (1, 0))
    return _biased(m, operator, m.t.op.MatMul(x, turned))


@lite_rule("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
def _pool(m: Lite, operator: LiteOperator) -> Any:
    options = operator.options
    attrs = {**_window(options), "ksize": [1, options["filterHeight"], options["filterWidth"], 1]}
    (x,) = m.operands(operator)
    if operator.name == "L2_POOL_2D":
        mean = m.as_tensorflow("AvgPool", [m.as_tensorflow("Square", [x])], attrs, operator.outputs)
        return activated(m, m.as_tensorflow("Sqrt", [mean]), options)
    type_ = "MaxPool" if operator.name == "MAX_POOL_2D" else "AvgPool"
    value = activated(m, m.as_tensorflow(type_, [x], attrs, operator.outputs), options)
    if type_ == "MaxPool":
        m.set(operator.outputs[0], value, [] if options.get("fusedActivationFunction") else operator.inputs)
    return value
