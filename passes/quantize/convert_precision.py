"""Half precision: float16 or bfloat16 where a model spends its time, float32 where numbers would not survive it.

A node is converted if its operator allows it (`precision`), its operands and results fit (`overflow`), it depends on
data, and it is in a region with a matrix product: connected nodes among which no cast is needed. What is computed from
positions and masks alone is small and must be exact (the angles of a rotary embedding, say), and elementwise operators
by themselves do not pay for the casts around them.

Nodes are changed in place: they keep their names, metadata and provenance, and only the types of their results change.
Casts stand at the borders of regions, directly behind what they cast, at most one for each value and direction. Nested
graphs keep the types of what they take and return. Attention runs with its softmax in float32, and a mask with numbers
beyond the range of the type is clipped to it: it means "never" all the same.

ONNX Runtime has few float16 kernels for CPUs, and casts around the others by itself: there, half precision makes a file
smaller and not faster.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from ...ir import ArrayTensor, DType, Graph, LazyTensor, Node, Tensor, TensorType, Value, constant, edit, op
from ...ir.quantization import FAKE_QUANTIZE
from ...ir.types import UNKNOWN, compatible
from ..base import Context, Pass, RequestError
from ..numerics import Lossy
from .overflow import Representable, measured_magnitudes, propagate
from .precision import AS_THEY_COME, FOLLOWS, MATRIX, SATURATES, SENSITIVE, HalfForm, half_form

__all__ = ["ConvertPrecision"]

_EAGER_BYTES = 1 << 20  # larger constants are converted when somebody asks for them
_TABLE_BYTES = 1 << 20  # of a constant, from which on a region pays by the memory that it saves
_CONVERTIBLE = FOLLOWS | MATRIX
_INDICES = (DType.BOOL, DType.INT32, DType.INT64)

Forms = dict[Node, HalfForm]


@dataclass(frozen=True)
class ConvertPrecision(Pass):
    """Compute in half precision what can be, and store its weights so.

    Attributes:
        to: the type.
        keep: patterns of operators, node names and modules that stay in float32.
        keep_io: whether inputs and outputs of the model stay float32.
    """

    numerics = Lossy()

    to: Literal["float16", "bfloat16"] = "float16"
    keep: tuple[str, ...] = ()
    keep_io: bool = True

    def run(self, graph: Graph, ctx: Context) -> None:
        dtype = DType[self.to.upper()]
        asked = _matching(graph, self.keep) if self.keep else set()
        magnitudes = measured_magnitudes(graph, ctx) if dtype is DType.FLOAT16 else {}  # bfloat16 is as wide as float32
        limits = Representable(graph, dtype, magnitudes)
        forms, kept = _choose(graph, dtype, limits, asked)
        conversion = _Conversion(dtype, forms, limits, self.keep_io)
        conversion.convert(graph)
        conversion.drop_casts(graph)
        ctx.note("converted", len(forms))
        ctx.note("kept in float32", kept.total())
        for reason, count in kept.items():
            ctx.note(f"kept: {reason}", count)


def _matching(graph: Graph, patterns: Iterable[str]) -> set[Node]:
    """The nodes that ``patterns`` name by operator, name, or the module that they come from.

    Raises:
        RequestError: a pattern names none.
    """
    labels = {node: {node.op, node.name, node.origin.module} for node in graph.walk()}
    known = sorted(set().union(*labels.values()) - {""})
    found: set[Node] = set()
    for pattern in patterns:
        matching = {label for label in known if fnmatchcase(label, pattern)}
        if not matching:
            near = ", ".join(difflib.get_close_matches(pattern, known, n=3))
            raise RequestError(f"no operator or node is called {pattern!r}" + (f"; there are {near}" if near else ""))
        found.update(node for node in labels if labels[node] & matching)
    return found


# choosing


def _choose(graph: Graph, dtype: DType, limits: Representable, asked: set[Node]) -> tuple[Forms, Counter[str]]:
    """The nodes of ``graph`` that are converted, and how many others stay in float32 for which reason."""
    kept: Counter[str] = Counter()
    forms: Forms = {}
    data = propagate(graph, _is_data)
    for node in graph.walk():
        values = [*node.operands, *node.results]
        if node.graphs or node.op in AS_THEY_COME or not any(v is not None and v.dtype is DType.FLOAT for v in values):
            continue
        form = half_form(node, dtype) if node.op in _CONVERTIBLE else None
        if form is None and not any(r.dtype is DType.FLOAT for r in node.results):
            continue
        reason = _why_not(node, form, limits, asked, data)
        if form is None or reason:
            kept[reason] += 1
        else:
            forms[node] = form
    for node in [n for n in forms if n.op == FAKE_QUANTIZE]:
        users = node.result.users
        if any(user.op in MATRIX for user in users) and not any(user in forms for user in users):
            kept["quantized for a layer in float32"] += 1
            del forms[node]
    for region in _regions(forms):
        if not any(_pays(node, forms[node]) for node in region):
            kept["no matrix product among its neighbours"] += len(region)
            for node in region:
                del forms[node]
    return forms, kept


def _why_not(node: Node, form: HalfForm | None, limits: Representable, asked: set[Node], data: set[Value]) -> str:
    """Why ``node`` stays in float32; "" if nothing is against half precision."""
    if node in asked:
        return "asked for"
    if node.op in SENSITIVE:
        return "sensitive to rounding"
    if form is None:
        return "not known in half precision"
    if node.op != FAKE_QUANTIZE and not any(result in data for result in node.results):
        return "computed from positions and masks"
    clipped = SATURATES.get(node.op, ())
    values = [node.given(i) for i in form.operands if i not in clipped] + [node.results[i] for i in form.results]
    if any(map(limits.overflows, values)) or any(limits.vanishes(node.given(i)) for i in form.operands):
        return "out of range"
    return ""


def _is_data(value: Value) -> bool | None:
    """Whether ``value`` comes from activations or learned weights, not from positions and masks."""
    if value.const is not None:
        return value.dtype not in _INDICES and sum(d != 1 for d in value.const.shape) > 1
    if value.graph is not None and (value.graph.parent is None or value.dtype in _INDICES):
        return value.dtype not in _INDICES
    return False if value.producer is not None and value.producer.op in ("Shape", "Size") else None


def _regions(forms: Forms) -> list[list[Node]]:
    """The nodes of ``forms``, grouped: nodes between which a value passes in half precision are together."""
    links: dict[Node, list[Node]] = defaultdict(list)
    for node, form in forms.items():
        for i in form.operands:
            source = node.given(i).producer
            if source in forms and node.given(i).index in forms[source].results:
                links[node].append(source)
                links[source].append(node)
    regions: list[list[Node]] = []
    seen: set[Node] = set()
    for start in forms:
        region, stack = [], [start]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                region.append(node)
                stack += links[node]
        if region:
            regions.append(region)
    return regions


def _pays(node: Node, form: HalfForm) -> bool:
    """Whether ``node`` is worth casts around its region: a matrix product, or the use of a large constant."""
    constants = (node.given(i).const for i in form.operands)
    return node.op in MATRIX or any(c is not None and c.nbytes >= _TABLE_BYTES for c in constants)


# changing


class _Conversion:
    """The edits that give nodes their half-precision form.

    Args:
        dtype: the type.
        forms: the nodes to convert, and how.
        limits: what the type can hold.
        keep_io: whether inputs and outputs of the model stay float32.
    """

    def __init__(self, dtype: DType, forms: Forms, limits: Representable, keep_io: bool):
        self._dtype = dtype
        self._forms = forms
        self._limits = limits
        self._keep_io = keep_io
        self._changed: set[Value] = set()  # results and inputs that were float32 and are half precision
        self._half: dict[tuple[Value, bool], Value] = {}  # for float32 values, and whether clipped
        self._float: dict[Value, Value] = {}  # for changed values
        self._tensors: dict[tuple[Tensor, bool], Tensor] = {}

    def convert(self, graph: Graph) -> None:
        """Convert the nodes of ``graph`` and of graphs nested in it, in order, and cast for all others."""
        opens = graph.parent is None and not self._keep_io
        if opens:
            for value in graph.inputs:
                if value.dtype is DType.FLOAT and value.default is None and not self._limits.overflows(value):
                    self._retype(value)
        for node in list(graph.nodes):
            form = self._forms.get(node)
            if form is not None:
                self._convert_node(node, form)
            elif node.op not in AS_THEY_COME:
                self._set_operands(node, [self._in_float(v) for v in node.operands])
            for nested in node.graphs:
                self.convert(nested)
        if opens:
            self._return_half(graph)
        else:
            self._set_operands(graph.ret, [self._in_float(v) for v in graph.outputs])

    def _convert_node(self, node: Node, form: HalfForm) -> None:
        clipped = SATURATES.get(node.op, ())
        operands = [self._in_float(v) if i not in form.operands else v for i, v in enumerate(node.operands)]
        for i in form.operands:
            value = node.given(i)
            operands[i] = self._in_half(value, i in clipped and self._limits.overflows(value))
        casts = [v.producer for v in node.operands if v is not None and v.producer is not None]
        self._set_operands(node, operands)
        edit.erase_dead(c for c in casts if c.op == "Cast")
        for name, setting in form.attrs.items():
            edit.set_attr(node, name, setting)
        for i in form.results:
            self._retype(node.results[i])

    def _return_half(self, graph: Graph) -> None:
        fits = [v.dtype is DType.FLOAT and not self._limits.overflows(v) for v in graph.outputs]
        outputs = [self._in_half(v) if fit else v for v, fit in zip(graph.outputs, fits, strict=True)]
        for value, info in zip(outputs, graph.output_info, strict=True):
            if not compatible(value.type, info.type):
                info.type = UNKNOWN  # that of the value, also if the edits are taken back
        self._set_operands(graph.ret, outputs)

    def _set_operands(self, node: Node, operands: list[Value | None] | list[Value]) -> None:
        if any(new is not old for new, old in zip(operands, node.operands, strict=True)):
            edit.set_operands(node, operands)

    def _retype(self, value: Value) -> None:
        edit.set_type(value, TensorType(self._dtype, value.shape), value.content)
        self._changed.add(value)

    def drop_casts(self, graph: Graph) -> None:
        """Take out what casts to the type that its operand has by now."""
        for node in list(graph.walk()):
            if node.op == "Cast" and node.given(0) in self._changed and node.result.dtype is self._dtype:
                edit.replace(node.result, node.given(0))
                edit.erase(node)

    # casting

    def _in_float(self, value: Value | None) -> Value | None:
        """``value`` in the type that it had."""
        if value is None or value not in self._changed:
            return value
        if value not in self._float:
            self._float[value] = self._behind(value, op.Cast(value, to=DType.FLOAT))
        return self._float[value]

    def _in_half(self, value: Value, clip: bool = False) -> Value:
        """``value`` in half precision; if ``clip``, with the largest numbers in place of larger ones."""
        if value in self._changed:
            return value
        if (value, clip) not in self._half:
            self._half[value, clip] = self._made_half(value, clip)
        return self._half[value, clip]

    def _made_half(self, value: Value, clip: bool) -> Value:
        if value.const is not None:
            tensor = self._tensors.get((value.const, clip)) or _cast_tensor(value.const, self._dtype, clip)
            self._tensors[value.const, clip] = tensor
            return Value(tensor.type, value.name, const=tensor)
        if clip:
            lowest = constant(self._dtype.lowest, DType.FLOAT)
            highest = constant(-self._dtype.lowest, DType.FLOAT)
            return self._behind(value, op.Cast(op.Clip(value, lowest, highest), to=self._dtype))
        source = value
        while source.producer is not None and source.producer.op == "Cast" and source.dtype is DType.FLOAT:
            source = source.producer.given(0)
        if source.dtype is self._dtype:
            return source
        return self._behind(value, op.Cast(source, to=self._dtype))

    def _behind(self, value: Value, new: Value) -> Value:
        """Insert what ``new`` is computed by behind ``value``; returns ``new``."""
        node, graph = value.producer, value.graph
        place = node.next if node is not None else next(graph.nodes, graph.ret) if graph is not None else None
        assert place is not None
        for made in edit.insert_floating([new], place):
            made.metadata = node.metadata if node is not None else None
            made.rules = (ConvertPrecision.pass_name(),)
        new.name = f"{value.name}_{new.dtype.text}" if value.name else ""
        return new


def _cast_tensor(tensor: Tensor, dtype: DType, clip: bool) -> Tensor:
    """``tensor`` as ``dtype``; a large one is converted when it is read."""

    def compute(array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return (np.clip(array, dtype.lowest, -dtype.lowest) if clip else array).astype(dtype.numpy)

    if tensor.nbytes < _EAGER_BYTES:
        return ArrayTensor(compute(tensor.numpy()), dtype, tensor.name)
    recipe = None if clip else ("Cast", {"to": int(dtype)})
    return LazyTensor(compute, (tensor,), dtype, tensor.shape, tensor.name, recipe=recipe)
