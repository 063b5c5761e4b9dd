"""Exports small models with attention in every form that `attention_coverage` counts.

``python benchmarks/attention_zoo.py OUT [NAME…] [--jobs N]`` writes OUT/<name>.<form>/ with ``model.onnx``,
``inputs.npz``, ``outputs.npz`` (PyTorch's), and ``sites.json``: how often softmax weights were multiplied with values
while PyTorch ran the model. Weights are random; none is left constant. Exports run in processes of their own; what
fails is in OUT/failures.json. What exists is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BATCH, LENGTH, TARGET, VOCABULARY = 2, 12, 7, 200
SECONDS = 240  # for one export

# families: class, kind of input, configuration

_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
}
_CAUSAL = {**_TEXT, "use_cache": False}
_GROUPED = {**_CAUSAL, "num_key_value_heads": 2}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "use_cache": False}
_IMAGE = {k: v for k, v in _TEXT.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
_PAIR = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": VOCABULARY,
    "use_cache": False,
    "max_position_embeddings": 64,
}
_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "use_cache": False,
}
_WAVE = {
    **{k: v for k, v in _TEXT.items() if k != "vocab_size"},
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_RELATIVE = {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

CORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "text", _TEXT),
    "distilbert": (
        "DistilBertModel",
        "text",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": VOCABULARY},
    ),
    "roberta": ("RobertaModel", "text", _TEXT),
    "albert": ("AlbertModel", "text", {**_TEXT, "embedding_size": 32}),
    "deberta-v2": (
        "DebertaV2Model",
        "text",
        {**_RELATIVE, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    "gpt2": ("GPT2LMHeadModel", "text", _GPT),
    "gpt-neox": ("GPTNeoXModel", "text", _CAUSAL),
    "llama": ("LlamaForCausalLM", "text", _GROUPED),
    "mistral": ("MistralModel", "text", {**_GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2Model", "text", _GROUPED),
    "gemma2": ("Gemma2Model", "text", {**_GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6}),
    "phi": ("PhiModel", "text", _CAUSAL),
    "falcon": ("FalconModel", "text", {**_CAUSAL, "multi_query": True, "new_decoder_architecture": False}),
    "bloom": (
        "BloomModel",
        "text",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "use_cache": False},
    ),
    "opt": ("OPTModel", "text", {**_CAUSAL, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64}),
    "t5": ("T5Model", "pair", _T5),
    "bart": ("BartModel", "pair", _PAIR),
    "whisper": (
        "WhisperModel",
        "spectrogram",
        {**_PAIR, **_SPECIAL, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 32},
    ),
    "vit": ("ViTModel", "image", _IMAGE),
    "deit": ("DeiTModel", "image", _IMAGE),
    "beit": ("BeitModel", "image", {**_IMAGE, "use_relative_position_bias": True}),
    "swin": ("SwinModel", "image", _SWIN),
    "segformer": (
        "SegformerModel",
        "image",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [4, 2],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
        },
    ),
    "clip": (
        "CLIPModel",
        "text and image",
        {
            "text_config": {**_TEXT, "max_position_embeddings": 32, "eos_token_id": VOCABULARY - 1},
            "vision_config": _IMAGE,
        },
    ),
    "yolos": ("YolosModel", "image", {**_IMAGE, "image_size": [32, 32], "num_detection_tokens": 5}),
    "wav2vec2": ("Wav2Vec2Model", "wave", _WAVE),
}
# no rule was written with these in view
FURTHER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "biogpt": ("BioGptModel", "text", _CAUSAL),
    "blenderbot": ("BlenderbotModel", "pair", _PAIR),
    "codegen": ("CodeGenModel", "text", {**_GPT, "rotary_dim": 8}),
    "cohere": ("CohereModel", "text", _GROUPED),
    "convbert": ("ConvBertModel", "text", {**_TEXT, "embedding_size": 64}),
    "ctrl": ("CTRLModel", "text", {**_GPT, "dff": 128}),
    "data2vec": ("Data2VecTextModel", "text", _TEXT),
    "deberta": ("DebertaModel", "text", {**_RELATIVE, "max_relative_positions": 16}),
    "dinov2": ("Dinov2Model", "image", _IMAGE),
    "dpt": ("DPTModel", "image", _IMAGE),
    "electra": ("ElectraModel", "text", _TEXT),
    "esm": ("EsmModel", "text", {**_TEXT, "pad_token_id": 0, "mask_token_id": 1, "position_embedding_type": "rotary"}),
    "funnel": (
        "FunnelModel",
        "text",
        {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "block_sizes": [1, 1], "vocab_size": VOCABULARY},
    ),
    "gemma": ("GemmaModel", "text", {**_GROUPED, "head_dim": 16}),
    "gemma3": ("Gemma3TextModel", "text", {**_GROUPED, "head_dim": 16, "sliding_window": 6}),
    "glm": ("GlmModel", "text", {**_GROUPED, "head_dim": 16, "pad_token_id": 0}),
    "gpt-bigcode": ("GPTBigCodeModel", "text", _GPT),
    "gpt-neo": (
        "GPTNeoModel",
        "text",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": VOCABULARY,
            "use_cache": False,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
        },
    ),
    "gptj": ("GPTJModel", "text", {**_GPT, "rotary_dim": 8}),
    "granite": ("GraniteModel", "text", _GROUPED),
    "hubert": ("HubertModel", "wave", _WAVE),
    "layoutlm": ("LayoutLMModel", "text", _TEXT),
    "levit": (
        "LevitModel",
        "image",
        {
            "image_size": 32,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "attention_ratio": [2, 2, 2],
            "mlp_ratio": [2, 2, 2],
        },
    ),
    "m2m100": ("M2M100Model", "pair", _PAIR),
    "marian": ("MarianModel", "pair", {**_PAIR, "pad_token_id": 0, "decoder_start_token_id": 0}),
    "mbart": ("MBartModel", "pair", _PAIR),
    "mobilebert": ("MobileBertModel", "text", {**_TEXT, "intra_bottleneck_size": 32, "embedding_size": 32}),
    "mobilevit": (
        "MobileViTModel",
        "image",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "neck_hidden_sizes": [8, 16, 16, 24, 32, 32, 32],
            "num_attention_heads": 4,
        },
    ),
    "modernbert": ("ModernBertModel", "text", {**_TEXT, "local_attention": 8, "pad_token_id": 0}),
    "mpnet": ("MPNetModel", "text", _TEXT),
    "mpt": (
        "MptModel",
        "text",
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY, "use_cache": False},
    ),
    "mt5-encoder": ("MT5EncoderModel", "text", _T5),
    "nemotron": ("NemotronModel", "text", _GROUPED),
    "olmo2": ("Olmo2Model", "text", _GROUPED),
    "openai-gpt": ("OpenAIGPTModel", "text", {k: v for k, v in _GPT.items() if k != "use_cache"}),
    "pegasus": ("PegasusModel", "pair", _PAIR),
    "persimmon": ("PersimmonModel", "text", _CAUSAL),
    "phi3": ("Phi3Model", "text", {**_GROUPED, "pad_token_id": 0}),
    "qwen3": ("Qwen3Model", "text", {**_GROUPED, "head_dim": 16}),
    "rembert": ("RemBertModel", "text", {**_TEXT, "input_embedding_size": 32}),
    "roformer": ("RoFormerModel", "text", {**_TEXT, "embedding_size": 64}),
    "sam-vision": (
        "SamVisionModel",
        "image",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "mlp_dim": 128,
            "global_attn_indexes": [1],
            "window_size": 4,
            "output_channels": 16,
        },
    ),
    "siglip": ("SiglipVisionModel", "image", _IMAGE),
    "smollm3": ("SmolLM3Model", "text", {**_GROUPED, "pad_token_id": 0}),
    "splinter": ("SplinterModel", "text", _TEXT),
    "squeezebert": ("SqueezeBertModel", "text", {**_TEXT, "embedding_size": 64}),
    "stablelm": ("StableLmModel", "text", _GROUPED),
    "starcoder2": ("Starcoder2Model", "text", _GROUPED),
    "swinv2": ("Swinv2Model", "image", _SWIN),
    "timesformer": ("TimesformerModel", "video", {**_IMAGE, "num_frames": 4}),
    "videomae": ("VideoMAEModel", "video", {**_IMAGE, "num_frames": 4, "tubelet_size": 2}),
    "vit-msn": ("ViTMSNModel", "image", _IMAGE),
    "wavlm": ("WavLMModel", "wave", _WAVE),
    "xglm": (
        "XGLMModel",
        "text",
        {
            "d_model": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 128,
            "vocab_size": VOCABULARY,
            "use_cache": False,
        },
    ),
    "xlnet": (
        "XLNetModel",
        "text",
        {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": VOCABULARY},
    ),
}
CACHED = ("gpt2", "llama", "mistral", "qwen2", "gemma2", "phi", "gpt-neox", "opt", "bloom")

# forms: attention implementation, exporter, operator set, optimized by the exporter, dynamic shapes

FORMS: dict[str, tuple[str, bool, int, bool, bool]] = {
    "eager-18-dynamic": ("eager", True, 18, False, True),
    "sdpa-18-static": ("sdpa", True, 18, False, False),
    "sdpa-18-optimized": ("sdpa", True, 18, True, True),
    "eager-23-static": ("eager", True, 23, False, False),
    "sdpa-23-dynamic": ("sdpa", True, 23, False, True),
    "eager-torchscript": ("eager", False, 17, False, True),
    "sdpa-torchscript": ("sdpa", False, 17, False, True),
}
FURTHER_FORMS = ("sdpa-18-optimized", "eager-23-static", "eager-torchscript")
MODULE_FORMS = ("eager-18-dynamic", "sdpa-23-dynamic", "eager-torchscript")
CACHE_FORM = "cache-18-dynamic"


def names() -> list[str]:
    """All exports, as name.form."""
    from attention_modules import cases

    found = [f"{n}.{f}" for n in CORE for f in FORMS]
    found += [f"{n}.{CACHE_FORM}" for n in CACHED]
    found += [f"{n}.{f}" for n in FURTHER for f in FURTHER_FORMS]
    return found + [f"{n}.{f}" for n in cases() for f in MODULE_FORMS]


# models


def build(name: str, attention: str) -> tuple[Any, dict[str, Any], dict[str, Any] | None]:
    """The module, its inputs and what is dynamic in them."""
    import torch

    torch.manual_seed(0)
    if name not in CORE and name not in FURTHER:
        from attention_modules import cases

        module, inputs, axes = cases()[name]()
        return disturbed(module), inputs, axes
    import transformers

    class_name, kind, options = {**CORE, **FURTHER}[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**options)
    config._attn_implementation = attention
    try:
        module = model_class(config)
    except ValueError:  # it has no such implementation
        config._attn_implementation = "eager"
        module = model_class(config)
    inputs, axes = _inputs(kind, config)
    return disturbed(module), inputs, axes


def disturbed(module: Any) -> Any:
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn(parameter.shape).to(parameter.dtype))
    return module.eval().requires_grad_(False)


def _inputs(kind: str, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    rows = {0: "batch", 1: "sequence"}
    ids = torch.randint(10, VOCABULARY - 1, (BATCH, LENGTH))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 9:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    size = getattr(config, "image_size", 32)
    size = size if isinstance(size, int) else size[0]
    image = {"pixel_values": torch.randn(BATCH, 3, *((size, size) if size <= 64 else (32, 32)))}
    target = {"decoder_input_ids": ids[:, :TARGET].clone()}
    target_rows = {"decoder_input_ids": {0: "batch", 1: "target"}}
    match kind:
        case "text":
            return text, dict.fromkeys(text, rows)
        case "pair":
            return {**text, **target}, {**dict.fromkeys(text, rows), **target_rows}
        case "image":
            return image, {"pixel_values": {0: "batch"}}
        case "video":
            return {"pixel_values": torch.randn(BATCH, 4, 3, 32, 32)}, {"pixel_values": {0: "batch"}}
        case "wave":
            return {"input_values": torch.randn(BATCH, 320)}, {"input_values": {0: "batch"}}
        case "spectrogram":
            return {"input_features": torch.randn(BATCH, 8, 40), **target}, {
                "input_features": {0: "batch"},
                **target_rows,
            }
    ids[:, -1] = VOCABULARY - 1
    return {**text, **image}, {**dict.fromkeys(text, rows), "pixel_values": {0: "images"}}


def with_cache(module: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The decoder for a few new tokens, with past keys and values as inputs and all of them as outputs."""
    import torch
    from transformers import DynamicCache

    past, new = 5, 3
    with torch.no_grad():
        filled = module(input_ids=inputs["input_ids"][:, :past], past_key_values=DynamicCache(), use_cache=True)
    layers = [(layer.keys, layer.values) for layer in filled.past_key_values.layers]

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, input_ids: Any, attention_mask: Any, *flat: Any) -> Any:
            cache = DynamicCache()
            for i in range(len(flat) // 2):
                cache.update(flat[2 * i], flat[2 * i + 1], i)
            result = self.inner(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True
            )
            kept = [t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)]
            return (result[0], *kept)

    arrays = {
        "input_ids": inputs["input_ids"][:, past : past + new].contiguous(),
        "attention_mask": inputs["attention_mask"][:, : past + new].contiguous(),
    }
    flat = {f"past_{i}": t.contiguous() for i, t in enumerate(t for pair in layers for t in pair)}
    axes: dict[str, Any] = {"input_ids": {0: "batch", 1: "new"}, "attention_mask": {0: "batch", 1: "total"}}
    return Decoder().eval(), {**arrays, **flat}, {**axes, **{n: {0: "batch", 2: "past"} for n in flat}}


