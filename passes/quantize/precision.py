"""What operators make of half precision: facts as data, and how a node is typed when it takes it.

An operator is one of

- `MATRIX`: most of the work and of the weights is here, and half precision is worth a cast;
- `FOLLOWS`: it moves elements or computes each from few others, and takes the precision of its neighbours;
- `SENSITIVE`: it adds many elements up, or magnifies the relative error of its operands, and stays in float32;
- `AS_THEY_COME`: it takes either type and its results tell nothing of it.

Everything else, operators of other domains too, keeps its types.

Normalizations with the attribute ``stash_type`` compute in float32 whatever they are given when that attribute says so
(ONNX, ``LayerNormalization``: "stage one of computation"). They follow; so does Attention, which runs its softmax in
``softmax_precision``. `INSIDE` are the attributes that say it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from ...ir import DType, Node, TensorType, Value
from ...ir.infer import IllTyped, infer_types
from ...ir.quantization import FAKE_QUANTIZE
from ...ir.schema import default_attribute, schema_of

__all__ = [
    "AS_THEY_COME",
    "BOUNDED",
    "FOLLOWS",
    "MATRIX",
    "SATURATES",
    "SENSITIVE",
    "HalfForm",
    "half_form",
]

MATRIX = frozenset(
    {
        *("MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "DeformConv", "CausalConvWithState"),
        *("Attention", "LinearAttention", "LSTM", "GRU", "RNN"),
    }
)
FOLLOWS = frozenset(
    {
        # moving, picking and comparing elements
        *("CenterCropPad", "Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements"),
        *("GatherND", "Identity", "Pad", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "TensorScatter", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"),
        *("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less"),
        *("LessOrEqual", "Max", "MaxPool", "Min", "NonZero", "ReduceMax", "ReduceMin", "TopK", "GlobalMaxPool"),
        # a few elements make one
        *("Abs", "Add", "AveragePool", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Gelu", "GridSample"),
        *("HardSigmoid", "HardSwish", "LeakyRelu", "Mean", "Mul", "Neg", "PRelu", "Relu", "Resize", "Selu", "Shrink"),
        *("Sigmoid", "Sign", "Softsign", "Sub", "Sum", "SwiGLU", "Swish", "Tanh", "ThresholdedRelu"),
        *("CastLike", "RotaryEmbedding", FAKE_QUANTIZE),
        # in float32 inside
        *("GroupNormalization", "LayerNormalization", "RMSNormalization"),
    }
)
SENSITIVE = frozenset(
    {
        # sums of many elements
        *("BatchNormalization", "InstanceNormalization", "LRN", "LogSoftmax", "LpNormalization"),
        *("MeanVarianceNormalization", "Softmax", "CumProd", "CumSum", "GlobalAveragePool", "GlobalLpPool", "LpPool"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
        *("ReduceSumSquare", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "Det", "DFT", "STFT", "Col2Im"),
        # steep, or periodic: the error of what comes in is a multiple of that in what goes out
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Exp", "Log", "Mish", "Pow"),
        *("Reciprocal", "Sin", "Sinh", "Softplus", "Sqrt", "Tan"),
        # steps, places and numbers of things
        *("Ceil", "Floor", "Mod", "Round", "AffineGrid", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "RoiAlign"),
        *("ConstantOfShape", "EyeLike", "OneHot", "Range", "BlackmanWindow", "HammingWindow", "HannWindow"),
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    }
)
AS_THEY_COME = frozenset({"Cast", "Shape", "Size"})
INSIDE: dict[str, dict[str, int]] = {
    "Attention": {"softmax_precision": int(DType.FLOAT)},
    "GroupNormalization": {"stash_type": int(DType.FLOAT)},
    "LayerNormalization": {"stash_type": int(DType.FLOAT)},
    "RMSNormalization": {"stash_type": int(DType.FLOAT)},
}
# Operands that stay in float32 where the standard gives them a type of their own: coordinates, and what is cast anyway.
_IN_FLOAT: dict[str, tuple[int, ...]] = {"CastLike": (0,), "Dropout": (1,), "GridSample": (1,), "Resize": (1,)}
# Operands of which a number that is too large means no more than the largest: masks that are added, and bounds.
SATURATES: dict[str, tuple[int, ...]] = {"Attention": (3,), "Clip": (1, 2)}
# Operators whose results are small, or no larger than other operands, where an operand is too large for half precision.
BOUNDED = frozenset(
    {
        *("Attention", "Softmax", "Hardmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softsign", "Sign", "Atan"),
        *("Sin", "Cos", "Log", "Reciprocal", "LSTM", "GRU", "RNN", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "LpNormalization", "MeanVarianceNormalization", "RMSNormalization"),
    }
)


class HalfForm(NamedTuple):
    """How a node is typed in half precision.

    Attributes:
        operands: the positions of the operands that are cast.
        results: the positions of the results that become half precision.
        attrs: attributes that change.
    """

    operands: tuple[int, ...]
    results: tuple[int, ...]
    attrs: dict[str, int]


def half_form(node: Node, dtype: DType) -> HalfForm | None:
    """The types of ``node`` when its float32 operands have the half-precision type ``dtype``.

    None where nothing of it is float32, its definition does not allow ``dtype``, or its types are not known.
    """
    takes = _takes(node.op, dtype)
    operands = list(node.operands)
    cast = []
    for i, value in enumerate(operands):
        if value is None or not takes or not takes[min(i, len(takes) - 1)]:
            continue
        if not value.dtype:
            return None
        if value.dtype is DType.FLOAT:
            cast.append(i)
            operands[i] = Value(TensorType(dtype, value.shape))
    if not cast:
        return None
    attrs = {k: v for k, v in INSIDE.get(node.op, {}).items() if node.attrs.get(k, default_attribute(node.op, k)) != v}
    trial = Node(node.op, operands, {**node.attrs, **attrs}, len(node.results))
    changed = _changed_results(node, trial, dtype)
    return None if changed is None else HalfForm(tuple(cast), changed, attrs)


def _changed_results(node: Node, trial: Node, dtype: DType) -> tuple[int, ...] | None:
    """The float32 results of ``node`` that are ``dtype`` in ``trial``; None if anything else changes, or is unknown."""
    try:
        types = infer_types(trial)
    except IllTyped:
        return None
    changed = []
    for i, (result, type_) in enumerate(zip(node.results, types, strict=False)):
        becomes = type_.dtype if isinstance(type_, TensorType) else DType.UNDEFINED
        if result.dtype is DType.FLOAT and becomes is dtype:
            changed.append(i)
        elif result.dtype is not becomes:
            return None
    return tuple(changed)


@cache
def _takes(op: str, dtype: DType) -> tuple[bool, ...]:
    """For each operand of ``op``, whether it may be float32 or ``dtype``; the last stands for all that follow."""
    if op == FAKE_QUANTIZE:
        return (True, False)
    schema: Any = schema_of(op)
    if schema is None:
        return ()
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    wanted = {f"tensor({DType.FLOAT.text})", f"tensor({dtype.text})"}
    fixed = _IN_FLOAT.get(op, ())
    return tuple(i not in fixed and wanted <= set(allowed.get(f.type_str, ())) for i, f in enumerate(schema.inputs))
