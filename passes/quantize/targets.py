"""What each target computes in integers, and how it wants quantization placed: facts as data.

The placement (`planish.passes.quantize.placement`) and the encodings of the backends read these tables; nothing else
depends on the target. Facts were measured with ONNX Runtime 1.31 on x86-64 with AVX512-VNNI, or read in the targets'
documentation (TensorRT 10 and 11; XLA).
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace

from ..base import RequestError

__all__ = ["Target", "target_for"]

_MOVES = frozenset(
    {
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Gather", "Split"),
        *("DepthToSpace", "SpaceToDepth", "Expand", "Tile"),
    }
)


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: of the target, with its variant.
        activation: the format of activations.
        symmetric: whether the zero point of activations must be 0.
        weight: the format of weights; ``int7`` where eight bits would overflow 16-bit sums.
        per_channel: whether a weight may have a scale per output channel.
        layers: operators with weights that have an integer kernel.
        needs_output: those of them that run in integers only if their result is quantized, too.
        absorbs: activations that a quantized layer computes by saturation or in its epilogue.
        computes: operators without weights that have an integer kernel, if operands and results are quantized.
        moves: operators that only move elements, or pick some; they run on integers of one scale.
        residual_only: whether of an addition behind a convolution only the other operand is quantized.
        dynamic: layers for which ranges may be found at run time.
        blocks: layers for which that may be done for blocks of rows.
        block_size: of those: so many neighbours, or whole rows (0), whose products are integers with a scale per row.
        tables: operators that pick rows of a table, which may be stored as integers.
        widens: those of the layers whose weights of less than eight bits become eight when the model is loaded.
    """

    name: str
    activation: str = "int8"
    symmetric: bool = True
    weight: str = "int8"
    per_channel: bool = True
    layers: frozenset[str] = frozenset({"Conv", "MatMul", "Gemm"})
    needs_output: frozenset[str] = frozenset()
    absorbs: frozenset[str] = frozenset({"Relu", "Clip"})
    computes: frozenset[str] = frozenset()
    moves: frozenset[str] = _MOVES
    residual_only: bool = False
    dynamic: frozenset[str] = frozenset()
    blocks: frozenset[str] = frozenset()
    block_size: int = 128
    tables: frozenset[str] = frozenset()
    widens: frozenset[str] = frozenset()


_ORT = Target(
    "onnxruntime:x64",
    activation="uint8",
    symmetric=False,
    needs_output=frozenset({"Conv"}),
    computes=frozenset(
        {
            *("Add", "Mul", "Concat", "Sigmoid", "LeakyRelu"),
            *("AveragePool", "GlobalAveragePool", "MaxPool", "Resize"),
        }
    ),
    dynamic=frozenset({"MatMul", "Gemm"}),
    blocks=frozenset({"MatMul", "Gemm"}),
    tables=frozenset({"Gather"}),
    widens=frozenset({"Conv"}),
)
_TARGETS = {
    t.name: t
    for t in (
        _ORT,
        replace(_ORT, name="onnxruntime:x64-avx2", weight="int7"),
        replace(_ORT, name="onnxruntime:arm64", activation="int8"),
        Target(
            "tensorrt",
            layers=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
            computes=frozenset({"Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"}),
            residual_only=True,
        ),
        Target(
            "xla",
            dynamic=frozenset({"MatMul", "Gemm"}),
            blocks=frozenset({"MatMul", "Gemm"}),
            block_size=0,
            tables=frozenset({"Gather"}),
        ),
    )
}
_HERE = "onnxruntime:arm64" if platform.machine().lower() in ("arm64", "aarch64") else "onnxruntime:x64"
_ALIASES = {"onnxruntime": _HERE, "reference": _HERE, "tpu": "xla"}


def target_for(name: str) -> Target:
    """The facts about the target called ``name``; without a variant, ONNX Runtime is the one for this processor.

    Raises:
        RequestError: nothing is known about it.
    """
    family = name.partition(":")[0]
    for key in (name, family, _ALIASES.get(family, "")):
        if key in _TARGETS:
            return _TARGETS[key]
    raise RequestError(f"nothing is known of quantization for {name!r}: there are {', '.join(_TARGETS)}")
