"""The graph IR: types, tensors, values and nodes, edits, shape inference, verification and text.

Imports nothing else of planish. Reading goes through `Graph`, `Node` and `Value`; every change through `edit`.
"""

from . import edit
from .builder import op
from .dims import Dim, Sym, fresh, parse_dim, sym
from .graph import Graph, GraphOutput, Node, Origin, Value, constant
from .tensor import ArrayTensor, FileTensor, LazyTensor, Tensor, TensorError, tensor
from .types import UNKNOWN, DType, OptionalType, OtherType, SequenceType, TensorType, Type, tensor_type

__all__ = [
    "UNKNOWN",
    "ArrayTensor",
    "DType",
    "Dim",
    "FileTensor",
    "Graph",
    "GraphOutput",
    "LazyTensor",
    "Node",
    "OptionalType",
    "Origin",
    "OtherType",
    "SequenceType",
    "Sym",
    "Tensor",
    "TensorError",
    "TensorType",
    "Type",
    "Value",
    "constant",
    "edit",
    "fresh",
    "op",
    "parse_dim",
    "sym",
    "tensor",
    "tensor_type",
]
