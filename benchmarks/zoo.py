"""The model zoo: raw exports of well-known architectures, the material of every benchmark here.

``python benchmarks/zoo.py OUT_DIR [NAME ...]`` writes one folder per model, and skips those that stand there already::

    OUT_DIR/bert-base/model.onnx        the graph as torch.onnx.export(dynamo=True, optimize=False) leaves it
    OUT_DIR/bert-base/model.onnx.data   its weights (external data)
    OUT_DIR/bert-base/inputs.npz        sample inputs, keyed by input name
    OUT_DIR/bert-base/outputs.npz       what PyTorch computes for them, keyed by output name, in output order

Architectures come from Hugging Face transformers configurations with random weights and fixed seeds, so nothing is
downloaded. Weights that an initializer leaves constant (zero biases, unit norms, new batch-norm statistics) get noise:
otherwise a wrong fold of ``+ 0`` or ``* 1`` would go unseen, and deduplication would look better than it is.

Each model is exported in a process of its own, so one failure or one memory peak does not reach the next.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SEED = 0
BATCH, SEQUENCE, TARGET_SEQUENCE = 2, 32, 12  # sample sizes; a dimension of 1 would be exported as a constant
NOISE = 0.05  # standard deviation of the noise on constant weights

Inputs = dict[str, "torch.Tensor"]
Axes = dict[str, dict[int, str]]  # input name -> dynamic axis -> its symbol


@dataclass(frozen=True)
class Recipe:
    """One zoo entry: a transformers model class, the configuration that differs from its default, and its inputs.

    Instead of the name of a class, ``model`` may be a function that builds a module from ``options``.
    """

    model: str | Callable[..., torch.nn.Module]
    inputs: Callable[[Any], tuple[Inputs, Axes]]
    options: dict[str, Any] = field(default_factory=dict)
    attention: str | None = None  # transformers' attn_implementation; None: its default, sdpa where a model has one


# --- sample inputs ---------------------------------------------------------------------------------------------------


def _tokens(vocabulary: int, length: int) -> torch.Tensor:
    """Random token ids that avoid the low ids, which configurations use for padding, start and end."""
    import torch

    return torch.randint(min(10, vocabulary // 2), vocabulary, (BATCH, length))


def _mask(length: int) -> torch.Tensor:
    """Attention mask of ones whose last row is padded at its end."""
    import torch

    mask = torch.ones(BATCH, length, dtype=torch.long)
    mask[-1, length - length // 4 :] = 0
    return mask


def text(config: Any) -> tuple[Inputs, Axes]:
    """Token ids and padding mask."""
    axes = {0: "batch", 1: "sequence"}
    inputs = {"input_ids": _tokens(config.vocab_size, SEQUENCE), "attention_mask": _mask(SEQUENCE)}
    return inputs, dict.fromkeys(inputs, axes)


def sequence_to_sequence(config: Any) -> tuple[Inputs, Axes]:
    """Encoder ids and mask, and decoder ids of a length of their own."""
    inputs, axes = text(config)
    inputs["decoder_input_ids"] = _tokens(config.vocab_size, TARGET_SEQUENCE)
    return inputs, axes | {"decoder_input_ids": {0: "batch", 1: "target_sequence"}}


def image(size: int) -> Callable[[Any], tuple[Inputs, Axes]]:
    """Square RGB images of ``size`` pixels a side, dynamic in the batch."""

    def build(_config: Any) -> tuple[Inputs, Axes]:
        import torch

        return {"pixel_values": torch.randn(BATCH, 3, size, size)}, {"pixel_values": {0: "batch"}}

    return build


def text_and_image(config: Any) -> tuple[Inputs, Axes]:
    """Captions and images; each side has its own batch."""
    inputs, axes = text(config.text_config)
    inputs["input_ids"][:, -1] = config.text_config.eos_token_id
    pixels, _ = image(config.vision_config.image_size)(config)
    return inputs | pixels, axes | {"pixel_values": {0: "images"}}


def audio(config: Any) -> tuple[Inputs, Axes]:
    """A log-mel spectrogram of the length that the encoder's position table asks for, and decoder ids."""
    import torch

    frames = 2 * config.max_source_positions
    inputs = {
        "input_features": torch.randn(BATCH, config.num_mel_bins, frames),
        "decoder_input_ids": _tokens(config.vocab_size, TARGET_SEQUENCE),
    }
    return inputs, {"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "target_sequence"}}


def unet_block(**options: Any) -> torch.nn.Module:
    """A block of a Stable-Diffusion-like UNet."""
    from attention_modules import UNetBlock

    return UNetBlock(**options)


def latents_and_text(_config: Any) -> tuple[Inputs, Axes]:
    """What `unet_block` takes."""
    import torch

    inputs = {"x": torch.randn(BATCH, 320, 64, 64), "text": torch.randn(BATCH, 77, 768)}
    return inputs, {name: {0: "batch"} for name in inputs}


# --- the zoo ---------------------------------------------------------------------------------------------------------

_SMALL_DECODER = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "use_cache": False,
}

