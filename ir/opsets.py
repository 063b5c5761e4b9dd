"""Versions of the standard operators: which revisions of a definition left the meaning of existing nodes alone.

Every release of the operator set revises operators. A revision either changes what a node means (an attribute became
an input, a default changed): then the ONNX frontend has an adapter for it. Or it only adds: types, optional attributes,
optional operands; then it is listed here, and a node that uses none of the additions is the same in both versions, in
either direction. A test walks the history of every operator and fails where a revision is neither, so that each new
release of onnx is reviewed before planish trusts it.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["NEWEST", "OLDEST", "is_compatible", "least_ir_version"]

OLDEST = 7  # the first version with today's broadcasting: what planish writes at the earliest
NEWEST = 28  # the last version that was reviewed

_COMPATIBLE: dict[int, str] = {
    7: ("AveragePool"),
    8: ("Max MaxPool Mean Min Sum"),
    9: ("Cast Constant Flatten Gemm Greater Less MatMul PRelu"),
    10: ("AveragePool MaxPool"),
    11: (
        "ArgMax ArgMin AveragePool Compress Concat Constant Conv ConvTranspose DepthToSpace Equal Flatten Gather Gemm "
        "Hardmax If LogSoftmax Loop LpPool MaxPool MaxUnpool NonMaxSuppression OneHot ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Scan Slice Softmax Split "
        "Squeeze TopK Unsqueeze"
    ),
    12: ("ArgMax ArgMin Clip Constant GatherND Max MaxPool Min Pow ReduceMax ReduceMin"),
    13: (
        "Abs Add ArgMax ArgMin Cast Ceil Clip Concat Constant DepthToSpace DequantizeLinear Div Dropout Equal Exp "
        "Expand Flatten Floor Gather GatherElements GatherND Gemm Greater Identity If IsNaN LRN Less Log Loop MatMul "
        "Max Mean MeanVarianceNormalization Min Mod Mul Neg NegativeLogLikelihoodLoss NonZero Pad Pow QuantizeLinear "
        "Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSumSquare Relu Reshape ScatterElements ScatterND Shape Sigmoid Sign Size Slice SoftmaxCrossEntropyLoss "
        "SpaceToDepth Sqrt Sub Sum Tanh Tile Transpose"
    ),
    14: ("Add CumSum Div GRU Identity LSTM Mul RNN Relu Reshape Sub"),
    15: ("BatchNormalization Pow Shape"),
    16: ("GreaterOrEqual Identity If LeakyRelu LessOrEqual Loop PRelu Scan ScatterElements ScatterND Where"),
    18: ("LpPool OptionalGetElement OptionalHasElement Pad Resize ScatterElements ScatterND"),
    19: (
        "AveragePool Cast CastLike Constant DequantizeLinear Equal Identity If Loop Pad QuantizeLinear Reshape Resize "
        "Scan Shape Size"
    ),
    20: ("ConstantOfShape IsInf IsNaN ReduceMax ReduceMin"),
    21: (
        "Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad QLinearMatMul "
        "QuantizeLinear Reshape Scan Shape Size Squeeze Transpose Unsqueeze"
    ),
    22: (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool Bernoulli Conv ConvTranspose Cos Cosh DeformConv Det Dropout "
        "Elu EyeLike GRU GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample HardSigmoid HardSwish "
        "InstanceNormalization LSTM LpNormalization LpPool MaxPool MaxRoiPool MaxUnpool Mish Multinomial "
        "NegativeLogLikelihoodLoss RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike RoiAlign Round "
        "Selu Sin Sinh Softplus Softsign Tan ThresholdedRelu"
    ),
    23: (
        "Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad QuantizeLinear Reshape "
        "Scan Shape Size Squeeze Transpose Unsqueeze"
    ),
    24: (
        "Attention Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad "
        "QuantizeLinear Reshape Scan Shape Size SplitToSequence Squeeze TopK Transpose Unsqueeze"
    ),
    25: (
        "Attention Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad "
        "QuantizeLinear Reshape Scan Shape Size Squeeze Transpose Unsqueeze"
    ),
    27: ("Range"),
    28: (
        "BitShift Cast Celu Compress DepthToSpace DequantizeLinear Einsum Mod OneHot Optional OptionalGetElement "
        "OptionalHasElement QuantizeLinear ReverseSequence SpaceToDepth Unique"
    ),
}
_REVISIONS = frozenset((op, since) for since, ops in _COMPATIBLE.items() for op in ops.split())


_IR_VERSIONS = (3,) * 8 + (4, 5, 6, 7, 7, 7, 8, 8, 8, 8, 9, 9, 10, 10, 11, 12, 13, 13, 13, 14)  # of opset 1, 2, …
_ONNX_DOMAINS = frozenset({"ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"})


def least_ir_version(opsets: Mapping[str, int]) -> int:
    """The lowest IR version of the ONNX file format in which a model may use ``opsets``."""
    if _ONNX_DOMAINS.isdisjoint(opsets) and opsets.get("", 1) <= len(_IR_VERSIONS):
        return _IR_VERSIONS[opsets.get("", 1) - 1]
    import onnx.helper

    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return int(onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))


def is_compatible(op: str, since: int) -> bool:
    """Whether the revision of ``op`` in version ``since`` of the standard operator set only added to it."""
    return (op, since) in _REVISIONS
