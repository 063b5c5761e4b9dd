"""RNN, GRU and LSTM.

The parser ignores ``layout``, and gives ``activation_alpha`` to all functions, not to those that have one. What it
does not read, or would read otherwise, becomes a Scan per direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ....ir import DType, Node, Value, constant, op
from ....ir.builder import make_node
from ....ir.types import TensorType, Type
from ..legality import FLOATS, Row
from ..sizes import size_vector
from ..versions import Version
from .control import nested
from .shapes import check_moved

__all__ = ["FORMS", "ROWS"]

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_HAVE_ALPHA = {  # and its default
    "Affine": 1.0,
    "Elu": 1.0,
    "HardSigmoid": 0.2,
    "LeakyRelu": 0.01,
    "ScaledTanh": 1.0,
    "ThresholdedRelu": 1.0,
}
_HAVE_BETA = {"Affine": 0.0, "HardSigmoid": 0.5, "ScaledTanh": 1.0}
_VIEWS = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_PLAIN = ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh")
_BY_LOWER = {name.lower(): name for name in (*_HAVE_ALPHA, *_PLAIN)}


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _activations(node: Node) -> tuple[str, ...]:
    """The functions of all directions, as they are given."""
    count = 2 if _direction(node) == "bidirectional" else 1
    return tuple(_text(a) for a in node.attrs.get("activations") or _DEFAULTS[node.op] * count)


def _direction(node: Node) -> str:
    return _text(node.attrs.get("direction", "forward"))


# --- rows ------------------------------------------------------------------------------------------------------------


def _check(node: Node, version: Version) -> str:
    functions, is_plain_gate = _activations(node), node.op == "RNN"
    known = {*_HAVE_ALPHA, *_PLAIN} - {"Affine"} - (set() if is_plain_gate else {"Elu"})
    if unknown := next((f for f in functions if f not in known), ""):
        return f"{version} has no activation {unknown}"
    half = len(functions) // 2
    if _direction(node) == "bidirectional" and functions[:half] != functions[half:]:
        return f"{version} wants the same activations in both directions"
    if reason := _check_parameters(node, functions):
        return reason
    if node.op == "LSTM" and node.attrs.get("clip"):
        return f"{version} clips the memory, too"
    if "hidden_size" not in node.attrs:
        return f"{version} wants hidden_size"
    if node.operand(4) is not None and node.given(0).dtype is not DType.FLOAT:
        return f"{version} takes sequence_lens with float only"
    if _is_cast_up(node.given(0)):
        return f"its input is cast to float: {version} fails to take the steps of that apart"
    return check_moved(node, version)


def _is_cast_up(value: Value) -> bool:
    """Whether ``value`` is cast from a shorter type, and perhaps viewed in another shape."""
    node = value.producer
    while node is not None and node.op in _VIEWS:
        node = node.given(0).producer
    return node is not None and node.op == "Cast" and node.given(0).dtype in (DType.FLOAT16, DType.BFLOAT16)


def _check_parameters(node: Node, functions: Sequence[str]) -> str:
    for name, having in (("activation_alpha", _HAVE_ALPHA), ("activation_beta", _HAVE_BETA)):
        given = node.attrs.get(name) or ()
        if given and (len(given) != len(functions) or any(f not in having for f in functions)):
            return f"{name} is not for all of its activations"
        half = len(given) // 2
        if given and _direction(node) == "bidirectional" and given[:half] != given[half:]:
            return f"{name} is not the same in both directions"
    return ""


_ATTRS: dict[str, tuple[object, ...]] = {"layout": (0,), "input_forget": (0,)}

ROWS: dict[str, Row] = {
    "GRU": Row({"T": FLOATS - {DType.BFLOAT16}}, attrs=_ATTRS, check=_check),
    "LSTM": Row({"T": FLOATS}, attrs=_ATTRS, check=_check),
    "RNN": Row({"T": FLOATS}, attrs=_ATTRS, check=_check),
}


# --- forms -----------------------------------------------------------------------------------------------------------


def _form(node: Node, version: Version) -> Sequence[Value] | None:
    """In the usual layout, with a size and with names that are spelled as usual; or as a Scan."""
    attrs, operands = dict(node.attrs), list(node.operands)
    weights, dtype = node.given(2).shape, node.given(0).dtype
    if node.given(0).rank is None or weights is None or not isinstance(weights[2], int):
        return None
    attrs["hidden_size"] = weights[2]
    attrs["activations"] = tuple(_BY_LOWER.get(a.lower(), a) for a in _activations(node))
    is_batch_first = bool(attrs.pop("layout", 0))
    if is_widened := dtype not in ROWS[node.op].types["T"] or (
        dtype is not DType.FLOAT and node.operand(4) is not None
    ):
        operands = [o if o is None or o.dtype is not dtype else op.Cast(o, to=DType.FLOAT) for o in operands]
    if is_batch_first:
        for i in (0, 5, 6):
            if i < len(operands) and operands[i] is not None:
                operands[i] = op.Transpose(operands[i], perm=(1, 0, 2))
    if operands[0] is not None and _is_cast_up(operands[0]):
        operands[0] = op.Neg(op.Neg(operands[0]))
    made = make_node(node.op, tuple(operands), attrs, len(node.results))
    results: Sequence[Value] = made.results
    if _check(made, version) or attrs.get("input_forget"):
        results = _scanned(made)
    if is_batch_first:
        back = ((2, 0, 1, 3), (1, 0, 2), (1, 0, 2))
        results = [op.Transpose(r, perm=p) for r, p in zip(results, back, strict=False)]
    return [op.Cast(r, to=dtype) for r in results] if is_widened else results


@dataclass
class _Cell:
    """One direction of one operator.

    Attributes:
        node: the whole operator.
        index: which direction.
        functions: its activations, as functions.
        hidden: the size of the state.
    """

    node: Node
    index: int
    functions: list[Callable[[Value], Value]]
    hidden: int

    def part(self, position: int) -> Value | None:
        """What operand ``position`` holds for this direction."""
        value = self.node.operand(position)
        return None if value is None else op.Gather(value, constant(self.index, DType.INT64), axis=0)

    def weights(self, position: int) -> Value:
        """The transposed matrix of operand ``position``."""
        value = self.part(position)
        assert value is not None
        return op.Transpose(value, perm=(1, 0))

    def initial(self, position: int, like: Value) -> Value:
        """A state before the first step."""
        given = self.part(position)
        if given is not None:
            return given
        shape = op.Concat(size_vector(like, 1), constant([self.hidden], DType.INT64), axis=0)
        return op.Expand(constant(0.0, like.dtype), shape)


def _scanned(node: Node) -> list[Value]:
    """The results of an operator in the usual layout."""
    directions = 2 if _direction(node) == "bidirectional" else 1
    functions = list(_functions(node))
    each = len(functions) // directions
    found = [
        _one_direction(
            _Cell(node, i, functions[i * each : (i + 1) * each], node.attrs["hidden_size"]),
            is_backward=i == 1 or _direction(node) == "reverse",
        )
        for i in range(directions)
    ]
    y = op.Concat(*(op.Unsqueeze(made[0], constant([1], DType.INT64)) for made in found), axis=1)
    last = [
        op.Concat(*(op.Unsqueeze(s, constant([0], DType.INT64)) for s in states), axis=0)
        for states in zip(*(made[1:] for made in found), strict=True)
    ]
    return [y, *last][: len(node.results)]


def _one_direction(cell: _Cell, is_backward: bool) -> list[Value]:
    """All states, the last one, and for an LSTM the last cell state."""
    node, x, lengths = cell.node, cell.node.given(0), cell.node.operand(4)
    gates = _GATES[node.op]
    if is_backward and lengths is not None:
        x = _reversed(x, lengths)
    bias = cell.part(3)
    biases: Sequence[Any] = (None, None)
    if bias is not None:
        biases = op.Split(bias, axis=0, num_outputs=2)
    projected = op.MatMul(x, cell.weights(1))
    projected = projected if biases[0] is None else op.Add(projected, biases[0])
    states = [cell.initial(5, x), *([cell.initial(6, x)] if node.op == "LSTM" else [])]
    scanned = [projected] if lengths is None else [projected, _is_inside(x, lengths)]
    recurrent, peepholes = cell.weights(2), cell.part(7)
    step = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[node.op]

    def body(*inputs: Value) -> list[Value]:
        before, row = list(inputs[: len(states)]), inputs[len(states)]
        after = step(cell, row, before, recurrent, biases[1], peepholes)
        output = after[0]
        if lengths is not None:
            inside = inputs[-1]
            output = op.Where(inside, after[0], constant(0.0, x.dtype))
            after = [op.Where(inside, new, old) for new, old in zip(after, before, strict=True)]
        return [*after, output]

    assert x.shape is not None
    batch = x.shape[1]
    typed: list[tuple[str, Type]] = [
        (f"state_{i}", TensorType(x.dtype, (batch, cell.hidden))) for i in range(len(states))
    ]
    typed.append(("row", TensorType(x.dtype, (batch, gates * cell.hidden))))
    if lengths is not None:
        typed.append(("inside", TensorType(DType.BOOL, (batch, 1))))
    attrs: dict[str, Any] = {"body": nested("step", typed, body), "num_scan_inputs": len(scanned)}
    turned = int(is_backward and lengths is None)
    attrs["scan_input_directions"], attrs["scan_output_directions"] = (turned,) * len(scanned), (turned,)
    *last, y = make_node("Scan", (*states, *scanned), attrs, len(states) + 1).results
    if is_backward and lengths is not None:
        y = _reversed(y, lengths)
    return [y, *last]


def _reversed(x: Value, lengths: Value) -> Value:
    return op.ReverseSequence(x, op.Cast(lengths, to=DType.INT64), batch_axis=1, time_axis=0)


def _is_inside(x: Value, lengths: Value) -> Value:
    """By step and sequence, whether the step belongs to it."""
    steps = op.Range(constant(0, DType.INT64), op.Squeeze(size_vector(x, 0)), constant(1, DType.INT64))
    steps = op.Reshape(steps, constant([-1, 1, 1], DType.INT64))
    return op.Less(steps, op.Unsqueeze(op.Cast(lengths, to=DType.INT64), constant([0, 2], DType.INT64)))


# --- one step --------------------------------------------------------------------------------------------------------

_State = list[Value]


def _rnn(cell: _Cell, row: Value, before: _State, recurrent: Value, bias: Value | None, _: Value | None) -> _State:
    return [cell.functions[0](_plus(op.Add(row, op.MatMul(before[0], recurrent)), bias))]


def _gru(cell: _Cell, row: Value, before: _State, recurrent: Value, bias: Value | None, _: Value | None) -> _State:
    hidden, (f, g) = before[0], cell.functions
    x_z, x_r, x_h = op.Split(row, axis=1, num_outputs=3)
    r_z, r_r, r_h = op.Split(recurrent, axis=1, num_outputs=3)
    b_z, b_r, b_h = (None, None, None) if bias is None else op.Split(bias, axis=0, num_outputs=3)
    update = f(_plus(op.Add(x_z, op.MatMul(hidden, r_z)), b_z))
    reset = f(_plus(op.Add(x_r, op.MatMul(hidden, r_r)), b_r))
    if cell.node.attrs.get("linear_before_reset"):
        inner = op.Mul(reset, _plus(op.MatMul(hidden, r_h), b_h))
    else:
        inner = _plus(op.MatMul(op.Mul(reset, hidden), r_h), b_h)
    new = g(op.Add(x_h, inner))
    return [op.Add(op.Mul(op.Sub(constant(1.0, row.dtype), update), new), op.Mul(update, hidden))]


def _lstm(cell: _Cell, row: Value, before: _State, recurrent: Value, bias: Value | None, peep: Value | None) -> _State:
    (hidden, memory), (f, g, h) = before, cell.functions
    x_i, x_o, x_f, x_c = op.Split(_plus(op.Add(row, op.MatMul(hidden, recurrent)), bias), axis=1, num_outputs=4)
    p_i, p_o, p_f = (None, None, None) if peep is None else op.Split(peep, axis=0, num_outputs=3)
    taken = f(_plus(x_i, _times(p_i, memory)))
    if cell.node.attrs.get("input_forget"):
        kept = op.Sub(constant(1.0, row.dtype), taken)
    else:
        kept = f(_plus(x_f, _times(p_f, memory)))
    memory = op.Add(op.Mul(kept, memory), op.Mul(taken, g(x_c)))
    shown = f(_plus(x_o, _times(p_o, memory)))
    return [op.Mul(shown, h(memory)), memory]


def _plus(value: Value, other: Value | None) -> Value:
    return value if other is None else op.Add(value, other)


def _times(weights: Value | None, value: Value) -> Value | None:
    return None if weights is None else op.Mul(weights, value)


def _functions(node: Node) -> Iterator[Callable[[Value], Value]]:
    """The activations of all directions, with their parameters, which those take that have them."""
    alphas, betas = (iter(node.attrs.get(n) or ()) for n in ("activation_alpha", "activation_beta"))
    clip, each = node.attrs.get("clip"), len(_DEFAULTS[node.op])
    for i, name in enumerate(_activations(node)):
        alpha = next(alphas, _HAVE_ALPHA[name]) if name in _HAVE_ALPHA else 0.0
        beta = next(betas, _HAVE_BETA[name]) if name in _HAVE_BETA else 0.0
        yield _function(name, alpha, beta, None if i % each == 2 else clip)  # all but the memory, as ONNX Runtime does


def _function(name: str, alpha: float, beta: float, clip: float | None) -> Callable[[Value], Value]:
    def apply(x: Value) -> Value:
        def number(n: float) -> Value:
            return constant(n, x.dtype)

        if clip:
            x = op.Clip(x, number(-clip), number(clip))
        match name:
            case "Affine":
                return op.Add(op.Mul(x, number(alpha)), number(beta))
            case "ScaledTanh":
                return op.Mul(op.Tanh(op.Mul(x, number(beta))), number(alpha))
            case "HardSigmoid":
                return op.HardSigmoid(x, alpha=alpha, beta=beta)
            case "Elu":  # TensorRT fails at Elu within a loop
                below = op.Mul(op.Sub(op.Exp(op.Min(x, number(0.0))), number(1.0)), number(alpha))
                return op.Where(op.Greater(x, number(0.0)), x, below)
            case "LeakyRelu" | "ThresholdedRelu":
                return getattr(op, name)(x, alpha=alpha)
        return getattr(op, name)(x)

    return apply


FORMS = {"GRU": _form, "LSTM": _form, "RNN": _form}
