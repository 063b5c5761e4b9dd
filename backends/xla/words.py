"""What an attribute that is a word may say: lowerings tell these apart, and would take any other for one of them."""

from __future__ import annotations

from ...ir.graph import Node

__all__ = ["unknown_word"]

_WINDOWS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_RECURRENT = ("forward", "reverse", "bidirectional")
_COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"),
    *("align_corners", "asymmetric", "tf_crop_and_resize"),
)
_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    **{op: {"auto_pad": _WINDOWS} for op in ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "QLinearConv")},
    **{op: {"auto_pad": _WINDOWS} for op in ("LpPool", "MaxPool")},
    **{op: {"direction": _RECURRENT} for op in ("GRU", "LSTM", "RNN")},
    **{op: {"mode": ("DCR", "CRD")} for op in ("DepthToSpace", "SpaceToDepth")},
    "BitShift": {"direction": ("LEFT", "RIGHT")},
    "Gelu": {"approximate": ("none", "tanh")},
    "GridSample": {"mode": ("linear", "nearest", "cubic"), "padding_mode": ("zeros", "border", "reflection")},
    "Resize": {
        "coordinate_transformation_mode": _COORDINATES,
        "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
        "mode": ("nearest", "linear", "cubic"),
        "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    },
    "RoiAlign": {
        "coordinate_transformation_mode": ("half_pixel", "output_half_pixel"),
        "mode": ("avg", "max"),
    },
    "TensorScatter": {"mode": ("linear", "circular")},
}


def unknown_word(node: Node) -> str | None:
    """Why an attribute of ``node`` is none of the words that it may be; None if all are."""
    for name, words in _WORDS.get(node.op, {}).items():
        word = node.attrs.get(name, words[0])
        if word not in words:
            return f"there is no {name} {word!r}: it is one of {', '.join(words)}"
    return None