ZOO: dict[str, Recipe] = {
    "bert-base": Recipe("BertModel", text, attention="eager"),
    "gpt2": Recipe("GPT2LMHeadModel", text, {"use_cache": False}),
    "mobilenet-v2": Recipe("MobileNetV2ForImageClassification", image(224), {"num_labels": 1000}),
    "t5-small": Recipe("T5ForConditionalGeneration", sequence_to_sequence, {"use_cache": False}, "eager"),
    "swin-tiny": Recipe("SwinForImageClassification", image(224), {"num_labels": 1000}),
    "bert-base-sdpa": Recipe("BertModel", text, attention="sdpa"),
    "distilbert": Recipe("DistilBertForSequenceClassification", text),
    "roberta-base": Recipe("RobertaModel", text, {"vocab_size": 50265, "max_position_embeddings": 514}),
    "albert-base": Recipe(
        "AlbertModel",
        text,
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    ),
    "llama-6l": Recipe("LlamaForCausalLM", text, _SMALL_DECODER | {"num_key_value_heads": 12}),
    "mistral-6l": Recipe(
        "MistralForCausalLM",
        text,
        _SMALL_DECODER | {"num_key_value_heads": 4, "head_dim": 64, "sliding_window": 4096},
        "eager",
    ),
    "qwen3-6l": Recipe(
        "Qwen3ForCausalLM",
        text,
        _SMALL_DECODER | {"num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000},
    ),
    "bart-base": Recipe(
        "BartModel",
        sequence_to_sequence,
        {
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
            "use_cache": False,
        },
    ),
    "vit-base": Recipe("ViTForImageClassification", image(224), {"num_labels": 1000}),
    "deit-small": Recipe(
        "DeiTForImageClassification",
        image(224),
        {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_labels": 1000},
        "eager",
    ),
    "clip-base": Recipe("CLIPModel", text_and_image),
    "whisper-tiny": Recipe(
        "WhisperForConditionalGeneration",
        audio,
        {
            "d_model": 384,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 6,
            "encoder_ffn_dim": 1536,
            "decoder_ffn_dim": 1536,
            "use_cache": False,
        },
    ),
    "resnet-50": Recipe("ResNetForImageClassification", image(224), {"num_labels": 1000}),
    "convnext-tiny": Recipe("ConvNextForImageClassification", image(224), {"num_labels": 1000}),
    "efficientnet-b0": Recipe(
        "EfficientNetForImageClassification",
        image(224),
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280, "num_labels": 1000},
    ),
    "unet-block": Recipe(unet_block, latents_and_text, {"channels": 320, "heads": 8, "text": 768}),
    "segformer-b0": Recipe("SegformerForSemanticSegmentation", image(512), {"num_labels": 150}),
}


# --- export ----------------------------------------------------------------------------------------------------------


def build(recipe: Recipe) -> tuple[torch.nn.Module, Inputs, Axes]:
    """Build the model with random weights, its sample inputs and their dynamic axes."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    if not isinstance(recipe.model, str):
        model = recipe.model(**recipe.options).eval().requires_grad_(False)
        _disturb_constants(model)
        return model, *recipe.inputs(None)
    model_class = getattr(transformers, recipe.model)
    config = model_class.config_class(**recipe.options)
    if recipe.attention is not None:
        config._attn_implementation = recipe.attention
    model = model_class(config).eval().requires_grad_(False)
    _disturb_constants(model)
    inputs, axes = recipe.inputs(config)
    return model, inputs, axes


def _disturb_constants(model: torch.nn.Module) -> None:
    """Add noise to every weight that is one repeated number (see the module docstring)."""
    import torch

    statistics = [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    for tensor in [*model.parameters(), *statistics]:
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.add_(NOISE * torch.randn_like(tensor))


def export(recipe: Recipe, folder: Path) -> str:
    """Export one model into ``folder`` and return a line that describes the result."""
    import numpy as np
    import torch
    from torch.utils._pytree import tree_leaves

    started = time.perf_counter()
    model, inputs, axes = build(recipe)
    with torch.no_grad():
        results = [leaf.numpy() for leaf in tree_leaves(model(**inputs)) if isinstance(leaf, torch.Tensor)]
        program = torch.onnx.export(
            model, kwargs=inputs, dynamo=True, optimize=False, dynamic_shapes=axes, external_data=True, verbose=False
        )
    assert program is not None
    program.save(folder / "model.onnx", external_data=True)
    input_names = [value.name for value in program.model.graph.inputs]
    output_names = [value.name for value in program.model.graph.outputs]
    if len(output_names) != len(results) or set(input_names) != set(inputs):
        raise RuntimeError(f"interface differs: ONNX {input_names} -> {output_names}, PyTorch {len(results)} outputs")
    np.savez(folder / "inputs.npz", **{key: value.numpy() for key, value in inputs.items()})
    np.savez(folder / "outputs.npz", **dict(zip(output_names, results, strict=True)))
    nodes = len(program.model.graph)
    return f"{nodes} nodes, {len(results)} outputs, {time.perf_counter() - started:.0f} s"


def export_in_subprocess(name: str, out: Path, script: str = __file__, flags: Sequence[str] = ()) -> bool:
    """Export one model in a fresh process; the finished folder appears in one step. Return whether it succeeded.

    The process runs a ``script`` that ends in `export_recipes`, with ``flags`` of its own.
    """
    part = out / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    command = [sys.executable, script, *flags, "--into", str(part), str(out), name]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = child.stdout.strip().splitlines()
    line = lines[-1] if lines else f"failed: exit code {child.returncode}"
    print(f"{name}: {line}", flush=True)
    if child.returncode == 0:
        part.rename(out / name)
    else:
        shutil.rmtree(part, ignore_errors=True)
    return child.returncode == 0


def reason(error: BaseException) -> str:
    """One line that names the deepest cause of an exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"failed: {type(error).__name__}: {message[:200]}"


def arguments(description: str, recipes: Iterable[str]) -> argparse.ArgumentParser:
    """The command line of a script that exports ``recipes``, names of models."""
    parser = argparse.ArgumentParser(description=description, epilog=f"Models: {', '.join(recipes)}.")
    parser.add_argument("out", type=Path, help="folder that takes one folder per model")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to export (default: all)")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # the child process of export_in_subprocess
    return parser


def export_recipes(
    recipes: Mapping[str, Recipe], args: argparse.Namespace, script: str = __file__, flags: Sequence[str] = ()
) -> int:
    """Do what `arguments` ask a ``script`` for; the exit code is 1 where an export failed."""
    names = args.names or list(recipes)
    if unknown := [name for name in names if name not in recipes]:
        raise SystemExit(f"no such model: {', '.join(unknown)}")
    if args.into is not None:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        try:
            print(export(recipes[names[0]], args.into))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in an export is one line of the zoo's report
            print(reason(error))
            return 1
        return 0
    missing = [name for name in names if not (args.out / name / "model.onnx").exists()]
    failed = [name for name in missing if not export_in_subprocess(name, args.out, script, flags)]
    return 1 if failed else 0


def main() -> int:
    """Run the command line; the exit code is 1 where an export failed."""
    return export_recipes(ZOO, arguments("Export the model zoo.", ZOO).parse_args())


if __name__ == "__main__":
    sys.exit(main())
