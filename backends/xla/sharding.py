"""How a model is spread over several chips: a short specification of a mesh, and what follows for weights and inputs.

``data=2,model=4`` is a mesh of eight chips. The batch is split over ``data``. Weights are split over ``model`` as in
Megatron-LM (Shoeybi et al., 2019): what several products compute from one input and only further products read is split
by columns in the former and by rows in the latter, so that one sum over the chips closes each such region. The compiler
propagates the rest (GSPMD, Xu et al., 2021); a poor choice costs communication, never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from jax.sharding import PartitionSpec

from ...ir.dims import Sym
from ...ir.errors import PlanishError
from ...ir.graph import Graph, Node, Value
from ...ir.types import TensorType
from .plan import Plan

__all__ = ["Sharding", "parse_mesh", "shard"]

_AXES = ("data", "model")
_LARGE = 16 << 20  # bytes from which on a weight outside of all regions is split, too, to save memory
_PRODUCTS = frozenset({"MatMul", "Gemm"})
_VIEWS = frozenset({"DequantizeLinear", "planish.FakeQuantize", "Cast", "Identity", "Transpose"})
_MIXING = frozenset(  # operators that need all features of a position at once
    {
        *("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization"),
        *("BatchNormalization", "Gather", "ReduceMean", "ReduceSum", "ReduceMax", "ArgMax", "TopK", "Conv"),
    }
)


def parse_mesh(text: str, chips: int) -> dict[str, int]:
    """The sizes of the axes of a mesh, such as ``data=1,model=4``; an axis that is left out has what remains.

    Raises:
        PlanishError: it is none, or not one of so many chips.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = part.partition("=")
        if name not in _AXES or not number.isdecimal() or int(number) < 1 or name in sizes:
            raise PlanishError(f"no mesh {text!r}: write data=N,model=M")
        sizes[name] = int(number)
    for name in _AXES:
        if name not in sizes:
            sizes[name] = max(chips // math.prod(sizes.values()), 1) if len(sizes) == 1 or name == "data" else 1
    if math.prod(sizes.values()) != chips:
        raise PlanishError(f"mesh {text!r} has {math.prod(sizes.values())} chips, the topology {chips}")
    return {name: sizes[name] for name in _AXES}


@dataclass
class Sharding:
    """Where weights and inputs are split.

    Attributes:
        params: by name of the weight.
        inputs: in order.
        regions: the number of regions that are computed in parallel.
    """

    params: dict[str, PartitionSpec] = field(default_factory=dict)
    inputs: list[PartitionSpec] = field(default_factory=list)
    regions: int = 0


def shard(plan: Plan, mesh: dict[str, int]) -> Sharding:
    """The sharding of a planned graph over ``mesh``."""
    found = Sharding(inputs=list(_inputs(plan.graph, mesh["data"])))
    ways = mesh["model"]
    found.params = {name: PartitionSpec() for name in plan.tensors}
    if ways == 1:
        return found
    split: dict[str, PartitionSpec] = {}
    for region in _regions(plan.graph):
        columns = [_split(plan, p, 1, ways) for p in region.producers]
        rows = [_split(plan, p, 0, ways) for p in region.consumers]
        if region.is_closed and all(columns) and all(rows):
            split.update(dict(s for s in (*columns, *rows) if s is not None))
            found.regions += 1
    split = {**dict(_large(plan, ways)), **split}
    found.params.update(split)
    return found


def _large(plan: Plan, ways: int) -> Iterator[tuple[str, PartitionSpec]]:
    """Large weights outside of all regions, to save memory: tables by rows, products by columns.

    So what is computed from them is whole, or an output: no other split spreads through the graph from here.
    """
    outputs = set(plan.graph.outputs)
    for node in plan.graph.nodes:
        if node.op == "Gather":
            found = _weight(node.given(0))
            name = None if found is None else plan.weights.get(found[0])
            if name is not None and plan.tensors[name].nbytes >= _LARGE and plan.tensors[name].shape[0] % ways == 0:
                yield name, _spec(0)
        elif _is_product(node) and outputs.intersection(node.results):
            columns = _split(plan, node, 1, ways)
            if columns is not None and plan.tensors[columns[0]].nbytes >= _LARGE:
                yield columns


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, "model")


