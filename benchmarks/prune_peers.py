"""Groups of coupled channels, and their ranking, beside Torch-Pruning's on the PyTorch modules of `prune_zoo`.

``PYTHONPATH=FOLDER python benchmarks/prune_peers.py ZOO [NAME ...] [--small] [--groups]``. ZOO is a folder that
`prune_zoo.py` filled (with ``--small``: small models). FOLDER holds Torch-Pruning (``pip install --no-deps --target
FOLDER torch-pruning``), which is no dependency of planish.

Torch-Pruning traces the module and is asked for all its groups (``DependencyGraph.get_all_groups``); groups that reach
an output of the model are left out, which its users do by naming layers. planish finds groups in the exported file,
simplified without folding norms and scales, so that weights are those of the module. A group of one and a group of the
other are the same if the other has the root layer's weight (by its numbers). Compared are the numbers of groups, the
layers whose outputs can shrink, and the ranking of channels by group importance, as Spearman's correlation, the median
and the least of all groups: L1 and L2 of the weights that Torch-Pruning counts, norms left out, and L2 of all weights
as planish counts them, those of depthwise convolutions and of embeddings included. A last test prunes the module by
half with Torch-Pruning, and runs it.
"""

from __future__ import annotations

import argparse
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import prune_zoo
import torch
import zoo
from tables import cell, markdown
from torch import nn
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from planish.ir import Node
    from planish.passes.prune.channels.groups import Group

Array = np.ndarray[Any, Any]
KEY = 32  # smallest numbers of a weight, by which it is known
SAME = 0.999  # the rank correlation above which rankings are the same
ALL = "L2, all weights"
FOLDS = ("convolutions", "linear")  # subjects of simplification that change weights


@dataclass
class PeerGroup:
    """A group that Torch-Pruning found.

    Attributes:
        root: name of its first layer.
        keys: of the weights of the layers whose outputs shrink, the root's first.
        channels: outputs of the root.
        scores: group importance of these, by method.
    """

    root: str
    keys: list[bytes]
    channels: int
    scores: dict[str, Array]


@dataclass
class Line:
    """The comparison for a model.

    Attributes:
        peer: groups of Torch-Pruning.
        failure: why it has none.
        runs: what became of the module that it pruned.
        groups: of planish.
        layers: weights whose outputs can shrink, for Torch-Pruning and planish.
        ranks: rank correlations of groups that both have, by method.
        missing: groups of Torch-Pruning that planish lacks.
        lower: descriptions of groups ranked differently.
    """

    peer: int = 0
    failure: str = ""
    runs: str = "-"
    groups: int = 0
    layers: tuple[int, int] = (0, 0)
    ranks: dict[str, list[float]] = field(default_factory=lambda: {"L1": [], "L2": [], ALL: []})
    missing: list[str] = field(default_factory=list)
    lower: list[str] = field(default_factory=list)


def key_of(array: Array) -> bytes:
    """What identifies a weight however it is laid out: its size and its smallest numbers."""
    flat = np.asarray(array, np.float32).reshape(-1)
    return flat.size.to_bytes(8, "little") + np.sort(np.partition(flat, min(KEY, flat.size - 1))[:KEY]).tobytes()


# --- Torch-Pruning ---------------------------------------------------------------------------------------------------


def traced(recipe: zoo.Recipe) -> tuple[nn.Module, dict[str, torch.Tensor], Any]:
    """A module, its inputs, and Torch-Pruning's graph of it."""
    import torch_pruning as tp

    model, inputs, _ = zoo.build(recipe)
    model.requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(model, inputs, output_transform=_leaves, verbose=False)
    return model, inputs, graph


def _leaves(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]


