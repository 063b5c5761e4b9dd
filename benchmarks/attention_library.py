"""Exports every architecture of the installed transformers library that can be shrunk by rule.

``python benchmarks/attention_library.py OUT [NAME…] [--forms FORM…] [--jobs N]`` builds the base model of each
configuration class with random weights. `RULES` name the size that a field stands for, `SIZES` say how large it may be,
and `VARIANTS` are tried in turn until the model runs. OUT/<model type>.<form>/ is what `attention_zoo` writes, for
`attention_coverage`, and ``facts.json``: what was built. What fails is in OUT/failures.json. What exists is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import os
import re
import resource
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attention_zoo import (
    BATCH,
    FORMS,
    LENGTH,
    SECONDS,
    TARGET,
    VOCABULARY,
    count_sites,
    disturbed,
    export_dynamo,
    export_torchscript,
    require_running,
    run,
)

DEFAULT_FORMS = ("sdpa-18-optimized",)
MEMORY = 16 << 30  # of one export, in bytes
WEIGHTS = 60_000_000
SAMPLES = 3920  # of a wave: 12 frames of 320, and the rest of the first window
GRID = (1, 4, 4)  # of patches: times, rows, columns
Inputs = tuple[dict[str, Any], dict[str, Any]]

# shrinking

SIZES = {
    "layers": 2,
    "heads": 4,
    "groups": 2,  # of heads that share keys and values
    "head": 16,
    "rotary": 8,
    "width": 64,
    "half": 32,
    "inner": 128,
    "narrow": 16,  # the smallest of several widths
    "vocabulary": VOCABULARY,
    "codebook": 128,
    "positions": 64,
    "window": 6,
    "image window": 4,
    "image": 32,
    "patch": 8,
    "frames": 4,
    "bins": 32,
    "experts": 4,
    "few": 4,
    "two": 2,
    "one": 1,
    "none": 0,
    "share": 1,  # of each width, where they depend on each other
    "absent": 0,  # whether what has no default gets the size
    "chunk": 8,
    "queries": 10,
}
WIDE = 1 << 30
SHARED = ("width", "head", "half", "inner", "rotary")
# what is tried until a model runs
VARIANTS: tuple[dict[str, int], ...] = (
    {},
    {"groups": 4},
    {"groups": 4, "absent": 1},
    {"head": WIDE, "rotary": WIDE},
    {"image": 64},
    {"image": 128},
    {"layers": 4, "image": 64},
    {"width": 128, "heads": 2, "groups": 1},
    {"width": 256, "heads": 2, "groups": 1},
    {"width": 128, "head": 32, "rotary": 16, "half": 64, "inner": 256},
    {"share": 4, "heads": WIDE, "groups": WIDE, "image": 128},
    {"image": 224, "patch": 16, "image window": WIDE, "positions": WIDE},
    dict.fromkeys(("heads", "groups", "head", "rotary", "width", "half", "inner", "narrow", "bins", "queries"), WIDE),
    {k: WIDE for k in SIZES if k not in ("layers", "vocabulary", "window", "experts", "none", "absent")},
)
# the first pattern that is found in a field's name says what it is
RULES: tuple[tuple[str, str], ...] = (
    (r"^(id2label|label2id|chunk_size_feed_forward|pretraining_tp|num_feat_extract_layers)$", ""),
    (r"^(qk_head_dim|stage_names|.*out_(features|indices)|.*kernel.*|.*strides?|.*ratios?|.*padding)$", ""),
    (r"codebook_size", "codebook"),
    (r"vocab_size|vocab$|num_embeddings$", "vocabulary"),
    (r"token_(id|index)s?$|_(pad|bos|eos)_id$", "token"),
    (r"shared_layers|^ple_layer_ids$", "none"),
    (r"index_topk", "chunk"),
    (r"topk_group|first_k_dense|offset$", "one"),
    (r"experts_per_tok|top_?k$|moe_k$|n_groups?$|period$|sparse_step|layer_interval", "two"),
    (r"experts$", "experts"),
    (r"mamba.*head_?dim|mamba_d_head|_rank$|num_pos_feats|^scale$", "half"),
    (r"(kv|key_value|num_key).*heads?|kv_n_heads|query_groups", "groups"),
    (r"heads?(_per_(layer|stage))?$", "heads"),
    (r"^rotary_dim", "rotary"),
    (r"head_?dim$|head_size$|^d_(kv|head)$|kv_channels|query_pre_attn_scalar|key_dim$|dim_head", "head"),
    (r"(layers?|depths?|blocks?|blocks_per_stage|num_.*_blocks|_nlayers)$", "layers"),
    (r"(layer|block).*(idxs?|ids|index(es)?|indices)$|_attn_indexes$|_attention_blocks$|_visual_indexes$", "layers"),
    (r"intermediate|ffn|ff$|d_inner|mlp_dim|feed_?forward|linear_units", "inner"),
    (r"(image|img|crop|spec)_size$|^resolution$|train_size", "image"),
    (r"patch_sizes?$", "patch"),
    (r"num_frames|frames_per_clip", "frames"),
    (r"mel_bins|^feature_size$|^n_mels$", "bins"),
    (r"sliding_windows?(_size)?$|^local_attention$|attention_window(_size)?$", "window"),
    (r"window_size", "image window"),
    (r"chunk_(size|length)$", "chunk"),
    (r"position|^n_ctx$|context_length|max_(seq_len|length|text_len)|block_size|num_patches$|_length$", "positions"),
    (r"num_queries|num_.*(query_tokens|latents|tokens)$|num_(denoising|landmarks)", "queries"),
    (
        r"upsample_groups|hidden_sizes?|hidden_size_|d_model|d_latents|embed|n_embd|(dims?|width|channels|_size)$|^d(im|iff)$",
        "width",
    ),
)


def shrunk(config: Any, sizes: dict[str, int]) -> Any:
    """The configuration with every field that a rule knows made small, and so are the configurations in it."""
    from transformers import PreTrainedConfig

    kind = type(config)
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    fields |= set(inspect.signature(kind.__init__).parameters)
    values = {n: v for n, v in vars(config).items() if n in fields}
    layers = [v for n, v in values.items() if isinstance(v, int) and v > 4 and _size(n) == "layers"]
    changed = {}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            changed[name] = shrunk(value, sizes)
        elif isinstance(value, list | tuple) and len(value) in layers and not _counts(value, len(value)):
            changed[name] = _kinds(value, sizes["layers"])
        elif name.startswith("rope_"):
            changed[name] = _rope(value)
        elif (small := _small(name, value, sizes)) != value:
            changed[name] = small
    result = kind(**changed)
    stages = getattr(config, "stage_names", None)
    if stages and stages == result.stage_names:  # of a backbone: the same ones go on
        result = kind(**changed, out_features=list(config.out_features))
    return result


def _size(name: str) -> str:
    return next((size for pattern, size in RULES if re.search(pattern, name)), "")


def _small(name: str, value: Any, sizes: dict[str, int]) -> Any:
    size = _size(name)
    if isinstance(value, list | tuple) and value and size:
        if all(isinstance(v, list | tuple) for v in value):
            return type(value)(_small(name, v, sizes) for v in value)
        if not all(type(v) is int for v in value):
            return value
        return type(value)(_several(size, list(value), sizes))
    if value is None and sizes["absent"] and size in ("experts", "two", "head"):
        return sizes[size]
    if type(value) is not int or not size:
        return value
    if size == "token":
        return _token(name, value)
    if sizes["share"] > 1 and size in SHARED:
        return _shared(value, sizes)
    return min(value, sizes[size])


def _shared(value: int, sizes: dict[str, int]) -> int:
    return value // sizes["share"] if value > sizes["narrow"] else value


def _several(size: str, values: list[int], sizes: dict[str, int]) -> list[int]:
    """The same for a list: widths and heads of stages keep their proportions, indices of layers stay inside."""
    if size == "token":
        return [v % 10 for v in values]
    if size == "layers" and _counts(values, WIDE):
        return sorted({min(v, sizes["layers"] - 1) for v in values})
    if sizes["share"] > 1 and size in SHARED:
        return [_shared(v, sizes) for v in values]
    if size in ("width", "heads") and min(values) > 0:
        least = max(1, min(values))
        target = min(least, sizes["narrow"] if size == "width" else 1 if sizes["heads"] < WIDE else least)
        return [max(1, v * target // least) for v in values]
    return [min(v, sizes[size]) for v in values]


def _counts(values: Any, limit: int) -> bool:
    """Whether these are indices, in order."""
    known = all(type(v) is int for v in values)
    return known and len(values) > 1 and list(values) == sorted(set(values)) and values[-1] < limit


def _kinds(values: Any, count: int) -> Any:
    """As many entries, of as many kinds as there are."""
    first = [values.index(v) for v in values if v in values]
    places = sorted(dict.fromkeys(first))[:count]
    places += [i for i in range(len(values)) if i not in places][: count - len(places)]
    return type(values)(values[i] for i in sorted(places))


def _rope(value: Any) -> Any:
    """Rotary parameters: the sections of a head add up to half of its size."""
    if isinstance(value, dict):
        return {k: _sections(v) if k == "mrope_section" else _rope(v) for k, v in value.items()}
    return value


def _sections(values: Any) -> Any:
    if not values:
        return values
    half = SIZES["head"] // 2
    small = [v * half // sum(values) for v in values]
    return type(values)([half - sum(small[1:]), *small[1:]])


def _token(name: str, value: int) -> int:
    """Below the inputs' own (from 10 on)."""
    known = {"pad": 0, "bos": 1, "eos": 2}
    return value if value < 10 else known.get(name.split("_", maxsplit=1)[0], 3 + zlib.crc32(name.encode()) % 7)


