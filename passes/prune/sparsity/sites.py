"""Where zeros may go: weights as matrices whose neighbours are input channels, and what is known of their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir import Graph, Tensor, Value
from ...base import Context
from ...calibration import collect
from ...calibration.summaries import ConvGram, GramMatrix
from ...layers import Layer
from .masks import Pattern

__all__ = ["FEW", "Inputs", "Site", "collect_inputs", "gram_bytes", "sites_of"]

Array = np.ndarray[Any, Any]
FEW = 4  # input channels of a kernel: convolutions with so few are left alone


@dataclass(frozen=True, eq=False)
class Site:
    """A weight, and the layers that multiply by it.

    Its matrices have a column for each number of a kernel; input channels are next to each other, and kernel positions
    follow one another, so that the groups of an N:M pattern are what TensorRT's sparse kernels expect: C of the weight
    [K, C, R, S] of a convolution, the contracted dimension of a product.

    Attributes:
        layers: one, or several that share the weight.
    """

    layers: tuple[Layer, ...]

    @property
    def first(self) -> Layer:
        """The first of the layers."""
        return self.layers[0]

    @property
    def weight(self) -> Value:
        """The weight."""
        return self.first.weight

    @property
    def tensor(self) -> Tensor:
        """Its contents."""
        assert self.weight.const is not None
        return self.weight.const

    @property
    def groups(self) -> int:
        """The number of matrices: that of the groups of a convolution."""
        return int(self.first.node.attrs.get("group", 1)) if self.first.node.op == "Conv" else 1

    @property
    def channels(self) -> int:
        """The number of input channels of a kernel."""
        shape, layer = self.tensor.shape, self.first
        if layer.in_axis is not None:
            return shape[layer.in_axis]
        return shape[1 - layer.out_axis]

    @property
    def order(self) -> Array:
        """[in]: where the columns of `matrices` are among the numbers of a kernel as they are stored."""
        return np.arange(self.first.inputs).reshape(self.channels, -1).T.ravel()

    def matrices(self) -> Array:
        """The weight in float32, [groups, out / groups, in]."""
        rows = self.first.matrix()
        return rows[:, self.order].reshape(self.groups, -1, rows.shape[1])

    def restored(self, matrices: Array) -> Array:
        """Such matrices in the layout and the type of the weight."""
        stored = np.empty((self.groups * matrices.shape[1], matrices.shape[2]), matrices.dtype)
        stored[:, self.order] = matrices.reshape(stored.shape)
        return self.first.restored(stored)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is known of the inputs that a weight is multiplied with, in the order of `Site.matrices`.

    Attributes:
        gram: [groups, in, in], the sum of ``x x^T``.
        mean: [groups, in], the mean of ``x``.
        rows: the number of inputs.
    """

    gram: Array
    mean: Array
    rows: int

    @classmethod
    def of(cls, site: Site, seen: Sequence[GramMatrix]) -> Inputs:
        """What all of ``seen`` have seen."""
        rows = sum(each.rows for each in seen)
        gram, total = (sum(getattr(each, name) for each in seen) for name in ("matrix", "total"))
        order = site.order
        gram = np.asarray(gram).reshape(site.groups, len(order), len(order))[:, order[:, None], order]
        return cls(gram, np.asarray(total).reshape(site.groups, -1)[:, order] / rows, rows)

    @property
    def centered(self) -> Array:
        """The sum of ``(x - mean) (x - mean)^T``."""
        return self.gram - self.rows * self.mean[:, :, None] * self.mean[:, None, :]


def sites_of(
    layers: Sequence[Layer], pattern: Pattern | None, take_few: bool = False
) -> tuple[list[Site], dict[Layer, str]]:
    """The weights to prune, in order, and why the other ones of ``layers`` are left alone.

    Args:
        layers: those that were chosen.
        pattern: the pattern that is wanted, or None.
        take_few: whether convolutions with few input channels are pruned, too.
    """
    by_weight: dict[Value, list[Layer]] = {}
    for layer in layers:
        by_weight.setdefault(layer.weight, []).append(layer)
    sites, left = [], {}
    for sharing in by_weight.values():
        site = Site(tuple(sharing))
        reason = _why_not(site, pattern, take_few)
        if reason:
            left.update(dict.fromkeys(sharing, reason))
        else:
            sites.append(site)
    return sites, left


def _why_not(site: Site, pattern: Pattern | None, take_few: bool) -> str:
    """Why ``site`` is left alone, or "".

    The first convolution of a network and depthwise ones hold few weights, and many depend on each: Zhu & Gupta (2017,
    arXiv 1710.01878, section 4.1) leave both alone, and most do since.
    """
    first, known = site.first, {layer.node for layer in site.layers}
    others = [node for node, at in site.weight.uses if node not in known or at != 1]
    if others:
        return f"{others[0].op}, or a layer that was not chosen, has the same weight"
    if len({(x.out_axis, x.in_axis, x.node.attrs.get("group", 1)) for x in site.layers}) > 1:
        return "its weight is used in two layouts"
    if not site.tensor.size:
        return "its weight is empty"
    if first.node.op == "Conv" and site.channels <= FEW and not take_few:
        return f"few input channels ({site.channels})"
    if pattern is not None and first.node.op == "ConvTranspose":
        return "patterns are for Conv, MatMul and Gemm"
    if pattern is not None and site.channels % pattern.of:
        return f"{site.channels} inputs are no multiple of {pattern.of}"
    return ""


def gram_bytes(site: Site) -> int:
    """The size of the products of its inputs."""
    return 8 * site.groups * site.first.inputs**2


def collect_inputs(graph: Graph, sites: Iterable[Site], ctx: Context) -> dict[Site, Inputs]:
    """What the samples are where ``sites`` multiply them.

    Left out are weights that a ConvTranspose or a nested graph uses, and those that no sample comes to.

    Raises:
        RequestError: see `planish.passes.calibration.collect`.
    """
    found: dict[tuple[Value, str], GramMatrix] = {}  # by the value, and how windows are cut from it
    keys: dict[Site, list[tuple[Value, str]]] = {}
    for site in sites:
        if any(layer.node.graph is not graph or layer.node.op == "ConvTranspose" for layer in site.layers):
            continue
        for layer in site.layers:
            gram = GramMatrix() if layer.in_axis is not None else ConvGram.of(layer.node)
            key = layer.x, _windows(gram)
            found.setdefault(key, gram)
            keys.setdefault(site, []).append(key)
    if not found or ctx.samples is None:
        return {}
    wanted: dict[Value, list[GramMatrix]] = {}
    for (x, _), gram in found.items():
        wanted.setdefault(x, []).append(gram)
    collect(graph, wanted, ctx.samples, ctx.runner)
    seen = {site: [found[key] for key in own if found[key].rows] for site, own in keys.items()}
    return {site: Inputs.of(site, grams) for site, grams in seen.items() if grams}


def _windows(gram: GramMatrix) -> str:
    """What tells one way to cut windows from another; "" for the rows of a product."""
    if not isinstance(gram, ConvGram):
        return ""
    return repr((gram.kernel_shape, gram.strides, gram.pads, gram.dilations, gram.group, gram.auto_pad))