def last_modules(model: nn.Module, inputs: dict[str, torch.Tensor]) -> set[nn.Module]:
    """The modules that compute an output of ``model``."""
    made: dict[int, nn.Module] = {}
    alive = []  # or the numbers of tensors are used again

    def note(module: nn.Module, _: Any, output: Any) -> None:
        for leaf in tree_leaves(output):
            alive.append(leaf)
            made.setdefault(id(leaf), module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    outputs = tree_leaves(model(**inputs))
    for hook in hooks:
        hook.remove()
    return {made[id(leaf)] for leaf in outputs if id(leaf) in made}


def _reaches_output(graph: Any, group: Any, last: set[nn.Module]) -> bool:
    import torch_pruning as tp

    makes = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
    return bool(last.intersection(makes)) or any(dep.target.type == tp.ops.OPTYPE.OUTPUT for dep, _ in group)


def peer_groups(graph: Any, last: set[nn.Module]) -> tuple[list[PeerGroup], list[nn.Module]]:
    """The groups that reach no output, and the layers of those that do; ``last`` are the modules that make outputs."""
    import torch_pruning as tp

    layers = [nn.modules.conv._ConvNd, nn.Linear]
    measures = {f"L{p}": tp.importance.GroupMagnitudeImportance(p=p, target_types=layers) for p in (1, 2)}
    found, outputs = [], []
    for group in graph.get_all_groups():
        root = group[0].dep.target.module
        if _reaches_output(graph, group, last):
            outputs += [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
            continue
        modules = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        weights = [m.weight for m in dict.fromkeys(modules) if isinstance(m, (*layers, nn.Embedding))]
        keys = [key_of(weight.detach().numpy()) for weight in weights]
        scores = {name: np.asarray(measure(group).detach()) for name, measure in measures.items()}
        found.append(PeerGroup(graph._module2name[root], keys, graph.get_out_channels(root), scores))
    return found, outputs


def pruned_by_peer(recipe: zoo.Recipe) -> str:
    """Prune half of the channels with Torch-Pruning, but for layers that reach outputs, and run what is left."""
    import torch_pruning as tp

    model, inputs, graph = traced(recipe)
    _, outputs = peer_groups(graph, last_modules(model, inputs))
    ignored = [m for m in dict.fromkeys(outputs) if isinstance(m, nn.Module) and not type(m).__name__.startswith("_")]
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        output_transform=_leaves,
    )
    before = sum(p.numel() for p in model.parameters())
    pruner.step()
    after = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        model(**inputs)
    return f"{after / before:.2f} of the parameters"


# --- planish ---------------------------------------------------------------------------------------------------------


def planish_groups(path: Path) -> tuple[list[Group], dict[str, list[Array]]]:
    """The groups of an exported file, with the importance of their channels by method."""
    import importlib

    import planish
    from planish.backends import backend
    from planish.passes import Context, Pipeline
    from planish.passes.prune.channels.groups import find_groups
    from planish.passes.prune.channels.importance import importance_of
    from planish.passes.simplify import rules_in

    graph = planish.load(path)
    subjects = [importlib.import_module(f"planish.passes.simplify.{name}") for name in FOLDS]
    folds = {rule.name for module in subjects for rule in rules_in(module)}
    context = Context(lambda: backend("onnxruntime"), disabled=folds)
    Pipeline.parse("simplify").run(graph, context)
    analysis, groups, _ = find_groups(graph)
    counted = [replace(g, members=[m for m in g.members if _is_counted_by_peer(m.weight.node)]) for g in groups]
    usable = [like if like.members else group for like, group in zip(counted, groups, strict=True)]
    return groups, {
        "L1": importance_of("l1", usable, analysis, context, 0),
        "L2": importance_of("l2", usable, analysis, context, 0),
        ALL: importance_of("l2", groups, analysis, context, 0),
    }


def _is_counted_by_peer(node: Node) -> bool:
    """Whether the weight of a layer counts in Torch-Pruning's importance: that of a depthwise convolution does not."""
    weight = node.operand(1)
    depthwise = node.op == "Conv" and weight is not None and (weight.shape or (0, 0))[1] == 1
    return node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul") and not depthwise


# --- comparison ------------------------------------------------------------------------------------------------------


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's, without ties."""
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1]) if len(a) > 1 else 1.0


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` where the body takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def compare(recipe: zoo.Recipe, path: Path, limit: int) -> Line:
    """Find the groups of both, and pair them; Torch-Pruning may take ``limit`` seconds."""
    line = Line()
    groups, worth = planish_groups(path)
    line.groups = len(groups)
    owners = {
        key_of(member.weight.tensor.const.numpy()): (i, member)
        for i, group in enumerate(groups)
        for member in group.members
        if member.makes and member.weight.tensor.const is not None
    }
    line.layers = (0, len(owners))
    try:
        with limited(limit):
            model, inputs, graph = traced(recipe)
            found, _ = peer_groups(graph, last_modules(model, inputs))
    except Exception as error:  # noqa: BLE001 - what a tool cannot do is its line in the table
        line.failure = zoo.reason(error)
        return line
    line.peer, line.layers = len(found), (len({k for g in found for k in g.keys}), len(owners))
    for peer in found:
        pair(peer, owners, worth, line)
    try:
        with limited(limit):
            line.runs = pruned_by_peer(recipe)
    except Exception as error:  # noqa: BLE001 - likewise
        line.runs = zoo.reason(error)
    return line


def pair(peer: PeerGroup, owners: dict[bytes, Any], worth: dict[str, list[Array]], line: Line) -> None:
    """Rank the channels of one group by both."""
    if not peer.keys or peer.keys[0] not in owners:
        line.missing.append(f"{peer.root} ({peer.channels})")
        return
    number, member = owners[peer.keys[0]]
    for method, values in worth.items():
        own, scores = values[number], peer.scores[method[:2]]
        theirs = np.bincount(member.channels[member.channels >= 0], scores[member.channels >= 0], minlength=len(own))
        mine = np.bincount(member.channels[member.channels >= 0], minlength=len(own)) > 0
        rank = rank_correlation(own[mine], theirs[mine])
        line.ranks[method].append(rank)
        if rank < SAME and method != ALL:
            line.lower.append(f"{method} {rank:.3f} {peer.root}: {peer.channels} channels, {len(own)} of planish")


def row(name: str, line: Line) -> list[str]:
    """The cells of a model."""
    ranks = [f"{np.median(r):.3f} ({min(r):.3f})" if r else "-" for r in line.ranks.values()]
    same = len(line.ranks["L2"])
    peer = [line.failure, "-", "-"] if line.failure else [cell(line.peer), cell(line.layers[0]), cell(same)]
    return [name, *peer, cell(line.groups), cell(line.layers[1]), *ranks, line.runs]


def main() -> None:
    parser = argparse.ArgumentParser(description="Groups and rankings of channels beside Torch-Pruning's.")
    parser.add_argument("zoo", type=Path, help="folder that prune_zoo.py filled")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--small", action="store_true", help="the folder holds the small models")
    parser.add_argument("--limit", type=int, default=60, help="seconds that Torch-Pruning may take for a step")
    parser.add_argument("--groups", action="store_true", help="list groups that it has alone, or ranks differently")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    recipes = prune_zoo.recipes(args.small)
    rows, details = [], []
    for name in args.names or recipes:
        line = compare(recipes[name], args.zoo / name / "model.onnx", args.limit)
        rows.append(row(name, line))
        print(" | ".join(rows[-1]), flush=True)
        details += [f"{name}: Torch-Pruning alone has {group}" for group in line.missing]
        details += [f"{name}: {text}" for text in line.lower]
    ranks = [f"{method} ranks" for method in ("L1", "L2", ALL)]
    header = ["Model", "its groups", "its layers", "shared", "groups", "layers", *ranks, "its half runs"]
    print("\n" + markdown("Torch-Pruning and planish", header, rows))
    if args.groups:
        print("\n".join(details))


if __name__ == "__main__":
    main()
