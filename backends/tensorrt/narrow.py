"""Types that TensorRT has not: what has them is computed in types that it has.

``double`` becomes float32, 16-bit and unsigned integers become int32 or int64, in the whole graph. Sums, differences
and products of integers wrap around as those of the narrower type do. Inputs and outputs keep their type where the
parser casts them (``double``, ``uint8``); else they change it with the graph, which is noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np

from ...ir import (
    ArrayTensor,
    DType,
    Graph,
    GraphOutput,
    LazyTensor,
    Node,
    Tensor,
    TensorType,
    Value,
    constant,
    edit,
    op,
)
from ..base import Problem
from .legality import QUANTIZED
from .ops import forms
from .ops.casts import spelled_cast
from .versions import Version

__all__ = ["computed", "narrow"]

_WIDER = {
    DType.DOUBLE: DType.FLOAT,
    DType.UINT8: DType.INT32,
    DType.INT16: DType.INT32,
    DType.UINT16: DType.INT32,
    DType.UINT32: DType.INT64,
    DType.UINT64: DType.INT64,
    DType.UINT4: DType.INT32,
    DType.UINT2: DType.INT32,
    DType.INT2: DType.INT32,
    DType.FLOAT8E4M3FNUZ: DType.FLOAT,
    DType.FLOAT8E5M2: DType.FLOAT,
    DType.FLOAT8E5M2FNUZ: DType.FLOAT,
    DType.FLOAT8E8M0: DType.FLOAT,
}
_QUANTIZED = {DType.INT4: DType.INT32, DType.FLOAT4E2M1: DType.FLOAT}  # unless all is QuantizeLinear and back
_KEPT = (DType.DOUBLE, DType.UINT8)  # as inputs and outputs
_WRAPS = frozenset(
    {
        "Add",
        "BitShift",
        "BitwiseNot",
        "Cast",
        "Gemm",
        "MatMul",
        "ReduceL1",
        "ReduceSumSquare",
        "CumSum",
        "CumProd",
        "Mul",
        "Neg",
        "Pow",
        "ReduceProd",
        "ReduceSum",
        "Sub",
        "Sum",
    }
)
_SATURATES = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"})
_BY_WIDTH = _SATURATES | {"BitCast", "Cast", "CastLike"}  # what they compute depends on the width of their types
_TYPE_ATTRS = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision"})
_EAGER = 1 << 20  # bytes: larger constants are converted when they are written


def narrow(graph: Graph, version: Version) -> tuple[list[str], list[Problem]]:
    """Rewrite ``graph`` in place.

    Returns:
        notes on inputs and outputs that have another type now, and nodes with constants that do not fit.
    """
    wider = _WIDER | {d: w for d, w in _QUANTIZED.items() if any(_is_computed_with(n, d) for n in graph.walk())}
    for node in [n for n in graph.walk() if n.op in _BY_WIDTH]:
        values = (*node.operands, *node.results)
        if any(v is not None and v.dtype in wider and not _is_weight(v, node) for v in values):
            _spell_out(node, _spelled(node, version) or ())
    notes = list(_inputs(graph, wider))
    outputs = [(info, value.dtype) for info, value in zip(graph.output_info, graph.outputs, strict=True)]
    task = _Narrowing(wider)
    for node in list(graph.walk()):
        task.change(node)
    return notes + list(_outputs(graph, outputs, task)), task.problems


def _is_computed_with(node: Node, dtype: DType) -> bool:
    """Whether ``node`` has values of a type of 4 bits in a way that TensorRT has not: it wants whole bytes."""
    values = [v for v in (*node.operands, *node.results) if v is not None and v.dtype is dtype and v.const is None]
    shapes = [v.type.shape for v in values if isinstance(v.type, TensorType)]
    if any(shape is not None and prod(d for d in shape if isinstance(d, int)) % 2 for shape in shapes):
        return True
    return bool(values) and node.op not in ("DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose")


def _is_weight(value: Value, node: Node) -> bool:
    """Whether ``value`` is a quantized constant that TensorRT dequantizes."""
    return value.const is not None and value.dtype in _QUANTIZED and node.op == "DequantizeLinear"


def _spelled(node: Node, version: Version) -> Sequence[Value] | None:
    """``node`` in what does not depend on the width of types, but for casts that change nothing."""
    if node.op in ("Cast", "CastLike"):
        return spelled_cast(node)
    form = forms().get(node.op)
    return form(node, version) if form is not None else None


def _spell_out(node: Node, values: Sequence[Value]) -> None:
    if values:
        edit.insert_floating(values, node)
        for old, new in zip(node.results, values, strict=True):
            edit.replace(old, new)
        edit.erase(node)


def _inputs(graph: Graph, types: Mapping[DType, DType]) -> Iterator[str]:
    """Give inputs types that the parser reads, or cast them."""
    first = next(iter(graph.nodes), graph.ret)
    for value in graph.inputs:
        wider = types.get(value.dtype)
        if wider is None:
            continue
        if value.dtype in _KEPT and value.default is None:
            users = value.users
            cast = op.Cast(value, to=wider)
            edit.insert_floating([cast], first)
            for user in users:
                edit.set_operands(user, [cast if o is value else o for o in user.operands])
        else:
            yield f"input {value.name}: {value.dtype.text} -> {wider.text}"
            _retype(value, wider)
            if value.default is not None:
                value.default = _converted(value.default, wider)


def _outputs(graph: Graph, outputs: list[tuple[GraphOutput, DType]], task: _Narrowing) -> Iterator[str]:
    """Cast outputs to the types that they had, where the parser reads them."""
    values, infos = [], []
    for (info, dtype), value in zip(outputs, graph.outputs, strict=True):
        value = computed(value) if dtype in QUANTIZED else task.constant(value, graph.ret)
        if dtype in _KEPT and value.dtype is not dtype:
            values.append(op.Cast(value, to=dtype))
        else:
            values.append(value)
            if value.dtype is not dtype:
                yield f"output {info.name}: {dtype.text} -> {value.dtype.text}"
        infos.append(GraphOutput(info.name, values[-1].type))
    edit.insert_floating(values, graph.ret)
    graph.set_outputs(values, infos)


def computed(value: Value) -> Value:
    """``value``, but no constant: TensorRT has no quantized constants but those that it dequantizes."""
    if value.const is None:
        return value
    other = DType.INT32 if value.dtype.is_integer else DType.FLOAT
    return op.Cast(constant(value.const.numpy().astype(other.numpy)), to=value.dtype)


def _retype(value: Value, dtype: DType) -> None:
    assert isinstance(value.type, TensorType)
    edit.set_type(value, TensorType(dtype, value.type.shape), value.content)


def _converted(tensor: Tensor, dtype: DType) -> Tensor:
    """``tensor`` in a wider type, or ``double`` in float32, whose range it keeps to."""

    def convert(array: np.ndarray) -> np.ndarray:
        if array.dtype != np.float64:
            return array.astype(dtype.numpy)
        largest = np.finfo(np.float32).max
        return np.where(np.isinf(array), array, np.clip(array, -largest, largest)).astype(np.float32)

    if tensor.nbytes <= _EAGER:
        return ArrayTensor(convert(tensor.numpy()), dtype, tensor.name)
    return LazyTensor(convert, (tensor,), dtype, tensor.shape, tensor.name)


class _Narrowing:
    """One run over all nodes."""

    def __init__(self, wider: Mapping[DType, DType]) -> None:
        self.wider = wider
        self.problems: list[Problem] = []
        self._constants: dict[Value, Value] = {}

    def change(self, node: Node) -> None:
        """Let ``node`` compute in other types."""
        operands = [self.constant(o, node) if o is not None else None for o in node.operands]
        if any(a is not b for a, b in zip(operands, node.operands, strict=True)):
            edit.set_operands(node, operands)
        for name, value in list(node.attrs.items()):
            if name in _TYPE_ATTRS and value in self.wider:
                edit.set_attr(node, name, int(self.wider[DType(value)]))
            elif isinstance(value, Tensor) and value.dtype in self.wider:
                edit.set_attr(node, name, _converted(value, self.wider[value.dtype]))
        for nested in node.graphs:
            self.interface(nested)
        for result in node.results:
            wider = self.wider.get(result.dtype)
            if wider is not None and isinstance(result.type, TensorType):
                narrower = result.dtype
                _retype(result, wider)
                if _may_wrap(node, narrower):
                    _wrap(result, narrower)

    def interface(self, nested: Graph) -> None:
        """The inputs and outputs of a nested graph."""
        for value in nested.inputs:
            if value.dtype in self.wider and isinstance(value.type, TensorType):
                _retype(value, self.wider[value.dtype])
        nested.output_info = [GraphOutput(info.name) for info in nested.output_info]
        operands = [self.constant(o, nested.ret) if o is not None else None for o in nested.ret.operands]
        edit.set_operands(nested.ret, operands)

    def constant(self, value: Value, node: Node) -> Value:
        """A constant in its other type; anything else as it is."""
        if value.const is None or value.dtype not in self.wider or _is_weight(value, node):
            return value
        if value not in self._constants:
            tensor = value.const
            if tensor.dtype is DType.UINT64 and (tensor.numpy() >= 1 << 63).any():
                self.problems.append(Problem(node, f"constant %{value.name} holds numbers of 2^63 and more"))
            converted = _converted(tensor, self.wider[value.dtype])
            self._constants[value] = Value(converted.type, value.name, const=converted)
        return self._constants[value]


def _may_wrap(node: Node, dtype: DType) -> bool:
    """Whether what ``node`` computes may be out of the range of ``dtype``, whose results are computed modulo 2^bits."""
    if node.op not in _WRAPS or dtype in (DType.DOUBLE, DType.UINT64):
        return False
    x = node.operand(0)
    return node.op != "Cast" or (x is not None and x.dtype.is_integer)


def _wrap(value: Value, dtype: DType) -> None:
    """Bring ``value`` back into the range of ``dtype``, for all that read it."""
    users, node = value.users, value.producer
    assert node is not None
    size = constant(1 << dtype.bits, value.dtype)
    if dtype.is_signed:
        half = constant(1 << (dtype.bits - 1), value.dtype)
        result = op.Sub(op.Mod(op.Add(value, half), size), half)
    else:
        result = op.Mod(value, size)
    assert node.next is not None
    edit.insert_floating([result], node.next)
    for user in users:
        edit.set_operands(user, [result if o is value else o for o in user.operands])
