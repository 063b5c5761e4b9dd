"""MobileNetV2 in int8, from Keras and from PyTorch: the same network with the same weights, through both frontends.

``python benchmarks/tensorflow_int8.py [--rounds N]`` copies the weights of Keras's MobileNetV2 (random, see
`tensorflow_zoo`) into transformers', optimizes both by the recipes ``default`` and ``int8`` on the same 16 random
images, and compares latency, size, and what is lost: 1 minus the mean cosine to the float model on 16 other images, and
the ratio of signal to noise. It ends with how many convolutions compute in int8.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import open_session
from quantize_models import HELD_OUT, SAMPLES, Candidate, Sample, latencies, make_all, outputs, planish_recipe, speedup
from tables import cell, markdown

MODEL = "MobileNetV2"
TURNS = 5  # timed runs of each model in a round


def copied(keras_model: Any) -> Any:
    """The model of transformers with the weights of Keras's: convolutions and normalizations come in one order."""
    import torch
    import transformers

    network = transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(num_labels=1000)).eval()
    arrays = [np.asarray(w) for layer in keras_model.layers for w in layer.weights]
    slots = {name: t for name, t in network.state_dict().items() if "num_batches" not in name}
    state = {}
    for (name, slot), array in zip(slots.items(), arrays, strict=True):
        if array.ndim == 4:
            is_depthwise = array.shape[-1] == 1 and array.shape[-2] > 1
            array = array.transpose((2, 3, 0, 1) if is_depthwise else (3, 2, 0, 1))
        array = array.T if array.ndim == 2 else array
        if array.shape != tuple(slot.shape):
            raise ValueError(f"{name} has shape {list(slot.shape)}, not {list(array.shape)}")
        state[name] = torch.tensor(array)
    network.load_state_dict(state, strict=False)
    return network


def write(folder: Path) -> dict[str, tuple[Path, Callable[[np.ndarray], Sample]]]:
    """Both models as files, and what makes a sample of images with channels first."""
    import torch
    from tensorflow_zoo import build

    import planish
    from planish.backends import backend
    from planish.frontends.tensorflow import from_tensorflow
    from planish.models import save_for

    model = build(MODEL).model
    graphs = {
        "Keras": from_tensorflow(model),
        "PyTorch": planish.load((copied(model), (torch.zeros(1, 3, 224, 224),))),
    }
    found: dict[str, tuple[Path, Callable[[np.ndarray], Sample]]] = {}
    for name, graph in graphs.items():
        path = folder / f"{name}.onnx"
        save_for(graph, path, backend("onnxruntime"))
        key, order = graph.inputs[0].name, (0, 2, 3, 1) if name == "Keras" else (0, 1, 2, 3)
        found[name] = path, lambda x, key=key, order=order: {key: np.ascontiguousarray(x.transpose(order))}
    return found


def noise(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> float:
    """The ratio of signal to noise in decibels."""
    signal, error = (
        np.concatenate([np.ravel(v) for sample in some for v in sample.values()]) for some in (expected, found)
    )
    return float(10 * np.log10(np.sum(signal**2) / np.sum((signal - error) ** 2)))


def quantized(path: Path) -> str:
    """How many convolutions compute in int8, of how many."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    from_bytes = {name for n in nodes if n.op_type == "DequantizeLinear" for name in n.output}
    convolutions = [n for n in nodes if n.op_type in ("Conv", "QLinearConv", "ConvInteger", "FusedConv")]
    return f"{sum(n.op_type != 'Conv' or n.input[0] in from_bytes for n in convolutions)} of {len(convolutions)}"


def compare(folder: Path, threads: int, rounds: int) -> str:
    """The table."""
    from planish.passes.quantize.budget import disagreement

    rng = np.random.default_rng(1)
    batches = [rng.standard_normal((1, 3, 224, 224)).astype(np.float32) for _ in range(SAMPLES + HELD_OUT)]
    made: dict[str, list[Candidate]] = {}
    samples: dict[str, list[Sample]] = {}
    floats: dict[str, list[dict[str, Any]]] = {}
    for name, (path, sample) in write(folder).items():
        seen, samples[name] = [sample(x) for x in batches[:SAMPLES]], [sample(x) for x in batches[SAMPLES:]]
        scratch = folder / name
        scratch.mkdir()
        made[name] = make_all({recipe: planish_recipe(path, recipe, seen) for recipe in ("default", "int8")}, scratch)
        floats[name] = outputs(open_session(path), samples[name])
    times: dict[str, dict[str, list[float]]] = {name: {c.name: [] for c in some} for name, some in made.items()}
    sessions = {name: {c.name: open_session(c.path, True, threads) for c in some} for name, some in made.items()}
    for _ in range(rounds):  # both frontends take turns, too
        for name, some in sessions.items():
            for recipe, (_, found) in latencies(some, samples[name][0], TURNS).items():
                times[name][recipe] += found
    rows = []
    for name, candidate in ((n, c) for n, some in made.items() for c in some):
        actual = outputs(sessions[name][candidate.name], samples[name])
        own = times[name][candidate.name]
        rows.append(
            [
                f"{name}, `{candidate.name}`",
                cell(statistics.median(own)),
                cell(speedup(times[name]["default"], own)),
                cell(candidate.megabytes),
                f"{disagreement(floats[name], actual):.1e}",
                cell(noise(floats[name], actual), 1),
                quantized(candidate.path),
            ]
        )
    apart = max(
        float(np.abs(a - b).max() / np.ptp(a))
        for first, second in zip(*floats.values(), strict=True)
        for a, b in zip(first.values(), second.values(), strict=True)
    )
    header = ["Model", "ms", "vs `default`", "MB", "1 - cosine", "SQNR dB", "int8 convolutions"]
    title = f"{MODEL}: batch 1, {threads} thread{'s' if threads > 1 else ''}; the float models differ by {apart:.1e}"
    return markdown(title, header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="MobileNetV2 in int8, from Keras and from PyTorch.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6, help=f"of {TURNS} timed runs of each model (default: 6)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(compare(Path(folder), args.threads, args.rounds))


if __name__ == "__main__":
    main()
