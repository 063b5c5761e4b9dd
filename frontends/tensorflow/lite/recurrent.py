"""LSTM over a sequence, in floating point; of quantized ones, weights and results are quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ir.graph import Value
from ....ir.types import DType, TensorType
from ...emit import Refused
from ..translate import Translator
from .file import LiteOperator
from .model import Lite, lite_rule

__all__: list[str] = []

# places of the operands, in the order of gates that ONNX has: input, output, forget, cell
_WEIGHTS, _RECURRENT, _BIASES = (1, 4, 2, 3), (5, 8, 6, 7), (12, 15, 13, 14)
_PEEPHOLES = (9, 11, 10)
_PROJECTION, _STATES, _NORMALIZATIONS = 16, (18, 19), (20, 21, 22, 23)
_TANH = 4  # the activation


@lite_rule("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(m: Lite, operator: LiteOperator) -> Any:
    """States are variables that begin with 0."""
    _check(m, operator)
    t, x = m.t, m.numbers(operator.inputs[0])
    if x.rank != 3:
        raise Refused("its input has no three dimensions")
    is_time_first = operator.options["timeMajor"]
    x = x if is_time_first else t.transpose(x, (1, 0, 2))
    w, r, b, p = (_joined(m, operator, places) for places in (_WEIGHTS, _RECURRENT, _BIASES, _PEEPHOLES))
    assert w is not None
    assert r is not None
    clip = operator.options.get("cellClip") or 0.0
    steps = (x.shape or (None,))[0]
    if clip > 0 and not (isinstance(steps, int) and steps <= clip):
        y = _clipped(t, x, w, r, b, p, clip)
    else:  # each step adds 1 at most
        y = _plain(t, x, w, r, b, p)
    return y if is_time_first else t.transpose(y, (1, 0, 2))


def _check(m: Lite, operator: LiteOperator) -> None:
    """Refuse what is not translated."""
    if any(m.optional(operator, place) is not None for place in (_PROJECTION, *_NORMALIZATIONS)):
        raise Refused("an LSTM with a projection or with normalizations")
    if any(m.optional(operator, place) is None for place in (*_WEIGHTS, *_RECURRENT)):
        raise Refused("an LSTM whose input gate follows from the forget gate")
    if operator.options.get("fusedActivationFunction") != _TANH:
        raise Refused("an LSTM with another activation than tanh")
    states = [m.optional(operator, place) for place in _STATES]
    if any(state is not None and m.is_known(state) for state in states):
        raise Refused("an LSTM that begins with a state")


def _joined(m: Lite, operator: LiteOperator, places: Sequence[int]) -> Value | None:
    """What there is for each gate as one: [4 hidden, in] or [4 hidden]; None if there is nothing."""
    found = [m.optional(operator, place) for place in places]
    if all(i is None for i in found):
        return None
    return m.t.op.Concat(*(m.numbers(i) for i in found if i is not None), axis=0)


def _plain(t: Translator, x: Value, w: Value, r: Value, b: Value | None, p: Value | None) -> Value:
    hidden = (r.shape or ())[1]
    if b is not None:
        b = t.unsqueeze(t.op.Concat(b, t.full(0, DType.FLOAT, (4 * hidden,)), axis=0), [0])
    p = None if p is None else t.unsqueeze(p, [0])
    w, r = (t.unsqueeze(v, [0]) for v in (w, r))
    y, *_ = t.op.LSTM(x, w, r, b, None, None, None, p, hidden_size=hidden, outputs=3)
    return t.squeeze(y, [1])


def _clipped(t: Translator, x: Value, w: Value, r: Value, b: Value | None, p: Value | None, clip: float) -> Value:
    """With cells that are clipped: ONNX's LSTM clips what goes into the gates instead."""
    op, hidden, batch = t.op, (r.shape or ())[1], (x.shape or ())[1]
    gates = op.MatMul(x, t.transpose(w, (1, 0)))
    gates = gates if b is None else op.Add(gates, b)
    recurrent = t.transpose(r, (1, 0))
    from_cell = None if p is None else op.Split(p, axis=0, num_outputs=3, outputs=3)

    def step(h: Value, c: Value, gate: Value) -> Sequence[Value]:
        joined = op.Add(gate, op.MatMul(h, recurrent))
        i, o, f, z = op.Split(joined, axis=-1, num_outputs=4, outputs=4)
        if from_cell is not None:
            i, f = op.Add(i, op.Mul(from_cell[0], c)), op.Add(f, op.Mul(from_cell[2], c))
        c = op.Add(op.Mul(op.Sigmoid(f), c), op.Mul(op.Sigmoid(i), op.Tanh(z)))
        c = op.Clip(c, t.scalar(-clip, DType.FLOAT), t.scalar(clip, DType.FLOAT))
        if from_cell is not None:
            o = op.Add(o, op.Mul(from_cell[1], c))
        h = op.Mul(op.Sigmoid(o), op.Tanh(c))
        return h, c, h

    state = TensorType(DType.FLOAT, (batch, hidden))
    inputs = [("h", state), ("c", state), ("gate", TensorType(DType.FLOAT, (batch, 4 * hidden)))]
    zero = t.full(0, DType.FLOAT, (batch, hidden))
    body = t.nested("step", inputs, step)
    found: Value = op.Scan(zero, zero, gates, body=body, num_scan_inputs=1, outputs=3)[2]
    return found
