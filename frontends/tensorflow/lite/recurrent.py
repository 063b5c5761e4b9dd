"""LSTM over a sequence, in floating point; of quantized ones, weights and results are quantized."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ....ir.types import DType
from ...emit import Refused
from .file import LiteOperator
from .model import Lite, lite_rule

__all__: list[str] = []

# places of the operands, in the order of gates that ONNX has: input, output, forget, cell
_WEIGHTS, _RECURRENT, _BIASES = (1, 4, 2, 3), (5, 8, 6, 7), (12, 15, 13, 14)
_PEEPHOLES = (9, 11, 10)
_PROJECTION, _STATES, _NORMALIZATIONS = 16, (18, 19), (20, 21, 22, 23)


@lite_rule("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _lstm(m: Lite, operator: LiteOperator) -> Any:
    """States are variables that begin with 0."""
    if any(m.optional(operator, place) is not None for place in (_PROJECTION, *_NORMALIZATIONS)):
        raise Refused("an LSTM with a projection or with normalizations")
    if any(m.optional(operator, place) is None for place in (*_WEIGHTS, *_RECURRENT)):
        raise Refused("an LSTM whose input gate follows from the forget gate")
    if operator.options.get("fusedActivationFunction") != 4:
        raise Refused("an LSTM with another activation than tanh")
    t, x = m.t, m.numbers(operator.inputs[0])
    if x.rank != 3:
        raise Refused("its input has no three dimensions")
    is_time_first = operator.options["timeMajor"]
    x = x if is_time_first else t.transpose(x, (1, 0, 2))
    w, r = (_joined(m, operator, places) for places in (_WEIGHTS, _RECURRENT))
    biases = [m.optional(operator, place) for place in _BIASES]
    hidden = (r.shape or (0, 0, 0))[2]
    b = None
    if all(i is not None for i in biases):
        zero = t.full(0, DType.FLOAT, (4 * hidden,))
        b = t.unsqueeze(t.op.Concat(*(m.numbers(i) for i in biases if i is not None), zero, axis=0), [0])
    peepholes = [m.optional(operator, place) for place in _PEEPHOLES]
    p = None
    if all(i is not None for i in peepholes):
        p = t.unsqueeze(t.op.Concat(*(m.numbers(i) for i in peepholes if i is not None), axis=0), [0])
    for place in _STATES:
        state = m.optional(operator, place)
        if state is not None and m.array(state) is not None:
            raise Refused("an LSTM that begins with a state")
    clip = operator.options.get("cellClip") or None
    y, *_ = t.op.LSTM(x, w, r, b, None, None, None, p, hidden_size=hidden, clip=clip, outputs=3)
    y = t.squeeze(y, [1])
    return y if is_time_first else t.transpose(y, (1, 0, 2))


def _joined(m: Lite, operator: LiteOperator, places: tuple[int, ...]) -> Value:
    """The weights of all gates: [1, 4 hidden, in]."""
    return m.t.unsqueeze(m.t.op.Concat(*(m.numbers(operator.inputs[p]) for p in places), axis=0), [0])
