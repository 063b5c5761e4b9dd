"""Control flow: Loop, Scan and If.

What a loop carries keeps its shape, and nothing in its body has a size that changes with the iterations. Where TensorRT
refuses a loop, it is unrolled, if the number of its iterations is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....ir import UNKNOWN, DType, Graph, Node, Value, constant, op
from ....ir.builder import make_node
from ....ir.clone import clone_graph, clone_node
from ....ir.edit import floating, insert
from ....ir.infer import infer
from ....ir.types import Shape, TensorType, Type
from ..legality import NUMBERS, Row
from ..versions import Version
from .shapes import SHAPE_OPERANDS, check_moved, most_trips, moving_part, unfit

__all__ = ["FORMS", "ROWS", "copied", "nested", "unrolled"]

_ENDLESS = (1 << 31) - 1  # iterations: the parser reads as many as no limit
_NODES = 1 << 13  # of an unrolled loop
_CARRIED = NUMBERS | {DType.BOOL}


def _body(node: Node) -> Graph:
    body: Graph = node.attrs["body"]
    return body


# --- rows ------------------------------------------------------------------------------------------------------------


def _check_loop(node: Node, version: Version) -> str:
    body, carried = _body(node), len(node.operands) - 2
    trips, condition = node.operand(0), node.operand(1)
    scanned = len(node.results) > carried
    if condition is None:
        return "it has no condition at first, though its body has one"
    if _is_input(condition):
        return f"its condition is the input {condition.name}: {version} would rename it"
    if trips is None or _is_endless(trips):
        if body.inputs[0].is_used:
            return "it has no limit, and its body reads the number of the iteration"
        if scanned:
            return "it has no limit, and its results are stacked"
    elif scanned and (reason := unfit(trips)):
        return reason
    if scanned and not _runs_to_the_end(node):
        return "it may end early, and its results are stacked"
    return _changing_shape(body, node.operands[2:], 2, 1) or _changing_size(body, version)


def _is_input(value: Value) -> bool:
    return value.graph is not None and value.graph.parent is None


def _is_endless(trips: Value) -> bool:
    return trips.const is not None and int(trips.const.numpy().ravel()[0]) >= _ENDLESS


def _holds(value: Value) -> bool:
    return value.const is not None and bool(value.const.numpy().ravel()[0])


def _runs_to_the_end(node: Node) -> bool:
    """Whether the condition of a Loop, if any, always holds once it does."""
    body, condition = _body(node), node.operand(1)
    after = body.outputs[0]
    while after.producer is not None and after.producer.op == "Identity":
        after = after.producer.given(0)
    goes_on = after is body.inputs[1] or (condition is not None and after is condition) or _holds(after)
    return goes_on and (condition is None or _holds(condition) or condition.const is None)


def _changing_shape(body: Graph, given: Sequence[Value | None], first_input: int, first_output: int) -> str:
    """Why something that is carried has not the same shape before and after an iteration, or ""."""
    for i, start in enumerate(given):
        before, after = body.inputs[first_input + i], _declared(body, first_output + i)
        if start is None or start.shape is None or after is None:
            continue
        shapes = zip(start.shape, before.shape or start.shape, after, strict=False)
        if len(start.shape) != len(after) or any(end not in (first, again) for first, again, end in shapes):
            return f"%{before.name} changes its shape from one iteration to the next"
    return ""


def _declared(body: Graph, index: int) -> Shape | None:
    """The shape of an output, with the sizes that the graph declares."""
    shape, declared = body.outputs[index].shape, body.output_info[index].type
    known = declared.shape if isinstance(declared, TensorType) else None
    if shape is None or known is None or len(shape) != len(known):
        return shape
    return tuple(d if isinstance(d, int) else s for s, d in zip(shape, known, strict=True))


def _changing_size(body: Graph, version: Version) -> str:
    """Why a size in ``body`` changes with the iterations, or ""."""
    for inner in body.walk():
        for position in SHAPE_OPERANDS.get(inner.op, ()):
            operand = inner.operand(position)
            if operand is not None and unfit(operand) and not (inner.op == "Slice" and moving_part(inner)):
                return f"{inner.op} {inner.name}: {unfit(operand)}".replace("  ", " ")
    return ""


def _scan_axes(node: Node) -> tuple[list[int], list[int]]:
    count = node.attrs["num_scan_inputs"]
    states = len(node.operands) - count
    axes_in = list(node.attrs.get("scan_input_axes") or [0] * count)
    return axes_in, list(node.attrs.get("scan_output_axes") or [0] * (len(node.results) - states))


def _check_scan(node: Node, version: Version) -> str:
    body, states = _body(node), len(node.operands) - node.attrs["num_scan_inputs"]
    if not states:
        return f"it carries nothing: {version} wants something"
    if any(axis < 0 for axes in _scan_axes(node) for axis in axes):
        return f"an axis is negative: {version} counts from 0"
    given = node.operands[:states]
    return _changing_shape(body, given, 0, 0) or _changing_size(body, version)


def _check_if(node: Node, version: Version) -> str:
    then, other = (node.attrs[name] for name in ("then_branch", "else_branch"))
    for first, second in zip(then.outputs, other.outputs, strict=True):
        if first.rank is not None and second.rank is not None and first.rank != second.rank:
            return f"its branches give {first.rank} and {second.rank} dimensions"
    if any(len(set(branch.outputs)) < len(branch.outputs) for branch in (then, other)):
        return "a branch gives one value twice"
    return check_moved(node, version)


ROWS: dict[str, Row] = {
    "If": Row({"V": _CARRIED}, check=_check_if),
    "Loop": Row({"V": _CARRIED}, check=_check_loop),
    "Scan": Row({"V": _CARRIED}, check=_check_scan),
}


# --- forms -----------------------------------------------------------------------------------------------------------


def _loop(node: Node, version: Version) -> Sequence[Value] | None:
    """With a condition and a limit; or unrolled."""
    body, (trips, condition) = _body(node), node.operands[:2]
    if condition is None:
        condition = constant(True, DType.BOOL)
    elif _is_input(condition):
        condition = op.Identity(condition)
    if body.inputs[0].is_used and (trips is None or _is_endless(trips)):
        trips = constant(_ENDLESS - 1, DType.INT64)
    if (trips, condition) != node.operands[:2]:
        attrs = {"body": clone_graph(body)}
        made = make_node("Loop", (trips, condition, *node.operands[2:]), attrs, len(node.results))
        if not _check_loop(made, version):
            return made.results
    return unrolled(node)


def unrolled(node: Node) -> list[Value] | None:
    """The results of a Loop or Scan by copies of its body, one per iteration; None if their number is not known."""
    trips = most_trips(node) if node.op == "Loop" else _scan_length(node)
    size = sum(1 for _ in _body(node).walk())
    if not isinstance(trips, int) or not 0 < trips * max(size, 1) <= _NODES:
        return None
    return _unrolled_loop(node, trips) if node.op == "Loop" else _unrolled_scan(node, trips)


def _unrolled_loop(node: Node, trips: int) -> list[Value] | None:
    body, condition = _body(node), node.operand(1)
    count = len(node.operands) - 2
    carried = [v for v in node.operands[2:] if v is not None]
    to_the_end = _runs_to_the_end(node)
    if not to_the_end and (len(node.results) > count or _changing_shape(body, carried, 2, 1)):
        return None
    if to_the_end and not (condition is None or _holds(condition)) and len(node.results) == count:
        to_the_end = False  # it may not run at all
    goes_on = constant(True, DType.BOOL) if condition is None else condition
    stacked: list[list[Value]] = [[] for _ in node.results[count:]]
    for i in range(trips):
        state = goes_on if not to_the_end else constant(True, DType.BOOL)
        again, *made = copied(body, [constant(i, DType.INT64), state, *carried])
        new, scanned = made[:count], made[count:]
        if not to_the_end:
            new = [op.Where(goes_on, after, before) for after, before in zip(new, carried, strict=True)]
            goes_on = op.And(goes_on, again)
        carried = new
        for parts, value in zip(stacked, scanned, strict=True):
            parts.append(op.Unsqueeze(value, constant([0], DType.INT64)))
    return [*carried, *(op.Concat(*parts, axis=0) for parts in stacked)]


def copied(body: Graph, inputs: Sequence[Value]) -> list[Value]:
    """What ``body`` gives for ``inputs``, by floating copies of its nodes, which are typed anew."""
    mapping = dict(zip(body.inputs, inputs, strict=True))
    for inner in body.nodes:
        copy = clone_node(inner, mapping)
        for result in copy.results:
            result.type, result.content = UNKNOWN, None
        infer(copy)
    return [mapping.get(v, v) for v in body.outputs]


def _scan_length(node: Node) -> int | None:
    x = node.operands[-1]
    size = x.shape[_scan_axes(node)[0][-1]] if x is not None and x.shape is not None else None
    return size if isinstance(size, int) else None


def _unrolled_scan(node: Node, trips: int) -> list[Value] | None:
    body, count = _body(node), len(node.operands) - node.attrs["num_scan_inputs"]
    given = [v for v in node.operands if v is not None]
    carried, scanned = given[:count], given[count:]
    axes_in, axes_out = _scan_axes(node)
    backward_in = node.attrs.get("scan_input_directions") or [0] * len(axes_in)
    backward_out = node.attrs.get("scan_output_directions") or [0] * len(axes_out)
    stacked: list[list[Value]] = [[] for _ in axes_out]
    for i in range(trips):
        parts = [
            op.Gather(x, constant(trips - 1 - i if back else i, DType.INT64), axis=axis)
            for x, axis, back in zip(scanned, axes_in, backward_in, strict=True)
        ]
        made = copied(body, [*carried, *parts])
        carried = made[:count]
        for found, value, axis, back in zip(stacked, made[count:], axes_out, backward_out, strict=True):
            found.insert(0 if back else len(found), op.Unsqueeze(value, constant([axis], DType.INT64)))
    return [*carried, *(op.Concat(*parts, axis=axis) for parts, axis in zip(stacked, axes_out, strict=True))]


def _scan(node: Node, version: Version) -> Sequence[Value] | None:
    """With axes from 0 on, and something that it carries; or unrolled."""
    states, attrs = len(node.operands) - node.attrs["num_scan_inputs"], dict(node.attrs)
    scanned, results = node.operands[states:], _body(node).outputs[states:]
    axes_in, axes_out = _scan_axes(node)
    ranks_in, ranks_out = [v.rank if v is not None else None for v in scanned], [v.rank for v in results]
    if None in ranks_in or None in ranks_out:
        return None
    attrs["scan_input_axes"] = tuple(a % (r or 1) for a, r in zip(axes_in, ranks_in, strict=True))
    attrs["scan_output_axes"] = tuple(a % ((r or 0) + 1) for a, r in zip(axes_out, ranks_out, strict=True))
    attrs["body"] = clone_graph(_body(node))
    operands = list(node.operands)
    if not states:
        operands.insert(0, constant(0.0, DType.FLOAT))
        _carry(attrs["body"])
    made = make_node("Scan", tuple(operands), attrs, len(node.results) + (not states))
    return unrolled(node) if _check_scan(made, version) else made.results[not states :]


def _carry(body: Graph) -> None:
    """Let ``body`` carry a number that it never changes."""
    number = Value(TensorType(DType.FLOAT, ()), "carried")
    number.graph = body
    body.inputs.insert(0, number)
    for i, value in enumerate(body.inputs):
        value.index = i
    same = make_node("Identity", (number,), {})
    insert(same, body.ret)
    body.set_outputs([same.result, *body.outputs])


def _if(node: Node, version: Version) -> Sequence[Value] | None:
    """With a copy of what a branch gives again."""
    then, other = (node.attrs[name] for name in ("then_branch", "else_branch"))
    pairs = zip(then.outputs, other.outputs, strict=True)
    if any(a.rank is not None and b.rank is not None and a.rank != b.rank for a, b in pairs):
        return None
    branches = {"then_branch": _without_twins(then), "else_branch": _without_twins(other)}
    return make_node("If", node.operands, branches, len(node.results)).results


def _without_twins(branch: Graph) -> Graph:
    changed, outputs = clone_graph(branch), []
    for value in changed.outputs:
        if value in outputs:
            same = make_node("Identity", (value,), {})
            insert(same, changed.ret)
            value = same.result
        outputs.append(value)
    changed.set_outputs(outputs)
    return changed


def nested(name: str, inputs: Sequence[tuple[str, Type]], body: Callable[..., Sequence[Value]]) -> Graph:
    """A nested graph of what ``body`` computes from its inputs; floating nodes that need none of them stay outside."""
    graph = Graph(name)
    values = [graph.add_input(typed, hint) for hint, typed in inputs]
    outputs = body(*values)
    inside = set(values)
    for node in floating(outputs):
        if any(o in inside for o in node.operands):
            inside.update(node.results)
            insert(node, graph.ret)
    graph.set_outputs(outputs)
    return graph


FORMS = {"If": _if, "Loop": _loop, "Scan": _scan}