# building


def architectures() -> dict[str, str]:
    """Name of the export: model type."""
    from transformers.models.auto.modeling_auto import CONFIG_MAPPING_NAMES, MODEL_MAPPING_NAMES

    return {n.replace(".", "-"): n for n in sorted(set(CONFIG_MAPPING_NAMES) & set(MODEL_MAPPING_NAMES))}


def _classes(name: str) -> tuple[Any, Any]:
    """The configuration's and the base model's."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    config_class = CONFIG_MAPPING[architectures()[name]]
    model_class = MODEL_MAPPING[config_class]
    return config_class, model_class[0] if isinstance(model_class, tuple) else model_class


def build(name: str, attention: str) -> tuple[Any, Inputs, dict[str, Any]]:
    """The first variant that runs, its inputs and what is dynamic in them, and facts about it."""
    config_class, model_class = _classes(name)
    problems = []
    for number, variant in enumerate(VARIANTS):
        sizes = {**SIZES, **variant}
        try:
            config = shrunk(config_class(), sizes)
            module = _module(model_class, config, attention)
            inputs = _running(module, config, sizes)
            sites = _sites(module, inputs[0])
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the next variant may do
            problems.append(error)
            continue
        shapes = {k: [*v.shape] for k, v in inputs[0].items()}
        return module, inputs, {"class": model_class.__name__, "variant": number, "inputs": shapes, "sites": sites}
    raise problems[0]


def _sites(module: Any, inputs: dict[str, Any]) -> int:
    sites = count_sites(lambda: module(**inputs))
    if not sites:
        raise ValueError("no attention")
    return sites


def _module(model_class: Any, config: Any, attention: str) -> Any:
    import torch

    for part in _configs(config):
        if hasattr(part, "use_cache"):
            part.use_cache = False
        part._experts_implementation = "batched_mm"
    with torch.device("meta"):
        weights = sum(p.numel() for p in model_class(config).parameters())
    if weights > WEIGHTS:
        raise ValueError(f"{weights} weights")
    torch.manual_seed(0)
    config._attn_implementation = attention
    try:
        module = model_class(config)
    except ValueError:  # it has no such implementation
        config._attn_implementation = "eager"
        module = model_class(config)
    return disturbed(module)


def _configs(config: Any) -> Iterator[Any]:
    from transformers import PreTrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _configs(value)


# inputs


def _running(module: Any, config: Any, sizes: dict[str, int]) -> Inputs:
    """The first inputs with which the module computes something finite, twice the same."""
    problems = []
    for inputs, axes in _candidates(module, config, sizes):
        for given in (inputs, {k: v.clamp(min=1) if "mask" in k else v for k, v in inputs.items()}):
            try:
                _check(module, given)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, the next inputs may do
                problems.append(error)
            else:
                return given, axes
    raise problems[0] if problems else ValueError(f"no rule for inputs: {module.main_input_name}")


def _check(module: Any, inputs: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        first, second = (_tensors(module(**inputs)) for _ in range(2))
    if not first:
        raise ValueError("no outputs")
    if not all(torch.isfinite(t).all() for t in first):
        raise ValueError("an output is not finite")
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise ValueError("an output is random")


def _tensors(results: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [t for t in tree_leaves(results) if isinstance(t, torch.Tensor)]


def _candidates(module: Any, config: Any, sizes: dict[str, int]) -> Iterator[Inputs]:
    """Inputs as the signature asks for: text with something else, the main input alone, then each alone."""
    import torch

    torch.manual_seed(0)
    names = inspect.signature(module.forward).parameters
    known = {n: values for n in names if (values := _values(n, config, sizes, "grid_thw" in names))}
    text = {k: v for k, v in _text(config).items() if k in names}
    target = {k: v for k, v in text.items() if k.startswith("decoder")}
    source = {k: v for k, v in text.items() if not k.startswith("decoder")}
    main = sorted(known, key=lambda n: n != module.main_input_name)
    if "input_ids" in names:
        for name in main:
            yield from (_dynamic({**text, name: v}) for v in known[name])
        yield _dynamic(text)
        yield _dynamic(source)
    for name in main:
        yield from (_dynamic({name: v, **target}) for v in known[name])
    if len(known) > 1:
        yield _dynamic({n: v[0] for n, v in known.items()} | text)
    for name in ("input_ids", *main) if "input_ids" in names else main:
        for value in known.get(name, [None]):
            given = text if value is None else {name: value, **target}
            yield _dynamic(given | _extra(name, value, names, config))


def _text(config: Any) -> dict[str, Any]:
    import torch

    words = max(12, min(VOCABULARY, _field(config, ("vocab_size",), VOCABULARY)))
    ids = torch.randint(10, words - 1, (BATCH, LENGTH))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :TARGET].clone()}


def _values(name: str, config: Any, sizes: dict[str, int], grids: bool) -> list[Any]:
    """What an input that is not text may be. With grids, patches come one after the other."""
    import torch

    if grids and name in ("pixel_values", "hidden_states"):
        side = _field(config, ("patch_size",), 8)
        volume = side * side * _field(config, ("num_channels", "in_channels", "in_chans"), 3)
        volumes = {volume * _field(config, ("temporal_patch_size",), 1), volume}
        return [torch.randn(BATCH * math.prod(GRID), v) for v in sorted(volumes)[::-1]]
    sides = _sides(config, sizes)
    channels = _field(config, ("num_channels", "in_channels", "in_chans"), 3)
    frames = _field(config, ("num_frames", "frames_per_clip"), 4)
    bins = _field(config, ("num_mel_bins", "feature_size", "input_dim", "input_feat_per_channel"), 32)
    steps = 2 * _field(config, ("max_source_positions",), 32)
    width = _field(config, ("hidden_size", "d_model"), 64)
    context = _field(config, ("context_length", "max_length", "prediction_length"), 64)
    spectrograms = [(bins, steps), (steps, bins), (context, bins)]
    shapes: dict[str, list[tuple[int, ...]]] = {
        "pixel_values": [(channels, *sides), (frames, channels, *sides), (channels, frames, *sides)],
        "pixel_values_videos": [(frames, channels, *sides), (channels, frames, *sides)],
        "input_values": [(SAMPLES,), (1, SAMPLES), *spectrograms],
        "input_features": [*spectrograms, (1, steps, bins)],
        "past_values": [(context, _field(config, ("num_input_channels", "input_size"), 1)), (context,)],
        "hidden_states": [(LENGTH, width)],
        "query_embeds": [(LENGTH, width)],
    }
    return [torch.randn(BATCH, *shape) for shape in shapes.get(name, [])]


def _extra(name: str, value: Any, names: Any, config: Any) -> dict[str, Any]:
    """What some models ask for besides their main input: boxes, masks, another model's states."""
    import torch

    width = _field(config, ("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size"), 64)
    found = {
        "grid_thw": torch.tensor([GRID] * BATCH),
        "bbox": torch.randint(0, 32, (BATCH, LENGTH, 4)).sort(-1).values,
        "input_points": 32 * torch.rand(BATCH, 1, 2, 2),
        "encoder_hidden_states": torch.randn(BATCH, TARGET, width),
    }
    if value is not None and name.startswith("input_"):
        length = value.shape[1] if value.dim() == 2 else max(value.shape[1:])
        mask = torch.ones(BATCH, length, dtype=torch.long)
        found |= dict.fromkeys((f"{name}_mask", "feature_attention_mask", "padding_mask", "attention_mask"), mask)
    return {n: v for n, v in found.items() if n in names}


