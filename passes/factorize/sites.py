"""Which layers may be factorized, and what is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ...ir import Graph, Node, Value
from ..base import Context
from ..calibration import collect, in_groups
from ..calibration.summaries import ConvGram, GramMatrix, Shape
from ..layers import Layer
from .algebra import Array, Moments

__all__ = ["Site", "find_sites", "first_layers", "input_shapes", "with_moments"]

_GRAMS = 256 << 20  # bytes of second moments that are held at a time
_UNKNOWN = 32  # what a size of unknown extent counts as, but for the batch, which is 1


@dataclass(frozen=True, eq=False)
class Site:
    """A weight, and the layers that multiply by it.

    Attributes:
        layers: all that read the weight, of one kind, in order.
    """

    layers: tuple[Layer, ...]

    @property
    def first(self) -> Layer:
        """The one that stands for all."""
        return self.layers[0]

    @property
    def node(self) -> Node:
        """Its node."""
        return self.first.node

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        assert self.first.weight.const is not None
        return self.first.weight.const.shape

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of the kernel of a convolution, one per spatial dimension; of a product: none."""
        return self.shape[2:] if self.node.op == "Conv" else ()

    def matrix(self) -> Array:
        """The weight [out, in * kernel], in double precision."""
        return self.first.matrix().astype(np.float64)

    def copied(self, mapping: Mapping[Value, Value]) -> Site:
        """The same in a copy of the graph, by the mapping from values to their copies."""

        def copy(layer: Layer) -> Layer:
            node = mapping[layer.node.result].producer
            assert node is not None
            return replace(layer, node=node, x=node.given(0), weight=node.given(1))

        return Site(tuple(map(copy, self.layers)))


def find_sites(graph: Graph, layers: Sequence[Layer]) -> tuple[list[Site], list[tuple[Layer, str]]]:
    """Layers of ``graph`` by their weight, and those that cannot be factorized, with the reason."""
    uses: Counter[int] = Counter()
    for g in graph.walk_graphs():
        for node in (*g.nodes, g.ret):
            uses.update(id(o.const) for o in node.operands if o is not None and o.const is not None)
    groups: dict[tuple[int, int], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((id(layer.weight.const), layer.out_axis), []).append(layer)
    sites, refused = [], []
    for (weight, _), members in groups.items():
        if any(layer.node.graph is not graph for layer in members):
            reason = "it is in a nested graph"
        elif len(members) < uses[weight]:
            reason = "something else reads its weight, too"
        elif not np.isfinite(members[0].matrix()).all():
            reason = "its weight is not finite"
        else:
            sites.append(Site(tuple(members)))
            continue
        refused += [(layer, reason) for layer in members]
    return sites, refused


def first_layers(graph: Graph, layers: Iterable[Layer]) -> set[Node]:
    """The nodes of ``layers`` that read nothing that any of ``layers`` has computed."""
    nodes = {layer.node for layer in layers}
    behind: set[Value] = set()
    first = set()
    for node in graph.nodes:
        is_behind = any(o in behind for o in node.operands)
        if node in nodes and not is_behind:
            first.add(node)
        if node in nodes or is_behind:
            behind.update(node.results)
    return first


def input_shapes(graph: Graph, sites: Sequence[Site], ctx: Context) -> dict[Value, tuple[int, ...]]:
    """The shapes of what layers multiply: in the first sample, or as far as they are known."""
    values = [layer.x for site in sites for layer in site.layers]
    found: dict[Value, tuple[int, ...]] = {}
    statistics = {v: Shape() for v in values if not all(isinstance(d, int) for d in v.shape or ("?",))}
    samples = ctx.samples
    if statistics and samples is not None and ctx.can_run:
        collect(graph, {v: [s] for v, s in statistics.items()}, lambda: islice(samples(), 1), ctx.runner)
    for value in values:
        shape = statistics[value].shape if value in statistics else ()
        dims = shape or value.shape or ()
        found[value] = tuple(d if isinstance(d, int) else _UNKNOWN if i else 1 for i, d in enumerate(dims))
    return found


def with_moments(graph: Graph, sites: Sequence[Site], ctx: Context) -> Iterator[tuple[Site, Moments | None]]:
    """The sites with the second moments of their inputs, those of a bounded number at a time; None without samples."""
    if ctx.samples is None or not ctx.can_run:
        yield from ((site, None) for site in sites)
        return
    for group in in_groups(_sizes(sites), _GRAMS):
        members = [site for site in sites if site.first.x in group]
        products: dict[Value, GramMatrix] = {}  # of rows, which all products of a value share
        statistics: dict[Value, list[GramMatrix]] = {}
        grams: dict[Site, list[GramMatrix]] = {}
        for site in members:
            for layer in site.layers:
                is_new = layer.node.op == "Conv" or layer.x not in products
                gram = _gram(layer) if is_new else products[layer.x]
                grams.setdefault(site, []).append(gram)
                if is_new:
                    statistics.setdefault(layer.x, []).append(gram)
                if layer.node.op != "Conv":
                    products[layer.x] = gram
        ctx.progress(f"collecting second moments of the inputs of {len(members)} layers")
        collect(graph, statistics, ctx.samples, ctx.runner)
        for site in members:
            yield site, _moments(grams.pop(site))


def _sizes(sites: Sequence[Site]) -> Mapping[Value, int]:
    sizes: Counter[Value] = Counter()
    for site in sites:
        sizes[site.first.x] += 8 * site.first.inputs**2 * len(site.layers)
    return sizes


def _gram(layer: Layer) -> GramMatrix:
    return ConvGram.of(layer.node) if layer.node.op == "Conv" else GramMatrix()


def _moments(grams: Sequence[GramMatrix]) -> Moments:
    """The moments of all rows that a weight meets, wherever it is used."""
    rows = sum(gram.rows for gram in grams)
    total = sum(gram.matrix for gram in grams)
    matrix = np.asarray(total).reshape(np.shape(total)[-2:])
    return Moments(matrix / max(rows, 1), rows)
