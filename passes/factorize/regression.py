"""Fits factors one layer after the other, in the order of the graph, to what each then gets.

Factors are chosen for the inputs that layers have in the original. But what stands before a layer has errors by then,
and these add up from layer to layer. So, before a layer is rewritten, its two factors are fitted once more: the product
``V`` of the same rank with the least ``E|t - V x|^2``, of the inputs ``x`` that the layer has in the changed graph, and
the outputs ``t`` that it had in the original. Where its outputs are added to another value (a residual branch), ``t``
makes up for the error of that value as well. That is regression of reduced rank (Izenman 1975): the regression of full
rank, ``W = E[t x^T] E[x x^T]^-1``, and then its truncated decomposition for these inputs (`algebra`).

The full regression is drawn towards the weight as it was. How strongly is decided by two halves of the rows, which
judge what the other one says; where that is no better than the weight, it is the weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...ir import Graph, Node, Value
from ...ir.clone import clone_graph
from ..base import Context
from ..calibration import computed
from ..layers import Layer
from .algebra import Array, Moments, root
from .sites import Site

__all__ = ["Factors", "Regression"]

Factors = tuple[Array, Array]
_PULLS = (1.0, 10.0, 100.0, 1e3, 1e4)  # towards the weight, times what damps the moments
_BETTER = 0.99  # of the error of the weight itself


class Regression:
    """Fits the factors of layers of a graph that is about to be changed, layer by layer.

    Args:
        graph: the graph, as it is before any change.
        sites: those that will be fitted.
        ctx: its samples and its runner are used.
    """

    def __init__(self, graph: Graph, sites: Iterable[Site], ctx: Context):
        mapping: dict[Value, Value] = {}
        self._original = clone_graph(graph, mapping)
        self._graph, self._ctx = graph, ctx
        self._jobs = {site: job for site in sites if (job := _job(site, mapping)) is not None}

    def fit(self, site: Site, old: Factors) -> Factors | None:
        """Factors of the same rank, [out, rank] and [rank, in], for what the layer gets now.

        None: it cannot be fitted, or not better than ``old``.
        """
        job = self._jobs.get(site)
        halves = self._halves(site.first, job) if job is not None else []
        if not halves or not all(half.rows for half in halves):
            return None
        both = halves[0] + halves[1]
        full = _pulled(site.matrix(), halves, both)
        scale, inverse = root(both.moments.damped())
        rank = len(old[1])
        left, values, right = np.linalg.svd(full @ scale, full_matrices=False)
        length = np.sqrt(values[:rank])
        new = left[:, :rank] * length, (length[:, None] * right[:rank]) @ inverse
        return new if both.error(new[0] @ new[1]) < both.error(old[0].astype(np.float64) @ old[1]) else None

    def _halves(self, layer: Layer, job: _Job) -> list[_Rows]:
        """What is known of the layer from the rows of the samples, each in one half."""
        ctx, halves = self._ctx, [_Rows.none(layer), _Rows.none(layer)]
        assert ctx.samples is not None
        wanted = [job.result] if job.other is None else [job.result, job.other]
        x, now = layer.node.given(0), job.now
        read = [x] if now is None else [x, now]
        ctx.progress(f"fitting the factors of {layer.name}")
        runs = (
            computed(graph, values, ctx.samples, ctx.runner)
            for graph, values in ((self._original, wanted), (self._graph, read))
        )
        for number, (before, after) in enumerate(zip(*runs, strict=True)):
            t = before[job.result].astype(np.float64) - job.bias
            if now is not None and job.other is not None:
                t += before[job.other].astype(np.float64) - after[now]
            rows_x, rows_t = _rows(layer, after[x], t)
            alone = len(rows_x) == 1
            for i, half in enumerate(halves):
                some = slice(None) if alone and number % 2 == i else slice(0, 0) if alone else slice(i, None, 2)
                half.add(rows_x[some], rows_t[some])
        return halves


@dataclass(frozen=True)
class _Job:
    """What a layer is fitted to.

    Attributes:
        result: what it computes in the original.
        bias: what is added to its products there, in the shape in which it is.
        other: the value in the original that is added to what it computes, if there is one.
        sum: the node of the changed graph that adds it, and which operand it is.
    """

    result: Value
    bias: Array
    other: Value | None
    sum: tuple[Node, int] | None

    @property
    def now(self) -> Value | None:
        """``other`` in the graph as it is now."""
        return self.sum[0].given(self.sum[1]) if self.sum is not None else None


def _job(site: Site, mapping: Mapping[Value, Value]) -> _Job | None:
    """None: the weight is used more than once, or what it multiplies are not the elements of its input."""
    node, attrs = site.node, site.node.attrs
    bias = node.operand(2)
    is_padded = any(attrs.get("pads", ())) or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if len(site.layers) > 1 or is_padded or (bias is not None and bias.const is None):
        return None
    array = np.zeros(()) if bias is None or bias.const is None else attrs.get("beta", 1.0) * bias.const.numpy()
    if node.op == "Conv" and array.ndim:
        array = array.reshape(-1, *(1,) * len(site.kernel))
    added = _sum_behind(node)
    other = mapping[added[0].given(added[1])] if added is not None else None
    return _Job(mapping[node.result], array, other, added)


def _sum_behind(node: Node) -> tuple[Node, int] | None:
    """The node that adds what ``node`` computes, with a bias, to a value that is there before it; and its operand."""
    value = node.result
    while len(value.users) == 1 and value.users[0].op == "Add":
        user = value.users[0]
        position = 1 if user.given(0) is value else 0
        other = user.given(position)
        if other.const is None:
            before = other.producer is None or other.producer.order < node.order
            return (user, position) if before and user.graph is node.graph and other.type == value.type else None
        value = user.result
    return None


def _rows(layer: Layer, x: Array, t: Array) -> Iterator[Array]:
    """Inputs and targets, each [batch, channels] or [batch, positions, channels]."""
    if layer.node.op == "Conv":
        steps = layer.node.attrs.get("strides") or [1] * (x.ndim - 2)
        x = np.moveaxis(x[:, :, *(slice(None, None, s) for s in steps)], 1, -1)
        t = np.moveaxis(t, 1, -1)
    for array in (x, t):
        rows = np.atleast_2d(array.astype(np.float64))
        yield rows if rows.ndim == 2 else rows.reshape(len(rows), -1, rows.shape[-1])


@dataclass
class _Rows:
    """Sums over rows.

    Attributes:
        inputs: of ``x x^T``, [in, in].
        cross: of ``t x^T``, [out, in].
        squares: of the squares of all targets.
        rows: their number.
    """

    inputs: Array
    cross: Array
    squares: float = 0.0
    rows: int = 0

    @classmethod
    def none(cls, layer: Layer) -> _Rows:
        """No rows of ``layer``."""
        outputs = layer.matrix().shape[0]
        return cls(np.zeros((layer.inputs, layer.inputs)), np.zeros((outputs, layer.inputs)))

    def add(self, x: Array, t: Array) -> None:
        """Rows of finite numbers; others are left out."""
        x, t = x.reshape(-1, x.shape[-1]), t.reshape(-1, t.shape[-1])
        finite = np.isfinite(x).all(axis=1) & np.isfinite(t).all(axis=1)
        if not finite.all():
            x, t = x[finite], t[finite]
        self.inputs += x.T @ x
        self.cross += t.T @ x
        self.squares += float(np.square(t).sum())
        self.rows += len(x)

    def __add__(self, other: _Rows) -> _Rows:
        return _Rows(
            self.inputs + other.inputs, self.cross + other.cross, self.squares + other.squares, self.rows + other.rows
        )

    @property
    def moments(self) -> Moments:
        """The second moments of the inputs."""
        return Moments(self.inputs / max(self.rows, 1), self.rows)

    def error(self, matrix: Array) -> float:
        """The sum of ``|t - matrix x|^2``."""
        return self.squares - 2 * float((matrix * self.cross).sum()) + float((matrix @ self.inputs * matrix).sum())

    def regressions(self, weight: Array, pulls: Iterable[float]) -> Iterator[Array]:
        """The regressions of the targets on the inputs, each drawn towards ``weight`` by so much."""
        values, vectors = np.linalg.eigh(self.inputs)
        damping = np.trace(self.moments.damped() - self.moments.matrix) / len(values) * self.rows
        missing = (self.cross - weight @ self.inputs) @ vectors
        for pull in pulls:
            yield weight + missing / (np.maximum(values, 0) + pull * damping) @ vectors.T


def _pulled(weight: Array, halves: list[_Rows], both: _Rows) -> Array:
    """The regression that is best where each half judges that of the other, or the weight itself."""
    own = sum(half.error(weight) for half in halves)
    errors = np.zeros(len(_PULLS))
    for fitted, judge in (halves, halves[::-1]):
        errors += [judge.error(matrix) for matrix in fitted.regressions(weight, _PULLS)]
    best = int(errors.argmin())
    return next(both.regressions(weight, [_PULLS[best]])) if errors[best] < _BETTER * own else weight
