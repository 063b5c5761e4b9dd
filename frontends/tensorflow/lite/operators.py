"""Operators that are operations of TensorFlow under another name, with options for attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ....ir.graph import Value, constant
from ....ir.types import DType
from ...emit import Refused
from ..ops.elementwise import apply
from .file import LiteOperator
from .model import Lite, lite_rule

__all__ = ["activated", "refuse"]

Options = Mapping[str, Any]

_ACTIVATIONS = {1: "Relu", 3: "Relu6"}  # by the schema's ActivationFunctionType
_SAME = {  # the operation of TensorFlow by the operator's name: no options that matter
    "ABS": "Abs", "ADD_N": "AddN", "ATAN2": "Atan2", "BITWISE_XOR": "BitwiseXor",
    "BROADCAST_ARGS": "BroadcastArgs", "CEIL": "Ceil", "COS": "Cos", "ELU": "Elu", "EQUAL": "Equal",
    "EXP": "Exp", "FLOOR": "Floor", "FLOOR_DIV": "FloorDiv", "FLOOR_MOD": "FloorMod", "GATHER_ND": "GatherNd",
    "GREATER": "Greater", "GREATER_EQUAL": "GreaterEqual", "LESS": "Less", "LESS_EQUAL": "LessEqual", "LOG": "Log",
    "LOGICAL_AND": "LogicalAnd", "LOGICAL_NOT": "LogicalNot", "LOGICAL_OR": "LogicalOr", "LOGISTIC": "Sigmoid",
    "LOG_SOFTMAX": "LogSoftmax", "MATRIX_DIAG": "MatrixDiag", "MATRIX_SET_DIAG": "MatrixSetDiag",
    "NEG": "Neg", "NOT_EQUAL": "NotEqual", "POW": "Pow", "RANGE": "Range",
    "RELU6": "Relu6", "RIGHT_SHIFT": "RightShift", "ROUND": "Round", "RSQRT": "Rsqrt",
    "SCATTER_ND": "ScatterNd", "SEGMENT_SUM": "SegmentSum",
    "SHAPE": "Shape", "SIGN": "Sign", "SIN": "Sin", "SQRT": "Sqrt", "SQUARE": "Square",
    "SQUARED_DIFFERENCE": "SquaredDifference", "TANH": "Tanh", "RANK": "Rank",
    "UNSORTED_SEGMENT_MAX": "UnsortedSegmentMax", "UNSORTED_SEGMENT_MIN": "UnsortedSegmentMin",
    "UNSORTED_SEGMENT_PROD": "UnsortedSegmentProd", "UNSORTED_SEGMENT_SUM": "UnsortedSegmentSum",
    "WHERE": "Where", "ZEROS_LIKE": "ZerosLike", "FILL": "Fill", "UNIQUE": "Unique",
}  # fmt: skip
_MOVING = {  # their results have elements of their operands, and 0: codes stay what they are
    "BATCH_TO_SPACE_ND": "BatchToSpaceND", "BROADCAST_TO": "BroadcastTo",
    "DYNAMIC_UPDATE_SLICE": "XlaDynamicUpdateSlice", "EXPAND_DIMS": "ExpandDims", "MAXIMUM": "Maximum",
    "MINIMUM": "Minimum", "PAD": "Pad", "PADV2": "PadV2", "RELU": "Relu", "REVERSE_V2": "ReverseV2",
    "SELECT": "Select", "SELECT_V2": "SelectV2", "SLICE": "Slice", "SPACE_TO_BATCH_ND": "SpaceToBatchND",
    "TILE": "Tile", "TOPK_V2": "TopKV2", "TRANSPOSE": "Transpose",
}  # fmt: skip
_BINARY = {"ADD": "AddV2", "SUB": "Sub", "MUL": "Mul", "DIV": "RealDiv"}
_REDUCTIONS = {
    "MEAN": "Mean", "SUM": "Sum", "REDUCE_PROD": "Prod", "REDUCE_MAX": "Max", "REDUCE_MIN": "Min", "REDUCE_ANY": "Any",
    "REDUCE_ALL": "All",
}  # fmt: skip


def activated(m: Lite, value: Value, options: Options) -> Value:
    """``value`` after the activation that the operator has fused.

    Raises:
        Refused: there is no such activation.
    """
    number = options.get("fusedActivationFunction", 0)
    if number == 0:
        return value
    if number == 2:
        return _clipped(m, value, -1, 1)
    if number not in _ACTIVATIONS:
        raise Refused(f"its activation, number {number}")
    found: Value = m.as_tensorflow(_ACTIVATIONS[number], [value])
    return found


def _clipped(m: Lite, value: Value, low: float, high: float) -> Value:
    limits = [m.t.scalar(x, value.dtype) for x in (low, high)]
    found: Value = m.as_tensorflow("ClipByValue", [value, *limits])
    return found


def moved(m: Lite, operator: LiteOperator, results: Any) -> Any:
    """Results that have elements of the inputs: where their codes stand for the same numbers, they are not rounded."""
    found = results if isinstance(results, list | tuple) else [results]
    for index, value in zip(operator.outputs, found, strict=True):
        m.set(index, value, [i for i in operator.inputs if i >= 0])
    return found


def _same(m: Lite, operator: LiteOperator) -> Any:
    return m.as_tensorflow(_SAME[operator.name], m.operands(operator), {}, operator.outputs)


def _moving(m: Lite, operator: LiteOperator) -> Any:
    return moved(m, operator, m.as_tensorflow(_MOVING[operator.name], m.operands(operator), {}, operator.outputs))


lite_rule(*_SAME)(_same)
lite_rule(*_MOVING)(_moving)


@lite_rule(*_BINARY)
def _binary(m: Lite, operator: LiteOperator) -> Any:
    a, b = m.operands(operator)
    type_ = _BINARY[operator.name]
    if type_ == "RealDiv" and not a.dtype.is_floating:
        type_ = "TruncateDiv"
    return activated(m, m.as_tensorflow(type_, [a, b]), operator.options)


@lite_rule(*_REDUCTIONS)
def _reduction(m: Lite, operator: LiteOperator) -> Any:
    attrs = {"keep_dims": operator.options["keepDims"]}
    found = m.as_tensorflow(_REDUCTIONS[operator.name], m.operands(operator), attrs, operator.outputs)
    return moved(m, operator, found) if operator.name in ("REDUCE_MAX", "REDUCE_MIN") else found


def _with(type_: str, attrs: Callable[[Options], Mapping[str, Any]], *, moves: bool = False) -> Any:
    """A rule for an operation of TensorFlow whose attributes follow from the options."""

    def rule(m: Lite, operator: LiteOperator) -> Any:
        found = m.as_tensorflow(type_, m.operands(operator), attrs(operator.options), operator.outputs)
        return moved(m, operator, found) if moves else found

    return rule


def _resizing(o: Options) -> Mapping[str, Any]:
    return {"align_corners": o["alignCorners"], "half_pixel_centers": o["halfPixelCenters"]}


lite_rule("BATCH_MATMUL")(_with("BatchMatMulV2", lambda o: {"adj_x": o["adjX"], "adj_y": o["adjY"]}))
lite_rule("CUMSUM")(_with("Cumsum", lambda o: {"exclusive": o["exclusive"], "reverse": o["reverse"]}))
lite_rule("DEPTH_TO_SPACE")(_with("DepthToSpace", lambda o: {"block_size": o["blockSize"]}, moves=True))
lite_rule("SPACE_TO_DEPTH")(_with("SpaceToDepth", lambda o: {"block_size": o["blockSize"]}, moves=True))
lite_rule("LEAKY_RELU")(_with("LeakyRelu", lambda o: {"alpha": o["alpha"]}))
lite_rule("MIRROR_PAD")(
    _with("MirrorPad", lambda o: {"mode": "SYMMETRIC" if o["mode"] == 1 else "REFLECT"}, moves=True)
)
lite_rule("ONE_HOT")(_with("OneHot", lambda o: {"axis": o["axis"]}))
lite_rule("PACK")(_with("Pack", lambda o: {"axis": o["axis"]}, moves=True))
lite_rule("UNPACK")(_with("Unpack", lambda o: {"axis": o["axis"]}, moves=True))
lite_rule("RESIZE_BILINEAR")(_with("ResizeBilinear", _resizing))
lite_rule("RESIZE_NEAREST_NEIGHBOR")(_with("ResizeNearestNeighbor", _resizing, moves=True))
lite_rule("REVERSE_SEQUENCE")(
    _with("ReverseSequence", lambda o: {"batch_dim": o["batchDim"], "seq_dim": o["seqDim"]}, moves=True)
)
lite_rule("LOCAL_RESPONSE_NORMALIZATION")(
    _with("LRN", lambda o: {"depth_radius": o["radius"], "bias": o["bias"], "alpha": o["alpha"], "beta": o["beta"]})
)


# rearranging


@lite_rule("STRIDED_SLICE")
def _strided_slice(m: Lite, operator: LiteOperator) -> Any:
    options = operator.options
    if options.get("offset"):
        raise Refused("its ends are counted from its begins")
    keys = {"begin": "begin", "end": "end", "ellipsis": "ellipsis", "new_axis": "newAxis", "shrink_axis": "shrinkAxis"}
    attrs = {f"{name}_mask": options[f"{key}Mask"] for name, key in keys.items()}
    return moved(m, operator, m.as_tensorflow("StridedSlice", m.operands(operator), attrs, operator.outputs))


@lite_rule("RESHAPE")
def _reshape(m: Lite, operator: LiteOperator) -> Any:
    x = m.operands(operator)[0]
    stated = [int(n) for n in _option(operator, "newShape")]
    shape = m.optional(operator, 1)
    target = m.t.integers(stated) if shape is None else m.numbers(shape)
    return moved(m, operator, m.as_tensorflow("Reshape", [x, target], {}, operator.outputs))


def _option(operator: LiteOperator, name: str) -> Any:
    found = operator.options.get(name)
    return [] if found is None else found


@lite_rule("SQUEEZE")
def _squeeze(m: Lite, operator: LiteOperator) -> Any:
    attrs = {"squeeze_dims": [int(a) for a in _option(operator, "squeezeDims")]}
    return moved(m, operator, m.as_tensorflow("Squeeze", m.operands(operator), attrs, operator.outputs))


@lite_rule("CONCATENATION")
def _concatenation(m: Lite, operator: LiteOperator) -> Any:
    axis = constant(np.array(operator.options["axis"], np.int32))
    value = m.as_tensorflow("ConcatV2", [*m.operands(operator), axis], {}, operator.outputs)
    if operator.options.get("fusedActivationFunction"):
        return activated(m, value, operator.options)
    return moved(m, operator, value)


@lite_rule("SPLIT")
def _split(m: Lite, operator: LiteOperator) -> Any:
    return moved(m, operator, m.as_tensorflow("Split", m.operands(operator), {}, operator.outputs))


@lite_rule("SPLIT_V")
def _split_v(m: Lite, operator: LiteOperator) -> Any:
    return moved(m, operator, m.as_tensorflow("SplitV", m.operands(operator), {}, operator.outputs))


@lite_rule("GATHER")
def _gather(m: Lite, operator: LiteOperator) -> Any:
    axis = constant(np.array(operator.options["axis"], np.int32))
    attrs = {"batch_dims": operator.options.get("batchDims", 0)}
    return moved(m, operator, m.as_tensorflow("GatherV2", [*m.operands(operator), axis], attrs, operator.outputs))


@lite_rule("EMBEDDING_LOOKUP")
def _embedding(m: Lite, operator: LiteOperator) -> Any:
    ids, table = m.operands(operator)
    axis = constant(np.array(0, np.int32))
    return moved(m, operator, m.as_tensorflow("GatherV2", [table, ids, axis], {}, operator.outputs))


@lite_rule("ARG_MAX", "ARG_MIN")
def _place(m: Lite, operator: LiteOperator) -> Any:
    type_ = "ArgMax" if operator.name == "ARG_MAX" else "ArgMin"
    return m.as_tensorflow(type_, m.operands(operator), {}, operator.outputs)


# element by element


@lite_rule("RELU_N1_TO_1", "RELU_0_TO_1")
def _clip(m: Lite, operator: LiteOperator) -> Any:
    return _clipped(m, m.operands(operator)[0], -1 if operator.name == "RELU_N1_TO_1" else 0, 1)


@lite_rule("HARD_SWISH")
def _hard_swish(m: Lite, operator: LiteOperator) -> Any:
    return apply(m.t, "HardSwish", *m.operands(operator))


@lite_rule("GELU")
def _gelu(m: Lite, operator: LiteOperator) -> Any:
    approximate = "tanh" if operator.options["approximate"] else None
    return apply(m.t, "Gelu", *m.operands(operator), approximate=approximate)


@lite_rule("PRELU")
def _prelu(m: Lite, operator: LiteOperator) -> Any:
    """Slopes are broadcast from the last dimension, as in PRelu."""
    return apply(m.t, "PRelu", *m.operands(operator))


@lite_rule("SOFTMAX")
def _softmax(m: Lite, operator: LiteOperator) -> Any:
    (x,) = m.operands(operator)
    beta = operator.options["beta"]
    if beta != 1:
        x = m.as_tensorflow("Mul", [x, m.t.scalar(beta, x.dtype)])
    return m.as_tensorflow("Softmax", [x], {}, operator.outputs)


@lite_rule("L2_NORMALIZATION")
def _l2(m: Lite, operator: LiteOperator) -> Any:
    """Over the last dimension."""
    (x,) = m.operands(operator)
    axes = constant(np.array([-1], np.int32))
    total = m.as_tensorflow("Sum", [m.as_tensorflow("Square", [x]), axes], {"keep_dims": True})
    norm = m.as_tensorflow("Sqrt", [m.as_tensorflow("Maximum", [total, m.t.scalar(1e-12, x.dtype)])])
    return activated(m, m.as_tensorflow("RealDiv", [x, norm]), operator.options)


# between codes and numbers


@lite_rule("CAST", "BITCAST")
def _cast(m: Lite, operator: LiteOperator) -> Any:
    """Of codes themselves."""
    m.operands(operator)
    (x,), (y,) = operator.inputs, operator.outputs
    target = tf.TensorSpec(m.tensor(y).shape, m.dtype(y).numpy)
    m.give(y, m.as_tensorflow(operator.name.capitalize(), [m.stored(x)], {}, [target]))
    return m.stored(y)


@lite_rule("QUANTIZE", "DEQUANTIZE")
def _recode(m: Lite, operator: LiteOperator) -> Any:
    (x,) = m.operands(operator)
    target = m.tensor(operator.outputs[0])
    m.copy(operator.outputs[0], operator.inputs[0])
    if m.quantization(operator.outputs[0]) is None and target.type == "FLOAT32" and x.dtype is not DType.FLOAT:
        return m.t.cast(x, DType.FLOAT)
    return x


@lite_rule("FAKE_QUANT")
def _fake_quant(m: Lite, operator: LiteOperator) -> Any:
    o = operator.options
    attrs = {"min": o["min"], "max": o["max"], "num_bits": o["numBits"], "narrow_range": o["narrowRange"]}
    return m.as_tensorflow("FakeQuantWithMinMaxArgs", m.operands(operator), attrs)


# placing


@lite_rule("BUCKETIZE")
def _bucketize(m: Lite, operator: LiteOperator) -> Any:
    attrs = {"boundaries": [float(n) for n in _option(operator, "boundaries")]}
    return m.as_tensorflow("Bucketize", m.operands(operator), attrs, operator.outputs)


@lite_rule("SPARSE_TO_DENSE")
def _sparse_to_dense(m: Lite, operator: LiteOperator) -> Any:
    """Values at places of a tensor that is full of another one."""
    places, sizes, values, other = m.operands(operator)
    if places.rank not in (1, 2) or values.rank != 1:
        raise Refused("its places or its values are no lists")
    t = m.t
    places = t.cast(places if places.rank == 2 else t.reshape(places, (-1, 1)), DType.INT64)
    return t.op.ScatterND(t.op.Expand(other, t.cast(sizes, DType.INT64)), places, values)


# detections


@lite_rule("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5")
def _non_max_suppression(m: Lite, operator: LiteOperator) -> Any:
    type_ = "NonMaxSuppressionV" + operator.name[-1]
    attrs = {"pad_to_max_output_size": True}
    return m.as_tensorflow(type_, m.operands(operator), attrs, operator.outputs)


# what has no counterpart

_NONE = {
    "ASSIGN_VARIABLE CALL_ONCE READ_VARIABLE VAR_HANDLE": "it keeps a state, which a graph does not have: convert with "
    "experimental_enable_resource_variables = False",
    "HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_LOOKUP HASHTABLE_SIZE": "it looks words up: do this before",
    "MULTINOMIAL RANDOM_STANDARD_NORMAL RANDOM_UNIFORM": "random numbers: let them be an input",
    "COMPLEX_ABS IMAG REAL RFFT2D": "complex numbers: ONNX operators do not compute with them",
}  # by the operators that it is said of


@lite_rule(*" ".join(_NONE).split())
def refuse(m: Lite, operator: LiteOperator) -> Any:
    """Say why an operator has no translation."""
    raise Refused(next(reason for names, reason in _NONE.items() if operator.name in names.split()))
