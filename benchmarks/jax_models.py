"""What XLA makes of models written in JAX by hand: flops, bytes and memory, on the CPU and on TPUs that are not there.

``python benchmarks/jax_models.py [NAME ...] [--platform cpu|tpu:v5e] [--batch 8] [--sequence 128]`` compiles BERT-base,
ViT-base/16 and ResNet-50, as an engineer writes them for inference (plain functions over a dictionary of float32
weights, batch normalization folded into the convolutions), and prints XLA's own cost model of each. Nothing runs and no
weights are needed. For TPUs the package ``libtpu`` compiles ahead of time on any Linux host.

``--check ZOO`` takes the weights from the exports of ``zoo.py`` instead, runs the functions on the CPU and compares
them with PyTorch's outputs: both compute the same function, so the costs of an exported model and of the function here
may be compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from tables import cell, markdown

# --- the models: weights are named as in the checkpoint; those of dense layers are [in, out] -------------------------

Params = Mapping[str, Any]  # name -> array (or its shape)

LAYERS, WIDTH, HEADS, HIDDEN = 12, 768, 12, 3072  # of both transformers
VOCABULARY, POSITIONS, TOKEN_TYPES = 30522, 512, 2
PIXELS, PATCH, CLASSES = 224, 16, 1000
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks and inner channels
EXPANSION = 4  # outer channels of a block per inner channel


def dense(params: Params, name: str, x: Array) -> Array:
    """``[..., in]`` -> ``[..., out]``."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def layer_norm(params: Params, name: str, x: Array) -> Array:
    """Normalize the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return centered * lax.rsqrt(variance + 1e-12) * params[f"{name}.weight"] + params[f"{name}.bias"]


def attention(params: Params, names: tuple[str, str, str, str], x: Array, mask: Array | None = None) -> Array:
    """Self-attention over ``[batch, positions, width]``; ``names``: query, key, value and output projection.

    ``mask`` is boolean and broadcasts to ``[batch, heads, positions, positions]``.
    """
    query, key, value = (dense(params, n, x).reshape(*x.shape[:2], HEADS, WIDTH // HEADS) for n in names[:3])
    mixed = jax.nn.dot_product_attention(query, key, value, mask=mask)
    return dense(params, names[3], mixed.reshape(x.shape))


def bert_base(params: Params, input_ids: Array, attention_mask: Array) -> tuple[Array, Array]:
    """Ids and mask ``[batch, sequence]`` -> hidden state ``[batch, sequence, 768]`` and pooled ``[batch, 768]``."""
    mask = attention_mask.astype(bool)[:, None, None, :]
    x = params["embeddings.word_embeddings.weight"][input_ids]
    x += params["embeddings.position_embeddings.weight"][: input_ids.shape[1]]
    x += params["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(params, "embeddings.LayerNorm", x)
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        mine = f"{at}.attention.self"
        names = (f"{mine}.query", f"{mine}.key", f"{mine}.value", f"{at}.attention.output.dense")
        x = layer_norm(params, f"{at}.attention.output.LayerNorm", x + attention(params, names, x, mask))
        inner = jax.nn.gelu(dense(params, f"{at}.intermediate.dense", x), approximate=False)
        x = layer_norm(params, f"{at}.output.LayerNorm", x + dense(params, f"{at}.output.dense", inner))
    return x, jnp.tanh(dense(params, "pooler.dense", x[:, 0]))


def vit_base(params: Params, pixel_values: Array) -> Array:
    """Images ``[batch, 3, 224, 224]`` -> logits ``[batch, 1000]``."""
    x = conv(params, "vit.embeddings.patch_embeddings.projection", pixel_values, PATCH, padding=0)
    x = x.reshape(x.shape[0], WIDTH, -1).swapaxes(1, 2)
    first = jnp.broadcast_to(params["vit.embeddings.cls_token"], (x.shape[0], 1, WIDTH))
    x = jnp.concatenate([first, x], axis=1) + params["vit.embeddings.position_embeddings"]
    for i in range(LAYERS):
        at = f"vit.layers.{i}"
        mine = f"{at}.attention"
        names = (f"{mine}.q_proj", f"{mine}.k_proj", f"{mine}.v_proj", f"{mine}.o_proj")
        x += attention(params, names, layer_norm(params, f"{at}.layernorm_before", x))
        inner = dense(params, f"{at}.mlp.fc1", layer_norm(params, f"{at}.layernorm_after", x))
        x += dense(params, f"{at}.mlp.fc2", jax.nn.gelu(inner, approximate=False))
    return dense(params, "classifier", layer_norm(params, "vit.layernorm", x)[:, 0])


def conv(params: Params, name: str, x: Array, stride: int = 1, padding: int | None = None) -> Array:
    """Convolve ``[batch, channels, height, width]``; without ``padding`` the output has 1 / ``stride`` of the size."""
    weight = params[f"{name}.weight"]
    edge = weight.shape[-1] // 2 if padding is None else padding
    y = lax.conv_general_dilated(x, weight, (stride, stride), [(edge, edge)] * 2)
    return y + params[f"{name}.bias"][:, None, None]


def resnet_50(params: Params, pixel_values: Array) -> Array:
    """Images ``[batch, 3, 224, 224]`` -> logits ``[batch, 1000]``."""
    x = jax.nn.relu(conv(params, "resnet.embedder.embedder", pixel_values, 2))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0), (0, 0), (1, 1), (1, 1)])
    for stage, (blocks, _) in enumerate(STAGES):
        for block in range(blocks):
            at = f"resnet.encoder.stages.{stage}.layers.{block}"
            stride = 2 if stage and not block else 1
            y = jax.nn.relu(conv(params, f"{at}.layer.0", x))
            y = jax.nn.relu(conv(params, f"{at}.layer.1", y, stride))
            y = conv(params, f"{at}.layer.2", y)
            x = jax.nn.relu(y + (x if block else conv(params, f"{at}.shortcut", x, stride)))
    return dense(params, "classifier.1", x.mean((2, 3)))


MODELS: dict[str, Callable[..., Any]] = {"bert-base": bert_base, "vit-base": vit_base, "resnet-50": resnet_50}


# --- shapes and weights ----------------------------------------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]


def shapes(name: str, batch: int = 8, sequence: int = 128) -> tuple[Any, ...]:
    """The arguments of the function of that name as structs: a dictionary of weights, then the inputs."""
    images = jax.ShapeDtypeStruct((batch, 3, PIXELS, PIXELS), jnp.float32)
    tokens = jax.ShapeDtypeStruct((batch, sequence), jnp.int32)
    weights, inputs = {
        "bert-base": (_bert_weights(), (tokens, tokens)),
        "vit-base": (_vit_weights(), (images,)),
        "resnet-50": (_resnet_weights(), (images,)),
    }[name]
    return {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in weights.items()}, *inputs


def _affine(names: Iterable[str], *weight: int, bias: int) -> Shapes:
    shape_of = {"weight": weight, "bias": (bias,)}
    return {f"{name}.{kind}": shape for name in names for kind, shape in shape_of.items()}


def _transformer_weights(at: str, square: Iterable[str], norms: Iterable[str], into: str, out_of: str) -> Shapes:
    return {
        **_affine((at + n for n in square), WIDTH, WIDTH, bias=WIDTH),
        **_affine((at + n for n in norms), WIDTH, bias=WIDTH),
        **_affine([at + into], WIDTH, HIDDEN, bias=HIDDEN),
        **_affine([at + out_of], HIDDEN, WIDTH, bias=WIDTH),
    }


def _bert_weights() -> Shapes:
    rows = {"word": VOCABULARY, "position": POSITIONS, "token_type": TOKEN_TYPES}
    weights: Shapes = {f"embeddings.{kind}_embeddings.weight": (count, WIDTH) for kind, count in rows.items()}
    weights |= _affine(["embeddings.LayerNorm"], WIDTH, bias=WIDTH)
    square = [f"attention.{n}" for n in ("self.query", "self.key", "self.value", "output.dense")]
    norms = ["attention.output.LayerNorm", "output.LayerNorm"]
    for i in range(LAYERS):
        weights |= _transformer_weights(f"encoder.layer.{i}.", square, norms, "intermediate.dense", "output.dense")
    return weights | _affine(["pooler.dense"], WIDTH, WIDTH, bias=WIDTH)


def _vit_weights() -> Shapes:
    positions = (PIXELS // PATCH) ** 2 + 1
    weights: Shapes = {
        "vit.embeddings.cls_token": (1, 1, WIDTH),
        "vit.embeddings.position_embeddings": (1, positions, WIDTH),
    }
    weights |= _affine(["vit.embeddings.patch_embeddings.projection"], WIDTH, 3, PATCH, PATCH, bias=WIDTH)
    square = [f"attention.{n}_proj" for n in "qkvo"]
    for i in range(LAYERS):
        norms = ["layernorm_before", "layernorm_after"]
        weights |= _transformer_weights(f"vit.layers.{i}.", square, norms, "mlp.fc1", "mlp.fc2")
    weights |= _affine(["vit.layernorm"], WIDTH, bias=WIDTH)
    return weights | _affine(["classifier"], WIDTH, CLASSES, bias=CLASSES)


def _resnet_weights() -> Shapes:
    channels = STAGES[0][1]
    weights = _affine(["resnet.embedder.embedder"], channels, 3, 7, 7, bias=channels)
    for stage, (blocks, inner) in enumerate(STAGES):
        outer = EXPANSION * inner
        for block in range(blocks):
            at = f"resnet.encoder.stages.{stage}.layers.{block}"
            weights |= _affine([f"{at}.layer.0"], inner, channels, 1, 1, bias=inner)
            weights |= _affine([f"{at}.layer.1"], inner, inner, 3, 3, bias=inner)
            weights |= _affine([f"{at}.layer.2"], outer, inner, 1, 1, bias=outer)
            if not block:
                weights |= _affine([f"{at}.shortcut"], outer, channels, 1, 1, bias=outer)
            channels = outer
    return weights | _affine(["classifier.1"], channels, CLASSES, bias=CLASSES)


def load_weights(path: Path, params: Params) -> dict[str, np.ndarray]:
    """The weights of an export of the zoo, for the names and shapes of ``params``.

    Dense weights are transposed, and normalization is folded into the convolution before it.
    """
    import onnx

    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    result = {}
    for name, struct in params.items():
        owner, _, kind = name.rpartition(".")
        normalization = f"{owner}.normalization"
        if f"{normalization}.weight" in stored:
            scale, shift, mean, variance = (
                stored[f"{normalization}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / np.sqrt(variance + np.float32(1e-5))
            kernel = stored[f"{owner}.convolution.weight"]
            array = kernel * scale[:, None, None, None] if kind == "weight" else shift - mean * scale
        else:
            array = stored[name].T if stored[name].ndim == 2 and f"{owner}.bias" in stored else stored[name]
        if array.shape != struct.shape:
            raise ValueError(f"{name} of {path} has shape {array.shape}, not {struct.shape}")
        result[name] = array
    return result


def check(name: str, folder: Path) -> float:
    """Largest difference from PyTorch's outputs, relative to their range, with the weights and inputs of an export."""
    inputs, expected = (np.load(folder / file) for file in ("inputs.npz", "outputs.npz"))
    params = load_weights(folder / "model.onnx", shapes(name)[0])
    results = jax.tree.leaves(jax.jit(MODELS[name])(params, *(inputs[key] for key in inputs)))
    pairs = [(np.asarray(result), expected[key]) for key, result in zip(expected, results, strict=True)]
    return max(float(np.abs(result - wanted).max() / np.ptp(wanted)) for result, wanted in pairs)


