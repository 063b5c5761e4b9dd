"""How much channels are worth: from weights, from statistics of activations, or from gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ....ir import Graph, Value
from ...base import Context, RequestError
from ...calibration import collect
from ...calibration.summaries import ChannelStatistics
from .coupling import Analysis
from .groups import Group, Member, single_ids

if TYPE_CHECKING:
    from ...base import Differentiable

__all__ = ["NEEDS_SAMPLES", "Importance", "importance_of"]

Array = np.ndarray[Any, Any]
Importance = Literal["l1", "l2", "lamp", "fpgm", "norm", "taylor", "fisher", "activation", "contribution", "random"]
NEEDS_SAMPLES = ("taylor", "fisher", "activation", "contribution")
_BATCHES = 64  # samples that gradients are taken on
_ROWS = 1 << 22  # elements of the distances that are held at a time


def importance_of(
    method: Importance, groups: Sequence[Group], analysis: Analysis, ctx: Context, seed: int
) -> list[Array]:
    """The worth of the channels of each group, with the mean 1.

    What the slices of a channel in several weights are worth is averaged over the weights, so that groups of few and of
    many layers can be compared (Fang et al., DepGraph, CVPR 2023).

    Args:
        method: ``l1``, ``l2``: the sum of |w| or w^2 of its slices (Li et al., 2017). ``lamp``: w^2 over the sum of w^2
            of all channels of the group that are worth more, itself included (Lee et al., 2021). ``fpgm``: the sum of
            the distances between its slice and those of all others (He et al., 2019). ``norm``: the magnitude of the
            scale of a norm (Liu et al., 2017). ``taylor``: how much the outputs change without it, to first order
            (Molchanov et al., 2019), ``fisher``: the mean square of that (Theis et al., 2018); where there are no
            labels, outputs are summed with random signs. ``activation``: the root mean square of what its layers
            compute. ``contribution``: the mean square of what the layers that read it make of it alone, so that what
            an activation has set to zero is worth nothing. ``random``: drawn.
        groups: the groups.
        analysis: of the graph.
        ctx: gives samples and gradients.
        seed: of what is drawn.

    Raises:
        RequestError: there are no samples where they are needed, or no norms.
    """
    if method in NEEDS_SAMPLES and ctx.samples is None:
        raise RequestError(f"importance {method} looks at samples, and there are none: give data, or take l2")
    if method == "random":
        rng = np.random.default_rng(seed)
        return [_normalized(rng.random(g.size) + 0.5) for g in groups]
    if method in ("taylor", "fisher"):
        return _by_gradients(groups, analysis.graph, ctx, np.abs if method == "taylor" else np.square, seed)
    if method == "norm":
        return _by_norms(groups, analysis)
    if method == "activation":
        return _by_activations(groups, analysis.graph, ctx)
    if method == "contribution":
        return _by_contributions(groups, analysis.graph, ctx)
    measure: Callable[[Member], Array] = {"l1": _magnitude(1), "l2": _magnitude(2), "lamp": _magnitude(2)}.get(
        method, _distances
    )
    found = []
    for group in groups:
        members = group.members if method != "fpgm" else [m for m in group.members if m.makes]
        score = _normalized(np.mean([_per_channel(measure(m), m, group.size) for m in members], axis=0))
        found.append(_normalized(_lamp(score)) if method == "lamp" else score)
    return found


def _normalized(score: Array) -> Array:
    mean = float(score.mean())
    if not np.isfinite(mean):
        raise RequestError(
            "importance cannot be told: weights or gradients are not finite numbers; take random or skip="
        )
    return score / mean if mean > 0 else np.ones_like(score)  # all are worth the same: nothing


def _per_channel(score: Array, member: Member, size: int) -> Array:
    """What belongs to each index of an axis, added up for each channel."""
    mine = member.channels >= 0
    return np.bincount(member.channels[mine], score[mine], minlength=size)


def _slices(member: Member) -> Array:
    """The weight with the axis first, [index, rest]."""
    assert member.weight.tensor.const is not None
    array = np.moveaxis(member.weight.tensor.const.numpy(), member.axis, 0)
    return array.reshape(len(array), -1)


def _magnitude(power: int) -> Callable[[Member], Array]:
    def measure(member: Member) -> Array:
        slices = _slices(member).astype(np.float64, copy=False)
        return (np.abs(slices) if power == 1 else np.square(slices)).sum(axis=1)

    return measure


def _distances(member: Member) -> Array:
    """The sum of the distances between each slice and all others."""
    slices = _slices(member).astype(np.float64)
    squares = np.square(slices).sum(axis=1)
    step = max(1, _ROWS // max(len(slices), 1))
    sums = []
    for at in range(0, len(slices), step):
        piece = slices[at : at + step]
        apart = squares[at : at + step, None] + squares[None] - 2 * piece @ slices.T
        sums.append(np.sqrt(np.maximum(apart, 0)).sum(axis=1))
    return np.concatenate(sums)


def _lamp(score: Array) -> Array:
    order = np.argsort(score)
    found = np.empty_like(score)
    found[order] = score[order] / np.maximum(np.cumsum(score[order][::-1])[::-1], 1e-30)
    return found


def _by_norms(groups: Sequence[Group], analysis: Analysis) -> list[Array]:
    scores: list[list[Array]] = [[] for _ in groups]
    for slot in analysis.norms:
        value = slot if isinstance(slot, Value) else slot[0].given(slot[1])
        (axis,) = analysis.constants[slot]
        assert value.const is not None
        classes = analysis.coupling.find(single_ids(axis))
        for score, group in zip(scores, groups, strict=True):
            channel = {c: i for i, c in enumerate(group.classes.tolist())}
            mine = [(channel[c], i) for i, c in enumerate(classes.tolist()) if c in channel]
            if mine:
                at, index = np.array(mine).T
                magnitudes = np.abs(value.const.numpy()[index].astype(np.float64))
                score.append(np.bincount(at, magnitudes, minlength=group.size))
    missing = [g.name for g, s in zip(groups, scores, strict=True) if not s]
    if missing:
        raise RequestError(
            f"importance norm: no norm scales the outputs of {missing[0]!r} ({len(missing)} of {len(groups)} groups): "
            "batch norms are folded by simplify; prune before it, or take l2"
        )
    return [_normalized(np.mean(score, axis=0)) for score in scores]


def _by_activations(groups: Sequence[Group], graph: Graph, ctx: Context) -> list[Array]:
    wanted: dict[Value, list[ChannelStatistics]] = {}
    for group in groups:
        for member in group.members:
            result = member.weight.node.result
            if member.makes and _channel_axis(member) is not None:
                wanted.setdefault(result, [ChannelStatistics(_channel_axis(member) or -1)])
    assert ctx.samples is not None
    ctx.progress("collecting activations")
    collect(graph, wanted, ctx.samples, ctx.runner)
    found = []
    for group in groups:
        scores = [
            _per_channel(np.sqrt(wanted[m.weight.node.result][0].mean_square), m, group.size)
            for m in group.members
            if m.makes and m.weight.node.result in wanted
        ]
        if not scores:
            raise RequestError(f"importance activation: planish does not see the channels of {group.name!r}; take l2")
        found.append(_normalized(np.mean(scores, axis=0)))
    return found


def _by_contributions(groups: Sequence[Group], graph: Graph, ctx: Context) -> list[Array]:
    """The sum of ``w^2 E[x^2]`` over the slices of each channel in the layers that read it."""
    readers = [[m for m in g.members if not m.makes and _channel_axis(m) is not None] for g in groups]
    wanted = {m.weight.node.given(0): [ChannelStatistics(_channel_axis(m) or -1)] for ms in readers for m in ms}
    assert ctx.samples is not None
    ctx.progress("collecting activations")
    collect(graph, wanted, ctx.samples, ctx.runner)
    found = []
    for group, members in zip(groups, readers, strict=True):
        scores = []
        for member in members:
            squares = wanted[member.weight.node.given(0)][0].mean_square
            if len(squares) == len(member.channels):
                weights = np.square(_slices(member).astype(np.float64)).sum(axis=1)
                scores.append(_normalized(_per_channel(weights * squares, member, group.size)))
        if not scores:
            raise RequestError(f"importance contribution: planish does not see what reads {group.name!r}; take l2")
        found.append(_normalized(np.mean(scores, axis=0)))
    return found


def _channel_axis(member: Member) -> int | None:
    """The dimension of the layer's result that has the indices of the member's axis, if it is one of them."""
    node = member.weight.node
    if node.op in ("Conv", "ConvTranspose"):
        return 1 if node.op == "Conv" or node.attrs.get("group", 1) == 1 else None
    return -1 if node.op in ("MatMul", "Gemm", "Gather") else None


# gradients


def _by_gradients(
    groups: Sequence[Group], graph: Graph, ctx: Context, of: Callable[[Array], Array], seed: int
) -> list[Array]:
    """The mean over samples of ``of(sum of w dL/dw over the slices of a channel)``, L the outputs with random signs."""
    if not any(value.dtype.is_floating for value in graph.outputs):
        raise RequestError("no output of the model has gradients, since none is a floating-point number; take l2")
    function = ctx.differentiable(graph)
    names = {value: name for name, values in function.constants(graph).items() for value in values}
    members = [m for g in groups for m in g.members if m.weight.tensor in names]
    contributions = _contributions(function, [(names[m.weight.tensor], m.axis) for m in members])
    sums: list[Array] = [np.zeros(len(m.channels)) for m in members]
    assert ctx.samples is not None
    count = 0
    for count, sample in enumerate(itertools.islice(ctx.samples(), _BATCHES), 1):
        ctx.progress(f"gradients: {count} samples")
        for total, vector in zip(sums, contributions(sample, seed + count), strict=True):
            total += of(np.asarray(vector, np.float64))
    if not count:
        raise RequestError("there are no samples to take gradients on")
    found = dict(zip(map(id, members), sums, strict=True))
    return [
        _normalized(np.mean([_per_channel(found[id(m)], m, g.size) for m in g.members if id(m) in found], axis=0))
        for g in groups
    ]


def _contributions(
    function: Differentiable, wanted: Sequence[tuple[str, int]]
) -> Callable[[Mapping[str, Any], int], Sequence[Array]]:
    """A function of a sample and a seed that computes w dL/dw, summed over all dimensions but the wanted one."""
    import jax
    import jax.numpy as jnp

    params = {name: jnp.asarray(array) for name, array in function.params.items()}
    chosen = {name: params.pop(name) for name in {name for name, _ in wanted}}

    def run(weights: dict[str, Any], rest: dict[str, Any], inputs: list[Any], key: Any) -> list[Any]:
        def loss(weights: dict[str, Any]) -> Any:
            outputs = [y for y in function({**rest, **weights}, *inputs) if jnp.issubdtype(y.dtype, jnp.floating)]
            keys = jax.random.split(key, len(outputs))
            return sum(
                (jax.random.rademacher(k, y.shape, jnp.float32) * y.astype(jnp.float32)).sum()
                for k, y in zip(keys, outputs, strict=True)
            )

        gradients = jax.grad(loss)(weights)
        products = {name: weights[name] * gradients[name] for name in weights}
        return [
            products[name].sum(axis=tuple(i for i in range(products[name].ndim) if i != axis)) for name, axis in wanted
        ]

    compiled = jax.jit(run)

    def contributions(sample: Mapping[str, Any], seed: int) -> Sequence[Array]:
        inputs = [sample[name] for name, _ in function.inputs if name in sample]
        found: Sequence[Array] = compiled(chosen, params, inputs, jax.random.key(seed))
        return found

    return contributions