def _inputs(graph: Graph, ways: int) -> Iterator[PartitionSpec]:
    """The batch, which is what the first dimension of the first input is called, is split in all inputs."""
    types = [v.type for v in graph.inputs]
    first = next((t.shape[0] for t in types if isinstance(t, TensorType) and t.shape), None)
    for type_ in types:
        shape = type_.shape if isinstance(type_, TensorType) and type_.shape else ()
        is_batch = [ways > 1 and (d == first if isinstance(first, Sym) else i == 0) for i, d in enumerate(shape)]
        yield PartitionSpec(*("data" if b else None for b in is_batch))


# regions


@dataclass
class _Region:
    """Values that are computed feature by feature from the results of products, and the products that read them."""

    producers: list[Node] = field(default_factory=list)
    consumers: list[Node] = field(default_factory=list)
    is_closed: bool = True


def _regions(graph: Graph) -> list[_Region]:
    """The regions of ``graph`` that products begin and end."""
    leader: dict[Value, Value] = {}

    def find(value: Value) -> Value:
        while leader.setdefault(value, value) is not value:
            leader[value] = leader[leader[value]]
            value = leader[value]
        return value

    def around(node: Node) -> list[Value]:
        return [v for v in (*node.operands, *node.results) if v is not None and v in active]

    active = _active(graph)
    nodes = list(graph.nodes)
    for node in nodes:
        if _is_product(node) or node.op in _MIXING:
            continue
        group = around(node)
        for value in group[1:]:
            leader[find(value)] = find(group[0])
    regions: dict[Value, _Region] = {}

    def region(value: Value) -> _Region:
        return regions.setdefault(find(value), _Region())

    for node in nodes:
        if _is_product(node):
            region(node.result).producers.append(node)
            if node.given(0) in active:
                region(node.given(0)).consumers.append(node)
        elif node.op in _MIXING or node.graphs:
            for value in around(node):
                region(value).is_closed = False
    for value in graph.outputs:
        if value in active:
            region(value).is_closed = False
    return [r for r in regions.values() if r.producers and r.consumers]


def _active(graph: Graph) -> set[Value | None]:
    """The values that depend on a product with weights, or on rows of a table: not masks and positions."""
    active: set[Value | None] = set()
    for node in graph.nodes:
        reads_table = node.op == "Gather" and _weight(node.given(0)) is not None
        if _is_product(node) or reads_table or any(o in active for o in node.operands):
            active.update(node.results)
    return active


def _is_product(node: Node) -> bool:
    return node.op in _PRODUCTS and _weight(node.given(1)) is not None and node.given(1).rank == 2


def _weight(value: Value) -> tuple[Value, bool] | None:
    """The constant behind ``value``, and whether it is transposed."""
    transposed = False
    while value.const is None:
        node = value.producer
        if node is None or node.op not in _VIEWS:
            return None
        transposed ^= node.op == "Transpose"
        value = node.given(0)
    return value, transposed


def _split(plan: Plan, product: Node, axis: int, ways: int) -> tuple[str, PartitionSpec] | None:
    """Dimension ``axis`` (0: rows, 1: columns) of the right factor of ``product`` split, if it can be."""
    found = _weight(product.given(1))
    assert found is not None
    value, transposed = found
    name = plan.weights.get(value)
    transposed ^= product.op == "Gemm" and bool(product.attrs.get("transB", 0))
    axis = 1 - axis if transposed else axis
    if name is None or plan.tensors[name].shape[axis] % ways:
        return None
    return name, _spec(axis)
