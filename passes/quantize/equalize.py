"""``equalize``: channels get ranges that are alike, so that one scale per tensor serves all of them.

Cross-layer equalization and absorption of high biases, after Nagel, van Baalen, Blankevoort and Welling, "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019 (arXiv 1906.04721). Channel i of a layer is divided
by s_i, and the layers behind it multiply it by s_i again (see `planish.passes.quantize.channels`). With
s_i = sqrt(r1_i r2_i) / r2_i, where r1_i is the range of the weights that make channel i and r2_i that of the weights
that it meets, both ranges become sqrt(r1_i r2_i). Ranges are largest magnitudes; a channel that has several layers
behind it meets all of their weights. All layers take turns until nothing moves. The network computes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import Graph, GraphOutput, Node, Value, constant, edit, op
from ...ir.clone import clone_graph
from ..base import Arrays, Context, Pass
from ..numerics import Lossy, Within
from ..rules import NoMatch, require
from ..simplify.reshapes import RESHAPING
from .channels import Array, Channels, Layer, Link, find_layers, find_links

__all__ = ["Equalize"]

_ROUNDS = 50
_TOLERANCE = 1e-3  # a factor that is this close to 1 is none
_LEAST, _MOST = 1e-8, 1e8  # factors that leave weights and activations in the range of single precision
_DEVIATIONS = 3
_SHIFTING = frozenset(  # f(x + c) = f(x) + c for one number c per channel
    {"Add", "Identity", "Dropout", "Transpose", "MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean"}
    | set(RESHAPING)
)


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale channels between layers so that one scale per tensor serves their weights; the values stay the same.

    For inference, after BatchNormalization has been folded into the layers (``simplify`` does that), and before
    quantization. Weights that several nodes share stay as they are.

    Attributes:
        replace_clip: go through Clip(0, b), ReLU6 say, by making it a Relu. What was cut off above b then no longer is:
            the network computes something else.
        absorb: afterwards, move what is in (nearly) every pre-activation, according to the sample inputs, into the
            biases of the layers behind, so that activations get a smaller range. Values more than three standard
            deviations below the mean come out differently.
    """

    numerics = Within()
    replace_clip: bool = False
    absorb: bool = False

    def __post_init__(self) -> None:
        if self.replace_clip or self.absorb:
            object.__setattr__(self, "numerics", Lossy())

    def run(self, graph: Graph, ctx: Context) -> None:
        graphs = list(graph.walk_graphs())
        nodes = [node for g in graphs for node in (*g.nodes, g.ret)]
        uses = Counter(o.const for node in nodes for o in node.operands if o is not None and o.const is not None)
        for g in graphs:
            layers, refused = find_layers(g, uses)
            refused += _equalize(layers, self.replace_clip, ctx)
            for reason, count in refused.items():
                ctx.note(f"not equalized: {reason}", count)
            if self.absorb:
                _absorb(g, layers, ctx)


def _equalize(layers: Mapping[Node, Layer], replace_clip: bool, ctx: Context) -> Counter[str]:
    """Equalize what is linked; returns why others are not."""
    links, refused = find_links(layers, replace_clip)
    scales = _balance(links)
    for layer in layers.values():
        layer.apply()
    for link, scale in zip(links, scales, strict=True):
        if (scale == 1).all():
            continue
        ctx.note("equalized pairs", len(link.consumers))
        for node, index, spread in link.addends:
            _set_constant(node, index, _array(node, index) * spread(1 / scale))
        for clip in [node for node, _ in link.path if node.op == "Clip"]:
            relu = op.Relu(clip.given(0))
            edit.insert_floating([relu], clip)
            edit.replace(clip.result, relu)
            edit.erase(clip)
    return refused


def _balance(links: Sequence[Link]) -> list[Array]:
    """The factors of the channels of each link; they are set in the layers, too. Where next to nothing is gained: 1."""
    scales = [np.ones(link.producer.rows.size) for link in links]
    for _ in range(_ROUNDS):
        largest = 0.0
        for link, scale in zip(links, scales, strict=True):
            change = _imbalance(link)
            largest = max(largest, float(np.abs(np.log(change)).max()))
            np.clip(scale * change, _LEAST, _MOST, out=scale)
            _set_factors(link, scale)
        if largest < _TOLERANCE:
            break
    for link, scale in zip(links, scales, strict=True):
        if np.abs(np.log(scale)).max() < _TOLERANCE:
            scale[:] = 1
            _set_factors(link, scale)
    return scales


def _imbalance(link: Link) -> Array:
    """sqrt(r1 / r2) of each channel; 1 for one that has no weights on a side."""
    first = link.producer.row_ranges()
    second = np.zeros_like(first)
    for layer, channels in link.consumers:
        np.maximum.at(second, channels, layer.column_ranges())
    return np.sqrt(np.divide(first, second, out=np.ones_like(first), where=(first > 0) & (second > 0)))


def _set_factors(link: Link, scale: Array) -> None:
    link.producer.rows = 1 / scale
    for layer, channels in link.consumers:
        layer.columns = scale[channels]


