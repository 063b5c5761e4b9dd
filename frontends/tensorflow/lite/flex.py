"""Operations of TensorFlow that stand in a file as they are: ``FlexErf`` is its ``Erf``.

The options of such an operator are its name and its ``NodeDef``.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from ....ir.graph import Value
from ...emit import Refused
from ..translate import Operation
from .file import LiteOperator
from .model import FLEX, Lite, lite_rule

__all__: list[str] = []

flexbuffers = importlib.import_module("flatbuffers.flexbuffers")  # comes with TensorFlow, without types
_DAMAGED = (struct.error, DecodeError, OverflowError, RecursionError)


@lite_rule(FLEX)
def _flex(m: Lite, operator: LiteOperator) -> Any:
    operands = m.operands(operator)
    try:
        _, serialized = flexbuffers.GetRoot(operator.custom).AsVector
        node = tf.compat.v1.NodeDef.FromString(serialized.AsStringBytes)
    except _DAMAGED as error:
        raise Refused(f"its options are damaged ({error})") from error
    if f"{FLEX}{node.op}" != operator.name:
        raise Refused(f"its options are those of {node.op}")
    return m.t.apply(Operation(_imported(node, operands)), operands)


def _imported(node: Any, operands: Sequence[Value]) -> Any:
    """The operation of a node, in a graph of its own, which says what it computes."""
    graph = tf.Graph()
    with graph.as_default():
        inputs = [tf.compat.v1.placeholder(x.dtype.numpy, _known_sizes(x)) for x in operands]
        node.name, node.device = "operation", ""
        node.input[:] = [x.op.name for x in inputs]
        tf.import_graph_def(tf.compat.v1.GraphDef(node=[*graph.as_graph_def().node, node]), name="of")
    return graph.get_operation_by_name("of/operation")


def _known_sizes(x: Value) -> list[int | None] | None:
    return None if x.shape is None else [n if isinstance(n, int) else None for n in x.shape]
