"""Recurrent layers: LSTM, GRU and RNN, from a Scan or a Loop over the steps of their cell.

A gate is an activation of a sum: of products of the input of a step, and of the state before, with matrices, and of
biases. Exporters compute the products for all gates at once or one by one, with the input beside the state or not, and
cut the sum before or after they add the bias. So a gate is not compared with one form of it: its sum is taken apart,
down to columns of matrices that are there outside of the body. What the operator wants is put together from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ...ir import Graph, Node, Value, constant, op
from ...ir.infer import scalar_content
from ...ir.types import DType
from ..numerics import within
from ..rules import require, rule
from ..simplify.fold_constants import integers
from .scores import scalar_of

_ROUNDING = within(rtol=1e-4, atol=1e-5)

_ALPHAS = {"Affine": 1.0, "Elu": 1.0, "HardSigmoid": 0.2, "LeakyRelu": 0.01}  # activations with an alpha: its default
_BETAS = {"Affine": 0.0, "HardSigmoid": 0.5}
_ACTIVATIONS = {"Sigmoid", "Tanh", "Relu", "Softplus", "Softsign", "Elu", "HardSigmoid", "LeakyRelu"}
_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}

_LSTM = """
agraph (float[T,B,3] x, float[B,2] h, float[B,2] c, float[3,8] w, float[2,8] r, float[8] b)
  => (float[B,2] last, float[B,2] memory, float[T,B,2] y) {
  last, memory, y = Scan <num_scan_inputs = 1, body = step (float[B,2] hi, float[B,2] ci, float[B,3] xi)
    => (float[B,2] ho, float[B,2] co, float[B,2] yo) {
    a = MatMul (xi, w)
    k = MatMul (hi, r)
    s = Add (a, k)
    z = Add (s, b)
    i, f, g, o = Split <axis = -1, num_outputs = 4> (z)
    fs = Sigmoid (f)
    is = Sigmoid (i)
    os = Sigmoid (o)
    gt = Tanh (g)
    kept = Mul (fs, ci)
    new = Mul (is, gt)
    co = Add (kept, new)
    t = Tanh (co)
    ho = Mul (os, t)
    yo = Identity (ho)
  }> (h, c, x)
}
"""
_GRU = """
agraph (float[T,B,3] x, float[B,2] h, float[3,6] w, float[2,6] r, float[6] b, float[6] d) => (float[T,B,2] y) <
  float one = {1.0}
> {
  last, y = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1],
    body = step (float[B,2] hi, float[B,3] xi) => (float[B,2] ho, float[B,2] yo) {
    a = Gemm (xi, w, b)
    k = Gemm (hi, r, d)
    ar, az, an = Split <axis = 1, num_outputs = 3> (a)
    kr, kz, kn = Split <axis = 1, num_outputs = 3> (k)
    sr = Add (ar, kr)
    sz = Add (az, kz)
    rs = Sigmoid (sr)
    zs = Sigmoid (sz)
    m = Mul (rs, kn)
    sn = Add (an, m)
    n = Tanh (sn)
    u = Sub (one, zs)
    new = Mul (u, n)
    kept = Mul (zs, hi)
    ho = Add (new, kept)
    yo = Identity (ho)
  }> (h, x)
}
"""
_RNN = """
agraph (float[B,T,3] x, float[B,2] h, float[5,2] w) => (float[B,T,2] y) {
  last, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
    body = step (float[B,2] hi, float[B,3] xi) => (float[B,2] ho, float[B,2] yo) {
    s = Concat <axis = 1> (xi, hi)
    a = MatMul (s, w)
    ho = Tanh (a)
    yo = Identity (ho)
  }> (h, x)
}
"""
_LOOP = """
agraph (float[B,T,3] x, float[B,2] h, float[3,2] w, float[2,2] r) => (float[B,2] last, float[T,B,2] y) <
  int64[1] one = {1}, bool going = {1}, int64[1] zero = {0}
