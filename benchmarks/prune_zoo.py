"""The zoo of pruning: architectures that couple channels in every common way, for `prune_models` and `prune_peers`.

``python benchmarks/prune_zoo.py OUT [NAME ...] [--small]`` writes one folder per model, laid out as `zoo.py` does (its
docstring says what is in there; weights are random and seeded, constant ones get noise). ``--small`` gives each the
same topology with few channels and small inputs, which tests run in a second.

Architectures come from transformers' configurations where it has them. The others are written here as their papers
describe them: DenseNet, ResNeXt and squeeze-and-excitation, ShuffleNet v2, U-Nets, recurrent classifiers, gated
feed-forward networks, and a detector of the shape of YOLOv5s.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import BATCH, SEQUENCE, Axes, Inputs, Recipe, arguments, export_recipes, image, text

# --- building blocks -------------------------------------------------------------------------------------------------


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
    padding: int | None = None,
) -> nn.Sequential:
    """Convolution without bias, batch normalization, activation (None: none); ``padding`` keeps the size by default."""
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, channels, height, width."""
        return x * self.gate(x)


# --- ResNet's relatives ----------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 (in groups) and 1x1 convolutions, with squeeze-and-excitation if ``squeezed``."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int, squeezed: int):
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(inputs, width),
            conv_norm(width, width, 3, stride, groups),
            conv_norm(width, outputs, act=None),
            *([SqueezeExcite(outputs, squeezed)] if squeezed else []),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, channels, height, width."""
        return functional.relu(self.body(x) + self.shortcut(x))


class ResNeXt(nn.Module):
    """Classifier of bottlenecks in groups (Xie et al. 2017, arXiv 1611.05431), or with gates (SE-ResNet).

    Args:
        depths: blocks of each stage.
        channels: of the first block's result; they double from stage to stage.
        groups: of the 3x3 convolutions.
        squeeze: channels of a block over those of its gate; 0: no gate.
        classes: of the classifier.
    """

    def __init__(self, depths: Sequence[int], channels: int, groups: int = 1, squeeze: int = 0, classes: int = 1000):
        super().__init__()
        stem = channels // 4
        self.stem = nn.Sequential(conv_norm(3, stem, 7, 2), nn.MaxPool2d(3, 2, 1))
        blocks, inputs = [], stem
        for stage, depth in enumerate(depths):
            outputs = channels << stage
            width = outputs // (2 if groups > 1 else 4)
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(Bottleneck(inputs, width, outputs, stride, groups, outputs // squeeze if squeeze else 0))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``pixel_values``: batch, 3, height, width."""
        return self.head(self.blocks(self.stem(pixel_values)))


# --- DenseNet --------------------------------------------------------------------------------------------------------


def _norm_conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