# --- XLA's cost model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What XLA says of one compiled program; bytes everywhere."""

    flops: float  # without those of kernels, unless their author declared them
    kernels: int  # calls of Mosaic kernels, which XLA puts in place of some softmax-and-product pairs itself
    accessed: float  # read and written by all operations, copies between the memories of a TPU among them
    temporary: int  # main memory beside arguments and results; what a TPU keeps in its vector memory is not in it
    arguments: int
    seconds: float  # that compilation took


def device(platform: str) -> Any:
    """``cpu``: this host's. ``tpu:v5e``: one chip of that generation, to compile for and not to run on.

    Generations as libtpu names them: v4, v5e, v5p, v6e, tpu7x.
    """
    kind, _, generation = platform.partition(":")
    if kind != "tpu":
        return jax.devices(kind)[0]
    from jax.experimental import topologies

    from planish.backends.xla import quiet_libtpu

    quiet_libtpu()
    return topologies.get_topology_desc(platform=kind, topology_name=f"{generation or 'v5e'}:1x1x1").devices[0]


def compile_for(function: Callable[..., Any], arguments: tuple[Any, ...], platform: str) -> jax.stages.Compiled:
    """Compile ``function`` for structs as arguments, on one device of ``platform``."""
    sharding = jax.sharding.SingleDeviceSharding(device(platform))
    placed = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), arguments)
    return jax.jit(function).lower(*placed).compile()