> {
  sizes = Shape <start = 1, end = 2> (x)
  n = Squeeze (sizes, zero)
  last, y = Loop <body = step (int64 i, bool c, float[B,2] hi) => (bool d, float[B,2] ho, float[B,2] yo) {
    d = Identity (c)
    k = Cast <to = 6> (i)
    row = Gather <axis = 1> (x, k)
    a = MatMul (row, w)
    s = Gemm (hi, r, a)
    ho = Tanh (s)
    yo = Identity (ho)
  }> (n, going, h)
}
"""


class _Part(NamedTuple):
    """Columns of a matrix or of a bias, and of a matrix also rows; perhaps with the other sign."""

    value: Value
    columns: tuple[int, int]
    rows: tuple[int, int] = (0, 0)
    negated: bool = False


@dataclass
class _Sum:
    """A sum, taken apart.

    Attributes:
        products: what is multiplied, and by what.
        biases: what is added to every row.
        others: other values, with the columns of them that are meant.
    """

    products: list[tuple[Value, _Part]] = field(default_factory=list)
    biases: list[_Part] = field(default_factory=list)
    others: list[tuple[Value, tuple[int, int]]] = field(default_factory=list)

    def negative(self) -> _Sum:
        """The sum with the other sign."""
        products = [(value, part._replace(negated=not part.negated)) for value, part in self.products]
        return _Sum(products, [part._replace(negated=not part.negated) for part in self.biases], self.others)

    def factors(self, of: Value) -> list[_Part]:
        """What ``of`` is multiplied by."""
        return [part for value, part in self.products if value is of]


class _Gate(NamedTuple):
    """An activation of a sum; ``of`` is what it is applied to."""

    activation: str
    alpha: float | None
    beta: float | None
    of: Value

    @property
    def function(self) -> tuple[str, float | None, float | None]:
        """The activation with its parameters."""
        return self[:3]


class _State(NamedTuple):
    """What is carried: before the first step, and before and after a step."""

    initial: Value
    before: Value
    after: Value


class _Layer(NamedTuple):
    """An operator's operands and activations, as far as the cell tells them; gates are in the operator's order.

    Attributes:
        sums: the sums of the gates.
        states: the states in the operator's order.
        recurrent: by gate, what the state is multiplied by.
        inner: biases of the products with the state, which the operator adds apart; by gate.
    """

    op: str
    functions: list[_Gate]
    sums: list[_Sum]
    states: list[_State]
    recurrent: list[list[_Part]]
    inner: list[list[_Part]]
    attrs: dict[str, int]


class _Steps:
    """A loop over the rows of one tensor: a Scan, or a Loop that gathers the row of its number.

    Attributes:
        x: the row in the body; ``source``: the tensor, and ``axis``: which of its dimensions counts rows.
        states: what is carried.
        rows: which results of the node stack rows, and what they stack.
    """

    def __init__(self, node: Node):
        self.node = node
        body = node.attrs["body"]
        assert isinstance(body, Graph)
        self.body = body
        if node.op == "Scan":
            require(node.attrs.get("num_scan_inputs") == 1, "it goes over several tensors")
            count = len(node.operands) - 1
            self.x, self.source = body.inputs[count], node.given(count)
            self.axis = (node.attrs.get("scan_input_axes") or (0,))[0]
            given, befores, afters = node.operands[:count], body.inputs, body.outputs
        else:
            count = len(node.operands) - 2
            self.x, self.source, self.axis = self._gathered()
            given, befores, afters = node.operands[2:], body.inputs[2:], body.outputs[1:]
        states = zip(given, befores, afters, strict=False)
        self.states = [_State(i, b, _plain(a)) for i, b, a in states if i is not None]
        self.rows = [(r, _plain(v)) for r, v in zip(node.results[count:], afters[count:], strict=True)]
        require(self.x.rank == 2, "its steps are no matrices")
        sizes = {_size(s.before) for s in self.states}
        require(len(sizes) == 1, "it has no states, or states of different sizes")
        require(all(s.before.rank == 2 for s in self.states), "its states are no matrices")
        require(all(s.before.shape == s.after.shape for s in self.states), "its states change their sizes")
        self.hidden = sizes.pop()
        self.backwards = self._direction()

    def _gathered(self) -> tuple[Value, Value, int]:
        """The row of its number that a Loop gathers, what it gathers from, and along which dimension."""
        body, node = self.body, self.node
        number, goes_on = body.inputs[0], _plain(body.outputs[0])
        starts = node.operand(1) is None or scalar_content(node.operand(1)) == 1
        stays = goes_on is body.inputs[1] or scalar_content(goes_on) == 1
        require(starts and stays, "the number of its steps is known only when it ends")
        found = [n for n in body.nodes if n.op == "Gather" and _is_number(n.given(1), number)]
        require(len(found) == 1, "it does not go over the rows of one tensor")
        source, axis = found[0].given(0), found[0].attrs.get("axis", 0)
        require(not self.is_inside(source) and source.shape, "it does not go over the rows of one tensor")
        steps = scalar_content(node.operand(0))
        require(steps is not None and source.shape[axis] == steps, "it goes over some of the rows")  # type: ignore[index]
        return found[0].result, source, axis

    def _direction(self) -> bool:
        """Whether it goes from the last row to the first."""
        given = (self.node.attrs.get("scan_input_directions") or (0,))[0]
        out = self.node.attrs.get("scan_output_directions") or (0,) * len(self.rows)
        used = {d for d, (result, _) in zip(out, self.rows, strict=True) if result.is_used}
        require(used <= {given}, "rows are stacked in another order than they are read in")
        return bool(given)

    def is_inside(self, value: Value) -> bool:
        """Whether a value is computed in the body."""
        return value.graph is self.body or (value.producer is not None and value.producer.graph is self.body)

    # sums

    def sum_of(self, value: Value) -> _Sum:
        """A value taken apart."""
        found = _Sum()
        self._take(found, value, 0, _size(value))
        return found

    def _take(self, found: _Sum, value: Value, low: int, high: int) -> None:
        """Add columns of a value to a sum."""
        node, width = value.producer, _size(value)
        if not self.is_inside(value):
            require(all(d == 1 for d in (value.shape or ())[:-1]), "what is added differs between the rows of a batch")
            found.biases.append(_Part(value, (low, high)))
        elif node is not None and node.op == "Identity":
            self._take(found, node.given(0), low, high)
        elif node is not None and node.op == "Add" and all(_has_width(o, width) for o in node.operands):
            for i in (0, 1):
                self._take(found, node.given(i), low, high)
        elif node is not None and node.op == "Add" and (number := self._number(node)) is not None:
            bias = op.Expand(op.Reshape(number, _ints(-1)), _ints(width))
            found.biases.append(_Part(bias, (low, high)))
            self._take(found, node.given(1 if number is node.given(0) else 0), low, high)
        elif node is not None and node.op in ("MatMul", "Gemm") and self._is_product(node):
            matrix = op.Transpose(node.given(1)) if node.attrs.get("transB") else node.given(1)
            self._multiply(found, node.given(0), matrix, low, high)
            if node.operand(2) is not None:
                self._take(found, node.given(2), low, high)
        elif (cut := _cut(value)) is not None:
            self._take(found, cut[0], cut[1] + low, cut[1] + high)
        else:
            found.others.append((value, (low, high)))

    def _number(self, add: Node) -> Value | None:
        """An operand that is one number for all columns."""
        numbers = [o for o in add.operands if o is not None and not self.is_inside(o) and set(o.shape or ()) <= {1}]
        return numbers[0] if len(numbers) == 1 and numbers[0].shape is not None else None

    def _is_product(self, node: Node) -> bool:
        """Whether it multiplies rows with a matrix of outside."""
        plain = node.attrs.get("alpha", 1.0) == 1.0 == node.attrs.get("beta", 1.0) and not node.attrs.get("transA")
        matrix, bias = node.given(1), node.operand(2)
        fits = bias is None or _has_width(bias, _size(node.result))
        return plain and fits and matrix.rank == 2 and not self.is_inside(matrix)

    def _multiply(self, found: _Sum, value: Value, matrix: Value, low: int, high: int) -> None:
        """Add a product with columns of a matrix; values side by side are multiplied by rows of their own."""
        value, first = _plain(value), 0
        node = value.producer
        is_joined = node is not None and node.op == "Concat" and _is_last(value, node.attrs["axis"])
        for part in node.operands if node is not None and is_joined else (value,):
            if part is not None:
                rows = (first, first + _size(part))
                found.products.append((_plain(part), _Part(matrix, (low, high), rows)))
                first = rows[1]


def _is_number(value: Value, number: Value) -> bool:
    """Whether ``value`` is the number of a step, perhaps of another type or shape."""
    while value is not number:
        node = value.producer
        if node is None:
            return False
        if node.op in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
            value = node.given(0)
        elif node.op == "Slice" and value.shape == (1,) and (part := _part_of(node)) is not None:
            value = part
        else:
            return False
    return True


def _part_of(cut: Node) -> Value | None:
    """The operand of a Concat of numbers that a Slice takes out of it."""
    start, source = integers(cut.operand(1)), cut.given(0)
    while source.producer is not None and source.producer.op in ("Cast", "Identity"):
        source = source.producer.given(0)
    joined = source.producer
    if start is None or len(start) != 1 or joined is None or joined.op != "Concat":
        return None
    if any(o is None or o.shape != (1,) for o in joined.operands):
        return None
    return joined.given(start[0] % len(joined.operands))


def _has_width(value: Value | None, width: int) -> bool:
    """Whether the last size of a value is ``width``."""
    return value is not None and bool(value.shape) and value.shape[-1] == width  # type: ignore[index]


def _plain(value: Value) -> Value:
    """A value without Identity."""
    while value.producer is not None and value.producer.op == "Identity":
        value = value.producer.given(0)
    return value


def _size(value: Value) -> int:
    """The last size."""
    size = value.shape[-1] if value.shape else None
    require(isinstance(size, int), "the number of its features is open", value.producer)
    return size  # type: ignore[return-value]


def _is_last(value: Value, axis: int) -> bool:
    return value.rank is not None and axis % value.rank == value.rank - 1


def _cut(value: Value) -> tuple[Value, int] | None:
    """What a value is columns of, and the first of them."""
    node = value.producer
    if node is None or node.op not in ("Split", "Slice"):
        return None
    if node.op == "Split":
        sizes = [r.shape[-1] if r.shape else None for r in node.results[: value.index]]
        if not _is_last(value, node.attrs.get("axis", 0)) or not all(isinstance(s, int) for s in sizes):
            return None
        return node.given(0), sum(s for s in sizes if isinstance(s, int))
    starts, axes, steps = integers(node.operand(1)), integers(node.operand(3)), integers(node.operand(4))
    if starts is None or axes is None or len(axes) != 1 or not _is_last(value, axes[0]) or steps not in (None, (1,)):
        return None
    if node.operand(4) is not None and steps is None:
        return None
    return node.given(0), starts[0] % _size(node.given(0))


# gates


def _gates(value: Value) -> Iterator[_Gate]:
    """What a value may be an activation of: at last, of itself."""
    value = _plain(value)
    node = value.producer
    if node is not None and node.op in _ACTIVATIONS:
        alpha = node.attrs.get("alpha", _ALPHAS[node.op]) if node.op in _ALPHAS else None
        beta = node.attrs.get("beta", _BETAS[node.op]) if node.op in _BETAS else None
        yield _Gate(node.op, alpha, beta, node.given(0))
    yield _Gate("Affine", 1.0, 0.0, value)


def _pairs(value: Value, name: str) -> Iterator[tuple[Value, Value]]:
    """The operands of a product or a sum, in both orders."""
    node = _plain(value).producer
    if node is not None and node.op == name:
        a, b = node.given(0), node.given(1)
        if a.shape == b.shape:
            yield _plain(a), _plain(b)
            yield _plain(b), _plain(a)


def _is_symmetric(gate: _Gate) -> bool:
    """Whether ``1 - act(a)`` is ``act(-a)``."""
    return gate.activation == "Sigmoid" or (gate.activation == "HardSigmoid" and gate.beta == 0.5)


def _complement(value: Value) -> Value | None:
    """``z``, of ``1 - z``."""
    node = _plain(value).producer
    if node is None or node.op != "Sub" or scalar_of(node.operands[0]) != 1.0:
        return None
    return _plain(node.given(1))


# cells


def _lstm(steps: _Steps) -> Iterator[_Layer]:
    """``c' = f c + i g`` and ``h' = o act(c')``."""
    if len(steps.states) != 2:
        return
    for h, c in (steps.states, steps.states[::-1]):
        for out, active in _pairs(h.after, "Mul"):
            for last in _gates(active):
                if _plain(last.of) is not c.after:
                    continue
                for kept, new in _pairs(c.after, "Add"):
                    forgets = [f for f, before in _pairs(kept, "Mul") if before is c.before]
                    for forget in forgets:
                        for i, g in _pairs(new, "Mul"):
                            yield from _lstm_of(steps, [i, out, forget, g], last, h, c)


def _lstm_of(steps: _Steps, values: list[Value], last: _Gate, h: _State, c: _State) -> Iterator[_Layer]:
    *outer, inner = [next(_gates(v)) for v in values]
    if len({gate.function for gate in outer}) == 1:
        sums = [steps.sum_of(gate.of) for gate in (*outer, inner)]
        if all(_is_linear(s, steps.x, h.before) for s in sums):
            recurrent = [s.factors(h.before) for s in sums]
            yield _Layer("LSTM", [outer[0], inner, last], sums, [h, c], recurrent, [[]] * 4, {})


def _is_linear(total: _Sum, *values: Value) -> bool:
    """Whether a sum consists of products with ``values``, and biases."""
    return not total.others and all(v in values for v, _ in total.products)


def _gru(steps: _Steps) -> Iterator[_Layer]:
    """``h' = z h + (1 - z) n``, also spelled ``n + z (h - n)``."""
    if len(steps.states) != 1:
        return
    (h,) = steps.states
    for z, n, is_kept in _mixed(h):
        update, new = next(_gates(z)), next(_gates(n))
        total, inner = steps.sum_of(update.of), steps.sum_of(new.of)
        if not is_kept:
            total = total.negative()
            if not _is_symmetric(update):
                continue
        if not _is_linear(total, steps.x, h.before):
            continue
        for reset, recurrent, bias, late in _resets(steps, inner, h):
            gate = next(_gates(reset))
            first = steps.sum_of(gate.of)
            if gate.function != update.function or not _is_linear(first, steps.x, h.before):
                continue
            parts = [total.factors(h.before), first.factors(h.before), recurrent]
            attrs = {"linear_before_reset": 1} if late else {}
            yield _Layer("GRU", [update, new], [total, first, inner], [h], parts, [[], [], bias], attrs)


def _mixed(h: _State) -> Iterator[tuple[Value, Value, bool]]:
    """``z, n, True`` where the state goes from ``h`` to ``z h + (1 - z) n``, or False if it is ``(1 - z) h + z n``."""
    for kept, new in _pairs(h.after, "Add"):
        for z, before in _pairs(kept, "Mul"):
            for rest, n in _pairs(new, "Mul"):
                if before is h.before and _complement(rest) is z:
                    yield z, n, True
                if before is h.before and _complement(z) is rest:
                    yield rest, n, False
            node = before.producer
            is_difference = node is not None and node.op == "Sub" and _plain(node.given(0)) is h.before
            if node is not None and is_difference and _plain(node.given(1)) is new:
                yield z, new, True


def _resets(steps: _Steps, inner: _Sum, h: _State) -> Iterator[tuple[Value, list[_Part], list[_Part], bool]]:
    """How the state comes into the new one: the gate, the matrix and the bias, and whether it is multiplied before.

    That is ``r (h R + b)``, or ``(r h) R``.
    """
    if len(inner.others) == 1 and all(v is steps.x for v, _ in inner.products):
        value, columns = inner.others[0]
        for r, product in _pairs(value, "Mul"):
            total = steps.sum_of(product)
            if columns == (0, steps.hidden) and _is_linear(total, h.before):
                yield r, total.factors(h.before), total.biases, True
    gated = [(v, part) for v, part in inner.products if v is not steps.x]
    if not inner.others and len(gated) == 1:
        value, part = gated[0]
        for r, before in _pairs(value, "Mul"):
            if before is h.before:
                yield r, [part], [], False


def _rnn(steps: _Steps) -> Iterator[_Layer]:
    """``h' = act(x W + h R + b)``."""
    if len(steps.states) != 1:
        return
    (h,) = steps.states
    gate = next(_gates(h.after))
    total = steps.sum_of(gate.of)
    if _is_linear(total, steps.x, h.before) and total.factors(steps.x):
        yield _Layer("RNN", [gate], [total], [h], [total.factors(h.before)], [[]], {})


_CELLS: tuple[Callable[[_Steps], Iterator[_Layer]], ...] = (_lstm, _gru, _rnn)
_ORDERS = {"LSTM": (0, 1, 2, 3), "GRU": (0, 1, 2), "RNN": (0,)}


# the operator


@rule("Scan", "Loop", numerics=_ROUNDING, examples=[_LSTM, _GRU, _RNN, _LOOP])
def recurrent_layer(node: Node) -> tuple[Value | None, ...]:
    """A Scan or a Loop whose body is the cell of a recurrent layer."""
    steps = _Steps(node)
    layer = next((layer for cell in _CELLS for layer in cell(steps) if _gives(layer, steps)), None)
    require(layer is not None, "its body is no cell of LSTM, GRU or RNN")
    assert layer is not None
    x = _moved(steps.source, steps.axis, to_front=True)
    y, *ends = _build(layer, steps, x)
    every = op.Squeeze(y, _ints(1))
    results: list[Value | None] = []
    for state in steps.states:
        end = ends[layer.states.index(state)]
        results.append(op.Squeeze(end, _ints(0)))
    axes = node.attrs.get("scan_output_axes") or (0,) * len(steps.rows)
    return (*results, *(_moved(every, axis, to_front=False) for axis in axes))


def _gives(layer: _Layer, steps: _Steps) -> bool:
    """Whether all that is stacked is the state that the operator gives for every step."""
    return all(value is layer.states[0].after for result, value in steps.rows if result.is_used)


def _moved(value: Value, axis: int, to_front: bool) -> Value:
    """A value whose dimension ``axis`` becomes the first one, or the reverse."""
    rank = value.rank or 0
    axis %= rank
    order = [axis, *(i for i in range(rank) if i != axis)]
    return (
        value if axis == 0 else op.Transpose(value, perm=order if to_front else [order.index(i) for i in range(rank)])
    )


def _ints(*numbers: int) -> Value:
    return constant(numbers, DType.INT64)


def _build(layer: _Layer, steps: _Steps, x: Value) -> Sequence[Value]:
    dtype, hidden = x.dtype, steps.hidden
    require(all(s.initial.dtype is dtype for s in steps.states), "its states are of another type than its input")
    require(dtype is not DType.DOUBLE, "ONNX Runtime has no recurrent layers of doubles")
    w = _matrix([s.factors(steps.x) for s in layer.sums], _size(steps.x), hidden, dtype)
    r = _matrix(layer.recurrent, hidden, hidden, dtype)
    bias: Value | None = None
    if any(s.biases for s in layer.sums) or any(layer.inner):
        rows = [[s.biases for s in layer.sums], layer.inner]
        bias = op.Unsqueeze(op.Concat(*(_bias(b, hidden, dtype) for row in rows for b in row), axis=0), _ints(0))
    initial = [None if _is_zero(s.initial) else op.Unsqueeze(s.initial, _ints(0)) for s in layer.states]
    attrs: dict[str, object] = {"hidden_size": hidden, **layer.attrs, **_functions(layer)}
    if steps.backwards:
        attrs["direction"] = "reverse"
    return getattr(op, layer.op)(x, w, r, bias, None, *initial, **attrs, outputs=1 + len(layer.states))


def _functions(layer: _Layer) -> dict[str, object]:
    """The attributes for the activations."""
    names = tuple(gate.activation for gate in layer.functions)
    if names == _DEFAULTS[layer.op]:
        return {}
    alphas = [gate.alpha for gate in layer.functions if gate.alpha is not None]
    betas = [gate.beta for gate in layer.functions if gate.beta is not None]
    return {"activations": list(names), "activation_alpha": alphas or None, "activation_beta": betas or None}


def _matrix(gates: list[list[_Part]], rows: int, hidden: int, dtype: DType) -> Value:
    """``[1, gates * hidden, rows]``, from what each gate multiplies with."""
    zeros = _Part(constant(np.zeros((rows, hidden), dtype.numpy), dtype), (0, hidden), (0, rows))
    parts = [_summed([_columns(p, matrix=True) for p in found]) for found in _merged([g or [zeros] for g in gates])]
    beside = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=1)
    return op.Unsqueeze(op.Transpose(beside, perm=[1, 0]), _ints(0))