# counting

_KEEPS = (  # what weights pass through
    *("view", "copy", "expand", "clone", "dropout", "where", "masked_fill", "reshape", "permute", "transpose"),
    *("squeeze", "mul", "alias", "detach", "select", "slice"),
)


def count_sites(call: Any) -> int:
    """How many products of softmax weights with values ``call`` computes."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.sites = 0
            self.weights: dict[int, Any] = {}  # the tensors live as long as this does, so that ids stay theirs

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            name = str(function)
            tensor = result[0] if isinstance(result, tuple | list) and result else result
            if "scaled_dot_product" in name:
                self.sites += 1
            elif "softmax" in name and args[1] in (-1, args[0].dim() - 1):
                self.weights[id(tensor)] = tensor
            elif any(isinstance(a, torch.Tensor) and id(a) in self.weights for a in args):
                if ("mm" in name) and id(args[0]) in self.weights:
                    self.sites += 1
                elif any(word in name for word in _KEEPS) and isinstance(tensor, torch.Tensor):
                    self.weights[id(tensor)] = tensor
            return result

    with torch.no_grad(), Counter() as counter:
        call()
    return counter.sites


# export


def export(full: str, folder: Path) -> None:
    """Export ``name.form`` into ``folder``."""
    import numpy as np
    import torch
    from attention_modules import UNFUSABLE
    from torch.utils._pytree import tree_leaves

    name, form = full.split(".")
    cached = form == CACHE_FORM
    attention, dynamo, opset, optimize, dynamic = FORMS["eager-18-dynamic" if cached else form]
    torch.backends.mha.set_fastpath_enabled(False)
    module, inputs, axes = build(name, attention)
    if cached:
        module, inputs, axes = with_cache(module, inputs)
    positional = cached or name not in {**CORE, **FURTHER}
    call = (lambda: module(*inputs.values())) if positional else (lambda: module(**inputs))
    with torch.no_grad():
        results = [t for t in tree_leaves(call()) if isinstance(t, torch.Tensor)]
        sites = count_sites(call)
        if dynamo:
            export_dynamo(module, inputs, axes if dynamic else None, folder, opset, optimize, positional)
        else:
            export_torchscript(module, inputs, axes if dynamic else None, folder, opset, positional)
    np.savez(folder / "inputs.npz", **{k: v.numpy() for k, v in inputs.items()})
    np.savez(folder / "outputs.npz", **{f"{i:03}": t.numpy() for i, t in enumerate(results)})
    require_running(folder)
    facts = {"sites": sites, "unfusable": UNFUSABLE.get(name, ""), "core": name not in FURTHER}
    (folder / "sites.json").write_text(json.dumps(facts))


def require_running(folder: Path) -> None:
    """Some exports do not run at all: nobody can make anything of these."""
    from evaluate import load_inputs, open_session

    session = open_session(folder / "model.onnx", threads=1)
    inputs = load_inputs(folder / "inputs.npz")
    session.run(None, {v.name: inputs[v.name] for v in session.get_inputs()})


def export_dynamo(
    module: Any, inputs: dict[str, Any], axes: Any, folder: Path, opset: int, optimize: bool, positional: bool
) -> None:
    import torch

    options: dict[str, Any] = {"dynamo": True, "opset_version": opset, "optimize": optimize, "verbose": False}
    if positional:
        shapes = None if axes is None else tuple(axes.get(n) for n in inputs)
        if shapes is not None and any("past" in n for n in inputs) and "input_ids" in inputs:
            shapes = (*shapes[:2], shapes[2:])  # behind *flat
        program = torch.onnx.export(module, tuple(inputs.values()), dynamic_shapes=shapes, **options)
    else:
        program = torch.onnx.export(module, kwargs=inputs, dynamic_shapes=axes, **options)
    assert program is not None
    names = list(inputs)
    for value, name in zip(program.model.graph.inputs, names, strict=False):
        value.name = name
    program.save(folder / "model.onnx")


def export_torchscript(
    module: Any, inputs: dict[str, Any], axes: Any, folder: Path, opset: int, positional: bool
) -> None:
    import torch
    from torch.utils._pytree import tree_leaves

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *args: Any) -> Any:
            result = (
                self.inner(*args)
                if positional
                else self.inner(**dict(zip(inputs, args, strict=True)), return_dict=True)
            )
            return [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]

    torch.onnx.export(
        Flat(),
        tuple(inputs.values()),
        folder / "model.onnx",
        dynamo=False,
        opset_version=opset,
        input_names=list(inputs),
        dynamic_axes=axes,
    )


def _attempt(export_one: Callable[[str, Path], None], full: str, folder: Path, answer: Any) -> None:
    """In a process of its own."""
    warnings.filterwarnings("ignore")
    try:
        export_one(full, folder)
    except BaseException as error:  # noqa: BLE001 - whatever goes wrong in an export is one line of the report
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        answer.send(f"{type(cause).__name__}: {(lines or [''])[0][:160]}")
    else:
        answer.send("")


def run(full: str, out: Path, export_one: Callable[[str, Path], None] = export, seconds: int = SECONDS) -> str:
    """Export in a process of its own; returns what went wrong, or ""."""
    part = out / f".{full}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    context = multiprocessing.get_context("fork")  # torch and transformers are loaded once
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_attempt, args=(export_one, full, part, sender))
    child.start()
    sender.close()
    try:
        problem = receiver.recv() if receiver.poll(seconds) else f"more than {seconds} s"
    except EOFError:
        problem = "the process died"
    child.kill()
    if problem:
        shutil.rmtree(part)
    else:
        part.rename(out / full)
    print(f"{full}: {problem or 'exported'}", flush=True)
    return problem


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Export small models with attention.")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="families or name.form (default: all)")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    import transformers  # noqa: F401 - for the processes to come

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [n for n in names() if not args.names or n in args.names or n.split(".")[0] in args.names]
    todo = [n for n in wanted if not (args.out / n).exists()]
    with ThreadPoolExecutor(args.jobs) as pool:
        problems = dict(zip(todo, pool.map(lambda n: run(n, args.out), todo), strict=True))
    known = args.out / "failures.json"
    before = json.loads(known.read_text()) if known.exists() else {}
    kept = {n: p for n, p in {**before, **problems}.items() if p}
    known.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
