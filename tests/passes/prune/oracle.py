"""The judge of structured pruning: a pruned graph must compute what the original computes with channels masked.

`check` needs two graphs, an input, and which slices of which constants were kept; if nobody says so, `kept_slices`
finds that out by comparing the weights. It shares no code and no bookkeeping with the pruner. The original graph is
evaluated node by node at its full size, and every array comes with a mask of the elements that are *alive*:

- of a constant: those in kept slices; of an input: all;
- of a result of an operator that moves elements: the operator itself, applied to the mask, says so;
- of a product or a convolution: rows and columns whose weights are alive;
- elementwise: where all operands are alive, and they must agree;
- dead elements become 0 after every node, whatever the operator made of them (sigmoid(0), a shift of a norm);
- means, norms and softmaxes are taken over alive elements only, as they are once the others are gone.

Any operator that meets dead elements and is not in the table is an error: nothing is judged by guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.backends.base import Backend, backend
from planish.ir import Graph, Node, Value
from planish.ir.evaluate import evaluate
from planish.ir.infer.elementwise import ELEMENTWISE

__all__ = ["Agreement", "Masked", "Mismatch", "check", "in_original", "kept_slices", "masked_values"]

Array = np.ndarray[Any, Any]
Slot = Value | tuple[Node, int]  # a constant wherever it is used, or one use of it
Kept = Mapping[Slot, Mapping[int, Array]]  # by axis, the indices that stay
Run = Callable[[Node, Sequence[Array | None]], list[Array]]


class Mismatch(AssertionError):
    """The pruned graph is not the masked original; the message names the node where they part."""


@dataclass(frozen=True)
class Masked:
    """An array of the original's full size.

    Attributes:
        data: its elements, 0 where they are dead.
        alive: which elements the pruned graph still has, an array of the same shape; None: all.
    """

    data: Array
    alive: Array | None = None

    @property
    def present(self) -> Array:
        """The mask, written out."""
        return np.ones(self.data.shape, bool) if self.alive is None else self.alive

    @property
    def compressed(self) -> Array:
        """The alive elements, in order."""
        return self.data.reshape(-1) if self.alive is None else self.data[self.alive]


Operands = Sequence[Masked | None]
Rule = Callable[[Node, Operands, Run], "Masked | list[Masked]"]


@dataclass(frozen=True)
class Agreement:
    """What `check` found.

    Attributes:
        error: the largest error of an output, relative to the largest magnitude in it.
        removed: elements of constants that are gone.
    """

    error: float
    removed: int


# --- judging ---------------------------------------------------------------------------------------------------------


def check(
    original: Graph,
    pruned: Graph,
    inputs: Mapping[str, Array],
    kept: Kept | None = None,
    tolerance: float = 1e-5,
    runner: Backend | None = None,
    locate: bool = True,
) -> Agreement:
    """Judge ``pruned``.

    Args:
        original: the graph before pruning.
        pruned: the graph after; ``original`` must be another object (`planish.ir.clone.clone_graph`).
        inputs: arrays for both, by name.
        kept: for constants of ``original`` that shrank, the indices that stay, by axis. None: `kept_slices`.
        tolerance: for the largest error of an output, relative to its largest magnitude.
        runner: what runs nodes and graphs; default: ONNX Runtime.
        locate: name the first node that differs.

    Raises:
        Mismatch: an output differs in shape or value, or operands of a node are masked differently.
        NotImplementedError: an operator is fed dead elements and there is no rule for it.
    """
    runner = runner or backend("onnxruntime")
    kept = kept_slices(original, pruned) if kept is None else kept
    values = {value: Masked(inputs[value.name]) for value in original.inputs}
    for _ in masked_values(original, values, kept, runner, set(original.outputs)):
        pass
    actual = runner.run(pruned, inputs)
    error = 0.0
    for value, info in zip(original.outputs, original.output_info, strict=True):
        masked = values[value]
        if masked.alive is not None:
            raise Mismatch(f"channels of the output {info.name!r} were removed")
        found = difference(masked.data, actual[info.name])
        if found > tolerance:
            where = _first_difference(original, pruned, inputs, kept) if locate else ""
            raise Mismatch(f"output {info.name!r} is off by {found:.1e}{where}")
        error = max(error, found)
    return Agreement(error, _removed(original, kept))


def difference(expected: Array, actual: Array) -> float:
    """The largest error relative to the largest magnitude; infinite for another shape, or where one is not finite."""
    if expected.shape != actual.shape or not np.array_equal(np.isfinite(expected), np.isfinite(actual)):
        return float("inf")
    if not expected.size:
        return 0.0
    expected, actual = (np.where(np.isfinite(a), a, 0).astype(np.float64) for a in (expected, actual))
    return float(np.abs(expected - actual).max() / (np.abs(expected).max() + 1e-12))


def _first_difference(original: Graph, pruned: Graph, inputs: Mapping[str, Array], kept: Kept) -> str:
    """Run both graphs node by node; says which node is the first to differ."""
    runner = backend("onnxruntime")
    expected = {value: Masked(inputs[value.name]) for value in original.inputs}
    actual = {value: Masked(inputs[value.name]) for value in pruned.inputs}
    for graph, values, slices in ((original, expected, kept), (pruned, actual, {})):
        for _ in masked_values(graph, values, slices, runner):
            pass
    for node, other in paired(original, pruned):
        for a, b in zip(node.results, other.results, strict=True):
            if a not in expected or b not in actual or not a.dtype.is_floating:
                continue
            wanted, given = expected[a].compressed, actual[b].data
            error = difference(wanted, given.reshape(-1))
            if error > 1e-4:
                sizes = f"{expected[a].data.shape} with {wanted.size} of {expected[a].data.size} alive"
                return f"; the first node that differs, by {error:.1e}, is {node} ({sizes}; pruned: {given.shape})"
    return ""


def paired(original: Graph, pruned: Graph) -> Iterator[tuple[Node, Node]]:
    """The nodes of ``original``, each with the one that it became; what pruning has added is skipped."""
    others = list(pruned.nodes)
    at = 0
    for node in original.nodes:
        key = node.op, node.name, len(node.operands), len(node.results)
        found = next((i for i in range(at, len(others)) if key == _key(others[i], len(node.operands))), None)
        if found is not None:
            yield node, others[found]
            at = found + 1


def _key(node: Node, operands: int) -> tuple[str, str, int, int]:
    """What stays of a node; it may get operands that it did not have."""
    return node.op, node.name, min(len(node.operands), operands), len(node.results)


def _removed(graph: Graph, kept: Kept) -> int:
    """Elements of constants that are gone."""
    seen: dict[tuple[int, bytes], int] = {}
    for node in graph.nodes:
        for i, value in enumerate(node.operands):
            alive = None if value is None or value.const is None else _alive_of(node, i, value, kept)
            if alive is not None:
                seen[id(value), alive.tobytes()] = int(alive.size - alive.sum())
    return sum(seen.values())


# --- which slices were kept ------------------------------------------------------------------------------------------


def kept_slices(original: Graph, pruned: Graph) -> dict[Slot, dict[int, Array]]:
    """Find out by content which slices of the constants of ``original`` are left in ``pruned``, use by use.

    Weights must be such that few numbers appear twice, as trained or random ones are. Where the numbers of a vector
    leave a choice, it has the slices of another constant.

    Raises:
        Mismatch: a floating-point constant of ``pruned`` is not made of slices of the original's.
        ValueError: numbers repeat (the scale of a new norm, say).
    """
    found: dict[Slot, dict[int, Array]] = {}
    unclear: list[tuple[Node, int, Array, Array]] = []
    for node, other in paired(original, pruned):
        for i, (a, b) in enumerate(zip(node.operands, other.operands, strict=False)):
            if a is None or b is None or a.const is None or b.const is None or not a.dtype.is_floating:
                continue
            whole, part = a.const.numpy(), b.const.numpy()
            if whole.shape == part.shape:
                if not np.array_equal(whole, part):
                    raise Mismatch(f"operand {i} of {node} has its size, and other numbers")
                continue
            slices = _slices(whole, part)
            if slices is None:
                raise Mismatch(f"operand {i} of {node} is not made of slices: {whole.shape} became {part.shape}")
            if all(len(choice) == 1 for choices in slices.values() for choice in choices):
                found[node, i] = {axis: np.concatenate(choices) for axis, choices in slices.items()}
            else:
                unclear.append((node, i, whole, part))
    known = [indices for axes in found.values() for indices in axes.values()]
    for node, i, whole, part in unclear:
        found[node, i] = {0: _as_elsewhere(whole, part, known)}
    return found


def in_original(kept: Kept, copies: Mapping[Value, Value]) -> dict[Slot, dict[int, Array]]:
    """Slices of a clone's constants, stated before it is pruned, by their uses in the graph that it was cloned from.

    Args:
        kept: by the constants of the clone.
        copies: from the values of the original to the clone's, as `planish.ir.clone.clone_graph` has filled it.
    """
    nodes = {copy.producer: value.producer for value, copy in copies.items() if value.producer is not None}
    found: dict[Slot, dict[int, Array]] = {}
    for slot, axes in kept.items():
        for node, index in [slot] if isinstance(slot, tuple) else slot.uses:
            original = nodes.get(node)
            if original is not None:  # else it is returned
                found[original, index] = dict(axes)
    return found


def _slices(whole: Array, part: Array) -> dict[int, list[Array]] | None:
    """For each slice of ``part`` along each axis that shrank, the indices of ``whole`` that it may be; None: none."""
    if whole.ndim != part.ndim or any(p > w for p, w in zip(part.shape, whole.shape, strict=True)) or not part.size:
        return None
    order = np.argsort(whole, axis=None)
    numbers = whole.reshape(-1)[order]
    slices = {}
    for axis in range(whole.ndim):
        if whole.shape[axis] == part.shape[axis]:
            continue
        rows = np.moveaxis(part, axis, 0).reshape(part.shape[axis], -1)
        slices[axis] = [_indices(row, numbers, order, whole.shape, axis) for row in rows]
    taken = whole
    for axis, choices in slices.items():
        if not all(map(len, choices)):
            return None
        taken = taken.take([choice[0] for choice in choices], axis)
    return slices if np.array_equal(taken, part) else None


def _indices(row: Array, numbers: Array, order: Array, shape: tuple[int, ...], axis: int) -> Array:
    """The indices on ``axis`` at which all numbers of ``row`` are found, judged by the first few."""
    left: Array | None = None
    for number in row[:16]:
        low, high = np.searchsorted(numbers, number, "left"), np.searchsorted(numbers, number, "right")
        places = np.unique(np.unravel_index(order[low:high], shape)[axis])
        left = places if left is None else np.intersect1d(left, places)
        if len(left) < 2:
            break
    assert left is not None
    return left


def _as_elsewhere(whole: Array, part: Array, known: Iterable[Array]) -> Array:
    """The one of the known indices by which ``part`` may have been taken from the vector ``whole``.

    Raises:
        ValueError: there is none, or they differ.
    """
    fitting = {
        indices.tobytes(): indices
        for indices in known
        if whole.ndim == 1
        and len(indices) == len(part)
        and indices.max() < len(whole)
        and np.array_equal(whole[indices], part)
    }
    if len(fitting) != 1:
        raise ValueError("numbers of a weight repeat: which slices were kept cannot be told from them, so pass `kept`")
    return next(iter(fitting.values()))


# --- evaluation with masks -------------------------------------------------------------------------------------------


def masked_values(
    graph: Graph, values: dict[Value, Masked], kept: Kept, runner: Backend, needed: Iterable[Value] | None = None
) -> Iterator[Node]:
    """Evaluate ``graph`` node by node, into ``values``, which holds those of the inputs.

    Args:
        graph: the graph.
        values: takes the results of each node.
        kept: by constant, or by use of one, the indices that stay, by axis.
        runner: runs single nodes.
        needed: values to hold to the end; others are dropped after their last use. None: all.

    Yields:
        each node, when its results are there.
    """
    stay = None if needed is None else {*needed, *graph.inputs}
    last = {o: node for node in graph.nodes for o in _read_by(node)}

    def run(node: Node, operands: Sequence[Array | None]) -> list[Array]:
        try:
            found = evaluate(node, operands)
        except (ValueError, IndexError, TypeError):
            found = None
        return found if found is not None else runner.evaluate(node, operands)

    for node in graph.nodes:
        operands: list[Masked | None] = []
        for i, value in enumerate(node.operands):
            if value is None:
                operands.append(None)
            elif value.const is not None:
                operands.append(_settled(value.const.numpy(), _alive_of(node, i, value, kept)))
            else:
                operands.append(values[value])
        values.update(zip(node.results, _apply(node, operands, run), strict=False))
        yield node
        for value in _read_by(node):
            if stay is not None and last[value] is node and value not in stay:
                values.pop(value, None)
    for value in graph.outputs:
        if value.const is not None:
            values[value] = Masked(value.const.numpy())


def _read_by(node: Node) -> list[Value]:
    return [o for o in node.operands if o is not None and o.const is None]


def _alive_of(node: Node, index: int, value: Value, kept: Kept) -> Array | None:
    slices = kept.get((node, index)) or kept.get(value)
    if not slices:
        return None
    assert value.const is not None
    alive = np.ones(value.const.shape, bool)
    for axis, indices in slices.items():
        own = np.zeros(value.const.shape[axis], bool)
        own[indices] = True
        alive &= own.reshape(-1, *[1] * (alive.ndim - 1 - axis))
    return alive


def _settled(data: Array, alive: Array | None) -> Masked:
    """Dead elements become 0."""
    if alive is None or alive.all():
        return Masked(data)
    return Masked(
        np.where(alive, data, np.zeros((), data.dtype)), np.ascontiguousarray(np.broadcast_to(alive, data.shape))
    )


def _apply(node: Node, operands: Operands, run: Run) -> list[Masked]:
    if all(o is None or o.alive is None for o in operands):
        return [Masked(r) for r in run(node, [None if o is None else o.data for o in operands])]
    rule = _RULES.get(node.op)
    if rule is None:
        raise NotImplementedError(f"{node}: the oracle has no rule for removed elements here")
    found = rule(node, operands, run)
    return [_settled(m.data, m.alive) for m in (found if isinstance(found, list) else [found])]


# --- rules -----------------------------------------------------------------------------------------------------------

_RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def _given(operands: Operands, index: int) -> Masked:
    found = operands[index]
    assert found is not None
    return found


def _arrays(operands: Operands) -> list[Array | None]:
    return [None if o is None else o.data for o in operands]


@_rule(*ELEMENTWISE)
def _elementwise(node: Node, operands: Operands, run: Run) -> Masked:
    """Operands must agree; what is one repeated number (zeros, of a shape that is computed) agrees with any."""
    data = run(node, _arrays(operands))[0]
    given = [o for o in operands if o is not None]
    alive = np.ones(data.shape, bool)
    for operand in given:
        alive &= operand.present
    for i, operand in enumerate(given):
        if operand.alive is not None or not (operand.data == operand.data.flat[:1]).all():
            _agree(node, i, operand.present, alive)
    return Masked(data, alive)


def _agree(node: Node, index: int, own: Array, result: Array) -> None:
    """An operand must be alive exactly where the result is, but for dimensions that it is spread along."""
    own = own.reshape((1,) * (result.ndim - own.ndim) + own.shape)
    spread = tuple(i for i, (n, m) in enumerate(zip(own.shape, result.shape, strict=True)) if n != m)
    if not np.array_equal(result.any(axis=spread, keepdims=True), own):
        raise Mismatch(f"{node}: operand {index} keeps channels that another operand has lost")


@_rule("CastLike", "Dropout", "Trilu", "LpNormalization", "RotaryEmbedding")
def _like_first(node: Node, operands: Operands, run: Run) -> list[Masked]:
    """0 stays 0 or does not matter to others, and elements stay where they are."""
    return [Masked(data, _given(operands, 0).present) for data in run(node, _arrays(operands))]


@_rule("BatchNormalization", "planish.FakeQuantize", "QuantizeLinear", "DequantizeLinear")
def _by_channel(node: Node, operands: Operands, run: Run) -> Masked:
    x = _given(operands, 0)
    axis = int(node.attrs.get("axis", 1)) % x.data.ndim
    channel = x.present.any(axis=tuple(i for i in range(x.data.ndim) if i != axis))
    for i, operand in enumerate(operands[1:], 1):
        if operand is not None and operand.data.ndim == 1 and operand.data.size > 1:
            _agree(node, i, operand.present, channel)
    return Masked(run(node, _arrays(operands))[0], x.present)


# what moves elements

_MOVED = {"ScatterND": (0, 2), "ScatterElements": (0, 2)}


@_rule("Concat", "ConcatFromSequence")
def _concat(node: Node, operands: Operands, run: Run) -> list[Masked]:
    return _move(node, operands, run, range(len(operands)))


@_rule(
    *(
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Split",
        "Gather",
        "GatherND",
        "Expand",
        "Tile",
    ),
    *("GatherElements", "ScatterND", "ScatterElements", "DepthToSpace", "SpaceToDepth", "Resize", "Pad", "Compress"),
    *("ReverseSequence", "Col2Im", "CenterCropPad"),
)
def _moved(node: Node, operands: Operands, run: Run) -> list[Masked]:
    return _move(node, operands, run, _MOVED.get(node.op, (0,)))


def _move(node: Node, operands: Operands, run: Run, positions: Iterable[int]) -> list[Masked]:
    """What ``node`` does with operands, it does with their masks; what it adds of its own is alive."""
    masks = _arrays(operands)
    for i in positions:
        masks[i] = _given(operands, i).present.astype(_given(operands, i).data.dtype)
    if node.op == "Pad":
        masks = [*masks, *[None] * (3 - len(masks))]
        masks[2] = np.ones((), _given(operands, 0).data.dtype)
        if node.operand(2) is None:
            masks = masks[:2] if node.attrs.get("mode", "constant") != "constant" else masks
    alive = [np.asarray(mask).astype(np.float32) > 0.5 for mask in run(node, masks)]
    return [Masked(data, mask) for data, mask in zip(run(node, _arrays(operands)), alive, strict=True)]


@_rule("ArgMax", "ArgMin", "TopK", "CumSum", "CumProd")
def _along(node: Node, operands: Operands, run: Run) -> list[Masked]:
    """All elements along the axis are alive, or none."""
    x = _given(operands, 0)
    axis = int(node.attrs.get("axis", -1 if node.op == "TopK" else 0))
    if node.op.startswith("Cum"):
        axis = int(_given(operands, 1).data.reshape(-1)[0])
    alive = x.present.any(axis, keepdims=True)
    if not np.array_equal(np.broadcast_to(alive, x.data.shape), x.present):
        raise Mismatch(f"{node}: elements are gone along its axis")
    if not node.attrs.get("keepdims", 1):
        alive = alive.squeeze(axis)
    return [Masked(data, np.broadcast_to(alive, data.shape)) for data in run(node, _arrays(operands))]


@_rule("Shape", "Size")
def _shape(node: Node, operands: Operands, run: Run) -> Masked:
    """Sizes are those of the original, as are the targets of its reshapes."""
    return Masked(run(node, _arrays(operands))[0])


# products


@_rule("MatMul")
def _matmul(node: Node, operands: Operands, run: Run) -> Masked:
    x, y = _given(operands, 0), _given(operands, 1)
    data = run(node, _arrays(operands))[0]
    rows = x.present.any(-1)[..., None] if x.data.ndim > 1 else np.ones(1, bool)
    columns = y.present.any(-2)[..., None, :] if y.data.ndim > 1 else np.ones(1, bool)
    if x.data.ndim == 1:
        columns = columns.squeeze(-2) if y.data.ndim > 1 else columns.squeeze()
    if y.data.ndim == 1:
        rows = rows.squeeze(-1)
        columns = np.ones((), bool)
    return Masked(data, np.broadcast_to(rows & columns, data.shape))


@_rule("Gemm")
def _gemm(node: Node, operands: Operands, run: Run) -> Masked:
    x, y = _given(operands, 0).present, _given(operands, 1).present
    rows = x.any(0 if node.attrs.get("transA") else 1)
    columns = y.any(1 if node.attrs.get("transB") else 0)
    return Masked(run(node, _arrays(operands))[0], rows[:, None] & columns[None, :])


@_rule("Einsum")
def _einsum(node: Node, operands: Operands, run: Run) -> Masked:
    counts = run(
        node, [_given(operands, i).present.astype(o.data.dtype) for i, o in enumerate(operands) if o is not None]
    )
    return Masked(run(node, _arrays(operands))[0], counts[0] > 0.5)


@_rule("Conv")
def _conv(node: Node, operands: Operands, run: Run) -> Masked:
    made = _given(operands, 1).present
    return _channels(run(node, _arrays(operands))[0], made.reshape(len(made), -1).any(1))


@_rule("ConvTranspose")
def _conv_transpose(node: Node, operands: Operands, run: Run) -> Masked:
    weight, groups = _given(operands, 1).present, int(node.attrs.get("group", 1))
    made = weight.reshape(groups, -1, *weight.shape[1:2], int(np.prod(weight.shape[2:])))
    return _channels(run(node, _arrays(operands))[0], made.any((1, 3)).reshape(-1))


@_rule("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
def _pool(node: Node, operands: Operands, run: Run) -> Masked:
    alive = _given(operands, 0).present
    return _channels(run(node, _arrays(operands))[0], alive.any((0, *range(2, alive.ndim))))


def _channels(data: Array, alive: Array) -> Masked:
    """``alive`` counts dimension 1."""
    return Masked(data, np.broadcast_to(alive.reshape(1, -1, *[1] * (data.ndim - 2)), data.shape))


# attention


@_rule("Attention")
def _attention(node: Node, operands: Operands, run: Run) -> Masked:
    """Scores see what is alive of q and k, with the original's scale; a dead head gives 0."""
    if len(node.results) > 1:
        raise NotImplementedError(f"{node}: the oracle knows only the first result")
    data = run(node, _arrays(operands))[0]
    q, v = _given(operands, 0).present, _given(operands, 2).present
    if q.ndim == 3:
        q = q.reshape(*q.shape[:2], node.attrs["q_num_heads"], -1).swapaxes(1, 2)
        v = v.reshape(*v.shape[:2], node.attrs["kv_num_heads"], -1).swapaxes(1, 2)
    heads, made = q.any((0, 2, 3)), v.any((0, 2))  # [q heads], [kv heads, features]
    alive = np.repeat(made, len(heads) // len(made), 0) & heads[:, None]
    alive = alive[:, None, :] if data.ndim == 4 else alive.reshape(-1)
    return Masked(data, np.broadcast_to(alive, data.shape))


# recurrent layers


@_rule("LSTM", "GRU", "RNN")
def _recurrent(node: Node, operands: Operands, run: Run) -> list[Masked]:
    """A dead unit reaches no other, as its columns of the recurrent weight are 0."""
    weight = _given(operands, 1).present  # [directions, gates * units, inputs]
    units = int(_given(operands, 2).data.shape[2])
    by_gate = weight.any(2).reshape(len(weight), -1, units)
    if not (by_gate == by_gate[:, :1]).all():
        raise Mismatch(f"{node}: its gates keep different units")
    alive = by_gate[:, 0]  # [directions, units]
    results = run(node, _arrays(operands))
    batch_first = bool(node.attrs.get("layout", 0))
    masks = [alive if batch_first or i else alive[:, None, :] for i in range(len(results))]
    if not batch_first:  # [sequence, directions, batch, units], then twice [directions, batch, units]
        masks = [alive[:, None, :]] * len(results)
    return [Masked(data, np.broadcast_to(mask, data.shape)) for data, mask in zip(results, masks, strict=True)]


# over alive elements only


@_rule("Softmax", "LogSoftmax")
def _softmax(node: Node, operands: Operands, run: Run) -> Masked:
    x = _given(operands, 0)
    return Masked(run(node, [np.where(x.present, x.data, -np.inf).astype(x.data.dtype)])[0], x.present)


def _mean(data: Array, alive: Array, axes: tuple[int, ...]) -> Array:
    count = np.maximum(alive.sum(axes, keepdims=True), 1)
    return np.asarray(np.where(alive, data, 0).sum(axes, keepdims=True, dtype=np.float64) / count)


def _normalized(x: Masked, axes: tuple[int, ...], epsilon: float, centered: bool = True) -> tuple[Array, Array, Array]:
    """The alive elements by their mean and deviation over ``axes``; those, too."""
    alive, data = x.present, x.data.astype(np.float64)
    mean = _mean(data, alive, axes) if centered else np.zeros((1,) * data.ndim)
    with np.errstate(divide="ignore", invalid="ignore"):  # where all is dead
        inverse = np.nan_to_num(1 / np.sqrt(_mean((data - mean) ** 2, alive, axes) + epsilon))
    return (data - mean) * inverse, mean, inverse


@_rule("LayerNormalization", "RMSNormalization")
def _layer_normalization(node: Node, operands: Operands, run: Run) -> list[Masked]:
    x = _given(operands, 0)
    first = int(node.attrs.get("axis", -1)) % x.data.ndim
    axes = tuple(range(first, x.data.ndim))
    centered = node.op == "LayerNormalization"
    data, mean, inverse = _normalized(x, axes, node.attrs.get("epsilon", 1e-5), centered)
    for i, operand in enumerate(operands[1:], 1):
        if operand is not None:
            _agree(node, i, operand.present, x.present)
            data = data * operand.data if i == 1 else data + operand.data
    statistics = [Masked(s.astype(np.float32)) for s in (mean, inverse)]
    return [Masked(data.astype(x.data.dtype), x.present), *statistics][: len(node.results)]


@_rule("InstanceNormalization", "GroupNormalization")
def _group_normalization(node: Node, operands: Operands, run: Run) -> Masked:
    x, scale, bias = (_given(operands, i) for i in range(3))
    batch, channels, *rest = x.data.shape
    groups = int(node.attrs.get("num_groups", channels))
    split = (batch, groups, channels // groups, *rest)
    grouped = Masked(x.data.reshape(split), x.present.reshape(split))
    data, _, _ = _normalized(grouped, tuple(range(2, len(split))), node.attrs.get("epsilon", 1e-5))
    by_channel = (-1, *[1] * len(rest))
    for i, operand in ((1, scale), (2, bias)):
        _agree(node, i, operand.present.reshape(by_channel), x.present)
    data = data.reshape(x.data.shape) * scale.data.reshape(by_channel) + bias.data.reshape(by_channel)
    return Masked(data.astype(x.data.dtype), x.present)


@_rule("MeanVarianceNormalization")
def _mean_variance(node: Node, operands: Operands, run: Run) -> Masked:
    x = _given(operands, 0)
    data, _, _ = _normalized(x, tuple(a % x.data.ndim for a in node.attrs.get("axes", (0, 2, 3))), 0.0)
    return Masked(data.astype(x.data.dtype), x.present)


@_rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def _reduce(node: Node, operands: Operands, run: Run) -> Masked:
    x, chosen = _given(operands, 0), operands[1] if len(operands) > 1 else None
    if chosen is None and node.attrs.get("noop_with_empty_axes"):
        return x
    axes = tuple(range(x.data.ndim)) if chosen is None else tuple(int(a) % x.data.ndim for a in chosen.data)
    neutral = {"ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceProd": 1}.get(node.op, 0)
    filled = np.where(x.present, x.data, neutral).astype(np.float64)
    alive = x.present.any(axes, keepdims=True)
    data = {
        "ReduceMean": lambda: _mean(filled, x.present, axes),
        "ReduceSum": lambda: filled.sum(axes, keepdims=True),
        "ReduceMax": lambda: filled.max(axes, keepdims=True),
        "ReduceMin": lambda: filled.min(axes, keepdims=True),
        "ReduceProd": lambda: filled.prod(axes, keepdims=True),
        "ReduceL1": lambda: np.abs(filled).sum(axes, keepdims=True),
        "ReduceL2": lambda: np.sqrt((filled**2).sum(axes, keepdims=True)),
        "ReduceSumSquare": lambda: (filled**2).sum(axes, keepdims=True),
    }[node.op]()
    if not node.attrs.get("keepdims", 1):
        data, alive = data.squeeze(axes), alive.squeeze(axes)
    return Masked(data.astype(x.data.dtype), alive)