def _array(node: Node, index: int) -> Array:
    """A constant operand in double precision; 0 if it is left out."""
    value = node.operand(index)
    return np.zeros(()) if value is None or value.const is None else value.const.numpy().astype(np.float64)


def _set_constant(node: Node, index: int, array: Array) -> None:
    edit.set_operand(node, index, constant(array.astype(node.result.dtype.numpy)))


# absorption of high biases


def _absorb(graph: Graph, layers: Mapping[Node, Layer], ctx: Context) -> None:
    """Relu(W1 x + b1) becomes Relu(W1 x + b1 - c) + c, and this c goes into the layers behind it: b2 + W2 c.

    With c = max(0, mean - 3 * standard deviation) of each channel's pre-activation, both are equal for pre-activations
    above c. The paper takes the two from BatchNormalization; here they are those of the samples.
    """
    if graph.parent is not None or ctx.samples is None or not ctx.can_run:
        ctx.note("not absorbed: a nested graph" if graph.parent is not None else "not absorbed: no samples to run")
        return
    sites = []
    for link in find_links(layers)[0]:
        try:
            sites.append((link, *_pre_activation(link)))
        except NoMatch as reason:
            ctx.note(f"not absorbed: {reason}")
    if not sites:
        return
    moments = _moments(graph, [(value, at) for _, value, at in sites], ctx.samples(), ctx)
    for (link, _, _), (mean, deviation) in zip(sites, moments, strict=True):
        shift = np.maximum(0, mean - _DEVIATIONS * deviation)
        if not shift.any():
            continue
        ctx.note("absorbed biases")
        _add_to_bias(link.producer.node, -shift)
        for layer, channels in link.consumers:
            weight = layer.form.view(layer.weight.numpy()).sum(-1, dtype=np.float64)
            moved = weight @ shift[channels].reshape(layer.form.groups, -1, 1)
            _add_to_bias(layer.node, moved.reshape(-1) * layer.node.attrs.get("alpha", 1.0))


def _pre_activation(link: Link) -> tuple[Value, Channels]:
    """The operand of the only Relu between the layers.

    Raises:
        NoMatch: no number per channel can pass from one layer to the next.
    """
    relus = [(node.given(0), at) for node, at in link.path if node.op == "Relu"]
    for node, _ in link.path:
        require(node.op == "Relu" or node.op in _SHIFTING, f"the result goes through {node.op}")
    require(len(relus) == 1, "there is not one Relu between the layers")
    consumers = [layer.node for layer, _ in link.consumers]
    for node in (link.producer.node, *consumers):
        require(node.attrs.get("beta", 1.0) == 1.0, "the addend of Gemm is scaled")
        require(node.operand(2) is None or node.given(2).const is not None, "the bias is computed")
    for node in consumers:
        padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET").startswith("SAME")
        require(not padded and node.op != "ConvTranspose", f"the {node.op} behind it sees fewer numbers at borders")
    return relus[0]


def _moments(
    graph: Graph, places: Sequence[tuple[Value, Channels]], samples: Iterable[Arrays], ctx: Context
) -> list[tuple[Array, Array]]:
    """Mean and standard deviation of each channel over all samples, in each of ``places``."""
    copies: dict[Value, Value] = {}
    probe = clone_graph(graph, copies)
    names = [f"pre-activation {i}" for i in range(len(places))]
    probe.set_outputs([copies[value] for value, _ in places], [GraphOutput(name) for name in names])
    run = ctx.runner.compile(probe)
    sums = [np.zeros((3, int(at.index.max()) + 1)) for _, at in places]
    for sample in samples:
        results = run(sample)
        for name, (_, at), total in zip(names, places, sums, strict=True):
            x = np.moveaxis(results[name], at.axis, 0).reshape(len(at.index), -1).astype(np.float64)
            for i in range(3):
                total[i] += np.bincount(at.index, (x**i).sum(1))
    found = []
    for count, total, squares in sums:
        mean = total / np.maximum(count, 1)
        found.append((mean, np.sqrt(np.maximum(0, squares / np.maximum(count, 1) - mean**2))))
    return found


def _add_to_bias(node: Node, amount: Array) -> None:
    """Add a number per output channel to what a layer computes."""
    index = 2
    if node.op == "MatMul":
        node, index = _addition_after(node)
    _set_constant(node, index, _array(node, index) + amount)


def _addition_after(matmul: Node) -> tuple[Node, int]:
    """The addition of a constant that is all that uses ``matmul``, or a new one, and the number of the constant."""
    uses = list(matmul.result.uses)
    if len(uses) == 1:
        user, index = uses[0]
        if user.op == "Add" and user.given(1 - index).const is not None:
            return user, 1 - index
    total = op.Add(matmul.result, np.zeros((), matmul.result.dtype.numpy))
    assert matmul.next is not None
    edit.insert(total.producer, matmul.next)
    for user, index in uses:
        edit.set_operand(user, index, total)
    return total.producer, 1