def cost(function: Callable[..., Any], arguments: tuple[Any, ...], platform: str) -> Cost:
    """Compile ``function`` and ask XLA what it costs."""
    started = time.perf_counter()
    compiled = compile_for(function, arguments, platform)
    seconds = time.perf_counter() - started
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if analysis is None or memory is None:
        raise RuntimeError(f"XLA has no cost analysis for {platform}")
    return Cost(
        analysis["flops"],
        (compiled.as_text() or "").count('custom_call_target="tpu_custom_call"'),
        analysis["bytes accessed"],
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        seconds,
    )


# --- command line ----------------------------------------------------------------------------------------------------

# Where the function of a model comes from: (name, batch, sequence) -> the function and the structs of its arguments.
Source = Callable[[str, int, int], tuple[Callable[..., Any], tuple[Any, ...]]]


def by_hand(name: str, batch: int, sequence: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function above."""
    return MODELS[name], shapes(name, batch, sequence)


SOURCES: dict[str, Source] = {"by hand": by_hand}  # one row of the table for each, per model


def imported(zoo: Path, pipeline: str) -> Source:
    """The function that planish makes of the exports in ``zoo``, after ``pipeline``."""

    def build(name: str, batch: int, sequence: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        import planish
        from planish.backends import backend
        from planish.backends.xla.symbols import abstract_inputs

        graph = planish.load(zoo / name / "model.onnx")
        if pipeline:
            planish.Pipeline.parse(pipeline).run(graph, planish.Context(lambda: backend("reference")))
        function = planish.to_jax(graph)
        sizes = {"batch": batch, "sequence": sequence}
        return function, (function.param_shapes, *abstract_inputs(function, sizes))

    return build


def rows(names: Iterable[str], platform: str, batch: int, sequence: int) -> Iterator[list[str]]:
    """The cells of the table."""
    for name in names:
        for source, build in SOURCES.items():
            figures = cost(*build(name, batch, sequence), platform)
            megabytes = (n / 1e6 for n in (figures.accessed, figures.temporary, figures.arguments))
            cells = [cell(figures.flops / 1e9), cell(figures.kernels), *map(cell, megabytes), cell(figures.seconds, 1)]
            yield [f"{name}, {source}", *cells]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Costs of hand-written JAX models as XLA sees them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--platform", default="cpu", help="cpu, or tpu:GENERATION such as tpu:v5e")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=128, help="tokens per row of bert-base")
    parser.add_argument(
        "--zoo", type=Path, metavar="ZOO", help="also the functions that planish makes of the exports there"
    )
    parser.add_argument("--check", type=Path, metavar="ZOO", help="compare with the exports there instead")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # nothing runs elsewhere; libtpu is loaded only to compile
    names = args.names or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no such model: {', '.join(unknown)}")
    if args.check:
        for name in names:
            print(f"{name}: largest relative error {check(name, args.check / name):.1e}")
        return
    if args.zoo:
        SOURCES.update({"planish, raw": imported(args.zoo, ""), "planish, optimized": imported(args.zoo, "default")})
    header = ["Model", "GFLOP", "Kernels", "MB accessed", "MB temporary", "MB arguments", "Compilation, s"]
    title = f"{args.platform}, batch {args.batch}, {args.sequence} tokens"
    print(markdown(title, header, rows(names, args.platform, args.batch, args.sequence)))


if __name__ == "__main__":
    main()