class DenseBlock(nn.Module):
    """Layers that each see all results before them."""

    def __init__(self, inputs: int, depth: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(_norm_conv(inputs + i * growth, 4 * growth, 1), _norm_conv(4 * growth, growth, 3))
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, channels, height, width."""
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


class DenseNet(nn.Module):
    """Classifier of dense blocks, DenseNet-BC (Huang et al. 2017, arXiv 1608.06993)."""

    def __init__(self, depths: Sequence[int], growth: int, classes: int = 1000):
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [conv_norm(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
        for index, depth in enumerate(depths):
            layers.append(DenseBlock(channels, depth, growth))
            channels += depth * growth
            if index + 1 < len(depths):
                layers += [_norm_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``pixel_values``: batch, 3, height, width."""
        return self.head(self.features(pixel_values).mean((2, 3)))


# --- ShuffleNet ------------------------------------------------------------------------------------------------------


class ShuffleUnit(nn.Module):
    """Half of the channels is computed, or both halves where ``stride`` is 2; then halves are interleaved."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        half, self.stride = outputs // 2, stride
        first = half if stride == 1 else inputs
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(conv_norm(inputs, inputs, 3, stride, inputs, act=None), conv_norm(inputs, half))
        )
        self.body = nn.Sequential(
            conv_norm(first, half), conv_norm(half, half, 3, stride, half, act=None), conv_norm(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, channels, height, width."""
        left, right = x.chunk(2, 1) if self.stride == 1 else (x, x)
        joined = torch.cat([self.shortcut(left), self.body(right)], 1)
        batch, channels, height, width = joined.shape
        shuffled = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return shuffled.reshape(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """Classifier of shuffle units, version 2 (Ma et al. 2018, arXiv 1807.11164)."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int], classes: int = 1000):
        super().__init__()
        first, *stages, last = widths
        layers: list[nn.Module] = [conv_norm(3, first, 3, 2), nn.MaxPool2d(3, 2, 1)]
        for inputs, outputs, depth in zip([first, *stages], stages, depths, strict=False):
            layers.append(ShuffleUnit(inputs, outputs, 2))
            layers += [ShuffleUnit(outputs, outputs, 1) for _ in range(depth - 1)]
        self.features = nn.Sequential(*layers, conv_norm(stages[-1], last))
        self.head = nn.Linear(last, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``pixel_values``: batch, 3, height, width."""
        return self.head(self.features(pixel_values).mean((2, 3)))


# --- U-Net -----------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Segmentation with skip connections (Ronneberger et al. 2015, arXiv 1505.04597).

    Args:
        widths: channels of each level, the finest first.
        groups: of GroupNorm, with SiLU, as in diffusion models; 0: BatchNorm and ReLU.
        resize: enlarge by repeating pixels, as opposed to transposed convolutions.
        classes: channels of the result.
    """

    def __init__(self, widths: Sequence[int], groups: int = 0, resize: bool = False, classes: int = 4):
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for first in (inputs, outputs):
                layers.append(nn.Conv2d(first, outputs, 3, padding=1, bias=bool(groups)))
                layers.append(nn.GroupNorm(groups, outputs) if groups else nn.BatchNorm2d(outputs))
                layers.append(nn.SiLU() if groups else nn.ReLU())
            return nn.Sequential(*layers)

        def enlarge(inputs: int, outputs: int) -> nn.Module:
            if not resize:
                return nn.ConvTranspose2d(inputs, outputs, 2, 2)
            return nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(inputs, outputs, 3, padding=1))

        pairs = list(itertools.pairwise(widths))
        self.first = block(3, widths[0])
        self.down = nn.ModuleList(block(fine, coarse) for fine, coarse in pairs)
        self.enlarge = nn.ModuleList(enlarge(coarse, fine) for fine, coarse in reversed(pairs))
        self.up = nn.ModuleList(block(2 * fine, fine) for fine, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``pixel_values``: batch, 3, height, width."""
        x = self.first(pixel_values)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(functional.max_pool2d(x, 2))
        for enlarge, up in zip(self.enlarge, self.up, strict=True):
            x = up(torch.cat([skips.pop(), enlarge(x)], 1))
        return self.head(x)


# --- text ------------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Classifier of token ids: embedding, ``kind`` of recurrent layers (``LSTM``, ``GRU``), mean over time."""

    def __init__(self, kind: str, vocabulary: int, width: int, hidden: int, layers: int, directions: int, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrent = getattr(nn, kind)(width, hidden, layers, batch_first=True, bidirectional=directions == 2)
        self.body = nn.Sequential(nn.Linear(directions * hidden, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``input_ids``: batch, sequence."""
        states, _ = self.recurrent(self.embedding(input_ids))
        return self.head(self.body(states.mean(1)))


class Gated(nn.Module):
    """Language model of nothing but gated feed-forward blocks (Shazeer 2020, arXiv 2002.05202) on a residual stream.

    Blocks alternate between one projection that is split in two and two projections; the embedding is tied to the head.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int, blocks: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(blocks + 1))
        self.packed = nn.ModuleList(nn.Linear(width, 2 * hidden) for _ in range(0, blocks, 2))
        self.gate = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(1, blocks, 2))
        self.up = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(1, blocks, 2))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(blocks))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """``input_ids``: batch, sequence."""
        x = self.embedding(input_ids)
        for index, down in enumerate(self.down):
            y = self.norms[index](x)
            if index % 2:
                gated = functional.silu(self.gate[index // 2](y)) * self.up[index // 2](y)
            else:
                gated = functional.glu(self.packed[index // 2](y), -1)
            x = x + down(gated)
        return self.head(self.norms[-1](x))


def tokens(vocabulary: int) -> Callable[[Any], tuple[Inputs, Axes]]:
    """Token ids alone."""

    def build(_config: Any) -> tuple[Inputs, Axes]:
        return {"input_ids": torch.randint(vocabulary, (BATCH, SEQUENCE))}, {"input_ids": {0: "batch", 1: "sequence"}}

    return build


# --- a detector of the shape of YOLOv5 -------------------------------------------------------------------------------


class C3(nn.Module):
    """Cross-stage partial block: a chain of (residual) bottlenecks beside a shortcut, joined by a convolution."""

    def __init__(self, inputs: int, outputs: int, depth: int, residual: bool = True):
        super().__init__()
        half, self.residual = outputs // 2, residual
        self.first, self.beside = _conv_silu(inputs, half), _conv_silu(inputs, half)
        self.chain = nn.ModuleList(
            nn.Sequential(_conv_silu(half, half), _conv_silu(half, half, 3)) for _ in range(depth)
        )
        self.last = _conv_silu(2 * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, channels, height, width."""
        y = self.first(x)
        for link in self.chain:
            y = y + link(y) if self.residual else link(y)
        return self.last(torch.cat([y, self.beside(x)], 1))


class SPPF(nn.Module):
    """Pyramid of poolings, each of the one before it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.last = _conv_silu(inputs, inputs // 2), _conv_silu(2 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: batch, channels, height, width."""
        found = [self.first(x)]
        for _ in range(3):
            found.append(functional.max_pool2d(found[-1], 5, 1, 2))
        return self.last(torch.cat(found, 1))


def _conv_silu(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    return conv_norm(inputs, outputs, kernel, stride, act=nn.SiLU, padding=padding)


class Detector(nn.Module):
    """CSP backbone, pyramid of features downwards and upwards again (PAN), and three heads, decoded to boxes.

    Args:
        width: channels of the first convolution (YOLOv5s: 32).
        depth: bottlenecks of the shortest chain (YOLOv5s: 1).
        classes: of objects.
    """

    STRIDES = (8, 16, 32)
    ANCHORS = (
        ((10, 13), (16, 30), (33, 23)),
        ((30, 61), (62, 45), (59, 119)),
        ((116, 90), (156, 198), (373, 326)),
    )

    def __init__(self, width: int = 32, depth: int = 1, classes: int = 80):
        super().__init__()
        w1, w2, w4, w8, w16 = (width * factor for factor in (1, 2, 4, 8, 16))
        self.fine = nn.Sequential(
            _conv_silu(3, w1, 6, 2, 2),
            _conv_silu(w1, w2, 3, 2),
            C3(w2, w2, depth),
            _conv_silu(w2, w4, 3, 2),
            C3(w4, w4, 2 * depth),
        )
        self.middle = nn.Sequential(_conv_silu(w4, w8, 3, 2), C3(w8, w8, 3 * depth))
        self.coarse = nn.Sequential(_conv_silu(w8, w16, 3, 2), C3(w16, w16, depth), SPPF(w16, w16))
        self.lateral = nn.ModuleList([_conv_silu(w16, w8), _conv_silu(w8, w4)])
        self.down = nn.ModuleList([C3(2 * w8, w8, depth, False), C3(2 * w4, w4, depth, False)])
        self.strided = nn.ModuleList([_conv_silu(w4, w4, 3, 2), _conv_silu(w8, w8, 3, 2)])
        self.up = nn.ModuleList([C3(2 * w4, w8, depth, False), C3(2 * w8, w16, depth, False)])
        self.numbers = 5 + classes
        self.heads = nn.ModuleList(nn.Conv2d(w, 3 * self.numbers, 1) for w in (w4, w8, w16))

    def decode(self, x: Tensor, level: int) -> Tensor:
        """Boxes in pixels, objectness and class scores: batch, anchors and places, 5 + classes."""
        batch, _, height, width = x.shape
        stride = self.STRIDES[level]
        anchors = torch.tensor(self.ANCHORS[level], dtype=torch.float32).view(1, 3, 1, 1, 2)
        y = x.view(batch, 3, self.numbers, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack((columns, rows), 2).view(1, 1, height, width, 2).float()
        xy, wh, scores = y.split((2, 2, self.numbers - 4), 4)
        found = torch.cat(((xy * 2 - 0.5 + grid) * stride, (wh * 2) ** 2 * anchors, scores), 4)
        return found.reshape(batch, 3 * height * width, self.numbers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``pixel_values``: batch, 3, height, width."""
        fine = self.fine(pixel_values)
        middle = self.middle(fine)
        top = self.lateral[0](self.coarse(middle))
        joined = self.down[0](torch.cat([functional.interpolate(top, scale_factor=2.0), middle], 1))
        between = self.lateral[1](joined)
        small = self.down[1](torch.cat([functional.interpolate(between, scale_factor=2.0), fine], 1))
        medium = self.up[0](torch.cat([self.strided[0](small), between], 1))
        large = self.up[1](torch.cat([self.strided[1](medium), top], 1))
        levels = zip(self.heads, (small, medium, large), strict=True)
        return torch.cat([self.decode(head(x), level) for level, (head, x) in enumerate(levels)], 1)


# --- the zoo ---------------------------------------------------------------------------------------------------------

_LLAMA = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12}
_TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}

ZOO: dict[str, tuple[Recipe, Recipe]] = {  # of real size, and small
    "resnet-50": (
        Recipe("ResNetForImageClassification", image(224), {"num_labels": 1000}),
        Recipe(
            "ResNetForImageClassification",
            image(32),
            {"num_labels": 10, "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]},
        ),
    ),
    "mobilenet-v2": (
        Recipe("MobileNetV2ForImageClassification", image(224), {"num_labels": 1000}),
        Recipe(
            "MobileNetV2ForImageClassification", image(32), {"num_labels": 10, "depth_multiplier": 0.25, "min_depth": 4}
        ),
    ),
    "efficientnet-b0": (
        Recipe(
            "EfficientNetForImageClassification",
            image(224),
            {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280}
            | {"num_labels": 1000},
        ),
        Recipe(
            "EfficientNetForImageClassification",
            image(32),
            {"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": 32, "hidden_dim": 320}
            | {"num_labels": 10, "depth_divisor": 4},
        ),
    ),
    "vit-small": (
        Recipe(
            "ViTForImageClassification",
            image(224),
            {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_labels": 1000},
        ),
        Recipe(
            "ViTForImageClassification",
            image(32),
            _TINY | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "num_labels": 10},
        ),
    ),
    "swin-tiny": (
        Recipe("SwinForImageClassification", image(224), {"num_labels": 1000}),
        Recipe("SwinForImageClassification", image(32), _SWIN | {"num_labels": 10}),
    ),
    "convnext-tiny": (
        Recipe("ConvNextForImageClassification", image(224), {"num_labels": 1000}),
        Recipe(
            "ConvNextForImageClassification",
            image(32),
            {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "num_labels": 10},
        ),
    ),
    "densenet-121": (
        Recipe(DenseNet, image(224), {"depths": (6, 12, 24, 16), "growth": 32}),
        Recipe(DenseNet, image(32), {"depths": (2, 3), "growth": 8, "classes": 10}),
    ),
    "resnext-50": (
        Recipe(ResNeXt, image(224), {"depths": (3, 4, 6, 3), "channels": 256, "groups": 32}),
        Recipe(ResNeXt, image(32), {"depths": (2, 2), "channels": 32, "groups": 4, "classes": 10}),
    ),
    "se-resnet-50": (
        Recipe(ResNeXt, image(224), {"depths": (3, 4, 6, 3), "channels": 256, "squeeze": 16}),
        Recipe(ResNeXt, image(32), {"depths": (2, 2), "channels": 32, "squeeze": 4, "classes": 10}),
    ),
    "shufflenet-v2": (
        Recipe(ShuffleNet, image(224), {"depths": (4, 8, 4), "widths": (24, 116, 232, 464, 1024)}),
        Recipe(ShuffleNet, image(32), {"depths": (2, 2), "widths": (8, 16, 32, 64), "classes": 10}),
    ),
    "unet": (
        Recipe(UNet, image(128), {"widths": (32, 64, 128, 256, 512)}),
        Recipe(UNet, image(16), {"widths": (8, 16, 24)}),
    ),
    "unet-group-norm": (
        Recipe(UNet, image(128), {"widths": (32, 64, 128, 256), "groups": 8, "resize": True}),
        Recipe(UNet, image(16), {"widths": (16, 24, 32), "groups": 4, "resize": True}),
    ),
    "yolov5s": (Recipe(Detector, image(640)), Recipe(Detector, image(64), {"width": 8, "classes": 4})),
    "yolov5s-320": (Recipe(Detector, image(320)), Recipe(Detector, image(32), {"width": 16, "classes": 4})),
    "bert-6l": (
        Recipe("BertModel", text, {"num_hidden_layers": 6}),
        Recipe("BertModel", text, _TINY | {"num_hidden_layers": 2, "vocab_size": 100}),
    ),
    "llama-gqa": (
        Recipe("LlamaForCausalLM", text, _LLAMA | {"num_key_value_heads": 4, "vocab_size": 8000, "use_cache": False}),
        Recipe(
            "LlamaForCausalLM",
            text,
            _TINY | {"num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 100, "use_cache": False},
        ),
    ),
    "gated-ffn": (
        Recipe(Gated, tokens(8000), {"vocabulary": 8000, "width": 512, "hidden": 1408, "blocks": 6}),
        Recipe(Gated, tokens(100), {"vocabulary": 100, "width": 16, "hidden": 40, "blocks": 4}),
    ),
    "lstm-text": (
        Recipe(
            Recurrent,
            tokens(20000),
            {
                "kind": "LSTM",
                "vocabulary": 20000,
                "width": 256,
                "hidden": 512,
                "layers": 2,
                "directions": 1,
                "classes": 8,
            },
        ),
        Recipe(
            Recurrent,
            tokens(100),
            {"kind": "LSTM", "vocabulary": 100, "width": 16, "hidden": 24, "layers": 2, "directions": 1, "classes": 4},
        ),
    ),
    "gru-text": (
        Recipe(
            Recurrent,
            tokens(20000),
            {
                "kind": "GRU",
                "vocabulary": 20000,
                "width": 256,
                "hidden": 384,
                "layers": 2,
                "directions": 2,
                "classes": 8,
            },
        ),
        Recipe(
            Recurrent,
            tokens(100),
            {"kind": "GRU", "vocabulary": 100, "width": 16, "hidden": 24, "layers": 2, "directions": 2, "classes": 4},
        ),
    ),
}


def recipes(small: bool) -> dict[str, Recipe]:
    """The recipe of each model, of real size or ``small``."""
    return {name: pair[small] for name, pair in ZOO.items()}


def main() -> int:
    """Run the command line; the exit code is 1 where an export failed."""
    parser = arguments("Export the zoo of pruning.", ZOO)
    parser.add_argument("--small", action="store_true", help="few channels and small inputs, the same topology")
    args = parser.parse_args()
    return export_recipes(recipes(args.small), args, __file__, ["--small"] if args.small else [])


if __name__ == "__main__":
    sys.exit(main())
