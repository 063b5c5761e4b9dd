"""If, Loop and Scan: types flow into their bodies, and back out."""

from __future__ import annotations

from collections.abc import Sequence

from ..dims import Dim, dim_max, fresh
from ..graph import Graph, Node, Value
from ..types import UNKNOWN, DType, SequenceType, TensorType, Type, compatible, merge
from .common import attr_int, join, normal_axis, operand, operand_type, same_dim
from .engine import IllTyped, infer_graph, scalar_content, typing

_ITERATION = TensorType(DType.INT64, ())
_CONDITION = TensorType(DType.BOOL, ())
_ROUNDS = 4  # attempts at finding what a loop keeps of its carried types


def _body(node: Node, name: str) -> Graph:
    graph = node.attrs.get(name)
    if not isinstance(graph, Graph):
        raise IllTyped(f"{node.op}: attribute {name} is not a graph")
    return graph


def infer_body(node: Node, body: Graph, inputs: Sequence[Type]) -> tuple[Type, ...]:
    """Give the inputs of ``body`` the types ``inputs``, type its nodes; returns the types of its outputs."""
    if len(body.inputs) != len(inputs):
        raise IllTyped(f"{node.op}: a body of {len(body.inputs)} inputs for {len(inputs)} values")
    for value, type_ in zip(body.inputs, inputs, strict=True):
        if compatible(value.type, type_):
            value.type = merge(value.type, type_)
    infer_graph(body)
    outputs = []
    for i, value in enumerate(body.outputs):
        stated = body.output_info[i].type if i < len(body.output_info) else UNKNOWN
        outputs.append(merge(value.type, stated) if compatible(value.type, stated) else value.type)
    return tuple(outputs)


@typing("If")
def _if(node: Node) -> tuple[Type, ...]:
    condition = operand_type(node, 0)
    if condition.dtype not in (DType.BOOL, DType.UNDEFINED):
        raise IllTyped(f"If: a condition of {condition.dtype.text}")
    first = infer_body(node, _body(node, "then_branch"), ())
    second = infer_body(node, _body(node, "else_branch"), ())
    if len(first) != len(second) or len(first) != len(node.results):
        raise IllTyped(f"If: branches of {len(first)} and {len(second)} results for {len(node.results)}")
    taken = scalar_content(node.operands[0])
    if isinstance(taken, int):
        return first if taken else second
    for a, b in zip(first, second, strict=True):
        if isinstance(a, TensorType) and isinstance(b, TensorType) and a.dtype and b.dtype and a.dtype != b.dtype:
            raise IllTyped(f"If: branches give {a} and {b}")
    return tuple([join(a, b) for a, b in zip(first, second, strict=True)])


# what loops carry


class _Snapshot:
    """The types and contents of everything in a graph, to take back an attempt."""

    def __init__(self, graph: Graph):
        values: list[Value] = []
        for inner in graph.walk_graphs():
            values += inner.inputs
            for node in inner.nodes:
                values += node.results
        self.state = [(v, v.type, v.content) for v in values]

    def restore(self) -> None:
        for value, type_, elements in self.state:
            value.type, value.content = type_, elements


def _carried(
    node: Node, body: Graph, before: Sequence[Type], initial: Sequence[Type], after: Sequence[Type], at: int
) -> tuple[list[Type], tuple[Type, ...]]:
    """Type ``body`` with carried values that keep only what every iteration keeps.

    The body's inputs are ``before``, the carried values, ``after``; its outputs from ``at`` on are the carried values.

    Returns:
        The types of the carried values at every iteration, and those of all outputs of the body.
    """
    count = len(initial)
    assumed = list(initial)
    free: set[Dim] = set()  # sizes that are known to change
    for _ in range(_ROUNDS if _loops_around(node) < 2 else 0):
        snapshot = _Snapshot(body)
        outputs = infer_body(node, body, [*before, *assumed, *after])
        if len(outputs) < at + count:
            raise IllTyped(f"{node.op}: a body of {len(outputs)} results for {count} carried values")
        widened = [_widen(a, b, free) for a, b in zip(assumed, outputs[at : at + count], strict=True)]
        if widened == assumed:
            return assumed, outputs
        assumed = widened
        snapshot.restore()
    assumed = [TensorType(t.dtype, None) if isinstance(t, TensorType) else UNKNOWN for t in assumed]
    return assumed, infer_body(node, body, [*before, *assumed, *after])