def _merged(gates: list[list[_Part]]) -> list[list[_Part]]:
    """Gates that follow each other in one matrix, as one part of it."""
    found: list[list[_Part]] = []
    for parts in gates:
        before = found[-1] if found else []
        fits = len(before) == len(parts) and all(
            a._replace(columns=b.columns) == b and a.columns[1] == b.columns[0]
            for a, b in zip(before, parts, strict=True)
        )
        if fits and before:
            found[-1] = [a._replace(columns=(a.columns[0], b.columns[1])) for a, b in zip(before, parts, strict=True)]
        else:
            found.append(parts)
    return found


def _summed(values: list[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = op.Add(total, value)
    return total


def _columns(part: _Part, matrix: bool) -> Value:
    value = part.value
    for axis, (low, high) in ((-1, part.columns), *(((-2, part.rows),) if matrix else ())):
        if (low, high) != (0, (value.shape or ())[axis]):
            value = op.Slice(value, _ints(low), _ints(high), _ints(axis))
    return op.Neg(value) if part.negated else value


def _bias(parts: list[_Part], hidden: int, dtype: DType) -> Value:
    """``[hidden]``: the sum of biases, or zeros."""
    if not parts:
        return constant(np.zeros(hidden, dtype.numpy), dtype)
    values = [_columns(part, matrix=False) for part in parts]
    return _summed([v if v.rank == 1 else op.Reshape(v, _ints(-1)) for v in values])


def _is_zero(value: Value) -> bool:
    """Whether a state is zero everywhere, which is what the operator assumes."""
    node = value.producer
    if node is not None and node.op in ("Expand", "Reshape"):
        return _is_zero(node.given(0))
    if node is not None and node.op == "ConstantOfShape":
        number = node.attrs.get("value")
        return number is None or not number.numpy().any()
    return value.const is not None and value.const.is_cheap and not value.const.numpy().any()