def _field(config: Any, names: tuple[str, ...], default: int) -> int:
    """The first of these fields that the configuration, or one in it, has."""
    for part in _configs(config):
        for name in names:
            if type(value := getattr(part, name, None)) is int:
                return value
    return default


def _sides(config: Any, sizes: dict[str, int]) -> tuple[int, int]:
    for part in _configs(config):
        value = getattr(part, "image_size", None)
        if type(value) is int:
            return value, value
        if isinstance(value, list | tuple) and len(value) == 2:
            return value[0], value[1]
    side = max(64, min(sizes["image"], 224))
    return side, side


def _dynamic(inputs: dict[str, Any]) -> Inputs:
    if "grid_thw" in inputs:
        return inputs, {n: {} for n in inputs}
    rows = {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}, "decoder_input_ids": {1: "target"}}
    return inputs, {n: {0: "batch", **rows.get(n, {})} for n in inputs}


# export


def export(full: str, folder: Path) -> None:
    """Export ``name.form`` into ``folder``."""
    import numpy as np
    import torch

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    name, form = full.split(".")
    torch.backends.mha.set_fastpath_enabled(False)
    module, (inputs, axes), facts = build(name, FORMS[form][0])
    with torch.no_grad():
        results = _tensors(module(**inputs))
        np.savez(folder / "inputs.npz", **{k: v.numpy() for k, v in inputs.items()})
        facts["static"] = _export(module, inputs, axes, folder, form)
    np.savez(folder / "outputs.npz", **{f"{i:03}": t.numpy() for i, t in enumerate(results)})
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))
    (folder / "sites.json").write_text(json.dumps({"sites": facts["sites"], "unfusable": "", "core": False}))