def _loops_around(node: Node) -> int:
    """The number of loops whose bodies ``node`` is in."""
    found, graph = 0, node.graph
    while graph is not None and graph.parent is not None:
        found += graph.parent.op != "If"
        graph = graph.parent.graph
    return found


def _widen(assumed: Type, found: Type, free: set[Dim]) -> Type:
    """``assumed``, less what ``found`` does not agree with; sizes that it leaves open join ``free``."""
    if isinstance(assumed, TensorType) and isinstance(found, TensorType):
        dtype = assumed.dtype if assumed.dtype is found.dtype else DType.UNDEFINED
        if assumed.shape is None or found.shape is None or len(assumed.shape) != len(found.shape):
            return TensorType(dtype, None)
        dims = []
        for x, y in zip(assumed.shape, found.shape, strict=True):
            if x != y and x not in free:
                x = fresh()
                free.add(x)
            dims.append(x)
        return TensorType(dtype, tuple(dims))
    if isinstance(assumed, SequenceType) and type(assumed) is type(found):
        return type(assumed)(_widen(assumed.element, found.element, free))
    return UNKNOWN


@typing("Loop")
def _loop(node: Node) -> tuple[Type, ...]:
    body = _body(node, "body")
    count = len(node.operands) - 2
    if count < 0 or len(body.inputs) != count + 2:
        raise IllTyped(f"Loop: a body of {len(body.inputs)} inputs for {count} carried values")
    initial = [operand(node, i + 2).type for i in range(count)]
    carried, outputs = _carried(node, body, (_ITERATION, _CONDITION), initial, (), 1)
    results = [join(a, b) for a, b in zip(carried, outputs[1 : count + 1], strict=True)]
    trips = _trip_count(node, body)
    stacked = [_stacked(node, t, trips, 0) for t in outputs[count + 1 :]]
    return tuple(results + stacked)


def _trip_count(node: Node, body: Graph) -> Dim:
    """The number of iterations, where only the first operand of a Loop limits it."""
    limit = node.operands[0]
    if limit is None:
        return fresh()
    stays: Value | None = body.outputs[0]
    while stays is not None and stays.producer is not None and stays.producer.op == "Identity":
        stays = stays.producer.operands[0]
    goes_on = stays is body.inputs[1] or scalar_content(stays) == 1
    starts = node.operands[1] is None or scalar_content(node.operands[1]) == 1
    trips = scalar_content(limit)
    if trips is None or not goes_on or not starts:
        return fresh()
    return dim_max(trips, 0)


def _stacked(node: Node, type_: Type, count: Dim, axis: int) -> Type:
    if not isinstance(type_, TensorType):
        raise IllTyped(f"{node.op}: a body that collects {type_}")
    if type_.shape is None:
        return type_
    axis = normal_axis(node, axis, len(type_.shape) + 1)
    return TensorType(type_.dtype, (*type_.shape[:axis], count, *type_.shape[axis:]))


@typing("Scan")
def _scan(node: Node) -> tuple[Type, ...]:
    body = _body(node, "body")
    scanned = attr_int(node, "num_scan_inputs", 0)
    count = len(node.operands) - scanned
    if scanned < 1 or count < 0:
        raise IllTyped(f"Scan: {scanned} of {len(node.operands)} operands are scanned")
    initial = [operand(node, i).type for i in range(count)]
    axes = node.attrs.get("scan_input_axes") or (0,) * scanned
    elements: list[Type] = []
    trips: Dim | None = None
    for i, axis in zip(range(scanned), axes, strict=True):
        type_ = operand_type(node, count + i)
        if type_.shape is None:
            elements.append(type_)
            continue
        axis = normal_axis(node, axis, len(type_.shape))
        length = type_.shape[axis]
        trips = length if trips is None else same_dim(node, trips, length)
        elements.append(TensorType(type_.dtype, type_.shape[:axis] + type_.shape[axis + 1 :]))
    carried, outputs = _carried(node, body, (), initial, elements, 0)
    results = [join(a, b) for a, b in zip(carried, outputs[:count], strict=True)]
    out_axes = node.attrs.get("scan_output_axes") or (0,) * (len(outputs) - count)
    length = fresh() if trips is None else trips
    stacked = [_stacked(node, t, length, a) for t, a in zip(outputs[count:], out_axes, strict=True)]
    return tuple(results + stacked)