def _export(module: Any, inputs: dict[str, Any], axes: Any, folder: Path, form: str) -> str:
    """Export with dynamic shapes where the form has them; returns why they could not be."""
    _, dynamo, opset, optimize, dynamic = FORMS[form]
    problem = "by form"
    for given in (axes, None) if dynamic else (None,):
        try:
            if dynamo:
                export_dynamo(module, inputs, given, folder, opset, optimize, False)
            else:
                export_torchscript(module, inputs, given, folder, opset, False)
            require_running(folder)
        except Exception as error:
            if given is None:
                raise
            problem = " ".join(str(error.__cause__ or error).split())[:300]
        else:
            return "" if given else problem
    return problem


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Export small models of every architecture of transformers.")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="model types or name.form (default: all)")
    parser.add_argument("--forms", nargs="+", default=DEFAULT_FORMS, choices=list(FORMS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for one export")
    args = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import onnxscript  # noqa: F401 - for the processes to come
    import torch

    torch.set_num_threads(1)
    _classes("llama")  # and with it what all architectures import
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [f"{n}.{f}" for f in args.forms for n in architectures()]
    wanted = [n for n in wanted if not args.names or n in args.names or n.split(".")[0] in args.names]
    todo = [n for n in wanted if not (args.out / n).exists()]
    with ThreadPoolExecutor(args.jobs) as pool:
        problems = dict(zip(todo, pool.map(lambda n: run(n, args.out, export, args.seconds), todo), strict=True))
    known = args.out / "failures.json"
    before = json.loads(known.read_text()) if known.exists() else {}
    known.write_text(json.dumps({n: p for n, p in {**before, **problems}.items() if p}, indent=1))


if __name__ == "__main__":
    main()
